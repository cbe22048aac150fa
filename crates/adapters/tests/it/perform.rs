//! The engine's actions at a real local site: what ends is started again, what was forgotten is stopped, and what wrote
//! after a planned stop is for a person to judge.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use lifeboat_adapters::clock::MachineClock;
use lifeboat_adapters::probe::NetworkProbe;
use lifeboat_adapters::source::restorer_for;
use lifeboat_core::desired::{AgentReport, AgentRole};
use lifeboat_core::plan::{Health, Probe as Look};
use lifeboat_core::run::Need;
use lifeboat_core::runbook::{Action, InstanceSpec, LeaseFence};
use lifeboat_core::units::Span;
use lifeboat_engine::arbitrate::{Arbiter, Claim, LeaseHeld, Trustee};
use lifeboat_engine::perform::{Failure, Performer, World};
use lifeboat_engine::port::{Cancel, PointRequest, Site, Source as _};
use lifeboat_engine::recovery::Vaults;
use lifeboat_vault::Role;
use lifeboat_vault::sign::SigningKey;
use lifeboat_vault::storage;

use crate::recovery::{recovery, volume};
use crate::site_conformance::{context, instance, is_alive, pid_in, sleeper_in};
use crate::site_local::World as LocalWorld;
use crate::source_sqlite::{DATASET, WAL, commit, create, source};
use crate::vault_world::VaultWorld;

fn controller(local: &LocalWorld) -> World {
    let key = SigningKey::load_or_create(&local.note("controller.key")).unwrap();
    let storage = storage::create(local.note("arbiter").to_str().unwrap()).unwrap();
    let (clock, trusted) = (
        Arc::new(MachineClock::default()),
        BTreeMap::from([(key.public(), Trustee::new("controller", &[Role::Host, Role::Controller]))]),
    );
    let site: Arc<dyn Site> = Arc::new(local.site.clone());
    World {
        service: "shop".into(),
        sites: BTreeMap::from([("a".to_owned(), site)]),
        probe: Arc::new(NetworkProbe::default()),
        clock: clock.clone(),
        arbiter: Arc::new(Arbiter::new(storage, Arc::new(key), trusted, clock)),
        recovery: Arc::new(Vaults {
            places: BTreeMap::new(),
            identities: Vec::new(),
            restorer_for: Arc::new(restorer_for),
            thaw_for: None,
        }),
        disaster_at: None,
        waiting: Default::default(),
    }
}

fn failed(performed: Result<lifeboat_engine::perform::Performed, Failure>) -> (String, bool) {
    match performed.unwrap_err() {
        Failure::Failed { error, may_pass } => (error, may_pass),
        other => panic!("{other:?}"),
    }
}

/// Healthy once `flag` exists; the script counts its starts in `starts`.
fn counted(local: &LocalWorld, rest: &str) -> InstanceSpec {
    let (flag, starts) = (local.note("flag"), local.note("starts"));
    let mut app = instance(&format!("echo >> {}; {}", starts.display(), rest.replace("FLAG", flag.to_str().unwrap())));
    let look = Look::Command(["test", "-e", flag.to_str().unwrap()].map(str::to_owned).to_vec());
    app.health = Some(Health { probe: look, within: Span::seconds(60), every: Span::seconds(1) });
    app
}

