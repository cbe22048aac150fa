//! One step's work: guard, act within the timeout, and say what came of it; or observe what became of it.
//!
//! Invariant: ends with exactly one event for the journal, unless the run is not this executor's any more.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use lifeboat_core::plan::Rerun;
use lifeboat_core::run::{Event, Found, StepStatus, Undo};
use lifeboat_core::runbook::{Action, Purpose, Runbook, Step, StepId};
use tokio::sync::watch;
use tokio::time::Instant;

use super::guard::{Guard, Stop};
use super::live::Live;
use super::{ExecuteError, Executor, Failure, Performed, Performer};
use crate::arbitrate::MirrorState;
use crate::port::{Cancel, Context, PortError};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    Perform,
    Undo,
    /// Of the action or of its undo, whichever was cut off.
    Observe,
}

pub(super) struct Ended {
    pub(super) step: StepId,
    pub(super) result: Result,
}

pub(super) enum Result {
    Event(Event),
    /// `instead` is what to record when the run is stopping anyway.
    Superseded {
        why: String,
        instead: Event,
    },
    LockLost {
        why: String,
    },
}

pub(super) struct Work {
    performer: Arc<dyn Performer>,
    guard: Arc<Guard>,
    mirror: watch::Receiver<MirrorState>,
    /// The entry that holds the intent.
    intent: u64,
    step: Step,
    action: Action,
    task: Task,
    undoing: bool,
    /// The run has claimed its epoch: from then on the one before will not do.
    claimed: bool,
    attempt: u32,
    context: Context,
    grace: Duration,
    mirror_wait: Duration,
    backoff: Duration,
}

impl Work {
    pub(super) fn new(
        executor: &Executor,
        live: &Live,
        guard: Arc<Guard>,
        id: &str,
        task: Task,
        cancel: Cancel,
    ) -> std::result::Result<Work, ExecuteError> {
        let stuck = |detail: String| ExecuteError::Stuck { run: live.run.clone(), detail };
        let step = live.runbook.step(id).ok_or_else(|| stuck(format!("there is no step {id}")))?.clone();
        let of_step = live.state.steps.get(id).ok_or_else(|| stuck(format!("step {id} has no state")))?;
        let undoing = of_step.undo == Undo::Running;
        let action = if undoing {
            step.undo.clone().ok_or_else(|| stuck(format!("step {id} has no undo")))?
        } else {
            step.action.clone()
        };
        let key = if undoing { format!("{}/{id}/undo", live.run) } else { format!("{}/{id}", live.run) };
        Ok(Work {
            performer: executor.performer.clone(),
            guard,
            mirror: live.mirror_state(),
            intent: live.head.seq,
            attempt: if undoing { of_step.undo_attempts } else { of_step.attempts },
            context: Context {
                run: live.run.clone(),
                step: id.into(),
                epoch: live.runbook.epoch,
                idempotency_key: key,
                isolation: isolation(&live.runbook),
                cancel,
            },
            step,
            action,
            task,
            undoing,
            claimed: has_claimed(live),
            grace: executor.settings.grace,
            mirror_wait: executor.settings.mirror_wait,
            backoff: executor.settings.backoff,
        })
    }

    pub(super) async fn run(self) -> Ended {
        let step = self.step.id.clone();
        let result = match self.task {
            Task::Observe => Result::Event(self.observe().await),
            Task::Perform => self.act().await,
            Task::Undo => self.undo().await,
        };
        Ended { step, result }
    }

    async fn act(&self) -> Result {
        let (step, attempt) = (self.step.id.clone(), self.attempt);
        Result::Event(match self.try_once().await {
            Ok(Performed { outcome, facts }) => Event::Done { step, attempt, outcome, facts },
            Err(Trouble::Failure(Failure::Failed { error, may_pass })) => {
                Event::Failed { step, attempt, error, may_pass: may_pass && self.may_repeat() }
            }
            Err(Trouble::Failure(Failure::Needs(needs))) => Event::Held { step, attempt, needs },
            Err(Trouble::Superseded(why)) => {
                let instead = Event::Failed { step, attempt, error: why.clone(), may_pass: false };
                return Result::Superseded { why, instead };
            }
            Err(Trouble::LockLost(why)) => return Result::LockLost { why },
        })
    }

    /// Takes a step back; failures that may pass are tried again here, as often as the step itself would be.
    async fn undo(&self) -> Result {
        let step = self.step.id.clone();
        let mut left = self.step.retries;
        loop {
            let error = match self.try_once().await {
                Ok(Performed { outcome, .. }) => return Result::Event(Event::Undone { step, outcome }),
                Err(Trouble::Failure(Failure::Failed { may_pass: true, .. }))
                    if left > 0 && !self.context.cancel.is_cancelled() =>
                {
                    left -= 1;
                    tokio::time::sleep(self.backoff).await;
                    continue;
                }
                Err(Trouble::Failure(Failure::Failed { error, .. })) => error,
                Err(Trouble::Failure(Failure::Needs(need))) => need.to_string(),
                Err(Trouble::Superseded(why)) => {
                    let instead = Event::UndoFailed { step, error: why.clone() };
                    return Result::Superseded { why, instead };
                }
                Err(Trouble::LockLost(why)) => return Result::LockLost { why },
            };
            return Result::Event(Event::UndoFailed { step, error });
        }
    }

