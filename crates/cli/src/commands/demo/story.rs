//! How the demo ended: the final table, and the same as data.
//!
//! Invariant: nothing stands here that an act did not measure; what missed its objective, or is lost though nothing may be
//! lost, makes the demo end with a finding.

use std::path::PathBuf;

use jiff::Timestamp;
use lifeboat_engine::evidence::{Judgement, Losses, Measure};
use serde::Serialize;

use super::Strategy;
use super::acts::{proven, seconds_of};
use crate::error::Exit;
use crate::ui::Ui;

pub(super) struct Story {
    pub(super) strategy: Strategy,
    pub(super) run: String,
    pub(super) failback_run: String,
    pub(super) evidence: PathBuf,
    pub(super) disaster_at: Timestamp,
    pub(super) losses: Losses,
    pub(super) uploads_lost: u64,
    pub(super) first_lost_at: Option<Timestamp>,
    pub(super) present_after_failback: u64,
    pub(super) acknowledged_at_failback: u64,
    pub(super) lost_in_failback: u64,
    pub(super) rpo: Measure,
    pub(super) rto: Measure,
    pub(super) verdict: String,
    pub(super) reservations: Vec<String>,
    /// From the disaster until the client's next acknowledged write.
    pub(super) client_outage_seconds: Option<f64>,
    pub(super) rewound: Rewound,
}

/// What came of the corruption.
#[derive(Debug, Serialize)]
pub(super) struct Rewound {
    pub(super) run: String,
    pub(super) to: Timestamp,
    /// Acknowledged writes that the corruption destroyed.
    pub(super) damaged: u64,
    /// Acknowledged by that moment, and there before the corruption.
    pub(super) acknowledged: u64,
    pub(super) present: u64,
    /// Of those, entries that did not come back.
    pub(super) entries_missing: u64,
    /// Entries that were acknowledged within 0.3 s of that moment and are in no piece of the log before it.
    pub(super) entries_of_the_last_moment: u64,
    /// Files go back to their last recovery point, which may lie a little before the moment.
    pub(super) uploads_missing: u64,
    /// Acknowledged after that moment, and given up with the damage.
    pub(super) given_up: u64,
}

#[derive(Serialize)]
struct Document<'a> {
    strategy: Strategy,
    run: &'a str,
    disaster_at: Timestamp,
    acknowledged: u64,
    present_after_failover: u64,
    lost: u64,
    uploads_lost: u64,
    first_lost_at: Option<Timestamp>,
    rpo_objective_seconds: f64,
    rpo_proven_seconds: Option<f64>,
    rto_objective_seconds: f64,
    rto_proven_seconds: Option<f64>,
    client_outage_seconds: Option<f64>,
    failback_run: &'a str,
    acknowledged_at_failback: u64,
    present_after_failback: u64,
    lost_in_failback: u64,
    rewind: &'a Rewound,
    verdict: &'a str,
    reservations: &'a [String],
    evidence: &'a PathBuf,
    simulated: Vec<&'static str>,
    findings: Vec<String>,
    seconds: f64,
}

const SIMULATED: [&str; 3] = [
    "the sites are process groups and directories on this one machine, each with a loopback address of its own",
    "the outage is declared by the demo: nobody had to notice it first",
    "the destroyed site comes back with its enrolment, as a machine that is set up again from its image would",
];

impl Story {
    /// What must be said aloud, worst first.
    fn findings(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (measure, what) in [(&self.rpo, "RPO"), (&self.rto, "RTO")] {
            match measure.judgement {
                Judgement::Missed => found.push(format!("the {what} objective was missed: {}", measure.how)),
                Judgement::Unproven => found.push(format!("the {what} is not proven: {}", measure.how)),
                Judgement::Met | Judgement::MetAsFarAsSeen | Judgement::NotAsked => {}
            }
        }
        if self.lost_in_failback > 0 {
            found.push(format!("{} acknowledged writes were lost by going home", self.lost_in_failback));
        }
        if self.losses.wrong > 0 {
            found.push(format!("{} acknowledged writes came back with other content", self.losses.wrong));
        }
        if self.rewound.present + self.rewound.entries_missing == 0 {
            found.push("nothing came back from before the corruption".into());
        }
        if self.rewound.entries_missing > 0 {
            found.push(format!(
                "{} entries older than the last good moment did not come back",
                self.rewound.entries_missing
            ));
        }
        found
    }

