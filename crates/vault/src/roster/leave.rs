//! Who leaves: a member's signatures count up to a point in each of its chains, and nowhere else.
//!
//! Invariant: what counts after a revocation was there before it, by the storage's word where a time is given; a host's own clock
//! decides nothing.

use jiff::{SignedDuration, Timestamp};

use crate::error::{Doing, Result, VaultError};
use crate::keys::{self, Pair};
use crate::log::LogEntry;
use crate::name;
use crate::open::Unlocked;
use crate::receipt::Receipts;
use crate::roster::{ChainFrom, Revocation, Role};
use crate::storage::Listed;

impl Unlocked {
    /// From now on nothing that this member signs counts; what it had written so far stays.
    pub fn revoke(&self, member_name: &str) -> Result<()> {
        self.revoke_since(member_name, None).map(|_| ())
    }

    /// The same; with a time, nothing counts that came since then by the storage's receipts or its own clock. Answers where each
    /// chain ends.
    pub fn revoke_since(&self, member_name: &str, since: Option<Timestamp>) -> Result<Vec<ChainFrom>> {
        self.refresh()?;
        let unknown =
            || VaultError::invalid(format!("member {member_name:?}"), "it is not on the roster, or revoked already");
        let roster = self.roster();
        let member =
            roster.members.iter().find(|m| m.name == member_name && m.revoked.is_none()).ok_or_else(unknown)?;
        let receipts = match since {
            Some(_) => Some(self.receipts()?),
            None => None,
        };
        let cut = Cut { since, receipts: receipts.as_ref() };
        let mut from = Vec::new();
        for dataset in &keys::datasets(&**self.storage())? {
            for chain in [name::snapshots_of(member_name, dataset), name::indexes_of(member_name, dataset)] {
                from.extend(cut.end_of(&chain, &self.listed(&chain)?)?);
            }
            for lineage in self.log_lineages(dataset)? {
                from.extend(self.end_of_log(&cut, dataset, &lineage, member_name)?);
            }
        }
        let is_pruner = member.roles.contains(&Role::Pruner);
        if is_pruner {
            let number = self.ledger()?.newest + 1;
            from.push(ChainFrom { chain: crate::prune::RECORDS.to_owned(), number });
        }
        let receipts_of = crate::receipt::chain(&member.key.fingerprint());
        from.extend(cut.end_of(&receipts_of, &self.listed(&receipts_of)?)?);
        self.change_roster(|roster| {
            let member = roster.members.iter_mut().find(|m| m.name == member_name && m.revoked.is_none());
            member.ok_or_else(unknown)?.revoked = Some(Revocation { from: from.clone() });
            Ok(())
        })?;
        if is_pruner {
            self.reseal(Pair::Refs)?;
        }
        Ok(from)
    }

    fn listed(&self, prefix: &str) -> Result<Vec<Listed>> {
        self.storage().list(prefix).doing(|| format!("listing {prefix}"))
    }

    /// Only what this member wrote, and what is whole, counts in a log.
    fn end_of_log(&self, cut: &Cut<'_>, dataset: &str, lineage: &str, member: &str) -> Result<Vec<ChainFrom>> {
        let entries = self.log_trail(dataset, lineage)?.entries;
        let listed = self.listed(&format!("log/{}/{}/", name::encode(dataset), name::encode(lineage)))?;
        let mut ends: std::collections::BTreeMap<u64, (u64, bool)> = std::collections::BTreeMap::new();
        for entry in entries.iter().filter(|entry| entry.host == member) {
            let (end, closed) = ends.entry(entry.timeline).or_insert((entry.number, false));
            *closed |= match listed.binary_search_by(|object| object.key.as_str().cmp(&entry.key)) {
                Ok(place) => listed.get(place).map_or(Ok(true), |object| cut.is_after(object))?,
                Err(_) => {
                    cut.is_gathered_after(&listed, &crate::log::chain(dataset, lineage, entry.timeline), entry)?
                }
            };
            if !*closed {
                *end = entry.number + 1;
            }
        }
        let chain =
            |(timeline, (number, _))| ChainFrom { chain: crate::log::chain(dataset, lineage, timeline), number };
        Ok(ends.into_iter().map(chain).collect())
    }
}

/// From when on nothing counts, and who says when an object came.
struct Cut<'a> {
    since: Option<Timestamp>,
    receipts: Option<&'a Receipts>,
}

impl Cut<'_> {
    fn is_after(&self, object: &Listed) -> Result<bool> {
        let Some(since) = self.since else { return Ok(false) };
        let received = self.receipts.and_then(|receipts| receipts.received_at(object, None));
        match received {
            Some((at, _)) => Ok(at >= since),
            None => Err(VaultError::invalid(
                format!("the time from which {} counts", object.key),
                "neither a receipt nor the storage says when it came; revoke without a time (what is there counts), or remove it first",
            )),
        }
    }

    /// An object that lies in a container only came, at the latest, a prune's grace before its container did.
    fn is_gathered_after(&self, listed: &[Listed], chain: &str, entry: &LogEntry) -> Result<bool> {
        let Some(since) = self.since else { return Ok(false) };
        let hash = crate::crypt::unhex(&entry.hash).unwrap_or_default();
        if let Some(at) = self.receipts.and_then(|receipts| receipts.received_bytes(&entry.key, &hash)) {
            return Ok(at >= since);
        }
        let holds = |object: &&Listed| {
            let span = object.key.strip_prefix(chain).and_then(crate::log::Span::parse);
            span.is_some_and(|span| span.holds(entry.number))
        };
        let gathered_at = listed.iter().find(holds).and_then(|object| object.stored_at);
        let grace = SignedDuration::from_hours(crate::prune::GRACE_HOURS_MIN);
        Ok(gathered_at.is_none_or(|at| at.checked_sub(grace).is_ok_and(|latest| latest >= since)))
    }

    /// The first number that does not count, in a chain of plain numbers; `None` for an empty one.
    fn end_of(&self, chain: &str, listed: &[Listed]) -> Result<Option<ChainFrom>> {
        let mut end = None;
        for object in listed {
            let Some(number) = object.key.strip_prefix(chain).and_then(name::parse_number) else { continue };
            if self.is_after(object)? {
                end.get_or_insert(number);
                break;
            }
            end = Some(number.saturating_add(1));
        }
        Ok(end.map(|number| ChainFrom { chain: chain.to_owned(), number }))
    }
}
