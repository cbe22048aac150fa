//! Pruning logs: they reach back as far as points or a window need them, and lie in few objects.

use jiff::{SignedDuration, Timestamp};
use lifeboat_vault::prune::Swept;
use lifeboat_vault::serve::{Rights, Who};
use lifeboat_vault::storage::{Faulty, MemoryStorage, Operation, Storage};
use lifeboat_vault::{
    CheckOptions, ChunkSink, HostVault, LogEntry, LogPiece, PointInfo, Position, PruneOptions, SessionOptions,
    SnapshotDraft, Unlocked, Vault,
};
use std::sync::Arc;

use super::{at, check_is_silent, keys, last, later, prune_all, pruner};
use crate::serve::world::Near;
use crate::world::{World, host_state, unlock};

pub(super) const LINEAGE: &str = "l";

pub(super) fn payload(n: u64) -> Vec<u8> {
    format!("transaction {n}").into_bytes()
}

/// Appends transactions, one an object, to the log of `app`.
pub(super) fn append(vault: &HostVault, transactions: std::ops::RangeInclusive<u64>) {
    append_as(vault, transactions, payload);
}

pub(super) fn append_as(vault: &HostVault, transactions: std::ops::RangeInclusive<u64>, words: fn(u64) -> Vec<u8>) {
    let mut writer = vault.log_writer("app", LINEAGE, 1).unwrap();
    for n in transactions {
        let piece = LogPiece { first: n, last: n, source_time: Timestamp::now(), mark: false, final_mark: false };
        writer.append(piece, &words(n)).unwrap();
    }
}

/// A full point that the log goes on from after this transaction.
pub(super) fn base(vault: &HostVault, counter: u64) -> PointInfo {
    let session = vault.begin("app", SessionOptions::default()).unwrap();
    let id = session.put(&[counter as u8; 3000]).unwrap().id;
    let position = Position { lineage: LINEAGE.to_owned(), timeline: 1, counter };
    let draft = SnapshotDraft {
        root: id.0.to_vec(),
        references: vec![id],
        source_time: Timestamp::now(),
        position: Some(position),
        ..SnapshotDraft::default()
    };
    session.commit(draft).unwrap()
}

/// What follows a point, as a restore reads it.
pub(super) fn follows(unlocked: &Unlocked, point: &PointInfo) -> Vec<u64> {
    let trail = unlocked.log_since("app", point.position.as_ref().unwrap()).unwrap();
    let right = |entry: &LogEntry| {
        assert_eq!(unlocked.read_log(entry).unwrap(), payload(entry.first));
        entry.first
    };
    let counter = point.position.as_ref().unwrap().counter;
    trail.entries.iter().filter(|entry| entry.first > counter).map(right).collect()
}

pub(super) fn numbers(range: std::ops::RangeInclusive<u64>) -> Vec<u64> {
    range.collect()
}

/// Objects in the log: alone, and containers.
pub(super) fn lying(world: &World) -> (usize, usize) {
    let (gathered, alone): (Vec<String>, Vec<String>) =
        keys(world, "log/").into_iter().partition(|key| key.contains("/gathered/"));
    (alone.len(), gathered.len())
}

/// Three points with two hundred transactions after each.
fn three_bases() -> (World, Vec<PointInfo>) {
    let world = World::new();
    let mut points = Vec::new();
    for n in 0..3 {
        points.push(base(&world.vault, n * 200));
        append(&world.vault, n * 200 + 1..=n * 200 + 200);
    }
    (world, points)
}

