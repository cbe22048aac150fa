//! When something is due again.
//!
//! Invariant: a schedule that the parser accepted has a next time after every moment, unless its cron line names a day that never comes.

use jiff::Timestamp;

use super::model::Schedule;
use crate::units::Span;

impl Schedule {
    /// When it is due after `last`, at which it was done.
    pub fn due_after(&self, last: Timestamp) -> Option<Timestamp> {
        match self {
            Schedule::Every(every) => last.checked_add(jiff::SignedDuration::try_from(every.0).ok()?).ok(),
            Schedule::Cron(line) => {
                let next = next(&line.parse().ok()?, last.as_second())?;
                Timestamp::from_second(next).ok()
            }
        }
    }

    /// The longest time between two times at which it is due.
    pub fn longest_gap(&self) -> Option<Span> {
        match self {
            Schedule::Every(every) => Some(*every),
            Schedule::Cron(line) => {
                let cron: croner::Cron = line.parse().ok()?;
                let first = next(&cron, YEARS_FROM)?;
                let (mut at, mut longest) = (first, 0);
                for _ in 0..OCCURRENCES_MAX {
                    let Some(following) = next(&cron, at) else { break };
                    longest = longest.max(following - at);
                    at = following;
                    if at > YEARS_FROM + YEARS_SECONDS {
                        break;
                    }
                }
                u64::try_from(longest).ok().filter(|longest| *longest > 0).map(Span::seconds)
            }
        }
    }
}

/// 2024-01-01: the four years from here have every kind of month and a leap day.
const YEARS_FROM: i64 = 1_704_067_200;
const YEARS_SECONDS: i64 = 4 * 366 * 86_400;
/// Enough for every five minutes over a week; denser lines repeat themselves sooner.
const OCCURRENCES_MAX: usize = 2_100;

fn next(cron: &croner::Cron, after: i64) -> Option<i64> {
    let after = chrono::DateTime::from_timestamp(after, 0)?;
    cron.find_next_occurrence(&after, false).ok().map(|next| next.timestamp())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod due {
    use super::*;

    #[test]
    fn a_cron_line_is_due_at_its_next_time_in_utc() {
        let nightly = Schedule::Cron("30 2 * * *".to_owned());
        let due = nightly.due_after("2026-11-21T02:30:00Z".parse().unwrap()).unwrap();
        assert_eq!(due, "2026-11-22T02:30:00Z".parse().unwrap());
        assert_eq!(nightly.longest_gap(), Some(Span::seconds(86_400)));
    }

    #[test]
    fn the_longest_gap_counts_weekends() {
        let office_days = Schedule::Cron("0 9 * * mon-fri".to_owned());
        assert_eq!(office_days.longest_gap(), Some(Span::seconds(3 * 86_400)));
    }

    #[test]
    fn an_interval_counts_from_when_it_was_done() {
        let hourly = Schedule::Every(Span::seconds(3_600));
        let due = hourly.due_after("2026-11-21T02:30:00Z".parse().unwrap()).unwrap();
        assert_eq!(due, "2026-11-21T03:30:00Z".parse().unwrap());
    }
}
