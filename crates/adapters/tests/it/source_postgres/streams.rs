//! The log as a stream: what it promises comes back, at any moment, through restarts and failures.

use std::time::Duration;

use jiff::Timestamp;
use lifeboat_core::runbook::Target;
use lifeboat_engine::port::{Cancel, LogStream, Source, StreamRequest, Streaming};

use super::{Bench, DATASET, told};
use crate::pg_cluster::Cluster;
use crate::vault_world::wait_for;

impl Bench {
    pub(super) fn stream(&self) -> Box<dyn LogStream> {
        let request = StreamRequest::new(DATASET, 1, self.cluster.place().join("state"));
        match self.source().stream(&[self.vault.named()], &request).map_err(told).unwrap() {
            Streaming::Started(stream) => stream,
            Streaming::PointsOnly { why } => panic!("{why}"),
        }
    }

    /// The server's own clock.
    pub(super) fn now(&self) -> Timestamp {
        let text = self.cluster.psql("select (extract(epoch from clock_timestamp()) * 1000000)::bigint");
        Timestamp::from_microsecond(text.parse().unwrap()).unwrap()
    }

    pub(super) fn insert(&self, n: u64) {
        self.cluster.psql(&format!("insert into t values ({n})"));
    }

    pub(super) fn table(&self) {
        self.cluster.psql("create table t(n int primary key)");
    }
}

/// Waits until everything committed up to now can be restored, as the stream says.
pub(super) fn durable(bench: &Bench, stream: &dyn LogStream) -> Timestamp {
    let now = bench.now();
    wait_for("the log in the vault", || {
        let status = stream.status();
        let main = &status.vaults["main"];
        if let Some(problem) = &main.problem {
            eprintln!("{problem}");
        }
        main.durable_to.filter(|durable| *durable >= now)
    });
    now
}

pub(super) fn numbers(cluster: &Cluster) -> String {
    cluster.psql("select coalesce(string_agg(n::text, ' ' order by n), '') from t")
}

#[test]
fn what_a_stream_calls_durable_comes_back_at_any_moment() {
    let bench = Bench::new();
    bench.table();
    let stream = bench.stream();
    durable(&bench, &*stream);
    bench.insert(1);
    let first = durable(&bench, &*stream);
    bench.insert(2);
    bench.insert(3);
    let third = durable(&bench, &*stream);
    bench.cluster.psql("select pg_switch_wal()");
    bench.insert(4);
    durable(&bench, &*stream);
    bench.cluster.psql("delete from t");
    durable(&bench, &*stream);
    drop(stream);
    for (target, expected) in
        [(Target::At(first.to_string()), "1"), (Target::At(third.to_string()), "1 2 3"), (Target::Newest, "")]
    {
        let to = bench.place_for("restored");
        let restored = bench.restore(target.clone(), &to);
        let copy = Cluster::adopted(&to);
        assert_eq!(numbers(&copy), expected, "{target:?}: {restored:?}");
    }
    // The base backup alone, with the log that makes it a database.
    let points = bench.unlocked().points(None).unwrap().points;
    let to = bench.place_for("restored");
    bench.restore(Target::Point(points[0].id.clone()), &to);
    assert_eq!(Cluster::adopted(&to).psql("select count(*) from t"), "0");
}

#[test]
fn a_stream_goes_on_where_it_was_after_everything_was_killed() {
    let mut bench = Bench::new();
    bench.table();
    let stream = bench.stream();
    bench.insert(1);
    durable(&bench, &*stream);
    let position = |stream: &dyn LogStream| stream.status().vaults["main"].position.clone().unwrap();
    let before = position(&*stream);
    bench.cluster.kill();
    bench.cluster.start();
    bench.insert(2);
    durable(&bench, &*stream);
    drop(stream);
    bench.insert(3);
    let stream = bench.stream();
    durable(&bench, &*stream);
    let after = position(&*stream);
    assert_eq!(before.split(':').next(), after.split(':').next(), "another chain");
    drop(stream);
    assert_eq!(bench.unlocked().points(None).unwrap().points.len(), 1, "another base backup");
    let to = bench.place_for("restored");
    bench.restore(Target::Newest, &to);
    assert_eq!(numbers(&Cluster::adopted(&to)), "1 2 3");
}

