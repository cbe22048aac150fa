//! Sites, vaults and the arbiter: where they are, who runs them, and what they share.
//!
//! Invariant: what passes here does not lose the copy, or the decision who is first, together with the primary site.

use super::super::model::*;
use super::{Checker, lies_in, local_path, places};

pub(super) fn check(checker: &mut Checker<'_>) {
    for (name, site) in &checker.plan.sites {
        reach(checker, name, site);
    }
    neighbours(checker);
    arbiter(checker);
    vaults_in_roots(checker);
    for service in checker.plan.services.values() {
        ports(checker, service);
        apart(checker, service);
        outside_organization(checker, service);
        outside_region(checker, service);
    }
}

/// Keys that belong to one kind of reach only.
fn reach(checker: &mut Checker<'_>, name: &str, site: &Site) {
    let (needs, word): (&[&str], &str) = match site.reach {
        Reach::Local { .. } => (&["root", "address"], "local"),
        Reach::Command { .. } => (&["command"], "command"),
        Reach::Ssh => (&[], "ssh"),
        Reach::Aws => (&[], "aws"),
    };
    for key in needs {
        if !checker.has(&["site", name, key]) {
            let message = format!("`site.{name}` with reach = \"{word}\" needs `{key}`");
            checker.error("P0120", &["site", name], message, format!("add {key} = …"));
        }
    }
    let optional: &[&str] = if word == "command" { &["rerun"] } else { &[] };
    for key in ["root", "address", "command", "rerun"] {
        if !needs.contains(&key) && !optional.contains(&key) && checker.has(&["site", name, key]) {
            let message = format!("`{key}` means nothing for a site with reach = \"{word}\"");
            checker.error("P0120", &["site", name, key], message, "take it out, or change `reach`");
        }
    }
    if let Reach::Local { root, address } = &site.reach {
        let loopback = address.parse::<core::net::IpAddr>().is_ok_and(|address| address.is_loopback());
        if !address.is_empty() && !loopback {
            let message = format!("{address} is not one of this machine's loopback addresses");
            checker.error(
                "P0509",
                &["site", name, "address"],
                message,
                "a local site has an address of its own in 127.0.0.0/8, such as 127.0.11.1",
            );
        }
        if !root.is_empty() && !root.starts_with('/') {
            let message = format!("`{root}` depends on the directory that lifeboat is started in");
            checker.error("P0515", &["site", name, "root"], message, "write the whole path");
        }
    }
}

/// Two local sites must not share an address or a directory.
fn neighbours(checker: &mut Checker<'_>) {
    let local: Vec<(&str, &str, &str)> = checker
        .plan
        .sites
        .iter()
        .filter_map(|(name, site)| match &site.reach {
            Reach::Local { root, address } if !root.is_empty() => {
                Some((name.as_str(), root.as_str(), address.as_str()))
            }
            _ => None,
        })
        .collect();
    for (number, (name, root, address)) in local.iter().enumerate() {
        for (other, other_root, other_address) in &local[..number] {
            if address == other_address && !address.is_empty() {
                let message = format!("`{other}` and `{name}` have the same address");
                checker.error(
                    "P0507",
                    &["site", name, "address"],
                    message,
                    "give each local site an address of its own in 127.0.0.0/8",
                );
                checker.related(&["site", other, "address"], "the other one");
            }
            if lies_in(root, other_root) || lies_in(other_root, root) {
                let message = format!("the directories of `{other}` and `{name}` overlap");
                checker.error(
                    "P0508",
                    &["site", name, "root"],
                    message,
                    "give each local site a directory of its own: losing one must not touch the other",
                );
                checker.related(&["site", other, "root"], "the other one");
            }
        }
    }
}

/// The local site in whose directory a storage lies.
fn site_around<'a>(plan: &'a Plan, url: &str) -> Option<&'a str> {
    let path = local_path(url)?;
    let around = plan.sites.iter().find(|(_, site)| match &site.reach {
        Reach::Local { root, .. } => !root.is_empty() && lies_in(path, root),
        _ => false,
    });
    around.map(|(name, _)| name.as_str())
}

fn arbiter(checker: &mut Checker<'_>) {
    let Some(arbiter) = &checker.plan.arbiter else {
        if let Some(service) = checker.plan.services.keys().next() {
            let help = "add [arbiter] with a url outside of every site, such as \"file:///srv/arbiter\"";
            checker.error(
                "P0504",
                &["service", service],
                "there is no arbiter: nothing could decide which site is first",
                help,
            );
        }
        return;
    };
    let (site, key) = match (&arbiter.site, site_around(checker.plan, &arbiter.url)) {
        (Some(site), _) => (Some(site.as_str()), "site"),
        (None, around) => (around, "url"),
    };
    if let Some(site) =
        site.filter(|site| checker.plan.services.values().any(|service| places(service).any(|place| place == *site)))
    {
        let message = format!("the arbiter lies in `{site}`: when that is lost, nobody can decide who is first");
        checker.error("P0503", &["arbiter", key], message, "put it outside of every site");
    }
}

fn vaults_in_roots(checker: &mut Checker<'_>) {
    for (name, vault) in &checker.plan.vaults {
        if let Some(site) = site_around(checker.plan, &vault.url)
            && vault.site.as_deref() != Some(site)
        {
            let message = format!("the vault `{name}` lies in the directory of `{site}`, and is lost with it");
            checker.error(
                "P0513",
                &["vault", name, "url"],
                message,
                format!("put it elsewhere, or say so with site = \"{site}\""),
            );
            checker.related(&["site", site, "root"], "the site's directory");
        }
    }
}

