//! A status as people read it: a few lines a service, findings last.
//!
//! Invariant: what is unknown is written as `unknown`.

use jiff::Timestamp;
use lifeboat_core::desired::Streams;
use lifeboat_core::units::Span;
use lifeboat_engine::evidence::Measure;

use super::data::{CopyStatus, VaultStatus};
use super::hosts::HostStatus;
use super::record::{DrillStatus, Proof};
use super::standing::{ServiceStatus, Status, Writer};
use crate::commands::look::size;
use crate::report::{counted, objective, seconds};
use crate::run_ui;

pub(super) fn lines(status: &Status) -> Vec<String> {
    let mut lines = Vec::new();
    if status.services.is_empty() {
        lines.push("the plan has no service".to_owned());
    }
    for service in &status.services {
        if !lines.is_empty() {
            lines.push(String::new());
        }
        lines.extend(of_service(service));
    }
    lines
}

fn of_service(status: &ServiceStatus) -> Vec<String> {
    let mut lines = vec![format!(
        "{} ({}; objectives: lose at most {}, be away at most {})",
        status.service,
        status.strategy,
        objective(status.rpo_objective_seconds),
        objective(status.rto_objective_seconds)
    )];
    let mut row = |name: &str, text: String| lines.push(format!("  {name:<10} {text}"));
    row("writes", writer(&status.writer));
    if let Some(traffic) = &status.traffic {
        let sites = if traffic.sites.is_empty() { "nobody".to_owned() } else { traffic.sites.join(", ") };
        row("traffic", format!("{} goes to {sites} (generation {})", traffic.name, traffic.generation));
    }
    row("RPO now", status.rpo_now_seconds.map_or_else(|| "unknown".to_owned(), seconds));
    for dataset in &status.datasets {
        let text = match (dataset.rpo_now_seconds, &dataset.vault) {
            (Some(now), Some(vault)) => format!("{} {} in {vault}", dataset.dataset, seconds(now)),
            _ => format!("{} unknown", dataset.dataset),
        };
        row("", text);
    }
    for dataset in &status.datasets {
        for vault in &dataset.vaults {
            if let Some(text) = freshness(vault) {
                row("fresh", format!("{} in {}: {text}", dataset.dataset, vault.vault));
            }
            if let (points @ 1.., Some(thaw)) = (vault.points_archived, vault.thaw_seconds) {
                let points = counted(points, "older point");
                let takes = Span::seconds(thaw);
                row(
                    "archived",
                    format!("{} of {}, in {}: up to {takes} to thaw", points, dataset.dataset, vault.vault),
                );
            }
            if let Some(locks) = &vault.locks {
                row("locks", format!("{} in {}: {}", dataset.dataset, vault.vault, locks.describe()));
            }
            if let Some(verified) = &vault.verified {
                row("verified", format!("{} in {}: {}", dataset.dataset, vault.vault, verified.describe()));
            }
            for copy in &vault.copies {
                row("copy", format!("{} of {} in {}: {}", dataset.dataset, vault.vault, copy.to, standing(copy)));
            }
        }
    }
    for host in &status.hosts {
        let state = match (&host.role, host.is_alive, host.lag_seconds) {
            (None, ..) if host.problem.is_some() => "not believed".to_owned(),
            (None, ..) => "has never reported".to_owned(),
            (Some(_), false, _) => "silent".to_owned(),
            (Some(_), true, _) if host.problem.is_some() => "in trouble".to_owned(),
            (Some(_), true, Some(lag)) => format!("{} behind{}", seconds(lag), streamed(host)),
            (Some(_), true, None) if host.does_its_duty => "at work".to_owned(),
            (Some(role), true, None) => super::standing::word(role),
        };
        row(host.duty, format!("{} at {}: {state}", host.dataset, host.site));
        if let Some(came) = host.came.as_ref().filter(|_| host.is_alive) {
            row("", came.clone());
        }
        if host.commits_asked_for {
            row("commits", format!("to {} {}", host.dataset, commits(host)));
        }
    }
    if let Some(canary) = &status.canary {
        let text = match (canary.number, canary.age_seconds) {
            (Some(number), Some(age)) => format!("number {number}, {} ago", seconds(age)),
            (Some(number), None) => format!("number {number}, at an unknown time"),
            _ => "none recorded".to_owned(),
        };
        row("canary", text);
    }
    row("last run", proof(status.last_run.as_ref()));
    row("last drill", proof(status.last_drill.as_ref()));
    match status.drills.is_empty() {
        true => row("next drill", "the plan has none".to_owned()),
        false => status.drills.iter().for_each(|next| row("next drill", drill(next))),
    }
    for run in &status.open_runs {
        row("open run", format!("{} {}: {}", run.run, run.purpose, run_ui::state_word(run.state)));
        for (step, need) in &run.waiting_for {
            row("", format!("{step}: {need}"));
        }
    }
    for finding in &status.findings {
        lines.push(format!("  ! {}", finding.text));
        lines.extend(finding.next.iter().map(|next| format!("    next: {next}")));
    }
    if status.findings.is_empty() {
        lines.push("  nothing stands against it".to_owned());
    }
    lines
}

