//! Every action that a step can name, as data.
//!
//! Invariant: an action holds all that its performer needs besides the world itself; a performer reads no plan.
//! Secrets stay references (`plan::Secret`) and are resolved only where they are used.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::plan::{DataKind, Health, HttpExchange, Name, Rerun, Source, StopSignal, Value};
use crate::units::Span;

/// How one instance of a component is started, looked at and stopped. Templates are already filled in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceSpec {
    pub service: Name,
    pub component: Name,
    /// 1, 2, …
    pub number: u32,
    pub command: Vec<String>,
    pub env: BTreeMap<String, Value>,
    pub directory: Option<String>,
    pub address: Option<String>,
    pub port: Option<u16>,
    pub stop_within: Span,
    #[serde(default, skip_serializing_if = "StopSignal::is_usual")]
    pub stop_signal: StopSignal,
    pub health: Option<Health>,
}

impl InstanceSpec {
    /// `service.component.number`, unique at a site.
    pub fn id(&self) -> String {
        format!("{}.{}.{}", self.service, self.component, self.number)
    }
}

/// A data set as it lies at a site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    pub service: Name,
    pub dataset: Name,
    pub kind: DataKind,
    pub source: Source,
    /// Vaults that hold it, nearest to the recovery site first.
    pub vaults: Vec<Name>,
}

/// To which moment data is taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    Newest,
    /// RFC 3339: the last state at or before it.
    At(String),
    Point(String),
    /// A place in the source's own log, as the source writes it: everything up to and including the record that reaches it.
    Position(String),
    /// A restore point that somebody has put into the source's log, by its name.
    Named(String),
}

