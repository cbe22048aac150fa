//! Golden run-books: one a way and strategy, as people read them.
//!
//! Invariant: what every run-book must keep (lint, storing and reading) is asked of each one here.

#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::runbook::lint::lint;
use crate::runbook::place::IsolatedAuthority;
use crate::runbook::render::render;
use crate::runbook::{Action, Condition, LeaseFence};

const PLAN: &str = r#"
[plan]
name = "notes"

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
standby = [
  { recipient = "age1q4cl85jvs3trwg99wz9ucejfhwgvc2k58z9l52tcyaks6qd30euscna3kg", held-at = "north", datasets = ["entries", "uploads"], identity = { file = "/k/north" } },
  { recipient = "age16ykecks3828n98fzrysxmxykvmztq08j5rkrpj6gf9lrgrwdtulsca008l", held-at = "south", datasets = ["entries", "uploads"], identity = { file = "/k/south" } },
]

[service.notes]
strategy = "warm-standby"
primary = "north"
recovery = ["south"]
rpo = "5s"
rto = "1m"

[service.notes.component.app]
role = "application"
port = 8080
launch = { command = ["/srv/app", "--db", "{{ dataset.entries.path }}", "--listen", "{{ instance.address }}:{{ instance.port }}"] }
health = { http = "/healthz", within = "20s" }
[service.notes.component.app.dataset.entries]
kind = "persistent"
sqlite = { path = "data/notes.db" }
protect = [{ to = "far", base = { every = "1h" }, log = "stream" }]
[service.notes.component.app.dataset.uploads]
kind = "persistent"
files = { path = "uploads" }
protect = [{ to = "far", every = "5s" }]

[service.notes.traffic]
name = "notes.example.com."
dns = { authority = "127.0.9.53:53" }
everyday = { north = 100 }
ttl = "1s"

[service.notes.canary]
write = { http = "POST /canary", body = "{{ canary.value }}" }
read = { http = "GET /canary", expect = "{{ canary.value }}" }
every = "1s"
"#;

fn plan(text: &str) -> Plan {
    let parsed = crate::plan::parse(&[("lifeboat.toml", text)]);
    let errors: Vec<_> = parsed.diagnostics.iter().map(|found| format!("{} {}", found.code, found.message)).collect();
    parsed.plan.unwrap_or_else(|| panic!("{errors:#?}"))
}

fn at(writer: &str, epoch: u64) -> Inventory {
    Inventory {
        epoch,
        writer: writer.into(),
        writer_epoch: epoch,
        compiled_at: "2026-11-21T12:00:00Z".into(),
        plan_hash: "0".repeat(64),
        archived: Default::default(),
    }
}

fn request(purpose: Purpose, scenario: &str) -> Request {
    Request {
        service: "notes".into(),
        purpose,
        scenario: scenario.into(),
        to: None,
        target: Target::Newest,
        isolation: None,
    }
}

fn compiled(text: &str, inventory: &Inventory, request: &Request) -> Runbook {
    let runbook = compile(&plan(text), inventory, request).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(lint(&runbook), Vec::<String>::new());
    let json = serde_json::to_string(&runbook).unwrap();
    assert_eq!(serde_json::from_str::<Runbook>(&json).unwrap(), runbook, "a run-book survives being stored");
    runbook
}

/// The steps and their branches; the whole text is in one of the tests.
fn outline(runbook: &Runbook) -> String {
    let line = |step: &crate::runbook::Step| {
        let branch: String =
            step.when.iter().map(|when| format!("  if {} = {}", when.step, when.outcomes.join("|"))).collect();
        format!("{}{}{branch}\n", step.id, if step.commit { "  (commit)" } else { "" })
    };
    runbook.steps.iter().map(line).collect()
}

fn backup_restore() -> String {
    PLAN.replace("warm-standby", "backup-restore")
}

