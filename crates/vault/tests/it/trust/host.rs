//! A host that was broken into, a key that was lost or stolen: what its finder can do, and what not. `docs/trust.md` names these tests.

use std::sync::Arc;

use jiff::Timestamp;
use lifeboat_vault::seal::{Unopened, unseal};
use lifeboat_vault::storage::{Listed, MemoryStorage, Put, Storage, StorageError};
use lifeboat_vault::{
    Badge, CheckOptions, HostVault, Identity, LogPiece, Role, Severity, Signed, SigningKey, State, Vault, VaultError,
};

use crate::world::{World, back_up, chunk, host_state, is_right, unlock};

/// What a bucket policy leaves to a host: to create, to list and to read. Object Lock makes the same of a whole bucket.
#[derive(Debug)]
pub(crate) struct CreateOnly(pub(crate) Arc<MemoryStorage>);

impl CreateOnly {
    fn denied<T>(&self, verb: &'static str) -> Result<T, StorageError> {
        Err(StorageError::Denied { location: self.location(), verb })
    }
}

impl Storage for CreateOnly {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, StorageError> {
        self.0.put_if_absent(key, bytes)
    }
    fn put(&self, _: &str, _: &[u8]) -> Result<(), StorageError> {
        self.denied("overwrite")
    }
    fn get(&self, key: &str) -> Result<Vec<u8>, StorageError> {
        self.0.get(key)
    }
    fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Vec<u8>, StorageError> {
        self.0.get_range(key, offset, length)
    }
    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StorageError> {
        self.0.list(prefix)
    }
    fn delete(&self, _: &str) -> Result<(), StorageError> {
        self.denied("delete")
    }
    fn location(&self) -> String {
        self.0.location()
    }
}

/// The thief's copy of everything the host has on its disk.
fn stolen(world: &World) -> State {
    let copy = world.directory.path().join("stolen");
    copy_tree(world.state.directory(), &copy);
    State::open(&copy, None).unwrap()
}

pub(crate) fn copy_tree(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() { copy_tree(&path, &target) } else { std::fs::copy(&path, &target).map(|_| ()).unwrap() }
    }
}

fn files(directory: &std::path::Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path))
        } else {
            found.push((path.clone(), std::fs::read(&path).unwrap()))
        }
    }
    found
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn a_hosts_files_and_all_of_the_storage_read_nothing_back() {
    let world = World::new();
    let point = back_up(&world.vault, "app", 1, 30).unwrap();
    let mut writer = world.vault.log_writer("app", "l", 1).unwrap();
    let payload = chunk(7, 1);
    let piece = LogPiece { first: 1, last: 1, source_time: Timestamp::UNIX_EPOCH, mark: false, final_mark: false };
    let entry = writer.append(piece, &payload).unwrap();
    drop(writer);
    let thief = stolen(&world);
    // The host's own key opens its indexes, and no key of the vault.
    let index: Identity = std::fs::read_to_string(thief.directory().join("index.key")).unwrap().parse().unwrap();
    let vault = HostVault::open(world.storage.clone(), thief.clone(), Some(&world.fingerprint)).unwrap();
    assert!(matches!(vault.unlock(std::slice::from_ref(&index)), Err(VaultError::WrongKey { .. })));
    for object in world.storage.list("keys/").unwrap() {
        if object.key.ends_with(".age") {
            let bytes = world.storage.get(&object.key).unwrap();
            assert_eq!(unseal([&index], &bytes), Err(Unopened::WrongKey), "{}", object.key);
        }
    }
    // Nothing that was stored shows anywhere, neither on the disk nor in the storage (every second chunk does not compress).
    let objects = world.storage.snapshot();
    let everything =
        files(thief.directory()).into_iter().map(|(path, bytes)| (path.display().to_string(), bytes)).chain(objects);
    for (name, bytes) in everything {
        for part in (0..30).map(|n| chunk(1, n)).chain([payload.clone()]) {
            assert!(!contains(&bytes, &part[..32]), "{name}");
        }
        assert!(!contains(&bytes, b"AGE-SECRET-KEY-1") || name.ends_with("index.key"), "{name}");
    }
    // The owner reads it: it is there.
    let unlocked = world.unlock();
    assert!(is_right(&unlocked, &point, 1, 30).unwrap());
    assert_eq!(unlocked.read_log(&entry).unwrap(), payload);
}

