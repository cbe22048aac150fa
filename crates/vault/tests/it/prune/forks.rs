//! A host that wrote one log twice, in two copies of its vault: nothing of the one stands for the other, not even in a container that a
//! pruner signed in good faith.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use lifeboat_vault::copy::{CopyOptions, copy};
use lifeboat_vault::prune::Swept;
use lifeboat_vault::serve::{Rights, Who};
use lifeboat_vault::storage::{MemoryStorage, Storage};
use lifeboat_vault::{HostVault, PointInfo, PruneOptions, Role, Signed, State};

use super::logs::{LINEAGE, append, append_as, base, follows, lying, numbers, payload};
use super::{at, check_is_silent, keys, last, later, prune_all, pruner};
use crate::serve::world::Near;
use crate::trust::copy_tree;
use crate::world::{World, host_state, unlock};

const KIND: &str = "vault.log.gathered";

struct Forked {
    world: World,
    points: Vec<PointInfo>,
    /// The other copy: the same keys and numbers, other words of the same length.
    other: Arc<MemoryStorage>,
}

/// Three points with two hundred transactions after each, on both sides.
fn forked() -> Forked {
    let world = World::new();
    let other = Arc::new(MemoryStorage::from_snapshot(world.storage.snapshot()));
    let twin = world.directory.path().join("twin");
    copy_tree(world.state.directory(), &twin);
    let twin = HostVault::open(other.clone(), State::open(&twin, None).unwrap(), Some(&world.fingerprint)).unwrap();
    let mut points = Vec::new();
    for n in 0..3 {
        points.push(base(&world.vault, n * 200));
        append(&world.vault, n * 200 + 1..=n * 200 + 200);
        base(&twin, n * 200);
        append_as(&twin, n * 200 + 1..=n * 200 + 200, |n| payload(n).to_ascii_uppercase());
    }
    Forked { world, points, other }
}

impl Forked {
    /// Prunes the other copy, up to the sweep or with it.
    fn prune_other(&self, options: &PruneOptions, sweep: bool) {
        let pruner = unlock(self.other.clone(), &self.world.fingerprint, &self.world.owner).unwrap().pruner().unwrap();
        let on = |day| {
            self.other.set_clock(later(day));
            PruneOptions { now: Some(later(day)), ..options.clone() }
        };
        pruner.perform(&pruner.propose(&on(3)).unwrap(), &on(3)).unwrap();
        if sweep {
            assert!(matches!(pruner.go_on(&on(6)).unwrap(), Swept::Done(_)));
        }
    }

    fn other_logs(&self) -> Vec<String> {
        self.other.list("log/").unwrap().into_iter().map(|object| object.key).collect()
    }

    /// The one container, which has the same name on both sides.
    fn container(&self) -> String {
        self.other_logs().into_iter().find(|key| key.contains("/gathered/")).unwrap()
    }
}

#[test]
fn what_follows_a_cut_names_what_the_cut_ended_with() {
    let forked = forked();
    let Forked { world, points, other } = &forked;
    assert!(matches!(prune_all(world, &last(2)), Swept::Done(_)));
    forked.prune_other(&last(2), true);
    assert_eq!(lying(world), (1, 1));
    let logs = forked.other_logs();
    assert_eq!(logs, keys(world, "log/"));
    let ours: Vec<Vec<u8>> = logs.iter().map(|key| world.storage.get(key).unwrap()).collect();
    for key in &logs {
        world.storage.put(key, &other.get(key).unwrap()).unwrap();
    }
    // Each object names the one before it, but what the first names is not what was cut here.
    let first = "log/app/l/0000000001/000000000/199";
    let position = points[1].position.as_ref().unwrap();
    for trail in [world.unlock().log_trail("app", LINEAGE), world.unlock().log_since("app", position)] {
        let trail = trail.unwrap();
        assert!(trail.entries.is_empty(), "{trail:?}");
        let named =
            |f: &lifeboat_vault::Finding| f.object == first && f.message.contains("does not name the object before it");
        assert!(trail.findings.iter().any(named), "{:?}", trail.findings);
    }
    let proposed = pruner(world).propose(&at(world, 9, &last(1))).unwrap();
    assert!(proposed.findings.iter().any(|f| f.object == first), "{:?}", proposed.findings);
    assert_eq!((proposed.log_objects, proposed.log_gathered), (0, 0));
    for (key, bytes) in logs.iter().zip(&ours) {
        world.storage.put(key, bytes).unwrap();
    }
    assert_eq!(follows(&world.unlock(), &points[1]), numbers(201..=600));
    check_is_silent(world);
}

