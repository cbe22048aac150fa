//! The lease's holder, its watchdog and an observer in a world whose time is the test's own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_core::lease;
use lifeboat_core::units::Span;
use lifeboat_vault::storage::{Listed, MemoryStorage, Put, Storage, StorageError};
use lifeboat_vault::{Role, SigningKey};
use proptest::prelude::*;

use super::lease::{DomainLease, Holder, LeaseProblem, Watchdog};
use super::role::{Duty, Orders};
use crate::arbitrate::{Arbiter, Claim, LeaseObserver, LeaseView, Trustee};
use crate::port::{Clock, PortError};

/// How finely time goes.
const TICK: f64 = 0.02;

#[derive(Debug, Default)]
struct Inner {
    now: f64,
    /// How much faster than true the watchdog's and the observer's clocks run.
    rates: (f64, f64),
    /// How long the next requests to the arbiter take, in turn.
    delays: Vec<f64>,
    away: bool,
    guard: Option<(u64, f64)>,
    guarded: Option<u64>,
    /// The watchdog does not answer, and does not act either.
    broken: bool,
    runs: bool,
    stopped: Option<String>,
    /// When the writer was stopped, by true time.
    stops: Vec<f64>,
    claim_at: Option<f64>,
    observer: Option<LeaseObserver>,
    read_at: f64,
    read_every: f64,
    ran_out_at: Option<f64>,
    /// It wrote when somebody else could.
    two_writers: bool,
}

#[derive(Debug, Default)]
struct Sim {
    inner: Mutex<Inner>,
    memory: Arc<MemoryStorage>,
    /// Sees the storage without delay.
    observer: OnceLock<Arc<Arbiter>>,
}

impl Sim {
    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.inner.lock().unwrap())
    }

    fn now(&self) -> f64 {
        self.with(|inner| inner.now)
    }

    /// Lets time pass: the watchdog acts when it is time, the next epoch is claimed, the observer looks.
    fn pass(&self, seconds: f64) {
        let until = self.now() + seconds;
        while self.now() < until {
            self.with(|inner| inner.now += TICK);
            self.tick();
        }
    }

    fn tick(&self) {
        let (claims, reads) = self.with(|inner| {
            let clock = inner.now * inner.rates.0;
            if !inner.broken && inner.guard.is_some_and(|(_, until)| clock >= until) {
                inner.guard = None;
                inner.stop("its lease was not renewed in time");
            }
            inner.two_writers |= inner.runs && inner.ran_out_at.is_some();
            let claims = inner.claim_at.take_if(|at| inner.now >= *at).is_some();
            let reads = inner.observer.is_some() && inner.now >= inner.read_at;
            if reads {
                inner.read_at = inner.now + inner.read_every;
            }
            (claims, reads)
        });
        if claims {
            self.arbiter().claim_epoch(&claim(2, "south", false)).unwrap();
            self.with(|inner| {
                let skew = lease::skew(Span(Duration::from_secs_f64(inner.read_every * 8.0)));
                inner.observer = Some(LeaseObserver::new(skew.as_seconds()));
            });
        }
        if reads {
            let read = self.arbiter().read_lease("north", "shop", 1).unwrap();
            self.with(|inner| {
                let clock = inner.now * inner.rates.1;
                let view = inner.observer.as_mut().map(|observer| observer.observe(read, clock));
                if matches!(view, Some(LeaseView::RunOut { .. })) && inner.ran_out_at.is_none() {
                    inner.ran_out_at = Some(inner.now);
                    inner.two_writers |= inner.runs;
                }
            });
        }
    }

    fn arbiter(&self) -> Arc<Arbiter> {
        Arc::clone(self.observer.get().unwrap())
    }

    fn ask(&self, key: &str) -> Result<(), StorageError> {
        let delay = self.with(|inner| inner.delays.pop()).unwrap_or(0.0);
        self.pass(delay);
        match self.with(|inner| inner.away) {
            true => Err(StorageError::NoSpace { location: format!("the storage of {key}") }),
            false => Ok(()),
        }
    }
}

impl Inner {
    fn stop(&mut self, why: &str) {
        self.runs = false;
        self.stops.push(self.now);
        self.stopped.get_or_insert_with(|| why.to_owned());
    }
}

impl Clock for Sim {
    fn now(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH
    }

    fn monotonic_seconds(&self) -> f64 {
        self.with(|inner| inner.now * inner.rates.0)
    }
}

