//! What a run's events add up to.
//!
//! Invariant: every event is either legal, and gives exactly one next state, or refused with the reason. A step has at
//! most one outcome; after the commit point nothing is ever taken back; after `Finished` nothing happens at all.
//!
//! The commit point is passed with the *intent* of the commit step, not with its outcome: once that may have taken
//! effect, taking back what led to it could make two writers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Event, Facts, Found, Need, RunState};
use crate::runbook::{Action, ELSE, OnFailure, Purpose, Runbook, Step, StepId};

/// An event that cannot follow from the state: the journal or its writer is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct IllegalEvent {
    pub reason: String,
}

fn illegal<T>(reason: impl Into<String>) -> Result<T, IllegalEvent> {
    Err(IllegalEvent { reason: reason.into() })
}

/// Where the run as a whole is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "kebab-case")]
pub enum Phase {
    Pending,
    Forward,
    /// Before the commit point: done steps are taken back, then the run ends as `end`.
    Unwinding {
        end: RunState,
        why: String,
    },
    /// Nothing more is started, nothing is taken back; then the run ends as `end`.
    Stopping {
        end: RunState,
        why: String,
    },
    Ended {
        state: RunState,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "kebab-case")]
pub enum StepStatus {
    /// Its turn has not come.
    Waiting,
    /// Its branch is not the one that was taken.
    NotTaken,
    /// The intent is recorded, the outcome is not.
    Running,
    /// To be done again: after a failure that may pass, a crash, or a person's word.
    Again {
        error: Option<String>,
    },
    Held {
        needs: Need,
    },
    Done,
    /// Ended without success. `noted` when the run goes on all the same.
    Failed {
        error: String,
        noted: bool,
    },
    Skipped {
        by: String,
        reason: String,
    },
}

/// Whether what a step did is being taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "undo", rename_all = "kebab-case")]
pub enum Undo {
    No,
    Running,
    Again,
    Done { outcome: String },
    Held { error: String },
    Skipped { by: String, reason: String },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepState {
    pub status: StepStatus,
    /// Intents recorded.
    pub attempts: u32,
    /// Failures since the start or since a person asked for a retry; compared with `Step::retries`.
    pub failures: u32,
    pub outcome: Option<String>,
    pub facts: Facts,
    pub undo: Undo,
    pub undo_attempts: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub phase: Phase,
    /// Past the commit point: only forward from here.
    pub committed: bool,
    pub paused: bool,
    pub runbook_hash: String,
    pub initiator: String,
    pub steps: BTreeMap<StepId, StepState>,
    /// Steps in the order in which they last began to act; unwinding goes backwards through it.
    pub acted: Vec<StepId>,
}

impl State {
    /// The state before the first event.
    pub fn pending(runbook: &Runbook) -> State {
        let fresh = StepState {
            status: StepStatus::Waiting,
            attempts: 0,
            failures: 0,
            outcome: None,
            facts: Facts::new(),
            undo: Undo::No,
            undo_attempts: 0,
        };
        State {
            phase: Phase::Pending,
            committed: false,
            paused: false,
            runbook_hash: runbook.hash(),
            initiator: String::new(),
            steps: runbook.steps.iter().map(|step| (step.id.clone(), fresh.clone())).collect(),
            acted: Vec::new(),
        }
    }

    /// The state after a whole journal.
    pub fn replay<'a>(runbook: &Runbook, events: impl IntoIterator<Item = &'a Event>) -> Result<State, IllegalEvent> {
        events.into_iter().try_fold(State::pending(runbook), |state, event| state.after(runbook, event))
    }

    /// The state after one more event.
    pub fn after(mut self, runbook: &Runbook, event: &Event) -> Result<State, IllegalEvent> {
        match (&self.phase, event) {
            (Phase::Ended { .. }, _) => return illegal("the run has ended; nothing can follow"),
            (Phase::Pending, Event::Started { .. }) => {}
            (Phase::Pending, _) => return illegal("the run has not started"),
            (_, Event::Started { .. }) => return illegal("the run has started already"),
            _ => {}
        }
        self.apply(runbook, event)?;
        self.paused = matches!(event, Event::Paused { .. }) || self.paused && matches!(event, Event::Note { .. });
        self.settle(runbook);
        Ok(self)
    }

