//! What a prune would do: which points stay by which rule, which go, and what goes with them.
//!
//! Invariant: proposing changes nothing. A proposal is not made of a vault whose points are in doubt, nor while a point that is to be
//! kept could not be restored.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::codec::Hash;
use crate::error::{Doing, Result, VaultError};
use crate::finding::{Finding, Severity, note};
use crate::index;
use crate::keys::{self, Pair};
use crate::name;
use crate::prune::compact::MovePlan;
use crate::prune::fold::{self, Fold};
use crate::prune::keep::{Candidate, Limits, Why, decide};
use crate::prune::live::{self, Needed, PackUse, Survey};
use crate::prune::logs::{Base, Run};
use crate::prune::record::{self, ChainHead, Condemned, Proposal, PrunedPoint, Step};
use crate::prune::tiers::{self, TierPlan};
use crate::prune::{GRACE_HOURS_MIN, PruneOptions, Pruner};
use crate::receipt::TimeSource;
use crate::snapshot::{Badge, PointInfo, Snapshot, verification_prefix};
use crate::storage::Listed;

/// What is to become of a point.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct PointVerdict {
    pub id: String,
    pub dataset: String,
    pub host: String,
    pub taken_at: Timestamp,
    /// When the storage took it in, and who says so.
    pub received_at: Timestamp,
    pub received_by: TimeSource,
    pub badge: Badge,
    /// Empty where it goes.
    pub kept: Vec<Why>,
    /// Why it goes; absent where it stays.
    pub pruned: Option<String>,
}

/// A prune that was thought through and not done.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Proposed {
    pub generation: u64,
    pub points: Vec<PointVerdict>,
    /// Objects that go, points and packs among them.
    pub objects: u64,
    pub packs: u64,
    /// Bytes that the sweep frees.
    pub bytes: u64,
    /// What is unneeded already and spared: a backup at work may be about to need it.
    pub spared_bytes: u64,
    /// Bytes in packs that stay for the sake of others in them.
    pub waste_bytes: u64,
    /// Packs of which what is needed is moved into others, its bytes, and what that frees.
    pub moved_packs: u64,
    pub moved_bytes: u64,
    pub moved_frees: u64,
    /// Log objects that go because no point that stays needs them, and their bytes.
    pub log_objects: u64,
    pub log_bytes: u64,
    /// Log objects that are put together into `log_containers`.
    pub log_gathered: u64,
    pub log_containers: u64,
    /// Packs that are put into another class of storage, their bytes, the class, and how long thawing takes.
    pub archived_packs: u64,
    pub archived_bytes: u64,
    pub archive_class: Option<String>,
    pub archive_thaw_seconds: Option<u64>,
    pub findings: Vec<Finding>,
    #[serde(skip)]
    pub(super) proposal: Proposal,
    #[serde(skip)]
    pub(super) runs: Vec<Run>,
    #[serde(skip)]
    pub(super) moves: MovePlan,
    #[serde(skip)]
    pub(super) fold: Option<Fold>,
}

impl Proposed {
    pub fn is_empty(&self) -> bool {
        let Proposal { points, objects, logs, .. } = &self.proposal;
        let nothing_goes = points.is_empty() && objects.is_empty() && logs.is_empty();
        nothing_goes && self.runs.is_empty() && self.moves.packs == 0 && self.proposal.tiers.is_empty()
    }

    /// Whether it only puts away what stays.
    pub fn frees_nothing(&self) -> bool {
        self.bytes == 0 && self.moves.packs == 0 && self.proposal.logs.is_empty()
    }

    pub fn pruned(&self) -> impl Iterator<Item = &PointVerdict> {
        self.points.iter().filter(|point| point.pruned.is_some())
    }
}

/// A snapshot, and what is known of its coming.
pub(super) struct Known {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) info: PointInfo,
    pub(super) received: (Timestamp, TimeSource),
}

