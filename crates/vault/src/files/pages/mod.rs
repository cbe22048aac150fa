//! What a host remembers of files that are rewritten in place, page by page, so that a page that changed costs a page.
//!
//! ```text
//!   map     the mark of each page of a file, and where its pieces lie: a file on this host's disk
//!   former  which of those pieces can be relied on, and are worth it
//!   block   what becomes of a block: all as it was, stored whole, or kept pieces and changed pages
//!   patch   changed pages, gathered into chunks
//! ```
//!
//! Invariant: a page is taken for what it was only if its mark says so and the vault still holds the chunk it lies in. Losing a
//! map costs storing changed blocks whole, once; it never costs content.

mod block;
mod former;
mod map;
mod patch;

pub(crate) use block::{Fate, Part, decide};
pub(crate) use former::Former;
pub(crate) use map::{MapDraft, Maps, PageMark};
pub(crate) use patch::{Patches, Place};

use super::tree::Span;

/// What a file that is rewritten in place is cut into, at multiples of this length.
pub(crate) const BLOCK_BYTES: u32 = 1 << 20;
/// What databases and file systems write at once is a part of this, or a few of it.
const PAGE_BYTES: u32 = 8 << 10;
/// Of a very large file less is remembered.
const LARGE_PAGE_BYTES: u32 = 64 << 10;
const LARGE_FILE_BYTES: u64 = 16 << 30;

/// How long the pages are by which a file of this length is remembered.
pub(crate) fn page_bytes(size: u64) -> u32 {
    if size < LARGE_FILE_BYTES { PAGE_BYTES } else { LARGE_PAGE_BYTES }
}

/// Where the chunk of a piece stands among those of its file: by where it is, if it begins there or is its block's; otherwise after all
/// those, so that most changes leave the order of the others as it is.
pub(crate) fn ordinal(position: u64, offset: u32) -> u32 {
    const AFTER_ALL: u32 = 1 << 30;
    let block = u64::from(BLOCK_BYTES);
    if offset == 0 || u64::from(offset) == position % block {
        u32::try_from(position / block).map_or(AFTER_ALL, |place| place.min(AFTER_ALL))
    } else {
        AFTER_ALL
    }
}

/// Joins pieces that lie one after another, in the file and in a chunk.
pub(crate) fn join(spans: &mut Vec<Span>) {
    spans.dedup_by(|next, before| match (next, before) {
        (Span::Data { id, offset, length }, Span::Data { id: before, offset: start, length: so_far }) => {
            let follows = id == before && start.checked_add(*so_far) == Some(*offset);
            let joined = so_far.checked_add(*length).filter(|_| follows);
            joined.is_some_and(|joined| {
                *so_far = joined;
                true
            })
        }
        (Span::Hole { length }, Span::Hole { length: so_far }) => {
            *so_far = so_far.saturating_add(*length);
            true
        }
        _ => false,
    });
}
