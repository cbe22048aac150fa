//! Pieces of the log, read ahead on several threads and applied one after the other.
//!
//! Invariant: what is applied is applied in the log's order, and nothing after the first piece that failed.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use lifeboat_engine::port::Cancel;
use lifeboat_vault::{LogEntry, Unlocked};

use super::apply::apply;
use super::content::Piece;
use super::copy::RestoreError;

/// Reading waits for the storage more than for a core.
const READERS: usize = 8;
/// Pieces that are read and wait; each is at most a few MiB, seldom more.
const AHEAD: usize = 16;

/// Reads the entries' pieces ahead and hands them over in order, until `each` answers `false` or fails.
pub(super) fn for_each(
    vault: &Unlocked,
    entries: &[LogEntry],
    cancel: &Cancel,
    mut each: impl FnMut(&LogEntry, Piece) -> Result<bool, RestoreError>,
) -> Result<(), RestoreError> {
    let desk = Desk::default();
    std::thread::scope(|scope| {
        for _ in 0..READERS.min(entries.len()) {
            scope.spawn(|| {
                while let Some((place, entry)) = desk.claim(entries) {
                    desk.put(place, read_piece(vault, entry));
                }
            });
        }
        let mut hand_over = || {
            for (place, entry) in entries.iter().enumerate() {
                let piece = desk.take(place)?;
                if cancel.is_cancelled() {
                    return Err(RestoreError::Cancelled);
                }
                if !each(entry, piece)? {
                    break;
                }
            }
            Ok(())
        };
        let outcome = hand_over();
        desk.close();
        outcome
    })
}

fn read_piece(vault: &Unlocked, entry: &LogEntry) -> Result<Piece, RestoreError> {
    let payload = vault.read_log(entry).map_err(|source| RestoreError::Piece { key: entry.key.clone(), source })?;
    Piece::decode(&payload).map_err(|source| RestoreError::Content { key: entry.key.clone(), source })
}

pub(super) fn apply_piece(piece: &Piece, entry: &LogEntry, file: &File) -> Result<u64, RestoreError> {
    apply(piece, file).map_err(|source| RestoreError::Apply { key: entry.key.clone(), source })
}

/// Where readers lay down what they have read.
#[derive(Default)]
struct Desk {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    claimed: usize,
    taken: usize,
    closed: bool,
    read: BTreeMap<usize, Result<Piece, RestoreError>>,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// The next entry that nobody reads yet, once there is room for it.
    fn claim<'e>(&self, entries: &'e [LogEntry]) -> Option<(usize, &'e LogEntry)> {
        let mut state = self.lock();
        while !state.closed && state.claimed >= state.taken + AHEAD {
            state = self.wait(state);
        }
        let place = state.claimed;
        let entry = entries.get(place).filter(|_| !state.closed)?;
        state.claimed += 1;
        Some((place, entry))
    }

    fn put(&self, place: usize, piece: Result<Piece, RestoreError>) {
        self.lock().read.insert(place, piece);
        self.changed.notify_all();
    }

    fn take(&self, place: usize) -> Result<Piece, RestoreError> {
        let mut state = self.lock();
        loop {
            if let Some(piece) = state.read.remove(&place) {
                state.taken = place + 1;
                self.changed.notify_all();
                return piece;
            }
            state = self.wait(state);
        }
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}