impl Known {
    /// What a log goes on from.
    fn base(&self) -> Option<Base<'_>> {
        let Known { info, received, .. } = self;
        Some(Base { dataset: &info.dataset, position: info.position.as_ref()?, received: received.0 })
    }
}

impl Pruner {
    /// Thinks a prune through. Writes nothing; by the pruner's own clock.
    pub fn propose(&self, options: &PruneOptions) -> Result<Proposed> {
        self.propose_at(options, options.now())
    }

    pub(super) fn propose_at(&self, options: &PruneOptions, now: Timestamp) -> Result<Proposed> {
        check_wish(options)?;
        let ledger = self.vault.ledger()?;
        if let Some(open) = &ledger.open {
            let why =
                format!("prune {} is not done yet; run `lifeboat vault prune` to go on", open.proposal.generation);
            return Err(VaultError::Refused { what: "a new proposal".to_owned(), why });
        }
        let (known, mut findings) = self.known_points()?;
        let (verdicts, kept) = self.judge(&known, options, now, &mut findings)?;
        let mut needed = Needed::of(&self.vault, &self.refs, kept.iter().map(|place| &*known[*place].snapshot))?;
        let archive = options.archive.as_ref().map(|rules| Ok((rules, self.class_place()?))).transpose()?;
        if let Some((rules, _)) = &archive {
            needed.mark_hot(&Needed::of(&self.vault, &self.refs, tiers::hot(&known, &verdicts, rules, now))?);
        }
        let needed = Arc::new(needed);
        let (survey, superseded) = self.survey_moved(&needed)?;
        findings.extend(survey.findings.iter().cloned());
        if !survey.is_whole() {
            let kept = kept.iter().map(|place| &*known[*place].snapshot);
            let lost = live::points_at_loss(&self.vault, &self.refs, &needed, &survey, kept)?;
            return Err(live::at_loss(&lost));
        }
        let lease = now.checked_sub(SignedDuration::from_hours(GRACE_HOURS_MIN)).unwrap_or(now);
        let mut objects = self.dead_points(&known, &verdicts)?;
        let (packs, spared_bytes) = self.dead_packs(&survey, &superseded, lease);
        let goes: HashSet<String> = packs.iter().map(|pack| pack.key.clone()).collect();
        let indexes = live::idle_indexes(&survey, &goes);
        let stored: HashMap<&str, Option<Timestamp>> =
            survey.indexes.iter().map(|index| (index.key.as_str(), index.stored_at)).collect();
        let is_old = |at: Option<Timestamp>| at.is_some_and(|at| at < lease);
        objects.extend(indexes.into_iter().filter(|i| is_old(stored.get(i.key.as_str()).copied().flatten())));
        objects.extend(self.dead_refs(&needed, lease)?);
        if self.is_owner() {
            objects.extend(self.dead_keys(lease)?);
        }
        objects.extend(self.folded_records(lease)?);
        objects.extend(self.vault.dead_witnesses(lease)?);
        let probes = live::list(&self.vault, "probe/")?.into_iter().filter(|object| is_old(object.stored_at));
        objects.extend(probes.map(|object| Condemned { key: object.key, bytes: object.size, hash: None }));
        let (pack_count, waste_bytes) = (packs.len() as u64, waste(&survey, &goes));
        objects.extend(packs);
        objects.sort();
        objects.dedup();
        let is_due = ledger.newest >= ledger.folded.saturating_add(options.fold_after.max(1));
        let named: HashSet<Hash> = survey.indexes.iter().flat_map(|index| index.packs.iter().copied()).collect();
        let fold = is_due.then(|| Fold::of(self.vault.id(), &ledger, &named));
        let moves = MovePlan::of((&options.moves, &ledger), needed, &survey, &goes, lease);
        let goes_away = |key: &str| goes.contains(key) || moves.takes(key);
        let away = archive.map(|(rules, place)| TierPlan::of((rules, &place), &survey, &ledger, &goes_away, lease));
        let away = away.unwrap_or_default();
        let condemned: HashSet<&str> = objects.iter().map(|object| object.key.as_str()).collect();
        let moved_indexes = survey.indexes.iter().filter(|index| index.moved.is_some()).map(|index| &index.key);
        let moved_indexes = moved_indexes.filter(|key| !condemned.contains(key.as_str())).cloned().collect();
        let bases: Vec<Base<'_>> = kept.iter().filter_map(|place| known[*place].base()).collect();
        let logs = self.plan_logs(&bases, &|dataset| options.log_window_of(dataset), now, lease)?;
        findings.extend(logs.findings);
        let points = known.iter().zip(&verdicts).filter_map(|(known, verdict)| {
            let why = verdict.pruned.clone()?;
            Some(PrunedPoint { snapshot: known.snapshot.key.clone(), hash: known.snapshot.hash, why })
        });
        let proposal = Proposal {
            vault: self.vault.id(),
            generation: ledger.newest + 1,
            previous: ledger.last_sweep,
            at: record::now(),
            rules: rules_in_words(&known, options),
            heads: heads(known.iter().map(|known| &*known.snapshot)),
            points: points.collect(),
            objects,
            logs: logs.cuts,
            moved: superseded.iter().filter(|hash| goes.contains(&name::pack(&hash.0))).copied().collect(),
            gathered: Vec::new(),
            tiers: away.tiers,
            moved_indexes,
        };
        let archives = proposal.tiers.first();
        Ok(Proposed {
            archived_packs: away.packs,
            archived_bytes: away.bytes,
            archive_class: archives.map(|tier| tier.class.clone()),
            archive_thaw_seconds: archives.map(|tier| tier.thaw_seconds),
            generation: proposal.generation,
            points: verdicts,
            objects: proposal.objects.len() as u64,
            packs: pack_count,
            bytes: proposal.objects.iter().map(|object| object.bytes).sum::<u64>() + logs.cut_bytes,
            spared_bytes,
            waste_bytes,
            moved_packs: moves.packs,
            moved_bytes: moves.live_bytes,
            moved_frees: moves.bytes.saturating_sub(moves.live_bytes),
            log_objects: logs.cut_objects,
            log_bytes: logs.cut_bytes,
            log_gathered: logs.run_objects,
            log_containers: logs.runs.len() as u64,
            findings,
            proposal,
            runs: logs.runs,
            moves,
            fold,
        })
    }

