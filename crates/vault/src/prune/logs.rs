//! What becomes of logs: how far back each reaches, and which runs of small old objects are put into one.
//!
//! A log is needed from the position of the oldest kept point in it; with a window, from the newest kept point that is older than the
//! window. Its last object always stays: whoever wrote it goes on from there. Invariants: nothing is cut or gathered of a log in which
//! something is missing or wrong, nor what came less than a lease ago; every object's signature and place in its chain was checked,
//! so that a host cannot have more cut than its points let go of; a run goes only while its container is the one that was read back.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};

use crate::codec::Hash;
use crate::error::{Doing, Result, VaultError};
use crate::finding::Finding;
use crate::log::{self, LogEntry, Span};
use crate::name;
use crate::object::{self, Place};
use crate::prune::live;
use crate::prune::record::{GatheredRun, LogCut};
use crate::prune::{LockedObject, Pruner, Rule};
use crate::snapshot::Position;
use crate::storage::Put;

/// Fewer are not worth a container, unless nothing follows them.
const RUN_OBJECTS_MIN: u64 = 64;
/// Larger ones stay alone.
const SMALL_BYTES_MAX: u64 = 1 << 20;
const THREADS_MAX: usize = 8;
/// So many objects between two looks at the freeze.
const PER_LOOK: usize = 1024;

/// A point that stays, as far as logs need to know.
pub(super) struct Base<'a> {
    pub(super) dataset: &'a str,
    pub(super) position: &'a Position,
    pub(super) received: Timestamp,
}

/// A run that is to be put into one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    dataset: String,
    lineage: String,
    timeline: u64,
    span: Span,
    hashes: Vec<Hash>,
}

/// What was deleted, and what could not be.
#[derive(Debug, Default)]
pub(super) struct Deleted {
    pub(super) objects: u64,
    pub(super) bytes: u64,
    pub(super) locked: Vec<LockedObject>,
}

/// What is to be done about logs.
#[derive(Debug, Default)]
pub(super) struct LogPlan {
    pub(super) cuts: Vec<LogCut>,
    /// Objects that the cuts take, and their bytes.
    pub(super) cut_objects: u64,
    pub(super) cut_bytes: u64,
    pub(super) runs: Vec<Run>,
    pub(super) run_objects: u64,
    pub(super) findings: Vec<Finding>,
}

/// One object of a timeline, as it is listed.
struct Lying {
    bytes: u64,
    stored_at: Option<Timestamp>,
}

/// One timeline, as it is listed.
#[derive(Default)]
struct Row {
    singles: BTreeMap<u64, Lying>,
    spans: BTreeMap<Span, Lying>,
}

impl Row {
    fn newest(&self) -> Option<Timestamp> {
        self.singles.values().chain(self.spans.values()).filter_map(|lying| lying.stored_at).max()
    }

    fn is_old(&self, number: u64, lease: Timestamp) -> bool {
        match self.singles.get(&number) {
            Some(single) => single.stored_at.is_some_and(|at| at < lease),
            // What is gathered was old then.
            None => true,
        }
    }

    /// What a cut takes.
    fn below(&self, number: u64) -> impl Iterator<Item = &Lying> {
        let singles = self.singles.range(..number).map(|(_, lying)| lying);
        let spans = self.spans.iter().filter(move |(span, _)| span.last < number).map(|(_, lying)| lying);
        singles.chain(spans)
    }
}

/// Timelines by data set, lineage and number.
type Rows = BTreeMap<(String, String), BTreeMap<u64, Row>>;

