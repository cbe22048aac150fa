//! Which chunks there are, and in which pack: sorted files that are read in place, a page at a time. 28 bytes a chunk on disk, 8 bytes
//! a page of 146 chunks in memory, however large the repository is.
//!
//! ```text
//! run:  page 0 | page 1 | … | first ids of the pages | number of records | checksum of both | magic
//! page: 146 records (24 bytes of a chunk's id, u32 pack) | checksum (8 bytes)
//! ```
//! New chunks make a new run; runs of like size are merged, so that there are few. Two thirds of an id name a chunk as surely as
//! all of it. Invariant: a page that does not carry its own checksum holds nothing: damage costs an upload, never a chunk.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::port::ChunkId;

const MAGIC: &[u8; 8] = b"LBCHNK\x00\x01";
const KEY_BYTES: usize = 24;
const RECORD_BYTES: usize = KEY_BYTES + 4;
const PAGE_BYTES: usize = 4096;
const SUM_BYTES: usize = 8;
const PAGE_RECORDS: usize = (PAGE_BYTES - SUM_BYTES) / RECORD_BYTES;
const TRAILER_BYTES: u64 = 8 + 32 + 8;
/// Pages kept in memory, of all runs together.
const PAGES_KEPT: usize = 1024;

/// A chunk and the ordinal of its pack.
type Record = [u8; RECORD_BYTES];

pub(super) fn record(id: &ChunkId, pack: u32) -> Record {
    let mut record = [0; RECORD_BYTES];
    let (key, place) = record.split_at_mut(KEY_BYTES);
    key.copy_from_slice(id.0.split_at(KEY_BYTES).0);
    place.copy_from_slice(&pack.to_be_bytes());
    record
}

fn first_of(key: &[u8]) -> u64 {
    key.first_chunk::<8>().map_or(0, |first| u64::from_be_bytes(*first))
}

/// The file of one run, open for reading. Where it has a path, it stays after the process.
#[derive(Debug)]
struct Run {
    file: File,
    path: Option<PathBuf>,
    records: u64,
    firsts: Vec<u64>,
}

/// Runs, newest last, and the pages of them that were read last.
#[derive(Debug, Clone)]
pub(super) struct Table {
    runs: Vec<Arc<Run>>,
    kept: Arc<Kept>,
}

#[derive(Debug)]
struct Kept {
    /// By a hash of file and page: which it is, and its bytes.
    pages: Vec<Mutex<(usize, usize, Vec<u8>)>>,
    damaged: AtomicBool,
}

impl Default for Table {
    fn default() -> Table {
        let pages = (0..PAGES_KEPT).map(|_| Mutex::new((0, 0, Vec::new()))).collect();
        Table { runs: Vec::new(), kept: Arc::new(Kept { pages, damaged: AtomicBool::new(false) }) }
    }
}

impl Table {
    /// Opens runs that were kept; `None` where one is not what it should be.
    pub(super) fn open(paths: &[PathBuf]) -> Option<Table> {
        let runs = paths.iter().map(|path| Run::open(path).map(Arc::new)).collect::<Option<Vec<_>>>()?;
        Some(Table { runs, ..Table::default() })
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.runs.iter().filter_map(|run| run.path.as_deref())
    }

    /// Whether a page turned out to be damaged.
    pub(super) fn is_damaged(&self) -> bool {
        self.kept.damaged.load(Ordering::Relaxed)
    }

    /// Whether one of the packs that hold a chunk is good enough.
    pub(super) fn any(&self, id: &ChunkId, mut good: impl FnMut(u32) -> bool) -> bool {
        self.runs.iter().enumerate().any(|(number, run)| self.any_in(number, run, id, &mut good))
    }

    fn any_in(&self, number: usize, run: &Run, id: &ChunkId, good: &mut impl FnMut(u32) -> bool) -> bool {
        let key = id.0.split_at(KEY_BYTES).0;
        let first = first_of(key);
        // The page before the first that begins at or after the id may hold it, too.
        let start = run.firsts.partition_point(|at| *at < first).saturating_sub(1);
        let pages = run.firsts.iter().skip(start).take_while(|at| **at <= first).count();
        (start..start + pages).any(|page| self.any_in_page((number, page), run, key, good))
    }

    fn any_in_page(
        &self,
        (number, page): (usize, usize),
        run: &Run,
        key: &[u8],
        good: &mut impl FnMut(u32) -> bool,
    ) -> bool {
        let slot = page.wrapping_mul(31).wrapping_add(number.wrapping_mul(7919)) % PAGES_KEPT;
        let Some(slot) = self.kept.pages.get(slot) else { return false };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.2.is_empty() || (slot.0, slot.1) != (number, page) {
            slot.2.clear();
            match run.page(page) {
                Some(bytes) => *slot = (number, page, bytes),
                None => {
                    self.kept.damaged.store(true, Ordering::Relaxed);
                    return false;
                }
            }
        }
        let (records, _) = slot.2.as_chunks::<RECORD_BYTES>();
        // Numbers are compared faster than bytes, and the first eight bytes hardly ever agree.
        let first = first_of(key);
        let from = records.partition_point(|record| first_of(record) < first);
        records
            .iter()
            .skip(from)
            .take_while(|record| first_of(*record) == first)
            .map(|record| record.split_at(KEY_BYTES))
            .filter(|(found, _)| *found == key)
            .any(|(_, pack)| pack.first_chunk().is_some_and(|pack| good(u32::from_be_bytes(*pack))))
    }

