//! What becomes of a block of a file that is rewritten in place.
//!
//! Invariant: the parts of a block are its bytes, all of them and in order. No more than half of a block lies elsewhere than in one
//! chunk, and it has at most so many parts, or it is stored whole: so listings and restores do not grow with the number of backups.

use std::ops::Range;

use super::former::Worth;
use crate::ChunkId;
use crate::files::tree::Span;

/// A block of more parts is stored whole. (Of pages of 8 KiB 129 would be the most. Fewer make listings shorter, and store blocks whole
/// more often: where single pages change all over a file, with 64 parts 43 % more is stored in 200 backups.)
const PARTS_MAX: usize = 96;

/// A part of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// Is stored already.
    Kept(Span),
    /// To be stored: where it is in the block. `lasting`: it has not changed, but what it lay with has.
    Changed { data: Range<usize>, lasting: bool },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    Whole,
    Parts(Vec<Part>),
}

/// Decides by the block's pages (where each is in the block, and whether it is as it was) and by where its bytes were.
pub(crate) fn decide(pages: &[(Range<usize>, bool)], pieces: &[(Span, Worth)]) -> Fate {
    let mut parts: Vec<Part> = Vec::new();
    let mut pieces = Pieces { pieces, start: 0 };
    for (page, same) in pages {
        let kept = if *same { pieces.of(page) } else { Kept::Not };
        match kept {
            Kept::At(spans) => spans.into_iter().for_each(|span| push(&mut parts, Part::Kept(span))),
            Kept::Sparsely => push(&mut parts, Part::Changed { data: page.clone(), lasting: true }),
            Kept::Not => push(&mut parts, Part::Changed { data: page.clone(), lasting: false }),
        }
    }
    let changed = parts.iter().any(|part| matches!(part, Part::Changed { .. }));
    let length = pages.last().map_or(0, |(last, _)| last.end) as u64;
    if changed && (parts.len() > PARTS_MAX || (length - in_one_chunk(&parts)) * 2 > length) {
        return Fate::Whole;
    }
    Fate::Parts(parts)
}

/// How much lies in the chunk that holds most of it.
fn in_one_chunk(parts: &[Part]) -> u64 {
    let mut kept: Vec<(ChunkId, u64)> = Vec::new();
    for part in parts {
        if let Part::Kept(Span::Data { id, length, .. }) = part {
            match kept.iter_mut().find(|(other, _)| other == id) {
                Some((_, so_far)) => *so_far += u64::from(*length),
                None => kept.push((*id, u64::from(*length))),
            }
        }
    }
    kept.iter().map(|(_, length)| *length).max().unwrap_or(0)
}

fn push(parts: &mut Vec<Part>, part: Part) {
    match (parts.last_mut(), &part) {
        (
            Some(Part::Kept(Span::Data { id, offset, length })),
            Part::Kept(Span::Data { id: next, offset: at, length: more }),
        ) if id == next && *offset + *length == *at => *length += more,
        (Some(Part::Changed { data, lasting }), Part::Changed { data: next, lasting: lasts })
            if lasting == lasts && data.end == next.start =>
        {
            data.end = next.end
        }
        _ => parts.push(part),
    }
}

enum Kept {
    At(Vec<Span>),
    Sparsely,
    Not,
}

/// Where a block's bytes were, gone through from its beginning.
struct Pieces<'a> {
    pieces: &'a [(Span, Worth)],
    /// Of the first of them, in the block.
    start: usize,
}

