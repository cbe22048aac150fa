//! What a prune leaves in the vault: a proposal, a sweep and a word that it is done, for each generation.
//!
//! `prune/GENERATION/proposal` condemns, `…/sweep` says what is deleted from then on, `…/done` that it is. Each is signed by the owner
//! or by a pruner on the roster and created if absent. Invariant: nothing is deleted that a sweep does not name, and a sweep names
//! nothing that its proposal did not condemn.

use jiff::Timestamp;
use minicbor::{Decode, Encode};

use crate::codec::{self, Hash, Moment};
use crate::error::{Doing, Result, VaultError};
use crate::name;
use crate::prune::fold::{self, Fold};
use crate::roster::{Role, Roster};
use crate::sign::{Signed, SigningKey};
use crate::storage::{Put, Storage};

pub(crate) const PREFIX: &str = "prune/";
const PROPOSAL_KIND: &str = "vault.prune.proposal";
const SWEEP_KIND: &str = "vault.prune.sweep";
const DONE_KIND: &str = "vault.prune.done";
pub(crate) const TOMBSTONE_KIND: &str = "vault.tombstone";

/// A point that goes.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct PrunedPoint {
    /// Its snapshot's key.
    #[n(0)]
    pub(crate) snapshot: String,
    #[n(1)]
    pub(crate) hash: Hash,
    #[n(2)]
    pub(crate) why: String,
}

/// An object that goes. Where its name does not say what it holds, its hash does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub(crate) struct Condemned {
    #[n(0)]
    pub(crate) key: String,
    #[n(1)]
    pub(crate) bytes: u64,
    #[n(2)]
    pub(crate) hash: Option<Hash>,
}

/// The beginning of a log that goes: every object of the chain below `below`, the last of which has this hash.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct LogCut {
    #[n(0)]
    pub(crate) chain: String,
    #[n(1)]
    pub(crate) below: u64,
    #[n(2)]
    pub(crate) last: Option<Hash>,
}

/// Log objects that lie in a container, too, and go one by one.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct GatheredRun {
    #[n(0)]
    pub(crate) chain: String,
    #[n(1)]
    pub(crate) first: u64,
    #[n(2)]
    pub(crate) last: u64,
    /// Of the container.
    #[n(3)]
    pub(crate) hash: Hash,
}

/// Packs in a class of storage, and what of each point lies in it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Tier {
    /// Where: a copy elsewhere has everything at hand.
    #[n(0)]
    pub(crate) place: String,
    #[n(1)]
    pub(crate) class: String,
    /// How long it takes until what lies there can be read.
    #[n(2)]
    pub(crate) thaw_seconds: u64,
    /// Packs that are put there, and their bytes.
    #[n(3)]
    pub(crate) packs: Vec<(Hash, u64)>,
    /// The key of a snapshot; how many packs in this class, these or from before, it cannot be restored without; their bytes.
    #[n(4)]
    pub(crate) points: Vec<(String, u64, u64)>,
}

