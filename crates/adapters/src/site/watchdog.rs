//! The watchdog beside a writer: a process of its own, told by the agent until when the lease is held, which stops the writer
//! when nothing newer came in time.
//!
//! ```text
//!   agent ──{"epoch":2,"until":814.2}──▶ watchdog: stops the writer at 814.2, unless told of a later time
//!         ◀── the same line back ───────
//! ```
//!
//! Invariant: once told of a time it acts at it, whatever becomes of the agent, signals that ask it to end included; it
//! goes only after it has acted, or when its successor has been told of a renewal. Times are of a clock that goes on while the machine sleeps.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_core::runbook::InstanceSpec;
use lifeboat_engine::port::{Cancel, Context, FenceRequest, Fenced, PortError, Probe, Site};
use lifeboat_engine::protect::Watchdog;
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};

use super::local::layout::{boot_id, make_directory, read_record, remove_record, write_record};
use super::local::processes::{INSTANCE, ISOLATION, Process, SITE, WATCHDOG, WRITE_DOMAIN};

/// A clock that may have stood still is looked at that often.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A program that has just been started reads its plan first.
const BEGIN_WITHIN: Duration = Duration::from_secs(5);
/// Between two tries to stop what would not stop.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// Under which name fences are raised here.
const RUN: &str = "the lease's watchdog";

/// Seconds since this machine was started, sleep included.
pub fn seconds_since_boot() -> f64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// What is guarded, and how it is stopped.
#[derive(Clone)]
pub struct Guarded {
    pub site: Arc<dyn Site>,
    /// Without volumes: the agent, which holds them, lives on.
    pub request: FenceRequest,
    /// A directory of this host's for what is known of it.
    pub state: PathBuf,
}

impl std::fmt::Debug for Guarded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guarded").field("request", &self.request).finish_non_exhaustive()
    }
}

/// What is told to the watchdog, and said back by it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Told {
    epoch: u64,
    until: f64,
}

/// Processes that may still act, in `watchdogs.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Guards {
    epoch: u64,
    processes: Vec<Guard>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Guard {
    pid: i32,
    start_ticks: u64,
    boot: String,
}

impl Guard {
    fn of(pid: i32) -> Option<Guard> {
        Some(Guard { pid, start_ticks: Process::read(pid)?.start_ticks, boot: boot_id() })
    }

    fn end(&self) -> Result<(), PortError> {
        match Process::read(self.pid).filter(|now| now.start_ticks == self.start_ticks && self.boot == boot_id()) {
            None => Ok(()),
            Some(process) => process.signal(Signal::KILL).map_err(|error| {
                PortError::may_pass(format!("the former watchdog ({process}) cannot be ended")).because(error)
            }),
        }
    }
}

/// That a writer was stopped, in `stopped.json`, until it may start again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Stopped {
    epoch: u64,
    /// RFC 3339, for people.
    at: String,
    why: String,
    /// Whether anything ran that is to run again.
    ran: bool,
    /// When it was proven, by the clock of the deadlines; for whoever compares.
    seconds_since_boot: f64,
}

impl Guarded {
    fn stopped_path(&self) -> PathBuf {
        self.state.join("stopped.json")
    }

    fn guards_path(&self) -> PathBuf {
        self.state.join("watchdogs.json")
    }

    fn context(&self, epoch: u64) -> Context {
        Context {
            run: RUN.to_owned(),
            step: "lease".to_owned(),
            epoch,
            idempotency_key: format!("lease/{}/{epoch}/{}", self.request.write_domain, seconds_since_boot()),
            isolation: None,
            cancel: Cancel::default(),
        }
    }

    /// Once; an error where that it stopped could not be proven.
    async fn stop(&self, epoch: u64, why: &str) -> Result<Stopped, PortError> {
        let facts = match self.site.fence(&self.request, &self.context(epoch)).await? {
            Fenced::Proven { facts, .. } => facts,
            Fenced::Unproven { why, .. } => return Err(PortError::may_pass(why)),
        };
        // A site that does not say what it ended may have ended something.
        let ran = facts.get("killed").and_then(|killed| killed.as_array()).is_none_or(|killed| !killed.is_empty());
        let path = self.stopped_path();
        let stopped = match read_record::<Stopped>(&path).ok().flatten() {
            Some(before) => Stopped { ran: before.ran || ran, epoch: epoch.max(before.epoch), ..before },
            None => Stopped {
                epoch,
                at: Timestamp::now().to_string(),
                why: why.to_owned(),
                ran,
                seconds_since_boot: seconds_since_boot(),
            },
        };
        write_record(&path, &stopped)?;
        Ok(stopped)
    }
}

/// The agent's side: starts the process, talks to it, and puts another one in its place when it does not answer.
pub struct WatchdogProcess {
    pub guarded: Guarded,
    /// The whole command that calls `watch` for the same.
    pub command: Vec<String>,
    /// What is started when the lease is held again, in that order.
    pub instances: Vec<InstanceSpec>,
    pub probe: Arc<dyn Probe>,
    /// How long an answer may take.
    pub answer_within: Duration,
    pub runtime: Handle,
    process: Mutex<Option<Running>>,
}

