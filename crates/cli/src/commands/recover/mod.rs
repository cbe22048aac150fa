//! `failover`, `failback`, `drill`, `runbook`: from a service and a scenario to a run-book, and from there to a run.
//!
//! Invariant: what runs is exactly what was printed and confirmed; a dry run does everything up to there and nothing after.

pub(crate) mod drill;
pub(crate) mod failback;
pub(crate) mod failover;
pub(crate) mod keys;
pub(crate) mod runbook;
pub(crate) mod scheduled;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use lifeboat_core::runbook::compile::{Inventory, Request, compile};
use lifeboat_core::runbook::render::render;
use lifeboat_core::runbook::{Purpose, Runbook, Target};
use lifeboat_engine::evidence::{Evidence, Judgement, Measure, page, seal};
use lifeboat_engine::execute::{Ended, ExecuteError, Executor, Start};
use lifeboat_engine::journal::Journal;
use lifeboat_engine::port::Cancel;
use lifeboat_engine::protect::FirstDay;
use lifeboat_vault::Identity;
use serde::Serialize;

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
    /// Nobody said when; the moment is the run's start, which measures no outage.
    pub(crate) disaster_assumed: bool,
    pub(crate) how_known: String,
    pub(crate) simulated: Vec<String>,
    /// Nobody was ever named as the writer: this is published once it is confirmed.
    pub(crate) first_day: Option<FirstDay>,
}

/// `begins`: for what holds when the first day was published.
pub(crate) fn compiled(wiring: &Wiring, request: &Request, begins: bool) -> Result<Runbook, CommandError> {
    let service = wiring.service(&request.service)?;
    let mut inventory = wiring.inventory(service)?;
    if begins {
        inventory.epoch = inventory.epoch.max(FirstDay::EPOCH);
        inventory.writer_epoch = FirstDay::EPOCH;
    }
    let runbook = compile(wiring.plan(), &inventory, request).kind(Kind::Usage)?;
    let archived = wiring.archived(&runbook);
    if archived.is_empty() {
        return Ok(runbook);
    }
    compile(wiring.plan(), &Inventory { archived, ..inventory }, request).kind(Kind::Usage)
}

/// Prints, asks, runs.
pub(crate) fn execute(ui: &Ui, wiring: &Wiring, order: Order, common: &Common) -> Result<Exit, CommandError> {
    let journal = wiring.journal()?;
    if !common.dry_run {
        // Before compiling: half way through a run the plan's sites look as if there were nothing to do.
        refuse_second(&journal, &order.request.service)?;
    }
    let runbook = compiled(wiring, &order.request, order.first_day.is_some())?;
    if common.dry_run {
        return print(ui, &runbook);
    }
    let identities = identities(&common.key)?;
    keys::require(wiring, keys::restores(&runbook), &identities)?;
    ui.note(render(&runbook));
    ui.confirm(&format!("Run these {} steps now?", runbook.steps.len()), common.yes)?;
    if let Some(first_day) = &order.first_day {
        first_day.begin(&wiring.arbiter, &*wiring.clock, "up")?;
    }
    let world = wiring.world(&order.request.service, identities, order.disaster_at)?;
    let run = new_run_id(wiring)?;
    let start = Start {
        run: run.clone(),
        runbook,
        initiator: common.initiator(),
        disaster_at: order.disaster_at.filter(|_| !order.disaster_assumed).map(|at| at.to_string()),
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
        let shown = run_ui::follow(executor.progress(), wiring, ui);
        let worked = async {
            let ended = work(&executor, &interrupt).await;
            drop(executor);
            ended
        };
        let (ended, ()) = tokio::join!(worked, shown);
        Ok(ended)
    })?;
    let missed = ended.is_ok() && report(ui, wiring, run)?;
    match run_ui::exit(run, ended)? {
        Exit::Done if missed => Ok(Exit::Finding),
        exit => Ok(exit),
    }
}

