//! One directory that data lies in, kept as it is at a moment.
//!
//! Invariant: a snapshot is never written to; who works with it works in a clone.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Cancel, PortError};

/// One directory that data lies in, and snapshots of it that lie beside it. For one caller at a time; all of it blocks.
pub trait Volume: Send + Sync {
    /// What a snapshot that is taken now would be.
    fn keeps(&self) -> Keeps;
    /// Takes a snapshot under a name, writers held meanwhile. One of that name that is there is left as it is.
    fn snapshot(&self, name: &str, hold: &mut dyn Hold, cancel: &Cancel) -> Result<Snapshot, PortError>;
    /// By name.
    fn snapshots(&self) -> Result<Vec<Snapshot>, PortError>;
    /// A new directory to write in, with what the snapshot has. `false`: something is there already, and was left as it is.
    fn clone_to(&self, name: &str, to: &Path) -> Result<bool, PortError>;
    /// `false`: there is none of that name.
    fn remove(&self, name: &str) -> Result<bool, PortError>;
}

/// What a snapshot is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeps {
    /// One moment, whoever writes: as after a failure of power.
    Moment,
    /// File by file: a whole only of what nobody writes. `shared`: blocks are shared with it until one of them is written.
    Files { shared: bool },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub name: String,
    pub path: PathBuf,
    /// For how long writers were held; none for one that was there already, and where nothing was to be held.
    pub held: Option<Duration>,
}

/// Keeps writers still around a snapshot, or makes what they wrote quick to take up.
pub trait Hold {
    /// Whether there is anything to hold.
    fn is_needed(&self) -> bool {
        true
    }
    fn lock(&mut self) -> Result<(), PortError>;
    /// Is called whatever became of the snapshot and of `lock`.
    fn unlock(&mut self) -> Result<(), PortError>;
}

/// Nobody writes, or nobody minds.
impl Hold for () {
    fn is_needed(&self) -> bool {
        false
    }
    fn lock(&mut self) -> Result<(), PortError> {
        Ok(())
    }
    fn unlock(&mut self) -> Result<(), PortError> {
        Ok(())
    }
}
