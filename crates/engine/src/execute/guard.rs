//! Looks, right before an action that changes the world, that the run is still this executor's and its epoch in force.
//!
//! Invariant: an action is refused rather than done under an epoch that is not in force, or without the run lock. What
//! remains is the moment between the look and the act; targets that can check an epoch themselves close it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lifeboat_core::runbook::{Action, Purpose, Runbook};

use crate::arbitrate::{Arbiter, ArbiterError, HeldLock};

pub(super) struct Guard {
    arbiter: Arc<Arbiter>,
    lock: Arc<HeldLock>,
    runbook: Arc<Runbook>,
    run: String,
}

#[derive(Debug)]
pub(super) enum Stop {
    Superseded(String),
    LockLost(String),
    /// The arbiter could not be asked: nobody knows, so nothing is done.
    Unknown(String),
}

impl Guard {
    pub(super) fn new(arbiter: Arc<Arbiter>, lock: Arc<HeldLock>, runbook: Arc<Runbook>, run: &str) -> Guard {
        Guard { arbiter, lock, runbook, run: run.into() }
    }

    /// Blocking: asks the arbiter. `claimed` when the run has its own epoch; `cleanup` is a drill's, which is done whatever
    /// the epoch.
    pub(super) fn check(&self, action: &Action, claimed: bool, cleanup: bool) -> Result<(), Stop> {
        if !changes_the_world(action) {
            return Ok(());
        }
        self.arbiter.check_lock(&self.lock).map_err(stop)?;
        if cleanup && self.runbook.purpose == Purpose::Drill {
            return Ok(());
        }
        let claim = self.arbiter.current_epoch(&self.runbook.write_domain).map_err(stop)?;
        let in_force = claim.as_ref().map_or(0, |claim| claim.epoch);
        let ours = claim.as_ref().is_some_and(|claim| claim.epoch == self.runbook.epoch && claim.run == self.run);
        if ours || !claimed && in_force == self.runbook.from_epoch {
            return Ok(());
        }
        let by = claim.map_or(String::new(), |claim| format!(" by run {} for {}", claim.run, claim.primary));
        Err(Stop::Superseded(format!(
            "epoch {in_force} of {} was claimed{by}; this run acts under epoch {} and may do nothing more",
            self.runbook.write_domain, self.runbook.epoch
        )))
    }
}

fn stop(error: ArbiterError) -> Stop {
    match error {
        ArbiterError::LockLost { .. } => Stop::LockLost(error.to_string()),
        other => Stop::Unknown(format!(
            "the arbiter could not say whether this run's epoch is still in force: {}",
            other.with_cause()
        )),
    }
}

/// Actions that only look or wait need no lock and no epoch.
fn changes_the_world(action: &Action) -> bool {
    !matches!(
        action,
        Action::Approve { .. }
            | Action::AwaitHealthy { .. }
            | Action::InspectStandby { .. }
            | Action::AssessLoss { .. }
            | Action::CatchUp { .. }
            | Action::AskAuthority { .. }
            | Action::AwaitService { .. }
            | Action::ReadCanary { .. }
            | Action::AwaitProtection { .. }
            | Action::AwaitStandby { .. }
            | Action::AwaitLease { .. }
            | Action::VerifyClean { .. }
            | Action::Lack { .. }
    )
}

/// Renews the run lock in the background.
pub(super) struct Renewal {
    lost: Arc<Mutex<Option<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Renewal {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Renewal {
    pub(super) fn start(arbiter: Arc<Arbiter>, lock: Arc<HeldLock>) -> Renewal {
        let lost = Arc::new(Mutex::new(None));
        let tell = lost.clone();
        let task = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs_f64(lock.renew_every_seconds())).await;
                let (with, what) = (arbiter.clone(), lock.clone());
                match tokio::task::spawn_blocking(move || with.renew_lock(&what)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error @ ArbiterError::LockLost { .. })) => {
                        *tell.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
                        return;
                    }
                    Ok(Err(error)) => tracing::warn!("the run lock could not be renewed: {}", error.with_cause()),
                    Err(_) => return,
                }
            }
        });
        Renewal { lost, task }
    }

    /// Why the lock is lost, if it is.
    pub(super) fn lost(&self) -> Option<String> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
