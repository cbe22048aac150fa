//! Carrying objects from one storage to another: many at a time, at a pace, each checked.
//!
//! Invariant: a phase begins when the one before it is done; within a row nothing overtakes, and a hole in a row ends it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::plan::{Load, Phase, Plan};
use super::{CopyOptions, CopyProgress, CopyReport};
use crate::error::{Doing, Result, VaultError};
use crate::finding::{Finding, Severity};
use crate::object::{self, Place};
use crate::open::Vault;
use crate::storage::{Storage, StorageError};

/// A pause for the pace is cut into pieces, so that a stop is noticed.
const NAP: Duration = Duration::from_millis(50);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Work<'a> {
    source: &'a Vault,
    to: &'a dyn Storage,
    pace: Pace,
    progress: CopyProgress<'a>,
    cancel: &'a AtomicBool,
    total: u64,
    done: AtomicU64,
    stopped: AtomicBool,
    outcome: Mutex<Outcome>,
}

#[derive(Default)]
struct Outcome {
    objects: u64,
    bytes: u64,
    points: u64,
    findings: Vec<Finding>,
    /// Packs that lie where they must be thawed first, and their bytes.
    archived: (u64, u64),
    failure: Option<VaultError>,
}

/// Carries everything; answers whether it was not stopped on the way.
pub(super) fn carry(
    source: &Vault,
    to: &dyn Storage,
    plan: &Plan,
    options: &CopyOptions,
    progress: CopyProgress<'_>,
    cancel: &AtomicBool,
    report: &mut CopyReport,
) -> Result<bool> {
    let work = Work {
        source,
        to,
        pace: Pace::new(options.bytes_per_second),
        progress,
        cancel,
        total: plan.bytes,
        done: AtomicU64::new(0),
        stopped: AtomicBool::new(false),
        outcome: Mutex::default(),
    };
    progress(0, plan.bytes);
    for phase in &plan.phases {
        work.run(phase, options.parallel.clamp(1, 64));
        if work.is_stopped() {
            break;
        }
    }
    let whole = !work.is_stopped();
    let outcome = work.outcome.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.objects_copied = outcome.objects;
    report.bytes_copied = outcome.bytes;
    report.points_copied = outcome.points;
    report.findings.extend(outcome.findings);
    if let (packs @ 1.., bytes) = outcome.archived {
        let message = format!(
            "{packs} packs ({} MB) lie in a class of storage that must be thawed, and are not in the copy: its older points cannot be \
             restored from it; thaw them (docs/object-storage.md) and copy again, or copy newer points only (--since)",
            bytes.div_ceil(1_000_000)
        );
        report.findings.push(Finding::new(Severity::Alarm, "archived", "pack/", message));
    }
    match outcome.failure {
        Some(error) => Err(error),
        None => Ok(whole),
    }
}

impl Work<'_> {
    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst) || self.cancel.load(Ordering::SeqCst)
    }

    fn run(&self, phase: &Phase, threads: usize) {
        let rows: Mutex<VecDeque<&Vec<Load>>> = Mutex::new(phase.iter().collect());
        std::thread::scope(|scope| {
            for _ in 0..threads.min(phase.len()) {
                scope.spawn(|| {
                    loop {
                        let next = lock(&rows).pop_front();
                        let Some(row) = next else { return };
                        self.carry_row(row);
                    }
                });
            }
        });
    }

    fn carry_row(&self, row: &[Load]) {
        for load in row {
            if self.is_stopped() {
                return;
            }
            match self.carry_one(load) {
                Ok(true) => {}
                // What follows a hole in a chain of points would be an alarm in the target.
                Ok(false) if matches!(load.place, Place::Snapshot(..)) => return,
                Ok(false) => {}
                Err(error) => {
                    self.stopped.store(true, Ordering::SeqCst);
                    lock(&self.outcome).failure.get_or_insert(error);
                    return;
                }
            }
        }
    }

    /// Answers whether the object is in the target; an error ends the copy.
    fn carry_one(&self, load: &Load) -> Result<bool> {
        let key = &load.key;
        let bytes = match self.source.storage().get(key) {
            Ok(bytes) => bytes,
            Err(error) if error.is_everywhere() => {
                return Err(VaultError::Storage { doing: format!("reading {key}"), source: error });
            }
            Err(StorageError::Archived { .. }) => {
                self.went(load.size);
                let archived = &mut lock(&self.outcome).archived;
                *archived = (archived.0 + 1, archived.1 + load.size);
                return Ok(false);
            }
            // Pruned while it was copied, or a bad place on a disk: what is left out is said.
            Err(error) => {
                return Ok(
                    self.leave_out(load, &VaultError::Storage { doing: format!("reading {key}"), source: error })
                );
            }
        };
        let checked = match &load.place {
            Place::Readme if bytes.len() as u64 > load.place.bytes_max() => {
                Err(VaultError::damaged(key, "it is too long"))
            }
            place => object::check(&self.source.roster(), key, place, &bytes).map(|_| ()),
        };
        if let Err(error) = checked {
            return Ok(self.leave_out(load, &error));
        }
        self.pace.take(bytes.len() as u64, self.cancel);
        self.to.put_if_absent(key, &bytes).doing(|| format!("writing {key}"))?;
        let mut outcome = lock(&self.outcome);
        outcome.objects += 1;
        outcome.bytes += bytes.len() as u64;
        outcome.points += u64::from(matches!(load.place, Place::Snapshot(..)));
        drop(outcome);
        self.went(load.size);
        Ok(true)
    }

    fn leave_out(&self, load: &Load, error: &VaultError) -> bool {
        self.went(load.size);
        let finding = match error {
            VaultError::Storage { source, .. } => Finding::new(
                Severity::Alarm,
                "unreadable",
                &load.key,
                format!("{} could not be read at the source, and is not in the copy: {source}", load.key),
            ),
            error => {
                let Finding { severity, code, object, message } = Finding::from(error);
                Finding { severity, code, object, message: format!("{message}; it was left out of the copy") }
            }
        };
        lock(&self.outcome).findings.push(finding);
        false
    }

    fn went(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.progress)(done, self.total);
    }
}

/// So many bytes a second, over all threads.
struct Pace {
    bytes_per_second: Option<u64>,
    /// When the next byte may go.
    free_at: Mutex<Instant>,
}

impl Pace {
    fn new(bytes_per_second: Option<u64>) -> Pace {
        Pace { bytes_per_second: bytes_per_second.filter(|rate| *rate > 0), free_at: Mutex::new(Instant::now()) }
    }

    fn take(&self, bytes: u64, cancel: &AtomicBool) {
        let Some(rate) = self.bytes_per_second else { return };
        let starts = {
            let mut free_at = lock(&self.free_at);
            let starts = (*free_at).max(Instant::now());
            *free_at = starts + Duration::from_secs_f64(bytes as f64 / rate as f64);
            starts
        };
        while let Some(left) = starts.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            if cancel.load(Ordering::SeqCst) {
                return;
            }
            std::thread::sleep(left.min(NAP));
        }
    }
}
