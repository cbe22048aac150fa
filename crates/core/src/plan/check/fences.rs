//! Whether the lost site can be proven not to write any more, without a person.
//!
//! Invariant: "it cannot be reached" never counts as a proof.

use serde::Serialize;

use super::super::model::*;
use super::{Checker, places};
use crate::lease;
use crate::units::Span;

/// For one service in one scenario: what would prove that its primary site does not write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FenceOutlook {
    pub service: Name,
    pub scenario: Name,
    pub site: Name,
    /// None means that a run holds until a person attests it.
    pub proof: Option<&'static str>,
}

/// Every scenario: the built-in ones, then the plan's own.
pub fn scenarios(plan: &Plan) -> Vec<&str> {
    let built_in = BUILT_IN_SCENARIOS.iter().map(|(name, _)| *name);
    let own = plan.scenarios.keys().map(String::as_str);
    built_in.chain(own.filter(|name| !BUILT_IN_SCENARIOS.iter().any(|(known, _)| known == name))).collect()
}

/// Every service in every scenario.
pub fn fence_outlook(plan: &Plan) -> Vec<FenceOutlook> {
    let mut outlook = Vec::new();
    for service in plan.services.values() {
        for scenario in scenarios(plan) {
            outlook.push(FenceOutlook {
                service: service.name.clone(),
                scenario: scenario.to_owned(),
                site: service.primary.clone(),
                proof: proof(plan, service, scenario),
            });
        }
    }
    outlook
}

fn proof(plan: &Plan, service: &Service, scenario: &str) -> Option<&'static str> {
    let site = plan.sites.get(&service.primary)?;
    match (&site.reach, service.lease) {
        (Reach::Local { .. }, None) => {
            return Some("the supervisor finds no process, no open file and no listener left");
        }
        (Reach::Local { .. }, Some(_)) => {
            return Some(
                "the supervisor finds no process, no open file and no listener left; or its lease has run out, and its watchdog stops it",
            );
        }
        (Reach::Command { .. }, None) => return Some("the site's own command says so"),
        (Reach::Command { .. }, Some(_)) => {
            return Some("the site's own command says so; or its lease has run out, and its watchdog stops it");
        }
        (Reach::Ssh | Reach::Aws, _) => {}
    }
    // The site is still there, and its hosts do as they are told.
    if matches!(scenario, "data-corrupted" | "data-destroyed") {
        return Some("its hosts stop what writes, and show it");
    }
    let mut written = service
        .datasets()
        .filter(|(_, dataset)| dataset.kind == DataKind::Persistent && !dataset.source.is_dump())
        .peekable();
    let quorum = |dataset: &DataSet| match &dataset.source {
        Source::Postgres { .. } => dataset.awaited(&service.primary).is_some_and(|awaited| awaited.needs_a_site()),
        _ => dataset.replica.as_ref().is_some_and(|replica| replica.mode == CommitMode::SyncRequired),
    };
    if written.peek().is_some() && written.all(|(_, dataset)| quorum(dataset)) {
        return Some("no commit is possible there without the replica");
    }
    (matches!(site.reach, Reach::Aws) && matches!(scenario, "instance-lost" | "zone-lost"))
        .then_some("the provider reports it stopped")
}

/// A lease that nobody could hold, or that recovery waits for longer than it may take.
fn check_lease(checker: &mut Checker<'_>, service: &Service) {
    let Some(ttl) = service.lease else { return };
    let path = ["service", service.name.as_str(), "lease"];
    if ttl < lease::TTL_MIN || ttl > lease::TTL_MAX {
        let (least, most) = (lease::TTL_MIN, lease::TTL_MAX);
        let message = format!("a lease of {ttl} is too {}", if ttl < least { "short" } else { "long" });
        let help = format!(
            "give it between {least} and {most}: the arbiter must answer, and the writer be stopped, within it"
        );
        checker.error("P0334", &path, message, help);
        return;
    }
    let has_none = |site: &&str| {
        let reach = checker.plan.sites.get(*site).map(|site| &site.reach);
        matches!(reach, Some(Reach::Ssh | Reach::Aws))
    };
    if let Some(site) = places(service).find(has_none) {
        let message = format!("nothing at `{site}` could stop `{}` when its lease runs out", service.name);
        let help = "leave `lease` out, or reach every site of the service by \"local\" or \"command\"";
        checker.error("P0335", &path, message, help);
        return;
    }
    let own = service.objectives.iter().map(|(scenario, objective)| (Some(scenario), objective.rto));
    let all = std::iter::once((None, service.objective.rto)).chain(own);
    let waits = Span(ttl.0 + lease::skew(ttl).0);
    if let Some((scenario, rto)) = all.filter(|(_, rto)| *rto <= waits).min_by_key(|(_, rto)| *rto) {
        let which = scenario.map_or_else(String::new, |scenario| format!(" in `{scenario}`"));
        let message = format!(
            "where only the lease proves the fence, recovery of `{}` waits {waits} for it, and its RTO{which} is {rto}",
            service.name
        );
        checker.warning("P0336", &path, message, "make the lease shorter than what may pass until the service is back");
    }
}

pub(super) fn check(checker: &mut Checker<'_>) {
    for service in checker.plan.services.values() {
        check_lease(checker, service);
    }
    let outlook = fence_outlook(checker.plan);
    for service in checker.plan.services.values() {
        let unproven = outlook.iter().filter(|outlook| outlook.service == service.name && outlook.proof.is_none());
        let scenarios: Vec<String> = unproven.map(|outlook| format!("`{}`", outlook.scenario)).collect();
        if scenarios.is_empty() {
            continue;
        }
        let message = format!(
            "nothing can prove unattended that `{}` has stopped writing in {}",
            service.primary,
            scenarios.join(", ")
        );
        let path = ["service", service.name.as_str(), "primary"];
        checker.warning(
            "P0604",
            &path,
            message,
            "a run will hold until a person attests it; a synchronous replica or a provider's API would be a proof",
        );
        let acts = checker.plan.watch.as_ref().is_some_and(|watch| watch.on_verdict != OnVerdict::Ask);
        if acts {
            let message = format!("recovery of `{}` is to start by itself, and would hold at the fence", service.name);
            checker.warning(
                "P0605",
                &["watch", "on-verdict"],
                message,
                "set on-verdict = \"ask\", or make a proof possible",
            );
        }
    }
}
