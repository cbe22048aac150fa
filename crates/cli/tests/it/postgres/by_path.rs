//! A data directory named by its path: running, stopped, elsewhere and in place.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use super::{Bench, insert, make_directory, rows, table};
use crate::machine::await_that;
use crate::pg_cluster::Cluster;

#[test]
fn a_running_directory_comes_back_as_of_each_of_its_points() {
    let bench = Bench::new();
    table(&bench.cluster);
    insert(&bench.cluster, 1);
    let first = bench.point();
    assert_eq!(first["dataset"], bench.data());
    insert(&bench.cluster, 2);
    let second = bench.point();
    let (new, all) = (second["bytes_new"].as_u64().unwrap(), second["bytes"].as_u64().unwrap());
    assert!(new < all, "{new} of {all}");
    let listed = bench.machine.line(&format!("points --vault {}", bench.vault())).ends(0).out;
    assert_eq!(listed.lines().filter(|line| line.contains(&bench.data())).count(), 2, "{listed}");

    let copy = bench.restored("");
    assert_eq!(rows(&copy), "1 2");
    insert(&copy, 3);
    assert_eq!(rows(&bench.restored("--point 1")), "1");
    let between = first["taken_at"].as_str().unwrap();
    assert_eq!(rows(&bench.restored(&format!("--at {between}"))), "1");
    assert_eq!(rows(&bench.cluster), "1 2", "the original is left alone");

    let out = bench.machine.at("files");
    bench.restore(&out, "--path PG_VERSION").ends(0);
    let version = fs::read_to_string(bench.machine.path("files/PG_VERSION")).unwrap();
    assert_eq!(version, fs::read_to_string(bench.cluster.data().join("PG_VERSION")).unwrap());
    bench.machine.line(&format!("vault check --vault {} --key owner.key --read-data", bench.vault())).ends(0);
}

#[test]
fn in_place_a_damaged_cluster_is_its_point_again_and_only_what_differs_is_written() {
    let mut bench = Bench::new();
    table(&bench.cluster);
    insert(&bench.cluster, 1);
    bench.cluster.psql("create table filler as select n, md5(n::text) from generate_series(1, 200000) n; checkpoint");
    bench.point();
    let file = bench.cluster.data().join(bench.cluster.psql("select pg_relation_filepath('t')"));
    bench.cluster.stop();
    fs::write(&file, "this is no relation").unwrap();
    fs::write(bench.cluster.data().join("core"), "left by somebody").unwrap();
    let to = bench.data();
    let line = format!("--json restore --vault {} --key owner.key --to {to} --in-place", bench.vault());
    let ran = bench.machine.line(&line).ends(2);
    assert!(ran.err.contains("what is extra is removed") && ran.err.contains("--yes"), "{}", ran.err);
    let restored = bench.machine.line(&format!("{line} --yes")).ends(0).json();
    let (written, bytes) = (restored["bytes_written"].as_u64().unwrap(), restored["bytes"].as_u64().unwrap());
    assert!(written * 2 < bytes, "{written} of {bytes}");
    assert!(!bench.cluster.data().join("core").exists());
    bench.cluster.start();
    assert_eq!(rows(&bench.cluster), "1");
    assert_eq!(bench.cluster.psql("select count(*) from filler"), "200000");
}

/// While its private server is at work, which outlives it.
#[test]
fn a_restore_that_was_killed_goes_on_and_ends_the_server_that_it_left() {
    let mut bench = Bench::new();
    table(&bench.cluster);
    insert(&bench.cluster, 1);
    bench.point();
    bench.cluster.stop();
    for more in ["", "--in-place --yes"] {
        let to = if more.is_empty() { bench.place_for("restored") } else { bench.cluster.data() };
        let line = format!("restore --vault {} --key owner.key --to {} {more}", bench.vault(), to.display());
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut child = bench.machine.command(&words).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let work = format!("{}.lifeboat-restore", to.display());
        let lock = Path::new(&work).join("postmaster.pid");
        let mut pid = String::new();
        await_that("the private server is at work", || {
            pid = fs::read_to_string(&lock).unwrap_or_default().lines().next().unwrap_or_default().to_owned();
            !pid.is_empty()
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!to.exists(), "{more}: nothing half done stands under its name");
        bench.machine.line(&line).ends(0);
        assert!(!Path::new(&format!("/proc/{pid}/cwd")).exists(), "{more}: {pid} is still at work");
        assert!(!Path::new(&work).exists());
    }
    bench.cluster.start();
    assert_eq!(rows(&bench.cluster), "1");
    assert_eq!(rows(&Cluster::adopted(&bench.place_for("restored"))), "1");
}

#[test]
fn a_stopped_or_killed_cluster_is_taken_as_files_and_that_is_said() {
    for killed in [false, true] {
        let mut bench = Bench::new();
        table(&bench.cluster);
        insert(&bench.cluster, 1);
        if killed {
            bench.cluster.kill()
        } else {
            bench.cluster.stop()
        }
        let ran = bench.backup().ends(0);
        assert!(ran.err.contains("no server runs in"), "killed: {killed}: {}", ran.screen());
        assert_eq!(rows(&bench.restored("")), "1", "killed: {killed}");
    }
}

#[test]
fn tablespaces_that_a_stopped_cluster_has_elsewhere_are_missed_aloud() {
    let mut bench = Bench::new();
    let space = bench.place_for("space");
    make_directory(&space);
    bench.cluster.psql(&format!("create tablespace fast location '{}'", space.display()));
    bench.cluster.psql("create table t(n int) tablespace fast; insert into t values (1)");
    // While it runs they come along, ...
    bench.backup().ends(0);
    bench.cluster.stop();
    let ran = bench.backup().ends(3);
    assert!(ran.err.contains(&format!("not in it: {} (a tablespace", space.display())), "{}", ran.err);
    // ... to a place beside the restored cluster.
    let to = bench.place_for("restored");
    let ran = bench.restore(&to.display().to_string(), "--point 1").ends(0);
    assert!(ran.err.contains("restored.tablespaces"), "{}", ran.screen());
    assert_eq!(rows(&Cluster::adopted(&to)), "1");
}

#[test]
fn places_in_the_log_are_for_clusters_with_a_stream() {
    let bench = Bench::new();
    table(&bench.cluster);
    bench.machine.write("work/notes/a.txt", "a");
    bench.machine.line(&format!("backup --vault {} --as notes notes", bench.vault())).ends(0);
    let out = bench.machine.at("out");
    for place in ["--position 0/3000060", "--named before"] {
        let ran = bench.restore(&out, &format!("{place} notes")).ends(2);
        assert!(ran.err.contains("`notes` is files: only the log of a PostgreSQL cluster"), "{}", ran.screen());
        assert!(ran.err.contains("--point"), "{}", ran.screen());
    }
    let ran = bench.restore(&out, "--position here notes").ends(2);
    assert!(ran.err.contains("`here` is no place in the log"), "{}", ran.screen());
    bench.point();
    let to = bench.place_for("restored");
    let ran = bench.restore(&to.display().to_string(), &format!("--named before {}", bench.data())).ends(1);
    assert!(ran.err.contains("has no log in this vault, only recovery points"), "{}", ran.screen());
    assert!(!to.exists());
}
