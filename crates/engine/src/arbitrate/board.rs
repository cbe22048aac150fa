//! Signed objects on the arbiter's storage: the one place that knows how they lie there.
//!
//! Invariant: an object's key is part of what is signed, so an object copied to another place is refused there; the
//! signer must be on the roster, in a role whose word counts at that place; a length is looked at before anything is read;
//! what was seen here once is never silently older or gone.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use lifeboat_core::run::BrokenChain;
use lifeboat_vault::storage::{self, Storage, StorageError};
use lifeboat_vault::{Role, Signed, SigningKey, State, VaultError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::epoch::Claim;
use super::memory::Memory;
use super::trust::{SiteHosts, Trusted, Trustee, role_names, signers};
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
    #[error(
        "the arbiter's object {key} is signed by {name}, on the roster as {}; that takes a {}: find out who wrote it",
        role_names(roles, " and "),
        role_names(signers(key), " or a ")
    )]
    WrongRole { key: String, name: String, roles: Vec<Role> },
    #[error(
        "this machine ({name}) is on the roster as {}; writing {key} takes a {}: `lifeboat vault enroll --role controller` on a machine that is to decide",
        role_names(roles, " and "),
        role_names(signers(key), " or a ")
    )]
    MayNotWrite { key: String, name: String, roles: Vec<Role> },
    #[error(
        "the arbiter's object {key} is signed by {name}, which is no host of {site} in the plan; find out who wrote it before you go on"
    )]
    WrongSite { key: String, name: String, site: String },
    #[error(
        "this machine ({name}) is no host of {site} in the plan, so what it says of {site} counts for nobody; enrol it under the name {site}, or name it in the plan as a host of [site.{site}]"
    )]
    NotOfSite { name: String, site: String },
    #[error(
        "the arbiter's storage at {location} is not the one that was seen here before: {found}; see what is mounted there. If it was made anew on purpose, remove {memory} on every machine"
    )]
    OtherArbiter { location: String, found: String, memory: String },
    #[error(
        "the arbiter was rolled back: {row} ends at {found}, {seen} was seen here before; bring the newer state back from a copy"
    )]
    RolledBack { row: String, found: u64, seen: u64 },
    #[error("the arbiter's object {key} was replaced since it was seen here; find out who did it before you go on")]
    Replaced { key: String },
    #[error("what was seen of the arbiter cannot be kept in {path}")]
    Memory {
        path: String,
        #[source]
        source: std::io::Error,
    },
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
                | ArbiterError::MayNotWrite { .. }
                | ArbiterError::NotOfSite { .. }
                | ArbiterError::OtherArbiter { .. }
                | ArbiterError::RolledBack { .. }
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

/// Where an arbiter says which one it is, so that an empty directory in its place is no first day.
const IDENTITY: &str = "arbiter/identity";

#[derive(Debug, Serialize, Deserialize)]
struct Identity {
    id: String,
    /// RFC 3339, for people.
    at: String,
}

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
    /// Which hosts may report for which site; without, any.
    hosts: Option<SiteHosts>,
    clock: Arc<dyn Clock>,
    memory: Option<Memory>,
    identified: AtomicBool,
}

impl std::fmt::Debug for Arbiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arbiter").field("storage", &self.storage).finish_non_exhaustive()
    }
}

impl Arbiter {
    /// `trusted` is what the roster says; this host's own key counts only if it is in there.
    pub fn new(storage: Arc<dyn Storage>, key: Arc<dyn Signs>, trusted: Trusted, clock: Arc<dyn Clock>) -> Arbiter {
        let identified = AtomicBool::new(false);
        Arbiter { storage, key, trusted: RwLock::new(trusted), hosts: None, clock, memory: None, identified }
    }

    /// Believes of a site only what its own hosts say (and controllers, who decide anyway).
    pub fn with_hosts(self, hosts: SiteHosts) -> Arbiter {
        Arbiter { hosts: Some(hosts), ..self }
    }

    /// Remembers in this state directory which arbiter it is and what was seen of it.
    pub fn remembering(mut self, directory: &Path) -> Result<Arbiter, ArbiterError> {
        let memory = Memory::open(directory, &self.storage.location());
        self.memory = Some(memory.map_err(|source| ArbiterError::Memory {
            path: directory.join("arbiters.json").display().to_string(),
            source,
        })?);
        Ok(self)
    }

