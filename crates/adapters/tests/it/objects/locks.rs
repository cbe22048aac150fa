//! Object Lock: what points need stays locked, and comes back whole after a thief with the pruner's credentials has deleted everything.
//!
//! *Emulated* (moto): the S3 server at hand that keeps versions and honours create-if-absent with them.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use lifeboat_vault::doctor::{Wanted, examine};
use lifeboat_vault::prune::LockOptions;
use lifeboat_vault::storage::{Lock, LockMode, Locking, Storage, StorageError, Verdict};

use super::proxy::Proxy;
use super::servers::{self, Server, User, open_at};
use super::vaults::{World, back_up, point_comes_back};

fn in_days(days: i64) -> Timestamp {
    Timestamp::now() + SignedDuration::from_hours(24 * days)
}

/// Key and version of all that is listed so, and whether each is the newest of its key.
fn listed_with(server: &Server, bucket: &str, element: &str) -> Vec<(String, String, bool)> {
    let text = server.ask(User::Owner, "GET", &format!("{bucket}?versions="), None);
    let between = |part: &str, name: &str| {
        part.split_once(&format!("<{name}>")).and_then(|(_, rest)| rest.split_once('<')).unwrap().0.to_owned()
    };
    let begin = format!("<{element}>");
    let parts = text.split(&begin).skip(1);
    parts.map(|part| (between(part, "Key"), between(part, "VersionId"), between(part, "IsLatest") == "true")).collect()
}

fn listed(server: &Server, bucket: &str, element: &str) -> Vec<(String, String)> {
    listed_with(server, bucket, element).into_iter().map(|(key, version, _)| (key, version)).collect()
}

fn newest(server: &Server, bucket: &str, element: &str) -> Vec<(String, String)> {
    let newest = listed_with(server, bucket, element).into_iter().filter(|(_, _, newest)| *newest);
    newest.map(|(key, version, _)| (key, version)).collect()
}

fn newest_of(server: &Server, bucket: &str, key: &str) -> String {
    newest(server, bucket, "Version").into_iter().find(|(found, _)| found == key).unwrap().1
}

fn take_markers_away(server: &Server, bucket: &str) {
    let named =
        |(key, version): (String, String)| format!("<Object><Key>{key}</Key><VersionId>{version}</VersionId></Object>");
    let objects: String = newest(server, bucket, "DeleteMarker").into_iter().map(named).collect();
    let body = format!("<Delete><Quiet>true</Quiet>{objects}</Delete>");
    let said = server.ask(User::Owner, "POST", &format!("{bucket}?delete="), Some(&body));
    assert!(!said.contains("<Error>"), "{said}");
}

#[test]
fn what_is_locked_outlives_who_deletes_everything_and_comes_back_whole() {
    let server = servers::emulated();
    let bucket = server.locked_bucket();
    let world = World::in_bucket(Arc::new(server.open(&format!("{bucket}/dr"))));
    assert_eq!(
        world.storage.locking().unwrap(),
        Some(Locking { by_itself: Some((1, LockMode::Governance)) }),
        "as the bucket was made"
    );
    let from = world.tree(20, 30_000);
    let point = back_up(&world.host, &from).unwrap();
    let proxy = Proxy::before(server.port);
    let watched: Arc<dyn Storage> = Arc::new(open_at(&proxy.endpoint(), &format!("{bucket}/dr"), User::Owner));
    let vault = lifeboat_vault::Vault::open(watched, None, Some(&world.owner)).unwrap();
    let pruner = vault.unlock(std::slice::from_ref(&world.key)).unwrap().pruner().unwrap();
    let memory = Some(world.directory.path().to_owned());
    let options = LockOptions { mode: Some(LockMode::Compliance), memory, ..LockOptions::for_days(30) };
    let locked = pruner.lock(&options, &|_, _| {}).unwrap();
    assert_eq!((locked.extended, locked.unlocked), (locked.objects, 0), "{locked:?}");
    let until = locked.until.unwrap();
    assert!(until > in_days(29) && until < in_days(31), "{until}");
    let lock = world.storage.lock_of(&point.key).unwrap().unwrap();
    assert_eq!((lock.until, lock.mode), (until, LockMode::Compliance));
    // Nothing is asked again, and nothing made shorter.
    let before = proxy.requests().len();
    assert_eq!(pruner.lock(&options, &|_, _| {}).unwrap().extended, 0);
    let again = proxy.requests().split_off(before);
    assert!(!again.iter().any(|line| line.contains("retention") || line.starts_with("HEAD")), "{again:?}");

    // Whoever has the keys to everything hides what is there, and cannot delete it.
    for (key, version) in listed(server, &bucket, "Version").iter().filter(|(key, _)| key.starts_with("dr/pack/")) {
        let refused = server.refused(User::Owner, "DELETE", &format!("{bucket}/{key}?versionId={version}"));
        assert!(refused.contains("AccessDenied"), "{refused}");
    }
    let keys: Vec<String> = world.storage.list("").unwrap().into_iter().map(|listed| listed.key).collect();
    keys.iter().for_each(|key| world.storage.delete(key).unwrap());
    assert!(world.storage.list("").unwrap().is_empty());
    // As docs/object-lock.md says: each marker that is newest is taken away, many at a time. (Its commands were run by hand, with the
    // `aws` that no test here has.) A marker that something lies over stays.
    let under = &keys[0];
    world.storage.put_if_absent(under, b"put there by the thief").unwrap();
    world.storage.delete(under).unwrap();
    let markers = newest(server, &bucket, "DeleteMarker").len();
    assert!(markers >= keys.len());
    assert_eq!(listed(server, &bucket, "DeleteMarker").len(), markers + 1);
    take_markers_away(server, &bucket);
    assert!(keys.iter().all(|key| world.storage.get(key).is_ok()));
    // What was put over an object is newer, and locked as everything is that comes: it goes by who may pass over locks.
    assert_eq!(world.storage.get(under).unwrap(), b"put there by the thief");
    let over = newest_of(server, &bucket, &format!("dr/{under}"));
    let path = format!("{bucket}/dr/{under}?versionId={over}");
    assert!(server.refused(User::Owner, "DELETE", &path).contains("AccessDenied"));
    server.ask_with(User::Owner, "DELETE", &path, None, &["x-amz-bypass-governance-retention: true"]);
    // Below it lay the other marker.
    assert!(world.storage.get(under).unwrap_err().is_not_found());
    take_markers_away(server, &bucket);
    assert_ne!(world.storage.get(under).unwrap(), b"put there by the thief");
    point_comes_back(&world, &point, &from);
    world.check();
}