impl Pruner {
    /// Walks through every log and says what is to be done about it. `window`: how far back each data set's log must reach, if not to its oldest
    /// point.
    pub(super) fn plan_logs(
        &self,
        bases: &[Base<'_>],
        window: &dyn Fn(&str) -> Option<SignedDuration>,
        now: Timestamp,
        lease: Timestamp,
    ) -> Result<LogPlan> {
        let mut plan = LogPlan::default();
        for ((dataset, lineage), mut rows) in self.list_logs()? {
            // One that is gone altogether is missed, too.
            for timeline in self.vault.known_timelines(&dataset, &lineage)? {
                rows.entry(timeline).or_default();
            }
            let begin = window(&dataset).map(|window| now.checked_sub(window).unwrap_or(Timestamp::MIN));
            let mut of_lineage = LogPlan::default();
            for (timeline, row) in &rows {
                let of_it = |base: &&Base<'_>| {
                    base.dataset == dataset && base.position.lineage == lineage && base.position.timeline == *timeline
                };
                let counter = reaches_back_to(bases.iter().filter(of_it), begin);
                let over = begin.is_some_and(|begin| row.newest().is_some_and(|newest| newest < begin));
                let needed_from = counter.filter(|_| !over && self.vault.obeys(Rule::CutsStopAtPoints));
                self.plan_timeline((&dataset, &lineage, *timeline), row, needed_from, lease, &mut of_lineage)?;
            }
            match of_lineage.findings.is_empty() {
                true => plan.add(of_lineage),
                // Of a log in which something is wrong nothing goes.
                false => plan.findings.extend(of_lineage.findings),
            }
        }
        Ok(plan)
    }

    /// Walks through one timeline, and keeps of it no more than what is to be gathered.
    fn plan_timeline(
        &self,
        of: (&str, &str, u64),
        row: &Row,
        needed_from: Option<u64>,
        lease: Timestamp,
        plan: &mut LogPlan,
    ) -> Result<()> {
        let look = || -> Result<(Sight<'_>, Option<Finding>)> {
            let mut sight = Sight::new(of, row, needed_from, lease);
            let wrong = self.vault.walk_log(of, &mut |entry| sight.take(entry))?;
            Ok((sight, wrong))
        };
        let (sight, wrong) = match look()? {
            // Gathered since it was listed, perhaps.
            (_, Some(missing)) if missing.code == "missing" => look()?,
            seen => seen,
        };
        if let Some(wrong) = wrong {
            plan.findings.push(wrong);
            return Ok(());
        }
        let Some(Seen { first, below, before, runs }) = sight.end() else { return Ok(()) };
        if row.below(below).next().is_some() {
            let chain = log::chain(of.0, of.1, of.2);
            let last = match below > first {
                true => before,
                // Cut before, elsewhere: this is a copy that was made when it was still there.
                false => self.vault.ledger()?.log_floors.get(&chain).and_then(|floor| floor.last),
            };
            plan.cut(LogCut { chain, below, last }, row);
        }
        plan.run_objects += runs.iter().map(|run| run.hashes.len() as u64).sum::<u64>();
        plan.runs.extend(runs);
        Ok(())
    }

    fn list_logs(&self) -> Result<Rows> {
        let mut rows = Rows::new();
        for object in live::list(&self.vault, "log/")? {
            let lying = Lying { bytes: object.size, stored_at: object.stored_at };
            match Place::of(&object.key) {
                Some(Place::Log { dataset, lineage, timeline, number }) => {
                    let row = rows.entry((dataset, lineage)).or_default().entry(timeline).or_default();
                    row.singles.insert(number, lying);
                }
                Some(Place::GatheredLog { dataset, lineage, timeline, span }) => {
                    let row = rows.entry((dataset, lineage)).or_default().entry(timeline).or_default();
                    row.spans.insert(span, lying);
                }
                _ => {}
            }
        }
        Ok(rows)
    }

