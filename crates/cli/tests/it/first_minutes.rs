//! The README's first minutes, word for word, as root and as nobody; and the JSON that others build on.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use jiff::Timestamp;
use serde_json::Value;

use crate::machine::{Machine, Ran, assert_alike, noise};

/// The commands under *First minutes* as the README has them.
fn block() -> String {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let text = fs::read_to_string(readme).unwrap();
    let (_, section) = text.split_once("## First minutes, without a plan").unwrap();
    let (_, block) = section.split_once("```\n").unwrap();
    block.split_once("```").unwrap().0.to_owned()
}

/// A newcomer's directory with one of everything that may stand in it.
fn documents(machine: &Machine) {
    machine.write("home/documents/letter.txt", "dear reader\n");
    machine.write("home/documents/deep/er/photo.raw", noise(1, 3 << 20));
    std::os::unix::fs::symlink("../letter.txt", machine.path("home/documents/deep/link")).unwrap();
    fs::hard_link(machine.path("home/documents/letter.txt"), machine.path("home/documents/second-name")).unwrap();
    machine.write("home/documents/empty", "");
}

/// Runs the block line by line. What stands for something else in it is put in: recipients, and places in this machine.
fn run_block(machine: &Machine) -> Vec<(String, Ran)> {
    let mut recipients: Vec<String> = Vec::new();
    let mut done = Vec::new();
    for line in block().lines().filter(|line| !line.is_empty()) {
        let mut command = line.replace("/backup", &machine.at("backup")).replace("/tmp/out", &machine.at("out"));
        if !line.starts_with("lifeboat key new") {
            for recipient in &recipients {
                command = command.replacen("age1…", recipient, 1);
            }
            assert!(!command.contains('…'), "{command}");
        }
        let ran = machine.shell(&command).ends(0);
        if line.starts_with("lifeboat key new") {
            recipients.push(ran.out.trim().to_owned());
        }
        done.push((line.to_owned(), ran));
    }
    done
}

fn check_block(machine: &Machine) {
    let done = run_block(machine);
    assert_eq!(done.len(), 7, "the README's block has other lines now: look whether they are tested");
    assert_alike(&machine.path("home/documents"), &machine.path("out"));
    let said = |start: &str| &done.iter().find(|(line, _)| line.starts_with(start)).unwrap().1.out;
    assert!(said("lifeboat points").contains("home/documents"), "{}", said("lifeboat points"));
    assert!(said("lifeboat vault check").ends_with("nothing wrong found\n"), "{}", said("lifeboat vault check"));
    // Nothing of the data, and no private key, lies in the vault in the clear.
    let keys = fs::read_to_string(machine.path("work/owner.key")).unwrap();
    let secret = keys.lines().find(|line| line.starts_with("AGE-SECRET-KEY")).unwrap();
    for file in crate::machine::files_below(&machine.path("backup")) {
        let bytes = fs::read(&file).unwrap();
        for hidden in ["dear reader", "letter.txt", secret] {
            assert!(!bytes.windows(hidden.len()).any(|part| part == hidden.as_bytes()), "{}", file.display());
        }
    }
}

#[test]
fn the_first_minutes_work_as_the_readme_says() {
    let machine = Machine::new();
    documents(&machine);
    check_block(&machine);
}

#[test]
fn the_first_minutes_need_no_privileges() {
    let machine = Machine::unprivileged();
    documents(&machine);
    let vault = machine.path("backup");
    fs::create_dir(&vault).unwrap();
    std::os::unix::fs::chown(&vault, Some(65534), Some(65534)).unwrap();
    check_block(&machine);
    assert_eq!(machine.shell("id -u").out, "65534\n");
}

/// A field's name, and what must be so of its value.
type Field = (&'static str, fn(&Value) -> bool);

#[track_caller]
fn assert_fields(value: &Value, wanted: &[Field]) {
    for (name, is_right) in wanted {
        let field = value.get(name).unwrap_or_else(|| panic!("no `{name}` in {value}"));
        assert!(is_right(field), "`{name}` is {field}");
    }
}

fn is_time(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.ends_with('Z') && text.parse::<Timestamp>().is_ok())
}

