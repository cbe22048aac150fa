//! One service's standing: who writes, what the vaults hold, who is there, what was proven, and the findings from it.
//!
//! Invariant: each finding names what it is about and the next step; unknown is a finding where an objective depends on it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use lifeboat_core::desired::Streams;
use lifeboat_core::plan::{Name, Service};
use lifeboat_engine::evidence::Judgement;
use lifeboat_engine::journal::Journal;
use lifeboat_vault::{Badge, Vault};
use serde::Serialize;

use super::data::DatasetStatus;
use super::hosts::{HostStatus, Seen};
use super::record::{CanaryStatus, DrillStatus, OpenRun, Proof, Record};
use crate::error::CommandError;
use crate::report::{objective, seconds};
use crate::wiring::Wiring;

#[derive(Debug, Serialize)]
pub(crate) struct Status {
    pub(crate) at: Timestamp,
    pub(crate) services: Vec<ServiceStatus>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ServiceStatus {
    pub(crate) service: Name,
    pub(crate) strategy: String,
    pub(crate) rpo_objective_seconds: f64,
    pub(crate) rto_objective_seconds: f64,
    pub(crate) writer: Writer,
    pub(crate) traffic: Option<Traffic>,
    /// The worst of the data sets; absent: unknown.
    pub(crate) rpo_now_seconds: Option<f64>,
    pub(crate) datasets: Vec<DatasetStatus>,
    pub(crate) hosts: Vec<HostStatus>,
    pub(crate) canary: Option<CanaryStatus>,
    pub(crate) last_run: Option<Proof>,
    pub(crate) last_drill: Option<Proof>,
    pub(crate) drills: Vec<DrillStatus>,
    pub(crate) open_runs: Vec<OpenRun>,
    pub(crate) findings: Vec<Finding>,
}

/// Who may write, as the arbiter has it.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Writer {
    /// Absent: nobody has been named, or it is unknown.
    pub(crate) site: Option<Name>,
    pub(crate) epoch: Option<u64>,
    pub(crate) generation: Option<u64>,
    pub(crate) frozen: bool,
    /// The highest epoch claimed, and by which run, when that is not the one in force.
    pub(crate) claimed: Option<Claimed>,
    /// Why this is unknown.
    pub(crate) problem: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Claimed {
    pub(crate) epoch: u64,
    pub(crate) primary: Name,
    pub(crate) run: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct Traffic {
    pub(crate) name: String,
    pub(crate) generation: u64,
    pub(crate) epoch: u64,
    pub(crate) sites: Vec<Name>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    /// A word for programs.
    pub(crate) code: &'static str,
    pub(crate) text: String,
    pub(crate) next: Option<String>,
}

/// Looks, and remembers between two looks what need not be read again.
pub(crate) struct Looker<'a> {
    pub(super) wiring: &'a Wiring,
    pub(super) journal: Journal,
    pub(super) vaults: BTreeMap<Name, Vault>,
    pub(super) seen: BTreeMap<(Name, Name), Seen>,
    pub(super) ended: BTreeMap<String, Record>,
    pub(super) looked_before: bool,
}

impl<'a> Looker<'a> {
    pub(crate) fn new(wiring: &'a Wiring) -> Result<Looker<'a>, CommandError> {
        Ok(Looker {
            wiring,
            journal: wiring.journal()?,
            vaults: BTreeMap::new(),
            seen: BTreeMap::new(),
            ended: BTreeMap::new(),
            looked_before: false,
        })
    }

    pub(crate) fn look(&mut self, services: &[&Service]) -> Result<Status, CommandError> {
        let services = services.iter().map(|service| self.look_at(service)).collect::<Result<_, _>>()?;
        self.looked_before = true;
        Ok(Status { at: self.wiring.clock.now(), services })
    }

    fn look_at(&mut self, service: &Service) -> Result<ServiceStatus, CommandError> {
        let writer = self.writer(service);
        let hosts = self.hosts(service, &writer);
        let datasets = self.datasets(service, writer.site.as_deref());
        let records = self.records(&service.name)?;
        let rpo_now_seconds = datasets
            .iter()
            .map(|dataset| dataset.rpo_now_seconds)
            .try_fold(0.0, |worst: f64, now| now.map(|now| worst.max(now)))
            .filter(|_| !datasets.is_empty());
        let mut status = ServiceStatus {
            service: service.name.clone(),
            strategy: word(&service.strategy),
            rpo_objective_seconds: service.objective.rpo.as_seconds(),
            rto_objective_seconds: service.objective.rto.as_seconds(),
            writer,
            traffic: self.traffic(service),
            rpo_now_seconds,
            datasets,
            hosts,
            canary: self.canary(service),
            last_run: records.last_proof(false, &self.wiring.loaded.hash),
            last_drill: records.last_proof(true, &self.wiring.loaded.hash),
            drills: self.drills(service, &records),
            open_runs: self.open_runs(&records),
            findings: Vec::new(),
        };
        status.findings = findings(&status, &records);
        Ok(status)
    }

    fn writer(&self, service: &Service) -> Writer {
        let arbiter = &self.wiring.arbiter;
        let domain = service.write_domain();
        let read = arbiter.desired_writer(domain).and_then(|desired| Ok((desired, arbiter.current_epoch(domain)?)));
        let (desired, claim) = match read {
            Ok(read) => read,
            Err(error) => return Writer { problem: Some(error.with_cause()), ..Writer::default() },
        };
        let in_force = desired.as_ref().map_or(0, |desired| desired.epoch);
        let claimed = claim.filter(|claim| claim.epoch != in_force);
        Writer {
            site: desired.as_ref().map(|desired| desired.primary.clone()),
            epoch: desired.as_ref().map(|desired| desired.epoch),
            generation: desired.as_ref().map(|desired| desired.generation),
            frozen: desired.is_some_and(|desired| desired.frozen),
            claimed: claimed.map(|claim| Claimed { epoch: claim.epoch, primary: claim.primary, run: claim.run }),
            problem: None,
        }
    }

    fn traffic(&self, service: &Service) -> Option<Traffic> {
        let name = &service.traffic.as_ref()?.name;
        let generation = self.wiring.arbiter.traffic(name).ok()??;
        let mut sites: Vec<Name> =
            generation.answers.iter().filter(|answer| answer.weight > 0).map(|answer| answer.site.clone()).collect();
        sites.dedup();
        Some(Traffic { name: generation.name, generation: generation.generation, epoch: generation.epoch, sites })
    }
}

/// A unit enum as the plan writes it.
pub(super) fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn findings(status: &ServiceStatus, records: &super::record::Records) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut found =
        |code: &'static str, text: String, next: Option<String>| findings.push(Finding { code, text, next });
    of_writer(status, &mut found);
    for dataset in &status.datasets {
        of_dataset(status, dataset, &mut found);
    }
    for host in &status.hosts {
        of_host(status, host, &mut found);
    }
    of_canary(status, &mut found);
    of_proofs(status, &mut found);
    for drill in status.drills.iter().filter(|drill| drill.is_overdue) {
        let again = format!("lifeboat drill {} --scenario {}", status.service, drill.scenario);
        let since = drill.due_at.map_or_else(
            || "it was never done".to_owned(),
            |due| format!("it was due on {}", super::render::minute(due)),
        );
        found("drill-overdue", format!("the drill `{}` is overdue: {since}", drill.drill), Some(again));
    }
    for run in &status.open_runs {
        let state = crate::run_ui::state_word(run.state);
        let at_work = if run.at_work { ", and an executor works on it" } else { "" };
        found("run-open", format!("run {} ({}) is {state}{at_work}", run.run, run.purpose), Some(run.next.clone()));
    }
    for (run, problem) in &records.unreadable {
        found("run-unreadable", format!("run {run} cannot be read: {problem}"), None);
    }
    findings
}

type Found<'a> = dyn FnMut(&'static str, String, Option<String>) + 'a;

