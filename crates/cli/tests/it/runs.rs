//! Runs, through the binary: to the end, two at once, held, attested, approved, cancelled, interrupted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use lifeboat_core::run::RunState;

use crate::world::{Options, PORT, World, text, wait_until};

#[test]
fn a_dry_run_prints_the_runbook_and_changes_nothing() {
    let world = World::new(&Options::default());
    world.backup();
    let before = listing(&world);
    let printed = world.ok(&["failover", "pages", "--dry-run"]);
    for step in ["claim-epoch", "fence-north", "restore-docs", "promote-south", "COMMIT", "read-canary"] {
        assert!(printed.contains(step), "{step}: {printed}");
    }
    assert_eq!(listing(&world), before);
    assert_eq!(world.runs(), 0);
}

/// Every file of the world but the controller's own state, with its size.
fn listing(world: &World) -> String {
    let list = "find arbiter vault north south -type f -printf '%p %s\n' | sort";
    text(&Command::new("sh").args(["-c", list]).current_dir(&world.root).output().unwrap().stdout)
}

#[test]
fn a_failover_runs_to_its_end() {
    let mut world = World::new(&Options::default());
    world.backup();
    world.start_dns();
    let said = world.ends(0, &failover(&world, &[]));
    assert!(said.contains("promote-south: promoted"), "{said}");
    world.assert_recovered();
    let id = world.run().run;
    let shown = world.ok(&["run", "show", &id[..12]]);
    assert!(shown.contains("completed (past the commit point)"), "{shown}");
    assert!(world.ok(&["run", "list"]).contains(&id));
    let json = |words: &[&str]| serde_json::from_str::<serde_json::Value>(&world.ok(words)).unwrap();
    let listed = json(&["run", "list", "--json"]);
    assert_eq!((&listed[0]["run"], &listed[0]["state"]), (&id.as_str().into(), &"completed".into()));
    let shown = json(&["run", "show", &id, "--journal", "--json"]);
    assert_eq!(shown["run"]["steps"][0]["id"], "claim-epoch");
    assert_eq!(shown["journal"].as_array().unwrap().len() as u64, world.run().entries);
    let over = world.ends(1, &["run", "resume", &id]);
    assert!(over.contains("there is nothing to resume"), "{over}");
}

/// The words of a failover that asks nothing.
fn failover<'a>(world: &World, more: &[&'a str]) -> Vec<&'a str> {
    let key: &'static str = Box::leak(world.path("owner.key").into_boxed_str());
    [&["failover", "pages", "--yes", "--key", key], more].concat()
}

