//! Every pack damaged in turn, and healed: from a copy, and from the host that still has the data; and packs read a part at a time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use jiff::{SignedDuration, Timestamp};
use lifeboat_vault::copy::{CopyOptions, copy};
use lifeboat_vault::prune::{MoveRules, Swept};
use lifeboat_vault::storage::{Faulty, MemoryStorage, Storage};
use lifeboat_vault::{
    Badge, CheckOptions, CheckReport, KeepRules, LogPiece, Position, PruneOptions, Sample, SampleWish, SessionOptions,
    SnapshotDraft, Unlocked, Vault,
};

use crate::world::{World, back_up, host_state, is_right, put_chunks};

const ALL: CheckOptions = CheckOptions { read_data: true };
const CHUNKS: u64 = 12;

/// A world with three points that share nothing, so that there is a pack for each.
fn world() -> World {
    let world = World::new();
    for seed in 0..3 {
        back_up(&world.vault, "app", seed, CHUNKS).unwrap();
    }
    world
}

fn keys(world: &World, prefix: &str) -> Vec<String> {
    world.storage.list(prefix).unwrap().into_iter().map(|o| o.key).collect()
}

fn damage(world: &World, key: &str) {
    let mut bytes = world.storage.get(key).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    world.storage.put(key, &bytes).unwrap();
}

fn copy_of(world: &World) -> Arc<dyn Storage> {
    let target: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let state = host_state(&world.directory, "copier");
    let options = CopyOptions { parallel: 2, ..CopyOptions::new(state) };
    let source: Arc<dyn Storage> = world.storage.clone();
    copy(&source, &target, &options, &|_, _| {}, &AtomicBool::new(false)).unwrap();
    target
}

#[track_caller]
fn assert_sound(unlocked: &Unlocked) -> CheckReport {
    let report = unlocked.check(ALL).unwrap();
    assert!(report.is_sound(), "{:?}", report.findings);
    report
}

#[test]
fn every_object_damaged_or_lost_comes_back_from_a_copy() {
    let world = world();
    let copied = copy_of(&world);
    let everything = keys(&world, "");
    for (number, key) in everything.iter().filter(|key| *key != "README.txt" && !key.starts_with("roster/")).enumerate()
    {
        let right = world.storage.get(key).unwrap();
        match number % 2 {
            0 => damage(&world, key),
            _ => world.storage.delete(key).unwrap(),
        }
        // As a machine that has seen the vault as it was, without a key.
        let mut rounds = 0;
        loop {
            let vault =
                Vault::open(world.storage.clone(), Some(world.state.clone()), Some(&world.fingerprint)).unwrap();
            let report = vault.check(ALL).unwrap();
            let bad = report.bad_objects();
            if bad.is_empty() {
                break;
            }
            rounds += 1;
            assert!(rounds < 4, "{key}: {:?}", report.findings);
            let healed = vault.heal_from(&copied, &bad, &world.state).unwrap();
            assert!(healed.lost.is_empty(), "{key}: {healed:?}");
        }
        assert!(rounds > 0 || world.storage.get(key).is_err(), "{key}: nothing was found wrong");
        if rounds > 0 {
            assert_eq!(world.storage.get(key).unwrap(), right, "{key}");
        } else {
            // A chunk-id key stands in every point, too; its absence is found with a key.
            assert!(key.starts_with("keys/"), "{key}");
            world.storage.put(key, &right).unwrap();
        }
    }
    assert_sound(&world.unlock());
    // Nothing of what is right is replaced, and what the copy has damaged is not taken.
    let pack = keys(&world, "pack/").remove(0);
    damage(&world, &pack);
    let mut wrong = copied.get(&pack).unwrap();
    wrong[5] ^= 1;
    copied.put(&pack, &wrong).unwrap();
    let (right, here) = (keys(&world, "pack/").remove(1), world.storage.get(&pack).unwrap());
    let watched = Faulty::new(world.storage.clone());
    let vault = Vault::open(watched.clone(), Some(world.state.clone()), Some(&world.fingerprint)).unwrap();
    let healed = vault.heal_from(&copied, &BTreeSet::from([pack.clone(), right]), &world.state).unwrap();
    let touched = watched.seen().into_iter().filter(|(operation, key)| operation.writes() && key.starts_with("pack/"));
    assert_eq!(touched.count(), 0);
    assert_eq!((world.storage.get(&pack).unwrap(), &healed.lost), (here, &vec![pack]));
    assert!(healed.findings.iter().any(|f| f.code == "damaged"));
    let other = World::new();
    assert!(world.vault.heal_from(&(other.storage as Arc<dyn Storage>), &BTreeSet::new(), &world.state).is_err());
}

