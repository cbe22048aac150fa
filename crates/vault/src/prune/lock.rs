//! Keeping what recovery points need locked (Object Lock): by who prunes, never by a host.
//!
//! Invariants: a lock is only made longer; what is needed is found out anew each time and by nobody's word; what this machine remembers
//! of locks saves requests and decides nothing that the storage would not refuse. Neither a freeze nor a finding stops it: to lock what is
//! there is the safe side.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};

use crate::crypt::hex;
use crate::error::{Doing, Result, VaultError};
use crate::finding::{Finding, Severity, note};
use crate::object::Place;
use crate::prune::Pruner;
use crate::prune::live::{self, Needed};
use crate::prune::lock_record::LockRecord;
use crate::prune::logs::side_by_side;
use crate::storage::{Listed, Lock, LockMode, Locking, StorageError};

/// Shorter locks would run out between two looks.
pub const LOCK_DAYS_MIN: i64 = 2;
pub const LOCK_DAYS_MAX: i64 = 3650;
/// So many objects are locked in one run, unless it is told otherwise.
pub const LOCKS_MAX: u64 = 100_000;
/// Between two notes of what was done.
const OBJECTS_PER_NOTE: usize = 256;
const THREADS: usize = 16;

/// How what is needed is to be kept locked.
#[derive(Debug, Clone)]
pub struct LockOptions {
    /// How long a lock is when it is made longer; that is done when less than half of it is left.
    pub length: SignedDuration,
    /// Without one as the bucket does by itself, and else so that who may pass over locks can.
    pub mode: Option<LockMode>,
    /// No more objects than this in one run, the ones whose locks end first.
    pub objects_max: u64,
    /// The directory in which what was locked is remembered, so that it need not be asked again.
    pub memory: Option<PathBuf>,
    /// Look, and lock nothing.
    pub dry_run: bool,
    /// The pruner's own clock, where it is not the system's.
    pub now: Option<Timestamp>,
}

impl LockOptions {
    pub fn for_days(days: i64) -> LockOptions {
        let length = SignedDuration::from_hours(days.saturating_mul(24));
        LockOptions { length, mode: None, objects_max: LOCKS_MAX, memory: None, dry_run: false, now: None }
    }

    fn check(&self) -> Result<()> {
        let days = self.length.as_hours() / 24;
        if (LOCK_DAYS_MIN..=LOCK_DAYS_MAX).contains(&days) {
            return Ok(());
        }
        let why = format!("choose one between {LOCK_DAYS_MIN} days and {LOCK_DAYS_MAX}");
        Err(VaultError::invalid("the time for which what points need is locked", why))
    }
}

/// What is locked until when.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct LockReport {
    /// Objects that points need.
    pub objects: u64,
    pub bytes: u64,
    /// Those whose lock this run has made longer.
    pub extended: u64,
    /// Those that stay in a softer mode than is wished: only who may pass over locks can change it.
    pub softer: u64,
    /// Those that the storage was asked about.
    pub asked: u64,
    /// Those whose lock is to be made longer and was not, because there are more than one run does, or because it only looked.
    pub left: u64,
    /// Of those, the ones without a lock that holds.
    pub unlocked: u64,
    /// Everything that points need is locked until then, or longer; absent while something is not.
    pub until: Option<Timestamp>,
    pub findings: Vec<Finding>,
}

/// A short name for a storage, for files about it.
pub(super) fn place_name(location: &str) -> String {
    hex(&crate::crypt::hash(location.as_bytes())[..8])
}

/// What is known of an object's lock; `None`: that it has none.
type Known = Option<Lock>;