    /// Every point, with the time of its coming. Where something is wrong with the chains, nothing is pruned.
    pub(super) fn known_points(&self) -> Result<(Vec<Known>, Vec<Finding>)> {
        let points = self.vault.points(None)?;
        let receipts = self.vault.receipts()?;
        let mut findings = points.findings;
        findings.extend(receipts.findings().iter().cloned());
        refuse_alarms(&findings)?;
        let listed: HashMap<String, Listed> =
            live::list(&self.vault, "snap/")?.into_iter().map(|object| (object.key.clone(), object)).collect();
        let mut known = Vec::new();
        for info in points.points {
            let snapshot = self.vault.read_snapshot(&info.host, &info.dataset, info.sequence)?;
            let received = listed.get(&info.key).and_then(|o| receipts.received_at(o, Some(&snapshot.hash.0)));
            let Some(received) = received else {
                return Err(VaultError::Refused {
                    what: "pruning".to_owned(),
                    why: format!(
                        "neither the storage nor a receipt says when {} came, and nothing else is believed",
                        info.id
                    ),
                });
            };
            known.push(Known { snapshot, info, received });
        }
        Ok((known, findings))
    }

    /// For each point what becomes of it; and the places of those that stay.
    fn judge(
        &self,
        known: &[Known],
        options: &PruneOptions,
        now: Timestamp,
        findings: &mut Vec<Finding>,
    ) -> Result<(Vec<PointVerdict>, Vec<usize>)> {
        if let Some(stranger) = options.points.iter().find(|id| known.iter().all(|known| known.info.id != **id)) {
            let why = "there is no such point; `lifeboat points --json` lists their ids";
            return Err(VaultError::invalid(format!("point {stranger}"), why));
        }
        let (holds, hold_findings) = self.vault.holds()?;
        refuse_alarms(&hold_findings)?;
        findings.extend(hold_findings);
        if let Some(freeze) = self.vault.frozen()?.0 {
            let message = format!("the vault was frozen by {} ({}): nothing is pruned", freeze.who, freeze.why);
            findings.push(Finding::new(Severity::Warning, "frozen", "freeze/", message));
        }
        let held = |info: &PointInfo| {
            let hold = holds.iter().find(|hold| !hold.has_ended(now) && hold.covers(&info.id, &info.dataset));
            hold.map(|hold| format!("{} ({})", hold.why, hold.who))
        };
        let limits = Limits { now, min_age: options.min_age, by_claimed_time: options.by_claimed_time };
        let candidates: Vec<Candidate> = known
            .iter()
            .map(|Known { info, received, .. }| Candidate {
                group: match info.epoch {
                    0 => format!("{}\0{}", info.dataset, info.host),
                    _ => info.dataset.clone(),
                },
                chain: name::snapshots_of(&info.host, &info.dataset),
                sequence: info.sequence,
                received: received.0,
                claimed: info.stored_at,
                sound: matches!(info.badge, Badge::Verified | Badge::Unverified) && info.doubts.is_empty(),
                verified: info.badge == Badge::Verified,
                held: held(info),
                named: options.points.contains(&info.id),
                rules: options.rules_of(&info.dataset),
            })
            .collect();
        for (candidate, known) in candidates.iter().zip(known) {
            if candidate.is_displaced(&limits) && !candidate.named {
                findings.push(displaced(&known.info, known.received));
            }
        }
        let decided = decide(&candidates, &limits);
        let kept = (0..known.len()).filter(|place| !decided[*place].is_empty()).collect();
        let verdicts = known.iter().zip(candidates).zip(decided).map(|((known, candidate), kept)| PointVerdict {
            id: known.info.id.clone(),
            dataset: known.info.dataset.clone(),
            host: known.info.host.clone(),
            taken_at: known.info.taken_at,
            received_at: known.received.0,
            received_by: known.received.1,
            badge: known.info.badge,
            pruned: kept.is_empty().then(|| match candidate.named {
                true => "named on the command line".to_owned(),
                false => format!("no rule wants it (keep {})", candidate.rules.unwrap_or_default()),
            }),
            kept,
        });
        Ok((verdicts.collect(), kept))
    }

