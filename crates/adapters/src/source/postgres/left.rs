//! What a server that has died left in its own log: where its last whole record ends, and the bytes up to there.
//!
//! Invariant: an end is told only of a log that nobody writes any more, where the server's own program finds no further record and no page
//! behind it looks as if one had been there: a damaged log has no end that anybody could vouch for.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::postgres::control::{Control, State};
use crate::postgres::door::Door;
use crate::postgres::lsn::{Lsn, Segments};
use crate::postgres::programs::Programs;

#[derive(Debug, thiserror::Error)]
pub(super) enum LeftError {
    #[error("a server may still be running in {path} (postmaster.pid): what it has left is read once it is gone")]
    Running { path: PathBuf },
    #[error(
        "the server is away and left its data as one that does not write ({0:?}), so nobody can say that nothing follows: start it again, or give up what it has not sent"
    )]
    NoWriter(State),
    #[error("the server's log from {from} on, which the vault does not have, is not in {directory} any more")]
    Gone { from: Lsn, directory: PathBuf },
    #[error("no record of the server's log is whole in {directory} from {from} on: {said}")]
    NoRecord { from: Lsn, directory: PathBuf, said: String },
    #[error(
        "the log that the server left is damaged at {at}, and goes on behind it: what follows there cannot be shipped. Save {directory} before anything is started on it"
    )]
    Damaged { at: Lsn, directory: PathBuf },
    #[error("cannot {what} {path}")]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl LeftError {
    fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LeftError {
        let path = path.to_owned();
        move |source| LeftError::File { what, path, source }
    }
}

/// The log in a data directory that nobody writes any more.
#[derive(Debug)]
pub(super) struct Left {
    directory: PathBuf,
    timeline: u32,
    segments: Segments,
    page_bytes: u64,
    /// Where its last whole record ends.
    end: Lsn,
}

/// The end of a record begins at a multiple of that.
const ALIGNED_BYTES: u64 = 8;
/// What stands at the top of a page, and of a segment's first.
const HEADING_BYTES: u64 = 24;
const LONG_HEADING_BYTES: u64 = 40;
/// In a page's heading: it goes on with the record of the page before.
const GOES_ON: u16 = 1;

impl Left {
    /// Looks for the end of the log, which is not before `shipped` unless what lies there is the beginning of a record.
    pub(super) fn look(programs: &Programs, data: &Path, control: &Control, shipped: Lsn) -> Result<Left, LeftError> {
        check_at_rest(data)?;
        if !matches!(
            control.state,
            State::InProduction | State::InCrashRecovery | State::ShuttingDown | State::ShutDown
        ) {
            return Err(LeftError::NoWriter(control.state));
        }
        let mut left = Left {
            directory: data.join("pg_wal"),
            timeline: timeline_of(control),
            segments: control.segments,
            page_bytes: control.log_page_bytes,
            end: shipped,
        };
        left.end = left.find_end(programs, shipped)?;
        if left.end <= control.checkpoint {
            return Err(LeftError::Damaged { at: left.end, directory: left.directory });
        }
        left.check_nothing_behind()?;
        Ok(left)
    }

    pub(super) fn end(&self) -> Lsn {
        self.end
    }

    /// The bytes from `from` on, at most so many and none behind the end.
    pub(super) fn read(&self, from: Lsn, bytes_max: usize) -> Result<Vec<u8>, LeftError> {
        let mut bytes = Vec::new();
        let mut at = from;
        while at < self.end && bytes.len() < bytes_max {
            let segment = self.segments.number_of(at);
            let until = self.end.0.min(self.segments.start(segment + 1).0).min(at.0 + (bytes_max - bytes.len()) as u64);
            let (old, more) = (bytes.len(), (until - at.0) as usize);
            bytes.resize(old + more, 0);
            let into = bytes.get_mut(old..).unwrap_or_default();
            let path = self.path_of(segment);
            let file = File::open(&path).map_err(LeftError::file("open", &path))?;
            file.read_exact_at(into, at.0 - self.segments.start(segment).0).map_err(LeftError::file("read", &path))?;
            at = Lsn(until);
        }
        Ok(bytes)
    }

