//! A host that was broken into signs what only others may say, and storage that loses what was said: nobody counts it, and it is named.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use jiff::{SignedDuration, Timestamp};
use lifeboat_vault::prune::{Hand, Held, Swept};
use lifeboat_vault::storage::{Listed, MemoryStorage, Put, Storage, StorageError};
use lifeboat_vault::{
    Badge, HostVault, InitOptions, KeepRules, PruneOptions, Role, Signed, SigningKey, State, Vault, VaultError,
};

use crate::trust::copy_tree;
use crate::world::{World, back_up, host_state, is_right, unlock};

fn on_day(storage: &MemoryStorage, day: i64) -> PruneOptions {
    let now = Timestamp::now() + SignedDuration::from_hours(24 * day);
    storage.set_clock(now);
    PruneOptions {
        rules: Some(KeepRules { last: 1, ..KeepRules::default() }),
        min_age: SignedDuration::ZERO,
        now: Some(now),
        ..PruneOptions::default()
    }
}

fn kind_of(key: &str) -> String {
    match key.split('/').collect::<Vec<_>>()[..] {
        ["prune", _, step] => format!("vault.prune.{step}"),
        [kind, ..] => format!("vault.{kind}"),
        [] => panic!("no key"),
    }
}

/// The same words, signed by somebody else.
fn re_signed(storage: &dyn Storage, key: &str, signer: &SigningKey) -> Vec<u8> {
    let signed = Signed::open(&kind_of(key), key, &storage.get(key).unwrap()).unwrap();
    Signed::seal(&kind_of(key), &signed.payload, signer).unwrap()
}

#[test]
fn a_hosts_words_about_what_is_pruned_count_for_nothing() {
    let world = World::new();
    for seed in 1..=3 {
        back_up(&world.vault, "app", seed, 6).unwrap();
    }
    // What a pruner would say here, word for word.
    let pruned = Arc::new(MemoryStorage::from_snapshot(world.storage.snapshot()));
    let pruner = unlock(pruned.clone(), &world.fingerprint, &world.owner).unwrap().pruner().unwrap();
    let options = on_day(&pruned, 3);
    pruner.perform(&pruner.propose(&options).unwrap(), &options).unwrap();
    let tombstones = pruned.list("tombstone/").unwrap();
    assert!(matches!(pruner.go_on(&on_day(&pruned, 6)).unwrap(), Swept::Done(_)));
    let said: Vec<String> = pruned.list("prune/").unwrap().into_iter().chain(tombstones).map(|o| o.key).collect();
    assert_eq!(said.len(), 5, "{said:?}");
    let thief = world.state.signing_key();
    let alone = said.iter().map(std::slice::from_ref);
    for forged in alone.chain([said.as_slice()]) {
        let storage = Arc::new(MemoryStorage::from_snapshot(world.storage.snapshot()));
        for key in forged {
            storage.put(key, &re_signed(&*pruned, key, thief)).unwrap();
        }
        let unlocked = unlock(storage, &world.fingerprint, &world.owner).unwrap();
        let points = unlocked.points(None).unwrap();
        assert_eq!(points.points.len(), 3, "{forged:?}");
        for (seed, point) in (1..).zip(&points.points) {
            assert!(is_right(&unlocked, point, seed, 6).unwrap());
        }
        // A sweep without its proposal, and what is said to be done of it, are no right ones of their own.
        for key in forged {
            let named =
                points.findings.iter().find(|f| f.object == *key).unwrap_or_else(|| panic!("{key} is not named"));
            assert_eq!(named.code, "untrusted", "{named:?}");
            assert!(named.message.contains("has no such role on the roster"), "{named:?}");
        }
    }
}

