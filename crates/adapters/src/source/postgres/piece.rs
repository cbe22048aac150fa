//! What one log object of a PostgreSQL data set holds: a stretch of the server's write-ahead log, byte for byte.
//!
//! Invariant: a piece is decoded whole, and checked, before any of it is used; it never unpacks to more than `PIECE_BYTES_MAX`.
//!
//! Layout (little-endian): `LBPGLOG1`, system identifier (8 bytes), timeline (4), bytes of a segment (4), where it begins (8), length of
//! the timeline's history file (4), the history file, then one zstd frame with the log's bytes.

use std::io::Read;

use crate::postgres::lsn::{Lsn, Segments};

const MAGIC: &[u8; 8] = b"LBPGLOG1";
const HEAD_BYTES: usize = 8 + 8 + 4 + 4 + 8 + 4;
/// Fast: what ships every moment must not cost the host its processor.
const COMPRESSION_LEVEL: i32 = 1;
/// What is unpacked may look back by 8 MiB and no more, whatever it says: that much memory it may take.
const WINDOW_LOG_MAX: u32 = 23;
/// The most of the log that one piece may hold.
pub(super) const PIECE_BYTES_MAX: usize = 8 << 20;
/// A server that was promoted a thousand times has a history of some 50 KiB.
const HISTORY_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub(super) enum PieceError {
    #[error("not a piece of a PostgreSQL log that this version understands ({0})")]
    Malformed(&'static str),
    #[error("cannot pack or unpack a piece of the log")]
    Packing(#[source] std::io::Error),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) system: u64,
    pub(super) timeline: u32,
    pub(super) segments: Segments,
    pub(super) start: Lsn,
    /// The timeline's history file, in the first piece of a chain; empty for the first timeline.
    pub(super) history: Vec<u8>,
    pub(super) wal: Vec<u8>,
}

impl Piece {
    pub(super) fn end(&self) -> Lsn {
        Lsn(self.start.0 + self.wal.len() as u64)
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, PieceError> {
        let history =
            u32::try_from(self.history.len()).map_err(|_| PieceError::Malformed("its history is too long"))?;
        let segment =
            u32::try_from(self.segments.bytes).map_err(|_| PieceError::Malformed("its segments are too long"))?;
        let mut out = Vec::with_capacity(HEAD_BYTES + self.history.len() + self.wal.len() / 2);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&self.system.to_le_bytes());
        out.extend_from_slice(&self.timeline.to_le_bytes());
        out.extend_from_slice(&segment.to_le_bytes());
        out.extend_from_slice(&self.start.0.to_le_bytes());
        out.extend_from_slice(&history.to_le_bytes());
        out.extend_from_slice(&self.history);
        out.extend_from_slice(&zstd::bulk::compress(&self.wal, COMPRESSION_LEVEL).map_err(PieceError::Packing)?);
        Ok(out)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Piece, PieceError> {
        let mut rest = bytes.strip_prefix(MAGIC).ok_or(PieceError::Malformed("it begins with something else"))?;
        let system = u64::from_le_bytes(take(&mut rest)?);
        let timeline = u32::from_le_bytes(take(&mut rest)?);
        let segment = u32::from_le_bytes(take(&mut rest)?);
        let start = u64::from_le_bytes(take(&mut rest)?);
        let history = u32::from_le_bytes(take(&mut rest)?) as usize;
        if history > HISTORY_BYTES_MAX {
            return Err(PieceError::Malformed("its history is too long"));
        }
        let (history, packed) = rest.split_at_checked(history).ok_or(PieceError::Malformed("it is cut off"))?;
        let segments =
            Segments::new(u64::from(segment)).ok_or(PieceError::Malformed("its segments have no such length"))?;
        let mut decoder = zstd::Decoder::new(packed).map_err(PieceError::Packing)?;
        decoder.window_log_max(WINDOW_LOG_MAX).map_err(PieceError::Packing)?;
        let mut wal = Vec::new();
        decoder.take(PIECE_BYTES_MAX as u64 + 1).read_to_end(&mut wal).map_err(PieceError::Packing)?;
        let fits = wal.len() <= PIECE_BYTES_MAX && start.checked_add(wal.len() as u64).is_some();
        if timeline == 0 || !fits {
            return Err(PieceError::Malformed("its place in the log cannot be"));
        }
        Ok(Piece { system, timeline, segments, start: Lsn(start), history: history.to_vec(), wal })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], PieceError> {
    let (taken, after) = rest.split_first_chunk().ok_or(PieceError::Malformed("it is cut off"))?;
    *rest = after;
    Ok(*taken)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn piece() -> Piece {
        Piece {
            system: 7_412_345_678_901_234_567,
            timeline: 3,
            segments: Segments::new(16 << 20).unwrap(),
            start: Lsn(0x0300_0000),
            history: b"1\t0/2000000\tno recovery target specified\n".to_vec(),
            wal: (0..100_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect(),
        }
    }

    #[test]
    fn a_piece_comes_back_as_it_was() {
        let piece = piece();
        let bytes = piece.encode().unwrap();
        assert!(bytes.len() < piece.wal.len());
        assert_eq!(Piece::decode(&bytes).unwrap(), piece);
        assert_eq!(piece.end(), Lsn(0x0300_0000 + 400_000));
    }

    #[test]
    fn whatever_is_cut_or_changed_is_refused_or_another_piece_and_never_a_panic() {
        let bytes = piece().encode().unwrap();
        for length in 0..bytes.len() {
            assert!(Piece::decode(&bytes[..length]).is_err(), "{length}");
        }
        for place in 0..HEAD_BYTES + 50 {
            let mut changed = bytes.clone();
            changed[place] ^= 0x41;
            let _ = Piece::decode(&changed);
        }
    }

    #[test]
    fn a_bomb_is_refused_before_it_takes_memory() {
        let mut bomb = Piece { wal: Vec::new(), ..piece() }.encode().unwrap();
        bomb.truncate(HEAD_BYTES + piece().history.len());
        bomb.extend_from_slice(&zstd::bulk::compress(&vec![0; PIECE_BYTES_MAX + 1], 1).unwrap());
        assert!(matches!(Piece::decode(&bomb), Err(PieceError::Malformed("its place in the log cannot be"))));
    }
}
