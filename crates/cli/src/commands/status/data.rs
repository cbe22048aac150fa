//! What the vaults hold of each data set, and how old that is: RPO now.
//!
//! Invariant: only what lies in a vault outside the writer's own site counts, and a time that lies in the future by more
//! than clocks differ counts as unknown.

use jiff::Timestamp;
use lifeboat_core::plan::{DataSet, Name, Service};
use lifeboat_engine::port::PortError;
use lifeboat_engine::recovery::{Held, held};
use lifeboat_vault::copy::KnownCopy;
use lifeboat_vault::prune::{LockRecord, LockStanding};
use lifeboat_vault::{Badge, Severity, State, Vault, Witness, storage};
use serde::Serialize;

use super::standing::Looker;
use crate::commands::points::time;
use crate::commands::verify::scheduled::{Standing, standing};
use crate::door;
use crate::error::CommandError;
use crate::report::counted;

/// Clocks of well kept machines differ by less.
const SKEW_SECONDS: f64 = 5.0;
/// Findings that are no alarm, and still somebody's to look at.
const DOUBTS: [&str; 6] = ["freshness-unproven", "owner-unproven", "suspect", "unchecked", "half-copy", "partial-copy"];

#[derive(Debug, Serialize)]
pub(crate) struct DatasetStatus {
    pub(crate) dataset: Name,
    /// The age of what is provably in a vault outside the writer's site; absent: unknown.
    pub(crate) rpo_now_seconds: Option<f64>,
    /// Which vault that is in.
    pub(crate) vault: Option<Name>,
    pub(crate) why_unknown: Option<String>,
    pub(crate) vaults: Vec<VaultStatus>,
}

#[derive(Debug, Serialize)]
pub(crate) struct VaultStatus {
    pub(crate) vault: Name,
    /// Whether it outlives the writer's site.
    pub(crate) is_outside: bool,
    pub(crate) point: Option<String>,
    pub(crate) taken_at: Option<Timestamp>,
    /// Recovery points of which something must be thawed before they can be restored, and how long the slowest takes.
    pub(crate) points_archived: u64,
    pub(crate) thaw_seconds: Option<u64>,
    /// Everything up to this moment of the source can be restored from there.
    pub(crate) durable_to: Option<Timestamp>,
    pub(crate) age_seconds: Option<f64>,
    pub(crate) problem: Option<String>,
    /// Who was asked whether it is fresh, and what they prove.
    pub(crate) witnesses: Vec<Witness>,
    /// Copies of it that this machine made.
    pub(crate) copies: Vec<CopyStatus>,
    /// How long what points need is locked there, where the plan wants it locked or this machine has locked it.
    pub(crate) locks: Option<LockStatus>,
    /// How its verification stands, where the plan wants it verified or it was.
    pub(crate) verified: Option<VerifiedStatus>,
    /// What makes this less certain than it looks.
    pub(crate) findings: Vec<String>,
}

/// What a restore that was only made to look at it has found, as the vault has it.
#[derive(Debug, Serialize)]
pub(crate) struct VerifiedStatus {
    /// Absent: never.
    pub(crate) at: Option<Timestamp>,
    pub(crate) point: Option<String>,
    pub(crate) badge: Option<Badge>,
    /// What was looked at.
    pub(crate) what: Option<String>,
    /// Absent: the plan wants none, or there is nothing to verify yet.
    pub(crate) due_at: Option<Timestamp>,
    pub(crate) is_overdue: bool,
}

impl VerifiedStatus {
    fn of(standing: Standing) -> VerifiedStatus {
        let (due_at, is_overdue) = (standing.due_at, standing.is_overdue);
        let (at, badge) = (standing.last.as_ref().map(|last| last.at), standing.last.as_ref().map(|last| last.badge));
        let (point, what) = standing.last.map(|last| (last.point, last.depth)).unzip();
        VerifiedStatus { at, point, badge, what, due_at, is_overdue }
    }

    pub(crate) fn describe(&self) -> String {
        let (Some(at), Some(point), Some(what)) = (self.at, &self.point, &self.what) else { return "never".to_owned() };
        format!("{}, {point}: {what}", time(at))
    }
}

/// What the last run on this machine that made locks longer has left behind. The storage is not asked.
#[derive(Debug, Serialize)]
pub(crate) struct LockStatus {
    /// When that was; absent: there was none on this machine.
    pub(crate) seen_at: Option<Timestamp>,
    /// Everything that points needed then is locked until then, or longer.
    pub(crate) until: Option<Timestamp>,
    pub(crate) objects_unlocked: u64,
    pub(crate) locks_left: u64,
    /// Absent: unknown.
    pub(crate) standing: Option<LockStanding>,
}

