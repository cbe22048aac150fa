//! With a plan: checked, backed up by name and by a service of libpq's, streamed by the daemon, brought back at any moment, with everything
//! killed once.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};

use jiff::Timestamp;
use serde_json::Value;

use super::{insert, rows, steady, table};
use crate::machine::{Machine, await_that, files_below};
use crate::pg_cluster::Cluster;

/// A plan with one cluster in it. `source`: how its server is reached.
fn plan(machine: &Machine, source: &str, owner: &str) -> String {
    let recipient = |file: &str| machine.line(&format!("key inspect {file}")).ends(0).out.trim().to_owned();
    format!(
        r#"[plan]
name = "shop"
accepted-by = "me, 2026-11-21"

[arbiter]
url = "{root}/arbiter"

[site.home]
reach = "local"
root = "{root}/site"
address = "127.0.0.1"

[site.spare]
reach = "ssh"
host.spare = "192.0.2.10"

[vault.main]
url = "{root}/backup"

[key]
recipients = ["{first}", "{second}"]
{owner}
[service.shop]
strategy = "backup-restore"
primary = "home"
recovery = ["spare"]
rpo = "1m"
rto = "4h"

[service.shop.component.db.dataset.ledger]
kind = "persistent"
postgres = {{ {source} }}
protect = [{{ to = "main", base = {{ every = "1d", keep = {{ last = 7 }} }}, log = "stream" }}]
"#,
        root = machine.root().display(),
        first = recipient("owner.key"),
        second = recipient("paper.key"),
    )
}

pub(super) fn planned(machine: &Machine, source: &str) {
    planned_with(machine, source, |_, text| text);
}

/// With something in the plan changed.
pub(super) fn planned_with(machine: &Machine, source: &str, change: impl Fn(&Machine, String) -> String) {
    for key in ["owner.key", "paper.key"] {
        machine.line(&format!("key new -o {key}")).ends(0);
    }
    machine.shell(&format!("mkdir {}", machine.at("arbiter"))).ends(0);
    machine.write("work/lifeboat.toml", change(machine, plan(machine, source, "")));
    let made = machine.line("--json vault init --host alpha").ends(0).json();
    let owner = format!("owner = {}\n", made["owner"]);
    machine.write("work/lifeboat.toml", change(machine, plan(machine, source, &owner)));
}

