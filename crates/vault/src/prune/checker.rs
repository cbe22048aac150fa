//! Prunes beside backups, in every order: real code on a storage that lets one operation through at a time.
//!
//! Each actor (a backup, a pruner) runs on a thread of its own and stops before every operation that another can notice. A conductor
//! decides who goes on: first each actor to its end, then with a switch at each place, then with two, … (context bounding: all orders with
//! so many switches are tried). After every change it is asked whether all is well: every point that is there and not suspect has all its
//! chunks and refs, and so has every point whose commit was answered with success. Taking a rule away must be noticed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};

use crate::index;
use crate::log::LogPiece;
use crate::name;
use crate::open::{HostVault, InitOptions, Unlocked, Vault};
use crate::port::{ChunkId, ChunkSink, ChunkSource};
use crate::prune::{KeepRules, MoveRules, PruneOptions, Rule, Swept};
use crate::seal::Identity;
use crate::session::SessionOptions;
use crate::snapshot::{Badge, PointInfo, Position, SnapshotDraft};
use crate::storage::{Listed, MemoryStorage, Put, Storage, StorageError};
use crate::{Result, State};

/// What the actors work on: a vault with some points, as it is copied for each order.
pub(super) struct World {
    pub(super) objects: BTreeMap<String, Vec<u8>>,
    pub(super) state: tempfile::TempDir,
    pub(super) owner: Identity,
    pub(super) fingerprint: String,
    /// When it was made; everything is counted from here.
    day_0: Timestamp,
}

impl World {
    /// Two small packs of which the newest point needs something, and a log with a point in it.
    fn of_small_packs() -> World {
        World::with(|vault| {
            back_up(vault, &[1, 2]).unwrap();
            append(vault, 5).unwrap();
            back_up_at(vault, &[1, 3], 2).unwrap();
            append(vault, 3).unwrap();
        })
    }

    /// Two points that share nothing; the older one is what a prune wants to take.
    pub(super) fn new() -> World {
        World::with(|vault| {
            back_up(vault, &[1, 2]).unwrap();
            back_up(vault, &[3]).unwrap();
        })
    }

    fn with(fill: impl Fn(&HostVault)) -> World {
        let state_directory = tempfile::tempdir().unwrap();
        let state = State::open(state_directory.path(), Some("alpha")).unwrap();
        let storage = Arc::new(MemoryStorage::new());
        let (owner, paper) = (Identity::generate(), Identity::generate());
        let options = InitOptions { recipients: vec![owner.recipient(), paper.recipient()], ..InitOptions::default() };
        let (vault, made) = Vault::init(storage.clone(), &state, &options).unwrap();
        fill(&vault);
        World {
            objects: storage.snapshot(),
            state: state_directory,
            owner,
            fingerprint: made.owner,
            day_0: Timestamp::now(),
        }
    }
}

fn back_up(vault: &HostVault, chunks: &[u8]) -> Result<PointInfo> {
    commit(vault, chunks, None)
}

/// A point that the log goes on from after this transaction.
fn back_up_at(vault: &HostVault, chunks: &[u8], counter: u64) -> Result<PointInfo> {
    commit(vault, chunks, Some(Position { lineage: "l".to_owned(), timeline: 1, counter }))
}

/// Appends so many transactions, one an object.
fn append(vault: &HostVault, count: u64) -> Result<()> {
    let mut writer = vault.log_writer("app", "l", 1)?;
    for _ in 0..count {
        let next = writer.last().map_or(1, |last| last.last + 1);
        let now = Timestamp::now();
        let piece = LogPiece { first: next, last: next, source_time: now, mark: false, final_mark: false };
        writer.append(piece, b"a change")?;
    }
    Ok(())
}

fn commit(vault: &HostVault, chunks: &[u8], position: Option<Position>) -> Result<PointInfo> {
    let session = vault.begin("app", SessionOptions::default())?;
    let ids: Result<Vec<ChunkId>> = chunks.iter().map(|n| Ok(session.put(&[*n; 40])?.id)).collect();
    let ids = ids?;
    let root = ids.iter().flat_map(|id| id.0).collect();
    session.commit(SnapshotDraft {
        root,
        references: ids,
        source_time: Timestamp::now(),
        position,
        ..SnapshotDraft::default()
    })
}

