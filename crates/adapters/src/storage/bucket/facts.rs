//! How a bucket is set up, as far as it says: its clock, versions, Object Lock.
//!
//! Invariant: the signed addresses by which it is asked are in no message.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lifeboat_vault::storage::Fact;
use object_store::path::Path;
use object_store::signer::{SignedUrlOptions, Signer};

use super::verbs::Shared;

/// The storage tells its time in whole seconds.
const CLOCKS_AGREE_SECONDS: i64 = 3;
/// Times that differ by more make retention and leases wrong by as much; S3 itself refuses at fifteen minutes.
const CLOCKS_DIFFER_SECONDS: i64 = 60;
const ANSWER_BYTES_MAX: usize = 64 << 10;
const ANSWER_SECONDS_MAX: u64 = 30;

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
    let between = |text: &str, name: &str| -> Option<String> {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        let value = rest.split_once('<')?.0;
        value.chars().all(|letter| letter.is_ascii_alphanumeric()).then(|| value.to_owned())
    };
    match answer {
        Answer::Text(text) if text.contains("<ObjectLockEnabled>Enabled") => {
            let days = between(&text, "Days").map(|days| format!("{days} days"));
            let period = days.or_else(|| between(&text, "Years").map(|years| format!("{years} years")));
            match (between(&text, "Mode"), period) {
                (Some(mode), Some(period)) => Fact::good(
                    "object-lock",
                    format!("Object Lock keeps every new object for {period} ({})", mode.to_lowercase()),
                ),
                _ => Fact::note(
                    "object-lock",
                    "Object Lock is on, without a default retention: it protects nothing by itself",
                ),
            }
        }
        Answer::Text(_) | Answer::Nothing => Fact::note("object-lock", "no Object Lock"),
        Answer::Denied => Fact::unknown("object-lock", "these credentials may not ask about Object Lock"),
    }
}

enum Answer {
    Text(String),
    Denied,
    Nothing,
}

/// Asks for one setting of the bucket, which the library has no verb for.
async fn ask(shared: &Shared, setting: &str) -> Answer {
    let Some(signer) = shared.asks() else { return Answer::Nothing };
    let options = SignedUrlOptions::default().with_query([(setting, "")]);
    let within = Duration::from_secs(ANSWER_SECONDS_MAX);
    let Ok(url) = signer.signed_url_opts(reqwest::Method::GET, &Path::default(), within, &options).await else {
        return Answer::Nothing;
    };
    let Ok(client) = reqwest::Client::builder().timeout(within).build() else { return Answer::Nothing };
    let Ok(response) = client.get(url).send().await else { return Answer::Nothing };
    match response.status().as_u16() {
        403 => Answer::Denied,
        200 => match read(response).await {
            Some(text) => Answer::Text(text),
            None => Answer::Nothing,
        },
        _ => Answer::Nothing,
    }
}

async fn read(mut response: reqwest::Response) -> Option<String> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.ok()? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > ANSWER_BYTES_MAX {
            return None;
        }
    }
    String::from_utf8(bytes).ok()
}