    /// The objects of points that go, and of those that should have gone before.
    fn dead_points(&self, known: &[Known], verdicts: &[PointVerdict]) -> Result<Vec<Condemned>> {
        let ledger = self.vault.ledger()?;
        let listed = live::list(&self.vault, "snap/")?;
        let stones: HashSet<String> = live::list(&self.vault, "tombstone/")?.into_iter().map(|o| o.key).collect();
        let goes: HashMap<&str, &Known> = known
            .iter()
            .zip(verdicts)
            .filter(|(_, verdict)| verdict.pruned.is_some())
            .map(|(known, _)| (known.snapshot.key.as_str(), known))
            .collect();
        let alive: HashSet<&str> = known.iter().map(|known| known.snapshot.key.as_str()).collect();
        let verified = live::list(&self.vault, "verify/")?;
        let mut dead = Vec::new();
        for object in listed {
            let hash = match goes.get(object.key.as_str()) {
                Some(known) => Some(known.snapshot.hash),
                // Left over, or put where a pruned one had stood.
                None if !alive.contains(object.key.as_str())
                    && (stones.contains(&object.key.replacen("snap/", "tombstone/", 1))
                        || ledger.pruned.contains_key(&object.key)) =>
                {
                    let bytes = self.vault.storage().get(&object.key).doing(|| format!("reading {}", object.key))?;
                    Some(crate::codec::Hash(crate::crypt::hash(&bytes)))
                }
                None => continue,
            };
            let prefix = verification_prefix(&object.key);
            let of_it = verified.iter().filter(|o| o.key.starts_with(&prefix));
            dead.extend(of_it.map(|o| Condemned { key: o.key.clone(), bytes: o.size, hash: None }));
            dead.push(Condemned { key: object.key, bytes: object.size, hash });
        }
        Ok(dead)
    }

