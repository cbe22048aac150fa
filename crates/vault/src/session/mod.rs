//! A backup session: takes chunks from many threads, writes packs in the background, ends in a snapshot.
//!
//! ```text
//! put (n threads) ─ hash ─ known? ─ frame of the thread ─ compress ─┐ seal into the pack ─ bounded queue ─ writers ─ index ─ snapshot
//! ```
//! Invariants: packs before indexes before the snapshot; nothing is compressed that the vault has; an interrupted session loses no
//! uploaded pack (the host keeps a list of what it is uploading, and checkpoints publish it); after a failure nothing is committed.

mod known;
mod packing;
mod table;

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use zstd::zstd_safe::CParameter;

use crate::codec::{self, Hash};
use crate::crypt::random;
use crate::error::{Doing, Result, VaultError};
use crate::host::{ChunkKey, write_secret_file};
use crate::index::{Head, IndexBody};
use crate::name;
use crate::open::HostVault;
use crate::pack::{PackBuilder, PackRecord};
use crate::port::{CHUNK_BYTES_MAX, ChunkId, ChunkSink, Stored};
use crate::prune::Ledger;
use crate::refs;
use crate::seal::{Recipient, seal, seal_frame};
use crate::sign::Signed;
use crate::snapshot::{
    Badge, IndexSeen, PointInfo, ROOT_BYTES_MAX, Snapshot, SnapshotBody, SnapshotDraft, SnapshotHead,
};
use crate::storage::Put;

use self::known::Pending;
pub(crate) use self::known::{Inherited, KnownChunks, inherited_path};
use self::packing::Packing;
use self::table::Table;

/// An interrupted session's index is at most so old (where the host's own list is lost, too).
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);
const CHECKPOINT_PACKS: usize = 64;
/// New chunks of a session that are kept in memory, about.
const FRESH_MAX: usize = 128 << 10;
/// Finished packs waiting for a writer.
const QUEUE_PACKS: usize = 1;
/// However many a storage wants: each holds a pack in memory.
const WRITERS_MAX: usize = 8;

#[derive(Debug, Clone, Copy)]
pub struct SessionOptions {
    /// zstd level; 1 is fast, 3 the default.
    pub level: i32,
}

impl SessionOptions {
    /// Less time, and some more space.
    pub fn fast() -> SessionOptions {
        SessionOptions { level: 1 }
    }

    /// Whole frames in view of each other: 3 % less space for 3 % more time. The fast level does not look so far. And no block is split
    /// before it is compressed (zstd only tries with whole blocks of 128 KiB): a twentieth of the time for 0.6 % of a tree, and a
    /// database's pages get smaller without it.
    fn parameters(&self) -> &'static [CParameter] {
        const FRAME_LOG: u32 = crate::pack::FRAME_BYTES.ilog2();
        const UNSPLIT: CParameter = CParameter::MaxBlockSize((128 << 10) - 1);
        match self.level {
            3.. => &[UNSPLIT, CParameter::WindowLog(FRAME_LOG)],
            _ => &[UNSPLIT],
        }
    }

    /// How closely a frame is looked at. Matches of four bytes, not five, and a larger table of them make a tree smaller by 0.7 %, for an
    /// eighth of the time it takes to compress it: only pages are worth that, where what little repeats is short.
    fn closeness(&self, are_pages: bool) -> &'static [CParameter] {
        match (self.level, are_pages) {
            (3.., true) => &[CParameter::MinMatch(4), CParameter::ChainLog(17)],
            (3.., false) => &[CParameter::MinMatch(5), CParameter::ChainLog(16)],
            _ => &[],
        }
    }
}

impl Default for SessionOptions {
    fn default() -> SessionOptions {
        SessionOptions { level: 3 }
    }
}

/// What the vault had when the session began.
#[derive(Debug)]
struct Known {
    table: Table,
    /// Which of the packs that the table names can be relied on.
    there: Vec<bool>,
}

impl Known {
    fn contains(&self, id: &ChunkId) -> bool {
        self.table.any(id, |pack| self.there.get(pack as usize) == Some(&true))
    }
}

/// What came in since. What is in an index is moved to a table when it gets much.
#[derive(Debug, Default)]
struct Fresh {
    ids: HashSet<ChunkId>,
    indexed: Table,
}

impl Fresh {
    fn contains(&self, id: &ChunkId) -> bool {
        self.ids.contains(id) || self.indexed.any(id, |_| true)
    }

    /// Whether it was not there before.
    fn insert(&mut self, id: ChunkId) -> bool {
        !self.indexed.any(&id, |_| true) && self.ids.insert(id)
    }

