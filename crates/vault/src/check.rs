//! Checking a vault: its structure without keys, its contents with them.
//!
//! Invariant: every object that something refers to is looked for; what was not looked at is not called good.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::codec::Hash;
use crate::copy::LOGS_AT_ONCE;
use crate::error::{Doing, Result, VaultError};
use crate::finding::{Finding, Severity, note, note_read};
use crate::heal::Sample;
use crate::index;
use crate::keys::{self, Pair};
use crate::name;
use crate::object::{self, Place};
use crate::open::{Unlocked, Vault};
use crate::pack::open_frame;
use crate::refs;
use crate::source::Source;
use crate::storage::StorageError;

#[derive(Debug, Clone, Copy, Default)]
pub struct CheckOptions {
    /// Read every pack: against its name without keys, every chunk against its id with them.
    pub read_data: bool,
}

#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct CheckReport {
    pub findings: Vec<Finding>,
    pub points: u64,
    pub packs: u64,
    pub log_objects: u64,
    /// Packs that were read whole.
    pub packs_read: u64,
    /// Packs that were to be read and lie in a class that must be thawed.
    pub packs_archived: u64,
    /// Their keys.
    #[serde(skip)]
    pub(crate) archived: Vec<String>,
    pub chunks_read: u64,
    pub bytes_read: u64,
    /// Which part of the packs was read, where it was not all or none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<Sample>,
}

/// Everything, as a sample.
const ALL: Sample = Sample { part: 0, of: 1 };

impl CheckReport {
    /// Whether nothing is lost, damaged, forged or rolled back.
    pub fn is_sound(&self) -> bool {
        self.findings.iter().all(|f| f.severity != Severity::Alarm)
    }
}

impl CheckReport {
    /// What was not read is not called good.
    fn say_archived(&mut self) {
        if self.packs_archived > 0 {
            let count = self.packs_archived;
            let message = format!(
                "{count} {} in a class of storage that must be thawed, and {} not read; what is in other packs was",
                if count == 1 { "pack lies" } else { "packs lie" },
                if count == 1 { "was" } else { "were" },
            );
            self.findings.push(Finding::new(Severity::Warning, "archived", "pack/", message));
        }
    }
}

/// What lies in a vault.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Stat {
    pub vault: String,
    pub owner: String,
    pub recipients: usize,
    pub roster_version: u64,
    pub objects: u64,
    pub bytes: u64,
    /// Objects and bytes by kind: `pack`, `snap`, `log`, …
    pub kinds: BTreeMap<String, (u64, u64)>,
    pub datasets: Vec<DatasetStat>,
}

#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct DatasetStat {
    pub dataset: String,
    pub points: u64,
    pub newest: Option<jiff::Timestamp>,
    pub bytes: u64,
    pub bytes_stored: u64,
}

impl Vault {
    pub fn stat(&self) -> Result<Stat> {
        let roster = self.roster();
        let mut stat = Stat {
            vault: roster.vault.clone(),
            owner: self.owner().to_owned(),
            recipients: roster.recipients.len(),
            roster_version: roster.version,
            ..Stat::default()
        };
        for object in self.storage().list("").doing(|| "listing the vault".to_owned())? {
            let kind = object.key.split('/').next().unwrap_or_default().to_owned();
            let counts = stat.kinds.entry(kind).or_default();
            counts.0 += 1;
            counts.1 += object.size;
            stat.objects += 1;
            stat.bytes += object.size;
        }
        let mut datasets: BTreeMap<String, DatasetStat> = BTreeMap::new();
        for point in self.points(None)?.points {
            let dataset = datasets.entry(point.dataset.clone()).or_default();
            dataset.dataset = point.dataset;
            dataset.points += 1;
            dataset.newest = dataset.newest.max(Some(point.taken_at));
            dataset.bytes = point.bytes;
            dataset.bytes_stored += point.bytes_stored;
        }
        stat.datasets = datasets.into_values().collect();
        Ok(stat)
    }

    /// Checks what can be checked without keys.
    pub fn check(&self, options: CheckOptions) -> Result<CheckReport> {
        self.check_reading(options.read_data.then_some(ALL))
    }

