//! Volumes: one suite for every way of taking snapshots, and what they are for: databases, running and killed.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use lifeboat_adapters::volume::{CommandHold, PostgresHold, volume_at};
use lifeboat_engine::port::{Cancel, Hold, Keeps, PortError};

use crate::loops::{Loop, free_bytes};
use crate::pg_cluster::{Cluster, as_postgres, run};

const BYTES: usize = 32 << 20;

fn told(error: PortError) -> String {
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}

fn names(path: &Path) -> Vec<String> {
    volume_at(path).unwrap().snapshots().unwrap().into_iter().map(|snapshot| snapshot.name).collect()
}

/// Everything that can be said of a tree, but for times of access.
fn fingerprint(path: &Path) -> String {
    let script =
        "find . -printf '%p %y %m %U %G %s %T@ %l\\n' | sort; find . -type f -print0 | sort -z | xargs -0 sha256sum";
    run(Command::new("sh").args(["-c", script]).current_dir(path))
}

/// What every volume keeps to.
fn suite(place: &Loop, keeps: Keeps) {
    let path = place.volume("data");
    let volume = volume_at(&path).unwrap();
    assert_eq!(volume.keeps(), keeps);
    fs::create_dir(path.join("below")).unwrap();
    fs::write(path.join("below/large"), crate_noise(BYTES)).unwrap();
    std::os::unix::fs::symlink("below/large", path.join("link")).unwrap();
    std::os::unix::fs::chown(path.join("below/large"), Some(4711), Some(12)).unwrap();
    let before = fingerprint(&path);
    assert!(volume.snapshots().unwrap().is_empty());
    assert!(
        told(volume.clone_to("first", &place.path().join("clone")).unwrap_err())
            .contains("there is no snapshot `first`")
    );

    let free = free_bytes(&place.path());
    let first = volume.snapshot("first", &mut (), &Cancel::default()).unwrap();
    assert_eq!((first.held, fingerprint(&first.path)), (None, before.clone()));
    let clone = place.path().join("clone");
    assert!(volume.clone_to("first", &clone).unwrap());
    let taken = free.saturating_sub(free_bytes(&place.path()));
    let is_shared = keeps != Keeps::Files { shared: false };
    assert_eq!(taken < BYTES as u64 / 2, is_shared, "{taken} bytes for a snapshot and a clone");

    // Neither writing where it was taken of nor in the clone changes it.
    fs::write(path.join("below/large"), "other").unwrap();
    fs::write(clone.join("below/large"), "another").unwrap();
    fs::write(clone.join("new"), "").unwrap();
    assert_eq!(fingerprint(&first.path), before);
    // Of the same name there is one, and it stays what it was.
    assert_eq!(volume.snapshot("first", &mut (), &Cancel::default()).unwrap().path, first.path);
    assert_eq!(fingerprint(&first.path), before);
    assert!(!volume.clone_to("first", &clone).unwrap(), "what is there already is left alone");
    assert_eq!(fs::read(clone.join("below/large")).unwrap(), b"another");
    volume.snapshot("second", &mut (), &Cancel::default()).unwrap();
    // A neighbour whose name begins alike has its own.
    place.volume("data2");
    volume_at(&place.path().join("data2")).unwrap().snapshot("third", &mut (), &Cancel::default()).unwrap();
    assert_eq!(names(&path), ["first", "second"]);

    for odd in ["", "..", "a/b", "A", "a b", &"a".repeat(65)] {
        assert!(
            told(volume.snapshot(odd, &mut (), &Cancel::default()).unwrap_err()).contains("is no name of a snapshot"),
            "{odd}"
        );
        assert!(volume.remove(odd).is_err());
    }
    assert!(volume.remove("first").unwrap());
    assert!(!volume.remove("first").unwrap());
    assert_eq!(names(&path), ["second"]);
    assert!(clone.join("new").is_file(), "a clone stands for itself");

    held_and_let_go(&path);
    // What lies elsewhere would be missing.
    run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(path.join("below")));
    let why = told(volume.snapshot("elsewhere", &mut (), &Cancel::default()).unwrap_err());
    run(Command::new("umount").arg(path.join("below")));
    assert!(why.contains("leads to another place"), "{why}");
    assert!(told(volume_at(&place.path().join("nothing")).err().unwrap()).contains("there can be no snapshots of"));
}

fn crate_noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length / 8).flat_map(|_| next()).collect()
}

/// Notes what is asked of it.
#[derive(Default)]
struct Noted {
    calls: RefCell<Vec<&'static str>>,
    lock_fails: bool,
}

impl Hold for Noted {
    fn lock(&mut self) -> Result<(), PortError> {
        self.calls.borrow_mut().push("lock");
        if self.lock_fails { Err(PortError::new("it would not be locked")) } else { Ok(()) }
    }