    /// What cannot be moved stays where it is.
    fn settle(&mut self, packs: &[PackRecord], directory: &Path) {
        let chunks = || packs.iter().flat_map(|pack| &pack.frames).flat_map(|frame| frame.chunks());
        if self.indexed.add(chunks().map(|(id, _)| table::record(&id, 0)).collect(), directory, None).is_ok() {
            for (id, _) in chunks() {
                self.ids.remove(&id);
            }
        }
    }
}

#[derive(Debug)]
struct Unindexed {
    /// Where the indexes stood when the session began.
    begun: Head,
    head: Head,
    packs: Vec<PackRecord>,
    /// On their way to the storage.
    writing: Vec<PackRecord>,
    last: Instant,
}

/// A finished pack, on its way to a writer.
type Finished = (Vec<u8>, PackRecord);

#[derive(Debug)]
struct Shared {
    vault: HostVault,
    dataset: String,
    content: Recipient,
    index_recipients: Vec<Recipient>,
    chunk_key: ChunkKey,
    packing: Packing,
    known: Known,
    /// What was pruned when it began.
    ledger: Arc<Ledger>,
    others: Vec<IndexSeen>,
    fresh: Mutex<Fresh>,
    queue: Mutex<Option<SyncSender<Finished>>>,
    in_flight: Mutex<usize>,
    landed: Condvar,
    unindexed: Mutex<Unindexed>,
    /// What the next session knows, as far as this one has published it; absent where that could not be kept.
    learnt: Mutex<Option<KnownChunks>>,
    failed: AtomicBool,
    failure: Mutex<Option<String>>,
    bytes_new: AtomicU64,
    bytes_stored: AtomicU64,
    pending: Pending,
}

/// Takes chunks for one recovery point of one data set. See `ChunkSink`.
#[derive(Debug)]
pub struct BackupSession {
    shared: Arc<Shared>,
    writers: Vec<JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HostVault {
    /// Begins a backup of a data set. Several may run at once; each makes a point of its own.
    pub fn begin(&self, dataset: &str, options: SessionOptions) -> Result<BackupSession> {
        name::check(dataset, "the data set's name")?;
        self.check_enrolled()?;
        let content = self.content_recipient(dataset)?;
        let chunk_key = self.chunk_key(dataset, &content)?;
        // Before the look at what there is: a prune that comes in between is seen at the commit.
        let ledger = self.ledger()?;
        let roster = self.roster();
        let index_recipients = vec![self.state().index_key().recipient(), roster.refs.parse()?, content.clone()];
        let known = self.load_known(dataset, &index_recipients)?;
        let mut present: HashMap<String, u64> = self
            .storage()
            .list("pack/")
            .doing(|| "listing packs".to_owned())?
            .into_iter()
            .map(|o| (o.key, o.size))
            .collect();
        // A pack that is gone, damaged, or about to be pruned, is no pack: its chunks are uploaded again.
        for bad in self.bad_packs_of(self.host_name(), dataset)? {
            present.remove(&name::pack(&bad.0));
        }
        let is_there =
            |(hash, bytes): &(Hash, u64)| present.get(&name::pack(&hash.0)) == Some(bytes) && !ledger.is_doomed(hash);
        let there: Vec<bool> = known.packs.iter().map(is_there).collect();
        let learnt = Mutex::new(Some(known.clone()));
        let secret: [u8; 32] = random();
        let sealed_secret = seal(std::slice::from_ref(&content), &secret)?;
        let (sender, receiver) = sync_channel(QUEUE_PACKS);
        let writers = self.storage().parallel_writes().clamp(1, WRITERS_MAX);
        let shared = Arc::new(Shared {
            vault: self.clone(),
            dataset: dataset.to_owned(),
            content,
            index_recipients,
            chunk_key,
            packing: Packing::new(self.id(), secret, sealed_secret, options, writers),
            known: Known { table: known.table, there },
            ledger,
            others: known.others,
            fresh: Mutex::default(),
            queue: Mutex::new(Some(sender)),
            in_flight: Mutex::default(),
            landed: Condvar::new(),
            unindexed: Mutex::new(Unindexed {
                begun: known.head,
                head: known.head,
                packs: Vec::new(),
                writing: Vec::new(),
                last: Instant::now(),
            }),
            learnt,
            failed: AtomicBool::new(false),
            failure: Mutex::default(),
            bytes_new: AtomicU64::new(0),
            bytes_stored: AtomicU64::new(0),
            pending: self.open_pending(dataset)?,
        });
        let receiver = Arc::new(Mutex::new(receiver));
        let mut session = BackupSession { shared, writers: Vec::new() };
        for _ in 0..writers {
            let (writing, receiver) = (session.shared.clone(), receiver.clone());
            let writer = std::thread::Builder::new()
                .name("vault-writer".to_owned())
                .spawn(move || writing.write_packs(&receiver))
                .map_err(|source| VaultError::State {
                    path: "-".to_owned(),
                    doing: "starting a thread".to_owned(),
                    source,
                })?;
            session.writers.push(writer);
        }
        Ok(session)
    }
}

impl Shared {
    fn fail(&self, error: &VaultError) {
        let mut why = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            why.push_str(": ");
            why.push_str(&cause.to_string());
            source = cause.source();
        }
        lock(&self.failure).get_or_insert(why);
        self.failed.store(true, Ordering::SeqCst);
    }

