//! Names that the plan uses and declares.
//!
//! Invariant: when nothing is found here, every name in the plan leads somewhere.

use std::collections::{BTreeMap, BTreeSet};

use super::super::grammar::{closest, list};
use super::super::model::*;
use super::{Checker, Held};

pub(super) fn check(checker: &mut Checker<'_>) {
    sites(checker);
    scenarios(checker);
    for service in checker.plan.services.values() {
        recovery_sites(checker, service);
        components(checker, service);
    }
    datasets(checker);
    keys(checker);
    traffic(checker);
    for (name, drill) in &checker.plan.drills {
        let known: Vec<&str> = checker.plan.services.keys().map(String::as_str).collect();
        unknown(checker, "P0205", "service", &drill.service, &known, &["drill", name, "service"]);
        scenario(checker, &drill.scenario, &["drill", name, "scenario"]);
    }
}

/// Says that `name` is not among `known`, if it is not.
fn unknown(checker: &mut Checker<'_>, code: &'static str, what: &str, name: &str, known: &[&str], path: &[&str]) {
    if known.contains(&name) {
        return;
    }
    let help = match (closest(name, known.iter().copied()), known) {
        (Some(close), _) => format!("did you mean `{close}`?"),
        (None, []) => format!("the plan declares no {what} at all"),
        (None, known) => format!("the plan has {}", list(known.iter().copied())),
    };
    checker.error(code, path, format!("there is no {what} `{name}`"), help);
}

fn site(checker: &mut Checker<'_>, name: &str, path: &[&str]) {
    let known: Vec<&str> = checker.plan.sites.keys().map(String::as_str).collect();
    unknown(checker, "P0201", "site", name, &known, path);
}

fn scenario(checker: &mut Checker<'_>, name: &str, path: &[&str]) {
    let mut known: Vec<&str> = BUILT_IN_SCENARIOS.iter().map(|(name, _)| *name).collect();
    known.extend(checker.plan.scenarios.keys().map(String::as_str));
    known.dedup();
    unknown(checker, "P0206", "scenario", name, &known, path);
}

fn sites(checker: &mut Checker<'_>) {
    for (name, vault) in &checker.plan.vaults {
        if let Some(at) = &vault.site {
            site(checker, at, &["vault", name, "site"]);
        }
    }
    if let Some(at) = checker.plan.arbiter.as_ref().and_then(|arbiter| arbiter.site.as_ref()) {
        site(checker, at, &["arbiter", "site"]);
    }
    for service in checker.plan.services.values() {
        site(checker, &service.primary, &["service", &service.name, "primary"]);
        for (number, name) in service.recovery.iter().enumerate() {
            site(checker, name, &["service", &service.name, "recovery", &number.to_string()]);
        }
        for name in service.traffic.iter().flat_map(|traffic| traffic.everyday.keys()) {
            site(checker, name, &["service", &service.name, "traffic", "everyday", name]);
        }
    }
}

fn scenarios(checker: &mut Checker<'_>) {
    for (name, declared) in &checker.plan.scenarios {
        if declared.describe.is_empty() {
            let help = "add `describe`: what happens, in a sentence; built-in scenarios have one already";
            checker.error(
                "P0213",
                &["scenario", name],
                format!("nothing says what happens in the scenario `{name}`"),
                help,
            );
        }
    }
    for service in checker.plan.services.values() {
        for name in service.objectives.keys() {
            scenario(checker, name, &["service", &service.name, "objective", name]);
        }
    }
}

fn recovery_sites(checker: &mut Checker<'_>, service: &Service) {
    for (number, name) in service.recovery.iter().enumerate() {
        let position = number.to_string();
        let path = ["service", service.name.as_str(), "recovery", &position];
        if *name == service.primary {
            let message = format!("`{}` cannot be recovered at its primary site `{name}`", service.name);
            checker.error("P0211", &path, message, "name other sites in `recovery`");
            checker.related(&["service", &service.name, "primary"], "the primary site");
        } else if service.recovery[..number].contains(name) {
            checker.error("P0211", &path, format!("`{name}` stands in `recovery` twice"), "name each site once");
        }
    }
}

