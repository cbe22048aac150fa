//! The file cache on the host: which files were seen with which inode and times, and the nodes that were stored for them.
//!
//! A file that was touched but not changed is read again, and found to be what it was by its digest; so it keeps its place
//! among its neighbours' chunks.
//!
//! One record per directory, found by a small index, so that a backup of an unchanged tree costs one read per directory
//! and nothing per file. Losing the cache costs reading, not uploading.
//!
//! Invariant: a record that does not carry its own checksum is no record. The reader asks the vault whether it still
//! holds the chunks; the cache alone never decides that.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use minicbor::{Decoder, Encoder};

use super::metadata::{FileTime, Seen};

const MAGIC: &[u8; 16] = b"lifeboat cache 1";
/// Record header: length and checksum.
const HEADER_BYTES: u64 = 4 + 16;
/// Trailer: where the index begins, how many records, its checksum, the magic.
const TRAILER_BYTES: u64 = 8 + 8 + 16 + 16;
const INDEX_ENTRY_BYTES: usize = 16;
/// A directory whose record is longer than this is not cached.
const RECORD_BYTES_MAX: usize = 1 << 30;

/// What identifies a version of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version {
    dev: u64,
    ino: u64,
    size: u64,
    mtime: FileTime,
    ctime: FileTime,
}

impl From<&Seen> for Version {
    fn from(seen: &Seen) -> Self {
        Version { dev: seen.dev, ino: seen.ino, size: seen.size, mtime: seen.mtime, ctime: seen.ctime }
    }
}

/// The hash of a small file's content. (A large one is cut alike whenever it is read, so it needs none.)
pub(crate) type Digest = [u8; 16];

/// What is remembered of a file beside its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) version: Version,
    /// It changed so shortly before it was read that it may have changed again without a trace.
    pub(crate) racy: bool,
    pub(crate) digest: Option<Digest>,
}

/// A cache file open for look-ups.
#[derive(Debug)]
pub(crate) struct Cache {
    file: File,
    /// (hash of the directory's path, offset), sorted.
    index: Vec<(u64, u64)>,
}

impl Cache {
    /// Opens the cache; anything wrong with it is the same as having none.
    pub(crate) fn open(path: &Path) -> Option<Self> {
        let file = File::open(path).ok()?;
        let length = file.metadata().ok()?.len();
        let mut trailer = [0; TRAILER_BYTES as usize];
        file.read_exact_at(&mut trailer, length.checked_sub(TRAILER_BYTES)?).ok()?;
        let start = u64::from_le_bytes(trailer.get(..8)?.try_into().ok()?);
        let count = u64::from_le_bytes(trailer.get(8..16)?.try_into().ok()?);
        let bytes = count.checked_mul(INDEX_ENTRY_BYTES as u64)?;
        if trailer.get(32..)? != MAGIC || start.checked_add(bytes)? != length - TRAILER_BYTES {
            return None;
        }
        let mut raw = vec![0; usize::try_from(bytes).ok()?];
        file.read_exact_at(&mut raw, start).ok()?;
        if trailer.get(16..32)? != checksum(&raw) {
            return None;
        }
        let word = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).unwrap_or_default();
        let index = raw
            .chunks_exact(INDEX_ENTRY_BYTES)
            .map(|entry| (word(entry.get(..8).unwrap_or_default()), word(entry.get(8..).unwrap_or_default())))
            .collect();
        Some(Cache { file, index })
    }

    /// What is known of the entries of a directory, sorted by name.
    pub(crate) fn directory(&self, path: &[u8]) -> Option<Known> {
        let key = hash(path);
        let first = self.index.partition_point(|(hash, _)| *hash < key);
        let (found, offset) = self.index.get(first)?;
        if *found != key {
            return None;
        }
        let payload = self.record(*offset)?;
        let mut d = Decoder::new(&payload);
        if d.bytes().ok()? != path {
            return None;
        }
        let at = d.position();
        Some(Known { payload, at, ahead: None })
    }

    fn record(&self, offset: u64) -> Option<Vec<u8>> {
        let mut header = [0; HEADER_BYTES as usize];
        self.file.read_exact_at(&mut header, offset).ok()?;
        let length = u32::from_le_bytes(header.get(..4)?.try_into().ok()?) as usize;
        if length > RECORD_BYTES_MAX || length as u64 > self.file.metadata().ok()?.len() {
            return None;
        }
        let mut payload = vec![0; length];
        self.file.read_exact_at(&mut payload, offset + HEADER_BYTES).ok()?;
        (header.get(4..)? == checksum(&payload)).then_some(payload)
    }
}