#[test]
fn a_hosts_keys_neither_change_nor_age_out_nor_delete_earlier_points() {
    let world = World::new();
    let early: Vec<_> = (1..=3).map(|seed| back_up(&world.vault, "app", seed, 10).unwrap()).collect();
    let before = world.storage.snapshot();
    let bucket = Arc::new(CreateOnly(world.storage.clone()));
    let thief = HostVault::open(bucket.clone(), stolen(&world), Some(&world.fingerprint)).unwrap();
    let key = thief.state().signing_key();
    // The storage lets it neither replace nor delete; it goes on creating.
    for object in before.keys() {
        assert!(bucket.put(object, b"x").is_err() && bucket.delete(object).is_err());
        assert_eq!(bucket.put_if_absent(object, b"x").unwrap(), Put::Exists);
    }
    // Junk points, as many as it likes, from the far future and the past: the early ones stay, in their order.
    for seed in 50..60 {
        back_up(&thief, "app", seed, 2).unwrap();
    }
    // Tombstones for the good points, a roster, a statement about keys, each with its own signature.
    for (n, point) in (1..).zip(&early) {
        let tombstone = format!("tombstone/alpha/app/{n:010}");
        let mut payload = Vec::new();
        minicbor::Encoder::new(&mut payload)
            .array(4)
            .unwrap()
            .str(&world.vault.id())
            .unwrap()
            .str(&point.key)
            .unwrap()
            .bytes(&blake3::hash(&before[&point.key]).as_bytes()[..])
            .unwrap()
            .i64(0)
            .unwrap();
        bucket.put_if_absent(&tombstone, &Signed::seal("vault.tombstone", &payload, key).unwrap()).unwrap();
    }
    let roster = Signed::open("vault.roster", "roster", &before["roster/0000000001"]).unwrap();
    bucket.put_if_absent("roster/0000000002", &Signed::seal("vault.roster", &roster.payload, key).unwrap()).unwrap();
    for pair in ["keys/owner/", "keys/refs/", "keys/content/app/"] {
        let first = Signed::open("vault.key", pair, &before[&format!("{pair}0000000001.cert")]).unwrap();
        let forged = Signed::seal("vault.key", &first.payload, key).unwrap();
        bucket.put_if_absent(&format!("{pair}0000000002.cert"), &forged).unwrap();
    }
    let owner = Vault::open(world.storage.clone(), None, Some(&world.fingerprint)).unwrap();
    let points = owner.points(Some("app")).unwrap();
    for point in &early {
        assert!(points.points.iter().any(|p| p.id == point.id), "{}: {:?}", point.id, points.findings);
    }
    let named = |findings: &[lifeboat_vault::Finding], object: &str| {
        findings.iter().any(|f| f.severity == Severity::Alarm && f.object == object && f.code == "untrusted")
    };
    assert!(named(&owner.findings(), "roster/0000000002"), "{:?}", owner.findings());
    let checked = owner.check(CheckOptions { read_data: false }).unwrap();
    for pair in ["keys/owner/", "keys/refs/", "keys/content/app/"] {
        let forged = format!("{pair}0000000002.cert");
        assert!(named(&checked.findings, &forged), "{forged}: {:?}", checked.findings);
    }
    // What the thief put in the way is taken away (by the owner, who may), and everything is as it was.
    for object in [
        "roster/0000000002",
        "keys/owner/0000000002.cert",
        "keys/refs/0000000002.cert",
        "keys/content/app/0000000002.cert",
    ] {
        world.storage.delete(object).unwrap();
    }
    let unlocked = world.unlock();
    for (seed, point) in (1..).zip(&early) {
        assert!(is_right(&unlocked, point, seed, 10).unwrap());
    }
}

#[test]
fn a_host_signs_for_nobody_else() {
    let world = World::new();
    let beta = host_state(&world.directory, "beta");
    let request = world.vault.request_enrolment(&beta, &[]).unwrap();
    world.unlock().approve(&request.fingerprint).unwrap();
    let beta = HostVault::open(world.storage.clone(), beta, Some(&world.fingerprint)).unwrap();
    let theirs = back_up(&beta, "app", 5, 10).unwrap();
    // alpha signs beta's next point, a log object in beta's name is alpha's at once, a receipt, a verification of its own point as another.
    let honest = Signed::open("vault.snapshot", &theirs.key, &world.storage.get(&theirs.key).unwrap()).unwrap();
    let key = world.state.signing_key();
    world
        .storage
        .put("snap/beta/app/0000000002", &Signed::seal("vault.snapshot", &honest.payload, key).unwrap())
        .unwrap();
    let points = world.unlock().points(None).unwrap();
    assert_eq!(points.points.len(), 1);
    assert!(
        points.findings.iter().any(|f| f.object == "snap/beta/app/0000000002" && f.message.contains("not host beta")),
        "{:?}",
        points.findings
    );
}

