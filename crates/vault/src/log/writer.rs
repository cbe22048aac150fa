//! Appending to a log: one writer of a timeline at a time, each piece durable when `append` returns.
//!
//! Invariant: an object is never overwritten; where the next number is taken, it holds this very piece or there is another writer.

use jiff::Timestamp;

use super::{KIND, LogEntry, LogHead, LogPiece, PAYLOAD_BYTES_MAX, REMEMBER_EVERY, chain, open};
use crate::codec::{self, Hash, Moment};
use crate::error::{Doing, Result, VaultError};
use crate::name;
use crate::open::HostVault;
use crate::seal::{Recipient, seal_frame};
use crate::sign::Signed;
use crate::storage::Put;

/// Appends to one timeline of a lineage. One writer at a time: a second one is told `Conflict`.
#[derive(Debug)]
pub struct LogWriter {
    vault: HostVault,
    dataset: String,
    lineage: String,
    timeline: u64,
    content: Recipient,
    next: u64,
    previous: Option<Hash>,
    last: Option<LogEntry>,
}

impl HostVault {
    /// Opens a timeline for appending; continues after what is stored there already (see `LogWriter::last`).
    pub fn log_writer(&self, dataset: &str, lineage: &str, timeline: u64) -> Result<LogWriter> {
        name::check(dataset, "the data set's name")?;
        name::check(lineage, "the lineage")?;
        self.check_enrolled()?;
        let content = self.content_recipient(dataset)?;
        let last = self.log_end(dataset, lineage, timeline)?;
        if let Some(last) = &last
            && last.host != self.host_name()
        {
            let why = format!("host {} writes timeline {timeline} already; a new writer needs a new epoch", last.host);
            return Err(VaultError::Conflict { object: last.key.clone(), why });
        }
        let previous = last.as_ref().and_then(|l| crate::crypt::unhex(&l.hash)).map(Hash);
        Ok(LogWriter {
            vault: self.clone(),
            dataset: dataset.to_owned(),
            lineage: lineage.to_owned(),
            timeline,
            content,
            next: last.as_ref().map_or(0, |l| l.number + 1),
            previous,
            last,
        })
    }
}

impl LogWriter {
    /// The last object of the timeline, from before a crash perhaps: the source continues after its position.
    pub fn last(&self) -> Option<&LogEntry> {
        self.last.as_ref()
    }

    pub fn timeline(&self) -> u64 {
        self.timeline
    }

    pub fn lineage(&self) -> &str {
        &self.lineage
    }

    /// Stores one piece. It is durable when this returns; after an error, call again with the same or open a new writer.
    pub fn append(&mut self, piece: LogPiece, payload: &[u8]) -> Result<LogEntry> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(VaultError::TooLarge {
                what: "a log piece".to_owned(),
                size: payload.len() as u64,
                limit: PAYLOAD_BYTES_MAX as u64,
            });
        }
        let floor = self.last.as_ref().map_or(0, |l| l.last);
        if piece.first > piece.last || piece.last < floor {
            let why = format!("it runs from {} to {}, after {floor} was stored", piece.first, piece.last);
            return Err(VaultError::invalid("the log piece", why));
        }
        let key = name::log_object(&self.dataset, &self.lineage, self.timeline, self.next);
        let head = LogHead {
            vault: self.vault.roster().vault.clone(),
            dataset: self.dataset.clone(),
            lineage: self.lineage.clone(),
            timeline: self.timeline,
            number: self.next,
            previous: self.previous,
            host: self.vault.host_name().to_owned(),
            first: piece.first,
            last: piece.last,
            source_time: piece.source_time.into(),
            stored_at: Timestamp::now().into(),
            mark: piece.mark,
            final_mark: piece.final_mark,
            bytes: payload.len() as u64,
            sealed: seal_frame(std::slice::from_ref(&self.content), &key, payload)?,
        };
        let bytes = Signed::seal(KIND, &codec::encode(&head)?, self.vault.state().signing_key())?;
        match self.vault.storage().put_if_absent(&key, &bytes).doing(|| format!("writing {key}"))? {
            Put::Created => self.advance(&bytes),
            Put::Exists => self.adopt(&key, &piece, payload.len() as u64),
        }
    }

    /// An earlier attempt whose answer was lost had stored this very piece; anything else there is another writer's.
    fn adopt(&mut self, key: &str, piece: &LogPiece, bytes: u64) -> Result<LogEntry> {
        let stored = self.vault.storage().get(key).doing(|| format!("reading {key}"))?;
        let opened = open(&self.vault.roster(), &self.dataset, &self.lineage, self.timeline, self.next, &stored)?;
        let e = &opened.entry;
        let same = (e.first, e.last, e.source_time, e.mark, e.final_mark, e.bytes)
            == (
                piece.first,
                piece.last,
                Timestamp::from(Moment::from(piece.source_time)),
                piece.mark,
                piece.final_mark,
                bytes,
            );
        if !same || e.host != self.vault.host_name() || opened.previous != self.previous {
            let why = format!("host {} wrote it; two writers of one timeline must not be", e.host);
            return Err(VaultError::Conflict { object: key.to_owned(), why });
        }
        self.advance(&stored)
    }

    fn advance(&mut self, bytes: &[u8]) -> Result<LogEntry> {
        let opened = open(&self.vault.roster(), &self.dataset, &self.lineage, self.timeline, self.next, bytes)?;
        self.previous = Some(opened.hash);
        self.next += 1;
        // Now and then, so that a log that is rolled back is noticed without slowing each append.
        if opened.entry.final_mark || self.next.is_multiple_of(REMEMBER_EVERY) {
            let chain = chain(&self.dataset, &self.lineage, self.timeline);
            self.vault.remember_head(&chain, opened.entry.number, opened.hash.0)?;
        }
        self.last = Some(opened.entry.clone());
        Ok(opened.entry)
    }
}
