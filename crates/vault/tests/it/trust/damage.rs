//! Random damage anywhere in a vault: the restore is right or fails with a name, the check says something, nothing panics.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use lifeboat_vault::storage::MemoryStorage;
use lifeboat_vault::{Badge, CheckOptions, Identity, LogPiece, PointInfo, State, Vault};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::trust::copy_tree;
use crate::world::{World, back_up, is_right};

#[derive(Debug, Clone)]
enum Damage {
    Delete,
    Cut(Index),
    Flip(Index, u8),
    Overwrite(Index, Vec<u8>),
    Insert(Index, Vec<u8>),
    /// A piece of one object in another.
    Splice(Index, Index),
    Exchange(Index),
}

struct Whole {
    objects: BTreeMap<String, Vec<u8>>,
    owner: Identity,
    fingerprint: String,
    points: Vec<(PointInfo, u64, u64)>,
    /// What a machine remembers that has seen all of it: without, nobody can tell that the newest of a row is gone.
    memory: tempfile::TempDir,
}

/// Made once: damage is done to copies.
fn whole() -> &'static Whole {
    static WHOLE: OnceLock<Whole> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let world = World::new();
        let mut points = Vec::new();
        for (dataset, seed, count) in [("app", 1, 25), ("app", 2, 40), ("web", 3, 7), ("empty", 4, 0)] {
            let point = back_up(&world.vault, dataset, seed, count).unwrap();
            world.vault.record_verification(&point, Badge::Verified, "test").unwrap();
            points.push((point, seed, count));
        }
        let mut writer = world.vault.log_writer("app", "l", 1).unwrap();
        for first in 0..3 {
            let piece =
                LogPiece { first, last: first, source_time: Timestamp::UNIX_EPOCH, mark: false, final_mark: false };
            writer.append(piece, b"payload of a log").unwrap();
        }
        world.unlock().add_recipient(&Identity::generate().recipient()).unwrap();
        world.vault.points(None).unwrap();
        world.vault.log_trail("app", "l").unwrap();
        let memory = tempfile::tempdir().unwrap();
        copy_tree(world.state.directory(), memory.path());
        let objects = world.storage.snapshot();
        Whole { objects, owner: world.owner.clone(), fingerprint: world.fingerprint, points, memory }
    })
}

fn damage() -> impl Strategy<Value = Damage> {
    let bytes = || prop::collection::vec(any::<u8>(), 1..40);
    prop_oneof![
        1 => Just(Damage::Delete),
        1 => any::<Index>().prop_map(Damage::Cut),
        4 => (any::<Index>(), 1..=255u8).prop_map(|(at, mask)| Damage::Flip(at, mask)),
        2 => (any::<Index>(), bytes()).prop_map(|(at, bytes)| Damage::Overwrite(at, bytes)),
        1 => (any::<Index>(), bytes()).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(other, at)| Damage::Splice(other, at)),
        1 => any::<Index>().prop_map(Damage::Exchange),
    ]
}

fn apply(objects: &mut BTreeMap<String, Vec<u8>>, keys: &[String], key: &str, damage: &Damage) {
    let mut bytes = objects[key].clone();
    let length = bytes.len().max(1);
    match damage {
        Damage::Delete => {
            objects.remove(key);
            return;
        }
        Damage::Cut(at) => bytes.truncate(at.index(length)),
        Damage::Flip(at, mask) => bytes[at.index(length)] ^= mask,
        Damage::Overwrite(at, with) => {
            let at = at.index(length);
            for (place, byte) in bytes[at..].iter_mut().zip(with) {
                *place = *byte;
            }
        }
        Damage::Insert(at, with) => drop(bytes.splice(at.index(length)..at.index(length), with.iter().copied())),
        Damage::Splice(other, at) => {
            let from = &objects[other.get(keys)];
            let at = at.index(length).min(from.len());
            bytes.truncate(at);
            bytes.extend_from_slice(&from[at..]);
        }
        Damage::Exchange(other) => {
            let other = other.get(keys).clone();
            let theirs = objects.insert(other, bytes).unwrap();
            bytes = theirs;
        }
    }
    objects.insert(key.to_owned(), bytes);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 50, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn damage_anywhere_is_right_or_loud(places in prop::collection::vec((any::<Index>(), damage()), 1..4)) {
        let whole = whole();
        let mut objects = whole.objects.clone();
        let keys: Vec<String> = objects.keys().filter(|key| *key != "README.txt").cloned().collect();
        for (place, damage) in &places {
            let key = place.get(&keys);
            if objects.contains_key(key) && keys.iter().all(|key| objects.contains_key(key)) {
                apply(&mut objects, &keys, key, damage);
            }
        }
        // A verification that is gone is only a point that is unverified.
        let gone_only = |(key, bytes): (&String, &Vec<u8>)| match objects.get(key) {
            Some(there) => there == bytes,
            None => key.starts_with("verify/"),
        };
        let unharmed = whole.objects.iter().all(gone_only);
        let storage = Arc::new(MemoryStorage::from_snapshot(objects));
        let memory = tempfile::tempdir().unwrap();
        copy_tree(whole.memory.path(), memory.path());
        let state = State::open(memory.path(), None).unwrap();
        let opened = Vault::open(storage, Some(state), Some(&whole.fingerprint));
        match opened.and_then(|vault| vault.unlock(std::slice::from_ref(&whole.owner))) {
            Err(error) => {
                prop_assert!(error.to_string().len() > 20, "{}", error);
            }
            Ok(unlocked) => {
                let mut all_right = true;
                for (point, seed, count) in &whole.points {
                    match is_right(&unlocked, point, *seed, *count) {
                        Ok(right) => prop_assert!(right, "{} came back as something else", point.id),
                        Err(error) => {
                            // The newest of a row that is gone is not missed without a memory; see below.
                            all_right &= unlocked.storage().get(&point.key).is_err();
                            prop_assert!(error.to_string().len() > 20, "{}", error);
                        }
                    }
                }
                if let Ok(trail) = unlocked.log_trail("app", "l") {
                    for entry in trail.entries {
                        if let Ok(payload) = unlocked.read_log(&entry) {
                            prop_assert_eq!(payload, b"payload of a log");
                        }
                    }
                }
                let report = unlocked.check(CheckOptions { read_data: true });
                let silent = report.as_ref().is_ok_and(|report| report.findings.is_empty());
                prop_assert!(unharmed || !silent, "{:?}", places);
                prop_assert!(all_right || !report.is_ok_and(|report| report.is_sound()), "the check is content: {:?}", places);
            }
        }
    }
}
