//! `run approve`, `attest`, `retry`, `skip`: what persons say to a run.
//!
//! Invariant: nobody signs what was not shown to them; a signing key is read, never made, here.

use std::path::{Path, PathBuf};

use lifeboat_core::run::{Need, RunView, word};
use lifeboat_core::runbook::StepId;
use lifeboat_engine::execute::{Decision, sign_word};
use lifeboat_vault::SigningKey;

use super::resume::{executor, look};
use crate::commands::block_on;
use crate::commands::recover::login;
use crate::error::{CommandError, Exit, Kind};
use crate::run_ui;
use crate::ui::Ui;
use crate::wiring::Wiring;

/// Which run, and which step of it.
#[derive(Debug, clap::Args)]
pub(crate) struct At {
    /// The run's id, or enough of its beginning to be the only one
    #[arg(value_name = "ID")]
    run: String,
    /// The step [default: the only one that waits for this]
    #[arg(long, value_name = "STEP")]
    step: Option<String>,
}

/// Who signs.
#[derive(Debug, clap::Args)]
pub(crate) struct Signer {
    /// A person whom the plan names
    #[arg(long, value_name = "PERSON")]
    by: String,
    /// That person's signing key, as `lifeboat key person` made it
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// Approve a run that waits for it: by a person who may approve and did not start it, signed
#[derive(Debug, clap::Args)]
pub(crate) struct Approve {
    #[command(flatten)]
    at: At,
    #[command(flatten)]
    signer: Signer,
}

/// Confirm, signed, what lifeboat could not prove: that a site does not write any more
///
/// The statement is shown before it is signed. Sign it only after having seen to it at the site itself: two writers cost
/// more than a longer outage.
#[derive(Debug, clap::Args)]
pub(crate) struct Attest {
    #[command(flatten)]
    at: At,
    /// The statement, where the run does not ask for one (a fence that failed)
    #[arg(long, value_name = "TEXT")]
    statement: Option<String>,
    #[command(flatten)]
    signer: Signer,
}

/// Have a held step tried again
#[derive(Debug, clap::Args)]
pub(crate) struct Retry {
    #[command(flatten)]
    at: At,
    /// Who says so, for the record [default: the login name]
    #[arg(long, value_name = "PERSON")]
    by: Option<String>,
}

/// Go on without a held step; never without a claim, a fence, an approval or the promotion
#[derive(Debug, clap::Args)]
pub(crate) struct Skip {
    #[command(flatten)]
    at: At,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Who says so, for the record [default: the login name]
    #[arg(long, value_name = "PERSON")]
    by: Option<String>,
}

pub(crate) fn approve(args: &Approve, ui: &Ui) -> Result<Exit, CommandError> {
    let wiring = Wiring::open(ui)?;
    let (run, view) = look(&wiring, &args.at.run)?;
    let (step, need) = waiting(&view, &args.at, "an approval", |need| matches!(need, Need::Approval { .. }))?;
    let key = signing_key(&wiring, &args.signer)?;
    let by = args.signer.by.clone();
    ui.note(format_args!("run {run}, run-book {}: {need}", view.runbook_hash));
    ui.confirm(&format!("Does {by} approve this?"), args.signer.yes)?;
    let at = wiring.clock.now().to_string();
    let signature = sign_word(&key, &word::approval(&run, &step, &view.runbook_hash, &by, &at));
    say(&wiring, &view, Decision::Approve { step, by, at, signature }, "approved", ui)
}

pub(crate) fn attest(args: &Attest, ui: &Ui) -> Result<Exit, CommandError> {
    let wiring = Wiring::open(ui)?;
    let (run, view) = look(&wiring, &args.at.run)?;
    let (step, need) = waiting(&view, &args.at, "an attestation", |need| !matches!(need, Need::Approval { .. }))?;
    let statement = match (&need, &args.statement) {
        (Need::Attestation { statement, .. }, None) => statement.clone(),
        (_, Some(statement)) => statement.clone(),
        (_, None) => {
            return Err(CommandError::usage(format!("step `{step}` asks for no statement of its own"))
                .hint("say with --statement what you have seen, in a sentence"));
        }
    };
    let key = signing_key(&wiring, &args.signer)?;
    let by = args.signer.by.clone();
    ui.note(format_args!("run {run}, step `{step}`; {by} says: “{statement}”"));
    ui.confirm("Have you seen this to be so, at the thing itself?", args.signer.yes)?;
    let at = wiring.clock.now().to_string();
    let signature = sign_word(&key, &word::attestation(&run, &step, &statement, &by, &at));
    say(&wiring, &view, Decision::Attest { step, by, statement, at, signature }, "attested", ui)
}

pub(crate) fn retry(args: Retry, ui: &Ui) -> Result<Exit, CommandError> {
    let wiring = Wiring::open(ui)?;
    let (_, view) = look(&wiring, &args.at.run)?;
    let (step, _) = waiting(&view, &args.at, "a decision", |need| !matches!(need, Need::Approval { .. }))?;
    say(&wiring, &view, Decision::Retry { step, by: args.by.unwrap_or_else(login) }, "to be tried again", ui)
}

pub(crate) fn skip(args: Skip, ui: &Ui) -> Result<Exit, CommandError> {
    let wiring = Wiring::open(ui)?;
    let (_, view) = look(&wiring, &args.at.run)?;
    let (step, _) = waiting(&view, &args.at, "a decision", |_| true)?;
    let by = args.by.unwrap_or_else(login);
    say(&wiring, &view, Decision::Skip { step, by, reason: args.reason }, "skipped", ui)
}

/// The step that the word is about: the one named, or the only one that waits for such a word.
fn waiting(view: &RunView, at: &At, what: &str, fits: impl Fn(&Need) -> bool) -> Result<(StepId, Need), CommandError> {
    let run = &view.run;
    let mut fitting = view.waiting_for.iter().filter(|(step, need)| match &at.step {
        Some(named) => named == step,
        None => fits(need),
    });
    match (fitting.next(), fitting.next()) {
        (Some((step, need)), None) if fits(need) => Ok((step.clone(), need.clone())),
        (Some((step, need)), None) => {
            Err(CommandError::refused(format!("step `{step}` of run {run} does not wait for {what}, but for {need}")))
        }
        (Some(_), Some(_)) => {
            let steps: Vec<&str> = view.waiting_for.iter().map(|(step, _)| step.as_str()).collect();
            Err(CommandError::usage(format!("several steps of run {run} wait: {}", steps.join(", ")))
                .hint("say which with --step"))
        }
        (None, _) => Err(CommandError::refused(match &at.step {
            Some(step) if view.step(step).is_none() => format!("run {run} has no step `{step}`"),
            Some(step) => format!("step `{step}` of run {run} does not wait for anything"),
            None => format!("run {run} ({}) does not wait for {what}", run_ui::state_word(view.state)),
        })
        .hint(format!("`lifeboat run show {run}` tells what it waits for"))),
    }
}

/// The person's key, which must be the one that the plan knows.
fn signing_key(wiring: &Wiring, signer: &Signer) -> Result<SigningKey, CommandError> {
    let (by, path): (&str, &Path) = (&signer.by, &signer.key);
    if !path.exists() {
        return Err(CommandError::usage(format!("there is no signing key at {}", path.display())).hint(
            "`lifeboat key person -o FILE` makes one; its public half belongs in the plan, under [person.NAME]",
        ));
    }
    let key = SigningKey::load_or_create(path)?;
    let known = wiring.plan().persons.get(by).and_then(|person| person.key.as_ref());
    match known {
        Some(known) if *known != key.public().to_string() => Err(CommandError::new(
            Kind::Refused,
            format!("{} is not {by}'s key: its public half is {}, the plan has {known}", path.display(), key.public()),
        )),
        // That the plan knows no such person, or no key, is said by who checks the word.
        _ => Ok(key),
    }
}

fn say(wiring: &Wiring, view: &RunView, decision: Decision, done: &str, ui: &Ui) -> Result<Exit, CommandError> {
    let run = &view.run;
    let executor = executor(wiring, view, Vec::new())?;
    let step = match &decision {
        Decision::Approve { step, .. }
        | Decision::Attest { step, .. }
        | Decision::Retry { step, .. }
        | Decision::Skip { step, .. } => step.clone(),
        Decision::Cancel { .. } => String::new(),
    };
    let now = block_on(async {
        run_ui::decided(executor.decide(run, decision).await)?;
        Ok(executor.fetch(run).await?)
    })?
    .view()?;
    ui.document(&serde_json::json!({ "run": run, "step": step, "done": done, "waiting_for": now.waiting_for }))?;
    ui.line(format_args!("run {run}: step `{step}` is {done}, on record"));
    for (step, need) in &now.waiting_for {
        ui.line(format_args!("it still waits for {need}"));
        ui.line(format_args!("  at step `{step}`: {}", run_ui::way_on(run, step, need)));
    }
    if now.waiting_for.is_empty() {
        ui.line(format_args!("if nobody works on the run, go on with: lifeboat run resume {run}"));
    }
    Ok(Exit::Done)
}
