//! The ports: what the engine asks of the outside world. Adapters implement them.
//!
//! Invariant: every verb is idempotent under the same `Context::idempotency_key`, and says what it found, not what it hoped.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_core::plan::{Health, HttpExchange};
use lifeboat_core::run::Facts;
use lifeboat_core::runbook::{InstanceSpec, VolumeSpec};

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
