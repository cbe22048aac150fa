//! Large files: read segment by segment, ahead of what is stored of them, so that all workers have a part in one file.
//!
//! Invariant: pieces stand in the order of the file, whoever stores them; only so many segments are in memory as there are hands.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::assemble::Known;
use super::opened::Opened;
use super::segments::Segments;
use super::work::{Crew, SEGMENT_BYTES, Task, fill, is_sparse};
use super::{BackupError, explain};
use crate::files::chunk::Cut;
use crate::files::tree::Span;

/// A large file on its way.
struct Reading<'r, 'a> {
    crew: &'r Crew<'a>,
    task: &'r Task,
    opened: &'r Opened,
    cut: Option<Cut>,
    segments: Segments<'r, 'a>,
}

impl Crew<'_> {
    pub(super) fn read_single(&self, mut task: Task) -> Result<(), BackupError> {
        let file = match self.open(&task) {
            Some(opened) => self.read_extents(&mut task, opened)?,
            None => None,
        };
        self.hand_in(&task, file);
        Ok(())
    }

    fn read_extents(&self, task: &mut Task, opened: Opened) -> Result<Option<Known>, BackupError> {
        let (directory, entry, _) = task.folder.order(task.index);
        let segments = Segments::new(self, (directory, entry));
        let mut reading = Reading { crew: self, task, opened: &opened, cut: None, segments };
        let read = reading.all()?;
        let spans = reading.segments.finish()?;
        if let Err(error) = read {
            self.assembler.skip(task.full(), explain(error));
            return Ok(None);
        }
        let length = spans.iter().map(Span::length).sum();
        Ok(Some(self.conclude(task, opened, length, spans)))
    }
}

impl Reading<'_, '_> {
    /// Everything. The outer error is the vault's, the inner one the file's.
    fn all(&mut self) -> Result<Result<(), Errno>, BackupError> {
        let size = self.opened.seen.size;
        let mut position = 0;
        while position < size {
            let extent = match is_sparse(&self.opened.seen) {
                true => next_extent(&self.opened.fd, position, size),
                false => Ok(position..size),
            };
            let read = match extent {
                Ok(extent) => {
                    if extent.start > position {
                        self.segments.hole(extent.start - position);
                    }
                    position = extent.start;
                    self.extent(extent)?
                }
                Err(error) => Err(error),
            };
            match read {
                Ok(0) => break, // it became shorter
                Ok(length) => position += length,
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(()))
    }

    /// Reads one extent of data and has it stored; how far it got.
    fn extent(&mut self, extent: Range<u64>) -> Result<Result<u64, Errno>, BackupError> {
        let mut left = extent.end - extent.start;
        let mut taken = 0;
        let mut buffer = self.crew.take_buffer();
        // A hole that ends the file has no data at all, but moves the position.
        while left > 0 {
            self.crew.check()?;
            let wanted = left.min((SEGMENT_BYTES - buffer.len()) as u64);
            let before = buffer.len();
            if let Err(error) = fill(&self.opened.fd, &mut buffer, wanted as usize, extent.start + taken) {
                return Ok(Err(error));
            }
            let read = (buffer.len() - before) as u64;
            self.crew.assembler.note_read(read);
            taken += read;
            left = if read < wanted { 0 } else { left - read };
            let head = (extent.start == 0).then_some(buffer.as_slice());
            let cut = match self.cut {
                Some(cut) => cut,
                None => self.decide_cut(head),
            };
            let start = extent.start + taken - buffer.len() as u64;
            let pieces = self.crew.assembler.chunker.cut(cut, &buffer, start, left == 0);
            buffer = self.segments.store(buffer, start, pieces)?;
        }
        self.crew.give_back(buffer);
        Ok(Ok(taken))
    }

    fn decide_cut(&mut self, head: Option<&[u8]>) -> Cut {
        let size = self.opened.seen.size;
        let cut = *self.cut.insert(Cut::of_file(size, head));
        if cut == Cut::PAGES {
            self.segments.follow_pages(self.task.full().as_os_str().as_bytes(), size);
        }
        cut
    }
}

/// The next extent of data at or after `position`; an empty one at `size` if only a hole is left.
fn next_extent(fd: &OwnedFd, position: u64, size: u64) -> Result<Range<u64>, Errno> {
    let start = match rustix::fs::seek(fd, SeekFrom::Data(position)) {
        Ok(start) => start.min(size),
        Err(Errno::NXIO) => return Ok(size..size),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(position..size), // holes are not told: all is data
        Err(error) => return Err(error),
    };
    let end = match rustix::fs::seek(fd, SeekFrom::Hole(start)) {
        Ok(end) => end.min(size),
        Err(Errno::NXIO) => size,
        Err(error) => return Err(error),
    };
    Ok(start..end)
}
