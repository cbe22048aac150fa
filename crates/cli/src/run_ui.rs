//! A run on the screen: each entry of its journal as one line, and how it ended as an exit code.
//!
//! Invariant: what is shown was recorded first; nothing is shown that the journal does not say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use lifeboat_core::run::{Event, Need, RunState};
use lifeboat_engine::execute::{Ended, ExecuteError, Executor, Progress, Settings};
use lifeboat_engine::journal::Journal;
use lifeboat_engine::perform::World;
use lifeboat_engine::port::Cancel;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::error::{CommandError, Exit, Kind};
use crate::ui::Ui;
use crate::wiring::Wiring;

/// An executor over the world, with the plan's persons.
pub(crate) fn executor(wiring: &Wiring, journal: Arc<Journal>, world: Arc<World>) -> Executor {
    let persons =
        wiring.plan().persons.iter().map(|(name, person)| (name.clone(), person.clone())).collect::<BTreeMap<_, _>>();
    let mut settings = Settings::default();
    let path = wiring.loaded.path.clone();
    let (known, text_then) = (wiring.loaded.hash.clone(), std::fs::read(&path).ok());
    settings.plan_hash_now = Some(Arc::new(move || {
        let text = std::fs::read(&path).ok()?;
        // The plan's own hash covers includes, too; only a change of the root file is watched for.
        Some(if Some(&text) == text_then.as_ref() { known.clone() } else { blake3::hash(&text).to_hex().to_string() })
    }));
    Executor::new(journal, Arc::clone(&wiring.arbiter), world, persons, settings)
}

/// After so long without news, what is waited for is said (again).
const WAITING_EVERY: Duration = Duration::from_secs(5);

/// Prints progress until the run's executor is gone; of a step that takes long, what it waits for.
pub(crate) async fn follow(mut progress: broadcast::Receiver<Progress>, wiring: &Wiring, ui: &Ui) {
    let mut open = BTreeSet::new();
    loop {
        match tokio::time::timeout(WAITING_EVERY, progress.recv()).await {
            Ok(Ok(seen)) => {
                match &seen.entry.event {
                    Event::Intent { step, .. } => _ = open.insert(step.clone()),
                    Event::Done { step, .. } | Event::Failed { step, .. } | Event::Held { step, .. } => {
                        open.remove(step);
                    }
                    _ => {}
                }
                show(&seen, ui);
            }
            Ok(Err(RecvError::Lagged(missed))) => {
                ui.note(format_args!("({missed} entries were not shown; `lifeboat run show` has them)"))
            }
            Ok(Err(RecvError::Closed)) => return,
            Err(_) => {
                let now = wiring.clock.now().to_string();
                let waiting = wiring.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone();
                for step in &open {
                    let waits = waiting.get(step).map_or("at work", String::as_str);
                    ui.note(format_args!("{}    {step}: {waits}", now.get(11..19).unwrap_or(&now)));
                }
            }
        }
    }
}

fn show(seen: &Progress, ui: &Ui) {
    let at = seen.entry.at.to_string();
    let clock = at.get(11..19).unwrap_or(&at);
    let title = |step: &str| seen.runbook.step(step).map_or_else(|| step.to_owned(), |step| step.title.clone());
    match &seen.entry.event {
        Event::Started { runbook, .. } => {
            ui.note(format_args!("{clock}  run {}: {} steps", seen.entry.run, runbook.steps.len()));
        }
        Event::Intent { step, attempt: 1 } => ui.note(format_args!("{clock}  … {}", title(step))),
        Event::Intent { step, attempt } => ui.note(format_args!("{clock}  … {} (attempt {attempt})", title(step))),
        Event::Done { step, outcome, .. } => ui.note(format_args!("{clock}  ✓ {step}: {outcome}")),
        Event::Failed { step, error, .. } => ui.note(format_args!("{clock}  ✗ {step}: {error}")),
        Event::Held { step, needs, .. } => ui.note(format_args!("{clock}  ‖ {step}: {}", need(needs))),
        Event::Note { text } => ui.note(format_args!("{clock}  · {text}")),
        Event::UndoIntent { step } => ui.note(format_args!("{clock}  ← taking back {step}")),
        Event::UndoFailed { step, error } => {
            ui.note(format_args!("{clock}  ✗ {step} could not be taken back: {error}"))
        }
        Event::Finished { state } => ui.note(format_args!("{clock}  {}", state_word(*state))),
        _ => {}
    }
}

