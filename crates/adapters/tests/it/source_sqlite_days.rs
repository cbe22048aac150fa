//! SQLite on bad days: processes killed, disks full, databases that come late, change their shape, or are not alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_core::runbook::Target;
use lifeboat_engine::port::{Cancel, FollowRequest, Restorer, Source, Standby, Streaming};
use lifeboat_vault::storage::Storage;
use lifeboat_vault::{Identity, LogPiece};
use rand::{Rng, SeedableRng, rngs::StdRng};
use rusqlite::Connection;

use crate::children;
use crate::source_sqlite::{
    DATASET, WAL, assert_same_as_source, await_durable, commit, counter, create, database_path, request, restore_to,
    source, start, try_restore,
};
use crate::vault_world::{VaultWorld, vault_directory, wait_for};

/// This test binary again, as another process.
fn command(child: &str, root: &Path) -> Command {
    let mut command = children::command(child);
    command.env("LIFEBOAT_TEST_ROOT", root).stdout(Stdio::null());
    command
}

fn spawn(child: &str, root: &Path) -> Child {
    command(child, root).spawn().unwrap()
}

fn child_root() -> Option<PathBuf> {
    std::env::var("LIFEBOAT_TEST_ROOT").ok().map(PathBuf::from)
}

fn acknowledged(root: &Path) -> u64 {
    fs::read_to_string(root.join("acknowledged")).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The application that another test kills.
pub(crate) fn application_child() {
    let Some(root) = child_root() else { return };
    let database = Connection::open(database_path(&root)).unwrap();
    database.busy_timeout(Duration::from_secs(30)).unwrap();
    database.execute_batch("pragma synchronous=normal; pragma wal_autocheckpoint=50").unwrap();
    let mut n: u32 = database.query_row("select n from counter", [], |row| row.get(0)).unwrap();
    loop {
        n += 1;
        commit(&database, n.into(), if n.is_multiple_of(7) { 200_000 } else { 900 });
        fs::write(root.join("acknowledged.draft"), n.to_string()).unwrap();
        fs::rename(root.join("acknowledged.draft"), root.join("acknowledged")).unwrap();
    }
}

#[test]
fn an_application_that_is_killed_again_and_again_leaves_a_stream_without_a_hole() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let world = VaultWorld::new(root, "near");
    drop(create(root, WAL));
    let stream = start(root, &[world.named()], 1);
    let mut random = StdRng::seed_from_u64(11);
    let to = root.join("restored.db");
    for _ in 0..6 {
        let before = acknowledged(root);
        let mut child = spawn("application_child", root);
        wait_for("the application to write", || (acknowledged(root) > before + 3).then_some(()));
        std::thread::sleep(Duration::from_millis(random.random_range(0..120)));
        child.kill().unwrap();
        child.wait().unwrap();
        let written = acknowledged(root);
        await_durable(&*stream, "near", Timestamp::now());
        restore_to(&world.unlocked(), root, &to, Target::Newest, to.exists());
        let found = counter(&to);
        assert!(found >= written, "{written} were acknowledged, {found} are there");
    }
    assert_eq!(world.host.points(Some(DATASET)).unwrap().points.len(), 1, "it took another full snapshot");
    drop(stream);
    // Above, SQLite opened it and so counted its change.
    restore_to(&world.unlocked(), root, &to, Target::Newest, true);
    assert_same_as_source(root, &to);
}

#[test]
fn checkpoints_vacuums_and_new_shapes_are_followed_byte_for_byte() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let world = VaultWorld::new(root, "near");
    let database = create(root, WAL);
    let stream = start(root, &[world.named()], 1);
    await_durable(&*stream, "near", Timestamp::now());
    let (mut follower, cancel) = (follow(&world, root), Cancel::default());
    let first = follower.apply(&cancel).unwrap();
    assert!(first.restarted);
    for n in 1..=60 {
        commit(&database, n, 30_000);
    }
    let changes = [
        "pragma wal_checkpoint(truncate)",
        "create table lines(id integer primary key, of_order int, what text); create index by_order on lines(of_order)",
        "insert into lines(of_order, what) select id, hex(body) from t",
        "alter table lines add column price int default 7",
        "pragma wal_checkpoint(restart)",
        "delete from lines where id % 2 = 0; drop index by_order",
        "vacuum",
        "pragma wal_checkpoint(truncate)",
        "drop table lines; create view orders as select id from t",
        "pragma auto_vacuum=incremental; vacuum; pragma wal_checkpoint(passive)",
        "pragma user_version=42",
    ];
    for change in changes {
        run(&database, change);
        await_durable(&*stream, "near", Timestamp::now());
        let applied = follower.apply(&cancel).unwrap();
        assert!(!applied.restarted, "{change} made it begin anew");
    }
    stream.freeze(&cancel).unwrap();
    drop(stream);
    let promoted = follower.promote(&cancel).unwrap();
    assert!(promoted.is_final);
    drop(database);
    assert_same_as_source(root, &root.join("standby.db"));
    let standby = Connection::open(root.join("standby.db")).unwrap();
    let version: i64 = standby.query_row("pragma user_version", [], |row| row.get(0)).unwrap();
    assert_eq!((version, counter(&root.join("standby.db"))), (42, 60));
    assert_eq!(world.host.points(Some(DATASET)).unwrap().points.len(), 1);
}

