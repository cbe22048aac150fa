//! The load client and its ledger: what it remembers is true, whatever happens to the service.

use std::path::Path;

use lifeboat_logbook::{Kind, Ledger, read_ledger};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::ports::free_port;
use crate::process::{Process, door, logbook, start_load, start_name_server, start_service, wait_for};

struct World {
    home: TempDir,
    name_server: Process,
    service: Process,
    door: Vec<String>,
    authority_port: u16,
}

/// A service on an address of its own, and the name server that knows it.
fn world() -> World {
    let home = tempfile::tempdir().unwrap();
    // Some start it again, or start another at the same port of another address.
    let listen = format!("127.0.0.1:{}", free_port());
    let (service, address) = start_service(home.path(), &listen, &[]);
    let authority_port = free_port();
    let name_server = start_name_server(home.path(), authority_port, "127.0.0.1");
    World { home, name_server, service, door: door(authority_port, address.port()), authority_port }
}

fn acknowledged(ledger: &Path) -> usize {
    read_ledger(ledger).map(|ledger| ledger.acknowledged.len()).unwrap_or_default()
}

fn reconcile(door: &[String], ledger: &Path) -> (Option<i32>, serde_json::Value) {
    let output = logbook().arg("reconcile").args(door).arg("--ledger").arg(ledger).output().unwrap();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default())
}

fn ids(ledger: &Ledger) -> std::collections::BTreeSet<&str> {
    ledger.acknowledged.iter().map(|write| write.id.as_str()).collect()
}

#[test]
fn a_load_of_a_given_count_is_all_there_afterwards() {
    let world = world();
    let path = world.home.path().join("ledger");
    let load = logbook()
        .arg("load")
        .args(&world.door)
        .arg("--ledger")
        .arg(&path)
        .args(["--count", "60", "--rate", "400", "--upload-every", "10", "--seconds", "60"])
        .output()
        .unwrap();
    assert!(load.status.success(), "{}", String::from_utf8_lossy(&load.stderr));
    let ledger = read_ledger(&path).unwrap();
    assert_eq!((ledger.acknowledged.len(), ids(&ledger).len()), (60, 60));
    assert_eq!(ledger.acknowledged.iter().filter(|write| write.kind == Kind::Upload).count(), 6);
    let (code, result) = reconcile(&world.door, &path);
    assert_eq!((code, &result["present"], &result["uploads_acknowledged"]), (Some(0), &60.into(), &6.into()));
}

#[test]
fn a_killed_service_is_one_outage_and_no_acknowledged_write_is_lost_by_it() {
    let world = world();
    let path = world.home.path().join("ledger");
    let load = start_load(&world.door, &path, &["--rate", "200"]);
    wait_for("some writes", || (acknowledged(&path) > 20).then_some(()));
    world.service.kill();
    wait_for("the outage to be noticed", || (!read_ledger(&path).unwrap().outages.is_empty()).then_some(()));
    let before = acknowledged(&path);
    let listen = format!("127.0.0.1:{}", world.door[5]);
    let (_service, _) = start_service(world.home.path(), &listen, &[]);
    wait_for("writes to go on", || (acknowledged(&path) > before + 20).then_some(()));
    assert_eq!(load.terminate(), Some(0));

    let ledger = read_ledger(&path).unwrap();
    let outage = &ledger.outages[0];
    assert!(outage.first_success_at.unwrap() > outage.first_failure_at, "{outage:?}");
    let (code, result) = reconcile(&world.door, &path);
    assert_eq!((code, &result["missing"]), (Some(0), &serde_json::json!([])));
}

