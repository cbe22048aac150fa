//! Evidence: what a run's journal proves, as one document for people and the same as data for programs.
//!
//! Invariant: evidence is a rendering of the journal and of a count of losses, and of nothing else: the same two always
//! give the same document. What was not measured is absent, never zero; what was not checked never passes.

mod judge;
mod page;
mod seal;
#[cfg(test)]
mod tests;
mod time;

use std::collections::BTreeMap;

use jiff::Timestamp;
use lifeboat_core::run::{Entry, Event, Facts, RunState, RunView, ViewError};
use lifeboat_core::runbook::{Action, Purpose};
use serde::{Deserialize, Serialize};

pub use page::page;
pub use seal::{Document, SealError, Signature, VerifyError, seal, statement, verify};

/// The version of the JSON form.
pub const FORMAT: u32 = 1;

/// What somebody counted afterwards who had kept a list of acknowledged writes. Not the engine's own word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Losses {
    pub acknowledged: u64,
    /// Of these, still there with the right content.
    pub present: u64,
    /// Of these, absent.
    pub lost: u64,
    /// Of these, there with other content.
    pub wrong: u64,
    /// When the first write that is lost or wrong was acknowledged.
    pub first_lost_at: Option<Timestamp>,
    pub counted_at: Timestamp,
    /// Who counted, and how, in a few words.
    pub counted_by: String,
}

/// Whether an objective was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Judgement {
    Met,
    /// Not measured exactly, but what was seen bounds it within the objective.
    MetAsFarAsSeen,
    Missed,
    Unproven,
    /// The objective does not speak of this kind of run.
    NotAsked,
}

/// One objective against what was proven.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    pub objective_seconds: f64,
    /// Absent when it was not measured.
    pub proven_seconds: Option<f64>,
    /// An upper bound, where there is no exact measure.
    pub at_most_seconds: Option<f64>,
    pub judgement: Judgement,
    /// From what to what it was measured, or why it was not.
    pub how: String,
}

/// The canary that came back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CanaryRead {
    pub number: Option<u64>,
    pub written_at: Option<Timestamp>,
    pub read_at: Option<Timestamp>,
    /// How long before the disaster it was written: the loss as users see it, at most.
    pub before_disaster_seconds: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckResult {
    Passed,
    /// A person's word stands in place of a proof.
    Attested,
    Failed,
    /// It stood in the run-book and was not done.
    NotDone,
}

/// One thing that was looked at, or should have been.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub what: String,
    pub result: CheckResult,
    pub detail: String,
}

/// What kind of thing a step does, so that a reader can find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Concern {
    Authority,
    Fence,
    Data,
    Instances,
    Traffic,
    Proof,
    Isolation,
    Command,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    pub id: String,
    pub title: String,
    pub concern: Concern,
    /// As `run show` names it: `done`, `not-taken`, `failed`, …
    pub status: String,
    pub detail: Option<String>,
    pub outcome: Option<String>,
    pub commit: bool,
    pub attempts: u32,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    /// On the time line: seconds after its zero.
    pub from_seconds: Option<f64>,
    pub took_seconds: Option<f64>,
    pub facts: Facts,
}

/// A person's word, as the journal has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    pub at: Timestamp,
    pub by: String,
    /// `approved`, `attested`, `asked for a retry`, `skipped`, `cancelled`.
    pub what: String,
    pub step: Option<String>,
    pub said: String,
    pub signature: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remark {
    pub at: Timestamp,
    pub text: String,
}

/// How serious the verdict is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tone {
    Good,
    Doubtful,
    Bad,
}

