//! The other ways through a run-book, through the binary: planned, home again, back in time, rehearsed, taken over elsewhere.

mod ladder;

use std::fs;
use std::process::Stdio;

use lifeboat_core::run::RunState;
use lifeboat_core::runbook::Purpose;
use serde_json::Value;

use crate::world::{Options, World, text, wait_until};

/// Waits until what is in the volume at a site is in the vault, too.
fn settled(world: &World, site: &str) {
    let since = jiff::Timestamp::now();
    wait_until("the vault has it", || {
        let report = world.arbiter().agent_report(site, "docs").unwrap();
        let durable = report.and_then(|report| report.durable.get("main")?.parse::<jiff::Timestamp>().ok());
        durable.is_some_and(|durable| durable > since)
    });
}

#[test]
fn a_planned_failover_and_the_way_home_lose_nothing() {
    let mut world = World::new(&Options::default());
    world.up();
    let key = world.path("owner.key");
    // Nobody waits for this to be in the vault: the freeze sees to it.
    fs::write(world.root.join("north/volumes/docs/late"), "written last\n").unwrap();
    world.ends(0, &["failover", "pages", "--planned", "--yes", "--key", &key]);
    world.assert_recovered();
    assert_eq!(world.get("south", "/late").as_deref(), Some("written last\n"));

    fs::write(world.root.join("south/volumes/docs/later"), "written away\n").unwrap();
    world.ends(0, &["failback", "pages", "--yes", "--key", &key]);
    assert_eq!(world.get("north", "/later").as_deref(), Some("written away\n"));
    assert_eq!(world.get("south", "/page"), None);
    let writer = world.arbiter().desired_writer("pages").unwrap().unwrap();
    assert_eq!((writer.primary.as_str(), writer.epoch, writer.frozen), ("north", 3, false));
    // What north held before is aside, not gone.
    assert!(
        world.volumes("north").iter().any(|name| name.starts_with("docs.aside-3-")),
        "{:?}",
        world.volumes("north")
    );
    let said = world.ends(2, &["failback", "pages", "--yes", "--key", &key]);
    assert!(said.contains("`pages` already runs at `north`"), "{said}");
}

#[test]
fn what_a_lost_instance_left_on_its_volumes_comes_along() {
    let mut world = World::new(&Options::default());
    world.up();
    settled(&world, "north");
    world.kill_north();
    // Written in the last moment: no vault has it.
    fs::write(world.root.join("north/volumes/docs/late"), "written last\n").unwrap();
    let key = world.path("owner.key");
    let words = ["failover", "pages", "--scenario", "instance-lost", "--to", "south", "--yes", "--key", &key];
    let said = world.ends(0, &words);
    assert!(said.contains("salvage-north: frozen"), "{said}");
    world.assert_recovered();
    assert_eq!(world.get("south", "/late").as_deref(), Some("written last\n"));
}

#[test]
fn what_lies_where_nobody_answers_is_not_waited_for() {
    let mut world = World::new(&Options::default());
    world.up();
    settled(&world, "north");
    world.kill_north();
    world.cut_off("north", true);
    let key = world.path("owner.key");
    world.ends(5, &["failover", "pages", "--scenario", "instance-lost", "--yes", "--key", &key]);
    let id = world.run().run;
    world.ok(&["run", "attest", &id, "--by", "ben", "--key", &world.path("ben.key"), "--yes"]);
    world.ends(0, &["run", "resume", &id, "--key", &key]);
    world.assert_recovered();
    assert_eq!(world.run().step("quiet-north").unwrap().outcome.as_deref(), Some("out-of-reach"));
    for id in ["keep-docs", "look-through-docs", "restart-north", "ensure-agent-north-to-salvage", "salvage-north"] {
        assert_eq!(world.run().step(id).unwrap().status, "not-taken", "{id}");
    }
}

#[test]
fn corrupted_data_is_taken_back_to_the_last_good_moment_where_it_is() {
    let mut world = World::new(&Options::default());
    world.up();
    let key = world.path("owner.key");
    settled(&world, "north");
    let good = jiff::Timestamp::now().to_string();
    // What began before that moment must have ended, or it could still read what comes after it.
    settled(&world, "north");
    fs::write(world.root.join("north/volumes/docs/page"), "nonsense\n").unwrap();
    settled(&world, "north");
    let corrupted = ["failover", "pages", "--scenario", "data-corrupted", "--yes", "--key", key.as_str()];
    let said = world.ends(2, &corrupted);
    assert!(said.contains("give --at TIME"), "{said}");
    world.ends(0, &[&corrupted[..], &["--at", &good]].concat());
    assert_eq!(world.get("north", "/page").as_deref(), Some("the first page\n"));
    let writer = world.arbiter().desired_writer("pages").unwrap().unwrap();
    assert_eq!((writer.primary.as_str(), writer.epoch), ("north", 2));
    assert!(
        world.volumes("north").iter().any(|name| name.starts_with("docs.aside-2-")),
        "{:?}",
        world.volumes("north")
    );
}

