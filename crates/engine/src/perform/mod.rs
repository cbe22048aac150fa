//! Carries out a run-book's actions in the world: which port does what, and what counts as done.
//!
//! Invariant: an action here decides nothing that the run-book does not say. It reports what it found; where it waits,
//! the step's timeout ends it, and what was last seen is on record.

mod data;
mod domain;
mod in_place;
mod lease;
mod proof;
mod sites;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_core::plan::{Name, Rerun};
use lifeboat_core::run::{Facts, Found, Need};
use lifeboat_core::runbook::Action;
use lifeboat_vault::storage;
use serde_json::json;

use crate::arbitrate::{Arbiter, ArbiterError};
pub use crate::execute::{Failure, Performed, Performer};
pub use sites::KILLED_WRITERS;

use crate::port::{Clock, Context, FenceRequest, PortError, Probe, Recovery, ServiceDoor, Site, SiteVerb};

/// By step.
pub type Waiting = Arc<Mutex<BTreeMap<String, String>>>;

fn note_waiting(waiting: &Waiting, step: &str, seen: &str) {
    waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(step.to_owned(), seen.to_owned());
}

/// Everything a controller acts through.
pub struct World {
    /// The service the run is about.
    pub service: Name,
    pub sites: BTreeMap<Name, Arc<dyn Site>>,
    pub probe: Arc<dyn Probe>,
    pub clock: Arc<dyn Clock>,
    pub arbiter: Arc<Arbiter>,
    pub recovery: Arc<dyn Recovery>,
    /// When the outage began, as the run's first entry says; RPO and loss are counted from it.
    pub disaster_at: Option<Timestamp>,
    /// What each waiting step saw last; shared with whoever shows it.
    pub waiting: Waiting,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World")
            .field("service", &self.service)
            .field("sites", &self.sites.keys())
            .finish_non_exhaustive()
    }
}

impl Performed {
    pub(crate) fn new(outcome: &str, facts: Facts) -> Performed {
        Performed { outcome: outcome.to_owned(), facts }
    }
}

impl Failure {
    pub(crate) fn failed(error: impl Into<String>) -> Failure {
        Failure::Failed { error: error.into(), may_pass: false }
    }

    pub(crate) fn may_pass(error: impl Into<String>) -> Failure {
        Failure::Failed { error: error.into(), may_pass: true }
    }
}

impl From<ArbiterError> for Failure {
    fn from(error: ArbiterError) -> Failure {
        let may_pass = !error.is_refusal();
        Failure::Failed { error: crate::execute::with_cause(&error), may_pass }
    }
}

impl World {
    /// What a step that waits saw last, for the screen and for the error when its time is over.
    pub fn last_seen(&self, step: &str) -> Option<String> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).get(step).cloned()
    }

    fn note_waiting(&self, step: &str, seen: &str) {
        note_waiting(&self.waiting, step, seen);
    }

    /// A drill's own place for generations.
    fn throw_away(&self, url: &str) -> Result<Arc<Arbiter>, Failure> {
        let storage = storage::create(url).map_err(|error| Failure::failed(crate::execute::with_cause(&error)))?;
        Ok(Arc::new(self.arbiter.elsewhere(storage)))
    }

    fn door(name: &str, authority: Option<&String>, port: Option<u16>) -> ServiceDoor {
        ServiceDoor { name: name.to_owned(), authority: authority.cloned(), port }
    }
}

