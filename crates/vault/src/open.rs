//! Doors into a vault, as types: `Vault` reads what is in the clear, `HostVault` writes with public keys only, `Unlocked` reads what
//! its identities reach.
//!
//! Invariants: the roster is believed only under the owner's fingerprint (given, or seen here first); what this machine has seen
//! once is not silently replaced by something older.

use std::collections::{BTreeMap, HashMap};
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::codec::{Hash, Moment};
use crate::crypt::{hex, random, unhex};
use crate::error::{Doing, Result, VaultError};
use crate::finding::{Finding, Severity};
use crate::host::{ChunkKey, State};
use crate::keys::{self, Pair, Stated};
use crate::log::LogEntry;
use crate::name;
use crate::roster::{self, Holder, Loaded, Member, Role, Roster};
use crate::seal::{Identity, Recipient};
use crate::sign::SigningKey;
use crate::snapshot::Snapshot;
use crate::storage::Storage;

const README: &str = "This is a lifeboat vault: recovery points, sealed to the owner's keys.

Restore:  lifeboat restore --vault THIS-PLACE --key YOUR.key --to DIR

Without lifeboat: docs/vault-format.md describes every object. The files keys/**/*.age are age files; any recipient's
identity opens them:  age -d -i YOUR.key keys/content/DATASET/HASH.age
Do not change or delete anything here by hand.
";

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
    snapshots: Mutex<HashMap<String, Arc<Snapshot>>>,
    indexes: Mutex<HashMap<String, crate::session::KnownChunks>>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault").field("location", &self.inner.storage.location()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What `Vault::init` is told.
#[derive(Debug, Clone, Default)]
pub struct InitOptions {
    /// age recipients, any one of which opens everything; two or more are wise.
    pub recipients: Vec<Recipient>,
    /// Keys that open one data set only.
    pub holders: Vec<Holder>,
    /// Data sets whose content keys are made now; others are made by the host that first writes them.
    pub datasets: Vec<String>,
    /// Roles of this machine on the roster; `Host` alone if empty.
    pub roles: Vec<Role>,
    /// Others to put on the first roster.
    pub members: Vec<Member>,
}

/// What `Vault::init` made.
#[derive(Debug, Clone)]
pub struct Initialised {
    /// The owner's fingerprint: `key.owner` in the plan.
    pub owner: String,
    pub vault: String,
    pub findings: Vec<Finding>,
}

