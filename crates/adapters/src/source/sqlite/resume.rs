//! What a host remembers of each vault's chain, so that the next process goes on where the last one was.
//!
//! Invariant: it is written before a piece is appended, with where the chain stands before and after; whichever of the
//! two the vault then has, its place in the source's log is known. A lost, stale or torn file costs a full snapshot,
//! never a hole: it counts only if the vault's own chain and the source's own log agree with it.

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};

use super::wal::{Place, Salts, Sum};
use crate::source::plain_name;

/// A place in the chain and the same place in the source's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    pub(super) transactions: u64,
    #[serde(with = "PlaceText")]
    pub(super) place: Place,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The database's path and inode: another database has another log.
    pub(super) database: String,
    pub(super) lineage: String,
    pub(super) epoch: u64,
    pub(super) before: Mark,
    pub(super) after: Mark,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Place")]
struct PlaceText {
    page_size: u32,
    #[serde(with = "SaltsText")]
    salts: Salts,
    frame: u32,
    #[serde(with = "SumText")]
    sum: Sum,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Salts")]
struct SaltsText(u32, u32);

#[derive(Serialize, Deserialize)]
#[serde(remote = "Sum")]
struct SumText(u32, u32);

/// The file that remembers one vault's chain of one data set.
pub(super) fn record_path(state: &Path, dataset: &str, vault: &str) -> PathBuf {
    state.join(format!("sqlite-{}@{}.json", plain_name(dataset), plain_name(vault)))
}

/// The record, if there is one that can be read.
pub(super) fn read(path: &Path) -> Option<Record> {
    let bytes = fs::read(path).ok()?;
    match serde_json::from_slice(&bytes) {
        Ok(record) => Some(record),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read where the stream was; it starts with a full snapshot");
            None
        }
    }
}

/// Replaces the record. Not synced: after a power failure the log in the source is what counts.
pub(super) fn write(path: &Path, record: &Record) -> io::Result<()> {
    let text = serde_json::to_vec(record).map_err(io::Error::other)?;
    let draft = path.with_extension("draft");
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(&draft, text)?;
    fs::rename(&draft, path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_record_comes_back_and_a_torn_one_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = record_path(folder.path(), "shop/orders", "far");
        assert_eq!(path.file_name().unwrap(), "sqlite-shop%2forders@far.json");
        let place = Place { page_size: 4096, salts: Salts(1, 2), frame: 3, sum: Sum(4, 5) };
        let mark = Mark { transactions: 9, place };
        let record = Record { database: "d".into(), lineage: "l".into(), epoch: 1, before: mark, after: mark };
        write(&path, &record).unwrap();
        assert_eq!(read(&path), Some(record));
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert_eq!(read(&path), None);
    }
}
