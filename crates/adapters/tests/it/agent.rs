//! The agent on two hosts, each a process of its own: a database and a directory of files under a writing application, and
//! the writer changes over, by plan and without.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_adapters::clock::MachineClock;
use lifeboat_adapters::source::{restorer_for, source_for};
use lifeboat_core::desired::{AgentReport, AgentRole};
use lifeboat_core::plan::{CommitMode, Keep, Protect, Schedule, Source};
use lifeboat_core::units::Span;
use lifeboat_engine::arbitrate::{Arbiter, Claim, Trusted, Trustee};
use lifeboat_engine::port::{Cancel, Clock, DataAgent, DataStatus, Order, Orders};
use lifeboat_engine::protect::data::HostData;
use lifeboat_engine::protect::{Domain, FirstDay};
use lifeboat_engine::vaults::VaultPlace;
use lifeboat_vault::storage;
use lifeboat_vault::{Holder, Identity, InitOptions, Role, State, Vault};
use rusqlite::Connection;

use crate::children;
use crate::vault_world::wait_for;

const ORDERS: &str = "orders";
const UPLOADS: &str = "uploads";
const DOMAIN: &str = "shop";
const VAULTS: [&str; 2] = ["near", "far"];
const SITES: [&str; 2] = ["south", "north"];

fn state_of(root: &Path, who: &str) -> State {
    State::open(&root.join(who).join("state"), Some(who)).unwrap()
}

fn volumes(root: &Path, site: &str) -> PathBuf {
    root.join(site).join("volumes")
}

fn database_path(root: &Path, site: &str) -> PathBuf {
    volumes(root, site).join("orders.db")
}

fn uploads_path(root: &Path, site: &str) -> PathBuf {
    volumes(root, site).join("uploads")
}

fn vault_url(root: &Path, vault: &str) -> String {
    root.join(vault).display().to_string()
}

/// Vaults, hosts on their rosters, keys for both standbys, and an arbiter.
struct World {
    root: tempfile::TempDir,
    arbiter: Arbiter,
}

impl World {
    fn new() -> World {
        let root = tempfile::tempdir().unwrap();
        let path = root.path();
        let key = Identity::generate();
        let controller = state_of(path, "controller");
        let mut holders = Vec::new();
        for site in SITES {
            let standby = Identity::generate();
            fs::create_dir_all(path.join(site)).unwrap();
            fs::write(path.join(site).join("standby.key"), standby.expose()).unwrap();
            holders.extend([ORDERS, UPLOADS].map(|dataset| Holder {
                dataset: dataset.into(),
                recipient: standby.recipient().to_string(),
                purpose: "standby".into(),
                place: site.into(),
            }));
        }
        for vault in VAULTS {
            let storage = storage::create(&vault_url(path, vault)).unwrap();
            let options = InitOptions {
                recipients: vec![key.recipient(), Identity::generate().recipient()],
                holders: holders.clone(),
                ..InitOptions::default()
            };
            Vault::init(storage.clone(), &controller, &options).unwrap();
            let owner = Vault::open(storage, None, None).unwrap().unlock(std::slice::from_ref(&key)).unwrap();
            for site in SITES {
                let request = owner.request_enrolment(&state_of(path, site), &[Role::Host]).unwrap();
                owner.approve(&request.fingerprint).unwrap();
            }
        }
        storage::create(&path.join("arbiter").display().to_string()).unwrap();
        let arbiter = arbiter(path, "controller");
        World { root, arbiter }
    }

    fn root(&self) -> &Path {
        self.root.path()
    }

    fn agent(&self, site: &str) -> Agent {
        let child = children::command("agent")
            .env("LIFEBOAT_TEST_AGENT", self.root())
            .env("LIFEBOAT_TEST_SITE", site)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Agent(child)
    }

    fn report(&self, site: &str, dataset: &str) -> Option<AgentReport> {
        self.arbiter.agent_report(site, dataset).unwrap()
    }

