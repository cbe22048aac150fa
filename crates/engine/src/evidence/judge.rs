//! What the journal proves: objectives against measures, checks, and the verdict.
//!
//! Invariant: an objective is met only by something that was measured; a check that was skipped, failed or never
//! reached is not passed; a person's word is shown as a person's word.

use std::collections::BTreeMap;

use jiff::Timestamp;
use lifeboat_core::plan::Strategy;
use lifeboat_core::run::{Entry, RunState, RunView, StepView};
use lifeboat_core::runbook::{Action, Purpose, Step};
use serde_json::Value;

use super::time::{Line, began, ended};
use super::{CanaryRead, Check, CheckResult, Judgement, Losses, Measure, Tone};

fn steps(view: &RunView) -> impl Iterator<Item = (&Step, &StepView)> {
    view.runbook.steps.iter().zip(&view.steps)
}

fn is_done(step: &StepView) -> bool {
    step.status == "done"
}

/// The newest canary that was read back, with its facts as the step recorded them.
pub(super) fn canary(view: &RunView, disaster_at: Option<Timestamp>) -> Option<CanaryRead> {
    let reads = steps(view).filter(|(step, seen)| matches!(step.action, Action::ReadCanary { .. }) && is_done(seen));
    let (_, seen) = reads.last()?;
    let time =
        |name: &str| seen.facts.get(name).and_then(Value::as_str).and_then(|text| text.parse::<Timestamp>().ok());
    let written_at = time("written_at");
    let before = written_at.zip(disaster_at).map(|(written, disaster)| disaster.duration_since(written).as_secs_f64());
    Some(CanaryRead {
        number: seen.facts.get("number").and_then(Value::as_u64),
        written_at,
        read_at: time("read_at"),
        // One that was written afterwards says nothing of what was lost before.
        before_disaster_seconds: before.filter(|seconds| *seconds >= 0.0),
    })
}

/// From the disaster until the service's health was good and a canary was read back.
pub(super) fn rto(view: &RunView, entries: &[Entry], line: &Line) -> Measure {
    let objective_seconds = view.runbook.objective.rto.as_seconds();
    let unproven = |how: String| Measure {
        objective_seconds,
        proven_seconds: None,
        at_most_seconds: None,
        judgement: Judgement::Unproven,
        how,
    };
    let (zero, from) = match zero(view, entries, line) {
        Ok(zero) => zero,
        Err(why) if view.runbook.purpose == Purpose::Start => {
            return Measure { judgement: Judgement::NotAsked, ..unproven(why) };
        }
        Err(why) => return unproven(why),
    };
    let proof = |wanted: fn(&Action) -> bool| {
        let mut of_kind =
            steps(view).filter(|(step, seen)| wanted(&step.action) && seen.status != "not-taken").peekable();
        if of_kind.peek().is_none() {
            return Err("the run-book does not ask for it");
        }
        let mut last: f64 = 0.0;
        for (_, seen) in of_kind {
            match ended(entries, &seen.id).filter(|_| is_done(seen)) {
                Some(index) => last = last.max(line.at(index)),
                None => return Err("it was not done"),
            }
        }
        Ok(last)
    };
    let healthy = proof(|action| matches!(action, Action::AwaitService { .. }));
    let read = proof(|action| matches!(action, Action::ReadCanary { .. }));
    match (healthy, read) {
        (Ok(healthy), Ok(read)) => {
            let proven = (healthy.max(read) - zero).max(0.0);
            let judgement = if proven <= objective_seconds { Judgement::Met } else { Judgement::Missed };
            let how = format!("from {from} until the service was healthy and a canary was read back through its name");
            let how = how + &thawed(view).map_or_else(String::new, |thawed| format!("; {thawed}"));
            Measure { objective_seconds, proven_seconds: Some(proven), at_most_seconds: None, judgement, how }
        }
        (Ok(healthy), Err(why)) => unproven(format!(
            "the service was healthy {} after {from}, but no canary was read back: {why}",
            people_seconds(healthy - zero)
        )),
        (Err(why), _) => unproven(format!("the service was not asked for its health through its name: {why}")),
    }
}

