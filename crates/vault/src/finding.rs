//! What is wrong, or not proven, about a vault that still answers.
//!
//! Invariant: every finding names an object, and what to do next.

use crate::error::VaultError;

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
        Err(error) => {
            findings.push(Finding::from(&error));
            Ok(None)
        }
    }
}

/// An object too large to be ours is that object's fault, not the storage's.
fn storage_of_one_object(error: &VaultError) -> bool {
    matches!(error, VaultError::Storage { source: crate::storage::StorageError::TooLarge { .. }, .. })
}
