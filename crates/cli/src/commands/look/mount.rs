//! `lifeboat mount`: recovery points as a directory, read-only, until it is ended.
//!
//! Invariant: when the command has ended nothing is mounted any more.

use std::path::PathBuf;
use std::time::Duration;

use lifeboat_adapters::mount::{self, MountError, MountOptions, Shown};
use lifeboat_core::units::Span;
use lifeboat_vault::PointInfo;
use serde::Serialize;

use super::{OpenArgs, Opened};
use crate::commands::points::{dataset_named, no_points};
use crate::commands::restore::which::is_meant;
use crate::door;
use crate::error::{CommandError, Exit, Kind};
use crate::interrupt;
use crate::report::counted;
use crate::ui::Ui;

/// Show recovery points as a read-only directory, until Ctrl-C
///
/// WHAT is a data set (all its points, by time, and `latest`), or a point (its id, the end of it or its number); without it every data set.
/// Every byte that is read is verified; what does not verify is an I/O error, what must be thawed first the error `No data
/// available`, and both a line here that names the object. Points taken after the mount are not in it. Needs /dev/fuse, and for who is not root `fusermount3`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to show, and the empty directory to show it in
    #[arg(value_names = ["WHAT", "DIR"], num_args = 1..=2, required = true)]
    words: Vec<PathBuf>,
    #[command(flatten)]
    open: OpenArgs,
    /// Other users may look, too, as far as the files' own modes let them
    #[arg(long)]
    allow_other: bool,
}

#[derive(Serialize)]
struct Event<'a> {
    event: &'a str,
    directory: String,
    points: usize,
}

/// Between two looks whether it is over.
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let (what, at) = match &args.words[..] {
        [what, at] => (Some(what.to_string_lossy().into_owned()), at),
        [at] => (None, at),
        _ => return Err(CommandError::usage("where to? name an empty directory")),
    };
    let opened = args.open.open(ui)?;
    let shown = shown(&opened, what.as_deref())?;
    door::show(&opened.findings, ui);
    let cancel = interrupt::listen(ui)?;
    let options = MountOptions { allow_other: args.allow_other };
    let mounted = mount::mount(&opened.vault, &shown, at, options).map_err(of_mount)?;
    let points = match &shown {
        Shown::All(points) | Shown::DataSet(points) => points.len(),
        Shown::Point(_) => 1,
    };
    let directory = at.to_string_lossy().into_owned();
    ui.event(&Event { event: "mounted", directory: directory.clone(), points })?;
    ui.line(format_args!("{} in {directory}; Ctrl-C ends it", counted(points as u64, "recovery point")));
    warn_of_archived(&shown, ui);
    while !cancel.is_cancelled() && !mounted.is_over() {
        std::thread::sleep(LOOK_EVERY);
    }
    mounted.unmount().map_err(of_mount)?;
    ui.event(&Event { event: "unmounted", directory, points })?;
    Ok(door::ends(&opened.findings))
}

/// What lies in an archive is shown, and cannot be read.
fn warn_of_archived(shown: &Shown, ui: &Ui) {
    let points: Vec<&PointInfo> = match shown {
        Shown::All(points) | Shown::DataSet(points) => points.iter().collect(),
        Shown::Point(point) => vec![&**point],
    };
    let archived = points.iter().filter_map(|point| Some((*point, point.archived.as_ref()?)));
    let archived: Vec<_> = archived.filter(|(_, archived)| archived.thaw_seconds > 0).collect();
    let Some((point, slowest)) = archived.iter().max_by_key(|(_, archived)| archived.thaw_seconds) else { return };
    ui.warn(format_args!(
        "{} cannot be read whole: part of it lies in the class {} and must be thawed (up to {}); reading that is the error `No data \
         available`, and a line here; `lifeboat restore --point {} --key FILE --to DIR` has it thawed as the plan says",
        counted(archived.len() as u64, "recovery point"),
        slowest.class,
        Span::seconds(slowest.thaw_seconds),
        point.id
    ));
}

fn shown(opened: &Opened, what: Option<&str>) -> Result<Shown, CommandError> {
    let points = &opened.points;
    if points.is_empty() {
        return Err(no_points());
    }
    let Some(what) = what else { return Ok(Shown::All(points.clone())) };
    if points.iter().any(|point| is_meant(point, what)) || what.contains('@') {
        return Ok(Shown::Point(Box::new(opened.point(what)?.clone())));
    }
    let dataset = dataset_named(points, what)?;
    let of_it: Vec<PointInfo> = points.iter().filter(|point| point.dataset == dataset).cloned().collect();
    Ok(Shown::DataSet(of_it))
}

fn of_mount(error: MountError) -> CommandError {
    let kind = match &error {
        MountError::NotThere { .. } | MountError::NotEmptyDirectory { .. } => Kind::Usage,
        _ => Kind::Failed,
    };
    CommandError::from(error).kind(kind)
}