/// What of that time was spent on waiting for archived packs.
fn thawed(view: &RunView) -> Option<String> {
    let restores = steps(view).filter(|(step, seen)| matches!(step.action, Action::Restore { .. }) && is_done(seen));
    let waits = restores.filter_map(|(step, seen)| {
        let Action::Restore { volume, .. } = &step.action else { return None };
        let thawed = seen.facts.get("thawed").and_then(Value::as_array)?.last()?;
        let readable_at: Timestamp = thawed.get("readable_at")?.as_str()?.parse().ok()?;
        let what = thawed.get("what")?.as_str()?;
        let waited = readable_at.duration_since(seen.started_at?).as_secs_f64();
        Some(format!(
            "{} of it until what was archived of `{}` could be read: {what}",
            people_seconds(waited),
            volume.dataset
        ))
    });
    let waits: Vec<String> = waits.collect();
    (!waits.is_empty()).then(|| waits.join("; "))
}

/// Where the clock starts, on the line, and what that moment is.
pub(super) fn zero(view: &RunView, entries: &[Entry], line: &Line) -> Result<(f64, &'static str), String> {
    match view.runbook.purpose {
        Purpose::Failover => match line.disaster_at {
            Some(_) => Ok((0.0, "the disaster")),
            None => Err(format!(
                "when the disaster happened is not known (--disaster-at says it); the run itself took {}",
                people_seconds(line.at(entries.len().saturating_sub(1)) - line.at(0))
            )),
        },
        Purpose::Drill if line.disaster_at.is_some() => Ok((0.0, "the assumed disaster")),
        Purpose::Drill => Ok((line.at(0), "the start of the drill")),
        Purpose::Start => Err("nothing was away: the service was brought up".to_owned()),
        Purpose::Switchover | Purpose::Failback | Purpose::Rewind => {
            let stops = |action: &Action| match action {
                Action::StopInstances { site, .. } => *site == view.runbook.from,
                action => matches!(action, Action::Freeze { .. }),
            };
            let first =
                steps(view).filter(|(step, _)| stops(&step.action)).filter_map(|(step, _)| began(entries, &step.id));
            match first.min() {
                Some(index) => Ok((line.at(index), "the planned stop of the service")),
                None => Err("the service was not stopped in this run, so there is no time away to measure".to_owned()),
            }
        }
    }
}

/// How much was lost, in time.
pub(super) fn rpo(view: &RunView, line: &Line, losses: Option<&Losses>, canary: Option<&CanaryRead>) -> Measure {
    let objective_seconds = view.runbook.objective.rpo.as_seconds();
    let measure = |proven_seconds: Option<f64>, at_most_seconds: Option<f64>, how: String| {
        let judgement = match (proven_seconds, at_most_seconds) {
            (Some(proven), _) if proven <= objective_seconds => Judgement::Met,
            (Some(_), _) => Judgement::Missed,
            (None, Some(bound)) if bound <= objective_seconds => Judgement::MetAsFarAsSeen,
            (None, _) => Judgement::Unproven,
        };
        Measure { objective_seconds, proven_seconds, at_most_seconds, judgement, how }
    };
    if let Purpose::Rewind | Purpose::Start = view.runbook.purpose {
        let how = match view.runbook.purpose {
            Purpose::Start => "the service was brought up: there was nothing to lose",
            _ => "the service was taken back on purpose: what was written after the chosen moment is gone as asked",
        };
        let mut measure = measure(None, None, how.to_owned());
        measure.judgement = Judgement::NotAsked;
        return measure;
    }
    if let Some(losses) = losses {
        let counted = format!(
            "{} of {} acknowledged writes are there with the right content, counted by {}",
            losses.present, losses.acknowledged, losses.counted_by
        );
        let whole = losses.present == losses.acknowledged && losses.lost == 0 && losses.wrong == 0;
        return match (whole, losses.first_lost_at, line.disaster_at) {
            (true, _, _) if losses.acknowledged == 0 => {
                measure(None, None, "no write was acknowledged before".to_owned())
            }
            (true, _, _) => measure(Some(0.0), None, counted),
            (false, Some(first), Some(disaster)) if first >= disaster => measure(
                None,
                None,
                format!(
                    "the first write that is lost was acknowledged after the moment that is given for the disaster: that \
                     moment is wrong, or something went on writing; {counted}"
                ),
            ),
            (false, Some(first), Some(disaster)) => {
                let seconds = disaster.duration_since(first).as_secs_f64();
                let how = format!(
                    "from the first acknowledged write that was lost until the disaster, counted by {}",
                    losses.counted_by
                );
                measure(Some(seconds), None, how)
            }
            (false, _, _) => {
                measure(None, None, format!("writes were lost, but it is not known since when; {counted}"))
            }
        };
    }
    let read = canary.and_then(|canary| canary.before_disaster_seconds);
    match (durable_before_disaster(view), read) {
        (Durable::Unknown(dataset), _) => measure(
            None,
            None,
            format!("nobody can say up to when `{dataset}` was in a vault; writes were not counted"),
        ),
        (Durable::NotAssessed, None) => {
            measure(None, None, "neither acknowledged writes nor a canary's age were measured".to_owned())
        }
        (Durable::NotAssessed, Some(seconds)) => {
            let how = "the canary that came back was written so long before the disaster; writes were not counted";
            measure(None, Some(seconds), how.to_owned())
        }
        (Durable::Seconds(seconds), read) => {
            let how = "everything older than that was in a vault at the disaster; writes were not counted";
            measure(None, Some(read.map_or(seconds, |read| read.max(seconds))), how.to_owned())
        }
    }
}

