//! What one file is cut into, on its way: segments that workers store while the next is read, and what becomes of them in the file.
//!
//! Invariant: pieces stand in the order of the file, whoever stores them and whenever.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::BackupError;
use super::assemble::Order;
use super::pages::{Done, Outcome, Paging, Stretch};
use super::work::{Crew, Pieces};
use crate::ChunkId;
use crate::files::pages::{self, Former, MapDraft, Part, Patches, Place};
use crate::files::tree::Span;

pub(super) struct Segments<'r, 'a> {
    crew: &'r Crew<'a>,
    /// Of the directory and the entry.
    order: (u64, u32),
    /// As far as they are known; those of changed pages lack their chunks until these are stored.
    spans: Vec<Span>,
    /// Where the spans reach in the file.
    reached: u64,
    under_way: VecDeque<UnderWay>,
    pages: Option<Paged>,
}

enum UnderWay {
    Hole(u64),
    Segment(Arc<Pieces>),
    /// Chunks of changed pages, and where they belong.
    Patches(Arc<Pieces>, Vec<Vec<Place>>),
}

/// A file that is rewritten in place.
struct Paged {
    shared: Arc<Paging>,
    draft: Option<MapDraft>,
    fresh: Patches,
    /// What has not changed lately is likely to stay: it gets chunks of its own.
    lasting: Patches,
}

/// Its chunk is not stored yet.
const NO_CHUNK: ChunkId = ChunkId([0; 32]);

impl<'r, 'a> Segments<'r, 'a> {
    pub(super) fn new(crew: &'r Crew<'a>, order: (u64, u32)) -> Self {
        Segments { crew, order, spans: Vec::new(), reached: 0, under_way: VecDeque::new(), pages: None }
    }

    /// From here on pages are looked at, and kept where they are as they were. `file` names the file among all of this host's.
    pub(super) fn follow_pages(&mut self, file: &[u8], size: u64) {
        let assembler = self.crew.assembler;
        let Some(maps) = assembler.maps else { return };
        let Some(key) = maps.mark_key(file) else { return };
        let former = maps.find(file).map(|map| Former::new(map, |id| assembler.contains(id)));
        let page_bytes = former.as_ref().map_or(pages::page_bytes(size), Former::page_bytes);
        let shared = Arc::new(Paging { key, page_bytes, former });
        let draft = maps.draft(file, page_bytes);
        self.pages = Some(Paged { shared, draft, fresh: Patches::default(), lasting: Patches::default() });
    }

    pub(super) fn hole(&mut self, length: u64) {
        self.under_way.push_back(UnderWay::Hole(length));
    }

    /// Hands a segment over that begins at `start` of the file, and waits for as many as are too many; what the pieces left over begins
    /// the next.
    pub(super) fn store(
        &mut self,
        buffer: Vec<u8>,
        start: u64,
        pieces: Vec<Range<usize>>,
    ) -> Result<Vec<u8>, BackupError> {
        let Some(length) = pieces.last().map(|piece| piece.end) else { return Ok(buffer) };
        let rest = buffer.get(length..).unwrap_or_default().to_vec();
        let (directory, entry) = self.order;
        let order = |piece: &Range<usize>| (directory, entry, pages::ordinal(start + piece.start as u64, 0));
        let orders = pieces.iter().map(order).collect();
        let stretch = self.pages.as_ref().map(|paged| Stretch::new(&paged.shared, start, length));
        let ahead = self.crew.segments_ahead();
        let offered = self.crew.offer(buffer, pieces, orders, ahead, stretch);
        self.under_way.push_back(UnderWay::Segment(offered));
        while self.under_way.len() > ahead {
            self.complete_one()?;
        }
        // Where nobody else helps it is the one that was just handed over.
        let mut next = self.crew.take_buffer();
        next.extend_from_slice(&rest);
        Ok(next)
    }

