//! SQLite databases: consistent recovery points while they are written, and their changes as a stream.
//!
//! ```text
//!   wal      the log's file format            hold     the read transaction that keeps it     capture  reads it without a hole
//!   content  what a piece holds               apply    a piece onto a file                    copy     a file on its way back
//!   base     a snapshot into a file, on all cores   pieces   read ahead, applied in order
//!   board    what a stream's threads share    stream   the threads                            ledger   a vault as a stream writes to it
//!   resume   where a former process was       restore, standby  (which snapshot and pieces lead where: `source/way`)
//! ```
//!
//! Invariant: in a process that captures a database nothing but this module (and SQLite) may open the database file or its
//! -shm: closing either would drop SQLite's locks, and another process might then throw the log away.

mod apply;
mod base;
mod board;
mod capture;
mod content;
mod copy;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod doors;
mod hold;
mod ledger;
mod pieces;
mod restore;
mod resume;
mod standby;
mod stream;
mod validate;
mod wal;

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use lifeboat_engine::port::{
    Cancel, FollowRequest, NamedVault, PointRequest, PointTaken, PortError, RestoreRequest, Restored, Restorer, Source,
    Standby, StreamRequest, Streaming,
};
use lifeboat_engine::verify::{Check, Verification, VerifyRequest};
use lifeboat_vault::Unlocked;
use lifeboat_vault::files::Progress;

use self::board::Base;
use self::capture::{Capture, CaptureError};
use self::hold::{HoldError, READER_PATIENCE, Reader, open_shared};
use super::port_error;

/// One SQLite database file.
#[derive(Debug, Clone)]
pub struct SqliteSource {
    path: PathBuf,
    spool: PathBuf,
}

impl SqliteSource {
    /// `spool` is a directory for a passing copy of databases that are not in WAL mode.
    pub fn new(path: impl Into<PathBuf>, spool: impl Into<PathBuf>) -> SqliteSource {
        SqliteSource { path: path.into(), spool: spool.into() }
    }

    fn base(&self) -> Result<Base, CaptureError> {
        match Capture::open(&self.path, None) {
            Ok((mut capture, _)) => {
                let (moment, _, snapshot) = capture.snapshot()?;
                let bytes = snapshot.size_bytes();
                Ok(Base { content: Box::new(snapshot), bytes, position: None, from: moment.from, to: moment.to })
            }
            Err(CaptureError::Hold(HoldError::NotWal { .. })) => self.spooled_base(),
            Err(error) => Err(error),
        }
    }

    /// Without a log, writers wait while the database is read: so it is copied first, and the vault takes its time with
    /// the copy.
    fn spooled_base(&self) -> Result<Base, CaptureError> {
        let file = open_shared(&self.path)?;
        let reader = Reader::open(&self.path, &file, READER_PATIENCE)?;
        let spool_failed = |source| HoldError::Look { path: self.spool.clone(), source };
        let mut spool = open_spool(&self.spool).map_err(spool_failed)?;
        reader.begin()?;
        let at = Timestamp::now();
        let copied = copy_all(&file, &mut spool);
        reader.end();
        copied.and_then(|()| spool.seek(SeekFrom::Start(0))).map_err(spool_failed)?;
        let bytes = spool.metadata().map_err(spool_failed)?.len();
        Ok(Base { content: Box::new(spool), bytes, position: None, from: at, to: at })
    }
}

/// A file without a name, gone when it is closed.
fn open_spool(directory: &Path) -> io::Result<File> {
    fs::create_dir_all(directory)?;
    let path = directory.join(format!(".sqlite-spool-{}-{:x}", std::process::id(), Timestamp::now().as_nanosecond()));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

fn copy_all(from: &File, to: &mut File) -> io::Result<()> {
    let mut block = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        match from.read_at(&mut block, at)? {
            0 => return Ok(()),
            count => {
                to.write_all(block.get(..count).unwrap_or_default())?;
                at += count as u64;
            }
        }
    }
}

fn capture_error(path: &Path, error: CaptureError) -> PortError {
    let may_pass =
        matches!(&error, CaptureError::Hold(hold) if hold.is_busy() || matches!(hold, HoldError::Absent { .. }));
    port_error(&format!("the database {} cannot be read", path.display()), may_pass, error)
}

impl Source for SqliteSource {
    fn take_point(
        &self,
        vault: &NamedVault,
        request: &PointRequest,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<PointTaken, PortError> {
        let base = self.base().map_err(|error| capture_error(&self.path, error))?;
        ledger::store_base(vault, request, &self.path, base, progress, cancel).map_err(|error| {
            let may_pass = error.may_pass();
            port_error(&format!("no recovery point was taken into vault `{}`", vault.name), may_pass, error)
        })
    }

    fn stream(&self, vaults: &[NamedVault], request: &StreamRequest) -> Result<Streaming, PortError> {
        match stream::Stream::start(&self.path, vaults, request) {
            Ok(stream) => Ok(Streaming::Started(Box::new(stream))),
            Err(CaptureError::Hold(HoldError::NotWal { mode, .. })) => Ok(Streaming::PointsOnly {
                why: format!(
                    "{} is not in WAL mode (its journal mode is {mode}), so there is no log to stream; `pragma journal_mode=wal` gives it one",
                    self.path.display()
                ),
            }),
            Err(error) => Err(capture_error(&self.path, error)),
        }
    }
}

impl Restorer for SqliteSource {
    fn restore(
        &self,
        vault: &Unlocked,
        request: &RestoreRequest,
        _progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Restored, PortError> {
        restore::restore(vault, request, cancel)
            .map_err(|error| port_error(&format!("`{}` was not restored", request.dataset), error.may_pass(), error))
    }

    fn verify(
        &self,
        vault: &Unlocked,
        request: &VerifyRequest,
        _progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Verification, PortError> {
        validate::verify(vault, request, cancel).map_err(|error| {
            port_error(&format!("`{}` could not be verified", request.dataset), error.may_pass(), error)
        })
    }

    fn look_through(&self, data: &Path, cancel: &Cancel) -> Result<Vec<Check>, PortError> {
        validate::look_through(data, cancel)
            .map_err(|error| port_error(&format!("{} could not be looked through", data.display()), false, error))
    }

    fn follow(&self, vault: &Unlocked, request: &FollowRequest) -> Result<Box<dyn Standby>, PortError> {
        let follower = standby::Follower::open(vault, request).map_err(|error| {
            port_error(&format!("`{}` cannot be followed", request.dataset), error.may_pass(), error)
        })?;
        Ok(Box::new(follower))
    }

    fn has_standby(&self, to: &Path) -> bool {
        super::has_standby(to)
    }
}

/// What a full snapshot is read from.
type Content = Box<dyn Read + Send>;
