//! Signed objects on the arbiter's storage: the one place that knows how they lie there.
//!
//! Invariant: an object's key is part of what is signed, so an object copied to another place is refused there; the
//! signer must be on the roster; a length is looked at before anything is read.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use lifeboat_core::run::BrokenChain;
use lifeboat_vault::storage::{self, Storage, StorageError};
use lifeboat_vault::{PublicKey, Signed, SigningKey, State, VaultError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::epoch::Claim;
use crate::port::Clock;

/// No object here is larger; the largest is the first entry of a journal, with its run-book.
const OBJECT_BYTES_MAX: u64 = 20 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ArbiterError {
    #[error("the arbiter's storage at {location} failed at {key}; nothing is decided without it")]
    Storage {
        location: String,
        key: String,
        #[source]
        source: Box<StorageError>,
    },
    #[error("the arbiter's object {key} is not to be trusted; find out who wrote it before you go on")]
    Untrusted {
        key: String,
        #[source]
        source: Box<VaultError>,
    },
    #[error(
        "the arbiter's object {key} is signed by {signer}, who is not on the roster; find out who wrote it, or enrol them"
    )]
    UnknownSigner { key: String, signer: String },
    #[error("the arbiter's object {key} is not to be trusted: {reason}")]
    Malformed { key: String, reason: String },
    #[error("the arbiter's object {key} was there and is gone; bring the arbiter's storage back from a copy")]
    Vanished { key: String },
    #[error("{key} cannot be written as JSON")]
    Encode {
        key: String,
        #[source]
        source: serde_json::Error,
    },
    #[error(
        "epoch {} of {} was claimed by run {} for {} at {}; only one can have it",
        by.epoch, by.write_domain, by.run, by.primary, by.at
    )]
    EpochTaken { by: Box<Claim> },
    #[error("epoch {wanted} of {write_domain} cannot be had: {in_force} is in force")]
    EpochMoved { write_domain: String, wanted: u64, in_force: u64 },
    #[error("the lease of {write_domain} under epoch {epoch} is held by {holder}")]
    LeaseTaken { write_domain: String, epoch: u64, holder: String },
    #[error(
        "epoch {epoch} may not publish {what} state of {name} any more: the state in force carries epoch {in_force}"
    )]
    OlderEpoch { what: &'static str, name: String, epoch: u64, in_force: u64 },
    #[error("others keep publishing under {prefix}; try again")]
    Contended { prefix: String },
    #[error(
        "run {run} works on {service} (its last sign is of {since}); one run at a time: wait, or resume or cancel that one"
    )]
    Busy { service: String, run: String, since: String },
    #[error(
        "run {run} on {service} has not ended; `lifeboat run resume {run}` goes on with it, `lifeboat run cancel {run}` ends it"
    )]
    Unfinished { service: String, run: String },
    #[error(
        "the journal of run {run} here ends at entry {own}, its mirror has {mirrored}; fetch the mirror's before going on"
    )]
    JournalBehind { run: String, own: u64, mirrored: u64 },
    #[error("another executor has gone on with run {run} at entry {seq}; this one stops")]
    RunTaken { run: String, seq: u64 },
    #[error("another executor has taken the run lock of {service} from run {run}; this one stops")]
    LockLost { service: String, run: String },
    #[error("the mirrored journal is not whole")]
    BrokenMirror {
        #[source]
        source: BrokenChain,
    },
}

impl ArbiterError {
    /// Whether a safety rule refused, rather than something having failed.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            ArbiterError::EpochTaken { .. }
                | ArbiterError::EpochMoved { .. }
                | ArbiterError::LeaseTaken { .. }
                | ArbiterError::OlderEpoch { .. }
                | ArbiterError::Busy { .. }
                | ArbiterError::Unfinished { .. }
                | ArbiterError::JournalBehind { .. }
                | ArbiterError::RunTaken { .. }
                | ArbiterError::LockLost { .. }
        )
    }

    /// Whether trying again can help.
    pub fn may_pass(&self) -> bool {
        matches!(self, ArbiterError::Storage { .. } | ArbiterError::Contended { .. })
    }

    /// The error and its causes in one line.
    pub fn with_cause(&self) -> String {
        crate::execute::with_cause(self)
    }
}

impl From<ArbiterError> for crate::port::PortError {
    fn from(error: ArbiterError) -> crate::port::PortError {
        let may_pass = error.may_pass();
        crate::port::PortError { message: error.to_string(), may_pass, source: Some(error.into()) }
    }
}

/// Whose key this host signs with.
pub trait Signs: Send + Sync {
    fn signing_key(&self) -> &SigningKey;
}

impl Signs for SigningKey {
    fn signing_key(&self) -> &SigningKey {
        self
    }
}

impl Signs for State {
    fn signing_key(&self) -> &SigningKey {
        State::signing_key(self)
    }
}

/// Who is believed: public keys, and under which name they are on the roster.
pub type Trusted = BTreeMap<PublicKey, String>;

/// Whether `publish_once` made the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    Created,
    Existed,
}

