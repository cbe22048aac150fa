//! Pieces of the log, read ahead on several threads and applied one after the other.
//!
//! Invariant: what is applied is applied in the log's order, and nothing after the first piece that failed.

use std::fs::File;

use lifeboat_engine::port::Cancel;
use lifeboat_vault::{LogEntry, Unlocked};

use super::apply::apply;
use super::content::Piece;
use super::copy::RestoreError;
use crate::source::ahead;

/// Hands the entries' pieces over in order, until `each` answers `false` or fails.
pub(super) fn for_each(
    vault: &Unlocked,
    entries: &[LogEntry],
    cancel: &Cancel,
    each: impl FnMut(&LogEntry, Piece) -> Result<bool, RestoreError>,
) -> Result<(), RestoreError> {
    match ahead::for_each(entries, cancel, |entry| read_piece(vault, entry), each)? {
        true => Ok(()),
        false => Err(RestoreError::Cancelled),
    }
}

fn read_piece(vault: &Unlocked, entry: &LogEntry) -> Result<Piece, RestoreError> {
    let payload = vault.read_log(entry).map_err(|source| RestoreError::Piece { key: entry.key.clone(), source })?;
    Piece::decode(&payload).map_err(|source| RestoreError::Content { key: entry.key.clone(), source })
}

pub(super) fn apply_piece(piece: &Piece, entry: &LogEntry, file: &File) -> Result<u64, RestoreError> {
    apply(piece, file).map_err(|source| RestoreError::Apply { key: entry.key.clone(), source })
}