#[test]
fn only_who_held_or_the_owner_lets_go_and_only_the_owner_thaws_whoever_signs() {
    let world = World::new();
    let point = back_up(&world.vault, "app", 1, 3).unwrap();
    let owner = world.unlock();
    let number = owner.hold(Hand::Owner(&owner), &Held::Point(point.id.clone()), None, "case 17").unwrap().number;
    owner.freeze(Hand::Owner(&owner), "an incident").unwrap();
    // What the owner would say to end both.
    let over = Arc::new(MemoryStorage::from_snapshot(world.storage.snapshot()));
    let there = unlock(over.clone(), &world.fingerprint, &world.owner).unwrap();
    there.release_hold(Hand::Owner(&there), number, "over").unwrap();
    there.release_freeze("over").unwrap();
    let stranger = SigningKey::generate().unwrap();
    for signer in [world.state.signing_key(), &stranger] {
        let storage = Arc::new(MemoryStorage::from_snapshot(world.storage.snapshot()));
        for key in ["hold/0000000002", "freeze/0000000002"] {
            storage.put(key, &re_signed(&*over, key, signer)).unwrap();
        }
        let vault = Vault::open(storage, None, Some(&world.fingerprint)).unwrap();
        let (holds, findings) = vault.holds().unwrap();
        assert_eq!(holds.len(), 1);
        assert!(findings.iter().any(|f| f.code == "untrusted" && f.object == "hold/0000000002"), "{findings:?}");
        let (frozen, findings) = vault.frozen().unwrap();
        assert_eq!(frozen.unwrap().why, "an incident");
        assert!(findings.iter().any(|f| f.code == "untrusted" && f.object == "freeze/0000000002"), "{findings:?}");
    }
    // Nor does a stranger hold or freeze anything.
    let storage = Arc::new(MemoryStorage::from_snapshot(world.storage.snapshot()));
    for key in ["hold/0000000001", "freeze/0000000001"] {
        storage.put(key, &re_signed(&*world.storage, key, &stranger)).unwrap();
    }
    let vault = Vault::open(storage, None, Some(&world.fingerprint)).unwrap();
    assert!(vault.holds().unwrap().0.is_empty() && vault.frozen().unwrap().0.is_none());
}

#[test]
fn a_hold_or_freeze_that_is_damaged_or_gone_stops_pruning() {
    let world = World::new();
    let points: Vec<_> = (1..=3).map(|seed| back_up(&world.vault, "app", seed, 4).unwrap()).collect();
    let by = Hand::Member(&world.state);
    let hold = |point: usize| world.vault.hold(by, &Held::Point(points[point].id.clone()), None, "case 17").unwrap();
    hold(0);
    world.vault.freeze(by, "an incident").unwrap();
    // A pruner that has seen both.
    let directory = tempfile::tempdir().unwrap();
    copy_tree(world.state.directory(), directory.path());
    let remembering = |storage: &Arc<MemoryStorage>, state: &State| {
        let vault = Vault::open(storage.clone(), Some(state.clone()), Some(&world.fingerprint)).unwrap();
        vault.unlock(std::slice::from_ref(&world.owner)).unwrap().pruner().unwrap()
    };
    let thawed = Arc::new(MemoryStorage::from_snapshot(world.storage.snapshot()));
    unlock(thawed.clone(), &world.fingerprint, &world.owner).unwrap().release_freeze("over").unwrap();
    for (key, from) in
        [("hold/0000000001", &thawed), ("freeze/0000000001", &world.storage), ("freeze/0000000002", &thawed)]
    {
        for lose in [true, false] {
            let storage = Arc::new(MemoryStorage::from_snapshot(from.snapshot()));
            // One for each, that remembers nothing of the others.
            let memory = tempfile::tempdir().unwrap();
            copy_tree(directory.path(), memory.path());
            let state = State::open(memory.path(), None).unwrap();
            let pruner = |storage: &Arc<MemoryStorage>| remembering(storage, &state);
            pruner(&storage).propose(&on_day(&storage, 3)).unwrap();
            let mut bytes = storage.get(key).unwrap();
            bytes[20] ^= 1;
            if lose {
                storage.delete(key).unwrap()
            } else {
                storage.put(key, &bytes).unwrap()
            }
            let pruner = pruner(&storage);
            let options = on_day(&storage, 3);
            let done = pruner.propose(&options).and_then(|proposed| pruner.perform(&proposed, &options));
            assert!(matches!(done, Err(VaultError::Refused { .. })), "{key}, lost {lose}: {done:?}");
            assert!(storage.list("prune/").unwrap().is_empty() && storage.list("tombstone/").unwrap().is_empty());
        }
    }
    // After the proposal: nothing is deleted.
    let state = State::open(directory.path(), None).unwrap();
    let pruner = |storage: &Arc<MemoryStorage>| remembering(storage, &state);
    let pruner_of = pruner(&thawed);
    let options = on_day(&thawed, 3);
    pruner_of.perform(&pruner_of.propose(&options).unwrap(), &options).unwrap();
    thawed.delete("hold/0000000001").unwrap();
    let refused = pruner(&thawed).go_on(&on_day(&thawed, 6));
    assert!(matches!(refused, Err(VaultError::Refused { .. })), "{refused:?}");
    assert_eq!((thawed.list("snap/").unwrap().len(), thawed.list("pack/").unwrap().len()), (3, 3));
}

