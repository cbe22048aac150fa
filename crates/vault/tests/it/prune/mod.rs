//! Pruning: what is not wanted goes, what is wanted stays restorable, whoever is at work meanwhile and wherever it is killed.

mod fold;
mod forks;
mod locks;
mod logs;
mod moved;
mod tiers;

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use lifeboat_vault::prune::{Hand, Held, Swept, Why};
use lifeboat_vault::storage::{Faulty, MemoryStorage, Operation, Storage};
use lifeboat_vault::{
    Badge, CheckOptions, HostVault, KeepRules, Member, PointInfo, PruneOptions, Pruner, Role, SessionOptions, State,
    Vault, VaultError,
};

use crate::world::{World, back_up, commit, host_state, is_right, put_chunks, unlock};

fn later(days: i64) -> Timestamp {
    Timestamp::now() + SignedDuration::from_hours(24 * days)
}

fn last(count: u32) -> PruneOptions {
    PruneOptions {
        rules: Some(KeepRules { last: count, ..KeepRules::default() }),
        min_age: SignedDuration::ZERO,
        ..PruneOptions::default()
    }
}

/// As `options`, some days from now, for the pruner as for the storage.
fn at(world: &World, days: i64, options: &PruneOptions) -> PruneOptions {
    let now = later(days);
    world.storage.set_clock(now);
    PruneOptions { now: Some(now), ..options.clone() }
}

fn pruner(world: &World) -> Pruner {
    world.unlock().pruner().unwrap()
}

/// Proposes, and sweeps when it is due.
fn prune_all(world: &World, options: &PruneOptions) -> Swept {
    let pruner = pruner(world);
    let day_3 = at(world, 3, options);
    let proposed = pruner.propose(&day_3).unwrap();
    pruner.perform(&proposed, &day_3).unwrap();
    pruner.go_on(&at(world, 6, options)).unwrap()
}

fn keys(world: &World, prefix: &str) -> Vec<String> {
    world.storage.list(prefix).unwrap().into_iter().map(|object| object.key).collect()
}

fn check_is_silent(world: &World) {
    let report = world.unlock().check(CheckOptions { read_data: true }).unwrap();
    let stands: Vec<_> = report.findings.iter().filter(|f| f.code != "freshness-unproven").collect();
    assert!(stands.is_empty(), "{stands:?}");
}

#[test]
fn what_no_rule_wants_goes_and_the_rest_restores() {
    let world = World::new();
    let points: Vec<PointInfo> = (1..=3).map(|seed| back_up(&world.vault, "app", seed, 20).unwrap()).collect();
    let other = back_up(&world.vault, "other", 9, 20).unwrap();
    let before = world.storage.list("pack/").unwrap().len();
    let options = PruneOptions {
        rules: None,
        datasets: [("app".to_owned(), KeepRules { last: 1, ..KeepRules::default() })].into(),
        ..last(1)
    };
    let pruner = pruner(&world);
    let day_3 = at(&world, 3, &options);
    let proposed = pruner.propose(&day_3).unwrap();
    let gone: Vec<&str> = proposed.pruned().map(|point| point.id.as_str()).collect();
    assert_eq!(gone, [&points[0].id, &points[1].id]);
    assert!(proposed.points.iter().any(|point| point.id == other.id && point.kept.contains(&Why::NoRules)));
    assert!(proposed.bytes > 40_000 && proposed.packs == 2, "{proposed:?}");
    // Thinking it through changed nothing.
    assert!(
        keys(&world, "prune/").is_empty() && keys(&world, "tombstone/").is_empty() && keys(&world, "probe/").is_empty()
    );

    let open = pruner.perform(&proposed, &day_3).unwrap();
    let shown: Vec<u64> = world.vault.points(Some("app")).unwrap().points.iter().map(|p| p.sequence).collect();
    assert_eq!(shown, [3]);
    assert_eq!(world.storage.list("pack/").unwrap().len(), before);
    // Too early: it says until when it waits, and deletes nothing.
    let waits = pruner.go_on(&at(&world, 4, &options)).unwrap();
    assert_eq!(waits, Swept::Waits(open));
    assert_eq!(world.storage.list("pack/").unwrap().len(), before);
    // Nor can anybody ask for less time than a backup at work has.
    let hasty = PruneOptions { grace: SignedDuration::from_hours(1), ..at(&world, 4, &options) };
    for refused in [pruner.go_on(&hasty).map(|_| ()), pruner.open_prune(&hasty).map(|_| ())] {
        assert!(matches!(refused, Err(VaultError::Invalid { .. })), "{refused:?}");
    }
    assert_eq!(world.storage.list("pack/").unwrap().len(), before);
    let Swept::Done(swept) = pruner.go_on(&at(&world, 6, &options)).unwrap() else { panic!("not swept") };
    assert!(swept.kept.is_empty(), "{swept:?}");
    assert_eq!(world.storage.list("pack/").unwrap().len(), before - 2);
    assert_eq!(keys(&world, "snap/alpha/app/"), [points[2].key.clone()]);
    check_is_silent(&world);
    assert!(is_right(&world.unlock(), &points[2], 3, 20).unwrap() && is_right(&world.unlock(), &other, 9, 20).unwrap());
    assert_eq!(pruner.go_on(&at(&world, 6, &options)).unwrap(), Swept::Nothing);
    // A machine that never saw the vault before misses nothing either.
    let fresh = Vault::open(world.storage.clone(), None, Some(&world.fingerprint)).unwrap();
    assert!(fresh.points(None).unwrap().findings.iter().all(|f| f.code == "freshness-unproven"));
    // The host goes on, and the next prune, too.
    world.storage.set_clock(Timestamp::now());
    let next = back_up(&world.vault, "app", 3, 21).unwrap();
    assert_eq!(next.sequence, 4);
    assert!(pruner.propose(&at(&world, 9, &options)).unwrap().pruned().any(|point| point.id == points[2].id));
}

