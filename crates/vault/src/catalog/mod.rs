//! The catalogue: which path was in which recovery points, found without opening them.
//!
//! ```text
//!   name   names of all paths ever seen, in compressed blocks that are searched through as they are
//!   version   for each path, what stood there from which point to which: a path that never changed is one row for all points
//!   folder   for each directory, its listing as last read: what did not change since is not opened
//! ```
//!
//! It lies in the state directory of who searches, readable for its owner only, and **holds names, sizes and times in the clear**. It is
//! made from the vault alone: losing it costs the time to make it again.
//!
//! Invariant: it may lack what could not be read (and says so), but what it says was in a point was in it.

mod fill;
mod names;
mod pattern;
mod scan;
mod search;

use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension};
use thiserror::Error;

use crate::VaultError;
use crate::files::TreeError;

pub use self::fill::{Filling, PointMark, Refreshed};
pub use self::pattern::{Pattern, PatternError};
pub use self::search::{Answer, Found, Query, Seen, SeenKind, When};

/// Another layout than this is thrown away and made anew.
const LAYOUT: i64 = 2;
/// Readers wait so long for who is just committing.
const BUSY_WAIT: Duration = Duration::from_secs(120);
const CACHE_KIB: i64 = 64 << 10;
/// Read where it lies: a search goes through all names.
const MAPPED_BYTES_MAX: i64 = 64 << 30;

/// Why the catalogue could not be used.
#[derive(Debug, Error)]
pub enum CatalogError {
    #[error("the catalogue {path} cannot be used ({doing}); delete it and it is made again", path = path.display())]
    Database {
        path: PathBuf,
        doing: &'static str,
        #[source]
        source: rusqlite::Error,
    },
    #[error("the catalogue {path} cannot be used ({doing}); say where else with --state", path = path.display())]
    File {
        path: PathBuf,
        doing: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("the catalogue {path} is damaged ({what}); delete it and it is made again", path = path.display())]
    Damaged { path: PathBuf, what: &'static str },
    #[error(transparent)]
    Vault(VaultError),
    #[error("the tree of {point} cannot be read")]
    Tree {
        point: String,
        #[source]
        source: TreeError,
    },
    #[error("the search was interrupted; what was read into the catalogue so far stays")]
    Cancelled,
}

type Result<T, E = CatalogError> = std::result::Result<T, E>;

/// An open catalogue of one vault.
#[derive(Debug)]
pub struct Catalog {
    db: Connection,
    path: PathBuf,
}

/// For fuzzers: whether these bytes pass for a block of names.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn is_block(packed: &[u8]) -> bool {
    names::Unpacker::default().unpack(packed).is_some()
}

/// Where the catalogue of a vault lies.
pub fn place(state_directory: &Path, vault: &str) -> PathBuf {
    state_directory.join("catalog").join(format!("{vault}.sqlite"))
}

impl Catalog {
    /// Opens the catalogue of a vault, or begins an empty one. One of another layout, or damaged, is replaced.
    pub fn open(state_directory: &Path, vault: &str) -> Result<Catalog> {
        let path = place(state_directory, vault);
        let file = |doing, source| CatalogError::File { path: path.clone(), doing, source };
        if let Some(directory) = path.parent() {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
            made.map_err(|e| file("making its directory", e))?;
        }
        // Before SQLite would make it for everyone to read.
        let made = std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        drop(made.map_err(|e| file("opening it", e))?);
        match Catalog::at(path.clone(), vault) {
            Ok(Some(catalog)) => Ok(catalog),
            Ok(None) | Err(CatalogError::Damaged { .. }) => {
                Catalog::remove(state_directory, vault)?;
                let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
                drop(made.map_err(|e| file("making it anew", e))?);
                Catalog::at(path.clone(), vault)?.ok_or(CatalogError::Damaged { path, what: "its layout" })
            }
            Err(error) => Err(error),
        }
    }

    /// One that is kept nowhere, for a single search.
    pub fn passing() -> Result<Catalog> {
        let path = PathBuf::from(":memory:");
        Catalog::at(path.clone(), "")?.ok_or(CatalogError::Damaged { path, what: "its layout" })
    }

    /// Whether there is one already.
    pub fn exists(state_directory: &Path, vault: &str) -> bool {
        place(state_directory, vault).exists()
    }

