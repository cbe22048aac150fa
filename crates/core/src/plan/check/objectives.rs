//! Objectives that the plan as written cannot meet, and why.
//!
//! Invariant: nothing here stops a recovery: a promise that is not kept is a warning.

use super::super::model::*;
use super::{Checker, Held};
use crate::units::{Size, Span};

pub(super) fn check(checker: &mut Checker<'_>) {
    for service in checker.plan.services.values() {
        for (scenario, objective) in objectives(service) {
            recovery_time(checker, service, scenario, objective);
            transfer(checker, service, scenario, objective);
        }
        canary(checker, service);
        if !checker.plan.drills.values().any(|drill| drill.service == service.name) {
            let message = format!("no drill rehearses the recovery of `{}`", service.name);
            checker.note(
                "P0706",
                &["service", &service.name],
                message,
                "add a [drill.…] for it: what is not rehearsed is unproven",
            );
        }
    }
    for held in checker.datasets().filter(|held| held.dataset.kind == DataKind::Persistent) {
        recovery_point(checker, held);
    }
}

/// The service's own objective (no scenario), and those for one scenario that differ from it.
fn objectives(service: &Service) -> Vec<(Option<&str>, Objective)> {
    let own = service.objectives.iter().map(|(scenario, objective)| (Some(scenario.as_str()), *objective));
    std::iter::once((None, service.objective)).chain(own).collect()
}

fn objective_path<'a>(service: &'a Service, scenario: Option<&'a str>, key: &'a str) -> Vec<&'a str> {
    match scenario {
        Some(scenario) => vec!["service", &service.name, "objective", scenario, key],
        None => vec!["service", &service.name, key],
    }
}

fn recovery_point(checker: &mut Checker<'_>, held: Held<'_>) {
    let Held { service, dataset, .. } = held;
    // A second form of what is protected by itself needs not be as new.
    let is_second = dataset.source.is_dump() && held.has_cluster_beside();
    if dataset.protect.is_empty() || is_second {
        return;
    }
    let is_outside = |vault: &Name| {
        let vault = checker.plan.vaults.get(vault);
        vault.is_some_and(|vault| vault.site.as_ref() != Some(&service.primary))
    };
    // Of any so many places one must lie outside, however they are chosen.
    let synchronous = match (&dataset.source, dataset.awaited(&service.primary), &dataset.replica) {
        (Source::Postgres { .. }, awaited, _) => awaited.is_some_and(|awaited| {
            let inside = awaited.vaults.iter().filter(|vault| !is_outside(vault)).count();
            awaited.mode == CommitMode::SyncRequired && awaited.copies as usize > inside
        }),
        (_, _, replica) => replica.as_ref().is_some_and(|replica| replica.mode == CommitMode::SyncRequired),
    };
    let streamed = dataset.protect.iter().any(|protect| protect.log);
    let strictest = objectives(service).into_iter().min_by_key(|(_, objective)| objective.rpo);
    let Some((scenario, objective)) = strictest else { return };
    let path = objective_path(service, scenario, "rpo");
    // With a stream, what is in flight is lost: a second or two.
    if objective.rpo < Span::seconds(1) && !synchronous {
        let message = format!(
            "an RPO of {} cannot be met for `{}`: what was written in the last moments is always lost",
            objective.rpo, dataset.name
        );
        checker.warning(
            "P0705",
            &path,
            message,
            "nothing is lost only where commits wait for a vault outside the site, or a replica (mode = \"sync-required\"); else allow a few seconds",
        );
        return;
    }
    if streamed || synchronous {
        return;
    }
    let shortest = dataset
        .protect
        .iter()
        .filter_map(|protect| Some((protect, protect.every.longest_gap()?)))
        .min_by_key(|(_, gap)| *gap);
    if let Some((protect, gap)) = shortest
        && gap > objective.rpo
    {
        let number = dataset.protect.iter().position(|other| std::ptr::eq(other, protect)).unwrap_or(0).to_string();
        let base = held.path_to(&["protect"]);
        let place = [&base[..], &[number.as_str()]].concat();
        let message = format!("`{}` gets a recovery point every {gap}, and the RPO is {}", dataset.name, objective.rpo);
        let help = match dataset.source {
            Source::Sqlite { .. } | Source::Postgres { .. } | Source::Mariadb { .. } => {
                "add log = \"stream\", or take points more often"
            }
            _ => "take points more often, or allow a longer RPO",
        };
        checker.warning("P0701", &place, message, help);
        checker.related(&path, "the objective");
    }
}

fn recovery_time(checker: &mut Checker<'_>, service: &Service, scenario: Option<&str>, objective: Objective) {
    let path = objective_path(service, scenario, "rto");
    if let Some(traffic) = &service.traffic
        && traffic.ttl >= objective.rto
    {
        let message =
            format!("resolvers may keep the old answer for {}, and the RTO is {}", traffic.ttl, objective.rto);
        checker.warning(
            "P0703",
            &["service", &service.name, "traffic", "ttl"],
            message,
            "shorten `ttl` to a small part of the RTO",
        );
        checker.related(&path, "the objective");
        return;
    }
    let starts: u64 = service
        .components
        .iter()
        .filter_map(|component| component.health.as_ref())
        .map(|health| health.within.0.as_secs())
        .sum();
    let ttl = service.traffic.as_ref().map_or(0, |traffic| traffic.ttl.0.as_secs());
    if Span::seconds(starts + ttl) > objective.rto {
        let message = format!(
            "components may take {} to start and resolvers {} to follow, and the RTO is {}",
            Span::seconds(starts),
            Span::seconds(ttl),
            objective.rto
        );
        checker.warning("P0702", &path, message, "shorten what `health.within` and `ttl` allow, or allow a longer RTO");
    }
}

/// What has to be fetched from a vault before anything starts.
fn transfer(checker: &mut Checker<'_>, service: &Service, scenario: Option<&str>, objective: Objective) {
    if service.strategy != Strategy::BackupRestore {
        return;
    }
    let bytes: u64 = service
        .datasets()
        .filter(|(_, dataset)| !dataset.source.is_dump())
        .filter_map(|(_, dataset)| dataset.size)
        .fold(0, |sum, size| sum.saturating_add(size.0));
    for name in &service.recovery {
        let Some(rate) = checker.site(name).and_then(|site| site.bandwidth) else { continue };
        let takes = Span::seconds(bytes / rate.bytes_per_second.max(1));
        if takes > objective.rto {
            let path = objective_path(service, scenario, "rto");
            let message =
                format!("fetching {} at {rate} takes `{name}` {takes}, and the RTO is {}", Size(bytes), objective.rto);
            checker.warning(
                "P0707",
                &path,
                message,
                "use strategy = \"warm-standby\", widen the way, or allow a longer RTO",
            );
            checker.related(&["site", name, "bandwidth"], "the way");
        }
    }
}

fn canary(checker: &mut Checker<'_>, service: &Service) {
    let Some(canary) = &service.canary else { return };
    let strictest = objectives(service).into_iter().min_by_key(|(_, objective)| objective.rpo);
    if let Some((scenario, objective)) = strictest
        && canary.every > objective.rpo
    {
        let message = format!("a canary every {} cannot show a loss of {}", canary.every, objective.rpo);
        checker.warning(
            "P0704",
            &["service", &service.name, "canary", "every"],
            message,
            "write one at least as often as the RPO is long",
        );
        checker.related(&objective_path(service, scenario, "rpo"), "the objective");
    }
}