#[test]
fn chunks_that_kept_points_share_with_pruned_ones_stay() {
    let world = World::new();
    back_up(&world.vault, "app", 1, 30).unwrap();
    back_up(&world.vault, "app", 2, 30).unwrap();
    // The newest rests on chunks of the first.
    let newest = back_up(&world.vault, "app", 1, 31).unwrap();
    assert!(newest.bytes_new < 5000);
    let Swept::Done(swept) = prune_all(&world, &last(1)) else { panic!("not swept") };
    assert!(swept.objects > 0);
    assert_eq!(world.vault.points(None).unwrap().points.len(), 1);
    assert!(is_right(&world.unlock(), &newest, 1, 31).unwrap());
    check_is_silent(&world);
}

#[test]
fn a_pruner_needs_no_content_key() {
    let world = World::new();
    back_up(&world.vault, "app", 1, 20).unwrap();
    let newest = back_up(&world.vault, "app", 2, 20).unwrap();
    let state = host_state(&world.directory, "sweeper");
    let vault = Vault::open(world.storage.clone(), Some(state.clone()), Some(&world.fingerprint)).unwrap();
    let refused = vault.pruner(&state).unwrap_err();
    assert!(refused.to_string().contains("is no pruner on the roster"), "{refused}");
    let asked = vault.request_enrolment(&state, &[Role::Pruner]).unwrap();
    world.unlock().approve(&asked.fingerprint).unwrap();
    let pruner = vault.pruner(&state).unwrap();
    // It opens nothing else, and writes no points.
    assert!(HostVault::open(world.storage.clone(), state.clone(), Some(&world.fingerprint)).is_err());
    let content = keys(&world, "keys/content/app/").into_iter().find(|key| key.ends_with(".age")).unwrap();
    let sealed = world.storage.get(&content).unwrap();
    let own: lifeboat_vault::Identity =
        std::fs::read_to_string(state.directory().join("index.key")).unwrap().parse().unwrap();
    assert!(lifeboat_vault::seal::unseal([&own], &sealed).is_err());

    let options = at(&world, 3, &last(1));
    let proposed = pruner.propose(&options).unwrap();
    pruner.perform(&proposed, &options).unwrap();
    let Swept::Done(_) = pruner.go_on(&at(&world, 6, &last(1))).unwrap() else { panic!("not swept") };
    assert!(is_right(&world.unlock(), &newest, 2, 20).unwrap());
    check_is_silent(&world);
    // Dismissed, it prunes no more, and what it did still counts.
    back_up(&world.vault, "app", 3, 20).unwrap();
    world.unlock().revoke("sweeper").unwrap();
    vault.refresh().unwrap();
    assert!(vault.pruner(&state).is_err());
    let options = at(&world, 12, &last(1));
    let proposed = pruner.propose(&options).unwrap();
    assert!(pruner.perform(&proposed, &options).is_err() || world.vault.points(None).unwrap().points.len() == 2);
    assert_eq!(
        unlock(world.storage.clone(), &world.fingerprint, &world.owner).unwrap().points(None).unwrap().points.len(),
        2
    );
}