/// Every listener at a local site has the same address, so each needs ports of its own; further instances count up from the first.
fn ports(checker: &mut Checker<'_>, service: &Service) {
    if !places(service).filter_map(|name| checker.site(name)).any(|site| matches!(site.reach, Reach::Local { .. })) {
        return;
    }
    let mut seen: Vec<(&Service, &Component, u32, u32)> = Vec::new();
    for other in checker.plan.services.values() {
        if other.name > service.name || !places(other).any(|place| places(service).any(|own| own == place)) {
            continue;
        }
        for component in &other.components {
            let Some(port) = component.port.map(u32::from) else { continue };
            let last = port + component.instances.live.max(1) - 1;
            let clash = seen.iter().find(|(_, _, first, end)| port <= *end && *first <= last).copied();
            if let Some((first_service, first, ..)) = clash
                && other.name == service.name
            {
                let message =
                    format!("`{}` and `{}` listen on the same port at the same address", first.name, component.name);
                checker.error(
                    "P0510",
                    &["service", &other.name, "component", &component.name, "port"],
                    message,
                    "give each a range of its own: instances count up from `port`",
                );
                checker.related(&["service", &first_service.name, "component", &first.name, "port"], "the other one");
            }
            seen.push((other, component, port, last));
        }
    }
}

/// A scenario that takes a zone, a region or an organization with it, and how to read that of a site.
type Extent = (&'static str, &'static str, fn(&Site) -> Option<&str>);

const EXTENTS: [Extent; 3] = [
    ("zone-lost", "zone", |site| site.zone.as_deref()),
    ("region-lost", "region", |site| site.region.as_deref()),
    ("provider-lost", "organization", |site| site.organization.as_deref()),
];

/// Where an objective for a scenario stands, the service must be able to recover outside of what is lost.
fn apart(checker: &mut Checker<'_>, service: &Service) {
    let Some(primary) = checker.site(&service.primary) else { return };
    for (scenario, what, read) in EXTENTS {
        if !service.objectives.contains_key(scenario) {
            continue;
        }
        let path = ["service", service.name.as_str(), "objective", scenario];
        let Some(lost) = read(primary) else {
            let message = format!(
                "nothing says in which {what} `{}` is, so nobody knows what `{scenario}` takes",
                service.primary
            );
            checker.warning("P0506", &path, message, format!("add `{what}` to every site"));
            continue;
        };
        let recovery: Vec<Option<&str>> =
            service.recovery.iter().filter_map(|name| checker.site(name)).map(read).collect();
        if recovery.iter().all(|place| *place == Some(lost)) {
            let message =
                format!("`{scenario}` has an objective, and every recovery site is in the same {what}, `{lost}`");
            checker.error(
                "P0505",
                &path,
                message,
                format!("add a recovery site in another {what}, or drop the objective"),
            );
        } else if !recovery.iter().any(|place| place.is_some_and(|place| place != lost)) {
            let message =
                format!("nothing says in which {what} the recovery sites are, so nobody knows what `{scenario}` takes");
            checker.warning("P0506", &path, message, format!("add `{what}` to every site"));
        }
    }
}

fn organization_of<'a>(plan: &'a Plan, own: Option<&'a Name>, site: Option<&Name>) -> Option<&'a str> {
    own.or_else(|| plan.sites.get(site?)?.organization.as_ref()).map(String::as_str)
}

fn outside_organization(checker: &mut Checker<'_>, service: &Service) {
    if !service.objectives.contains_key("provider-lost") {
        return;
    }
    let Some(lost) = checker.site(&service.primary).and_then(|site| site.organization.as_deref()) else { return };
    let plan = checker.plan;
    if let Some(arbiter) = &plan.arbiter
        && organization_of(plan, arbiter.organization.as_ref(), arbiter.site.as_ref()) == Some(lost)
    {
        let message = format!("the arbiter is run by `{lost}`, and `provider-lost` has an objective");
        checker.error("P0502", &["arbiter", "organization"], message, "have it run by another organization");
    }
    for (component, dataset) in service.datasets() {
        let run_by = |name: &Name| {
            let vault = plan.vaults.get(name)?;
            organization_of(plan, vault.organization.as_ref(), vault.site.as_ref())
        };
        if !dataset.protect.is_empty() && dataset.protect.iter().all(|protect| run_by(&protect.to) == Some(lost)) {
            let message =
                format!("every vault of `{}` is run by `{lost}`, and `provider-lost` has an objective", dataset.name);
            let path = ["service", &service.name, "component", &component.name, "dataset", &dataset.name, "protect"];
            checker.error("P0501", &path, message, "protect it to a vault of another organization, too");
            checker.related(&["service", &service.name, "objective", "provider-lost"], "the objective");
        }
    }
}

fn outside_region(checker: &mut Checker<'_>, service: &Service) {
    if !service.objectives.contains_key("region-lost") {
        return;
    }
    let Some(lost) = checker.site(&service.primary).and_then(|site| site.region.as_deref()) else { return };
    for (component, dataset) in service.datasets() {
        let region =
            |name: &Name| checker.plan.sites.get(checker.plan.vaults.get(name)?.site.as_ref()?)?.region.as_deref();
        if !dataset.protect.is_empty() && dataset.protect.iter().all(|protect| region(&protect.to) == Some(lost)) {
            let message = format!(
                "every vault of `{}` is in the region `{lost}`, and `region-lost` has an objective",
                dataset.name
            );
            let path = ["service", &service.name, "component", &component.name, "dataset", &dataset.name, "protect"];
            checker.error("P0514", &path, message, "protect it to a vault in another region, too");
            checker.related(&["service", &service.name, "objective", "region-lost"], "the objective");
        }
    }
}
