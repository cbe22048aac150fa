//! The client's own list of what the service acknowledged, and when it could not be reached.
//!
//! Invariant: append-only, one JSON object a line, each flushed to disk before the next request of its writer. A write
//! stands here only if the service answered for it. A last line that was cut off by a kill is not read.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A line longer than this is not one of ours.
const LINE_BYTES_MAX: u64 = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Entry,
    Upload,
}

/// One write that the service answered for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledged {
    pub kind: Kind,
    /// An entry's id or an upload's name.
    pub id: String,
    /// BLAKE3 of the text or bytes, hex.
    pub content_hash: String,
    /// When the attempt that was answered was sent.
    pub sent_at: Timestamp,
    pub acknowledged_at: Timestamp,
    /// The number that the service gave an entry; 0 for an upload.
    pub sequence: i64,
    pub server: SocketAddr,
}

/// A time during which no write got through, as this client saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outage {
    /// When the first attempt that failed was sent.
    pub first_failure_at: Timestamp,
    /// What it failed with.
    pub error: String,
    /// When the next write was acknowledged; none while the outage lasts.
    pub first_success_at: Option<Timestamp>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    pub acknowledged: Vec<Acknowledged>,
    pub outages: Vec<Outage>,
}

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("cannot {verb} the ledger {path}")]
    Io { verb: &'static str, path: PathBuf, source: std::io::Error },
    #[error("line {line} of the ledger {path} cannot be read: it is not this program's, or it was damaged")]
    Line { path: PathBuf, line: usize, source: serde_json::Error },
    #[error("line {line} of the ledger {path} is longer than {LINE_BYTES_MAX} bytes")]
    LineTooLong { path: PathBuf, line: usize },
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
enum Record {
    Acknowledged(Acknowledged),
    OutageBegan { first_failure_at: Timestamp, error: String },
    OutageEnded { first_success_at: Timestamp },
}

/// A ledger open for appending.
#[derive(Debug)]
pub(crate) struct LedgerFile {
    path: PathBuf,
    file: File,
}

impl LedgerFile {
    pub(crate) fn open(path: &Path) -> Result<LedgerFile, LedgerError> {
        let failed = |verb| move |source| LedgerError::Io { verb, path: path.to_owned(), source };
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(failed("make a place for"))?;
        }
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(path).map_err(failed("open"))?;
        cut_torn_line(&mut file).map_err(failed("mend"))?;
        Ok(LedgerFile { path: path.to_owned(), file })
    }

    pub(crate) fn acknowledge(&mut self, acknowledged: Acknowledged) -> Result<(), LedgerError> {
        self.append(&Record::Acknowledged(acknowledged))
    }

    pub(crate) fn begin_outage(&mut self, first_failure_at: Timestamp, error: String) -> Result<(), LedgerError> {
        self.append(&Record::OutageBegan { first_failure_at, error })
    }

    pub(crate) fn end_outage(&mut self, first_success_at: Timestamp) -> Result<(), LedgerError> {
        self.append(&Record::OutageEnded { first_success_at })
    }

    fn append(&mut self, record: &Record) -> Result<(), LedgerError> {
        let failed = |source| LedgerError::Io { verb: "append to", path: self.path.clone(), source };
        let mut line = serde_json::to_vec(record).map_err(|error| failed(error.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(failed)?;
        self.file.sync_data().map_err(failed)
    }
}

/// After a kill the file may end in half a line; what follows must begin on a line of its own.
fn cut_torn_line(file: &mut File) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    if whole < bytes.len() {
        file.set_len(whole as u64)?;
        file.sync_all()?;
    }
    Ok(())
}

/// Reads a ledger, also while it is being written.
pub fn read_ledger(path: &Path) -> Result<Ledger, LedgerError> {
    let failed = |source| LedgerError::Io { verb: "read", path: path.to_owned(), source };
    let mut reader = BufReader::new(File::open(path).map_err(failed)?);
    let mut ledger = Ledger::default();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let length = reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line).map_err(failed)?;
        if line.last() != Some(&b'\n') {
            if length as u64 == LINE_BYTES_MAX {
                return Err(LedgerError::LineTooLong { path: path.to_owned(), line: number });
            }
            break;
        }
        let record = serde_json::from_slice(&line).map_err(|source| LedgerError::Line {
            path: path.to_owned(),
            line: number,
            source,
        })?;
        match record {
            Record::Acknowledged(acknowledged) => ledger.acknowledged.push(acknowledged),
            Record::OutageBegan { first_failure_at, error } => {
                ledger.outages.push(Outage { first_failure_at, error, first_success_at: None });
            }
            Record::OutageEnded { first_success_at } => {
                if let Some(outage) = ledger.outages.last_mut() {
                    outage.first_success_at = Some(first_success_at);
                }
            }
        }
    }
    Ok(ledger)
}
