//! SQLite: streams, restores to any moment, standbys, and what happens when something breaks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_adapters::source::SqliteSource;
use lifeboat_core::runbook::Target;
use lifeboat_engine::port::{
    Cancel, FollowRequest, LogStream, NamedVault, PointRequest, RestoreRequest, Restored, Restorer, Source,
    StreamRequest, Streaming,
};
use lifeboat_vault::storage::{self, Storage};
use lifeboat_vault::{HostVault, State, Unlocked};
use rand::{Rng, SeedableRng, rngs::StdRng};
use rusqlite::Connection;

use crate::children;
use crate::vault_world::{VaultWorld, state_directory, vault_directory, wait_for};

pub(crate) const DATASET: &str = "orders";

pub(crate) fn database_path(root: &Path) -> PathBuf {
    root.join("live").join("orders.db")
}

pub(crate) fn source(root: &Path) -> SqliteSource {
    SqliteSource::new(database_path(root), root.join("spool"))
}

/// A database with a table of random rows and a counter that every transaction increments.
pub(crate) fn create(root: &Path, pragmas: &str) -> Connection {
    let path = database_path(root);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let database = Connection::open(path).unwrap();
    database.busy_timeout(Duration::from_secs(30)).unwrap();
    database.execute_batch(pragmas).unwrap();
    database
        .execute_batch("create table t(id integer primary key, body blob); create table counter(n); insert into counter values (0)")
        .unwrap();
    database
}

pub(crate) const WAL: &str = "pragma journal_mode=wal; pragma synchronous=normal";

/// Commits number `n`.
pub(crate) fn commit(database: &Connection, n: u64, bytes: usize) {
    database.execute_batch("begin immediate").unwrap();
    database.execute("insert into t(body) values (randomblob(?))", [i64::try_from(bytes).unwrap()]).unwrap();
    database.execute("update counter set n = ?", [i64::try_from(n).unwrap()]).unwrap();
    database.execute_batch("commit").unwrap();
}

/// The counter, after it was checked that the tables agree with it.
pub(crate) fn counter(path: &Path) -> u64 {
    let database = Connection::open(path).unwrap();
    let sound: String = database.query_row("pragma integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(sound, "ok");
    let (n, rows): (i64, i64) = database
        .query_row("select (select n from counter), (select max(id) from t)", [], |row| {
            Ok((row.get(0)?, row.get::<_, Option<i64>>(1)?.unwrap_or(0)))
        })
        .unwrap();
    assert_eq!(n, rows, "a transaction is there by half");
    u64::try_from(n).unwrap()
}

pub(crate) fn request(root: &Path, epoch: u64) -> StreamRequest {
    let mut request = StreamRequest::new(DATASET, epoch, root.join("stream"));
    fs::create_dir_all(&request.state).unwrap();
    request.flush = Duration::from_millis(20);
    request.mark = Duration::from_millis(200);
    request
}

pub(crate) fn start(root: &Path, vaults: &[NamedVault], epoch: u64) -> Box<dyn LogStream> {
    match source(root).stream(vaults, &request(root, epoch)).unwrap() {
        Streaming::Started(stream) => stream,
        Streaming::PointsOnly { why } => panic!("{why}"),
    }
}

pub(crate) fn await_durable(stream: &dyn LogStream, vault: &str, since: Timestamp) {
    wait_for("durability", || stream.status().vaults[vault].durable_to.filter(|durable| *durable >= since));
}

pub(crate) fn restore_to(vault: &Unlocked, root: &Path, to: &Path, target: Target, in_place: bool) -> Restored {
    try_restore(vault, root, to, target, in_place).unwrap()
}

pub(crate) fn try_restore(
    vault: &Unlocked,
    root: &Path,
    to: &Path,
    target: Target,
    in_place: bool,
) -> Result<Restored, String> {
    let request = RestoreRequest { dataset: DATASET.into(), to: to.to_owned(), target, in_place };
    source(root).restore(vault, &request, &(), &Cancel::default()).map_err(|error| {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    })
}

/// The same bytes as the source has once its own log is in its file.
pub(crate) fn assert_same_as_source(root: &Path, copy: &Path) {
    let database = Connection::open(database_path(root)).unwrap();
    let busy: i64 = database.query_row("pragma wal_checkpoint(truncate)", [], |row| row.get(0)).unwrap();
    assert_eq!(busy, 0);
    assert!(
        fs::read(database_path(root)).unwrap() == fs::read(copy).unwrap(),
        "the copy has other bytes than the source"
    );
}

#[test]
fn what_is_durable_is_restored_byte_for_byte() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let world = VaultWorld::new(root, "near");
    let database = create(root, WAL);
    let stream = start(root, &[world.named()], 1);
    for n in 1..=200 {
        commit(&database, n, 2000);
    }
    await_durable(&*stream, "near", Timestamp::now());
    let to = root.join("restored.db");
    let restored = restore_to(&world.unlocked(), root, &to, Target::Newest, false);
    assert_eq!(counter(&to), 200);
    fs::remove_file(&to).unwrap();
    restore_to(&world.unlocked(), root, &to, Target::Newest, false);
    stream.stop();
    drop(stream);
    assert_same_as_source(root, &to);
    assert!(restored.verified.is_some());
    let refused = try_restore(&world.unlocked(), root, &to, Target::Newest, false).unwrap_err();
    assert!(refused.contains("exists already; restore in place"), "{refused}");
    let again = restore_to(&world.unlocked(), root, &to, Target::Newest, true);
    assert_eq!(counter(&to), 200);
    assert!(again.bytes_written <= restored.bytes_written, "{again:?}");
}

