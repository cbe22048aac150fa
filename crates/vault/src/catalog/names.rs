//! Names in blocks: small enough to keep ten million, in a form that can be searched through at the speed of memory.
//!
//! A block is, compressed: the number of its runs, each run's folder and number of names, and then the names, each ending in NUL.
//! Invariant: a block is taken apart only if its counts fit its bytes.

use std::ops::Range;

/// What is searched at once; larger compresses no better.
pub(super) const BLOCK_BYTES: usize = 128 << 10;
/// A block is closed soon after `BLOCK_BYTES`: by one name at most.
const BLOCK_BYTES_MAX: usize = 16 << 20;
/// What is searched is unpacked each time, so that few long matches are better than many short ones: written slower, read faster, and smaller.
const COMPRESSION: i32 = 7;
const MATCH_BYTES_MIN: u32 = 7;

/// Names of one folder, in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) folder: i64,
    pub(super) count: u32,
}

/// A block that is being filled.
#[derive(Debug, Default)]
pub(super) struct NewBlock {
    runs: Vec<Run>,
    names: Vec<u8>,
}

impl NewBlock {
    pub(super) fn of(block: &Block<'_>) -> NewBlock {
        NewBlock { runs: block.runs.clone(), names: block.names.to_vec() }
    }

    pub(super) fn block(&self) -> Block<'_> {
        Block { runs: self.runs.clone(), names: &self.names }
    }

    pub(super) fn count(&self) -> u64 {
        count(&self.runs)
    }

    pub(super) fn is_full(&self) -> bool {
        self.names.len() >= BLOCK_BYTES
    }

    pub(super) fn push(&mut self, folder: i64, name: &[u8]) {
        match self.runs.last_mut() {
            Some(run) if run.folder == folder && run.count < u32::MAX => run.count += 1,
            _ => self.runs.push(Run { folder, count: 1 }),
        }
        self.names.extend_from_slice(name);
        self.names.push(0);
    }

    pub(super) fn pack(&self) -> std::io::Result<Vec<u8>> {
        let mut plain = Vec::with_capacity(4 + self.runs.len() * 12 + self.names.len());
        plain.extend_from_slice(&(self.runs.len() as u32).to_le_bytes());
        for run in &self.runs {
            plain.extend_from_slice(&run.folder.to_le_bytes());
            plain.extend_from_slice(&run.count.to_le_bytes());
        }
        plain.extend_from_slice(&self.names);
        let mut compressor = zstd::bulk::Compressor::new(COMPRESSION)?;
        compressor.set_parameter(zstd::zstd_safe::CParameter::MinMatch(MATCH_BYTES_MIN))?;
        compressor.compress(&plain)
    }
}

/// A block that was opened.
#[derive(Debug)]
pub(super) struct Block<'a> {
    pub(super) runs: Vec<Run>,
    pub(super) names: &'a [u8],
}

/// Opens blocks, one after the other, in the same memory.
#[derive(Default)]
pub(super) struct Unpacker {
    zstd: Option<zstd::bulk::Decompressor<'static>>,
    plain: Vec<u8>,
}

impl std::fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Unpacker")
    }
}

impl Unpacker {
    /// `None` for what is no block.
    pub(super) fn unpack(&mut self, packed: &[u8]) -> Option<Block<'_>> {
        let bytes = zstd::zstd_safe::get_frame_content_size(packed).ok().flatten()?;
        let bytes = usize::try_from(bytes).ok().filter(|bytes| *bytes <= BLOCK_BYTES_MAX)?;
        self.plain.clear();
        self.plain.reserve(bytes);
        let zstd = match &mut self.zstd {
            Some(zstd) => zstd,
            none => none.insert(zstd::bulk::Decompressor::new().ok()?),
        };
        zstd.decompress_to_buffer(packed, &mut self.plain).ok()?;
        let (heads, rest) = self.plain.split_first_chunk::<4>()?;
        let (heads, names) = rest.split_at_checked((u32::from_le_bytes(*heads) as usize).checked_mul(12)?)?;
        let mut runs = Vec::with_capacity(heads.len() / 12);
        for head in heads.chunks_exact(12) {
            let (folder, count) = head.split_first_chunk::<8>()?;
            let count = u32::from_le_bytes(count.try_into().ok()?);
            runs.push(Run { folder: i64::from_le_bytes(*folder), count });
        }
        (names.is_empty() || names.ends_with(&[0])).then_some(Block { runs, names })
    }
}

