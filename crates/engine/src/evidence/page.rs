//! The evidence as a page: one file, no script, nothing loaded from elsewhere; read at night, printed, filed.
//!
//! Invariant: every text that came from a plan, a journal or a service is escaped, and shown as what it is.

use jiff::Timestamp;
use lifeboat_core::run::{Facts, RunState};
use lifeboat_core::runbook::Purpose;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::Value;

use super::judge::people_seconds;
use super::{Check, CheckResult, Concern, Evidence, Judgement, Measure, Signature, StepRecord, Tone, word};

const STYLE: &str = include_str!("page.css");

/// A fact longer than this is cut on the page; the JSON has all of it.
const FACT_CHARACTERS_MAX: usize = 600;

/// The whole page.
pub fn page(evidence: &Evidence, signature: Option<&Signature>) -> String {
    let title = format!("{} of {}: evidence of run {}", purpose(evidence.purpose), evidence.service, evidence.run);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="referrer" content="no-referrer";
                meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    (head(evidence))
                    (figures(evidence))
                    (timeline(evidence))
                    (checks(evidence))
                    (fences(evidence))
                    (data(evidence))
                    (people(evidence))
                    (steps(evidence))
                    (identity(evidence, signature))
                    footer {
                        "Made by lifeboat from the run's journal. Times are UTC. A figure that was not measured is called unproven, never zero."
                    }
                }
            }
        }
    };
    page.into_string()
}

fn head(evidence: &Evidence) -> Markup {
    html! {
        header class=(tone(evidence.tone)) {
            h1 { (evidence.verdict) }
            p {
                (purpose(evidence.purpose)) " of " b { (evidence.service) } ", " (evidence.from) " → " (evidence.to)
                ", scenario " (evidence.scenario) ". " span class="soft" { "Run " code { (evidence.run) } ", " (state(evidence.state)) "." }
            }
            p class="soft" {
                @match evidence.disaster_at {
                    Some(at) => { "Disaster: " (moment(at)) " (" (evidence.how_known) "). " }
                    None if !evidence.how_known.is_empty() => { (evidence.how_known) ". " }
                    None => {}
                }
                "Run: " (moment(evidence.started_at)) " to " (moment(evidence.ended_at)) ", " (people_seconds(evidence.took_seconds)) "."
            }
            @if !evidence.waiting_for.is_empty() {
                p { b { "Waits for a person:" } }
                ul { @for (step, need) in &evidence.waiting_for { li { code { (step) } ": " (need) } } }
            }
            @if !evidence.reservations.is_empty() {
                p { b { "Know before you rely on it:" } }
                ul { @for reservation in &evidence.reservations { li { (reservation) } } }
            }
            @if !evidence.simulated.is_empty() {
                p { b { "Simulated:" } " " (evidence.simulated.join("; ")) "." }
            }
        }
    }
}

fn figures(evidence: &Evidence) -> Markup {
    html! {
        div class="figures" {
            (measure("Data loss (RPO)", &evidence.rpo))
            (measure("Time away (RTO)", &evidence.rto))
            @match &evidence.losses {
                Some(losses) => {
                    @let missing = losses.lost + losses.wrong;
                    div class={ "figure " (if missing == 0 { "good" } else { "doubtful" }) } {
                        div class="name" { "Acknowledged writes lost" }
                        div class="value" { (missing) }
                        div class="small soft" {
                            (losses.present) " of " (losses.acknowledged) " are there"
                            @if losses.wrong > 0 { ", " (losses.wrong) " with other content" }
                            "; counted by " (losses.counted_by) " at " (moment(losses.counted_at))
                        }
                    }
                }
                None => (unknown("Acknowledged writes lost", "nobody counted them"))
            }
            @match &evidence.canary {
                Some(canary) => {
                    div class="figure" {
                        div class="name" { "Canary read back" }
                        div class="value" { @match canary.number { Some(number) => { "no. " (number) } None => "yes" } }
                        div class="small soft" {
                            @match canary.before_disaster_seconds {
                                Some(seconds) => { "written " (people_seconds(seconds)) " before the disaster" }
                                None => @if let Some(at) = canary.written_at { "written " (moment(at)) }
                            }
                        }
                    }
                }
                None => (unknown("Canary read back", "none was read"))
            }
            @if let Some(protected) = evidence.protected_again {
                div class={ "figure " (if protected { "good" } else { "bad" }) } {
                    div class="name" { "Protected again" }
                    div class="value" { (if protected { "yes" } else { "no" }) }
                    div class="small soft" { "under epoch " (evidence.epoch) ", outside its own site" }
                }
            }
        }
    }
}