    /// Waits until the site reports something about both data sets.
    fn await_reports(&self, site: &str, what: &str, enough: impl Fn(&AgentReport) -> bool) {
        for dataset in [ORDERS, UPLOADS] {
            let mut last = None;
            let deadline = std::time::Instant::now() + Duration::from_secs(60);
            loop {
                let report = self.report(site, dataset);
                if report.as_ref().is_some_and(&enough) {
                    break;
                }
                last = report.or(last);
                assert!(std::time::Instant::now() < deadline, "waited in vain for {what}: {last:?}");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    fn claim(&self, epoch: u64, primary: &str) {
        let claim = Claim {
            write_domain: DOMAIN.into(),
            epoch,
            primary: primary.into(),
            run: format!("run-{epoch}"),
            at: String::new(),
            planned: false,
        };
        self.arbiter.claim_epoch(&claim).unwrap();
    }

    fn publish(&self, epoch: u64, primary: &str, frozen: bool) -> u64 {
        self.arbiter.publish_writer(DOMAIN, epoch, primary, frozen).unwrap().generation
    }

    fn await_following(&self, site: &str, epoch: u64) {
        self.await_reports(site, "the standby to follow", |report| {
            report.role == AgentRole::Standby && report.epoch == epoch && report.applied.is_some()
        });
    }

    fn await_writing(&self, site: &str, epoch: u64) {
        self.await_reports(site, "the writer to have taken over", |report| {
            report.role == AgentRole::Writer && report.epoch == epoch && report.settled
        });
    }

    /// As a planned failover does: freeze, final mark, the other side has everything, promote.
    fn switch_over(&self, from: &str, to: &str, written_under: u64, epoch: u64) {
        self.claim(epoch, to);
        let generation = self.publish(epoch, from, true);
        self.await_reports(from, "the writer to be finished", |report| {
            report.generation >= generation && report.settled && report.finished == Some(written_under)
        });
        self.await_reports(to, "the standby to have everything", |report| {
            report.role == AgentRole::Standby && report.settled && report.epoch == written_under
        });
        self.publish(epoch, to, false);
        self.await_writing(to, epoch);
    }

    /// Waits until the site has said that everything before `since` is durable in the vault.
    fn await_durable(&self, site: &str, vault: &str, since: Timestamp) {
        self.await_reports(site, "what was written to be durable", |report| {
            report.durable.get(vault).is_some_and(|at| at.parse::<Timestamp>().unwrap() >= since)
        });
    }

    /// Every object in the vaults that a host has written, recovery points and log.
    fn written_by(&self, host: &str) -> Vec<String> {
        let mut keys = Vec::new();
        for vault in VAULTS {
            let vault = Vault::open(storage::open(&vault_url(self.root(), vault)).unwrap(), None, None).unwrap();
            let points = vault.points(None).unwrap();
            keys.extend(points.points.into_iter().filter(|point| point.host == host).map(|point| point.key));
            for lineage in vault.log_lineages(ORDERS).unwrap() {
                let trail = vault.log_trail(ORDERS, &lineage).unwrap();
                keys.extend(trail.entries.into_iter().filter(|entry| entry.host == host).map(|entry| entry.key));
            }
        }
        keys
    }
}

fn trustee(name: &str) -> Trustee {
    Trustee::new(name, if name == "controller" { &[Role::Controller] } else { &[Role::Host] })
}

fn arbiter(root: &Path, who: &str) -> Arbiter {
    let storage = storage::open(&root.join("arbiter").display().to_string()).unwrap();
    let everybody = ["controller"].into_iter().chain(SITES);
    let trusted: Trusted = everybody.map(|name| (state_of(root, name).signing_key().public(), trustee(name))).collect();
    Arbiter::new(storage, Arc::new(state_of(root, who)), trusted, Arc::new(MachineClock::default()))
}

/// An agent's process, killed when it is dropped.
struct Agent(Child);

impl Agent {
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The agent's process.
pub(crate) fn agent_child() {
    let Ok(root) = std::env::var("LIFEBOAT_TEST_AGENT") else { return };
    let (root, site) = (PathBuf::from(root), std::env::var("LIFEBOAT_TEST_SITE").unwrap());
    let domain = domain(&root, &site);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(domain.serve(Cancel::default()));
}

fn domain(root: &Path, site: &str) -> Domain {
    let state = state_of(root, site);
    let clock: Arc<dyn Clock> = Arc::new(MachineClock::default());
    let vaults: BTreeMap<String, VaultPlace> = VAULTS
        .map(|name| {
            let (name, url) = (name.to_owned(), vault_url(root, name));
            (name.clone(), VaultPlace { name, url, state: state.clone(), owner: None })
        })
        .into();
    let identities = Identity::load_all(&root.join(site).join("standby.key")).unwrap();
    let data = |dataset: &str, source: Source, path: PathBuf, log: bool, every: Span| -> Arc<dyn DataAgent> {
        let state = state.directory().join(dataset);
        fs::create_dir_all(&state).unwrap();
        let protect = |to: &str| Protect {
            to: to.into(),
            every: Schedule::Every(every),
            keep: Keep::default(),
            log,
            mode: CommitMode::Async,
        };
        Arc::new(HostData {
            dataset: dataset.into(),
            source: source_for(&source, &path, &state).unwrap(),
            restorer: restorer_for(&source).unwrap(),
            path,
            is_apart: false,
            state,
            protect: VAULTS.map(protect).into(),
            awaited: None,
            vaults: vaults.clone(),
            identities: identities.clone(),
            via: BTreeMap::new(),
            mark_idle_max: Duration::ZERO,
            clock: clock.clone(),
        })
    };
    let orders = Source::Sqlite { path: "orders.db".into() };
    let uploads = Source::Files { path: "uploads".into(), exclude: Vec::new() };
    Domain {
        site: site.to_owned(),
        first_day: FirstDay { write_domain: DOMAIN.into(), writer: "south".into(), traffic: None },
        data: vec![
            data(ORDERS, orders, database_path(root, site), true, Span::seconds(3600)),
            data(UPLOADS, uploads, uploads_path(root, site), false, Span::seconds(1)),
        ],
        arbiter: Arc::new(arbiter(root, site)),
        clock: clock.clone(),
        state: state.directory().join(DOMAIN),
        poll: Duration::from_millis(50),
        lease: None,
    }
}

/// What the application has written and had acknowledged, and when.
type Ledger = Arc<Mutex<Vec<(u32, Timestamp)>>>;

/// An application that writes numbered orders, and a file for every tenth, until it is stopped.
struct Application {
    stop: Arc<AtomicBool>,
    pause: Arc<AtomicBool>,
    ledger: Ledger,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Application {
    fn start(root: &Path, site: &str) -> Application {
        let (path, uploads) = (database_path(root, site), uploads_path(root, site));
        fs::create_dir_all(&uploads).unwrap();
        let database = Connection::open(path).unwrap();
        database.busy_timeout(Duration::from_secs(30)).unwrap();
        database
            .execute_batch(
                "pragma journal_mode=wal; pragma synchronous=normal; create table if not exists orders(n integer primary key, body blob)",
            )
            .unwrap();
        let (stop, pause) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let ledger = Ledger::default();
        let (stopped, paused, written) = (stop.clone(), pause.clone(), ledger.clone());
        let thread = std::thread::spawn(move || {
            let next = "select coalesce(max(n), 0) + 1 from orders";
            let mut n: u32 = database.query_row(next, [], |row| row.get(0)).unwrap();
            while !stopped.load(Ordering::SeqCst) {
                if paused.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
                database.execute("insert into orders values (?, randomblob(700))", [n]).unwrap();
                if n.is_multiple_of(10) {
                    fs::write(uploads.join(format!("{n}.txt")), format!("order {n}")).unwrap();
                }
                written.lock().unwrap().push((n, Timestamp::now()));
                n += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Application { stop, pause, ledger, thread: Some(thread) }
    }

    fn acknowledged(&self) -> Vec<(u32, Timestamp)> {
        self.ledger.lock().unwrap().clone()
    }

    fn await_more(&self, count: usize) {
        let before = self.acknowledged().len();
        wait_for("the application to write", || (self.acknowledged().len() >= before + count).then_some(()));
    }

    /// Stops, and answers the last number that was acknowledged.
    fn end(mut self) -> u32 {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
        self.acknowledged().last().unwrap().0
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The last order, after everything was found to be sound and without a hole.
fn last_order(root: &Path, site: &str) -> u32 {
    let database = Connection::open(database_path(root, site)).unwrap();
    let sound: String = database.query_row("pragma integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(sound, "ok");
    let (count, last): (u32, u32) = database
        .query_row("select count(*), coalesce(max(n), 0) from orders", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    assert_eq!(count, last, "an order is missing in the middle");
    last
}

fn assert_uploads(root: &Path, site: &str, last: u32) {
    for n in (10..=last).step_by(10) {
        let path = uploads_path(root, site).join(format!("{n}.txt"));
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("order {n}"), "{}", path.display());
    }
}

#[test]
fn the_agent_records_in_each_vault_how_far_the_other_has_come() {
    let world = World::new();
    let root = world.root();
    fs::create_dir_all(uploads_path(root, "south")).unwrap();
    fs::write(uploads_path(root, "south").join("one.txt"), "one").unwrap();
    let application = Application::start(root, "south");
    let _south = world.agent("south");
    let open = |name: &str| Vault::open(storage::open(&vault_url(root, name)).unwrap(), None, None).unwrap();
    for (vault, other) in [("near", "far"), ("far", "near")] {
        let witness = wait_for("a vault to bear witness of the other", || {
            let witness = open(vault).hold_against(other, &open(other)).unwrap();
            (witness.chains > 0 && witness.at.is_some()).then_some(witness)
        });
        assert_eq!(witness.by, other);
    }
    // And so a vault that shows an earlier state is found out.
    let copied = std::process::Command::new("cp").arg("-a").args([root.join("near"), root.join("yesterday")]).status();
    assert!(copied.unwrap().success());
    wait_for("the other vault to know of what came later", || {
        let yesterday = open("yesterday");
        yesterday.hold_against("far", &open("far")).unwrap();
        yesterday.points(None).unwrap().findings.iter().any(|finding| finding.code == "rolled-back").then_some(())
    });
    let _ = application.end();
}

#[test]
fn a_planned_change_of_the_writer_and_back_loses_nothing() {
    let world = World::new();
    let root = world.root();
    fs::create_dir_all(volumes(root, "south")).unwrap();
    let application = Application::start(root, "south");
    let (_south, _north) = (world.agent("south"), world.agent("north"));
    world.await_following("north", 1);
    application.await_more(100);
    let last = application.end();
    world.switch_over("south", "north", 1, 2);
    assert_eq!(last_order(root, "north"), last);
    assert_uploads(root, "north", last);
    // The former writer follows, over what it had.
    let application = Application::start(root, "north");
    application.await_more(50);
    world.await_durable("north", "near", Timestamp::now());
    world.await_durable("north", "far", Timestamp::now());
    world.await_following("south", 2);
    assert!(!database_path(root, "south").exists(), "a standby's database can be taken for a live one");
    let last = application.end();
    world.switch_over("north", "south", 2, 3);
    assert_eq!(last_order(root, "south"), last);
    assert_uploads(root, "south", last);
    let before: Vec<String> = world.written_by("south");
    assert!(before.iter().any(|key| key.starts_with("snap/south/orders/")), "{before:?}");
}

#[test]
fn a_writer_that_dies_costs_no_more_than_it_had_not_called_durable_and_comes_back_harmless() {
    let world = World::new();
    let root = world.root();
    fs::create_dir_all(volumes(root, "south")).unwrap();
    let (south, _north) = (world.agent("south"), world.agent("north"));
    // The service has never run yet.
    world.await_reports("south", "the lack of data to be told", |report| {
        report.problem.as_ref().is_some_and(|problem| problem.contains("nothing in the volume's place"))
    });
    let application = Application::start(root, "south");
    world.await_following("north", 1);
    application.await_more(50);
    world.await_durable("south", "far", Timestamp::now());
    application.await_more(50);
    south.kill();
    let promised = |dataset: &str| -> Timestamp {
        let report = world.report("south", dataset).unwrap();
        report.durable.values().map(|at| at.parse::<Timestamp>().unwrap()).max().unwrap()
    };
    let (orders, uploads) = (promised(ORDERS), promised(UPLOADS));
    let acknowledged = application.acknowledged();
    let durable = |at: Timestamp| acknowledged.iter().filter(|(_, acked)| *acked < at).count() as u32;
    world.claim(2, "north");
    world.publish(2, "north", false);
    world.await_writing("north", 2);
    let found = last_order(root, "north");
    assert!(found >= durable(orders), "{} orders were called durable, {found} are there", durable(orders));
    assert_uploads(root, "north", durable(uploads));

    // The dead writer's agent comes back while its application still writes.
    let before = world.written_by("south");
    let _south = world.agent("south");
    let generation = world.publish(2, "north", false);
    let keeps = |report: &AgentReport| {
        report.generation >= generation
            && report.beat >= 3
            && report.role == AgentRole::Idle
            && report
                .problem
                .as_ref()
                .is_some_and(|problem| problem.contains("writes of epoch 1 that may be in no vault"))
    };
    world.await_reports("south", "the old writer to keep what it has", keeps);
    // Nor when it is to be the writer again: what it holds is another history.
    world.claim(3, "south");
    let generation = world.publish(3, "south", true);
    world.await_reports("south", "the old writer to let go", |report| {
        report.generation >= generation && report.settled && report.beat >= 6
    });
    assert_eq!(world.written_by("south"), before, "it has written under its old epoch");
    world.publish(3, "north", false);
    world.await_writing("north", 3);
    drop(application);
    fs::rename(volumes(root, "south"), root.join("south").join("aside")).unwrap();
    world.await_following("south", 3);
    assert_eq!(world.written_by("south"), before);
}

#[test]
fn a_writers_agent_that_is_killed_goes_on_where_it_was() {
    let world = World::new();
    let root = world.root();
    fs::create_dir_all(volumes(root, "south")).unwrap();
    let application = Application::start(root, "south");
    let north = world.agent("north");
    let points = || {
        let keys = world.written_by("south").into_iter();
        keys.filter(|key| key.starts_with("snap/south/orders/")).count()
    };
    for round in 1..=3 {
        let south = world.agent("south");
        application.pause.store(false, Ordering::SeqCst);
        application.await_more(20);
        application.pause.store(true, Ordering::SeqCst);
        // All of it, so that no log that was not read to its end can have started again.
        for vault in VAULTS {
            world.await_durable("south", vault, Timestamp::now());
        }
        assert_eq!(points(), VAULTS.len(), "round {round}: it took another full snapshot");
        south.kill();
    }
    let _south = world.agent("south");
    world.await_following("north", 1);
    let last = application.end();
    world.switch_over("south", "north", 1, 2);
    assert_eq!(last_order(root, "north"), last);
    assert_uploads(root, "north", last);
    drop(north);
}

#[test]
fn a_standby_that_dies_while_it_is_promoted_goes_on_with_its_promotion() {
    let world = World::new();
    let root = world.root();
    fs::create_dir_all(volumes(root, "south")).unwrap();
    let application = Application::start(root, "south");
    let (south, north) = (world.agent("south"), world.agent("north"));
    world.await_following("north", 1);
    application.await_more(50);
    let durable = application.acknowledged().len() as u32;
    world.await_durable("south", "near", Timestamp::now());
    south.kill();
    north.kill();
    drop(application);
    world.claim(2, "north");
    world.publish(2, "north", false);
    for milliseconds in [5, 60, 120, 200] {
        let north = world.agent("north");
        std::thread::sleep(Duration::from_millis(milliseconds));
        north.kill();
    }
    let _north = world.agent("north");
    world.await_writing("north", 2);
    assert!(last_order(root, "north") >= durable);
}

#[test]
fn a_database_that_gets_a_log_while_it_is_protected_is_streamed_from_then_on() {
    let world = World::new();
    let root = world.root();
    fs::create_dir_all(volumes(root, "south")).unwrap();
    let database = Connection::open(database_path(root, "south")).unwrap();
    database.busy_timeout(Duration::from_secs(30)).unwrap();
    database.execute_batch("create table orders(n integer primary key, body blob)").unwrap();
    let data = domain(root, "south").data.remove(0);
    let orders = Orders::default();
    let seen = Mutex::new(DataStatus::default());
    let look = |what: &str, enough: &dyn Fn(&DataStatus) -> bool| {
        wait_for(what, || Some(seen.lock().unwrap().clone()).filter(enough))
    };
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| data.write(1, &orders, &|status| *seen.lock().unwrap() = status));
        let first = look("a point without a log", &|status| status.durable.len() == VAULTS.len());
        assert!(first.problem.unwrap().contains("is not in WAL mode"));
        let mode = |mode: &str| {
            let pragma = format!("pragma journal_mode={mode}");
            database.query_row(&pragma, [], |row| row.get::<_, String>(0)).is_ok_and(|found| found == mode)
        };
        // It is busy while a point is being copied.
        wait_for("the database to take a log", || mode("wal").then_some(()));
        database.execute("insert into orders values (1, 'x')", []).unwrap();
        let since = Timestamp::now();
        look("the log to be durable", &|status| {
            status.problem.is_none() && status.durable.values().filter(|at| **at >= since).count() == VAULTS.len()
        });
        orders.give(Order::Finish);
        writing.join().unwrap().unwrap();
    });
    assert!(world.written_by("south").iter().any(|key| key.starts_with("log/orders/")));
}

#[test]
fn a_vault_that_is_away_stops_neither_protection_nor_a_planned_change() {
    let world = World::new();
    let root = world.root();
    fs::create_dir_all(volumes(root, "south")).unwrap();
    let application = Application::start(root, "south");
    // Away from the beginning, the first in the plan.
    fs::rename(root.join("near"), root.join("near-away")).unwrap();
    let (_south, _north) = (world.agent("south"), world.agent("north"));
    world.await_durable("south", "far", Timestamp::now());
    world.await_reports("south", "the absent vault to be told", |report| {
        !report.durable.contains_key("near") && report.problem.as_ref().is_some_and(|problem| problem.contains("near"))
    });
    fs::rename(root.join("near-away"), root.join("near")).unwrap();
    world.await_durable("south", "near", Timestamp::now());
    world.await_following("north", 1);
    // Away again: only the other vault gets the rest, and the standby turns to it.
    fs::rename(root.join("near"), root.join("near-away")).unwrap();
    application.await_more(50);
    let last = application.end();
    world.switch_over("south", "north", 1, 2);
    assert_eq!(last_order(root, "north"), last);
    assert_uploads(root, "north", last);
}

#[test]
fn what_strays_into_the_place_of_a_standby_is_never_promoted_in_its_stead() {
    let world = World::new();
    let root = world.root();
    fs::create_dir_all(volumes(root, "south")).unwrap();
    let application = Application::start(root, "south");
    let _south = world.agent("south");
    let north = world.agent("north");
    world.await_following("north", 1);
    application.await_more(50);
    // Somebody's configuration management means well.
    fs::create_dir(uploads_path(root, "north")).unwrap();
    Connection::open(database_path(root, "north")).unwrap().execute_batch("create table stray(n)").unwrap();
    world.await_reports("north", "the stray to be told", |report| {
        report.problem.as_ref().is_some_and(|problem| problem.contains("where this standby's copy belongs"))
    });
    north.kill();
    let _north = world.agent("north");
    let last = application.end();
    world.switch_over("south", "north", 1, 2);
    assert_eq!(last_order(root, "north"), last);
    assert_uploads(root, "north", last);
}

#[test]
fn an_agent_without_a_memory_does_not_call_a_frozen_writer_finished() {
    let world = World::new();
    let root = world.root();
    fs::create_dir_all(volumes(root, "south")).unwrap();
    let application = Application::start(root, "south");
    let (south, _north) = (world.agent("south"), world.agent("north"));
    world.await_following("north", 1);
    south.kill();
    application.await_more(50);
    let last = application.end();
    fs::remove_dir_all(state_of(root, "south").directory().join(DOMAIN)).unwrap();
    world.claim(2, "north");
    let generation = world.publish(2, "south", true);
    let _south = world.agent("south");
    world.await_reports("south", "the lack of a memory to be told", |report| {
        assert_eq!(report.finished, None);
        report.generation >= generation
            && !report.settled
            && report.problem.as_ref().is_some_and(|problem| problem.contains("no word of having written it"))
    });
    // Given up: it writes again, and the next attempt brings everything over.
    world.publish(2, "south", false);
    world.await_writing("south", 2);
    world.await_following("north", 2);
    world.switch_over("south", "north", 2, 3);
    assert_eq!(last_order(root, "north"), last);
    assert_uploads(root, "north", last);
}