#[test]
fn log_that_the_server_threw_away_begins_a_new_chain_and_the_hole_is_not_crossed() {
    let mut bench = Bench::new();
    bench.table();
    let stream = bench.stream();
    bench.insert(1);
    durable(&bench, &*stream);
    drop(stream);
    let slot = bench.cluster.psql("select slot_name from pg_replication_slots where slot_name like 'lifeboat%'");
    bench.cluster.psql(&format!("select pg_drop_replication_slot('{slot}')"));
    bench.insert(2);
    for _ in 0..3 {
        bench.cluster.psql("select pg_switch_wal()");
        bench.cluster.psql("checkpoint");
    }
    bench.cluster.stop();
    bench.cluster.start();
    let stream = bench.stream();
    bench.insert(3);
    durable(&bench, &*stream);
    drop(stream);
    let to = bench.place_for("restored");
    bench.restore(Target::Newest, &to);
    assert_eq!(numbers(&Cluster::adopted(&to)), "1 2 3");
    assert_eq!(bench.unlocked().points(None).unwrap().points.len(), 2);
}

#[test]
fn a_freeze_ships_the_last_change_whether_the_server_runs_or_was_stopped() {
    for stopped in [false, true] {
        let mut bench = Bench::new();
        bench.table();
        let stream = bench.stream();
        bench.insert(1);
        durable(&bench, &*stream);
        bench.insert(2);
        if stopped {
            bench.cluster.stop();
        }
        stream.freeze(&Cancel::default()).map_err(told).unwrap();
        assert!(stream.status().vaults["main"].frozen);
        drop(stream);
        let to = bench.place_for("restored");
        bench.restore(Target::Newest, &to);
        assert_eq!(numbers(&Cluster::adopted(&to)), "1 2", "stopped: {stopped}");
    }
}

#[test]
fn a_gap_in_the_log_is_loud() {
    use lifeboat_vault::storage::Storage;
    let bench = Bench::new();
    bench.table();
    let stream = bench.stream();
    for n in 0..5 {
        bench.insert(n);
        durable(&bench, &*stream);
    }
    drop(stream);
    let logs: Vec<String> = bench.vault.storage.list("log/").unwrap().into_iter().map(|object| object.key).collect();
    bench.vault.storage.delete(&logs[logs.len() - 3]).unwrap();
    let to = bench.place_for("restored");
    let why = told(bench.try_restore(Target::Newest, &to, false).unwrap_err());
    assert!(why.contains("is missing") || why.contains("not whole"), "{why}");
    assert!(!to.exists());
}

#[test]
fn an_idle_server_stays_durable() {
    let bench = Bench::new();
    bench.table();
    let stream = bench.stream();
    let first = durable(&bench, &*stream);
    let later = first + Duration::from_secs(2);
    wait_for("a mark", || stream.status().vaults["main"].durable_to.filter(|durable| *durable > later));
}

/// The name that the stream has at the server.
fn standby_name(bench: &Bench) -> String {
    bench.cluster.psql("select slot_name from pg_replication_slots where slot_name like 'lifeboat%'")
}

#[test]
fn where_commits_wait_for_the_vault_none_is_lost() {
    let mut bench = Bench::new();
    bench.table();
    let stream = bench.stream();
    durable(&bench, &*stream);
    let name = standby_name(&bench);
    bench.cluster.psql(&format!("alter system set synchronous_standby_names = '{name}'"));
    bench.cluster.psql("select pg_reload_conf()");
    // It connects again, and is one that is waited for.
    drop(stream);
    let stream = bench.stream();
    bench.cluster.wait_until("commits wait for the stream", |cluster| {
        cluster.psql("select count(*) from pg_stat_replication where sync_state = 'sync'") == "1"
    });
    for n in 1..=20 {
        bench.insert(n);
    }
    // At this very moment everything ends, vault and server.
    bench.vault.storage.set_gone(true);
    bench.cluster.kill();
    drop(stream);
    bench.vault.storage.repair();
    let to = bench.place_for("restored");
    bench.restore(Target::Newest, &to);
    assert_eq!(Cluster::adopted(&to).psql("select count(*) from t"), "20");
}

#[test]
fn commits_are_not_told_that_a_vault_will_apply_them() {
    let bench = Bench::new();
    bench.table();
    let stream = bench.stream();
    durable(&bench, &*stream);
    let name = standby_name(&bench);
    drop(stream);
    bench.cluster.psql(&format!("alter system set synchronous_standby_names = 'ANY 1 ({name}, other)'"));
    bench.cluster.psql("alter system set synchronous_commit = remote_apply");
    bench.cluster.psql("select pg_reload_conf()");
    let stream = bench.stream();
    let problem = wait_for("what is wrong", || stream.status().vaults["main"].problem.clone());
    assert!(problem.contains("synchronous_commit = remote_apply"), "{problem}");
}