fn of_writer(status: &ServiceStatus, found: &mut Found<'_>) {
    let writer = &status.writer;
    match (&writer.problem, &writer.site) {
        (Some(problem), _) => found("writer-unknown", format!("who may write is unknown: {problem}"), None),
        (None, None) => {
            let text = "nobody has ever been named the writer: nothing is protected".to_owned();
            found("writer-unknown", text, Some(format!("lifeboat up {}", status.service)));
        }
        (None, Some(site)) if writer.frozen => {
            found("writer-frozen", format!("{site} is frozen: nobody may write"), None);
        }
        _ => {}
    }
}

fn of_dataset(status: &ServiceStatus, dataset: &DatasetStatus, found: &mut Found<'_>) {
    let name = &dataset.dataset;
    match dataset.rpo_now_seconds {
        None => {
            let why = dataset.why_unknown.as_deref().unwrap_or("no vault says");
            found("rpo-unknown", format!("how much of `{name}` would be lost now is unknown: {why}"), None);
        }
        Some(now) if now > status.rpo_objective_seconds => {
            let (now, asked) = (seconds(now), objective(status.rpo_objective_seconds));
            found("rpo-missed", format!("`{name}`: RPO now is {now}, the objective is {asked}"), None);
        }
        Some(_) => {}
    }
    for vault in &dataset.vaults {
        if let (Some(problem), true) = (&vault.problem, dataset.rpo_now_seconds.is_some()) {
            found("vault-away", format!("`{name}` in the vault `{}`: {problem}", vault.vault), None);
        }
        for copy in vault.copies.iter().filter(|copy| !copy.complete || copy.left_behind > 0) {
            let what = if copy.complete { "lacks what could not be copied" } else { "was not finished" };
            let text = format!("`{name}`: the copy of `{}` in {} {what}", vault.vault, copy.to);
            let again = format!("lifeboat vault copy --from {} --to {}", vault.vault, copy.to);
            found("copy-incomplete", text, Some(again));
        }
        if let Some(verified) = &vault.verified {
            let again = || Some(format!("lifeboat verify {name} --vault {} --key FILE", vault.vault));
            if verified.is_overdue {
                let last = verified.at.map_or_else(
                    || "it never was".to_owned(),
                    |at| format!("the last time was {}", super::render::minute(at)),
                );
                let text = format!("`{name}` in the vault `{}` should have been verified by now: {last}", vault.vault);
                found("verify-overdue", text, again());
            }
            if verified.badge.is_some_and(|badge| badge != Badge::Verified) {
                let text = format!(
                    "`{name}` in the vault `{}` was verified, and is not sound: {}",
                    vault.vault,
                    verified.describe()
                );
                found("verify-failed", text, again());
            }
        }
        for doubt in &vault.findings {
            found("vault-doubtful", format!("`{name}` in the vault `{}`: {doubt}", vault.vault), None);
        }
    }
}

