//! Doors for fuzzers into what a PostgreSQL data set's log objects, manifests and facts may say.
//!
//! Invariant: a door never panics, and takes no more memory than a piece may hold.

use super::chain::Lineage;
use super::facts::{Facts, range_of};
use super::piece::Piece;
use crate::postgres::lsn::{Lsn, Segments};

/// The payload of a log object, as a host that was broken into may have sealed it; and the same as a lineage, a manifest and facts.
pub(crate) fn payload(data: &[u8]) {
    if let Ok(piece) = Piece::decode(data) {
        assert_eq!(piece.end().0 - piece.start.0, piece.wal.len() as u64);
        if let Ok(again) = piece.encode() {
            assert!(Piece::decode(&again).is_ok_and(|again| again == piece), "a piece is another when it was stored");
        }
    }
    if let Some(lineage) = std::str::from_utf8(data).ok().and_then(Lineage::parse) {
        assert_eq!(lineage.to_string().as_bytes(), data);
    }
    let _ = range_of(data);
    if let Ok(facts) = Facts::decode(data) {
        let _ = facts.major();
    }
}

pub(crate) fn seed() -> Vec<u8> {
    let segments = Segments::new(16 << 20);
    let piece = segments.map(|segments| Piece {
        system: 7,
        timeline: 2,
        segments,
        start: Lsn(16 << 20),
        history: b"1\t0/1000000\tno recovery target specified\n".to_vec(),
        wal: (0..200).map(|n| (n / 3) as u8).collect(),
    });
    piece.and_then(|piece| piece.encode().ok()).unwrap_or_default()
}
