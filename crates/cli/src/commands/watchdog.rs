//! `lifeboat watchdog` (hidden): the process that stops a writer whose lease is not renewed in time.

use crate::error::{CommandError, Exit};
use crate::plan_file;
use crate::ui::Ui;
use crate::wiring;

/// Stop a service's writer at a site when its lease runs out; started by lifeboat itself
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub(crate) struct Args {
    /// The site that this host belongs to
    #[arg(long, value_name = "SITE")]
    site: String,
    /// The service whose writer is guarded
    #[arg(long, value_name = "SERVICE")]
    service: String,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    // Neither vault nor arbiter: what is needed at the deadline is there now.
    let loaded = plan_file::load(ui)?;
    let plan = &loaded.plan;
    let service =
        plan.services.get(&args.service).ok_or_else(|| CommandError::usage("the plan has no such service"))?;
    let state = wiring::lease_state(&ui.state_directory()?, service);
    let (guarded, _) = wiring::guarded(&loaded, service, &args.site, state)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    lifeboat_adapters::site::watchdog::watch(&guarded, &runtime)?;
    Ok(Exit::Done)
}
