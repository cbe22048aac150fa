//! The programs: who acts beside whom. Each says how many orders there are at least.

use std::sync::{Arc, Mutex};

use crate::port::{ChunkId, ChunkSource};
use crate::prune::Rule;
use crate::storage::{MemoryStorage, Storage};

use super::actors::Actor;
use super::judge::{Judge, Owed};
use super::{Order, Program, Verdict, World};

/// A backup that builds on what only the older point holds.
const REUSES: Actor = Actor::Backup("alpha", "app", &[&[1, 2, 4]]);
/// The same by the other host.
const BETA_REUSES: Actor = Actor::Backup("beta", "app", &[&[1, 2, 4]]);
/// Another one, of new things, and once more.
const GOES_ON: Actor = Actor::Backup("alpha", "app", &[&[5], &[6]]);
/// One that needs nothing of what is there, and may sleep for long.
const SLEEPS: Actor = Actor::Backup("alpha", "app", &[&[7]]);

/// The sleeper begins; where it falls asleep the other backup commits twice, and then the prune takes what it can.
const SLEEPER_FIRST: [Actor; 3] = [Actor::PruneSoon, GOES_ON, SLEEPS];

fn sleeper_first() -> Order {
    Order { switches: vec![(0, 2)], kill: None }
}

#[track_caller]
fn right<T>(verdict: Verdict<T>) -> T {
    verdict.unwrap_or_else(|wrong| panic!("{wrong}"))
}

/// Every order that differs, to the end. There are so many at least.
#[track_caller]
fn every_order_that_differs(world: &World, actors: &[Actor], at_least: usize) {
    let tried = right(Program::of(world, actors).every_order_that_differs(5000));
    assert!(tried >= at_least, "{tried} orders of {actors:?}");
}

/// Every order with at most so many switches. There are so many at least.
#[track_caller]
fn every_order(world: &World, actors: &[Actor], begin: Order, switches: usize, at_least: usize) {
    let tried = right(Program::of(world, actors).every_order(begin, switches));
    assert!(tried >= at_least, "{tried} orders of {actors:?}");
}

/// In the calm order nobody is told anything, and the prune deletes.
#[test]
fn in_the_calm_order_everybody_succeeds() {
    let (small, two) = (World::of_small_packs_of_two_hosts(), World::of_two_hosts());
    for (world, actors) in [
        (&two, &[REUSES, BETA_REUSES, Actor::Prune][..]),
        (&two, &[Actor::Prune, REUSES, BETA_REUSES]),
        (&small, &[Actor::Compact, REUSES, BETA_REUSES]),
    ] {
        let ran = right(Program::of(world, actors).in_order(&Order::default()));
        assert!(ran.failed.is_empty(), "{:?} of {actors:?}", ran.failed);
        assert!(ran.steps.iter().any(|step| step.what.to_string().starts_with("Delete pack/")), "{actors:?}");
    }
}

#[test]
fn a_backup_and_a_sweep_in_every_order_that_differs() {
    every_order_that_differs(&World::condemned(), &[REUSES, Actor::GoOn], 1000);
}

#[test]
fn a_backup_and_a_proposal_in_every_order_that_differs() {
    every_order_that_differs(&World::new(), &[REUSES, Actor::Propose], 300);
}

#[test]
fn a_backup_beside_a_fold_in_every_order_of_one_switch() {
    let world = World::pruned_once();
    for actors in [[SLEEPS, Actor::Propose], [Actor::Propose, SLEEPS]] {
        every_order(&world, &actors, Order::default(), 1, 10);
    }
    let ran = right(Program::of(&world, &[Actor::Propose]).in_order(&Order::default()));
    assert!(ran.steps.iter().any(|step| step.what.key.ends_with("/fold") && !step.what.reads()));
}

#[test]
fn two_pruners_in_every_order_of_one_switch() {
    let world = World::condemned();
    for actors in [[Actor::GoOn, Actor::GoOn], [Actor::GoOn, Actor::Abandon], [Actor::Abandon, Actor::GoOn]] {
        every_order(&world, &actors, Order::default(), 1, 4);
    }
}