enum Durable {
    NotAssessed,
    Unknown(String),
    Seconds(f64),
}

/// How long before the disaster the data set that lags most was durable in a vault, as `AssessLoss` found.
fn durable_before_disaster(view: &RunView) -> Durable {
    let assessed = steps(view).filter(|(step, seen)| matches!(step.action, Action::AssessLoss { .. }) && is_done(seen));
    let Some((Step { action: Action::AssessLoss { volumes, .. }, .. }, seen)) = assessed.last() else {
        return Durable::NotAssessed;
    };
    let mut worst = restored_before_disaster(view);
    for volume in volumes {
        let fact = seen.facts.get(&volume.dataset).and_then(|fact| fact.get("loss_seconds_estimated"));
        match fact.and_then(Value::as_f64) {
            Some(seconds) => worst = worst.max(seconds),
            None => return Durable::Unknown(volume.dataset.clone()),
        }
    }
    Durable::Seconds(worst)
}

/// How long before the disaster the oldest state is that a restore really brought back; 0 where nothing was restored.
fn restored_before_disaster(view: &RunView) -> f64 {
    let disaster: Option<Timestamp> = steps(view)
        .filter(|(step, seen)| matches!(step.action, Action::AssessLoss { .. }) && is_done(seen))
        .filter_map(|(_, seen)| seen.facts.get("disaster_at")?.as_str()?.parse().ok())
        .last();
    let Some(disaster) = disaster else { return 0.0 };
    steps(view)
        .filter(|(step, seen)| matches!(step.action, Action::Restore { .. }) && is_done(seen))
        .filter_map(|(_, seen)| seen.facts.get("as_of")?.as_str()?.parse::<Timestamp>().ok())
        .map(|as_of| disaster.duration_since(as_of).as_secs_f64())
        .fold(0.0, f64::max)
}

/// Whether the run-book asked for protection under the new epoch, and had it.
pub(super) fn protected_again(view: &RunView) -> Option<bool> {
    let mut asked = steps(view)
        .filter(|(step, seen)| matches!(step.action, Action::AwaitProtection { .. }) && seen.status != "not-taken")
        .peekable();
    asked.peek()?;
    Some(asked.all(|(_, seen)| is_done(seen)))
}

