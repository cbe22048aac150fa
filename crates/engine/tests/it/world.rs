//! A world in memory that remembers what was really done to it, and counts what must never happen.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use lifeboat_core::plan::{Objective, Person, Strategy};
use lifeboat_core::run::{Facts, Found};
use lifeboat_core::runbook::{Action, OnFailure, Purpose, Runbook, Step};
use lifeboat_core::units::Span;
use lifeboat_engine::arbitrate::{Arbiter, Claim, LockTimes, Trusted, Trustee};
use lifeboat_engine::execute::{Executor, Failure, Performed, Performer, Settings, Start};
use lifeboat_engine::journal::Journal;
use lifeboat_engine::port::{Clock, Context, PortError};
use lifeboat_vault::storage::{MemoryStorage, Storage};
use lifeboat_vault::{Role, SigningKey};

pub(crate) struct TestClock {
    begun: Instant,
    wall: Timestamp,
    pub(crate) wall_offset_ms: AtomicI64,
    pub(crate) monotonic_offset_ms: AtomicI64,
}

impl TestClock {
    pub(crate) fn new() -> Arc<TestClock> {
        Arc::new(TestClock {
            begun: Instant::now(),
            wall: Timestamp::now(),
            wall_offset_ms: AtomicI64::new(0),
            monotonic_offset_ms: AtomicI64::new(0),
        })
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        let offset = SignedDuration::from_millis(self.wall_offset_ms.load(Ordering::SeqCst));
        self.wall + self.begun.elapsed() + offset
    }

    fn monotonic_seconds(&self) -> f64 {
        self.begun.elapsed().as_secs_f64() + self.monotonic_offset_ms.load(Ordering::SeqCst) as f64 / 1000.0
    }
}

