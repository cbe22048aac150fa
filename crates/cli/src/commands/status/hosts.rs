//! Which hosts report, which of them live, and how far standbys are behind.
//!
//! Invariant: a host lives when its report moved while this process watched, or is younger than a host ever waits; a
//! report from the future proves nothing until it moves.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_core::desired::{AgentReport, AgentRole, CommitsWait, Streams};
use lifeboat_core::plan::{KeyPurpose, Name, Service, Strategy};
use serde::Serialize;

use super::data::age_seconds;
use super::standing::{Looker, Writer};

/// Hosts report every second; one that has not for so long is silent.
const SILENT_AFTER_SECONDS: f64 = 10.0;
/// How long the first look waits for a report that looks stale to move: the host's clock may be off.
const FIRST_LOOK: Duration = Duration::from_secs(3);

#[derive(Debug, Serialize)]
pub(crate) struct HostStatus {
    pub(crate) site: Name,
    pub(crate) dataset: Name,
    /// What this host should be.
    pub(crate) duty: &'static str,
    pub(crate) does_its_duty: bool,
    /// What it says it is; absent: it has never reported.
    pub(crate) role: Option<AgentRole>,
    pub(crate) epoch: Option<u64>,
    pub(crate) is_alive: bool,
    pub(crate) reported_seconds_ago: Option<f64>,
    /// How far a standby is behind now.
    pub(crate) lag_seconds: Option<f64>,
    /// Whether the plan wants commits to wait for vaults.
    pub(crate) commits_asked_for: bool,
    /// Whether they do, as the host says; absent: unknown.
    pub(crate) commits: Option<CommitsWait>,
    /// How a standby streams from the writer's own server, where the plan says by which way.
    pub(crate) streams: Option<Streams>,
    /// In words, where a standby's copy came from and why, if there was a choice.
    pub(crate) came: Option<String>,
    pub(crate) problem: Option<String>,
}

/// A host's report as it was last seen to move.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    beat: (u64, String),
    moved_at_seconds: Option<f64>,
}

/// What a host should be to a data set.
#[derive(Debug, Clone)]
struct Expected {
    site: Name,
    dataset: Name,
    duty: AgentRole,
}

