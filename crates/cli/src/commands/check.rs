//! `lifeboat check`: everything that can be said about a plan before anything runs.

use lifeboat_core::diagnostic::Severity;
use lifeboat_core::plan::{self, FenceOutlook, KeyPurpose, KeyReach, Plan};
use serde::Serialize;

use crate::error::{CommandError, Exit};
use crate::plan_file;
use crate::report;
use crate::ui::Ui;

/// Check the plan: what is malformed, inconsistent, or cannot meet its objective
///
/// Errors end with exit code 2. Warnings alone end with 0, or with 3 under --deny-warnings.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// End with exit code 3 if there are warnings
    #[arg(long)]
    deny_warnings: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    plan: String,
    valid: bool,
    errors: usize,
    warnings: usize,
    diagnostics: Vec<report::Located<'a>>,
    /// How far each key reaches; empty while the plan is wrong.
    keys: Vec<KeyReach>,
    /// What would prove, in each scenario, that the primary site does not write; likewise.
    fences: Vec<FenceOutlook>,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let (path, parsed) = plan_file::parse(ui)?;
    let count = |severity| parsed.diagnostics.iter().filter(|found| found.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));

    ui.document(&Report {
        plan: path.display().to_string(),
        valid: errors == 0,
        errors,
        warnings,
        diagnostics: report::located(&parsed),
        keys: parsed.plan.as_ref().map(plan::key_reach).unwrap_or_default(),
        fences: parsed.plan.as_ref().map(plan::fence_outlook).unwrap_or_default(),
    })?;
    if !ui.is_json() {
        ui.write_stderr(format_args!("{}", report::diagnostics(&parsed, ui.colour_on_stderr())));
        if let Some(plan) = parsed.plan.as_ref().filter(|_| !ui.is_quiet()) {
            ui.line(keys(plan));
            ui.line(fences(plan));
        }
        ui.line(summary(&path.display().to_string(), errors, warnings));
    }
    Ok(match (errors, warnings) {
        (1.., _) => Exit::PlanWrong,
        (_, 1..) if args.deny_warnings => Exit::Finding,
        _ => Exit::Done,
    })
}

fn summary(path: &str, errors: usize, warnings: usize) -> String {
    let counted = |count: usize, word: &str| match count {
        0 => None,
        1 => Some(format!("1 {word}")),
        more => Some(format!("{more} {word}s")),
    };
    match (counted(errors, "error"), counted(warnings, "warning")) {
        (None, None) => format!("{path}: nothing wrong found"),
        (Some(one), None) | (None, Some(one)) => format!("{path}: {one}"),
        (Some(errors), Some(warnings)) => format!("{path}: {errors}, {warnings}"),
    }
}

fn keys(plan: &Plan) -> String {
    let rows: Vec<Vec<String>> = plan::key_reach(plan)
        .into_iter()
        .map(|key| {
            let purpose = match key.purpose {
                None => "everything",
                Some(KeyPurpose::Standby) => "standby",
                Some(KeyPurpose::Drill) => "drill",
                Some(KeyPurpose::Verify) => "verify",
            };
            let held = key.held_at.unwrap_or_else(|| "outside every site".to_owned());
            vec![short(&key.recipient), purpose.to_owned(), held, key.datasets.join(", "), key.vaults.join(", ")]
        })
        .collect();
    report::table(&["key", "for", "held at", "opens", "in vaults"], &rows)
}

/// A recipient as people tell them apart.
fn short(recipient: &str) -> String {
    let count = recipient.chars().count();
    match count {
        0..=20 => recipient.to_owned(),
        _ => recipient.chars().take(10).chain(['…']).chain(recipient.chars().skip(count - 6)).collect(),
    }
}

/// Scenarios with the same proof share a line.
fn fences(plan: &Plan) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    for fence in plan::fence_outlook(plan) {
        let proof = fence.proof.unwrap_or("none: a run holds until a person attests it").to_owned();
        match rows.last_mut().filter(|row| row[0] == fence.service && row[3] == proof) {
            Some(row) => row[2] = format!("{}, {}", row[2], fence.scenario),
            None => rows.push(vec![fence.service, fence.site, fence.scenario, proof]),
        }
    }
    for row in &mut rows {
        if row[2].split(", ").count() == plan::scenarios(plan).len() {
            row[2] = "every scenario".to_owned();
        }
    }
    report::table(&["service", "fenced site", "in", "proof without a person"], &rows)
}
