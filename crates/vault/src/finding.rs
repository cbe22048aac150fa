//! What is wrong, or not proven, about a vault that still answers.
//!
//! Invariant: every finding names an object, and what to do next.

use crate::error::VaultError;
use crate::storage::StorageError;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Something is lost, damaged, forged or rolled back.
    Alarm,
    /// Something is not as it should be, or cannot be proven.
    Warning,
    Note,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    pub severity: Severity,
    /// A word for programs: `missing`, `damaged`, `untrusted`, `rolled-back`, `freshness-unproven`, `one-recipient`, …
    pub code: &'static str,
    pub object: String,
    pub message: String,
}

impl Finding {
    pub(crate) fn new(
        severity: Severity,
        code: &'static str,
        object: impl Into<String>,
        message: impl Into<String>,
    ) -> Finding {
        Finding { severity, code, object: object.into(), message: message.into() }
    }

    pub(crate) fn missing(object: impl Into<String>, why: &str) -> Finding {
        let object = object.into();
        let message = format!("{object} is missing ({why}); bring it back from a copy of the vault");
        Finding::new(Severity::Alarm, "missing", object, message)
    }
}

impl From<&VaultError> for Finding {
    fn from(error: &VaultError) -> Finding {
        let (code, object) = match error {
            VaultError::Damaged { object, .. } => ("damaged", object.clone()),
            VaultError::Missing { object } => ("missing", object.clone()),
            VaultError::Untrusted { object, .. } => ("untrusted", object.clone()),
            VaultError::RolledBack { object, .. } => ("rolled-back", object.clone()),
            VaultError::WrongKey { object, .. } => ("wrong-key", object.clone()),
            // It is that object's fault, not the storage's.
            VaultError::Storage { source: source @ StorageError::TooLarge { key, .. }, .. } => {
                return Finding::new(Severity::Alarm, "damaged", key, source.to_string());
            }
            _ => ("failed", String::new()),
        };
        Finding::new(Severity::Alarm, code, object, error.to_string())
    }
}

/// Keeps the value, or the error as a finding; storage that fails is no finding but an error.
pub(crate) fn note<T>(result: Result<T, VaultError>, findings: &mut Vec<Finding>) -> Result<Option<T>, VaultError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error @ (VaultError::Storage { .. } | VaultError::State { .. })) => match storage_of_one_object(&error) {
            true => {
                findings.push(Finding::from(&error));
                Ok(None)
            }
            false => Err(error),
        },
        Err(stopped @ VaultError::Stopped) => Err(stopped),
        Err(error) => {
            findings.push(Finding::from(&error));
            Ok(None)
        }
    }
}

/// Keeps what was read, or that this one object cannot be: a bad place on a disk. Storage that fails as a whole is an error.
pub(crate) fn note_read<T>(
    read: Result<T, VaultError>,
    key: &str,
    findings: &mut Vec<Finding>,
) -> Result<Option<T>, VaultError> {
    match read {
        Err(VaultError::Storage { source, .. }) if !source.is_everywhere() => {
            let message = format!(
                "{key} cannot be read ({}); look at the disk, and heal the vault from a copy: lifeboat vault heal --from COPY",
                with_causes(&source)
            );
            findings.push(Finding::new(Severity::Alarm, "unreadable", key, message));
            Ok(None)
        }
        other => note(other, findings),
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// An object too large to be ours is that object's fault, not the storage's.
fn storage_of_one_object(error: &VaultError) -> bool {
    matches!(error, VaultError::Storage { source: StorageError::TooLarge { .. }, .. })
}
