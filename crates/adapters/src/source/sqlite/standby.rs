//! A database that follows a vault: `NAME.lifeboat-standby` beside the place it is for, and what it knows of itself.
//!
//! Invariant: the file is the source's state between two transactions whenever its record says `whole`; pages are durable
//! before the record says that they are there, so after a crash the same pieces are applied again and nothing else. It
//! has the database's name only after its promotion, so that no application can take it for live.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_core::runbook::Target;
use lifeboat_engine::port::{Applied, Cancel, FollowRequest, PortError, Standby};
use lifeboat_vault::{LogEntry, PointInfo, Position, Unlocked};
use serde::{Deserialize, Serialize};

use super::apply::ApplyError;
use super::base::write_base;
use super::copy::{Check, RestoreError, beside, open_work, put_in_place, remove_companions, verify};
use super::pieces::{self, apply_piece};
use crate::source::way::{self, ChainError, Onward, Way, position_text};
use crate::source::{STANDBY_SUFFIX, port_error};

/// The record of a standby. Lies beside the database, so that a copy of the volume is a standby, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    dataset: String,
    /// False while a full snapshot is being applied.
    whole: bool,
    point: Option<String>,
    /// Absent for a point outside any stream.
    position: Option<Position>,
    epoch: u64,
    applied_to: Option<Timestamp>,
    is_final: bool,
    /// While pieces are being applied: the last of them. Until they all are, the file may be torn.
    reaching: Option<u64>,
}

pub(super) struct Follower {
    vault: Unlocked,
    dataset: String,
    to: PathBuf,
    work_path: PathBuf,
    record_path: PathBuf,
    record: Record,
    /// As it is on the disk.
    written: Option<Record>,
    /// The last object of the chain, once all of it was read.
    tail: Option<LogEntry>,
    looked_through_at: Option<Instant>,
    looked_at_points_at: Option<Instant>,
    promoted: bool,
}

/// How often the whole chain is looked through: only that sees what was deleted in the middle.
const LOOK_THROUGH_EVERY: Duration = Duration::from_secs(60);
/// How often to look whether another chain has begun.
const LOOK_AT_POINTS_EVERY: Duration = Duration::from_secs(1);

fn is_due(last: Option<Instant>, every: Duration) -> bool {
    last.is_none_or(|last| last.elapsed() >= every)
}

impl Follower {
    pub(super) fn open(vault: &Unlocked, request: &FollowRequest) -> Result<Follower, RestoreError> {
        let work_path = beside(&request.to, STANDBY_SUFFIX);
        let record_path = beside(&work_path, ".json");
        if let Some(directory) = request.to.parent() {
            fs::create_dir_all(directory).map_err(RestoreError::file("make", directory))?;
        }
        let empty = Record {
            dataset: request.dataset.clone(),
            whole: false,
            point: None,
            position: None,
            epoch: 0,
            applied_to: None,
            is_final: false,
            reaching: None,
        };
        if exists(&request.to)? && (request.adopt || !exists(&work_path)?) {
            if !request.adopt {
                return Err(RestoreError::Exists { path: request.to.clone() });
            }
            // Its record goes first: what is adopted is whole only once a point was applied over it.
            remove_if_there(&record_path)?;
            remove_companions(&request.to)?;
            fs::rename(&request.to, &work_path).map_err(RestoreError::file("take its name from", &request.to))?;
        }
        let record =
            if exists(&work_path)? { read_record(&record_path, &request.dataset).unwrap_or(empty) } else { empty };
        let (vault, dataset, to) = (vault.clone(), request.dataset.clone(), request.to.clone());
        Ok(Follower {
            vault,
            dataset,
            to,
            work_path,
            record_path,
            record,
            written: None,
            tail: None,
            looked_through_at: None,
            looked_at_points_at: None,
            promoted: false,
        })
    }

    fn apply_new(&mut self, cancel: &Cancel) -> Result<Applied, RestoreError> {
        if self.promoted {
            return Ok(self.applied());
        }
        let mut did = Applied::default();
        if let Some(onward) = self.appended()? {
            return self.apply_appended(&onward, did, cancel);
        }
        let began = Instant::now();
        let way = match way::find(&self.vault, &self.dataset, &Target::Newest) {
            // What is damaged in the vault is whole here.
            Err(ChainError::Damaged { counter, what, .. }) if self.is_past(counter) => {
                tracing::warn!(dataset = self.dataset, what, "the vault's log is damaged where the standby has it");
                self.looked_through_at = Some(began);
                return match self.appended()? {
                    Some(onward) => self.apply_appended(&onward, did, cancel),
                    None => Ok(self.applied()),
                };
            }
            other => other?,
        };
        let onward = match self.go_on(&way)? {
            Some(onward) => onward,
            None if !self.is_better(&way) => return Ok(self.applied()),
            None => {
                did.bytes_written += self.start_from(&way.base, cancel)?;
                did.restarted = true;
                Onward { pieces: way.pieces, reaches: Some(way.reaches), is_final: way.is_final, tail: way.tail }
            }
        };
        self.apply_pieces(&onward, &mut did, cancel)?;
        self.tail = onward.tail;
        (self.looked_through_at, self.looked_at_points_at) = (Some(began), Some(began));
        Ok(Applied { pieces: did.pieces, bytes_written: did.bytes_written, restarted: did.restarted, ..self.applied() })
    }

