//! Walking the tree for a restore: directories, symbolic links and FIFOs are made here; files are gathered into batches.
//!
//! Invariant: at any time only one directory's entries, the directories still to do and two batches are in memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::place::MARKER;
use super::write::FileWork;
use super::{Job, RestoreError, add};
use crate::ChunkId;
use crate::files::Event;
use crate::files::browse::Browser;
use crate::files::metadata::{self, Metadata, Seen};
use crate::files::tree::{Kind, Node, Span, TreeError};
use crate::files::walk::{open_beneath, open_directory, read_names};

/// A batch is written when it has gathered so many files or pieces.
const BATCH_FILES_MAX: usize = 32 << 10;
/// The first batch is small, so that writing begins at once.
const BATCH_FILES_FIRST: usize = 2 << 10;
const BATCH_PIECES_MAX: usize = 128 << 10;

/// Which parts of the tree are wanted.
#[derive(Debug, Clone, Default)]
pub(super) struct Selection {
    all: bool,
    below: BTreeMap<Vec<u8>, Selection>,
}

impl Selection {
    pub(super) fn new(paths: &[PathBuf]) -> Self {
        let mut top = Selection { all: paths.is_empty(), below: BTreeMap::new() };
        for path in paths {
            let mut at = &mut top;
            for part in path.components() {
                if let Component::Normal(name) = part {
                    at = at.below.entry(name.as_bytes().to_vec()).or_default();
                }
            }
            at.all = true;
        }
        top
    }

    /// Whether everything here is wanted.
    pub(super) fn is_all(&self) -> bool {
        self.all
    }

    /// What must be here by name.
    pub(super) fn names(&self) -> BTreeSet<&[u8]> {
        if self.all { BTreeSet::new() } else { self.below.keys().map(Vec::as_slice).collect() }
    }

    pub(super) fn child(&self, name: &[u8]) -> Option<Selection> {
        if self.all {
            return Some(Selection { all: true, below: BTreeMap::new() });
        }
        self.below.get(name).cloned()
    }
}

/// A directory to do.
struct Place {
    path: PathBuf,
    node: Node,
    selection: Selection,
    /// What was restored there before.
    base: Option<Node>,
}

/// A piece of a chunk that belongs into a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub(super) id: ChunkId,
    /// Which file of the batch.
    pub(super) file: u32,
    pub(super) offset: u32,
    pub(super) length: u32,
    pub(super) position: u64,
}

/// Files and the pieces they are made of.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) files: Vec<FileWork>,
    pub(super) pieces: Vec<Piece>,
}

/// What has to wait until all files are written: further names, then the directories' metadata, deepest first.
#[derive(Default)]
pub(super) struct Afterwards {
    links: Vec<(PathBuf, PathBuf)>,
    directories: Vec<(PathBuf, Metadata)>,
}

pub(super) struct Planner<'a> {
    job: &'a Job<'a>,
    browser: &'a Browser<'a>,
    base: Option<&'a Browser<'a>>,
    sender: SyncSender<Batch>,
    batch: Batch,
    batch_files: usize,
    /// By link group: the first name, and what stood behind it.
    firsts: HashMap<[u8; 16], (PathBuf, blake3::Hash)>,
    after: Afterwards,
}

impl<'a> Planner<'a> {
    pub(super) fn new(
        job: &'a Job<'a>,
        browser: &'a Browser<'a>,
        base: Option<&'a Browser<'a>>,
        sender: SyncSender<Batch>,
    ) -> Self {
        let (batch, after) = (Batch::default(), Afterwards::default());
        Planner { job, browser, base, sender, batch, batch_files: BATCH_FILES_FIRST, firsts: HashMap::new(), after }
    }

