//! Searching the catalogue: names first, at the speed of memory; then the paths of what may fit; then their versions.
//!
//! Invariant: a version is shown only with points that are still in the vault.

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

use jiff::Timestamp;
use rusqlite::{OptionalExtension, params};

use super::names::{Names, Unpacker};
use super::scan::{Candidate, Stopped, Wanted, scan};
use super::{Catalog, Pattern, Result};
use crate::files::joined;

/// In so few directories names are looked up one directory at a time; in more of them all blocks are gone through.
const FOLDERS_ONE_BY_ONE: usize = 2000;

/// In which points something must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum When {
    #[default]
    Any,
    /// In the newest point of its chain.
    Newest,
    /// In the newest point not after the moment.
    At(Timestamp),
    /// Not in the newest point any more.
    Deleted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SeenKind {
    Directory,
    File,
    Symlink,
    Fifo,
}

/// What is searched for.
#[derive(Debug, Clone)]
pub struct Query {
    pub pattern: Pattern,
    /// In this data set only.
    pub dataset: Option<String>,
    pub host: Option<String>,
    pub when: When,
    pub kind: Option<SeenKind>,
    pub bytes_min: Option<u64>,
    pub bytes_max: Option<u64>,
    pub changed_after: Option<Timestamp>,
    pub changed_before: Option<Timestamp>,
    /// At most so many paths; 0 for all.
    pub limit: usize,
}

/// One version of what stood at a path.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Seen {
    pub kind: SeenKind,
    pub bytes: u64,
    pub changed_at: Timestamp,
    /// The first and the last point that have it, and how many there are from one to the other.
    pub first_point: String,
    pub last_point: String,
    pub first_taken_at: Timestamp,
    pub last_taken_at: Timestamp,
    pub points: u64,
    /// It is in the newest point of its chain.
    pub newest: bool,
}

/// A path, and what stood there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub dataset: String,
    pub host: String,
    /// From the top of the data set.
    pub path: Vec<u8>,
    /// Oldest first; never empty.
    pub versions: Vec<Seen>,
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// By data set and path.
    pub found: Vec<Found>,
    /// There are more than `limit`.
    pub more: bool,
}

struct Chain {
    host: String,
    dataset: String,
    /// What stands before its paths.
    prefix: Vec<u8>,
    /// Points that are there, oldest first: number, time, id.
    points: Vec<(i64, Timestamp, String)>,
    /// The only point that counts, for `Newest` and `At`.
    only: Option<i64>,
    wanted: bool,
}

impl Chain {
    /// A path as it was on the host, beginning with a slash.
    fn full(&self, path: &[u8]) -> Vec<u8> {
        match self.prefix.is_empty() {
            true => [b"/", path].concat(),
            false => joined(&self.prefix, path),
        }
    }
}

struct Searcher<'a> {
    catalog: &'a Catalog,
    query: &'a Query,
    chains: HashMap<i64, Chain>,
    /// Folder → the one above it, and its name.
    folders: HashMap<i64, (Option<i64>, Vec<u8>)>,
    /// The folder of the last candidate, and where it stands: the next one is most often beside it.
    last: Option<(i64, i64, Vec<u8>)>,
    /// For `Deleted`: names that something stood behind which ended, in order.
    ended: Option<Vec<i64>>,
    answer: Answer,
}

impl Catalog {
    /// Finds what a query asks for.
    pub fn search(&self, query: &Query) -> Result<Answer> {
        let chains = self.chains(query)?;
        let ended = (query.when == When::Deleted).then(|| self.ended()).transpose()?;
        let (folders, answer) = (HashMap::new(), Answer::default());
        let mut searcher = Searcher { catalog: self, query, chains, folders, last: None, ended, answer };
        match query.pattern.has_above() {
            false => searcher.blocks(None)?,
            true => {
                let within = searcher.folders_above()?;
                match within.len() <= FOLDERS_ONE_BY_ONE {
                    true => searcher.one_by_one(&within)?,
                    false => searcher.blocks(Some(&within.into_iter().collect()))?,
                }
            }
        }
        let mut answer = searcher.answer;
        answer.found.sort_by(|a, b| (&a.dataset, &a.path, &a.host).cmp(&(&b.dataset, &b.path, &b.host)));
        Ok(answer)
    }

