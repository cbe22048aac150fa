//! Packs that hold little that is needed, or are small: what is needed of them moves, as it is sealed, and nobody notices.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use jiff::Timestamp;
use lifeboat_vault::copy::{CopyOptions, copy};
use lifeboat_vault::prune::{MoveRules, Swept};
use lifeboat_vault::storage::{Faulty, MemoryStorage, Storage};
use lifeboat_vault::{
    CheckOptions, ChunkId, ChunkSink, ChunkSource, HostVault, KeepRules, PointInfo, PruneOptions, Role, SessionOptions,
    Signed, Unlocked, Vault,
};

use super::{at, check_is_silent, keys, last, later, prune_all, pruner};
use crate::world::{World, back_up, commit, host_state, is_right, put_chunks, unlock};

/// A chunk that fills a frame.
fn large(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; 4_200_000];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn point_of(vault: &HostVault, seeds: &[u64]) -> PointInfo {
    let session = vault.begin("app", SessionOptions::default()).unwrap();
    let ids: Vec<ChunkId> = seeds.iter().map(|seed| session.put(&large(*seed)).unwrap().id).collect();
    commit(session, &ids).unwrap()
}

fn holds(unlocked: &Unlocked, point: &PointInfo, seeds: &[u64]) -> bool {
    let source = unlocked.source("app").unwrap();
    let ids = unlocked.read_root(point).unwrap();
    let read = ids.chunks(32).map(|id| source.get(&ChunkId(id.try_into().unwrap())).unwrap());
    read.eq(seeds.iter().map(|seed| large(*seed)))
}

fn bytes_of(world: &World, prefix: &str) -> u64 {
    world.storage.list(prefix).unwrap().iter().map(|object| object.size).sum()
}

fn moved_keys(world: &World) -> Vec<String> {
    keys(world, "index/").into_iter().filter(|key| key.contains("/moved-")).collect()
}

/// All points are kept, small packs are put together from two on.
fn keep_all() -> PruneOptions {
    PruneOptions {
        rules: Some(KeepRules { last: 1000, ..KeepRules::default() }),
        moves: MoveRules { small_packs: 2, ..MoveRules::default() },
        ..last(1)
    }
}

#[test]
fn what_is_needed_of_a_sparse_pack_moves_and_the_pack_goes() {
    let world = World::new();
    point_of(&world.vault, &[1, 2, 3]);
    let newest = point_of(&world.vault, &[2]);
    let before = bytes_of(&world, "pack/");
    let options = last(1);
    let pruner = pruner(&world);
    let day_3 = at(&world, 3, &options);
    let proposed = pruner.propose(&day_3).unwrap();
    assert_eq!(proposed.moved_packs, 1, "{proposed:?}");
    assert!(proposed.moved_frees > 8_000_000 && proposed.moved_bytes < 4_300_000, "{proposed:?}");
    assert_eq!(bytes_of(&world, "pack/"), before);
    pruner.perform(&proposed, &day_3).unwrap();
    assert!(holds(&world.unlock(), &newest, &[2]));
    let Swept::Done(swept) = pruner.go_on(&at(&world, 6, &options)).unwrap() else { panic!("not swept") };
    assert!(swept.kept.is_empty(), "{swept:?}");
    let after = bytes_of(&world, "pack/");
    assert!(after < before * 2 / 5, "{after} of {before}");
    assert!(holds(&world.unlock(), &newest, &[2]));
    check_is_silent(&world);
    // The host looks it up where it lies now; and what went is stored anew.
    world.storage.set_clock(Timestamp::now());
    let again = point_of(&world.vault, &[2, 3]);
    assert!((4_200_000..4_300_000).contains(&again.bytes_new), "{}", again.bytes_new);
    // What was moved once moves again.
    let Swept::Done(_) = prune_all(&world, &keep_all()) else { panic!("not swept") };
    assert!(holds(&world.unlock(), &again, &[2, 3]));
    check_is_silent(&world);
    // Where the indexes are lost, the packs say themselves what they hold.
    for key in keys(&world, "index/") {
        world.storage.delete(&key).unwrap();
    }
    assert!(holds(&world.unlock(), &again, &[2, 3]));
}