/// The arbiter's storage as the holder reaches it.
#[derive(Debug)]
struct Line(Arc<Sim>);

impl Storage for Line {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, StorageError> {
        self.0.ask(key)?;
        self.0.memory.put_if_absent(key, bytes)
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), StorageError> {
        self.0.ask(key)?;
        self.0.memory.put(key, bytes)
    }

    fn get(&self, key: &str) -> Result<Vec<u8>, StorageError> {
        self.0.ask(key)?;
        self.0.memory.get(key)
    }

    fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Vec<u8>, StorageError> {
        self.0.ask(key)?;
        self.0.memory.get_range(key, offset, length)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StorageError> {
        self.0.ask(prefix)?;
        self.0.memory.list(prefix)
    }

    fn delete(&self, key: &str) -> Result<(), StorageError> {
        self.0.ask(key)?;
        self.0.memory.delete(key)
    }

    fn location(&self) -> String {
        "a slow line".into()
    }
}

struct Dog(Arc<Sim>);

impl Watchdog for Dog {
    fn now(&self) -> f64 {
        self.0.monotonic_seconds()
    }

    fn guard(&self, epoch: u64, until: f64, _renewed: bool) -> Result<(), PortError> {
        self.0.with(|inner| {
            if inner.broken {
                return Err(PortError::may_pass("it is silent"));
            }
            (inner.guard, inner.guarded) = (Some((epoch, until)), Some(epoch));
            Ok(())
        })
    }

    fn guarded(&self) -> Option<u64> {
        self.0.with(|inner| inner.guarded)
    }

    fn stop(&self, _epoch: u64, why: &str) -> Result<(), PortError> {
        self.0.with(|inner| inner.stop(why));
        Ok(())
    }

    fn stopped(&self) -> Option<String> {
        self.0.with(|inner| inner.stopped.clone())
    }

    fn resume(&self, _epoch: u64) -> Result<(), PortError> {
        self.0.with(|inner| (inner.runs, inner.stopped) = (true, None));
        Ok(())
    }

    fn rest(&self) -> Result<(), PortError> {
        self.0.with(|inner| (inner.guard, inner.guarded, inner.stopped) = (None, None, None));
        Ok(())
    }
}

fn claim(epoch: u64, primary: &str, planned: bool) -> Claim {
    let run = format!("run-{epoch}");
    Claim { write_domain: "shop".into(), epoch, primary: primary.into(), run, at: String::new(), planned }
}

fn writes(epoch: u64) -> Orders {
    Orders { duty: Duty::Write { epoch }, generation: epoch, epoch, writer: "north".into() }
}

struct World {
    sim: Arc<Sim>,
    problem: LeaseProblem,
    line: Arc<Arbiter>,
}

impl World {
    /// North is named as the writer, and its service waits to be started.
    fn new() -> World {
        let sim = Arc::new(Sim::default());
        sim.with(|inner| {
            (inner.rates, inner.read_every) = ((1.0, 1.0), 0.5);
            inner.stopped = Some("it was never started".into());
        });
        let key = SigningKey::generate().unwrap();
        let trusted = BTreeMap::from([(key.public(), Trustee::new("north", &[Role::Controller, Role::Host]))]);
        let key = Arc::new(key);
        let arbiter = |storage: Arc<dyn Storage>| {
            Arc::new(Arbiter::new(storage, key.clone(), trusted.clone(), Arc::clone(&sim) as Arc<dyn Clock>))
        };
        let memory = Arc::clone(&sim.memory);
        sim.observer.set(arbiter(memory)).unwrap();
        sim.arbiter().claim_epoch(&claim(1, "north", false)).unwrap();
        sim.arbiter().publish_writer("shop", 1, "north", false).unwrap();
        let line = arbiter(Arc::new(Line(Arc::clone(&sim))));
        World { sim, problem: LeaseProblem::default(), line }
    }

    fn holder(&self, ttl: Option<Span>) -> Holder {
        let watchdog = Arc::new(Dog(Arc::clone(&self.sim)));
        let lease = DomainLease { ttl, holder: "north".into(), watchdog };
        Holder::of("north", "shop", Arc::clone(&self.line), lease, Arc::clone(&self.problem))
    }

    /// The holder at work for so long.
    fn work(&self, holder: &mut Holder, orders: &Orders, seconds: f64) {
        let until = self.sim.now() + seconds;
        while self.sim.now() < until {
            let next = holder.look(Some(orders));
            if let Some(epoch) = next.resume {
                Dog(Arc::clone(&self.sim)).resume(epoch).unwrap();
            }
            self.sim.pass(next.pause.as_secs_f64());
        }
    }