#[test]
fn a_log_that_was_gathered_comes_back_from_a_copy() {
    let world = World::new();
    let session = world.vault.begin("app", SessionOptions::default()).unwrap();
    let references = put_chunks(&session, 1, 2).unwrap();
    let position = Some(Position { lineage: "l".into(), timeline: 1, counter: 0 });
    session.commit(SnapshotDraft { references, position, ..SnapshotDraft::default() }).unwrap();
    let mut log = world.vault.log_writer("app", "l", 1).unwrap();
    for n in 1..=70 {
        let piece = LogPiece { first: n, last: n, source_time: Timestamp::now(), mark: false, final_mark: false };
        log.append(piece, format!("change {n}").as_bytes()).unwrap();
    }
    let pruner = world.unlock().pruner().unwrap();
    for days in [3, 6] {
        let now = Timestamp::now() + SignedDuration::from_hours(24 * days);
        world.storage.set_clock(now);
        let rules = Some(KeepRules { last: 1, ..KeepRules::default() });
        let options = PruneOptions { rules, now: Some(now), ..PruneOptions::default() };
        if pruner.go_on(&options).unwrap() == Swept::Nothing {
            pruner.perform(&pruner.propose(&options).unwrap(), &options).unwrap();
        }
    }
    let copied = copy_of(&world);
    let container = keys(&world, "log/").into_iter().find(|key| key.contains("/gathered/")).unwrap();
    assert_eq!(keys(&world, "log/").len(), 2);
    let right = world.storage.get(&container).unwrap();
    for lose in [true, false] {
        if lose {
            world.storage.delete(&container).unwrap()
        } else {
            damage(&world, &container)
        }
        let bad = world.vault.check(ALL).unwrap().bad_objects();
        let healed = world.vault.heal_from(&copied, &bad, &world.state).unwrap();
        assert_eq!((healed.healed, healed.lost), (vec![container.clone()], vec![]));
        assert_eq!(world.storage.get(&container).unwrap(), right);
    }
    let unlocked = world.unlock();
    let entries = unlocked.log_entries("app", "l", None).unwrap();
    let read: Vec<Vec<u8>> = entries.iter().map(|entry| unlocked.read_log(entry).unwrap()).collect();
    assert_eq!(read, (1..=70).map(|n| format!("change {n}").into_bytes()).collect::<Vec<_>>());
    assert_sound(&unlocked);
}

