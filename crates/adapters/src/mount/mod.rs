//! Recovery points as a directory, read-only, through FUSE.
//!
//! ```text
//!   DIR/latest → 2026-11-21T14:00:00Z      DIR/2026-11-21T14:00:00Z/…       one data set
//!   DIR/documents/latest …                                                   several
//!   DIR/…                                                                    one point
//! ```
//!
//! Invariant: every byte that is read was verified against its chunk's id; what does not verify is an I/O error and a line in the log that
//! names the object, never other bytes; what must be thawed first is another error (no data available) and such a line. Memory is bounded: chunks, listings and handles, whatever is read.

mod answer;
mod content;
mod places;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fuser::{BackgroundSession, Config, MountOption, SessionACL};
use lifeboat_vault::{PointInfo, Unlocked};
use thiserror::Error;

use self::answer::Answers;
use self::places::Places;

/// Why nothing was mounted.
#[derive(Debug, Error)]
pub enum MountError {
    #[error("{} is not there; make the directory to mount on", at.display())]
    NotThere { at: PathBuf },
    #[error("{} is not an empty directory; make one to mount on", at.display())]
    NotEmptyDirectory { at: PathBuf },
    #[error(
        "this machine has no /dev/fuse: load the kernel's module (`modprobe fuse`), or let the container have the device"
    )]
    NoDevice,
    #[error(
        "{} could not be mounted on; who is not root needs `fusermount3` (Debian: package fuse3), and rights on the directory and on /dev/fuse",
        at.display()
    )]
    Mount {
        at: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} could not be unmounted; end what uses it, then `umount` it", at.display())]
    Unmount {
        at: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What is shown.
#[derive(Debug, Clone)]
pub enum Shown {
    /// These points, by data set and time.
    All(Vec<PointInfo>),
    /// These points of one data set, by time.
    DataSet(Vec<PointInfo>),
    Point(Box<PointInfo>),
}

#[derive(Debug, Clone, Copy, Default)]
pub struct MountOptions {
    /// Other users may look, too, as far as the files' own modes let them.
    pub allow_other: bool,
}

/// A mounted directory. Dropping it unmounts.
#[derive(Debug)]
pub struct Mounted {
    session: Option<BackgroundSession>,
    at: PathBuf,
}

/// Mounts. The points shown are those given: newer ones need another mount.
pub fn mount(vault: &Unlocked, shown: &Shown, at: &Path, options: MountOptions) -> Result<Mounted, MountError> {
    if !at.exists() {
        return Err(MountError::NotThere { at: at.to_owned() });
    }
    let is_empty = std::fs::read_dir(at).is_ok_and(|mut entries| entries.next().is_none());
    if !is_empty {
        return Err(MountError::NotEmptyDirectory { at: at.to_owned() });
    }
    if !Path::new("/dev/fuse").exists() {
        return Err(MountError::NoDevice);
    }
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::RO,
        MountOption::NoDev,
        MountOption::NoSuid,
        MountOption::FSName("lifeboat".to_owned()),
        MountOption::Subtype("lifeboat".to_owned()),
    ];
    if options.allow_other {
        config.acl = SessionACL::All;
        config.mount_options.push(MountOption::DefaultPermissions);
    }
    config.n_threads = Some(THREADS);
    let answers = Answers::new(Places::new(vault, shown));
    let session =
        fuser::spawn_mount(answers, at, &config).map_err(|source| MountError::Mount { at: at.to_owned(), source })?;
    Ok(Mounted { session: Some(session), at: at.to_owned() })
}

/// Readers that are answered at once; each may wait for the storage.
const THREADS: usize = 8;

impl Mounted {
    /// Whether someone else unmounted it.
    pub fn is_over(&self) -> bool {
        self.session.as_ref().is_none_or(|session| session.guard.is_finished())
    }

    /// Unmounts, in use or not: who still has a file open gets errors from now on.
    pub fn unmount(mut self) -> Result<(), MountError> {
        self.end().map_err(|source| MountError::Unmount { at: self.at.clone(), source })
    }

    fn end(&mut self) -> io::Result<()> {
        let Some(session) = self.session.take() else { return Ok(()) };
        if session.guard.is_finished() {
            // Whoever unmounted it left nothing to unmount: dropping it would only try, and complain.
            std::mem::forget(session);
            return Ok(());
        }
        if !rustix::process::geteuid().is_root() {
            return session.umount_and_join(); // `fusermount3` detaches by itself
        }
        let output = std::process::Command::new("umount").arg("--lazy").arg("--").arg(&self.at).output()?;
        if !output.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        let deadline = Instant::now() + GRACE;
        while !session.guard.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        // Nothing is left to unmount, which is all that dropping it would try, even where someone reads on.
        std::mem::forget(session);
        Ok(())
    }
}

/// So long whoever has something open may go on.
const GRACE: Duration = Duration::from_secs(1);

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!("{} could not be unmounted: {error}", self.at.display());
        }
    }
}
