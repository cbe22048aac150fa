//! What every site adapter has to do, whatever it is made of. Each adapter's tests call `conforms`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lifeboat_core::plan::{DataKind, Source};
use lifeboat_core::runbook::{InstanceSpec, VolumeSpec};
use lifeboat_core::units::Span;
use lifeboat_engine::port::{Context, FenceRequest, Fenced, InstanceState, Site, SiteAnswer, SiteVerb, VolumeState};

pub(crate) fn instance(script: &str) -> InstanceSpec {
    InstanceSpec {
        service: "shop".into(),
        component: "app".into(),
        number: 1,
        command: vec!["sh".into(), "-c".into(), script.into()],
        env: Default::default(),
        directory: None,
        address: None,
        port: None,
        stop_within: Span::seconds(60),
        stop_signal: Default::default(),
        health: None,
    }
}

pub(crate) fn volume(dataset: &str, source: Source) -> VolumeSpec {
    VolumeSpec { service: "shop".into(), dataset: dataset.into(), kind: DataKind::Persistent, source, vaults: vec![] }
}

pub(crate) fn files(path: &str) -> VolumeSpec {
    volume("uploads", Source::Files { path: path.into(), exclude: vec![] })
}

pub(crate) fn context(epoch: u64, key: &str) -> Context {
    Context {
        run: "run-1".into(),
        step: "step".into(),
        epoch,
        idempotency_key: key.into(),
        isolation: None,
        cancel: Default::default(),
    }
}

pub(crate) fn within(isolation: &str) -> Context {
    Context { isolation: Some(isolation.into()), ..context(1, "isolated") }
}

pub(crate) fn request(instances: &[InstanceSpec], volumes: &[VolumeSpec]) -> FenceRequest {
    FenceRequest { write_domain: "shop".into(), instances: instances.to_vec(), volumes: volumes.to_vec() }
}

/// Waits for a condition, with a deadline.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn is_alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with('Z')))
}

/// The process number that something wrote into a file, once it is there.
pub(crate) fn pid_in(path: &Path) -> i32 {
    eventually(&format!("a process number in {}", path.display()), || {
        fs::read_to_string(path).ok()?.trim().parse().ok()
    })
}

/// The same, once its shell has become `sleep`.
pub(crate) fn sleeper_in(path: &Path) -> i32 {
    let pid = pid_in(path);
    await_sleep(pid);
    pid
}

/// Until a shell has become `sleep`: on the way its name is the shell's, and for a moment it seems to have no environment.
pub(crate) fn await_sleep(pid: i32) {
    let name = || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    eventually("the shell to become `sleep`", || (name().trim() == "sleep").then_some(()));
}

pub(crate) async fn path(site: &dyn Site, verb: SiteVerb, context: &Context) -> Option<PathBuf> {
    match site.perform(&verb, context).await.unwrap() {
        SiteAnswer::Path(path) => Some(path),
        SiteAnswer::Nothing => None,
        other => panic!("{verb:?} answered {other:?}"),
    }
}

pub(crate) async fn conforms(site: &dyn Site) {
    starts_and_stops(site).await;
    keeps_volumes(site).await;
    fences(site).await;
    runs_commands(site).await;
    isolates(site).await;
    ensures_its_agent(site).await;
}

async fn starts_and_stops(site: &dyn Site) {
    let app = instance("exec sleep 1000");
    assert_eq!(site.observe(&app).await.unwrap(), InstanceState::Stopped);
    let first = site.start(&app, &context(1, "start")).await.unwrap();
    let again = site.start(&app, &context(1, "start")).await.unwrap();
    assert_eq!(first["pid"], again["pid"], "an instance is started once");
    assert_eq!(again["already_running"], true);
    assert_eq!(site.observe(&app).await.unwrap(), InstanceState::Running);
    site.stop(&app, &context(1, "stop")).await.unwrap();
    assert_eq!(site.observe(&app).await.unwrap(), InstanceState::Stopped);
    site.stop(&app, &context(1, "stop")).await.unwrap();

    let mut deaf = instance("trap '' TERM; while :; do sleep 0.1; done");
    deaf.stop_within = "300ms".parse().unwrap();
    let started = site.start(&deaf, &context(1, "start-deaf")).await.unwrap();
    let pid = started["pid"].as_i64().unwrap() as i32;
    // The shell has to have come to its trap.
    eventually("the trap", || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?.trim().to_owned();
        (u64::from_str_radix(&ignored, 16).ok()? & (1 << 14) != 0).then_some(())
    });
    let error = site.stop(&deaf, &context(1, "stop-deaf")).await.unwrap_err();
    assert!(error.message.contains("still runs"), "{}", error.message);
    assert!(error.may_pass);
    assert_eq!(site.observe(&deaf).await.unwrap(), InstanceState::Running, "a graceful stop never kills");
    assert!(matches!(site.fence(&request(&[], &[]), &context(1, "f")).await.unwrap(), Fenced::Proven { .. }));
    site.lift_fence("shop", &context(1, "l")).await.unwrap();
}

