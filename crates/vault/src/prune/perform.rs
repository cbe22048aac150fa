//! Doing what was proposed: tombstones, then, when its time has come and everything was looked at again, the sweep.
//!
//! Invariants: each step can be killed anywhere and is taken up again by any pruner; before each handful of deletions the freeze and the
//! newest points are looked at once more; a snapshot or index is deleted only while it is the one that was condemned.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;

use crate::codec::Hash;
use crate::error::{Doing, Result, VaultError};
use crate::finding::Finding;
use crate::log;
use crate::name;
use crate::prune::compact::MovePlan;
use crate::prune::ledger::Open;
use crate::prune::live::{self, Needed};
use crate::prune::propose::{Proposed, check_wish, heads, refuse_alarms};
use crate::prune::record::{self, Condemned, Done, LogCut, Proposal, PrunedPoint, Step, Sweep, Tombstone};
use crate::prune::{PruneOptions, Pruner, Rule};
use crate::snapshot::{Snapshot, verification_prefix};
use crate::storage::{Put, StorageError};

/// So many deletions between two looks at the freeze and at new points.
const DELETES_PER_LOOK: usize = 32;

/// A generation that is not done.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct OpenPrune {
    pub generation: u64,
    pub proposed_at: Timestamp,
    /// When its sweep is due.
    pub due: Timestamp,
    /// Whether deleting has begun.
    pub sweeping: bool,
    pub points: u64,
    pub bytes: u64,
    /// Packs that are to be put into another class of storage, and their bytes.
    pub archived_packs: u64,
    pub archived_bytes: u64,
    /// What stood in the way of something just now: a damaged pack that was not moved.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
}

/// What is not needed and could not be deleted, because the storage keeps it: a later prune takes it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LockedObject {
    pub key: String,
    /// Absent where the storage does not say.
    pub until: Option<Timestamp>,
}

/// What a sweep did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct SweepReport {
    pub generation: u64,
    pub objects: u64,
    pub bytes: u64,
    /// Packs that were put into another class of storage by this run, and their bytes.
    pub archived_packs: u64,
    pub archived_bytes: u64,
    /// What was condemned and stays: a point that came meanwhile needs it, or it was put on hold.
    pub kept: Vec<String>,
    /// What the storage did not let go of yet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub locked: Vec<LockedObject>,
    /// Packs that are damaged, and were not put away.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
}

/// How far a prune that was begun has come.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Swept {
    /// None was begun.
    Nothing,
    Waits(OpenPrune),
    Done(SweepReport),
}

impl Pruner {
    /// The generation that is not done, if there is one.
    pub fn open_prune(&self, options: &PruneOptions) -> Result<Option<OpenPrune>> {
        check_wish(options)?;
        let ledger = self.vault.ledger()?;
        let Some(open) = &ledger.open else { return Ok(None) };
        let key = record::key(open.proposal.generation, Step::Proposal);
        let listed = live::list(&self.vault, &key)?;
        let Some(proposed_at) = listed.first().and_then(|object| object.stored_at) else {
            return Err(VaultError::Refused {
                what: "pruning".to_owned(),
                why: format!("the storage does not say when it took in {key}"),
            });
        };
        Ok(Some(OpenPrune {
            generation: open.proposal.generation,
            proposed_at,
            due: proposed_at.checked_add(options.grace).unwrap_or(Timestamp::MAX),
            sweeping: open.sweep.is_some(),
            points: open.proposal.points.len() as u64,
            bytes: open.proposal.objects.iter().map(|object| object.bytes).sum(),
            archived_packs: open.proposal.tiers.iter().map(|tier| tier.packs.len() as u64).sum(),
            archived_bytes: open.proposal.tiers.iter().flat_map(|tier| &tier.packs).map(|(_, bytes)| bytes).sum(),
            findings: Vec::new(),
        }))
    }