impl Looker<'_> {
    pub(super) fn hosts(&mut self, service: &Service, writer: &Writer) -> Vec<HostStatus> {
        let expected = self.expected(service, writer);
        let deadline = Instant::now() + FIRST_LOOK;
        loop {
            let mut hosts: Vec<HostStatus> = expected.iter().map(|expected| self.host(expected, writer)).collect();
            let all_alive = hosts.iter().all(|host| host.is_alive || host.role.is_none());
            if all_alive || self.looked_before || Instant::now() > deadline {
                hosts.extend(self.troubled(service, writer, &expected));
                return hosts;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn expected(&self, service: &Service, writer: &Writer) -> Vec<Expected> {
        let Some(writes) = &writer.site else { return Vec::new() };
        let mut expected = Vec::new();
        for site in std::iter::once(&service.primary).chain(&service.recovery) {
            for (_, dataset) in service.datasets().filter(|(_, dataset)| !dataset.protect.is_empty()) {
                let follows = service.strategy == Strategy::WarmStandby
                    && dataset.is_recovered()
                    && self.holds_key(site, &dataset.name);
                let duty = match site == writes {
                    true => AgentRole::Writer,
                    false if follows => AgentRole::Standby,
                    false => continue,
                };
                expected.push(Expected { site: site.clone(), dataset: dataset.name.clone(), duty });
            }
        }
        expected
    }

    /// Hosts from which nothing is expected, but which live and say that something is wrong: an old writer that came back.
    fn troubled(&mut self, service: &Service, writer: &Writer, expected: &[Expected]) -> Vec<HostStatus> {
        let mut troubled = Vec::new();
        for site in std::iter::once(&service.primary).chain(&service.recovery) {
            for (_, dataset) in service.datasets().filter(|(_, dataset)| !dataset.protect.is_empty()) {
                if expected.iter().any(|known| known.site == *site && known.dataset == dataset.name) {
                    continue;
                }
                let idle = Expected { site: site.clone(), dataset: dataset.name.clone(), duty: AgentRole::Idle };
                let host = self.host(&idle, writer);
                if host.is_alive && host.problem.is_some() {
                    troubled.push(HostStatus { does_its_duty: true, ..host });
                }
            }
        }
        troubled
    }

    /// Whether the plan wants commits to wait for others while this site writes.
    fn commits_wait(&self, dataset: &str, site: &str) -> bool {
        let mut datasets = self.wiring.plan().services.values().flat_map(Service::datasets);
        datasets.any(|(_, known)| known.name == dataset && known.awaited(site).is_some())
    }

    fn holds_key(&self, site: &str, dataset: &str) -> bool {
        self.wiring.plan().keys.holders.iter().any(|holder| {
            holder.purpose == KeyPurpose::Standby
                && holder.held_at == site
                && holder.datasets.iter().any(|named| named == dataset)
        })
    }

    fn host(&mut self, expected: &Expected, writer: &Writer) -> HostStatus {
        let (site, dataset) = (&expected.site, &expected.dataset);
        let (report, unreadable) = match self.wiring.arbiter.agent_report(site, dataset) {
            Ok(report) => (report, None),
            Err(error) => (None, Some(error.with_cause())),
        };
        let now = self.wiring.clock.now();
        let is_alive = report.as_ref().is_some_and(|report| self.is_alive(report, now));
        let applied = report.as_ref().and_then(|report| report.applied.as_ref()?.parse::<Timestamp>().ok());
        let reported = report.as_ref().and_then(|report| report.at.parse::<Timestamp>().ok());
        HostStatus {
            site: site.clone(),
            dataset: dataset.clone(),
            duty: match expected.duty {
                AgentRole::Writer => "writer",
                AgentRole::Standby => "standby",
                AgentRole::Idle => "idle",
            },
            // A writer under an older epoch is on its way to the one in force, or does not see it.
            does_its_duty: writer.frozen
                || report.as_ref().is_some_and(|report| {
                    report.role == expected.duty
                        && (report.role != AgentRole::Writer || writer.epoch.is_none_or(|epoch| report.epoch == epoch))
                }),
            role: report.as_ref().map(|report| report.role),
            epoch: report.as_ref().map(|report| report.epoch),
            is_alive,
            reported_seconds_ago: reported.map(|at| now.duration_since(at).as_secs_f64().max(0.0)),
            lag_seconds: applied.filter(|_| expected.duty == AgentRole::Standby).and_then(|at| age_seconds(at, now)),
            commits_asked_for: expected.duty == AgentRole::Writer && self.commits_wait(dataset, site),
            commits: report.as_ref().and_then(|report| report.commits.clone()),
            streams: report.as_ref().and_then(|report| report.streams.clone()),
            came: report.as_ref().and_then(|report| report.came.clone()),
            problem: unreadable.or_else(|| report.and_then(|report| report.problem)),
        }
    }

    fn is_alive(&mut self, report: &AgentReport, now: Timestamp) -> bool {
        let here_seconds = self.wiring.clock.monotonic_seconds();
        let key = (report.site.clone(), report.dataset.clone());
        let beat = (report.beat, report.at.clone());
        let seen = self.seen.entry(key).or_insert_with(|| Seen { beat: beat.clone(), moved_at_seconds: None });
        if seen.beat != beat {
            *seen = Seen { beat, moved_at_seconds: Some(here_seconds) };
        }
        let moved = seen.moved_at_seconds.is_some_and(|at| here_seconds - at < SILENT_AFTER_SECONDS);
        let young = report.at.parse::<Timestamp>().ok().and_then(|at| age_seconds(at, now));
        moved || young.is_some_and(|age| age < SILENT_AFTER_SECONDS)
    }
}