    /// As `check`, and reads this part of the packs.
    pub fn check_sample(&self, sample: Sample) -> Result<CheckReport> {
        let report = self.check_reading(Some(sample))?;
        Ok(CheckReport { sample: Some(sample), ..report })
    }

    fn check_reading(&self, read: Option<Sample>) -> Result<CheckReport> {
        let mut report = CheckReport { findings: self.points(None)?.findings, ..CheckReport::default() };
        let (snapshots, _) = self.read_chains(None)?;
        report.points = snapshots.len() as u64;
        self.check_keys(&mut report)?;
        let named = self.check_indexes(&mut report)?;
        let mut refs_done = HashSet::new();
        let mut indexes_named: HashMap<(String, String), u64> = HashMap::new();
        for snapshot in &snapshots {
            let head = &snapshot.head;
            let checked =
                refs::check(&**self.storage(), &self.roster(), &head.host, &head.dataset, &head.refs, &mut refs_done);
            note(checked, &mut report.findings)?;
            for seen in &head.indexes {
                let newest = indexes_named.entry((seen.host.clone(), head.dataset.clone())).or_default();
                *newest = seen.number.max(*newest);
            }
        }
        for ((host, dataset), number) in indexes_named {
            let read = index::read(&**self.storage(), &self.roster(), &host, &dataset, number);
            let before = report.findings.len();
            note(read, &mut report.findings)?;
            dedup_last(&mut report.findings, before);
        }
        self.check_packs(&named, read, &mut report)?;
        self.check_logs(&mut report)?;
        report.findings.extend(self.receipts()?.findings().iter().cloned());
        self.check_words(&mut report)?;
        Ok(report)
    }

    /// What nothing above reads: holds, the freeze, records of copies, requests to join, how far other vaults had come.
    fn check_words(&self, report: &mut CheckReport) -> Result<()> {
        report.findings.extend(self.holds()?.1);
        report.findings.extend(self.frozen()?.1);
        for prefix in ["copy/", "enroll/", "witness/"] {
            for listed in self.storage().list(prefix).doing(|| format!("listing {prefix}"))? {
                let Some(place) = Place::of(&listed.key) else { continue };
                let read = self.storage().get(&listed.key).doing(|| format!("reading {}", listed.key));
                let checked = read.and_then(|bytes| object::check(&self.roster(), &listed.key, &place, &bytes));
                let before = report.findings.len();
                note(checked, &mut report.findings)?;
                // Nothing of this vault rests on them, and anybody may ask to join.
                report.findings.iter_mut().skip(before).for_each(|finding| finding.severity = Severity::Warning);
            }
        }
        Ok(())
    }

    /// Every pair's statements and files; every data set that has anything must have a content key.
    fn check_keys(&self, report: &mut CheckReport) -> Result<()> {
        let storage = self.storage();
        let roster = self.roster();
        let mut datasets = keys::datasets(&**storage)?;
        for prefix in ["snap/", "index/"] {
            let listed = storage.list(prefix).doing(|| format!("listing {prefix}"))?;
            datasets.extend(listed.iter().filter_map(|o| name::decode(o.key.split('/').nth(2)?)));
        }
        datasets.sort();
        datasets.dedup();
        let pairs = [Pair::Owner, Pair::Refs].into_iter().chain(datasets.iter().map(|d| Pair::Content(d)));
        for pair in pairs {
            let stated = match note(keys::stated(&**storage, &roster, pair), &mut report.findings)? {
                None => continue,
                Some(None) if matches!(pair, Pair::Content(dataset) if !keys::is_in_use(&**storage, dataset)?) => {
                    continue;
                }
                Some(None) => {
                    let object = format!("{}{}.cert", pair.prefix(), name::number(1));
                    report.findings.push(Finding::missing(object, &format!("it states {}", pair.describe())));
                    continue;
                }
                Some(Some(stated)) => stated,
            };
            note(self.check_stated(pair, &stated), &mut report.findings)?;
            self.check_recipients(pair, &stated, report)?;
            let key = stated.file_key();
            let read = storage.get(&key).doing(|| format!("reading {key}")).and_then(|bytes| {
                match crate::crypt::hash(&bytes) == stated.statement.file.0 {
                    true => Ok(()),
                    false => Err(VaultError::damaged(&key, "it is not the file that its statement names")),
                }
            });
            note(read, &mut report.findings)?;
        }
        for dataset in &datasets {
            let prefix = name::chunk_keys(dataset);
            let listed = storage.list(&prefix).doing(|| format!("listing {prefix}"))?;
            if listed.is_empty() && self.has_points(dataset)? {
                report
                    .findings
                    .push(Finding::missing(prefix, "the data set's chunk-id key; recovery points hold a copy"));
            }
            for object in listed {
                let read = storage.get(&object.key).doing(|| format!("reading {}", object.key));
                let opened = read.and_then(|bytes| keys::open_chunk_key(&roster, dataset, &object.key, &bytes, None));
                note(opened, &mut report.findings)?;
            }
        }
        Ok(())
    }

