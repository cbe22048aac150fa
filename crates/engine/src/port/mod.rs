//! The ports: what the engine asks of the outside world. Adapters implement them.
//!
//! Invariant: every verb is idempotent under the same `Context::idempotency_key`, and says what it found, not what it hoped.

mod volume;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_core::desired::{CommitsWait, Streams};
use lifeboat_core::plan::{Awaited, Health, HttpExchange};
use lifeboat_core::run::Facts;
use lifeboat_core::runbook::{InstanceSpec, Target, VolumeSpec};
use lifeboat_vault::files::Progress;
use lifeboat_vault::{HostVault, PointInfo, Unlocked};

pub use self::volume::{Hold, Keeps, Snapshot, Volume};
use crate::verify::{Check, Verification, VerifyRequest};

/// Why a port's verb failed. `may_pass` says whether trying again can help.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct PortError {
    pub message: String,
    pub may_pass: bool,
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl PortError {
    pub fn new(message: impl Into<String>) -> PortError {
        PortError { message: message.into(), may_pass: false, source: None }
    }

    pub fn may_pass(message: impl Into<String>) -> PortError {
        PortError { message: message.into(), may_pass: true, source: None }
    }

    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> PortError {
        self.source = Some(source.into());
        self
    }
}

/// Under what a verb is carried out.
#[derive(Debug, Clone)]
pub struct Context {
    pub run: String,
    pub step: String,
    pub epoch: u64,
    /// The same for every attempt at the same step of the same run.
    pub idempotency_key: String,
    /// A drill's isolation name; verbs act inside it and nowhere else.
    pub isolation: Option<String>,
    pub cancel: Cancel,
}

/// Set once, seen everywhere: long work stops at the next safe place.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub fn cancel(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// The flag, for those that look at it for as long as they live.
    pub fn shared(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }

    /// The flag itself, for those that know nothing of this type.
    pub fn flag(&self) -> &AtomicBool {
        &self.0
    }
}

/// Who watches long work: who may stop it, and who hears what it waits for.
#[derive(Clone)]
pub struct Watch {
    pub cancel: Cancel,
    pub hears: Arc<dyn Fn(&str) + Send + Sync>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("cancel", &self.cancel).finish_non_exhaustive()
    }
}