/// Whoever is let in over the network needs none of the server's files, and no privileges.
#[test]
fn a_service_of_libpqs_is_enough_to_back_up_and_nobody_can_do_it() {
    let cluster = Cluster::started();
    table(&cluster);
    insert(&cluster, 1);
    cluster.psql("create role boat login replication password 'tide'");
    cluster.let_in(
        "local all postgres trust\nhost all boat 127.0.0.1/32 scram-sha-256\nhost replication boat 127.0.0.1/32 scram-sha-256\n",
    );
    cluster.psql("select pg_reload_conf()");
    let machine = Machine::unprivileged();
    planned(&machine, &format!("path = \"{}\", service = \"shop\"", cluster.data().display()));
    let checked = machine.line("check").ends(0);
    assert!(checked.out.contains("nothing wrong found") && !checked.err.contains("PostgreSQL"), "{}", checked.screen());
    let absent = machine.line("backup").ends(1);
    insta::assert_snapshot!(steady(&cluster, &absent.screen()), @r#"
    error: no recovery point was taken into vault `main`
      because: there is no service `shop` in /home/.pg_service.conf or /etc/postgresql-common/pg_service.conf: write a section [shop] there, or name another
    help: see that its server runs and lets this user in with the right to replicate; then run the backup again
    exit 1
    "#);
    machine.write(
        "home/.pg_service.conf",
        format!("[shop]\nhost=127.0.0.1\nport={}\nuser=boat\ndbname=postgres\n", cluster.port()),
    );
    machine.write("home/.pgpass", format!("127.0.0.1:{}:*:boat:tide\n", cluster.port()));
    fs::set_permissions(machine.path("home/.pgpass"), fs::Permissions::from_mode(0o600)).unwrap();
    let ran = machine.line("backup ledger").ends(0);
    assert!(ran.err.is_empty(), "{}", ran.err);
    let points = machine.line("--json points").ends(0).json();
    assert_eq!((points.as_array().unwrap().len(), &points[0]["dataset"]), (1, &"ledger".into()));

    let out = machine.at("out");
    let ran = machine.line(&format!("restore ledger --key owner.key --to {out}")).ends(0);
    assert!(ran.err.is_empty() && ran.out.contains("verified"), "{}", ran.screen());
    // It is nobody's, as who restored it; the server's user takes it over.
    let to = cluster.place().join("restored");
    let moved = std::process::Command::new("cp").arg("-a").arg("--").args([machine.path("out"), to.clone()]).status();
    assert!(moved.unwrap().success());
    let owned = std::process::Command::new("chown").args(["-hR", "--reference"]).arg(cluster.data()).arg(&to).status();
    assert!(owned.unwrap().success());
    assert_eq!(rows(&Cluster::adopted(&to)), "1");
}

/// A planned machine, its server, and the daemon that streams it.
pub(super) struct Day {
    pub(super) machine: Machine,
    pub(super) cluster: Cluster,
    pub(super) daemon: Option<Child>,
}

impl Day {
    pub(super) fn new() -> Day {
        Day::with(|_, text| text)
    }

    pub(super) fn with(change: impl Fn(&Machine, String) -> String) -> Day {
        let cluster = Cluster::started();
        table(&cluster);
        let machine = Machine::new();
        planned_with(&machine, &format!("path = \"{}\"", cluster.data().display()), change);
        Day { machine, cluster, daemon: None }
    }

    pub(super) fn protect(&mut self) {
        // Into a file: nobody reads along.
        let said = File::options().create(true).append(true).open(self.machine.path("said")).unwrap();
        let mut command = self.machine.command(&["protect", "--site", "home"]);
        let child = command.stdout(said.try_clone().unwrap()).stderr(said).stdin(Stdio::null()).spawn();
        self.daemon = Some(child.unwrap());
    }

    fn kill_protect(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    pub(super) fn end_protect(&mut self) -> Option<i32> {
        let mut daemon = self.daemon.take().unwrap();
        let pid = rustix::process::Pid::from_child(&daemon);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        daemon.wait().unwrap().code()
    }

    fn now(&self) -> Timestamp {
        let text = self.cluster.psql("select (extract(epoch from clock_timestamp()) * 1000000)::bigint");
        Timestamp::from_microsecond(text.parse().unwrap()).unwrap()
    }

    /// What `status` says of the one vault.
    pub(super) fn status(&self) -> Value {
        let ran = self.machine.line("--json status");
        assert!(matches!(ran.code, 0 | 3), "{}", ran.err);
        ran.json()["services"][0].clone()
    }

    fn durable_to(&self) -> Option<Timestamp> {
        self.status()["datasets"][0]["vaults"][0]["durable_to"].as_str().map(|text| text.parse().unwrap())
    }

    /// Waits until `status` says that all that was committed up to now can be restored. Answers a moment of then.
    pub(super) fn durable(&self) -> Timestamp {
        let now = self.now();
        await_that("what was committed is durable", || self.durable_to().is_some_and(|to| to >= now));
        now
    }

    fn restored(&self, more: &str) -> (Cluster, Value) {
        let to = self.cluster.place().join("restored");
        let line = format!("--json restore ledger --key owner.key --to {} {more}", to.display());
        let told = self.machine.line(&line).ends(0).json();
        (Cluster::adopted(&to), told)
    }

    fn rows_of(&self, more: &str) -> String {
        rows(&self.restored(more).0)
    }
}

impl Drop for Day {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(self.machine.path("said")).unwrap_or_default());
        }
    }
}

#[test]
fn what_the_daemon_streams_is_restored_to_any_moment_whatever_was_killed() {
    let mut day = Day::new();
    assert_eq!(day.durable_to(), None, "before anything ran");
    day.protect();
    // The first base backup is of a moment after the first question.
    day.durable();
    let empty = day.durable();
    insert(&day.cluster, 1);
    let first = day.durable();
    insert(&day.cluster, 2);
    let second = day.durable();

    // What is committed while nobody ships it is not called durable, and what was called so is there.
    day.kill_protect();
    let before = day.now();
    insert(&day.cluster, 3);
    let claimed = day.durable_to().unwrap();
    assert!(second <= claimed && claimed < before, "{second} {claimed} {before}");
    assert_eq!(day.rows_of(""), "1 2");

    day.protect();
    let third = day.durable();
    day.cluster.kill();
    let down = Timestamp::now();
    await_that("the daemon's trouble is told", || day.status()["hosts"][0]["problem"].is_string());
    let told = day.machine.line("status").ends(3).out;
    assert!(told.contains("ledger at home: in trouble") && told.contains("was lost"), "{told}");
    assert!(day.durable_to().unwrap() < down);
    day.cluster.start();
    insert(&day.cluster, 4);
    day.durable();
    assert_eq!(day.end_protect(), Some(0));

    let (copy, told) = day.restored("");
    assert_eq!(rows(&copy), "1 2 3 4");
    assert!(told["as_of"].as_str() > told["taken_at"].as_str(), "{told}");
    drop(copy);
    for (moment, expected) in [(empty, ""), (first, "1"), (third, "1 2 3")] {
        assert_eq!(day.rows_of(&format!("--at {moment}")), expected, "{moment}");
    }
    // It went on where it was: one base backup is all.
    let points = day.machine.line("--json points ledger").ends(0).json();
    assert_eq!(points.as_array().unwrap().len(), 1, "{points}");
    assert_eq!(day.rows_of("--point 1"), "");
    // Without the plan as well: the vault knows that there is a log.
    let to = day.cluster.place().join("restored");
    let line = format!("restore ledger --vault {} --key paper.key --to {}", day.machine.at("backup"), to.display());
    day.machine.line(&line).ends(0);
    assert_eq!(rows(&Cluster::adopted(&to)), "1 2 3 4");
}

