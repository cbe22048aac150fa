//! How a bucket is set up, as far as it says: its clock, versions, Object Lock.
//!
//! Invariant: the signed addresses by which it is asked are in no message.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use lifeboat_vault::storage::{Fact, Locking, StorageError};

use super::failure::Failure;
use super::locks::{self, Question};
use super::verbs::Shared;

/// The storage tells its time in whole seconds.
const CLOCKS_AGREE_SECONDS: i64 = 3;
/// Times that differ by more make retention and leases wrong by as much; S3 itself refuses at fifteen minutes.
const CLOCKS_DIFFER_SECONDS: i64 = 60;

pub(super) async fn facts(shared: &Shared) -> Vec<Fact> {
    let mut facts = vec![clock(shared)];
    if shared.asks().is_some() {
        facts.push(versions(shared, ask(shared, "versioning").await));
        facts.push(lock(ask(shared, "object-lock").await));
    }
    facts
}

fn clock(shared: &Shared) -> Fact {
    let heard = *shared.heard.clock.lock().unwrap_or_else(PoisonError::into_inner);
    let Some((theirs, ours)) = heard else { return Fact::unknown("clock", "the storage does not tell its time") };
    let ahead = (ours - theirs).get_seconds();
    let side = if ahead > 0 { "ahead of" } else { "behind" };
    let says = format!("this machine's clock is {} seconds {side} the storage's", ahead.abs());
    if ahead.abs() <= CLOCKS_AGREE_SECONDS {
        return Fact::good("clock", "this machine's clock and the storage's agree");
    }
    if ahead.abs() <= CLOCKS_DIFFER_SECONDS {
        return Fact::note("clock", says);
    }
    Fact::finding("clock", says, "let this machine keep time by NTP")
}

fn versions(shared: &Shared, answer: Answer) -> Fact {
    let keeps = "keeps versions: what is deleted or replaced can be had back until its version expires, and takes room until then";
    match answer {
        Answer::Text(text) if text.contains("<Status>Enabled</Status>") => Fact::good("versions", keeps),
        _ if shared.heard.versions.load(Ordering::Relaxed) => Fact::good("versions", keeps),
        Answer::Text(_) => Fact::note("versions", "keeps no versions: what is deleted is gone"),
        Answer::Denied => Fact::unknown("versions", "these credentials may not ask whether versions are kept"),
        Answer::Nothing => Fact::unknown("versions", "the storage does not say whether versions are kept"),
    }
}

fn lock(answer: Answer) -> Fact {
    let text = match answer {
        Answer::Text(text) => text,
        Answer::Nothing => String::new(),
        Answer::Denied => return Fact::unknown("object-lock", "these credentials may not ask about Object Lock"),
    };
    match locks::read_locking(&text) {
        None => Fact::note("object-lock", "no Object Lock"),
        Some(Locking { by_itself: None }) => {
            let says = "Object Lock is on, without a default retention: only what `vault lock` locked is protected";
            Fact::note("object-lock", says)
        }
        Some(Locking { by_itself: Some((days, mode)) }) => {
            Fact::good("object-lock", format!("Object Lock keeps every new object for {days} days ({mode})"))
        }
    }
}

enum Answer {
    Text(String),
    Denied,
    Nothing,
}

/// Asks for one setting of the bucket.
async fn ask(shared: &Shared, setting: &'static str) -> Answer {
    let Some(asks) = shared.asks() else { return Answer::Nothing };
    match locks::ask(shared, asks, &Question::read("", setting)).await {
        Ok(text) => Answer::Text(text),
        Err(Failure::Final(StorageError::Denied { .. })) => Answer::Denied,
        Err(_) => Answer::Nothing,
    }
}
