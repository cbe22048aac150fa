//! A person's word on a run: approve, attest, retry, skip, cancel.
//!
//! Invariant: a word that needs a signature is recorded only with one that the plan's key for that person made over
//! exactly this run, step and statement; nobody approves what they started; the state machine has the last say.

use lifeboat_core::plan::{Name, Person};
use lifeboat_core::run::{Event, Need, Phase, StepStatus, word};
use lifeboat_core::runbook::StepId;
use lifeboat_vault::sign::{PublicKey, SigningKey};

use super::live::{Live, Recording};
use super::{ExecuteError, Executor};
use crate::arbitrate::LockState;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// `signature` is hex, over `core::run::word::approval`.
    Approve {
        step: StepId,
        by: Name,
        at: String,
        signature: String,
    },
    /// `signature` is hex, over `core::run::word::attestation`.
    Attest {
        step: StepId,
        by: Name,
        statement: String,
        at: String,
        signature: String,
    },
    Retry {
        step: StepId,
        by: Name,
    },
    Skip {
        step: StepId,
        by: Name,
        reason: String,
    },
    Cancel {
        by: Name,
        reason: String,
    },
}

/// Why a person's word was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the plan names no person {by}; it names {known}")]
    Unknown { by: String, known: String },
    #[error("{by} may not approve; in the plan, `approves = true` says who may")]
    MayNotApprove { by: String },
    #[error("the plan has no key for {by}; add `key` under [person.{by}] and sign with it")]
    NoKey { by: String },
    #[error("the key of {by} in the plan is not an Ed25519 public key in hex")]
    BadKey { by: String },
    #[error("the signature is not {by}'s for this run, this step and these words")]
    BadSignature { by: String },
    #[error(
        "another machine works on run {run}; say it there, or take the run over with `lifeboat run resume {run}` first"
    )]
    Elsewhere { run: String },
    #[error("run {run} cannot take this: {reason}")]
    Illegal { run: String, reason: String },
}

impl Executor {
    /// Records a person's word. A run that somebody works on takes it up at once, others with the next resume.
    pub async fn decide(&self, run: &str, decision: Decision) -> Result<(), ExecuteError> {
        let recorded = self.fetch(run).await?;
        let mut live = Live::from(self, run, recorded)?;
        if let Phase::Ended { state } = live.state.phase {
            return Err(ExecuteError::Over { run: run.into(), state });
        }
        self.refuse_when_elsewhere(run, &live).await?;
        let event = self.check(run, &live, decision)?;
        match live.record(event).await? {
            Recording::Recorded => {
                live.settle_mirror().await;
                Ok(())
            }
            Recording::NotAnyMore(illegal) => Err(Refused::Illegal { run: run.into(), reason: illegal.reason }.into()),
        }
    }

    /// Another machine's executor would not see a word that is said here, and would have to stop because of it.
    async fn refuse_when_elsewhere(&self, run: &str, live: &Live) -> Result<(), ExecuteError> {
        let (arbiter, service) = (self.arbiter.clone(), live.runbook.service.clone());
        let lock = match self.blocking_arbiter(&service, move |service| arbiter.run_lock(&service)).await {
            Ok(lock) => lock,
            Err(ExecuteError::Arbiter(error)) if error.may_pass() => None,
            Err(error) => return Err(error),
        };
        let elsewhere = lock.is_some_and(|(claim, beat)| {
            let held = beat.is_none_or(|beat| beat.state == LockState::Held);
            claim.run == run && claim.host != self.journal.host() && held
        });
        if elsewhere { Err(Refused::Elsewhere { run: run.into() }.into()) } else { Ok(()) }
    }

    fn check(&self, run: &str, live: &Live, decision: Decision) -> Result<Event, Refused> {
        Ok(match decision {
            Decision::Approve { step, by, at, signature } => {
                let runbook_hash = live.state.runbook_hash.clone();
                let person = self.person(&by)?;
                if !person.approves {
                    return Err(Refused::MayNotApprove { by });
                }
                verify(person, &by, &word::approval(run, &step, &runbook_hash, &by, &at), &signature)?;
                Event::Approved { step, by, runbook_hash, at, signature }
            }
            Decision::Attest { step, by, statement, at, signature } => {
                let person = self.person(&by)?;
                verify(person, &by, &word::attestation(run, &step, &statement, &by, &at), &signature)?;
                Event::Attested { step, by, statement, at, signature }
            }
            Decision::Retry { step, by } => Event::RetryAsked { step, by },
            Decision::Skip { step, by, reason } => Event::Skipped { step, by, reason },
            Decision::Cancel { by, reason } => Event::CancelAsked { by, reason },
        })
    }

    fn person(&self, by: &str) -> Result<&Person, Refused> {
        self.persons.get(by).ok_or_else(|| {
            let known: Vec<&str> = self.persons.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "nobody".to_owned() } else { known.join(", ") };
            Refused::Unknown { by: by.into(), known }
        })
    }
}

/// The step that waits for an approval, an attestation or a decision, when there is exactly one that a word can be about.
pub fn only_waiting(state: &lifeboat_core::run::State, fits: impl Fn(&Need) -> bool) -> Option<StepId> {
    let mut waiting = state.steps.iter().filter_map(|(id, of_step)| match &of_step.status {
        StepStatus::Held { needs } if fits(needs) => Some(id.clone()),
        _ => None,
    });
    waiting.next().filter(|_| waiting.next().is_none())
}

/// The kind under which persons sign their words, approvals and attestations alike (what is said tells them apart).
pub const WORD_KIND: &str = "lifeboat.word";

fn verify(person: &Person, by: &str, message: &[u8], signature: &str) -> Result<(), Refused> {
    let key = person.key.as_ref().ok_or_else(|| Refused::NoKey { by: by.into() })?;
    let key: PublicKey = key.parse().map_err(|_| Refused::BadKey { by: by.into() })?;
    let signature = unhex(signature).filter(|signature| key.verify(WORD_KIND, message, signature));
    signature.map(|_| ()).ok_or_else(|| Refused::BadSignature { by: by.into() })
}

/// Signs a person's word, in hex, as `Decision` wants it.
pub fn sign_word(key: &SigningKey, message: &[u8]) -> String {
    key.sign(WORD_KIND, message).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 64]> {
    let text = text.trim().as_bytes();
    let mut bytes = [0; 64];
    if text.len() != 128 {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}
