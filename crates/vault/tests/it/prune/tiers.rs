//! Packs that only old points need go into a class that must be thawed: who reads is told, who backs up is not slowed, and it all comes back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::SignedDuration;
use lifeboat_vault::copy::{CopyOptions, copy};
use lifeboat_vault::prune::{ARCHIVE_BYTES_MAX, ArchiveRules, Archived, SweepReport, Swept};
use lifeboat_vault::storage::{FROZEN_CLASS, Faulty, MemoryStorage, Storage, Thaw};
use lifeboat_vault::{CheckOptions, KeepRules, PointInfo, PruneOptions, Pruner, Vault, VaultError};

use super::{at, keys, last, later, pruner};
use crate::world::{World, back_up, host_state, is_right, unlock};

const THAW_SECONDS: u64 = 12 * 3600;

/// All points are kept; what is older than ninety days may wait for half a day.
fn options() -> PruneOptions {
    let archive = ArchiveRules {
        class: FROZEN_CLASS.to_owned(),
        thaw: SignedDuration::from_secs(THAW_SECONDS as i64),
        after: BTreeMap::new(),
        after_all: Some(SignedDuration::from_hours(24 * 90)),
        bytes_per_second: None,
        bytes_max: ARCHIVE_BYTES_MAX,
    };
    PruneOptions { rules: None, archive: Some(archive), ..last(1) }
}

fn prune_on(world: &World, day: i64, options: &PruneOptions) -> SweepReport {
    let pruner = pruner(world);
    let now = at(world, day, options);
    let proposed = pruner.propose(&now).unwrap();
    pruner.perform(&proposed, &now).unwrap();
    match pruner.go_on(&at(world, day + 3, options)).unwrap() {
        Swept::Done(report) => report,
        other => panic!("{other:?}"),
    }
}

fn frozen(world: &World) -> Vec<String> {
    let is_frozen = |key: &String| world.storage.class_of(key).unwrap().as_deref() == Some(FROZEN_CLASS);
    keys(world, "").into_iter().filter(is_frozen).collect()
}

/// Two points that share nothing; the older one's packs are put away.
fn archived() -> (World, PointInfo, PointInfo) {
    let world = World::with_classes();
    let old = back_up(&world.vault, "app", 1, 20).unwrap();
    let newest = back_up(&world.vault, "app", 2, 20).unwrap();
    let report = prune_on(&world, 100, &options());
    assert_eq!((report.archived_packs, report.kept.len(), report.findings.len()), (1, 0, 0));
    (world, old, newest)
}

fn shown(world: &World, id: &str) -> Option<Archived> {
    // As a machine that has read nothing yet.
    let fresh = Vault::open(world.storage.clone(), None, Some(&world.fingerprint)).unwrap();
    fresh.points(None).unwrap().points.into_iter().find(|point| point.id == id).unwrap().archived
}

#[test]
fn what_only_old_points_need_is_put_away_and_said_to_be() {
    let (world, old, newest) = archived();
    let away = frozen(&world);
    assert!(away.len() == 1 && away[0].starts_with("pack/"), "{away:?}");
    let bytes = world.storage.list(&away[0]).unwrap()[0].size;
    let said = Archived { class: FROZEN_CLASS.to_owned(), thaw_seconds: THAW_SECONDS, packs: 1, bytes };
    assert_eq!(shown(&world, &old.id), Some(said));
    assert_eq!(shown(&world, &newest.id), None);
    let unlocked = world.unlock();
    let needs: Vec<String> = unlocked.archived_packs(&old).unwrap().into_iter().map(|pack| pack.key).collect();
    assert_eq!(needs, away);
    assert!(unlocked.archived_packs(&newest).unwrap().is_empty());
    // The newest is restored at once, the older one once it was thawed.
    assert!(is_right(&unlocked, &newest, 2, 20).unwrap());
    let waits = is_right(&unlocked, &old, 1, 20).unwrap_err();
    assert!(format!("{waits:?}").contains("Archived"), "{waits:?}");
    assert!(matches!(world.storage.thaw_of(&away[0]).unwrap(), Thaw::Frozen { .. }));
    let report = unlocked.check(CheckOptions { read_data: true }).unwrap();
    assert!(report.is_sound() && report.packs_archived == 1 && report.bad_objects().is_empty(), "{report:?}");
    assert!(report.findings.iter().any(|finding| finding.code == "archived"));
    // What was not read is not called verified.
    let unread: Vec<String> = unlocked.unread_points(&report).unwrap().into_iter().map(|point| point.id).collect();
    assert_eq!(unread, std::slice::from_ref(&old.id));
    world.storage.thaw();
    assert_eq!(world.storage.thaw_of(&away[0]).unwrap(), Thaw::Readable);
    assert!(is_right(&world.unlock(), &old, 1, 20).unwrap());
    // There is nothing more to do.
    assert!(pruner(&world).propose(&at(&world, 120, &options())).unwrap().is_empty());
}

