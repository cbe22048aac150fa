//! Vaults of released formats, kept as they were written: every one opens, is whole, restores, and goes on being written to.
//!
//! `cargo xtask freeze` makes the example of the format that is written today.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use jiff::{SignedDuration, Timestamp};
use lifeboat_vault::copy::{CopyOptions, copy};
use lifeboat_vault::files::{BackupOptions, RestoreOptions, backup_tree, restore_tree, tree_root};
use lifeboat_vault::prune::{ARCHIVE_BYTES_MAX, ArchiveRules, Hand, Held, MoveRules, Swept};
use lifeboat_vault::storage::{FsStorage, MemoryStorage, Storage};
use lifeboat_vault::{
    Badge, CheckOptions, HostVault, Identity, InitOptions, KeepRules, LogEntry, LogPiece, Position, PruneOptions,
    ReceiptBook, Role, SessionOptions, State, Unlocked, Vault,
};
use serde::{Deserialize, Serialize};

use crate::trust::copy_tree;
use crate::world::host_state;

/// What an example holds, in words that no format changes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Expected {
    pub(super) owner: String,
    pub(super) points: Points,
    /// What a prune took that still waits: in the copy they are points.
    pub(super) waiting: Points,
    /// Payloads of the log of `database`, lineage `frozen`.
    pub(super) log: Vec<String>,
    /// The same of `ledger`, which was cut and gathered.
    pub(super) ledger: Vec<String>,
}

pub(super) fn examples() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/frozen"))
}

fn back_up(host: &HostVault, dataset: &str, tree: &Path, release: Option<&str>) -> String {
    back_up_at(host, dataset, tree, release, 3)
}

fn back_up_at(host: &HostVault, dataset: &str, tree: &Path, release: Option<&str>, counter: u64) -> String {
    let session = host.begin(dataset, SessionOptions::default()).unwrap();
    let roots = [tree.to_owned()];
    let summary = backup_tree(&session, &roots, &BackupOptions::default(), &(), &AtomicBool::new(false)).unwrap();
    let mut draft = summary.draft(Timestamp::now());
    draft.release = release.map(str::to_owned);
    draft.position = Some(Position { lineage: "frozen".into(), timeline: 1, counter });
    session.commit(draft).unwrap().id
}

