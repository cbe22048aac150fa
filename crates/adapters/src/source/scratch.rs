//! A directory that a recovery point is brought back to only to be looked at.
//!
//! Invariant: it is removed when it is dropped, with all that is in it; one that a killed process left is removed by the next that works
//! at the same place.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, flock};

const PREFIX: &str = "lifeboat-verify-";
const LOCK: &str = "lock";
const WORK: &str = "work";
/// A server's user must be let through; its data directory has a mode of its own.
const FOR_A_SERVER: u32 = 0o711;
/// What was readable by all may have lain where nobody could enter.
const PRIVATE: u32 = 0o700;

/// One verification's own.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    /// Held for as long as it is used.
    _lock: File,
}

impl Scratch {
    /// Makes one below a directory, which is made if it is not there. Nobody else may enter it.
    pub fn make(below: &Path) -> io::Result<Scratch> {
        Scratch::with_mode(below, PRIVATE)
    }

    /// One that a server's user is let through, if it knows the name of what is in it.
    pub fn for_a_server(below: &Path) -> io::Result<Scratch> {
        Scratch::with_mode(below, FOR_A_SERVER)
    }

    fn with_mode(below: &Path, mode: u32) -> io::Result<Scratch> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        fs::DirBuilder::new().recursive(true).mode(FOR_A_SERVER).create(below)?;
        remove_left_behind(below);
        let below = fs::canonicalize(below)?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        let (draft, path) = (below.join(format!(".{name}")), below.join(name));
        let made = || -> io::Result<File> {
            fs::DirBuilder::new().mode(PRIVATE).create(&draft)?;
            let lock = File::create_new(draft.join(LOCK))?;
            flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
            let work = draft.join(WORK);
            fs::create_dir(&work)?;
            // Whatever mask this process has: the server's user must be let through.
            for place in [&draft, &work] {
                fs::set_permissions(place, fs::Permissions::from_mode(mode))?;
            }
            // Only under its own name may another process ask whether it is in use.
            fs::rename(&draft, &path)?;
            Ok(lock)
        };
        match made() {
            Ok(lock) => Ok(Scratch { path, _lock: lock }),
            Err(error) => {
                let _ = fs::remove_dir_all(&draft);
                Err(error)
            }
        }
    }

    /// Where to work: an empty directory.
    pub fn path(&self) -> PathBuf {
        self.path.join(WORK)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!("{} cannot be removed: {error}", self.path.display());
        }
    }
}

/// Who holds no lock any more has ended, whatever became of it.
fn remove_left_behind(below: &Path) {
    let own = rustix::process::geteuid().as_raw();
    for entry in fs::read_dir(below).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_one = entry.file_name().to_string_lossy().starts_with(PREFIX)
            && fs::symlink_metadata(&path).is_ok_and(|seen| seen.is_dir() && seen.uid() == own);
        let Some(lock) = is_one.then(|| File::open(path.join(LOCK)).ok()).flatten() else { continue };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        let data = path.join(WORK).join("data");
        if data.exists() && !crate::postgres::server::end_left_behind(&data) {
            continue;
        }
        if let Err(error) = fs::remove_dir_all(&path) {
            tracing::warn!("{} was left behind and cannot be removed: {error}", path.display());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn it_is_gone_afterwards_and_what_was_left_behind_goes_with_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("scratch");
        let one = Scratch::make(&below).unwrap();
        fs::write(one.path().join("file"), "x").unwrap();
        let left = below.join(format!("{PREFIX}1-0"));
        fs::create_dir(&left).unwrap();
        fs::write(left.join(LOCK), "").unwrap();
        fs::create_dir_all(below.join("another-thing")).unwrap();
        let other = Scratch::make(&below).unwrap();
        assert!(!left.exists() && one.path().join("file").exists(), "one that is in use stays");
        drop((one, other));
        let names: Vec<_> = fs::read_dir(&below).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["another-thing"]);
    }
}