#[test]
fn young_points_stay_and_so_does_what_a_backup_may_be_about_to_need() {
    let world = World::new();
    for seed in 1..=3 {
        back_up(&world.vault, "app", seed, 20).unwrap();
    }
    let pruner = pruner(&world);
    let options = PruneOptions { min_age: SignedDuration::from_hours(72), ..last(1) };
    let proposed = pruner.propose(&at(&world, 2, &options)).unwrap();
    assert!(proposed.is_empty() && proposed.points.iter().all(|p| p.kept.contains(&Why::Young)), "{proposed:?}");
    // Today: the points may go, what they hold is too young.
    let proposed = pruner.propose(&at(&world, 0, &last(1))).unwrap();
    assert_eq!((proposed.pruned().count(), proposed.packs), (2, 0));
    assert!(proposed.spared_bytes > 40_000);
    let refused = pruner.propose(&PruneOptions { grace: SignedDuration::from_hours(1), ..last(1) }).unwrap_err();
    insta::assert_snapshot!(refused, @"the time that what is condemned waits is not valid: a backup at work may need what is condemned for 48 hours; it cannot be less");
}

#[test]
fn a_backup_that_slept_through_a_prune_is_told_and_the_next_one_works() {
    let world = World::new();
    let first = back_up(&world.vault, "app", 1, 30).unwrap();
    back_up(&world.vault, "app", 2, 30).unwrap();
    // It begins while the first point's chunks are there, and means to build on them.
    let session = world.vault.begin("app", SessionOptions::default()).unwrap();
    let ids = put_chunks(&session, 1, 30).unwrap();
    assert_eq!(session.bytes_new(), 0);
    let Swept::Done(_) = prune_all(&world, &last(1)) else { panic!("not swept") };
    let failed = commit(session, &ids).unwrap_err();
    insta::assert_snapshot!(failed, @"this backup has failed and cannot be committed: a prune that began after it took or archived 30 chunks, which it was to build on; start it again, what was uploaded is reused");
    let again = back_up(&world.vault, "app", 1, 30).unwrap();
    assert!(again.bytes_new > 0 && again.sequence == 3, "{again:?}");
    assert!(is_right(&world.unlock(), &again, 1, 30).unwrap());
    assert_ne!(again.key, first.key);
    check_is_silent(&world);
}

#[test]
fn a_backup_that_commits_before_the_sweep_keeps_what_it_needs() {
    let world = World::new();
    back_up(&world.vault, "app", 1, 30).unwrap();
    back_up(&world.vault, "app", 2, 30).unwrap();
    let session = world.vault.begin("app", SessionOptions::default()).unwrap();
    let ids = put_chunks(&session, 1, 30).unwrap();
    let pruner = pruner(&world);
    let options = at(&world, 3, &last(1));
    pruner.perform(&pruner.propose(&options).unwrap(), &options).unwrap();
    let point = commit(session, &ids).unwrap();
    // One that begins now does not build on what is condemned.
    let session = world.vault.begin("app", SessionOptions::default()).unwrap();
    put_chunks(&session, 1, 30).unwrap();
    assert!(session.bytes_new() > 0);
    drop(session);
    let Swept::Done(swept) = pruner.go_on(&at(&world, 6, &last(1))).unwrap() else { panic!("not swept") };
    assert!(swept.kept.iter().any(|key| key.starts_with("pack/")), "{swept:?}");
    assert!(is_right(&world.unlock(), &point, 1, 30).unwrap());
    assert_eq!(world.vault.points(None).unwrap().points.last().unwrap().badge, Badge::Unverified);
    check_is_silent(&world);
}