#[test]
fn many_small_packs_and_their_indexes_become_few() {
    let world = World::new();
    let points: Vec<PointInfo> = (1..=20).map(|seed| back_up(&world.vault, "app", seed, 6).unwrap()).collect();
    let other = back_up(&world.vault, "other", 99, 6).unwrap();
    let count = |prefix| keys(&world, prefix).len();
    assert_eq!((count("pack/"), count("index/")), (21, 21));
    // A pruner that opens no contents does it.
    let state = host_state(&world.directory, "sweeper");
    let vault = Vault::open(world.storage.clone(), Some(state.clone()), Some(&world.fingerprint)).unwrap();
    let asked = vault.request_enrolment(&state, &[Role::Pruner]).unwrap();
    world.unlock().approve(&asked.fingerprint).unwrap();
    let pruner = vault.pruner(&state).unwrap();
    let options = at(&world, 3, &keep_all());
    let proposed = pruner.propose(&options).unwrap();
    assert_eq!((proposed.moved_packs, proposed.pruned().count()), (20, 0));
    pruner.perform(&proposed, &options).unwrap();
    let session = world.vault.begin("app", SessionOptions::default()).unwrap();
    let ids = put_chunks(&session, 7, 6).unwrap();
    assert_eq!(session.bytes_new(), 0, "what is condemned lies elsewhere already");
    let Swept::Done(_) = pruner.go_on(&at(&world, 6, &keep_all())).unwrap() else { panic!("not swept") };
    // It slept through the sweep, and what it builds on was moved.
    let slept = commit(session, &ids).unwrap();
    assert!(is_right(&world.unlock(), &slept, 7, 6).unwrap());
    // One pack for all, the other data set's, and an index for each; the newest of the host's own stays.
    assert_eq!(count("pack/"), 2, "{:?}", keys(&world, "pack/"));
    assert_eq!(moved_keys(&world).len(), 1);
    assert!(count("index/") <= 4, "{:?}", keys(&world, "index/"));
    for (point, seed) in points.iter().zip(1..) {
        assert!(is_right(&world.unlock(), point, seed, 6).unwrap(), "{}", point.id);
    }
    assert!(is_right(&world.unlock(), &other, 99, 6).unwrap());
    check_is_silent(&world);
    world.storage.set_clock(Timestamp::now());
    assert_eq!(back_up(&world.vault, "app", 3, 6).unwrap().bytes_new, 0);
    // A host that has lost its state believes no pruner what it has: it stores its data anew.
    let lost = host_state(&world.directory, "alpha");
    for entry in std::fs::read_dir(lost.directory().join("vaults").join(world.vault.id())).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "known" || end == "chunks") {
            std::fs::remove_file(path).unwrap();
        }
    }
    let fresh = HostVault::open(world.storage.clone(), lost, Some(&world.fingerprint)).unwrap();
    assert!(back_up(&fresh, "app", 5, 6).unwrap().bytes_new > 0);
    assert_eq!(pruner.go_on(&at(&world, 9, &keep_all())).unwrap(), Swept::Nothing);
}

#[test]
fn a_host_that_took_over_sees_what_was_moved_of_the_others_packs() {
    let world = World::new();
    for seed in 1..=4 {
        back_up(&world.vault, "app", seed, 6).unwrap();
    }
    let state = host_state(&world.directory, "beta");
    let reader = Vault::open(world.storage.clone(), Some(state.clone()), Some(&world.fingerprint)).unwrap();
    let asked = reader.request_enrolment(&state, &[]).unwrap();
    world.unlock().approve(&asked.fingerprint).unwrap();
    let beta = || HostVault::open(world.storage.clone(), state.clone(), Some(&world.fingerprint)).unwrap();
    let heir = beta();
    heir.unlock(std::slice::from_ref(&world.owner)).unwrap().inherit(&heir, "app").unwrap();
    assert_eq!(back_up(&heir, "app", 3, 6).unwrap().bytes_new, 0);
    // One that is at work all the while, and builds on what is moved.
    let session = heir.begin("app", SessionOptions::default()).unwrap();
    let ids = put_chunks(&session, 2, 6).unwrap();
    assert_eq!(session.bytes_new(), 0);
    let Swept::Done(_) = prune_all(&world, &keep_all()) else { panic!("not swept") };
    assert_eq!((keys(&world, "pack/").len(), moved_keys(&world).len()), (1, 1));
    let slept = commit(session, &ids).unwrap();
    assert!(is_right(&world.unlock(), &slept, 2, 6).unwrap());
    world.storage.set_clock(Timestamp::now());
    for seed in 1..=4 {
        assert_eq!(back_up(&beta(), "app", seed, 6).unwrap().bytes_new, 0, "{seed}");
    }
    assert!(world.unlock().check(CheckOptions { read_data: true }).unwrap().is_sound());
}