pub(super) fn contents(tree: &Path) -> Contents {
    fn walk(top: &Path, at: &Path, found: &mut Contents) {
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

/// An example in the making: its vault lies in memory, where days pass as they are told to.
struct Making {
    storage: Arc<MemoryStorage>,
    keys: [Identity; 2],
    owner: String,
    alpha: State,
    host: HostVault,
    directory: tempfile::TempDir,
}

impl Making {
    fn new(at: &Path) -> Making {
        let keys = [Identity::generate(), Identity::generate()];
        let storage = Arc::new(MemoryStorage::new().with_classes());
        let alpha = State::open(&at.join("state"), Some("alpha")).unwrap();
        let recipients = keys.iter().map(Identity::recipient).collect();
        let (host, made) =
            Vault::init(storage.clone(), &alpha, &InitOptions { recipients, ..InitOptions::default() }).unwrap();
        Making { storage, keys, owner: made.owner, alpha, host, directory: tempfile::tempdir().unwrap() }
    }

    fn unlock(&self) -> Unlocked {
        self.host.unlock(&self.keys).unwrap()
    }

    fn append(&self, dataset: &str, transactions: RangeInclusive<u64>) {
        let mut writer = self.host.log_writer(dataset, "frozen", 1).unwrap();
        for n in transactions {
            let piece = LogPiece { first: n, last: n, source_time: Timestamp::now(), mark: false, final_mark: n == 3 };
            writer.append(piece, transaction(n).as_bytes()).unwrap();
        }
    }

    /// Two hosts, two data sets, a log, a keeper; a third key that came and went.
    fn points_and_a_log(&self, points: &mut Points) {
        let tree = self.directory.path().join("tree");
        fs::create_dir_all(tree.join("sub/empty")).unwrap();
        fs::write(tree.join("letter"), "dear reader\n").unwrap();
        fs::write(tree.join("sub/ümlaut and space"), b"\xff\xfe bytes").unwrap();
        fs::write(tree.join("nothing"), b"").unwrap();
        fs::write(tree.join("sub/noise"), noise(b"frozen")).unwrap();
        std::os::unix::fs::symlink("letter", tree.join("link")).unwrap();
        points.insert(back_up(&self.host, "files", &tree, None), contents(&tree));
        fs::write(tree.join("letter"), "dear reader, once more\n").unwrap();
        fs::remove_file(tree.join("nothing")).unwrap();
        points.insert(back_up(&self.host, "files", &tree, Some("2.1")), contents(&tree));
        points.insert(back_up(&self.host, "a b/ü", &tree.join("sub"), None), contents(&tree.join("sub")));
        let beta = host_state(&self.directory, "beta");
        let request = self.host.request_enrolment(&beta, &[Role::Host, Role::Keeper]).unwrap();
        let owner = self.unlock();
        owner.approve_as(&request.fingerprint, &[Role::Host, Role::Keeper]).unwrap();
        let second = HostVault::open(self.storage.clone(), beta.clone(), Some(&self.owner)).unwrap();
        points.insert(back_up(&second, "files", &tree, None), contents(&tree));
        let newest = owner.points(None).unwrap().points.pop().unwrap();
        second.record_verification(&newest, Badge::Verified, "every chunk read").unwrap();
        points.insert(back_up_at(&self.host, "database", &tree.join("sub/empty"), None, 0), Contents::new());
        self.append("database", 1..=3);
        let mut receipts = ReceiptBook::new(self.storage.clone(), &self.host.id(), beta);
        receipts.take(&newest.key, [7; 32], 100, Timestamp::now());
        receipts.sign().unwrap();
        let third = Identity::generate().recipient();
        owner.add_recipient(&third).unwrap();
        owner.remove_recipient(&third).unwrap();
    }

    /// A database's file, of which pages change here and there.
    fn pages(&self, points: &mut Points) {
        let tree = self.directory.path().join("pages");
        fs::create_dir(&tree).unwrap();
        let mut file: Vec<u8> = (0..290u64).flat_map(|page| page.to_le_bytes().repeat(1024)).collect();
        for round in 0..3u8 {
            for page in (usize::from(round)..290).step_by(40) {
                file[page * 8192..(page + 1) * 8192].fill(round);
            }
            fs::write(tree.join("app.db"), &file).unwrap();
            points.insert(back_up(&self.host, "paged", &tree, None), contents(&tree));
        }
    }

    /// Two points that share nothing; what only the older one needs goes into a class, and a signed record says so.
    fn archive(&self, points: &mut Points) {
        let tree = self.directory.path().join("cold");
        fs::create_dir(&tree).unwrap();
        for round in 0..2 {
            fs::write(tree.join("film"), noise(&[b'c', round])).unwrap();
            points.insert(back_up(&self.host, "cold", &tree, None), contents(&tree));
        }
        let rules = ArchiveRules {
            class: CLASS.to_owned(),
            thaw: SignedDuration::from_hours(12),
            after: [("cold".to_owned(), SignedDuration::ZERO)].into(),
            after_all: None,
            bytes_per_second: None,
            bytes_max: ARCHIVE_BYTES_MAX,
        };
        let moves = MoveRules { below_percent: 0, small_packs: 1000, ..MoveRules::default() };
        self.prune_by(3, true, PruneOptions { archive: Some(rules), moves, ..PruneOptions::default() });
    }

    /// Prunes that take points, move what is left of their packs, cut and gather logs, are folded; and one that waits. Answers what
    /// that one took, which a copy has as points.
    fn prunes(&self, points: &mut Points) -> Points {
        let mut waiting = Points::new();
        let tree = self.directory.path().join("small");
        fs::create_dir(&tree).unwrap();
        for round in 0..5 {
            for n in 0..4 {
                fs::write(tree.join(format!("{n}")), noise(&[round, n])).unwrap();
                points.insert(back_up(&self.host, "app", &tree, None), contents(&tree));
            }
            if round < 2 {
                let (empty, counter) = (self.directory.path().join("tree/sub/empty"), u64::from(round) * 20);
                points.insert(back_up_at(&self.host, "ledger", &empty, None, counter), Contents::new());
                self.append("ledger", counter + 1..=counter + 20);
            }
            self.prune(9 + 6 * i64::from(round), round < 4);
            let there: BTreeSet<String> =
                self.host.points(None).unwrap().points.into_iter().map(|point| point.id).collect();
            waiting = points.clone();
            waiting.retain(|id, _| !there.contains(id));
            points.retain(|id, _| there.contains(id));
        }
        waiting
    }

    fn prune(&self, day: i64, to_the_end: bool) {
        let last = KeepRules { last: 1, ..KeepRules::default() };
        let options = PruneOptions {
            datasets: ["app", "ledger"].map(|name| (name.to_owned(), last)).into(),
            moves: MoveRules { small_packs: 2, ..MoveRules::default() },
            fold_after: 2,
            ..PruneOptions::default()
        };
        self.prune_by(day, to_the_end, options);
    }

    fn prune_by(&self, day: i64, to_the_end: bool, options: PruneOptions) {
        let at = |day: i64| {
            let now = Timestamp::now() + SignedDuration::from_hours(24 * day);
            self.storage.set_clock(now);
            PruneOptions { min_age: SignedDuration::ZERO, now: Some(now), ..options.clone() }
        };
        let pruner = self.unlock().pruner().unwrap();
        let options = at(day);
        pruner.perform(&pruner.propose(&options).unwrap(), &options).unwrap();
        if to_the_end {
            assert!(matches!(pruner.go_on(&at(day + 3)).unwrap(), Swept::Done(_)));
        }
        self.storage.set_clock(Timestamp::now());
    }

    /// Held, frozen and let go, seen by a witness, asked to be let in, copied, damaged and healed from the copy.
    fn words(&self) -> Arc<MemoryStorage> {
        let by = Hand::Member(&self.alpha);
        self.host.hold(by, &Held::Point("alpha/files/0000000001".to_owned()), None, "case 17").unwrap();
        self.host.freeze(by, "an incident").unwrap();
        self.unlock().release_freeze("it was nothing").unwrap();
        let recipients = self.keys.iter().map(Identity::recipient).collect();
        let options = InitOptions { recipients, ..InitOptions::default() };
        let (elsewhere, _) = Vault::init(Arc::new(MemoryStorage::new()), &self.alpha, &options).unwrap();
        assert!(self.host.witness(&elsewhere).unwrap());
        let gamma = host_state(&self.directory, "gamma");
        self.host.request_enrolment(&gamma, &[Role::Host]).unwrap();

        let copied = Arc::new(MemoryStorage::new());
        let (from, to): (Arc<dyn Storage>, Arc<dyn Storage>) = (self.storage.clone(), copied.clone());
        let copier = CopyOptions::new(host_state(&self.directory, "copier"));
        copy(&from, &to, &copier, &|_, _| {}, &AtomicBool::new(false)).unwrap();
        let pack = self.storage.list("pack/").unwrap().pop().unwrap().key;
        let right = self.storage.get(&pack).unwrap();
        self.storage.put(&pack, &right[..right.len() - 1]).unwrap();
        let unlocked = self.unlock();
        let report = unlocked.check(CheckOptions { read_data: true }).unwrap();
        assert_eq!(unlocked.list_bad_packs(&report, &self.alpha).unwrap(), 1);
        unlocked.heal_from(&to, &report.bad_objects(), &self.alpha).unwrap();
        copied
    }
}

/// Path to the BLAKE3 of what is there.
type Contents = BTreeMap<String, String>;
type Points = BTreeMap<String, Contents>;

/// A class of storage, as the example's records name it.
const CLASS: &str = "COLD_LINE";

fn transaction(n: u64) -> String {
    format!("transaction {n}")
}

fn noise(seed: &[u8]) -> Vec<u8> {
    let mut noise = vec![0; 60_000];
    blake3::Hasher::new().update(seed).finalize_xof().fill(&mut noise);
    noise
}

/// Makes an example in which everything that is ever stored stands.
fn make(at: &Path) {
    let making = Making::new(at);
    let mut points = BTreeMap::new();
    making.points_and_a_log(&mut points);
    making.pages(&mut points);
    making.archive(&mut points);
    let waiting = making.prunes(&mut points);
    let copied = making.words();
    for (key, name) in making.keys.iter().zip(["owner.key", "paper.key"]) {
        fs::write(at.join(name), format!("{}\n", key.expose())).unwrap();
    }
    lay_down(&making.storage, &at.join("vault"));
    lay_down(&copied, &at.join("copy"));
    let log = (1..=3).map(transaction).collect();
    let ledger = (21..=40).map(transaction).collect();
    let expected = Expected { owner: making.owner, points, waiting, log, ledger };
    fs::write(at.join("expected.json"), serde_json::to_string_pretty(&expected).unwrap() + "\n").unwrap();
}

fn lay_down(storage: &MemoryStorage, at: &Path) {
    let directory = FsStorage::create(at.to_str().unwrap()).unwrap();
    for object in storage.list("").unwrap() {
        directory.put(&object.key, &storage.get(&object.key).unwrap()).unwrap();
    }
}

fn examine(example: &Path) {
    let work = tempfile::tempdir().unwrap();
    copy_tree(example, work.path());
    let expected: Expected = serde_json::from_slice(&fs::read(work.path().join("expected.json")).unwrap()).unwrap();
    let open = |name: &str| Arc::new(FsStorage::open(work.path().join(name).to_str().unwrap()).unwrap());
    for (vault, key) in [("vault", "owner.key"), ("vault", "paper.key"), ("copy", "owner.key")] {
        let keys = Identity::load_all(&work.path().join(key)).unwrap();
        let unlocked = Vault::open(open(vault), None, Some(&expected.owner)).unwrap().unlock(&keys).unwrap();
        let report = unlocked.check(CheckOptions { read_data: true }).unwrap();
        assert!(report.is_sound(), "{}: {:?}", example.display(), report.findings);
        let mut points = expected.points.clone();
        points.extend(expected.waiting.clone().into_iter().filter(|_| vault == "copy"));
        compare(&unlocked, &expected, &points, work.path());
    }
    let storage = open("vault");
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

fn compare(unlocked: &Unlocked, expected: &Expected, stand: &Points, work: &Path) {
    let points = unlocked.points(None).unwrap().points;
    let ids: Vec<&String> = stand.keys().collect();
    let mut found: Vec<&String> = points.iter().map(|point| &point.id).collect();
    found.sort();
    assert_eq!(found, ids);
    for point in &points {
        let to = work.join("restored");
        let source = unlocked.source(&point.dataset).unwrap();
        let root = tree_root(unlocked, point).unwrap();
        restore_tree(&source, &root, &to, &RestoreOptions::default(), &(), &AtomicBool::new(false)).unwrap();
        assert_eq!(contents(&to), stand[&point.id], "{}", point.id);
        fs::remove_dir_all(&to).unwrap();
    }
    let read = |entry: &LogEntry| String::from_utf8(unlocked.read_log(entry).unwrap()).unwrap();
    let entries = unlocked.log_entries("database", "frozen", None).unwrap();
    assert_eq!(entries.iter().map(read).collect::<Vec<_>>(), expected.log);
    let base = points.iter().find(|point| point.dataset == "ledger").unwrap().position.clone().unwrap();
    let trail = unlocked.log_since("ledger", &base).unwrap();
    assert!(trail.findings.is_empty(), "{:?}", trail.findings);
    let after = trail.entries.iter().filter(|entry| entry.first > base.counter);
    assert_eq!(after.map(read).collect::<Vec<_>>(), expected.ledger);
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
    for vault in ["vault", "copy"] {
        assert_eq!(kinds(&today.path().join(vault)), kinds(&examples().join("v1").join(vault)));
    }
    // What lies in which class is in sweeps, and in what is put together of them.
    let records = contents(&examples().join("v1/vault"));
    for step in ["sweep", "fold"] {
        let says = |name: &&String| {
            let bytes = fs::read(examples().join("v1/vault").join(name)).unwrap();
            name.ends_with(step) && bytes.windows(CLASS.len()).any(|window| window == CLASS.as_bytes())
        };
        assert!(records.keys().any(|name| says(&name)), "no {step} names a class");
    }
    // Every kind that the format's table names is in it.
    let format = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/vault-format.md")).unwrap();
    let rows = format.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    let named: BTreeSet<&str> = rows.filter_map(|(names, _)| names.split(['/', '`']).next()).collect();
    let stored = ["vault", "copy"].map(|vault| kinds(&today.path().join(vault)));
    assert!(named.len() > 15, "{named:?}");
    for kind in named {
        assert!(
            stored.iter().flatten().any(|(stored, _)| stored.split('/').next() == Some(kind)),
            "nothing is stored below {kind}"
        );
    }
}

/// The kinds of objects in a vault: where they lie, without what is a name or number in it, and their first bytes.
fn kinds(vault: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut kinds = BTreeMap::new();
    for (name, _) in contents(vault) {
        let bytes = fs::read(vault.join(&name)).unwrap();
        kinds.entry(kind_of(&name)).or_insert_with(|| bytes[..5].to_vec());
    }
    kinds
}

pub(super) fn kind_of(name: &str) -> String {
    let words: Vec<&str> = name.split('/').collect();
    let within = words.iter().skip(1).flat_map(|word| word.split(['-', '.']));
    let known = within.filter(|word| KINDS_WITHIN.contains(word));
    let kind: Vec<&str> = words.iter().take(1).copied().chain(known).collect();
    kind.join("/") + "/"
}

/// Words that tell kinds of objects apart below the same prefix.
const KINDS_WITHIN: [&str; 13] = [
    "owner", "refs", "content", "chunk", "age", "cert", "moved", "gathered", "proposal", "sweep", "done", "fold",
    "begun",
];