#[test]
fn holds_and_freezes_beside_a_sweep_in_every_order_that_differs() {
    let world = World::condemned();
    every_order_that_differs(&world, &[Actor::Hold, Actor::GoOn], 15);
    every_order_that_differs(&world, &[Actor::Freeze, Actor::GoOn], 5);
}

#[test]
fn giving_up_beside_a_prune_and_a_backup_in_every_order_of_one_switch() {
    let world = World::with_a_bad_pack();
    for actors in [[Actor::GiveUp, Actor::Propose], [Actor::Propose, Actor::GiveUp], [REUSES, Actor::GiveUp]] {
        every_order(&world, &actors, Order::default(), 1, 10);
    }
}

#[test]
fn two_hosts_and_a_prune_in_every_order_of_one_switch() {
    let world = World::condemned_of_two_hosts();
    for (actors, at_least) in [([REUSES, BETA_REUSES, Actor::GoOn], 35), ([BETA_REUSES, Actor::GoOn, REUSES], 60)] {
        every_order(&world, &actors, Order::default(), 1, at_least);
    }
}

#[test]
fn a_backup_that_sleeps_while_others_go_on() {
    every_order(&World::new(), &SLEEPER_FIRST, sleeper_first(), 2, 10);
}

/// Packs of two hosts are put together and a log is cut and gathered, while backups build on what moves and the log grows.
#[test]
fn backups_and_a_move_in_every_order_of_one_switch() {
    let world = World::of_small_packs();
    every_order(&world, &[Actor::Append, Actor::Compact], Order::default(), 1, 5);
    let two = World::of_small_packs_of_two_hosts();
    every_order(&two, &[BETA_REUSES, Actor::Compact], Order::default(), 1, 8);
    in_orders_by_dice(&world, &[REUSES, Actor::Compact, Actor::Append, Actor::Compact, Actor::GoOn], 12);
    in_orders_by_dice(&two, &[REUSES, Actor::Compact, BETA_REUSES, Actor::Compact, Actor::GoOn], 12);
    let moved = right(Program::of(&world, &[Actor::Compact]).in_order(&Order::default()));
    let did = |what: &str| moved.steps.iter().any(|step| step.what.to_string().contains(what));
    assert!(did("Put index/alpha/app/moved-") && did("Delete pack/") && did("gathered/") && did("Delete log/"));
}

/// Packs are put away while backups build on them.
#[test]
fn a_backup_and_an_archiving_prune_in_every_order_of_one_switch() {
    let world = World::new();
    for actors in [[REUSES, Actor::Archive], [Actor::Archive, REUSES]] {
        every_order(&world, &actors, Order::default(), 1, 9);
    }
    let alone = right(Program::of(&world, &[Actor::Archive]).in_order(&Order::default()));
    let put_away = alone.steps.iter().filter(|step| step.what.to_string().starts_with("Archive pack/"));
    assert_eq!(put_away.count(), 1);
    let actors = [REUSES, Actor::Archive];
    let program = Program { rule: Some(Rule::SweepLooksAgain), ..Program::of(&world, &actors) };
    let found = program.every_order(asleep(&world, &actors), 2);
    assert!(found.as_ref().is_err_and(|wrong| wrong.contains("has to wait")), "{found:?}");
}

#[test]
fn whoever_is_killed_at_any_step_the_rest_goes_on() {
    let (two, small) = (World::condemned_of_two_hosts(), World::of_small_packs_of_two_hosts());
    for (world, actors) in
        [(&two, [BETA_REUSES, Actor::GoOn, Actor::GoOn]), (&small, [Actor::Compact, Actor::GoOn, BETA_REUSES])]
    {
        let program = Program::of(world, &actors);
        let steps = right(program.in_order(&Order::default())).steps;
        // Killed before a read is killed after the write before it.
        for kill in (0..steps.len()).filter(|place| !steps[*place].what.reads()) {
            right(program.in_order(&Order { kill: Some(kill), ..Order::default() }));
        }
    }
}