    /// Adds chunks as a run of its own, then merges what is of like size. `name` gives the file of a run; without, it is gone with
    /// this process. Files of runs that were merged are left to the caller.
    pub(super) fn add(
        &mut self,
        mut records: Vec<Record>,
        directory: &Path,
        name: Option<&dyn Fn() -> PathBuf>,
    ) -> std::io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        records.sort_unstable();
        records.dedup();
        let place = || name.map(|name| name());
        let mut draft = Draft::new(directory, place())?;
        records.iter().try_for_each(|record| draft.push(record))?;
        drop(records);
        let mut runs = self.runs.clone();
        runs.push(Arc::new(draft.finish()?));
        while let [.., before, last] = runs.as_slice()
            && before.records < last.records.saturating_mul(2)
        {
            let merged = Arc::new(merge(before, last, Draft::new(directory, place())?)?);
            runs.truncate(runs.len() - 2);
            runs.push(merged);
        }
        // Pages are known by the number of their run.
        *self = Table { runs, ..Table::default() };
        Ok(())
    }
}

fn sum(page: usize, bytes: &[u8]) -> [u8; SUM_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(page as u64).to_le_bytes()).update(bytes);
    let mut sum = [0; SUM_BYTES];
    hasher.finalize_xof().fill(&mut sum);
    sum
}

impl Run {
    fn open(path: &Path) -> Option<Run> {
        let mut file = File::open(path).ok()?;
        let length = file.metadata().ok()?.len();
        let mut trailer = [0; TRAILER_BYTES as usize];
        file.read_exact_at(&mut trailer, length.checked_sub(TRAILER_BYTES)?).ok()?;
        let records = u64::from_le_bytes(*trailer.first_chunk()?);
        let pages = records.div_ceil(PAGE_RECORDS as u64);
        let whole = pages.checked_mul(PAGE_BYTES as u64 + 8)?.checked_add(TRAILER_BYTES)?;
        if whole != length || trailer.last_chunk()? != MAGIC {
            return None;
        }
        let mut raw = vec![0; usize::try_from(pages).ok()?.checked_mul(8)?];
        file.read_exact_at(&mut raw, pages * PAGE_BYTES as u64).ok()?;
        let hash = blake3::Hasher::new().update(&raw).update(trailer.get(..8)?).finalize();
        if trailer.get(8..40)? != hash.as_bytes() {
            return None;
        }
        let firsts = raw.as_chunks::<8>().0.iter().map(|first| u64::from_be_bytes(*first)).collect();
        // So that whoever reads all of it begins at its beginning.
        std::io::Seek::rewind(&mut file).ok()?;
        Some(Run { file, path: Some(path.to_owned()), records, firsts })
    }

    fn records_in(&self, page: usize) -> usize {
        let before = (page * PAGE_RECORDS) as u64;
        self.records.saturating_sub(before).min(PAGE_RECORDS as u64) as usize
    }

    /// The records of a page, if they are what was written there.
    fn page(&self, page: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; PAGE_BYTES];
        self.file.read_exact_at(&mut bytes, (page * PAGE_BYTES) as u64).ok()?;
        let (records, found) = bytes.split_at(PAGE_BYTES - SUM_BYTES);
        if found != sum(page, records) {
            return None;
        }
        bytes.truncate(self.records_in(page) * RECORD_BYTES);
        Some(bytes)
    }

    /// All records in order; a damaged page is an error, so that nothing is merged away in silence.
    fn records(&self) -> impl Iterator<Item = std::io::Result<Record>> + '_ {
        (0..self.firsts.len()).flat_map(|page| {
            let damaged =
                || std::io::Error::new(std::io::ErrorKind::InvalidData, "a page of the table of chunks is damaged");
            let (records, error) = match self.page(page) {
                Some(bytes) => (bytes.as_chunks::<RECORD_BYTES>().0.to_vec(), None),
                None => (Vec::new(), Some(Err(damaged()))),
            };
            records.into_iter().map(Ok).chain(error)
        })
    }
}

fn merge(a: &Run, b: &Run, mut draft: Draft) -> std::io::Result<Run> {
    let (mut left, mut right) = (a.records().peekable(), b.records().peekable());
    loop {
        let from_left = match (left.peek(), right.peek()) {
            (None, None) => return draft.finish(),
            (Some(Ok(l)), Some(Ok(r))) => l <= r,
            (Some(_), None) | (Some(Err(_)), _) => true,
            _ => false,
        };
        let next = if from_left { left.next() } else { right.next() };
        if let Some(record) = next {
            draft.push(&record?)?;
        }
    }
}