    /// Stores the proposal and leaves the tombstones: from now on its points are pruned, and nothing is deleted yet.
    pub fn perform(&self, proposed: &Proposed, options: &PruneOptions) -> Result<OpenPrune> {
        self.check_thawed()?;
        self.storage_now(options.now())?;
        let mut proposal = proposed.proposal.clone();
        // Better now than in two days.
        for tier in &proposal.tiers {
            self.try_class(&tier.class)?;
        }
        // What takes the place of something is there, and was read back, before anything is condemned.
        for run in &proposed.runs {
            self.check_thawed()?;
            proposal.gathered.push(self.gather(run, proposal.generation)?);
        }
        if let Some(fold) = &proposed.fold {
            fold.publish(&**self.vault.storage(), self.key())?;
        }
        let findings = self.condemn_moved(&mut proposal, &proposed.moves)?;
        let generation = proposal.generation;
        let taken = || VaultError::Conflict {
            object: record::key(generation, Step::Proposal),
            why: "another pruner made a proposal".to_owned(),
        };
        let hash = proposal.publish(&**self.vault.storage(), self.key())?.ok_or_else(taken)?;
        self.leave_tombstones(&Open { proposal: Arc::new(proposal), hash, sweep: None })?;
        let open = self.open_prune(options)?.ok_or_else(taken)?;
        Ok(OpenPrune { findings, ..open })
    }

    /// Moves what is planned, and condemns what it was moved out of.
    fn condemn_moved(&self, proposal: &mut Proposal, plan: &MovePlan) -> Result<Vec<Finding>> {
        let moved = self.move_packs(plan, proposal.generation)?;
        if moved.packs.is_empty() {
            return Ok(moved.findings);
        }
        proposal.moved.extend(moved.packs.iter().map(|(hash, _)| *hash));
        proposal.moved_indexes.extend(moved.indexes);
        let packs =
            moved.packs.iter().map(|(hash, bytes)| Condemned { key: name::pack(&hash.0), bytes: *bytes, hash: None });
        proposal.objects.extend(packs);
        let goes: HashSet<String> = proposal.objects.iter().map(|object| object.key.clone()).collect();
        proposal.objects.extend(plan.idle_indexes(&goes));
        proposal.objects.sort();
        proposal.objects.dedup();
        let goes: HashSet<&String> = proposal.objects.iter().map(|object| &object.key).collect();
        proposal.moved_indexes.retain(|key| !goes.contains(key));
        Ok(moved.findings)
    }

    /// Goes on with a generation that is not done: does whatever is due, and says what waits.
    pub fn go_on(&self, options: &PruneOptions) -> Result<Swept> {
        let Some(waits) = self.open_prune(options)? else { return Ok(Swept::Nothing) };
        let ledger = self.vault.ledger()?;
        let Some(open) = ledger.open.clone() else { return Ok(Swept::Nothing) };
        self.check_thawed()?;
        let now = self.storage_now(options.now())?;
        if let Some((sweep, hash)) = open.sweep {
            return self.delete(&sweep, hash, &open.proposal, options).map(Swept::Done);
        }
        self.leave_tombstones(&open)?;
        if now < waits.due {
            return Ok(Swept::Waits(waits));
        }
        let sweep = self.look_again(&open, options, now)?;
        self.sweep(sweep, &open.proposal, options).map(Swept::Done)
    }

    /// Gives up a generation whose deletions have not begun: its points are there again.
    pub fn abandon(&self) -> Result<u64> {
        let ledger = self.vault.ledger()?;
        let Some(open) = ledger.open.clone().filter(|open| open.sweep.is_none()) else {
            let why = "there is none whose deletions have not begun";
            return Err(VaultError::invalid("the prune to be abandoned", why));
        };
        let sweep = Sweep {
            vault: self.vault.id(),
            generation: open.proposal.generation,
            proposal: open.hash,
            at: record::now(),
            abandoned: true,
            heads: Vec::new(),
            objects: Vec::new(),
            logs: Vec::new(),
            spared: Vec::new(),
            gathered: Vec::new(),
            tiers: Vec::new(),
        };
        Ok(self.sweep(sweep, &open.proposal, &PruneOptions::default())?.generation)
    }

    fn leave_tombstones(&self, open: &Open) -> Result<()> {
        let storage = self.vault.storage();
        for (place, point) in open.proposal.points.iter().enumerate() {
            if place % DELETES_PER_LOOK == 0 {
                self.check_thawed()?;
            }
            let key = tombstone_of(point);
            let stone = Tombstone {
                vault: self.vault.id(),
                snapshot: point.snapshot.clone(),
                hash: point.hash,
                at: record::now(),
                generation: open.proposal.generation,
            };
            let bytes = stone.seal(self.key())?;
            if storage.put_if_absent(&key, &bytes).doing(|| format!("writing {key}"))? == Put::Exists {
                let there = storage.get(&key).doing(|| format!("reading {key}"))?;
                let there = Tombstone::open(&self.vault.roster(), &key, &point.snapshot, &there);
                // One that an abandoned prune left will do; what is no right one stands for nothing.
                if there.is_ok_and(|there| there.hash == stone.hash) {
                    continue;
                }
                storage.put(&key, &bytes).doing(|| format!("writing {key}"))?;
            }
        }
        Ok(())
    }

