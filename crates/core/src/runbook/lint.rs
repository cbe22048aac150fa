//! What must hold for every run-book, whoever made it: looked at before a run starts.
//!
//! Invariant: a run-book with a fault here is never executed.

use std::collections::BTreeSet;

use super::{Action, Purpose, Runbook, Step};

/// Every fault of a run-book, as sentences; empty is sound.
pub fn lint(runbook: &Runbook) -> Vec<String> {
    let mut faults = Vec::new();
    if runbook.format != 1 {
        faults.push(format!("run-book format {} is not known to this version", runbook.format));
    }
    let mut seen = BTreeSet::new();
    for step in &runbook.steps {
        for earlier in step.after.iter().chain(step.when.iter().map(|condition| &condition.step)) {
            if !seen.contains(earlier.as_str()) {
                faults.push(format!("`{}` depends on `{earlier}`, which does not stand before it", step.id));
            }
        }
        if !seen.insert(step.id.as_str()) {
            faults.push(format!("`{}` stands twice", step.id));
        }
        if step.timeout.0.is_zero() {
            faults.push(format!("`{}` has no time to run", step.id));
        }
        for condition in &step.when {
            if condition.outcomes.is_empty() {
                faults.push(format!("`{}` can never be taken: its condition names no outcome", step.id));
            }
        }
    }
    faults.extend(lint_commit(runbook));
    faults
}

fn lint_commit(runbook: &Runbook) -> Vec<String> {
    let mut faults = Vec::new();
    let commits: Vec<&Step> = runbook.steps.iter().filter(|step| step.commit).collect();
    if let Purpose::Drill | Purpose::Start = runbook.purpose {
        let what = if runbook.purpose == Purpose::Drill { "drill" } else { "start" };
        if !commits.is_empty() {
            faults.push(format!("a {what} must not have a commit point"));
        }
        for step in &runbook.steps {
            // A start sends traffic to who writes already.
            let may_send = runbook.purpose == Purpose::Start;
            if matches!(
                step.action,
                Action::Fence { .. } | Action::Promote { .. } | Action::ClaimEpoch { .. } | Action::SetAside { .. }
            ) || (matches!(step.action, Action::SetTraffic { arbiter: None, .. }) && !may_send)
            {
                faults.push(format!("a {what} must not do `{}`", step.id));
            }
        }
        return faults;
    }
    if commits.len() != 1 {
        faults.push(format!("there must be exactly one commit point, not {}", commits.len()));
    }
    for (index, step) in runbook.steps.iter().enumerate() {
        // A lease is refused to the former writer from the claim on; before it, waiting proves nothing.
        if let Action::Fence { lease: Some(_), planned, .. } = &step.action {
            let claims = |earlier: &&Step| matches!(earlier.action, Action::ClaimEpoch { planned: false, .. });
            if *planned || !ancestors(runbook, index).iter().any(claims) {
                faults.push(format!("`{}` waits for a lease that the writer may still renew", step.id));
            }
        }
        if let Action::Promote { epoch, .. } = &step.action {
            if !step.commit {
                faults.push(format!("`{}` promotes but is not the commit point", step.id));
            }
            if *epoch != runbook.epoch {
                faults.push(format!("`{}` promotes under epoch {epoch}, not {}", step.id, runbook.epoch));
            }
            let before = ancestors(runbook, index);
            let fenced = before.iter().any(|earlier| {
                matches!(&earlier.action, Action::Fence { site, .. } if *site == runbook.from)
                    && earlier.when.iter().all(|condition| step.when.contains(condition))
            });
            if !fenced {
                faults.push(format!("`{}` promotes without a fence of {} before it", step.id, runbook.from));
            }
            if !before.iter().any(|earlier| matches!(earlier.action, Action::ClaimEpoch { .. })) {
                faults.push(format!("`{}` promotes without having claimed an epoch", step.id));
            }
        }
    }
    faults
}

/// Every step that has ended before the one at `index` starts.
fn ancestors(runbook: &Runbook, index: usize) -> Vec<&Step> {
    let mut wanted: Vec<&str> = runbook.steps[index].after.iter().map(String::as_str).collect();
    let mut found: Vec<&Step> = Vec::new();
    while let Some(id) = wanted.pop() {
        if found.iter().any(|step| step.id == id) {
            continue;
        }
        if let Some(step) = runbook.step(id) {
            wanted.extend(step.after.iter().map(String::as_str));
            found.push(step);
        }
    }
    found
}
