//! What the actors work on: a vault with two hosts and some points, as it is copied for each order.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::log::LogPiece;
use crate::open::{HostVault, InitOptions, Unlocked, Vault};
use crate::port::{ChunkId, ChunkSink};
use crate::prune::{ArchiveRules, FOLD_AFTER, KeepRules, MoveRules, PruneOptions, Swept};
use crate::roster::Role;
use crate::seal::Identity;
use crate::session::SessionOptions;
use crate::snapshot::{PointInfo, Position, SnapshotDraft};
use crate::storage::{FROZEN_CLASS, MemoryStorage, Storage};
use crate::{CheckOptions, Result, State};

pub(crate) struct World {
    pub(crate) objects: BTreeMap<String, Vec<u8>>,
    /// A directory for each host.
    pub(crate) state: tempfile::TempDir,
    pub(crate) owner: Identity,
    pub(crate) fingerprint: String,
    /// When it was made; everything is counted from here.
    day_0: Timestamp,
}

/// Hands for whoever fills a vault.
struct Making<'a> {
    alpha: &'a HostVault,
    beta: &'a HostVault,
    owner: &'a dyn Fn() -> Unlocked,
    storage: &'a MemoryStorage,
}

/// In memory where the machine has such a place: every order begins with a copy of the hosts' state.
pub(crate) fn directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.unwrap()
}

impl World {
    /// Two points that share nothing; the older one is what a prune wants to take.
    pub(crate) fn new() -> World {
        World::with(|Making { alpha, .. }| {
            back_up(alpha, "app", &[1, 2]).unwrap();
            back_up(alpha, "app", &[3]).unwrap();
        })
    }

    /// The same, and its prune was proposed.
    pub(crate) fn condemned() -> World {
        World::with(|Making { alpha, owner, .. }| {
            back_up(alpha, "app", &[1, 2]).unwrap();
            back_up(alpha, "app", &[3]).unwrap();
            propose(*owner);
        })
    }

    /// Two hosts with points of one data set; alpha's chain is the longer one.
    pub(crate) fn of_two_hosts() -> World {
        World::with(|Making { alpha, beta, .. }| fill_two_hosts(alpha, beta))
    }

    /// The same, and the prune of the older points was proposed.
    pub(crate) fn condemned_of_two_hosts() -> World {
        World::with(|Making { alpha, beta, owner, .. }| {
            fill_two_hosts(alpha, beta);
            propose(*owner);
        })
    }

    /// Two small packs of which the newest point needs something, and a log with a point in it.
    pub(crate) fn of_small_packs() -> World {
        World::with(|Making { alpha, .. }| {
            back_up(alpha, "app", &[1, 2]).unwrap();
            append(alpha, 5).unwrap();
            back_up_at(alpha, &[1, 3], 2).unwrap();
            append(alpha, 3).unwrap();
        })
    }

    /// Small packs of two hosts, whose newest points need something of each.
    pub(crate) fn of_small_packs_of_two_hosts() -> World {
        World::with(|Making { alpha, beta, .. }| {
            for host in [alpha, beta] {
                back_up(host, "app", &[1, 2]).unwrap();
                back_up(host, "app", &[1, 3]).unwrap();
            }
        })
    }

    /// A pack is damaged and said to be bad, and what it held was stored again.
    pub(crate) fn with_a_bad_pack() -> World {
        World::with(|Making { alpha, owner, storage, .. }| {
            back_up(alpha, "app", &[1, 2]).unwrap();
            let pack = storage.list("pack/").unwrap().remove(0);
            let mut bytes = storage.get(&pack.key).unwrap();
            bytes[0] ^= 1;
            storage.put(&pack.key, &bytes).unwrap();
            let report = owner().check(CheckOptions { read_data: true }).unwrap();
            owner().list_bad_packs(&report, alpha.state()).unwrap();
            back_up(alpha, "app", &[1, 2]).unwrap();
            back_up(alpha, "app", &[3]).unwrap();
        })
    }

    /// One prune is done, so that its records can be folded, and there is a point for the next.
    pub(crate) fn pruned_once() -> World {
        World::with(|Making { alpha, owner, storage, .. }| {
            back_up(alpha, "app", &[1, 2]).unwrap();
            back_up(alpha, "app", &[3]).unwrap();
            propose(*owner);
            let later = Timestamp::now() + SignedDuration::from_hours(72);
            storage.set_clock(later);
            let swept = owner().pruner().unwrap().go_on(&rules(later, 0, FOLD_AFTER)).unwrap();
            assert!(matches!(swept, Swept::Done(_)), "{swept:?}");
            storage.set_clock(Timestamp::now());
            back_up(alpha, "app", &[4]).unwrap();
        })
    }