    /// The newest point that the catalogue knows of each chain: data set, host, time.
    pub fn reaches(&self) -> Result<Vec<(String, String, Timestamp)>> {
        let failed = || self.failed("reading its points");
        let query = "SELECT dataset, host, max(sequence), taken FROM chain JOIN point ON point.chain = chain.id GROUP BY chain.id ORDER BY 1, 2";
        let mut statement = self.db.prepare_cached(query).map_err(failed())?;
        let rows =
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, moment(row.get(3)?)))).map_err(failed())?;
        rows.collect::<Result<_, _>>().map_err(failed())
    }

    /// Names behind which something ended. What stands open still is in the newest point, unless that one is gone.
    fn ended(&self) -> Result<Vec<i64>> {
        let failed = || self.failed("looking for what is gone");
        let newest = "SELECT coalesce(max(gone), 0) FROM (SELECT gone, max(sequence) FROM point GROUP BY chain)";
        let newest_gone: bool = self.db.query_row(newest, [], |row| row.get(0)).map_err(failed())?;
        let query = match newest_gone {
            true => "SELECT DISTINCT file FROM version INDEXED BY ended WHERE last IS NOT NULL ORDER BY file",
            false => {
                "SELECT DISTINCT file FROM version AS old INDEXED BY ended WHERE last IS NOT NULL AND NOT EXISTS \
                 (SELECT 1 FROM version AS now WHERE now.file = old.file AND now.last IS NULL) ORDER BY file"
            }
        };
        let mut statement = self.db.prepare_cached(query).map_err(failed())?;
        let rows = statement.query_map([], |row| row.get(0)).map_err(failed())?;
        rows.collect::<Result<_, _>>().map_err(failed())
    }

    fn chains(&self, query: &Query) -> Result<HashMap<i64, Chain>> {
        let failed = || self.failed("reading its points");
        let mut statement = self.db.prepare_cached("SELECT id, host, dataset, top FROM chain").map_err(failed())?;
        let rows = statement.query_map([], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?, row.get::<_, i64>(3)?))
        });
        let rows: Vec<_> = rows.and_then(Iterator::collect).map_err(failed())?;
        let mut points = self
            .db
            .prepare_cached("SELECT sequence, taken, id FROM point WHERE chain = ? AND gone = 0 ORDER BY sequence")
            .map_err(failed())?;
        let mut chains = HashMap::new();
        for (id, host, dataset, top) in rows {
            let there = points.query_map([id], |row| Ok((row.get(0)?, moment(row.get(1)?), row.get(2)?)));
            let points: Vec<(i64, Timestamp, String)> = there.and_then(Iterator::collect).map_err(failed())?;
            let only = match query.when {
                When::Any | When::Deleted => None,
                When::Newest => Some(points.last()),
                When::At(at) => Some(points.iter().rfind(|(_, taken, _)| *taken <= at)),
            };
            let wanted = query.dataset.as_ref().is_none_or(|wanted| *wanted == dataset)
                && query.host.as_ref().is_none_or(|wanted| *wanted == host)
                && only != Some(None);
            let only = only.flatten().map(|(number, ..)| *number);
            let prefix = if dataset.starts_with('/') { dataset.clone() } else { format!("/{dataset}") };
            let prefix = prefix.trim_end_matches('/').as_bytes().to_vec();
            chains.insert(top, Chain { host, dataset, prefix, points, only, wanted });
        }
        Ok(chains)
    }
}

fn moment(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or_default()
}

