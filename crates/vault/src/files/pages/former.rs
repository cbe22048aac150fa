//! What a file was at the backup before: which of its pieces can be relied on, and which are worth it.
//!
//! Changed pages of many blocks share a chunk. When most of them have changed again, a restore would read much for little and nothing
//! could ever be pruned; so what is left in such a chunk is stored anew, with others of its kind. Invariant: of what a file's pieces
//! make a restore read, about half at least is needed, however many backups were made.

use std::ops::Range;

use super::map::{PageMap, PageMark};
use crate::ChunkId;
use crate::files::tree::Span;
use crate::port::OwnIds;

/// Whether a piece can stay where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Worth {
    Sound,
    /// Less than half of what lies in its chunk is still needed.
    Sparse,
    /// The vault does not hold its chunk any more, or it is a hole.
    Gone,
}

#[derive(Debug)]
pub(crate) struct Former {
    map: PageMap,
    /// Where each piece ends in the file.
    ends: Vec<u64>,
    worth: OwnIds<Worth>,
}

impl Former {
    pub(crate) fn new(map: PageMap, holds: impl Fn(&ChunkId) -> bool) -> Former {
        let mut used: OwnIds<(u64, u64)> = OwnIds::default();
        for span in &map.spans {
            if let Span::Data { id, offset, length } = span {
                let (needed, reaches) = used.entry(*id).or_default();
                *needed += u64::from(*length);
                *reaches = (*reaches).max(u64::from(*offset) + u64::from(*length));
            }
        }
        let worth = |id: &ChunkId, (needed, reaches): (u64, u64)| match holds(id) {
            false => Worth::Gone,
            true if needed * 2 < reaches => Worth::Sparse,
            true => Worth::Sound,
        };
        let worth = used.into_iter().map(|(id, use_of_it)| (id, worth(&id, use_of_it))).collect();
        Former { ends: crate::files::ends_of(&map.spans), map, worth }
    }

    pub(crate) fn page_bytes(&self) -> u32 {
        self.map.page_bytes
    }

    pub(crate) fn marks(&self, first: u64, count: usize) -> Vec<Option<PageMark>> {
        self.map.marks(first, count)
    }

    /// The pieces of a range of the file, cut to it, as far as the file reached.
    pub(crate) fn pieces(&self, range: Range<u64>) -> Vec<(Span, Worth)> {
        let first = self.ends.partition_point(|end| *end <= range.start);
        let spans = self.map.spans.iter().zip(&self.ends).skip(first);
        spans
            .map(|(span, end)| (span, end - span.length(), *end))
            .take_while(|(_, start, _)| *start < range.end)
            .map(|(span, start, end)| {
                let (from, to) = (start.max(range.start), end.min(range.end));
                match *span {
                    Span::Data { id, offset, .. } => {
                        let (offset, length) = (offset + (from - start) as u32, (to - from) as u32);
                        (Span::Data { id, offset, length }, self.worth.get(&id).copied().unwrap_or(Worth::Gone))
                    }
                    Span::Hole { .. } => (Span::Hole { length: to - from }, Worth::Gone),
                }
            })
            .collect()
    }
}
