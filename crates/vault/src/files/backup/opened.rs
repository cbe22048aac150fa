//! Opening a file, and saying in the end what it was.
//!
//! Invariant: nothing is followed that took a file's place, and a file counts as steady only if it was the same before and after it was
//! read.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::assemble::Known;
use super::work::{Crew, Task, fill};
use super::{SMALL_BYTES_MAX, explain};
use crate::files::Event;
use crate::files::cache::{Digest, Memory, Version};
use crate::files::metadata::{self, Seen, Xattrs};
use crate::files::tree::{Kind, Node, Span};
use crate::files::walk::{Place, open_beneath, open_directory};

/// A file whose time of change is this close to the moment it was read may change again without a new time: clocks of
/// file systems tick every few milliseconds. It is read again by the next backup.
const RACY: Duration = Duration::from_millis(50);

/// A file that was opened for reading.
pub(super) struct Opened {
    pub(super) fd: OwnedFd,
    pub(super) seen: Seen,
    at: SystemTime,
}

/// The directory in which files are opened one after another.
pub(super) struct Standing {
    place: Arc<Place>,
    full: PathBuf,
    fd: OwnedFd,
}

/// What a file was when its content was read.
pub(super) struct Look {
    seen: Seen,
    at: SystemTime,
    xattrs: Xattrs,
    steady: bool,
}

impl Crew<'_> {
    /// Opens a file and looks again at what it is; tells why it cannot be read.
    pub(super) fn open(&self, task: &Task) -> Option<Opened> {
        let standing = &mut None;
        let opened = self.try_open(task, standing).and_then(|(fd, at)| {
            let seen = regular(&fd)?;
            self.tell(task, standing);
            Ok(Opened { fd, seen, at })
        });
        opened.map_err(|error| self.assembler.skip(task.full(), explain(error))).ok()
    }

    fn try_open(&self, task: &Task, standing: &mut Option<Standing>) -> Result<(OwnedFd, SystemTime), Errno> {
        // Neighbours mostly lie in one directory.
        if standing.as_ref().is_none_or(|standing| !Arc::ptr_eq(&standing.place, &task.place)) {
            let place = Arc::clone(&task.place);
            let fd = open_directory(place.base.fd.as_fd(), &place.relative)?;
            *standing = Some(Standing { full: place.full(), place, fd });
        }
        let Some(Standing { fd, .. }) = standing else { return Err(Errno::BADF) };
        let name = task.real_name();
        // A FIFO that took the file's place must not make us wait. Reading should not change the time of access.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let noatime = flags | OFlags::NOATIME | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let at = SystemTime::now();
        let opened = match rustix::fs::openat(&*fd, name, noatime, rustix::fs::Mode::empty()) {
            Err(Errno::PERM) => open_beneath(fd.as_fd(), name, flags)?,
            other => other?,
        };
        Ok((opened, at))
    }

    fn tell(&self, task: &Task, standing: &Option<Standing>) {
        if let Some(Standing { full, .. }) = standing {
            self.assembler.progress.report(&Event::Reading { directory: full, name: task.real_name() });
        }
    }

    /// Appends the content of a small file. It should be what it was when its directory was read; if it is not, it is looked at once more.
    /// `None` if it has become large.
    pub(super) fn read_small(
        &self,
        task: &Task,
        standing: &mut Option<Standing>,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Look>, Errno> {
        let start = buffer.len();
        let mut look_at = |seen: Seen, last: bool| {
            let (fd, at) = self.try_open(task, standing)?;
            self.tell(task, standing);
            // What took its place may be nothing that can be read.
            fill(&fd, buffer, seen.size as usize, 0).map_err(|error| regular(&fd).err().unwrap_or(error))?;
            let xattrs = self.xattrs(task, &fd);
            let now = regular(&fd)?;
            let steady = (buffer.len() - start) as u64 == seen.size && now.same_version(&seen);
            if !steady && !last {
                buffer.truncate(start);
            }
            Ok((Look { seen, at, xattrs, steady }, now))
        };
        let (first, now) = look_at(task.seen, false)?;
        if first.steady {
            return Ok(Some(first));
        }
        if now.size >= SMALL_BYTES_MAX {
            return Ok(None);
        }
        look_at(now, true).map(|(second, _)| Some(second))
    }

    fn xattrs(&self, task: &Task, fd: &OwnedFd) -> Xattrs {
        metadata::read_xattrs(fd.as_fd()).unwrap_or_else(|error| {
            self.assembler.skip(task.full(), format!("its extended attributes cannot be read: {error}"));
            Vec::new()
        })
    }

    /// The node of a large file that was read, and what to remember of it if it did not change meanwhile.
    pub(super) fn conclude(&self, task: &mut Task, opened: Opened, size: u64, spans: Vec<Span>) -> Known {
        let Opened { fd, seen, at } = opened;
        let xattrs = self.xattrs(task, &fd);
        let after = rustix::fs::fstat(&fd).map(|stat| Seen::from(&stat));
        let steady = size == seen.size && after.is_ok_and(|after| after.same_version(&seen));
        self.known(task, Look { seen, at, xattrs, steady }, (size, spans), None)
    }

    /// The node of what was read; it takes the task's name.
    pub(super) fn known(
        &self,
        task: &mut Task,
        look: Look,
        (size, spans): (u64, Vec<Span>),
        digest: Option<Digest>,
    ) -> Known {
        let Look { seen, at, xattrs, steady } = look;
        if !steady {
            self.assembler.note_changed(task.full());
        }
        let name = std::mem::take(&mut task.name);
        let node = Node { name, kind: Kind::File { size, spans }, metadata: Some(seen.metadata(xattrs)), link: None };
        (node, steady.then(|| Memory { version: Version::from(&seen), racy: is_racy(&seen, at), digest }))
    }

    pub(super) fn hand_in(&self, task: &Task, file: Option<Known>) {
        match &task.link {
            Some(group) => self.assembler.fill_linked(group, &task.folder, task.index, file),
            None => self.assembler.fill_file(&task.folder, task.index, file),
        }
    }
}

/// What an open file is, if it is a file.
fn regular(fd: &OwnedFd) -> Result<Seen, Errno> {
    let seen = Seen::from(&rustix::fs::fstat(fd)?);
    if seen.file_type() == FileType::RegularFile { Ok(seen) } else { Err(Errno::NOTDIR) }
}

/// Whether a change right after the reading could leave the times as they are.
fn is_racy(seen: &Seen, read_at: SystemTime) -> bool {
    let changed = UNIX_EPOCH + Duration::new(seen.ctime.0.max(0) as u64, seen.ctime.1);
    changed + RACY > read_at
}
