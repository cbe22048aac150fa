//! Log objects: small pieces of a stream, durable when `append` returns, `log/DATASET/LINEAGE/TIMELINE/NUMBER`.
//!
//! They are numbered from 0 in each timeline and name their predecessor's hash, so that a missing one is seen by name, and two
//! writers of one timeline collide at the next number instead of both going on. Positions stand in the clear head. Invariant: an
//! object is never overwritten; a writer that crashed adopts what it had stored and continues after it. Of a timeline whose beginning was
//! pruned, the prune's word says where it begins and what its first object must name.

mod gathered;
mod walk;
mod writer;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use minicbor::{Decode, Encode};

use crate::codec::{self, Hash, Moment};
use crate::error::{Doing, Result, VaultError};
use crate::finding::{Finding, Severity, note};
use crate::name;
use crate::open::Vault;
use crate::prune::LogCut;
use crate::roster::Roster;
use crate::sign::Signed;
use crate::snapshot::Position;

use self::gathered::Shelf;
pub(crate) use self::gathered::{
    CONTAINER_BYTES, CONTAINER_OBJECTS_MAX, Containers, GATHERED_BYTES_MAX, KIND as GATHERED_KIND, Span,
    check as check_gathered, hashes_in, seal as seal_gathered,
};
pub use self::writer::LogWriter;

pub(crate) const KIND: &str = "vault.log";
pub(crate) const PAYLOAD_BYTES_MAX: usize = 64 << 20;

/// A writer notes its own head in the host's state after so many appends.
const REMEMBER_EVERY: u64 = 32;

/// What follows an object that is older than this may have been gathered meanwhile, and is looked for in a listing, too.
const GATHERED_AFTER_HOURS: i64 = 24;

/// Objects that are read at once, and before they are asked for, where the storage takes several.
const READERS_MAX: usize = 8;
const AHEAD: usize = 64;

/// So many unreadable objects in a row are passed by while a position is looked for.
const UNREADABLE_MAX: usize = 8;

/// What is appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPiece {
    /// Positions (the source's counter) from `first` to `last`; both the current one for a mark.
    pub first: u64,
    pub last: u64,
    /// Up to this moment of the source everything is in the log.
    pub source_time: Timestamp,
    /// Nothing happened: it only says so.
    pub mark: bool,
    /// The writer says that nothing follows in this timeline.
    pub final_mark: bool,
}

/// A log object, as far as it is known without keys.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LogEntry {
    pub dataset: String,
    pub lineage: String,
    pub timeline: u64,
    /// Its place in the timeline, from 0, without gaps.
    pub number: u64,
    pub first: u64,
    pub last: u64,
    pub source_time: Timestamp,
    pub stored_at: Timestamp,
    pub mark: bool,
    pub final_mark: bool,
    pub host: String,
    pub key: String,
    pub bytes: u64,
    /// BLAKE3 of the object, in hex.
    pub hash: String,
}

/// Everything of a lineage that counts, and what is wrong with it. After a gap nothing of that timeline counts.
#[derive(Debug, Clone, Default)]
pub struct LogTrail {
    pub entries: Vec<LogEntry>,
    pub findings: Vec<Finding>,
}

#[derive(Debug, Encode, Decode)]
struct LogHead {
    #[n(0)]
    vault: String,
    #[n(1)]
    dataset: String,
    #[n(2)]
    lineage: String,
    #[n(3)]
    timeline: u64,
    #[n(4)]
    number: u64,
    #[n(5)]
    previous: Option<Hash>,
    #[n(6)]
    host: String,
    #[n(7)]
    first: u64,
    #[n(8)]
    last: u64,
    #[n(9)]
    source_time: Moment,
    #[n(10)]
    stored_at: Moment,
    #[n(11)]
    mark: bool,
    #[n(12)]
    final_mark: bool,
    /// Length of the payload before sealing.
    #[n(13)]
    bytes: u64,
    #[cbor(n(14), with = "minicbor::bytes")]
    sealed: Vec<u8>,
}

/// The chain of one timeline, as revocations and remembered heads name it.
pub(crate) fn chain(dataset: &str, lineage: &str, timeline: u64) -> String {
    format!("{}{}/", name::lineage(dataset, lineage), name::number(timeline))
}

struct Opened {
    entry: LogEntry,
    previous: Option<Hash>,
    sealed: Vec<u8>,
    hash: Hash,
}

