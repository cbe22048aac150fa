//! The journal of runs: numbered, timed, chained entries in SQLite, each on disk before anything is done because of it.
//!
//! Invariant: an entry that `append` returned is durable, follows the one before it, and is never changed. A journal
//! that is not whole is refused, naming the entry. Two processes may append to one run (an executor, and a person's
//! word); who did not see the other's entry is told so (`Moved`) and writes nothing.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_core::run::{BrokenChain, Entry, Event, NO_PREDECESSOR, RunState, RunView, Sealed, ViewError, open_chain};
use lifeboat_core::runbook::Purpose;
use rusqlite::{Connection, ErrorCode, OptionalExtension, TransactionBehavior, params};
use serde::Serialize;

use crate::port::Clock;

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("the journal {} cannot be opened; check the directory, its permissions and the room on its disk, or name another with --state", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the journal {} cannot be read", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error(
        "the disk with the journal {} is full: entry {seq} of run {run} was not recorded, so nothing more is done; make room, then `lifeboat run resume {run}`", path.display()
    )]
    Full { path: PathBuf, run: String, seq: u64 },
    #[error(
        "entry {seq} of run {run} could not be recorded in {}, so nothing more is done; then `lifeboat run resume {run}`", path.display()
    )]
    Write {
        path: PathBuf,
        run: String,
        seq: u64,
        #[source]
        source: rusqlite::Error,
    },
    #[error("entry {seq} of run {run} cannot be written as JSON")]
    Encode {
        run: String,
        seq: u64,
        #[source]
        source: serde_json::Error,
    },
    #[error(
        "the journal {} is not whole; it is not continued. Compare it with its mirror in the arbiter's storage (journal/{}/)", path.display(), source.run
    )]
    Broken {
        path: PathBuf,
        #[source]
        source: BrokenChain,
    },
    #[error("another process has written to the journal of run {run} since entry {seq}")]
    Moved { run: String, seq: u64 },
    #[error("there is no run {run} in {}; `lifeboat run list` shows those there are", path.display())]
    NoRun { run: String, path: PathBuf },
    #[error("there is already a run {run} in {}", path.display())]
    Exists { run: String, path: PathBuf },
    #[error("the mirrored journal of run {run} says something else at entry {seq} than the one in {}", path.display())]
    Differs { run: String, seq: u64, path: PathBuf },
    #[error("another lifeboat process on this machine works on {service}; wait for it, or interrupt it")]
    Busy { service: String },
    #[error("the journal was unplugged")]
    Unplugged,
}

/// The last entry of a run that somebody has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub seq: u64,
    pub hash: String,
}

impl Head {
    /// Before the first entry.
    pub fn start() -> Head {
        Head { seq: 0, hash: NO_PREDECESSOR.into() }
    }
}

/// A whole journal, checked.
#[derive(Debug, Clone)]
pub struct Recorded {
    pub entries: Vec<Entry>,
    pub sealed: Vec<Sealed>,
    pub head: Head,
}

impl Recorded {
    pub fn view(&self) -> Result<RunView, ViewError> {
        RunView::of(&self.entries, &self.head.hash)
    }
}

/// One run in a list.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Listing {
    pub run: String,
    pub service: Option<String>,
    pub purpose: Option<Purpose>,
    pub state: Option<RunState>,
    pub started_at: Option<Timestamp>,
    pub last_at: Option<Timestamp>,
    pub entries: u64,
    /// Why the run cannot be read.
    pub problem: Option<String>,
}

/// For tests: when the journal stops working, as if the process had been killed there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unplug {
    /// This many more appends work; the next is lost.
    Before(u64),
    /// This many more appends work; the next becomes durable, but the writer never learns of it.
    After(u64),
}

pub struct Journal {
    connection: Mutex<Connection>,
    path: PathBuf,
    clock: Arc<dyn Clock>,
    process: String,
    host: String,
    unplug: Mutex<Option<Unplug>>,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Held as long as this process works on a service; the system lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct LocalLock {
    _file: File,
}

const SCHEMA: &str = "
    create table if not exists entries (
        run text not null, seq integer not null, body text not null, hash text not null,
        primary key (run, seq)
    ) strict, without rowid;
    create table if not exists host (id text not null) strict;
    insert into host select lower(hex(randomblob(16))) where not exists (select 1 from host);
";

impl Journal {
    /// Opens, or begins, the journal in a state directory.
    pub fn open(state: &Path, clock: Arc<dyn Clock>) -> Result<Journal, JournalError> {
        let path = state.join("journal.sqlite");
        let failed =
            |source: Box<dyn std::error::Error + Send + Sync>| JournalError::Open { path: path.clone(), source };
        std::fs::create_dir_all(state).map_err(|error| failed(error.into()))?;
        let (connection, host) = connect(&path).map_err(|error| failed(error.into()))?;
        let process = format!("{}-{}", std::process::id(), clock.now().as_nanosecond());
        let unplug = Mutex::new(None);
        Ok(Journal { connection: Mutex::new(connection), path, clock, process, host, unplug })
    }

