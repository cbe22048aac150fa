//! The steps that several ways have in common, and the order in which they are laid.
//!
//! Invariant: a step comes after the one laid before it, unless `last` was set to something else on purpose.

use crate::lease;
use crate::plan::{Component, DataKind, Name, Objective, Plan, Rerun, Service, Strategy};
use crate::units::Span;

use super::super::place::Place;
use super::super::template::TemplateError;
use super::super::{
    Action, Condition, InstanceSpec, LeaseFence, OnFailure, Purpose, Runbook, Step, StepId, Target, VolumeSpec,
    thaw_patience,
};
use super::{CompileError, Inventory, Request, lost_with, names, title_of};

pub(super) struct Builder<'a> {
    pub(super) plan: &'a Plan,
    pub(super) service: &'a Service,
    pub(super) inventory: &'a Inventory,
    pub(super) request: &'a Request,
    pub(super) from: Name,
    pub(super) to: Name,
    pub(super) objective: Objective,
    pub(super) steps: Vec<Step>,
    /// What the next step comes after.
    pub(super) last: Vec<StepId>,
    /// The branch that each next step stands in.
    pub(super) under: Vec<Condition>,
    pub(super) not_covered: Vec<String>,
}

/// How long things that have no time of their own in the plan may take before a person is asked.
pub(super) const SHORT: Span = Span::seconds(60);
pub(super) const LONG: Span = Span::seconds(24 * 3600);

