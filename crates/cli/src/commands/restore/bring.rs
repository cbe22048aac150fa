//! One recovery point, brought back.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use lifeboat_core::units::Size;
use lifeboat_vault::files::{RestoreOptions, Restored, restore_tree};
use lifeboat_vault::{ChunkId, PointInfo};

use super::Args;
use super::which::Task;
use crate::commands::points::time;
use crate::error::CommandError;
use crate::files_progress::OnScreen;
use crate::ui::Ui;

/// What was restored, and to where.
#[derive(Debug)]
pub(super) struct Brought {
    pub(super) point: PointInfo,
    pub(super) to: PathBuf,
    pub(super) restored: Restored,
    pub(super) seconds: f64,
}

pub(super) fn bring(task: &Task, args: &Args, cancel: &AtomicBool, ui: &Ui) -> Result<Brought, CommandError> {
    let began = Instant::now();
    let point = &task.point;
    let root = task.vault.read_root(point).map_err(CommandError::of_vault)?;
    let root = ChunkId(root.as_slice().try_into().map_err(|_| {
        CommandError::failed(format!("recovery point {} is not of files", point.id))
            .hint("a newer version of lifeboat may have written it")
    })?);
    let source = task.vault.source(&point.dataset).map_err(CommandError::of_vault)?;
    let options = RestoreOptions {
        paths: args.path.iter().map(|path| within(path, &point.dataset)).collect(),
        in_place: args.in_place,
        delete_extra: args.delete_extra,
        ..RestoreOptions::default()
    };
    let progress = OnScreen::new(ui, "restoring");
    let restored =
        restore_tree(&source, &root, &task.to, &options, &progress, cancel).map_err(CommandError::of_restore)?;
    Ok(Brought { point: point.clone(), to: task.to.clone(), restored, seconds: began.elapsed().as_secs_f64() })
}

/// A path below what was backed up; the path that it had on its host works as well.
fn within(path: &Path, dataset: &str) -> PathBuf {
    path.strip_prefix(dataset).unwrap_or(path).to_owned()
}

impl Brought {
    pub(super) fn say(&self, ui: &Ui) {
        let (point, restored) = (&self.point, &self.restored);
        let verified = if restored.verified { "verified" } else { "not verified" };
        ui.line(format_args!("{} as of {}, restored to {}", point.dataset, time(point.taken_at), self.to.display()));
        ui.line(format_args!(
            "  {} {}, {}, {verified}, in {:.1} s (point {})",
            restored.files,
            if restored.files == 1 { "file" } else { "files" },
            Size(restored.bytes).rounded(),
            self.seconds,
            point.id
        ));
        for note in &restored.notes {
            ui.warn(format_args!("{}: {}", note.path.display(), note.what));
        }
        let unlisted = restored.notes_count - restored.notes.len() as u64;
        if unlisted > 0 {
            ui.warn(format_args!("{unlisted} more were restored differently from how they were"));
        }
    }
}
