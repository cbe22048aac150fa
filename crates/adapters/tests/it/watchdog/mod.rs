//! A lease at a real local site: an agent that renews it, the watchdog beside it, and a writer that says when it wrote.
//! Times are of one clock, since boot, and compared with the lease; nothing here waits for a time to pass.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use lifeboat_adapters::clock::MachineClock;
use lifeboat_adapters::probe::NetworkProbe;
use lifeboat_adapters::site::watchdog::{Guarded, WatchdogProcess, seconds_since_boot, watch};
use lifeboat_adapters::site::{LocalSite, LocalSiteConfig};
use lifeboat_core::runbook::InstanceSpec;
use lifeboat_core::units::Span;
use lifeboat_engine::arbitrate::{Arbiter, Lease, Trustee};
use lifeboat_engine::port::{Cancel, InstanceState, Site};
use lifeboat_engine::protect::{Domain, DomainLease, FirstDay};
use lifeboat_vault::sign::SigningKey;
use lifeboat_vault::{Role, storage};
use rustix::process::{Pid, Signal, kill_process};

use crate::children;
use crate::site_conformance::{context, eventually, instance, is_alive, request};
use crate::site_local::World as LocalWorld;

const TTL: Span = Span::seconds(6);
const ROOT: &str = "LIFEBOAT_TEST_ROOT";

/// Everything that the agent, the watchdog and the test know of each other, below one directory.
struct World {
    local: LocalWorld,
    agent: Option<Child>,
}

fn note(root: &Path, name: &str) -> PathBuf {
    root.join("..").join(name)
}

/// Says ten times a second when it wrote, by the clock that the lease is counted by.
fn writer(root: &Path) -> InstanceSpec {
    let wrote = note(root, "wrote");
    instance(&format!("while :; do cut -d' ' -f1 /proc/uptime >> {}; sleep 0.1; done", wrote.display()))
}

fn site(root: &Path) -> Arc<dyn Site> {
    let supervisor = [env!("CARGO_BIN_EXE_supervise"), "--root", root.to_str().unwrap()].map(str::to_owned).to_vec();
    let mut config = LocalSiteConfig::new("a", root, "127.0.0.1", supervisor);
    config.is_inside = true;
    Arc::new(LocalSite::new(config).unwrap())
}

fn guarded(root: &Path) -> Guarded {
    Guarded { site: site(root), request: request(&[writer(root)], &[]), state: note(root, "lease") }
}

fn arbiter(root: &Path) -> Arc<Arbiter> {
    let key = SigningKey::load_or_create(&note(root, "host.key")).unwrap();
    let trusted = BTreeMap::from([(key.public(), Trustee::new("a", &[Role::Host, Role::Controller]))]);
    let storage = storage::open(note(root, "arbiter").to_str().unwrap()).unwrap();
    Arc::new(Arbiter::new(storage, Arc::new(key), trusted, Arc::new(MachineClock::default())))
}

