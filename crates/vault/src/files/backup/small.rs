//! Small files: neighbours are read into one buffer and cut together.
//!
//! Invariant: what is stored of a file is what it was when its directory was read, or what it was at a second look; what changed even
//! while that was read is told.

use std::ops::Range;

use super::assemble::{Known, Order};
use super::work::{Crew, Task};
use super::{BackupError, explain};
use crate::ChunkId;
use crate::files::tree::{Kind, Node, Span};

impl Crew<'_> {
    pub(super) fn read_group(&self, tasks: Vec<Task>) -> Result<(), BackupError> {
        let mut buffer = self.take_buffer();
        let mut standing = None;
        let mut read = Vec::with_capacity(tasks.len());
        let mut grown = Vec::new();
        for mut task in tasks {
            self.check()?;
            let start = buffer.len();
            match self.read_small(&task, &mut standing, &mut buffer) {
                Ok(Some(look)) => {
                    let length = (buffer.len() - start) as u64;
                    self.assembler.note_read(length);
                    let digest = self.assembler.digest(buffer.get(start..).unwrap_or_default());
                    let spans = match &task.former {
                        // As it was: it stays where it is stored.
                        Some(former) if digest == Some(former.digest) => {
                            buffer.truncate(start);
                            self.assembler.keep(&former.spans, task.folder.order(task.index));
                            former.spans.clone()
                        }
                        _ => Vec::new(),
                    };
                    let file = self.known(&mut task, look, (length, spans), digest);
                    read.push((task, Some(file), start..buffer.len()));
                }
                Ok(None) => grown.push(task),
                Err(error) => {
                    buffer.truncate(start);
                    self.assembler.skip(task.full(), explain(error));
                    read.push((task, None, start..start));
                }
            }
        }
        let pieces = self.cut_group(&read);
        let orders = orders(&pieces, &read);
        let ids = self.store(&mut buffer, pieces.clone(), orders)?;
        let mut first = 0;
        for (task, mut file, range) in read {
            while pieces.get(first).is_some_and(|piece| piece.end <= range.start) {
                first += 1;
            }
            if let Some((Node { kind: Kind::File { spans, .. }, .. }, _)) = &mut file
                && !range.is_empty()
            {
                *spans = overlap(&range, pieces.get(first..).unwrap_or_default(), ids.get(first..).unwrap_or_default());
            }
            self.hand_in(&task, file);
        }
        self.give_back(buffer);
        grown.into_iter().try_for_each(|task| self.read_single(task))
    }

    /// The pieces of a buffer of files: each ends where a file does.
    fn cut_group(&self, read: &[(Task, Option<Known>, Range<usize>)]) -> Vec<Range<usize>> {
        let stored = || read.iter().filter(|(.., range)| !range.is_empty());
        let files = stored().map(|(_, file, range)| {
            let digest = file.as_ref().and_then(|(_, memory)| memory.as_ref()?.digest);
            (range.len(), digest.unwrap_or_default())
        });
        let mut ranges = stored().map(|(.., range)| range);
        let mut piece = |count: usize| {
            let mut files = ranges.by_ref().take(count);
            let first = files.next()?;
            Some(first.start..files.last().map_or(first.end, |last| last.end))
        };
        self.assembler.chunker.cut_files(files).into_iter().filter_map(&mut piece).collect()
    }
}

/// For each piece of a buffer the place of the first file in it.
fn orders(pieces: &[Range<usize>], read: &[(Task, Option<Known>, Range<usize>)]) -> Vec<Order> {
    let mut files = read.iter().filter(|(.., range)| !range.is_empty()).peekable();
    pieces
        .iter()
        .zip(0..)
        .map(|(piece, ordinal)| {
            while files.peek().is_some_and(|(.., range)| range.end <= piece.start) {
                files.next();
            }
            let (directory, entry, _) =
                files.peek().map(|(task, ..)| task.folder.order(task.index)).unwrap_or_default();
            (directory, entry, ordinal)
        })
        .collect()
}

/// The parts of pieces that make up a range of the buffer they were cut from.
fn overlap(range: &Range<usize>, pieces: &[Range<usize>], ids: &[ChunkId]) -> Vec<Span> {
    pieces
        .iter()
        .zip(ids)
        .take_while(|(piece, _)| piece.start < range.end)
        .filter_map(|(piece, id)| {
            let (start, end) = (piece.start.max(range.start), piece.end.min(range.end));
            let length = end.checked_sub(start).filter(|length| *length > 0)? as u32;
            Some(Span::Data { id: *id, offset: (start - piece.start) as u32, length })
        })
        .collect()
}
