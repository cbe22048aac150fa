//! The records of many prunes and their tombstones in one object.

use jiff::Timestamp;
use lifeboat_vault::prune::Swept;
use lifeboat_vault::serve::{Rights, Who};
use lifeboat_vault::storage::Storage;
use lifeboat_vault::{HostVault, PruneOptions, Severity, Vault, VaultError};

use super::{at, check_is_silent, keys, last, pruner};
use crate::serve::world::Near;
use crate::world::{World, back_up, is_right};

fn options() -> PruneOptions {
    PruneOptions { fold_after: 2, ..last(1) }
}

/// A prune that takes everything but the newest point.
fn prune(world: &World, day: i64) {
    let pruner = pruner(world);
    let first = at(world, day, &options());
    let proposed = pruner.propose(&first).unwrap();
    pruner.perform(&proposed, &first).unwrap();
    let Swept::Done(_) = pruner.go_on(&at(world, day + 3, &options())).unwrap() else { panic!("not swept") };
    world.storage.set_clock(Timestamp::now());
}

/// Takes some points and prunes all but the newest, again and again, six days apart.
fn prune_in_rounds(world: &World, rounds: u64, points: u64) {
    for round in 0..rounds {
        for seed in 0..points {
            back_up(&world.vault, "app", round * 10 + seed, 3).unwrap();
        }
        prune(world, 3 + 6 * round as i64);
    }
}

#[test]
fn many_records_and_tombstones_become_one_and_every_gap_stays_explained() {
    let world = World::new();
    prune_in_rounds(&world, 4, 5);
    let newest = world.vault.points(None).unwrap().points.pop().unwrap();
    let count = |prefix| keys(&world, prefix).len();
    // Twenty points went in four prunes; the first two generations are folded, and their records gone.
    assert_eq!(newest.sequence, 20);
    let records = keys(&world, "prune/");
    assert_eq!(records.iter().filter(|key| key.ends_with("/fold")).count(), 1, "{records:?}");
    assert!(!records.iter().any(|key| key.contains("0000000001/") || key.contains("0000000002/p")), "{records:?}");
    assert!(count("tombstone/") < 12, "{:?}", keys(&world, "tombstone/"));
    assert!(is_right(&world.unlock(), &newest, 34, 3).unwrap());
    check_is_silent(&world);
    // A machine that never saw it before, and the host with its memory, miss nothing.
    let fresh = Vault::open(world.storage.clone(), None, Some(&world.fingerprint)).unwrap();
    for points in [fresh.points(None).unwrap(), world.vault.points(None).unwrap()] {
        assert!(points.findings.iter().all(|f| f.code == "freshness-unproven"), "{:?}", points.findings);
        assert_eq!(points.points.len(), 1);
    }
    // What is put where a folded point stood is no point.
    let planted = newest.key.replace("0000000020", "0000000003");
    world.storage.put(&planted, &world.storage.get(&newest.key).unwrap()).unwrap();
    assert_eq!(fresh.points(None).unwrap().points.len(), 1);
    world.storage.delete(&planted).unwrap();
    assert_eq!(back_up(&world.vault, "app", 50, 3).unwrap().sequence, 21);
    // Without the fold, what it explained is missed, loudly.
    let fold = records.iter().find(|key| key.ends_with("/fold")).unwrap();
    let bytes = world.storage.get(fold).unwrap();
    world.storage.delete(fold).unwrap();
    let lost = Vault::open(world.storage.clone(), None, Some(&world.fingerprint)).unwrap().points(None).unwrap();
    assert!(lost.findings.iter().any(|f| f.code == "missing" && f.object.ends_with("0000000001")), "{lost:?}");
    // It is missed by its own name, too, for the records after it show that it was there; and nothing is pruned.
    assert!(lost.findings.iter().any(|f| f.code == "missing" && f.object == *fold), "{lost:?}");
    let refused = pruner(&world).propose(&at(&world, 30, &options())).unwrap_err();
    assert!(matches!(refused, VaultError::Refused { .. }), "{refused}");
    // So is one that somebody damaged.
    let mut damaged = bytes.clone();
    *damaged.last_mut().unwrap() ^= 1;
    world.storage.put(fold, &damaged).unwrap();
    let lost = Vault::open(world.storage.clone(), None, Some(&world.fingerprint)).unwrap().points(None).unwrap();
    assert!(lost.findings.iter().any(|f| f.severity == Severity::Alarm && f.object == *fold), "{lost:?}");
    assert!(pruner(&world).propose(&at(&world, 30, &options())).is_err());
    world.storage.set_clock(Timestamp::now());
    world.storage.put(fold, &bytes).unwrap();
    // A host signs none.
    let payload = lifeboat_vault::Signed::open("vault.prune.fold", fold, &bytes).unwrap().payload;
    let forged = lifeboat_vault::Signed::seal("vault.prune.fold", &payload, world.state.signing_key()).unwrap();
    world.storage.put(fold, &forged).unwrap();
    let lost = Vault::open(world.storage.clone(), None, Some(&world.fingerprint)).unwrap().points(None).unwrap();
    assert!(lost.findings.iter().any(|f| f.code == "untrusted" && f.object == *fold), "{lost:?}");
}

