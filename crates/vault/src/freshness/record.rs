//! What a host records in one vault about another that it writes to as well: how far that one has come.
//!
//! `witness/VAULT/HOST/NUMBER`, signed by the host, created if absent. Invariant: a record is written only when something is new in it.

use jiff::Timestamp;
use minicbor::{Decode, Encode};

use super::{Head, Told, counts};
use crate::codec::{self, Hash, Moment};
use crate::error::{Doing, Result, VaultError};
use crate::finding::note;
use crate::name;
use crate::open::{HostVault, Vault};
use crate::prune::Condemned;
use crate::roster::{Role, Roster};
use crate::sign::Signed;
use crate::storage::{Listed, Put};

pub(crate) const KIND: &str = "vault.witness";

#[derive(Debug, Encode, Decode)]
struct Body {
    /// In which vault it lies.
    #[n(0)]
    vault: String,
    /// Which it is about.
    #[n(1)]
    about: String,
    #[n(2)]
    host: String,
    #[n(3)]
    number: u64,
    #[n(4)]
    at: Moment,
    #[n(5)]
    heads: Vec<HeadSeen>,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
struct HeadSeen {
    #[n(0)]
    chain: String,
    #[n(1)]
    number: u64,
    #[n(2)]
    hash: Hash,
}

fn prefix(about: &str) -> String {
    format!("witness/{}/", name::encode(about))
}

fn open(roster: &Roster, key: &str, signed: &Signed) -> Result<Body> {
    let body: Body = codec::decode(key, &signed.payload)?;
    let place = format!("{}{}/{}", prefix(&body.about), name::encode(&body.host), name::number(body.number));
    if body.vault != roster.vault || place != key {
        return Err(VaultError::untrusted(key, "it belongs to another place"));
    }
    let member = roster.member(&signed.signer).filter(|member| member.revoked.is_none());
    match member.is_some_and(|member| member.roles.contains(&Role::Host) && member.name == body.host) {
        true => Ok(body),
        false => Err(VaultError::untrusted(key, "it is not signed by the host that it names")),
    }
}

pub(crate) fn check(roster: &Roster, key: &str, signed: &Signed) -> Result<()> {
    open(roster, key, signed).map(|_| ())
}

impl HostVault {
    /// Records here how far another vault has come, as far as this machine has seen it. Answers whether there was anything new.
    pub fn witness(&self, other: &Vault) -> Result<bool> {
        let about = other.id();
        if about == self.id() {
            return Ok(false);
        }
        let mut heads = Vec::new();
        for kind in ["snap/", "log/", name::ROSTER] {
            for (chain, number, hash) in other.own_heads(kind)? {
                let hash = crate::crypt::unhex(&hash).map(Hash);
                heads.extend(hash.map(|hash| HeadSeen { chain, number, hash }));
            }
        }
        let own = format!("{}{}/", prefix(&about), name::encode(self.host_name()));
        let listed = self.storage().list(&own).doing(|| format!("listing {own}"))?;
        let mut number = 1;
        if let Some(newest) = listed.last() {
            let read = self.storage().get(&newest.key).doing(|| format!("reading {}", newest.key));
            let opened = read
                .and_then(|bytes| Signed::open(KIND, &newest.key, &bytes))
                .and_then(|signed| open(&self.roster(), &newest.key, &signed));
            let last = note(opened, &mut Vec::new())?;
            if last.as_ref().is_some_and(|last| last.heads == heads) {
                return Ok(false);
            }
            let in_key = newest.key.strip_prefix(own.as_str()).and_then(name::parse_number);
            number = in_key.map_or(1, |number| number + 1);
        }
        loop {
            let key = format!("{own}{}", name::number(number));
            let body = Body {
                vault: self.id(),
                about: about.clone(),
                host: self.host_name().to_owned(),
                number,
                at: Timestamp::now().into(),
                heads: heads.clone(),
            };
            let bytes = Signed::seal(KIND, &codec::encode(&body)?, self.state().signing_key())?;
            match self.storage().put_if_absent(&key, &bytes).doing(|| format!("writing {key}"))? {
                Put::Created => return Ok(true),
                Put::Exists => number += 1,
            }
        }
    }
}

impl Vault {
    /// Records of hosts that have recorded more since.
    pub(crate) fn dead_witnesses(&self, lease: Timestamp) -> Result<Vec<Condemned>> {
        let listed = self.storage().list("witness/").doing(|| "listing what hosts recorded".to_owned())?;
        let of = |object: &Listed| object.key.rsplit_once('/').map(|(host, _)| host.to_owned());
        let superseded =
            listed.chunk_by(|a, b| of(a) == of(b)).flat_map(|of_host| of_host.split_last().map(|(_, s)| s));
        let dead = superseded.flatten().filter(|object| object.stored_at.is_some_and(|at| at < lease));
        Ok(dead.map(|object| Condemned { key: object.key.clone(), bytes: object.size, hash: None }).collect())
    }

    /// What hosts recorded in another vault about this one: of each host the newest.
    pub(super) fn heads_recorded_in(&self, name: &str, other: &Vault) -> Result<Told> {
        let prefix = prefix(&self.id());
        let listed = other.storage().list(&prefix).doing(|| format!("listing {prefix} in {name}"))?;
        let host =
            |key: &str| key.strip_prefix(prefix.as_str()).and_then(|rest| rest.split('/').next()).map(str::to_owned);
        let (roster, mut heads, mut at) = (other.roster(), Vec::new(), None);
        for of_host in listed.chunk_by(|a, b| host(&a.key) == host(&b.key)) {
            let Some(newest) = of_host.last() else { continue };
            let read = other.storage().get(&newest.key).doing(|| format!("reading {} in {name}", newest.key));
            let opened = read
                .and_then(|bytes| Signed::open(KIND, &newest.key, &bytes))
                .and_then(|signed| open(&roster, &newest.key, &signed));
            let Some(body) = note(opened, &mut Vec::new())? else { continue };
            let stamp = Timestamp::from(body.at);
            at = at.max(Some(stamp));
            let counting = body.heads.into_iter().filter(|head| counts(&head.chain));
            heads.extend(counting.map(|head| {
                let (number, hash, by) = (head.number, head.hash.to_string(), name.to_owned());
                (head.chain, Head { number, hash, by, at: stamp })
            }));
        }
        Ok((heads, at))
    }
}