#[test]
fn every_moment_within_the_log_can_be_gone_back_to() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let world = VaultWorld::new(root, "near");
    let database = create(root, WAL);
    let stream = start(root, &[world.named()], 1);
    await_durable(&*stream, "near", Timestamp::UNIX_EPOCH);
    // Begin and end of every commit, and when it was seen that a commit was durable.
    let (mut commits, mut seen) = (Vec::new(), Vec::new());
    for n in 1..=60 {
        let began = Timestamp::now();
        commit(&database, n, 3000);
        commits.push((began, Timestamp::now()));
        if n % 5 == 0 {
            await_durable(&*stream, "near", Timestamp::now());
            seen.push((n, Timestamp::now()));
        }
        if n % 20 == 0 {
            stream.take_point("near", &Cancel::default()).unwrap();
        }
        std::thread::sleep(Duration::from_millis(7));
    }
    let vault = world.unlocked();
    let mut last = 0;
    for (_, moment) in &commits {
        let to = root.join("then.db");
        let _ = fs::remove_file(&to);
        restore_to(&vault, root, &to, Target::At(moment.to_string()), false);
        let found = counter(&to);
        let begun = commits.iter().filter(|(began, _)| began <= moment).count() as u64;
        let durable = seen.iter().filter(|(_, at)| at <= moment).map(|(n, _)| *n).max().unwrap_or(0);
        assert!(found <= begun, "at {moment} commit {found} is there before it began");
        assert!(found >= durable, "at {moment} only commit {found} is there, though {durable} was durable before");
        assert!(found >= last);
        last = found;
    }
    assert!(last >= 55, "{last}");
    let too_early = try_restore(&vault, root, &root.join("never.db"), Target::At("2020-01-01T00:00:00Z".into()), false);
    assert_eq!(
        too_early.unwrap_err(),
        "`orders` was not restored: the vault holds no recovery point of `orders` as old as 2020-01-01T00:00:00Z; name another vault, or another time"
    );
}

