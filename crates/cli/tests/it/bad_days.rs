//! Bad days, through the binary: killed, interrupted, full, gone, read-only, two at once, clocks that go back. Each is
//! told clearly, and nothing is lost.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::machine::{Machine, Mount, assert_alike, await_that, files_below, noise};
use crate::with_plan::planned;

const MEGABYTE: usize = 1 << 20;

fn backup_line(machine: &Machine) -> String {
    format!("backup --vault {} {}", machine.at("backup"), machine.at("data"))
}

fn restore_line(machine: &Machine, to: &str) -> String {
    format!("restore --vault {} --key owner.key --to {}", machine.at("backup"), machine.at(to))
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// Three packs and a bit, in large files and small ones.
fn some_data(machine: &Machine) {
    for number in 0..5 {
        machine.write(&format!("data/large-{number}"), noise(number, 10 * MEGABYTE));
    }
    for number in 0..200 {
        machine.write(&format!("data/many/{number}"), noise(1000 + number, 3000));
    }
}

fn packs(machine: &Machine) -> usize {
    files_below(&machine.path("backup/pack")).len()
}

#[track_caller]
fn assert_sound(machine: &Machine) {
    let line = format!("--json vault check --vault {} --key owner.key --read-data", machine.at("backup"));
    let report = machine.line(&line).ends(0).json();
    assert_eq!(report["findings"].as_array().map(Vec::len), Some(0), "{report}");
}

#[test]
fn a_first_backup_killed_at_any_moment_goes_on_and_restores_exactly() {
    let machine = Machine::new();
    some_data(&machine);
    machine.make_vault();
    let began = Instant::now();
    machine.line(&backup_line(&machine)).ends(0);
    let whole = began.elapsed();
    let all_packs = packs(&machine);
    assert!(all_packs > 2, "{all_packs}");
    let seed = 20_261_121;
    let mut killed_on_the_way = 0;
    for round in 0..20 {
        for name in ["backup", "home", "out"] {
            let _ = fs::remove_dir_all(machine.path(name));
        }
        for key in ["owner.key", "paper.key"] {
            fs::remove_file(machine.path("work").join(key)).unwrap();
        }
        fs::create_dir(machine.path("home")).unwrap();
        machine.make_vault();
        let mut child = machine.spawn(&words(&backup_line(&machine)));
        let random = u64::from_le_bytes(noise(seed + round, 8).try_into().unwrap());
        // Half of them by time alone, half once something has been stored; the moment is what is being tried.
        let moment = match round % 2 {
            0 => whole.mul_f64(random as f64 / u64::MAX as f64),
            _ => {
                let wanted = 1 + random as usize % (all_packs - 2);
                await_that("packs", || packs(&machine) >= wanted || child.try_wait().unwrap().is_some());
                Duration::from_micros(random % 20_000)
            }
        };
        std::thread::sleep(moment);
        child.kill().unwrap();
        child.wait().unwrap();
        let uploaded = packs(&machine);
        let points = machine.line(&format!("--json points --vault {}", machine.at("backup"))).ends(0).json();
        let is_done = !points.as_array().unwrap().is_empty();
        killed_on_the_way += usize::from(!is_done && uploaded > 0);

        let resumed = machine.line(&format!("--json {}", backup_line(&machine))).ends(0).json();
        let told = format!("seed {seed}, round {round}, killed after {moment:?} with {uploaded} packs: {resumed}");
        // What was uploaded is not uploaded again: all packs together are as many as in one go, or one more.
        assert!(packs(&machine) <= all_packs + 1, "{} packs; {told}", packs(&machine));
        if uploaded > 0 {
            let stored = resumed["bytes_stored"].as_u64().unwrap();
            // What was cut off in the middle may have left a pack more than a run in one go makes.
            let packs_left = all_packs.saturating_sub(uploaded) + 1;
            assert!(stored <= packs_left as u64 * 18 * MEGABYTE as u64, "{told}");
        }
        machine.line(&restore_line(&machine, "out")).ends(0);
        assert_alike(&machine.path("data"), &machine.path("out"));
        assert_sound(&machine);
    }
    assert!(killed_on_the_way > 4, "only {killed_on_the_way} of 20 were killed with something stored");
}

#[test]
fn ctrl_c_ends_with_130_and_both_directions_go_on() {
    let machine = Machine::new();
    for number in 0..6 {
        machine.write(&format!("data/{number}"), noise(number, 32 * MEGABYTE));
    }
    machine.make_vault();
    let child = machine.spawn(&words(&backup_line(&machine)));
    await_that("the first pack", || packs(&machine) > 0);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let ran = machine.finish(child).ends(130);
    assert!(ran.err.contains("what was stored so far is kept, run it again to go on"), "{}", ran.err);
    let stored = packs(&machine);
    let resumed = machine.line(&format!("--json {}", backup_line(&machine))).ends(0).json();
    let total = resumed["bytes"].as_u64().unwrap();
    assert!(resumed["bytes_new"].as_u64().unwrap() < total, "{stored} packs were there: {resumed}");
    assert_sound(&machine);

    let child = machine.spawn(&words(&restore_line(&machine, "out")));
    let partial = || {
        let entries = fs::read_dir(machine.root()).unwrap().flatten();
        let mut begun = entries.filter(|entry| entry.file_name().to_string_lossy().contains(".lifeboat-partial-"));
        begun.next().map(|entry| entry.path())
    };
    await_that("something restored", || {
        partial()
            .is_some_and(|path| files_below(&path).iter().any(|file| fs::metadata(file).is_ok_and(|m| m.len() > 0)))
    });
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let ran = machine.finish(child).ends(130);
    assert!(ran.err.contains("run it again to go on") && ran.err.contains(".lifeboat-partial-"), "{}", ran.err);
    assert!(!machine.path("out").exists(), "what is not whole does not look whole");
    let resumed = machine.line(&format!("--json {}", restore_line(&machine, "out"))).ends(0).json();
    assert_eq!(resumed["resumed"], true);
    assert!(partial().is_none());
    assert_alike(&machine.path("data"), &machine.path("out"));
}

#[test]
fn a_full_disk_fails_the_backup_loses_nothing_and_goes_on_with_room() {
    let machine = Machine::new();
    let disk = Mount::tmpfs(&machine.path("backup"), 24);
    machine.make_vault();
    machine.write("data/first", noise(1, 2 * MEGABYTE));
    machine.line(&backup_line(&machine)).ends(0);
    for number in 0..4 {
        machine.write(&format!("data/more-{number}"), noise(10 + number, 10 * MEGABYTE));
    }
    let ran = machine.line(&backup_line(&machine)).ends(1);
    let place =
        format!("the storage at {} is full; free some space, nothing that was stored is lost", machine.at("backup"));
    assert!(ran.err.contains(&place), "{}", ran.err);
    assert!(ran.err.contains("run it again to go on") || ran.err.contains("start it again"), "{}", ran.err);
    // Restoring needs no room in the vault.
    machine.line(&restore_line(&machine, "before")).ends(0);
    assert_eq!(fs::read(machine.path("before/first")).unwrap(), noise(1, 2 * MEGABYTE));
    assert!(!machine.path("before/more-0").exists());
    disk.resize(96);
    let resumed = machine.line(&format!("--json {}", backup_line(&machine))).ends(0).json();
    assert!(resumed["bytes_new"].as_u64().unwrap() <= 41 * MEGABYTE as u64, "{resumed}");
    machine.line(&restore_line(&machine, "after")).ends(0);
    assert_alike(&machine.path("data"), &machine.path("after"));
    assert_sound(&machine);
}

#[test]
fn a_full_disk_fails_the_restore_which_never_looks_whole_and_goes_on_with_room() {
    let machine = Machine::new();
    machine.make_vault();
    some_data(&machine);
    machine.line(&backup_line(&machine)).ends(0);
    let disk = Mount::tmpfs(&machine.path("small"), 20);
    let ran = machine.line(&restore_line(&machine, "small/out")).ends(1);
    assert!(ran.err.contains(&machine.at("small")) && ran.err.contains("make room"), "{}", ran.err);
    assert!(ran.err.contains("No space left on device"), "{}", ran.err);
    assert!(!machine.path("small/out").exists());
    // Onto the mount point itself, which cannot be renamed over: a marker says what it is.
    let other = Mount::tmpfs(&machine.path("point"), 20);
    machine.line(&restore_line(&machine, "point")).ends(1);
    assert!(machine.path("point/.lifeboat-restore-incomplete").exists());
    disk.resize(96);
    let resumed = machine.line(&format!("--json {}", restore_line(&machine, "small/out"))).ends(0).json();
    assert_eq!(resumed["resumed"], true);
    assert_alike(&machine.path("data"), &machine.path("small/out"));
    other.resize(96);
    machine.line(&restore_line(&machine, "point")).ends(0);
    assert_alike(&machine.path("data"), &machine.path("point"));
}

#[test]
fn a_full_disk_under_this_host_s_own_state_fails_clearly() {
    let machine = Machine::new();
    machine.make_vault();
    some_data(&machine);
    machine.write("data/last", "last");
    let state = machine.path("state");
    let disk = Mount::tmpfs(&state, 1);
    let run = |line: &str| {
        let mut command = machine.command(&words(line));
        command.env("LIFEBOAT_STATE", &state);
        machine.ran(command)
    };
    let asked = run(&format!("--json vault enroll --vault {} --host beta", machine.at("backup"))).json();
    let approve = format!("vault enroll --vault {} --key owner.key --approve", machine.at("backup"));
    machine.line(&format!("{approve} {}", asked["fingerprint"].as_str().unwrap())).ends(0);
    fs::write(state.join("filler"), noise(1, MEGABYTE)).unwrap_err();
    let ran = run(&backup_line(&machine)).ends(1);
    assert!(ran.err.contains(&state.display().to_string()) && ran.err.contains("No space left"), "{}", ran.err);
    fs::remove_file(state.join("filler")).unwrap();
    disk.resize(16);
    let ran = run(&backup_line(&machine));
    assert!(matches!(ran.code, 0 | 3), "{ran:?}");
    machine.line(&restore_line(&machine, "out"));
    assert_alike(&machine.path("data"), &machine.path("out"));
}

#[test]
fn a_vault_that_is_gone_before_or_meanwhile_is_named_and_nothing_is_made_in_its_place() {
    let machine = Machine::new();
    machine.make_vault();
    some_data(&machine);
    fs::rename(machine.path("backup"), machine.path("away")).unwrap();
    let ran = machine.line(&backup_line(&machine)).ends(1);
    assert!(
        ran.err.contains(&format!("{} is gone", machine.at("backup"))) && ran.err.contains("mount it"),
        "{}",
        ran.err
    );
    let ran = machine.line(&restore_line(&machine, "out")).ends(1);
    assert!(ran.err.contains(&format!("{} is gone", machine.at("backup"))), "{}", ran.err);
    assert!(!machine.path("backup").exists() && !machine.path("out").exists());
    // An empty directory in its place, as an unmounted disk leaves: no vault, and it stays empty.
    fs::create_dir(machine.path("backup")).unwrap();
    let ran = machine.line(&backup_line(&machine)).ends(1);
    assert!(ran.err.contains("there is no vault at"), "{}", ran.err);
    assert!(fs::read_dir(machine.path("backup")).unwrap().next().is_none());
    fs::remove_dir(machine.path("backup")).unwrap();
    fs::rename(machine.path("away"), machine.path("backup")).unwrap();

    for number in 0..8 {
        machine.write(&format!("data/extra-{number}"), noise(50 + number, 20 * MEGABYTE));
    }
    let child = machine.spawn(&words(&backup_line(&machine)));
    await_that("the first pack", || packs(&machine) > 0);
    fs::rename(machine.path("backup"), machine.path("away")).unwrap();
    let ran = machine.finish(child).ends(1);
    assert!(ran.err.contains(&machine.at("backup")) && ran.err.contains("gone"), "{}", ran.err);
    assert!(!machine.path("backup").exists());
    fs::rename(machine.path("away"), machine.path("backup")).unwrap();
    machine.line(&backup_line(&machine)).ends(0);
    machine.line(&restore_line(&machine, "out")).ends(0);
    assert_alike(&machine.path("data"), &machine.path("out"));
    assert_sound(&machine);
}

#[test]
fn a_vault_that_is_read_only_restores_and_refuses_the_rest() {
    let machine = Machine::new();
    machine.make_vault();
    machine.write("data/file", "content");
    machine.line(&backup_line(&machine)).ends(0);
    let view = machine.at("view");
    let _mount = Mount::read_only(&machine.path("backup"), Path::new(&view));
    machine.write("data/file", "changed");
    let ran = machine.line(&format!("backup --vault {view} {}", machine.at("data"))).ends(1);
    let said = format!("the storage at {view} does not let this process write");
    assert!(ran.err.contains(&said) && ran.err.contains("mounted read-only"), "{}", ran.err);
    let recipient = machine.line("key new -o third.key").ends(0).out;
    let ran =
        machine.line(&format!("vault recipients add {} --vault {view} --key owner.key", recipient.trim())).ends(1);
    assert!(ran.err.contains(&said), "{}", ran.err);
    machine.line(&format!("restore --vault {view} --key owner.key --to {}", machine.at("out")));
    assert_eq!(fs::read_to_string(machine.path("out/file")).unwrap(), "content");
    machine.line(&format!("vault check --vault {view} --key owner.key --read-data")).ends(0);
}

#[test]
fn two_backups_of_one_data_set_at_once_both_make_points_that_are_right() {
    let machine = Machine::new();
    machine.make_vault();
    machine.write("data/constant", noise(99, 4 * MEGABYTE));
    for round in 0..5u64 {
        machine.write("data/changing", noise(100 + round, 4 * MEGABYTE));
        let line = format!("--json {}", backup_line(&machine));
        let children: Vec<_> = (0..3).map(|_| machine.spawn(&words(&line))).collect();
        let points: Vec<String> = children
            .into_iter()
            .map(|child| machine.finish(child).ends(0).json()["point"].as_str().unwrap().to_owned())
            .collect();
        for (number, point) in points.iter().enumerate() {
            assert!(!points[..number].contains(point), "{points:?}");
            let to = format!("out-{round}-{number}");
            machine.line(&format!("{} --point {point}", restore_line(&machine, &to))).ends(0);
            assert_alike(&machine.path("data"), &machine.path(&to));
            fs::remove_dir_all(machine.path(&to)).unwrap();
        }
    }
    assert_sound(&machine);
    let points = machine.line(&format!("--json points --vault {}", machine.at("backup"))).ends(0).json();
    assert_eq!(points.as_array().unwrap().len(), 15);
}

#[test]
fn a_clock_that_goes_back_loses_nothing_and_is_told() {
    let machine = Machine::new();
    machine.make_vault();
    let at = |shift: &str, line: &str| {
        let mut command = Command::new("faketime");
        command.args(["--exclude-monotonic", "-f", shift]).arg(machine.path("bin/lifeboat")).args(words(line));
        command.env("HOME", machine.path("home")).env("PATH", "/usr/bin:/bin").current_dir(machine.path("work"));
        machine.ran(command)
    };
    machine.write("data/file", "first");
    let first = at("+0d", &format!("--json {}", backup_line(&machine))).ends(0).json();
    machine.write("data/file", "second");
    let ran = at("-2d", &format!("--json {}", backup_line(&machine))).ends(3);
    assert!(ran.err.contains("this host's clock went back"), "{}", ran.err);
    let second = ran.json();
    assert!(second["taken_at"].as_str() < first["taken_at"].as_str(), "{first} {second}");
    assert!(second["clock_back_seconds"].as_f64().unwrap() > 86400.0, "{second}");

    // The newest is what was taken last, whatever the clock said.
    let ran = machine.line(&restore_line(&machine, "newest")).ends(0);
    assert!(ran.err.contains("the clock of alpha had gone back"), "{}", ran.err);
    assert_eq!(fs::read_to_string(machine.path("newest/file")).unwrap(), "second");
    machine.line(&format!("{} --point 1", restore_line(&machine, "first"))).ends(0);
    assert_eq!(fs::read_to_string(machine.path("first/file")).unwrap(), "first");
    // And it goes on so: still behind, then right again.
    for (shift, version) in [("-1d", "third"), ("+0d", "fourth")] {
        machine.write("data/file", version);
        at(shift, &backup_line(&machine)).ends(0);
        let to = format!("after-{version}");
        machine.line(&restore_line(&machine, &to)).ends(0);
        assert_eq!(fs::read_to_string(machine.path(&to).join("file")).unwrap(), version);
    }
    let points = machine.line(&format!("--json points --vault {}", machine.at("backup"))).ends(0).json();
    let numbers: Vec<String> = points
        .as_array()
        .unwrap()
        .iter()
        .map(|point| point["id"].as_str().unwrap().rsplit('/').next().unwrap().to_owned())
        .collect();
    assert_eq!(numbers, ["0000000001", "0000000002", "0000000003", "0000000004"]);
    machine.line(&format!("vault check --vault {} --key owner.key --read-data", machine.at("backup"))).ends(0);
}

#[test]
fn a_restore_killed_at_any_moment_never_looks_whole() {
    let machine = Machine::new();
    machine.make_vault();
    some_data(&machine);
    machine.line(&backup_line(&machine)).ends(0);
    let began = Instant::now();
    machine.line(&restore_line(&machine, "whole")).ends(0);
    let whole = began.elapsed();
    for round in 0..8u64 {
        let mut child = machine.spawn(&words(&restore_line(&machine, "out")));
        let random = u64::from_le_bytes(noise(77 + round, 8).try_into().unwrap());
        std::thread::sleep(whole.mul_f64(random as f64 / u64::MAX as f64).max(Duration::from_millis(1)));
        child.kill().unwrap();
        child.wait().unwrap();
        if !machine.path("out").exists() {
            machine.line(&restore_line(&machine, "out")).ends(0);
        }
        assert_alike(&machine.path("data"), &machine.path("out"));
        fs::remove_dir_all(machine.path("out")).unwrap();
    }
}

/// Some 40 MB more in the plan's database.
fn fill_database(machine: &Machine) {
    let fill = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000) \
                insert into t(x) select randomblob(2000) from n";
    machine.shell(&format!("sqlite3 {} '{fill}'", machine.at("notes.db"))).ends(0);
}