impl<'a> Builder<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        service: &'a Service,
        inventory: &'a Inventory,
        request: &'a Request,
        to: Name,
    ) -> Builder<'a> {
        let objective = service.objective_in(&request.scenario);
        let from = inventory.writer.clone();
        let (steps, last, under, not_covered) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Builder { plan, service, inventory, request, from, to, objective, steps, last, under, not_covered }
    }

    pub(super) fn epoch(&self) -> u64 {
        match self.request.purpose {
            Purpose::Drill | Purpose::Start => self.inventory.epoch,
            _ => self.inventory.epoch + 1,
        }
    }

    pub(super) fn domain(&self) -> Name {
        self.service.write_domain().to_owned()
    }

    pub(super) fn place(&self, site_name: &str) -> Result<Place<'_>, CompileError> {
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

    pub(super) fn template(&self, source: TemplateError) -> CompileError {
        CompileError::Template { service: self.service.name.clone(), source }
    }

    /// Data sets that come back from a vault, in the plan's order.
    pub(super) fn protected(&self) -> Vec<Name> {
        self.service
            .datasets()
            .filter(|(_, dataset)| dataset.is_recovered())
            .map(|(_, dataset)| dataset.name.clone())
            .collect()
    }

    pub(super) fn volumes(&self, site: &str) -> Result<Vec<VolumeSpec>, CompileError> {
        let place = self.place(site)?;
        Ok(self
            .service
            .datasets()
            .filter(|(_, dataset)| dataset.is_recovered())
            .map(|(_, dataset)| place.volume(dataset))
            .collect())
    }

    pub(super) fn instances(&self, site: &str, component: &Component) -> Result<Vec<InstanceSpec>, CompileError> {
        // A site that must be fenced or stopped may have run as few as its standby count and as many as its live count.
        let count = component.instances.live.max(component.instances.standby);
        self.place(site)?.instances(component, count).map_err(|source| self.template(source))
    }

    pub(super) fn all_instances(&self, site: &str) -> Result<Vec<InstanceSpec>, CompileError> {
        let mut all = Vec::new();
        for component in &self.service.components {
            all.extend(self.instances(site, component)?);
        }
        Ok(all)
    }

    /// Adds a step after the ones before it, and makes it what the next comes after.
    pub(super) fn then(&mut self, id: impl Into<StepId>, title: impl Into<String>, action: Action) -> &mut Step {
        let step = Step {
            id: id.into(),
            title: title.into(),
            action,
            after: std::mem::take(&mut self.last),
            when: self.under.clone(),
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

    /// `planned`: this run stops the writer itself, which holds its lease until then.
    pub(super) fn claim(&mut self, planned: bool) {
        let (epoch, domain, to) = (self.epoch(), self.domain(), self.to.clone());
        let planned = planned && self.service.lease.is_some();
        let step = self.then(
            "claim-epoch",
            format!("Claim epoch {epoch} of `{domain}` for {to}"),
            Action::ClaimEpoch { write_domain: domain, epoch, primary: to, planned },
        );
        step.mirrored = true;
        step.retries = 0;
        step.on_failure = OnFailure::Unwind;
    }

    pub(super) fn approve_if_asked(&mut self) {
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

    /// Where nothing is lost yet, nothing is begun that could not be ended: traffic must be re-pointed while the service is away.
    pub(super) fn ask_authority(&mut self) {
        let Some(traffic) = &self.service.traffic else { return };
        let (name, authority) = (traffic.name.clone(), traffic.authority().to_owned());
        let step = self.then(
            "ask-name-server",
            format!("Look whether {authority} answers for {name}"),
            Action::AskAuthority { name, authority },
        );
        step.timeout = Span::seconds(20);
        step.retries = 0;
        step.on_failure = OnFailure::Unwind;
    }

    pub(super) fn fence(&mut self, site: &str, planned: bool) -> Result<(), CompileError> {
        let (write_domain, instances, volumes) = (self.domain(), self.all_instances(site)?, self.volumes(site)?);
        let site = site.to_owned();
        let undo = Action::LiftFence { site: site.clone(), write_domain: write_domain.clone() };
        // By plan everything was stopped, and the site has to say so itself.
        let epoch = self.inventory.writer_epoch;
        let ttl = self.service.lease.filter(|_| !planned && epoch > 0);
        let lease = ttl.map(|ttl| LeaseFence { epoch, ttl, skew: lease::skew(ttl) });
        let or = lease.map_or_else(String::new, |LeaseFence { ttl, skew, .. }| {
            format!("; if it cannot be asked, by its lease having run out ({ttl} and {skew} since it was last renewed)")
        });
        let step = self.then(
            format!("fence-{site}"),
            format!("Prove that {site} does not write any more{or}"),
            Action::Fence { site, write_domain, instances, volumes, planned, lease },
        );
        step.mirrored = true;
        step.undo = Some(undo);
        if let Some(LeaseFence { ttl, skew, .. }) = lease {
            step.timeout = Span(SHORT.0 + (ttl.0 + skew.0) * 2);
        }
        Ok(())
    }

    pub(super) fn ensure_agent(&mut self, site: &str) -> &mut Step {
        let site = site.to_owned();
        self.then(
            format!("ensure-agent-{site}"),
            format!("See to it that lifeboat protect runs at {site}"),
            Action::EnsureAgent { site },
        )
    }

    /// A second look at an agent in the same run-book, under an id of its own.
    pub(super) fn ensure_agent_again(&mut self, site: &str, why: &str) {
        let id = format!("ensure-agent-{site}-{why}");
        self.ensure_agent(site).id = id.clone();
        self.last = vec![id];
    }

    pub(super) fn promote(&mut self) -> &mut Step {
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

    /// Where the plan asks for a lease, nothing starts before the site's host holds it.
    pub(super) fn await_lease(&mut self, site: &str, epoch: u64, suffix: &str) {
        let Some(ttl) = self.service.lease else { return };
        let (site, write_domain) = (site.to_owned(), self.domain());
        let step = self.then(
            format!("await-lease-{site}{suffix}"),
            format!("Wait until {site} holds the lease of `{write_domain}` ({ttl}) under epoch {epoch}"),
            Action::AwaitLease { site, write_domain, epoch },
        );
        step.timeout = Span(SHORT.0 + ttl.0);
    }

    /// Reserves the place and restores every protected data set there; all within a branch if `when` is given.
    pub(super) fn restore_all(&mut self, when: Option<Condition>) -> Result<(), CompileError> {
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
            let (timeout, thaws_first) = (self.restore_time(&dataset), self.thaws_first(&dataset));
            let step = self.then(
                format!("restore-{dataset}"),
                format!("Restore `{dataset}` at {site} from the {}{thaws_first}", said(&target)),
                Action::Restore { site: site.clone(), volume, target, in_place: false, approved: self.may_give_way() },
            );
            step.when = in_branch.clone();
            step.timeout = timeout;
            step.retries = 3;
            ends.append(&mut self.last);
        }
        self.last = ends;
        Ok(())
    }

    /// The time that a restore may take, and before it what must be thawed.
    pub(super) fn restore_time(&self, dataset: &str) -> Span {
        let thaws = self.inventory.archived.get(dataset).map_or(0, |archived| thaw_patience(archived.thaw).0.as_secs());
        Span::seconds(LONG.0.as_secs().saturating_add(thaws))
    }

    /// What is thawed before a restore, for its title.
    pub(super) fn thaws_first(&self, dataset: &str) -> String {
        self.inventory.archived.get(dataset).map_or_else(String::new, |archived| format!("; {}", archived.describe()))
    }

    /// How much older than the newest a restored state may be: where writers were stopped for it, not at all.
    pub(super) fn may_give_way(&self) -> Option<Span> {
        match self.request.purpose {
            Purpose::Switchover | Purpose::Failback => None,
            _ => Some(self.objective.rpo),
        }
    }

    /// Starts the whole service at a site in its components' order, each healthy before the next.
    pub(super) fn start_all(&mut self, site: &str) -> Result<(), CompileError> {
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
    pub(super) fn prove(&mut self, send: bool) -> Result<(), CompileError> {
        let to = self.to.clone();
        self.prove_at(&to, send, "")
    }

    pub(super) fn prove_at(&mut self, site: &str, send: bool, suffix: &str) -> Result<(), CompileError> {
        let Some(traffic) = &self.service.traffic else {
            return Err(CompileError::NoTraffic { service: self.service.name.clone() });
        };
        let isolated = self.request.isolation.as_ref().map(|isolation| &isolation.authority);
        let arbiter = isolated.map(|authority| authority.arbiter.clone());
        let authority = Some(isolated.map_or_else(|| traffic.authority().to_owned(), |own| own.listen.clone()));
        let place = self.place(site)?;
        let answers = place.answers(100);
        let port = place.front().and_then(|front| front.port);
        let health = place.front_health().map_err(|source| self.template(source))?;
        if send {
            let step = self.then(
                "send-traffic",
                format!("Answer {} with {site}", traffic.name),
                Action::SetTraffic {
                    name: traffic.name.clone(),
                    authority: authority.clone().unwrap_or_default(),
                    ttl: traffic.ttl,
                    answers,
                    arbiter,
                },
            );
            step.retries = 5;
        }
        if let Some(health) = health {
            let step = self.then(
                format!("await-service{suffix}"),
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
            self.note_not_covered("the service's health: no component that traffic reaches has a health check");
        }
        if self.request.purpose == Purpose::Start {
            // Nothing was written before that could come back.
        } else if let Some(canary) = &self.service.canary {
            self.then(
                format!("read-canary{suffix}"),
                "Read a canary back that was written before",
                Action::ReadCanary { name: traffic.name.clone(), authority, port, read: canary.read.clone() },
            );
        } else {
            self.note_not_covered("that old data is served: the plan has no canary");
        }
        Ok(())
    }

    /// From the commit point to the end, the same on every way: the target writes, serves, is proven and is protected.
    /// `lost` are the sites that cannot stand by.
    pub(super) fn take_over(&mut self, send: bool, lost: &[Name]) -> Result<(), CompileError> {
        let to = self.to.clone();
        self.promote();
        self.await_lease(&to, self.epoch(), "");
        self.lift_fence(&to);
        self.start_all(&to)?;
        self.prove(send)?;
        self.reprotect();
        self.restandby(lost);
        Ok(())
    }

    /// Arranges protection anew around the new writer; without it a run is not complete.
    pub(super) fn reprotect(&mut self) {
        let (to, epoch) = (self.to.clone(), self.epoch());
        self.reprotect_at(&to, epoch, "");
    }

    fn note_not_covered(&mut self, what: &str) {
        if !self.not_covered.iter().any(|known| known == what) {
            self.not_covered.push(what.to_owned());
        }
    }

    pub(super) fn reprotect_at(&mut self, site: &str, epoch: u64, suffix: &str) {
        let to = site.to_owned();
        let datasets = self.protected();
        let mut outside: Vec<Name> = self
            .service
            .datasets()
            .filter(|(_, dataset)| dataset.is_recovered())
            .flat_map(|(_, dataset)| &dataset.protect)
            .map(|protect| protect.to.clone())
            .filter(|vault| self.plan.vaults.get(vault).is_some_and(|vault| vault.site.as_ref() != Some(&to)))
            .collect();
        outside.sort();
        outside.dedup();
        if datasets.is_empty() || outside.is_empty() {
            let step = self.then(
                format!("protect-again{suffix}"),
                format!("Protect {to} outside itself"),
                Action::Lack {
                    what: format!("no vault outside {to} protects `{}`: it has no protection there", self.service.name),
                },
            );
            step.on_failure = OnFailure::Note;
            step.retries = 0;
        } else {
            let (write_domain, rpo) = (self.domain(), self.objective.rpo);
            let timeout = Span::seconds(rpo.0.as_secs().max(120) * 2);
            let step = self.then(
                format!("protect-again{suffix}"),
                format!("Wait until {to} is protected outside itself, with RPO now within {rpo}"),
                Action::AwaitProtection { write_domain, site: to, datasets, vaults: outside, rpo, epoch },
            );
            step.timeout = timeout;
            step.retries = 0;
        }
    }

    /// A standby somewhere else, where the strategy wants one.
    pub(super) fn restandby(&mut self, lost: &[Name]) {
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
    pub(super) fn can_follow(&self, site: &str) -> bool {
        self.protected().iter().all(|dataset| {
            self.plan.keys.holders.iter().any(|holder| {
                holder.purpose == crate::plan::KeyPurpose::Standby
                    && holder.held_at == site
                    && holder.datasets.iter().any(|named| named == dataset)
            })
        })
    }

    pub(super) fn assess_loss(&mut self) -> Result<(), CompileError> {
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
    pub(super) fn lost_sites(&self, from: &str) -> Vec<Name> {
        let Some(lost) = self.plan.sites.get(from) else { return vec![from.to_owned()] };
        self.plan
            .sites
            .iter()
            .filter(|(name, site)| lost_with(&self.request.scenario, from, lost, name, site))
            .map(|(name, _)| name.clone())
            .collect()
    }

    pub(super) fn lift_fence(&mut self, site: &str) {
        let (site, write_domain) = (site.to_owned(), self.domain());
        self.then(
            format!("lift-fence-{site}"),
            format!("Let instances start at {site}"),
            Action::LiftFence { site, write_domain },
        );
    }

    /// Nothing of the service runs where it comes to, normally. But one that was given up there may have lived on, and
    /// would keep, or be taken for, what is put in its place.
    pub(super) fn clear(&mut self, site: &str) -> Result<(), CompileError> {
        let (mut instances, site) = (self.all_instances(site)?, site.to_owned());
        instances.reverse();
        let longest = instances.iter().map(|instance| instance.stop_within.0.as_secs()).sum::<u64>();
        let write_domain = Some(self.domain());
        let step = self.then(
            format!("clear-{site}"),
            format!("Stop what of the service still runs at {site}"),
            Action::StopInstances { site, instances, write_domain },
        );
        step.timeout = Span::seconds(longest + 30);
        Ok(())
    }

    pub(super) fn stop_and_freeze(&mut self, site: &str) -> Result<(), CompileError> {
        let instances = self.all_instances(site)?;
        let (write_domain, datasets) = (self.domain(), self.protected());
        let site = site.to_owned();
        let mut stopped: Vec<InstanceSpec> = instances.clone();
        stopped.reverse();
        let longest = instances.iter().map(|instance| instance.stop_within.0.as_secs()).sum::<u64>();
        let step = self.then(
            format!("stop-{site}"),
            format!("Stop the service at {site}: from here on nothing is written"),
            Action::StopInstances { site: site.clone(), instances: stopped, write_domain: Some(write_domain.clone()) },
        );
        step.timeout = Span::seconds(longest + 30);
        step.undo = Some(Action::StartInstances { site: site.clone(), instances });
        step.on_failure = OnFailure::Unwind;
        let step = self.then(
            format!("freeze-{site}"),
            format!("Take the last recovery point and log at {site}"),
            Action::Freeze { write_domain: write_domain.clone(), site: site.clone(), datasets },
        );
        // The service stands still meanwhile: soon somebody has to hear of it.
        step.timeout = Span::seconds(600);
        step.undo = Some(Action::Unfreeze { write_domain, site });
        step.on_failure = OnFailure::Unwind;
        Ok(())
    }

    pub(super) fn finish(mut self) -> Runbook {
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

pub(super) fn said(target: &Target) -> String {
    match target {
        Target::Newest => "newest recovery point and log".into(),
        Target::At(time) => format!("last state at or before {time}"),
        Target::Point(id) => format!("recovery point {id}"),
        Target::Position(place) => format!("log up to {place}"),
        Target::Named(name) => format!("restore point `{name}`"),
    }
}
