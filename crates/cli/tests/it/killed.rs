//! The controller killed with SIGKILL after each entry of its journal, and resumed: the end is that of a run that nobody
//! disturbed, and nothing was done twice.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use lifeboat_core::run::{Event, RunState};

use crate::world::{Options, World, text, wait_until};

/// All that can be seen of a failover afterwards.
#[derive(Debug, PartialEq)]
struct End {
    state: RunState,
    outcomes: BTreeMap<String, Option<String>>,
    epoch: u64,
    writer: (String, u64, bool),
    traffic: u64,
    volumes: Vec<String>,
    processes: usize,
    /// Of the logbook, all that were acknowledged.
    entries: usize,
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
        processes: processes(&world.addresses[1]),
        entries: (0..20).filter(|number| world.get("south", &format!("/entries/entry-{number}")).is_some()).count(),
    }
}

/// `docs.aside-1-20261121T162736.948057Z` without when.
fn without_time(name: &str) -> String {
    name.rsplit_once('-').map_or(name, |(kept, _)| kept).to_owned()
}

/// How many processes serve at an address.
fn processes(address: &str) -> usize {
    let found = Command::new("pgrep").args(["--full", "--list-full", "http.server|logbook serve"]).output().unwrap();
    // To `pgrep` it would be a pattern, and 127.64.1.2 is found in 127.64.112.1 then.
    let at = |word: &str| word.split(':').next() == Some(address);
    text(&found.stdout).lines().filter(|line| line.split(' ').any(at)).count()
}

/// One failover, and what there must be before it.
struct Way<'a> {
    template: &'a World,
    words: &'a [&'a str],
    /// The service is brought up first.
    up: bool,
}

impl Way<'_> {
    fn world(&self) -> World {
        let mut world = self.template.copy();
        match self.up {
            true => world.up(),
            false => world.start_dns(),
        }
        world
    }
}

/// A failover that is killed as soon as its journal has `entries`, and then resumed.
fn kill_and_resume(way: &Way<'_>, entries: u64) -> End {
    let world = way.world();
    let key = world.path("owner.key");
    let before = world.journal().names().unwrap().len();
    let mut child = world
        .command(&[way.words, &["--yes", "--key", &key]].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let journal = world.journal();
    let written = || match &journal.names().unwrap()[..] {
        [newest, others @ ..] if others.len() == before => journal.read(newest).unwrap().head.seq,
        _ => 0,
    };
    wait_until("the journal grows", || written() >= entries);
    child.kill().unwrap();
    child.wait().unwrap();
    let run = world.run();
    let resumed = world.lifeboat(&["run", "resume", &run.run, "--key", &key]);
    let code = resumed.status.code();
    match run.state {
        RunState::Completed | RunState::CompletedWithExceptions => {
            assert_eq!(code, Some(1), "killed after its end, there is nothing to resume");
        }
        _ => assert!(matches!(code, Some(0 | 3)), "killed at entry {entries}: {}", text(&resumed.stderr)),
    }
    let recorded = journal.read(&run.run).unwrap();
    for step in &run.runbook.steps {
        let ended = |event: &Event| matches!(event, Event::Done { step: id, .. } if *id == step.id);
        let times = recorded.entries.iter().filter(|entry| ended(&entry.event)).count();
        assert!(times <= 1, "{} was done {times} times when killed at entry {entries}", step.id);
    }
    end(&world)
}

/// Kills a failover after each of the entries that `choose` picks from an undisturbed one.
fn kill_after_entries(way: &Way<'_>, look: impl Fn(&End), choose: impl Fn(&Event) -> bool) {
    let whole = way.world();
    let ended = whole.lifeboat(&[way.words, &["--yes", "--key", &whole.path("owner.key")]].concat());
    assert!(matches!(ended.status.code(), Some(0 | 3)), "{}", text(&ended.stderr));
    let expected = end(&whole);
    look(&expected);
    let entries = whole.journal().read(&whole.run().run).unwrap().entries;
    let chosen: Vec<u64> = entries.iter().filter(|entry| choose(&entry.event)).map(|entry| entry.seq).collect();
    assert!(chosen.len() > 12, "{chosen:?}");
    drop(whole);

    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(at) = chosen.get(next.fetch_add(1, Ordering::SeqCst)) {
                    assert_eq!(kill_and_resume(way, *at), expected, "killed at entry {at}");
                }
            });
        }
    });
}

#[test]
fn killed_after_every_entry_and_resumed_a_restore_ends_as_undisturbed() {
    let template = World::new(&Options::default());
    template.backup();
    let stale = template.root.join("south/volumes/docs");
    std::fs::create_dir_all(&stale).unwrap();
    std::fs::write(stale.join("page"), "an old page\n").unwrap();
    let look = |expected: &End| {
        assert_eq!((expected.state, expected.processes), (RunState::Completed, 1), "{expected:?}");
        assert_eq!(expected.volumes, ["docs", "docs.aside-1"]);
    };
    kill_after_entries(&Way { template: &template, words: &["failover", "pages"], up: false }, look, |_| true);
}

#[test]
fn killed_after_every_entry_and_resumed_a_promotion_ends_as_undisturbed() {
    let mut template = World::new(&Options { warm: true, ..Options::default() });
    template.up();
    for number in 0..20 {
        template.post("north", "/entries", &format!("entry-{number}"), &format!("the text of entry {number}"));
    }
    template.ok(&["canary", "pages", "--once"]);
    let since = jiff::Timestamp::now();
    for dataset in ["entries", "docs"] {
        wait_until("the standby has all of it", || {
            let report = template.arbiter().agent_report("south", dataset).unwrap();
            let applied = report.and_then(|report| report.applied?.parse::<jiff::Timestamp>().ok());
            applied.is_some_and(|applied| applied > since)
        });
    }
    template.power_off();
    let look = |expected: &End| {
        assert_eq!(expected.state, RunState::CompletedWithExceptions, "there is no standby left: {expected:?}");
        assert_eq!((expected.processes, expected.entries), (1, 20), "{expected:?}");
        assert_eq!(expected.outcomes["inspect-standby"].as_deref(), Some("usable"));
    };
    kill_after_entries(&Way { template: &template, words: &["failover", "pages"], up: false }, look, |_| true);
}

#[test]
fn killed_in_every_step_and_resumed_a_planned_failover_ends_as_undisturbed() {
    let template = World::new(&Options::default());
    let look = |expected: &End| {
        assert_eq!((expected.state, expected.processes, expected.epoch), (RunState::Completed, 1, 2), "{expected:?}");
    };
    let way = Way { template: &template, words: &["failover", "pages", "--planned"], up: true };
    kill_after_entries(&way, look, |event| matches!(event, Event::Intent { .. }));
}