#[test]
fn json_has_the_fields_that_others_build_on() {
    let machine = Machine::new();
    let owner = machine.make_vault();
    documents(&machine);
    let (vault, documents) = (machine.at("backup"), machine.at("home/documents"));
    let _socket = std::os::unix::net::UnixListener::bind(machine.path("home/documents/socket")).unwrap();

    let backup = machine.line(&format!("--json backup --vault {vault} {documents}")).ends(0).json();
    assert_fields(
        &backup,
        &[
            ("point", Value::is_string),
            ("dataset", Value::is_string),
            ("files", Value::is_u64),
            ("bytes", Value::is_u64),
            ("bytes_new", Value::is_u64),
            ("bytes_stored", Value::is_u64),
            ("seconds", Value::is_f64),
            ("skipped", Value::is_array),
            ("taken_at", is_time),
        ],
    );
    assert_eq!(backup["dataset"], documents.as_str());
    assert_eq!(backup["skipped"][0]["path"], format!("{documents}/socket").as_str());
    assert!(backup["skipped"][0]["reason"].as_str().unwrap().contains("socket"), "{backup}");
    assert!(backup["bytes_stored"].as_u64().unwrap() >= 3 << 20, "{backup}");

    let again = machine.line(&format!("--json backup --vault {vault} {documents}")).ends(0).json();
    assert_eq!((&again["bytes_new"], &again["bytes_stored"]), (&Value::from(0), &Value::from(0)));
    assert_eq!(again["bytes"], backup["bytes"]);

    let points = machine.line(&format!("--json points --vault {vault}")).ends(0).json();
    let points = points.as_array().unwrap();
    assert_eq!(points.len(), 2);
    for point in points {
        assert_fields(
            point,
            &[
                ("id", Value::is_string),
                ("dataset", Value::is_string),
                ("host", |host| host == "alpha"),
                ("taken_at", is_time),
                ("stored_at", is_time),
                ("position", Value::is_null),
                ("bytes", Value::is_u64),
                ("badge", |badge| badge == "unverified"),
            ],
        );
    }
    assert_eq!(points[0]["id"], backup["point"]);

    let to = machine.at("out");
    let restore = machine
        .line(&format!("--json restore --vault {vault} --key owner.key --to {to} --owner {owner}"))
        .ends(0)
        .json();
    assert_fields(
        &restore,
        &[
            ("point", Value::is_string),
            ("files", Value::is_u64),
            ("bytes", Value::is_u64),
            ("seconds", Value::is_f64),
            ("verified", |verified| *verified == Value::Bool(true)),
            ("taken_at", is_time),
            ("as_of", is_time),
        ],
    );
    assert_eq!((&restore["point"], &restore["bytes"]), (&again["point"], &again["bytes"]));

    let check = machine.line(&format!("--json vault check --vault {vault} --key owner.key --read-data")).ends(0).json();
    assert_eq!((&check["sound"], &check["with_key"], &check["points"]), (&true.into(), &true.into(), &2.into()));
    assert_eq!(check["marked"], 2);
    let points = machine.line(&format!("--json points --vault {vault}")).ends(0).json();
    assert!(points.as_array().unwrap().iter().all(|point| point["badge"] == "verified"), "{points}");
    let stat = machine.line(&format!("--json vault stat --vault {vault}")).ends(0).json();
    assert_eq!(stat["owner"], owner.as_str());
    assert_eq!(stat["datasets"][0]["points"], 2);
    assert_fields(&stat["datasets"][0], &[("newest", is_time)]);
}

#[test]
fn a_point_a_time_or_a_part_is_restored_when_asked_for() {
    let machine = Machine::new();
    machine.make_vault();
    let (vault, data) = (machine.at("backup"), machine.at("data"));
    let mut taken = Vec::new();
    for version in ["one", "two", "three"] {
        machine.write("data/file", version);
        machine.write("data/sub/other", format!("other {version}"));
        let point = machine.line(&format!("--json backup --vault {vault} {data}")).ends(0).json();
        taken.push(point["taken_at"].as_str().unwrap().to_owned());
    }
    let restore = |to: &str, more: &str| {
        machine.line(&format!("restore --vault {vault} --key paper.key --to {} {more}", machine.at(to))).ends(0);
        fs::read_to_string(machine.path(to).join("file")).ok()
    };
    assert_eq!(restore("newest", "").unwrap(), "three");
    assert_eq!(restore("first", "--point 1").unwrap(), "one");
    assert_eq!(restore("second", &format!("--at {}", taken[1])).unwrap(), "two");
    assert_eq!(restore("by-name", &format!("{data} --point 0000000002")).unwrap(), "two");
    assert_eq!(restore("part", "--path sub/other"), None);
    assert_eq!(fs::read_to_string(machine.path("part/sub/other")).unwrap(), "other three");
    assert_eq!(restore("as-it-was-called", &format!("--point 1 --path {data}/file")).unwrap(), "one");
    assert!(!machine.path("as-it-was-called/sub").exists());

    // In place: what is alike is left alone, what is extra stays unless told otherwise.
    machine.write("newest/file", "spoilt");
    machine.write("newest/extra", "mine");
    let before = fs::metadata(machine.path("newest/sub/other")).unwrap();
    let line = format!("--json restore --vault {vault} --key owner.key --to {} --in-place", machine.at("newest"));
    assert!(machine.line(&line).ends(2).err.contains("--yes"));
    let done = machine.line(&format!("{line} --yes")).ends(0).json();
    assert_eq!(done["bytes_written"], 5, "only `file` differed");
    let after = fs::metadata(machine.path("newest/sub/other")).unwrap();
    assert_eq!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
    assert!(machine.path("newest/extra").exists());
    machine.line(&format!("{line} --yes --delete-extra")).ends(0);
    assert!(!machine.path("newest/extra").exists());
}

