//! Snapshots of the directory that data lies in, beside it: `NAME.snapshot-LABEL`.
//!
//! ```text
//!   btrfs      the directory is a subvolume: one moment, also of a running server       clone = a snapshot of the snapshot
//!   directory  anything else: file by file, sharing blocks where the file system can     clone = the same again
//! ```
//!
//! Which of them it is, the file system says. Invariant: a snapshot is whole or not there under its name; what it could not hold (tablespaces, a
//! log elsewhere, another file system below) is refused before; and who was locked is unlocked, whatever happens.

mod btrfs;
mod directory;
mod hold;

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use lifeboat_core::units::Size;
use lifeboat_engine::port::{Cancel, PortError, Snapshot, Volume};

use crate::source::PostgresSource;

pub use hold::{CommandHold, PostgresHold};

const BESIDE: &str = ".snapshot-";
/// What is being made, or taken away.
const DRAFT: &str = ".draft";
const LABEL_BYTES_MAX: usize = 64;
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// In which file systems count what a file takes.
const BLOCK_BYTES: u64 = 512;
/// Of what a program says it is enough to know why it failed.
const SAID_BYTES_MAX: u64 = 4096;

#[derive(Debug, thiserror::Error)]
enum VolumeError {
    #[error("`{label}` is no name of a snapshot: small letters, digits and `-`, at most {LABEL_BYTES_MAX}")]
    Label { label: String },
    #[error("there is no snapshot `{label}` of {path}")]
    Absent { label: String, path: PathBuf },
    #[error("{path} is no directory of which snapshots could lie beside it")]
    NoPlace { path: PathBuf },
    #[error("{below} is not within {path}, but leads to another place, which a snapshot would not hold; {help}")]
    Elsewhere { path: PathBuf, below: PathBuf, help: &'static str },
    #[error(
        "a server may be running in {path}, and its file system takes no snapshots of one moment: files that are copied one after the \
         other while it writes are no database. Stop it, or take a recovery point (`lifeboat backup`)"
    )]
    Running { path: PathBuf },
    #[error("cannot {what} {path}")]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "a copy of {path} would be {needed}, and its file system has room for {free}: free some, or put it on one that shares blocks"
    )]
    Room { path: PathBuf, needed: String, free: String },
    #[error("interrupted")]
    Cancelled,
    #[error("{program} ended with {status}: {said}")]
    Ended { program: String, status: String, said: String },
}

impl VolumeError {
    fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VolumeError {
        let path = path.to_owned();
        move |source| VolumeError::File { what, path, source }
    }

    fn port(self, what: &str, path: &Path) -> PortError {
        let may_pass = matches!(self, VolumeError::File { .. } | VolumeError::Ended { .. });
        PortError { message: format!("{what} {}", path.display()), may_pass, source: Some(Box::new(self)) }
    }
}

/// The volume of a directory, as its file system can take snapshots of it.
pub fn volume_at(path: &Path) -> Result<Box<dyn Volume>, PortError> {
    let place = Place::of(path).map_err(|error| error.port("there can be no snapshots of", path))?;
    Ok(match btrfs::is_subvolume(&place.path) {
        true => Box::new(btrfs::Btrfs::new(place)),
        false => Box::new(directory::Directory::new(place)),
    })
}

/// A directory, and what lies beside it.
#[derive(Debug, Clone)]
struct Place {
    path: PathBuf,
    parent: PathBuf,
    name: OsString,
}