fn streamed(host: &HostStatus) -> String {
    match &host.streams {
        None => String::new(),
        Some(Streams { problem: Some(_), .. }) => ", through the vault".to_owned(),
        Some(Streams { behind_bytes: Some(behind), .. }) => format!(", {} of the log", size(*behind)),
        Some(_) => ", streaming".to_owned(),
    }
}

fn commits(host: &HostStatus) -> String {
    let Some(commits) = host.commits.as_ref().filter(|_| host.is_alive) else {
        return "are to wait for vaults: whether they do is unknown".to_owned();
    };
    let since = commits.since.parse().map_or_else(|_| commits.since.clone(), minute);
    let how = if commits.wait { "wait" } else { "do not wait" };
    format!("{how} since {since}: {}", commits.what)
}

/// What others prove of a vault, where somebody could be asked.
fn freshness(vault: &VaultStatus) -> Option<String> {
    let proofs = vault.witnesses.iter().filter_map(|witness| Some((witness.at?, &witness.by)));
    let (at, by) = proofs.max()?;
    Some(format!("proven by {by} as of {}", minute(at)))
}

fn standing(copy: &CopyStatus) -> String {
    let age = copy.age_seconds.map_or_else(|| "of an unknown age".to_owned(), |age| format!("{} old", seconds(age)));
    let lacks = match (copy.complete, copy.left_behind, copy.points_lacking) {
        (false, ..) => ", not finished".to_owned(),
        (true, 0, 0) => ", has everything".to_owned(),
        (true, 0, points) => format!(", lacks {}", counted(points, "newer point")),
        (true, objects, _) => format!(", lacks {} that could not be copied", counted(objects, "object")),
    };
    format!("{age}{lacks}")
}

fn writer(writer: &Writer) -> String {
    let Some(site) = &writer.site else {
        return if writer.problem.is_some() { "unknown".to_owned() } else { "nobody yet".to_owned() };
    };
    let frozen = if writer.frozen { ", frozen" } else { "" };
    let number = |number: Option<u64>| number.map_or_else(|| "unknown".to_owned(), |number| number.to_string());
    let claimed = writer.claimed.as_ref().map_or_else(String::new, |claimed| {
        format!("; epoch {} is claimed for {} by run {}", claimed.epoch, claimed.primary, claimed.run)
    });
    format!("{site}{frozen}, under epoch {} (generation {}){claimed}", number(writer.epoch), number(writer.generation))
}

fn proof(proof: Option<&Proof>) -> String {
    let Some(proof) = proof else { return "none: RPO and RTO are unproven".to_owned() };
    let plan = if proof.is_of_this_plan { "" } else { "; the plan has changed since, so this is unproven again" };
    format!(
        "{} on {} ({}): RPO {}, RTO {}{plan}",
        proof.purpose,
        minute(proof.ended_at),
        run_ui::state_word(proof.state),
        measure(&proof.rpo),
        measure(&proof.rto)
    )
}

fn measure(measure: &Measure) -> String {
    match (measure.proven_seconds, measure.at_most_seconds) {
        (Some(proven), _) => seconds(proven),
        (None, Some(bound)) => format!("at most {}", seconds(bound)),
        (None, None) => "unproven".to_owned(),
    }
}

fn drill(drill: &DrillStatus) -> String {
    let due = match (drill.due_at, drill.is_overdue) {
        (None, _) => "now: it was never done".to_owned(),
        (Some(due), true) => format!("overdue since {}", minute(due)),
        (Some(due), false) => minute(due),
    };
    format!("{} ({}): {due}", drill.drill, drill.scenario)
}

pub(super) fn minute(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%MZ").to_string()
}
