//! One recovery point, brought back.

use std::path::{Path, PathBuf};
use std::time::Instant;

use jiff::Timestamp;
use lifeboat_adapters::source::{PostgresSource, SqliteSource};
use lifeboat_core::runbook::Target;
use lifeboat_core::units::Size;
use lifeboat_engine::port::{Cancel, RestoreRequest, Restored, Restorer};
use lifeboat_vault::files::{Browser, RestoreError, RestoreOptions, restore_tree, tree_root};
use lifeboat_vault::{ChunkId, ChunkSource, PointInfo};

use super::Args;
use super::which::{How, Task};
use crate::commands::points::time;
use crate::error::{CommandError, Explain, Kind};
use crate::files_progress::OnScreen;
use crate::report::counted;
use crate::ui::Ui;

/// What was restored, and to where.
#[derive(Debug)]
pub(super) struct Brought {
    pub(super) point: PointInfo,
    /// The state is that of this moment.
    pub(super) as_of: Timestamp,
    pub(super) to: PathBuf,
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) bytes_written: u64,
    pub(super) seconds: f64,
    pub(super) verified: bool,
    pub(super) resumed: bool,
    /// The first ones, and how many there are in all.
    pub(super) notes: Vec<String>,
    pub(super) notes_count: u64,
}

pub(super) fn bring(task: &Task, args: &Args, cancel: &Cancel, ui: &Ui) -> Result<Brought, CommandError> {
    let root = tree_root(&task.vault, &task.point).map_err(CommandError::of_vault).hint(
        "a newer version of lifeboat may have written it, or the vault is damaged: `lifeboat vault check` tells",
    )?;
    let source = task.vault.source(&task.point.dataset).map_err(CommandError::of_vault)?;
    match &task.how {
        How::Files => bring_files(task, args, (&source, &root), cancel, ui),
        How::Sqlite(target) => bring_database(task, args, (&source, &root), target, cancel, ui),
        How::Postgres(target) => bring_cluster(task, args, target, cancel, ui),
    }
}

fn bring_files(
    task: &Task,
    args: &Args,
    (source, root): (&dyn ChunkSource, &ChunkId),
    cancel: &Cancel,
    ui: &Ui,
) -> Result<Brought, CommandError> {
    let began = Instant::now();
    let point = &task.point;
    let options = RestoreOptions {
        paths: wanted(task, args)?,
        in_place: args.in_place,
        delete_extra: args.delete_extra,
        ..RestoreOptions::default()
    };
    let progress = OnScreen::new(ui, "restoring");
    let restored =
        restore_tree(source, root, &task.to, &options, &progress, cancel.flag()).map_err(CommandError::of_restore)?;
    Ok(Brought {
        point: point.clone(),
        as_of: point.taken_at,
        to: task.to.clone(),
        files: restored.files,
        bytes: restored.bytes,
        bytes_written: restored.written_bytes,
        seconds: began.elapsed().as_secs_f64(),
        verified: restored.verified,
        resumed: restored.resumed,
        notes: restored.notes.iter().map(|note| format!("{}: {}", note.path.display(), note.what)).collect(),
        notes_count: restored.notes_count,
    })
}

/// The paths that are wanted of a point; none where all of it is.
pub(super) fn wanted(task: &Task, args: &Args) -> Result<Vec<PathBuf>, CommandError> {
    if matches!(task.how, How::Sqlite(_)) && !args.path.is_empty() {
        return Err(CommandError::usage(format!("`{}` is one database: it is restored whole", task.point.dataset))
            .hint("leave out --path"));
    }
    Ok(args.path.iter().map(|path| within(path, &task.point.dataset)).collect())
}

/// A path below what was backed up; the path that it had on its host works as well.
fn within(path: &Path, dataset: &str) -> PathBuf {
    path.strip_prefix(dataset).unwrap_or(path).to_owned()
}

