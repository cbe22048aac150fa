//! The rungs of a lost instance that stand above its standby and its recovery points: its own volumes where they are, and what it never shipped.
//!
//! Invariant: a rung that comes to nothing is noted and the next is taken; nothing is started on a volume that was not kept, and nothing becomes
//! the newest state of the vaults that was seen to be damaged or to lack its newest writes.

use crate::units::Span;

use super::super::{Action, Condition, ELSE, OnFailure};
use super::CompileError;
use super::build::Builder;

/// How long, at least and at most, a way that may come to nothing is tried: a quarter of the RTO between them.
const RUNG_SECONDS: (u64, u64) = (10, 600);

impl Builder<'_> {
    fn a_rung(&self) -> Span {
        Span::seconds((self.objective.rto.0.as_secs() / 4).clamp(RUNG_SECONDS.0, RUNG_SECONDS.1))
    }

    /// The service's own volumes, where they are: kept as they are, looked through, and started again. Nothing changes hands, so nothing
    /// is claimed; all that comes after stands in the branch of its not having come back.
    pub(super) fn recover_in_place(&mut self, site: &str) -> Result<(), CompileError> {
        let (write_domain, within, name) = (self.domain(), self.a_rung(), format!("before-{}", self.epoch()));
        let mut instances = self.all_instances(site)?;
        instances.reverse();
        let step = self.then(
            format!("quiet-{site}"),
            format!("Stop what of the service still runs at {site}, if anybody answers there"),
            Action::Quiet { site: site.to_owned(), instances, write_domain: write_domain.clone() },
        );
        (step.timeout, step.retries, step.on_failure) = (within, 0, OnFailure::Note);
        let quiet = self.last.clone();
        let mut sound = vec![Condition { step: format!("quiet-{site}"), outcomes: vec!["stopped".into()] }];
        let mut ends = Vec::new();
        for volume in self.volumes(site)? {
            let dataset = volume.dataset.clone();
            self.last = quiet.clone();
            let step = self.then(
                format!("keep-{dataset}"),
                format!("Keep `{dataset}` at {site} as it was left, before anything is started on it"),
                Action::KeepVolume { site: site.to_owned(), volume: volume.clone(), name: name.clone() },
            );
            step.when = sound.iter().take(1).cloned().collect();
            (step.timeout, step.retries, step.on_failure) = (within, 0, OnFailure::Note);
            let step = self.then(
                format!("look-through-{dataset}"),
                format!("Recover `{dataset}` at {site} from what lies there, and look through it"),
                Action::LookThroughVolume { site: site.to_owned(), volume },
            );
            step.when = vec![Condition { step: format!("keep-{dataset}"), outcomes: vec!["kept".into()] }];
            (step.timeout, step.retries, step.on_failure) = (within, 0, OnFailure::Note);
            sound.push(Condition { step: format!("look-through-{dataset}"), outcomes: vec!["sound".into()] });
            ends.append(&mut self.last);
        }
        self.last = if ends.is_empty() { quiet } else { ends };
        let waits = self.steps.len();
        self.await_lease(site, self.inventory.writer_epoch, "-in-place");
        if let Some(step) = self.steps.get_mut(waits) {
            step.when = sound.iter().take(1).cloned().collect();
            (step.timeout, step.retries, step.on_failure) = (within, 0, OnFailure::Note);
            sound.push(Condition { step: step.id.clone(), outcomes: vec!["held".into()] });
        }
        let (mut groups, mut healthy_within) = (Vec::new(), 0);
        for component in &self.service.components {
            let instances = self
                .place(site)?
                .instances(component, component.instances.live)
                .map_err(|source| self.template(source))?;
            if !instances.is_empty() {
                healthy_within += component.health.as_ref().map_or(0, |health| health.within.0.as_secs());
                groups.push(instances);
            }
        }
        let stopping: u64 = groups.iter().flatten().map(|instance| instance.stop_within.0.as_secs()).sum();
        let healthy_within = healthy_within.max(10);
        let id = format!("restart-{site}");
        let step = self.then(
            id.clone(),
            format!("Start the service again at {site}, where it was"),
            Action::Restart { site: site.to_owned(), write_domain, groups, within: Span::seconds(healthy_within) },
        );
        step.when = sound;
        (step.timeout, step.retries, step.on_failure) =
            (Span::seconds(healthy_within + stopping + 30), 0, OnFailure::Note);
        self.under = vec![Condition { step: id, outcomes: vec!["recovered".into()] }];
        let before = self.steps.len();
        self.prove_at(site, false, "-in-place")?;
        // Without its health and its canary it has not come back: a volume that lacks its newest writes may start as well as any other.
        for step in self.steps.iter_mut().skip(before) {
            (step.timeout, step.retries, step.on_failure) = (step.timeout.min(within), 0, OnFailure::Note);
        }
        let proof = self.last.first().cloned().unwrap_or_default();
        let outcome = match self.steps.last().map(|step| &step.action) {
            Some(Action::ReadCanary { .. }) => "read",
            Some(Action::AwaitService { .. }) => "healthy",
            _ => "recovered",
        };
        // Only then may what is there become the newest state of the vaults.
        self.under = vec![Condition { step: proof.clone(), outcomes: vec![outcome.into()] }];
        self.ensure_agent_again(site, "in-place");
        self.reprotect_at(site, self.inventory.writer_epoch, "-in-place");
        self.under = vec![Condition { step: proof, outcomes: vec![ELSE.into()] }];
        Ok(())
    }

    /// The only copy of what was written and never shipped may be what the lost writer left. Its site answered, or it could not have proven
    /// the fence; whatever comes in the way is noted, and the way goes on with what the vaults have.
    pub(super) fn salvage(&mut self, site: &str) {
        let (write_domain, datasets) = (self.domain(), self.protected());
        if datasets.is_empty() {
            return;
        }
        let within = self.a_rung();
        let mut fenced = vec![Condition { step: format!("fence-{site}"), outcomes: vec!["proven".into()] }];
        let restart = format!("restart-{site}");
        if self.steps.iter().any(|step| step.id == restart) {
            fenced.push(Condition { step: restart, outcomes: vec!["not-recovered".into(), ELSE.into()] });
        }
        // What was seen to be damaged, or came up without its newest writes, must not become the newest state that there is.
        for dataset in &datasets {
            let step = format!("look-through-{dataset}");
            if self.steps.iter().any(|looked| looked.id == step) {
                fenced.push(Condition { step, outcomes: vec!["sound".into(), ELSE.into()] });
            }
        }
        self.ensure_agent_again(site, "to-salvage");
        let agent = self.last.clone();
        if let Some(step) = self.steps.last_mut() {
            (step.when, step.on_failure, step.retries) = (fenced, OnFailure::Note, 0);
            step.timeout = within;
        }
        let runs =
            agent.iter().map(|step| Condition { step: step.clone(), outcomes: vec!["running".into()] }).collect();
        let undo = Action::Unfreeze { write_domain: write_domain.clone(), site: site.to_owned() };
        let step = self.then(
            format!("salvage-{site}"),
            format!("Ship what {site} has written and not shipped, from its own volumes, within {within}"),
            Action::Freeze { write_domain, site: site.to_owned(), datasets },
        );
        step.when = runs;
        step.undo = Some(undo);
        (step.on_failure, step.retries, step.timeout) = (OnFailure::Note, 0, within);
    }
}