    /// Everything there is; and the packs of which all that is needed was moved elsewhere, or that were given up because they are bad and
    /// lies elsewhere as well.
    pub(super) fn survey_moved(&self, needed: &Needed) -> Result<(Survey, BTreeSet<Hash>)> {
        let mut from: BTreeSet<Hash> = self.vault.given_up(&mut Vec::new())?.into_iter().collect();
        for object in live::list(&self.vault, "index/")? {
            let Some((host, dataset, of)) = index::parse_moved_key(&object.key) else { continue };
            let read = index::read_moved(&**self.vault.storage(), &self.vault.roster(), &host, &dataset, of);
            from.extend(note(read, &mut Vec::new())?.into_iter().flat_map(|moved| moved.head.from));
        }
        let doomed: HashSet<String> = from.iter().map(|hash| name::pack(&hash.0)).collect();
        let (survey, rescued) = live::survey(&self.vault, &self.refs, needed, &doomed)?;
        from.retain(|hash| !rescued.contains(&name::pack(&hash.0)));
        Ok((survey, from))
    }

    /// Packs that nothing kept needs and no backup at work may be about to need; and the bytes of those that one may.
    fn dead_packs(&self, survey: &Survey, superseded: &BTreeSet<Hash>, lease: Timestamp) -> (Vec<Condemned>, u64) {
        let mut spared = 0;
        let mut dead = Vec::new();
        let superseded: HashSet<String> = superseded.iter().map(|hash| name::pack(&hash.0)).collect();
        let is_dead = |key: &String, pack: &PackUse| pack.live_bytes == 0 || superseded.contains(key);
        for (key, pack) in survey.packs.iter().filter(|(key, pack)| is_dead(key, pack)) {
            let is_old = pack.touched.is_some_and(|at| at < lease);
            match is_old {
                true => dead.push(Condemned { key: key.clone(), bytes: pack.bytes, hash: None }),
                false => spared += pack.bytes,
            }
        }
        (dead, spared)
    }

    /// Records and tombstones that a fold has been saying for long enough.
    fn folded_records(&self, lease: Timestamp) -> Result<Vec<Condemned>> {
        let Some(fold) = fold::newest(&**self.vault.storage(), &self.vault.roster())? else { return Ok(Vec::new()) };
        let records = live::list(&self.vault, record::PREFIX)?;
        let own = record::key(fold.generation, Step::Fold);
        let is_old = |object: &&Listed| object.stored_at.is_some_and(|at| at < lease);
        if records.iter().find(|object| object.key == own).filter(is_old).is_none() {
            return Ok(Vec::new());
        }
        let tombstones = live::list(&self.vault, "tombstone/")?;
        let covered = records.into_iter().chain(tombstones).filter(|object| fold.covers(&object.key));
        Ok(covered.map(|object| Condemned { key: object.key, bytes: object.size, hash: None }).collect())
    }

    fn dead_refs(&self, needed: &Needed, lease: Timestamp) -> Result<Vec<Condemned>> {
        let is_dead = |object: &Listed| {
            let is_old = object.stored_at.is_some_and(|at| at < lease);
            is_old && !needed.refs.contains(&object.key)
        };
        let dead = live::list(&self.vault, "refs/")?.into_iter().filter(is_dead);
        Ok(dead.map(|object| Condemned { key: object.key, bytes: object.size, hash: None }).collect())
    }