impl Searcher<'_> {
    /// The folders in which what is looked for may lie, in order.
    fn folders_above(&mut self) -> Result<Vec<i64>> {
        let failed = || self.catalog.failed("looking through its folders");
        // A folder's number is higher than that of the one above it, which has therefore been looked at before.
        let query = "SELECT id, parent, name FROM folder ORDER BY id";
        let mut statement = self.catalog.db.prepare_cached(query).map_err(failed())?;
        let mut rows = statement.query([]).map_err(failed())?;
        let (pattern, mut within) = (&self.query.pattern, Vec::new());
        loop {
            let failed = || self.catalog.failed("looking through its folders");
            let Some(row) = rows.next().map_err(failed())? else { return Ok(within) };
            let id: i64 = row.get(0).map_err(failed())?;
            let parent: Option<i64> = row.get(1).map_err(failed())?;
            if pattern.goes_below() && parent.is_some_and(|parent| within.binary_search(&parent).is_ok()) {
                within.push(id);
                continue;
            }
            let name = row.get_ref(2).and_then(|name| Ok(name.as_blob()?)).map_err(failed())?;
            if parent.is_some() && !pattern.may_be_above(name) {
                continue;
            }
            let (top, path) = self.path_of(id)?;
            let Some(chain) = self.chains.get(&top).filter(|chain| chain.wanted) else { continue };
            if pattern.may_lie_in(&chain.full(&path)) {
                within.push(id);
            }
        }
    }

    /// Looks through the names of a few folders.
    fn one_by_one(&mut self, folders: &[i64]) -> Result<()> {
        let catalog = self.catalog;
        let failed = || catalog.failed("searching a folder");
        let mut runs = catalog
            .db
            .prepare_cached("SELECT first, count FROM run WHERE folder = ? ORDER BY first")
            .map_err(failed())?;
        let by_number = "SELECT first, content FROM block WHERE first <= ? ORDER BY first DESC LIMIT 1";
        let mut blocks = catalog.db.prepare_cached(by_number).map_err(failed())?;
        let (mut unpacker, mut open) = (Unpacker::default(), None);
        let (pattern, ended) = (&self.query.pattern, self.ended.take());
        for folder in folders {
            let rows = runs.query_map([folder], |row| Ok((row.get(0)?, row.get(1)?)));
            let rows: Vec<(i64, i64)> = rows.and_then(Iterator::collect).map_err(failed())?;
            for (first, count) in rows {
                let holds = |(start, names): &(i64, Names)| {
                    first >= *start && first < start.saturating_add(names.count() as i64)
                };
                let (start, names) = match open.take_if(|open| holds(open)) {
                    Some(kept) => kept,
                    None => {
                        let read = blocks.query_row([first], |row| Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?)));
                        let (start, packed): (i64, _) = read.map_err(failed())?;
                        let block = unpacker.unpack(&packed).ok_or_else(|| catalog.damaged("one of its blocks"))?;
                        (start, Names::of(&block))
                    }
                };
                for (file, name) in (first..).zip(names.rows(first.saturating_sub(start), count)) {
                    let is_wanted = ended.as_ref().is_none_or(|ended| ended.binary_search(&file).is_ok());
                    if is_wanted
                        && !name.is_empty()
                        && pattern.may_be(name)
                        && !self.consider((file, *folder, name.to_vec()))?
                    {
                        return Ok(());
                    }
                }
                open = Some((start, names));
            }
        }
        Ok(())
    }

    /// Goes through all names, or through those in some folders.
    fn blocks(&mut self, within: Option<&HashSet<i64>>) -> Result<()> {
        let catalog = self.catalog;
        let failed = || catalog.failed("searching it");
        let (query, ended) = (self.query, self.ended.take());
        let mut statement =
            catalog.db.prepare_cached("SELECT first, count, content FROM block ORDER BY first").map_err(failed())?;
        let mut rows = statement.query([]).map_err(failed())?;
        let mut next = || {
            while let Some(row) = rows.next().map_err(failed())? {
                let range = row.get(0).and_then(|first| Ok((first, row.get(1)?)));
                let (first, count): (i64, i64) = range.map_err(failed())?;
                let holds_some = |ended: &Vec<i64>| {
                    let next = ended.partition_point(|file| *file < first);
                    ended.get(next).is_some_and(|file| *file < first.saturating_add(count))
                };
                if ended.as_ref().is_none_or(holds_some) {
                    return Ok(Some((first, row.get(2).map_err(failed())?)));
                }
            }
            Ok(None)
        };
        let wanted = Wanted { pattern: &query.pattern, within, among: ended.as_deref(), needle: OnceLock::default() };
        let scanned = scan(&mut next, &wanted, &mut |candidate| self.consider(candidate));
        scanned.map_err(|stopped| match stopped {
            Stopped::Damaged => catalog.damaged("one of its blocks"),
            Stopped::Failed(error) => error,
        })
    }

    /// Adds a candidate that fits; `false` where there is no room for it.
    fn consider(&mut self, (file, folder, name): Candidate) -> Result<bool> {
        if self.last.as_ref().is_none_or(|(last, ..)| *last != folder) {
            let (top, path) = self.path_of(folder)?;
            self.last = Some((folder, top, path));
        }
        let Some((_, top, above)) = &self.last else { return Ok(true) };
        let (top, path) = (*top, joined(above, &name));
        let Some(chain) = self.chains.get(&top).filter(|chain| chain.wanted) else { return Ok(true) };
        let full = chain.full(&path);
        if !self.query.pattern.accepts(&name, &full) {
            return Ok(true);
        }
        let versions = self.versions(file, chain)?;
        if versions.is_empty() {
            return Ok(true);
        }
        if self.query.limit > 0 && self.answer.found.len() >= self.query.limit {
            self.answer.more = true;
            return Ok(false);
        }
        let (dataset, host) = (chain.dataset.clone(), chain.host.clone());
        self.answer.found.push(Found { dataset, host, path, versions });
        Ok(true)
    }

    /// The top above a folder, and the way from it.
    fn path_of(&mut self, folder: i64) -> Result<(i64, Vec<u8>)> {
        let (mut at, mut names) = (folder, Vec::new());
        // A damaged catalogue must not lead in circles.
        for _ in 0..8192 {
            let (parent, name) = match self.folders.get(&at) {
                Some(known) => known.clone(),
                None => {
                    let query = "SELECT parent, name FROM folder WHERE id = ?";
                    let failed = || self.catalog.failed("reading a path");
                    let mut statement = self.catalog.db.prepare_cached(query).map_err(failed())?;
                    let read = statement.query_row([at], |row| Ok((row.get(0)?, row.get(1)?))).optional();
                    let read: (Option<i64>, Vec<u8>) =
                        read.map_err(failed())?.ok_or_else(|| self.catalog.damaged("a folder is missing"))?;
                    self.folders.insert(at, read.clone());
                    read
                }
            };
            let Some(parent) = parent else {
                names.reverse();
                return Ok((at, names.join(&b'/')));
            };
            names.push(name);
            at = parent;
        }
        Err(self.catalog.damaged("its folders go in circles"))
    }

    /// The versions that the query wants, as far as their points are there.
    fn versions(&self, file: i64, chain: &Chain) -> Result<Vec<Seen>> {
        let failed = || self.catalog.failed("reading versions");
        let query = "SELECT first, last, kind, size, mtime FROM version WHERE file = ? ORDER BY first";
        let mut statement = self.catalog.db.prepare_cached(query).map_err(failed())?;
        let rows = statement.query_map(params![file], |row| {
            let last: Option<i64> = row.get(1)?;
            Ok((
                row.get::<_, i64>(0)?,
                last.unwrap_or(i64::MAX),
                row.get::<_, u8>(2)?,
                row.get::<_, i64>(3)?,
                row.get::<_, i64>(4)?,
            ))
        });
        let rows: Vec<_> = rows.and_then(Iterator::collect).map_err(failed())?;
        let newest = chain.points.last().map(|(number, ..)| *number);
        let mut seen = Vec::new();
        for (first, last, kind, bytes, mtime) in rows {
            let start = chain.points.partition_point(|(number, ..)| *number < first);
            let end = chain.points.partition_point(|(number, ..)| *number <= last);
            let points = chain.points.get(start..end).unwrap_or_default();
            let (Some(oldest), Some(latest)) = (points.first(), points.last()) else { continue };
            if chain.only.is_some_and(|only| !(first..=last).contains(&only)) {
                continue;
            }
            let version = Seen {
                kind: match kind {
                    0 => SeenKind::Directory,
                    1 => SeenKind::File,
                    2 => SeenKind::Symlink,
                    _ => SeenKind::Fifo,
                },
                bytes: bytes.max(0) as u64,
                changed_at: Timestamp::from_second(mtime).unwrap_or_default(),
                first_point: oldest.2.clone(),
                last_point: latest.2.clone(),
                first_taken_at: oldest.1,
                last_taken_at: latest.1,
                points: points.len() as u64,
                newest: Some(latest.0) == newest,
            };
            seen.push(version);
        }
        if self.query.when == When::Deleted && seen.iter().any(|version| version.newest) {
            seen.clear();
        }
        seen.retain(|version| self.fits(version));
        Ok(seen)
    }

    fn fits(&self, version: &Seen) -> bool {
        let query = self.query;
        let sized = |limit: Option<u64>, right: fn(&u64, &u64) -> bool| {
            limit.is_none_or(|limit| version.kind == SeenKind::File && right(&version.bytes, &limit))
        };
        (!query.pattern.directories_only() || version.kind == SeenKind::Directory)
            && query.kind.is_none_or(|kind| kind == version.kind)
            && sized(query.bytes_min, |bytes, limit| bytes >= limit)
            && sized(query.bytes_max, |bytes, limit| bytes <= limit)
            && query.changed_after.is_none_or(|limit| version.changed_at >= limit)
            && query.changed_before.is_none_or(|limit| version.changed_at <= limit)
    }
}
