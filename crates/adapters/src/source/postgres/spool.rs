//! The log on its way from a vault to a server that recovers: segments in a directory, fetched ahead, which `restore_command` takes.
//!
//! Invariant: the server is told "there is no more" (exit code 1) only when all that the vault has was laid down whole. Whatever went
//! wrong ends its recovery (exit code 200): after a 1 it would promote itself as if nothing were missing.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lifeboat_engine::port::Cancel;
use lifeboat_vault::{LogEntry, Unlocked, VaultError};

use super::piece::{Piece, PieceError};
use crate::postgres::lsn::{Lsn, Segments};
use crate::source::ahead;

/// So many segments are laid down beyond the one that the server asked for last.
const AHEAD: u64 = 64;
const FETCH: &str = "fetch";
const COMPLETE: &str = "complete";
const FAILED: &str = "failed";
/// The segment that was asked for last.
const AT: &str = "at";

/// `fetch NAME TO`. A timeline's history lies in the data directory, if it has one.
const SCRIPT: &str = r#"#!/bin/sh
d=${0%/*}
case $1 in
*.history) exit 1 ;;
*) printf %s "$1" > "$d/at.draft" && mv "$d/at.draft" "$d/at" || exit 200 ;;
esac
while :; do
    [ -e "$d/failed" ] && exit 200
    complete=; [ -e "$d/complete" ] && complete=1
    if [ -e "$d/$1" ]; then
        ln "$d/$1" "$2" 2> /dev/null || cp "$d/$1" "$2" || exit 200
        exit 0
    fi
    [ -n "$complete" ] && exit 1
    sleep 0.01
done
"#;

#[derive(Debug, thiserror::Error)]
pub(super) enum SpoolError {
    #[error("cannot {what} {}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("log piece {key} cannot be read from the vault; restore from another vault, or to a time before it")]
    Piece {
        key: String,
        #[source]
        source: VaultError,
    },
    #[error(
        "log piece {key} is not what a stream of PostgreSQL writes; restore from another vault, or to a time before it"
    )]
    Content {
        key: String,
        #[source]
        source: PieceError,
    },
    #[error(
        "log piece {key} is of another database system, timeline or place than its name says; restore from another vault, or to a time before it"
    )]
    Foreign { key: String },
    #[error("the log is needed from {wanted} on, and what is here of it begins at {first}")]
    Before { wanted: Lsn, first: Lsn },
    #[error("interrupted; run it again")]
    Cancelled,
}

/// Which log: pieces must be of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Which {
    pub(super) system: u64,
    pub(super) timeline: u32,
    pub(super) segments: Segments,
}

/// Reads a piece and holds it against what its name says.
pub(super) fn read_piece(vault: &Unlocked, which: &Which, entry: &LogEntry) -> Result<Piece, SpoolError> {
    let key = || entry.key.clone();
    let payload = vault.read_log(entry).map_err(|source| SpoolError::Piece { key: key(), source })?;
    let piece = Piece::decode(&payload).map_err(|source| SpoolError::Content { key: key(), source })?;
    let is_it = (piece.system, piece.timeline, piece.segments) == (which.system, which.timeline, which.segments);
    // Positions in the vault are counted in bytes of the log: the first of a piece is the one after the last of the piece before.
    let fits = (piece.start.0.checked_add(1), piece.end().0) == (Some(entry.first), entry.last);
    if is_it && fits { Ok(piece) } else { Err(SpoolError::Foreign { key: key() }) }
}

/// The directory, which is gone when it is dropped.
#[derive(Debug)]
pub(super) struct Spool {
    path: PathBuf,
}

impl Spool {
    /// Makes it anew; `owner` is who the server runs as.
    pub(super) fn make(path: PathBuf, owner: Option<(u32, u32)>) -> Result<Spool, SpoolError> {
        let failed = |what: &'static str| file(what, &path);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove")(error)),
            _ => {}
        }
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(failed("make"))?;
        let spool = Spool { path };
        let script = spool.path.join(FETCH);
        fs::write(&script, SCRIPT).map_err(file("write", &script))?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o500)).map_err(file("make executable", &script))?;
        if let Some((user, group)) = owner {
            for path in [&script, &spool.path] {
                std::os::unix::fs::chown(path, Some(user), Some(group)).map_err(file("give away", path))?;
            }
        }
        Ok(spool)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What the server is told to run for each file.
    pub(super) fn restore_command(&self) -> String {
        format!("sh {} '%f' '%p'", quoted(&self.path.join(FETCH)))
    }

    /// What it runs to say that older files are not needed any more.
    pub(super) fn cleanup_command(&self, pg_archivecleanup: &Path) -> String {
        format!("{} {} '%r'", quoted(pg_archivecleanup), quoted(&self.path))
    }

    fn mark(&self, name: &str) -> Result<(), SpoolError> {
        let path = self.path.join(name);
        File::create(&path).map(drop).map_err(file("write", &path))
    }

    /// Whether the server has asked for something already, and which segment it was.
    fn at(&self, segments: Segments) -> Option<u64> {
        let name = fs::read_to_string(self.path.join(AT)).ok()?;
        segments.parse(&name).map(|(_, number)| number)
    }

    /// Says that nothing comes: the log lies in the data directory itself.
    pub(super) fn close_empty(&self) -> Result<(), SpoolError> {
        self.mark(COMPLETE)
    }

    /// Lays down all of it from a segment's start on, segment by segment, and waits for the server where it is far ahead.
    pub(super) fn fill(
        &self,
        vault: &Unlocked,
        which: &Which,
        (from, entries): (Lsn, &[LogEntry]),
        cancel: &Cancel,
    ) -> Result<(), SpoolError> {
        let filled = self.fill_segments(vault, which, (from, entries), cancel);
        self.mark(if filled.is_ok() { COMPLETE } else { FAILED })?;
        filled
    }

    fn fill_segments(
        &self,
        vault: &Unlocked,
        which: &Which,
        (from, entries): (Lsn, &[LogEntry]),
        cancel: &Cancel,
    ) -> Result<(), SpoolError> {
        let mut laying = Laying { spool: self, which, from, open: None };
        let all = ahead::for_each(
            entries,
            cancel,
            |entry| read_piece(vault, which, entry),
            |_, piece| {
                laying.take_in(&piece, cancel)?;
                Ok(!cancel.is_cancelled())
            },
        )?;
        if !all || cancel.is_cancelled() {
            return Err(SpoolError::Cancelled);
        }
        laying.close()
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// The segment that is being laid down.
struct Laying<'a> {
    spool: &'a Spool,
    which: &'a Which,
    /// The segment before would begin with nothing, which its readers take for damage, in whichever file they look.
    from: Lsn,
    open: Option<(u64, PathBuf, File)>,
}

impl Laying<'_> {
    fn take_in(&mut self, piece: &Piece, cancel: &Cancel) -> Result<(), SpoolError> {
        let before = usize::try_from(self.from.0.saturating_sub(piece.start.0)).unwrap_or(usize::MAX);
        let (mut at, mut rest) = (piece.start.max(self.from), piece.wal.get(before..).unwrap_or_default());
        while !rest.is_empty() {
            let number = self.which.segments.number_of(at);
            let within = at.0 - self.which.segments.start(number).0;
            let room = (self.which.segments.bytes - within).min(rest.len() as u64) as usize;
            if self.open.as_ref().is_none_or(|(open, _, _)| *open != number) {
                self.close()?;
                self.open(number, cancel)?;
            }
            let (now, later) = rest.split_at(room);
            if let Some((_, path, segment)) = &self.open {
                segment.write_all_at(now, within).map_err(file("write", path))?;
            }
            (at, rest) = (Lsn(at.0 + room as u64), later);
        }
        Ok(())
    }

    fn open(&mut self, number: u64, cancel: &Cancel) -> Result<(), SpoolError> {
        // The first are laid down before the server has asked for any.
        let first = self.spool.at(self.which.segments);
        let mut at = first;
        while at.is_some_and(|at| number > at + AHEAD) && !cancel.is_cancelled() {
            std::thread::sleep(Duration::from_millis(2));
            at = self.spool.at(self.which.segments).max(first);
        }
        let path = self.spool.path.join("segment.draft");
        let segment = File::create(&path).map_err(file("write", &path))?;
        // What was never shipped of the last one is zeros, as in a segment that the server has just begun.
        segment.set_len(self.which.segments.bytes).map_err(file("write", &path))?;
        segment.set_permissions(fs::Permissions::from_mode(0o644)).map_err(file("write", &path))?;
        self.open = Some((number, path, segment));
        Ok(())
    }

    fn close(&mut self) -> Result<(), SpoolError> {
        let Some((number, draft, mut segment)) = self.open.take() else { return Ok(()) };
        segment.flush().map_err(file("write", &draft))?;
        let name = self.spool.path.join(self.which.segments.name(self.which.timeline, number));
        fs::rename(&draft, &name).map_err(file("give its name to", &name))
    }
}

fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SpoolError + use<> {
    let path = path.to_owned();
    move |source| SpoolError::File { what, path, source }
}

/// For a shell, in a setting where `%` means something.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('%', "%%").replace('\'', r"'\''"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn no_segment_is_laid_down_without_its_beginning() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::make(folder.path().join("spool"), None).unwrap();
        let segments = Segments::new(1 << 20).unwrap();
        let which = Which { system: 7, timeline: 2, segments };
        let mut laying = Laying { spool: &spool, which: &which, from: segments.start(9), open: None };
        let wal: Vec<u8> = (0..3u32 << 18).flat_map(u32::to_le_bytes).collect();
        let start = Lsn(segments.start(8).0 + 500);
        let piece = Piece { system: 7, timeline: 2, segments, start, history: Vec::new(), wal: wal.clone() };
        laying.take_in(&piece, &Cancel::default()).unwrap();
        laying.close().unwrap();
        let mut names: Vec<String> = fs::read_dir(spool.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| segments.parse(name).is_some())
            .collect();
        names.sort();
        assert_eq!(names, [9, 10, 11].map(|number| segments.name(2, number)));
        let ninth = fs::read(spool.path().join(&names[0])).unwrap();
        let skipped = (1 << 20) - 500;
        assert_eq!(ninth, wal[skipped..skipped + (1 << 20)]);
        // What lies before altogether is passed by.
        let early = Piece { start: segments.start(3), wal: vec![1; 100], ..piece };
        laying.take_in(&early, &Cancel::default()).unwrap();
        assert_eq!(fs::read(spool.path().join(&names[0])).unwrap(), ninth);
    }
}
