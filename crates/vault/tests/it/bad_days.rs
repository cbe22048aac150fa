//! Crashes, full disks, vanished directories: a clear error, nothing lost, and it goes on afterwards.

use std::sync::Arc;

use jiff::Timestamp;
use lifeboat_vault::storage::{Faulty, MemoryStorage, Operation, Storage};
use lifeboat_vault::{
    CheckOptions, ChunkSink, HostVault, Identity, InitOptions, LogPiece, SessionOptions, Vault, VaultError,
};

use crate::world::{World, back_up, commit, is_right, put_chunks, unlock};

#[test]
fn a_backup_that_crashes_at_any_operation_is_resumed_without_loss() {
    let calm = World::new();
    let counted = Faulty::new(calm.storage.clone());
    let host = calm.reopen(counted.clone()).unwrap();
    let opening = counted.seen().len();
    run(&host).unwrap();
    let operations = counted.seen().len() - opening;
    assert!(operations > 12, "{operations}");
    for crash_at in 0..operations {
        for with_effect in [false, true] {
            let world = World::new();
            let first = back_up(&world.vault, "app", 9, 10).unwrap();
            let faulty = Faulty::new(world.storage.clone());
            let host = world.reopen(faulty.clone()).unwrap();
            faulty.crash_after(crash_at, with_effect);
            let crashed = run(&host);
            let packs_before = world.storage.list("pack/").unwrap();
            drop(host);
            // The next process of this host, on a storage that works again.
            let host = world.reopen(world.storage.clone()).unwrap();
            let points = host.points(Some("app")).unwrap();
            assert!(points.findings.is_empty(), "{crash_at}: {:?}", points.findings);
            let point = run(&host).unwrap();
            let unlocked = unlock(world.storage.clone(), &world.fingerprint, &world.owner).unwrap();
            assert!(is_right(&unlocked, &point, 1, 60).unwrap(), "{crash_at}");
            assert!(is_right(&unlocked, &first, 9, 10).unwrap(), "{crash_at}");
            let report = unlocked.check(CheckOptions { read_data: true }).unwrap();
            assert!(report.is_sound(), "{crash_at} {with_effect}: {:?}", report.findings);
            // What was uploaded is used: every pack is in an index, and none is there twice.
            assert!(
                report.findings.iter().all(|f| f.code != "unreferenced"),
                "{crash_at} {with_effect}: {:?}",
                report.findings
            );
            let packs_after = world.storage.list("pack/").unwrap();
            assert!(packs_before.iter().all(|p| packs_after.contains(p)));
            assert!(packs_after.len() <= 3, "{crash_at} {with_effect}: {packs_after:?}");
            if crashed.is_ok() {
                assert_eq!(point.bytes_new, 0);
            }
        }
    }
}

#[test]
fn the_very_first_backup_of_a_data_set_may_crash_at_any_operation() {
    let calm = World::new();
    let counted = Faulty::new(calm.storage.clone());
    let host = calm.reopen(counted.clone()).unwrap();
    let opening = counted.seen().len();
    run(&host).unwrap();
    let operations = counted.seen().len() - opening;
    assert!(operations > 12, "{operations}");
    for crash_at in 0..operations {
        for with_effect in [false, true] {
            let world = World::new();
            let faulty = Faulty::new(world.storage.clone());
            let host = world.reopen(faulty.clone()).unwrap();
            faulty.crash_after(crash_at, with_effect);
            let _ = run(&host);
            drop(host);
            // As it lies there it is no alarm, and nothing hinders the owner.
            let unlocked = unlock(world.storage.clone(), &world.fingerprint, &world.owner).unwrap();
            let report = unlocked.check(CheckOptions { read_data: true }).unwrap();
            assert!(report.is_sound(), "{crash_at} {with_effect}: {:?}", report.findings);
            let host = world.reopen(world.storage.clone()).unwrap();
            let point = run(&host).unwrap_or_else(|error| panic!("{crash_at} {with_effect}: {error}"));
            let unlocked = unlock(world.storage.clone(), &world.fingerprint, &world.owner).unwrap();
            assert!(is_right(&unlocked, &point, 1, 60).unwrap(), "{crash_at} {with_effect}");
            let report = unlocked.check(CheckOptions { read_data: true }).unwrap();
            assert!(report.is_sound(), "{crash_at} {with_effect}: {:?}", report.findings);
            assert!(report.findings.iter().all(|f| f.code != "unreferenced"), "{:?}", report.findings);
        }
    }
}