    fn runs(&self) -> bool {
        self.sim.with(|inner| inner.runs)
    }

    fn beat(&self, epoch: u64) -> u64 {
        self.sim.arbiter().read_lease("north", "shop", epoch).unwrap().map_or(0, |lease| lease.beat)
    }

    fn problem(&self) -> String {
        self.problem.lock().unwrap().clone().unwrap_or_default()
    }
}

const TTL: Span = Span::seconds(10);

proptest! {
    /// The arbiter slow at any request, the agent frozen for any time, clocks that run apart, orders that never come, and
    /// a claim at any moment, between a renewal's look at the epoch and its publication too.
    #[test]
    fn the_writer_has_stopped_before_its_lease_is_seen_to_have_run_out(
        ttl in 3_u64..12,
        delays in proptest::collection::vec(prop_oneof![6 => 0.0..0.05_f64, 2 => 0.0..2.0_f64, 1 => 2.0..15.0_f64], 0..120),
        claim_at in 0.5..40.0_f64,
        freezes in proptest::collection::vec((1.0..8.0_f64, 0.5..25.0_f64), 0..4),
        dog_rate in 0.95..1.05_f64,
        observer_rate in 0.95..1.05_f64,
    ) {
        let world = World::new();
        let ttl_span = Span::seconds(ttl);
        world.sim.with(|inner| {
            (inner.delays, inner.claim_at) = (delays, Some(claim_at));
            inner.rates = (dog_rate, observer_rate);
            inner.read_every = ttl as f64 / 8.0;
        });
        let mut holder = world.holder(Some(ttl_span));
        for (works, frozen) in freezes {
            world.work(&mut holder, &writes(1), works);
            world.sim.pass(frozen);
        }
        world.work(&mut holder, &writes(1), claim_at + 60.0);
        let (ran_out, two_writers) = world.sim.with(|inner| (inner.ran_out_at, inner.two_writers));
        prop_assert!(!two_writers);
        // Where it was ever held, recovery does not wait for ever.
        prop_assert!(ran_out.is_some() || world.beat(1) == 0);
        prop_assert!(!world.runs());
    }
}

#[test]
fn an_arbiter_that_is_away_for_the_lease_stops_the_writer_and_its_return_starts_it() {
    let world = World::new();
    let mut holder = world.holder(Some(TTL));
    world.work(&mut holder, &writes(1), 30.0);
    assert!(world.runs() && world.sim.with(|inner| inner.stops.is_empty()));
    let (away_at, beat) = (world.sim.now(), world.beat(1));
    world.sim.with(|inner| inner.away = true);
    world.work(&mut holder, &writes(1), 30.0);
    let stopped_at = world.sim.with(|inner| inner.stops[0]);
    assert!(!world.runs() && stopped_at - away_at < TTL.as_seconds(), "{}", stopped_at - away_at);
    assert_eq!(world.beat(1), beat);
    assert!(
        world.problem().contains("its lease was not renewed in time; the lease is not renewed: the arbiter's storage")
    );
    world.sim.with(|inner| inner.away = false);
    world.work(&mut holder, &writes(1), 2.0);
    assert!(world.runs() && world.beat(1) > beat);
    // With the next renewal nothing is left to be told.
    world.work(&mut holder, &writes(1), 2.0);
    assert_eq!(world.problem(), "");
}

#[test]
fn an_arbiter_that_is_away_for_less_than_half_the_lease_stops_nothing() {
    let world = World::new();
    let mut holder = world.holder(Some(TTL));
    for _ in 0..5 {
        world.work(&mut holder, &writes(1), 7.0);
        world.sim.with(|inner| inner.away = true);
        world.work(&mut holder, &writes(1), 4.0);
        world.sim.with(|inner| inner.away = false);
    }
    assert!(world.runs() && world.sim.with(|inner| inner.stops.is_empty()));
}

#[test]
fn without_a_watchdog_that_answers_nothing_is_renewed_and_the_agent_stops_the_writer_itself() {
    let world = World::new();
    let mut holder = world.holder(Some(TTL));
    world.work(&mut holder, &writes(1), 20.0);
    let beat = world.beat(1);
    let broken_at = world.sim.now();
    world.sim.with(|inner| inner.broken = true);
    world.work(&mut holder, &writes(1), 20.0);
    assert_eq!(world.beat(1), beat);
    let stopped_at = world.sim.with(|inner| inner.stops[0]);
    assert!(!world.runs() && stopped_at - broken_at < TTL.as_seconds(), "{}", stopped_at - broken_at);
    assert!(
        world
            .problem()
            .contains("its lease could not be renewed for 7s 500ms; the lease is not renewed, for no watchdog")
    );
    world.sim.with(|inner| inner.broken = false);
    world.work(&mut holder, &writes(1), 2.0);
    assert!(world.runs());
}

#[test]
fn an_agent_that_takes_over_guards_before_it_has_heard_from_anybody() {
    let world = World::new();
    let mut holder = world.holder(Some(TTL));
    world.work(&mut holder, &writes(1), 20.0);
    drop(holder);
    // The watchdog is gone with its agent, and the arbiter is away: nobody knows who writes.
    world.sim.with(|inner| (inner.guard, inner.away) = (None, true));
    let mut next = world.holder(Some(TTL));
    let until = world.sim.now() + TTL.as_seconds();
    while world.sim.now() < until {
        let pause = next.look(None).pause;
        world.sim.pass(pause.as_secs_f64());
    }
    assert!(!world.runs());
}

#[test]
fn a_planned_run_lets_the_lease_go_on_until_another_site_is_named_and_an_unplanned_one_does_not() {
    let world = World::new();
    let mut holder = world.holder(Some(TTL));
    world.work(&mut holder, &writes(1), 5.0);
    let arbiter = world.sim.arbiter();
    arbiter.claim_epoch(&claim(2, "south", true)).unwrap();
    let beat = world.beat(1);
    world.work(&mut holder, &writes(1), 30.0);
    assert!(world.runs() && world.beat(1) > beat + 5);
    // Given up after all: the writer is the same under the next epoch.
    arbiter.publish_writer("shop", 2, "north", false).unwrap();
    world.work(&mut holder, &writes(2), 30.0);
    assert!(world.runs() && world.beat(2) > 5 && world.sim.with(|inner| inner.stops.is_empty()));
    arbiter.claim_epoch(&claim(3, "south", false)).unwrap();
    let claimed_at = world.sim.now();
    world.work(&mut holder, &writes(2), 30.0);
    let stops = world.sim.with(|inner| inner.stops.clone());
    assert!(!world.runs() && stops[0] - claimed_at <= lease::renew_every(TTL).as_seconds() + 1.0, "{stops:?}");
    assert_eq!(
        stops.len(),
        2,
        "once by the agent, once by the watchdog at the time that it was told, and not again and again"
    );
    insta::assert_snapshot!(world.problem(), @"its lease is not renewed any more: epoch 2 of shop cannot be had: 3 is in force; the lease is not renewed: epoch 2 of shop cannot be had: 3 is in force");
}

#[test]
fn a_site_that_writes_no_more_is_stopped_and_its_watchdog_rests() {
    let world = World::new();
    let mut holder = world.holder(Some(TTL));
    world.work(&mut holder, &writes(1), 5.0);
    let follows = Orders { duty: Duty::Follow, generation: 2, epoch: 2, writer: "south".into() };
    world.work(&mut holder, &follows, 1.0);
    let (guard, guarded) = world.sim.with(|inner| (inner.guard, inner.guarded));
    assert_eq!((world.runs(), guard, guarded), (false, None, None));
    world.work(&mut holder, &follows, 60.0);
    assert!(!world.runs());
}

#[test]
fn a_plan_that_asks_for_no_lease_any_more_withdraws_it_before_the_watchdog_goes() {
    let world = World::new();
    let mut holder = world.holder(Some(TTL));
    world.work(&mut holder, &writes(1), 5.0);
    drop(holder);
    let mut without = world.holder(None);
    world.sim.with(|inner| inner.away = true);
    without.look(Some(&writes(1)));
    assert!(world.sim.with(|inner| inner.guard).is_some());
    world.sim.with(|inner| inner.away = false);
    without.look(Some(&writes(1)));
    assert!(world.runs() && world.sim.with(|inner| inner.guard).is_none());
    let mut observer = LeaseObserver::new(1.0);
    for at in [0.0, 100.0] {
        let lease = world.sim.arbiter().read_lease("north", "shop", 1).unwrap();
        assert_eq!(observer.observe(lease, at), LeaseView::NeverSeen);
    }
    assert!(observer.seen().unwrap().withdrawn);
}