/// How far a chain of snapshots was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct ChainHead {
    #[n(0)]
    pub(crate) chain: String,
    #[n(1)]
    pub(crate) number: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Proposal {
    #[n(0)]
    pub(crate) vault: String,
    #[n(1)]
    pub(crate) generation: u64,
    /// The sweep before.
    #[n(2)]
    pub(crate) previous: Option<Hash>,
    #[n(3)]
    pub(crate) at: Moment,
    /// For people: which rules were in force.
    #[n(4)]
    pub(crate) rules: Vec<String>,
    #[n(5)]
    pub(crate) heads: Vec<ChainHead>,
    #[n(6)]
    pub(crate) points: Vec<PrunedPoint>,
    #[n(7)]
    pub(crate) objects: Vec<Condemned>,
    #[n(8)]
    pub(crate) logs: Vec<LogCut>,
    /// Packs (among the objects) whose live frames are moved elsewhere before the sweep.
    #[n(9)]
    pub(crate) moved: Vec<Hash>,
    #[cbor(n(10), default)]
    pub(crate) gathered: Vec<GatheredRun>,
    /// What is to be put into another class of storage.
    #[cbor(n(11), default)]
    pub(crate) tiers: Vec<Tier>,
    /// Every index of moved packs that is there and stays.
    #[cbor(n(12), default)]
    pub(crate) moved_indexes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Sweep {
    #[n(0)]
    pub(crate) vault: String,
    #[n(1)]
    pub(crate) generation: u64,
    #[n(2)]
    pub(crate) proposal: Hash,
    #[n(3)]
    pub(crate) at: Moment,
    /// Nothing is deleted, and the proposal's tombstones do not count.
    #[n(4)]
    pub(crate) abandoned: bool,
    #[n(5)]
    pub(crate) heads: Vec<ChainHead>,
    #[n(6)]
    pub(crate) objects: Vec<Condemned>,
    #[n(7)]
    pub(crate) logs: Vec<LogCut>,
    /// Snapshots whose tombstones do not count: they were put on hold since the proposal.
    #[n(8)]
    pub(crate) spared: Vec<String>,
    #[cbor(n(9), default)]
    pub(crate) gathered: Vec<GatheredRun>,
    /// What is put into another class of storage from now on. Where there is any: all classes of this place that hold something.
    #[cbor(n(10), default)]
    pub(crate) tiers: Vec<Tier>,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Done {
    #[n(0)]
    pub(crate) vault: String,
    #[n(1)]
    pub(crate) generation: u64,
    #[n(2)]
    pub(crate) sweep: Hash,
    #[n(3)]
    pub(crate) at: Moment,
    /// What was left alone after all: a backup that began before the proposal still needed it.
    #[n(4)]
    pub(crate) kept: Vec<String>,
}

/// Stands where a pruned snapshot stood.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Tombstone {
    #[n(0)]
    pub(crate) vault: String,
    #[n(1)]
    pub(crate) snapshot: String,
    #[n(2)]
    pub(crate) hash: Hash,
    #[n(3)]
    pub(crate) at: Moment,
    #[n(4)]
    pub(crate) generation: u64,
}

/// The kinds of a generation's records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Proposal,
    Sweep,
    Done,
    /// Of all generations up to this one.
    Fold,
}

impl Step {
    fn word(self) -> &'static str {
        match self {
            Step::Proposal => "proposal",
            Step::Sweep => "sweep",
            Step::Done => "done",
            Step::Fold => "fold",
        }
    }
}

impl Step {
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Step::Proposal => PROPOSAL_KIND,
            Step::Sweep => SWEEP_KIND,
            Step::Done => DONE_KIND,
            Step::Fold => fold::KIND,
        }
    }
}

/// Checks a record for its place.
pub(crate) fn check_record(roster: &Roster, generation: u64, step: Step, bytes: &[u8]) -> Result<()> {
    match step {
        Step::Proposal => Proposal::open(roster, generation, bytes).map(|_| ()),
        Step::Sweep => Sweep::open(roster, generation, bytes).map(|_| ()),
        Step::Done => Done::open(roster, generation, bytes).map(|_| ()),
        Step::Fold => Fold::open(roster, generation, bytes).map(|_| ()),
    }
}

pub(crate) fn key(generation: u64, step: Step) -> String {
    format!("{PREFIX}{}/{}", name::number(generation), step.word())
}

pub(crate) fn parse_key(key: &str) -> Option<(u64, Step)> {
    let (number, word) = key.strip_prefix(PREFIX)?.split_once('/')?;
    let step = [Step::Proposal, Step::Sweep, Step::Done, Step::Fold].into_iter().find(|step| step.word() == word)?;
    Some((name::parse_number(number)?, step))
}

/// Whether this key may sign what prunes in this generation.
pub(crate) fn check_signer(roster: &Roster, object: &str, signed: &Signed, generation: u64) -> Result<()> {
    if signed.signer == roster.owner {
        return Ok(());
    }
    roster.check_role(object, &signed.signer, Role::Pruner, PREFIX, generation)
}

