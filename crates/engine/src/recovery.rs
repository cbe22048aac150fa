//! What the vaults hold of the plan's data sets, and the way back from there.
//!
//! Invariant: a vault that cannot be read makes the answer less certain and says so, and so does a newer point that is corrupt; neither
//! makes a loss look smaller.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use lifeboat_core::plan::Source as PlanSource;
use lifeboat_core::run::Facts;
use lifeboat_core::runbook::{Target, VolumeSpec};
use lifeboat_vault::prune::Archived;
use lifeboat_vault::{Badge, Finding, Identity, PointInfo, Unlocked, Vault};
use serde_json::json;

use crate::execute::with_cause;
use crate::port::{Floor, PortError, Protection, Reach, Recovery, RestoreRequest, Restored, Restorer, Watch};
use crate::vaults::VaultPlace;

/// Makes the restorer for a kind of source; the adapters know them all.
pub type RestorerFor = Arc<dyn Fn(&PlanSource) -> Result<Arc<dyn Restorer>, PortError> + Send + Sync>;

/// Has what a point needs made readable where it was archived, and waits; answers what it waited for.
pub type ThawFor =
    Arc<dyn Fn(&VaultPlace, &Unlocked, &PointInfo, &Watch) -> Result<Option<Thawed>, PortError> + Send + Sync>;

/// What had to be thawed before a restore could begin.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Thawed {
    pub vault: String,
    /// How much of what, in words.
    pub what: String,
    pub packs: u64,
    pub bytes: u64,
    /// How long that takes at most, as the vault says.
    pub thaw_seconds: u64,
    /// When all of it could be read.
    pub readable_at: Timestamp,
}

/// How many older recovery points are tried when newer ones do not verify.
const OLDER_POINTS_MAX: usize = 20;

pub struct Vaults {
    pub places: BTreeMap<String, VaultPlace>,
    /// What opens the data, in this process's memory only.
    pub identities: Vec<Identity>,
    pub restorer_for: RestorerFor,
    /// Without one a restore of archived packs fails, and says what to do.
    pub thaw_for: Option<ThawFor>,
}

impl std::fmt::Debug for Vaults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vaults").field("places", &self.places.keys()).finish_non_exhaustive()
    }
}

/// Where the data lies in its volume: a database is a file in it, files are the volume itself.
pub fn data_path(volume: &Path, source: &PlanSource) -> PathBuf {
    match source {
        PlanSource::Sqlite { path } => match Path::new(path).file_name() {
            Some(name) => volume.join(name),
            None => volume.to_owned(),
        },
        _ => volume.to_owned(),
    }
}

impl Vaults {
    fn place(&self, name: &str) -> Result<&VaultPlace, PortError> {
        self.places.get(name).ok_or_else(|| PortError::new(format!("the plan has no vault `{name}`")))
    }