impl Vault {
    /// Makes a vault in an empty storage, with this host on its roster.
    pub fn init(storage: Arc<dyn Storage>, state: &State, options: &InitOptions) -> Result<(HostVault, Initialised)> {
        match roster::load(&*storage, None) {
            Err(VaultError::NoVault { .. }) => {}
            Ok(loaded) => {
                let owner = loaded.roster.owner.fingerprint();
                return Err(VaultError::VaultExists { location: storage.location(), owner });
            }
            Err(e) => return Err(e),
        }
        if options.recipients.is_empty() {
            return Err(VaultError::invalid(
                "the list of recipients",
                "it is empty: give at least one, better two (`lifeboat key new` makes one)",
            ));
        }
        state.keep_name()?;
        clear_unfinished(&*storage)?;
        let owner = SigningKey::generate()?;
        let refs = Identity::generate();
        let roles = if options.roles.is_empty() { vec![Role::Host] } else { options.roles.clone() };
        let mut members = vec![member_of(state, roles)];
        members.extend(options.members.iter().cloned());
        let roster = Roster {
            vault: hex(&random::<16>()),
            version: 1,
            previous: None,
            owner: owner.public(),
            refs: refs.recipient().to_string(),
            recipients: options.recipients.iter().map(Recipient::to_string).collect(),
            holders: options.holders.clone(),
            members,
            at: Moment::from(jiff::Timestamp::now()),
        };
        roster.check_valid()?;
        let by = (&roster, &owner);
        keys::state(
            &*storage,
            Pair::Owner,
            1,
            by,
            &owner.public().to_string(),
            &hex(owner.seed()),
            &options.recipients,
        )?;
        keys::state(&*storage, Pair::Refs, 1, by, &roster.refs, &refs.expose(), &options.recipients)?;
        for dataset in &options.datasets {
            name::check(dataset, "the data set's name")?;
            let content = Identity::generate();
            let recipients = roster.recipients_of(dataset)?;
            keys::state(
                &*storage,
                Pair::Content(dataset),
                1,
                by,
                &content.recipient().to_string(),
                &content.expose(),
                &recipients,
            )?;
        }
        storage.put_if_absent(name::README, README.as_bytes()).doing(|| "writing README.txt".to_owned())?;
        // The roster comes last: before it there is no vault.
        roster.publish(&*storage, &owner)?;
        let fingerprint = owner.public().fingerprint();
        let vault = HostVault::open(storage, state.clone(), Some(&fingerprint))?;
        let findings = vault.findings();
        let vault_id = roster.vault.clone();
        Ok((vault, Initialised { owner: fingerprint, vault: vault_id, findings }))
    }

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
            snapshots: Mutex::default(),
            indexes: Mutex::default(),
        };
        let vault = Vault { inner: Arc::new(inner) };
        vault.check_roster_against_memory()?;
        Ok(vault)
    }

    /// Opens everything that the identities reach. Fails only where they reach nothing at all.
    pub fn unlock(&self, identities: &[Identity]) -> Result<Unlocked> {
        Unlocked::open(self.clone(), identities)
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

    /// What was wrong, or unproven, at opening.
    pub fn findings(&self) -> Vec<Finding> {
        let loaded = self.loaded();
        let mut findings = loaded.findings.clone();
        if loaded.roster.recipients.len() < 2 {
            let message = "one recipient only: if its key is lost, everything is; add another with `lifeboat vault recipients --add`";
            findings.push(Finding::new(Severity::Warning, "one-recipient", "keys/", message));
        }
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
                self.check_roster_against_memory()
            }
        }
    }

    fn check_roster_against_memory(&self) -> Result<()> {
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

    pub(crate) fn remembered_head(&self, chain: &str) -> Result<Option<(u64, String)>> {
        match &self.inner.state {
            None => Ok(None),
            Some(state) => state.head(&self.loaded().roster.vault, chain),
        }
    }

    pub(crate) fn remembered_heads(&self, prefix: &str) -> Result<Vec<(String, u64)>> {
        match &self.inner.state {
            None => Ok(Vec::new()),
            Some(state) => state.heads_within(&self.loaded().roster.vault, prefix),
        }
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

    pub(crate) fn snapshots_cache(&self) -> MutexGuard<'_, HashMap<String, Arc<Snapshot>>> {
        lock(&self.inner.snapshots)
    }

    pub(crate) fn indexes_cache(&self) -> MutexGuard<'_, HashMap<String, crate::session::KnownChunks>> {
        lock(&self.inner.indexes)
    }
}

