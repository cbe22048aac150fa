//! The heal list: which packs of a host's data set are bad, good again, or given up; signed, under `heal/HOST/DATASET/`.
//!
//! Invariant: any member may say that a pack is bad (it costs an upload at most); only the owner or a pruner says that one is given up,
//! because from then on nobody misses it.

use std::collections::{BTreeSet, HashMap, HashSet};

use jiff::Timestamp;
use minicbor::{Decode, Encode};

use crate::codec::{self, Hash, Moment};
use crate::error::{Doing, Result, VaultError};
use crate::finding::{Finding, note};
use crate::name;
use crate::open::Vault;
use crate::roster::{Role, Roster};
use crate::sign::{Signed, SigningKey};

pub(crate) const KIND: &str = "vault.heal";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub(crate) enum PackState {
    /// Missing or damaged.
    #[n(0)]
    Bad,
    /// It came back from a copy.
    #[n(1)]
    Good,
    /// What it held lies elsewhere; it is not missed.
    #[n(2)]
    GivenUp,
}

#[derive(Debug, Encode, Decode)]
struct Body {
    #[n(0)]
    vault: String,
    #[n(1)]
    host: String,
    #[n(2)]
    dataset: String,
    #[n(3)]
    state: PackState,
    #[n(4)]
    packs: Vec<Hash>,
    #[n(5)]
    at: Moment,
}

fn prefix(host: &str, dataset: &str) -> String {
    format!("heal/{}/{}/", name::encode(host), name::encode(dataset))
}

pub(crate) fn check(roster: &Roster, key: &str, host: &str, dataset: &str, signed: &Signed) -> Result<()> {
    open(roster, key, host, dataset, signed).map(|_| ())
}

fn open(roster: &Roster, key: &str, host: &str, dataset: &str, signed: &Signed) -> Result<Body> {
    let body: Body = codec::decode(key, &signed.payload)?;
    if body.vault != roster.vault || body.host != host || body.dataset != dataset {
        return Err(VaultError::untrusted(key, "it belongs to another place"));
    }
    let is_member = roster.member(&signed.signer).is_some_and(|member| member.revoked.is_none());
    let may_give_up = signed.signer == roster.owner || roster.permits(&signed.signer, Role::Pruner);
    match body.state {
        PackState::GivenUp if !may_give_up => {
            Err(VaultError::untrusted(key, "it is signed by who may not give up a pack"))
        }
        _ if !is_member && signed.signer != roster.owner => {
            Err(VaultError::untrusted(key, "it is signed by who is not on the roster"))
        }
        _ => Ok(body),
    }
}

/// Whether a list gives packs up, by who may.
pub(crate) fn gives_up(vault: &Vault, key: &str, host: &str, dataset: &str) -> bool {
    let opened = vault.storage().get(key).doing(|| format!("reading {key}"));
    let opened = opened
        .and_then(|bytes| Signed::open(KIND, key, &bytes))
        .and_then(|signed| open(&vault.roster(), key, host, dataset, &signed));
    opened.is_ok_and(|body| body.state == PackState::GivenUp)
}

pub(super) fn write(
    vault: &Vault,
    signer: &SigningKey,
    (host, dataset): (&str, &str),
    state: PackState,
    packs: &BTreeSet<Hash>,
) -> Result<()> {
    let now = Timestamp::now();
    let body = Body {
        vault: vault.id(),
        host: host.to_owned(),
        dataset: dataset.to_owned(),
        state,
        packs: packs.iter().copied().collect(),
        at: now.into(),
    };
    let signed_by = &signer.public().fingerprint()[..8];
    let key = format!("{}{:020}-{signed_by}", prefix(host, dataset), now.as_nanosecond());
    let bytes = Signed::seal(KIND, &codec::encode(&body)?, signer)?;
    vault.storage().put_if_absent(&key, &bytes).doing(|| format!("writing {key}")).map(|_| ())
}

impl Vault {
    /// What the lists say of a host's packs of a data set: the newest word counts, and what was given up stays so.
    pub(crate) fn heal_list(&self, host: &str, dataset: &str) -> Result<HashMap<Hash, PackState>> {
        self.read_list(host, dataset, &mut Vec::new())
    }

    /// The packs that a backup of this host must not build on.
    pub(crate) fn bad_packs_of(&self, host: &str, dataset: &str) -> Result<Vec<Hash>> {
        let list = self.heal_list(host, dataset)?;
        let bad = list.into_iter().filter(|(_, state)| *state != PackState::Good).map(|(hash, _)| hash);
        // In a copy of part of a vault, what its indexes name may not be there, either.
        Ok(bad.chain(self.left_out()?.packs).collect())
    }

    /// Every pack that was given up, in whosever list.
    pub(crate) fn given_up(&self, findings: &mut Vec<Finding>) -> Result<HashSet<Hash>> {
        let listed = self.storage().list("heal/").doing(|| "listing heal lists".to_owned())?;
        let places: BTreeSet<(String, String)> = listed
            .iter()
            .filter_map(|object| {
                let mut parts = object.key.split('/').skip(1);
                Some((name::decode(parts.next()?)?, name::decode(parts.next()?)?))
            })
            .collect();
        let mut given_up = HashSet::new();
        for (host, dataset) in places {
            let list = self.read_list(&host, &dataset, findings)?;
            given_up.extend(list.into_iter().filter(|(_, s)| *s == PackState::GivenUp).map(|(hash, _)| hash));
        }
        Ok(given_up)
    }

    fn read_list(&self, host: &str, dataset: &str, findings: &mut Vec<Finding>) -> Result<HashMap<Hash, PackState>> {
        let prefix = prefix(host, dataset);
        let roster = self.roster();
        let mut states: HashMap<Hash, (Moment, PackState)> = HashMap::new();
        for object in self.storage().list(&prefix).doing(|| format!("listing {prefix}"))? {
            let key = &object.key;
            let read = self.storage().get(key).doing(|| format!("reading {key}"));
            let opened = read
                .and_then(|bytes| Signed::open(KIND, key, &bytes))
                .and_then(|signed| open(&roster, key, host, dataset, &signed));
            let Some(body) = note(opened, findings)? else { continue };
            for hash in body.packs {
                let place = states.entry(hash).or_insert((body.at, body.state));
                let stays = place.1 == PackState::GivenUp;
                if body.state == PackState::GivenUp || (!stays && body.at >= place.0) {
                    *place = (body.at, body.state);
                }
            }
        }
        Ok(states.into_iter().map(|(hash, (_, state))| (hash, state)).collect())
    }
}
