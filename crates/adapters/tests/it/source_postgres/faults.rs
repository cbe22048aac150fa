//! A client that keeps a ledger of what was acknowledged, while server, stream and vault fail by turns; and then the disaster.
//!
//! What must hold: whatever was acknowledged up to the moment that the stream declares durable is in the restored cluster, and of what was
//! acknowledged nothing is missing before something that is there.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_core::plan::CommitMode;
use lifeboat_core::runbook::Target;
use lifeboat_engine::port::{Cancel, LogStream};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::Bench;
use super::standbys::promote;
use super::streams::durable;
use crate::pg_cluster::Cluster;
use crate::vault_world::wait_for;

/// Which numbers were acknowledged, and when at the latest that was.
type Ledger = Arc<Mutex<Vec<(u64, Timestamp)>>>;

struct Client {
    ended: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
    ledger: Ledger,
}

impl Client {
    fn start(cluster: &Cluster) -> Client {
        let (ended, ledger) = (Arc::new(AtomicBool::new(false)), Ledger::default());
        let mut command = cluster.client("psql");
        command.args(["-XAtq", "-v", "ON_ERROR_STOP=1"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let (until, into) = (ended.clone(), ledger.clone());
        let thread = std::thread::spawn(move || {
            let mut number = 0;
            while !until.load(Ordering::SeqCst) {
                let mut session = command.spawn().unwrap();
                write_on(&mut session, &mut number, &until, &into);
                let _ = session.kill();
                let _ = session.wait();
            }
        });
        Client { ended, thread: Some(thread), ledger }
    }

    fn end(&mut self) -> Vec<(u64, Timestamp)> {
        self.ended.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        self.ledger.lock().unwrap().clone()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
    }
}

/// One transaction after the other, until the session breaks.
fn write_on(session: &mut Child, number: &mut u64, until: &AtomicBool, ledger: &Ledger) {
    let mut to = session.stdin.take().unwrap();
    let mut from = BufReader::new(session.stdout.take().unwrap());
    while !until.load(Ordering::SeqCst) {
        *number += 1;
        let mut line = String::new();
        let asked = writeln!(to, "insert into t values ({number}) returning n;").and_then(|()| to.flush());
        if asked.is_err() || from.read_line(&mut line).is_err() || line.trim() != number.to_string() {
            return;
        }
        ledger.lock().unwrap().push((*number, Timestamp::now()));
    }
}

/// What came back holds everything that was promised, and no hole; answers what it holds.
fn holds_what_was_promised(seed: u64, copy: &Cluster, ledger: &[(u64, Timestamp)], declared: Timestamp) -> Vec<u64> {
    let present: Vec<u64> =
        copy.psql("select n from t order by n").lines().map(|number| number.parse().unwrap()).collect();
    let promised = ledger.iter().filter(|(_, at)| *at <= declared);
    let lost: Vec<&(u64, Timestamp)> = promised.filter(|(number, _)| present.binary_search(number).is_err()).collect();
    assert!(lost.is_empty(), "seed {seed}: {declared} was declared, lost: {lost:?}");
    let last = present.last().copied().unwrap_or(0);
    let holes: Vec<u64> = ledger.iter().map(|(number, _)| *number).filter(|number| *number <= last).collect();
    let holes: Vec<&u64> = holes.iter().filter(|number| present.binary_search(number).is_err()).collect();
    assert!(holes.is_empty(), "seed {seed}: {holes:?} were acknowledged before {last}");
    present
}

/// Where commits wait for the vault, all that was acknowledged was promised.
fn days(seed: u64, commits_wait: bool) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut bench = Bench::new();
    bench.table();
    let begin = |bench: &Bench| match commits_wait {
        true => bench.synchronous(CommitMode::SyncRequired, &[], 1),
        false => bench.stream(),
    };
    let mut stream: Option<Box<dyn LogStream>> = Some(begin(&bench));
    if commits_wait {
        wait_for("commits wait", || stream.as_deref()?.status().commits.filter(|commits| commits.wait));
    }
    durable(&bench, stream.as_deref().unwrap());
    let mut client = Client::start(&bench.cluster);
    let mut standby = bench.follow();
    for _ in 0..6 {
        std::thread::sleep(Duration::from_millis(random.random_range(50..400)));
        match random.random_range(0..5) {
            0 => {
                bench.cluster.kill();
                std::thread::sleep(Duration::from_millis(random.random_range(0..200)));
                bench.cluster.start();
            }
            1 => {
                bench.vault.storage.set_gone(true);
                std::thread::sleep(Duration::from_millis(random.random_range(50..600)));
                bench.vault.storage.repair();
            }
            2 => {
                drop(stream.take());
                std::thread::sleep(Duration::from_millis(random.random_range(0..200)));
                stream = Some(begin(&bench));
            }
            3 => {
                bench.vault.storage.crash_after(random.random_range(0..6), random.random_range(0..2) == 0);
                std::thread::sleep(Duration::from_millis(random.random_range(50..300)));
                bench.vault.storage.repair();
            }
            _ => drop(bench.cluster.psql("select pg_switch_wal(); checkpoint")),
        }
        // What it cannot reach it says; whether it goes on is seen at the end.
        match random.random_range(0..3) {
            0 => drop(standby.apply(&Cancel::default())),
            1 => {
                drop(standby);
                standby = bench.follow();
            }
            _ => {}
        }
    }
    // So that there is something to hold the stream to; then everything ends at once.
    durable(&bench, stream.as_deref().unwrap());
    std::thread::sleep(Duration::from_millis(random.random_range(0..300)));
    let durable_to = stream.as_deref().unwrap().status().vaults["main"].durable_to.unwrap();
    let declared = if commits_wait { Timestamp::MAX } else { durable_to };
    bench.vault.storage.set_gone(true);
    bench.cluster.kill();
    let ledger = client.end();
    drop(stream);
    bench.vault.storage.repair();

    let to = bench.place_for("restored");
    let restored = bench.restore(Target::Newest, &to);
    let copy = Cluster::adopted(&to);
    assert!(restored.as_of >= durable_to, "{durable_to} was declared, {restored:?}");
    let present = holds_what_was_promised(seed, &copy, &ledger, declared);
    let promoted = promote(&mut *standby);
    let is_declared = promoted.applied_to.is_some_and(|to| to >= durable_to);
    assert!(is_declared, "seed {seed}: {durable_to} was declared, {promoted:?}");
    drop(standby);
    let standby = Cluster::adopted(&bench.place_for("standby"));
    if commits_wait {
        // A standby that took over lets nobody commit without the vault either.
        assert!(standby.psql("select current_setting('synchronous_standby_names')").contains("lifeboat_"));
    }
    assert_eq!(holds_what_was_promised(seed, &standby, &ledger, declared), present, "seed {seed}");
    assert!(ledger.len() > 20, "the client has done nothing");
}

#[test]
fn what_was_declared_durable_is_there_after_days_of_trouble() {
    (1..=3).for_each(|seed| days(seed, false));
}

#[test]
fn where_commits_wait_whatever_was_acknowledged_is_there_after_days_of_trouble() {
    (11..=13).for_each(|seed| days(seed, true));
}