/// The agent's process.
pub(crate) fn agent_child() {
    let root = PathBuf::from(std::env::var_os(ROOT).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let variable = format!("{}=watchdog", children::VARIABLE);
    let program = note(&root, "program").display().to_string();
    let command = ["/usr/bin/env", &variable, &program, "--exact", children::TEST, "--nocapture"];
    let watchdog = WatchdogProcess::new(
        guarded(&root),
        command.map(str::to_owned).to_vec(),
        vec![writer(&root)],
        Arc::new(NetworkProbe::default()),
        Duration::from_secs(1),
        runtime.handle().clone(),
    );
    let domain = Domain {
        site: "a".into(),
        first_day: FirstDay { write_domain: "shop".into(), writer: "a".into(), traffic: None },
        data: Vec::new(),
        arbiter: arbiter(&root),
        clock: Arc::new(MachineClock::default()),
        state: note(&root, "state"),
        poll: Duration::from_millis(50),
        lease: Some(DomainLease { ttl: Some(TTL), holder: "a".into(), watchdog: Arc::new(watchdog) }),
    };
    runtime.block_on(domain.serve(Cancel::default()));
}

/// The watchdog's process.
pub(crate) fn watchdog_child() {
    let root = PathBuf::from(std::env::var_os(ROOT).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    watch(&guarded(&root), &runtime).unwrap();
}

impl World {
    /// The lease is held, and the writer writes.
    async fn new() -> World {
        let local = LocalWorld::new();
        storage::create(local.note("arbiter").to_str().unwrap()).unwrap();
        std::os::unix::fs::symlink(std::env::current_exe().unwrap(), local.note("program")).unwrap();
        fs::write(local.note("wrote"), "").unwrap();
        fs::create_dir_all(local.root()).unwrap();
        // Made before two processes could each make one.
        arbiter(local.root());
        let mut world = World { local, agent: None };
        world.start_agent();
        world.await_renewals(1);
        site(world.root()).start(&writer(world.root()), &context(1, "start")).await.unwrap();
        world.await_writes_after(0.0);
        world
    }

    fn root(&self) -> &Path {
        self.local.root()
    }

    fn start_agent(&mut self) {
        let mut command = children::command("lease-agent");
        let child = command.env(ROOT, self.root()).stdout(Stdio::null()).spawn().unwrap();
        assert!(self.agent.replace(child).is_none());
    }

    fn signal_agent(&self, signal: Signal) {
        kill_process(Pid::from_child(self.agent.as_ref().unwrap()), signal).unwrap();
    }

    fn kill_agent(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    fn lease(&self) -> Option<Lease> {
        arbiter(self.root()).read_lease("a", "shop", 1).unwrap()
    }

    /// So many more renewals.
    fn await_renewals(&self, count: u64) {
        let before = self.lease().map_or(0, |lease| lease.beat);
        eventually("renewals", || (self.lease()?.beat >= before + count).then_some(()));
    }

    fn writes(&self) -> Vec<f64> {
        let text = fs::read_to_string(self.local.note("wrote")).unwrap();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    fn await_writes_after(&self, at: f64) {
        eventually("a write", || (*self.writes().last()? > at).then_some(()));
    }

    /// When the writer was proven to have stopped, by what is on record; it does not run.
    async fn await_stopped(&self) -> f64 {
        let record = note(self.root(), "lease").join("stopped.json");
        let at = eventually("the writer to be stopped", || {
            let stopped: serde_json::Value = serde_json::from_slice(&fs::read(&record).ok()?).ok()?;
            stopped["seconds_since_boot"].as_f64()
        });
        assert_eq!(site(self.root()).observe(&writer(self.root())).await.unwrap(), InstanceState::Stopped);
        at
    }

    fn watchdogs(&self) -> Vec<i32> {
        let text = fs::read(note(self.root(), "lease").join("watchdogs.json")).unwrap();
        let guards: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let processes = guards["processes"].as_array().unwrap();
        processes.iter().map(|guard| guard["pid"].as_i64().unwrap() as i32).filter(|pid| is_alive(*pid)).collect()
    }

    fn only_watchdog(&self) -> Pid {
        let found = eventually("one watchdog", || match self.watchdogs().as_slice() {
            [only] => Some(*only),
            _ => None,
        });
        Pid::from_raw(found).unwrap()
    }

    /// Whether the writer stopped within the lease since then, and wrote nothing after that was proven.
    fn assert_in_time(&self, since: f64, stopped_at: f64) {
        let ttl = TTL.as_seconds();
        assert!(
            stopped_at - since < ttl,
            "stopped {} s after the last renewal can have been asked for",
            stopped_at - since
        );
        let last = self.writes().into_iter().rfind(|at| *at < since + ttl + 60.0).unwrap();
        // The kernel says times in hundredths of a second.
        assert!(last <= stopped_at + 0.01, "wrote at {last}, proven to have stopped at {stopped_at}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        let text = fs::read(note(self.root(), "lease").join("watchdogs.json")).unwrap_or_default();
        if let Ok(guards) = serde_json::from_slice::<serde_json::Value>(&text) {
            for guard in guards["processes"].as_array().into_iter().flatten() {
                let pid = guard["pid"].as_i64().and_then(|pid| Pid::from_raw(pid as i32));
                let _ = pid.map(|pid| kill_process(pid, Signal::KILL));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_agents_writer_is_stopped_in_time_and_starts_when_the_agent_thaws() {
    let world = World::new().await;
    world.await_renewals(3);
    world.signal_agent(Signal::STOP);
    let frozen_at = seconds_since_boot();
    let stopped_at = world.await_stopped().await;
    world.assert_in_time(frozen_at, stopped_at);
    let refused = site(world.root()).start(&writer(world.root()), &context(1, "again")).await.unwrap_err();
    assert!(refused.to_string().contains("is fenced here since"), "{refused}");
    world.signal_agent(Signal::CONT);
    world.await_writes_after(stopped_at);
    world.await_renewals(2);
    assert!(!note(world.root(), "lease").join("stopped.json").exists() || !world.writes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agents_watchdog_is_deaf_to_polite_signals_and_stops_the_writer_in_time() {
    let mut world = World::new().await;
    world.await_renewals(3);
    let watchdog = world.only_watchdog();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        kill_process(watchdog, signal).unwrap();
    }
    world.kill_agent();
    let killed_at = seconds_since_boot();
    let stopped_at = world.await_stopped().await;
    world.assert_in_time(killed_at, stopped_at);
    eventually("the watchdog to end", || world.watchdogs().is_empty().then_some(()));
    world.start_agent();
    world.await_writes_after(stopped_at);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_started_anew_in_time_takes_over_and_nothing_is_stopped() {
    let mut world = World::new().await;
    let pid = |world: &World| world.only_watchdog();
    let first = pid(&world);
    world.kill_agent();
    let killed_at = seconds_since_boot();
    world.start_agent();
    world.await_renewals(3);
    assert_ne!(pid(&world), first, "the new agent has a watchdog of its own, and the former is gone");
    // Beyond what the first one was told.
    world.await_writes_after(killed_at + TTL.as_seconds());
    assert!(!note(world.root(), "lease").join("stopped.json").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watchdog_that_is_killed_or_hangs_is_replaced_and_one_that_cannot_be_means_a_stop() {
    let world = World::new().await;
    for signal in [Signal::KILL, Signal::STOP] {
        let before = world.only_watchdog();
        kill_process(before, signal).unwrap();
        eventually("another watchdog", || {
            world.watchdogs().iter().any(|pid| *pid != before.as_raw_nonzero().get()).then_some(())
        });
        world.await_renewals(2);
    }
    assert!(!note(world.root(), "lease").join("stopped.json").exists());
    // Nobody knows how to start one any more.
    fs::remove_file(world.local.note("program")).unwrap();
    kill_process(world.only_watchdog(), Signal::KILL).unwrap();
    let killed_at = seconds_since_boot();
    let stopped_at = world.await_stopped().await;
    world.assert_in_time(killed_at, stopped_at);
    let beat = world.lease().unwrap().beat;
    std::os::unix::fs::symlink(std::env::current_exe().unwrap(), world.local.note("program")).unwrap();
    world.await_writes_after(stopped_at);
    assert!(world.lease().unwrap().beat > beat);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_arbiter_out_of_reach_for_the_lease_stops_the_writer_and_its_return_starts_it() {
    let world = World::new().await;
    world.await_renewals(3);
    fs::rename(world.local.note("arbiter"), world.local.note("away")).unwrap();
    let away_at = seconds_since_boot();
    let stopped_at = world.await_stopped().await;
    world.assert_in_time(away_at, stopped_at);
    fs::rename(world.local.note("away"), world.local.note("arbiter")).unwrap();
    world.await_writes_after(stopped_at);
}
