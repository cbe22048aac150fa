//! Actions that bring a service back where it was, from its own volumes.
//!
//! Invariant: a rung that comes to nothing is an outcome with its reason, never a failure: there are others below it. Nothing is started on a
//! volume that was not kept first, and what did not come back is stopped again.

use lifeboat_core::plan::Name;
use lifeboat_core::run::Facts;
use lifeboat_core::runbook::{InstanceSpec, VolumeSpec};
use lifeboat_core::units::Span;
use serde_json::json;

use super::{Failure, Performed, World};
use crate::port::{Context, SiteAnswer, SiteVerb};
use crate::verify::Outcome;

impl World {
    pub(super) async fn quiet(
        &self,
        site: &str,
        instances: &[InstanceSpec],
        write_domain: &str,
        context: &Context,
    ) -> Result<Performed, Failure> {
        or_else("out-of-reach", self.stop(site, instances, Some(write_domain), context).await, context)
    }

    pub(super) async fn keep_volume(
        &self,
        site: &str,
        volume: &VolumeSpec,
        name: &str,
        context: &Context,
    ) -> Result<Performed, Failure> {
        // Each run keeps what it found: one under the same epoch may have been left by another incident.
        let verb = SiteVerb::KeepVolume(volume.clone(), format!("{name}-{}", context.run.to_lowercase()));
        or_else("not-kept", self.verb(site, verb, "kept", context).await, context)
    }

    pub(super) async fn look_through(
        &self,
        site: &str,
        volume: &VolumeSpec,
        context: &Context,
    ) -> Result<Performed, Failure> {
        let looked = self.site(site)?.perform(&SiteVerb::LookThroughVolume(volume.clone()), context).await;
        let looked = match looked {
            Ok(SiteAnswer::Looked(checks)) => {
                let is_sound = checks.iter().all(|check| check.outcome <= Outcome::NotDone);
                let facts = Facts::from([("checks".to_owned(), json!(checks))]);
                Ok(Performed::new(if is_sound { "sound" } else { "unsound" }, facts))
            }
            Ok(other) => Err(Failure::failed(format!("{site} did not say what it saw, but {other:?}"))),
            Err(error) => Err(error.into()),
        };
        or_else("unsound", looked, context)
    }

    /// Starts what ran there, group by group; whatever does not come up in time has all of it stopped again.
    pub(super) async fn restart(
        &self,
        site: &str,
        write_domain: &Name,
        groups: &[Vec<InstanceSpec>],
        within: Span,
        context: &Context,
    ) -> Result<Performed, Failure> {
        let start = async {
            let mut facts = Facts::new();
            for instances in groups {
                self.start(site, instances, context).await?;
                facts.extend(self.await_healthy(site, instances, context).await?.facts);
            }
            Ok(Performed::new("recovered", facts))
        };
        let late = || {
            let seen = self.last_seen(&context.step).map(|seen| format!(": {seen}")).unwrap_or_default();
            Failure::failed(format!("it was not healthy within {within}{seen}"))
        };
        let started = tokio::time::timeout(within.0, start).await.unwrap_or_else(|_| Err(late()));
        if started.is_err() && !context.cancel.is_cancelled() {
            let mut all: Vec<InstanceSpec> = groups.iter().flatten().cloned().collect();
            all.reverse();
            // Where this fails as well, the fence below sees to it.
            if let Err(error) = self.stop(site, &all, Some(write_domain), context).await {
                tracing::warn!(site, ?error, "what did not come back could not be stopped");
            }
        }
        or_else("not-recovered", started, context)
    }
}

/// A failure as an outcome, unless the run itself is being interrupted.
fn or_else(outcome: &str, performed: Result<Performed, Failure>, context: &Context) -> Result<Performed, Failure> {
    match performed {
        Err(Failure::Failed { error, .. }) if !context.cancel.is_cancelled() => {
            Ok(Performed::new(outcome, Facts::from([("why".to_owned(), json!(error))])))
        }
        other => other,
    }
}
