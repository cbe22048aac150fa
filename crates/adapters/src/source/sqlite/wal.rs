//! The write-ahead log's file format: header, frames, and the checksums that chain them.
//!
//! Invariant: nothing that this module hands out was accepted without its salts and its place in the checksum chain
//! being right. The -wal file is read by plain file I/O: no SQLite lock lives on it (they live on the database file
//! and on -shm, which must never be opened here).

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

pub(super) const HEADER_BYTES: u64 = 32;
pub(super) const FRAME_HEADER_BYTES: u64 = 24;
const MAGIC: u32 = 0x377f_0682;
const FORMAT_VERSION: u32 = 3_007_000;
/// How much of the log is read at a time.
const BLOCK_BYTES: usize = 1 << 20;

/// Why the log could not be read on.
#[derive(Debug, thiserror::Error)]
pub(super) enum WalError {
    #[error("cannot read the write-ahead log")]
    Read(#[source] io::Error),
    #[error("the write-ahead log's header is not one ({0})")]
    Header(&'static str),
    #[error("frame {frame} of the write-ahead log is damaged ({what})")]
    Frame { frame: u32, what: &'static str },
}

/// The two salts: new whenever the log starts again from its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Salts(pub(super) u32, pub(super) u32);

/// The running checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sum(pub(super) u32, pub(super) u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) page_size: u32,
    pub(super) salts: Salts,
    big_endian: bool,
    sum: Sum,
}

/// A place in the log, after a whole transaction, that can be recognised again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) page_size: u32,
    pub(super) salts: Salts,
    /// The last frame before the place; 0 at the log's beginning.
    pub(super) frame: u32,
    pub(super) sum: Sum,
}

/// What lies between two places: the last frame of each page, and the database's size after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) frames: BTreeMap<u32, u32>,
    pub(super) database_pages: u32,
    pub(super) transactions: u64,
    pub(super) end: Place,
}

impl Header {
    /// Reads the header; `None` where the log is empty.
    pub(super) fn read(file: &File) -> Result<Option<Header>, WalError> {
        let mut bytes = [0; HEADER_BYTES as usize];
        match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => Header::parse(&bytes).map(Some),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(WalError::Read(error)),
        }
    }

    fn parse(bytes: &[u8; HEADER_BYTES as usize]) -> Result<Header, WalError> {
        let magic = word(bytes, 0);
        if magic & !1 != MAGIC {
            return Err(WalError::Header("wrong magic number"));
        }
        if word(bytes, 4) != FORMAT_VERSION {
            return Err(WalError::Header("unknown format version"));
        }
        let page_size = word(bytes, 8);
        if !is_page_size(page_size) {
            return Err(WalError::Header("impossible page size"));
        }
        let big_endian = magic & 1 == 1;
        let sum = checksum(big_endian, Sum(0, 0), bytes.get(..24).unwrap_or_default());
        if sum != Sum(word(bytes, 24), word(bytes, 28)) {
            return Err(WalError::Header("wrong checksum"));
        }
        Ok(Header { page_size, salts: Salts(word(bytes, 16), word(bytes, 20)), big_endian, sum })
    }

    /// The place before the first frame.
    pub(super) fn start(&self) -> Place {
        Place { page_size: self.page_size, salts: self.salts, frame: 0, sum: self.sum }
    }

    /// Whether this header is the one that a single restart of the log puts after `before`.
    pub(super) fn follows(&self, before: Salts) -> bool {
        self.salts.0 == before.0.wrapping_add(1)
    }

    /// Reads and verifies the frames after `from` up to `through`, which must end a transaction.
    pub(super) fn scan(&self, file: &File, from: &Place, through: u32) -> Result<Stretch, WalError> {
        self.scan_some(file, from, through, usize::MAX)
    }

    /// As `scan`, but ends before the transaction with which it would have more than `pages_max` pages; the first one
    /// is always in it.
    pub(super) fn scan_some(
        &self,
        file: &File,
        from: &Place,
        through: u32,
        pages_max: usize,
    ) -> Result<Stretch, WalError> {
        let frame_bytes = (FRAME_HEADER_BYTES + u64::from(self.page_size)) as usize;
        let block_frames = (BLOCK_BYTES / frame_bytes).max(1);
        let mut block = vec![0; block_frames * frame_bytes];
        let mut stretch = Stretch { frames: BTreeMap::new(), database_pages: 0, transactions: 0, end: *from };
        // The transaction that is being read, and the pages in it that are new to the stretch.
        let (mut open, mut open_pages, mut sum) = (BTreeMap::new(), 0, from.sum);
        let mut next = from.frame.saturating_add(1);
        while next <= through {
            let count = block_frames.min((through - next) as usize + 1);
            let wanted = block.get_mut(..count * frame_bytes).unwrap_or_default();
            file.read_exact_at(wanted, frame_offset(self.page_size, next)).map_err(WalError::Read)?;
            for bytes in wanted.chunks_exact(frame_bytes) {
                let frame = self.accept(bytes, next, sum)?;
                sum = frame.sum;
                if open.insert(frame.page, next).is_none() && !stretch.frames.contains_key(&frame.page) {
                    open_pages += 1;
                }
                if frame.size_after != 0 {
                    if stretch.transactions > 0 && stretch.frames.len() + open_pages > pages_max {
                        return Ok(stretch);
                    }
                    stretch.frames.append(&mut open);
                    open_pages = 0;
                    stretch.database_pages = frame.size_after;
                    stretch.transactions += 1;
                    stretch.end = Place { page_size: self.page_size, salts: self.salts, frame: next, sum };
                }
                next += 1;
            }
        }
        if !open.is_empty() {
            return Err(WalError::Frame { frame: through, what: "it should end a transaction and does not" });
        }
        Ok(stretch)
    }

    /// Checks a frame against the checksum of everything before it.
    fn accept(&self, frame: &[u8], number: u32, before: Sum) -> Result<Frame, WalError> {
        let damaged = |what| WalError::Frame { frame: number, what };
        let (head, image) = frame.split_at_checked(FRAME_HEADER_BYTES as usize).ok_or_else(|| damaged("too short"))?;
        let (page, size_after) = (word(head, 0), word(head, 4));
        if page == 0 {
            return Err(damaged("it names page 0"));
        }
        if Salts(word(head, 8), word(head, 12)) != self.salts {
            return Err(damaged("its salts are not the log's"));
        }
        let sum = checksum(self.big_endian, before, head.get(..8).unwrap_or_default());
        let sum = checksum(self.big_endian, sum, image);
        if sum != Sum(word(head, 16), word(head, 20)) {
            return Err(damaged("wrong checksum"));
        }
        Ok(Frame { page, size_after, sum })
    }
}

