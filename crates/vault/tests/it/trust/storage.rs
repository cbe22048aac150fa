//! A storage that drops, swaps, replays or rolls back: each kind of object, caught by name, and never other data.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use lifeboat_vault::storage::{MemoryStorage, Storage};
use lifeboat_vault::{
    Badge, CheckOptions, HostVault, Identity, LogPiece, PointInfo, Role, Severity, State, Vault, VaultError,
};

use crate::trust::copy_tree;
use crate::world::{World, back_up, host_state, is_right, unlock};

type Objects = BTreeMap<String, Vec<u8>>;

/// Two hosts, two data sets, logs, verifications, receipts of every class, and a past to roll back to.
struct Rich {
    world: World,
    points: Vec<(PointInfo, u64)>,
    past: Objects,
}

fn rich() -> Rich {
    let world = World::new();
    let beta = host_state(&world.directory, "beta");
    let request = world.vault.request_enrolment(&beta, &[Role::Host]).unwrap();
    world.unlock().approve(&request.fingerprint).unwrap();
    let beta = HostVault::open(world.storage.clone(), beta, Some(&world.fingerprint)).unwrap();
    let mut points = Vec::new();
    let mut past = Objects::new();
    for round in 0..2 {
        for (host, dataset, seed) in [(&world.vault, "app", 1), (&world.vault, "web", 2), (&beta, "app", 3)] {
            let seed = seed + 10 * round;
            let point = back_up(host, dataset, seed, 12).unwrap();
            host.record_verification(&point, Badge::Verified, "test").unwrap();
            points.push((point, seed));
        }
        for (host, lineage) in [(&world.vault, "l1"), (&beta, "l2")] {
            let mut writer = host.log_writer("app", lineage, 1).unwrap();
            for n in 0..2 {
                let first = round * 2 + n;
                let piece =
                    LogPiece { first, last: first, source_time: Timestamp::UNIX_EPOCH, mark: false, final_mark: false };
                writer.append(piece, format!("{lineage} {first}").as_bytes()).unwrap();
            }
        }
        if round == 0 {
            past = world.storage.snapshot();
        }
    }
    world.unlock().add_recipient(&Identity::generate().recipient()).unwrap();
    world.vault.points(None).unwrap();
    for lineage in ["l1", "l2"] {
        world.vault.log_trail("app", lineage).unwrap();
    }
    Rich { world, points, past }
}

/// What somebody with the key and this machine's memory is told, and whether any point was restored as something else.
fn told(rich: &Rich, objects: Objects) -> String {
    let world = &rich.world;
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::from_snapshot(objects));
    let memory = tempfile::tempdir().unwrap();
    copy_tree(world.state.directory(), memory.path());
    let state = State::open(memory.path(), None).unwrap();
    let opened = Vault::open(storage, Some(state), Some(&world.fingerprint))
        .and_then(|vault| vault.unlock(std::slice::from_ref(&world.owner)));
    let unlocked = match opened {
        Ok(unlocked) => unlocked,
        Err(error) => return error.to_string(),
    };
    for (point, seed) in &rich.points {
        match is_right(&unlocked, point, *seed, 12) {
            Ok(right) => assert!(right, "{} was restored as something else", point.id),
            Err(error) => assert!(error.to_string().len() > 20, "{error}"),
        }
    }
    for lineage in ["l1", "l2"] {
        let Ok(trail) = unlocked.log_trail("app", lineage) else { continue };
        for entry in trail.entries {
            if let Ok(payload) = unlocked.read_log(&entry) {
                assert_eq!(payload, format!("{lineage} {}", entry.first).into_bytes());
            }
        }
    }
    match unlocked.check(CheckOptions { read_data: true }) {
        Ok(report) => {
            let loud = |f: &&lifeboat_vault::Finding| f.severity == Severity::Alarm || f.code == "recipients-differ";
            let alarms = report.findings.iter().filter(loud);
            alarms.map(|f| format!("{}: {}\n", f.object, f.message)).collect()
        }
        Err(error) => error.to_string(),
    }
}

/// Classes of objects that lie in a full vault: the first part of the key, and for keys which pair.
fn class(key: &str) -> String {
    let parts: Vec<&str> = key.split('/').collect();
    match parts.as_slice() {
        ["keys", pair, .., file] => format!("keys/{pair}/{}", file.rsplit('.').next().unwrap().len()),
        [first, ..] => (*first).to_owned(),
        [] => String::new(),
    }
}

#[test]
fn a_vault_at_rest_raises_no_alarm_and_has_every_class_of_object() {
    let rich = rich();
    let said = told(&rich, rich.world.storage.snapshot());
    assert!(said.is_empty(), "{said}");
    let classes: std::collections::BTreeSet<String> =
        rich.world.storage.snapshot().keys().map(|key| class(key)).collect();
    for wanted in ["README.txt", "roster", "pack", "index", "refs", "snap", "log", "verify"] {
        assert!(classes.contains(wanted), "{wanted}: {classes:?}");
    }
}

