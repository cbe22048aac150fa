//! What the last run on this machine that made locks longer has found, for whoever asks how things stand without asking the storage.
//!
//! Invariant: it says what was seen and when, and decides nothing: what is locked, the storage knows.

use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::error::{Result, VaultError};
use crate::prune::lock::LockReport;

/// Nobody writes more.
const RECORD_BYTES_MAX: u64 = 64 << 10;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRecord {
    /// When it looked.
    pub at: Timestamp,
    /// How long it made locks.
    pub length_seconds: i64,
    /// Objects that points needed then.
    pub objects: u64,
    /// Those of them without a lock that held.
    pub unlocked: u64,
    /// Locks that were due to be made longer and were not.
    pub left: u64,
    /// When the soonest lock ends of those that it left behind; absent while there is one without.
    pub until: Option<Timestamp>,
}

/// How locks stand, by what is recorded of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LockStanding {
    InTime,
    /// Some were due and not made longer, or nobody came for more than half of their length.
    Late,
    NotLocked,
    Ended,
}

impl LockRecord {
    pub(super) fn of(report: &LockReport, at: Timestamp, length: SignedDuration) -> LockRecord {
        let LockReport { objects, unlocked, left, until, .. } = *report;
        LockRecord { at, length_seconds: length.as_secs(), objects, unlocked, left, until }
    }

    /// What is kept in a directory about the storage at this place.
    pub fn read(directory: &Path, location: &str) -> Option<LockRecord> {
        use std::io::Read;
        let mut text = String::new();
        let file = std::fs::File::open(path(directory, location)).ok()?;
        file.take(RECORD_BYTES_MAX).read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok()
    }

    pub(super) fn keep(&self, directory: &Path, location: &str) -> Result<()> {
        let path = path(directory, location);
        let beside = path.with_extension("new");
        let text = serde_json::to_string(self).unwrap_or_default();
        std::fs::write(&beside, text).and_then(|()| std::fs::rename(&beside, &path)).map_err(|source| {
            VaultError::State {
                path: path.display().to_string(),
                doing: "remembering how locks stand".to_owned(),
                source,
            }
        })
    }

    pub fn standing(&self, now: Timestamp) -> LockStanding {
        let half = SignedDuration::from_secs(self.length_seconds / 2);
        match self.until {
            _ if self.unlocked > 0 => LockStanding::NotLocked,
            Some(until) if until <= now => LockStanding::Ended,
            _ if self.left > 0 || now.duration_since(self.at) > half => LockStanding::Late,
            _ => LockStanding::InTime,
        }
    }
}

fn path(directory: &Path, location: &str) -> PathBuf {
    directory.join(format!("locked-{}", crate::prune::lock::place_name(location)))
}