#[test]
fn corrupted_data_may_be_taken_back_at_another_site() {
    let mut world = World::new(&Options::default());
    world.up();
    let key = world.path("owner.key");
    settled(&world, "north");
    let good = jiff::Timestamp::now().to_string();
    // What began before that moment must have ended, or it could still read what comes after it.
    settled(&world, "north");
    fs::write(world.root.join("north/volumes/docs/page"), "nonsense\n").unwrap();
    settled(&world, "north");
    let scenario = ["failover", "pages", "--scenario", "data-corrupted", "--to", "south"];
    world.ends(0, &[&scenario[..], &["--at", &good, "--yes", "--key", &key]].concat());
    world.assert_recovered();
    // What was wrong is still there to be looked at.
    let wrong = fs::read_to_string(world.root.join("north/volumes/docs/page")).unwrap();
    assert_eq!(wrong, "nonsense\n");
}

#[test]
fn a_drill_proves_what_it_can_and_leaves_nothing() {
    let plan = "[drill.monthly]\nservice = \"pages\"\nscenario = \"site-lost\"\nevery = \"30d\"\n";
    let mut world = World::new(&Options { more: plan, ..Options::default() });
    world.up();
    let said = world.lifeboat(&["drill", "pages", "--yes", "--key", &world.path("owner.key")]);
    assert_eq!(said.status.code(), Some(0), "{}", text(&said.stderr));
    assert_eq!(world.run().state, RunState::Completed);
    assert_eq!(world.get("north", "/page").as_deref(), Some("the first page\n"));
    assert_eq!(world.arbiter().current_epoch("pages").unwrap().unwrap().epoch, 1);
    let status: Value = serde_json::from_slice(&world.lifeboat(&["status", "--json"]).stdout).unwrap();
    let service = &status["services"][0];
    assert_eq!(service["drills"][0]["is_overdue"], false, "{service:#}");
    assert_eq!(service["last_drill"]["run"], world.run().run);
}

#[test]
fn a_drill_that_is_due_is_started_where_its_key_lies() {
    let plan = "[drill.monthly]\nservice = \"pages\"\nscenario = \"site-lost\"\nevery = \"30d\"\n";
    let mut world = World::new(&Options { more: plan, drill_key: true, ..Options::default() });
    world.up();
    let runs = world.runs();
    // At the site that writes now there is neither the key nor the place for it; at the other one a controller is at work.
    let mut protect = world.command(&["protect", "--site", "south"]).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the drill to have been done", || {
        let status: Value = serde_json::from_slice(&world.lifeboat(&["status", "--json"]).stdout).unwrap();
        status["services"][0]["drills"][0]["is_overdue"] == false
    });
    let view = world.run();
    assert_eq!((view.state, view.runbook.purpose), (RunState::Completed, Purpose::Drill));
    assert_eq!(view.initiator, "the schedule of `monthly`");
    assert_eq!(world.runs(), runs + 1);
    assert_eq!(world.get("north", "/page").as_deref(), Some("the first page\n"));
    // Nothing of it is left, and protection goes on until it is told to stop.
    assert!(protect.try_wait().unwrap().is_none());
    rustix::process::kill_process(rustix::process::Pid::from_child(&protect), rustix::process::Signal::INT).unwrap();
    let ended = protect.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(0), "{}", text(&ended.stderr));
}

#[test]
fn another_machine_takes_a_held_run_over_with_its_mirrored_journal() {
    let mut world = World::new(&Options::default());
    world.up();
    let key = world.path("owner.key");
    // A host decides nothing, whoever asks it to, and leaves nothing in the way.
    let host = world.path("north/.lifeboat/host");
    let said = world.ends(4, &["failover", "pages", "--planned", "--yes", "--key", &key, "--state", &host]);
    assert!(said.contains("on the roster as host") && said.contains("takes a controller"), "{said}");
    // Leaves south's agent there, as it was started before anybody knew of a second controller.
    world.ends(0, &["failover", "pages", "--planned", "--yes", "--key", &key]);
    world.ends(0, &["failback", "pages", "--yes", "--key", &key]);
    world.cut_off("north", true);
    world.ends(5, &["failover", "pages", "--yes", "--key", &key]);
    let id = world.run().run;
    // The second controller is enrolled as one, and need not be a host.
    let state = world.path("second");
    let asked = world.ok(&["vault", "enroll", "--host", "second", "--role", "controller", "--state", &state, "--json"]);
    let asked: Value = serde_json::from_str(&asked).unwrap();
    let approve = ["vault", "enroll", "--approve", asked["fingerprint"].as_str().unwrap(), "--key", &key];
    let said = world.ends(2, &approve);
    assert!(said.contains("it asks to be controller, not host"), "{said}");
    world.ok(&[&approve[..], &["--role", "controller"]].concat());
    world.kill_north();
    let elsewhere = |words: &[&str]| world.lifeboat(&[words, &["--state", &state]].concat());
    let attested = elsewhere(&["run", "attest", &id[..16], "--by", "ben", "--key", &world.path("ben.key"), "--yes"]);
    assert_eq!(attested.status.code(), Some(0), "{}", text(&attested.stderr));
    let resumed = elsewhere(&["run", "resume", &id, "--key", &key]);
    assert_eq!(resumed.status.code(), Some(0), "{}", text(&resumed.stderr));
    world.assert_recovered();
    // The first machine learns it from the mirror.
    let said = world.ends(1, &["run", "resume", &id, "--key", &key]);
    assert!(said.contains("has ended as"), "{said}");
    assert_eq!(world.run().state, RunState::Completed);
}
