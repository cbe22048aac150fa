//! The demo, run as a newcomer runs it: it proves what it says, leaves nothing behind, and a broken part breaks it.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::machine::await_that;
use crate::world::LIFEBOAT;

struct Demo {
    directory: PathBuf,
    /// Removed at the end.
    _root: tempfile::TempDir,
}

impl Demo {
    fn new() -> Demo {
        let root = tempfile::Builder::new().prefix("lbd").tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o777)).unwrap();
        Demo { directory: root.path().join("play"), _root: root }
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(["demo", "--json", "--directory"]).arg(&self.directory).args(arguments);
        command.env_remove("LIFEBOAT_PLAN").env_remove("LIFEBOAT_STATE").stdin(Stdio::null());
        command
    }

    fn start(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(LIFEBOAT, arguments);
        command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Another verb on the demo's plan, as its controller.
    fn verb(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(LIFEBOAT);
        command.arg("--plan").arg(self.directory.join("lifeboat.toml"));
        command.arg("--state").arg(self.directory.join("outside/controller"));
        command.args(arguments).stdin(Stdio::null()).output().unwrap()
    }

    fn await_writes(&self, child: &mut Child, writes: usize) {
        let ledger = self.directory.join("evidence/ledger.jsonl");
        eventually("the client's first writes", || {
            if child.try_wait().unwrap().is_some() {
                let mut told = String::new();
                child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
                panic!("the demo ended early: {told}");
            }
            fs::read_to_string(&ledger).is_ok_and(|text| text.lines().count() >= writes)
        });
    }

    /// Processes that still belong to this demo.
    fn processes(&self) -> Vec<String> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            if command.contains(&self.directory.display().to_string()) {
                found.push(format!("{pid} {command}"));
            }
        }
        found
    }

    fn assert_removed(&self) {
        assert_eq!(self.processes(), Vec::<String>::new());
        let mut left: Vec<String> = fs::read_dir(&self.directory)
            .map(|entries| entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
            .unwrap_or_default();
        left.retain(|name| name != "evidence");
        assert_eq!(left, Vec::<String>::new());
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = Command::new(LIFEBOAT).args(["demo", "--remove"]).arg(&self.directory).output();
    }
}

fn eventually(what: &str, mut seen: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !seen() {
        assert!(begun.elapsed() < Duration::from_secs(120), "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no document: {}", said(output)))
}

