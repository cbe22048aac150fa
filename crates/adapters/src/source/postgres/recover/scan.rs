//! The log of a chain, read record by record by the server's own program, in stretches that fit on a disk.
//!
//! Invariant: it ends without an error only when every record from the given place to the end of the last piece was read, one after the
//! other. A record that the last piece holds only the beginning of is the log's end.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lifeboat_engine::port::Cancel;
use lifeboat_vault::{LogEntry, Unlocked};

use super::super::rest::{Rest, rest_of_log};
use super::super::spool::{Spool, Which};
use super::RecoverError;
use crate::postgres::lsn::Lsn;
use crate::postgres::programs::Programs;

/// More than the longest record (1020 MiB): where a stretch as long as this brings no new record, there is none.
const STRETCH_BYTES: u64 = 1 << 30;
/// A record begins where the one before ends, or after the heading of a page.
const HEADING_BYTES_MAX: u64 = 64;
const COMPLAINT_BYTES_MAX: u64 = 4096;

/// What is read, and with what.
pub(super) struct Reading<'a> {
    pub(super) vault: &'a Unlocked,
    pub(super) which: Which,
    pub(super) programs: &'a Programs,
    /// A directory that is made, and gone afterwards.
    pub(super) directory: PathBuf,
    pub(super) cancel: &'a Cancel,
}

/// A restore point that somebody has put into the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) name: String,
    /// Where its record begins.
    pub(super) at: Lsn,
    /// And ends: that is what `pg_create_restore_point` answered.
    pub(super) end: Lsn,
}

/// What a log holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Scanned {
    pub(super) records: u64,
    pub(super) bytes: u64,
    pub(super) marks: Vec<Mark>,
    /// Where the last record begins.
    last: Option<Lsn>,
    /// The record of the last restore point has not been left yet.
    in_mark: bool,
}

impl Scanned {
    /// Takes one line of the program's; answers where the record begins.
    fn take(&mut self, line: &str) -> Option<Lsn> {
        let (head, desc) = line.split_once(", desc: ").or_else(|| line.split_once("desc: "))?;
        let at: Lsn = head.split_once("lsn: ")?.1.split(',').next()?.trim().parse().ok()?;
        // A stretch begins with the last record of the one before.
        if self.last.is_some_and(|last| at <= last) {
            return Some(at);
        }
        if std::mem::take(&mut self.in_mark)
            && let Some(mark) = self.marks.last_mut()
        {
            mark.end = at;
        }
        if let Some(name) = desc.strip_prefix("RESTORE_POINT ").filter(|_| head.starts_with("rmgr: XLOG ")) {
            self.marks.push(Mark { name: name.to_owned(), at, end: at });
            self.in_mark = true;
        }
        self.records += 1;
        self.last = Some(at);
        Some(at)
    }
}

/// Reads a chain's log from where a record begins to the end of its last piece.
pub(super) fn scan(reading: &Reading<'_>, start: Lsn, entries: &[LogEntry]) -> Result<Scanned, RecoverError> {
    let segments = reading.which.segments;
    let mut scanned = Scanned::default();
    let (mut from, mut taken) = (start, 0);
    while taken < entries.len() {
        let begin = segments.start(segments.number_of(from));
        let first = entries.iter().position(|entry| entry.last > begin.0).unwrap_or(taken).min(taken);
        let mut bytes = 0;
        while let Some(entry) = entries.get(taken).filter(|_| bytes < STRETCH_BYTES) {
            bytes += entry.last.saturating_sub(entry.first).saturating_add(1);
            taken += 1;
        }
        let Some(stretch) = entries.get(first..taken) else { break };
        let Some(end) = stretch.last().map(|entry| Lsn(entry.last)).filter(|end| *end > from) else { continue };
        let spool = Spool::make(reading.directory.clone(), None)?;
        spool.fill(reading.vault, &reading.which, (begin, stretch), reading.cancel)?;
        let before = scanned.records;
        read_stretch(reading, spool.path(), (from, end), &mut scanned)?;
        let is_end = taken == entries.len();
        if scanned.records == before && !is_end {
            return Err(RecoverError::Unreadable { said: format!("no record begins between {from} and {end}") });
        }
        from = scanned.last.unwrap_or(from);
        if is_end {
            nothing_beyond(reading, spool.path(), (from, end))?;
            scanned.bytes = end.checked_since(start).unwrap_or(0);
            if let Some(mark) = scanned.marks.last_mut().filter(|_| scanned.in_mark) {
                mark.end = end;
            }
        }
    }
    Ok(scanned)
}

