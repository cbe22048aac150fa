//! One data set at one host: carries out the duty of the day, changes over when it changes, and reports.
//!
//! Invariant: at most one piece of work touches the volume at a time, and the record on disk says `Wrote` before the
//! first write is shipped.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lifeboat_core::desired::{AgentReport, AgentRole};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::role::{Orders, Record, Work, work};
use super::{Domain, blocking};
use crate::arbitrate::Arbiter;
use crate::port::{Cancel, Clock, DataAgent, DataStatus, Order, Orders as WorkOrders, PortError};

/// How soon failed work is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How often the report is made anew, even if nothing changed.
const REPORT_EVERY_SECONDS: f64 = 1.0;

pub(super) struct Task {
    site: String,
    data: Arc<dyn DataAgent>,
    arbiter: Arc<Arbiter>,
    clock: Arc<dyn Clock>,
    record: PathBuf,
    poll: Duration,
    status: Arc<Mutex<DataStatus>>,
    beat: u64,
    reported: Option<(f64, AgentReport)>,
}

/// What is going on.
struct Running {
    work: Work,
    orders: WorkOrders,
    handle: JoinHandle<Result<(), PortError>>,
}

/// What the report says besides the status.
#[derive(Clone, Copy)]
struct Standing {
    role: AgentRole,
    epoch: u64,
    settled: bool,
}

impl Task {
    pub(super) fn new(domain: &Domain, data: Arc<dyn DataAgent>) -> Task {
        Task {
            site: domain.site.clone(),
            record: domain.state.join(format!("{}.json", data.dataset())),
            data,
            arbiter: Arc::clone(&domain.arbiter),
            clock: Arc::clone(&domain.clock),
            poll: domain.poll,
            status: Arc::default(),
            beat: 0,
            reported: None,
        }
    }

    pub(super) async fn serve(mut self, mut orders: watch::Receiver<Option<Orders>>, cancel: Cancel) {
        let mut running: Option<Running> = None;
        let mut again_at = 0.0;
        while !cancel.is_cancelled() {
            let Some(now) = *orders.borrow_and_update() else {
                tokio::time::sleep(self.poll).await;
                continue;
            };
            let wanted = self.wanted(now);
            if let Some(ended) = running.take_if(|running| running.handle.is_finished() || running.work != wanted) {
                let failed = self.end(ended, wanted).await;
                if failed {
                    again_at = self.clock.monotonic_seconds() + AGAIN_AFTER.as_secs_f64();
                }
                continue;
            }
            if running.is_none() && self.clock.monotonic_seconds() >= again_at {
                running = self.begin(wanted);
            }
            let standing = self.standing(now, wanted, running.as_ref());
            self.report(now.generation, standing).await;
            tokio::time::sleep(self.poll).await;
        }
        if let Some(running) = running {
            running.orders.give(Order::Stop);
            let _ = running.handle.await;
        }
    }

    fn wanted(&self, now: Orders) -> Work {
        work(now.duty, read_record(&self.record), self.data.has_volume())
    }

    /// Starts what there is to do. Nothing to do leaves nothing running.
    fn begin(&self, wanted: Work) -> Option<Running> {
        let orders = WorkOrders::default();
        let (data, status, told) = (Arc::clone(&self.data), Arc::clone(&self.status), orders.clone());
        let tell = move |new: DataStatus| *status.lock().unwrap_or_else(PoisonError::into_inner) = new;
        let handle = match wanted {
            Work::Write { epoch } | Work::Finish { epoch } => {
                if !self.data.has_volume() {
                    self.problem("there is nothing in the volume's place to protect");
                    return None;
                }
                if let Err(error) = write_record(&self.record, Record::Wrote { epoch }) {
                    self.problem(&format!("cannot note in {} that this host writes: {error}", self.record.display()));
                    return None;
                }
                if matches!(wanted, Work::Finish { .. }) {
                    orders.give(Order::Finish);
                }
                tokio::task::spawn_blocking(move || data.write(epoch, &told, &tell))
            }
            Work::Follow { adopt } => {
                if !self.data.can_follow() {
                    self.problem("this host has no key to follow with");
                    return None;
                }
                tokio::task::spawn_blocking(move || data.follow(adopt, &told, &tell))
            }
            Work::Keep { epoch } => {
                self.problem(&format!(
                    "the volume holds writes of epoch {epoch} that may be in no vault; set it aside, then this host follows"
                ));
                return None;
            }
            Work::LetGo => {
                self.status.lock().unwrap_or_else(PoisonError::into_inner).problem = None;
                return None;
            }
        };
        Some(Running { work: wanted, orders, handle })
    }