fn said(output: &Output) -> String {
    format!(
        "{}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn number(document: &Value, field: &str) -> f64 {
    document[field].as_f64().unwrap_or_else(|| panic!("`{field}` is no number in {document:#}"))
}

/// What every demo that ended well must have shown. A machine that stands still for a while may miss an objective, which is told then.
fn assert_proven(output: &Output, strategy: &str) {
    let told = document(output);
    let figure = |field: &str| number(&told, field);
    let findings: Vec<&str> =
        told["findings"].as_array().unwrap().iter().map(|finding| finding.as_str().unwrap()).collect();
    let missed = ["rpo", "rto"].map(|objective| {
        let proven = figure(&format!("{objective}_proven_seconds"));
        assert!(proven >= 0.0, "{told:#}");
        proven > figure(&format!("{objective}_objective_seconds"))
    });
    assert_eq!(
        ["RPO", "RTO"]
            .map(|what| findings.iter().any(|said| said.contains(&format!("the {what} objective was missed")))),
        missed,
        "{findings:?}"
    );
    assert_eq!(findings.len(), missed.iter().filter(|missed| **missed).count(), "{findings:?}");
    assert_eq!(output.status.code(), Some(if findings.is_empty() { 0 } else { 3 }), "{}", said(output));
    assert_eq!(told["strategy"], strategy);
    assert!(figure("acknowledged") >= 120.0);
    assert_eq!(figure("present_after_failover") + figure("lost"), figure("acknowledged"));
    assert!(figure("rto_proven_seconds") > 0.0, "no recovery takes no time");
    assert!(figure("acknowledged_at_failback") > figure("acknowledged"), "the client was served at the other site");
    assert_eq!(figure("acknowledged_at_failback") - figure("present_after_failback"), figure("lost"));
    assert_eq!(figure("lost_in_failback"), 0.0);
    let rewind = &told["rewind"];
    assert!(number(rewind, "damaged") > 0.0);
    assert_eq!(number(rewind, "entries_missing"), 0.0);
    assert!(number(rewind, "present") >= number(rewind, "acknowledged") - 20.0, "{rewind:#}");
    assert!(told["simulated"].as_array().unwrap().len() >= 2);

    let page_path = Path::new(told["evidence"].as_str().unwrap());
    let page = fs::read_to_string(page_path).unwrap();
    assert!(page.contains(told["run"].as_str().unwrap()) && page.contains("<html"));
    let proof = format!("{} of {} are there", figure("present_after_failover"), figure("acknowledged"));
    assert!(page.contains(&proof), "the page says what was counted");
    for url in ["http://", "https://", "src="] {
        assert!(!page.contains(&format!("\"{url}")), "the page needs nothing from elsewhere");
    }
    let signed = Command::new(LIFEBOAT).args(["evidence", "--verify"]).arg(page_path.with_extension("json")).output();
    let signed = signed.unwrap();
    assert!(signed.status.success(), "{}", said(&signed));
}

#[test]
fn a_warm_standby_takes_over_twice_in_a_row() {
    let demo = Demo::new();
    for _ in 0..2 {
        let output = demo.command(LIFEBOAT, &[]).output().unwrap();
        assert_proven(&output, "warm-standby");
        demo.assert_removed();
        fs::remove_dir_all(&demo.directory).unwrap();
    }
}

#[test]
fn a_restore_from_the_vault_takes_over_without_privileges() {
    let demo = Demo::new();
    // The build's directory may be closed to other users.
    let program = demo.directory.with_file_name("lifeboat");
    fs::copy(LIFEBOAT, &program).unwrap();
    let nobody = 65534;
    let mut command = demo.command(program.to_str().unwrap(), &["--strategy", "backup-restore"]);
    let output = command.uid(nobody).gid(nobody).env("HOME", "/nonexistent").current_dir("/").output().unwrap();
    assert_proven(&output, "backup-restore");
    demo.assert_removed();
}

/// The same over servers of PostgreSQL's, as root: they run as the user of the package; and then a rehearsal.
#[test]
fn a_postgresql_standby_takes_over_and_the_rehearsal_passes() {
    let demo = Demo::new();
    let output = demo.command(LIFEBOAT, &["--postgres", "--keep"]).output().unwrap();
    assert_proven(&output, "warm-standby");
    // The standby streams from the writer's own server, too.
    await_that("the standby streams", || {
        let status = document(&demo.verb(&["status", "--json"]));
        let hosts = status["services"][0]["hosts"].as_array().cloned().unwrap_or_default();
        hosts.iter().any(|host| host["streams"]["behind_bytes"].is_u64() && host["streams"]["problem"].is_null())
    });
    let drill = demo.verb(&["drill", "logbook", "--yes", "--json"]);
    assert_eq!(drill.status.code(), Some(0), "{}", said(&drill));
    assert!(number(&document(&drill), "rto_proven_seconds") > 0.0);
    assert_eq!(names(&demo.directory.join("sites/london/.lifeboat/isolated")), Vec::<String>::new());
    let planned = demo.verb(&["failover", "logbook", "--planned", "--yes", "--json"]);
    assert_eq!(planned.status.code(), Some(0), "{}", said(&planned));
    let removed = Command::new(LIFEBOAT).args(["demo", "--remove"]).arg(&demo.directory).output().unwrap();
    assert!(removed.status.success(), "{}", said(&removed));
    demo.assert_removed();
}

#[test]
fn postgresql_is_restored_from_the_vault_without_privileges() {
    let demo = Demo::new();
    let program = demo.directory.with_file_name("lifeboat");
    fs::copy(LIFEBOAT, &program).unwrap();
    let nobody = 65534;
    let mut command = demo.command(program.to_str().unwrap(), &["--postgres", "--strategy", "backup-restore"]);
    let output = command.uid(nobody).gid(nobody).env("HOME", "/nonexistent").current_dir("/").output().unwrap();
    assert_proven(&output, "backup-restore");
    demo.assert_removed();
}

#[test]
fn a_demo_whose_vault_is_destroyed_says_so() {
    let demo = Demo::new();
    let mut child = demo.start(&[]);
    demo.await_writes(&mut child, 30);
    fs::rename(demo.directory.join("outside/vault"), demo.directory.join("outside/burnt")).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_ne!(output.status.code(), Some(0), "{}", said(&output));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("error") || told.contains("alarm"), "{told}");
    demo.assert_removed();
}

#[test]
fn a_demo_whose_name_server_dies_says_so() {
    let demo = Demo::new();
    let mut child = demo.start(&[]);
    demo.await_writes(&mut child, 10);
    let record: Value = serde_json::from_slice(&fs::read(demo.directory.join("demo.json")).unwrap()).unwrap();
    let background = record["background"].as_array().unwrap();
    let dns = background.iter().find(|process| process[1] == "dns").unwrap();
    let pid = Pid::from_raw(dns[0].as_i64().unwrap() as i32).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let told: Value = document(&output);
    let message = told["error"]["message"].as_str().unwrap();
    assert!(message.contains("dns ended by itself") || message.contains("failed"), "{message}");
    assert!(demo.directory.join("evidence/logs").is_dir(), "what the processes said is kept");
    demo.assert_removed();
}