#[test]
fn roles_are_asked_for_and_approved_exactly() {
    let world = World::new();
    let other = host_state(&world.directory, "other");
    let fingerprint = other.signing_key().public().fingerprint();
    let request = world.vault.request_enrolment(&other, &[Role::Pruner]).unwrap();
    assert_eq!(request.roles, [Role::Pruner]);
    // The machine changes its mind: both wait, and the owner takes one of them by name.
    world.vault.request_enrolment(&other, &[Role::Pruner]).unwrap();
    world.vault.request_enrolment(&other, &[Role::Observer, Role::Person]).unwrap();
    let owner = world.unlock();
    assert_eq!(owner.enrolment_requests().unwrap().len(), 2);
    let refused = owner.approve(&fingerprint).unwrap_err().to_string();
    assert!(refused.contains("several times, to be pruner; or observer and person"), "{refused}");
    let refused = owner.approve_as(&fingerprint, &[Role::Host]).unwrap_err().to_string();
    assert!(refused.contains("it asks to be pruner; or observer and person, not host"), "{refused}");
    owner.approve_as(&fingerprint, &[Role::Person, Role::Observer]).unwrap();
    let permits = |role| owner.roster().permits(&other.signing_key().public(), role);
    assert!(permits(Role::Observer) && permits(Role::Person) && !permits(Role::Pruner) && !permits(Role::Host));
    // Another role later, by the request that still waits.
    owner.approve_as(&fingerprint, &[Role::Pruner]).unwrap();
    assert!(owner.roster().permits(&other.signing_key().public(), Role::Pruner));
    assert!(!owner.roster().permits(&other.signing_key().public(), Role::Observer));
    let refused = HostVault::open(world.storage.clone(), other.clone(), Some(&world.fingerprint)).unwrap_err();
    assert!(matches!(refused, VaultError::NotEnrolled { .. }), "{refused}");
    // None of these roles writes points or logs, and none but a pruner tombstones.
    for role in [Role::Controller, Role::Person, Role::Observer, Role::Keeper, Role::Pruner] {
        let world = World::new();
        let first = back_up(&world.vault, "app", 1, 5).unwrap();
        let state = host_state(&world.directory, "x");
        let request = world.vault.request_enrolment(&state, &[role]).unwrap();
        world.unlock().approve_as(&request.fingerprint, &[role]).unwrap();
        let refused = HostVault::open(world.storage.clone(), state.clone(), None).unwrap_err();
        assert!(matches!(refused, VaultError::NotEnrolled { .. }), "{role:?}: {refused}");
        let honest = Signed::open("vault.snapshot", &first.key, &world.storage.get(&first.key).unwrap()).unwrap();
        let forged = Signed::seal("vault.snapshot", &honest.payload, state.signing_key()).unwrap();
        world.storage.put("snap/alpha/app/0000000002", &forged).unwrap();
        assert_eq!(world.unlock().points(None).unwrap().points.len(), 1, "{role:?}");
    }
}

#[test]
fn one_recipient_lost_the_other_opens_and_replaces_it() {
    let world = World::new();
    let point = back_up(&world.vault, "app", 1, 10).unwrap();
    // The owner's file is lost; the paper is found.
    let paper = unlock(world.storage.clone(), &world.fingerprint, &world.paper).unwrap();
    assert!(is_right(&paper, &point, 1, 10).unwrap());
    let new = Identity::generate();
    paper.add_recipient(&new.recipient()).unwrap();
    paper.remove_recipient(&world.owner.recipient()).unwrap();
    let next = back_up(&world.vault, "app", 2, 10).unwrap();
    let opened = unlock(world.storage.clone(), &world.fingerprint, &new).unwrap();
    assert!(is_right(&opened, &point, 1, 10).unwrap() && is_right(&opened, &next, 2, 10).unwrap());
    let refused = unlock(world.storage.clone(), &world.fingerprint, &world.owner).unwrap_err();
    assert!(matches!(refused, VaultError::WrongKey { .. }), "{refused}");
    assert!(opened.check(CheckOptions { read_data: true }).unwrap().is_sound());
    // Whoever copied the files of keys before opens what he copied: removing is no taking back.
    let holds = |roster: &lifeboat_vault::Roster| roster.recipients.contains(&world.owner.recipient().to_string());
    assert!(!holds(&opened.roster()));
}

