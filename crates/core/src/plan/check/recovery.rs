//! Whether a service can be started elsewhere, found there, and proven to be well.
//!
//! Invariant: nothing that passes here needs what only the lost site has.

use super::super::model::*;
use super::{Checker, places, templates};

pub(super) fn check(checker: &mut Checker<'_>) {
    for service in checker.plan.services.values() {
        if service.components.is_empty() {
            let message = format!("`{}` has no components: there is nothing to recover", service.name);
            checker.warning("P0615", &["service", &service.name], message, "add [service.….component.…]");
        }
        for component in &service.components {
            runs_elsewhere(checker, service, component);
            only_at_the_primary(checker, service, component);
            health(checker, service, component);
            idle(checker, service, component);
        }
        traffic(checker, service);
        canary(checker, service);
        approval(checker, service);
    }
    watch(checker);
}

fn runs_elsewhere(checker: &mut Checker<'_>, service: &Service, component: &Component) {
    let path = ["service", service.name.as_str(), "component", component.name.as_str(), "runs-on"];
    for site in places(service) {
        let local = checker.site(site).is_some_and(|site| matches!(site.reach, Reach::Local { .. }));
        if component.runs_on.contains_key(site)
            || (component.runs_on.is_empty() && (local || component.haproxy.is_some()))
        {
            continue;
        }
        if component.runs_on.is_empty() {
            if component.launch.is_some() && component.port.is_some() {
                let message = format!("nothing says on which host of `{site}` the component `{}` runs", component.name);
                checker.warning(
                    "P0603",
                    &path,
                    message,
                    format!("add runs-on.{site} = \"…\" and the host's address to the site"),
                );
            }
        } else {
            let message = format!(
                "`{}` runs at {} but not at `{site}`, where `{}` is to be recovered",
                component.name,
                listed(component),
                service.name
            );
            checker.error("P0601", &path, message, format!("add `{site}` to `runs-on`"));
        }
    }
}

fn listed(component: &Component) -> String {
    component.runs_on.keys().map(|site| format!("`{site}`")).collect::<Vec<_>>().join(" and ")
}

/// Addresses and directories of the primary site, written out where a template belongs.
fn only_at_the_primary(checker: &mut Checker<'_>, service: &Service, component: &Component) {
    let Some(primary) = checker.site(&service.primary) else { return };
    let mut own: Vec<(String, &str)> =
        primary.hosts.values().map(|address| (address.clone(), "the address of one of its hosts")).collect();
    if let Reach::Local { root, address } = &primary.reach {
        own.push((address.clone(), "its address"));
        own.push((root.clone(), "its directory"));
    }
    let elsewhere = |text: &str| {
        service
            .recovery
            .iter()
            .filter_map(|name| checker.site(name))
            .any(|site| site.hosts.values().any(|address| address == text))
    };
    own.retain(|(text, _)| !text.is_empty() && !elsewhere(text));
    for (path, text) in templates::texts(service, component) {
        if let Some((found, what)) = own.iter().find(|(own, _)| contains_whole(text, own)) {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            let message =
                format!("`{}` needs {found}, which only `{}` has: it is {what}", component.name, service.primary);
            checker.error("P0602", &path, message, "write a template, such as `{{ component.NAME.address }}` or `{{ dataset.NAME.path }}`, which is right at every site");
        }
    }
}

/// Whether `part` stands in `text` as a whole word: 10.0.0.1 is not in 10.0.0.11.
fn contains_whole(text: &str, part: &str) -> bool {
    text.match_indices(part).any(|(start, _)| {
        let before = text[..start].chars().next_back();
        let after = text[start + part.len()..].chars().next();
        let joins = |neighbour: Option<char>| {
            neighbour.is_some_and(|neighbour| neighbour.is_ascii_alphanumeric() || neighbour == '.')
        };
        !joins(before) && !joins(after)
    })
}

fn health(checker: &mut Checker<'_>, service: &Service, component: &Component) {
    let path = ["service", service.name.as_str(), "component", component.name.as_str()];
    let Some(health) = &component.health else {
        if component.launch.is_some() {
            let message = format!("nothing says how to see that `{}` is well", component.name);
            checker.warning("P0606", &path, message, "add health = { http = \"/healthz\" }, { tcp = true } or { command = [ … ] }: a run is only complete when it is seen");
        }
        return;
    };
    let needs_port = match &health.probe {
        Probe::Http(path) => path.starts_with('/'),
        Probe::Tcp => true,
        Probe::Command(_) => false,
    };
    let local =
        places(service).filter_map(|name| checker.site(name)).any(|site| matches!(site.reach, Reach::Local { .. }));
    if needs_port && component.port.is_none() && local {
        let message = format!("`{}` has no port that could be asked for its health", component.name);
        checker.error("P0609", &[&path[..], &["health"]].concat(), message, "add port = …");
    }
}

fn idle(checker: &mut Checker<'_>, service: &Service, component: &Component) {
    let path = ["service", service.name.as_str(), "component", component.name.as_str()];
    if component.launch.is_none() && component.haproxy.is_none() && component.datasets.is_empty() {
        let message = format!("`{}` starts nothing and has no data", component.name);
        checker.warning("P0616", &path, message, "add `launch`, `haproxy` or a `dataset`, or take the component out");
    }
    if component.instances.standby > 0 && service.strategy == Strategy::BackupRestore {
        let message = format!("`{}` wants standby instances, and the strategy keeps none", component.name);
        checker.warning(
            "P0617",
            &[&path[..], &["instances"]].concat(),
            message,
            "take `standby` out, or use strategy = \"warm-standby\"",
        );
    }
}

