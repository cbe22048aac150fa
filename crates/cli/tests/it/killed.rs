//! The controller killed with SIGKILL after each entry of its journal, and resumed: the end is that of a run that nobody
//! disturbed, and nothing was done twice.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use lifeboat_core::run::{Event, RunState};

use crate::world::{Options, PORT, World, text, wait_until};

/// All that can be seen of a failover afterwards.
#[derive(Debug, PartialEq)]
struct End {
    state: RunState,
    outcomes: BTreeMap<String, Option<String>>,
    epoch: u64,
    writer: (String, u64, bool),
    traffic: u64,
    volumes: Vec<String>,
    processes: u32,
}

fn end(world: &World) -> End {
    world.assert_recovered();
    let (run, arbiter) = (world.run(), world.arbiter());
    let writer = arbiter.desired_writer("pages").unwrap().unwrap();
    End {
        state: run.state,
        outcomes: run.steps.iter().map(|step| (step.id.clone(), step.outcome.clone())).collect(),
        epoch: arbiter.current_epoch("pages").unwrap().unwrap().epoch,
        writer: (writer.primary, writer.generation, writer.frozen),
        traffic: arbiter.traffic("pages.example.").unwrap().unwrap().generation,
        volumes: world.volumes("south").iter().map(|name| without_time(name)).collect(),
        processes: processes(&format!("http.server {PORT} --bind {}", world.addresses[1])),
    }
}

/// `docs.aside-1-20261121T162736.948057Z` without when.
fn without_time(name: &str) -> String {
    name.rsplit_once('-').map_or(name, |(kept, _)| kept).to_owned()
}

fn processes(pattern: &str) -> u32 {
    let counted = Command::new("pgrep").args(["--full", "--count", pattern]).output().unwrap();
    text(&counted.stdout).trim().parse().unwrap()
}

/// A failover that is killed as soon as its journal has `entries`, and then resumed.
fn kill_and_resume(template: &World, entries: u64) -> End {
    let mut world = template.copy();
    world.start_dns();
    let key = world.path("owner.key");
    let mut child = world
        .command(&["failover", "pages", "--yes", "--key", &key])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let journal = world.journal();
    let written = || match journal.names().unwrap().first() {
        Some(run) => journal.read(run).unwrap().head.seq,
        None => 0,
    };
    wait_until("the journal grows", || written() >= entries);
    child.kill().unwrap();
    child.wait().unwrap();
    let run = world.run();
    let resumed = world.lifeboat(&["run", "resume", &run.run, "--key", &key]);
    let code = resumed.status.code();
    if run.state == RunState::Completed {
        assert_eq!(code, Some(1), "killed after its end, there is nothing to resume");
    } else {
        assert_eq!(code, Some(0), "killed at entry {entries}: {}", text(&resumed.stderr));
    }
    let recorded = journal.read(&run.run).unwrap();
    for step in &run.runbook.steps {
        let ended = |event: &Event| matches!(event, Event::Done { step: id, .. } if *id == step.id);
        let times = recorded.entries.iter().filter(|entry| ended(&entry.event)).count();
        assert!(times <= 1, "{} was done {times} times when killed at entry {entries}", step.id);
    }
    end(&world)
}

#[test]
fn killed_after_every_entry_and_resumed_a_failover_ends_as_undisturbed() {
    let template = World::new(&Options::default());
    template.backup();
    let stale = template.root.join("south/volumes/docs");
    std::fs::create_dir_all(&stale).unwrap();
    std::fs::write(stale.join("page"), "an old page\n").unwrap();

    let mut whole = template.copy();
    whole.start_dns();
    whole.ok(&["failover", "pages", "--yes", "--key", &whole.path("owner.key")]);
    let expected = end(&whole);
    assert_eq!((expected.volumes.len(), expected.processes), (2, 1), "{expected:?}");
    let entries = whole.run().entries;
    assert!(entries > 25, "{entries}");
    drop(whole);

    let next = AtomicU64::new(1);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::SeqCst);
                    if at > entries {
                        return;
                    }
                    assert_eq!(kill_and_resume(&template, at), expected, "killed at entry {at}");
                }
            });
        }
    });
}
