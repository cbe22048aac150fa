//! One data set at this host: its source, its restorer and the vaults, put together as the agent needs them.
//!
//! Invariant: a vault that cannot be reached delays nothing that goes to the others, and its silence is reported as unknown.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_core::plan::{Protect, Schedule};
use lifeboat_vault::Identity;

use crate::port::{
    Applied, Cancel, Clock, DataAgent, DataStatus, FollowRequest, LogStream, NamedVault, Order, Orders, PointRequest,
    PointTaken, PortError, Restorer, Source, StreamRequest, Streaming,
};
use crate::vaults::VaultPlace;

/// How often a writer looks after its schedules, and a standby after what is new.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How soon a recovery point that failed is tried again.
const AGAIN_AFTER_SECONDS: f64 = 5.0;

/// Everything that the agent needs for one data set.
pub struct HostData {
    pub dataset: String,
    pub source: Arc<dyn Source>,
    pub restorer: Arc<dyn Restorer>,
    /// Where the data lies: the database file, or the directory.
    pub path: PathBuf,
    /// A directory of this host's for the stream's and the standby's memory.
    pub state: PathBuf,
    pub protect: Vec<Protect>,
    pub vaults: BTreeMap<String, VaultPlace>,
    /// What this host may open the data set with; empty: it cannot follow.
    pub identities: Vec<Identity>,
    pub clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for HostData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostData").field("dataset", &self.dataset).field("path", &self.path).finish_non_exhaustive()
    }
}

/// When a vault last got a recovery point, and when it may be tried again.
#[derive(Default)]
struct Due {
    last: Option<Timestamp>,
    not_before_seconds: f64,
}

/// A writer's state that several threads add to.
#[derive(Default)]
struct Seen {
    status: DataStatus,
    /// What is wrong with each vault.
    problems: BTreeMap<String, String>,
}

impl DataAgent for HostData {
    fn dataset(&self) -> &str {
        &self.dataset
    }

    fn has_volume(&self) -> bool {
        self.path.exists()
    }

    fn can_follow(&self) -> bool {
        !self.identities.is_empty()
    }

    fn write(&self, epoch: u64, orders: &Orders, tell: &dyn Fn(DataStatus)) -> Result<(), PortError> {
        let seen = Mutex::new(Seen::default());
        let vaults = self.open_all(&seen, orders, tell)?;
        let Some(vaults) = vaults else { return Ok(()) };
        let logged: Vec<NamedVault> = vaults.iter().filter(|vault| self.is_logged(&vault.name)).cloned().collect();
        let mut stream: Option<Box<dyn LogStream>> = None;
        if !logged.is_empty() {
            let request = StreamRequest::new(&self.dataset, epoch, self.state.join("stream"));
            match self.source.stream(&logged, &request)? {
                Streaming::Started(started) => stream = Some(started),
                Streaming::PointsOnly { why } => self.note(&seen, |seen| {
                    seen.problems.insert("log".into(), format!("recovery points only, no log: {why}"));
                }),
            }
        }
        let mut due: BTreeMap<String, Due> = BTreeMap::new();
        loop {
            let order = orders.wait(LOOK_EVERY);
            self.gather(&seen, stream.as_deref());
            match order {
                Order::Go => self.take_due(&vaults, epoch, stream.as_deref(), &mut due, &seen, orders),
                Order::Stop => {
                    if let Some(stream) = &stream {
                        stream.stop();
                    }
                    return Ok(());
                }
                Order::Finish => {
                    let finished = self.finish(&vaults, epoch, stream.as_deref(), &seen, orders);
                    self.gather(&seen, stream.as_deref());
                    tell(told(&seen));
                    return finished;
                }
            }
            tell(told(&seen));
        }
    }

    fn follow(&self, adopt: bool, orders: &Orders, tell: &dyn Fn(DataStatus)) -> Result<(), PortError> {
        let cancel = Cancel::default();
        let mut failures = Vec::new();
        // From the first vault that can be followed; when it fails later, the task begins anew, and so does this list.
        for protect in &self.protect {
            let Some(place) = self.vaults.get(&protect.to) else { continue };
            let request = FollowRequest { dataset: self.dataset.clone(), to: self.path.clone(), adopt };
            let standby = place.unlocked(&self.identities).and_then(|vault| self.restorer.follow(&vault, &request));
            let mut standby = match standby {
                Ok(standby) => standby,
                Err(error) => {
                    failures.push(format!("{}: {}", protect.to, crate::execute::with_cause(&error)));
                    continue;
                }
            };
            loop {
                match orders.now() {
                    Order::Go => tell(applied(&standby.apply(&cancel)?)),
                    Order::Stop => return Ok(()),
                    Order::Finish => {
                        tell(applied(&standby.promote(&cancel)?));
                        return Ok(());
                    }
                }
                orders.wait(LOOK_EVERY);
            }
        }
        Err(PortError::may_pass(format!("no vault of `{}` can be followed: {}", self.dataset, failures.join("; "))))
    }
}

impl HostData {
    fn is_logged(&self, vault: &str) -> bool {
        self.protect.iter().any(|protect| protect.to == vault && protect.log)
    }