fn components(checker: &mut Checker<'_>, service: &Service) {
    let known: Vec<&str> = service.components.iter().map(|component| component.name.as_str()).collect();
    for component in &service.components {
        let path = ["service", service.name.as_str(), "component", component.name.as_str()];
        for (number, name) in component.after.iter().enumerate() {
            let number = number.to_string();
            let place = [&path[..], &["after", &number]].concat();
            unknown(checker, "P0203", "component", name, &known, &place);
        }
        for (name, hosts) in &component.runs_on {
            let place = [&path[..], &["runs-on", name]].concat();
            site(checker, name, &place);
            let Some(declared) = checker.site(name) else { continue };
            let known: Vec<&str> = declared.hosts.keys().map(String::as_str).collect();
            for host in hosts {
                unknown(checker, "P0207", &format!("host at `{name}` called"), host, &known, &place);
            }
        }
    }
    if let Some(cycle) = cycle(service) {
        let first = cycle.first().copied().unwrap_or_default();
        let way = cycle.iter().chain([&first]).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" after ");
        let path = ["service", service.name.as_str(), "component", first, "after"];
        checker.error("P0210", &path, format!("components wait for each other: {way}"), "take one `after` out");
    }
}

/// Components that wait for each other, if some do.
fn cycle(service: &Service) -> Option<Vec<&str>> {
    let after: BTreeMap<&str, &[Name]> =
        service.components.iter().map(|component| (component.name.as_str(), component.after.as_slice())).collect();
    let mut free: BTreeSet<&str> = BTreeSet::new();
    loop {
        let is_free = |name: &Name| free.contains(name.as_str()) || !after.contains_key(name.as_str());
        let next = after.iter().find(|(name, waits)| !free.contains(*name) && waits.iter().all(is_free));
        match next {
            Some((name, _)) => free.insert(name),
            None => break,
        };
    }
    let mut name = *after.keys().find(|name| !free.contains(*name))?;
    let mut way: Vec<&str> = Vec::new();
    while !way.contains(&name) {
        way.push(name);
        name = after
            .get(name)?
            .iter()
            .map(String::as_str)
            .find(|next| after.contains_key(next) && !free.contains(next))?;
    }
    let start = way.iter().position(|seen| *seen == name)?;
    Some(way.split_off(start))
}

fn datasets(checker: &mut Checker<'_>) {
    let vaults: Vec<&str> = checker.plan.vaults.keys().map(String::as_str).collect();
    let mut seen: BTreeMap<&str, Held<'_>> = BTreeMap::new();
    for held in checker.datasets() {
        for (number, protect) in held.dataset.protect.iter().enumerate() {
            let place = held.path();
            let number = number.to_string();
            unknown(
                checker,
                "P0202",
                "vault",
                &protect.to,
                &vaults,
                &[&place[..], &["protect", &number, "to"]].concat(),
            );
        }
        if let Some(replica) = &held.dataset.replica {
            site(checker, &replica.at, &held.path_to(&["replica", "at"]));
            for name in replica.via.keys() {
                site(checker, name, &held.path_to(&["replica", "via", name]));
            }
        }
        if let Some(first) = seen.insert(&held.dataset.name, held) {
            let message = format!("there are two data sets `{}`", held.dataset.name);
            checker.error(
                "P0212",
                &held.path(),
                message,
                "rename one: vaults and commands know a data set by its name alone",
            );
            checker.related(&first.path(), "the other one");
        }
    }
}

fn keys(checker: &mut Checker<'_>) {
    let known: Vec<&str> = checker.datasets().map(|held| held.dataset.name.as_str()).collect();
    let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
    for holder in &checker.plan.keys.holders {
        let number = numbers.entry(super::keys::purpose(holder.purpose)).or_default();
        let path = super::keys::path(checker, holder, *number);
        *number += 1;
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        site(checker, &holder.held_at, &[&path[..], &["held-at"]].concat());
        for (number, name) in holder.datasets.iter().enumerate() {
            let number = number.to_string();
            let place = [&path[..], &["datasets", &number]].concat();
            unknown(checker, "P0204", "data set", name, &known, &place);
        }
    }
}

fn traffic(checker: &mut Checker<'_>) {
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    for service in checker.plan.services.values() {
        let Some(traffic) = &service.traffic else { continue };
        if let Some(first) = seen.insert(&traffic.name, &service.name) {
            let message = format!("two services have the name {}", traffic.name);
            checker.error(
                "P0214",
                &["service", &service.name, "traffic", "name"],
                message,
                "give each service a name of its own",
            );
            checker.related(&["service", first, "traffic", "name"], "the other one");
        }
    }
}
