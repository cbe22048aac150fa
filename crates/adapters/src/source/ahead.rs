//! Pieces of the log, read ahead on several threads and applied one after the other.
//!
//! Invariant: what is applied is applied in the log's order, and nothing after the first piece that failed.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use lifeboat_engine::port::Cancel;
use lifeboat_vault::LogEntry;

/// Reading waits for the storage more than for a core.
const READERS: usize = 8;
/// Pieces that are read and wait; each is at most a few MiB, seldom more.
const AHEAD: usize = 16;

/// Reads the entries' pieces ahead and hands them over in order, until `each` answers `false` or fails. `false`: not all of them were
/// handed over, because it was cancelled.
pub(super) fn for_each<P: Send, E: Send>(
    entries: &[LogEntry],
    cancel: &Cancel,
    read: impl Fn(&LogEntry) -> Result<P, E> + Sync,
    mut each: impl FnMut(&LogEntry, P) -> Result<bool, E>,
) -> Result<bool, E> {
    let desk = Desk::new();
    std::thread::scope(|scope| {
        for _ in 0..READERS.min(entries.len()) {
            scope.spawn(|| {
                while let Some((place, entry)) = desk.claim(entries) {
                    desk.put(place, read(entry));
                }
            });
        }
        let mut hand_over = || {
            for (place, entry) in entries.iter().enumerate() {
                let piece = desk.take(place)?;
                if cancel.is_cancelled() {
                    return Ok(false);
                }
                if !each(entry, piece)? {
                    break;
                }
            }
            Ok(true)
        };
        let outcome = hand_over();
        desk.close();
        outcome
    })
}

/// Where readers lay down what they have read.
struct Desk<P, E> {
    state: Mutex<State<P, E>>,
    changed: Condvar,
}

struct State<P, E> {
    claimed: usize,
    taken: usize,
    closed: bool,
    read: BTreeMap<usize, Result<P, E>>,
}

impl<P, E> Desk<P, E> {
    fn new() -> Desk<P, E> {
        let state = State { claimed: 0, taken: 0, closed: false, read: BTreeMap::new() };
        Desk { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State<P, E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<P, E>>) -> MutexGuard<'a, State<P, E>> {
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

    fn put(&self, place: usize, piece: Result<P, E>) {
        self.lock().read.insert(place, piece);
        self.changed.notify_all();
    }

    fn take(&self, place: usize) -> Result<P, E> {
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
