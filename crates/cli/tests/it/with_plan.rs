//! The same with a plan: data sets by name, files and SQLite, a whole service at one moment, the daemon's log.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::machine::{Machine, assert_alike, await_that, noise};

/// A plan for a directory and a database of this machine.
pub(crate) fn plan(machine: &Machine, owner: Option<&str>) -> String {
    let recipient = |file: &str| machine.line(&format!("key inspect {file}")).ends(0).out.trim().to_owned();
    let owner = owner.map_or_else(String::new, |owner| format!("owner = \"{owner}\"\n"));
    format!(
        r#"[plan]
name = "notes"
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
[service.notes]
strategy = "backup-restore"
primary = "home"
recovery = ["spare"]
rpo = "1h"
rto = "4h"

[service.notes.component.app.dataset.documents]
kind = "persistent"
files = {{ path = "{root}/documents", exclude = ["*.tmp"] }}
protect = [{{ to = "main", every = "30m", keep = {{ last = 24, daily = 7 }} }}]

[service.notes.component.app.dataset.database]
kind = "persistent"
sqlite = {{ path = "{root}/notes.db" }}
protect = [{{ to = "main", base = {{ every = "30m", keep = {{ last = 24, daily = 7 }} }}, log = "stream" }}]
"#,
        root = machine.root().display(),
        first = recipient("owner.key"),
        second = recipient("paper.key"),
    )
}

/// Keys, a plan with its vault's owner in it, a vault, a directory and a database.
pub(crate) fn planned() -> Machine {
    planned_on(Machine::new())
}

fn planned_on(machine: Machine) -> Machine {
    for key in ["owner.key", "paper.key"] {
        machine.line(&format!("key new -o {key}")).ends(0);
    }
    machine.shell(&format!("mkdir {}", machine.at("arbiter"))).ends(0);
    machine.write("work/lifeboat.toml", plan(&machine, None));
    let made = machine.line("--json vault init --host alpha").ends(0).json();
    machine.write("work/lifeboat.toml", plan(&machine, made["owner"].as_str()));
    machine.write("documents/letter", "dear reader");
    machine.write("documents/draft.tmp", "left out");
    machine.write("documents/sub/photo", noise(3, 200_000));
    sql(
        &machine,
        "notes.db",
        "pragma journal_mode=wal; create table t(n integer primary key, x); insert into t(x) values('one')",
    );
    machine
}

pub(crate) fn sql(machine: &Machine, database: &str, statement: &str) -> String {
    machine.shell(&format!("sqlite3 {} \"{statement}\"", machine.at(database))).ends(0).out
}