    fn apply_appended(&mut self, onward: &Onward, mut did: Applied, cancel: &Cancel) -> Result<Applied, RestoreError> {
        self.tail = onward.tail.clone();
        self.apply_pieces(onward, &mut did, cancel)?;
        Ok(Applied { pieces: did.pieces, bytes_written: did.bytes_written, ..self.applied() })
    }

    /// Whether everything up to a position, and more, is in the copy, and the chain's end is known to this process.
    fn is_past(&self, counter: u64) -> bool {
        let Some(position) = self.record.position.as_ref().filter(|_| self.record.whole) else { return false };
        let is_known = self.tail.as_ref().is_some_and(|tail| {
            (&tail.lineage, tail.timeline, tail.last) == (&position.lineage, position.timeline, position.counter)
        });
        is_known && self.record.reaching.is_none() && counter < position.counter
    }

    /// What was appended to the chain that is followed. None: it is not known to be the one that counts, or time for a
    /// thorough look.
    fn appended(&mut self) -> Result<Option<Onward>, RestoreError> {
        let applied_all = self.record.whole && self.record.reaching.is_none();
        let (Some(position), Some(tail), true) = (&self.record.position, &self.tail, applied_all) else {
            return Ok(None);
        };
        let is_current = tail.lineage == position.lineage && tail.timeline == position.timeline;
        if !is_current || tail.last > position.counter || is_due(self.looked_through_at, LOOK_THROUGH_EVERY) {
            return Ok(None);
        }
        if is_due(self.looked_at_points_at, LOOK_AT_POINTS_EVERY) {
            if !way::is_newest(&self.vault, &self.dataset, position)? {
                return Ok(None);
            }
            self.looked_at_points_at = Some(Instant::now());
        }
        Ok(Some(way::appended(&self.vault, &self.dataset, position, tail)?))
    }

    fn apply_pieces(&mut self, onward: &Onward, did: &mut Applied, cancel: &Cancel) -> Result<(), RestoreError> {
        if let (Some(last), Some(mut position)) = (onward.pieces.last(), self.record.position.clone()) {
            self.record.reaching = Some(last.last);
            self.write_record()?;
            // Not made anew: pages over nothing are no database.
            let opened = File::options().read(true).write(true).open(&self.work_path);
            let file = opened.map_err(RestoreError::file("open", &self.work_path))?;
            let mut applied_to = self.record.applied_to;
            let applied = pieces::for_each(&self.vault, &onward.pieces, cancel, |entry, piece| {
                did.bytes_written += apply_piece(&piece, entry, &file)?;
                did.pieces += 1;
                position.counter = entry.last;
                applied_to = applied_to.max(Some(entry.source_time));
                Ok(true)
            });
            // Who interrupts keeps what was applied; it is durable before it is said.
            if !matches!(applied, Ok(()) | Err(RestoreError::Cancelled)) {
                return applied;
            }
            file.sync_data().map_err(RestoreError::file("make durable", &self.work_path))?;
            (self.record.position, self.record.applied_to) = (Some(position), applied_to);
            self.record.reaching = None;
        }
        let position = self.record.position.as_ref().map(|position| position.counter);
        if onward.pieces.last().is_none_or(|last| Some(last.last) == position) {
            self.record.applied_to = self.record.applied_to.max(onward.reaches);
            self.record.is_final = onward.is_final || (self.record.is_final && onward.pieces.is_empty());
        }
        self.write_record()
    }

    /// What is to be applied to what is here, if the newest chain is the one that is followed already.
    fn go_on(&self, way: &Way) -> Result<Option<Onward>, RestoreError> {
        if !self.record.whole {
            return Ok(None);
        }
        let (Some(here), Some(there)) = (&self.record.position, &way.base.position) else {
            let same = self.record.point.as_ref() == Some(&way.base.id);
            return Ok(same.then(Onward::default));
        };
        if (&here.lineage, here.timeline) != (&there.lineage, there.timeline) {
            return Ok(None);
        }
        let as_of = self.record.applied_to.unwrap_or(way.base.taken_at);
        let onward = match way::onward(&self.vault, &self.dataset, here, as_of) {
            // Pieces were lost or dropped, but a newer snapshot stands after them.
            Err(ChainError::Hole { .. }) if there.counter > here.counter => return Ok(None),
            other => other?,
        };
        let reached = onward.pieces.last().map_or(here.counter, |last| last.last);
        let torn = self.record.reaching.is_some_and(|reaching| reaching > reached);
        Ok((!torn).then_some(onward))
    }

