//! A standby that follows a vault: everything the vault holds is in it before it is promoted, and nothing goes on from what is not whole.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use lifeboat_adapters::source::{PostgresSource, STANDBY_SUFFIX};
use lifeboat_core::runbook::Target;
use lifeboat_engine::port::{
    Applied, Cancel, FollowRequest, LogStream, PortError, Restorer, Source, Standby, StreamRequest, Streaming,
};
use lifeboat_vault::storage::Storage;

use super::streams::{durable, numbers};
use super::{Bench, DATASET, told};
use crate::pg_cluster::Cluster;
use crate::vault_world::wait_for;

impl Bench {
    pub(super) fn standby_place(&self) -> PathBuf {
        self.place_for("standby")
    }

    fn try_follow(&self, adopt: bool) -> Result<Box<dyn Standby>, PortError> {
        let request = FollowRequest { dataset: DATASET.into(), to: self.standby_place(), adopt };
        PostgresSource::new("", None, "").follow(&self.unlocked(), &request)
    }

    pub(super) fn follow(&self) -> Box<dyn Standby> {
        self.try_follow(false).map_err(told).unwrap()
    }
}

/// A stream of what was promoted, under the next epoch, into the same vault.
pub(super) fn second_stream(bench: &Bench, cluster: &Cluster) -> Box<dyn LogStream> {
    let source = PostgresSource::new(cluster.data(), None, cluster.place().join("spool"));
    let request = StreamRequest::new(DATASET, 2, cluster.place().join("state"));
    match source.stream(&[bench.vault.named()], &request).map_err(told).unwrap() {
        Streaming::Started(stream) => stream,
        Streaming::PointsOnly { why } => panic!("{why}"),
    }
}

pub(super) fn durable_now(stream: &dyn LogStream) -> Timestamp {
    let now = Timestamp::now();
    wait_for("the log in the vault", || stream.status().vaults["main"].durable_to.filter(|to| *to >= now))
}

/// Applies until everything up to a moment is in the copy.
pub(super) fn applied(standby: &mut dyn Standby, moment: Timestamp) -> Applied {
    wait_for("the standby to have it", || {
        let applied = standby.apply(&Cancel::default()).map_err(told).unwrap();
        applied.applied_to.is_some_and(|to| to >= moment).then_some(applied)
    })
}

pub(super) fn promote(standby: &mut dyn Standby) -> Applied {
    standby.promote(&Cancel::default()).map_err(told).unwrap()
}

pub(super) fn work_of(to: &Path) -> PathBuf {
    PathBuf::from(format!("{}{STANDBY_SUFFIX}", to.display()))
}

#[test]
fn a_standby_has_every_change_and_is_a_primary_once_it_is_promoted() {
    let bench = Bench::new();
    bench.table();
    let stream = bench.stream();
    bench.insert(1);
    let moment = durable(&bench, &*stream);
    let mut standby = bench.follow();
    let first = applied(&mut *standby, moment);
    assert!(!first.is_final);
    bench.insert(2);
    let second = applied(&mut *standby, durable(&bench, &*stream));
    assert!(!second.restarted && second.applied_to > first.applied_to, "{first:?} {second:?}");
    assert!(work_of(&bench.standby_place()).exists() && !bench.standby_place().exists());
    // Idle, it is as fresh as the vault.
    let later = moment + std::time::Duration::from_secs(2);
    applied(&mut *standby, later);
    bench.insert(3);
    durable(&bench, &*stream);
    stream.freeze(&Cancel::default()).map_err(told).unwrap();
    let promoted = promote(&mut *standby);
    assert!(promoted.is_final, "{promoted:?}");
    drop(standby);
    assert!(!work_of(&bench.standby_place()).exists());
    let copy = Cluster::adopted(&bench.standby_place());
    assert_eq!(numbers(&copy), "1 2 3");
    assert_eq!(copy.psql("select timeline_id from pg_control_checkpoint()"), "2");
    copy.psql("insert into t values (4)");
}