/// What the database says of its own content.
fn digest(machine: &Machine, database: &str) -> String {
    let statement = "pragma integrity_check; select count(*), sum(length(x)), max(n), hex(max(x)) from t";
    machine.shell(&format!("sqlite3 {} '{statement}'", machine.at(database))).ends(0).out
}

#[test]
fn a_database_survives_kills_full_disks_and_ctrl_c_as_files_do() {
    let machine = planned();
    fill_database(&machine);
    let mut child = machine.spawn(&["backup", "database"]);
    await_that("the first pack", || packs(&machine) > 0);
    child.kill().unwrap();
    child.wait().unwrap();
    let resumed = machine.line("--json backup database").ends(0).json();
    assert!(resumed["bytes_new"].as_u64() < resumed["bytes"].as_u64(), "{resumed}");
    assert_sound(&machine);

    let other = machine.at("other.db");
    machine.shell(&format!("sqlite3 {} \"vacuum into '{other}'\"", machine.at("notes.db"))).ends(0);
    let line = format!("backup --vault {} {other}", machine.at("backup"));
    let before = packs(&machine);
    let child = machine.spawn(&words(&line));
    await_that("another pack", || packs(&machine) > before);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let ran = machine.finish(child);
    assert!(ran.code == 130 && ran.err.contains("run it again") || ran.code == 0, "{ran:?}");
    machine.line(&line).ends(0);

    let disk = Mount::tmpfs(&machine.path("small"), 10);
    let restore = format!("restore database --key owner.key --to {}", machine.at("small/out"));
    let ran = machine.line(&restore).ends(1);
    assert!(ran.err.contains("No space left") && ran.err.contains("run it again"), "{}", ran.err);
    assert!(!machine.path("small/out/notes.db").exists());
    disk.resize(128);
    let mut child = machine.spawn(&words(&restore));
    await_that("a begun restore", || !files_below(&machine.path("small")).is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    if !machine.path("small/out/notes.db").exists() {
        machine.line(&restore).ends(0);
    }
    assert_eq!(digest(&machine, "small/out/notes.db"), digest(&machine, "notes.db"));
}