fn count(runs: &[Run]) -> u64 {
    runs.iter().map(|run| u64::from(run.count)).sum()
}

impl Block<'_> {
    pub(super) fn count(&self) -> u64 {
        count(&self.runs)
    }

    /// The names one after the other, with their places in the block.
    pub(super) fn names(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.names;
        std::iter::from_fn(move || {
            let (name, after) = rest.split_at_checked(memchr::memchr(0, rest)?)?;
            rest = after.get(1..).unwrap_or_default();
            Some(name)
        })
    }

    /// The name that holds the byte at `offset`, as a range.
    pub(super) fn name_around(&self, offset: usize) -> Range<usize> {
        let before = self.names.get(..offset).unwrap_or_default();
        let start = memchr::memrchr(0, before).map_or(0, |at| at + 1);
        let after = self.names.get(offset..).unwrap_or_default();
        let end = offset + memchr::memchr(0, after).unwrap_or(after.len());
        start..end
    }
}

/// The names of a block, each to be had by its place.
#[derive(Debug)]
pub(super) struct Names {
    names: Vec<u8>,
    /// Where each ends.
    ends: Vec<u32>,
}

impl Names {
    pub(super) fn of(block: &Block<'_>) -> Names {
        Names { names: block.names.to_vec(), ends: memchr::memchr_iter(0, block.names).map(|end| end as u32).collect() }
    }

    pub(super) fn count(&self) -> u64 {
        self.ends.len() as u64
    }

    /// So many names from a place on, or as many as there are.
    pub(super) fn rows(&self, from: i64, count: i64) -> impl Iterator<Item = &[u8]> {
        let from = usize::try_from(from).unwrap_or(usize::MAX).min(self.ends.len());
        let to = from.saturating_add(usize::try_from(count).unwrap_or(0)).min(self.ends.len());
        (from..to).map(|index| {
            let start =
                index.checked_sub(1).and_then(|before| self.ends.get(before)).map_or(0, |end| *end as usize + 1);
            let end = self.ends.get(index).map_or(start, |end| *end as usize);
            self.names.get(start..end).unwrap_or_default()
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_block_comes_back() {
        let mut filling = NewBlock::default();
        for (folder, name) in [(1, "a"), (1, "bc"), (7, "with\nline"), (1, "")] {
            filling.push(folder, name.as_bytes());
        }
        let mut unpacker = Unpacker::default();
        let again = unpacker.unpack(&filling.pack().unwrap()).unwrap();
        assert_eq!(again.runs, filling.runs);
        assert_eq!(again.names().collect::<Vec<_>>(), [&b"a"[..], b"bc", b"with\nline", b""]);
        assert_eq!(&again.names[again.name_around(3)], b"bc");
        let names = Names::of(&again);
        assert_eq!(names.rows(1, 2).collect::<Vec<_>>(), [&b"bc"[..], b"with\nline"]);
        assert_eq!((names.count(), names.rows(3, 9).count(), names.rows(9, 1).count()), (4, 1, 0));
        // More runs than bytes, and a name without an end.
        for wrong in [&[9, 0, 0, 0, 1][..], &[0, 0, 0, 0, b'a']] {
            assert!(unpacker.unpack(&zstd::bulk::compress(wrong, 1).unwrap()).is_none());
        }
        assert!(unpacker.unpack(&filling.pack().unwrap()).is_some());
    }
}