/// The process that `a_killed_capture_…` kills.
pub(crate) fn capture_child() {
    let Ok(root) = std::env::var("LIFEBOAT_TEST_CAPTURE") else { return };
    let root = PathBuf::from(root);
    let storage = storage::open(vault_directory(&root, "near").to_str().unwrap()).unwrap();
    let host = HostVault::open(storage, State::open(&state_directory(&root), None).unwrap(), None).unwrap();
    let stream = start(&root, &[NamedVault { name: "near".into(), vault: host }], 1);
    loop {
        if let Some(durable) = stream.status().vaults["near"].durable_to {
            fs::write(root.join("durable.draft"), durable.to_string()).unwrap();
            fs::rename(root.join("durable.draft"), root.join("durable")).unwrap();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn spawn_capture(root: &Path) -> Child {
    children::command("capture").env("LIFEBOAT_TEST_CAPTURE", root).stdout(Stdio::null()).spawn().unwrap()
}

fn durable(root: &Path) -> Option<Timestamp> {
    fs::read_to_string(root.join("durable")).ok()?.parse().ok()
}

#[test]
fn a_killed_capture_loses_nothing_that_it_called_durable_and_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let world = VaultWorld::new(root, "near");
    let database = create(root, WAL);
    let done = AtomicBool::new(false);
    let mut random = StdRng::seed_from_u64(5);
    let acknowledged = std::sync::Mutex::new(Vec::<Timestamp>::new());
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let database = database;
            let mut n = 0;
            while !done.load(Ordering::SeqCst) {
                n += 1;
                commit(&database, n, if n % 50 == 0 { 300_000 } else { 1500 });
                acknowledged.lock().unwrap().push(Timestamp::now());
                if n % 170 == 0 {
                    let _ = database.query_row("pragma wal_checkpoint(truncate)", [], |_| Ok(()));
                }
                std::thread::sleep(Duration::from_millis(3));
            }
            n
        });
        let mut seen = Timestamp::UNIX_EPOCH;
        for round in 0..6 {
            let mut child = spawn_capture(root);
            wait_for("the capture to be durable again", || durable(root).filter(|durable| *durable > seen));
            std::thread::sleep(Duration::from_millis(random.random_range(0..500)));
            child.kill().unwrap();
            child.wait().unwrap();
            seen = durable(root).unwrap();
            let to = root.join(format!("after-{round}.db"));
            restore_to(&world.unlocked(), root, &to, Target::Newest, false);
            let promised = acknowledged.lock().unwrap().iter().filter(|at| **at < seen).count() as u64;
            let found = counter(&to);
            assert!(found >= promised, "round {round}: {promised} transactions were called durable, {found} are there");
        }
        done.store(true, Ordering::SeqCst);
        let written = writing.join().unwrap();
        let stream = start(root, &[world.named()], 1);
        stream.freeze(&Cancel::default()).unwrap();
        drop(stream);
        let to = root.join("end.db");
        restore_to(&world.unlocked(), root, &to, Target::Newest, false);
        assert_eq!(counter(&to), written);
    });
}

#[test]
fn a_stream_that_is_started_again_goes_on_without_a_full_snapshot() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let world = VaultWorld::new(root, "near");
    let database = create(root, WAL);
    let stream = start(root, &[world.named()], 1);
    commit(&database, 1, 100);
    await_durable(&*stream, "near", Timestamp::now());
    stream.stop();
    drop(stream);
    commit(&database, 2, 100);
    let stream = start(root, &[world.named()], 1);
    await_durable(&*stream, "near", Timestamp::now());
    assert_eq!(stream.status().vaults["near"].point, None, "it took a full snapshot again");
    assert_eq!(world.host.points(Some(DATASET)).unwrap().points.len(), 1);
    let to = root.join("restored.db");
    restore_to(&world.unlocked(), root, &to, Target::Newest, false);
    assert_eq!(counter(&to), 2);
    drop(stream);
    // While nobody looks, the log starts again: something may be missing, so a new chain begins.
    commit(&database, 3, 100);
    let _ = database.query_row("pragma wal_checkpoint(truncate)", [], |_| Ok(()));
    commit(&database, 4, 100);
    let stream = start(root, &[world.named()], 1);
    await_durable(&*stream, "near", Timestamp::now());
    assert!(stream.status().vaults["near"].point.is_some());
    fs::remove_file(&to).unwrap();
    restore_to(&world.unlocked(), root, &to, Target::Newest, false);
    assert_eq!(counter(&to), 4);
}