    fn with(fill: impl Fn(&Making<'_>)) -> World {
        let directory = directory();
        let state = |name: &str| State::open(&directory.path().join(name), Some(name)).unwrap();
        let storage: Arc<MemoryStorage> = Arc::new(MemoryStorage::new());
        let (owner, paper) = (Identity::generate(), Identity::generate());
        let options = InitOptions { recipients: vec![owner.recipient(), paper.recipient()], ..InitOptions::default() };
        let (alpha, made) = Vault::init(storage.clone(), &state("alpha"), &options).unwrap();
        let unlock = || {
            let vault = Vault::open(storage.clone(), None, Some(&made.owner)).unwrap();
            vault.unlock(std::slice::from_ref(&owner)).unwrap()
        };
        let asked = alpha.request_enrolment(&state("beta"), &[Role::Host]).unwrap();
        unlock().approve(&asked.fingerprint).unwrap();
        let beta = HostVault::open(storage.clone(), state("beta"), Some(&made.owner)).unwrap();
        fill(&Making { alpha: &alpha, beta: &beta, owner: &unlock, storage: &storage });
        let objects = storage.snapshot();
        World { objects, state: directory, owner, fingerprint: made.owner, day_0: Timestamp::now() }
    }

    pub(crate) fn day(&self, day: i64) -> Timestamp {
        self.day_0 + SignedDuration::from_hours(24 * day)
    }

    pub(crate) fn unlock(&self, storage: Arc<dyn Storage>) -> Result<Unlocked> {
        Vault::open(storage, None, Some(&self.fingerprint))?.unlock(std::slice::from_ref(&self.owner))
    }
}

fn fill_two_hosts(alpha: &HostVault, beta: &HostVault) {
    for chunks in [&[1, 2][..], &[8], &[3]] {
        back_up(alpha, "app", chunks).unwrap();
    }
    back_up(beta, "app", &[1, 2]).unwrap();
    back_up(beta, "app", &[3]).unwrap();
}

fn propose(owner: &dyn Fn() -> Unlocked) {
    let pruner = owner().pruner().unwrap();
    let later = Timestamp::now() + SignedDuration::from_hours(72);
    let proposed = pruner.propose(&rules(later, 0, FOLD_AFTER)).unwrap();
    assert!(proposed.packs > 0, "{proposed:?}");
    // Thought through for the third day and said now: the storage in memory is as old as the orders that begin with it.
    let now = PruneOptions { now: None, ..rules(later, 0, FOLD_AFTER) };
    pruner.perform(&proposed, &now).unwrap();
}

/// The newest point of every chain stays.
pub(crate) fn rules(now: Timestamp, small_packs: usize, fold_after: u64) -> PruneOptions {
    PruneOptions {
        rules: Some(KeepRules { last: 1, ..KeepRules::default() }),
        min_age: SignedDuration::ZERO,
        now: Some(now),
        moves: MoveRules { small_packs, ..MoveRules::default() },
        fold_after,
        // The hosts' clocks stand still while the storage's goes on.
        by_claimed_time: true,
        ..PruneOptions::default()
    }
}

/// Every point stays, and what only those of more than a day ago need is put away.
pub(crate) fn archiving(rules: PruneOptions) -> PruneOptions {
    let archive = ArchiveRules {
        class: FROZEN_CLASS.to_owned(),
        thaw: SignedDuration::from_hours(1),
        after: BTreeMap::new(),
        after_all: Some(SignedDuration::from_hours(24)),
        bytes_per_second: None,
        bytes_max: u64::MAX,
    };
    let keep = KeepRules { last: 1000, ..KeepRules::default() };
    PruneOptions { archive: Some(archive), rules: Some(keep), ..rules }
}

pub(crate) fn back_up(vault: &HostVault, dataset: &str, chunks: &[u8]) -> Result<PointInfo> {
    commit(vault, dataset, chunks, None)
}

/// A point that the log goes on from after this transaction.
fn back_up_at(vault: &HostVault, chunks: &[u8], counter: u64) -> Result<PointInfo> {
    commit(vault, "app", chunks, Some(Position { lineage: "l".to_owned(), timeline: 1, counter }))
}

/// Appends so many transactions, one an object.
pub(crate) fn append(vault: &HostVault, count: u64) -> Result<()> {
    let mut writer = vault.log_writer("app", "l", 1)?;
    for _ in 0..count {
        let next = writer.last().map_or(1, |last| last.last + 1);
        let now = Timestamp::now();
        let piece = LogPiece { first: next, last: next, source_time: now, mark: false, final_mark: false };
        writer.append(piece, b"a change")?;
    }
    Ok(())
}

fn commit(vault: &HostVault, dataset: &str, chunks: &[u8], position: Option<Position>) -> Result<PointInfo> {
    let session = vault.begin(dataset, SessionOptions::default())?;
    let ids: Result<Vec<ChunkId>> = chunks.iter().map(|n| Ok(session.put(&[*n; 40])?.id)).collect();
    let ids = ids?;
    let root = ids.iter().flat_map(|id| id.0).collect();
    session.commit(SnapshotDraft {
        root,
        references: ids,
        source_time: Timestamp::now(),
        position,
        ..SnapshotDraft::default()
    })
}

pub(crate) fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_directory(&entry.path(), &target),
            false => {
                std::fs::copy(entry.path(), target).unwrap();
            }
        }
    }
}
