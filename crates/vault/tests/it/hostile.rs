//! A storage that lies: every object deleted, cut, flipped, rolled back or forged. The answer is right, or loud and by name.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use jiff::{SignedDuration, Timestamp};
use lifeboat_vault::copy::{CopyOptions, copy};
use lifeboat_vault::prune::{Hand, Held, MoveRules, Swept};
use lifeboat_vault::storage::{Faulty, FsStorage, MemoryStorage, Storage};
use lifeboat_vault::{
    CheckOptions, HostVault, InitOptions, KeepRules, LogPiece, Position, PruneOptions, ReceiptBook, Role,
    SessionOptions, Severity, Signed, SigningKey, SnapshotDraft, State, Vault, VaultError,
};

use crate::trust::copy_tree;
use crate::world::{World, back_up, host_state, is_right, put_chunks, unlock};

/// Something of every kind that a vault has: points that were pruned and swept, some that are about to be, what is held, what came when.
fn full_world() -> (World, lifeboat_vault::PointInfo) {
    let world = World::new();
    for seed in 11..=17 {
        back_up(&world.vault, "old", seed, 4).unwrap();
    }
    back_up(&world.vault, "app", 1, 30).unwrap();
    let point = back_up(&world.vault, "app", 2, 40).unwrap();
    world.vault.record_verification(&point, lifeboat_vault::Badge::Verified, "test").unwrap();
    let (keeper, copier) = (host_state(&world.directory, "keeper"), host_state(&world.directory, "copier"));
    let request = world.vault.request_enrolment(&keeper, &[Role::Keeper]).unwrap();
    world.unlock().approve(&request.fingerprint).unwrap();
    world.vault.request_enrolment(&copier, &[Role::Observer]).unwrap();
    let mut receipts = ReceiptBook::new(world.storage.clone(), &world.vault.id(), keeper);
    for second in 1..=2 {
        receipts.take(&point.key, [7; 32], 9, Timestamp::from_second(second).unwrap());
        receipts.sign().unwrap();
    }
    stream(&world);
    prune_old(&world);
    let mut writer = world.vault.log_writer("app", "l", 1).unwrap();
    for n in 0..3 {
        let piece = LogPiece { first: n, last: n, source_time: Timestamp::UNIX_EPOCH, mark: false, final_mark: false };
        writer.append(piece, b"payload").unwrap();
    }
    world.vault.log_entries("app", "l", None).unwrap();
    let by = Hand::Member(&world.state);
    world.vault.hold(by, &Held::Dataset("app".to_owned()), None, "test").unwrap();
    world.vault.hold(by, &Held::Point(point.id.clone()), None, "test").unwrap();
    world.vault.freeze(by, "test").unwrap();
    world.unlock().release_freeze("test").unwrap();
    // Another vault of its host's has come as far as this.
    let recipients = vec![lifeboat_vault::Identity::generate().recipient()];
    let options = InitOptions { recipients, ..InitOptions::default() };
    let elsewhere = Arc::new(FsStorage::create(world.directory.path().join("other")).unwrap());
    let (other, _) = Vault::init(elsewhere, &world.state, &options).unwrap();
    assert!(world.vault.witness(&other).unwrap());
    // A place that is somebody's copy, and knows of a bad pack that came back.
    let options = CopyOptions { parallel: 2, ..CopyOptions::new(copier) };
    let second: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let here: Arc<dyn Storage> = world.storage.clone();
    copy(&here, &second, &options, &|_, _| {}, &AtomicBool::new(false)).unwrap();
    copy(&second, &here, &options, &|_, _| {}, &AtomicBool::new(false)).unwrap();
    let pack = world.storage.list("pack/").unwrap().remove(0).key;
    world.storage.delete(&pack).unwrap();
    let report = world.vault.check(CheckOptions::default()).unwrap();
    assert_eq!(world.vault.list_bad_packs(&report, &world.state).unwrap(), 1);
    world.vault.heal_from(&second, &report.bad_objects(), &world.state).unwrap();
    world.unlock().add_recipient(&lifeboat_vault::Identity::generate().recipient()).unwrap();
    world.vault.points(None).unwrap();
    world.vault.check(CheckOptions::default()).unwrap();
    (world, point)
}

