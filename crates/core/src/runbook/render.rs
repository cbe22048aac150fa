//! A run-book as people read it: numbered, one step a line, branches with their conditions.
//!
//! Invariant: everything that decides what will happen stands in the text; two run-books that differ in it print differently.

use std::fmt::Write;

use super::compile::title_of;
use super::{ELSE, OnFailure, Runbook, Step};

/// The whole run-book as plain text.
pub fn render(runbook: &Runbook) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{} of {}: {} -> {}, scenario {}, epoch {} -> {}",
        title_of(runbook.purpose),
        runbook.service,
        runbook.from,
        runbook.to,
        runbook.scenario,
        runbook.from_epoch,
        runbook.epoch
    );
    let _ = writeln!(
        text,
        "objective: lose at most {}, be away at most {}; run-book {}",
        runbook.objective.rpo,
        runbook.objective.rto,
        &runbook.hash()[..12]
    );
    let _ = writeln!(text);
    for (index, step) in runbook.steps.iter().enumerate() {
        let _ = writeln!(text, "{:>3}. {:<26} {}", index + 1, step.id, step.title);
        for note in notes(runbook, index, step) {
            let _ = writeln!(text, "     {:<26} {note}", "");
        }
    }
    if !runbook.not_covered.is_empty() {
        let _ = writeln!(text, "\nnot done or proven by this run-book:");
        for line in &runbook.not_covered {
            let _ = writeln!(text, "  - {line}");
        }
    }
    text
}

fn notes(runbook: &Runbook, index: usize, step: &Step) -> Vec<String> {
    let mut notes = Vec::new();
    for condition in &step.when {
        let outcomes: Vec<&str> = condition.outcomes.iter().map(String::as_str).filter(|one| *one != ELSE).collect();
        if outcomes.len() == condition.outcomes.len() {
            notes.push(format!("only if {} ends as {}", condition.step, outcomes.join(" or ")));
        } else if !runbook.steps.iter().take(index).any(|earlier| earlier.when.contains(condition)) {
            let otherwise = outcomes.into_iter().map(|outcome| format!(", or ends as {outcome}")).collect::<String>();
            notes.push(format!("from here on only if {} comes to nothing{otherwise}", condition.step));
        }
    }
    let previous = index.checked_sub(1).and_then(|before| runbook.steps.get(before));
    let follows_previous = step.after.len() == 1 && previous.is_some_and(|before| before.id == step.after[0]);
    if index > 0 && !follows_previous {
        notes.push(format!("after {}", if step.after.is_empty() { "nothing".into() } else { step.after.join(", ") }));
    }
    let failure = match step.on_failure {
        OnFailure::Unwind => "takes everything back",
        OnFailure::Hold => "waits for a person",
        OnFailure::Note => "goes on, with an exception on record",
    };
    let retries = if step.retries > 0 { format!(", after {} more tries", step.retries) } else { String::new() };
    notes.push(format!("at most {}; on failure {failure}{retries}", step.timeout));
    if step.commit {
        notes.push("from here on the run only goes forward".into());
    }
    if step.always {
        notes.push("also when a step before it failed".into());
    }
    notes
}