    async fn try_once(&self) -> std::result::Result<Performed, Trouble> {
        let deadline = Instant::now() + self.step.timeout.0;
        if self.step.mirrored && !self.undoing {
            self.await_mirror(deadline).await?;
        }
        let (guard, action, claimed) = (self.guard.clone(), self.action.clone(), self.claimed);
        let cleanup = self.step.always;
        let checked = tokio::task::spawn_blocking(move || guard.check(&action, claimed, cleanup)).await;
        match checked {
            Ok(Ok(())) => {}
            Ok(Err(Stop::Superseded(why))) => return Err(Trouble::Superseded(why)),
            Ok(Err(Stop::LockLost(why))) => return Err(Trouble::LockLost(why)),
            Ok(Err(Stop::Unknown(error))) => return Err(failed(error, true)),
            Err(error) => return Err(failed(format!("the look at the arbiter died: {error}"), false)),
        }
        self.perform(deadline).await
    }

    async fn await_mirror(&self, deadline: Instant) -> std::result::Result<(), Trouble> {
        let mut mirror = self.mirror.clone();
        let deadline = deadline.min(Instant::now() + self.mirror_wait);
        let confirmed = mirror.wait_for(|state| state.confirmed >= self.intent || state.taken);
        let confirmed = tokio::time::timeout_at(deadline, confirmed).await.map(|seen| seen.map(|seen| seen.taken));
        match confirmed {
            Ok(Ok(false)) => Ok(()),
            Ok(Ok(true)) => Err(Trouble::LockLost("another executor has gone on with it".into())),
            Ok(Err(_)) | Err(_) => {
                let why = self.mirror.borrow().problem.clone().unwrap_or_else(|| "no answer in time".into());
                Err(failed(
                    format!("nothing was done: the journal's mirror has not confirmed entry {} ({why})", self.intent),
                    true,
                ))
            }
        }
    }

    /// Acts within the timeout; what does not stop within the grace after it is let go, and not tried again by itself.
    async fn perform(&self, deadline: Instant) -> std::result::Result<Performed, Trouble> {
        let (performer, action, context) = (self.performer.clone(), self.action.clone(), self.context.clone());
        let mut acting = AbortOnDrop(tokio::spawn(async move { performer.perform(&action, &context).await }));
        let ended = match tokio::time::timeout_at(deadline, &mut acting.0).await {
            Ok(ended) => ended,
            Err(_) => {
                self.context.cancel.cancel();
                match tokio::time::timeout(self.grace, &mut acting.0).await {
                    Ok(Ok(Err(Failure::Failed { error, .. }))) => {
                        return Err(failed(format!("not done within {}: {error}", self.step.timeout), true));
                    }
                    Ok(ended) => ended,
                    Err(_) => {
                        let error = format!("not done within {}, and it does not stop", self.step.timeout);
                        return Err(failed(error, false));
                    }
                }
            }
        };
        match ended {
            Ok(ended) => ended.map_err(Trouble::Failure),
            Err(error) => {
                Err(failed(format!("the step's own code died, which is a fault in lifeboat: {error}"), false))
            }
        }
    }

    /// What became of what was cut off. What cannot be told is asked, never assumed.
    async fn observe(&self) -> Event {
        let (step, attempt) = (self.step.id.clone(), self.attempt);
        let found = match &self.action {
            Action::RunCommand { rerun: Rerun::Safe, .. } => Found::DoAgain,
            Action::RunCommand { rerun: Rerun::Ask, command, .. } => Found::Unknown {
                ask: format!(
                    "`{}` may have run, and the plan does not call it safe to repeat: retry it, or skip it if it has done its work",
                    command.join(" ")
                ),
            },
            _ => self.look().await,
        };
        Event::Observed { step, attempt, found }
    }

    async fn look(&self) -> Found {
        let deadline = Instant::now() + self.step.timeout.0;
        let unknown = |why: String| Found::Unknown {
            ask: format!("nobody can tell whether this was done before the interruption ({why}): retry to do it again"),
        };
        let mut pause = self.backoff;
        for left in (0..=self.step.retries).rev() {
            match within(deadline, self.performer.observe(&self.action, &self.context)).await {
                Some(Ok(found)) => return found,
                Some(Err(error)) if left == 0 || !error.may_pass => return unknown(super::with_cause(&error)),
                Some(Err(_)) => tokio::time::sleep(pause).await,
                None => break,
            }
            pause *= 2;
        }
        unknown(format!("the look took longer than {}", self.step.timeout))
    }

    /// A user's command that is not declared safe to repeat is not repeated without asking.
    fn may_repeat(&self) -> bool {
        !matches!(self.action, Action::RunCommand { rerun: Rerun::Ask, .. })
    }
}

enum Trouble {
    Failure(Failure),
    Superseded(String),
    LockLost(String),
}

fn failed(error: String, may_pass: bool) -> Trouble {
    Trouble::Failure(Failure::Failed { error, may_pass })
}

struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn within<T>(
    deadline: Instant,
    work: impl Future<Output = std::result::Result<T, PortError>>,
) -> Option<std::result::Result<T, PortError>> {
    tokio::time::timeout_at(deadline, work).await.ok()
}

fn has_claimed(live: &Live) -> bool {
    let done = |id: &str| live.state.steps.get(id).is_some_and(|of_step| of_step.status == StepStatus::Done);
    live.runbook.steps.iter().any(|step| matches!(step.action, Action::ClaimEpoch { .. }) && done(&step.id))
}

/// The isolation a drill acts in.
fn isolation(runbook: &Runbook) -> Option<String> {
    if runbook.purpose != Purpose::Drill {
        return None;
    }
    runbook.steps.iter().find_map(|step| match &step.action {
        Action::Isolate { isolation, .. } => Some(isolation.clone()),
        _ => None,
    })
}
