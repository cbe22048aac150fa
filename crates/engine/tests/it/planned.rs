//! A planned failover, as it is really compiled, that does not come to its commit point: what was ended is begun again, in reverse.

use std::time::Duration;

use lifeboat_core::run::RunState;
use lifeboat_core::runbook::compile::{Inventory, Request, compile};
use lifeboat_core::runbook::{Purpose, Runbook, Target};
use lifeboat_core::units::Span;
use lifeboat_engine::execute::{Decision, Ended};
use lifeboat_engine::port::Cancel;

use crate::world::{Bench, Trick, start};

const PLAN: &str = r#"
[plan]
name = "shop"
[arbiter]
url = "file:///srv/arbiter"
[site.north]
reach = "local"
root = "/srv/north"
address = "127.0.11.1"
[site.south]
reach = "local"
root = "/srv/south"
address = "127.0.12.1"
[vault.far]
url = "file:///srv/vault"
[key]
recipients = ["age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p", "age1lggyhqrw2nlhcxprm67z43rta597azn8gknawjehu9d9dl0jq3yqqvfafg"]
[service.shop]
strategy = "backup-restore"
primary = "north"
recovery = ["south"]
rpo = "5s"
rto = "1m"
[service.shop.component.app]
role = "application"
port = 8080
launch = { command = ["/srv/app", "--listen", "{{ instance.address }}:{{ instance.port }}"] }
health = { http = "/healthz", within = "20s" }
[service.shop.component.app.dataset.orders]
kind = "persistent"
sqlite = { path = "data/orders.db" }
protect = [{ to = "far", base = { every = "1h" }, log = "stream" }]
[service.shop.traffic]
name = "shop.example.com."
dns = { authority = "127.0.9.53:53" }
everyday = { north = 100 }
ttl = "1s"
"#;

/// The run-book, with steps that give up soon.
fn planned() -> Runbook {
    let parsed = lifeboat_core::plan::parse(&[("lifeboat.toml", PLAN)]);
    let inventory = Inventory {
        epoch: 0,
        writer: "north".into(),
        writer_epoch: 0,
        compiled_at: "2026-11-21T12:00:00Z".into(),
        plan_hash: "plan-1".into(),
        archived: Default::default(),
    };
    let request = Request {
        service: "shop".into(),
        purpose: Purpose::Switchover,
        scenario: "site-lost".into(),
        to: None,
        target: Target::Newest,
        isolation: None,
    };
    compile(&parsed.plan.unwrap(), &inventory, &request).unwrap()
}

/// The same, but with little time for the step that is going to hang.
fn impatient(hangs: &str) -> Runbook {
    let mut runbook = planned();
    runbook.steps.iter_mut().find(|step| step.id == hangs).unwrap().timeout = Span(Duration::from_millis(400));
    runbook
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_name_server_ends_it_before_anything_is_done() {
    let bench = Bench::new();
    bench.world.trick("ask-name-server", [Trick::Hang]);
    let ended = bench.executor().start(start("r1", impatient("ask-name-server")), &Cancel::default()).await.unwrap();
    assert_eq!(ended, Ended::Finished(RunState::Failed));
    assert_eq!(bench.world.order(), Vec::<String>::new());
    let view = bench.journal().read("r1").unwrap().view().unwrap();
    assert_eq!(view.step("ask-name-server").unwrap().status, "failed");
    assert_eq!(view.step("stop-north").unwrap().status, "waiting");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_freeze_that_takes_too_long_lets_the_writer_go_on_and_starts_the_service_again() {
    let bench = Bench::new();
    bench.world.trick("freeze-north", vec![Trick::Hang; 3]);
    let ended = bench.executor().start(start("r1", impatient("freeze-north")), &Cancel::default()).await.unwrap();
    assert_eq!(ended, Ended::Finished(RunState::Failed));
    let order = bench.world.order();
    assert_eq!(order[order.len() - 3..], ["stop-north", "freeze-north/undo", "stop-north/undo"], "{order:?}");
    assert!(!order.iter().any(|step| step.starts_with("fence") || step.starts_with("promote")), "{order:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_cancelled_before_its_commit_point_starts_again_what_it_stopped() {
    let bench = Bench::new();
    bench.world.trick("restore-orders", vec![Trick::Fail { may_pass: false, with_effect: false }; 4]);
    let ended = bench.executor().start(start("r1", planned()), &Cancel::default()).await.unwrap();
    assert!(matches!(ended, Ended::Held(_)), "{ended:?}");
    let cancel = Decision::Cancel { by: "ben".into(), reason: "not today".into() };
    bench.executor().decide("r1", cancel).await.unwrap();
    let ended = bench.executor().resume("r1", "ben", &Cancel::default()).await.unwrap();
    assert_eq!(ended, Ended::Finished(RunState::Cancelled));
    let undone: Vec<String> = bench.world.order().into_iter().filter(|step| step.ends_with("/undo")).collect();
    assert_eq!(
        undone,
        ["set-aside-orders/undo", "reserve-south/undo", "fence-north/undo", "freeze-north/undo", "stop-north/undo"]
    );
}
