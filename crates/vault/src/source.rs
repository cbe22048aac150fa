//! Reading chunks: from a chunk's id to its place, its frame, its contents.
//!
//! Invariants: contents are given only if their keyed hash is the id; where indexes are missing the packs' own directories are read
//! instead, so that a lost index costs time and never a restore.

mod places;

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::codec::Hash;
use crate::crypt::FrameKey;
use crate::error::{Doing, Result, VaultError};
use crate::finding::{Finding, Severity, note};
use crate::host::{ChunkKey, write_secret_file};
use crate::index::{self, MovedName};
use crate::keys;
use crate::name;
use crate::open::{HostVault, Unlocked, Vault};
use crate::pack::{FrameRecord, PackRecord, SEALED_BYTES_MIN, open_frame_in, pack_key, read_directory};
use crate::port::{ChunkId, ChunkSource, Scratch, Sealed, TakeRow};
use crate::prune::Ledger;
use crate::seal::{Identity, unseal};
use crate::session::{Inherited, inherited_path};
use crate::snapshot::IndexSeen;
use crate::storage::StorageError;

use self::places::{Place, Places};

/// Larger frames (few are: of large chunks that hardly shrink) are read when it is their turn, so that what is fetched ahead is bounded.
const FETCHED_BYTES_MAX: u32 = 6 << 20;
/// So much is unpacked, verified and written before more is: it stays in the caches of a core meanwhile.
const ROW_BYTES: usize = 256 << 10;
/// Unpacked frames kept for their neighbours (4 MiB each, seldom more).
const FRAMES_KEPT: usize = 8;

#[derive(Debug)]
pub(crate) struct KnownPack {
    pub(crate) record: PackRecord,
    secret: Arc<[u8]>,
    /// Its own key, and one for each origin of moved frames.
    keys: Box<[OnceLock<FrameKey>]>,
    /// Where a chunk lies elsewhere, too, it is rather read from here.
    preferred: bool,
}

type FrameSlot = Arc<Mutex<Option<Arc<Vec<u8>>>>>;

/// The chunks of one data set, of all hosts that wrote it.
#[derive(Debug)]
pub struct Source {
    vault: Vault,
    vault_id: String,
    content: Identity,
    pub(crate) packs: Vec<KnownPack>,
    places: Places,
    pub(crate) chunk_keys: Vec<ChunkKey>,
    indexes: Vec<IndexSeen>,
    secrets: Mutex<HashMap<Vec<u8>, [u8; 32]>>,
    frames: Mutex<VecDeque<((u32, u32), FrameSlot)>>,
    findings: Vec<Finding>,
}

impl Unlocked {
    /// Opens a data set's chunks for reading.
    pub fn source(&self, dataset: &str) -> Result<Source> {
        self.refresh()?;
        let content = self.content(dataset)?;
        let mut source = Source {
            vault: Vault::clone(self),
            vault_id: self.id(),
            content,
            packs: Vec::new(),
            places: Places::default(),
            chunk_keys: Vec::new(),
            indexes: Vec::new(),
            secrets: Mutex::default(),
            frames: Mutex::default(),
            findings: Vec::new(),
        };
        let complete = source.read_indexes(dataset)?;
        if !complete {
            source.read_directories()?;
        }
        source.read_chunk_keys(self, dataset)?;
        Ok(source)
    }

    /// Takes over a data set from the host that wrote it before: its chunk-id key and what it stored, so that this host does
    /// not upload everything again. Needs the data set's content key (a standby's will do). Idempotent.
    pub fn inherit(&self, host: &HostVault, dataset: &str) -> Result<()> {
        let source = self.source(dataset)?;
        let newest = self.points(Some(dataset))?.points.into_iter().rfind(|p| p.host != host.host_name());
        let Some(newest) = newest else { return Ok(()) };
        let key = self.read_body(&newest).ok().and_then(|body| ChunkKey::from_bytes(&body.chunk_key));
        let Some(key) = key.or_else(|| source.chunk_keys.first().copied()) else { return Ok(()) };
        let indexes: Vec<IndexSeen> = source.indexes.iter().filter(|i| i.host != host.host_name()).cloned().collect();
        let inherited = Inherited { indexes, packs: source.packs.into_iter().map(|p| p.record).collect() };
        write_secret_file(&inherited_path(host, dataset)?, &crate::codec::encode(&inherited)?)?;
        host.state().keep_chunk_key(&host.id(), dataset, &key)?;
        host.forget_known(dataset)
    }
}