    /// Puts a run into its container, and reads it back. Changes nothing for anybody who reads.
    pub(super) fn gather(&self, run: &Run, generation: u64) -> Result<GatheredRun> {
        let storage = self.vault.storage();
        let chain = log::chain(&run.dataset, &run.lineage, run.timeline);
        let key = run.span.key(&chain);
        let links: Vec<(u64, &Hash)> = (run.span.first..).zip(&run.hashes).collect();
        let room = AtomicU64::new(log::CONTAINER_BYTES + SMALL_BYTES_MAX);
        let objects = side_by_side(storage.parallel_writes(), &links, |(number, hash)| {
            let key = name::log_object(&run.dataset, &run.lineage, run.timeline, *number);
            let bytes = storage.get(&key).doing(|| format!("reading {key}"))?;
            // The run was measured by the listing, which is the storage's word.
            let fits = |room: u64| room.checked_sub(bytes.len() as u64);
            if room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_err() {
                return Err(VaultError::damaged(key, "it holds more bytes than the storage's listing says"));
            }
            match crate::crypt::hash(&bytes) == hash.0 {
                true => Ok(bytes),
                false => Err(VaultError::untrusted(key, "it was replaced since it was first read")),
            }
        })?;
        let place = (self.vault.id(), run.dataset.as_str(), run.lineage.as_str(), run.timeline);
        let place = (place.0.as_str(), place.1, place.2, place.3);
        let sealed = log::seal_gathered(place, run.span, generation, objects, self.key())?;
        if storage.put_if_absent(&key, &sealed).doing(|| format!("writing {key}"))? == Put::Exists {
            let there = storage.get(&key).doing(|| format!("reading {key}"))?;
            let place = Place::of(&key).ok_or_else(|| VaultError::damaged(&key, "it has no place"))?;
            let holds_the_same =
                object::check(&self.vault.roster(), &key, &place, &there).is_ok() && self.holds(&there, run)?;
            if !holds_the_same {
                storage.put(&key, &sealed).doing(|| format!("writing {key}"))?;
            }
        }
        let back = storage.get(&key).doing(|| format!("reading {key} again"))?;
        match self.holds(&back, run)? {
            true => Ok(GatheredRun {
                chain,
                first: run.span.first,
                last: run.span.last,
                hash: Hash(crate::crypt::hash(&back)),
            }),
            false => Err(VaultError::damaged(key, "it does not hold what was just written into it")),
        }
    }