#[test]
fn a_vault_whose_making_crashed_at_any_operation_is_made_again() {
    for crash_at in 0.. {
        let mut crashed = false;
        for with_effect in [false, true] {
            let directory = tempfile::tempdir().unwrap();
            let state = crate::world::host_state(&directory, "alpha");
            let (owner, paper) = (Identity::generate(), Identity::generate());
            let options = InitOptions {
                recipients: vec![owner.recipient(), paper.recipient()],
                datasets: vec!["app".to_owned()],
                ..InitOptions::default()
            };
            let storage = Arc::new(MemoryStorage::new());
            let faulty = Faulty::new(storage.clone());
            faulty.crash_after(crash_at, with_effect);
            crashed |= Vault::init(faulty, &state, &options).is_err();
            let (host, fingerprint) = match Vault::init(storage.clone(), &state, &options) {
                Ok((host, made)) => (host, made.owner),
                // It was whole already; only the answer was lost.
                Err(VaultError::VaultExists { owner, .. }) => {
                    (HostVault::open(storage.clone(), state.clone(), Some(&owner)).unwrap(), owner)
                }
                Err(error) => panic!("{crash_at} {with_effect}: {error}"),
            };
            let point =
                back_up(&host, "app", 1, 10).unwrap_or_else(|error| panic!("{crash_at} {with_effect}: {error}"));
            for key in [&owner, &paper] {
                let unlocked = unlock(storage.clone(), &fingerprint, key).unwrap();
                assert!(is_right(&unlocked, &point, 1, 10).unwrap(), "{crash_at} {with_effect}");
                let report = unlocked.check(CheckOptions { read_data: true }).unwrap();
                assert!(report.is_sound(), "{crash_at} {with_effect}: {:?}", report.findings);
                unlocked.add_recipient(&Identity::generate().recipient()).unwrap();
            }
        }
        if !crashed {
            assert!(crash_at > 8, "{crash_at}");
            return;
        }
    }
}

#[test]
fn a_vault_that_lost_its_roster_is_not_made_over() {
    let world = World::new();
    back_up(&world.vault, "app", 1, 10).unwrap();
    for object in world.storage.list("roster/").unwrap() {
        world.storage.delete(&object.key).unwrap();
    }
    let before = world.storage.snapshot();
    let options = InitOptions { recipients: vec![world.owner.recipient()], ..InitOptions::default() };
    let refused = Vault::init(world.storage.clone(), &world.state, &options).unwrap_err();
    insta::assert_snapshot!(refused, @"roster/0000000001 is missing from the vault; run `lifeboat vault check`, and bring it back from a copy");
    assert_eq!(world.storage.snapshot(), before);
}

/// A backup in two packs, with a checkpoint between.
fn run(host: &lifeboat_vault::HostVault) -> lifeboat_vault::Result<lifeboat_vault::PointInfo> {
    let session = host.begin("app", SessionOptions::default())?;
    put_chunks(&session, 1, 30)?;
    session.checkpoint()?;
    let ids = put_chunks(&session, 1, 60)?;
    commit(session, &ids)
}

#[test]
fn a_full_storage_fails_the_backup_and_nothing_else() {
    let world = World::new();
    let first = back_up(&world.vault, "app", 1, 10).unwrap();
    let faulty = Faulty::new(world.storage.clone());
    let host = world.reopen(faulty.clone()).unwrap();
    faulty.set_full(true);
    let failed = back_up(&host, "app", 2, 10).unwrap_err();
    insta::assert_snapshot!(
        failed.to_string().rsplit('/').next().unwrap().split_once(": ").unwrap().1,
        @"the storage at memory: is full; free some space, nothing that was stored is lost; start it again, what was uploaded is reused"
    );
    let piece = LogPiece { first: 1, last: 1, source_time: Timestamp::UNIX_EPOCH, mark: false, final_mark: false };
    let mut writer = host.log_writer("app", "l", 1).unwrap();
    assert!(matches!(writer.append(piece, b"x"), Err(VaultError::Storage { .. })));
    faulty.set_full(false);
    // The same writer goes on once there is room again.
    assert_eq!(writer.append(piece, b"x").unwrap().number, 0);
    let second = back_up(&host, "app", 2, 10).unwrap();
    assert!(is_right(&world.unlock(), &first, 1, 10).unwrap() && is_right(&world.unlock(), &second, 2, 10).unwrap());
}

#[test]
fn a_storage_that_is_gone_or_read_only_says_so() {
    let world = World::new();
    let faulty = Faulty::new(world.storage.clone());
    let host = world.reopen(faulty.clone()).unwrap();
    faulty.set_read_only(true);
    let failed = back_up(&host, "app", 1, 3).unwrap_err();
    let cause = std::error::Error::source(&failed).unwrap().to_string();
    assert!(cause.contains("does not let this process write"), "{failed}: {cause}");
    faulty.repair();
    faulty.set_gone(true);
    let failed = host.points(None).unwrap_err();
    let cause = std::error::Error::source(&failed).unwrap().to_string();
    assert!(failed.may_pass() && cause.contains("is gone"), "{failed}: {cause}");
    faulty.repair();
    back_up(&host, "app", 1, 3).unwrap();
}

