//! One numbered, timed, chained line of a run's journal, and the check that a journal is whole.
//!
//! Invariant: `hash` is the BLAKE3 of `body` exactly as stored, and `body` names the hash before it, so no entry can be
//! changed, removed from the middle, moved or given another time without the chain breaking at it. Nothing is ever
//! hashed after having been read and printed again: a number that prints differently cannot break a chain.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Event;

/// The hash that the first entry names as its predecessor's.
pub const NO_PREDECESSOR: &str = "";

/// The longest body that is read: a pinned run-book of some thousand steps fits.
pub const BODY_BYTES_MAX: usize = 16 << 20;

/// An entry as it is stored: text and the hash of the text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sealed {
    /// Canonical JSON of `Entry`.
    pub body: String,
    /// BLAKE3 of `body`, hex.
    pub hash: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub run: String,
    /// 1, 2, … without gaps.
    pub seq: u64,
    /// By the wall clock of the machine that wrote it; may jump.
    pub at: Timestamp,
    /// The process that wrote it: `monotonic_seconds` of entries of one process can be compared.
    pub process: String,
    /// By that process's monotonic clock.
    pub monotonic_seconds: f64,
    /// The hash of the entry before, or empty.
    pub previous: String,
    pub event: Event,
}

/// Why a journal is not whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("entry {seq} of run {run} {fault}")]
pub struct BrokenChain {
    pub run: String,
    pub seq: u64,
    pub fault: String,
}

impl Entry {
    /// The entry's stored form.
    pub fn seal(&self) -> Result<Sealed, serde_json::Error> {
        let body = canonical(serde_json::to_value(self)?).to_string();
        let hash = blake3::hash(body.as_bytes()).to_hex().to_string();
        Ok(Sealed { body, hash })
    }
}

impl Sealed {
    /// Reads the entry that should stand at `seq` of `run` after an entry with hash `previous`.
    pub fn open(&self, run: &str, seq: u64, previous: &str) -> Result<Entry, BrokenChain> {
        let broken = |fault: String| BrokenChain { run: run.into(), seq, fault };
        if self.body.len() > BODY_BYTES_MAX {
            return Err(broken(format!("is {} bytes long, more than any real entry", self.body.len())));
        }
        if blake3::hash(self.body.as_bytes()).to_hex().as_str() != self.hash {
            return Err(broken("was changed after it was written: its text does not match its hash".into()));
        }
        let entry: Entry = serde_json::from_str(&self.body)
            .map_err(|error| broken(format!("cannot be read by this version of lifeboat ({error})")))?;
        if entry.run != run || entry.seq != seq {
            return Err(broken(format!("stands in the place of entry {} of run {}", entry.seq, entry.run)));
        }
        if entry.previous != previous {
            return Err(broken("does not follow from the entry before it".into()));
        }
        Ok(entry)
    }
}

/// The same value with every object's keys in order.
fn canonical(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Object(map) => {
            let mut pairs: Vec<_> = map.into_iter().collect();
            pairs.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(pairs.into_iter().map(|(key, value)| (key, canonical(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(canonical).collect()),
        other => other,
    }
}

/// Opens a whole journal in order; the error names the first entry that is wrong.
pub fn open_chain(run: &str, sealed: &[Sealed]) -> Result<Vec<Entry>, BrokenChain> {
    let mut previous = NO_PREDECESSOR;
    let mut entries = Vec::with_capacity(sealed.len());
    for (index, one) in sealed.iter().enumerate() {
        entries.push(one.open(run, index as u64 + 1, previous)?);
        previous = &one.hash;
    }
    Ok(entries)
}