#[test]
fn nothing_is_deleted_while_a_kept_point_could_not_be_restored() {
    let world = World::new();
    back_up(&world.vault, "app", 1, 20).unwrap();
    back_up(&world.vault, "app", 2, 20).unwrap();
    let packs = keys(&world, "pack/");
    let newest = back_up(&world.vault, "app", 3, 20).unwrap();
    let lost = keys(&world, "pack/").into_iter().find(|key| !packs.contains(key)).unwrap();
    world.storage.delete(&lost).unwrap();
    let pruner = pruner(&world);
    let refused = pruner.propose(&at(&world, 3, &last(1))).unwrap_err();
    insta::assert_snapshot!(refused, @"pruning is refused: these points need what is not in the vault: alpha/app/0000000003 (20 chunks); nothing was deleted. Run `lifeboat vault check`, heal the vault from a copy, or prune them by name (--point)");
    // Healed, and lost only after the proposal: the sweep looks again.
    world.storage.set_clock(Timestamp::now());
    let again = back_up(&world.vault, "app", 3, 20).unwrap();
    let options = at(&world, 3, &last(1));
    pruner.perform(&pruner.propose(&options).unwrap(), &options).unwrap();
    let before = keys(&world, "pack/");
    let lost = before.iter().find(|key| !packs.contains(key)).unwrap();
    let bytes = world.storage.get(lost).unwrap();
    world.storage.delete(lost).unwrap();
    let refused = pruner.go_on(&at(&world, 6, &last(1))).unwrap_err();
    assert!(refused.to_string().contains(&again.id), "{refused}");
    world.storage.put(lost, &bytes).unwrap();
    assert_eq!(keys(&world, "pack/").len(), before.len());
    let Swept::Done(_) = pruner.go_on(&at(&world, 6, &last(1))).unwrap() else { panic!("not swept") };
    assert!(is_right(&world.unlock(), &again, 3, 20).unwrap());
    assert!(newest.sequence < again.sequence);
}

/// A hold is a promise only as long as no deletion has begun: after that it says so, whatever becomes of the point.
#[test]
fn a_hold_that_comes_when_deleting_has_begun_says_so() {
    for deletes in [0, 1] {
        let world = World::new();
        let points: Vec<PointInfo> = (1..=4).map(|seed| back_up(&world.vault, "app", seed, 10).unwrap()).collect();
        let id = |point: usize| points[point].id.clone();
        let by = Hand::Member(&world.state);
        let hold = |what: Held| world.vault.hold(by, &what, None, "case 17").unwrap();
        let faulty = Faulty::new(world.storage.clone());
        let pruner = unlock(faulty.clone(), &world.fingerprint, &world.owner).unwrap().pruner().unwrap();
        let day_3 = at(&world, 3, &last(1));
        pruner.perform(&pruner.propose(&day_3).unwrap(), &day_3).unwrap();
        let in_time = hold(Held::Point(id(0)));
        assert!(in_time.going.is_empty() && in_time.gone.is_empty(), "{in_time:?}");
        // The pruner dies at its first deletions: the first has taken effect, or has not.
        let day_6 = at(&world, 6, &last(1));
        let objects = keys(&world, "");
        for kind in ["pack/", "index/", "refs/", "snap/", "verify/"].into_iter().filter(|_| deletes == 0) {
            faulty.fail(Operation::Delete, kind, 1);
        }
        if deletes == 1 {
            // The snapshot comes last; the next one is not answered any more.
            faulty.fail(Operation::Delete, "snap/", 1);
        }
        pruner.go_on(&day_6).unwrap_err();
        let left = keys(&world, "").len();
        assert_eq!(left < objects.len(), deletes == 1);
        let of_point = hold(Held::Point(id(1)));
        assert_eq!((&of_point.going, &of_point.gone), (&vec![id(1)], &vec![]));
        let of_all = hold(Held::Dataset("app".to_owned()));
        assert_eq!(of_all.going, [id(1), id(2)], "neither the one that was held in time, nor the newest");
        let Swept::Done(swept) = pruner.go_on(&at(&world, 7, &last(1))).unwrap() else { panic!("not swept") };
        let there: Vec<String> = world.vault.points(None).unwrap().points.into_iter().map(|point| point.id).collect();
        for late in [1, 2] {
            assert_eq!(there.contains(&id(late)), deletes == 0, "{swept:?}");
            let again = hold(Held::Point(id(late)));
            assert_eq!((again.going, again.gone.len()), (vec![], usize::from(deletes == 1)));
        }
        assert!(there.contains(&id(0)) && there.contains(&id(3)));
        check_is_silent(&world);
    }
}