/// One frame's header, found right.
struct Frame {
    page: u32,
    /// The database's size in pages if the frame ends a transaction, otherwise 0.
    size_after: u32,
    sum: Sum,
}

impl Place {
    /// Whether the log still holds exactly what it held when this place was its end.
    pub(super) fn is_in(&self, header: &Header, file: &File) -> Result<bool, WalError> {
        if header.salts != self.salts || header.page_size != self.page_size {
            return Ok(false);
        }
        if self.frame == 0 {
            return Ok(header.sum == self.sum);
        }
        let mut head = [0; FRAME_HEADER_BYTES as usize];
        match file.read_exact_at(&mut head, frame_offset(self.page_size, self.frame)) {
            Ok(()) => Ok(Salts(word(&head, 8), word(&head, 12)) == self.salts
                && Sum(word(&head, 16), word(&head, 20)) == self.sum),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(WalError::Read(error)),
        }
    }
}

/// Reads one frame's page image. `false` if the frame is no longer the one of `page` under `salts`: the log has
/// started again. A writer writes a frame's header before its image, so a header that is still the old one after the
/// image was read vouches for the image.
pub(super) fn read_image(file: &File, salts: Salts, page: u32, frame: u32, image: &mut [u8]) -> Result<bool, WalError> {
    let offset = frame_offset(image.len() as u32, frame);
    let mut head = [0; FRAME_HEADER_BYTES as usize];
    let read =
        file.read_exact_at(image, offset + FRAME_HEADER_BYTES).and_then(|()| file.read_exact_at(&mut head, offset));
    match read {
        Ok(()) => Ok(word(&head, 0) == page && Salts(word(&head, 8), word(&head, 12)) == salts),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(WalError::Read(error)),
    }
}

pub(super) fn is_page_size(bytes: u32) -> bool {
    bytes.is_power_of_two() && (512..=65_536).contains(&bytes)
}

fn frame_offset(page_size: u32, frame: u32) -> u64 {
    HEADER_BYTES + u64::from(frame.saturating_sub(1)) * (FRAME_HEADER_BYTES + u64::from(page_size))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_be_bytes)
}