    /// Prints table or document; answers how the demo ends.
    pub(super) fn tell(&self, seconds: f64, ui: &Ui) -> Result<Exit, crate::error::CommandError> {
        let findings = self.findings();
        let lost = self.losses.lost + self.losses.wrong;
        ui.document(&Document {
            strategy: self.strategy,
            run: &self.run,
            disaster_at: self.disaster_at,
            acknowledged: self.losses.acknowledged,
            present_after_failover: self.losses.present,
            lost,
            uploads_lost: self.uploads_lost,
            first_lost_at: self.first_lost_at,
            rpo_objective_seconds: self.rpo.objective_seconds,
            rpo_proven_seconds: self.rpo.proven_seconds,
            rto_objective_seconds: self.rto.objective_seconds,
            rto_proven_seconds: self.rto.proven_seconds,
            client_outage_seconds: self.client_outage_seconds,
            failback_run: &self.failback_run,
            acknowledged_at_failback: self.acknowledged_at_failback,
            present_after_failback: self.present_after_failback,
            lost_in_failback: self.lost_in_failback,
            rewind: &self.rewound,
            verdict: &self.verdict,
            reservations: &self.reservations,
            evidence: &self.evidence,
            simulated: SIMULATED.to_vec(),
            findings: findings.clone(),
            seconds,
        })?;
        let (bold, off) = if ui.colour_on_stdout() { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        ui.line("");
        ui.line(format_args!("{bold}{}{off}", self.verdict));
        for reservation in &self.reservations {
            ui.line(format_args!("  - {reservation}"));
        }
        for (what, figure) in self.rows() {
            ui.line(format_args!("  {what:<44}{bold}{figure}{off}"));
        }
        for finding in &findings {
            ui.alarm(finding);
        }
        ui.line("");
        ui.line("Simulated:");
        for simulated in SIMULATED {
            ui.line(format_args!("  {simulated};"));
        }
        ui.line("everything else is what it would be: real processes, data, DNS, keys and fences.");
        ui.line(format_args!("{bold}Evidence{off}  {}", self.evidence.display()));
        Ok(if findings.is_empty() { Exit::Done } else { Exit::Finding })
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let whole = |seconds: f64| format!("{seconds} s");
        let lost = self.losses.lost + self.losses.wrong;
        let of_them = match self.uploads_lost {
            0 => String::new(),
            1 => " (1 of them an upload)".into(),
            uploads => format!(" ({uploads} of them uploads)"),
        };
        let outage = self.client_outage_seconds.map_or_else(|| "not measured".into(), |away| format!("{away:.1} s"));
        let rewound = &self.rewound;
        let younger = rewound.uploads_missing + rewound.entries_of_the_last_moment;
        let kept = match younger {
            0 => String::new(),
            some => format!("; {some} younger than what was stored"),
        };
        vec![
            ("acknowledged before the disaster", self.losses.acknowledged.to_string()),
            ("present after failover", self.losses.present.to_string()),
            ("lost", format!("{lost}{of_them}")),
            ("RPO objective", whole(self.rpo.objective_seconds)),
            ("RPO proven", proven(&self.rpo)),
            ("RTO objective", whole(self.rto.objective_seconds)),
            ("RTO proven: healthy and a canary read back", proven(&self.rto)),
            ("the client's next acknowledged write after", outage),
            (
                "present after failback",
                format!(
                    "{} of {}; {} lost by going home",
                    self.present_after_failback, self.acknowledged_at_failback, self.lost_in_failback
                ),
            ),
            (
                "there before the corruption, and back",
                format!("{} of {} as of {}{kept}", rewound.present, rewound.acknowledged, seconds_of(rewound.to)),
            ),
        ]
    }
}