impl LockStatus {
    /// What this machine saw last of a vault's locks, where some are wanted or there were some.
    pub(crate) fn seen(vault: &Vault, state: &State, is_wanted: bool) -> Option<LockStatus> {
        let directory = state.vault_directory(&vault.id()).ok()?;
        let record = LockRecord::read(&directory, &vault.storage().location());
        (is_wanted || record.is_some()).then(|| LockStatus::of(record, Timestamp::now()))
    }

    fn of(record: Option<LockRecord>, now: Timestamp) -> LockStatus {
        LockStatus {
            seen_at: record.as_ref().map(|record| record.at),
            until: record.as_ref().and_then(|record| record.until),
            objects_unlocked: record.as_ref().map_or(0, |record| record.unlocked),
            locks_left: record.as_ref().map_or(0, |record| record.left),
            standing: record.map(|record| record.standing(now)),
        }
    }

    pub(crate) fn describe(&self) -> String {
        let (Some(seen), Some(standing)) = (self.seen_at.map(time), self.standing) else {
            return "unknown: neither `lifeboat vault prune` nor `vault lock` has locked anything from this machine"
                .to_owned();
        };
        let until = self.until.map_or_else(|| "unknown".to_owned(), time);
        let again = "run `lifeboat vault lock`, or `vault prune`";
        match standing {
            LockStanding::InTime => format!("what points needed at {seen} is locked until {until} or longer"),
            LockStanding::Late => {
                format!(
                    "what points needed at {seen} is locked until {until}, and was not made longer in time: {again}"
                )
            }
            LockStanding::NotLocked => {
                format!("{} not locked at {seen}: {again}", counted(self.objects_unlocked, "object"))
            }
            LockStanding::Ended => {
                format!("the first locks ended at {until}, and none was made longer since {seen}: {again}")
            }
        }
    }

    /// Whether somebody should look at it.
    fn is_trouble(&self) -> bool {
        self.standing.is_some_and(|standing| standing != LockStanding::InTime)
    }
}

/// A copy that this machine made, as far as one data set goes.
#[derive(Debug, Serialize)]
pub(crate) struct CopyStatus {
    pub(crate) to: String,
    pub(crate) at: Timestamp,
    pub(crate) age_seconds: Option<f64>,
    pub(crate) complete: bool,
    /// Objects that were damaged or missing when it was made.
    pub(crate) left_behind: u64,
    /// Points that were taken since.
    pub(crate) points_lacking: u64,
}