/// A run that is being written.
struct Draft {
    out: BufWriter<File>,
    path: Option<PathBuf>,
    page: Vec<u8>,
    records: u64,
    firsts: Vec<u64>,
    last: Option<Record>,
}

impl Draft {
    fn new(directory: &Path, path: Option<PathBuf>) -> std::io::Result<Draft> {
        let shown =
            path.clone().unwrap_or_else(|| directory.join(format!(".{:016x}.chunks", crate::crypt::random_u64())));
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&shown)?;
        if path.is_none() {
            std::fs::remove_file(&shown)?;
        }
        let (out, page) = (BufWriter::with_capacity(256 << 10, file), Vec::with_capacity(PAGE_BYTES));
        Ok(Draft { out, path, page, records: 0, firsts: Vec::new(), last: None })
    }

    fn push(&mut self, record: &Record) -> std::io::Result<()> {
        if self.last.replace(*record) == Some(*record) {
            return Ok(());
        }
        if self.page.is_empty() {
            self.firsts.push(first_of(record));
        }
        self.page.extend_from_slice(record);
        self.records += 1;
        if self.page.len() == PAGE_RECORDS * RECORD_BYTES { self.write_page() } else { Ok(()) }
    }

    fn write_page(&mut self) -> std::io::Result<()> {
        self.page.resize(PAGE_BYTES - SUM_BYTES, 0);
        let sum = sum(self.firsts.len() - 1, &self.page);
        self.out.write_all(&self.page)?;
        self.page.clear();
        self.out.write_all(&sum)
    }

    fn finish(mut self) -> std::io::Result<Run> {
        if !self.page.is_empty() {
            self.write_page()?;
        }
        let raw: Vec<u8> = self.firsts.iter().flat_map(|first| first.to_be_bytes()).collect();
        let count = self.records.to_le_bytes();
        let hash = blake3::Hasher::new().update(&raw).update(&count).finalize();
        for part in [&raw[..], &count, hash.as_bytes(), MAGIC] {
            self.out.write_all(part)?;
        }
        let file = self.out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        Ok(Run { file, path: self.path, records: self.records, firsts: self.firsts })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn id(number: u64) -> ChunkId {
        ChunkId(crate::crypt::hash(&number.to_le_bytes()))
    }

    fn records(numbers: std::ops::Range<u64>) -> Vec<Record> {
        numbers.map(|number| record(&id(number), (number % 1000) as u32)).collect()
    }

    fn finds(table: &Table, number: u64) -> bool {
        table.any(&id(number), |pack| u64::from(pack) == number % 1000)
    }

    #[test]
    fn what_was_added_is_found_in_few_runs_and_after_opening_them_again() {
        let dir = tempfile::tempdir().unwrap();
        let name = || dir.path().join(format!("{:016x}", crate::crypt::random_u64()));
        let mut table = Table::default();
        for start in 0..40 {
            table.add(records(start * 500..(start + 1) * 500 + 100), dir.path(), Some(&name)).unwrap();
        }
        assert!(table.runs.len() <= 6, "{}", table.runs.len());
        assert_eq!(
            table.runs.iter().map(|run| run.records).sum::<u64>() / 100,
            (20_100 + 39 * 100) / 100 - 39 + table.runs.len() as u64 - 1
        );
        let paths: Vec<PathBuf> = table.paths().map(Path::to_owned).collect();
        let again = Table::open(&paths).unwrap();
        for table in [&table, &again] {
            assert!((0..20_100).all(|number| finds(table, number)));
            assert!(!(20_100..40_000).any(|number| finds(table, number)));
            assert!(!table.any(&id(7), |pack| pack != 7));
            assert!(!table.is_damaged());
        }
    }

    #[test]
    fn damage_loses_chunks_and_invents_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        let mut table = Table::default();
        table.add(records(0..300), dir.path(), Some(&|| path.clone())).unwrap();
        let good = std::fs::read(&path).unwrap();
        for at in (0..good.len()).step_by(101).chain([good.len() - 1]) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            std::fs::write(&path, &bad).unwrap();
            let Some(table) = Table::open(std::slice::from_ref(&path)) else { continue };
            let found = (0..300).filter(|number| finds(&table, *number)).count();
            assert!(found < 300 && table.is_damaged(), "byte {at}");
            assert!(!(300..600).any(|number| table.any(&id(number), |_| true)), "byte {at}");
            assert!(table.clone().add(records(300..500), dir.path(), None).is_err(), "byte {at}");
        }
        std::fs::write(&path, &good[..good.len() - 9]).unwrap();
        assert!(Table::open(&[path]).is_none());
    }

    #[test]
    fn a_run_without_a_name_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = Table::default();
        table.add(records(0..1000), dir.path(), None).unwrap();
        table.add(records(1000..2000), dir.path(), None).unwrap();
        assert!((0..2000).all(|number| finds(&table, number)));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