#[test]
fn a_standby_goes_on_where_it_was_when_it_comes_back() {
    let bench = Bench::new();
    bench.table();
    let stream = bench.stream();
    bench.insert(1);
    let mut standby = bench.follow();
    applied(&mut *standby, durable(&bench, &*stream));
    let laid = std::fs::metadata(work_of(&bench.standby_place()).join("PG_VERSION")).unwrap().modified().unwrap();
    drop(standby);
    bench.insert(2);
    for _ in 0..3 {
        bench.cluster.psql("select pg_switch_wal()");
        bench.cluster.psql("insert into t select 1000 + count(*) from t");
    }
    let moment = durable(&bench, &*stream);
    let mut standby = bench.follow();
    let back = standby.apply(&Cancel::default()).map_err(told).unwrap();
    assert!(!back.restarted, "{back:?}");
    applied(&mut *standby, moment);
    promote(&mut *standby);
    let promoted = std::fs::metadata(bench.standby_place().join("PG_VERSION")).unwrap().modified().unwrap();
    assert_eq!(laid, promoted, "a base backup was laid down again");
    assert_eq!(numbers(&Cluster::adopted(&bench.standby_place())), numbers(&bench.cluster));
}

#[test]
fn what_was_promoted_takes_a_timeline_of_its_own_and_goes_on_as_the_source() {
    let bench = Bench::new();
    bench.table();
    let stream = bench.stream();
    bench.insert(1);
    durable(&bench, &*stream);
    let mut standby = bench.follow();
    promote(&mut *standby);
    drop((stream, standby));
    // Its own stream, under the next epoch, and two base backups of it.
    let second = Cluster::adopted(&bench.standby_place());
    let stream = second_stream(&bench, &second);
    second.psql("insert into t values (2)");
    durable_now(&*stream);
    stream.take_point("main", &Cancel::default()).map_err(told).unwrap();
    second.psql("insert into t values (3)");
    let moment = durable_now(&*stream);
    // Whoever followed the first goes over to it; and it comes back as any does.
    let mut standby = bench.follow();
    applied(&mut *standby, moment);
    let to = bench.place_for("restored");
    bench.restore(Target::Newest, &to);
    let restored = Cluster::adopted(&to);
    assert_eq!(numbers(&restored), "1 2 3");
    assert_eq!(restored.psql("select timeline_id from pg_control_checkpoint()"), "3");
    promote(&mut *standby);
    let third = Cluster::adopted(&bench.standby_place());
    assert_eq!(numbers(&third), "1 2 3");
    let history = std::fs::read_to_string(third.data().join("pg_wal/00000003.history")).unwrap();
    let lines: Vec<&str> = history.lines().filter(|line| !line.trim().is_empty()).collect();
    assert!(lines.len() == 2 && lines[0].starts_with('1') && lines[1].starts_with('2'), "{history}");
}

#[test]
fn a_hole_is_not_crossed_and_a_newer_base_backup_is_gone_on_from() {
    let mut bench = Bench::new();
    bench.table();
    let stream = bench.stream();
    bench.insert(1);
    let mut standby = bench.follow();
    applied(&mut *standby, durable(&bench, &*stream));
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
    let moment = durable(&bench, &*stream);
    let mut restarted = false;
    wait_for("the standby to begin anew", || {
        let applied = standby.apply(&Cancel::default()).map_err(told).unwrap();
        restarted |= applied.restarted;
        applied.applied_to.filter(|to| *to >= moment)
    });
    assert!(restarted);
    promote(&mut *standby);
    assert_eq!(numbers(&Cluster::adopted(&bench.standby_place())), "1 2 3");
}

