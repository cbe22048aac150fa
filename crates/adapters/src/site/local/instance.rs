//! Starting, stopping and observing instances, and the supervisor that all of it stands on.
//!
//! Invariant: an instance is running while any process of it lives, whoever its parent is now.

use std::fs::OpenOptions;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lifeboat_core::plan::StopSignal;
use lifeboat_core::run::Facts;
use lifeboat_core::runbook::InstanceSpec;
use lifeboat_core::units::Span;
use lifeboat_engine::port::{Context, InstanceState, PortError};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::json;

use super::layout::{InstanceRecord, Layout, inner_path, read_record};
use super::processes::{AGENT, Belongs, Process, Snapshot};
use super::wire::{self, Answer, Order, StartOrder};
use super::{Inner, facts, supervisor};

const SUPERVISOR_WITHIN: Duration = Duration::from_secs(15);
/// Longer than a start's secrets may take.
const START_WITHIN: Duration = Duration::from_secs(60);
/// What no plan counts any more has no time of its own to stop in.
const REST_WITHIN: Span = Span::seconds(20);

impl Inner {
    pub(super) fn start(&self, instance: &InstanceSpec, context: &Context) -> Result<Facts, PortError> {
        let isolation = context.isolation.as_deref();
        self.permit_isolation(isolation)?;
        self.check_address(instance, isolation)?;
        let ended = self.end_of_older_epoch(instance, context)?;
        let mut started = self.order(StartOrder {
            id: instance.id(),
            write_domain: Some(instance.service.clone()),
            isolation: context.isolation.clone(),
            epoch: context.epoch,
            idempotency_key: context.idempotency_key.clone(),
            command: instance.command.clone(),
            env: instance.env.clone(),
            directory: self.directory_of(instance, isolation)?,
            whole_environment: false,
        })?;
        started.extend(ended.map(|epoch| ("stopped_of_epoch".to_owned(), json!(epoch))));
        Ok(started)
    }

    /// What runs since an earlier epoch knows another volume, even in the same place: it is no start of this one.
    fn end_of_older_epoch(&self, instance: &InstanceSpec, context: &Context) -> Result<Option<u64>, PortError> {
        let Some(epoch) = older_epoch(&self.layout, &instance.id(), context.isolation.as_deref(), context.epoch)?
        else {
            return Ok(None);
        };
        if Snapshot::take(&self.layout)?.of_instance(&instance.id(), context.isolation.as_deref()).is_empty() {
            return Ok(None);
        }
        // Whoever may not start here has no say over what runs either.
        if self.layout.highest_epoch(&instance.service)? > context.epoch {
            return Ok(None);
        }
        self.stop(instance, context)?;
        Ok(Some(epoch))
    }

    pub(super) fn ensure_agent(&self, context: &Context) -> Result<Facts, PortError> {
        if let Some(isolation) = &context.isolation {
            return Err(PortError::new(format!("isolation `{isolation}` has no `lifeboat protect` of its own")));
        }
        let Some(command) = &self.config.agent_command else {
            return Err(PortError::new(format!(
                "nobody said how `lifeboat protect` is started at site `{}`: start it there yourself",
                self.config.name
            )));
        };
        self.order(StartOrder {
            id: AGENT.to_owned(),
            write_domain: None,
            isolation: None,
            epoch: context.epoch,
            idempotency_key: context.idempotency_key.clone(),
            command: command.clone(),
            env: Default::default(),
            directory: PathBuf::from("/"),
            whole_environment: true,
        })
    }

    fn order(&self, order: StartOrder) -> Result<Facts, PortError> {
        self.ensure_supervisor()?;
        let id = order.id.clone();
        let answer = wire::ask(&self.layout, &Order::Start(order), START_WITHIN).map_err(|error| {
            PortError::may_pass(format!("the supervisor of site `{}` did not answer about `{id}`", self.config.name))
                .because(error)
        })?;
        match answer {
            Answer::Started { pid, already, log } => {
                Ok(facts([("pid", json!(pid)), ("already_running", json!(already)), ("log", json!(log))]))
            }
            Answer::Refused { error, may_pass: true } => Err(PortError::may_pass(error)),
            Answer::Refused { error, may_pass: false } => Err(PortError::new(error)),
            Answer::Here { .. } => Err(PortError::new("the supervisor answered something else than was asked")),
        }
    }

