//! The ladder of a lost instance: its own volumes where they are, a standby, the newest recovery point, an older one. Whatever is broken is
//! told, and the next rung is taken.

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;

use lifeboat_core::run::RunState;
use serde_json::Value;

use crate::world::{Options, World, wait_until};

const ENTRIES: usize = 20;

/// A service with entries whose instance at north has died with all that ran there; its volumes, and everything at south, are as they were.
fn lost() -> World {
    let mut world = World::new(&Options { warm: true, ..Options::default() });
    // A quarter of it is what a rung may take.
    let plan = fs::read_to_string(world.plan()).unwrap().replace("rto = \"1h\"", "rto = \"40s\"");
    fs::write(world.plan(), plan).unwrap();
    world.up();
    // Older than what is damaged later.
    world.ok(&["canary", "pages", "--once"]);
    followed(&world);
    world.ok(&["backup", "entries", "--state", &world.path("north/.lifeboat/host")]);
    for number in 0..ENTRIES {
        world.post("north", "/entries", &format!("entry-{number}"), &format!("the text of entry {number}"));
    }
    followed(&world);
    world.kill_north();
    world
}

/// Waits until the standby has all that is there now.
fn followed(world: &World) {
    let since = jiff::Timestamp::now();
    for dataset in ["entries", "docs"] {
        wait_until("the standby has all of it", || {
            let report = world.arbiter().agent_report("south", dataset).unwrap();
            let applied = report.and_then(|report| report.applied?.parse::<jiff::Timestamp>().ok());
            applied.is_some_and(|applied| applied > since)
        });
    }
}

fn database(world: &World) -> String {
    world.path("north/volumes/entries/logbook.db")
}

/// Gives the database at north pages of nonsense.
fn damage(world: &World) {
    // What its log has of these pages would cover them.
    let checkpoint = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('pragma wal_checkpoint(truncate)')";
    let ran = Command::new("/usr/bin/python3").args(["-c", checkpoint, &database(world)]).status().unwrap();
    assert!(ran.success());
    let file = fs::File::options().write(true).open(database(world)).unwrap();
    file.write_all_at(&[0xab; 8192], 4096).unwrap();
}

fn recover(world: &World) -> String {
    let key = world.path("owner.key");
    let output = world.lifeboat(&["failover", "pages", "--scenario", "instance-lost", "--yes", "--key", &key]);
    let said = crate::world::text(&output.stderr) + &crate::world::text(&output.stdout);
    let facts = || world.run().step("restore-entries").map(|step| step.facts.clone());
    assert!(matches!(output.status.code(), Some(0 | 3)), "{:#?}\n{said}", facts());
    said
}

fn outcome(world: &World, step: &str) -> Option<String> {
    world.run().step(step).unwrap().outcome.clone()
}

/// How many entries the service has, at the site where it alone is.
fn entries(world: &World, site: &str) -> usize {
    let other = if site == "north" { "south" } else { "north" };
    assert_eq!(world.get(other, world.page()), None, "it runs at {other}, too");
    let listed: Value = serde_json::from_str(&world.get(site, "/entries").unwrap()).unwrap();
    listed.as_array().map_or_else(|| listed["entries"].as_array().unwrap().len(), Vec::len)
}

/// What the evidence holds against the run.
fn reservations(world: &World) -> String {
    let told: Value = serde_json::from_str(&world.ok(&["evidence", &world.run().run, "--json"])).unwrap();
    told["reservations"].to_string()
}

#[test]
fn a_sound_volume_comes_back_where_it_is_and_nothing_changes_hands() {
    let world = lost();
    let said = recover(&world);
    assert_eq!(outcome(&world, "restart-north").as_deref(), Some("recovered"), "{said}");
    assert_eq!(entries(&world, "north"), ENTRIES);
    let run = world.run();
    assert_eq!((run.state, run.committed), (RunState::Completed, false));
    assert!(run.steps.iter().all(|step| step.id != "claim-epoch" || step.status == "not-taken"));
    let writer = world.arbiter().desired_writer("pages").unwrap().unwrap();
    assert_eq!((writer.primary.as_str(), writer.epoch), ("north", 1));
    // What was left is kept as it was left.
    let kept = world.volumes("north").into_iter().filter(|name| name.contains(".snapshot-before-2")).count();
    assert_eq!(kept, 2, "{:?}", world.volumes("north"));
    // So is what the next incident leaves.
    world.kill_north();
    recover(&world);
    let kept = world.volumes("north").into_iter().filter(|name| name.contains(".snapshot-before-2")).count();
    assert_eq!((kept, entries(&world, "north")), (4, ENTRIES), "{:?}", world.volumes("north"));
    let told: Value = serde_json::from_str(&world.ok(&["evidence", &run.run, "--json"])).unwrap();
    assert!(told["verdict"].as_str().unwrap().starts_with("pages recovered at north"), "{told:#}");
}

