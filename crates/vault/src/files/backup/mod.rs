//! Backing up trees of files: walk, read, cut, store and assemble, on all cores and in bounded memory.
//!
//! ```text
//!   scanners ──ready directories──▶ this thread ──jobs──▶ workers: read, cut, put ──nodes──▶ assembler
//!   (walk.rs, on all cores)         (in order)            (work.rs, on all cores)           (assemble.rs)
//! ```
//!
//! This thread goes through the tree depth first, in the order of names, and gathers small files into groups, so what
//! is stored depends on the tree alone and never on the threads' timing.
//!
//! Invariant: whatever is not in the recovery point is in the summary's `skipped`, with the reason. A file that changed
//! while it was read is in `changed`. Neither fails the backup; a vault that cannot store does.

mod assemble;
mod large;
mod opened;
mod pages;
mod segments;
mod single;
mod small;
mod work;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use thiserror::Error;

use self::assemble::{Assembler, Content, Folder, LinkGroup, Slot};
use self::work::{Crew, Job, Task, is_sparse};
use super::cache::{Cache, CacheWriter};
use super::exclude::Excludes;
use super::metadata::Seen;
use super::pages::Maps;
use super::tree::{Link, Node, Root};
use super::walk::{Base, Entry, Found, Place, Scanner, Skipped};
use super::{Event, Progress};
use crate::{ChunkId, ChunkSink, SnapshotDraft, VaultError};

pub(super) use self::single::store_stream;
pub use self::single::{Stream, backup_bytes};

/// Files below this are chunked together with their neighbours.
const SMALL_BYTES_MAX: u64 = 1 << 20;
/// A group of neighbours is cut and stored once it has gathered this much: with one more they fill a buffer.
const GROUP_BYTES: u64 = work::SEGMENT_BYTES as u64 - SMALL_BYTES_MAX;
/// And this many files, so that a million empty files are no burden.
const GROUP_FILES_MAX: usize = 4 << 10;
/// What a summary lists by name; beyond it only the number grows.
const LISTED_MAX: usize = 10_000;

/// What and how to back up.
#[derive(Debug, Clone, Default)]
pub struct BackupOptions {
    pub excludes: Excludes,
    /// Do not descend into other mounted file systems. File systems that only show the kernel are left out always.
    pub one_file_system: bool,
    /// The file cache of this host for this vault and data set. Beside it, in a directory `….pages`, lies what is known of the pages
    /// of files that are rewritten in place.
    pub cache: Option<PathBuf>,
    /// Threads for reading and storing; 0 for one per core.
    pub threads: usize,
}

/// A backup that could not be made.
#[derive(Debug, Error)]
pub enum BackupError {
    #[error("there is nothing to back up: name at least one path")]
    NoRoots,
    #[error("{} cannot be backed up; check that it exists and may be read", path.display())]
    Root {
        path: PathBuf,
        #[source]
        source: Errno,
    },
    #[error("the stream could not be read to its end")]
    Stream(#[source] std::io::Error),
    #[error("the backup could not store its data in the vault; what was stored so far is kept, run it again to go on")]
    Store(#[source] VaultError),
    #[error("the backup was interrupted; what was stored so far is kept, run it again to go on")]
    Cancelled,
    #[error("the backup could not put its tree together, which is a mistake in lifeboat; please report it")]
    Incomplete,
}

/// What was backed up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeSummary {
    /// The chunk that everything hangs on.
    pub root: ChunkId,
    /// Every chunk the tree needs, the root's own among them: each once, in the order of the tree.
    pub references: Vec<ChunkId>,
    pub files: u64,
    pub directories: u64,
    /// The lengths of all files, holes included.
    pub bytes: u64,
    /// Bytes that were read; the rest was known from the cache.
    pub bytes_read: u64,
    /// Bytes the vault did not hold yet, before compression. (What they take up there, the sink knows.)
    pub bytes_new: u64,
    /// Left out on request.
    pub excluded: u64,
    /// Left out for another reason; the first 10,000.
    pub skipped: Vec<Skipped>,
    pub skipped_count: u64,
    /// Files that changed while they were read: what is stored is a mixture; the first 10,000.
    pub changed: Vec<PathBuf>,
    pub changed_count: u64,
    /// Why the file cache could not be written, if it could not: the next backup reads everything again.
    pub cache_failure: Option<String>,
}

impl TreeSummary {
    /// The recovery point that holds this tree; `tree_root` finds it again.
    pub fn draft(&self, source_time: Timestamp) -> SnapshotDraft {
        SnapshotDraft {
            root: self.root.as_bytes().to_vec(),
            references: self.references.clone(),
            source_time,
            files: self.files,
            bytes: self.bytes,
            notes: self.notes(),
            ..SnapshotDraft::default()
        }
    }

