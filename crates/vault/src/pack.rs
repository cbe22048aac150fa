//! Packs: many chunks in one object, named by the hash of its bytes.
//!
//! ```text
//! "LBPK" 1 | u32 header length | header (CBOR) | frame 0 | frame 1 | … | sealed directory | u32 directory length | "LBPE"
//! ```
//! A frame is several chunks one after another, compressed together, sealed with AES-256-GCM under the pack's key (HKDF of the
//! session secret and the pack's salt), nonce = its ordinal. Invariant: who holds the content key can read a pack with nothing
//! but the pack itself; who does not, learns sizes of frames only.

use minicbor::{Decode, Encode};

use crate::codec::{self, Hash};
use crate::crypt::{FrameKey, TAG_BYTES, hash, random};
use crate::error::{Result, VaultError};
use crate::port::{CHUNK_BYTES_MAX, ChunkId};
use crate::seal::{Identity, unseal};
use crate::unpack::Unpacker;

const MAGIC: &[u8; 5] = b"LBPK\x01";
const END: &[u8; 4] = b"LBPE";
const PURPOSE: &str = "lifeboat pack 1";
const DIRECTORY_ORDINAL: u64 = u64::MAX;
/// A pack is closed when it has grown to this.
pub(crate) const PACK_BYTES: usize = 16 << 20;
/// A frame is closed when its chunks have grown to this; one more chunk may follow.
pub(crate) const FRAME_BYTES: usize = 4 << 20;
const FRAME_BYTES_MAX: usize = FRAME_BYTES + CHUNK_BYTES_MAX;
const HEADER_BYTES_MAX: usize = 64 << 10;
const RECORD_BYTES: usize = 36;

/// The content key's kind: 1 = age X25519.
const SLOT_X25519: u8 = 1;

#[derive(Debug, Clone, Encode, Decode)]
struct Header {
    #[n(0)]
    vault: String,
    #[n(1)]
    slot: u8,
    /// The session secret, sealed to the content key with age.
    #[cbor(n(2), with = "minicbor::bytes")]
    secret: Vec<u8>,
    #[n(3)]
    salt: Hash,
    /// Its frames were sealed in other packs and moved here; its own key is the directory's.
    #[n(4)]
    moved: Option<bool>,
}

/// What a moved frame's key is made from.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Origin {
    /// The session secret, sealed to the content key.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub(crate) secret: Vec<u8>,
    #[n(1)]
    pub(crate) salt: Hash,
}

/// The directory of a pack of moved frames.
#[derive(Debug, Encode, Decode)]
struct MovedDirectory {
    #[n(0)]
    frames: Vec<FrameRecord>,
    #[n(1)]
    origins: Vec<Origin>,
}

/// One frame, as directories and indexes list it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct FrameRecord {
    #[n(0)]
    pub(crate) offset: u64,
    #[n(1)]
    pub(crate) bytes: u32,
    #[n(2)]
    pub(crate) plain_bytes: u32,
    /// 0 = as it is, 1 = zstd.
    #[n(3)]
    pub(crate) codec: u8,
    /// For each chunk: its id (32 bytes) and length (u32, little endian).
    #[cbor(n(4), with = "minicbor::bytes")]
    pub(crate) chunks: Vec<u8>,
    /// Which of the pack's origins it was sealed under, and as the how manieth frame; absent where it lies where it was sealed.
    #[n(5)]
    pub(crate) origin: Option<u32>,
    #[n(6)]
    pub(crate) ordinal: Option<u64>,
}

impl FrameRecord {
    pub(crate) fn count(&self) -> usize {
        self.chunks.len() / RECORD_BYTES
    }

    /// The id and the length of one chunk.
    pub(crate) fn chunk(&self, ordinal: usize) -> Option<(ChunkId, usize)> {
        self.chunks.chunks_exact(RECORD_BYTES).nth(ordinal).and_then(read_record)
    }

    pub(crate) fn chunks(&self) -> impl Iterator<Item = (ChunkId, usize)> + '_ {
        self.chunks.chunks_exact(RECORD_BYTES).filter_map(read_record)
    }
}

