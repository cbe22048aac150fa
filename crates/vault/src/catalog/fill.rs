//! Reading recovery points into the catalogue, each against what is known of the one before it.
//!
//! A directory whose listing is the one last read is passed by with everything below it. So a point costs what changed in it, and the
//! points before it need not be there any more.
//!
//! Invariant: a point is in the catalogue wholly or not at all (one transaction). A listing that cannot be read leaves what was known below
//! it as it was, and is named.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use rusqlite::{CachedStatement, Connection, OptionalExtension, params};

use super::names::{Names, NewBlock, Unpacker};
use super::{Catalog, CatalogError, Result};
use crate::files::{Browser, Kind, Listing, Node, Span, TreeError, joined, tree_root};
use crate::finding::{Finding, Severity};
use crate::snapshot::{PointInfo, Points};
use crate::{ChunkId, ChunkSource, Unlocked, VaultError};

/// A point, as the catalogue knows it.
#[derive(Debug, Clone)]
pub struct PointMark<'a> {
    pub host: &'a str,
    pub dataset: &'a str,
    pub sequence: u64,
    pub taken_at: Timestamp,
    pub id: &'a str,
}

impl<'a> From<&'a PointInfo> for PointMark<'a> {
    fn from(point: &'a PointInfo) -> Self {
        PointMark {
            host: &point.host,
            dataset: &point.dataset,
            sequence: point.sequence,
            taken_at: point.taken_at,
            id: &point.id,
        }
    }
}

/// How far a filling has come.
#[derive(Debug, Clone, Copy)]
pub struct Filling<'a> {
    pub dataset: &'a str,
    pub points_done: u64,
    pub points: u64,
    /// Paths looked at in the point at work.
    pub paths: u64,
}

/// What a refresh did.
#[derive(Debug, Default)]
pub struct Refreshed {
    pub points_added: u64,
    pub paths_added: u64,
    /// What could not be read.
    pub findings: Vec<Finding>,
    /// Data sets that no given key opens: what the catalogue knows of them is as old as it is.
    pub closed: Vec<String>,
}

/// Paths between two looks at the clock and the flag.
const REPORT_EVERY: u64 = 4096;

