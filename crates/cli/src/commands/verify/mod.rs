//! `lifeboat verify`: brings a recovery point back to a scratch directory, looks at everything there, and records what it found.
//!
//! Invariant: a badge is recorded only for what was found out; whatever could not be done leaves the badge as it was. The scratch directory
//! is gone at the end, however it ends.

pub(crate) mod scheduled;

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use lifeboat_adapters::source::{FilesSource, PostgresSource, Scratch, SqliteSource, restorer_for};
use lifeboat_core::plan::{DataSet, Plan, Service};
use lifeboat_core::runbook::Target;
use lifeboat_engine::port::{Cancel, Restorer};
use lifeboat_engine::verify::{Check, Verification, VerifyRequest};
use lifeboat_vault::{Badge, Finding, HostVault};
use serde::Serialize;

use crate::commands::points::time;
use crate::commands::restore::which::{How, Task};
use crate::commands::restore::{ToVerify, find_to_verify};
use crate::door::{self, VaultArgs, WitnessArgs, is_address};
use crate::error::{CommandError, Exit, Explain, Kind};
use crate::files_progress::OnScreen;
use crate::interrupt;
use crate::plan_file;
use crate::report::counted;
use crate::thaw;
use crate::ui::Ui;

/// There is more room than in the memory that `/tmp` may be.
const SCRATCH: &str = "/var/tmp";

/// Restore recovery points to a scratch directory, check all that can be checked there, and record what was found
///
/// What would be restored is verified: without --at or --point the newest state that the vault holds, of each data set that is named, or of all
/// that the plan protects. Of a PostgreSQL cluster: its files against the server's manifest, every record of its log, recovery to
/// the target, the plan's queries, tables and indexes, checksums. The result is the point's badge from then on, where this host may write to
/// the vault. Ends with 3 if something is wrong, and with 1 if it could not be found out; then nothing is recorded.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Data sets of the plan, or of the vault [default: all that the plan protects, or the vault's only one]
    #[arg(value_name = "DATASET")]
    what: Vec<String>,
    #[command(flatten)]
    vault: VaultArgs,
    #[command(flatten)]
    witness: WitnessArgs,
    /// A key that opens the vault; may be given several times
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
    /// As it was at this moment: 2026-11-21T14:00:00Z
    #[arg(long, value_name = "TIME", conflicts_with = "point")]
    at: Option<String>,
    /// This recovery point: as `lifeboat points` shows it, or the end of it
    #[arg(long, value_name = "ID")]
    point: Option<String>,
    /// A directory with room for what is restored, in which one is made and removed [default: /var/tmp]
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report {
    dataset: String,
    point: Option<String>,
    vault: Option<String>,
    /// The state that was looked at is that of this moment.
    as_of: Option<Timestamp>,
    position: Option<String>,
    /// Absent: it could not be found out.
    badge: Option<Badge>,
    recorded: bool,
    checks: Vec<Check>,
    notes: Vec<String>,
    seconds: Option<f64>,
    findings: Vec<Finding>,
    /// Why it could not be verified, or what it found not be recorded.
    error: Option<String>,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let plan = match args.vault.vault.as_deref().is_none_or(|vault| !is_address(vault)) {
        true => plan_file::load_if_any(ui)?.map(|loaded| loaded.plan),
        false => None,
    };
    let names = names(&args, plan.as_ref())?;
    let cancel = interrupt::listen(ui)?;
    let (mut reports, mut undone, mut exit) = (Vec::new(), 0, Exit::Done);
    let several = names.len() > 1;
    for name in names {
        let wanted = ToVerify {
            what: name.clone(),
            vault: args.vault.clone(),
            witness: args.witness.clone(),
            key: args.key.clone(),
            at: args.at.clone(),
            point: args.point.clone(),
        };
        let done = find_to_verify(wanted, ui).and_then(|tasks| {
            let each = |task: &Task| one(task, &args, plan.as_ref(), &cancel, ui);
            tasks.iter().map(each).collect::<Result<Vec<_>, _>>()
        });
        if cancel.is_cancelled() {
            return Err(CommandError::interrupted(
                "interrupted; nothing of it was recorded, and nothing of it is left",
            ));
        }
        match done {
            Ok(done) => {
                for report in done {
                    undone += usize::from(report.badge.is_none());
                    let is_good = report.badge == Some(Badge::Verified) && report.recorded;
                    if report.badge.is_some() && !is_good || door::ends(&report.findings) != Exit::Done {
                        exit = Exit::Finding;
                    }
                    reports.push(report);
                }
            }
            Err(error) if !several => return Err(error),
            Err(error) => {
                let name = name.unwrap_or_default();
                let said = std::iter::once(&error.message).chain(&error.causes).cloned().collect::<Vec<_>>().join(": ");
                ui.warn(format_args!("{name} was not verified: {said}"));
                undone += 1;
                reports.push(Report::undone(name, said));
            }
        }
    }
    ui.document(&reports)?;
    match (exit, undone) {
        (Exit::Finding, _) | (_, 0) => Ok(exit),
        (_, undone) => {
            let of = counted(reports.len() as u64, "data set");
            Err(CommandError::failed(format!("{undone} of {of} could not be verified; nothing was recorded of it"))
                .hint("what was not done is said above, with what it needs; then run it again"))
        }
    }
}

fn names(args: &Args, plan: Option<&Plan>) -> Result<Vec<Option<String>>, CommandError> {
    if !args.what.is_empty() {
        return Ok(args.what.iter().cloned().map(Some).collect());
    }
    let Some(plan) = plan else { return Ok(vec![None]) };
    let protected =
        plan.services.values().flat_map(Service::datasets).filter(|(_, dataset)| !dataset.protect.is_empty());
    let names: Vec<Option<String>> = protected.map(|(_, dataset)| Some(dataset.name.clone())).collect();
    if names.is_empty() {
        return Err(CommandError::usage("the plan protects nothing: there is nothing to verify"));
    }
    Ok(names)
}