/// Whether a pack was neither pruned nor put where it must be thawed: what lies elsewhere, too, is rather read there.
fn is_at_hand(ledger: &Ledger, pack: &PackRecord) -> bool {
    !ledger.is_swept(&name::pack(&pack.hash.0)) && !ledger.is_slow(&pack.hash)
}

impl Source {
    /// What was wrong with the indexes; the chunks that could be found are there all the same.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Whether every number of every host's indexes was there and readable.
    fn read_indexes(&mut self, dataset: &str) -> Result<bool> {
        let storage = self.vault.storage().clone();
        let roster = self.vault.roster();
        let ledger = self.vault.ledger()?;
        let listed = storage.list("index/").doing(|| "listing indexes".to_owned())?;
        let mut hosts: HashMap<String, Vec<u64>> = HashMap::new();
        let there: HashSet<&str> = listed.iter().map(|object| object.key.as_str()).collect();
        let is_ours =
            |finding: &Finding| index::parse_moved_key(&finding.object).is_some_and(|(_, set, _)| set == dataset);
        let lost: Vec<Finding> = ledger.missing_moved(&there).into_iter().filter(is_ours).collect();
        let mut complete = lost.is_empty();
        self.findings.extend(lost);
        for object in &listed {
            if let Some((host, set, of)) = index::parse_moved_key(&object.key)
                && set == dataset
            {
                complete &= self.read_moved(&ledger, &host, dataset, of)?;
                continue;
            }
            if let [_, host, set, number] = object.key.split('/').collect::<Vec<_>>()[..]
                && let (Some(host), Some(set), Some(number)) =
                    (name::decode(host), name::decode(set), name::parse_number(number))
                && set == dataset
            {
                hosts.entry(host).or_default().push(number);
            }
        }
        for (host, numbers) in hosts {
            let mut expected = 1;
            for number in numbers {
                let missing = |gap: &u64| {
                    !ledger.is_swept(&format!("{}{}", name::indexes_of(&host, dataset), name::number(*gap)))
                };
                for gap in (expected..number.min(expected + 16)).filter(missing) {
                    complete = false;
                    let key = format!("{}{}", name::indexes_of(&host, dataset), name::number(gap));
                    self.findings.push(Finding::missing(key, "the directories of the packs are read instead"));
                }
                expected = number + 1;
                let read = index::read(&*storage, &roster, &host, dataset, number)
                    .and_then(|i| Ok((i.open_body(std::slice::from_ref(&self.content))?, i.hash)));
                match note(read, &mut self.findings)? {
                    Some((body, hash)) => {
                        let secret: Arc<[u8]> = body.secret.into();
                        // Nothing needs a pack that was pruned; one that could not be deleted yet may still serve.
                        let is_pruned = |p: &PackRecord| !is_at_hand(&ledger, p);
                        let (pruned, packs): (Vec<_>, Vec<_>) = body.packs.into_iter().partition(is_pruned);
                        packs.into_iter().for_each(|pack| self.add(pack, secret.clone(), true));
                        pruned.into_iter().for_each(|pack| self.add(pack, secret.clone(), false));
                        self.indexes.retain(|i| i.host != host);
                        self.indexes.push(IndexSeen { host: host.clone(), number, hash });
                    }
                    None => complete = false,
                }
            }
        }
        Ok(complete && self.heads_are_there(dataset)?)
    }

    /// What a pruner has moved; answers whether it could be read.
    fn read_moved(&mut self, ledger: &Ledger, host: &str, dataset: &str, of: MovedName) -> Result<bool> {
        let read = index::read_moved(&**self.vault.storage(), &self.vault.roster(), host, dataset, of)
            .and_then(|moved| moved.open_body(std::slice::from_ref(&self.content)));
        let Some(body) = note(read, &mut self.findings)? else { return Ok(false) };
        let secret: Arc<[u8]> = body.secret.into();
        for pack in body.packs {
            let is_there = is_at_hand(ledger, &pack);
            self.add(pack, secret.clone(), is_there);
        }
        Ok(true)
    }

    /// Snapshots name the newest index that they rest on: its absence is noticed even at the end of a row.
    fn heads_are_there(&mut self, dataset: &str) -> Result<bool> {
        let (snapshots, _) = self.vault.read_chains(Some(dataset))?;
        let mut complete = true;
        for seen in snapshots.iter().flat_map(|s| &s.head.indexes) {
            let found = self.indexes.iter().find(|i| i.host == seen.host);
            if found.is_none_or(|i| i.number < seen.number) {
                complete = false;
                let key = format!("{}{}", name::indexes_of(&seen.host, dataset), name::number(seen.number));
                let finding = Finding::missing(
                    key,
                    "a recovery point rests on it; the directories of the packs are read instead",
                );
                if !self.findings.contains(&finding) {
                    self.findings.push(finding);
                }
            }
        }
        Ok(complete)
    }

