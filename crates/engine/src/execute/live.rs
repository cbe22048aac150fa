//! A run as this process has it in hand: the journal's head, the state it adds up to, and the mirror.
//!
//! Invariant: `state` is always the replay of the journal up to `head`; an event that cannot follow is not written.

use std::sync::Arc;

use jiff::Timestamp;
use lifeboat_core::run::view::replay_entries;
use lifeboat_core::run::{Entry, Event, IllegalEvent, Sealed, State, StepStatus};
use lifeboat_core::runbook::Runbook;
use tokio::sync::broadcast;

use super::{ExecuteError, Executor, Progress, died};
use crate::arbitrate::{Mirror, MirrorState};
use crate::journal::{Head, Journal, JournalError, Recorded};

/// How often others' words may come in between before this process gives up on writing its own.
const RACES_MAX: u32 = 16;

pub(super) struct Live {
    pub(super) run: String,
    pub(super) runbook: Arc<Runbook>,
    pub(super) state: State,
    pub(super) head: Head,
    journal: Arc<Journal>,
    mirror: Mirror,
    last_at: Option<Timestamp>,
    progress: broadcast::Sender<Progress>,
    grace: std::time::Duration,
}

/// What became of an event.
#[derive(Debug, PartialEq)]
pub(super) enum Recording {
    Recorded,
    /// Somebody's word came in between, after which the event cannot follow.
    NotAnyMore(IllegalEvent),
}

impl Live {
    pub(super) fn begin(executor: &Executor, run: &str, runbook: Arc<Runbook>) -> Live {
        let mirror = Mirror::start(executor.arbiter.clone(), run, executor.settings.backoff);
        Live {
            run: run.into(),
            state: State::pending(&runbook),
            runbook,
            head: Head::start(),
            journal: executor.journal.clone(),
            mirror,
            last_at: None,
            progress: executor.progress.clone(),
            grace: executor.settings.grace,
        }
    }

    pub(super) fn from(executor: &Executor, run: &str, recorded: Recorded) -> Result<Live, ExecuteError> {
        let (runbook, state) =
            replay_entries(&recorded.entries).map_err(|source| ExecuteError::Replay { run: run.into(), source })?;
        let mut live = Live::begin(executor, run, Arc::new(runbook.clone()));
        live.state = state;
        live.head = recorded.head;
        live.last_at = recorded.entries.last().map(|entry| entry.at);
        for (sealed, seq) in recorded.sealed.into_iter().zip(1..) {
            live.mirror.push(seq, sealed);
        }
        Ok(live)
    }

    /// Records an event that must be able to follow.
    pub(super) async fn must_record(&mut self, event: Event) -> Result<(), ExecuteError> {
        match self.record(event).await? {
            Recording::Recorded => Ok(()),
            Recording::NotAnyMore(source) => {
                let (run, seq) = (self.run.clone(), self.head.seq + 1);
                let source = lifeboat_core::run::view::ViewError::Illegal { run: run.clone(), seq, source };
                Err(ExecuteError::Replay { run, source })
            }
        }
    }

    /// Records an event, durably, unless somebody's word has made it impossible.
    pub(super) async fn record(&mut self, event: Event) -> Result<Recording, ExecuteError> {
        for _ in 0..RACES_MAX {
            if let Err(illegal) = self.state.clone().after(&self.runbook, &event) {
                return Ok(Recording::NotAnyMore(illegal));
            }
            match self.append(&event).await {
                Ok((entry, sealed)) => {
                    let back = self.clock_went_back(&entry);
                    self.take_in(entry, sealed)?;
                    if let Some(text) = back {
                        Box::pin(self.must_record(Event::Note { text })).await?;
                    }
                    return Ok(Recording::Recorded);
                }
                Err(ExecuteError::Journal(JournalError::Moved { .. })) => {
                    self.absorb().await?;
                }
                Err(error) => return Err(error),
            }
        }
        Err(ExecuteError::Journal(JournalError::Moved { run: self.run.clone(), seq: self.head.seq }))
    }

    async fn append(&self, event: &Event) -> Result<(Entry, Sealed), ExecuteError> {
        let (journal, run, head, event) = (self.journal.clone(), self.run.clone(), self.head.clone(), event.clone());
        Ok(tokio::task::spawn_blocking(move || journal.append(&run, &head, &event)).await.map_err(died)??)
    }

    /// Takes in what other processes have recorded; whether there was anything.
    pub(super) async fn absorb(&mut self) -> Result<bool, ExecuteError> {
        let (journal, run, head) = (self.journal.clone(), self.run.clone(), self.head.clone());
        let fresh = tokio::task::spawn_blocking(move || journal.read_after(&run, &head)).await.map_err(died)??;
        let any = !fresh.is_empty();
        for (entry, sealed) in fresh {
            self.take_in(entry, sealed)?;
        }
        Ok(any)
    }

    fn take_in(&mut self, entry: Entry, sealed: Sealed) -> Result<(), ExecuteError> {
        let after = self.state.clone().after(&self.runbook, &entry.event);
        self.state = after.map_err(|source| ExecuteError::Replay {
            run: self.run.clone(),
            source: lifeboat_core::run::view::ViewError::Illegal { run: self.run.clone(), seq: entry.seq, source },
        })?;
        self.head = Head { seq: entry.seq, hash: sealed.hash.clone() };
        self.last_at = Some(self.last_at.map_or(entry.at, |last| last.max(entry.at)));
        self.mirror.push(entry.seq, sealed);
        // Nobody need listen.
        let _ =
            self.progress.send(Progress { entry, state: Arc::new(self.state.clone()), runbook: self.runbook.clone() });
        Ok(())
    }

    /// The sentence to note when the wall clock has gone back; once per jump.
    fn clock_went_back(&mut self, entry: &Entry) -> Option<String> {
        let back = self.last_at?.duration_since(entry.at).as_secs_f64();
        if back <= 0.0 || matches!(entry.event, Event::Finished { .. }) {
            return None;
        }
        self.last_at = Some(entry.at);
        Some(format!(
            "the clock of this machine went back by {back:.3} s at entry {}; durations are taken from the monotonic clock",
            entry.seq
        ))
    }

    pub(super) fn mirror_state(&self) -> tokio::sync::watch::Receiver<MirrorState> {
        self.mirror.state()
    }

    /// Why this process must not go on, if somebody else has gone on with the run.
    pub(super) fn taken(&self) -> Option<String> {
        let state = self.mirror.state();
        let state = state.borrow();
        state.taken.then(|| state.problem.clone().unwrap_or_default())
    }

    /// Gives the mirror some time to catch up with the journal.
    pub(super) async fn settle_mirror(&self) {
        let mut state = self.mirror.state();
        let head = self.head.seq;
        let settled = state.wait_for(|state| state.confirmed >= head || state.taken || state.problem.is_some());
        if tokio::time::timeout(self.grace, settled).await.is_err() {
            tracing::warn!(
                "the journal's mirror is behind entry {head} of run {}; the next resume makes up for it",
                self.run
            );
        }
    }

    pub(super) fn attempts(&self, step: &str) -> u32 {
        self.state.steps.get(step).map_or(0, |of_step| of_step.attempts)
    }

    pub(super) fn failures(&self, step: &str) -> u32 {
        self.state.steps.get(step).map_or(0, |of_step| of_step.failures)
    }

    pub(super) fn is_again_after_failure(&self, step: &str) -> bool {
        self.state.steps.get(step).is_some_and(|of_step| matches!(of_step.status, StepStatus::Again { error: Some(_) }))
    }
}
