//! A vault to play in: an owner with two keys, a host, some data.

use std::sync::Arc;

use jiff::Timestamp;
use lifeboat_vault::storage::{LockMode, Locking, MemoryStorage, Storage};
use lifeboat_vault::{
    BackupSession, ChunkId, ChunkSink, ChunkSource, HostVault, Identity, InitOptions, PointInfo, Result,
    SessionOptions, SnapshotDraft, State, Unlocked, Vault,
};

pub(crate) struct World {
    pub(crate) storage: Arc<MemoryStorage>,
    pub(crate) owner: Identity,
    pub(crate) paper: Identity,
    pub(crate) state: State,
    pub(crate) vault: HostVault,
    pub(crate) fingerprint: String,
    pub(crate) directory: tempfile::TempDir,
}

pub(crate) fn host_state(directory: &tempfile::TempDir, name: &str) -> State {
    State::open(&directory.path().join(name), Some(name)).unwrap()
}

impl World {
    pub(crate) fn new() -> World {
        World::with_holders(Vec::new())
    }

    pub(crate) fn with_holders(holders: Vec<lifeboat_vault::Holder>) -> World {
        World::in_storage(MemoryStorage::new(), holders)
    }

    /// In a storage with classes, one of which must be thawed.
    pub(crate) fn with_classes() -> World {
        World::in_storage(MemoryStorage::new().with_classes(), Vec::new())
    }

    /// In a storage that locks.
    pub(crate) fn with_locks(by_itself: Option<(u32, LockMode)>) -> World {
        World::in_storage(MemoryStorage::new().with_locks(Locking { by_itself }), Vec::new())
    }

    fn in_storage(storage: MemoryStorage, holders: Vec<lifeboat_vault::Holder>) -> World {
        let directory = tempfile::tempdir().unwrap();
        let storage = Arc::new(storage);
        let (owner, paper) = (Identity::generate(), Identity::generate());
        let state = host_state(&directory, "alpha");
        let options =
            InitOptions { recipients: vec![owner.recipient(), paper.recipient()], holders, ..InitOptions::default() };
        let (vault, made) = Vault::init(storage.clone(), &state, &options).unwrap();
        World { storage, owner, paper, state, vault, fingerprint: made.owner, directory }
    }

    /// Opens the vault as a machine that has only the owner's key.
    pub(crate) fn unlock(&self) -> Unlocked {
        unlock(self.storage.clone(), &self.fingerprint, &self.owner).unwrap()
    }

    pub(crate) fn reopen(&self, storage: Arc<dyn Storage>) -> Result<HostVault> {
        HostVault::open(storage, self.state.clone(), Some(&self.fingerprint))
    }
}

pub(crate) fn unlock(storage: Arc<dyn Storage>, fingerprint: &str, identity: &Identity) -> Result<Unlocked> {
    Vault::open(storage, None, Some(fingerprint))?.unlock(std::slice::from_ref(identity))
}

/// Chunks that are told apart by seed and number; every second one does not compress.
pub(crate) fn chunk(seed: u64, number: u64) -> Vec<u8> {
    let length = 2000 + (number * 37 % 900) as usize;
    match number % 2 {
        0 => format!("chunk {seed} {number} ").into_bytes().into_iter().cycle().take(length).collect(),
        _ => {
            let mut bytes = vec![0; length];
            blake3::Hasher::new()
                .update(&seed.to_le_bytes())
                .update(&number.to_le_bytes())
                .finalize_xof()
                .fill(&mut bytes);
            bytes
        }
    }
}

pub(crate) fn put_chunks(session: &BackupSession, seed: u64, count: u64) -> Result<Vec<ChunkId>> {
    (0..count).map(|n| Ok(session.put(&chunk(seed, n))?.id)).collect()
}

/// The root of these tests' points is the row of their chunks.
pub(crate) fn commit(session: BackupSession, ids: &[ChunkId]) -> Result<PointInfo> {
    let root = ids.iter().flat_map(|id| id.0).collect();
    session.commit(SnapshotDraft {
        root,
        references: ids.to_vec(),
        source_time: Timestamp::now(),
        ..SnapshotDraft::default()
    })
}

pub(crate) fn back_up(vault: &HostVault, dataset: &str, seed: u64, count: u64) -> Result<PointInfo> {
    let session = vault.begin(dataset, SessionOptions::default())?;
    let ids = put_chunks(&session, seed, count)?;
    commit(session, &ids)
}

/// Reads a point back and says whether it is what `back_up` stored.
pub(crate) fn is_right(unlocked: &Unlocked, point: &PointInfo, seed: u64, count: u64) -> Result<bool> {
    let root = unlocked.read_root(point)?;
    let source = unlocked.source(&point.dataset)?;
    let mut chunks = Vec::new();
    for id in root.chunks(32) {
        chunks.push(source.get(&ChunkId(id.try_into().unwrap()))?);
    }
    Ok(chunks == (0..count).map(|n| chunk(seed, n)).collect::<Vec<_>>())
}
