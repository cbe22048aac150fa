//! What the kernel asks, and what it is answered.
//!
//! Invariant: nothing is ever changed, and an error that is not about a wrong name is in the log with the object that it came from.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyXattr, Request,
};
use lifeboat_vault::files::{Kind, Metadata, Node, Span, TreeError, ends_of};

use super::content::{Content, lock};
use super::places::{Named, Place, Places, ROOT, blocks};

/// Points do not change.
const VALID: Duration = Duration::from_secs(24 * 3600);
const READ_AHEAD_BYTES: u32 = 1 << 20;
/// Files and directories open at once.
const HANDLES_MAX: usize = 65_536;

/// One entry of an open directory.
type Entry = (u64, FileType, Vec<u8>);

enum Open {
    Directory(Arc<Vec<Entry>>),
    File(Arc<OpenFile>),
}

struct OpenFile {
    named: Arc<Named>,
    ends: Vec<u64>,
    /// Where the last read ended.
    last: AtomicU64,
}

pub(super) struct Answers {
    places: Places,
    content: Content,
    open: Mutex<HashMap<u64, Open>>,
    next: AtomicU64,
    began: SystemTime,
    last_said: Mutex<String>,
}

impl Answers {
    pub(super) fn new(places: Places) -> Answers {
        let (open, next) = (Mutex::default(), AtomicU64::new(1));
        Answers { places, content: Content::new(), open, next, began: SystemTime::now(), last_said: Mutex::default() }
    }

    fn fail(&self, number: u64, error: &TreeError) -> Errno {
        let mut text = error.to_string();
        let mut below = std::error::Error::source(error);
        while let Some(cause) = below {
            text = format!("{text}: {cause}");
            below = cause.source();
        }
        let is_archived = error.is_archived();
        if is_archived {
            text += &self.places.to_thaw(number);
        }
        let line = format!("{}: {text}", self.places.path(number));
        // Readers try again, and run ahead: the same is said once.
        let mut last = lock(&self.last_said);
        if *last != line {
            tracing::error!("{line}");
            *last = line;
        }
        // Nobody takes this one for the end of a file, nor for a broken disk.
        if is_archived { Errno::ENODATA } else { Errno::EIO }
    }

    fn attributes(&self, number: u64) -> Result<FileAttr, Errno> {
        match self.places.place(number).ok_or(Errno::ESTALE)? {
            Place::Shelf(_) => Ok(bare(number, FileType::Directory, 0o555, self.began)),
            Place::Link(target) => {
                let bare = bare(number, FileType::Symlink, 0o777, self.began);
                Ok(FileAttr { size: target.len() as u64, nlink: 1, ..bare })
            }
            Place::Point(point) => {
                let top = self.places.top(point).map_err(|error| self.fail(number, &error))?;
                let taken = self.places.taken_at(point).into();
                Ok(of_node(number, &top, taken))
            }
            Place::Node(named) => Ok(of_node(number, &named.node, self.places.taken_at(named.point).into())),
        }
    }

    fn entries(&self, number: u64) -> Result<Vec<Entry>, Errno> {
        let (point, node, above) = match self.places.place(number).ok_or(Errno::ESTALE)? {
            Place::Shelf(names) => {
                let kind = |number: &u64| match self.places.place(*number) {
                    Some(Place::Link(_)) => FileType::Symlink,
                    _ => FileType::Directory,
                };
                return Ok(names.iter().map(|(name, number)| (*number, kind(number), name.clone())).collect());
            }
            Place::Point(point) => (point, self.top(number, point)?, ROOT),
            Place::Node(named) => (named.point, Arc::new(named.node.clone()), named.above),
            Place::Link(_) => return Err(Errno::ENOTDIR),
        };
        if !node.is_directory() {
            return Err(Errno::ENOTDIR);
        }
        let listing = self.places.listing(number, point, &node).map_err(|error| self.fail(number, &error))?;
        let mut entries =
            vec![(number, FileType::Directory, b".".to_vec()), (above, FileType::Directory, b"..".to_vec())];
        entries.extend(
            listing.iter().map(|node| (self.places.number(point, number, node), kind_of(node), node.name.clone())),
        );
        Ok(entries)
    }

    fn top(&self, number: u64, point: usize) -> Result<Arc<Node>, Errno> {
        self.places.top(point).map_err(|error| self.fail(number, &error))
    }

