//! `lifeboat up`: bring a service up where its writer is.

use lifeboat_core::runbook::Purpose;

use super::recover::{Common, Order, execute, request};
use crate::error::{CommandError, Exit};
use crate::ui::Ui;
use crate::wiring::Wiring;

/// Bring a service up where its writer is: on the first day, or after its hosts were off
///
/// Starts the hosts' own protection, the service's components in their order, and its standbys, and ends when the service
/// is healthy through its own name and protected outside its site. It changes nobody's right to write.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The service, as the plan names it
    service: String,
    #[command(flatten)]
    common: Common,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let wiring = Wiring::open(ui)?;
    let service = wiring.service(&args.service)?;
    let first_day = match wiring.arbiter.desired_writer(service.write_domain())? {
        // What a service writes while its host ships nothing would be in no vault.
        Some(desired) if desired.frozen && !args.common.dry_run => {
            return Err(CommandError::refused(format!(
                "`{}` is frozen at {}: a run stopped it there, and nobody may write until that run has ended",
                service.name, desired.primary
            ))
            .hint("`lifeboat run list` shows the run; `run resume` goes on with it, `run cancel` takes it back"));
        }
        Some(_) => None,
        None => Some(wiring.first_day(service)),
    };
    let order = Order {
        request: request(&args.service, Purpose::Start, "site-lost"),
        disaster_at: None,
        disaster_assumed: false,
        how_known: "there was no outage: the service was brought up".into(),
        simulated: Vec::new(),
        first_day,
    };
    execute(ui, &wiring, order, &args.common)
}
