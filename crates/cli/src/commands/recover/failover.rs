//! `lifeboat failover`: recover a service elsewhere, or at an earlier moment.

use jiff::Timestamp;
use lifeboat_core::runbook::Purpose;
use lifeboat_core::runbook::compile::{Request, distrusts_replicas};

use super::{Common, Order, execute, request, target};
use crate::error::{CommandError, Exit};
use crate::ui::Ui;
use crate::wiring::Wiring;

/// Recover a service elsewhere, or take it back to an earlier moment
///
/// Compiles the run-book for the scenario, prints it, asks, and runs it step by step; every step is journalled before it
/// acts, so that `lifeboat run resume` goes on after anything. With --planned the writer is stopped first and nothing is
/// lost. With the scenarios data-corrupted and data-destroyed, give --at: the service goes back to that moment, where it
/// is unless --to says otherwise.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The service, as the plan names it
    service: String,
    /// What has happened
    #[arg(long, value_name = "SCENARIO", default_value = "site-lost")]
    scenario: String,
    /// Where to [default: the first recovery site that the scenario leaves]
    #[arg(long, value_name = "SITE")]
    to: Option<String>,
    /// Freeze the writer first, so that nothing is lost
    #[arg(long, conflicts_with = "at")]
    planned: bool,
    /// The last good moment (RFC 3339)
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,
    /// A recovery point, in place of a moment
    #[arg(long, value_name = "ID", conflicts_with_all = ["at", "planned"])]
    point: Option<String>,
    /// When the outage began (RFC 3339): what was lost and how long it took are counted from it. Without it the time away
    /// stays unproven
    #[arg(long, value_name = "TIME")]
    disaster_at: Option<Timestamp>,
    #[command(flatten)]
    common: Common,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let wiring = Wiring::open(ui)?;
    let now = wiring.clock.now();
    for (option, at) in [("--at", args.at), ("--disaster-at", args.disaster_at)] {
        not_to_come(option, at, now)?;
    }
    let order = order(&args, now);
    execute(ui, &wiring, order, &args.common)
}

/// A moment that is yet to come is a mistake, most often of the time zone. Clocks of machines may differ a little.
fn not_to_come(option: &str, at: Option<Timestamp>, now: Timestamp) -> Result<(), CommandError> {
    match at {
        Some(at) if at.duration_since(now) > jiff::SignedDuration::from_mins(1) => {
            let now = now.strftime("%Y-%m-%dT%H:%M:%SZ");
            Err(CommandError::usage(format!("{option} {at} is in the future: here it is {now}"))
                .hint("times ending in Z are UTC; write the zone that you mean, as in 2026-11-21T15:00:00+01:00"))
        }
        _ => Ok(()),
    }
}

fn order(args: &Args, now: Timestamp) -> Order {
    let purpose = if args.planned {
        Purpose::Switchover
    } else if distrusts_replicas(&args.scenario) && args.to.is_none() {
        Purpose::Rewind
    } else {
        Purpose::Failover
    };
    let request = Request {
        to: args.to.clone(),
        target: target(args.at, args.point.clone()),
        ..request(&args.service, purpose, &args.scenario)
    };
    let (disaster_at, how_known) = match args.disaster_at {
        _ if args.planned => (None, "planned: there was no outage".to_owned()),
        Some(at) => (Some(at), "as given by who started the run".to_owned()),
        None => (Some(now), "nobody said when the outage began".to_owned()),
    };
    let disaster_assumed = !args.planned && args.disaster_at.is_none();
    Order { request, disaster_at, disaster_assumed, how_known, simulated: Vec::new(), first_day: None }
}