fn rows(path: &Path) -> String {
    let statement = "pragma integrity_check; select group_concat(x) from t";
    let output = std::process::Command::new("sqlite3").arg(path).arg(statement).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn data_sets_of_a_plan_are_backed_up_and_restored_by_name() {
    let machine = planned();
    let all = machine.line("--json backup").ends(0).events();
    let mut names: Vec<&str> = all.iter().map(|point| point["dataset"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["database", "documents"]);
    assert!(all.iter().all(|point| point["vault"] == "main"), "{all:?}");

    sql(&machine, "notes.db", "insert into t(x) values('two')");
    let one = machine.line("--json backup database").ends(0).events();
    assert_eq!((one.len(), &one[0]["dataset"], &one[0]["files"]), (1, &"database".into(), &1.into()));
    machine.line("backup notes").ends(0);
    let points = machine.line("--json points").ends(0).json();
    let of = |name: &str| points.as_array().unwrap().iter().filter(|point| point["dataset"] == name).count();
    assert_eq!((of("documents"), of("database")), (2, 3));
    assert!(points.as_array().unwrap().iter().all(|point| point["badge"] == "unverified"));
    assert_eq!(machine.line("--json points database").ends(0).json().as_array().unwrap().len(), 3);

    machine.line(&format!("restore documents --key owner.key --to {}", machine.at("docs"))).ends(0);
    assert_eq!(fs::read_to_string(machine.path("docs/letter")).unwrap(), "dear reader");
    assert!(!machine.path("docs/draft.tmp").exists());
    let ran =
        machine.line(&format!("--json restore database --key owner.key --to {}", machine.at("db"))).ends(0).json();
    assert_eq!(ran["to"], machine.at("db/notes.db").as_str());
    assert_eq!(rows(&machine.path("db/notes.db")), "ok\none,two\n");
    let first = all.iter().find(|point| point["dataset"] == "database").unwrap()["taken_at"].as_str().unwrap();
    machine.line(&format!("restore database --key owner.key --at {first} --to {}", machine.at("then"))).ends(0);
    assert_eq!(rows(&machine.path("then/notes.db")), "ok\none\n");
    machine.line(&format!("restore database --key owner.key --point 1 --to {}", machine.at("point"))).ends(0);
    assert_eq!(rows(&machine.path("point/notes.db")), "ok\none\n");
}

#[test]
fn a_plan_needs_no_privileges_either() {
    let machine = planned_on(Machine::unprivileged());
    machine.line("backup").ends(0);
    sql(&machine, "notes.db", "insert into t(x) values('two')");
    machine.line("backup notes").ends(0);
    machine.line(&format!("restore notes --key paper.key --to {}", machine.at("out"))).ends(0);
    fs::remove_file(machine.path("documents/draft.tmp")).unwrap();
    machine.shell(&format!("touch -r {} {}", machine.at("out/documents"), machine.at("documents"))).ends(0);
    assert_alike(&machine.path("documents"), &machine.path("out/documents"));
    assert_eq!(rows(&machine.path("out/database/notes.db")), "ok\none\n", "the last moment that both reach");
    machine.line(&format!("restore database --key paper.key --to {}", machine.at("newest"))).ends(0);
    assert_eq!(rows(&machine.path("newest/notes.db")), "ok\none,two\n");
    machine.line("vault check --key owner.key --read-data").ends(0);
}

#[test]
fn a_service_is_restored_at_one_moment() {
    let machine = planned();
    let first = machine.line("--json backup notes").ends(0).events();
    // A single round of points: each data set has one, taken one after the other, and that is said.
    let ran = machine.line(&format!("restore notes --key owner.key --to {}", machine.at("first"))).ends(0);
    assert!(ran.err.contains("has no point as old as the others' newest"), "{}", ran.err);
    assert_eq!(rows(&machine.path("first/database/notes.db")), "ok\none\n");

    machine.write("documents/letter", "second version");
    sql(&machine, "notes.db", "insert into t(x) values('two')");
    let second = machine.line("--json backup notes").ends(0).events();
    machine.write("documents/letter", "third version");
    machine.line("backup documents").ends(0);
    let ran = machine.line(&format!("--json restore notes --key owner.key --to {}", machine.at("now"))).ends(0);
    let moment = latest(&second);
    assert!(ran.err.contains("notes as of"), "{}", ran.err);
    assert!(ran.events().iter().all(|restored| restored["as_of"].as_str().unwrap() <= moment.as_str()), "{}", ran.out);
    assert_eq!(fs::read_to_string(machine.path("now/documents/letter")).unwrap(), "second version");
    assert_eq!(rows(&machine.path("now/database/notes.db")), "ok\none,two\n");

    let then = latest(&first);
    machine.line(&format!("restore notes --key owner.key --at {then} --to {}", machine.at("then"))).ends(0);
    assert_eq!(fs::read_to_string(machine.path("then/documents/letter")).unwrap(), "dear reader");
    assert_eq!(rows(&machine.path("then/database/notes.db")), "ok\none\n");
}

fn latest(points: &[Value]) -> String {
    points.iter().map(|point| point["taken_at"].as_str().unwrap()).max().unwrap().to_owned()
}

#[test]
fn what_the_daemon_streams_is_restored_to_its_last_second_and_to_any_before() {
    let machine = planned();
    let mut daemon = machine.spawn(&["protect", "--site", "home"]);
    let mut moments = Vec::new();
    for word in ["two", "three"] {
        let rows_now = || machine.line("--json points database").json().as_array().map_or(0, Vec::len);
        await_that("the stream's first point", || rows_now() > 0);
        moments.push(machine.shell("date -u +%Y-%m-%dT%H:%M:%S.%NZ").out.trim().to_owned());
        sql(&machine, "notes.db", &format!("insert into t(x) values('{word}')"));
        // In the vault's log within a moment: only then is the next one written.
        let mut tries = 0;
        await_that("the log", || {
            tries += 1;
            let to = machine.at(&format!("try-{word}-{tries}"));
            let ran = machine.line(&format!("restore database --key owner.key --to {to}"));
            ran.code == 0 && rows(&Path::new(&to).join("notes.db")).contains(word)
        });
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&daemon), rustix::process::Signal::TERM).unwrap();
    assert_eq!(daemon.wait().unwrap().code(), Some(0));
    let ran =
        machine.line(&format!("--json restore database --key owner.key --to {}", machine.at("last"))).ends(0).json();
    assert!(ran["as_of"].as_str() > ran["taken_at"].as_str(), "{ran}");
    assert_eq!(rows(&machine.path("last/notes.db")), "ok\none,two,three\n");
    for (moment, expected) in moments.iter().zip(["ok\none\n", "ok\none,two\n"]) {
        let to = machine.at(&format!("at-{moment}"));
        machine.line(&format!("restore database --key owner.key --at {moment} --to {to}")).ends(0);
        assert_eq!(rows(&Path::new(&to).join("notes.db")), expected);
    }
    // Without the plan as well: the vault knows that there is a log.
    let to = machine.at("no-plan");
    machine.line(&format!("restore database --vault {} --key paper.key --to {to}", machine.at("backup"))).ends(0);
    assert_eq!(rows(&machine.path("no-plan/notes.db")), "ok\none,two,three\n");
    assert!(machine.line("points").ends(0).out.contains("database"));
}

#[test]
fn in_place_a_data_set_is_changed_only_where_it_differs() {
    let machine = planned();
    sql(&machine, "notes.db", "insert into t(x) select hex(randomblob(2000)) from generate_series(1, 300)");
    machine.line("backup").ends(0);
    machine.line(&format!("restore notes --key owner.key --to {}", machine.at("out"))).ends(0);
    let original = fs::read(machine.path("out/database/notes.db")).unwrap();
    sql(&machine, "out/database/notes.db", "pragma journal_mode=delete; delete from t where n = 200");
    let line = format!("--json restore database --key owner.key --in-place --yes --to {}", machine.at("out/database"));
    let ran = machine.line(&line).ends(0).json();
    assert_eq!(fs::read(machine.path("out/database/notes.db")).unwrap(), original);
    let (written, bytes) = (ran["bytes_written"].as_u64().unwrap(), ran["bytes"].as_u64().unwrap());
    assert!(written > 0 && written < bytes / 2, "{written} of {bytes}");
    // And the directory beside it.
    machine.write("out/documents/letter", "spoilt");
    let line =
        format!("--json restore documents --key owner.key --in-place --yes --to {}", machine.at("out/documents"));
    assert_eq!(machine.line(&line).ends(0).json()["bytes_written"], 11);
    fs::remove_file(machine.path("documents/draft.tmp")).unwrap();
    machine.shell(&format!("touch -r {} {}", machine.at("out/documents"), machine.at("documents"))).ends(0);
    assert_alike(&machine.path("documents"), &machine.path("out/documents"));
}