#[test]
fn the_client_follows_the_name_to_another_address() {
    let world = world();
    let other_home = tempfile::tempdir().unwrap();
    let listen = format!("127.0.0.77:{}", world.door[5]);
    let (_other, other) = start_service(other_home.path(), &listen, &[]);
    let path = world.home.path().join("ledger");
    let load = start_load(&world.door, &path, &["--rate", "100", "--upload-every", "0"]);
    wait_for("some writes at the first address", || (acknowledged(&path) > 10).then_some(()));
    world.name_server.kill();
    let _name_server = start_name_server(world.home.path(), world.authority_port, "127.0.0.77");
    let moved = || read_ledger(&path).unwrap().acknowledged.iter().any(|write| write.server == other);
    wait_for("writes at the second address", || moved().then_some(()));
    assert_eq!(load.terminate(), Some(0));

    // The second database never had what went to the first: reconcile must say so, and when.
    let ledger = read_ledger(&path).unwrap();
    let elsewhere = ledger.acknowledged.iter().filter(|write| write.server != other).count();
    let (code, result) = reconcile(&world.door, &path);
    assert_eq!((code, result["missing"].as_array().map(Vec::len)), (Some(3), Some(elsewhere)));
    let first = serde_json::to_value(ledger.acknowledged[0].acknowledged_at).unwrap();
    assert_eq!(result["missing"][0]["acknowledged_at"], first);
}

#[test]
fn garbled_content_is_wrong_and_not_present() {
    let world = world();
    let path = world.home.path().join("ledger");
    let load = ["--count", "12", "--rate", "400", "--upload-every", "4", "--seconds", "60"];
    let status = logbook().arg("load").args(&world.door).arg("--ledger").arg(&path).args(load).status().unwrap();
    assert!(status.success());
    let database = rusqlite::Connection::open(world.home.path().join("logbook.db")).unwrap();
    database.execute("UPDATE entries SET text = 'NaN' WHERE sequence = 2", []).unwrap();
    let ledger = read_ledger(&path).unwrap();
    let upload = ledger.acknowledged.iter().find(|write| write.kind == Kind::Upload).unwrap();
    std::fs::write(world.home.path().join("uploads").join(&upload.id), b"other").unwrap();

    let (code, result) = reconcile(&world.door, &path);
    assert_eq!((code, &result["present"], &result["missing"]), (Some(3), &10.into(), &serde_json::json!([])));
    assert_eq!(result["wrong_content"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_service_that_cannot_be_asked_is_an_error_and_no_count() {
    let world = world();
    let path = world.home.path().join("ledger");
    let status = logbook()
        .arg("load")
        .args(&world.door)
        .arg("--ledger")
        .arg(&path)
        .args(["--count", "3", "--seconds", "60"])
        .status()
        .unwrap();
    assert!(status.success());
    world.service.kill();
    let output = logbook().arg("reconcile").args(&world.door).arg("--ledger").arg(&path).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("nothing can be said of its data"), "{said}");
}

#[test]
fn a_ledger_cut_off_by_a_kill_goes_on_with_a_line_of_its_own() {
    let world = world();
    let path = world.home.path().join("ledger");
    let mut load = start_load(&world.door, &path, &["--rate", "300"]);
    wait_for("some writes", || (acknowledged(&path) > 5).then_some(()));
    load.signal(Signal::KILL);
    drop(load);
    let mut bytes = std::fs::read(&path).unwrap();
    let whole = acknowledged(&path);
    bytes.extend_from_slice(b"{\"record\":\"acknowledged\",\"ki");
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(acknowledged(&path), whole);

    let load = start_load(&world.door, &path, &["--rate", "300"]);
    wait_for("more writes", || (acknowledged(&path) > whole + 5).then_some(()));
    assert_eq!(load.terminate(), Some(0));
    assert_eq!(reconcile(&world.door, &path).0, Some(0));
}

#[test]
fn a_damaged_ledger_is_named_with_its_line() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("ledger");
    std::fs::write(&path, "{\"record\":\"outage-began\"}\n").unwrap();
    let error = read_ledger(&path).unwrap_err();
    let expected =
        format!("line 1 of the ledger {} cannot be read: it is not this program's, or it was damaged", path.display());
    assert_eq!(error.to_string(), expected);
}
