//! Snapshots: a recovery point is one signed object `snap/HOST/DATASET/SEQUENCE`, created if absent, naming its predecessor's hash.
//!
//! The clear head says what a host or an observer must know without keys (position, times, sizes, what it stands on); root and
//! notes are sealed to the content key. Invariant: a sequence has no gap but where a signed tombstone stands.

mod points;
mod shapes;
mod suspicion;
mod verified;

use jiff::Timestamp;
use minicbor::{Decode, Encode};

use crate::codec::{self, Hash, Moment};
use crate::error::{Doing, Result, VaultError};
use crate::name;
use crate::open::Vault;
use crate::port::ChunkId;
use crate::prune::{Archived, Hand};
use crate::roster::{Role, Roster};
use crate::sign::{PublicKey, Signed};

pub use self::points::Points;
pub use self::verified::VerifiedPoint;

pub(crate) const KIND: &str = "vault.snapshot";
pub(crate) const VERIFICATION_KIND: &str = "vault.verification";
/// The root is a blob of the writer's choice: chunk ids, or a small tree itself.
pub(crate) const ROOT_BYTES_MAX: usize = 8 << 20;

/// Where in its source's own history a point (or log object) stands.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, serde::Serialize, serde::Deserialize)]
pub struct Position {
    #[n(0)]
    pub lineage: String,
    #[n(1)]
    pub timeline: u64,
    #[n(2)]
    pub counter: u64,
}

/// What a backup hands over to make a recovery point of.
#[derive(Debug, Clone, Default)]
pub struct SnapshotDraft {
    /// Sealed; given back by `Unlocked::read_root`. At most 8 MiB: what is larger goes into chunks.
    pub root: Vec<u8>,
    /// Every chunk that the point needs (order by place in the data: neighbours stay neighbours).
    pub references: Vec<ChunkId>,
    pub position: Option<Position>,
    /// The moment whose state this is.
    pub source_time: Timestamp,
    pub files: u64,
    pub bytes: u64,
    /// Sealed: what was skipped or changed while it was read.
    pub notes: Vec<String>,
    pub schema: Option<String>,
    pub release: Option<String>,
    /// The writer says that nothing follows under this epoch.
    pub final_mark: bool,
    pub epoch: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Badge {
    Verified,
    Unverified,
    /// A check could not finish, or the point rests on something doubtful.
    Suspect,
    Corrupt,
}

/// A recovery point, as far as it is known without keys.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct PointInfo {
    /// `HOST/DATASET/SEQUENCE`, each part percent-encoded where needed.
    pub id: String,
    pub dataset: String,
    pub host: String,
    pub sequence: u64,
    /// The moment whose state it is, by the source.
    pub taken_at: Timestamp,
    /// When it was committed, by the host's clock.
    pub stored_at: Timestamp,
    pub position: Option<Position>,
    pub files: u64,
    pub bytes: u64,
    pub bytes_new: u64,
    pub bytes_stored: u64,
    pub badge: Badge,
    /// What is held against it, where it is suspect.
    pub doubts: Vec<String>,
    pub epoch: u64,
    pub schema: Option<String>,
    pub release: Option<String>,
    pub final_mark: bool,
    /// What of it lies in another class of storage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archived: Option<Archived>,
    /// The object's name and BLAKE3 hash in the vault.
    pub key: String,
    pub hash: String,
}

impl PointInfo {
    /// By how much the host's clock went back since the point before this one in its chain was committed. Sessions at work at
    /// the same moment commit in any order, so a second says nothing.
    pub fn clock_back_seconds(&self, before: &PointInfo) -> Option<f64> {
        let seconds = before.stored_at.duration_since(self.stored_at).as_secs_f64();
        (seconds > 1.0).then_some(seconds)
    }
}

#[derive(Debug, Clone, Encode, Decode)]
pub(crate) struct SnapshotHead {
    #[n(0)]
    pub(crate) vault: String,
    #[n(1)]
    pub(crate) host: String,
    #[n(2)]
    pub(crate) dataset: String,
    #[n(3)]
    pub(crate) sequence: u64,
    #[n(4)]
    pub(crate) previous: Option<Hash>,
    #[n(5)]
    pub(crate) roster: u64,
    #[n(6)]
    pub(crate) epoch: u64,
    #[n(7)]
    pub(crate) position: Option<Position>,
    #[n(8)]
    pub(crate) taken_at: Moment,
    #[n(9)]
    pub(crate) stored_at: Moment,
    #[n(10)]
    pub(crate) files: u64,
    #[n(11)]
    pub(crate) bytes: u64,
    #[n(12)]
    pub(crate) bytes_new: u64,
    #[n(13)]
    pub(crate) bytes_stored: u64,
    #[n(14)]
    pub(crate) schema: Option<String>,
    #[n(15)]
    pub(crate) release: Option<String>,
    #[n(16)]
    pub(crate) final_mark: bool,
    /// The newest index of each host whose chunks it may use.
    #[n(17)]
    pub(crate) indexes: Vec<IndexSeen>,
    #[n(18)]
    pub(crate) refs: Hash,
    #[n(19)]
    pub(crate) prune_generation: u64,
    #[cbor(n(20), with = "minicbor::bytes")]
    pub(crate) sealed: Vec<u8>,
}

