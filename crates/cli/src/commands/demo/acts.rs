//! The demo's acts: protection, disaster, recovery, proof, failback, corruption.
//!
//! Invariant: each act ends by looking at what it claims; figures come from the client's list and the runs' journals.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_adapters::probe::NetworkProbe;
use lifeboat_adapters::site::local::kill_site;
use lifeboat_core::plan::HttpExchange;
use lifeboat_engine::evidence::{Document, Evidence, Losses, Measure};
use lifeboat_engine::port::{Probe, ServiceDoor};
use lifeboat_logbook::{Kind, Reconciled};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Strategy;
use super::stage::{AWAY, HOME, NAME, SERVICE, Stage};
use super::story::{Rewound, Story};
use crate::commands::block_on;
use crate::error::{CommandError, Explain};

/// Enough to lose some of: entries and uploads.
const WRITES_BEFORE: u64 = 120;
/// As many again at the other site, before it goes home.
const WRITES_THERE: u64 = 60;
const LEDGER: &str = "evidence/ledger.jsonl";
/// A stream ships what is new every 0.1 s, and the state nearest before a moment may lie a piece or two earlier.
const GRAIN: Duration = Duration::from_millis(300);
const RATE: &str = "40";
const LONG: Duration = Duration::from_secs(40);

pub(super) fn play(stage: &mut Stage<'_>, strategy: Strategy) -> Result<Story, CommandError> {
    protect(stage)?;
    let disaster = destroy(stage)?;
    let (run, evidence) = recover(stage, disaster)?;
    let after_failover = count_after_failover(stage, disaster)?;
    let losses = losses(&after_failover);
    let evidence = write_evidence(stage, "failover", &run, Some(&losses), evidence)?;
    let (failback_run, after_failback) = fail_back(stage, &after_failover)?;
    let rewound = corrupt_and_rewind(stage, &missing(&after_failback))?;
    Ok(Story {
        strategy,
        run,
        failback_run,
        evidence: stage.path("evidence/failover.html"),
        disaster_at: disaster,
        losses,
        uploads_lost: count(&after_failover, Kind::Upload),
        first_lost_at: after_failover.first_lost_at(),
        present_after_failback: after_failback.present,
        acknowledged_at_failback: after_failback.acknowledged,
        lost_in_failback: missing(&after_failback).difference(&missing(&after_failover)).count() as u64,
        rpo: evidence.rpo,
        rto: evidence.rto,
        verdict: evidence.verdict,
        reservations: evidence.reservations,
        client_outage_seconds: client_outage_seconds(stage, disaster)?,
        rewound,
    })
}

/// The service runs at home, is protected outside it, and is written to.
fn protect(stage: &mut Stage<'_>) -> Result<(), CommandError> {
    stage.act(
        "Protect",
        &format!(
            "{SERVICE} runs at {HOME} over {}; what it writes goes to a vault outside, sealed to two keys",
            stage.database.name()
        ),
    );
    stage.start("dns", &["dns", "--state", &stage.text("outside/name-server")])?;
    stage.verb(&["up", SERVICE, "--yes"])?;
    let state = stage.text("outside/client");
    stage.start("canary", &["canary", SERVICE, "--state", &state])?;
    start_load(stage)?;
    let written =
        stage.wait_until("the first writes to be acknowledged", LONG, |stage| acknowledged(stage, WRITES_BEFORE))?;
    stage.say(&format!("a client has {written} writes acknowledged, and keeps a list of them"));
    Ok(())
}

fn start_load(stage: &mut Stage<'_>) -> Result<(), CommandError> {
    let (authority, port) = (stage.authority.to_string(), stage.service_port().to_string());
    let ledger = stage.text(LEDGER);
    let door = ["--name", NAME, "--authority", &authority, "--port", &port];
    let arguments = [&["logbook", "load"], &door[..], &["--ledger", &ledger, "--rate", RATE]].concat();
    stage.start("load", &arguments)
}

/// How many writes the client has on its list, once there are `enough`.
fn acknowledged(stage: &Stage<'_>, enough: u64) -> Result<Result<u64, String>, CommandError> {
    let path = stage.path(LEDGER);
    let written = if path.exists() { lifeboat_logbook::read_ledger(&path)?.acknowledged.len() as u64 } else { 0 };
    Ok(if written >= enough { Ok(written) } else { Err(format!("{written} of {enough} so far")) })
}

/// Answers when nothing of the site was left. What was acknowledged by then was acknowledged by it, so an earlier moment would make the
/// loss look smaller than it is.
fn destroy(stage: &mut Stage<'_>) -> Result<Timestamp, CommandError> {
    stage.act("Disaster", &format!("every process at {HOME} is killed, and its volumes are deleted"));
    let destroyed = kill_site(&stage.site_root(HOME), true)?;
    let at = Timestamp::now();
    if destroyed.processes.is_empty() || !destroyed.volumes {
        return Err(CommandError::failed(format!("there was nothing at {HOME} to destroy: {destroyed:?}")));
    }
    stage.say(&format!("{} processes killed, the volumes are gone", destroyed.processes.len()));
    Ok(at)
}