/// A length that was damaged makes of a record one that seems not to be there to its end: then whole ones lie in the segments behind it.
fn nothing_beyond(reading: &Reading<'_>, directory: &Path, (last, end): (Lsn, Lsn)) -> Result<(), RecoverError> {
    let (segments, timeline) = (reading.which.segments, reading.which.timeline);
    let next = segments.start(segments.number_of(last) + 1);
    if next >= end {
        return Ok(());
    }
    match rest_of_log(reading.programs, directory, timeline, segments, (next, end))? {
        Rest::NoRecord => Ok(()),
        Rest::Records => Err(RecoverError::Broken { at: last, after: next }),
    }
}

/// Reads what was laid down of it; what was read before is passed over.
pub(super) fn read_stretch(
    reading: &Reading<'_>,
    directory: &Path,
    (from, end): (Lsn, Lsn),
    scanned: &mut Scanned,
) -> Result<(), RecoverError> {
    let program = reading.programs.program("pg_waldump");
    let mut command = Command::new(&program);
    command.arg("--path").arg(directory).args(["--timeline", &reading.which.timeline.to_string()]);
    command.args(["--start", &from.to_string(), "--end", &end.to_string()]).env("LC_ALL", "C");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let failed = || RecoverError::file("run", &program);
    let mut child = Child(command.spawn().map_err(failed())?);
    let (stdout, stderr) = (child.0.stdout.take(), child.0.stderr.take());
    let complaint = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stderr) = stderr {
            let _ = stderr.by_ref().take(COMPLAINT_BYTES_MAX).read_to_end(&mut bytes);
            // What is too much to be told is read all the same: else it would wait for us.
            let _ = std::io::copy(&mut stderr, &mut std::io::sink());
        }
        bytes
    });
    let mut first = None;
    if let Some(stdout) = stdout {
        let mut lines = BufReader::with_capacity(1 << 18, stdout);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).map_err(failed())? > 0 {
            if reading.cancel.is_cancelled() {
                return Err(RecoverError::Cancelled);
            }
            let at = scanned.take(String::from_utf8_lossy(&line).trim_end_matches('\n'));
            first = first.or(at);
            line.clear();
        }
    }
    let status = child.0.wait().map_err(failed())?;
    let said = crate::postgres::error::words(&complaint.join().unwrap_or_default());
    match first {
        _ if !status.success() => Err(RecoverError::Unreadable { said }),
        Some(first) if first.checked_since(from).is_none_or(|skipped| skipped > HEADING_BYTES_MAX) => {
            Err(RecoverError::Unreadable { said: format!("no record begins at {from}, the first one at {first}") })
        }
        _ => Ok(()),
    }
}

/// Gone when it is dropped.
struct Child(std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn records_are_counted_once_and_restore_points_have_their_names() {
        let line = |rmgr: &str, lsn: &str, desc: &str| {
            format!(
                "rmgr: {rmgr:<11} len (rec/tot):     98/    98, tx:          0, lsn: {lsn}, prev 0/01768E88, desc: {desc}"
            )
        };
        let mut scanned = Scanned::default();
        for (rmgr, lsn, desc) in [
            ("Heap", "0/01768E88", "INSERT off 195"),
            ("XLOG", "0/01769020", "RESTORE_POINT a b, desc: lsn: 7/7"),
            ("XLOG", "0/01769020", "RESTORE_POINT a b, desc: lsn: 7/7"),
            ("Transaction", "0/01769088", "COMMIT"),
            ("Generic", "0/01769090", "RESTORE_POINT no"),
        ] {
            scanned.take(&line(rmgr, lsn, desc));
        }
        assert_eq!(scanned.take("pg_waldump: first record is after 0/1, at 0/2, skipping over 1 byte"), None);
        assert_eq!(scanned.records, 4);
        let mark = Mark { name: "a b, desc: lsn: 7/7".into(), at: Lsn(0x176_9020), end: Lsn(0x176_9088) };
        assert_eq!(scanned.marks, [mark]);
    }
}