impl Place {
    fn of(path: &Path) -> Result<Place, VolumeError> {
        let path = fs::canonicalize(path).map_err(VolumeError::file("look at", path))?;
        let (parent, name) = match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) if path.is_dir() => (parent.to_owned(), name.to_owned()),
            _ => return Err(VolumeError::NoPlace { path }),
        };
        Ok(Place { path, parent, name })
    }

    fn beside(&self, label: &str) -> Result<PathBuf, VolumeError> {
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if label.is_empty() || label.len() > LABEL_BYTES_MAX || !label.bytes().all(is_plain) {
            return Err(VolumeError::Label { label: label.to_owned() });
        }
        let mut name = self.name.clone();
        name.push(BESIDE);
        name.push(label);
        Ok(self.parent.join(name))
    }

    fn there(&self, label: &str) -> Result<PathBuf, VolumeError> {
        let path = self.beside(label)?;
        match is_there(&path)? {
            true => Ok(path),
            false => Err(VolumeError::Absent { label: label.to_owned(), path: self.path.clone() }),
        }
    }

    fn all(&self) -> Result<Vec<Snapshot>, VolumeError> {
        let mut begin = self.name.clone();
        begin.push(BESIDE);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.parent).map_err(VolumeError::file("read", &self.parent))? {
            let entry = entry.map_err(VolumeError::file("read", &self.parent))?;
            let name = entry.file_name();
            let label = name.as_encoded_bytes().strip_prefix(begin.as_encoded_bytes());
            let label = label.and_then(|label| std::str::from_utf8(label).ok());
            // What is being made has a name that no snapshot can have.
            if let Some(label) = label.filter(|label| self.beside(label).is_ok()) {
                found.push(Snapshot { name: label.to_owned(), path: entry.path(), held: None });
            }
        }
        found.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(found)
    }

    /// Half of a copy would take the room that a running service needs.
    fn check_room(&self) -> Result<(), VolumeError> {
        let mut needed = 0;
        let mut open = vec![self.path.clone()];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(&directory).map_err(VolumeError::file("read", &directory))?.flatten() {
                match entry.metadata() {
                    Ok(seen) if seen.is_dir() => open.push(entry.path()),
                    Ok(seen) => needed += seen.blocks() * BLOCK_BYTES,
                    Err(_) => {}
                }
            }
        }
        let looked = rustix::fs::statvfs(&self.parent).map_err(io::Error::from);
        let room = looked.map_err(VolumeError::file("look at", &self.parent))?;
        let free = room.f_bavail.saturating_mul(room.f_frsize);
        // A tenth is left to whoever else writes there.
        match needed < free / 10 * 9 {
            true => Ok(()),
            false => Err(VolumeError::Room {
                path: self.path.clone(),
                needed: Size(needed).rounded(),
                free: Size(free).rounded(),
            }),
        }
    }

    /// Everything that belongs to it is in it.
    fn check_whole(&self) -> Result<(), VolumeError> {
        let elsewhere = |below: PathBuf, help| Err(VolumeError::Elsewhere { path: self.path.clone(), below, help });
        if self.path.join("PG_VERSION").is_file() {
            let help = "take a recovery point of this cluster (`lifeboat backup`)";
            let wal = self.path.join("pg_wal");
            if wal.is_symlink() {
                return elsewhere(wal, help);
            }
            let spaces = fs::read_dir(self.path.join("pg_tblspc")).into_iter().flatten().flatten();
            if let Some(space) = spaces.into_iter().find(|space| space.path().is_symlink()) {
                return elsewhere(space.path(), help);
            }
        }
        let top = fs::metadata(&self.path).map_err(VolumeError::file("look at", &self.path))?;
        let mut open = vec![self.path.clone()];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(&directory).map_err(VolumeError::file("read", &directory))? {
                let entry = entry.map_err(VolumeError::file("read", &directory))?;
                let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
                let path = entry.path();
                match fs::symlink_metadata(&path) {
                    // A subvolume has a device number of its own, as what is mounted has.
                    Ok(seen) if is_directory && seen.dev() != top.dev() => {
                        return elsewhere(path, "it is another file system or subvolume");
                    }
                    Ok(_) if is_directory => open.push(path),
                    Ok(_) => {}
                    // A server removes files meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(VolumeError::file("look at", &path)(error)),
                }
            }
        }
        Ok(())
    }

    fn check_at_rest(&self) -> Result<(), VolumeError> {
        match PostgresSource::is_running_in(&self.path) {
            true => Err(VolumeError::Running { path: self.path.clone() }),
            false => Ok(()),
        }
    }
}

fn is_there(path: &Path) -> Result<bool, VolumeError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(VolumeError::file("look at", path)(error)),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Makes names in a file's directory durable.
fn sync_above(path: &Path) -> Result<(), VolumeError> {
    let above = path.parent().unwrap_or(Path::new("/"));
    fs::File::open(above).and_then(|directory| directory.sync_all()).map_err(VolumeError::file("sync", above))
}

/// Ended at once where it is not wanted any more.
fn run(command: &mut Command, cancel: &Cancel) -> Result<(), VolumeError> {
    let program = command.get_program().to_owned();
    let failed = |what| VolumeError::file(what, Path::new(&program));
    command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed("run"))?;
    let said = std::thread::spawn({
        let errors = child.stderr.take();
        move || errors.map(|errors| io::read_to_string(errors.take(SAID_BYTES_MAX)).unwrap_or_default())
    });
    let status = loop {
        match child.try_wait().map_err(failed("wait for"))? {
            Some(status) => break status,
            None if cancel.is_cancelled() => {
                child.kill().and_then(|()| child.wait().map(drop)).map_err(failed("end"))?;
                return Err(VolumeError::Cancelled);
            }
            None => std::thread::sleep(LOOK_EVERY),
        }
    };
    match status.success() {
        true => Ok(()),
        false => Err(VolumeError::Ended {
            program: program.to_string_lossy().into_owned(),
            status: status.to_string(),
            said: said.join().ok().flatten().unwrap_or_default().trim().chars().take(400).collect(),
        }),
    }
}
