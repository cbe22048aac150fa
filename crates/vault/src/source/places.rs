//! Where chunks lie, by their ids, in about 28 bytes a chunk beside the packs' records, which hold the ids already.
//!
//! Invariant: an id finds every place that was added under it, and no other chunk's.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use super::KnownPack;
use crate::pack::FrameRecord;
use crate::port::ChunkId;

/// A chunk in a frame of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) pack: u32,
    pub(super) frame: u32,
    pub(super) start: u32,
    pub(super) length: u32,
}

impl Place {
    pub(super) fn end(&self) -> usize {
        self.start as usize + self.length as usize
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    pack: u32,
    frame: u32,
    start: u32,
    /// In the frame.
    ordinal: u32,
    /// Another place of the same chunk, as slots name it.
    next: u32,
}

/// The table: ids are looked up where the entries say that they stand.
#[derive(Debug, Default)]
pub(super) struct Places {
    entries: Vec<Entry>,
    /// One for each chunk, at its id's hash or behind it: the number of its first entry, counted from 1. 0 is free.
    slots: Vec<u32>,
    /// Ids may have been chosen by a stranger.
    hasher: RandomState,
}

impl Places {
    /// Adds the chunks of the last of the packs.
    pub(super) fn add_last(&mut self, packs: &[KnownPack]) {
        let Some((pack, known)) = packs.len().checked_sub(1).zip(packs.last()) else { return };
        let chunks: usize = known.record.frames.iter().map(FrameRecord::count).sum();
        self.make_room(chunks, packs);
        for (frame, record) in (0..).zip(&known.record.frames) {
            let mut start = 0u32;
            for (ordinal, (id, length)) in (0..).zip(record.chunks()) {
                self.entries.push(Entry { pack: pack as u32, frame, start, ordinal, next: 0 });
                self.link(&id, self.entries.len(), packs);
                start = start.saturating_add(length as u32);
            }
        }
    }

    /// At least a quarter of the slots stays free.
    fn make_room(&mut self, more: usize, packs: &[KnownPack]) {
        self.entries.reserve(more);
        let wanted = (self.entries.len() + more).saturating_mul(4) / 3 + 1;
        if wanted <= self.slots.len() {
            return;
        }
        self.slots = vec![0; wanted.next_power_of_two()];
        for number in 1..=self.entries.len() {
            let id = self.entries.get_mut(number - 1).and_then(|entry| {
                entry.next = 0;
                chunk(packs, entry)
            });
            if let Some((id, _)) = id {
                self.link(&id, number, packs);
            }
        }
    }

    /// The slot of a chunk, or the free one that it may have. (With room for all, a free one is always found.)
    fn slot_of(&self, id: &ChunkId, packs: &[KnownPack]) -> Option<usize> {
        let last = self.slots.len().checked_sub(1)?;
        let mut at = self.hasher.hash_one(id.as_bytes()) as usize & last;
        loop {
            let number = *self.slots.get(at)?;
            let entry = (number as usize).checked_sub(1).and_then(|number| self.entries.get(number));
            if entry.is_none_or(|entry| chunk(packs, entry).is_some_and(|(found, _)| found == *id)) {
                return Some(at);
            }
            at = (at + 1) & last;
        }
    }

    fn link(&mut self, id: &ChunkId, number: usize, packs: &[KnownPack]) {
        // What is beyond the numbers is not there, and told as missing.
        let (Ok(new), Some(at)) = (u32::try_from(number), self.slot_of(id, packs)) else { return };
        let (Some(slot), Some(pack)) = (self.slots.get_mut(at), self.entries.get(number - 1).map(|entry| entry.pack))
        else {
            return;
        };
        let preferred = packs.get(pack as usize).is_some_and(|pack| pack.preferred);
        let first =
            (*slot as usize).checked_sub(1).filter(|_| !preferred).and_then(|first| self.entries.get_mut(first));
        // What is not preferred comes behind what is there.
        let next = match first {
            Some(first) => std::mem::replace(&mut first.next, new),
            None => std::mem::replace(slot, new),
        };
        if let Some(entry) = self.entries.get_mut(number - 1) {
            entry.next = next;
        }
    }