#[test]
fn a_piece_that_is_damaged_or_gone_is_named_and_nothing_is_promoted_without_it() {
    for damage in ["flipped", "gone"] {
        let bench = Bench::new();
        bench.table();
        let stream = bench.stream();
        bench.insert(1);
        let mut standby = bench.follow();
        applied(&mut *standby, durable(&bench, &*stream));
        drop(standby);
        let known = bench.vault.storage.list("log/").unwrap().len();
        for n in 2..=6 {
            bench.insert(n);
            durable(&bench, &*stream);
        }
        drop(stream);
        let logs: Vec<String> =
            bench.vault.storage.list("log/").unwrap().into_iter().map(|object| object.key).collect();
        let victim = &logs[known + (logs.len() - known) / 2];
        if damage == "gone" {
            bench.vault.storage.delete(victim).unwrap();
        } else {
            let mut bytes = bench.vault.storage.get(victim).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            bench.vault.storage.delete(victim).unwrap();
            bench.vault.storage.put(victim, &bytes).unwrap();
        }
        let mut standby = bench.follow();
        let why = told(standby.promote(&Cancel::default()).unwrap_err());
        assert!(why.contains("standby cannot be promoted") && why.contains("log"), "{damage}: {why}");
        assert!(!bench.standby_place().exists() && work_of(&bench.standby_place()).exists());
    }
}

#[test]
fn a_promotion_that_was_interrupted_is_ended_or_begun_again() {
    let bench = Bench::new();
    bench.table();
    let stream = bench.stream();
    bench.insert(1);
    let mut standby = bench.follow();
    applied(&mut *standby, durable(&bench, &*stream));
    drop(standby);
    let work = work_of(&bench.standby_place());
    let record_path = PathBuf::from(format!("{}.json", work.display()));
    let record = std::fs::read_to_string(&record_path).unwrap();
    assert!(record.contains("\"promoting\":false"), "{record}");
    std::fs::write(&record_path, record.replace("\"promoting\":false", "\"promoting\":true")).unwrap();
    // Its server was not promoted yet: it begins with a base backup, and has everything.
    let mut standby = bench.follow();
    bench.insert(2);
    let back = applied(&mut *standby, durable(&bench, &*stream));
    assert!(back.epoch == Some(1));
    drop(standby);
    // It was, and then the process was killed.
    std::fs::remove_file(work.join("standby.signal")).unwrap();
    // What kept timelines' numbers free was not removed any more.
    std::fs::write(work.join("pg_wal/00000002.history"), "").unwrap();
    let record = std::fs::read_to_string(&record_path).unwrap();
    std::fs::write(&record_path, record.replace("\"promoting\":false", "\"promoting\":true")).unwrap();
    let mut standby = bench.follow();
    promote(&mut *standby);
    assert!(!bench.standby_place().join("pg_wal/00000002.history").exists());
    assert_eq!(numbers(&Cluster::adopted(&bench.standby_place())), "1 2");
}

#[test]
fn a_source_that_allows_for_more_than_before_is_followed_and_restored() {
    let mut bench = Bench::new();
    bench.table();
    let stream = bench.stream();
    bench.insert(1);
    let mut standby = bench.follow();
    applied(&mut *standby, durable(&bench, &*stream));
    bench.cluster.set("max_connections", "50");
    bench.cluster.set("max_worker_processes", "20");
    bench.cluster.stop();
    bench.cluster.start();
    bench.insert(2);
    let second = durable(&bench, &*stream);
    bench.insert(3);
    let moment = durable(&bench, &*stream);
    wait_for("the standby to be started with more", || {
        standby.apply(&Cancel::default()).ok()?.applied_to.filter(|to| *to >= moment)
    });
    promote(&mut *standby);
    assert_eq!(numbers(&Cluster::adopted(&bench.standby_place())), "1 2 3");
    for (target, expected) in [(Target::At(second.to_string()), "1 2"), (Target::Newest, "1 2 3")] {
        let to = bench.place_for("restored");
        bench.restore(target, &to);
        assert_eq!(numbers(&Cluster::adopted(&to)), expected);
    }
}

