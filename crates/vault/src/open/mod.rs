//! Doors into a vault, as types: `Vault` reads what is in the clear, `HostVault` writes with public keys only, `Unlocked` reads what
//! its identities reach.
//!
//! Invariants: the roster is believed only under the owner's fingerprint (given, or seen here first); what this machine has seen
//! once is not silently replaced by something older.

mod make;
mod unlocked;

use std::collections::{BTreeMap, HashMap};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use crate::copy::LeftOut;
use crate::error::{Doing, Result, VaultError};
use crate::finding::{Finding, Severity};
use crate::freshness::Witnessed;
use crate::host::{ChunkKey, State};
use crate::keys::{self, Pair, Stated};
use crate::log::LogEntry;
use crate::name;
use crate::prune::{Ledger, Tombstone};
use crate::roster::{self, Loaded, Role, Roster};
use crate::seal::{Identity, Recipient};
use crate::snapshot::Snapshot;
use crate::storage::Storage;

pub(crate) use self::make::member_of;
pub use self::make::{InitOptions, Initialised};
pub(crate) use self::unlocked::archived_pack;
pub use self::unlocked::{ArchivedPack, Unlocked};

#[derive(Clone)]
pub struct Vault {
    inner: Arc<Inner>,
}

struct Inner {
    storage: Arc<dyn Storage>,
    state: Option<State>,
    /// The owner's fingerprint that everything is held against.
    owner: String,
    roster: RwLock<Arc<Loaded>>,
    logs: Mutex<HashMap<String, Vec<LogEntry>>>,
    containers: Mutex<crate::log::Containers>,
    snapshots: Mutex<HashMap<String, Arc<Snapshot>>>,
    indexes: Mutex<HashMap<String, crate::session::KnownChunks>>,
    ledger: Mutex<Option<Arc<Ledger>>>,
    tombstones: Mutex<HashMap<String, Tombstone>>,
    /// What the record of a copy says was left out, and that record's key.
    left_out: Mutex<Option<(String, LeftOut)>>,
    /// Heads that copies and other vaults prove.
    witnessed: Mutex<Witnessed>,
    /// What was met on the way and costs little: it is told, and no reason to stop.
    noted: Mutex<Vec<Finding>>,
    /// Set by who wants long work to stop.
    stop: OnceLock<Arc<AtomicBool>>,
    /// A rule that a test has taken away.
    #[cfg(test)]
    taken_away: Mutex<Option<crate::prune::Rule>>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault").field("location", &self.inner.storage.location()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Vault {
    /// Opens a vault for reading what is in the clear. `owner` is the fingerprint from the plan or kit; without it the owner
    /// seen here before is expected, and at a first meeting the one found is believed, with a finding.
    pub fn open(storage: Arc<dyn Storage>, state: Option<State>, owner: Option<&str>) -> Result<Vault> {
        let location = storage.location();
        let known = match (&state, owner) {
            (_, Some(given)) => Some(given.to_owned()),
            (Some(state), None) => state.known_owner(&location)?,
            (None, None) => None,
        };
        let mut loaded = roster::load(&*storage, known.as_deref())?;
        let owner = loaded.roster.owner.fingerprint();
        if known.is_none() {
            let message = format!(
                "the vault's owner is {owner}; nothing here proves that it is the right one: compare it, and pass it on"
            );
            loaded.findings.push(Finding::new(Severity::Warning, "owner-unproven", name::ROSTER, message));
        }
        if let Some(state) = &state {
            state.keep_owner(&location, &owner)?;
        }
        let inner = Inner {
            storage,
            state,
            owner,
            roster: RwLock::new(Arc::new(loaded)),
            logs: Mutex::default(),
            containers: Mutex::default(),
            snapshots: Mutex::default(),
            indexes: Mutex::default(),
            ledger: Mutex::default(),
            tombstones: Mutex::default(),
            left_out: Mutex::default(),
            witnessed: Mutex::default(),
            noted: Mutex::default(),
            stop: OnceLock::new(),
            #[cfg(test)]
            taken_away: Mutex::default(),
        };
        let vault = Vault { inner: Arc::new(inner) };
        vault.check_roster_against_memory()?;
        Ok(vault)
    }

    /// Opens everything that the identities reach. Fails only where they reach nothing at all.
    pub fn unlock(&self, identities: &[Identity]) -> Result<Unlocked> {
        Unlocked::open(self.clone(), identities)
    }