/// What a directory says of one chunk.
fn read_record(record: &[u8]) -> Option<(ChunkId, usize)> {
    let (id, length) = record.split_first_chunk::<32>()?;
    Some((ChunkId(*id), u32::from_le_bytes(length.try_into().ok()?) as usize))
}

/// A pack, as an index lists it: enough to read any of its chunks with one ranged read.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct PackRecord {
    #[n(0)]
    pub(crate) hash: Hash,
    #[n(1)]
    pub(crate) bytes: u64,
    #[n(2)]
    pub(crate) salt: Hash,
    #[n(3)]
    pub(crate) frames: Vec<FrameRecord>,
    /// Of moved frames.
    #[n(4)]
    pub(crate) origins: Option<Vec<Origin>>,
}

impl PackRecord {
    pub(crate) fn origins(&self) -> &[Origin] {
        self.origins.as_deref().unwrap_or_default()
    }

    /// What a frame was sealed under, and its ordinal there; `own` where it was never moved.
    pub(crate) fn origin_of<'a>(&'a self, place: usize, own: &'a Origin) -> Result<(&'a Origin, u64)> {
        let lost = || VaultError::damaged(crate::name::pack(&self.hash.0), "a frame names no origin of this pack");
        let frame = self.frames.get(place).ok_or_else(lost)?;
        match frame.origin {
            None => Ok((own, place as u64)),
            Some(origin) => {
                let origin = self.origins().get(origin as usize).ok_or_else(lost)?;
                Ok((origin, frame.ordinal.ok_or_else(lost)?))
            }
        }
    }
}

/// What a frame is bound to besides its key: the vault, its type, its origin (the pack's salt) and its ordinal there.
fn aad(vault: &str, salt: &Hash, ordinal: u64) -> Vec<u8> {
    format!("{vault}|pack|{salt}|{ordinal}").into_bytes()
}

/// The key of a pack that was made in the session of this secret.
pub(crate) fn pack_key(secret: &[u8; 32], salt: &Hash) -> Result<FrameKey> {
    FrameKey::derive(secret, &salt.0, PURPOSE)
}

/// Chunks on their way into a frame.
#[derive(Debug, Default)]
pub(crate) struct FrameBuffer {
    pub(crate) plain: Vec<u8>,
    chunks: Vec<u8>,
}

impl FrameBuffer {
    pub(crate) fn add(&mut self, id: &ChunkId, plain: &[u8]) {
        self.plain.extend_from_slice(plain);
        push_record(&mut self.chunks, id, plain.len());
    }

    /// The chunks' records; the contents stay until they are cleared.
    pub(crate) fn take_chunks(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.chunks)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.plain.len() >= FRAME_BYTES
    }
}

/// Appends what a directory says of one chunk.
pub(crate) fn push_record(records: &mut Vec<u8>, id: &ChunkId, length: usize) {
    records.extend_from_slice(&id.0);
    records.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
}

/// A pack being filled.
#[derive(Debug)]
pub(crate) struct PackBuilder {
    vault: String,
    bytes: Vec<u8>,
    key: FrameKey,
    salt: Hash,
    frames: Vec<FrameRecord>,
    /// Where its frames were sealed, if not here.
    origins: Option<Vec<Origin>>,
}

impl PackBuilder {
    #[cfg(test)]
    pub(crate) fn new(vault: &str, secret: &[u8; 32], sealed_secret: &[u8]) -> Result<PackBuilder> {
        PackBuilder::with_buffer(vault, secret, sealed_secret, Vec::new())
    }

    /// Fills a buffer that may have been used before.
    pub(crate) fn with_buffer(
        vault: &str,
        secret: &[u8; 32],
        sealed_secret: &[u8],
        bytes: Vec<u8>,
    ) -> Result<PackBuilder> {
        PackBuilder::begin(vault, secret, sealed_secret, bytes, None)
    }