    /// Ends work that is over or no longer wanted; answers whether it failed.
    async fn end(&self, running: Running, wanted: Work) -> bool {
        // What a writer or a standby leaves behind must be whole where the next duty builds on it.
        let finish = match (running.work, wanted) {
            (Work::Write { epoch }, Work::Finish { epoch: same }) => epoch == same,
            (Work::Follow { .. }, Work::Write { .. }) => true,
            _ => false,
        };
        if !running.handle.is_finished() {
            running.orders.give(if finish { Order::Finish } else { Order::Stop });
        }
        let ended =
            running.handle.await.unwrap_or_else(|died| Err(PortError::may_pass(format!("its thread died: {died}"))));
        let record = match (running.work, &ended, finish) {
            (Work::Write { epoch }, Ok(()), true) | (Work::Finish { epoch }, Ok(()), _) => {
                Some(Record::Finished { epoch })
            }
            (Work::Follow { .. }, Ok(()), _) => Some(Record::Followed),
            _ => None,
        };
        if let Some(record) = record
            && let Err(error) = write_record(&self.record, record)
        {
            self.problem(&format!("cannot note in {} what this host did: {error}", self.record.display()));
        }
        match ended {
            Ok(()) => false,
            Err(error) => {
                let error = crate::execute::with_cause(&error);
                tracing::warn!("{} at {}: {error}", self.data.dataset(), self.site);
                self.problem(&error);
                true
            }
        }
    }

    fn problem(&self, problem: &str) {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).problem = Some(problem.to_owned());
    }

    fn standing(&self, now: Orders, wanted: Work, running: Option<&Running>) -> Standing {
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match (wanted, running) {
            (Work::Write { epoch }, Some(_)) => Standing { role: AgentRole::Writer, epoch, settled: true },
            (Work::Finish { epoch }, _) => Standing { role: AgentRole::Writer, epoch, settled: false },
            (Work::LetGo, _) => {
                let epoch = match read_record(&self.record) {
                    Record::Finished { epoch } | Record::Wrote { epoch } => epoch,
                    _ => now.epoch,
                };
                Standing { role: AgentRole::Idle, epoch, settled: true }
            }
            (Work::Follow { .. }, Some(_)) => Standing {
                role: AgentRole::Standby,
                epoch: status.applied_epoch.unwrap_or(0),
                settled: status.complete,
            },
            _ => Standing { role: AgentRole::Idle, epoch: now.epoch, settled: false },
        }
    }

    /// Tells the arbiter's storage, when something changed or a second has passed.
    async fn report(&mut self, generation: u64, standing: Standing) {
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut report = AgentReport {
            site: self.site.clone(),
            dataset: self.data.dataset().to_owned(),
            role: standing.role,
            epoch: standing.epoch,
            generation,
            durable: status.durable.iter().map(|(vault, at)| (vault.clone(), at.to_string())).collect(),
            position: status.position,
            applied: status.applied.map(|at| at.to_string()),
            settled: standing.settled,
            problem: status.problem,
            at: String::new(),
            beat: 0,
        };
        let now = self.clock.monotonic_seconds();
        if let Some((at, last)) = &self.reported
            && now - at < REPORT_EVERY_SECONDS
            && same_standing(last, &report)
        {
            return;
        }
        self.reported = Some((now, report.clone()));
        self.beat += 1;
        report.beat = self.beat;
        report.at = self.clock.now().to_string();
        let arbiter = Arc::clone(&self.arbiter);
        if let Err(error) = blocking(move || arbiter.report(&report)).await {
            tracing::warn!(
                "{} at {}: cannot report: {}",
                self.data.dataset(),
                self.site,
                crate::execute::with_cause(&error)
            );
        }
    }
}

/// Whether two reports say the same but for how far things are.
fn same_standing(one: &AgentReport, other: &AgentReport) -> bool {
    (one.role, one.epoch, one.generation, one.settled, &one.problem)
        == (other.role, other.epoch, other.generation, other.settled, &other.problem)
        && one.applied.is_some() == other.applied.is_some()
}

/// What this host did; a record that cannot be read counts as the most careful one that the volume allows.
fn read_record(path: &Path) -> Record {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or(Record::Wrote { epoch: 0 }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Record::Nothing,
        Err(_) => Record::Wrote { epoch: 0 },
    }
}

fn write_record(path: &Path, record: Record) -> io::Result<()> {
    if read_record(path) == record {
        return Ok(());
    }
    let Some(directory) = path.parent() else { return Err(io::Error::from(io::ErrorKind::InvalidInput)) };
    std::fs::create_dir_all(directory)?;
    let temporary = path.with_extension("new");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(&record)?)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    std::fs::File::open(directory)?.sync_all()
}
