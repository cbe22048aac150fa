//! From a plan, an inventory and a purpose to a run-book.
//!
//! Invariant: the compiler decides and the executor executes. A promotion is always preceded by a fence of the site it
//! takes the write domain from; what can only be known on the night stands as a branch with its condition.

mod build;
mod ladder;
#[cfg(test)]
mod tests;
mod ways;

use std::collections::BTreeMap;

use crate::plan::{Name, Plan, Service, Site, Strategy};
use crate::units::{Size, Span};

use super::place::Isolation;
use super::template::TemplateError;
use super::{Purpose, Runbook, Target};
use build::Builder;

/// What is known of the world when a run-book is compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    /// The epoch in force in the service's write domain.
    pub epoch: u64,
    /// The site that writes now, and the epoch under which it was named: a claim that came to nothing leaves it behind.
    pub writer: Name,
    pub writer_epoch: u64,
    /// RFC 3339.
    pub compiled_at: String,
    pub plan_hash: String,
    /// Of data sets that are to be restored: what must be thawed for that, as far as the vaults say.
    pub archived: BTreeMap<Name, Archived>,
}

/// What of a data set lies where it must be thawed before it can be restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archived {
    /// The storage's own word for it.
    pub class: String,
    /// 0 where it is not known how many: the vault could not be read.
    pub packs: u64,
    pub bytes: u64,
    /// Until it can be read.
    pub thaw: Span,
}

impl Archived {
    fn describe(&self) -> String {
        if self.packs == 0 {
            let (class, thaw) = (&self.class, self.thaw);
            return format!("first what lies in the class {class} is thawed, by the plan up to {thaw}");
        }
        let packs = if self.packs == 1 { "pack" } else { "packs" };
        let size = Size(self.bytes).rounded();
        format!("thaws first {} {packs} ({size}) in the class {}, up to {}", self.packs, self.class, self.thaw)
    }
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
    #[error("a drill needs surroundings of its own, and none were prepared at its site")]
    NotIsolated,
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

/// Whether what the writer's site had written may lie there still, though its service is gone: the others take its volumes with it.
pub fn leaves_volumes(scenario: &str) -> bool {
    scenario == "instance-lost"
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
    let mut builder = Builder::new(plan, service, inventory, request, to);
    match request.purpose {
        Purpose::Failover => builder.failover()?,
        Purpose::Switchover | Purpose::Failback => builder.switchover()?,
        Purpose::Rewind => builder.rewind()?,
        Purpose::Drill => builder.drill()?,
        Purpose::Start => builder.start()?,
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
        (_, Purpose::Start) => inventory.writer.clone(),
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
    let moves = !matches!(request.purpose, Purpose::Rewind | Purpose::Drill | Purpose::Start);
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

/// The purpose as a word that starts a sentence.
pub fn title_of(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Failover => "Failover",
        Purpose::Switchover => "Planned failover",
        Purpose::Failback => "Failback",
        Purpose::Rewind => "Return to an earlier moment",
        Purpose::Drill => "Drill",
        Purpose::Start => "Start",
    }
}