    /// A pack for frames that were sealed elsewhere; the secret is its directory's.
    pub(crate) fn for_moved(vault: &str, secret: &[u8; 32], sealed_secret: &[u8]) -> Result<PackBuilder> {
        PackBuilder::begin(vault, secret, sealed_secret, Vec::new(), Some(Vec::new()))
    }

    fn begin(
        vault: &str,
        secret: &[u8; 32],
        sealed_secret: &[u8],
        mut bytes: Vec<u8>,
        origins: Option<Vec<Origin>>,
    ) -> Result<PackBuilder> {
        let salt = Hash(random());
        let header = codec::encode(&Header {
            vault: vault.to_owned(),
            slot: SLOT_X25519,
            secret: sealed_secret.to_vec(),
            salt,
            moved: origins.is_some().then_some(true),
        })?;
        bytes.clear();
        bytes.reserve(PACK_BYTES + PACK_BYTES / 4);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&u32::try_from(header.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(&header);
        Ok(PackBuilder {
            vault: vault.to_owned(),
            bytes,
            key: pack_key(secret, &salt)?,
            salt,
            frames: Vec::new(),
            origins,
        })
    }

    /// Seals one frame; `body` is the buffer's contents, compressed (`codec` 1) or not (0).
    #[cfg(test)]
    pub(crate) fn add(&mut self, buffer: &FrameBuffer, codec: u8, body: &[u8]) -> Result<()> {
        self.add_chunks(buffer.plain.len(), buffer.chunks.clone(), codec, body)
    }

    /// Seals one frame of so many plain bytes that holds the chunks of these records.
    pub(crate) fn add_chunks(&mut self, plain_bytes: usize, chunks: Vec<u8>, codec: u8, body: &[u8]) -> Result<()> {
        let ordinal = self.frames.len() as u64;
        let offset = self.bytes.len() as u64;
        self.key.seal_onto(ordinal, &aad(&self.vault, &self.salt, ordinal), body, &mut self.bytes)?;
        self.frames.push(FrameRecord {
            offset,
            bytes: u32::try_from(self.bytes.len() as u64 - offset).unwrap_or(u32::MAX),
            plain_bytes: u32::try_from(plain_bytes).unwrap_or(u32::MAX),
            codec,
            chunks,
            origin: None,
            ordinal: None,
        });
        Ok(())
    }

    /// Takes over a frame as it was sealed under `origin` with this ordinal.
    pub(crate) fn add_moved(
        &mut self,
        origin: &Origin,
        ordinal: u64,
        frame: &FrameRecord,
        sealed: &[u8],
    ) -> Result<()> {
        let origins = self.origins.get_or_insert_default();
        // Frames come pack by pack.
        let place = match origins.iter().rposition(|known| known == origin) {
            Some(place) => place,
            None => {
                origins.push(origin.clone());
                origins.len() - 1
            }
        };
        let place = u32::try_from(place).map_err(|_| VaultError::crypto("moving a frame"))?;
        let offset = self.bytes.len() as u64;
        self.bytes.extend_from_slice(sealed);
        self.frames.push(FrameRecord { offset, origin: Some(place), ordinal: Some(ordinal), ..frame.clone() });
        Ok(())
    }

    pub(crate) fn is_full(&self) -> bool {
        self.bytes.len() >= PACK_BYTES
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Closes the pack with its sealed directory.
    pub(crate) fn finish(mut self) -> Result<(Vec<u8>, PackRecord)> {
        let directory = match &mut self.origins {
            None => codec::encode(&self.frames)?,
            Some(origins) => {
                let directory =
                    MovedDirectory { frames: std::mem::take(&mut self.frames), origins: std::mem::take(origins) };
                let bytes = codec::encode(&directory)?;
                (self.frames, *origins) = (directory.frames, directory.origins);
                bytes
            }
        };
        let start = self.bytes.len();
        self.key.seal_onto(
            DIRECTORY_ORDINAL,
            &aad(&self.vault, &self.salt, DIRECTORY_ORDINAL),
            &directory,
            &mut self.bytes,
        )?;
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(END);
        let record = PackRecord {
            hash: Hash(hash(&self.bytes)),
            bytes: self.bytes.len() as u64,
            salt: self.salt,
            frames: self.frames,
            origins: self.origins,
        };
        Ok((self.bytes, record))
    }
}

/// Opens one frame that was read from its place into the room of `unpacker`, which then unpacks it. `object` is the pack's name.
pub(crate) fn open_frame_in(
    (object, vault, salt): (&str, &str, &Hash),
    key: &FrameKey,
    ordinal: u64,
    record: &FrameRecord,
    unpacker: &mut Unpacker,
) -> Result<()> {
    let damaged = |why: &str| VaultError::damaged(object, format!("frame {ordinal} {why}"));
    let plain_bytes = record.plain_bytes as usize;
    if plain_bytes > FRAME_BYTES_MAX {
        return Err(damaged("claims to be larger than any frame"));
    }
    if !key.open_in(ordinal, &aad(vault, salt, ordinal), unpacker.room()) {
        return Err(damaged("does not open: its bytes were changed"));
    }
    match record.codec {
        codec @ (0 | 1) => unpacker.begin(codec == 1, plain_bytes),
        other => Err(damaged(&format!("is packed in a way this version does not know ({other})"))),
    }
}

/// Opens and unpacks one whole frame that was read from its place. `object` is the pack's name.
pub(crate) fn open_frame(
    object: &str,
    vault: &str,
    salt: &Hash,
    key: &FrameKey,
    ordinal: u64,
    record: &FrameRecord,
    sealed: Vec<u8>,
) -> Result<Vec<u8>> {
    let mut unpacker = Unpacker::default();
    *unpacker.room() = sealed;
    open_frame_in((object, vault, salt), key, ordinal, record, &mut unpacker)?;
    let whole = unpacker.reach(usize::MAX);
    whole.map_err(|misfit| VaultError::damaged(object, format!("frame {ordinal} {}", misfit.why())))?;
    Ok(unpacker.into_plain())
}

/// The directory of a pack, read with the content key from nothing but the pack; also its sealed session secret.
pub(crate) fn read_directory(
    object: &str,
    bytes: &[u8],
    vault: &str,
    content: &Identity,
) -> Result<(PackRecord, Vec<u8>)> {
    let damaged = |why: &str| VaultError::damaged(object, why.to_owned());
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| damaged("it is not a pack"))?;
    let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(|| damaged("it was cut off"))?;
    let length = u32::from_le_bytes(*length) as usize;
    if length > HEADER_BYTES_MAX {
        return Err(damaged("its header is too long"));
    }
    let header = rest.get(..length).ok_or_else(|| damaged("it was cut off"))?;
    let header: Header = codec::decode(object, header)?;
    if header.vault != vault || header.slot != SLOT_X25519 {
        return Err(damaged("it belongs to another vault, or to another kind of key"));
    }
    let secret = unseal([content], &header.secret).ok().and_then(|s| <[u8; 32]>::try_from(s).ok());
    let Some(secret) = secret else {
        return Err(VaultError::WrongKey {
            object: object.to_owned(),
            given: 1,
            recipients: "another data set's".to_owned(),
        });
    };
    let key = pack_key(&secret, &header.salt)?;
    let body = bytes.strip_suffix(END).ok_or_else(|| damaged("it was cut off"))?;
    let (body, length) = body.split_last_chunk::<4>().ok_or_else(|| damaged("it was cut off"))?;
    let start = body
        .len()
        .checked_sub(u32::from_le_bytes(*length) as usize)
        .ok_or_else(|| damaged("its directory is too long"))?;
    let plain = key.open(DIRECTORY_ORDINAL, &aad(vault, &header.salt, DIRECTORY_ORDINAL), body[start..].to_vec());
    let plain = plain.ok_or_else(|| damaged("its directory does not open"))?;
    let (frames, origins) = match header.moved {
        Some(true) => {
            let MovedDirectory { frames, origins } = codec::decode(object, &plain)?;
            (frames, Some(origins))
        }
        _ => (codec::decode(object, &plain)?, None),
    };
    let record = PackRecord { hash: Hash(hash(bytes)), bytes: bytes.len() as u64, salt: header.salt, frames, origins };
    Ok((record, header.secret))
}

/// For fuzzers: a pack of one header and this directory, sealed as a writer would, or as a pruner that moves frames.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_pack(vault: &str, content: &Identity, directory: &[u8], moved: bool) -> Result<Vec<u8>> {
    static SEALED: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    let secret = [9; 32];
    let salt = Hash([8; 32]);
    let sealed = match SEALED.get() {
        Some(sealed) => sealed.clone(),
        None => SEALED.get_or_init(|| crate::seal::seal(&[content.recipient()], &secret).unwrap_or_default()).clone(),
    };
    let moved = moved.then_some(true);
    let header = codec::encode(&Header { vault: vault.to_owned(), slot: SLOT_X25519, secret: sealed, salt, moved })?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&(header.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&header);
    let start = bytes.len();
    pack_key(&secret, &salt)?.seal_onto(
        DIRECTORY_ORDINAL,
        &aad(vault, &salt, DIRECTORY_ORDINAL),
        directory,
        &mut bytes,
    )?;
    let length = (bytes.len() - start) as u32;
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(END);
    Ok(bytes)
}