    /// The volume's vaults, those first that hold the newest state: one may have been away while the others went on.
    /// Of those that hold the same, what is at hand comes before what must be thawed.
    fn furthest_first<'v>(&self, volume: &'v VolumeSpec, target: &Target) -> Vec<&'v String> {
        let newest =
            |name: &String| self.newest_in(name, &volume.dataset, target).ok()?.map(|newest| newest.rank(target));
        let mut vaults: Vec<_> = volume.vaults.iter().map(|name| (newest(name), name)).collect();
        // Those that say nothing come last, and are tried all the same.
        vaults.sort_by(|(one, _), (other, _)| other.cmp(one));
        vaults.into_iter().map(|(_, name)| name).collect()
    }

    /// Tries the target, then what is older, in one vault.
    fn restore_from(
        &self,
        place: &VaultPlace,
        restorer: &dyn Restorer,
        request: &RestoreRequest,
        floor: Timestamp,
        watch: &Watch,
        gave: &mut Gave,
    ) -> Result<Restored, PortError> {
        let cancel = &watch.cancel;
        let vault = place.unlocked(&self.identities)?;
        let mut points = points(&vault, place, &request.dataset)?;
        self.refuse_older(&vault, place, &points, request, floor)?;
        if let (Some(thaw), Some(point)) = (&self.thaw_for, meant(&points, &request.target))
            && let Some(thawed) = thaw(place, &vault, point, watch)?
        {
            gave.thawed.push(thawed);
        }
        let failures = &mut gave.failures;
        let first = match restorer.restore(&vault, request, &(), cancel) {
            Ok(restored) => return Ok(restored),
            Err(error) => error,
        };
        if first.may_pass || cancel.is_cancelled() || is_exact(&request.target) {
            return Err(first);
        }
        failures.push(format!("{}, {}: {}", place.name, said(&request.target), with_cause(&first)));
        // Where the log is damaged, what lies before the damage counts.
        if request.target == Target::Newest
            && let Some(newest) = newest_of(&points)
            && let Ok((whole_to, _)) = durable_from(&vault, place, newest)
            && whole_to >= floor
        {
            let request = RestoreRequest { target: Target::At(whole_to.to_string()), ..request.clone() };
            match restorer.restore(&vault, &request, &(), cancel) {
                Ok(restored) => return Ok(restored),
                Err(error) if cancel.is_cancelled() => return Err(error),
                Err(error) => {
                    failures.push(format!("{}, {}: {}", place.name, said(&request.target), with_cause(&error)))
                }
            }
        }
        if let Target::At(time) = &request.target
            && let Ok(time) = time.parse::<Timestamp>()
        {
            points.retain(|point| point.taken_at <= time);
        }
        let epoch = newest_of(&points).map(|newest| newest.epoch);
        points.retain(|point| point.badge != Badge::Corrupt && Some(point.epoch) == epoch);
        let (good, too_old): (Vec<_>, Vec<_>) = points.iter().rev().partition(|point| point.taken_at >= floor);
        for point in good.into_iter().take(OLDER_POINTS_MAX) {
            let request = RestoreRequest { target: Target::Point(point.id.clone()), ..request.clone() };
            match restorer.restore(&vault, &request, &(), cancel) {
                Ok(restored) => return Ok(restored),
                Err(error) if cancel.is_cancelled() => return Err(error),
                Err(error) => {
                    failures.push(format!("{}, {}: {}", place.name, said(&request.target), with_cause(&error)))
                }
            }
        }
        if let Some(next) = too_old.first() {
            let text = format!(
                "the next older state of `{}` in `{}` is of {}, and nothing older than {floor} was approved: cancel this \
                 run, and name that state in another (--point {})",
                request.dataset, place.name, next.taken_at, next.id
            );
            return Err(PortError::new(text).because(first));
        }
        Err(first)
    }

    /// A vault whose newest state is too old is not asked: another one, or a person, is.
    fn refuse_older(
        &self,
        vault: &Vault,
        place: &VaultPlace,
        points: &[PointInfo],
        request: &RestoreRequest,
        floor: Timestamp,
    ) -> Result<(), PortError> {
        if is_exact(&request.target) {
            return Ok(());
        }
        let Some(newest) = newest_of(points) else { return Ok(()) };
        // A log that cannot be read is the restore's to find and to say.
        let durable = durable_from(vault, place, newest).map_or(newest.taken_at, |(durable, _)| durable);
        if durable >= floor {
            return Ok(());
        }
        Err(PortError::new(format!(
            "the newest state of `{}` in `{}` is of {durable}, and nothing older than {floor} was approved",
            request.dataset, place.name
        )))
    }

    /// The floor in time: no newer than the newest state of all vaults.
    fn floor(&self, volume: &VolumeSpec, target: &Target, floor: Floor) -> Result<Timestamp, PortError> {
        let mut silent = Vec::new();
        let mut best: Option<(u64, Timestamp)> = None;
        for name in &volume.vaults {
            match self.newest_in(name, &volume.dataset, target) {
                Ok(Some(Newest { point, durable, .. })) => best = best.max(Some((point.epoch, durable))),
                Ok(None) => {}
                Err(error) => silent.push(format!("{name}: {}", with_cause(&error))),
            }
        }
        if floor == Floor::Furthest && !silent.is_empty() {
            return Err(PortError::may_pass(format!(
                "nothing may be lost here, and not every vault says what it holds of `{}`: {}",
                volume.dataset,
                silent.join("; ")
            )));
        }
        let best = best.map_or(Timestamp::MIN, |(_, durable)| match target {
            Target::At(time) => time.parse().map_or(durable, |time: Timestamp| durable.min(time)),
            _ => durable,
        });
        Ok(match (target, floor) {
            (target, _) if is_exact(target) => Timestamp::MIN,
            (_, Floor::At(at)) => at.min(best),
            (_, Floor::Furthest) => best,
        })
    }

    /// Of each vault the newest point beyond this state that is known to be corrupt: an older state in place of a newer one is no
    /// secret. What a log brings back all the same costs nothing, and is not among them.
    fn passed_by(&self, volume: &VolumeSpec, target: &Target, epoch: u64, state: Option<Timestamp>) -> Vec<String> {
        let until = match target {
            Target::Point(_) | Target::Position(_) | Target::Named(_) => return Vec::new(),
            Target::At(time) => time.parse::<Timestamp>().ok(),
            Target::Newest => None,
        };
        let mut passed_by = Vec::new();
        for name in &volume.vaults {
            // A vault that cannot be read is told of where its newest state is asked for.
            let Ok(place) = self.place(name) else { continue };
            let Ok(points) = place.open().and_then(|vault| points(&vault, place, &volume.dataset)) else { continue };
            let beyond = |point: &&PointInfo| {
                let counts = point.epoch >= epoch && until.is_none_or(|until| point.taken_at <= until);
                counts && (point.epoch, Some(point.taken_at)) > (epoch, state)
            };
            let corrupt = points.iter().filter(|point| point.badge == Badge::Corrupt).filter(beyond);
            let Some(newest) = corrupt.max_by_key(|point| (point.epoch, point.taken_at)) else { continue };
            let cost = state.map_or_else(
                || "nothing else is left".to_owned(),
                |state| {
                    let seconds = newest.taken_at.duration_since(state).as_secs_f64().max(0.0);
                    format!("{seconds:.1} s of its data are lost with it")
                },
            );
            passed_by.push(format!(
                "recovery point {} of {} in `{name}` is known to be corrupt and was passed by: {cost}",
                newest.id, newest.taken_at
            ));
        }
        passed_by
    }

    /// What of the point that a target means must be thawed before it can be restored from this vault.
    pub fn archived(&self, name: &str, dataset: &str, target: &Target) -> Result<Option<Archived>, PortError> {
        let place = self.place(name)?;
        Ok(to_thaw(&points(&place.open()?, place, dataset)?, target))
    }

    /// A vault's newest state that counts, and up to where it reaches.
    fn newest_in(&self, name: &str, dataset: &str, target: &Target) -> Result<Option<Newest>, PortError> {
        let place = self.place(name)?;
        let vault = place.open()?;
        let points = points(&vault, place, dataset)?;
        let Some(point) = newest_of(&points).cloned() else { return Ok(None) };
        let (durable, findings) = durable_from(&vault, place, &point)?;
        Ok(Some(Newest { archived: to_thaw(&points, target), point, durable, findings }))
    }
}