    fn apply(&mut self, runbook: &Runbook, event: &Event) -> Result<(), IllegalEvent> {
        match event {
            Event::Started { runbook: pinned, initiator, .. } => self.start(runbook, pinned, initiator),
            Event::Intent { step, attempt } => self.intend(runbook, step, *attempt),
            Event::Observed { step, attempt, found } => self.observe(runbook, step, *attempt, found),
            Event::Done { step, attempt, outcome, facts } => self.finish_step(step, *attempt, outcome, facts),
            Event::Failed { step, attempt, error, may_pass } => {
                self.running(step, *attempt)?;
                self.fail(runbook, step, error, *may_pass)
            }
            Event::Held { step, attempt, needs } => self.hold(runbook, step, *attempt, needs),
            Event::Attested { step, by, statement, .. } => self.attest(runbook, step, by, statement),
            Event::Approved { step, by, runbook_hash, .. } => self.approve(runbook, step, by, runbook_hash),
            Event::RetryAsked { step, .. } => self.retry(runbook, step),
            Event::Skipped { step, by, reason } => self.skip(runbook, step, by, reason),
            Event::CancelAsked { by, reason } => self.cancel(runbook, by, reason),
            Event::UndoIntent { step } => self.intend_undo(runbook, step),
            Event::Undone { step, outcome } => self.end_undo(step, Undo::Done { outcome: outcome.clone() }),
            Event::UndoFailed { step, error } => self.end_undo(step, Undo::Held { error: error.clone() }),
            Event::Superseded { why } => self.supersede(runbook, why),
            Event::Paused { .. } | Event::Resumed { .. } | Event::Note { .. } => Ok(()),
            Event::Finished { state } => match super::next(runbook, self).finish {
                Some(due) if due == *state => {
                    self.phase = Phase::Ended { state: *state };
                    Ok(())
                }
                Some(due) => illegal(format!("the run ends as {due:?}, not as {state:?}")),
                None => illegal("the run is not at its end"),
            },
        }
    }

    fn start(&mut self, runbook: &Runbook, pinned: &Runbook, initiator: &str) -> Result<(), IllegalEvent> {
        if pinned != runbook {
            return illegal("the journal pins another run-book");
        }
        if self.steps.len() != runbook.steps.len() {
            return illegal("a step stands twice in the run-book");
        }
        let mut seen: Vec<&str> = Vec::new();
        for step in &runbook.steps {
            if let Some(unknown) = dependencies(step).find(|id| !seen.contains(&id.as_str())) {
                return illegal(format!("step {} depends on {unknown}, which does not stand before it", step.id));
            }
            seen.push(&step.id);
        }
        self.initiator = initiator.into();
        self.phase = Phase::Forward;
        Ok(())
    }

    fn intend(&mut self, runbook: &Runbook, id: &str, attempt: u32) -> Result<(), IllegalEvent> {
        let step = known(runbook, id)?;
        if matches!(step.action, Action::Approve { .. }) {
            return illegal(format!("step {id} is a person's to take; it is held, not acted on"));
        }
        if !self.may_start(runbook, step) {
            return illegal(format!("step {id} may not start now"));
        }
        if attempt != self.state(id)?.attempts + 1 {
            return illegal(format!("attempt {attempt} of step {id} is out of order"));
        }
        self.committed |= step.commit;
        let state = self.state_mut(id)?;
        state.attempts = attempt;
        state.status = StepStatus::Running;
        self.acted.retain(|other| other != id);
        self.acted.push(id.into());
        Ok(())
    }