impl Looker<'_> {
    pub(super) fn datasets(&mut self, service: &Service, writer: Option<&str>) -> Vec<DatasetStatus> {
        // How old a dump is says nothing about what would be lost.
        let protected = service.datasets().filter(|(_, dataset)| dataset.is_recovered());
        protected.map(|(_, dataset)| self.dataset(dataset, writer)).collect()
    }

    fn dataset(&mut self, dataset: &DataSet, writer: Option<&str>) -> DatasetStatus {
        let vaults: Vec<VaultStatus> =
            dataset.protect.iter().map(|protect| self.vault(&protect.to, dataset, writer)).collect();
        let outside = || vaults.iter().filter(|vault| vault.is_outside);
        let best = outside()
            .filter_map(|vault| Some((vault.age_seconds?, vault.vault.clone())))
            .min_by(|(one, _), (other, _)| one.total_cmp(other));
        let why_unknown = match (&best, outside().next()) {
            (Some(_), _) => None,
            (None, None) => Some("every vault that protects it lies in the writer's own site".to_owned()),
            (None, Some(_)) => {
                let said: Vec<String> = outside()
                    .map(|vault| match (&vault.problem, vault.durable_to) {
                        (Some(problem), _) => format!("{}: {problem}", vault.vault),
                        (None, None) => format!("{} holds no recovery point of it", vault.vault),
                        (None, Some(at)) => {
                            format!("{} says {at}, which is yet to come: look at the clocks", vault.vault)
                        }
                    })
                    .collect();
                Some(said.join("; "))
            }
        };
        let (rpo_now_seconds, vault) = best.map_or((None, None), |(age, vault)| (Some(age), Some(vault)));
        DatasetStatus { dataset: dataset.name.clone(), rpo_now_seconds, vault, why_unknown, vaults }
    }

    fn vault(&mut self, name: &str, of: &DataSet, writer: Option<&str>) -> VaultStatus {
        let dataset = of.name.as_str();
        let site = self.wiring.plan().vaults.get(name).and_then(|vault| vault.site.as_deref());
        let is_outside = site.is_none() || site != writer;
        let (held, problem) = match self.held(name, dataset) {
            Ok(held) => (held, None),
            Err(error) => {
                // Opened anew at the next look.
                self.vaults.remove(name);
                let error = CommandError::from(error);
                let parts: Vec<String> = std::iter::once(error.message).chain(error.causes).collect();
                (Held::default(), Some(parts.join(": ")))
            }
        };
        let doubts = held
            .findings
            .iter()
            .filter(|finding| finding.severity == Severity::Alarm || DOUBTS.contains(&finding.code));
        let locks = self.locks(name);
        let unlocked = locks.as_ref().filter(|locks| locks.is_trouble());
        let archived = self.archived(name, dataset);
        let witnesses = self.vaults.get(name).map(Vault::witnesses).unwrap_or_default();
        VaultStatus {
            vault: name.to_owned(),
            is_outside,
            witnesses,
            copies: self.copies(name, dataset).unwrap_or_default(),
            verified: self.verified(name, of),
            findings: doubts.map(|finding| finding.message.clone()).chain(unlocked.map(LockStatus::describe)).collect(),
            locks,
            points_archived: archived.len() as u64,
            thaw_seconds: archived.into_iter().max(),
            taken_at: held.newest.as_ref().map(|point| point.taken_at),
            point: held.newest.map(|point| point.id),
            durable_to: held.durable,
            age_seconds: held.durable.and_then(|at| age_seconds(at, self.wiring.clock.now())),
            problem,
        }
    }

    /// How its verification stands; nothing where the vault cannot say, which is told of already.
    fn verified(&self, name: &str, dataset: &DataSet) -> Option<VerifiedStatus> {
        let standing = standing(self.vaults.get(name)?, dataset, self.wiring.clock.now()).ok()?;
        (dataset.verify.is_some() || standing.last.is_some()).then(|| VerifiedStatus::of(standing))
    }

    /// How locks stand where the plan wants them, by what is recorded here.
    fn locks(&self, name: &str) -> Option<LockStatus> {
        let wanted = self.wiring.plan().vaults.get(name).is_some_and(|vault| vault.lock.is_some());
        LockStatus::seen(self.vaults.get(name)?, &self.wiring.state, wanted)
    }

    /// How long each point takes to thaw that must be.
    fn archived(&self, name: &str, dataset: &str) -> Vec<u64> {
        let points = self.vaults.get(name).and_then(|vault| vault.points(Some(dataset)).ok());
        let points = points.map(|points| points.points).unwrap_or_default();
        let seconds = points.iter().filter_map(|point| Some(point.archived.as_ref()?.thaw_seconds));
        seconds.filter(|seconds| *seconds > 0).collect()
    }

    /// The copies of a vault that hold this data set, and how much of it they lack.
    fn copies(&self, name: &str, dataset: &str) -> Option<Vec<CopyStatus>> {
        let vault = self.vaults.get(name)?;
        let known = self.wiring.state.copies(&vault.id()).ok()?;
        let points = vault.points(Some(dataset)).ok()?.points;
        let here = vault.storage().location();
        let now = self.wiring.clock.now();
        let of_it = known
            .into_iter()
            .filter(|copy| copy.to != here && copy.dataset.as_ref().is_none_or(|only| only == dataset));
        let status = |copy: KnownCopy| CopyStatus {
            points_lacking: copy.lacks(points.iter()),
            age_seconds: age_seconds(copy.at, now),
            to: copy.to,
            at: copy.at,
            complete: copy.complete,
            left_behind: copy.left_behind,
        };
        Some(of_it.map(status).collect())
    }

    fn held(&mut self, name: &str, dataset: &str) -> Result<Held, PortError> {
        let unknown = || PortError::new(format!("the plan has no vault `{name}`"));
        let place = self.wiring.vaults.get(name).ok_or_else(unknown)?;
        if !self.vaults.contains_key(name) {
            let vault = place.open()?;
            // Those that are away, or know nothing of it, prove nothing.
            for other in self.wiring.vaults.values().filter(|other| other.name != name) {
                if let Ok(other_storage) = storage::open(&other.url) {
                    let _ = door::hold_against(&vault, (&other.name, other_storage), &self.wiring.state);
                }
            }
            self.vaults.insert(name.to_owned(), vault);
        }
        let vault = self.vaults.get(name).ok_or_else(unknown)?;
        held(vault, place, dataset)
    }
}

/// How long ago that was; nothing if it is yet to come.
pub(super) fn age_seconds(at: Timestamp, now: Timestamp) -> Option<f64> {
    let age = now.duration_since(at).as_secs_f64();
    (age >= -SKEW_SECONDS).then_some(age.max(0.0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_yet_to_come_is_unknown_and_never_fresh() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let age = |at: &str| age_seconds(at.parse().unwrap(), now);
        assert_eq!(age("2026-11-21T11:59:50Z"), Some(10.0));
        assert_eq!(age("2026-11-21T12:00:02Z"), Some(0.0));
        assert_eq!(age("2026-11-21T13:00:00Z"), None);
    }
}
