//! What a run's journal records, one event an entry.
//!
//! Invariant: an event states what was intended, found or done, never what should be concluded from it. No secret stands in one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::runbook::{Runbook, StepId};

/// Facts that an action reports about itself, by name: `position`, `loss_seconds`, `files`. Evidence shows them.
pub type Facts = BTreeMap<String, serde_json::Value>;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The first entry: the pinned run-book. `disaster_at` is when the outage began (RFC 3339), as known or assumed, and `how_known` says which.
    Started {
        runbook: Box<Runbook>,
        initiator: String,
        disaster_at: Option<String>,
        how_known: String,
        simulated: Vec<String>,
    },
    /// About to act.
    Intent {
        step: StepId,
        attempt: u32,
    },
    /// After a crash: what `observe` found about a step whose outcome was not recorded.
    Observed {
        step: StepId,
        attempt: u32,
        found: Found,
    },
    Done {
        step: StepId,
        attempt: u32,
        outcome: String,
        facts: Facts,
    },
    Failed {
        step: StepId,
        attempt: u32,
        error: String,
        may_pass: bool,
    },
    /// The step waits for a person: `needs` says for what, in a sentence that can be acted on.
    Held {
        step: StepId,
        attempt: u32,
        needs: Need,
    },
    /// A person's word in place of a proof; `signature` covers run, step, statement, person and time (`word::attestation`).
    Attested {
        step: StepId,
        by: String,
        statement: String,
        /// RFC 3339, as signed.
        at: String,
        signature: String,
    },
    /// A person's consent; `signature` covers run, step, run-book hash, person and time (`word::approval`).
    Approved {
        step: StepId,
        by: String,
        runbook_hash: String,
        /// RFC 3339, as signed.
        at: String,
        signature: String,
    },
    RetryAsked {
        step: StepId,
        by: String,
    },
    Skipped {
        step: StepId,
        by: String,
        reason: String,
    },
    CancelAsked {
        by: String,
        reason: String,
    },
    /// Taking a done step back, before the commit point.
    UndoIntent {
        step: StepId,
    },
    Undone {
        step: StepId,
        outcome: String,
    },
    UndoFailed {
        step: StepId,
        error: String,
    },
    /// The executor stopped on request; the run can be resumed.
    Paused {
        why: String,
    },
    /// An executor goes on with a run that was paused, held, or cut off.
    Resumed {
        by: String,
    },
    /// A later epoch has been claimed elsewhere: this run may do nothing more, not even take back what it did.
    Superseded {
        why: String,
    },
    /// Something a reader of the evidence must know: a plan that changed, a clock that jumped, an executor that took over.
    Note {
        text: String,
    },
    Finished {
        state: RunState,
    },
}

/// What an action's `observe` found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "found", rename_all = "kebab-case")]
pub enum Found {
    /// It had happened, entirely.
    Happened { outcome: String, facts: Facts },
    /// It had not happened, or may simply be done again.
    DoAgain,
    /// Nobody can tell, and doing it again may do harm: a person must say.
    Unknown { ask: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "need", rename_all = "kebab-case")]
pub enum Need {
    Approval {
        reason: String,
    },
    /// A person must confirm `statement` at the console of the thing itself.
    Attestation {
        statement: String,
        why: String,
    },
    /// A failure that a person must decide on: retry, skip or cancel.
    Decision {
        error: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    Pending,
    Running,
    WaitingApproval,
    Paused,
    Held,
    Completed,
    CompletedWithExceptions,
    Failed,
    Cancelled,
}