#[test]
fn an_interrupted_demo_leaves_nothing() {
    let demo = Demo::new();
    let mut child = demo.start(&[]);
    demo.await_writes(&mut child, 5);
    let group = Pid::from_raw(child.id() as i32).unwrap();
    rustix::process::kill_process_group(group, Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    demo.assert_removed();
}

#[test]
fn a_drill_proves_a_recovery_and_touches_nothing_real() {
    let demo = Demo::new();
    let output = demo.command(LIFEBOAT, &["--keep"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let arbiter = demo.directory.join("outside/arbiter");
    let before = (names(&arbiter.join("traffic")), names(&arbiter.join("epochs")), names(&arbiter.join("desired")));
    assert!(!before.0.is_empty() && !before.1.is_empty());

    let drill = demo.verb(&["drill", "logbook", "--yes", "--json"]);
    assert_eq!(drill.status.code(), Some(0), "{}", said(&drill));
    let told = document(&drill);
    for field in ["acknowledged", "present_after_failover", "lost", "present_after_failback", "rpo_proven_seconds"] {
        assert!(told[field].is_null(), "nobody counted, so `{field}` is not known");
    }
    assert!(number(&told, "rto_proven_seconds") > 0.0);
    assert_eq!((number(&told, "rpo_objective_seconds"), number(&told, "rto_objective_seconds")), (5.0, 30.0));
    assert!(told["simulated"].as_array().unwrap().iter().any(|what| what == "the outage"));
    assert!(fs::read_to_string(told["evidence"].as_str().unwrap()).unwrap().contains(told["run"].as_str().unwrap()));
    let step = |id: &str| {
        let steps = told["steps"].as_array().unwrap();
        steps.iter().find(|step| step["id"] == id).unwrap_or_else(|| panic!("no step {id}"))["status"].clone()
    };
    for id in ["restore-entries", "restore-uploads", "await-service", "read-canary", "remove-isolation", "verify-clean"]
    {
        assert_eq!(step(id), "done", "{id}");
    }

    let after = (names(&arbiter.join("traffic")), names(&arbiter.join("epochs")), names(&arbiter.join("desired")));
    assert_eq!(before, after, "a drill publishes nothing that is real");
    assert_eq!(names(&demo.directory.join("sites/london/.lifeboat/isolated")), Vec::<String>::new());
    let isolated = demo.processes().into_iter().filter(|process| process.contains("isolated")).collect::<Vec<_>>();
    assert_eq!(isolated, Vec::<String>::new());

    // A drill that is killed in the middle leaves its surroundings; ending the run removes them.
    let isolated = demo.directory.join("sites/london/.lifeboat/isolated");
    let mut killed = Command::new(LIFEBOAT);
    killed.arg("--plan").arg(demo.directory.join("lifeboat.toml"));
    killed.arg("--state").arg(demo.directory.join("outside/controller")).args(["drill", "logbook", "--yes"]);
    let mut killed = killed.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the drill to begin", || names(&isolated).iter().any(|name| name.ends_with("isolation.json")));
    killed.kill().unwrap();
    killed.wait().unwrap();
    let listed = document(&demo.verb(&["run", "list", "--json"]));
    let run = listed[0]["run"].as_str().unwrap().to_owned();
    let cancelled = demo.verb(&["run", "cancel", &run, "--reason", "killed", "--yes"]);
    assert!(cancelled.status.success(), "{}", said(&cancelled));
    assert_eq!(names(&isolated), Vec::<String>::new());
    assert!(!demo.processes().iter().any(|process| process.contains("/isolated/")));

    // Taken as the host itself would, which alone may write as it.
    let mut once = Command::new(LIFEBOAT);
    once.arg("--plan").arg(demo.directory.join("lifeboat.toml"));
    once.arg("--state").arg(demo.directory.join("sites/paris/.lifeboat/host"));
    let once = once.args(["protect", "--site", "paris", "--once", "--json"]).output().unwrap();
    assert_eq!(once.status.code(), Some(0), "{}", said(&once));
    let taken = document(&once);
    let datasets: Vec<&str> = taken.as_array().unwrap().iter().map(|one| one["dataset"].as_str().unwrap()).collect();
    assert_eq!(datasets, ["entries", "uploads"]);
    assert!(taken.as_array().unwrap().iter().all(|one| one["point"].is_string() && one["error"].is_null()));
    let elsewhere = demo.verb(&["protect", "--site", "london", "--once"]);
    assert_eq!(elsewhere.status.code(), Some(4), "{}", said(&elsewhere));

    let removed = Command::new(LIFEBOAT).args(["demo", "--remove"]).arg(&demo.directory).output().unwrap();
    assert!(removed.status.success(), "{}", said(&removed));
    demo.assert_removed();
}

/// Every file below a directory, by its path there.
fn names(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                open.push(entry.path());
            } else {
                found.push(entry.path().strip_prefix(directory).unwrap().display().to_string());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_directory_that_holds_something_else_is_left_alone() {
    let demo = Demo::new();
    fs::create_dir(&demo.directory).unwrap();
    fs::write(demo.directory.join("thesis.txt"), "mine").unwrap();
    let played = demo.command(LIFEBOAT, &[]).output().unwrap();
    assert_eq!(played.status.code(), Some(4), "{}", said(&played));
    let removed = Command::new(LIFEBOAT).args(["demo", "--remove"]).arg(&demo.directory).output().unwrap();
    assert_eq!(removed.status.code(), Some(2), "{}", said(&removed));
    assert_eq!(fs::read_to_string(demo.directory.join("thesis.txt")).unwrap(), "mine");
}