/// Orders by dice, with more actors and switches than can all be tried.
#[test]
fn many_actors_in_orders_by_dice() {
    in_orders_by_dice(
        &World::of_two_hosts(),
        &[REUSES, Actor::Prune, BETA_REUSES, Actor::Prune, Actor::Abandon, Actor::Hold],
        40,
    );
}

fn in_orders_by_dice(world: &World, actors: &[Actor], count: u64) {
    let program = Program::of(world, actors);
    for seed in 0..count {
        let dice = |n: u64| {
            let thrown = crate::crypt::hash(&[seed.to_le_bytes(), n.to_le_bytes()].concat());
            u64::from_le_bytes(thrown[..8].try_into().unwrap())
        };
        let count = 2 + dice(0) % 10;
        let actors = actors.len() as u64;
        let switches = (1..=count).map(|n| ((dice(n) % 300) as usize, (dice(100 + n) % actors) as usize)).collect();
        let kill = dice(200).is_multiple_of(3).then(|| (dice(201) % 300) as usize);
        program.in_order(&Order { switches, kill }).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
    }
}

/// The checker is worth something only if it notices that a rule is missing.
#[test]
fn without_any_one_rule_something_is_lost() {
    let (two, condemned) = (World::of_two_hosts(), World::condemned_of_two_hosts());
    let noticed = |world: &World, actors: &[Actor], begin: Order, switches: usize, rule: Rule| {
        let program = Program { rule: Some(rule), ..Program::of(world, actors) };
        let found = program.every_order(begin, switches);
        assert!(found.is_err(), "{rule:?}: {found:?}");
    };
    let (of_alpha, of_beta) = ([REUSES, Actor::Prune], [BETA_REUSES, Actor::Prune]);
    noticed(&two, &of_alpha, asleep(&two, &of_alpha), 1, Rule::WriterLooks);
    for rule in [Rule::SweepLooksAgain, Rule::LooksWhileDeleting] {
        noticed(&two, &of_alpha, asleep(&two, &of_alpha), 2, rule);
    }
    noticed(&two, &of_beta, asleep(&two, &of_beta), 2, Rule::SweepLooksAtEveryHost);
    noticed(&two, &of_alpha, Order::default(), 1, Rule::UnseenIsSuspect);
    noticed(&two, &of_beta, Order::default(), 1, Rule::HeadsOfEachHost);
    noticed(&World::new(), &SLEEPER_FIRST, sleeper_first(), 2, Rule::NumbersAreNotReused);
    noticed(&World::of_small_packs(), &[Actor::Compact], Order::default(), 0, Rule::CutsStopAtPoints);
    noticed(&condemned, &[Actor::GoOn, Actor::Hold], Order::default(), 2, Rule::HoldsAreLookedForAgain);
    noticed(&condemned, &[Actor::GoOn, Actor::Hold], Order::default(), 2, Rule::HoldsTellOfSweeps);
}

/// The backup has looked at what there is, and sleeps before it writes anything.
fn asleep(world: &World, actors: &[Actor]) -> Order {
    let steps = right(Program::of(world, actors).in_order(&Order::default())).steps;
    let first = steps.iter().position(|step| !step.what.reads()).unwrap();
    Order { switches: vec![(first, 1)], kill: None }
}

/// And its judge must know a loss when it sees one.
#[test]
fn the_judge_notices_a_pack_that_is_gone() {
    let world = World::new();
    let storage = Arc::new(MemoryStorage::from_snapshot(world.objects.clone()).with_classes());
    let read = Mutex::default();
    let mut judge = Judge::new(&world, &storage, None, &read);
    assert_eq!(judge.complain(&Owed::default()), None);
    let pack = storage.list("pack/").unwrap().pop().unwrap();
    storage.delete(&pack.key).unwrap();
    assert!(judge.complain(&Owed::default()).unwrap().contains("has lost chunk"));
    let unlocked = world.unlock(storage.clone()).unwrap();
    let restorable = unlocked.points(None).unwrap().points.iter().all(|point| {
        let source = unlocked.source("app").unwrap();
        let root = unlocked.read_root(point).unwrap();
        root.chunks(32).all(|id| source.get(&ChunkId(id.try_into().unwrap())).is_ok())
    });
    assert!(!restorable);
}
