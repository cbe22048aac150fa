//! Doors for fuzzers into what a SQLite log's objects, and a database's own write-ahead log, may say.
//!
//! Invariant: a door never panics, and takes no more memory than a piece may hold.

use std::fs::File;
use std::io::Write;

use super::apply::apply;
use super::content::Piece;
use super::wal::{self, Header};

/// Larger databases than this are not made: a piece may well say that one has terabytes, none of them written.
const DATABASE_BYTES_MAX: u64 = 16 << 20;

/// A file that is in memory only.
fn passing_file() -> Option<File> {
    let made = rustix::fs::memfd_create("lifeboat-fuzz", rustix::fs::MemfdFlags::CLOEXEC);
    made.ok().map(File::from)
}

/// The payload of a log object, as a host that was broken into may have sealed it, applied to an empty file and to what comes of it.
pub(crate) fn payload(data: &[u8]) {
    let Ok(piece) = Piece::decode(data) else { return };
    let bytes = u64::from(piece.head.database_pages) * u64::from(piece.head.end.page_size);
    let Some(file) = passing_file().filter(|_| bytes <= DATABASE_BYTES_MAX) else { return };
    if apply(&piece, &file).is_ok() {
        assert_eq!(file.metadata().map_or(0, |metadata| metadata.len()), bytes, "another size than the piece says");
        // What lies there now may not be a database that it fits.
        let _ = apply(&piece, &file);
    }
}

/// A write-ahead log: as it is, and with the checksums that whoever wrote it could have made.
pub(crate) fn write_ahead_log(data: &[u8]) {
    for log in [data.to_vec(), wal::with_right_sums(data)] {
        let Some(mut file) = passing_file() else { return };
        if file.write_all(&log).is_err() {
            return;
        }
        let Ok(Some(header)) = Header::read(&file) else { continue };
        let frames = (log.len() as u64 - wal::HEADER_BYTES) / (wal::FRAME_HEADER_BYTES + u64::from(header.page_size));
        let start = header.start();
        for through in [1, frames as u32] {
            let Ok(stretch) = header.scan(&file, &start, through) else { continue };
            assert!(stretch.end.is_in(&header, &file).unwrap_or(true), "a place that was just read is not there");
            let mut image = vec![0; header.page_size as usize];
            for (page, frame) in stretch.frames.iter().take(8) {
                let _ = wal::read_image(&file, header.salts, *page, *frame, &mut image);
            }
        }
    }
}

/// A piece of two pages.
pub(crate) fn seed() -> Vec<u8> {
    use super::content::{ContentError, Head, encode};
    use super::wal::{Place, Salts, Sum};
    let head = Head {
        database_pages: 3,
        end: Place { page_size: 512, salts: Salts(1, 2), frame: 4, sum: Sum(5, 6) },
        seen_at: jiff::Timestamp::UNIX_EPOCH,
        page_count: 2,
    };
    let fill = |page: u32, image: &mut [u8]| {
        image.fill(page as u8);
        Ok::<(), ContentError>(())
    };
    encode(&head, [2, 3].into_iter(), fill).unwrap_or_default()
}

/// Two frames, the second of which ends a transaction: without sums, which the door adds.
pub(crate) fn wal_seed() -> Vec<u8> {
    let frame = |page: u8, size: u8| [&[0, 0, 0, page, 0, 0, 0, size][..], &[page; wal::PLAIN_PAGE]].concat();
    [frame(1, 0), frame(2, 2)].concat()
}
