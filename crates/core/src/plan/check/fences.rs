//! Whether the lost site can be proven not to write any more, without a person.
//!
//! Invariant: "it cannot be reached" never counts as a proof.

use serde::Serialize;

use super::super::model::*;
use super::Checker;

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
    match site.reach {
        Reach::Local { .. } => return Some("the supervisor finds no process, no open file and no listener left"),
        Reach::Command { .. } => return Some("the site's own command says so"),
        Reach::Ssh | Reach::Aws => {}
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

pub(super) fn check(checker: &mut Checker<'_>) {
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