#[test]
fn a_former_primary_becomes_a_standby_and_only_what_differs_is_written() {
    let mut bench = Bench::new();
    bench.table();
    bench.cluster.psql("create table filler as select n, repeat('x', 500) from generate_series(1, 20000) n");
    let filler = bench.cluster.psql("select pg_relation_filepath('filler')");
    let stream = bench.stream();
    bench.insert(1);
    durable(&bench, &*stream);
    stream.freeze(&Cancel::default()).map_err(told).unwrap();
    bench.cluster.stop();
    drop(stream);
    let former = bench.standby_place();
    std::fs::rename(bench.cluster.data(), &former).unwrap();
    assert!(told(bench.try_follow(false).err().unwrap()).contains("exists already"));
    let inode = |place: &Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(place.join(&filler)).unwrap());
    let before = inode(&former);
    let mut standby = bench.try_follow(true).map_err(told).unwrap();
    let applied = wait_for("everything", || {
        let applied = standby.apply(&Cancel::default()).map_err(told).unwrap();
        applied.is_final.then_some(applied)
    });
    assert!(applied.epoch == Some(1));
    assert_eq!(inode(&work_of(&former)), before, "files were made anew");
    promote(&mut *standby);
    assert_eq!(numbers(&Cluster::adopted(&former)), "1");
}

#[test]
fn a_standby_of_nothing_waits_and_says_nothing_of_how_far_it_is() {
    let bench = Bench::new();
    let mut standby = bench.follow();
    let applied = standby.apply(&Cancel::default()).map_err(told).unwrap();
    assert_eq!(applied, Applied::default());
    assert!(standby.promote(&Cancel::default()).is_err());
    // A point outside any stream can be followed, too: to its own end.
    bench.table();
    bench.insert(1);
    bench.point();
    let applied = wait_for("the point", || {
        let applied = standby.apply(&Cancel::default()).map_err(told).unwrap();
        applied.applied_to.is_some().then_some(applied)
    });
    assert!(applied.point.is_some());
    promote(&mut *standby);
    assert_eq!(numbers(&Cluster::adopted(&bench.standby_place())), "1");
}

#[test]
fn what_a_lost_primary_alone_had_is_written_down_before_it_follows() {
    let mut bench = Bench::new();
    bench.table();
    bench.cluster.psql("create table \"Odd name\"(t numeric, note text)");
    let stream = bench.stream();
    bench.insert(1);
    durable(&bench, &*stream);
    // From here on nothing reaches the vault.
    drop(stream);
    bench.insert(100);
    bench
        .cluster
        .psql("begin; savepoint s; insert into \"Odd name\" values (0.1234567890123456789012345, 'ä\"b'); commit");
    bench.cluster.psql("begin; insert into t values (999); rollback");
    bench.cluster.psql("update t set n = 101 where n = 1");
    bench.cluster.kill();
    let aside = bench.place_for("standby.aside-2-20261122T205035.123456Z");
    std::fs::rename(bench.cluster.data(), &aside).unwrap();
    let before = std::fs::read(aside.join("global/pg_control")).unwrap();

    let to = bench.place_for("elsewhere");
    bench.restore(Target::Newest, &to);
    let second = Cluster::adopted(&to);
    let stream = second_stream(&bench, &second);
    second.psql("insert into t values (2)");
    let moment = durable_now(&*stream);

    let mut standby = bench.follow();
    applied(&mut *standby, moment);
    let lost = std::fs::read_to_string(format!("{}.lost-writes.jsonl", aside.display())).unwrap();
    let mut lines: Vec<&str> = lost.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            r#"{"database":"postgres","table":"public.Odd name","row":{"t":0.1234567890123456789012345,"note":"ä\"b"}}"#,
            r#"{"database":"postgres","table":"public.t","row":{"n":100}}"#,
            r#"{"database":"postgres","table":"public.t","row":{"n":101}}"#,
        ]
    );
    assert_eq!(std::fs::read(aside.join("global/pg_control")).unwrap(), before, "what was set aside is only read");
    promote(&mut *standby);
    assert_eq!(numbers(&Cluster::adopted(&bench.standby_place())), "1 2");
}
