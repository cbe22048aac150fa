//! The storage port: dumb, hostile, durable when it answers. Vaults and the arbiter both stand on it.
//!
//! Invariant: `put_if_absent` and `put` are atomic and durable when they return `Ok`: a reader sees the whole object or none,
//! and of two `put_if_absent` of one key exactly one answers `Created`. An error may mean that it happened anyway.

mod class;
mod fact;
mod fault;
mod fs;
mod fs_facts;
mod lock;
mod memory;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;

pub use class::Thaw;
pub use fact::{Fact, Verdict};
pub use fault::{Faulty, Operation};
pub use fs::FsStorage;
pub use lock::{Lock, LockMode, Locking};
pub use memory::{FROZEN_CLASS, MemoryStorage};

/// No object of ours is larger; whatever is, is refused before memory is taken for it.
pub const OBJECT_BYTES_MAX: u64 = 96 << 20;
/// What the object under a key may hold, whoever wrote it there. Every storage holds a whole read against it before memory is taken.
pub fn bytes_max(key: &str) -> u64 {
    crate::object::Place::of(key).map_or(OBJECT_BYTES_MAX, |place| place.bytes_max())
}

const KEY_BYTES_MAX: usize = 700;
const SEGMENT_BYTES_MAX: usize = 240;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    Created,
    /// Something is there already; it was not touched.
    Exists,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    pub key: String,
    pub size: u64,
    /// When the storage took the object in, by the storage's own clock; absent where it does not say.
    pub stored_at: Option<Timestamp>,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    #[error("there is no object {key}")]
    NotFound { key: String },
    #[error("the storage at {location} is full; free some space, nothing that was stored is lost")]
    NoSpace { location: String },
    #[error(
        "the storage at {location} does not let this process {verb}; check its permissions, and whether a directory is mounted read-only"
    )]
    Denied { location: String, verb: &'static str },
    #[error("{location} is gone or not a directory; mount it, or correct the address")]
    Gone { location: String },
    #[error(
        "{location} is no longer the directory that was opened (was it unmounted?); mount it again, then start over"
    )]
    Replaced { location: String },
    #[error("object {key} holds {size} bytes, more than {limit}; nothing that belongs there is that large")]
    TooLarge { key: String, size: u64, limit: u64 },
    #[error("{key:?} is not a valid object name: {why}")]
    BadKey { key: String, why: &'static str },
    #[error(
        "storage of the kind {scheme:?} is not in this version; use a directory (file:///path or a bare path){}",
        also()
    )]
    UnknownScheme { scheme: String },
    #[error("{address} is no address of a vault: {why}")]
    BadAddress { address: String, why: String },
    #[error(
        "there is no bucket at {location}, or none that these credentials may see; make it, or correct the address"
    )]
    NoBucket { location: String },
    #[error("{key} at {location} lies in a class that must be thawed before it can be read: {thaw}")]
    Archived {
        key: String,
        location: String,
        /// What to do, and how long it takes.
        thaw: String,
    },
    #[error(
        "the storage at {location} has no storage classes, so nothing can be archived in it: use a bucket that has some, or keep everything \
         at hand (no `archive` for this vault)"
    )]
    NoClasses { location: String },
    #[error(
        "the storage at {location} cannot lock objects: use a bucket that was made with Object Lock, or take `lock` off this vault (see \
         docs/object-storage.md)"
    )]
    NoLocks { location: String },
    #[error("{key} at {location} is locked{}, and stays until then", until_when(until))]
    Locked { key: String, location: String, until: Option<Timestamp> },
    #[error("the storage at {location} does not accept this machine's credentials: {why}")]
    Credentials { location: String, why: String },
    #[error("the storage at {location} cannot be used: {why}")]
    Unsuitable { location: String, why: String },
    /// A server's rule says no (`vault serve`).
    #[error("the server at {location} does not {verb} {key}: {why}")]
    Refused { location: String, verb: &'static str, key: String, why: String },
    #[error("the connection to {location} failed while {doing}{}", said(words))]
    Connection {
        location: String,
        doing: String,
        /// What the way there (ssh) said itself.
        words: String,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot {verb} {key} at {location}")]
    Io {
        verb: &'static str,
        key: String,
        location: String,
        #[source]
        source: std::io::Error,
    },
}

fn said(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!(" ({words})") }
}