#[test]
fn no_backup_builds_on_what_is_put_away() {
    let (world, old, _) = archived();
    let again = back_up(&world.vault, "app", 1, 20).unwrap();
    assert!(again.bytes_new > 40_000, "{again:?}");
    let unlocked = world.unlock();
    assert!(unlocked.archived_packs(&again).unwrap().is_empty());
    assert!(is_right(&unlocked, &again, 1, 20).unwrap());
    // What it stored anew serves the older point, too.
    assert!(unlocked.archived_packs(&old).unwrap().is_empty() && is_right(&unlocked, &old, 1, 20).unwrap());
}

#[test]
fn a_backup_between_the_two_looks_keeps_what_it_needs_at_hand() {
    let world = World::with_classes();
    back_up(&world.vault, "app", 1, 20).unwrap();
    back_up(&world.vault, "app", 2, 20).unwrap();
    let session = world.vault.begin("app", lifeboat_vault::SessionOptions::default()).unwrap();
    let ids = crate::world::put_chunks(&session, 1, 20).unwrap();
    let pruner = pruner(&world);
    let day_100 = at(&world, 100, &options());
    pruner.perform(&pruner.propose(&day_100).unwrap(), &day_100).unwrap();
    // It began before, and rests on what is about to be put away.
    let point = crate::world::commit(session, &ids).unwrap();
    let Swept::Done(report) = pruner.go_on(&at(&world, 103, &options())).unwrap() else { panic!("not swept") };
    assert_eq!(report.archived_packs, 0);
    assert!(frozen(&world).is_empty() && is_right(&world.unlock(), &point, 1, 20).unwrap());
}

#[test]
fn what_was_put_away_is_pruned_folded_and_copied_like_anything_else() {
    let (world, old, newest) = archived();
    let folded = PruneOptions { fold_after: 1, ..options() };
    back_up(&world.vault, "other", 5, 20).unwrap();
    back_up(&world.vault, "other", 6, 20).unwrap();
    prune_on(&world, 210, &folded);
    assert!(keys(&world, "prune/").iter().any(|key| key.ends_with("/fold")));
    prune_on(&world, 220, &PruneOptions { points: ["alpha/other/0000000001".to_owned()].into(), ..folded.clone() });
    // The records are gone, the fold says it.
    assert_eq!(shown(&world, &old.id).map(|archived| archived.packs), Some(1));
    // A copy has everything at hand, once it could be read.
    let from: Arc<dyn Storage> = world.storage.clone();
    let target = Arc::new(MemoryStorage::new());
    let to: Arc<dyn Storage> = target.clone();
    let copied = |what: &str| {
        let options = CopyOptions::new(host_state(&world.directory, what));
        copy(&from, &to, &options, &|_, _| {}, &AtomicBool::new(false)).unwrap()
    };
    let report = copied("copier");
    assert!(report.findings.iter().any(|finding| finding.code == "archived"), "{:?}", report.findings);
    world.storage.thaw();
    let report = copied("copier");
    assert!(report.findings.iter().all(|finding| finding.code != "archived"), "{:?}", report.findings);
    let at_copy = unlock(target, &world.fingerprint, &world.owner).unwrap();
    assert!(is_right(&at_copy, &old, 1, 20).unwrap());
    assert!(at_copy.points(None).unwrap().points.iter().all(|point| point.archived.is_none()));
    // Pruned, it goes.
    let pack = frozen_pack(&world, &old);
    prune_on(&world, 230, &PruneOptions { points: [old.id.clone()].into(), ..options() });
    assert!(!keys(&world, "pack/").contains(&pack));
    assert!(is_right(&world.unlock(), &newest, 2, 20).unwrap());
    assert!(world.unlock().check(CheckOptions { read_data: true }).unwrap().is_sound());
}

