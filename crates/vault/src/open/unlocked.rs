//! A vault with private halves in memory: reads everything that its identities reach.
//!
//! Invariant: what does not open is named with its reason; a private half that is not the one stated is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::sync::{Arc, Mutex};

use crate::codec::Hash;
use crate::crypt::unhex;
use crate::error::{Doing, Result, VaultError};
use crate::finding::Finding;
use crate::keys::{self, Pair};
use crate::log::LogEntry;
use crate::open::{Vault, lock};
use crate::prune::Ledger;
use crate::seal::Identity;
use crate::sign::SigningKey;
use crate::snapshot::{PointInfo, Snapshot};

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

/// A pack that lies in another class of storage than the ordinary one.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ArchivedPack {
    pub key: String,
    pub bytes: u64,
    pub class: String,
    pub thaw_seconds: u64,
}

impl Unlocked {
    /// The packs of a point that lie in a class that must be thawed; where the refs key is not at hand, those of its whole data set.
    pub fn archived_packs(&self, point: &PointInfo) -> Result<Vec<ArchivedPack>> {
        let ledger = self.ledger()?;
        if !ledger.has_slow() {
            return Ok(Vec::new());
        }
        let source = self.source(&point.dataset)?;
        let packs: BTreeSet<Hash> = match &self.refs {
            Some(key) => {
                let refs = self.read_snapshot(&point.host, &point.dataset, point.sequence)?.head.refs;
                let place = (point.host.as_str(), point.dataset.as_str());
                let keys = std::slice::from_ref(key);
                let ids = crate::refs::read(&**self.storage(), &self.roster(), place.0, place.1, &refs, keys)?;
                ids.iter().filter_map(|id| source.pack_of(id)).collect()
            }
            None => source.packs.iter().map(|pack| pack.record.hash).collect(),
        };
        Ok(packs.iter().filter_map(|hash| archived_pack(&ledger, hash)).collect())
    }
}

/// The pack, if it lies in a class that must be thawed.
pub(crate) fn archived_pack(ledger: &Ledger, hash: &Hash) -> Option<ArchivedPack> {
    let laid = ledger.laid(hash).filter(|laid| laid.thaw_seconds > 0)?;
    let key = crate::name::pack(&hash.0);
    let bytes = laid.packs.get(hash).copied().filter(|_| !ledger.is_swept(&key))?;
    Some(ArchivedPack { key, bytes, class: laid.class.clone(), thaw_seconds: laid.thaw_seconds })
}

impl Unlocked {
    pub(super) fn open(vault: Vault, identities: &[Identity]) -> Result<Unlocked> {
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
