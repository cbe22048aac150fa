//! The connections that keep a database's log from starting again before it was read.
//!
//! A read transaction is always held. SQLite lets a writer start the log again from its beginning only when nobody
//! reads from the log; and a reader that began when all of the log was in the database file (so that it does not
//! read from the log) blocks checkpoints instead, so that the log can start again at most once under it. Hence the
//! invariant: **if, each time a new read transaction has begun, the log is read to its end before the old one ends,
//! no frame is ever overwritten unread.** `Hold::renew` is the only place where this order is kept.
//!
//! The database file itself is also read directly (a snapshot's pages). Closing it would drop SQLite's POSIX locks in
//! this process, so one descriptor for each file is shared by all and closed after the last connection.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

#[derive(Debug, thiserror::Error)]
pub(super) enum HoldError {
    #[error("there is no database at {path}")]
    Absent { path: PathBuf },
    #[error("cannot look at {path}")]
    Look {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("SQLite cannot {what} the database {path}")]
    Sqlite {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error("{path} is not the file it was: it was deleted or replaced")]
    Replaced { path: PathBuf },
    #[error("the database {path} is not in WAL mode (journal mode is {mode})")]
    NotWal { path: PathBuf, mode: String },
}

impl HoldError {
    /// Whether it may be over by itself: another process was in the way.
    pub(super) fn is_busy(&self) -> bool {
        let HoldError::Sqlite { source, .. } = self else { return false };
        matches!(
            source.sqlite_error_code(),
            Some(
                rusqlite::ErrorCode::DatabaseBusy
                    | rusqlite::ErrorCode::DatabaseLocked
                    | rusqlite::ErrorCode::FileLockingProtocolFailed
            )
        )
    }
}

pub(super) const READER_PATIENCE: Duration = Duration::from_secs(2);

type FileId = (u64, u64);

/// Every database file that this process has open for direct reading.
static OPEN: Mutex<Option<HashMap<FileId, Weak<File>>>> = Mutex::new(None);

fn file_id(metadata: &fs::Metadata) -> FileId {
    (metadata.dev(), metadata.ino())
}

fn look(path: &Path) -> Result<fs::Metadata, HoldError> {
    fs::metadata(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => HoldError::Absent { path: path.to_owned() },
        _ => HoldError::Look { path: path.to_owned(), source },
    })
}

/// Opens the database file for reading, or finds it open. Must be called before a connection to it is opened, and
/// the answer must be dropped after the connection.
pub(super) fn open_shared(path: &Path) -> Result<Arc<File>, HoldError> {
    let id = file_id(&look(path)?);
    let mut guard = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let open = guard.get_or_insert_default();
    open.retain(|_, file| file.strong_count() > 0);
    if let Some(file) = open.get(&id).and_then(Weak::upgrade) {
        return Ok(file);
    }
    let cannot = |source| HoldError::Look { path: path.to_owned(), source };
    let file = Arc::new(File::open(path).map_err(cannot)?);
    open.insert(file_id(&file.metadata().map_err(cannot)?), Arc::downgrade(&file));
    Ok(file)
}

/// How much of the log there is, and how much of it is in the database file already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogState {
    pub(super) frames: u32,
    pub(super) backfilled: u32,
}

/// One connection with, or without, a read transaction. The shared file is closed last.
#[derive(Debug)]
pub(super) struct Reader {
    connection: Connection,
    path: PathBuf,
    _file: Arc<File>,
}

impl Reader {
    pub(super) fn open(path: &Path, file: &Arc<File>, patience: Duration) -> Result<Reader, HoldError> {
        let failed = |what| move |source| HoldError::Sqlite { what, path: path.to_owned(), source };
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(failed("open"))?;
        // Left where it is, the log lets a capture that starts again go on from where it was.
        connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
            .and_then(|_| connection.busy_timeout(patience))
            .map_err(failed("configure"))?;
        Ok(Reader { connection, path: path.to_owned(), _file: file.clone() })
    }

