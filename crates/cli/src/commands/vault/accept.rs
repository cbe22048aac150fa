//! `lifeboat vault accept`: a suspect recovery point is what it should be.

use std::path::PathBuf;

use lifeboat_vault::prune::Hand;
use serde::Serialize;

use crate::commands::points::point_named;
use crate::door::{self, VaultArgs};
use crate::error::{CommandError, Exit};
use crate::ui::Ui;

/// Say that a suspect recovery point is right, after somebody has looked at it
///
/// A point is suspect when its data looks as if it had been encrypted, replaced or taken away (see docs/ransomware.md).
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The point: as `lifeboat points` shows it, or its whole id
    #[arg(value_name = "ID")]
    point: String,
    #[command(flatten)]
    vault: VaultArgs,
    /// What was looked at, for those who come later
    #[arg(long, value_name = "TEXT")]
    why: String,
    /// The owner's key [default: in the name of this machine, if it is a person, controller or pruner on the roster]
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
}

#[derive(Serialize)]
struct Accepted<'a> {
    point: &'a str,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let named = args.vault.find(ui)?;
    let vault = named.open(ui)?;
    let points = vault.points(None).map_err(CommandError::of_vault)?.points;
    let point = point_named(&points, &args.point)?;
    match args.key.is_empty() {
        true => vault.accept(Hand::Member(&door::state(ui, None)?), point, &args.why),
        false => vault.accept(Hand::Owner(&named.unlock(&args.key, ui)?), point, &args.why),
    }
    .map_err(CommandError::of_vault)?;
    ui.line(format_args!("{} is no longer suspect", point.id));
    ui.document(&Accepted { point: &point.id })?;
    Ok(Exit::Done)
}
