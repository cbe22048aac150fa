//! Desired state that hosts and name servers reconcile themselves to: who may write, and where traffic goes.
//!
//! Controllers publish these as signed, numbered generations in the arbiter's storage; hosts (`lifeboat protect`) and
//! the DNS authority poll them. Invariant: a reader never goes from a higher epoch or generation to a lower one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Who writes in a write domain. Published as `desired/DOMAIN/GENERATION`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredWriter {
    pub write_domain: String,
    pub generation: u64,
    pub epoch: u64,
    /// The site whose host writes; every other site follows.
    pub primary: String,
    /// Writers have been stopped: take a last recovery point and log, and then nothing more.
    pub frozen: bool,
    /// RFC 3339, for people; nothing is decided by it.
    pub at: String,
}

/// Where a name points. Published as `traffic/NAME/GENERATION`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficGeneration {
    /// Fully qualified, lower case, with its final dot.
    pub name: String,
    pub generation: u64,
    pub epoch: u64,
    pub ttl_seconds: u32,
    pub answers: Vec<TrafficAnswer>,
    /// RFC 3339, for people; nothing is decided by it.
    pub at: String,
}

/// One possible answer. Weight 0 is never given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficAnswer {
    pub site: String,
    /// An IPv4 or IPv6 address.
    pub address: String,
    pub weight: u32,
    /// A URL whose 2xx answer means healthy; without one the answer is always given.
    pub health: Option<String>,
}

/// What a host says of one data set it protects or follows. Published (overwritten) as `agents/SITE/DATASET`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentReport {
    pub site: String,
    pub dataset: String,
    pub role: AgentRole,
    /// The epoch this host acts under.
    pub epoch: u64,
    /// The generation of `DesiredWriter` that is in force here.
    pub generation: u64,
    /// Per vault: up to which source time everything is durable there (RFC 3339), at a writer; unknown is absent.
    pub durable: BTreeMap<String, String>,
    /// The last position shipped (writer) or applied (standby), as the source writes it.
    pub position: Option<String>,
    /// Up to which source time a standby has applied everything (RFC 3339).
    pub applied: Option<String>,
    /// Whether everything that `DesiredWriter.frozen` or a promotion asked of this host is done.
    pub settled: bool,
    /// The epoch under which this host wrote last, once all of that is in the vaults with its final mark. Absent: it does
    /// not know of such an end, whatever it has let go of.
    #[serde(default)]
    pub finished: Option<u64>,
    /// Whether commits wait for vaults, at a writer whose plan asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commits: Option<CommitsWait>,
    /// How a standby streams from the writer's own server, where the plan says by which way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams: Option<Streams>,
    /// In words, where a standby's copy came from and why, if there was a choice: what a former primary left, or a base backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub came: Option<String>,
    /// What is wrong, in a sentence, or nothing.
    pub problem: Option<String>,
    /// RFC 3339, by the host's clock.
    pub at: String,
    /// Counts up with every report of this process, so that a reader sees it live on its own clock.
    pub beat: u64,
}

/// How a standby streams from the writer's own server, besides following vaults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streams {
    /// What of the server's log is not applied here, in bytes, as asked of the server last; absent: unknown.
    pub behind_bytes: Option<u64>,
    /// Why it does not stream now: meanwhile it follows vaults alone.
    pub problem: Option<String>,
}

/// Whether commits wait until vaults have them, as the source itself shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitsWait {
    /// False: what is acknowledged now may be lost.
    pub wait: bool,
    /// Since when that is so, by the host's clock (RFC 3339).
    pub since: String,
    /// For what they wait, or why they do not.
    pub what: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentRole {
    Writer,
    Standby,
    /// Knows nothing to do: no volume, or no key to follow with.
    Idle,
}
