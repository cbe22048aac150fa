//! A file's map: the mark of each of its pages, then its pieces. And the directory of such maps, beside the file cache.
//!
//! ```text
//! mark of page 0 | mark of page 1 | … | pieces (CBOR, as in a node) | length of a page | pages | bytes of pieces | checksum | magic
//! ```
//! It is written and read in stretches, however large the file is. Marks (AES-256-GMAC, with the place in the file as nonce, under a key
//! of the file) and checksum are made with a secret, so that who chooses a file's content cannot choose what passes for unchanged. Invariant: a map that does not carry its own checksum is no map.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use minicbor::{Decoder, Encoder};

use crate::crypt::MarkKey;
use crate::files::cache::checksum;
use crate::files::tree::{Span, decode_pieces, encode_pieces};

const MAGIC: &[u8; 16] = b"lifeboat pages 1";
const TRAILER_BYTES: u64 = 4 + 8 + 8 + 16 + 16;
const MARK_BYTES: usize = 16;
/// What is read or written of a map at once.
const STRETCH_BYTES: usize = 256 << 10;

pub(crate) type PageMark = [u8; MARK_BYTES];

fn first_half(hash: &blake3::Hash) -> PageMark {
    hash.as_bytes().first_chunk().copied().unwrap_or_default()
}

/// The maps of one data set's files in one vault.
#[derive(Debug)]
pub(crate) struct Maps {
    directory: PathBuf,
    key: [u8; 32],
    /// Names of maps whose files were met.
    met: Mutex<HashSet<String>>,
    drafts: AtomicU64,
    failure: Mutex<Option<String>>,
}

impl Maps {
    /// What lies in the directory is looked at when it is asked for.
    pub(crate) fn new(directory: &Path, key: [u8; 32]) -> Maps {
        Maps {
            directory: directory.to_owned(),
            key,
            met: Mutex::default(),
            drafts: AtomicU64::new(0),
            failure: Mutex::default(),
        }
    }

    /// What marks a file's pages.
    pub(crate) fn mark_key(&self, file: &[u8]) -> Option<MarkKey> {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        MarkKey::new(hasher.update(b"marks of pages ").update(file).finalize().as_bytes()).ok()
    }

    fn name(file: &[u8]) -> String {
        checksum(file).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Says that a file is still there, so that its map stays.
    pub(crate) fn meet(&self, file: &[u8]) {
        self.met.lock().unwrap_or_else(PoisonError::into_inner).insert(Maps::name(file));
    }

    /// What is known of a file.
    pub(crate) fn find(&self, file: &[u8]) -> Option<PageMap> {
        PageMap::open(&self.directory.join(Maps::name(file)), &self.key)
    }

    /// Begins a new map; without one the next backup stores changed blocks whole.
    pub(crate) fn draft(&self, file: &[u8], page_bytes: u32) -> Option<MapDraft> {
        self.meet(file);
        let target = self.directory.join(Maps::name(file));
        let number = self.drafts.fetch_add(1, Ordering::Relaxed);
        let draft = target.with_extension(format!("{}-{number}", std::process::id()));
        let made = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .and_then(|()| File::options().write(true).create(true).truncate(true).mode(0o600).open(&draft));
        match made {
            Ok(out) => Some(MapDraft {
                target,
                draft,
                out,
                waiting: Vec::with_capacity(STRETCH_BYTES),
                sum: blake3::Hasher::new_keyed(&self.key),
                page_bytes,
                pages: 0,
                finished: false,
            }),
            Err(error) => {
                self.note_failure(&draft, &error);
                None
            }
        }
    }

    pub(crate) fn note_failure(&self, path: &Path, error: &io::Error) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert_with(|| format!("{}: {error}", path.display()));
    }