    /// `preferred`: where a chunk lies elsewhere, too, it is rather read from here.
    fn add(&mut self, record: PackRecord, secret: Arc<[u8]>, preferred: bool) {
        let keys = (0..=record.origins().len()).map(|_| OnceLock::new()).collect();
        self.packs.push(KnownPack { record, secret, keys, preferred });
        self.places.add_last(&self.packs);
    }

    /// Reads the directory of every pack that no index names.
    fn read_directories(&mut self) -> Result<()> {
        let storage = self.vault.storage().clone();
        let known: HashSet<String> = self.packs.iter().map(|p| name::pack(&p.record.hash.0)).collect();
        for object in storage.list("pack/").doing(|| "listing packs".to_owned())? {
            if known.contains(&object.key) {
                continue;
            }
            let bytes = match storage.get(&object.key) {
                Err(archived @ StorageError::Archived { .. }) => {
                    let message = format!("{archived}; which chunks are in it is not known: an index is missing");
                    self.findings.push(Finding::new(Severity::Alarm, "archived", &object.key, message));
                    continue;
                }
                other => other.doing(|| format!("reading {}", object.key))?,
            };
            match read_directory(&object.key, &bytes, &self.vault_id, &self.content) {
                Ok((record, secret)) => self.add(record, secret.into(), true),
                Err(VaultError::WrongKey { .. }) => {} // another data set's
                Err(e) => self.findings.push(Finding::from(&e)),
            }
        }
        Ok(())
    }

    /// From their own objects, and from the newest snapshot of each host, where those are lost.
    fn read_chunk_keys(&mut self, unlocked: &Unlocked, dataset: &str) -> Result<()> {
        let storage = self.vault.storage().clone();
        let roster = self.vault.roster();
        let prefix = name::chunk_keys(dataset);
        for object in storage.list(&prefix).doing(|| format!("listing {prefix}"))? {
            let read = storage.get(&object.key).doing(|| format!("reading {}", object.key));
            let opened =
                read.and_then(|bytes| keys::open_chunk_key(&roster, dataset, &object.key, &bytes, Some(&self.content)));
            self.chunk_keys.extend(note(opened, &mut self.findings)?.flatten());
        }
        let mut hosts = HashSet::new();
        for point in unlocked.points(Some(dataset))?.points.iter().rev() {
            if hosts.insert(point.host.clone())
                && let Ok(body) = unlocked.read_body(point)
                && let Some(key) = ChunkKey::from_bytes(&body.chunk_key)
                && !self.chunk_keys.contains(&key)
            {
                let key_name = format!("{prefix}{}", key.name());
                self.findings.push(Finding::missing(key_name, "the copy in a recovery point is used instead"));
                self.chunk_keys.push(key);
            }
        }
        Ok(())
    }

    fn unseal_secret(&self, pack: &KnownPack, sealed: &[u8]) -> Result<[u8; 32]> {
        let mut secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(secret) = secrets.get(sealed) {
            return Ok(*secret);
        }
        let opened = unseal([&self.content], sealed).ok().and_then(|s| <[u8; 32]>::try_from(s).ok());
        let object = name::pack(&pack.record.hash.0);
        let secret = opened
            .ok_or_else(|| VaultError::damaged(object, "its session secret does not open with the content key"))?;
        secrets.insert(sealed.to_vec(), secret);
        Ok(secret)
    }

