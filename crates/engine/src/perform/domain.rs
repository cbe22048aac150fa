//! Actions on a write domain: who may write, and what the hosts that poll for it say in return.
//!
//! Invariant: a host counts as having followed only when its own report, newer than the question, says so under the
//! generation that was published.

use std::sync::Arc;

use jiff::Timestamp;
use lifeboat_core::desired::{AgentReport, AgentRole, DesiredWriter};
use lifeboat_core::plan::Name;
use lifeboat_core::run::Facts;
use lifeboat_core::runbook::{Target, VolumeSpec};
use serde_json::json;

use super::{Failure, Performed, World};
use crate::arbitrate::Claim;
use crate::port::{Context, Reach};

impl World {
    pub(super) async fn claim(
        &self,
        domain: &str,
        epoch: u64,
        primary: &str,
        planned: bool,
        context: &Context,
    ) -> Result<Performed, Failure> {
        self.arbiter.claim_epoch(&Claim {
            write_domain: domain.to_owned(),
            epoch,
            primary: primary.to_owned(),
            run: context.run.clone(),
            at: self.clock.now().to_string(),
            planned,
        })?;
        let facts = Facts::from([("epoch".to_owned(), json!(epoch)), ("primary".to_owned(), json!(primary))]);
        Ok(Performed::new("claimed", facts))
    }

    fn publish(&self, domain: &str, epoch: u64, primary: &str, frozen: bool) -> Result<DesiredWriter, Failure> {
        Ok(self.arbiter.publish_writer(domain, epoch, primary, frozen)?)
    }

    /// Waits until the site's report for each data set is one that `enough` accepts, under this generation or a later one.
    async fn await_reports(
        &self,
        site: &str,
        datasets: &[Name],
        generation: u64,
        context: &Context,
        enough: impl Fn(&AgentReport) -> Result<(), String>,
    ) -> Result<Vec<AgentReport>, Failure> {
        let mut reports = Vec::new();
        for dataset in datasets {
            loop {
                let seen = match self.arbiter.agent_report(site, dataset)? {
                    Some(report) if report.generation >= generation => match enough(&report) {
                        Ok(()) => {
                            reports.push(report);
                            break;
                        }
                        Err(why) => match report.problem {
                            Some(problem) => format!("`{dataset}` at {site}: {why}: {problem}"),
                            None => format!("`{dataset}` at {site}: {why}"),
                        },
                    },
                    Some(_) => format!("`{dataset}` at {site}: its host has not seen generation {generation} yet"),
                    None => format!(
                        "`{dataset}` at {site}: its host has never reported; see that lifeboat protect runs there"
                    ),
                };
                self.look_again(context, &seen).await?;
            }
        }
        Ok(reports)
    }

    pub(super) async fn freeze(
        &self,
        domain: &str,
        site: &str,
        datasets: &[Name],
        context: &Context,
    ) -> Result<Performed, Failure> {
        // The claim is this run's; the writer freezes under the epoch it writes in.
        let generation = self.publish(domain, context.epoch, site, true)?.generation;
        let wrote = self.wrote_under(domain, site)?;
        let reports = self.await_reports(site, datasets, generation, context, |report| finished(report, wrote)).await?;
        Ok(Performed::new("frozen", positions(&reports)))
    }

    /// Under which epoch the site was let write last.
    fn wrote_under(&self, domain: &str, site: &str) -> Result<u64, Failure> {
        match self.arbiter.last_let_write(domain)? {
            Some(last) if last.primary == site => Ok(last.epoch),
            Some(last) => Err(Failure::failed(format!(
                "{site} is not the one that wrote `{domain}` last, but {} under epoch {}: what {site} holds cannot be its end",
                last.primary, last.epoch
            ))),
            None => {
                Err(Failure::failed(format!("nobody was ever let write `{domain}`, so there is nothing to freeze")))
            }
        }
    }

    pub(super) async fn unfreeze(&self, domain: &str, site: &str, context: &Context) -> Result<Performed, Failure> {
        self.publish(domain, context.epoch, site, false)?;
        Ok(Performed::new("writing", Facts::new()))
    }

    pub(super) async fn reserve(
        &self,
        domain: &str,
        site: &str,
        datasets: &[Name],
        epoch: u64,
        context: &Context,
    ) -> Result<Performed, Failure> {
        let generation = self.publish(domain, epoch, site, true)?.generation;
        self.await_reports(site, datasets, generation, context, |report| {
            if report.settled { Ok(()) } else { Err("its host still holds the volume".into()) }
        })
        .await?;
        Ok(Performed::new("reserved", Facts::new()))
    }

    /// The commit point: from the publication on, the site's host is the writer.
    pub(super) async fn promote(
        &self,
        domain: &str,
        site: &str,
        datasets: &[Name],
        epoch: u64,
        context: &Context,
    ) -> Result<Performed, Failure> {
        let generation = self.publish(domain, epoch, site, false)?.generation;
        let reports = self
            .await_reports(site, datasets, generation, context, |report| {
                match (report.role, report.settled, report.epoch == epoch) {
                    (AgentRole::Writer, true, true) => Ok(()),
                    _ => Err("its host has not taken over as the writer yet".into()),
                }
            })
            .await?;
        let mut facts = positions(&reports);
        facts.insert("generation".into(), json!(generation));
        Ok(Performed::new("promoted", facts))
    }

