//! One data set at one host: carries out the duty of the day, changes over when it changes, and reports.
//!
//! Invariant: at most one piece of work touches the volume at a time, and the record on disk says `Wrote` before the
//! first write is shipped.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lifeboat_core::desired::{AgentReport, AgentRole};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::lease::LeaseProblem;
use super::role::{Duty, Found, Orders, Past, Record, Work, work, work_apart};
use super::{Domain, blocking};
use crate::arbitrate::{Arbiter, ArbiterError};
use crate::port::{Cancel, Clock, DataAgent, DataStatus, Order, Orders as WorkOrders, PortError};

/// How soon failed work is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How often the report is made anew, even if nothing changed.
const REPORT_EVERY_SECONDS: f64 = 1.0;

pub(super) struct Task {
    site: String,
    write_domain: String,
    data: Arc<dyn DataAgent>,
    arbiter: Arc<Arbiter>,
    clock: Arc<dyn Clock>,
    record: PathBuf,
    poll: Duration,
    status: Arc<Mutex<DataStatus>>,
    lease: LeaseProblem,
    beat: u64,
    reported: Option<(f64, AgentReport)>,
    /// Under which generation and record it was last found out.
    past: Option<(u64, Record, Past)>,
}

/// What is going on.
struct Running {
    work: Work,
    orders: WorkOrders,
    given: Order,
    handle: JoinHandle<Result<(), PortError>>,
    /// What came of it, once it is over.
    ended: Option<Result<(), PortError>>,
}

/// What the report says besides the status.
#[derive(Clone, Copy)]
struct Standing {
    role: AgentRole,
    epoch: u64,
    settled: bool,
    finished: Option<u64>,
}

impl Task {
    pub(super) fn new(domain: &Domain, data: Arc<dyn DataAgent>, lease: LeaseProblem) -> Task {
        Task {
            site: domain.site.clone(),
            write_domain: domain.first_day.write_domain.clone(),
            record: domain.state.join(format!("{}.json", data.dataset())),
            data,
            arbiter: Arc::clone(&domain.arbiter),
            clock: Arc::clone(&domain.clock),
            poll: domain.poll,
            status: Arc::default(),
            lease,
            beat: 0,
            reported: None,
            past: None,
        }
    }

    pub(super) async fn serve(mut self, mut orders: watch::Receiver<Option<Orders>>, cancel: Cancel) {
        let mut running: Option<Running> = None;
        let mut again_at = 0.0;
        while !cancel.is_cancelled() {
            let now = orders.borrow_and_update().clone();
            if let Some(now) = &now
                && let Some(wanted) = self.wanted(now).await
            {
                if let Some(ended) = running.take_if(|running| running.ended.is_some()) {
                    if self.end(ended).await.is_err() {
                        again_at = self.clock.monotonic_seconds() + AGAIN_AFTER.as_secs_f64();
                    }
                    continue;
                }
                if let Some(running) = &running {
                    running.orders.set_writer(&now.writer);
                }
                match &mut running {
                    Some(running) if !running.does(wanted) => running.change_over(wanted),
                    None if self.clock.monotonic_seconds() >= again_at => running = self.begin(wanted, &now.writer),
                    _ => {}
                }
                let standing = self.standing(now, wanted, running.as_ref());
                self.report(now.generation, standing).await;
            }
            // What is published, and what is over, is acted on at once: while a service moves, nobody can write to it.
            tokio::select! {
                () = tokio::time::sleep(self.poll) => {}
                Ok(()) = orders.changed() => {}
                () = ending(&mut running) => {}
            }
        }
        if let Some(mut running) = running {
            running.orders.give(Order::Stop);
            running.end().await;
        }
    }

    /// What is to be done; nothing new while the arbiter cannot say what has to be known.
    async fn wanted(&mut self, now: &Orders) -> Option<Work> {
        if self.data.is_apart() {
            return Some(work_apart(now.duty));
        }
        let record = read_record(&self.record);
        let past = match now.duty {
            Duty::Hold => self.past(now.generation, record).await?,
            _ => Past::default(),
        };
        Some(work(now.duty, record, self.found(), past))
    }

    fn found(&self) -> Found {
        Found { volume: self.data.has_volume(), standby: self.data.has_standby() }
    }

