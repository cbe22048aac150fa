//! Holds on points and data sets, and the freeze: signed objects that stop pruning.
//!
//! Invariants: a held point is never pruned, and whoever holds one whose deletion had begun is told so; while the vault is frozen nothing is condemned and nothing deleted. Anyone who is or was on
//! the roster may stop a prune; a hold ends by its date, by who put it, or by the owner, and a freeze by the owner alone.

use std::collections::BTreeMap;

use jiff::Timestamp;
use minicbor::{Decode, Encode};

use crate::codec::{self, Moment};
use crate::error::{Doing, Result, VaultError};
use crate::finding::{Finding, note};
use crate::host::State;
use crate::name;
use crate::open::{Unlocked, Vault};
use crate::prune::Rule;
use crate::roster::Roster;
use crate::sign::{PublicKey, Signed, SigningKey};
use crate::storage::Put;

pub(crate) const HOLD_KIND: &str = "vault.hold";
pub(crate) const FREEZE_KIND: &str = "vault.freeze";
const HOLDS: &str = "hold/";
const FREEZES: &str = "freeze/";
const SNAPSHOTS: &str = "snap/";
const TEXT_BYTES_MAX: usize = 2000;

/// In whose name something is signed.
#[derive(Debug, Clone, Copy)]
pub enum Hand<'a> {
    /// A machine or person on the roster.
    Member(&'a State),
    Owner(&'a Unlocked),
}

impl Hand<'_> {
    pub(crate) fn key(&self) -> Result<&SigningKey> {
        match self {
            Hand::Member(state) => Ok(state.signing_key()),
            Hand::Owner(unlocked) => unlocked.owner_key(),
        }
    }
}

/// What is held.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Held {
    Dataset(String),
    /// `HOST/DATASET/SEQUENCE`, as `PointInfo::id`.
    Point(String),
}

impl Held {
    /// Whether it is the point of this snapshot.
    fn covers(&self, snapshot: &str) -> bool {
        match self {
            Held::Point(id) => id == id_of(snapshot),
            Held::Dataset(dataset) => {
                id_of(snapshot).split('/').nth(1).and_then(name::decode).as_ref() == Some(dataset)
            }
        }
    }
}

fn id_of(snapshot: &str) -> &str {
    snapshot.strip_prefix(SNAPSHOTS).unwrap_or(snapshot)
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Hold {
    pub number: u64,
    pub what: Held,
    /// Open-ended without.
    pub until: Option<Timestamp>,
    pub who: String,
    pub why: String,
    pub at: Timestamp,
    #[serde(skip)]
    signer: PublicKey,
}

impl Hold {
    /// Whether it holds the point of this id and data set.
    pub fn covers(&self, id: &str, dataset: &str) -> bool {
        match &self.what {
            Held::Dataset(held) => held == dataset,
            Held::Point(held) => held == id,
        }
    }

    pub fn has_ended(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| until < now)
    }
}

/// A hold that was put, and for which points it may have come too late.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Placed {
    pub number: u64,
    /// Points whose deletion had begun: a pruner keeps them if all that they need is still there. Known when that prune is done.
    pub going: Vec<String>,
    /// Points that were deleted before.
    pub gone: Vec<String>,
}

/// Who stopped pruning, and why.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Freeze {
    pub who: String,
    pub why: String,
    pub at: Timestamp,
}

#[derive(Debug, Encode, Decode)]
struct HoldBody {
    #[n(0)]
    vault: String,
    #[n(1)]
    number: u64,
    #[n(2)]
    dataset: Option<String>,
    #[n(3)]
    point: Option<String>,
    #[n(4)]
    until: Option<Moment>,
    #[n(5)]
    why: String,
    #[n(6)]
    at: Moment,
    /// The hold that ends with this one; then nothing else is held by it.
    #[n(7)]
    releases: Option<u64>,
}

#[derive(Debug, Encode, Decode)]
struct FreezeBody {
    #[n(0)]
    vault: String,
    #[n(1)]
    number: u64,
    #[n(2)]
    frozen: bool,
    #[n(3)]
    why: String,
    #[n(4)]
    at: Moment,
}

