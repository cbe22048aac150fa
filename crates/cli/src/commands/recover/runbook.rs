//! `lifeboat runbook`: what would run, without running it.

use jiff::Timestamp;
use lifeboat_core::runbook::Purpose;
use lifeboat_core::runbook::compile::Request;

use super::{compiled, print, request, target};
use crate::error::{CommandError, Exit};
use crate::ui::Ui;
use crate::wiring::Wiring;

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum For {
    Failover,
    PlannedFailover,
    Failback,
    Rewind,
}

/// Print the run-book that would run
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The service, as the plan names it
    service: String,
    /// What for
    #[arg(long = "for", value_enum, default_value_t = For::Failover)]
    purpose: For,
    /// What has happened
    #[arg(long, value_name = "SCENARIO", default_value = "site-lost")]
    scenario: String,
    /// Where to
    #[arg(long, value_name = "SITE")]
    to: Option<String>,
    /// The last good moment (RFC 3339)
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let wiring = Wiring::open(ui)?;
    let purpose = match args.purpose {
        For::Failover => Purpose::Failover,
        For::PlannedFailover => Purpose::Switchover,
        For::Failback => Purpose::Failback,
        For::Rewind => Purpose::Rewind,
    };
    let request =
        Request { to: args.to, target: target(args.at, None), ..request(&args.service, purpose, &args.scenario) };
    print(ui, &compiled(&wiring, &request, false)?)
}