/// Lets somebody freeze the vault as soon as something is deleted.
#[derive(Debug)]
struct FrozenMeanwhile {
    inner: Arc<MemoryStorage>,
    vault: HostVault,
    state: State,
    deleted: AtomicUsize,
}

impl Storage for FrozenMeanwhile {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, StorageError> {
        self.inner.put_if_absent(key, bytes)
    }
    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), StorageError> {
        self.inner.put(key, bytes)
    }
    fn get(&self, key: &str) -> Result<Vec<u8>, StorageError> {
        self.inner.get(key)
    }
    fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Vec<u8>, StorageError> {
        self.inner.get_range(key, offset, length)
    }
    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StorageError> {
        self.inner.list(prefix)
    }
    fn delete(&self, key: &str) -> Result<(), StorageError> {
        if !key.starts_with("probe/") && self.deleted.fetch_add(1, Ordering::SeqCst) == 3 {
            self.vault.freeze(Hand::Member(&self.state), "stop").unwrap();
        }
        self.inner.delete(key)
    }
    fn location(&self) -> String {
        self.inner.location()
    }
}

#[test]
fn a_freeze_stops_a_deletion_that_is_under_way_within_32_objects() {
    let world = World::new();
    for seed in 1..=30 {
        back_up(&world.vault, "app", seed, 1).unwrap();
    }
    let (vault, state) = (world.vault.clone(), world.state.clone());
    let storage =
        Arc::new(FrozenMeanwhile { inner: world.storage.clone(), vault, state, deleted: AtomicUsize::new(0) });
    let pruner = unlock(storage.clone(), &world.fingerprint, &world.owner).unwrap().pruner().unwrap();
    let options = on_day(&world.storage, 3);
    let proposed = pruner.propose(&options).unwrap();
    assert!(proposed.objects > 80, "{}", proposed.objects);
    pruner.perform(&proposed, &options).unwrap();
    let stopped = pruner.go_on(&on_day(&world.storage, 6)).unwrap_err();
    assert!(stopped.to_string().contains("was frozen by alpha (stop)"), "{stopped}");
    assert_eq!(storage.deleted.load(Ordering::SeqCst), 32);
    world.unlock().release_freeze("go on").unwrap();
    assert!(matches!(pruner.go_on(&on_day(&world.storage, 6)).unwrap(), Swept::Done(_)));
    assert_eq!(world.vault.points(None).unwrap().points.len(), 1);
}

#[test]
fn a_point_that_was_put_where_a_condemned_one_lay_is_not_deleted_for_it() {
    let world = World::new();
    for seed in 1..=3 {
        back_up(&world.vault, "app", seed, 4).unwrap();
    }
    let pruner = world.unlock().pruner().unwrap();
    let options = on_day(&world.storage, 3);
    pruner.perform(&pruner.propose(&options).unwrap(), &options).unwrap();
    let (first, second) = ("snap/alpha/app/0000000001", "snap/alpha/app/0000000002");
    let other = world.storage.get(second).unwrap();
    world.storage.put(first, &other).unwrap();
    assert!(matches!(pruner.go_on(&on_day(&world.storage, 6)), Ok(Swept::Done(_))));
    // It is not what was condemned: a person looks at it, or the next prune condemns it as it is.
    assert_eq!(world.storage.get(first).unwrap(), other);
    assert!(world.storage.get(second).is_err());
    assert_eq!(world.vault.points(None).unwrap().points.len(), 1);
}

