//! One verb at a time, with the network or the server failing at the worst moment: right or loud, never wrong.

use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use lifeboat_adapters::storage::{Patience, open_with};
use lifeboat_vault::storage::{Put, Storage, StorageError};

use super::proxy::{Proxy, Spoil};
use super::servers::{self, User, environment, hasty, open_at, open_hastily, patient};

struct Bad {
    proxy: Proxy,
    bucket: String,
    /// Through the proxy.
    storage: Arc<dyn Storage>,
    /// Straight at the server: what is really there.
    truth: Arc<dyn Storage>,
}

fn bad_line() -> Bad {
    line_for(hasty())
}

/// A line on which requests fail, but none hangs.
fn counted_line() -> Bad {
    line_for(patient())
}

fn line_for(patience: Patience) -> Bad {
    let server = servers::radosgw();
    let bucket = server.bucket();
    let proxy = Proxy::before(server.port);
    let environment = environment(&proxy.endpoint(), User::Owner);
    let storage: Arc<dyn Storage> = Arc::new(open_with(&format!("s3://{bucket}"), &environment, patience).unwrap());
    let truth: Arc<dyn Storage> = Arc::new(server.open(&bucket));
    assert_eq!(storage.put_if_absent("before", b"proven").unwrap(), Put::Created);
    Bad { proxy, bucket, storage, truth }
}

const PASSING: [Spoil; 9] = super::proxy::CHAOS;

#[test]
fn a_creation_is_told_right_whatever_happens_to_it_on_the_way() {
    let bad = bad_line();
    let bytes = vec![7; 300_000];
    for spoil in PASSING {
        let key = format!("claims/{spoil:?}");
        bad.proxy.spoil(&format!("PUT /{}/{key}", bad.bucket), spoil, 1);
        assert_eq!(bad.storage.put_if_absent(&key, &bytes).unwrap(), Put::Created, "{spoil:?}: it was us");
        assert_eq!(bad.truth.get(&key).unwrap(), bytes, "{spoil:?}");
        // The same again by who did not make it, with the same bytes: not even a lost answer makes it theirs.
        bad.proxy.spoil(&format!("PUT /{}/{key}", bad.bucket), spoil, 1);
        assert_eq!(bad.storage.put_if_absent(&key, &bytes).unwrap(), Put::Exists, "{spoil:?}: it was another");
    }
    assert_eq!(bad.proxy.spoiled().len(), 2 * PASSING.len(), "{:?}", bad.proxy.spoiled());
}

#[test]
fn every_other_verb_ends_well_after_a_failure_that_passes() {
    let bad = bad_line();
    for (round, spoil) in PASSING.into_iter().enumerate() {
        let key = format!("objects/{round}");
        let bytes = vec![round as u8; 50_000];
        bad.proxy.spoil("PUT ", spoil, 1);
        bad.storage.put(&key, &bytes).unwrap();
        bad.proxy.spoil("GET ", spoil, 2);
        assert_eq!(bad.storage.get(&key).unwrap(), bytes, "{spoil:?}");
        bad.proxy.spoil("GET ", spoil, 1);
        assert_eq!(bad.storage.get_range(&key, 1000, 5000).unwrap(), bytes[1000..6000], "{spoil:?}");
        bad.proxy.spoil("GET ", spoil, 1);
        assert_eq!(bad.storage.list("objects/").unwrap().len(), 1, "{spoil:?}");
        bad.proxy.spoil("DELETE ", spoil, 1);
        bad.storage.delete(&key).unwrap();
        assert!(bad.truth.list("objects/").unwrap().is_empty(), "{spoil:?}");
    }
}

#[test]
fn the_storage_s_wish_for_time_is_granted() {
    let bad = counted_line();
    bad.truth.put("a", b"1").unwrap();
    bad.proxy.spoil("GET ", Spoil::SlowDown, 2);
    let begun = Instant::now();
    assert_eq!(bad.storage.get("a").unwrap(), b"1");
    assert!(begun.elapsed().as_secs_f64() >= 2.0, "Retry-After was one second, twice: {:?}", begun.elapsed());
}