#[test]
fn a_log_goes_as_far_as_no_point_needs_it_and_the_rest_is_gathered() {
    let (world, points) = three_bases();
    let options = last(2);
    let pruner = pruner(&world);
    let day_3 = at(&world, 3, &options);
    let proposed = pruner.propose(&day_3).unwrap();
    assert_eq!((proposed.log_objects, proposed.log_gathered, proposed.log_containers), (199, 400, 1), "{proposed:?}");
    assert!(keys(&world, "log/").len() == 600 && proposed.log_bytes > 100_000);
    pruner.perform(&proposed, &day_3).unwrap();
    // Both ways lie there for a while, and either is right.
    assert_eq!(lying(&world), (600, 1));
    assert_eq!(follows(&world.unlock(), &points[1]), numbers(201..=600));
    let Swept::Done(swept) = pruner.go_on(&at(&world, 6, &options)).unwrap() else { panic!("not swept") };
    assert!(swept.objects > 599, "{swept:?}");
    assert_eq!(lying(&world), (1, 1));
    assert_eq!(follows(&world.unlock(), &points[1]), numbers(201..=600));
    assert_eq!(follows(&world.unlock(), &points[2]), numbers(401..=600));
    check_is_silent(&world);
    // The host goes on from the end, as a new process and as one that ran all the while.
    let again = HostVault::open(world.storage.clone(), world.state.clone(), Some(&world.fingerprint)).unwrap();
    assert_eq!(again.log_writer("app", LINEAGE, 1).unwrap().last().unwrap().last, 600);
    append(&again, 601..=602);
    append(&world.vault, 603..=603);
    assert_eq!(follows(&world.unlock(), &points[2]), numbers(401..=603));
    // And so does the next prune, which takes the container when its last point goes.
    world.storage.set_clock(Timestamp::now());
    let newest = base(&world.vault, 603);
    append(&world.vault, 604..=604);
    let Swept::Done(_) = prune_later(&world, 10, &last(1)) else { panic!("not swept") };
    assert_eq!(lying(&world), (2, 0), "{:?}", keys(&world, "log/"));
    assert_eq!(follows(&world.unlock(), &newest), [604]);
    check_is_silent(&world);
}

fn prune_later(world: &World, day: i64, options: &PruneOptions) -> Swept {
    let pruner = pruner(world);
    let first = at(world, day, options);
    let proposed = pruner.propose(&first).unwrap();
    pruner.perform(&proposed, &first).unwrap();
    pruner.go_on(&at(world, day + 3, options)).unwrap()
}

#[test]
fn a_window_lets_go_of_a_log_and_the_older_points_stand_for_themselves() {
    let (world, points) = three_bases();
    // All points came long before the window, so the newest of them bears the log.
    let options = PruneOptions { log_window: Some(SignedDuration::from_hours(24)), ..last(3) };
    // The newest transaction came within the window.
    world.storage.set_clock(later(3));
    append(&world.vault, 601..=601);
    let Swept::Done(_) = prune_all(&world, &options) else { panic!("not swept") };
    let unlocked = world.unlock();
    assert_eq!(follows(&unlocked, &points[2]), numbers(401..=601));
    let old = unlocked.log_since("app", points[0].position.as_ref().unwrap()).unwrap();
    assert!(old.entries.is_empty(), "{old:?}");
    insta::assert_snapshot!(old.findings[0].message, @"the log of app right after position 0 was pruned: what this point holds can be restored, and nothing after it");
    assert_eq!(unlocked.points(Some("app")).unwrap().points.len(), 3);
    check_is_silent(&world);
}

/// A storage that takes several things at once: a server, a bucket.
#[test]
fn a_log_is_pruned_and_read_through_a_server() {
    let (world, points) = three_bases();
    let rights = Rights { prune: true, read: true, ..Rights::default() };
    let near = Near::new(world.storage.clone(), Who::Named("sweeper".to_owned(), rights));
    let served: Arc<dyn Storage> = Arc::new(near.connect().unwrap());
    let open = || unlock(served.clone(), &world.fingerprint, &world.owner).unwrap();
    let pruner = open().pruner().unwrap();
    let day_3 = at(&world, 3, &last(2));
    pruner.perform(&pruner.propose(&day_3).unwrap(), &day_3).unwrap();
    let Swept::Done(_) = pruner.go_on(&at(&world, 6, &last(2))).unwrap() else { panic!("not swept") };
    assert_eq!(lying(&world), (1, 1));
    assert_eq!(follows(&open(), &points[1]), numbers(201..=600));
    // One that is missing among those that are read at once is named.
    append(&world.vault, 601..=700);
    let lost = keys(&world, "log/").into_iter().filter(|key| !key.contains("gathered")).nth(40).unwrap();
    world.storage.delete(&lost).unwrap();
    let trail = open().log_trail("app", LINEAGE).unwrap();
    assert_eq!(trail.findings[0].object, lost);
    assert_eq!(trail.entries.last().unwrap().last, 639);
    check_is_silent_but_for(&world, &lost);
}

