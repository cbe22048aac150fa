//! Copies without keys: killed anywhere, carried on media, held against what they are copied from.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use lifeboat_vault::copy::{CopyOptions, CopyReport, copy};
use lifeboat_vault::prune::{Hand, Held, Swept};
use lifeboat_vault::serve::{Rights, Who};
use lifeboat_vault::storage::{Faulty, FsStorage, MemoryStorage, Operation, Storage};
use lifeboat_vault::{CheckOptions, HostVault, KeepRules, LogPiece, PruneOptions, Result, State, Vault, VaultError};

use crate::serve::world::Near;
use crate::world::{World, back_up, host_state, is_right, unlock};

fn options(state: &State) -> CopyOptions {
    CopyOptions { parallel: 3, ..CopyOptions::new(state.clone()) }
}

fn run(from: Arc<dyn Storage>, to: Arc<dyn Storage>, options: &CopyOptions) -> Result<CopyReport> {
    copy(&from, &to, options, &|_, _| {}, &AtomicBool::new(false))
}

/// A world with two data sets, a log, and a machine that copies and has no key.
fn world() -> (World, State) {
    let world = World::new();
    for seed in 0..3 {
        back_up(&world.vault, "app", seed, 20).unwrap();
    }
    back_up(&world.vault, "mail", 9, 10).unwrap();
    let mut log = world.vault.log_writer("app", "main", 1).unwrap();
    for number in 0..5u64 {
        let now = jiff::Timestamp::now();
        let piece = LogPiece { first: number, last: number, source_time: now, mark: false, final_mark: false };
        log.append(piece, format!("change {number}").as_bytes()).unwrap();
    }
    let copier = host_state(&world.directory, "copier");
    (world, copier)
}

#[track_caller]
fn assert_whole(world: &World, copied: Arc<dyn Storage>) {
    let unlocked = unlock(copied, &world.fingerprint, &world.paper).unwrap();
    let report = unlocked.check(CheckOptions { read_data: true }).unwrap();
    assert!(report.is_sound(), "{:?}", report.findings);
    assert_eq!((report.points, report.log_objects), (4, 5));
    let points = unlocked.points(Some("app")).unwrap().points;
    for (seed, point) in points.iter().enumerate() {
        assert!(is_right(&unlocked, point, seed as u64, 20).unwrap());
    }
}

fn keys(storage: &dyn Storage) -> Vec<String> {
    storage.list("").unwrap().into_iter().map(|o| o.key).collect()
}

#[test]
fn a_copy_is_the_vault_and_the_next_one_carries_what_is_new() {
    let (world, copier) = world();
    let target = Arc::new(MemoryStorage::new());
    let first = run(world.storage.clone(), target.clone(), &options(&copier)).unwrap();
    assert!(first.complete && first.points_copied == 4, "{first:?}");
    assert_whole(&world, target.clone());
    let again = run(world.storage.clone(), target.clone(), &options(&copier)).unwrap();
    assert_eq!((again.objects_copied, again.objects_there), (0, first.objects_copied));
    let point = back_up(&world.vault, "mail", 10, 10).unwrap();
    let third = run(world.storage.clone(), target.clone(), &options(&copier)).unwrap();
    assert_eq!(third.points_copied, 1);
    assert!(third.objects_copied <= 6, "{third:?}");
    let unlocked = unlock(target.clone(), &world.fingerprint, &world.owner).unwrap();
    let copied = unlocked.points(Some("mail")).unwrap();
    assert!(is_right(&unlocked, copied.points.last().unwrap(), 10, 10).unwrap());
    // The copy says of itself when it was made, and what the newest points were.
    let records = unlocked.copy_records().unwrap();
    assert_eq!(records.iter().map(|r| r.done).collect::<Vec<_>>(), [false, true].repeat(3));
    assert!(records[5].heads.contains(&("snap/alpha/mail/".to_owned(), 2, point.hash.clone())), "{:?}", records[5]);
}

