//! Commits that wait for vaults: what was acknowledged is in the vault, and whether they wait is told as it is.

use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};

use lifeboat_core::desired::CommitsWait;
use lifeboat_core::plan::{Awaited, CommitMode};
use lifeboat_core::runbook::Target;
use lifeboat_engine::port::{LogStream, NamedVault, Source, StreamRequest, Streaming};

use super::streams::{durable, numbers};
use super::{Bench, DATASET, told};
use crate::pg_cluster::Cluster;
use crate::vault_world::{VaultWorld, wait_for};

const SETTING: &str = "select current_setting('synchronous_standby_names')";

impl Bench {
    pub(super) fn synchronous(&self, mode: CommitMode, others: &[NamedVault], copies: u32) -> Box<dyn LogStream> {
        let vaults: Vec<NamedVault> = std::iter::once(self.vault.named()).chain(others.iter().cloned()).collect();
        let names = vaults.iter().map(|vault| vault.name.clone()).collect();
        self.waiting_for(&vaults, Awaited { vaults: names, sites: Vec::new(), copies, mode })
    }

    pub(super) fn waiting_for(&self, vaults: &[NamedVault], awaited: Awaited) -> Box<dyn LogStream> {
        let mut request = StreamRequest::new(DATASET, 1, self.cluster.place().join("state"));
        request.awaited = Some(awaited);
        match self.source().stream(vaults, &request).map_err(told).unwrap() {
            Streaming::Started(stream) => stream,
            Streaming::PointsOnly { why } => panic!("{why}"),
        }
    }