    fn observe(&mut self, runbook: &Runbook, id: &str, attempt: u32, found: &Found) -> Result<(), IllegalEvent> {
        let state = self.state(id)?;
        if state.undo == Undo::Running && state.undo_attempts == attempt {
            let undo = match found {
                Found::Happened { outcome, .. } => Undo::Done { outcome: outcome.clone() },
                Found::DoAgain => Undo::Again,
                Found::Unknown { ask } => Undo::Held { error: ask.clone() },
            };
            self.state_mut(id)?.undo = undo;
            return Ok(());
        }
        self.running(id, attempt)?;
        match found {
            Found::Happened { outcome, facts } => self.finish_step(id, attempt, outcome, facts),
            Found::DoAgain => {
                self.state_mut(id)?.status = StepStatus::Again { error: None };
                self.give_up_when_not_forward(runbook, id, "was cut off")
            }
            Found::Unknown { ask } => {
                self.state_mut(id)?.status = StepStatus::Held { needs: Need::Decision { error: ask.clone() } };
                self.give_up_when_not_forward(runbook, id, ask)
            }
        }
    }

    fn finish_step(&mut self, id: &str, attempt: u32, outcome: &str, facts: &Facts) -> Result<(), IllegalEvent> {
        self.running(id, attempt)?;
        self.set_done(id, outcome, facts.clone())
    }

    fn set_done(&mut self, id: &str, outcome: &str, facts: Facts) -> Result<(), IllegalEvent> {
        let state = self.state_mut(id)?;
        state.status = StepStatus::Done;
        state.outcome = Some(outcome.into());
        state.facts = facts;
        Ok(())
    }

    /// What a failure means: again, hold, go on, or take everything back.
    fn fail(&mut self, runbook: &Runbook, id: &str, error: &str, may_pass: bool) -> Result<(), IllegalEvent> {
        let step = known(runbook, id)?;
        let committed = self.committed;
        let on_failure = match step.on_failure {
            OnFailure::Note if !may_be_skipped(step) => OnFailure::Hold,
            OnFailure::Unwind if committed && matches!(self.phase, Phase::Forward) => OnFailure::Hold,
            other => other,
        };
        let state = self.state_mut(id)?;
        state.failures += 1;
        let again = may_pass && state.failures <= step.retries;
        let noted = on_failure == OnFailure::Note;
        state.status = match on_failure {
            _ if again => StepStatus::Again { error: Some(error.into()) },
            OnFailure::Hold => StepStatus::Held { needs: Need::Decision { error: error.into() } },
            OnFailure::Note | OnFailure::Unwind => StepStatus::Failed { error: error.into(), noted },
        };
        if !again && on_failure == OnFailure::Unwind && self.phase == Phase::Forward {
            self.phase = Phase::Unwinding { end: RunState::Failed, why: format!("step {id} failed: {error}") };
            self.drop_what_waits(runbook);
        }
        self.give_up_when_not_forward(runbook, id, error)
    }

    fn hold(&mut self, runbook: &Runbook, id: &str, attempt: u32, needs: &Need) -> Result<(), IllegalEvent> {
        let step = known(runbook, id)?;
        let state = self.state(id)?;
        if attempt != state.attempts {
            return illegal(format!("attempt {attempt} of step {id} is not the current one"));
        }
        let asks_first = matches!(step.action, Action::Approve { .. });
        if asks_first && !(self.may_start(runbook, step) && matches!(needs, Need::Approval { .. })) {
            return illegal(format!("step {id} may not ask for approval now"));
        }
        if !asks_first && state.status != StepStatus::Running {
            return illegal(format!("step {id} is not running, so it cannot be held"));
        }
        self.state_mut(id)?.status = StepStatus::Held { needs: needs.clone() };
        let why = match needs {
            Need::Approval { reason } => reason,
            Need::Attestation { why, .. } => why,
            Need::Decision { error } => error,
        };
        self.give_up_when_not_forward(runbook, id, why)
    }

    fn attest(&mut self, runbook: &Runbook, id: &str, by: &str, statement: &str) -> Result<(), IllegalEvent> {
        let step = known(runbook, id)?;
        let StepStatus::Held { needs } = &self.state(id)?.status else {
            return illegal(format!("step {id} is not held, so there is nothing to attest"));
        };
        let fits = match needs {
            Need::Attestation { statement: asked, .. } => asked == statement,
            Need::Decision { .. } => matches!(step.action, Action::Fence { .. }) && !statement.trim().is_empty(),
            Need::Approval { .. } => false,
        };
        if !fits {
            return illegal(format!("step {id} does not ask for this statement"));
        }
        let facts = Facts::from([("by".into(), by.into()), ("statement".into(), statement.into())]);
        self.set_done(id, "attested", facts)
    }

