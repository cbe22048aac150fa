//! A subvolume of btrfs: snapshots of one moment, also of what is being written.
//!
//! Invariant: a snapshot is made read-only by the one call that makes it; nothing here writes into one.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use lifeboat_engine::port::{Cancel, Hold, Keeps, PortError, Snapshot, Volume};

use super::{Place, VolumeError, hold, is_there, run, sync_above};

/// `BTRFS_SUPER_MAGIC`.
const MAGIC: u64 = 0x9123_683e;
/// The number that the top of each subvolume has.
const TOP: u64 = 256;

pub(super) fn is_subvolume(path: &Path) -> bool {
    let is_btrfs = rustix::fs::statfs(path).is_ok_and(|seen| seen.f_type as u64 == MAGIC);
    is_btrfs && std::fs::metadata(path).is_ok_and(|seen| seen.ino() == TOP)
}

#[derive(Debug)]
pub(super) struct Btrfs {
    place: Place,
}

impl Btrfs {
    pub(super) fn new(place: Place) -> Btrfs {
        Btrfs { place }
    }

    fn port(&self, what: &'static str) -> impl FnOnce(VolumeError) -> PortError {
        let path = self.place.path.clone();
        move |error| error.port(what, &path)
    }

    fn take(&self, to: &Path) -> Result<(), VolumeError> {
        // It commits what was written before, so that the snapshot has it.
        run(subvolume("snapshot").arg("-r").arg("--").arg(&self.place.path).arg(to), &Cancel::default())?;
        check_made(to)?;
        sync_above(to)
    }

    fn clone_now(&self, label: &str, to: &Path) -> Result<bool, VolumeError> {
        let snapshot = self.place.there(label)?;
        if is_there(to)? {
            return Ok(false);
        }
        run(subvolume("snapshot").arg("--").arg(&snapshot).arg(to), &Cancel::default())?;
        check_made(to)?;
        sync_above(to)?;
        Ok(true)
    }

    fn remove_now(&self, label: &str) -> Result<bool, VolumeError> {
        let path = self.place.beside(label)?;
        if !is_there(&path)? {
            return Ok(false);
        }
        run(subvolume("delete").arg("--commit-after").arg("--").arg(&path), &Cancel::default())?;
        Ok(true)
    }
}

/// Where a directory had come between, it would lie in that.
fn check_made(path: &Path) -> Result<(), VolumeError> {
    match is_subvolume(path) {
        true => Ok(()),
        false => Err(VolumeError::file("be sure of", path)(std::io::ErrorKind::AlreadyExists.into())),
    }
}

fn subvolume(verb: &str) -> Command {
    let mut command = Command::new("btrfs");
    command.args(["subvolume", verb]);
    command
}

impl Volume for Btrfs {
    fn keeps(&self) -> Keeps {
        Keeps::Moment
    }

    fn snapshot(&self, name: &str, hold: &mut dyn Hold, _cancel: &Cancel) -> Result<Snapshot, PortError> {
        let no_snapshot = "no snapshot was taken of";
        let path = self.place.beside(name).map_err(self.port(no_snapshot))?;
        if is_there(&path).map_err(self.port(no_snapshot))? {
            return Ok(Snapshot { name: name.to_owned(), path, held: None });
        }
        self.place.check_whole().map_err(self.port(no_snapshot))?;
        let ((), held) = hold::around(hold, || self.take(&path).map_err(self.port(no_snapshot)))?;
        Ok(Snapshot { name: name.to_owned(), path, held })
    }

    fn snapshots(&self) -> Result<Vec<Snapshot>, PortError> {
        let mut all = self.place.all().map_err(self.port("snapshots cannot be listed of"))?;
        all.retain(|snapshot| is_subvolume(&snapshot.path));
        Ok(all)
    }

    fn clone_to(&self, name: &str, to: &Path) -> Result<bool, PortError> {
        self.clone_now(name, to).map_err(self.port("there is no clone of a snapshot of"))
    }

    fn remove(&self, name: &str) -> Result<bool, PortError> {
        self.remove_now(name).map_err(self.port("a snapshot was not removed of"))
    }
}
