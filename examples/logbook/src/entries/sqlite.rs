//! The entries and canary values in SQLite, in WAL mode with `synchronous = FULL`. Several processes on one host may share one database.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use super::{Added, CANARIES_KEPT, Corruption, EntriesError, Entry};

/// How long a write waits for another process's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct InSqlite {
    path: PathBuf,
    connection: Connection,
    /// Device and inode of the file that was opened.
    identity: (u64, u64),
}

impl InSqlite {
    pub(super) fn open(path: &Path) -> Result<InSqlite, EntriesError> {
        let failed = |source| EntriesError::Database { path: path.to_owned(), source };
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)
                .map_err(|source| EntriesError::Directory { path: directory.to_owned(), source })?;
        }
        let connection = Connection::open(path).map_err(failed)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
        let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)).map_err(failed)?;
        if mode != "wal" {
            return Err(EntriesError::NotWal { path: path.to_owned(), mode });
        }
        connection
            .execute_batch(
                "PRAGMA synchronous = FULL;
                 CREATE TABLE IF NOT EXISTS entries (
                     sequence INTEGER PRIMARY KEY AUTOINCREMENT,
                     id TEXT NOT NULL UNIQUE,
                     text TEXT NOT NULL,
                     at TEXT NOT NULL) STRICT;
                 CREATE TABLE IF NOT EXISTS canaries (
                     number INTEGER PRIMARY KEY AUTOINCREMENT,
                     value TEXT NOT NULL,
                     at TEXT NOT NULL) STRICT;",
            )
            .map_err(failed)?;
        let identity = identity(path).ok_or_else(|| EntriesError::Replaced { path: path.to_owned() })?;
        Ok(InSqlite { path: path.to_owned(), connection, identity })
    }

    fn failed(&self) -> impl Fn(rusqlite::Error) -> EntriesError + use<> {
        let path = self.path.clone();
        move |source| EntriesError::Database { path: path.clone(), source }
    }

    pub(super) fn add(&mut self, id: &str, text: &str) -> Result<Added, EntriesError> {
        let failed = self.failed();
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
        let there: Option<(i64, String)> = transaction
            .query_row("SELECT sequence, text FROM entries WHERE id = ?1", [id], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()
            .map_err(&failed)?;
        if let Some((sequence, old)) = there {
            return Ok(if old == text { Added::Again { sequence } } else { Added::Conflict });
        }
        transaction
            .execute(
                "INSERT INTO entries (id, text, at) VALUES (?1, ?2, ?3)",
                params![id, text, crate::now().to_string()],
            )
            .map_err(&failed)?;
        let sequence = transaction.last_insert_rowid();
        transaction.commit().map_err(&failed)?;
        Ok(Added::New { sequence })
    }

    pub(super) fn get(&self, id: &str) -> Result<Option<Entry>, EntriesError> {
        self.connection
            .query_row("SELECT id, sequence, text, at FROM entries WHERE id = ?1", [id], entry)
            .optional()
            .map_err(self.failed())
    }

    /// At most `limit` entries after a sequence number, in order.
    pub(super) fn after(&self, sequence: i64, limit: u32) -> Result<Vec<Entry>, EntriesError> {
        let failed = self.failed();
        let mut statement = self
            .connection
            .prepare_cached("SELECT id, sequence, text, at FROM entries WHERE sequence > ?1 ORDER BY sequence LIMIT ?2")
            .map_err(&failed)?;
        let rows = statement.query_map(params![sequence, limit], entry).map_err(&failed)?;
        rows.collect::<Result<_, _>>().map_err(&failed)
    }

    /// Whether a write could be done now: the file is still the one in its place, and its write lock can be had.
    pub(super) fn check_writable(&mut self) -> Result<(), EntriesError> {
        if identity(&self.path) != Some(self.identity) {
            return Err(EntriesError::Replaced { path: self.path.clone() });
        }
        let failed = self.failed();
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
        let _: i64 = transaction
            .query_row("SELECT coalesce(max(sequence), 0) FROM entries", [], |row| row.get(0))
            .map_err(&failed)?;
        transaction.rollback().map_err(&failed)
    }

    pub(super) fn write_canary(&mut self, value: &str) -> Result<(), EntriesError> {
        let failed = self.failed();
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
        transaction
            .execute("INSERT INTO canaries (value, at) VALUES (?1, ?2)", params![value, crate::now().to_string()])
            .map_err(&failed)?;
        transaction
            .execute(
                "DELETE FROM canaries WHERE number <= (SELECT max(number) FROM canaries) - ?1",
                params![CANARIES_KEPT],
            )
            .map_err(&failed)?;
        transaction.commit().map_err(&failed)
    }

    pub(super) fn newest_canary(&self) -> Result<Option<String>, EntriesError> {
        self.connection
            .query_row("SELECT value FROM canaries ORDER BY number DESC LIMIT 1", [], |row| row.get(0))
            .optional()
            .map_err(self.failed())
    }

    /// What a bad release does: every text is garbled, every third entry is gone.
    pub(super) fn corrupt(&mut self) -> Result<Corruption, EntriesError> {
        let failed = self.failed();
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
        let deleted = transaction.execute("DELETE FROM entries WHERE sequence % 3 = 0", []).map_err(&failed)?;
        let garbled =
            transaction.execute("UPDATE entries SET text = 'NaN ' || substr(text, 1, 3)", []).map_err(&failed)?;
        transaction.commit().map_err(&failed)?;
        Ok(Corruption { garbled: garbled as u64, deleted: deleted as u64 })
    }
}

fn entry(row: &rusqlite::Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry { id: row.get(0)?, sequence: row.get(1)?, text: row.get(2)?, at: row.get(3)? })
}

/// `stat` only: opening and closing the file here would drop SQLite's own lock on it.
fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}