fn who(roster: &Roster, key: &PublicKey) -> Option<String> {
    if *key == roster.owner {
        return Some("the owner".to_owned());
    }
    roster.member(key).map(|member| member.name.clone())
}

fn open_hold(roster: &Roster, number: u64, key: &str, bytes: &[u8]) -> Result<(HoldBody, Signed)> {
    let signed = Signed::open(HOLD_KIND, key, bytes)?;
    let body: HoldBody = codec::decode(key, &signed.payload)?;
    if body.vault != roster.vault || body.number != number {
        return Err(VaultError::untrusted(key, "it belongs to another place"));
    }
    if who(roster, &signed.signer).is_none() {
        return Err(VaultError::untrusted(key, "it is signed by who is not on the roster"));
    }
    Ok((body, signed))
}

fn open_freeze(roster: &Roster, number: u64, key: &str, bytes: &[u8]) -> Result<(FreezeBody, Signed)> {
    let signed = Signed::open(FREEZE_KIND, key, bytes)?;
    let body: FreezeBody = codec::decode(key, &signed.payload)?;
    if body.vault != roster.vault || body.number != number {
        return Err(VaultError::untrusted(key, "it belongs to another place"));
    }
    if who(roster, &signed.signer).is_none() || (!body.frozen && signed.signer != roster.owner) {
        return Err(VaultError::untrusted(key, "it is signed by who may not say so"));
    }
    Ok((body, signed))
}

/// Checks a hold for its place.
pub(crate) fn check_hold(roster: &Roster, number: u64, key: &str, bytes: &[u8]) -> Result<()> {
    open_hold(roster, number, key, bytes).map(|_| ())
}

/// Checks a freeze, or its release, for its place.
pub(crate) fn check_freeze(roster: &Roster, number: u64, key: &str, bytes: &[u8]) -> Result<()> {
    open_freeze(roster, number, key, bytes).map(|_| ())
}

impl Vault {
    fn who(&self, key: &PublicKey) -> Option<String> {
        who(&self.roster(), key)
    }

    /// Every hold that was not released, those that have ended by their date among them.
    pub fn holds(&self) -> Result<(Vec<Hold>, Vec<Finding>)> {
        let mut holds: BTreeMap<u64, Hold> = BTreeMap::new();
        let mut findings = Vec::new();
        let owner = self.roster().owner;
        let mut newest = 0;
        for (number, key) in self.numbered(HOLDS, &mut findings)? {
            newest = number;
            let Some((body, signer)) = note(self.read_hold(number, &key), &mut findings)? else { continue };
            if let Some(released) = body.releases {
                if holds.get(&released).is_some_and(|hold| signer == owner || signer == hold.signer) {
                    holds.remove(&released);
                } else {
                    let error = VaultError::untrusted(&key, "it releases a hold that is another's");
                    findings.push(Finding::from(&error));
                }
                continue;
            }
            let what = match (body.dataset, body.point) {
                (Some(dataset), None) => Held::Dataset(dataset),
                (None, Some(point)) => Held::Point(point),
                _ => continue,
            };
            let who = self.who(&signer).unwrap_or_default();
            let until = body.until.map(Timestamp::from);
            holds.insert(number, Hold { number, what, until, who, why: body.why, at: body.at.into(), signer });
        }
        findings.extend(self.rolled_back(HOLDS, newest)?);
        Ok((holds.into_values().collect(), findings))
    }

    fn read_hold(&self, number: u64, key: &str) -> Result<(HoldBody, PublicKey)> {
        let bytes = self.storage().get(key).doing(|| format!("reading {key}"))?;
        let (body, signed) = open_hold(&self.roster(), number, key, &bytes)?;
        self.remember_head(HOLDS, number, signed.hash)?;
        Ok((body, signed.signer))
    }

    /// Whether one was seen here that is gone from the storage.
    fn rolled_back(&self, prefix: &str, newest: u64) -> Result<Option<Finding>> {
        let seen = self.remembered_head(prefix)?.map(|head| head.0).filter(|seen| *seen > newest);
        let error = |seen| VaultError::RolledBack {
            object: prefix.to_owned(),
            found: format!("number {newest}"),
            seen: format!("number {seen}"),
        };
        Ok(seen.map(|seen| Finding::from(&error(seen))))
    }