#[test]
fn a_hold_and_a_freeze_stop_it_at_any_time() {
    let world = World::new();
    let points: Vec<PointInfo> = (1..=4).map(|seed| back_up(&world.vault, "app", seed, 10).unwrap()).collect();
    let pruner = pruner(&world);
    let by = Hand::Member(&world.state);
    let number = world.vault.hold(by, &Held::Point(points[0].id.clone()), None, "case 17").unwrap().number;
    let options = at(&world, 3, &last(1));
    let proposed = pruner.propose(&options).unwrap();
    assert_eq!(proposed.pruned().map(|p| p.id.as_str()).collect::<Vec<_>>(), [&points[1].id, &points[2].id]);
    world.vault.freeze(by, "we look into an incident").unwrap();
    let refused = pruner.perform(&proposed, &options).unwrap_err();
    insta::assert_snapshot!(refused, @"pruning is refused: the vault was frozen by alpha (we look into an incident); the owner lets it go on with `lifeboat vault freeze --release`");
    assert!(keys(&world, "prune/").is_empty() && keys(&world, "tombstone/").is_empty());
    world.unlock().release_freeze("it was nothing").unwrap();
    pruner.perform(&proposed, &options).unwrap();
    // Held and frozen after it was condemned.
    world.vault.hold(Hand::Owner(&world.unlock()), &Held::Point(points[1].id.clone()), None, "case 18").unwrap();
    world.vault.freeze(by, "again").unwrap();
    assert!(pruner.go_on(&at(&world, 6, &last(1))).is_err());
    assert_eq!((keys(&world, "snap/").len(), keys(&world, "prune/").len()), (4, 1), "nor is it said what goes");
    world.unlock().release_freeze("over").unwrap();
    let Swept::Done(swept) = pruner.go_on(&at(&world, 6, &last(1))).unwrap() else { panic!("not swept") };
    assert!(swept.kept.contains(&points[1].key), "{swept:?}");
    let left: Vec<u64> = world.vault.points(None).unwrap().points.iter().map(|p| p.sequence).collect();
    assert_eq!(left, [1, 2, 4]);
    for (point, seed) in [(&points[0], 1), (&points[1], 2), (&points[3], 4)] {
        assert!(is_right(&world.unlock(), point, seed, 10).unwrap(), "{}", point.id);
    }
    check_is_silent(&world);
    // Only who held it, or the owner, lets go.
    let second = world.vault.holds().unwrap().0[1].number;
    let refused = world.vault.release_hold(by, second, "not mine").unwrap_err();
    assert!(matches!(refused, VaultError::Refused { .. }), "{refused}");
    world.vault.release_hold(by, number, "closed").unwrap();
    world.unlock();
    assert_eq!(world.vault.holds().unwrap().0.len(), 1);
    let proposed = pruner.propose(&at(&world, 9, &last(1))).unwrap();
    assert_eq!(proposed.pruned().map(|p| p.id.as_str()).collect::<Vec<_>>(), [&points[0].id]);
}

#[test]
fn an_abandoned_prune_gives_its_points_back() {
    let world = World::new();
    for seed in 1..=3 {
        back_up(&world.vault, "app", seed, 10).unwrap();
    }
    let pruner = pruner(&world);
    let options = at(&world, 3, &last(1));
    pruner.perform(&pruner.propose(&options).unwrap(), &options).unwrap();
    assert_eq!(world.vault.points(None).unwrap().points.len(), 1);
    pruner.abandon().unwrap();
    assert_eq!(world.vault.points(None).unwrap().points.len(), 3);
    check_is_silent(&world);
    // The same points can be pruned later, over the old tombstones.
    let Swept::Done(_) = prune_all(&world, &last(1)) else { panic!("not swept") };
    assert_eq!((world.vault.points(None).unwrap().points.len(), keys(&world, "snap/").len()), (1, 1));
    check_is_silent(&world);
}

