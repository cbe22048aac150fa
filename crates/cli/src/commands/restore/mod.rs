//! `lifeboat restore`: brings back a data set or a whole service, all of it or a part, as it was at a moment.
//!
//! Invariant: nothing is written before it is known which point is meant and that the key opens it; what does not verify is
//! never called restored.

mod bring;
pub(crate) mod which;

use std::path::PathBuf;

use serde::Serialize;

use crate::door::{self, VaultArgs, WitnessArgs};
use crate::error::{CommandError, Exit};
use crate::interrupt;
use crate::thaw;
use crate::ui::Ui;

/// Restore a data set, or a service at one consistent moment, to a directory
///
/// Without --at or --point the newest recovery point. The directory must be new or empty, unless --in-place. An interrupted
/// restore goes on when it is run again. What lies in an archive of the storage is thawed first, as the plan says; without a plan
/// this ends with 5 and says what to thaw. Works on any machine that has a key and reaches the vault.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A data set (its name, or the end of it) or a service of the plan; not needed where the vault has only one data set
    #[arg(value_name = "DATASET|SERVICE")]
    what: Option<String>,
    #[command(flatten)]
    vault: VaultArgs,
    #[command(flatten)]
    witness: WitnessArgs,
    /// A key that opens the vault; may be given several times
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
    /// Where to; each data set of a service goes into a directory of its own in it
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// As it was at this moment: 2026-11-21T14:00:00Z
    #[arg(long, value_name = "TIME", conflicts_with = "point")]
    at: Option<String>,
    /// This recovery point: as `lifeboat points` shows it, or the end of it
    #[arg(long, value_name = "ID")]
    point: Option<String>,
    /// Of a PostgreSQL cluster: everything up to and including the record of its log that reaches this place (`pg_current_wal_lsn()`)
    #[arg(long, value_name = "LSN", conflicts_with_all = ["at", "point", "path", "host"])]
    position: Option<String>,
    /// Of a PostgreSQL cluster: as it was at the restore point of this name (`pg_create_restore_point`)
    #[arg(long, value_name = "NAME", conflicts_with_all = ["at", "point", "path", "host", "position"])]
    named: Option<String>,
    /// Only this path (relative to what was backed up); may be given several times
    #[arg(long, value_name = "PATH")]
    path: Vec<PathBuf>,
    /// The host that took the points, where several did
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// Over what is in the directory, writing only what differs
    #[arg(long)]
    in_place: bool,
    /// With --in-place: remove what the recovery point does not have
    #[arg(long, requires = "in_place")]
    delete_extra: bool,
    /// Do not ask before changing what is in the directory
    #[arg(long)]
    yes: bool,
}

/// What is to be brought back only to be looked at.
#[derive(Debug, Clone)]
pub(crate) struct ToVerify {
    pub(crate) what: Option<String>,
    pub(crate) vault: VaultArgs,
    pub(crate) witness: WitnessArgs,
    pub(crate) key: Vec<PathBuf>,
    pub(crate) at: Option<String>,
    pub(crate) point: Option<String>,
}

/// As a restore finds it: what is verified is what would be restored.
pub(crate) fn find_to_verify(wanted: ToVerify, ui: &Ui) -> Result<Vec<which::Task>, CommandError> {
    let ToVerify { what, vault, witness, key, at, point } = wanted;
    let args = Args {
        what,
        vault,
        witness,
        key,
        to: PathBuf::new(),
        at,
        point,
        position: None,
        named: None,
        path: Vec::new(),
        host: None,
        in_place: false,
        delete_extra: false,
        yes: false,
    };
    which::find(&args, ui)
}

#[derive(Serialize)]
struct Report {
    point: String,
    dataset: String,
    host: String,
    taken_at: jiff::Timestamp,
    /// The state is that of this moment; later than `taken_at` where a log goes on from the point.
    as_of: jiff::Timestamp,
    to: String,
    files: u64,
    bytes: u64,
    bytes_written: u64,
    seconds: f64,
    verified: bool,
    resumed: bool,
    notes: Vec<String>,
    /// Who was asked whether the vault is fresh, and what they prove.
    witnesses: Vec<lifeboat_vault::Witness>,
    findings: Vec<lifeboat_vault::Finding>,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let tasks = which::find(&args, ui)?;
    for task in &tasks {
        door::check_outside(&task.to, &task.vault.storage().location())?;
    }
    if args.in_place {
        // A cluster with a file more than it had is another one.
        let removes = args.delete_extra || tasks.iter().any(|task| matches!(task.how, which::How::Postgres(_)));
        let what = if removes { "and what is extra is removed" } else { "and what is extra stays" };
        let to = args.to.display();
        ui.confirm(&format!("What is in {to} is changed to the recovery point, {what}. Restore?"), args.yes)?;
    }
    let cancel = interrupt::listen(ui)?;
    let mut exit = Exit::Done;
    let mut shown = Vec::new();
    for task in tasks {
        let mut new = task.findings.clone();
        new.retain(|finding| !shown.contains(finding));
        door::show(&new, ui);
        shown.extend(new);
        let freshness = door::freshness(&task.vault, &task.findings);
        if !task.vault.witnesses().is_empty() {
            ui.note(&freshness);
        }
        let paths = bring::wanted(&task, &args)?;
        thaw::make_readable(&task.vault, &task.point, &paths, task.archive.as_ref(), "restored", &cancel, ui)?;
        let brought = bring::bring(&task, &args, &cancel, ui)?;
        if door::ends_for(&task.findings, Some(&brought.point)) != Exit::Done || !brought.verified {
            exit = Exit::Finding;
        }
        brought.say(ui);
        ui.event(&Report {
            point: brought.point.id,
            dataset: brought.point.dataset,
            host: brought.point.host,
            taken_at: brought.point.taken_at,
            as_of: brought.as_of,
            to: brought.to.to_string_lossy().into_owned(),
            files: brought.files,
            bytes: brought.bytes,
            bytes_written: brought.bytes_written,
            seconds: brought.seconds,
            verified: brought.verified,
            resumed: brought.resumed,
            notes: brought.notes,
            witnesses: task.vault.witnesses(),
            findings: task.findings,
        })?;
    }
    Ok(exit)
}
