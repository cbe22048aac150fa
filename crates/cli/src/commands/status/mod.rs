//! `lifeboat status`: what is known of each service now, and what stands against it.
//!
//! Invariant: nothing is shown as good that was not read just now from vaults, the arbiter or a journal; what could not
//! be read is shown as unknown and stands as a finding.

mod data;
mod hosts;
mod record;
mod render;
mod standing;

use std::time::{Duration, Instant};

use jiff::SignedDuration;
use lifeboat_core::plan::{Name, Service};

use crate::error::{CommandError, Exit};
use crate::interrupt;
use crate::ui::Ui;
use crate::wiring::Wiring;
pub(crate) use data::LockStatus;
use standing::{Looker, Status};

/// Show where each service writes, how much could be lost now, what was proven, and what needs somebody
///
/// Reads vaults, the arbiter and journals; changes nothing, and needs no key. Ends with exit code 3 when a finding
/// stands: an objective missed, a host silent, a drill overdue, a run waiting.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Of this service only
    service: Option<String>,
    /// Look again every second, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

const LOOK_EVERY: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_millis(50);

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let wiring = Wiring::open(ui)?;
    let services = match &args.service {
        Some(name) => vec![wiring.service(name)?],
        None => wiring.plan().services.values().collect(),
    };
    let mut looker = Looker::new(&wiring)?;
    if !args.watch {
        let status = looker.look(&services)?;
        ui.document(&status)?;
        for line in render::lines(&status) {
            ui.line(line);
        }
        return Ok(exit(&status));
    }
    let asked = interrupt::listen(ui)?;
    while !asked.is_cancelled() && !ui.is_closed() {
        let next = Instant::now() + LOOK_EVERY;
        let status = looker.look(&services)?;
        ui.event(&status)?;
        redraw(&status, ui);
        while Instant::now() < next && !asked.is_cancelled() {
            std::thread::sleep(PATIENCE);
        }
    }
    Ok(Exit::Done)
}

/// A service's drills that are due: name and scenario. None while a run has not ended, or where one was tried lately.
pub(crate) fn due_drills(
    wiring: &Wiring,
    service: &Service,
    again_after: SignedDuration,
) -> Result<Vec<(Name, Name)>, CommandError> {
    let mut looker = Looker::new(wiring)?;
    let records = looker.records(&service.name)?;
    if records.has_open() {
        return Ok(Vec::new());
    }
    let now = wiring.clock.now();
    let due = looker.drills(service, &records).into_iter().filter(|drill| drill.is_overdue);
    let ready = due.filter(|drill| {
        let tried = records.last_drill_of(&drill.scenario);
        tried.is_none_or(|at| now.duration_since(at) >= again_after)
    });
    Ok(ready.map(|drill| (drill.drill, drill.scenario)).collect())
}

/// In the place of the last one on a terminal; one after the other elsewhere.
fn redraw(status: &Status, ui: &Ui) {
    use std::io::IsTerminal;
    let clear = if std::io::stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" };
    ui.line(format_args!("{clear}{}\n", render::lines(status).join("\n")));
}

fn exit(status: &Status) -> Exit {
    if status.services.iter().all(|service| service.findings.is_empty()) { Exit::Done } else { Exit::Finding }
}
