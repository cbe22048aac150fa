//! `{{ … }}` in the plan's texts.
//!
//! Invariant: what passes here is filled in at every place where the service can run.

use std::collections::BTreeSet;

use super::super::grammar::{closest, list};
use super::super::model::*;
use super::Checker;

pub(super) fn check(checker: &mut Checker<'_>) {
    for service in checker.plan.services.values() {
        for component in &service.components {
            let known = known(service, component);
            for (path, text) in texts(service, component) {
                let path: Vec<&str> = path.iter().map(String::as_str).collect();
                one(checker, service, component, &known, &path, text);
            }
        }
        if let Some(canary) = &service.canary {
            for (key, exchange) in [("write", &canary.write), ("read", &canary.read)] {
                let texts = [
                    ("http", Some(&exchange.request)),
                    ("body", exchange.body.as_ref()),
                    ("expect", exchange.expect.as_ref()),
                ];
                for (field, text) in texts.into_iter().filter_map(|(field, text)| Some((field, text?))) {
                    canary_text(checker, &["service", &service.name, "canary", key, field], text);
                }
            }
        }
    }
}

/// Every text of a component that may hold templates, with where it stands.
pub(super) fn texts<'a>(service: &'a Service, component: &'a Component) -> Vec<(Vec<String>, &'a str)> {
    let base: Vec<String> =
        ["service", &service.name, "component", &component.name].iter().map(|part| (*part).to_owned()).collect();
    let path =
        |rest: &[&str]| base.iter().cloned().chain(rest.iter().map(|part| (*part).to_owned())).collect::<Vec<_>>();
    let mut texts: Vec<(Vec<String>, &str)> = Vec::new();
    let command = |texts: &mut Vec<(Vec<String>, &'a str)>, at: &[&str], command: &'a [String]| {
        for (number, text) in command.iter().enumerate() {
            texts.push((path(&[at, &[&number.to_string()]].concat()), text));
        }
    };
    if let Some(launch) = &component.launch {
        command(&mut texts, &["launch", "command"], &launch.command);
        for (name, value) in &launch.env {
            if let Value::Text(text) = value {
                texts.push((path(&["launch", "env", name]), text));
            }
        }
        texts.extend(launch.directory.iter().map(|text| (path(&["launch", "directory"]), text.as_str())));
    }
    match component.health.as_ref().map(|health| &health.probe) {
        Some(Probe::Http(text)) => texts.push((path(&["health", "http"]), text)),
        Some(Probe::Command(parts)) => command(&mut texts, &["health", "command"], parts),
        _ => {}
    }
    for dataset in &component.datasets {
        if let Some(parts) = &dataset.rebuild {
            command(&mut texts, &["dataset", &dataset.name, "rebuild"], parts);
        }
    }
    texts
}

/// The names in `{{ … }}`; `Err` for one that is never closed.
fn names(text: &str) -> Result<Vec<&str>, ()> {
    let mut names = Vec::new();
    let mut rest = text;
    while let Some((_, inner)) = rest.split_once("{{") {
        let (name, after) = inner.split_once("}}").ok_or(())?;
        names.push(name.trim());
        rest = after;
    }
    Ok(names)
}

fn known(service: &Service, component: &Component) -> BTreeSet<String> {
    let mut known: BTreeSet<String> = ["site.name", "site.address", "instance.address", "instance.number"]
        .iter()
        .map(|name| (*name).to_owned())
        .collect();
    if component.port.is_some() {
        known.insert("instance.port".to_owned());
    }
    for other in &service.components {
        known.insert(format!("component.{}.address", other.name));
        if other.port.is_some() || reached_by_service(other) {
            known.insert(format!("component.{}.url", other.name));
        }
        for dataset in &other.datasets {
            if dataset.source.path().is_some() {
                known.insert(format!("dataset.{}.path", dataset.name));
            }
        }
    }
    known
}

/// A database server's URL comes from its connection service, not from a port.
fn reached_by_service(component: &Component) -> bool {
    component.datasets.iter().any(|dataset| matches!(dataset.source, Source::Postgres { .. } | Source::Mariadb { .. }))
}

fn one(
    checker: &mut Checker<'_>,
    service: &Service,
    component: &Component,
    known: &BTreeSet<String>,
    path: &[&str],
    text: &str,
) {
    let Ok(names) = names(text) else {
        checker.error("P0209", path, "`{{` is never closed", "write `}}` after the name");
        return;
    };
    for name in names {
        if !known.contains(name) {
            let help = match closest(name, known.iter().map(String::as_str)) {
                Some(close) => format!("did you mean `{{{{ {close} }}}}`?"),
                None => format!("known here are {}", list(known.iter().map(String::as_str))),
            };
            checker.error("P0209", path, format!("`{{{{ {name} }}}}` stands for nothing here"), help);
            continue;
        }
        let other = name.strip_prefix("component.").and_then(|rest| rest.split('.').next());
        if let Some(other) = other.filter(|other| *other != component.name && !waits_for(service, component, other)) {
            let message = format!("`{}` uses `{other}` but does not wait for it", component.name);
            checker.warning("P0215", path, message, format!("add after = [\"{other}\"] to `{}`", component.name));
        }
    }
}

/// Whether a component starts only after another one, directly or not.
fn waits_for(service: &Service, component: &Component, other: &str) -> bool {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    let mut waiting: Vec<&str> = component.after.iter().map(String::as_str).collect();
    while let Some(name) = waiting.pop() {
        if seen.insert(name) {
            let next = service.components.iter().filter(|component| component.name == name);
            waiting.extend(next.flat_map(|component| component.after.iter().map(String::as_str)));
        }
    }
    seen.contains(other)
}

fn canary_text(checker: &mut Checker<'_>, path: &[&str], text: &str) {
    match names(text) {
        Err(()) => checker.error("P0209", path, "`{{` is never closed", "write `}}` after the name"),
        Ok(names) => {
            for name in names.into_iter().filter(|name| *name != "canary.value") {
                let message = format!("`{{{{ {name} }}}}` stands for nothing here");
                checker.error("P0209", path, message, "a canary knows `{{ canary.value }}` only");
            }
        }
    }
}