async fn keeps_volumes(site: &dyn Site) {
    let (uploads, first) = (files("data/uploads"), context(3, "first"));
    let locate = async || site.perform(&SiteVerb::LocateVolume(files("data/uploads")), &first).await;
    assert_eq!(locate().await.unwrap(), SiteAnswer::Volume(VolumeState::Absent));
    assert_eq!(path(site, SiteVerb::SetAside(uploads.clone()), &first).await, None);
    assert_eq!(path(site, SiteVerb::PutBack(uploads.clone()), &first).await, None);

    let place = path(site, SiteVerb::PlaceVolume(uploads.clone()), &first).await.unwrap();
    assert!(place.parent().unwrap().is_dir() && !place.exists(), "a place is made, but not the volume");
    fs::create_dir(&place).unwrap();
    fs::write(place.join("old"), "old").unwrap();
    assert_eq!(locate().await.unwrap(), SiteAnswer::Volume(VolumeState::Present { path: place.clone() }));

    let aside = path(site, SiteVerb::SetAside(uploads.clone()), &first).await.unwrap();
    assert!(!place.exists() && aside.join("old").exists());
    assert!(aside.file_name().unwrap().to_str().unwrap().starts_with("uploads.aside-3-"), "{}", aside.display());
    fs::create_dir(&place).unwrap();
    fs::write(place.join("new"), "new").unwrap();
    let again = path(site, SiteVerb::SetAside(uploads.clone()), &first).await.unwrap();
    assert_eq!(again, aside, "the same step sets aside once");
    assert!(place.join("new").exists(), "what came since is left alone");

    let back = path(site, SiteVerb::PutBack(uploads.clone()), &context(3, "undo")).await.unwrap();
    assert_eq!(back, place);
    assert!(place.join("old").exists() && !place.join("new").exists());
    assert_eq!(path(site, SiteVerb::PutBack(uploads.clone()), &context(3, "undo")).await, Some(place.clone()));
    assert!(place.join("old").exists(), "the same undo twice is one undo");
    let kept = fs::read_dir(place.parent().unwrap()).unwrap().flatten().any(|entry| entry.path().join("new").exists());
    assert!(kept, "nothing is ever deleted");

    let database = volume("orders", Source::Sqlite { path: "data/db/shop.sqlite".into() });
    let place = path(site, SiteVerb::PlaceVolume(database), &first).await.unwrap();
    assert!(place.ends_with("volumes/data/db"), "a database's volume is its directory: {}", place.display());
    for escape in ["/etc", "../outside", "data/../../outside"] {
        let error = site.perform(&SiteVerb::PlaceVolume(files(escape)), &first).await.unwrap_err();
        assert!(error.message.contains("leads out of the site's volumes"), "{}", error.message);
    }
}

async fn fences(site: &dyn Site) {
    let app = instance("sleep 1000 & sleep 1000 & wait");
    site.start(&app, &context(4, "start")).await.unwrap();
    let asked = request(std::slice::from_ref(&app), &[files("data/uploads")]);
    for attempt in 0..2 {
        match site.fence(&asked, &context(5, "fence")).await.unwrap() {
            Fenced::Proven { proof, .. } => assert!(!proof.is_empty()),
            unproven => panic!("attempt {attempt}: {unproven:?}"),
        }
    }
    assert_eq!(site.observe(&app).await.unwrap(), InstanceState::Stopped);
    let error = site.start(&app, &context(5, "start-again")).await.unwrap_err();
    assert!(error.message.contains("`shop` is fenced here"), "{}", error.message);
    site.lift_fence("shop", &context(6, "lift")).await.unwrap();
    site.lift_fence("shop", &context(6, "lift")).await.unwrap();
    site.start(&app, &context(6, "start-again")).await.unwrap();
    site.stop(&app, &context(6, "stop")).await.unwrap();
}