pub(super) fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_directory(&entry.path(), &target),
            false => {
                std::fs::copy(entry.path(), target).unwrap();
            }
        }
    }
}

/// Who acts. Each says how it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Actor {
    /// A backup of these chunks, and then perhaps of those.
    Backup(&'static [&'static [u8]]),
    /// Proposes and performs on the third day, and sweeps on the sixth.
    Prune,
    /// The same on the first and the fourth day: what the backups store is too young to go, their points are not.
    PruneSoon,
    /// As `Prune`, and puts small packs together from two on.
    Compact,
    /// Goes on with what another began, on the sixth day.
    GoOn,
    /// Appends to the log.
    Append,
}

#[derive(Debug, Default)]
struct Turns {
    /// Operations that wait, by actor.
    pending: Vec<Vec<String>>,
    granted: Option<usize>,
    done: Vec<bool>,
    dead: Vec<bool>,
}

#[derive(Debug)]
struct Conductor {
    turns: Mutex<Turns>,
    changed: Condvar,
}

impl Conductor {
    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, turns: MutexGuard<'a, Turns>) -> MutexGuard<'a, Turns> {
        self.changed.wait(turns).unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops until it is this actor's turn.
    fn ask(&self, actor: usize, what: String) -> std::result::Result<(), StorageError> {
        let mut turns = self.turns();
        turns.pending[actor].push(what);
        self.changed.notify_all();
        while turns.granted != Some(actor) {
            turns = self.wait(turns);
        }
        turns.granted = None;
        turns.pending[actor].remove(0);
        self.changed.notify_all();
        self.check_alive(&turns, actor)
    }

    fn check_alive(&self, turns: &Turns, actor: usize) -> std::result::Result<(), StorageError> {
        match turns.dead[actor] {
            false => Ok(()),
            true => Err(StorageError::Gone { location: "killed".to_owned() }),
        }
    }
}

/// What others can notice, or what notices others.
fn is_shared(verb: &str, key: &str) -> bool {
    let kind = key.split('/').next().unwrap_or_default();
    match verb {
        "put" | "delete" => matches!(kind, "prune" | "tombstone" | "snap" | "pack" | "index" | "refs" | "log"),
        "list" => matches!(kind, "prune" | "snap" | "pack" | "tombstone" | "log"),
        _ => matches!(kind, "tombstone"),
    }
}

#[derive(Debug)]
struct Stepped {
    actor: usize,
    conductor: Arc<Conductor>,
    inner: Arc<MemoryStorage>,
}

impl Stepped {
    fn step(&self, verb: &str, key: &str) -> std::result::Result<(), StorageError> {
        match is_shared(verb, key) {
            true => self.conductor.ask(self.actor, format!("{verb} {key}")),
            false => self.conductor.check_alive(&self.conductor.turns(), self.actor),
        }
    }
}

impl Storage for Stepped {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> std::result::Result<Put, StorageError> {
        self.step("put", key)?;
        self.inner.put_if_absent(key, bytes)
    }

    fn put(&self, key: &str, bytes: &[u8]) -> std::result::Result<(), StorageError> {
        self.step("put", key)?;
        self.inner.put(key, bytes)
    }

    fn get(&self, key: &str) -> std::result::Result<Vec<u8>, StorageError> {
        self.step("get", key)?;
        self.inner.get(key)
    }

    fn get_range(&self, key: &str, offset: u64, length: u64) -> std::result::Result<Vec<u8>, StorageError> {
        self.step("get", key)?;
        self.inner.get_range(key, offset, length)
    }

    fn list(&self, prefix: &str) -> std::result::Result<Vec<Listed>, StorageError> {
        self.step("list", prefix)?;
        self.inner.list(prefix)
    }