#[async_trait]
impl Performer for World {
    async fn perform(&self, action: &Action, context: &Context) -> Result<Performed, Failure> {
        match action {
            Action::Approve { reason } => Err(Failure::Needs(Need::Approval { reason: reason.clone() })),
            Action::ClaimEpoch { write_domain, epoch, primary, planned } => {
                self.claim(write_domain, *epoch, primary, *planned, context).await
            }
            Action::Fence { site, write_domain, instances, volumes, planned, lease } => {
                let request = FenceRequest {
                    write_domain: write_domain.clone(),
                    instances: instances.clone(),
                    volumes: volumes.clone(),
                };
                let performed = self.fence(site, &request, lease.as_ref(), context).await?;
                if *planned { sites::refuse_late_writers(site, performed) } else { Ok(performed) }
            }
            Action::LiftFence { site, write_domain } => {
                self.site(site)?.lift_fence(write_domain, context).await?;
                Ok(Performed::new("lifted", Facts::new()))
            }
            Action::StopInstances { site, instances, write_domain } => {
                self.stop(site, instances, write_domain.as_deref(), context).await
            }
            Action::Quiet { site, instances, write_domain } => self.quiet(site, instances, write_domain, context).await,
            Action::KeepVolume { site, volume, name } => self.keep_volume(site, volume, name, context).await,
            Action::LookThroughVolume { site, volume } => self.look_through(site, volume, context).await,
            Action::Restart { site, write_domain, groups, within } => {
                self.restart(site, write_domain, groups, *within, context).await
            }
            Action::StartInstances { site, instances } => self.start(site, instances, context).await,
            Action::AwaitHealthy { site, instances } => self.await_healthy(site, instances, context).await,
            Action::Freeze { write_domain, site, datasets } => self.freeze(write_domain, site, datasets, context).await,
            Action::Unfreeze { write_domain, site } => self.unfreeze(write_domain, site, context).await,
            Action::EnsureAgent { site } => self.verb(site, SiteVerb::EnsureAgent, "running", context).await,
            Action::Reserve { write_domain, site, datasets, epoch } => {
                self.reserve(write_domain, site, datasets, *epoch, context).await
            }
            Action::AssessLoss { volumes, target, approved, .. } => {
                self.assess_loss(volumes, target, *approved, context).await
            }
            Action::InspectStandby { site, datasets, volumes, .. } => {
                self.inspect_standby(site, datasets, volumes, context).await
            }
            Action::CatchUp { site, write_domain, datasets } => {
                self.catch_up(site, write_domain, datasets, context).await
            }
            Action::SetAside { site, volume } => {
                self.verb(site, SiteVerb::SetAside(volume.clone()), "moved", context).await
            }
            Action::PutBack { site, volume } => {
                self.verb(site, SiteVerb::PutBack(volume.clone()), "put-back", context).await
            }
            Action::Restore { site, volume, target, in_place, approved } => {
                self.restore(site, volume, target, *in_place, *approved, context).await
            }
            Action::Promote { site, write_domain, datasets, epoch } => {
                self.promote(write_domain, site, datasets, *epoch, context).await
            }
            Action::AwaitLease { site, write_domain, epoch } => {
                self.await_lease(site, write_domain, *epoch, context).await
            }
            Action::RunCommand { site, command, .. } => {
                self.verb(site, SiteVerb::Run(command.clone()), "ran", context).await
            }
            Action::AskAuthority { name, authority } => self.ask_authority(name, authority, context).await,
            Action::SetTraffic { name, authority, ttl, answers, arbiter } => {
                let own = arbiter.as_deref().map(|url| self.throw_away(url)).transpose()?;
                let board = own.as_ref().unwrap_or(&self.arbiter);
                self.set_traffic(board, name, authority, ttl.0.as_secs().max(1) as u32, answers, context).await
            }
            Action::AwaitService { name, authority, port, health } => {
                self.await_service(&World::door(name, authority.as_ref(), *port), health, context).await
            }
            Action::ReadCanary { name, authority, port, read } => {
                let door = World::door(name, authority.as_ref(), *port);
                self.read_canary(&self.service, &door, read, context).await
            }
            Action::AwaitProtection { site, datasets, vaults, rpo, epoch, .. } => {
                self.await_protection(site, datasets, vaults, *rpo, *epoch, context).await
            }
            Action::AwaitStandby { site, datasets, epoch, .. } => {
                self.await_standby(site, datasets, *epoch, context).await
            }
            Action::Lack { what } => Err(Failure::failed(what.clone())),
            Action::Isolate { site, isolation } => {
                self.verb(site, SiteVerb::Isolate(isolation.clone()), "isolated", context).await
            }
            Action::RemoveIsolation { site, isolation } => {
                self.verb(site, SiteVerb::RemoveIsolation(isolation.clone()), "removed", context).await
            }
            Action::VerifyClean { site, isolation } => self.verify_clean(site, isolation, context).await,
        }
    }

    /// Nearly every action finds out by itself what is left to do; only these two need another answer.
    async fn observe(&self, action: &Action, context: &Context) -> Result<Found, PortError> {
        match action {
            Action::ClaimEpoch { write_domain, epoch, .. } => {
                let claim = self
                    .arbiter
                    .epoch(write_domain, *epoch)
                    .map_err(|error| PortError::may_pass(format!("cannot see who has epoch {epoch}")).because(error))?;
                Ok(match claim {
                    Some(claim) if claim.run == context.run => Found::Happened {
                        outcome: "claimed".into(),
                        facts: Facts::from([("epoch".to_owned(), json!(epoch))]),
                    },
                    _ => Found::DoAgain,
                })
            }
            Action::RunCommand { site, command, rerun: Rerun::Ask } => Ok(Found::Unknown {
                ask: format!(
                    "`{}` may have run at {site} already, and the plan says not to run it again unasked: look at what it \
                     does, then skip the step if it was done, or retry it",
                    command.join(" ")
                ),
            }),
            _ => Ok(Found::DoAgain),
        }
    }
}
