//! Names in blocks: small enough to keep ten million, in a form that can be searched through at the speed of memory.
//!
//! A block is, compressed: the number of its runs, each run's folder and number of names, and then the names, each ending in NUL.
//! Invariant: a block is taken apart only if its counts fit its bytes.

use std::ops::Range;

/// What is searched at once; larger compresses no better.
pub(super) const BLOCK_BYTES: usize = 128 << 10;
/// A block is closed soon after `BLOCK_BYTES`: by one name at most.
const BLOCK_BYTES_MAX: usize = 16 << 20;
const COMPRESSION: i32 = 3;

/// Names of one folder, in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) folder: i64,
    pub(super) count: u32,
}

/// A block that is being filled, or was opened.
#[derive(Debug, Default)]
pub(super) struct Block {
    pub(super) runs: Vec<Run>,
    pub(super) names: Vec<u8>,
}

impl Block {
    pub(super) fn count(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.count)).sum()
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
        zstd::bulk::compress(&plain, COMPRESSION)
    }

    pub(super) fn unpack(packed: &[u8]) -> Option<Block> {
        let plain = zstd::bulk::decompress(packed, BLOCK_BYTES_MAX).ok()?;
        let (count, rest) = plain.split_first_chunk::<4>()?;
        let (heads, names) = rest.split_at_checked((u32::from_le_bytes(*count) as usize).checked_mul(12)?)?;
        let mut runs = Vec::with_capacity(heads.len() / 12);
        for head in heads.chunks_exact(12) {
            let (folder, count) = head.split_first_chunk::<8>()?;
            let count = u32::from_le_bytes(count.try_into().ok()?);
            runs.push(Run { folder: i64::from_le_bytes(*folder), count });
        }
        let names = names.to_vec();
        (names.is_empty() || names.ends_with(&[0])).then_some(Block { runs, names })
    }

    /// The names one after the other, with their places in the block.
    pub(super) fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.names.split(|byte| *byte == 0).take(self.count() as usize)
    }

    /// The name that holds the byte at `offset`, as a range.
    pub(super) fn name_around(&self, offset: usize) -> Range<usize> {
        let before = self.names.get(..offset).unwrap_or_default();
        let start = before.iter().rposition(|byte| *byte == 0).map_or(0, |at| at + 1);
        let after = self.names.get(offset..).unwrap_or_default();
        let end = offset + after.iter().position(|byte| *byte == 0).unwrap_or(after.len());
        start..end
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_block_comes_back() {
        let mut block = Block::default();
        for (folder, name) in [(1, "a"), (1, "bc"), (7, "with\nline"), (1, "")] {
            block.push(folder, name.as_bytes());
        }
        let again = Block::unpack(&block.pack().unwrap()).unwrap();
        assert_eq!(again.runs, block.runs);
        assert_eq!(again.names().collect::<Vec<_>>(), [&b"a"[..], b"bc", b"with\nline", b""]);
        assert_eq!(&again.names[again.name_around(3)], b"bc");
        assert!(Block::unpack(&zstd::bulk::compress(&[9, 0, 0, 0, 1], 1).unwrap()).is_none());
    }
}