    /// A commit that may have to wait.
    pub(super) fn begin_insert(&self, n: u64) -> Child {
        let mut command = self.cluster.client("psql");
        command.args(["-XAtq", "-c", &format!("insert into t values ({n})")]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }
}

pub(super) fn told_of(stream: &dyn LogStream, what: &str, wait: bool, says: &str) -> CommitsWait {
    wait_for(what, || stream.status().commits.filter(|commits| commits.wait == wait && commits.what.contains(says)))
}

#[test]
fn what_is_acknowledged_is_in_the_vault_and_without_it_nothing_is_acknowledged() {
    let mut bench = Bench::new();
    bench.table();
    let stream = bench.synchronous(CommitMode::SyncRequired, &[], 1);
    durable(&bench, &*stream);
    told_of(&*stream, "commits wait", true, "for 1 of main");
    for n in 1..=20 {
        bench.insert(n);
    }
    bench.vault.storage.set_gone(true);
    let mut waiting = bench.begin_insert(21);
    let problem = wait_for("they stand still", || stream.status().problem);
    assert!(problem.contains("do not go on"), "{problem}");
    assert!(stream.status().commits.unwrap().wait, "required, and given up");
    assert!(waiting.try_wait().unwrap().is_none(), "acknowledged without the vault");
    bench.vault.storage.repair();
    assert!(waiting.wait().unwrap().success());
    for n in 22..=30 {
        bench.insert(n);
    }
    // At this very moment everything ends, vault and server.
    bench.vault.storage.set_gone(true);
    bench.cluster.kill();
    drop(stream);
    bench.vault.storage.repair();
    let to = bench.place_for("restored");
    let restored = bench.restore(Target::Newest, &to);
    assert!(restored.notes.iter().any(|note| note.contains("waited for vaults")), "{:?}", restored.notes);
    // A copy waits for nobody.
    let copy = Cluster::adopted(&to);
    assert_eq!(copy.psql(SETTING), "");
    assert_eq!(copy.psql("select count(*) from t"), "30");
    copy.psql("insert into t values (31)");
}

#[test]
fn preferred_goes_on_without_the_vault_says_so_and_waits_again() {
    let bench = Bench::new();
    bench.table();
    let stream = bench.synchronous(CommitMode::SyncPreferred, &[], 1);
    durable(&bench, &*stream);
    let before = told_of(&*stream, "commits wait", true, "for 1 of main");
    bench.vault.storage.set_gone(true);
    // It waits for a while, and then no more.
    assert!(bench.begin_insert(1).wait().unwrap().success());
    let gone = told_of(&*stream, "commits do not wait", false, "too few");
    assert!(gone.since >= before.since);
    assert_eq!(bench.cluster.psql(SETTING), "");
    bench.insert(2);
    bench.vault.storage.repair();
    told_of(&*stream, "commits wait again", true, "for 1 of main");
    bench.insert(3);
    assert_eq!(numbers(&bench.cluster), "1 2 3");
}

#[test]
fn one_of_two_vaults_is_enough_where_one_copy_is() {
    let bench = Bench::new();
    bench.table();
    let place = bench.place_for("elsewhere");
    std::fs::create_dir(&place).unwrap();
    let second = VaultWorld::new(&place, "second");
    let stream = bench.synchronous(CommitMode::SyncRequired, &[second.named()], 1);
    durable(&bench, &*stream);
    told_of(&*stream, "commits wait", true, "for 1 of main, second");
    wait_for("both", || {
        let quorum = "select count(*) from pg_stat_replication where sync_state = 'quorum'";
        (bench.cluster.psql(quorum) == "2").then_some(())
    });
    second.storage.set_gone(true);
    for n in 1..=5 {
        bench.insert(n);
    }
    second.storage.repair();
    bench.vault.storage.set_gone(true);
    bench.insert(6);
    let status = stream.status();
    assert!(status.problem.is_none() && status.commits.unwrap().wait);
}

#[test]
fn who_changes_the_setting_is_told_of_and_it_is_set_again() {
    let bench = Bench::new();
    bench.table();
    let stream = bench.synchronous(CommitMode::SyncRequired, &[], 1);
    durable(&bench, &*stream);
    told_of(&*stream, "commits wait", true, "for 1 of main");
    let ours = bench.cluster.psql(SETTING);
    bench.cluster.psql("alter system set synchronous_standby_names = 'ANY 1 (somebody)'");
    bench.cluster.psql("select pg_reload_conf()");
    told_of(&*stream, "it is noticed", false, "ANY 1 (somebody)");
    told_of(&*stream, "it is set again", true, "for 1 of main");
    assert_eq!(bench.cluster.psql(SETTING), ours);
    for (setting, says) in
        [("synchronous_commit = local", "wait for nobody"), ("synchronous_commit = remote_apply", "no vault applies")]
    {
        bench.cluster.psql(&format!("alter system set {setting}"));
        bench.cluster.psql("select pg_reload_conf()");
        told_of(&*stream, setting, false, says);
    }
    bench.cluster.psql("alter system reset synchronous_commit");
    bench.cluster.psql("select pg_reload_conf()");
    told_of(&*stream, "they wait again", true, "for 1 of main");
}

#[test]
fn who_goes_by_a_vaults_name_voids_it() {
    let bench = Bench::new();
    bench.table();
    let stream = bench.synchronous(CommitMode::SyncRequired, &[], 1);
    durable(&bench, &*stream);
    told_of(&*stream, "commits wait", true, "for 1 of main");
    let name = bench.cluster.psql("select application_name from pg_stat_replication where sync_state = 'quorum'");
    let mut impostor = bench.cluster.client("pg_receivewal");
    let directory = bench.place_for("impostor");
    std::fs::create_dir(&directory).unwrap();
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o777)).unwrap();
    impostor.args(["--synchronous", "-D"]).arg(&directory).env("PGAPPNAME", &name);
    let mut impostor = impostor.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    told_of(&*stream, "a stranger of that name", false, "under the name of a vault");
    impostor.kill().unwrap();
    impostor.wait().unwrap();
    told_of(&*stream, "it is gone", true, "for 1 of main");
}

#[test]
fn what_was_set_is_taken_back_when_nothing_is_to_wait_any_more() {
    let bench = Bench::new();
    bench.table();
    let stream = bench.synchronous(CommitMode::SyncRequired, &[], 1);
    durable(&bench, &*stream);
    told_of(&*stream, "commits wait", true, "for 1 of main");
    drop(stream);
    assert_ne!(bench.cluster.psql(SETTING), "");
    let stream = bench.stream();
    wait_for("it is taken back", || bench.cluster.psql(SETTING).is_empty().then_some(()));
    assert!(stream.status().commits.is_none());
    // What others set is theirs.
    bench.cluster.psql("alter system set synchronous_standby_names = 'ANY 1 (somebody)'");
    bench.cluster.psql("select pg_reload_conf()");
    drop(stream);
    let stream = bench.stream();
    wait_for("it streams", || stream.status().vaults["main"].durable_to);
    assert_eq!(bench.cluster.psql(SETTING), "ANY 1 (somebody)");
}
