//! `lifeboat verify` as its users meet it: what it says, what it records, and that nothing of it is left.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::Value;

use super::planned::{Day, planned};
use super::{Bench, insert, table};
use crate::machine::{Machine, Ran, await_that};
use crate::pg_cluster::Cluster;

impl Bench {
    fn verify(&self, more: &str) -> Ran {
        let scratch = self.place_for("scratch");
        let line = format!("verify --vault {} --key owner.key --scratch {} {more}", self.vault(), scratch.display());
        self.machine.line(&line)
    }

    fn badge(&self) -> Value {
        let points = self.machine.line(&format!("--json points --vault {}", self.vault())).ends(0).json();
        points.as_array().unwrap().last().unwrap()["badge"].clone()
    }

    fn scratches(&self) -> Vec<PathBuf> {
        let listed = fs::read_dir(self.place_for("scratch")).into_iter().flatten();
        listed.map(|entry| entry.unwrap().path()).collect()
    }
}

#[test]
fn a_sound_point_is_verified_from_then_on() {
    let bench = Bench::new();
    table(&bench.cluster);
    insert(&bench.cluster, 1);
    bench.point();
    assert_eq!(bench.badge(), "unverified");
    let ran = bench.verify("").ends(0);
    for check in ["files", "log", "recovery", "databases", "indexes", "checksums"] {
        assert!(
            ran.out.lines().any(|line| line.trim().starts_with(check) && line.contains("passed")),
            "{}",
            ran.screen()
        );
    }
    assert!(ran.out.contains(": verified, in "), "{}", ran.screen());
    assert_eq!((bench.badge(), bench.scratches()), ("verified".into(), Vec::new()));

    // On a machine that is not on the roster it is seen as well, and not recorded.
    fs::copy(bench.machine.path("work/owner.key"), bench.machine.path("work/key")).unwrap();
    let line =
        format!("--json verify --vault {} --key key --scratch {}", bench.vault(), bench.place_for("scratch").display());
    let ran = bench.machine.elsewhere("other", &line).ends(3);
    let told = ran.json();
    assert_eq!((&told[0]["badge"], &told[0]["recorded"]), (&"verified".into(), &false.into()), "{told}");
    assert!(ran.err.contains("is not on the roster"), "{}", ran.err);
    let names: Vec<&str> = told[0]["checks"].as_array().unwrap().iter().map(|c| c["check"].as_str().unwrap()).collect();
    assert_eq!(names, ["files", "log", "recovery", "databases", "indexes", "checksums"]);
}

#[test]
fn what_is_not_found_out_is_not_recorded_and_what_is_missing_is() {
    let bench = Bench::new();
    table(&bench.cluster);
    bench.point();
    bench.verify("--point 7").ends(2);
    let packs = bench.machine.path("backup/pack");
    let aside = bench.machine.path("packs");
    fs::rename(&packs, &aside).unwrap();
    fs::create_dir(&packs).unwrap();
    let ran = bench.verify("").ends(3);
    assert!(ran.out.contains(": corrupt, in ") && ran.out.contains("is missing from the vault"), "{}", ran.screen());
    assert_eq!((bench.badge(), bench.scratches()), ("corrupt".into(), Vec::new()));
    fs::remove_dir_all(&packs).unwrap();
    fs::rename(&aside, &packs).unwrap();
    bench.verify("--point 1").ends(0);
    assert_eq!(bench.badge(), "verified");
}

