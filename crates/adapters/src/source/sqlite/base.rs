//! A snapshot's content on its way into a file, on all cores.
//!
//! Invariant: when it answers `Ok`, the file has the snapshot's bytes and size, whatever lay in it before.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, PermissionsExt, fchown};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use lifeboat_engine::port::Cancel;
use lifeboat_vault::files::{Browser, Kind, Metadata, Node, Span, TreeError, for_each_frame};
use lifeboat_vault::{ChunkId, ChunkSource, PointInfo, Scratch, Source, Unlocked};

use super::copy::RestoreError;

/// What lies there already is compared and written so much at a time.
const COMPARED_BYTES: usize = 64 << 10;
/// A hole is compared and written so much at a time.
const HOLE_BYTES: u64 = 256 << 10;

/// Writes a snapshot's content over a file, only where it differs. Answers its size and the bytes written.
pub(super) fn write_base(
    vault: &Unlocked,
    point: &PointInfo,
    file: &File,
    path: &Path,
    cancel: &Cancel,
) -> Result<(u64, u64), RestoreError> {
    let vault_failed = |source| RestoreError::Vault { point: point.id.clone(), source };
    let tree_failed = |source| RestoreError::Tree { point: point.id.clone(), source };
    let root = vault.read_root(point).map_err(vault_failed)?;
    let root = ChunkId(root.as_slice().try_into().map_err(|_| RestoreError::NotADatabase { point: point.id.clone() })?);
    let source = vault.source(&point.dataset).map_err(vault_failed)?;
    let node = only_file(&Browser::open(&source, &root).map_err(tree_failed)?).map_err(tree_failed)?;
    let Some(Node { kind: Kind::File { size, spans }, metadata, .. }) = node else {
        return Err(RestoreError::NotADatabase { point: point.id.clone() });
    };
    let before = file.metadata().map_err(RestoreError::file("look at", path))?.len();
    let over = Over { file, path, source: &source, point, there: before.min(size), written: AtomicU64::new(0) };
    over.write_all(&runs(&source, &spans), cancel)?;
    file.set_len(size).map_err(RestoreError::file("cut", path))?;
    if let Some(metadata) = &metadata {
        take_on(file, metadata).map_err(RestoreError::file("give its owner and mode to", path))?;
    }
    Ok((size, over.written.into_inner()))
}

fn only_file(browser: &Browser<'_>) -> Result<Option<Node>, TreeError> {
    let mut entries = browser.entries(&browser.root().top)?;
    let (Some(first), None) = (entries.next().transpose()?, entries.next().transpose()?) else { return Ok(None) };
    Ok(Some(first).filter(|node| matches!(node.kind, Kind::File { .. })))
}

fn take_on(file: &File, metadata: &Metadata) -> io::Result<()> {
    if rustix::process::geteuid().is_root() {
        fchown(file, Some(metadata.uid), Some(metadata.gid))?;
    }
    file.set_permissions(fs::Permissions::from_mode(metadata.mode & 0o777))
}

/// A part of a chunk that belongs into the file.
struct Piece {
    at: u64,
    offset: u32,
    length: u32,
}

/// Where a chunk lies (what it has no place in is read by itself), and which it is.
type Lying = (Option<(u32, u64)>, ChunkId);

/// One thread's work.
enum Run {
    /// What is needed of chunks that are unpacked together, in the order in which they lie.
    Frame(Vec<(ChunkId, Vec<Piece>)>),
    Hole {
        at: u64,
        length: u64,
    },
}

/// The pieces of each frame, wherever they belong in the file, so that nothing is unpacked, or verified, twice. Frames are told by the
/// upper half of a place.
fn runs(source: &Source, spans: &[Span]) -> Vec<Run> {
    let (mut runs, mut at) = (Vec::new(), 0u64);
    let mut chunks: BTreeMap<Lying, Vec<Piece>> = BTreeMap::new();
    for span in spans {
        match *span {
            Span::Data { id, offset, length } => {
                chunks.entry((source.place(&id), id)).or_default().push(Piece { at, offset, length });
            }
            Span::Hole { length } => runs.push(Run::Hole { at, length }),
        }
        at = at.saturating_add(span.length());
    }
    let mut last = None;
    for ((place, id), pieces) in chunks {
        let frame = place.map(|(pack, offset)| (pack, offset >> 32));
        match runs.last_mut() {
            Some(Run::Frame(chunks)) if frame.is_some() && frame == last => chunks.push((id, pieces)),
            _ => runs.push(Run::Frame(vec![(id, pieces)])),
        }
        last = frame;
    }
    runs
}

struct Over<'a> {
    file: &'a File,
    path: &'a Path,
    source: &'a Source,
    point: &'a PointInfo,
    /// The file held so much before: only that can be alike.
    there: u64,
    written: AtomicU64,
}

