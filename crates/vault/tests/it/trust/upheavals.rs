//! Prunes, copies, heals, holds and new keys, crashed at every operation of theirs: what was there restores, and doing it again works.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::{SignedDuration, Timestamp};
use lifeboat_vault::copy::{CopyOptions, copy};
use lifeboat_vault::prune::{Hand, Held, MoveRules, Swept};
use lifeboat_vault::storage::{Faulty, Storage};
use lifeboat_vault::{
    CheckOptions, HostVault, KeepRules, LogPiece, PruneOptions, Result, Role, State, Vault, VaultError,
};

use super::crashes::{Deed, Scene};
use crate::world::{back_up, host_state, is_right, unlock};

const ALL: CheckOptions = CheckOptions { read_data: true };

/// Three points of a data set that is to be pruned, and a log, so that there is something of every kind.
fn with_old_points(scene: &Scene) {
    for seed in 11..=13 {
        back_up(&scene.world.vault, "old", seed, 6).unwrap();
    }
    let mut log = scene.world.vault.log_writer("old", "l", 1).unwrap();
    for n in 1..=3 {
        let piece = LogPiece { first: n, last: n, source_time: Timestamp::now(), mark: false, final_mark: false };
        log.append(piece, b"a change").unwrap();
    }
}

/// So many days after the day that the scene has come to, for the pruner as for the storage.
fn on_day(scene: &Scene, day: i64) -> PruneOptions {
    let now = Timestamp::now() + SignedDuration::from_hours(24 * day);
    scene.world.storage.set_clock(now);
    PruneOptions {
        datasets: [("old".to_owned(), KeepRules { last: 1, ..KeepRules::default() })].into(),
        min_age: SignedDuration::ZERO,
        moves: MoveRules { small_packs: 2, ..MoveRules::default() },
        fold_after: 1,
        now: Some(now),
        ..PruneOptions::default()
    }
}

#[track_caller]
fn assert_old_points(storage: Arc<dyn Storage>, scene: &Scene, sequences: &[u64]) {
    let unlocked = unlock(storage, &scene.world.fingerprint, &scene.world.paper).unwrap();
    let points = unlocked.points(Some("old")).unwrap().points;
    assert_eq!(points.iter().map(|point| point.sequence).collect::<Vec<_>>(), sequences);
    for point in points {
        assert!(is_right(&unlocked, &point, 10 + point.sequence, 6).unwrap(), "{}", point.id);
    }
}

fn prune(scene: &Scene, storage: Arc<Faulty>) -> Result<()> {
    let day = scene.day.fetch_add(9, Ordering::SeqCst);
    let pruner = scene.unlock_through(storage)?.pruner()?;
    // Whatever was begun goes first.
    pruner.go_on(&on_day(scene, day + 3))?;
    let options = on_day(scene, day + 3);
    let proposed = pruner.propose(&options)?;
    if !proposed.is_empty() {
        pruner.perform(&proposed, &options)?;
        assert!(!matches!(pruner.go_on(&on_day(scene, day + 6))?, Swept::Waits(_)));
    }
    Ok(())
}

#[test]
fn points_are_pruned_and_swept_while_storage_crashes() {
    let settled = |scene: &Scene| {
        assert_old_points(scene.world.storage.clone(), scene, &[3]);
        assert_eq!(scene.world.storage.list("snap/alpha/old/").unwrap().len(), 1);
    };
    let deed = Deed { prepare: with_old_points, act: prune, settled: &settled, sound_before: true, some_reads: true };
    deed.crash_at_every_operation();
}

#[test]
fn a_prune_is_abandoned_while_storage_crashes() {
    fn begin_and_abandon(scene: &Scene, storage: Arc<Faulty>) -> Result<()> {
        let pruner = scene.unlock_through(storage)?.pruner()?;
        let options = on_day(scene, 3);
        match pruner.open_prune(&options)? {
            Some(open) if open.sweeping => pruner.go_on(&options).map(|_| ()),
            Some(_) => pruner.abandon().map(|_| ()),
            None => {
                pruner.perform(&pruner.propose(&options)?, &options)?;
                pruner.abandon().map(|_| ())
            }
        }
    }
    let settled = |scene: &Scene| assert_old_points(scene.world.storage.clone(), scene, &[1, 2, 3]);
    let act = begin_and_abandon;
    Deed { prepare: with_old_points, act, settled: &settled, sound_before: true, some_reads: true }
        .crash_at_every_operation();
}