fn check_is_silent_but_for(world: &World, lost: &str) {
    let report = world.unlock().check(CheckOptions::default()).unwrap();
    let stands: Vec<_> = report.findings.iter().filter(|f| f.code != "freshness-unproven").collect();
    assert!(stands.iter().all(|f| f.object == lost) && !stands.is_empty(), "{stands:?}");
}

#[test]
fn a_log_in_which_something_is_missing_is_left_alone() {
    let (world, _) = three_bases();
    let lost = keys(&world, "log/")[300].clone();
    world.storage.delete(&lost).unwrap();
    let proposed = pruner(&world).propose(&at(&world, 3, &last(1))).unwrap();
    assert_eq!((proposed.log_objects, proposed.log_gathered), (0, 0));
    assert!(proposed.findings.iter().any(|finding| finding.object == lost), "{:?}", proposed.findings);
}

#[test]
fn who_slept_while_a_log_was_gathered_follows_it_on() {
    let (world, points) = three_bases();
    let sleeper = Vault::open(world.storage.clone(), None, Some(&world.fingerprint)).unwrap();
    let entries = sleeper.log_entries("app", LINEAGE, None).unwrap();
    // An object from before yesterday, as its own clock says: that is when listings are asked.
    let tail = LogEntry { stored_at: later(-3), ..entries[450].clone() };
    let Swept::Done(_) = prune_all(&world, &last(2)) else { panic!("not swept") };
    let next = sleeper.log_next(&tail).unwrap().unwrap();
    assert_eq!(next.number, 451);
    // What it had read before can still be opened by its entry.
    assert_eq!(world.unlock().read_log(&entries[300]).unwrap(), payload(301));
    // What went is not taken for the end of the log.
    let gone = LogEntry { stored_at: later(-3), ..entries[20].clone() };
    assert!(sleeper.log_next(&gone).is_err());
    assert_eq!(points.len(), 3);
}

#[test]
fn a_container_that_no_pruner_signed_or_that_was_damaged_counts_for_nothing() {
    let (world, points) = three_bases();
    let other = World::new();
    let options = last(3);
    let pruner = pruner(&world);
    let day_3 = at(&world, 3, &options);
    pruner.perform(&pruner.propose(&day_3).unwrap(), &day_3).unwrap();
    let containers: Vec<String> = keys(&world, "log/").into_iter().filter(|key| key.contains("gathered")).collect();
    let right: Vec<Vec<u8>> = containers.iter().map(|key| world.storage.get(key).unwrap()).collect();
    // Damaged while its objects still lie alone: they are read, and nothing of it is swept.
    let mut rotten = right[0].clone();
    let middle = rotten.len() / 2;
    rotten[middle] ^= 1;
    world.storage.put(&containers[0], &rotten).unwrap();
    assert_eq!(follows(&world.unlock(), &points[0]), numbers(1..=600));
    let before = lying(&world);
    pruner.go_on(&at(&world, 6, &options)).unwrap();
    assert_eq!(lying(&world), before);
    // The next prune puts it right, and then it goes.
    let Swept::Done(_) = prune_later(&world, 10, &options) else { panic!("not swept") };
    assert_eq!(lying(&world), (1, 1));
    assert_eq!(follows(&world.unlock(), &points[0]), numbers(1..=600));
    // Damaged when it is all there is: named, and no wrong byte is given.
    for bytes in [rotten, b"junk".to_vec()] {
        world.storage.put(&containers[0], &bytes).unwrap();
        let trail = world.unlock().log_trail("app", LINEAGE).unwrap();
        assert!(trail.findings.iter().any(|finding| finding.object == containers[0]), "{:?}", trail.findings);
    }
    world.storage.put(&containers[0], &right[0]).unwrap();
    check_is_silent(&world);
    // The host's own key makes objects, but no container: the very same one under its signature is refused.
    let payload = lifeboat_vault::Signed::open("vault.log.gathered", &containers[0], &right[0]).unwrap().payload;
    let forged = lifeboat_vault::Signed::seal("vault.log.gathered", &payload, world.state.signing_key()).unwrap();
    world.storage.put(&containers[0], &forged).unwrap();
    let trail = world.unlock().log_trail("app", LINEAGE).unwrap();
    assert_eq!(trail.findings.len(), 1, "{:?}", trail.findings);
    assert_eq!(trail.findings[0].object, containers[0]);
    assert!(trail.findings[0].message.contains("no such role on the roster"), "{:?}", trail.findings);
    assert_ne!(other.fingerprint, world.fingerprint);
}

