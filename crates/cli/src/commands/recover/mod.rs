//! `failover`, `failback`, `drill`, `runbook`: from a service and a scenario to a run-book, and from there to a run.
//!
//! Invariant: what runs is exactly what was printed and confirmed; a dry run does everything up to there and nothing after.

pub(crate) mod drill;
pub(crate) mod failback;
pub(crate) mod failover;
pub(crate) mod keys;
pub(crate) mod runbook;

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use lifeboat_core::runbook::compile::{Request, compile};
use lifeboat_core::runbook::render::render;
use lifeboat_core::runbook::{Purpose, Runbook, Target};
use lifeboat_engine::execute::{Ended, ExecuteError, Executor, Start};
use lifeboat_engine::journal::Journal;
use lifeboat_engine::port::Cancel;
use lifeboat_vault::Identity;

use crate::commands::block_on;
use crate::door;
use crate::error::{CommandError, Exit, Explain, Kind};
use crate::run_ui;
use crate::ui::Ui;
use crate::wiring::Wiring;

/// What failovers, failbacks and drills have in common.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Common {
    /// A private key that opens the data (an age identity); it stays in this process's memory
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Vec<PathBuf>,
    /// Print the run-book and stop
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do not ask before starting
    #[arg(long)]
    pub(crate) yes: bool,
    /// Who starts this, for the record and for approvals [default: the login name]
    #[arg(long, value_name = "PERSON")]
    pub(crate) by: Option<String>,
}

impl Common {
    fn initiator(&self) -> String {
        self.by.clone().unwrap_or_else(login)
    }
}

/// Who sits here, as far as the system tells.
pub(crate) fn login() -> String {
    let named = |name: &str| std::env::var(name).ok().filter(|user| !user.is_empty());
    named("SUDO_USER").or_else(|| named("USER")).or_else(|| named("LOGNAME")).unwrap_or_else(|| "unknown".into())
}

/// Private keys, into this process's memory.
pub(crate) fn identities(files: &[PathBuf]) -> Result<Vec<Identity>, CommandError> {
    if files.is_empty() { Ok(Vec::new()) } else { door::load_keys(files) }
}

/// What is to be run, and what is known of the outage.
pub(crate) struct Order {
    pub(crate) request: Request,
    pub(crate) disaster_at: Option<Timestamp>,
    pub(crate) how_known: String,
    pub(crate) simulated: Vec<String>,
}

pub(crate) fn compiled(wiring: &Wiring, request: &Request) -> Result<Runbook, CommandError> {
    let service = wiring.service(&request.service)?;
    compile(wiring.plan(), &wiring.inventory(service)?, request).kind(Kind::Usage)
}

/// Prints, asks, runs.
pub(crate) fn execute(ui: &Ui, wiring: &Wiring, order: Order, common: &Common) -> Result<Exit, CommandError> {
    let journal = wiring.journal()?;
    if !common.dry_run {
        // Before compiling: half way through a run the plan's sites look as if there were nothing to do.
        refuse_second(&journal, &order.request.service)?;
    }
    let runbook = compiled(wiring, &order.request)?;
    if common.dry_run {
        return print(ui, &runbook);
    }
    let identities = identities(&common.key)?;
    keys::require(wiring, keys::restores(&runbook), &identities)?;
    ui.note(render(&runbook));
    ui.confirm(&format!("Run these {} steps now?", runbook.steps.len()), common.yes)?;
    let world = wiring.world(&order.request.service, identities, order.disaster_at)?;
    let run = new_run_id(wiring)?;
    let start = Start {
        run: run.clone(),
        runbook,
        initiator: common.initiator(),
        disaster_at: order.disaster_at.map(|at| at.to_string()),
        how_known: order.how_known,
        simulated: order.simulated,
    };
    let executor = run_ui::executor(wiring, Arc::new(journal), Arc::new(world));
    drive(ui, wiring, executor, &run, async |executor, interrupt| executor.start(start, interrupt).await)
}

/// One run at a time on a service. The executor refuses, too; here the refusal comes before anything else is said.
fn refuse_second(journal: &Journal, service: &str) -> Result<(), CommandError> {
    let Some(first) = journal.unfinished(service)? else { return Ok(()) };
    let run = first.run;
    let state = first.state.map_or("unknown", run_ui::state_word);
    Err(CommandError::refused(format!(
        "run {run} on `{service}` has not ended ({state}), and only one run at a time may act on it"
    ))
    .hint(format!(
        "`lifeboat run show {run}` tells where it is, `run resume {run}` goes on with it, `run cancel {run}` ends it"
    )))
}

/// Has an executor work on a run, shows each entry as it is recorded, and reports what the journal then proves.
pub(crate) fn drive(
    ui: &Ui,
    wiring: &Wiring,
    executor: Executor,
    run: &str,
    work: impl AsyncFnOnce(&Executor, &Cancel) -> Result<Ended, ExecuteError>,
) -> Result<Exit, CommandError> {
    let ended = block_on(async {
        let interrupt = run_ui::interrupts();
        let shown = run_ui::follow(executor.progress(), ui);
        let worked = async {
            let ended = work(&executor, &interrupt).await;
            drop(executor);
            ended
        };
        let (ended, ()) = tokio::join!(worked, shown);
        Ok(ended)
    })?;
    if ended.is_ok() {
        report(ui, wiring, run)?;
    }
    run_ui::exit(run, ended)
}

/// The run's id: its time, and a random end.
fn new_run_id(wiring: &Wiring) -> Result<String, CommandError> {
    let at = wiring.clock.now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let mut random = [0; 4];
    std::fs::File::open("/dev/urandom").and_then(|mut file| std::io::Read::read_exact(&mut file, &mut random))?;
    Ok(format!("{at}-{:08x}", u32::from_le_bytes(random)))
}

pub(crate) fn print(ui: &Ui, runbook: &Runbook) -> Result<Exit, CommandError> {
    if ui.is_json() {
        ui.document(runbook)?;
    } else {
        ui.raw(render(runbook).as_bytes());
    }
    Ok(Exit::Done)
}

/// What the run proved, in the words and figures of its evidence.
pub(crate) fn report(ui: &Ui, wiring: &Wiring, run: &str) -> Result<(), CommandError> {
    let Ok(recorded) = wiring.journal()?.read(run) else { return Ok(()) };
    let evidence = lifeboat_engine::evidence::Evidence::of(&recorded.entries, &recorded.head.hash, None)?;
    if ui.is_json() {
        return ui.document(&evidence);
    }
    ui.line(format_args!("run {run}: {}", run_ui::state_word(evidence.state)));
    ui.line(&evidence.verdict);
    for reservation in &evidence.reservations {
        ui.line(format_args!("  - {reservation}"));
    }
    ui.line(format_args!("evidence: lifeboat evidence {run} -o evidence.html"));
    Ok(())
}

pub(crate) fn target(at: Option<Timestamp>, point: Option<String>) -> Target {
    match (at, point) {
        (Some(at), _) => Target::At(at.to_string()),
        (None, Some(point)) => Target::Point(point),
        (None, None) => Target::Newest,
    }
}

/// A request with nothing special in it.
pub(crate) fn request(service: &str, purpose: Purpose, scenario: &str) -> Request {
    Request {
        service: service.to_owned(),
        purpose,
        scenario: scenario.to_owned(),
        to: None,
        target: Target::Newest,
        isolation: None,
    }
}