#[test]
fn killed_after_every_write_it_is_an_older_vault_and_goes_on() {
    let (world, copier) = world();
    let count = world.storage.list("").unwrap().len();
    let mut kills = 0;
    for operations in 0.. {
        let target = Arc::new(MemoryStorage::new());
        let faulty = Faulty::new(target.clone());
        faulty.crash_after(operations, operations % 2 == 0);
        if run(world.storage.clone(), faulty, &CopyOptions { parallel: 1, ..options(&copier) }).is_ok() {
            break;
        }
        kills += 1;
        if !target.list("roster/").unwrap().is_empty() {
            let half = unlock(target.clone(), &world.fingerprint, &world.owner);
            // Before the keys are there nobody opens it; whoever can sees an older vault, and that it is a half copy.
            if let Ok(half) = half {
                let report = half.check(CheckOptions { read_data: true }).unwrap();
                let alarms: Vec<_> =
                    report.findings.iter().filter(|f| f.severity == lifeboat_vault::Severity::Alarm).collect();
                // Indexes that lie there without their points are nobody's yet.
                assert!(alarms.iter().all(|f| f.object.starts_with("keys/")), "after {operations}: {alarms:?}");
                let done = target.list("copy/").unwrap().iter().any(|o| o.key.ends_with("done"));
                assert!(done || report.findings.iter().any(|f| f.code == "half-copy"), "{:?}", report.findings);
            }
        }
        let finished = run(world.storage.clone(), target.clone(), &options(&copier)).unwrap();
        assert!(finished.complete && finished.findings.iter().all(|f| f.code != "half-copy"));
        assert_whole(&world, target);
    }
    assert!(kills > count, "it was killed at every write: {kills} of {count}");
}

#[test]
fn a_medium_carries_a_vault_to_a_place_that_is_never_reached_and_news_back() {
    let (world, copier) = world();
    let medium = tempfile::tempdir().unwrap();
    let open = || Arc::new(FsStorage::open(medium.path()).unwrap());
    run(world.storage.clone(), open(), &options(&copier)).unwrap();
    let there = Arc::new(MemoryStorage::new());
    run(open(), there.clone(), &options(&host_state(&world.directory, "there"))).unwrap();
    assert_whole(&world, there.clone());
    // The site is lost; a host goes on at the other place, and the medium brings it home.
    let vault = HostVault::open(there.clone(), world.state.clone(), Some(&world.fingerprint)).unwrap();
    back_up(&vault, "app", 3, 20).unwrap();
    let out = run(there, open(), &options(&copier)).unwrap();
    assert_eq!(out.points_copied, 1);
    let home = run(open(), world.storage.clone(), &options(&copier)).unwrap();
    assert_eq!((home.points_copied, home.complete), (1, true));
    assert_eq!(world.vault.points(Some("app")).unwrap().points.len(), 4);
    // The medium is pulled out in mid-copy: an error that says so, and the rest at the next time.
    let half = tempfile::tempdir().unwrap();
    let target = Faulty::new(Arc::new(FsStorage::open(half.path()).unwrap()));
    target.crash_after(9, false);
    assert!(matches!(run(world.storage.clone(), target, &options(&copier)), Err(VaultError::Storage { .. })));
    assert!(
        run(world.storage.clone(), Arc::new(FsStorage::open(half.path()).unwrap()), &options(&copier))
            .unwrap()
            .complete
    );
}

#[test]
fn a_damaged_object_is_left_behind_by_name_and_never_replaces_a_good_one() {
    let (world, copier) = world();
    let good = Arc::new(MemoryStorage::new());
    run(world.storage.clone(), good.clone(), &options(&copier)).unwrap();
    let everything = keys(&*world.storage);
    for key in everything.iter().filter(|key| !key.starts_with("roster/") && *key != "README.txt") {
        let right = world.storage.get(key).unwrap();
        let mut wrong = right.clone();
        let middle = wrong.len() / 2;
        wrong[middle] ^= 1;
        world.storage.put(key, &wrong).unwrap();
        let target = Arc::new(MemoryStorage::new());
        let report = run(world.storage.clone(), target.clone(), &options(&copier)).unwrap();
        assert!(report.findings.iter().any(|f| f.object == *key), "{key}: {:?}", report.findings);
        assert!(target.get(key).is_err(), "{key} was copied damaged");
        run(world.storage.clone(), good.clone(), &options(&copier)).unwrap();
        assert_eq!(good.get(key).unwrap(), right);
        world.storage.put(key, &right).unwrap();
    }
}