/// The whole document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    pub format: u32,
    pub run: String,
    pub service: String,
    pub purpose: Purpose,
    pub scenario: String,
    pub strategy: String,
    pub from: String,
    pub to: String,
    pub write_domain: String,
    pub from_epoch: u64,
    pub epoch: u64,
    pub initiator: String,
    pub state: RunState,
    /// Why the run ended early, if it did.
    pub why: Option<String>,
    pub tone: Tone,
    /// One sentence.
    pub verdict: String,
    /// What a reader must know before believing the verdict, each in a sentence.
    pub reservations: Vec<String>,
    pub disaster_at: Option<Timestamp>,
    pub how_known: String,
    pub started_at: Timestamp,
    pub ended_at: Timestamp,
    pub took_seconds: f64,
    pub rpo: Measure,
    pub rto: Measure,
    /// On the time line: when the service was proven to serve again.
    pub served_at_seconds: Option<f64>,
    pub losses: Option<Losses>,
    pub canary: Option<CanaryRead>,
    /// Whether the service was protected again when the run ended; absent when the run-book does not ask for it.
    pub protected_again: Option<bool>,
    pub steps: Vec<StepRecord>,
    pub checks: Vec<Check>,
    pub not_checked: Vec<String>,
    pub simulated: Vec<String>,
    pub words: Vec<Word>,
    pub notes: Vec<Remark>,
    pub waiting_for: BTreeMap<String, String>,
    pub plan_hash: String,
    pub runbook_hash: String,
    pub compiled_at: String,
    pub journal_entries: u64,
    pub journal_hash: String,
}

impl Evidence {
    /// Renders a checked journal. `journal_hash` is the hash of its last entry, `losses` what was counted afterwards.
    pub fn of(entries: &[Entry], journal_hash: &str, losses: Option<Losses>) -> Result<Evidence, ViewError> {
        let view = RunView::of(entries, journal_hash)?;
        let line = time::Line::of(&view, entries);
        let steps = records(&view, entries, &line);
        let canary = judge::canary(&view, line.disaster_at);
        let rto = judge::rto(&view, entries, &line);
        let rpo = judge::rpo(&view, &line, losses.as_ref(), canary.as_ref());
        let checks = judge::checks(&view, &rpo, losses.as_ref());
        let mut not_checked = view.runbook.not_covered.clone();
        not_checked.extend(judge::not_looked_at(&view));
        if losses.is_none() {
            not_checked.push(
                "acknowledged writes: nobody counted which of them are still there, so what was lost is not known exactly"
                    .to_owned(),
            );
        }
        let protected_again = judge::protected_again(&view);
        let verdict = judge::verdict(&view, &rpo, &rto, &checks, losses.as_ref());
        let runbook = &view.runbook;
        Ok(Evidence {
            format: FORMAT,
            run: view.run.clone(),
            service: runbook.service.clone(),
            purpose: runbook.purpose,
            scenario: runbook.scenario.clone(),
            strategy: word(&runbook.strategy),
            from: runbook.from.clone(),
            to: judge::recovered_at(&view).to_owned(),
            write_domain: runbook.write_domain.clone(),
            from_epoch: runbook.from_epoch,
            epoch: runbook.epoch,
            initiator: view.initiator.clone(),
            state: view.state,
            why: view.why.clone(),
            tone: verdict.tone,
            verdict: verdict.sentence,
            reservations: verdict.reservations,
            disaster_at: line.disaster_at,
            how_known: view.how_known.clone(),
            started_at: view.started_at,
            ended_at: view.last_at,
            took_seconds: line.at(entries.len().saturating_sub(1)) - line.at(0),
            rpo,
            served_at_seconds: rto
                .proven_seconds
                .and_then(|took| Some(took + judge::zero(&view, entries, &line).ok()?.0)),
            rto,
            losses,
            canary,
            protected_again,
            steps,
            checks,
            not_checked,
            simulated: view.simulated.clone(),
            words: words(entries),
            notes: notes(&view, &line),
            waiting_for: view.waiting_for.iter().map(|(step, need)| (step.clone(), need.to_string())).collect(),
            plan_hash: runbook.plan_hash.clone(),
            runbook_hash: view.runbook_hash.clone(),
            compiled_at: runbook.compiled_at.clone(),
            journal_entries: view.entries,
            journal_hash: journal_hash.to_owned(),
        })
    }
}

