//! Random days of a vault against a simple model of it: points and logs as maps, hosts and keys as sets.
//!
//! Whatever happened, everything the model holds comes back with every key that it says opens, with no other, and the check is silent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use lifeboat_vault::storage::{Faulty, MemoryStorage};
use lifeboat_vault::{
    CheckOptions, HostVault, Identity, InitOptions, LogPiece, PointInfo, SessionOptions, Severity, State, Unlocked,
    Vault, VaultError,
};
use proptest::prelude::*;

use crate::world::{back_up, commit, is_right, put_chunks, unlock};

#[derive(Debug, Clone)]
enum Step {
    BackUp { host: usize, dataset: usize, seed: u64, count: u64 },
    CrashInBackUp { host: usize, dataset: usize, seed: u64, at: usize, with_effect: bool },
    LeaveSession { host: usize, dataset: usize, seed: u64 },
    Append { host: usize, dataset: usize, pieces: u64 },
    Enrol,
    Revoke { host: usize },
    Rotate { host: usize },
    AddKey,
    RemoveKey { key: usize },
    Restart { host: usize },
    MoveHouse,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let host = 0..3usize;
    let dataset = 0..2usize;
    let seed = 0..6u64;
    let step = prop_oneof![
        6 => (host.clone(), dataset.clone(), seed.clone(), 0..14u64)
            .prop_map(|(host, dataset, seed, count)| Step::BackUp { host, dataset, seed, count }),
        4 => (host.clone(), dataset.clone(), seed.clone(), 0..25usize, any::<bool>())
            .prop_map(|(host, dataset, seed, at, with_effect)| Step::CrashInBackUp { host, dataset, seed, at, with_effect }),
        1 => (host.clone(), dataset.clone(), seed).prop_map(|(host, dataset, seed)| Step::LeaveSession { host, dataset, seed }),
        3 => (host.clone(), dataset, 1..4u64).prop_map(|(host, dataset, pieces)| Step::Append { host, dataset, pieces }),
        1 => Just(Step::Enrol),
        1 => host.clone().prop_map(|host| Step::Revoke { host }),
        1 => host.clone().prop_map(|host| Step::Rotate { host }),
        1 => Just(Step::AddKey),
        1 => (0..4usize).prop_map(|key| Step::RemoveKey { key }),
        2 => host.prop_map(|host| Step::Restart { host }),
        1 => Just(Step::MoveHouse),
    ];
    prop::collection::vec(step, 1..18)
}

const DATASETS: [&str; 2] = ["app", "web site"];

/// The model, and the vault beside it.
struct Play {
    storage: Arc<MemoryStorage>,
    directory: tempfile::TempDir,
    owner: String,
    // The model:
    points: BTreeMap<String, (PointInfo, u64, u64)>,
    logs: BTreeMap<(usize, String), Vec<Vec<u8>>>,
    keys: Vec<Identity>,
    removed: Vec<Identity>,
    hosts: Vec<(State, HostVault)>,
    revoked: BTreeSet<String>,
    enrolled: usize,
}

impl Play {
    fn new() -> Play {
        let directory = tempfile::tempdir().unwrap();
        let storage = Arc::new(MemoryStorage::new());
        let keys = vec![Identity::generate(), Identity::generate()];
        let state = State::open(&directory.path().join("host-0"), Some("host-0")).unwrap();
        let recipients = keys.iter().map(Identity::recipient).collect();
        let (host, made) =
            Vault::init(storage.clone(), &state, &InitOptions { recipients, ..InitOptions::default() }).unwrap();
        Play {
            storage,
            directory,
            owner: made.owner,
            points: BTreeMap::new(),
            logs: BTreeMap::new(),
            keys,
            removed: Vec::new(),
            hosts: vec![(state, host)],
            revoked: BTreeSet::new(),
            enrolled: 1,
        }
    }

    fn unlock(&self) -> Unlocked {
        unlock(self.storage.clone(), &self.owner, &self.keys[0]).unwrap()
    }

    fn open(&self, state: &State) -> HostVault {
        HostVault::open(self.storage.clone(), state.clone(), Some(&self.owner)).unwrap()
    }

    fn enrol(&self, state: &State) {
        let vault = Vault::open(self.storage.clone(), None, Some(&self.owner)).unwrap();
        let request = vault.request_enrolment(state, &[]).unwrap();
        self.unlock().approve(&request.fingerprint).unwrap();
    }