/// Everything in the run-book that looks rather than acts, and how it came out.
pub(super) fn checks(view: &RunView, rpo: &Measure, losses: Option<&Losses>) -> Vec<Check> {
    let mut checks = Vec::new();
    for (step, seen) in steps(view) {
        if !looks(&step.action) || seen.status == "not-taken" {
            continue;
        }
        let (result, detail) = match (seen.status.as_str(), seen.outcome.as_deref()) {
            ("done", Some("attested")) => (CheckResult::Attested, said(seen)),
            ("done", Some("unusable")) => (CheckResult::Failed, "the standby could not be used".to_owned()),
            ("done", Some("unsound" | "not-recovered")) => (CheckResult::Failed, why_not(seen)),
            ("done", Some("beyond")) => {
                (CheckResult::Failed, "more would be lost than was approved beforehand, or nobody can tell".to_owned())
            }
            ("done", Some("run-out")) => (
                CheckResult::Passed,
                "its lease has run out, and the watchdog beside the writer stops it; the site could not be asked"
                    .to_owned(),
            ),
            ("done", outcome) => (CheckResult::Passed, outcome.unwrap_or("done").to_owned()),
            ("failed", _) => (CheckResult::Failed, seen.detail.clone().unwrap_or_default()),
            ("undone" | "undoing" | "undo-held" | "undo-skipped", _) => {
                (CheckResult::NotDone, "taken back with the run".to_owned())
            }
            ("skipped", _) => {
                (CheckResult::NotDone, format!("skipped: {}", seen.detail.as_deref().unwrap_or("no reason given")))
            }
            ("waiting", _) => (CheckResult::NotDone, "the run did not come to it".to_owned()),
            (other, _) => (
                CheckResult::NotDone,
                format!("{other}: {}", seen.detail.as_deref().unwrap_or("no outcome is recorded")),
            ),
        };
        checks.push(Check { what: step.title.clone(), result, detail });
    }
    if let Some(losses) = losses {
        let whole = losses.lost == 0 && losses.wrong == 0 && losses.present == losses.acknowledged;
        // What is lost within the objective was agreed to be lost; other content never was.
        let allowed = losses.wrong == 0 && rpo.judgement == Judgement::Met;
        let detail = format!(
            "{} acknowledged, {} present, {} lost{}, {} with other content",
            losses.acknowledged,
            losses.present,
            losses.lost,
            if losses.lost > 0 && allowed { " (within the objective)" } else { "" },
            losses.wrong
        );
        let result = if whole || allowed { CheckResult::Passed } else { CheckResult::Failed };
        checks.push(Check { what: format!("Count acknowledged writes ({})", losses.counted_by), result, detail });
    }
    checks
}

fn looks(action: &Action) -> bool {
    matches!(
        action,
        Action::Fence { .. }
            | Action::AssessLoss { .. }
            | Action::InspectStandby { .. }
            | Action::CatchUp { .. }
            | Action::LookThroughVolume { .. }
            | Action::Restart { .. }
            | Action::AwaitHealthy { .. }
            | Action::AskAuthority { .. }
            | Action::AwaitService { .. }
            | Action::ReadCanary { .. }
            | Action::AwaitProtection { .. }
            | Action::AwaitStandby { .. }
            | Action::VerifyClean { .. }
    )
}

/// Why a rung came to nothing: the reason itself, or the checks that did not pass.
fn why_not(seen: &StepView) -> String {
    if let Some(why) = seen.facts.get("why").and_then(Value::as_str) {
        return why.to_owned();
    }
    let checks = seen.facts.get("checks").and_then(Value::as_array).into_iter().flatten();
    let text = |check: &Value, name: &str| check.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let failed = checks.filter(|check| !matches!(text(check, "outcome").as_str(), "passed" | "not-done"));
    let failed: Vec<String> =
        failed.map(|check| format!("{}: {}", text(check, "check"), text(check, "what"))).collect();
    failed.join("; ")
}

fn said(seen: &StepView) -> String {
    let text = |name: &str| seen.facts.get(name).and_then(Value::as_str).unwrap_or("unknown");
    format!("{} attests: \u{201c}{}\u{201d}", text("by"), text("statement"))
}

/// What a step itself said that it did not look at.
pub(super) fn not_looked_at(view: &RunView) -> Vec<String> {
    let mut found = Vec::new();
    for seen in &view.steps {
        for (name, value) in &seen.facts {
            if let Some(why) = value.as_str().and_then(|text| text.strip_prefix("not checked")) {
                found.push(format!("{name}{why}"));
            }
        }
    }
    found
}