    /// Private halves that no newest statement names: a change of recipients was interrupted before it removed them.
    fn dead_keys(&self, lease: Timestamp) -> Result<Vec<Condemned>> {
        let storage = self.vault.storage();
        let roster = self.vault.roster();
        let datasets = keys::datasets(&**storage)?;
        let pairs = [Pair::Owner, Pair::Refs].into_iter().chain(datasets.iter().map(|d| Pair::Content(d)));
        let mut dead = Vec::new();
        for pair in pairs {
            let Some(stated) = keys::stated(&**storage, &roster, pair)? else { continue };
            self.vault.check_stated(pair, &stated)?;
            for object in live::list(&self.vault, &pair.prefix())? {
                let is_old = object.stored_at.is_some_and(|at| at < lease);
                if object.key.ends_with(".age") && object.key != stated.file_key() && is_old {
                    dead.push(Condemned { key: object.key, bytes: object.size, hash: None });
                }
            }
        }
        Ok(dead)
    }
}

/// Whatever is asked for: a backup at work has its time.
pub(super) fn check_wish(options: &PruneOptions) -> Result<()> {
    if options.grace < SignedDuration::from_hours(GRACE_HOURS_MIN) {
        let why = format!("a backup at work may need what is condemned for {GRACE_HOURS_MIN} hours; it cannot be less");
        return Err(VaultError::invalid("the time that what is condemned waits", why));
    }
    Ok(())
}

/// Nothing is pruned while something is lost, forged or rolled back: what looks unneeded may be what is left.
pub(super) fn refuse_alarms(findings: &[Finding]) -> Result<()> {
    let alarms: Vec<&str> =
        findings.iter().filter(|f| f.severity == Severity::Alarm).map(|f| f.object.as_str()).take(5).collect();
    if alarms.is_empty() {
        return Ok(());
    }
    Err(VaultError::Refused {
        what: "pruning".to_owned(),
        why: format!(
            "something is wrong with the vault ({}); nothing was deleted. Run `lifeboat vault check` and set it right first",
            alarms.join(", ")
        ),
    })
}

fn displaced(info: &PointInfo, received: (Timestamp, TimeSource)) -> Finding {
    let how = match received.1 {
        TimeSource::Receipt => "its receipt says",
        TimeSource::Listing => "the storage took it in at",
    };
    let message = format!(
        "{} claims to be of {}, {how} {}: its host's clock was wrong or forged, or the vault was copied; it counts for no rule and is kept \
         (--by-claimed-time believes such times, --point prunes it by name)",
        info.id, info.stored_at, received.0
    );
    Finding::new(Severity::Warning, "time-not-believed", &info.key, message)
}

fn rules_in_words(known: &[Known], options: &PruneOptions) -> Vec<String> {
    let rules: BTreeMap<&str, String> = known
        .iter()
        .map(|known| known.info.dataset.as_str())
        .map(|dataset| (dataset, options.rules_of(dataset).unwrap_or_default().to_string()))
        .collect();
    rules.into_iter().map(|(dataset, rules)| format!("{dataset}: keep {rules}")).collect()
}

/// How far each chain goes.
pub(super) fn heads<'a>(snapshots: impl Iterator<Item = &'a Snapshot>) -> Vec<ChainHead> {
    let mut heads: BTreeMap<String, u64> = BTreeMap::new();
    for snapshot in snapshots {
        let head = heads.entry(name::snapshots_of(&snapshot.head.host, &snapshot.head.dataset)).or_default();
        *head = snapshot.head.sequence.max(*head);
    }
    heads.into_iter().map(|(chain, number)| ChainHead { chain, number }).collect()
}

fn waste(survey: &Survey, goes: &HashSet<String>) -> u64 {
    let stays = survey.packs.iter().filter(|(key, pack)| !goes.contains(*key) && pack.live_bytes > 0);
    stays.map(|(_, pack)| pack.bytes.saturating_sub(pack.live_bytes)).sum()
}
