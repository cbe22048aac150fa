//! When the server's log had come how far: the moment of the server's own clock, then the end of what is flushed.
//!
//! Invariant: the clock was read before the position, so that whatever was committed, and flushed, up to the moment lies before the
//! position. A moment that nothing was measured for is unknown.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

use crate::postgres::error::SessionError;
use crate::postgres::lsn::Lsn;
use crate::postgres::session::Session;

/// Of an idle hour ten times a second, only a few are kept: those with the same position stand for each other.
const KEPT: usize = 100_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Sample {
    pub(in super::super) at: Timestamp,
    pub(in super::super) flushed: Lsn,
}

impl Sample {
    /// Asks the server.
    pub(in super::super) async fn take(session: &mut Session) -> Result<Sample, SessionError> {
        let sql = "select (extract(epoch from clock_timestamp()) * 1000000)::bigint, \
                   case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_flush_lsn() end";
        let row = session.query_one(sql).await?;
        let strange = || SessionError::Protocol {
            at: "the server".to_owned(),
            what: "it does not say what time it is, or how far its log has come".to_owned(),
        };
        let microseconds: i64 = row.get(0).and_then(|text| text.parse().ok()).ok_or_else(strange)?;
        let flushed = row.get(1).and_then(|text| text.parse().ok()).ok_or_else(strange)?;
        let at = Timestamp::from_microsecond(microseconds).map_err(|_| strange())?;
        Ok(Sample { at, flushed })
    }
}

/// Samples in order, shared by those who take and those who ask.
#[derive(Debug, Default)]
pub(in super::super) struct Samples {
    samples: Mutex<VecDeque<Sample>>,
    awaited: Mutex<Option<String>>,
}

impl Samples {
    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Sample>> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one in. A clock, or a log, that went back makes all before it worthless: then `false`.
    pub(in super::super) fn add(&self, sample: Sample) -> bool {
        let mut samples = self.lock();
        let went_back = samples.back().is_some_and(|last| last.at > sample.at || last.flushed > sample.flushed);
        if went_back {
            samples.clear();
        }
        let same = |sample: &Sample, other: Option<&Sample>| other.is_some_and(|other| other.flushed == sample.flushed);
        let count = samples.len();
        // Between two of the same position no other is needed.
        if count > 1 && same(&sample, samples.back()) && same(&sample, samples.get(count - 2)) {
            samples.pop_back();
        }
        samples.push_back(sample);
        if samples.len() > KEPT {
            samples.pop_front();
        }
        !went_back
    }

    /// For whom commits wait, as the server said when it was last asked.
    pub(in super::super) fn awaited(&self) -> Option<String> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(in super::super) fn set_awaited(&self, names: &str) {
        *self.awaited.lock().unwrap_or_else(PoisonError::into_inner) = Some(names.to_owned());
    }

    pub(in super::super) fn newest(&self) -> Option<Sample> {
        self.lock().back().copied()
    }

    /// The last moment up to which everything committed lies before `position`.
    pub(in super::super) fn moment_of(&self, position: Lsn) -> Option<Timestamp> {
        let samples = self.lock();
        let count = samples.partition_point(|sample| sample.flushed <= position);
        samples.get(count.checked_sub(1)?).map(|sample| sample.at)
    }

    /// Forgets what nobody behind `position` asks for any more.
    pub(in super::super) fn forget_before(&self, position: Lsn) {
        let mut samples = self.lock();
        let count = samples.partition_point(|sample| sample.flushed <= position);
        samples.drain(..count.saturating_sub(1));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sample(second: i64, flushed: u64) -> Sample {
        Sample { at: Timestamp::from_second(second).unwrap(), flushed: Lsn(flushed) }
    }

    fn moments(samples: &Samples, positions: &[u64]) -> Vec<Option<i64>> {
        positions.iter().map(|at| samples.moment_of(Lsn(*at)).map(Timestamp::as_second)).collect()
    }

    #[test]
    fn a_position_stands_for_the_last_moment_that_it_covers() {
        let samples = Samples::default();
        assert_eq!(moments(&samples, &[5]), [None]);
        for (second, flushed) in [(1, 10), (2, 20), (3, 20), (4, 20), (5, 30)] {
            assert!(samples.add(sample(second, flushed)));
        }
        assert_eq!(
            moments(&samples, &[9, 10, 19, 20, 29, 30, 99]),
            [None, Some(1), Some(1), Some(4), Some(4), Some(5), Some(5)]
        );
        assert_eq!(samples.lock().len(), 4);
        samples.forget_before(Lsn(25));
        assert_eq!(moments(&samples, &[19, 20, 30]), [None, Some(4), Some(5)]);
    }

    #[test]
    fn a_clock_or_log_that_goes_back_makes_what_was_before_worthless() {
        let samples = Samples::default();
        samples.add(sample(10, 100));
        assert!(!samples.add(sample(9, 110)));
        assert_eq!(moments(&samples, &[100, 110]), [None, Some(9)]);
        assert!(!samples.add(sample(12, 50)));
        assert_eq!(moments(&samples, &[49, 50]), [None, Some(12)]);
    }
}