/// A vault's newest state.
struct Newest {
    point: PointInfo,
    durable: Timestamp,
    findings: Vec<String>,
    /// What must be thawed of the point that is asked for, which need not be the newest.
    archived: Option<Archived>,
}

impl Newest {
    /// Up to where it reaches of what is asked for.
    fn until(&self, target: &Target) -> Timestamp {
        match target {
            Target::At(time) => time.parse().map_or(self.durable, |time: Timestamp| self.durable.min(time)),
            _ => self.durable,
        }
    }

    /// The highest is the best to restore from.
    fn rank(&self, target: &Target) -> (u64, Timestamp, Reverse<u64>) {
        let waits = self.archived.as_ref().map_or(0, |archived| archived.thaw_seconds);
        (self.point.epoch, self.until(target), Reverse(waits))
    }
}

/// What came in the way of a restore.
#[derive(Default)]
struct Gave {
    failures: Vec<String>,
    thawed: Vec<Thawed>,
}

fn to_thaw(points: &[PointInfo], target: &Target) -> Option<Archived> {
    let archived = meant(points, target).and_then(|point| point.archived.clone());
    archived.filter(|archived| archived.thaw_seconds > 0)
}

/// Whether somebody has named the very state: then no other comes in its place.
fn is_exact(target: &Target) -> bool {
    matches!(target, Target::Point(_) | Target::Position(_) | Target::Named(_))
}

