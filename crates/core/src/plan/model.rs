//! What a plan says, once it has been read: names, objectives, sites, vaults, services and their data.
//!
//! Invariant: no secret's value ever stands here, only the place from which it can be had (`Secret`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::units::{Rate, Size, Span};

pub type Name = String;

/// The whole plan, after includes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub name: Name,
    /// Who accepted the residual risk, in the plan's own words.
    pub accepted_by: Option<String>,
    pub persons: BTreeMap<Name, Person>,
    pub arbiter: Option<Arbiter>,
    pub scenarios: BTreeMap<Name, Scenario>,
    pub sites: BTreeMap<Name, Site>,
    pub vaults: BTreeMap<Name, Vault>,
    pub keys: Keys,
    pub services: BTreeMap<Name, Service>,
    pub watch: Option<Watch>,
    pub drills: BTreeMap<Name, Drill>,
    pub prerequisites: BTreeMap<Name, Prerequisite>,
}

impl Plan {
    /// Who can bring a data set back by itself, to verify it: where its key lies, and in which file. Keys that are made for it come first.
    pub fn verifiers<'a>(&'a self, dataset: &'a DataSet) -> impl Iterator<Item = (&'a Name, &'a str)> {
        let of = move |purpose: KeyPurpose| {
            let opens = move |holder: &&KeyHolder| holder.purpose == purpose && holder.datasets.contains(&dataset.name);
            self.keys.holders.iter().filter(opens)
        };
        let holders = [KeyPurpose::Verify, KeyPurpose::Drill, KeyPurpose::Standby].into_iter().flat_map(of);
        holders.filter_map(|holder| match &holder.identity {
            Some(Secret::File(path)) => Some((&holder.held_at, path.as_str())),
            _ => None,
        })
    }
}

/// Scenarios that every plan has, whether it describes them or not.
pub const BUILT_IN_SCENARIOS: [(&str, &str); 7] = [
    ("instance-lost", "one instance or its host is gone"),
    ("zone-lost", "everything in the primary site's zone is gone"),
    ("site-lost", "the primary site is gone, with its volumes"),
    ("region-lost", "everything in the primary site's region is gone"),
    ("provider-lost", "everything at the primary site's organization is gone"),
    ("data-corrupted", "the data is wrong: replicas must not be trusted, an earlier moment must be restored"),
    ("data-destroyed", "the data was deleted, by accident or in malice: replicas must not be trusted"),
];

/// A value that must not stand in the plan: where to get it at the moment of use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Secret {
    Env(String),
    File(String),
    Command(Vec<String>),
}

/// Text that may hold `{{ … }}` templates, or a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    Text(String),
    Secret(Secret),
}

/// An amount of money; `currency` is a three-letter code.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Money {
    pub amount: f64,
    pub currency: String,
}

/// How often something is due: every so long, or by a five-field cron line (UTC).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    Every(Span),
    Cron(String),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Person {
    pub notify: Vec<String>,
    pub approves: bool,
    /// The Ed25519 public key (64 hex digits) with which this person signs attestations and approvals.
    pub key: Option<String>,
}

/// Where epochs, locks, desired state and the journal's mirror lie: outside every site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arbiter {
    pub url: String,
    pub organization: Option<Name>,
    pub site: Option<Name>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scenario {
    pub describe: String,
    pub per_year: Option<f64>,
}

/// How lifeboat acts at a site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// Processes and directories on this machine. `root` holds the site's volumes and its supervisor's state,
    /// `address` is the site's own loopback address.
    Local {
        root: String,
        address: String,
    },
    /// Every verb is a user's command that reads one JSON object on stdin and answers with one on stdout.
    Command {
        command: Vec<String>,
        rerun: Rerun,
    },
    Ssh,
    Aws,
}

/// Whether a user's command may simply be run again when it is not known whether it ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rerun {
    Safe,
    Ask,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Site {
    pub reach: Reach,
    pub zone: Option<Name>,
    pub region: Option<Name>,
    pub organization: Option<Name>,
    pub jurisdiction: Option<Name>,
    /// What the site can fetch from a vault.
    #[serde(default)]
    pub bandwidth: Option<Rate>,
    /// Host name to address.
    pub hosts: BTreeMap<Name, String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Vault {
    pub url: String,
    pub site: Option<Name>,
    pub organization: Option<Name>,
    /// Per gigabyte and month.
    pub storage_cost: Option<Money>,
    /// Where what only old points need is put.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<Archive>,
    /// How long what points need is locked by the storage, at least half of it at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<Span>,
}

/// A class of storage that is cheaper, and has to be thawed before it can be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archive {
    /// The storage's own word for it.
    pub class: String,
    /// Until what lies there can be read; zero: at once.
    pub thaw: Span,
    /// Has objects made readable: reads their names on stdin, one a line.
    pub command: Option<Vec<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    /// age recipients (`age1…`), any one of which opens everything.
    pub recipients: Vec<String>,
    /// The owner's fingerprint, as `vault init` printed it.
    pub owner: Option<String>,
    pub holders: Vec<KeyHolder>,
}