/// How a unit enum is written in JSON: the plan's own word.
fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn records(view: &RunView, entries: &[Entry], line: &time::Line) -> Vec<StepRecord> {
    let actions = view.runbook.steps.iter().map(|step| &step.action);
    let record = |(step, action): (&lifeboat_core::run::StepView, &Action)| StepRecord {
        id: step.id.clone(),
        title: step.title.clone(),
        concern: concern(action),
        status: step.status.clone(),
        detail: step.detail.clone(),
        outcome: step.outcome.clone(),
        commit: step.commit,
        attempts: step.attempts,
        started_at: step.started_at,
        ended_at: step.ended_at,
        from_seconds: time::began(entries, &step.id).map(|index| line.at(index)),
        took_seconds: step.took_seconds,
        facts: step.facts.clone(),
    };
    view.steps.iter().zip(actions).map(record).collect()
}

fn concern(action: &Action) -> Concern {
    match action {
        Action::Approve { .. } | Action::ClaimEpoch { .. } | Action::Promote { .. } => Concern::Authority,
        Action::Fence { .. } | Action::LiftFence { .. } => Concern::Fence,
        Action::Freeze { .. }
        | Action::Unfreeze { .. }
        | Action::Reserve { .. }
        | Action::AssessLoss { .. }
        | Action::PutBack { .. }
        | Action::Lack { .. }
        | Action::InspectStandby { .. }
        | Action::CatchUp { .. }
        | Action::SetAside { .. }
        | Action::Restore { .. }
        | Action::AwaitProtection { .. }
        | Action::KeepVolume { .. }
        | Action::LookThroughVolume { .. }
        | Action::AwaitStandby { .. } => Concern::Data,
        Action::StopInstances { .. }
        | Action::StartInstances { .. }
        | Action::AwaitHealthy { .. }
        | Action::Quiet { .. }
        | Action::Restart { .. }
        | Action::AwaitLease { .. }
        | Action::EnsureAgent { .. } => Concern::Instances,
        Action::AskAuthority { .. } | Action::SetTraffic { .. } => Concern::Traffic,
        Action::AwaitService { .. } | Action::ReadCanary { .. } => Concern::Proof,
        Action::Isolate { .. } | Action::RemoveIsolation { .. } | Action::VerifyClean { .. } => Concern::Isolation,
        Action::RunCommand { .. } => Concern::Command,
    }
}

fn words(entries: &[Entry]) -> Vec<Word> {
    let said = |entry: &Entry| {
        let (by, what, step, said, signature) = match &entry.event {
            Event::Attested { step, by, statement, signature, .. } => {
                (by, "attested", Some(step), statement.clone(), Some(signature.clone()))
            }
            Event::Approved { step, by, runbook_hash, signature, .. } => {
                let said = format!("run-book {runbook_hash}");
                (by, "approved", Some(step), said, Some(signature.clone()))
            }
            Event::RetryAsked { step, by } => (by, "asked for a retry", Some(step), String::new(), None),
            Event::Skipped { step, by, reason } => (by, "skipped", Some(step), reason.clone(), None),
            Event::CancelAsked { by, reason } => (by, "cancelled", None, reason.clone(), None),
            _ => return None,
        };
        Some(Word { at: entry.at, by: by.clone(), what: what.to_owned(), step: step.cloned(), said, signature })
    };
    entries.iter().filter_map(said).collect()
}

fn notes(view: &RunView, line: &time::Line) -> Vec<Remark> {
    let mut notes: Vec<Remark> = view.notes.iter().map(|(at, text)| Remark { at: *at, text: text.clone() }).collect();
    notes.extend(line.jumps.iter().cloned());
    notes.sort_by_key(|note| note.at);
    notes
}
