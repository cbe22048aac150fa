//! What a server that died had written and no vault has: shipped from its own log, to its last whole record or not at all.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use lifeboat_adapters::source::PostgresSource;
use lifeboat_core::runbook::Target;
use lifeboat_engine::port::{Cancel, LogStream, Restorer};
use lifeboat_engine::verify::{Check, Outcome};

use super::streams::{durable, numbers};
use super::{Bench, told};
use crate::pg_cluster::Cluster;
use crate::vault_world::wait_for;

/// A bench whose vault has the table and its first row, and whose stream has ended.
fn behind() -> Bench {
    let bench = Bench::new();
    bench.table();
    let stream = bench.stream();
    // A base backup ends a segment; what is shipped next ends within one.
    durable(&bench, &*stream);
    bench.insert(1);
    durable(&bench, &*stream);
    bench
}

/// Freezes what is told to, and says why it was not to be had.
fn why_not(stream: &dyn LogStream) -> String {
    let cancel = Cancel::default();
    std::thread::scope(|scope| {
        let freezing = scope.spawn(|| stream.freeze(&cancel));
        // The server's absence alone is no reason.
        let why = wait_for("a reason", || {
            stream.status().vaults["main"].problem.clone().filter(|why| why.contains("log") || why.contains("running"))
        });
        cancel.cancel();
        assert!(freezing.join().unwrap().is_err(), "{why}");
        assert!(!stream.status().vaults["main"].frozen, "{why}");
        why
    })
}

/// The place in the log where the server is, and the file that it lies in.
fn place_in_log(bench: &Bench) -> (u64, PathBuf) {
    let answer = bench.cluster.psql(
        "select (pg_walfile_name_offset(lsn)).file_name || ' ' || (pg_walfile_name_offset(lsn)).file_offset from pg_current_wal_insert_lsn() lsn",
    );
    let (file, offset) = answer.split_once(' ').unwrap();
    (offset.parse().unwrap(), bench.cluster.data().join("pg_wal").join(file))
}

#[test]
fn everything_that_a_dead_server_wrote_comes_back() {
    let workloads: [&[&str]; 4] = [
        &[],
        &["insert into t values (2)", "insert into t values (3); delete from t where n = 1"],
        // Over several segments, records over several pages, the rest of a segment left empty, and one whose end is another's beginning.
        &[
            "create table large(body text); alter table large alter body set storage external",
            "insert into large select repeat('x', 50000) from generate_series(1, 900)",
            "select pg_switch_wal()",
            "insert into t values (2)",
            "checkpoint",
            "insert into t values (3)",
        ],
        &["insert into t values (2)", "select pg_switch_wal()"],
    ];
    for (index, workload) in workloads.iter().enumerate() {
        for in_order in [false, true] {
            let mut bench = behind();
            workload.iter().for_each(|sql| {
                bench.cluster.psql(sql);
            });
            match in_order {
                true => bench.cluster.stop(),
                false => bench.cluster.kill(),
            }
            let stream = bench.stream();
            stream.freeze(&Cancel::default()).map_err(told).unwrap();
            drop(stream);
            let to = bench.place_for("restored");
            bench.restore(Target::Newest, &to);
            let copy = Cluster::adopted(&to);
            bench.cluster.start();
            assert_eq!(numbers(&copy), numbers(&bench.cluster), "{index}, in order: {in_order}");
            if index == 2 {
                assert_eq!(copy.psql("select count(*), sum(length(body)) from large"), "900|45000000");
            }
        }
    }
}

#[test]
fn a_last_record_that_was_not_written_to_its_end_is_no_end_of_the_whole_ones() {
    let mut bench = behind();
    bench.insert(2);
    let (offset, file) = place_in_log(&bench);
    bench.insert(3);
    bench.cluster.kill();
    let file = std::fs::File::options().write(true).open(file).unwrap();
    let rest = file.metadata().unwrap().len() - offset - 8;
    file.write_all_at(&vec![0; rest as usize], offset + 8).unwrap();
    let stream = bench.stream();
    stream.freeze(&Cancel::default()).map_err(told).unwrap();
    drop(stream);
    let to = bench.place_for("restored");
    bench.restore(Target::Newest, &to);
    assert_eq!(numbers(&Cluster::adopted(&to)), "1 2");
}