impl Over<'_> {
    fn write_all(&self, runs: &[Run], cancel: &Cancel) -> Result<(), RestoreError> {
        let stop = AtomicBool::new(false);
        let failure = Mutex::new(None);
        let first = |run: &Run| match run {
            Run::Frame(chunks) => chunks.first().map(|(id, _)| *id),
            Run::Hole { .. } => None,
        };
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        for_each_frame(self.source, threads, runs, first, |run, scratch, before: &mut Vec<u8>| {
            if stop.load(Ordering::Relaxed) {
                return false;
            }
            let done = match cancel.is_cancelled() {
                true => Err(RestoreError::Cancelled),
                false => self.write(run, scratch, before),
            };
            done.map_err(|error| {
                stop.store(true, Ordering::Relaxed);
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            })
            .is_ok()
        });
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// Writes what lies in one frame, or a hole.
    fn write(&self, run: &Run, scratch: &mut Scratch, before: &mut Vec<u8>) -> Result<(), RestoreError> {
        let chunks = match run {
            Run::Frame(chunks) => chunks,
            Run::Hole { at, length } => return self.write_hole(*at, *length, before),
        };
        let ids: Vec<ChunkId> = chunks.iter().map(|(id, _)| *id).collect();
        let mut failure = None;
        let read = self.source.each(&ids, scratch, &mut |row, bytes| {
            failure = self.write_row(chunks, row, bytes, before).err();
            failure.is_none()
        });
        match (failure, read) {
            (Some(error), _) => Err(error),
            (None, Err((_, source))) => Err(self.tree(TreeError::Chunk(source))),
            (None, Ok(())) => Ok(()),
        }
    }

    /// Writes what is needed of chunks that lie one after another; what goes into the file in a row is written at once.
    fn write_row(
        &self,
        chunks: &[(ChunkId, Vec<Piece>)],
        row: &[(usize, Range<usize>)],
        bytes: &[u8],
        before: &mut Vec<u8>,
    ) -> Result<(), RestoreError> {
        let failed = || RestoreError::file("write", self.path);
        let mut waiting: Option<(u64, Range<usize>)> = None;
        for (index, range) in row {
            for piece in chunks.get(*index).map(|(_, pieces)| pieces.as_slice()).unwrap_or_default() {
                let start = range.start + piece.offset as usize;
                let data = start..start + piece.length as usize;
                if data.end > range.end {
                    return Err(self.tree(TreeError::Damaged { what: "a piece that reaches beyond its chunk" }));
                }
                waiting = match waiting.take() {
                    Some((from, so_far)) if so_far.end == data.start && from + so_far.len() as u64 == piece.at => {
                        Some((from, so_far.start..data.end))
                    }
                    Some((from, so_far)) => {
                        let before_it = bytes.get(so_far).unwrap_or_default();
                        self.write_where_it_differs(from, before_it, before).map_err(failed())?;
                        Some((piece.at, data))
                    }
                    None => Some((piece.at, data)),
                };
            }
        }
        let Some((from, so_far)) = waiting else { return Ok(()) };
        self.write_where_it_differs(from, bytes.get(so_far).unwrap_or_default(), before).map_err(failed())
    }

    /// What was cut or never there reads as zeros already.
    fn write_hole(&self, mut at: u64, length: u64, before: &mut Vec<u8>) -> Result<(), RestoreError> {
        let zeros = vec![0; HOLE_BYTES as usize];
        let end = at.saturating_add(length).min(self.there);
        while at < end {
            let now = (end - at).min(HOLE_BYTES);
            let piece = zeros.get(..now as usize).unwrap_or_default();
            self.write_where_it_differs(at, piece, before).map_err(RestoreError::file("write", self.path))?;
            at += now;
        }
        Ok(())
    }

    fn tree(&self, source: TreeError) -> RestoreError {
        RestoreError::Tree { point: self.point.id.clone(), source }
    }

    fn write_where_it_differs(&self, at: u64, bytes: &[u8], before: &mut Vec<u8>) -> io::Result<()> {
        let at_once = if at < self.there { COMPARED_BYTES } else { bytes.len().max(1) };
        let mut places = (at..).step_by(at_once);
        bytes.chunks(at_once).zip(&mut places).try_for_each(|(bytes, at)| self.write_if_it_differs(at, bytes, before))
    }

    fn write_if_it_differs(&self, at: u64, bytes: &[u8], before: &mut Vec<u8>) -> io::Result<()> {
        if at.saturating_add(bytes.len() as u64) <= self.there {
            before.resize(bytes.len(), 0);
            self.file.read_exact_at(before, at)?;
            if before == bytes {
                return Ok(());
            }
        }
        self.file.write_all_at(bytes, at)?;
        self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}
