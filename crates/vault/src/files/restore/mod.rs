//! Restoring a tree, all of it or a part, into an empty place or over what is there.
//!
//! ```text
//!   plan.rs: walks the tree, makes directories and links, gathers files ──batches──▶ write.rs: chunks in the order of
//!                                                                                     packs, files in parallel
//!   place.rs: a staging directory beside the target, renamed into place when everything is durable
//! ```
//!
//! Invariant: a target that looks whole is whole. Until the end the files are in a staging directory with a telling name
//! (or, over existing files, beside a marker). No symbolic link is followed, whatever the tree or the target holds.

mod needs;
mod place;
mod plan;
mod write;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use thiserror::Error;

pub use self::needs::{ArchivedNeeds, archived_needs};
use self::place::Ground;
use self::plan::{Batch, Planner, Selection};
use super::backup::available_threads;
use super::browse::Browser;
use super::tree::TreeError;
use super::{Event, Progress};
use crate::{ChunkId, ChunkSource, VaultError};

/// What and how to restore.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// Paths in the tree; everything if empty.
    pub paths: Vec<PathBuf>,
    /// Over existing files, writing only what differs.
    pub in_place: bool,
    /// In place: remove what the recovery point does not have.
    pub delete_extra: bool,
    /// In place: the tree that was restored here before. A file that is alike in both, and still has its length and time
    /// of change, is not fetched again. Without it every block is compared.
    pub base: Option<ChunkId>,
    /// Restore owners and groups; needs the rights to give files away.
    pub owners: bool,
    /// Threads for reading and writing; 0 for one per core.
    pub threads: usize,
}

impl Default for RestoreOptions {
    /// Owners are restored when this process may.
    fn default() -> Self {
        let owners = rustix::process::geteuid().is_root();
        RestoreOptions { paths: Vec::new(), in_place: false, delete_extra: false, base: None, owners, threads: 0 }
    }
}

/// A restore that could not be done.
#[derive(Debug, Error)]
pub enum RestoreError {
    #[error("{} is not empty; restore to an empty or new directory, or in place to change it to the recovery point", path.display())]
    NotEmpty { path: PathBuf },
    #[error("{} is not a directory; name a directory to restore to", path.display())]
    NotDirectory { path: PathBuf },
    #[error("another restore is at work in {}; wait for it to end", path.display())]
    Busy { path: PathBuf },
    #[error("{} belongs to another user; remove it, or restore elsewhere", path.display())]
    ForeignStaging { path: PathBuf },
    #[error("a directory stands where the recovery point has a file: {}; move it away, or restore with deletion of what is extra", path.display())]
    InTheWay { path: PathBuf },
    #[error("{} could not be written; make room or correct the permissions, then run the restore again: it goes on where it stopped", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: Errno,
    },
    #[error("{} was changed by someone else during the restore; keep others away from it, then run the restore again", path.display())]
    Disturbed { path: PathBuf },
    #[error("the recovery point's tree cannot be read")]
    Tree(#[source] TreeError),
    #[error("{} cannot be restored from the vault; check the vault, or restore another point", path.display())]
    Chunk {
        path: PathBuf,
        #[source]
        source: VaultError,
    },
    #[error("what recovery point {point} needs of the archive cannot be found out")]
    Vault {
        point: String,
        #[source]
        source: VaultError,
    },
    #[error("the restore was interrupted; what it restored is in {}: run it again to go on, or delete that", staging.display())]
    Cancelled { staging: PathBuf },
}

/// Something that was restored differently from how it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub path: PathBuf,
    pub what: String,
}

/// What was restored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restored {
    pub files: u64,
    pub directories: u64,
    /// The lengths of the restored files, holes included.
    pub bytes: u64,
    /// Every chunk matched its id, every file its length. (A restore that finds otherwise fails.)
    pub verified: bool,
    /// Files that were left as they are because `base` says that they are there.
    pub kept: u64,
    /// What was written to files: in place, only what differed.
    pub written_bytes: u64,
    /// Names that were removed in place because the recovery point does not have them.
    pub removed: u64,
    /// The restore went on with what an interrupted one had left.
    pub resumed: bool,
    /// The first 10,000.
    pub notes: Vec<Note>,
    pub notes_count: u64,
}

const NOTES_MAX: usize = 10_000;

/// What all parts of a restore share.
struct Job<'a> {
    source: &'a dyn ChunkSource,
    options: &'a RestoreOptions,
    ground: &'a Ground,
    progress: &'a dyn Progress,
    cancel: &'a AtomicBool,
    stop: AtomicBool,
    failure: Mutex<Option<RestoreError>>,
    notes: Mutex<(Vec<Note>, u64)>,
    files: AtomicU64,
    directories: AtomicU64,
    bytes: AtomicU64,
    written_bytes: AtomicU64,
    removed: AtomicU64,
    kept: AtomicU64,
}

