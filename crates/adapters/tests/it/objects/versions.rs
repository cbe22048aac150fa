//! Vaults in buckets that keep versions or lock what comes: they live there, or are refused by name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use jiff::{SignedDuration, Timestamp};
use lifeboat_vault::prune::Swept;
use lifeboat_vault::storage::{Listed, Put, Storage, StorageError};
use lifeboat_vault::{Identity, KeepRules, PruneOptions};

use super::servers::{self, Server};
use super::vaults::{World, back_up, point_comes_back};

/// A storage on whose clock days pass at once.
#[derive(Debug)]
pub(super) struct Aged {
    inner: Arc<dyn Storage>,
    /// When what was there came, and how many hours later it is now.
    clock: Mutex<(HashMap<String, Option<Timestamp>>, i64)>,
}

impl Aged {
    pub(super) fn over(inner: Arc<dyn Storage>) -> Arc<Aged> {
        Arc::new(Aged { inner, clock: Mutex::default() })
    }

    pub(super) fn pass(&self, days: i64) -> Timestamp {
        let listed = self.list("").unwrap();
        let mut clock = self.clock.lock().unwrap();
        clock.0 = listed.into_iter().map(|listed| (listed.key, listed.stored_at)).collect();
        clock.1 += days * 24;
        Timestamp::now() + SignedDuration::from_hours(clock.1)
    }
}

impl Storage for Aged {
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
        let mut listed = self.inner.list(prefix)?;
        let clock = self.clock.lock().unwrap();
        for one in &mut listed {
            one.stored_at = match clock.0.get(&one.key) {
                Some(then) => *then,
                None => one.stored_at.map(|at| at + SignedDuration::from_hours(clock.1)),
            };
        }
        Ok(listed)
    }

    fn delete(&self, key: &str) -> Result<(), StorageError> {
        self.inner.delete(key)
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}

fn versions_of(server: &Server, bucket: &str) -> String {
    server.ask(super::servers::User::Owner, "GET", &format!("{bucket}?versions="), None)
}

/// A vault's life: points, another key, pruning with all that is deleted, a restore.
pub(super) fn lives(storage: Arc<dyn Storage>) {
    let aged = Aged::over(storage);
    let mut world = World::in_bucket(aged.clone());
    let from = world.tree(20, 30_000);
    for round in 0..3 {
        std::fs::write(from.join("0/round"), vec![round; 3 << 20]).unwrap();
        back_up(&world.host, &from).unwrap();
    }
    let another = Identity::generate();
    world.unlock().add_recipient(&another.recipient()).unwrap();
    world.key = another;
    let points = world.unlock().points(None).unwrap().points;
    let before = world.storage.list("").unwrap().len();
    let options = |now| PruneOptions {
        rules: Some(KeepRules { last: 1, ..KeepRules::default() }),
        min_age: SignedDuration::ZERO,
        now: Some(now),
        ..PruneOptions::default()
    };
    let pruner = world.unlock().pruner().unwrap();
    let now = options(aged.pass(4));
    pruner.perform(&pruner.propose(&now).unwrap(), &now).unwrap();
    let Swept::Done(_) = pruner.go_on(&options(aged.pass(4))).unwrap() else { panic!("not swept") };
    let after = world.storage.list("").unwrap();
    assert!(
        !after.iter().any(|listed| listed.key.starts_with("snap/") && listed.key.ends_with("0000000001")),
        "{before}"
    );
    assert_eq!(world.unlock().points(None).unwrap().points.len(), 1);
    point_comes_back(&world, points.last().unwrap(), &from);
    world.check();
    // What was deleted, or hidden, can be created again.
    let probe = "log/again";
    for _ in 0..2 {
        assert_eq!(world.storage.put_if_absent(probe, b"1").unwrap(), Put::Created);
        assert_eq!(world.storage.put_if_absent(probe, b"2").unwrap(), Put::Exists);
        assert_eq!(world.storage.get(probe).unwrap(), b"1");
        world.storage.delete(probe).unwrap();
        assert!(world.storage.get(probe).unwrap_err().is_not_found());
    }
}

#[test]
fn a_vault_lives_in_a_bucket_of_radosgw_and_is_pruned_there() {
    let server = servers::radosgw();
    lives(Arc::new(server.open(&server.bucket())));
}

/// *Emulated*: a server that honours the condition where versions are kept, as Amazon does.
#[test]
fn a_vault_lives_in_a_bucket_with_versions() {
    let server = servers::emulated();
    let bucket = server.bucket();
    server.set_versions(&bucket, "Enabled");
    lives(Arc::new(server.open(&bucket)));
    assert!(versions_of(server, &bucket).contains("DeleteMarker"), "deleting only hides");
}

/// *Emulated*: the server takes nothing that is locked without an MD5, or another checksum that it names otherwise.
#[test]
fn a_vault_lives_in_a_bucket_that_locks_what_comes() {
    let server = servers::emulated();
    let bucket = server.locked_bucket();
    lives(Arc::new(server.open(&bucket)));
    assert!(versions_of(server, &bucket).contains("DeleteMarker"), "deleting only hides");
}

#[test]
fn versions_under_which_two_would_win_are_refused_by_name_and_suspended_ones_are_not() {
    let server = servers::radosgw();
    let bucket = server.bucket();
    let place = format!("{bucket}/vault");
    let world = World::in_bucket(Arc::new(server.open(&place)));
    let from = world.tree(5, 10_000);
    let first = back_up(&world.host, &from).unwrap();
    assert_eq!(world.storage.put_if_absent("log/claim", b"first").unwrap(), Put::Created);
    server.set_versions(&bucket, "Enabled");

    // Who opened it before learns of it by its first creation, who opens it now before that.
    let told = world.storage.put_if_absent("log/later", b"1").unwrap_err().to_string().replace(&bucket, "BUCKET");
    let fresh = server.open(&place);
    assert_eq!(fresh.put_if_absent("log/claim", b"second").unwrap_err().to_string().replace(&bucket, "BUCKET"), told);
    assert_eq!(fresh.get("log/claim").unwrap(), b"first", "and nothing was put over it");
    insta::assert_snapshot!(told, @"the storage at s3://BUCKET/vault cannot be used: it keeps versions, and so puts a new version over an object although it was told to create it only where there is none (If-None-Match): two writers would both win; suspend the bucket's versions, or use a storage that honours this with versions, as Amazon does (see docs/object-storage.md)");
    back_up(&world.reopened(Arc::new(server.open(&place))), &from).unwrap_err();
    assert!(server.open(&format!("{bucket}/another")).prove().is_err());
    assert!(server.open(&server.locked_bucket()).prove().is_err(), "a lock brings versions with it");
    // Reading needs no condition.
    point_comes_back(&world, &first, &from);

    server.set_versions(&bucket, "Suspended");
    let again = World { storage: Arc::new(server.open(&place)), ..world };
    std::fs::write(from.join("0/new"), b"later").unwrap();
    let second = back_up(&again.reopened(again.storage.clone()), &from).unwrap();
    point_comes_back(&again, &second, &from);
    again.check();
}
