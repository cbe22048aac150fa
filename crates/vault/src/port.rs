//! What a backup writes chunks into and a restore reads them from: the seam between files (or a stream) and the repository.
//!
//! Invariant: a chunk is named by the keyed hash of its contents, so that a source never answers with other contents.

use std::ops::Range;

use crate::crypt::hex;
use crate::error::{Result, VaultError};
use crate::unpack::Unpacker;

/// No chunk is larger; a sink refuses it, a source does not read it.
pub const CHUNK_BYTES_MAX: usize = 16 << 20;

/// Keyed BLAKE3 of a chunk, under its data set's chunk-id key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkId(pub [u8; 32]);

impl ChunkId {
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// For tables of ids that this host has made itself: keyed hashes are as good as random already. (Ids that a stranger chose are not.)
#[derive(Debug, Default)]
pub(crate) struct OwnIdHasher(u64);

impl std::hash::Hasher for OwnIdHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.first_chunk::<8>().map_or(self.0, |first| u64::from_le_bytes(*first));
    }

    /// Of the length, which is always the same.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

pub(crate) type OwnIds<V> = std::collections::HashMap<ChunkId, V, std::hash::BuildHasherDefault<OwnIdHasher>>;

impl std::fmt::Display for ChunkId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl std::fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChunkId({self})")
    }
}

/// What became of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    pub id: ChunkId,
    /// It was not in the vault (nor on its way there) before.
    pub new: bool,
}

pub(crate) const MEMORY_KEY: &str = "lifeboat 1 key of what a host remembers of contents";

/// Takes chunks, from many threads at once; neighbours given by one thread are compressed together.
pub trait ChunkSink: Send + Sync {
    /// Hashes, looks up, and takes in what is new. The chunk is durable after `commit` or a later `checkpoint`.
    fn put(&self, plain: &[u8]) -> Result<Stored>;
    /// The same for pieces of one buffer, in order: what lies in a row is compressed where it lies.
    fn put_all(&self, data: &[u8], pieces: &[Range<usize>]) -> Result<Vec<Stored>> {
        pieces.iter().map(|piece| self.put(data.get(piece.clone()).unwrap_or_default())).collect()
    }
    /// Whether the vault holds the chunk, or will with this session.
    fn contains(&self, id: &ChunkId) -> bool;
    /// Seed of the data set's content-defined chunker.
    fn chunker_seed(&self) -> u64;
    /// What the host's memory of contents is keyed with: a secret of who knows the data set's chunk ids.
    fn memory_key(&self) -> [u8; 32] {
        blake3::derive_key(MEMORY_KEY, &self.chunker_seed().to_le_bytes())
    }
    /// Bytes taken in as new, and what they take in the vault so far (what is not yet written counts as 0).
    fn bytes_stored(&self) -> u64;
    /// Makes everything put so far survive an interruption. Cheap enough to call every half minute; runs by itself, too.
    fn checkpoint(&self) -> Result<()>;
}

/// What was read from the storage and is not unpacked yet; its room is kept from one call to the next.
#[derive(Debug, Default)]
pub struct Sealed {
    /// Which frame it is.
    pub(crate) at: Option<(u32, u32)>,
    pub(crate) bytes: Vec<u8>,
}

/// What one thread reads with: room for what is unpacked, kept from one call to the next.
#[derive(Default)]
pub struct Scratch {
    /// What is to be unpacked next, if it was fetched ahead.
    pub(crate) sealed: Sealed,
    /// Which frame is being unpacked.
    pub(crate) at: Option<(u32, u32)>,
    pub(crate) unpacker: Unpacker,
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scratch").field("at", &self.at).finish_non_exhaustive()
    }
}

/// Is given a row of chunks (each with its place in what was asked for, and where it is in the bytes) and the bytes; says whether
/// to go on.
pub type TakeRow<'t> = dyn FnMut(&[(usize, Range<usize>)], &[u8]) -> bool + 't;

/// Gives chunks, from many threads at once.
pub trait ChunkSource: Send + Sync {
    /// The chunk's contents, verified against its id.
    fn get(&self, id: &ChunkId) -> Result<Vec<u8>>;
    /// Where it lies (pack ordinal, offset): reading in this order touches and unpacks everything once. Chunks of one pack whose
    /// offsets agree in the upper 32 bits are read and unpacked together.
    fn place(&self, id: &ChunkId) -> Option<(u32, u64)>;
    /// How many may `fetch` at once before more of them are no faster; with 1 it is not worth it.
    fn parallel_reads(&self) -> usize {
        1
    }
    /// Reads from the storage, ahead of its turn, what `each` is to unpack for this chunk and those that lie with it. What goes wrong
    /// is told by `each`, which then tries again.
    fn fetch(&self, _id: &ChunkId, _sealed: &mut Sealed) {}
    /// Whether these bytes are the chunk, where that can be said without fetching it.
    fn is_of(&self, _id: &ChunkId, _plain: &[u8]) -> bool {
        false
    }
    /// Hands chunks to `take` in order, verified, as many at once as lie one after another: each with its place in `ids` and where
    /// it is in the bytes. Ends early where `take` says no. What lies together is unpacked once, into `scratch`. An error comes
    /// with the place of the chunk it is about.
    fn each(
        &self,
        ids: &[ChunkId],
        _scratch: &mut Scratch,
        take: &mut TakeRow<'_>,
    ) -> std::result::Result<(), (usize, VaultError)> {
        for (index, id) in ids.iter().enumerate() {
            let chunk = self.get(id).map_err(|error| (index, error))?;
            if !take(&[(index, 0..chunk.len())], &chunk) {
                break;
            }
        }
        Ok(())
    }
}