    /// A standby is usable when it follows without a problem, and has applied all that any vault holds of the volumes: it
    /// may be cut off from a vault that this controller can read.
    pub(super) async fn inspect_standby(
        &self,
        site: &str,
        datasets: &[Name],
        volumes: &[VolumeSpec],
        context: &Context,
    ) -> Result<Performed, Failure> {
        let mut facts = Facts::new();
        let mut usable = true;
        for dataset in datasets {
            let found = self.settled_report(site, dataset, context).await?;
            let verdict = match &found {
                None => "its host does not report".to_owned(),
                Some(report) if report.role != AgentRole::Standby => format!("it is {:?}, not a standby", report.role),
                Some(report) => match (&report.problem, &report.applied) {
                    (Some(problem), _) => problem.clone(),
                    (None, None) => "it has applied nothing yet".to_owned(),
                    (None, Some(_)) => {
                        let volume = volumes.iter().find(|volume| volume.dataset == *dataset);
                        match self.has_all(site, dataset, volume, report.clone(), context).await? {
                            Ok(report) => {
                                let fact = json!({ "applied": report.applied, "position": report.position });
                                facts.insert(dataset.clone(), fact);
                                continue;
                            }
                            Err(lacks) => lacks,
                        }
                    }
                },
            };
            usable = false;
            facts.insert(dataset.clone(), json!({ "unusable": verdict }));
        }
        Ok(Performed::new(if usable { "usable" } else { "unusable" }, facts))
    }

    /// Waits a little until the standby has applied what the vaults hold now; `Err` says what it lacks.
    async fn has_all(
        &self,
        site: &str,
        dataset: &str,
        volume: Option<&VolumeSpec>,
        mut report: AgentReport,
        context: &Context,
    ) -> Result<Result<AgentReport, String>, Failure> {
        let Some(volume) = volume.cloned() else { return Ok(Ok(report)) };
        let recovery = Arc::clone(&self.recovery);
        // What no vault can be asked for is a person's question, and was one in the step before.
        let reach = self.ask(move || recovery.reach(&volume, &Target::Newest)).await;
        let Ok(Reach { source_time: Some(held), vault, .. }) = reach else { return Ok(Ok(report)) };
        let begun = self.clock.monotonic_seconds();
        loop {
            if report.role != AgentRole::Standby || report.problem.is_some() {
                let problem = report.problem.unwrap_or_else(|| format!("it is {:?}, not a standby", report.role));
                return Ok(Err(problem));
            }
            let applied = report.applied.as_deref().unwrap_or("nothing");
            if applied.parse::<Timestamp>().is_ok_and(|applied| applied >= held) {
                return Ok(Ok(report));
            }
            let vault = vault.as_deref().unwrap_or("a vault");
            let lacks = format!("it has applied {applied}, and {vault} holds everything up to {held}");
            if self.clock.monotonic_seconds() - begun >= SETTLED_WITHIN_SECONDS {
                return Ok(Err(lacks));
            }
            self.look_again(context, &format!("`{dataset}` at {site}: {lacks}")).await?;
            if let Some(newer) = self.arbiter.agent_report(site, dataset)? {
                report = newer;
            }
        }
    }

    /// The report of a host that lives, once it has looked at what it holds: one that has only just begun says nothing yet.
    async fn settled_report(
        &self,
        site: &str,
        dataset: &str,
        context: &Context,
    ) -> Result<Option<AgentReport>, Failure> {
        let begun = self.clock.monotonic_seconds();
        let mut report = self.live_report(site, dataset, context).await?;
        while let Some(seen) = &report
            && seen.problem.is_none()
            && seen.applied.is_none()
            && seen.role != AgentRole::Writer
            && self.clock.monotonic_seconds() - begun < SETTLED_WITHIN_SECONDS
        {
            self.look_again(context, &format!("`{dataset}` at {site}: its host has only just begun")).await?;
            report = self.arbiter.agent_report(site, dataset)?;
        }
        Ok(report)
    }

    /// A report whose beat moves while it is looked at: its host lives. None if it does not within a few seconds.
    async fn live_report(&self, site: &str, dataset: &str, context: &Context) -> Result<Option<AgentReport>, Failure> {
        let first = self.arbiter.agent_report(site, dataset)?;
        let begun = self.clock.monotonic_seconds();
        while self.clock.monotonic_seconds() - begun < LIVE_WITHIN_SECONDS {
            let now = self.arbiter.agent_report(site, dataset)?;
            if let Some(report) = &now
                && first.as_ref().is_none_or(|first| (first.beat, &first.at) != (report.beat, &report.at))
            {
                return Ok(now);
            }
            self.look_again(context, &format!("`{dataset}` at {site}: waiting for its host's next report")).await?;
        }
        Ok(None)
    }

