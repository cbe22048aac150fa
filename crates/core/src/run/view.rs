//! A run as people read it: what each step did, how long it took, and what is still wanted.
//!
//! Invariant: derived from journal entries alone. Durations come from the monotonic clock where one process wrote both
//! ends, from the wall clock otherwise, and are never negative.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Entry, Event, Facts, IllegalEvent, Need, Phase, RunState, State, StepStatus, Undo, next};
use crate::runbook::{Runbook, StepId};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunView {
    pub run: String,
    pub state: RunState,
    /// Why a run ends, or ended, early.
    pub why: Option<String>,
    pub committed: bool,
    pub initiator: String,
    pub disaster_at: Option<String>,
    pub how_known: String,
    pub simulated: Vec<String>,
    pub runbook: Runbook,
    pub runbook_hash: String,
    pub started_at: Timestamp,
    /// Of the last entry.
    pub last_at: Timestamp,
    pub took_seconds: f64,
    pub entries: u64,
    /// The hash of the last entry: the journal's.
    pub journal_hash: String,
    pub steps: Vec<StepView>,
    pub waiting_for: Vec<(StepId, Need)>,
    /// Notes with their times.
    pub notes: Vec<(Timestamp, String)>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepView {
    pub id: StepId,
    pub title: String,
    /// `waiting`, `not-taken`, `running`, `again`, `held`, `done`, `failed`, `skipped`, `undoing`, `undone`, `undo-held`, `undo-skipped`.
    pub status: String,
    /// The error, the reason, or what is needed.
    pub detail: Option<String>,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    /// From the first intent to the last outcome.
    pub took_seconds: Option<f64>,
    pub attempts: u32,
    pub outcome: Option<String>,
    pub facts: Facts,
    pub commit: bool,
}

/// Why a journal cannot be shown as a run.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    #[error("the journal is empty: the run never started")]
    Empty,
    #[error("the journal does not begin with the start of a run")]
    NoStart,
    #[error("entry {seq} of run {run} cannot follow from those before it")]
    Illegal {
        run: String,
        seq: u64,
        #[source]
        source: IllegalEvent,
    },
}

/// The pinned run-book and the state that a journal adds up to.
pub fn replay_entries(entries: &[Entry]) -> Result<(&Runbook, State), ViewError> {
    let first = entries.first().ok_or(ViewError::Empty)?;
    let Event::Started { runbook, .. } = &first.event else { return Err(ViewError::NoStart) };
    let mut state = State::pending(runbook);
    for entry in entries {
        state = state.after(runbook, &entry.event).map_err(|source| ViewError::Illegal {
            run: entry.run.clone(),
            seq: entry.seq,
            source,
        })?;
    }
    Ok((runbook, state))
}

impl RunView {
    /// `journal_hash` is the hash of the last entry, as stored.
    pub fn of(entries: &[Entry], journal_hash: &str) -> Result<RunView, ViewError> {
        let (runbook, state) = replay_entries(entries)?;
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Err(ViewError::Empty) };
        let Event::Started { initiator, disaster_at, how_known, simulated, .. } = &first.event else {
            return Err(ViewError::NoStart);
        };
        let why = match &state.phase {
            Phase::Unwinding { why, .. } | Phase::Stopping { why, .. } => Some(why.clone()),
            Phase::Ended { .. } => why_ended(runbook, entries),
            Phase::Pending | Phase::Forward => None,
        };
        Ok(RunView {
            run: first.run.clone(),
            state: state.run_state(runbook),
            why,
            committed: state.committed,
            initiator: initiator.clone(),
            disaster_at: disaster_at.clone(),
            how_known: how_known.clone(),
            simulated: simulated.clone(),
            runbook: runbook.clone(),
            runbook_hash: state.runbook_hash.clone(),
            started_at: first.at,
            last_at: last.at,
            took_seconds: seconds_between(first, last),
            entries: entries.len() as u64,
            journal_hash: journal_hash.into(),
            steps: runbook.steps.iter().map(|step| view_step(step, &state, entries)).collect(),
            waiting_for: next(runbook, &state).waiting_for,
            notes: entries.iter().filter_map(note).collect(),
        })
    }

    pub fn step(&self, id: &str) -> Option<&StepView> {
        self.steps.iter().find(|step| step.id == id)
    }
}

