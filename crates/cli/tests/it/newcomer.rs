//! What goes wrong on somebody's first evening: the wrong order, the wrong time, a second agent, nothing enrolled yet.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::machine::await_that;
use crate::with_plan::planned;
use crate::world::{Options, World, text, wait_until};

/// A process with what it says on stderr, ended with the test.
struct Saying {
    child: Child,
    lines: Receiver<String>,
    heard: String,
}

impl Saying {
    fn begin(mut command: Command) -> Saying {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (send, lines) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Saying { child, lines, heard: String::new() }
    }

    fn until(&mut self, part: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.heard.contains(part) {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            self.heard += &line.unwrap_or_else(|_| panic!("`{part}` was not said, but:\n{}", self.heard));
            self.heard += "\n";
        }
    }
}

impl Drop for Saying {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_agent_that_began_too_early_goes_on_once_its_host_is_enrolled() {
    let machine = planned();
    let state = machine.at("late-state");
    let mut agent = Saying::begin(machine.command(&["protect", "--site", "home", "--state", &state]));
    agent.until("is not on the roster of this vault");
    assert!(agent.heard.contains(&format!("this host's state is {state}")), "{}", agent.heard);
    let asked = machine.line(&format!("--json vault enroll --host late --state {state}")).ends(0).json();
    let fingerprint = asked["fingerprint"].as_str().unwrap();
    machine.line(&format!("vault enroll --key owner.key --approve {fingerprint}")).ends(0);
    await_that("the agent's first recovery point", || {
        let points = machine.line("--json points").json();
        points.as_array().unwrap().iter().any(|point| point["host"] == "late" && point["dataset"] == "documents")
    });
}

#[test]
fn a_second_agent_at_a_site_is_refused_whatever_its_state() {
    let machine = planned();
    let mut first = Saying::begin(machine.command(&["protect", "--site", "home"]));
    first.until("protecting 1 service at home");
    let second = machine.line(&format!("protect --site home --state {}", machine.at("other-state")));
    let said = second.screen();
    assert!(said.contains("error: another `lifeboat protect` works at home") && said.ends_with("exit 4"), "{said}");
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    let mut third = Saying::begin(machine.command(&["protect", "--site", "home"]));
    third.until("protecting 1 service at home");
}

#[test]
fn a_moment_that_cannot_be_meant_is_refused_before_anything_is_done() {
    let mut world = World::new(&Options::default());
    world.backup();
    world.up();
    let (runs, page) = (world.runs(), world.get("north", world.page()));
    let key = world.path("owner.key");
    let refused = |more: &[&str]| {
        let words = [&["failover", "pages", "--yes", "--key", &key], more].concat();
        world.ends(2, &words)
    };
    let early = ["--scenario", "data-corrupted", "--at", "2001-01-01T00:00:00Z"];
    let said = refused(&early);
    assert!(
        said.contains("no recovery point of `docs` is as old as 2001-01-01T00:00:00Z; nothing was begun"),
        "{said}"
    );
    assert!(said.contains("the oldest is of 20") && said.contains("lifeboat points docs"), "{said}");
    let said = refused(&["--scenario", "data-corrupted", "--at", "2099-01-01T00:00:00Z"]);
    assert!(said.contains("--at 2099-01-01T00:00:00Z is in the future: here it is 20"), "{said}");
    let said = refused(&["--disaster-at", "2099-01-01T00:00:00Z"]);
    assert!(said.contains("--disaster-at 2099-01-01T00:00:00Z is in the future"), "{said}");
    assert_eq!(world.runs(), runs, "no run was begun");
    assert_eq!(world.get("north", world.page()), page, "the service runs on");
    world.power_off();
}

#[test]
fn what_was_before_a_failover_can_still_be_restored_after_it() {
    let mut world = World::new(&Options::default());
    world.backup();
    world.up();
    let before = jiff::Timestamp::now().to_string();
    let key = world.path("owner.key");
    world.ok(&["failover", "pages", "--planned", "--yes", "--key", &key]);
    // By the end of a run's id, and by all that is unique of it.
    let run = world.run().run;
    let unique = run.split_at(run.len() - 2).0;
    let report = world.path("report.html");
    world.ok(&["evidence", unique, "-o", &report]);
    assert!(fs::read_to_string(&report).unwrap().contains(&run));
    let said = world.ends(2, &["evidence", "nonsense"]);
    assert!(said.contains("there is no run nonsense"), "{said}");
    let said = world.lifeboat(&["run", "resume", unique]);
    assert!(text(&said.stderr).contains("has ended as completed"), "{}", text(&said.stderr));

    fs::write(world.root.join("south/volumes/docs/page"), "a later page\n").unwrap();
    let host = world.path("south/.lifeboat/host");
    let said = world.ends(4, &["backup", "docs", "--state", &host]);
    assert!(said.contains("`docs` is written at south now, not at north"), "{said}");
    world.ok(&["backup", "docs", "--site", "south", "--state", &host]);
    let to = world.path("then");
    world.ok(&["restore", "docs", "--key", &key, "--to", &to, "--at", &before]);
    assert_eq!(fs::read_to_string(format!("{to}/page")).unwrap(), "the first page\n");
    world.power_off();
}

#[test]
fn what_is_brought_up_for_the_first_time_is_named_as_the_writer_only_when_that_is_confirmed() {
    let mut world = World::new(&Options::default());
    let shown = |world: &World| {
        let said = world.lifeboat(&["up", "pages", "--dry-run", "--json"]);
        let mut runbook: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
        runbook.as_object_mut().unwrap().retain(|name, _| name != "compiled_at");
        runbook
    };
    let first = shown(&world);
    world.ends(2, &["up", "pages"]);
    assert_eq!(world.arbiter().desired_writer("pages").unwrap(), None);
    assert_eq!(world.arbiter().current_epoch("pages").unwrap(), None);
    world.backup();
    world.up();
    assert_eq!(world.arbiter().desired_writer("pages").unwrap().map(|writer| writer.epoch), Some(1));
    // What was shown is what was run.
    assert_eq!(first, shown(&world));
    world.power_off();
}

#[test]
fn a_name_server_that_is_away_is_named_and_not_taken_for_the_service() {
    let mut world = World::new(&Options::default());
    world.backup();
    let mut up = Saying::begin(world.command(&["up", "pages", "--yes"]));
    let server = format!("the name server {}", world.addresses[2]);
    up.until(&server);
    world.start_dns();
    wait_until("the service is up", || up.child.try_wait().unwrap().is_some());
    world.power_off();
}

#[test]
fn an_owner_that_is_not_the_vaults_is_refused_and_the_plan_is_named() {
    let world = World::new(&Options::default());
    let plan = fs::read_to_string(world.plan()).unwrap();
    let placed: Vec<String> = plan
        .lines()
        .map(|line| if line.starts_with("owner = ") { "owner = \"…\"".to_owned() } else { line.to_owned() })
        .collect();
    fs::write(world.plan(), placed.join("\n")).unwrap();
    let said = world.ends(4, &["status", "--state", &world.path("new-state")]);
    assert!(said.contains("this is another vault") && said.contains("write its owner under [key]"), "{said}");
    assert!(!said.contains("vault init"), "{said}");
    let checked = world.lifeboat(&["check"]);
    assert!((text(&checked.stdout) + &text(&checked.stderr)).contains("P0413"));
}

#[test]
fn a_log_that_goes_to_a_file_has_no_colours() {
    let mut world = World::new(&Options::default());
    fs::rename(world.path("arbiter"), world.path("away")).unwrap();
    let mut command = world.command(&["dns", "--zone-state", &world.path("zone")]);
    command.env_remove("NO_COLOR");
    let mut dns = Saying::begin(command);
    dns.until("WARN");
    assert!(!dns.heard.contains('\u{1b}'), "{:?}", dns.heard);
    world.power_off();
}

#[test]
fn a_service_that_a_run_froze_is_not_brought_up_beside_it() {
    let mut world = World::new(&Options::default());
    world.backup();
    world.up();
    world.arbiter().publish_writer("pages", 2, "north", true).unwrap();
    let said = world.ends(4, &["up", "pages", "--yes"]);
    assert!(said.contains("`pages` is frozen at north") && said.contains("run cancel"), "{said}");
    world.arbiter().publish_writer("pages", 2, "north", false).unwrap();
    world.power_off();
}
