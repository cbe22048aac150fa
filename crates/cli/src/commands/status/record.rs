//! What runs have proven, which are open, when drills are due, and the last canary.
//!
//! Invariant: a proof is what a checked journal says, of this host or mirrored by another; a drill counts as done only if it succeeded.

use jiff::Timestamp;
use lifeboat_core::plan::{Name, Service};
use lifeboat_core::run::entry::open_chain;
use lifeboat_core::run::{RunState, RunView};
use lifeboat_core::runbook::Purpose;
use lifeboat_engine::arbitrate::LockState;
use lifeboat_engine::evidence::{Evidence, Measure};
use serde::Serialize;

use super::data::age_seconds;
use super::standing::{Looker, word};
use crate::error::CommandError;
use crate::run_ui;

/// How many runs are looked through, the newest first.
const RUNS_MAX: usize = 200;
/// A lock's holder gives a sign every few seconds (TTL and skew of the run lock).
const AT_WORK_SECONDS: f64 = 18.0;

/// What a run, or a drill, proved.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Proof {
    pub(crate) run: String,
    pub(crate) purpose: String,
    pub(crate) scenario: String,
    pub(crate) epoch: u64,
    pub(crate) state: RunState,
    pub(crate) is_success: bool,
    pub(crate) ended_at: Timestamp,
    pub(crate) verdict: String,
    pub(crate) rpo: Measure,
    pub(crate) rto: Measure,
    /// Whether the plan is still the one that it was proven under.
    pub(crate) is_of_this_plan: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct DrillStatus {
    pub(crate) drill: Name,
    pub(crate) scenario: Name,
    /// The last one that succeeded.
    pub(crate) last: Option<String>,
    pub(crate) last_at: Option<Timestamp>,
    /// Absent when it was never done: it is due now.
    pub(crate) due_at: Option<Timestamp>,
    pub(crate) is_overdue: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct OpenRun {
    pub(crate) run: String,
    pub(crate) purpose: String,
    pub(crate) state: RunState,
    pub(crate) started_at: Timestamp,
    pub(crate) last_at: Timestamp,
    /// Whether an executor has lately given a sign of life.
    pub(crate) at_work: bool,
    /// What persons must see to, step by step.
    pub(crate) waiting_for: Vec<(String, String)>,
    /// The next command.
    pub(crate) next: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct CanaryStatus {
    pub(crate) number: Option<u64>,
    pub(crate) written_at: Option<Timestamp>,
    pub(crate) age_seconds: Option<f64>,
    /// Older than that, nobody writes them any more.
    pub(crate) expected_seconds: f64,
    pub(crate) problem: Option<String>,
}

/// One run, as far as it matters here.
#[derive(Debug, Clone)]
pub(crate) enum Record {
    Ended { service: Name, proof: Box<Proof>, plan_hash: String, purpose: Purpose },
    Open(Box<RunView>),
}

/// A service's runs, the newest first.
#[derive(Debug)]
pub(super) struct Records {
    runs: Vec<Record>,
    pub(super) unreadable: Vec<(String, String)>,
}

impl Records {
    /// What the newest ended run (or drill) proved.
    pub(super) fn last_proof(&self, drill: bool, plan_hash_now: &str) -> Option<Proof> {
        self.ended(drill)
            .next()
            .map(|(proof, plan_hash)| Proof { is_of_this_plan: plan_hash == plan_hash_now, ..proof.clone() })
    }

    pub(super) fn has_open(&self) -> bool {
        self.runs.iter().any(|record| matches!(record, Record::Open(_)))
    }

    /// When the newest drill of a scenario ended, however it did.
    pub(super) fn last_drill_of(&self, scenario: &str) -> Option<Timestamp> {
        self.ended(true).filter(|(proof, _)| proof.scenario == scenario).map(|(proof, _)| proof.ended_at).max()
    }

    fn ended(&self, drill: bool) -> impl Iterator<Item = (&Proof, &str)> {
        self.runs.iter().filter_map(move |record| match record {
            Record::Ended { proof, plan_hash, purpose, .. } if proves(*purpose, drill) => {
                Some((&**proof, plan_hash.as_str()))
            }
            _ => None,
        })
    }
}

impl Record {
    fn epoch(&self) -> u64 {
        match self {
            Record::Ended { proof, .. } => proof.epoch,
            Record::Open(view) => view.runbook.epoch,
        }
    }
}

/// Whether a run of this purpose proves what a drill, or else what a recovery, can do; bringing a service up proves neither.
fn proves(purpose: Purpose, drill: bool) -> bool {
    match purpose {
        Purpose::Drill => drill,
        Purpose::Start => false,
        Purpose::Failover | Purpose::Switchover | Purpose::Failback | Purpose::Rewind => !drill,
    }
}

impl Looker<'_> {
    /// The runs of this host's journal, and those that other hosts have mirrored.
    pub(super) fn records(&mut self, service: &str) -> Result<Records, CommandError> {
        let mut names = self.journal.names()?;
        let mirrored = self.wiring.arbiter.mirrored_runs().unwrap_or_default();
        names.extend(mirrored);
        names.sort_by(|one, other| other.cmp(one));
        names.dedup();
        let mut records = Records { runs: Vec::new(), unreadable: Vec::new() };
        for run in names.into_iter().take(RUNS_MAX) {
            if let Some(record) = self.ended.get(&run) {
                records.add(service, record.clone());
                continue;
            }
            match self.record(&run) {
                Ok(Some(record)) => {
                    if matches!(record, Record::Ended { .. }) {
                        self.ended.insert(run, record.clone());
                    }
                    records.add(service, record);
                }
                Ok(None) => {}
                Err(error) => {
                    let parts: Vec<String> = std::iter::once(error.message).chain(error.causes).collect();
                    records.unreadable.push((run, parts.join(": ")));
                }
            }
        }
        // Ids are times, and a clock may have been set back between two runs; epochs only go up.
        records.runs.sort_by_key(|record| std::cmp::Reverse(record.epoch()));
        Ok(records)
    }

    fn record(&self, run: &str) -> Result<Option<Record>, CommandError> {
        let (entries, hash) = match self.journal.read(run) {
            Ok(recorded) => (recorded.entries, recorded.head.hash),
            Err(lifeboat_engine::journal::JournalError::NoRun { .. }) => {
                let sealed = self.wiring.arbiter.mirrored_journal(run)?;
                let hash = sealed.last().map(|last| last.hash.clone()).unwrap_or_default();
                (open_chain(run, &sealed)?, hash)
            }
            Err(error) => return Err(error.into()),
        };
        if entries.is_empty() {
            return Ok(None);
        }
        let view = RunView::of(&entries, &hash)?;
        let is_success = matches!(view.state, RunState::Completed | RunState::CompletedWithExceptions);
        if !is_success && !matches!(view.state, RunState::Failed | RunState::Cancelled) {
            return Ok(Some(Record::Open(Box::new(view))));
        }
        let evidence = Evidence::of(&entries, &hash, None)?;
        let proof = Proof {
            run: run.to_owned(),
            purpose: word(&evidence.purpose),
            scenario: evidence.scenario,
            epoch: evidence.epoch,
            state: evidence.state,
            is_success,
            ended_at: evidence.ended_at,
            verdict: evidence.verdict,
            rpo: evidence.rpo,
            rto: evidence.rto,
            is_of_this_plan: false,
        };
        Ok(Some(Record::Ended {
            service: evidence.service,
            proof: Box::new(proof),
            plan_hash: evidence.plan_hash,
            purpose: evidence.purpose,
        }))
    }

    pub(super) fn drills(&self, service: &Service, records: &Records) -> Vec<DrillStatus> {
        let now = self.wiring.clock.now();
        let of_service = self.wiring.plan().drills.iter().filter(|(_, drill)| drill.service == service.name);
        of_service
            .map(|(name, drill)| {
                let last = records
                    .ended(true)
                    .map(|(proof, _)| proof)
                    .find(|proof| proof.is_success && proof.scenario == drill.scenario);
                let last_at = last.map(|proof| proof.ended_at);
                let due_at = last_at.and_then(|at| drill.every.due_after(at));
                DrillStatus {
                    drill: name.clone(),
                    scenario: drill.scenario.clone(),
                    last: last.map(|proof| proof.run.clone()),
                    last_at,
                    due_at,
                    is_overdue: due_at.is_none_or(|due| due < now),
                }
            })
            .collect()
    }

    pub(super) fn open_runs(&self, records: &Records) -> Vec<OpenRun> {
        let open = records.runs.iter().filter_map(|record| match record {
            Record::Open(view) => Some(&**view),
            Record::Ended { .. } => None,
        });
        open.map(|view| self.open_run(view)).collect()
    }

    fn open_run(&self, view: &RunView) -> OpenRun {
        let now = self.wiring.clock.now();
        let lock = self.wiring.arbiter.run_lock(&view.runbook.service).ok().flatten();
        let at_work = lock.is_some_and(|(claim, beat)| {
            let beat = beat.filter(|beat| claim.run == view.run && beat.state == LockState::Held);
            let at = beat.and_then(|beat| beat.at.parse::<Timestamp>().ok());
            at.and_then(|at| age_seconds(at, now)).is_some_and(|age| age < AT_WORK_SECONDS)
        });
        let next = match view.waiting_for.first() {
            Some((step, need)) => run_ui::way_on(&view.run, step, need),
            None if at_work => format!("lifeboat run show {}", view.run),
            None => format!("lifeboat run resume {}", view.run),
        };
        OpenRun {
            run: view.run.clone(),
            purpose: word(&view.runbook.purpose),
            state: view.state,
            started_at: view.started_at,
            last_at: view.last_at,
            at_work,
            waiting_for: view.waiting_for.iter().map(|(step, need)| (step.clone(), run_ui::need(need))).collect(),
            next,
        }
    }

    pub(super) fn canary(&self, service: &Service) -> Option<CanaryStatus> {
        let canary = service.canary.as_ref()?;
        // Some may fail while the service is busy.
        let expected_seconds = (canary.every.as_seconds() * 10.0).max(30.0);
        let (last, problem) = match self.wiring.arbiter.canaries(&service.name, 1) {
            Ok(last) => (last.into_iter().next(), None),
            Err(error) => (None, Some(error.with_cause())),
        };
        let written_at = last.as_ref().and_then(|last| last.at.parse::<Timestamp>().ok());
        let age_seconds = written_at.and_then(|at| age_seconds(at, self.wiring.clock.now()));
        Some(CanaryStatus { number: last.map(|last| last.number), written_at, age_seconds, expected_seconds, problem })
    }
}

impl Records {
    fn add(&mut self, service: &str, record: Record) {
        let of_service = match &record {
            Record::Ended { service, .. } => service,
            Record::Open(view) => &view.runbook.service,
        };
        if of_service == service {
            self.runs.push(record);
        }
    }
}