    /// The same word in another storage: who signs and who is believed stays.
    pub fn elsewhere(&self, storage: Arc<dyn Storage>) -> Arbiter {
        let trusted = self.trusted.read().unwrap_or_else(PoisonError::into_inner).clone();
        let arbiter = Arbiter::new(storage, Arc::clone(&self.key), trusted, Arc::clone(&self.clock));
        Arbiter { hosts: self.hosts.clone(), ..arbiter }
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
        self.identify(true)?;
        self.check_own_role(key)?;
        self.create(key, body)
    }

    fn create<T: Serialize>(&self, key: &str, body: &T) -> Result<Put, ArbiterError> {
        let bytes = self.seal(key, body)?;
        match self.storage.put_if_absent(key, &bytes).map_err(|source| self.failed(key, source))? {
            storage::Put::Created => Ok(Put::Created),
            storage::Put::Exists => Ok(Put::Existed),
        }
    }

    pub(super) fn publish<T: Serialize>(&self, key: &str, body: &T) -> Result<(), ArbiterError> {
        self.identify(true)?;
        self.check_own_role(key)?;
        let bytes = self.seal(key, body)?;
        self.storage.put(key, &bytes).map_err(|source| self.failed(key, source))
    }

    pub(super) fn remove(&self, key: &str) -> Result<(), ArbiterError> {
        self.storage.delete(key).map_err(|source| self.failed(key, source))
    }

    /// What others would not believe must not be written: it would stand in everybody's way.
    fn check_own_role(&self, key: &str) -> Result<(), ArbiterError> {
        let own = self.key.signing_key().public();
        match self.trusted.read().unwrap_or_else(PoisonError::into_inner).get(&own) {
            Some(trustee) if !trustee.may_sign(key) => Err(ArbiterError::MayNotWrite {
                key: key.into(),
                name: trustee.name.clone(),
                roles: trustee.roles.clone(),
            }),
            Some(trustee) => match self.foreign_site(key, trustee) {
                Some(site) => Err(ArbiterError::NotOfSite { name: trustee.name.clone(), site }),
                None => Ok(()),
            },
            // Who reads it says who is unknown to whom; this host's own roster may be the older one.
            None => Ok(()),
        }
    }

    /// Whether others would believe what this machine reports for a site.
    pub fn check_may_report(&self, site: &str) -> Result<(), ArbiterError> {
        self.check_own_role(&format!("agents/{site}/"))
    }

    /// The site that a report is about, where the one who signed it does not belong there.
    fn foreign_site(&self, key: &str, trustee: &Trustee) -> Option<String> {
        let (site, _) = key.strip_prefix("agents/").or_else(|| key.strip_prefix("leases/"))?.split_once('/')?;
        let hosts = self.hosts.as_ref()?;
        let belongs = hosts.get(site).is_some_and(|hosts| hosts.contains(&trustee.name));
        (!belongs && !trustee.roles.contains(&Role::Controller)).then(|| site.to_owned())
    }