fn of_host(status: &ServiceStatus, host: &HostStatus, found: &mut Found<'_>) {
    let what = format!("`{}` at {}", host.dataset, host.site);
    let start = || Some(format!("at {}: lifeboat protect --site {}", host.site, host.site));
    match (host.is_alive, host.reported_seconds_ago) {
        (true, _) => {}
        (false, None) if host.problem.is_some() => {
            let why = host.problem.as_deref().unwrap_or_default();
            found("agent-problem", format!("{what}: {why}"), Some("lifeboat vault enroll --list".to_owned()));
        }
        (false, None) => found("agent-silent", format!("{what}: its host has never reported"), start()),
        (false, Some(ago)) => {
            let text = format!("{what}: its host has been silent; its last report is {} old", seconds(ago));
            found("agent-silent", text, start());
        }
    }
    if let (true, Some(problem)) = (host.is_alive, &host.problem) {
        found("agent-problem", format!("{what}: {problem}"), None);
    }
    if host.is_alive && host.commits_asked_for && host.commits.is_none() && host.problem.is_none() {
        let text = format!("{what}: commits are to wait for vaults, and whether they do is unknown");
        found("commits-unknown", text, None);
    }
    let behind = host.lag_seconds.filter(|lag| host.is_alive && *lag > 2.0 * status.rpo_objective_seconds);
    if let Some(lag) = behind {
        found("standby-behind", format!("{what}: the standby is {} behind", seconds(lag)), None);
    }
    if let Some(Streams { problem: Some(problem), .. }) = host.streams.as_ref().filter(|_| host.is_alive) {
        found("standby-unstreamed", format!("{what}: the standby follows the vault alone: {problem}"), None);
    }
    if host.is_alive && !host.does_its_duty {
        found("agent-idle", format!("{what}: its host is {}, and should be {}", word(&host.role), host.duty), None);
    }
}

fn of_canary(status: &ServiceStatus, found: &mut Found<'_>) {
    let Some(canary) = &status.canary else { return };
    let write = Some(format!("lifeboat canary {}", status.service));
    match (&canary.problem, canary.age_seconds) {
        (Some(problem), _) => found("canary-unknown", format!("canaries cannot be read: {problem}"), None),
        (None, None) => {
            let text = "no canary has ever been recorded: a recovery could not be proven".to_owned();
            found("canary-silent", text, write);
        }
        (None, Some(age)) if age > canary.expected_seconds => {
            found("canary-silent", format!("the last canary is {} old", seconds(age)), write);
        }
        _ => {}
    }
}

fn of_proofs(status: &ServiceStatus, found: &mut Found<'_>) {
    for proof in status.last_run.iter().chain(&status.last_drill) {
        for (what, measure) in [("RPO", &proof.rpo), ("RTO", &proof.rto)] {
            if let (Judgement::Missed, Some(proven)) = (measure.judgement, measure.proven_seconds) {
                let (proven, asked) = (seconds(proven), objective(measure.objective_seconds));
                let text =
                    format!("{} {}: {what} proven is {proven}, the objective was {asked}", proof.purpose, proof.run);
                found("objective-missed", text, None);
            }
        }
        if !proof.is_success {
            let state = crate::run_ui::state_word(proof.state);
            let text = format!("the last {} ({}) ended as {state}", proof.purpose, proof.run);
            found("run-failed", text, Some(format!("lifeboat run show {}", proof.run)));
        }
    }
}
