//! Brings a database back to any moment that a vault knows: a full snapshot, then the log up to that moment.
//!
//! Invariant: the result is the source's state between two transactions and has passed SQLite's integrity check, or there
//! is no result under the database's name.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use jiff::Timestamp;
use lifeboat_engine::port::{Cancel, RestoreRequest, Restored};
use lifeboat_vault::{LogEntry, Position, Unlocked};

use super::base::write_base;
use super::copy::{Check, RestoreError, beside, open_work, put_in_place, remove_companions, verify};
use super::pieces::{self, apply_piece};
use crate::source::way::{self, Way, position_text};

pub(super) fn restore(vault: &Unlocked, request: &RestoreRequest, cancel: &Cancel) -> Result<Restored, RestoreError> {
    let began = Instant::now();
    let until = way::until(&request.dataset, &request.target)?;
    let way = way::find(vault, &request.dataset, &request.target)?;
    let work_path = beside(&request.to, ".lifeboat-restore");
    prepare(&request.to, &work_path, request.in_place)?;
    let file = open_work(&work_path)?;
    let (_, mut bytes_written) = write_base(vault, &way.base, &file, &work_path, cancel)?;
    let mut position = way.base.position.clone();
    let (mut as_of, mut applied_to) = (way.reaches, way.base.taken_at);
    pieces::for_each(vault, &way.pieces, cancel, |entry, piece| {
        if until.is_some_and(|until| piece.head.seen_at > until) {
            // What is in it may have been committed only after the wanted moment.
            as_of = applied_to;
            return Ok(false);
        }
        applied_to = applied_to.max(entry.source_time);
        bytes_written += apply_piece(&piece, entry, &file)?;
        advance(&mut position, entry);
        Ok(true)
    })?;
    file.sync_all().map_err(RestoreError::file("make durable", &work_path))?;
    let bytes = file.metadata().map_err(RestoreError::file("look at", &work_path))?.len();
    drop(file);
    let verified = verify(&work_path, Check::Integrity)?;
    put_in_place(&work_path, &request.to)?;
    Ok(told(way, position, as_of, bytes, bytes_written, verified, began))
}

fn told(
    way: Way,
    position: Option<Position>,
    as_of: Timestamp,
    bytes: u64,
    bytes_written: u64,
    verified: &str,
    began: Instant,
) -> Restored {
    Restored {
        point: way.base,
        position: position.as_ref().map(position_text),
        as_of,
        files: 1,
        bytes,
        bytes_written,
        seconds: began.elapsed().as_secs_f64(),
        verified: Some(verified.to_owned()),
        notes: way.notes,
    }
}

/// Takes its name from what is in the place, if it may be changed.
fn prepare(to: &Path, work_path: &PathBuf, in_place: bool) -> Result<(), RestoreError> {
    match fs::symlink_metadata(to) {
        Ok(_) if !in_place => Err(RestoreError::Exists { path: to.to_owned() }),
        Ok(_) => {
            remove_companions(to)?;
            fs::rename(to, work_path).map_err(RestoreError::file("take its name from", to))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(RestoreError::file("look at", to)(error)),
    }
}

fn advance(position: &mut Option<Position>, entry: &LogEntry) {
    if let Some(position) = position {
        position.counter = entry.last;
    }
}