/// The cached entries of one directory. Ask in the order of names.
#[derive(Debug)]
pub(crate) struct Known {
    payload: Vec<u8>,
    at: usize,
    ahead: Option<(Vec<u8>, Memory, std::ops::Range<usize>)>,
}

impl Known {
    /// The encoded node stored for this name, and what is remembered of the file. Whether it is still the one that was
    /// read, `Memory::holds` says.
    pub(crate) fn node(&mut self, name: &[u8]) -> Option<(&[u8], Memory)> {
        while self.ahead.as_ref().is_none_or(|(known, ..)| known.as_slice() < name) {
            self.ahead = Some(self.decode()?);
        }
        let (known, memory, range) = self.ahead.as_ref()?;
        if known == name { Some((self.payload.get(range.clone())?, *memory)) } else { None }
    }

    fn decode(&mut self) -> Option<(Vec<u8>, Memory, std::ops::Range<usize>)> {
        let mut d = Decoder::new(self.payload.get(self.at..)?);
        let name = d.bytes().ok()?.to_vec();
        let version = Version {
            dev: d.u64().ok()?,
            ino: d.u64().ok()?,
            size: d.u64().ok()?,
            mtime: (d.i64().ok()?, d.u32().ok()?),
            ctime: (d.i64().ok()?, d.u32().ok()?),
        };
        let racy = d.bool().ok()?;
        let digest = Digest::try_from(d.bytes().ok()?).ok();
        let length = d.bytes().ok()?.len();
        let end = self.at + d.position();
        self.at = end;
        Some((name, Memory { version, racy, digest }, end - length..end))
    }
}

/// One file to remember.
#[derive(Debug)]
pub(crate) struct Remembered<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) memory: Memory,
    pub(crate) node: &'a [u8],
}

/// Writes the next cache beside the present one.
#[derive(Debug)]
pub(crate) struct CacheWriter {
    target: PathBuf,
    draft: PathBuf,
    inner: Mutex<Draft>,
}

#[derive(Debug)]
struct Draft {
    out: BufWriter<File>,
    offset: u64,
    index: Vec<(u64, u64)>,
}

impl CacheWriter {
    pub(crate) fn create(target: &Path) -> io::Result<Self> {
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        // A draft of its own per process: of two backups at once the later rename wins, and both caches are right.
        let mut draft = target.as_os_str().to_owned();
        draft.push(format!(".{}", std::process::id()));
        let draft = PathBuf::from(draft);
        // Names of files are nobody else's business.
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        let inner = Draft { out: BufWriter::with_capacity(256 << 10, file), offset: 0, index: Vec::new() };
        Ok(CacheWriter { target: target.to_owned(), draft, inner: Mutex::new(inner) })
    }