/// A crash at a read, or before a write, leaves what the write before it left: so one after each write is one at every operation.
#[test]
fn a_prune_of_logs_that_is_killed_at_any_operation_is_taken_up_again() {
    let world = World::new();
    let points = [base(&world.vault, 0), base(&world.vault, 30)];
    append(&world.vault, 1..=100);
    let (done, operations) = kill_a_prune(&world, &points[1], usize::MAX);
    assert!(done && operations.len() > 300, "{}", operations.len());
    let writes: Vec<usize> = (0..operations.len()).filter(|place| operations[*place].writes()).collect();
    assert!(writes.len() > 100, "{writes:?}");
    for crash_at in std::iter::once(0).chain(writes) {
        assert!(!kill_a_prune(&world, &points[1], crash_at).0);
    }
}

/// Kills a prune after an operation took effect, and looks at what is left; whether it came to its end, and what it did.
fn kill_a_prune(world: &World, point: &PointInfo, crash_at: usize) -> (bool, Vec<Operation>) {
    let storage = Arc::new(MemoryStorage::from_snapshot(world.storage.snapshot()));
    let at = |days| {
        storage.set_clock(later(days));
        PruneOptions { now: Some(later(days)), ..last(1) }
    };
    let open = |storage: Arc<dyn Storage>| unlock(storage, &world.fingerprint, &world.owner).unwrap();
    let faulty = Faulty::new(storage.clone());
    let pruner = open(faulty.clone()).pruner().unwrap();
    let opened = faulty.seen().len();
    faulty.crash_after(crash_at, true);
    let killed = || {
        let options = at(3);
        pruner.perform(&pruner.propose(&options)?, &options)?;
        pruner.go_on(&at(6))
    };
    let done = killed().is_ok();
    let operations = faulty.seen().into_iter().skip(opened).map(|(operation, _)| operation).collect();
    assert_eq!(follows(&open(storage.clone()), point), numbers(31..=100), "{crash_at}");
    let next = open(storage.clone()).pruner().unwrap();
    if matches!(next.go_on(&at(9)).unwrap(), Swept::Nothing) && !done {
        let proposed = next.propose(&at(9)).unwrap();
        if !proposed.is_empty() {
            next.perform(&proposed, &at(9)).unwrap();
            next.go_on(&at(12)).unwrap();
        }
    }
    let unlocked = open(storage.clone());
    assert_eq!(follows(&unlocked, point), numbers(31..=100), "{crash_at}");
    assert_eq!(storage.list("log/").unwrap().len(), 2, "{crash_at}");
    assert!(unlocked.check(CheckOptions::default()).unwrap().is_sound(), "{crash_at}");
    let fresh = host_state(&world.directory, "alpha");
    let host = HostVault::open(storage.clone(), fresh, Some(&world.fingerprint)).unwrap();
    assert_eq!(host.log_writer("app", LINEAGE, 1).unwrap().last().unwrap().last, 100);
    (done, operations)
}

#[test]
fn a_copy_that_holds_the_end_of_a_log_gathered_proves_how_far_it_came() {
    let world = World::new();
    base(&world.vault, 0);
    append(&world.vault, 1..=100);
    let yesterday = Arc::new(MemoryStorage::new());
    for object in world.storage.list("").unwrap() {
        yesterday.put(&object.key, &world.storage.get(&object.key).unwrap()).unwrap();
    }
    append(&world.vault, 101..=400);
    let Swept::Done(_) = prune_all(&world, &last(3)) else { panic!("not swept") };
    assert_eq!(lying(&world), (1, 1));
    let copy: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let (from, copier): (Arc<dyn Storage>, _) = (world.storage.clone(), host_state(&world.directory, "alpha"));
    let options = lifeboat_vault::copy::CopyOptions::new(copier);
    lifeboat_vault::copy::copy(&from, &copy, &options, &|_, _| {}, &Default::default()).unwrap();
    // The copying broke off before the last object.
    let alone = keys(&world, "log/").into_iter().find(|key| !key.contains("/gathered/")).unwrap();
    copy.delete(&alone).unwrap();

    let named = |copy: &Arc<dyn Storage>, name: &str| {
        let stranger = host_state(&world.directory, name);
        let vault = Vault::open(yesterday.clone(), Some(stranger), Some(&world.fingerprint)).unwrap();
        let witness = Vault::open(copy.clone(), None, Some(&world.fingerprint)).unwrap();
        vault.hold_against("the copy", &witness).unwrap();
        let report = vault.check(CheckOptions::default()).unwrap();
        let rolled = report.findings.into_iter().filter(|f| f.code == "rolled-back" && f.object.starts_with("log/"));
        rolled.map(|finding| finding.object).collect::<Vec<_>>()
    };
    assert_eq!(named(&copy, "first"), ["log/app/l/0000000001/"]);
    // One that is damaged proves nothing.
    let gathered = copy.list("log/").unwrap().pop().unwrap().key;
    let mut bytes = copy.get(&gathered).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    copy.put(&gathered, &bytes).unwrap();
    assert!(named(&copy, "second").is_empty());
}

