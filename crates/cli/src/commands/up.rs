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
    if !args.common.dry_run && wiring.arbiter.desired_writer(service.write_domain())?.is_none() {
        wiring.first_day(service).begin(&wiring.arbiter, &*wiring.clock, "up")?;
    }
    let order = Order {
        request: request(&args.service, Purpose::Start, "site-lost"),
        disaster_at: None,
        disaster_assumed: false,
        how_known: "there was no outage: the service was brought up".into(),
        simulated: Vec::new(),
    };
    execute(ui, &wiring, order, &args.common)
}