pub(crate) fn state_word(state: RunState) -> &'static str {
    match state {
        RunState::Pending => "pending",
        RunState::Running => "running",
        RunState::WaitingApproval => "waiting for an approval",
        RunState::Paused => "paused",
        RunState::Held => "held",
        RunState::Completed => "completed",
        RunState::CompletedWithExceptions => "completed with exceptions",
        RunState::Failed => "failed",
        RunState::Cancelled => "cancelled",
    }
}

/// What a person must do, in a sentence.
pub(crate) fn need(need: &Need) -> String {
    match need {
        Need::Approval { reason } => format!("needs an approval: {reason}"),
        Need::Attestation { statement, why } => format!("needs an attestation: “{statement}” ({why})"),
        Need::Decision { error } => format!("needs a decision (retry, skip or cancel): {error}"),
    }
}

/// The exit code of an executor's end, with the next command where a person must act.
pub(crate) fn exit(run: &str, ended: Result<Ended, ExecuteError>) -> Result<Exit, CommandError> {
    match ended {
        Ok(Ended::Finished(RunState::Completed)) => Ok(Exit::Done),
        Ok(Ended::Finished(RunState::CompletedWithExceptions)) => Ok(Exit::Finding),
        Ok(Ended::Finished(state)) => Err(CommandError::failed(format!("run {run} ended as {}", state_word(state)))
            .hint(format!("`lifeboat run show {run}` tells why, `lifeboat evidence {run} -o FILE` for all of it"))),
        Ok(Ended::Held(needs)) => {
            let mut error = CommandError::held(format!("run {run} is held and waits for a person"));
            for (step, what) in &needs {
                error = error.hint(format!("{step}: {}", self::need(what)));
                error = error.hint(format!("{}, then `lifeboat run resume {run}`", way_on(run, step, what)));
            }
            Err(error)
        }
        Ok(Ended::Interrupted) => Err(CommandError::interrupted(format!("run {run} was interrupted; nothing is lost"))
            .hint(format!("`lifeboat run resume {run}` goes on"))),
        Err(error) => {
            let kind = if error.is_refusal() { Kind::Refused } else { Kind::Failed };
            Err(CommandError::from(error).kind(kind))
        }
    }
}

/// What became of a person's word.
pub(crate) fn decided(said: Result<(), ExecuteError>) -> Result<(), CommandError> {
    said.map_err(|error| {
        let kind = if error.is_refusal() { Kind::Refused } else { Kind::Failed };
        CommandError::from(error).kind(kind)
    })
}

/// A cancel that Ctrl-C and SIGTERM set.
pub(crate) fn interrupts() -> Cancel {
    let cancel = Cancel::default();
    let set = cancel.clone();
    tokio::spawn(async move {
        let mut terminate = match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(terminate) => terminate,
            Err(error) => {
                tracing::warn!("SIGTERM cannot be waited for: {error}");
                return;
            }
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        set.cancel();
    });
    cancel
}

/// What takes a held step further.
pub(crate) fn way_on(run: &str, step: &str, need: &Need) -> String {
    match need {
        Need::Approval { .. } => {
            format!(
                "somebody else than who started it: `lifeboat run approve {run} --step {step} --by PERSON --key FILE`"
            )
        }
        Need::Attestation { .. } => format!(
            "see to it at the thing itself: `lifeboat run attest {run} --step {step} --by PERSON --key FILE`, or `run retry`, or `run cancel`"
        ),
        Need::Decision { .. } => {
            format!("`lifeboat run retry {run} --step {step}`, or `run skip` with a reason, or `run cancel`")
        }
    }
}