    /// Goes through the wanted part of the tree.
    pub(super) fn run(mut self, selection: Selection) -> Result<Afterwards, RestoreError> {
        let (node, base) = (self.browser.root().top.clone(), self.base.map(|base| base.root().top.clone()));
        let mut waiting = vec![Place { path: PathBuf::new(), node, selection, base }];
        let result = loop {
            let Some(place) = waiting.pop() else { break Ok(()) };
            match self.job.check().and_then(|()| self.directory(&place)) {
                Ok(below) => waiting.extend(below.into_iter().rev()),
                Err(error) => break Err(error),
            }
        };
        if let Err(error) = result {
            if !matches!(error, RestoreError::Cancelled { .. }) {
                self.job.stop.store(true, std::sync::atomic::Ordering::Relaxed);
                self.job.failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
            }
            return Ok(self.after);
        }
        self.send();
        Ok(self.after)
    }

    fn send(&mut self) {
        self.batch_files = (self.batch_files * 2).min(BATCH_FILES_MAX);
        // The receiver outlives the walk.
        let _ = self.sender.send(std::mem::take(&mut self.batch));
    }

    /// Does one directory; what lies below it is still to do.
    fn directory(&mut self, place: &Place) -> Result<Vec<Place>, RestoreError> {
        let Place { path, node, selection, .. } = place;
        let job = self.job;
        let mut base = self.base_entries(place);
        let fail = |source| job.write_error(path)(source);
        let dir = open_directory(job.ground.fd().as_fd(), path).map_err(fail)?;
        let folder = Arc::new(path.to_owned());
        let remove = selection.all && job.ground.removes_extra(job.options);
        let mut extra = if remove { read_names(&dir).map_err(fail)? } else { Vec::new() };
        let mut below = Vec::new();
        for entry in self.browser.entries(node).map_err(RestoreError::Tree)? {
            let entry = entry.map_err(RestoreError::Tree)?;
            if remove && let Ok(found) = extra.binary_search(&entry.name) {
                extra.remove(found);
            }
            let Some(selection) = selection.child(&entry.name) else { continue };
            let relative = path.join(OsStr::from_bytes(&entry.name));
            let former = base.remove(&entry.name);
            match &entry.kind {
                Kind::Directory(_) => {
                    let made = self.make_directory(&dir, &entry, &relative)?;
                    if let Some(metadata) = entry.metadata.clone().filter(|_| made || selection.all) {
                        self.after.directories.push((relative.clone(), metadata));
                    }
                    below.push(Place { path: relative, node: entry, selection, base: former });
                }
                Kind::File { .. } => {
                    let there = former.is_some_and(|former| former == entry) && is_unchanged(&dir, &entry);
                    self.file(&folder, entry, relative, there)?;
                }
                Kind::Symlink { .. } | Kind::Fifo => self.special(&dir, &entry, &relative)?,
            }
        }
        for name in extra {
            if !(path.as_os_str().is_empty() && name == MARKER.as_bytes()) {
                remove_all(job, &dir, &name, &path.join(OsStr::from_bytes(&name)))?;
            }
        }
        Ok(below)
    }

    /// What the tree that was restored before had in this directory.
    fn base_entries(&self, place: &Place) -> HashMap<Vec<u8>, Node> {
        let (Some(base), Some(former)) = (self.base, &place.base) else { return HashMap::new() };
        // What cannot be read of it is not there: then blocks are compared.
        let entries = base.entries(former).into_iter().flatten();
        entries.filter_map(Result::ok).map(|node| (node.name.clone(), node)).collect()
    }

    /// Makes a directory, or makes do with the one that is there; whether it is new.
    fn make_directory(&self, dir: &OwnedFd, node: &Node, relative: &Path) -> Result<bool, RestoreError> {
        let job = self.job;
        let fail = || job.write_error(relative);
        add(&job.directories, 1);
        match rustix::fs::mkdirat(dir, &node.name[..], Mode::RWXU) {
            Err(Errno::EXIST) if job.ground.compares() => {}
            other => return other.map(|()| true).map_err(fail()),
        }
        let stat = rustix::fs::statat(dir, &node.name[..], AtFlags::SYMLINK_NOFOLLOW).map_err(fail())?;
        let seen = Seen::from(&stat);
        if seen.file_type() != FileType::Directory {
            rustix::fs::unlinkat(dir, &node.name[..], AtFlags::empty()).map_err(fail())?;
            return rustix::fs::mkdirat(dir, &node.name[..], Mode::RWXU).map(|()| true).map_err(fail());
        }
        if seen.mode & 0o700 != 0o700 && !rustix::process::geteuid().is_root() {
            let fd = open_beneath(dir.as_fd(), Path::new(OsStr::from_bytes(&node.name)), OFlags::DIRECTORY);
            let open = fd.and_then(|fd| rustix::fs::fchmod(fd, Mode::from_raw_mode(seen.mode & 0o7777 | 0o700)));
            open.map_err(fail())?;
        }
        Ok(false)
    }