    /// Waits until the standby has applied all that the frozen writer shipped.
    pub(super) async fn catch_up(
        &self,
        site: &str,
        domain: &str,
        datasets: &[Name],
        context: &Context,
    ) -> Result<Performed, Failure> {
        let desired = self.arbiter.desired_writer(domain)?;
        let Some(desired) = desired.filter(|desired| desired.frozen) else {
            return Err(Failure::failed(format!("`{domain}` is not frozen, so nobody can catch up with it")));
        };
        let wrote = self.wrote_under(domain, &desired.primary)?;
        self.await_reports(&desired.primary, datasets, desired.generation, context, |report| finished(report, wrote))
            .await?;
        let reports =
            self.await_reports(site, datasets, desired.generation, context, |report| caught_up(report, wrote)).await?;
        Ok(Performed::new("caught-up", positions(&reports)))
    }

    pub(super) async fn await_standby(
        &self,
        site: &str,
        datasets: &[Name],
        epoch: u64,
        context: &Context,
    ) -> Result<Performed, Failure> {
        let reports = self
            .await_reports(site, datasets, 0, context, |report| {
                if report.role != AgentRole::Standby {
                    Err(format!("it is {:?}, not a standby", report.role))
                } else if report.epoch < epoch {
                    Err(format!("it still follows epoch {}", report.epoch))
                } else if report.applied.is_none() || report.problem.is_some() {
                    Err("it has not applied anything of this epoch yet".into())
                } else {
                    Ok(())
                }
            })
            .await?;
        Ok(Performed::new("following", positions(&reports)))
    }
}

/// Having nothing to do is not enough: the host must know that it shipped all that was written under this epoch.
fn finished(writer: &AgentReport, wrote_epoch: u64) -> Result<(), String> {
    match (writer.settled, writer.finished) {
        (true, Some(epoch)) if epoch == wrote_epoch => Ok(()),
        (true, _) => {
            Err(format!("its host does not say that all that was written under epoch {wrote_epoch} is in a vault"))
        }
        (false, _) => Err("its last recovery point is not durable yet".into()),
    }
}

/// Positions differ from vault to vault; what counts is the writer's final mark of the epoch that it wrote under.
fn caught_up(standby: &AgentReport, wrote_epoch: u64) -> Result<(), String> {
    match standby.role {
        AgentRole::Standby if standby.settled && standby.epoch == wrote_epoch => Ok(()),
        AgentRole::Standby => {
            let applied = standby.applied.as_deref().unwrap_or("nothing");
            Err(format!(
                "it has applied {applied} of epoch {}, but not the last that the writer shipped under epoch {wrote_epoch}",
                standby.epoch
            ))
        }
        role => Err(format!("it is {role:?}, not a standby")),
    }
}

/// A host reports at least every second; what has not moved in five is not alive.
const LIVE_WITHIN_SECONDS: f64 = 5.0;
/// A standby that holds data has looked at it, and at the vault, by then; an empty one is brought full by a restore as fast.
const SETTLED_WITHIN_SECONDS: f64 = 10.0;

fn positions(reports: &[AgentReport]) -> Facts {
    let fact = |report: &AgentReport| {
        let value = json!({ "position": report.position, "applied": report.applied, "durable": report.durable });
        (report.dataset.clone(), value)
    };
    reports.iter().map(fact).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn report(role: AgentRole, epoch: u64, settled: bool) -> AgentReport {
        AgentReport {
            site: "north".into(),
            dataset: "orders".into(),
            role,
            epoch,
            generation: 3,
            durable: Default::default(),
            position: Some("of this vault".into()),
            applied: Some("2026-11-21T14:00:00Z".into()),
            settled,
            finished: None,
            commits: None,
            streams: None,
            came: None,
            problem: None,
            at: String::new(),
            beat: 1,
        }
    }

    #[test]
    fn a_host_that_let_go_of_a_volume_has_not_finished_it() {
        let writer = |epoch| AgentReport { finished: epoch, ..report(AgentRole::Idle, 2, true) };
        assert_eq!(finished(&writer(Some(2)), 2), Ok(()));
        insta::assert_snapshot!(finished(&writer(None), 2).unwrap_err(), @"its host does not say that all that was written under epoch 2 is in a vault");
        assert!(finished(&writer(Some(1)), 2).is_err());
        assert!(finished(&AgentReport { settled: false, ..writer(Some(2)) }, 2).is_err());
    }

    #[test]
    fn a_standby_has_caught_up_when_it_has_the_final_mark_of_the_writers_epoch() {
        assert_eq!(caught_up(&report(AgentRole::Standby, 2, true), 2), Ok(()));
        insta::assert_snapshot!(caught_up(&report(AgentRole::Standby, 2, false), 2).unwrap_err(), @"it has applied 2026-11-21T14:00:00Z of epoch 2, but not the last that the writer shipped under epoch 2");
        // The final mark of an earlier epoch says nothing of what was written since.
        assert!(caught_up(&report(AgentRole::Standby, 1, true), 2).is_err());
        insta::assert_snapshot!(caught_up(&report(AgentRole::Idle, 2, true), 2).unwrap_err(), @"it is Idle, not a standby");
    }
}