impl std::fmt::Debug for WatchdogProcess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WatchdogProcess").field("command", &self.command).finish_non_exhaustive()
    }
}

struct Running {
    child: Child,
    guard: Guard,
    words: ChildStdin,
    answers: Receiver<Told>,
    answered: bool,
}

impl Running {
    fn tell(&mut self, told: Told, within: Duration) -> Result<(), PortError> {
        let mut line = serde_json::to_vec(&told).map_err(|error| PortError::new("no line").because(error))?;
        line.push(b'\n');
        let silent = |why: String| PortError::may_pass(format!("the watchdog (process {}) {why}", self.guard.pid));
        self.words.write_all(&line).map_err(|error| silent("does not listen".into()).because(error))?;
        let within = if self.answered { within } else { within.max(BEGIN_WITHIN) };
        let until = Instant::now() + within;
        loop {
            match self.answers.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(answer) if answer == told => break,
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return Err(silent(format!("has not answered within {within:?}"))),
                Err(RecvTimeoutError::Disconnected) => return Err(silent("has ended".into())),
            }
        }
        self.answered = true;
        Ok(())
    }

    fn end(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl WatchdogProcess {
    pub fn new(
        guarded: Guarded,
        command: Vec<String>,
        instances: Vec<InstanceSpec>,
        probe: Arc<dyn Probe>,
        answer_within: Duration,
        runtime: Handle,
    ) -> WatchdogProcess {
        WatchdogProcess { guarded, command, instances, probe, answer_within, runtime, process: Mutex::default() }
    }

    fn guards(&self) -> Option<Guards> {
        // A record that cannot be read is of a guard that may be there.
        read_record(&self.guarded.guards_path()).unwrap_or_else(|_| Some(Guards::default()))
    }

    fn note(&self, guards: &Guards) -> Result<(), PortError> {
        if self.guards().as_ref() == Some(guards) {
            return Ok(());
        }
        write_record(&self.guarded.guards_path(), guards)
    }

    /// It is on record before it is told anything: what guards can be found by whoever takes over.
    fn start(&self, epoch: u64) -> Result<Running, PortError> {
        let Some((program, arguments)) = self.command.split_first() else {
            return Err(PortError::new("nobody said how a watchdog is started"));
        };
        let failed = |error: std::io::Error| {
            PortError::may_pass(format!("the watchdog (`{program}`) cannot be started")).because(error)
        };
        make_directory(&self.guarded.state, 0o700)?;
        let mut command = Command::new(program);
        command.args(arguments).current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped());
        command.env_remove(WRITE_DOMAIN).env_remove(ISOLATION);
        if std::env::var_os(SITE).is_some() {
            command.env(INSTANCE, WATCHDOG);
        }
        let mut child = command.spawn().map_err(failed)?;
        let (words, said) = match (child.stdin.take(), child.stdout.take(), Guard::of(child.id() as i32)) {
            (Some(words), Some(said), Some(guard)) => {
                let mut guards = self.guards().unwrap_or_default();
                guards.epoch = epoch;
                guards.processes.push(guard.clone());
                if let Err(error) = self.note(&guards) {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(error);
                }
                ((words, guard), said)
            }
            _ => {
                let _ = child.kill();
                let status = child.wait().map_err(failed)?;
                return Err(PortError::may_pass(format!("the watchdog (`{program}`) ended at once ({status})")));
            }
        };
        let (tell, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(said).lines().map_while(Result::ok) {
                if let Ok(told) = serde_json::from_str(&line)
                    && tell.send(told).is_err()
                {
                    break;
                }
            }
        });
        let (words, guard) = words;
        Ok(Running { child, guard, words, answers, answered: false })
    }

    async fn start_instances(&self, epoch: u64) -> Result<(), PortError> {
        let context = self.guarded.context(epoch);
        for instance in &self.instances {
            self.guarded.site.start(instance, &context).await?;
            let Some(health) = &instance.health else { continue };
            let until = Instant::now() + health.within.0;
            while let Err(error) = self.probe.instance(instance, health).await {
                if Instant::now() > until {
                    tracing::warn!("{} was started again and is not healthy: {error}", instance.id());
                    break;
                }
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        }
        Ok(())
    }
}

impl Watchdog for WatchdogProcess {
    fn now(&self) -> f64 {
        seconds_since_boot()
    }

