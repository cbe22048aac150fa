//! `lifeboat canary`: numbered values written through a service's own name, for a recovery to read back.
//!
//! Invariant: a value that the service did not acknowledge is never on record, and a number is never used twice.

use std::time::Duration;

use lifeboat_adapters::probe::NetworkProbe;
use lifeboat_core::runbook::place::Place;
use lifeboat_engine::canary;
use lifeboat_engine::port::ServiceDoor;

use crate::commands::block_on;
use crate::error::{CommandError, Exit};
use crate::run_ui;
use crate::ui::Ui;
use crate::wiring::Wiring;

/// So many stay on record; a recovery that goes back further cannot be proven by one.
const KEEP: usize = 10_000;
const FORGET_EVERY: u64 = 500;

/// Write canaries through a service's own name, until told to stop
///
/// Run it where the traffic comes from, outside every site. After a recovery one of these values is read back: that, and
/// the service's own health, is what ends the time away.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The service, as the plan names it
    service: String,
    /// Write one and stop
    #[arg(long)]
    once: bool,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let wiring = Wiring::open(ui)?;
    let service = wiring.service(&args.service)?;
    let (Some(planned), Some(traffic)) = (&service.canary, &service.traffic) else {
        return Err(CommandError::usage(format!("the plan has no canary and traffic for `{}`", service.name))
            .hint("add [service.NAME.canary] and [service.NAME.traffic]; `lifeboat explain` knows their keys"));
    };
    let sites = &wiring.plan().sites;
    let port = sites.iter().find_map(|(site_name, site)| {
        Place { plan: wiring.plan(), service, site_name, site, isolation: None }.front().and_then(|front| front.port)
    });
    let door = ServiceDoor { name: traffic.name.clone(), authority: Some(traffic.authority().to_owned()), port };
    let every = Duration::from_secs_f64(planned.every.as_seconds().max(0.1));
    let mut number = wiring.arbiter.newest_canary(&service.name)? + 1;
    let probe = NetworkProbe::default();
    block_on(async {
        let interrupt = run_ui::interrupts();
        let mut told = String::new();
        loop {
            let written =
                canary::write(&wiring.arbiter, &probe, &*wiring.clock, &door, planned, &service.name, number).await;
            // An attempt that failed may have arrived: its number is spent, too.
            number += 1;
            match written {
                Ok(record) => {
                    told.clear();
                    if record.number.is_multiple_of(FORGET_EVERY) {
                        wiring.arbiter.forget_canaries(&service.name, KEEP)?;
                    }
                    ui.event(&record)?;
                    if args.once {
                        ui.line(format_args!("canary {} written at {}", record.number, record.at));
                        return Ok(());
                    }
                }
                Err(error) if args.once => return Err(CommandError::from(error)),
                Err(error) => {
                    let error = with_causes(&CommandError::from(error));
                    if error != told {
                        ui.warn(&error);
                        told = error;
                    }
                }
            }
            let next = tokio::time::Instant::now() + every;
            while tokio::time::Instant::now() < next {
                if interrupt.is_cancelled() {
                    return Ok(());
                }
                tokio::time::sleep(every.min(Duration::from_millis(100))).await;
            }
        }
    })?;
    Ok(Exit::Done)
}

fn with_causes(error: &CommandError) -> String {
    let mut text = error.message.clone();
    for cause in &error.causes {
        text = format!("{text}: {cause}");
    }
    text
}