fn recover(stage: &mut Stage<'_>, disaster_at: Timestamp) -> Result<(String, Evidence), CommandError> {
    stage.act("Recovery", &format!("lifeboat failover {SERVICE}: {AWAY} takes over"));
    let (key, at) = (stage.text("keys/owner.key"), disaster_at.to_string());
    let ran = stage.verb(&["failover", SERVICE, "--key", &key, "--disaster-at", &at, "--yes"])?;
    let evidence: Evidence = read_as(ran.document, "the failover's evidence")?;
    Ok((evidence.run.clone(), evidence))
}

/// Waits until the client has written at the new site, then counts what was acknowledged before.
fn count_after_failover(stage: &mut Stage<'_>, disaster: Timestamp) -> Result<Reconciled, CommandError> {
    stage.act("Proof", "each write that was acknowledged before the disaster is asked for");
    let before = acknowledged_before(stage, disaster)?;
    stage.wait_until("the client to be served again", LONG, |stage| acknowledged(stage, before + WRITES_THERE))?;
    let found = reconcile(stage, Some(disaster))?;
    stage.say(&format!(
        "{} acknowledged before the disaster, {} are there, {} are lost",
        found.acknowledged,
        found.present,
        found.acknowledged - found.present
    ));
    Ok(found)
}

fn acknowledged_before(stage: &Stage<'_>, moment: Timestamp) -> Result<u64, CommandError> {
    let ledger = lifeboat_logbook::read_ledger(&stage.path(LEDGER))?;
    Ok(ledger.acknowledged.iter().filter(|write| write.acknowledged_at <= moment).count() as u64)
}

/// How long the client, which follows the name as any other would, was not served after the disaster.
fn client_outage_seconds(stage: &Stage<'_>, disaster_at: Timestamp) -> Result<Option<f64>, CommandError> {
    let ledger = lifeboat_logbook::read_ledger(&stage.path(LEDGER))?;
    let outage = ledger.outages.iter().find(|outage| outage.first_success_at.is_some_and(|end| end > disaster_at));
    Ok(outage.and_then(|outage| outage.first_success_at).map(|end| end.duration_since(disaster_at).as_secs_f64()))
}

fn fail_back(stage: &mut Stage<'_>, before: &Reconciled) -> Result<(String, Reconciled), CommandError> {
    stage.act("Failback", &format!("lifeboat failback {SERVICE}: {HOME} is there again, and the service goes home"));
    let key = stage.text("keys/owner.key");
    let ran = stage.verb(&["failback", SERVICE, "--key", &key, "--yes"])?;
    let evidence: Evidence = read_as(ran.document, "the failback's evidence")?;
    let ended = Timestamp::now();
    let served = acknowledged_before(stage, ended)?;
    stage.wait_until("the client to be served at home", LONG, |stage| acknowledged(stage, served + 20))?;
    let found = reconcile(stage, None)?;
    let lost = missing(&found).difference(&missing(before)).count();
    stage.say(&format!(
        "{} acknowledged in all, {} are there: {lost} lost by going home",
        found.acknowledged, found.present
    ));
    let losses = Losses { counted_by: COUNTED_BY.into(), ..self::losses(&found) };
    write_evidence(
        stage,
        "failback",
        &evidence.run.clone(),
        (lost == 0 && losses.lost == 0).then_some(&losses),
        evidence.clone(),
    )?;
    Ok((evidence.run, found))
}

