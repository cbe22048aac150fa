//! The roster: who counts. Owner-signed, numbered, each version naming its predecessor's hash.
//!
//! Invariants: only the owner's signature makes a version; the newest version seen is never replaced by an older one.
//! A damaged older version is a finding, not an obstacle: the newest one speaks for itself.

mod enroll;
mod leave;

use minicbor::{Decode, Encode};

use crate::codec::{self, Hash, Moment};
use crate::error::{Doing, Result, VaultError};
use crate::finding::{Finding, Severity};
use crate::name;
use crate::seal::Recipient;
use crate::sign::{PublicKey, Signed, SigningKey};
use crate::storage::{Put, Storage};

pub use self::enroll::Request;
pub(crate) use self::enroll::{ENROLMENT_KIND, requested};

pub(crate) const KIND: &str = "vault.roster";

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Roster {
    /// The vault's identifier: 32 random hex digits.
    #[n(0)]
    pub vault: String,
    #[n(1)]
    pub version: u64,
    #[n(2)]
    pub(crate) previous: Option<Hash>,
    #[n(3)]
    pub owner: PublicKey,
    /// Public half of the refs key (`age1…`).
    #[n(4)]
    pub refs: String,
    /// To whom every private half is sealed.
    #[n(5)]
    pub recipients: Vec<String>,
    /// Who may open one data set besides.
    #[n(6)]
    pub holders: Vec<Holder>,
    #[n(7)]
    pub members: Vec<Member>,
    #[n(8)]
    pub(crate) at: Moment,
}

/// A key that opens one data set only, held at a place for a purpose.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Holder {
    #[n(0)]
    pub dataset: String,
    #[n(1)]
    pub recipient: String,
    /// `standby`, `drill` or `verify`.
    #[n(2)]
    pub purpose: String,
    #[n(3)]
    pub place: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, serde::Serialize, serde::Deserialize)]
#[cbor(index_only)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Writes recovery points and logs.
    #[n(0)]
    Host,
    /// Signs what a controller publishes in the arbiter.
    #[n(1)]
    Controller,
    /// Signs attestations and approvals.
    #[n(2)]
    Person,
    #[n(3)]
    Observer,
    /// May leave tombstones.
    #[n(4)]
    Pruner,
    /// Keeps a storage (`vault serve`) and signs receipts: when an object was taken in.
    #[n(5)]
    Keeper,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Member {
    #[n(0)]
    pub name: String,
    #[n(1)]
    pub roles: Vec<Role>,
    #[n(2)]
    pub key: PublicKey,
    /// A host's index key, public half.
    #[n(3)]
    pub index: Option<String>,
    #[n(4)]
    pub revoked: Option<Revocation>,
}

impl Member {
    /// Whether what it signs as number `number` of `chain` counts: all, or what came before its revocation.
    fn counts(&self, chain: &str, number: u64) -> bool {
        let Some(revocation) = &self.revoked else { return true };
        revocation.from.iter().find(|f| f.chain == chain).is_some_and(|from| number < from.number)
    }
}

/// From where on a member's signature no longer counts: per chain the first number refused; all of every other chain.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Revocation {
    #[n(0)]
    pub from: Vec<ChainFrom>,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ChainFrom {
    #[n(0)]
    pub chain: String,
    #[n(1)]
    pub number: u64,
}

impl Role {
    /// As commands and messages call it.
    pub fn name(self) -> &'static str {
        match self {
            Role::Host => "host",
            Role::Controller => "controller",
            Role::Person => "person",
            Role::Observer => "observer",
            Role::Pruner => "pruner",
            Role::Keeper => "keeper",
        }
    }
}

impl Roster {
    /// The member with this key, revoked or not.
    pub fn member(&self, key: &PublicKey) -> Option<&Member> {
        self.members.iter().find(|m| m.key == *key)
    }

    /// Whether this key may sign in this role today: what engines ask about the arbiter's objects.
    pub fn permits(&self, key: &PublicKey, role: Role) -> bool {
        self.member(key).is_some_and(|m| m.revoked.is_none() && m.roles.contains(&role))
    }