    /// Why a map could not be written, if one could not.
    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Removes the maps of files that were not met: they are gone, or not rewritten in place any more.
    pub(crate) fn sweep(&self) {
        let met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in std::fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            if !entry.file_name().to_str().is_some_and(|name| met.contains(name)) {
                // What cannot be removed takes up room, and nothing else.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// A map open for reading.
#[derive(Debug)]
pub(crate) struct PageMap {
    file: File,
    pub(crate) page_bytes: u32,
    pages: u64,
    pub(crate) spans: Vec<Span>,
}

impl PageMap {
    /// Anything wrong with it is the same as having none.
    fn open(path: &Path, key: &[u8; 32]) -> Option<PageMap> {
        let file = File::open(path).ok()?;
        let length = file.metadata().ok()?.len();
        let mut trailer = [0; TRAILER_BYTES as usize];
        let body = length.checked_sub(TRAILER_BYTES)?;
        file.read_exact_at(&mut trailer, body).ok()?;
        let (page_bytes, rest) = trailer.split_first_chunk::<4>()?;
        let (pages, rest) = rest.split_first_chunk::<8>()?;
        let (pieces, rest) = rest.split_first_chunk::<8>()?;
        let (sum, magic) = rest.split_first_chunk::<MARK_BYTES>()?;
        let page_bytes = u32::from_le_bytes(*page_bytes);
        let (pages, pieces) = (u64::from_le_bytes(*pages), u64::from_le_bytes(*pieces));
        let marks = pages.checked_mul(MARK_BYTES as u64)?;
        let is_page = page_bytes.is_power_of_two() && (512..=super::BLOCK_BYTES).contains(&page_bytes);
        if magic != MAGIC || marks.checked_add(pieces)? != body || !is_page {
            return None;
        }
        let mut encoded = Vec::with_capacity(usize::try_from(pieces).ok()?);
        let mut hasher = blake3::Hasher::new_keyed(key);
        let mut stretch = vec![0; STRETCH_BYTES];
        let mut at = 0;
        while at < body {
            let now = stretch.get_mut(..(body - at).min(STRETCH_BYTES as u64) as usize)?;
            file.read_exact_at(now, at).ok()?;
            hasher.update(now);
            if at + now.len() as u64 > marks {
                encoded.extend_from_slice(now.get(marks.saturating_sub(at) as usize..)?);
            }
            at += now.len() as u64;
        }
        hasher.update(trailer.get(..20)?);
        if first_half(&hasher.finalize()) != *sum {
            return None;
        }
        let spans = decode_pieces(&mut Decoder::new(&encoded)).ok()?;
        Some(PageMap { file, page_bytes, pages, spans })
    }

    /// The marks of some pages; those that are not known match nothing.
    pub(crate) fn marks(&self, first: u64, count: usize) -> Vec<Option<PageMark>> {
        let there = self.pages.saturating_sub(first).min(count as u64) as usize;
        let mut raw = vec![0; there * MARK_BYTES];
        if self.file.read_exact_at(&mut raw, first * MARK_BYTES as u64).is_err() {
            raw.clear();
        }
        let known = raw.as_chunks::<MARK_BYTES>().0.iter().map(|mark| Some(*mark).filter(|mark| *mark != NONE));
        known.chain(std::iter::repeat(None)).take(count).collect()
    }
}

/// Stands for a page that has no mark.
const NONE: PageMark = [0; MARK_BYTES];

/// A map being written, beside the one that is there. Unless it is finished, nothing stays of it.
#[derive(Debug)]
pub(crate) struct MapDraft {
    target: PathBuf,
    draft: PathBuf,
    out: File,
    waiting: Vec<u8>,
    sum: blake3::Hasher,
    page_bytes: u32,
    pages: u64,
    finished: bool,
}

impl MapDraft {
    pub(crate) fn path(&self) -> &Path {
        &self.target
    }

    /// Adds a page, after those before it. Pages that are left out have no mark.
    pub(crate) fn push(&mut self, page: u64, mark: &PageMark) -> io::Result<()> {
        while self.pages < page {
            self.append(&NONE)?;
            self.pages += 1;
        }
        if self.pages == page {
            self.append(mark)?;
            self.pages += 1;
        }
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.waiting.len() + bytes.len() > STRETCH_BYTES {
            self.write_out()?;
        }
        self.waiting.extend_from_slice(bytes);
        Ok(())
    }

    fn write_out(&mut self) -> io::Result<()> {
        self.sum.update(&self.waiting);
        let written = self.out.write_all(&self.waiting);
        self.waiting.clear();
        written
    }

    /// Completes it with the file's pieces and puts it in place.
    pub(crate) fn finish(mut self, spans: &[Span]) -> io::Result<()> {
        let mut pieces = Vec::new();
        // Writing into a Vec cannot fail.
        let _ = encode_pieces(&mut Encoder::new(&mut pieces), spans);
        let lengths = [self.page_bytes.to_le_bytes().as_slice(), &self.pages.to_le_bytes()].concat();
        self.append(&pieces)?;
        self.append(&lengths)?;
        self.append(&(pieces.len() as u64).to_le_bytes())?;
        self.write_out()?;
        let sum = first_half(&self.sum.finalize());
        self.append(&sum)?;
        self.append(MAGIC)?;
        self.write_out()?;
        std::fs::rename(&self.draft, &self.target)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for MapDraft {
    fn drop(&mut self) {
        if !self.finished {
            let _ = std::fs::remove_file(&self.draft);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ChunkId;

    fn spans() -> Vec<Span> {
        let data = |n: u8| Span::Data { id: ChunkId([n; 32]), offset: u32::from(n) * 8192, length: 8192 };
        vec![data(1), Span::Hole { length: 3 * 8192 }, data(2)]
    }

    fn mark(maps: &Maps, page: u64) -> PageMark {
        maps.mark_key(b"/a/file").unwrap().mark(page * 8192, &[page as u8; 8192]).unwrap()
    }

    #[test]
    fn a_mark_is_that_of_a_content_at_a_place_of_a_file() {
        let maps = Maps::new(Path::new("/nowhere"), [7; 32]);
        let mark = |maps: &Maps, file: &[u8], page, content: &[u8]| maps.mark_key(file).unwrap().mark(page, content);
        let one = mark(&maps, b"a", 3, b"page");
        assert!(one.is_some() && one == mark(&maps, b"a", 3, b"page"));
        let others = [
            mark(&maps, b"a", 4, b"page"),
            mark(&maps, b"a", 3, b"pagf"),
            mark(&maps, b"a", 3, b"page\0"),
            mark(&maps, b"b", 3, b"page"),
            mark(&Maps::new(Path::new("/nowhere"), [8; 32]), b"a", 3, b"page"),
        ];
        assert!(!others.contains(&one));
    }

    fn written(directory: &Path) -> Maps {
        let maps = Maps::new(&directory.join("maps"), [7; 32]);
        let mut draft = maps.draft(b"/a/file", 8192).unwrap();
        for page in [0, 4] {
            draft.push(page, &mark(&maps, page)).unwrap();
        }
        draft.push(4, &[9; 16]).unwrap(); // a page counts once
        draft.finish(&spans()).unwrap();
        maps
    }

    #[test]
    fn what_was_written_is_found_under_its_key_and_name() {
        let dir = tempfile::tempdir().unwrap();
        let maps = written(dir.path());
        let map = maps.find(b"/a/file").unwrap();
        let mark = |page| Some(mark(&maps, page));
        assert_eq!(map.marks(0, 6), [mark(0), None, None, None, mark(4), None]);
        assert_eq!(map.marks(4, 1), [mark(4)]);
        assert_eq!(map.marks(1 << 40, 1), [None]);
        assert_eq!((map.spans, map.page_bytes), (spans(), 8192));
        assert!(maps.find(b"/a/other").is_none());
        assert!(Maps::new(&dir.path().join("maps"), [8; 32]).find(b"/a/file").is_none());
    }

    #[test]
    fn a_flipped_byte_or_a_lost_end_makes_it_no_map() {
        let dir = tempfile::tempdir().unwrap();
        let maps = written(dir.path());
        let path = dir.path().join("maps").join(Maps::name(b"/a/file"));
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            assert!(maps.find(b"/a/file").is_none(), "byte {at}");
            std::fs::write(&path, &good[..at]).unwrap();
            assert!(maps.find(b"/a/file").is_none(), "{at} bytes");
        }
        std::fs::write(&path, &good).unwrap();
        assert!(maps.find(b"/a/file").is_some());
    }

    #[test]
    fn drafts_leave_nothing_and_maps_of_files_that_are_gone_go() {
        let dir = tempfile::tempdir().unwrap();
        let count = || std::fs::read_dir(dir.path().join("maps")).unwrap().count();
        let maps = written(dir.path());
        drop(maps.draft(b"/b", 8192).unwrap());
        assert_eq!(count(), 1);
        maps.sweep();
        assert_eq!(count(), 1);
        Maps::new(&dir.path().join("maps"), [7; 32]).sweep();
        assert_eq!(count(), 0);
    }
}