fn said(target: &Target) -> String {
    match target {
        Target::Newest => "the newest".into(),
        Target::At(time) => format!("at {time}"),
        Target::Point(id) => format!("point {id}"),
        Target::Position(place) => format!("log up to {place}"),
        Target::Named(name) => format!("restore point `{name}`"),
    }
}

/// Recovery points of a data set, oldest first.
fn points(vault: &Vault, place: &VaultPlace, dataset: &str) -> Result<Vec<PointInfo>, PortError> {
    let read = vault.points(Some(dataset)).map_err(|error| {
        let text = format!("cannot read the recovery points of `{dataset}` in `{}`", place.name);
        if error.may_pass() { PortError::may_pass(text).because(error) } else { PortError::new(text).because(error) }
    })?;
    Ok(read.points)
}

/// The newest point that counts: of the highest epoch, for a writer of a former one may have gone on, unaware.
fn newest_of(points: &[PointInfo]) -> Option<&PointInfo> {
    let usable = || points.iter().filter(|point| point.badge != Badge::Corrupt);
    let epoch = usable().map(|point| point.epoch).max()?;
    usable().rfind(|point| point.epoch == epoch)
}

/// The point that a target is restored from.
fn meant<'a>(points: &'a [PointInfo], target: &Target) -> Option<&'a PointInfo> {
    match target {
        // Which base a place in the log is reached from, only its source's own reader can say.
        Target::Newest | Target::Position(_) | Target::Named(_) => newest_of(points),
        Target::Point(id) => points.iter().find(|point| point.id == *id),
        Target::At(time) => {
            let time = time.parse::<Timestamp>().ok()?;
            let usable = || points.iter().filter(|p| p.badge != Badge::Corrupt && p.taken_at <= time);
            let epoch = usable().map(|point| point.epoch).max()?;
            usable().rfind(|point| point.epoch == epoch)
        }
    }
}

/// The last source time that is durable for a point: its own, or the end of the log that goes on from it.
fn durable_from(vault: &Vault, place: &VaultPlace, point: &PointInfo) -> Result<(Timestamp, Vec<String>), PortError> {
    let Some(position) = &point.position else { return Ok((point.taken_at, Vec::new())) };
    let trail = vault.log_since(&point.dataset, position).map_err(|error| {
        PortError::may_pass(format!("cannot read the log of `{}` in `{}`", point.dataset, place.name)).because(error)
    })?;
    let last = trail.entries.iter().map(|entry| entry.source_time).max();
    let findings = trail.findings.into_iter().map(|finding| finding.message).collect();
    Ok((last.map_or(point.taken_at, |last| last.max(point.taken_at)), findings))
}

/// What one vault holds of a data set.
#[derive(Debug, Clone, Default)]
pub struct Held {
    pub newest: Option<PointInfo>,
    /// Everything up to this source time can be had from there.
    pub durable: Option<Timestamp>,
    /// What makes this less certain than it looks.
    pub findings: Vec<Finding>,
}

/// Looks at a vault that is open already: asking it again reads only what is new.
pub fn held(vault: &Vault, place: &VaultPlace, dataset: &str) -> Result<Held, PortError> {
    let unreadable = |what: &str| format!("cannot read the {what} of `{dataset}` in `{}`", place.name);
    let read = vault
        .points(Some(dataset))
        .map_err(|error| PortError::may_pass(unreadable("recovery points")).because(error))?;
    let mut held = Held { findings: read.findings.clone(), ..Held::default() };
    let Some(newest) = read.newest(dataset, None) else { return Ok(held) };
    held.durable = Some(newest.taken_at);
    if let Some(position) = &newest.position {
        let trail = vault
            .log_since(dataset, position)
            .map_err(|error| PortError::may_pass(unreadable("log")).because(error))?;
        held.findings.extend(trail.findings);
        held.durable = trail.entries.iter().map(|entry| entry.source_time).chain(held.durable).max();
    }
    held.newest = Some(newest.clone());
    Ok(held)
}