fn frozen_pack(world: &World, point: &PointInfo) -> String {
    world.unlock().archived_packs(point).unwrap().remove(0).key
}

#[test]
fn a_storage_without_classes_is_refused_by_name_and_so_is_a_damaged_pack() {
    let world = World::new();
    back_up(&world.vault, "app", 1, 20).unwrap();
    let refused = pruner(&world).propose(&at(&world, 100, &options())).unwrap_err();
    assert!(matches!(refused, VaultError::Refused { .. }) && refused.to_string().contains("has no storage classes"));

    let world = World::with_classes();
    back_up(&world.vault, "app", 1, 20).unwrap();
    back_up(&world.vault, "app", 2, 20).unwrap();
    let pruner = pruner(&world);
    let day_100 = at(&world, 100, &options());
    let proposed = pruner.propose(&day_100).unwrap();
    assert_eq!((proposed.archived_packs, proposed.archive_class.as_deref()), (1, Some(FROZEN_CLASS)));
    pruner.perform(&proposed, &day_100).unwrap();
    for key in keys(&world, "pack/") {
        let mut bytes = world.storage.get(&key).unwrap();
        bytes[100] ^= 1;
        world.storage.put(&key, &bytes).unwrap();
    }
    let Swept::Done(report) = pruner.go_on(&at(&world, 103, &options())).unwrap() else { panic!("not swept") };
    assert_eq!((report.archived_packs, report.kept.len()), (0, 1));
    assert_eq!(report.findings[0].code, "damaged");
    assert!(frozen(&world).is_empty() && world.unlock().points(None).unwrap().points[0].archived.is_some());
}

#[test]
fn a_prune_that_is_told_to_stop_goes_on_later() {
    let world = World::with_classes();
    let old: Vec<PointInfo> = (1..=3).map(|seed| back_up(&world.vault, "app", seed, 20).unwrap()).collect();
    let day_100 = at(&world, 100, &options());
    let stopped = |pruner: &Pruner| {
        let flag = Arc::new(AtomicBool::new(false));
        pruner.vault().stop_on(flag.clone());
        flag
    };
    let first = pruner(&world);
    let flag = stopped(&first);
    let proposed = first.propose(&day_100).unwrap();
    flag.store(true, Ordering::SeqCst);
    assert!(matches!(first.perform(&proposed, &day_100), Err(VaultError::Stopped)));
    assert!(keys(&world, "prune/").is_empty());
    let next = pruner(&world);
    next.perform(&next.propose(&day_100).unwrap(), &day_100).unwrap();
    // At so slow a pace it is stopped after the first of two packs.
    let second = pruner(&world);
    let flag = stopped(&second);
    let mut slow = at(&world, 103, &options());
    slow.archive.as_mut().unwrap().bytes_per_second = Some(1);
    let result = std::thread::scope(|scope| {
        let working = scope.spawn(|| second.go_on(&slow).map(|_| ()));
        while frozen(&world).is_empty() {
            std::thread::yield_now();
        }
        flag.store(true, Ordering::SeqCst);
        working.join().unwrap()
    });
    assert!(matches!(result, Err(VaultError::Stopped)), "{result:?}");
    assert_eq!(frozen(&world).len(), 1);
    // Nobody takes for readable what may be put away by now.
    assert!(old[..2].iter().all(|point| shown(&world, &point.id).is_some()) && shown(&world, &old[2].id).is_none());
    let Swept::Done(report) = pruner(&world).go_on(&at(&world, 104, &options())).unwrap() else { panic!("not done") };
    assert_eq!((report.archived_packs, frozen(&world).len()), (1, 2));
}

