//! Who can open what, and where private keys lie.
//!
//! Invariant: a private key within a site is declared in `[key]`, or found here.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::super::model::*;
use super::super::syntax::{Node, Table, Value as Tree};
use super::{Checker, lies_in};
use crate::diagnostic::{Diagnostic, Severity};

/// How far one key reaches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyReach {
    pub recipient: String,
    /// None for a recipient that opens everything and lies in no site.
    pub purpose: Option<KeyPurpose>,
    pub held_at: Option<Name>,
    pub datasets: Vec<Name>,
    /// The vaults in which it opens something.
    pub vaults: Vec<Name>,
}

/// How far each key of the plan reaches.
pub fn key_reach(plan: &Plan) -> Vec<KeyReach> {
    let all = |_: &Name| true;
    let mut reach: Vec<KeyReach> =
        plan.keys.recipients.iter().map(|recipient| reach_of(plan, recipient, None, all)).collect();
    for holder in &plan.keys.holders {
        reach.push(reach_of(plan, &holder.recipient, Some(holder), |name| holder.datasets.contains(name)));
    }
    reach
}

fn reach_of(plan: &Plan, recipient: &str, holder: Option<&KeyHolder>, opens: impl Fn(&Name) -> bool) -> KeyReach {
    let opened = || {
        let all = plan.services.values().flat_map(Service::datasets).map(|(_, dataset)| dataset);
        all.filter(|dataset| opens(&dataset.name) && !dataset.protect.is_empty())
    };
    let vaults: BTreeSet<&Name> =
        opened().flat_map(|dataset| dataset.protect.iter().map(|protect| &protect.to)).collect();
    KeyReach {
        recipient: recipient.to_owned(),
        purpose: holder.map(|holder| holder.purpose),
        held_at: holder.map(|holder| holder.held_at.clone()),
        datasets: opened().map(|dataset| dataset.name.clone()).collect(),
        vaults: vaults.into_iter().cloned().collect(),
    }
}

pub(super) fn purpose(purpose: KeyPurpose) -> &'static str {
    match purpose {
        KeyPurpose::Standby => "standby",
        KeyPurpose::Drill => "drill",
        KeyPurpose::Verify => "verify",
    }
}

/// Where the `number`th holder of its purpose stands.
pub(super) fn path(checker: &Checker<'_>, holder: &KeyHolder, number: usize) -> Vec<String> {
    let mut path = vec!["key".to_owned(), purpose(holder.purpose).to_owned()];
    let number = number.to_string();
    if checker.has(&["key", purpose(holder.purpose), &number]) {
        path.push(number);
    }
    path
}

pub(super) fn check(checker: &mut Checker<'_>) {
    private_keys_in_the_text(checker);
    let protected = checker.datasets().any(|held| !held.dataset.protect.is_empty());
    if protected && !checker.has(&["key"]) {
        let help = "add [key] with recipients = [\"age1…\", \"age1…\"]; `lifeboat key new` makes them";
        checker.error("P0411", &["vault"], "nobody has a key to what is protected", help);
        return;
    }
    recipients(checker);
    if protected && checker.plan.keys.owner.is_none() {
        let help = "add owner = \"…\", as `lifeboat vault init` prints it";
        checker.warning(
            "P0409",
            &["key"],
            "the owner's fingerprint is not in the plan: another vault could be put in place of yours",
            help,
        );
    }
    if let Some(owner) = &checker.plan.keys.owner
        && !owner.chars().all(|digit| digit.is_ascii_hexdigit())
    {
        let message = format!("`{owner}` is no fingerprint: every vault would be refused as somebody else's");
        checker.warning("P0413", &["key", "owner"], message, "write what `lifeboat vault init` printed as the owner");
    }
    holders(checker);
    standbys(checker);
}

fn recipients(checker: &mut Checker<'_>) {
    let recipients = &checker.plan.keys.recipients;
    for (number, recipient) in recipients.iter().enumerate() {
        if recipients[..number].contains(recipient) {
            let message = "the same recipient stands here twice: it is still one key";
            checker.error(
                "P0410",
                &["key", "recipients", &number.to_string()],
                message,
                "make a second key with `lifeboat key new`, and keep it in another place",
            );
        }
    }
    if recipients.len() == 1 {
        let help = "add a second recipient whose private half is kept elsewhere, on paper for instance";
        checker.error(
            "P0401",
            &["key", "recipients"],
            "one key opens the vaults: when it is lost, everything is",
            help,
        );
    }
}

fn holders(checker: &mut Checker<'_>) {
    let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
    let mut seen: BTreeMap<&str, (&KeyHolder, Vec<String>)> = BTreeMap::new();
    for holder in &checker.plan.keys.holders {
        let number = numbers.entry(purpose(holder.purpose)).or_default();
        let place = path(checker, holder, *number);
        *number += 1;
        let at = |rest: &str| place.iter().cloned().chain([rest.to_owned()]).collect::<Vec<_>>();
        let recipient = at("recipient");
        let recipient: Vec<&str> = recipient.iter().map(String::as_str).collect();
        if checker.plan.keys.recipients.contains(&holder.recipient) {
            let message = format!("a key that opens everything is held at `{}`", holder.held_at);
            checker.error(
                "P0404",
                &recipient,
                message,
                "make a key of its own for this purpose: `lifeboat key new`, at that site",
            );
        }
        if let Some((other, other_place)) = seen.get(holder.recipient.as_str())
            && other.held_at != holder.held_at
        {
            let message = format!("one private key is held at both `{}` and `{}`", other.held_at, holder.held_at);
            checker.error(
                "P0406",
                &recipient,
                message,
                "make one key for each site, where it lives: a private key does not travel",
            );
            let other: Vec<&str> = other_place.iter().map(String::as_str).collect();
            checker.related(&other, "the other one");
        }
        seen.insert(&holder.recipient, (holder, place.clone()));
        held_where_it_writes(checker, holder, &at("held-at"));
        identity(checker, holder, &place);
    }
}

