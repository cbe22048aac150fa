//! What has been pruned, and what is about to be, as every reader and writer of a vault must know it. Needs no key.
//!
//! Generations follow one another: the next begins when the one before is done. Invariant: a snapshot that no sweep looked at, and
//! whose writer did not know of the newest sweep, is not called sound until a later generation has looked at it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::codec::{Hash, Moment};
use crate::error::{Doing, Result, VaultError};
use crate::finding::{Finding, note};
use crate::name;
use crate::object::Place;
use crate::open::Vault;
use crate::prune::fold::{Fold, SparedPoint};
use crate::prune::record::{self, ChainHead, Done, LogCut, Proposal, Step, Sweep, Tier, Tombstone};
use crate::roster::Roster;
use crate::snapshot::{Snapshot, tombstone_key};
use crate::storage::Storage;

/// A generation that is not done yet, or the last one.
#[derive(Debug, Clone)]
pub(crate) struct Open {
    pub(crate) proposal: Arc<Proposal>,
    pub(crate) hash: Hash,
    pub(crate) sweep: Option<(Arc<Sweep>, Hash)>,
}

/// A point that went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone {
    pub(crate) hash: Hash,
    pub(crate) generation: u64,
    pub(crate) at: Moment,
}

/// A class of storage, and what lies in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Laid {
    pub(crate) place: String,
    pub(crate) class: String,
    pub(crate) thaw_seconds: u64,
    /// Packs, and their bytes.
    pub(crate) packs: HashMap<Hash, u64>,
    /// By the keys of snapshots: how many packs of it they need, and their bytes.
    pub(crate) points: HashMap<String, (u64, u64)>,
}

/// What of a recovery point lies in a class of storage that is not the ordinary one.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Archived {
    /// The slowest, where there are several.
    pub class: String,
    /// How long it takes until it can be read; 0: at once.
    pub thaw_seconds: u64,
    pub packs: u64,
    pub bytes: u64,
}

/// The records of all prunes, read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger {
    /// Keys it was read from: as long as those are there, it is not read again.
    keys: Vec<String>,
    /// The newest generation that was proposed; 0 where there never was one.
    pub(crate) newest: u64,
    /// The newest generation that was swept or is being swept.
    pub(crate) swept_generation: u64,
    pub(crate) last_sweep: Option<Hash>,
    /// The generation at work.
    pub(crate) open: Option<Open>,
    /// Keys of what was condemned and may go soon.
    pub(crate) condemned: HashSet<String>,
    /// Keys of what was deleted, or is being deleted.
    pub(crate) swept: HashSet<String>,
    /// Points that went, by the keys of their snapshots: what a sweep or a fold says needs no tombstone any more.
    pub(crate) pruned: HashMap<String, Gone>,
    /// The newest generation that a fold covers.
    pub(crate) folded: u64,
    pub(crate) log_floors: HashMap<String, LogCut>,
    /// Classes of storage that hold something, wherever.
    pub(crate) tiers: Vec<Laid>,
    /// Packs that are to be put into a class that must be thawed.
    cooling: HashSet<Hash>,
    /// What this storage calls itself, as far as classes go.
    place: Option<String>,
    /// Indexes of moved packs that must be there.
    pub(crate) moved_indexes: BTreeSet<String>,
    heads: HashMap<String, u64>,
    /// The newest generation that would have a snapshot pruned.
    proposed: HashMap<String, u64>,
    abandoned: BTreeSet<u64>,
    spared: HashMap<String, BTreeSet<u64>>,
    pub(crate) findings: Vec<Finding>,
}

impl Ledger {
    /// Whether nobody has looked since at what this snapshot references: its writer did not know of a sweep, and the sweep did not
    /// see the snapshot.
    pub(crate) fn is_unchecked(&self, snapshot: &Snapshot, of_each_host: bool) -> bool {
        let chain = name::snapshots_of(&snapshot.head.host, &snapshot.head.dataset);
        let seen = if of_each_host { self.heads.get(&chain) } else { self.heads.values().max() };
        snapshot.head.prune_generation < self.swept_generation && seen.is_none_or(|seen| *seen < snapshot.head.sequence)
    }