    /// What the recovery point should say about itself: what it lacks, what is a mixture.
    pub fn notes(&self) -> Vec<String> {
        let skipped = self.skipped.iter().map(|skipped| format!("{}: {}", skipped.path.display(), skipped.reason));
        let changed = self.changed.iter().map(|path| format!("{}: changed while it was read", path.display()));
        skipped.chain(changed).collect()
    }
}

/// Backs up the roots into one tree.
///
/// A single directory becomes the top of the tree; several roots stand in it under their names (under their paths below
/// the deepest directory they share, where two names are alike). Roots within other roots are taken once.
pub fn backup_tree(
    sink: &dyn ChunkSink,
    roots: &[PathBuf],
    options: &BackupOptions,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<TreeSummary, BackupError> {
    let roots = Roots::open(roots)?;
    let cache = options.cache.as_deref().and_then(Cache::open);
    let mut cache_failure = None;
    let writer = options.cache.as_deref().and_then(|path| {
        CacheWriter::create(path).map_err(|error| cache_failure = Some(format!("{}: {error}", path.display()))).ok()
    });
    let maps = options.cache.as_deref().map(|cache| {
        let mut directory = cache.as_os_str().to_owned();
        directory.push(".pages");
        Maps::new(Path::new(&directory), sink.memory_key())
    });
    let scanner = Scanner::new(sink, cache.as_ref(), &options.excludes, options.one_file_system);
    let assembler = Assembler::new(sink, writer.as_ref(), maps.as_ref(), progress);
    let threads = if options.threads == 0 { available_threads() } else { options.threads };
    let crew = Crew::new(&assembler, cancel, threads);

    let walked = std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| scanner.run());
            scope.spawn(|| crew.run());
        }
        let mut tour = Tour {
            scanner: &scanner,
            assembler: &assembler,
            crew: &crew,
            group: Group::default(),
            links: HashMap::new(),
            directories: 0,
        };
        let walked = tour.all(&roots);
        crew.close();
        scanner.close();
        walked
    });

    let result = crew.outcome(walked).and_then(|()| assembler.finish(roots.sources));
    let former = cache.as_ref().filter(|_| result.is_err());
    if let Some(Err(error)) = writer.map(|writer| writer.finish(former)) {
        cache_failure = Some(error.to_string());
    }
    if let Some(maps) = &maps {
        cache_failure = cache_failure.or_else(|| maps.failure());
        if result.is_ok() {
            maps.sweep();
        }
    }
    if result.is_err() {
        // The next attempt should find what this one stored. The first error is the one to tell.
        let _ = sink.checkpoint();
    }
    result.map(|summary| TreeSummary { cache_failure, ..summary })
}

pub(super) fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

/// The top of the tree: a directory, or several things under names.
enum Top {
    Directory(Arc<Base>),
    File { parent: Arc<Base>, name: Vec<u8> },
    Branch(BTreeMap<Vec<u8>, Top>),
}

struct Roots {
    top: Top,
    sources: Vec<Vec<u8>>,
}