    /// Remembers the files of one directory, given sorted by name.
    pub(crate) fn add(&self, path: &[u8], files: &[Remembered<'_>]) -> io::Result<()> {
        let mut payload = Vec::new();
        let mut e = Encoder::new(&mut payload);
        // Writing into a Vec cannot fail.
        let _ = (|| -> Result<(), minicbor::encode::Error<std::convert::Infallible>> {
            e.bytes(path)?;
            for file in files {
                let Memory { version: v, racy, digest } = &file.memory;
                e.bytes(file.name)?.u64(v.dev)?.u64(v.ino)?.u64(v.size)?;
                e.i64(v.mtime.0)?.u32(v.mtime.1)?.i64(v.ctime.0)?.u32(v.ctime.1)?;
                e.bool(*racy)?.bytes(digest.as_ref().map_or(&[], |digest| &digest[..]))?.bytes(file.node)?;
            }
            Ok(())
        })();
        self.lock().append(hash(path), &payload)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Draft> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the cache in place. After an interrupted backup, what the `former` cache knew of directories that were not
    /// reached is carried over.
    pub(crate) fn finish(self, former: Option<&Cache>) -> io::Result<()> {
        let result = self.seal(former);
        if result.is_err() {
            let _ = std::fs::remove_file(&self.draft);
        }
        result
    }

    fn seal(&self, former: Option<&Cache>) -> io::Result<()> {
        let mut draft = self.lock();
        if let Some(former) = former {
            let known: HashSet<u64> = draft.index.iter().map(|(hash, _)| *hash).collect();
            for (hash, offset) in former.index.iter().filter(|(hash, _)| !known.contains(hash)) {
                if let Some(payload) = former.record(*offset) {
                    draft.append(*hash, &payload)?;
                }
            }
        }
        draft.index.sort_unstable();
        let raw: Vec<u8> =
            draft.index.iter().flat_map(|(hash, at)| [hash.to_le_bytes(), at.to_le_bytes()]).flatten().collect();
        let (start, count) = (draft.offset, draft.index.len() as u64);
        draft.out.write_all(&raw)?;
        draft.out.write_all(&start.to_le_bytes())?;
        draft.out.write_all(&count.to_le_bytes())?;
        draft.out.write_all(&checksum(&raw))?;
        draft.out.write_all(MAGIC)?;
        draft.out.flush()?;
        std::fs::rename(&self.draft, &self.target)
    }
}

impl Draft {
    fn append(&mut self, hash: u64, payload: &[u8]) -> io::Result<()> {
        if payload.len() > RECORD_BYTES_MAX {
            return Ok(());
        }
        self.index.push((hash, self.offset));
        self.out.write_all(&(payload.len() as u32).to_le_bytes())?;
        self.out.write_all(&checksum(payload))?;
        self.out.write_all(payload)?;
        self.offset += HEADER_BYTES + payload.len() as u64;
        Ok(())
    }
}

impl Memory {
    /// Whether a file is certainly the one that was read.
    pub(crate) fn holds(&self, seen: &Seen) -> bool {
        !self.racy && self.version == Version::from(seen)
    }
}

pub(crate) fn checksum(bytes: &[u8]) -> Digest {
    let mut out = [0; 16];
    out.copy_from_slice(blake3::hash(bytes).as_bytes().split_at(16).0);
    out
}

fn hash(path: &[u8]) -> u64 {
    let digest = checksum(path);
    u64::from_le_bytes(digest.split_at(8).0.try_into().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn seen(ino: u64) -> Seen {
        let time = (1_700_000_000, 5);
        Seen { dev: 1, ino, links: 1, mode: 0o100644, uid: 0, gid: 0, size: 9, blocks: 8, mtime: time, ctime: time }
    }

    fn remember<'a>(name: &'a [u8], ino: u64, node: &'a [u8]) -> Remembered<'a> {
        let memory = Memory { version: Version::from(&seen(ino)), racy: false, digest: Some([9; 16]) };
        Remembered { name, memory, node }
    }

    fn ask(known: &mut Known, name: &[u8], ino: u64) -> Option<Vec<u8>> {
        known.node(name).filter(|(_, memory)| memory.holds(&seen(ino))).map(|(node, _)| node.to_vec())
    }

    #[test]
    fn remembers_by_version_and_carries_over_what_was_not_reached() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache");
        let first = CacheWriter::create(&path).unwrap();
        first.add(b"/a", &[remember(b"x", 1, b"node x"), remember(b"y", 2, b"node y")]).unwrap();
        first.add(b"/b", &[remember(b"z", 3, b"node z")]).unwrap();
        first.finish(None).unwrap();

        let cache = Cache::open(&path).unwrap();
        let mut known = cache.directory(b"/a").unwrap();
        assert_eq!(ask(&mut known, b"w", 1), None);
        assert_eq!(ask(&mut known, b"x", 1).unwrap(), b"node x");
        assert_eq!(ask(&mut known, b"y", 7), None);
        assert!(cache.directory(b"/c").is_none());

        let second = CacheWriter::create(&path).unwrap();
        second.add(b"/a", &[remember(b"x", 4, b"newer")]).unwrap();
        second.finish(Some(&cache)).unwrap();
        let cache = Cache::open(&path).unwrap();
        assert_eq!(ask(&mut cache.directory(b"/a").unwrap(), b"x", 4).unwrap(), b"newer");
        assert_eq!(ask(&mut cache.directory(b"/b").unwrap(), b"z", 3).unwrap(), b"node z");
    }

    #[test]
    fn a_flipped_byte_is_a_miss_and_never_a_wrong_answer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache");
        let writer = CacheWriter::create(&path).unwrap();
        writer.add(b"/a", &[remember(b"x", 1, b"node x")]).unwrap();
        writer.finish(None).unwrap();
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            let answer = Cache::open(&path)
                .and_then(|cache| cache.directory(b"/a"))
                .and_then(|mut known| ask(&mut known, b"x", 1));
            assert!(answer.is_none() || answer.unwrap() == b"node x", "byte {at}");
        }
    }
}