impl Pruner {
    /// Makes the locks longer of what recovery points need, where less than half of the time is left. `progress`: objects done, and in all.
    pub fn lock(&self, options: &LockOptions, progress: &dyn Fn(u64, u64)) -> Result<LockReport> {
        options.check()?;
        let storage = self.vault.storage();
        let locking = storage.locking().doing(|| "asking whether objects are locked".to_owned())?;
        let Some(locking) = locking else {
            let why = StorageError::NoLocks { location: storage.location() }.to_string();
            return Err(VaultError::Refused { what: "locking".to_owned(), why });
        };
        let now = match options.dry_run {
            true => options.now.unwrap_or_else(Timestamp::now),
            // A clock that is years ahead would lock for years.
            false => self.storage_now(options.now.unwrap_or_else(Timestamp::now))?,
        };
        let mut report = LockReport::default();
        let needed = self.needed_objects(&mut report.findings)?;
        report.objects = needed.len() as u64;
        report.bytes = needed.iter().map(|object| object.size).sum();
        let location = storage.location();
        let place = place_name(&location);
        let file = options.memory.as_ref().map(|directory| directory.join(format!("locks-{place}")));
        let mut memory = Memory::open(file.as_deref(), &locking, &needed, now)?;
        let long_enough = now.saturating_add(options.length / 2).unwrap_or(Timestamp::MAX);
        // Those first that the storage is to be asked about or that have no lock, then those whose lock ends first.
        let mut due: Vec<(Option<Known>, Listed)> = Vec::new();
        for object in needed {
            let known = memory.of(&object);
            match known {
                Some(Some(lock)) if lock.until >= long_enough => report.holds_until(lock.until),
                _ => due.push((known, object)),
            }
        }
        due.sort_by(|one, other| (one.0, &one.1.key).cmp(&(other.0, &other.1.key)));
        let until = now.saturating_add(options.length).unwrap_or(Timestamp::MAX);
        let wanted = Wanted {
            options,
            locking,
            long_enough,
            // Storages keep whole seconds.
            until: Timestamp::from_second(until.as_second()).unwrap_or(until),
        };
        let (mut done, in_all) = (0, due.len() as u64);
        let at_once = usize::try_from(options.objects_max).unwrap_or(usize::MAX).clamp(1, OBJECTS_PER_NOTE);
        for some in due.chunks(at_once) {
            self.vault.check_stop()?;
            if options.objects_max.saturating_sub(report.extended) < some.len() as u64 {
                some.iter().for_each(|(known, _)| report.add(&Did::left(*known), now));
                continue;
            }
            let did = side_by_side(THREADS, some, |(known, object)| self.lock_one(*known, object, &wanted))?;
            for ((_, object), did) in some.iter().zip(did) {
                report.add(&did, now);
                memory.note(object, did.lock);
            }
            memory.flush()?;
            done += some.len() as u64;
            progress(done, in_all);
        }
        if report.unlocked > 0 {
            report.until = None;
        }
        if let Some(directory) = options.memory.as_ref().filter(|_| !options.dry_run) {
            LockRecord::of(&report, now, options.length).keep(directory, &location)?;
        }
        Ok(report)
    }

    fn lock_one(&self, known: Option<Known>, object: &Listed, wanted: &Wanted<'_>) -> Result<Did> {
        let storage = self.vault.storage();
        let ask = || storage.lock_of(&object.key).doing(|| format!("asking how long {} is locked", object.key));
        let mut did = Did { lock: known.flatten(), ..Did::default() };
        if known.is_none() {
            (did.lock, did.asked) = (ask()?, true);
            if did.lock.is_some_and(|lock| lock.until >= wanted.long_enough) {
                return Ok(did);
            }
        }
        if wanted.options.dry_run {
            did.left = true;
            return Ok(did);
        }
        let mut mode = wanted.mode(did.lock);
        loop {
            let lock = Lock { until: wanted.until, mode };
            match storage.lock(&object.key, lock) {
                Ok(()) => (did.lock, did.extended) = (Some(lock), true),
                // A prune took it meanwhile.
                Err(error) if error.is_not_found() => did.gone = true,
                Err(error @ (StorageError::Denied { .. } | StorageError::Locked { .. })) => {
                    // Somebody made it longer than this would: it is not made shorter.
                    (did.lock, did.asked) = (ask()?, true);
                    match did.lock {
                        Some(there) if there.until >= wanted.long_enough => {}
                        // A mode can be changed by who may pass over locks only.
                        Some(there) if there.mode != mode => {
                            mode = there.mode;
                            continue;
                        }
                        _ => return Err(error).doing(|| format!("locking {}", object.key)),
                    }
                }
                Err(error) => return Err(error).doing(|| format!("locking {}", object.key)),
            }
            did.softer = wanted.options.mode.is_some_and(|wished| did.lock.is_some_and(|lock| lock.mode < wished));
            return Ok(did);
        }
    }

