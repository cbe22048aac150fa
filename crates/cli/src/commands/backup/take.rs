//! One recovery point of one item into one vault.

use std::path::PathBuf;
use std::time::Instant;

use jiff::Timestamp;
use lifeboat_adapters::source::{PostgresSource, SqliteSource};
use lifeboat_core::units::Size;
use lifeboat_engine::port::{Cancel, NamedVault, PointRequest, Source};
use lifeboat_vault::files::{BackupOptions, Excludes, Skipped, backup_tree};
use lifeboat_vault::{HostVault, PointInfo, SessionOptions, SnapshotDraft};

use super::what::{Data, Item};
use crate::error::{CommandError, Explain, Kind};
use crate::files_progress::OnScreen;
use crate::report::counted;
use crate::ui::Ui;

/// What was taken.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) point: PointInfo,
    pub(super) bytes_read: u64,
    pub(super) seconds: f64,
    /// What is not in it; the first ones by name.
    pub(super) skipped: Vec<Skipped>,
    pub(super) skipped_count: u64,
    pub(super) changed: Vec<PathBuf>,
    pub(super) notes: Vec<String>,
    /// By how much this point's time is before the former one's.
    pub(super) clock_back_seconds: Option<f64>,
    /// What is held against the point, where it is suspect.
    pub(super) doubts: Vec<String>,
}

/// Backs up an item and commits it as a recovery point.
pub(super) fn take(
    (vault_name, host): (&str, &HostVault),
    item: &Item,
    session: SessionOptions,
    cancel: &Cancel,
    ui: &Ui,
) -> Result<Taken, CommandError> {
    let spool = || host.state().vault_directory(&host.id()).map_err(CommandError::of_vault);
    let mut taken = match &item.data {
        Data::Files { roots, excludes, one_file_system } => {
            take_files((host, session), item, roots, (excludes, *one_file_system), cancel, ui)?
        }
        Data::Sqlite { path } => {
            let source = SqliteSource::new(path, spool()?);
            let hint = "check that it is there, may be read, and is not locked for long; then run the backup again";
            take_from(&source, (vault_name, host), item, hint, cancel, ui)?
        }
        Data::Dump(source) => {
            let hint = "put that right, then run the backup again; there is no half of a dump";
            take_from(source, (vault_name, host), item, hint, cancel, ui)?
        }
        Data::Postgres { path, service } => {
            let source = PostgresSource::new(path, service.clone(), spool()?);
            let hint =
                "see that its server runs and lets this user in with the right to replicate; then run the backup again";
            take_from(&source, (vault_name, host), item, hint, cancel, ui)?
        }
    };
    let before = host.point_before(&taken.point).map_err(CommandError::of_vault)?;
    taken.doubts = host.doubts_about(&taken.point).map_err(CommandError::of_vault)?;
    taken.clock_back_seconds = before.and_then(|before| taken.point.clock_back_seconds(&before));
    Ok(taken)
}

/// One point of a database.
fn take_from(
    source: &dyn Source,
    (vault_name, host): (&str, &HostVault),
    item: &Item,
    hint: &str,
    cancel: &Cancel,
    ui: &Ui,
) -> Result<Taken, CommandError> {
    let named = NamedVault { name: vault_name.to_owned(), vault: host.clone() };
    let request = PointRequest { dataset: item.dataset.clone(), epoch: item.epoch, ..PointRequest::default() };
    let progress = OnScreen::new(ui, "backing up");
    let taken = source.take_point(&named, &request, &progress, cancel);
    let kind = if cancel.is_cancelled() { Kind::Interrupted } else { Kind::Failed };
    let taken = taken.kind(kind).hint(hint)?;
    Ok(Taken {
        bytes_read: taken.bytes,
        seconds: taken.seconds,
        point: taken.point,
        skipped: Vec::new(),
        skipped_count: 0,
        changed: Vec::new(),
        notes: taken.notes,
        clock_back_seconds: None,
        doubts: Vec::new(),
    })
}

