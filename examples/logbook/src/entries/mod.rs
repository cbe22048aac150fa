//! The entries and canary values, in SQLite or in PostgreSQL.
//!
//! Invariant: an answer is given only after the transaction is committed and durable, so what was acknowledged survives the process and
//! the machine's power.

mod postgres;
mod sqlite;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use self::postgres::InPostgres;
use self::sqlite::InSqlite;

/// Canary values older than the newest so many are dropped.
const CANARIES_KEPT: i64 = 1000;

#[derive(Debug, thiserror::Error)]
pub(crate) enum EntriesError {
    #[error("the directory {path} cannot be made")]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("the database {path} failed")]
    Database { path: PathBuf, source: rusqlite::Error },
    #[error("the database {path} is not the file that was opened any more: it was removed or replaced")]
    Replaced { path: PathBuf },
    #[error("the database {path} is in journal mode {mode}, not WAL: put it on a file system with shared memory")]
    NotWal { path: PathBuf, mode: String },
    #[error("the database server failed")]
    Server { source: ::postgres::Error },
    #[error("the database server takes no writes: it is in recovery, or read-only")]
    ReadOnly,
}

/// One entry, as it is stored and as clients read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) id: String,
    pub(crate) sequence: i64,
    pub(crate) text: String,
    pub(crate) at: String,
}

/// What adding an entry came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Added {
    New {
        sequence: i64,
    },
    /// The same id with the same text was here before: a client that heard no answer asked again.
    Again {
        sequence: i64,
    },
    /// The id is taken by another text.
    Conflict,
}

/// What a bad release did.
#[derive(Debug, Serialize)]
pub(crate) struct Corruption {
    pub(crate) garbled: u64,
    pub(crate) deleted: u64,
}

#[derive(Debug)]
pub(crate) struct Entries(Store);

#[derive(Debug)]
enum Store {
    Sqlite(InSqlite),
    Postgres(Box<InPostgres>),
}

impl Entries {
    /// `database`: a file, which is made if it is not there, or `postgres://USER@HOST:PORT/DATABASE`.
    pub(crate) fn open(database: &str) -> Result<Entries, EntriesError> {
        Ok(Entries(match database.split_once("://") {
            Some(_) => Store::Postgres(Box::new(InPostgres::open(database)?)),
            None => Store::Sqlite(InSqlite::open(Path::new(database))?),
        }))
    }

    pub(crate) fn add(&mut self, id: &str, text: &str) -> Result<Added, EntriesError> {
        match &mut self.0 {
            Store::Sqlite(store) => store.add(id, text),
            Store::Postgres(store) => store.add(id, text),
        }
    }

    pub(crate) fn get(&mut self, id: &str) -> Result<Option<Entry>, EntriesError> {
        match &mut self.0 {
            Store::Sqlite(store) => store.get(id),
            Store::Postgres(store) => store.get(id),
        }
    }

    /// At most `limit` entries after a sequence number, in order.
    pub(crate) fn after(&mut self, sequence: i64, limit: u32) -> Result<Vec<Entry>, EntriesError> {
        match &mut self.0 {
            Store::Sqlite(store) => store.after(sequence, limit),
            Store::Postgres(store) => store.after(sequence, limit),
        }
    }

    /// Whether a write could be done now.
    pub(crate) fn check_writable(&mut self) -> Result<(), EntriesError> {
        match &mut self.0 {
            Store::Sqlite(store) => store.check_writable(),
            Store::Postgres(store) => store.check_writable(),
        }
    }

    pub(crate) fn write_canary(&mut self, value: &str) -> Result<(), EntriesError> {
        match &mut self.0 {
            Store::Sqlite(store) => store.write_canary(value),
            Store::Postgres(store) => store.write_canary(value),
        }
    }

    pub(crate) fn newest_canary(&mut self) -> Result<Option<String>, EntriesError> {
        match &mut self.0 {
            Store::Sqlite(store) => store.newest_canary(),
            Store::Postgres(store) => store.newest_canary(),
        }
    }

    /// What a bad release does: every text is garbled, every third entry is gone.
    pub(crate) fn corrupt(&mut self) -> Result<Corruption, EntriesError> {
        match &mut self.0 {
            Store::Sqlite(store) => store.corrupt(),
            Store::Postgres(store) => store.corrupt(),
        }
    }
}