    /// What may be deleted of what was condemned, now that its time has come.
    fn look_again(&self, open: &Open, options: &PruneOptions, now: Timestamp) -> Result<Sweep> {
        let proposal = &open.proposal;
        let (snapshots, findings) = self.vault.read_chains(None)?;
        refuse_alarms(&findings)?;
        let (spared, saved) = self.held_since(proposal, now)?;
        let survivors = || snapshots.iter().chain(&saved).map(|snapshot| &**snapshot);
        let first = snapshots.first().map(|snapshot| &snapshot.head.host);
        let every_host = self.vault.obeys(Rule::SweepLooksAtEveryHost);
        let looked_at = survivors().filter(|snapshot| every_host || Some(&snapshot.head.host) == first);
        let mut needed = Needed::of(&self.vault, &self.refs, looked_at)?;
        let looks = self.vault.obeys(Rule::SweepLooksAgain);
        if !proposal.tiers.is_empty() && looks {
            let (known, _) = self.known_points()?;
            let seen = |chain: &str| proposal.heads.iter().find(|head| head.chain == chain).map_or(0, |h| h.number);
            needed.mark_hot(&self.hot_again(&known, &seen, options, now)?);
        }
        let packs: HashSet<String> =
            proposal.objects.iter().map(|o| &o.key).filter(|key| key.starts_with("pack/")).cloned().collect();
        let (survey, mut rescued) = live::survey(&self.vault, &self.refs, &needed, &packs)?;
        if !survey.is_whole() {
            let lost = live::points_at_loss(&self.vault, &self.refs, &needed, &survey, survivors())?;
            return Err(live::at_loss(&lost));
        }
        if !looks {
            rescued.clear();
        }
        let goes: HashSet<String> = packs.difference(&rescued).cloned().collect();
        let points: Vec<&Snapshot> = survivors().collect();
        let tiers = self.tiers_again(&proposal.tiers, &points, &needed, &survey, &goes)?;
        let idle: HashSet<String> = live::idle_indexes(&survey, &goes).into_iter().map(|index| index.key).collect();
        let verified: Vec<String> = spared.iter().map(|key| verification_prefix(key)).collect();
        let may_go = |object: &&Condemned| match object.key.split('/').next() {
            Some("pack") => goes.contains(&object.key),
            Some("refs") => !looks || !needed.refs.contains(&object.key),
            Some("index") => idle.contains(&object.key),
            Some("snap") => !spared.contains(&object.key),
            Some("verify") => !verified.iter().any(|prefix| object.key.starts_with(prefix)),
            _ => true,
        };
        Ok(Sweep {
            vault: self.vault.id(),
            generation: proposal.generation,
            proposal: open.hash,
            at: record::now(),
            abandoned: false,
            heads: heads(survivors()),
            objects: proposal.objects.iter().filter(may_go).cloned().collect(),
            logs: self.cuts_again(proposal, &snapshots, &saved)?,
            spared,
            gathered: proposal.gathered.clone(),
            tiers,
        })
    }

    fn cuts_again(
        &self,
        proposal: &Proposal,
        snapshots: &[Arc<Snapshot>],
        saved: &[Arc<Snapshot>],
    ) -> Result<Vec<LogCut>> {
        let chain = |snapshot: &Arc<Snapshot>| {
            let position = snapshot.head.position.as_ref()?;
            Some(log::chain(&snapshot.head.dataset, &position.lineage, position.timeline))
        };
        let saved: HashSet<String> = saved.iter().filter_map(chain).collect();
        let seen = |chain: &str| proposal.heads.iter().find(|head| head.chain == chain).map_or(0, |head| head.number);
        let newer = snapshots.iter().filter_map(|snapshot| {
            let head = &snapshot.head;
            let is_new = head.sequence > seen(&name::snapshots_of(&head.host, &head.dataset));
            is_new.then_some((head.dataset.as_str(), head.position.as_ref()?))
        });
        self.cuts_that_stand(&proposal.logs, &saved, newer)
    }