    /// Names this state directory, the same every time.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds one entry after `head`, durably, or says why not and adds nothing.
    pub fn append(&self, run: &str, head: &Head, event: &Event) -> Result<(Entry, Sealed), JournalError> {
        let seq = head.seq + 1;
        let entry = Entry {
            run: run.into(),
            seq,
            at: self.clock.now(),
            process: self.process.clone(),
            monotonic_seconds: self.clock.monotonic_seconds(),
            previous: head.hash.clone(),
            event: event.clone(),
        };
        let sealed = entry.seal().map_err(|source| JournalError::Encode { run: run.into(), seq, source })?;
        let lost_after = self.pull()?;
        self.insert(run, head, std::slice::from_ref(&sealed))?;
        if lost_after {
            return Err(JournalError::Unplugged);
        }
        Ok((entry, sealed))
    }

    /// Adds what a mirror has and this journal has not; both must agree on all that both have.
    pub fn import(&self, run: &str, mirrored: &[Sealed]) -> Result<Recorded, JournalError> {
        open_chain(run, mirrored).map_err(|source| JournalError::Broken { path: self.path.clone(), source })?;
        let own = self.sealed_after(run, 0)?;
        if let Some(index) = own.iter().zip(mirrored).position(|(one, other)| one != other) {
            return Err(JournalError::Differs { run: run.into(), seq: index as u64 + 1, path: self.path.clone() });
        }
        if let Some(missing) = mirrored.get(own.len()..).filter(|missing| !missing.is_empty()) {
            let hash = own.last().map_or(NO_PREDECESSOR.into(), |last| last.hash.clone());
            self.insert(run, &Head { seq: own.len() as u64, hash }, missing)?;
        }
        self.read(run)
    }

    /// The whole journal of a run, checked from its first entry.
    pub fn read(&self, run: &str) -> Result<Recorded, JournalError> {
        let sealed = self.sealed_after(run, 0)?;
        let entries =
            open_chain(run, &sealed).map_err(|source| JournalError::Broken { path: self.path.clone(), source })?;
        let Some(last) = sealed.last() else {
            return Err(JournalError::NoRun { run: run.into(), path: self.path.clone() });
        };
        let head = Head { seq: sealed.len() as u64, hash: last.hash.clone() };
        Ok(Recorded { entries, sealed, head })
    }

    /// What others added after `head`.
    pub fn read_after(&self, run: &str, head: &Head) -> Result<Vec<(Entry, Sealed)>, JournalError> {
        let mut previous = head.clone();
        let mut fresh = Vec::new();
        for sealed in self.sealed_after(run, head.seq)? {
            let entry = sealed
                .open(run, previous.seq + 1, &previous.hash)
                .map_err(|source| JournalError::Broken { path: self.path.clone(), source })?;
            previous = Head { seq: entry.seq, hash: sealed.hash.clone() };
            fresh.push((entry, sealed));
        }
        Ok(fresh)
    }

    /// The runs' ids, the newest first.
    pub fn names(&self) -> Result<Vec<String>, JournalError> {
        let connection = self.connection();
        let mut query =
            connection.prepare("select distinct run from entries order by run desc").map_err(self.read_failed())?;
        let rows = query.query_map([], |row| row.get(0)).map_err(self.read_failed())?;
        rows.collect::<Result<_, _>>().map_err(self.read_failed())
    }

    /// All runs, the newest first. One that is broken is listed with its problem and does not hide the others.
    pub fn runs(&self) -> Result<Vec<Listing>, JournalError> {
        let mut listings = Vec::new();
        for run in self.names()? {
            let read = self
                .read(&run)
                .map_err(|error| with_cause(&error))
                .and_then(|recorded| recorded.view().map_err(|error| with_cause(&error)));
            listings.push(match read {
                Ok(view) => Listing {
                    run,
                    service: Some(view.runbook.service.clone()),
                    purpose: Some(view.runbook.purpose),
                    state: Some(view.state),
                    started_at: Some(view.started_at),
                    last_at: Some(view.last_at),
                    entries: view.entries,
                    problem: None,
                },
                Err(problem) => Listing {
                    run,
                    service: None,
                    purpose: None,
                    state: None,
                    started_at: None,
                    last_at: None,
                    entries: 0,
                    problem: Some(problem),
                },
            });
        }
        Ok(listings)
    }

