//! Directories and files: recovery points only; a standby takes over each new one, writing what differs.
//!
//! Invariant: what a standby has is not under the data set's own name until it is promoted, and is promoted only when a
//! whole point is in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use jiff::Timestamp;
use lifeboat_core::runbook::Target;
use lifeboat_engine::port::{
    Applied, Cancel, FollowRequest, NamedVault, PointRequest, PointTaken, PortError, RestoreRequest, Restored,
    Restorer, Source, Standby, StreamRequest, Streaming,
};
use lifeboat_engine::verify::{Check, Outcome, Verification, VerifyRequest, said_by_vault};
use lifeboat_vault::files::{
    BackupError, BackupOptions, ExcludeError, Excludes, Progress, RestoreError, RestoreOptions, backup_tree,
    restore_tree,
};
use lifeboat_vault::{Badge, ChunkId, PointInfo, SessionOptions, SnapshotDraft, Unlocked, VaultError};
use serde::{Deserialize, Serialize};

use super::{STANDBY_SUFFIX, plain_name, port_error, sync_directory_of};

/// A directory (or a file) of this host.
#[derive(Debug, Clone)]
pub struct FilesSource {
    path: PathBuf,
    excludes: Excludes,
    /// Where file caches lie, one for each vault and data set.
    caches: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
enum FilesError {
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error(transparent)]
    Backup(#[from] BackupError),
    #[error(transparent)]
    Restore(#[from] RestoreError),
    #[error("the vault holds no recovery point of `{dataset}`{which}; `lifeboat points` lists what there is")]
    NoPoint { dataset: String, which: String },
    #[error("`{dataset}` is files, which have no log; name a time (--at) or a recovery point (--point)")]
    NoLog { dataset: String },
    #[error("`{text}` is not a time; write it as 2026-11-21T14:00:00Z")]
    Time {
        text: String,
        #[source]
        source: jiff::Error,
    },
    #[error("recovery point {point} is not one of files")]
    NotATree { point: String },
    #[error("{path} exists already, and is not a standby's; move it away, or let the standby adopt it")]
    Exists { path: PathBuf },
    #[error("cannot {what} {path}")]
    Place {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl FilesError {
    fn may_pass(&self) -> bool {
        match self {
            FilesError::Vault(error) => error.may_pass(),
            FilesError::Backup(error) => !matches!(error, BackupError::Root { .. } | BackupError::NoRoots),
            FilesError::NoPoint { .. } => true,
            _ => false,
        }
    }

    /// What it says of what is stored; nothing where the storage or this host failed.
    fn said(&self) -> Option<Outcome> {
        match self {
            FilesError::Vault(error) => said_by_vault(error),
            FilesError::Restore(error) => super::said_by_files(error),
            FilesError::NotATree { .. } => Some(Outcome::Damaged),
            _ => None,
        }
    }

    fn place(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FilesError {
        let path = path.to_owned();
        move |source| FilesError::Place { what, path, source }
    }
}

impl FilesSource {
    pub fn new(
        path: impl Into<PathBuf>,
        exclude: &[String],
        caches: Option<PathBuf>,
    ) -> Result<FilesSource, ExcludeError> {
        Ok(FilesSource { path: path.into(), excludes: Excludes::new(exclude)?, caches })
    }

    fn back_up(
        &self,
        vault: &NamedVault,
        request: &PointRequest,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<PointTaken, FilesError> {
        let began = Instant::now();
        // What was written before the walk began is in it.
        let source_time = Timestamp::now();
        let session = vault.vault.begin(&request.dataset, SessionOptions::default())?;
        let cache = self
            .caches
            .as_ref()
            .map(|caches| caches.join(format!("files-{}@{}", plain_name(&request.dataset), vault.vault.id())));
        let options = BackupOptions { excludes: self.excludes.clone(), cache, ..BackupOptions::default() };
        let summary = backup_tree(&session, std::slice::from_ref(&self.path), &options, progress, cancel.flag())?;
        let skipped: Vec<String> =
            summary.skipped.iter().map(|skipped| format!("{}: {}", skipped.path.display(), skipped.reason)).collect();
        let mut notes: Vec<String> =
            summary.changed.iter().map(|path| format!("{}: changed while it was read", path.display())).collect();
        notes.extend(summary.cache_failure.map(|why| format!("the file cache could not be written: {why}")));
        let point = session.commit(SnapshotDraft {
            root: summary.root.as_bytes().to_vec(),
            references: summary.references,
            position: None,
            source_time,
            files: summary.files,
            bytes: summary.bytes,
            notes: skipped.iter().chain(&notes).cloned().collect(),
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
            skipped,
            notes,
        })
    }
}

impl Source for FilesSource {
    fn take_point(
        &self,
        vault: &NamedVault,
        request: &PointRequest,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<PointTaken, PortError> {
        self.back_up(vault, request, progress, cancel).map_err(|error| {
            port_error(&format!("no recovery point was taken into vault `{}`", vault.name), error.may_pass(), error)
        })
    }

    fn stream(&self, _vaults: &[NamedVault], _request: &StreamRequest) -> Result<Streaming, PortError> {
        Ok(Streaming::PointsOnly { why: format!("{} is files, which have no log to stream", self.path.display()) })
    }
}

/// The point that a target means. A writer of a former epoch may have gone on, unaware: the highest epoch counts.
fn choose(vault: &Unlocked, dataset: &str, target: &Target) -> Result<PointInfo, FilesError> {
    let mut points = vault.points(Some(dataset))?.points;
    let none = |which: String| FilesError::NoPoint { dataset: dataset.to_owned(), which };
    let until: Option<Timestamp> = match target {
        Target::Point(id) => {
            return points.into_iter().find(|point| &point.id == id).ok_or_else(|| none(format!(" named `{id}`")));
        }
        Target::At(text) => Some(text.parse().map_err(|source| FilesError::Time { text: text.clone(), source })?),
        Target::Newest => None,
        Target::Position(_) | Target::Named(_) => return Err(FilesError::NoLog { dataset: dataset.to_owned() }),
    };
    points.retain(|point| point.badge != Badge::Corrupt && until.is_none_or(|until| point.taken_at <= until));
    let epoch = points.iter().map(|point| point.epoch).max().unwrap_or(0);
    points
        .into_iter()
        .rfind(|point| point.epoch == epoch)
        .ok_or_else(|| none(until.map(|until| format!(" as old as {until}")).unwrap_or_default()))
}

fn bring(
    vault: &Unlocked,
    point: &PointInfo,
    to: &Path,
    in_place: bool,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<lifeboat_vault::files::Restored, FilesError> {
    let root = vault.read_root(point)?;
    let root = ChunkId(root.as_slice().try_into().map_err(|_| FilesError::NotATree { point: point.id.clone() })?);
    let source = vault.source(&point.dataset)?;
    let options = RestoreOptions { in_place, delete_extra: in_place, ..RestoreOptions::default() };
    Ok(restore_tree(&source, &root, to, &options, progress, cancel.flag())?)
}

impl Restorer for FilesSource {
    fn restore(
        &self,
        vault: &Unlocked,
        request: &RestoreRequest,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Restored, PortError> {
        let began = Instant::now();
        let restore = || {
            let point = choose(vault, &request.dataset, &request.target)?;
            let restored = bring(vault, &point, &request.to, request.in_place, progress, cancel)?;
            Ok((point, restored))
        };
        let (point, restored) = restore().map_err(|error: FilesError| {
            port_error(&format!("`{}` was not restored", request.dataset), error.may_pass(), error)
        })?;
        Ok(Restored {
            as_of: point.taken_at,
            point,
            position: None,
            files: restored.files,
            bytes: restored.bytes,
            bytes_written: restored.written_bytes,
            seconds: began.elapsed().as_secs_f64(),
            verified: restored.verified.then(|| "every chunk matched its signed id, every file its length".to_owned()),
            notes: restored.notes.iter().map(|note| format!("{}: {}", note.path.display(), note.what)).collect(),
        })
    }

    fn verify(
        &self,
        vault: &Unlocked,
        request: &VerifyRequest,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Verification, PortError> {
        let began = Instant::now();
        let failed = |error: FilesError| {
            port_error(&format!("`{}` could not be verified", request.dataset), error.may_pass(), error)
        };
        if !request.queries.is_empty() {
            return Err(PortError::new(format!("`{}` is files, which answer no queries", request.dataset)));
        }
        let point = choose(vault, &request.dataset, &request.target).map_err(failed)?;
        let restored = bring(vault, &point, &request.scratch.join("data"), false, progress, cancel);
        let is_back = restored.is_ok();
        let (outcome, what) = match restored {
            Ok(restored) if restored.verified => {
                let count = restored.files;
                (
                    Outcome::Passed,
                    format!("{count} brought back, every chunk matched its signed id, every file its length"),
                )
            }
            Ok(_) => (Outcome::NotDone, "not every file could be held against its length".to_owned()),
            Err(error) => match error.said() {
                Some(outcome) => (outcome, super::in_full(&error)),
                None => return Err(failed(error)),
            },
        };
        let seconds = began.elapsed().as_secs_f64();
        let checks = vec![Check { check: "files".to_owned(), outcome, what, seconds }];
        let as_of = is_back.then_some(point.taken_at);
        Ok(Verification { point, as_of, position: None, checks, notes: Vec::new(), seconds })
    }

    fn follow(&self, vault: &Unlocked, request: &FollowRequest) -> Result<Box<dyn Standby>, PortError> {
        let follower = FilesStandby::open(vault, request).map_err(|error| {
            port_error(&format!("`{}` cannot be followed", request.dataset), error.may_pass(), error)
        })?;
        Ok(Box::new(follower))
    }

    fn has_standby(&self, to: &Path) -> bool {
        super::has_standby(to)
    }
}

/// What a standby knows of itself; lies beside it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    dataset: String,
    /// False while a point is being applied.
    whole: bool,
    point: Option<String>,
    epoch: u64,
    applied_to: Option<Timestamp>,
    is_final: bool,
}

struct FilesStandby {
    vault: Unlocked,
    dataset: String,
    to: PathBuf,
    work: PathBuf,
    record_path: PathBuf,
    record: Record,
    promoted: bool,
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn remove_tree(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(seen) if seen.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

impl FilesStandby {
    fn open(vault: &Unlocked, request: &FollowRequest) -> Result<FilesStandby, FilesError> {
        let work = with_suffix(&request.to, STANDBY_SUFFIX);
        let record_path = with_suffix(&work, ".json");
        let mut record = Record { dataset: request.dataset.clone(), ..Record::default() };
        let there = |path: &Path| path.try_exists().map_err(FilesError::place("look at", path));
        if there(&request.to)? && (request.adopt || !there(&work)?) {
            let is_empty = fs::read_dir(&request.to).is_ok_and(|mut entries| entries.next().is_none());
            if !request.adopt && !is_empty {
                return Err(FilesError::Exists { path: request.to.clone() });
            }
            let _ = fs::remove_file(&record_path);
            // A standby from before, all of which came from a vault.
            remove_tree(&work).map_err(FilesError::place("remove", &work))?;
            fs::rename(&request.to, &work).map_err(FilesError::place("take its name from", &request.to))?;
        }
        if there(&work)? {
            let read = fs::read(&record_path).ok().and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
            record = read.filter(|read| read.dataset == request.dataset).unwrap_or(record);
        }
        let (vault, dataset, to) = (vault.clone(), request.dataset.clone(), request.to.clone());
        Ok(FilesStandby { vault, dataset, to, work, record_path, record, promoted: false })
    }

    fn apply_newest(&mut self, cancel: &Cancel) -> Result<Applied, FilesError> {
        if self.promoted {
            return Ok(self.applied());
        }
        let point = choose(&self.vault, &self.dataset, &Target::Newest)?;
        let (same, goes_back) = (self.record.point.as_ref() == Some(&point.id), !self.is_better(&point));
        if self.record.whole && (same || goes_back) {
            return Ok(self.applied());
        }
        self.record.whole = false;
        self.write_record()?;
        fs::create_dir_all(&self.work).map_err(FilesError::place("make", &self.work))?;
        let restored = bring(&self.vault, &point, &self.work, true, &(), cancel)?;
        self.record = Record {
            dataset: self.dataset.clone(),
            whole: true,
            point: Some(point.id),
            epoch: point.epoch,
            applied_to: Some(point.taken_at),
            is_final: point.final_mark,
        };
        self.write_record()?;
        Ok(Applied { restarted: true, bytes_written: restored.written_bytes, ..self.applied() })
    }

    /// Another vault may be followed than before, and be behind.
    fn is_better(&self, point: &PointInfo) -> bool {
        let here = (self.record.epoch, self.record.applied_to);
        let there = (point.epoch, Some(point.taken_at));
        there > here || there == here && point.final_mark && !self.record.is_final
    }

    fn promote_now(&mut self, cancel: &Cancel) -> Result<Applied, FilesError> {
        let applied = self.apply_newest(cancel)?;
        if self.promoted {
            return Ok(applied);
        }
        if self.to.try_exists().map_err(FilesError::place("look at", &self.to))? {
            let aside = with_suffix(&self.to, &format!(".before-promotion-{}", Timestamp::now().as_second()));
            fs::rename(&self.to, &aside).map_err(FilesError::place("move aside", &self.to))?;
            tracing::warn!(path = %self.to.display(), aside = %aside.display(), "something lay in the place of the promoted files; it was moved aside");
        }
        fs::rename(&self.work, &self.to)
            .and_then(|()| sync_directory_of(&self.to))
            .map_err(FilesError::place("put into its place", &self.to))?;
        let _ = fs::remove_file(&self.record_path);
        self.promoted = true;
        Ok(applied)
    }

    fn applied(&self) -> Applied {
        let record = &self.record;
        Applied {
            applied_to: record.applied_to.filter(|_| record.whole),
            epoch: record.whole.then_some(record.epoch),
            point: record.point.clone(),
            is_final: record.is_final,
            ..Applied::default()
        }
    }

    fn write_record(&self) -> Result<(), FilesError> {
        let draft = with_suffix(&self.record_path, ".draft");
        let write = || {
            if let Some(directory) = self.record_path.parent() {
                fs::create_dir_all(directory)?;
            }
            fs::write(&draft, serde_json::to_vec(&self.record).map_err(io::Error::other)?)?;
            fs::File::open(&draft)?.sync_all()?;
            fs::rename(&draft, &self.record_path)
        };
        write().map_err(FilesError::place("write", &self.record_path))
    }
}

impl Standby for FilesStandby {
    fn apply(&mut self, cancel: &Cancel) -> Result<Applied, PortError> {
        match self.apply_newest(cancel) {
            // The writer has not stored its first point yet.
            Err(FilesError::NoPoint { .. }) => Ok(self.applied()),
            other => other.map_err(|error| port_error("the standby cannot go on", error.may_pass(), error)),
        }
    }

    fn promote(&mut self, cancel: &Cancel) -> Result<Applied, PortError> {
        self.promote_now(cancel).map_err(|error| port_error("the standby cannot be promoted", error.may_pass(), error))
    }
}