fn run(database: &Connection, statements: &str) {
    // Whether a checkpoint could do all it wanted is not this test's matter.
    let _ = database.execute_batch(statements).or_else(|_| database.query_row(statements, [], |_| Ok(())));
}

fn follow(world: &VaultWorld, root: &Path) -> Box<dyn Standby> {
    let request = FollowRequest { dataset: DATASET.into(), to: root.join("standby.db"), adopt: false };
    source(root).follow(&world.unlocked(), &request).unwrap()
}

/// The standby that another test kills.
pub(crate) fn standby_child() {
    let Some(root) = child_root() else { return };
    let storage = lifeboat_vault::storage::open(vault_directory(&root, "near").to_str().unwrap()).unwrap();
    let key = Identity::load_all(&root.join("key")).unwrap();
    let vault = lifeboat_vault::Vault::open(storage, None, None).unwrap().unlock(&key).unwrap();
    let request = FollowRequest { dataset: DATASET.into(), to: root.join("standby.db"), adopt: false };
    let mut standby = source(&root).follow(&vault, &request).unwrap();
    loop {
        let applied = standby.apply(&Cancel::default()).unwrap();
        if let Some(at) = applied.applied_to {
            fs::write(root.join("applied.draft"), at.to_string()).unwrap();
            fs::rename(root.join("applied.draft"), root.join("applied")).unwrap();
        }
    }
}

#[test]
fn a_standby_that_is_killed_again_and_again_goes_on_where_it_was() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let world = VaultWorld::new(root, "near");
    fs::write(root.join("key"), world.expose_key()).unwrap();
    let database = create(root, WAL);
    for n in 1..=30 {
        commit(&database, n, 60_000);
    }
    let stream = start(root, &[world.named()], 1);
    await_durable(&*stream, "near", Timestamp::now());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let database = database;
            let mut n = 30;
            while !done.load(Ordering::SeqCst) {
                n += 1;
                commit(&database, n, if n.is_multiple_of(40) { 3_000_000 } else { 4000 });
                std::thread::sleep(Duration::from_millis(2));
            }
            n
        });
        let applied = || fs::read_to_string(root.join("applied")).ok()?.parse::<Timestamp>().ok();
        let mut random = StdRng::seed_from_u64(3);
        for _ in 0..8 {
            let before = applied();
            let mut child = spawn("standby_child", root);
            wait_for("the standby to apply", || applied().filter(|at| Some(*at) > before));
            std::thread::sleep(Duration::from_millis(random.random_range(0..150)));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        done.store(true, Ordering::SeqCst);
        let written = writing.join().unwrap();
        let cancel = Cancel::default();
        stream.freeze(&cancel).unwrap();
        let mut standby = follow(&world, root);
        let last = standby.apply(&cancel).unwrap();
        assert!(last.is_final && !last.restarted, "{last:?}");
        standby.promote(&cancel).unwrap();
        drop(stream);
        assert_same_as_source(root, &root.join("standby.db"));
        assert_eq!(counter(&root.join("standby.db")), written);
    });
}

#[test]
fn a_database_that_comes_later_is_waited_for() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let world = VaultWorld::new(root, "near");
    let absent = source(root).stream(&[world.named()], &request(root, 1)).unwrap_err();
    assert!(absent.may_pass, "{absent}");
    let cause = std::error::Error::source(&absent).unwrap().to_string();
    assert!(cause.starts_with("there is no database at"), "{cause}");
    let database = create(root, WAL);
    commit(&database, 1, 100);
    let stream = start(root, &[world.named()], 1);
    await_durable(&*stream, "near", Timestamp::now());
    // Restored over by a file of the same name: its log is another one.
    stream.stop();
    drop((stream, database));
    let live = database_path(root);
    let old = root.join("old.db");
    fs::copy(&live, &old).unwrap();
    fs::remove_dir_all(live.parent().unwrap()).unwrap();
    let database = create(root, WAL);
    for n in 1..=3 {
        commit(&database, n, 100);
    }
    let stream = start(root, &[world.named()], 1);
    await_durable(&*stream, "near", Timestamp::now());
    assert!(stream.status().vaults["near"].point.is_some(), "it goes on with the log of another database");
    let to = root.join("restored.db");
    restore_to(&world.unlocked(), root, &to, Target::Newest, false);
    assert_eq!(counter(&to), 3);
}