#[test]
fn a_log_writer_adopts_what_it_stored_before_its_answer_was_lost() {
    let world = World::new();
    let faulty = Faulty::new(world.storage.clone());
    let host = world.reopen(faulty.clone()).unwrap();
    let mut writer = host.log_writer("app", "l", 1).unwrap();
    let piece = |n| LogPiece {
        first: n,
        last: n,
        source_time: Timestamp::from_second(n as i64).unwrap(),
        mark: false,
        final_mark: false,
    };
    for n in 0..40 {
        if n % 3 == 0 {
            faulty.crash_after(0, n % 2 == 0);
            assert!(writer.append(piece(n), b"payload").is_err());
            faulty.repair();
            if n % 4 == 0 {
                // Not the writer but its whole process was lost.
                writer = world.reopen(faulty.clone()).unwrap().log_writer("app", "l", 1).unwrap();
                if writer.last().is_some_and(|l| l.last == n) {
                    continue;
                }
            }
        }
        writer.append(piece(n), b"payload").unwrap();
    }
    let entries = host.log_entries("app", "l", None).unwrap();
    assert_eq!(entries.iter().map(|e| e.first).collect::<Vec<_>>(), (0..40).collect::<Vec<_>>());
}

#[test]
fn a_pack_that_vanished_is_uploaded_again_by_the_next_backup() {
    let world = World::new();
    let first = back_up(&world.vault, "app", 1, 30).unwrap();
    let pack = world.storage.list("pack/").unwrap().pop().unwrap();
    world.storage.delete(&pack.key).unwrap();
    let report = world.vault.check(CheckOptions::default()).unwrap();
    assert!(report.findings.iter().any(|f| f.object == pack.key && f.code == "missing"), "{:?}", report.findings);
    let second = back_up(&world.vault, "app", 1, 30).unwrap();
    assert!(second.bytes_new > 0);
    assert!(is_right(&world.unlock(), &first, 1, 30).unwrap() && is_right(&world.unlock(), &second, 1, 30).unwrap());
}

#[test]
fn a_session_that_is_dropped_leaves_no_point_and_no_thread() {
    let world = World::new();
    let session = world.vault.begin("app", SessionOptions::default()).unwrap();
    put_chunks(&session, 1, 10).unwrap();
    drop(session);
    assert!(world.vault.points(None).unwrap().points.is_empty());
    let faulty = Faulty::new(Arc::new(MemoryStorage::from_snapshot(world.storage.snapshot())));
    faulty.fail(Operation::PutIfAbsent, "pack/", 1);
    let host = world.reopen(faulty.clone()).unwrap();
    let failed = back_up(&host, "app", 1, 10).unwrap_err();
    assert!(matches!(failed, VaultError::SessionFailed { .. }), "{failed}");
    assert!(faulty.list("snap/").unwrap().is_empty());
    back_up(&host, "app", 1, 10).unwrap();
}

/// Files of this ending in the host's state directory of the vault.
fn kept_files(world: &World, ending: &str) -> Vec<std::path::PathBuf> {
    let directory = world.state.vault_directory(&world.vault.id()).unwrap();
    let all = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.to_string_lossy().ends_with(ending)).collect()
}

#[test]
fn what_a_host_keeps_of_its_indexes_saves_reading_them_and_can_be_lost() {
    let world = World::new();
    let storage = Faulty::new(world.storage.clone());
    // A new process each time.
    let back_up_again = |seed, count| {
        let before = storage.seen().len();
        let point = back_up(&world.reopen(storage.clone()).unwrap(), "app", seed, count).unwrap();
        let reads = |(operation, key): &(Operation, String)| *operation == Operation::Get && key.starts_with("index/");
        (point, storage.seen().iter().skip(before).filter(|seen| reads(seen)).count())
    };
    back_up_again(1, 400);
    back_up_again(1, 500);
    assert_eq!(back_up_again(1, 500).1, 0, "what it has published itself it does not read");
    let (same, reads) = back_up_again(1, 500);
    assert_eq!((same.bytes_new, reads), (0, 0));

    let spoil = |path: &std::path::Path, at: usize| {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[at] ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    for path in kept_files(&world, ".known") {
        spoil(&path, 40);
    }
    let (same, reads) = back_up_again(1, 500);
    assert_eq!((same.bytes_new, reads), (0, 2));
    for path in kept_files(&world, ".chunks") {
        std::fs::remove_file(path).unwrap();
    }
    let (same, reads) = back_up_again(1, 500);
    assert_eq!((same.bytes_new, reads), (0, 2));
    // A damaged page is no answer: its chunks are stored once more, and then all is well again.
    for path in kept_files(&world, ".chunks") {
        spoil(&path, 1000);
    }
    let (more, _) = back_up_again(1, 500);
    assert!(more.bytes_new > 0);
    assert!(is_right(&world.unlock(), &more, 1, 500).unwrap());
    let (same, reads) = back_up_again(1, 500);
    assert_eq!((same.bytes_new, reads), (0, 3));
}