    fn failed(&self, what: &'static str) -> impl FnOnce(rusqlite::Error) -> HoldError {
        let path = self.path.clone();
        move |source| HoldError::Sqlite { what, path, source }
    }

    pub(super) fn begin(&self) -> Result<(), HoldError> {
        self.connection
            .execute_batch("begin")
            .and_then(|()| self.connection.query_row("pragma schema_version", [], |_| Ok(())))
            .map_err(|source| {
                self.end();
                self.failed("begin to read")(source)
            })
    }

    pub(super) fn end(&self) {
        // There is nothing to roll back; if it fails there was no transaction.
        let _ = self.connection.execute_batch("rollback");
    }

    fn journal_mode(&self) -> Result<String, HoldError> {
        self.connection.query_row("pragma journal_mode", [], |row| row.get(0)).map_err(self.failed("look at"))
    }

    /// What a `pragma wal_checkpoint` of some kind answers.
    fn checkpoint(&self, pragma: &str) -> Result<LogState, HoldError> {
        let answer: (i64, i64) = self
            .connection
            .query_row(pragma, [], |row| Ok((row.get(1)?, row.get(2)?)))
            .map_err(self.failed("look at the log of"))?;
        let count = |value: i64| u32::try_from(value).unwrap_or(0);
        Ok(LogState { frames: count(answer.0), backfilled: count(answer.1) })
    }
}

#[derive(Debug)]
pub(super) struct Hold {
    readers: [Reader; 2],
    /// Which of the readers has the transaction that counts.
    held: usize,
    /// Looks at the log's state and makes checkpoints; never in a transaction.
    look: Reader,
    /// Keeps writers out for a moment when nothing else lets the log start again.
    writer: Reader,
    file: Arc<File>,
    id: FileId,
    path: PathBuf,
    wal_path: PathBuf,
    /// The log as it was first opened. While it is held nobody may delete it.
    wal: Option<Arc<File>>,
}

const LOCK_LOOKS: u32 = 20;
/// The byte of -shm that every connection keeps locked as long as it has it open.
const SHM_ALIVE_BYTE: u64 = 128;

impl Hold {
    /// Opens the database and begins to hold its log. Refuses one that is not in WAL mode.
    pub(super) fn open(path: &Path) -> Result<Hold, HoldError> {
        let path = fs::canonicalize(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => HoldError::Absent { path: path.to_owned() },
            _ => HoldError::Look { path: path.to_owned(), source },
        })?;
        let file = open_shared(&path)?;
        let id = file_id(&file.metadata().map_err(|source| HoldError::Look { path: path.clone(), source })?);
        let open = |patience| Reader::open(&path, &file, patience);
        let readers = [open(READER_PATIENCE)?, open(READER_PATIENCE)?];
        let (look, writer) = (open(READER_PATIENCE)?, open(READER_PATIENCE)?);
        let mode = look.journal_mode()?;
        if mode != "wal" {
            return Err(HoldError::NotWal { path, mode });
        }
        let mut wal_path = path.clone().into_os_string();
        wal_path.push("-wal");
        let hold = Hold { readers, held: 0, look, writer, file, id, path, wal_path: wal_path.into(), wal: None };
        hold.readers[0].begin()?;
        hold.check_identity()?;
        Ok(hold)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Begins a new read transaction, lets `read` read the log to its end, and only then ends the old one. If `read`
    /// fails the old transaction stays.
    pub(super) fn renew<T, E: From<HoldError>>(
        &mut self,
        read: impl FnOnce(&mut Hold) -> Result<T, E>,
    ) -> Result<T, E> {
        let next = 1 - self.held;
        self.readers[next].begin()?;
        match read(self) {
            Ok(answer) => {
                self.readers[self.held].end();
                self.held = next;
                Ok(answer)
            }
            Err(error) => {
                self.readers[next].end();
                Err(error)
            }
        }
    }

    /// Whether the path still leads to the file that is held.
    pub(super) fn check_identity(&self) -> Result<(), HoldError> {
        match look(&self.path) {
            Ok(metadata) if file_id(&metadata) == self.id => Ok(()),
            Ok(_) | Err(HoldError::Absent { .. }) => Err(HoldError::Replaced { path: self.path.clone() }),
            Err(error) => Err(error),
        }
    }