/// Restores with little space for files.
pub(crate) fn restore_child() {
    let Some(root) = child_root() else { return };
    let storage = lifeboat_vault::storage::open(vault_directory(&root, "near").to_str().unwrap()).unwrap();
    let key = Identity::load_all(&root.join("key")).unwrap();
    let vault = lifeboat_vault::Vault::open(storage, None, None).unwrap().unlock(&key).unwrap();
    let error = try_restore(&vault, &root, &root.join("restored.db"), Target::Newest, false).unwrap_err();
    fs::write(root.join("error"), error).unwrap();
}

#[test]
fn a_restore_that_runs_out_of_space_leaves_nothing_that_looks_whole() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let world = VaultWorld::new(root, "near");
    fs::write(root.join("key"), world.expose_key()).unwrap();
    let database = create(root, WAL);
    for n in 1..=40 {
        commit(&database, n, 100_000);
    }
    let stream = start(root, &[world.named()], 1);
    await_durable(&*stream, "near", Timestamp::now());
    drop(stream);
    // No file may become longer than 2 MiB; the database has 4.
    let child = Command::new("sh")
        .args(["-c", &format!("ulimit -f 4096; trap '' XFSZ; exec \"$0\" --exact {}", children::TEST)])
        .arg(std::env::current_exe().unwrap())
        .env(children::VARIABLE, "restore_child")
        .env("LIFEBOAT_TEST_ROOT", root)
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    let error = fs::read_to_string(root.join("error")).unwrap();
    assert!(error.contains("cannot write") && error.contains("restored.db.lifeboat-restore"), "{error}");
    assert!(!root.join("restored.db").exists());
    // With space again it goes on, over what was written.
    let restored = restore_to(&world.unlocked(), root, &root.join("restored.db"), Target::Newest, false);
    assert!(restored.bytes_written < restored.bytes, "{restored:?}");
    assert_eq!(counter(&root.join("restored.db")), 40);
    assert!(!root.join("restored.db.lifeboat-restore").exists());
}

#[test]
fn neighbours_of_a_database_are_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let world = VaultWorld::new(root, "near");
    let database = create(root, WAL);
    commit(&database, 1, 100);
    let stream = start(root, &[world.named()], 1);
    await_durable(&*stream, "near", Timestamp::now());
    let shared = root.join("shared");
    fs::create_dir(&shared).unwrap();
    let neighbours = ["orders.db.bak", "orders.db-notes", "other.db", "other.db-wal", "orders", "orders.db.json"];
    for name in neighbours {
        fs::write(shared.join(name), name).unwrap();
    }
    let check = || {
        for name in neighbours {
            assert_eq!(fs::read_to_string(shared.join(name)).unwrap(), name);
        }
    };
    let to = shared.join("orders.db");
    restore_to(&world.unlocked(), root, &to, Target::Newest, false);
    check();
    // Over a database that was in use, whose log is not in it.
    let copy = root.join("used.db");
    fs::copy(&to, &copy).unwrap();
    let used = Connection::open(&copy).unwrap();
    used.execute_batch("pragma journal_mode=wal; pragma wal_autocheckpoint=0; update counter set n = 99").unwrap();
    fs::copy(&copy, &to).unwrap();
    fs::copy(root.join("used.db-wal"), shared.join("orders.db-wal")).unwrap();
    assert!(fs::metadata(shared.join("orders.db-wal")).unwrap().len() > 0);
    restore_to(&world.unlocked(), root, &to, Target::Newest, true);
    assert_eq!(counter(&to), 1);
    fs::remove_file(&to).unwrap();
    check();
    let follow = FollowRequest { dataset: DATASET.into(), to: to.clone(), adopt: false };
    let mut standby = source(root).follow(&world.unlocked(), &follow).unwrap();
    standby.apply(&Cancel::default()).unwrap();
    commit(&database, 2, 100);
    await_durable(&*stream, "near", Timestamp::now());
    standby.promote(&Cancel::default()).unwrap();
    assert_eq!(counter(&to), 2);
    check();
    let count = fs::read_dir(&shared).unwrap().filter(|entry| !is_companion(entry.as_ref().unwrap())).count();
    assert_eq!(count, neighbours.len() + 1);
}