    fn unlock(&mut self) -> Result<(), PortError> {
        self.calls.borrow_mut().push("unlock");
        Ok(())
    }
}

fn held_and_let_go(path: &Path) {
    let volume = volume_at(path).unwrap();
    let mut hold = Noted::default();
    let snapshot = volume.snapshot("held", &mut hold, &Cancel::default()).unwrap();
    assert!(snapshot.held.is_some_and(|held| held > Duration::ZERO));
    assert_eq!(hold.calls.into_inner(), ["lock", "unlock"]);
    let mut hold = Noted::default();
    assert_eq!(volume.snapshot("held", &mut hold, &Cancel::default()).unwrap().held, None);
    assert!(hold.calls.into_inner().is_empty(), "nobody is held for what is there");
    // Also where the lock failed half-way ...
    let mut hold = Noted { lock_fails: true, ..Noted::default() };
    assert!(
        told(volume.snapshot("unheld", &mut hold, &Cancel::default()).unwrap_err()).contains("it would not be locked")
    );
    assert_eq!(hold.calls.into_inner(), ["lock", "unlock"]);
    // ... and where the snapshot did: something takes its place while the lock is taken.
    let state = path.parent().unwrap().join("locked");
    let words = |script: &str| vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()];
    let taken = path.parent().unwrap().join("data.snapshot-late");
    let lock = format!(
        "touch '{}'; mkdir -p '{1}/data' '{1}.draft'; touch '{1}/data/x'; chattr +i '{1}.draft' || true",
        state.display(),
        taken.display()
    );
    let unlock = format!("rm '{}'", state.display());
    let mut hold = CommandHold { lock: words(&lock), unlock: words(&unlock), within: Duration::from_secs(20) };
    let tried = volume.snapshot("late", &mut hold, &Cancel::default());
    run(Command::new("sh")
        .args(["-c", &format!("chattr -i '{0}.draft' || true; rm -rf '{0}' '{0}.draft'", taken.display())]));
    assert!(tried.is_err() && !state.exists(), "{tried:?}");
    let mut hold = CommandHold { lock: words("exit 0"), unlock: words("exit 3"), within: Duration::from_secs(20) };
    let why = told(volume.snapshot("stuck", &mut hold, &Cancel::default()).unwrap_err());
    assert!(
        why.contains("could not be let go: do it by hand, now") && why.contains("ended with exit status: 3"),
        "{why}"
    );
    for name in ["held", "stuck"] {
        assert!(volume.remove(name).unwrap(), "{name}");
    }
}

#[test]
fn a_subvolume_of_btrfs_keeps_to_it() {
    suite(&Loop::made("btrfs"), Keeps::Moment);
}

#[test]
fn a_directory_on_xfs_keeps_to_it_and_shares_blocks() {
    suite(&Loop::made("xfs"), Keeps::Files { shared: true });
}

#[test]
fn a_directory_on_a_file_system_that_shares_nothing_keeps_to_it() {
    suite(&Loop::made("ext4"), Keeps::Files { shared: false });
}

#[test]
fn a_subvolume_within_is_refused_for_it_would_be_missing() {
    let place = Loop::made("btrfs");
    let path = place.volume("data");
    run(Command::new("btrfs").args(["subvolume", "create"]).arg(path.join("wal")));
    let why = told(volume_at(&path).unwrap().snapshot("one", &mut (), &Cancel::default()).unwrap_err());
    assert!(why.contains("it is another file system or subvolume"), "{why}");
}

/// A cluster whose data directory lies there.
fn cluster_in(place: &Loop) -> (Cluster, PathBuf) {
    let cluster = Cluster::new();
    let data = place.volume("pgdata");
    run(Command::new("cp").arg("-a").arg(cluster.data().join(".")).arg(&data));
    run(Command::new("chown").args(["--reference"]).arg(cluster.data()).arg(&data));
    fs::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    run(as_postgres("rm").arg("-r").arg(cluster.data()));
    run(as_postgres("ln").arg("-s").arg(&data).arg(cluster.data()));
    (cluster, data)
}

/// A clone as a cluster of its own.
fn adopted(clone: &Path) -> Cluster {
    let _ = fs::remove_file(clone.join("postmaster.pid"));
    Cluster::adopted(clone)
}

