//! A standby that streams from the writer's own server: it has what no vault has yet, falls back to the vault, and hears nobody once it is
//! promoted.

use std::path::{Path, PathBuf};
use std::process::Command;

use lifeboat_core::plan::{Awaited, CommitMode};
use lifeboat_engine::port::{Applied, Cancel, LogStream, Standby, StreamFrom};

use super::quorum::told_of;
use super::standbys::{applied, promote};
use super::streams::{durable, numbers};
use super::{Bench, told};
use crate::pg_cluster::Cluster;
use crate::vault_world::wait_for;

/// Where a test's services of libpq's are written down.
const FILE: &str = "PGSERVICEFILE";
const OWN: &str = "LIFEBOAT_TEST_SERVICES";

/// Runs a test, by its path below this folder, in a process of its own, in which `file` says what services there are.
pub(super) fn with_services(test: &str, body: impl FnOnce(&Path)) {
    if std::env::var_os(OWN).is_some() {
        return body(&PathBuf::from(std::env::var_os(FILE).unwrap()));
    }
    let folder = tempfile::tempdir().unwrap();
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", &format!("source_postgres::{test}"), "--nocapture"]);
    let ran = again.env(OWN, "1").env(FILE, folder.path().join("services")).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout) + String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success() && said.contains("1 passed"), "{said}");
}

pub(super) fn write_service(file: &Path, cluster: &Cluster, port: u16) {
    let directory = cluster.socket_directory().display();
    std::fs::write(file, format!("[shop]\nhost={directory}\nport={port}\nuser=postgres\ndbname=postgres\n")).unwrap();
}

pub(super) fn shop() -> StreamFrom {
    StreamFrom { service: "shop".into(), follower: "south".into() }
}

impl Bench {
    /// What the server says of the standby that streams from it.
    fn receiver(&self, column: &str) -> String {
        self.cluster.psql(&format!(
            "select coalesce(max({column}::text), '') from pg_stat_replication where application_name like 'lifeboat_ledger_at_south_%'"
        ))
    }
}

pub(super) fn streams(standby: &mut dyn Standby) -> Applied {
    wait_for("the standby to stream", || {
        let applied = standby.apply(&Cancel::default()).map_err(told).unwrap();
        let streams = applied.streams.clone()?;
        (streams.problem.is_none() && streams.behind_bytes == Some(0)).then_some(applied)
    })
}

/// A bench whose standby has the first row, and is told to stream from where the service leads.
fn following(bench: &Bench) -> (Box<dyn LogStream>, Box<dyn Standby>) {
    bench.table();
    let stream = bench.stream();
    bench.insert(1);
    let moment = durable(bench, &*stream);
    let mut standby = bench.follow();
    standby.stream_from(Some(&shop()));
    applied(&mut *standby, moment);
    (stream, standby)
}

/// One that streams; nothing more reaches the vault once the stream is dropped.
fn streaming(file: &Path) -> (Bench, Box<dyn LogStream>, Box<dyn Standby>) {
    let bench = Bench::new();
    write_service(file, &bench.cluster, bench.cluster.port());
    let (stream, mut standby) = following(&bench);
    streams(&mut *standby);
    (bench, stream, standby)
}

#[test]
fn a_standby_has_what_no_vault_has_and_goes_on_with_the_vault_alone() {
    with_services("streamed::a_standby_has_what_no_vault_has_and_goes_on_with_the_vault_alone", |file| {
        let (mut bench, stream, mut standby) = streaming(file);
        drop(stream);
        bench.insert(2);
        applied(&mut *standby, bench.now());
        assert_eq!(bench.receiver("state"), "streaming");
        // What it says of itself there is what its server has made durable, and has replayed.
        let at = bench.cluster.psql("select pg_current_wal_flush_lsn()");
        wait_for("its word", || {
            (bench.receiver("flush_lsn") == at && bench.receiver("replay_lsn") == at).then_some(())
        });
        // No slot is needed for that.
        let slots = bench.cluster.psql("select count(*) from pg_replication_slots where slot_name like '%_at_south_%'");
        assert_eq!(slots, "0");
        // It comes back by itself.
        bench.cluster.stop();
        bench.cluster.start();
        bench.insert(3);
        applied(&mut *standby, bench.now());
        // The way there is cut: it says so, and has the vault.
        write_service(file, &bench.cluster, 1);
        bench.cluster.psql("select pg_terminate_backend(pid) from pg_stat_replication");
        bench.insert(4);
        let stream = bench.stream();
        let last = applied(&mut *standby, durable(&bench, &*stream));
        let streams = last.streams.unwrap();
        assert!(streams.behind_bytes.is_none() && streams.problem.is_some(), "{streams:?}");
        promote(&mut *standby);
        assert_eq!(numbers(&Cluster::adopted(&bench.standby_place())), "1 2 3 4");
    });
}

#[test]
fn what_only_a_lost_writer_had_is_in_the_standby_that_is_promoted() {
    with_services("streamed::what_only_a_lost_writer_had_is_in_the_standby_that_is_promoted", |file| {
        let (mut bench, stream, mut standby) = streaming(file);
        drop(stream);
        for n in 2..=50 {
            bench.insert(n);
        }
        applied(&mut *standby, bench.now());
        // Interrupted, it goes on where it was, which is ahead of the vault.
        drop(standby);
        let mut standby = bench.follow();
        standby.stream_from(Some(&shop()));
        bench.insert(51);
        let back = applied(&mut *standby, bench.now());
        assert!(!back.restarted);
        bench.cluster.kill();
        promote(&mut *standby);
        let copy = Cluster::adopted(&bench.standby_place());
        assert_eq!(copy.psql("select count(*), max(n) from t"), "51|51");
    });
}

