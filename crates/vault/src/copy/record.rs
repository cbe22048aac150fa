//! What is written down in a copy about its copying: begun, done, the newest points that the source had then, and what was left out.
//!
//! Signed by whoever copied. Invariants: a copy that was begun and not finished is known as a half one; the heads count as seen only if a
//! member of the roster signed them; what was left out is believed only of the owner and of who may accept a point, never of a mere host.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use minicbor::{Decode, Encode};

use super::plan::Plan;
use super::{CopyOptions, CopyReport};
use crate::codec::{self, Hash, Moment};
use crate::error::{Doing, Result, VaultError};
use crate::finding::{Finding, Severity};
use crate::name;
use crate::open::Vault;
use crate::roster::Roster;
use crate::sign::{PublicKey, Signed, SigningKey};
use crate::snapshot::ACCEPTING_ROLES;
use crate::storage::{Put, Storage};

pub(crate) const KIND: &str = "vault.copy";
pub(super) const PREFIX: &str = "copy/";
const BEGUN: &str = "a-begun";
pub(super) const DONE: &str = "b-done";
/// Who may not leave anything out makes whole copies: behind so many of those nothing is left out any more.
const RECORDS_READ_MAX: usize = 16;

#[derive(Debug, Encode, Decode)]
struct Body {
    #[n(0)]
    vault: String,
    #[n(1)]
    number: u64,
    #[n(2)]
    done: bool,
    #[n(3)]
    from: String,
    #[n(4)]
    at: Moment,
    /// To carry, or carried.
    #[n(5)]
    objects: u64,
    #[n(6)]
    bytes: u64,
    #[n(7)]
    heads: Vec<HeadSeen>,
    /// As who copied called it.
    #[n(8)]
    to: Option<String>,
    /// This data set alone was copied.
    #[n(9)]
    dataset: Option<String>,
    /// Points from this moment on were copied.
    #[n(10)]
    since: Option<Moment>,
    /// Where chains of points begin that do not begin at the first.
    #[n(11)]
    #[cbor(default)]
    floors: Vec<Floor>,
    /// Packs that indexes name and nothing in the copy needs.
    #[n(12)]
    #[cbor(default)]
    left_out: Vec<Hash>,
}

/// Points of a chain below a number are not in a copy.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Floor {
    #[n(0)]
    pub(crate) chain: String,
    #[n(1)]
    pub(crate) below: u64,
    /// The hash of the last of them, which the first that is there names.
    #[n(2)]
    pub(crate) last: Option<Hash>,
}

/// What a copy lacks by design, as its own record says.
#[derive(Debug, Clone, Default)]
pub(crate) struct LeftOut {
    pub(crate) floors: HashMap<String, Floor>,
    pub(crate) packs: HashSet<Hash>,
    pub(super) since: Option<Timestamp>,
    by: String,
    to: String,
    key: String,
}

impl LeftOut {
    pub(crate) fn is_empty(&self) -> bool {
        self.floors.is_empty() && self.packs.is_empty()
    }

    /// The first number of a chain that is to be there.
    pub(crate) fn first_of(&self, chain: &str) -> u64 {
        self.floors.get(chain).map_or(1, |floor| floor.below)
    }

    /// What the first point that is to be there names as the one before; `None` where that is not known.
    pub(crate) fn before_first(&self, chain: &str) -> Option<Option<Hash>> {
        match self.floors.get(chain) {
            None => Some(None),
            Some(floor) => floor.last.map(Some),
        }
    }

    /// Said whenever points are looked at: nobody shall take it for the whole. Louder where the record was made for another address: a
    /// storage that has both could show it in the other's place.
    fn finding(&self, location: &str) -> Finding {
        let since = self.since.map(|at| format!(" from {at} on")).unwrap_or_default();
        let moved = if self.to == location { String::new() } else { format!(" (made as {})", self.to) };
        let message = format!(
            "this is a copy of the recovery points{since}{moved}, by {}: older ones were left out by intent, and are no loss here",
            self.by
        );
        let severity = if moved.is_empty() { Severity::Note } else { Severity::Warning };
        Finding::new(severity, "partial-copy", &self.key, message)
    }
}

