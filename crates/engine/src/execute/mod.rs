//! The executor: carries a run-book out, step by step, and can be killed at any moment.
//!
//! Invariant: it does what `core::run::next` says and nothing else. An intent is durable in the journal before its
//! action begins, an outcome before anything that follows from it; when the journal cannot be written, nothing more is
//! begun. What was cut off is observed before it is done again. Before each action that changes the world, the run lock
//! and the epoch are looked at again.

mod guard;
mod live;
mod step;
mod word;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lifeboat_core::plan::{Name, Person};
use lifeboat_core::run::{Entry, Event, Facts, Found, Need, Next, Phase, RunState, State, Undo, next};
use lifeboat_core::runbook::lint::lint;
use lifeboat_core::runbook::{Action, Runbook, StepId};
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::arbitrate::{Acquire, Arbiter, ArbiterError, Attempt, HeldLock, LockState, LockTimes, LockWatch};
use crate::journal::{Head, Journal, JournalError, LocalLock, Recorded};
use crate::port::{Cancel, Context, PortError};
use guard::{Guard, Renewal};
use live::{Live, Recording};
use step::{Ended as StepEnded, Task};
pub use word::{Decision, Refused, WORD_KIND, only_waiting, sign_word};

/// What an action did.
#[derive(Debug, Clone, PartialEq)]
pub struct Performed {
    pub outcome: String,
    pub facts: Facts,
}

/// Why an action was not done.
#[derive(Debug, Clone, PartialEq)]
pub enum Failure {
    Failed {
        error: String,
        may_pass: bool,
    },
    /// Only a person can take this further.
    Needs(Need),
}

impl From<PortError> for Failure {
    fn from(error: PortError) -> Failure {
        Failure::Failed { error: with_cause(&error), may_pass: error.may_pass }
    }
}

/// Carries actions out. Every action must be idempotent under the same `Context::idempotency_key`.
#[async_trait]
pub trait Performer: Send + Sync {
    async fn perform(&self, action: &Action, context: &Context) -> Result<Performed, Failure>;
    /// After a crash, before anything is done again: what really happened?
    async fn observe(&self, action: &Action, context: &Context) -> Result<Found, PortError>;
}

#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Arbiter(#[from] ArbiterError),
    #[error("the run-book must not be executed: {}", faults.join("; "))]
    Unsound { faults: Vec<String> },
    #[error(
        "this run-book was compiled under epoch {compiled} of {write_domain}, but {in_force} is in force; compile it again"
    )]
    Stale { write_domain: String, compiled: u64, in_force: u64 },
    #[error("the journal of run {run} does not add up, so it is not continued")]
    Replay {
        run: String,
        #[source]
        source: lifeboat_core::run::view::ViewError,
    },
    #[error("run {run} has ended as {}; there is nothing to resume", word(*state))]
    Over { run: String, state: RunState },
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("run {run} can neither go on nor end: {detail}")]
    Stuck { run: String, detail: String },
    #[error("run {run} is not this process's to continue any more: {why}")]
    LockLost { run: String, why: String },
    #[error("a part of the executor died: {detail}")]
    Died { detail: String },
}

/// How a run ended, in words; a run that has not ended is never told of here.
fn word(state: RunState) -> &'static str {
    match state {
        RunState::Completed => "completed",
        RunState::CompletedWithExceptions => "completed with exceptions",
        RunState::Failed => "failed",
        RunState::Cancelled => "cancelled",
        _ => "ended",
    }
}

impl ExecuteError {
    /// Whether a safety rule refused (exit code 4), rather than something having failed.
    pub fn is_refusal(&self) -> bool {
        match self {
            ExecuteError::Journal(error) => matches!(error, JournalError::Busy { .. } | JournalError::Exists { .. }),
            ExecuteError::Arbiter(error) => error.is_refusal(),
            ExecuteError::Unsound { .. }
            | ExecuteError::Stale { .. }
            | ExecuteError::Refused(_)
            | ExecuteError::LockLost { .. } => true,
            _ => false,
        }
    }
}

/// How an executor's work on a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Ended {
    Finished(RunState),
    /// Persons must see to these; then `run resume`.
    Held(Vec<(StepId, Need)>),
    /// Stopped on request; `run resume` goes on.
    Interrupted,
}