/// The run's id: its second, the microseconds in it, and a random end. Ids of one machine sort as its runs began.
fn new_run_id(wiring: &Wiring) -> Result<String, CommandError> {
    let now = wiring.clock.now();
    let (at, microseconds) = (now.strftime("%Y%m%dT%H%M%SZ"), now.subsec_nanosecond() / 1000);
    let mut random = [0; 2];
    std::fs::File::open("/dev/urandom").and_then(|mut file| std::io::Read::read_exact(&mut file, &mut random))?;
    Ok(format!("{at}-{microseconds:05x}{:03x}", u16::from_le_bytes(random) & 0xfff))
}

pub(crate) fn print(ui: &Ui, runbook: &Runbook) -> Result<Exit, CommandError> {
    if ui.is_json() {
        ui.document(runbook)?;
    } else {
        ui.raw(render(runbook).as_bytes());
    }
    Ok(Exit::Done)
}

/// A run's evidence and where its page lies, with the figures that programs look for under one name in every command.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    of_run: &'a Evidence,
    acknowledged: Option<u64>,
    present_after_failover: Option<u64>,
    present_after_failback: Option<u64>,
    lost: Option<u64>,
    rpo_objective_seconds: f64,
    rpo_proven_seconds: Option<f64>,
    rto_objective_seconds: f64,
    rto_proven_seconds: Option<f64>,
    evidence: &'a Path,
}

/// What the run proved, in the words and figures of its evidence; page and signed document go to this host's state.
/// Answers whether an objective was missed.
pub(crate) fn report(ui: &Ui, wiring: &Wiring, run: &str) -> Result<bool, CommandError> {
    let Ok(recorded) = wiring.journal()?.read(run) else { return Ok(false) };
    let evidence = Evidence::of(&recorded.entries, &recorded.head.hash, None)?;
    let sealed = seal(run, recorded.sealed, None, wiring.state.signing_key())?;
    let directory = wiring.state.directory().join("evidence");
    let page_path = directory.join(format!("{run}.html"));
    let written = std::fs::create_dir_all(&directory)
        .and_then(|()| std::fs::write(&page_path, page(&evidence, Some(&sealed.signature))))
        .and_then(|()| std::fs::write(directory.join(format!("{run}.json")), serde_json::to_vec_pretty(&sealed)?));
    if let Err(error) = written {
        // The journal has it all; `lifeboat evidence` writes it anywhere.
        ui.warn(format_args!("the evidence cannot be written to {}: {error}", directory.display()));
    }
    let losses = evidence.losses.as_ref();
    ui.document(&Report {
        acknowledged: losses.map(|losses| losses.acknowledged),
        present_after_failover: losses.map(|losses| losses.present),
        present_after_failback: losses.map(|losses| losses.present),
        lost: losses.map(|losses| losses.lost + losses.wrong),
        rpo_objective_seconds: evidence.rpo.objective_seconds,
        rpo_proven_seconds: evidence.rpo.proven_seconds,
        rto_objective_seconds: evidence.rto.objective_seconds,
        rto_proven_seconds: evidence.rto.proven_seconds,
        evidence: &page_path,
        of_run: &evidence,
    })?;
    ui.line(format_args!("run {run}: {}", run_ui::state_word(evidence.state)));
    ui.line(&evidence.verdict);
    for (name, measure) in [("RPO", &evidence.rpo), ("RTO", &evidence.rto)] {
        if measure.judgement != Judgement::NotAsked {
            ui.line(format_args!("  {name}  {}", said(measure)));
        }
    }
    for reservation in &evidence.reservations {
        ui.line(format_args!("  - {reservation}"));
    }
    ui.line(format_args!("evidence  {}", page_path.display()));
    Ok([&evidence.rpo, &evidence.rto].iter().any(|measure| measure.judgement == Judgement::Missed))
}

/// An objective and what was proven of it.
fn said(measure: &Measure) -> String {
    let objective = format!("objective {} s", measure.objective_seconds);
    match (measure.proven_seconds, measure.at_most_seconds) {
        (Some(proven), _) => format!("{objective}, proven {proven:.2} s"),
        (None, Some(bound)) => format!("{objective}, at most {bound:.2} s as far as seen"),
        (None, None) => format!("{objective}, not proven"),
    }
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