#[test]
fn foreign_and_forked_vaults_are_refused_by_name() {
    let (world, copier) = world();
    let other = World::new();
    let error = run(world.storage.clone(), other.storage.clone(), &options(&copier)).unwrap_err();
    assert!(matches!(error, VaultError::ForeignVault { .. }), "{error}");
    let filled = Arc::new(MemoryStorage::new());
    filled.put("holiday.jpg", b"x").unwrap();
    let error = run(world.storage.clone(), filled, &options(&copier)).unwrap_err().to_string();
    assert!(error.contains("neither empty nor a vault: it holds holiday.jpg"), "{error}");

    // The copy was written to, and so was the vault.
    let target = Arc::new(MemoryStorage::new());
    run(world.storage.clone(), target.clone(), &options(&copier)).unwrap();
    let state = State::open(&world.directory.path().join("alpha"), None).unwrap();
    let astray = HostVault::open(target.clone(), state, Some(&world.fingerprint)).unwrap();
    let before = keys(&*target);
    back_up(&astray, "mail", 77, 5).unwrap();
    let ahead = run(world.storage.clone(), target.clone(), &options(&copier)).unwrap();
    assert!(ahead.findings.iter().any(|f| f.code == "source-behind"), "{:?}", ahead.findings);
    // A host that forgot what it had written there.
    std::fs::remove_dir_all(world.directory.path().join("alpha/vaults")).unwrap();
    let state = State::open(&world.directory.path().join("alpha"), None).unwrap();
    let forgot = HostVault::open(world.storage.clone(), state, Some(&world.fingerprint)).unwrap();
    back_up(&forgot, "mail", 78, 5).unwrap();
    let error = run(world.storage.clone(), target.clone(), &options(&copier)).unwrap_err();
    assert!(matches!(&error, VaultError::Diverged { object, .. } if object.contains("alpha/mail")), "{error}");
    assert!(keys(&*target).len() > before.len());
}

#[test]
fn holds_and_a_freeze_come_along_and_never_end_what_is_held_there() {
    let (world, copier) = world();
    let (owner, point) = (world.unlock(), world.vault.points(Some("mail")).unwrap().points.remove(0));
    owner.hold(Hand::Owner(&owner), &Held::Dataset("app".to_owned()), None, "case 17").unwrap();
    owner.freeze(Hand::Owner(&owner), "an incident").unwrap();
    let target = Arc::new(MemoryStorage::new());
    run(world.storage.clone(), target.clone(), &options(&copier)).unwrap();
    let there = unlock(target.clone(), &world.fingerprint, &world.owner).unwrap();
    let why = |vault: &Vault| vault.holds().unwrap().0.into_iter().map(|hold| hold.why).collect::<Vec<_>>();
    assert_eq!(why(&there), ["case 17"]);
    assert_eq!(there.frozen().unwrap().0.unwrap().why, "an incident");
    // Held there, and at the source, each with number 2; then the source lets go of all.
    there.hold(Hand::Owner(&there), &Held::Point(point.id.clone()), None, "case 18").unwrap();
    let second = owner.hold(Hand::Owner(&owner), &Held::Point(point.id), None, "a mistake").unwrap().number;
    owner.release_hold(Hand::Owner(&owner), second, "a mistake").unwrap();
    owner.release_freeze("over").unwrap();
    let again = run(world.storage.clone(), target.clone(), &options(&copier)).unwrap();
    assert!(again.findings.iter().any(|f| f.code == "own-words" && f.message.contains("another hold/0000000002")));
    assert_eq!(why(&there), ["case 17", "case 18"]);
    assert!(there.frozen().unwrap().0.is_none(), "a freeze that is over there, too");
}