    fn approve(&mut self, runbook: &Runbook, id: &str, by: &str, hash: &str) -> Result<(), IllegalEvent> {
        let step = known(runbook, id)?;
        if !matches!(self.state(id)?.status, StepStatus::Held { needs: Need::Approval { .. } }) {
            return illegal(format!("step {id} does not wait for approval"));
        }
        if by == self.initiator {
            return illegal(format!("{by} started the run and so cannot approve it; another person must"));
        }
        if hash != self.runbook_hash {
            return illegal("the approval is for another run-book");
        }
        if matches!(step.action, Action::Approve { .. }) {
            return self.set_done(id, "approved", Facts::from([("by".into(), by.into())]));
        }
        let state = self.state_mut(id)?;
        state.facts.insert("approved_by".into(), by.into());
        state.status = StepStatus::Again { error: None };
        Ok(())
    }

    fn retry(&mut self, runbook: &Runbook, id: &str) -> Result<(), IllegalEvent> {
        let asks_first = matches!(known(runbook, id)?.action, Action::Approve { .. });
        let state = self.state_mut(id)?;
        if matches!(state.undo, Undo::Held { .. }) {
            state.undo = Undo::Again;
            return Ok(());
        }
        if asks_first || !matches!(state.status, StepStatus::Held { .. }) {
            return illegal(format!("step {id} is not held on a failure, so there is nothing to retry"));
        }
        state.failures = 0;
        state.status = StepStatus::Again { error: None };
        Ok(())
    }

    fn skip(&mut self, runbook: &Runbook, id: &str, by: &str, reason: &str) -> Result<(), IllegalEvent> {
        let step = known(runbook, id)?;
        if reason.trim().is_empty() {
            return illegal(format!("skipping step {id} needs a reason"));
        }
        let state = self.state_mut(id)?;
        if matches!(state.undo, Undo::Held { .. }) {
            state.undo = Undo::Skipped { by: by.into(), reason: reason.into() };
            return Ok(());
        }
        if !matches!(state.status, StepStatus::Held { .. }) {
            return illegal(format!("step {id} is not held, so it cannot be skipped"));
        }
        if !may_be_skipped(step) {
            return illegal(format!(
                "step {id} must not be skipped: without it there could be two writers, or no consent"
            ));
        }
        state.status = StepStatus::Skipped { by: by.into(), reason: reason.into() };
        Ok(())
    }

    fn cancel(&mut self, runbook: &Runbook, by: &str, reason: &str) -> Result<(), IllegalEvent> {
        if self.phase != Phase::Forward {
            return illegal("the run is ending already");
        }
        let (end, why) = (RunState::Cancelled, format!("cancelled by {by}: {reason}"));
        self.phase = if self.committed { Phase::Stopping { end, why } } else { Phase::Unwinding { end, why } };
        self.drop_what_waits(runbook);
        Ok(())
    }

    fn supersede(&mut self, runbook: &Runbook, why: &str) -> Result<(), IllegalEvent> {
        if matches!(self.phase, Phase::Stopping { .. }) {
            return illegal("the run is stopping already");
        }
        self.phase = Phase::Stopping { end: RunState::Failed, why: why.into() };
        for state in self.steps.values_mut() {
            if state.status == StepStatus::Running {
                state.status = StepStatus::Failed { error: why.into(), noted: false };
            }
            if matches!(state.undo, Undo::Running | Undo::Again | Undo::Held { .. }) {
                state.undo = Undo::Skipped { by: "lifeboat".into(), reason: why.into() };
            }
        }
        self.drop_what_waits(runbook);
        Ok(())
    }

    fn intend_undo(&mut self, runbook: &Runbook, id: &str) -> Result<(), IllegalEvent> {
        if super::next(runbook, self).undo.as_deref() != Some(id) {
            return illegal(format!("step {id} is not the one to take back now"));
        }
        let state = self.state_mut(id)?;
        state.undo = Undo::Running;
        state.undo_attempts += 1;
        Ok(())
    }