#[derive(Debug, Clone, Encode, Decode)]
struct HeadSeen {
    #[n(0)]
    chain: String,
    #[n(1)]
    number: u64,
    #[n(2)]
    hash: Hash,
}

/// One copying into a storage.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct CopyRecord {
    /// Where it came from, as who copied called it.
    pub from: String,
    pub at: Timestamp,
    pub done: bool,
    /// This data set alone; all without it.
    pub dataset: Option<String>,
    /// Points from this moment on; all without it.
    pub since: Option<Timestamp>,
    pub objects: u64,
    pub bytes: u64,
    /// Whether a member of the roster signed it.
    pub signed_by_member: bool,
    /// The newest points at the source by then: chain, number, hash.
    pub heads: Vec<(String, u64, String)>,
}

fn key(number: u64, what: &str) -> String {
    format!("{PREFIX}{}-{what}", name::number(number))
}

/// The number and whether it is done, from the last part of a key.
pub(crate) fn parse(part: &str) -> Option<(u64, bool)> {
    let (number, what) = part.split_once('-')?;
    match what {
        BEGUN => Some((name::parse_number(number)?, false)),
        DONE => Some((name::parse_number(number)?, true)),
        _ => None,
    }
}

pub(crate) fn check(roster: &Roster, key: &str, number: u64, done: bool, signed: &Signed) -> Result<()> {
    let body: Body = codec::decode(key, &signed.payload)?;
    match body.vault == roster.vault && body.number == number && body.done == done {
        true => Ok(()),
        false => Err(VaultError::untrusted(key, "it belongs to another place")),
    }
}

/// A copying that is under way: what its record says at both ends.
pub(super) struct Entry<'a> {
    pub(super) source: &'a Vault,
    pub(super) to: &'a dyn Storage,
    pub(super) signer: &'a SigningKey,
    pub(super) plan: &'a Plan,
    pub(super) options: &'a CopyOptions,
}

impl Entry<'_> {
    fn bytes(&self, number: u64, done: bool, counts: (u64, u64), lacks: &LeftOut) -> Result<Vec<u8>> {
        let heads = self.plan.heads.iter();
        let mut left_out: Vec<Hash> = lacks.packs.iter().copied().collect();
        left_out.sort();
        let mut floors: Vec<Floor> = lacks.floors.values().cloned().collect();
        floors.sort_by(|a, b| a.chain.cmp(&b.chain));
        let body = Body {
            vault: self.source.id(),
            number,
            done,
            from: self.source.storage().location(),
            at: self.plan.listed_at.into(),
            objects: counts.0,
            bytes: counts.1,
            heads: heads
                .map(|(chain, number, hash)| HeadSeen { chain: chain.clone(), number: *number, hash: *hash })
                .collect(),
            to: Some(self.to.location()),
            dataset: self.options.dataset.clone(),
            since: self.plan.since.map(Into::into),
            floors,
            left_out,
        };
        Signed::seal(KIND, &codec::encode(&body)?, self.signer)
    }

    /// Writes down that a copy is begun, before anything is carried; answers its number.
    pub(super) fn begin(&self) -> Result<u64> {
        let listed = self.to.list(PREFIX).doing(|| "listing records of copies".to_owned())?;
        let newest = listed.iter().filter_map(|o| parse(o.key.strip_prefix(PREFIX)?)).map(|(number, _)| number).max();
        let mut number = newest.unwrap_or(0) + 1;
        let objects = self.plan.phases.iter().flatten().map(|row| row.len() as u64).sum();
        loop {
            let key = key(number, BEGUN);
            let bytes = self.bytes(number, false, (objects, self.plan.bytes), &self.plan.lacks_until_done)?;
            match self.to.put_if_absent(&key, &bytes).doing(|| format!("writing {key}"))? {
                Put::Created => return Ok(number),
                Put::Exists => number += 1,
            }
        }
    }

    pub(super) fn finish(&self, number: u64, report: &CopyReport) -> Result<()> {
        let key = key(number, DONE);
        let bytes = self.bytes(number, true, (report.objects_copied, report.bytes_copied), &self.plan.lacks)?;
        self.to.put_if_absent(&key, &bytes).doing(|| format!("writing {key}")).map(|_| ())
    }
}

