//! One data set at this host: its source, its restorer and the vaults, put together as the agent needs them.
//!
//! Invariant: a vault that cannot be reached delays nothing that goes to the others, and its silence is reported as unknown.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_core::plan::{Awaited, Protect, Schedule};
use lifeboat_vault::{HostVault, Identity};

use super::following::Following;
use crate::port::{
    Cancel, Clock, DataAgent, DataStatus, LogStream, NamedVault, Order, Orders, PointRequest, PointTaken, PortError,
    Restorer, Source, StreamFrom, StreamRequest, Streaming, VaultStatus,
};
use crate::vaults::VaultPlace;

/// How often a writer looks after its schedules, and tells how things are.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How soon a recovery point that failed is tried again.
const AGAIN_AFTER_SECONDS: f64 = 5.0;
/// How often to look whether a vault that was away is there, or whether a log has come.
const REOPEN_EVERY: Duration = Duration::from_secs(2);
/// How long a vault that does not answer may hold up the end of writing when another has everything.
const FINISH_WITHIN: Duration = Duration::from_secs(5);
const FREEZE_LOOK: Duration = Duration::from_millis(10);
/// Under what the lack of a log is noted.
const LOG: &str = "log";
/// Under what it is noted that commits do not wait, though they should.
const COMMITS: &str = "commits";

/// Everything that the agent needs for one data set.
pub struct HostData {
    pub dataset: String,
    pub source: Arc<dyn Source>,
    pub restorer: Arc<dyn Restorer>,
    /// Where the data lies: the database file, or the directory.
    pub path: PathBuf,
    /// It has no place of its own here: points are taken of it while its site writes, and that is all.
    pub is_apart: bool,
    /// A directory of this host's for the stream's and the standby's memory.
    pub state: PathBuf,
    pub protect: Vec<Protect>,
    /// What commits are to wait for.
    pub awaited: Option<Awaited>,
    pub vaults: BTreeMap<String, VaultPlace>,
    /// What this host may open the data set with; empty: it cannot follow.
    pub identities: Vec<Identity>,
    /// By site: how the data set's server there is reached from here.
    pub via: BTreeMap<String, StreamFrom>,
    /// How old what is durable may look while nothing changes; a second where it is less.
    pub mark_idle_max: Duration,
    pub clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for HostData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostData").field("dataset", &self.dataset).field("path", &self.path).finish_non_exhaustive()
    }
}

impl HostData {
    /// Takes one recovery point into each vault, now, whatever the schedule says. Blocks.
    pub fn take_once(&self, epoch: u64, cancel: &Cancel) -> Vec<(String, Result<PointTaken, PortError>)> {
        let request = PointRequest { dataset: self.dataset.clone(), epoch, final_mark: false, release: None };
        let take = |place: &VaultPlace| {
            let vault = NamedVault { name: place.name.clone(), vault: place.as_host()? };
            self.source.take_point(&vault, &request, &(), cancel)
        };
        let places = self.protect.iter().filter_map(|protect| self.vaults.get(&protect.to));
        places.map(|place| (place.name.clone(), take(place))).collect()
    }
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
        // What cannot be looked at is there.
        self.is_apart || self.path.try_exists().unwrap_or(true)
    }

    fn has_standby(&self) -> bool {
        !self.is_apart && self.restorer.has_standby(&self.path)
    }

    fn is_apart(&self) -> bool {
        self.is_apart
    }

    fn can_follow(&self) -> bool {
        !self.identities.is_empty()
    }

    fn write(&self, epoch: u64, orders: &Orders, tell: &dyn Fn(DataStatus)) -> Result<(), PortError> {
        let seen = Mutex::new(Seen::default());
        let Some(mut vaults) = self.open_first(&seen, orders, tell)? else { return Ok(()) };
        loop {
            let writing = Writing { data: self, epoch, vaults: &vaults, orders, seen: &seen };
            match writing.run(tell)? {
                Round::Over => return Ok(()),
                Round::Again(joined) => vaults.extend(joined),
            }
        }
    }

    fn follow(&self, adopt: bool, orders: &Orders, tell: &dyn Fn(DataStatus)) -> Result<(), PortError> {
        Following::new(self, adopt).run(orders, tell)
    }
}