#[test]
fn a_sqlite_database_without_a_log_is_taken_and_one_that_is_locked_is_waited_for_then_named() {
    let machine = Machine::new();
    machine.make_vault();
    let (vault, database) = (machine.at("backup"), machine.at("plain.db"));
    machine.shell(&format!("sqlite3 {database} 'create table t(x); insert into t values(7)'")).ends(0);
    let backup = format!("backup --vault {vault} {database}");
    machine.line(&backup).ends(0);
    machine.line(&format!("restore --vault {vault} --key owner.key --to {}", machine.at("out"))).ends(0);
    let read =
        machine.shell(&format!("sqlite3 {} 'pragma integrity_check; select x from t'", machine.at("out/plain.db")));
    assert_eq!(read.ends(0).out, "ok\n7\n");
    let script = format!("sqlite3 {database} 'begin exclusive; select 1;' '.shell touch locked; sleep 60'");
    let mut locker = Command::new("bash");
    let mut locker = locker.args(["-c", &script]).current_dir(machine.path("work")).process_group(0).spawn().unwrap();
    crate::machine::await_that("the lock", || machine.path("work/locked").exists());
    let ran = machine.line(&backup);
    rustix::process::kill_process_group(rustix::process::Pid::from_child(&locker), rustix::process::Signal::KILL)
        .unwrap();
    locker.wait().unwrap();
    let ran = ran.ends(1);
    assert!(ran.err.contains(&database) && ran.err.contains("database is locked"), "{}", ran.err);
    machine.line(&backup).ends(0);
}

#[test]
fn a_sqlite_database_by_its_path_is_taken_between_two_transactions() {
    let machine = Machine::new();
    machine.make_vault();
    let vault = machine.at("backup");
    let database = machine.at("app.db");
    // Each transaction keeps the two rows equal; a writer goes on as fast as it can.
    let setup =
        format!("sqlite3 {database} 'pragma journal_mode=wal; create table t(a, b); insert into t values(0, 0);'");
    machine.shell(&setup).ends(0);
    let writing = r#"i=0; while :; do i=$((i+1)); echo "begin; update t set a=$i; update t set b=$i; commit;"; done | sqlite3 "$0""#;
    let mut writer = Command::new("bash");
    let mut writer = writer.args(["-c", writing, &database]).process_group(0).spawn().unwrap();
    let taken = || {
        for number in 0..5 {
            machine.line(&format!("backup --vault {vault} {database}")).ends(0);
            let to = machine.at(&format!("out{number}"));
            machine.line(&format!("restore --vault {vault} --key owner.key --to {to}")).ends(0);
            let read = machine.shell(&format!("sqlite3 {to}/app.db 'pragma integrity_check; select a = b from t'"));
            assert_eq!(read.ends(0).out, "ok\n1\n");
        }
    };
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(taken));
    let group = rustix::process::Pid::from_child(&writer);
    rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
    writer.wait().unwrap();
    result.unwrap();
}

#[test]
fn places_mean_the_same_however_they_are_written() {
    let machine = Machine::new();
    machine.make_vault();
    documents(&machine);
    let vault = machine.at("backup");
    machine.line(&format!("backup --vault {vault} {}", machine.at("home/documents"))).ends(0);
    // Into the directory that one stands in: it is there at once, and not in a directory of the same name.
    let script = "mkdir here; cd here; lifeboat restore --vault ../../backup --key ../owner.key --to .; ls letter.txt";
    assert!(machine.shell(script).ends(0).out.ends_with("letter.txt\n"));
    assert_alike(&machine.path("home/documents"), &machine.path("work/here"));
    // It is the vault that is known already: by a relative path, a link, and a URL.
    std::os::unix::fs::symlink(&vault, machine.path("link")).unwrap();
    for name in ["../backup".to_owned(), machine.at("link"), format!("file://{vault}")] {
        let ran = machine.line(&format!("points --vault {name}")).ends(0);
        assert_eq!(ran.err, "", "{name}");
    }
}
