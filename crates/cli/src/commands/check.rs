//! `lifeboat check`: everything that can be said about a plan before anything runs.

use lifeboat_core::diagnostic::Severity;
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
    })?;
    if !ui.is_json() {
        ui.write_stderr(format_args!("{}", report::diagnostics(&parsed, ui.colour_on_stderr())));
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
