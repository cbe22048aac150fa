//! One program for all fuzz targets: `LIFEBOAT_FUZZ` names the parser, `LIFEBOAT_FUZZ=list` lists them, and
//! `LIFEBOAT_FUZZ_SEEDS=DIR` writes something to begin with for each.
//!
//! Invariant: what a target refuses it refuses with an error; a panic, or memory without bound, is a finding.
#![no_main]

use std::path::Path;
use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use lifeboat_core::run::{NO_PREDECESSOR, Sealed};
use lifeboat_engine::arbitrate::{Arbiter, Trusted, Trustee};
use lifeboat_engine::port::Clock;
use lifeboat_vault::fuzzing::{self, Door};
use lifeboat_vault::storage::{MemoryStorage, Storage};
use lifeboat_vault::{Role, Signed, SigningKey};

/// Parsers that are not the vault's.
const OTHERS: &[Door] = &[("plan", plan), ("journal-entry", journal_entry), ("arbiter", arbiter)];

fn doors() -> impl Iterator<Item = &'static Door> {
    fuzzing::DOORS.iter().chain(lifeboat_adapters::fuzzing::DOORS).chain(OTHERS)
}

fn plan(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = lifeboat_core::plan::parse(&[("lifeboat.toml", text)]);
    }
}

/// As it lies in a journal, and with a hash that is right.
fn journal_entry(data: &[u8]) {
    if let Ok(sealed) = serde_json::from_slice::<Sealed>(data) {
        let _ = sealed.open("run", 1, NO_PREDECESSOR);
    }
    if let Ok(body) = std::str::from_utf8(data) {
        let sealed = Sealed { body: body.to_owned(), hash: blake3::hash(data).to_hex().to_string() };
        let _ = sealed.open("run", 1, NO_PREDECESSOR);
    }
}

struct Still;

impl Clock for Still {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::UNIX_EPOCH
    }
    fn monotonic_seconds(&self) -> f64 {
        0.0
    }
}

const PLACES: [&str; 9] = [
    "epochs/d/1",
    "desired/d/1",
    "traffic/n./1",
    "agents/s/d",
    "leases/n/d/1",
    "locks/s/1",
    "lock-beats/s/1",
    "canary/s/1",
    "journal/r/1",
];

/// The first byte chooses the place, the rest is what a controller signed there.
fn arbiter(data: &[u8]) {
    static KEY: OnceLock<Arc<SigningKey>> = OnceLock::new();
    let Some((&choice, payload)) = data.split_first() else { return };
    let key = KEY.get_or_init(|| Arc::new(SigningKey::generate().expect("a key can be made")));
    let storage = Arc::new(MemoryStorage::new());
    let place = PLACES[usize::from(choice) % PLACES.len()];
    if let Ok(bytes) = Signed::seal(&format!("arbiter:{place}"), payload, key) {
        let _ = storage.put(place, &bytes);
    }
    let trusted = Trusted::from([(key.public(), Trustee::new("us", &[Role::Controller, Role::Host]))]);
    let arbiter = Arbiter::new(storage, key.clone(), trusted, Arc::new(Still));
    let _ = (arbiter.current_epoch("d"), arbiter.desired_writer("d"), arbiter.last_let_write("d"));
    let _ = (arbiter.was_superseded("d", "s", 0), arbiter.traffic("n."), arbiter.agent_report("s", "d"));
    let _ = (
        arbiter.read_lease("n", "d", 1),
        arbiter.run_lock("s"),
        arbiter.canaries("s", 9),
        arbiter.mirrored_journal("r"),
    );
}

fn write_seeds(to: &Path) {
    let mut seeds: Vec<(String, Vec<u8>)> =
        fuzzing::seeds().into_iter().map(|(door, bytes)| (door.to_owned(), bytes)).collect();
    seeds.extend(lifeboat_adapters::fuzzing::seeds().into_iter().map(|(door, bytes)| (door.to_owned(), bytes)));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (path, bytes) in files(&root.join("crates/vault/tests/frozen/v1/vault")) {
        seeds.extend(fuzzing::seeds_of_object(&path, &bytes).into_iter().map(|(door, bytes)| (door.to_owned(), bytes)));
    }
    for (path, bytes) in files(&root.join("crates/core/tests")).into_iter().chain(files(&root.join("examples"))) {
        if path.ends_with(".toml") && bytes.len() < 16 << 10 {
            seeds.push(("plan".to_owned(), bytes));
        }
    }
    let bodies = [
        r#"{"write_domain":"d","epoch":1,"primary":"s","run":"r","at":"now"}"#,
        r#"{"write_domain":"d","generation":1,"epoch":1,"primary":"s","frozen":false,"at":"now"}"#,
        r#"{"name":"n.","generation":1,"epoch":1,"ttl_seconds":5,"answers":[],"at":"now"}"#,
        r#"{"site":"s","dataset":"d","role":"writer","epoch":1,"generation":1,"durable":{},"position":null,"applied":null,"finished":null,"settled":true,"problem":null,"at":"now"}"#,
        r#"{"write_domain":"d","epoch":1,"holder":"h","beat":1,"ttl_seconds":10.0}"#,
        r#"{"service":"s","number":1,"run":"r","host":"h","at":"now"}"#,
        r#"{"number":1,"beat":1,"state":"held","ttl_seconds":10.0,"at":"now"}"#,
        r#"{"service":"s","number":1,"value":"v","at":"now"}"#,
        r#"{"body":"{}","hash":"00"}"#,
    ];
    for (choice, body) in (0u8..).zip(bodies) {
        seeds.push(("arbiter".to_owned(), [&[choice], body.as_bytes()].concat()));
    }
    seeds.push(("journal-entry".to_owned(), bodies[8].as_bytes().to_vec()));
    let entry = r#"{"at":"2026-11-21T12:00:00Z","event":{"kind":"started"},"previous":"","run":"run","seq":1}"#;
    seeds.push(("journal-entry".to_owned(), entry.as_bytes().to_vec()));
    for (door, bytes) in seeds {
        let folder = to.join(door);
        std::fs::create_dir_all(&folder).expect("the seeds' directory can be made");
        std::fs::write(folder.join(&fuzzing::name_of(&bytes)[..16]), bytes).expect("a seed can be written");
    }
}

/// Every file below, by its path from there.
fn files(top: &Path) -> Vec<(String, Vec<u8>)> {
    let (mut found, mut open) = (Vec::new(), vec![top.to_owned()]);
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if let (Ok(bytes), Ok(name)) = (std::fs::read(&path), path.strip_prefix(top)) {
                found.push((name.display().to_string(), bytes));
            }
        }
    }
    found
}

fn chosen() -> fn(&[u8]) {
    static CHOSEN: OnceLock<fn(&[u8])> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        if let Some(to) = std::env::var_os("LIFEBOAT_FUZZ_SEEDS") {
            write_seeds(Path::new(&to));
            std::process::exit(0);
        }
        let wanted = std::env::var("LIFEBOAT_FUZZ").unwrap_or_default();
        if let Some((_, door)) = doors().find(|(name, _)| *name == wanted) {
            return *door;
        }
        for (name, _) in doors() {
            println!("{name}");
        }
        std::process::exit(i32::from(wanted != "list"));
    })
}

fuzz_target!(init: { chosen(); }, |data: &[u8]| chosen()(data));