#[test]
fn a_missing_or_damaged_piece_is_loud_and_earlier_moments_stay() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let world = VaultWorld::new(root, "near");
    let database = create(root, WAL);
    let stream = start(root, &[world.named()], 1);
    await_durable(&*stream, "near", Timestamp::UNIX_EPOCH);
    let mut moments = Vec::new();
    for n in 1..=5 {
        commit(&database, n, 100);
        await_durable(&*stream, "near", Timestamp::now());
        moments.push(Timestamp::now());
    }
    drop(stream);
    let pieces: Vec<String> = world.storage.list("log/").unwrap().into_iter().map(|listed| listed.key).collect();
    assert!(pieces.len() >= 5);
    // The piece with the fourth transaction.
    let lineages = world.host.log_lineages(DATASET).unwrap();
    let entries = world.host.log_entries(DATASET, &lineages[0], None).unwrap();
    let fourth = entries.iter().filter(|entry| !entry.mark).nth(3).unwrap();
    let victim = &fourth.key;
    let whole = world.storage.get(victim).unwrap();
    let to = root.join("restored.db");
    let check_loud_and_before = || {
        let error = try_restore(&world.unlocked(), root, &to, Target::Newest, false).unwrap_err();
        assert!(error.contains(victim) && error.contains("the log of `orders` is not whole"), "{error}");
        assert!(!to.exists(), "a half restore is under the database's name");
        let after = try_restore(&world.unlocked(), root, &to, Target::At(moments[4].to_string()), false).unwrap_err();
        assert!(after.contains(victim), "{after}");
        let before = root.join("before.db");
        restore_to(&world.unlocked(), root, &before, Target::At(moments[1].to_string()), false);
        assert_eq!(counter(&before), 2);
        fs::remove_file(before).unwrap();
    };
    world.storage.delete(victim).unwrap();
    check_loud_and_before();
    for at in [0, whole.len() / 2, whole.len() - 1] {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        world.storage.put(victim, &flipped).unwrap();
        check_loud_and_before();
    }
    for length in [0, 1, whole.len() - 1] {
        world.storage.put(victim, &whole[..length]).unwrap();
        check_loud_and_before();
    }
    let point = world.host.points(Some(DATASET)).unwrap().points[0].id.clone();
    restore_to(&world.unlocked(), root, &to, Target::Point(point), false);
    assert_eq!(counter(&to), 0);
    // Who streams on does not build on what is damaged: a new chain begins, and is whole.
    let stream = start(root, &[world.reopened()], 1);
    commit(&database, 6, 100);
    await_durable(&*stream, "near", Timestamp::now());
    assert!(stream.status().vaults["near"].point.is_some(), "it goes on with a damaged chain");
    drop(stream);
    restore_to(&world.unlocked(), root, &to, Target::Newest, true);
    assert_eq!(counter(&to), 6);
    world.storage.put(victim, &whole).unwrap();
    restore_to(&world.unlocked(), root, &to, Target::At(moments[4].to_string()), true);
    assert_eq!(counter(&to), 5);
}

#[test]
fn a_database_without_a_log_gets_points_only_and_says_so() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let world = VaultWorld::new(root, "near");
    let database = create(root, "pragma journal_mode=delete");
    commit(&database, 1, 100_000);
    let Streaming::PointsOnly { why } = source(root).stream(&[world.named()], &request(root, 1)).unwrap() else {
        panic!("it streams")
    };
    assert!(why.ends_with("is not in WAL mode (its journal mode is delete), so there is no log to stream; `pragma journal_mode=wal` gives it one"), "{why}");
    let point = PointRequest { dataset: DATASET.into(), epoch: 1, final_mark: false, release: None };
    let taken = source(root).take_point(&world.named(), &point, &(), &Cancel::default()).unwrap();
    assert_eq!(taken.point.position, None);
    commit(&database, 2, 100);
    let to = root.join("restored.db");
    restore_to(&world.unlocked(), root, &to, Target::Newest, false);
    assert_eq!(counter(&to), 1);
    assert_eq!(fs::read_dir(root.join("spool")).unwrap().count(), 0);
}