#[test]
fn holds_and_a_freeze_come_and_go_while_storage_crashes() {
    fn come_and_go(scene: &Scene, storage: Arc<Faulty>) -> Result<()> {
        let unlocked = scene.unlock_through(storage)?;
        let by = Hand::Member(&scene.world.state);
        unlocked.hold(by, &Held::Dataset("app".to_owned()), None, "an incident")?;
        unlocked.freeze(by, "an incident")?;
        let stands = unlocked.frozen()?.0.is_some() && !unlocked.holds()?.0.is_empty();
        assert!(stands, "both were said");
        unlocked.release_freeze("over")?;
        for hold in unlocked.holds()?.0 {
            unlocked.release_hold(Hand::Owner(&unlocked), hold.number, "over")?;
        }
        Ok(())
    }
    let settled = |scene: &Scene| {
        let (holds, findings) = scene.world.vault.holds().unwrap();
        assert!(holds.is_empty() && findings.is_empty(), "{holds:?} {findings:?}");
        assert!(scene.world.vault.frozen().unwrap().0.is_none());
    };
    Deed { prepare: |_| {}, act: come_and_go, settled: &settled, sound_before: true, some_reads: false }
        .crash_at_every_operation();
}

fn copy_to_second(scene: &Scene, from: Arc<dyn Storage>) -> Result<()> {
    let state = host_state(&scene.world.directory, "copier");
    let options = CopyOptions { parallel: 1, ..CopyOptions::new(state) };
    let to: Arc<dyn Storage> = scene.second.clone();
    let report = copy(&from, &to, &options, &|_, _| {}, &AtomicBool::new(false))?;
    assert!(report.complete, "{report:?}");
    Ok(())
}

#[test]
fn a_vault_is_copied_while_its_storage_crashes() {
    let settled = |scene: &Scene| {
        // The next copy has what came since.
        copy_to_second(scene, scene.world.storage.clone()).unwrap();
        assert_old_points(scene.second.clone(), scene, &[1, 2, 3]);
        let copied = unlock(scene.second.clone(), &scene.world.fingerprint, &scene.world.owner).unwrap();
        assert!(copied.check(ALL).unwrap().is_sound());
        assert_eq!(copied.points(None).unwrap().points.len(), scene.world.vault.points(None).unwrap().points.len());
    };
    let act = |scene: &Scene, storage: Arc<Faulty>| copy_to_second(scene, storage);
    Deed { prepare: with_old_points, act, settled: &settled, sound_before: true, some_reads: true }
        .crash_at_every_operation();
}

fn damage(scene: &Scene, prefix: &str, place: usize, lose: bool) {
    let storage = &scene.world.storage;
    let key = storage.list(prefix).unwrap().remove(place).key;
    if lose {
        return storage.delete(&key).unwrap();
    }
    let mut bytes = storage.get(&key).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    storage.put(&key, &bytes).unwrap();
}

#[test]
fn what_is_damaged_comes_back_from_a_copy_while_storage_crashes() {
    fn prepare(scene: &Scene) {
        with_old_points(scene);
        copy_to_second(scene, scene.world.storage.clone()).unwrap();
        for (prefix, place, lose) in [
            ("index/alpha/old/", 1, false),
            ("snap/alpha/old/", 0, true),
            ("refs/alpha/old/", 2, true),
            ("log/old/", 1, false),
        ] {
            damage(scene, prefix, place, lose);
        }
    }
    fn heal(scene: &Scene, storage: Arc<Faulty>) -> Result<()> {
        let state = scene.world.state.clone();
        let vault = Vault::open(storage, Some(state.clone()), Some(&scene.world.fingerprint))?;
        let second: Arc<dyn Storage> = scene.second.clone();
        for _ in 0..4 {
            let bad = vault.check(ALL)?.bad_objects();
            if bad.is_empty() {
                return Ok(());
            }
            let healed = vault.heal_from(&second, &bad, &state)?;
            assert_eq!(healed.lost, [] as [String; 0]);
        }
        panic!("it is not healed");
    }
    let settled = |scene: &Scene| assert_old_points(scene.world.storage.clone(), scene, &[1, 2, 3]);
    Deed { prepare, act: heal, settled: &settled, sound_before: false, some_reads: true }.crash_at_every_operation();
}

