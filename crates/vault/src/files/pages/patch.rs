//! Changed pages on their way into chunks, in the order of the file.
//!
//! Invariant: pages that changed at one time share chunks, so that they mostly go at one time, too.

use std::ops::Range;

/// A chunk of changed pages is full at this length.
const CHUNK_BYTES: usize = 1 << 20;
/// So much is stored at once.
const FULL_BYTES: usize = 4 << 20;

/// Where a piece lies that waits for its chunk.
#[derive(Debug)]
pub(crate) struct Place {
    /// Which of the file's pieces it is.
    pub(crate) span: usize,
    /// In the file.
    pub(crate) position: u64,
    pub(crate) offset: u32,
}

/// Bytes, where the chunks are in them, and what lies in each chunk.
pub(crate) type Gathered = (Vec<u8>, Vec<Range<usize>>, Vec<Vec<Place>>);

/// Pages that wait, and the chunks that they make up.
#[derive(Debug, Default)]
pub(crate) struct Patches {
    bytes: Vec<u8>,
    chunks: Vec<(Range<usize>, Vec<Place>)>,
}

impl Patches {
    /// Takes in the bytes of one of the file's pieces, which lies at `position`.
    pub(crate) fn add(&mut self, bytes: &[u8], span: usize, position: u64) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        let end = self.bytes.len();
        match self.chunks.last_mut().filter(|(range, _)| end - range.start <= CHUNK_BYTES) {
            Some((range, places)) => {
                places.push(Place { span, position, offset: (start - range.start) as u32 });
                range.end = end;
            }
            None => self.chunks.push((start..end, vec![Place { span, position, offset: 0 }])),
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.bytes.len() >= FULL_BYTES
    }

    /// All that waits.
    pub(crate) fn take(&mut self) -> Option<Gathered> {
        let Patches { bytes, chunks } = std::mem::take(self);
        let (ranges, places): (Vec<_>, Vec<_>) = chunks.into_iter().unzip();
        (!bytes.is_empty()).then_some((bytes, ranges, places))
    }
}