    fn find(&self, above: u64, name: &[u8]) -> Result<u64, Errno> {
        let (point, node) = match self.places.place(above).ok_or(Errno::ESTALE)? {
            Place::Shelf(names) => {
                let found = names.iter().find(|(known, _)| known == name);
                return found.map(|(_, number)| *number).ok_or(Errno::ENOENT);
            }
            Place::Point(point) => (point, self.top(above, point)?),
            Place::Node(named) => (named.point, Arc::new(named.node.clone())),
            Place::Link(_) => return Err(Errno::ENOTDIR),
        };
        if !node.is_directory() {
            return Err(Errno::ENOTDIR);
        }
        let listing = self.places.listing(above, point, &node).map_err(|error| self.fail(above, &error))?;
        let index = listing.binary_search_by(|entry| entry.name.as_slice().cmp(name)).map_err(|_| Errno::ENOENT)?;
        let found = listing.get(index).ok_or(Errno::ENOENT)?;
        Ok(self.places.remember(point, above, found))
    }

    fn keep(&self, open: Open) -> Result<FileHandle, Errno> {
        let mut handles = lock(&self.open);
        if handles.len() >= HANDLES_MAX {
            return Err(Errno::ENFILE);
        }
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        handles.insert(handle, open);
        Ok(FileHandle(handle))
    }

    fn file(&self, handle: FileHandle) -> Result<Arc<OpenFile>, Errno> {
        match lock(&self.open).get(&handle.0) {
            Some(Open::File(file)) => Ok(file.clone()),
            _ => Err(Errno::EBADF),
        }
    }

    fn read_file(&self, number: u64, handle: FileHandle, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        let file = self.file(handle)?;
        let Kind::File { spans, .. } = &file.named.node.kind else { return Err(Errno::EINVAL) };
        let chunk = |error| self.fail(number, &TreeError::Chunk(error));
        let (source, set) = self.places.source(file.named.point).map_err(chunk)?;
        let place = (offset, size as usize);
        // Several requests of one reader are on their way at once, and come in any order.
        let sequential = offset.abs_diff(file.last.load(Ordering::Relaxed)) <= u64::from(READ_AHEAD_BYTES);
        let read = self.content.read((&source, set), (spans, &file.ends), place, sequential);
        let bytes = read.map_err(|error| self.fail(number, &error))?;
        file.last.fetch_max(offset + bytes.len() as u64, Ordering::Relaxed);
        if !sequential {
            file.last.store(offset + bytes.len() as u64, Ordering::Relaxed);
        }
        Ok(bytes)
    }

    fn metadata<T>(&self, number: u64, look: impl FnOnce(Option<&Metadata>) -> T) -> Result<T, Errno> {
        Ok(match self.places.place(number).ok_or(Errno::ESTALE)? {
            Place::Point(point) => look(self.top(number, point)?.metadata.as_ref()),
            Place::Node(named) => look(named.node.metadata.as_ref()),
            _ => look(None),
        })
    }
}

fn kind_of(node: &Node) -> FileType {
    match node.kind {
        Kind::Directory(_) => FileType::Directory,
        Kind::File { .. } => FileType::RegularFile,
        Kind::Symlink { .. } => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
    }
}

fn bare(number: u64, kind: FileType, perm: u16, at: SystemTime) -> FileAttr {
    FileAttr {
        ino: INodeNo(number),
        size: 0,
        blocks: 0,
        atime: at,
        mtime: at,
        ctime: at,
        crtime: at,
        kind,
        perm,
        nlink: 2,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        blksize: 128 << 10,
        flags: 0,
    }
}

fn of_node(number: u64, node: &Node, taken: SystemTime) -> FileAttr {
    let kind = kind_of(node);
    let mut attributes = bare(number, kind, 0o555, taken);
    attributes.size = match &node.kind {
        Kind::Symlink { target } => target.len() as u64,
        _ => node.size(),
    };
    attributes.blocks = blocks(node);
    if kind != FileType::Directory {
        attributes.nlink = node.link.map_or(1, |link| u32::try_from(link.names).unwrap_or(u32::MAX));
    }
    if let Some(metadata) = &node.metadata {
        attributes.perm = (metadata.mode & 0o7777) as u16;
        (attributes.uid, attributes.gid) = (metadata.uid, metadata.gid);
        let mtime = moment(metadata.mtime_seconds, metadata.mtime_nanos);
        (attributes.mtime, attributes.ctime, attributes.atime) = (mtime, mtime, mtime);
    }
    attributes
}

fn moment(seconds: i64, nanos: u32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let at = if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    at.and_then(|at| at.checked_add(Duration::from_nanos(u64::from(nanos)))).unwrap_or(UNIX_EPOCH)
}