/// A failover that has begun and waits for the name server, in a process of its own.
fn waiting_failover(world: &World) -> Child {
    let child = world.command(&failover(world, &[])).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("the run asks the name server", || {
        world.runs() > 0 && world.run().step("send-traffic").is_some_and(|step| step.status == "running")
    });
    child
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn a_second_run_is_refused_and_names_the_first_and_an_interrupted_one_goes_on() {
    let mut world = World::new(&Options::default());
    world.backup();
    let mut first = waiting_failover(&world);
    let id = world.run().run;
    let said = world.ends(4, &failover(&world, &[]));
    assert!(said.contains(&format!("run {id} on `pages` has not ended (running)")), "{said}");
    let said = world.ends(4, &["run", "resume", &id]);
    assert!(said.contains(&format!("run {id} works on pages")), "{said}");
    assert_eq!(world.runs(), 1);

    signal(&first, "-INT");
    assert_eq!(first.wait().unwrap().code(), Some(130));
    assert_eq!(world.run().state, RunState::Paused);
    let said = world.ends(4, &["failback", "pages", "--yes"]);
    assert!(said.contains(&format!("run {id} on `pages` has not ended (paused)")), "{said}");
    world.start_dns();
    world.ends(0, &["run", "resume", &id]);
    world.assert_recovered();
}

#[test]
fn a_plan_that_changes_during_a_run_is_noted_and_not_followed() {
    let mut world = World::new(&Options::default());
    world.backup();
    let mut first = waiting_failover(&world);
    let changed = fs::read_to_string(world.plan()).unwrap().replace("ttl = \"1s\"", "ttl = \"7s\"");
    fs::write(world.plan(), changed).unwrap();
    let noted = || world.run().notes.iter().any(|(_, note)| note.contains("the plan has changed since this run began"));
    wait_until("the change is noted", noted);
    signal(&first, "-TERM");
    assert_eq!(first.wait().unwrap().code(), Some(130));

    world.start_dns();
    let said = world.ends(0, &["run", "resume", &world.run().run]);
    assert!(said.contains("warning: the plan has changed since this run began"), "{said}");
    assert_eq!(world.arbiter().traffic("pages.example.").unwrap().unwrap().ttl_seconds, 1);

    // A plan that has become wrong is told as such, and costs nothing.
    fs::write(world.plan(), "[plan]\nname = 3\n").unwrap();
    world.ends(2, &["run", "resume", &world.run().run]);
    assert_eq!(world.run().state, RunState::Completed);
}

#[test]
fn an_approval_counts_from_another_person_who_may_and_is_signed() {
    let mut world = World::new(&Options { approval: true, ..Options::default() });
    world.backup();
    world.start_dns();
    let said = world.ends(5, &failover(&world, &["--by", "anna"]));
    let id = world.run().run;
    assert!(said.contains(&format!("lifeboat run approve {id} --step approve")), "{said}");
    assert_eq!(world.run().state, RunState::WaitingApproval);
    world.ends(5, &["run", "show", &id]);
    // Still nobody's word: resuming changes nothing.
    world.ends(5, &["run", "resume", &id, "--key", &world.path("owner.key")]);

    let approve = |by: &str, key: &str| {
        let key = world.path(key);
        text(&world.lifeboat(&["run", "approve", &id, "--by", by, "--key", &key, "--yes"]).stderr)
    };
    assert!(approve("anna", "anna.key").contains("anna started the run and so cannot approve it"));
    assert!(approve("eve", "eve.key").contains("eve may not approve"));
    assert!(approve("ben", "eve.key").contains("is not ben's key"));
    assert!(approve("mallory", "eve.key").contains("the plan names no person mallory"));
    assert!(approve("ben", "nowhere.key").contains("there is no signing key"));
    assert!(!world.root.join("nowhere.key").exists(), "a key was made while one was looked for");
    world.ends(4, &["run", "approve", &id, "--by", "anna", "--key", &world.path("anna.key"), "--yes"]);
    world.ends(4, &["run", "skip", &id, "--reason", "in a hurry"]);
    assert_eq!(world.run().state, RunState::WaitingApproval);
    assert_eq!(world.arbiter().current_epoch("pages").unwrap(), None);

    let said = world.ends(2, &["run", "approve", &id, "--by", "ben", "--key", &world.path("ben.key")]);
    assert!(said.contains("Does ben approve this? There is no terminal to ask on"), "{said}");
    let said = world.ends(2, &["run", "cancel", &id, "--reason", "not today"]);
    assert!(said.contains("What it did is taken back. There is no terminal to ask on"), "{said}");
    assert_eq!(world.run().state, RunState::WaitingApproval);

    world.ok(&["run", "approve", &id[..16], "--by", "ben", "--key", &world.path("ben.key"), "--yes"]);
    let said = world.ends(2, &["run", "resume", &id]);
    assert!(said.contains("no key was given"), "{said}");
    world.ends(0, &["run", "resume", &id, "--key", &world.path("owner.key")]);
    world.assert_recovered();
}

#[test]
fn a_primary_that_cannot_be_reached_holds_the_run_until_somebody_attests() {
    let mut world = World::new(&Options::default());
    world.up();
    world.backup();
    world.cut_off("north", true);
    let said = world.ends(5, &failover(&world, &[]));
    let id = world.run().run;
    assert!(said.contains("fence-north: needs an attestation"), "{said}");
    assert!(said.contains("no process of `pages` runs there"), "{said}");
    assert!(said.contains(&format!("lifeboat run attest {id} --step fence-north")), "{said}");
    // It serves on, behind the cut line, and nobody else writes.
    assert_eq!(world.get("north", "/page").as_deref(), Some("the first page\n"));
    assert_eq!(world.arbiter().desired_writer("pages").unwrap().unwrap().primary, "north");
    world.ends(5, &["run", "resume", &id, "--key", &world.path("owner.key")]);
    let said = world.ends(4, &["run", "skip", &id, "--reason", "in a hurry"]);
    assert!(said.contains("must not be skipped"), "{said}");
    let attest = |key: &str, more: &[&str]| {
        let key = world.path(key);
        let words = [&["run", "attest", &id, "--by", "ben", "--key", &key, "--yes"], more].concat();
        world.lifeboat(&words)
    };
    assert_eq!(attest("anna.key", &[]).status.code(), Some(4));
    assert_eq!(attest("ben.key", &["--statement", "it will be fine"]).status.code(), Some(4));
    let said = world.ends(2, &["run", "attest", &id, "--by", "ben", "--key", &world.path("ben.key")]);
    assert!(said.contains("Have you seen this to be so, at the thing itself? There is no terminal"), "{said}");
    assert_eq!(world.run().state, RunState::Held);

    world.kill_north();
    assert_eq!(attest("ben.key", &[]).status.code(), Some(0));
    world.ends(0, &["run", "resume", &id, "--key", &world.path("owner.key")]);
    world.assert_recovered();
    let fence = world.run().step("fence-north").unwrap().clone();
    assert_eq!((fence.outcome.as_deref(), fence.facts["by"].as_str()), (Some("attested"), Some("ben")));
}

#[test]
fn a_primary_that_comes_back_into_reach_is_fenced_by_a_retry() {
    let mut world = World::new(&Options::default());
    world.up();
    world.backup();
    world.cut_off("north", true);
    world.ends(5, &failover(&world, &[]));
    let id = world.run().run;
    world.cut_off("north", false);
    world.ok(&["run", "retry", &id]);
    world.ends(0, &["run", "resume", &id, "--key", &world.path("owner.key")]);
    world.assert_recovered();
    assert_eq!(world.run().step("fence-north").unwrap().outcome.as_deref(), Some("proven"));
}

/// A run that is held before its commit point, at a restore onto a disk that takes nothing.
fn held_at_the_restore(world: &World) -> (String, ReadOnly) {
    fs::create_dir_all(world.root.join("south/volumes")).unwrap();
    let disk = ReadOnly::new(&world.root.join("south/volumes"));
    let said = world.ends(5, &failover(world, &[]));
    assert!(said.contains("restore-docs: needs a decision"), "{said}");
    (world.run().run, disk)
}

#[test]
fn a_cancelled_run_takes_back_what_it_did() {
    let mut world = World::new(&Options::default());
    world.up();
    world.backup();
    let (id, disk) = held_at_the_restore(&world);
    assert_eq!(world.get("north", "/page"), None, "the fence stopped it");
    let down = world.root.join("north/.lifeboat/down/pages");
    assert!(down.exists());
    world.ok(&["run", "cancel", &id, "--reason", "north is well", "--yes"]);
    let run = world.run();
    assert_eq!(run.state, RunState::Cancelled);
    assert!(run.why.unwrap().contains("cancelled by operator: north is well"));
    assert!(!down.exists(), "the fence still stands");
    let desired = world.arbiter().desired_writer("pages").unwrap().unwrap();
    assert_eq!((desired.primary.as_str(), desired.frozen, desired.epoch), ("north", false, 2));
    world.ends(1, &["run", "cancel", &id, "--reason", "again", "--yes"]);

    // What the fence killed comes up again when it is told to.
    world.ok(&["up", "pages", "--yes"]);
    assert_eq!(world.get("north", "/page").as_deref(), Some("the first page\n"));

    // The service is free for another run, which claims an epoch of its own.
    drop(disk);
    world.ends(0, &failover(&world, &[]));
    world.assert_recovered();
    assert_eq!(world.arbiter().current_epoch("pages").unwrap().unwrap().epoch, 3);
}

#[test]
fn what_cannot_be_taken_back_now_is_held_until_it_can() {
    let mut world = World::new(&Options::default());
    world.up();
    world.cut_off("north", true);
    world.ends(5, &failover(&world, &[]));
    let id = world.run().run;
    let said = world.ends(5, &["run", "cancel", &id, "--reason", "north may be well", "--yes"]);
    assert!(said.contains("fence-north: needs a decision") && said.contains("cannot be reached"), "{said}");
    world.cut_off("north", false);
    world.ok(&["run", "retry", &id]);
    let said = world.ends(1, &["run", "resume", &id]);
    assert!(said.contains("ended as cancelled"), "{said}");
    // Nothing had been fenced: it serves on.
    assert_eq!(world.get("north", "/page").as_deref(), Some("the first page\n"));
    assert_eq!(world.arbiter().desired_writer("pages").unwrap().unwrap().primary, "north");
}

#[test]
fn a_loss_beyond_the_objective_is_asked_about_before_anything_is_promoted() {
    let mut world = World::new(&Options { objective: "3s", ..Options::default() });
    world.backup();
    world.start_dns();
    wait_until("the recovery point is older than the objective", || status_rpo(&world) > 3.5);
    let said = world.ends(5, &failover(&world, &[]));
    assert!(said.contains("approve-loss: needs an approval: more than 3s of data would be lost"), "{said}");
    let id = world.run().run;
    assert!(!world.run().committed);
    world.ends(4, &["run", "approve", &id, "--by", "eve", "--key", &world.path("eve.key"), "--yes"]);
    world.ok(&["run", "approve", &id, "--by", "ben", "--key", &world.path("ben.key"), "--yes"]);
    let resumed = world.lifeboat(&["run", "resume", &id, "--key", &world.path("owner.key")]);
    assert_eq!(resumed.status.code(), Some(0), "{}", text(&resumed.stderr));
    world.assert_recovered();
}

fn status_rpo(world: &World) -> f64 {
    let output = world.lifeboat(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    status["services"][0]["rpo_now_seconds"].as_f64().unwrap()
}

#[test]
fn a_held_step_is_tried_again_when_somebody_says_so() {
    let mut world = World::new(&Options::default());
    world.backup();
    world.start_dns();
    let (id, disk) = held_at_the_restore(&world);
    // Without a word it stays held; with one, and nothing mended, it is held again.
    world.ends(5, &["run", "resume", &id, "--key", &world.path("owner.key")]);
    world.ok(&["run", "retry", &id]);
    world.ends(5, &["run", "resume", &id, "--key", &world.path("owner.key")]);
    drop(disk);
    world.ok(&["run", "retry", &id]);
    world.ends(0, &["run", "resume", &id, "--key", &world.path("owner.key")]);
    world.assert_recovered();
}

#[test]
fn a_step_that_somebody_did_by_hand_is_skipped_and_stays_an_exception() {
    let mut world = World::new(&Options::default());
    world.backup();
    world.start_dns();
    let broken = fs::read_to_string(world.plan()).unwrap().replace("/usr/bin/python3", "/usr/bin/no-such-program");
    fs::write(world.plan(), broken).unwrap();
    let said = world.ends(5, &failover(&world, &[]));
    assert!(said.contains("start-web: needs a decision"), "{said}");
    let id = world.run().run;
    assert!(world.run().committed);
    let address = world.addresses[1].clone();
    let docs = world.root.join("south/volumes/docs");
    let mut by_hand = serve_by_hand(&address, &docs);
    world.ok(&["run", "skip", &id, "--reason", "started by hand"]);
    world.ends(5, &["run", "resume", &id]);
    world.ok(&["run", "skip", &id, "--step", "await-web", "--reason", "seen in a browser"]);
    let said = world.lifeboat(&["run", "resume", &id]);
    by_hand.kill().unwrap();
    by_hand.wait().unwrap();
    assert_eq!(said.status.code(), Some(3), "{}", text(&said.stderr));
    assert_eq!(world.run().state, RunState::CompletedWithExceptions);
}

fn serve_by_hand(address: &str, docs: &Path) -> Child {
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-m", "http.server", &PORT.to_string(), "--bind", address, "--directory"]).arg(docs);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn past_the_commit_point_a_cancel_stops_and_takes_nothing_back() {
    let world = World::new(&Options::default());
    world.backup();
    let mut first = waiting_failover(&world);
    let id = world.run().run;
    // The process that works on the run takes the word up.
    let said = world.ok(&["run", "cancel", &id, "--reason", "by hand from here", "--yes"]);
    let is_left = said.contains("the process that works on run") && said.contains("ends it");
    assert!(is_left || said.contains("the process that worked on run") && said.contains("has ended it"), "{said}");
    assert_eq!(first.wait().unwrap().code(), Some(1));
    assert_eq!(world.run().state, RunState::Cancelled);
    assert_eq!(world.arbiter().desired_writer("pages").unwrap().unwrap().primary, "south");
}

#[test]
fn keys_vaults_and_arbiters_that_are_not_there_are_told_before_anything_is_done() {
    let world = World::new(&Options::default());
    world.backup();
    let before = listing(&world);
    let with = |key: &str| {
        let key = world.path(key);
        world.lifeboat(&["failover", "pages", "--yes", "--key", &key])
    };
    let said = world.ends(2, &["failover", "pages", "--yes"]);
    assert!(said.contains("no key was given"), "{said}");
    for verb in ["failover", "drill"] {
        let said = world.ends(2, &[verb, "pages", "--key", &world.path("owner.key")]);
        assert!(said.contains("steps now? There is no terminal to ask on"), "{said}");
    }
    let output = with("nowhere.key");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("nowhere.key"), "{}", text(&output.stderr));
    let output = with("stranger.key");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("nothing was begun"), "{}", text(&output.stderr));

    let (vault, away) = (world.root.join("vault"), world.root.join("vault.away"));
    fs::rename(&vault, &away).unwrap();
    let output = with("owner.key");
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("the vault `main`") && said.contains("nothing was begun"), "{said}");
    fs::rename(&away, &vault).unwrap();

    let (arbiter, away) = (world.root.join("arbiter"), world.root.join("arbiter.away"));
    fs::rename(&arbiter, &away).unwrap();
    let output = with("owner.key");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("the arbiter's storage"), "{}", text(&output.stderr));
    fs::rename(&away, &arbiter).unwrap();

    let read_only = ReadOnly::new(&arbiter);
    let output = with("owner.key");
    drop(read_only);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("nothing is decided without it") && said.contains("mounted read-only"), "{said}");
    assert_eq!(world.runs(), 0);
    assert_eq!(listing(&world), before);
}