    /// The site's supervisor, started if there is none. It belongs to nobody's session and outlives this process.
    fn ensure_supervisor(&self) -> Result<(), PortError> {
        self.layout.make()?;
        if self.is_supervised() {
            return Ok(());
        }
        let Some((program, arguments)) = self.config.supervisor_command.split_first() else {
            return Err(PortError::new(format!("site `{}` has no supervisor command", self.config.name)));
        };
        let log = self.layout.log("supervisor", None);
        let errors = OpenOptions::new().create(true).append(true).mode(0o600).open(&log).map_err(|error| {
            PortError::new(format!("cannot open the supervisor's log `{}`", log.display())).because(error)
        })?;
        let mut command = Command::new(program);
        command.args(arguments).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        supervisor::mark_supervisor(&mut command, &self.layout);
        let mut child = command.spawn().map_err(|error| {
            PortError::new(format!("the supervisor of site `{}` cannot be started (`{program}`)", self.config.name))
                .because(error)
        })?;
        // Whoever started it must not leave it a zombie when it ends first.
        std::thread::spawn(move || child.wait());
        let until = Instant::now() + SUPERVISOR_WITHIN;
        while !self.is_supervised() {
            if Instant::now() > until {
                return Err(PortError::may_pass(format!(
                    "the supervisor of site `{}` does not answer: see `{}`",
                    self.config.name,
                    log.display()
                )));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    pub(super) fn is_supervised(&self) -> bool {
        let answer = wire::ask(&self.layout, &Order::Ping, Duration::from_secs(5));
        matches!(answer, Ok(Answer::Here { .. }))
    }

    pub(super) fn stop(&self, instance: &InstanceSpec, context: &Context) -> Result<Facts, PortError> {
        let (id, isolation) = (instance.id(), context.isolation.as_deref());
        self.stop_all(&format!("`{id}`"), (instance.stop_within, instance.stop_signal), context, |snapshot| {
            snapshot.of_instance(&id, isolation)
        })
    }

    /// Whatever else runs for the write domain: instances that the plan does not count any more, and the like.
    pub(super) fn stop_rest(&self, write_domain: &str, context: &Context) -> Result<Facts, PortError> {
        let isolation = context.isolation.as_deref();
        let wanted = |belongs: &Belongs| {
            belongs.write_domain.as_deref() == Some(write_domain) && belongs.isolation.as_deref() == isolation
        };
        let what = format!("what else belongs to `{write_domain}`");
        self.stop_all(&what, (REST_WITHIN, StopSignal::Term), context, |snapshot| {
            snapshot.of_site(wanted).into_iter().map(|(process, _)| process).collect()
        })
    }

    /// The signal to each process that no other one of them started; its children are its own business until it is gone.
    fn stop_all(
        &self,
        what: &str,
        (within, signal): (Span, StopSignal),
        context: &Context,
        pick: impl Fn(&Snapshot) -> Vec<&Process>,
    ) -> Result<Facts, PortError> {
        let began = Instant::now();
        let mut asked: Vec<Process> = Vec::new();
        loop {
            let snapshot = Snapshot::take(&self.layout)?;
            let running = pick(&snapshot);
            if running.is_empty() {
                let names: Vec<String> = asked.iter().map(ToString::to_string).collect();
                return Ok(facts([("asked_to_stop", json!(names)), ("seconds", json!(began.elapsed().as_secs_f64()))]));
            }
            if began.elapsed() > within.0 {
                let left: Vec<String> = running.iter().map(ToString::to_string).collect();
                return Err(PortError::may_pass(format!(
                    "{what} at site `{}` still runs {within} after it was asked to stop: {}; raise stop-within, or end it by hand",
                    self.config.name,
                    left.join(", ")
                )));
            }
            if context.cancel.is_cancelled() {
                return Err(PortError::may_pass(format!("waiting for {what} to stop was cancelled")));
            }
            for process in running.iter().filter(|process| !running.iter().any(|other| other.pid == process.parent)) {
                let known = asked.iter().any(|seen| seen.pid == process.pid && seen.start_ticks == process.start_ticks);
                if !known {
                    ask_to_stop(process, signal)?;
                    asked.push((*process).clone());
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(super) fn observe(&self, instance: &InstanceSpec) -> Result<InstanceState, PortError> {
        let isolation = self.isolation_at(instance.address.as_deref())?;
        let snapshot = Snapshot::take(&self.layout)?;
        Ok(match snapshot.of_instance(&instance.id(), isolation.as_deref()).is_empty() {
            true => InstanceState::Stopped,
            false => InstanceState::Running,
        })
    }

    /// An instance whose run-book was compiled for another place would reach into what is live.
    fn check_address(&self, instance: &InstanceSpec, isolation: Option<&str>) -> Result<(), PortError> {
        let (Some(name), Some(address)) = (isolation, &instance.address) else { return Ok(()) };
        let place = self.isolation_place(name)?;
        if address.parse() == Ok(IpAddr::V4(place.address)) {
            return Ok(());
        }
        Err(PortError::new(format!(
            "`{}` is to listen at {address}, but isolation `{name}` has {}: compile the run-book for this isolation",
            instance.id(),
            place.address
        )))
    }

    fn directory_of(&self, instance: &InstanceSpec, isolation: Option<&str>) -> Result<PathBuf, PortError> {
        let volumes = self.layout.volumes(isolation);
        match instance.directory.as_deref() {
            None => Ok(volumes),
            Some(path) if path.starts_with('/') => Ok(PathBuf::from(path)),
            Some(path) => inner_path(path).map(|inner| volumes.join(inner)).ok_or_else(|| {
                PortError::new(format!(
                    "`{}` is to run in `{path}`, which leads out of the site's volumes",
                    instance.id()
                ))
            }),
        }
    }
}

/// The epoch under which an instance was started last, if it is older than this one.
pub(super) fn older_epoch(
    layout: &Layout,
    id: &str,
    isolation: Option<&str>,
    epoch: u64,
) -> Result<Option<u64>, PortError> {
    let record = read_record::<InstanceRecord>(&layout.instance_record(id, isolation))?;
    Ok(record.map(|record| record.epoch).filter(|before| *before < epoch))
}

/// To its whole group if it leads one.
fn ask_to_stop(process: &Process, signal: StopSignal) -> Result<(), PortError> {
    let signal = match signal {
        StopSignal::Term => Signal::TERM,
        StopSignal::Int => Signal::INT,
        StopSignal::Quit => Signal::QUIT,
    };
    let failed = |error| PortError::new(format!("{process} cannot be asked to stop")).because(error);
    match Pid::from_raw(process.group) {
        Some(group) if process.group == process.pid && process.is_alive() => match kill_process_group(group, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(failed(std::io::Error::from(error))),
        },
        _ => process.signal(signal).map_err(failed),
    }
}