#[test]
fn points_of_a_database_cost_the_pages_that_changed() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let world = VaultWorld::new(root, "near");
    let database = create(root, WAL);
    for n in 1..=600 {
        commit(&database, n, 10_000);
    }
    let point = PointRequest { dataset: DATASET.into(), epoch: 1, final_mark: false, release: None };
    let take = || source(root).take_point(&world.named(), &point, &(), &Cancel::default()).unwrap();
    let sum = |path: &Path| -> i64 {
        let database = Connection::open(path).unwrap();
        database.query_row("select sum(unicode(hex(substr(body, 9000))) * id) from t", [], |row| row.get(0)).unwrap()
    };
    let to = root.join("restored.db");
    let first = take();
    assert!(first.bytes_new > 6_000_000, "{}", first.bytes_new);
    restore_to(&world.unlocked(), root, &to, Target::Newest, false);
    for generation in 1..=3 {
        for id in [20, 200, 400, 590] {
            database.execute("update t set body = randomblob(10000) where id = ?", [id + generation]).unwrap();
        }
        commit(&database, 600 + generation as u64, 100);
        let taken = take();
        // Three pages of the database for each row, and the last ones.
        assert!(taken.bytes_new < 30 * 8192, "{}", taken.bytes_new);
        restore_to(&world.unlocked(), root, &to, Target::Newest, true);
        assert_eq!((counter(&to), sum(&to)), (600 + generation as u64, sum(&database_path(root))));
    }
    let fresh = root.join("fresh.db");
    restore_to(&world.unlocked(), root, &fresh, Target::Newest, false);
    assert_eq!((counter(&fresh), sum(&fresh)), (603, sum(&to)));
}

#[test]
fn a_vault_that_fails_delays_nobody_and_its_lag_is_told() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let (near, far) = (VaultWorld::new(root, "near"), VaultWorld::new(root, "far"));
    let database = create(root, WAL);
    let stream = start(root, &[near.named(), far.named()], 1);
    await_durable(&*stream, "near", Timestamp::now());
    await_durable(&*stream, "far", Timestamp::now());
    far.storage.set_gone(true);
    let broken_since = Timestamp::now();
    std::thread::sleep(Duration::from_millis(50));
    for n in 1..=30 {
        commit(&database, n, 1000);
    }
    await_durable(&*stream, "near", Timestamp::now());
    let status = wait_for("the problem to be told", || {
        let status = stream.status();
        status.vaults["far"].problem.is_some().then_some(status)
    });
    assert!(status.vaults["far"].durable_to.unwrap() <= broken_since + Duration::from_millis(50));
    assert_eq!((&status.vaults["near"].problem, &status.problem), (&None, &None));
    let to = root.join("restored.db");
    restore_to(&near.unlocked(), root, &to, Target::Newest, false);
    assert_eq!(counter(&to), 30);
    let cancel = Cancel::default();
    cancel.cancel();
    let unfinished = stream.freeze(&cancel).unwrap_err();
    assert!(
        unfinished.message.starts_with("the last changes have not reached") && unfinished.message.contains("far"),
        "{unfinished}"
    );
    far.storage.set_gone(false);
    stream.freeze(&Cancel::default()).unwrap();
    let status = stream.status();
    assert!(status.vaults.values().all(|vault| vault.frozen && vault.problem.is_none()), "{status:?}");
    restore_to(&far.unlocked(), root, &to, Target::Newest, true);
    assert_eq!(counter(&to), 30);
}