    /// Holds a data set or a point, until a moment or until it is released. A sweep that is published from now on finds the hold before
    /// it deletes anything; of one that is there already nobody can tell yet.
    pub fn hold(&self, by: Hand<'_>, what: &Held, until: Option<Timestamp>, why: &str) -> Result<Placed> {
        self.check_hand(&by, why)?;
        let (dataset, point) = match what {
            Held::Dataset(dataset) => (Some(dataset.clone()), None),
            Held::Point(point) => (None, Some(point.clone())),
        };
        let number = self.append(HOLDS, &by, |number| {
            let body = HoldBody {
                vault: self.id(),
                number,
                dataset: dataset.clone(),
                point: point.clone(),
                until: until.map(Moment::from),
                why: why.to_owned(),
                at: Timestamp::now().into(),
                releases: None,
            };
            Ok((HOLD_KIND, codec::encode(&body)?))
        })?;
        let (going, gone) = self.too_late_for(what)?;
        Ok(Placed { number, going, gone })
    }

    /// Of what a hold covers: points that are being deleted, and those that were.
    fn too_late_for(&self, what: &Held) -> Result<(Vec<String>, Vec<String>)> {
        if !self.obeys(Rule::HoldsTellOfSweeps) {
            return Ok((Vec::new(), Vec::new()));
        }
        let ledger = self.ledger()?;
        let mut going = Vec::new();
        if let Some((proposal, sweep)) = ledger.open.as_ref().and_then(|o| Some((&o.proposal, &o.sweep.as_ref()?.0)))
            && !sweep.abandoned
        {
            let goes = proposal.points.iter().filter(|point| !sweep.spared.contains(&point.snapshot));
            going.extend(
                goes.filter(|point| what.covers(&point.snapshot)).map(|point| id_of(&point.snapshot).to_owned()),
            );
        }
        let gone = match what {
            Held::Point(id) if !going.contains(id) && ledger.pruned.contains_key(&format!("{SNAPSHOTS}{id}")) => {
                vec![id.clone()]
            }
            _ => Vec::new(),
        };
        Ok((going, gone))
    }

    /// Ends a hold: its own signer's, or any by the owner.
    pub fn release_hold(&self, by: Hand<'_>, number: u64, why: &str) -> Result<()> {
        self.check_hand(&by, why)?;
        let Some(hold) = self.holds()?.0.into_iter().find(|hold| hold.number == number) else {
            let why = "there is no such hold; `lifeboat vault hold list` shows those that stand";
            return Err(VaultError::invalid(format!("hold {number}"), why));
        };
        let key = by.key()?.public();
        if key != hold.signer && key != self.roster().owner {
            let why = format!("{} put it there: only they, or the owner's key (--key), release it", hold.who);
            return Err(VaultError::Refused { what: format!("releasing hold {number}"), why });
        }
        self.append(HOLDS, &by, |next| {
            let body = HoldBody {
                vault: self.id(),
                number: next,
                dataset: None,
                point: None,
                until: None,
                why: why.to_owned(),
                at: Timestamp::now().into(),
                releases: Some(number),
            };
            Ok((HOLD_KIND, codec::encode(&body)?))
        })?;
        Ok(())
    }

    /// Who froze the vault, if it is frozen.
    pub fn frozen(&self) -> Result<(Option<Freeze>, Vec<Finding>)> {
        let mut findings = Vec::new();
        let mut frozen = None;
        let mut newest = 0;
        for (number, key) in self.numbered(FREEZES, &mut findings)? {
            newest = number;
            let read = self.read_freeze(number, &key);
            let Some((body, signer)) = note(read, &mut findings)? else { continue };
            frozen = body.frozen.then(|| Freeze {
                who: self.who(&signer).unwrap_or_default(),
                why: body.why,
                at: body.at.into(),
            });
        }
        if let Some(finding) = self.rolled_back(FREEZES, newest)? {
            findings.push(finding);
            let why = "a freeze or its release that was seen here is gone from the storage".to_owned();
            frozen = Some(Freeze { who: "nobody".to_owned(), why, at: Timestamp::now() });
        }
        Ok((frozen, findings))
    }