/// Restores a tree, or the parts that `options.paths` name, to the directory `to`.
///
/// A part keeps its path: `docs/a.txt` is restored to `TO/docs/a.txt`. Sockets and devices are not in a recovery point;
/// FIFOs are made anew.
pub fn restore_tree(
    source: &dyn ChunkSource,
    root: &ChunkId,
    to: &Path,
    options: &RestoreOptions,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<Restored, RestoreError> {
    let browser = Browser::open(source, root).map_err(RestoreError::Tree)?;
    for path in &options.paths {
        browser.find(path).map_err(RestoreError::Tree)?; // before anything is written
    }
    if options.paths.is_empty() {
        progress.report(&Event::Expected { files: browser.root().files, bytes: browser.root().bytes });
    }
    let ground = Ground::prepare(to, root, options)?;
    // After an interruption the target is a mixture: then the base is not what is there.
    let base = options.base.as_ref().filter(|_| ground.holds_base()).and_then(|base| Browser::open(source, base).ok());
    let job = Job::new(source, options, &ground, progress, cancel);
    let after = job.fill(&browser, base.as_ref())?;
    let restored = job.report();
    after.apply(&job)?;
    let top = browser.root().top.metadata.as_ref().filter(|_| options.paths.is_empty());
    ground.finish(top, options.owners, &job)?;
    let (notes, notes_count) = job.take_notes();
    Ok(Restored { notes, notes_count, ..restored })
}

impl<'a> Job<'a> {
    fn new(
        source: &'a dyn ChunkSource,
        options: &'a RestoreOptions,
        ground: &'a Ground,
        progress: &'a dyn Progress,
        cancel: &'a AtomicBool,
    ) -> Self {
        Job {
            source,
            options,
            ground,
            progress,
            cancel,
            stop: AtomicBool::new(false),
            failure: Mutex::new(None),
            notes: Mutex::default(),
            files: AtomicU64::new(0),
            directories: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            removed: AtomicU64::new(0),
            kept: AtomicU64::new(0),
        }
    }

    /// Walks the tree in one thread while the batches it gives are written by all.
    fn fill(&self, browser: &Browser<'_>, base: Option<&Browser<'_>>) -> Result<plan::Afterwards, RestoreError> {
        let threads = if self.options.threads == 0 { available_threads() } else { self.options.threads };
        let selection = Selection::new(&self.options.paths);
        let planned = std::thread::scope(|scope| {
            let (sender, batches) = sync_channel::<Batch>(1);
            let planner = scope.spawn(move || Planner::new(self, browser, base, sender).run(selection));
            for batch in batches {
                if self.check().is_ok() {
                    batch.write(self, threads);
                }
            }
            planner.join()
        });
        if let Some(error) = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error);
        }
        self.check()?;
        planned.unwrap_or(Err(RestoreError::Disturbed { path: self.ground.path().to_owned() }))
    }

    fn check(&self) -> Result<(), RestoreError> {
        if self.cancel.load(Ordering::Relaxed) || self.stop.load(Ordering::Relaxed) {
            return Err(RestoreError::Cancelled { staging: self.ground.path().to_owned() });
        }
        Ok(())
    }

    /// Keeps the first failure and ends the others' work.
    fn fail(&self, error: RestoreError) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.stop.store(true, Ordering::Relaxed);
    }

    fn note(&self, path: &Path, what: Vec<String>) {
        if what.is_empty() {
            return;
        }
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        for what in what {
            notes.1 += 1;
            if notes.0.len() < NOTES_MAX {
                notes.0.push(Note { path: path.to_owned(), what });
            }
        }
    }

    fn take_notes(&self) -> (Vec<Note>, u64) {
        let (mut notes, count) = std::mem::take(&mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner));
        notes.sort_by(|a, b| a.path.cmp(&b.path));
        (notes, count)
    }

    /// An error about a path in the tree, shown where it is (or will be) in the target.
    fn write_error(&self, relative: &Path) -> impl FnOnce(Errno) -> RestoreError + use<> {
        let path = self.ground.path().join(relative);
        move |source| RestoreError::Write { path, source }
    }

    fn report(&self) -> Restored {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Restored {
            files: count(&self.files),
            directories: count(&self.directories),
            bytes: count(&self.bytes),
            verified: true,
            written_bytes: count(&self.written_bytes),
            removed: count(&self.removed),
            kept: count(&self.kept),
            resumed: self.ground.resumed(),
            ..Restored::default()
        }
    }
}

fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}
