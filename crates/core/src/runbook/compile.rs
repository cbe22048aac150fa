//! From a plan, an inventory and a purpose to a run-book.
//!
//! Invariant: the compiler decides and the executor executes. A promotion is always preceded by a fence of the site it
//! takes the write domain from; what can only be known on the night stands as a branch with its condition.

use crate::plan::{Component, DataKind, Name, Objective, Plan, Rerun, Service, Site, Strategy};
use crate::units::Span;

use super::place::{Isolation, Place};
use super::template::TemplateError;
use super::{Action, Condition, OnFailure, Purpose, Runbook, Step, StepId, Target};

/// What is known of the world when a run-book is compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    /// The epoch in force in the service's write domain.
    pub epoch: u64,
    /// The site that writes now.
    pub writer: Name,
    /// RFC 3339.
    pub compiled_at: String,
    pub plan_hash: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub service: Name,
    pub purpose: Purpose,
    pub scenario: Name,
    /// Where to; the first possible recovery site when not given.
    pub to: Option<Name>,
    pub target: Target,
    pub isolation: Option<Isolation>,
}

/// Why no run-book can be made. Each message names the next step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    #[error("the plan has no service `{service}`; it has: {known}")]
    NoService { service: Name, known: String },
    #[error("the plan has no scenario `{scenario}`; it has: {known}")]
    NoScenario { scenario: Name, known: String },
    #[error("the plan has no site `{site}`; it has: {known}")]
    NoSite { site: Name, known: String },
    #[error("`{site}` is no place for `{service}`: the plan names {known}; add it to `recovery` first")]
    NotAPlace { site: Name, service: Name, known: String },
    #[error("`{service}` already runs at `{site}`; nothing to do, unless you name another site with --to")]
    AlreadyThere { service: Name, site: Name },
    #[error(
        "no site is left for `{service}` in scenario `{scenario}`: every recovery site is lost with `{from}`; name a site with --to if one is in truth still there"
    )]
    NoPlaceLeft { service: Name, scenario: Name, from: Name },
    #[error(
        "`{service}` uses the strategy `{strategy}`, which this version does not recover; it recovers backup-restore and warm-standby"
    )]
    Strategy { service: Name, strategy: &'static str },
    #[error("the scenario `{scenario}` needs a moment to go back to: give --at TIME, the last good one")]
    NoMoment { scenario: Name },
    #[error("`{service}` has no [traffic], so nothing can be sent to another site; add it to the plan")]
    NoTraffic { service: Name },
    #[error("in `{service}`: {source}")]
    Template {
        service: Name,
        #[source]
        source: TemplateError,
    },
}

