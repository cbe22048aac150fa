//! The log of a chain for a server that follows it, from any place on, as it comes: from the vault, and where that has no more for now, from the
//! writer's own server.
//!
//! Invariant: what is handed over was authenticated, and follows without a gap what was asked for. What cannot be read in the vault ends the
//! handing over, with a reason that is kept until it is asked for; it is never taken for the log's end.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lifeboat_engine::port::Cancel;
use lifeboat_vault::{LogEntry, Unlocked};

use super::relay::{Ended, Relay};
use super::spool::{SpoolError, Which, read_piece};
use crate::postgres::lsn::Lsn;
use crate::postgres::sender::{Feed, Progress};
use crate::source::ahead;

/// How often a server that waits for more hears that it still has a primary.
const QUIET_AT_MOST: Duration = Duration::from_secs(2);
/// The same while it waits for the writer's server to come back.
const QUIET_MEANWHILE: Duration = Duration::from_millis(100);

pub(super) struct VaultFeed {
    vault: Unlocked,
    which: Which,
    history: Vec<u8>,
    server_version: String,
    state: Mutex<State>,
    changed: Condvar,
    over: Cancel,
}

struct State {
    /// In the log's order, without a gap.
    entries: Vec<LogEntry>,
    failure: Option<SpoolError>,
    relay: Option<Arc<Relay>>,
    /// How far the writer's server has brought it.
    relayed: Lsn,
}

/// What became of a wait for the vault.
enum Poured {
    More,
    Nothing,
    Over,
}

impl VaultFeed {
    pub(super) fn new(vault: &Unlocked, which: Which, history: &str, server_version: &str) -> VaultFeed {
        // Its first word is the number; after it comes who packed it.
        let server_version = server_version.split_ascii_whitespace().next().unwrap_or_default().to_owned();
        VaultFeed {
            vault: vault.clone(),
            which,
            history: history.as_bytes().to_vec(),
            server_version,
            state: Mutex::new(State { entries: Vec::new(), failure: None, relay: None, relayed: Lsn(0) }),
            changed: Condvar::new(),
            over: Cancel::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Streams from there as well, from now on; from where it did before no byte comes any more.
    pub(super) fn set_relay(&self, relay: Option<Arc<Relay>>) {
        let before = {
            let mut state = self.lock();
            let before = std::mem::replace(&mut state.relay, relay);
            let received = before.as_ref().map_or(Lsn(0), |before| before.received());
            state.relayed = state.relayed.max(received);
            before
        };
        if let Some(before) = before {
            before.end();
            let received = before.received();
            let mut state = self.lock();
            state.relayed = state.relayed.max(received);
        }
        self.changed.notify_all();
    }

    /// The writer's server, where it is streamed from.
    pub(super) fn relay(&self) -> Option<Arc<Relay>> {
        self.lock().relay.clone()
    }

    /// Up to where the vault has it, as far as it was added.
    pub(super) fn vault_end(&self) -> Lsn {
        self.lock().entries.last().map_or(Lsn(0), |last| Lsn(last.last))
    }

    /// What comes after all that was added before.
    pub(super) fn add(&self, entries: &[LogEntry]) {
        let mut state = self.lock();
        for entry in entries {
            if state.entries.last().is_none_or(|last| entry.last > last.last) {
                state.entries.push(entry.clone());
            }
        }
        state.failure = None;
        drop(state);
        self.changed.notify_all();
    }

    /// Nothing before it will be asked for again.
    pub(super) fn forget_before(&self, at: Lsn) {
        self.lock().entries.retain(|entry| entry.last > at.0);
    }

    /// Why the server cannot be given what it asked for, if it cannot.
    pub(super) fn take_failure(&self) -> Option<SpoolError> {
        self.lock().failure.take()
    }

    /// What follows `at`, waiting for it a while.
    fn after(&self, at: Lsn, quiet: Duration) -> Vec<LogEntry> {
        let state = self.lock();
        let is_still =
            |state: &mut State| !self.over.is_cancelled() && state.entries.last().is_none_or(|last| last.last <= at.0);
        let (state, _) =
            self.changed.wait_timeout_while(state, quiet, is_still).unwrap_or_else(PoisonError::into_inner);
        let from = state.entries.partition_point(|entry| entry.last <= at.0);
        state.entries.get(from..).map(<[LogEntry]>::to_vec).unwrap_or_default()
    }

    /// Hands over what the vault has after `at`, waiting for it a while.
    fn pour_vault(
        &self,
        at: &mut Lsn,
        quiet: Duration,
        take: &mut dyn FnMut(Lsn, &[u8]) -> bool,
    ) -> Result<Poured, SpoolError> {
        let entries = self.after(*at, quiet);
        if self.over.is_cancelled() {
            return Ok(Poured::Over);
        }
        let Some(first) = entries.first() else { return Ok(Poured::Nothing) };
        // Positions count bytes from one: a piece that begins at `at` says `at + 1`.
        if first.first > at.0.saturating_add(1) {
            return Err(SpoolError::Before { wanted: *at, first: Lsn(first.first.saturating_sub(1)) });
        }
        let mut goes_on = true;
        ahead::for_each(
            &entries,
            &self.over,
            |entry| read_piece(&self.vault, &self.which, entry),
            |_, piece| {
                let known = usize::try_from(at.0.saturating_sub(piece.start.0)).unwrap_or(usize::MAX);
                if let Some(news) = piece.wal.get(known..).filter(|news| !news.is_empty()) {
                    goes_on = take(*at, news);
                    *at = piece.end();
                }
                Ok(goes_on)
            },
        )?;
        Ok(if goes_on { Poured::More } else { Poured::Over })
    }

    fn failed(&self, error: SpoolError) -> String {
        let said = crate::source::in_full(&error);
        self.lock().failure.get_or_insert(error);
        said
    }
}

impl Feed for VaultFeed {
    fn system(&self) -> u64 {
        self.which.system
    }

    fn timeline(&self) -> u32 {
        self.which.timeline
    }

    fn history(&self) -> &[u8] {
        &self.history
    }

    fn server_version(&self) -> &str {
        &self.server_version
    }

    fn end(&self) -> Lsn {
        let state = self.lock();
        let in_vault = state.entries.last().map_or(Lsn(0), |last| Lsn(last.last));
        let received = state.relay.as_ref().map_or(Lsn(0), |relay| relay.received());
        in_vault.max(state.relayed).max(received)
    }

    fn pour(&self, at: Lsn, take: &mut dyn FnMut(Lsn, &[u8]) -> bool) -> Result<(), String> {
        let mut at = at;
        loop {
            let relay = self.relay();
            let due = relay.as_ref().is_some_and(|relay| relay.is_due());
            let quiet = match &relay {
                Some(_) if due => Duration::ZERO,
                Some(_) => QUIET_MEANWHILE,
                None => QUIET_AT_MOST,
            };
            match self.pour_vault(&mut at, quiet, take) {
                Ok(Poured::More) => continue,
                Ok(Poured::Over) => return Ok(()),
                Ok(Poured::Nothing) => {}
                Err(error) => return Err(self.failed(error)),
            }
            if let Some(relay) = relay.filter(|_| due)
                && relay.run(&self.which, &mut at, &|| self.vault_end(), take) == Some(Ended::Declined)
            {
                return Ok(());
            }
            if !take(at, &[]) {
                return Ok(());
            }
        }
    }

    fn heard(&self, progress: Progress) {
        if let Some(relay) = self.relay() {
            relay.heard(progress);
        }
    }

    fn close(&self) {
        self.over.cancel();
        self.changed.notify_all();
        self.set_relay(None);
    }
}