#[test]
fn who_is_no_host_writes_no_points_and_gives_no_badges() {
    let world = World::new();
    let point = back_up(&world.vault, "app", 1, 3).unwrap();
    // An observer of the same name as a host would have, and a stranger.
    let observer = host_state(&world.directory, "observer");
    let asked = world.vault.request_enrolment(&observer, &[Role::Observer]).unwrap();
    world.unlock().approve_as(&asked.fingerprint, &[Role::Observer]).unwrap();
    let refused = HostVault::open(world.storage.clone(), observer.clone(), Some(&world.fingerprint));
    assert!(refused.is_err(), "{refused:?}");
    world.vault.record_verification(&point, Badge::Corrupt, "a lie").unwrap();
    let verification = world.storage.list("verify/").unwrap().remove(0).key;
    let stranger = SigningKey::generate().unwrap();
    let signed = Signed::open("vault.verification", &verification, &world.storage.get(&verification).unwrap()).unwrap();
    let forged = Signed::seal("vault.verification", &signed.payload, &stranger).unwrap();
    world.storage.put(&verification, &forged).unwrap();
    let points = world.vault.points(None).unwrap();
    assert_eq!(points.points[0].badge, Badge::Unverified);
    assert!(points.findings.iter().any(|f| f.code == "untrusted" && f.object == verification), "{:?}", points.findings);
}

/// The same host's vault as it would be had something else come after its first point: rightly signed, and not what happened.
fn fork(
    world: &World,
    after: std::collections::BTreeMap<String, Vec<u8>>,
    state: &std::path::Path,
) -> Arc<MemoryStorage> {
    let storage = Arc::new(MemoryStorage::from_snapshot(after));
    let state = State::open(state, None).unwrap();
    let vault = HostVault::open(storage.clone(), state, Some(&world.fingerprint)).unwrap();
    back_up(&vault, "app", 77, 4).unwrap();
    storage
}

#[test]
fn a_point_of_another_history_of_the_same_host_is_named_by_its_neighbours_and_by_who_saw_the_right_one() {
    let world = World::new();
    back_up(&world.vault, "app", 1, 4).unwrap();
    world.vault.points(None).unwrap();
    let (early, memory) = (world.storage.snapshot(), tempfile::tempdir().unwrap());
    copy_tree(world.state.directory(), memory.path());
    let forked = fork(&world, early, memory.path());
    let second = back_up(&world.vault, "app", 2, 4).unwrap().key;
    world.vault.points(None).unwrap();
    let mixed = |newest: bool| {
        let storage = Arc::new(MemoryStorage::from_snapshot(world.storage.snapshot()));
        for (key, bytes) in forked.snapshot() {
            if key == second || !world.storage.snapshot().contains_key(&key) {
                storage.put(&key, &bytes).unwrap();
            }
        }
        assert_eq!(newest, storage.get("snap/alpha/app/0000000003").is_err());
        storage
    };
    // As the newest, only who saw the right one can tell.
    let vault = Vault::open(mixed(true), Some(world.state.clone()), Some(&world.fingerprint)).unwrap();
    let points = vault.points(None).unwrap();
    assert_eq!(points.points.len(), 1);
    assert!(
        points.findings.iter().any(|f| f.object == second && f.message.contains("replaced since it was first seen")),
        "{:?}",
        points.findings
    );
    // With one after it, everybody can.
    back_up(&world.vault, "app", 3, 4).unwrap();
    let vault = Vault::open(mixed(false), None, Some(&world.fingerprint)).unwrap();
    let findings = vault.points(None).unwrap().findings;
    let named = |f: &&lifeboat_vault::Finding| f.message.contains("it does not name the point before it");
    assert_eq!(findings.iter().find(named).unwrap().object, "snap/alpha/app/0000000003");
}