fn names<'a>(keys: impl Iterator<Item = &'a Name>) -> String {
    keys.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Scenarios in which what replicas hold must not be trusted.
pub fn distrusts_replicas(scenario: &str) -> bool {
    matches!(scenario, "data-corrupted" | "data-destroyed")
}

/// Whether `site` is lost, too, when `from` is lost in this scenario.
pub fn lost_with(scenario: &str, from_name: &str, from: &Site, site_name: &str, site: &Site) -> bool {
    let same = |a: &Option<Name>, b: &Option<Name>| a.is_some() && a == b;
    match scenario {
        "zone-lost" => site_name == from_name || same(&from.zone, &site.zone),
        "region-lost" => site_name == from_name || same(&from.region, &site.region),
        "provider-lost" => site_name == from_name || same(&from.organization, &site.organization),
        _ => site_name == from_name,
    }
}

/// Compiles. The same arguments always give the same run-book.
pub fn compile(plan: &Plan, inventory: &Inventory, request: &Request) -> Result<Runbook, CompileError> {
    let service = plan.services.get(&request.service).ok_or_else(|| CompileError::NoService {
        service: request.service.clone(),
        known: names(plan.services.keys()),
    })?;
    if !plan.scenarios.contains_key(&request.scenario)
        && !crate::plan::BUILT_IN_SCENARIOS.iter().any(|(name, _)| *name == request.scenario)
    {
        let built_in: Vec<Name> = crate::plan::BUILT_IN_SCENARIOS.iter().map(|(name, _)| (*name).to_owned()).collect();
        return Err(CompileError::NoScenario {
            scenario: request.scenario.clone(),
            known: names(built_in.iter().chain(plan.scenarios.keys().filter(|name| !built_in.contains(name)))),
        });
    }
    match service.strategy {
        Strategy::BackupRestore | Strategy::WarmStandby => {}
        Strategy::PilotLight => {
            return Err(CompileError::Strategy { service: service.name.clone(), strategy: "pilot-light" });
        }
        Strategy::MultiSite => {
            return Err(CompileError::Strategy { service: service.name.clone(), strategy: "multi-site" });
        }
    }
    let to = choose_site(plan, service, inventory, request)?;
    let mut builder = Builder {
        plan,
        service,
        inventory,
        request,
        from: inventory.writer.clone(),
        to,
        objective: service.objective_in(&request.scenario),
        steps: Vec::new(),
        last: Vec::new(),
        not_covered: Vec::new(),
    };
    match request.purpose {
        Purpose::Failover => builder.failover()?,
        Purpose::Switchover | Purpose::Failback => builder.switchover()?,
        Purpose::Rewind => builder.rewind()?,
        Purpose::Drill => builder.drill()?,
    }
    Ok(builder.finish())
}

fn choose_site(plan: &Plan, service: &Service, inventory: &Inventory, request: &Request) -> Result<Name, CompileError> {
    let places = || std::iter::once(&service.primary).chain(&service.recovery);
    let known_site = |name: &Name| {
        plan.sites.get(name).ok_or_else(|| CompileError::NoSite { site: name.clone(), known: names(plan.sites.keys()) })
    };
    let from = known_site(&inventory.writer)?;
    let to = match (&request.to, request.purpose) {
        (_, Purpose::Rewind) => request.to.clone().unwrap_or_else(|| inventory.writer.clone()),
        (Some(to), _) => to.clone(),
        (None, Purpose::Failback) => service.primary.clone(),
        (None, Purpose::Drill) => places()
            .find(|name| **name != inventory.writer)
            .cloned()
            .ok_or_else(|| no_place_left(service, request, inventory))?,
        (None, _) => places()
            .find(|name| {
                plan.sites
                    .get(*name)
                    .is_some_and(|site| !lost_with(&request.scenario, &inventory.writer, from, name, site))
            })
            .cloned()
            .ok_or_else(|| no_place_left(service, request, inventory))?,
    };
    known_site(&to)?;
    if !places().any(|place| *place == to) {
        return Err(CompileError::NotAPlace { site: to, service: service.name.clone(), known: names(places()) });
    }
    let moves = !matches!(request.purpose, Purpose::Rewind | Purpose::Drill);
    if moves && to == inventory.writer {
        return Err(CompileError::AlreadyThere { service: service.name.clone(), site: to });
    }
    Ok(to)
}

fn no_place_left(service: &Service, request: &Request, inventory: &Inventory) -> CompileError {
    CompileError::NoPlaceLeft {
        service: service.name.clone(),
        scenario: request.scenario.clone(),
        from: inventory.writer.clone(),
    }
}

struct Builder<'a> {
    plan: &'a Plan,
    service: &'a Service,
    inventory: &'a Inventory,
    request: &'a Request,
    from: Name,
    to: Name,
    objective: Objective,
    steps: Vec<Step>,
    /// What the next step comes after.
    last: Vec<StepId>,
    not_covered: Vec<String>,
}

/// How long things that have no time of their own in the plan may take before a person is asked.
const SHORT: Span = Span::seconds(60);
const LONG: Span = Span::seconds(24 * 3600);