/// A log that a point goes on with, so long that it will be gathered; and one that no point needs.
fn stream(world: &World) {
    let session = world.vault.begin("stream", SessionOptions::default()).unwrap();
    let references = put_chunks(&session, 20, 3).unwrap();
    let position = Position { lineage: "g".into(), timeline: 1, counter: 0 };
    let root = references.iter().flat_map(|id| id.0).collect();
    let draft = SnapshotDraft { root, references, position: Some(position), ..SnapshotDraft::default() };
    session.commit(draft).unwrap();
    for (lineage, pieces) in [("g", 70), ("unneeded", 3)] {
        let mut writer = world.vault.log_writer("stream", lineage, 1).unwrap();
        for n in 1..=pieces {
            let piece =
                LogPiece { first: n, last: n, source_time: Timestamp::UNIX_EPOCH, mark: false, final_mark: false };
            writer.append(piece, b"change").unwrap();
        }
        world.vault.log_entries("stream", lineage, None).unwrap();
    }
}

/// Sweeps points of `old` one by one, until records are folded and packs moved, and proposes one more.
fn prune_old(world: &World) {
    let pruner = world.unlock().pruner().unwrap();
    let on_day = |day: i64, last: u32| {
        let now = Timestamp::now() + SignedDuration::from_hours(24 * day);
        world.storage.set_clock(now);
        PruneOptions {
            datasets: [("old".to_owned(), KeepRules { last, ..KeepRules::default() })].into(),
            min_age: SignedDuration::ZERO,
            moves: MoveRules { small_packs: 2, ..MoveRules::default() },
            fold_after: 3,
            now: Some(now),
            ..PruneOptions::default()
        }
    };
    for (day, last) in [(3, 6), (9, 5), (15, 4), (21, 3), (27, 2), (33, 1)] {
        let options = on_day(day, last);
        pruner.perform(&pruner.propose(&options).unwrap(), &options).unwrap();
        if last > 1 {
            assert!(matches!(pruner.go_on(&on_day(day + 3, last)).unwrap(), Swept::Done(_)));
        }
    }
    world.storage.set_clock(Timestamp::now());
}

/// What an owner finds out with the key and this machine's memory: (restore, findings).
fn examine(
    world: &World,
    point: &lifeboat_vault::PointInfo,
    objects: BTreeMap<String, Vec<u8>>,
) -> (Result<bool, VaultError>, String) {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::from_snapshot(objects));
    let restored = unlock(storage.clone(), &world.fingerprint, &world.owner).and_then(|unlocked| {
        let points = unlocked.points(Some("app"))?;
        let found =
            points.points.iter().find(|p| p.id == point.id).ok_or(VaultError::Missing { object: point.key.clone() })?;
        is_right(&unlocked, found, 2, 40)
    });
    // The state is copied: what one of these vaults shows must not be remembered for the next.
    let directory = tempfile::tempdir().unwrap();
    copy_tree(world.state.directory(), directory.path());
    let state = State::open(directory.path(), None).unwrap();
    let checked = Vault::open(storage, Some(state), Some(&world.fingerprint))
        .and_then(|vault| vault.unlock(std::slice::from_ref(&world.owner)))
        .and_then(|unlocked| unlocked.check(CheckOptions { read_data: true }));
    let said = match checked {
        Ok(report) => report
            .findings
            .iter()
            .filter(|f| {
                f.severity == Severity::Alarm || matches!(f.code, "damaged" | "untrusted" | "missing" | "half-copy")
            })
            .map(|f| format!("{}\n", f.message))
            .collect(),
        Err(e) => e.to_string(),
    };
    (restored, said)
}

/// The same vault after the prune that is under way was given up.
fn abandoned(world: &World, objects: BTreeMap<String, Vec<u8>>) -> BTreeMap<String, Vec<u8>> {
    let storage = Arc::new(MemoryStorage::from_snapshot(objects));
    let pruner = unlock(storage.clone(), &world.fingerprint, &world.owner).unwrap().pruner().unwrap();
    assert_eq!(pruner.abandon().unwrap(), 6);
    storage.snapshot()
}