fn starts(local: &LocalWorld) -> usize {
    fs::read_to_string(local.note("starts")).unwrap().lines().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_ended_after_its_start_is_started_again() {
    let local = LocalWorld::new();
    let controller = controller(&local);
    let script =
        format!("[ $(wc -l < {}) -ge 3 ] || exit 1; touch FLAG; exec sleep 1000", local.note("starts").display());
    let instances = vec![counted(&local, &script)];
    let start = Action::StartInstances { site: "a".into(), instances: instances.clone() };
    controller.perform(&start, &context(1, "start")).await.unwrap();
    let wait = Action::AwaitHealthy { site: "a".into(), instances };
    let performed = controller.perform(&wait, &context(1, "await")).await.unwrap();
    assert_eq!(performed.facts["shop.app.1"], "healthy");
    assert_eq!(performed.facts["shop.app.1 started again"], 2, "the record says so");
    assert_eq!(starts(&local), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_always_ends_is_not_started_for_ever() {
    let local = LocalWorld::new();
    let controller = controller(&local);
    let wait = Action::AwaitHealthy { site: "a".into(), instances: vec![counted(&local, "exit 1")] };
    let (error, may_pass) = failed(controller.perform(&wait, &context(1, "await")).await);
    insta::assert_snapshot!(error, @"shop.app.1 at a has ended by itself before it was healthy, and so it did after 3 more starts; read its output at the site");
    assert!(!may_pass);
    assert_eq!(starts(&local), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_plan_counts_any_more_is_stopped_with_the_rest() {
    let local = LocalWorld::new();
    let controller = controller(&local);
    let note = local.note("third");
    let app = instance("exec sleep 1000");
    let mut third = instance(&format!("echo $$ > {}; exec sleep 1000", note.display()));
    third.number = 3;
    let mut other = instance("exec sleep 1000");
    other.service = "mail".into();
    let start = Action::StartInstances { site: "a".into(), instances: vec![app.clone(), third, other.clone()] };
    let started = controller.perform(&start, &context(1, "start")).await.unwrap();
    let third = pid_in(&note);
    let stop = Action::StopInstances { site: "a".into(), instances: vec![app], write_domain: Some("shop".into()) };
    let stopped = controller.perform(&stop, &context(2, "stop")).await.unwrap();
    assert!(!is_alive(third));
    assert!(stopped.facts["rest"].to_string().contains(&format!("process {third} ")), "{:?}", stopped.facts);
    let stranger = started.facts[&other.id()]["pid"].as_i64().unwrap() as i32;
    assert!(is_alive(stranger), "another write domain's is left alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_fence_that_has_to_kill_a_writer_waits_for_a_person() {
    let mut local = LocalWorld::new();
    let (uploads, place) = local.uploads().await;
    let holding = format!("exec 3>>{}/entries; echo $$ > NOTE; exec sleep 1000", place.display());
    let noting = |name: &str| holding.replace("NOTE", local.note(name).to_str().unwrap());
    let (agent, app) = (noting("agent"), instance(&noting("app")));
    local.config.agent_command = Some(vec!["sh".into(), "-c".into(), agent]);
    local.site = lifeboat_adapters::site::LocalSite::new(local.config.clone()).unwrap();
    let controller = controller(&local);
    controller.perform(&Action::EnsureAgent { site: "a".into() }, &context(1, "agent")).await.unwrap();
    let start = Action::StartInstances { site: "a".into(), instances: vec![app.clone()] };
    controller.perform(&start, &context(1, "start")).await.unwrap();
    let (agent, writer) = (sleeper_in(&local.note("agent")), sleeper_in(&local.note("app")));
    let fence = Action::Fence {
        site: "a".into(),
        write_domain: "shop".into(),
        instances: vec![app],
        volumes: vec![uploads],
        planned: true,
        lease: None,
    };
    let (error, may_pass) = failed(controller.perform(&fence, &context(2, "fence")).await);
    assert!(error.contains(&format!("killed process {writer} (sleep), which ran on")), "{error}");
    assert!(!error.contains(&format!("process {agent} ")), "the site's own agent writes nothing of its own: {error}");
    assert!(!may_pass && !is_alive(writer) && !is_alive(agent));
    // A person has looked and goes on.
    assert_eq!(controller.perform(&fence, &context(2, "fence")).await.unwrap().outcome, "proven");
}

/// A fence that may be proven by the lease of epoch 1, at a site that nobody can ask.
fn fence_by_lease(local: &LocalWorld) -> Action {
    fs::create_dir_all(local.root().join(".lifeboat")).unwrap();
    fs::write(local.root().join(".lifeboat/unreachable"), "").unwrap();
    let lease = LeaseFence { epoch: 1, ttl: "700ms".parse().unwrap(), skew: "300ms".parse().unwrap() };
    let (instances, volumes) = (vec![instance("exec sleep 1000")], Vec::new());
    let (site, write_domain) = ("a".into(), "shop".into());
    Action::Fence { site, write_domain, instances, volumes, planned: false, lease: Some(lease) }
}

fn claim(controller: &World, epoch: u64, primary: &str) {
    let (write_domain, run) = ("shop".into(), format!("run-{epoch}"));
    let claim = Claim { write_domain, epoch, primary: primary.into(), run, at: String::new(), planned: false };
    controller.arbiter.claim_epoch(&claim).unwrap();
}

fn asked(performed: Result<lifeboat_engine::perform::Performed, Failure>) -> String {
    match performed.unwrap_err() {
        Failure::Needs(Need::Attestation { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_that_cannot_be_asked_is_fenced_when_its_lease_has_run_out() {
    let local = LocalWorld::new();
    let controller = controller(&local);
    claim(&controller, 1, "a");
    let mut held = LeaseHeld::new("a", "shop", 1, "host", 0.7);
    held.renew(&controller.arbiter).unwrap();
    claim(&controller, 2, "b");
    // Until it is refused, which it is from the claim on.
    held.renew(&controller.arbiter).unwrap_err();
    let performed = controller.perform(&fence_by_lease(&local), &context(2, "fence")).await.unwrap();
    assert_eq!(performed.outcome, "run-out");
    let fact = |name: &str| performed.facts[name].clone();
    assert!(fact("waited_seconds").as_f64().unwrap() >= 1.0, "{:?}", performed.facts);
    assert_eq!((fact("proven_by"), fact("lease_epoch"), fact("lease_beat")), ("lease".into(), 1.into(), 1.into()));
    let proof = fact("proof").as_str().unwrap().to_owned();
    assert!(
        proof.contains("the watchdog beside the writer stops it") && proof.contains("cannot be reached"),
        "{proof}"
    );
    assert!(controller.last_seen("step").unwrap().contains("for its lease of `shop` to run out"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_was_never_held_or_is_withdrawn_proves_nothing() {
    let local = LocalWorld::new();
    let controller = controller(&local);
    claim(&controller, 1, "a");
    let fence = fence_by_lease(&local);
    let why = asked(controller.perform(&fence, &context(2, "fence")).await);
    insta::assert_snapshot!(why, @"site `a` cannot be reached; and its host never held a lease under epoch 1");
    LeaseHeld::new("a", "shop", 1, "host", 0.7).renew(&controller.arbiter).unwrap();
    controller.arbiter.withdraw_lease("a", "shop", 1).unwrap();
    let why = asked(controller.perform(&fence, &context(2, "fence")).await);
    insta::assert_snapshot!(why, @"site `a` cannot be reached; its lease under epoch 1 was withdrawn");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_waits_for_a_renewal_that_was_not_there_before() {
    let local = LocalWorld::new();
    let controller = controller(&local);
    claim(&controller, 1, "a");
    let mut held = LeaseHeld::new("a", "shop", 1, "host", 0.7);
    held.renew(&controller.arbiter).unwrap();
    let wait = Action::AwaitLease { site: "a".into(), write_domain: "shop".into(), epoch: 1 };
    let context = context(1, "await");
    let waiting = controller.perform(&wait, &context);
    let renewing = async {
        while controller.last_seen("step").is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        held.renew(&controller.arbiter).unwrap();
    };
    let (performed, ()) = tokio::join!(waiting, renewing);
    assert_eq!(performed.unwrap().outcome, "held");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_lacks_what_a_vault_holds_is_not_usable() {
    let local = LocalWorld::new();
    let root = local.note("world");
    let database = create(&root, WAL);
    commit(&database, 1, 300);
    let vault = VaultWorld::new(&root, "near");
    let request = PointRequest { dataset: DATASET.into(), epoch: 1, ..PointRequest::default() };
    let held = source(&root).take_point(&vault.named(), &request, &(), &Cancel::default()).unwrap().point.taken_at;
    let mut controller = controller(&local);
    controller.recovery = Arc::new(recovery(&root, &[&vault]));
    let arbiter = Arc::clone(&controller.arbiter);
    let applied = Arc::new(Mutex::new(held - SignedDuration::from_secs(3600)));
    let (reported, stop) = (Arc::clone(&applied), Cancel::default());
    let stopped = stop.clone();
    let host = std::thread::spawn(move || {
        for beat in 0.. {
            if stopped.is_cancelled() {
                return;
            }
            let report = AgentReport {
                site: "a".into(),
                dataset: DATASET.into(),
                role: AgentRole::Standby,
                epoch: 1,
                generation: 1,
                durable: BTreeMap::new(),
                position: None,
                applied: Some(reported.lock().unwrap().to_string()),
                settled: false,
                finished: None,
                commits: None,
                streams: None,
                came: None,
                problem: None,
                at: Timestamp::now().to_string(),
                beat,
            };
            arbiter.report(&report).unwrap();
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let inspect = Action::InspectStandby {
        site: "a".into(),
        write_domain: "shop".into(),
        datasets: vec![DATASET.into()],
        volumes: vec![volume(&[&vault])],
    };
    let performed = controller.perform(&inspect, &context(1, "inspect")).await.unwrap();
    assert_eq!(performed.outcome, "unusable");
    let why = performed.facts[DATASET]["unusable"].to_string();
    assert!(why.contains(&format!("near holds everything up to {held}")), "{why}");
    *applied.lock().unwrap() = held;
    let performed = controller.perform(&inspect, &context(1, "inspect")).await.unwrap();
    assert_eq!(performed.outcome, "usable", "{:?}", performed.facts);
    stop.cancel();
    host.join().unwrap();
}