#[test]
fn records_of_prunes_count_in_their_place_and_with_each_other_only() {
    let world = World::new();
    for seed in 1..=3 {
        back_up(&world.vault, "app", seed, 4).unwrap();
    }
    let before = world.storage.snapshot();
    let prune = |storage: &Arc<MemoryStorage>, day: i64, keep: u32| {
        let pruner = unlock(storage.clone(), &world.fingerprint, &world.owner).unwrap().pruner().unwrap();
        let with = |day| {
            let rules = Some(KeepRules { last: keep, ..KeepRules::default() });
            PruneOptions { rules, ..on_day(storage, day) }
        };
        pruner.perform(&pruner.propose(&with(day)).unwrap(), &with(day)).unwrap();
        pruner.go_on(&with(day + 3)).unwrap();
    };
    prune(&world.storage, 3, 1);
    let findings = |storage: &Arc<MemoryStorage>, state: Option<State>| {
        let vault = Vault::open(storage.clone(), state, Some(&world.fingerprint)).unwrap();
        vault.points(None).unwrap().findings
    };
    world.vault.points(None).unwrap();
    // A record of this prune under the next one's number.
    for step in ["proposal", "sweep", "done"] {
        let storage = Arc::new(MemoryStorage::from_snapshot(world.storage.snapshot()));
        let next = format!("prune/0000000002/{step}");
        storage.put(&next, &storage.get(&format!("prune/0000000001/{step}")).unwrap()).unwrap();
        let findings = findings(&storage, None);
        let named = findings.iter().find(|f| f.object == next).unwrap_or_else(|| panic!("{next}: {findings:?}"));
        assert!(named.message.contains("it belongs to another place"), "{named:?}");
    }
    // The sweep, and what is said to be done, of another prune that was proposed under the same number.
    let other = Arc::new(MemoryStorage::from_snapshot(before.clone()));
    prune(&other, 3, 2);
    for (step, said) in [("sweep", "not the sweep of the proposal"), ("done", "not about the sweep")] {
        let storage = Arc::new(MemoryStorage::from_snapshot(world.storage.snapshot()));
        let key = format!("prune/0000000001/{step}");
        storage.put(&key, &other.get(&key).unwrap()).unwrap();
        let findings = findings(&storage, None);
        assert!(findings.iter().any(|f| f.object == key && f.message.contains(said)), "{key}: {findings:?}");
    }
    // All of it rolled back: who saw it knows.
    let back = Arc::new(MemoryStorage::from_snapshot(before));
    let rolled_back = findings(&back, Some(world.state.clone()));
    assert!(rolled_back.iter().any(|f| f.code == "rolled-back" && f.object == "prune/"), "{rolled_back:?}");
    assert!(findings(&back, None).iter().all(|f| f.code == "freshness-unproven"));
}

#[test]
fn a_request_that_another_key_signed_is_none_and_a_host_accepts_no_suspect_point() {
    let world = World::new();
    let point = back_up(&world.vault, "app", 1, 3).unwrap();
    let (beta, gamma) = (host_state(&world.directory, "beta"), host_state(&world.directory, "gamma"));
    let asked = world.vault.request_enrolment(&beta, &[Role::Host]).unwrap();
    let key = world.storage.list("enroll/").unwrap().remove(0).key;
    let right = world.storage.get(&key).unwrap();
    let payload = Signed::open("vault.enrolment", &key, &right).unwrap().payload;
    // Somebody asks in its name for a key that is not theirs.
    world.storage.put(&key, &Signed::seal("vault.enrolment", &payload, gamma.signing_key()).unwrap()).unwrap();
    assert!(world.unlock().approve(&asked.fingerprint).is_err());
    assert!(world.vault.enrolment_requests().unwrap().is_empty());
    world.storage.put(&key, &right).unwrap();
    world.unlock().approve(&asked.fingerprint).unwrap();
    // One that is a controller, too, says nothing of what it took itself.
    let storage = Arc::new(MemoryStorage::new());
    let recipients = vec![world.owner.recipient(), world.paper.recipient()];
    let roles = vec![Role::Host, Role::Controller];
    let state = host_state(&world.directory, "both");
    let (both, _) = Vault::init(storage, &state, &InitOptions { recipients, roles, ..InitOptions::default() }).unwrap();
    let own = back_up(&both, "app", 1, 3).unwrap();
    let refused = both.accept(Hand::Member(&state), &own, "trust me");
    assert!(matches!(refused, Err(VaultError::Refused { .. })), "{refused:?}");
    // Another host's word is not enough either.
    for state in [&beta, &world.state] {
        let refused = world.vault.accept(Hand::Member(state), &point, "trust me");
        assert!(matches!(refused, Err(VaultError::Refused { .. })), "{refused:?}");
    }
}
