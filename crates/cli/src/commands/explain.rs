//! `lifeboat explain CODE`: what a diagnostic means, why it matters, and how the plan is put right.

use lifeboat_core::plan::explain::{self, Explanation};

use crate::error::{CommandError, Exit};
use crate::ui::Ui;

/// Explain a diagnostic of `lifeboat check` by its code
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The code, such as P0301; without one, all codes are listed
    code: Option<String>,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let Some(code) = args.code else {
        for explanation in explain::all() {
            ui.line(format_args!("{}  {}", explanation.code, explanation.title));
        }
        ui.document(&explain::all().collect::<Vec<_>>())?;
        return Ok(Exit::Done);
    };
    let explanation = find(&code)?;
    ui.line(explanation.to_string().trim_end());
    ui.document(explanation)?;
    Ok(Exit::Done)
}

fn find(code: &str) -> Result<&'static Explanation, CommandError> {
    let wanted = code.trim().to_ascii_uppercase();
    explain::all().find(|explanation| explanation.code == wanted).ok_or_else(|| {
        CommandError::usage(format!("there is no diagnostic `{code}`")).hint("`lifeboat explain` lists all of them")
    })
}