    /// Whether a tombstone stands for a point that is really pruned.
    pub(crate) fn counts(&self, tombstone: &Tombstone) -> bool {
        // One that an abandoned prune left serves the next that wants the same.
        let newest = self.proposed.get(&tombstone.snapshot).copied().unwrap_or(0).max(tombstone.generation);
        !self.abandoned.contains(&newest) && !self.spared.get(&tombstone.snapshot).is_some_and(|g| g.contains(&newest))
    }

    /// Whether a snapshot is a point although a tombstone stands under its number.
    pub(crate) fn stands_again(&self, snapshot: &str) -> bool {
        let newest = self.proposed.get(snapshot).copied().unwrap_or(0);
        self.abandoned.contains(&newest) || self.spared.get(snapshot).is_some_and(|g| g.contains(&newest))
    }

    /// Whether it is settled what this generation takes. Until then all of it may be taken back.
    pub(crate) fn is_decided(&self, generation: u64) -> bool {
        generation <= self.newest && self.undecided().is_none_or(|open| open.proposal.generation > generation)
    }

    /// The generation that was proposed and may be taken back.
    pub(crate) fn undecided(&self) -> Option<&Open> {
        self.open.as_ref().filter(|open| open.sweep.is_none())
    }

    /// Whether an object is gone because it was pruned.
    pub(crate) fn is_swept(&self, key: &str) -> bool {
        self.swept.contains(key)
    }

    /// Whether a writer must not build on this pack any more: it goes, or what would rest on it could not be restored at once.
    pub(crate) fn is_doomed(&self, pack: &Hash) -> bool {
        let key = name::pack(&pack.0);
        self.condemned.contains(&key) || self.swept.contains(&key) || self.cooling.contains(pack) || self.is_slow(pack)
    }

    /// The classes of this storage that hold something.
    pub(crate) fn tiers_here(&self) -> impl Iterator<Item = &Laid> {
        self.tiers.iter().filter(|laid| self.place.as_ref() == Some(&laid.place))
    }

    /// The class that a pack lies in, if it is not the ordinary one.
    pub(crate) fn laid(&self, pack: &Hash) -> Option<&Laid> {
        self.tiers_here().find(|laid| laid.packs.contains_key(pack))
    }

    /// Whether a pack must be thawed before it can be read.
    pub(crate) fn is_slow(&self, pack: &Hash) -> bool {
        self.laid(pack).is_some_and(|laid| laid.thaw_seconds > 0)
    }

    /// Whether any pack must be thawed before it can be read.
    pub(crate) fn has_slow(&self) -> bool {
        self.tiers_here().any(|laid| laid.thaw_seconds > 0 && !laid.packs.is_empty())
    }

    /// What of a point lies in a class that is not the ordinary one.
    pub(crate) fn archived(&self, snapshot: &str) -> Option<Archived> {
        let mut of_it: Vec<(&Laid, (u64, u64))> =
            self.tiers_here().filter_map(|laid| Some((laid, *laid.points.get(snapshot)?))).collect();
        of_it.sort_by_key(|(laid, _)| laid.thaw_seconds);
        let (slowest, _) = of_it.last()?;
        Some(Archived {
            class: slowest.class.clone(),
            thaw_seconds: slowest.thaw_seconds,
            packs: of_it.iter().map(|(_, (packs, _))| packs).sum(),
            bytes: of_it.iter().map(|(_, (_, bytes))| bytes).sum(),
        })
    }

    /// Indexes of moved packs that must be there and are not.
    pub(crate) fn missing_moved(&self, there: &HashSet<&str>) -> Vec<Finding> {
        let lost = self.moved_indexes.iter().filter(|key| !there.contains(key.as_str()) && !self.is_swept(key));
        lost.map(|key| Finding::missing(key, "it says where a prune has moved chunks to")).collect()
    }

    fn lay(&mut self, tiers: &[Tier]) {
        if !tiers.is_empty() {
            self.tiers.iter_mut().for_each(|laid| laid.points.clear());
        }
        for tier in tiers {
            let same = self.tiers.iter_mut().find(|laid| laid.place == tier.place && laid.class == tier.class);
            let points = tier.points.iter().map(|(snapshot, packs, bytes)| (snapshot.clone(), (*packs, *bytes)));
            match same {
                Some(laid) => {
                    laid.thaw_seconds = tier.thaw_seconds;
                    laid.packs.extend(tier.packs.iter().copied());
                    laid.points = points.collect();
                }
                None => self.tiers.push(Laid {
                    place: tier.place.clone(),
                    class: tier.class.clone(),
                    thaw_seconds: tier.thaw_seconds,
                    packs: tier.packs.iter().copied().collect(),
                    points: points.collect(),
                }),
            }
        }
    }