#[test]
fn nobody_but_a_pruner_says_where_chunks_lie_now_and_a_damaged_pack_is_not_moved() {
    let world = World::new();
    let points: Vec<PointInfo> = (1..=3).map(|seed| back_up(&world.vault, "app", seed, 6).unwrap()).collect();
    let damaged = keys(&world, "pack/").remove(0);
    let mut bytes = world.storage.get(&damaged).unwrap();
    let right = bytes.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    world.storage.put(&damaged, &bytes).unwrap();
    let proposing = at(&world, 3, &keep_all());
    let pruner = pruner(&world);
    let open = pruner.perform(&pruner.propose(&proposing).unwrap(), &proposing).unwrap();
    assert!(open.findings.iter().any(|f| f.code == "damaged" && f.object == damaged), "{open:?}");
    let Swept::Done(_) = pruner.go_on(&at(&world, 6, &keep_all())).unwrap() else { panic!("not swept") };
    assert!(keys(&world, "pack/").contains(&damaged) && keys(&world, "pack/").len() == 2);
    world.storage.put(&damaged, &right).unwrap();
    for (point, seed) in points.iter().zip(1..) {
        assert!(is_right(&world.unlock(), point, seed, 6).unwrap(), "{}", point.id);
    }
    // The host signs what the pruner said, for the same place and for another.
    let key = moved_keys(&world).remove(0);
    let sealed = world.storage.get(&key).unwrap();
    let payload = Signed::open("vault.moved", &key, &sealed).unwrap().payload;
    let forged = Signed::seal("vault.moved", &payload, world.state.signing_key()).unwrap();
    for (place, bytes) in [(key.clone(), forged), (key.replace("0000000001-", "0000000002-"), sealed.clone())] {
        let before = world.storage.get(&place).ok();
        world.storage.put(&place, &bytes).unwrap();
        let report = world.unlock().check(CheckOptions::default()).unwrap();
        assert!(report.findings.iter().any(|f| f.code == "untrusted" && f.object == place), "{:?}", report.findings);
        // The packs' own directories are read instead.
        assert!(is_right(&world.unlock(), &points[2], 3, 6).unwrap());
        match before {
            Some(before) => world.storage.put(&place, &before).unwrap(),
            None => world.storage.delete(&place).unwrap(),
        }
    }
    check_is_silent(&world);
}

#[test]
fn a_move_that_is_killed_before_any_operation_is_taken_up_again() {
    kill_moves(false);
}

#[test]
fn a_move_that_is_killed_after_any_operation_is_taken_up_again() {
    kill_moves(true);
}

/// At each operation in turn, before it had its effect or after it.
fn kill_moves(after: bool) {
    let origin = World::new();
    let points: Vec<PointInfo> = (1..=4).map(|seed| back_up(&origin.vault, "app", seed, 4).unwrap()).collect();
    for crash_at in 0.. {
        let storage = Arc::new(MemoryStorage::from_snapshot(origin.storage.snapshot()));
        let at = |days| {
            storage.set_clock(later(days));
            PruneOptions { now: Some(later(days)), ..keep_all() }
        };
        let open = |storage: Arc<dyn Storage>| unlock(storage, &origin.fingerprint, &origin.owner).unwrap();
        let faulty = Faulty::new(storage.clone());
        let pruner = open(faulty.clone()).pruner().unwrap();
        faulty.crash_after(crash_at, after);
        let killed = || {
            let options = at(3);
            pruner.perform(&pruner.propose(&options)?, &options)?;
            pruner.go_on(&at(6))
        };
        let done = killed().is_ok();
        let all_right = |when: &str| {
            let unlocked = open(storage.clone());
            for (point, seed) in points.iter().zip(1..) {
                assert!(is_right(&unlocked, point, seed, 4).unwrap(), "{crash_at} {when}: {}", point.id);
            }
            assert!(unlocked.check(CheckOptions { read_data: true }).unwrap().is_sound(), "{crash_at} {when}");
        };
        all_right("killed");
        let next = open(storage.clone()).pruner().unwrap();
        next.go_on(&at(9)).unwrap();
        // Whatever is left half done goes in the next two.
        for day in [12, 18] {
            let proposed = next.propose(&at(day)).unwrap();
            if !proposed.is_empty() {
                next.perform(&proposed, &at(day)).unwrap();
                next.go_on(&at(day + 3)).unwrap();
            }
        }
        all_right("taken up");
        assert!(storage.list("pack/").unwrap().len() <= 2, "{crash_at}");
        if done {
            assert!(crash_at > 40, "{crash_at}");
            return;
        }
    }
}

#[test]
fn a_copy_of_a_vault_whose_packs_were_moved_is_whole() {
    let world = World::new();
    let points: Vec<PointInfo> = (1..=4).map(|seed| back_up(&world.vault, "app", seed, 6).unwrap()).collect();
    let Swept::Done(_) = prune_all(&world, &keep_all()) else { panic!("not swept") };
    let target: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let options =
        CopyOptions { dataset: Some("app".to_owned()), ..CopyOptions::new(host_state(&world.directory, "copier")) };
    let from: Arc<dyn Storage> = world.storage.clone();
    copy(&from, &target, &options, &|_, _| {}, &AtomicBool::new(false)).unwrap();
    let copied = unlock(target, &world.fingerprint, &world.owner).unwrap();
    for (point, seed) in points.iter().zip(1..) {
        assert!(is_right(&copied, point, seed, 6).unwrap(), "{}", point.id);
    }
}