    /// A private half sealed to others than the roster says: a change was interrupted, or its statement was taken away.
    fn check_recipients(&self, pair: Pair<'_>, stated: &keys::Stated, report: &mut CheckReport) -> Result<()> {
        let roster = self.roster();
        let wanted = match pair {
            Pair::Content(dataset) => roster.recipients_of(dataset)?,
            Pair::Refs => roster.recipients_of_refs()?,
            Pair::Owner => roster.recipients_of("")?,
        };
        let mut wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
        let mut found = stated.statement.recipients.clone();
        wanted.sort();
        found.sort();
        if wanted != found {
            let object = pair.prefix();
            let message = format!(
                "{} lies under {object} sealed to other recipients than the roster names: a change of recipients was interrupted, or a \
                 newer statement was taken away; run `lifeboat vault recipients` with the owner's key again",
                pair.describe()
            );
            report.findings.push(Finding::new(Severity::Warning, "recipients-differ", object, message));
        }
        Ok(())
    }

    fn has_points(&self, dataset: &str) -> Result<bool> {
        let listed = self.storage().list("snap/").doing(|| "listing recovery points".to_owned())?;
        let wanted = name::encode(dataset);
        Ok(listed.iter().any(|o| o.key.split('/').nth(2) == Some(wanted.as_str())))
    }

    /// Every index and its chain; answers the packs that they name, with their sizes.
    fn check_indexes(&self, report: &mut CheckReport) -> Result<BTreeMap<Hash, (u64, String)>> {
        let listed = self.storage().list("index/").doing(|| "listing indexes".to_owned())?;
        let mut chains: BTreeMap<(String, String), Vec<u64>> = BTreeMap::new();
        let mut moved = Vec::new();
        for object in &listed {
            if let [_, host, dataset, number] = object.key.split('/').collect::<Vec<_>>()[..]
                && let (Some(host), Some(dataset), Some(number)) =
                    (name::decode(host), name::decode(dataset), name::parse_number(number))
            {
                chains.entry((host, dataset)).or_default().push(number);
            } else if let Some((host, dataset, of)) = index::parse_moved_key(&object.key) {
                moved.push((host, dataset, of));
            } else {
                report.findings.push(Finding::new(
                    Severity::Warning,
                    "unknown",
                    &object.key,
                    format!("{} is no index; remove it", object.key),
                ));
            }
        }
        let ledger = self.ledger()?;
        let mut named = BTreeMap::new();
        let there: HashSet<&str> = listed.iter().map(|object| object.key.as_str()).collect();
        report.findings.extend(ledger.missing_moved(&there));
        for (host, dataset, of) in moved {
            let read = index::read_moved(&**self.storage(), &self.roster(), &host, &dataset, of);
            if let Some(moved) = note(read, &mut report.findings)? {
                let there = moved.head.packs.iter().filter(|p| !ledger.is_swept(&name::pack(&p.hash.0)));
                named.extend(there.map(|p| (p.hash, (p.bytes, moved.key.clone()))));
            }
        }
        for ((host, dataset), numbers) in chains {
            let chain = name::indexes_of(&host, &dataset);
            let mut expected = 1;
            let mut before: Option<Hash> = None;
            for number in numbers {
                for gap in expected..number.min(expected + 16) {
                    let key = format!("{chain}{}", name::number(gap));
                    if !ledger.is_swept(&key) {
                        report.findings.push(Finding::missing(key, "indexes are numbered without gaps"));
                    }
                    before = None;
                }
                expected = number + 1;
                let read = index::read(&**self.storage(), &self.roster(), &host, &dataset, number);
                let Some(read) = note(read, &mut report.findings)? else {
                    before = None;
                    continue;
                };
                if before.is_some() && read.head.previous != before {
                    report
                        .findings
                        .push(Finding::from(&VaultError::untrusted(&read.key, "it does not name the index before it")));
                }
                before = Some(read.hash);
                let there = read.head.packs.iter().filter(|p| !ledger.is_swept(&name::pack(&p.hash.0)));
                named.extend(there.map(|p| (p.hash, (p.bytes, read.key.clone()))));
            }
        }
        Ok(named)
    }