#[test]
fn a_damaged_log_is_named_and_never_called_whole() {
    let mut bench = behind();
    let (offset, file) = place_in_log(&bench);
    bench.cluster.psql("insert into t select n from generate_series(2, 20000) n");
    bench.cluster.kill();
    let file = std::fs::File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset + 300_000).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset + 300_000).unwrap();
    let stream = bench.stream();
    let why = why_not(&*stream);
    assert!(why.contains("the log that the server left is damaged at") && why.contains("goes on behind it"), "{why}");
}

#[test]
fn a_log_that_is_gone_is_named() {
    let mut bench = behind();
    let (_, file) = place_in_log(&bench);
    bench.insert(2);
    bench.cluster.kill();
    std::fs::remove_file(file).unwrap();
    let stream = bench.stream();
    let why = why_not(&*stream);
    assert!(why.contains("which the vault does not have, is not in"), "{why}");
}

/// What is seen where a server left its data.
fn look_through(cluster: &Cluster) -> Vec<Check> {
    let source = PostgresSource::new("", None, "");
    source.look_through(&cluster.data(), &Cancel::default()).map_err(told).unwrap()
}

fn worst(checks: &[Check]) -> Option<Outcome> {
    checks.iter().map(|check| check.outcome).max()
}

#[test]
fn a_cluster_that_was_killed_is_looked_through_and_starts_with_all_of_it() {
    for options in [&["--data-checksums"][..], &[]] {
        let mut cluster = Cluster::made_with(options);
        cluster.start();
        cluster.psql("create database shop");
        cluster.psql("create table t(n int primary key)");
        cluster.psql("insert into t select n from generate_series(1, 5000) n");
        cluster.kill();
        let checks = look_through(&cluster);
        // Without checksums, and without the extension in each database, nothing is claimed of pages.
        let (last, expected) = match options.is_empty() {
            true => ("indexes", Outcome::NotDone),
            false => ("checksums", Outcome::Passed),
        };
        assert_eq!(worst(&checks), Some(expected), "{checks:?}");
        assert_eq!(
            checks.iter().map(|check| check.check.as_str()).collect::<Vec<_>>(),
            ["recovery", "databases", last]
        );
        cluster.start();
        assert_eq!(cluster.psql("select count(*), sum(n) from t"), "5000|12502500");
        let source = PostgresSource::new("", None, "");
        let why = told(source.look_through(&cluster.data(), &Cancel::default()).unwrap_err());
        assert!(why.contains("a server may be running in"), "{why}");
    }
}

#[test]
fn damage_that_a_start_would_not_show_is_seen() {
    let mut cluster = Cluster::made_with(&["--data-checksums"]);
    cluster.start();
    cluster.psql("create table t(n int); insert into t select n from generate_series(1, 5000) n; checkpoint");
    let file = cluster.data().join(cluster.psql("select pg_relation_filepath('t')"));
    cluster.kill();
    std::fs::File::options().write(true).open(file).unwrap().write_all_at(&[0x5a; 64], 3 * 8192 + 4000).unwrap();
    let checks = look_through(&cluster);
    let damaged: Vec<&Check> = checks.iter().filter(|check| check.outcome == Outcome::Damaged).collect();
    assert!(
        matches!(damaged[..], [check] if check.check == "checksums" && check.what.contains("1 fault")),
        "{checks:?}"
    );
    // One that cannot even recover.
    std::fs::remove_dir_all(cluster.data().join("pg_wal")).unwrap();
    std::fs::create_dir(cluster.data().join("pg_wal")).unwrap();
    let source = PostgresSource::new("", None, "");
    match source.look_through(&cluster.data(), &Cancel::default()) {
        Ok(checks) => assert!(worst(&checks) > Some(Outcome::NotDone), "{checks:?}"),
        Err(error) => assert!(told(error).contains("ended by itself")),
    }
}

#[test]
fn nothing_is_read_behind_a_server_that_runs() {
    let bench = behind();
    bench.insert(2);
    bench.cluster.let_in("local all all reject\nlocal replication all reject\n");
    bench.cluster.psql("select pg_reload_conf()");
    wait_for("nobody is let in", || {
        let refused = bench.cluster.client("psql").args(["-XAtc", "select 1"]).output().unwrap();
        (!refused.status.success()).then_some(())
    });
    let stream = bench.stream();
    let why = why_not(&*stream);
    assert!(why.contains("a server may still be running in"), "{why}");
}
