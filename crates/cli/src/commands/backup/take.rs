//! One recovery point of one item into one vault.

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use jiff::Timestamp;
use lifeboat_core::units::Size;
use lifeboat_vault::files::{BackupOptions, TreeSummary, backup_tree};
use lifeboat_vault::{HostVault, PointInfo, SessionOptions, SnapshotDraft};

use super::what::Item;
use crate::error::CommandError;
use crate::files_progress::OnScreen;
use crate::ui::Ui;

/// What was taken.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) point: PointInfo,
    pub(super) summary: TreeSummary,
    pub(super) seconds: f64,
    pub(super) notes: Vec<String>,
}

/// Backs up an item's files and commits them as a recovery point.
pub(super) fn take(host: &HostVault, item: &Item, cancel: &AtomicBool, ui: &Ui) -> Result<Taken, CommandError> {
    let began = Instant::now();
    // What was written before the walk began is in it.
    let source_time = Timestamp::now();
    let session = host.begin(&item.dataset, SessionOptions::default()).map_err(CommandError::of_vault)?;
    let cache = host.state().vault_directory(&host.id())?.join(cache_name(item));
    let options = BackupOptions {
        excludes: item.excludes.clone(),
        one_file_system: item.one_file_system,
        cache: Some(cache),
        threads: 0,
    };
    let progress = OnScreen::new(ui, "backing up");
    let summary = backup_tree(&session, &item.roots, &options, &progress, cancel).map_err(CommandError::of_backup)?;
    drop(progress);
    let mut notes: Vec<String> =
        summary.skipped.iter().map(|skipped| format!("{}: {}", skipped.path.display(), skipped.reason)).collect();
    notes.extend(summary.changed.iter().map(|path| format!("{}: changed while it was read", path.display())));
    let draft = SnapshotDraft {
        root: summary.root.as_bytes().to_vec(),
        references: summary.references.clone(),
        source_time,
        files: summary.files,
        bytes: summary.bytes,
        notes,
        ..SnapshotDraft::default()
    };
    let point = session.commit(draft).map_err(CommandError::of_vault)?;
    let notes = summary.cache_failure.iter().map(|why| format!("the file cache could not be written: {why}")).collect();
    Ok(Taken { point, summary, seconds: began.elapsed().as_secs_f64(), notes })
}

/// The file cache belongs to the paths too: they may change under one name.
fn cache_name(item: &Item) -> String {
    use std::fmt::Write;
    item.dataset.bytes().fold("files-".to_owned(), |mut name, byte| {
        let _ = write!(name, "{byte:02x}");
        name
    })
}

impl Taken {
    /// Whether something is missing that cannot be made anew.
    pub(super) fn is_incomplete(&self) -> bool {
        self.summary.skipped.iter().any(|skipped| !skipped.reason.starts_with("is a "))
            || self.summary.skipped_count > self.summary.skipped.len() as u64
    }

    pub(super) fn say(&self, ui: &Ui) {
        let (point, summary) = (&self.point, &self.summary);
        ui.line(format_args!("{}: recovery point {}", point.dataset, point.id));
        ui.line(format_args!(
            "  {}, {}; {} new, stored as {}, in {:.1} s",
            counted(point.files, "file"),
            Size(point.bytes).rounded(),
            Size(point.bytes_new).rounded(),
            Size(point.bytes_stored).rounded(),
            self.seconds
        ));
        for skipped in &summary.skipped {
            ui.warn(format_args!("not in it: {} {}", skipped.path.display(), skipped.reason));
        }
        let unlisted = summary.skipped_count - summary.skipped.len() as u64;
        if unlisted > 0 {
            ui.warn(format_args!("not in it: {unlisted} more"));
        }
        for path in &summary.changed {
            ui.warn(format_args!("{} changed while it was read: what is stored may be a mixture", path.display()));
        }
        for note in &self.notes {
            ui.warn(note);
        }
    }
}

fn counted(count: u64, word: &str) -> String {
    if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
}