#[test]
fn interrupted_it_leaves_nothing_and_says_nothing_of_the_point() {
    let bench = Bench::new();
    table(&bench.cluster);
    bench.point();
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::KILL] {
        let scratch = bench.place_for("scratch").display().to_string();
        let vault = bench.vault();
        let words = ["verify", "--vault", &vault, "--key", "owner.key", "--scratch", &scratch];
        let mut child = bench.machine.command(&words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut pid = String::new();
        await_that("its private server is at work", || {
            let lock = bench.scratches().into_iter().map(|path| path.join("work/data/postmaster.pid")).next();
            let text = lock.and_then(|lock| fs::read_to_string(lock).ok()).unwrap_or_default();
            pid = text.lines().next().unwrap_or_default().to_owned();
            !pid.is_empty()
        });
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        let status = child.wait().unwrap();
        if signal == rustix::process::Signal::INT {
            assert_eq!((status.code(), bench.scratches()), (Some(130), Vec::new()));
        } else {
            // Nobody could; the next one does.
            assert_eq!(bench.scratches().len(), 1);
            assert_eq!(bench.badge(), "unverified");
            bench.verify("").ends(0);
            assert_eq!(bench.scratches(), Vec::<PathBuf>::new());
        }
        await_that("its server is gone", || !fs::exists(format!("/proc/{pid}/cwd")).unwrap());
    }
}

#[test]
fn the_plan_s_queries_are_asked_in_their_database() {
    let cluster = Cluster::started();
    cluster.psql("create database shop");
    let machine = Machine::new();
    let path = format!("path = \"{}\"", cluster.data().display());
    planned(&machine, &path);
    let text = fs::read_to_string(machine.path("work/lifeboat.toml")).unwrap();
    let with = |verify: &str| {
        let protect = "protect = [";
        machine.write(
            "work/lifeboat.toml",
            text.replace(protect, &format!("verify = {{ every = \"1w\", {verify} }}\n{protect}")),
        );
    };
    with("database = \"shop\", queries = [\"select current_database() = 'shop'\"]");
    machine.line("backup").ends(0);
    let scratch = cluster.place().join("scratch").display().to_string();
    let verify = format!("verify --key owner.key --scratch {scratch}");
    let ran = machine.line(&verify).ends(0);
    assert!(ran.out.contains("current_database() = 'shop': true, in shop"), "{}", ran.screen());
    with("queries = [\"select current_database() = 'shop'\"]");
    let ran = machine.line(&verify).ends(3);
    assert!(ran.out.contains("answered f, and not true, in postgres"), "{}", ran.screen());
    let points = machine.line("--json points").ends(0).json();
    assert_eq!(points[0]["badge"], "suspect");
    with("database = \"nowhere\", queries = [\"select true\"]");
    let ran = machine.line(&verify).ends(3);
    assert!(ran.out.contains("nowhere"), "{}", ran.screen());
}

#[test]
fn files_are_verified_by_reading_all_of_them() {
    let machine = Machine::new();
    machine.make_vault();
    machine.write("work/notes/a.txt", "a");
    machine.line(&format!("backup --vault {} notes", machine.at("backup"))).ends(0);
    let verify = format!("verify --vault {} --key owner.key --scratch {}", machine.at("backup"), machine.at("scratch"));
    let ran = machine.line(&verify).ends(0);
    assert!(ran.out.contains("every chunk matched its signed id"), "{}", ran.screen());
    assert_eq!(fs::read_dir(machine.path("scratch")).unwrap().count(), 0);
    let ran = machine.line(&format!("{verify} nothing")).ends(2);
    assert!(ran.err.contains("nothing"), "{}", ran.screen());
}

/// A plan whose cluster is verified every so often, at the site that writes it.
fn verified_day(verify: &str) -> Day {
    Day::with(|machine, text| {
        if !machine.path("work/verify.key").exists() {
            machine.line("key new -o verify.key").ends(0);
        }
        let recipient = machine.line("key inspect verify.key").ends(0).out.trim().to_owned();
        let file = machine.at("work/verify.key");
        let holder = format!(
            "[key]\nverify = {{ recipient = \"{recipient}\", held-at = \"home\", datasets = [\"ledger\"], identity = {{ file = \"{file}\" }} }}"
        );
        let protect = "protect = [";
        text.replace("[key]", &holder).replace(protect, &format!("verify = {{ {verify} }}\n{protect}"))
    })
}

impl Day {
    fn verified(&self) -> Value {
        self.status()["datasets"][0]["vaults"][0]["verified"].clone()
    }

    fn codes(&self) -> Vec<String> {
        let status = self.status();
        let findings = status["findings"].as_array().unwrap().iter();
        findings.map(|finding| finding["code"].as_str().unwrap().to_owned()).collect()
    }

