//! `lifeboat supervise` (hidden): the process under which a local site's instances run.

use std::path::PathBuf;

use crate::error::{CommandError, Exit};
use crate::ui::Ui;

/// Supervise the instances of a local site; started by lifeboat itself
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub(crate) struct Args {
    /// The site's root directory
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
}

pub(crate) fn run(args: Args, _ui: &Ui) -> Result<Exit, CommandError> {
    lifeboat_adapters::site::local::supervise(&args.root)?;
    Ok(Exit::Done)
}