    /// The run on a service that has begun and not ended, if there is one; a run that cannot be read is not counted.
    pub fn unfinished(&self, service: &str) -> Result<Option<Listing>, JournalError> {
        let ended = |state| {
            matches!(
                state,
                RunState::Completed | RunState::CompletedWithExceptions | RunState::Failed | RunState::Cancelled
            )
        };
        let open = |listing: &Listing| {
            listing.service.as_deref() == Some(service) && listing.state.is_some_and(|state| !ended(state))
        };
        Ok(self.runs()?.into_iter().find(open))
    }

    /// Takes the machine's own lock on a service; only one process with this state directory has it.
    pub fn lock_service(&self, service: &str) -> Result<LocalLock, JournalError> {
        let name: String =
            service.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
        let path = self.path.with_file_name(format!("{name}.lock"));
        let failed = |source: std::io::Error| JournalError::Open { path: path.clone(), source: source.into() };
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(LocalLock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(JournalError::Busy { service: service.into() }),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// For tests: from when on appending fails.
    pub fn unplug(&self, when: Unplug) {
        *self.unplug.lock().unwrap_or_else(PoisonError::into_inner) = Some(when);
    }

    /// For tests: how many pages the database may have, so that a disk can be full.
    pub fn cap_pages(&self, pages: u32) -> Result<(), JournalError> {
        self.connection().pragma_update(None, "max_page_count", pages).map_err(self.read_failed())
    }

    /// Counts one append against the unplug hook; says whether this one is to be lost after it is durable.
    fn pull(&self) -> Result<bool, JournalError> {
        let mut unplug = self.unplug.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *unplug {
            None => Ok(false),
            Some(Unplug::Before(0)) => Err(JournalError::Unplugged),
            Some(Unplug::After(0)) => {
                *unplug = Some(Unplug::Before(0));
                Ok(true)
            }
            Some(Unplug::Before(left) | Unplug::After(left)) => {
                *left -= 1;
                Ok(false)
            }
        }
    }

    fn insert(&self, run: &str, head: &Head, sealed: &[Sealed]) -> Result<(), JournalError> {
        let failed = |source: rusqlite::Error| match source.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => {
                JournalError::Full { path: self.path.clone(), run: run.into(), seq: head.seq + 1 }
            }
            _ => JournalError::Write { path: self.path.clone(), run: run.into(), seq: head.seq + 1, source },
        };
        let mut connection = self.connection();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        let last: Option<(u64, String)> = transaction
            .query_row("select seq, hash from entries where run = ?1 order by seq desc limit 1", [run], |row| {
                Ok((row.get::<_, i64>(0)?.unsigned_abs(), row.get(1)?))
            })
            .optional()
            .map_err(failed)?;
        let (seq, hash) = last.unwrap_or((0, NO_PREDECESSOR.into()));
        if (seq, hash.as_str()) != (head.seq, head.hash.as_str()) {
            return Err(match head.seq {
                0 => JournalError::Exists { run: run.into(), path: self.path.clone() },
                seq => JournalError::Moved { run: run.into(), seq },
            });
        }
        for (one, seq) in sealed.iter().zip(head.seq as i64 + 1..) {
            transaction
                .execute("insert into entries values (?1, ?2, ?3, ?4)", params![run, seq, one.body, one.hash])
                .map_err(failed)?;
        }
        transaction.commit().map_err(failed)
    }

    fn sealed_after(&self, run: &str, seq: u64) -> Result<Vec<Sealed>, JournalError> {
        let connection = self.connection();
        let mut query = connection
            .prepare_cached("select body, hash from entries where run = ?1 and seq > ?2 order by seq")
            .map_err(self.read_failed())?;
        let rows = query
            .query_map(params![run, seq as i64], |row| Ok(Sealed { body: row.get(0)?, hash: row.get(1)? }))
            .map_err(self.read_failed())?;
        rows.collect::<Result<_, _>>().map_err(self.read_failed())
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_failed(&self) -> impl Fn(rusqlite::Error) -> JournalError {
        |source| JournalError::Read { path: self.path.clone(), source }
    }
}

/// An error and all its causes in one line.
fn with_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(one) = cause {
        text = format!("{text}: {one}");
        cause = one.source();
    }
    text
}

fn connect(path: &Path) -> Result<(Connection, String), rusqlite::Error> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.execute_batch(SCHEMA)?;
    let host = connection.query_row("select id from host", [], |row| row.get(0))?;
    Ok((connection, host))
}
