//! Indexes: which chunk lies where. One object per checkpoint or commit, numbered and chained per host and data set.
//!
//! The clear head names the packs (so that a missing one is seen without keys); the records are sealed to the host's index key, to
//! the refs key and to the content key. Invariant: an index is stored only after all packs it names.

mod moved;

use jiff::Timestamp;
use minicbor::{Decode, Encode};

use crate::codec::{self, Hash, Moment};
use crate::error::{Doing, Result, VaultError};
use crate::name;
use crate::pack::PackRecord;
use crate::roster::Roster;
use crate::seal::{Identity, Recipient, Unopened, seal_frame, unseal_frame};
use crate::sign::{Signed, SigningKey};
use crate::storage::{Put, Storage};

pub(crate) use self::moved::{
    KIND as MOVED_KIND, MovedBody, MovedName, check as check_moved, parse_key as parse_moved_key,
    publish as publish_moved, read as read_moved,
};

pub(crate) const KIND: &str = "vault.index";
const BODY_BYTES_MAX: usize = 256 << 20;
/// How long the packs of an unfinished session are spared by a pruner.
pub(crate) const LEASE_HOURS: i64 = 48;

#[derive(Debug, Clone, Encode, Decode)]
pub(crate) struct IndexHead {
    #[n(0)]
    pub(crate) vault: String,
    #[n(1)]
    pub(crate) host: String,
    #[n(2)]
    pub(crate) dataset: String,
    #[n(3)]
    pub(crate) number: u64,
    #[n(4)]
    pub(crate) previous: Option<Hash>,
    /// Until when an unfinished session keeps these packs; absent in the index of a finished one.
    #[n(5)]
    pub(crate) lease_until: Option<Moment>,
    #[n(6)]
    pub(crate) at: Moment,
    #[n(7)]
    pub(crate) packs: Vec<PackName>,
    #[cbor(n(8), with = "minicbor::bytes")]
    pub(crate) sealed: Vec<u8>,
}

#[derive(Debug, Clone, Encode, Decode)]
pub(crate) struct PackName {
    #[n(0)]
    pub(crate) hash: Hash,
    #[n(1)]
    pub(crate) bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct IndexBody {
    /// The session secret, sealed to the content key.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub(crate) secret: Vec<u8>,
    /// Name of the key that the chunk ids were made with.
    #[n(1)]
    pub(crate) chunk_key: String,
    #[n(2)]
    pub(crate) packs: Vec<PackRecord>,
}

/// An index whose signature and place were right.
#[derive(Debug, Clone)]
pub(crate) struct Index {
    pub(crate) key: String,
    pub(crate) head: IndexHead,
    pub(crate) hash: Hash,
}

impl Index {
    /// The records, with any key they are sealed to.
    pub(crate) fn open_body(&self, identities: &[Identity]) -> Result<IndexBody> {
        open_records(&self.key, &self.head.sealed, identities)
    }
}

/// Records are sealed alike, whoever published them.
fn open_records<T: for<'b> Decode<'b, ()>>(key: &str, sealed: &[u8], identities: &[Identity]) -> Result<T> {
    let plain = unseal_frame(identities, key, sealed, BODY_BYTES_MAX).map_err(|e| match e {
        Unopened::WrongKey => VaultError::WrongKey {
            object: key.to_owned(),
            given: identities.len(),
            recipients: "the host's index key, the refs key, the content key".to_owned(),
        },
        Unopened::Damaged => VaultError::damaged(key, "its records do not open"),
    })?;
    codec::decode(key, &plain)
}

/// Where a chain of a host's objects stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Head {
    pub(crate) number: u64,
    pub(crate) hash: Option<Hash>,
}

/// Stores an index after `head`, or says that another session of this host took that number.
pub(crate) fn publish(
    storage: &dyn Storage,
    place: (&Roster, &str, &str),
    signer: &SigningKey,
    recipients: &[Recipient],
    head: Head,
    body: &IndexBody,
    finished: bool,
) -> Result<Option<Head>> {
    let (roster, host, dataset) = place;
    let number = head.number + 1;
    let key = format!("{}{}", name::indexes_of(host, dataset), name::number(number));
    let sealed = seal_frame(recipients, &key, &codec::encode(body)?)?;
    let now = Timestamp::now();
    let lease = now.checked_add(jiff::SignedDuration::from_hours(LEASE_HOURS)).unwrap_or(now);
    let value = IndexHead {
        vault: roster.vault.clone(),
        host: host.to_owned(),
        dataset: dataset.to_owned(),
        number,
        previous: head.hash,
        lease_until: (!finished).then(|| lease.into()),
        at: now.into(),
        packs: body.packs.iter().map(|p| PackName { hash: p.hash, bytes: p.bytes }).collect(),
        sealed,
    };
    let bytes = Signed::seal(KIND, &codec::encode(&value)?, signer)?;
    match storage.put_if_absent(&key, &bytes).doing(|| format!("writing {key}"))? {
        Put::Created => Ok(Some(Head { number, hash: Some(Hash(crate::crypt::hash(&bytes))) })),
        Put::Exists => Ok(None),
    }
}

/// Reads and checks one index. The chain is checked by who reads them in order (`chain::walk`).
pub(crate) fn read(storage: &dyn Storage, roster: &Roster, host: &str, dataset: &str, number: u64) -> Result<Index> {
    let chain = name::indexes_of(host, dataset);
    let key = format!("{chain}{}", name::number(number));
    let bytes = storage.get(&key).doing(|| format!("reading {key}"))?;
    let signed = Signed::open(KIND, &key, &bytes)?;
    let head: IndexHead = codec::decode(&key, &signed.payload)?;
    roster.check_host(&key, &signed.signer, host, &chain, number)?;
    if head.vault != roster.vault || head.host != host || head.dataset != dataset || head.number != number {
        return Err(VaultError::untrusted(&key, "it belongs to another place"));
    }
    Ok(Index { key, head, hash: Hash(signed.hash) })
}
