//! Locks: what points need stays locked, what they do not need runs out, and a prune that meets a lock comes back later.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::SignedDuration;
use lifeboat_vault::prune::{Hand, LockOptions, LockRecord, LockReport, LockStanding, SweepReport, Swept};
use lifeboat_vault::storage::{Faulty, Lock, LockMode, Operation, Storage};
use lifeboat_vault::{PruneOptions, VaultError};

use super::{at, keys, last, later, pruner};
use crate::world::{World, back_up};

fn thirty_days() -> LockOptions {
    LockOptions::for_days(30)
}

fn lock_on(world: &World, day: i64, options: &LockOptions) -> LockReport {
    let now = later(day);
    world.storage.set_clock(now);
    pruner(world).lock(&LockOptions { now: Some(now), ..options.clone() }, &|_, _| {}).unwrap()
}

fn locked_on(world: &World, day: i64) -> BTreeSet<String> {
    let holds = |key: &String| world.storage.lock_of(key).unwrap().is_some_and(|lock| lock.until > later(day));
    keys(world, "").into_iter().filter(holds).collect()
}

fn sweep_on(world: &World, day: i64, options: &PruneOptions) -> SweepReport {
    let pruner = pruner(world);
    let now = at(world, day, options);
    let proposed = pruner.propose(&now).unwrap();
    pruner.perform(&proposed, &now).unwrap();
    match pruner.go_on(&at(world, day + 3, options)).unwrap() {
        Swept::Done(report) => report,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_points_need_is_locked_in_good_time_and_only_where_it_is_due() {
    let world = World::with_locks(None);
    back_up(&world.vault, "app", 1, 20).unwrap();
    let options = LockOptions { memory: Some(world.directory.path().to_owned()), ..thirty_days() };
    let looked = lock_on(&world, 0, &LockOptions { dry_run: true, ..options.clone() });
    assert_eq!(
        (looked.extended, looked.left, looked.unlocked, looked.until),
        (0, looked.objects, looked.objects, None)
    );
    assert_eq!(LockRecord::read(world.directory.path(), &world.storage.location()), None, "nothing was done yet");
    let first = lock_on(&world, 0, &options);
    assert_eq!((first.extended, first.left, first.unlocked), (first.objects, 0, 0));
    assert_eq!(locked_on(&world, 29).len() as u64, first.objects);
    for kind in ["snap/", "refs/", "index/", "pack/", "keys/", "roster/"] {
        assert!(locked_on(&world, 29).iter().any(|key| key.starts_with(kind)), "{kind}");
    }
    // Whoever asks this machine how locks stand learns what was seen, and until when that is good enough.
    let record = LockRecord::read(world.directory.path(), &world.storage.location()).unwrap();
    assert_eq!((record.objects, record.unlocked, record.left, record.until), (first.objects, 0, 0, first.until));
    let stands = |day: i64| record.standing(later(day));
    assert_eq!([stands(0), stands(14)], [LockStanding::InTime; 2]);
    assert_eq!([stands(16), stands(31)], [LockStanding::Late, LockStanding::Ended]);
    assert_eq!(LockRecord { left: 1, ..record.clone() }.standing(later(0)), LockStanding::Late);
    assert_eq!(LockRecord { unlocked: 1, until: None, ..record.clone() }.standing(later(0)), LockStanding::NotLocked);
    assert_eq!(LockRecord::read(world.directory.path(), "elsewhere"), None);
    // Half of the time is left: nothing is asked and nothing done, but for what came since.
    let again = lock_on(&world, 14, &options);
    assert_eq!((again.asked, again.extended), (0, 0), "{again:?}");
    back_up(&world.vault, "app", 2, 20).unwrap();
    let newer = lock_on(&world, 14, &options);
    assert!(newer.extended > 2 && newer.extended < first.objects, "{newer:?}");
    assert!(newer.until.unwrap() > later(29) && newer.until.unwrap() < later(31), "{newer:?}");
    let due = lock_on(&world, 16, &options);
    assert_eq!(due.extended, first.objects);
    assert!(due.until.unwrap() > later(43), "{due:?}");
    // Who remembers nothing asks, and does no more than is due.
    let forgetful = lock_on(&world, 16, &thirty_days());
    assert_eq!((forgetful.asked, forgetful.extended, forgetful.until), (due.objects, 0, due.until));
}

#[test]
fn an_interrupted_run_goes_on_and_one_run_does_no_more_than_it_may() {
    let world = World::with_locks(None);
    back_up(&world.vault, "app", 1, 20).unwrap();
    let options = LockOptions { objects_max: 4, ..thirty_days() };
    let first = lock_on(&world, 0, &options);
    assert_eq!((first.extended, first.left), (4, first.objects - 4));
    assert_eq!((first.unlocked, first.until), (first.objects - 4, None));
    let faulty = Faulty::new(world.storage.clone() as Arc<dyn Storage>);
    faulty.fail(Operation::Put, "pack/", 1);
    let vault = lifeboat_vault::Vault::open(faulty.clone(), None, Some(&world.fingerprint)).unwrap();
    let unlocked = vault.unlock(std::slice::from_ref(&world.owner)).unwrap();
    let now = LockOptions { now: Some(later(0)), ..thirty_days() };
    unlocked.pruner().unwrap().lock(&now, &|_, _| {}).unwrap_err();
    let rest = lock_on(&world, 0, &thirty_days());
    assert!(rest.extended >= 1 && rest.extended <= first.left && rest.left == 0, "{rest:?}");
    assert_eq!(locked_on(&world, 29).len() as u64, rest.objects);
}

#[test]
fn what_the_bucket_does_by_itself_saves_requests_and_a_longer_or_harder_lock_is_left_alone() {
    let world = World::with_locks(Some((60, LockMode::Governance)));
    back_up(&world.vault, "app", 1, 20).unwrap();
    let options = LockOptions { memory: Some(world.directory.path().to_owned()), ..thirty_days() };
    // What was there before this machine knew what the bucket does is asked for once.
    let first = lock_on(&world, 1, &options);
    assert_eq!((first.asked, first.extended), (first.objects, 0), "{first:?}");
    world.storage.set_clock(later(2));
    back_up(&world.vault, "app", 2, 20).unwrap();
    let second = lock_on(&world, 3, &options);
    assert_eq!((second.asked, second.extended), (0, 0), "{second:?}");
    let pack = keys(&world, "pack/").remove(0);
    let longer = Lock { until: later(90), mode: LockMode::Governance };
    world.storage.lock(&pack, longer).unwrap();
    let due = lock_on(&world, 50, &options);
    assert!(due.extended > 0 && due.asked == 1, "{due:?}");
    // It was made longer by somebody else: nobody makes it shorter.
    assert_eq!(world.storage.lock_of(&pack).unwrap(), Some(longer));
}

#[test]
fn a_mode_that_only_others_can_change_stays_and_is_counted() {
    let world = World::with_locks(None);
    back_up(&world.vault, "app", 1, 20).unwrap();
    let pack = keys(&world, "pack/").remove(0);
    world.storage.lock(&pack, Lock { until: later(20), mode: LockMode::Compliance }).unwrap();
    lock_on(&world, 0, &thirty_days());
    lock_on(&world, 10, &thirty_days());
    let kept = world.storage.lock_of(&pack).unwrap().unwrap();
    assert!(kept.until > later(39) && kept.mode == LockMode::Compliance, "{kept:?}");
    // Softer ones are made longer all the same.
    let wish = LockOptions { mode: Some(LockMode::Compliance), ..thirty_days() };
    let softer = lock_on(&world, 28, &wish);
    assert_eq!((softer.extended, softer.softer), (softer.objects, softer.objects - 1), "{softer:?}");
    assert!(softer.until.unwrap() > later(57));
}

#[test]
fn a_sweep_that_meets_a_lock_names_it_and_a_later_one_deletes() {
    let world = World::with_locks(None);
    let old = back_up(&world.vault, "app", 1, 20).unwrap();
    let packs = keys(&world, "pack/");
    back_up(&world.vault, "app", 2, 20).unwrap();
    lock_on(&world, 0, &thirty_days());
    let swept = sweep_on(&world, 4, &last(1));
    let stays: Vec<&str> = swept.locked.iter().map(|object| object.key.as_str()).collect();
    assert!(stays.contains(&packs[0].as_str()) && stays.contains(&old.key.as_str()), "{stays:?}");
    assert!(swept.locked.iter().all(|object| object.until.is_some_and(|until| until > later(29))), "{swept:?}");
    assert!(swept.kept.is_empty(), "{swept:?}");
    assert!(
        world.vault.points(None).unwrap().points.iter().all(|point| point.id != old.id),
        "it is pruned all the same"
    );
    // What is not needed is not locked any longer.
    lock_on(&world, 20, &thirty_days());
    let locked = locked_on(&world, 40);
    assert!(!locked.contains(&packs[0]) && !locked.contains(&old.key) && !locked.is_empty(), "{locked:?}");
    let swept = sweep_on(&world, 32, &last(1));
    assert!(!swept.locked.iter().any(|object| object.key.starts_with("pack/") || object.key == old.key), "{swept:?}");
    assert!(!keys(&world, "pack/").contains(&packs[0]) && !keys(&world, "snap/").contains(&old.key));
    super::check_is_silent(&world);
}

#[test]
fn while_something_is_wrong_or_frozen_everything_that_is_there_stays_locked() {
    let world = World::with_locks(None);
    back_up(&world.vault, "app", 1, 20).unwrap();
    let newest = back_up(&world.vault, "app", 2, 20).unwrap();
    world.vault.freeze(Hand::Member(&world.state), "we look into it").unwrap();
    world.storage.put(&newest.key, b"junk").unwrap();
    let report = lock_on(&world, 0, &thirty_days());
    assert!(!report.findings.is_empty(), "{report:?}");
    let locked = locked_on(&world, 29);
    let open: Vec<String> = keys(&world, "").into_iter().filter(|key| !locked.contains(key)).collect();
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn what_cannot_be_locked_is_refused_by_name() {
    let (plain, locks) = (World::new(), World::with_locks(None));
    let told = |world: &World, options: &LockOptions| {
        let refused = pruner(world).lock(options, &|_, _| {}).unwrap_err();
        assert!(matches!(refused, VaultError::Refused { .. } | VaultError::Invalid { .. }), "{refused:?}");
        refused.to_string()
    };
    insta::assert_snapshot!(
        [told(&plain, &thirty_days()), told(&locks, &LockOptions::for_days(1)),
         told(&locks, &LockOptions { length: SignedDuration::MAX, ..thirty_days() })].join("\n"), @r"
        locking is refused: the storage at memory: cannot lock objects: use a bucket that was made with Object Lock, or take `lock` off this vault (see docs/object-storage.md)
        the time for which what points need is locked is not valid: choose one between 2 days and 3650
        the time for which what points need is locked is not valid: choose one between 2 days and 3650
        "
    );
}
