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
use crate::storage::Put;

const KIND: &str = "vault.log";
pub(crate) const PAYLOAD_BYTES_MAX: usize = 64 << 20;

/// A writer notes its own head in the host's state after so many appends.
const REMEMBER_EVERY: u64 = 32;

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
        match self.read_entry(&last.dataset, &last.lineage, last.timeline, next, Some(last)) {
            Ok(entry) => Ok(Some(entry)),
            Err(VaultError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// As `log_entries`, but gives what still counts and says what is wrong.
    pub fn log_trail(&self, dataset: &str, lineage: &str) -> Result<LogTrail> {
        Ok(self.read_trail(dataset, lineage)?.0)
    }

    fn read_trail(&self, dataset: &str, lineage: &str) -> Result<(LogTrail, Option<VaultError>)> {
        self.refresh()?;
        let prefix = name::lineage(dataset, lineage);
        // Before the listing: what was seen by then must be in it, whatever is appended meanwhile.
        let remembered = self.remembered_timelines(dataset, lineage)?;
        let listed = self.storage().list(&prefix).doing(|| format!("listing {prefix}"))?;
        let mut timelines: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for object in &listed {
            let parts: Vec<&str> = object.key[prefix.len()..].split('/').collect();
            if let [timeline, thousands, rest] = parts[..]
                && let (Ok(timeline), Ok(thousands), Ok(rest)) =
                    (timeline.parse(), thousands.parse::<u64>(), rest.parse::<u64>())
            {
                timelines.entry(timeline).or_default().push(thousands.saturating_mul(1000).saturating_add(rest));
            }
        }
        for timeline in remembered.keys() {
            timelines.entry(*timeline).or_default();
        }
        let mut trail = LogTrail::default();
        let mut trouble = None;
        for (timeline, numbers) in timelines {
            let seen = remembered.get(&timeline);
            if let Some(error) = self.read_timeline(dataset, lineage, timeline, (&numbers, seen), &mut trail)? {
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

    /// Checks one timeline, from where it was last checked. What is wrong goes into the trail, and the first of it is answered.
    fn read_timeline(
        &self,
        dataset: &str,
        lineage: &str,
        timeline: u64,
        (numbers, seen): (&[u64], Option<&(u64, String)>),
        trail: &mut LogTrail,
    ) -> Result<Option<VaultError>> {
        let chain = chain(dataset, lineage, timeline);
        let mut entries = self.cached_log(&chain);
        let cached = entries.len();
        // What was checked before must still be there: a hostile storage may take it away again.
        let still = entries.iter().zip(numbers).take_while(|(e, n)| e.number == **n).count();
        entries.truncate(still);
        let mut trouble = None;
        // A listing that ran beside an append may lack an object and have its successor, so each number is looked for.
        let end = numbers.iter().skip(still).next_back().map_or(0, |last| last.saturating_add(1));
        while (entries.len() as u64) < end {
            match self.read_entry(dataset, lineage, timeline, entries.len() as u64, entries.last()) {
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
            trouble = check_against_memory(dataset, lineage, timeline, &entries, *seen, hash);
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

    fn read_entry(
        &self,
        dataset: &str,
        lineage: &str,
        timeline: u64,
        number: u64,
        before: Option<&LogEntry>,
    ) -> Result<LogEntry> {
        let key = name::log_object(dataset, lineage, timeline, number);
        let bytes = self.storage().get(&key).doing(|| format!("reading {key}"))?;
        let opened = open(&self.roster(), dataset, lineage, timeline, number, &bytes)?;
        let previous = opened.previous.map(|h| h.to_string());
        if previous.as_ref() != before.map(|b| &b.hash) {
            return Err(VaultError::untrusted(key, "it does not name the object before it"));
        }
        if before.is_some_and(|b| opened.entry.last < b.last) {
            return Err(VaultError::untrusted(key, "its positions go back behind the object before it"));
        }
        Ok(opened.entry)
    }
}

fn check_against_memory(
    dataset: &str,
    lineage: &str,
    timeline: u64,
    entries: &[LogEntry],
    seen: u64,
    hash: &str,
) -> Option<VaultError> {
    let object = || name::log_object(dataset, lineage, timeline, seen);
    match entries.get(usize::try_from(seen).ok()?) {
        None => Some(VaultError::RolledBack {
            object: chain(dataset, lineage, timeline),
            found: entries.last().map_or("nothing".to_owned(), |e| format!("number {}", e.number)),
            seen: format!("number {seen}"),
        }),
        Some(entry) if entry.hash != hash => {
            Some(VaultError::untrusted(object(), "it was replaced since it was first seen here"))
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
        let last = self.log_entries(dataset, lineage, None)?.into_iter().rfind(|e| e.timeline == timeline);
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