    /// Whether number `number` of `chain`, signed by this key as host `host`, counts.
    pub(crate) fn check_host(&self, object: &str, key: &PublicKey, host: &str, chain: &str, number: u64) -> Result<()> {
        let member = self.member(key).filter(|m| m.roles.contains(&Role::Host) && m.name == host);
        let Some(member) = member else {
            return Err(VaultError::untrusted(
                object,
                format!("it is signed by {}, which is not host {host} on the roster", key.fingerprint()),
            ));
        };
        match member.counts(chain, number) {
            true => Ok(()),
            false => Err(VaultError::untrusted(object, format!("host {host} was revoked before it was written"))),
        }
    }

    /// Whether number `number` of `chain`, signed by this key in `role`, counts.
    pub(crate) fn check_role(&self, object: &str, key: &PublicKey, role: Role, chain: &str, number: u64) -> Result<()> {
        let Some(member) = self.member(key).filter(|m| m.roles.contains(&role)) else {
            let why = format!("it is signed by {}, which has no such role on the roster", key.fingerprint());
            return Err(VaultError::untrusted(object, why));
        };
        match member.counts(chain, number) {
            true => Ok(()),
            false => Err(VaultError::untrusted(object, format!("{} was revoked before it was written", member.name))),
        }
    }

    /// To whom a data set's content key is sealed.
    pub(crate) fn recipients_of(&self, dataset: &str) -> Result<Vec<Recipient>> {
        let holders = self.holders.iter().filter(|h| h.dataset == dataset).map(|h| &h.recipient);
        let mut texts: Vec<&String> = self.recipients.iter().chain(holders).collect();
        texts.sort();
        texts.dedup();
        texts.into_iter().map(|text| text.parse()).collect()
    }

    /// To whom the refs key is sealed: all recipients, and pruners, who need it and no other.
    pub(crate) fn recipients_of_refs(&self) -> Result<Vec<Recipient>> {
        let may_prune = |m: &&Member| m.revoked.is_none() && m.roles.contains(&Role::Pruner);
        let pruners = self.members.iter().filter(may_prune).filter_map(|m| m.index.as_ref());
        let mut texts: Vec<&String> = self.recipients.iter().chain(pruners).collect();
        texts.sort();
        texts.dedup();
        texts.into_iter().map(|text| text.parse()).collect()
    }

    /// Signs this version and stores it, where no such version is yet.
    pub(crate) fn publish(&self, storage: &dyn Storage, owner: &SigningKey) -> Result<Hash> {
        let key = name::roster(self.version);
        let bytes = Signed::seal(KIND, &codec::encode(self)?, owner)?;
        match storage.put_if_absent(&key, &bytes).doing(|| format!("writing {key}"))? {
            Put::Created => Ok(Hash(crate::crypt::hash(&bytes))),
            Put::Exists => {
                Err(VaultError::Conflict { object: key, why: "that version of the roster exists already".to_owned() })
            }
        }
    }

    /// Whether these bytes are a version of this vault's roster, by the same owner.
    pub(crate) fn check_version(&self, key: &str, number: u64, bytes: &[u8]) -> Result<()> {
        let (version, _) = Roster::open(key, number, bytes)?;
        match version.owner == self.owner && version.vault == self.vault {
            true => Ok(()),
            false => Err(VaultError::untrusted(key, "it names another owner or vault")),
        }
    }

    /// The roster that a new vault begins with: right in itself, and the expected owner's.
    pub(crate) fn first(key: &str, number: u64, bytes: &[u8], owner: Option<&str>) -> Result<()> {
        let (version, _) = Roster::open(key, number, bytes)?;
        match owner.is_none_or(|expected| version.owner.fingerprint() == expected) {
            true => Ok(()),
            false => Err(VaultError::untrusted(key, "it is not the expected owner's")),
        }
    }

    fn open(key: &str, number: u64, bytes: &[u8]) -> Result<(Roster, Hash)> {
        let signed = Signed::open(KIND, key, bytes)?;
        let roster: Roster = codec::decode(key, &signed.payload)?;
        if signed.signer != roster.owner {
            return Err(VaultError::untrusted(key, "it is not signed by the owner it names"));
        }
        if roster.version != number {
            return Err(VaultError::untrusted(key, format!("it is version {} under another number", roster.version)));
        }
        Ok((roster, Hash(signed.hash)))
    }
}

/// The newest roster, and what is wrong with the row of versions.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    pub(crate) roster: Roster,
    pub(crate) hash: Hash,
    pub(crate) findings: Vec<Finding>,
}