    /// Deletes it; it can be made again from the vault.
    pub fn remove(state_directory: &Path, vault: &str) -> Result<()> {
        let path = place(state_directory, vault);
        for end in ["", "-journal", "-wal", "-shm"] {
            let mut name = path.clone().into_os_string();
            name.push(end);
            match std::fs::remove_file(&name) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(CatalogError::File { path: name.into(), doing: "deleting it", source: e });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// `None` for another layout.
    fn at(path: PathBuf, vault: &str) -> Result<Option<Catalog>> {
        let wrap = |doing| {
            let path = path.clone();
            move |source: rusqlite::Error| match source.sqlite_error_code() {
                Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => {
                    CatalogError::Damaged { path, what: "SQLite cannot read it" }
                }
                _ => CatalogError::Database { path, doing, source },
            }
        };
        let db = Connection::open(&path).map_err(wrap("opening it"))?;
        db.busy_timeout(BUSY_WAIT).map_err(wrap("opening it"))?;
        db.pragma_update(None, "cache_size", -CACHE_KIB).map_err(wrap("opening it"))?;
        db.pragma_update(None, "mmap_size", MAPPED_BYTES_MAX).map_err(wrap("opening it"))?;
        // Whatever the file says of its own tables, only ours are used, and what does not hold together is found to be damaged.
        db.pragma_update(None, "trusted_schema", "OFF").map_err(wrap("opening it"))?;
        db.pragma_update(None, "cell_size_check", "ON").map_err(wrap("opening it"))?;
        // What a power cut takes is made again.
        db.pragma_update(None, "synchronous", "OFF").map_err(wrap("opening it"))?;
        db.set_prepared_statement_cache_capacity(64);
        let layout: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(wrap("opening it"))?;
        if layout == 0 {
            db.execute_batch(SCHEMA).map_err(wrap("making its tables"))?;
            db.execute("INSERT OR IGNORE INTO about VALUES ('vault', ?)", [vault])
                .map_err(wrap("making its tables"))?;
            db.pragma_update(None, "user_version", LAYOUT).map_err(wrap("making its tables"))?;
        } else if layout != LAYOUT {
            return Ok(None);
        }
        let kept: Option<String> = db
            .query_row("SELECT value FROM about WHERE name = 'vault'", [], |row| row.get(0))
            .optional()
            .map_err(wrap("reading it"))?;
        Ok((kept.as_deref() == Some(vault)).then_some(Catalog { db, path }))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn failed(&self, doing: &'static str) -> impl FnOnce(rusqlite::Error) -> CatalogError + use<> {
        let path = self.path.clone();
        move |source| CatalogError::Database { path, doing, source }
    }

    fn damaged(&self, what: &'static str) -> CatalogError {
        CatalogError::Damaged { path: self.path.clone(), what }
    }

    /// How many paths it knows, those included that are gone.
    pub fn paths(&self) -> Result<u64> {
        let count: i64 = self
            .db
            .query_row("SELECT coalesce(max(first + count), 0) FROM block", [], |row| row.get(0))
            .map_err(self.failed("counting"))?;
        Ok(count.max(0) as u64)
    }
}

/// A *file* is a path's number: names are numbered in the order in which they stand in the blocks. A directory's number is also that of
/// its folder; the top of a chain is a name of its own, the empty one.
const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS chain (id INTEGER PRIMARY KEY, host TEXT NOT NULL, dataset TEXT NOT NULL, top INTEGER NOT NULL,
  UNIQUE (host, dataset));
CREATE TABLE IF NOT EXISTS point (chain INTEGER NOT NULL, sequence INTEGER NOT NULL, taken INTEGER NOT NULL, id TEXT NOT NULL,
  gone INTEGER NOT NULL, PRIMARY KEY (chain, sequence)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS block (first INTEGER PRIMARY KEY, count INTEGER NOT NULL, content BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS run (folder INTEGER NOT NULL, first INTEGER NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (folder, first))
  WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS folder (id INTEGER PRIMARY KEY, parent INTEGER, name BLOB NOT NULL, listing BLOB);
CREATE TABLE IF NOT EXISTS version (file INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER, kind INTEGER NOT NULL, size INTEGER NOT NULL,
  mtime INTEGER NOT NULL, seal INTEGER NOT NULL, PRIMARY KEY (file, first)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS ended ON version (file) WHERE last IS NOT NULL;
";