/// Where the service came back: what was recovered in place was never promoted elsewhere.
pub(super) fn recovered_at(view: &RunView) -> &str {
    let is_over = matches!(view.state, RunState::Completed | RunState::CompletedWithExceptions);
    let in_place = is_over && steps(view).any(|(step, seen)| step.commit && seen.status == "not-taken");
    if in_place { &view.runbook.from } else { &view.runbook.to }
}

pub(super) struct Verdict {
    pub(super) tone: Tone,
    pub(super) sentence: String,
    pub(super) reservations: Vec<String>,
}

pub(super) fn verdict(
    view: &RunView,
    rpo: &Measure,
    rto: &Measure,
    checks: &[Check],
    losses: Option<&Losses>,
) -> Verdict {
    let reservations = reservations(view, rpo, rto, checks, losses);
    let why = view.why.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
    let (tone, sentence) = match view.state {
        RunState::Completed | RunState::CompletedWithExceptions => finished(view, rpo, rto, &reservations),
        RunState::Failed => (Tone::Bad, format!("Not recovered: the run failed{why}")),
        RunState::Cancelled => (Tone::Bad, format!("Not recovered: the run was cancelled{why}")),
        RunState::Held => (Tone::Bad, "Not recovered yet: the run is held and waits for a person".to_owned()),
        RunState::WaitingApproval => (Tone::Bad, "Not recovered yet: the run waits for approval".to_owned()),
        RunState::Paused => {
            (Tone::Bad, "Not recovered yet: the run is paused; `lifeboat run resume` goes on".to_owned())
        }
        RunState::Pending | RunState::Running => (Tone::Bad, "Not recovered yet: the run has not ended".to_owned()),
    };
    Verdict { tone, sentence, reservations }
}

fn finished(view: &RunView, rpo: &Measure, rto: &Measure, reservations: &[String]) -> (Tone, String) {
    let done = match view.runbook.purpose {
        Purpose::Failover => format!("{} recovered at {}", view.runbook.service, recovered_at(view)),
        Purpose::Switchover => format!("{} moved to {}", view.runbook.service, view.runbook.to),
        Purpose::Failback => format!("{} is home at {}", view.runbook.service, view.runbook.to),
        Purpose::Rewind => format!("{} is back at an earlier moment", view.runbook.service),
        Purpose::Drill => format!("{} was recovered in a rehearsal at {}", view.runbook.service, view.runbook.to),
        Purpose::Start => format!("{} is up at {}", view.runbook.service, view.runbook.to),
    };
    let missed: Vec<&str> = [(rpo, "data loss"), (rto, "time away")]
        .into_iter()
        .filter(|(measure, _)| measure.judgement == Judgement::Missed)
        .map(|(_, name)| name)
        .collect();
    let unproven = [rpo, rto].iter().any(|measure| measure.judgement == Judgement::Unproven);
    match missed.as_slice() {
        [] => {}
        [one] => return (Tone::Bad, format!("{done}, but the objective for {one} was missed")),
        more => return (Tone::Bad, format!("{done}, but the objectives for {} were missed", more.join(" and "))),
    }
    if view.state == RunState::CompletedWithExceptions {
        return (Tone::Doubtful, format!("{done}, with exceptions"));
    }
    if unproven {
        return (Tone::Doubtful, format!("{done}; not every objective is proven"));
    }
    let tone = if reservations.is_empty() { Tone::Good } else { Tone::Doubtful };
    (tone, format!("{done}, within its objectives"))
}

