//! What the threads of a stream tell each other, and what others may ask of it.
//!
//! Invariant: what stands here as durable was answered by the vault.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lifeboat_core::desired::CommitsWait;
use lifeboat_engine::port::{Cancel, PointTaken, VaultStatus};

use super::super::chain::Lineage;
use super::samples::{Sample, Samples};
use crate::postgres::lsn::Lsn;

/// One vault's part.
#[derive(Debug, Default)]
pub(super) struct Lane {
    /// The chain that is being shipped, and up to where the vault has it.
    pub(super) chain: Option<(Lineage, Lsn)>,
    /// The server's process that sends the log to this vault's receiver.
    pub(super) pid: Option<u32>,
    pub(super) based: bool,
    pub(super) status: VaultStatus,
    pub(super) log_problem: Option<String>,
    pub(super) base_problem: Option<String>,
    /// A base backup is under way since the log was there: moments from there on will be asked for.
    pub(super) base_from: Option<Lsn>,
    pub(super) bases_wanted: u64,
    pub(super) bases_ended: u64,
    pub(super) last_base: Option<Result<PointTaken, String>>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) lanes: Vec<Lane>,
    pub(super) stop: bool,
    pub(super) freeze: bool,
    /// Up to there everything is to be shipped before the final mark.
    pub(super) frozen_at: Option<Sample>,
    /// Whether commits wait, where they are to.
    pub(super) commits: Option<CommitsWait>,
    /// Why they do not go on, if they wait and do not.
    pub(super) stands_still: Option<String>,
}

impl State {
    pub(super) fn lane(&mut self, index: usize) -> Option<&mut Lane> {
        self.lanes.get_mut(index)
    }
}

#[derive(Debug)]
pub(super) struct Board {
    state: Mutex<State>,
    changed: Condvar,
    pub(super) samples: Arc<Samples>,
    pub(super) cancel: Cancel,
}

impl Board {
    pub(super) fn new(lanes: usize, samples: Arc<Samples>) -> Board {
        let state = State { lanes: (0..lanes).map(|_| Lane::default()).collect(), ..State::default() };
        Board { state: Mutex::new(state), changed: Condvar::new(), samples, cancel: Cancel::default() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.lock());
        self.changed.notify_all();
        changed
    }

    /// Looks at each change until there is an answer, or the time is over.
    pub(super) fn wait<T>(&self, within: Duration, mut look: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
        let deadline = std::time::Instant::now() + within;
        let mut state = self.lock();
        loop {
            if let Some(answer) = look(&mut state) {
                return Some(answer);
            }
            let left = deadline.checked_duration_since(std::time::Instant::now())?;
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