    fn check_packs(
        &self,
        named: &BTreeMap<Hash, (u64, String)>,
        read: Option<Sample>,
        report: &mut CheckReport,
    ) -> Result<()> {
        let given_up = self.given_up(&mut report.findings)?;
        let left_out = self.left_out()?;
        let listed = self.storage().list("pack/").doing(|| "listing packs".to_owned())?;
        let there: HashMap<&str, u64> = listed.iter().map(|o| (o.key.as_str(), o.size)).collect();
        report.packs = listed.len() as u64;
        for (hash, (bytes, by)) in named {
            let key = name::pack(&hash.0);
            if given_up.contains(hash) || (left_out.packs.contains(hash) && !there.contains_key(key.as_str())) {
                continue;
            }
            match there.get(key.as_str()) {
                None => report.findings.push(Finding::missing(
                    key,
                    &format!("{by} names it; the next backup uploads it again where the host still has the data"),
                )),
                Some(size) if size != bytes => {
                    let why = format!("it holds {size} bytes instead of {bytes}");
                    report.findings.push(Finding::from(&VaultError::damaged(key, why)));
                }
                Some(_) => {}
            }
        }
        let known: HashSet<String> = named.keys().map(|h| name::pack(&h.0)).collect();
        let ledger = self.ledger()?;
        for object in &listed {
            // What was swept may still lie in a copy: the next prune there takes it.
            if !known.contains(&object.key) && !ledger.is_swept(&object.key) {
                let message = format!(
                    "{} is in no index: an interrupted backup left it (its host adopts it), or its index is missing",
                    object.key
                );
                report.findings.push(Finding::new(Severity::Note, "unreferenced", &object.key, message));
            }
            let is_given_up = given_up.iter().any(|hash| name::pack(&hash.0) == object.key);
            if !is_given_up && read.is_some_and(|sample| sample.includes_key(&object.key)) {
                self.hash_pack(&object.key, report)?;
            }
        }
        report.say_archived();
        Ok(())
    }

    /// Holds a pack against its name.
    fn hash_pack(&self, key: &str, report: &mut CheckReport) -> Result<()> {
        let Some(bytes) = self.read_pack(key, report)? else { return Ok(()) };
        if name::pack(&crate::crypt::hash(&bytes)) != key {
            report.findings.push(Finding::from(&VaultError::damaged(key, "its bytes are not what its name says")));
        }
        Ok(())
    }

    /// A whole pack, if it can be read; why not, the report says.
    fn read_pack(&self, key: &str, report: &mut CheckReport) -> Result<Option<Vec<u8>>> {
        self.check_stop()?;
        let bytes = match self.storage().get(key) {
            Err(StorageError::Archived { .. }) => {
                report.packs_archived += 1;
                report.archived.push(key.to_owned());
                return Ok(None);
            }
            other => other.doing(|| format!("reading {key}")),
        };
        let read = note_read(bytes, key, &mut report.findings)?;
        if let Some(bytes) = &read {
            report.packs_read += 1;
            report.bytes_read += bytes.len() as u64;
        }
        Ok(read)
    }