/// What a step does the next time it is performed.
#[derive(Debug, Clone)]
pub(crate) enum Trick {
    Fail {
        may_pass: bool,
        with_effect: bool,
    },
    Needs(lifeboat_core::run::Need),
    /// Until cancelled; then fails.
    Hang,
    /// Ignores being cancelled.
    HangForGood,
    Panic,
    Outcome(&'static str),
    /// Waits until that other step has begun, too; fails when it is told to stop first.
    Meet(&'static str),
    /// Somebody else claims this epoch in the meantime.
    LoseEpoch(u64),
    Meanwhile(Act),
}

/// What happens elsewhere while a step is at work.
#[derive(Clone)]
pub(crate) struct Act(Arc<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Act {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Act")
    }
}

pub(crate) fn meanwhile(act: impl Fn() + Send + Sync + 'static) -> Trick {
    Trick::Meanwhile(Act(Arc::new(act)))
}

#[derive(Default)]
pub(crate) struct World {
    pub(crate) arbiter: Mutex<Option<Arc<Arbiter>>>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    tricks: BTreeMap<String, VecDeque<Trick>>,
    unknown: BTreeSet<String>,
    /// By idempotency key: what was done, and how often.
    effects: BTreeMap<String, (String, u32)>,
    calls: BTreeMap<String, u32>,
    observed: BTreeMap<String, u32>,
    order: Vec<String>,
    repeat_each: bool,
}

impl World {
    pub(crate) fn trick(&self, step: &str, tricks: impl IntoIterator<Item = Trick>) {
        self.inner.lock().unwrap().tricks.entry(step.into()).or_default().extend(tricks);
    }

    pub(crate) fn cannot_observe(&self, step: &str) {
        self.inner.lock().unwrap().unknown.insert(step.into());
    }

    /// Every action is performed twice in a row, as a redo after a lost outcome would.
    pub(crate) fn repeat_each(&self) {
        self.inner.lock().unwrap().repeat_each = true;
    }

    /// How often the step (`undo` for its undo) took effect, over all runs.
    pub(crate) fn effects(&self, step: &str) -> u32 {
        let inner = self.inner.lock().unwrap();
        let of_step = inner.effects.iter().filter(|(key, _)| key.split_once('/').is_some_and(|(_, rest)| rest == step));
        of_step.map(|(_, (_, count))| count).sum()
    }

    pub(crate) fn calls(&self, step: &str) -> u32 {
        self.inner.lock().unwrap().calls.get(step).copied().unwrap_or(0)
    }

    pub(crate) fn observations(&self, step: &str) -> u32 {
        self.inner.lock().unwrap().observed.get(step).copied().unwrap_or(0)
    }

    pub(crate) fn order(&self) -> Vec<String> {
        self.inner.lock().unwrap().order.clone()
    }

    fn next_trick(&self, name: &str) -> Option<Trick> {
        let mut inner = self.inner.lock().unwrap();
        *inner.calls.entry(name.into()).or_default() += 1;
        inner.tricks.get_mut(name).and_then(VecDeque::pop_front)
    }

    /// Takes effect. Doing again what was done already counts, so that a test sees it.
    fn effect(&self, action: &Action, context: &Context, outcome: &str) -> Result<(), Failure> {
        if let Action::ClaimEpoch { write_domain, epoch, primary, planned } = action {
            let arbiter = self.arbiter.lock().unwrap().clone().unwrap();
            let claim = Claim {
                write_domain: write_domain.clone(),
                epoch: *epoch,
                primary: primary.clone(),
                run: context.run.clone(),
                at: arbiter.clock().now().to_string(),
                planned: *planned,
            };
            arbiter.claim_epoch(&claim).map_err(PortError::from)?;
        }
        let mut inner = self.inner.lock().unwrap();
        let (_, count) = inner.effects.entry(context.idempotency_key.clone()).or_insert((outcome.into(), 0));
        *count += 1;
        let name = name(context);
        inner.order.push(name);
        Ok(())
    }
}

fn name(context: &Context) -> String {
    context.idempotency_key.split_once('/').map(|(_, rest)| rest.to_owned()).unwrap()
}

fn natural_outcome(action: &Action) -> &'static str {
    match action {
        Action::ClaimEpoch { .. } => "claimed",
        Action::Fence { .. } => "proven",
        Action::LiftFence { .. } => "lifted",
        Action::RunCommand { .. } => "ran",
        _ => "running",
    }
}

#[async_trait]
impl Performer for World {
    async fn perform(&self, action: &Action, context: &Context) -> Result<Performed, Failure> {
        let name = name(context);
        tokio::task::yield_now().await;
        let outcome = match self.next_trick(&name) {
            None => natural_outcome(action),
            Some(Trick::Outcome(outcome)) => outcome,
            Some(Trick::Meet(other)) => {
                loop {
                    if context.cancel.is_cancelled() {
                        return Err(Failure::Failed { error: "told to stop".into(), may_pass: true });
                    }
                    if self.calls(other) > 0 {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                natural_outcome(action)
            }
            Some(Trick::LoseEpoch(epoch)) => {
                let arbiter = self.arbiter.lock().unwrap().clone().unwrap();
                let at = arbiter.clock().now().to_string();
                let primary = "elsewhere".into();
                arbiter
                    .claim_epoch(&Claim {
                        write_domain: "shop".into(),
                        epoch,
                        primary,
                        run: "other".into(),
                        at,
                        planned: false,
                    })
                    .unwrap();
                natural_outcome(action)
            }
            Some(Trick::Meanwhile(act)) => {
                (act.0)();
                natural_outcome(action)
            }
            Some(Trick::Needs(need)) => return Err(Failure::Needs(need)),
            Some(Trick::Panic) => panic!("a fault in this step, on purpose"),
            Some(Trick::Hang) => {
                while !context.cancel.is_cancelled() {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                return Err(Failure::Failed { error: "told to stop".into(), may_pass: true });
            }
            Some(Trick::HangForGood) => std::future::pending().await,
            Some(Trick::Fail { may_pass, with_effect }) => {
                if with_effect {
                    self.effect(action, context, natural_outcome(action))?;
                }
                return Err(Failure::Failed { error: format!("{name} broke"), may_pass });
            }
        };
        self.effect(action, context, outcome)?;
        if self.inner.lock().unwrap().repeat_each {
            let again = self.perform_again(action, context);
            assert_eq!(again, outcome);
        }
        Ok(Performed { outcome: outcome.into(), facts: Facts::from([("step".into(), name.into())]) })
    }

    async fn observe(&self, _action: &Action, context: &Context) -> Result<Found, PortError> {
        let name = name(context);
        let mut inner = self.inner.lock().unwrap();
        *inner.observed.entry(name.clone()).or_default() += 1;
        if inner.unknown.contains(&name) {
            return Ok(Found::Unknown { ask: format!("nobody can tell whether {name} happened") });
        }
        Ok(match inner.effects.get(&context.idempotency_key) {
            Some((outcome, _)) => Found::Happened { outcome: outcome.clone(), facts: Facts::new() },
            None => Found::DoAgain,
        })
    }
}

impl World {
    /// An idempotent performer finds its own work under the key, and answers the same.
    fn perform_again(&self, action: &Action, context: &Context) -> String {
        if let Action::ClaimEpoch { write_domain, epoch, primary, planned } = action {
            let arbiter = self.arbiter.lock().unwrap().clone().unwrap();
            let claim = Claim {
                write_domain: write_domain.clone(),
                epoch: *epoch,
                primary: primary.clone(),
                run: context.run.clone(),
                at: "later".into(),
                planned: *planned,
            };
            arbiter.claim_epoch(&claim).unwrap();
        }
        self.inner.lock().unwrap().effects[&context.idempotency_key].0.clone()
    }
}

/// One controller: a state directory, a key, and what it shares with others.
pub(crate) struct Bench {
    pub(crate) state: tempfile::TempDir,
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) key: Arc<SigningKey>,
    pub(crate) anna: Arc<SigningKey>,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) world: Arc<World>,
    pub(crate) settings: Settings,
}

impl Bench {
    pub(crate) fn new() -> Bench {
        Bench::on(Arc::new(MemoryStorage::new()))
    }