impl Roots {
    fn open(paths: &[PathBuf]) -> Result<Self, BackupError> {
        let mut found: Vec<(PathBuf, Vec<u8>)> = Vec::new();
        for path in paths {
            let fail = |error: std::io::Error| BackupError::Root {
                path: path.clone(),
                source: Errno::from_io_error(&error).unwrap_or(Errno::IO),
            };
            // A root that is a symbolic link means what it leads to, under the link's own name.
            let real = path.canonicalize().map_err(fail)?;
            let own = std::path::absolute(path).map_err(fail)?;
            let name = own.file_name().or(real.file_name()).unwrap_or(OsStr::new("root")).as_bytes().to_vec();
            found.push((real, name));
        }
        found.sort();
        found.dedup_by(|later, first| later.0.starts_with(&first.0));
        let sources = found.iter().map(|(path, _)| path.as_os_str().as_bytes().to_vec()).collect();
        let top = match found.as_slice() {
            [] => return Err(BackupError::NoRoots),
            [(only, _)] if only.is_dir() => Top::Directory(open_base(only)?),
            _ => Top::Branch(Self::branch(&found)?),
        };
        Ok(Roots { top, sources })
    }

    fn branch(found: &[(PathBuf, Vec<u8>)]) -> Result<BTreeMap<Vec<u8>, Top>, BackupError> {
        let mut names: Vec<&Vec<u8>> = found.iter().map(|(_, name)| name).collect();
        names.sort();
        let alike = names.windows(2).any(|pair| pair.first() == pair.get(1));
        let shared = shared_ancestor(found.iter().map(|(path, _)| path.as_path()));
        let mut top = BTreeMap::new();
        for (path, name) in found {
            let leaf = open_top(path)?;
            let parts: Vec<Vec<u8>> = if alike {
                let below = path.strip_prefix(&shared).unwrap_or(path);
                below.components().map(|part| part.as_os_str().as_bytes().to_vec()).collect()
            } else {
                vec![name.clone()]
            };
            plant(&mut top, &parts, leaf);
        }
        Ok(top)
    }
}

fn plant(branch: &mut BTreeMap<Vec<u8>, Top>, parts: &[Vec<u8>], leaf: Top) {
    match parts {
        [] => {}
        [name] => {
            branch.insert(name.clone(), leaf);
        }
        [name, rest @ ..] => {
            let below = branch.entry(name.clone()).or_insert_with(|| Top::Branch(BTreeMap::new()));
            // Roots never lie within each other, so what is met here is a branch.
            if let Top::Branch(below) = below {
                plant(below, rest, leaf);
            }
        }
    }
}

fn shared_ancestor<'a>(paths: impl Iterator<Item = &'a Path>) -> PathBuf {
    paths
        .map(|path| path.parent().unwrap_or(path).to_owned())
        .reduce(|shared, path| {
            shared.components().zip(path.components()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect()
        })
        .unwrap_or_default()
}

fn open_base(path: &Path) -> Result<Arc<Base>, BackupError> {
    let fail = |source| BackupError::Root { path: path.to_owned(), source };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(fail)?;
    let dev = Seen::from(&rustix::fs::fstat(&fd).map_err(fail)?).dev;
    Ok(Arc::new(Base { fd, path: path.to_owned(), dev }))
}

fn open_top(path: &Path) -> Result<Top, BackupError> {
    if path.is_dir() {
        return Ok(Top::Directory(open_base(path)?));
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(BackupError::NoRoots) };
    Ok(Top::File { parent: open_base(parent)?, name: name.as_bytes().to_vec() })
}

/// Small files that wait to be read together.
#[derive(Default)]
struct Group {
    tasks: Vec<Task>,
    bytes: u64,
}

/// The way through the tree, in order.
struct Tour<'a> {
    scanner: &'a Scanner<'a>,
    assembler: &'a Assembler<'a>,
    crew: &'a Crew<'a>,
    group: Group,
    /// Files with several names whose other names may still come.
    links: HashMap<(u64, u64), (Arc<LinkGroup>, u64)>,
    /// Counts directories as they are met.
    directories: u64,
}

/// A directory with those below it that are still to be visited.
struct Visit {
    folder: Arc<Folder>,
    below: std::vec::IntoIter<(usize, Vec<u8>, Arc<Place>)>,
}