fn open(roster: &Roster, kind: &str, key: &str, generation: u64, bytes: &[u8]) -> Result<Signed> {
    let signed = Signed::open(kind, key, bytes)?;
    check_signer(roster, key, &signed, generation)?;
    Ok(signed)
}

fn check_place(roster: &Roster, key: &str, generation: u64, vault: &str, found: u64) -> Result<()> {
    match vault == roster.vault && found == generation {
        true => Ok(()),
        false => Err(VaultError::untrusted(key, "it belongs to another place")),
    }
}

impl Proposal {
    pub(crate) fn open(roster: &Roster, generation: u64, bytes: &[u8]) -> Result<(Proposal, Hash)> {
        let key = key(generation, Step::Proposal);
        let signed = open(roster, PROPOSAL_KIND, &key, generation, bytes)?;
        let value: Proposal = codec::decode(&key, &signed.payload)?;
        check_place(roster, &key, generation, &value.vault, value.generation)?;
        Ok((value, Hash(signed.hash)))
    }

    /// Stores it, unless another pruner stored one of this generation.
    pub(crate) fn publish(&self, storage: &dyn Storage, signer: &SigningKey) -> Result<Option<Hash>> {
        put(storage, &key(self.generation, Step::Proposal), PROPOSAL_KIND, &codec::encode(self)?, signer)
    }
}

impl Sweep {
    pub(crate) fn open(roster: &Roster, generation: u64, bytes: &[u8]) -> Result<(Sweep, Hash)> {
        let key = key(generation, Step::Sweep);
        let signed = open(roster, SWEEP_KIND, &key, generation, bytes)?;
        let value: Sweep = codec::decode(&key, &signed.payload)?;
        check_place(roster, &key, generation, &value.vault, value.generation)?;
        Ok((value, Hash(signed.hash)))
    }

    pub(crate) fn publish(&self, storage: &dyn Storage, signer: &SigningKey) -> Result<Option<Hash>> {
        put(storage, &key(self.generation, Step::Sweep), SWEEP_KIND, &codec::encode(self)?, signer)
    }
}

impl Done {
    pub(crate) fn open(roster: &Roster, generation: u64, bytes: &[u8]) -> Result<Done> {
        let key = key(generation, Step::Done);
        let signed = open(roster, DONE_KIND, &key, generation, bytes)?;
        let value: Done = codec::decode(&key, &signed.payload)?;
        check_place(roster, &key, generation, &value.vault, value.generation)?;
        Ok(value)
    }

    pub(crate) fn publish(&self, storage: &dyn Storage, signer: &SigningKey) -> Result<Option<Hash>> {
        put(storage, &key(self.generation, Step::Done), DONE_KIND, &codec::encode(self)?, signer)
    }
}

impl Tombstone {
    pub(crate) fn open(roster: &Roster, key: &str, snapshot: &str, bytes: &[u8]) -> Result<Tombstone> {
        let signed = Signed::open(TOMBSTONE_KIND, key, bytes)?;
        let value: Tombstone = codec::decode(key, &signed.payload)?;
        check_signer(roster, key, &signed, value.generation)?;
        if value.vault != roster.vault || value.snapshot != snapshot {
            return Err(VaultError::untrusted(key, "it belongs to another place"));
        }
        Ok(value)
    }

    pub(crate) fn seal(&self, signer: &SigningKey) -> Result<Vec<u8>> {
        Signed::seal(TOMBSTONE_KIND, &codec::encode(self)?, signer)
    }
}

fn put(storage: &dyn Storage, key: &str, kind: &str, payload: &[u8], signer: &SigningKey) -> Result<Option<Hash>> {
    let bytes = Signed::seal(kind, payload, signer)?;
    match storage.put_if_absent(key, &bytes).doing(|| format!("writing {key}"))? {
        Put::Created => Ok(Some(Hash(crate::crypt::hash(&bytes)))),
        Put::Exists => Ok(None),
    }
}

pub(crate) fn now() -> Moment {
    Timestamp::now().into()
}