#[test]
fn a_key_removed_after_its_file_was_copied_still_opens_the_copy() {
    let world = World::new();
    let point = back_up(&world.vault, "app", 1, 10).unwrap();
    let copied = Arc::new(MemoryStorage::from_snapshot(world.storage.snapshot()));
    world.unlock().remove_recipient(&world.paper.recipient()).unwrap();
    let thief = unlock(copied, &world.fingerprint, &world.paper).unwrap();
    assert!(
        is_right(&thief, &point, 1, 10).unwrap(),
        "docs/trust.md says so: a removed key is no key that was never there"
    );
}

#[test]
fn a_revoked_host_gets_new_keys_is_enrolled_again_and_goes_on() {
    let world = World::new();
    let before = back_up(&world.vault, "app", 1, 20).unwrap();
    let mut writer = world.vault.log_writer("app", "l", 1).unwrap();
    let piece = LogPiece { first: 1, last: 1, source_time: Timestamp::UNIX_EPOCH, mark: false, final_mark: false };
    writer.append(piece, b"before").unwrap();
    drop(writer);
    let thief = stolen(&world);
    let old = world.state.signing_key().public().fingerprint();
    world.unlock().revoke("alpha").unwrap();
    // What the thief signs from now on, in its chains, in its logs, about keys: nothing counts.
    for forged in ["snap/alpha/app/0000000002", "snap/alpha/other/0000000001"] {
        let honest = Signed::open("vault.snapshot", &before.key, &world.storage.get(&before.key).unwrap()).unwrap();
        world
            .storage
            .put(forged, &Signed::seal("vault.snapshot", &honest.payload, thief.signing_key()).unwrap())
            .unwrap();
    }
    assert!(matches!(HostVault::open(world.storage.clone(), thief.clone(), None), Err(VaultError::Revoked { .. })));

    let directory = world.state.directory().to_owned();
    let fresh = State::rotate(&directory, None).unwrap();
    assert_eq!(fresh.host_name(), "alpha");
    assert_ne!(fresh.signing_key().public().fingerprint(), old);
    let kept: Vec<String> =
        files(&directory).iter().map(|(path, _)| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert!(!kept.iter().any(|name| name.ends_with(".chunk-key") || name.ends_with(".pending")), "{kept:?}");
    assert!(kept.iter().any(|name| name == "heads.json"), "{kept:?}");
    assert!(matches!(HostVault::open(world.storage.clone(), fresh.clone(), None), Err(VaultError::NotEnrolled { .. })));
    let request = world.vault.request_enrolment(&fresh, &[]).unwrap();
    world.unlock().approve(&request.fingerprint).unwrap();
    let host = HostVault::open(world.storage.clone(), fresh, Some(&world.fingerprint)).unwrap();
    // Everything is uploaded once: neither the old indexes nor the old names of chunks are known to the new keys.
    let after = back_up(&host, "app", 1, 20).unwrap();
    assert_eq!(after.bytes_new, before.bytes_new);
    assert_eq!(back_up(&host, "app", 1, 20).unwrap().bytes_new, 0);
    let mut writer = host.log_writer("app", "l", 2).unwrap();
    writer.append(LogPiece { first: 2, last: 2, ..piece }, b"after").unwrap();
    let unlocked = world.unlock();
    for point in [&before, &after] {
        assert!(is_right(&unlocked, point, 1, 20).unwrap());
    }
    assert_eq!(unlocked.log_trail("app", "l").unwrap().entries.len(), 2);
    let report = unlocked.check(CheckOptions { read_data: true }).unwrap();
    let alarms: Vec<_> =
        report.findings.iter().filter(|f| f.severity == Severity::Alarm).map(|f| f.object.as_str()).collect();
    assert!(
        alarms.iter().all(|object| *object == "snap/alpha/app/0000000002" || object.contains("/other/")),
        "{:?}",
        report.findings
    );
}

/// A storage with a clock that the test turns.
#[derive(Debug)]
struct Clocked(Arc<MemoryStorage>, std::sync::Mutex<(i64, std::collections::BTreeMap<String, i64>)>);

impl Clocked {
    fn turn(&self, second: i64) {
        self.1.lock().unwrap().0 = second;
    }
}

impl Storage for Clocked {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, StorageError> {
        let put = self.0.put_if_absent(key, bytes)?;
        let mut clock = self.1.lock().unwrap();
        let now = clock.0;
        clock.1.entry(key.to_owned()).or_insert(now);
        Ok(put)
    }
    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), StorageError> {
        self.0.put(key, bytes)
    }
    fn get(&self, key: &str) -> Result<Vec<u8>, StorageError> {
        self.0.get(key)
    }
    fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Vec<u8>, StorageError> {
        self.0.get_range(key, offset, length)
    }
    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StorageError> {
        let clock = self.1.lock().unwrap();
        let timed = |listed: Listed| {
            let stored_at = clock.1.get(&listed.key).map(|second| Timestamp::from_second(*second).unwrap());
            Listed { stored_at, ..listed }
        };
        Ok(self.0.list(prefix)?.into_iter().map(timed).collect())
    }
    fn delete(&self, key: &str) -> Result<(), StorageError> {
        self.0.delete(key)
    }
    fn location(&self) -> String {
        self.0.location()
    }
}