#[test]
fn two_objects_of_a_kind_that_changed_places_are_named() {
    let rich = rich();
    let objects = rich.world.storage.snapshot();
    let mut by_class: BTreeMap<String, Vec<&String>> = BTreeMap::new();
    for key in objects.keys().filter(|key| *key != "README.txt") {
        by_class.entry(class(key)).or_default().push(key);
    }
    let mut tried = 0;
    for (class, keys) in by_class {
        // Neighbours, and the two ends: of one chain and of two.
        let pairs = keys.windows(2).map(|pair| (pair[0], pair[1])).chain([(keys[0], keys[keys.len() - 1])]);
        for (left, right) in pairs.filter(|(left, right)| left != right && objects[*left] != objects[*right]) {
            let mut swapped = objects.clone();
            swapped.insert(left.clone(), objects[right].clone());
            swapped.insert(right.clone(), objects[left].clone());
            let said = told(&rich, swapped);
            assert!(
                said.contains(left.as_str()) || said.contains(right.as_str()),
                "{class}: {left} and {right}: {said:?}"
            );
            tried += 1;
        }
    }
    assert!(tried > 20, "{tried}");
}

#[test]
fn an_older_object_put_where_a_newer_one_belongs_is_named() {
    let rich = rich();
    let objects = rich.world.storage.snapshot();
    for prefix in ["roster/", "snap/alpha/app/", "index/alpha/app/", "log/app/l1/", "keys/refs/"] {
        let row: Vec<&String> =
            objects.keys().filter(|key| key.starts_with(prefix) && !key.ends_with(".age")).collect();
        let (first, last) = (row[0], row[row.len() - 1]);
        assert_ne!(first, last, "{prefix}");
        // In place of the newest, and as one more.
        let mut replayed = objects.clone();
        replayed.insert(last.clone(), objects[first].clone());
        let said = told(&rich, replayed);
        assert!(said.contains(last.as_str()) || said.contains("rolled back"), "{prefix}: {said:?}");
        let next = match last.strip_suffix(".cert") {
            Some(stem) => format!("{}9.cert", &stem[..stem.len() - 1]),
            None => format!("{}9", &last[..last.len() - 1]),
        };
        let mut replayed = objects.clone();
        replayed.insert(next.clone(), objects[first].clone());
        let said = told(&rich, replayed);
        assert!(said.contains(next.as_str()) || said.contains(prefix), "{prefix}: {next}: {said:?}");
    }
}

#[test]
fn each_chain_and_the_whole_vault_rolled_back_are_named() {
    let rich = rich();
    let objects = rich.world.storage.snapshot();
    for prefix in
        ["roster/", "snap/alpha/app/", "snap/beta/app/", "snap/alpha/web/", "log/app/l1/", "log/app/l2/", "keys/"]
    {
        let mut back: Objects =
            objects.iter().filter(|(key, _)| !key.starts_with(prefix)).map(|(k, b)| (k.clone(), b.clone())).collect();
        back.extend(rich.past.iter().filter(|(key, _)| key.starts_with(prefix)).map(|(k, b)| (k.clone(), b.clone())));
        assert_ne!(back, objects, "{prefix}");
        let said = told(&rich, back);
        let row = prefix.trim_end_matches('/');
        assert!(said.contains(row) || (prefix == "roster/" && said.contains("rolled back")), "{prefix}: {said:?}");
    }
    let said = told(&rich, rich.past.clone());
    assert!(said.contains("rolled back"), "{said:?}");
    // Where nothing was seen before, freshness is said to be unproven, and no wrong data comes.
    let storage = Arc::new(MemoryStorage::from_snapshot(rich.past.clone()));
    let unlocked = unlock(storage, &rich.world.fingerprint, &rich.world.owner).unwrap();
    let points = unlocked.points(None).unwrap();
    assert!(points.findings.iter().any(|f| f.code == "freshness-unproven"), "{:?}", points.findings);
    // And a host does not write on top of it.
    let memory = tempfile::tempdir().unwrap();
    copy_tree(rich.world.state.directory(), memory.path());
    let state = State::open(memory.path(), None).unwrap();
    let storage = Arc::new(MemoryStorage::from_snapshot(rich.past.clone()));
    let refused = HostVault::open(storage, state, Some(&rich.world.fingerprint)).unwrap_err();
    assert!(
        matches!(refused, VaultError::Untrusted { .. }) && refused.to_string().contains("rolled back"),
        "{refused}"
    );
}

#[test]
fn an_object_of_another_vault_of_the_same_host_is_refused() {
    let rich = rich();
    // The same machine's other vault: its objects carry right signatures of a known key.
    let storage = Arc::new(MemoryStorage::new());
    let options = lifeboat_vault::InitOptions {
        recipients: vec![rich.world.owner.recipient(), rich.world.paper.recipient()],
        ..Default::default()
    };
    let (other, _) = Vault::init(storage.clone(), &rich.world.state, &options).unwrap();
    for seed in 1..=2 {
        let point = back_up(&other, "app", seed, 12).unwrap();
        other.record_verification(&point, Badge::Corrupt, "forged").unwrap();
    }
    let mut writer = other.log_writer("app", "l1", 1).unwrap();
    for first in 0..4 {
        let piece = LogPiece { first, last: first, source_time: Timestamp::UNIX_EPOCH, mark: false, final_mark: false };
        writer.append(piece, b"of the other vault").unwrap();
    }
    let objects = rich.world.storage.snapshot();
    let mut tried = 0;
    for (key, bytes) in storage.snapshot() {
        if !objects.contains_key(&key) || key == "README.txt" {
            continue;
        }
        let mut mixed = objects.clone();
        mixed.insert(key.clone(), bytes);
        let said = told(&rich, mixed);
        assert!(said.contains(key.as_str()) || said.contains("another vault"), "{key}: {said:?}");
        tried += 1;
    }
    assert!(tried >= 8, "{tried}");
}