async fn runs_commands(site: &dyn Site) {
    let run = |script: &str| SiteVerb::Run(vec!["sh".into(), "-c".into(), script.into()]);
    match site.perform(&run("pwd; echo done"), &context(6, "run")).await.unwrap() {
        SiteAnswer::Done(facts) => {
            let output = facts["output"].as_str().unwrap();
            assert!(output.contains("/volumes") && output.ends_with("done"), "{output}");
        }
        other => panic!("{other:?}"),
    }
    let error = site.perform(&run("echo because >&2; exit 3"), &context(6, "run")).await.unwrap_err();
    assert!(error.message.contains("because") && error.message.contains('3'), "{}", error.message);
}

async fn isolates(site: &dyn Site) {
    let name = || "drill-1".to_owned();
    let inside = within("drill-1");
    let mut app = instance("exec sleep 1000");
    assert!(site.start(&app, &inside).await.is_err(), "nothing starts in an isolation that is not there");
    let SiteAnswer::Done(place) = site.perform(&SiteVerb::Isolate(name()), &inside).await.unwrap() else {
        panic!("no facts")
    };
    let SiteAnswer::Done(again) = site.perform(&SiteVerb::Isolate(name()), &inside).await.unwrap() else {
        panic!("no facts")
    };
    assert_eq!(place, again);
    let address = place["address"].as_str().unwrap().to_owned();
    assert!(address.parse::<std::net::Ipv4Addr>().unwrap().is_loopback());

    app.address = Some(address.clone());
    let live = instance("exec sleep 1000");
    site.start(&app, &inside).await.unwrap();
    assert_eq!(site.observe(&app).await.unwrap(), InstanceState::Running);
    assert_eq!(site.observe(&live).await.unwrap(), InstanceState::Stopped, "a drill's instance is not the live one");
    let outside = path(site, SiteVerb::PlaceVolume(files("data/uploads")), &context(6, "p")).await.unwrap();
    let volume = path(site, SiteVerb::PlaceVolume(files("data/uploads")), &inside).await.unwrap();
    assert!(volume.starts_with(place["volumes"].as_str().unwrap()) && volume != outside);
    fs::create_dir_all(&volume).unwrap();

    // A fence of the live service is no business of the drill, nor the drill's of the live service.
    let error = site.fence(&request(&[], &[]), &inside).await.unwrap_err();
    assert!(error.message.contains("this is a drill"), "{}", error.message);
    assert!(site.lift_fence("shop", &inside).await.is_err());
    site.fence(&request(&[], &[files("data/uploads")]), &context(6, "fence")).await.unwrap();
    assert_eq!(site.observe(&app).await.unwrap(), InstanceState::Running);
    site.lift_fence("shop", &context(6, "lift")).await.unwrap();

    let left = async |name: &str| match site.perform(&SiteVerb::WhatIsLeft(name.into()), &inside).await.unwrap() {
        SiteAnswer::Left(left) => left,
        other => panic!("{other:?}"),
    };
    assert!(left("drill-1").await.len() >= 2, "{:?}", left("drill-1").await);
    for _ in 0..2 {
        site.perform(&SiteVerb::RemoveIsolation(name()), &inside).await.unwrap();
        assert_eq!(left("drill-1").await, Vec::<String>::new());
    }
    assert!(!volume.exists());
    assert!(outside.exists(), "the live volume is untouched");
}

async fn ensures_its_agent(site: &dyn Site) {
    let ensure = async || site.perform(&SiteVerb::EnsureAgent, &context(6, "agent")).await;
    let (SiteAnswer::Done(first), SiteAnswer::Done(again)) = (ensure().await.unwrap(), ensure().await.unwrap()) else {
        panic!("no facts")
    };
    assert_eq!(first["pid"], again["pid"]);
    assert!(is_alive(first["pid"].as_i64().unwrap() as i32));
}