/// What is rolled back by one is named by its row: the objects that are left in it are right.
fn is_named(key: &str, what: &str, said: &str) -> bool {
    let row = key.rsplit_once('/').unwrap().0.trim_end_matches("/000000000").trim_end_matches("/gathered");
    let rolled_back = said.contains("rolled back") && (key.starts_with("roster/") || key.starts_with("prune/"));
    // What explained where others are, and that they went: those are missed.
    let explains = (key.contains("/moved-") && said.contains("in no pack of the vault"))
        || (key.ends_with("/fold") && said.contains("no tombstone"));
    said.contains(key) || (what == "deleted" && (said.contains(row) || explains)) || rolled_back
}

/// Every point that is listed, each of which must be restored to its end.
fn all_points(world: &World, objects: BTreeMap<String, Vec<u8>>) -> Vec<String> {
    let storage = Arc::new(MemoryStorage::from_snapshot(objects));
    let unlocked = unlock(storage, &world.fingerprint, &world.owner).unwrap();
    let report = unlocked.check(CheckOptions { read_data: true }).unwrap();
    assert!(report.is_sound(), "{:?}", report.findings);
    unlocked.points(None).unwrap().points.into_iter().map(|point| point.id).collect()
}

#[test]
fn every_object_damaged_once_is_right_or_loud() {
    let (world, point) = full_world();
    let objects = world.storage.snapshot();
    let (right, said) = examine(&world, &point, objects.clone());
    assert!(right.unwrap() && said.is_empty(), "{said}");
    let with_all_points = abandoned(&world, objects.clone());
    let (mut tried, mut silent) = (0, Vec::new());
    for (key, bytes) in &objects {
        if key == "README.txt" {
            continue; // for people; nothing rests on it
        }
        let mut variants: Vec<(String, Option<Vec<u8>>)> =
            vec![("deleted".into(), None), ("emptied".into(), Some(Vec::new()))];
        variants.push(("cut".into(), Some(bytes[..bytes.len() / 2].to_vec())));
        variants.push(("cut by one".into(), Some(bytes[..bytes.len() - 1].to_vec())));
        variants.push(("longer".into(), Some([bytes.as_slice(), b"x"].concat())));
        for place in [0, bytes.len() / 5, bytes.len() / 2, bytes.len() - 1] {
            let mut flipped = bytes.clone();
            flipped[place] ^= 0x10;
            variants.push((format!("flipped at {place}"), Some(flipped)));
        }
        for (what, changed) in variants {
            tried += 1;
            let damaged = |whole: &BTreeMap<String, Vec<u8>>| {
                let mut objects = whole.clone();
                match &changed {
                    None => drop(objects.remove(key)),
                    Some(bytes) => drop(objects.insert(key.clone(), bytes.clone())),
                }
                objects
            };
            let (restored, said) = examine(&world, &point, damaged(&objects));
            match &restored {
                Ok(right) => assert!(right, "{key} {what}: restored something else"),
                Err(e) => assert!(e.to_string().len() > 20, "{key} {what}: {e}"),
            }
            // Gone, these only mean that a point is unverified, that a pack is looked at again, who copied from where, who asks to
            // join, that another vault has one witness less, that a prune is finished once more, or that a point that was to be pruned is not.
            let is_missed =
                !["verify/", "heal/", "copy/", "enroll/", "witness/"].iter().any(|kind| key.starts_with(kind))
                    && !key.ends_with("/done")
                    && key != "tombstone/alpha/old/0000000006";
            if what == "deleted" && !is_missed {
                continue;
            }
            // What something else says as well is not missed: nothing is lost, and nothing comes back.
            let is_repeated =
                ["tombstone/", "prune/"].iter().any(|kind| key.starts_with(kind)) || key.contains("/moved-");
            if is_repeated && said.is_empty() {
                assert_eq!(all_points(&world, damaged(&objects)), all_points(&world, objects.clone()), "{key} {what}");
                continue;
            }
            // What only a point needs that is pruned and not swept is missed as soon as the point is there again.
            if !is_named(key, &what, &said)
                && !is_named(key, &what, &examine(&world, &point, damaged(&with_all_points)).1)
            {
                silent.push(format!("{key} {what}: restore {restored:?}, check said {said:?}"));
            }
        }
    }
    assert!(silent.is_empty(), "{}", silent.join("\n"));
    assert!(tried > 400, "{tried}");
    assert!(objects.keys().any(|key| key.contains("/moved-")) && objects.keys().any(|key| key.ends_with("/fold")));
    let logs: Vec<&String> = objects.keys().filter(|key| key.starts_with("log/stream/")).collect();
    assert!(logs.len() == 3 && logs.iter().any(|key| key.contains("/gathered/")), "{logs:?}");
    let kinds: std::collections::BTreeSet<&str> = objects.keys().map(|key| key.split('/').next().unwrap()).collect();
    let wanted = [
        "README.txt",
        "copy",
        "enroll",
        "freeze",
        "heal",
        "hold",
        "index",
        "keys",
        "log",
        "pack",
        "prune",
        "receipt",
        "refs",
        "roster",
        "snap",
        "tombstone",
        "verify",
        "witness",
    ];
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), wanted);
}