    fn guard(&self, epoch: u64, until: f64, renewed: bool) -> Result<(), PortError> {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let told = Told { epoch, until };
        let mut answered = Err(PortError::may_pass("there is no watchdog"));
        // What was there and is silent gives way to another one, which is given one try.
        for _ in 0..2 {
            let mut running = match process.take() {
                Some(running) => running,
                None => self.start(epoch)?,
            };
            answered = running.tell(told, self.answer_within);
            match &answered {
                Ok(()) => {
                    *process = Some(running);
                    break;
                }
                Err(error) => {
                    tracing::warn!("{error}; another one takes its place");
                    running.end();
                }
            }
        }
        answered?;
        let (Some(running), Some(mut guards)) = (process.as_ref(), self.guards()) else { return Ok(()) };
        guards.epoch = epoch;
        if renewed {
            for former in guards.processes.iter().filter(|guard| **guard != running.guard) {
                former.end()?;
            }
            guards.processes = vec![running.guard.clone()];
        }
        self.note(&guards)
    }

    fn guarded(&self) -> Option<u64> {
        self.guards().map(|guards| guards.epoch)
    }

    fn stop(&self, epoch: u64, why: &str) -> Result<(), PortError> {
        self.runtime.block_on(self.guarded.stop(epoch, why)).map(|_| ())
    }

    fn stopped(&self) -> Option<String> {
        let stopped = read_record::<Stopped>(&self.guarded.stopped_path()).ok().flatten()?;
        Some(format!("the writer was stopped here at {}: {}", stopped.at, stopped.why))
    }

    fn resume(&self, epoch: u64) -> Result<(), PortError> {
        let path = self.guarded.stopped_path();
        let Some(stopped) = read_record::<Stopped>(&path)? else { return Ok(()) };
        let context = self.guarded.context(epoch);
        let lifted = self.guarded.site.lift_fence(&self.guarded.request.write_domain, &context);
        self.runtime.block_on(lifted)?;
        if stopped.ran {
            self.runtime.block_on(self.start_instances(epoch))?;
        }
        // It may have been stopped again meanwhile.
        match read_record::<Stopped>(&path)? {
            Some(now) if now != stopped => Ok(()),
            _ => remove_record(&path),
        }
    }

    fn rest(&self) -> Result<(), PortError> {
        if let Some(running) = self.process.lock().unwrap_or_else(PoisonError::into_inner).take() {
            running.end();
        }
        for guard in self.guards().unwrap_or_default().processes {
            guard.end()?;
        }
        remove_record(&self.guarded.stopped_path())?;
        remove_record(&self.guarded.guards_path())
    }
}

/// The watchdog's own side: returns when nothing is left to guard and nobody is there who could tell of more.
pub fn watch(guarded: &Guarded, runtime: &Runtime) -> Result<(), PortError> {
    // Fails only if this process leads a group already; then it is detached as it is.
    let _ = rustix::process::setsid();
    // Whoever ends the agent's whole group politely does not mean the writer to go on unguarded.
    let deaf = |kind| {
        let _inside = runtime.enter();
        signal(kind).map_err(|error| PortError::new("the watchdog cannot ignore signals").because(error))
    };
    let _deaf = [deaf(SignalKind::terminate())?, deaf(SignalKind::interrupt())?, deaf(SignalKind::hangup())?];
    let (tell, told) = channel::<Told>();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if let Ok(word) = serde_json::from_str(&line)
                && tell.send(word).is_err()
            {
                break;
            }
        }
    });
    let mut guards: Option<Told> = None;
    let mut is_alone = false;
    loop {
        if is_alone {
            std::thread::sleep(LOOK_EVERY);
        } else {
            match told.recv_timeout(LOOK_EVERY) {
                Ok(word) => {
                    guards = Some(word);
                    answer(&word);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => is_alone = true,
            }
        }
        // What lay in the pipe while this process stood still came in time.
        while let Ok(word) = told.try_recv() {
            guards = Some(word);
            answer(&word);
        }
        if let Some(word) = guards.take_if(|word| seconds_since_boot() >= word.until) {
            stop(guarded, runtime, word);
        }
        if is_alone && guards.is_none() {
            return Ok(());
        }
    }
}

/// Until it is proven.
fn stop(guarded: &Guarded, runtime: &Runtime, word: Told) {
    let domain = &guarded.request.write_domain;
    say(&format!("{domain}: the lease under epoch {} was not renewed in time; stopping the writer", word.epoch));
    let mut told = String::new();
    loop {
        match runtime.block_on(guarded.stop(word.epoch, "its lease was not renewed in time")) {
            Ok(stopped) => {
                let late = stopped.seconds_since_boot - word.until;
                return say(&format!("{domain}: the writer is stopped, {late:.2} s after the time that was told"));
            }
            Err(error) => {
                let error = error.to_string();
                if error != told {
                    say(&format!("{domain}: not proven yet that the writer is stopped: {error}"));
                    told = error;
                }
                std::thread::sleep(AGAIN_AFTER);
            }
        }
    }
}

/// A reader that is gone is no reason to end.
fn answer(word: &Told) {
    if let Ok(mut line) = serde_json::to_vec(word) {
        line.push(b'\n');
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(&line).and_then(|()| out.flush());
    }
}

fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{} {text}", Timestamp::now());
}
