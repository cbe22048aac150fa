//! `lifeboat logbook` (hidden): the example service and its load client, so that the demo needs one binary only.

use lifeboat_logbook::{LoadOptions, ReconcileOptions, ServeOptions, reconcile, run_load, serve};

use crate::commands::block_on;
use crate::error::{CommandError, Exit};
use crate::ui::Ui;

/// The demo's example: a small service over SQLite and a directory of uploads, and a client that remembers
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Run the service until SIGTERM
    Serve(ServeOptions),
    /// Write entries and uploads through the service's name until SIGTERM or a limit
    Load(LoadOptions),
    /// Look for every acknowledged write; exits with 3 when one is missing or wrong
    Reconcile(ReconcileOptions),
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    block_on(async {
        match args.verb {
            Verb::Serve(options) => serve(options).await?,
            Verb::Load(options) => {
                let summary = run_load(options).await?;
                ui.line(format_args!(
                    "{} writes acknowledged, {} attempts failed",
                    summary.acknowledged, summary.failed_attempts
                ));
                ui.document(&summary)?;
            }
            Verb::Reconcile(options) => {
                let found = reconcile(&options).await?;
                ui.line(format_args!("{} of {} acknowledged writes are there", found.present, found.acknowledged));
                ui.document(&found)?;
                if !found.is_complete() {
                    return Ok(Exit::Finding);
                }
            }
        }
        Ok(Exit::Done)
    })
}