/// For fuzzers: a directory as a writer makes it.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_directory(moved: bool) -> Result<Vec<u8>> {
    let mut chunks = Vec::new();
    push_record(&mut chunks, &ChunkId([1; 32]), 40);
    push_record(&mut chunks, &ChunkId([2; 32]), 60);
    let frame = FrameRecord {
        offset: 9,
        bytes: 80,
        plain_bytes: 100,
        codec: 1,
        chunks,
        origin: moved.then_some(0),
        ordinal: moved.then_some(3),
    };
    match moved {
        false => codec::encode(&vec![frame]),
        true => {
            let origins = vec![Origin { secret: vec![9; 40], salt: Hash([8; 32]) }];
            codec::encode(&MovedDirectory { frames: vec![frame], origins })
        }
    }
}

/// Least size that a frame of so many plain bytes can have; smaller claims are lies.
pub(crate) const SEALED_BYTES_MIN: usize = TAG_BYTES;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn a_pack_reads_back_from_itself(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2000), 1..20)) {
            let content = Identity::generate();
            let secret = random();
            let sealed = crate::seal::seal(&[content.recipient()], &secret).unwrap();
            let mut builder = PackBuilder::new("v", &secret, &sealed).unwrap();
            for (place, chunk) in chunks.iter().enumerate() {
                let mut buffer = FrameBuffer::default();
                buffer.add(&ChunkId([place as u8; 32]), chunk);
                let packed = zstd::bulk::compress(chunk, 1).unwrap();
                if place % 2 == 0 { builder.add(&buffer, 1, &packed).unwrap() } else { builder.add(&buffer, 0, chunk).unwrap() }
            }
            let (bytes, record) = builder.finish().unwrap();
            let (read, _) = read_directory("p", &bytes, "v", &content).unwrap();
            prop_assert_eq!(&read, &record);
            prop_assert!(read_directory("p", &bytes, "v", &Identity::generate()).is_err());
            let key = pack_key(&secret, &record.salt).unwrap();
            for (place, frame) in record.frames.iter().enumerate() {
                let (start, end) = (frame.offset as usize, frame.offset as usize + frame.bytes as usize);
                let plain = open_frame("p", "v", &record.salt, &key, place as u64, frame, bytes[start..end].to_vec()).unwrap();
                prop_assert_eq!(&plain, &chunks[place]);
                prop_assert!(open_frame("p", "v", &record.salt, &key, place as u64 + 1, frame, bytes[start..end].to_vec()).is_err());
                prop_assert_eq!(frame.chunks().next().unwrap(), (ChunkId([place as u8; 32]), chunks[place].len()));
            }
        }
    }
}