fn until_when(until: &Option<Timestamp>) -> String {
    until.map_or_else(|| " by the storage's own rule".to_owned(), |until| format!(" until {until:.0}"))
}

/// The registered schemes, for the message about one that is not.
fn also() -> String {
    let openers = OPENERS.read().unwrap_or_else(PoisonError::into_inner);
    openers.keys().map(|scheme| format!(", {scheme}://…")).collect()
}

impl StorageError {
    pub fn is_not_found(&self) -> bool {
        matches!(self, StorageError::NotFound { .. })
    }

    /// Whether the storage as a whole has failed, and not one object in it.
    pub fn is_everywhere(&self) -> bool {
        use StorageError::{Connection, Denied, Gone, NoSpace, Refused, Replaced};
        matches!(
            self,
            Gone { .. } | Replaced { .. } | NoSpace { .. } | Denied { .. } | Refused { .. } | Connection { .. }
        )
    }
}

/// Six verbs, callable from many threads. Keys are paths of plain segments (`a/b/c`); see `check_key`.
pub trait Storage: Send + Sync + std::fmt::Debug {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, StorageError>;
    /// Creates or replaces.
    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), StorageError>;
    /// A whole object; `TooLarge` where it holds more than `bytes_max`.
    fn get(&self, key: &str) -> Result<Vec<u8>, StorageError>;
    /// At most `length` bytes from `offset`; fewer only where the object ends.
    fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Vec<u8>, StorageError>;
    /// As `get_range`, into a buffer whose room is used again.
    fn get_range_into(&self, key: &str, offset: u64, length: u64, into: &mut Vec<u8>) -> Result<(), StorageError> {
        *into = self.get_range(key, offset, length)?;
        Ok(())
    }
    /// As `put_if_absent`, of a buffer whose contents the caller needs no more: a storage that has to hold the bytes itself takes them
    /// over instead of copying them. What the buffer holds afterwards is not said.
    fn put_if_absent_from(&self, key: &str, bytes: &mut Vec<u8>) -> Result<Put, StorageError> {
        self.put_if_absent(key, bytes)
    }
    /// Everything whose key starts with `prefix` (a whole directory is fastest: `a/b/`), sorted by key.
    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StorageError>;
    /// Deleting what is not there succeeds.
    fn delete(&self, key: &str) -> Result<(), StorageError>;
    /// Where this is, for messages; never holds a credential.
    fn location(&self) -> String;
    /// How many writes at once it takes before more of them are no faster.
    fn parallel_writes(&self) -> usize {
        1
    }
    /// How many reads at once it takes before more of them are no faster: many, where each waits for an answer from afar.
    fn parallel_reads(&self) -> usize {
        1
    }
    /// A name for this place that all its readers share, where its objects may lie in different classes; `None` where there are none.
    fn class_place(&self) -> Option<String> {
        None
    }
    /// Replaces an object by the same bytes in another class, which is the storage's own word (`DEEP_ARCHIVE`).
    fn put_in_class(&self, _key: &str, _bytes: Vec<u8>, _class: &str) -> Result<(), StorageError> {
        Err(StorageError::NoClasses { location: self.location() })
    }
    /// The class of an object, where the storage says that it is not its ordinary one.
    fn class_of(&self, _key: &str) -> Result<Option<String>, StorageError> {
        Err(StorageError::NoClasses { location: self.location() })
    }
    /// Whether an object can be read, or must be thawed before; a small read finds out.
    fn thaw_of(&self, key: &str) -> Result<Thaw, StorageError> {
        match self.get_range(key, 0, 1) {
            Ok(_) => Ok(Thaw::Readable),
            Err(StorageError::Archived { thaw, .. }) => Ok(Thaw::Frozen { how: thaw }),
            Err(error) => Err(error),
        }
    }
    /// Whether objects can be locked here against being deleted; `None` where they cannot.
    fn locking(&self) -> Result<Option<Locking>, StorageError> {
        Ok(None)
    }
    /// The lock of an object, run out or not; `None` where it has none.
    fn lock_of(&self, _key: &str) -> Result<Option<Lock>, StorageError> {
        Err(StorageError::NoLocks { location: self.location() })
    }
    /// Locks an object. `Denied` where that would shorten the lock that it has, or these credentials may not.
    fn lock(&self, _key: &str, _lock: Lock) -> Result<(), StorageError> {
        Err(StorageError::NoLocks { location: self.location() })
    }
    /// Whether these credentials may shorten a lock that others could not (`until`: before it ends), which is tried out.
    fn may_bypass_locks(&self, _key: &str, _until: Timestamp) -> Result<bool, StorageError> {
        Err(StorageError::NoLocks { location: self.location() })
    }
    /// An object's name for the storage's own tools.
    fn outside_name(&self, key: &str) -> String {
        key.to_owned()
    }
    /// A place beside the objects, in no listing, to try out what is permitted.
    fn rehearsal(&self) -> Result<Option<Arc<dyn Storage>>, StorageError> {
        Ok(None)
    }
    /// The same within one of its directories, to try out whether anything may be created there.
    fn rehearsal_in(&self, _directory: &str) -> Result<Option<Arc<dyn Storage>>, StorageError> {
        Ok(None)
    }
    /// What it knows about itself that its keeper should.
    fn facts(&self) -> Vec<Fact> {
        Vec::new()
    }
    /// Whether its keeper can forbid replacing and deleting to those who may create.
    fn is_append_only_by_policy(&self) -> bool {
        false
    }
}