    /// What a frame opens with: its key, the salt and the ordinal that it was sealed with.
    pub(crate) fn opener<'a>(&self, pack: &'a KnownPack, frame: usize) -> Result<(&'a FrameKey, &'a Hash, u64)> {
        let record = &pack.record;
        let lost = || VaultError::damaged(name::pack(&record.hash.0), "a frame names no origin of this pack");
        let contents = record.frames.get(frame).ok_or_else(lost)?;
        let (place, secret, salt, ordinal) = match contents.origin {
            None => (0, &*pack.secret, &record.salt, frame as u64),
            Some(origin) => {
                let from = record.origins().get(origin as usize).ok_or_else(lost)?;
                (origin as usize + 1, from.secret.as_slice(), &from.salt, contents.ordinal.ok_or_else(lost)?)
            }
        };
        let slot = pack.keys.get(place).ok_or_else(lost)?;
        if let Some(key) = slot.get() {
            return Ok((key, salt, ordinal));
        }
        let made = pack_key(&self.unseal_secret(pack, secret)?, salt)?;
        Ok((slot.get_or_init(|| made), salt, ordinal))
    }

    /// Reads and opens a frame, or only opens it, if it was fetched; it is unpacked when its chunks are asked for.
    fn read_frame(&self, place: &Place, scratch: &mut Scratch) -> Result<()> {
        let pack = self.pack(place)?;
        let (object, record) = frame_of(pack, place)?;
        let room = scratch.unpacker.room();
        match scratch.sealed.at.take() == Some((place.pack, place.frame)) {
            true => std::mem::swap(room, &mut scratch.sealed.bytes),
            false => self.read_sealed(&object, record, room)?,
        }
        let (key, salt, number) = self.opener(pack, place.frame as usize)?;
        open_frame_in((&object, &self.vault_id, salt), key, number, record, &mut scratch.unpacker)
    }

    fn read_sealed(&self, object: &str, record: &FrameRecord, into: &mut Vec<u8>) -> Result<()> {
        let read = self.vault.storage().get_range_into(object, record.offset, u64::from(record.bytes), into);
        read.doing(|| format!("reading {object}"))?;
        match into.len() == record.bytes as usize {
            true => Ok(()),
            false => Err(VaultError::damaged(object, "it was cut off")),
        }
    }

    fn pack(&self, place: &Place) -> Result<&KnownPack> {
        let pack = self.packs.get(place.pack as usize);
        pack.ok_or_else(|| VaultError::damaged("the index", "it names no such pack"))
    }

    /// Unpacks so much of the frame that was opened.
    fn reach(&self, place: &Place, bytes: usize, scratch: &mut Scratch) -> Result<()> {
        scratch.unpacker.reach(bytes).map_err(|misfit| {
            let object = self.packs.get(place.pack as usize).map(|pack| name::pack(&pack.record.hash.0));
            VaultError::damaged(object.unwrap_or_default(), format!("frame {} {}", place.frame, misfit.why()))
        })
    }

    /// A chunk by way of `scratch`, which then holds its frame, unpacked so far.
    fn read_by<'s>(&self, id: &ChunkId, place: &Place, scratch: &'s mut Scratch) -> Result<&'s [u8]> {
        let at = (place.pack, place.frame);
        if scratch.at.take() != Some(at) {
            self.read_frame(place, scratch)?;
        }
        self.reach(place, place.end(), scratch)?;
        scratch.at = Some(at);
        self.chunk_in(id, place, scratch.unpacker.plain())
    }

    /// Chunks from the one at `first` on that are verified and in one frame, which is then in `scratch`; no more of them than the
    /// processor keeps at hand until they are written.
    fn row(&self, first: usize, ids: &[ChunkId], scratch: &mut Scratch) -> Vec<(usize, Range<usize>)> {
        let (mut row, mut bytes) = (Vec::new(), 0);
        for (index, id) in ids.iter().enumerate().skip(first) {
            let Some(place) = self.place_of(id) else { break };
            if !row.is_empty() && (bytes >= ROW_BYTES || scratch.at != Some((place.pack, place.frame))) {
                break;
            }
            if self.read_by(id, &place, scratch).is_err() {
                break;
            }
            row.push((index, place.start as usize..place.end()));
            bytes += place.length as usize;
        }
        row
    }

    /// The part of a frame that a place says, if it is what the id says.
    fn chunk_in<'f>(&self, id: &ChunkId, place: &Place, frame: &'f [u8]) -> Result<&'f [u8]> {
        let (start, end) = (place.start as usize, place.end());
        let object = || self.packs.get(place.pack as usize).map_or_else(String::new, |p| name::pack(&p.record.hash.0));
        let plain =
            frame.get(start..end).ok_or_else(|| VaultError::damaged(object(), "a chunk lies outside its frame"))?;
        if !self.is_right(id, plain) {
            let why = match self.chunk_keys.is_empty() {
                true => "nothing verifies its chunks: the chunk-id keys of the data set are missing".to_owned(),
                false => format!("chunk {id} is not what its id says"),
            };
            return Err(VaultError::damaged(object(), why));
        }
        Ok(plain)
    }

    fn frame(&self, place: &Place) -> Result<Arc<Vec<u8>>> {
        let at = (place.pack, place.frame);
        let slot = {
            let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
            match frames.iter().position(|(kept, _)| *kept == at) {
                Some(index) => {
                    let entry = frames.remove(index).unwrap_or_else(|| (at, FrameSlot::default()));
                    frames.push_back(entry.clone());
                    entry.1
                }
                None => {
                    let slot = FrameSlot::default();
                    frames.push_back((at, slot.clone()));
                    if frames.len() > FRAMES_KEPT {
                        frames.pop_front();
                    }
                    slot
                }
            }
        };
        // One thread unpacks, the others that want the same frame wait for it.
        let mut kept = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(frame) = &*kept {
            return Ok(frame.clone());
        }
        let mut scratch = Scratch::default();
        self.read_frame(place, &mut scratch)?;
        self.reach(place, usize::MAX, &mut scratch)?;
        let frame = Arc::new(scratch.unpacker.into_plain());
        *kept = Some(frame.clone());
        Ok(frame)
    }

    pub(crate) fn is_right(&self, id: &ChunkId, plain: &[u8]) -> bool {
        self.chunk_keys.iter().any(|key| key.id_of(plain) == *id)
    }

    fn read(&self, id: &ChunkId, place: &Place) -> Result<Vec<u8>> {
        let frame = self.frame(place)?;
        Ok(self.chunk_in(id, place, &frame)?.to_vec())
    }

    /// Where a chunk is read from.
    fn place_of(&self, id: &ChunkId) -> Option<Place> {
        self.places.of(&self.packs, id).next()
    }

    /// The pack that holds a chunk.
    pub(crate) fn pack_of(&self, id: &ChunkId) -> Option<Hash> {
        let place = self.place_of(id)?;
        self.packs.get(place.pack as usize).map(|p| p.record.hash)
    }

    /// Whether some pack that is good holds the chunk.
    pub(crate) fn lies_in(&self, id: &ChunkId, good: impl Fn(&Hash) -> bool) -> bool {
        let places = self.places.of(&self.packs, id);
        places.filter_map(|place| self.packs.get(place.pack as usize)).any(|pack| good(&pack.record.hash))
    }
}

