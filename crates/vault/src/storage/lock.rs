//! Locks of objects (S3's Object Lock): until a moment nobody deletes what is locked, or nobody without a right of its own.
//!
//! Invariant: a lock is made longer, and never shorter.

use std::fmt;

use jiff::Timestamp;
use serde::Serialize;

/// Who may delete what is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LockMode {
    /// Who has the right to pass over locks.
    Governance,
    /// Nobody, the account's owner included.
    Compliance,
}

impl fmt::Display for LockMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LockMode::Governance => "governance",
            LockMode::Compliance => "compliance",
        })
    }
}

impl std::str::FromStr for LockMode {
    type Err = ();

    fn from_str(text: &str) -> Result<LockMode, ()> {
        match text.to_ascii_lowercase().as_str() {
            "governance" => Ok(LockMode::Governance),
            "compliance" => Ok(LockMode::Compliance),
            _ => Err(()),
        }
    }
}

/// The lock of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Lock {
    pub until: Timestamp,
    pub mode: LockMode,
}

/// That a storage can lock, and what it does with every new object by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Locking {
    /// For how many days, and how.
    pub by_itself: Option<(u32, LockMode)>,
}