#[test]
fn a_prune_that_is_killed_at_any_operation_is_taken_up_again() {
    let origin = World::new();
    for seed in 1..=3 {
        back_up(&origin.vault, "app", seed, 6).unwrap();
    }
    let newest = origin.vault.points(None).unwrap().points.pop().unwrap();
    for crash_at in 0.. {
        let storage = Arc::new(MemoryStorage::from_snapshot(origin.storage.snapshot()));
        let at = |days| {
            let now = later(days);
            storage.set_clock(now);
            PruneOptions { now: Some(now), ..last(1) }
        };
        let open = |storage: Arc<dyn Storage>| unlock(storage, &origin.fingerprint, &origin.owner).unwrap();
        let faulty = Faulty::new(storage.clone());
        let pruner = open(faulty.clone()).pruner().unwrap();
        faulty.crash_after(crash_at, crash_at % 2 == 0);
        let killed = || {
            let options = at(3);
            let proposed = pruner.propose(&options)?;
            pruner.perform(&proposed, &options)?;
            pruner.go_on(&at(6))
        };
        let done = killed().is_ok();
        // Whoever comes next goes on, or begins anew.
        let next = open(storage.clone()).pruner().unwrap();
        if matches!(next.go_on(&at(9)).unwrap(), Swept::Nothing) && !done {
            let proposed = next.propose(&at(9)).unwrap();
            if !proposed.is_empty() {
                next.perform(&proposed, &at(9)).unwrap();
                next.go_on(&at(12)).unwrap();
            }
        }
        let unlocked = open(storage.clone());
        assert!(is_right(&unlocked, &newest, 3, 6).unwrap(), "{crash_at}");
        let count = |prefix| storage.list(prefix).unwrap().len();
        assert_eq!((count("snap/"), count("pack/")), (1, 1), "{crash_at}");
        assert!(unlocked.check(CheckOptions::default()).unwrap().is_sound(), "{crash_at}");
        if done {
            assert!(crash_at > 60, "{crash_at}");
            return;
        }
    }
}

#[test]
fn nobody_but_the_owner_and_pruners_can_prune() {
    let world = World::new();
    for seed in 1..=3 {
        back_up(&world.vault, "app", seed, 10).unwrap();
    }
    // A host that was broken into has another owner's vault at hand, and copies its prune here.
    let other = World::new();
    for seed in 1..=3 {
        back_up(&other.vault, "app", seed, 10).unwrap();
    }
    let Swept::Done(_) = prune_all(&other, &last(1)) else { panic!("not swept") };
    for prefix in ["prune/", "tombstone/"] {
        for key in keys(&other, prefix) {
            world.storage.put(&key, &other.storage.get(&key).unwrap()).unwrap();
        }
    }
    let points = world.vault.points(None).unwrap();
    assert_eq!(points.points.len(), 3);
    assert!(points.findings.iter().any(|f| f.code == "untrusted" && f.object.starts_with("tombstone/")), "{points:?}");
    assert!(points.findings.iter().any(|f| f.code == "untrusted" && f.object.starts_with("prune/")));
    let refused = pruner(&world).propose(&at(&world, 3, &last(1))).unwrap_err();
    assert!(refused.to_string().contains("something is wrong with the vault"), "{refused}");
    assert!(world.vault.pruner(&world.state).is_err());
}

#[test]
fn a_storage_that_does_not_say_the_time_or_says_another_is_not_pruned() {
    let world = World::new();
    for seed in 1..=3 {
        back_up(&world.vault, "app", seed, 10).unwrap();
    }
    let pruner = pruner(&world);
    let options = PruneOptions { now: Some(later(30)), ..last(1) };
    let proposed = pruner.propose(&options).unwrap();
    let refused = pruner.perform(&proposed, &options).unwrap_err();
    assert!(refused.to_string().contains("set right the one that is wrong"), "{refused}");
    assert_eq!(world.vault.points(None).unwrap().points.len(), 3);
}