    fn step(&mut self, step: &Step) {
        let hosts = self.hosts.len();
        match *step {
            Step::BackUp { host, dataset, seed, count } if host < hosts => {
                let point = back_up(&self.hosts[host].1, DATASETS[dataset], seed, count).unwrap();
                self.points.insert(point.id.clone(), (point, seed, count));
            }
            Step::CrashInBackUp { host, dataset, seed, at, with_effect } if host < hosts => {
                let faulty = Faulty::new(self.storage.clone());
                let state = self.hosts[host].0.clone();
                let Ok(vault) = HostVault::open(faulty.clone(), state.clone(), Some(&self.owner)) else { return };
                faulty.crash_after(at, with_effect);
                let done = back_up(&vault, DATASETS[dataset], seed, 10);
                drop(vault);
                self.hosts[host].1 = self.open(&state);
                match done {
                    Ok(point) => drop(self.points.insert(point.id.clone(), (point, seed, 10))),
                    Err(_) => self.adopt(host, DATASETS[dataset], seed, 10),
                }
            }
            Step::LeaveSession { host, dataset, seed } if host < hosts => {
                let session = self.hosts[host].1.begin(DATASETS[dataset], SessionOptions::default()).unwrap();
                put_chunks(&session, seed, 6).unwrap();
                drop(session);
                let session = self.hosts[host].1.begin(DATASETS[dataset], SessionOptions::default()).unwrap();
                let ids = put_chunks(&session, seed, 3).unwrap();
                let point = commit(session, &ids).unwrap();
                self.points.insert(point.id.clone(), (point, seed, 3));
            }
            Step::Append { host, dataset, pieces } if host < hosts => self.append(host, DATASETS[dataset], pieces),
            Step::Enrol if hosts < 3 => {
                let name = format!("host-{}", self.enrolled);
                self.enrolled += 1;
                let state = State::open(&self.directory.path().join(&name), Some(&name)).unwrap();
                self.enrol(&state);
                let vault = self.open(&state);
                self.hosts.push((state, vault));
            }
            Step::Revoke { host } if host < hosts && hosts > 1 => {
                let (state, vault) = self.hosts.remove(host);
                self.unlock().revoke(state.host_name()).unwrap();
                let refused = back_up(&vault, "app", 0, 1).unwrap_err();
                assert!(matches!(refused, VaultError::Revoked { .. }), "{refused}");
                self.revoked.insert(state.host_name().to_owned());
            }
            Step::Rotate { host } if host < hosts => {
                let (state, vault) = self.hosts.remove(host);
                drop(vault);
                self.unlock().revoke(state.host_name()).unwrap();
                let fresh = State::rotate(state.directory(), None).unwrap();
                self.enrol(&fresh);
                let vault = self.open(&fresh);
                self.hosts.insert(host, (fresh, vault));
            }
            Step::AddKey if self.keys.len() < 4 => {
                let key = Identity::generate();
                self.unlock().add_recipient(&key.recipient()).unwrap();
                self.keys.push(key);
            }
            Step::RemoveKey { key } if key < self.keys.len() && self.keys.len() > 1 => {
                let key = self.keys.remove(key);
                self.unlock().remove_recipient(&key.recipient()).unwrap();
                self.removed.push(key);
            }
            Step::Restart { host } if host < hosts => {
                let directory = self.hosts[host].0.directory().to_owned();
                let state = State::open(&directory, None).unwrap();
                self.hosts[host].1 = self.open(&state);
                self.hosts[host].0 = state;
            }
            // All objects to another storage, as a copy without keys brings them; everybody goes on there.
            Step::MoveHouse => {
                self.storage = Arc::new(MemoryStorage::from_snapshot(self.storage.snapshot()));
                for place in 0..hosts {
                    let state = self.hosts[place].0.clone();
                    self.hosts[place].1 = self.open(&state);
                }
            }
            _ => {}
        }
    }

    /// A backup whose last answer was lost may have been stored: then it is a point like any other.
    fn adopt(&mut self, host: usize, dataset: &str, seed: u64, count: u64) {
        let name = self.hosts[host].0.host_name();
        for point in self.hosts[host].1.points(Some(dataset)).unwrap().points {
            if point.host == name && !self.points.contains_key(&point.id) {
                self.points.insert(point.id.clone(), (point, seed, count));
            }
        }
    }

    fn append(&mut self, host: usize, dataset: &str, pieces: u64) {
        let (state, vault) = &self.hosts[host];
        let lineage = format!("of-{}", state.host_name());
        let mut writer = vault.log_writer(dataset, &lineage, 1).unwrap();
        let log = self.logs.entry((DATASETS.iter().position(|d| *d == dataset).unwrap(), lineage)).or_default();
        for _ in 0..pieces {
            let first = log.len() as u64;
            let payload = format!("{dataset} {first}").into_bytes();
            let piece =
                LogPiece { first, last: first, source_time: Timestamp::UNIX_EPOCH, mark: false, final_mark: false };
            writer.append(piece, &payload).unwrap();
            log.push(payload);
        }
    }

    fn compare(&self) {
        for key in &self.keys {
            let unlocked = unlock(self.storage.clone(), &self.owner, key).unwrap();
            let points = unlocked.points(None).unwrap();
            let found: BTreeSet<&String> = points.points.iter().map(|point| &point.id).collect();
            assert_eq!(found, self.points.keys().collect::<BTreeSet<_>>(), "{:?}", points.findings);
            for (point, seed, count) in self.points.values() {
                assert!(is_right(&unlocked, point, *seed, *count).unwrap(), "{}", point.id);
            }
            for ((dataset, lineage), payloads) in &self.logs {
                let entries = unlocked.log_entries(DATASETS[*dataset], lineage, None).unwrap();
                let read: Vec<Vec<u8>> = entries.iter().map(|entry| unlocked.read_log(entry).unwrap()).collect();
                assert_eq!(&read, payloads);
            }
        }
        for key in &self.removed {
            let refused = unlock(self.storage.clone(), &self.owner, key);
            assert!(matches!(refused, Err(VaultError::WrongKey { .. })), "{refused:?}");
        }
        let report = self.unlock().check(CheckOptions { read_data: true }).unwrap();
        let alarms: Vec<_> = report.findings.iter().filter(|f| f.severity == Severity::Alarm).collect();
        assert!(alarms.is_empty(), "{alarms:?}");
        for (_, host) in &self.hosts {
            let points = host.points(None).unwrap();
            assert!(points.findings.iter().all(|f| f.severity != Severity::Alarm), "{:?}", points.findings);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_days_leave_what_the_model_says(steps in steps()) {
        let mut play = Play::new();
        for step in &steps {
            play.step(step);
        }
        play.compare();
    }
}