#[test]
fn what_says_where_moved_chunks_lie_comes_back_from_a_copy() {
    let world = world();
    let pruner = world.unlock().pruner().unwrap();
    for days in [3, 6] {
        let now = Timestamp::now() + SignedDuration::from_hours(24 * days);
        world.storage.set_clock(now);
        let moves = MoveRules { small_packs: 2, ..MoveRules::default() };
        let options = PruneOptions { moves, now: Some(now), ..PruneOptions::default() };
        if pruner.go_on(&options).unwrap() == Swept::Nothing {
            pruner.perform(&pruner.propose(&options).unwrap(), &options).unwrap();
        }
    }
    let copied = copy_of(&world);
    let moved: Vec<String> = keys(&world, "index/").into_iter().filter(|key| key.contains("/moved-")).collect();
    assert_eq!((moved.len(), keys(&world, "pack/").len()), (1, 1));
    let right = world.storage.get(&moved[0]).unwrap();
    world.storage.delete(&moved[0]).unwrap();
    let report = world.unlock().check(ALL).unwrap();
    // It is named itself; meanwhile the packs' own directories say what is in them.
    let named: Vec<&str> = report.findings.iter().filter(|f| f.code == "missing").map(|f| f.object.as_str()).collect();
    assert_eq!(named, [moved[0].as_str()], "{:?}", report.findings);
    let without = world.unlock();
    let newest = without.points(Some("app")).unwrap().points.pop().unwrap();
    assert!(is_right(&without, &newest, newest.sequence - 1, CHUNKS).unwrap());
    let healed = world.vault.heal_from(&copied, &report.bad_objects(), &world.state).unwrap();
    assert_eq!((healed.healed, healed.lost), (moved.clone(), vec![]));
    assert_eq!(world.storage.get(&moved[0]).unwrap(), right);
    let unlocked = world.unlock();
    assert_sound(&unlocked);
    for point in unlocked.points(Some("app")).unwrap().points {
        assert!(is_right(&unlocked, &point, point.sequence - 1, CHUNKS).unwrap());
    }
}

#[test]
fn every_pack_comes_back_from_the_host_that_still_has_the_data() {
    let world = world();
    for (number, pack) in keys(&world, "pack/").into_iter().enumerate() {
        match number % 2 {
            0 => damage(&world, &pack),
            _ => world.storage.delete(&pack).unwrap(),
        }
        let report = world.unlock().check(ALL).unwrap();
        assert_eq!(report.bad_objects(), BTreeSet::from([pack.clone()]));
        let bad = world.unlock().bad_packs(&report).unwrap();
        assert_eq!((bad.replaced.len(), bad.needed.as_slice()), (0, [pack.clone()].as_slice()));
        // Every later point of the same data rests on it, too.
        assert!(!bad.points.is_empty() && bad.points.iter().all(|p| p.badge == Badge::Corrupt));
        for point in &bad.points {
            world.vault.record_verification(point, Badge::Corrupt, "a pack is damaged").unwrap();
        }
        assert_eq!(world.vault.list_bad_packs(&report, &world.state).unwrap(), 1);
        assert_eq!(world.vault.list_bad_packs(&report, &world.state).unwrap(), 0, "once is enough");

        // The host still has all of it; it uploads what lay in that pack, and once.
        let uploaded: Vec<u64> =
            (0..3).map(|seed| back_up(&world.vault, "app", seed, CHUNKS).unwrap().bytes_new).collect();
        assert_eq!(uploaded.iter().filter(|bytes| **bytes > 0).count(), 1, "{uploaded:?}");
        assert_eq!(back_up(&world.vault, "app", number as u64, CHUNKS).unwrap().bytes_new, 0);

        let unlocked = world.unlock();
        let report = unlocked.check(ALL).unwrap();
        let bad = unlocked.bad_packs(&report).unwrap();
        assert_eq!((bad.replaced.as_slice(), bad.needed.len()), ([pack.clone()].as_slice(), 0));
        unlocked.give_up(&bad).unwrap();
        let unlocked = world.unlock();
        assert_sound(&unlocked);
        for point in unlocked.points(Some("app")).unwrap().points.iter().take(3) {
            assert!(is_right(&unlocked, point, point.sequence - 1, CHUNKS).unwrap());
        }
    }
    // Also who has no key misses nothing.
    assert!(world.vault.check(ALL).unwrap().is_sound());
    // Nor does a copy, which is told of them, and carries none.
    let damaged: Vec<String> = keys(&world, "pack/").into_iter().filter(|key| is_damaged(&world, key)).collect();
    assert_eq!(damaged.len(), 2);
    let copied = copy_of(&world);
    assert!(damaged.iter().all(|key| copied.get(key).is_err()));
    let copy = Vault::open(copied, None, Some(&world.fingerprint)).unwrap();
    assert!(copy.check(ALL).unwrap().is_sound());
    // What was given up goes by a prune, when that has looked again, and nothing else does.
    let before = keys(&world, "pack/").len();
    let mut options = PruneOptions::default();
    for day in [3, 6] {
        let now = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * day);
        world.storage.set_clock(now);
        options.now = Some(now);
        let pruner = world.unlock().pruner().unwrap();
        match day {
            3 => {
                let proposed = pruner.propose(&options).unwrap();
                assert_eq!((proposed.packs, proposed.pruned().count()), (2, 0));
                pruner.perform(&proposed, &options).unwrap();
            }
            _ => assert!(matches!(pruner.go_on(&options).unwrap(), Swept::Done(_))),
        }
    }
    assert_eq!(keys(&world, "pack/").len(), before - 2);
    assert!(damaged.iter().all(|key| world.storage.get(key).is_err()));
    let unlocked = world.unlock();
    assert_sound(&unlocked);
    for point in unlocked.points(Some("app")).unwrap().points.iter().take(3) {
        assert!(is_right(&unlocked, point, point.sequence - 1, CHUNKS).unwrap());
    }
}