impl Default for Watch {
    fn default() -> Watch {
        Watch { cancel: Cancel::default(), hears: Arc::new(|_| {}) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstanceState {
    Running,
    Stopped,
    /// The site cannot be asked.
    Unknown(String),
}

/// What a fence can say for itself.
#[derive(Debug, Clone, PartialEq)]
pub enum Fenced {
    /// Proven: `facts` name each thing that was looked at.
    Proven { proof: String, facts: Facts },
    /// Nothing proves it; `statement` is what a person would have to confirm, `why` says why it could not be proven.
    Unproven { statement: String, why: String },
}

/// What is in a volume's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeState {
    Absent,
    /// `path` is reachable from this process.
    Present {
        path: PathBuf,
    },
}

/// One place where services run.
#[async_trait]
pub trait Site: Send + Sync {
    /// Starts, or finds started, one instance.
    async fn start(&self, instance: &InstanceSpec, context: &Context) -> Result<Facts, PortError>;
    /// Stops one instance, gracefully, within its own `stop_within`.
    async fn stop(&self, instance: &InstanceSpec, context: &Context) -> Result<Facts, PortError>;
    async fn observe(&self, instance: &InstanceSpec) -> Result<InstanceState, PortError>;
    /// Kills what may write, blocks its restart, and proves both or says that it cannot.
    async fn fence(&self, request: &FenceRequest, context: &Context) -> Result<Fenced, PortError>;
    async fn lift_fence(&self, write_domain: &str, context: &Context) -> Result<(), PortError>;
    /// Everything about volumes, agents and drills' isolation, one verb each.
    async fn perform(&self, verb: &SiteVerb, context: &Context) -> Result<SiteAnswer, PortError>;
}

#[derive(Debug, Clone, PartialEq)]
pub struct FenceRequest {
    pub write_domain: String,
    pub instances: Vec<InstanceSpec>,
    pub volumes: Vec<VolumeSpec>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum SiteVerb {
    /// Where the volume is; creates nothing.
    LocateVolume(VolumeSpec),
    /// Where a volume that is about to be restored belongs (its parent exists afterwards). Answer: `Path`.
    PlaceVolume(VolumeSpec),
    /// Moves what is there aside, under a name that says when and under which epoch. Answer: `Path` of the new place, or `Nothing`.
    SetAside(VolumeSpec),
    /// Undoes a `SetAside` made under the context's epoch; what has come there since is moved aside in its turn. Answer: `Path`, or `Nothing` if nothing had been set aside.
    PutBack(VolumeSpec),
    /// Takes a snapshot of the volume, which nobody writes, under this name. Answer: `Done` with where it is, or `Nothing` if nothing lies there.
    KeepVolume(VolumeSpec, String),
    /// Recovers what lies there and looks through it. Answer: `Looked`.
    LookThroughVolume(VolumeSpec),
    /// Starts, or finds started, the host's own `lifeboat protect`.
    EnsureAgent,
    /// Stops gracefully what else runs for a write domain, whatever its instances are called. `Nothing` where the site
    /// keeps no account of that.
    StopRest(String),
    /// Runs a user's command at the site.
    Run(Vec<String>),
    /// Makes the named isolation: directories, addresses.
    Isolate(String),
    RemoveIsolation(String),
    /// Answer: `Left` with everything of it that still exists.
    WhatIsLeft(String),
}

#[derive(Debug, Clone, PartialEq)]
pub enum SiteAnswer {
    Done(Facts),
    Nothing,
    Volume(VolumeState),
    Path(PathBuf),
    Left(Vec<String>),
    Looked(Vec<Check>),
}

/// Looks from where the traffic comes from.
#[async_trait]
pub trait Probe: Send + Sync {
    /// Whether one instance is healthy; the error says what was seen instead.
    async fn instance(&self, instance: &InstanceSpec, health: &Health) -> Result<(), PortError>;
    /// The addresses that the authority (or the machine's resolver) gives for a name now.
    async fn resolve(&self, name: &str, authority: Option<&str>) -> Result<Vec<std::net::IpAddr>, PortError>;
    /// The traffic generation that a name's authority answers with now.
    async fn traffic(&self, name: &str, authority: &str) -> Result<TrafficInForce, PortError>;
    /// Whether the service is healthy, asked through its name.
    async fn service(&self, door: &ServiceDoor, health: &Health) -> Result<(), PortError>;
    /// One HTTP exchange through the service's name; answers status and body. `body` has its templates filled in.
    async fn exchange(&self, door: &ServiceDoor, exchange: &HttpExchange) -> Result<(u16, String), PortError>;
}

/// Which traffic generation an authority answers with, as it says itself (`_epoch.NAME` TXT).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TrafficInForce {
    pub epoch: u64,
    pub generation: u64,
}

/// How a service is reached by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceDoor {
    pub name: String,
    pub authority: Option<String>,
    pub port: Option<u16>,
}

/// Time, as the engine knows it: the wall clock for records, the monotonic one for decisions.
pub trait Clock: Send + Sync {
    fn now(&self) -> Timestamp;
    /// Seconds since some fixed moment of this process; never goes back.
    fn monotonic_seconds(&self) -> f64;
}

/// A vault under its name in the plan, as a host writes to it.
#[derive(Debug, Clone)]
pub struct NamedVault {
    pub name: String,
    pub vault: HostVault,
}

/// Data that lies on this host and goes to vaults. All of it blocks: call it from `spawn_blocking`.
pub trait Source: Send + Sync {
    /// Takes one recovery point into one vault.
    fn take_point(
        &self,
        vault: &NamedVault,
        request: &PointRequest,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<PointTaken, PortError>;

    /// Starts to ship changes to all the vaults as they happen, in threads of its own, a full recovery point first where
    /// a vault has none to go on from.
    fn stream(&self, vaults: &[NamedVault], request: &StreamRequest) -> Result<Streaming, PortError>;
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PointRequest {
    pub dataset: String,
    pub epoch: u64,
    /// Writers have been stopped: nothing follows this point under its epoch.
    pub final_mark: bool,
    /// The version of the software that wrote the data, if it is known.
    pub release: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct PointTaken {
    pub vault: String,
    pub point: PointInfo,
    pub files: u64,
    pub bytes: u64,
    /// What the vault did not hold yet, and what that takes up there.
    pub bytes_new: u64,
    pub bytes_stored: u64,
    pub seconds: f64,
    /// What is not in the point, each with its reason.
    pub skipped: Vec<String>,
    /// What should be known about what is in it: files that changed while they were read, and the like.
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamRequest {
    pub dataset: String,
    pub epoch: u64,
    /// A directory of this host's where the stream remembers how far it came.
    pub state: PathBuf,
    /// How often changes are looked for and shipped.
    pub flush: Duration,
    /// How often a vault is told that nothing happened, so that idleness and silence differ.
    pub mark: Duration,
    /// How rarely at most, of what has long been idle: what is durable then looks older by so much.
    pub mark_idle_max: Duration,
    /// What commits are to wait for. Absent: what was set for that before is taken back, and nothing else is touched.
    pub awaited: Option<Awaited>,
}

impl StreamRequest {
    pub fn new(dataset: impl Into<String>, epoch: u64, state: impl Into<PathBuf>) -> StreamRequest {
        let (flush, mark) = (Duration::from_millis(100), Duration::from_secs(1));
        StreamRequest {
            dataset: dataset.into(),
            epoch,
            state: state.into(),
            flush,
            mark,
            mark_idle_max: mark,
            awaited: None,
        }
    }

    /// The pause between two marks after so long without a change: a sixtieth of that, so that an hour of idleness costs some hundred
    /// objects and not thousands.
    pub fn pause_between_marks(&self, idle: Duration) -> Duration {
        (idle / 60).min(self.mark_idle_max).max(self.mark)
    }
}

/// What became of a wish to stream.
pub enum Streaming {
    Started(Box<dyn LogStream>),
    /// Recovery points only; says why.
    PointsOnly {
        why: String,
    },
}

impl std::fmt::Debug for Streaming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Streaming::Started(_) => f.write_str("Started"),
            Streaming::PointsOnly { why } => f.debug_struct("PointsOnly").field("why", why).finish(),
        }
    }
}

/// A running stream. Dropping it stops it, too.
pub trait LogStream: Send + Sync {
    fn status(&self) -> StreamStatus;
    /// Takes a full recovery point into one vault from within the stream; the log goes on meanwhile.
    fn take_point(&self, vault: &str, cancel: &Cancel) -> Result<PointTaken, PortError>;
    /// After the writers were stopped: ships everything, and to each vault a final mark, after which nothing more is
    /// shipped. Returns when all vaults have it, or says which have not when cancelled.
    fn freeze(&self, cancel: &Cancel) -> Result<(), PortError>;
    /// Ships what is waiting, as far as the vaults take it, and ends.
    fn stop(&self);
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StreamStatus {
    /// Everything committed up to here has been read from the source.
    pub read_to: Option<Timestamp>,
    /// What is wrong with the source itself.
    pub problem: Option<String>,
    /// Whether commits wait as was asked for; absent where nothing was.
    pub commits: Option<CommitsWait>,
    pub vaults: BTreeMap<String, VaultStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VaultStatus {
    /// Everything committed up to this source time can be restored from this vault. Absent: unknown, which is not zero.
    pub durable_to: Option<Timestamp>,
    pub position: Option<String>,
    /// The last full recovery point that this stream put there.
    pub point: Option<String>,
    /// What waits to be shipped.
    pub waiting_bytes: u64,
    /// The final mark is there.
    pub frozen: bool,
    pub problem: Option<String>,
}

/// Brings data back from a vault to this host. All of it blocks: call it from `spawn_blocking`.
pub trait Restorer: Send + Sync {
    fn restore(
        &self,
        vault: &Unlocked,
        request: &RestoreRequest,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Restored, PortError>;

    /// Brings it back into a scratch directory, looks at all that can be looked at there, and says what it found. An error: it could not
    /// be done, which says nothing of the data.
    fn verify(
        &self,
        vault: &Unlocked,
        request: &VerifyRequest,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Verification, PortError>;

    /// Recovers what lies there as the source's own server would, which writes to it, and looks through it. Nothing where there is nothing
    /// to ask. An error: it could not be done, which says nothing of the data.
    fn look_through(&self, _data: &Path, _cancel: &Cancel) -> Result<Vec<Check>, PortError> {
        Ok(Vec::new())
    }

    /// Begins, or goes on, to follow the vault into `to`, which no other program may have open.
    fn follow(&self, vault: &Unlocked, request: &FollowRequest) -> Result<Box<dyn Standby>, PortError>;

    /// Whether a standby for `to` lies beside it, not promoted yet. What cannot be looked at counts as one.
    fn has_standby(&self, to: &Path) -> bool;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreRequest {
    pub dataset: String,
    pub to: PathBuf,
    pub target: Target,
    /// Over what is there, writing only what differs. Otherwise `to` must not exist, or be empty.
    pub in_place: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Restored {
    pub point: PointInfo,
    /// The position after the log was applied, as the source writes it.
    pub position: Option<String>,
    /// The state is that of the source at this moment.
    pub as_of: Timestamp,
    pub files: u64,
    pub bytes: u64,
    pub bytes_written: u64,
    pub seconds: f64,
    /// How it was verified, in a sentence; absent: it was not.
    pub verified: Option<String>,
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FollowRequest {
    pub dataset: String,
    pub to: PathBuf,
    /// Whether what lies in `to` already, unknown to the standby, may become its own (its contents are lost).
    pub adopt: bool,
}

/// The way to the writer's own server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamFrom {
    /// A service of libpq's on this host.
    pub service: String,
    /// What who streams is called there, such as its site.
    pub follower: String,
}

/// A copy that follows a vault. Its data cannot be mistaken for live data until it is promoted.
pub trait Standby: Send {
    /// Streams from there as well from now on, where it can; none: from nowhere. What streams never is behind the vault for that.
    fn stream_from(&mut self, _from: Option<&StreamFrom>) {}
    /// Applies what the vault has that this has not.
    fn apply(&mut self, cancel: &Cancel) -> Result<Applied, PortError>;
    /// Applies everything, verifies it, and leaves it in its place, ready for use. Nothing is followed afterwards.
    fn promote(&mut self, cancel: &Cancel) -> Result<Applied, PortError>;
}

/// How far a standby is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// Everything committed at the source up to then is in the copy. Absent: nothing is there yet.
    pub applied_to: Option<Timestamp>,
    pub position: Option<String>,
    pub epoch: Option<u64>,
    pub point: Option<String>,
    /// The writer said that nothing follows, and all of it is applied.
    pub is_final: bool,
    /// Another chain is followed than before: a full point was applied.
    pub restarted: bool,
    pub pieces: u64,
    pub bytes_written: u64,
    /// Where it is to stream from the writer's own server: how that goes.
    pub streams: Option<Streams>,
    /// In words, where the copy came from and why, if there was a choice: what a former primary left, or a base backup.
    pub came: Option<String>,
}

/// What the vaults hold of data sets, and how to get it back. Blocking: the engine calls it in threads of its own.
pub trait Recovery: Send + Sync {
    /// The last moment that can be recovered from the best of the volume's vaults, without private keys.
    fn reach(&self, volume: &VolumeSpec, target: &Target) -> Result<Reach, PortError>;
    /// Restores into `to`, from the volume's vaults in turn, from older points where newer ones do not verify, and nothing
    /// that is older than the floor.
    fn restore(
        &self,
        volume: &VolumeSpec,
        target: &Target,
        to: &Path,
        in_place: bool,
        floor: Floor,
        watch: &Watch,
    ) -> Result<Facts, PortError>;
    /// What one vault holds of a data set that was written under this epoch or a later one.
    fn protection(&self, vault: &str, dataset: &str, epoch: u64) -> Result<Protection, PortError>;
}

/// How old a restored state may be. What the vaults' newest state is, as far as can be seen, is always good enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Floor {
    At(Timestamp),
    /// As new as the newest of all vaults, each of which must have answered.
    Furthest,
}

/// Up to where a data set can be recovered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reach {
    /// The source's time of the last state that is durable; nothing if there is none.
    pub source_time: Option<Timestamp>,
    pub vault: Option<String>,
    pub point: Option<String>,
    /// What makes this less certain than it looks: a vault that could not be read, freshness unproven.
    pub findings: Vec<String>,
    /// Newer recovery points that are known to be corrupt, and what it costs that they are.
    pub passed_by: Vec<String>,
    /// What of that point must be thawed before it can be restored.
    pub archived: Option<lifeboat_vault::prune::Archived>,
}

/// What protects a data set in one vault.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Protection {
    /// The newest recovery point under the epoch.
    pub point: Option<String>,
    /// Everything up to this source time is durable there.
    pub durable: Option<Timestamp>,
}

/// One data set at one host, as its agent handles it. Blocking, one call at a time.
pub trait DataAgent: Send + Sync {
    fn dataset(&self) -> &str;
    /// Ships recovery points and logs under `epoch` until the orders say `Finish` (everything durable, a last point, no
    /// more) or `Stop` (at once).
    fn write(&self, epoch: u64, orders: &Orders, tell: &dyn Fn(DataStatus)) -> Result<(), PortError>;
    /// Applies what the vaults hold to the standby's volume until the orders say `Finish` (apply to the end, leave a
    /// volume that the service can open) or `Stop`. `adopt`: what lies there is all in the vaults and may be written over.
    fn follow(&self, adopt: bool, orders: &Orders, tell: &dyn Fn(DataStatus)) -> Result<(), PortError>;
    /// Whether this host has a key to follow with.
    fn can_follow(&self) -> bool;
    /// Whether there is something in the volume's place.
    fn has_volume(&self) -> bool;
    /// Whether a standby that was not promoted yet lies beside it.
    fn has_standby(&self) -> bool;
    /// Whether it has no place of its own here: points are taken of it while its site writes, and that is all.
    fn is_apart(&self) -> bool {
        false
    }
}

/// What a data set's agent says of itself while it works.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DataStatus {
    pub position: Option<String>,
    /// Per vault, up to which source time everything is durable there.
    pub durable: BTreeMap<String, Timestamp>,
    /// Up to which source time a standby has applied everything.
    pub applied: Option<Timestamp>,
    /// The epoch of what a standby has applied.
    pub applied_epoch: Option<u64>,
    /// A standby has applied all that a frozen writer shipped; its writer said that nothing follows.
    pub complete: bool,
    /// Whether commits wait for vaults, where the plan asks for it.
    pub commits: Option<CommitsWait>,
    pub streams: Option<Streams>,
    /// In words, where a standby's copy came from and why, if there was a choice.
    pub came: Option<String>,
    pub problem: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Go,
    Finish,
    Stop,
}

/// Orders that may change while they are carried out; whoever waits is woken.
#[derive(Debug, Clone)]
pub struct Orders(Arc<OrdersInner>);

#[derive(Debug)]
struct OrdersInner {
    order: Mutex<Order>,
    /// Which site writes, for who follows it.
    writer: Mutex<Option<String>>,
    changed: Condvar,
    stop: Cancel,
}

impl Default for Orders {
    fn default() -> Orders {
        let (order, changed, stop) = (Mutex::new(Order::Go), Condvar::new(), Cancel::default());
        Orders(Arc::new(OrdersInner { order, writer: Mutex::default(), changed, stop }))
    }
}

impl Orders {
    pub fn give(&self, order: Order) {
        *self.0.order.lock().unwrap_or_else(PoisonError::into_inner) = order;
        if order == Order::Stop {
            self.0.stop.cancel();
        }
        self.0.changed.notify_all();
    }

