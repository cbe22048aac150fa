//! This machine's clocks.
//!
//! Invariant: `monotonic_seconds` never goes back within a process; `now` may, and nothing is decided by it alone.

use std::time::Instant;

use jiff::Timestamp;
use lifeboat_engine::port::Clock;

#[derive(Debug, Clone, Copy)]
pub struct MachineClock {
    begun: Instant,
}

impl Default for MachineClock {
    fn default() -> MachineClock {
        MachineClock { begun: Instant::now() }
    }
}

impl Clock for MachineClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn monotonic_seconds(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }
}
