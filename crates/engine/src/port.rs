//! The ports: what the engine asks of the outside world. Adapters implement them.
//!
//! Invariant: every verb is idempotent under the same `Context::idempotency_key`, and says what it found, not what it hoped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_core::plan::{Health, HttpExchange};
use lifeboat_core::run::Facts;
use lifeboat_core::runbook::{InstanceSpec, Target, VolumeSpec};

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
    /// Starts, or finds started, the host's own `lifeboat protect`.
    EnsureAgent,
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

/// What the vaults hold of data sets, and how to get it back. Blocking: the engine calls it in threads of its own.
pub trait Recovery: Send + Sync {
    /// The last moment that can be recovered from the best of the volume's vaults, without private keys.
    fn reach(&self, volume: &VolumeSpec, target: &Target) -> Result<Reach, PortError>;
    /// Restores into `to`, from the volume's vaults in turn, from older points where newer ones do not verify.
    fn restore(
        &self,
        volume: &VolumeSpec,
        target: &Target,
        to: &Path,
        in_place: bool,
        cancel: &Cancel,
    ) -> Result<Facts, PortError>;
    /// What one vault holds of a data set that was written under this epoch or a later one.
    fn protection(&self, vault: &str, dataset: &str, epoch: u64) -> Result<Protection, PortError>;
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
pub struct Orders(Arc<(Mutex<Order>, Condvar)>);

impl Default for Orders {
    fn default() -> Orders {
        Orders(Arc::new((Mutex::new(Order::Go), Condvar::new())))
    }
}

impl Orders {
    pub fn give(&self, order: Order) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = order;
        self.0.1.notify_all();
    }

    pub fn now(&self) -> Order {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the order is no longer `Go`, at most for `time`; answers the order then.
    pub fn wait(&self, time: Duration) -> Order {
        let order = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.1.wait_timeout_while(order, time, |order| *order == Order::Go);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}