impl HostData {
    fn is_logged(&self, vault: &str) -> bool {
        self.protect.iter().any(|protect| protect.to == vault && protect.log)
    }

    /// Opens those of the vaults that are not open and answer.
    fn open_missing(&self, open: &[NamedVault], seen: &Mutex<Seen>) -> Vec<NamedVault> {
        let mut opened: Vec<NamedVault> = Vec::new();
        for protect in &self.protect {
            let is_open = |vault: &NamedVault| vault.name == protect.to;
            let Some(place) = self.vaults.get(&protect.to) else { continue };
            if open.iter().any(is_open) || opened.iter().any(is_open) {
                continue;
            }
            match place.as_host() {
                Ok(vault) => {
                    self.inherit(&vault);
                    note(seen, |seen| seen.problems.remove(&protect.to));
                    opened.push(NamedVault { name: protect.to.clone(), vault });
                }
                Err(error) => {
                    note(seen, |seen| seen.problems.insert(protect.to.clone(), crate::execute::with_cause(&error)));
                }
            }
        }
        opened
    }

    /// Takes over the data set's chunk keys, so that a promoted host does not upload what is there already.
    fn inherit(&self, vault: &HostVault) {
        if self.identities.is_empty() {
            return;
        }
        let inherited = vault.unlock(&self.identities).and_then(|unlocked| unlocked.inherit(vault, &self.dataset));
        if let Err(error) = inherited {
            tracing::debug!(
                "{}: uploads what may be there already: {}",
                self.dataset,
                crate::execute::with_cause(&error)
            );
        }
    }

    /// Opens every vault that answers; waits for the first. None: told to stop while waiting.
    fn open_first(
        &self,
        seen: &Mutex<Seen>,
        orders: &Orders,
        tell: &dyn Fn(DataStatus),
    ) -> Result<Option<Vec<NamedVault>>, PortError> {
        loop {
            let opened = self.open_missing(&[], seen);
            if !opened.is_empty() {
                return Ok(Some(opened));
            }
            tell(told(seen));
            match orders.wait(REOPEN_EVERY) {
                Order::Go => {}
                Order::Stop => return Ok(None),
                Order::Finish => {
                    let problem = told(seen).problem.unwrap_or_default();
                    return Err(PortError::may_pass(format!("no vault can be reached to finish in: {problem}")));
                }
            }
        }
    }
}

/// How a round of writing ended.
enum Round {
    Over,
    /// Something has changed that the next round begins with.
    Again(Vec<NamedVault>),
}

/// Writing to the vaults that are open, each by a thread of its own.
struct Writing<'a> {
    data: &'a HostData,
    epoch: u64,
    vaults: &'a [NamedVault],
    orders: &'a Orders,
    seen: &'a Mutex<Seen>,
}