#[test]
fn a_commit_that_waits_for_a_standby_waits_for_ever_once_that_is_promoted() {
    with_services("streamed::a_commit_that_waits_for_a_standby_waits_for_ever_once_that_is_promoted", |file| {
        let (mut bench, stream, mut standby) = streaming(file);
        let name = bench.receiver("application_name");
        bench.cluster.psql(&format!("alter system set synchronous_standby_names = '{name}'"));
        bench.cluster.psql("select pg_reload_conf()");
        wait_for("commits to wait for it", || (bench.receiver("sync_state") == "sync").then_some(()));
        for n in 2..=20 {
            bench.insert(n);
        }
        drop(stream);
        // The writer lives on, unaware of what goes on elsewhere.
        let promoted = promote(&mut *standby);
        assert!(promoted.streams.is_none(), "{promoted:?}");
        let mut late = bench.begin_insert(99);
        let waiting = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
        wait_for("the commit to wait", || (bench.cluster.psql(waiting) == "1").then_some(()));
        assert!(late.try_wait().unwrap().is_none(), "it was acknowledged");
        bench.cluster.kill();
        late.wait().unwrap();
        let copy = Cluster::adopted(&bench.standby_place());
        assert_eq!(copy.psql("select count(*), max(n) from t"), "20|20");
    });
}

#[test]
fn another_system_at_the_end_of_the_way_is_named_and_nothing_of_it_taken() {
    with_services("streamed::another_system_at_the_end_of_the_way_is_named_and_nothing_of_it_taken", |file| {
        let bench = Bench::new();
        let mut other = Cluster::made_with(&[]);
        other.start();
        other.psql("create table t(n int)");
        write_service(file, &other, other.port());
        let (stream, mut standby) = following(&bench);
        let problem = wait_for("the problem", || {
            let applied = standby.apply(&Cancel::default()).map_err(told).unwrap();
            applied.streams?.problem.filter(|problem| problem.contains("system"))
        });
        assert!(problem.contains("another system answers there"), "{problem}");
        // It is no later than the vault says, whatever the other's clock and log are.
        let applied_to = standby.apply(&Cancel::default()).map_err(told).unwrap().applied_to;
        assert!(applied_to <= stream.status().vaults["main"].durable_to);
        // A way that is named anew is taken.
        write_service(file, &bench.cluster, bench.cluster.port());
        streams(&mut *standby);
        promote(&mut *standby);
        assert_eq!(numbers(&Cluster::adopted(&bench.standby_place())), "1");
    });
}

#[test]
fn what_is_acknowledged_while_commits_wait_for_the_standby_is_in_it() {
    with_services("streamed::what_is_acknowledged_while_commits_wait_for_the_standby_is_in_it", |file| {
        let mut bench = Bench::new();
        write_service(file, &bench.cluster, bench.cluster.port());
        bench.table();
        let for_south = |mode| Awaited { vaults: Vec::new(), sites: vec!["south".into()], copies: 1, mode };
        let stream = bench.waiting_for(&[bench.vault.named()], for_south(CommitMode::SyncPreferred));
        told_of(&*stream, "nobody to wait for", false, "0 of the standby at south; 1 needed");
        bench.insert(1);
        let moment = durable(&bench, &*stream);
        let mut standby = bench.follow();
        standby.stream_from(Some(&shop()));
        applied(&mut *standby, moment);
        told_of(&*stream, "commits wait", true, "for 1 of the standby at south");
        for n in 2..=20 {
            bench.insert(n);
        }
        // Its host goes away: commits wait for it, and then go on without it, which is said.
        drop(standby);
        let mut late = bench.begin_insert(21);
        told_of(&*stream, "to be given up", false, "0 of the standby at south; 1 needed");
        assert!(late.wait().unwrap().success());
        drop(stream);
        // Where it is required it is waited for.
        let stream = bench.waiting_for(&[bench.vault.named()], for_south(CommitMode::SyncRequired));
        told_of(&*stream, "commits wait", true, "for 1 of the standby at south");
        let mut late = bench.begin_insert(22);
        wait_for("they stand still", || stream.status().problem);
        assert!(late.try_wait().unwrap().is_none(), "acknowledged without it");
        let mut standby = bench.follow();
        standby.stream_from(Some(&shop()));
        wait_for("it to be acknowledged", || {
            standby.apply(&Cancel::default()).map_err(told).unwrap();
            late.try_wait().unwrap()
        });
        for n in 23..=40 {
            bench.insert(n);
        }
        // The writer is lost with its vault's stream; the standby alone has all of it.
        bench.cluster.kill();
        drop(stream);
        promote(&mut *standby);
        let copy = Cluster::adopted(&bench.standby_place());
        copy.psql("alter system reset synchronous_standby_names");
        copy.psql("select pg_reload_conf()");
        assert_eq!(copy.psql("select count(*), max(n) from t"), "40|40");
    });
}
