//! `lifeboat drill`: rehearse a recovery in isolation, clean up, report.

use lifeboat_core::plan::KeyPurpose;
use lifeboat_core::runbook::Purpose;
use lifeboat_core::runbook::compile::Request;

use super::{Common, Order, execute, request};
use crate::error::{CommandError, Exit, Explain};
use crate::ui::Ui;
use crate::wiring::Wiring;

/// Rehearse a recovery in isolation, clean up, and report what it proved
///
/// The same restore, start and proof as the real thing, at the recovery site, in surroundings of its own: cloned data,
/// own addresses, private DNS, throw-away state. The real writer is left alone. What was not isolated stands in the report.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The service, as the plan names it
    service: String,
    /// What is rehearsed
    #[arg(long, value_name = "SCENARIO", default_value = "site-lost")]
    scenario: String,
    /// Where [default: the first recovery site]
    #[arg(long, value_name = "SITE")]
    to: Option<String>,
    #[command(flatten)]
    common: Common,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let wiring = Wiring::open(ui)?;
    let service = wiring.service(&args.service)?;
    let writer = wiring.inventory(service)?.writer;
    let to = match &args.to {
        Some(to) => to.clone(),
        None => std::iter::once(&service.primary)
            .chain(&service.recovery)
            .find(|site| **site != writer)
            .cloned()
            .ok_or_else(|| CommandError::usage(format!("`{}` has no recovery site to rehearse at", args.service)))?,
    };
    let now = wiring.clock.now();
    let name = format!("drill-{}", now.strftime("%Y%m%dt%H%M%Sz"));
    let isolation = wiring.isolation(service, &to, &name)?;
    let mut common = args.common.clone();
    if common.key.is_empty() {
        common.key.extend(drill_keys(&wiring, &to)?);
    }
    let order = Order {
        request: Request {
            to: Some(to),
            isolation: Some(isolation),
            ..request(&args.service, Purpose::Drill, &args.scenario)
        },
        disaster_at: Some(now),
        disaster_assumed: false,
        how_known: "a rehearsal: the disaster is taken to be the drill's start".into(),
        simulated: vec!["the outage".into(), "detection".into()],
        first_day: None,
    };
    execute(ui, &wiring, order, &common)
}

/// The drill keys that the plan declares for the site, where their files can be read here.
fn drill_keys(wiring: &Wiring, site: &str) -> Result<Vec<std::path::PathBuf>, CommandError> {
    let holders = wiring.plan().keys.holders.iter();
    let mut keys = Vec::new();
    for holder in holders.filter(|holder| holder.purpose == KeyPurpose::Drill && holder.held_at == site) {
        if let Some(lifeboat_core::plan::Secret::File(path)) = &holder.identity {
            std::fs::metadata(path).saying(|| format!("the plan's drill key {path} cannot be read"))?;
            keys.push(path.into());
        }
    }
    Ok(keys)
}