/// A private key that is deliberately held within a site, and how far it reaches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyHolder {
    pub purpose: KeyPurpose,
    pub recipient: String,
    pub held_at: Name,
    /// Data sets that this key opens.
    pub datasets: Vec<Name>,
    /// Where the identity file lies on that site's host.
    pub identity: Option<Secret>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyPurpose {
    /// Lets a standby apply what the vault holds.
    Standby,
    Drill,
    Verify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    BackupRestore,
    PilotLight,
    WarmStandby,
    MultiSite,
}

/// Which objective is kept when both cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    Rpo,
    Rto,
}

/// How much may be lost, and for how long the service may be away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Objective {
    pub rpo: Span,
    pub rto: Span,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Service {
    pub name: Name,
    pub strategy: Strategy,
    pub primary: Name,
    pub recovery: Vec<Name>,
    pub objective: Objective,
    pub priority: Priority,
    /// Per hour.
    pub downtime_cost: Option<Money>,
    /// Per hour of lost data.
    pub data_loss_cost: Option<Money>,
    /// Whether a run waits for the approval of a person who may approve and did not start it.
    pub approval: bool,
    /// How long its writer may go on without a renewed lease; none: it holds no lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Span>,
    /// Objectives that differ in one scenario.
    pub objectives: BTreeMap<Name, Objective>,
    /// In start order: a component comes after all that its `after` names.
    pub components: Vec<Component>,
    pub traffic: Option<Traffic>,
    pub canary: Option<Canary>,
}

impl Service {
    /// The write domain of this service: at most one site writes in it at a time.
    pub fn write_domain(&self) -> &str {
        &self.name
    }

    pub fn objective_in(&self, scenario: &str) -> Objective {
        self.objectives.get(scenario).copied().unwrap_or(self.objective)
    }

    /// Every data set, with the component that it belongs to.
    pub fn datasets(&self) -> impl Iterator<Item = (&Component, &DataSet)> {
        self.components.iter().flat_map(|component| component.datasets.iter().map(move |dataset| (component, dataset)))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Database,
    Application,
    LoadBalancer,
    Worker,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Component {
    pub name: Name,
    pub role: Role,
    pub after: Vec<Name>,
    /// Site to the hosts there that run it; empty means: the site itself (as at a local site).
    pub runs_on: BTreeMap<Name, Vec<Name>>,
    pub launch: Option<Launch>,
    /// The TCP port on which an instance listens at its site's or host's address.
    pub port: Option<u16>,
    pub instances: Instances,
    pub health: Option<Health>,
    pub haproxy: Option<HaProxy>,
    pub datasets: Vec<DataSet>,
}

/// How an instance is started. Text values may hold `{{ component.NAME.url }}`, `{{ component.NAME.address }}`,
/// `{{ dataset.NAME.path }}`, `{{ site.name }}`, `{{ site.address }}`, `{{ instance.address }}`, `{{ instance.port }}`, `{{ instance.number }}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    pub command: Vec<String>,
    pub env: BTreeMap<String, Value>,
    pub directory: Option<String>,
    /// How long a graceful stop may take before it is an error.
    pub stop_within: Span,
    /// What asks for a graceful stop.
    #[serde(default, skip_serializing_if = "StopSignal::is_usual")]
    pub stop_signal: StopSignal,
}

/// The signal that asks a process to stop gracefully.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StopSignal {
    #[default]
    Term,
    Int,
    Quit,
}