#[test]
fn a_bad_pack_is_stored_again_and_given_up_while_storage_crashes() {
    fn heal(scene: &Scene, storage: Arc<Faulty>) -> Result<()> {
        let unlocked = scene.unlock_through(storage.clone())?;
        let report = unlocked.check(ALL)?;
        unlocked.list_bad_packs(&report, &scene.world.state)?;
        let host = scene.world.reopen(storage)?;
        back_up(&host, "web", 2, 4)?;
        let unlocked = unlock(scene.world.storage.clone(), &scene.world.fingerprint, &scene.world.owner)?;
        let bad = unlocked.bad_packs(&unlocked.check(ALL)?)?;
        assert!(bad.needed.is_empty(), "{bad:?}");
        unlocked.give_up(&bad)
    }
    fn damage_web(scene: &Scene) {
        let storage = &scene.world.storage;
        let named = scene.world.unlock().check(CheckOptions::default()).unwrap();
        assert!(named.is_sound());
        // The last pack that was stored is the data set's only one.
        let packs: BTreeSet<String> = storage.list("pack/").unwrap().into_iter().map(|o| o.key).collect();
        back_up(&scene.world.vault, "web", 2, 4).unwrap();
        assert_eq!(packs.len(), storage.list("pack/").unwrap().len());
        for (place, key) in packs.iter().enumerate() {
            let bytes = storage.get(key).unwrap();
            storage.delete(key).unwrap();
            let report = scene.world.unlock().check(ALL).unwrap();
            if report.findings.iter().any(|f| f.code == "missing-chunks" && f.object.contains("/web/")) {
                return;
            }
            storage.put(key, &bytes).unwrap();
            assert!(place + 1 < packs.len(), "no pack is of the data set");
        }
    }
    let settled = |scene: &Scene| {
        let unlocked = scene.world.unlock();
        for point in unlocked.points(Some("web")).unwrap().points {
            assert!(is_right(&unlocked, &point, 2, 4).unwrap(), "{}", point.id);
        }
    };
    Deed { prepare: damage_web, act: heal, settled: &settled, sound_before: false, some_reads: true }
        .crash_at_every_operation();
}

#[test]
fn a_host_gets_new_keys_while_storage_crashes() {
    fn rotate(scene: &Scene, storage: Arc<Faulty>) -> Result<()> {
        let old = scene.world.state.signing_key().public();
        let unlocked = scene.unlock_through(storage)?;
        if unlocked.roster().permits(&old, Role::Host) {
            unlocked.revoke("alpha")?;
        }
        let directory = scene.world.state.directory();
        let mut state = State::open(directory, None)?;
        if state.signing_key().public() == old {
            state = State::rotate(directory, None)?;
        }
        if unlocked.roster().permits(&state.signing_key().public(), Role::Host) {
            return Ok(());
        }
        let request = unlocked.request_enrolment(&state, &[Role::Host])?;
        unlocked.approve_as(&request.fingerprint, &[Role::Host]).map(|_| ())
    }
    let settled = |scene: &Scene| {
        let world = &scene.world;
        let refused = HostVault::open(world.storage.clone(), world.state.clone(), None);
        assert!(matches!(refused, Err(VaultError::Revoked { .. })), "{refused:?}");
        let fresh = State::open(world.state.directory(), None).unwrap();
        let host = HostVault::open(world.storage.clone(), fresh, Some(&world.fingerprint)).unwrap();
        let point = back_up(&host, "app", 9, 4).unwrap();
        assert!(is_right(&world.unlock(), &point, 9, 4).unwrap());
    };
    Deed { prepare: |_| {}, act: rotate, settled: &settled, sound_before: true, some_reads: false }
        .crash_at_every_operation();
}
