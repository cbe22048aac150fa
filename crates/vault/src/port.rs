//! What a backup writes chunks into and a restore reads them from: the seam between files (or a stream) and the repository.
//!
//! Invariant: a chunk is named by the keyed hash of its contents, so that a source never answers with other contents.

use crate::crypt::hex;
use crate::error::Result;

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

/// Takes chunks, from many threads at once; neighbours given by one thread are compressed together.
pub trait ChunkSink: Send + Sync {
    /// Hashes, looks up, and takes in what is new. The chunk is durable after `commit` or a later `checkpoint`.
    fn put(&self, plain: &[u8]) -> Result<Stored>;
    /// Whether the vault holds the chunk, or will with this session.
    fn contains(&self, id: &ChunkId) -> bool;
    /// Seed of the data set's content-defined chunker.
    fn chunker_seed(&self) -> u64;
    /// Bytes taken in as new, and what they take in the vault so far (what is not yet written counts as 0).
    fn bytes_stored(&self) -> u64;
    /// Makes everything put so far survive an interruption. Cheap enough to call every half minute; runs by itself, too.
    fn checkpoint(&self) -> Result<()>;
}

/// Gives chunks, from many threads at once.
pub trait ChunkSource: Send + Sync {
    /// The chunk's contents, verified against its id.
    fn get(&self, id: &ChunkId) -> Result<Vec<u8>>;
    /// Where it lies (pack ordinal, offset): reading in this order touches and unpacks everything once.
    fn place(&self, id: &ChunkId) -> Option<(u32, u64)>;
}