fn measure(name: &str, measure: &Measure) -> Markup {
    let class = match measure.judgement {
        Judgement::Met => "good",
        Judgement::MetAsFarAsSeen | Judgement::Unproven => "doubtful",
        Judgement::Missed => "bad",
        Judgement::NotAsked => "",
    };
    html! {
        div class={ "figure " (class) } {
            div class="name" { (name) }
            div class="value" {
                @match (measure.judgement, measure.proven_seconds, measure.at_most_seconds) {
                    (Judgement::NotAsked, _, _) => "not asked",
                    (_, Some(seconds), _) => (people_seconds(seconds)),
                    (_, None, Some(seconds)) => { "≤ " (people_seconds(seconds)) }
                    (_, None, None) => "unproven",
                }
            }
            div class="small" { "objective: at most " (objective(measure.objective_seconds)) " · " (judgement(measure.judgement)) }
            div class="small soft" { (measure.how) }
        }
    }
}

fn unknown(name: &str, why: &str) -> Markup {
    html! {
        div class="figure doubtful" {
            div class="name" { (name) }
            div class="value" { "unknown" }
            div class="small soft" { (why) }
        }
    }
}

/// One bar a step, from the disaster (or the start) to the end.
fn timeline(evidence: &Evidence) -> Markup {
    let end = evidence.steps.iter().filter_map(|step| Some(step.from_seconds? + step.took_seconds.unwrap_or(0.0)));
    let total = end.fold(1e-3, f64::max);
    let percent = |seconds: f64| format!("{:.3}%", (seconds / total * 100.0).clamp(0.0, 100.0));
    let commit = evidence.steps.iter().find(|step| step.commit).and_then(|step| step.from_seconds);
    let zero = if evidence.disaster_at.is_some() { "disaster" } else { "start" };
    let shown = evidence.steps.iter().filter(|step| step.from_seconds.is_some());
    html! {
        section class="long" {
            h2 { "Time line" }
            div class="line" {
                @for step in shown {
                    div class="label" title=(step.title) { (step.title) }
                    div class="track" {
                        @if let Some(commit) = commit {
                            div class="mark" style={ "--mark:var(--authority);left:" (percent(commit)) } {}
                        }
                        @if let Some(served) = evidence.served_at_seconds {
                            div class="mark" style={ "--mark:var(--good);left:" (percent(served)) } {}
                        }
                        @let from = step.from_seconds.unwrap_or_default();
                        div class={ "bar " (concern(step.concern)) @if is_bad(step) { " failed" } }
                            style={ "left:" (percent(from)) ";width:" (percent(step.took_seconds.unwrap_or(total - from))) } {}
                    }
                    div class="took" { @match step.took_seconds { Some(seconds) => (people_seconds(seconds)), None => "…" } }
                }
                div class="label axis" {}
                div class="scale" {
                    span style="left:0" { (zero) }
                    span style="left:50%" { (people_seconds(total / 2.0)) }
                    span style="left:100%" { (people_seconds(total)) }
                }
                div {}
            }
            div class="legend" {
                @for (kind, name) in LEGEND {
                    @if evidence.steps.iter().any(|step| step.concern == *kind && step.from_seconds.is_some()) {
                        span { i class=(concern(*kind)) {} (name) }
                    }
                }
                @if commit.is_some() { span { i class="dashed" style="--mark:var(--authority)" {} "commit point: from here only forward" } }
                @if evidence.served_at_seconds.is_some() { span { i class="dashed" style="--mark:var(--good)" {} "serving again" } }
            }
        }
    }
}

const LEGEND: &[(Concern, &str)] = &[
    (Concern::Authority, "who may write"),
    (Concern::Fence, "fence"),
    (Concern::Data, "data"),
    (Concern::Instances, "instances"),
    (Concern::Traffic, "traffic"),
    (Concern::Proof, "proof"),
    (Concern::Isolation, "isolation"),
    (Concern::Command, "commands"),
];

fn checks(evidence: &Evidence) -> Markup {
    html! {
        section {
            h2 { "What was checked" }
            @if evidence.checks.is_empty() {
                p { "Nothing." }
            } @else {
                table {
                    @for check in &evidence.checks {
                        tr {
                            td { (badge(check)) }
                            td { (check.what) div class="small soft" { (check.detail) } }
                        }
                    }
                }
            }
        }
        section {
            h2 { "What was not checked" }
            @if evidence.not_checked.is_empty() {
                p { "The run-book names nothing that it leaves out." }
            } @else {
                ul { @for line in &evidence.not_checked { li { (line) } } }
            }
        }
    }
}