    /// Whether the daemon has one under way.
    fn is_verifying(&self) -> bool {
        let key = self.machine.at("work/verify.key");
        let processes = fs::read_dir("/proc").unwrap().flatten();
        processes.into_iter().any(|entry| {
            let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = words.split(|byte| *byte == 0).collect();
            words.contains(&key.as_bytes()) && words.contains(&b"verify".as_slice())
        })
    }

    fn verifications(&self) -> usize {
        crate::machine::files_below(&self.machine.path("backup/verify")).len()
    }
}

#[test]
fn the_daemon_verifies_what_is_due_beside_its_shipping_and_a_restart_repeats_nothing() {
    // Asked until it is let go on.
    let go = tempfile::tempdir().unwrap();
    let go = go.path().join("go");
    let waiting = format!(
        "with recursive w(n) as (select 1 union all select n + 1 from w where (pg_stat_file('{}', true)).size is null \
         and pg_sleep(0.05) is not null) select count(*) > 0 from w",
        go.display()
    );
    fs::set_permissions(go.parent().unwrap(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut day = verified_day(&format!("every = \"1h\", queries = [\"{waiting}\"]"));
    day.protect();
    day.durable();
    assert_eq!(day.end_protect(), Some(0));
    assert!(day.verified()["at"].is_null(), "{}", day.verified());

    day.protect();
    await_that("a verification is under way", || day.is_verifying());
    insert(&day.cluster, 1);
    day.durable();
    assert!(day.is_verifying() && day.verified()["at"].is_null(), "the log was shipped meanwhile");
    fs::write(&go, "").unwrap();
    await_that("the vault has the result", || day.verified()["badge"] == "verified");
    await_that("it is over", || !day.is_verifying());
    assert!(
        day.verified()["what"].as_str().unwrap().starts_with("restored and sound: files, log"),
        "{}",
        day.verified()
    );
    let told = day.machine.line("status").out;
    assert!(
        told.contains("verified   ledger in main: ") && !day.codes().contains(&"verify-overdue".to_owned()),
        "{told}"
    );
    assert_eq!(day.verifications(), 1);

    assert_eq!(day.end_protect(), Some(0));
    day.protect();
    insert(&day.cluster, 2);
    day.durable();
    assert_eq!((day.end_protect(), day.verifications()), (Some(0), 1));
}

#[test]
fn one_that_is_told_to_stop_leaves_nothing_and_what_it_did_not_record_is_still_due() {
    let mut day = verified_day("every = \"1h\", queries = [\"select pg_sleep(3600) is not null\"]");
    day.protect();
    day.durable();
    assert_eq!(day.end_protect(), Some(0));
    day.protect();
    await_that("a verification is under way", || day.is_verifying());
    assert_eq!(day.end_protect(), Some(0));
    assert!(!day.is_verifying());
    assert_eq!((day.verifications(), day.verified()["badge"].is_null()), (0, true));
}

#[test]
fn what_was_never_verified_is_overdue_and_what_failed_stands_as_a_finding() {
    let day = verified_day("every = \"1s\", queries = [\"select count(*) = 1 from t\"]");
    assert!(!day.codes().contains(&"verify-overdue".to_owned()), "there is nothing to verify yet");
    day.machine.line("backup").ends(0);
    await_that("it is overdue", || day.codes().contains(&"verify-overdue".to_owned()));
    let told = day.machine.line("status").ends(3).out;
    assert!(told.contains("should have been verified by now: it never was"), "{told}");
    let scratch = day.cluster.place().join("scratch").display().to_string();
    day.machine.line(&format!("verify ledger --key verify.key --scratch {scratch}")).ends(3);
    assert!(day.codes().contains(&"verify-failed".to_owned()), "{:?}", day.codes());
    let told = day.machine.line("status").ends(3).out;
    assert!(told.contains("is not sound") && told.contains("restored and not sound: query"), "{told}");
    // Another way to look at a point does not count for it.
    day.machine.line("vault check --key owner.key --read-data").ends(0);
    assert!(day.codes().contains(&"verify-failed".to_owned()), "{:?}", day.codes());
}