fn is_companion(entry: &fs::DirEntry) -> bool {
    ["orders.db-wal", "orders.db-shm"].iter().any(|name| entry.file_name() == *name)
}

#[test]
fn a_standby_goes_on_past_damage_that_it_is_past_and_stops_at_damage_that_it_is_not() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let world = VaultWorld::new(root, "near");
    let database = create(root, WAL);
    let stream = start(root, &[world.named()], 1);
    await_durable(&*stream, "near", Timestamp::now());
    let (mut standby, cancel) = (follow(&world, root), Cancel::default());
    let more = |from: u64| {
        for n in from..from + 4 {
            commit(&database, n, 5000);
            await_durable(&*stream, "near", Timestamp::now());
        }
    };
    let pieces = || {
        let lineage = world.host.log_lineages(DATASET).unwrap().remove(0);
        let entries = world.host.log_entries(DATASET, &lineage, None).unwrap();
        entries.into_iter().filter(|entry| !entry.mark).map(|entry| entry.key).collect::<Vec<_>>()
    };
    more(1);
    standby.apply(&cancel).unwrap();
    let old = pieces().remove(1);
    more(5);
    let new = pieces().remove(6);
    let (old_whole, new_whole) = (world.storage.get(&old).unwrap(), world.storage.get(&new).unwrap());
    world.storage.delete(&new).unwrap();
    let stopped = standby.promote(&cancel).unwrap_err();
    assert!(std::error::Error::source(&stopped).unwrap().to_string().contains(&new), "{stopped:?}");
    world.storage.put(&new, &new_whole).unwrap();
    standby.apply(&cancel).unwrap();
    world.storage.delete(&old).unwrap();
    more(9);
    drop(stream);
    standby.promote(&cancel).unwrap();
    assert_eq!(counter(&root.join("standby.db")), 12);
    // Whoever has to begin with it cannot use it, and says why.
    let restored = try_restore(&world.unlocked(), root, &root.join("restored.db"), Target::Newest, false);
    assert!(restored.unwrap_err().contains(&old));
    world.storage.put(&old, &old_whole).unwrap();
    restore_to(&world.unlocked(), root, &root.join("restored.db"), Target::Newest, false);
    assert_eq!(counter(&root.join("restored.db")), 12);
}

#[test]
fn damage_before_a_full_recovery_point_costs_only_what_is_between() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let world = VaultWorld::new(root, "near");
    let database = create(root, WAL);
    let stream = start(root, &[world.named()], 1);
    await_durable(&*stream, "near", Timestamp::now());
    let more = |numbers: std::ops::RangeInclusive<u64>| {
        for n in numbers {
            commit(&database, n, 2000);
            await_durable(&*stream, "near", Timestamp::now());
        }
        Timestamp::now()
    };
    more(1..=4);
    let lineage = world.host.log_lineages(DATASET).unwrap().remove(0);
    let entries = world.host.log_entries(DATASET, &lineage, None).unwrap();
    let victim = &entries.iter().filter(|entry| !entry.mark).nth(1).unwrap().key;
    let between = more(5..=5);
    stream.take_point("near", &Cancel::default()).unwrap();
    more(6..=8);
    stream.stop();
    world.storage.put(victim, b"rot").unwrap();
    let to = root.join("restored.db");
    let lost = try_restore(&world.unlocked(), root, &to, Target::At(between.to_string()), false).unwrap_err();
    assert!(lost.contains(victim), "{lost}");
    restore_to(&world.unlocked(), root, &to, Target::Newest, false);
    assert_eq!(counter(&to), 8);
    // A standby that begins now, and a stream that goes on, need nothing of it either.
    let mut standby = follow(&world, root);
    assert!(standby.apply(&Cancel::default()).unwrap().restarted);
    let stream = start(root, &[world.reopened()], 1);
    commit(&database, 9, 2000);
    await_durable(&*stream, "near", Timestamp::now());
    assert_eq!(stream.status().vaults["near"].point, None, "it took another full snapshot");
    standby.promote(&Cancel::default()).unwrap();
    assert_eq!(counter(&root.join("standby.db")), 9);
}

