//! Everything that can be said about a well-formed plan before anything runs.
//!
//! Invariant: an error is what makes recovery impossible or unsafe as written; a promise that will not be kept is a
//! warning, so that a plan with an objective out of reach can still be recovered by.

mod fences;
mod keys;
mod names;
mod objectives;
mod places;
mod protection;
mod recovery;
mod templates;
mod verification;
mod version;

pub use fences::{FenceOutlook, fence_outlook, scenarios};
pub use keys::{KeyReach, key_reach};

use super::model::*;
use super::syntax;
use crate::diagnostic::{Diagnostic, Severity, Span};

pub(super) fn check(plan: &Plan, tree: &syntax::Table) -> Vec<Diagnostic> {
    let mut names = Checker { plan, tree, found: Vec::new() };
    names::check(&mut names);
    // What follows looks names up, and would say the same thing again in other words.
    if names.found.iter().any(|found| found.severity == Severity::Error) {
        return names.found;
    }
    let mut checker = Checker { plan, tree, found: names.found };
    for part in [
        templates::check,
        protection::check,
        keys::check,
        places::check,
        recovery::check,
        fences::check,
        objectives::check,
        verification::check,
        version::check,
    ] {
        part(&mut checker);
    }
    checker.found
}

/// A plan, where everything in it stands, and what has been found.
struct Checker<'a> {
    plan: &'a Plan,
    tree: &'a syntax::Table,
    found: Vec<Diagnostic>,
}

impl<'a> Checker<'a> {
    /// Where a path of keys leads, or as far as it leads.
    fn place(&self, path: &[&str]) -> Option<Span> {
        (1..=path.len()).rev().find_map(|length| self.tree.find(&path[..length])).map(|found| found.place())
    }

    /// Whether the plan's text has this.
    fn has(&self, path: &[&str]) -> bool {
        self.tree.find(path).is_some()
    }

    fn error(&mut self, code: &'static str, path: &[&str], message: impl Into<String>, help: impl Into<String>) {
        self.find(Severity::Error, code, path, message.into(), help.into());
    }

    fn warning(&mut self, code: &'static str, path: &[&str], message: impl Into<String>, help: impl Into<String>) {
        self.find(Severity::Warning, code, path, message.into(), help.into());
    }

    fn note(&mut self, code: &'static str, path: &[&str], message: impl Into<String>, help: impl Into<String>) {
        self.find(Severity::Note, code, path, message.into(), help.into());
    }

    fn find(&mut self, severity: Severity, code: &'static str, path: &[&str], message: String, help: String) {
        let span = self.place(path);
        self.found.push(Diagnostic { code, severity, message, span, help: Some(help), related: Vec::new() });
    }

    /// Adds another place to the last finding.
    fn related(&mut self, path: &[&str], label: &str) {
        let place = self.place(path);
        if let (Some(last), Some(place)) = (self.found.last_mut(), place)
            && last.span.as_ref() != Some(&place)
        {
            last.related.push((place, label.to_owned()));
        }
    }

    /// Every data set with its service and component, in the order of the names of services.
    fn datasets(&self) -> impl Iterator<Item = Held<'a>> + use<'a> {
        self.plan.services.values().flat_map(|service| {
            service.datasets().map(move |(component, dataset)| Held { service, component, dataset })
        })
    }

    fn site(&self, name: &str) -> Option<&'a Site> {
        self.plan.sites.get(name)
    }
}

/// A data set and where it belongs.
#[derive(Clone, Copy)]
struct Held<'a> {
    service: &'a Service,
    component: &'a Component,
    dataset: &'a DataSet,
}

impl<'a> Held<'a> {
    fn path(&self) -> Vec<&'a str> {
        vec!["service", &self.service.name, "component", &self.component.name, "dataset", &self.dataset.name]
    }

    /// Whether the component has a cluster's files as a data set that comes back from a vault.
    fn has_cluster_beside(&self) -> bool {
        let is_cluster = |dataset: &DataSet| matches!(dataset.source, Source::Postgres { .. });
        self.component.datasets.iter().any(|dataset| is_cluster(dataset) && !dataset.protect.is_empty())
    }

    fn path_to(&self, rest: &[&'a str]) -> Vec<&'a str> {
        let mut path = self.path();
        path.extend(rest);
        path
    }
}

/// The sites where a service runs or can be recovered, the primary first.
fn places(service: &Service) -> impl Iterator<Item = &str> {
    std::iter::once(service.primary.as_str()).chain(service.recovery.iter().map(String::as_str))
}

/// Whether `inner` is `outer` or lies in it; both are paths of the same kind.
fn lies_in(inner: &str, outer: &str) -> bool {
    let parts = |path: &str| {
        let parts = path.split('/').filter(|part| !part.is_empty() && *part != ".");
        parts.map(str::to_owned).collect::<Vec<_>>()
    };
    inner.starts_with('/') == outer.starts_with('/') && parts(inner).starts_with(&parts(outer))
}

/// The path that a storage URL means on this machine.
fn local_path(url: &str) -> Option<&str> {
    match url.split_once(':') {
        Some(("file", rest)) => rest.strip_prefix("//"),
        Some((scheme, _)) if !scheme.contains('/') => None,
        _ => Some(url),
    }
}