/// One data set: brought back, looked at, told and recorded.
fn one(task: &Task, args: &Args, plan: Option<&Plan>, cancel: &Cancel, ui: &Ui) -> Result<Report, CommandError> {
    let of_plan = plan.and_then(|plan| {
        let mut all = plan.services.values().flat_map(Service::datasets);
        all.find(|(_, dataset)| dataset.name == task.point.dataset).map(|(_, dataset)| dataset)
    });
    door::show(&task.findings, ui);
    thaw::make_readable(&task.vault, &task.point, &[], task.archive.as_ref(), "verified", cancel, ui)?;
    let below = args.scratch.clone().unwrap_or_else(|| PathBuf::from(SCRATCH));
    door::check_outside(&below, &task.vault.storage().location())?;
    let make = if matches!(task.how, How::Postgres(_)) { Scratch::for_a_server } else { Scratch::make };
    let scratch = make(&below)
        .saying(|| format!("no scratch directory can be made in {}", below.display()))
        .hint("name a place with room for what is restored: --scratch DIR")?;
    let found = look(task, of_plan, &scratch, cancel, ui);
    drop(scratch);
    let found = found?;
    if cancel.is_cancelled() {
        return Err(CommandError::interrupted("interrupted"));
    }
    say(&found, ui);
    let (recorded, error) = match found.badge() {
        None => (false, None),
        Some(badge) => match record(task, &found, badge, ui) {
            Ok(()) => (true, None),
            Err(error) => {
                let said = std::iter::once(&error.message).chain(&error.causes).cloned().collect::<Vec<_>>().join(": ");
                ui.warn(format_args!("this is not recorded as the point's badge: {said}"));
                (false, Some(said))
            }
        },
    };
    Ok(Report {
        dataset: found.point.dataset.clone(),
        point: Some(found.point.id.clone()),
        vault: Some(task.vault.storage().location()),
        as_of: found.as_of,
        position: found.position.clone(),
        badge: found.badge(),
        recorded,
        seconds: Some(found.seconds),
        checks: found.checks,
        notes: found.notes,
        findings: task.findings.clone(),
        error,
    })
}

fn look(
    task: &Task,
    dataset: Option<&DataSet>,
    scratch: &Scratch,
    cancel: &Cancel,
    ui: &Ui,
) -> Result<Verification, CommandError> {
    let (restorer, target): (Arc<dyn Restorer>, Target) = match (&task.how, dataset) {
        (How::Files, Some(dataset)) => (restorer_for(&dataset.source)?, Target::Point(task.point.id.clone())),
        (How::Files, None) => (Arc::new(FilesSource::new("", &[], None)?), Target::Point(task.point.id.clone())),
        (How::Sqlite(target) | How::Postgres(target), Some(dataset)) => {
            (restorer_for(&dataset.source)?, target.clone())
        }
        (How::Sqlite(target), None) => (Arc::new(SqliteSource::new("", "")), target.clone()),
        (How::Postgres(target), None) => (Arc::new(PostgresSource::new("", None, "")), target.clone()),
    };
    let verify = dataset.and_then(|dataset| dataset.verify.as_ref());
    let request = VerifyRequest {
        dataset: task.point.dataset.clone(),
        target,
        scratch: scratch.path(),
        queries: verify.map(|verify| verify.queries.clone()).unwrap_or_default(),
        database: verify.and_then(|verify| verify.database.clone()),
    };
    let progress = OnScreen::new(ui, "verifying");
    let found = restorer.verify(&task.vault, &request, &progress, cancel);
    drop(progress);
    found
        .kind(if cancel.is_cancelled() { Kind::Interrupted } else { Kind::Failed })
        .hint("nothing was found out about the recovery point, and nothing was recorded; once the cause is gone, run it again")
}

/// As this host, which must be enrolled.
fn record(task: &Task, found: &Verification, badge: Badge, ui: &Ui) -> Result<(), CommandError> {
    let storage = Arc::clone(task.vault.storage());
    let host =
        HostVault::open(storage, door::state(ui, None)?, Some(task.vault.owner())).map_err(CommandError::of_vault)?;
    host.record_verification(&found.point, badge, &found.depth()).map_err(CommandError::of_vault)
}

fn say(found: &Verification, ui: &Ui) {
    let badge = match found.badge() {
        Some(badge) => badge_word(badge),
        None => "not found out",
    };
    let as_of = found.as_of.map(|at| format!(" as of {}", time(at))).unwrap_or_default();
    ui.line(format_args!(
        "{}{as_of}: {badge}, in {:.1} s (recovery point {})",
        found.point.dataset, found.seconds, found.point.id
    ));
    for check in &found.checks {
        ui.line(format_args!(
            "  {:<9}  {:<8}  {:>6.1} s  {}",
            check.check,
            check.outcome.word(),
            check.seconds,
            check.what
        ));
    }
    for note in &found.notes {
        ui.note(format_args!("note: {note}"));
    }
}

fn badge_word(badge: Badge) -> &'static str {
    match badge {
        Badge::Verified => "verified",
        Badge::Unverified => "unverified",
        Badge::Suspect => "suspect",
        Badge::Corrupt => "corrupt",
    }
}

impl Report {
    fn undone(dataset: String, error: String) -> Report {
        Report {
            dataset,
            point: None,
            vault: None,
            as_of: None,
            position: None,
            badge: None,
            recorded: false,
            checks: Vec::new(),
            notes: Vec::new(),
            seconds: None,
            findings: Vec::new(),
            error: Some(error),
        }
    }
}