impl Catalog {
    /// Reads every point that is new since the last time, and notes which are gone.
    pub fn refresh(
        &mut self,
        unlocked: &Unlocked,
        points: &Points,
        progress: &mut dyn FnMut(&Filling<'_>),
        cancel: &AtomicBool,
    ) -> Result<Refreshed> {
        let mut done = Refreshed::default();
        let mut chains: BTreeMap<(&str, &str), Vec<&PointInfo>> = BTreeMap::new();
        for point in &points.points {
            chains.entry((&point.dataset, &point.host)).or_default().push(point);
        }
        self.note_gone(&chains)?;
        for ((dataset, host), mut chain) in chains {
            chain.sort_by_key(|point| point.sequence);
            let newest = self.newest(host, dataset)?;
            for point in chain.iter().filter(|point| newest.is_some_and(|newest| point.sequence <= newest)) {
                if must_be_thawed(point) && !self.holds(point)? {
                    done.findings.push(archived(point));
                }
            }
            chain.retain(|point| newest.is_none_or(|newest| point.sequence > newest));
            if chain.is_empty() {
                continue;
            }
            let source = match unlocked.source(dataset) {
                Ok(source) => source,
                Err(VaultError::WrongKey { .. } | VaultError::KeyNeeded { .. }) => {
                    done.closed.push(dataset.to_owned());
                    continue;
                }
                Err(error) => return Err(CatalogError::Vault(error)),
            };
            let count = chain.len() as u64;
            for (number, point) in (0..).zip(chain) {
                let mut report = |paths| progress(&Filling { dataset, points_done: number, points: count, paths });
                let root = match tree_root(unlocked, point) {
                    Ok(root) => root,
                    Err(error) if error.is_archived() => {
                        done.findings.push(archived(point));
                        continue;
                    }
                    Err(error) if error.may_pass() => return Err(CatalogError::Vault(error)),
                    Err(error) => {
                        done.findings.push(Finding::from(&error));
                        continue;
                    }
                };
                match self.fill(&PointMark::from(point), &source, &root, &mut report, cancel) {
                    Ok((paths, findings)) => {
                        done.points_added += 1;
                        done.paths_added += paths;
                        done.findings.extend(findings);
                    }
                    Err(CatalogError::Tree { source, .. }) if source.is_archived() => {
                        done.findings.push(archived(point));
                    }
                    Err(CatalogError::Tree { point, source }) => {
                        let message =
                            format!("the tree of {point} cannot be read: it is not in the catalogue ({source})");
                        done.findings.push(Finding::new(Severity::Alarm, "damaged", &point, message));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(done)
    }

    fn holds(&self, point: &PointInfo) -> Result<bool> {
        let query = "SELECT count(*) FROM point JOIN chain ON chain.id = point.chain \
                     WHERE host = ? AND dataset = ? AND sequence = ?";
        let wanted = params![point.host, point.dataset, point.sequence as i64];
        let count: i64 =
            self.db.query_row(query, wanted, |row| row.get(0)).map_err(self.failed("reading its points"))?;
        Ok(count > 0)
    }

    fn newest(&self, host: &str, dataset: &str) -> Result<Option<u64>> {
        let query =
            "SELECT max(sequence) FROM point JOIN chain ON chain.id = point.chain WHERE host = ? AND dataset = ?";
        let newest: Option<i64> =
            self.db.query_row(query, [host, dataset], |row| row.get(0)).map_err(self.failed("reading its points"))?;
        Ok(newest.map(|number| number as u64))
    }

    /// Points that the vault no longer has are not shown any more.
    fn note_gone(&mut self, chains: &BTreeMap<(&str, &str), Vec<&PointInfo>>) -> Result<()> {
        let there: HashSet<&str> = chains.values().flatten().map(|point| point.id.as_str()).collect();
        let failed = self.failed("noting pruned points");
        let note = |db: &mut Connection| {
            let tx = db.transaction()?;
            {
                let mut all = tx.prepare("SELECT chain, sequence, id, gone FROM point")?;
                let mut set = tx.prepare("UPDATE point SET gone = ? WHERE chain = ? AND sequence = ?")?;
                let rows = all.query_map([], |row| {
                    Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, String>(2)?, row.get::<_, bool>(3)?))
                })?;
                for row in rows.collect::<Result<Vec<_>, _>>()? {
                    let gone = !there.contains(row.2.as_str());
                    if gone != row.3 {
                        set.execute(params![gone, row.0, row.1])?;
                    }
                }
            }
            tx.commit()
        };
        note(&mut self.db).map_err(failed)
    }

    /// Reads one point that comes after all that are known of its chain; how many new paths it brought, and what could not be read.
    pub fn fill(
        &mut self,
        point: &PointMark<'_>,
        source: &dyn ChunkSource,
        root: &ChunkId,
        report: &mut dyn FnMut(u64),
        cancel: &AtomicBool,
    ) -> Result<(u64, Vec<Finding>)> {
        let unreadable = |source| CatalogError::Tree { point: point.id.to_owned(), source };
        let browser = Browser::open(source, root).map_err(unreadable)?;
        let damaged = self.damaged("one of its blocks");
        let failed = self.failed("adding a recovery point");
        let mut trouble = None;
        let mut add = |db: &mut Connection| -> Result<(u64, Vec<Finding>), rusqlite::Error> {
            let tx = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let mut filler = match Filler::new(&tx, point)? {
                Some(filler) => filler,
                None => return Ok((0, Vec::new())),
            };
            if let Err(end) = filler.walk(&browser, report, cancel) {
                match end {
                    End::Database(error) => return Err(error),
                    other => trouble = Some(other),
                }
                return Ok((0, Vec::new()));
            }
            let answer = filler.finish(point)?;
            tx.commit()?;
            Ok(answer)
        };
        let answer = add(&mut self.db).map_err(failed)?;
        match trouble {
            None => Ok(answer),
            Some(End::Cancelled) => Err(CatalogError::Cancelled),
            Some(End::Tree(error)) => Err(unreadable(error)),
            Some(End::Damaged | End::Database(_)) => Err(damaged),
        }
    }
}

fn must_be_thawed(point: &PointInfo) -> bool {
    point.archived.as_ref().is_some_and(|archived| archived.thaw_seconds > 0)
}

/// A point whose names cannot be read now.
fn archived(point: &PointInfo) -> Finding {
    let class = point.archived.as_ref().map_or_else(String::new, |archived| {
        format!(" (the class {}, up to {} hours)", archived.class, archived.thaw_seconds.div_ceil(3600))
    });
    let message = format!(
        "names in {} lie where they must be thawed{class}: it is not searched; have it thawed as for a restore, then `lifeboat find \
         --rebuild`",
        point.id
    );
    Finding::new(Severity::Warning, "archived", &point.id, message)
}

/// Why a filling did not come to its end.
enum End {
    Database(rusqlite::Error),
    Tree(TreeError),
    Damaged,
    Cancelled,
}

impl From<rusqlite::Error> for End {
    fn from(error: rusqlite::Error) -> Self {
        End::Database(error)
    }
}

/// What is known of a name in a folder.
#[derive(Debug, Clone, Copy)]
struct Known {
    file: i64,
    /// Kind and seal, if something stands there.
    open: Option<(u8, i64)>,
}

struct Statements<'a> {
    runs: CachedStatement<'a>,
    block_start: CachedStatement<'a>,
    block: CachedStatement<'a>,
    open: CachedStatement<'a>,
    close: CachedStatement<'a>,
    insert: CachedStatement<'a>,
    add_run: CachedStatement<'a>,
    listing: CachedStatement<'a>,
    set_listing: CachedStatement<'a>,
    add_folder: CachedStatement<'a>,
}

struct Filler<'a> {
    tx: &'a Connection,
    sql: Statements<'a>,
    chain: i64,
    top: i64,
    /// Of this point, and of the one before it in the catalogue.
    sequence: i64,
    before: i64,
    /// Being filled; its first name's number.
    block: NewBlock,
    first: i64,
    next: i64,
    /// Blocks taken apart lately.
    blocks: HashMap<i64, Names>,
    unpacker: Unpacker,
    added: u64,
    findings: Vec<Finding>,
    id: String,
}

const BLOCKS_KEPT: usize = 64;

impl<'a> Filler<'a> {
    /// `None` if the point is there already: another process was faster.
    fn new(tx: &'a Connection, point: &PointMark<'_>) -> Result<Option<Filler<'a>>, rusqlite::Error> {
        let next: i64 = tx.query_row("SELECT coalesce(max(first + count), 0) FROM block", [], |row| row.get(0))?;
        let known: Option<(i64, i64)> = tx
            .query_row("SELECT id, top FROM chain WHERE host = ? AND dataset = ?", [point.host, point.dataset], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()?;
        // The last block goes on where it is not full: many small points shall not leave many small blocks.
        let last: Option<(i64, Vec<u8>)> = tx
            .query_row("SELECT first, content FROM block ORDER BY first DESC LIMIT 1", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()?;
        let mut unpacker = Unpacker::default();
        let reopened = last
            .and_then(|(first, packed)| Some((first, NewBlock::of(&unpacker.unpack(&packed)?))))
            .filter(|(_, block)| !block.is_full());
        let (first, block) = reopened.unwrap_or((next, NewBlock::default()));
        let mut filler = Filler {
            tx,
            sql: Statements {
                runs: tx.prepare_cached("SELECT first, count FROM run WHERE folder = ?")?,
                block_start: tx
                    .prepare_cached("SELECT first FROM block WHERE first <= ? ORDER BY first DESC LIMIT 1")?,
                block: tx.prepare_cached("SELECT content FROM block WHERE first = ?")?,
                open: tx.prepare_cached(
                    "SELECT file, kind, seal FROM version WHERE file BETWEEN ? AND ? AND last IS NULL",
                )?,
                close: tx.prepare_cached("UPDATE version SET last = ? WHERE file = ? AND last IS NULL")?,
                insert: tx.prepare_cached("INSERT OR REPLACE INTO version VALUES (?, ?, NULL, ?, ?, ?, ?)")?,
                add_run: tx.prepare_cached("INSERT INTO run VALUES (?, ?, ?)")?,
                listing: tx.prepare_cached("SELECT listing FROM folder WHERE id = ?")?,
                set_listing: tx.prepare_cached("UPDATE folder SET listing = ? WHERE id = ?")?,
                add_folder: tx.prepare_cached("INSERT OR IGNORE INTO folder VALUES (?, ?, ?, NULL)")?,
            },
            chain: 0,
            top: 0,
            sequence: point.sequence as i64,
            before: 0,
            block,
            first,
            next,
            blocks: HashMap::new(),
            unpacker,
            added: 0,
            findings: Vec::new(),
            id: point.id.to_owned(),
        };
        match known {
            Some((chain, top)) => (filler.chain, filler.top) = (chain, top),
            None => {
                filler.top = filler.name(-1, b"")?;
                filler.sql.add_folder.execute(params![filler.top, None::<i64>, b""])?;
                let insert = "INSERT INTO chain (host, dataset, top) VALUES (?, ?, ?)";
                tx.execute(insert, params![point.host, point.dataset, filler.top])?;
                filler.chain = tx.last_insert_rowid();
            }
        }
        let newest = "SELECT max(sequence) FROM point WHERE chain = ?";
        let before: Option<i64> = tx.query_row(newest, [filler.chain], |row| row.get(0))?;
        filler.before = before.unwrap_or(0);
        Ok((filler.before < filler.sequence).then_some(filler))
    }

    /// Gives a new name its number.
    fn name(&mut self, folder: i64, name: &[u8]) -> Result<i64, rusqlite::Error> {
        if self.block.is_full() {
            self.store_block()?;
        }
        self.block.push(folder, name);
        self.next += 1;
        Ok(self.next - 1)
    }

    fn store_block(&mut self) -> Result<(), rusqlite::Error> {
        let block = std::mem::take(&mut self.block);
        if block.count() > 0 {
            let packed = block.pack().map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
            let mut insert = self.tx.prepare_cached("INSERT OR REPLACE INTO block VALUES (?, ?, ?)")?;
            insert.execute(params![self.first, block.count() as i64, packed])?;
        }
        self.first = self.next;
        Ok(())
    }

    fn walk(&mut self, browser: &Browser<'_>, report: &mut dyn FnMut(u64), cancel: &AtomicBool) -> Result<(), End> {
        let mut waiting = vec![(self.top, Vec::new(), browser.root().top.clone())];
        let (mut paths, mut next_report) = (0, REPORT_EVERY);
        while let Some((folder, path, node)) = waiting.pop() {
            if cancel.load(Ordering::Relaxed) {
                return Err(End::Cancelled);
            }
            let identity = identity(&node);
            let known: Option<Vec<u8>> = self.sql.listing.query_row([folder], |row| row.get(0)).optional()?.flatten();
            if known.as_deref() == Some(&identity[..]) {
                continue;
            }
            match self.folder(browser, folder, &path, &node, &mut waiting) {
                Ok(count) => {
                    self.sql.set_listing.execute(params![&identity[..], folder])?;
                    paths += count;
                }
                // The storage failing is no property of the point.
                Err(End::Tree(TreeError::Chunk(error))) if error.may_pass() => {
                    return Err(End::Tree(TreeError::Chunk(error)));
                }
                Err(End::Tree(error)) if folder != self.top => {
                    self.look_again(folder)?;
                    let path = String::from_utf8_lossy(&path).into_owned();
                    let message = format!(
                        "the directory {path:?} of {} cannot be read: names in it may be missing ({error})",
                        self.id
                    );
                    self.findings.push(Finding::new(Severity::Alarm, "damaged", &self.id, message));
                }
                Err(end) => return Err(end),
            }
            if paths >= next_report {
                report(paths);
                next_report = paths + REPORT_EVERY;
            }
        }
        Ok(())
    }

    /// A folder, and all on the way to it, are opened at the next point whether they changed or not.
    fn look_again(&mut self, folder: i64) -> Result<(), rusqlite::Error> {
        let mut at = Some(folder);
        while let Some(folder) = at {
            self.sql.set_listing.execute(params![None::<Vec<u8>>, folder])?;
            at = self
                .tx
                .query_row("SELECT parent FROM folder WHERE id = ?", [folder], |row| row.get(0))
                .optional()?
                .flatten();
        }
        Ok(())
    }

    /// Brings one folder to what its listing says; what lies below it is still to do.
    fn folder(
        &mut self,
        browser: &Browser<'_>,
        folder: i64,
        path: &[u8],
        node: &Node,
        waiting: &mut Vec<(i64, Vec<u8>, Node)>,
    ) -> Result<u64, End> {
        // Read whole before anything is changed: a listing that breaks off changes nothing.
        let entries: Vec<Node> = browser.entries(node).and_then(Iterator::collect).map_err(End::Tree)?;
        let mut known = self.known(folder)?;
        let count = entries.len() as u64;
        let mut new_from = self.next;
        for entry in entries {
            let (kind, seal) = (kind_number(&entry.kind), seal(&entry));
            let before = known.remove(&entry.name);
            let file = match before {
                Some(Known { file, .. }) => file,
                None => {
                    if self.block.is_full() {
                        self.end_run(folder, &mut new_from)?;
                    }
                    self.added += 1;
                    self.name(folder, &entry.name)?
                }
            };
            let open = before.and_then(|known| known.open);
            if open != Some((kind, seal)) {
                if let Some((was, _)) = open {
                    self.sql.close.execute([self.before, file])?;
                    if was == 0 && kind != 0 {
                        self.close_below(file)?;
                    }
                }
                let mtime = entry.metadata.as_ref().map_or(0, |m| m.mtime_seconds);
                let size = entry.size().min(i64::MAX as u64) as i64;
                self.sql.insert.execute(params![file, self.sequence, kind, size, mtime, seal])?;
            }
            if kind == 0 {
                if open.is_none_or(|(was, _)| was != 0) {
                    self.sql.add_folder.execute(params![file, folder, entry.name])?;
                }
                waiting.push((file, joined(path, &entry.name), entry));
            }
        }
        self.end_run(folder, &mut new_from)?;
        for gone in known.into_values() {
            if let Some((kind, _)) = gone.open {
                self.sql.close.execute([self.before, gone.file])?;
                if kind == 0 {
                    self.close_below(gone.file)?;
                }
            }
        }
        Ok(count)
    }

    /// A run lies in one block.
    fn end_run(&mut self, folder: i64, from: &mut i64) -> Result<(), rusqlite::Error> {
        if self.next > *from {
            self.sql.add_run.execute([folder, *from, self.next - *from])?;
        }
        *from = self.next;
        Ok(())
    }

    /// Every name ever seen in a folder.
    fn known(&mut self, folder: i64) -> Result<HashMap<Vec<u8>, Known>, End> {
        let rows = self.sql.runs.query_map([folder], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let runs: Vec<(i64, i64)> = rows.collect::<Result<_, _>>()?;
        let mut known = HashMap::new();
        for (first, count) in runs {
            let names = self.names_of(first, count)?;
            let mut places: Vec<Known> = (first..).take(names.len()).map(|file| Known { file, open: None }).collect();
            let mut open = self.sql.open.query([first, first + (count - 1).max(0)])?;
            while let Some(row) = open.next()? {
                let file: i64 = row.get(0)?;
                if let Some(place) = places.get_mut((file - first) as usize) {
                    place.open = Some((row.get(1)?, row.get(2)?));
                }
            }
            drop(open);
            known.extend(names.into_iter().zip(places));
        }
        Ok(known)
    }

    fn names_of(&mut self, first: i64, count: i64) -> Result<Vec<Vec<u8>>, End> {
        // Only what a run can be: the file may be damaged.
        if first < 0 || first.checked_add(count).is_none() {
            return Err(End::Damaged);
        }
        let slice = |names: &Names, start: i64| {
            let names: Vec<Vec<u8>> = names.rows(first.saturating_sub(start), count).map(<[u8]>::to_vec).collect();
            if names.len() as i64 == count { Ok(names) } else { Err(End::Damaged) }
        };
        if first >= self.first {
            return slice(&Names::of(&self.block.block()), self.first);
        }
        let start: i64 = self.sql.block_start.query_row([first], |row| row.get(0))?;
        if let Some(names) = self.blocks.get(&start) {
            return slice(names, start);
        }
        let packed: Vec<u8> = self.sql.block.query_row([start], |row| row.get(0))?;
        let names = Names::of(&self.unpacker.unpack(&packed).ok_or(End::Damaged)?);
        if self.blocks.len() >= BLOCKS_KEPT {
            self.blocks.clear();
        }
        slice(self.blocks.entry(start).or_insert(names), start)
    }

    /// Ends everything below a directory that is not there any more.
    fn close_below(&mut self, folder: i64) -> Result<(), rusqlite::Error> {
        let mut waiting = vec![folder];
        while let Some(folder) = waiting.pop() {
            self.sql.set_listing.execute(params![None::<Vec<u8>>, folder])?;
            let runs: Vec<(i64, i64)> =
                self.sql.runs.query_map([folder], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
            for (first, count) in runs {
                let last = first.saturating_add(count.saturating_sub(1));
                let rows = self.sql.open.query_map([first, last], |row| Ok((row.get(0)?, row.get(1)?)))?;
                let open: Vec<(i64, u8)> = rows.collect::<Result<_, _>>()?;
                for (file, kind) in open {
                    self.sql.close.execute([self.before, file])?;
                    if kind == 0 {
                        waiting.push(file);
                    }
                }
            }
        }
        Ok(())
    }

    fn finish(mut self, point: &PointMark<'_>) -> Result<(u64, Vec<Finding>), rusqlite::Error> {
        self.store_block()?;
        let taken = i64::try_from(point.taken_at.as_nanosecond()).unwrap_or(i64::MAX);
        let insert = "INSERT INTO point VALUES (?, ?, ?, ?, 0)";
        self.tx.execute(insert, params![self.chain, self.sequence, taken, point.id])?;
        Ok((self.added, self.findings))
    }
}

pub(super) fn kind_number(kind: &Kind) -> u8 {
    match kind {
        Kind::Directory(_) => 0,
        Kind::File { .. } => 1,
        Kind::Symlink { .. } => 2,
        Kind::Fifo => 3,
    }
}

/// What tells one version of a name from another: size, times, owners, attributes, a link's target. Not the pieces, which a backup
/// may cut anew though the file is the same. A directory's own version is its metadata: what changes below it stands there.
fn seal(node: &Node) -> i64 {
    let kind = match &node.kind {
        Kind::Directory(_) => Kind::Fifo,
        Kind::File { size, .. } => Kind::File { size: *size, spans: Vec::new() },
        other => other.clone(),
    };
    let bare = Node { name: Vec::new(), kind, metadata: node.metadata.clone(), link: None };
    let mut encoded = Vec::new();
    bare.encode(&mut encoded);
    let hash = blake3::hash(&encoded);
    i64::from_le_bytes(hash.as_bytes().first_chunk::<8>().copied().unwrap_or_default())
}

/// What tells one listing from another.
fn identity(node: &Node) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    match &node.kind {
        Kind::Directory(Listing::Inline(bytes)) => {
            hasher.update(b"inline").update(bytes);
        }
        Kind::Directory(Listing::Stored(spans)) => {
            hasher.update(b"stored");
            for span in spans {
                if let Span::Data { id, offset, length } = span {
                    hasher.update(id.as_bytes()).update(&offset.to_le_bytes()).update(&length.to_le_bytes());
                }
            }
        }
        _ => {}
    }
    hasher.finalize().as_bytes().first_chunk::<16>().copied().unwrap_or_default()
}