fn corrupt_and_rewind(stage: &mut Stage<'_>, missing_before: &BTreeSet<String>) -> Result<Rewound, CommandError> {
    stage.act(
        "Corruption",
        "a bad release destroys data inside the service; no machine fails, and replicas copy the damage",
    );
    let good = Timestamp::now();
    let written = acknowledged_before(stage, good)?;
    stage.wait_until("writes after the last good moment", LONG, |stage| acknowledged(stage, written + 20))?;
    corrupt(stage)?;
    let damage = reconcile(stage, Some(good))?;
    let damaged: BTreeSet<String> = missing(&damage).difference(missing_before).cloned().collect();
    if damaged.is_empty() {
        return Err(CommandError::failed("the corruption damaged nothing, so taking it back would prove nothing"));
    }
    stage.say(&format!("{} of {} acknowledged writes are gone or wrong", damaged.len(), damage.acknowledged));
    stage.say(&format!("lifeboat failover {SERVICE} --scenario data-corrupted --at {}", seconds_of(good)));
    let (key, at) = (stage.text("keys/owner.key"), good.to_string());
    let verb = ["failover", SERVICE, "--scenario", "data-corrupted", "--at", &at, "--key", &key, "--yes"];
    let evidence: Evidence = read_as(stage.verb(&verb)?.document, "the return's evidence")?;
    let found = reconcile(stage, Some(good))?;
    let gone = |kind, by: Timestamp| {
        let judged = found.missing.iter().chain(&found.wrong_content);
        let new = judged.filter(|judged| judged.kind == kind && !missing_before.contains(&judged.id));
        new.filter(|judged| judged.acknowledged_at <= by).count() as u64
    };
    write_evidence(stage, "return", &evidence.run.clone(), None, evidence.clone())?;
    stage.say(&format!(
        "{} of {} writes acknowledged by {} are there again",
        found.present,
        found.acknowledged - missing_before.len() as u64,
        seconds_of(good)
    ));
    Ok(Rewound {
        run: evidence.run,
        to: good,
        damaged: damaged.len() as u64,
        acknowledged: found.acknowledged - missing_before.len() as u64,
        present: found.present,
        entries_missing: gone(Kind::Entry, good - GRAIN),
        entries_of_the_last_moment: gone(Kind::Entry, good) - gone(Kind::Entry, good - GRAIN),
        uploads_missing: gone(Kind::Upload, good),
        given_up: acknowledged_before(stage, Timestamp::now())? - acknowledged_before(stage, good)?,
    })
}

fn corrupt(stage: &Stage<'_>) -> Result<(), CommandError> {
    let door = ServiceDoor {
        name: NAME.into(),
        authority: Some(stage.authority.to_string()),
        port: Some(stage.service_port()),
    };
    let request = HttpExchange { request: "POST /corrupt".into(), body: None, expect: None };
    let (status, body) = block_on(async { Ok(NetworkProbe::default().exchange(&door, &request).await?) })?;
    if !(200..300).contains(&status) {
        return Err(CommandError::failed(format!("the service would not be corrupted: it answered {status}: {body}")));
    }
    Ok(())
}

/// Asks the service, through its name, for each write on the client's list.
fn reconcile(stage: &Stage<'_>, until: Option<Timestamp>) -> Result<Reconciled, CommandError> {
    let (authority, port, ledger) = (stage.authority.to_string(), stage.service_port().to_string(), stage.text(LEDGER));
    let until = until.map(|until| until.to_string());
    let mut arguments =
        vec!["logbook", "reconcile", "--name", NAME, "--authority", &authority, "--port", &port, "--ledger", &ledger];
    if let Some(until) = &until {
        arguments.extend(["--until", until]);
    }
    read_as(stage.run(&arguments)?.document, "the count of what is there")
}

fn missing(found: &Reconciled) -> BTreeSet<String> {
    found.missing.iter().chain(&found.wrong_content).map(|judged| judged.id.clone()).collect()
}

fn count(found: &Reconciled, kind: Kind) -> u64 {
    found.missing.iter().chain(&found.wrong_content).filter(|judged| judged.kind == kind).count() as u64
}

const COUNTED_BY: &str = "the demo's load client, from its own list of acknowledged writes";

fn losses(found: &Reconciled) -> Losses {
    Losses {
        acknowledged: found.acknowledged,
        present: found.present,
        lost: found.missing.len() as u64,
        wrong: found.wrong_content.len() as u64,
        first_lost_at: found.first_lost_at(),
        counted_at: Timestamp::now(),
        counted_by: COUNTED_BY.into(),
    }
}

/// Writes a run's page and signed document; answers what they say.
fn write_evidence(
    stage: &Stage<'_>,
    name: &str,
    run: &str,
    losses: Option<&Losses>,
    without: Evidence,
) -> Result<Evidence, CommandError> {
    let counted = stage.text(&format!("evidence/{name}.losses.json"));
    let mut told = without;
    for form in ["html", "json"] {
        let file = stage.text(&format!("evidence/{name}.{form}"));
        let mut arguments = vec!["evidence", run, "-o", &file];
        if let Some(losses) = losses {
            fs::write(&counted, serde_json::to_vec_pretty(losses)?)?;
            arguments.extend(["--losses", &counted]);
        }
        stage.run(&arguments)?;
        if form == "json" {
            told = serde_json::from_slice::<Document>(&fs::read(&file)?)?.evidence;
        }
    }
    Ok(told)
}

fn read_as<T: DeserializeOwned>(document: Value, what: &str) -> Result<T, CommandError> {
    serde_json::from_value(document).saying(|| format!("{what} could not be read"))
}

pub(super) fn seconds_of(moment: Timestamp) -> String {
    moment.strftime("%H:%M:%SZ").to_string()
}

/// A figure that was proven, or that it was not.
pub(super) fn proven(measure: &Measure) -> String {
    match measure.proven_seconds {
        Some(seconds) if seconds < 1.0 => format!("{seconds:.2} s"),
        Some(seconds) => format!("{seconds:.1} s"),
        None => "not proven".into(),
    }
}