    /// Makes sure, once, that this is the arbiter that was seen here before. `make`: a new one is given its identity.
    fn identify(&self, make: bool) -> Result<(), ArbiterError> {
        let Some(memory) = &self.memory else { return Ok(()) };
        if self.identified.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut found: Option<Identity> = self.open_object(IDENTITY)?.map(|(identity, _)| identity);
        let known = memory.identity();
        if found.is_none() && known.is_none() && make && self.check_own_role(IDENTITY).is_ok() {
            let id = lifeboat_vault::sign::SigningKey::generate().map(|key| key.public().fingerprint());
            let id = id.map_err(|source| ArbiterError::Untrusted { key: IDENTITY.into(), source: source.into() })?;
            self.create(IDENTITY, &Identity { id, at: self.clock.now().to_string() })?;
            found = self.open_object(IDENTITY)?.map(|(identity, _)| identity);
        }
        let other = |found: &str| ArbiterError::OtherArbiter {
            location: self.storage.location(),
            found: found.to_owned(),
            memory: memory.path().display().to_string(),
        };
        match (found, known) {
            (Some(found), Some(known)) if found.id != known => return Err(other("it has another identity")),
            (None, Some(_)) => return Err(other("it has no identity, as an empty directory has none")),
            (Some(found), None) => self.remember(memory.keep_identity(&found.id))?,
            (Some(_), Some(_)) => {}
            // Nothing was ever written there, and nothing seen: the first day is still to come.
            (None, None) => return Ok(()),
        }
        self.identified.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn remember(&self, kept: std::io::Result<()>) -> Result<(), ArbiterError> {
        kept.map_err(|source| ArbiterError::Memory {
            path: self.memory.as_ref().map_or_else(String::new, |memory| memory.path().display().to_string()),
            source,
        })
    }

    pub(super) fn read<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, ArbiterError> {
        self.identify(false)?;
        let Some((body, hash)) = self.open_object(key)? else { return Ok(None) };
        if let Some(memory) = &self.memory
            && let Some((row, number)) = numbered(key)
        {
            match memory.newest(row) {
                Some((seen, there)) if seen == number && there != hash => {
                    return Err(ArbiterError::Replaced { key: key.into() });
                }
                Some((seen, _)) if seen >= number => {}
                _ => self.remember(memory.keep(row, number, hash))?,
            }
        }
        Ok(Some(body))
    }

    /// The object, believed, and its hash.
    fn open_object<T: DeserializeOwned>(&self, key: &str) -> Result<Option<(T, String)>, ArbiterError> {
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
        match self.trusted.read().unwrap_or_else(PoisonError::into_inner).get(&signed.signer) {
            None => return Err(ArbiterError::UnknownSigner { key: key.into(), signer: signed.signer.fingerprint() }),
            Some(trustee) if !trustee.may_sign(key) => {
                let (name, roles) = (trustee.name.clone(), trustee.roles.clone());
                return Err(ArbiterError::WrongRole { key: key.into(), name, roles });
            }
            Some(trustee) => {
                if let Some(site) = self.foreign_site(key, trustee) {
                    return Err(ArbiterError::WrongSite { key: key.into(), name: trustee.name.clone(), site });
                }
            }
        }
        let hash: String = signed.hash.iter().map(|byte| format!("{byte:02x}")).collect();
        serde_json::from_slice(&signed.payload).map(|body| Some((body, hash))).map_err(|error| {
            ArbiterError::Malformed {
                key: key.into(),
                reason: format!("this version of lifeboat cannot read it ({error})"),
            }
        })
    }

    /// The numbered objects directly under a prefix that ends with `/`, in order.
    pub(super) fn numbers(&self, prefix: &str) -> Result<Vec<u64>, ArbiterError> {
        // Before the look: another thread may see more meanwhile.
        let seen = self.memory.as_ref().and_then(|memory| memory.newest(prefix));
        let keys = self.keys(prefix)?;
        let mut numbers: Vec<u64> = keys.iter().filter_map(|key| number(key.strip_prefix(prefix)?)).collect();
        numbers.sort_unstable();
        let newest = numbers.last().copied().unwrap_or(0);
        if let Some((seen, _)) = seen
            && seen > newest
        {
            self.identified.store(false, Ordering::Relaxed);
            self.identify(false)?;
            return Err(ArbiterError::RolledBack { row: prefix.into(), found: newest, seen });
        }
        Ok(numbers)
    }

    /// The object with the highest number under a prefix.
    pub(super) fn latest<T: DeserializeOwned>(&self, prefix: &str) -> Result<Option<T>, ArbiterError> {
        Ok(self.latest_numbered(prefix)?.map(|(_, body)| body))
    }

    /// The same, and its number: who goes on from it must not look for the number again, it may be another's by then.
    pub(super) fn latest_numbered<T: DeserializeOwned>(&self, prefix: &str) -> Result<Option<(u64, T)>, ArbiterError> {
        match self.numbers(prefix)?.last() {
            Some(number) => {
                let key = format!("{prefix}{number}");
                self.read(&key)?.map_or(Err(ArbiterError::Vanished { key }), |body| Ok(Some((*number, body))))
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

/// The row and the number of an object that is one of a row which only grows.
fn numbered(key: &str) -> Option<(&str, u64)> {
    let (_, last) = key.rsplit_once('/')?;
    let row = key.strip_suffix(last)?;
    let grows = ["epochs/", "desired/", "traffic/", "locks/"].iter().any(|kind| row.starts_with(kind));
    if grows { Some((row, number(last)?)) } else { None }
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
