//! Scanning directories ahead of the backup, on all cores, in the order the backup needs them.
//!
//! The backup goes depth first; scanners work on what it will ask for next and stop when enough is ready. What the
//! backup needs and nobody has begun it scans itself, so nothing can wait for ever.
//!
//! Invariant: no symbolic link below a root is followed, at any component; a scan opens paths beneath the root only.

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::cache::{Cache, Digest, Memory};
use super::exclude::Excludes;
use super::metadata::{self, Metadata, Seen};
use super::tree::{Kind, Node, Span};
use crate::{ChunkId, ChunkSink};

/// Scanned entries that may wait for the backup.
const READY_ENTRIES_MAX: usize = 16 << 10;

/// File systems that hold no data, only views of the kernel: proc, sysfs, cgroup (1, 2), devpts, debugfs, tracefs,
/// securityfs, bpf, mqueue, configfs, binfmt_misc.
const KERNEL_FILE_SYSTEMS: [u64; 12] = [
    0x9fa0,
    0x6265_6572,
    0x0027_e0eb,
    0x6367_7270,
    0x1cd1,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0xcafe_4a11,
    0x1980_0202,
    0x6265_6570,
    0x4249_4e4d,
];

/// Something that is not in the recovery point, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    pub path: PathBuf,
    pub reason: String,
}

/// A directory that was asked for (or the parent of a file that was).
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) fd: OwnedFd,
    pub(crate) path: PathBuf,
    pub(crate) dev: u64,
}

impl Base {
    /// The path as the user knows it.
    pub(crate) fn full(&self, relative: &Path) -> PathBuf {
        if relative.as_os_str().is_empty() { self.path.clone() } else { self.path.join(relative) }
    }
}

/// Opens a directory beneath another without following any link.
pub(crate) fn open_directory(base: BorrowedFd<'_>, relative: &Path) -> Result<OwnedFd, Errno> {
    open_beneath(base, relative, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Opens a path beneath a directory; no component may be a symbolic link.
pub(crate) fn open_beneath(base: BorrowedFd<'_>, relative: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let path = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(base, path, flags, Mode::empty(), resolve) {
        // An old kernel, a sandbox without the call, or a path beyond PATH_MAX: one component at a time.
        Err(Errno::NOSYS | Errno::NAMETOOLONG | Errno::PERM | Errno::AGAIN) => open_stepwise(base, path, flags),
        other => other,
    }
}

fn open_stepwise(base: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut parts = path.components().peekable();
    let mut current: Option<OwnedFd> = None;
    while let Some(part) = parts.next() {
        if !matches!(part, std::path::Component::Normal(_) | std::path::Component::CurDir) {
            return Err(Errno::XDEV);
        }
        let at = current.as_ref().map_or(base, |fd| fd.as_fd());
        let flags = if parts.peek().is_some() { step } else { flags };
        let next = rustix::fs::openat(at, part.as_os_str(), flags, Mode::empty())?;
        current = Some(next);
    }
    current.ok_or(Errno::NOENT)
}

/// What every scan needs to know.
pub(crate) struct Scanner<'a> {
    pub(crate) sink: &'a dyn ChunkSink,
    pub(crate) cache: Option<&'a Cache>,
    pub(crate) excludes: &'a Excludes,
    pub(crate) one_file_system: bool,
    queue: Mutex<Queue>,
    wake: Condvar,
}

struct Queue {
    stack: Vec<Arc<Place>>,
    ready_entries: usize,
    closed: bool,
}

/// A directory to scan, being scanned, or scanned.
pub(crate) struct Place {
    pub(crate) base: Arc<Base>,
    pub(crate) relative: PathBuf,
    above: Option<(Arc<Place>, (u64, u64))>,
    state: Mutex<State>,
    done: Condvar,
}

enum State {
    Waiting,
    Running,
    Ready(Result<Scanned, Errno>),
    Taken,
}

impl Place {
    pub(crate) fn new(base: Arc<Base>, relative: PathBuf, above: Option<(Arc<Place>, (u64, u64))>) -> Arc<Self> {
        Arc::new(Place { base, relative, above, state: Mutex::new(State::Waiting), done: Condvar::new() })
    }

    pub(crate) fn full(&self) -> PathBuf {
        self.base.full(&self.relative)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claim(&self) -> bool {
        let mut state = self.lock();
        let waiting = matches!(*state, State::Waiting);
        if waiting {
            *state = State::Running;
        }
        waiting
    }

    /// Whether a directory is one of those above (a mount may bring one back).
    fn is_above(&self, dev: u64, ino: u64) -> bool {
        let mut above = self.above.as_ref();
        while let Some((place, identity)) = above {
            if *identity == (dev, ino) {
                return true;
            }
            above = place.above.as_ref();
        }
        false
    }
}

/// What a directory holds.
pub(crate) struct Scanned {
    pub(crate) metadata: Metadata,
    /// Sorted by name.
    pub(crate) entries: Vec<Entry>,
    /// The chunks that cached nodes name, without repeats in a row.
    pub(crate) references: Vec<Referenced>,
    pub(crate) skipped: Vec<Skipped>,
    pub(crate) excluded: u64,
}

/// A chunk that a cached node names.
pub(crate) struct Referenced {
    pub(crate) id: ChunkId,
    /// The ordinals of the entry in its directory and of the chunk in the entry.
    pub(crate) entry: u32,
    pub(crate) ordinal: u32,
}

pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) seen: Seen,
    pub(crate) found: Found,
}