#[test]
fn a_rolled_back_newest_point_is_caught_where_it_was_seen_and_unproven_elsewhere() {
    let world = World::new();
    back_up(&world.vault, "app", 1, 5).unwrap();
    let newest = back_up(&world.vault, "app", 2, 5).unwrap();
    world.storage.delete(&newest.key).unwrap();
    let points = world.vault.points(None).unwrap();
    assert!(points.findings.iter().any(|f| f.code == "rolled-back" && f.object == newest.key), "{:?}", points.findings);
    let elsewhere = world.unlock().points(None).unwrap();
    assert!(elsewhere.findings.iter().all(|f| f.severity != Severity::Alarm));
    assert!(elsewhere.findings.iter().any(|f| f.code == "freshness-unproven"), "{:?}", elsewhere.findings);
    // The next backup does not hide it.
    let next = back_up(&world.vault, "app", 3, 5).unwrap();
    assert_eq!(next.sequence, 3);
    let elsewhere = world.unlock().points(None).unwrap();
    assert!(
        elsewhere.findings.iter().any(|f| f.code == "missing" && f.object == newest.key),
        "{:?}",
        elsewhere.findings
    );
    // Everything gone at once is noticed, too.
    for object in world.storage.list("snap/").unwrap() {
        world.storage.delete(&object.key).unwrap();
    }
    assert!(world.vault.points(None).unwrap().findings.iter().any(|f| f.code == "rolled-back"));
}

#[test]
fn a_rolled_back_log_is_caught() {
    let (world, _) = full_world();
    let last = world.vault.log_entries("app", "l", None).unwrap().pop().unwrap();
    world.storage.delete(&last.key).unwrap();
    let caught = world.vault.log_entries("app", "l", None);
    assert!(matches!(caught, Err(VaultError::RolledBack { .. })), "{caught:?}");
    assert_eq!(world.vault.log_trail("app", "l").unwrap().entries.len(), 2);
}

#[test]
fn a_revoked_host_counts_up_to_then_and_not_after() {
    let world = World::new();
    let before = back_up(&world.vault, "app", 1, 5).unwrap();
    let thief_state = host_state(&world.directory, "alpha");
    world.unlock().revoke("alpha").unwrap();
    assert!(matches!(
        world.vault.begin("app", lifeboat_vault::SessionOptions::default()),
        Err(VaultError::Revoked { .. })
    ));
    assert!(matches!(world.reopen(world.storage.clone()), Err(VaultError::Revoked { .. })));
    // Its key still signs, but what it signs does not count.
    let key = thief_state.signing_key();
    let forged_key = "snap/alpha/app/0000000002";
    let honest = Signed::open("vault.snapshot", forged_key, &world.storage.get(&before.key).unwrap()).unwrap();
    let forged = Signed::seal("vault.snapshot", &honest.payload, key).unwrap();
    world.storage.put(forged_key, &forged).unwrap();
    let points = world.unlock().points(None).unwrap();
    assert_eq!(points.points.len(), 1);
    assert!(points.findings.iter().any(|f| f.object == forged_key && f.code == "untrusted"), "{:?}", points.findings);
    assert!(is_right(&world.unlock(), &before, 1, 5).unwrap());
}

