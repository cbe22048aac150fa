//! Large files: read segment by segment, ahead of what is stored of them, so that all workers have a part in one file.
//!
//! Invariant: pieces stand in the order of the file, whoever stores them; only so many segments are in memory as there are hands.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::assemble::Known;
use super::work::{Crew, Opened, Pieces, SEGMENT_BYTES, Task, fill, is_sparse};
use super::{BackupError, explain};
use crate::ChunkId;
use crate::files::chunk::Cut;
use crate::files::tree::Span;

/// A large file on its way.
struct Reading<'r, 'a> {
    crew: &'r Crew<'a>,
    opened: &'r Opened,
    cut: Option<Cut>,
    segments: Segments<'r, 'a>,
}

/// What one file is cut into, in its order.
pub(super) struct Segments<'r, 'a> {
    crew: &'r Crew<'a>,
    /// Of the directory and the entry.
    order: (u64, u32),
    /// Those of pieces that are not stored yet lack their ids.
    pub(super) spans: Vec<Span>,
    /// Segments that are being stored, each with the place of its first span.
    under_way: VecDeque<(usize, Arc<Pieces>)>,
    spare: Vec<Vec<u8>>,
}

impl Crew<'_> {
    pub(super) fn read_single(&self, task: &Task, buffer: &mut Vec<u8>) -> Result<(), BackupError> {
        let file = match self.open(task, &mut None) {
            Some(opened) => self.read_extents(task, &opened, buffer)?,
            None => None,
        };
        self.hand_in(task, file);
        Ok(())
    }

    fn read_extents(&self, task: &Task, opened: &Opened, buffer: &mut Vec<u8>) -> Result<Option<Known>, BackupError> {
        let (directory, entry, _) = task.folder.order(task.index);
        let segments = Segments::new(self, (directory, entry), std::mem::take(buffer));
        let mut reading = Reading { crew: self, opened, cut: None, segments };
        let read = reading.all()?;
        let spans;
        (spans, *buffer) = reading.segments.finish()?;
        if let Err(error) = read {
            self.assembler.skip(task.full(), explain(error));
            return Ok(None);
        }
        let length = spans.iter().map(Span::length).sum();
        Ok(Some(self.conclude(task, opened, length, spans, None)))
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
                        self.segments.spans.push(Span::Hole { length: extent.start - position });
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
        let mut buffer = self.segments.room();
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
            let cut = *self.cut.get_or_insert_with(|| Cut::of_file(self.opened.seen.size, head));
            let start = extent.start + taken - buffer.len() as u64;
            let pieces = self.crew.assembler.chunker.cut(cut, &buffer, start, left == 0);
            buffer = self.segments.store(buffer, pieces)?;
        }
        self.segments.spare.push(buffer);
        Ok(Ok(taken))
    }
}

impl<'r, 'a> Segments<'r, 'a> {
    pub(super) fn new(crew: &'r Crew<'a>, order: (u64, u32), buffer: Vec<u8>) -> Self {
        Segments { crew, order, spans: Vec::new(), under_way: VecDeque::new(), spare: vec![buffer] }
    }

    /// An empty buffer, maybe one that was used before.
    pub(super) fn room(&mut self) -> Vec<u8> {
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer
    }

    /// Hands a segment over, and waits for as many as are too many; what the pieces left over begins the next.
    pub(super) fn store(&mut self, buffer: Vec<u8>, pieces: Vec<Range<usize>>) -> Result<Vec<u8>, BackupError> {
        let mut next = self.room();
        next.extend_from_slice(buffer.get(pieces.last().map_or(0, |piece| piece.end)..).unwrap_or_default());
        let first = self.spans.len();
        let (directory, entry) = self.order;
        let orders = (first..).take(pieces.len()).map(|piece| (directory, entry, piece as u32)).collect();
        let none = ChunkId([0; 32]);
        self.spans.extend(pieces.iter().map(|piece| Span::Data { id: none, offset: 0, length: piece.len() as u32 }));
        let ahead = self.crew.segments_ahead();
        self.under_way.push_back((first, self.crew.offer(buffer, pieces, orders, ahead)));
        while self.under_way.len() > ahead {
            self.complete_one()?;
        }
        Ok(next)
    }

    /// Waits for all of it; also gives a buffer back.
    pub(super) fn finish(mut self) -> Result<(Vec<Span>, Vec<u8>), BackupError> {
        while self.complete_one()? {}
        Ok((self.spans, self.spare.pop().unwrap_or_default()))
    }

    /// Brings the oldest segment to its end; false where none is under way.
    fn complete_one(&mut self) -> Result<bool, BackupError> {
        let Some((first, pieces)) = self.under_way.pop_front() else { return Ok(false) };
        let (buffer, ids) = self.crew.complete(&pieces)?;
        self.spare.push(buffer);
        for (span, stored) in self.spans.iter_mut().skip(first).zip(ids) {
            if let Span::Data { id, .. } = span {
                *id = stored;
            }
        }
        Ok(true)
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