    /// From now on long work at this vault (a prune, a check, a healing) stops where it can be taken up again once the flag is set.
    pub fn stop_on(&self, flag: Arc<AtomicBool>) {
        let _ = self.inner.stop.set(flag);
    }

    pub(crate) fn check_stop(&self) -> Result<()> {
        match self.inner.stop.get() {
            Some(flag) if flag.load(Ordering::SeqCst) => Err(VaultError::Stopped),
            _ => Ok(()),
        }
    }

    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.inner.storage
    }

    /// The vault's identifier.
    pub fn id(&self) -> String {
        self.roster().vault
    }

    /// The owner's fingerprint.
    pub fn owner(&self) -> &str {
        &self.inner.owner
    }

    /// The newest roster read so far.
    pub fn roster(&self) -> Roster {
        self.loaded().roster.clone()
    }

    /// Notes what is wrong with an object that was passed by, once.
    pub(crate) fn note_passed_by(&self, error: &VaultError) {
        let finding = Finding::from(error);
        let mut noted = self.inner.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if !noted.contains(&finding) {
            noted.push(finding);
        }
    }

    /// What was wrong, or unproven, at opening, and what was passed by since.
    pub fn findings(&self) -> Vec<Finding> {
        let loaded = self.loaded();
        let mut findings = loaded.findings.clone();
        if loaded.roster.recipients.len() < 2 {
            let message = "one recipient only: if its key is lost, everything is; add another with `lifeboat vault recipients add`";
            findings.push(Finding::new(Severity::Warning, "one-recipient", "keys/", message));
        }
        findings.extend(self.inner.noted.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
        findings
    }

    pub(crate) fn loaded(&self) -> Arc<Loaded> {
        self.inner.roster.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the roster again if a newer version is there. Cheap: one look for the next number.
    pub fn refresh(&self) -> Result<()> {
        let next = self.loaded().roster.version + 1;
        match self.inner.storage.get_range(&name::roster(next), 0, 1) {
            Err(e) if e.is_not_found() => Ok(()),
            Err(e) => Err(e).doing(|| "looking for a newer roster".to_owned()),
            Ok(_) => {
                let mut loaded = roster::load(&*self.inner.storage, Some(&self.inner.owner))?;
                let before = self.loaded();
                if loaded.roster.version < before.roster.version {
                    loaded.roster = before.roster.clone();
                    loaded.hash = before.hash;
                }
                *self.inner.roster.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
                // What was believed under the roster before may not count under this one.
                lock(&self.inner.logs).clear();
                lock(&self.inner.containers).clear();
                lock(&self.inner.snapshots).clear();
                self.check_roster_against_memory()
            }
        }
    }

    pub(crate) fn check_roster_against_memory(&self) -> Result<()> {
        let loaded = self.loaded();
        let version = loaded.roster.version;
        match self.remembered_head(name::ROSTER)? {
            Some((seen, _)) if seen > version => {
                let error = VaultError::RolledBack {
                    object: "the roster".to_owned(),
                    found: format!("version {version}"),
                    seen: format!("version {seen}"),
                };
                self.add_finding(Finding::from(&error));
                Ok(())
            }
            Some((seen, hash)) if seen == version && hash != loaded.hash.to_string() => {
                let error =
                    VaultError::untrusted(name::roster(version), "it was replaced since it was first seen here");
                self.add_finding(Finding::from(&error));
                Ok(())
            }
            _ => self.remember_head(name::ROSTER, version, loaded.hash.0),
        }
    }

    fn add_finding(&self, finding: Finding) {
        let mut place = self.inner.roster.write().unwrap_or_else(PoisonError::into_inner);
        let mut loaded = Loaded::clone(&place);
        if !loaded.findings.contains(&finding) {
            loaded.findings.push(finding);
        }
        *place = Arc::new(loaded);
    }

    /// The newest head of a chain that this machine has seen, or that a copy or another vault proves.
    pub(crate) fn remembered_head(&self, chain: &str) -> Result<Option<(u64, String)>> {
        let seen = match &self.inner.state {
            None => None,
            Some(state) => state.head(&self.loaded().roster.vault, chain)?,
        };
        let proven = self.witnessed().head(chain);
        Ok(match (seen, proven) {
            (Some(seen), Some(proven)) if proven.0 > seen.0 => Some(proven),
            (seen, proven) => seen.or(proven),
        })
    }

    pub(crate) fn remembered_heads(&self, prefix: &str) -> Result<Vec<(String, u64)>> {
        let mut heads: BTreeMap<String, u64> = match &self.inner.state {
            None => BTreeMap::new(),
            Some(state) => state.heads_within(&self.loaded().roster.vault, prefix)?.into_iter().collect(),
        };
        for (chain, number) in self.witnessed().heads_within(prefix) {
            let kept = heads.entry(chain).or_default();
            *kept = number.max(*kept);
        }
        Ok(heads.into_iter().collect())
    }

    /// What this machine has seen of this vault itself, to be recorded elsewhere.
    pub(crate) fn own_heads(&self, prefix: &str) -> Result<Vec<(String, u64, String)>> {
        let Some(state) = &self.inner.state else { return Ok(Vec::new()) };
        let vault = self.loaded().roster.vault.clone();
        let mut heads = Vec::new();
        for (chain, _) in state.heads_within(&vault, prefix)? {
            heads.extend(state.head(&vault, &chain)?.map(|(number, hash)| (chain, number, hash)));
        }
        Ok(heads)
    }

    pub(crate) fn witnessed(&self) -> MutexGuard<'_, Witnessed> {
        lock(&self.inner.witnessed)
    }

    pub(crate) fn left_out_cache(&self) -> MutexGuard<'_, Option<(String, LeftOut)>> {
        lock(&self.inner.left_out)
    }

    pub(crate) fn remember_head(&self, chain: &str, number: u64, hash: [u8; 32]) -> Result<()> {
        match &self.inner.state {
            None => Ok(()),
            Some(state) => state.keep_heads(&self.loaded().roster.vault, [(chain.to_owned(), number, hash)]),
        }
    }

    pub(crate) fn cached_log(&self, chain: &str) -> Vec<LogEntry> {
        lock(&self.inner.logs).get(chain).cloned().unwrap_or_default()
    }

    pub(crate) fn cache_log(&self, chain: &str, entries: Vec<LogEntry>) {
        lock(&self.inner.logs).insert(chain.to_owned(), entries);
    }

    pub(crate) fn containers(&self) -> MutexGuard<'_, crate::log::Containers> {
        lock(&self.inner.containers)
    }

    pub(crate) fn snapshots_cache(&self) -> MutexGuard<'_, HashMap<String, Arc<Snapshot>>> {
        lock(&self.inner.snapshots)
    }

    #[cfg(test)]
    pub(crate) fn take_away(&self, rule: Option<crate::prune::Rule>) {
        *lock(&self.inner.taken_away) = rule;
    }

    #[cfg(test)]
    pub(crate) fn taken_away(&self) -> Option<crate::prune::Rule> {
        *lock(&self.inner.taken_away)
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self)]
    pub(crate) fn taken_away(&self) -> Option<crate::prune::Rule> {
        None
    }

    pub(crate) fn ledger_cache(&self) -> MutexGuard<'_, Option<Arc<Ledger>>> {
        lock(&self.inner.ledger)
    }

    pub(crate) fn tombstones_cache(&self) -> MutexGuard<'_, HashMap<String, Tombstone>> {
        lock(&self.inner.tombstones)
    }

    pub(crate) fn indexes_cache(&self) -> MutexGuard<'_, HashMap<String, crate::session::KnownChunks>> {
        lock(&self.inner.indexes)
    }
}

