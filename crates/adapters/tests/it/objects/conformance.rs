//! Buckets against the suite that every storage is held to, and what only buckets do.

use std::sync::Arc;
use std::time::Duration;

use lifeboat_adapters::storage::{Patience, open_with};
use lifeboat_vault::storage::{Put, Storage, StorageError};

use super::servers::{self, User, environment, open_at, patient};
use crate::storage_suite::conforms;

#[test]
fn a_bucket_of_radosgw_conforms() {
    let server = servers::radosgw();
    conforms(|| Arc::new(server.open(&server.bucket())));
}

#[test]
fn a_prefix_in_a_bucket_of_radosgw_conforms() {
    let server = servers::radosgw();
    let (bucket, mut count) = (server.bucket(), 0);
    conforms(|| {
        count += 1;
        Arc::new(server.open(&format!("{bucket}/deep/place-{count}")))
    });
}

#[test]
fn a_bucket_of_the_emulated_server_conforms() {
    let server = servers::emulated();
    conforms(|| Arc::new(server.open(&server.bucket())));
}

#[test]
fn neighbours_in_a_bucket_do_not_see_each_other() {
    let server = servers::radosgw();
    let bucket = server.bucket();
    let (one, other) = (server.open(&format!("{bucket}/vault")), server.open(&format!("{bucket}/vault-2")));
    one.put("a", b"1").unwrap();
    other.put("b", b"2").unwrap();
    assert_eq!(one.list("").unwrap().into_iter().map(|listed| listed.key).collect::<Vec<_>>(), ["a"]);
    assert!(one.get("b").unwrap_err().is_not_found());
}

#[test]
fn the_storage_says_when_it_took_an_object_in() {
    let server = servers::radosgw();
    let storage = server.open(&server.bucket());
    let before = jiff::Timestamp::now();
    storage.put("a", b"1").unwrap();
    let stored_at = storage.list("").unwrap()[0].stored_at.unwrap();
    assert!((stored_at - before).get_seconds().abs() <= 2, "{stored_at} and {before}");
}

#[test]
fn it_can_be_called_from_an_async_task_and_from_a_plain_thread() {
    let server = servers::radosgw();
    let storage = Arc::new(server.open(&server.bucket()));
    storage.put("a", b"1").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let asked = storage.clone();
    let read = runtime.block_on(async move { tokio::spawn(async move { asked.get("a").unwrap() }).await.unwrap() });
    assert_eq!(read, b"1");
}

#[test]
fn what_is_wrong_is_said_in_words_that_help() {
    let server = servers::radosgw();
    let bucket = server.bucket();
    let small = server.bucket_of(User::Small);
    let said = |result: Result<(), StorageError>| with_cause(&result.unwrap_err()).replace(&bucket, "BUCKET");
    let wrong_key = environment(&server.endpoint(), User::Owner)
        .into_iter()
        .map(|(name, value)| if name == "AWS_SECRET_ACCESS_KEY" { (name, "hush".to_owned()) } else { (name, value) })
        .collect();
    let open = |url: &str, environment| open_with(url, environment, patient()).unwrap();
    let nobody = Patience { total_unreached: Duration::from_millis(300), ..patient() };
    let nobody = open_with(&format!("s3://{bucket}"), &environment("http://127.0.0.1:9", User::Owner), nobody).unwrap();
    let no_bucket = server.open("no-such-bucket");
    let not_mine = open_at(&server.endpoint(), &bucket, User::Host);
    let full = open_at(&server.endpoint(), &small, User::Small);
    full.put("a", &[0; 200_000]).unwrap();
    let too_much = (0..20).find_map(|n| full.put(&format!("b{n}"), &[0; 200_000]).err()).unwrap();
    insta::assert_snapshot!([
        said(server.open(&bucket).get("a").map(|_| ())),
        said(no_bucket.list("").map(|_| ())),
        said(no_bucket.get("a").map(|_| ())),
        said(no_bucket.put_if_absent("a", b"1").map(|_| ())),
        said(not_mine.put("a", b"1")),
        said(not_mine.list("").map(|_| ())),
        said(open(&format!("s3://{bucket}"), &wrong_key).get("a").map(|_| ())),
        said(nobody.get("a").map(|_| ())).split(" (tried").next().unwrap().to_owned(),
        said(Err(too_much)).replace(&small, "SMALL"),
    ]
    .join("\n"), @r"
    there is no object a
    there is no bucket at s3://no-such-bucket, or none that these credentials may see; make it, or correct the address
    there is no bucket at s3://no-such-bucket, or none that these credentials may see; make it, or correct the address
    there is no bucket at s3://no-such-bucket, or none that these credentials may see; make it, or correct the address
    the storage at s3://BUCKET does not let this process write; check its permissions, and whether a directory is mounted read-only
    the storage at s3://BUCKET does not let this process list; check its permissions, and whether a directory is mounted read-only
    the storage at s3://BUCKET does not accept this machine's credentials: 403 SignatureDoesNotMatch
    cannot read a at s3://BUCKET: Connection refused (os error 111)
    the storage at s3://SMALL is full; free some space, nothing that was stored is lost
    ");
}

fn with_cause(error: &StorageError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

#[test]
fn a_creation_is_told_apart_by_its_maker_not_by_its_bytes() {
    let server = servers::radosgw();
    let bucket = server.bucket();
    let (one, other) = (server.open(&bucket), server.open(&bucket));
    assert_eq!(one.put_if_absent("claim", b"same").unwrap(), Put::Created);
    assert_eq!(other.put_if_absent("claim", b"same").unwrap(), Put::Exists);
    assert_eq!(one.put_if_absent("claim", b"same").unwrap(), Put::Exists);
}