    /// Heads, abandoned generations and spared points, as a fold keeps them.
    pub(super) fn for_a_fold(&self) -> (Vec<ChainHead>, Vec<u64>, Vec<SparedPoint>) {
        let mut heads: Vec<ChainHead> =
            self.heads.iter().map(|(chain, number)| ChainHead { chain: chain.clone(), number: *number }).collect();
        heads.sort_by(|a, b| a.chain.cmp(&b.chain));
        let spared = self.spared.iter().map(|(snapshot, of)| (snapshot.clone(), of.iter().copied().collect()));
        let mut spared: Vec<SparedPoint> = spared.collect();
        spared.sort();
        (heads, self.abandoned.iter().copied().collect(), spared)
    }

    /// Begins with what a fold says of everything up to its generation.
    fn from_fold(fold: &Fold) -> Ledger {
        let mut ledger = Ledger {
            newest: fold.generation,
            swept_generation: fold.generation,
            folded: fold.generation,
            last_sweep: fold.last_sweep,
            swept: fold.swept().collect(),
            pruned: fold.pruned().collect(),
            abandoned: fold.abandoned.iter().copied().collect(),
            heads: fold.heads.iter().map(|head| (head.chain.clone(), head.number)).collect(),
            log_floors: fold.logs.iter().map(|cut| (cut.chain.clone(), cut.clone())).collect(),
            moved_indexes: fold.moved_indexes.iter().cloned().collect(),
            ..Ledger::default()
        };
        ledger.lay(&fold.tiers);
        for (snapshot, generations) in &fold.spared {
            ledger.proposed.insert(snapshot.clone(), generations.iter().copied().max().unwrap_or(0));
            ledger.spared.insert(snapshot.clone(), generations.iter().copied().collect());
        }
        let pruned: Vec<(String, u64)> =
            ledger.pruned.iter().map(|(key, gone)| (key.clone(), gone.generation)).collect();
        ledger.proposed.extend(pruned);
        ledger
    }

    fn add_proposal(&mut self, proposal: Proposal, hash: Hash) {
        self.newest = self.newest.max(proposal.generation);
        for head in &proposal.heads {
            let kept = self.heads.entry(head.chain.clone()).or_default();
            *kept = head.number.max(*kept);
        }
        let points = proposal.points.iter().map(|point| (point.snapshot.clone(), proposal.generation));
        self.proposed.extend(points);
        self.condemned = proposal.objects.iter().map(|o| o.key.clone()).collect();
        let slow =
            proposal.tiers.iter().filter(|tier| tier.thaw_seconds > 0 && Some(&tier.place) == self.place.as_ref());
        self.cooling = slow.flat_map(|tier| tier.packs.iter().map(|(hash, _)| *hash)).collect();
        self.moved_indexes = proposal.moved_indexes.iter().cloned().collect();
        self.open = Some(Open { proposal: Arc::new(proposal), hash, sweep: None });
    }

    fn add_sweep(&mut self, sweep: Sweep, hash: Hash) {
        self.swept_generation = self.swept_generation.max(sweep.generation);
        self.last_sweep = Some(hash);
        self.condemned.clear();
        self.cooling.clear();
        self.lay(&sweep.tiers);
        for head in &sweep.heads {
            let kept = self.heads.entry(head.chain.clone()).or_default();
            *kept = head.number.max(*kept);
        }
        self.swept.extend(sweep.objects.iter().map(|o| o.key.clone()));
        for cut in &sweep.logs {
            let kept = self.log_floors.entry(cut.chain.clone()).or_insert_with(|| cut.clone());
            if kept.below < cut.below {
                *kept = cut.clone();
            }
        }
        if let Some(open) = self.open.as_ref().filter(|_| !sweep.abandoned) {
            let gone = open.proposal.points.iter().filter(|point| !sweep.spared.contains(&point.snapshot));
            let gone = gone.map(|point| {
                let gone = Gone { hash: point.hash, generation: sweep.generation, at: sweep.at };
                (point.snapshot.clone(), gone)
            });
            self.pruned.extend(gone);
        }
        if sweep.abandoned {
            self.abandoned.insert(sweep.generation);
        }
        for snapshot in &sweep.spared {
            self.spared.entry(snapshot.clone()).or_default().insert(sweep.generation);
        }
        if let Some(open) = &mut self.open {
            open.sweep = Some((Arc::new(sweep), hash));
        }
    }

