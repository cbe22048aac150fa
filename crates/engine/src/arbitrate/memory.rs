//! What this host has seen of an arbiter's storage: its identity, and the newest of every numbered row.
//!
//! Invariant: what was seen here once is never silently older, other or absent afterwards. An empty mount point, another arbiter
//! and one that was brought back from an old copy are errors that say so, and no first day.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// By row (`epochs/shop/`): the highest number, and the hash of the object that was there.
type Rows = BTreeMap<String, (u64, String)>;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Seen {
    identity: Option<String>,
    rows: Rows,
}

/// By the storage's address.
type Arbiters = BTreeMap<String, Seen>;

/// The memory of one arbiter, in a file of this host's state directory.
#[derive(Debug)]
pub(super) struct Memory {
    path: PathBuf,
    location: String,
    seen: Mutex<Seen>,
}

impl Memory {
    pub(super) fn open(directory: &Path, location: &str) -> io::Result<Memory> {
        let path = directory.join("arbiters.json");
        let seen = read(&path)?.remove(location).unwrap_or_default();
        Ok(Memory { path, location: location.to_owned(), seen: Mutex::new(seen) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn identity(&self) -> Option<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).identity.clone()
    }

    /// The highest number seen of a row, and its object's hash.
    pub(super) fn newest(&self, row: &str) -> Option<(u64, String)> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).rows.get(row).cloned()
    }

    pub(super) fn keep_identity(&self, identity: &str) -> io::Result<()> {
        self.change(|seen| seen.identity = Some(identity.to_owned()))
    }

    pub(super) fn keep(&self, row: &str, number: u64, hash: String) -> io::Result<()> {
        self.change(|seen| {
            seen.rows.insert(row.to_owned(), (number, hash));
        })
    }

    /// Durable before it is relied upon. Other processes of this host may have seen more: of each row the newest is kept.
    fn change(&self, change: impl FnOnce(&mut Seen)) -> io::Result<()> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = seen.clone();
        change(&mut next);
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.path.with_extension("lock"))?;
        lock.lock()?;
        let mut all = read(&self.path)?;
        let there = all.entry(self.location.clone()).or_default();
        for (row, (number, hash)) in &there.rows {
            if next.rows.get(row).is_none_or(|(mine, _)| mine < number) {
                next.rows.insert(row.clone(), (*number, hash.clone()));
            }
        }
        if let Some(identity) = &there.identity {
            next.identity = Some(identity.clone());
        }
        if *there != next {
            *there = next.clone();
            write(&self.path, &all)?;
        }
        *seen = next;
        Ok(())
    }
}

fn read(path: &Path) -> io::Result<Arbiters> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Arbiters::new()),
        Err(error) => Err(error),
    }
}

fn write(path: &Path, all: &Arbiters) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&serde_json::to_vec_pretty(all).map_err(io::Error::other)?)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}