/// The lease of the epoch that is superseded, and for how long it is waited for since its last renewal was first seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseFence {
    pub epoch: u64,
    /// As the plan says; the holder's own counts where that is longer.
    pub ttl: Span,
    pub skew: Span,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Action {
    /// Holds until a person who may approve, and did not start the run, approves.
    Approve { reason: String },
    /// Creates `epochs/DOMAIN/N` for `primary`. Outcome `claimed`. Refused if another run has it.
    /// `planned`: the writer is stopped by this very run, so it may renew its lease until it is.
    ClaimEpoch {
        write_domain: Name,
        epoch: u64,
        primary: Name,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        planned: bool,
    },
    /// Proves that `site` does not write in the domain any more. Outcome `proven`; `run-out` where the lease proves it; without
    /// a proof the run holds for an attestation (`attested`).
    /// `planned`: everything has been stopped before, so a writer that still had to be killed is for a person to judge.
    /// `lease`: what proves it where the site cannot: that lease has run out, and the watchdog beside the writer has stopped it.
    Fence {
        site: Name,
        write_domain: Name,
        instances: Vec<InstanceSpec>,
        volumes: Vec<VolumeSpec>,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        planned: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lease: Option<LeaseFence>,
    },
    /// Lets a fenced site start instances again (undo of `Fence`, and the way home). Outcome `lifted`.
    LiftFence { site: Name, write_domain: Name },
    /// Stops instances gracefully, and with `write_domain` whatever else the site knows to run for it. Outcome `stopped`.
    StopInstances {
        site: Name,
        instances: Vec<InstanceSpec>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        write_domain: Option<Name>,
    },
    /// Stops instances where they ran, if anybody can be asked there. Outcomes `stopped`, `out-of-reach` (its facts say why).
    Quiet { site: Name, instances: Vec<InstanceSpec>, write_domain: Name },
    /// Takes a snapshot of a volume that nobody writes, beside it, under this name and the run's, before anything is started on it. Outcomes `kept` (its facts say
    /// where), `not-kept` (and why), `nothing-there`.
    KeepVolume { site: Name, volume: VolumeSpec, name: String },
    /// Looks through a volume with its data set's own means, recovering it as its server would. Outcomes `sound`, `unsound` (its facts name
    /// each check).
    LookThroughVolume { site: Name, volume: VolumeSpec },
    /// Starts instances where they ran, group by group, each healthy before the next. Outcomes `recovered`, `not-recovered` (its facts say
    /// why; all of them are stopped again).
    Restart { site: Name, write_domain: Name, groups: Vec<Vec<InstanceSpec>>, within: Span },
    /// Starts instances. Outcome `started`.
    StartInstances { site: Name, instances: Vec<InstanceSpec> },
    /// Waits until each instance is healthy. Outcome `healthy`.
    AwaitHealthy { site: Name, instances: Vec<InstanceSpec> },
    /// Asks the writer's host for a last recovery point and log, after which it ships nothing more. Outcome `frozen`.
    Freeze { write_domain: Name, site: Name, datasets: Vec<Name> },
    /// Lets the writer go on (undo of `Freeze`). Outcome `writing`.
    Unfreeze { write_domain: Name, site: Name },
    /// Sees to it that the host's own `lifeboat protect` runs at the site. Outcome `running`.
    EnsureAgent { site: Name },
    /// Names `site` as the writer to be, but still frozen: its host lets go of the volume and follows no more. Outcome `reserved`.
    Reserve { write_domain: Name, site: Name, datasets: Vec<Name>, epoch: u64 },
    /// Compares the last source time durable in the vaults with the moment of the disaster. Outcomes `within`, `beyond`
    /// (more than `approved` would be lost, or nobody can tell).
    AssessLoss { write_domain: Name, volumes: Vec<VolumeSpec>, target: Target, approved: Span },
    /// Looks whether the standby at the site can be promoted. Outcomes `usable`, `unusable`.
    InspectStandby {
        site: Name,
        write_domain: Name,
        datasets: Vec<Name>,
        /// What it must have applied all of that any vault holds; empty where a later step waits for that.
        #[serde(default)]
        volumes: Vec<VolumeSpec>,
    },
    /// Waits until the standby at `site` has applied all that the frozen writer shipped. Outcome `caught-up`.
    CatchUp { site: Name, write_domain: Name, datasets: Vec<Name> },
    /// Moves what lies in the volume's place aside, so that nothing there is overwritten. Outcomes `moved`, `nothing-there`.
    SetAside { site: Name, volume: VolumeSpec },
    /// Puts back what `SetAside` moved under this run's epoch (its undo); what lies there now is moved aside in its turn. Outcomes `put-back`, `nothing-there`.
    PutBack { site: Name, volume: VolumeSpec },
    /// Restores from the vaults in turn; a state that does not verify gives way to the one before, and the journal says so.
    /// How far it may give way is `approved`, back from the disaster (or from the target's moment); without it (planned),
    /// not at all. `in_place` writes only what differs. Outcome `restored`.
    Restore {
        site: Name,
        volume: VolumeSpec,
        target: Target,
        in_place: bool,
        #[serde(default)]
        approved: Option<Span>,
    },
    /// Publishes `site` as the writer under the run's epoch and waits until its host has taken over. Outcome `promoted`.
    Promote { site: Name, write_domain: Name, datasets: Vec<Name>, epoch: u64 },
    /// Waits until the site's host is seen to renew its lease under this epoch: before that nothing may write there. Outcome `held`.
    AwaitLease { site: Name, write_domain: Name, epoch: u64 },
    /// Runs a data set's rebuild command, or any other user's command. Outcome `ran`.
    RunCommand { site: Name, command: Vec<String>, rerun: Rerun },
    /// Asks the name's authority for the generation that it answers with now: whoever is to send traffic later must be there. Outcome `answers`.
    AskAuthority { name: String, authority: String },
    /// Publishes a traffic generation and waits until the name's authority answers with it. `arbiter` is a drill's own
    /// throw-away storage (a URL); without it, the plan's. Outcome `answering`.
    SetTraffic {
        name: String,
        authority: String,
        ttl: Span,
        answers: Vec<crate::desired::TrafficAnswer>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        arbiter: Option<String>,
    },
    /// Asks the service for its health through its own name. Outcome `healthy`.
    AwaitService { name: String, authority: Option<String>, port: Option<u16>, health: Health },
    /// Reads a canary value that was written before. Outcome `read`; its facts name the value and its age.
    ReadCanary { name: String, authority: Option<String>, port: Option<u16>, read: HttpExchange },
    /// Waits until the new writer has a durable recovery point and log outside its own site under the run's epoch, and
    /// RPO now is within the objective. Outcome `protected`.
    AwaitProtection { write_domain: Name, site: Name, datasets: Vec<Name>, vaults: Vec<Name>, rpo: Span, epoch: u64 },
    /// Waits until the site follows again. Outcome `following`.
    AwaitStandby { site: Name, write_domain: Name, datasets: Vec<Name>, epoch: u64 },
    /// States that something the plan asks for cannot be had now. Always fails with these words; the step's `on_failure` is `note`.
    Lack { what: String },
    /// Drill: makes an isolated copy of the site's surroundings: cloned or restored volumes, own addresses, private DNS. Outcome `isolated`.
    Isolate { site: Name, isolation: Name },
    /// Drill: removes it. Outcome `removed`.
    RemoveIsolation { site: Name, isolation: Name },
    /// Drill: looks that nothing of it is left: process, file, listener. Outcome `clean`.
    VerifyClean { site: Name, isolation: Name },
}
