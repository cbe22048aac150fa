//! `lifeboat backup`: takes recovery points now, of paths or of the plan's data sets.
//!
//! Invariant: what is not in a recovery point is said, on the screen and in the document; an interrupted backup goes on from
//! what it had stored.

mod take;
mod what;

use lifeboat_vault::SessionOptions;
use serde::Serialize;

use self::take::Taken;
use crate::door::{self, VaultArgs};
use crate::error::{CommandError, Exit};
use crate::interrupt;
use crate::ui::Ui;

/// Take recovery points now, of directories and files or of the plan's data sets
///
/// With --vault URL the arguments are paths, and each is a data set of its own, named by its absolute path. With a plan
/// they are names of data sets or services; without any, all data sets of this site.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Paths, or the plan's data sets and services
    #[arg(value_name = "PATH|DATASET")]
    what: Vec<std::path::PathBuf>,
    #[command(flatten)]
    vault: VaultArgs,
    /// Call the data set NAME; several paths then make one data set together
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
    /// Leave out what matches: `*.tmp` anywhere, `/cache` at the top, `build/` directories only
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Do not descend into other file systems that are mounted below
    #[arg(long)]
    one_file_system: bool,
    /// Take less time and about an eighth more space, for a first backup in a hurry. Points taken either way share what is alike
    #[arg(long)]
    fast: bool,
    /// Dump a PostgreSQL server, for other versions and providers: a service of pg_service.conf, such as a replica's, or its data directory
    #[arg(long, value_name = "SERVICE|DIR")]
    dump: Option<std::ffi::OsString>,
    /// With --dump: this database only; may be given several times [default: all that allow connections]
    #[arg(long, value_name = "NAME", requires = "dump")]
    database: Vec<String>,
    /// The plan's site that this host is at [default: each service's primary]
    #[arg(long, value_name = "NAME")]
    site: Option<String>,
}

#[derive(Serialize)]
struct Skipped {
    path: String,
    reason: String,
}

#[derive(Serialize)]
struct Report {
    point: String,
    dataset: String,
    vault: String,
    host: String,
    taken_at: jiff::Timestamp,
    files: u64,
    bytes: u64,
    bytes_read: u64,
    bytes_new: u64,
    bytes_stored: u64,
    seconds: f64,
    skipped: Vec<Skipped>,
    skipped_count: u64,
    changed: Vec<String>,
    notes: Vec<String>,
    clock_back_seconds: Option<f64>,
    doubts: Vec<String>,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let session = if args.fast { SessionOptions::fast() } else { SessionOptions::default() };
    let work = what::find(args, ui)?;
    let cancel = interrupt::listen(ui)?;
    let mut exit = Exit::Done;
    for why in &work.unable {
        ui.warn(format_args!("not backed up: {why}"));
        exit = Exit::Finding;
    }
    let mut written = Vec::new();
    for (vault, items) in work.vaults {
        let host = vault.open_as_host(ui)?;
        let findings = host.findings();
        door::show(&findings, ui);
        if door::ends(&findings) != Exit::Done {
            exit = Exit::Finding;
        }
        for item in &items {
            item.check_apart(host.storage().location().as_ref())?;
        }
        for item in items {
            let taken = take::take((&vault.name, &host), &item, session, &cancel, ui)?;
            if taken.leaves_a_finding() {
                exit = Exit::Finding;
            }
            tell(&vault.name, taken, ui)?;
        }
        let mut since = host.findings();
        since.retain(|finding| !findings.contains(finding));
        door::show(&since, ui);
        if door::ends(&since) != Exit::Done {
            exit = Exit::Finding;
        }
        written.push((vault.name, host));
    }
    // How far each has come is said in the others, so that none can be rolled back unnoticed.
    for (name, host) in &written {
        for (other, about) in written.iter().filter(|(other, _)| other != name) {
            if let Err(error) = host.witness(about) {
                ui.warn(format_args!("`{name}` cannot take in how far `{other}` has come: {error}"));
            }
        }
    }
    Ok(exit)
}

fn tell(vault: &str, taken: Taken, ui: &Ui) -> Result<(), CommandError> {
    taken.say(ui);
    let Taken { point, bytes_read, seconds, skipped, skipped_count, changed, notes, clock_back_seconds, doubts } =
        taken;
    ui.event(&Report {
        point: point.id,
        dataset: point.dataset,
        vault: vault.to_owned(),
        host: point.host,
        taken_at: point.taken_at,
        files: point.files,
        bytes: point.bytes,
        bytes_read,
        bytes_new: point.bytes_new,
        bytes_stored: point.bytes_stored,
        seconds,
        skipped: skipped
            .into_iter()
            .map(|skipped| Skipped { path: skipped.path.to_string_lossy().into_owned(), reason: skipped.reason })
            .collect(),
        skipped_count,
        changed: changed.into_iter().map(|path| path.to_string_lossy().into_owned()).collect(),
        notes,
        clock_back_seconds,
        doubts,
    })
}
