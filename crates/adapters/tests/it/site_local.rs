//! The local site: conformance, epochs, isolation, and the loss of all of it.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use lifeboat_adapters::site::local::kill_site;
use lifeboat_adapters::site::{LocalSite, LocalSiteConfig};
use lifeboat_core::plan::{Secret, Source, Value};
use lifeboat_core::runbook::{InstanceSpec, VolumeSpec};
use lifeboat_engine::port::{Fenced, PortError, Site, SiteAnswer, SiteVerb, VolumeState};
use rustix::process::{Pid, Signal, kill_process};

use crate::site_conformance::{
    await_sleep, conforms, context, eventually, files, instance, is_alive, path, pid_in, request, volume, within,
};

/// A site in a directory of its own, killed when the test is over.
pub(crate) struct World {
    directory: tempfile::TempDir,
    pub(crate) config: LocalSiteConfig,
    pub(crate) site: LocalSite,
}

impl World {
    pub(crate) fn new() -> World {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("site");
        let supervisor =
            [env!("CARGO_BIN_EXE_supervise"), "--root", root.to_str().unwrap()].map(str::to_owned).to_vec();
        let mut config = LocalSiteConfig::new("a", root, "127.0.0.1", supervisor);
        config.agent_command = Some(vec!["sleep".into(), "1000".into()]);
        config.fence_within = Duration::from_secs(60);
        World { site: LocalSite::new(config.clone()).unwrap(), directory, config }
    }

    /// The same site for a fence that is going to fail: it need not try for long.
    pub(crate) fn impatient(&self) -> LocalSite {
        LocalSite::new(LocalSiteConfig { fence_within: Duration::from_secs(2), ..self.config.clone() }).unwrap()
    }

    pub(crate) fn root(&self) -> &Path {
        &self.config.root
    }

    /// A place outside the site, for words between its processes and the test.
    pub(crate) fn note(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The volume's directory, made.
    pub(crate) async fn uploads(&self) -> (VolumeSpec, PathBuf) {
        let spec = files("uploads");
        let place = path(&self.site, SiteVerb::PlaceVolume(spec.clone()), &context(1, "place")).await.unwrap();
        fs::create_dir_all(&place).unwrap();
        (spec, place)
    }

    pub(crate) async fn start(&self, app: &InstanceSpec) -> i32 {
        self.site.start(app, &context(1, "start")).await.unwrap()["pid"].as_i64().unwrap() as i32
    }

    pub(crate) fn supervisor(&self) -> i32 {
        let marks = |pid: &i32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let root = self.root().to_str().unwrap().as_bytes();
            String::from_utf8_lossy(&environment).contains("LIFEBOAT_INSTANCE=supervisor")
                && arguments.windows(root.len()).any(|part| part == root)
        };
        all_processes().into_iter().find(marks).expect("no supervisor")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.root().join(".lifeboat/unreachable"));
        let _ = kill_site(self.root(), true);
    }
}

/// A process outside every site, killed when the test is over.
pub(crate) struct Outsider(pub(crate) Child);