    /// Who wrote before this host was told to hold: what was written while another site did is for nobody to build on.
    async fn past(&mut self, generation: u64, record: Record) -> Option<Past> {
        if let Some((of_generation, of_record, past)) = self.past
            && (of_generation, of_record) == (generation, record)
        {
            return Some(past);
        }
        let (arbiter, domain, site) = (Arc::clone(&self.arbiter), self.write_domain.clone(), self.site.clone());
        let looked = blocking(move || {
            let last = arbiter.last_let_write(&domain)?.filter(|last| last.primary == site);
            let superseded = match record {
                Record::Wrote { epoch } | Record::Finished { epoch } => {
                    arbiter.was_superseded(&domain, &site, epoch)?
                }
                _ => false,
            };
            Ok::<_, ArbiterError>(Past { last_here: last.map(|last| last.epoch), superseded })
        });
        match looked.await {
            Ok(past) => {
                self.past = Some((generation, record, past));
                Some(past)
            }
            Err(error) => {
                self.problem(&crate::execute::with_cause(&error));
                None
            }
        }
    }

    /// Starts what there is to do. Nothing to do leaves nothing running.
    fn begin(&self, wanted: Work, writer: &str) -> Option<Running> {
        let orders = WorkOrders::default();
        orders.set_writer(writer);
        let (data, told) = (Arc::clone(&self.data), orders.clone());
        let tell = self.teller(wanted);
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
            Work::Follow { .. } | Work::Promote { .. } => {
                if !self.data.can_follow() {
                    self.problem("this host has no key to follow with");
                    return None;
                }
                if matches!(wanted, Work::Follow { .. })
                    && read_record(&self.record) == Record::LetGo
                    && let Err(error) = write_record(&self.record, Record::Nothing)
                {
                    self.problem(&format!("cannot note in {} that this host follows: {error}", self.record.display()));
                    return None;
                }
                if matches!(wanted, Work::Promote { .. }) {
                    orders.give(Order::Finish);
                }
                let adopt = matches!(wanted, Work::Follow { adopt: true });
                tokio::task::spawn_blocking(move || data.follow(adopt, &told, &tell))
            }
            Work::Keep { epoch } => {
                self.problem(&format!(
                    "the volume holds writes of epoch {epoch} that may be in no vault; set it aside, then this host follows"
                ));
                return None;
            }
            Work::Doubt { epoch } => {
                self.problem(&format!(
                    "something lies in the volume's place, and this host has no word of having written it under epoch {epoch}, \
                     nor of having shipped it; start lifeboat protect with the state directory that it had, or give this run \
                     up, so that what lies there is protected under the next epoch, look at it, and begin again"
                ));
                return None;
            }
            Work::LetGo { reserved } => {
                self.status.lock().unwrap_or_else(PoisonError::into_inner).problem = None;
                let record = read_record(&self.record).after_reservation(self.found());
                if reserved && let Err(error) = write_record(&self.record, record) {
                    self.problem(&format!("cannot note in {} that this host lets go: {error}", self.record.display()));
                }
                return None;
            }
        };
        let given = orders.now();
        Some(Running { work: wanted, orders, given, handle, ended: None })
    }

    /// Takes what the work says of itself. As soon as a standby has something, the record on disk says so.
    fn teller(&self, wanted: Work) -> impl Fn(DataStatus) + Send + 'static {
        let (status, record) = (Arc::clone(&self.status), self.record.clone());
        let follows = matches!(wanted, Work::Follow { .. });
        let noted = AtomicBool::new(false);
        {
            // What former work said of itself is not true of this.
            let mut status = status.lock().unwrap_or_else(PoisonError::into_inner);
            if !matches!(wanted, Work::LetGo { .. } | Work::Keep { .. } | Work::Doubt { .. }) {
                *status = DataStatus { problem: status.problem.take(), ..DataStatus::default() };
            }
        }
        move |new: DataStatus| {
            if follows
                && new.applied.is_some()
                && !noted.swap(true, Ordering::Relaxed)
                && let Err(error) = write_record(&record, Record::Followed)
            {
                tracing::warn!("cannot note in {} that this host follows: {error}", record.display());
                noted.store(false, Ordering::Relaxed);
            }
            *status.lock().unwrap_or_else(PoisonError::into_inner) = new;
        }
    }

    /// Notes what work that is over has left behind.
    async fn end(&self, running: Running) -> Result<(), ()> {
        let Running { work, given, ended, .. } = running;
        let ended = ended.unwrap_or(Ok(()));
        let record = match (work, &ended, given) {
            (Work::Write { epoch } | Work::Finish { epoch }, Ok(()), Order::Finish) => Some(Record::Finished { epoch }),
            _ => None,
        };
        if let Some(record) = record
            && let Err(error) = write_record(&self.record, record)
        {
            self.problem(&format!("cannot note in {} what this host did: {error}", self.record.display()));
        }
        ended.map_err(|error| {
            let error = crate::execute::with_cause(&error);
            tracing::warn!("{} at {}: {error}", self.data.dataset(), self.site);
            self.problem(&error);
        })
    }

    fn problem(&self, problem: &str) {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).problem = Some(problem.to_owned());
    }

    fn standing(&self, now: &Orders, wanted: Work, running: Option<&Running>) -> Standing {
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let working = running.is_some_and(|running| running.does(wanted) && running.given != Order::Stop);
        let standing = |role, epoch, settled| Standing { role, epoch, settled, finished: None };
        let followed = status.applied_epoch.unwrap_or(0);
        match wanted {
            Work::Write { epoch } if working => standing(AgentRole::Writer, epoch, true),
            Work::Finish { epoch } => standing(AgentRole::Writer, epoch, false),
            Work::LetGo { reserved } => {
                let record = read_record(&self.record);
                let (epoch, finished) = match record {
                    Record::Finished { epoch } => (epoch, Some(epoch)),
                    Record::Wrote { epoch } => (epoch, None),
                    _ => (now.epoch, None),
                };
                let is_noted = !reserved || record == record.after_reservation(self.found());
                Standing { finished, ..standing(AgentRole::Idle, epoch, running.is_none() && is_noted) }
            }
            Work::Follow { .. } if working => standing(AgentRole::Standby, followed, status.complete),
            Work::Promote { .. } => standing(AgentRole::Standby, followed, false),
            _ => standing(AgentRole::Idle, now.epoch, false),
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
            finished: standing.finished,
            commits: status.commits,
            streams: status.streams,
            came: status.came,
            problem: status.problem.or_else(|| self.lease.lock().unwrap_or_else(PoisonError::into_inner).clone()),
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

/// Ends with the work; never where there is none, or it is over.
async fn ending(running: &mut Option<Running>) {
    match running {
        Some(running) if running.ended.is_none() => running.end().await,
        _ => std::future::pending().await,
    }
}

impl Running {
    /// Waits until it is over.
    async fn end(&mut self) {
        if self.ended.is_none() {
            let ended = (&mut self.handle).await;
            self.ended =
                Some(ended.unwrap_or_else(|died| Err(PortError::may_pass(format!("its thread died: {died}")))));
        }
    }

    fn does(&self, wanted: Work) -> bool {
        // A standby that has taken the volume over goes on as one that had it.
        self.work == wanted || matches!((self.work, wanted), (Work::Follow { .. }, Work::Follow { .. }))
    }

    /// Lets go of work that is no longer wanted: with its end, where the next duty builds on that.
    fn change_over(&mut self, wanted: Work) {
        let order = match (self.work, wanted) {
            (Work::Write { epoch }, Work::Finish { epoch: same }) if epoch == same => Order::Finish,
            (Work::Follow { .. }, Work::Promote { .. }) => Order::Finish,
            // Put in place just now, and not over yet.
            (Work::Follow { .. } | Work::Promote { .. }, Work::Write { .. }) if self.given == Order::Finish => return,
            _ => Order::Stop,
        };
        if self.given != order && self.given != Order::Stop {
            self.orders.give(order);
            self.given = order;
        }
    }
}

/// Whether two reports say the same but for how far things are.
fn same_standing(one: &AgentReport, other: &AgentReport) -> bool {
    let streaming = |report: &AgentReport| report.streams.as_ref().map(|streams| streams.problem.clone());
    (one.role, one.epoch, one.generation, one.settled, one.finished, &one.problem, &one.commits)
        == (other.role, other.epoch, other.generation, other.settled, other.finished, &other.problem, &other.commits)
        && one.applied.is_some() == other.applied.is_some()
        && streaming(one) == streaming(other)
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