/// Opens what an address (`SCHEME://…`) names; the flag says whether an absent place is to be made.
pub type Opener = fn(url: &str, make: bool) -> Result<Arc<dyn Storage>, StorageError>;

static OPENERS: RwLock<BTreeMap<&'static str, Opener>> = RwLock::new(BTreeMap::new());

/// Lets addresses of a scheme be opened. This crate has no sockets: who has them says so once, when the process starts.
pub fn register(scheme: &'static str, opener: Opener) {
    OPENERS.write().unwrap_or_else(PoisonError::into_inner).insert(scheme, opener);
}

/// Opens a storage by its address: a path, `file:///path`, a registered scheme, or (in tests) `memory:NAME`. It must exist.
pub fn open(url: &str) -> Result<Arc<dyn Storage>, StorageError> {
    resolve(url, false)
}

/// As `open`, but makes the directory (and its parents) where it is absent.
pub fn create(url: &str) -> Result<Arc<dyn Storage>, StorageError> {
    resolve(url, true)
}

fn resolve(url: &str, make: bool) -> Result<Arc<dyn Storage>, StorageError> {
    let directory = |path: &str| -> Result<Arc<dyn Storage>, StorageError> {
        Ok(Arc::new(if make { FsStorage::create(path)? } else { FsStorage::open(path)? }))
    };
    if let Some(path) = url.strip_prefix("file://") {
        return directory(path);
    }
    if let Some(name) = url.strip_prefix("memory:") {
        return Ok(MemoryStorage::shared(name));
    }
    let Some((scheme, _)) = url.split_once("://") else { return directory(url) };
    let opener = OPENERS.read().unwrap_or_else(PoisonError::into_inner).get(scheme).copied();
    opener.ok_or_else(|| StorageError::UnknownScheme { scheme: scheme.to_owned() })?(url, make)
}

/// Refuses names that could leave the storage, collide with its own files, or be too long for a file system.
pub fn check_key(key: &str) -> Result<(), StorageError> {
    let bad = |why| Err(StorageError::BadKey { key: key.chars().take(80).collect(), why });
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return bad("it is empty or too long");
    }
    for segment in key.split('/') {
        if segment.is_empty() || segment.len() > SEGMENT_BYTES_MAX {
            return bad("a segment is empty or too long");
        }
        if segment.starts_with('.') {
            return bad("a segment starts with a dot");
        }
        if !segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'%' | b'@')) {
            return bad("only letters, digits and . _ - % @ may stand in it");
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn keys_cannot_leave_the_storage() {
        for bad in ["", "/a", "a/", "a//b", "../a", "a/../b", ".tmp/x", "a b", "a\0b", "ä"] {
            assert!(check_key(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "a/b.age", "snap/host-1/app%2Fdb/0000000001"] {
            assert!(check_key(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn other_schemes_say_so() {
        let error = open("s3://bucket/x").unwrap_err();
        assert!(error.to_string().contains("\"s3\" is not in this version"), "{error}");
    }
}
