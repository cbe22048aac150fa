//! A storage that lies: every object deleted, cut, flipped, rolled back or forged. The answer is right, or loud and by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use lifeboat_vault::storage::{MemoryStorage, Storage};
use lifeboat_vault::{CheckOptions, HostVault, LogPiece, Severity, Signed, SigningKey, State, Vault, VaultError};

use crate::world::{World, back_up, host_state, is_right, unlock};

fn full_world() -> (World, lifeboat_vault::PointInfo) {
    let world = World::new();
    back_up(&world.vault, "app", 1, 30).unwrap();
    let point = back_up(&world.vault, "app", 2, 40).unwrap();
    world.vault.record_verification(&point, lifeboat_vault::Badge::Verified, "test").unwrap();
    let mut writer = world.vault.log_writer("app", "l", 1).unwrap();
    for n in 0..3 {
        let piece = LogPiece { first: n, last: n, source_time: Timestamp::UNIX_EPOCH, mark: false, final_mark: false };
        writer.append(piece, b"payload").unwrap();
    }
    world.vault.log_entries("app", "l", None).unwrap();
    world.unlock().add_recipient(&lifeboat_vault::Identity::generate().recipient()).unwrap();
    world.vault.points(None).unwrap();
    (world, point)
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
    copy(world.state.directory(), directory.path());
    let state = State::open(directory.path(), None).unwrap();
    let checked = Vault::open(storage, Some(state), Some(&world.fingerprint))
        .and_then(|vault| vault.unlock(std::slice::from_ref(&world.owner)))
        .and_then(|unlocked| unlocked.check(CheckOptions { read_data: true }));
    let said = match checked {
        Ok(report) if report.is_sound() => String::new(),
        Ok(report) => report
            .findings
            .iter()
            .filter(|f| f.severity == Severity::Alarm)
            .map(|f| format!("{}\n", f.message))
            .collect(),
        Err(e) => e.to_string(),
    };
    (restored, said)
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() { copy(&path, &target) } else { std::fs::copy(&path, &target).map(|_| ()).unwrap() }
    }
}

#[test]
fn every_object_damaged_once_is_right_or_loud() {
    let (world, point) = full_world();
    let objects = world.storage.snapshot();
    let (right, said) = examine(&world, &point, objects.clone());
    assert!(right.unwrap() && said.is_empty(), "{said}");
    let mut tried = 0;
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
            let mut objects = objects.clone();
            match changed {
                None => drop(objects.remove(key)),
                Some(bytes) => drop(objects.insert(key.clone(), bytes)),
            }
            let (restored, said) = examine(&world, &point, objects);
            match &restored {
                Ok(right) => assert!(right, "{key} {what}: restored something else"),
                Err(e) => assert!(e.to_string().len() > 20, "{key} {what}: {e}"),
            }
            // A verification that is gone is only a point that is unverified.
            if key.starts_with("verify/") && what == "deleted" {
                continue;
            }
            // What is rolled back by one is named by its row: the objects that are left in it are right.
            let row = key.rsplit_once('/').unwrap().0;
            let row = row.trim_end_matches("/000000000");
            let named = said.contains(key.as_str()) || (what == "deleted" && said.contains(row));
            let rolled_back = said.contains("rolled back") && key.starts_with("roster/");
            assert!(named || rolled_back, "{key} {what}: restore {restored:?}, check said {said:?}");
        }
    }
    assert!(tried > 150, "{tried}");
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
    let started = std::time::Instant::now();
    let report = world.unlock().check(CheckOptions { read_data: true }).unwrap();
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
    assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
}