#[test]
fn a_failover_to_a_warm_standby_reads_as_a_whole() {
    let runbook = compiled(PLAN, &at("north", 1), &request(Purpose::Failover, "site-lost"));
    insta::with_settings!({filters => vec![("run-book [0-9a-f]{12}", "run-book HASH")]}, {
        insta::assert_snapshot!(render(&runbook));
    });
    let Action::StartInstances { instances, .. } = &runbook.step("start-app").unwrap().action else { panic!() };
    assert_eq!(
        instances[0].command,
        ["/srv/app", "--db", "/srv/south/volumes/data/notes.db", "--listen", "127.0.12.1:8080"]
    );
}

/// It is the same data in another form, with no place of its own: nothing waits for it and nothing brings it back.
#[test]
fn a_dump_changes_no_run_book() {
    let dump = "\n[service.notes.component.app.dataset.notes-dump]\nkind = \"persistent\"\n\
                postgres-dump = { service = \"replica\" }\nprotect = [{ to = \"far\", every = \"1d\" }]\n";
    for text in [PLAN.to_owned(), backup_restore()] {
        for purpose in [Purpose::Failover, Purpose::Switchover, Purpose::Start] {
            let without = compiled(&text, &at("north", 1), &request(purpose, "site-lost"));
            let with = compiled(&format!("{text}{dump}"), &at("north", 1), &request(purpose, "site-lost"));
            assert_eq!(with, without);
        }
    }
}

#[test]
fn every_other_way_has_its_own_outline() {
    let failover = compiled(&backup_restore(), &at("north", 1), &request(Purpose::Failover, "site-lost"));
    let failback = compiled(PLAN, &at("south", 2), &request(Purpose::Failback, "site-lost"));
    let failback_cold = compiled(&backup_restore(), &at("south", 2), &request(Purpose::Failback, "site-lost"));
    let moment = Target::At("2026-11-21T11:00:00Z".into());
    let rewind = Request { target: moment, ..request(Purpose::Rewind, "data-corrupted") };
    let rewind = compiled(PLAN, &at("north", 3), &rewind);
    insta::assert_snapshot!(format!(
        "FAILOVER, backup-restore\n{}\nFAILBACK, warm-standby\n{}\nFAILBACK, backup-restore\n{}\nREWIND\n{}",
        outline(&failover),
        outline(&failback),
        outline(&failback_cold),
        outline(&rewind)
    ));
}