    fn check_logs(&self, report: &mut CheckReport) -> Result<()> {
        let listed = self.storage().list("log/").doing(|| "listing log objects".to_owned())?;
        let mut lineages: Vec<(String, String)> = listed
            .iter()
            .filter_map(|o| {
                let mut parts = o.key.split('/').skip(1);
                Some((name::decode(parts.next()?)?, name::decode(parts.next()?)?))
            })
            .collect();
        lineages.extend(self.remembered_heads("log/")?.iter().filter_map(|(chain, _)| {
            let mut parts = chain.split('/').skip(1);
            Some((name::decode(parts.next()?)?, name::decode(parts.next()?)?))
        }));
        lineages.sort();
        lineages.dedup();
        let mut ends: HashMap<String, u64> = HashMap::new();
        if self.unfinished_copy()?.is_some() {
            for (chain, number) in listed.iter().filter_map(|object| Place::of(&object.key)?.link()) {
                let end = ends.entry(chain).or_default();
                *end = number.max(*end);
            }
        }
        // A copy that was cut off may lack some of the stretch that it was at.
        let is_to_come = |finding: &Finding| {
            let link = Place::of(&finding.object).and_then(|place| place.link());
            finding.code == "missing"
                && link.is_some_and(|(chain, number)| {
                    ends.get(&chain).is_some_and(|end| number + LOGS_AT_ONCE as u64 > *end)
                })
        };
        for (dataset, lineage) in lineages {
            let trail = self.log_trail(&dataset, &lineage)?;
            report.log_objects += trail.entries.len() as u64;
            let findings = trail.findings.into_iter().map(|finding| match is_to_come(&finding) {
                true => {
                    let message = format!("{} has not come yet: this is a half copy", finding.object);
                    Finding { severity: Severity::Warning, code: "half-copy", message, ..finding }
                }
                false => finding,
            });
            report.findings.extend(findings);
        }
        Ok(())
    }
}

/// Drops the findings from `start` on that stand there already.
fn dedup_last(findings: &mut Vec<Finding>, start: usize) {
    let new = findings.split_off(start);
    for finding in new {
        if !findings.iter().any(|f| f.object == finding.object) {
            findings.push(finding);
        }
    }
}

impl Unlocked {
    /// Checks the structure, and the contents of every data set that the keys open.
    pub fn check(&self, options: CheckOptions) -> Result<CheckReport> {
        self.check_opened(options.read_data.then_some(ALL))
    }

    /// As `check`, and reads this part of the packs.
    pub fn check_sample(&self, sample: Sample) -> Result<CheckReport> {
        let report = self.check_opened(Some(sample))?;
        Ok(CheckReport { sample: Some(sample), ..report })
    }

    fn check_opened(&self, sample: Option<Sample>) -> Result<CheckReport> {
        // Packs are read once, here, with the stronger test.
        let mut report = Vault::check(self, CheckOptions { read_data: false })?;
        for finding in self.unlock_findings() {
            if !report.findings.contains(&finding) {
                report.findings.push(finding);
            }
        }
        // Nobody needs those any more; the next prune takes them.
        let mut read: HashSet<String> =
            self.given_up(&mut Vec::new())?.into_iter().map(|hash| name::pack(&hash.0)).collect();
        for dataset in self.datasets() {
            let Some(source) = note(self.source(&dataset), &mut report.findings)? else { continue };
            let before = report.findings.len();
            report.findings.extend(source.findings().iter().cloned());
            dedup_last(&mut report.findings, before);
            self.check_points(&dataset, &source, &mut report)?;
            if let Some(sample) = sample {
                self.read_packs(&source, sample, &mut read, &mut report)?;
                self.read_logs(&dataset, &mut report)?;
            }
        }
        if let Some(sample) = sample {
            self.hash_other_packs(&read, sample, &mut report)?;
        }
        Ok(report)
    }