#[test]
fn a_damaged_volume_gives_way_to_the_standby_and_nothing_of_it_is_shipped() {
    let world = lost();
    damage(&world);
    let said = recover(&world);
    assert_eq!(outcome(&world, "look-through-entries").as_deref(), Some("unsound"), "{said}");
    for step in ["restart-north", "ensure-agent-north-to-salvage", "salvage-north"] {
        assert_eq!(world.run().step(step).unwrap().status, "not-taken", "{step}");
    }
    assert_eq!(outcome(&world, "inspect-standby").as_deref(), Some("usable"));
    assert_eq!(entries(&world, "south"), ENTRIES);
    let told = reservations(&world);
    assert!(told.contains("Recover `entries` at north from what lies there") && told.contains("integrity"), "{told}");
}

#[test]
fn a_volume_that_starts_and_lacks_what_was_written_has_not_come_back() {
    let world = lost();
    for suffix in ["-wal", "-shm"] {
        fs::remove_file(database(&world) + suffix).unwrap();
    }
    let said = recover(&world);
    assert_eq!(outcome(&world, "restart-north").as_deref(), Some("recovered"), "{said}");
    assert_eq!(world.run().step("read-canary-in-place").unwrap().status, "failed", "{said}");
    assert_eq!(world.run().step("salvage-north").unwrap().status, "not-taken", "{said}");
    assert_eq!(entries(&world, "south"), ENTRIES);
    assert!(reservations(&world).contains("Read a canary back that was written before"));
}

#[test]
fn a_service_that_does_not_come_up_on_its_volume_is_stopped_again_and_goes_elsewhere() {
    let world = lost();
    // Somebody else has its address, until it was tried in vain.
    let other = std::net::TcpListener::bind((world.addresses[0].as_str(), crate::world::PORT)).unwrap();
    let said = std::thread::scope(|scope| {
        let recovering = scope.spawn(|| recover(&world));
        wait_until("the first rung has come to nothing", || {
            let runs = world.runs();
            runs > 0 && world.run().step("restart-north").is_some_and(|step| step.outcome.is_some())
        });
        drop(other);
        recovering.join().unwrap()
    });
    assert_eq!(outcome(&world, "look-through-entries").as_deref(), Some("sound"), "{said}");
    assert_eq!(outcome(&world, "restart-north").as_deref(), Some("not-recovered"), "{said}");
    assert_eq!(outcome(&world, "salvage-north").as_deref(), Some("frozen"), "{said}");
    let listed: Value = serde_json::from_str(&world.get("south", "/entries").unwrap()).unwrap();
    assert!(listed.to_string().contains("entry-19"), "{listed}");
    assert!(reservations(&world).contains("Start the service again at north, where it was"));
}

#[test]
fn without_a_standby_the_newest_recovery_point_is_taken_and_an_older_one_where_that_is_damaged() {
    for damaged in [false, true] {
        let world = lost();
        damage(&world);
        let plan = fs::read_to_string(world.plan()).unwrap().replace("warm-standby", "backup-restore");
        fs::write(world.plan(), plan).unwrap();
        if damaged {
            let newest = newest_of_log(&world);
            fs::write(&newest, "nonsense").unwrap();
        }
        let said = recover(&world);
        assert_eq!(outcome(&world, "look-through-entries").as_deref(), Some("unsound"), "{said}");
        assert_eq!(outcome(&world, "restore-entries").as_deref(), Some("restored"), "{said}");
        let present = entries(&world, "south");
        assert!(if damaged { present <= ENTRIES } else { present == ENTRIES }, "{present}");
        let gave_way = world.run().step("restore-entries").unwrap().facts["gave_way"].clone();
        assert_eq!(gave_way.as_array().unwrap().is_empty(), !damaged, "{gave_way}");
        assert_eq!(reservations(&world).contains("did not restore"), damaged);
    }
}

/// The last object of the entries' log.
fn newest_of_log(world: &World) -> std::path::PathBuf {
    let mut open = vec![world.root.join("vault/log")];
    let mut newest = None;
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            newest = newest.max(Some((fs::metadata(&path).unwrap().modified().unwrap(), path)));
        }
    }
    newest.unwrap().1
}