#[test]
fn revoked_since_a_time_counts_by_the_storages_clock_and_not_by_the_hosts() {
    let world = World::new();
    let storage = Arc::new(Clocked(world.storage.clone(), std::sync::Mutex::default()));
    let host = world.reopen(storage.clone()).unwrap();
    let mut writer = host.log_writer("app", "l", 1).unwrap();
    let piece = |n| LogPiece { first: n, last: n, source_time: Timestamp::UNIX_EPOCH, mark: false, final_mark: false };
    for (second, seed) in [(100, 1), (200, 2), (300, 3)] {
        storage.turn(second);
        back_up(&host, "app", seed, 5).unwrap();
        writer.append(piece(seed), b"x").unwrap();
    }
    let owner = unlock(storage.clone(), &world.fingerprint, &world.owner).unwrap();
    let ends = owner.revoke_since("alpha", Some(Timestamp::from_second(250).unwrap())).unwrap();
    let end =
        |chain: &str| ends.iter().find(|end| end.chain == chain).unwrap_or_else(|| panic!("{chain}: {ends:?}")).number;
    assert_eq!((end("snap/alpha/app/"), end("log/app/l/0000000001/")), (3, 2), "{ends:?}");
    let points = owner.points(Some("app")).unwrap();
    assert_eq!(points.points.iter().map(|p| p.sequence).collect::<Vec<_>>(), [1, 2]);
    assert!(points.findings.iter().any(|f| f.object == "snap/alpha/app/0000000003" && f.code == "untrusted"));
    for (seed, point) in (1..).zip(&points.points) {
        assert!(is_right(&owner, point, seed, 5).unwrap());
    }
    assert_eq!(owner.log_trail("app", "l").unwrap().entries.len(), 2);
    // A storage that says nothing about time: nothing is decided by the host's word.
    let silent = World::new();
    back_up(&silent.vault, "app", 1, 5).unwrap();
    if silent.storage.list("snap/").unwrap()[0].stored_at.is_none() {
        let refused = silent.unlock().revoke_since("alpha", Some(Timestamp::UNIX_EPOCH)).unwrap_err().to_string();
        assert!(refused.contains("neither a receipt nor the storage says"), "{refused}");
    }
}

#[test]
fn a_foreign_hosts_badge_is_nobodys() {
    let world = World::new();
    let point = back_up(&world.vault, "app", 1, 5).unwrap();
    // Signed by who is on no roster: it gives no badge.
    let stranger = SigningKey::generate().unwrap();
    world.vault.record_verification(&point, Badge::Verified, "restored").unwrap();
    let honest = world.storage.list("verify/").unwrap().remove(0).key;
    let signed = Signed::open("vault.verification", &honest, &world.storage.get(&honest).unwrap()).unwrap();
    let (row, _) = honest.rsplit_once('-').unwrap();
    let forged = format!("{row}-{}", stranger.public().fingerprint());
    world.storage.put(&forged, &Signed::seal("vault.verification", &signed.payload, &stranger).unwrap()).unwrap();
    world.storage.delete(&honest).unwrap();
    let points = world.vault.points(None).unwrap();
    assert_eq!(points.points[0].badge, Badge::Unverified);
}