    pub(crate) fn on(storage: Arc<dyn Storage>) -> Bench {
        Bench {
            state: tempfile::tempdir().unwrap(),
            storage,
            key: Arc::new(SigningKey::generate().unwrap()),
            anna: Arc::new(SigningKey::generate().unwrap()),
            clock: TestClock::new(),
            world: Arc::new(World::default()),
            settings: quick(),
        }
    }

    /// Another controller on the same arbiter and the same world, with a state directory and clock of its own.
    pub(crate) fn elsewhere(&self) -> Bench {
        Bench {
            state: tempfile::tempdir().unwrap(),
            storage: self.storage.clone(),
            key: self.key.clone(),
            anna: self.anna.clone(),
            clock: TestClock::new(),
            world: self.world.clone(),
            settings: self.settings.clone(),
        }
    }

    pub(crate) fn arbiter(&self) -> Arc<Arbiter> {
        let trusted = Trusted::from([(self.key.public(), Trustee::new("controller", &[Role::Host, Role::Controller]))]);
        Arc::new(Arbiter::new(self.storage.clone(), self.key.clone(), trusted, self.clock.clone()))
    }

    pub(crate) fn journal(&self) -> Arc<Journal> {
        Arc::new(Journal::open(self.state.path(), self.clock.clone()).unwrap())
    }

    pub(crate) fn state(&self) -> &Path {
        self.state.path()
    }