impl Pieces<'_> {
    /// Where the bytes of a page are stored. Ask in order.
    fn of(&mut self, page: &Range<usize>) -> Kept {
        while let Some(((span, _), rest)) = self.pieces.split_first()
            && self.start + span.length() as usize <= page.start
        {
            self.start += span.length() as usize;
            self.pieces = rest;
        }
        let (mut spans, mut at, mut sparse) = (Vec::new(), self.start, false);
        for (span, worth) in self.pieces {
            let Span::Data { id, offset, length } = *span else { return Kept::Not };
            let end = at + length as usize;
            if *worth == Worth::Gone {
                return Kept::Not;
            }
            sparse |= *worth == Worth::Sparse;
            let (from, to) = (at.max(page.start), end.min(page.end));
            spans.push(Span::Data { id, offset: offset + (from - at) as u32, length: (to - from) as u32 });
            at = end;
            if at >= page.end {
                return if sparse { Kept::Sparsely } else { Kept::At(spans) };
            }
        }
        Kept::Not // the file did not reach so far
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 8192;

    fn span(chunk: u8, page: u32, pages: u32) -> Span {
        Span::Data { id: ChunkId([chunk; 32]), offset: page * PAGE as u32, length: pages * PAGE as u32 }
    }

    fn kept(chunk: u8, page: u32, pages: u32) -> Part {
        Part::Kept(span(chunk, page, pages))
    }

    fn changed(pages: Range<usize>, lasting: bool) -> Part {
        Part::Changed { data: pages.start * PAGE..pages.end * PAGE, lasting }
    }

    /// A block of so many pages, of which those named have changed.
    fn block(pages: usize, changed: &[usize]) -> Vec<(Range<usize>, bool)> {
        (0..pages).map(|page| (page * PAGE..(page + 1) * PAGE, !changed.contains(&page))).collect()
    }

    fn sound(spans: &[Span]) -> Vec<(Span, Worth)> {
        spans.iter().map(|span| (*span, Worth::Sound)).collect()
    }

    #[test]
    fn what_did_not_change_stays_where_it_is() {
        let pieces = sound(&[span(1, 0, 3), span(2, 9, 1), span(1, 4, 4)]);
        let all = [kept(1, 0, 3), kept(2, 9, 1), kept(1, 4, 4)];
        assert_eq!(decide(&block(8, &[]), &pieces), Fate::Parts(all.to_vec()));
        let parts = [kept(1, 0, 1), changed(1..2, false), kept(1, 2, 1), kept(2, 9, 1), kept(1, 4, 4)];
        assert_eq!(decide(&block(8, &[1]), &pieces), Fate::Parts(parts.to_vec()));
        // Neighbours are one part; a page that took another's place is forgotten.
        let parts = [kept(1, 0, 2), changed(2..4, false), kept(1, 4, 4)];
        assert_eq!(decide(&block(8, &[2, 3]), &pieces), Fate::Parts(parts.to_vec()));
    }

    #[test]
    fn a_block_of_which_more_than_half_lies_elsewhere_is_stored_whole() {
        let pieces = sound(&[span(1, 0, 3), span(2, 9, 1), span(1, 4, 4)]);
        assert!(matches!(decide(&block(8, &[0, 1, 2]), &pieces), Fate::Parts(_)));
        assert_eq!(decide(&block(8, &[0, 1, 2, 4]), &pieces), Fate::Whole);
        // The chunk that a block mostly lies in need not be its own.
        assert!(matches!(decide(&block(8, &[3]), &sound(&[span(7, 50, 8)])), Fate::Parts(_)));
    }

    #[test]
    fn a_block_of_too_many_parts_is_stored_whole() {
        let whole = sound(&[span(1, 0, 128)]);
        let every_second: Vec<usize> = (0..47).map(|n| n * 2 + 1).collect();
        assert!(matches!(decide(&block(128, &every_second), &whole), Fate::Parts(parts) if parts.len() == 95));
        let one_more: Vec<usize> = (0..48).map(|n| n * 2 + 1).collect();
        assert_eq!(decide(&block(128, &one_more), &whole), Fate::Whole);
    }

    #[test]
    fn what_is_gone_is_stored_anew_and_what_lies_sparsely_apart() {
        let mut pieces = sound(&[span(1, 0, 6), span(2, 9, 1), span(3, 4, 1)]);
        pieces[1].1 = Worth::Sparse;
        pieces[2].1 = Worth::Gone;
        let parts = [kept(1, 0, 6), changed(6..7, true), changed(7..8, false)];
        assert_eq!(decide(&block(8, &[]), &pieces), Fate::Parts(parts.to_vec()));
        // Holes and what was beyond the end have no bytes that could stay.
        let pieces = sound(&[span(1, 0, 6), Span::Hole { length: PAGE as u64 }]);
        let parts = [kept(1, 0, 6), changed(6..8, false)];
        assert_eq!(decide(&block(8, &[]), &pieces), Fate::Parts(parts.to_vec()));
    }

    #[test]
    fn a_page_that_lies_in_two_places_is_kept_in_both() {
        let half = |chunk: u8, offset: u32| Span::Data { id: ChunkId([chunk; 32]), offset, length: 4096 };
        let pieces = sound(&[half(1, 0), half(1, 4096), half(2, 100), half(1, 12_288)]);
        let parts = [kept(1, 0, 1), Part::Kept(half(2, 100)), Part::Kept(half(1, 12_288))];
        assert_eq!(decide(&block(2, &[]), &pieces), Fate::Parts(parts.to_vec()));
    }
}