#[test]
fn a_plan_s_cluster_that_does_not_run_is_no_recovery_point() {
    let mut day = Day::new();
    day.cluster.stop();
    let ran = day.machine.line("backup").ends(1);
    insta::assert_snapshot!(steady(&day.cluster, &ran.screen()), @r#"
    error: no recovery point was taken into vault `main`
      because: no server runs in /pg/data: it has no postmaster.pid; start the server, or see that this is its data directory
    help: see that its server runs and lets this user in with the right to replicate; then run the backup again
    exit 1
    "#);
    let ran = day.machine.line("protect --site home --once").ends(1);
    insta::assert_snapshot!(steady(&day.cluster, &ran.screen()), @r#"
    warning: ledger into main: no recovery point was taken into vault `main`: no server runs in /pg/data: it has no postmaster.pid; start the server, or see that this is its data directory
    error: 1 of 1 recovery points could not be taken
    exit 1
    "#);
    assert_eq!(day.machine.line("--json points").ends(0).json().as_array().unwrap().len(), 0);
    // The daemon waits for it, and says so.
    day.protect();
    await_that("what it waits for is told", || {
        day.status()["hosts"][0]["problem"].as_str().is_some_and(|problem| problem.contains("no server runs in"))
    });
    assert_eq!(day.durable_to(), None);
    day.cluster.start();
    day.durable();
}

#[test]
fn damage_in_the_log_is_told_before_anything_is_touched() {
    let mut day = Day::new();
    day.protect();
    day.durable();
    let earlier = files_below(&day.machine.path("backup/log"));
    insert(&day.cluster, 1);
    day.durable();
    assert_eq!(day.end_protect(), Some(0));
    day.cluster.stop();
    // Of those that the base backup needs to go on; the others are marks.
    let mut pieces = files_below(&day.machine.path("backup/log"));
    pieces.retain(|piece| !earlier.contains(piece));
    let largest = pieces.iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut damaged = fs::read(largest).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(largest, damaged).unwrap();
    let (data, name) = (day.cluster.data(), largest.strip_prefix(day.machine.path("backup")).unwrap());
    let ran =
        day.machine.line(&format!("restore ledger --key owner.key --in-place --yes --to {}", data.display())).ends(1);
    assert!(ran.err.contains(&name.display().to_string()), "{}", ran.err);
    assert!(ran.err.contains("restore from another vault, or to "), "{}", ran.err);
    day.cluster.start();
    assert_eq!(rows(&day.cluster), "1");
}

/// The plan to copy, with keys of one's own in it.
#[test]
fn the_example_to_copy_has_nothing_wrong_with_it() {
    let machine = Machine::new();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/postgres/lifeboat.toml");
    let mut text = fs::read_to_string(example).unwrap();
    machine.write("work/lifeboat.toml", text.clone());
    assert!(machine.line("check").ends(2).err.contains("age1…office"));
    for holder in ["office", "paper", "south", "north"] {
        machine.line(&format!("key new -o {holder}.key")).ends(0);
        let recipient = machine.line(&format!("key inspect {holder}.key")).ends(0).out.trim().to_owned();
        text = text.replace(&format!("age1…{holder}"), &recipient);
    }
    text = text.replace("owner = \"…\"", "owner = \"0af35126fc44eb435cb61585f3775a9b\"");
    machine.write("work/lifeboat.toml", text);
    let checked = machine.line("check").ends(0);
    assert!(checked.out.contains("nothing wrong found") && checked.err.is_empty(), "{}", checked.screen());
}
