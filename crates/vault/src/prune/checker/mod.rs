//! Prunes beside backups of two hosts, in every order: real code on a storage that lets one operation through at a time.
//!
//! Each actor (a backup, a pruner, who holds or freezes) runs on a thread of its own and stops before every operation that another can
//! notice. A conductor decides who goes on: in every order that differs (`reduce.rs`: small programs, to the end), with a switch or two
//! at each place, or by dice. After every change that could do harm a judge is asked whether all is well: every point that is there and not
//! suspect has all its chunks and refs, and so has every point whose commit was answered with success; what was held in time is there.
//! In the end whoever failed must have had a known reason, and after the next backups and one calm prune nothing is left that no rule
//! wants. Taking a rule away must be noticed.

mod actors;
mod judge;
mod reduce;
mod stage;
mod tests;
mod world;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::error::VaultError;
use crate::open::HostVault;
use crate::prune::live::{self, Needed};
use crate::prune::{FOLD_AFTER, Rule, Swept};
use crate::storage::{MemoryStorage, Storage};
use crate::{Result, State};

use self::actors::{Actor, Part, may_be_told};
use self::judge::{Judge, Owed, ReadBefore};
use self::reduce::Orders;
use self::stage::{Conductor, Operation, Stepped, Verb};
pub(super) use self::world::{World, copy_directory};
use self::world::{back_up, directory, rules};

type Verdict<T> = std::result::Result<T, String>;

/// Where the actors are switched, and where one is killed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Order {
    /// At this step, this actor goes on.
    switches: Vec<(usize, usize)>,
    /// Whoever is at this step dies in it.
    kill: Option<usize>,
}

/// One step of a run: who could have gone on, who did, what it was.
#[derive(Debug, Clone)]
struct Step {
    enabled: Vec<usize>,
    chosen: usize,
    what: Operation,
}

/// What came of a run.
#[derive(Debug)]
struct Ran {
    steps: Vec<Step>,
    /// The actors that were told something, and the killed.
    failed: Vec<usize>,
    /// What the rest of it would have been, was tried in another order.
    cut_short: bool,
}

/// Who goes on, of those that wait (with their operations); None ends the run.
type Choose<'a> = dyn FnMut(usize, &[Option<Operation>], Option<usize>) -> Option<usize> + 'a;

impl Order {
    fn choose(&self, step: usize, pending: &[Option<Operation>], last: Option<usize>) -> Option<usize> {
        let asked = self.switches.iter().find(|(place, _)| *place == step).map(|(_, actor)| *actor);
        let can = |actor: &usize| pending.get(*actor).is_some_and(Option::is_some);
        asked.or(last).filter(can).or_else(|| (0..pending.len()).find(can))
    }
}

/// A program, and how its orders are looked at.
struct Program<'a> {
    world: &'a World,
    actors: &'a [Actor],
    rule: Option<Rule>,
    /// Ends that were seen before are not gone on from again.
    ends: Mutex<HashSet<String>>,
    read: Mutex<ReadBefore>,
}