/// Whether this key may say that something was left out by intent.
pub(super) fn may_leave_out(roster: &Roster, key: &PublicKey) -> bool {
    *key == roster.owner || ACCEPTING_ROLES.iter().any(|role| roster.permits(key, *role))
}

fn open(vault: &Vault, roster: &Roster, key: &str) -> Option<(Body, PublicKey)> {
    let bytes = vault.storage().get(key).ok()?;
    let signed = Signed::open(KIND, key, &bytes).ok()?;
    let body = codec::decode::<Body>(key, &signed.payload).ok()?;
    let (number, done) = parse(key.strip_prefix(PREFIX)?)?;
    (body.vault == roster.vault && body.number == number && body.done == done).then_some((body, signed.signer))
}

fn name_of(roster: &Roster, key: &PublicKey) -> String {
    match roster.member(key) {
        Some(member) => member.name.clone(),
        None if *key == roster.owner => "the owner".to_owned(),
        None => key.fingerprint(),
    }
}

/// Every record that can be read.
pub(super) fn read(vault: &Vault) -> Result<Vec<CopyRecord>> {
    let roster = vault.roster();
    let listed = vault.storage().list(PREFIX).doing(|| "listing records of copies".to_owned())?;
    let opened = listed.iter().filter_map(|object| open(vault, &roster, &object.key));
    let record = |(body, signer): (Body, PublicKey)| CopyRecord {
        from: body.from,
        at: body.at.into(),
        done: body.done,
        dataset: body.dataset,
        since: body.since.map(Into::into),
        objects: body.objects,
        bytes: body.bytes,
        signed_by_member: signer == roster.owner || roster.member(&signer).is_some_and(|m| m.revoked.is_none()),
        heads: body.heads.into_iter().map(|h| (h.chain, h.number, h.hash.to_string())).collect(),
    };
    Ok(opened.map(record).collect())
}

impl Vault {
    /// What this storage lacks by design: by the newest record of who may say so.
    pub(crate) fn left_out(&self) -> Result<LeftOut> {
        let listed = self.storage().list(PREFIX).doing(|| "listing records of copies".to_owned())?;
        let Some(newest) = listed.last() else { return Ok(LeftOut::default()) };
        let mut cached = self.left_out_cache();
        if let Some((key, kept)) = &*cached
            && *key == newest.key
        {
            return Ok(kept.clone());
        }
        let roster = self.roster();
        let newest_ones = listed.iter().rev().take(RECORDS_READ_MAX);
        let opened = newest_ones.filter_map(|object| Some((object, open(self, &roster, &object.key)?)));
        let mut allowed = opened.filter(|(_, (_, signer))| may_leave_out(&roster, signer));
        let left_out = allowed.next().map(|(object, (body, signer))| LeftOut {
            floors: body.floors.into_iter().map(|floor| (floor.chain.clone(), floor)).collect(),
            packs: body.left_out.into_iter().collect(),
            since: body.since.map(Into::into),
            by: name_of(&roster, &signer),
            to: body.to.unwrap_or_default(),
            key: object.key.clone(),
        });
        let left_out = left_out.unwrap_or_default();
        *cached = Some((newest.key.clone(), left_out.clone()));
        Ok(left_out)
    }

    /// What is to be said of a copy that is none of the whole.
    pub(crate) fn partial_copy(&self) -> Result<Option<Finding>> {
        let left_out = self.left_out()?;
        Ok((!left_out.is_empty()).then(|| left_out.finding(&self.storage().location())))
    }
}