impl Writing<'_> {
    fn run(&self, tell: &dyn Fn(DataStatus)) -> Result<Round, PortError> {
        let stream = self.stream()?;
        let stream = stream.as_deref();
        // Interrupts recovery points on their way when the round ends; what is stored of them is found again.
        let over = Cancel::default();
        let ended = std::thread::scope(|scope| {
            for vault in self.vaults {
                let over = &over;
                scope.spawn(move || self.take_points(vault, stream, over));
            }
            let ended = self.watch(stream, tell);
            over.cancel();
            ended
        });
        if let Some(round) = ended {
            if let Some(stream) = stream {
                stream.stop();
            }
            return Ok(round);
        }
        let finished = self.finish(stream);
        self.gather(stream);
        tell(told(self.seen));
        finished.map(|()| Round::Over)
    }

    fn stream(&self) -> Result<Option<Box<dyn LogStream>>, PortError> {
        let logged: Vec<NamedVault> =
            self.vaults.iter().filter(|vault| self.data.is_logged(&vault.name)).cloned().collect();
        if logged.is_empty() {
            return Ok(None);
        }
        let mut request = StreamRequest::new(&self.data.dataset, self.epoch, self.data.state.join("stream"));
        request.mark_idle_max = self.data.mark_idle_max;
        request.awaited = self.data.awaited.clone();
        match self.data.source.stream(&logged, &request)? {
            Streaming::Started(started) => {
                note(self.seen, |seen| seen.problems.remove(LOG));
                Ok(Some(started))
            }
            Streaming::PointsOnly { why } => {
                note(self.seen, |seen| {
                    seen.problems.insert(LOG.into(), format!("recovery points only, no log: {why}"))
                });
                Ok(None)
            }
        }
    }

    /// Tells how things are until they change. None: it is to be finished.
    fn watch(&self, stream: Option<&dyn LogStream>, tell: &dyn Fn(DataStatus)) -> Option<Round> {
        let clock = &self.data.clock;
        let mut looked_at = clock.monotonic_seconds();
        loop {
            let order = self.orders.wait(LOOK_EVERY);
            self.gather(stream);
            tell(told(self.seen));
            match order {
                Order::Go => {}
                Order::Stop => return Some(Round::Over),
                Order::Finish => return None,
            }
            if clock.monotonic_seconds() - looked_at < REOPEN_EVERY.as_secs_f64() {
                continue;
            }
            looked_at = clock.monotonic_seconds();
            let joined = self.data.open_missing(self.vaults, self.seen);
            if !joined.is_empty() || stream.is_none() && self.can_stream_now() {
                return Some(Round::Again(joined));
            }
        }
    }

    /// Whether what had no log when the round began has one now.
    fn can_stream_now(&self) -> bool {
        matches!(self.stream(), Ok(Some(_)))
    }

    /// Takes one vault's recovery points as they are due, until the round ends.
    fn take_points(&self, vault: &NamedVault, stream: Option<&dyn LogStream>, over: &Cancel) {
        let Some(protect) = self.data.protect.iter().find(|protect| protect.to == vault.name) else { return };
        let clock = &self.data.clock;
        let stream = stream.filter(|_| protect.log);
        // A stream sees to a first point by itself.
        let mut last = stream.map(|_| self.last_point(vault).unwrap_or_else(|| clock.now()));
        let mut not_before_seconds = 0.0;
        while !over.is_cancelled() && self.orders.wait(LOOK_EVERY) == Order::Go {
            let now = clock.now();
            if !is_due(&protect.every, last, now) || clock.monotonic_seconds() < not_before_seconds {
                continue;
            }
            match self.take_point(vault, false, stream, over) {
                Ok(_) => {
                    last = Some(now);
                    self.record_elsewhere(vault);
                }
                Err(_) if over.is_cancelled() => return,
                Err(_) => not_before_seconds = clock.monotonic_seconds() + AGAIN_AFTER_SECONDS,
            }
        }
    }

    /// Says in the other vaults how far this one has come, so that it cannot be rolled back unnoticed.
    fn record_elsewhere(&self, vault: &NamedVault) {
        for other in self.vaults.iter().filter(|other| other.name != vault.name) {
            if let Err(error) = other.vault.witness(&vault.vault) {
                tracing::warn!("{} cannot take in how far {} has come: {error}", other.name, vault.name);
            }
        }
    }

    /// When the vault's newest point of this epoch was taken.
    fn last_point(&self, vault: &NamedVault) -> Option<Timestamp> {
        let points = vault.vault.points(Some(&self.data.dataset)).ok()?.points;
        points.iter().filter(|point| point.epoch == self.epoch).map(|point| point.taken_at).max()
    }

    fn take_point(
        &self,
        vault: &NamedVault,
        final_mark: bool,
        stream: Option<&dyn LogStream>,
        cancel: &Cancel,
    ) -> Result<(), PortError> {
        let taken: Result<PointTaken, PortError> = match stream {
            Some(stream) => stream.take_point(&vault.name, cancel),
            None => {
                let (dataset, epoch) = (self.data.dataset.clone(), self.epoch);
                let request = PointRequest { dataset, epoch, final_mark, release: None };
                self.data.source.take_point(vault, &request, &(), cancel)
            }
        };
        note(self.seen, |seen| match taken {
            Ok(taken) => {
                seen.problems.remove(&vault.name);
                if stream.is_none() {
                    seen.status.durable.insert(vault.name.clone(), taken.point.taken_at);
                    seen.status.position = Some(taken.point.id);
                }
                Ok(())
            }
            Err(error) => {
                if !cancel.is_cancelled() {
                    seen.problems.insert(vault.name.clone(), crate::execute::with_cause(&error));
                }
                Err(error)
            }
        })
    }

    /// The writers have been stopped: everything to every vault that answers, and to one at least.
    fn finish(&self, stream: Option<&dyn LogStream>) -> Result<(), PortError> {
        let started = self.data.clock.monotonic_seconds();
        let is_late = || self.data.clock.monotonic_seconds() - started > FINISH_WITHIN.as_secs_f64();
        let stopped = self.orders.stopper();
        let finished: BTreeMap<String, Result<(), PortError>> = std::thread::scope(|scope| {
            let frozen = stream.map(|stream| scope.spawn(|| self.freeze(stream, &is_late)));
            let points: Vec<_> = self
                .vaults
                .iter()
                .filter(|vault| stream.is_none() || !self.data.is_logged(&vault.name))
                .map(|vault| {
                    let work = || loop {
                        match self.take_point(vault, true, None, &stopped) {
                            Err(error) if error.may_pass && !is_late() && !stopped.is_cancelled() => {
                                self.orders.wait_for_stop(LOOK_EVERY);
                            }
                            done => return done,
                        }
                    };
                    (vault.name.clone(), scope.spawn(work))
                })
                .collect();
            let died = || Err(PortError::may_pass("the thread that worked for it died"));
            let mut finished: BTreeMap<_, _> =
                points.into_iter().map(|(name, thread)| (name, thread.join().unwrap_or_else(|_| died()))).collect();
            finished.extend(frozen.into_iter().flat_map(|thread| thread.join().unwrap_or_default()));
            finished
        });
        let missing: Vec<String> = finished
            .iter()
            .filter_map(|(name, done)| Some((name, done.as_ref().err()?)))
            .map(|(name, error)| format!("{name}: {}", crate::execute::with_cause(error)))
            .collect();
        if finished.values().any(Result::is_ok) && !stopped.is_cancelled() {
            return Ok(());
        }
        Err(PortError::may_pass(format!("`{}` is not finished: {}", self.data.dataset, missing.join("; "))))
    }

    /// Ships the log's end and its final mark; waits for vaults that do not answer only until it is late.
    fn freeze(
        &self,
        stream: &dyn LogStream,
        is_late: &(dyn Fn() -> bool + Sync),
    ) -> BTreeMap<String, Result<(), PortError>> {
        let enough = Cancel::default();
        let frozen = std::thread::scope(|scope| {
            let freezing = scope.spawn(|| stream.freeze(&enough));
            while !freezing.is_finished() {
                let one_has_it = stream.status().vaults.values().any(|vault| vault.frozen);
                if self.orders.stopper().is_cancelled() || one_has_it && is_late() {
                    enough.cancel();
                }
                std::thread::sleep(FREEZE_LOOK);
            }
            freezing.join().unwrap_or_else(|_| Err(PortError::may_pass("the thread that froze the stream died")))
        });
        let why = frozen.err().map(|error| crate::execute::with_cause(&error)).unwrap_or_default();
        let of_vault = |(name, vault): (String, VaultStatus)| match vault.frozen {
            true => (name, Ok(())),
            false => (name, Err(PortError::may_pass(vault.problem.unwrap_or_else(|| why.clone())))),
        };
        stream.status().vaults.into_iter().map(of_vault).collect()
    }

    /// What a stream says of itself, into what is told.
    fn gather(&self, stream: Option<&dyn LogStream>) {
        let Some(stream) = stream else { return };
        let status = stream.status();
        note(self.seen, |seen| {
            match status.problem {
                Some(problem) => seen.problems.insert("source".into(), problem),
                None => seen.problems.remove("source"),
            };
            match status.commits.as_ref().filter(|commits| !commits.wait) {
                Some(commits) => {
                    let problem = format!("acknowledged, they may be lost, since {}: {}", commits.since, commits.what);
                    seen.problems.insert(COMMITS.into(), problem)
                }
                None => seen.problems.remove(COMMITS),
            };
            seen.status.commits = status.commits;
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

fn note<T>(seen: &Mutex<Seen>, change: impl FnOnce(&mut Seen) -> T) -> T {
    change(&mut seen.lock().unwrap_or_else(PoisonError::into_inner))
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