    /// Every point opens, and everything that it references has a place in a pack that is there.
    fn check_points(&self, dataset: &str, source: &Source, report: &mut CheckReport) -> Result<()> {
        let there: HashSet<String> =
            self.storage().list("pack/").doing(|| "listing packs".to_owned())?.into_iter().map(|o| o.key).collect();
        let given_up = self.given_up(&mut Vec::new())?;
        let identities: Vec<_> = self.refs.iter().cloned().collect();
        let mut done = HashSet::new();
        for snapshot in self.read_chains(Some(dataset))?.0 {
            let info = snapshot.info(crate::snapshot::Badge::Unverified);
            note(self.read_body(&info), &mut report.findings)?;
            if identities.is_empty() || !done.insert(snapshot.head.refs) {
                continue;
            }
            let ids =
                refs::read(&**self.storage(), &self.roster(), &info.host, dataset, &snapshot.head.refs, &identities);
            let before = report.findings.len();
            let ids = note(ids, &mut report.findings)?.unwrap_or_default();
            dedup_last(&mut report.findings, before);
            let lost =
                |id: &&_| !source.lies_in(id, |hash| there.contains(&name::pack(&hash.0)) && !given_up.contains(hash));
            let lost = ids.iter().filter(lost).count();
            if lost > 0 {
                let message = format!(
                    "recovery point {} needs {lost} chunks that are in no pack of the vault; heal the vault from a copy, or back up again",
                    info.id
                );
                report.findings.push(Finding::new(Severity::Alarm, "missing-chunks", info.key, message));
            }
        }
        Ok(())
    }

    fn read_packs(
        &self,
        source: &Source,
        sample: Sample,
        read: &mut HashSet<String>,
        report: &mut CheckReport,
    ) -> Result<()> {
        let listed = self.storage().list("pack/").doing(|| "listing packs".to_owned())?;
        let there: HashSet<String> = listed.into_iter().map(|object| object.key).collect();
        for pack in &source.packs {
            let key = name::pack(&pack.record.hash.0);
            if !sample.includes(&pack.record.hash.0) || !read.insert(key.clone()) {
                continue;
            }
            if !there.contains(&key) {
                continue; // named already, by the index
            }
            let Some(bytes) = self.read_pack(&key, report)? else { continue };
            if crate::crypt::hash(&bytes) != pack.record.hash.0 {
                report.findings.push(Finding::from(&VaultError::damaged(&key, "its bytes are not what its name says")));
            }
            for (ordinal, frame) in pack.record.frames.iter().enumerate() {
                let (start, end) = (frame.offset as usize, frame.offset as usize + frame.bytes as usize);
                let opened = match bytes.get(start..end) {
                    None => Err(VaultError::damaged(&key, "it was cut off")),
                    Some(sealed) => source.opener(pack, ordinal).and_then(|(k, salt, number)| {
                        open_frame(&key, &self.id(), salt, k, number, frame, sealed.to_vec())
                    }),
                };
                let Some(plain) = note(opened, &mut report.findings)? else { break };
                let mut start = 0usize;
                for (id, length) in frame.chunks() {
                    let chunk = plain.get(start..start + length);
                    start += length;
                    report.chunks_read += 1;
                    if !chunk.is_some_and(|chunk| source.is_right(&id, chunk)) {
                        report.findings.push(Finding::from(&VaultError::damaged(
                            &key,
                            format!("chunk {id} is not what its id says"),
                        )));
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    fn read_logs(&self, dataset: &str, report: &mut CheckReport) -> Result<()> {
        for lineage in self.log_lineages(dataset)? {
            for entry in self.log_trail(dataset, &lineage)?.entries {
                note(self.read_log(&entry), &mut report.findings)?;
            }
        }
        Ok(())
    }

    /// Packs of data sets that these keys do not open are still held against their names.
    fn hash_other_packs(&self, read: &HashSet<String>, sample: Sample, report: &mut CheckReport) -> Result<()> {
        for object in self.storage().list("pack/").doing(|| "listing packs".to_owned())? {
            if read.contains(&object.key) || !sample.includes_key(&object.key) {
                continue;
            }
            self.hash_pack(&object.key, report)?;
        }
        report.say_archived();
        Ok(())
    }
}
