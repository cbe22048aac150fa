//! Volumes of a local site: directories below its root (or below a drill's).
//!
//! Invariant: nothing is ever overwritten or deleted here; what is in the way is renamed, and no path leads out of the volumes.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use lifeboat_core::plan::Source;
use lifeboat_core::runbook::VolumeSpec;
use lifeboat_engine::port::{Context, PortError, SiteAnswer, VolumeState};
use lifeboat_engine::recovery::data_path;
use lifeboat_engine::verify::Check;
use rustix::fs::{RenameFlags, renameat_with};

use super::Inner;
use super::holders::Tree;
use super::layout::{follow_existing, inner_path, list, make_directory, read_record, sync_directory, write_record};
use super::processes::Snapshot;
use crate::source::restorer_for;
use crate::volume::volume_at;

impl Inner {
    pub(super) fn locate(&self, volume: &VolumeSpec, context: &Context) -> Result<VolumeState, PortError> {
        let path = self.path_of_volume(volume, context)?;
        Ok(if holds(&path, volume)? { VolumeState::Present { path } } else { VolumeState::Absent })
    }

    pub(super) fn place(&self, volume: &VolumeSpec, context: &Context) -> Result<PathBuf, PortError> {
        let path = self.path_of_volume(volume, context)?;
        if context.isolation.is_none() {
            self.layout.make()?;
        }
        if let Some(parent) = path.parent() {
            make_directory(parent, 0o755)?;
        }
        Ok(path)
    }

    /// Under one idempotency key a volume is set aside once: what has come into its place since is left alone.
    pub(super) fn set_aside(&self, volume: &VolumeSpec, context: &Context) -> Result<Option<PathBuf>, PortError> {
        let path = self.path_of_volume(volume, context)?;
        let done = self.layout.done("set-aside", &context.idempotency_key, &path);
        if let Some(aside) = read_record::<PathBuf>(&done)?
            && exists(&aside)?
        {
            return Ok(Some(aside));
        }
        if !holds(&path, volume)? {
            return Ok(None);
        }
        self.refuse_in_use(volume, &path)?;
        let aside = free_name(&path, &format!("aside-{}", context.epoch))?;
        // Recorded first: after a crash in between, the name in the record does not exist and all begins anew.
        write_record(&done, &aside)?;
        rename(&path, &aside)?;
        Ok(Some(aside))
    }

    /// Under one name a volume is kept once: what has become of it since is not what was left.
    pub(super) fn keep(&self, volume: &VolumeSpec, name: &str, context: &Context) -> Result<SiteAnswer, PortError> {
        let path = self.path_of_volume(volume, context)?;
        if !holds(&path, volume)? {
            return Ok(SiteAnswer::Nothing);
        }
        self.refuse_in_use(volume, &path)?;
        let snapshot = volume_at(&path)?.snapshot(name, &mut (), &context.cancel)?;
        Ok(SiteAnswer::Path(snapshot.path))
    }

    pub(super) fn look_through(&self, volume: &VolumeSpec, context: &Context) -> Result<Vec<Check>, PortError> {
        let path = self.path_of_volume(volume, context)?;
        self.refuse_in_use(volume, &path)?;
        restorer_for(&volume.source)?.look_through(&data_path(&path, &volume.source), &context.cancel)
    }

    /// A writer keeps its open files over a rename and would serve them on. The site's own agent lets go by itself.
    fn refuse_in_use(&self, volume: &VolumeSpec, path: &Path) -> Result<(), PortError> {
        let tree = Tree::look(&[path.to_path_buf(), follow_existing(path)])?;
        let snapshot = Snapshot::take(&self.layout)?;
        let of_site =
            |pid| snapshot.belongs(pid).is_some_and(|belongs| !belongs.is_supervisor() && !belongs.is_agent());
        let held = snapshot.handles(&tree);
        let held: Vec<String> =
            held.iter().filter(|handle| of_site(handle.process.pid)).map(ToString::to_string).collect();
        if held.is_empty() {
            return Ok(());
        }
        Err(PortError::may_pass(format!(
            "data set `{}` at site `{}` is in use and is not moved from under its user: {}; stop that first",
            volume.dataset,
            self.config.name,
            held.join("; ")
        )))
    }

    /// Puts the first that was set aside under this epoch back: that is what lay here before the run.
    pub(super) fn put_back(&self, volume: &VolumeSpec, context: &Context) -> Result<Option<PathBuf>, PortError> {
        let path = self.path_of_volume(volume, context)?;
        let done = self.layout.done("put-back", &context.idempotency_key, &path);
        let Some(aside) = oldest_aside(&path, context.epoch)? else {
            return Ok(read_record::<PathBuf>(&done)?.filter(|_| path.exists()));
        };
        write_record(&done, &path)?;
        if exists(&path)? {
            rename(&path, &free_name(&path, &format!("undone-{}", context.epoch))?)?;
        }
        rename(&aside, &path)?;
        Ok(Some(path))
    }

