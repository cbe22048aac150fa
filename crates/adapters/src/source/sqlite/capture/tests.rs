//! What a capture sees of a database that others write at the same time: everything, once, in order.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::super::{apply, content::Piece};
use super::*;
use rand::{Rng, SeedableRng, rngs::StdRng};
use rusqlite::Connection;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

fn open(path: &Path) -> Connection {
    let database = Connection::open(path).unwrap();
    database.busy_timeout(Duration::from_secs(60)).unwrap();
    database
}

fn create(path: &Path, pragmas: &str) -> Connection {
    let database = open(path);
    database.execute_batch(pragmas).unwrap();
    database.execute_batch("create table t(id integer primary key, body blob); create table counter(n); insert into counter values (0)").unwrap();
    database
}

/// One random transaction; now and then a rollback, a big one, a vacuum or a checkpoint.
fn transact(database: &Connection, random: &mut StdRng) {
    let size = match random.random_range(0..40) {
        0 => 400_000,
        1..5 => 20_000,
        _ => 300,
    };
    match random.random_range(0..60) {
        0 => database.execute_batch("delete from t where id % 3 = 0; ").unwrap(),
        1 => database.execute_batch("vacuum").unwrap(),
        2 => drop(database.query_row("pragma wal_checkpoint(truncate)", [], |_| Ok(()))),
        3 => drop(database.query_row("pragma wal_checkpoint(restart)", [], |_| Ok(()))),
        4 => drop(database.query_row("pragma wal_checkpoint(passive)", [], |_| Ok(()))),
        5 => {
            let bytes = random.random_range(1..3_000_000);
            database.execute_batch("pragma cache_size=10; begin").unwrap();
            database.execute("insert into t(body) values (randomblob(?))", [bytes]).unwrap();
            database
                .execute_batch(
                    "update t set body = randomblob(900) where id % 2 = 0; rollback; pragma cache_size=-2000",
                )
                .unwrap();
        }
        _ => {
            database.execute_batch("begin immediate").unwrap();
            database.execute("insert into t(body) values (randomblob(?))", [random.random_range(1..size)]).unwrap();
            database.execute_batch("update counter set n = n + 1; commit").unwrap();
        }
    }
}

fn write_snapshot(mut snapshot: Snapshot, to: &Path) -> File {
    let mut file = File::options().read(true).write(true).create_new(true).open(to).unwrap();
    let bytes = snapshot.size_bytes();
    assert_eq!(io::copy(&mut snapshot, &mut file).unwrap(), bytes);
    file
}

fn checksums(path: &Path) -> (String, i64, i64) {
    let copy = path.with_extension("check");
    std::fs::copy(path, &copy).unwrap();
    let database = Connection::open(&copy).unwrap();
    let integrity: String = database.query_row("pragma integrity_check", [], |row| row.get(0)).unwrap();
    let counts = database
        .query_row("select (select n from counter), (select count(*) from t)", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    (integrity, counts.0, counts.1)
}

/// Writes from a thread while capturing; takes snapshots in between; in the end everything must be the same file.
fn capture_while_writing(pragmas: &str, seed: u64, transactions: u32) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("source.db");
    let writer = create(&path, pragmas);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (mut capture, resumed) = Capture::open(&path, None).unwrap();
        assert!(!resumed);
        let finished = &done;
        let writing = scope.spawn(move || {
            let mut random = StdRng::seed_from_u64(seed);
            for _ in 0..transactions {
                transact(&writer, &mut random);
            }
            finished.store(true, Ordering::SeqCst);
            writer
        });
        let mut copies: Vec<File> = Vec::new();
        let mut pieces = 0;
        let mut rounds = 0;
        loop {
            let last_round = done.load(Ordering::SeqCst);
            let mut add = |seen: Seen, copies: &[File]| match seen {
                Seen::Nothing => {}
                Seen::Broken(why) => panic!("{why}"),
                Seen::Changes(changes) => {
                    for changes in changes {
                        let piece = Piece::decode(&changes.payload).unwrap();
                        for copy in copies {
                            apply::apply(&piece, copy).unwrap();
                        }
                        pieces += 1;
                    }
                }
            };
            if rounds % 50 == 0 && copies.len() < 6 {
                let (_, seen, snapshot) = capture.snapshot().unwrap();
                add(seen, &copies);
                let copy = write_snapshot(snapshot, &place.path().join(format!("copy{}", copies.len())));
                copies.push(copy);
            }
            let (_, seen) = capture.look().unwrap();
            add(seen, &copies);
            if capture.wants_checkpoint() {
                capture.checkpoint().unwrap();
                let (_, seen) = capture.look().unwrap();
                add(seen, &copies);
            }
            if rounds % 100 == 70
                && let Some((_, seen)) = capture.checkpoint_without_writers().unwrap()
            {
                add(seen, &copies);
            }
            if rounds % 40 == 0 {
                let index = rounds / 40 % copies.len();
                let (integrity, _, _) = checksums(&place.path().join(format!("copy{index}")));
                assert_eq!(integrity, "ok", "copy {index}, round {rounds}");
            }
            rounds += 1;
            if last_round {
                break;
            }
        }
        assert!(pieces > 10, "{pieces} pieces");
        drop(capture);
        let writer = writing.join().unwrap();
        writer
            .query_row("pragma wal_checkpoint(truncate)", [], |row| row.get::<_, i64>(0))
            .map(|busy| assert_eq!(busy, 0))
            .unwrap();
        let source = std::fs::read(&path).unwrap();
        for index in 0..copies.len() {
            let copy_path = place.path().join(format!("copy{index}"));
            let copy = std::fs::read(&copy_path).unwrap();
            assert_eq!(checksums(&copy_path), checksums(&path));
            assert_eq!(copy.len(), source.len());
            let differing: Vec<_> = (0..copy.len() / 512)
                .filter(|at| copy[at * 512..at * 512 + 512] != source[at * 512..at * 512 + 512])
                .collect();
            assert!(
                differing.is_empty(),
                "copy {index} differs from the source in {} blocks: {differing:?}",
                differing.len()
            );
        }
    });
}