fn open(roster: &Roster, dataset: &str, lineage: &str, timeline: u64, number: u64, bytes: &[u8]) -> Result<Opened> {
    let key = name::log_object(dataset, lineage, timeline, number);
    let signed = Signed::open(KIND, &key, bytes)?;
    let head: LogHead = codec::decode(&key, &signed.payload)?;
    let here = (head.dataset.as_str(), head.lineage.as_str(), head.timeline, head.number);
    if head.vault != roster.vault || here != (dataset, lineage, timeline, number) {
        return Err(VaultError::untrusted(&key, "it belongs to another place"));
    }
    roster.check_host(&key, &signed.signer, &head.host, &chain(dataset, lineage, timeline), number)?;
    if head.first > head.last {
        return Err(VaultError::damaged(&key, "its positions run backwards"));
    }
    let entry = LogEntry {
        dataset: head.dataset,
        lineage: head.lineage,
        timeline,
        number,
        first: head.first,
        last: head.last,
        source_time: head.source_time.into(),
        stored_at: head.stored_at.into(),
        mark: head.mark,
        final_mark: head.final_mark,
        host: head.host,
        key,
        bytes: head.bytes,
        hash: Hash(signed.hash).to_string(),
    };
    Ok(Opened { entry, previous: head.previous, sealed: head.sealed, hash: Hash(signed.hash) })
}

/// Whether these bytes are the log object that belongs at this place.
pub(crate) fn check(
    roster: &Roster,
    dataset: &str,
    lineage: &str,
    timeline: u64,
    number: u64,
    bytes: &[u8],
) -> Result<()> {
    open(roster, dataset, lineage, timeline, number, bytes).map(|_| ())
}

/// The sealed payload of a log object, read again and checked to be the one that the entry was read from.
pub(crate) fn read_sealed(vault: &Vault, entry: &LogEntry) -> Result<Vec<u8>> {
    let of = Timeline { dataset: &entry.dataset, lineage: &entry.lineage, timeline: entry.timeline };
    let opened = match vault.read_object(&of, entry.number) {
        // Gathered since it was listed.
        Err(VaultError::Missing { .. }) => {
            vault.list_timeline(&of)?;
            vault.read_object(&of, entry.number)?
        }
        other => other?,
    };
    if opened.entry.hash != entry.hash {
        return Err(VaultError::untrusted(&entry.key, "it was replaced since it was first read"));
    }
    Ok(opened.sealed)
}

impl Vault {
    /// The lineages of a data set that have log objects.
    pub fn log_lineages(&self, dataset: &str) -> Result<Vec<String>> {
        let prefix = format!("log/{}/", name::encode(dataset));
        let listed = self.storage().list(&prefix).doing(|| format!("listing {prefix}"))?;
        let mut names: Vec<String> = listed.iter().filter_map(|o| name::decode(o.key.split('/').nth(2)?)).collect();
        names.dedup();
        Ok(names)
    }

    /// Log objects with positions after `after` (all without it), in order of timeline and number; signatures and chain are
    /// checked, no private key is needed. Marks at `after` itself are given, too. Fails where anything is wrong: see `log_trail`.
    pub fn log_entries(&self, dataset: &str, lineage: &str, after: Option<u64>) -> Result<Vec<LogEntry>> {
        let (trail, trouble) = self.read_trail(dataset, lineage)?;
        if let Some(error) = trouble {
            return Err(error);
        }
        let wanted = |e: &LogEntry| after.is_none_or(|after| e.last > after || (e.mark && e.last == after));
        Ok(trail.entries.into_iter().filter(wanted).collect())
    }