    fn is_better(&self, way: &Way) -> bool {
        let (record, base) = (&self.record, &way.base);
        // Clocks may be set back, so what a vault says of the order of its chains comes before times.
        let is_superseded = record.position.as_ref().is_some_and(|position| way.superseded.contains(&position.lineage));
        let is_same_epoch_on = is_superseded || Some(way.reaches) > record.applied_to;
        !record.whole
            || record.reaching.is_some()
            || base.epoch > record.epoch
            || base.epoch == record.epoch && is_same_epoch_on
    }

    fn start_from(&mut self, base: &PointInfo, cancel: &Cancel) -> Result<u64, RestoreError> {
        self.record.whole = false;
        self.write_record()?;
        let file = open_work(&self.work_path)?;
        let (_, written) = write_base(&self.vault, base, &file, &self.work_path, cancel)?;
        file.sync_all().map_err(RestoreError::file("make durable", &self.work_path))?;
        self.record = Record {
            dataset: self.dataset.clone(),
            whole: true,
            point: Some(base.id.clone()),
            position: base.position.clone(),
            epoch: base.epoch,
            applied_to: Some(base.taken_at),
            is_final: false,
            reaching: None,
        };
        self.write_record()?;
        Ok(written)
    }

    fn promote_now(&mut self, cancel: &Cancel) -> Result<Applied, RestoreError> {
        self.looked_through_at = None;
        let applied = self.apply_new(cancel)?;
        if self.promoted {
            return Ok(applied);
        }
        if cancel.is_cancelled() {
            return Err(RestoreError::Cancelled);
        }
        if !self.record.whole || self.record.reaching.is_some() {
            return Err(RestoreError::Torn { path: self.work_path.clone() });
        }
        verify(&self.work_path, Check::Quick)?;
        if exists(&self.to)? {
            let stamp = Timestamp::now().as_second();
            let aside = beside(&self.to, &format!(".before-promotion-{stamp}"));
            fs::rename(&self.to, &aside).map_err(RestoreError::file("move aside", &self.to))?;
            tracing::warn!(path = %self.to.display(), aside = %aside.display(), "something lay in the place of the promoted database; it was moved aside");
        }
        put_in_place(&self.work_path, &self.to)?;
        remove_if_there(&self.record_path)?;
        self.promoted = true;
        Ok(applied)
    }

    fn applied(&self) -> Applied {
        let record = &self.record;
        Applied {
            applied_to: record.applied_to.filter(|_| record.whole),
            position: record.position.as_ref().map(position_text),
            epoch: record.whole.then_some(record.epoch),
            point: record.point.clone(),
            is_final: record.is_final,
            ..Applied::default()
        }
    }

    fn is_unlike_its_record(&self, error: &RestoreError) -> bool {
        match error {
            RestoreError::Apply { source: ApplyError::PageSize { .. }, .. } => true,
            RestoreError::File { path, source, .. } => {
                *path == self.work_path && source.kind() == io::ErrorKind::NotFound
            }
            _ => false,
        }
    }

    fn write_record(&mut self) -> Result<(), RestoreError> {
        if self.written.as_ref() == Some(&self.record) {
            return Ok(());
        }
        if let Some(directory) = self.record_path.parent() {
            fs::create_dir_all(directory).map_err(RestoreError::file("make", directory))?;
        }
        let draft = beside(&self.record_path, ".draft");
        let write = || {
            let text = serde_json::to_vec(&self.record).map_err(io::Error::other)?;
            fs::write(&draft, text)?;
            File::open(&draft)?.sync_all()?;
            fs::rename(&draft, &self.record_path)
        };
        write().map_err(RestoreError::file("write", &self.record_path))?;
        self.written = Some(self.record.clone());
        Ok(())
    }
}

impl Standby for Follower {
    fn apply(&mut self, cancel: &Cancel) -> Result<Applied, PortError> {
        match self.apply_new(cancel) {
            // The writer has not stored its first point yet.
            Err(RestoreError::Chain(ChainError::NoPoint { .. })) => Ok(self.applied()),
            // What is here is gone, or is not what the record says: the next time begins with a full snapshot.
            Err(error) if self.is_unlike_its_record(&error) => {
                self.record.whole = false;
                self.write_record().map_err(|error| port_error("the standby cannot go on", true, error))?;
                Err(port_error("the standby begins anew", true, error))
            }
            other => other.map_err(|error| port_error("the standby cannot go on", error.may_pass(), error)),
        }
    }

    fn promote(&mut self, cancel: &Cancel) -> Result<Applied, PortError> {
        self.promote_now(cancel).map_err(|error| port_error("the standby cannot be promoted", error.may_pass(), error))
    }
}

fn exists(path: &Path) -> Result<bool, RestoreError> {
    path.try_exists().map_err(RestoreError::file("look at", path))
}

fn remove_if_there(path: &Path) -> Result<(), RestoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(RestoreError::file("remove", path)(error)),
        _ => Ok(()),
    }
}

fn read_record(path: &Path, dataset: &str) -> Option<Record> {
    let record: Record = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (record.dataset == dataset).then_some(record)
}