#[test]
fn a_standby_applies_only_what_changed_and_becomes_a_clean_database() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let world = VaultWorld::new(root, "near");
    let database = create(root, WAL);
    for n in 1..=50 {
        commit(&database, n, 50_000);
    }
    let stream = start(root, &[world.named()], 1);
    await_durable(&*stream, "near", Timestamp::now());
    let to = root.join("standby.db");
    let follow = FollowRequest { dataset: DATASET.into(), to: to.clone(), adopt: false };
    let mut standby = source(root).follow(&world.unlocked(), &follow).unwrap();
    let cancel = Cancel::default();
    let first = standby.apply(&cancel).unwrap();
    assert!(first.restarted && first.bytes_written > 2_000_000, "{first:?}");
    assert!(!to.exists());
    commit(&database, 51, 100);
    await_durable(&*stream, "near", Timestamp::now());
    let next = standby.apply(&cancel).unwrap();
    assert!(!next.restarted && next.pieces >= 1 && next.bytes_written < 50_000, "{next:?}");
    assert!(next.applied_to > first.applied_to);
    // A new full snapshot of the same chain changes nothing for who follows it.
    stream.take_point("near", &cancel).unwrap();
    commit(&database, 52, 100);
    await_durable(&*stream, "near", Timestamp::now());
    // Another process goes on.
    drop(standby);
    let mut standby = source(root).follow(&world.unlocked(), &follow).unwrap();
    let next = standby.apply(&cancel).unwrap();
    assert!(!next.restarted && next.bytes_written < 50_000, "{next:?}");
    stream.freeze(&cancel).unwrap();
    let last = standby.apply(&cancel).unwrap();
    assert!(last.is_final, "{last:?}");
    assert_eq!(last.position, stream.status().vaults["near"].position);
    drop(stream);
    standby.promote(&cancel).unwrap();
    assert_same_as_source(root, &to);
    let full = root.join("full.db");
    restore_to(&world.unlocked(), root, &full, Target::Newest, false);
    assert!(fs::read(&full).unwrap() == fs::read(&to).unwrap());
    let left: Vec<_> = fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().starts_with("standby"))
        .collect();
    assert_eq!(left, ["standby.db"]);
    assert_eq!(counter(&to), 52);
}

#[test]
fn a_standby_goes_over_to_the_writer_of_a_new_epoch_and_writes_only_what_differs() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let world = VaultWorld::new(root, "near");
    let database = create(root, WAL);
    for n in 1..=50 {
        commit(&database, n, 50_000);
    }
    let stream = start(root, &[world.named()], 1);
    await_durable(&*stream, "near", Timestamp::now());
    let follow = FollowRequest { dataset: DATASET.into(), to: root.join("standby.db"), adopt: false };
    let cancel = Cancel::default();
    let mut standby = source(root).follow(&world.unlocked(), &follow).unwrap();
    standby.apply(&cancel).unwrap();
    drop(stream);
    let stream = start(root, &[world.named()], 2);
    commit(&database, 51, 100);
    await_durable(&*stream, "near", Timestamp::now());
    let applied =
        wait_for("the new epoch", || Some(standby.apply(&cancel).unwrap()).filter(|applied| applied.epoch == Some(2)));
    assert!(applied.restarted && applied.bytes_written < 400_000, "{applied:?}");
    await_durable(&*stream, "near", Timestamp::now());
    standby.promote(&cancel).unwrap();
    assert_eq!(counter(&root.join("standby.db")), 51);
    // What was live once becomes a standby only if it may.
    let refused = source(root).follow(&world.unlocked(), &follow).err().unwrap();
    assert!(std::error::Error::source(&refused).unwrap().to_string().contains("exists already"));
    let adopt = FollowRequest { adopt: true, ..follow };
    commit(&database, 52, 100);
    await_durable(&*stream, "near", Timestamp::now());
    // Beside what a standby left there before.
    fs::write(root.join("standby.db.lifeboat-standby"), "an older standby").unwrap();
    let mut standby = source(root).follow(&world.unlocked(), &adopt).unwrap();
    assert!(!root.join("standby.db").exists());
    let adopted = standby.apply(&cancel).unwrap();
    assert!(adopted.restarted && adopted.bytes_written < 400_000, "{adopted:?}");
    standby.promote(&cancel).unwrap();
    assert_eq!(counter(&root.join("standby.db")), 52);
}