impl Tour<'_> {
    fn all(&mut self, roots: &Roots) -> Result<(), BackupError> {
        self.plant(&roots.top, Vec::new(), None)?;
        self.send_group()
    }

    fn plant(&mut self, top: &Top, name: Vec<u8>, above: Option<(Arc<Folder>, usize)>) -> Result<(), BackupError> {
        match top {
            Top::Directory(base) => {
                let place = Place::new(Arc::clone(base), PathBuf::new(), None);
                self.visit(&place, name, above, true)
            }
            Top::File { parent, name: real } => {
                let fail = |source| BackupError::Root { path: parent.full(Path::new(OsStr::from_bytes(real))), source };
                let stat =
                    rustix::fs::statat(&parent.fd, &real[..], rustix::fs::AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
                let seen = Seen::from(&stat);
                if seen.file_type() != FileType::RegularFile {
                    return Err(fail(Errno::INVAL));
                }
                let Some((folder, index)) = above else { return Err(BackupError::Incomplete) };
                let place = Place::new(Arc::clone(parent), PathBuf::new(), None);
                self.dispatch(Task {
                    folder,
                    index,
                    name,
                    place,
                    real: Some(real.clone()),
                    seen,
                    link: None,
                    former: None,
                })
            }
            Top::Branch(children) => {
                let folder = Folder::new(name, None, PathBuf::new(), children.len(), above, self.directories);
                for (index, (name, child)) in children.iter().enumerate() {
                    self.plant(child, name.clone(), Some((Arc::clone(&folder), index)))?;
                }
                self.assembler.release(&folder);
                Ok(())
            }
        }
    }

    /// Visits a directory and everything below it.
    fn visit(
        &mut self,
        place: &Arc<Place>,
        name: Vec<u8>,
        above: Option<(Arc<Folder>, usize)>,
        must: bool,
    ) -> Result<(), BackupError> {
        let mut visits = Vec::new();
        visits.extend(self.enter(place, name, above, must)?);
        while let Some(visit) = visits.last_mut() {
            let next = visit.below.next();
            let folder = Arc::clone(&visit.folder);
            match next {
                Some((index, name, place)) => visits.extend(self.enter(&place, name, Some((folder, index)), false)?),
                None => {
                    visits.pop();
                }
            }
        }
        Ok(())
    }

    fn enter(
        &mut self,
        place: &Arc<Place>,
        name: Vec<u8>,
        above: Option<(Arc<Folder>, usize)>,
        must: bool,
    ) -> Result<Option<Visit>, BackupError> {
        self.crew.check()?;
        self.directories += 1;
        let scanned = match self.scanner.take(place) {
            Ok(scanned) => scanned,
            Err(source) if must => return Err(BackupError::Root { path: place.full(), source }),
            Err(error) => {
                self.assembler.skip(place.full(), explain(error));
                if let Some((folder, index)) = above {
                    self.assembler.fill(&folder, index, Slot::Nothing);
                }
                return Ok(None);
            }
        };
        self.assembler.note_scan(scanned.references, scanned.skipped, scanned.excluded, self.directories);
        let folder =
            Folder::new(name, Some(scanned.metadata), place.full(), scanned.entries.len(), above, self.directories);
        let mut below = Vec::new();
        for (index, entry) in scanned.entries.into_iter().enumerate() {
            match entry.found {
                Found::Directory(place) => below.push((index, entry.name, place)),
                _ => self.take_file(place, &folder, index, entry)?,
            }
        }
        self.assembler.release(&folder);
        Ok(Some(Visit { folder, below: below.into_iter() }))
    }

    fn take_file(
        &mut self,
        place: &Arc<Place>,
        folder: &Arc<Folder>,
        index: usize,
        entry: Entry,
    ) -> Result<(), BackupError> {
        let Entry { name, seen, found } = entry;
        let relative = || place.relative.join(OsStr::from_bytes(&name));
        if let (Found::Node { memory: Some(_), .. }, Some(maps)) = (&found, self.assembler.maps)
            && (seen.size >= SMALL_BYTES_MAX || is_sparse(&seen))
        {
            maps.meet(place.base.full(&relative()).as_os_str().as_bytes());
        }
        if seen.file_type() != FileType::RegularFile || seen.links < 2 {
            return match found {
                Found::Node { encoded, memory } => {
                    let size = if seen.file_type() == FileType::RegularFile { Some(seen.size) } else { None };
                    self.assembler.fill(folder, index, Slot::Node(Content { name, encoded, size, memory }));
                    Ok(())
                }
                Found::File { former } => {
                    let (folder, place) = (Arc::clone(folder), Arc::clone(place));
                    self.dispatch(Task { folder, index, name, place, real: None, seen, link: None, former })
                }
                Found::Directory(_) => Ok(()),
            };
        }
        let (group, first) = self.link_group(&place.base, &relative(), &seen);
        if !first {
            self.assembler.share(&group, folder, index, name);
            return Ok(());
        }
        match found {
            Found::Node { encoded, memory } => {
                let Ok(node) = Node::decode(&mut minicbor::Decoder::new(&encoded), false) else {
                    return Err(BackupError::Incomplete);
                };
                self.assembler.fill_linked(&group, folder, index, Some((node, memory)));
                Ok(())
            }
            Found::File { former } => {
                let (folder, place) = (Arc::clone(folder), Arc::clone(place));
                self.dispatch(Task { folder, index, name, place, real: None, seen, link: Some(group), former })
            }
            Found::Directory(_) => Ok(()),
        }
    }

    /// The group of a file with several names, and whether this is the first of them.
    fn link_group(&mut self, base: &Base, relative: &Path, seen: &Seen) -> (Arc<LinkGroup>, bool) {
        let key = (seen.dev, seen.ino);
        if let Some((group, left)) = self.links.get_mut(&key) {
            let group = Arc::clone(group);
            *left -= 1;
            if *left == 0 {
                self.links.remove(&key);
            }
            return (group, false);
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(base.path.file_name().unwrap_or_default().as_bytes()).update(b"/");
        hasher.update(relative.as_os_str().as_bytes());
        let mut group = [0; 16];
        hasher.finalize_xof().fill(&mut group);
        let group = Arc::new(LinkGroup::new(Link { group, names: seen.links }));
        self.links.insert(key, (Arc::clone(&group), seen.links - 1));
        (group, true)
    }

    fn dispatch(&mut self, task: Task) -> Result<(), BackupError> {
        if task.seen.size >= SMALL_BYTES_MAX || task.is_sparse() {
            return self.crew.send(Job::Single(task));
        }
        self.group.bytes += task.seen.size;
        self.group.tasks.push(task);
        if self.group.bytes >= GROUP_BYTES || self.group.tasks.len() >= GROUP_FILES_MAX {
            return self.send_group();
        }
        Ok(())
    }

    fn send_group(&mut self) -> Result<(), BackupError> {
        let group = std::mem::take(&mut self.group);
        if group.tasks.is_empty() { Ok(()) } else { self.crew.send(Job::Group(group.tasks)) }
    }
}

/// Why something could not be read, for people.
pub(super) fn explain(error: Errno) -> String {
    match error {
        Errno::NOENT => "vanished while it was being read".to_owned(),
        Errno::ACCESS | Errno::PERM => "may not be read by this user".to_owned(),
        Errno::LOOP | Errno::NOTDIR => "was replaced by something else while it was being read".to_owned(),
        other => format!("cannot be read: {other}"),
    }
}

/// Stores the root object and adds everything up.
fn seal_root(
    sink: &dyn ChunkSink,
    top: Node,
    sources: Vec<Vec<u8>>,
    mut summary: TreeSummary,
) -> Result<TreeSummary, BackupError> {
    let root = Root { top, files: summary.files, bytes: summary.bytes, sources };
    let stored = sink.put(&root.encode()).map_err(BackupError::Store)?;
    summary.root = stored.id;
    if !summary.references.contains(&stored.id) {
        summary.references.push(stored.id);
    }
    Ok(summary)
}

fn report_skip(progress: &dyn Progress, skipped: &Skipped) {
    progress.report(&Event::Skipped(skipped));
}

fn is_set(flag: &AtomicBool) -> bool {
    flag.load(Ordering::Relaxed)
}