    /// Only frames that SQLite has published count: one that a dying writer left behind will be overwritten.
    pub(super) fn log_state(&self) -> Result<LogState, HoldError> {
        self.look.checkpoint("pragma wal_checkpoint(noop)")
    }

    /// A number that is another one after others have committed.
    pub(super) fn commits_seen(&self) -> Result<i64, HoldError> {
        let look = &self.look;
        look.connection
            .query_row("pragma data_version", [], |row| row.get(0))
            .map_err(look.failed("look at the commits of"))
    }

    /// Copies as much of the log into the database file as readers allow, without waiting for anybody.
    pub(super) fn checkpoint(&self) -> Result<LogState, HoldError> {
        self.look.checkpoint("pragma wal_checkpoint(passive)")
    }

    /// Keeps writers out until `end_without_writers`; `false` if one was in for too long.
    pub(super) fn begin_without_writers(&self, patience: Duration) -> Result<bool, HoldError> {
        self.writer.connection.busy_timeout(patience).map_err(self.writer.failed("configure"))?;
        match self.writer.connection.execute_batch("begin immediate") {
            Ok(()) => Ok(true),
            Err(source) => {
                let error = self.writer.failed("keep writers out of")(source);
                if error.is_busy() { Ok(false) } else { Err(error) }
            }
        }
    }

    pub(super) fn end_without_writers(&self) {
        self.writer.end();
    }

    /// The log file; `None` if there is none.
    pub(super) fn wal(&mut self) -> Result<Option<Arc<File>>, HoldError> {
        let cannot = |source| HoldError::Look { path: self.wal_path.clone(), source };
        let there = match fs::metadata(&self.wal_path) {
            Ok(metadata) => Some(file_id(&metadata)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(cannot(source)),
        };
        if let Some(wal) = &self.wal {
            return match there {
                Some(id) if file_id(&wal.metadata().map_err(cannot)?) == id => Ok(Some(wal.clone())),
                _ => Err(HoldError::Replaced { path: self.wal_path.clone() }),
            };
        }
        if there.is_none() {
            return Ok(None);
        }
        let opened = Arc::new(File::open(&self.wal_path).map_err(cannot)?);
        self.wal = Some(opened.clone());
        Ok(Some(opened))
    }
}

/// Whether the system still knows SQLite's lock on a database's -shm as this process's. Once lost (somebody opened and
/// closed the file here) it does not come back, so that it is there means that it always was.
pub(super) fn locks_are_alive(path: &Path) -> bool {
    // The list changes while it is read, and then an entry may be passed over; none is ever made up.
    (0..LOCK_LOOKS).any(|look| {
        if look > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        is_locked(path)
    })
}

fn is_locked(path: &Path) -> bool {
    let mut shm_path = path.to_owned().into_os_string();
    shm_path.push("-shm");
    let (Ok(shm), Ok(locks)) = (fs::metadata(shm_path), fs::read_to_string("/proc/locks")) else { return false };
    let owner = std::process::id().to_string();
    locks.lines().any(|line| {
        // `3: POSIX  ADVISORY  READ 1234 fe:01:5678 128 128`
        let mut fields = line.split_ascii_whitespace().skip(1);
        let kind = fields.next();
        let Some(pid) = fields.nth(2) else { return false };
        let (Some(file), Some(first), Some(last)) = (fields.next(), fields.next(), fields.next()) else {
            return false;
        };
        let inode = file.rsplit(':').next().and_then(|inode| inode.parse::<u64>().ok());
        let (first, last) = (first.parse::<u64>(), last.parse::<u64>());
        kind == Some("POSIX")
            && pid == owner
            && inode == Some(shm.ino())
            && first.is_ok_and(|first| first <= SHM_ALIVE_BYTE)
            && last.map_or(true, |last| last >= SHM_ALIVE_BYTE)
    })
}