    /// Points of the proposal that were put on hold since, and their snapshots.
    fn held_since(&self, proposal: &Proposal, now: Timestamp) -> Result<(Vec<String>, Vec<Arc<Snapshot>>)> {
        let (holds, findings) = self.vault.holds()?;
        refuse_alarms(&findings)?;
        let mut spared = (Vec::new(), Vec::new());
        for point in &proposal.points {
            let Some((host, dataset, sequence)) = place_of(&point.snapshot) else { continue };
            let id = point.snapshot.trim_start_matches("snap/");
            if holds.iter().any(|hold| !hold.has_ended(now) && hold.covers(id, &dataset)) {
                spared.0.push(point.snapshot.clone());
                spared.1.push(self.vault.read_snapshot(&host, &dataset, sequence)?);
            }
        }
        Ok(spared)
    }

    /// Says what goes, then deletes it. Where another pruner said so first, its word counts.
    fn sweep(&self, sweep: Sweep, proposal: &Proposal, options: &PruneOptions) -> Result<SweepReport> {
        match sweep.publish(&**self.vault.storage(), self.key())? {
            Some(hash) => self.delete(&sweep, hash, proposal, options),
            None => {
                let ledger = self.vault.ledger()?;
                let theirs = ledger.open.as_ref().filter(|open| open.proposal.generation == sweep.generation);
                match theirs.and_then(|open| open.sweep.clone()) {
                    Some((theirs, hash)) => self.delete(&theirs, hash, proposal, options),
                    None => Err(VaultError::Conflict {
                        object: record::key(sweep.generation, Step::Sweep),
                        why: "another pruner has done it".to_owned(),
                    }),
                }
            }
        }
    }

    fn delete(&self, sweep: &Sweep, hash: Hash, proposal: &Proposal, options: &PruneOptions) -> Result<SweepReport> {
        let storage = self.vault.storage();
        let (mut kept, mut gone, mut bytes, mut objects) = (HashSet::new(), HashSet::new(), 0, 0);
        let mut locked = Vec::new();
        for some in sweep.objects.chunks(DELETES_PER_LOOK) {
            self.check_thawed()?;
            kept.extend(self.needed_by_latecomers(sweep)?);
            kept.extend(self.held_late(sweep, proposal)?);
            for object in some.iter().filter(|object| !kept.contains(&object.key)) {
                if self.is_the_condemned(object)? {
                    match self.remove(&object.key)? {
                        Some(stays) => locked.push(stays),
                        None => (bytes, objects) = (bytes + object.bytes, objects + 1),
                    }
                }
                gone.insert(object.key.clone());
            }
        }
        let logs = self.delete_logs(&sweep.logs, &sweep.gathered)?;
        (objects, bytes) = (objects + logs.objects, bytes + logs.bytes);
        locked.extend(logs.locked);
        let away = self.put_away(&sweep.tiers, options, &|| self.needed_by_latecomers(sweep))?;
        let mut kept: Vec<String> = kept.difference(&gone).cloned().chain(away.kept).collect();
        kept.sort();
        kept.dedup();
        let done = Done {
            vault: self.vault.id(),
            generation: sweep.generation,
            sweep: hash,
            at: record::now(),
            kept: kept.clone(),
        };
        // Another pruner may have said so first.
        let _ = done.publish(&**storage, self.key())?;
        let swept: HashSet<&str> = sweep.objects.iter().map(|object| object.key.as_str()).collect();
        let rescued = proposal.objects.iter().filter(|object| !swept.contains(object.key.as_str()));
        kept.extend(rescued.map(|object| object.key.clone()));
        Ok(SweepReport {
            generation: sweep.generation,
            objects,
            bytes,
            archived_packs: away.packs,
            archived_bytes: away.bytes,
            kept,
            locked,
            findings: away.findings,
        })
    }

    /// Deletes, or gives what stays because it is locked. It counts as gone all the same: nothing builds on it, and the next proposal
    /// condemns it again.
    pub(super) fn remove(&self, key: &str) -> Result<Option<LockedObject>> {
        let storage = self.vault.storage();
        match storage.delete(key) {
            Err(StorageError::Locked { until, .. }) => {
                let until = until.or_else(|| Some(storage.lock_of(key).ok()??.until));
                Ok(Some(LockedObject { key: key.to_owned(), until }))
            }
            done => done.doing(|| format!("removing {key}")).map(|()| None),
        }
    }

    /// What a name says of packs, refs and keys their hash proves; of others it is looked at.
    fn is_the_condemned(&self, object: &Condemned) -> Result<bool> {
        let Some(hash) = object.hash else { return Ok(true) };
        match self.vault.storage().get(&object.key) {
            Err(e) if e.is_not_found() => Ok(false),
            other => Ok(crate::crypt::hash(&other.doing(|| format!("reading {}", object.key))?) == hash.0),
        }
    }