    fn check(&self) -> Result<()> {
        if !self.failed.load(Ordering::SeqCst) {
            return Ok(());
        }
        Err(VaultError::SessionFailed { why: lock(&self.failure).clone().unwrap_or_default() })
    }

    /// Names a chunk, and says whether it is for the caller to take in.
    fn claim(&self, plain: &[u8]) -> Result<Stored> {
        if plain.len() > CHUNK_BYTES_MAX {
            return Err(VaultError::TooLarge {
                what: "a chunk".to_owned(),
                size: plain.len() as u64,
                limit: CHUNK_BYTES_MAX as u64,
            });
        }
        let id = self.chunk_key.id_of(plain);
        let new = !self.known.contains(&id) && lock(&self.fresh).insert(id);
        if new {
            self.bytes_new.fetch_add(plain.len() as u64, Ordering::Relaxed);
        }
        Ok(Stored { id, new })
    }

    /// Takes in new chunks. They count as put from here on; if that fails, so does the session.
    fn take_in(&self, data: &[u8], row: &[(ChunkId, Range<usize>)]) -> Result<()> {
        let full = self.packing.add_row(data, row, &self.failed).inspect_err(|e| self.fail(e))?;
        full.into_iter().try_for_each(|pack| self.send(pack))
    }

    fn send(&self, builder: PackBuilder) -> Result<()> {
        if builder.is_empty() {
            return Ok(());
        }
        let finished = builder.finish()?;
        let queue = lock(&self.queue).clone();
        *lock(&self.in_flight) += 1;
        let sent = queue.is_some_and(|queue| queue.send(finished).is_ok());
        if !sent {
            *lock(&self.in_flight) -= 1;
            self.fail(&VaultError::invalid("the backup session", "its writers have ended"));
        }
        self.check()
    }

    fn write_packs(&self, receiver: &Mutex<Receiver<Finished>>) {
        loop {
            let next = lock(receiver).recv();
            let Ok((mut bytes, record)) = next else { return };
            // After a failure the queue is only emptied, so that nobody waits.
            if !self.failed.load(Ordering::SeqCst)
                && let Err(e) = self.write_pack(&mut bytes, record)
            {
                self.fail(&e);
            }
            self.packing.give_back(bytes);
            *lock(&self.in_flight) -= 1;
            self.landed.notify_all();
        }
    }

    fn write_pack(&self, bytes: &mut Vec<u8>, record: PackRecord) -> Result<()> {
        let key = name::pack(&record.hash.0);
        {
            let mut unindexed = lock(&self.unindexed);
            unindexed.writing.push(record.clone());
            let packs = unindexed.packs.iter().chain(&unindexed.writing).cloned().collect();
            write_secret_file(&self.pending.list, &codec::encode(&self.body(packs))?)?;
        }
        // Nothing is held meanwhile: others write theirs.
        self.vault.storage().put_if_absent_from(&key, bytes).doing(|| format!("writing {key}"))?;
        self.bytes_stored.fetch_add(record.bytes, Ordering::Relaxed);
        let mut unindexed = lock(&self.unindexed);
        unindexed.writing.retain(|other| other.hash != record.hash);
        unindexed.packs.push(record);
        if unindexed.packs.len() >= CHECKPOINT_PACKS || unindexed.last.elapsed() >= CHECKPOINT_EVERY {
            self.publish(&mut unindexed, false)?;
        }
        Ok(())
    }

    fn body(&self, packs: Vec<PackRecord>) -> IndexBody {
        IndexBody { secret: self.packing.sealed_secret.clone(), chunk_key: self.chunk_key.name(), packs }
    }

