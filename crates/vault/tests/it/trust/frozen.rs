//! Vaults of released formats, kept as they were written: every one opens, is whole, restores, and goes on being written to.
//!
//! `cargo xtask freeze` makes the example of the format that is written today.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use jiff::Timestamp;
use lifeboat_vault::files::{BackupOptions, RestoreOptions, backup_tree, restore_tree, tree_root};
use lifeboat_vault::storage::FsStorage;
use lifeboat_vault::{
    Badge, CheckOptions, HostVault, Identity, InitOptions, LogPiece, Position, Role, SessionOptions, State, Unlocked,
    Vault,
};
use serde::{Deserialize, Serialize};

use crate::trust::copy_tree;
use crate::world::host_state;

/// What an example holds, in words that no format changes.
#[derive(Debug, Serialize, Deserialize)]
struct Expected {
    owner: String,
    /// By point: path to the BLAKE3 of its contents.
    points: BTreeMap<String, BTreeMap<String, String>>,
    /// Payloads of the log of `database`, lineage `frozen`.
    log: Vec<String>,
}

fn examples() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/frozen"))
}

fn back_up(host: &HostVault, dataset: &str, tree: &Path, release: Option<&str>) -> String {
    let session = host.begin(dataset, SessionOptions::default()).unwrap();
    let roots = [tree.to_owned()];
    let summary = backup_tree(&session, &roots, &BackupOptions::default(), &(), &AtomicBool::new(false)).unwrap();
    let mut draft = summary.draft(Timestamp::now());
    draft.release = release.map(str::to_owned);
    draft.position = Some(Position { lineage: "frozen".into(), timeline: 1, counter: 3 });
    session.commit(draft).unwrap().id
}