    /// Whether a container holds these very objects.
    fn holds(&self, bytes: &[u8], run: &Run) -> Result<bool> {
        let hashes = log::hashes_in(&self.vault.roster(), (&run.dataset, &run.lineage, run.timeline), run.span, bytes);
        match hashes {
            Ok(hashes) => Ok(hashes == run.hashes),
            Err(VaultError::Damaged { .. } | VaultError::Untrusted { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Which cuts still stand, when everything is looked at again: not where a point was put on hold in that log, nor where one came since
    /// that the rest would not lead on from.
    pub(super) fn cuts_that_stand<'a>(
        &self,
        cuts: &[LogCut],
        saved: &HashSet<String>,
        newer: impl Iterator<Item = (&'a str, &'a Position)>,
    ) -> Result<Vec<LogCut>> {
        let mut lowest: BTreeMap<String, u64> = BTreeMap::new();
        for (dataset, position) in newer {
            let chain = log::chain(dataset, &position.lineage, position.timeline);
            let counter = lowest.entry(chain).or_insert(position.counter);
            *counter = position.counter.min(*counter);
        }
        let mut stand = Vec::new();
        for cut in cuts.iter().filter(|cut| !saved.contains(&cut.chain)) {
            let joins = match lowest.get(&cut.chain) {
                Some(counter) => self.first_at(cut)?.is_some_and(|entry| {
                    entry.last <= *counter || (!entry.mark && entry.first <= counter.saturating_add(1))
                }),
                None => true,
            };
            if joins {
                stand.push(cut.clone());
            }
        }
        Ok(stand)
    }

    fn first_at(&self, cut: &LogCut) -> Result<Option<LogEntry>> {
        match place_of(&cut.chain) {
            Some((dataset, lineage, timeline)) => {
                self.vault.log_entry(&dataset, &lineage, timeline, cut.below).map(Some)
            }
            None => Ok(None),
        }
    }

    /// Deletes the beginnings of logs that a sweep cuts, and what lies in containers, too. Answers how many objects and bytes went.
    pub(super) fn delete_logs(&self, cuts: &[LogCut], gathered: &[GatheredRun]) -> Result<Deleted> {
        let chains: BTreeSet<&str> =
            cuts.iter().map(|cut| cut.chain.as_str()).chain(gathered.iter().map(|run| run.chain.as_str())).collect();
        let mut deleted = Deleted::default();
        for chain in chains {
            let below = cuts.iter().filter(|cut| cut.chain == chain).map(|cut| cut.below).max().unwrap_or(0);
            let mut runs = Vec::new();
            for run in gathered.iter().filter(|run| run.chain == chain && run.last >= below) {
                if self.is_there(run)? {
                    runs.push(run);
                }
            }
            // In order of their numbers, so that what is left always goes up to the end.
            let mut goes: BTreeMap<(u64, String), u64> = BTreeMap::new();
            for object in live::list(&self.vault, chain)? {
                let is_gone = match Place::of(&object.key) {
                    Some(Place::Log { number, .. }) => {
                        let is_gathered = runs.iter().any(|run| (run.first..=run.last).contains(&number));
                        (number < below || is_gathered).then_some(number)
                    }
                    Some(Place::GatheredLog { span, .. }) => (span.last < below).then_some(span.last),
                    _ => None,
                };
                if let Some(number) = is_gone {
                    goes.insert((number, object.key), object.size);
                }
            }
            let goes: Vec<(String, u64)> = goes.into_iter().map(|((_, key), size)| (key, size)).collect();
            let storage = self.vault.storage();
            for some in goes.chunks(PER_LOOK) {
                self.check_thawed()?;
                let done = side_by_side(storage.parallel_writes(), some, |(key, _)| self.remove(key))?;
                for ((_, size), stays) in some.iter().zip(done) {
                    match stays {
                        Some(stays) => deleted.locked.push(stays),
                        None => {
                            deleted.objects += 1;
                            deleted.bytes += size;
                        }
                    }
                }
            }
        }
        Ok(deleted)
    }

    /// Whether the container is the one that was written.
    fn is_there(&self, run: &GatheredRun) -> Result<bool> {
        let key = Span { first: run.first, last: run.last }.key(&run.chain);
        match self.vault.storage().get(&key) {
            Err(e) if e.is_not_found() => Ok(false),
            other => Ok(crate::crypt::hash(&other.doing(|| format!("reading {key}"))?) == run.hash.0),
        }
    }
}

impl LogPlan {
    fn cut(&mut self, cut: LogCut, row: &Row) {
        for lying in row.below(cut.below) {
            self.cut_objects += 1;
            self.cut_bytes += lying.bytes;
        }
        self.cuts.push(cut);
    }

    fn add(&mut self, other: LogPlan) {
        self.cuts.extend(other.cuts);
        self.cut_objects += other.cut_objects;
        self.cut_bytes += other.cut_bytes;
        self.runs.extend(other.runs);
        self.run_objects += other.run_objects;
        self.findings.extend(other.findings);
    }
}

/// What is seen of a timeline while it is walked through: where it may be cut, and the rows of small old objects from there on, each up
/// to a container's size. Its last object is neither cut nor gathered, so each is looked at when the next has come.
struct Sight<'a> {
    of: (&'a str, &'a str, u64),
    row: &'a Row,
    needed_from: Option<u64>,
    lease: Timestamp,
    /// Nothing has come for long.
    ended: bool,
    first: Option<u64>,
    /// Where the cut ends, and the hash of the object before that.
    below: Option<(u64, Option<Hash>)>,
    /// Of the object before `waits`.
    before: Option<Hash>,
    waits: Option<Waiting>,
    run: Option<Run>,
    run_bytes: u64,
    runs: Vec<Run>,
}

struct Waiting {
    number: u64,
    last: u64,
    hash: Option<Hash>,
}

struct Seen {
    first: u64,
    below: u64,
    /// Of the object right below.
    before: Option<Hash>,
    runs: Vec<Run>,
}

impl<'a> Sight<'a> {
    fn new(of: (&'a str, &'a str, u64), row: &'a Row, needed_from: Option<u64>, lease: Timestamp) -> Sight<'a> {
        let (first, below, before, waits, run) = (None, None, None, None, None);
        let ended = row.newest().is_some_and(|newest| newest < lease);
        Sight { of, row, needed_from, lease, ended, first, below, before, waits, run, run_bytes: 0, runs: Vec::new() }
    }

    fn take(&mut self, entry: &LogEntry) {
        let next = Waiting { number: entry.number, last: entry.last, hash: hash_of(entry) };
        self.first.get_or_insert(entry.number);
        let Some(seen) = self.waits.replace(next) else { return };
        let is_needed = self.needed_from.is_some_and(|counter| seen.last >= counter);
        if self.below.is_none() && (is_needed || !self.row.is_old(seen.number, self.lease)) {
            self.below = Some((seen.number, self.before));
        }
        if self.below.is_some() {
            self.gather(&seen);
        }
        self.before = seen.hash;
    }

    fn gather(&mut self, seen: &Waiting) {
        let small_and_old =
            |single: &&Lying| single.bytes <= SMALL_BYTES_MAX && single.stored_at.is_some_and(|at| at < self.lease);
        let single = self.row.singles.get(&seen.number).filter(small_and_old).zip(seen.hash);
        let joins = |run: &Run| run.span.last + 1 == seen.number;
        let count = |run: &Run| run.hashes.len() as u64;
        let full = self.run_bytes >= log::CONTAINER_BYTES
            || self.run.as_ref().is_some_and(|run| count(run) >= log::CONTAINER_OBJECTS_MAX);
        if full || single.is_none() || !self.run.as_ref().is_none_or(joins) {
            self.close(full);
        }
        let Some((single, hash)) = single else { return };
        self.run_bytes += single.bytes;
        let number = seen.number;
        let (dataset, lineage, timeline) = self.of;
        let run = self.run.get_or_insert_with(|| Run {
            dataset: dataset.to_owned(),
            lineage: lineage.to_owned(),
            timeline,
            span: Span { first: number, last: number },
            hashes: Vec::new(),
        });
        run.span.last = number;
        run.hashes.push(hash);
    }

    /// Of a log that still grows a short rest waits for more.
    fn close(&mut self, full: bool) {
        self.run_bytes = 0;
        let Some(run) = self.run.take() else { return };
        if run.hashes.len() as u64 >= RUN_OBJECTS_MIN || ((full || self.ended) && run.hashes.len() > 1) {
            self.runs.push(run);
        }
    }

    /// What was seen, unless there was nothing.
    fn end(mut self) -> Option<Seen> {
        let (first, last) = (self.first?, self.waits.take()?);
        self.close(self.run_bytes >= log::CONTAINER_BYTES);
        let (below, before) = self.below.unwrap_or((last.number, self.before));
        Some(Seen { first, below, before, runs: self.runs })
    }
}

/// The position from which on a log is needed; `None` where no point that stays needs any of it.
fn reaches_back_to<'a>(bases: impl Iterator<Item = &'a Base<'a>>, begin: Option<Timestamp>) -> Option<u64> {
    let bases: Vec<&Base<'_>> = bases.collect();
    let oldest = bases.iter().map(|base| base.position.counter).min()?;
    let before = |base: &&&Base<'_>| begin.is_some_and(|begin| base.received <= begin);
    let newest_before = bases.iter().filter(before).map(|base| base.position.counter).max();
    Some(newest_before.unwrap_or(oldest))
}

/// Does the same with each item, on several threads where the storage takes that; answers in the items' order, or the first error.
pub(super) fn side_by_side<T: Sync, R: Send>(
    threads: usize,
    items: &[T],
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    if threads <= 1 {
        return items.iter().map(work).collect();
    }
    let (next, done) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads.min(THREADS_MAX).min(items.len()) {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(place) else { return };
                    let result = work(item);
                    if result.is_err() {
                        next.store(items.len(), Ordering::Relaxed);
                    }
                    done.lock().unwrap_or_else(PoisonError::into_inner).insert(place, result);
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
}

fn hash_of(entry: &LogEntry) -> Option<Hash> {
    crate::crypt::unhex(&entry.hash).map(Hash)
}

/// Data set, lineage and timeline of a chain.
fn place_of(chain: &str) -> Option<(String, String, u64)> {
    match chain.split('/').collect::<Vec<_>>()[..] {
        ["log", dataset, lineage, timeline, ""] => {
            Some((name::decode(dataset)?, name::decode(lineage)?, name::parse_number(timeline)?))
        }
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_log_reaches_back_to_its_oldest_point_or_to_the_one_before_the_window() {
        let position = |counter| Position { lineage: "l".to_owned(), timeline: 1, counter };
        let positions = [position(10), position(20), position(30)];
        let at = |day: i64| Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24 * day);
        let bases: Vec<Base<'_>> = positions
            .iter()
            .zip(1..)
            .map(|(position, day)| Base { dataset: "d", position, received: at(day) })
            .collect();
        let reaches = |begin: Option<i64>| reaches_back_to(bases.iter(), begin.map(at));
        assert_eq!(reaches(None), Some(10));
        assert_eq!(reaches(Some(0)), Some(10));
        assert_eq!(reaches(Some(2)), Some(20));
        assert_eq!(reaches(Some(9)), Some(30));
        assert_eq!(reaches_back_to([].iter(), None), None);
    }
}
