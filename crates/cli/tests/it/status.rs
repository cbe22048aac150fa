//! `status`: what it knows, what it calls unknown, and what it finds standing against a service.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::world::{Options, World, text, wait_until};

/// The one service's status, and the exit code.
fn status(world: &World) -> (Value, i32) {
    let output = world.lifeboat(&["status", "--json"]);
    let parsed: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
    (parsed["services"][0].clone(), output.status.code().unwrap())
}

fn codes(status: &Value) -> Vec<&str> {
    status["findings"].as_array().unwrap().iter().map(|finding| finding["code"].as_str().unwrap()).collect()
}

fn fresh_canary(world: &World, number: u64) {
    let record = lifeboat_engine::arbitrate::CanaryRecord {
        service: "pages".into(),
        number,
        value: format!("lifeboat-canary-{number}-1"),
        at: jiff::Timestamp::now().to_string(),
    };
    world.arbiter().record_canary(&record).unwrap();
}

#[test]
fn before_anything_runs_nothing_is_known_and_nothing_is_called_good() {
    let world = World::new(&Options::default());
    let (status, code) = status(&world);
    assert_eq!(code, 3);
    assert_eq!(codes(&status), ["writer-unknown", "rpo-unknown"], "{status:#}");
    assert_eq!(status["rpo_now_seconds"], Value::Null);
    let said = text(&world.lifeboat(&["status"]).stdout);
    for line in [
        "writes     nobody yet",
        "RPO now    unknown",
        "last drill none: RPO and RTO are unproven",
        "lifeboat up pages",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert!(!said.contains("nothing stands against it"));
    let said = world.ends(2, &["status", "shop"]);
    assert!(said.contains("the plan has no service `shop`"), "{said}");
}

#[test]
fn a_protected_service_has_nothing_against_it_until_its_host_falls_silent() {
    let mut world = World::new(&Options { objective: "10s", ..Options::default() });
    world.up();
    fresh_canary(&world, 2);
    // Who looks at a vault for the first time cannot know that it is fresh, and is told so.
    let stranger = world.lifeboat(&["status", "--json", "--state", &world.path("elsewhere")]);
    let stranger: Value = serde_json::from_slice(&stranger.stdout).unwrap();
    assert_eq!(codes(&stranger["services"][0]), ["vault-doubtful"]);
    wait_until("nothing stands against it", || status(&world).1 == 0);
    let (first, _) = status(&world);
    assert_eq!(codes(&first), Vec::<&str>::new(), "{first:#}");
    assert_eq!(first["writer"]["site"], "north");
    assert_eq!(first["writer"]["epoch"], 1);
    assert_eq!(first["traffic"]["sites"][0], "north");
    let rpo = first["rpo_now_seconds"].as_f64().unwrap();
    assert!((0.0..10.0).contains(&rpo), "{rpo}");
    assert_eq!(first["hosts"][0]["duty"], "writer");
    assert!(text(&world.lifeboat(&["status"]).stdout).contains("nothing stands against it"));

    world.kill_north();
    wait_until("its silence and its age are found", || {
        let (status, code) = status(&world);
        let codes = codes(&status);
        code == 3 && codes.contains(&"agent-silent") && codes.contains(&"rpo-missed")
    });
}

#[test]
fn a_vault_that_is_away_makes_the_answer_unknown_and_not_old() {
    let mut world = World::new(&Options::default());
    world.up();
    // Whom to believe is learnt from the vault while it is there.
    status(&world);
    fs::rename(world.root.join("vault"), world.root.join("vault.away")).unwrap();
    let (status, code) = status(&world);
    assert_eq!(code, 3);
    assert_eq!(status["rpo_now_seconds"], Value::Null);
    let finding = &status["findings"][0];
    assert_eq!(finding["code"], "rpo-unknown", "{status:#}");
    assert!(finding["text"].as_str().unwrap().contains("the vault `main` at"), "{finding}");
}

#[test]
fn drills_are_due_until_one_succeeds_and_runs_stay_open_until_they_end() {
    let plan = "[drill.monthly]\nservice = \"pages\"\nscenario = \"site-lost\"\nevery = \"30d\"\n";
    let mut world = World::new(&Options { more: plan, ..Options::default() });
    world.up();
    fresh_canary(&world, 2);
    let (before, _) = status(&world);
    assert_eq!(codes(&before), ["drill-overdue"], "{before:#}");
    assert_eq!(before["findings"][0]["next"], "lifeboat drill pages --scenario site-lost");

    world.cut_off("north", true);
    let now = jiff::Timestamp::now().to_string();
    world.ends(5, &["failover", "pages", "--yes", "--key", &world.path("owner.key"), "--disaster-at", &now]);
    let id = world.run().run;
    let (held, _) = status(&world);
    assert!(codes(&held).contains(&"run-open"), "{held:#}");
    let open = &held["open_runs"][0];
    assert_eq!(
        (open["run"].as_str().unwrap(), &open["state"], &open["at_work"]),
        (id.as_str(), &"held".into(), &false.into())
    );
    assert_eq!(open["waiting_for"][0][0], "fence-north");
    assert!(open["next"].as_str().unwrap().contains(&format!("lifeboat run attest {id} --step fence-north")));
    assert_eq!(held["writer"]["claimed"]["epoch"], 2, "{held:#}");

    world.cut_off("north", false);
    world.ok(&["run", "retry", &id]);
    world.ends(0, &["run", "resume", &id, "--key", &world.path("owner.key")]);
    let (after, _) = status(&world);
    assert_eq!(
        (&after["writer"]["site"], &after["open_runs"]),
        (&"south".into(), &Value::Array(Vec::new())),
        "{after:#}"
    );
    let proof = &after["last_run"];
    assert_eq!((proof["run"].as_str().unwrap(), proof["is_of_this_plan"].as_bool()), (id.as_str(), Some(true)));
    assert!(proof["rto"]["proven_seconds"].as_f64().unwrap() > 0.0, "{proof}");
    // Another machine's status knows it from the mirror.
    let elsewhere = world.path("elsewhere");
    let seen = world.lifeboat(&["status", "--json", "--state", &elsewhere]);
    let seen: Value = serde_json::from_slice(&seen.stdout).unwrap();
    assert_eq!(seen["services"][0]["last_run"]["run"], proof["run"]);
}

#[test]
fn a_writer_that_was_given_up_and_lives_on_is_shown() {
    let mut world = World::new(&Options::default());
    world.up();
    world.cut_off("north", true);
    let key = world.path("owner.key");
    world.ends(5, &["failover", "pages", "--yes", "--key", &key]);
    let id = world.run().run;
    // Somebody signs what is not so: north serves on, and its host sees that it is the writer no more.
    world.ok(&["run", "attest", &id, "--by", "ben", "--key", &world.path("ben.key"), "--yes"]);
    world.ends(0, &["run", "resume", &id, "--key", &key]);
    wait_until("north's host says what it holds", || {
        let (status, _) = status(&world);
        let texts = status["findings"].as_array().unwrap().iter().map(|finding| finding["text"].as_str().unwrap());
        texts.into_iter().any(|text| text.contains("`docs` at north: the volume holds writes of epoch 1"))
    });
    // The way home sets that aside, after a fence of its own.
    world.cut_off("north", false);
    world.ends(0, &["failback", "pages", "--yes", "--key", &key]);
    assert!(world.volumes("north").iter().any(|name| name.starts_with("docs.aside-3-")));
}

#[test]
fn watch_looks_again_every_second_and_ends_when_told() {
    let world = World::new(&Options::default());
    let mut child = world.command(&["status", "--watch", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut at = || {
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        line["at"].as_str().unwrap().to_owned()
    };
    assert!(at() < at(), "it looked once only");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn copies_are_shown_with_what_they_lack() {
    let world = World::new(&Options::default());
    world.backup();
    let copy = world.path("copy");
    let make = ["vault", "copy", "--to", &copy, "--from"];
    let vault = {
        let (status, _) = status(&world);
        status["datasets"][0]["vaults"][0]["vault"].as_str().unwrap().to_owned()
    };
    let make = [&make[..], &[vault.as_str()]].concat();
    world.ok(&make);
    let shown = |world: &World| status(world).0["datasets"][0]["vaults"][0]["copies"][0].clone();
    let first = shown(&world);
    assert_eq!((&first["complete"], &first["points_lacking"]), (&true.into(), &0.into()), "{first:#}");
    assert!(first["age_seconds"].as_f64().unwrap() < 60.0);
    world.backup();
    assert_eq!(shown(&world)["points_lacking"], 1);
    let said = text(&world.lifeboat(&["status"]).stdout);
    assert!(said.contains(&format!("in {copy}: ")) && said.contains("old, lacks 1 newer point"), "{said}");
    // One that was not finished is a finding.
    fs::write(world.root.join("north/volumes/docs/large"), crate::machine::noise(1, 1 << 20)).unwrap();
    world.backup();
    let slowly = [&make[..], &["--rate", "1kB"]].concat();
    let mut child = world.command(&slowly).stdout(Stdio::null()).spawn().unwrap();
    wait_until("the copy is begun", || shown(&world)["complete"] == false);
    child.kill().unwrap();
    child.wait().unwrap();
    let (status, code) = status(&world);
    assert!(code == 3 && codes(&status).contains(&"copy-incomplete"), "{status:#}");
}
