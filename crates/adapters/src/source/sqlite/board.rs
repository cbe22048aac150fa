//! What the threads of a stream tell each other: the capture, and two for each vault (its log, its full snapshots).
//!
//! ```text
//!   capture ──pieces──▶ lane ──▶ log thread ──▶ vault
//!      ▲  └──snapshot──▶ lane ──▶ base thread ─▶ vault
//!      └───a snapshot is wanted───┘
//! ```
//!
//! Invariant: a piece leaves its lane only when the vault has it; a lane that must drop pieces starts a new chain with a
//! full snapshot. A slow vault costs the others nothing, and the source no more than `WAITING_BYTES_MAX` of memory.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_engine::port::{Cancel, PointTaken, VaultStatus};
use lifeboat_vault::Position;

use super::Content;
use super::wal::Place;

/// What may wait for one vault.
pub(super) const WAITING_BYTES_MAX: u64 = 256 << 20;

/// One piece on its way.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) payload: Arc<Vec<u8>>,
    /// The last transaction in it.
    pub(super) last: u64,
    pub(super) end: Place,
    /// Everything committed before is in it or before it.
    pub(super) from: Timestamp,
}

/// A snapshot to be stored.
pub(super) struct Base {
    pub(super) content: Content,
    pub(super) bytes: u64,
    /// None outside a stream.
    pub(super) position: Option<Position>,
    pub(super) from: Timestamp,
    pub(super) to: Timestamp,
}

impl std::fmt::Debug for Base {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Base").field("position", &self.position).finish_non_exhaustive()
    }
}

/// The chain that a lane's pieces belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) lineage: String,
    /// The last transaction that is in the vault, or before the chain's beginning.
    pub(super) shipped: u64,
    pub(super) place: Option<Place>,
    /// A full snapshot of this chain is in the vault.
    pub(super) based: bool,
}

#[derive(Debug, Default)]
pub(super) struct Lane {
    pub(super) chain: Option<Chain>,
    pub(super) waiting: VecDeque<Item>,
    pub(super) waiting_bytes: u64,
    /// Counts wishes for a full snapshot, and those that came true or failed.
    pub(super) bases_wanted: u64,
    pub(super) bases_ended: u64,
    /// Between being wanted and being stored.
    pub(super) base: Option<Base>,
    pub(super) base_under_way: bool,
    pub(super) last_base: Option<Result<PointTaken, String>>,
    /// Everything before is certainly in the vault, whatever has happened since.
    pub(super) durable_to: Option<Timestamp>,
    pub(super) log_problem: Option<String>,
    pub(super) base_problem: Option<String>,
    pub(super) point: Option<String>,
    pub(super) is_frozen: bool,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) stop: bool,
    /// The capture has ended; what waits now is all there is.
    pub(super) ended: bool,
    pub(super) freeze: bool,
    /// The last look before a freeze is done.
    pub(super) frozen_at: Option<(u64, Timestamp)>,
    pub(super) problem: Option<String>,
    /// Up to which transaction and moment everything has been read.
    pub(super) read: Option<(u64, Timestamp)>,
    pub(super) lanes: Vec<Lane>,
}

#[derive(Debug)]
pub(super) struct Board {
    state: Mutex<State>,
    changed: Condvar,
    /// Set with `State::stop`.
    pub(super) cancel: Cancel,
}

impl Board {
    pub(super) fn new(lanes: usize) -> Board {
        let state = State { lanes: (0..lanes).map(|_| Lane::default()).collect(), ..State::default() };
        Board { state: Mutex::new(state), changed: Condvar::new(), cancel: Cancel::default() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes everybody.
    pub(super) fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let answer = change(&mut self.lock());
        self.changed.notify_all();
        answer
    }

    /// Waits until `look` answers something, or the time is over.
    pub(super) fn wait<T>(&self, time: Duration, mut look: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
        let deadline = std::time::Instant::now() + time;
        let mut state = self.lock();
        loop {
            if let Some(answer) = look(&mut state) {
                return Some(answer);
            }
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return None;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl State {
    pub(super) fn lane(&mut self, index: usize) -> Option<&mut Lane> {
        self.lanes.get_mut(index)
    }

    pub(super) fn lane_status(&self, lane: &Lane) -> VaultStatus {
        VaultStatus {
            durable_to: self.durable_to(lane),
            position: None,
            point: lane.point.clone(),
            waiting_bytes: lane.waiting_bytes,
            frozen: lane.is_frozen,
            problem: lane.log_problem.clone().or_else(|| lane.base_problem.clone()),
        }
    }

    /// With nothing waiting, the vault has everything that was read.
    fn durable_to(&self, lane: &Lane) -> Option<Timestamp> {
        let chain = lane.chain.as_ref().filter(|chain| chain.based);
        match (chain, self.read) {
            (Some(chain), Some((transactions, from))) if lane.waiting.is_empty() && chain.shipped == transactions => {
                lane.durable_to.max(Some(from))
            }
            _ => lane.durable_to,
        }
    }
}

impl Lane {
    /// Adds a piece; one that waits too long with too many others ends the chain.
    pub(super) fn add(&mut self, item: Item) {
        if self.chain.is_none() {
            return;
        }
        self.waiting_bytes += item.payload.len() as u64;
        self.waiting.push_back(item);
        if self.waiting_bytes > WAITING_BYTES_MAX {
            let megabytes = self.waiting_bytes >> 20;
            self.break_off(&format!(
                "{megabytes} MiB of changes were waiting for the vault and were dropped; a full snapshot follows as soon as it answers"
            ));
        }
    }

    /// Ends the chain; only a full snapshot starts another.
    pub(super) fn break_off(&mut self, why: &str) {
        self.chain = None;
        self.waiting.clear();
        self.waiting_bytes = 0;
        self.base = None;
        self.log_problem = Some(why.to_owned());
    }

    pub(super) fn wants_base(&self) -> bool {
        let missing = self.chain.as_ref().is_none_or(|chain| !chain.based);
        self.base.is_none() && !self.base_under_way && (missing || self.bases_wanted > self.bases_ended)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::wal::{Salts, Sum};
    use super::*;

    #[test]
    fn what_waits_too_long_is_dropped_and_said_and_a_full_snapshot_is_wanted() {
        let place = Place { page_size: 4096, salts: Salts(0, 0), frame: 1, sum: Sum(0, 0) };
        let payload = Arc::new(vec![0; 60 << 20]);
        let mut lane = Lane {
            chain: Some(Chain { lineage: "l".into(), shipped: 0, place: Some(place), based: true }),
            ..Lane::default()
        };
        let mut state = State { read: Some((0, Timestamp::UNIX_EPOCH)), ..State::default() };
        for last in 1..=4 {
            lane.add(Item { payload: payload.clone(), last, end: place, from: Timestamp::UNIX_EPOCH });
        }
        state.read = Some((4, Timestamp::UNIX_EPOCH));
        assert!(!lane.wants_base());
        assert_eq!((state.lane_status(&lane).durable_to, lane.waiting_bytes), (None, 240 << 20));
        lane.add(Item { payload, last: 5, end: place, from: Timestamp::UNIX_EPOCH });
        assert!(lane.wants_base());
        let status = state.lane_status(&lane);
        assert_eq!((status.durable_to, status.waiting_bytes), (None, 0));
        assert_eq!(
            status.problem.unwrap(),
            "300 MiB of changes were waiting for the vault and were dropped; a full snapshot follows as soon as it answers"
        );
    }
}