fn badge(check: &Check) -> Markup {
    let (class, text) = match check.result {
        CheckResult::Passed => ("good", "passed"),
        CheckResult::Attested => ("doubtful", "a person's word"),
        CheckResult::Failed => ("bad", "failed"),
        CheckResult::NotDone => ("doubtful", "not done"),
    };
    html! { span class={ "badge " (class) } { (text) } }
}

fn fences(evidence: &Evidence) -> Markup {
    let fences: Vec<&StepRecord> = evidence
        .steps
        .iter()
        .filter(|step| {
            step.concern == Concern::Fence && step.status != "not-taken" && step.outcome.as_deref() != Some("lifted")
        })
        .collect();
    html! {
        @if !fences.is_empty() {
            section {
                h2 { "Fences: what proves that nobody else writes" }
                @for step in fences {
                    p {
                        b { (step.title) } ": "
                        @match step.outcome.as_deref() {
                            Some(outcome) => (outcome),
                            None => { (step.status) @if let Some(detail) = &step.detail { ", " (detail) } }
                        }
                    }
                    (facts(&step.facts))
                }
                p class="small soft" { "Epoch " (evidence.from_epoch) " → " (evidence.epoch) " in the write domain " (evidence.write_domain) "." }
            }
        }
    }
}

fn data(evidence: &Evidence) -> Markup {
    let used: Vec<&StepRecord> = evidence
        .steps
        .iter()
        .filter(|step| {
            (step.concern == Concern::Data || step.commit) && step.outcome.is_some() && !step.facts.is_empty()
        })
        .collect();
    html! {
        @if !used.is_empty() {
            section {
                h2 { "Recovery points, logs and standbys" }
                table {
                    @for step in used {
                        tr { td { (step.title) ": " (step.outcome.as_deref().unwrap_or_default()) (facts(&step.facts)) } }
                    }
                }
            }
        }
    }
}

fn people(evidence: &Evidence) -> Markup {
    html! {
        @if !evidence.words.is_empty() {
            section {
                h2 { "What people said" }
                table {
                    @for word in &evidence.words {
                        tr {
                            td class="small soft" { (moment(word.at)) }
                            td {
                                b { (word.by) } " " (word.what)
                                @if let Some(step) = &word.step { " " code { (step) } }
                                @if !word.said.is_empty() { ": " (cut(&word.said)) }
                                @match &word.signature {
                                    Some(signature) => div class="small soft" { "signed " code { (cut(signature)) } },
                                    None => div class="small soft" { "not signed" },
                                }
                            }
                        }
                    }
                }
            }
        }
        @if !evidence.notes.is_empty() {
            section {
                h2 { "Notes" }
                table {
                    @for note in &evidence.notes {
                        tr { td class="small soft" { (moment(note.at)) } td { (note.text) } }
                    }
                }
            }
        }
    }
}

fn steps(evidence: &Evidence) -> Markup {
    html! {
        section class="long" {
            h2 { "Every step" }
            table class="steps" {
                thead { tr { th { "Step" } th { "Ended as" } th { "Began (UTC)" } th class="number" { "Took" } } }
                tbody { @for (index, step) in evidence.steps.iter().enumerate() { (row(index + 1, step)) } }
            }
        }
    }
}

fn row(number: usize, step: &StepRecord) -> Markup {
    let class = match step.status.as_str() {
        "done" => "good",
        "not-taken" | "waiting" | "undone" => "plain",
        "failed" | "undo-held" => "bad",
        _ => "doubtful",
    };
    html! {
        tr {
            td {
                (number) ". " (step.title)
                @if step.commit { " " span class="badge plain" { "commit point" } }
                @if step.attempts > 1 { " " span class="badge doubtful" { (step.attempts) " attempts" } }
                @if let Some(detail) = &step.detail { div class="small" { (cut(detail)) } }
                (facts(&step.facts))
            }
            td { span class={ "badge " (class) } { @match (step.status.as_str(), &step.outcome) { ("done", Some(outcome)) => (outcome), (status, _) => (status) } } }
            td class="small soft at" { @match step.started_at { Some(at) => (clock(at)), None => "–" } }
            td class="number small" { @match step.took_seconds { Some(seconds) => (people_seconds(seconds)), None => "–" } }
        }
    }
}