#[test]
fn a_prune_that_may_be_taken_back_stays_behind_and_one_that_is_decided_does_not() {
    let (world, copier) = world();
    let pruner = world.unlock().pruner().unwrap();
    let on_day = |day: i64| {
        let now = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * day);
        world.storage.set_clock(now);
        let rules = Some(KeepRules { last: 1, ..KeepRules::default() });
        PruneOptions { rules, min_age: jiff::SignedDuration::ZERO, now: Some(now), ..PruneOptions::default() }
    };
    let options_3 = on_day(3);
    pruner.perform(&pruner.propose(&options_3).unwrap(), &options_3).unwrap();
    assert_eq!(world.vault.points(Some("app")).unwrap().points.len(), 1);
    let target = Arc::new(MemoryStorage::new());
    run(world.storage.clone(), target.clone(), &options(&copier)).unwrap();
    // The source is lost: whoever goes on at the copy misses nothing, least of all the machine that saw the prune begin.
    let there = HostVault::open(target.clone(), world.state.clone(), Some(&world.fingerprint)).unwrap();
    let points = there.points(Some("app")).unwrap();
    assert_eq!((points.points.len(), points.findings.as_slice()), (3, [].as_slice()));
    assert!(target.list("tombstone/").unwrap().is_empty() && target.list("prune/").unwrap().is_empty());
    // Or it is not, and goes on: killed in the middle of its sweep, too, it is decided.
    let faulty = Faulty::new(world.storage.clone());
    faulty.fail(Operation::Delete, "pack/", 1);
    let unlucky = unlock(faulty, &world.fingerprint, &world.owner).unwrap().pruner().unwrap();
    assert!(unlucky.go_on(&on_day(6)).is_err());
    run(world.storage.clone(), target.clone(), &options(&copier)).unwrap();
    assert_eq!(target.list("prune/").unwrap().len(), 2);
    assert_eq!(there.points(Some("app")).unwrap().points.len(), 1);
    let unlocked = unlock(target, &world.fingerprint, &world.owner).unwrap();
    assert!(unlocked.check(CheckOptions { read_data: true }).unwrap().is_sound());
}

#[test]
fn what_was_pruned_there_does_not_come_back_and_a_source_that_was_rolled_back_is_named() {
    let (world, copier) = world();
    let target = Arc::new(MemoryStorage::new());
    run(world.storage.clone(), target.clone(), &options(&copier)).unwrap();
    let pruner = unlock(target.clone(), &world.fingerprint, &world.owner).unwrap().pruner().unwrap();
    for day in [3, 6] {
        let now = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * day);
        target.set_clock(now);
        let rules = Some(KeepRules { last: 1, ..KeepRules::default() });
        let min_age = jiff::SignedDuration::ZERO;
        let options = PruneOptions { rules, min_age, now: Some(now), ..PruneOptions::default() };
        if pruner.go_on(&options).unwrap() == Swept::Nothing {
            pruner.perform(&pruner.propose(&options).unwrap(), &options).unwrap();
        }
    }
    assert_eq!(target.list("snap/alpha/app/").unwrap().len(), 1);
    run(world.storage.clone(), target.clone(), &options(&copier)).unwrap();
    assert_eq!(target.list("snap/alpha/app/").unwrap().len(), 1);
    // This machine has seen the newest point at the source, and it is gone there.
    world.storage.delete("snap/alpha/mail/0000000001").unwrap();
    let report = run(world.storage.clone(), target, &options(&copier)).unwrap();
    assert!(
        report.findings.iter().any(|f| f.code == "rolled-back" && f.object == "snap/alpha/mail/"),
        "{:?}",
        report.findings
    );
}

#[test]
fn one_data_set_alone_a_stop_and_a_pace() {
    let (world, copier) = world();
    let target = Arc::new(MemoryStorage::new());
    let only = CopyOptions { dataset: Some("mail".to_owned()), ..options(&copier) };
    run(world.storage.clone(), target.clone(), &only).unwrap();
    let unlocked = unlock(target.clone(), &world.fingerprint, &world.owner).unwrap();
    assert!(unlocked.check(CheckOptions { read_data: true }).unwrap().is_sound());
    let points = unlocked.points(None).unwrap().points;
    assert_eq!(points.len(), 1);
    assert!(is_right(&unlocked, &points[0], 9, 10).unwrap());
    assert!(target.list("pack/").unwrap().len() < world.storage.list("pack/").unwrap().len());
    let nothing = CopyOptions { dataset: Some("nothing".to_owned()), ..options(&copier) };
    assert!(run(world.storage.clone(), target, &nothing).is_err());

    let stopped = copy(
        &(world.storage.clone() as Arc<dyn Storage>),
        &(Arc::new(MemoryStorage::new()) as Arc<dyn Storage>),
        &options(&copier),
        &|_, _| {},
        &AtomicBool::new(true),
    );
    assert!(!stopped.unwrap().complete);
    let bytes: u64 = world.storage.list("").unwrap().iter().map(|o| o.size).sum();
    let began = Instant::now();
    let slow = CopyOptions { bytes_per_second: Some(bytes), ..options(&copier) };
    run(world.storage.clone(), Arc::new(MemoryStorage::new()), &slow).unwrap();
    assert!(began.elapsed() > Duration::from_millis(600), "{:?}", began.elapsed());
}

