//! `failover`, `failback`, `drill`, `runbook`: from a service and a scenario to a run-book, and from there to a run.
//!
//! Invariant: what runs is exactly what was printed and confirmed; a dry run does everything up to there and nothing after.

pub(crate) mod drill;
pub(crate) mod failback;
pub(crate) mod failover;
pub(crate) mod runbook;

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use lifeboat_core::runbook::compile::{Request, compile};
use lifeboat_core::runbook::render::render;
use lifeboat_core::runbook::{Action, Purpose, Runbook, Target};
use lifeboat_engine::execute::Start;
use lifeboat_vault::Identity;

use crate::commands::block_on;
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
    pub(crate) fn initiator(&self) -> String {
        let login =
            || std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_else(|_| "unknown".into());
        self.by.clone().unwrap_or_else(login)
    }

    pub(crate) fn identities(&self) -> Result<Vec<Identity>, CommandError> {
        let mut identities = Vec::new();
        for path in &self.key {
            identities.extend(Identity::load_all(path)?);
        }
        Ok(identities)
    }
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
    let runbook = compiled(wiring, &order.request)?;
    if common.dry_run {
        return print(ui, &runbook);
    }
    let identities = common.identities()?;
    if identities.is_empty() && must_restore(&runbook) {
        return Err(CommandError::usage("this run restores from a vault, and no key was given to open it")
            .hint("give --key FILE with an identity of one of the plan's recipients; it stays in memory"));
    }
    ui.note(render(&runbook));
    ui.confirm(&format!("Run these {} steps now?", runbook.steps.len()), common.yes)?;
    let journal = Arc::new(wiring.journal()?);
    let world = Arc::new(wiring.world(&order.request.service, identities, order.disaster_at)?);
    let run = new_run_id(wiring)?;
    let start = Start {
        run: run.clone(),
        runbook,
        initiator: common.initiator(),
        disaster_at: order.disaster_at.map(|at| at.to_string()),
        how_known: order.how_known,
        simulated: order.simulated,
    };
    let executor = run_ui::executor(wiring, journal, world);
    let ended = block_on(async {
        let interrupt = run_ui::interrupts();
        let shown = run_ui::follow(executor.progress(), ui);
        let worked = async {
            let ended = executor.start(start, &interrupt).await;
            drop(executor);
            ended
        };
        let (ended, ()) = tokio::join!(worked, shown);
        Ok(ended)
    })?;
    report(ui, wiring, &run)?;
    run_ui::exit(&run, ended)
}

/// The run's id: its time, and a random end.
fn new_run_id(wiring: &Wiring) -> Result<String, CommandError> {
    let at = wiring.clock.now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let mut random = [0; 4];
    std::fs::File::open("/dev/urandom").and_then(|mut file| std::io::Read::read_exact(&mut file, &mut random))?;
    Ok(format!("{at}-{:08x}", u32::from_le_bytes(random)))
}

/// Whether a step outside any branch restores.
fn must_restore(runbook: &Runbook) -> bool {
    runbook.steps.iter().any(|step| step.when.is_empty() && matches!(step.action, Action::Restore { .. }))
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
