//! What lies at the end of a log: records that are whole, or the beginning of one that is not.
//!
//! Invariant: "no record" is said only of a stretch in which the server's own program finds none, and in no segment after its beginning.

use std::path::Path;
use std::process::Command;

use super::recover::RecoverError;
use crate::postgres::lsn::{Lsn, Segments};
use crate::postgres::programs::Programs;

/// What follows a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// At least one whole record.
    Records,
    /// Nothing, or the beginning of a record.
    NoRecord,
}

/// Looks at the log in a directory of segments, between a place where a record ended and the end of what is there.
pub(super) fn rest_of_log(
    programs: &Programs,
    directory: &Path,
    timeline: u32,
    segments: Segments,
    (from, end): (Lsn, Lsn),
) -> Result<Rest, RecoverError> {
    if last_record(programs, directory, timeline, (from, end))?.0.is_some() {
        return Ok(Rest::Records);
    }
    // A record that is not whole is the last: whatever is whole after it says that it is not whole by damage.
    for number in segments.number_of(from) + 1..=segments.number_of(Lsn(end.0.saturating_sub(1))) {
        let start = segments.start(number);
        if last_record(programs, directory, timeline, (start, end))?.0.is_some() {
            return Err(RecoverError::Broken { at: from, after: start });
        }
    }
    Ok(Rest::NoRecord)
}

/// Where the last whole record that begins between two places begins, reading from the first of them; and what was said of the end.
pub(super) fn last_record(
    programs: &Programs,
    directory: &Path,
    timeline: u32,
    (from, end): (Lsn, Lsn),
) -> Result<(Option<Lsn>, String), RecoverError> {
    let program = programs.program("pg_waldump");
    let mut command = Command::new(&program);
    command.arg("--path").arg(directory).args(["--timeline", &timeline.to_string()]);
    command.args(["--start", &from.to_string(), "--end", &end.to_string()]).env("LC_ALL", "C");
    let output = command.output().map_err(RecoverError::file("run", &program))?;
    // It ends with an error where the log does, and names what it found before on its output.
    let text = String::from_utf8_lossy(&output.stdout);
    let found = text.lines().rev().find_map(|line| line.split_once("lsn: ")?.1.split(',').next()?.parse().ok());
    Ok((found, crate::postgres::error::words(&output.stderr)))
}