/// This machine, as it goes on a roster.
pub(crate) fn member_of(state: &State, roles: Vec<Role>) -> Member {
    Member {
        name: state.host_name().to_owned(),
        roles,
        key: state.signing_key().public(),
        index: Some(state.index_key().recipient().to_string()),
        revoked: None,
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

/// Removes the keys of a vault whose making was interrupted: without a roster nothing was ever sealed to them. Where there is
/// data all the same, the roster is what is missing, and nothing is touched.
fn clear_unfinished(storage: &dyn Storage) -> Result<()> {
    for prefix in ["snap/", "index/", "pack/", "refs/", "log/"] {
        if !storage.list(prefix).doing(|| format!("listing {prefix}"))?.is_empty() {
            return Err(VaultError::Missing { object: name::roster(1) });
        }
    }
    for object in storage.list("keys/").doing(|| "listing keys".to_owned())? {
        storage.delete(&object.key).doing(|| format!("removing {}", object.key))?;
    }
    Ok(())
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

/// A vault with private halves in memory.
#[derive(Clone)]
pub struct Unlocked {
    vault: Vault,
    pub(crate) owner_key: Option<Arc<SigningKey>>,
    pub(crate) refs: Option<Identity>,
    /// Content keys opened so far; a data set that appears later is opened when it is first asked for.
    contents: Arc<Mutex<BTreeMap<String, Identity>>>,
    identities: Vec<Identity>,
    findings: Vec<Finding>,
    /// Data sets whose content key did not open for another reason than a wrong key: the object and why.
    broken: BTreeMap<String, (String, String)>,
}

impl std::fmt::Debug for Unlocked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let opened: Vec<String> = lock(&self.contents).keys().cloned().collect();
        f.debug_struct("Unlocked").field("vault", &self.vault).field("datasets", &opened).finish_non_exhaustive()
    }
}

impl Deref for Unlocked {
    type Target = Vault;
    fn deref(&self) -> &Vault {
        &self.vault
    }
}

impl Unlocked {
    fn open(vault: Vault, identities: &[Identity]) -> Result<Unlocked> {
        vault.refresh()?;
        let mut unlocked = Unlocked {
            vault,
            owner_key: None,
            refs: None,
            contents: Arc::default(),
            identities: identities.to_vec(),
            findings: Vec::new(),
            broken: BTreeMap::new(),
        };
        let mut trouble = None;
        if let Some(text) = unlocked.try_pair(Pair::Owner, identities, &mut trouble)?
            && let Some(seed) = unhex(&text)
        {
            let key = SigningKey::from_seed(seed)?;
            if key.public().fingerprint() == unlocked.vault.owner() {
                unlocked.owner_key = Some(Arc::new(key));
            }
        }
        unlocked.refs = match unlocked.try_pair(Pair::Refs, identities, &mut trouble)? {
            Some(text) => {
                text.parse::<Identity>().ok().filter(|i| i.recipient().to_string() == unlocked.vault.roster().refs)
            }
            None => None,
        };
        for dataset in keys::datasets(&**unlocked.vault.storage())? {
            let Some(text) = unlocked.try_pair(Pair::Content(&dataset), identities, &mut trouble)? else { continue };
            let Ok(identity) = text.parse::<Identity>() else { continue };
            lock(&unlocked.contents).insert(dataset, identity);
        }
        // A standby may come before the data set that it is to follow.
        let roster = unlocked.vault.roster();
        let declared = |i: &Identity| roster.holders.iter().any(|h| h.recipient == i.recipient().to_string());
        let nothing = unlocked.owner_key.is_none()
            && unlocked.refs.is_none()
            && lock(&unlocked.contents).is_empty()
            && !identities.iter().any(declared);
        match trouble {
            Some(error) if nothing => Err(error),
            _ => Ok(unlocked),
        }
    }

    /// A private half as text, where the identities open it; what else is wrong becomes a finding.
    fn try_pair(
        &mut self,
        pair: Pair<'_>,
        identities: &[Identity],
        trouble: &mut Option<VaultError>,
    ) -> Result<Option<String>> {
        let storage = self.vault.storage().clone();
        let roster = self.vault.roster();
        let opened = keys::stated(&*storage, &roster, pair).and_then(|stated| match stated {
            None => Ok(None),
            Some(stated) => {
                self.vault.check_stated(pair, &stated)?;
                let text = keys::open_private(&*storage, pair, &stated, identities)?;
                if matches!(pair, Pair::Owner) {
                    return Ok(Some(text));
                }
                let public = text.parse::<Identity>()?.recipient().to_string();
                if public != stated.statement.public {
                    return Err(VaultError::untrusted(
                        stated.file_key(),
                        "it holds another key than its statement names",
                    ));
                }
                Ok(Some(text))
            }
        });
        match opened {
            Ok(text) => Ok(text),
            Err(e @ (VaultError::Storage { .. } | VaultError::State { .. })) => Err(e),
            Err(e) => {
                if !matches!(e, VaultError::WrongKey { .. }) {
                    let finding = Finding::from(&e);
                    if let Pair::Content(dataset) = pair {
                        self.broken.insert(dataset.to_owned(), (finding.object.clone(), finding.message.clone()));
                    }
                    self.findings.push(finding);
                }
                let worse = trouble.is_none()
                    || (matches!(trouble, Some(VaultError::WrongKey { .. }))
                        && !matches!(e, VaultError::WrongKey { .. }));
                if worse {
                    *trouble = Some(e);
                }
                Ok(None)
            }
        }
    }

    /// What was wrong at opening and at unlocking.
    pub fn unlock_findings(&self) -> Vec<Finding> {
        let mut findings = self.vault.findings();
        findings.extend(self.findings.iter().cloned());
        findings
    }

    /// Data sets whose contents can be read.
    pub fn datasets(&self) -> Vec<String> {
        // One that appeared since is opened here; one that does not open is another key's.
        for dataset in keys::datasets(&**self.storage()).unwrap_or_default() {
            let _ = self.content(&dataset);
        }
        lock(&self.contents).keys().cloned().collect()
    }

    /// Whether the owner's key was opened: enrolment, revocation and recipients need it.
    pub fn is_owner(&self) -> bool {
        self.owner_key.is_some()
    }

    pub(crate) fn content(&self, dataset: &str) -> Result<Identity> {
        if let Some(identity) = lock(&self.contents).get(dataset) {
            return Ok(identity.clone());
        }
        if let Some((object, why)) = self.broken.get(dataset) {
            return Err(VaultError::damaged(object, why));
        }
        let pair = Pair::Content(dataset);
        let Some(stated) = keys::stated(&**self.storage(), &self.roster(), pair)? else {
            let why = "the vault has no such data set yet (`lifeboat points` lists them)";
            return Err(VaultError::invalid(format!("data set {dataset}"), why));
        };
        self.check_stated(pair, &stated)?;
        let identity: Identity = keys::open_private(&**self.storage(), pair, &stated, &self.identities)?.parse()?;
        if identity.recipient().to_string() != stated.statement.public {
            return Err(VaultError::untrusted(stated.file_key(), "it holds another key than its statement names"));
        }
        lock(&self.contents).insert(dataset.to_owned(), identity.clone());
        Ok(identity)
    }

    pub(crate) fn owner_key(&self) -> Result<&SigningKey> {
        self.owner_key.as_deref().ok_or_else(|| VaultError::KeyNeeded { what: "the owner's key".to_owned() })
    }

    /// What the writer put as the point's root.
    pub fn read_root(&self, point: &crate::snapshot::PointInfo) -> Result<Vec<u8>> {
        Ok(self.read_body(point)?.root)
    }

    /// What was noted when the point was taken: files skipped, changed while read.
    pub fn read_notes(&self, point: &crate::snapshot::PointInfo) -> Result<Vec<String>> {
        Ok(self.read_body(point)?.notes)
    }

    pub(crate) fn read_body(&self, point: &crate::snapshot::PointInfo) -> Result<crate::snapshot::SnapshotBody> {
        let content = self.content(&point.dataset)?;
        let bytes = self.storage().get(&point.key).doing(|| format!("reading {}", point.key))?;
        let snapshot = Snapshot::open(&self.roster(), &point.host, &point.dataset, point.sequence, &bytes)?;
        if snapshot.hash.to_string() != point.hash {
            return Err(VaultError::untrusted(&point.key, "it was replaced since it was first read"));
        }
        let plain = crate::seal::unseal_frame(
            [&content],
            &snapshot.key,
            &snapshot.head.sealed,
            2 * crate::snapshot::ROOT_BYTES_MAX,
        )
        .map_err(|_| VaultError::damaged(&point.key, "its sealed part does not open with the content key"))?;
        crate::codec::decode(&point.key, &plain)
    }

    /// The payload of a log object.
    pub fn read_log(&self, entry: &LogEntry) -> Result<Vec<u8>> {
        let content = self.content(&entry.dataset)?;
        let sealed = crate::log::read_sealed(&self.vault, entry)?;
        crate::seal::unseal_frame([&content], &entry.key, &sealed, crate::log::PAYLOAD_BYTES_MAX)
            .map_err(|_| VaultError::damaged(&entry.key, "its payload does not open with the content key"))
    }
}

impl Roster {
    /// Refuses names and keys that nothing could be done with.
    pub(crate) fn check_valid(&self) -> Result<()> {
        for member in &self.members {
            name::check(&member.name, "a member's name")?;
        }
        for holder in &self.holders {
            name::check(&holder.dataset, "the data set's name")?;
            holder.recipient.parse::<Recipient>()?;
        }
        for (place, member) in self.members.iter().enumerate() {
            let clash = |other: &Member| {
                other.key == member.key
                    || (other.name == member.name && other.revoked.is_none() && member.revoked.is_none())
            };
            if self.members[..place].iter().any(clash) {
                return Err(VaultError::invalid(
                    format!("member {:?}", member.name),
                    "its name or key is on the roster already; choose another name",
                ));
            }
        }
        Ok(())
    }

    /// The version after this one.
    pub(crate) fn successor(&self, hash: Hash) -> Roster {
        Roster {
            version: self.version + 1,
            previous: Some(hash),
            at: Moment::from(jiff::Timestamp::now()),
            ..self.clone()
        }
    }
}