#[test]
fn a_key_that_opens_the_vault_but_not_every_data_set_begins_nothing() {
    let notes = "[service.pages.component.web.dataset.notes]\nkind = \"persistent\"\nfiles = { path = \"notes\" }\n\
                 protect = [{ to = \"main\", every = \"1s\" }]\n";
    let world = World::new(&Options { drill_key: true, more: notes, ..Options::default() });
    fs::create_dir(world.root.join("north/volumes/notes")).unwrap();
    fs::write(world.root.join("north/volumes/notes/one"), "a note").unwrap();
    world.backup();
    let before = listing(&world);
    // It lies in the site for drills of `docs`, and reaches no further.
    let said = world.ends(1, &["failover", "pages", "--yes", "--key", &world.path("south/drill.key")]);
    assert!(said.contains("no key given here opens `notes` in the vault `main`"), "{said}");
    assert!(said.contains("nothing was begun") && !said.contains("`docs`"), "{said}");
    assert_eq!(world.runs(), 0);
    assert_eq!(listing(&world), before);
}

#[test]
fn a_held_run_waits_for_a_vault_and_an_arbiter_that_are_away() {
    let mut world = World::new(&Options { approval: true, ..Options::default() });
    world.backup();
    world.start_dns();
    world.ends(5, &failover(&world, &[]));
    let id = world.run().run;
    world.ok(&["run", "approve", &id, "--by", "ben", "--key", &world.path("ben.key"), "--yes"]);
    let key = world.path("owner.key");
    let resume = ["run", "resume", id.as_str(), "--key", key.as_str()];
    for (what, said) in [("vault", "nothing was begun"), ("arbiter", "the arbiter's storage")] {
        let (here, away) = (world.root.join(what), world.root.join("away"));
        fs::rename(&here, &away).unwrap();
        let error = world.ends(1, &resume);
        fs::rename(&away, &here).unwrap();
        assert!(error.contains(said), "{error}");
        assert_eq!(world.arbiter().current_epoch("pages").unwrap(), None, "it went on without its {what}");
    }
    world.ends(0, &resume);
    world.assert_recovered();
}

#[test]
fn a_run_that_misses_its_objective_ends_with_3() {
    let mut world = World::new(&Options::default());
    world.backup();
    world.start_dns();
    let since = (jiff::Timestamp::now() - jiff::SignedDuration::from_hours(3)).to_string();
    let output = world.lifeboat(&failover(&world, &["--disaster-at", &since]));
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    assert_eq!(world.run().state, RunState::Completed);
    assert!(text(&output.stdout).contains("objective 3600 s, proven 108"), "{}", text(&output.stdout));
    let found = text(&world.lifeboat(&["status"]).stdout);
    assert!(found.contains("RTO proven is 3 h 0 min, the objective was 1h"), "{found}");
}

/// A directory that is mounted read-only over itself.
struct ReadOnly(PathBuf);

impl ReadOnly {
    fn new(directory: &Path) -> ReadOnly {
        let mount = |words: &[&str]| {
            assert!(Command::new("mount").args(words).arg(directory).status().unwrap().success(), "{words:?}");
        };
        mount(&["--bind", directory.to_str().unwrap()]);
        mount(&["-o", "remount,ro,bind"]);
        ReadOnly(directory.to_owned())
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        assert!(Command::new("umount").arg(&self.0).status().unwrap().success());
    }
}