#[test]
fn what_does_not_pass_is_said_and_not_waited_for_for_ever() {
    let bad = bad_line();
    bad.proxy.spoil("GET ", Spoil::InternalError, usize::MAX);
    let patience = Patience { total: Duration::from_secs(2), ..patient() };
    let environment = environment(&bad.proxy.endpoint(), User::Owner);
    let storage = open_with(&format!("s3://{}", bad.bucket), &environment, patience).unwrap();
    let begun = Instant::now();
    let error = storage.get("before").unwrap_err();
    assert!(begun.elapsed() < patient().total, "{:?}", begun.elapsed());
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.starts_with("500 InternalError: said the proxy (tried "), "{cause}");
    assert_eq!(error.to_string(), format!("cannot read before at s3://{}", bad.bucket));
}

#[test]
fn a_server_that_ignores_the_condition_is_found_out_before_anything_rests_on_it() {
    let server = servers::radosgw();
    let bucket = server.bucket();
    let proxy = Proxy::before(server.port);
    proxy.spoil("PUT ", Spoil::Unconditional, usize::MAX);
    let storage = open_at(&proxy.endpoint(), &bucket, User::Owner);
    for _ in 0..2 {
        let error = storage.put_if_absent("epochs/1", b"mine").unwrap_err();
        assert!(matches!(error, StorageError::Unsuitable { .. }), "{error}");
        assert!(error.to_string().contains("so two writers would both win"), "{error}");
    }
    assert!(server.open(&bucket).list("").unwrap().is_empty(), "nothing was claimed");
    // Once it is repaired, it is proven and used.
    proxy.calm();
    assert_eq!(storage.put_if_absent("epochs/1", b"mine").unwrap(), Put::Created);
}

#[test]
fn of_many_claims_over_bad_lines_exactly_one_wins() {
    const WRITERS: usize = 6;
    let bad = bad_line();
    bad.proxy.chaos(11, 0.3);
    let others: Vec<Arc<dyn Storage>> = (0..WRITERS)
        .map(|_| Arc::new(open_hastily(&bad.proxy.endpoint(), &bad.bucket, User::Owner)) as Arc<dyn Storage>)
        .collect();
    for round in 0..4 {
        let (key, together) = (format!("epochs/{round}"), Barrier::new(WRITERS));
        let won: Vec<bool> = std::thread::scope(|scope| {
            let claims: Vec<_> = others
                .iter()
                .map(|storage| {
                    let (key, together) = (&key, &together);
                    scope.spawn(move || {
                        together.wait();
                        storage.put_if_absent(key, b"the same claim").map(|put| put == Put::Created)
                    })
                })
                .collect();
            claims.into_iter().map(|claim| claim.join().unwrap().unwrap()).collect()
        });
        assert_eq!(won.iter().filter(|won| **won).count(), 1, "round {round}: {won:?} {:?}", bad.proxy.spoiled());
    }
    assert!(bad.proxy.spoiled().len() > 5, "{:?}", bad.proxy.spoiled());
}

#[test]
fn a_listing_that_breaks_off_goes_on_where_it_was() {
    let bad = counted_line();
    // Moto's pages are as short as S3 lets them be asked for; radosgw's hold a thousand.
    std::thread::scope(|scope| {
        for part in 0..8 {
            let truth = &bad.truth;
            scope.spawn(move || (0..280).for_each(|n| truth.put(&format!("l/{part}/{n:04}"), b"x").unwrap()));
        }
    });
    for spoil in [Spoil::ResetAfter, Spoil::SlowDown, Spoil::TornAnswer] {
        let before = bad.proxy.requests().len();
        bad.proxy.spoil("continuation-token", spoil, 1);
        let listed = bad.storage.list("l/").unwrap();
        assert_eq!(listed.len(), 2240, "{spoil:?}");
        assert!(listed.is_sorted(), "{spoil:?}");
        assert!(listed.windows(2).all(|two| two[0].key != two[1].key), "{spoil:?}");
        assert_eq!(bad.proxy.requests().len() - before, 4, "three pages, one of them twice: {spoil:?}");
    }
}

