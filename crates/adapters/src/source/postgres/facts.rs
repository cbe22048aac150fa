//! What is known of a base backup besides its files: `lifeboat-backup.json` in its tree, written last, read before a restore.
//!
//! Invariant: whatever a restore needs to know before it may start the server stands here or in the server's own manifest; neither is
//! believed further than to choose what to ask the server itself.

use serde::{Deserialize, Serialize};

use super::inventory::Database;
use crate::postgres::lsn::{Lsn, Segments, parse_history};

/// Its name in the tree. It is not left in a restored data directory.
pub(super) const NAME: &str = "lifeboat-backup.json";
pub(super) const BYTES_MAX: u64 = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub(super) enum FactsError {
    #[error("{NAME} of the recovery point cannot be read; restore another point")]
    Unreadable(#[source] serde_json::Error),
    #[error("the recovery point's {what} ({text}) cannot be; restore another point")]
    Strange { what: &'static str, text: String },
    #[error("the base backup's manifest cannot be read")]
    Manifest(#[source] serde_json::Error),
    #[error("the base backup's manifest names no range of the log")]
    NoRange,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    pub(super) format: u32,
    /// As the server says it, such as `15.18 (Debian 15.18-0+deb12u1)`.
    pub(super) server_version: String,
    /// In decimal digits: larger than what every reader of JSON takes for a number.
    pub(super) system_id: String,
    pub(super) timeline: u32,
    /// Where that timeline came from, as its server keeps it; empty for the first.
    #[serde(default)]
    pub(super) history: String,
    pub(super) segment_bytes: u64,
    /// The log is needed from here, ...
    pub(super) start: String,
    /// ... and without all of it up to here the files are no database.
    pub(super) stop: String,
    /// The log from start to stop lies in `pg_wal` of this very tree.
    pub(super) is_whole: bool,
    pub(super) checksums: bool,
    /// The role that may do everything.
    pub(super) superuser: String,
    pub(super) databases: Vec<Database>,
    pub(super) preload: String,
}

pub(super) const FORMAT: u32 = 1;

impl Facts {
    pub(super) fn decode(bytes: &[u8]) -> Result<Facts, FactsError> {
        let facts: Facts = serde_json::from_slice(bytes).map_err(FactsError::Unreadable)?;
        if facts.format != FORMAT {
            return Err(FactsError::Strange { what: "format", text: facts.format.to_string() });
        }
        facts.start()?;
        facts.stop()?;
        facts.system()?;
        facts.segments()?;
        parse_history(facts.history.as_bytes())
            .map_err(|_| FactsError::Strange { what: "timeline's history", text: facts.history.clone() })?;
        Ok(facts)
    }

    /// The major version of the server: its programs must be of it.
    pub(super) fn major(&self) -> Result<u32, FactsError> {
        let digits: String = self.server_version.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().map_err(|_| FactsError::Strange { what: "server version", text: self.server_version.clone() })
    }

    pub(super) fn start(&self) -> Result<Lsn, FactsError> {
        lsn("start", &self.start)
    }

    pub(super) fn stop(&self) -> Result<Lsn, FactsError> {
        lsn("stop", &self.stop)
    }

    pub(super) fn system(&self) -> Result<u64, FactsError> {
        self.system_id
            .parse()
            .map_err(|_| FactsError::Strange { what: "system identifier", text: self.system_id.clone() })
    }

    pub(super) fn segments(&self) -> Result<Segments, FactsError> {
        Segments::new(self.segment_bytes)
            .ok_or_else(|| FactsError::Strange { what: "segment length", text: self.segment_bytes.to_string() })
    }
}

fn lsn(what: &'static str, text: &str) -> Result<Lsn, FactsError> {
    text.parse().map_err(|_| FactsError::Strange { what, text: text.to_owned() })
}

/// The range of the log that a base backup needs, by its manifest: timeline, start, stop.
pub(super) fn range_of(manifest: &[u8]) -> Result<(u32, Lsn, Lsn), FactsError> {
    #[derive(Deserialize)]
    struct Range {
        #[serde(rename = "Timeline")]
        timeline: u32,
        #[serde(rename = "Start-LSN")]
        start: String,
        #[serde(rename = "End-LSN")]
        end: String,
    }
    #[derive(Deserialize)]
    struct Manifest {
        #[serde(rename = "WAL-Ranges")]
        ranges: Vec<Range>,
    }
    let manifest: Manifest = serde_json::from_slice(manifest).map_err(FactsError::Manifest)?;
    // Several, where the server's timeline changed meanwhile: the newest comes first.
    let first = manifest.ranges.first().ok_or(FactsError::NoRange)?;
    let last = manifest.ranges.last().ok_or(FactsError::NoRange)?;
    Ok((first.timeline, lsn("start", &last.start)?, lsn("stop", &first.end)?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_range_of_a_manifest() {
        let manifest = br#"{ "PostgreSQL-Backup-Manifest-Version": 1, "Files": [ { "Path": "backup_label", "Size": 225 } ],
            "WAL-Ranges": [ { "Timeline": 2, "Start-LSN": "0/4000028", "End-LSN": "0/4000100" } ], "Manifest-Checksum": "ab" }"#;
        assert_eq!(range_of(manifest).unwrap(), (2, Lsn(0x400_0028), Lsn(0x400_0100)));
        assert!(matches!(range_of(b"{\"WAL-Ranges\": []}"), Err(FactsError::NoRange)));
        assert!(matches!(range_of(b"{"), Err(FactsError::Manifest(_))));
    }
}