    fn delete(&self, key: &str) -> std::result::Result<(), StorageError> {
        self.step("delete", key)?;
        self.inner.delete(key)
    }

    fn location(&self) -> String {
        "memory:".to_owned()
    }
}

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
    what: String,
}

/// Knows what every point needs, whatever the code under test says.
struct Judge<'a> {
    storage: &'a MemoryStorage,
    unlocked: Unlocked,
    packs: HashMap<String, Vec<(String, Vec<ChunkId>)>>,
    needs: HashMap<String, Vec<ChunkId>>,
    log_end: u64,
}

impl<'a> Judge<'a> {
    fn new(world: &World, storage: &'a Arc<MemoryStorage>, rule: Option<Rule>) -> Judge<'a> {
        let vault = Vault::open(storage.clone(), None, Some(&world.fingerprint)).unwrap();
        vault.take_away(rule);
        let unlocked = vault.unlock(std::slice::from_ref(&world.owner)).unwrap();
        Judge { storage, unlocked, packs: HashMap::new(), needs: HashMap::new(), log_end: 0 }
    }

    /// What is wrong: a point that is shown as sound, or that was promised, and cannot be restored.
    fn complain(&mut self, promised: &[PointInfo]) -> Option<String> {
        let points = self.unlocked.points(None).unwrap().points;
        let there = self.chunks_there();
        for point in &points {
            let is_promised = promised.iter().any(|p| p.key == point.key && p.hash == point.hash);
            if point.badge == Badge::Suspect && !is_promised {
                continue;
            }
            let needs = self.needs_of(point);
            if let Some(lost) = needs.iter().find(|id| !there.contains(id)) {
                let promise = if is_promised { "promised" } else { "shown as sound" };
                return Some(format!("{} is {promise} and has lost chunk {lost}", point.id));
            }
            if let Err(error) = self.refs_of(point) {
                return Some(format!("{} has lost its refs: {error}", point.id));
            }
        }
        if let Some(wrong) = self.complain_of_log(&points) {
            return Some(wrong);
        }
        // What was promised may be pruned by a later prune, but not vanish without a tombstone of its own.
        promised.iter().find_map(|promise| {
            let shown = points.iter().any(|point| point.key == promise.key && point.hash == promise.hash);
            let stone = self.unlocked.ledger().ok()?;
            let stone = self.unlocked.tombstone(&stone, &promise.host, &promise.dataset, promise.sequence).ok()?;
            let pruned = stone.is_some_and(|stone| stone.hash.to_string() == promise.hash);
            (!shown && !pruned).then(|| format!("{} was promised and is gone", promise.id))
        })
    }

    /// The log is whole from where it begins, that is no later than the first point in it, to the end that was seen.
    fn complain_of_log(&mut self, points: &[PointInfo]) -> Option<String> {
        // As somebody who has read nothing yet.
        let fresh = Vault::open(self.unlocked.storage().clone(), None, Some(self.unlocked.owner())).unwrap();
        let trail = fresh.log_trail("app", "l").unwrap();
        if let Some(finding) = trail.findings.first() {
            return Some(format!("the log is broken: {}", finding.message));
        }
        let (first, last) = (trail.entries.first()?.first, trail.entries.last()?.last);
        if last < self.log_end {
            return Some(format!("the log ended at {}, and now at {last}", self.log_end));
        }
        self.log_end = last;
        let counters = points.iter().filter_map(|point| point.position.as_ref()).map(|position| position.counter);
        counters
            .min()
            .filter(|counter| first > counter + 1)
            .map(|counter| format!("the log begins at {first}, after {counter}"))
    }

    fn needs_of(&mut self, point: &PointInfo) -> Vec<ChunkId> {
        let unlocked = &self.unlocked;
        let read = || unlocked.read_root(point).unwrap().chunks(32).map(|id| ChunkId(id.try_into().unwrap())).collect();
        self.needs.entry(point.hash.clone()).or_insert_with(read).clone()
    }

    fn refs_of(&self, point: &PointInfo) -> Result<()> {
        let snapshot = self.unlocked.read_snapshot(&point.host, &point.dataset, point.sequence)?;
        let roster = self.unlocked.roster();
        crate::refs::check(self.storage, &roster, &point.host, &point.dataset, &snapshot.head.refs, &mut HashSet::new())
    }

    fn chunks_there(&mut self) -> HashSet<ChunkId> {
        let keys: HashSet<String> = self.storage.list("pack/").unwrap().into_iter().map(|o| o.key).collect();
        for object in self.storage.list("index/").unwrap() {
            if !self.packs.contains_key(&object.key) {
                let roster = self.unlocked.roster();
                let keys = std::slice::from_ref(self.unlocked.refs.as_ref().unwrap());
                let packs = match index::parse_moved_key(&object.key) {
                    Some((host, dataset, of)) => {
                        let moved = index::read_moved(self.storage, &roster, &host, &dataset, of);
                        moved.and_then(|moved| moved.open_body(keys)).unwrap().packs
                    }
                    None => {
                        let parts: Vec<&str> = object.key.split('/').collect();
                        let number = name::parse_number(parts[3]).unwrap();
                        let index = index::read(self.storage, &roster, parts[1], parts[2], number);
                        index.and_then(|index| index.open_body(keys)).unwrap().packs
                    }
                };
                let packs = packs.iter().map(|pack| {
                    let ids = pack.frames.iter().flat_map(|frame| frame.chunks()).map(|(id, _)| id).collect();
                    (name::pack(&pack.hash.0), ids)
                });
                self.packs.insert(object.key.clone(), packs.collect());
            }
        }
        let there = self.packs.values().flatten().filter(|(key, _)| keys.contains(key));
        there.flat_map(|(_, ids)| ids.iter().copied()).collect()
    }
}

/// One run in one order. Answers its steps, or what went wrong.
fn run(world: &World, actors: &[Actor], order: &Order, rule: Option<Rule>) -> std::result::Result<Vec<Step>, String> {
    let storage = Arc::new(MemoryStorage::from_snapshot(world.objects.clone()));
    let state = tempfile::tempdir().unwrap();
    copy_directory(world.state.path(), state.path());
    let turns = Turns {
        pending: vec![Vec::new(); actors.len()],
        granted: None,
        done: vec![false; actors.len()],
        dead: vec![false; actors.len()],
    };
    let conductor = Arc::new(Conductor { turns: Mutex::new(turns), changed: Condvar::new() });
    let promised: Mutex<Vec<PointInfo>> = Mutex::default();
    std::thread::scope(|scope| {
        for (place, actor) in actors.iter().enumerate() {
            let stepped = Stepped { actor: place, conductor: conductor.clone(), inner: storage.clone() };
            let (conductor, promised, storage, state) = (&conductor, &promised, &storage, state.path());
            scope.spawn(move || {
                act(world, *actor, Arc::new(stepped), storage, state, promised, rule);
                conductor.turns().done[place] = true;
                conductor.changed.notify_all();
            });
        }
        let mut judge = Judge::new(world, &storage, rule.filter(|rule| *rule == Rule::UnseenIsSuspect));
        conduct(&conductor, actors.len(), order, &mut || judge.complain(&promised.lock().unwrap()))
    })
}

/// Lets one operation through at a time, in this order. Goes on to the end whatever was found, so that all threads end.
fn conduct(
    conductor: &Conductor,
    actors: usize,
    order: &Order,
    complain: &mut dyn FnMut() -> Option<String>,
) -> std::result::Result<Vec<Step>, String> {
    let mut steps: Vec<Step> = Vec::new();
    let mut wrong = None;
    loop {
        let mut turns = conductor.turns();
        let is_still = |turns: &Turns, actor: usize| turns.done[actor] || !turns.pending[actor].is_empty();
        while turns.granted.is_some() || !(0..actors).all(|actor| is_still(&turns, actor)) {
            turns = conductor.wait(turns);
        }
        // What was promised after the last change is looked at in the end.
        let is_over = turns.done.iter().all(|done| *done);
        let changed = is_over || steps.last().is_none_or(|step| !step.what.starts_with("list"));
        if wrong.is_none() && changed {
            drop(turns);
            wrong = complain().map(|what| (what, steps.len()));
            turns = conductor.turns();
        }
        let enabled: Vec<usize> = (0..actors).filter(|actor| !turns.done[*actor]).collect();
        let Some(first) = enabled.first() else { break };
        let here = steps.len();
        let asked = order.switches.iter().find(|(step, _)| *step == here).map(|(_, actor)| *actor);
        let last = steps.last().map(|step| step.chosen);
        let chosen = asked.or(last).filter(|actor| enabled.contains(actor)).unwrap_or(*first);
        if order.kill == Some(here) {
            turns.dead[chosen] = true;
        }
        let what = turns.pending[chosen].first().cloned().unwrap_or_default();
        steps.push(Step { enabled, chosen, what });
        turns.granted = Some(chosen);
        conductor.changed.notify_all();
    }
    match wrong {
        None => Ok(steps),
        Some((what, at)) => {
            let trace: Vec<String> =
                steps.iter().take(at).map(|step| format!("  {}: {}", step.chosen, step.what)).collect();
            Err(format!("{what}\n{order:?}\n{}", trace.join("\n")))
        }
    }
}

fn act(
    world: &World,
    actor: Actor,
    stepped: Arc<dyn Storage>,
    storage: &MemoryStorage,
    state: &Path,
    promised: &Mutex<Vec<PointInfo>>,
    rule: Option<Rule>,
) {
    let days = |days: i64| world.day_0 + SignedDuration::from_hours(24 * days);
    let at = |day: i64| {
        storage.set_clock(days(day));
        PruneOptions {
            rules: Some(KeepRules { last: 1, ..KeepRules::default() }),
            min_age: SignedDuration::ZERO,
            now: Some(days(day)),
            moves: MoveRules { small_packs: if actor == Actor::Compact { 2 } else { 0 }, ..MoveRules::default() },
            ..PruneOptions::default()
        }
    };
    let work = || -> Result<()> {
        if let Actor::Backup(rounds) = actor {
            let state = State::open(state, None)?;
            for chunks in rounds {
                let vault = HostVault::open(stepped.clone(), state.clone(), Some(&world.fingerprint))?;
                vault.take_away(rule);
                let point = back_up(&vault, chunks)?;
                promised.lock().unwrap().push(point);
            }
            return Ok(());
        }
        if actor == Actor::Append {
            let vault = HostVault::open(stepped.clone(), State::open(state, None)?, Some(&world.fingerprint))?;
            append(&vault, 2)?;
            return append(&vault, 1);
        }
        let vault = Vault::open(stepped.clone(), None, Some(&world.fingerprint))?;
        vault.take_away(rule);
        let pruner = vault.unlock(std::slice::from_ref(&world.owner))?.pruner()?;
        let (first, second) = if actor == Actor::PruneSoon { (1, 4) } else { (3, 6) };
        if actor != Actor::GoOn {
            let options = at(first);
            let proposed = pruner.propose(&options)?;
            if proposed.is_empty() {
                return Ok(());
            }
            pruner.perform(&proposed, &options)?;
        }
        match pruner.go_on(&at(second))? {
            Swept::Nothing | Swept::Done(_) | Swept::Waits(_) => Ok(()),
        }
    };
    // What an actor could not do is its own matter: it may have been killed, or told to begin again.
    let _ = work();
}

/// Every order with at most so many switches. Answers how many there were, or the first that went wrong.
fn every_order(
    world: &World,
    actors: &[Actor],
    switches_max: usize,
    rule: Option<Rule>,
) -> std::result::Result<usize, String> {
    every_order_from(world, actors, Order::default(), switches_max, rule)
}

fn every_order_from(
    world: &World,
    actors: &[Actor],
    begin: Order,
    switches_max: usize,
    rule: Option<Rule>,
) -> std::result::Result<usize, String> {
    let mut orders = vec![begin];
    let mut tried = 0;
    while let Some(order) = orders.pop() {
        let steps = run(world, actors, &order, rule)?;
        tried += 1;
        if order.switches.len() == switches_max {
            continue;
        }
        let from = order.switches.last().map_or(0, |(step, _)| step + 1);
        for (place, step) in steps.iter().enumerate().skip(from) {
            for other in step.enabled.iter().filter(|actor| **actor != step.chosen) {
                let mut next = order.clone();
                next.switches.push((place, *other));
                orders.push(next);
            }
        }
    }
    Ok(tried)
}

/// A backup that builds on what only the older point holds.
const REUSES: Actor = Actor::Backup(&[&[1, 2, 4]]);
/// Another one, of new things, and once more.
const GOES_ON: Actor = Actor::Backup(&[&[5], &[6]]);

/// One that needs nothing of what is there, and may sleep for long.
const SLEEPS: Actor = Actor::Backup(&[&[7]]);

/// The sleeper begins; where it falls asleep the other backup commits twice, and then the prune takes what it can.
const SLEEPER_FIRST: [Actor; 3] = [Actor::PruneSoon, GOES_ON, SLEEPS];

fn sleeper_first() -> Order {
    Order { switches: vec![(0, 2)], kill: None }
}

#[test]
fn a_backup_and_a_prune_in_every_order() {
    let world = World::new();
    for actors in [[REUSES, Actor::Prune], [Actor::Prune, REUSES]] {
        let tried = every_order(&world, &actors, 2, None).unwrap_or_else(|wrong| panic!("{wrong}"));
        assert!(tried > 200, "{tried}");
    }
}

#[test]
fn two_backups_and_a_prune_in_every_order_of_one_switch() {
    let world = World::new();
    for actors in [[REUSES, GOES_ON, Actor::Prune], [GOES_ON, Actor::Prune, REUSES], [Actor::Prune, REUSES, GOES_ON]] {
        let tried = every_order(&world, &actors, 1, None).unwrap_or_else(|wrong| panic!("{wrong}"));
        assert!(tried > 30, "{tried}");
    }
    let slept = every_order_from(&world, &SLEEPER_FIRST, sleeper_first(), 2, None);
    assert!(slept.unwrap_or_else(|wrong| panic!("{wrong}")) > 10);
}

#[test]
fn two_pruners_and_a_backup_in_every_order_of_one_switch() {
    let world = World::new();
    for actors in [[Actor::Prune, Actor::Prune, REUSES], [REUSES, Actor::Prune, Actor::GoOn]] {
        every_order(&world, &actors, 1, None).unwrap_or_else(|wrong| panic!("{wrong}"));
    }
}

/// Packs are put together and the log is cut and gathered, while backups build on what moves and the log grows.
#[test]
fn a_backup_and_a_move_in_every_order() {
    let world = World::of_small_packs();
    for actors in [[REUSES, Actor::Compact], [Actor::Compact, REUSES]] {
        let tried = every_order(&world, &actors, 1, None).unwrap_or_else(|wrong| panic!("{wrong}"));
        assert!(tried > 8, "{tried}");
    }
    for actors in [[Actor::Append, Actor::Compact], [Actor::Compact, Actor::Append]] {
        every_order(&world, &actors, 1, None).unwrap_or_else(|wrong| panic!("{wrong}"));
    }
    in_orders_by_dice(&world, &[REUSES, Actor::Compact, Actor::Append, Actor::Compact, Actor::GoOn], 40);
    let moved = run(&world, &[Actor::Compact], &Order::default(), None).unwrap_or_else(|wrong| panic!("{wrong}"));
    let did = |what: &str| moved.iter().any(|step| step.what.contains(what));
    assert!(did("put index/alpha/app/moved-") && did("delete pack/") && did("gathered/") && did("delete log/"));
}

#[test]
fn whoever_is_killed_in_a_move_the_rest_goes_on() {
    let world = World::of_small_packs();
    for actors in [[REUSES, Actor::Compact, Actor::GoOn], [Actor::Compact, Actor::Compact, REUSES]] {
        let steps = run(&world, &actors, &Order::default(), None).unwrap_or_else(|wrong| panic!("{wrong}"));
        for kill in 0..steps.len() {
            let order = Order { kill: Some(kill), ..Order::default() };
            run(&world, &actors, &order, None).unwrap_or_else(|wrong| panic!("{wrong}"));
        }
    }
}

#[test]
fn whoever_is_killed_at_any_step_the_rest_goes_on() {
    let world = World::new();
    for actors in [[REUSES, Actor::Prune, Actor::GoOn], [Actor::Prune, REUSES, Actor::GoOn]] {
        let steps = run(&world, &actors, &Order::default(), None).unwrap_or_else(|wrong| panic!("{wrong}"));
        for kill in 0..steps.len() {
            let order = Order { kill: Some(kill), ..Order::default() };
            run(&world, &actors, &order, None).unwrap_or_else(|wrong| panic!("{wrong}"));
        }
    }
}

/// Orders by dice, with more actors and switches than can all be tried.
#[test]
fn many_actors_in_orders_by_dice() {
    let actors = [REUSES, Actor::Prune, GOES_ON, Actor::Prune, Actor::GoOn];
    in_orders_by_dice(&World::new(), &actors, 60);
}

fn in_orders_by_dice(world: &World, actors: &[Actor], count: u64) {
    for seed in 0..count {
        let dice = |n: u64| {
            u64::from_le_bytes(
                crate::crypt::hash(&[seed.to_le_bytes(), n.to_le_bytes()].concat())[..8].try_into().unwrap(),
            )
        };
        let count = 2 + dice(0) % 10;
        let switches = (1..=count).map(|n| ((dice(n) % 220) as usize, (dice(100 + n) % 5) as usize)).collect();
        let kill = (dice(200) % 3 == 0).then(|| (dice(201) % 200) as usize);
        let order = Order { switches, kill };
        run(world, actors, &order, None).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
    }
}

/// The checker is worth something only if it notices that a rule is missing.
#[test]
fn without_any_one_rule_something_is_lost() {
    let world = World::new();
    for rule in [Rule::SweepLooksAgain, Rule::WriterLooks, Rule::UnseenIsSuspect, Rule::LooksWhileDeleting] {
        let found = every_order(&world, &[REUSES, Actor::Prune], 2, Some(rule));
        assert!(found.is_err(), "{rule:?}: {found:?}");
    }
    let found = every_order_from(&world, &SLEEPER_FIRST, sleeper_first(), 2, Some(Rule::NumbersAreNotReused));
    assert!(found.is_err(), "{found:?}");
    let found = every_order(&World::of_small_packs(), &[REUSES, Actor::Compact], 0, Some(Rule::CutsStopAtPoints));
    assert!(found.is_err(), "{found:?}");
}

/// And its judge must know a loss when it sees one.
#[test]
fn the_judge_notices_a_pack_that_is_gone() {
    let world = World::new();
    let storage = Arc::new(MemoryStorage::from_snapshot(world.objects.clone()));
    let mut judge = Judge::new(&world, &storage, None);
    assert_eq!(judge.complain(&[]), None);
    let pack = storage.list("pack/").unwrap().pop().unwrap();
    storage.delete(&pack.key).unwrap();
    assert!(judge.complain(&[]).unwrap().contains("has lost chunk"));
    let unlocked = Vault::open(storage.clone(), None, Some(&world.fingerprint)).unwrap();
    let unlocked = unlocked.unlock(std::slice::from_ref(&world.owner)).unwrap();
    let restorable = unlocked.points(None).unwrap().points.iter().all(|point| {
        let source = unlocked.source("app").unwrap();
        let root = unlocked.read_root(point).unwrap();
        root.chunks(32).all(|id| source.get(&ChunkId(id.try_into().unwrap())).is_ok())
    });
    assert!(!restorable);
}