#[test]
fn what_a_copy_still_holds_of_a_log_that_was_cut_does_not_count_and_goes_with_its_next_prune() {
    let (world, points) = three_bases();
    let second = Arc::new(MemoryStorage::new());
    let copier = host_state(&world.directory, "alpha");
    let copy = || {
        let options = lifeboat_vault::copy::CopyOptions::new(copier.clone());
        let (from, to): (Arc<dyn Storage>, Arc<dyn Storage>) = (world.storage.clone(), second.clone());
        let report = lifeboat_vault::copy::copy(&from, &to, &options, &|_, _| {}, &Default::default()).unwrap();
        assert!(report.complete, "{report:?}");
    };
    let first = |vault: &Vault| vault.log_entries("app", LINEAGE, None).unwrap()[0].first;
    let there = |key: &&str| second.list(key).unwrap().len();
    copy();
    assert_eq!(first(&unlock(second.clone(), &world.fingerprint, &world.owner).unwrap()), 1);
    // The beginning is cut, and the copy learns of it; nothing is ever deleted there by copying.
    let Swept::Done(_) = prune_all(&world, &last(2)) else { panic!("not swept") };
    copy();
    assert_eq!((there(&"log/"), keys(&world, "log/").len()), (601, 2));

    let unlocked = unlock(second.clone(), &world.fingerprint, &world.owner).unwrap();
    let fresh = Vault::open(second.clone(), None, Some(&world.fingerprint)).unwrap();
    let host = HostVault::open(second.clone(), world.state.clone(), Some(&world.fingerprint)).unwrap();
    assert_eq!([first(&world.vault), first(&unlocked), first(&fresh), first(&host)], [200; 4]);
    assert_eq!(follows(&unlocked, &points[1]), numbers(201..=600));
    let trail = unlocked.log_since("app", points[0].position.as_ref().unwrap()).unwrap();
    assert!(trail.entries.is_empty() && trail.findings[0].code == "log-pruned", "{:?}", trail.findings);
    let silent = |unlocked: &Unlocked| {
        let findings = unlocked.check(CheckOptions { read_data: true }).unwrap().findings;
        assert!(findings.iter().all(|f| f.code == "freshness-unproven"), "{findings:?}");
    };
    silent(&unlocked);
    append(&host, 601..=601);
    assert_eq!(follows(&unlocked, &points[2]), numbers(401..=601));

    let now = later(9);
    second.set_clock(now);
    let pruner = unlocked.pruner().unwrap();
    let options = PruneOptions { now: Some(now), ..last(2) };
    let proposed = pruner.propose(&options).unwrap();
    assert!(proposed.log_objects >= 199, "{proposed:?}");
    pruner.perform(&proposed, &options).unwrap();
    second.set_clock(later(12));
    let swept = pruner.go_on(&PruneOptions { now: Some(later(12)), ..last(2) }).unwrap();
    assert!(matches!(swept, Swept::Done(_)), "{swept:?}");
    let left = second.list("log/app/l/0000000001/000000000/").unwrap();
    assert!(left.iter().all(|object| object.key.as_str() >= "log/app/l/0000000001/000000000/199"), "{left:?}");
    assert_eq!(follows(&unlocked, &points[1]), numbers(201..=601));
    silent(&unlocked);
}