fn identity(evidence: &Evidence, signature: Option<&Signature>) -> Markup {
    html! {
        section {
            h2 { "Where this comes from" }
            dl {
                dt { "Run" } dd { code { (evidence.run) } ", started by " (evidence.initiator) }
                dt { "Strategy" } dd { (evidence.strategy) }
                dt { "Journal" } dd { (evidence.journal_entries) " entries, the last with hash " code { (evidence.journal_hash) } }
                dt { "Run-book" } dd { code { (evidence.runbook_hash) } ", compiled " (evidence.compiled_at) }
                dt { "Plan" } dd { code { (evidence.plan_hash) } }
                @match signature {
                    Some(signature) => {
                        dt { "Signed by" } dd { code { (signature.signer) } }
                        dt { "Signature" } dd { code { (signature.signature) } " over:" pre class="mono" style="white-space:pre-wrap;margin:.3rem 0" { (signature.statement) } }
                    }
                    None => { dt { "Signed by" } dd { "nobody: this page was made without a key" } }
                }
            }
            p class="small soft" {
                "To verify: the JSON form of this evidence holds every entry of the journal. Each entry's hash is the BLAKE3 of its text and each names "
                "the hash before it; " code { "lifeboat evidence --verify FILE.json" } " checks the chain, makes this document anew from it, and checks the signature."
            }
        }
    }
}

fn facts(facts: &Facts) -> Markup {
    let (deep, flat): (Vec<_>, Vec<_>) = facts.iter().partition(|(_, value)| value.is_object());
    html! {
        @if !flat.is_empty() {
            div class="facts small" { @for (name, value) in flat { (fact(name, value)) } }
        }
        @for (name, value) in deep {
            div class="facts small" {
                span { code { (name) } }
                @if let Some(pairs) = value.as_object() { @for (name, value) in pairs { (fact(name, value)) } }
            }
        }
    }
}

fn fact(name: &str, value: &Value) -> Markup {
    html! { span { b { (fact_name(name)) } " " (cut(&shown(name, value))) } }
}

/// `age_seconds` is `age`, with its value in words.
fn fact_name(name: &str) -> String {
    name.replace("_seconds", "").replace('_', " ")
}

fn shown(name: &str, value: &Value) -> String {
    match value {
        Value::Null => "unknown".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Number(number) if name.contains("_seconds") => {
            number.as_f64().map_or_else(|| number.to_string(), people_seconds)
        }
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Array(items) => items.iter().map(|item| shown(name, item)).collect::<Vec<_>>().join(", "),
        Value::Object(pairs) if pairs.is_empty() => "done".to_owned(),
        Value::Object(pairs) => {
            let pairs = pairs.iter().map(|(name, value)| format!("{} {}", fact_name(name), shown(name, value)));
            pairs.collect::<Vec<_>>().join(", ")
        }
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(FACT_CHARACTERS_MAX) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

fn is_bad(step: &StepRecord) -> bool {
    matches!(step.status.as_str(), "failed" | "held" | "undo-held")
}

fn moment(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

fn clock(at: Timestamp) -> String {
    at.strftime("%H:%M:%S%.3f").to_string()
}

fn purpose(purpose: Purpose) -> &'static str {
    lifeboat_core::runbook::compile::title_of(purpose)
}

fn state(state: RunState) -> String {
    word(&state).replace('-', " ")
}

fn tone(tone: Tone) -> &'static str {
    match tone {
        Tone::Good => "good",
        Tone::Doubtful => "doubtful",
        Tone::Bad => "bad",
    }
}

/// An objective is a round figure, and shown as one.
fn objective(seconds: f64) -> String {
    if seconds < 10.0 && seconds.fract() == 0.0 { format!("{seconds} s") } else { people_seconds(seconds) }
}

fn judgement(judgement: Judgement) -> &'static str {
    match judgement {
        Judgement::Met => "met",
        Judgement::MetAsFarAsSeen => "met as far as was seen",
        Judgement::Missed => "missed",
        Judgement::Unproven => "unproven",
        Judgement::NotAsked => "not asked of this run",
    }
}

fn concern(concern: Concern) -> &'static str {
    match concern {
        Concern::Authority => "authority",
        Concern::Fence => "fence",
        Concern::Data => "data",
        Concern::Instances => "instances",
        Concern::Traffic => "traffic",
        Concern::Proof => "proof",
        Concern::Isolation => "isolation",
        Concern::Command => "command",
    }
}