#[test]
fn a_server_under_load_is_caught_in_one_moment_with_all_that_was_acknowledged() {
    let place = Loop::made("btrfs");
    let (mut cluster, data) = cluster_in(&place);
    cluster.start();
    cluster.psql("create table account(n int primary key, amount int); insert into account select n, 0 from generate_series(1, 1000) n; create table done(n int primary key)");
    let (acknowledged, over) = (AtomicU32::new(0), AtomicBool::new(false));
    let (before, snapshot) = std::thread::scope(|scope| {
        let work = || {
            for n in 1.. {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let (from, to) = (n % 1000 + 1, n * 7 % 1000 + 1);
                cluster.psql(&format!(
                    "begin; update account set amount = amount - 1 where n = {from}; update account set amount = amount + 1 where n = {to}; \
                     insert into done values ({n}); commit"
                ));
                acknowledged.store(n, Ordering::SeqCst);
            }
        };
        scope.spawn(work);
        let enough = |least: u32| {
            let deadline = std::time::Instant::now() + crate::pg_cluster::PATIENCE;
            while acknowledged.load(Ordering::SeqCst) < least {
                assert!(std::time::Instant::now() < deadline);
                std::thread::yield_now();
            }
        };
        enough(30);
        let before = acknowledged.load(Ordering::SeqCst);
        let taken = volume_at(&data).unwrap().snapshot("loaded", &mut PostgresHold::new(&data), &Cancel::default());
        let after = acknowledged.load(Ordering::SeqCst);
        enough(after + 10);
        over.store(true, Ordering::SeqCst);
        (before, taken)
    });
    let snapshot = snapshot.map_err(told).unwrap();
    assert!(snapshot.held.is_some_and(|held| held > Duration::ZERO && held < Duration::from_secs(20)), "{snapshot:?}");
    let clone = place.path().join("clone");
    volume_at(&data).unwrap().clone_to("loaded", &clone).unwrap();
    let copy = adopted(&clone);
    let missing = copy.psql(&format!(
        "select count(*) from generate_series(1, {before}) n left join done using (n) where done.n is null"
    ));
    assert_eq!(missing, "0", "of {before} that were acknowledged before");
    assert_eq!(copy.psql("select max(n) = count(*) from done"), "t", "what came later is there up to one moment");
    assert_eq!(copy.psql("select sum(amount) from account"), "0");
    let all = acknowledged.load(Ordering::SeqCst).to_string();
    assert_eq!(cluster.psql("select max(n) from done"), all, "the original has gone on");
    assert!(copy.psql("select max(n) from done") != all);
}

#[test]
fn where_no_moment_can_be_kept_a_running_server_is_refused() {
    let place = Loop::made("xfs");
    let (mut cluster, data) = cluster_in(&place);
    cluster.start();
    let volume = volume_at(&data).unwrap();
    let why = told(volume.snapshot("running", &mut PostgresHold::new(&data), &Cancel::default()).unwrap_err());
    assert!(why.contains("a server may be running in") && why.contains("`lifeboat backup`"), "{why}");
    assert!(names(&data).is_empty());
    cluster.stop();
    volume.snapshot("stopped", &mut PostgresHold::new(&data), &Cancel::default()).map_err(told).unwrap();
    // What belongs to it and lies elsewhere would be missing.
    cluster.start();
    let space = cluster.place().join("space");
    run(as_postgres("mkdir").arg(&space));
    cluster.psql(&format!("create tablespace fast location '{}'", space.display()));
    cluster.stop();
    let why = told(volume.snapshot("partly", &mut (), &Cancel::default()).unwrap_err());
    assert!(why.contains("pg_tblspc") && why.contains("leads to another place"), "{why}");
}

/// Crash recovery writes: what was there before it is kept, whatever becomes of the clone.
#[test]
fn a_killed_servers_directory_stays_as_it_was_while_a_clone_is_recovered() {
    for kind in ["btrfs", "xfs"] {
        let place = Loop::made(kind);
        let (mut cluster, data) = cluster_in(&place);
        cluster.start();
        cluster.psql("create table t(n int); insert into t select generate_series(1, 5000)");
        cluster.kill();
        let volume = volume_at(&data).unwrap();
        let snapshot = volume.snapshot("before-start", &mut (), &Cancel::default()).map_err(told).unwrap();
        let (was, there) = (fingerprint(&snapshot.path), fingerprint(&data));
        assert_eq!(was, there, "{kind}");
        let clone = place.path().join("clone");
        volume.clone_to("before-start", &clone).unwrap();
        let copy = adopted(&clone);
        assert_eq!(copy.psql("select count(*) from t"), "5000", "{kind}");
        assert!(copy.log().contains("automatic recovery in progress"), "{kind}: {}", copy.log());
        copy.psql("drop table t; checkpoint");
        assert_eq!(fingerprint(&snapshot.path), was, "{kind}");
        assert_eq!(fingerprint(&data), there, "{kind}");
        drop(copy);
        drop(cluster);
    }
}