    fn note(&self, seen: &Mutex<Seen>, change: impl FnOnce(&mut Seen)) {
        change(&mut seen.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Opens every vault; waits for the first that answers. None: told to stop while waiting.
    fn open_all(
        &self,
        seen: &Mutex<Seen>,
        orders: &Orders,
        tell: &dyn Fn(DataStatus),
    ) -> Result<Option<Vec<NamedVault>>, PortError> {
        loop {
            let mut opened = Vec::new();
            for protect in &self.protect {
                let Some(place) = self.vaults.get(&protect.to) else { continue };
                match place.as_host() {
                    Ok(vault) => opened.push(NamedVault { name: protect.to.clone(), vault }),
                    Err(error) => self.note(seen, |seen| {
                        seen.problems.insert(protect.to.clone(), crate::execute::with_cause(&error));
                    }),
                }
            }
            if opened.len() == self.protect.len() || !opened.is_empty() && orders.now() != Order::Go {
                return Ok(Some(opened));
            }
            tell(told(seen));
            if orders.wait(Duration::from_secs(1)) == Order::Stop {
                return Ok(None);
            }
            if !opened.is_empty() {
                return Ok(Some(opened));
            }
            if orders.now() == Order::Finish {
                let problem = told(seen).problem.unwrap_or_default();
                return Err(PortError::may_pass(format!("no vault can be reached to finish in: {problem}")));
            }
        }
    }

    /// Takes the recovery points that are due.
    fn take_due(
        &self,
        vaults: &[NamedVault],
        epoch: u64,
        stream: Option<&dyn LogStream>,
        due: &mut BTreeMap<String, Due>,
        seen: &Mutex<Seen>,
        orders: &Orders,
    ) {
        for vault in vaults {
            let Some(protect) = self.protect.iter().find(|protect| protect.to == vault.name) else { continue };
            let streamed = stream.is_some() && protect.log;
            let state = due.entry(vault.name.clone()).or_default();
            // A stream begins with a point of its own.
            if streamed && state.last.is_none() {
                state.last = Some(self.clock.now());
            }
            let now = self.clock.now();
            if !is_due(&protect.every, state.last, now) || self.clock.monotonic_seconds() < state.not_before_seconds {
                continue;
            }
            match self.take_point(vault, epoch, false, if streamed { stream } else { None }, orders) {
                Ok(taken) => {
                    state.last = Some(now);
                    self.note(seen, |seen| {
                        seen.problems.remove(&vault.name);
                        if !streamed {
                            seen.status.durable.insert(vault.name.clone(), taken.point.taken_at);
                            seen.status.position = Some(taken.point.id);
                        }
                    });
                }
                Err(error) => {
                    state.not_before_seconds = self.clock.monotonic_seconds() + AGAIN_AFTER_SECONDS;
                    self.note(seen, |seen| {
                        seen.problems.insert(vault.name.clone(), crate::execute::with_cause(&error));
                    });
                }
            }
        }
    }

    fn take_point(
        &self,
        vault: &NamedVault,
        epoch: u64,
        final_mark: bool,
        stream: Option<&dyn LogStream>,
        orders: &Orders,
    ) -> Result<PointTaken, PortError> {
        let cancel = orders.stopper();
        match stream {
            Some(stream) => stream.take_point(&vault.name, &cancel),
            None => {
                let request = PointRequest { dataset: self.dataset.clone(), epoch, final_mark, release: None };
                self.source.take_point(vault, &request, &(), &cancel)
            }
        }
    }

    /// The writers have been stopped: everything to every vault that answers, at least one of them outside.
    fn finish(
        &self,
        vaults: &[NamedVault],
        epoch: u64,
        stream: Option<&dyn LogStream>,
        seen: &Mutex<Seen>,
        orders: &Orders,
    ) -> Result<(), PortError> {
        if let Some(stream) = stream {
            stream.freeze(&orders.stopper())?;
        }
        let mut failures = Vec::new();
        for vault in vaults.iter().filter(|vault| stream.is_none() || !self.is_logged(&vault.name)) {
            match self.take_point(vault, epoch, true, None, orders) {
                Ok(taken) => self.note(seen, |seen| {
                    seen.problems.remove(&vault.name);
                    seen.status.durable.insert(vault.name.clone(), taken.point.taken_at);
                    seen.status.position = Some(taken.point.id);
                }),
                Err(error) => failures.push(format!("{}: {}", vault.name, crate::execute::with_cause(&error))),
            }
        }
        if failures.is_empty() {
            return Ok(());
        }
        Err(PortError::may_pass(format!("`{}` is not finished: {}", self.dataset, failures.join("; "))))
    }

    /// What a stream says of itself, into what is told.
    fn gather(&self, seen: &Mutex<Seen>, stream: Option<&dyn LogStream>) {
        let Some(stream) = stream else { return };
        let status = stream.status();
        self.note(seen, |seen| {
            match status.problem {
                Some(problem) => seen.problems.insert("source".into(), problem),
                None => seen.problems.remove("source"),
            };
            for (name, vault) in status.vaults {
                match vault.durable_to {
                    Some(durable) => seen.status.durable.insert(name.clone(), durable),
                    None => seen.status.durable.remove(&name),
                };
                if vault.position.is_some() {
                    seen.status.position = vault.position;
                }
                match vault.problem {
                    Some(problem) => seen.problems.insert(name, problem),
                    None => seen.problems.remove(&name),
                };
            }
        });
    }
}

fn is_due(every: &Schedule, last: Option<Timestamp>, now: Timestamp) -> bool {
    let Some(last) = last else { return true };
    // A clock that went back must not stop recovery points for as long as it went back.
    now < last || every.due_after(last).is_none_or(|due| due <= now)
}

fn told(seen: &Mutex<Seen>) -> DataStatus {
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    let problems: Vec<String> = seen.problems.iter().map(|(what, problem)| format!("{what}: {problem}")).collect();
    let problem = (!problems.is_empty()).then(|| problems.join("; "));
    DataStatus { problem, ..seen.status.clone() }
}

fn applied(applied: &Applied) -> DataStatus {
    DataStatus {
        position: applied.position.clone().or_else(|| applied.point.clone()),
        applied: applied.applied_to,
        applied_epoch: applied.epoch,
        complete: applied.is_final,
        ..DataStatus::default()
    }
}