fn contents(tree: &Path) -> BTreeMap<String, String> {
    fn walk(top: &Path, at: &Path, found: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(top).unwrap().to_str().unwrap().to_owned();
            if path.is_symlink() {
                found.insert(name, format!("-> {}", fs::read_link(&path).unwrap().display()));
            } else if path.is_dir() {
                walk(top, &path, found);
            } else {
                found.insert(name, blake3::hash(&fs::read(&path).unwrap()).to_hex().to_string());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(tree, tree, &mut found);
    found
}

/// Makes an example: two hosts, two data sets, a log, a keeper, three keys, one of them taken away again.
fn make(at: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    fs::create_dir_all(tree.join("sub/empty")).unwrap();
    fs::write(tree.join("letter"), "dear reader\n").unwrap();
    fs::write(tree.join("sub/ümlaut and space"), b"\xff\xfe bytes").unwrap();
    fs::write(tree.join("nothing"), b"").unwrap();
    let mut noise = vec![0; 60_000];
    blake3::Hasher::new().update(b"frozen").finalize_xof().fill(&mut noise);
    fs::write(tree.join("sub/noise"), &noise).unwrap();
    std::os::unix::fs::symlink("letter", tree.join("link")).unwrap();

    let keys = [Identity::generate(), Identity::generate()];
    let storage = Arc::new(FsStorage::create(at.join("vault").to_str().unwrap()).unwrap());
    let alpha = State::open(&at.join("state"), Some("alpha")).unwrap();
    let recipients = keys.iter().map(Identity::recipient).collect();
    let (host, made) =
        Vault::init(storage.clone(), &alpha, &InitOptions { recipients, ..InitOptions::default() }).unwrap();
    for (key, name) in keys.iter().zip(["owner.key", "paper.key"]) {
        fs::write(at.join(name), format!("{}\n", key.expose())).unwrap();
    }
    let mut points = BTreeMap::new();
    points.insert(back_up(&host, "files", &tree, None), contents(&tree));
    fs::write(tree.join("letter"), "dear reader, once more\n").unwrap();
    fs::remove_file(tree.join("nothing")).unwrap();
    points.insert(back_up(&host, "files", &tree, Some("2.1")), contents(&tree));
    points.insert(back_up(&host, "a b/ü", &tree.join("sub"), None), contents(&tree.join("sub")));
    let beta = host_state(&directory, "beta");
    let request = host.request_enrolment(&beta, &[Role::Host, Role::Keeper]).unwrap();
    let owner = host.unlock(&keys).unwrap();
    owner.approve_as(&request.fingerprint, &[Role::Host, Role::Keeper]).unwrap();
    let second = HostVault::open(storage.clone(), beta.clone(), Some(&made.owner)).unwrap();
    points.insert(back_up(&second, "files", &tree, None), contents(&tree));
    let newest = owner.points(None).unwrap().points.pop().unwrap();
    second.record_verification(&newest, Badge::Verified, "every chunk read").unwrap();

    let mut writer = host.log_writer("database", "frozen", 1).unwrap();
    let log: Vec<String> = (1..=3).map(|n| format!("transaction {n}")).collect();
    for (n, payload) in (1..).zip(&log) {
        let piece = LogPiece { first: n, last: n, source_time: Timestamp::now(), mark: false, final_mark: n == 3 };
        writer.append(piece, payload.as_bytes()).unwrap();
    }
    let mut receipts = lifeboat_vault::ReceiptBook::new(storage, &host.id(), beta);
    receipts.take(&newest.key, [7; 32], 100, Timestamp::now());
    receipts.sign().unwrap();
    let third = Identity::generate().recipient();
    owner.add_recipient(&third).unwrap();
    owner.remove_recipient(&third).unwrap();
    let expected = Expected { owner: made.owner, points, log };
    fs::write(at.join("expected.json"), serde_json::to_string_pretty(&expected).unwrap() + "\n").unwrap();
}

fn examine(example: &Path) {
    let work = tempfile::tempdir().unwrap();
    copy_tree(example, work.path());
    let expected: Expected = serde_json::from_slice(&fs::read(work.path().join("expected.json")).unwrap()).unwrap();
    let storage = Arc::new(FsStorage::open(work.path().join("vault").to_str().unwrap()).unwrap());
    for key in ["owner.key", "paper.key"] {
        let keys = Identity::load_all(&work.path().join(key)).unwrap();
        let unlocked = Vault::open(storage.clone(), None, Some(&expected.owner)).unwrap().unlock(&keys).unwrap();
        let report = unlocked.check(CheckOptions { read_data: true }).unwrap();
        assert!(report.is_sound(), "{}: {:?}", example.display(), report.findings);
        compare(&unlocked, &expected, work.path());
    }
    // The host of then goes on with its own state, and reuses what it stored.
    let state = State::open(&work.path().join("state"), None).unwrap();
    let host = HostVault::open(storage.clone(), state, Some(&expected.owner)).unwrap();
    let tree = work.path().join("again");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("letter"), "dear reader, once more\n").unwrap();
    let id = back_up(&host, "files", &tree, None);
    let keys = Identity::load_all(&work.path().join("owner.key")).unwrap();
    let unlocked = host.unlock(&keys).unwrap();
    let points = unlocked.points(Some("files")).unwrap();
    assert!(points.points.iter().any(|point| point.id == id), "{:?}", points.findings);
    let entry = LogPiece { first: 4, last: 4, source_time: Timestamp::now(), mark: false, final_mark: false };
    host.log_writer("database", "frozen", 2).unwrap().append(entry, b"after").unwrap();
    assert!(unlocked.check(CheckOptions { read_data: true }).unwrap().is_sound());
}

fn compare(unlocked: &Unlocked, expected: &Expected, work: &Path) {
    let points = unlocked.points(None).unwrap().points;
    let ids: Vec<&String> = expected.points.keys().collect();
    let mut found: Vec<&String> = points.iter().map(|point| &point.id).collect();
    found.sort();
    assert_eq!(found, ids);
    for point in &points {
        let to = work.join("restored");
        let source = unlocked.source(&point.dataset).unwrap();
        let root = tree_root(unlocked, point).unwrap();
        restore_tree(&source, &root, &to, &RestoreOptions::default(), &(), &AtomicBool::new(false)).unwrap();
        assert_eq!(contents(&to), expected.points[&point.id], "{}", point.id);
        fs::remove_dir_all(&to).unwrap();
    }
    let entries = unlocked.log_entries("database", "frozen", None).unwrap();
    let read: Vec<String> =
        entries.iter().map(|entry| String::from_utf8(unlocked.read_log(entry).unwrap()).unwrap()).collect();
    assert_eq!(read, expected.log);
}

#[test]
fn every_frozen_vault_opens_is_whole_restores_and_goes_on() {
    if let Some(to) = std::env::var_os("LIFEBOAT_FREEZE") {
        make(Path::new(&to));
    }
    let mut seen = 0;
    for entry in fs::read_dir(examples()).unwrap() {
        let example = entry.unwrap().path();
        if example.is_dir() {
            examine(&example);
            seen += 1;
        }
    }
    assert!(seen > 0, "there is no frozen vault below {}", examples().display());
}

#[test]
fn the_format_written_today_is_what_the_frozen_one_is() {
    let today = tempfile::tempdir().unwrap();
    make(today.path());
    examine(today.path());
    // The same kinds of objects, with the same first bytes: a new kind, or a new version of one, wants a new example.
    let kinds = |vault: &Path| {
        let mut kinds = BTreeMap::new();
        for (name, _) in contents(vault) {
            let bytes = fs::read(vault.join(&name)).unwrap();
            let kind = name.split('/').next().unwrap().to_owned();
            kinds.entry(kind).or_insert_with(|| bytes[..5].to_vec());
        }
        kinds
    };
    assert_eq!(kinds(&today.path().join("vault")), kinds(&examples().join("v1/vault")));
}