impl<'a> Program<'a> {
    fn of(world: &'a World, actors: &'a [Actor]) -> Program<'a> {
        Program { world, actors, rule: None, ends: Mutex::default(), read: Mutex::default() }
    }

    /// One run in one order. Answers its steps, or what went wrong.
    fn run(&self, kill: Option<usize>, choose: &mut Choose<'_>) -> Verdict<Ran> {
        let storage = Arc::new(MemoryStorage::from_snapshot(self.world.objects.clone()).with_classes());
        let state = directory();
        copy_directory(self.world.state.path(), state.path());
        let conductor = Arc::new(Conductor::of(self.actors.len()));
        let clock = Arc::new(Mutex::new(self.world.day(0)));
        let owed: Mutex<Owed> = Mutex::default();
        let outcomes: Mutex<BTreeMap<usize, Result<()>>> = Mutex::default();
        let (mut ran, dead) = std::thread::scope(|scope| {
            for (place, actor) in self.actors.iter().enumerate() {
                let inner = storage.clone();
                let stepped = Stepped { actor: place, conductor: conductor.clone(), inner, clock: clock.clone() };
                let part = Part { world: self.world, stepped, state: state.path(), owed: &owed, rule: self.rule };
                let (conductor, outcomes) = (&conductor, &outcomes);
                scope.spawn(move || {
                    // One that panics ends, too, so that nobody waits for it.
                    let _end = Leaves { conductor, actor: place };
                    let outcome = part.play(*actor);
                    outcomes.lock().unwrap().insert(place, outcome);
                });
            }
            let of_reader = |rule: &Rule| matches!(rule, Rule::UnseenIsSuspect | Rule::HeadsOfEachHost);
            let mut judge = Judge::new(self.world, &storage, self.rule.filter(of_reader), &self.read);
            conduct(&conductor, kill, choose, &mut || judge.complain(&owed.lock().unwrap()))
        })?;
        if ran.cut_short {
            return Ok(ran);
        }
        for (place, outcome) in outcomes.into_inner().unwrap() {
            let Err(error) = outcome else { continue };
            if Some(place) != dead && !may_be_told(self.actors[place], &error) {
                return Err(format!("{:?} failed: {error:?}\n{}", self.actors[place], trace(&ran.steps)));
            }
            ran.failed.push(place);
        }
        let owed = owed.into_inner().unwrap();
        if self.rule.is_none() && self.is_new_end(&storage, &ran) {
            close(self, &storage, state.path(), &owed).map_err(|wrong| format!("{wrong}\n{}", trace(&ran.steps)))?;
        }
        Ok(ran)
    }

    fn in_order(&self, order: &Order) -> Verdict<Ran> {
        self.run(order.kill, &mut |step, pending, last| order.choose(step, pending, last))
    }

    /// What is there of what was there before, how much was added, and who failed: ends that are alike in it go on alike.
    fn is_new_end(&self, storage: &MemoryStorage, ran: &Ran) -> bool {
        let mut added: BTreeMap<String, usize> = BTreeMap::new();
        let mut kept = BTreeSet::new();
        for object in storage.list("").unwrap() {
            let is_named =
                matches!(object.key.split('/').next(), Some("snap" | "prune" | "tombstone" | "hold" | "freeze"));
            if is_named || self.world.objects.contains_key(&object.key) {
                kept.insert(object.key);
            } else {
                *added.entry(object.key.split('/').next().unwrap_or_default().to_owned()).or_default() += 1;
            }
        }
        self.ends.lock().unwrap().insert(format!("{:?} {kept:?} {added:?}", ran.failed))
    }

    /// Every order with at most so many switches. Answers how many there were, or the first that went wrong.
    fn every_order(&self, begin: Order, switches_max: usize) -> Verdict<usize> {
        let mut orders = vec![begin];
        let mut tried = 0;
        while let Some(order) = orders.pop() {
            let steps = self.in_order(&order)?.steps;
            tried += 1;
            if order.switches.len() == switches_max {
                continue;
            }
            let from = order.switches.last().map_or(0, |(step, _)| step + 1);
            for (place, step) in steps.iter().enumerate().skip(from) {
                // What is read by its name is there or not since the listing that named it; but log objects are gathered.
                if step.what.verb == Verb::Get && !matches!(step.what.kind(), "tombstone" | "log") {
                    continue;
                }
                for other in step.enabled.iter().filter(|actor| **actor != step.chosen) {
                    let mut next = order.clone();
                    next.switches.push((place, *other));
                    orders.push(next);
                }
            }
        }
        Ok(tried)
    }

    /// Every order that differs, to the end. Answers how many there were.
    fn every_order_that_differs(&self, orders_max: usize) -> Verdict<usize> {
        let (mut orders, mut tried) = (Orders::default(), 0);
        loop {
            orders.restart();
            let ran = self.run(None, &mut |_, pending, _| orders.choose(pending))?;
            tried += usize::from(!ran.cut_short);
            assert!(tried <= orders_max, "there are more than {orders_max} orders of {:?}", self.actors);
            if !orders.turn() {
                return Ok(tried);
            }
        }
    }
}

struct Leaves<'a> {
    conductor: &'a Conductor,
    actor: usize,
}

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.conductor.end(self.actor);
    }
}

fn trace(steps: &[Step]) -> String {
    let writes = |step: &&Step| !matches!(step.what.verb, Verb::Get);
    let lines: Vec<String> =
        steps.iter().filter(writes).map(|step| format!("  {}: {}", step.chosen, step.what)).collect();
    lines.join("\n")
}

/// Lets one operation through at a time. Goes on to the end whatever was found, so that all threads end. Answers who was killed, too.
fn conduct(
    conductor: &Conductor,
    kill: Option<usize>,
    choose: &mut Choose<'_>,
    complain: &mut dyn FnMut() -> Option<String>,
) -> Verdict<(Ran, Option<usize>)> {
    let mut steps: Vec<Step> = Vec::new();
    let (mut wrong, mut cut_short, mut killed) = (None, false, None);
    loop {
        let mut turns = conductor.when_still();
        let is_over = turns.done.iter().all(|done| *done);
        let harmed = is_over || steps.last().is_none_or(|step| step.what.may_harm());
        if wrong.is_none() && !cut_short && harmed {
            drop(turns);
            wrong = complain().map(|what| (what, steps.len()));
            turns = conductor.when_still();
        }
        if is_over {
            break;
        }
        let waits = |actor: usize| turns.pending[actor].first().filter(|_| !turns.done[actor]).cloned();
        let pending: Vec<Option<Operation>> = (0..turns.done.len()).map(waits).collect();
        let last = steps.last().map(|step| step.chosen);
        let chosen = if cut_short || wrong.is_some() { None } else { choose(steps.len(), &pending, last) };
        let Some(chosen) = chosen else {
            // Nobody does anything any more; they only come to their ends.
            cut_short = true;
            turns.dead.fill(true);
            if let Some(next) = pending.iter().position(Option::is_some) {
                conductor.grant(turns, next);
            }
            continue;
        };
        if kill == Some(steps.len()) {
            turns.dead[chosen] = true;
            killed = Some(chosen);
        }
        let enabled = (0..pending.len()).filter(|actor| pending[*actor].is_some()).collect();
        let Some(what) = pending[chosen].clone() else { continue };
        steps.push(Step { enabled, chosen, what });
        conductor.grant(turns, chosen);
    }
    match wrong {
        None => Ok((Ran { steps, failed: Vec::new(), cut_short }, killed)),
        Some((what, at)) => Err(format!("{what}\n{}", trace(&steps[..at.min(steps.len())]))),
    }
}