fn take_files(
    (host, session): (&HostVault, SessionOptions),
    item: &Item,
    roots: &[PathBuf],
    (excludes, one_file_system): (&Excludes, bool),
    cancel: &Cancel,
    ui: &Ui,
) -> Result<Taken, CommandError> {
    let began = Instant::now();
    // What was written before the walk began is in it.
    let source_time = Timestamp::now();
    let session = host.begin(&item.dataset, session).map_err(CommandError::of_vault)?;
    let directory = host.state().vault_directory(&host.id()).map_err(CommandError::of_vault)?;
    let options = BackupOptions {
        excludes: excludes.clone(),
        one_file_system,
        cache: Some(directory.join(cache_name(&item.dataset))),
        threads: 0,
    };
    let progress = OnScreen::new(ui, "backing up");
    let summary = backup_tree(&session, roots, &options, &progress, cancel.flag()).map_err(CommandError::of_backup)?;
    drop(progress);
    let draft = SnapshotDraft { epoch: item.epoch, ..summary.draft(source_time) };
    let point = session.commit(draft).map_err(CommandError::of_vault)?;
    let cache_failure = summary.cache_failure.iter();
    let lacking = clusters_among(roots, ui);
    Ok(Taken {
        point,
        bytes_read: summary.bytes_read,
        seconds: began.elapsed().as_secs_f64(),
        skipped_count: summary.skipped_count + lacking.len() as u64,
        notes: cache_failure.map(|why| format!("the file cache could not be written: {why}")).collect(),
        skipped: summary.skipped.into_iter().chain(lacking).collect(),
        changed: summary.changed,
        clock_back_seconds: None,
        doubts: Vec::new(),
    })
}

/// Says what PostgreSQL's data directories among the roots are as files. Answers what they lack: tablespaces, of which only links were stored.
fn clusters_among(roots: &[PathBuf], ui: &Ui) -> Vec<Skipped> {
    let mut lacking = Vec::new();
    for root in roots.iter().filter(|root| PostgresSource::is_cluster(root)) {
        let shown = root.display();
        if PostgresSource::is_running_in(root) {
            lacking.push(Skipped {
                path: root.clone(),
                reason: "as a database: a PostgreSQL server may be running there, and files taken while it writes are none; \
                         name it alone, or as `postgres` in a plan"
                    .to_owned(),
            });
        } else {
            ui.note(format_args!(
                "no server runs in {shown}: the files of this PostgreSQL cluster are taken as they lie"
            ));
        }
        let links = std::fs::read_dir(root.join("pg_tblspc")).into_iter().flatten().flatten();
        lacking.extend(links.filter_map(|link| std::fs::read_link(link.path()).ok()).map(|path| Skipped {
            path,
            reason: "(a tablespace: back it up as well, or start the server, then it comes along)".to_owned(),
        }));
    }
    lacking
}

fn cache_name(dataset: &str) -> String {
    use std::fmt::Write;
    dataset.bytes().fold("files-".to_owned(), |mut name, byte| {
        let _ = write!(name, "{byte:02x}");
        name
    })
}

impl Taken {
    /// Whether something is missing that cannot be made anew, or its time cannot be right.
    pub(super) fn leaves_a_finding(&self) -> bool {
        self.skipped.iter().any(|skipped| !skipped.reason.starts_with("is a "))
            || self.skipped_count > self.skipped.len() as u64
            || self.clock_back_seconds.is_some()
            || !self.doubts.is_empty()
    }

    pub(super) fn say(&self, ui: &Ui) {
        let point = &self.point;
        if let Some(seconds) = self.clock_back_seconds {
            ui.warn(format_args!(
                "this host's clock went back: it says {seconds:.0} s less than at the point before; set it right, \
                 `restore --at` goes by it"
            ));
        }
        ui.line(format_args!("{}: recovery point {}", point.dataset, point.sequence));
        ui.line(format_args!(
            "  {}, {}; {} new, stored as {}, in {:.1} s",
            counted(point.files, "file"),
            Size(point.bytes).rounded(),
            Size(point.bytes_new).rounded(),
            Size(point.bytes_stored).rounded(),
            self.seconds
        ));
        for doubt in &self.doubts {
            ui.warn(format_args!("the recovery point is suspect: {doubt}; look at the data before older points go"));
        }
        for skipped in &self.skipped {
            ui.warn(format_args!("not in it: {} {}", skipped.path.display(), skipped.reason));
        }
        let unlisted = self.skipped_count - self.skipped.len() as u64;
        if unlisted > 0 {
            ui.warn(format_args!("not in it: {unlisted} more"));
        }
        for path in &self.changed {
            ui.warn(format_args!("{} changed while it was read: what is stored may be a mixture", path.display()));
        }
        for note in &self.notes {
            ui.warn(note);
        }
    }
}
