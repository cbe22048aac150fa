//! Where content is cut: FastCDC (version 2020), seeded per data set, or fixed blocks for what is rewritten in place.
//!
//! Invariant: cuts depend on the content and the seed alone, never on how the bytes arrived in buffers.

use std::ops::Range;

use fastcdc::v2020::{FastCDC, Normalization};

use super::pages::BLOCK_BYTES;

/// How a stream is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// By content: insertions move the cuts along.
    Content,
    /// Every so many bytes: for files whose pages are rewritten in place, such as a database's.
    Fixed(u32),
}

impl Cut {
    /// The sizes for files: about 1 MiB compresses well and keeps the number of objects small.
    pub(crate) const LENGTH_MAX: usize = 4 << 20;
    /// For files that are rewritten in place: a million blocks a terabyte. Of blocks that changed only the pages that did are stored, by
    /// what the host remembers of them.
    pub const PAGES: Cut = Cut::Fixed(BLOCK_BYTES);

    /// How a file is cut, by its length and its first bytes (where they are data). What consists of whole 4 KiB pages is
    /// rewritten in place: a database, a disk image. Archives, which may just happen to, grow and shift.
    pub(crate) fn of_file(size: u64, head: Option<&[u8]>) -> Cut {
        let starts = |magic: &[u8]| head.is_some_and(|head| head.starts_with(magic));
        let is_archive = head.and_then(|head| head.get(257..262)) == Some(b"ustar") || starts(b"!<arch>\n");
        let is_paged = size.is_multiple_of(PAGE_BYTES) && !is_archive && !starts(b"\x7fELF");
        if is_paged || starts(b"SQLite format 3\0") { Cut::PAGES } else { Cut::Content }
    }
}

const PAGE_BYTES: u64 = 4096;

struct Sizes {
    min: usize,
    average: usize,
    max: usize,
}

const CONTENT: Sizes = Sizes { min: 768 << 10, average: 1 << 20, max: Cut::LENGTH_MAX };
/// Rows of small files: one more file of up to 1 MiB may follow.
const FILES: Sizes = Sizes { min: 256 << 10, average: 1 << 20, max: 3 << 20 };
/// Listings are cut finer, so that a change in a huge directory stores little.
const LISTING: Sizes = Sizes { min: 16 << 10, average: 64 << 10, max: 256 << 10 };

/// Cuts buffers for one data set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chunker {
    seed: u64,
}

impl Chunker {
    pub(crate) fn new(seed: u64) -> Self {
        Chunker { seed }
    }

    /// The pieces that `data`, which stands at `position` of its file, certainly begins with. Unless it is the `last` data,
    /// the end is left over: join it with what follows and call again.
    pub(crate) fn cut(&self, cut: Cut, data: &[u8], position: u64, last: bool) -> Vec<Range<usize>> {
        match cut {
            Cut::Content => self.cut_by_content(&CONTENT, data, last),
            Cut::Fixed(length) => cut_fixed((length as usize).clamp(512, Cut::LENGTH_MAX), data, position, last),
        }
    }

    /// The pieces of a row of small files: each ends with a file. Where, the files' digests say, so that the same files are
    /// cut alike wherever they stand, and no byte has to be looked at again. Gives the number of files in each piece.
    pub(crate) fn cut_files(&self, files: impl Iterator<Item = (usize, [u8; 16])>) -> Vec<usize> {
        let (mut pieces, mut count, mut length) = (Vec::new(), 0, 0usize);
        for (size, digest) in files {
            count += 1;
            length += size;
            // A file ends a piece as often as its size is a part of the average.
            let chance = (size as u64).saturating_mul(u64::MAX / FILES.average as u64);
            let ends = self.mix(digest) < chance && length >= FILES.min;
            if ends || length >= FILES.max {
                pieces.push(count);
                (count, length) = (0, 0);
            }
        }
        if count > 0 {
            pieces.push(count);
        }
        pieces
    }

    /// A number that depends on the digest and the seed.
    fn mix(&self, digest: [u8; 16]) -> u64 {
        let [a, b] = [0, 8].map(|at| {
            digest.get(at..at + 8).and_then(|half| half.try_into().ok()).map(u64::from_le_bytes).unwrap_or_default()
        });
        let product = u128::from(a ^ self.seed) * u128::from(b | 1);
        (product >> 64) as u64 ^ product as u64
    }

    /// The pieces of a listing.
    pub(crate) fn cut_listing(&self, data: &[u8]) -> Vec<Range<usize>> {
        self.cut_by_content(&LISTING, data, true)
    }