    /// Queues a file, or a further name of one.
    fn file(&mut self, folder: &Arc<PathBuf>, node: Node, relative: PathBuf, there: bool) -> Result<(), RestoreError> {
        if let Some(link) = &node.link {
            let mut content = Vec::new();
            Node { name: b"-".to_vec(), metadata: None, ..node.clone() }.encode(&mut content);
            let content = blake3::hash(&content);
            match self.firsts.get(&link.group) {
                Some((first, same)) if *same == content => {
                    add(&self.job.files, 1);
                    add(&self.job.bytes, node.size());
                    self.after.links.push((relative, first.clone()));
                    return Ok(());
                }
                Some(_) => {} // a group that is none: a file of its own
                None => {
                    self.firsts.insert(link.group, (relative, content));
                }
            }
        }
        if there {
            add(&self.job.files, 1);
            add(&self.job.bytes, node.size());
            add(&self.job.kept, 1);
            self.job.progress.report(&Event::Files(1));
            return Ok(());
        }
        let Kind::File { size, spans } = node.kind else { return Ok(()) };
        let Ok(file) = u32::try_from(self.batch.files.len()) else {
            return Err(RestoreError::Tree(TreeError::Damaged { what: "too many files at once" }));
        };
        let (mut position, mut holes, before) = (0, Vec::new(), self.batch.pieces.len());
        for span in &spans {
            match *span {
                Span::Data { id, offset, length } => {
                    self.batch.pieces.push(Piece { id, file, offset, length, position });
                }
                Span::Hole { length } => holes.push((position, length)),
            }
            position += span.length();
        }
        let pieces = self.batch.pieces.len() - before;
        let names = node.link.map_or(1, |link| link.names);
        self.batch.files.push(FileWork::new(Arc::clone(folder), node.name, node.metadata, size, holes, pieces, names));
        if self.batch.files.len() >= self.batch_files || self.batch.pieces.len() >= BATCH_PIECES_MAX {
            self.send();
        }
        Ok(())
    }

    /// Makes a symbolic link or a FIFO.
    fn special(&self, dir: &OwnedFd, node: &Node, relative: &Path) -> Result<(), RestoreError> {
        let job = self.job;
        let make = || match &node.kind {
            Kind::Symlink { target } => rustix::fs::symlinkat(&target[..], dir, &node.name[..]),
            _ => rustix::fs::mknodat(dir, &node.name[..], FileType::Fifo, Mode::RUSR | Mode::WUSR, 0),
        };
        match make() {
            Err(Errno::EXIST) if job.ground.compares() => {
                if !is_there(dir, node) {
                    clear(job, dir, &node.name, relative)?;
                    make().map_err(job.write_error(relative))?;
                }
            }
            other => other.map_err(job.write_error(relative))?,
        }
        if let Some(metadata) = &node.metadata {
            let symlink = matches!(node.kind, Kind::Symlink { .. });
            let refused = metadata::apply_at(dir.as_fd(), &node.name, metadata, job.options.owners, symlink);
            job.note(relative, refused);
        }
        Ok(())
    }
}

