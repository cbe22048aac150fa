//! The records of many finished prunes in one, `prune/GENERATION/fold`: which points went, up to this generation, and what is gone.
//!
//! A prune a day leaves three records a day, and a tombstone for each point; whoever opens the vault for the first time reads them all.
//! A fold says the same in one object, signed by a pruner as they were; what it covers goes by a later proposal. Invariant: a fold
//! covers finished generations only, and nothing that it covers is deleted before it has been there for a grace.

use std::collections::{BTreeMap, HashSet};

use minicbor::{Decode, Encode};

use crate::codec::{self, Hash, Moment};
use crate::error::{Doing, Result, VaultError};
use crate::name;
use crate::prune::ledger::{Gone, Laid, Ledger};
use crate::prune::record::{self, ChainHead, LogCut, Step, Tier};
use crate::roster::Roster;
use crate::sign::{Signed, SigningKey};
use crate::storage::Storage;

pub(super) const KIND: &str = "vault.prune.fold";

/// Points of one chain that went: number, hash, in which generation.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
struct GoneOf {
    #[n(0)]
    chain: String,
    #[n(1)]
    points: Vec<(u64, Hash, u64)>,
}

/// Numbers of one chain, from and to.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
struct Ranges {
    #[n(0)]
    chain: String,
    #[n(1)]
    ranges: Vec<(u64, u64)>,
}

/// A snapshot's key, and the generations that spared it.
pub(super) type SparedPoint = (String, Vec<u64>);

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Fold {
    #[n(0)]
    vault: String,
    /// Every generation up to this one.
    #[n(1)]
    pub(super) generation: u64,
    #[n(2)]
    at: Moment,
    #[n(3)]
    pub(super) last_sweep: Option<Hash>,
    #[n(4)]
    pub(super) heads: Vec<ChainHead>,
    #[n(5)]
    pruned: Vec<GoneOf>,
    /// When each generation was swept.
    #[n(6)]
    times: Vec<(u64, Moment)>,
    /// Deleted packs that an index still names.
    #[n(7)]
    packs: Vec<Hash>,
    /// Deleted indexes: of hosts by their numbers, of pruners by their keys.
    #[n(8)]
    indexes: Vec<Ranges>,
    #[n(9)]
    moved: Vec<String>,
    #[n(10)]
    pub(super) logs: Vec<LogCut>,
    #[n(11)]
    pub(super) abandoned: Vec<u64>,
    #[n(12)]
    pub(super) spared: Vec<SparedPoint>,
    #[cbor(n(13), default)]
    pub(super) tiers: Vec<Tier>,
    #[cbor(n(14), default)]
    pub(super) moved_indexes: Vec<String>,
}

impl Fold {
    /// What a ledger without an open generation says; of packs only those that indexes still name.
    pub(super) fn of(vault: String, ledger: &Ledger, named: &HashSet<Hash>) -> Fold {
        let mut pruned: BTreeMap<&str, Vec<(u64, Hash, u64)>> = BTreeMap::new();
        let mut times = BTreeMap::new();
        for (snapshot, gone) in &ledger.pruned {
            times.insert(gone.generation, gone.at);
            if let Some((chain, number)) = split(snapshot) {
                pruned.entry(chain).or_default().push((number, gone.hash, gone.generation));
            }
        }
        let mut indexes: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        let (mut packs, mut moved) = (Vec::new(), Vec::new());
        for key in &ledger.swept {
            if let Some(digits) = key.strip_prefix("pack/") {
                let hash = digits.rsplit('/').next().and_then(crate::crypt::unhex).map(Hash);
                packs.extend(hash.filter(|hash| named.contains(hash)));
            } else if key.starts_with("index/") {
                match split(key) {
                    Some((chain, number)) => indexes.entry(chain).or_default().push(number),
                    None => moved.push(key.clone()),
                }
            }
        }
        packs.sort_unstable();
        moved.sort_unstable();
        let pruned = pruned.into_iter().map(|(chain, mut points)| {
            points.sort_unstable();
            GoneOf { chain: chain.to_owned(), points }
        });
        let ranges = |mut numbers: Vec<u64>| {
            numbers.sort_unstable();
            let mut ranges: Vec<(u64, u64)> = Vec::new();
            for number in numbers {
                match ranges.last_mut() {
                    Some((_, last)) if number <= last.saturating_add(1) => *last = number,
                    _ => ranges.push((number, number)),
                }
            }
            ranges
        };
        let indexes =
            indexes.into_iter().map(|(chain, numbers)| Ranges { chain: chain.to_owned(), ranges: ranges(numbers) });
        let mut logs: Vec<LogCut> = ledger.log_floors.values().cloned().collect();
        logs.sort_by(|a, b| a.chain.cmp(&b.chain));
        let (heads, abandoned, spared) = ledger.for_a_fold();
        Fold {
            vault,
            generation: ledger.newest,
            at: record::now(),
            last_sweep: ledger.last_sweep,
            heads,
            pruned: pruned.collect(),
            times: times.into_iter().collect(),
            packs,
            indexes: indexes.collect(),
            moved,
            logs,
            abandoned,
            spared,
            tiers: ledger.tiers.iter().map(|laid| tier_of(laid, ledger)).collect(),
            moved_indexes: ledger.moved_indexes.iter().cloned().collect(),
        }
    }

