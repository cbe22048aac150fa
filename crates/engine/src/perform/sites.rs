//! Actions at sites: instances, fences, agents, commands, volumes, isolation.
//!
//! Invariant: what a site could not prove stays unproven here; only a person's word, on record, takes a proof's place.

use std::sync::Arc;
use std::time::Duration;

use lifeboat_core::run::Facts;
use lifeboat_core::runbook::{InstanceSpec, LeaseFence};
use serde_json::json;

use super::lease::Unproven;
use super::{Failure, Performed, World};
use crate::port::{Context, FenceRequest, Fenced, InstanceState, Site, SiteAnswer, SiteVerb, VolumeState};

/// How often something that must come true is looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often an instance that ends before it is healthy is started again within one step.
const RESTARTS_MAX: u32 = 3;

impl World {
    pub(super) fn site(&self, name: &str) -> Result<&Arc<dyn Site>, Failure> {
        self.sites.get(name).ok_or_else(|| Failure::failed(format!("no site `{name}` is known to this controller")))
    }

    pub(super) async fn start(
        &self,
        site: &str,
        instances: &[InstanceSpec],
        context: &Context,
    ) -> Result<Performed, Failure> {
        let at = self.site(site)?;
        let mut facts = Facts::new();
        for instance in instances {
            let started = at.start(instance, context).await?;
            facts.insert(instance.id(), json!(started));
        }
        Ok(Performed::new("started", facts))
    }

    pub(super) async fn stop(
        &self,
        site: &str,
        instances: &[InstanceSpec],
        write_domain: Option<&str>,
        context: &Context,
    ) -> Result<Performed, Failure> {
        let at = self.site(site)?;
        let mut facts = Facts::new();
        for instance in instances {
            facts.insert(instance.id(), json!(at.stop(instance, context).await?));
        }
        // What an earlier plan had started is in no run-book of this one.
        if let Some(domain) = write_domain
            && let SiteAnswer::Done(rest) = at.perform(&SiteVerb::StopRest(domain.to_owned()), context).await?
        {
            facts.insert("rest".to_owned(), json!(rest));
        }
        for instance in instances {
            match at.observe(instance).await? {
                InstanceState::Stopped => {}
                InstanceState::Running => {
                    return Err(Failure::may_pass(format!(
                        "{} still runs at {site} after it was stopped",
                        instance.id()
                    )));
                }
                InstanceState::Unknown(why) => {
                    return Err(Failure::may_pass(format!(
                        "nobody can say whether {} still runs at {site}: {why}",
                        instance.id()
                    )));
                }
            }
        }
        Ok(Performed::new("stopped", facts))
    }

    /// Waits until every instance is healthy, and starts again what has ended; the step's own timeout ends the wait, `last` tells what was seen.
    pub(super) async fn await_healthy(
        &self,
        site: &str,
        instances: &[InstanceSpec],
        context: &Context,
    ) -> Result<Performed, Failure> {
        let at = self.site(site)?;
        let mut facts = Facts::new();
        for instance in instances {
            let Some(health) = &instance.health else {
                facts.insert(instance.id(), json!("not checked: it has no health check"));
                continue;
            };
            let mut restarts = 0;
            loop {
                // What has ended since it was started will not become healthy, and nobody else starts it again.
                if at.observe(instance).await? == InstanceState::Stopped {
                    if restarts == RESTARTS_MAX {
                        return Err(Failure::failed(format!(
                            "{} at {site} has ended by itself before it was healthy, and so it did after {restarts} more starts; \
                             read its output at the site",
                            instance.id()
                        )));
                    }
                    at.start(instance, context).await?;
                    restarts += 1;
                    facts.insert(format!("{} started again", instance.id()), json!(restarts));
                    let seen =
                        format!("{} at {site} had ended by itself and was started again ({restarts})", instance.id());
                    self.look_again(context, &seen).await?;
                    continue;
                }
                match self.probe.instance(instance, health).await {
                    Ok(()) => break,
                    Err(seen) => self.look_again(context, &format!("{} at {site}: {seen}", instance.id())).await?,
                }
            }
            facts.insert(instance.id(), json!("healthy"));
        }
        Ok(Performed::new("healthy", facts))
    }