fn reservations(
    view: &RunView,
    rpo: &Measure,
    rto: &Measure,
    checks: &[Check],
    losses: Option<&Losses>,
) -> Vec<String> {
    let mut found = Vec::new();
    // A run that did not come to its end proves little; its verdict says so, and each check stands in the list of checks.
    let completed = matches!(view.state, RunState::Completed | RunState::CompletedWithExceptions);
    for (measure, name) in [(rpo, "Data loss"), (rto, "Time away")] {
        match measure.judgement {
            Judgement::Unproven if completed => found.push(format!("{name} is unproven: {}.", measure.how)),
            Judgement::MetAsFarAsSeen => found.push(format!("{name} is bounded, not measured: {}.", measure.how)),
            Judgement::Unproven | Judgement::Missed | Judgement::Met | Judgement::NotAsked => {}
        }
    }
    if let Some(losses) = losses
        && losses.wrong > 0
    {
        found.push(format!("{} acknowledged writes came back with other content.", losses.wrong));
    }
    for check in checks {
        match check.result {
            CheckResult::Attested => found.push(format!("{}: a person's word stands in place of a proof.", check.what)),
            CheckResult::Failed if check.what.starts_with("Count acknowledged") => {}
            CheckResult::Failed => found.push(format!("{}: {}.", check.what, check.detail)),
            CheckResult::NotDone if completed => found.push(format!("{}: not done ({}).", check.what, check.detail)),
            CheckResult::Passed | CheckResult::NotDone => {}
        }
    }
    for (_, seen) in steps(view).filter(|(step, seen)| seen.status == "failed" && !looks(&step.action)) {
        found.push(format!("{}: {}.", seen.title, seen.detail.as_deref().unwrap_or("it failed")));
    }
    for (step, seen) in steps(view).filter(|(_, seen)| is_done(seen)) {
        let (Action::Restore { volume, .. }, Some(Value::Array(gave_way))) = (&step.action, seen.facts.get("gave_way"))
        else {
            continue;
        };
        if let Some(Value::String(first)) = gave_way.first() {
            let as_of = seen.facts.get("as_of").and_then(Value::as_str).unwrap_or("an earlier moment");
            found.push(format!(
                "`{}` was restored as of {as_of}, for a newer state did not restore: {first}.",
                volume.dataset
            ));
        }
    }
    found.extend(passed_by(view));
    found.extend(less_certain(view));
    if view.runbook.strategy == Strategy::WarmStandby
        && protected_again(view).is_none()
        && view.runbook.purpose != Purpose::Drill
    {
        found.push("Whether the service is protected again was not part of this run.".to_owned());
    }
    found
}

/// Newer recovery points that were corrupt: as the restore found where there was one, else as the assessment did.
fn passed_by(view: &RunView) -> Vec<String> {
    let texts = |fact: Option<&Value>| -> Vec<String> {
        let texts = fact.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        texts.map(str::to_owned).collect()
    };
    let mut of_datasets: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (step, seen) in steps(view).filter(|(_, seen)| is_done(seen)) {
        match &step.action {
            Action::AssessLoss { volumes, .. } => {
                for volume in volumes {
                    let fact = seen.facts.get(&volume.dataset).and_then(|fact| fact.get("passed_by"));
                    of_datasets.insert(&volume.dataset, texts(fact));
                }
            }
            Action::Restore { volume, .. } => {
                of_datasets.insert(&volume.dataset, texts(seen.facts.get("passed_by")));
            }
            _ => {}
        }
    }
    let said = of_datasets.into_iter().flat_map(|(dataset, texts)| {
        texts.into_iter().map(move |text| format!("`{dataset}` is older than its newest recovery point: {text}."))
    });
    said.collect()
}

/// What made the answer of the vaults less certain when the loss was assessed: one that could not be read, a log that is not whole.
fn less_certain(view: &RunView) -> Vec<String> {
    let assessed = steps(view).filter(|(step, seen)| matches!(step.action, Action::AssessLoss { .. }) && is_done(seen));
    let Some((Step { action: Action::AssessLoss { volumes, .. }, .. }, seen)) = assessed.last() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for volume in volumes {
        let findings = seen.facts.get(&volume.dataset).and_then(|fact| fact.get("findings")).and_then(Value::as_array);
        for finding in findings.into_iter().flatten().filter_map(Value::as_str) {
            found.push(format!(
                "What the vaults hold of `{}` was less certain than it looks: {}.",
                volume.dataset,
                finding.trim_end_matches('.')
            ));
        }
    }
    found
}

/// Seconds as people say them.
pub(super) fn people_seconds(seconds: f64) -> String {
    let seconds = seconds.max(0.0);
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    match whole {
        0..120 => format!("{whole} s"),
        120..7200 => format!("{} min {} s", whole / 60, whole % 60),
        7200..172_800 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3600),
    }
}