/// A drill's or verifier's key has no business where the data is written; a standby's belongs to where it may be standby again.
fn held_where_it_writes(checker: &mut Checker<'_>, holder: &KeyHolder, path: &[String]) {
    if holder.purpose == KeyPurpose::Standby {
        return;
    }
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let writes = checker
        .datasets()
        .find(|held| held.service.primary == holder.held_at && holder.datasets.contains(&held.dataset.name));
    if let Some(held) = writes {
        let message = format!(
            "this key opens `{}` and is held at `{}`, where that is written: who breaks in there reads its whole history",
            held.dataset.name, holder.held_at
        );
        checker.warning("P0405", &path, message, "hold it at another site");
    }
}

fn identity(checker: &mut Checker<'_>, holder: &KeyHolder, place: &[String]) {
    let place: Vec<&str> = place.iter().map(String::as_str).collect();
    let Some(identity) = &holder.identity else {
        if holder.purpose == KeyPurpose::Standby {
            let message = format!("nothing says where the standby's private key is at `{}`", holder.held_at);
            checker.warning(
                "P0408",
                &place,
                message,
                "add identity = { file = \"…\" }: without it, nothing follows there",
            );
        }
        return;
    };
    let path = [&place[..], &["identity"]].concat();
    if let Secret::File(file) = identity {
        let covering = checker.datasets().find(|held| match &held.dataset.source {
            Source::Files { path, .. } => lies_in(file, &on_host(checker, &holder.held_at, path)),
            _ => false,
        });
        if let Some(held) = covering {
            let message = format!("the private key lies in `{}`, and goes to the vault with it", held.dataset.name);
            checker.error("P0402", &path, message, "keep it outside of everything that is protected");
        }
    }
    let handed = checker.plan.services.values().find_map(|service| {
        let components = service.components.iter();
        components.filter_map(|component| Some((service, component, component.launch.as_ref()?))).find_map(
            |(service, component, launch)| {
                let (name, _) = launch
                    .env
                    .iter()
                    .find(|(_, value)| matches!(value, Value::Secret(secret) if secret == identity))?;
                Some((service, component, name))
            },
        )
    });
    if let Some((service, component, name)) = handed {
        let path = ["service", &service.name, "component", &component.name, "launch", "env", name];
        let message = format!("`{}` is handed a private key that opens recovery points", component.name);
        checker.error("P0412", &path, message, "take it out: a service has no need of it");
    }
}

/// A relative path as it lies at a local site.
fn on_host(checker: &Checker<'_>, site: &str, path: &str) -> String {
    match checker.site(site).map(|site| &site.reach) {
        Some(Reach::Local { root, .. }) if !path.starts_with('/') => format!("{root}/volumes/{path}"),
        _ => path.to_owned(),
    }
}

fn standbys(checker: &mut Checker<'_>) {
    for held in checker.datasets() {
        let follows = matches!(held.service.strategy, Strategy::WarmStandby | Strategy::PilotLight);
        if !follows || !held.dataset.is_recovered() {
            continue;
        }
        for site in &held.service.recovery {
            let has_key = checker.plan.keys.holders.iter().any(|holder| {
                holder.purpose == KeyPurpose::Standby
                    && holder.held_at == *site
                    && holder.datasets.contains(&held.dataset.name)
            });
            let has_replica = held.dataset.replica.as_ref().is_some_and(|replica| replica.at == *site);
            if !has_key && !has_replica {
                let name = &held.dataset.name;
                let message = format!(
                    "no standby at `{site}` can follow `{name}`: it has no key to it, and everything would be restored first"
                );
                checker.warning("P0407", &held.path(), message, format!("make a key there and declare it: [key] standby = {{ recipient = \"age1…\", held-at = \"{site}\", datasets = [\"{name}\"] }}"));
            }
        }
    }
}

/// Anywhere in the text, whatever the key.
fn private_keys_in_the_text(checker: &mut Checker<'_>) {
    let mut found: Vec<Diagnostic> = Vec::new();
    in_table(checker.tree, &mut found);
    checker.found.extend(found);
}

fn in_table(table: &Table, found: &mut Vec<Diagnostic>) {
    for (_, entry) in table.in_order() {
        in_node(&entry.node, found);
    }
}

fn in_node(node: &Node, found: &mut Vec<Diagnostic>) {
    match &node.value {
        Tree::Text(text) if text.to_ascii_uppercase().contains("AGE-SECRET-KEY-") => found.push(Diagnostic {
            code: "P0403",
            severity: Severity::Error,
            message: "a private key stands in the plan".to_owned(),
            span: Some(node.span.clone()),
            help: Some("take it out, and replace that key: whoever has seen the plan has it".to_owned()),
            related: Vec::new(),
        }),
        Tree::List(items) => items.iter().for_each(|item| in_node(item, found)),
        Tree::Table(table) => in_table(table, found),
        _ => {}
    }
}
