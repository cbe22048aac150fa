//! `run resume` and `run cancel`: an executor takes a begun run up again, to go on with it or to take back what it did.
//!
//! Invariant: what goes on is the run-book that the run began with, whatever the plan says by now.

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use lifeboat_core::run::{RunState, RunView};
use lifeboat_core::runbook::Action;
use lifeboat_engine::execute::{Decision, Ended, ExecuteError, Executor};
use lifeboat_engine::journal::JournalError;
use lifeboat_vault::Identity;

use super::find_anywhere;
use crate::commands::block_on;
use crate::commands::recover::{self, identities, keys, login};
use crate::error::{CommandError, Exit};
use crate::run_ui;
use crate::ui::Ui;
use crate::wiring::Wiring;

/// Go on with a run that was interrupted, killed, or held
///
/// What was cut off is looked at before it is done again. A run of another machine is taken over with its mirrored
/// journal, once that machine is silent. Keys are never kept: give them again if the run still has to restore.
#[derive(Debug, clap::Args)]
pub(crate) struct Resume {
    /// The run's id, or enough of its beginning to be the only one
    #[arg(value_name = "ID")]
    run: String,
    /// A private key that opens the data (an age identity); it stays in this process's memory
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
    /// Who resumes it, for the record [default: the login name]
    #[arg(long, value_name = "PERSON")]
    by: Option<String>,
}

/// End a run: before its commit point it takes back what it did, after it nothing more is begun
///
/// If no process works on the run, this one does what there is to take back.
#[derive(Debug, clap::Args)]
pub(crate) struct Cancel {
    /// The run's id, or enough of its beginning to be the only one
    #[arg(value_name = "ID")]
    run: String,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Who cancels it, for the record [default: the login name]
    #[arg(long, value_name = "PERSON")]
    by: Option<String>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub(crate) fn resume(args: &Resume, ui: &Ui) -> Result<Exit, CommandError> {
    let wiring = Wiring::open(ui)?;
    let (run, view) = look(&wiring, &args.run)?;
    let identities = identities(&args.key)?;
    keys::require(&wiring, keys::restores_left(&view), &identities)?;
    warn_of_another_plan(&wiring, &view, ui);
    let executor = executor(&wiring, &view, identities)?;
    let by = args.by.clone().unwrap_or_else(login);
    recover::drive(ui, &wiring, executor, &run, async |executor, interrupt| executor.resume(&run, &by, interrupt).await)
}

pub(crate) fn cancel(args: Cancel, ui: &Ui) -> Result<Exit, CommandError> {
    let wiring = Wiring::open(ui)?;
    let (run, view) = look(&wiring, &args.run)?;
    let what = match view.committed {
        true => "It is past its commit point: nothing is taken back, what is left undone stays undone.",
        false => "What it did is taken back.",
    };
    ui.confirm(&format!("Cancel run {run} on `{}`? {what}", view.runbook.service), args.yes)?;
    let by = args.by.unwrap_or_else(login);
    let executor = executor(&wiring, &view, Vec::new())?;
    let decision = Decision::Cancel { by: by.clone(), reason: args.reason };
    block_on(async { run_ui::decided(executor.decide(&run, decision).await) })?;
    let (mut left_to_another, mut ended_by_another) = (false, false);
    let mut cancelled = false;
    let ended = recover::drive(ui, &wiring, executor, &run, async |executor, interrupt| {
        let ended = executor.resume(&run, &by, interrupt).await;
        left_to_another = ended.as_ref().is_err_and(is_at_work);
        ended_by_another = matches!(ended, Err(ExecuteError::Over { state: RunState::Cancelled, .. }));
        cancelled = ended_by_another || matches!(ended, Ok(Ended::Finished(RunState::Cancelled)));
        ended
    });
    if left_to_another {
        ui.line(format_args!("the process that works on run {run} ends it"));
        return Ok(Exit::Done);
    }
    if !cancelled {
        return ended;
    }
    // It took the word up before this process could ask for the run.
    if ended_by_another {
        ui.line(format_args!("the process that worked on run {run} has ended it"));
    }
    // What was stopped by plan was started again; what a fence killed was not.
    let fenced = view.runbook.steps.iter().zip(&view.steps).find_map(|(step, seen)| match &step.action {
        Action::Fence { site, planned: false, .. } if seen.started_at.is_some() => Some(site),
        _ => None,
    });
    if let Some(site) = fenced.filter(|_| !view.committed) {
        let service = &view.runbook.service;
        ui.note(format_args!(
            "what the fence ended at {site} does not start by itself: `lifeboat up {service}` starts it again"
        ));
    }
    Ok(Exit::Done)
}

/// Whether a process of this machine works on the run: it takes the word up by itself.
fn is_at_work(error: &ExecuteError) -> bool {
    use lifeboat_engine::arbitrate::ArbiterError;
    matches!(error, ExecuteError::Arbiter(ArbiterError::Busy { .. }) | ExecuteError::Journal(JournalError::Busy { .. }))
}

/// The run meant, as its journal tells it.
pub(super) fn look(wiring: &Wiring, prefix: &str) -> Result<(String, RunView), CommandError> {
    let journal = Arc::new(wiring.journal()?);
    let run = find_anywhere(wiring, &journal, prefix)?;
    let world = Arc::new(wiring.world("", Vec::new(), None)?);
    let executor = run_ui::executor(wiring, journal, world);
    let recorded = block_on(async { Ok(executor.fetch(&run).await?) })?;
    Ok((run, recorded.view()?))
}

/// An executor for a run that has begun.
pub(super) fn executor(wiring: &Wiring, view: &RunView, identities: Vec<Identity>) -> Result<Executor, CommandError> {
    let disaster_at = view.disaster_at.as_ref().and_then(|at| at.parse::<Timestamp>().ok());
    let world = wiring.world(&view.runbook.service, identities, disaster_at)?;
    Ok(run_ui::executor(wiring, Arc::new(wiring.journal()?), Arc::new(world)))
}

fn warn_of_another_plan(wiring: &Wiring, view: &RunView, ui: &Ui) {
    if wiring.loaded.hash != view.runbook.plan_hash {
        ui.warn(
            "the plan has changed since this run began: its steps stay those that it began with; sites, vaults and persons \
             are reached as the plan says now",
        );
    }
}