/// After it all: the next backups succeed, and one calm prune leaves what rules ask for, and nothing else.
fn close(program: &Program<'_>, storage: &Arc<MemoryStorage>, state: &Path, owed: &Owed) -> Verdict<()> {
    let world = program.world;
    let failed = |what: &str, error: VaultError| format!("afterwards {what} failed: {error:?}");
    storage.set_clock(world.day(20));
    for (host, chunk) in [("alpha", 101), ("beta", 102)] {
        let next = || {
            let state = State::open(&state.join(host), None)?;
            let vault = HostVault::open(storage.clone(), state, Some(&world.fingerprint))?;
            back_up(&vault, "app", &[1, 2, chunk])
        };
        next().map_err(|error| failed(host, error))?;
    }
    let prune = || -> Result<Swept> {
        let unlocked = world.unlock(storage.clone())?;
        if unlocked.frozen()?.0.is_some() {
            unlocked.release_freeze("it is over")?;
        }
        let pruner = unlocked.pruner()?;
        let at = |day: i64| {
            storage.set_clock(world.day(day));
            rules(world.day(day), 0, FOLD_AFTER)
        };
        pruner.go_on(&at(30))?;
        // By now their backups are as old as a lease.
        let proposed = pruner.propose(&at(33))?;
        pruner.perform(&proposed, &at(33))?;
        pruner.go_on(&at(36))
    };
    let swept = prune().map_err(|error| failed("the prune", error))?;
    if !matches!(swept, Swept::Done(_)) {
        return Err(format!("afterwards the prune did not end: {swept:?}"));
    }
    let left = || what_is_left(world, storage, owed);
    match left().map_err(|error| failed("looking at what is left", error))? {
        None => Ok(()),
        Some(wrong) => Err(format!("after one calm prune {wrong}")),
    }
}

/// What is there although no rule asks for it, or is not there although it was held.
fn what_is_left(world: &World, storage: &Arc<MemoryStorage>, owed: &Owed) -> Result<Option<String>> {
    let unlocked = world.unlock(storage.clone())?;
    let points = unlocked.points(None)?;
    let alarms: Vec<_> = points.findings.iter().filter(|finding| finding.code != "freshness-unproven").collect();
    if !alarms.is_empty() {
        return Ok(Some(format!("there are findings: {alarms:?}")));
    }
    let mut chains: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for point in &points.points {
        let newest = chains.entry((&point.host, &point.dataset)).or_default();
        *newest = point.sequence.max(*newest);
    }
    let is_asked = |point: &&crate::snapshot::PointInfo| {
        chains.get(&(point.host.as_str(), point.dataset.as_str())) == Some(&point.sequence)
    };
    let holds = unlocked.holds()?.0;
    let is_held = |point: &crate::snapshot::PointInfo| holds.iter().any(|hold| hold.covers(&point.id, &point.dataset));
    if let Some(point) = points.points.iter().find(|point| !is_asked(point) && !is_held(point)) {
        return Ok(Some(format!("{} is still there", point.id)));
    }
    if let Some(held) = owed.held.iter().find(|held| points.points.iter().all(|point| point.id != **held)) {
        return Ok(Some(format!("{held} was held and is gone")));
    }
    let pruner = unlocked.pruner()?;
    let snapshots = unlocked.read_chains(None)?.0;
    let needed = Needed::of(&unlocked, &pruner.refs, snapshots.iter().map(|snapshot| &**snapshot))?;
    let (survey, _) = live::survey(&unlocked, &pruner.refs, &needed, &HashSet::new())?;
    if !survey.is_whole() {
        return Ok(Some("a point has lost chunks".to_owned()));
    }
    let there = |prefix: &str| live::list(&unlocked, prefix).map(|listed| listed.into_iter().map(|o| o.key));
    let mut idle: Vec<String> =
        there("snap/")?.filter(|key| points.points.iter().all(|point| point.key != *key)).collect();
    idle.extend(there("refs/")?.filter(|key| !needed.refs.contains(key)));
    idle.extend(survey.packs.iter().filter(|(_, pack)| pack.live_bytes == 0).map(|(key, _)| key.clone()));
    idle.extend(live::idle_indexes(&survey, &HashSet::new()).into_iter().map(|index| index.key));
    Ok((!idle.is_empty()).then(|| format!("{idle:?} are still there")))
}
