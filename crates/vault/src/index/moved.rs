//! Moved packs: where chunks lie since a pruner put what is still needed of some packs into new ones,
//! `index/HOST/DATASET/moved-GENERATION-PART`.
//!
//! Signed by the pruner, sealed as the host's own indexes are. Frames are moved as they were sealed, so a pruner needs no content key.
//! Invariant: it only ever says that something lies elsewhere. What it says wrongly does not open, or is not what the chunk's id says;
//! and a host that writes believes it of those chunks only which its own indexes have named.

use jiff::Timestamp;
use minicbor::{Decode, Encode};

use super::{PackName, open_records};
use crate::codec::{self, Hash, Moment};
use crate::error::{Doing, Result, VaultError};
use crate::name;
use crate::pack::PackRecord;
use crate::prune;
use crate::roster::Roster;
use crate::seal::{Identity, Recipient, seal_frame};
use crate::sign::{Signed, SigningKey};
use crate::storage::{Put, Storage};

pub(crate) const KIND: &str = "vault.moved";

/// Which one of a host's data set: for which prune it was made, and the how manieth of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MovedName {
    pub(crate) generation: u64,
    pub(crate) part: u64,
}

impl MovedName {
    pub(crate) fn key(&self, host: &str, dataset: &str) -> String {
        let (generation, part) = (name::number(self.generation), name::number(self.part));
        format!("{}moved-{generation}-{part}", name::indexes_of(host, dataset))
    }

    /// The last segment of a key that `key` wrote.
    pub(crate) fn parse(text: &str) -> Option<MovedName> {
        let (generation, part) = text.strip_prefix("moved-")?.split_once('-')?;
        Some(MovedName { generation: name::parse_number(generation)?, part: name::parse_number(part)? })
    }
}

/// Host, data set and name of a key of this kind.
pub(crate) fn parse_key(key: &str) -> Option<(String, String, MovedName)> {
    match key.split('/').collect::<Vec<_>>()[..] {
        ["index", host, dataset, last] => Some((name::decode(host)?, name::decode(dataset)?, MovedName::parse(last)?)),
        _ => None,
    }
}

#[derive(Debug, Clone, Encode, Decode)]
pub(crate) struct MovedHead {
    #[n(0)]
    vault: String,
    #[n(1)]
    host: String,
    #[n(2)]
    dataset: String,
    #[n(3)]
    generation: u64,
    #[n(4)]
    part: u64,
    #[n(5)]
    at: Moment,
    #[n(6)]
    pub(crate) packs: Vec<PackName>,
    /// The packs that were left with nothing that is needed.
    #[n(7)]
    pub(crate) from: Vec<Hash>,
    #[cbor(n(8), with = "minicbor::bytes")]
    sealed: Vec<u8>,
}

#[derive(Debug, Clone, Encode, Decode)]
pub(crate) struct MovedBody {
    /// The secret that the packs' directories are sealed with, itself sealed to the content key.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub(crate) secret: Vec<u8>,
    #[n(1)]
    pub(crate) packs: Vec<PackRecord>,
}

/// One whose signature and place were right.
#[derive(Debug, Clone)]
pub(crate) struct Moved {
    pub(crate) key: String,
    pub(crate) head: MovedHead,
    pub(crate) hash: Hash,
}

impl Moved {
    pub(crate) fn open_body(&self, identities: &[Identity]) -> Result<MovedBody> {
        open_records(&self.key, &self.head.sealed, identities)
    }
}

pub(crate) fn check(roster: &Roster, host: &str, dataset: &str, of: MovedName, bytes: &[u8]) -> Result<Moved> {
    let key = of.key(host, dataset);
    let signed = Signed::open(KIND, &key, bytes)?;
    let head: MovedHead = codec::decode(&key, &signed.payload)?;
    prune::check_signer(roster, &key, &signed, of.generation)?;
    let here = (head.host.as_str(), head.dataset.as_str(), head.generation, head.part);
    if head.vault != roster.vault || here != (host, dataset, of.generation, of.part) {
        return Err(VaultError::untrusted(&key, "it belongs to another place"));
    }
    Ok(Moved { key, head, hash: Hash(signed.hash) })
}

pub(crate) fn read(storage: &dyn Storage, roster: &Roster, host: &str, dataset: &str, of: MovedName) -> Result<Moved> {
    let key = of.key(host, dataset);
    let bytes = storage.get(&key).doing(|| format!("reading {key}"))?;
    check(roster, host, dataset, of, &bytes)
}

/// Stores one under the next free part of a generation, and answers its key.
pub(crate) fn publish(
    storage: &dyn Storage,
    (roster, host, dataset): (&Roster, &str, &str),
    generation: u64,
    signer: &SigningKey,
    recipients: &[Recipient],
    body: &MovedBody,
    from: &[Hash],
) -> Result<String> {
    let plain = codec::encode(body)?;
    for part in 1.. {
        let key = MovedName { generation, part }.key(host, dataset);
        let head = MovedHead {
            vault: roster.vault.clone(),
            host: host.to_owned(),
            dataset: dataset.to_owned(),
            generation,
            part,
            at: Timestamp::now().into(),
            packs: body.packs.iter().map(|p| PackName { hash: p.hash, bytes: p.bytes }).collect(),
            from: from.to_vec(),
            sealed: seal_frame(recipients, &key, &plain)?,
        };
        let bytes = Signed::seal(KIND, &codec::encode(&head)?, signer)?;
        if storage.put_if_absent(&key, &bytes).doing(|| format!("writing {key}"))? == Put::Created {
            return Ok(key);
        }
    }
    Err(VaultError::invalid(format!("generation {generation}"), "it has no free part"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_spelling() {
        let of = MovedName { generation: 3, part: 12 };
        assert_eq!(parse_key(&of.key("a/b", "app")).unwrap(), ("a/b".to_owned(), "app".to_owned(), of));
        assert_eq!(MovedName::parse("moved-3-12"), None);
        assert_eq!(MovedName::parse("0000000003"), None);
    }
}