/// Reads every version. `owner` is the fingerprint that must have signed them; without one the first version's owner is believed.
pub(crate) fn load(storage: &dyn Storage, owner: Option<&str>) -> Result<Loaded> {
    let location = storage.location();
    let listed = storage.list(name::ROSTER).doing(|| "looking for the vault's roster".to_owned())?;
    if listed.is_empty() {
        return Err(VaultError::NoVault { location });
    }
    let mut findings = Vec::new();
    let mut newest: Option<(Roster, Hash)> = None;
    let mut expected = 1u64;
    let mut trouble = None;
    for object in &listed {
        let Some(number) = object.key.strip_prefix(name::ROSTER).and_then(name::parse_number) else {
            findings.push(Finding::new(
                Severity::Warning,
                "unknown",
                &object.key,
                format!("{} is not a roster; remove it", object.key),
            ));
            continue;
        };
        for gap in expected..number.min(expected.saturating_add(16)) {
            findings.push(Finding::missing(name::roster(gap), "versions of the roster are numbered without gaps"));
        }
        expected = number.saturating_add(1);
        let read = storage.get(&object.key).doing(|| format!("reading {}", object.key));
        let opened = read.and_then(|bytes| Roster::open(&object.key, number, &bytes)).and_then(|(roster, hash)| {
            check_owner(&location, &object.key, &roster, owner, newest.as_ref())?;
            Ok((roster, hash))
        });
        match opened {
            Ok(next) => newest = Some(next),
            Err(e @ VaultError::Storage { .. }) => return Err(e),
            Err(e) => {
                findings.push(Finding::from(&e));
                trouble = Some(e);
            }
        }
    }
    match (newest, trouble) {
        (Some((roster, hash)), _) => Ok(Loaded { roster, hash, findings }),
        (None, Some(e)) => Err(e),
        (None, None) => Err(VaultError::NoVault { location }),
    }
}

fn check_owner(
    location: &str,
    key: &str,
    roster: &Roster,
    owner: Option<&str>,
    before: Option<&(Roster, Hash)>,
) -> Result<()> {
    if let Some(expected) = owner {
        let found = roster.owner.fingerprint();
        if found != expected {
            return Err(VaultError::ForeignVault {
                location: location.to_owned(),
                expected: expected.to_owned(),
                found,
            });
        }
    }
    let Some((before, hash)) = before else { return Ok(()) };
    if before.owner != roster.owner || before.vault != roster.vault {
        return Err(VaultError::untrusted(key, "it names another owner or vault than the version before it"));
    }
    if before.version + 1 == roster.version && roster.previous != Some(*hash) {
        return Err(VaultError::untrusted(key, "it does not name the version before it"));
    }
    Ok(())
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_counts_for_its_own_name_in_its_role_and_up_to_a_revocation() {
        let key = |n: u8| SigningKey::from_seed([n; 32]).unwrap().public();
        let member = |n: u8, name: &str, role: Role, revoked: Option<Revocation>| Member {
            name: name.to_owned(),
            roles: vec![role],
            key: key(n),
            index: None,
            revoked,
        };
        let up_to_2 = Revocation { from: vec![ChainFrom { chain: "snap/old/d/".to_owned(), number: 2 }] };
        let roster = Roster {
            vault: "v".to_owned(),
            version: 1,
            previous: None,
            owner: key(1),
            refs: String::new(),
            recipients: Vec::new(),
            holders: Vec::new(),
            members: vec![
                member(2, "alpha", Role::Host, None),
                member(3, "beta", Role::Observer, None),
                member(4, "old", Role::Host, Some(up_to_2)),
            ],
            at: jiff::Timestamp::UNIX_EPOCH.into(),
        };
        let counts =
            |n: u8, name: &str, chain: &str, number| roster.check_host("o", &key(n), name, chain, number).is_ok();
        assert!(counts(2, "alpha", "snap/alpha/d/", 9));
        assert!(!counts(2, "beta", "snap/beta/d/", 1), "another's name");
        assert!(!counts(3, "beta", "snap/beta/d/", 1), "no host");
        assert!(!counts(5, "alpha", "snap/alpha/d/", 1), "a stranger");
        assert!(counts(4, "old", "snap/old/d/", 1) && !counts(4, "old", "snap/old/d/", 2));
        assert!(!counts(4, "old", "snap/old/e/", 1), "a chain that it had not begun");
        assert!(roster.check_role("o", &key(2), Role::Pruner, "prune/", 1).is_err());
        assert!(!roster.permits(&key(4), Role::Host) && roster.permits(&key(2), Role::Host));
    }
}
