//! The blocks of a file that is rewritten in place: looked at page by page, by all workers, and stored where they changed.
//!
//! Invariant: what is marked is what is stored: both are done with the same bytes in memory, whatever happens to the file meanwhile.

use std::ops::Range;
use std::sync::Arc;

use super::BackupError;
use super::assemble::{Assembler, Order};
use crate::ChunkId;
use crate::crypt::MarkKey;
use crate::files::pages::{Fate, Former, PageMark, Part, decide};

/// What is known of one file.
pub(super) struct Paging {
    pub(super) key: MarkKey,
    pub(super) page_bytes: u32,
    pub(super) former: Option<Former>,
}

/// A stretch of the file that is in memory.
pub(super) struct Stretch {
    paging: Arc<Paging>,
    /// Where it begins in the file.
    start: u64,
    first_page: u64,
    before: Vec<Option<PageMark>>,
}

/// What became of a piece of a buffer.
pub(super) struct Done {
    pub(super) outcome: Outcome,
    /// Of pages, by their number.
    pub(super) marks: Vec<(u64, PageMark)>,
}

pub(super) enum Outcome {
    Whole(ChunkId),
    /// What changed of it is still to be stored.
    Parts(Vec<Part>),
}

impl From<ChunkId> for Done {
    fn from(id: ChunkId) -> Done {
        Done { outcome: Outcome::Whole(id), marks: Vec::new() }
    }
}

impl Stretch {
    /// So many bytes from `start` on.
    pub(super) fn new(paging: &Arc<Paging>, start: u64, length: usize) -> Stretch {
        let page = u64::from(paging.page_bytes);
        let (first_page, end) = (start / page, (start + length as u64).div_ceil(page));
        let former = paging.former.as_ref();
        let before = former.map(|former| former.marks(first_page, (end - first_page) as usize)).unwrap_or_default();
        Stretch { paging: Arc::clone(paging), start, first_page, before }
    }

    /// Stores the blocks that are to be stored whole.
    pub(super) fn store(
        &self,
        assembler: &Assembler<'_>,
        data: &[u8],
        blocks: &[Range<usize>],
        orders: &[Order],
    ) -> Result<Vec<Done>, BackupError> {
        let mut done = Vec::with_capacity(blocks.len());
        let (mut whole, mut whole_orders) = (Vec::new(), Vec::new());
        for (block, order) in blocks.iter().zip(orders) {
            let (fate, marks) = self.look_at(data, block);
            if fate == Fate::Whole {
                whole.push(block.clone());
                whole_orders.push(*order);
            }
            done.push((fate, marks));
        }
        let mut ids = assembler.put_all(data, &whole, &whole_orders)?.into_iter();
        let done = done.into_iter().map(|(fate, marks)| {
            let outcome = match fate {
                Fate::Parts(parts) => Outcome::Parts(parts),
                Fate::Whole => Outcome::Whole(ids.next()?),
            };
            Some(Done { outcome, marks })
        });
        done.collect::<Option<_>>().ok_or(BackupError::Incomplete)
    }

    fn look_at(&self, data: &[u8], block: &Range<usize>) -> (Fate, Vec<(u64, PageMark)>) {
        let length = u64::from(self.paging.page_bytes);
        let (start, end) = (self.start + block.start as u64, self.start + block.end as u64);
        let mut marks = Vec::with_capacity(((end - start) / length) as usize + 1);
        let mut pages = Vec::with_capacity(marks.capacity());
        let mut at = start;
        while at < end {
            let number = at / length;
            let next = ((number + 1) * length).min(end);
            let range = (at - start) as usize..(next - start) as usize;
            let bytes = data.get(block.start + range.start..block.start + range.end).unwrap_or_default();
            // Behind a hole a page may begin in its middle; of a page with a hole inside only the first part is remembered.
            let mark = self.paging.key.mark(at, bytes);
            let before = self.before.get((number - self.first_page) as usize).copied().flatten();
            pages.push((range, mark.is_some() && mark == before));
            marks.extend(mark.map(|mark| (number, mark)));
            at = next;
        }
        let fate = match &self.paging.former {
            Some(former) if pages.iter().any(|(_, same)| *same) => decide(&pages, &former.pieces(start..end)),
            _ => Fate::Whole,
        };
        (fate, marks)
    }
}
