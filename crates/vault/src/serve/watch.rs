//! Deadlines for what may hang: a frame that trickles in, an answer that nobody takes.
//!
//! Invariant: a frame gets its grace and what its length needs at a slow line's speed, however steadily its bytes trickle.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a frame gets besides the time that its length needs.
pub(super) const GRACE: Duration = Duration::from_secs(60);
/// The slowest line that is served, in bytes a second.
const SLOWEST: u64 = 16 << 10;

pub(super) fn allowance(grace: Duration, bytes: u64) -> Duration {
    grace + Duration::from_secs(bytes / SLOWEST)
}

/// A deadline that one thread sets and another watches.
#[derive(Debug)]
pub(super) struct Deadline {
    start: Instant,
    /// Milliseconds after `start`; `u64::MAX`: none.
    at: AtomicU64,
}

impl Deadline {
    pub(super) fn none() -> Deadline {
        Deadline { start: Instant::now(), at: AtomicU64::new(u64::MAX) }
    }

    pub(super) fn set(&self, after: Duration) {
        let at = self.start.elapsed() + after;
        self.at.store(u64::try_from(at.as_millis()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    pub(super) fn clear(&self) {
        self.at.store(u64::MAX, Ordering::SeqCst);
    }

    pub(super) fn is_over(&self) -> bool {
        u128::from(self.at.load(Ordering::SeqCst)) < self.start.elapsed().as_millis()
    }
}
