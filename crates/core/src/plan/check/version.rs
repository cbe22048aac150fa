//! What the language has and this version does not act on yet.
//!
//! Invariant: nothing in a plan is ignored in silence.

use super::super::model::*;
use super::Checker;

pub(super) fn check(checker: &mut Checker<'_>) {
    for (name, site) in &checker.plan.sites {
        match site.reach {
            Reach::Ssh => not_yet(checker, &["site", name, "reach"], "reach = \"ssh\""),
            Reach::Aws => not_yet(checker, &["site", name, "reach"], "reach = \"aws\""),
            Reach::Local { .. } | Reach::Command { .. } => {}
        }
    }
    for service in checker.plan.services.values() {
        let path = ["service", service.name.as_str()];
        match service.strategy {
            Strategy::PilotLight => {
                not_yet(checker, &[&path[..], &["strategy"]].concat(), "the strategy \"pilot-light\"")
            }
            Strategy::MultiSite => {
                not_yet(checker, &[&path[..], &["strategy"]].concat(), "the strategy \"multi-site\"")
            }
            Strategy::BackupRestore | Strategy::WarmStandby => {}
        }
        if let Some(Traffic { dns: Dns::Rfc2136 { .. }, .. }) = service.traffic {
            not_yet(checker, &[&path[..], &["traffic", "dns", "rfc2136"]].concat(), "dynamic updates of a name server");
        }
        for (component, dataset) in service.datasets() {
            let waits = dataset.replica.as_ref().is_some_and(|replica| !replica.mode.is_async());
            if waits && !matches!(dataset.source, Source::Postgres { .. }) {
                let keys = ["component", &component.name, "dataset", &dataset.name, "replica"];
                not_yet(checker, &[&path[..], &keys].concat(), "a replica that commits wait for");
            }
        }
        for component in service.components.iter().filter(|component| component.haproxy.is_some()) {
            not_yet(checker, &[&path[..], &["component", &component.name, "haproxy"]].concat(), "HAProxy");
        }
    }
    for held in checker.datasets() {
        let (key, what) = match held.dataset.source {
            Source::Mariadb { .. } => ("mariadb", "MariaDB"),
            Source::Command { .. } => ("command", "data that commands read and write"),
            Source::Files { .. } | Source::Sqlite { .. } | Source::Nothing => continue,
            Source::Postgres { .. } | Source::PostgresDump { .. } => continue,
        };
        not_yet(checker, &held.path_to(&[key]), what);
    }
    if let Some(watch) = &checker.plan.watch {
        match watch.on_verdict {
            OnVerdict::Ask => not_yet(checker, &["watch"], "watching by observers"),
            OnVerdict::Act { .. } => not_yet(checker, &["watch", "on-verdict"], "recovery that starts by itself"),
        }
    }
}

fn not_yet(checker: &mut Checker<'_>, path: &[&str], what: &str) {
    let message = format!("{what}: understood, but this version of lifeboat does not act on it yet");
    checker.note("P0901", path, message, "the plan may say it; the README says what works today");
}