    fn path_of(&self, segment: u64) -> PathBuf {
        self.directory.join(self.segments.name(self.timeline, segment))
    }

    /// Reads all records from the segment on that holds the last byte that was shipped.
    fn find_end(&self, programs: &Programs, shipped: Lsn) -> Result<Lsn, LeftError> {
        let start = self.segments.start(self.segments.number_of(Lsn(shipped.0.saturating_sub(1))));
        let is_there = |at: Lsn| self.path_of(self.segments.number_of(at)).is_file();
        if !is_there(start) && !is_there(shipped) {
            return Err(LeftError::Gone { from: shipped, directory: self.directory.clone() });
        }
        let start = if is_there(start) { start } else { self.segments.start(self.segments.number_of(shipped)) };
        let program = programs.program("pg_waldump");
        let mut command = Command::new(&program);
        command.arg("--path").arg(&self.directory).args(["--timeline", &self.timeline.to_string()]);
        command.args(["--start", &start.to_string()]).env("LC_ALL", "C");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(LeftError::file("run", &program))?;
        // It says one thing besides, at its end: less than a pipe holds.
        let mut last = None;
        let output = child.stdout.take().map(BufReader::new);
        for line in output.into_iter().flat_map(|output| output.split(b'\n')) {
            let line = line.map_err(LeftError::file("read what it says:", &program))?;
            last = Record::parse(&String::from_utf8_lossy(&line)).or(last);
        }
        let ended = child.wait_with_output().map_err(LeftError::file("wait for", &program))?;
        let none = || LeftError::NoRecord {
            from: start,
            directory: self.directory.clone(),
            said: crate::postgres::error::words(&ended.stderr),
        };
        last.map(|record| self.end_of(record)).ok_or_else(none)
    }

    /// Records lie around the headings of the pages that they cross.
    fn end_of(&self, record: Record) -> Lsn {
        let mut at = record.at.0;
        let mut left = record.bytes;
        loop {
            let room = self.page_bytes - at % self.page_bytes;
            if left <= room {
                at += left;
                break;
            }
            left -= room;
            at += room;
            at += self.heading_bytes(Lsn(at));
        }
        at = at.next_multiple_of(ALIGNED_BYTES);
        match record.switches {
            // What follows it in its segment is nothing.
            true => self.segments.start(self.segments.number_of(Lsn(at.saturating_sub(1))) + 1),
            false => Lsn(at),
        }
    }

    fn heading_bytes(&self, page: Lsn) -> u64 {
        match self.segments.start(self.segments.number_of(page)) == page {
            true => LONG_HEADING_BYTES,
            false => HEADING_BYTES,
        }
    }

    /// Behind the end there may be the beginning of one record that was not written to its end, and nothing else.
    fn check_nothing_behind(&self) -> Result<(), LeftError> {
        let mut page = Lsn(self.end.0.next_multiple_of(self.page_bytes));
        while let Some(heading) = self.heading_at(page)? {
            let holds = self.page_bytes - self.heading_bytes(page);
            if heading.flags & GOES_ON == 0 || u64::from(heading.remains) <= holds {
                return Err(LeftError::Damaged { at: self.end, directory: self.directory.clone() });
            }
            page = Lsn(page.0 + self.page_bytes);
        }
        Ok(())
    }

    /// None: nothing was written to this page since its file was made, or made again from an older one.
    fn heading_at(&self, page: Lsn) -> Result<Option<Heading>, LeftError> {
        let segment = self.segments.number_of(page);
        let path = self.path_of(segment);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(LeftError::file("open", &path))?,
        };
        let mut bytes = [0; HEADING_BYTES as usize];
        match file.read_exact_at(&mut bytes, page.0 - self.segments.start(segment).0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read.map_err(LeftError::file("read", &path))?,
        }
        Ok(Heading::parse(&bytes).filter(|heading| heading.at == page && heading.timeline == self.timeline))
    }
}