impl Recovery for Vaults {
    fn reach(&self, volume: &VolumeSpec, target: &Target) -> Result<Reach, PortError> {
        let mut best = Reach::default();
        let mut best_rank = None;
        let mut findings = Vec::new();
        for name in &volume.vaults {
            match self.newest_in(name, &volume.dataset, target) {
                Err(error) => findings.push(format!("{name}: {}", with_cause(&error))),
                Ok(None) => findings.push(format!("{name} has no recovery point of `{}`", volume.dataset)),
                Ok(Some(newest)) => {
                    let rank = Some(newest.rank(target));
                    let until = newest.until(target);
                    findings.extend(newest.findings);
                    if rank > best_rank {
                        best_rank = rank;
                        best = Reach {
                            source_time: Some(until),
                            vault: Some(name.clone()),
                            point: Some(newest.point.id),
                            archived: newest.archived,
                            ..Reach::default()
                        };
                    }
                }
            }
        }
        best.findings = findings;
        let best_epoch = best_rank.map_or(0, |(epoch, ..)| epoch);
        best.passed_by = self.passed_by(volume, target, best_epoch, best.source_time);
        Ok(best)
    }

    fn restore(
        &self,
        volume: &VolumeSpec,
        target: &Target,
        to: &Path,
        in_place: bool,
        floor: Floor,
        watch: &Watch,
    ) -> Result<Facts, PortError> {
        let floor = self.floor(volume, target, floor)?;
        let restorer = (self.restorer_for)(&volume.source)?;
        let request = RestoreRequest {
            dataset: volume.dataset.clone(),
            to: data_path(to, &volume.source),
            target: target.clone(),
            in_place,
        };
        let mut gave = Gave::default();
        let mut last: Option<PortError> = None;
        for name in self.furthest_first(volume, target) {
            let restored = self
                .place(name)
                .and_then(|place| self.restore_from(place, &*restorer, &request, floor, watch, &mut gave));
            match restored {
                Ok(restored) => {
                    let passed_by = self.passed_by(volume, target, restored.point.epoch, Some(restored.as_of));
                    return Ok(facts(name, &restored, gave, passed_by));
                }
                Err(error) if watch.cancel.is_cancelled() => return Err(error),
                Err(error) => {
                    gave.failures.push(format!("{name}: {}", with_cause(&error)));
                    last = Some(error);
                }
            }
        }
        let may_pass = last.is_some_and(|error| error.may_pass);
        let message =
            format!("`{}` could not be restored from any vault: {}", volume.dataset, gave.failures.join("; "));
        Err(if may_pass { PortError::may_pass(message) } else { PortError::new(message) })
    }

    fn protection(&self, vault: &str, dataset: &str, epoch: u64) -> Result<Protection, PortError> {
        let place = self.place(vault)?;
        let opened = place.open()?;
        let newest = points(&opened, place, dataset)?.into_iter().rfind(|point| point.epoch >= epoch);
        let Some(point) = newest else { return Ok(Protection::default()) };
        let (durable, _) = durable_from(&opened, place, &point)?;
        Ok(Protection { point: Some(point.id), durable: Some(durable) })
    }
}

fn facts(vault: &str, restored: &Restored, gave: Gave, passed_by: Vec<String>) -> Facts {
    Facts::from([
        ("vault".to_owned(), json!(vault)),
        ("point".to_owned(), json!(restored.point.id)),
        ("position".to_owned(), json!(restored.position)),
        ("as_of".to_owned(), json!(restored.as_of.to_string())),
        ("files".to_owned(), json!(restored.files)),
        ("bytes".to_owned(), json!(restored.bytes)),
        ("bytes_written".to_owned(), json!(restored.bytes_written)),
        ("seconds".to_owned(), json!(restored.seconds)),
        ("verified".to_owned(), json!(restored.verified)),
        ("notes".to_owned(), json!(restored.notes)),
        ("thawed".to_owned(), json!(gave.thawed)),
        ("gave_way".to_owned(), json!(gave.failures)),
        ("passed_by".to_owned(), json!(passed_by)),
    ])
}