    fn path_of_volume(&self, volume: &VolumeSpec, context: &Context) -> Result<PathBuf, PortError> {
        let isolation = context.isolation.as_deref();
        self.permit_isolation(isolation)?;
        self.directory_of_volume(volume, isolation)?.ok_or_else(|| {
            PortError::new(format!(
                "data set `{}` lies in no directory, so site `{}` has no volume for it",
                volume.dataset, self.config.name
            ))
        })
    }

    /// The directory of a volume: of a database, the one that its file is in (its log lies beside it).
    pub(super) fn directory_of_volume(
        &self,
        volume: &VolumeSpec,
        isolation: Option<&str>,
    ) -> Result<Option<PathBuf>, PortError> {
        let refuse = |why: &str| PortError::new(format!("the path of data set `{}` {why}", volume.dataset));
        let (path, is_database) = match &volume.source {
            Source::Files { path, .. } => (path, false),
            Source::Sqlite { path } => (path, true),
            Source::Postgres { path, .. } => (path, false),
            _ => return Ok(None),
        };
        let inner = inner_path(path).ok_or_else(|| {
            refuse(&format!("leads out of the site's volumes (`{path}`): make it relative, without `..`"))
        })?;
        let inner = match is_database {
            true => inner.parent().map(Path::to_path_buf).filter(|parent| !parent.as_os_str().is_empty()).ok_or_else(
                || {
                    refuse(&format!(
                        "(`{path}`) has no directory: put the database into one of its own, as `{path}/{path}`"
                    ))
                },
            )?,
            false => inner,
        };
        let volumes = self.layout.volumes(isolation);
        let directory = volumes.join(inner);
        if !follow_existing(&directory).starts_with(follow_existing(&volumes)) {
            return Err(refuse(&format!("leads out of the site's volumes by a link (`{}`)", directory.display())));
        }
        Ok(Some(directory))
    }
}

/// Whether the volume's directory holds its data: of a database, a file of its own, not only what a standby prepares beside it.
fn holds(directory: &Path, volume: &VolumeSpec) -> Result<bool, PortError> {
    let Source::Sqlite { path } = &volume.source else { return exists(directory) };
    let database = Path::new(path).file_name().unwrap_or_default();
    for suffix in ["", "-wal", "-journal", "-shm"] {
        let mut name = database.to_os_string();
        name.push(suffix);
        if exists(&directory.join(name))? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn exists(path: &Path) -> Result<bool, PortError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
        Err(error) => Err(PortError::may_pass(format!("cannot look at `{}`", path.display())).because(error)),
    }
}

/// `NAME.WORD-TIME`, or with a number after it, as nothing is called yet.
fn free_name(path: &Path, word: &str) -> Result<PathBuf, PortError> {
    let time = Timestamp::now().strftime("%Y%m%dT%H%M%S%.6fZ");
    for count in 1..1000 {
        let more = if count == 1 { String::new() } else { format!("-{count}") };
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{word}-{time}{more}"));
        let free = path.with_file_name(name);
        if !exists(&free)? {
            return Ok(free);
        }
    }
    Err(PortError::new(format!("there is no free name beside `{}`", path.display())))
}

fn oldest_aside(path: &Path, epoch: u64) -> Result<Option<PathBuf>, PortError> {
    let mut begin = path.file_name().unwrap_or_default().to_os_string();
    begin.push(format!(".aside-{epoch}-"));
    let Some(directory) = path.parent() else { return Ok(None) };
    let begins = |found: &PathBuf| {
        let name = found.file_name().map(|name| name.as_encoded_bytes());
        name.is_some_and(|name| name.starts_with(begin.as_encoded_bytes()))
    };
    Ok(list(directory)?.into_iter().filter(begins).min())
}

/// Renames within one directory, durably; never onto something.
fn rename(from: &Path, to: &Path) -> Result<(), PortError> {
    let directory = from.parent().unwrap_or(Path::new("/"));
    let rename = || -> io::Result<()> {
        let open = File::open(directory)?;
        renameat_with(
            &open,
            from.file_name().unwrap_or_default(),
            &open,
            to.file_name().unwrap_or_default(),
            RenameFlags::NOREPLACE,
        )?;
        sync_directory(directory)
    };
    rename().map_err(|error| {
        PortError::may_pass(format!("cannot rename `{}` to `{}`", from.display(), to.display())).because(error)
    })
}
