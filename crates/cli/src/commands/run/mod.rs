//! `lifeboat run …`: the runs of this host, their journals, and what persons say to them.
//!
//! Invariant: what is shown is derived from a journal that was checked from its first entry; nothing is believed about a
//! run that its journal does not say.

mod resume;
mod word;

use jiff::Timestamp;
use lifeboat_adapters::clock::MachineClock;
use lifeboat_core::run::{RunState, RunView, StepView};
use lifeboat_engine::journal::{Journal, JournalError, Listing};
use std::sync::Arc;

use crate::error::{CommandError, Exit, Kind};
use crate::report::seconds;
use crate::run_ui;
use crate::ui::Ui;
use crate::wiring::Wiring;

/// Look at runs: failovers, failbacks, drills, with what each step did
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List the runs that this host's journal holds, the newest first
    List,
    /// Show one run: its state, each step with its outcome and time, and what is waited for
    Show {
        /// The run's id, or enough of its beginning to be the only one
        #[arg(value_name = "ID")]
        run: String,
        /// Every entry of the journal, too
        #[arg(long)]
        journal: bool,
    },
    Resume(resume::Resume),
    Approve(word::Approve),
    Attest(word::Attest),
    Retry(word::Retry),
    Skip(word::Skip),
    Cancel(resume::Cancel),
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let journal =
        || Journal::open(&ui.state_directory()?, Arc::new(MachineClock::default())).map_err(CommandError::from);
    match args.verb {
        Verb::List => list(&journal()?, ui),
        Verb::Show { run, journal: entries } => show(&journal()?, &run, entries, ui),
        Verb::Resume(args) => resume::resume(&args, ui),
        Verb::Approve(args) => word::approve(&args, ui),
        Verb::Attest(args) => word::attest(&args, ui),
        Verb::Retry(args) => word::retry(args, ui),
        Verb::Skip(args) => word::skip(args, ui),
        Verb::Cancel(args) => resume::cancel(args, ui),
    }
}

fn list(journal: &Journal, ui: &Ui) -> Result<Exit, CommandError> {
    let listings = journal.runs()?;
    ui.document(&listings)?;
    if listings.is_empty() {
        ui.line("no runs yet; `lifeboat drill SERVICE` makes a first one");
    }
    for listing in &listings {
        ui.line(listing_line(listing));
    }
    let broken = listings.iter().any(|listing| listing.problem.is_some());
    Ok(if broken { Exit::Finding } else { Exit::Done })
}

fn listing_line(listing: &Listing) -> String {
    match (&listing.problem, &listing.service, listing.purpose, listing.state) {
        (None, Some(service), Some(purpose), Some(state)) => {
            let began = listing.started_at.map(minute).unwrap_or_default();
            format!("{}  {began}  {service}  {}  {}", listing.run, word(&purpose), word(&state))
        }
        (problem, ..) => format!("{}  cannot be read: {}", listing.run, problem.as_deref().unwrap_or("it is empty")),
    }
}

fn show(journal: &Journal, run: &str, entries: bool, ui: &Ui) -> Result<Exit, CommandError> {
    let run = find(journal, run)?;
    let recorded = journal.read(&run)?;
    let view = recorded.view()?;
    ui.document(&serde_json::json!({
        "run": view,
        "journal": entries.then_some(&recorded.entries),
    }))?;
    for line in lines(&view) {
        ui.line(line);
    }
    if entries {
        ui.line("");
        for entry in &recorded.entries {
            let event = serde_json::to_value(&entry.event)?;
            ui.line(format_args!("{:4}  {}  {}", entry.seq, entry.at, brief(&event)));
        }
    }
    Ok(exit(&view))
}

/// The one run of this host whose id begins with `prefix`.
pub(crate) fn find(journal: &Journal, prefix: &str) -> Result<String, CommandError> {
    only(&journal.names()?, prefix, journal)
}