#[test]
fn a_server_lets_signed_history_go_only_where_a_fold_says_the_same() {
    let world = World::new();
    let who = Who::Named("sweeper".to_owned(), Rights { prune: true, ..Rights::default() });
    let near = Near::new(world.storage.clone(), who);
    let served = near.connect().unwrap();
    prune_in_rounds(&world, 2, 3);
    let (record, stone) = (keys(&world, "prune/").remove(0), keys(&world, "tombstone/").remove(0));
    for key in [&record, &stone] {
        assert!(served.delete(key).is_err(), "{key}");
    }
    back_up(&world.vault, "app", 30, 3).unwrap();
    let proposing = at(&world, 20, &options());
    let pruner = pruner(&world);
    pruner.perform(&pruner.propose(&proposing).unwrap(), &proposing).unwrap();
    let open = keys(&world, "prune/").into_iter().find(|key| key.contains("0000000003/")).unwrap();
    for key in [&record, &stone] {
        served.delete(key).unwrap();
    }
    assert!(served.delete(&open).is_err());
    world.storage.set_clock(Timestamp::now());
    let host = HostVault::open(world.storage.clone(), world.state.clone(), Some(&world.fingerprint)).unwrap();
    assert!(host.points(None).unwrap().findings.iter().all(|f| f.code != "missing"));
}

#[test]
fn what_a_fold_says_goes_only_when_it_has_been_there_for_a_grace() {
    let world = World::new();
    prune_in_rounds(&world, 2, 2);
    back_up(&world.vault, "app", 30, 3).unwrap();
    let of_the_first = || keys(&world, "prune/").into_iter().filter(|key| key.starts_with("prune/0000000001/")).count();
    let stones = || keys(&world, "tombstone/").len();
    let pruner = pruner(&world);
    let propose = |day| {
        let options = at(&world, day, &options());
        pruner.perform(&pruner.propose(&options).unwrap(), &options).unwrap();
    };
    let sweep = |day| {
        let Swept::Done(_) = pruner.go_on(&at(&world, day, &options())).unwrap() else { panic!("not swept") };
    };
    propose(15);
    assert!(keys(&world, "prune/").iter().any(|key| key == "prune/0000000002/fold"));
    pruner.abandon().unwrap();
    let before = (of_the_first(), stones());
    assert_eq!(before.0, 3);
    // A day after the fold came somebody may still read as of before; three days after, nobody.
    propose(16);
    sweep(19);
    assert_eq!((of_the_first(), stones()), before);
    propose(20);
    sweep(23);
    assert_eq!(of_the_first(), 0);
    assert!(stones() < before.1);
    check_is_silent(&world);
}