    fn add_done(&mut self, done: &Done) {
        let sweep = self.open.as_ref().and_then(|open| open.sweep.as_ref()).map(|(sweep, _)| sweep.clone());
        let put: HashSet<Hash> =
            sweep.iter().flat_map(|sweep| &sweep.tiers).flat_map(|tier| &tier.packs).map(|(hash, _)| *hash).collect();
        for key in &done.kept {
            self.swept.remove(key);
            // A point that was put on hold while it was decided on is there again.
            if self.pruned.remove(key).is_some() {
                self.spared.entry(key.clone()).or_default().insert(done.generation);
            }
            if let Some(hash) = crate::object::pack_hash(key).filter(|hash| put.contains(hash)) {
                for laid in &mut self.tiers {
                    laid.packs.remove(&hash);
                }
            }
        }
        self.open = None;
    }
}

impl Vault {
    /// The records of prunes, read again where there are new ones.
    pub(crate) fn ledger(&self) -> Result<Arc<Ledger>> {
        let listed = self.storage().list(record::PREFIX).doing(|| "listing prunes".to_owned())?;
        let keys: Vec<String> = listed.into_iter().map(|o| o.key).collect();
        let kept = self.ledger_cache().clone();
        if let Some(kept) = kept.filter(|kept| kept.keys == keys && kept.findings.is_empty()) {
            return Ok(kept);
        }
        let ledger = Arc::new(self.read_ledger(keys)?);
        *self.ledger_cache() = Some(ledger.clone());
        Ok(ledger)
    }

    fn read_ledger(&self, keys: Vec<String>) -> Result<Ledger> {
        let roster = self.roster();
        let mut steps: BTreeMap<(u64, Step), &String> =
            keys.iter().filter_map(|key| Some((record::parse_key(key)?, key))).collect();
        let (mut ledger, mut findings) = (Ledger::default(), Vec::new());
        for ((generation, _), key) in steps.iter().rev().filter(|((_, step), _)| *step == Step::Fold) {
            let bytes = self.storage().get(key).doing(|| format!("reading {key}"));
            let read = bytes.and_then(|bytes| Fold::open(&roster, *generation, &bytes));
            if let Some(fold) = note(read, &mut findings)? {
                ledger = Ledger::from_fold(&fold);
                break;
            }
        }
        ledger.findings = findings;
        let folded = ledger.folded;
        ledger.place = self.storage().class_place();
        steps.retain(|(generation, step), _| *generation > folded && *step != Step::Fold);
        if let Some((first, _)) = steps.keys().next()
            && *first > folded.saturating_add(1)
        {
            let key = record::key(first - 1, Step::Fold);
            let why = "it holds what the prunes before said, whose own records are gone";
            ledger.findings.push(Finding::missing(key, why));
        }
        let mut broken = None;
        for ((generation, step), key) in steps {
            let bytes = self.storage().get(key).doing(|| format!("reading {key}"));
            let mut findings = std::mem::take(&mut ledger.findings);
            let read = match step {
                Step::Proposal => bytes
                    .and_then(|bytes| Proposal::open(&roster, generation, &bytes))
                    .map(|(proposal, hash)| ledger.add_proposal(proposal, hash)),
                Step::Sweep => {
                    bytes.and_then(|bytes| Sweep::open(&roster, generation, &bytes)).and_then(|(sweep, hash)| {
                        match &ledger.open {
                            Some(open) if open.proposal.generation == generation && open.hash == sweep.proposal => {
                                ledger.add_sweep(sweep, hash);
                                Ok(())
                            }
                            _ => Err(VaultError::untrusted(key, "it is not the sweep of the proposal that is there")),
                        }
                    })
                }
                Step::Fold => Ok(()),
                Step::Done => bytes.and_then(|bytes| Done::open(&roster, generation, &bytes)).and_then(|done| {
                    let sweep = ledger.open.as_ref().and_then(|open| open.sweep.as_ref()).map(|s| s.1);
                    match sweep == Some(done.sweep) {
                        true => {
                            ledger.add_done(&done);
                            Ok(())
                        }
                        false => Err(VaultError::untrusted(key, "it is not about the sweep that is there")),
                    }
                }),
            };
            if note(read, &mut findings)?.is_none() {
                broken.get_or_insert(generation);
            }
            ledger.findings = findings;
        }
        self.check_ledger_against_memory(&mut ledger)?;
        ledger.keys = keys;
        Ok(ledger)
    }