fn traffic(checker: &mut Checker<'_>, service: &Service) {
    let base = ["service", service.name.as_str(), "traffic"];
    let Some(traffic) = &service.traffic else {
        if service.components.iter().any(|component| component.port.is_some()) {
            let message = format!("nothing sends the users of `{}` to another site", service.name);
            checker.warning(
                "P0608",
                &base,
                message,
                "add [service.….traffic]: without it there is no failover, only a restore",
            );
        }
        return;
    };
    let everyday = [&base[..], &["everyday"]].concat();
    if traffic.everyday.values().all(|weight| *weight == 0) {
        checker.error(
            "P0512",
            &everyday,
            "on a normal day, traffic goes nowhere",
            "give the primary site a weight, such as 100",
        );
    } else if traffic.everyday.get(&service.primary).is_none_or(|weight| *weight == 0) {
        let message = format!("on a normal day, no traffic goes to the primary site `{}`", service.primary);
        checker.error("P0512", &everyday, message, "give it a weight, such as 100");
    }
    for site in places(service) {
        let addressed = match checker.site(site) {
            Some(Site { reach: Reach::Local { .. }, .. }) => true,
            Some(site) => !site.hosts.is_empty(),
            None => true,
        };
        if !addressed {
            let message = format!("traffic cannot be sent to `{site}`: it has no address");
            checker.error("P0511", &["site", site], message, "declare its hosts: host.NAME = \"address\"");
            checker.related(&base, "the traffic");
        }
    }
    let rfc2136 = matches!(traffic.dns, Dns::Rfc2136 { .. });
    let key = [&base[..], &["dns", "key"]].concat();
    if rfc2136 != checker.has(&key) {
        let message = if rfc2136 {
            "updates of a name server need a key"
        } else {
            "`key` means nothing for lifeboat's own name server"
        };
        checker.error("P0120", &key, message, if rfc2136 { "add key = { file = \"…\" }" } else { "take it out" });
    }
}

fn canary(checker: &mut Checker<'_>, service: &Service) {
    let base = ["service", service.name.as_str(), "canary"];
    let Some(canary) = &service.canary else {
        if service.traffic.is_some() {
            let message = format!(
                "`{}` has no canary: nothing proves that it serves its old data after a recovery",
                service.name
            );
            checker.warning(
                "P0607",
                &["service", &service.name],
                message,
                "add [service.….canary] with a `write` and a `read`",
            );
        }
        return;
    };
    if service.traffic.is_none() {
        let message = "the canary asks through the service's name, and there is no [traffic]";
        checker.error("P0610", &base, message, "add [service.….traffic], or take the canary out");
    }
    let speaks = |text: &Option<String>| text.as_ref().is_some_and(|text| text.contains("canary.value"));
    if !speaks(&canary.write.body) && !canary.write.request.contains("canary.value") {
        checker.error(
            "P0611",
            &[&base[..], &["write"]].concat(),
            "the canary never writes its value",
            "add body = \"{{ canary.value }}\"",
        );
    }
    if !speaks(&canary.read.expect) {
        checker.error(
            "P0611",
            &[&base[..], &["read"]].concat(),
            "the canary never looks for its value",
            "add expect = \"{{ canary.value }}\"",
        );
    }
}

fn approval(checker: &mut Checker<'_>, service: &Service) {
    if service.approval && !checker.plan.persons.values().any(|person| person.approves) {
        let message = format!("runs of `{}` wait for an approval that nobody can give", service.name);
        checker.error(
            "P0208",
            &["service", &service.name, "approval"],
            message,
            "add a [person.…] with approves = true",
        );
    }
}

fn watch(checker: &mut Checker<'_>) {
    for (name, person) in &checker.plan.persons {
        if person.approves && person.key.is_none() {
            let message = format!("`{name}` approves, and has no key to sign with");
            checker.warning("P0614", &["person", name], message, "add key = \"…\": the public half of a signing key");
        }
    }
    let Some(watch) = &checker.plan.watch else { return };
    let observers = watch.observers.len();
    for (number, observer) in watch.observers.iter().enumerate() {
        if watch.observers[..number].contains(observer) {
            checker.error(
                "P0618",
                &["watch", "observers", &number.to_string()],
                format!("the observer `{observer}` stands here twice"),
                "name each once",
            );
        }
    }
    if watch.agree as usize > observers {
        let message = format!("{} observers must agree, and there are {observers}", watch.agree);
        checker.error("P0612", &["watch", "agree"], message, "lower `agree` or add observers");
    } else if (watch.agree as usize) * 2 <= observers && observers > 1 {
        let message = format!(
            "{} of {observers} observers decide: a network split can make two halves of opposite opinions",
            watch.agree
        );
        checker.warning("P0613", &["watch", "agree"], message, format!("let {} agree", observers / 2 + 1));
    }
    for key in ["delay", "blocked"] {
        if watch.on_verdict == OnVerdict::Ask && checker.has(&["watch", key]) {
            let message = format!("`{key}` means nothing while somebody is asked anyway");
            checker.error("P0120", &["watch", key], message, "take it out, or set on-verdict = \"act\"");
        }
    }
    if watch.on_verdict == OnVerdict::Ask && !checker.plan.persons.values().any(|person| person.approves) {
        checker.warning(
            "P0619",
            &["watch"],
            "a verdict asks somebody who approves, and nobody does",
            "add a [person.…] with approves = true",
        );
    }
}
