//! The run-book: what a plan, an inventory and a scenario compile to, and what an executor then does, step by step.
//!
//! Invariant: a run-book is data and closed. It leaves the executor no choice: where the way depends on what recovery
//! finds, each branch stands here as a step with its condition. It serializes, diffs, prints, and is what is approved.

pub mod action;
pub mod compile;
pub mod lint;
pub mod place;
pub mod render;
pub mod template;

use serde::{Deserialize, Serialize};

use crate::plan::{Name, Objective, Strategy};
use crate::units::Span;
pub use action::*;

pub type StepId = String;

/// What the run-book is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// Unplanned: the primary site is taken to be lost.
    Failover,
    /// Planned: the writer is frozen first, nothing is lost.
    Switchover,
    /// Home again, after a failover.
    Failback,
    /// Back to an earlier moment, at the site where the service is.
    Rewind,
    /// A rehearsal in isolation, with clean-up.
    Drill,
    /// Brings the service up where its writer is, on the first day or after its hosts were off. Nothing changes hands.
    Start,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Runbook {
    /// The version of this data format.
    pub format: u32,
    pub purpose: Purpose,
    pub service: Name,
    pub scenario: Name,
    pub strategy: Strategy,
    pub from: Name,
    pub to: Name,
    pub write_domain: Name,
    /// The epoch in force when this was compiled; the run is refused when another has been claimed since.
    pub from_epoch: u64,
    /// The epoch this run claims (`from_epoch + 1`); a drill and a start claim none and have the one in force.
    pub epoch: u64,
    pub objective: Objective,
    /// BLAKE3 of the plan's text, hex.
    pub plan_hash: String,
    /// RFC 3339.
    pub compiled_at: String,
    pub steps: Vec<Step>,
    /// What this run-book does not do or prove, each in a sentence.
    pub not_covered: Vec<String>,
}

/// How long is waited for what takes so long to be thawed, before somebody is asked: keepers promise the time, and no more.
pub fn thaw_patience(thaw: Span) -> Span {
    Span::seconds(thaw.0.as_secs().saturating_mul(2).saturating_add(600))
}

impl Runbook {
    /// BLAKE3 of the canonical JSON, hex: what an approval and a journal refer to.
    pub fn hash(&self) -> String {
        let json = serde_json::to_vec(self).unwrap_or_default();
        blake3::hash(&json).to_hex().to_string()
    }

    pub fn step(&self, id: &str) -> Option<&Step> {
        self.steps.iter().find(|step| step.id == id)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Unique within the run-book and stable between compilations: `fence-north`, `restore-orders`.
    pub id: StepId,
    /// One line for people, in the imperative.
    pub title: String,
    pub action: Action,
    /// Steps that must have ended (done, or not taken) before this one starts.
    pub after: Vec<StepId>,
    /// The branch this step stands in: taken only if every one of these steps ended with one of these outcomes.
    pub when: Vec<Condition>,
    pub timeout: Span,
    /// How often it is tried again after a failure that may pass, before `on_failure` decides.
    pub retries: u32,
    pub on_failure: OnFailure,
    /// From this step on the run only goes forward. Exactly one step that is taken has this, unless it is a drill, or the service came back in place.
    pub commit: bool,
    /// What takes this step back, when the run unwinds before the commit point.
    pub undo: Option<Action>,
    /// Waits for the journal's mirror, too, before acting (claim, fence and commit).
    pub mirrored: bool,
    /// Runs even when an earlier step failed (a drill's clean-up).
    pub always: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    pub step: StepId,
    /// [`ELSE`] among them: also when the step ended without any.
    pub outcomes: Vec<String>,
}

/// In place of an outcome: the step was not taken, was skipped, or failed and that was noted.
pub const ELSE: &str = "else";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// Take back what was done and end as failed. After the commit point this is a hold.
    Unwind,
    /// Stop and wait for a person: retry, skip, attest or cancel.
    Hold,
    /// Go on; the run ends as completed-with-exceptions, naming this.
    Note,
}