#[test]
fn a_large_object_goes_in_parts_where_the_storage_can_be_trusted_with_them_and_is_told_right() {
    let server = servers::emulated();
    let bucket = server.bucket();
    let proxy = Proxy::before(server.port);
    let storage = open_at(&proxy.endpoint(), &bucket, User::Owner);
    let truth = server.open(&bucket);
    let bytes: Vec<u8> = (0..26_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (round, spoil) in [None, Some(Spoil::ResetAfter), Some(Spoil::InternalErrorAfter), Some(Spoil::ResetBefore)]
        .into_iter()
        .enumerate()
    {
        let key = format!("pack/{round}");
        if let Some(spoil) = spoil {
            proxy.spoil(&format!("PUT /{bucket}/{key}?partNumber=2"), spoil, 1);
            proxy.spoil(&format!("POST /{bucket}/{key}?uploadId"), spoil, 1);
        }
        assert_eq!(storage.put_if_absent(&key, &bytes).unwrap(), Put::Created, "{spoil:?}");
        assert!(truth.get(&key).unwrap() == bytes, "{spoil:?}");
        assert_eq!(storage.put_if_absent(&key, &bytes).unwrap(), Put::Exists, "{spoil:?}");
    }
    let parts = proxy.requests().iter().filter(|line| line.contains("partNumber=4")).count();
    assert!(parts >= 8, "{:?}", proxy.requests());
}

#[test]
fn where_an_upload_in_parts_would_replace_what_is_there_objects_go_whole() {
    let bad = counted_line();
    let bytes = vec![1; 26 << 20];
    assert_eq!(bad.storage.put_if_absent("pack/1", &bytes).unwrap(), Put::Created);
    assert_eq!(bad.storage.put_if_absent("pack/1", &bytes).unwrap(), Put::Exists);
    assert_eq!(bad.storage.put_if_absent("pack/2", &bytes).unwrap(), Put::Created);
    let uploads: Vec<String> =
        bad.proxy.requests().into_iter().filter(|line| line.starts_with("POST ") && line.contains("uploads")).collect();
    assert_eq!(uploads.len(), 1, "the one that found it out: {uploads:?}");
    assert!(bad.truth.get("pack/2").unwrap() == bytes);
}

#[test]
fn who_was_asked_to_stop_waits_a_second_for_a_storage_that_hangs() {
    let bad = bad_line();
    let url = format!("s3://{}", bad.bucket);
    // Left to itself, it would wait for an answer longer than this test may take.
    let endless = Patience { stall: Duration::from_secs(3600), ..Patience::default() };
    let storage = open_with(&url, &environment(&bad.proxy.endpoint(), User::Owner), endless).unwrap();
    storage.put("there", b"1").unwrap();
    bad.proxy.spoil("PUT ", Spoil::Hang, usize::MAX);
    let (error, waited) = std::thread::scope(|scope| {
        let waits = scope.spawn(|| storage.put_if_absent("never", b"1").unwrap_err());
        let deadline = Instant::now() + Duration::from_secs(60);
        while bad.proxy.spoiled().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!waits.is_finished(), "it waits for an answer");
        let asked = Instant::now();
        storage.hurry();
        (waits.join().unwrap(), asked.elapsed())
    });
    assert!(waited < Duration::from_secs(60), "{waited:?}");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(cause, "asked to stop, not waited for any longer");
    assert_eq!(storage.get("there").unwrap(), b"1", "what answers is still heard");
}