    pub(super) fn open(roster: &Roster, generation: u64, bytes: &[u8]) -> Result<Fold> {
        let key = record::key(generation, Step::Fold);
        let signed = Signed::open(KIND, &key, bytes)?;
        record::check_signer(roster, &key, &signed, generation)?;
        let fold: Fold = codec::decode(&key, &signed.payload)?;
        if fold.vault != roster.vault || fold.generation != generation {
            return Err(VaultError::untrusted(&key, "it belongs to another place"));
        }
        Ok(fold)
    }

    /// Stores it, unless another pruner did.
    pub(super) fn publish(&self, storage: &dyn Storage, signer: &SigningKey) -> Result<()> {
        let key = record::key(self.generation, Step::Fold);
        let bytes = Signed::seal(KIND, &codec::encode(self)?, signer)?;
        storage.put_if_absent(&key, &bytes).doing(|| format!("writing {key}")).map(|_| ())
    }

    /// Points that went, by the keys of their snapshots.
    pub(super) fn pruned(&self) -> impl Iterator<Item = (String, Gone)> + '_ {
        let times: BTreeMap<u64, Moment> = self.times.iter().copied().collect();
        self.pruned.iter().flat_map(move |of| {
            let times = times.clone();
            of.points.iter().map(move |(number, hash, generation)| {
                let at = times.get(generation).copied().unwrap_or(self.at);
                (format!("{}{}", of.chain, name::number(*number)), Gone { hash: *hash, generation: *generation, at })
            })
        })
    }

    /// Keys of what is gone, as far as anybody may still look for it.
    pub(super) fn swept(&self) -> impl Iterator<Item = String> + '_ {
        let packs = self.packs.iter().map(|hash| name::pack(&hash.0));
        let indexes = self.indexes.iter().flat_map(|of| {
            // A range of a hostile length is cut: no chain has so many.
            let numbers = of.ranges.iter().flat_map(|(from, to)| *from..=(*to).min(from.saturating_add(10_000_000)));
            numbers.map(|number| format!("{}{}", of.chain, name::number(number)))
        });
        packs.chain(indexes).chain(self.moved.iter().cloned())
    }
}

/// A class, with what is still there of it.
fn tier_of(laid: &Laid, ledger: &Ledger) -> Tier {
    let packs = laid.packs.iter().filter(|(hash, _)| !ledger.is_swept(&name::pack(&hash.0)));
    let points = laid.points.iter().filter(|(snapshot, _)| !ledger.pruned.contains_key(*snapshot));
    let mut packs: Vec<(Hash, u64)> = packs.map(|(hash, bytes)| (*hash, *bytes)).collect();
    let mut points: Vec<(String, u64, u64)> =
        points.map(|(snapshot, (packs, bytes))| (snapshot.clone(), *packs, *bytes)).collect();
    packs.sort_unstable();
    points.sort();
    Tier { place: laid.place.clone(), class: laid.class.clone(), thaw_seconds: laid.thaw_seconds, packs, points }
}

/// The chain and the number of a key.
fn split(key: &str) -> Option<(&str, u64)> {
    let (chain, number) = key.split_at(key.rfind('/')? + 1);
    Some((chain, name::parse_number(number)?))
}

/// The newest fold that is right.
pub(crate) fn newest(storage: &dyn Storage, roster: &Roster) -> Result<Option<Fold>> {
    let listed = storage.list(record::PREFIX).doing(|| "listing prunes".to_owned())?;
    let folds =
        listed.iter().rev().filter_map(|object| record::parse_key(&object.key).filter(|(_, s)| *s == Step::Fold));
    for (generation, step) in folds {
        let key = record::key(generation, step);
        let bytes = storage.get(&key).doing(|| format!("reading {key}"))?;
        if let Ok(fold) = Fold::open(roster, generation, &bytes) {
            return Ok(Some(fold));
        }
    }
    Ok(None)
}

impl Fold {
    /// Whether a record or a tombstone says nothing that this does not say.
    pub(crate) fn covers(&self, key: &str) -> bool {
        if let Some((generation, step)) = record::parse_key(key) {
            return generation < self.generation || (generation == self.generation && step != Step::Fold);
        }
        let Some((chain, number)) = split(key) else { return false };
        let Some(of) = chain.strip_prefix("tombstone/") else { return false };
        let pruned = self.pruned.iter().find(|gone| gone.chain.strip_prefix("snap/") == Some(of));
        pruned.is_some_and(|gone| gone.points.binary_search_by_key(&number, |point| point.0).is_ok())
    }
}