    /// The log object right after one that was read, if there is one already: one look, however long the log is. A hole further on
    /// is only seen by `log_trail`.
    pub fn log_next(&self, last: &LogEntry) -> Result<Option<LogEntry>> {
        let next = last.number.saturating_add(1);
        let of = Timeline { dataset: &last.dataset, lineage: &last.lineage, timeline: last.timeline };
        match self.read_entry(&of, next, Some(last), None) {
            Ok(entry) => Ok(Some(entry)),
            Err(VaultError::Missing { .. }) if is_long_ago(last) => {
                // Who slept so long finds what follows gathered, or pruned.
                let shelf = self.list_timeline(&of)?;
                match shelf.numbers.last().is_some_and(|newest| *newest >= next) {
                    true => self.read_entry(&of, next, Some(last), None).map(Some),
                    false => Ok(None),
                }
            }
            Err(VaultError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// As `log_entries`, but gives what still counts and says what is wrong.
    pub fn log_trail(&self, dataset: &str, lineage: &str) -> Result<LogTrail> {
        Ok(self.read_trail(dataset, lineage)?.0)
    }

    /// As `log_trail`, but only of the position's timeline, from the last objects at or before the position: what was lost
    /// before them is not noticed, and what is before them is not read.
    pub fn log_since(&self, dataset: &str, position: &Position) -> Result<LogTrail> {
        let (trail, _, _) = self.read_since(dataset, position)?;
        Ok(trail)
    }

    fn read_since(&self, dataset: &str, position: &Position) -> Result<(LogTrail, Vec<u64>, Option<VaultError>)> {
        match self.read_since_once(dataset, position)? {
            // Gathered since it was listed, perhaps.
            (_, _, Some(VaultError::Missing { .. })) => self.read_since_once(dataset, position),
            read => Ok(read),
        }
    }

    fn read_since_once(&self, dataset: &str, position: &Position) -> Result<(LogTrail, Vec<u64>, Option<VaultError>)> {
        self.refresh()?;
        let of = Timeline { dataset, lineage: &position.lineage, timeline: position.timeline };
        let seen = self.remembered_head(&chain(dataset, of.lineage, of.timeline))?;
        let shelf = self.list_timeline(&of)?;
        let floor = match shelf.numbers.is_empty() {
            true => None,
            false => self.floor(&of)?,
        };
        let extent = Extent { numbers: &from_floor(shelf.numbers, floor.as_ref()), floor, seen: seen.as_ref() };
        let mut trail = LogTrail::default();
        let trouble = self.read_timeline(&of, &extent, Some(position.counter), &mut trail)?;
        let leads_on = |first: &LogEntry| {
            first.last <= position.counter || (!first.mark && first.first <= position.counter.saturating_add(1))
        };
        if let (Some(floor), Some(first)) = (&extent.floor, trail.entries.first())
            && first.number == floor.below
            && !leads_on(first)
        {
            let message = format!(
                "the log of {dataset} right after position {} was pruned: what this point holds can be restored, and nothing after it",
                position.counter
            );
            trail.findings.push(Finding::new(Severity::Note, "log-pruned", &floor.chain, message));
            trail.entries.clear();
        }
        Ok((trail, extent.numbers.to_vec(), trouble))
    }

    /// One object, wherever it lies; what is before it is not looked at.
    pub(crate) fn log_entry(&self, dataset: &str, lineage: &str, timeline: u64, number: u64) -> Result<LogEntry> {
        let of = Timeline { dataset, lineage, timeline };
        self.list_timeline(&of)?;
        self.read_object(&of, number).map(|opened| opened.entry)
    }

    /// What lies in a timeline, listed anew.
    fn list_timeline(&self, of: &Timeline<'_>) -> Result<Shelf> {
        let chain = chain(of.dataset, of.lineage, of.timeline);
        let listed = self.storage().list(&chain).doing(|| format!("listing {chain}"))?;
        let shelf = Shelf::of(&listed, &chain);
        self.note_containers(&chain, &shelf);
        Ok(shelf)
    }

    /// Where a timeline begins, if its beginning was pruned: even if all of it still lies there, as in a copy that was made before. Ask
    /// after listing it: of what a sweep takes away meanwhile its record is there already.
    fn floor(&self, of: &Timeline<'_>) -> Result<Option<LogCut>> {
        Ok(self.ledger()?.log_floors.get(&chain(of.dataset, of.lineage, of.timeline)).cloned())
    }

    /// The last object of a timeline. None of those before it may be missing; what is in them is not looked at.
    fn log_end(&self, dataset: &str, lineage: &str, timeline: u64) -> Result<Option<LogEntry>> {
        let end = Position { lineage: lineage.to_owned(), timeline, counter: u64::MAX };
        let (trail, numbers, trouble) = self.read_since(dataset, &end)?;
        if let Some(error) = trouble {
            return Err(error);
        }
        let Some(last) = trail.entries.last().cloned() else { return Ok(None) };
        let begin = match numbers.first() {
            // What is below it was pruned, or the first of it is missing.
            Some(first) if *first > 0 => {
                let of = Timeline { dataset, lineage, timeline };
                self.floor(&of)?.map_or(0, |floor| floor.below)
            }
            _ => 0,
        };
        match (begin..last.number).zip(&numbers).find(|(expected, found)| expected != *found) {
            Some((missing, _)) => {
                Err(VaultError::Missing { object: name::log_object(dataset, lineage, timeline, missing) })
            }
            None => Ok(Some(last)),
        }
    }

    fn read_trail(&self, dataset: &str, lineage: &str) -> Result<(LogTrail, Option<VaultError>)> {
        match self.read_trail_once(dataset, lineage)? {
            (_, Some(VaultError::Missing { .. })) => self.read_trail_once(dataset, lineage),
            read => Ok(read),
        }
    }

    fn read_trail_once(&self, dataset: &str, lineage: &str) -> Result<(LogTrail, Option<VaultError>)> {
        self.refresh()?;
        let prefix = name::lineage(dataset, lineage);
        // Before the listing: what was seen by then must be in it, whatever is appended meanwhile.
        let remembered = self.remembered_timelines(dataset, lineage)?;
        let listed = self.storage().list(&prefix).doing(|| format!("listing {prefix}"))?;
        let mut timelines: BTreeMap<u64, Shelf> = BTreeMap::new();
        for object in &listed {
            if let Some((timeline, rest)) = object.key[prefix.len()..].split_once('/')
                && let Ok(timeline) = timeline.parse()
                && (number_in(rest).is_some() || Span::parse(rest).is_some())
            {
                timelines.entry(timeline).or_default().add(rest);
            }
        }
        for timeline in remembered.keys() {
            timelines.entry(*timeline).or_default();
        }
        let mut trail = LogTrail::default();
        let mut trouble = None;
        let ledger = match timelines.is_empty() {
            true => None,
            false => Some(self.ledger()?),
        };
        for (timeline, mut shelf) in timelines {
            let of = Timeline { dataset, lineage, timeline };
            let chain = chain(dataset, lineage, timeline);
            shelf.settle();
            self.note_containers(&chain, &shelf);
            let floor = ledger.as_ref().and_then(|ledger| ledger.log_floors.get(&chain).cloned());
            let numbers = from_floor(shelf.numbers, floor.as_ref());
            let extent = Extent { numbers: &numbers, floor, seen: remembered.get(&timeline) };
            if let Some(error) = self.read_timeline(&of, &extent, None, &mut trail)? {
                trouble.get_or_insert(error);
            }
        }
        Ok((trail, trouble))
    }

    /// For each timeline the newest number seen here, and its hash.
    fn remembered_timelines(&self, dataset: &str, lineage: &str) -> Result<BTreeMap<u64, (u64, String)>> {
        let prefix = name::lineage(dataset, lineage);
        let mut remembered = BTreeMap::new();
        for (chain, _) in self.remembered_heads(&prefix)? {
            if let Ok(timeline) = chain[prefix.len()..].trim_end_matches('/').parse()
                && let Some(head) = self.remembered_head(&chain)?
            {
                remembered.insert(timeline, head);
            }
        }
        Ok(remembered)
    }

    /// Checks one timeline, from where it was last checked, or from a position on. What is wrong goes into the trail, and the
    /// first of it is answered.
    fn read_timeline(
        &self,
        of: &Timeline<'_>,
        extent: &Extent<'_>,
        since: Option<u64>,
        trail: &mut LogTrail,
    ) -> Result<Option<VaultError>> {
        let Extent { numbers, floor, seen } = extent;
        let chain = chain(of.dataset, of.lineage, of.timeline);
        let mut entries = self.cached_log(&chain);
        let cached = entries.len();
        let begin = floor.as_ref().map_or(0, |floor| floor.below);
        entries.retain(|entry| entry.number >= begin);
        keep_usable(&mut entries, numbers, begin, since);
        let start = match entries.first() {
            Some(first) => first.number,
            None => since.map_or(begin, |counter| self.find_start(of, numbers, counter)),
        };
        let mut trouble = None;
        // A listing that ran beside an append may lack an object and have its successor, so each number is looked for.
        let end = numbers.last().map_or(0, |last| last.saturating_add(1));
        let mut ahead = VecDeque::new();
        loop {
            let number = start.saturating_add(entries.len() as u64);
            if number >= end {
                break;
            }
            if ahead.is_empty() {
                ahead = self.read_ahead(of, number, end);
            }
            let read = ahead.pop_front().unwrap_or_else(|| self.read_without_payload(of, number));
            match read.and_then(|link| joined(link, number, entries.last(), floor.as_ref())) {
                Ok(entry) => entries.push(entry),
                Err(error @ VaultError::Missing { .. }) => {
                    trouble = Some(error);
                    break;
                }
                Err(e) => {
                    note::<()>(Err(e), &mut trail.findings)?;
                    let finding = trail.findings.pop();
                    trouble = finding.map(|f| VaultError::Damaged { object: f.object, why: f.message });
                    break;
                }
            }
        }
        if trouble.is_none()
            && let Some((seen, hash)) = seen
        {
            trouble = check_against_memory(of, start, &entries, *seen, hash);
        }
        if entries.len() != cached || trouble.is_some() {
            if let Some(last) = entries.last()
                && let Some(hash) = crate::crypt::unhex(&last.hash)
                && trouble.is_none()
            {
                self.remember_head(&chain, last.number, hash)?;
            }
            self.cache_log(&chain, entries.clone());
        }
        trail.findings.extend(trouble.as_ref().map(Finding::from));
        trail.entries.extend(entries);
        Ok(trouble)
    }

    /// The number of the first object that reaches a position, or of the last object; an earlier one where objects cannot be read.
    fn find_start(&self, of: &Timeline<'_>, numbers: &[u64], counter: u64) -> u64 {
        let (mut low, mut high) = (0, numbers.len().saturating_sub(1));
        // Whether the object at `high` leads on from the position without those before it.
        let mut joins = false;
        while low < high {
            let middle = low + (high - low) / 2;
            let nearby = (middle..high).take(UNREADABLE_MAX);
            let mut read = nearby.filter_map(|at| Some((at, self.read_object(of, *numbers.get(at)?).ok()?.entry)));
            match read.next() {
                Some((at, entry)) if entry.last < counter => low = at + 1,
                Some((at, entry)) if at == middle || entry.first <= counter.saturating_add(1) => {
                    (high, joins) = (at, entry.first <= counter.saturating_add(1));
                }
                None if joins => break,
                // What cannot be read may be needed.
                _ => (high, joins) = (middle, false),
            }
        }
        numbers.get(high.max(low)).copied().unwrap_or(0)
    }

    /// Reads an object where it lies: in a container, which brings its neighbours along, or alone.
    fn read_object(&self, of: &Timeline<'_>, number: u64) -> Result<Opened> {
        let opened = |bytes: &[u8]| open(&self.roster(), of.dataset, of.lineage, of.timeline, number, bytes);
        let gathered = self.span_of(&chain(of.dataset, of.lineage, of.timeline), number).map(|span| {
            let container: Arc<gathered::Container> = self.container(of, span)?;
            container.object(number).map_or_else(
                || Err(VaultError::damaged(span.key(&chain(of.dataset, of.lineage, of.timeline)), "it was cut off")),
                opened,
            )
        });
        if let Some(Ok(found)) = gathered {
            return Ok(found);
        }
        let key = name::log_object(of.dataset, of.lineage, of.timeline, number);
        match (self.storage().get(&key), gathered) {
            // What is wrong is the container, not that the object does not lie alone any more.
            (Err(e), Some(Err(error))) if e.is_not_found() => Err(error),
            (bytes, _) => opened(&bytes.doing(|| format!("reading {key}"))?),
        }
    }

    /// Reads an object and holds it against the one before it, where that is known; the very first has none, and what the first after a
    /// pruned beginning must name, the prune says.
    fn read_entry(
        &self,
        of: &Timeline<'_>,
        number: u64,
        before: Option<&LogEntry>,
        floor: Option<&LogCut>,
    ) -> Result<LogEntry> {
        joined(self.read_without_payload(of, number)?, number, before, floor)
    }

    /// An object without its payload.
    fn read_without_payload(&self, of: &Timeline<'_>, number: u64) -> Result<Link> {
        self.read_object(of, number).map(|opened| (opened.entry, opened.previous))
    }

    /// Some objects from `number` on, below `end`: several at a time where the storage takes that, and none that a container brings along.
    fn read_ahead(&self, of: &Timeline<'_>, number: u64, end: u64) -> VecDeque<Result<Link>> {
        let threads = self.storage().parallel_writes().clamp(1, READERS_MAX);
        let chain = chain(of.dataset, of.lineage, of.timeline);
        if threads == 1 || self.span_of(&chain, number).is_some() {
            return VecDeque::from([self.read_without_payload(of, number)]);
        }
        let numbers: Vec<u64> = (number..end).take(AHEAD).collect();
        let (next, read) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
        std::thread::scope(|scope| {
            for _ in 0..threads.min(numbers.len()) {
                scope.spawn(|| {
                    while let Some(number) = numbers.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let link = self.read_without_payload(of, *number);
                        read.lock().unwrap_or_else(PoisonError::into_inner).insert(*number, link);
                    }
                });
            }
        });
        read.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
    }
}

/// An entry, and the hash that it names as the one before.
type Link = (LogEntry, Option<Hash>);

/// Holds an object against the one before it.
fn joined((entry, previous): Link, number: u64, before: Option<&LogEntry>, floor: Option<&LogCut>) -> Result<LogEntry> {
    let previous = previous.map(|hash| hash.to_string());
    let expected = match (before, floor) {
        (Some(before), _) => Some(Some(before.hash.clone())),
        (None, Some(floor)) if floor.below == number => Some(floor.last.map(|hash| hash.to_string())),
        (None, _) => (number == 0).then_some(None),
    };
    if expected.is_some_and(|expected| previous != expected) {
        return Err(VaultError::untrusted(entry.key, "it does not name the object before it"));
    }
    if before.is_some_and(|before| entry.last < before.last) {
        return Err(VaultError::untrusted(entry.key, "its positions go back behind the object before it"));
    }
    Ok(entry)
}

/// What there is to be read of a timeline.
struct Extent<'a> {
    numbers: &'a [u64],
    floor: Option<LogCut>,
    /// The newest that was seen here before, and its hash.
    seen: Option<&'a (u64, String)>,
}

/// What is below the floor is pruned, whether it is still there or not.
fn from_floor(mut numbers: Vec<u64>, floor: Option<&LogCut>) -> Vec<u64> {
    if let Some(floor) = floor {
        numbers.retain(|number| *number >= floor.below);
    }
    numbers
}

fn is_long_ago(entry: &LogEntry) -> bool {
    let age = Timestamp::now().duration_since(entry.stored_at);
    age > jiff::SignedDuration::from_hours(GATHERED_AFTER_HOURS)
}

/// One timeline of one lineage.
#[derive(Clone, Copy)]
struct Timeline<'a> {
    dataset: &'a str,
    lineage: &'a str,
    timeline: u64,
}

