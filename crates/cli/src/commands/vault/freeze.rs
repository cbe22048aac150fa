//! `lifeboat vault freeze`: stops pruning during an incident.

use std::path::PathBuf;

use lifeboat_vault::prune::{Freeze, Hand};
use serde::Serialize;

use crate::door::{self, VaultArgs};
use crate::error::{CommandError, Exit};
use crate::ui::Ui;

/// Stop pruning during an incident: nothing is pruned or deleted until the owner releases it
///
/// Anyone on the roster may freeze, so that whoever notices first can; only the owner's key releases.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vault: VaultArgs,
    /// Let pruning go on; needs the owner's key
    #[arg(long, requires = "key", conflicts_with = "show")]
    release: bool,
    /// Only show whether it is frozen
    #[arg(long)]
    show: bool,
    /// Why, for those who come later
    #[arg(long, value_name = "TEXT", required_unless_present = "show")]
    why: Option<String>,
    /// The owner's key
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
}

#[derive(Serialize)]
struct Shown {
    frozen: bool,
    freeze: Option<Freeze>,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let named = args.vault.find(ui)?;
    let vault = named.open(ui)?;
    let why = args.why.unwrap_or_default();
    if args.release {
        named.unlock(&args.key, ui)?.release_freeze(&why).map_err(CommandError::of_vault)?;
    } else if !args.show {
        let frozen = match args.key.is_empty() {
            true => vault.freeze(Hand::Member(&door::state(ui, None)?), &why),
            false => vault.freeze(Hand::Owner(&named.unlock(&args.key, ui)?), &why),
        };
        frozen.map_err(CommandError::of_vault)?;
    }
    let (freeze, mut findings) = vault.frozen().map_err(CommandError::of_vault)?;
    ui.line(match &freeze {
        Some(freeze) => {
            format!("frozen since {} by {}: {}", crate::commands::points::time(freeze.at), freeze.who, freeze.why)
        }
        None => "not frozen: what is to be pruned is pruned".to_owned(),
    });
    ui.document(&Shown { frozen: freeze.is_some(), freeze })?;
    findings.extend(vault.findings());
    door::show(&findings, ui);
    Ok(door::ends(&findings))
}