#[test]
fn nothing_is_missed_while_another_writes() {
    capture_while_writing("pragma journal_mode=wal; pragma synchronous=normal", 1, 400);
}

#[test]
fn nothing_is_missed_with_small_pages_and_a_shrinking_file() {
    capture_while_writing(
        "pragma page_size=512; pragma auto_vacuum=full; pragma journal_mode=wal; pragma wal_autocheckpoint=10; pragma synchronous=off",
        2,
        400,
    );
}

#[test]
fn nothing_is_missed_with_big_pages_and_no_checkpoints_by_the_writer() {
    capture_while_writing(
        "pragma page_size=65536; pragma journal_mode=wal; pragma wal_autocheckpoint=0; pragma synchronous=off",
        3,
        250,
    );
}

#[test]
fn the_log_does_not_grow_without_bound_under_a_writer_that_never_rests() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("source.db");
    let writer = create(&path, "pragma journal_mode=wal; pragma wal_autocheckpoint=0; pragma synchronous=off");
    let written = &AtomicU32::new(0);
    std::thread::scope(|scope| {
        let (mut capture, _) = Capture::open(&path, None).unwrap();
        capture.pressing_bytes = 2 << 20;
        writer.busy_timeout(Duration::from_secs(120)).unwrap();
        let done = Arc::new(());
        let until = Arc::downgrade(&done);
        scope.spawn(move || {
            let body = vec![7_u8; 6_000];
            // Until the other end is gone, however it went; and never the whole disk.
            for _ in 0..400_000 {
                if until.strong_count() == 0 {
                    return;
                }
                writer.execute("insert into t(body) values (?)", [&body]).unwrap();
                written.fetch_add(1, Ordering::SeqCst);
                // What an application does between two transactions. Who tries for the lock now and then, as SQLite does, may else try for minutes.
                std::thread::sleep(Duration::from_micros(20));
            }
        });
        let mut restarts = 0;
        let mut salts = None;
        let deadline = std::time::Instant::now() + Duration::from_secs(120);
        while restarts < 2 && std::time::Instant::now() < deadline {
            let looked = match capture.is_far_behind().unwrap() {
                true => capture.checkpoint_without_writers().unwrap(),
                false => Some(capture.look().unwrap()),
            };
            if let Some((_, Seen::Broken(why))) = looked {
                panic!("{why}");
            }
            if capture.presses() {
                let before = written.load(Ordering::SeqCst);
                capture.checkpoint_without_writers().unwrap();
                // A stream rests between two looks. Without it, the writer, who asks for its turn now and then, might never get one.
                while written.load(Ordering::SeqCst) == before && std::time::Instant::now() < deadline {
                    std::thread::yield_now();
                }
            }
            let now = capture.place().map(|place| place.salts);
            restarts += u32::from(salts.is_some() && salts != now);
            salts = now;
        }
        drop(done);
        assert_eq!(restarts, 2);
    });
}

#[test]
fn a_capture_goes_on_where_the_last_one_was_and_only_if_nothing_is_missing() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("source.db");
    let writer = create(&path, "pragma journal_mode=wal; pragma wal_autocheckpoint=0");
    let (capture, _) = Capture::open(&path, None).unwrap();
    let here = capture.place().unwrap();
    drop(capture);
    writer.execute_batch("insert into t values (1, 'a')").unwrap();
    let (mut capture, resumed) = Capture::open(&path, Some(here)).unwrap();
    assert!(resumed);
    let Seen::Changes(changes) = capture.look().unwrap().1 else { panic!("nothing seen") };
    let [changes] = &changes[..] else { panic!("{} pieces", changes.len()) };
    assert_eq!(changes.transactions, 1);
    drop(capture);
    writer
        .execute_batch("insert into t values (2, 'b'); pragma wal_checkpoint(restart); insert into t values (3, 'c')")
        .unwrap();
    let (_, resumed) = Capture::open(&path, Some(changes.end)).unwrap();
    assert!(!resumed, "the log has started again, and `b` was never seen");
}

#[test]
fn a_replaced_database_is_noticed() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("source.db");
    let _writer = create(&path, "pragma journal_mode=wal");
    let (mut capture, _) = Capture::open(&path, None).unwrap();
    std::fs::rename(&path, place.path().join("old.db")).unwrap();
    assert!(matches!(capture.look(), Err(CaptureError::Hold(HoldError::Replaced { .. }))));
    std::fs::write(&path, b"").unwrap();
    assert!(matches!(capture.look(), Err(CaptureError::Hold(HoldError::Replaced { .. }))));
}

#[test]
fn a_database_that_is_not_in_wal_mode_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("source.db");
    let _writer = create(&path, "pragma journal_mode=delete");
    let refused = Capture::open(&path, None).map(drop).unwrap_err();
    assert!(refused.to_string().ends_with("is not in WAL mode (journal mode is delete)"), "{refused}");
}