    /// Waits for all of it.
    pub(super) fn finish(mut self) -> Result<Vec<Span>, BackupError> {
        while self.complete_one()? {}
        self.send_patches(true);
        while self.complete_one()? {}
        pages::join(&mut self.spans);
        if let Some(draft) = self.pages.and_then(|paged| paged.draft) {
            let path = draft.path().to_owned();
            if let (Err(error), Some(maps)) = (draft.finish(&self.spans), self.crew.assembler.maps) {
                maps.note_failure(&path, &error);
            }
        }
        Ok(self.spans)
    }

    /// Brings the oldest of what is under way to its end; false where nothing is.
    fn complete_one(&mut self) -> Result<bool, BackupError> {
        match self.under_way.pop_front() {
            None => return Ok(false),
            Some(UnderWay::Hole(length)) => self.push(Span::Hole { length }),
            Some(UnderWay::Segment(pieces)) => {
                let (buffer, done) = self.crew.complete(&pieces)?;
                let mut kept = Vec::new();
                for (range, done) in pieces.ranges.iter().zip(done) {
                    self.take_in(buffer.get(range.clone()).unwrap_or_default(), done, &mut kept);
                }
                self.crew.assembler.need(kept);
                self.crew.give_back(buffer);
                self.send_patches(false);
            }
            Some(UnderWay::Patches(pieces, places)) => {
                let (_, done) = self.crew.complete(&pieces)?;
                for (places, done) in places.into_iter().zip(done) {
                    let Outcome::Whole(chunk) = done.outcome else { return Err(BackupError::Incomplete) };
                    for place in places {
                        if let Some(Span::Data { id, offset, .. }) = self.spans.get_mut(place.span) {
                            (*id, *offset) = (chunk, place.offset);
                        }
                    }
                }
            }
        }
        Ok(true)
    }

    fn push(&mut self, span: Span) {
        self.reached += span.length();
        self.spans.push(span);
    }

    /// Puts what became of a piece in its place. Chunks that are kept are still to be noted as needed.
    fn take_in(&mut self, data: &[u8], done: Done, kept: &mut Vec<(ChunkId, Order)>) {
        if let Some(draft) = self.pages.as_mut().and_then(|paged| paged.draft.as_mut()) {
            let written = done.marks.iter().try_for_each(|(page, mark)| draft.push(*page, mark));
            if let (Err(error), Some(maps)) = (written, self.crew.assembler.maps) {
                maps.note_failure(draft.path(), &error);
                self.pages.as_mut().and_then(|paged| paged.draft.take());
            }
        }
        let parts = match done.outcome {
            Outcome::Whole(id) => return self.push(Span::Data { id, offset: 0, length: data.len() as u32 }),
            Outcome::Parts(parts) => parts,
        };
        for part in parts {
            match part {
                Part::Kept(span) => {
                    if let Span::Data { id, offset, .. } = span {
                        let (directory, entry) = self.order;
                        kept.push((id, (directory, entry, pages::ordinal(self.reached, offset))));
                    }
                    self.push(span);
                }
                Part::Changed { data: range, lasting } => {
                    let bytes = data.get(range).unwrap_or_default();
                    let place = self.spans.len();
                    if let Some(paged) = &mut self.pages {
                        if lasting { &mut paged.lasting } else { &mut paged.fresh }.add(bytes, place, self.reached);
                    }
                    self.push(Span::Data { id: NO_CHUNK, offset: 0, length: bytes.len() as u32 });
                }
            }
        }
    }

    /// Has changed pages stored when they are enough, or all of them.
    fn send_patches(&mut self, all: bool) {
        let (directory, entry) = self.order;
        let Some(paged) = &mut self.pages else { return };
        for patches in [&mut paged.fresh, &mut paged.lasting] {
            if !(all || patches.is_full()) {
                continue;
            }
            if let Some((bytes, ranges, places)) = patches.take() {
                // As the next backup, which finds them, will see it.
                let ordinal = |place: &Place| pages::ordinal(place.position, place.offset);
                let first = |places: &Vec<Place>| places.iter().map(ordinal).min().unwrap_or_default();
                let orders = places.iter().map(|places| (directory, entry, first(places))).collect();
                let offered = self.crew.offer(bytes, ranges, orders, self.crew.segments_ahead(), None);
                self.under_way.push_back(UnderWay::Patches(offered, places));
            }
        }
    }
}