#[test]
fn a_container_of_the_other_takes_nothing_away() {
    let forked = forked();
    let Forked { world, points, other } = &forked;
    forked.prune_other(&last(3), false);
    let key = forked.container();
    let theirs = other.get(&key).unwrap();
    let pruner = pruner(world);
    let day_3 = at(world, 3, &last(3));
    let proposed = pruner.propose(&day_3).unwrap();
    // It lies there before ours is written: ours takes its place.
    world.storage.put(&key, &theirs).unwrap();
    pruner.perform(&proposed, &day_3).unwrap();
    let ours = world.storage.get(&key).unwrap();
    assert!(ours != theirs && lying(world) == (600, 1));
    assert_eq!(follows(&world.unlock(), &points[0]), numbers(1..=600));
    // And in the place of ours, before what is in it goes: nothing goes.
    world.storage.put(&key, &theirs).unwrap();
    let Swept::Done(swept) = pruner.go_on(&at(world, 6, &last(3))).unwrap() else { panic!("not swept") };
    assert_eq!(lying(world), (600, 1), "{swept:?}");
    world.storage.delete(&key).unwrap();
    assert_eq!(follows(&world.unlock(), &points[0]), numbers(1..=600));
    check_is_silent(world);
}

#[test]
fn a_container_in_which_one_object_is_the_others_is_refused_at_every_door() {
    let forked = forked();
    let Forked { world, other, .. } = &forked;
    let sweeper = host_state(&world.directory, "sweeper");
    let asked = world.vault.request_enrolment(&sweeper, &[Role::Pruner]).unwrap();
    world.unlock().approve(&asked.fingerprint).unwrap();
    let pruner = pruner(world);
    let day_3 = at(world, 3, &last(3));
    pruner.perform(&pruner.propose(&day_3).unwrap(), &day_3).unwrap();
    let key = keys(world, "log/").into_iter().find(|key| key.contains("/gathered/")).unwrap();
    let right = world.storage.get(&key).unwrap();
    let payload = Signed::open(KIND, &key, &right).unwrap().payload;
    let number = 250;
    let single = format!("log/app/{LINEAGE}/0000000001/000000000/{number:03}");
    // Sealed twice, the same words differ in length: so each with what says how long it is.
    let as_bytes = |bytes: &[u8]| minicbor::to_vec(<&minicbor::bytes::ByteSlice>::from(bytes)).unwrap();
    let (ours, theirs) = (as_bytes(&world.storage.get(&single).unwrap()), as_bytes(&other.get(&single).unwrap()));
    let place = payload.windows(ours.len()).position(|window| window == ours).unwrap();
    let mut changed = payload.clone();
    changed.splice(place..place + ours.len(), theirs);
    let sealed = |payload: &[u8]| Signed::seal(KIND, payload, sweeper.signing_key()).unwrap();

    let rights = Rights { prune: true, read: true, ..Rights::default() };
    let near = Near::new(world.storage.clone(), Who::Named("sweeper".to_owned(), rights));
    let served = near.connect().unwrap();
    let copies = |bytes: &[u8], name: &str| {
        world.storage.put(&key, bytes).unwrap();
        let to: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
        let from: Arc<dyn Storage> = world.storage.clone();
        let options = CopyOptions::new(host_state(&world.directory, name));
        let report = copy(&from, &to, &options, &|_, _| {}, &AtomicBool::new(false)).unwrap();
        let named = report.findings.iter().any(|finding| finding.object.starts_with("log/"));
        (to.get(&key).is_ok(), named)
    };
    // What is right may be signed by any pruner, and comes through.
    world.storage.delete(&key).unwrap();
    served.put_if_absent(&key, &sealed(&payload)).unwrap();
    assert_eq!(copies(&sealed(&payload), "copier"), (true, false));
    world.storage.delete(&key).unwrap();
    assert!(served.put_if_absent(&key, &sealed(&changed)).is_err());
    assert!(world.storage.get(&key).is_err());
    assert_eq!(copies(&sealed(&changed), "other-copier"), (false, true));
    let trail = world.unlock().log_trail("app", LINEAGE).unwrap();
    assert!(trail.findings.iter().any(|f| f.object == single), "{:?}", trail.findings);
    assert_eq!(trail.entries.len(), number);
}
