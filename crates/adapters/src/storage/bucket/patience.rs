//! How long is waited for a storage, and between tries.
//!
//! Invariant: what is tried again is tried a bounded time, waits longer each time and never in step with others.

use std::time::{Duration, Instant};

/// Limits of one storage. The tests have their own.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// The first wait is at most so long, each further one twice as long.
    pub wait_first: Duration,
    pub wait_max: Duration,
    /// From the first failure of an operation to its last try.
    pub total: Duration,
    /// The same while the storage has never answered: the address is likely wrong.
    pub total_unreached: Duration,
    /// Nothing at all was heard for so long: the try has failed.
    pub stall: Duration,
    /// An upload slower than this has stalled.
    pub bytes_per_second_min: u64,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            wait_first: Duration::from_millis(200),
            wait_max: Duration::from_secs(10),
            total: Duration::from_secs(90),
            total_unreached: Duration::from_secs(6),
            stall: Duration::from_secs(30),
            bytes_per_second_min: 64 << 10,
        }
    }
}

impl Patience {
    /// How long one try of an upload may take.
    pub(super) fn for_upload(&self, bytes: usize) -> Duration {
        self.stall + Duration::from_secs(bytes as u64 / self.bytes_per_second_min.max(1))
    }
}

/// The tries of one operation.
#[derive(Debug)]
pub(super) struct Tries {
    patience: Patience,
    failed_first: Option<Instant>,
    pub(super) count: u32,
}

impl Tries {
    pub(super) fn new(patience: Patience) -> Tries {
        Tries { patience, failed_first: None, count: 1 }
    }

    /// How long to wait before the next try, or none any more. The storage may ask for more time (`Retry-After`).
    pub(super) fn next(&mut self, asked: Option<Duration>, reached: bool) -> Option<Duration> {
        let first = *self.failed_first.get_or_insert_with(Instant::now);
        let total = if reached { self.patience.total } else { self.patience.total_unreached };
        let doubled = self.patience.wait_first.saturating_mul(1 << (self.count - 1).min(16));
        let most = doubled.min(self.patience.wait_max);
        // At least half of it, so that a burst of failures does not become a burst of tries.
        let wait = most.mul_f64(0.5 + rand::random::<f64>() / 2.0).max(asked.unwrap_or_default());
        if first.elapsed() + wait > total {
            return None;
        }
        self.count += 1;
        Some(wait)
    }

    /// Something was achieved: what fails next is a new failure.
    pub(super) fn progressed(&mut self) {
        *self = Tries::new(self.patience);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_end_within_the_total() {
        let mut tries = Tries::new(Patience::default());
        let waits: Vec<Duration> = std::iter::from_fn(|| tries.next(None, true)).take(9).collect();
        assert!(waits[0] >= Duration::from_millis(100) && waits[0] <= Duration::from_millis(200), "{waits:?}");
        assert!(waits[8] >= Duration::from_secs(5) && waits[8] <= Duration::from_secs(10), "{waits:?}");
        assert!(tries.next(Some(Duration::from_secs(80)), true).is_some());
        assert!(tries.next(Some(Duration::from_secs(91)), true).is_none(), "longer than all patience");
        assert!(tries.next(Some(Duration::from_secs(7)), false).is_none(), "nobody was ever there");
    }
}