    /// Everything that a point needs which is not pruned, and what says what the vault is. While something is wrong: everything, for what
    /// looks useless may be what is left.
    fn needed_objects(&self, findings: &mut Vec<Finding>) -> Result<Vec<Listed>> {
        let needs = note(self.needs(findings), findings)?.flatten();
        let is_wrong = findings.iter().any(|finding| finding.severity == Severity::Alarm);
        let all = live::list(&self.vault, "")?.into_iter();
        let ours = all.filter(|object| !matches!(Place::of(&object.key), None | Some(Place::Probe)));
        match needs.filter(|_| !is_wrong) {
            Some(needs) => Ok(ours.filter(|object| needs.contain(&object.key)).collect()),
            None => Ok(ours.collect()),
        }
    }

    fn needs(&self, findings: &mut Vec<Finding>) -> Result<Option<Needs>> {
        let (snapshots, found) = self.vault.read_chains(None)?;
        findings.extend(found);
        let needed = Needed::of(&self.vault, &self.refs, snapshots.iter().map(|snapshot| &**snapshot))?;
        let (survey, superseded) = self.survey_moved(&needed)?;
        findings.extend(survey.findings.iter().cloned());
        if !survey.is_whole() {
            let message = "points need what is not in the vault; everything that is there is locked. `lifeboat vault check` says what is missing";
            findings.push(Finding::new(Severity::Alarm, "at-loss", "pack/", message));
            return Ok(None);
        }
        let superseded: HashSet<String> = superseded.iter().map(|hash| crate::name::pack(&hash.0)).collect();
        let is_useless = |key: &String, pack: &live::PackUse| pack.live_bytes == 0 || superseded.contains(key);
        let useless: HashSet<String> =
            survey.packs.iter().filter(|(key, pack)| is_useless(key, pack)).map(|(key, _)| key.clone()).collect();
        let idle = live::idle_indexes(&survey, &useless).into_iter().map(|index| index.key).collect();
        let pruned = self.vault.pruned_points()?.into_iter().map(|pruned| pruned.id).collect();
        Ok(Some(Needs { useless, idle, pruned, refs: needed.refs }))
    }
}

/// What of a vault nothing needs any more, and the refs objects that something does.
struct Needs {
    useless: HashSet<String>,
    idle: HashSet<String>,
    pruned: HashSet<String>,
    refs: BTreeSet<String>,
}

impl Needs {
    fn contain(&self, key: &str) -> bool {
        match Place::of(key) {
            Some(Place::Pack(_)) => !self.useless.contains(key),
            Some(Place::Refs(..)) => self.refs.contains(key),
            Some(Place::Index(..) | Place::Moved(..)) => !self.idle.contains(key),
            Some(Place::Snapshot(..)) => !self.pruned.contains(key.trim_start_matches("snap/")),
            _ => true,
        }
    }
}

/// What one run wants.
struct Wanted<'a> {
    options: &'a LockOptions,
    locking: Locking,
    long_enough: Timestamp,
    until: Timestamp,
}

impl Wanted<'_> {
    /// A lock that nobody may pass over stays one.
    fn mode(&self, there: Known) -> LockMode {
        let by_itself = self.locking.by_itself.map(|(_, mode)| mode);
        let wanted = self.options.mode.or(by_itself).unwrap_or(LockMode::Governance);
        there.map_or(wanted, |there| wanted.max(there.mode))
    }
}

/// What was done with one object.
#[derive(Debug, Default, Clone, Copy)]
struct Did {
    lock: Known,
    asked: bool,
    extended: bool,
    softer: bool,
    left: bool,
    gone: bool,
}

impl Did {
    fn left(known: Option<Known>) -> Did {
        Did { lock: known.flatten(), left: true, ..Did::default() }
    }
}

impl LockReport {
    fn holds_until(&mut self, until: Timestamp) {
        self.until = Some(self.until.map_or(until, |so_far| so_far.min(until)));
    }

    fn add(&mut self, did: &Did, now: Timestamp) {
        self.asked += u64::from(did.asked);
        self.extended += u64::from(did.extended);
        self.softer += u64::from(did.softer);
        self.left += u64::from(did.left);
        match did.lock.filter(|lock| lock.until > now) {
            _ if did.gone => {}
            Some(lock) => self.holds_until(lock.until),
            None => self.unlocked += 1,
        }
    }
}