impl Builder<'_> {
    fn epoch(&self) -> u64 {
        if self.request.purpose == Purpose::Drill { self.inventory.epoch } else { self.inventory.epoch + 1 }
    }

    fn domain(&self) -> Name {
        self.service.write_domain().to_owned()
    }

    fn place(&self, site_name: &str) -> Result<Place<'_>, CompileError> {
        let (site_name, site) = self
            .plan
            .sites
            .get_key_value(site_name)
            .ok_or_else(|| CompileError::NoSite { site: site_name.to_owned(), known: names(self.plan.sites.keys()) })?;
        Ok(Place {
            plan: self.plan,
            service: self.service,
            site_name,
            site,
            isolation: self.request.isolation.as_ref(),
        })
    }

    fn template(&self, source: TemplateError) -> CompileError {
        CompileError::Template { service: self.service.name.clone(), source }
    }

    /// Data sets that a vault protects, in the plan's order.
    fn protected(&self) -> Vec<Name> {
        self.service
            .datasets()
            .filter(|(_, dataset)| !dataset.protect.is_empty())
            .map(|(_, dataset)| dataset.name.clone())
            .collect()
    }

    fn volumes(&self, site: &str) -> Result<Vec<super::VolumeSpec>, CompileError> {
        let place = self.place(site)?;
        Ok(self
            .service
            .datasets()
            .filter(|(_, dataset)| !dataset.protect.is_empty())
            .map(|(_, dataset)| place.volume(dataset))
            .collect())
    }

    fn instances(&self, site: &str, component: &Component) -> Result<Vec<super::InstanceSpec>, CompileError> {
        // A site that must be fenced or stopped may have run as few as its standby count and as many as its live count.
        let count = component.instances.live.max(component.instances.standby);
        self.place(site)?.instances(component, count).map_err(|source| self.template(source))
    }

    fn all_instances(&self, site: &str) -> Result<Vec<super::InstanceSpec>, CompileError> {
        let mut all = Vec::new();
        for component in &self.service.components {
            all.extend(self.instances(site, component)?);
        }
        Ok(all)
    }

    /// Adds a step after the ones before it, and makes it what the next comes after.
    fn then(&mut self, id: impl Into<StepId>, title: impl Into<String>, action: Action) -> &mut Step {
        let step = Step {
            id: id.into(),
            title: title.into(),
            action,
            after: std::mem::take(&mut self.last),
            when: Vec::new(),
            timeout: SHORT,
            retries: 2,
            on_failure: OnFailure::Hold,
            commit: false,
            undo: None,
            mirrored: false,
            always: false,
        };
        self.last = vec![step.id.clone()];
        self.steps.push(step);
        let index = self.steps.len() - 1;
        &mut self.steps[index]
    }

    fn claim(&mut self) {
        let (epoch, domain, to) = (self.epoch(), self.domain(), self.to.clone());
        let step = self.then(
            "claim-epoch",
            format!("Claim epoch {epoch} of `{domain}` for {to}"),
            Action::ClaimEpoch { write_domain: domain, epoch, primary: to },
        );
        step.mirrored = true;
        step.retries = 0;
        step.on_failure = OnFailure::Unwind;
    }

    fn approve_if_asked(&mut self) {
        if self.service.approval {
            let reason = format!(
                "{} of `{}` from {} to {} in scenario {}",
                title_of(self.request.purpose),
                self.service.name,
                self.from,
                self.to,
                self.request.scenario
            );
            let step = self.then(
                "approve",
                "Wait for an approval by somebody else than the initiator",
                Action::Approve { reason },
            );
            step.timeout = LONG;
            step.on_failure = OnFailure::Unwind;
        }
    }

    fn fence(&mut self, site: &str) -> Result<(), CompileError> {
        let (write_domain, instances, volumes) = (self.domain(), self.all_instances(site)?, self.volumes(site)?);
        let site = site.to_owned();
        let undo = Action::LiftFence { site: site.clone(), write_domain: write_domain.clone() };
        let step = self.then(
            format!("fence-{site}"),
            format!("Prove that {site} does not write any more"),
            Action::Fence { site, write_domain, instances, volumes },
        );
        step.mirrored = true;
        step.undo = Some(undo);
        Ok(())
    }

    fn ensure_agent(&mut self, site: &str) -> &mut Step {
        let site = site.to_owned();
        self.then(
            format!("ensure-agent-{site}"),
            format!("See to it that lifeboat protect runs at {site}"),
            Action::EnsureAgent { site },
        )
    }

    fn promote(&mut self) -> &mut Step {
        let (site, write_domain, datasets, epoch) = (self.to.clone(), self.domain(), self.protected(), self.epoch());
        let step = self.then(
            format!("promote-{site}"),
            format!("COMMIT: make {site} the writer of `{write_domain}` under epoch {epoch}"),
            Action::Promote { site, write_domain, datasets, epoch },
        );
        step.commit = true;
        step.mirrored = true;
        step.timeout = Span::seconds(600);
        step
    }

    /// Reserves the place and restores every protected data set there; all within a branch if `when` is given.
    fn restore_all(&mut self, when: Option<Condition>) -> Result<(), CompileError> {
        let (site, write_domain, datasets, epoch) = (self.to.clone(), self.domain(), self.protected(), self.epoch());
        let undo = Action::Unfreeze { write_domain: write_domain.clone(), site: self.from.clone() };
        let in_branch: Vec<Condition> = when.into_iter().collect();
        let step = self.then(
            format!("reserve-{site}"),
            format!("Have {site} let go of its volumes, so that they can be restored"),
            Action::Reserve { write_domain, site: site.clone(), datasets, epoch },
        );
        step.when = in_branch.clone();
        step.undo = Some(undo);
        let reserved = self.last.clone();
        let mut ends = Vec::new();
        for volume in self.volumes(&site)? {
            let dataset = volume.dataset.clone();
            self.last = reserved.clone();
            let step = self.then(
                format!("set-aside-{dataset}"),
                format!("Move what lies in the place of `{dataset}` at {site} aside"),
                Action::SetAside { site: site.clone(), volume: volume.clone() },
            );
            step.when = in_branch.clone();
            step.undo = Some(Action::PutBack { site: site.clone(), volume: volume.clone() });
            let target = self.request.target.clone();
            let step = self.then(
                format!("restore-{dataset}"),
                format!("Restore `{dataset}` at {site} from the {}", said(&target)),
                Action::Restore { site: site.clone(), volume, target, in_place: false },
            );
            step.when = in_branch.clone();
            step.timeout = LONG;
            step.retries = 3;
            ends.append(&mut self.last);
        }
        self.last = ends;
        Ok(())
    }

    /// Starts the whole service at a site in its components' order, each healthy before the next.
    fn start_all(&mut self, site: &str) -> Result<(), CompileError> {
        for component in &self.service.components {
            let mut count = component.instances.live;
            if self.request.purpose == Purpose::Drill {
                count = count.min(1);
            }
            let instances = self.place(site)?.instances(component, count).map_err(|source| self.template(source))?;
            for (owner, dataset) in self.service.datasets().filter(|(owner, _)| owner.name == component.name) {
                if let Some(rebuild) = &dataset.rebuild {
                    let command = self.place(site)?.command(owner, rebuild).map_err(|source| self.template(source))?;
                    let name = dataset.name.clone();
                    let step = self.then(
                        format!("rebuild-{name}"),
                        format!("Make `{name}` anew at {site}"),
                        Action::RunCommand { site: site.to_owned(), command, rerun: Rerun::Safe },
                    );
                    step.timeout = LONG;
                }
            }
            if instances.is_empty() {
                continue;
            }
            let (name, plural) = (component.name.clone(), instances.len());
            self.then(
                format!("start-{name}"),
                format!("Start {plural} of `{name}` at {site}"),
                Action::StartInstances { site: site.to_owned(), instances: instances.clone() },
            );
            if let Some(health) = &component.health {
                let step = self.then(
                    format!("await-{name}"),
                    format!("Wait until `{name}` is healthy at {site}"),
                    Action::AwaitHealthy { site: site.to_owned(), instances },
                );
                step.timeout = health.within;
                step.retries = 0;
            }
        }
        Ok(())
    }

    /// Sends traffic to the target site and proves the service through its name.
    fn prove(&mut self, send: bool) -> Result<(), CompileError> {
        let Some(traffic) = &self.service.traffic else {
            return Err(CompileError::NoTraffic { service: self.service.name.clone() });
        };
        let authority = match &traffic.dns {
            crate::plan::Dns::Authority(address) => Some(address.clone()),
            crate::plan::Dns::Rfc2136 { server, .. } => Some(server.clone()),
        };
        let place = self.place(&self.to)?;
        let answers = place.answers(100);
        let (port, health) = match place.front() {
            Some(front) => (front.port, front.health.clone()),
            None => (None, None),
        };
        let to = self.to.clone();
        if send {
            let step = self.then(
                "send-traffic",
                format!("Answer {} with {to}", traffic.name),
                Action::SetTraffic {
                    name: traffic.name.clone(),
                    authority: authority.clone().unwrap_or_default(),
                    ttl: traffic.ttl,
                    answers,
                },
            );
            step.retries = 5;
        }
        if let Some(health) = health {
            let step = self.then(
                "await-service",
                format!("Wait until {} is healthy through its own name", traffic.name),
                Action::AwaitService {
                    name: traffic.name.clone(),
                    authority: authority.clone(),
                    port,
                    health: health.clone(),
                },
            );
            step.timeout = Span::seconds(traffic.ttl.0.as_secs() + health.within.0.as_secs() + 30);
        } else {
            self.not_covered.push("the service's health: no component that traffic reaches has a health check".into());
        }
        if let Some(canary) = &self.service.canary {
            self.then(
                "read-canary",
                "Read a canary back that was written before",
                Action::ReadCanary { name: traffic.name.clone(), authority, port, read: canary.read.clone() },
            );
        } else {
            self.not_covered.push("that old data is served: the plan has no canary".into());
        }
        Ok(())
    }

    /// Arranges protection anew around the new writer; without it a run is not complete.
    fn reprotect(&mut self) {
        let to = self.to.clone();
        let datasets = self.protected();
        let mut outside: Vec<Name> = self
            .service
            .datasets()
            .flat_map(|(_, dataset)| &dataset.protect)
            .map(|protect| protect.to.clone())
            .filter(|vault| self.plan.vaults.get(vault).is_some_and(|vault| vault.site.as_ref() != Some(&to)))
            .collect();
        outside.sort();
        outside.dedup();
        if datasets.is_empty() || outside.is_empty() {
            let step = self.then(
                "protect-again",
                format!("Protect {to} outside itself"),
                Action::Lack {
                    what: format!("no vault outside {to} protects `{}`: it has no protection there", self.service.name),
                },
            );
            step.on_failure = OnFailure::Note;
            step.retries = 0;
        } else {
            let (write_domain, rpo, epoch) = (self.domain(), self.objective.rpo, self.epoch());
            let timeout = Span::seconds(rpo.0.as_secs().max(120) * 2);
            let step = self.then(
                "protect-again",
                format!("Wait until {to} is protected outside itself, with RPO now within {rpo}"),
                Action::AwaitProtection { write_domain, site: to, datasets, vaults: outside, rpo, epoch },
            );
            step.timeout = timeout;
            step.retries = 0;
        }
    }

    /// A standby somewhere else, where the strategy wants one.
    fn restandby(&mut self, lost: &[Name]) {
        if self.service.strategy != Strategy::WarmStandby {
            return;
        }
        let sites: Vec<Name> = std::iter::once(&self.service.primary)
            .chain(&self.service.recovery)
            .filter(|site| **site != self.to && !lost.contains(site) && self.can_follow(site))
            .cloned()
            .collect();
        if sites.is_empty() {
            let what =
                format!("no site is left that could follow {}: the service has no standby until one is back", self.to);
            let step = self.then("stand-by-again", "Have a standby again", Action::Lack { what });
            step.on_failure = OnFailure::Note;
            step.retries = 0;
            return;
        }
        for site in sites {
            self.ensure_agent(&site).on_failure = OnFailure::Note;
            let (write_domain, datasets, epoch) = (self.domain(), self.protected(), self.epoch());
            let step = self.then(
                format!("follow-at-{site}"),
                format!("Wait until {site} follows {}", self.to),
                Action::AwaitStandby { site, write_domain, datasets, epoch },
            );
            step.timeout = LONG;
            step.on_failure = OnFailure::Note;
        }
    }

    /// Whether a standby at the site has a key to apply what the vaults hold.
    fn can_follow(&self, site: &str) -> bool {
        self.protected().iter().all(|dataset| {
            self.plan.keys.holders.iter().any(|holder| {
                holder.purpose == crate::plan::KeyPurpose::Standby
                    && holder.held_at == site
                    && holder.datasets.iter().any(|named| named == dataset)
            })
        })
    }

    fn assess_loss(&mut self) -> Result<(), CompileError> {
        let (write_domain, volumes, approved) = (self.domain(), self.volumes(&self.to)?, self.objective.rpo);
        self.then(
            "assess-loss",
            format!("Compare what is durable in the vaults with the disaster's moment; up to {approved} is approved"),
            Action::AssessLoss { write_domain, volumes, target: self.request.target.clone(), approved },
        );
        let reason = format!("more than {approved} of data would be lost, or nobody can tell how much");
        let step = self.then("approve-loss", "Wait for somebody to approve the loss", Action::Approve { reason });
        step.when = vec![Condition { step: "assess-loss".into(), outcomes: vec!["beyond".into()] }];
        step.timeout = LONG;
        Ok(())
    }

    fn failover(&mut self) -> Result<(), CompileError> {
        let (from, to) = (self.from.clone(), self.to.clone());
        let moment = self.request.target != Target::Newest;
        if distrusts_replicas(&self.request.scenario) && !moment {
            return Err(CompileError::NoMoment { scenario: self.request.scenario.clone() });
        }
        self.approve_if_asked();
        self.claim();
        self.fence(&from)?;
        self.ensure_agent(&to);
        if !moment {
            self.assess_loss()?;
        }
        let follows = self.service.strategy == Strategy::WarmStandby && !moment && self.can_follow(&to);
        if follows {
            let (write_domain, datasets) = (self.domain(), self.protected());
            self.then(
                "inspect-standby",
                format!("Look whether the standby at {to} can be promoted"),
                Action::InspectStandby { site: to.clone(), write_domain, datasets, behind_at_most: None },
            );
            let when = Condition { step: "inspect-standby".into(), outcomes: vec!["unusable".into()] };
            self.restore_all(Some(when))?;
        } else {
            self.restore_all(None)?;
        }
        self.promote();
        self.lift_fence(&to);
        self.start_all(&to)?;
        self.prove(true)?;
        self.reprotect();
        let lost: Vec<Name> = self.lost_sites(&from);
        self.restandby(&lost);
        Ok(())
    }

    fn lost_sites(&self, from: &str) -> Vec<Name> {
        let Some(lost) = self.plan.sites.get(from) else { return vec![from.to_owned()] };
        self.plan
            .sites
            .iter()
            .filter(|(name, site)| lost_with(&self.request.scenario, from, lost, name, site))
            .map(|(name, _)| name.clone())
            .collect()
    }

    fn lift_fence(&mut self, site: &str) {
        let (site, write_domain) = (site.to_owned(), self.domain());
        self.then(
            format!("lift-fence-{site}"),
            format!("Let instances start at {site}"),
            Action::LiftFence { site, write_domain },
        );
    }

    fn stop_and_freeze(&mut self, site: &str) -> Result<(), CompileError> {
        let instances = self.all_instances(site)?;
        let (write_domain, datasets) = (self.domain(), self.protected());
        let site = site.to_owned();
        let mut stopped: Vec<super::InstanceSpec> = instances.clone();
        stopped.reverse();
        let longest = instances.iter().map(|instance| instance.stop_within.0.as_secs()).sum::<u64>();
        let step = self.then(
            format!("stop-{site}"),
            format!("Stop the service at {site}: from here on nothing is written"),
            Action::StopInstances { site: site.clone(), instances: stopped },
        );
        step.timeout = Span::seconds(longest + 30);
        step.undo = Some(Action::StartInstances { site: site.clone(), instances });
        step.on_failure = OnFailure::Unwind;
        let step = self.then(
            format!("freeze-{site}"),
            format!("Take the last recovery point and log at {site}"),
            Action::Freeze { write_domain: write_domain.clone(), site: site.clone(), datasets },
        );
        step.timeout = LONG;
        step.undo = Some(Action::Unfreeze { write_domain, site });
        step.on_failure = OnFailure::Unwind;
        Ok(())
    }

    /// Planned: nothing is lost. The long part, bringing the target's data near, comes before the service stops.
    fn switchover(&mut self) -> Result<(), CompileError> {
        let (from, to) = (self.from.clone(), self.to.clone());
        self.approve_if_asked();
        self.ensure_agent(&to);
        let follows = self.service.strategy == Strategy::WarmStandby && self.can_follow(&to);
        if follows {
            let (write_domain, datasets, epoch) = (self.domain(), self.protected(), self.inventory.epoch);
            self.then(
                "inspect-standby",
                format!("Look whether {to} follows already"),
                Action::InspectStandby {
                    site: to.clone(),
                    write_domain: write_domain.clone(),
                    datasets: datasets.clone(),
                    behind_at_most: None,
                },
            );
            let inspected = self.last.clone();
            let mut ends = Vec::new();
            for volume in self.volumes(&to)? {
                let dataset = volume.dataset.clone();
                self.last = inspected.clone();
                self.then(
                    format!("set-aside-{dataset}"),
                    format!(
                        "Move what {to} held of `{dataset}` aside: nothing it wrote and never shipped is overwritten"
                    ),
                    Action::SetAside { site: to.clone(), volume },
                )
                .when = vec![Condition { step: "inspect-standby".into(), outcomes: vec!["unusable".into()] }];
                ends.append(&mut self.last);
            }
            self.last = ends;
            let step = self.then(
                format!("follow-at-{to}"),
                format!("Wait until {to} follows {from} closely"),
                Action::AwaitStandby { site: to.clone(), write_domain, datasets, epoch },
            );
            step.timeout = LONG;
        }
        self.claim();
        self.stop_and_freeze(&from)?;
        self.fence(&from)?;
        if follows {
            let (write_domain, datasets) = (self.domain(), self.protected());
            let step = self.then(
                format!("catch-up-{to}"),
                format!("Wait until {to} has applied everything"),
                Action::CatchUp { site: to.clone(), write_domain, datasets },
            );
            step.timeout = LONG;
        } else {
            self.restore_all(None)?;
        }
        self.promote();
        self.lift_fence(&to);
        self.start_all(&to)?;
        self.prove(true)?;
        self.reprotect();
        self.restandby(&[]);
        Ok(())
    }

    /// Back to an earlier moment where the service is. What is there now becomes a recovery point first.
    fn rewind(&mut self) -> Result<(), CompileError> {
        let to = self.to.clone();
        if self.request.target == Target::Newest {
            return Err(CompileError::NoMoment { scenario: self.request.scenario.clone() });
        }
        self.approve_if_asked();
        self.ensure_agent(&to);
        self.claim();
        self.stop_and_freeze(&to)?;
        self.fence(&to)?;
        self.restore_all(None)?;
        self.promote();
        self.lift_fence(&to);
        self.start_all(&to)?;
        self.prove(false)?;
        self.reprotect();
        self.restandby(&[]);
        Ok(())
    }

    /// The same restore, start and proof as the real thing, in surroundings of its own.
    fn drill(&mut self) -> Result<(), CompileError> {
        let to = self.to.clone();
        let isolation = self.request.isolation.as_ref().map(|isolation| isolation.name.clone()).unwrap_or_default();
        self.then(
            "isolate",
            format!("Make isolated surroundings at {to}"),
            Action::Isolate { site: to.clone(), isolation: isolation.clone() },
        )
        .on_failure = OnFailure::Unwind;
        let isolated = self.last.clone();
        let mut ends = Vec::new();
        for volume in self.volumes(&to)? {
            let dataset = volume.dataset.clone();
            self.last = isolated.clone();
            let target = self.request.target.clone();
            let step = self.then(
                format!("restore-{dataset}"),
                format!("Restore `{dataset}` in isolation from the {}", said(&target)),
                Action::Restore { site: to.clone(), volume, target, in_place: false },
            );
            step.timeout = LONG;
            ends.append(&mut self.last);
        }
        self.last = ends;
        self.start_all(&to)?;
        self.prove(true)?;
        for step in &mut self.steps {
            step.on_failure = OnFailure::Unwind;
        }
        let step = self.then(
            "remove-isolation",
            "Remove everything the drill made",
            Action::RemoveIsolation { site: to.clone(), isolation: isolation.clone() },
        );
        step.always = true;
        let step = self.then(
            "verify-clean",
            "Look that nothing of the drill is left",
            Action::VerifyClean { site: to, isolation },
        );
        step.always = true;
        self.not_covered.push("outgoing calls: nothing stops the isolated service from calling the outside".into());
        self.not_covered.push("the fence and the promotion: a drill leaves the real writer alone".into());
        Ok(())
    }

    fn finish(mut self) -> Runbook {
        for (_, dataset) in self.service.datasets() {
            if dataset.protect.is_empty() && dataset.kind != DataKind::Transient {
                self.not_covered.push(format!("`{}`: no vault protects it", dataset.name));
            }
        }
        Runbook {
            format: 1,
            purpose: self.request.purpose,
            service: self.service.name.clone(),
            scenario: self.request.scenario.clone(),
            strategy: self.service.strategy,
            write_domain: self.domain(),
            from_epoch: self.inventory.epoch,
            epoch: self.epoch(),
            from: self.from,
            to: self.to,
            objective: self.objective,
            plan_hash: self.inventory.plan_hash.clone(),
            compiled_at: self.inventory.compiled_at.clone(),
            steps: self.steps,
            not_covered: self.not_covered,
        }
    }
}

/// The purpose as a word that starts a sentence.
pub fn title_of(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Failover => "Failover",
        Purpose::Switchover => "Planned failover",
        Purpose::Failback => "Failback",
        Purpose::Rewind => "Return to an earlier moment",
        Purpose::Drill => "Drill",
    }
}

fn said(target: &Target) -> String {
    match target {
        Target::Newest => "newest recovery point and log".into(),
        Target::At(time) => format!("last state at or before {time}"),
        Target::Point(id) => format!("recovery point {id}"),
    }
}
