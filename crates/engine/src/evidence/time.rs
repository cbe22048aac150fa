//! The time line of a run: seconds after the disaster, or after the start where no disaster is known.
//!
//! Invariant: between two entries of one process the monotonic clock counts, so that a wall clock that was set during
//! the run moves nothing; where it was set, the line says so.

use jiff::Timestamp;
use lifeboat_core::run::view::seconds_between;
use lifeboat_core::run::{Entry, Event, RunView};

use super::Remark;

/// Wall and monotonic clock of one process may differ by so much before it counts as a jump.
const JUMP_SECONDS: f64 = 2.0;

#[derive(Debug)]
pub(super) struct Line {
    pub(super) disaster_at: Option<Timestamp>,
    /// From the line's zero to each entry.
    seconds: Vec<f64>,
    /// Where the wall clock was set while the run went on.
    pub(super) jumps: Vec<Remark>,
}

impl Line {
    pub(super) fn of(view: &RunView, entries: &[Entry]) -> Line {
        let disaster_at: Option<Timestamp> = view.disaster_at.as_ref().and_then(|at| at.parse().ok());
        let mut jumps = Vec::new();
        let mut now = disaster_at.map_or(0.0, |at| view.started_at.duration_since(at).as_secs_f64());
        if now < 0.0 {
            let text =
                "the disaster is said to have happened after the run had started; times are counted from the start";
            jumps.push(Remark { at: view.started_at, text: text.to_owned() });
            now = 0.0;
        }
        let mut seconds: Vec<f64> = entries.first().map(|_| now).into_iter().collect();
        for (before, after) in entries.iter().zip(entries.iter().skip(1)) {
            let step = seconds_between(before, after);
            let wall = after.at.duration_since(before.at).as_secs_f64();
            if before.process == after.process && (wall - step).abs() > JUMP_SECONDS {
                let text =
                    format!("the clock was set by {:+.1} s during the run; durations do not depend on it", wall - step);
                jumps.push(Remark { at: after.at, text });
            }
            now += step;
            seconds.push(now);
        }
        Line { disaster_at, seconds, jumps }
    }

    /// Seconds from the line's zero to an entry.
    pub(super) fn at(&self, index: usize) -> f64 {
        self.seconds.get(index).copied().unwrap_or_default()
    }
}

/// The entry with which a step began to act, or to wait for a person.
pub(super) fn began(entries: &[Entry], id: &str) -> Option<usize> {
    entries
        .iter()
        .position(|entry| matches!(&entry.event, Event::Intent { step, .. } | Event::Held { step, .. } if step == id))
}

/// The last entry that gave a step its outcome.
pub(super) fn ended(entries: &[Entry], id: &str) -> Option<usize> {
    entries.iter().rposition(|entry| match &entry.event {
        Event::Done { step, .. } | Event::Observed { step, .. } | Event::Attested { step, .. } => step == id,
        _ => false,
    })
}
