//! A vault, as a stream writes to it: a chain of log objects, full snapshots, and what of a former process is there.
//!
//! Invariant: a chain goes on only after what the vault itself says is its end.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use jiff::Timestamp;
use lifeboat_engine::port::{Cancel, NamedVault, PointRequest, PointTaken, StreamRequest};
use lifeboat_vault::files::{BackupError, Cut, Event, Progress, Stream, backup_bytes};
use lifeboat_vault::{LogEntry, LogPiece, LogWriter, Position, SessionOptions, Severity, SnapshotDraft, VaultError};

use super::board::{Base, Chain};
use super::resume::{self, Record};
use crate::source::{file_name, metadata_of};

#[derive(Debug, thiserror::Error)]
pub(super) enum LedgerError {
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error(transparent)]
    Backup(#[from] BackupError),
}

impl LedgerError {
    pub(super) fn may_pass(&self) -> bool {
        match self {
            LedgerError::Vault(error) => error.may_pass(),
            LedgerError::Backup(error) => !matches!(error, BackupError::Incomplete),
        }
    }

    /// Whether the vault's chain can never be gone on with: something of it is lost or not to be trusted.
    pub(super) fn ends_chain(&self) -> bool {
        matches!(
            self,
            LedgerError::Vault(
                VaultError::Damaged { .. }
                    | VaultError::Missing { .. }
                    | VaultError::Untrusted { .. }
                    | VaultError::RolledBack { .. }
            )
        )
    }
}

/// A chain that a former process left, and where in the source's log it ends.
pub(super) struct Resumed {
    pub(super) chain: Chain,
}

/// Names the file that a database's log belongs to.
pub(super) fn database_id(path: &Path) -> String {
    let inode = std::fs::metadata(path).map_or(0, |metadata| metadata.ino());
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    format!("{}#{inode}", path.display())
}

/// What of this vault's chain can be gone on with. Any doubt means none of it: a full snapshot is always right.
pub(super) fn find_resumption(vault: &NamedVault, request: &StreamRequest, database: &Path) -> Option<Resumed> {
    let record = resume::read(&resume::record_path(&request.state, &request.dataset, &vault.name))?;
    if record.database != database_id(database) || record.epoch != request.epoch {
        return None;
    }
    match resumption(vault, request, &record) {
        Ok(resumed) => resumed,
        Err(error) => {
            tracing::warn!(vault = vault.name, %error, "cannot see where the vault's chain ends; it starts again with a full snapshot");
            None
        }
    }
}

fn resumption(vault: &NamedVault, request: &StreamRequest, record: &Record) -> Result<Option<Resumed>, VaultError> {
    let points = vault.vault.points(Some(&request.dataset))?.points;
    let of_chain = points.iter().filter_map(|point| point.position.as_ref());
    let of_chain = of_chain.filter(|base| (&base.lineage, base.timeline) == (&record.lineage, request.epoch));
    let base = of_chain.max_by_key(|base| base.counter);
    let start = Position { lineage: record.lineage.clone(), timeline: request.epoch, counter: 0 };
    // From the last full snapshot on everything must be whole: the rest of the chain is built on it.
    let trail = vault.vault.log_since(&request.dataset, base.unwrap_or(&start))?;
    let last = trail.entries.last();
    let is_whole = trail.findings.iter().all(|finding| finding.severity != Severity::Alarm);
    // Times in a chain never go back, so after a clock was set back another begins.
    let is_over = |last: &LogEntry| last.final_mark || last.source_time > Timestamp::now();
    if !is_whole || last.is_some_and(is_over) {
        return Ok(None);
    }
    let shipped = last.map_or(record.before.transactions, |last| last.last);
    let Some(mark) = [record.after, record.before].into_iter().find(|mark| mark.transactions == shipped) else {
        return Ok(None);
    };
    let based = base.is_some_and(|base| base.counter <= shipped);
    let chain = Chain { lineage: record.lineage.clone(), shipped, place: Some(mark.place), based };
    Ok(Some(Resumed { chain }))
}

/// One chain, open for appending.
pub(super) struct Ledger {
    writer: LogWriter,
}

impl Ledger {
    pub(super) fn open(vault: &NamedVault, request: &StreamRequest, chain: &Chain) -> Result<Ledger, LedgerError> {
        Ok(Ledger { writer: vault.vault.log_writer(&request.dataset, &chain.lineage, request.epoch)? })
    }

    pub(super) fn lineage(&self) -> &str {
        self.writer.lineage()
    }

    /// The last transaction that is in the vault's chain; 0 if it is empty.
    pub(super) fn shipped(&self) -> u64 {
        self.writer.last().map_or(0, |entry| entry.last)
    }

    pub(super) fn append(
        &mut self,
        first: u64,
        last: u64,
        source_time: Timestamp,
        payload: &[u8],
    ) -> Result<(), LedgerError> {
        self.writer.append(LogPiece { first, last, source_time, mark: false, final_mark: false }, payload)?;
        Ok(())
    }

    /// Says that nothing happened up to `at`, since `transactions`.
    pub(super) fn mark(&mut self, transactions: u64, at: Timestamp, is_final: bool) -> Result<(), LedgerError> {
        let piece =
            LogPiece { first: transactions, last: transactions, source_time: at, mark: true, final_mark: is_final };
        self.writer.append(piece, &[])?;
        Ok(())
    }
}

/// Where this host remembers the pages of the data set's database, as this vault has them.
fn pages_directory(vault: &NamedVault, dataset: &str) -> Result<PathBuf, VaultError> {
    let directory = vault.vault.state().vault_directory(&vault.vault.id())?;
    let name = dataset.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    Ok(directory.join(format!("sqlite-{name}.pages")))
}

/// Stores a full snapshot.
pub(super) fn store_base(
    vault: &NamedVault,
    request: &PointRequest,
    database: &Path,
    mut base: Base,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<PointTaken, LedgerError> {
    let began = Instant::now();
    let session = vault.vault.begin(&request.dataset, SessionOptions::default())?;
    progress.report(&Event::Expected { files: 1, bytes: base.bytes });
    let (name, metadata) = (file_name(database), metadata_of(database));
    let pages = pages_directory(vault, &request.dataset)?;
    let (cut, bytes, pages) = (Cut::PAGES, base.bytes, Some(pages.as_path()));
    let stream = Stream { name: &name, cut, bytes, metadata, pages };
    let summary = backup_bytes(&session, &stream, &mut base.content, progress, cancel.flag())?;
    // The read transaction is not needed any more.
    drop(base.content);
    let point = session.commit(SnapshotDraft {
        root: summary.root.as_bytes().to_vec(),
        references: summary.references,
        position: base.position,
        source_time: base.to,
        files: summary.files,
        bytes: summary.bytes,
        notes: Vec::new(),
        schema: None,
        release: request.release.clone(),
        final_mark: request.final_mark,
        epoch: request.epoch,
    })?;
    Ok(PointTaken {
        vault: vault.name.clone(),
        bytes_new: point.bytes_new,
        bytes_stored: point.bytes_stored,
        point,
        files: summary.files,
        bytes: summary.bytes,
        seconds: began.elapsed().as_secs_f64(),
        skipped: Vec::new(),
        notes: Vec::new(),
    })
}