#[test]
fn two_hosts_of_one_data_set_do_not_displace_each_other() {
    let world = World::new();
    let beta_state: State = host_state(&world.directory, "beta");
    let beta = Member {
        name: "beta".into(),
        roles: vec![Role::Host],
        key: beta_state.signing_key().public(),
        index: None,
        revoked: None,
    };
    world.unlock().admit(beta).unwrap();
    let beta = HostVault::open(world.storage.clone(), beta_state, Some(&world.fingerprint)).unwrap();
    for seed in 1..=3 {
        back_up(&world.vault, "/etc", seed, 10).unwrap();
        back_up(&beta, "/etc", 10 + seed, 10).unwrap();
    }
    let Swept::Done(_) = prune_all(&world, &last(1)) else { panic!("not swept") };
    let left: Vec<String> = world.vault.points(None).unwrap().points.into_iter().map(|p| p.id).collect();
    assert_eq!(left, ["alpha/%2Fetc/0000000003", "beta/%2Fetc/0000000003"]);
    check_is_silent(&world);
    let storage: Arc<MemoryStorage> = world.storage.clone();
    assert!(storage.list("pack/").unwrap().len() == 2);
}

#[test]
fn what_a_pruner_did_before_it_was_revoked_stays_and_what_it_signs_later_counts_for_nothing() {
    let world = World::new();
    let state = host_state(&world.directory, "pruner");
    let member = Member {
        name: "pruner".into(),
        roles: vec![Role::Pruner],
        key: state.signing_key().public(),
        index: None,
        revoked: None,
    };
    world.unlock().admit(member).unwrap();
    for seed in 1..=3 {
        back_up(&world.vault, "app", seed, 10).unwrap();
    }
    // The owner proposes, and the pruner signs the same records: it holds no refs key here, and needs none to sign.
    let propose = |day: i64, keep: u32| {
        let options = at(&world, day, &last(keep));
        let pruner = pruner(&world);
        pruner.perform(&pruner.propose(&options).unwrap(), &options).unwrap();
    };
    let sweep = |day: i64| {
        let swept = pruner(&world).go_on(&at(&world, day, &last(1))).unwrap();
        assert!(matches!(swept, Swept::Done(_)), "{swept:?}");
    };
    propose(3, 2);
    let sign = |key: &str, kind: &str| {
        let payload = lifeboat_vault::Signed::open(kind, key, &world.storage.get(key).unwrap()).unwrap().payload;
        lifeboat_vault::Signed::seal(kind, &payload, state.signing_key()).unwrap()
    };
    let resign = |prefix: &str, kind: &str| {
        let key = keys(&world, prefix).pop().unwrap();
        let signed = sign(&key, kind);
        world.storage.put(&key, &signed).unwrap();
    };
    resign("tombstone/", "vault.tombstone");
    resign("prune/", "vault.prune.proposal");
    let fresh = || Vault::open(world.storage.clone(), None, Some(&world.fingerprint)).unwrap();
    let look = || {
        let points = fresh().points(None).unwrap();
        let stands: Vec<_> = points.findings.into_iter().filter(|f| f.code != "freshness-unproven").collect();
        (points.points.len(), stands)
    };
    assert_eq!(look(), (2, Vec::new()));
    world.unlock().revoke("pruner").unwrap();
    assert_eq!(look(), (2, Vec::new()));
    check_is_silent(&world);
    assert_eq!(fresh().pruned_points().unwrap()[0].id, "alpha/app/0000000001");
    sweep(6);
    check_is_silent(&world);
    assert_eq!(fresh().pruned_points().unwrap()[0].id, "alpha/app/0000000001");

    // Of the next generation it signs nothing that counts.
    propose(9, 1);
    assert_eq!(look(), (1, Vec::new()));
    resign("tombstone/", "vault.tombstone");
    let (_, stands) = look();
    assert!(stands.iter().any(|f| f.code == "untrusted" && f.message.contains("was revoked before")), "{stands:?}");
}