/// Radosgw puts versions over each other and cannot hold a vault so; its locks are as they should be.
#[test]
fn a_lock_is_made_longer_and_not_shorter_and_holds() {
    let server = servers::radosgw();
    let bucket = server.locked_bucket();
    let storage = server.open(&format!("{bucket}/deep/place"));
    storage.put("pack/1", b"1").unwrap();
    let at_first = storage.lock_of("pack/1").unwrap().unwrap();
    assert!(at_first.until < in_days(2) && at_first.mode == LockMode::Governance, "{at_first:?}");
    let soon =
        |days| Lock { until: Timestamp::from_second(in_days(days).as_second()).unwrap(), mode: LockMode::Governance };
    let long = soon(30);
    storage.lock("pack/1", long).unwrap();
    assert_eq!(storage.lock_of("pack/1").unwrap(), Some(long));
    let shorter = storage.lock("pack/1", soon(10)).unwrap_err();
    assert!(matches!(shorter, StorageError::Denied { .. } | StorageError::Locked { .. }), "{shorter:?}");
    assert_eq!(storage.lock_of("pack/1").unwrap(), Some(long));
    for (key, version) in listed(server, &bucket, "Version") {
        server.refused(User::Owner, "DELETE", &format!("{bucket}/{key}?versionId={version}"));
    }
    storage.delete("pack/1").unwrap();
    assert!(storage.get("pack/1").unwrap_err().is_not_found(), "deleting hides");
    assert!(matches!(storage.lock("pack/none", long).unwrap_err(), StorageError::NotFound { .. }));
    // Neither the mode nor the time of a lock that holds is changed, but by who passes over it: as this user may.
    assert!(storage.lock("pack/1", Lock { mode: LockMode::Compliance, ..long }).is_err());
    storage.put("pack/2", b"2").unwrap();
    let harder = storage.lock("pack/2", Lock { mode: LockMode::Compliance, ..long }).unwrap_err();
    assert!(matches!(harder, StorageError::Denied { .. }), "{harder:?}");
    assert!(storage.may_bypass_locks("pack/2", in_days(0) + SignedDuration::from_hours(1)).unwrap());
    let open = server.open(&server.bucket());
    open.put("a", b"1").unwrap();
    assert!(open.lock("a", long).is_err(), "the bucket has no Object Lock");
}

#[test]
fn a_bucket_without_object_lock_is_refused_by_name() {
    for (server, bucket) in [servers::emulated(), servers::radosgw()].map(|server| (server, server.bucket())) {
        let world = World::in_bucket(Arc::new(server.open(&bucket)));
        assert_eq!(world.storage.locking().unwrap(), None);
        let told =
            world.unlock().pruner().unwrap().lock(&LockOptions::for_days(30), &|_, _| {}).unwrap_err().to_string();
        assert_eq!(
            told.replace(&bucket, "BUCKET"),
            "locking is refused: the storage at s3://BUCKET cannot lock objects: use a bucket that was made with Object Lock, or take \
             `lock` off this vault (see docs/object-storage.md)"
        );
        assert!(matches!(server.open("no-such-bucket").locking().unwrap_err(), StorageError::NoBucket { .. }));
    }
}

/// *Emulated*: this server gives everybody every right, so the doctor finds one too many.
#[test]
fn the_doctor_finds_out_who_may_lock_and_who_may_pass_over_locks() {
    let server = servers::emulated();
    let bucket = server.locked_bucket();
    let found = |wanted: Wanted| {
        let examined = examine(&server.open(&bucket), wanted, None);
        let of = |code: &str| examined.facts.iter().find(|fact| fact.code == code).map(|fact| fact.verdict);
        (of("lock"), of("bypass"), of("object-lock"))
    };
    let (good, finding) = (Some(Verdict::Good), Some(Verdict::Finding));
    assert_eq!(found(Wanted::Pruner), (good, finding, good));
    assert_eq!(found(Wanted::Host), (finding, finding, good));
    let plain = examine(&server.open(&server.bucket()), Wanted::Pruner, None);
    assert!(!plain.facts.iter().any(|fact| fact.code == "lock"), "nothing is tried where nothing can be locked");
}
