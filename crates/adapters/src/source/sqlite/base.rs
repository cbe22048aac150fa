//! A snapshot's content on its way into a file, on all cores.
//!
//! Invariant: when it answers `Ok`, the file has the snapshot's bytes and size, whatever lay in it before.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt, fchown};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use lifeboat_engine::port::Cancel;
use lifeboat_vault::files::{Browser, Kind, Metadata, Node, Span, TreeError};
use lifeboat_vault::{ChunkId, ChunkSource, PointInfo, Source, Unlocked};

use super::copy::RestoreError;

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

type Run = Vec<(u64, Span)>;

/// Neighbours that lie in one frame are one thread's work, so that nothing is unpacked twice. Frames are told by the upper
/// half of a place.
fn runs(source: &Source, spans: &[Span]) -> Vec<Run> {
    let frame = |span: &Span| match span {
        Span::Data { id, .. } => source.place(id).map(|(pack, place)| (pack, place >> 32)),
        Span::Hole { .. } => None,
    };
    let (mut runs, mut last, mut at) = (Vec::<Run>::new(), None, 0u64);
    for span in spans {
        let here = frame(span);
        match runs.last_mut().filter(|_| here.is_some() && here == last) {
            Some(run) => run.push((at, *span)),
            None => runs.push(vec![(at, *span)]),
        }
        last = here;
        at = at.saturating_add(span.length());
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
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let failure = Mutex::new(None);
        let work = || {
            let mut before = Vec::new();
            while let Some(run) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let done = match cancel.is_cancelled() {
                    true => Err(RestoreError::Cancelled),
                    false => run.iter().try_for_each(|(at, span)| self.write(*at, span, &mut before)),
                };
                if let Err(error) = done {
                    stop.store(true, Ordering::Relaxed);
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(runs.len());
        std::thread::scope(|scope| {
            (1..threads).for_each(|_| drop(scope.spawn(work)));
            work();
        });
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    fn write(&self, at: u64, span: &Span, before: &mut Vec<u8>) -> Result<(), RestoreError> {
        let failed = RestoreError::file("write", self.path);
        match span {
            Span::Data { id, offset, length } => {
                let tree = |source| RestoreError::Tree { point: self.point.id.clone(), source };
                let chunk = self.source.get(id).map_err(|source| tree(TreeError::Chunk(source)))?;
                let (start, end) = (*offset as usize, *offset as usize + *length as usize);
                let what = "a piece that reaches beyond its chunk";
                let bytes = chunk.get(start..end).ok_or_else(|| tree(TreeError::Damaged { what }))?;
                self.write_where_it_differs(at, bytes, before).map_err(failed)
            }
            // What was cut or never there reads as zeros already.
            Span::Hole { length } => {
                let zeros = vec![0; HOLE_BYTES as usize];
                let end = at.saturating_add(*length).min(self.there);
                let mut at = at;
                while at < end {
                    let now = (end - at).min(HOLE_BYTES);
                    let piece = zeros.get(..now as usize).unwrap_or_default();
                    self.write_where_it_differs(at, piece, before).map_err(RestoreError::file("write", self.path))?;
                    at += now;
                }
                Ok(())
            }
        }
    }

    fn write_where_it_differs(&self, at: u64, bytes: &[u8], before: &mut Vec<u8>) -> io::Result<()> {
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