/// The number in `THOUSANDS/REST`.
pub(crate) fn number_in(place: &str) -> Option<u64> {
    let (thousands, rest) = place.split_once('/')?;
    let (thousands, rest): (u64, u64) = (thousands.parse().ok()?, rest.parse().ok()?);
    Some(thousands.saturating_mul(1000).saturating_add(rest))
}

/// Drops of what was read before what does not reach back far enough, and what is not there any more: a hostile storage may
/// take it away again.
fn keep_usable(entries: &mut Vec<LogEntry>, numbers: &[u64], begin: u64, since: Option<u64>) {
    let reaches_back = |first: &LogEntry| first.number == begin || since.is_some_and(|counter| first.last <= counter);
    let from = match entries.first() {
        Some(first) if reaches_back(first) => numbers.binary_search(&first.number),
        _ => Err(0),
    };
    let Ok(from) = from else { return entries.clear() };
    let still = entries.iter().zip(numbers.iter().skip(from)).take_while(|(e, n)| e.number == **n).count();
    entries.truncate(still);
}

fn check_against_memory(
    of: &Timeline<'_>,
    start: u64,
    entries: &[LogEntry],
    seen: u64,
    hash: &str,
) -> Option<VaultError> {
    // Before what was read, a later one vouches for it by the chain of hashes.
    let place = usize::try_from(seen.checked_sub(start)?).ok()?;
    match entries.get(place) {
        None => Some(VaultError::RolledBack {
            object: chain(of.dataset, of.lineage, of.timeline),
            found: entries.last().map_or("nothing".to_owned(), |e| format!("number {}", e.number)),
            seen: format!("number {seen}"),
        }),
        Some(entry) if entry.hash != hash => {
            let object = name::log_object(of.dataset, of.lineage, of.timeline, seen);
            Some(VaultError::untrusted(object, "it was replaced since it was first seen here"))
        }
        Some(_) => None,
    }
}

impl Finding {
    pub(crate) fn freshness_unproven(chain: &str) -> Finding {
        let message = format!(
            "freshness unproven: this machine has not seen {chain} before, so a deleted newest object would go unnoticed"
        );
        Finding::new(Severity::Warning, "freshness-unproven", chain, message)
    }
}