    pub fn now(&self) -> Order {
        *self.0.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says which site writes now.
    pub fn set_writer(&self, site: &str) {
        let mut writer = self.0.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if writer.as_deref() != Some(site) {
            *writer = Some(site.to_owned());
        }
    }

    /// Which site writes; none: unknown.
    pub fn writer(&self) -> Option<String> {
        self.0.writer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A cancel that is set as soon as the order is `Stop`.
    pub fn stopper(&self) -> Cancel {
        self.0.stop.clone()
    }

    /// Waits until the order is `Stop`, at most for `time`.
    pub fn wait_for_stop(&self, time: Duration) {
        let order = self.0.order.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.0.changed.wait_timeout_while(order, time, |order| *order != Order::Stop));
    }

    /// Waits until the order is no longer `Go`, at most for `time`; answers the order then.
    pub fn wait(&self, time: Duration) -> Order {
        let order = self.0.order.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.changed.wait_timeout_while(order, time, |order| *order == Order::Go);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_become_rarer_the_longer_nothing_changes_and_never_rarer_than_was_asked() {
        let mut request = StreamRequest::new("d", 1, "state");
        let pauses = |request: &StreamRequest| {
            [1, 60, 600, 3600, 86_400].map(|idle| request.pause_between_marks(Duration::from_secs(idle)).as_secs())
        };
        assert_eq!(pauses(&request), [1, 1, 1, 1, 1]);
        request.mark_idle_max = Duration::from_secs(60);
        assert_eq!(pauses(&request), [1, 1, 10, 60, 60]);
        request.mark_idle_max = Duration::from_millis(1250);
        assert_eq!(pauses(&request), [1, 1, 1, 1, 1]);
        request.mark_idle_max = Duration::ZERO;
        assert_eq!(pauses(&request), [1, 1, 1, 1, 1]);
    }
}
