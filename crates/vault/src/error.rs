//! Why something about a vault could not be done: one enum, because every caller asks the same question of it.
//!
//! Invariant: a message names the object and the next step; it never holds a secret or a piece of anyone's data.

use crate::storage::StorageError;

pub type Result<T, E = VaultError> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VaultError {
    #[error("the vault's storage failed while {doing}")]
    Storage {
        doing: String,
        #[source]
        source: StorageError,
    },
    #[error("there is no vault at {location}: run `lifeboat vault init` there, or correct the address")]
    NoVault { location: String },
    #[error("there is a vault at {location} already (owner {owner}): use it, or choose an empty place")]
    VaultExists { location: String, owner: String },
    #[error(
        "the vault at {location} belongs to owner {found}, not to {expected}: this is another vault; \
         check the address, and trust nothing in it until you know why"
    )]
    ForeignVault { location: String, expected: String, found: String },
    #[error("{object} is damaged: {why}; run `lifeboat vault check`, and heal it from a copy of the vault")]
    Damaged { object: String, why: String },
    #[error("{object} is missing from the vault; run `lifeboat vault check`, and bring it back from a copy")]
    Missing { object: String },
    #[error("{object} is not to be trusted: {why}; find out who wrote it before you go on")]
    Untrusted { object: String, why: String },
    #[error(
        "{from} and {to} went different ways: each holds another {object}, rightly signed; one was brought back from a copy and \
         written to, or somebody has a host's key: find out which is right, and copy that one to a new place"
    )]
    Diverged { object: String, from: String, to: String },
    #[error(
        "the vault was rolled back: {object} is at {found}, but {seen} was seen here before; bring the newer state back from a copy"
    )]
    RolledBack { object: String, found: String, seen: String },
    #[error(
        "{host} is not on the roster of this vault: run `lifeboat vault enroll`, then let the owner approve {fingerprint}"
    )]
    NotEnrolled { host: String, fingerprint: String },
    #[error("{host} was revoked on the roster of this vault: enrol it again under a new key, if it is to write")]
    Revoked { host: String },
    #[error("none of the {given} given keys opens {object}: give the key of one of its recipients ({recipients})")]
    WrongKey { object: String, given: usize, recipients: String },
    #[error("the key that opens {what} is needed for this; give it with --key")]
    KeyNeeded { what: String },
    #[error("{object} was written by someone else at the same moment: {why}; look at it, then try again")]
    Conflict { object: String, why: String },
    #[error("this backup has failed and cannot be committed: {why}; start it again, what was uploaded is reused")]
    SessionFailed { why: String },
    #[error("{what} is refused: {why}")]
    Refused { what: String, why: String },
    #[error("{what} is too large: {size} bytes, the limit is {limit}")]
    TooLarge { what: String, size: u64, limit: u64 },
    #[error("{what} is not valid: {why}")]
    Invalid { what: String, why: String },
    #[error("the state directory {path} cannot be used ({doing})")]
    State {
        path: String,
        doing: String,
        #[source]
        source: std::io::Error,
    },
    #[error("stopped; run the same command again to go on")]
    Stopped,
    #[error("{what} failed in the cryptographic library; this should never happen: check the machine's memory")]
    Crypto { what: String },
}

impl VaultError {
    pub(crate) fn damaged(object: impl Into<String>, why: impl Into<String>) -> VaultError {
        VaultError::Damaged { object: object.into(), why: why.into() }
    }

    pub(crate) fn untrusted(object: impl Into<String>, why: impl Into<String>) -> VaultError {
        VaultError::Untrusted { object: object.into(), why: why.into() }
    }

    pub(crate) fn invalid(what: impl Into<String>, why: impl Into<String>) -> VaultError {
        VaultError::Invalid { what: what.into(), why: why.into() }
    }

    pub(crate) fn crypto(what: impl Into<String>) -> VaultError {
        VaultError::Crypto { what: what.into() }
    }

    /// Whether it lies where it must be thawed before it can be read.
    pub fn is_archived(&self) -> bool {
        matches!(self, VaultError::Storage { source: StorageError::Archived { .. }, .. })
    }

    /// Whether the storage itself (not an object in it) is what failed, so that trying again later can help.
    pub fn may_pass(&self) -> bool {
        matches!(self, VaultError::Storage { .. } | VaultError::Conflict { .. })
    }
}

/// Says what was being done when the storage failed; a missing object becomes `Missing` with its name.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Doing<T> for Result<T, StorageError> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| match source {
            StorageError::NotFound { key } => VaultError::Missing { object: key },
            source => VaultError::Storage { doing: what(), source },
        })
    }
}
