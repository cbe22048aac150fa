//! The local site's fence: every way in which something might survive it.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use lifeboat_adapters::site::{LocalSite, LocalSiteConfig};
use lifeboat_core::plan::Value;
use lifeboat_engine::port::{InstanceState, Site, SiteVerb};
use rustix::process::Signal;

use crate::site_conformance::{context, files, instance, is_alive, path, pid_in, request, sleeper_in};
use crate::site_local::{Outsider, World, kill, kill_and_see, proven, unproven};

/// What a service may do to slip away: each writes the number of the process that slips into `$NOTE`.
const FUGITIVES: [(&str, &str); 7] = [
    ("a child", "sleep 1000 & echo $! > $NOTE; wait"),
    ("a daemon in a session of its own", "(setsid sh -c 'echo $$ > $NOTE; exec sleep 1000' &) ; exec sleep 1000"),
    (
        "a daemon of a parent that has ended",
        "setsid sh -c '(sh -c \"echo \\$\\$ > $NOTE; exec sleep 1000\" &)' & wait; exit 0",
    ),
    ("one that ignores SIGTERM", "trap '' TERM HUP INT; echo $$ > $NOTE; while :; do sleep 1; done"),
    ("one that is stopped", "sh -c 'trap \"\" HUP; echo $$ > $NOTE; kill -STOP $$; sleep 1000' & wait"),
    ("one that shed its environment", "(env -i sh -c \"echo \\$\\$ > $NOTE; exec sleep 1000\" &) ; exec sleep 1000"),
    (
        "one that shed its environment and its session",
        "(env -i setsid sh -c \"echo \\$\\$ > $NOTE; exec sleep 1000\" &) ; exec sleep 1000",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn nothing_escapes_the_fence() {
    for (what, script) in FUGITIVES {
        let world = World::new();
        let (uploads, _) = world.uploads().await;
        let note = world.note("pid");
        let mut app = instance(script);
        app.env.insert("NOTE".into(), Value::Text(note.to_str().unwrap().into()));
        world.start(&app).await;
        let fugitive = pid_in(&note);
        assert!(is_alive(fugitive), "{what}");
        proven(world.site.fence(&request(std::slice::from_ref(&app), &[uploads]), &context(2, "fence")).await);
        assert!(!is_alive(fugitive), "{what} survived");
        assert_eq!(world.site.observe(&app).await.unwrap(), InstanceState::Stopped);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_escapes_when_the_supervisor_was_killed_before() {
    // Without its parent, one that shed all its marks cannot be told from a stranger; the others can.
    for (what, script) in &FUGITIVES[..6] {
        let world = World::new();
        let note = world.note("pid");
        let mut app = instance(script);
        app.env.insert("NOTE".into(), Value::Text(note.to_str().unwrap().into()));
        world.start(&app).await;
        let fugitive = pid_in(&note);
        kill_and_see(world.supervisor());
        assert!(is_alive(fugitive), "{what} does not depend on the supervisor");
        assert_eq!(world.site.observe(&app).await.unwrap(), InstanceState::Running, "{what}");
        proven(world.site.fence(&request(std::slice::from_ref(&app), &[]), &context(2, "fence")).await);
        assert!(!is_alive(fugitive), "{what} survived");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_supervisor_is_replaced_and_finds_what_runs() {
    let world = World::new();
    let app = instance("exec sleep 1000");
    let pid = world.start(&app).await;
    let first = world.supervisor();
    kill_and_see(first);
    let again = world.site.start(&app, &context(1, "start")).await.unwrap();
    assert_eq!(again["pid"], pid);
    assert_eq!(again["already_running"], true);
    assert_ne!(world.supervisor(), first);
    world.site.stop(&app, &context(1, "stop")).await.unwrap();
    assert!(!is_alive(pid));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_supervisor_does_not_stop_a_fence() {
    let world = World::new();
    let app = instance("exec sleep 1000");
    let pid = world.start(&app).await;
    let supervisor = world.supervisor();
    kill(supervisor, Signal::STOP);
    proven(world.site.fence(&request(std::slice::from_ref(&app), &[]), &context(2, "fence")).await);
    assert!(!is_alive(pid));
    kill(supervisor, Signal::CONT);
    assert!(world.site.start(&app, &context(2, "start")).await.is_err(), "the marker holds for the woken one too");
}

/// Where the test below runs once more, as the controller that it kills.
const CONTROLLED: &str = "LIFEBOAT_TEST_CONTROLLED_ROOT";

async fn control(root: &Path) {
    let supervisor = [env!("CARGO_BIN_EXE_supervise"), "--root", root.to_str().unwrap()].map(str::to_owned).to_vec();
    let site = LocalSite::new(LocalSiteConfig::new("a", root, "127.0.0.1", supervisor)).unwrap();
    let started = site.start(&instance("exec sleep 1000"), &context(1, "start")).await.unwrap();
    fs::write(root.join("started"), started["pid"].to_string()).unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_controller_leaves_everything_to_the_next() {
    if let Some(root) = std::env::var_os(CONTROLLED) {
        return control(Path::new(&root)).await;
    }
    let world = World::new();
    let controller = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "site_fence::a_killed_controller_leaves_everything_to_the_next"])
        .env(CONTROLLED, world.root())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut controller = Outsider(controller);
    let pid = pid_in(&world.root().join("started"));
    controller.0.kill().unwrap();
    controller.0.wait().unwrap();

    let app = instance("exec sleep 1000");
    assert_eq!(world.site.observe(&app).await.unwrap(), InstanceState::Running);
    let again = world.site.start(&app, &context(1, "start")).await.unwrap();
    assert_eq!(again["pid"], pid, "the next controller finds it");
    proven(world.site.fence(&request(&[app], &[]), &context(2, "fence")).await);
    assert!(!is_alive(pid));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outsiders_handle_is_named() {
    let world = World::new();
    let (uploads, place) = world.uploads().await;
    let held = place.join("held");
    fs::write(&held, "x").unwrap();
    let reader = Command::new("sleep").arg("1000").stdin(fs::File::open(&held).unwrap()).spawn().unwrap();
    let mut outsider = Outsider(reader);
    let pid = outsider.0.id();
    let fenced = world.impatient().fence(&request(&[], std::slice::from_ref(&uploads)), &context(2, "fence")).await;
    let (statement, why) = unproven(fenced);
    let what = format!("process {pid} (sleep) holds `{}` open", held.display());
    assert_eq!(why, format!("site `a` is not quiet: {what}"));
    assert_eq!(
        statement,
        format!(
            "I have seen at site `a` itself that nothing can write in `shop` there any more, although this was found: {what}"
        )
    );
    assert!(is_alive(pid as i32), "a stranger is not killed");
    assert!(world.site.start(&instance("true"), &context(2, "s")).await.is_err(), "unproven still blocks starts");
    outsider.0.kill().unwrap();
    outsider.0.wait().unwrap();

    // One that only stands in the directory counts, too.
    let standing = Outsider(Command::new("sleep").arg("1000").current_dir(&place).spawn().unwrap());
    let fenced = world.impatient().fence(&request(&[], std::slice::from_ref(&uploads)), &context(2, "fence")).await;
    assert!(unproven(fenced).1.contains(&format!("process {}", standing.0.id())));
    drop(standing);
    proven(world.site.fence(&request(&[], &[uploads]), &context(2, "fence")).await);
}

/// Ways to write into the volume `$VOLUME` by a bind mount that only the process itself sees. Each says when it is there.
const GHOSTS: [(&str, &str); 4] = [
    ("a file", "mount --bind $VOLUME $X; exec 3>>$X/entries; echo $$ > $NOTE; exec sleep 1000"),
    ("a directory", "mount --bind $VOLUME $X; cd $X; echo $$ > $NOTE; exec sleep 1000"),
    ("a mount, and nothing open", "mount --bind $VOLUME $X; echo $$ > $NOTE; exec sleep 1000"),
    (
        "a file of a mount that is gone",
        "mount --bind $VOLUME $X; exec 3>>$X/entries; umount -l $X; echo $$ > $NOTE; exec sleep 1000",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_knows_the_volume_by_another_name_is_named() {
    for (what, script) in GHOSTS {
        let world = World::new();
        let (uploads, place) = world.uploads().await;
        fs::write(place.join("entries"), "x").unwrap();
        let (elsewhere, note) = (world.note("elsewhere"), world.note("pid"));
        fs::create_dir(&elsewhere).unwrap();
        let ghost = Command::new("unshare")
            .args(["--mount", "sh", "-ec", script])
            .envs([("VOLUME", &place), ("X", &elsewhere), ("NOTE", &note)])
            .spawn()
            .unwrap();
        let ghost = Outsider(ghost);
        let pid = pid_in(&note);
        let fenced = world.impatient().fence(&request(&[], std::slice::from_ref(&uploads)), &context(2, "fence")).await;
        let (_, why) = unproven(fenced);
        assert!(why.contains(&format!("process {pid} (")), "{what}: {why}");
        drop(ghost);
        proven(world.site.fence(&request(&[], &[uploads]), &context(2, "fence")).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_the_machines_mounts_is_no_writer() {
    let world = World::new();
    let (uploads, _) = world.uploads().await;
    let note = world.note("pid");
    let script = "echo $$ > $NOTE; exec sleep 1000";
    let sandboxed = Command::new("unshare").args(["--mount", "sh", "-ec", script]).env("NOTE", &note).spawn().unwrap();
    let _sandboxed = Outsider(sandboxed);
    pid_in(&note);
    proven(world.site.fence(&request(&[], &[uploads]), &context(2, "fence")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_supervisor_elsewhere_started_is_out_of_sight() {
    let mut world = World::new();
    let namespaced = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"].map(str::to_owned);
    world.config.supervisor_command.splice(0..0, namespaced);
    world.site = LocalSite::new(world.config.clone()).unwrap();
    let app = instance("exec sleep 1000");
    world.start(&app).await;
    let (_, why) = unproven(world.impatient().fence(&request(&[app], &[]), &context(2, "fence")).await);
    assert!(why.contains("the site's supervisor ran in process namespace pid:["), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_not_moved_from_under_its_writer() {
    let mut world = World::new();
    let (uploads, place) = world.uploads().await;
    let entries = place.join("entries");
    fs::write(&entries, "x").unwrap();
    let holding = format!("exec 3>>{}; echo $$ > $NOTE; exec sleep 1000", entries.display());
    world.config.agent_command =
        Some(vec!["sh".into(), "-c".into(), holding.replace("$NOTE", world.note("agent").to_str().unwrap())]);
    world.site = LocalSite::new(world.config.clone()).unwrap();
    world.site.perform(&SiteVerb::EnsureAgent, &context(1, "agent")).await.unwrap();
    sleeper_in(&world.note("agent"));
    let app = instance(&holding.replace("$NOTE", world.note("app").to_str().unwrap()));
    world.start(&app).await;
    let pid = sleeper_in(&world.note("app"));

    let aside = SiteVerb::SetAside(uploads);
    let error = world.site.perform(&aside, &context(2, "aside")).await.unwrap_err();
    assert!(error.may_pass);
    assert_eq!(
        error.message,
        format!(
            "data set `uploads` at site `a` is in use and is not moved from under its user: process {pid} (sleep) holds `{}` open; stop that first",
            entries.display()
        )
    );
    assert!(entries.exists());
    world.site.stop(&app, &context(2, "stop")).await.unwrap();
    assert!(path(&world.site, aside, &context(2, "aside")).await.is_some(), "the site's own agent is no obstacle");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_since_an_earlier_epoch_is_not_taken_for_started() {
    let world = World::new();
    let app = instance("exec sleep 1000");
    let before = world.start(&app).await;
    let started = world.site.start(&app, &context(3, "start")).await.unwrap();
    assert_eq!(started["already_running"], false);
    assert_eq!(started["stopped_of_epoch"], 1);
    assert!(!is_alive(before));
    let now = started["pid"].as_i64().unwrap() as i32;
    assert!(is_alive(now));
    let again = world.site.start(&app, &context(3, "again")).await.unwrap();
    assert_eq!((again["pid"].as_i64().unwrap() as i32, &again["already_running"]), (now, &true.into()));
    world.site.start(&app, &context(2, "late")).await.unwrap_err();
    assert!(is_alive(now), "who comes late stops nothing");

    let note = world.note("deaf");
    let mut deaf = instance(&format!("trap '' TERM; echo $$ > {}; while :; do sleep 0.1; done", note.display()));
    deaf.component = "deaf".into();
    deaf.stop_within = "300ms".parse().unwrap();
    world.site.start(&deaf, &context(3, "start")).await.unwrap();
    let pid = pid_in(&note);
    let error = world.site.start(&deaf, &context(4, "start")).await.unwrap_err();
    assert!(error.may_pass && is_alive(pid), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strangers_listener_is_named() {
    let world = World::new();
    for address in ["127.0.0.1:0", "0.0.0.0:0"] {
        let listener = TcpListener::bind(address).unwrap();
        let mut app = instance("true");
        app.address = Some("127.0.0.1".into());
        app.port = Some(listener.local_addr().unwrap().port());
        let fenced = world.impatient().fence(&request(std::slice::from_ref(&app), &[]), &context(2, "fence")).await;
        let (_, why) = unproven(fenced);
        let what = format!("listens at {}", listener.local_addr().unwrap());
        assert!(why.contains(&what) && why.contains(&std::process::id().to_string()), "{why}");
        drop(listener);
        proven(world.site.fence(&request(&[app], &[]), &context(2, "fence")).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable_but_running_is_never_fenced() {
    let world = World::new();
    let app = instance("exec sleep 1000");
    let pid = world.start(&app).await;
    let marker = LocalSite::unreachable_marker(world.root()).unwrap();
    fs::write(&marker, "").unwrap();
    let (statement, why) =
        unproven(world.site.fence(&request(std::slice::from_ref(&app), &[]), &context(2, "fence")).await);
    insta::assert_snapshot!(why, @"site `a` cannot be reached");
    insta::assert_snapshot!(statement, @"I have seen at site `a` itself that no process of `shop` runs there, that nothing writes to its volumes, and that it will not start again by itself");
    assert!(matches!(world.site.observe(&app).await.unwrap(), InstanceState::Unknown(_)));
    let verbs = [
        SiteVerb::EnsureAgent,
        SiteVerb::Run(vec!["true".into()]),
        SiteVerb::LocateVolume(files("uploads")),
        SiteVerb::PlaceVolume(files("uploads")),
        SiteVerb::WhatIsLeft("d".into()),
    ];
    for verb in verbs {
        let error = world.site.perform(&verb, &context(2, "k")).await.unwrap_err();
        assert!(error.may_pass && error.message == "site `a` cannot be reached", "{verb:?}: {error}");
    }
    assert!(world.site.stop(&app, &context(2, "k")).await.is_err());
    assert!(world.site.lift_fence("shop", &context(2, "k")).await.is_err());
    assert!(is_alive(pid), "nothing was done to it");
    assert!(!world.root().join(".lifeboat/down/shop").exists());
    fs::remove_file(marker).unwrap();
    proven(world.site.fence(&request(&[app], &[]), &context(2, "fence")).await);
    assert!(!is_alive(pid));
}