/// Why the run was ending when it ended: the phase just before `Finished`.
fn why_ended(runbook: &Runbook, entries: &[Entry]) -> Option<String> {
    let events = entries.iter().map(|entry| &entry.event).filter(|event| !matches!(event, Event::Finished { .. }));
    match State::replay(runbook, events).ok()?.phase {
        Phase::Unwinding { why, .. } | Phase::Stopping { why, .. } => Some(why),
        _ => None,
    }
}

fn note(entry: &Entry) -> Option<(Timestamp, String)> {
    match &entry.event {
        Event::Note { text } => Some((entry.at, text.clone())),
        _ => None,
    }
}

/// How long from one entry to a later one.
pub fn seconds_between(from: &Entry, to: &Entry) -> f64 {
    let seconds = if from.process == to.process {
        to.monotonic_seconds - from.monotonic_seconds
    } else {
        to.at.duration_since(from.at).as_secs_f64()
    };
    seconds.max(0.0)
}

fn view_step(step: &crate::runbook::Step, state: &State, entries: &[Entry]) -> StepView {
    let of_step = state.steps.get(&step.id);
    let started = entries.iter().find(|entry| match &entry.event {
        Event::Intent { step: id, .. } => *id == step.id,
        Event::Held { step: id, attempt: 0, .. } => *id == step.id,
        _ => false,
    });
    let open = of_step.is_none_or(|of_step| !of_step.status.has_ended());
    let ended = entries.iter().rev().find(|entry| ends(&entry.event, &step.id)).filter(|_| !open);
    let (status, detail) = of_step.map(describe).unwrap_or(("waiting", None));
    StepView {
        id: step.id.clone(),
        title: step.title.clone(),
        status: status.into(),
        detail,
        started_at: started.map(|entry| entry.at),
        ended_at: ended.map(|entry| entry.at),
        took_seconds: started.zip(ended).map(|(from, to)| seconds_between(from, to)),
        attempts: of_step.map_or(0, |of_step| of_step.attempts),
        outcome: of_step.and_then(|of_step| of_step.outcome.clone()),
        facts: of_step.map(|of_step| of_step.facts.clone()).unwrap_or_default(),
        commit: step.commit,
    }
}

/// Whether the event is a step's outcome.
fn ends(event: &Event, id: &str) -> bool {
    match event {
        Event::Done { step, .. }
        | Event::Failed { step, .. }
        | Event::Observed { step, .. }
        | Event::Attested { step, .. }
        | Event::Approved { step, .. }
        | Event::Skipped { step, .. } => step == id,
        _ => false,
    }
}

fn describe(step: &super::StepState) -> (&'static str, Option<String>) {
    match &step.undo {
        Undo::No => {}
        Undo::Running | Undo::Again => return ("undoing", None),
        Undo::Done { .. } => return ("undone", None),
        Undo::Held { error } => return ("undo-held", Some(error.clone())),
        Undo::Skipped { reason, .. } => return ("undo-skipped", Some(reason.clone())),
    }
    match &step.status {
        StepStatus::Waiting => ("waiting", None),
        StepStatus::NotTaken => ("not-taken", None),
        StepStatus::Running => ("running", None),
        StepStatus::Again { error } => ("again", error.clone()),
        StepStatus::Held { needs } => ("held", Some(needs.to_string())),
        StepStatus::Done => ("done", None),
        StepStatus::Failed { error, .. } => ("failed", Some(error.clone())),
        StepStatus::Skipped { by, reason } => ("skipped", Some(format!("{reason} ({by})"))),
    }
}

impl std::fmt::Display for Need {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Need::Approval { reason } => write!(f, "approval: {reason}"),
            Need::Attestation { statement, why } => write!(f, "attestation of \u{201c}{statement}\u{201d}: {why}"),
            Need::Decision { error } => write!(f, "a decision: {error}"),
        }
    }
}