    /// Every place of a chunk, the one that it is best read from first.
    pub(super) fn of<'a>(&'a self, packs: &'a [KnownPack], id: &ChunkId) -> impl Iterator<Item = Place> + 'a {
        let slot = self.slot_of(id, packs).and_then(|at| self.slots.get(at));
        let entry = |number: u32| (number as usize).checked_sub(1).and_then(|number| self.entries.get(number));
        let entries = std::iter::successors(slot.and_then(|number| entry(*number)), move |before| entry(before.next));
        entries.filter_map(|entry| {
            let (_, length) = chunk(packs, entry)?;
            let Entry { pack, frame, start, .. } = *entry;
            Some(Place { pack, frame, start, length })
        })
    }
}

/// What an entry stands for.
fn chunk(packs: &[KnownPack], entry: &Entry) -> Option<(ChunkId, u32)> {
    let frame = packs.get(entry.pack as usize)?.record.frames.get(entry.frame as usize)?;
    let (id, length) = frame.chunk(entry.ordinal as usize)?;
    Some((id, length as u32))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::codec::Hash;
    use crate::pack::{PackRecord, push_record};

    fn id(number: u64) -> ChunkId {
        ChunkId(crate::crypt::hash(&number.to_le_bytes()))
    }

    /// A pack of two frames, of chunks that are as long as their number and more.
    fn pack(frames: [std::ops::Range<u64>; 2], preferred: bool) -> KnownPack {
        let frame = |numbers: std::ops::Range<u64>| {
            let mut chunks = Vec::new();
            numbers.for_each(|number| push_record(&mut chunks, &id(number), 10 + number as usize));
            let (bytes, plain_bytes) = (100, 100);
            FrameRecord { offset: 0, bytes, plain_bytes, codec: 0, chunks, origin: None, ordinal: None }
        };
        let frames = frames.map(frame).to_vec();
        let record = PackRecord { hash: Hash([0; 32]), bytes: 1, salt: Hash([0; 32]), frames, origins: None };
        KnownPack { record, secret: Arc::from([0u8; 4]), keys: Box::default(), preferred }
    }

    #[test]
    fn every_chunk_is_found_where_it_lies_however_many_there_are() {
        let (mut places, mut packs) = (Places::default(), Vec::new());
        assert_eq!(places.of(&packs, &id(0)).count(), 0);
        for start in (0..5000).step_by(50) {
            packs.push(pack([start..start + 20, start + 20..start + 50], true));
            places.add_last(&packs);
        }
        for number in 0..5000u64 {
            let (frame, first) = if number % 50 < 20 { (0, number / 50 * 50) } else { (1, number / 50 * 50 + 20) };
            let start = (first..number).map(|before| 10 + before as u32).sum();
            let place = Place { pack: (number / 50) as u32, frame, start, length: 10 + number as u32 };
            assert_eq!(places.of(&packs, &id(number)).collect::<Vec<_>>(), [place], "{number}");
        }
        assert!((5000..9000).all(|number| places.of(&packs, &id(number)).next().is_none()));
        let bytes = places.entries.capacity() * size_of::<Entry>() + places.slots.len() * 4;
        assert!(bytes < 5000 * 48, "{bytes}");
    }

    #[test]
    fn of_many_places_the_last_preferred_one_comes_first_and_none_is_lost() {
        let (mut places, mut packs) = (Places::default(), Vec::new());
        for preferred in [false, false, true, true, false] {
            packs.push(pack([7..8, 0..0], preferred));
            places.add_last(&packs);
            packs.push(pack([packs.len() as u64 * 1000..packs.len() as u64 * 1000 + 300, 0..0], true));
            places.add_last(&packs);
        }
        let found: Vec<u32> = places.of(&packs, &id(7)).map(|place| place.pack).collect();
        assert_eq!(found.first(), Some(&6));
        let mut all = found.clone();
        all.sort_unstable();
        assert_eq!(all, [0, 2, 4, 6, 8]);
    }

    #[test]
    fn a_chunk_named_over_and_over_takes_no_longer() {
        let mut chunks = Vec::new();
        (0..300_000).for_each(|_| push_record(&mut chunks, &id(1), 1));
        let mut packs = vec![pack([0..0, 0..0], true)];
        packs[0].record.frames[0].chunks = chunks;
        let mut places = Places::default();
        places.add_last(&packs);
        assert_eq!(places.of(&packs, &id(1)).count(), 300_000);
    }
}