    /// A new process, as it were.
    pub(crate) fn executor(&self) -> Executor {
        let arbiter = self.arbiter();
        *self.world.arbiter.lock().unwrap() = Some(arbiter.clone());
        let person =
            |key: &SigningKey, approves| Person { notify: vec![], approves, key: Some(key.public().to_string()) };
        let persons = BTreeMap::from([
            ("anna".to_owned(), person(&self.anna, true)),
            ("ben".to_owned(), person(&self.anna, true)),
            ("carl".to_owned(), person(&self.anna, false)),
            ("dora".to_owned(), Person { notify: vec![], approves: true, key: None }),
        ]);
        Executor::new(self.journal(), arbiter, self.world.clone(), persons, self.settings.clone())
    }
}

pub(crate) fn quick() -> Settings {
    Settings {
        lock: LockTimes { ttl_seconds: 15.0, skew_seconds: 1.0 },
        backoff: Duration::from_millis(1),
        backoff_max: Duration::from_millis(4),
        // Nothing here needs so long: it is for a machine that stands still for a while.
        grace: Duration::from_secs(60),
        mirror_wait: Duration::from_secs(60),
        look: Duration::from_millis(5),
        stay_when_held: false,
        plan_hash_now: None,
    }
}

pub(crate) fn start(run: &str, runbook: Runbook) -> Start {
    Start {
        run: run.into(),
        runbook,
        initiator: "ben".into(),
        disaster_at: Some("2026-11-21T12:00:00Z".into()),
        how_known: "assumed".into(),
        simulated: vec![],
    }
}

pub(crate) fn step(id: &str, after: &[&str]) -> Step {
    Step {
        id: id.into(),
        title: format!("Do {id}"),
        action: Action::EnsureAgent { site: "south".into() },
        after: after.iter().map(|id| (*id).into()).collect(),
        when: vec![],
        timeout: Span::seconds(60),
        retries: 0,
        on_failure: OnFailure::Hold,
        commit: false,
        undo: None,
        mirrored: false,
        always: false,
    }
}

pub(crate) fn book(purpose: Purpose, steps: Vec<Step>) -> Runbook {
    let drill = purpose == Purpose::Drill;
    Runbook {
        format: 1,
        purpose,
        service: "shop".into(),
        scenario: "site-lost".into(),
        strategy: Strategy::WarmStandby,
        from: "north".into(),
        to: "south".into(),
        write_domain: "shop".into(),
        from_epoch: 0,
        epoch: if drill { 0 } else { 1 },
        objective: Objective { rpo: Span::seconds(5), rto: Span::seconds(60) },
        plan_hash: "plan-1".into(),
        compiled_at: "2026-11-21T12:00:00Z".into(),
        steps,
        not_covered: vec![],
    }
}

/// A failover in small, with everything that a real one has: parallel branches, mirrored steps, undo, a commit point.
pub(crate) fn failover() -> Runbook {
    let domain = || "shop".to_owned();
    let undo = |id: &str| Some(Action::LiftFence { site: id.into(), write_domain: domain() });
    book(
        Purpose::Failover,
        vec![
            Step {
                action: Action::ClaimEpoch {
                    write_domain: domain(),
                    epoch: 1,
                    primary: "south".into(),
                    planned: false,
                },
                mirrored: true,
                on_failure: OnFailure::Unwind,
                ..step("claim", &[])
            },
            Step {
                action: Action::Fence {
                    site: "north".into(),
                    write_domain: domain(),
                    instances: vec![],
                    volumes: vec![],
                    planned: false,
                    lease: None,
                },
                mirrored: true,
                undo: undo("north"),
                ..step("fence", &["claim"])
            },
            Step { undo: undo("south"), on_failure: OnFailure::Unwind, retries: 1, ..step("restore-a", &["claim"]) },
            Step { undo: undo("south"), on_failure: OnFailure::Unwind, ..step("restore-b", &["claim"]) },
            Step { commit: true, mirrored: true, ..step("promote", &["fence", "restore-a", "restore-b"]) },
            Step { retries: 1, ..step("start", &["promote"]) },
            Step { on_failure: OnFailure::Note, ..step("warm-cache", &["start"]) },
            step("traffic", &["start"]),
        ],
    )
}

pub(crate) const FAILOVER_STEPS: [&str; 8] =
    ["claim", "fence", "restore-a", "restore-b", "promote", "start", "warm-cache", "traffic"];