    fn end_undo(&mut self, id: &str, undo: Undo) -> Result<(), IllegalEvent> {
        let state = self.state_mut(id)?;
        if state.undo != Undo::Running {
            return illegal(format!("step {id} is not being taken back"));
        }
        state.undo = undo;
        Ok(())
    }

    /// When the run ends early, whatever waits for a person or another attempt waits no more.
    fn drop_what_waits(&mut self, runbook: &Runbook) {
        for step in runbook.steps.iter().filter(|step| !step.always) {
            if let Some(state) = self.steps.get_mut(&step.id) {
                state.drop_wait(matches!(step.action, Action::Approve { .. }));
            }
        }
    }

    /// A step that ends while the run is ending early is not held and not tried again (clean-up steps are).
    fn give_up_when_not_forward(&mut self, runbook: &Runbook, id: &str, error: &str) -> Result<(), IllegalEvent> {
        if self.phase == Phase::Forward || known(runbook, id)?.always {
            return Ok(());
        }
        let state = self.state_mut(id)?;
        if matches!(state.status, StepStatus::Held { .. } | StepStatus::Again { .. }) {
            state.status = StepStatus::Failed { error: error.into(), noted: false };
        }
        Ok(())
    }

    /// Marks branches that are not taken; turns back when every branch has ended and none led to the commit point.
    fn settle(&mut self, runbook: &Runbook) {
        for step in &runbook.steps {
            let waiting = self.steps.get(&step.id).is_some_and(|state| state.status == StepStatus::Waiting);
            if waiting
                && self.is_due(runbook, step)
                && !self.branch_taken(step)
                && let Some(state) = self.steps.get_mut(&step.id)
            {
                state.status = StepStatus::NotTaken;
            }
        }
        let commits = runbook.purpose != Purpose::Drill && runbook.steps.iter().any(|step| step.commit);
        let all_ended = runbook.steps.iter().filter(|step| !step.always).all(|step| self.has_ended(&step.id));
        if self.phase == Phase::Forward && commits && !self.committed && all_ended && !self.came_back(runbook) {
            let why = "no branch of the run-book led to its commit point".into();
            self.phase = Phase::Unwinding { end: RunState::Failed, why };
        }
    }

    /// Whether what stands before the commit point came true, so that nothing has to change hands: an outcome that the branch to it,
    /// which is for everything else, does not name.
    pub fn came_back(&self, runbook: &Runbook) -> bool {
        let conditions = runbook.steps.iter().filter(|step| step.commit).flat_map(|step| &step.when);
        let mut for_all_else = conditions.filter(|condition| condition.outcomes.iter().any(|outcome| outcome == ELSE));
        for_all_else.any(|condition| {
            let outcome = self.steps.get(&condition.step).and_then(|state| state.outcome.as_ref());
            outcome.is_some_and(|outcome| !condition.outcomes.contains(outcome))
        })
    }

    /// Whether `step` may begin to act, or ask, in this state.
    pub(super) fn may_start(&self, runbook: &Runbook, step: &Step) -> bool {
        let ready = self
            .steps
            .get(&step.id)
            .is_some_and(|state| matches!(state.status, StepStatus::Waiting | StepStatus::Again { .. }));
        ready && self.is_due(runbook, step) && self.branch_taken(step)
    }

    /// Whether all that stands before `step` has ended. When the run ends early only clean-up is ever due, and only
    /// after everything has been taken back and nothing is in flight.
    fn is_due(&self, runbook: &Runbook, step: &Step) -> bool {
        match &self.phase {
            Phase::Forward => dependencies(step).all(|id| self.has_ended(id)),
            Phase::Unwinding { .. } | Phase::Stopping { .. } => {
                let cleanup = |id: &StepId| runbook.step(id).is_some_and(|step| step.always);
                step.always
                    && self.is_taken_back(runbook)
                    && dependencies(step).all(|id| !cleanup(id) || self.has_ended(id))
            }
            Phase::Pending | Phase::Ended { .. } => false,
        }
    }