#[derive(Debug, Clone, Encode, Decode)]
pub(crate) struct IndexSeen {
    #[n(0)]
    pub(crate) host: String,
    #[n(1)]
    pub(crate) number: u64,
    #[n(2)]
    pub(crate) hash: Hash,
}

#[derive(Debug, Encode, Decode)]
pub(crate) struct SnapshotBody {
    #[cbor(n(0), with = "minicbor::bytes")]
    pub(crate) root: Vec<u8>,
    #[n(1)]
    pub(crate) notes: Vec<String>,
    /// The chunk-id key, so that no single object is needed to verify chunks.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub(crate) chunk_key: Vec<u8>,
}

/// A snapshot whose signature and place were right.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) key: String,
    pub(crate) head: SnapshotHead,
    pub(crate) hash: Hash,
}

impl Snapshot {
    pub(crate) fn open(roster: &Roster, host: &str, dataset: &str, sequence: u64, bytes: &[u8]) -> Result<Snapshot> {
        let chain = name::snapshots_of(host, dataset);
        let key = format!("{chain}{}", name::number(sequence));
        let signed = Signed::open(KIND, &key, bytes)?;
        let head: SnapshotHead = codec::decode(&key, &signed.payload)?;
        roster.check_host(&key, &signed.signer, host, &chain, sequence)?;
        if head.vault != roster.vault || head.host != host || head.dataset != dataset || head.sequence != sequence {
            return Err(VaultError::untrusted(&key, "it belongs to another place"));
        }
        Ok(Snapshot { key, head, hash: Hash(signed.hash) })
    }

    pub(crate) fn info(&self, badge: Badge) -> PointInfo {
        let head = &self.head;
        PointInfo {
            id: self.key.trim_start_matches("snap/").to_owned(),
            dataset: head.dataset.clone(),
            host: head.host.clone(),
            sequence: head.sequence,
            taken_at: head.taken_at.into(),
            stored_at: head.stored_at.into(),
            position: head.position.clone(),
            files: head.files,
            bytes: head.bytes,
            bytes_new: head.bytes_new,
            bytes_stored: head.bytes_stored,
            badge,
            doubts: Vec::new(),
            epoch: head.epoch,
            schema: head.schema.clone(),
            release: head.release.clone(),
            final_mark: head.final_mark,
            archived: None,
            key: self.key.clone(),
            hash: self.hash.to_string(),
        }
    }
}

