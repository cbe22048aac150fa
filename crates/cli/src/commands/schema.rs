//! `lifeboat schema`: the JSON Schema of the plan language, for editors.

use lifeboat_core::plan::grammar;

use crate::error::{CommandError, Exit};
use crate::ui::Ui;

/// Print the JSON Schema of the plan language, so that editors complete and check plans
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let mut text = serde_json::to_string_pretty(&grammar::json_schema())?;
    text.push('\n');
    ui.raw(text.as_bytes());
    Ok(Exit::Done)
}
