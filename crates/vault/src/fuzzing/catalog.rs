//! The catalogue's file, as somebody may have left it in the state directory: opened, searched, and filled once more.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use jiff::Timestamp;

use crate::catalog::{Catalog, Pattern, PointMark, Query, When, is_block, place};
use crate::files::{Kind, Listing, Metadata, Node, Root};
use crate::port::{ChunkId, ChunkSource};
use crate::{Result, VaultError};

const VAULT: &str = "v";

/// A directory that goes when it is dropped.
struct Passing(PathBuf);

impl Passing {
    fn new() -> Option<Passing> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("lifeboat-fuzz-{}-{number}", std::process::id()));
        std::fs::create_dir_all(place(&path, VAULT).parent()?).ok()?;
        Some(Passing(path))
    }

    fn file(&self) -> PathBuf {
        place(&self.0, VAULT)
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A tree that is its root alone.
struct OneTree(Vec<u8>);

impl OneTree {
    fn new(names: &[&str], changed: i64) -> OneTree {
        let metadata = || Some(Metadata { mtime_seconds: changed, ..Metadata::default() });
        // The listing's version.
        let mut listing = vec![1];
        for name in names {
            let kind = Kind::File { size: 0, spans: Vec::new() };
            Node { name: name.as_bytes().to_vec(), kind, metadata: metadata(), link: None }.encode(&mut listing);
        }
        let kind = Kind::Directory(Listing::Inline(listing));
        let top = Node { name: Vec::new(), kind, metadata: metadata(), link: None };
        OneTree(Root { top, files: names.len() as u64, bytes: 0, sources: Vec::new() }.encode())
    }
}

impl ChunkSource for OneTree {
    fn get(&self, id: &ChunkId) -> Result<Vec<u8>> {
        match *id == ROOT {
            true => Ok(self.0.clone()),
            false => Err(VaultError::Missing { object: format!("chunk {id}") }),
        }
    }

    fn place(&self, _id: &ChunkId) -> Option<(u32, u64)> {
        None
    }
}

const ROOT: ChunkId = ChunkId([0; 32]);

fn fill(catalog: &mut Catalog, sequence: u64, tree: &OneTree) {
    let mark = PointMark { host: "h", dataset: "d", sequence, taken_at: Timestamp::UNIX_EPOCH, id: "h/d/1" };
    let _ = catalog.fill(&mark, tree, &ROOT, &mut |_| {}, &AtomicBool::new(false));
}

fn search(catalog: &Catalog) {
    for (text, when) in [("a", When::Any), ("*", When::Newest), ("d/**", When::Any), ("b*", When::Deleted)] {
        let Ok(pattern) = Pattern::new(text, false, false) else { continue };
        let query = Query {
            pattern,
            dataset: None,
            host: None,
            when,
            kind: None,
            bytes_min: None,
            bytes_max: None,
            changed_after: None,
            changed_before: None,
            limit: 50,
        };
        let _ = catalog.search(&query);
    }
    let _ = (catalog.paths(), catalog.reaches());
}

/// The whole file. What does not begin as SQLite's files do is made anew unseen.
pub(super) fn whole_file(data: &[u8]) {
    if !data.starts_with(b"SQLite format 3\0") {
        return;
    }
    let Some(passing) = Passing::new() else { return };
    if std::fs::write(passing.file(), data).is_err() {
        return;
    }
    let Ok(mut catalog) = Catalog::open(&passing.0, VAULT) else { return };
    search(&catalog);
    fill(&mut catalog, u64::from(u32::MAX), &OneTree::new(&["a", "c"], 2));
    search(&catalog);
}

/// A block of names in a file that is right but for it: packed as it is, and as what is unpacked from it.
pub(super) fn block(data: &[u8]) {
    for content in [data.to_vec(), zstd::bulk::compress(data, 1).unwrap_or_default()] {
        if !is_block(&content) {
            continue;
        }
        let Some(passing) = Passing::new() else { return };
        let Ok(mut catalog) = Catalog::open(&passing.0, VAULT) else { return };
        fill(&mut catalog, 1, &OneTree::new(&["a", "b"], 1));
        drop(catalog);
        if replace_blocks(&passing.file(), &content).is_none() {
            return;
        }
        let Ok(mut catalog) = Catalog::open(&passing.0, VAULT) else { return };
        search(&catalog);
        fill(&mut catalog, 2, &OneTree::new(&["a", "c"], 2));
        search(&catalog);
    }
}

fn replace_blocks(path: &Path, content: &[u8]) -> Option<()> {
    let db = rusqlite::Connection::open(path).ok()?;
    db.execute("UPDATE block SET content = ?", [content]).ok()?;
    Some(())
}

/// A catalogue of two points, and what a block holds.
pub(super) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let made = || {
        let passing = Passing::new()?;
        let mut catalog = Catalog::open(&passing.0, VAULT).ok()?;
        fill(&mut catalog, 1, &OneTree::new(&["a", "b", "bb"], 1));
        fill(&mut catalog, 2, &OneTree::new(&["a", "c"], 2));
        drop(catalog);
        std::fs::read(passing.file()).ok()
    };
    let run = [&1u32.to_le_bytes()[..], &1i64.to_le_bytes(), &2u32.to_le_bytes(), b"a\0b\0"].concat();
    made().map(|file| ("catalog", file)).into_iter().chain([("catalog-block", run)]).collect()
}
