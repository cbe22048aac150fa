//! Where data comes from and goes back to: the ports `Source`, `Restorer` and `Standby` for each kind of data set.
//!
//! Invariant: a kind that cannot stream says so; nothing here pretends to a smaller loss than it can show.

mod ahead;
mod dump;
mod files;
mod kinds;
pub(crate) mod postgres;
mod scratch;
pub(crate) mod sqlite;
mod way;

use std::error::Error;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use lifeboat_engine::port::PortError;
use lifeboat_engine::verify::{Outcome, said_by_vault};
use lifeboat_vault::files::{Metadata, RestoreError, TreeError};

pub use dump::{PostgresDump, Server};
pub use files::FilesSource;
pub use kinds::{restorer_for, source_for};
pub use postgres::PostgresSource;
pub use scratch::Scratch;
pub use sqlite::SqliteSource;

/// A data set that lies beside its own name until it is promoted, and under which name.
pub const STANDBY_SUFFIX: &str = ".lifeboat-standby";

/// Whether a standby for the path lies beside it. What cannot be looked at counts as one: nothing else may take its place.
fn has_standby(path: &Path) -> bool {
    let mut work = path.as_os_str().to_owned();
    work.push(STANDBY_SUFFIX);
    Path::new(&work).try_exists().unwrap_or(true)
}

/// What an error in reading a tree says of what is stored.
fn said_by_tree(error: &TreeError) -> Option<Outcome> {
    match error {
        TreeError::Chunk(source) => said_by_vault(source),
        TreeError::Damaged { .. } | TreeError::Undecodable(_) | TreeError::UnsafeName { .. } => Some(Outcome::Damaged),
        _ => None,
    }
}

/// What an error in bringing files back says of what is stored.
fn said_by_files(error: &RestoreError) -> Option<Outcome> {
    match error {
        RestoreError::Tree(source) => said_by_tree(source),
        RestoreError::Chunk { source, .. } | RestoreError::Vault { source, .. } => said_by_vault(source),
        _ => None,
    }
}

/// An error with its causes, in one line.
fn in_full(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn port_error(what: &str, may_pass: bool, cause: impl Error + Send + Sync + 'static) -> PortError {
    PortError { message: what.to_owned(), may_pass, source: Some(Box::new(cause)) }
}

/// Owner, mode and time of a file that must not be opened.
fn metadata_of(path: &Path) -> Option<Metadata> {
    let seen = fs::metadata(path).ok()?;
    Some(Metadata {
        mode: seen.mode() & 0o7777,
        uid: seen.uid(),
        gid: seen.gid(),
        mtime_seconds: seen.mtime(),
        mtime_nanos: u32::try_from(seen.mtime_nsec()).unwrap_or(0),
        xattrs: Vec::new(),
    })
}

/// A name of the user's, as a part of a file's name.
fn plain_name(name: &str) -> String {
    let plain = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => char::from(byte).to_string(),
        _ => format!("%{byte:02x}"),
    };
    name.bytes().map(plain).collect()
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| "database".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Makes names in a file's directory durable.
fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::File::open(directory)?.sync_all()
}