/// One entry as it was recorded, and the state it led to.
#[derive(Debug, Clone)]
pub struct Progress {
    pub entry: Entry,
    pub state: Arc<State>,
    pub runbook: Arc<Runbook>,
}

#[derive(Clone)]
pub struct Settings {
    pub lock: LockTimes,
    /// Before the first retry; doubled with each.
    pub backoff: Duration,
    pub backoff_max: Duration,
    /// How long a step that is told to stop gets for it.
    pub grace: Duration,
    /// How long a claim, a fence and a commit wait for the journal's mirror.
    pub mirror_wait: Duration,
    /// How often others' words in the journal are looked for.
    pub look: Duration,
    /// Stay when only persons can take the run further, instead of ending as held.
    pub stay_when_held: bool,
    /// The hash of the plan as it stands now, to note when it changes during the run.
    pub plan_hash_now: Option<Arc<dyn Fn() -> Option<String> + Send + Sync>>,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("lock", &self.lock)
            .field("stay_when_held", &self.stay_when_held)
            .finish_non_exhaustive()
    }
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            lock: LockTimes::default(),
            backoff: Duration::from_millis(250),
            backoff_max: Duration::from_secs(10),
            grace: Duration::from_secs(10),
            mirror_wait: Duration::from_secs(20),
            look: Duration::from_millis(100),
            stay_when_held: false,
            plan_hash_now: None,
        }
    }
}

/// What a new run is started with.
#[derive(Debug, Clone)]
pub struct Start {
    /// Sortable by time, with a random end: `20261121T144414Z-7f3a`.
    pub run: String,
    pub runbook: Runbook,
    pub initiator: String,
    pub disaster_at: Option<String>,
    pub how_known: String,
    pub simulated: Vec<String>,
}

pub struct Executor {
    pub journal: Arc<Journal>,
    pub arbiter: Arc<Arbiter>,
    pub performer: Arc<dyn Performer>,
    /// The plan's persons: who may approve and attest, with which keys.
    pub persons: BTreeMap<Name, Person>,
    pub settings: Settings,
    progress: broadcast::Sender<Progress>,
}

impl std::fmt::Debug for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executor").field("journal", &self.journal).finish_non_exhaustive()
    }
}

impl Executor {
    pub fn new(
        journal: Arc<Journal>,
        arbiter: Arc<Arbiter>,
        performer: Arc<dyn Performer>,
        persons: BTreeMap<Name, Person>,
        settings: Settings,
    ) -> Executor {
        Executor { journal, arbiter, performer, persons, settings, progress: broadcast::channel(4096).0 }
    }

    /// Every entry from now on, as it is recorded.
    pub fn progress(&self) -> broadcast::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Begins a run and works on it until it ends, is held, or `interrupt` is set.
    pub async fn start(&self, start: Start, interrupt: &Cancel) -> Result<Ended, ExecuteError> {
        let runbook = start.runbook;
        let faults = lint(&runbook);
        if !faults.is_empty() {
            return Err(ExecuteError::Unsound { faults });
        }
        let local = self.lock_here(&runbook.service).await?;
        self.refuse_unfinished(&runbook.service).await?;
        self.close_last(&runbook.service, interrupt).await?;
        let lock = self.take_lock(&runbook.service, &start.run, None, interrupt).await?;
        let Some(lock) = lock else { return Ok(Ended::Interrupted) };
        if let Err(error) = self.require_epoch(&runbook).await {
            self.let_go(&lock, LockState::Finished).await;
            return Err(error);
        }
        let mut live = Live::begin(self, &start.run, Arc::new(runbook.clone()));
        let started = Event::Started {
            runbook: Box::new(runbook),
            initiator: start.initiator,
            disaster_at: start.disaster_at,
            how_known: start.how_known,
            simulated: start.simulated,
        };
        if let Err(error) = live.must_record(started).await {
            self.let_go(&lock, LockState::Finished).await;
            return Err(error);
        }
        self.work(live, lock, local, interrupt).await
    }