/// The object that a frame lies in, and what the index says of the frame.
fn frame_of<'p>(pack: &'p KnownPack, place: &Place) -> Result<(String, &'p FrameRecord)> {
    let object = name::pack(&pack.record.hash.0);
    let Some(record) = pack.record.frames.get(place.frame as usize) else {
        return Err(VaultError::damaged(object, "it has no such frame"));
    };
    match (record.bytes as usize) < SEALED_BYTES_MIN {
        true => Err(VaultError::damaged(object, "a frame is too short")),
        false => Ok((object, record)),
    }
}

impl ChunkSource for Source {
    fn get(&self, id: &ChunkId) -> Result<Vec<u8>> {
        let mut failure = None;
        for place in self.places.of(&self.packs, id) {
            match self.read(id, &place) {
                Ok(plain) => return Ok(plain),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        Err(failure.unwrap_or_else(|| VaultError::Missing { object: format!("chunk {id}") }))
    }

    fn parallel_reads(&self) -> usize {
        self.vault.storage().parallel_reads()
    }

    fn fetch(&self, id: &ChunkId, sealed: &mut Sealed) {
        sealed.at = None;
        let Some(place) = self.place_of(id) else { return };
        let Ok((object, record)) = self.pack(&place).and_then(|pack| frame_of(pack, &place)) else { return };
        if record.bytes <= FETCHED_BYTES_MAX && self.read_sealed(&object, record, &mut sealed.bytes).is_ok() {
            sealed.at = Some((place.pack, place.frame));
        }
    }

    fn is_of(&self, id: &ChunkId, plain: &[u8]) -> bool {
        self.is_right(id, plain)
    }

    fn each(
        &self,
        ids: &[ChunkId],
        scratch: &mut Scratch,
        take: &mut TakeRow<'_>,
    ) -> std::result::Result<(), (usize, VaultError)> {
        let mut index = 0;
        while index < ids.len() {
            let row = self.row(index, ids, scratch);
            let go_on = if row.is_empty() {
                // It may lie elsewhere, too; if not, this says what is wrong.
                let Some(id) = ids.get(index) else { break };
                let chunk = self.get(id).map_err(|error| (index, error))?;
                index += 1;
                take(&[(index - 1, 0..chunk.len())], &chunk)
            } else {
                index += row.len();
                take(&row, scratch.unpacker.plain())
            };
            if !go_on {
                break;
            }
        }
        Ok(())
    }

    fn place(&self, id: &ChunkId) -> Option<(u32, u64)> {
        self.place_of(id).map(|p| (p.pack, (u64::from(p.frame) << 32) | u64::from(p.start)))
    }
}