    /// A backup that did not know of the sweep may have committed after it was decided: what its point needs is left alone where it is
    /// still there. The point is suspect all the same, until the next generation has looked.
    fn needed_by_latecomers(&self, sweep: &Sweep) -> Result<HashSet<String>> {
        let (snapshots, _) = self.vault.read_chains(None)?;
        let seen = |chain: &str| sweep.heads.iter().find(|head| head.chain == chain).map_or(0, |head| head.number);
        let is_late = |snapshot: &&Arc<Snapshot>| {
            let chain = name::snapshots_of(&snapshot.head.host, &snapshot.head.dataset);
            snapshot.head.sequence > seen(&chain) && snapshot.head.prune_generation < sweep.generation
        };
        let late: Vec<&Arc<Snapshot>> = snapshots.iter().filter(is_late).collect();
        if late.is_empty() || sweep.abandoned || !self.vault.obeys(Rule::LooksWhileDeleting) {
            return Ok(HashSet::new());
        }
        let needed = Needed::of(&self.vault, &self.refs, late.iter().map(|snapshot| &***snapshot));
        let Ok(needed) = needed else {
            // It is past help; it stays suspect.
            return Ok(HashSet::new());
        };
        // A point that was to be restored at once must not find what it needs put away, either.
        let away = sweep.tiers.iter().flat_map(|tier| &tier.packs).map(|(hash, _)| name::pack(&hash.0));
        let goes: HashSet<String> = sweep.objects.iter().map(|object| object.key.clone()).chain(away).collect();
        Ok(self.still_there(&needed, &goes)?.1)
    }

    /// Whoever holds a point while a sweep is being decided on is not told that it comes too late: the point stays, if all of it is still
    /// there, and what it needs.
    fn held_late(&self, sweep: &Sweep, proposal: &Proposal) -> Result<HashSet<String>> {
        let mut kept = HashSet::new();
        if sweep.abandoned || !self.vault.obeys(Rule::HoldsAreLookedForAgain) {
            return Ok(kept);
        }
        let (holds, findings) = self.vault.holds()?;
        refuse_alarms(&findings)?;
        let goes: HashSet<String> = sweep.objects.iter().map(|object| object.key.clone()).collect();
        for point in proposal.points.iter().filter(|point| !sweep.spared.contains(&point.snapshot)) {
            let Some((host, dataset, sequence)) = place_of(&point.snapshot) else { continue };
            let id = point.snapshot.trim_start_matches("snap/");
            let is_held = holds.iter().any(|hold| !hold.has_ended(sweep.at.into()) && hold.covers(id, &dataset));
            let object = Condemned { key: point.snapshot.clone(), bytes: 0, hash: Some(point.hash) };
            if !is_held || !self.is_the_condemned(&object)? {
                continue;
            }
            let snapshot = self.vault.read_snapshot(&host, &dataset, sequence)?;
            let Ok(needed) = Needed::of(&self.vault, &self.refs, std::iter::once(&*snapshot)) else { continue };
            let (is_whole, needs) = self.still_there(&needed, &goes)?;
            if is_whole {
                let verified = verification_prefix(&point.snapshot);
                kept.extend(goes.iter().filter(|key| key.starts_with(&verified)).cloned());
                kept.insert(point.snapshot.clone());
                kept.extend(needs);
            }
        }
        Ok(kept)
    }

    /// Of what goes: what is needed, as far as it is still there; and whether that is all.
    fn still_there(&self, needed: &Needed, goes: &HashSet<String>) -> Result<(bool, HashSet<String>)> {
        let (survey, mut kept) = live::survey(&self.vault, &self.refs, needed, goes)?;
        kept.extend(needed.refs.iter().filter(|key| goes.contains(*key)).cloned());
        // What stays must be found again.
        let named = survey.indexes.iter().filter(|i| i.packs.iter().any(|hash| kept.contains(&name::pack(&hash.0))));
        let named: Vec<String> = named.map(|index| index.key.clone()).filter(|key| goes.contains(key)).collect();
        kept.extend(named);
        Ok((survey.is_whole(), kept))
    }
}

/// The tombstone of a point that goes.
fn tombstone_of(point: &PrunedPoint) -> String {
    point.snapshot.replacen("snap/", "tombstone/", 1)
}

fn place_of(snapshot: &str) -> Option<(String, String, u64)> {
    match snapshot.split('/').collect::<Vec<_>>()[..] {
        [_, host, dataset, number] => Some((name::decode(host)?, name::decode(dataset)?, name::parse_number(number)?)),
        _ => None,
    }
}