#[test]
fn a_copy_goes_through_a_server_that_only_adds() {
    let (world, copier) = world();
    let place = Arc::new(MemoryStorage::new());
    let rights = Rights { copy: true, ..Rights::default() };
    let near = Near::new(place.clone(), Who::Named("copier".to_owned(), rights));
    run(world.storage.clone(), Arc::new(near.connect().unwrap()), &options(&copier)).unwrap();
    assert_whole(&world, place.clone());
    let back = Arc::new(MemoryStorage::new());
    run(Arc::new(near.connect().unwrap()), back.clone(), &options(&copier)).unwrap();
    assert_whole(&world, back);
    // A host's rights are not enough.
    let host = Near::new(Arc::new(MemoryStorage::new()), Who::Named("alpha".to_owned(), Rights::default()));
    assert!(run(world.storage.clone(), Arc::new(host.connect().unwrap()), &options(&copier)).is_err());
    let vault = Vault::open(place, None, Some(&world.fingerprint)).unwrap();
    assert_eq!(vault.points(None).unwrap().points.len(), 4);
}

fn sequences(vault: &Vault, dataset: &str) -> Vec<u64> {
    vault.points(Some(dataset)).unwrap().points.iter().map(|point| point.sequence).collect()
}

#[test]
fn a_copy_since_a_day_lacks_older_points_by_its_own_word_and_no_other_is_believed() {
    let (world, copier) = world();
    let middle = world.vault.points(Some("app")).unwrap().points[1].taken_at;
    let target: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let since = CopyOptions { since: Some(middle), ..options(&copier) };
    // Whoever copies without a right to it may not say that something is no loss.
    let refused = run(world.storage.clone(), target.clone(), &since).unwrap_err();
    assert!(matches!(&refused, VaultError::Refused { .. }), "{refused}");
    assert!(target.list("").unwrap().is_empty());

    let since = CopyOptions { opened: Some(world.unlock()), ..since };
    let report = run(world.storage.clone(), target.clone(), &since).unwrap();
    assert_eq!((report.points_left_out, report.points_copied), (1, 3), "{report:?}");
    assert!(report.packs_left_out > 0, "{report:?}");
    let unlocked = unlock(target.clone(), &world.fingerprint, &world.paper).unwrap();
    assert_eq!(sequences(&unlocked, "app"), [2, 3]);
    let checked = unlocked.check(CheckOptions { read_data: true }).unwrap();
    assert!(checked.is_sound(), "{:?}", checked.findings);
    assert!(checked.findings.iter().any(|f| f.code == "partial-copy" && f.message.contains("by intent")));
    assert!(!checked.findings.iter().any(|f| f.code == "half-copy"));
    for (point, seed) in unlocked.points(Some("app")).unwrap().points.iter().zip(1..) {
        assert!(is_right(&unlocked, point, seed, 20).unwrap());
    }
    // Who has no key is told the same.
    let nobody = Vault::open(target.clone(), None, Some(&world.fingerprint)).unwrap();
    assert!(nobody.check(CheckOptions::default()).unwrap().is_sound());
    // What lies before is no loss; what lies after is.
    let second = target.list("snap/alpha/app/").unwrap().remove(1);
    let bytes = target.get(&second.key).unwrap();
    target.delete(&second.key).unwrap();
    back_up(&world.vault, "app", 5, 20).unwrap();
    let refilled = run(world.storage.clone(), target.clone(), &since).unwrap();
    assert_eq!(refilled.points_copied, 2, "{refilled:?}");
    assert_eq!(target.get(&second.key).unwrap(), bytes);
    assert_eq!(sequences(&nobody, "app"), [2, 3, 4]);
    target.delete(&second.key).unwrap();
    let lost = Vault::open(target.clone(), None, Some(&world.fingerprint)).unwrap();
    assert!(lost.points(None).unwrap().findings.iter().any(|f| f.code == "missing" && f.object == second.key));
    target.put(&second.key, &bytes).unwrap();

    // A host that writes into it builds on nothing that was left out.
    let writer = HostVault::open(target.clone(), world.state.clone(), Some(&world.fingerprint)).unwrap();
    let point = back_up(&writer, "app", 0, 20).unwrap();
    let unlocked = unlock(target.clone(), &world.fingerprint, &world.owner).unwrap();
    assert!(is_right(&unlocked, &point, 0, 20).unwrap());
    assert!(unlocked.check(CheckOptions { read_data: true }).unwrap().is_sound());
}

