//! The times of a lease: how a writer's TTL is divided between renewing, stopping and waiting.
//!
//! Invariant: the writer is stopped before the TTL is over, and nobody believes so before TTL and skew are.

use crate::units::Span;

/// Below this a slow answer of the arbiter's would stop the service.
pub const TTL_MIN: Span = Span::seconds(3);
/// The longest that is believed, so that a damaged or hostile one cannot hold a recovery up for ever.
pub const TTL_MAX: Span = Span::seconds(3600);
const SKEW_MIN: Span = Span::seconds(1);

/// How long an observer waits beyond the TTL: a tenth, which no two clocks differ by within one TTL, and at least a
/// second, which a machine that does much else may need to act.
pub fn skew(ttl: Span) -> Span {
    Span(ttl.0 / 10).max(SKEW_MIN)
}

/// How often the holder renews: two renewals may fail before anything is stopped.
pub fn renew_every(ttl: Span) -> Span {
    Span(ttl.0 / 4)
}

/// How long after the last renewal was asked for the watchdog stops the writer. The last quarter is for stopping it.
pub fn stop_after(ttl: Span) -> Span {
    Span(ttl.0 * 3 / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_ttl_leave_room_for_what_each_is_for() {
        for ttl in [TTL_MIN, Span::seconds(10), TTL_MAX] {
            assert!(renew_every(ttl).0 * 3 <= stop_after(ttl).0, "two renewals may fail: {ttl}");
            assert!(stop_after(ttl) < ttl && skew(ttl) >= SKEW_MIN && skew(ttl).0 * 10 >= ttl.0, "{ttl}");
        }
    }
}