#[test]
fn what_a_lost_writer_left_is_shipped_first_where_its_volumes_may_be_there() {
    let elsewhere = Request { to: Some("south".into()), ..request(Purpose::Failover, "instance-lost") };
    let runbook = compiled(PLAN, &at("north", 1), &elsewhere);
    let outline = outline(&runbook);
    let until = outline.find("ensure-agent-south").unwrap();
    insta::assert_snapshot!(&outline[..until], @r"
    claim-epoch
    fence-north
    ensure-agent-north-to-salvage  if fence-north = proven
    salvage-north  if ensure-agent-north-to-salvage = running
    clear-south
    ");
    let step = runbook.step("salvage-north").unwrap();
    insta::assert_snapshot!(step.title, @"Ship what north has written and not shipped, from its own volumes, within 15s");
    assert_eq!(step.on_failure, crate::runbook::OnFailure::Note);
    // Where the volumes are gone, or must not be trusted, nothing of them is waited for.
    for scenario in
        crate::plan::BUILT_IN_SCENARIOS.map(|(name, _)| name).iter().filter(|name| **name != "instance-lost")
    {
        let moment = Target::At("2026-11-21T11:00:00Z".into());
        let target = if distrusts_replicas(scenario) { moment } else { Target::Newest };
        let runbook = compiled(PLAN, &at("north", 1), &Request { target, ..request(Purpose::Failover, scenario) });
        assert!(runbook.step("salvage-north").is_none(), "{scenario}");
    }
}

#[test]
fn a_lost_instance_is_brought_back_where_it_was_before_anything_changes_hands() {
    let runbook = compiled(PLAN, &at("north", 1), &request(Purpose::Failover, "instance-lost"));
    insta::assert_snapshot!(outline(&runbook), @r"
    quiet-north
    keep-entries  if quiet-north = stopped
    look-through-entries  if keep-entries = kept
    keep-uploads  if quiet-north = stopped
    look-through-uploads  if keep-uploads = kept
    restart-north  if quiet-north = stopped  if look-through-entries = sound  if look-through-uploads = sound
    await-service-in-place  if restart-north = recovered
    read-canary-in-place  if restart-north = recovered
    ensure-agent-north-in-place  if read-canary-in-place = read
    protect-again-in-place  if read-canary-in-place = read
    claim-epoch  if read-canary-in-place = else
    fence-north  if read-canary-in-place = else
    ensure-agent-north-to-salvage  if fence-north = proven  if restart-north = not-recovered|else  if look-through-entries = sound|else  if look-through-uploads = sound|else
    salvage-north  if ensure-agent-north-to-salvage = running
    clear-south  if read-canary-in-place = else
    ensure-agent-south  if read-canary-in-place = else
    assess-loss  if read-canary-in-place = else
    approve-loss  if assess-loss = beyond
    inspect-standby  if read-canary-in-place = else
    reserve-south  if inspect-standby = unusable
    set-aside-entries  if inspect-standby = unusable
    restore-entries  if inspect-standby = unusable
    set-aside-uploads  if inspect-standby = unusable
    restore-uploads  if inspect-standby = unusable
    promote-south  (commit)  if read-canary-in-place = else
    lift-fence-south  if read-canary-in-place = else
    start-app  if read-canary-in-place = else
    await-app  if read-canary-in-place = else
    send-traffic  if read-canary-in-place = else
    await-service  if read-canary-in-place = else
    read-canary  if read-canary-in-place = else
    protect-again  if read-canary-in-place = else
    stand-by-again  if read-canary-in-place = else
    ");
    let text = render(&runbook);
    assert_eq!(text.matches("from here on only if read-canary-in-place comes to nothing").count(), 1, "{text}");
}

#[test]
fn a_service_whose_health_is_a_command_is_asked_through_its_name() {
    let command = r#"health = { command = ["pg_isready", "-h", "{{ instance.address }}", "-p", "{{ instance.port }}"], within = "20s" }"#;
    let text = PLAN.replace(r#"health = { http = "/healthz", within = "20s" }"#, command);
    let runbook = compiled(&text, &at("north", 1), &request(Purpose::Failover, "site-lost"));
    let Action::AwaitService { health, .. } = &runbook.step("await-service").unwrap().action else { panic!() };
    let crate::plan::Probe::Command(asked) = &health.probe else { panic!() };
    assert_eq!(asked.join(" "), "pg_isready -h {{ service.address }} -p 8080");
    let Action::AwaitHealthy { instances, .. } = &runbook.step("await-app").unwrap().action else { panic!() };
    let Some(crate::plan::Probe::Command(asked)) = instances[0].health.as_ref().map(|health| &health.probe) else {
        panic!()
    };
    assert_eq!(asked.join(" "), "pg_isready -h 127.0.12.1 -p 8080");
}

#[test]
fn a_start_makes_up_for_what_a_run_that_was_given_up_left() {
    let runbook = compiled(PLAN, &at("north", 2), &request(Purpose::Start, "site-lost"));
    insta::assert_snapshot!(outline(&runbook), @r"
    ensure-agent-north
    lift-fence-north
    start-app
    await-app
    send-traffic
    await-service
    protect-again
    ensure-agent-south
    follow-at-south
    ");
    assert_eq!(runbook.epoch, 2, "a start claims nothing");
    let lifted = &runbook.step("lift-fence-north").unwrap().action;
    assert_eq!(*lifted, Action::LiftFence { site: "north".into(), write_domain: "notes".into() });
    let Action::SetTraffic { answers, arbiter: None, .. } = &runbook.step("send-traffic").unwrap().action else {
        panic!()
    };
    assert_eq!(answers[0].site, "north");
}

#[test]
fn a_lease_may_prove_the_fence_and_is_held_before_anything_starts() {
    let text = PLAN.replace("rto = \"1m\"", "rto = \"1m\"\nlease = \"20s\"");
    let failover = compiled(&text, &at("north", 3), &request(Purpose::Failover, "site-lost"));
    let fence = failover.step("fence-north").unwrap();
    insta::assert_snapshot!(fence.title, @"Prove that north does not write any more; if it cannot be asked, by its lease having run out (20s and 2s since it was last renewed)");
    let Action::Fence { lease: Some(lease), planned: false, .. } = &fence.action else { panic!() };
    assert_eq!(*lease, LeaseFence { epoch: 3, ttl: Span::seconds(20), skew: Span::seconds(2) });
    assert!(fence.timeout.0 > lease.ttl.0 + lease.skew.0);
    let order = outline(&failover);
    assert!(order.contains("promote-south  (commit)\nawait-lease-south\nlift-fence-south\nstart-app\n"), "{order}");

    // By plan the writer may renew until it is stopped, and then has to prove itself that it is.
    let planned = compiled(&text, &at("north", 3), &request(Purpose::Switchover, "site-lost"));
    let claims = |runbook: &Runbook| match runbook.step("claim-epoch").unwrap().action {
        Action::ClaimEpoch { planned, .. } => planned,
        _ => panic!(),
    };
    assert!(claims(&planned) && !claims(&failover));
    assert!(matches!(planned.step("fence-north").unwrap().action, Action::Fence { lease: None, planned: true, .. }));

    // Nor is it started where it was without one.
    let in_place = compiled(&text, &at("north", 3), &request(Purpose::Failover, "instance-lost"));
    let held = Condition { step: "await-lease-north-in-place".into(), outcomes: vec!["held".into()] };
    assert!(in_place.step("restart-north").unwrap().when.contains(&held));

    // No lease is renewed under an epoch that is past: the writer is named under the one that was spent.
    let start = |spent: u64| {
        let inventory = Inventory { writer_epoch: 3, ..at("north", spent) };
        outline(&compiled(&text, &inventory, &request(Purpose::Start, "site-lost")))
    };
    assert!(
        start(3).starts_with("ensure-agent-north\nawait-lease-north\nlift-fence-north\nstart-app\n"),
        "{}",
        start(3)
    );
    assert!(start(4).starts_with("ensure-agent-north\nname-north\nawait-lease-north\n"), "{}", start(4));
}

#[test]
fn whoever_still_writes_is_looked_for_at_both_ends() {
    let switchover = Request { to: Some("south".into()), ..request(Purpose::Switchover, "site-lost") };
    let runbook = compiled(PLAN, &at("north", 1), &switchover);
    for (id, at) in [("clear-south", "south"), ("stop-north", "north")] {
        let Action::StopInstances { site, write_domain, .. } = &runbook.step(id).unwrap().action else { panic!() };
        assert_eq!((site.as_str(), write_domain.as_deref()), (at, Some("notes")), "{id} stops all of the write domain");
    }
    let planned = |runbook: &Runbook| match &runbook.step("fence-north").unwrap().action {
        Action::Fence { planned, .. } => *planned,
        _ => panic!(),
    };
    assert!(planned(&runbook));
    assert!(!planned(&compiled(PLAN, &at("north", 1), &request(Purpose::Failover, "site-lost"))));
}

#[test]
fn a_drill_touches_nothing_real() {
    let isolation = Isolation {
        name: "d1".into(),
        volumes: "/srv/south/.lifeboat/isolated/d1/volumes".into(),
        address: "127.77.0.1".into(),
        authority: IsolatedAuthority {
            listen: "127.77.0.1:5353".into(),
            command: vec!["lifeboat".into(), "dns".into()],
            arbiter: "/srv/south/.lifeboat/isolated/d1/arbiter".into(),
        },
    };
    let request = Request { isolation: Some(isolation), ..request(Purpose::Drill, "site-lost") };
    let runbook = compiled(PLAN, &at("north", 1), &request);
    insta::assert_snapshot!(outline(&runbook));
    let json = serde_json::to_string(&runbook.steps).unwrap();
    assert!(!json.contains("/srv/south/volumes"), "an isolated instance must not see the site's own volumes");
    assert!(!json.contains("127.0.12.1"), "nor its address");
    let real = plan(PLAN).services["notes"].traffic.as_ref().unwrap().authority().to_owned();
    assert!(!json.contains(&real), "what a drill publishes must not reach who uses the service");
    let mut reaching = runbook.clone();
    for step in &mut reaching.steps {
        if let Action::SetTraffic { arbiter, .. } = &mut step.action {
            *arbiter = None;
        }
    }
    assert_eq!(lint(&reaching), ["a drill must not do `send-traffic`"]);
}

#[test]
fn what_cannot_be_compiled_is_said_with_the_next_step() {
    let plan = plan(PLAN);
    let fails = |inventory: &Inventory, request: &Request| compile(&plan, inventory, request).unwrap_err().to_string();
    let failover = || request(Purpose::Failover, "site-lost");
    let wrong = [
        fails(&at("north", 1), &Request { service: "shop".into(), ..failover() }),
        fails(&at("north", 1), &request(Purpose::Failover, "site-gone")),
        fails(&at("north", 1), &request(Purpose::Failover, "data-corrupted")),
        fails(&at("north", 1), &request(Purpose::Failback, "site-lost")),
        fails(&at("north", 1), &Request { to: Some("west".into()), ..failover() }),
        fails(&at("east", 1), &failover()),
    ];
    insta::assert_snapshot!(wrong.join("\n"));
}

#[test]
fn lint_finds_a_promotion_without_its_fence() {
    let mut runbook = compiled(PLAN, &at("north", 1), &request(Purpose::Failover, "site-lost"));
    runbook.steps.retain(|step| !matches!(step.action, Action::Fence { .. }));
    for step in &mut runbook.steps {
        for after in &mut step.after {
            if after == "fence-north" {
                *after = "claim-epoch".into();
            }
        }
    }
    assert_eq!(lint(&runbook), ["`promote-south` promotes without a fence of north before it"]);
}

#[test]
fn what_must_be_thawed_stands_in_the_restore_s_title_and_in_its_time_limit() {
    let archived =
        Archived { class: "DEEP_ARCHIVE".into(), packs: 3, bytes: 40_000_000, thaw: Span::seconds(48 * 3600) };
    let dataset = || compiled(PLAN, &at("north", 1), &request(Purpose::Failover, "site-lost"));
    let restores = |book: &Runbook| -> Vec<(String, String, Span)> {
        let restores = book.steps.iter().filter_map(|step| match &step.action {
            Action::Restore { volume, .. } => Some((volume.dataset.clone(), step.title.clone(), step.timeout)),
            _ => None,
        });
        restores.collect()
    };
    let before = restores(&dataset());
    let (name, _, _) = before.first().unwrap().clone();
    let inventory = Inventory { archived: [(name.clone(), archived)].into(), ..at("north", 1) };
    let after = restores(&compiled(PLAN, &inventory, &request(Purpose::Failover, "site-lost")));
    for ((dataset, plain, limit), (_, title, longer)) in before.iter().zip(&after) {
        assert_eq!(*limit, Span::seconds(24 * 3600));
        if *dataset == name {
            assert_eq!(*title, format!("{plain}; thaws first 3 packs (40.0 MB) in the class DEEP_ARCHIVE, up to 2d"));
            assert_eq!(*longer, Span::seconds(24 * 3600 + 2 * 48 * 3600 + 600));
        } else {
            assert_eq!((title, longer), (plain, limit));
        }
    }
}