    fn cut_by_content(&self, sizes: &Sizes, data: &[u8], last: bool) -> Vec<Range<usize>> {
        let cdc =
            FastCDC::with_level_and_seed(data, sizes.min, sizes.average, sizes.max, Normalization::Level1, self.seed);
        let mut pieces = Vec::new();
        let mut start = 0;
        // A cut is certain only when the longest possible piece was in view.
        while start < data.len() && (last || data.len() - start >= sizes.max) {
            let (_, end) = cdc.cut(start, data.len() - start);
            pieces.push(start..end);
            start = end;
        }
        pieces
    }
}

/// Blocks end at multiples of their length in the file, wherever the data begins.
fn cut_fixed(length: usize, data: &[u8], position: u64, last: bool) -> Vec<Range<usize>> {
    let mut pieces = Vec::with_capacity(data.len() / length + 2);
    let (mut start, mut end) = (0, length - (position % length as u64) as usize);
    while end <= data.len() || (last && start < data.len()) {
        pieces.push(start..end.min(data.len()));
        (start, end) = (end, end + length);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn cuts_do_not_depend_on_the_buffers() {
        let data = noise(20 << 20);
        let chunker = Chunker::new(7);
        let whole = chunker.cut(Cut::Content, &data, 0, true);
        let (mut pieces, mut start) = (Vec::new(), 0);
        while start < data.len() {
            let end = (start + (5 << 20) + 12_345).min(data.len());
            let found = chunker.cut(Cut::Content, &data[start..end], start as u64, end == data.len());
            assert!(!found.is_empty());
            pieces.extend(found.iter().map(|piece| start + piece.start..start + piece.end));
            start = pieces.last().map_or(0, |piece: &Range<usize>| piece.end);
        }
        assert_eq!(whole, pieces);
        assert_ne!(whole, Chunker::new(8).cut(Cut::Content, &data, 0, true));
    }

    #[test]
    fn rows_of_files_are_cut_alike_wherever_they_stand() {
        let file = |n: u64| ((n * 7919 % 90_000) as usize, blake3::hash(&n.to_le_bytes()).as_bytes()[..16].try_into());
        let cut = |numbers: &[u64]| -> Vec<Vec<u64>> {
            let files = numbers.iter().map(|n| (file(*n).0, file(*n).1.unwrap_or_default()));
            let mut rest = numbers.iter().copied();
            let counts = Chunker::new(7).cut_files(files);
            counts.into_iter().map(|count| rest.by_ref().take(count).collect()).collect()
        };
        let before = cut(&(0..3000).collect::<Vec<_>>());
        let after =
            cut(&[&[9999, 8888], &(0..1500).collect::<Vec<_>>()[..], &(1501..3000).collect::<Vec<_>>()].concat());
        let length = |row: &Vec<u64>| row.iter().map(|n| file(*n).0).sum::<usize>();
        assert!(before.len() > 60 && before.iter().all(|row| length(row) < FILES.max + 90_000));
        assert_eq!(before.iter().flatten().copied().collect::<Vec<_>>(), (0..3000).collect::<Vec<_>>());
        // Two files before all others and one fewer in the middle change the rows they stand in, or the next.
        assert!(after.iter().filter(|row| !before.contains(row)).count() <= 4);
    }

    #[test]
    fn fixed_blocks_cover_everything() {
        let data = noise(200_000);
        let blocks = Cut::Fixed(64 << 10);
        let pieces = Chunker::new(0).cut(blocks, &data, 0, true);
        assert_eq!(pieces, [0..65536, 65536..131072, 131072..196608, 196608..200000]);
        assert_eq!(Chunker::new(0).cut(blocks, &data, 0, false).len(), 3);
        assert_eq!(Chunker::new(0).cut(blocks, &data[..70_000], 65_000, true), [0..536, 536..66_072, 66_072..70_000]);
        assert_eq!(Chunker::new(0).cut(blocks, &data[..10], 65_530, false).first(), Some(&(0..6)));
    }

    #[test]
    fn what_consists_of_pages_is_cut_in_blocks() {
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        assert_eq!(Cut::of_file(8 << 20, Some(b"anything")), Cut::PAGES);
        assert_eq!(Cut::of_file(8 << 20, None), Cut::PAGES);
        assert_eq!(Cut::of_file(64 << 30, None), Cut::PAGES);
        assert_eq!(Cut::of_file((8 << 20) + 512, Some(b"SQLite format 3\0")), Cut::PAGES);
        assert_eq!(Cut::of_file((8 << 20) + 512, Some(b"anything")), Cut::Content);
        assert_eq!(Cut::of_file(20_480 * 512, Some(&tar)), Cut::Content);
        assert_eq!(Cut::of_file(8 << 20, Some(b"\x7fELF")), Cut::Content);
    }
}