#[test]
fn a_database_that_is_replaced_is_followed_with_a_full_snapshot() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let world = VaultWorld::new(root, "near");
    let database = create(root, WAL);
    commit(&database, 1, 100);
    let stream = start(root, &[world.named()], 1);
    await_durable(&*stream, "near", Timestamp::now());
    let before = stream.status().vaults["near"].position.clone().unwrap();
    drop(database);
    fs::rename(root.join("live"), root.join("gone")).unwrap();
    wait_for("the loss to be told", || stream.status().problem);
    let stuck = stream.status().vaults["near"].durable_to;
    let database = create(root, WAL);
    for n in 1..=7 {
        commit(&database, n, 100);
    }
    await_durable(&*stream, "near", Timestamp::now());
    let status = stream.status();
    assert!(status.problem.is_none() && status.vaults["near"].durable_to > stuck);
    let lineage = |position: &str| position.split(':').next().unwrap().to_owned();
    assert_ne!(lineage(&before), lineage(status.vaults["near"].position.as_ref().unwrap()));
    let to = root.join("restored.db");
    restore_to(&world.unlocked(), root, &to, Target::Newest, false);
    assert_eq!(counter(&to), 7);
}

#[test]
fn a_database_is_verified_by_its_own_check_and_by_what_it_answers() {
    use lifeboat_engine::verify::{Outcome, VerifyRequest};
    use lifeboat_vault::Badge;
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let world = VaultWorld::new(root, "near");
    let database = create(root, WAL);
    let stream = start(root, &[world.named()], 1);
    await_durable(&*stream, "near", Timestamp::now());
    for n in 1..=20 {
        commit(&database, n, 2000);
        await_durable(&*stream, "near", Timestamp::now());
    }
    stream.stop();
    drop(stream);
    let verify = |queries: &[&str]| {
        let scratch = tempfile::tempdir().unwrap();
        let request = VerifyRequest {
            dataset: DATASET.into(),
            target: Target::Newest,
            scratch: scratch.path().to_owned(),
            queries: queries.iter().map(|query| (*query).to_owned()).collect(),
            database: None,
        };
        source(root).verify(&world.unlocked(), &request, &(), &Cancel::default()).unwrap()
    };
    let found = verify(&["select n = 20 from counter", "select count(*) from t"]);
    assert_eq!((found.badge(), found.checks.len()), (Some(Badge::Verified), 3), "{found:#?}");
    for wrong in [
        "select n = 21 from counter",
        "select n from nothing",
        "select id from t",
        "select id from t where false",
        "select 1, 1",
        "select null",
        "delete from t returning 1",
    ] {
        let found = verify(&[wrong]);
        assert_eq!(found.badge(), Some(Badge::Suspect), "{wrong}: {found:#?}");
    }
    // A hole in the log.
    let logs: Vec<String> = world.storage.list("log/").unwrap().into_iter().map(|object| object.key).collect();
    world.storage.delete(&logs[logs.len() / 2]).unwrap();
    let found = verify(&[]);
    assert_eq!((found.badge(), found.checks[0].outcome), (Some(Badge::Suspect), Outcome::Failed), "{found:#?}");
    for object in world.storage.list("pack/").unwrap() {
        world.storage.delete(&object.key).unwrap();
    }
    for object in world.storage.list("log/").unwrap() {
        world.storage.delete(&object.key).unwrap();
    }
    assert_ne!(verify(&[]).badge(), Some(Badge::Verified));
}