#[test]
fn a_prune_that_puts_away_and_is_killed_at_any_operation_is_taken_up_again() {
    let origin = World::new();
    let points: Vec<PointInfo> = (1..=3).map(|seed| back_up(&origin.vault, "app", seed, 4).unwrap()).collect();
    for crash_at in 0.. {
        let storage = Arc::new(MemoryStorage::from_snapshot(origin.storage.snapshot()).with_classes());
        let at = |days| {
            storage.set_clock(later(days));
            PruneOptions { now: Some(later(days)), ..options() }
        };
        let open = |storage: Arc<dyn Storage>| unlock(storage, &origin.fingerprint, &origin.owner).unwrap();
        let faulty = Faulty::new(storage.clone());
        let pruner = open(faulty.clone()).pruner().unwrap();
        faulty.crash_after(crash_at, crash_at % 2 == 0);
        let killed = || {
            let options = at(100);
            pruner.perform(&pruner.propose(&options)?, &options)?;
            pruner.go_on(&at(103))
        };
        let done = killed().is_ok();
        let newest_is_at_hand = |when: &str| {
            let unlocked = open(storage.clone());
            assert!(is_right(&unlocked, &points[2], 3, 4).unwrap(), "{crash_at} {when}");
            assert!(unlocked.check(CheckOptions { read_data: true }).unwrap().is_sound(), "{crash_at} {when}");
            // Whatever cannot be read is said to be where it is.
            for pack in storage.list("pack/").unwrap() {
                let is_frozen = matches!(storage.thaw_of(&pack.key).unwrap(), Thaw::Frozen { .. });
                let said =
                    || points.iter().any(|p| unlocked.archived_packs(p).unwrap().iter().any(|a| a.key == pack.key));
                assert!(!is_frozen || said(), "{crash_at} {when} {}", pack.key);
            }
        };
        newest_is_at_hand("killed");
        let next = open(storage.clone()).pruner().unwrap();
        next.go_on(&at(106)).unwrap();
        let proposed = next.propose(&at(110)).unwrap();
        if !proposed.is_empty() {
            next.perform(&proposed, &at(110)).unwrap();
            next.go_on(&at(113)).unwrap();
        }
        newest_is_at_hand("taken up");
        let unlocked = open(storage.clone());
        let away = unlocked.points(None).unwrap().points.iter().filter(|point| point.archived.is_some()).count();
        assert_eq!(away, 2, "{crash_at}");
        storage.thaw();
        for (point, seed) in points.iter().zip(1..) {
            assert!(is_right(&open(storage.clone()), point, seed, 4).unwrap(), "{crash_at}: {}", point.id);
        }
        if done {
            assert!(crash_at > 40, "{crash_at}");
            return;
        }
    }
}

#[test]
fn rules_say_which_data_sets_may_wait() {
    let world = World::with_classes();
    for dataset in ["app", "docs"] {
        back_up(&world.vault, dataset, 1, 20).unwrap();
        back_up(&world.vault, dataset, 2, 20).unwrap();
    }
    let mut only_docs = options();
    let rules = only_docs.archive.as_mut().unwrap();
    rules.after_all = None;
    rules.after.insert("docs".to_owned(), SignedDuration::from_hours(24));
    // What is pruned is not put away before.
    let pruned = PruneOptions {
        datasets: [("docs".to_owned(), KeepRules { last: 1, ..KeepRules::default() })].into(),
        ..only_docs.clone()
    };
    let proposed = pruner(&world).propose(&at(&world, 10, &pruned)).unwrap();
    assert_eq!((proposed.archived_packs, proposed.packs), (0, 1));
    let report = prune_on(&world, 10, &only_docs);
    assert_eq!(report.archived_packs, 1);
    let away: Vec<String> = world
        .unlock()
        .points(None)
        .unwrap()
        .points
        .into_iter()
        .filter(|p| p.archived.is_some())
        .map(|p| p.id)
        .collect();
    assert_eq!(away, ["alpha/docs/0000000001"]);
}
