//! Applies pieces to a database file that nobody has open.
//!
//! Invariant: applying a piece twice, or again after being interrupted anywhere in it, leaves the same file; a piece
//! that does not fit the file (other page size, impossible page) changes nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::content::Piece;

#[derive(Debug, thiserror::Error)]
pub(super) enum ApplyError {
    #[error("a piece with pages of {piece} bytes does not belong to a database with pages of {database}")]
    PageSize { piece: u32, database: u32 },
    #[error("a piece says the database has {size} pages and none of them")]
    Size { size: u32 },
    #[error("cannot write the database file")]
    Write(#[source] io::Error),
}

/// Writes a piece's pages and sets the size. Answers the bytes written. Durable only after `sync_data`.
pub(super) fn apply(piece: &Piece, file: &File) -> Result<u64, ApplyError> {
    let page_size = piece.head.end.page_size;
    if let Some(database) = page_size_of(file)?
        && database != page_size
    {
        return Err(ApplyError::PageSize { piece: page_size, database });
    }
    let size = piece.head.database_pages;
    if size == 0 {
        return Err(ApplyError::Size { size });
    }
    let mut written = 0;
    // A page beyond the final size was added and cut off again within the piece.
    for (page, image) in piece.pages().filter(|(page, _)| *page <= size) {
        file.write_all_at(image, u64::from(page - 1) * u64::from(page_size)).map_err(ApplyError::Write)?;
        written += image.len() as u64;
    }
    let bytes = u64::from(size) * u64::from(page_size);
    if file.metadata().map_err(ApplyError::Write)?.len() != bytes {
        file.set_len(bytes).map_err(ApplyError::Write)?;
    }
    Ok(written)
}

/// The page size that a database file's header names; `None` for an empty file.
pub(super) fn page_size_of(file: &File) -> Result<Option<u32>, ApplyError> {
    let mut bytes = [0; 2];
    match file.read_exact_at(&mut bytes, 16) {
        Ok(()) => Ok(Some(match u16::from_be_bytes(bytes) {
            1 => 65_536,
            other => u32::from(other),
        })),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(ApplyError::Write(error)),
    }
}
