//! What differs between a tree and a directory of this machine: what a restore would change there, or a backup would find.
//!
//! Where size and time of change are alike a file counts as unchanged, as for a backup, unless every file is to be read. Invariants: nothing on
//! the disk is changed, and no symbolic link below the directory is followed; what cannot be looked at is told, and never called alike.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, OFlags, SeekFrom};
use rustix::io::Errno;

use super::browse::Browser;
use super::compare::{Change, GoOn, joined};
use super::exclude::Excludes;
use super::metadata::{self, Seen};
use super::read::FileReader;
use super::tree::{Kind, Listing, Node, Span, TreeError};
use super::walk::{Skipped, is_kernel_file_system, open_beneath, open_directory, path_from, read_names};

/// Stretches in which contents are compared where a chunk cannot be held against the disk as a whole.
const COMPARE_BYTES: usize = 256 << 10;

/// How a directory is compared.
#[derive(Debug, Clone, Default)]
pub struct DiskOptions {
    /// Reads every file, also where size and time of change are alike.
    pub read_all: bool,
    /// What the backup left out is no difference.
    pub excludes: Excludes,
}

/// Why a tree could not be compared with a directory.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("the directory {path} cannot be read", path = path.display())]
    Directory {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Compares a directory of the tree (before) with one on the disk (after), and tells every change; answers what on the disk could not
/// be looked at, or is of a kind that no recovery point holds.
pub fn compare_with_disk(
    (browser, top): (&Browser<'_>, &Node),
    directory: &Path,
    options: &DiskOptions,
    each: &mut dyn FnMut(Change) -> GoOn,
) -> Result<Vec<Skipped>, DiskError> {
    let failed = |error: Errno| DiskError::Directory { path: directory.to_owned(), source: error.into() };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let base = rustix::fs::open(directory, flags, rustix::fs::Mode::empty()).map_err(failed)?;
    let here = Seen::from(&rustix::fs::fstat(&base).map_err(failed)?);
    let mut comparison =
        Comparison { browser, base, device: here.dev, directory, options, each, skipped: Vec::new(), stopped: false };
    let xattrs = metadata::read_xattrs(comparison.base.as_fd()).map_err(failed)?;
    let after = Node {
        name: Vec::new(),
        kind: Kind::Directory(Listing::Inline(Vec::new())),
        metadata: Some(here.metadata(xattrs)),
        link: None,
    };
    comparison.tell(&[], Some(top.clone()), Some(after), false);
    comparison.walk(top.clone())?;
    Ok(comparison.skipped)
}

struct Comparison<'a> {
    browser: &'a Browser<'a>,
    base: OwnedFd,
    device: u64,
    directory: &'a Path,
    options: &'a DiskOptions,
    each: &'a mut dyn FnMut(Change) -> GoOn,
    skipped: Vec<Skipped>,
    stopped: bool,
}

/// A directory to go through: its path, and whether it is in the tree and on the disk.
struct Pair {
    path: Vec<u8>,
    before: Option<Node>,
    is_there: bool,
}

impl Comparison<'_> {
    fn skip(&mut self, path: &[u8], reason: String) {
        let path = self.directory.join(path_from(path.to_vec()));
        self.skipped.push(Skipped { path, reason });
    }

    fn walk(&mut self, top: Node) -> Result<(), TreeError> {
        let mut waiting = vec![Pair { path: Vec::new(), before: Some(top), is_there: true }];
        while let Some(pair) = waiting.pop() {
            if self.stopped {
                return Ok(());
            }
            let mut below = self.pair(&pair)?;
            below.reverse();
            waiting.append(&mut below);
        }
        Ok(())
    }

    /// Tells what differs in one directory; answers the directories below it.
    fn pair(&mut self, pair: &Pair) -> Result<Vec<Pair>, TreeError> {
        let before: Vec<Node> = match &pair.before {
            Some(node) => self.browser.entries(node)?.collect::<Result<_, _>>()?,
            None => Vec::new(),
        };
        let (dir, after) = match pair.is_there {
            false => (None, Vec::new()),
            true => match self.look(&pair.path) {
                Ok((dir, after)) => (Some(dir), after),
                Err(error) => {
                    self.skip(&pair.path, format!("cannot be read: {error}"));
                    return Ok(Vec::new());
                }
            },
        };
        let mut below = Vec::new();
        let (mut left, mut right) = (before.into_iter().peekable(), after.into_iter().peekable());
        while !self.stopped {
            let order = match (left.peek(), right.peek()) {
                (None, None) => break,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(l), Some(r)) => l.name.cmp(&r.name),
            };
            let l = if order.is_le() { left.next() } else { None };
            let r = if order.is_ge() { right.next() } else { None };
            let name = l.as_ref().or(r.as_ref()).map(|node| node.name.clone()).unwrap_or_default();
            let path = joined(&pair.path, &name);
            let is_directory = |node: &Option<Node>| node.as_ref().is_some_and(Node::is_directory);
            if is_directory(&l) || is_directory(&r) {
                let before = l.clone().filter(Node::is_directory);
                below.push(Pair { path: path.clone(), before, is_there: is_directory(&r) });
            }
            let content = match (&l, &r, &dir) {
                (Some(l), Some(r), Some(dir)) => self.content_differs(l, r, dir, &path)?,
                _ => true,
            };
            self.tell(&path, l, r, content);
        }
        Ok(below)
    }

    fn tell(&mut self, path: &[u8], before: Option<Node>, after: Option<Node>, content: bool) {
        let metadata = match (&before, &after) {
            // A directory that only holds the others has none.
            (Some(l), Some(r)) => l.metadata.is_some() && l.metadata != r.metadata,
            _ => true,
        };
        if content || metadata {
            self.stopped = !(self.each)(Change { path: path.to_vec(), before, after, content, metadata });
        }
    }

    /// What lies in a directory of the disk, sorted by name.
    fn look(&mut self, path: &[u8]) -> Result<(OwnedFd, Vec<Node>), Errno> {
        let relative = path_from(path.to_vec());
        let dir = open_directory(self.base.as_fd(), &relative)?;
        let mut nodes = Vec::new();
        let here = Seen::from(&rustix::fs::fstat(&dir)?);
        if here.dev != self.device && is_kernel_file_system(&dir) {
            self.skip(path, "a file system of the kernel is mounted here".to_owned());
            return Ok((dir, nodes));
        }
        for name in read_names(&dir)? {
            let path = joined(path, &name);
            let seen = match rustix::fs::statat(&dir, &name[..], AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => Seen::from(&stat),
                Err(Errno::NOENT) => continue,
                Err(error) => {
                    self.skip(&path, format!("cannot be read: {error}"));
                    continue;
                }
            };
            if self
                .options
                .excludes
                .matches(&relative.join(path_from(name.clone())), seen.file_type() == FileType::Directory)
            {
                continue;
            }
            let kind = match seen.file_type() {
                FileType::Directory => Kind::Directory(Listing::Inline(Vec::new())),
                FileType::RegularFile => Kind::File { size: seen.size, spans: Vec::new() },
                FileType::Symlink => match rustix::fs::readlinkat(&dir, &name[..], Vec::new()) {
                    Ok(target) => Kind::Symlink { target: target.into_bytes() },
                    Err(error) => {
                        self.skip(&path, format!("cannot be read: {error}"));
                        continue;
                    }
                },
                FileType::Fifo => Kind::Fifo,
                FileType::Socket => {
                    self.skip(&path, "is a socket: no recovery point holds one".to_owned());
                    continue;
                }
                FileType::BlockDevice | FileType::CharacterDevice => {
                    self.skip(&path, "is a device: no recovery point holds one".to_owned());
                    continue;
                }
                FileType::Unknown => {
                    self.skip(&path, "is of an unknown kind".to_owned());
                    continue;
                }
            };
            let xattrs = metadata::read_xattrs_at(dir.as_fd(), &name).unwrap_or_default();
            nodes.push(Node { name, kind, metadata: Some(seen.metadata(xattrs)), link: None });
        }
        Ok((dir, nodes))
    }

    fn content_differs(&mut self, before: &Node, after: &Node, dir: &OwnedFd, path: &[u8]) -> Result<bool, TreeError> {
        let (Kind::File { size, .. }, Kind::File { size: other, .. }) = (&before.kind, &after.kind) else {
            return Ok(match (&before.kind, &after.kind) {
                (Kind::Directory(_), Kind::Directory(_)) => false, // its entries are told one by one
                (left, right) => left != right,
            });
        };
        if size != other {
            return Ok(true);
        }
        let time = |node: &Node| node.metadata.as_ref().map(|m| (m.mtime_seconds, m.mtime_nanos));
        if time(before) == time(after) && !self.options.read_all {
            return Ok(false);
        }
        let name = Path::new(std::ffi::OsStr::from_bytes(&after.name));
        match open_beneath(dir.as_fd(), name, OFlags::RDONLY) {
            Ok(file) => match self.bytes_differ(before, &file)? {
                Ok(differ) => Ok(differ),
                Err(error) => {
                    self.skip(path, format!("cannot be read: {error}"));
                    Ok(true)
                }
            },
            Err(error) => {
                self.skip(path, format!("cannot be read: {error}"));
                Ok(true)
            }
        }
    }

    /// A chunk that the file has whole is held against its id: then nothing is fetched from the vault.
    fn bytes_differ(&self, before: &Node, file: &OwnedFd) -> Result<Result<bool, Errno>, TreeError> {
        let Kind::File { spans, .. } = &before.kind else { return Ok(Ok(true)) };
        let source = self.browser.source();
        let mut reader = FileReader::open(source, before)?;
        let mut start = 0;
        for span in spans {
            let end = start + span.length();
            let differs = match *span {
                Span::Hole { .. } => has_data_but_zeros(file, start, end),
                Span::Data { id, offset, length } => {
                    let mut bytes = vec![0; length as usize];
                    match read_exactly(file, start, &mut bytes) {
                        Ok(true) if offset == 0 && source.is_of(&id, &bytes) => Ok(false),
                        Ok(true) => {
                            let mut stored = vec![0; bytes.len().min(COMPARE_BYTES)];
                            let mut differs = false;
                            for (place, part) in bytes.chunks(COMPARE_BYTES).enumerate() {
                                let at = start + (place * COMPARE_BYTES) as u64;
                                let stored = stored.get_mut(..part.len()).unwrap_or_default();
                                differs |= reader.read_at(at, stored)? != part.len() || stored != part;
                            }
                            Ok(differs)
                        }
                        // It shrank since it was looked at.
                        Ok(false) => Ok(true),
                        Err(error) => Err(error),
                    }
                }
            };
            match differs {
                Ok(false) => start = end,
                other => return Ok(other),
            }
        }
        Ok(Ok(false))
    }
}

/// Whether the buffer could be filled.
fn read_exactly(file: &OwnedFd, from: u64, buffer: &mut [u8]) -> Result<bool, Errno> {
    let mut done = 0;
    while done < buffer.len() {
        let Some(rest) = buffer.get_mut(done..) else { break };
        match rustix::io::pread(file, rest, from + done as u64) {
            Ok(0) => return Ok(false),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Whether anything but zeros lies in a stretch of a file; holes of the file itself are not read.
fn has_data_but_zeros(file: &OwnedFd, start: u64, end: u64) -> Result<bool, Errno> {
    let mut at = start;
    let mut buffer = vec![0; COMPARE_BYTES];
    while at < end {
        match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) if data >= end => return Ok(false),
            Ok(data) => at = data.max(at),
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => return Ok(false),
            // A file system that knows no holes.
            Err(_) => {}
        }
        let now = (end - at).min(buffer.len() as u64) as usize;
        let Some(part) = buffer.get_mut(..now) else { break };
        if !read_exactly(file, at, part)? || part.iter().any(|byte| *byte != 0) {
            return Ok(true);
        }
        at += now as u64;
    }
    Ok(false)
}