/// A vault opened by a host that is on its roster: it writes, and cannot read what it wrote.
#[derive(Debug, Clone)]
pub struct HostVault {
    vault: Vault,
    state: State,
}

impl Deref for HostVault {
    type Target = Vault;
    fn deref(&self) -> &Vault {
        &self.vault
    }
}

impl HostVault {
    /// Opens a vault for writing. The host must be on the roster, and the roster must not have been rolled back.
    pub fn open(storage: Arc<dyn Storage>, state: State, owner: Option<&str>) -> Result<HostVault> {
        let vault = Vault::open(storage, Some(state.clone()), owner)?;
        let host = HostVault { vault, state };
        host.check_enrolled()?;
        Ok(host)
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    pub fn host_name(&self) -> &str {
        self.state.host_name()
    }

    /// Reads the newest roster and makes sure that this host may write today.
    pub(crate) fn check_enrolled(&self) -> Result<()> {
        self.refresh()?;
        self.state.learn_name()?;
        let loaded = self.loaded();
        if let Some(finding) = loaded
            .findings
            .iter()
            .find(|f| f.severity == Severity::Alarm && f.code != "missing" && is_newest(&loaded, f))
        {
            return Err(VaultError::untrusted("the roster", finding.message.clone()));
        }
        let key = self.state.signing_key().public();
        match loaded.roster.member(&key) {
            Some(m) if m.revoked.is_some() => Err(VaultError::Revoked { host: self.host_name().to_owned() }),
            Some(m) if m.roles.contains(&Role::Host) && m.name == self.host_name() => Ok(()),
            _ => Err(VaultError::NotEnrolled { host: self.host_name().to_owned(), fingerprint: key.fingerprint() }),
        }
    }

    /// The content key's public half; at a data set's first use this host makes the pair, seals the private half to the
    /// recipients and forgets it.
    pub(crate) fn content_recipient(&self, dataset: &str) -> Result<Recipient> {
        let pair = Pair::Content(dataset);
        let roster = self.roster();
        let storage = self.storage();
        // Before the look: another thread of this host may just be making it.
        let seen_before = self.remembered_head(&pair.prefix())?.is_some();
        let stated = match keys::stated(&**storage, &roster, pair)? {
            Some(stated) => stated,
            None if seen_before => {
                return Err(VaultError::Missing { object: format!("{}{}.cert", pair.prefix(), name::number(1)) });
            }
            None => self.make_content_key(&roster, dataset)?,
        };
        self.check_stated(pair, &stated)?;
        stated.recipient()
    }

    fn make_content_key(&self, roster: &Roster, dataset: &str) -> Result<Stated> {
        let content = Identity::generate();
        let recipients = roster.recipients_of(dataset)?;
        let (public, private) = (content.recipient().to_string(), content.expose());
        let by = (roster, self.state.signing_key());
        match keys::state(&**self.storage(), Pair::Content(dataset), 1, by, &public, &private, &recipients)? {
            Some(stated) => Ok(stated),
            // Another host was faster: its pair counts.
            None => keys::stated(&**self.storage(), roster, Pair::Content(dataset))?
                .ok_or_else(|| VaultError::Missing { object: Pair::Content(dataset).prefix() }),
        }
    }

    /// This host's chunk-id key for a data set; made, and sealed to the content key in the vault, at its first use.
    pub(crate) fn chunk_key(&self, dataset: &str, content: &Recipient) -> Result<ChunkKey> {
        let vault = self.id();
        if let Some(key) = self.state.chunk_key(&vault, dataset)? {
            return Ok(key);
        }
        let key = ChunkKey::generate();
        keys::publish_chunk_key(&**self.storage(), &vault, dataset, content, self.state.signing_key(), &key)?;
        self.state.keep_chunk_key(&vault, dataset, &key)?;
        Ok(key)
    }

    /// Records what a verification of a point found; `points` shows it as its badge.
    pub fn record_verification(
        &self,
        point: &crate::snapshot::PointInfo,
        badge: crate::snapshot::Badge,
        depth: &str,
    ) -> Result<()> {
        let (key, bytes) = crate::snapshot::verification(&self.id(), point, badge, depth, self.state.signing_key())?;
        self.storage().put_if_absent(&key, &bytes).doing(|| format!("writing {key}"))?;
        Ok(())
    }
}

/// Whether a finding concerns the newest state of the roster, which a writer must not ignore.
fn is_newest(loaded: &Loaded, finding: &Finding) -> bool {
    match finding.object.strip_prefix(name::ROSTER).and_then(name::parse_number) {
        Some(number) => number >= loaded.roster.version,
        None => finding.code == "rolled-back",
    }
}

impl Vault {
    /// Holds a statement about keys against what was seen here before.
    pub(crate) fn check_stated(&self, pair: Pair<'_>, stated: &Stated) -> Result<()> {
        let chain = pair.prefix();
        let number = stated.statement.number;
        match self.remembered_head(&chain)? {
            Some((seen, _)) if seen > number => Err(VaultError::RolledBack {
                object: chain,
                found: format!("statement {number}"),
                seen: format!("statement {seen}"),
            }),
            Some((seen, hash)) if seen == number && hash != stated.hash.to_string() => Err(VaultError::untrusted(
                format!("{chain}{}.cert", name::number(number)),
                "it was replaced since it was first seen here",
            )),
            _ => self.remember_head(&chain, number, stated.hash.0),
        }
    }
}