/// The same, among the runs of other hosts, too, that have a mirror in the arbiter's storage.
fn find_anywhere(wiring: &Wiring, journal: &Journal, prefix: &str) -> Result<String, CommandError> {
    let mut runs = journal.names()?;
    if !runs.iter().any(|run| run.starts_with(prefix)) {
        runs.extend(wiring.arbiter.mirrored_runs()?);
    }
    only(&runs, prefix, journal)
}

fn only(runs: &[String], prefix: &str, journal: &Journal) -> Result<String, CommandError> {
    if runs.iter().any(|run| run == prefix) {
        return Ok(prefix.to_owned());
    }
    let mut matching = runs.iter().filter(|run| run.starts_with(prefix));
    match (matching.next(), matching.next()) {
        (Some(run), None) => Ok(run.clone()),
        (Some(one), Some(other)) => {
            Err(CommandError::usage(format!("`{prefix}` may be run {one} or run {other}")).hint("give more of the id"))
        }
        (None, _) => {
            let missing = JournalError::NoRun { run: prefix.to_owned(), path: journal.path().to_owned() };
            Err(CommandError::from(missing).kind(Kind::Usage))
        }
    }
}

/// How a look at a run ends: as the run itself ended, so that scripts can wait for it.
fn exit(view: &RunView) -> Exit {
    match view.state {
        RunState::Held | RunState::WaitingApproval => Exit::Held,
        RunState::CompletedWithExceptions | RunState::Failed | RunState::Cancelled => Exit::Finding,
        _ => Exit::Done,
    }
}

/// A run as people read it.
pub(crate) fn lines(view: &RunView) -> Vec<String> {
    let book = &view.runbook;
    let mut lines = vec![
        format!("run {}: {} of {} from {} to {}", view.run, word(&book.purpose), book.service, book.from, book.to),
        format!(
            "{}{}, began {} by {}, {}",
            word(&view.state),
            if view.committed { " (past the commit point)" } else { "" },
            minute(view.started_at),
            view.initiator,
            seconds(view.took_seconds)
        ),
    ];
    lines.extend(view.why.iter().map(|why| format!("why: {why}")));
    lines.push(String::new());
    let widest = view.steps.iter().map(|step| step.id.chars().count()).max().unwrap_or(0);
    lines.extend(view.steps.iter().map(|step| step_line(step, widest)));
    if !view.waiting_for.is_empty() {
        lines.push(String::new());
    }
    for (step, need) in &view.waiting_for {
        lines.push(format!("waits for {need}"));
        lines.push(format!("  at step `{step}`: {}", run_ui::way_on(&view.run, step, need)));
    }
    if !view.notes.is_empty() {
        lines.push(String::new());
    }
    lines.extend(view.notes.iter().map(|(at, text)| format!("note, {}: {text}", minute(*at))));
    lines.push(String::new());
    lines.push(format!("journal: {} entries, hash {}", view.entries, view.journal_hash));
    lines
}

fn step_line(step: &StepView, widest: usize) -> String {
    let took = step.took_seconds.map(seconds).unwrap_or_default();
    let said = match (&step.outcome, &step.detail) {
        (_, Some(detail)) => format!(": {detail}"),
        (Some(outcome), None) if *outcome != step.status => format!(": {outcome}"),
        _ => String::new(),
    };
    let again = if step.attempts > 1 { format!(" ({} attempts)", step.attempts) } else { String::new() };
    let commit = if step.commit { " [commit point]" } else { "" };
    format!("  {:<12} {took:>9}  {:<widest$}  {}{commit}{said}{again}", step.status, step.id, step.title)
}

/// An enum's own word, as JSON has it.
fn word<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        _ => String::new(),
    }
}

fn minute(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// One event in one line: its kind first, then the rest without the run-book.
fn brief(event: &serde_json::Value) -> String {
    let Some(fields) = event.as_object() else { return event.to_string() };
    let kind = fields.get("event").and_then(serde_json::Value::as_str).unwrap_or("event");
    let rest = fields.iter().filter(|(name, _)| *name != "event" && *name != "runbook");
    let rest: Vec<String> = rest.map(|(name, value)| format!("{name}={value}")).collect();
    format!("{kind:<12} {}", rest.join(" "))
}