/// Nobody writes there: neither now, nor since a control file was read that still says the same.
pub(super) fn check_at_rest(data: &Path) -> Result<(), LeftError> {
    match Door::may_run_in(data) {
        true => Err(LeftError::Running { path: data.to_owned() }),
        false => Ok(()),
    }
}

/// A server that was just promoted writes on a timeline that no checkpoint knows yet.
pub(super) fn timeline_of(control: &Control) -> u32 {
    control.timeline.max(control.min_recovery_timeline)
}

/// What one line of `pg_waldump` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record {
    at: Lsn,
    bytes: u64,
    /// It is the last of its segment, however long that is.
    switches: bool,
}

impl Record {
    /// `rmgr: Heap        len (rec/tot):     59/   251, tx:        735, lsn: 0/0155A2D0, prev 0/0155A2A0, desc: INSERT …`
    fn parse(line: &str) -> Option<Record> {
        let (head, desc) = line.split_once("desc: ")?;
        let total = head.split_once("len (rec/tot):")?.1.split_once('/')?.1.split(',').next()?;
        let at = head.split_once("lsn: ")?.1.split(',').next()?;
        let switches = head.starts_with("rmgr: XLOG ") && desc.starts_with("SWITCH");
        Some(Record { at: at.trim().parse().ok()?, bytes: total.trim().parse().ok()?, switches })
    }
}

/// What stands at the top of each page of the log, in the machine's own order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Heading {
    flags: u16,
    timeline: u32,
    at: Lsn,
    /// Of the record that goes on from the page before.
    remains: u32,
}

impl Heading {
    fn parse(bytes: &[u8; HEADING_BYTES as usize]) -> Option<Heading> {
        let mut rest = bytes.as_slice();
        fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
            let (taken, after) = rest.split_first_chunk()?;
            *rest = after;
            Some(*taken)
        }
        let magic = u16::from_ne_bytes(take(&mut rest)?);
        let flags = u16::from_ne_bytes(take(&mut rest)?);
        let timeline = u32::from_ne_bytes(take(&mut rest)?);
        let at = Lsn(u64::from_ne_bytes(take(&mut rest)?));
        let remains = u32::from_ne_bytes(take(&mut rest)?);
        (magic != 0).then_some(Heading { flags, timeline, at, remains })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn left() -> Left {
        Left {
            directory: PathBuf::new(),
            timeline: 1,
            segments: Segments::new(16 << 20).unwrap(),
            page_bytes: 8192,
            end: Lsn(0),
        }
    }

    #[test]
    fn a_record_ends_behind_the_headings_of_the_pages_that_it_crosses() {
        let end =
            |at: &str, bytes, switches| left().end_of(Record { at: at.parse().unwrap(), bytes, switches }).to_string();
        assert_eq!(end("0/3000028", 114, false), "0/30000A0");
        assert_eq!(end("0/3001F00", 256, false), "0/3002000", "to the end of a page");
        assert_eq!(end("0/3001F00", 257, false), "0/3002020", "one byte on the next");
        assert_eq!(end("0/3001F00", 256 + 8168 + 8, false), "0/3004020", "two headings");
        assert_eq!(end("0/3FFFF00", 264, false), "0/4000030", "a segment's heading is longer");
        assert_eq!(end("0/3000028", 24, true), "0/4000000");
    }

    #[test]
    fn what_the_program_says_of_a_record() {
        let line = "rmgr: Heap        len (rec/tot):     59/   251, tx:        735, lsn: 0/0155A2D0, prev 0/0155A2A0, desc: INSERT off 3 flags 0x00, blkref #0: rel 1663/5/16384 blk 0 FPW";
        assert_eq!(Record::parse(line), Some(Record { at: Lsn(0x155_A2D0), bytes: 251, switches: false }));
        let switch = "rmgr: XLOG        len (rec/tot):     24/    24, tx:          0, lsn: 0/01000110, prev 0/010000D8, desc: SWITCH ";
        assert_eq!(Record::parse(switch), Some(Record { at: Lsn(0x100_0110), bytes: 24, switches: true }));
        assert_eq!(Record::parse("first record is after 0/3000000, at 0/3000028, skipping over 40 bytes"), None);
    }
}