    fn publish(&self, unindexed: &mut Unindexed, finished: bool) -> Result<()> {
        if !unindexed.packs.is_empty() {
            let body = self.body(std::mem::take(&mut unindexed.packs));
            let published =
                self.vault.publish_index(&self.dataset, &self.index_recipients, unindexed.head, &body, finished);
            match published {
                Ok(head) => {
                    unindexed.head = head;
                    self.learn(head, &body.packs);
                    let mut fresh = lock(&self.fresh);
                    if let Some(directory) = self.pending.list.parent()
                        && fresh.ids.len() > FRESH_MAX
                    {
                        fresh.settle(&body.packs, directory);
                    }
                }
                Err(e) => {
                    unindexed.packs = body.packs;
                    return Err(e);
                }
            }
        }
        unindexed.last = Instant::now();
        Ok(())
    }

    /// What cannot be kept is read again by the next session.
    fn learn(&self, head: Head, packs: &[PackRecord]) {
        let mut learnt = lock(&self.learnt);
        if let Some(mut known) = learnt.take() {
            match self.vault.learn(&self.dataset, &mut known, head, packs) {
                Ok(()) => *learnt = Some(known),
                Err(error) => tracing::warn!(dataset = self.dataset, "{error}"),
            }
        }
    }

    /// Everything that was put is in packs, and every pack is in the vault.
    fn flush(&self) -> Result<()> {
        self.check()?;
        for pack in self.packing.flush(&self.failed)? {
            self.send(pack)?;
        }
        let mut in_flight = lock(&self.in_flight);
        while *in_flight > 0 {
            in_flight = self.landed.wait(in_flight).unwrap_or_else(PoisonError::into_inner);
        }
        drop(in_flight);
        self.check()
    }
}

impl ChunkSink for BackupSession {
    fn put(&self, plain: &[u8]) -> Result<Stored> {
        let shared = &self.shared;
        shared.check()?;
        let stored = shared.claim(plain)?;
        if stored.new {
            let full = shared.packing.add_single(&stored.id, plain, &shared.failed).inspect_err(|e| shared.fail(e))?;
            full.map_or(Ok(()), |pack| shared.send(pack))?;
        }
        Ok(stored)
    }

    fn put_all(&self, data: &[u8], pieces: &[Range<usize>]) -> Result<Vec<Stored>> {
        let shared = &self.shared;
        shared.check()?;
        let mut stored = Vec::with_capacity(pieces.len());
        let mut row: Vec<(ChunkId, Range<usize>)> = Vec::new();
        for piece in pieces {
            let plain = data.get(piece.clone()).unwrap_or_default();
            let Stored { id, new } = shared.claim(plain)?;
            stored.push(Stored { id, new });
            if !new {
                continue;
            }
            if row.last().is_some_and(|(_, last)| last.end != piece.start) {
                shared.take_in(data, &row)?;
                row.clear();
            }
            row.push((id, piece.clone()));
        }
        shared.take_in(data, &row)?;
        Ok(stored)
    }

    fn contains(&self, id: &ChunkId) -> bool {
        self.shared.known.contains(id) || lock(&self.shared.fresh).contains(id)
    }

    fn chunker_seed(&self) -> u64 {
        self.shared.chunk_key.seed
    }

    fn memory_key(&self) -> [u8; 32] {
        blake3::derive_key(crate::port::MEMORY_KEY, &self.shared.chunk_key.to_bytes())
    }

    fn bytes_stored(&self) -> u64 {
        self.shared.bytes_stored.load(Ordering::Relaxed)
    }

    fn checkpoint(&self) -> Result<()> {
        self.shared.flush()?;
        let mut unindexed = lock(&self.shared.unindexed);
        self.shared.publish(&mut unindexed, false).inspect_err(|e| self.shared.fail(e))
    }
}

impl BackupSession {
    pub fn dataset(&self) -> &str {
        &self.shared.dataset
    }

    /// Bytes of new chunks taken in so far.
    pub fn bytes_new(&self) -> u64 {
        self.shared.bytes_new.load(Ordering::Relaxed)
    }

    /// Makes a recovery point of what was put. Everything in it is durable when this returns.
    pub fn commit(self, draft: SnapshotDraft) -> Result<PointInfo> {
        let shared = &self.shared;
        if draft.root.len() > ROOT_BYTES_MAX {
            return Err(VaultError::TooLarge {
                what: "the root".to_owned(),
                size: draft.root.len() as u64,
                limit: ROOT_BYTES_MAX as u64,
            });
        }
        if let Some(id) = draft.references.iter().find(|id| !self.contains(id)) {
            return Err(VaultError::invalid(
                "the recovery point",
                format!("it references chunk {id}, which is not in the vault"),
            ));
        }
        shared.flush()?;
        let (begun, head) = {
            let mut unindexed = lock(&shared.unindexed);
            shared.publish(&mut unindexed, true)?;
            (unindexed.begun, unindexed.head)
        };
        let point = self.publish_snapshot(&draft, head)?;
        let _ = std::fs::remove_file(&shared.pending.list);
        let _ = std::fs::remove_file(&shared.pending.lock);
        if shared.known.table.is_damaged() {
            // What could not be looked up was stored again; the next session reads the indexes anew.
            shared.vault.forget_known(&shared.dataset)?;
        } else if let Some(known) = lock(&shared.learnt).take()
            && head != begun
            && let Err(error) = shared.vault.keep_learnt(&shared.dataset, known)
        {
            tracing::warn!(dataset = shared.dataset, "{error}");
        }
        Ok(point)
    }

