//! Verification: a recovery point is brought back to a place of its own and looked at, and what was found becomes its badge.
//!
//! Invariant: a point is called verified only if every check that applies to it was carried out, and passed. A check that could not be
//! carried out says nothing, good or bad.

use std::path::PathBuf;

use jiff::Timestamp;
use lifeboat_core::runbook::Target;
use lifeboat_vault::{Badge, PointInfo, VaultError};
use serde::Serialize;

/// How what a verification by restore wrote into the vault begins: other ways to look at a point go less deep.
pub const RESTORED: &str = "restored";

/// What is to be verified, and with what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyRequest {
    pub dataset: String,
    pub target: Target,
    /// An empty directory, which is removed by who made it.
    pub scratch: PathBuf,
    /// SQL; each must answer with one row that has one true value.
    pub queries: Vec<String>,
    /// In which of a server's databases; none: the one that the source names.
    pub database: Option<String>,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Passed,
    /// It could not be carried out.
    NotDone,
    /// Something is not as it should be, though the data came back.
    Failed,
    /// What is stored is proven to be damaged.
    Damaged,
}

impl Outcome {
    pub fn word(self) -> &'static str {
        match self {
            Outcome::Passed => "passed",
            Outcome::NotDone => "not done",
            Outcome::Failed => "failed",
            Outcome::Damaged => "damaged",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    pub check: String,
    pub outcome: Outcome,
    /// What was looked at, or what is wrong.
    pub what: String,
    pub seconds: f64,
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq)]
pub struct Verification {
    pub point: PointInfo,
    /// Up to when it was brought back, if it was.
    pub as_of: Option<Timestamp>,
    pub position: Option<String>,
    pub checks: Vec<Check>,
    pub notes: Vec<String>,
    pub seconds: f64,
}

impl Verification {
    /// What the point is by this; nothing where nobody can say.
    pub fn badge(&self) -> Option<Badge> {
        match self.checks.iter().map(|check| check.outcome).max()? {
            Outcome::Damaged => Some(Badge::Corrupt),
            Outcome::Failed => Some(Badge::Suspect),
            Outcome::NotDone => None,
            Outcome::Passed => Some(Badge::Verified),
        }
    }

    /// What stands in the vault of it.
    pub fn depth(&self) -> String {
        let worst = self.checks.iter().map(|check| check.outcome).max();
        let named = |check: &&Check| worst == Some(Outcome::Passed) || check.outcome > Outcome::NotDone;
        let mut names: Vec<&str> = self.checks.iter().filter(named).map(|check| check.check.as_str()).collect();
        names.dedup();
        let how = if worst == Some(Outcome::Passed) { "and sound" } else { "and not sound" };
        format!("{RESTORED} {how}: {}", names.join(", "))
    }
}

/// What an error that reading from a vault ended with says of what is stored; nothing where the storage or a key is what failed.
pub fn said_by_vault(error: &VaultError) -> Option<Outcome> {
    match error {
        VaultError::Damaged { .. } | VaultError::Missing { .. } | VaultError::Untrusted { .. } => {
            Some(Outcome::Damaged)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn verification(outcomes: &[Outcome]) -> Verification {
        let check = |(number, outcome): (usize, &Outcome)| Check {
            check: format!("check-{number}"),
            outcome: *outcome,
            what: String::new(),
            seconds: 0.0,
        };
        let point = PointInfo {
            id: "h/d/1".into(),
            dataset: "d".into(),
            host: "h".into(),
            sequence: 1,
            taken_at: Timestamp::UNIX_EPOCH,
            stored_at: Timestamp::UNIX_EPOCH,
            position: None,
            files: 0,
            bytes: 0,
            bytes_new: 0,
            bytes_stored: 0,
            badge: Badge::Unverified,
            doubts: Vec::new(),
            epoch: 0,
            schema: None,
            release: None,
            final_mark: false,
            archived: None,
            key: String::new(),
            hash: String::new(),
        };
        let checks = outcomes.iter().enumerate().map(check).collect();
        Verification { point, as_of: None, position: None, checks, notes: Vec::new(), seconds: 0.0 }
    }

    #[test]
    fn only_what_was_done_and_passed_makes_a_point_verified() {
        use Outcome::{Damaged, Failed, NotDone, Passed};
        for (outcomes, badge) in [
            (&[Passed, Passed][..], Some(Badge::Verified)),
            (&[Passed, NotDone], None),
            (&[NotDone], None),
            (&[], None),
            (&[Passed, Failed, NotDone], Some(Badge::Suspect)),
            (&[Failed, Damaged, Passed], Some(Badge::Corrupt)),
        ] {
            assert_eq!(verification(outcomes).badge(), badge, "{outcomes:?}");
        }
        assert_eq!(verification(&[Passed, Passed]).depth(), "restored and sound: check-0, check-1");
        assert_eq!(verification(&[Passed, NotDone, Failed]).depth(), "restored and not sound: check-2");
    }
}