    /// The site proves it; where it cannot, the lease of its writer may, if the run-book says so.
    pub(super) async fn fence(
        &self,
        site: &str,
        request: &FenceRequest,
        lease: Option<&LeaseFence>,
        context: &Context,
    ) -> Result<Performed, Failure> {
        let asked = match self.site(site)?.fence(request, context).await {
            Ok(Fenced::Proven { proof, mut facts }) => {
                facts.insert("proof".into(), json!(proof));
                return Ok(Performed::new("proven", facts));
            }
            Ok(Fenced::Unproven { statement, why }) => Unproven { statement: Some(statement), why },
            Err(error) if lease.is_none() => return Err(error.into()),
            Err(error) => Unproven { statement: None, why: crate::execute::with_cause(&error) },
        };
        match lease {
            Some(lease) => self.fence_by_lease(site, &request.write_domain, lease, asked, context).await,
            None => Err(asked.needs(site, &request.write_domain, "")),
        }
    }

    pub(super) async fn verb(
        &self,
        site: &str,
        verb: SiteVerb,
        outcome: &str,
        context: &Context,
    ) -> Result<Performed, Failure> {
        let facts = match self.site(site)?.perform(&verb, context).await? {
            SiteAnswer::Done(facts) => facts,
            SiteAnswer::Path(path) => Facts::from([("path".to_owned(), json!(path.display().to_string()))]),
            SiteAnswer::Nothing => return Ok(Performed::new("nothing-there", Facts::new())),
            SiteAnswer::Volume(VolumeState::Absent) => Facts::from([("volume".to_owned(), json!("absent"))]),
            SiteAnswer::Volume(VolumeState::Present { path }) => {
                Facts::from([("volume".to_owned(), json!(path.display().to_string()))])
            }
            SiteAnswer::Left(left) => Facts::from([("left".to_owned(), json!(left))]),
            SiteAnswer::Looked(checks) => Facts::from([("checks".to_owned(), json!(checks))]),
        };
        Ok(Performed::new(outcome, facts))
    }

    pub(super) async fn verify_clean(
        &self,
        site: &str,
        isolation: &str,
        context: &Context,
    ) -> Result<Performed, Failure> {
        match self.site(site)?.perform(&SiteVerb::WhatIsLeft(isolation.to_owned()), context).await? {
            SiteAnswer::Left(left) if left.is_empty() => Ok(Performed::new("clean", Facts::new())),
            SiteAnswer::Left(left) => {
                Err(Failure::may_pass(format!("of the drill at {site} there is still: {}", left.join("; "))))
            }
            other => Err(Failure::failed(format!("{site} did not say what is left of the drill, but {other:?}"))),
        }
    }

    /// Waits a moment, unless the run is being interrupted. The executor's timeout reports `seen`.
    pub(super) async fn look_again(&self, context: &Context, seen: &str) -> Result<(), Failure> {
        if context.cancel.is_cancelled() {
            return Err(Failure::may_pass(format!("what was waited for did not come; last seen: {seen}")));
        }
        self.note_waiting(&context.step, seen);
        tokio::time::sleep(LOOK_EVERY).await;
        Ok(())
    }
}

/// The name of the fact in which a site's fence lists what it killed, its own agent left out.
pub const KILLED_WRITERS: &str = "killed_writers";

/// After a planned stop and the final mark nobody may have been left to write: what did is not in the recovery point.
pub(super) fn refuse_late_writers(site: &str, fenced: Performed) -> Result<Performed, Failure> {
    let killed = fenced.facts.get(KILLED_WRITERS).and_then(|killed| killed.as_array());
    let killed: Vec<&str> = killed.into_iter().flatten().filter_map(|name| name.as_str()).collect();
    if killed.is_empty() {
        return Ok(fenced);
    }
    Err(Failure::failed(format!(
        "{site} is fenced, but that killed {}, which ran on after the service was stopped: what it wrote since the last \
         recovery point would be lost; look at the volume there, then retry this step to go on without it, or cancel the run",
        killed.join(", ")
    )))
}
