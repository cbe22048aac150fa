//! Base backups that stand for themselves.

use std::fs;
use std::os::unix::fs::FileExt;

use lifeboat_core::runbook::Target;

use super::{Bench, told};
use crate::pg_cluster::Cluster;

#[test]
fn a_running_cluster_comes_back_as_it_was() {
    let bench = Bench::new();
    bench.cluster.psql("create table t(n int primary key, body text); insert into t select n, repeat(md5(n::text), 20) from generate_series(1, 20000) n");
    bench.cluster.psql("create extension if not exists plpgsql");
    let before = bench.cluster.psql("select count(*), sum(hashtext(body)::bigint) from t");
    let taken = bench.point();
    assert!(taken.bytes > 20 << 20 && taken.files > 900, "{taken:?}");
    assert!(taken.point.release.as_deref().is_some_and(|release| release.starts_with("PostgreSQL 15")));
    bench.cluster.psql("delete from t");
    let to = bench.place_for("restored");
    let restored = bench.restore(Target::Newest, &to);
    assert!(!restored.notes.iter().any(|note| note.contains("database")), "{:?}", restored.notes);
    assert!(restored.verified.as_deref().is_some_and(|how| how.contains("opened its 2 databases")), "{restored:?}");
    let copy = Cluster::adopted(&to);
    assert_eq!(copy.psql("select count(*), sum(hashtext(body)::bigint) from t"), before);
    assert_eq!(copy.psql("select pg_is_in_recovery()"), "f");
    assert!(!to.join("lifeboat-backup.json").exists() && !to.join("recovery.signal").exists());
}

#[test]
fn another_backup_stores_the_pages_that_changed() {
    let bench = Bench::new();
    bench.cluster.psql("create table t(n int primary key, body text); insert into t select n, md5(n::text) || md5((-n)::text) from generate_series(1, 200000) n");
    // Hints on rows change pages, too.
    bench.cluster.psql("vacuum t");
    let first = bench.point();
    bench.cluster.psql("update t set body = upper(body) where n % 5000 = 0");
    let second = bench.point();
    assert!(second.bytes_stored * 20 < first.bytes_stored, "{} after {}", second.bytes_stored, first.bytes_stored);
}

#[test]
fn a_damaged_page_makes_no_recovery_point() {
    let mut bench = Bench::new();
    bench.cluster.psql("create table t(n int); insert into t select generate_series(1, 100000); checkpoint");
    let path = bench.cluster.psql("select pg_relation_filepath('t')");
    bench.cluster.stop();
    let file = fs::File::options().write(true).open(bench.cluster.data().join(path)).unwrap();
    file.write_all_at(&[7; 100], 3 * 8192 + 4000).unwrap();
    bench.cluster.start();
    let why = told(bench.try_point().unwrap_err());
    assert!(why.contains("checksum verification fail"), "{why}");
    assert!(bench.unlocked().points(None).unwrap().points.is_empty());
}

#[test]
fn tablespaces_come_along() {
    let bench = Bench::new();
    let space = bench.place_for("space");
    crate::pg_cluster::run(crate::pg_cluster::as_postgres("mkdir").arg(&space));
    bench.cluster.psql(&format!("create tablespace fast location '{}'", space.display()));
    bench.cluster.psql("create table t(n int) tablespace fast; insert into t select generate_series(1, 50000)");
    bench.point();
    bench.cluster.psql("drop table t");
    let to = bench.place_for("restored");
    bench.restore(Target::Newest, &to);
    let copy = Cluster::adopted(&to);
    assert_eq!(copy.psql("select count(*) from t"), "50000");
    // The original's own space is left alone.
    assert_eq!(bench.cluster.psql("select count(*) from pg_tablespace where spcname = 'fast'"), "1");
}

#[test]
fn what_cannot_be_done_says_why() {
    let mut bench = Bench::new();
    bench.point();
    let to = bench.place_for("there");
    fs::create_dir(&to).unwrap();
    fs::write(to.join("something"), "").unwrap();
    let why = told(bench.try_restore(Target::Newest, &to, false).unwrap_err());
    assert!(why.contains("exists already; restore in place"), "{why}");
    let data = bench.cluster.data();
    let why = told(bench.try_restore(Target::Newest, &data, true).unwrap_err());
    assert!(why.contains("a server may be running in"), "{why}");
    bench.cluster.stop();
    let why = told(bench.try_point().unwrap_err());
    insta::assert_snapshot!(why.replace(&data.display().to_string(), "DATA"), @r"
    no recovery point was taken into vault `main`
      because: no server runs in DATA: it has no postmaster.pid; start the server, or see that this is its data directory
    ");
    // In place, over what is there.
    bench.try_restore(Target::Newest, &data, true).map_err(told).unwrap();
    bench.cluster.start();
    assert_eq!(bench.cluster.psql("select 1"), "1");
}

/// As on Debian: who comes through the socket must be the system's user of the role's name.
#[test]
fn root_comes_as_the_owner_of_the_data_directory_where_peer_decides() {
    let mut cluster = Cluster::new();
    cluster.let_in("local all all peer\nlocal replication all peer\n");
    cluster.start();
    let space = cluster.place().join("space");
    crate::pg_cluster::run(crate::pg_cluster::as_postgres("mkdir").arg(&space));
    let bench = Bench::with(cluster);
    bench.point();
    // With a tablespace the archives pass through a directory, which the child must be let into.
    bench.cluster.psql(&format!("create tablespace fast location '{}'", space.display()));
    bench.point();
    assert_eq!(bench.unlocked().points(None).unwrap().points.len(), 2);
}
