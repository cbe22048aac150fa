//! Evidence of runs that went well, badly and strangely, driven through the real compiler and state machine.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;

use insta::assert_snapshot;
use lifeboat_core::plan;
use lifeboat_core::run::{Entry, Event, Facts, NO_PREDECESSOR, Need, RunState, Sealed, State, next};
use lifeboat_core::runbook::compile::{Inventory, Request, compile};
use lifeboat_core::runbook::{Action, Purpose, Runbook, Target};
use lifeboat_vault::sign::SigningKey;
use serde_json::json;

use super::*;

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
recipients = ["age1fsgzj6t7udv8zhf6zj32mkqhcjcpv52yph5qsdcl0qt94jgdckqsrujl54", "age18qnrtjfjt0ejw0getlcm3fzwtvg6l47e0tw7hzrrag6lawvvrgrs0h329y"]
standby = [
  { recipient = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p", held-at = "north", datasets = ["entries"], identity = { file = "/k/north" } },
  { recipient = "age1lggyhqrw2nlhcxprm67z43rta597azn8gknawjehu9d9dl0jq3yqqvfafg", held-at = "south", datasets = ["entries"], identity = { file = "/k/south" } },
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
launch = { command = ["/srv/app", "--db", "{{ dataset.entries.path }}"] }
health = { http = "/healthz", within = "20s" }
[service.notes.component.app.dataset.entries]
kind = "persistent"
sqlite = { path = "data/notes.db" }
protect = [{ to = "far", base = { every = "1h" }, log = "stream" }]
[service.notes.traffic]
name = "notes.example.com."
dns = { authority = "127.0.9.53:53" }
everyday = { north = 100 }
ttl = "1s"
[service.notes.canary]
write = { http = "POST /canary", body = "{{ canary.value }}" }
read = { http = "GET /canary", expect = "{{ canary.value }}" }
"#;

const DISASTER: &str = "2026-11-21T02:59:57Z";
const STARTED: &str = "2026-11-21T03:00:00Z";

fn runbook(purpose: Purpose, scenario: &str) -> Runbook {
    let parsed = plan::parse(&[("lifeboat.toml", PLAN)]);
    let plan = parsed.plan.unwrap_or_else(|| panic!("{:#?}", parsed.diagnostics));
    let writer = if purpose == Purpose::Failback { "south" } else { "north" };
    let inventory = Inventory {
        writer_epoch: 1,
        epoch: 1,
        writer: writer.into(),
        compiled_at: "2026-11-21T02:59:59Z".into(),
        plan_hash: "ab".repeat(32),
        archived: Default::default(),
    };
    let isolation = None;
    let target = Target::At("2026-11-21T02:00:00Z".into());
    let target = if purpose == Purpose::Rewind { target } else { Target::Newest };
    let request = Request { service: "notes".into(), purpose, scenario: scenario.into(), to: None, target, isolation };
    compile(&plan, &inventory, &request).unwrap()
}

/// A journal in the making: every event goes through the real state machine and gets a time.
struct Journal {
    runbook: Runbook,
    state: State,
    sealed: Vec<Sealed>,
    now_seconds: f64,
    /// What the wall clock is off by.
    wall_off_seconds: f64,
    process: String,
}

/// What a step does: so many seconds, and then this.
type Script = BTreeMap<String, (f64, Result<(&'static str, Facts), &'static str>)>;

impl Journal {
    fn start(runbook: Runbook, disaster_at: Option<&str>) -> Journal {
        let state = State::pending(&runbook);
        let mut journal = Journal {
            state,
            sealed: vec![],
            now_seconds: 0.0,
            wall_off_seconds: 0.0,
            process: "p1".into(),
            runbook: runbook.clone(),
        };
        journal.record(Event::Started {
            runbook: Box::new(runbook),
            initiator: "anna".into(),
            disaster_at: disaster_at.map(str::to_owned),
            how_known: "the demo killed the site itself".into(),
            simulated: vec!["sites are process groups on one machine".into()],
        });
        journal
    }

    fn record(&mut self, event: Event) {
        self.state = self.state.clone().after(&self.runbook, &event).unwrap();
        let at: Timestamp = STARTED.parse().unwrap();
        let off = jiff::SignedDuration::from_secs_f64(self.now_seconds + self.wall_off_seconds);
        let entry = Entry {
            run: "r1".into(),
            seq: self.sealed.len() as u64 + 1,
            at: at + off,
            process: self.process.clone(),
            monotonic_seconds: 1000.0 + self.now_seconds,
            previous: self.sealed.last().map_or(NO_PREDECESSOR.into(), |last| last.hash.clone()),
            event,
        };
        self.sealed.push(entry.seal().unwrap());
    }

    /// Does what comes next until nothing does, as the script says; what it does not name succeeds in half a second.
    fn run(&mut self, script: &Script) {
        loop {
            let due = next(&self.runbook, &self.state);
            if let Some(id) = due.start.first().cloned() {
                let attempt = self.state.steps[&id].attempts + 1;
                self.record(Event::Intent { step: id.clone(), attempt });
                let action = self.runbook.step(&id).unwrap().action.clone();
                let (seconds, result) = script.get(&id).cloned().unwrap_or((0.5, Ok(usual(&action))));
                self.now_seconds += seconds;
                self.record(match result {
                    Ok((outcome, facts)) => Event::Done { step: id, attempt, outcome: outcome.into(), facts },
                    Err(error) if error.starts_with("attest: ") => {
                        let statement = error.trim_start_matches("attest: ").to_owned();
                        let needs = Need::Attestation { statement, why: "north cannot be reached".into() };
                        Event::Held { step: id, attempt, needs }
                    }
                    Err(error) => Event::Failed { step: id, attempt, error: error.into(), may_pass: false },
                });
            } else if let Some(step) = due.undo {
                self.record(Event::UndoIntent { step: step.clone() });
                self.record(Event::Undone { step, outcome: "taken back".into() });
            } else if let Some(state) = due.finish {
                self.record(Event::Finished { state });
                return;
            } else {
                return;
            }
        }
    }

    fn evidence(&self, losses: Option<Losses>) -> Evidence {
        super::seal::render("r1", &self.sealed, losses).unwrap()
    }
}

fn usual(action: &Action) -> (&'static str, Facts) {
    let facts = |pairs: &[(&str, serde_json::Value)]| {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect::<Facts>()
    };
    match action {
        Action::ClaimEpoch { epoch, .. } => ("claimed", facts(&[("epoch", json!(epoch))])),
        Action::Fence { .. } => {
            let proof = "no process of the site's supervisor is left; a marker blocks a restart";
            ("proven", facts(&[("proof", json!(proof)), ("processes_left", json!(0)), ("listeners", json!([]))]))
        }
        Action::AssessLoss { .. } => {
            let reach =
                json!({ "recoverable_to": "2026-11-21T02:59:55Z", "loss_seconds_estimated": 2.0, "point": "0007" });
            ("within", facts(&[("entries", reach), ("disaster_at", json!(DISASTER))]))
        }
        Action::InspectStandby { .. } => ("usable", facts(&[("entries", json!({ "position": "42" }))])),
        Action::ReadCanary { .. } => (
            "read",
            facts(&[
                ("number", json!(17)),
                ("written_at", json!("2026-11-21T02:59:56Z")),
                ("read_at", json!("2026-11-21T03:00:06Z")),
                ("age_seconds", json!(10.0)),
            ]),
        ),
        Action::AwaitHealthy { .. } => ("healthy", facts(&[("notes.app.1", json!("healthy"))])),
        Action::AwaitService { .. } => ("healthy", Facts::new()),
        Action::LiftFence { .. } => ("lifted", Facts::new()),
        _ => ("done", Facts::new()),
    }
}

fn counted(acknowledged: u64, lost: u64, first_lost_at: Option<&str>) -> Losses {
    Losses {
        acknowledged,
        present: acknowledged - lost,
        lost,
        wrong: 0,
        first_lost_at: first_lost_at.map(|at| at.parse().unwrap()),
        counted_at: "2026-11-21T03:00:20Z".parse().unwrap(),
        counted_by: "the load client's ledger".into(),
    }
}

/// What a reader sees first, as lines.
fn summary(evidence: &Evidence) -> String {
    let measure = |name: &str, measure: &Measure| {
        format!(
            "{name}: proven {:?}, at most {:?}, objective {}, {:?}\n  {}\n",
            measure.proven_seconds.map(rounded),
            measure.at_most_seconds.map(rounded),
            measure.objective_seconds,
            measure.judgement,
            measure.how
        )
    };
    let mut text = format!("{:?}: {}\n", evidence.tone, evidence.verdict);
    text += &evidence.reservations.iter().map(|line| format!("  ! {line}\n")).collect::<String>();
    text += &measure("RPO", &evidence.rpo);
    text += &measure("RTO", &evidence.rto);
    text += &format!("protected again: {:?}\n", evidence.protected_again);
    for check in &evidence.checks {
        text += &format!("{:?}: {} ({})\n", check.result, check.what, check.detail);
    }
    text += &evidence.not_checked.iter().map(|line| format!("not checked: {line}\n")).collect::<String>();
    text
}

fn rounded(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

#[test]
fn a_failover_that_lost_a_little_is_measured_from_the_disaster() {
    let mut journal = Journal::start(runbook(Purpose::Failover, "site-lost"), Some(DISASTER));
    journal.run(&Script::new());
    let evidence = journal.evidence(Some(counted(1000, 3, Some("2026-11-21T02:59:55.6Z"))));
    assert_eq!(evidence.state, RunState::Completed);
    assert_snapshot!(summary(&evidence), @r"
    Good: notes recovered at south, within its objectives
    RPO: proven Some(1.4), at most None, objective 5, Met
      from the first acknowledged write that was lost until the disaster, counted by the load client's ledger
    RTO: proven Some(9.5), at most None, objective 60, Met
      from the disaster until the service was healthy and a canary was read back through its name
    protected again: Some(true)
    Passed: Prove that north does not write any more (proven)
    Passed: Compare what is durable in the vaults with the disaster's moment; up to 5s is approved (within)
    Passed: Look whether the standby at south can be promoted (usable)
    Passed: Wait until `app` is healthy at south (healthy)
    Passed: Wait until notes.example.com. is healthy through its own name (healthy)
    Passed: Read a canary back that was written before (read)
    Passed: Wait until south is protected outside itself, with RPO now within 5s (done)
    Passed: Count acknowledged writes (the load client's ledger) (1000 acknowledged, 997 present, 3 lost (within the objective), 0 with other content)
    ");
}

#[test]
fn without_a_count_of_writes_the_loss_is_bounded_and_not_called_proven() {
    let mut journal = Journal::start(runbook(Purpose::Failover, "site-lost"), Some(DISASTER));
    journal.run(&Script::new());
    let evidence = journal.evidence(None);
    assert_eq!((evidence.rpo.proven_seconds, evidence.rpo.judgement), (None, Judgement::MetAsFarAsSeen));
    assert_eq!(evidence.tone, Tone::Doubtful);
    assert_snapshot!(evidence.rpo.how, @"everything older than that was in a vault at the disaster; writes were not counted");

    // One data set of which nobody knows anything makes the whole unproven.
    let mut journal = Journal::start(runbook(Purpose::Failover, "site-lost"), Some(DISASTER));
    let unknown = Facts::from([("entries".to_owned(), json!({ "loss_seconds_estimated": null }))]);
    journal.run(&Script::from([("assess-loss".to_owned(), (0.1, Ok(("within", unknown))))]));
    let evidence = journal.evidence(None);
    assert_eq!((evidence.rpo.at_most_seconds, evidence.rpo.judgement), (None, Judgement::Unproven));
}

#[test]
fn an_unknown_disaster_time_proves_no_time_away() {
    let mut journal = Journal::start(runbook(Purpose::Failover, "site-lost"), None);
    journal.run(&Script::new());
    let evidence = journal.evidence(Some(counted(10, 0, None)));
    assert_eq!((evidence.rto.proven_seconds, evidence.rto.judgement), (None, Judgement::Unproven));
    assert_eq!(evidence.rpo.proven_seconds, Some(0.0));
    assert_snapshot!(evidence.verdict, @"notes recovered at south; not every objective is proven");
}

#[test]
fn a_missed_objective_is_no_success() {
    let mut journal = Journal::start(runbook(Purpose::Failover, "site-lost"), Some(DISASTER));
    journal.run(&Script::from([("await-app".to_owned(), (61.0, Ok(("healthy", Facts::new()))))]));
    let evidence = journal.evidence(Some(counted(10, 1, Some("2026-11-21T02:59:50Z"))));
    assert_eq!((evidence.rto.judgement, evidence.rpo.judgement), (Judgement::Missed, Judgement::Missed));
    assert_eq!((evidence.tone, evidence.rpo.proven_seconds), (Tone::Bad, Some(7.0)));
    assert_snapshot!(evidence.verdict, @"notes recovered at south, but the objectives for data loss and time away were missed");
}

#[test]
fn a_canary_that_was_not_read_leaves_the_time_away_unproven() {
    let mut journal = Journal::start(runbook(Purpose::Failover, "site-lost"), Some(DISASTER));
    journal.run(&Script::from([("read-canary".to_owned(), (1.0, Err("notes.example.com. answered 404")))]));
    journal.record(Event::Skipped {
        step: "read-canary".into(),
        by: "ben".into(),
        reason: "it was never written".into(),
    });
    journal.run(&Script::new());
    let evidence = journal.evidence(Some(counted(10, 0, None)));
    assert_snapshot!(summary(&evidence), @r"
    Doubtful: notes recovered at south, with exceptions
      ! Time away is unproven: the service was healthy 9.0 s after the disaster, but no canary was read back: it was not done.
      ! Read a canary back that was written before: not done (skipped: it was never written (ben)).
    RPO: proven Some(0.0), at most None, objective 5, Met
      10 of 10 acknowledged writes are there with the right content, counted by the load client's ledger
    RTO: proven None, at most None, objective 60, Unproven
      the service was healthy 9.0 s after the disaster, but no canary was read back: it was not done
    protected again: Some(true)
    Passed: Prove that north does not write any more (proven)
    Passed: Compare what is durable in the vaults with the disaster's moment; up to 5s is approved (within)
    Passed: Look whether the standby at south can be promoted (usable)
    Passed: Wait until `app` is healthy at south (healthy)
    Passed: Wait until notes.example.com. is healthy through its own name (healthy)
    NotDone: Read a canary back that was written before (skipped: it was never written (ben))
    Passed: Wait until south is protected outside itself, with RPO now within 5s (done)
    Passed: Count acknowledged writes (the load client's ledger) (10 acknowledged, 10 present, 0 lost, 0 with other content)
    ");
}

#[test]
fn an_attested_fence_is_shown_as_a_persons_word() {
    let mut journal = Journal::start(runbook(Purpose::Failover, "site-lost"), Some(DISASTER));
    journal.run(&Script::from([("fence-north".to_owned(), (2.0, Err("attest: north is switched off")))]));
    let held = journal.evidence(None);
    assert_snapshot!(held.verdict, @"Not recovered yet: the run is held and waits for a person");
    assert_snapshot!(format!("{:?}", held.waiting_for), @r#"
    {"fence-north": "attestation of “north is switched off”: north cannot be reached"}
    "#);
    journal.now_seconds += 20.0;
    journal.record(Event::Attested {
        step: "fence-north".into(),
        by: "ben".into(),
        statement: "north is switched off".into(),
        at: STARTED.into(),
        signature: "5a".repeat(64),
    });
    journal.run(&Script::new());
    let evidence = journal.evidence(Some(counted(10, 0, None)));
    assert_eq!(evidence.tone, Tone::Doubtful);
    assert_snapshot!(evidence.reservations.join("\n"), @"Prove that north does not write any more: a person's word stands in place of a proof.");
    assert_eq!(evidence.words.len(), 1);
    // The time that people took is time away, too.
    assert!(evidence.rto.proven_seconds.unwrap() > 25.0, "{:?}", evidence.rto);
}

#[test]
fn a_run_that_took_everything_back_recovered_nothing() {
    let mut journal = Journal::start(runbook(Purpose::Failover, "site-lost"), Some(DISASTER));
    journal.run(&Script::from([("claim-epoch".to_owned(), (0.2, Err("the arbiter's directory is gone")))]));
    let evidence = journal.evidence(None);
    assert_eq!((evidence.state, evidence.tone), (RunState::Failed, Tone::Bad));
    assert_snapshot!(summary(&evidence), @r"
    Bad: Not recovered: the run failed: step claim-epoch failed: the arbiter's directory is gone
      ! Claim epoch 2 of `notes` for south: the arbiter's directory is gone.
    RPO: proven None, at most None, objective 5, Unproven
      neither acknowledged writes nor a canary's age were measured
    RTO: proven None, at most None, objective 60, Unproven
      the service was not asked for its health through its name: it was not done
    protected again: Some(false)
    NotDone: Prove that north does not write any more (the run did not come to it)
    NotDone: Compare what is durable in the vaults with the disaster's moment; up to 5s is approved (the run did not come to it)
    NotDone: Look whether the standby at south can be promoted (the run did not come to it)
    NotDone: Wait until `app` is healthy at south (the run did not come to it)
    NotDone: Wait until notes.example.com. is healthy through its own name (the run did not come to it)
    NotDone: Read a canary back that was written before (the run did not come to it)
    NotDone: Wait until south is protected outside itself, with RPO now within 5s (the run did not come to it)
    not checked: acknowledged writes: nobody counted which of them are still there, so what was lost is not known exactly
    ");
}

#[test]
fn a_clock_that_is_set_during_the_run_moves_no_duration() {
    let mut straight = Journal::start(runbook(Purpose::Failover, "site-lost"), Some(DISASTER));
    straight.run(&Script::new());
    let mut jumping = Journal::start(runbook(Purpose::Failover, "site-lost"), Some(DISASTER));
    jumping.wall_off_seconds = -3600.0;
    jumping.run(&Script::new());
    let (straight, jumping) = (straight.evidence(None), jumping.evidence(None));
    assert_eq!(straight.rto.proven_seconds.map(rounded), jumping.rto.proven_seconds.map(rounded));
    assert_eq!(jumping.steps[3].from_seconds.map(rounded), straight.steps[3].from_seconds.map(rounded));
    assert_snapshot!(jumping.notes[0].text, @"the clock was set by -3600.0 s during the run; durations do not depend on it");
}

#[test]
fn ways_home_are_measured_from_the_planned_stop() {
    let mut journal = Journal::start(runbook(Purpose::Failback, "site-lost"), None);
    journal.run(&Script::new());
    let evidence = journal.evidence(Some(counted(2000, 0, None)));
    assert_eq!((evidence.rto.judgement, evidence.rpo.proven_seconds), (Judgement::Met, Some(0.0)));
    assert_snapshot!(format!("{}\n{}", evidence.verdict, evidence.rto.how), @r"
    notes is home at north, within its objectives
    from the planned stop of the service until the service was healthy and a canary was read back through its name
    ");

    let mut journal = Journal::start(runbook(Purpose::Rewind, "data-corrupted"), None);
    journal.run(&Script::new());
    let evidence = journal.evidence(None);
    assert_eq!(evidence.rpo.judgement, Judgement::NotAsked);
    assert_snapshot!(evidence.verdict, @"notes is back at an earlier moment, within its objectives");
}

/// What a forger does to a file.
type Change = fn(&mut serde_json::Value);

#[test]
fn a_document_is_verified_from_its_journal_and_any_change_is_found() {
    let mut journal = Journal::start(runbook(Purpose::Failover, "site-lost"), Some(DISASTER));
    journal.run(&Script::new());
    let key = SigningKey::generate().unwrap();
    let document = seal("r1", journal.sealed.clone(), Some(counted(10, 0, None)), &key).unwrap();
    let text = serde_json::to_string_pretty(&document).unwrap();
    let (read, signer) = verify(text.as_bytes()).unwrap();
    assert_eq!((read, signer), (document.clone(), key.public()));

    let changes: [(&str, Change); 6] = [
        ("verdict", |file| file["verdict"] = json!("all is well")),
        ("measure", |file| file["rto"]["proven_seconds"] = json!(0.1)),
        ("losses", |file| file["losses"]["lost"] = json!(1)),
        ("entry", |file| file["journal"][3]["body"] = json!("{}")),
        ("missing entry", |file| {
            file["journal"].as_array_mut().unwrap().pop();
        }),
        ("signature", |file| file["signature"]["signature"] = json!("00".repeat(64))),
    ];
    for (what, change) in changes {
        let mut file: serde_json::Value = serde_json::from_str(&text).unwrap();
        change(&mut file);
        let error = verify(file.to_string().as_bytes()).unwrap_err();
        assert!(error.to_string().contains("do not rely on this evidence"), "{what}: {error}");
    }
    // Another's signature over another's count is found, too: the statement names what was counted.
    let mut other = seal("r1", journal.sealed, Some(counted(11, 0, None)), &SigningKey::generate().unwrap()).unwrap();
    other.evidence = document.evidence;
    assert!(verify(&serde_json::to_vec(&other).unwrap()).is_err());
    assert!(verify(b"{}").is_err());
}

#[test]
fn nothing_hostile_gets_out_of_its_place_on_the_page() {
    let evil = "<script>alert(1)</script>\"'><img src=x onerror=y>";
    let mut book = runbook(Purpose::Failover, "site-lost");
    book.service = evil.into();
    book.scenario = evil.into();
    book.not_covered.push(evil.into());
    for step in &mut book.steps {
        step.title = evil.into();
    }
    let mut journal = Journal::start(book, Some(DISASTER));
    journal.record(Event::Note { text: evil.into() });
    let facts =
        Facts::from([(evil.to_owned(), json!({ evil: [evil, { evil: evil }] })), ("plain".into(), json!(evil))]);
    journal.run(&Script::from([("fence-north".to_owned(), (2.0, Ok(("proven", facts))))]));
    let mut losses = counted(10, 0, None);
    losses.counted_by = evil.into();
    let page = page(&journal.evidence(Some(losses)), None);
    assert!(!page.contains("<script") && !page.contains("<img"), "{page}");
    // No quotation mark of the text ends an attribute: what follows `title=` is one whole, escaped value.
    assert!(!page.contains("\"'>"), "{page}");
    assert!(page.contains("&lt;script&gt;"));
}

#[test]
fn the_page_loads_nothing_and_says_what_matters() {
    let mut journal = Journal::start(runbook(Purpose::Failover, "site-lost"), Some(DISASTER));
    journal.run(&Script::new());
    let key = SigningKey::generate().unwrap();
    let document = seal("r1", journal.sealed, Some(counted(1000, 3, Some("2026-11-21T02:59:55.6Z"))), &key).unwrap();
    let page = page(&document.evidence, Some(&document.signature));
    for outside in ["http://", "https://", "src=", "<link", "@import", "url(", "<script"] {
        assert!(!page.contains(outside), "{outside}");
    }
    let evidence = &document.evidence;
    for needed in [
        &evidence.verdict,
        &evidence.journal_hash,
        &evidence.runbook_hash,
        &evidence.plan_hash,
        "sites are process groups on one machine",
        "997 of 1000 are there",
        "no process of the site",
        &key.public().to_string(),
    ] {
        assert!(page.contains(needed), "{needed}");
    }
    // For eyes: `EVIDENCE_PAGE=/tmp/page.html cargo test -p lifeboat-engine the_page_loads` keeps the page.
    if let Some(path) = std::env::var_os("EVIDENCE_PAGE") {
        std::fs::write(path, page).unwrap();
    }
}

#[test]
fn durations_are_said_as_people_say_them() {
    let said: Vec<String> =
        [0.0, 0.04, 9.94, 9.96, 119.4, 252.0, 7500.0, 200_000.0].map(super::judge::people_seconds).into();
    assert_eq!(said, ["0.0 s", "0.0 s", "9.9 s", "10 s", "119 s", "4 min 12 s", "2 h 5 min", "2 d 7 h"]);
}

#[test]
fn a_write_that_was_lost_after_the_disaster_makes_no_loss_of_zero() {
    let mut journal = Journal::start(runbook(Purpose::Failover, "site-lost"), Some(DISASTER));
    journal.run(&Script::new());
    let evidence = journal.evidence(Some(counted(500, 400, Some("2027-01-01T00:00:00Z"))));
    assert_eq!((evidence.rpo.proven_seconds, evidence.rpo.judgement), (None, Judgement::Unproven));
    assert!(evidence.rpo.how.contains("something went on writing"), "{}", evidence.rpo.how);
    let count = evidence.checks.iter().find(|check| check.what.starts_with("Count acknowledged")).unwrap();
    assert_eq!(count.result, CheckResult::Failed);
}

#[test]
fn without_the_disasters_moment_the_time_away_is_unproven() {
    let mut journal = Journal::start(runbook(Purpose::Failover, "site-lost"), None);
    journal.run(&Script::new());
    let evidence = journal.evidence(None);
    assert_eq!((evidence.rto.proven_seconds, evidence.rto.judgement), (None, Judgement::Unproven));
    assert!(evidence.rto.how.contains("--disaster-at"), "{}", evidence.rto.how);
}

#[test]
fn what_was_really_restored_bounds_the_loss_and_giving_way_is_said() {
    let mut journal = Journal::start(runbook(Purpose::Failover, "site-lost"), Some(DISASTER));
    let mut script = Script::from([("inspect-standby".to_owned(), (0.1, Ok(("unusable", Facts::new()))))]);
    let disaster: Timestamp = DISASTER.parse().unwrap();
    let as_of = disaster - jiff::SignedDuration::from_secs(13);
    let facts = Facts::from([
        ("as_of".to_owned(), as_of.to_string().into()),
        ("gave_way".to_owned(), vec!["near, the newest: a chunk is missing"].into()),
    ]);
    script.insert("restore-entries".to_owned(), (0.5, Ok(("restored", facts))));
    journal.run(&script);
    let evidence = journal.evidence(None);
    assert!(evidence.rpo.at_most_seconds.unwrap() >= 13.0, "{:?}", evidence.rpo);
    assert_ne!(evidence.rpo.judgement, Judgement::MetAsFarAsSeen);
    assert!(
        evidence.reservations.iter().any(|said| said.contains("a chunk is missing")),
        "{:?}",
        evidence.reservations
    );
}

#[test]
fn a_vault_that_could_not_be_read_when_the_loss_was_assessed_is_a_reservation() {
    let mut journal = Journal::start(runbook(Purpose::Failover, "site-lost"), Some(DISASTER));
    let reach = serde_json::json!({
        "recoverable_to": "2026-11-21T02:59:55Z", "loss_seconds_estimated": 2.0, "findings": ["near: it is not there"],
    });
    let facts = Facts::from([("entries".to_owned(), reach), ("disaster_at".to_owned(), DISASTER.into())]);
    journal.run(&Script::from([("assess-loss".to_owned(), (0.1, Ok(("within", facts))))]));
    let evidence = journal.evidence(None);
    assert_snapshot!(
        evidence.reservations.iter().find(|said| said.contains("near")).unwrap(),
        @"What the vaults hold of `entries` was less certain than it looks: near: it is not there."
    );
    assert_eq!(evidence.tone, Tone::Doubtful);
}

#[test]
fn a_corrupt_newest_point_that_was_passed_by_stands_in_the_verdict() {
    let mut journal = Journal::start(runbook(Purpose::Failover, "site-lost"), Some(DISASTER));
    let mut script = Script::from([("inspect-standby".to_owned(), (0.1, Ok(("unusable", Facts::new()))))]);
    let passed_by = "recovery point north/entries/0000000007 of then in `near` is known to be corrupt and was passed by: \
                     240.0 s of its data are lost with it";
    let facts = Facts::from([
        ("as_of".to_owned(), DISASTER.into()),
        ("gave_way".to_owned(), Vec::<String>::new().into()),
        ("passed_by".to_owned(), vec![passed_by].into()),
    ]);
    script.insert("restore-entries".to_owned(), (0.5, Ok(("restored", facts))));
    journal.run(&script);
    let evidence = journal.evidence(None);
    let said: Vec<_> = evidence.reservations.iter().filter(|said| said.contains("known to be corrupt")).collect();
    assert_eq!(said.len(), 1, "{:?}", evidence.reservations);
    assert!(said[0].starts_with("`entries` is older than") && said[0].contains("240.0 s"), "{said:?}");
}