pub(crate) enum Found {
    Directory(Arc<Place>),
    /// To be read. If it turns out to have the `former` content, that is where it is stored.
    File {
        former: Option<Former>,
    },
    /// The encoded node: from the cache, or because nothing has to be read.
    Node {
        encoded: Vec<u8>,
        memory: Option<Memory>,
    },
}

/// Where the content with a digest is stored.
#[derive(Debug)]
pub(crate) struct Former {
    pub(crate) digest: Digest,
    pub(crate) spans: Vec<Span>,
}

impl<'a> Scanner<'a> {
    pub(crate) fn new(
        sink: &'a dyn ChunkSink,
        cache: Option<&'a Cache>,
        excludes: &'a Excludes,
        one_file_system: bool,
    ) -> Self {
        let queue = Mutex::new(Queue { stack: Vec::new(), ready_entries: 0, closed: false });
        Scanner { sink, cache, excludes, one_file_system, queue, wake: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the scanning threads.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_all();
    }

    /// Scans ahead until closed.
    pub(crate) fn run(&self) {
        while let Some(place) = self.next() {
            if place.claim() {
                self.fill(&place);
            }
        }
    }

    fn next(&self) -> Option<Arc<Place>> {
        let mut queue = self.lock();
        loop {
            if queue.closed {
                return None;
            }
            if queue.ready_entries < READY_ENTRIES_MAX
                && let Some(place) = queue.stack.pop()
            {
                return Some(place);
            }
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Scans a claimed place and offers what lies below it.
    fn fill(&self, place: &Arc<Place>) {
        let scanned = self.scan(place);
        if let Ok(scanned) = &scanned {
            let mut queue = self.lock();
            queue.ready_entries += scanned.entries.len();
            let below = scanned.entries.iter().rev().filter_map(|entry| match &entry.found {
                Found::Directory(place) => Some(Arc::clone(place)),
                _ => None,
            });
            queue.stack.extend(below);
            drop(queue);
            self.wake.notify_all();
        }
        *place.lock() = State::Ready(scanned);
        place.done.notify_all();
    }

    /// The content of a place; scans it now if nobody has begun.
    pub(crate) fn take(&self, place: &Arc<Place>) -> Result<Scanned, Errno> {
        if place.claim() {
            self.fill(place);
        }
        let mut state = place.lock();
        loop {
            match std::mem::replace(&mut *state, State::Taken) {
                State::Ready(scanned) => {
                    drop(state);
                    let entries = scanned.as_ref().map_or(0, |scanned| scanned.entries.len());
                    let mut queue = self.lock();
                    queue.ready_entries = queue.ready_entries.saturating_sub(entries);
                    drop(queue);
                    self.wake.notify_all();
                    return scanned;
                }
                State::Taken => return Err(Errno::ALREADY),
                busy => *state = busy,
            }
            state = place.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn scan(&self, place: &Arc<Place>) -> Result<Scanned, Errno> {
        let dir = open_directory(place.base.fd.as_fd(), &place.relative)?;
        let here = Seen::from(&rustix::fs::fstat(&dir)?);
        let mut scanned = Scanned {
            metadata: here.metadata(Vec::new()),
            entries: Vec::new(),
            references: Vec::new(),
            skipped: Vec::new(),
            excluded: 0,
        };
        let full = place.full();
        match metadata::read_xattrs(dir.as_fd()) {
            Ok(xattrs) => scanned.metadata.xattrs = xattrs,
            Err(error) => scanned.skip(full.clone(), format!("its extended attributes cannot be read: {error}")),
        }
        if here.dev != place.base.dev && (self.one_file_system || is_kernel_file_system(&dir)) {
            let kind = if self.one_file_system { "another file system" } else { "a file system of the kernel" };
            scanned.skip(full, format!("{kind} is mounted here; its content is left out"));
            return Ok(scanned);
        }
        let names = read_names(&dir)?;
        let mut known = self.cache.and_then(|cache| cache.directory(full.as_os_str().as_bytes()));
        scanned.entries.reserve(names.len());
        for name in names {
            let path = || place.relative.join(OsStr::from_bytes(&name));
            let seen = match rustix::fs::statat(&dir, &name[..], AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => Seen::from(&stat),
                Err(Errno::NOENT) => {
                    scanned.skip(place.base.full(&path()), "vanished while it was being read".to_owned());
                    continue;
                }
                Err(error) => {
                    scanned.skip(place.base.full(&path()), format!("cannot be read: {error}"));
                    continue;
                }
            };
            if !self.excludes.is_empty() && self.excludes.matches(&path(), seen.file_type() == FileType::Directory) {
                scanned.excluded += 1;
                continue;
            }
            if seen.file_type() == FileType::RegularFile {
                let known = known.as_mut().and_then(|known| known.node(&name));
                let found = self.recall(known, &seen, scanned.entries.len() as u32, &mut scanned.references);
                scanned.entries.push(Entry { name, seen, found });
                continue;
            }
            if let Some(found) = self.classify(place, &here, &dir, path(), &name, &seen, &mut scanned) {
                scanned.entries.push(Entry { name, seen, found });
            }
        }
        Ok(scanned)
    }

    #[allow(clippy::too_many_arguments)] // one entry of one directory, seen from all sides
    fn classify(
        &self,
        place: &Arc<Place>,
        here: &Seen,
        dir: &OwnedFd,
        path: PathBuf,
        name: &[u8],
        seen: &Seen,
        scanned: &mut Scanned,
    ) -> Option<Found> {
        let full = || place.base.full(&path);
        let kind = match seen.file_type() {
            FileType::Directory => {
                if (here.dev, here.ino) == (seen.dev, seen.ino) || place.is_above(seen.dev, seen.ino) {
                    scanned.skip(full(), "leads back to a directory above it; not followed".to_owned());
                    return None;
                }
                let above = Some((Arc::clone(place), (here.dev, here.ino)));
                return Some(Found::Directory(Place::new(Arc::clone(&place.base), path, above)));
            }
            FileType::RegularFile => return Some(Found::File { former: None }),
            FileType::Symlink => match rustix::fs::readlinkat(dir, name, Vec::new()) {
                Ok(target) => Kind::Symlink { target: target.into_bytes() },
                Err(error) => {
                    scanned.skip(full(), format!("cannot be read: {error}"));
                    return None;
                }
            },
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => {
                scanned.skip(full(), "is a socket: the program that listens on it makes it anew".to_owned());
                return None;
            }
            FileType::BlockDevice | FileType::CharacterDevice => {
                scanned.skip(full(), "is a device: the operating system makes it anew".to_owned());
                return None;
            }
            FileType::Unknown => {
                scanned.skip(full(), "is of an unknown kind".to_owned());
                return None;
            }
        };
        let xattrs = match metadata::read_xattrs_at(dir.as_fd(), name) {
            Ok(xattrs) => xattrs,
            Err(error) => {
                scanned.skip(full(), format!("its extended attributes cannot be read: {error}"));
                Vec::new()
            }
        };
        let node = Node { name: name.to_vec(), kind, metadata: Some(seen.metadata(xattrs)), link: None };
        Some(Found::Node { encoded: node.encoded(), memory: None })
    }

    /// What the cache knows of a regular file, if the vault still holds it.
    fn recall(
        &self,
        known: Option<(&[u8], Memory)>,
        seen: &Seen,
        entry: u32,
        references: &mut Vec<Referenced>,
    ) -> Found {
        let decoded = known.and_then(|(encoded, memory)| {
            let node = Node::decode(&mut minicbor::Decoder::new(encoded), false).ok()?;
            Some((encoded, memory, node))
        });
        match decoded {
            Some((encoded, memory, node)) if memory.holds(seen) && self.is_stored(&node, entry, references) => {
                Found::Node { encoded: encoded.to_vec(), memory: Some(memory) }
            }
            Some((_, Memory { digest: Some(digest), .. }, node)) if self.is_stored(&node, entry, &mut Vec::new()) => {
                match node.kind {
                    Kind::File { spans, .. } => Found::File { former: Some(Former { digest, spans }) },
                    _ => Found::File { former: None },
                }
            }
            _ => Found::File { former: None },
        }
    }

    /// Whether the vault still holds every chunk of a cached node; if so, they are added to `references`.
    fn is_stored(&self, node: &Node, entry: u32, references: &mut Vec<Referenced>) -> bool {
        let before = references.len();
        for (id, ordinal) in node.placed_chunk_ids() {
            // Neighbours mostly share a chunk.
            if references.last().is_none_or(|last| last.id != id) {
                if !self.sink.contains(&id) {
                    references.truncate(before);
                    return false;
                }
                references.push(Referenced { id, entry, ordinal });
            }
        }
        true
    }
}

impl Scanned {
    fn skip(&mut self, path: PathBuf, reason: String) {
        self.skipped.push(Skipped { path, reason });
    }
}

pub(crate) fn is_kernel_file_system(dir: &OwnedFd) -> bool {
    #[allow(clippy::unnecessary_cast)] // the width differs between architectures
    rustix::fs::fstatfs(dir).is_ok_and(|stat| KERNEL_FILE_SYSTEMS.contains(&(stat.f_type as u64 & 0xffff_ffff)))
}

/// The names in a directory, sorted by their bytes.
pub(crate) fn read_names(dir: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut buffer = [MaybeUninit::uninit(); 32 << 10];
    let mut entries = rustix::fs::RawDir::new(dir, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// A path from bytes, as they are.
pub(crate) fn path_from(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}