impl Drop for Outsider {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn all_processes() -> Vec<i32> {
    fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

pub(crate) fn kill(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

pub(crate) fn kill_and_see(pid: i32) {
    kill(pid, Signal::KILL);
    eventually("the killed process to be gone", || (!is_alive(pid)).then_some(()));
}

pub(crate) fn proven(fenced: Result<Fenced, PortError>) -> String {
    match fenced.unwrap() {
        Fenced::Proven { proof, .. } => proof,
        Fenced::Unproven { why, .. } => panic!("unproven: {why}"),
    }
}

pub(crate) fn unproven(fenced: Result<Fenced, PortError>) -> (String, String) {
    match fenced.unwrap() {
        Fenced::Unproven { statement, why } => (statement, why),
        Fenced::Proven { proof, .. } => panic!("proven: {proof}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_local_site_conforms() {
    let world = World::new();
    conforms(&world.site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destroyed_site_is_fenced_by_looking_at_the_machine() {
    let world = World::new();
    let (uploads, _) = world.uploads().await;
    let app = instance("exec sleep 1000");
    let pid = world.start(&app).await;
    fs::remove_dir_all(world.root()).unwrap();
    assert!(is_alive(pid));
    let asked = request(std::slice::from_ref(&app), std::slice::from_ref(&uploads));
    proven(world.site.fence(&asked, &context(2, "fence")).await);
    assert!(!is_alive(pid));
    let located = world.site.perform(&SiteVerb::LocateVolume(uploads), &context(2, "l")).await.unwrap();
    assert_eq!(located, SiteAnswer::Volume(VolumeState::Absent));
    assert!(world.site.start(&app, &context(2, "s")).await.is_err(), "the marker was made anew");
    world.site.lift_fence("shop", &context(2, "l")).await.unwrap();
    world.start_again(&app).await;
}

impl World {
    async fn start_again(&self, app: &InstanceSpec) -> i32 {
        self.site.start(app, &context(3, "start-again")).await.unwrap()["pid"].as_i64().unwrap() as i32
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_is_killed_whole_with_its_volumes() {
    let world = World::new();
    let (_, place) = world.uploads().await;
    let pid = world.start(&instance("setsid sleep 1000 & wait")).await;
    world.site.perform(&SiteVerb::EnsureAgent, &context(1, "agent")).await.unwrap();
    let supervisor = world.supervisor();
    let destroyed = kill_site(world.root(), true).unwrap();
    assert!(destroyed.volumes && destroyed.processes.len() >= 4, "{destroyed:?}");
    assert!(!place.exists() && !is_alive(pid) && !is_alive(supervisor));
    let again = kill_site(world.root(), true).unwrap();
    assert!(again.processes.is_empty() && !again.volumes);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_service_at_the_site_lives_on() {
    let world = World::new();
    let (uploads, place) = world.uploads().await;
    let mut blog = instance("exec sleep 1000");
    blog.service = "blog".into();
    let blog_pid = world.start(&blog).await;
    let shop_pid = world.start(&instance("exec sleep 1000")).await;
    world.site.perform(&SiteVerb::EnsureAgent, &context(1, "agent")).await.unwrap();
    proven(world.site.fence(&request(&[], std::slice::from_ref(&uploads)), &context(2, "fence")).await);
    assert!(is_alive(blog_pid) && !is_alive(shop_pid));

    // An agent that holds the volume goes as well, and may come again at the fenced site.
    kill_site(world.root(), false).unwrap();
    let mut config = world.config.clone();
    let script = format!("exec sleep 1000 < {}/held", place.display());
    fs::write(place.join("held"), "").unwrap();
    config.agent_command = Some(vec!["sh".into(), "-c".into(), script]);
    let site = LocalSite::new(config).unwrap();
    let agent = async || match site.perform(&SiteVerb::EnsureAgent, &context(2, "agent")).await.unwrap() {
        SiteAnswer::Done(facts) => facts["pid"].as_i64().unwrap() as i32,
        other => panic!("{other:?}"),
    };
    let first = agent().await;
    eventually("the agent to hold the volume", || {
        fs::read_link(format!("/proc/{first}/fd/0")).ok().filter(|path| path.ends_with("held"))
    });
    match site.fence(&request(&[], &[uploads]), &context(2, "fence")).await.unwrap() {
        Fenced::Proven { facts, .. } => assert!(facts["killed"].to_string().contains(&first.to_string())),
        Fenced::Unproven { why, .. } => panic!("{why}"),
    }
    let second = agent().await;
    assert!(is_alive(second) && second != first);
}

#[tokio::test(flavor = "multi_thread")]
async fn older_epochs_are_refused() {
    let world = World::new();
    let app = instance("exec sleep 1000");
    proven(world.site.fence(&request(&[], &[]), &context(5, "fence")).await);
    // A fence under an older epoch does not make the newer one's weaker.
    proven(world.site.fence(&request(&[], &[]), &context(4, "fence")).await);
    let error = world.site.lift_fence("shop", &context(4, "lift")).await.unwrap_err();
    insta::assert_snapshot!(error.message, @"the fence of `shop` at site `a` was raised under epoch 5 and may not be lifted under epoch 4");
    world.site.lift_fence("shop", &context(5, "lift")).await.unwrap();
    let error = world.site.start(&app, &context(4, "start")).await.unwrap_err();
    insta::assert_snapshot!(error.message, @"`shop.app.1` may not start under epoch 4: epoch 5 of `shop` was already seen here, so this run is over");
    world.site.start(&app, &context(5, "start")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_in_the_environment_and_nowhere_else() {
    let world = World::new();
    let (secret, from_command) = ("s3cret-0815-from-a-file", "s3cret-4711-from-a-command");
    let file = world.note("password");
    fs::write(&file, format!("{secret}\n")).unwrap();
    let hidden = world.note("hidden");
    fs::write(&hidden, from_command).unwrap();
    let note = world.note("seen");
    let mut app = instance(&format!("echo \"$A $B\" > {}; exec sleep 1000", note.display()));
    app.env.insert("A".into(), Value::Secret(Secret::File(file.to_str().unwrap().into())));
    app.env.insert("B".into(), Value::Secret(Secret::Command(vec!["cat".into(), hidden.to_str().unwrap().into()])));
    world.start(&app).await;
    eventually("both secrets", || {
        fs::read_to_string(&note).ok().filter(|seen| seen.trim() == format!("{secret} {from_command}"))
    });
    for pid in all_processes() {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments);
        assert!(!arguments.contains(secret) && !arguments.contains(from_command), "{pid}: {arguments}");
    }
    let mut looked = 0;
    let mut directories = vec![world.root().join(".lifeboat")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                directories.push(entry.path());
            } else if entry.file_type().unwrap().is_file() {
                looked += 1;
                let text = String::from_utf8_lossy(&fs::read(entry.path()).unwrap()).into_owned();
                assert!(!text.contains("s3cret"), "{}", entry.path().display());
            }
        }
    }
    assert!(looked >= 3, "records and logs were looked at");

    let mut wrong = instance("true");
    wrong.number = 2;
    wrong.env.insert(
        "A".into(),
        Value::Secret(Secret::Command(vec!["sh".into(), "-c".into(), "echo s3cret; exit 1".into()])),
    );
    let error = world.site.start(&wrong, &context(1, "k")).await.unwrap_err();
    insta::assert_snapshot!(error.message, @"the secret for `A` cannot be had: `sh` failed (exit status: 1)");
    wrong.env.insert("A".into(), Value::Secret(Secret::Env("LIFEBOAT_TEST_NO_SUCH_VARIABLE".into())));
    let error = world.site.start(&wrong, &context(1, "k")).await.unwrap_err();
    insta::assert_snapshot!(error.message, @"the secret for `A` is not there: the site's supervisor has no environment variable `LIFEBOAT_TEST_NO_SUCH_VARIABLE`");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_owner_may_give_orders() {
    let world = World::new();
    world.start(&instance("umask > umask; exec sleep 1000")).await;
    let mode =
        |path: &str| fs::metadata(world.root().join(".lifeboat").join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(""), 0o700);
    assert_eq!(mode("supervisor.sock"), 0o600);
    let umask = eventually("the instance's mask", || {
        fs::read_to_string(world.root().join("volumes/umask")).ok().filter(|text| text.ends_with('\n'))
    });
    assert_ne!(umask.trim(), "0177", "the socket's mask is not the instances'");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deep_root_has_a_socket_too() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("d".repeat(120)).join("e".repeat(120));
    let supervisor = [env!("CARGO_BIN_EXE_supervise"), "--root", root.to_str().unwrap()].map(str::to_owned).to_vec();
    let site = LocalSite::new(LocalSiteConfig::new("a", &root, "127.0.0.1", supervisor)).unwrap();
    let started = site.start(&instance("exec sleep 1000"), &context(1, "s")).await;
    kill_site(&root, true).unwrap();
    started.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn starts_that_cannot_be_say_why() {
    let world = World::new();
    let start = async |app: &InstanceSpec| world.site.start(app, &context(1, "k")).await.unwrap_err().message;
    let mut app = instance("true");
    app.command = vec!["/no/such/program".into()];
    insta::assert_snapshot!(start(&app).await, @"`/no/such/program` cannot be started for `shop.app.1`: No such file or directory (os error 2)");
    app.command = vec![];
    insta::assert_snapshot!(start(&app).await, @"`shop.app.1` has an empty command: nothing to start");
    app.command = vec!["true".into()];
    app.directory = Some("../x".into());
    insta::assert_snapshot!(start(&app).await, @"`shop.app.1` is to run in `../x`, which leads out of the site's volumes");
    app.directory = Some("/no/such/directory".into());
    insta::assert_snapshot!(start(&app).await, @"`shop.app.1` is to run in `/no/such/directory`, which is no directory");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_does_not_lead_out_of_the_volumes() {
    let world = World::new();
    let (_, place) = world.uploads().await;
    std::os::unix::fs::symlink("/etc", place.join("out")).unwrap();
    let verb = SiteVerb::PlaceVolume(files("uploads/out/cron.d"));
    let error = world.site.perform(&verb, &context(1, "k")).await.unwrap_err();
    assert!(error.message.contains("leads out of the site's volumes by a link"), "{error}");
    let bare = SiteVerb::PlaceVolume(volume("orders", Source::Sqlite { path: "shop.sqlite".into() }));
    let error = world.site.perform(&bare, &context(1, "k")).await.unwrap_err();
    assert!(error.message.contains("put the database into one of its own"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_isolation_leaves_is_found() {
    let world = World::new();
    let inside = within("drill-7");
    let place = world.site.isolation_place("drill-7").unwrap();
    world.site.perform(&SiteVerb::Isolate("drill-7".into()), &inside).await.unwrap();
    assert_eq!(world.site.isolation_place("drill-7").unwrap(), place, "known before it is made");
    let mut app = instance("setsid sleep 1000 & wait");
    app.address = Some("127.0.0.1".into());
    let error = world.site.start(&app, &inside).await.unwrap_err();
    assert!(error.message.contains("compile the run-book for this isolation"), "{error}");
    app.address = Some(place.address.to_string());
    world.site.start(&app, &inside).await.unwrap();

    let stranger = TcpListener::bind((place.address, 0)).unwrap();
    let held = fs::File::create(place.volumes.join("held")).unwrap();
    world.site.perform(&SiteVerb::RemoveIsolation("drill-7".into()), &inside).await.unwrap();
    let left = async || match world.site.perform(&SiteVerb::WhatIsLeft("drill-7".into()), &inside).await.unwrap() {
        SiteAnswer::Left(left) => left,
        other => panic!("{other:?}"),
    };
    let found = left().await;
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("held (deleted)") && found[1].contains("listens at"), "{found:?}");
    drop((stranger, held));
    assert_eq!(left().await, Vec::<String>::new());
    assert!(world.site.start(&app, &inside).await.is_err());
    for wrong in ["", "../x", ".hidden", "a/b"] {
        assert!(world.site.perform(&SiteVerb::Isolate(wrong.into()), &inside).await.is_err(), "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_users_command_ends_with_its_caller() {
    let world = World::new();
    let mut config = world.config.clone();
    // Long enough for the script to come to where it waits.
    config.run_within = Duration::from_secs(5);
    let note = world.note("pid");
    let script = format!("sleep 1000 & echo $! > {}; wait", note.display());
    let verb = SiteVerb::Run(vec!["sh".into(), "-c".into(), script]);
    let error = LocalSite::new(config).unwrap().perform(&verb, &context(1, "k")).await.unwrap_err();
    assert!(error.message.contains("took longer than 5 s and was killed"), "{error}");
    let pid = pid_in(&note);
    eventually("the command's child to be gone", || (!is_alive(pid)).then_some(()));
}

#[test]
fn other_reaches_are_refused_clearly() {
    use lifeboat_adapters::site::{SiteSettings, site_from_plan};
    use lifeboat_core::plan::{self, Reach};
    let site = |reach| plan::Site {
        reach,
        zone: None,
        region: None,
        organization: None,
        jurisdiction: None,
        bandwidth: None,
        hosts: Default::default(),
    };
    let refused = |reach| site_from_plan("paris", &site(reach), &SiteSettings::default()).err().unwrap().message;
    insta::assert_snapshot!(refused(Reach::Ssh), @r#"this version cannot act at a site by ssh (site `paris`): use reach = "command" with a script of your own that does"#);
    insta::assert_snapshot!(refused(Reach::Aws), @r#"this version cannot act at a site at AWS (site `paris`): use reach = "command" with a script of your own that does"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_killed_at_any_moment_of_a_start_leaves_one_instance() {
    let world = World::new();
    let tag = format!("TAG={}", world.root().display());
    let mut app = instance("exec sleep 1000");
    app.env.insert("TAG".into(), Value::Text(world.root().to_str().unwrap().into()));
    for round in 0..12_u64 {
        let site = world.site.clone();
        let (under, spec) = (context(1, "start"), app.clone());
        let mut blog = instance("exec sleep 1000");
        blog.service = "blog".into();
        world.start(&blog).await;
        let supervisor = world.supervisor();
        let started = tokio::spawn(async move { site.start(&spec, &under).await });
        // Another moment in every round: before, during and after the start.
        tokio::time::sleep(Duration::from_micros(round * 900)).await;
        kill_and_see(supervisor);
        let _ = started.await.unwrap();
        let pid = world.start(&app).await;
        await_sleep(pid);
        let marks = |pid: &i32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let environment = String::from_utf8_lossy(&environment).into_owned();
            environment.contains("LIFEBOAT_INSTANCE=shop.app.1") && environment.contains(&tag)
        };
        let running: Vec<i32> = all_processes().into_iter().filter(marks).filter(|pid| is_alive(*pid)).collect();
        assert_eq!(running, [pid], "round {round}");
        proven(world.site.fence(&request(&[], &[]), &context(1, "fence")).await);
        assert!(!is_alive(pid));
        world.site.lift_fence("shop", &context(1, "lift")).await.unwrap();
    }
}