fn is_damaged(world: &World, key: &str) -> bool {
    let named = key.rsplit('/').next().unwrap();
    blake3::hash(&world.storage.get(key).unwrap()).to_hex().as_str() != named
}

#[test]
fn only_the_owner_gives_a_pack_up() {
    let world = world();
    let pack = keys(&world, "pack/").remove(0);
    world.storage.delete(&pack).unwrap();
    let report = world.vault.check(ALL).unwrap();
    world.vault.list_bad_packs(&report, &world.state).unwrap();
    // The host makes of its own list one that gives the pack up, and signs it.
    let list = keys(&world, "heal/").remove(0);
    let (at, bytes) = (list.rsplit_once('/').unwrap().0.to_owned(), world.storage.get(&list).unwrap());
    let opened = lifeboat_vault::Signed::open("vault.heal", &list, &bytes).unwrap();
    let mut payload = opened.payload.clone();
    let state = payload.windows(4).position(|bytes| bytes == b"\x63app").unwrap() + 4;
    assert_eq!(payload[state], 0);
    payload[state] = 2;
    let forged = lifeboat_vault::Signed::seal("vault.heal", &payload, world.state.signing_key()).unwrap();
    world.storage.put(&format!("{at}/99999999999999999999-0"), &forged).unwrap();
    let report = world.vault.check(ALL).unwrap();
    assert!(report.bad_objects().contains(&pack), "{:?}", report.findings);
    assert!(report.findings.iter().any(|f| f.code == "untrusted" && f.message.contains("may not give up")));
}

#[test]
fn within_so_many_samples_everything_was_read() {
    let world = World::new();
    for seed in 0..12 {
        back_up(&world.vault, "app", seed, 2).unwrap();
    }
    let packs = keys(&world, "pack/");
    assert_eq!(packs.len(), 12);
    for pack in &packs {
        damage(&world, pack);
    }
    let mut found = BTreeSet::new();
    let mut parts = Vec::new();
    for _ in 0..4 {
        let sample = world.vault.sample(SampleWish::Next(4)).unwrap();
        let report = world.vault.check_sample(sample).unwrap();
        let bad = report.bad_objects();
        assert_eq!(report.sample, Some(sample));
        assert!(bad.iter().all(|pack| found.insert(pack.clone())), "a pack was read twice");
        assert_eq!(world.unlock().check_sample(sample).unwrap().bad_objects(), bad, "with a key, too");
        world.vault.sample_read(sample).unwrap();
        parts.push(sample.part);
    }
    assert_eq!((parts, found.into_iter().collect::<Vec<_>>()), (vec![0, 1, 2, 3], packs));
    assert_eq!(world.vault.sample(SampleWish::Next(4)).unwrap(), Sample { part: 0, of: 4 });
}
