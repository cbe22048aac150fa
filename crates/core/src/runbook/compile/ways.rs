//! The ways through a disaster, one a purpose: which steps, in which order, in which branch.
//!
//! Invariant: each way claims an epoch and fences the writer before it promotes; a drill and a start do neither.

use crate::plan::{Name, Strategy};

use crate::units::Span;

use super::super::{Action, Condition, InstanceSpec, OnFailure, Target};
use super::build::{Builder, LONG, said};
use super::{CompileError, distrusts_replicas, leaves_volumes};

impl Builder<'_> {
    pub(super) fn failover(&mut self) -> Result<(), CompileError> {
        let (from, to) = (self.from.clone(), self.to.clone());
        let moment = self.request.target != Target::Newest;
        if distrusts_replicas(&self.request.scenario) && !moment {
            return Err(CompileError::NoMoment { scenario: self.request.scenario.clone() });
        }
        self.approve_if_asked();
        let leaves_volumes = leaves_volumes(&self.request.scenario) && !moment;
        // Who names another site wants it there.
        if leaves_volumes && self.request.to.is_none() {
            self.recover_in_place(&from)?;
        }
        self.claim(false);
        self.fence(&from, false)?;
        if leaves_volumes {
            self.salvage(&from);
        }
        self.clear(&to)?;
        self.ensure_agent(&to);
        if !moment {
            self.assess_loss()?;
        }
        let follows = self.service.strategy == Strategy::WarmStandby && !moment && self.can_follow(&to);
        if follows {
            let (write_domain, datasets, volumes) = (self.domain(), self.protected(), self.volumes(&to)?);
            self.then(
                "inspect-standby",
                format!("Look whether the standby at {to} can be promoted"),
                Action::InspectStandby { site: to.clone(), write_domain, datasets, volumes },
            );
            let when = Condition { step: "inspect-standby".into(), outcomes: vec!["unusable".into()] };
            self.restore_all(Some(when))?;
        } else {
            self.restore_all(None)?;
        }
        let lost: Vec<Name> = self.lost_sites(&from);
        self.take_over(true, &lost)
    }

    /// Planned: nothing is lost. The long part, bringing the target's data near, comes before the service stops.
    pub(super) fn switchover(&mut self) -> Result<(), CompileError> {
        let (from, to) = (self.from.clone(), self.to.clone());
        self.approve_if_asked();
        self.ask_authority();
        self.clear(&to)?;
        self.ensure_agent(&to);
        // Before the service is stopped: without the writer's own agent nothing could ship the last of it.
        self.ensure_agent_again(&from, "to-freeze");
        let follows = self.service.strategy == Strategy::WarmStandby && self.can_follow(&to);
        if follows {
            let (write_domain, datasets, epoch) = (self.domain(), self.protected(), self.inventory.writer_epoch);
            self.then(
                "inspect-standby",
                format!("Look whether {to} follows already"),
                Action::InspectStandby {
                    site: to.clone(),
                    write_domain: write_domain.clone(),
                    datasets: datasets.clone(),
                    volumes: Vec::new(),
                },
            );
            let inspected = self.last.clone();
            let mut ends = Vec::new();
            for volume in self.volumes(&to)? {
                let dataset = volume.dataset.clone();
                self.last = inspected.clone();
                self.then(
                    format!("set-aside-{dataset}"),
                    format!(
                        "Move what {to} held of `{dataset}` aside: nothing it wrote and never shipped is overwritten"
                    ),
                    Action::SetAside { site: to.clone(), volume },
                )
                .when = vec![Condition { step: "inspect-standby".into(), outcomes: vec!["unusable".into()] }];
                ends.append(&mut self.last);
            }
            self.last = ends;
            let step = self.then(
                format!("follow-at-{to}"),
                format!("Wait until {to} follows {from} closely"),
                Action::AwaitStandby { site: to.clone(), write_domain, datasets, epoch },
            );
            step.timeout = LONG;
        }
        self.claim(true);
        self.stop_and_freeze(&from)?;
        self.fence(&from, true)?;
        if follows {
            let (write_domain, datasets) = (self.domain(), self.protected());
            let step = self.then(
                format!("catch-up-{to}"),
                format!("Wait until {to} has applied everything"),
                Action::CatchUp { site: to.clone(), write_domain, datasets },
            );
            step.timeout = LONG;
        } else {
            self.restore_all(None)?;
        }
        self.take_over(true, &[])
    }

    /// Back to an earlier moment where the service is. What is there now becomes a recovery point first.
    pub(super) fn rewind(&mut self) -> Result<(), CompileError> {
        let to = self.to.clone();
        if self.request.target == Target::Newest {
            return Err(CompileError::NoMoment { scenario: self.request.scenario.clone() });
        }
        self.approve_if_asked();
        self.ensure_agent(&to);
        self.claim(true);
        self.stop_and_freeze(&to)?;
        self.fence(&to, true)?;
        // A fence stops whatever holds the volumes, the site's own agent included.
        self.ensure_agent_again(&to, "again");
        self.restore_all(None)?;
        self.take_over(false, &[])
    }

    /// The service where its writer is. Whoever may write stays as it is, so there is nothing to claim, fence or commit;
    /// but a run that was given up may have left the writer's own site fenced, or the traffic elsewhere.
    pub(super) fn start(&mut self) -> Result<(), CompileError> {
        let to = self.to.clone();
        self.approve_if_asked();
        self.ensure_agent(&to);
        if self.service.lease.is_some() && self.inventory.writer_epoch < self.inventory.epoch {
            // A run that was given up has spent the epochs since: no lease is renewed under the one before them.
            let (epoch, write_domain) = (self.epoch(), self.domain());
            self.then(
                format!("name-{to}"),
                format!("Name {to} as the writer, which it is, under epoch {epoch}: its lease is held under that"),
                Action::Unfreeze { write_domain, site: to.clone() },
            );
        }
        self.await_lease(&to, self.epoch(), "");
        self.lift_fence(&to);
        self.start_all(&to)?;
        self.prove(true)?;
        self.reprotect();
        self.restandby(&[]);
        Ok(())
    }

    /// The same restore, start and proof as the real thing, in surroundings of its own.
    pub(super) fn drill(&mut self) -> Result<(), CompileError> {
        let to = self.to.clone();
        let Some(own) = self.request.isolation.clone() else { return Err(CompileError::NotIsolated) };
        let isolation = own.name;
        self.then(
            "isolate",
            format!("Make isolated surroundings at {to}"),
            Action::Isolate { site: to.clone(), isolation: isolation.clone() },
        )
        .on_failure = OnFailure::Unwind;
        let isolated = self.last.clone();
        let mut ends = Vec::new();
        for volume in self.volumes(&to)? {
            let dataset = volume.dataset.clone();
            self.last = isolated.clone();
            let target = self.request.target.clone();
            let (timeout, thaws_first) = (self.restore_time(&dataset), self.thaws_first(&dataset));
            let step = self.then(
                format!("restore-{dataset}"),
                format!("Restore `{dataset}` in isolation from the {}{thaws_first}", said(&target)),
                Action::Restore { site: to.clone(), volume, target, in_place: false, approved: self.may_give_way() },
            );
            step.timeout = timeout;
            ends.append(&mut self.last);
        }
        self.last = isolated;
        let (address, port) = own.authority.listen.rsplit_once(':').unwrap_or_default();
        let name_server = InstanceSpec {
            service: self.service.name.clone(),
            component: "name-server".into(),
            number: 1,
            command: own.authority.command,
            env: Default::default(),
            directory: None,
            address: Some(address.to_owned()),
            port: port.parse().ok(),
            stop_within: Span::seconds(5),
            stop_signal: Default::default(),
            health: None,
        };
        self.then(
            "start-name-server",
            "Start a name server of the drill's own",
            Action::StartInstances { site: to.clone(), instances: vec![name_server] },
        );
        ends.append(&mut self.last);
        self.last = ends;
        self.start_all(&to)?;
        self.prove(true)?;
        for step in &mut self.steps {
            step.on_failure = OnFailure::Unwind;
        }
        let step = self.then(
            "remove-isolation",
            "Remove everything the drill made",
            Action::RemoveIsolation { site: to.clone(), isolation: isolation.clone() },
        );
        step.always = true;
        let step = self.then(
            "verify-clean",
            "Look that nothing of the drill is left",
            Action::VerifyClean { site: to, isolation },
        );
        step.always = true;
        self.not_covered.push("outgoing calls: nothing stops the isolated service from calling the outside".into());
        if self.service.strategy == Strategy::WarmStandby {
            self.not_covered
                .push("the promotion of the standby: what is rehearsed is the way through the vault".into());
        }
        self.not_covered.push("the fence and the promotion: a drill leaves the real writer alone".into());
        Ok(())
    }
}