/// The arbiter as one host sees it. All calls block; async callers use `spawn_blocking`.
pub struct Arbiter {
    storage: Arc<dyn Storage>,
    key: Arc<dyn Signs>,
    trusted: RwLock<Trusted>,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Arbiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arbiter").field("storage", &self.storage).finish_non_exhaustive()
    }
}

impl Arbiter {
    /// `trusted` is what the roster says; this host's own key counts only if it is in there.
    pub fn new(storage: Arc<dyn Storage>, key: Arc<dyn Signs>, trusted: Trusted, clock: Arc<dyn Clock>) -> Arbiter {
        Arbiter { storage, key, trusted: RwLock::new(trusted), clock }
    }

    /// The same word in another storage: who signs and who is believed stays.
    pub fn elsewhere(&self, storage: Arc<dyn Storage>) -> Arbiter {
        let trusted = self.trusted.read().unwrap_or_else(PoisonError::into_inner).clone();
        Arbiter { storage, key: Arc::clone(&self.key), trusted: RwLock::new(trusted), clock: Arc::clone(&self.clock) }
    }

    /// Takes over a newer roster.
    pub fn trust(&self, trusted: Trusted) {
        *self.trusted.write().unwrap_or_else(PoisonError::into_inner) = trusted;
    }

    pub fn clock(&self) -> &dyn Clock {
        self.clock.as_ref()
    }

    pub fn location(&self) -> String {
        self.storage.location()
    }

    pub(super) fn publish_once<T: Serialize>(&self, key: &str, body: &T) -> Result<Put, ArbiterError> {
        let bytes = self.seal(key, body)?;
        match self.storage.put_if_absent(key, &bytes).map_err(|source| self.failed(key, source))? {
            storage::Put::Created => Ok(Put::Created),
            storage::Put::Exists => Ok(Put::Existed),
        }
    }

    pub(super) fn publish<T: Serialize>(&self, key: &str, body: &T) -> Result<(), ArbiterError> {
        let bytes = self.seal(key, body)?;
        self.storage.put(key, &bytes).map_err(|source| self.failed(key, source))
    }

    pub(super) fn remove(&self, key: &str) -> Result<(), ArbiterError> {
        self.storage.delete(key).map_err(|source| self.failed(key, source))
    }

    pub(super) fn read<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, ArbiterError> {
        // One byte more than is allowed tells a too large object from one that just fits.
        let bytes = match self.storage.get_range(key, 0, OBJECT_BYTES_MAX + 1) {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(source) => return Err(self.failed(key, source)),
        };
        if bytes.len() as u64 > OBJECT_BYTES_MAX {
            return Err(ArbiterError::Malformed { key: key.into(), reason: "it is too large".into() });
        }
        let signed = Signed::open(&kind(key), key, &bytes)
            .map_err(|source| ArbiterError::Untrusted { key: key.into(), source: source.into() })?;
        if !self.trusted.read().unwrap_or_else(PoisonError::into_inner).contains_key(&signed.signer) {
            return Err(ArbiterError::UnknownSigner { key: key.into(), signer: signed.signer.fingerprint() });
        }
        serde_json::from_slice(&signed.payload).map(Some).map_err(|error| ArbiterError::Malformed {
            key: key.into(),
            reason: format!("this version of lifeboat cannot read it ({error})"),
        })
    }

    /// The numbered objects directly under a prefix that ends with `/`, in order.
    pub(super) fn numbers(&self, prefix: &str) -> Result<Vec<u64>, ArbiterError> {
        let keys = self.keys(prefix)?;
        let mut numbers: Vec<u64> = keys.iter().filter_map(|key| number(key.strip_prefix(prefix)?)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The object with the highest number under a prefix.
    pub(super) fn latest<T: DeserializeOwned>(&self, prefix: &str) -> Result<Option<T>, ArbiterError> {
        match self.numbers(prefix)?.last() {
            Some(number) => {
                let key = format!("{prefix}{number}");
                self.read(&key)?.map_or(Err(ArbiterError::Vanished { key }), |body| Ok(Some(body)))
            }
            None => Ok(None),
        }
    }

    pub(super) fn keys(&self, prefix: &str) -> Result<Vec<String>, ArbiterError> {
        let listed = self.storage.list(prefix).map_err(|source| self.failed(prefix, source))?;
        Ok(listed.into_iter().map(|listed| listed.key).collect())
    }

    fn seal<T: Serialize>(&self, key: &str, body: &T) -> Result<Vec<u8>, ArbiterError> {
        let payload = serde_json::to_vec(body).map_err(|source| ArbiterError::Encode { key: key.into(), source })?;
        Signed::seal(&kind(key), &payload, self.key.signing_key())
            .map_err(|source| ArbiterError::Untrusted { key: key.into(), source: source.into() })
    }

    fn failed(&self, key: &str, source: StorageError) -> ArbiterError {
        ArbiterError::Storage { location: self.storage.location(), key: key.into(), source: source.into() }
    }
}

/// The kind under which the object at `key` is signed: its place is part of it.
pub(crate) fn kind(key: &str) -> String {
    format!("arbiter:{key}")
}

/// A number as this module writes it, and nothing that merely looks like one (`+1`, `01`).
pub(crate) fn number(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}