    fn branch_taken(&self, step: &Step) -> bool {
        step.when.iter().all(|condition| {
            match self.steps.get(&condition.step).and_then(|state| state.outcome.as_ref()) {
                Some(outcome) => condition.outcomes.contains(outcome),
                None => condition.outcomes.iter().any(|outcome| outcome == ELSE) && self.has_ended(&condition.step),
            }
        })
    }

    /// No step but clean-up is in flight, and none is left to take back.
    fn is_taken_back(&self, runbook: &Runbook) -> bool {
        let in_flight = runbook
            .steps
            .iter()
            .filter(|step| !step.always)
            .any(|step| self.steps.get(&step.id).is_some_and(|state| state.status == StepStatus::Running));
        !in_flight && !self.acted.iter().any(|id| self.wants_undo(runbook, id))
    }

    /// Whether `id` acted, has an undo, and that has not ended.
    pub(super) fn wants_undo(&self, runbook: &Runbook, id: &str) -> bool {
        let has_undo = runbook.step(id).is_some_and(|step| step.undo.is_some());
        let open =
            self.steps.get(id).is_some_and(|state| !matches!(state.undo, Undo::Done { .. } | Undo::Skipped { .. }));
        matches!(self.phase, Phase::Unwinding { .. }) && has_undo && open
    }

    pub(super) fn has_ended(&self, id: &str) -> bool {
        self.steps.get(id).is_some_and(|state| state.status.has_ended())
    }

    fn running(&self, id: &str, attempt: u32) -> Result<(), IllegalEvent> {
        let state = self.state(id)?;
        match state.status {
            StepStatus::Running if state.attempts == attempt => Ok(()),
            StepStatus::Running => illegal(format!("attempt {attempt} of step {id} is not the one that is running")),
            _ => illegal(format!("step {id} is not running")),
        }
    }

    fn state(&self, id: &str) -> Result<&StepState, IllegalEvent> {
        self.steps.get(id).ok_or_else(|| IllegalEvent { reason: format!("the run-book has no step {id}") })
    }

    fn state_mut(&mut self, id: &str) -> Result<&mut StepState, IllegalEvent> {
        self.steps.get_mut(id).ok_or_else(|| IllegalEvent { reason: format!("the run-book has no step {id}") })
    }
}

impl StepState {
    fn drop_wait(&mut self, asks_first: bool) {
        let error = match &self.status {
            StepStatus::Held { .. } if asks_first => {
                self.status = StepStatus::Waiting;
                return;
            }
            StepStatus::Held { needs: Need::Decision { error } } => error.clone(),
            StepStatus::Held { needs: Need::Attestation { why, .. } } => why.clone(),
            StepStatus::Held { needs: Need::Approval { reason } } => reason.clone(),
            StepStatus::Again { error } => error.clone().unwrap_or_else(|| "was cut off".into()),
            _ => return,
        };
        self.status = StepStatus::Failed { error, noted: false };
    }
}

impl StepStatus {
    /// Whether later steps need not wait for it any more.
    pub fn has_ended(&self) -> bool {
        match self {
            StepStatus::Done | StepStatus::NotTaken | StepStatus::Skipped { .. } => true,
            StepStatus::Failed { .. } => true,
            StepStatus::Waiting | StepStatus::Running | StepStatus::Again { .. } | StepStatus::Held { .. } => false,
        }
    }
}

fn known<'a>(runbook: &'a Runbook, id: &str) -> Result<&'a Step, IllegalEvent> {
    runbook.step(id).ok_or_else(|| IllegalEvent { reason: format!("the run-book has no step {id}") })
}

fn dependencies(step: &Step) -> impl Iterator<Item = &StepId> {
    step.after.iter().chain(step.when.iter().map(|condition| &condition.step))
}

/// Fence, claim and commit keep writers apart, and an approval is somebody's consent: no reason makes up for those.
pub fn may_be_skipped(step: &Step) -> bool {
    !step.commit && !matches!(step.action, Action::Fence { .. } | Action::ClaimEpoch { .. } | Action::Approve { .. })
}
