//! What a run does next, given its state.
//!
//! Invariant: `next` is a pure function of run-book and state, used by the live executor and when a journal is read
//! again; an executor does what it says and nothing else.

use super::{Need, Phase, RunState, State, StepStatus, Undo};
use crate::runbook::{Action, Runbook, StepId};

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Next {
    /// To be acted on now, all at once if one likes.
    pub start: Vec<StepId>,
    /// Approval steps whose turn has come: to be recorded as held.
    pub ask: Vec<(StepId, Need)>,
    /// To be taken back now; one at a time.
    pub undo: Option<StepId>,
    /// Intended, without an outcome: in flight in this process, or cut off in an earlier one.
    pub in_flight: Vec<StepId>,
    /// Being taken back, likewise.
    pub undo_in_flight: Option<StepId>,
    /// What persons must see to.
    pub waiting_for: Vec<(StepId, Need)>,
    /// The run is over and ends so.
    pub finish: Option<RunState>,
}

pub fn next(runbook: &Runbook, state: &State) -> Next {
    let mut next = Next::default();
    if matches!(state.phase, Phase::Pending | Phase::Ended { .. }) {
        return next;
    }
    for step in &runbook.steps {
        let Some(of_step) = state.steps.get(&step.id) else { continue };
        match &of_step.status {
            StepStatus::Running => next.in_flight.push(step.id.clone()),
            StepStatus::Held { needs } => next.waiting_for.push((step.id.clone(), needs.clone())),
            _ if !state.may_start(runbook, step) => {}
            _ => match &step.action {
                Action::Approve { reason } => {
                    next.ask.push((step.id.clone(), Need::Approval { reason: reason.clone() }));
                }
                _ => next.start.push(step.id.clone()),
            },
        }
    }
    plan_undo(runbook, state, &mut next);
    let idle = next.start.is_empty()
        && next.ask.is_empty()
        && next.undo.is_none()
        && next.in_flight.is_empty()
        && next.undo_in_flight.is_none()
        && next.waiting_for.is_empty();
    if idle {
        next.finish = finish(runbook, state);
    }
    next
}

/// Backwards through what acted, once nothing is in flight; a held undo holds those before it.
fn plan_undo(runbook: &Runbook, state: &State, next: &mut Next) {
    let Some(id) = state.acted.iter().rev().find(|id| state.wants_undo(runbook, id)) else { return };
    match state.steps.get(id).map(|of_step| &of_step.undo) {
        Some(Undo::Running) => next.undo_in_flight = Some(id.clone()),
        Some(Undo::Held { error }) => {
            next.waiting_for.push((id.clone(), Need::Decision { error: error.clone() }));
        }
        _ if next.in_flight.is_empty() => next.undo = Some(id.clone()),
        _ => {}
    }
}

fn finish(runbook: &Runbook, state: &State) -> Option<RunState> {
    match &state.phase {
        Phase::Unwinding { end, .. } | Phase::Stopping { end, .. } => Some(*end),
        Phase::Forward if !runbook.steps.iter().all(|step| state.has_ended(&step.id)) => None,
        Phase::Forward => {
            let exception = state
                .steps
                .values()
                .any(|step| matches!(step.status, StepStatus::Failed { .. } | StepStatus::Skipped { .. }));
            Some(if exception { RunState::CompletedWithExceptions } else { RunState::Completed })
        }
        Phase::Pending | Phase::Ended { .. } => None,
    }
}

impl State {
    /// The run's state as people see it. An unfinished run that no process works on still reads as running here:
    /// only the run lock can tell that.
    pub fn run_state(&self, runbook: &Runbook) -> RunState {
        match &self.phase {
            Phase::Pending => RunState::Pending,
            Phase::Ended { state } => *state,
            _ if self.paused => RunState::Paused,
            _ => {
                let next = next(runbook, self);
                let acting = next.start.len() + next.ask.len() + next.in_flight.len() > 0
                    || next.undo.is_some()
                    || next.undo_in_flight.is_some();
                if acting || next.waiting_for.is_empty() {
                    RunState::Running
                } else if next.waiting_for.iter().all(|(_, need)| matches!(need, Need::Approval { .. })) {
                    RunState::WaitingApproval
                } else {
                    RunState::Held
                }
            }
        }
    }
}