pub(crate) fn tombstone_key(host: &str, dataset: &str, sequence: u64) -> String {
    format!("tombstone/{}/{}/{}", name::encode(host), name::encode(dataset), name::number(sequence))
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
struct Verification {
    #[n(0)]
    vault: String,
    #[n(1)]
    snapshot: String,
    #[n(2)]
    hash: Hash,
    #[n(3)]
    badge: u8,
    /// What was looked at, e.g. `every chunk read`, `restored in drill r-1`.
    #[n(4)]
    depth: String,
    #[n(5)]
    at: Moment,
}

impl Badge {
    fn number(self) -> u8 {
        match self {
            Badge::Verified => 0,
            Badge::Unverified => 1,
            Badge::Suspect => 2,
            Badge::Corrupt => 3,
        }
    }

    fn from_number(number: u8) -> Badge {
        match number {
            0 => Badge::Verified,
            1 => Badge::Unverified,
            2 => Badge::Suspect,
            _ => Badge::Corrupt,
        }
    }
}

pub(crate) fn verification_prefix(snapshot_key: &str) -> String {
    format!("verify/{}/", snapshot_key.trim_start_matches("snap/"))
}

/// The signed object that records a verification, and its key.
pub(crate) fn verification(
    vault: &str,
    point: &PointInfo,
    badge: Badge,
    depth: &str,
    signer: &crate::sign::SigningKey,
) -> Result<(String, Vec<u8>)> {
    let now = Timestamp::now();
    let hash =
        crate::crypt::unhex(&point.hash).ok_or_else(|| VaultError::invalid("the point", "its hash is not one"))?;
    let value = Verification {
        vault: vault.to_owned(),
        snapshot: point.key.clone(),
        hash: Hash(hash),
        badge: badge.number(),
        depth: depth.to_owned(),
        at: now.into(),
    };
    let bytes = Signed::seal(VERIFICATION_KIND, &codec::encode(&value)?, signer)?;
    let key = format!(
        "{}{:020}-{}",
        verification_prefix(&point.key),
        now.as_nanosecond(),
        &signer.public().fingerprint()[..8]
    );
    Ok((key, bytes))
}

/// Whether a signed verification counts, and is about this snapshot.
pub(crate) fn check_verification(roster: &Roster, snapshot: &str, key: &str, signed: &Signed) -> Result<()> {
    let value: Verification = codec::decode(key, &signed.payload)?;
    if roster.member(&signed.signer).is_none_or(|m| m.revoked.is_some()) && signed.signer != roster.owner {
        return Err(VaultError::untrusted(key, "it is signed by who is not on the roster"));
    }
    match value.vault == roster.vault && value.snapshot == snapshot {
        true => Ok(()),
        false => Err(VaultError::untrusted(key, "it belongs to another place")),
    }
}

/// How a verification begins that says that a suspect point is right.
const ACCEPTED: &str = "accepted: ";

/// Whether this verification says that a suspect point is right, by the owner or one who may: a host's own word is not enough.
fn accepts(roster: &Roster, snapshot: &str, hash: &str, key: &str, bytes: &[u8]) -> Result<bool> {
    let signed = Signed::open(VERIFICATION_KIND, key, bytes)?;
    let value: Verification = codec::decode(key, &signed.payload)?;
    let host = snapshot.split('/').nth(1).and_then(name::decode).unwrap_or_default();
    let may = may_accept(roster, &signed.signer, &host);
    let is_it = value.vault == roster.vault && value.snapshot == snapshot && value.hash.to_string() == hash;
    Ok(may && is_it && value.depth.starts_with(ACCEPTED))
}

/// Who may say of a point that it is right though it looks wrong, or of what is not in a copy that it is no loss: a host may not.
pub(crate) const ACCEPTING_ROLES: [Role; 3] = [Role::Person, Role::Controller, Role::Pruner];

/// The owner may, and who has such a role; but whoever broke into a host would say that its points are right, whatever else that host is.
fn may_accept(roster: &Roster, signer: &PublicKey, host: &str) -> bool {
    let has_role = ACCEPTING_ROLES.iter().any(|role| roster.permits(signer, *role));
    let took_it = roster.member(signer).is_some_and(|member| member.name == host);
    *signer == roster.owner || (has_role && !took_it)
}

impl Vault {
    /// Says that a suspect point is what it should be. The owner may, and persons, controllers and pruners on the roster.
    pub fn accept(&self, by: Hand<'_>, point: &PointInfo, why: &str) -> Result<()> {
        self.check_hand(&by, why)?;
        let roster = self.roster();
        let key = by.key()?;
        if !may_accept(&roster, &key.public(), &point.host) {
            let why = "a host's own word is not enough; give the owner's key (--key)".to_owned();
            return Err(VaultError::Refused { what: "accepting a suspect point".to_owned(), why });
        }
        let (key, bytes) = verification(&self.id(), point, Badge::Unverified, &format!("{ACCEPTED}{why}"), key)?;
        self.storage().put_if_absent(&key, &bytes).doing(|| format!("writing {key}"))?;
        Ok(())
    }
}

/// The badge that the newest verification that counts gives to a snapshot.
pub(crate) fn badge_from(roster: &Roster, snapshot: &Snapshot, key: &str, bytes: &[u8]) -> Result<Badge> {
    let signed = Signed::open(VERIFICATION_KIND, key, bytes)?;
    let value: Verification = codec::decode(key, &signed.payload)?;
    if roster.member(&signed.signer).is_none_or(|m| m.revoked.is_some()) && signed.signer != roster.owner {
        return Err(VaultError::untrusted(key, "it is signed by who is not on the roster"));
    }
    if value.vault != roster.vault || value.snapshot != snapshot.key || value.hash != snapshot.hash {
        return Err(VaultError::untrusted(key, "it belongs to another place"));
    }
    Ok(Badge::from_number(value.badge))
}