/// What this machine has seen of the locks at one place: a line an object. Losing it costs requests.
struct Memory {
    locks: HashMap<u128, Lock>,
    /// What the bucket does by itself, and since when it is known to: objects that came later need not be asked about.
    by_itself: Option<(SignedDuration, LockMode, Timestamp)>,
    file: Option<(PathBuf, std::fs::File)>,
    lines: String,
}

impl Memory {
    fn open(path: Option<&Path>, locking: &Locking, needed: &[Listed], now: Timestamp) -> Result<Memory> {
        let mut memory = Memory { locks: HashMap::new(), by_itself: None, file: None, lines: String::new() };
        let text = match path.map(std::fs::read_to_string) {
            Some(Ok(text)) => text,
            // What cannot be read is remembered anew.
            _ => String::new(),
        };
        let still_there: HashSet<u128> = needed.iter().map(place_of).collect();
        let mut since = None;
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("by-itself ") {
                since = parse_by_itself(rest).filter(|(days, mode, _)| locking.by_itself == Some((*days, *mode)));
            } else if let Some((place, lock)) = parse_line(line).filter(|(place, _)| still_there.contains(place)) {
                memory.locks.insert(place, lock);
            }
        }
        memory.by_itself = locking.by_itself.map(|(days, mode)| {
            let since = since.map_or(now, |(_, _, since)| since);
            memory.lines = format!("by-itself {days} {mode} {}\n", since.as_second());
            (SignedDuration::from_hours(i64::from(days) * 24), mode, since)
        });
        for (place, lock) in &memory.locks {
            memory.lines.push_str(&line_of(*place, lock));
        }
        if let Some(path) = path {
            // Written anew without what is gone, then added to.
            let beside = path.with_extension("new");
            let written = std::fs::write(&beside, &memory.lines)
                .and_then(|()| std::fs::rename(&beside, path))
                .and_then(|()| std::fs::OpenOptions::new().append(true).open(path));
            memory.file = Some((path.to_owned(), written.map_err(|source| unkept(path, source))?));
        }
        memory.lines.clear();
        Ok(memory)
    }

    /// `None`: the storage is to be asked.
    fn of(&self, object: &Listed) -> Option<Known> {
        if let Some(lock) = self.locks.get(&place_of(object)) {
            return Some(Some(*lock));
        }
        let (length, mode, since) = self.by_itself?;
        let stored_at = object.stored_at.filter(|at| *at > since)?;
        Some(Some(Lock { until: stored_at.saturating_add(length).ok()?, mode }))
    }

    fn note(&mut self, object: &Listed, lock: Known) {
        if let Some(lock) = lock {
            self.lines.push_str(&line_of(place_of(object), &lock));
        }
    }

    fn flush(&mut self) -> Result<()> {
        let lines = std::mem::take(&mut self.lines);
        let Some((path, file)) = &mut self.file else { return Ok(()) };
        file.write_all(lines.as_bytes()).map_err(|source| unkept(path, source))
    }
}

fn unkept(path: &Path, source: std::io::Error) -> VaultError {
    VaultError::State { path: path.display().to_string(), doing: "remembering what is locked".to_owned(), source }
}

/// An object that came again is another one.
fn place_of(object: &Listed) -> u128 {
    let came = object.stored_at.map_or(0, |at| at.as_second());
    let hash = crate::crypt::hash(format!("{}\n{}\n{came}", object.key, object.size).as_bytes());
    hash.first_chunk::<16>().map_or(0, |half| u128::from_be_bytes(*half))
}

fn line_of(place: u128, lock: &Lock) -> String {
    format!("{place:032x} {} {}\n", lock.until.as_second(), lock.mode)
}

fn parse_line(line: &str) -> Option<(u128, Lock)> {
    let [place, until, mode] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
    let until = Timestamp::from_second(until.parse().ok()?).ok()?;
    Some((u128::from_str_radix(place, 16).ok()?, Lock { until, mode: mode.parse().ok()? }))
}

fn parse_by_itself(text: &str) -> Option<(u32, LockMode, Timestamp)> {
    let [days, mode, since] = text.split(' ').collect::<Vec<_>>()[..] else { return None };
    Some((days.parse().ok()?, mode.parse().ok()?, Timestamp::from_second(since.parse().ok()?).ok()?))
}
