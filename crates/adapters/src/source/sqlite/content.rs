//! What one log object of a SQLite data set holds: the last image of each page that changed, and where that leaves
//! the database.
//!
//! Invariant: applying pieces in order to the snapshot they follow gives, after each, exactly the database as it was
//! between two transactions. A piece is decoded whole, and checked, before any of it is applied.
//!
//! Layout (little-endian): `LBSQLOG1`, page size, database size in pages, the log's two salts, last frame, the two
//! checksum words there, when it was seen (microseconds since 1970, UTC), number of pages; then one zstd frame with,
//! for each page in ascending order, its number (4 bytes) and its image.

use std::io::{Read, Write};

use jiff::Timestamp;

use super::wal::{Place, Salts, Sum, is_page_size};

const MAGIC: &[u8; 8] = b"LBSQLOG1";
const HEAD_BYTES: usize = 8 + 7 * 4 + 8 + 4;
/// Fast: what ships every moment must not cost the host its processor.
const COMPRESSION_LEVEL: i32 = 1;
/// What is unpacked may look back by 8 MiB and no more, whatever it says: that much memory it may take.
const WINDOW_LOG_MAX: u32 = 23;
/// The most that one piece may hold, unpacked, so that what cannot be compressed still fits into a log object; what
/// changes more at once is better served by a new snapshot.
pub(super) const PIECE_BYTES_MAX: u64 = 60 << 20;

#[derive(Debug, thiserror::Error)]
pub(super) enum ContentError {
    #[error("not a piece of a SQLite log that this version understands ({0})")]
    Malformed(&'static str),
    #[error("cannot pack or unpack page images")]
    Packing(#[source] std::io::Error),
}

/// Everything of a piece but the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) database_pages: u32,
    /// Where the source's log stood after the last transaction in it.
    pub(super) end: Place,
    /// When the last transaction had certainly been committed.
    pub(super) seen_at: Timestamp,
    pub(super) page_count: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) head: Head,
    /// Number and image, ascending.
    body: Vec<u8>,
}

/// Packs pages, which `image` reads one by one in ascending order.
pub(super) fn encode<E: From<ContentError>>(
    head: &Head,
    pages: impl Iterator<Item = u32>,
    mut image: impl FnMut(u32, &mut [u8]) -> Result<(), E>,
) -> Result<Vec<u8>, E> {
    let packing = |error| E::from(ContentError::Packing(error));
    let mut out = encode_head(head);
    let mut page_image = vec![0; head.end.page_size as usize];
    let mut packer = zstd::stream::write::Encoder::new(&mut out, COMPRESSION_LEVEL).map_err(packing)?;
    for page in pages {
        image(page, &mut page_image)?;
        packer.write_all(&page.to_le_bytes()).and_then(|()| packer.write_all(&page_image)).map_err(packing)?;
    }
    packer.finish().map_err(packing)?;
    Ok(out)
}

fn encode_head(head: &Head) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    let end = &head.end;
    for word in [end.page_size, head.database_pages, end.salts.0, end.salts.1, end.frame, end.sum.0, end.sum.1] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&head.seen_at.as_microsecond().to_le_bytes());
    out.extend_from_slice(&head.page_count.to_le_bytes());
    out
}

impl Head {
    pub(super) fn decode(payload: &[u8]) -> Result<Head, ContentError> {
        let head = payload.get(..HEAD_BYTES).ok_or(ContentError::Malformed("too short"))?;
        let rest = head.strip_prefix(MAGIC).ok_or(ContentError::Malformed("wrong magic number"))?;
        let word = |index: usize| {
            rest.get(index * 4..index * 4 + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_le_bytes)
        };
        let seen = rest.get(28..36).and_then(|eight| eight.try_into().ok()).map_or(0, i64::from_le_bytes);
        let seen_at = Timestamp::from_microsecond(seen).map_err(|_| ContentError::Malformed("impossible time"))?;
        let page_size = word(0);
        let head = Head {
            database_pages: word(1),
            end: Place { page_size, salts: Salts(word(2), word(3)), frame: word(4), sum: Sum(word(5), word(6)) },
            seen_at,
            page_count: word(9),
        };
        if !is_page_size(page_size) {
            return Err(ContentError::Malformed("impossible page size"));
        }
        if head.body_bytes() > PIECE_BYTES_MAX {
            return Err(ContentError::Malformed("more pages than a piece may hold"));
        }
        Ok(head)
    }

    fn body_bytes(&self) -> u64 {
        u64::from(self.page_count) * (u64::from(self.end.page_size) + 4)
    }
}

impl Piece {
    pub(super) fn decode(payload: &[u8]) -> Result<Piece, ContentError> {
        let head = Head::decode(payload)?;
        let packed = payload.get(HEAD_BYTES..).unwrap_or_default();
        let mut unpacker = zstd::stream::read::Decoder::new(packed).map_err(ContentError::Packing)?;
        unpacker.window_log_max(WINDOW_LOG_MAX).map_err(ContentError::Packing)?;
        let mut body = Vec::new();
        unpacker.take(head.body_bytes() + 1).read_to_end(&mut body).map_err(ContentError::Packing)?;
        if body.len() as u64 != head.body_bytes() {
            return Err(ContentError::Malformed("its pages are not as many as it says"));
        }
        let piece = Piece { head, body };
        let mut before = 0;
        for (page, _) in piece.pages() {
            if page <= before {
                return Err(ContentError::Malformed("its pages are not in order"));
            }
            before = page;
        }
        Ok(piece)
    }

    pub(super) fn pages(&self) -> impl Iterator<Item = (u32, &[u8])> {
        self.body.chunks_exact(self.head.end.page_size as usize + 4).filter_map(|entry| {
            let (number, image) = entry.split_first_chunk::<4>()?;
            Some((u32::from_le_bytes(*number), image))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    fn head(page_count: u32) -> Head {
        Head {
            database_pages: 9,
            end: Place { page_size: 512, salts: Salts(1, 2), frame: 77, sum: Sum(3, 4) },
            seen_at: "2026-11-21T14:00:00.123456Z".parse().unwrap(),
            page_count,
        }
    }

    fn sample() -> Vec<u8> {
        encode::<ContentError>(&head(3), [2, 5, 9].into_iter(), |page, image| {
            image.fill(page as u8);
            Ok(())
        })
        .unwrap()
    }

    #[test]
    fn what_was_packed_is_unpacked() {
        let piece = Piece::decode(&sample()).unwrap();
        assert_eq!(piece.head, head(3));
        let pages: Vec<_> = piece.pages().map(|(page, image)| (page, image.len(), image[511])).collect();
        assert_eq!(pages, [(2, 512, 2), (5, 512, 5), (9, 512, 9)]);
    }

    #[test]
    fn what_is_cut_off_or_out_of_order_is_refused() {
        let whole = sample();
        for length in 0..whole.len() {
            assert!(Piece::decode(&whole[..length]).is_err(), "{length} bytes");
        }
        let unordered = encode::<ContentError>(&head(2), [5, 2].into_iter(), |_, _| Ok(())).unwrap();
        assert!(Piece::decode(&unordered).is_err());
        let missing = encode::<ContentError>(&head(3), [2, 5].into_iter(), |_, _| Ok(())).unwrap();
        assert!(Piece::decode(&missing).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0_usize..48, value in any::<u8>()) {
            let _ = Piece::decode(&bytes);
            let mut flipped = sample();
            flipped[at] = value;
            let _ = Piece::decode(&flipped);
        }
    }
}