#[test]
fn a_clock_that_was_ahead_and_is_put_right_hides_nothing_that_was_written_since() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let world = VaultWorld::new(root, "near");
    let database = create(root, WAL);
    let stream = start(root, &[world.named()], 1);
    await_durable(&*stream, "near", Timestamp::UNIX_EPOCH);
    commit(&database, 1, 2000);
    await_durable(&*stream, "near", Timestamp::now());
    stream.stop();
    // What it would have said last, an hour ahead.
    let lineage = world.host.log_lineages(DATASET).unwrap().remove(0);
    let mut writer = world.host.log_writer(DATASET, &lineage, 1).unwrap();
    let at = writer.last().unwrap().last;
    let ahead = Timestamp::now() + Duration::from_secs(3600);
    let mark = LogPiece { first: at, last: at, source_time: ahead, mark: true, final_mark: false };
    writer.append(mark, b"").unwrap();
    let (mut standby, cancel) = (follow(&world, root), Cancel::default());
    assert_eq!(standby.apply(&cancel).unwrap().applied_to, Some(ahead));
    let stream = start(root, &[world.named()], 1);
    for n in 2..=5 {
        commit(&database, n, 2000);
    }
    await_durable(&*stream, "near", Timestamp::now());
    let to = root.join("restored.db");
    restore_to(&world.unlocked(), root, &to, Target::Newest, false);
    assert_eq!(counter(&to), 5);
    standby.promote(&cancel).unwrap();
    assert_eq!(counter(&root.join("standby.db")), 5);
}

/// An application that empties the log between its transactions, once or each time.
pub(crate) fn checkpointing_child() {
    let Some(root) = child_root() else { return };
    let database = Connection::open(database_path(&root)).unwrap();
    database.busy_timeout(Duration::from_secs(30)).unwrap();
    let once = std::env::var("LIFEBOAT_TEST_ONCE").is_ok();
    let mut emptied = 0;
    for n in 1..=20 {
        commit(&database, n, 3000);
        if once && n != 10 {
            continue;
        }
        let busy: i64 = database.query_row("pragma wal_checkpoint(truncate)", [], |row| row.get(0)).unwrap();
        emptied += i32::from(busy == 0);
    }
    fs::write(root.join("emptied"), emptied.to_string()).unwrap();
    // Closing the database would delete the log, which is noticed at once.
    std::process::exit(0);
}

#[test]
fn locks_that_something_else_in_the_process_has_dropped_leave_no_hole() {
    for once in [true, false] {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let world = VaultWorld::new(root, "near");
        drop(create(root, WAL));
        let mut request = request(root, 1);
        request.flush = Duration::from_secs(2);
        let Streaming::Started(stream) = source(root).stream(&[world.named()], &request).unwrap() else { panic!() };
        await_durable(&*stream, "near", Timestamp::now());
        // Closing any descriptor of a file drops all of the process's locks on it.
        for suffix in ["", "-shm"] {
            drop(fs::File::open(format!("{}{suffix}", database_path(root).display())).unwrap());
        }
        let mut application = command("checkpointing_child", root);
        if once {
            application.env("LIFEBOAT_TEST_ONCE", "1");
        }
        assert!(application.status().unwrap().success());
        let emptied = fs::read_to_string(root.join("emptied")).unwrap();
        assert_ne!(emptied, "0", "the locks were not lost; the test proves nothing");
        await_durable(&*stream, "near", Timestamp::now());
        let to = root.join("restored.db");
        restore_to(&world.unlocked(), root, &to, Target::Newest, false);
        assert_eq!(counter(&to), 20);
    }
}

#[test]
fn a_transaction_too_large_for_the_log_begins_a_new_chain_that_a_standby_goes_over_to() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let world = VaultWorld::new(root, "near");
    let database = create(root, WAL);
    let stream = start(root, &[world.named()], 1);
    await_durable(&*stream, "near", Timestamp::now());
    let (mut standby, cancel) = (follow(&world, root), Cancel::default());
    standby.apply(&cancel).unwrap();
    commit(&database, 1, 63 << 20);
    await_durable(&*stream, "near", Timestamp::now());
    assert_eq!(world.host.points(Some(DATASET)).unwrap().points.len(), 2);
    commit(&database, 2, 100);
    await_durable(&*stream, "near", Timestamp::now());
    drop(stream);
    standby.promote(&cancel).unwrap();
    assert_eq!(counter(&root.join("standby.db")), 2);
    let to = root.join("restored.db");
    restore_to(&world.unlocked(), root, &to, Target::Newest, false);
    assert_eq!(counter(&to), 2);
}
