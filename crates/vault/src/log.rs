//! Log objects: small pieces of a stream, durable when `append` returns, `log/DATASET/LINEAGE/TIMELINE/NUMBER`.
//!
//! They are numbered from 0 in each timeline and name their predecessor's hash, so that a missing one is seen by name, and two
//! writers of one timeline collide at the next number instead of both going on. Positions stand in the clear head. Invariant: an
//! object is never overwritten; a writer that crashed adopts what it had stored and continues after it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use minicbor::{Decode, Encode};

use crate::codec::{self, Hash, Moment};
use crate::error::{Doing, Result, VaultError};
use crate::finding::{Finding, Severity, note};
use crate::name;
use crate::open::{HostVault, Vault};
use crate::roster::Roster;
use crate::seal::{Recipient, seal_frame};
use crate::sign::Signed;
use crate::snapshot::Position;
use crate::storage::Put;

pub(crate) const KIND: &str = "vault.log";
pub(crate) const PAYLOAD_BYTES_MAX: usize = 64 << 20;

/// A writer notes its own head in the host's state after so many appends.
const REMEMBER_EVERY: u64 = 32;

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
    let bytes = vault.storage().get(&entry.key).doing(|| format!("reading {}", entry.key))?;
    let opened = open(&vault.roster(), &entry.dataset, &entry.lineage, entry.timeline, entry.number, &bytes)?;
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
        match self.read_entry(&of, next, Some(last)) {
            Ok(entry) => Ok(Some(entry)),
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
        self.refresh()?;
        let of = Timeline { dataset, lineage: &position.lineage, timeline: position.timeline };
        let chain = chain(dataset, of.lineage, of.timeline);
        let seen = self.remembered_head(&chain)?;
        let listed = self.storage().list(&chain).doing(|| format!("listing {chain}"))?;
        let number = |key: &str| number_in(key.strip_prefix(&chain)?);
        let mut numbers: Vec<u64> = listed.iter().filter_map(|object| number(&object.key)).collect();
        numbers.sort_unstable();
        let mut trail = LogTrail::default();
        let trouble = self.read_timeline(&of, (&numbers, seen.as_ref()), Some(position.counter), &mut trail)?;
        Ok((trail, numbers, trouble))
    }

    /// The last object of a timeline. None of those before it may be missing; what is in them is not looked at.
    fn log_end(&self, dataset: &str, lineage: &str, timeline: u64) -> Result<Option<LogEntry>> {
        let end = Position { lineage: lineage.to_owned(), timeline, counter: u64::MAX };
        let (trail, numbers, trouble) = self.read_since(dataset, &end)?;
        if let Some(error) = trouble {
            return Err(error);
        }
        let Some(last) = trail.entries.last().cloned() else { return Ok(None) };
        match (0..last.number).zip(&numbers).find(|(expected, found)| expected != *found) {
            Some((missing, _)) => {
                Err(VaultError::Missing { object: name::log_object(dataset, lineage, timeline, missing) })
            }
            None => Ok(Some(last)),
        }
    }

    fn read_trail(&self, dataset: &str, lineage: &str) -> Result<(LogTrail, Option<VaultError>)> {
        self.refresh()?;
        let prefix = name::lineage(dataset, lineage);
        // Before the listing: what was seen by then must be in it, whatever is appended meanwhile.
        let remembered = self.remembered_timelines(dataset, lineage)?;
        let listed = self.storage().list(&prefix).doing(|| format!("listing {prefix}"))?;
        let mut timelines: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for object in &listed {
            if let Some((timeline, rest)) = object.key[prefix.len()..].split_once('/')
                && let (Ok(timeline), Some(number)) = (timeline.parse(), number_in(rest))
            {
                timelines.entry(timeline).or_default().push(number);
            }
        }
        for timeline in remembered.keys() {
            timelines.entry(*timeline).or_default();
        }
        let mut trail = LogTrail::default();
        let mut trouble = None;
        for (timeline, numbers) in timelines {
            let seen = remembered.get(&timeline);
            let of = Timeline { dataset, lineage, timeline };
            if let Some(error) = self.read_timeline(&of, (&numbers, seen), None, &mut trail)? {
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
        (numbers, seen): (&[u64], Option<&(u64, String)>),
        since: Option<u64>,
        trail: &mut LogTrail,
    ) -> Result<Option<VaultError>> {
        let chain = chain(of.dataset, of.lineage, of.timeline);
        let mut entries = self.cached_log(&chain);
        let cached = entries.len();
        keep_usable(&mut entries, numbers, since);
        let start = match entries.first() {
            Some(first) => first.number,
            None => since.map_or(0, |counter| self.find_start(of, numbers, counter)),
        };
        let mut trouble = None;
        // A listing that ran beside an append may lack an object and have its successor, so each number is looked for.
        let end = numbers.last().map_or(0, |last| last.saturating_add(1));
        loop {
            let number = start.saturating_add(entries.len() as u64);
            if number >= end {
                break;
            }
            match self.read_entry(of, number, entries.last()) {
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

    fn read_object(&self, of: &Timeline<'_>, number: u64) -> Result<Opened> {
        let key = name::log_object(of.dataset, of.lineage, of.timeline, number);
        let bytes = self.storage().get(&key).doing(|| format!("reading {key}"))?;
        open(&self.roster(), of.dataset, of.lineage, of.timeline, number, &bytes)
    }

    /// Reads an object and holds it against the one before it, where that is known; the very first has none.
    fn read_entry(&self, of: &Timeline<'_>, number: u64, before: Option<&LogEntry>) -> Result<LogEntry> {
        let opened = self.read_object(of, number)?;
        let previous = opened.previous.map(|h| h.to_string());
        let is_checked = before.is_some() || number == 0;
        if is_checked && previous.as_ref() != before.map(|b| &b.hash) {
            return Err(VaultError::untrusted(opened.entry.key, "it does not name the object before it"));
        }
        if before.is_some_and(|b| opened.entry.last < b.last) {
            return Err(VaultError::untrusted(opened.entry.key, "its positions go back behind the object before it"));
        }
        Ok(opened.entry)
    }
}

/// One timeline of one lineage.
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
fn keep_usable(entries: &mut Vec<LogEntry>, numbers: &[u64], since: Option<u64>) {
    let reaches_back = |first: &LogEntry| first.number == 0 || since.is_some_and(|counter| first.last <= counter);
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

/// Appends to one timeline of a lineage. One writer at a time: a second one is told `Conflict`.
#[derive(Debug)]
pub struct LogWriter {
    vault: HostVault,
    dataset: String,
    lineage: String,
    timeline: u64,
    content: Recipient,
    next: u64,
    previous: Option<Hash>,
    last: Option<LogEntry>,
}

impl HostVault {
    /// Opens a timeline for appending; continues after what is stored there already (see `LogWriter::last`).
    pub fn log_writer(&self, dataset: &str, lineage: &str, timeline: u64) -> Result<LogWriter> {
        name::check(dataset, "the data set's name")?;
        name::check(lineage, "the lineage")?;
        self.check_enrolled()?;
        let content = self.content_recipient(dataset)?;
        let last = self.log_end(dataset, lineage, timeline)?;
        if let Some(last) = &last
            && last.host != self.host_name()
        {
            let why = format!("host {} writes timeline {timeline} already; a new writer needs a new epoch", last.host);
            return Err(VaultError::Conflict { object: last.key.clone(), why });
        }
        let previous = last.as_ref().and_then(|l| crate::crypt::unhex(&l.hash)).map(Hash);
        Ok(LogWriter {
            vault: self.clone(),
            dataset: dataset.to_owned(),
            lineage: lineage.to_owned(),
            timeline,
            content,
            next: last.as_ref().map_or(0, |l| l.number + 1),
            previous,
            last,
        })
    }
}

impl LogWriter {
    /// The last object of the timeline, from before a crash perhaps: the source continues after its position.
    pub fn last(&self) -> Option<&LogEntry> {
        self.last.as_ref()
    }

    pub fn timeline(&self) -> u64 {
        self.timeline
    }

    pub fn lineage(&self) -> &str {
        &self.lineage
    }

    /// Stores one piece. It is durable when this returns; after an error, call again with the same or open a new writer.
    pub fn append(&mut self, piece: LogPiece, payload: &[u8]) -> Result<LogEntry> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(VaultError::TooLarge {
                what: "a log piece".to_owned(),
                size: payload.len() as u64,
                limit: PAYLOAD_BYTES_MAX as u64,
            });
        }
        let floor = self.last.as_ref().map_or(0, |l| l.last);
        if piece.first > piece.last || piece.last < floor {
            let why = format!("it runs from {} to {}, after {floor} was stored", piece.first, piece.last);
            return Err(VaultError::invalid("the log piece", why));
        }
        let key = name::log_object(&self.dataset, &self.lineage, self.timeline, self.next);
        let head = LogHead {
            vault: self.vault.roster().vault.clone(),
            dataset: self.dataset.clone(),
            lineage: self.lineage.clone(),
            timeline: self.timeline,
            number: self.next,
            previous: self.previous,
            host: self.vault.host_name().to_owned(),
            first: piece.first,
            last: piece.last,
            source_time: piece.source_time.into(),
            stored_at: Timestamp::now().into(),
            mark: piece.mark,
            final_mark: piece.final_mark,
            bytes: payload.len() as u64,
            sealed: seal_frame(std::slice::from_ref(&self.content), &key, payload)?,
        };
        let bytes = Signed::seal(KIND, &codec::encode(&head)?, self.vault.state().signing_key())?;
        match self.vault.storage().put_if_absent(&key, &bytes).doing(|| format!("writing {key}"))? {
            Put::Created => self.advance(&bytes),
            Put::Exists => self.adopt(&key, &piece, payload.len() as u64),
        }
    }

    /// An earlier attempt whose answer was lost had stored this very piece; anything else there is another writer's.
    fn adopt(&mut self, key: &str, piece: &LogPiece, bytes: u64) -> Result<LogEntry> {
        let stored = self.vault.storage().get(key).doing(|| format!("reading {key}"))?;
        let opened = open(&self.vault.roster(), &self.dataset, &self.lineage, self.timeline, self.next, &stored)?;
        let e = &opened.entry;
        let same = (e.first, e.last, e.source_time, e.mark, e.final_mark, e.bytes)
            == (
                piece.first,
                piece.last,
                Timestamp::from(Moment::from(piece.source_time)),
                piece.mark,
                piece.final_mark,
                bytes,
            );
        if !same || e.host != self.vault.host_name() || opened.previous != self.previous {
            let why = format!("host {} wrote it; two writers of one timeline must not be", e.host);
            return Err(VaultError::Conflict { object: key.to_owned(), why });
        }
        self.advance(&stored)
    }

    fn advance(&mut self, bytes: &[u8]) -> Result<LogEntry> {
        let opened = open(&self.vault.roster(), &self.dataset, &self.lineage, self.timeline, self.next, bytes)?;
        self.previous = Some(opened.hash);
        self.next += 1;
        // Now and then, so that a log that is rolled back is noticed without slowing each append.
        if opened.entry.final_mark || self.next.is_multiple_of(REMEMBER_EVERY) {
            let chain = chain(&self.dataset, &self.lineage, self.timeline);
            self.vault.remember_head(&chain, opened.entry.number, opened.hash.0)?;
        }
        self.last = Some(opened.entry.clone());
        Ok(opened.entry)
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