impl StopSignal {
    pub fn is_usual(&self) -> bool {
        *self == StopSignal::default()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instances {
    pub live: u32,
    pub standby: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    pub probe: Probe,
    /// How long a fresh instance may take until it is healthy.
    pub within: Span,
    pub every: Span,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probe {
    /// A path at the instance (`/healthz`), or a whole URL; healthy is any 2xx answer.
    Http(String),
    Tcp,
    Command(Vec<String>),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HaProxy {
    pub socket: String,
    pub backend: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataKind {
    Fixed,
    Transient,
    Configuration,
    Persistent,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataSet {
    /// Unique within the plan.
    pub name: Name,
    pub kind: DataKind,
    pub source: Source,
    /// About how much there is, for estimates.
    #[serde(default)]
    pub size: Option<Size>,
    pub residency: Option<Name>,
    pub protect: Vec<Protect>,
    /// In how many of the vaults that commits wait for a commit must be; absent: in all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sync_copies: Option<u32>,
    pub replica: Option<Replica>,
    pub verify: Option<Verify>,
    /// Commands that make derived data anew after a restore.
    pub rebuild: Option<Vec<String>>,
}

impl DataSet {
    /// Whether a recovery brings it back from a vault.
    pub fn is_recovered(&self) -> bool {
        !self.protect.is_empty() && !self.source.is_dump()
    }
}

/// Where the data lies. A relative path lies in the site's own volumes (`reach = "local"` needs that).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    Files {
        path: String,
        exclude: Vec<String>,
    },
    Sqlite {
        path: String,
    },
    Postgres {
        /// The data directory.
        path: String,
        /// How its server is reached, where not by the socket that the data directory names.
        #[serde(default)]
        service: Option<String>,
    },
    /// What the programs of a PostgreSQL server write, for any version and any provider: the same data in another form.
    PostgresDump {
        /// The data directory of a server that runs here, or ...
        #[serde(default)]
        path: Option<String>,
        /// ... how a server is reached, wherever it is.
        #[serde(default)]
        service: Option<String>,
        /// Empty: all that allow connections.
        #[serde(default)]
        databases: Vec<String>,
        /// How long a lock is waited for that somebody else holds.
        lock_wait: Span,
    },
    Mariadb {
        service: String,
    },
    Command {
        backup: Vec<String>,
        restore: Vec<String>,
    },
    /// Nothing to protect: it is rebuilt.
    Nothing,
}

impl DataSet {
    /// What commits wait for while `writer` writes.
    pub fn awaited(&self, writer: &str) -> Option<Awaited> {
        let waiting: Vec<&Protect> = self.protect.iter().filter(|protect| !protect.mode.is_async()).collect();
        let vaults: Vec<Name> = waiting.iter().map(|protect| protect.to.clone()).collect();
        let is_streamed = matches!(self.source, Source::Postgres { .. });
        let is_awaited = |replica: &&Replica| is_streamed && !replica.mode.is_async() && !replica.via.is_empty();
        let replica = self.replica.as_ref().filter(is_awaited);
        let (mut sites, mut mode) = (Vec::new(), waiting.first().map(|protect| protect.mode));
        match replica {
            Some(replica) if replica.at != writer => {
                sites.push(replica.at.clone());
                mode = mode.or(Some(replica.mode));
            }
            // The replica itself writes, its writer being lost or at rest: whoever follows it is waited for while there is one.
            Some(replica) if vaults.is_empty() => {
                sites.extend(replica.via.keys().filter(|site| *site != writer).cloned());
                mode = Some(CommitMode::SyncPreferred);
            }
            _ => {}
        }
        let all = u32::try_from(vaults.len() + sites.len()).unwrap_or(u32::MAX);
        let turned = replica.is_some_and(|replica| replica.at == writer) && vaults.is_empty();
        let copies = if turned { 1 } else { self.sync_copies.unwrap_or(all).clamp(1, all.max(1)) };
        (all > 0).then_some(Awaited { vaults, sites, copies, mode: mode? })
    }
}

/// What a commit waits for: that so many of these have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Awaited {
    pub vaults: Vec<Name>,
    /// Whose standbys stream.
    pub sites: Vec<Name>,
    pub copies: u32,
    pub mode: CommitMode,
}

impl Awaited {
    /// Whether no commit is possible without one of these standbys.
    pub fn needs_a_site(&self) -> bool {
        self.mode == CommitMode::SyncRequired && self.copies as usize > self.vaults.len()
    }
}

impl Source {
    /// The file or directory that the data lies in.
    pub fn path(&self) -> Option<&str> {
        match self {
            Source::Files { path, .. } | Source::Sqlite { path } | Source::Postgres { path, .. } => Some(path),
            // A dump comes back as files, to wherever somebody wants them.
            Source::PostgresDump { .. } => None,
            Source::Mariadb { .. } | Source::Command { .. } | Source::Nothing => None,
        }
    }

    /// Whether it is data in a second form: it has no place of its own at a site, and no recovery puts it into one.
    pub fn is_dump(&self) -> bool {
        matches!(self, Source::PostgresDump { .. })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protect {
    /// The vault's name.
    pub to: Name,
    /// When a full recovery point is due.
    pub every: Schedule,
    pub keep: Keep,
    /// Whether changes are shipped as they happen, between the points.
    pub log: bool,
    /// Whether commits wait for this vault.
    #[serde(default, skip_serializing_if = "CommitMode::is_async")]
    pub mode: CommitMode,
}

/// How many recovery points are kept, by age; all zero means: all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    pub last: u32,
    pub hourly: u32,
    pub daily: u32,
    pub weekly: u32,
    pub monthly: u32,
    pub yearly: u32,
    /// How far back any moment can be restored; absent: to the oldest point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<Span>,
    /// How old a point is before it may have to be thawed; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive_after: Option<Span>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    pub at: Name,
    pub mode: CommitMode,
    /// Site to the service of libpq's by which its server is reached from the others: from whichever writes, the others stream.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub via: BTreeMap<Name, String>,
}

/// Whether a commit waits until another place has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CommitMode {
    #[default]
    Async,
    /// No commit without it.
    SyncRequired,
    /// While it is there.
    SyncPreferred,
}

impl CommitMode {
    pub fn is_async(&self) -> bool {
        *self == CommitMode::Async
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verify {
    pub every: Schedule,
    pub queries: Vec<String>,
    /// In which of a server's databases the queries are asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// The service's name in DNS, fully qualified, with its final dot.
    pub name: String,
    pub dns: Dns,
    /// Site to weight on a normal day.
    pub everyday: BTreeMap<Name, u32>,
    pub ttl: Span,
}

impl Traffic {
    /// `ADDRESS:PORT` of the server that has the last word on the name.
    pub fn authority(&self) -> &str {
        match &self.dns {
            Dns::Authority(address) => address,
            Dns::Rfc2136 { server, .. } => server,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dns {
    /// lifeboat's own authority, which listens at this address and port.
    Authority(String),
    Rfc2136 {
        server: String,
        key: Secret,
    },
}

/// Written before, read after: the proof that the service serves its old data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    pub write: HttpExchange,
    pub read: HttpExchange,
    pub every: Span,
}

/// `request` is `METHOD /path`; `{{ canary.value }}` stands for the numbered value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpExchange {
    pub request: String,
    pub body: Option<String>,
    pub expect: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    pub observers: Vec<Name>,
    pub agree: u32,
    pub on_verdict: OnVerdict,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnVerdict {
    Ask,
    Act { delay: Span, blocked: Vec<String> },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drill {
    pub service: Name,
    pub scenario: Name,
    pub every: Schedule,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prerequisite {
    pub describe: String,
    pub check: Option<Vec<String>>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn dataset(vaults: &[(&str, CommitMode)], replica: CommitMode, copies: Option<u32>) -> DataSet {
        let protect = |(to, mode): &(&str, CommitMode)| Protect {
            to: (*to).to_owned(),
            every: Schedule::Every(Span::seconds(60)),
            keep: Keep::default(),
            log: true,
            mode: *mode,
        };
        let via = ["north", "south"].map(|site| (site.to_owned(), format!("shop-{site}"))).into();
        DataSet {
            name: "ledger".to_owned(),
            kind: DataKind::Persistent,
            source: Source::Postgres { path: "ledger".to_owned(), service: None },
            size: None,
            residency: None,
            protect: vaults.iter().map(protect).collect(),
            sync_copies: copies,
            replica: Some(Replica { at: "south".to_owned(), mode: replica, via }),
            verify: None,
            rebuild: None,
        }
    }

    fn awaited(dataset: &DataSet, writer: &str) -> Option<(String, String, u32, CommitMode)> {
        let awaited = dataset.awaited(writer)?;
        Some((awaited.vaults.join(" "), awaited.sites.join(" "), awaited.copies, awaited.mode))
    }

    #[test]
    fn commits_wait_for_the_replica_while_another_site_writes() {
        use CommitMode::{Async, SyncPreferred, SyncRequired};
        let told = |vaults: &str, sites: &str, copies, mode| Some((vaults.to_owned(), sites.to_owned(), copies, mode));
        let alone = dataset(&[("main", Async)], SyncRequired, None);
        assert_eq!(awaited(&alone, "north"), told("", "south", 1, SyncRequired));
        assert!(alone.awaited("north").unwrap().needs_a_site());
        // After a failover whoever follows is waited for, and not required: the former writer may be gone for good.
        assert_eq!(awaited(&alone, "south"), told("", "north", 1, SyncPreferred));
        let both = dataset(&[("main", SyncRequired), ("far", Async)], SyncRequired, None);
        assert_eq!(awaited(&both, "north"), told("main", "south", 2, SyncRequired));
        assert_eq!(awaited(&both, "south"), told("main", "", 1, SyncRequired));
        let either = dataset(&[("main", SyncRequired)], SyncRequired, Some(1));
        assert_eq!(awaited(&either, "north"), told("main", "south", 1, SyncRequired));
        assert!(!either.awaited("north").unwrap().needs_a_site());
        assert_eq!(awaited(&dataset(&[("main", Async)], Async, None), "north"), None);
        let of_sqlite = DataSet { source: Source::Sqlite { path: "a/b.db".to_owned() }, ..alone };
        assert_eq!(awaited(&of_sqlite, "north"), None);
    }
}