fn checksum(big_endian: bool, from: Sum, bytes: &[u8]) -> Sum {
    let mut sum = from;
    let (words, _) = bytes.as_chunks::<4>();
    let (pairs, _) = words.as_chunks::<2>();
    for [first, second] in pairs {
        let (first, second) = if big_endian {
            (u32::from_be_bytes(*first), u32::from_be_bytes(*second))
        } else {
            (u32::from_le_bytes(*first), u32::from_le_bytes(*second))
        };
        sum.0 = sum.0.wrapping_add(first).wrapping_add(sum.1);
        sum.1 = sum.1.wrapping_add(second).wrapping_add(sum.0);
    }
    sum
}

/// The pages of `with_right_sums`.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) const PLAIN_PAGE: usize = 512;

/// A log whose frames say what `data` says (page, size, image, one after the other) and whose checksums are right.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn with_right_sums(data: &[u8]) -> Vec<u8> {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
    let mut log = words(&[MAGIC | 1, FORMAT_VERSION, PLAIN_PAGE as u32, 0, 7, 8]);
    let mut sum = checksum(true, Sum(0, 0), &log);
    log.extend(words(&[sum.0, sum.1]));
    for frame in data.chunks_exact(8 + PLAIN_PAGE) {
        let Some((head, image)) = frame.split_first_chunk::<8>() else { continue };
        sum = checksum(true, checksum(true, sum, head), image);
        log.extend_from_slice(head);
        log.extend(words(&[7, 8, sum.0, sum.1]));
        log.extend_from_slice(image);
    }
    log
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use rusqlite::Connection;

    fn database_with_log() -> (tempfile::TempDir, Connection, File) {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a.db");
        let database = Connection::open(&path).unwrap();
        database
            .execute_batch("pragma journal_mode=wal; pragma wal_autocheckpoint=0; create table t(a); insert into t values (1); insert into t values (2);")
            .unwrap();
        let file = std::fs::OpenOptions::new().read(true).write(true).open(place.path().join("a.db-wal")).unwrap();
        (place, database, file)
    }

    #[test]
    fn a_log_that_sqlite_wrote_is_read_to_its_end() {
        let (_place, database, file) = database_with_log();
        let frames: u32 = database.query_row("pragma wal_checkpoint(noop)", [], |row| row.get(1)).unwrap();
        let header = Header::read(&file).unwrap().unwrap();
        let all = header.scan(&file, &header.start(), frames).unwrap();
        assert_eq!((all.transactions, all.database_pages, all.end.frame), (3, 2, frames));
        assert!(all.end.is_in(&header, &file).unwrap());
        let first = header.scan(&file, &header.start(), frames - 1).unwrap();
        let rest = header.scan(&file, &first.end, frames).unwrap();
        assert_eq!((rest.transactions, rest.end), (1, all.end));
        // In helpings of one page: the first transaction has two, the others change the same one.
        let (mut at, mut helpings) = (header.start(), Vec::new());
        while at != all.end {
            let some = header.scan_some(&file, &at, frames, 1).unwrap();
            helpings.push(some.transactions);
            at = some.end;
        }
        assert_eq!(helpings, [1, 2]);
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let (_place, database, file) = database_with_log();
        let frames: u32 = database.query_row("pragma wal_checkpoint(noop)", [], |row| row.get(1)).unwrap();
        let length = file.metadata().unwrap().len();
        let end = Header::read(&file).unwrap().unwrap();
        let end = end.scan(&file, &end.start(), frames).unwrap().end;
        let mut byte = [0];
        for at in (0..length).step_by(97).chain(0..HEADER_BYTES + FRAME_HEADER_BYTES) {
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 4], at).unwrap();
            let seen = Header::read(&file).and_then(|header| {
                let header = header.ok_or(WalError::Header("empty"))?;
                header.scan(&file, &header.start(), frames)
            });
            assert!(seen.is_err() || seen.unwrap().end != end, "byte {at}");
            file.write_all_at(&byte, at).unwrap();
        }
    }

    #[test]
    fn a_place_is_not_recognised_after_the_log_started_again() {
        let (_place, database, file) = database_with_log();
        let frames: u32 = database.query_row("pragma wal_checkpoint(noop)", [], |row| row.get(1)).unwrap();
        let header = Header::read(&file).unwrap().unwrap();
        let end = header.scan(&file, &header.start(), frames).unwrap().end;
        database.execute_batch("pragma wal_checkpoint(restart); insert into t values (3)").unwrap();
        let after = Header::read(&file).unwrap().unwrap();
        assert!(!end.is_in(&after, &file).unwrap());
        assert!(after.follows(end.salts));
        let mut image = vec![0; 4096];
        assert!(!read_image(&file, end.salts, 2, 1, &mut image).unwrap());
    }
}