    fn read_freeze(&self, number: u64, key: &str) -> Result<(FreezeBody, PublicKey)> {
        let bytes = self.storage().get(key).doing(|| format!("reading {key}"))?;
        let (body, signed) = open_freeze(&self.roster(), number, key, &bytes)?;
        self.remember_head(FREEZES, number, signed.hash)?;
        Ok((body, signed.signer))
    }

    /// Stops pruning until the owner releases it.
    pub fn freeze(&self, by: Hand<'_>, why: &str) -> Result<()> {
        self.check_hand(&by, why)?;
        self.append_freeze(&by, true, why)
    }

    fn append_freeze(&self, by: &Hand<'_>, frozen: bool, why: &str) -> Result<()> {
        self.append(FREEZES, by, |number| {
            let at = Timestamp::now().into();
            let body = FreezeBody { vault: self.id(), number, frozen, why: why.to_owned(), at };
            Ok((FREEZE_KIND, codec::encode(&body)?))
        })?;
        Ok(())
    }

    pub(crate) fn check_hand(&self, by: &Hand<'_>, why: &str) -> Result<()> {
        self.refresh()?;
        if why.trim().is_empty() || why.len() > TEXT_BYTES_MAX {
            let wrong = format!("it must say why, in 1 to {TEXT_BYTES_MAX} bytes");
            return Err(VaultError::invalid("the reason", wrong));
        }
        let key = by.key()?.public();
        let roster = self.roster();
        match roster.member(&key) {
            _ if key == roster.owner => Ok(()),
            Some(member) if member.revoked.is_some() => Err(VaultError::Revoked { host: member.name.clone() }),
            Some(_) => Ok(()),
            None => {
                let host = match by {
                    Hand::Member(state) => state.host_name().to_owned(),
                    Hand::Owner(_) => "the owner".to_owned(),
                };
                Err(VaultError::NotEnrolled { host, fingerprint: key.fingerprint() })
            }
        }
    }

    /// Objects `PREFIX/NUMBER`, in order; what else lies there is a finding.
    fn numbered(&self, prefix: &str, findings: &mut Vec<Finding>) -> Result<Vec<(u64, String)>> {
        let mut found = Vec::new();
        let mut expected = 1;
        for object in self.storage().list(prefix).doing(|| format!("listing {prefix}"))? {
            let Some(number) = object.key.strip_prefix(prefix).and_then(name::parse_number) else { continue };
            for gap in expected..number.min(expected + 16) {
                findings
                    .push(Finding::missing(format!("{prefix}{}", name::number(gap)), "they are numbered without gaps"));
            }
            expected = number + 1;
            found.push((number, object.key));
        }
        Ok(found)
    }

    fn append(
        &self,
        prefix: &str,
        by: &Hand<'_>,
        body: impl Fn(u64) -> Result<(&'static str, Vec<u8>)>,
    ) -> Result<u64> {
        let remembered = self.remembered_head(prefix)?.map_or(0, |head| head.0);
        let listed = self.numbered(prefix, &mut Vec::new())?.last().map_or(0, |last| last.0);
        let mut number = listed.max(remembered) + 1;
        loop {
            let key = format!("{prefix}{}", name::number(number));
            let (kind, payload) = body(number)?;
            let bytes = Signed::seal(kind, &payload, by.key()?)?;
            match self.storage().put_if_absent(&key, &bytes).doing(|| format!("writing {key}"))? {
                Put::Created => {
                    self.remember_head(prefix, number, crate::crypt::hash(&bytes))?;
                    return Ok(number);
                }
                Put::Exists => number += 1,
            }
        }
    }
}

impl Unlocked {
    /// Lets pruning go on; only the owner's key does.
    pub fn release_freeze(&self, why: &str) -> Result<()> {
        let by = Hand::Owner(self);
        self.check_hand(&by, why)?;
        self.append_freeze(&by, false, why)
    }
}
