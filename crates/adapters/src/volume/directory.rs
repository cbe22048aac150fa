//! A directory on any file system: copied file by file, blocks shared where that can be done (XFS, btrfs), otherwise in full.
//!
//! Invariant: only of what nobody writes. A copy that takes time is of no moment, so a directory in which a server may run is refused before
//! and after; and a copy gets its name when all of it is durable.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use lifeboat_engine::port::{Cancel, Hold, Keeps, PortError, Snapshot, Volume};

use super::{DRAFT, Place, VolumeError, hold, is_there, run, sync_above, with_suffix};

#[derive(Debug)]
pub(super) struct Directory {
    place: Place,
}

impl Directory {
    pub(super) fn new(place: Place) -> Directory {
        Directory { place }
    }

    fn port(&self, what: &'static str) -> impl FnOnce(VolumeError) -> PortError {
        let path = self.place.path.clone();
        move |error| error.port(what, &path)
    }

    fn take(&self, to: &Path, cancel: &Cancel) -> Result<(), VolumeError> {
        copy(&self.place.path, to, cancel, || self.place.check_at_rest())
    }

    fn clone_now(&self, label: &str, to: &Path) -> Result<bool, VolumeError> {
        let snapshot = self.place.there(label)?;
        if is_there(to)? {
            return Ok(false);
        }
        copy(&snapshot, to, &Cancel::default(), || Ok(()))?;
        Ok(true)
    }

    fn remove_now(&self, label: &str) -> Result<bool, VolumeError> {
        let path = self.place.beside(label)?;
        let going = with_suffix(&path, DRAFT);
        clear(&going)?;
        if !is_there(&path)? {
            return Ok(false);
        }
        // Half of one has no name of a snapshot.
        fs::rename(&path, &going).map_err(VolumeError::file("move", &path))?;
        sync_above(&path)?;
        clear(&going)?;
        Ok(true)
    }
}

/// Whether files there can share blocks.
fn shares(parent: &Path) -> bool {
    let attempt = || -> io::Result<()> {
        use io::Write;
        let mut one = tempfile::tempfile_in(parent)?;
        one.write_all(&[1; 4096])?;
        Ok(rustix::fs::ioctl_ficlone(&tempfile::tempfile_in(parent)?, &one)?)
    };
    attempt().is_ok()
}

fn clear(path: &Path) -> Result<(), VolumeError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(VolumeError::file("remove", path)(error)),
        _ => Ok(()),
    }
}

/// `check`: whether the source is at rest, asked before and after.
fn copy(
    from: &Path,
    to: &Path,
    cancel: &Cancel,
    check: impl Fn() -> Result<(), VolumeError>,
) -> Result<(), VolumeError> {
    let draft = with_suffix(to, DRAFT);
    clear(&draft)?;
    check()?;
    let copied = run(Command::new("cp").args(["-a", "--reflink=auto", "--"]).arg(from).arg(&draft), cancel)
        .and_then(|()| check());
    if let Err(error) = copied {
        let _ = fs::remove_dir_all(&draft);
        return Err(error);
    }
    let synced = fs::File::open(&draft).and_then(|directory| Ok(rustix::fs::syncfs(directory)?));
    synced.map_err(VolumeError::file("sync", &draft))?;
    fs::rename(&draft, to).map_err(VolumeError::file("give its name to", to))?;
    sync_above(to)
}

impl Volume for Directory {
    fn keeps(&self) -> Keeps {
        Keeps::Files { shared: shares(&self.place.parent) }
    }

    fn snapshot(&self, name: &str, hold: &mut dyn Hold, cancel: &Cancel) -> Result<Snapshot, PortError> {
        let no_snapshot = "no snapshot was taken of";
        let path = self.place.beside(name).map_err(self.port(no_snapshot))?;
        if is_there(&path).map_err(self.port(no_snapshot))? {
            return Ok(Snapshot { name: name.to_owned(), path, held: None });
        }
        let has_room = || if shares(&self.place.parent) { Ok(()) } else { self.place.check_room() };
        let checked = self.place.check_whole().and_then(|()| self.place.check_at_rest()).and_then(|()| has_room());
        checked.map_err(self.port(no_snapshot))?;
        let ((), held) = hold::around(hold, || self.take(&path, cancel).map_err(self.port(no_snapshot)))?;
        Ok(Snapshot { name: name.to_owned(), path, held })
    }

    fn snapshots(&self) -> Result<Vec<Snapshot>, PortError> {
        self.place.all().map_err(self.port("snapshots cannot be listed of"))
    }

    fn clone_to(&self, name: &str, to: &Path) -> Result<bool, PortError> {
        self.clone_now(name, to).map_err(self.port("there is no clone of a snapshot of"))
    }

    fn remove(&self, name: &str) -> Result<bool, PortError> {
        self.remove_now(name).map_err(self.port("a snapshot was not removed of"))
    }
}