#[test]
fn a_forged_or_rolled_back_roster_is_refused() {
    let (world, _) = full_world();
    let objects = world.storage.snapshot();
    // Signed by somebody else.
    let newest = objects.keys().rfind(|k| k.starts_with("roster/")).unwrap();
    let honest = Signed::open("vault.roster", newest, &objects[newest]).unwrap();
    let forged = Signed::seal("vault.roster", &honest.payload, &SigningKey::generate().unwrap()).unwrap();
    world.storage.put(newest, &forged).unwrap();
    let refused = HostVault::open(world.storage.clone(), host_copy(&world), None).unwrap_err();
    assert!(refused.to_string().contains("roster"), "{refused}");
    // Taken away: this machine remembers.
    world.storage.delete(newest).unwrap();
    let refused = HostVault::open(world.storage.clone(), host_copy(&world), None).unwrap_err();
    assert!(refused.to_string().contains("rolled back"), "{refused}");
    let report = Vault::open(world.storage.clone(), Some(host_copy(&world)), None)
        .unwrap()
        .check(CheckOptions::default())
        .unwrap();
    assert!(
        report.findings.iter().any(|f| f.code == "rolled-back" && f.object == "the roster"),
        "{:?}",
        report.findings
    );
}

/// The same host in a new process.
fn host_copy(world: &World) -> State {
    State::open(world.state.directory(), None).unwrap()
}

#[test]
fn a_content_key_of_somebody_else_is_refused() {
    let world = World::new();
    back_up(&world.vault, "app", 1, 5).unwrap();
    let stranger = World::new();
    back_up(&stranger.vault, "app", 1, 5).unwrap();
    for (key, bytes) in stranger.storage.snapshot() {
        if key.starts_with("keys/content/") {
            world.storage.put(&key, &bytes).unwrap();
        }
    }
    let refused = world.vault.begin("app", lifeboat_vault::SessionOptions::default()).unwrap_err();
    assert!(matches!(refused, VaultError::Untrusted { .. }), "{refused}");
}

#[test]
fn huge_numbers_and_strange_names_cost_nothing_and_are_named() {
    let (world, point) = full_world();
    let check = || {
        let counted = Faulty::new(world.storage.clone());
        let unlocked = unlock(counted.clone(), &world.fingerprint, &world.owner).unwrap();
        (unlocked.check(CheckOptions { read_data: true }).unwrap(), counted.seen().len())
    };
    let (_, asked_before) = check();
    for key in [
        "snap/alpha/app/9999999999",
        "index/alpha/app/9999999999",
        "roster/9999999999",
        "log/app/l/0000000001/999999999/999",
    ] {
        world.storage.put(key, b"junk").unwrap();
    }
    for key in [
        "snap/x",
        "index/alpha/app/junk",
        "roster/junk",
        "pack/zz/junk",
        "log/app/l/x/y/z",
        "keys/content/app/junk",
        "enroll/junk",
    ] {
        world.storage.put(key, b"junk").unwrap();
    }
    let (report, asked) = check();
    for key in [
        "snap/alpha/app/9999999999",
        "index/alpha/app/9999999999",
        "roster/9999999999",
        "snap/x",
        "index/alpha/app/junk",
        "roster/junk",
    ] {
        assert!(
            report.findings.iter().any(|f| f.object == key),
            "{key}: {:?}",
            report.findings.iter().map(|f| &f.object).collect::<Vec<_>>()
        );
    }
    assert!(is_right(&world.unlock(), &point, 2, 40).unwrap());
    // A thousand points that seem to be missing are looked for, each time that points are read.
    assert!(asked < asked_before + 8_000, "asked the storage {asked} times, and {asked_before} times before");
}