/// Whether a file still has the length and time of change that it was restored with.
fn is_unchanged(dir: &OwnedFd, node: &Node) -> bool {
    let Some(metadata) = &node.metadata else { return false };
    rustix::fs::statat(dir, &node.name[..], AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| {
        let seen = Seen::from(&stat);
        let time = (metadata.mtime_seconds, metadata.mtime_nanos);
        seen.file_type() == FileType::RegularFile && seen.size == node.size() && seen.mtime == time
    })
}

/// Whether the same symbolic link, or a FIFO, stands there already.
fn is_there(dir: &OwnedFd, node: &Node) -> bool {
    match &node.kind {
        Kind::Symlink { target } => {
            rustix::fs::readlinkat(dir, &node.name[..], Vec::new()).is_ok_and(|found| found.as_bytes() == &target[..])
        }
        _ => rustix::fs::statat(dir, &node.name[..], AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| Seen::from(&stat).file_type() == FileType::Fifo),
    }
}

/// Makes room for something that is no directory.
pub(super) fn clear(job: &Job<'_>, dir: &OwnedFd, name: &[u8], relative: &Path) -> Result<(), RestoreError> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {
            if rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR).is_ok() {
                return Ok(());
            }
            if job.ground.removes_extra(job.options) {
                return remove_all(job, dir, name, relative);
            }
            Err(RestoreError::InTheWay { path: job.ground.path().join(relative) })
        }
        Err(source) => Err(job.write_error(relative)(source)),
    }
}

/// Removes a name and everything below it, without following links or leaving the file system.
fn remove_all(job: &Job<'_>, dir: &OwnedFd, name: &[u8], relative: &Path) -> Result<(), RestoreError> {
    let fail = |source| job.write_error(relative)(source);
    let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        other => Seen::from(&other.map_err(fail)?),
    };
    if stat.file_type() == FileType::Directory {
        if stat.dev != Seen::from(&rustix::fs::fstat(dir).map_err(fail)?).dev {
            job.note(relative, vec!["is extra, but another file system is mounted here: left as it is".to_owned()]);
            return Ok(());
        }
        let inner = open_directory(dir.as_fd(), Path::new(OsStr::from_bytes(name))).map_err(fail)?;
        for below in read_names(&inner).map_err(fail)? {
            remove_all(job, &inner, &below, &relative.join(OsStr::from_bytes(&below)))?;
        }
        match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::BUSY) => {} // a mount below was left
            other => other.map_err(fail)?,
        }
    } else {
        rustix::fs::unlinkat(dir, name, AtFlags::empty()).map_err(fail)?;
    }
    add(&job.removed, 1);
    Ok(())
}

impl Afterwards {
    /// Makes the further names, then gives the directories their metadata.
    pub(super) fn apply(self, job: &Job<'_>) -> Result<(), RestoreError> {
        let ground = job.ground.fd().as_fd();
        let split = |path: &Path| {
            let name = path.file_name().unwrap_or_default().as_bytes().to_vec();
            (path.parent().map(Path::to_owned).unwrap_or_default(), name)
        };
        for (path, first) in &self.links {
            let fail = || job.write_error(path);
            let ((folder, name), (first_folder, first_name)) = (split(path), split(first));
            let to = open_directory(ground, &folder).map_err(fail())?;
            let from = open_directory(ground, &first_folder).map_err(fail())?;
            let link = || rustix::fs::linkat(&from, &first_name[..], &to, &name[..], AtFlags::empty());
            match link() {
                Err(Errno::EXIST) if job.ground.compares() => {
                    let inode = |dir: &OwnedFd, name: &[u8]| {
                        rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| (stat.st_dev, stat.st_ino))
                    };
                    if inode(&to, &name).map_err(fail())? != inode(&from, &first_name).map_err(fail())? {
                        clear(job, &to, &name, path)?;
                        link().map_err(fail())?;
                    }
                }
                other => other.map_err(fail())?,
            }
        }
        for (path, metadata) in self.directories.iter().rev() {
            let dir = open_directory(ground, path).map_err(job.write_error(path))?;
            job.note(path, metadata::apply(dir.as_fd(), metadata, job.options.owners, None));
        }
        Ok(())
    }
}
