//! A database file on its way back: written under another name than its own, and given its name only when it is whole.
//!
//! Invariant: no file under the database's own name is ever half-restored; what lies there already is written to only
//! after it has lost that name.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use lifeboat_vault::VaultError;
use lifeboat_vault::files::TreeError;
use rusqlite::{Connection, OpenFlags};

use super::apply::ApplyError;
use super::content::ContentError;
use crate::source::sync_directory_of;
use crate::source::way::ChainError;

#[derive(Debug, thiserror::Error)]
pub(super) enum RestoreError {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("{path} exists already; restore in place to change it, or restore elsewhere")]
    Exists { path: PathBuf },
    #[error("cannot {what} {path}")]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("recovery point {point} cannot be read from the vault; check the vault, or restore another point")]
    Vault {
        point: String,
        #[source]
        source: VaultError,
    },
    #[error("log piece {key} cannot be read from the vault; restore from another vault, or to a time before it")]
    Piece {
        key: String,
        #[source]
        source: VaultError,
    },
    #[error(
        "log piece {key} is not what a stream of SQLite writes; restore from another vault, or to a time before it"
    )]
    Content {
        key: String,
        #[source]
        source: ContentError,
    },
    #[error("log piece {key} cannot be applied")]
    Apply {
        key: String,
        #[source]
        source: ApplyError,
    },
    #[error("the tree of recovery point {point} cannot be read")]
    Tree {
        point: String,
        #[source]
        source: TreeError,
    },
    #[error("recovery point {point} is not of one SQLite database; restore it as files")]
    NotADatabase { point: String },
    #[error("the restored database is not sound ({finding}); restore an earlier point or time, and check the source")]
    Unsound { finding: String },
    #[error("SQLite cannot check the restored database")]
    Check(#[source] rusqlite::Error),
    #[error(
        "{path} was being changed when its standby was interrupted, and the vault cannot complete it; restore from a recovery point"
    )]
    Torn { path: PathBuf },
    #[error("interrupted; run it again to go on")]
    Cancelled,
}

impl RestoreError {
    pub(super) fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RestoreError {
        let path = path.to_owned();
        move |source| RestoreError::File { what, path, source }
    }

    /// Whether trying again later can help.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            RestoreError::Cancelled => true,
            RestoreError::Chain(ChainError::Vault(source))
            | RestoreError::Vault { source, .. }
            | RestoreError::Piece { source, .. } => source.may_pass(),
            RestoreError::Chain(ChainError::NoPoint { .. }) => true,
            _ => false,
        }
    }
}

/// A path with something appended to its last name.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path.as_os_str());
    name.push(suffix);
    name.into()
}

/// Removes what SQLite keeps beside a database: it belongs to a state that is no more.
pub(super) fn remove_companions(path: &Path) -> Result<(), RestoreError> {
    for suffix in ["-wal", "-shm", "-journal"] {
        let companion = beside(path, suffix);
        match fs::remove_file(&companion) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(RestoreError::file("remove", &companion)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Gives a finished file the database's name, durably.
pub(super) fn put_in_place(from: &Path, to: &Path) -> Result<(), RestoreError> {
    remove_companions(to)?;
    fs::rename(from, to).map_err(RestoreError::file("put into its place", to))?;
    sync_directory_of(to).map_err(RestoreError::file("make durable", to))
}

/// Opens the file that is worked on, made if it is not there.
pub(super) fn open_work(path: &Path) -> Result<File, RestoreError> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(RestoreError::file("make", directory))?;
    }
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(RestoreError::file("open", path))
}

/// How thoroughly SQLite looks.
#[derive(Debug, Clone, Copy)]
pub(super) enum Check {
    /// Everything, indexes against tables included.
    Integrity,
    /// All pages, but not that indexes and tables agree: a standby's pages came signed, and time counts.
    Quick,
}

/// Lets SQLite check the file, without writing to it.
pub(super) fn verify(path: &Path, check: Check) -> Result<&'static str, RestoreError> {
    let (pragma, told) = match check {
        Check::Integrity => (
            "pragma integrity_check(5)",
            "every page matched its signed id, and SQLite's integrity check found nothing",
        ),
        Check::Quick => {
            ("pragma quick_check(5)", "every page matched its signed id, and SQLite's quick check found nothing")
        }
    };
    let database = open_to_read(path)?;
    let mut statement = database.prepare(pragma).map_err(RestoreError::Check)?;
    let findings = statement
        .query_map([], |row| row.get::<_, String>(0))
        .and_then(|rows| rows.collect::<Result<Vec<_>, _>>())
        .map_err(RestoreError::Check)?;
    if findings == ["ok"] { Ok(told) } else { Err(RestoreError::Unsound { finding: findings.join("; ") }) }
}

/// Opens a finished file that nobody writes to.
pub(super) fn open_to_read(path: &Path) -> Result<Connection, RestoreError> {
    let uri = format!("file:{}?immutable=1", percent_encode(path));
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(uri, flags).map_err(RestoreError::Check)
}

fn percent_encode(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    path.as_os_str()
        .as_bytes()
        .iter()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' => (*byte as char).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