    /// Goes on with a run that was paused, held, or cut off; with another machine's run, too, from its mirrored journal.
    pub async fn resume(&self, run: &str, by: &str, interrupt: &Cancel) -> Result<Ended, ExecuteError> {
        self.adopt(run).await?;
        let recorded = self.blocking(|journal, run| journal.read(&run), run).await?;
        let live = Live::from(self, run, recorded)?;
        let service = live.runbook.service.clone();
        let local = self.lock_here(&service).await?;
        if let Phase::Ended { state } = live.state.phase {
            self.close(live, interrupt).await?;
            return Err(ExecuteError::Over { run: run.into(), state });
        }
        let lock = self.take_lock(&service, run, Some(&live.head), interrupt).await?;
        let Some(lock) = lock else { return Ok(Ended::Interrupted) };
        let mut live = live;
        live.absorb().await?;
        live.must_record(Event::Resumed { by: by.into() }).await?;
        self.work(live, lock, local, interrupt).await
    }

    /// A run's journal, with what its mirror has beyond it; a silent mirror hides nothing that is known here.
    pub async fn fetch(&self, run: &str) -> Result<Recorded, ExecuteError> {
        let adopted = self.adopt(run).await;
        let known = self.blocking(|journal, run| journal.read(&run), run).await;
        match (adopted, known) {
            (Ok(()), known) => known,
            (Err(ExecuteError::Arbiter(error)), Ok(known)) if error.may_pass() => {
                tracing::warn!("the mirror of run {run} cannot be read: {}", error.with_cause());
                Ok(known)
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Copies what the mirror has of a run into this journal. Nothing happens when the mirror is silent and the run is known here.
    async fn adopt(&self, run: &str) -> Result<(), ExecuteError> {
        let arbiter = self.arbiter.clone();
        let mirrored = self.blocking_arbiter(run, move |run| arbiter.mirrored_journal(&run)).await;
        let known = self.blocking(|journal, run| journal.read(&run), run).await;
        match (mirrored, known) {
            (Ok(mirrored), Ok(known)) if mirrored.len() as u64 <= known.head.seq => Ok(()),
            (Ok(_), Err(error)) if !matches!(error, ExecuteError::Journal(JournalError::NoRun { .. })) => Err(error),
            (Ok(mirrored), known) => {
                if mirrored.is_empty() {
                    return known.map(|_| ());
                }
                self.blocking(move |journal, run| journal.import(&run, &mirrored), run).await.map(|_| ())
            }
            (Err(error), _) => Err(error),
        }
    }

    /// This machine's own lock on a service; when another process has it, the run that it works on is named.
    async fn lock_here(&self, service: &str) -> Result<LocalLock, ExecuteError> {
        let busy = match self.journal.lock_service(service) {
            Err(busy @ JournalError::Busy { .. }) => busy,
            other => return Ok(other?),
        };
        match self.blocking(|journal, service| journal.unfinished(&service), service).await? {
            Some(listing) => Err(ArbiterError::Busy {
                service: service.into(),
                run: listing.run,
                since: listing.last_at.map_or_else(String::new, |at| at.to_string()),
            }
            .into()),
            None => Err(busy.into()),
        }
    }

    /// A run of this state directory that has not ended keeps others off its service, even when its lock is nowhere to be seen.
    async fn refuse_unfinished(&self, service: &str) -> Result<(), ExecuteError> {
        let unfinished = self.blocking(|journal, service| journal.unfinished(&service), service).await?;
        match unfinished {
            Some(listing) => Err(ArbiterError::Unfinished { service: service.into(), run: listing.run }.into()),
            None => Ok(()),
        }
    }

    /// The last run here may have ended without its executor living to mirror that and let go of the lock.
    async fn close_last(&self, service: &str, interrupt: &Cancel) -> Result<(), ExecuteError> {
        let arbiter = self.arbiter.clone();
        let Some((claim, _)) = self.blocking_arbiter(service, move |service| arbiter.run_lock(&service)).await? else {
            return Ok(());
        };
        match self.blocking(|journal, run| journal.read(&run), &claim.run).await {
            Ok(recorded) => {
                let live = Live::from(self, &claim.run, recorded)?;
                if matches!(live.state.phase, Phase::Ended { .. }) { self.close(live, interrupt).await } else { Ok(()) }
            }
            Err(ExecuteError::Journal(JournalError::NoRun { .. })) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Sees to it that an ended run is mirrored to its end and keeps its service no longer.
    async fn close(&self, live: Live, interrupt: &Cancel) -> Result<(), ExecuteError> {
        let (service, run) = (live.runbook.service.clone(), live.run.clone());
        let arbiter = self.arbiter.clone();
        let lock = self.blocking_arbiter(&service, move |service| arbiter.run_lock(&service)).await?;
        let kept = lock
            .is_some_and(|(claim, beat)| claim.run == run && beat.is_none_or(|beat| beat.state != LockState::Finished));
        live.settle_mirror().await;
        if kept && let Some(lock) = self.take_lock(&service, &run, Some(&live.head), interrupt).await? {
            self.let_go(&lock, LockState::Finished).await;
        }
        Ok(())
    }

    async fn require_epoch(&self, runbook: &Runbook) -> Result<(), ExecuteError> {
        let arbiter = self.arbiter.clone();
        let domain = runbook.write_domain.clone();
        let claim = self.blocking_arbiter(&domain, move |domain| arbiter.current_epoch(&domain)).await?;
        let in_force = claim.map_or(0, |claim| claim.epoch);
        if in_force == runbook.from_epoch {
            return Ok(());
        }
        Err(ExecuteError::Stale { write_domain: runbook.write_domain.clone(), compiled: runbook.from_epoch, in_force })
    }

    /// Takes the run lock, watching a holder that may be dead for as long as that takes. Nothing when interrupted meanwhile.
    async fn take_lock(
        &self,
        service: &str,
        run: &str,
        journal: Option<&Head>,
        interrupt: &Cancel,
    ) -> Result<Option<Arc<HeldLock>>, ExecuteError> {
        let mut watch = LockWatch::default();
        while !interrupt.is_cancelled() {
            let (arbiter, host, times) = (self.arbiter.clone(), self.journal.host().to_owned(), self.settings.lock);
            let (service, run, journal) = (service.to_owned(), run.to_owned(), journal.cloned());
            let (attempt, seen) = tokio::task::spawn_blocking(move || {
                let want = Acquire { service: &service, run: &run, host: &host, journal: journal.as_ref(), times };
                let attempt = arbiter.acquire(&want, &mut watch);
                (attempt, watch)
            })
            .await
            .map_err(died)?;
            watch = seen;
            match attempt? {
                Attempt::Taken(lock) => return Ok(Some(Arc::new(lock))),
                Attempt::Watch { seconds } => {
                    tokio::time::sleep(Duration::from_secs_f64(seconds.clamp(0.01, 0.5))).await;
                }
            }
        }
        Ok(None)
    }

    /// Says that the lock is let go. When the arbiter does not hear it, the lock expires by itself.
    async fn let_go(&self, lock: &Arc<HeldLock>, state: LockState) {
        let (arbiter, lock) = (self.arbiter.clone(), lock.clone());
        let said = tokio::task::spawn_blocking(move || arbiter.release_lock(&lock, state)).await;
        if let Ok(Err(error)) = said {
            tracing::warn!("the run lock could not be released, it will expire: {}", error.with_cause());
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(Arc<Journal>, String) -> Result<T, JournalError> + Send + 'static,
        run: &str,
    ) -> Result<T, ExecuteError> {
        let (journal, run) = (self.journal.clone(), run.to_owned());
        Ok(tokio::task::spawn_blocking(move || call(journal, run)).await.map_err(died)??)
    }

    async fn blocking_arbiter<T: Send + 'static>(
        &self,
        name: &str,
        call: impl FnOnce(String) -> Result<T, ArbiterError> + Send + 'static,
    ) -> Result<T, ExecuteError> {
        let name = name.to_owned();
        Ok(tokio::task::spawn_blocking(move || call(name)).await.map_err(died)??)
    }

    /// Works on a run whose lock this process holds.
    async fn work(
        &self,
        live: Live,
        lock: Arc<HeldLock>,
        local: LocalLock,
        interrupt: &Cancel,
    ) -> Result<Ended, ExecuteError> {
        let renewal = Renewal::start(self.arbiter.clone(), lock.clone());
        let guard = Arc::new(Guard::new(self.arbiter.clone(), lock.clone(), live.runbook.clone(), &live.run));
        let mut dispatch = Dispatch {
            executor: self,
            live,
            guard,
            tasks: JoinSet::new(),
            cancels: BTreeMap::new(),
            not_before: BTreeMap::new(),
            superseded: None,
            last_plan_hash: None,
        };
        let ended = dispatch.run(interrupt, &renewal).await;
        dispatch.tasks.shutdown().await;
        drop(renewal);
        let state = match &ended {
            Ok(Ended::Finished(_)) => Some(LockState::Finished),
            Ok(Ended::Held(_) | Ended::Interrupted) => Some(LockState::Paused),
            // The journal is at fault, not the lock: whoever resumes need not wait.
            Err(ExecuteError::Journal(error)) if !matches!(error, JournalError::Unplugged) => Some(LockState::Paused),
            Err(_) => None,
        };
        if let Some(state) = state {
            dispatch.live.settle_mirror().await;
            self.let_go(&lock, state).await;
        }
        drop(local);
        ended
    }
}

/// One executor's work on one run.
struct Dispatch<'a> {
    executor: &'a Executor,
    live: Live,
    guard: Arc<Guard>,
    tasks: JoinSet<StepEnded>,
    /// Steps that a task of this process works on.
    cancels: BTreeMap<StepId, Cancel>,
    not_before: BTreeMap<StepId, Instant>,
    superseded: Option<String>,
    last_plan_hash: Option<String>,
}

impl Dispatch<'_> {
    async fn run(&mut self, interrupt: &Cancel, renewal: &Renewal) -> Result<Ended, ExecuteError> {
        loop {
            self.live.absorb().await?;
            if let Some(why) = renewal.lost().or_else(|| self.live.taken()) {
                return Err(ExecuteError::LockLost { run: self.live.run.clone(), why });
            }
            if interrupt.is_cancelled() {
                return self.pause().await;
            }
            self.note_changed_plan().await?;
            if let Some(why) = self.superseded.take_if(|_| self.tasks.is_empty()) {
                self.live.must_record(Event::Superseded { why }).await?;
            }
            let due = next(&self.live.runbook, &self.live.state);
            if let Some(state) = due.finish {
                self.live.must_record(Event::Finished { state }).await?;
                return Ok(Ended::Finished(state));
            }
            if !matches!(self.live.state.phase, Phase::Forward) {
                self.cancel_what_is_not_cleanup();
            }
            let began = self.superseded.is_none() && self.begin(&due).await?;
            if began {
                continue;
            }
            let backing_off = due.start.iter().any(|step| self.not_before.contains_key(step));
            if self.tasks.is_empty() && !backing_off && self.superseded.is_none() {
                if due.waiting_for.is_empty() {
                    let detail = "no step is due, in flight or held".into();
                    return Err(ExecuteError::Stuck { run: self.live.run.clone(), detail });
                }
                if !self.executor.settings.stay_when_held {
                    return Ok(Ended::Held(due.waiting_for));
                }
            }
            self.wait().await?;
        }
    }

    /// Begins all that is due. Whether anything was: then the state has changed.
    async fn begin(&mut self, due: &Next) -> Result<bool, ExecuteError> {
        let mut began = false;
        for (step, needs) in &due.ask {
            let held = Event::Held { step: step.clone(), attempt: 0, needs: needs.clone() };
            began |= self.live.record(held).await? == Recording::Recorded;
        }
        for step in due.in_flight.iter().chain(&due.undo_in_flight) {
            if !self.cancels.contains_key(step) {
                self.spawn(step, Task::Observe)?;
                began = true;
            }
        }
        for step in &due.start {
            if self.not_before.get(step).is_some_and(|at| Instant::now() < *at) {
                continue;
            }
            self.not_before.remove(step);
            let attempt = self.live.attempts(step) + 1;
            if self.live.record(Event::Intent { step: step.clone(), attempt }).await? == Recording::Recorded {
                self.spawn(step, Task::Perform)?;
            }
            // A step may have turned away others that were due with it.
            return Ok(true);
        }
        if let Some(step) = &due.undo {
            if self.live.record(Event::UndoIntent { step: step.clone() }).await? == Recording::Recorded {
                self.spawn(step, Task::Undo)?;
            }
            began = true;
        }
        Ok(began)
    }

    fn spawn(&mut self, id: &str, task: Task) -> Result<(), ExecuteError> {
        let cancel = Cancel::default();
        self.cancels.insert(id.into(), cancel.clone());
        let work = step::Work::new(self.executor, &self.live, self.guard.clone(), id, task, cancel)?;
        self.tasks.spawn(work.run());
        Ok(())
    }

    /// Waits for a step's end, a backoff's end, or the next look at others' words.
    async fn wait(&mut self) -> Result<(), ExecuteError> {
        let look = Instant::now() + self.executor.settings.look;
        let wake = self.not_before.values().min().map_or(look, |at| look.min(*at));
        tokio::select! {
            ended = self.tasks.join_next(), if !self.tasks.is_empty() => match ended {
                Some(Ok(ended)) => self.conclude(ended, false).await,
                Some(Err(error)) => Err(died(error)),
                None => Ok(()),
            },
            () = tokio::time::sleep_until(wake) => Ok(()),
        }
    }

    /// Records what became of a step. While pausing, only what is certain: the rest is observed on resume.
    async fn conclude(&mut self, ended: StepEnded, pausing: bool) -> Result<(), ExecuteError> {
        self.cancels.remove(&ended.step);
        let event = match ended.result {
            step::Result::Superseded { why, .. } if !matches!(self.live.state.phase, Phase::Stopping { .. }) => {
                self.superseded = Some(why);
                return Ok(());
            }
            // The run is stopping already; only this piece of clean-up is refused.
            step::Result::Superseded { instead, .. } => instead,
            step::Result::LockLost { why } => {
                return Err(ExecuteError::LockLost { run: self.live.run.clone(), why });
            }
            step::Result::Event(event) => event,
        };
        let uncertain = matches!(event, Event::Failed { .. } | Event::UndoFailed { .. });
        if pausing && uncertain {
            return Ok(());
        }
        self.live.must_record(event).await?;
        let failures = self.live.failures(&ended.step);
        if failures > 0 {
            let settings = &self.executor.settings;
            let pause = settings.backoff.saturating_mul(1 << (failures - 1).min(16)).min(settings.backoff_max);
            self.not_before.insert(ended.step.clone(), Instant::now() + pause);
        }
        if !self.live.is_again_after_failure(&ended.step) {
            self.not_before.remove(&ended.step);
        }
        Ok(())
    }

    /// Stops on request: tells the steps in flight, gives them some time, and leaves the rest for `observe`.
    async fn pause(&mut self) -> Result<Ended, ExecuteError> {
        self.cancels.values().for_each(Cancel::cancel);
        let deadline = Instant::now() + self.executor.settings.grace;
        while let Ok(Some(Ok(ended))) = tokio::time::timeout_at(deadline, self.tasks.join_next()).await {
            self.conclude(ended, true).await?;
        }
        self.tasks.abort_all();
        self.superseded = None;
        let cut_off: BTreeSet<&str> = self.cancels.keys().map(String::as_str).collect();
        let why = match cut_off.len() {
            0 => "interrupted between steps".to_owned(),
            _ => format!("interrupted in {}", cut_off.into_iter().collect::<Vec<_>>().join(", ")),
        };
        self.live.must_record(Event::Paused { why }).await?;
        Ok(Ended::Interrupted)
    }

    fn cancel_what_is_not_cleanup(&self) {
        for (id, cancel) in &self.cancels {
            let of_step = self.live.state.steps.get(id);
            let undoing = of_step.is_some_and(|of_step| of_step.undo != Undo::No);
            let cleanup = self.live.runbook.step(id).is_some_and(|step| step.always);
            if !undoing && !cleanup {
                cancel.cancel();
            }
        }
    }

    async fn note_changed_plan(&mut self) -> Result<(), ExecuteError> {
        let Some(hash) = self.executor.settings.plan_hash_now.as_ref().and_then(|now| now()) else { return Ok(()) };
        let known = self.last_plan_hash.as_ref().unwrap_or(&self.live.runbook.plan_hash);
        if *known != hash {
            let text = format!(
                "the plan has changed since this run began (now {hash}); the run keeps the run-book it began with"
            );
            self.live.must_record(Event::Note { text }).await?;
            self.last_plan_hash = Some(hash);
        }
        Ok(())
    }
}

fn died(error: tokio::task::JoinError) -> ExecuteError {
    ExecuteError::Died { detail: error.to_string() }
}

/// An error and all its causes in one line.
pub(crate) fn with_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(one) = cause {
        text = format!("{text}: {one}");
        cause = one.source();
    }
    text
}