#[test]
fn a_partial_copy_is_filled_cut_off_anywhere_and_never_calls_loss_what_is_still_to_come() {
    let (world, copier) = world();
    for seed in 3..6 {
        back_up(&world.vault, "app", seed, 20).unwrap();
    }
    let newest = world.vault.points(Some("app")).unwrap().points.last().unwrap().taken_at;
    let opened = Some(world.unlock());
    let since = CopyOptions { since: Some(newest), opened: opened.clone(), parallel: 1, ..options(&copier) };
    let whole = CopyOptions { opened, parallel: 1, ..options(&copier) };
    let mut cuts = 0;
    for operations in (0..).step_by(3) {
        let target = Arc::new(MemoryStorage::new());
        run(world.storage.clone(), target.clone(), &since).unwrap();
        let vault = Vault::open(target.clone(), None, Some(&world.fingerprint)).unwrap();
        assert_eq!(sequences(&vault, "app"), [6]);
        let faulty = Faulty::new(target.clone());
        faulty.crash_after(operations, operations % 2 == 0);
        let done = run(world.storage.clone(), faulty, &whole).is_ok();
        let checked = vault.check(CheckOptions { read_data: true }).unwrap();
        assert!(checked.is_sound(), "after {operations}: {:?}", checked.findings);
        if done {
            assert_eq!(sequences(&vault, "app"), [1, 2, 3, 4, 5, 6]);
            assert!(!checked.findings.iter().any(|f| f.code == "partial-copy"), "{:?}", checked.findings);
            break;
        }
        cuts += 1;
    }
    assert!(cuts > 10, "{cuts}");
}

#[test]
fn a_long_log_goes_side_by_side_and_a_cut_one_is_a_half_copy() {
    let (world, copier) = world();
    let mut log = world.vault.log_writer("app", "long", 1).unwrap();
    for number in 0..300u64 {
        let now = jiff::Timestamp::now();
        let piece = LogPiece { first: number, last: number, source_time: now, mark: false, final_mark: false };
        log.append(piece, b"change").unwrap();
    }
    let target = Arc::new(MemoryStorage::new());
    run(world.storage.clone(), target.clone(), &CopyOptions { parallel: 8, ..options(&copier) }).unwrap();
    let vault = Vault::open(target.clone(), None, Some(&world.fingerprint)).unwrap();
    assert_eq!(vault.log_entries("app", "long", None).unwrap().len(), 300);
    // Cut off: objects of the stretch at work are missing here and there, and the copy says that it is not done.
    let records = keys(&*target).into_iter().filter(|key| key.ends_with("b-done"));
    records.for_each(|key| target.delete(&key).unwrap());
    let log = target.list("log/app/long/").unwrap();
    target.delete(&log[290].key).unwrap();
    let half = Vault::open(target.clone(), None, Some(&world.fingerprint)).unwrap();
    let checked = half.check(CheckOptions::default()).unwrap();
    assert!(checked.is_sound() && checked.findings.iter().any(|f| f.object == log[290].key), "{:?}", checked.findings);
    // Far behind the end it is a loss all the same.
    target.delete(&log[3].key).unwrap();
    let half = Vault::open(target.clone(), None, Some(&world.fingerprint)).unwrap();
    assert!(!half.check(CheckOptions::default()).unwrap().is_sound());
}
