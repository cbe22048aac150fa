//! Random days of a vault against a simple model of it: points and logs as maps, hosts and keys as sets.
//!
//! Whatever happened, everything the model holds comes back with every key that it says opens, with no other, and the check is silent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use jiff::{SignedDuration, Timestamp};
use lifeboat_vault::copy::{CopyOptions, copy};
use lifeboat_vault::prune::{Hand, Held, MoveRules, Swept};
use lifeboat_vault::storage::{Faulty, MemoryStorage, Storage};
use lifeboat_vault::{
    CheckOptions, HostVault, Identity, InitOptions, KeepRules, LogPiece, PointInfo, PruneOptions, SessionOptions,
    Severity, State, Unlocked, Vault, VaultError,
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
    Prune { keep: u32, end: End },
    Hold { point: usize },
    Release,
    Freeze,
    Thaw,
    CopyOut,
    MoveByCopy,
    Heal { object: usize, lose: bool },
}

/// What becomes of a prune on the day it is proposed.
#[derive(Debug, Clone, Copy)]
enum End {
    Sweep,
    Abandon,
    /// The next one sweeps it.
    Leave,
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
        4 => (1..4u32, prop_oneof![2 => Just(End::Sweep), 1 => Just(End::Abandon), 1 => Just(End::Leave)])
            .prop_map(|(keep, end)| Step::Prune { keep, end }),
        1 => (0..12usize).prop_map(|point| Step::Hold { point }),
        1 => Just(Step::Release),
        1 => Just(Step::Freeze),
        1 => Just(Step::Thaw),
        1 => Just(Step::CopyOut),
        1 => Just(Step::MoveByCopy),
        2 => (0..200usize, any::<bool>()).prop_map(|(object, lose)| Step::Heal { object, lose }),
    ];
    prop::collection::vec(step, 1..24)
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
    /// Points that were pruned and not swept yet.
    leaving: BTreeMap<String, (PointInfo, u64, u64)>,
    /// From where on each log is there, and will be once the prune that is under way was swept.
    log_floors: BTreeMap<(usize, String), (usize, usize)>,
    holds: BTreeMap<u64, String>,
    frozen: bool,
    /// So far the days of prunes went; backups are of today.
    day: i64,
    second: Arc<MemoryStorage>,
    copier: State,
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
        let copier = State::open(&directory.path().join("copier"), Some("copier")).unwrap();
        Play {
            storage,
            copier,
            leaving: BTreeMap::new(),
            log_floors: BTreeMap::new(),
            holds: BTreeMap::new(),
            frozen: false,
            day: 0,
            second: Arc::new(MemoryStorage::new()),
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
            Step::MoveHouse => self.move_to(Arc::new(MemoryStorage::from_snapshot(self.storage.snapshot()))),
            Step::Prune { keep, end } => self.prune(keep, end),
            Step::Hold { point } => {
                let known: Vec<String> = self.points.keys().chain(self.leaving.keys()).cloned().collect();
                if let Some(id) = known.get(point) {
                    let unlocked = self.unlock();
                    let held = Held::Point(id.clone());
                    let number = unlocked.hold(Hand::Owner(&unlocked), &held, None, "the model").unwrap().number;
                    self.holds.insert(number, id.clone());
                }
            }
            Step::Release => {
                if let Some((number, _)) = self.holds.pop_first() {
                    let unlocked = self.unlock();
                    unlocked.release_hold(Hand::Owner(&unlocked), number, "the model").unwrap();
                }
            }
            Step::Freeze if hosts > 0 => {
                let (state, vault) = &self.hosts[0];
                vault.freeze(Hand::Member(state), "the model").unwrap();
                self.frozen = true;
            }
            Step::Thaw if self.frozen => {
                self.unlock().release_freeze("the model").unwrap();
                self.frozen = false;
            }
            Step::CopyOut => self.copy_out(),
            Step::MoveByCopy => {
                self.copy_out();
                let third = Arc::new(MemoryStorage::new());
                self.copy(self.second.clone(), third.clone());
                self.move_to(third);
                // A prune that is not swept is each vault's own.
                self.points.append(&mut self.leaving);
                self.settle_logs(false);
            }
            Step::Heal { object, lose } if hosts > 0 => self.heal(object, lose),
            _ => {}
        }
    }

    fn move_to(&mut self, storage: Arc<MemoryStorage>) {
        self.storage = storage;
        for place in 0..self.hosts.len() {
            let state = self.hosts[place].0.clone();
            self.hosts[place].1 = self.open(&state);
        }
    }

    fn copy(&self, from: Arc<MemoryStorage>, to: Arc<MemoryStorage>) {
        let state = self.copier.clone();
        let options = CopyOptions { owner: Some(self.owner.clone()), parallel: 2, ..CopyOptions::new(state) };
        let (from, to): (Arc<dyn Storage>, Arc<dyn Storage>) = (from, to);
        let report = copy(&from, &to, &options, &|_, _| {}, &AtomicBool::new(false)).unwrap();
        let alarms: Vec<_> = report.findings.iter().filter(|f| f.severity == Severity::Alarm).collect();
        assert!(report.complete && alarms.is_empty(), "{alarms:?}");
    }

    fn copy_out(&self) {
        self.copy(self.storage.clone(), self.second.clone());
    }

    /// So many days after everything before, for the pruner as for the storage.
    fn on_day(&self, days: i64, keep: u32) -> PruneOptions {
        let now = Timestamp::now() + SignedDuration::from_hours(24 * (self.day + days));
        self.storage.set_clock(now);
        PruneOptions {
            rules: Some(KeepRules { last: keep, ..KeepRules::default() }),
            min_age: SignedDuration::ZERO,
            // So that packs are moved and records folded within days that are few and small.
            moves: MoveRules { below_percent: 80, small_packs: 3, ..MoveRules::default() },
            fold_after: 2,
            now: Some(now),
            ..PruneOptions::default()
        }
    }

    fn is_held(&self, id: &String) -> bool {
        self.holds.values().any(|held| held == id)
    }

    /// What no rule wants: of each chain all but the newest so many by the storage's time (which is another one once an object was healed), the
    /// newest of so many days, its last, and what is held.
    fn unwanted(&self, keep: usize) -> BTreeSet<String> {
        let stored: BTreeMap<String, Timestamp> =
            self.storage.list("snap/").unwrap().into_iter().map(|o| (o.key, o.stored_at.unwrap())).collect();
        let mut chains: BTreeMap<(&str, &str), Vec<&PointInfo>> = BTreeMap::new();
        for (point, ..) in self.points.values() {
            chains.entry((&point.host, &point.dataset)).or_default().push(point);
        }
        let mut unwanted = BTreeSet::new();
        for mut chain in chains.into_values() {
            chain.sort_by_key(|point| std::cmp::Reverse((stored[&point.key], point.sequence)));
            let last = chain.iter().map(|point| point.sequence).max();
            let mut days = BTreeSet::new();
            for (place, point) in chain.iter().enumerate() {
                let is_first_of_day =
                    days.insert(stored[&point.key].to_string()[..10].to_owned()) && days.len() <= keep;
                if place >= keep && !is_first_of_day && Some(point.sequence) != last && !self.is_held(&point.id) {
                    unwanted.insert(point.id.clone());
                }
            }
        }
        unwanted
    }

    /// What was proposed for logs was done, or is given up.
    fn settle_logs(&mut self, swept: bool) {
        for (floor, proposed) in self.log_floors.values_mut() {
            *floor = if swept { *proposed } else { *floor };
            *proposed = *floor;
        }
    }

    fn prune(&mut self, keep: u32, end: End) {
        let pruner = self.unlock().pruner().unwrap();
        let options = self.on_day(3, keep);
        let begun = pruner.go_on(&options);
        if self.frozen {
            let refused = begun.and_then(|_| pruner.perform(&pruner.propose(&options)?, &options));
            let is_refused = matches!(refused, Err(VaultError::Refused { .. }));
            self.storage.set_clock(Timestamp::now());
            assert!(is_refused, "{refused:?}");
            return;
        }
        assert!(!matches!(begun.unwrap(), Swept::Waits(_)));
        // What was held since it was pruned is there again.
        let (back, gone) = std::mem::take(&mut self.leaving).into_iter().partition(|(id, _)| self.is_held(id));
        let _: BTreeMap<String, (PointInfo, u64, u64)> = gone;
        self.points.extend::<BTreeMap<_, _>>(back);
        self.settle_logs(true);
        let proposed = pruner.propose(&options).unwrap();
        let pruned: BTreeSet<String> = proposed.pruned().map(|point| point.id.clone()).collect();
        assert_eq!(pruned, self.unwanted(keep as usize));
        if !proposed.is_empty() {
            pruner.perform(&proposed, &options).unwrap();
            // No point goes on with a log: of each only its end stays.
            for (log, payloads) in &self.logs {
                let end = payloads.len().saturating_sub(1);
                self.log_floors.entry(log.clone()).or_default().1 = end;
            }
            let mut leaving: BTreeMap<_, _> =
                pruned.into_iter().filter_map(|id| self.points.remove_entry(&id)).collect();
            match end {
                End::Sweep => {
                    assert!(matches!(pruner.go_on(&self.on_day(6, keep)).unwrap(), Swept::Done(_)));
                    self.settle_logs(true);
                }
                End::Abandon => {
                    pruner.abandon().unwrap();
                    self.points.append(&mut leaving);
                    self.settle_logs(false);
                }
                End::Leave => self.leaving = leaving,
            }
        }
        self.day += 9;
        self.storage.set_clock(Timestamp::now());
    }

    /// Something is damaged or lost, and comes back from a copy as it was.
    fn heal(&self, object: usize, lose: bool) {
        self.copy_out();
        let (state, vault) = &self.hosts[0];
        vault.points(None).unwrap();
        vault.check(CheckOptions::default()).unwrap();
        let there: BTreeSet<String> = self.second.snapshot().into_keys().collect();
        let kinds = ["pack/", "index/", "refs/", "snap/", "log/"];
        let can = |key: &String| kinds.iter().any(|kind| key.starts_with(kind)) && there.contains(key);
        let keys: Vec<String> = self.storage.snapshot().into_keys().filter(can).collect();
        let Some(key) = keys.get(object % keys.len().max(1)) else { return };
        let mut bytes = self.storage.get(key).unwrap();
        match lose {
            true => self.storage.delete(key).unwrap(),
            false => {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 4;
                self.storage.put(key, &bytes).unwrap();
                bytes[middle] ^= 4;
            }
        }
        let second: Arc<dyn Storage> = self.second.clone();
        for _ in 0..4 {
            let vault = Vault::open(self.storage.clone(), Some(state.clone()), Some(&self.owner)).unwrap();
            let bad = vault.check(CheckOptions { read_data: true }).unwrap().bad_objects();
            if bad.is_empty() {
                break;
            }
            let healed = vault.heal_from(&second, &bad, state).unwrap();
            assert!(healed.lost.is_empty(), "{key}: {healed:?}");
        }
        // What nothing refers to, or only a point that was pruned, is not missed: it was damaged for nothing.
        let is_healed = self.storage.get(key).is_ok_and(|healed| healed == bytes);
        let is_needed = unlock(self.storage.clone(), &self.owner, &self.keys[0]).unwrap();
        let is_needed = !is_needed.check(CheckOptions { read_data: true }).unwrap().is_sound();
        assert!(is_healed || !is_needed, "{key}");
        self.storage.put(key, &bytes).unwrap();
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
                let floor = self.log_floors.get(&(*dataset, lineage.clone())).map_or(0, |floor| floor.0);
                assert_eq!(read, payloads[floor..]);
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

/// Few in CI; `LIFEBOAT_MODEL_CASES=1000` for a night.
fn cases() -> u32 {
    std::env::var("LIFEBOAT_MODEL_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_days_leave_what_the_model_says(steps in steps()) {
        let mut play = Play::new();
        for step in &steps {
            play.step(step);
        }
        play.compare();
    }
}
