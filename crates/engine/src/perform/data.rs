//! Actions on data: what would be lost, restore, and protection after the move.
//!
//! Invariant: what cannot be read is unknown and never counts as little.

use std::sync::Arc;

use jiff::Timestamp;
use lifeboat_core::plan::Name;
use lifeboat_core::run::Facts;
use lifeboat_core::runbook::{Target, VolumeSpec};
use lifeboat_core::units::Span;
use serde_json::json;

use super::{Failure, Performed, World};
use crate::port::{Context, Floor, PortError, SiteAnswer, SiteVerb, Watch};

/// Hosts report every second.
const SILENT_AFTER_SECONDS: f64 = 15.0;

impl World {
    /// Runs a blocking question on a thread of its own.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce() -> Result<T, PortError> + Send + 'static,
    ) -> Result<T, Failure> {
        match tokio::task::spawn_blocking(question).await {
            Ok(answer) => Ok(answer?),
            Err(error) => Err(Failure::failed(format!("a thread of this controller died: {error}"))),
        }
    }

    /// Compares the last durable moment of each data set with the disaster's.
    pub(super) async fn assess_loss(
        &self,
        volumes: &[VolumeSpec],
        target: &Target,
        approved: Span,
        context: &Context,
    ) -> Result<Performed, Failure> {
        let disaster = self.disaster_at.unwrap_or_else(|| self.clock.now());
        let mut facts = Facts::new();
        let mut within = true;
        for volume in volumes {
            let (recovery, asked, to) = (Arc::clone(&self.recovery), volume.clone(), target.clone());
            let reach = loop {
                let (recovery, asked, to) = (Arc::clone(&recovery), asked.clone(), to.clone());
                match self.ask(move || recovery.reach(&asked, &to)).await {
                    Ok(reach) => break reach,
                    Err(Failure::Failed { error, may_pass: true }) => self.look_again(context, &error).await?,
                    Err(failure) => return Err(failure),
                }
            };
            let loss_seconds = reach.source_time.map(|at| disaster.duration_since(at).as_secs_f64().max(0.0));
            within &= loss_seconds.is_some_and(|loss| loss <= approved.as_seconds());
            let fact = json!({
                "recoverable_to": reach.source_time.map(|at| at.to_string()),
                "loss_seconds_estimated": loss_seconds,
                "vault": reach.vault,
                "point": reach.point,
                "findings": reach.findings,
                "passed_by": reach.passed_by,
                "archived": reach.archived,
            });
            facts.insert(volume.dataset.clone(), fact);
        }
        facts.insert("disaster_at".into(), json!(disaster.to_string()));
        Ok(Performed::new(if within { "within" } else { "beyond" }, facts))
    }

    pub(super) async fn restore(
        &self,
        site: &str,
        volume: &VolumeSpec,
        target: &Target,
        in_place: bool,
        approved: Option<Span>,
        context: &Context,
    ) -> Result<Performed, Failure> {
        let path = match self.site(site)?.perform(&SiteVerb::PlaceVolume(volume.clone()), context).await? {
            SiteAnswer::Path(path) => path,
            other => {
                return Err(Failure::failed(format!(
                    "{site} did not say where `{}` belongs, but {other:?}",
                    volume.dataset
                )));
            }
        };
        let (recovery, volume, target) = (Arc::clone(&self.recovery), volume.clone(), target.clone());
        let (waiting, step) = (Arc::clone(&self.waiting), context.step.clone());
        let hears = move |seen: &str| super::note_waiting(&waiting, &step, seen);
        let watch = Watch { cancel: context.cancel.clone(), hears: Arc::new(hears) };
        let from = match &target {
            Target::At(time) => time.parse::<Timestamp>().ok(),
            Target::Newest | Target::Point(_) | Target::Position(_) | Target::Named(_) => None,
        };
        let from = from.or(self.disaster_at).unwrap_or_else(|| self.clock.now());
        let floor = match approved {
            Some(approved) => Floor::At(from.checked_sub(approved.0).unwrap_or(Timestamp::MIN)),
            None => Floor::Furthest,
        };
        let facts = self.ask(move || recovery.restore(&volume, &target, &path, in_place, floor, &watch)).await?;
        Ok(Performed::new("restored", facts))
    }

    /// Waits until every data set has a recovery point of this epoch in a vault outside the site, and RPO now is within the objective.
    pub(super) async fn await_protection(
        &self,
        site: &str,
        datasets: &[Name],
        vaults: &[Name],
        rpo: Span,
        epoch: u64,
        context: &Context,
    ) -> Result<Performed, Failure> {
        let mut facts = Facts::new();
        for dataset in datasets {
            loop {
                let mut seen = Vec::new();
                let mut protected = None;
                for vault in vaults {
                    let (recovery, asked_vault, asked) = (Arc::clone(&self.recovery), vault.clone(), dataset.clone());
                    match self.ask(move || recovery.protection(&asked_vault, &asked, epoch)).await {
                        Err(Failure::Failed { error, .. }) => seen.push(format!("{vault}: {error}")),
                        Err(failure) => return Err(failure),
                        Ok(found) => match (found.point, found.durable) {
                            (Some(point), Some(durable)) if self.age_seconds(durable) <= rpo.as_seconds() => {
                                protected = Some(json!({
                                    "vault": vault,
                                    "point": point,
                                    "durable": durable.to_string(),
                                    "rpo_now_seconds": self.age_seconds(durable),
                                }));
                                break;
                            }
                            (Some(_), Some(durable)) => {
                                seen.push(format!("{vault}: RPO now is {:.1} s", self.age_seconds(durable)));
                            }
                            _ => seen.push(format!("{vault} has no recovery point of epoch {epoch} yet")),
                        },
                    }
                }
                if let Some(protected) = protected {
                    facts.insert(dataset.clone(), protected);
                    break;
                }
                let told = match self.arbiter.agent_report(site, dataset)? {
                    None => format!("; {site} has never reported: see that lifeboat protect runs there"),
                    Some(report) => match (self.silence_seconds(&report.at), report.problem) {
                        (Some(silent), _) => {
                            format!("; {site} has not reported for {silent:.0} s: see that lifeboat protect runs there")
                        }
                        (None, Some(problem)) => format!("; {site} says: {problem}"),
                        (None, None) => String::new(),
                    },
                };
                self.look_again(context, &format!("`{dataset}`: {}{told}", seen.join(", "))).await?;
            }
        }
        Ok(Performed::new("protected", facts))
    }

    /// For how long a host has been silent, where that is longer than one ever waits between two reports.
    fn silence_seconds(&self, reported: &str) -> Option<f64> {
        let age = self.age_seconds(reported.parse().ok()?);
        (age > SILENT_AFTER_SECONDS).then_some(age)
    }

    fn age_seconds(&self, at: Timestamp) -> f64 {
        self.clock.now().duration_since(at).as_secs_f64().max(0.0)
    }
}