    fn publish_snapshot(&self, draft: &SnapshotDraft, index: Head) -> Result<PointInfo> {
        let shared = &self.shared;
        let vault = &shared.vault;
        let host = vault.host_name();
        let chain = name::snapshots_of(host, &shared.dataset);
        let mut refs_hash = None;
        loop {
            let before = vault.chain_head(host, &shared.dataset)?;
            let sequence = before.number + 1;
            let refs_hash = match refs_hash {
                Some(hash) => hash,
                None => *refs_hash.insert(self.publish_refs(draft, before.number)?),
            };
            let prune_generation =
                vault.check_against_prunes(&shared.dataset, &draft.references, &refs_hash, &shared.ledger)?;
            let key = format!("{chain}{}", name::number(sequence));
            let body = SnapshotBody {
                root: draft.root.clone(),
                notes: draft.notes.clone(),
                chunk_key: shared.chunk_key.to_bytes().to_vec(),
            };
            let own = index.hash.map(|hash| IndexSeen { host: host.to_owned(), number: index.number, hash });
            let value = SnapshotHead {
                vault: vault.id(),
                host: host.to_owned(),
                dataset: shared.dataset.clone(),
                sequence,
                previous: before.hash,
                roster: vault.roster().version,
                epoch: draft.epoch,
                position: draft.position.clone(),
                taken_at: draft.source_time.into(),
                stored_at: Timestamp::now().into(),
                files: draft.files,
                bytes: draft.bytes,
                bytes_new: self.bytes_new(),
                bytes_stored: self.bytes_stored(),
                schema: draft.schema.clone(),
                release: draft.release.clone(),
                final_mark: draft.final_mark,
                indexes: own.into_iter().chain(shared.others.iter().cloned()).collect(),
                refs: refs_hash,
                prune_generation,
                sealed: seal_frame(std::slice::from_ref(&shared.content), &key, &codec::encode(&body)?)?,
            };
            let bytes = Signed::seal(crate::snapshot::KIND, &codec::encode(&value)?, vault.state().signing_key())?;
            let put = vault.storage().put_if_absent(&key, &bytes);
            match put.doing(|| format!("writing {key}"))? {
                // A pruned point bore this number while this writer was away.
                Put::Created if vault.was_pruned(&shared.dataset, sequence)? => continue,
                Put::Created => {
                    vault.check_against_prunes(&shared.dataset, &draft.references, &refs_hash, &shared.ledger)?;
                    let hash = crate::crypt::hash(&bytes);
                    vault.remember_head(&chain, sequence, hash)?;
                    return Ok(Snapshot { key, head: value, hash: Hash(hash) }.info(Badge::Unverified));
                }
                // Of two at once one wins, the other goes on at the next number.
                Put::Exists => continue,
            }
        }
    }

    fn publish_refs(&self, draft: &SnapshotDraft, before: u64) -> Result<Hash> {
        let shared = &self.shared;
        let vault = &shared.vault;
        let (roster, host) = (vault.roster(), vault.host_name());
        let known = (before > 0)
            .then(|| {
                let snapshot = vault.read_snapshot(host, &shared.dataset, before).ok()?;
                refs::known(
                    &**vault.storage(),
                    &roster,
                    host,
                    &shared.dataset,
                    &snapshot.head.refs,
                    vault.state().index_key(),
                )
                .ok()
            })
            .flatten();
        let writer = refs::Writer {
            storage: &**vault.storage(),
            vault: &roster.vault,
            host,
            dataset: &shared.dataset,
            signer: vault.state().signing_key(),
            recipients: &shared.index_recipients[..2],
        };
        writer.publish(&draft.references, known.as_ref())
    }
}

impl Drop for BackupSession {
    fn drop(&mut self) {
        lock(&self.shared.queue).take();
        for writer in self.writers.drain(..) {
            // A writer that panicked has nothing left to say.
            let _ = writer.join();
        }
    }
}
