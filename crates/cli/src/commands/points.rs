//! `lifeboat points`: the recovery points that a vault holds, as far as they are known without keys.

use jiff::Timestamp;
use lifeboat_core::units::{Size, Span};
use lifeboat_vault::prune::{Archived, Hold};
use lifeboat_vault::{Badge, PointInfo};
use serde::Serialize;

use super::restore::which::is_meant;
use super::status::LockStatus;
use crate::door::{self, VaultArgs, WitnessArgs};
use crate::error::{CommandError, Exit};
use crate::report;
use crate::ui::Ui;

/// List recovery points, oldest first, with what is known of their soundness
///
/// Needs no key. Ends with exit code 3 if something is missing or forged, or if nothing here proves that the list is fresh.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Of this data set only: its name, or the end of it
    #[arg(value_name = "DATASET")]
    dataset: Option<String>,
    #[command(flatten)]
    vault: VaultArgs,
    #[command(flatten)]
    witness: WitnessArgs,
}

#[derive(Serialize)]
struct Listed<'a> {
    id: &'a str,
    dataset: &'a str,
    host: &'a str,
    taken_at: Timestamp,
    stored_at: Timestamp,
    position: Option<String>,
    files: u64,
    bytes: u64,
    bytes_stored: u64,
    badge: Badge,
    /// What is held against it, where it is suspect.
    doubts: &'a [String],
    /// Why no prune takes it, if it is held.
    held: Option<&'a str>,
    /// What of it lies in another class of storage, and how long that takes to thaw.
    archived: Option<&'a Archived>,
    epoch: u64,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let named = args.vault.find(ui)?.against(&args.witness);
    let vault = named.open(ui)?;
    let found = vault.points(None).map_err(CommandError::of_vault)?;
    let wanted = args.dataset.map(|name| dataset_named(&found.points, &name)).transpose()?;
    let points: Vec<&PointInfo> =
        found.points.iter().filter(|point| wanted.as_ref().is_none_or(|wanted| point.dataset == *wanted)).collect();
    let (holds, hold_findings) = vault.holds().map_err(CommandError::of_vault)?;
    let listed: Vec<Listed<'_>> = points.iter().map(|point| listed(point, &holds)).collect();
    ui.document(&listed)?;
    if points.is_empty() {
        ui.note("there are no recovery points yet; `lifeboat backup` takes one");
    } else {
        ui.line(table(&points, &holds).trim_end());
    }
    if let Some(locks) = LockStatus::seen(&vault, &door::state(ui, None)?, named.lock.is_some()) {
        ui.note(format_args!("locks: {}", locks.describe()));
    }
    door::show(&found.findings, ui);
    door::show(&hold_findings, ui);
    let asked_for = points.first().filter(|_| wanted.is_some()).copied();
    Ok(door::ends_for(&found.findings, asked_for))
}

/// The hold that keeps a point today.
fn hold_on<'a>(point: &PointInfo, holds: &'a [Hold]) -> Option<&'a Hold> {
    holds.iter().find(|hold| !hold.has_ended(Timestamp::now()) && hold.covers(&point.id, &point.dataset))
}

fn listed<'a>(point: &'a PointInfo, holds: &'a [Hold]) -> Listed<'a> {
    Listed {
        id: &point.id,
        dataset: &point.dataset,
        host: &point.host,
        taken_at: point.taken_at,
        stored_at: point.stored_at,
        position: position(point),
        files: point.files,
        bytes: point.bytes,
        bytes_stored: point.bytes_stored,
        badge: point.badge,
        doubts: &point.doubts,
        held: hold_on(point, holds).map(|hold| hold.why.as_str()),
        archived: point.archived.as_ref(),
        epoch: point.epoch,
    }
}

fn table(points: &[&PointInfo], holds: &[Hold]) -> String {
    let rows: Vec<Vec<String>> = points
        .iter()
        .map(|point| {
            vec![
                time(point.taken_at),
                point.dataset.clone(),
                point.host.clone(),
                point.files.to_string(),
                Size(point.bytes).rounded(),
                badge(point, hold_on(point, holds).is_some()),
                point.sequence.to_string(),
            ]
        })
        .collect();
    report::table(&["TAKEN AT", "DATA SET", "HOST", "FILES", "SIZE", "BADGE", "POINT"], &rows)
}

/// What is known of a point's soundness, and what stands in the way of a restore.
fn badge(point: &PointInfo, is_held: bool) -> String {
    let mut words = vec![word(point.badge).to_owned()];
    words.extend(is_held.then(|| "held".to_owned()));
    words.extend(point.archived.as_ref().map(archived));
    words.join(", ")
}

/// `archived, 12h to thaw`
pub(crate) fn archived(archived: &Archived) -> String {
    match archived.thaw_seconds {
        0 => "archived".to_owned(),
        seconds => format!("archived, {} to thaw", Span::seconds(seconds)),
    }
}

/// To the second, as `--at` takes it.
pub(crate) fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

pub(crate) fn position(point: &PointInfo) -> Option<String> {
    point.position.as_ref().map(|position| format!("{}/{}", position.lineage, position.counter))
}

pub(crate) fn word(badge: Badge) -> &'static str {
    match badge {
        Badge::Verified => "verified",
        Badge::Unverified => "unverified",
        Badge::Suspect => "suspect",
        Badge::Corrupt => "corrupt",
    }
}

/// The data set that a name means: the whole name, a path that is one, or the end of just one.
pub(crate) fn dataset_named(points: &[PointInfo], name: &str) -> Result<String, CommandError> {
    let mut all: Vec<&str> = points.iter().map(|point| point.dataset.as_str()).collect();
    all.sort_unstable();
    all.dedup();
    let absolute = std::path::Path::new(name).canonicalize().ok();
    let absolute = absolute.as_ref().and_then(|path| path.to_str());
    if let Some(found) = all.iter().find(|known| **known == name || Some(**known) == absolute) {
        return Ok((*found).to_owned());
    }
    let end = format!("/{}", name.trim_matches('/'));
    let ending: Vec<&str> = all.iter().copied().filter(|known| known.ends_with(&end)).collect();
    match ending[..] {
        [only] => Ok(only.to_owned()),
        [] if all.is_empty() => Err(no_points()),
        [] => Err(CommandError::usage(format!("the vault has no recovery point of `{name}`"))
            .hint(format!("it has some of: {}", all.join(", ")))),
        _ => Err(CommandError::usage(format!("`{name}` may mean several data sets"))
            .hint(format!("say which: {}", ending.join(", ")))),
    }
}

/// The point that goes by this name: its id, the end of it, or its number where only one has that.
pub(crate) fn point_named<'a>(points: &'a [PointInfo], id: &str) -> Result<&'a PointInfo, CommandError> {
    let meant: Vec<&PointInfo> = points.iter().filter(|point| is_meant(point, id)).collect();
    match meant[..] {
        [only] => Ok(only),
        [] => Err(CommandError::usage(format!("the vault has no recovery point {id}"))
            .hint("`lifeboat points` lists what there is")),
        _ => {
            let ids: Vec<&str> = meant.iter().map(|point| point.id.as_str()).collect();
            Err(CommandError::usage(format!("`{id}` may mean several points"))
                .hint(format!("say which: {}", ids.join(", "))))
        }
    }
}

pub(crate) fn no_points() -> CommandError {
    CommandError::failed("the vault holds no recovery point").hint("`lifeboat backup` takes one")
}