/// Into the directory, under the name that the database had.
fn bring_database(
    task: &Task,
    args: &Args,
    (source, root): (&dyn ChunkSource, &ChunkId),
    target: &Target,
    cancel: &Cancel,
    ui: &Ui,
) -> Result<Brought, CommandError> {
    let to = task.to.join(database_name(source, root, &task.point)?);
    if !args.in_place && !is_free(&task.to, &to) {
        return Err(CommandError::of_restore(RestoreError::NotEmpty { path: task.to.clone() }));
    }
    let request = RestoreRequest {
        dataset: task.point.dataset.clone(),
        to: to.clone(),
        target: target.clone(),
        in_place: args.in_place,
    };
    let waiting = ui.waiting("restoring");
    let restored = SqliteSource::new("", "").restore(&task.vault, &request, &(), cancel);
    drop(waiting);
    let restored = restored
        .kind(if cancel.is_cancelled() { Kind::Interrupted } else { Kind::Failed })
        .hint("nothing lies under the database's name that is not whole; once the cause is gone, run it again")?;
    // Its notes are of the vault, and told with it already.
    Ok(Brought::of_database(Restored { notes: Vec::new(), ..restored }, to))
}

/// Its data directory becomes the directory that was asked for.
fn bring_cluster(task: &Task, args: &Args, target: &Target, cancel: &Cancel, ui: &Ui) -> Result<Brought, CommandError> {
    let (dataset, to) = (task.point.dataset.clone(), task.to.clone());
    let request = RestoreRequest { dataset, to: to.clone(), target: target.clone(), in_place: args.in_place };
    let progress = OnScreen::new(ui, "restoring");
    let restored = PostgresSource::new("", None, "").restore(&task.vault, &request, &progress, cancel);
    drop(progress);
    let restored = restored
        .kind(if cancel.is_cancelled() { Kind::Interrupted } else { Kind::Failed })
        .hint("nothing lies under the cluster's name that was not recovered; once the cause is gone, run it again")?;
    Ok(Brought::of_database(restored, to))
}

fn database_name(source: &dyn ChunkSource, root: &ChunkId, point: &PointInfo) -> Result<PathBuf, CommandError> {
    let unreadable = || format!("the tree of recovery point {} cannot be read", point.id);
    let browser = Browser::open(source, root).saying(unreadable)?;
    let mut entries = browser.entries(&browser.root().top).saying(unreadable)?;
    let (first, second) = (entries.next().transpose()?, entries.next().transpose()?);
    match (first, second) {
        (Some(only), None) => Ok(PathBuf::from(String::from_utf8_lossy(&only.name).into_owned())),
        _ => Err(CommandError::failed(format!("recovery point {} is not of one database", point.id))
            .hint("the data set was one of files then: restore it with --vault URL --point, without the plan")),
    }
}

/// Whether nothing lies there but what an interrupted restore of the same database left.
fn is_free(directory: &Path, database: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(directory) else { return true };
    let ours = database.file_name().map(|name| format!("{}.", name.to_string_lossy()));
    entries.flatten().all(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        ours.as_ref().is_some_and(|ours| name.strip_prefix(ours.as_str()) == Some("lifeboat-restore"))
    })
}

impl Brought {
    fn of_database(restored: Restored, to: PathBuf) -> Brought {
        Brought {
            point: restored.point,
            as_of: restored.as_of,
            to,
            files: restored.files,
            bytes: restored.bytes,
            bytes_written: restored.bytes_written,
            seconds: restored.seconds,
            verified: restored.verified.is_some(),
            resumed: false,
            notes_count: restored.notes.len() as u64,
            notes: restored.notes,
        }
    }

    pub(super) fn say(&self, ui: &Ui) {
        let verified = if self.verified { "verified" } else { "not verified" };
        ui.line(format_args!("{} as of {}, restored to {}", self.point.dataset, time(self.as_of), self.to.display()));
        ui.line(format_args!(
            "  {}, {}, {verified}, in {:.1} s (recovery point {})",
            counted(self.files, "file"),
            Size(self.bytes).rounded(),
            self.seconds,
            self.point.sequence
        ));
        for note in &self.notes {
            ui.warn(note);
        }
        let unlisted = self.notes_count.saturating_sub(self.notes.len() as u64);
        if unlisted > 0 {
            ui.warn(format_args!("{unlisted} more were restored differently from how they were"));
        }
    }
}