    fn check_ledger_against_memory(&self, ledger: &mut Ledger) -> Result<()> {
        match self.remembered_head(record::PREFIX)? {
            Some((seen, _)) if seen > ledger.newest => {
                let error = VaultError::RolledBack {
                    object: record::PREFIX.to_owned(),
                    found: format!("generation {}", ledger.newest),
                    seen: format!("generation {seen}"),
                };
                ledger.findings.push(Finding::from(&error));
                Ok(())
            }
            // One that may be taken back is not taken along by copies: who goes on at a copy does not miss it.
            _ => match ledger.last_sweep {
                Some(sweep) => self.remember_head(record::PREFIX, ledger.swept_generation, sweep.0),
                None => Ok(()),
            },
        }
    }

    /// The tombstone that stands for a snapshot's number, where there is a right one that counts. It is read once.
    pub(crate) fn tombstone(
        &self,
        ledger: &Ledger,
        host: &str,
        dataset: &str,
        sequence: u64,
    ) -> Result<Option<Tombstone>> {
        let snapshot = format!("{}{}", name::snapshots_of(host, dataset), name::number(sequence));
        if let Some(Gone { hash, generation, at }) = ledger.pruned.get(&snapshot).copied() {
            return Ok(Some(Tombstone { vault: self.id(), snapshot, hash, at, generation }));
        }
        let key = tombstone_key(host, dataset, sequence);
        let kept = self.tombstones_cache().get(&key).cloned();
        let tombstone = match kept {
            Some(kept) => kept,
            None => match read_tombstone(&**self.storage(), &self.roster(), host, dataset, sequence)? {
                Some(read) => read,
                None => return Ok(None),
            },
        };
        self.tombstones_cache().insert(key, tombstone.clone());
        Ok(ledger.counts(&tombstone).then_some(tombstone))
    }
}

/// A point that was pruned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pruned {
    /// `HOST/DATASET/SEQUENCE`, as a point's.
    pub id: String,
    pub at: jiff::Timestamp,
}

impl Vault {
    /// Points that were pruned and are missed by nobody: swept, or with a tombstone that counts.
    pub fn pruned_points(&self) -> Result<Vec<Pruned>> {
        let ledger = self.ledger()?;
        let gone = |(key, gone): (&String, &Gone)| (key.trim_start_matches("snap/").to_owned(), gone.at.into());
        let mut pruned: BTreeMap<String, jiff::Timestamp> = ledger.pruned.iter().map(gone).collect();
        for object in self.storage().list("tombstone/").doing(|| "listing tombstones".to_owned())? {
            let Some(Place::Tombstone(host, dataset, number)) = Place::of(&object.key) else { continue };
            let stone = note(self.tombstone(&ledger, &host, &dataset, number), &mut Vec::new())?.flatten();
            let id = object.key.trim_start_matches("tombstone/").to_owned();
            pruned.extend(stone.map(|stone| (id, stone.at.into())));
        }
        Ok(pruned.into_iter().map(|(id, at)| Pruned { id, at }).collect())
    }
}

/// The tombstone under a snapshot's number, if a right one is there; whether it counts, the ledger says.
pub(crate) fn read_tombstone(
    storage: &dyn Storage,
    roster: &Roster,
    host: &str,
    dataset: &str,
    sequence: u64,
) -> Result<Option<Tombstone>> {
    let key = tombstone_key(host, dataset, sequence);
    let bytes = match storage.get(&key) {
        Err(e) if e.is_not_found() => return Ok(None),
        other => other.doing(|| format!("reading {key}"))?,
    };
    let snapshot = format!("{}{}", name::snapshots_of(host, dataset), name::number(sequence));
    Tombstone::open(roster, &key, &snapshot, &bytes).map(Some)
}
