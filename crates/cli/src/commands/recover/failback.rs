//! `lifeboat failback`: bring a service home, with nothing lost.

use lifeboat_core::runbook::Purpose;

use super::{Common, Order, execute, request};
use crate::error::{CommandError, Exit};
use crate::ui::Ui;
use crate::wiring::Wiring;

/// Bring a service home to its primary site, with nothing lost
///
/// What the old primary held is set aside, never written over. The service is stopped only for the last part: freeze,
/// last recovery point, catch up, promote, re-point.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The service, as the plan names it
    service: String,
    #[command(flatten)]
    common: Common,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let wiring = Wiring::open(ui)?;
    let order = Order {
        request: request(&args.service, Purpose::Failback, "site-lost"),
        disaster_at: None,
        disaster_assumed: false,
        how_known: "planned: there was no outage".into(),
        simulated: Vec::new(),
        first_day: None,
    };
    execute(ui, &wiring, order, &args.common)
}
