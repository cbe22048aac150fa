//! The journal's mirror: every entry of a run, signed, as `journal/RUN/SEQ` in the arbiter's storage.
//!
//! Invariant: entries are mirrored in order, each once; `confirmed` never runs ahead of what the storage has. Another
//! entry found in an entry's place means that somebody else went on with the run: this mirror stops and says so.

use std::sync::Arc;
use std::time::Duration;

use lifeboat_core::run::{Sealed, open_chain};
use tokio::sync::{mpsc, watch};

use super::board::{Arbiter, ArbiterError, Put};
use crate::journal::Head;

/// The most entries of a run that are read back: far above any real run.
const ENTRIES_MAX: u64 = 100_000;

impl Arbiter {
    /// Mirrors one entry. Mirroring it again is fine.
    pub fn mirror_entry(&self, run: &str, seq: u64, sealed: &Sealed) -> Result<(), ArbiterError> {
        let key = format!("journal/{run}/{seq}");
        if let Put::Created = self.publish_once(&key, sealed)? {
            return Ok(());
        }
        match self.read::<Sealed>(&key)? {
            Some(there) if there == *sealed => Ok(()),
            Some(_) => Err(ArbiterError::RunTaken { run: run.into(), seq }),
            None => Err(ArbiterError::Vanished { key }),
        }
    }

    /// The mirrored journal of a run, whole and checked; empty when there is none.
    pub fn mirrored_journal(&self, run: &str) -> Result<Vec<Sealed>, ArbiterError> {
        let count = self.numbers(&format!("journal/{run}/"))?.last().copied().unwrap_or(0).min(ENTRIES_MAX);
        let mut entries = Vec::new();
        for seq in 1..=count {
            let key = format!("journal/{run}/{seq}");
            entries.push(self.read::<Sealed>(&key)?.ok_or(ArbiterError::Vanished { key })?);
        }
        open_chain(run, &entries).map_err(|source| ArbiterError::BrokenMirror { source })?;
        Ok(entries)
    }

    /// Runs that have a mirrored journal.
    pub fn mirrored_runs(&self) -> Result<Vec<String>, ArbiterError> {
        let mut runs: Vec<String> = self
            .keys("journal/")?
            .iter()
            .filter_map(|key| key.strip_prefix("journal/")?.split('/').next().map(String::from))
            .collect();
        runs.sort();
        runs.dedup();
        Ok(runs)
    }

    pub(super) fn is_mirrored(&self, run: &str) -> Result<bool, ArbiterError> {
        Ok(!self.numbers(&format!("journal/{run}/"))?.is_empty())
    }

    /// Refuses to go on with a run whose mirrored journal is longer than, or another one than, the one at hand.
    pub(super) fn require_journal(&self, run: &str, head: &Head) -> Result<(), ArbiterError> {
        let mirrored = self.numbers(&format!("journal/{run}/"))?.last().copied().unwrap_or(0);
        if mirrored > head.seq {
            return Err(ArbiterError::JournalBehind { run: run.into(), own: head.seq, mirrored });
        }
        let same = mirrored < head.seq
            || mirrored == 0
            || self.read::<Sealed>(&format!("journal/{run}/{mirrored}"))?.is_some_and(|there| there.hash == head.hash);
        if same { Ok(()) } else { Err(ArbiterError::RunTaken { run: run.into(), seq: mirrored }) }
    }
}

/// How far the mirror is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MirrorState {
    /// The last entry that is durable in the arbiter's storage.
    pub confirmed: u64,
    /// Why it is behind, if it is.
    pub problem: Option<String>,
    /// Somebody else has gone on with the run; nothing more will be mirrored.
    pub taken: bool,
}

/// Mirrors in the background, in order, trying again until it succeeds.
#[derive(Debug)]
pub struct Mirror {
    entries: mpsc::UnboundedSender<(u64, Sealed)>,
    state: watch::Receiver<MirrorState>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Mirror {
    pub fn start(arbiter: Arc<Arbiter>, run: &str, pause: Duration) -> Mirror {
        let (entries, incoming) = mpsc::unbounded_channel();
        let (report, state) = watch::channel(MirrorState::default());
        let task = tokio::spawn(mirror(arbiter, run.into(), pause, incoming, report));
        Mirror { entries, state, task }
    }

    pub fn push(&self, seq: u64, sealed: Sealed) {
        // The receiver ends only when another executor has taken the run, which `state` tells.
        let _ = self.entries.send((seq, sealed));
    }

    pub fn state(&self) -> watch::Receiver<MirrorState> {
        self.state.clone()
    }
}

async fn mirror(
    arbiter: Arc<Arbiter>,
    run: String,
    pause: Duration,
    mut incoming: mpsc::UnboundedReceiver<(u64, Sealed)>,
    report: watch::Sender<MirrorState>,
) {
    while let Some((seq, sealed)) = incoming.recv().await {
        loop {
            let (with, to, what) = (arbiter.clone(), run.clone(), sealed.clone());
            let done = tokio::task::spawn_blocking(move || with.mirror_entry(&to, seq, &what)).await;
            match done {
                Ok(Ok(())) => {
                    report.send_modify(|state| {
                        state.confirmed = seq;
                        state.problem = None;
                    });
                    break;
                }
                Ok(Err(error @ ArbiterError::RunTaken { .. })) => {
                    report.send_modify(|state| {
                        state.problem = Some(error.to_string());
                        state.taken = true;
                    });
                    return;
                }
                Ok(Err(error)) => report.send_modify(|state| state.problem = Some(error.with_cause())),
                Err(_) => return,
            }
            tokio::time::sleep(pause).await;
        }
    }
}