/// Where the next data, or the next hole, is.
fn seek(spans: &[Span], ends: &[u64], offset: u64, data: bool) -> Option<u64> {
    let size = ends.last().copied().unwrap_or(0);
    if offset >= size {
        return None;
    }
    for (span, end) in spans.iter().zip(ends).skip(ends.partition_point(|end| *end <= offset)) {
        if matches!(span, Span::Data { .. }) == data {
            return Some(offset.max(end - span.length()));
        }
    }
    (!data).then_some(size)
}

const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

impl Filesystem for Answers {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // The kernel says what it can where it cannot do as much.
        let _ = config.set_max_readahead(READ_AHEAD_BYTES);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.find(parent.0, name.as_bytes()).and_then(|number| self.attributes(number)) {
            Ok(attributes) => reply.entry(&VALID, &attributes, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn forget(&self, _: &Request, number: INodeNo, times: u64) {
        self.places.forget(number.0, times);
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(number.0) {
            Ok(attributes) => reply.attr(&VALID, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn readlink(&self, _: &Request, number: INodeNo, reply: ReplyData) {
        match self.places.place(number.0) {
            Some(Place::Link(target)) => reply.data(&target),
            Some(Place::Node(named)) => match &named.node.kind {
                Kind::Symlink { target } => reply.data(target),
                _ => reply.error(Errno::EINVAL),
            },
            _ => reply.error(Errno::EINVAL),
        }
    }

    fn open(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let Some(Place::Node(named)) = self.places.place(number.0) else { return reply.error(Errno::EISDIR) };
        let Kind::File { spans, .. } = &named.node.kind else { return reply.error(Errno::EINVAL) };
        let ends = ends_of(spans);
        let file = OpenFile { named, ends, last: AtomicU64::new(0) };
        match self.keep(Open::File(Arc::new(file))) {
            Ok(handle) => reply.opened(handle, FopenFlags::FOPEN_KEEP_CACHE),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.read_file(number.0, handle, offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        lock(&self.open).remove(&handle.0);
        reply.ok();
    }

    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let opened = self.entries(number.0).and_then(|entries| self.keep(Open::Directory(Arc::new(entries))));
        match opened {
            Ok(handle) => reply.opened(handle, FopenFlags::FOPEN_KEEP_CACHE),
            Err(error) => reply.error(error),
        }
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let entries = match lock(&self.open).get(&handle.0) {
            Some(Open::Directory(entries)) => entries.clone(),
            _ => return reply.error(Errno::EBADF),
        };
        for (next, (number, kind, name)) in (1..).zip(entries.iter()).skip(offset as usize) {
            if reply.add(INodeNo(*number), next, *kind, OsStr::from_bytes(name)) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        lock(&self.open).remove(&handle.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);
    }

    fn getxattr(&self, _: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let value = self.metadata(number.0, |metadata| {
            let found = metadata.and_then(|m| m.xattrs.iter().find(|(known, _)| known == name.as_bytes()));
            found.map(|(_, value)| value.clone())
        });
        match value {
            Ok(Some(value)) => give(&value, size, reply),
            Ok(None) => reply.error(Errno::ENODATA),
            Err(error) => reply.error(error),
        }
    }

    fn listxattr(&self, _: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        let names = self.metadata(number.0, |metadata| {
            let names = metadata.into_iter().flat_map(|m| &m.xattrs).map(|(name, _)| name.as_slice());
            names.flat_map(|name| name.iter().copied().chain([0])).collect::<Vec<u8>>()
        });
        match names {
            Ok(names) => give(&names, size, reply),
            Err(error) => reply.error(error),
        }
    }

    fn access(&self, _: &Request, _: INodeNo, _: fuser::AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: fuser::IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: fuser::ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn lseek(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let file = match self.file(handle) {
            Ok(file) => file,
            Err(error) => return reply.error(error),
        };
        let (Kind::File { spans, .. }, SEEK_DATA | SEEK_HOLE, Ok(offset)) =
            (&file.named.node.kind, whence, u64::try_from(offset))
        else {
            return reply.error(Errno::EINVAL);
        };
        match seek(spans, &file.ends, offset, whence == SEEK_DATA) {
            Some(found) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
            None => reply.error(Errno::ENXIO),
        }
    }
}

/// An attribute's bytes, or how many there are.
fn give(bytes: &[u8], size: u32, reply: ReplyXattr) {
    match size {
        0 => reply.size(bytes.len() as u32),
        size if (size as usize) < bytes.len() => reply.error(Errno::ERANGE),
        _ => reply.data(bytes),
    }
}
