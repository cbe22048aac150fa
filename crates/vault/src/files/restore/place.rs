//! Where a restore works: a staging directory beside the target, or the target itself under a marker.
//!
//! A staging directory is named after the target, the recovery point and the parts asked for, so that the same command
//! finds what an interrupted one left and goes on with it. Over existing files, on a mount point and in the directory
//! that one stands in (neither can be renamed over), the target itself is worked on, and a marker file in it says that it is not whole.
//!
//! Invariant: the rename, or the removal of the marker, comes after everything else is on disk.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::{Job, RestoreError, RestoreOptions};
use crate::ChunkId;
use crate::files::metadata::{self, Metadata, Own, Seen};
use crate::files::walk::read_names;

/// Present in a directory as long as a restore in place is not complete.
pub(super) const MARKER: &str = ".lifeboat-restore-incomplete";
const MARKER_TEXT: &[u8] = b"A restore into this directory was begun and is not complete: what is here is a mixture.\n\
Run the same restore again; it goes on and removes this file when all is in place.\n";
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The directory a restore fills.
#[derive(Debug)]
pub(super) struct Ground {
    fd: OwnedFd,
    path: PathBuf,
    own: Own,
    /// What this process takes away from the mode of new files; absent where the system does not say.
    umask: Option<u32>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Staging { parent: OwnedFd, staging: PathBuf, target: PathBuf, replaces_empty: bool, resumed: bool },
    InPlace { resumed: bool },
}

impl Ground {
    pub(super) fn prepare(to: &Path, root: &ChunkId, options: &RestoreOptions) -> Result<Self, RestoreError> {
        let target = std::path::absolute(to).map_err(|error| Self::io(to, &error))?;
        let target =
            if target.exists() { target.canonicalize().map_err(|error| Self::io(to, &error))? } else { target };
        let existing = match rustix::fs::open(&target, DIRECTORY, Mode::empty()) {
            Ok(fd) => Some(fd),
            Err(Errno::NOENT) => None,
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(RestoreError::NotDirectory { path: target }),
            Err(source) => return Err(RestoreError::Write { path: target, source }),
        };
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            // The root of the file system: only in place.
            let Some(fd) = existing else { return Err(RestoreError::NotDirectory { path: target }) };
            return Self::in_place(fd, target, options);
        };
        if let Some(fd) = existing {
            let fail = |source| RestoreError::Write { path: target.clone(), source };
            let mut names = read_names(&fd).map_err(fail)?;
            let device = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| stat.st_dev).map_err(fail);
            let parent_fd = rustix::fs::open(parent, DIRECTORY, Mode::empty()).map_err(fail)?;
            let is_mount = device(&fd)? != device(&parent_fd)?;
            names.retain(|name| !(is_mount && name == b"lost+found"));
            let begun = names.iter().any(|name| name == MARKER.as_bytes());
            // Neither can be renamed over: who stands in a directory would stand in one that is gone.
            if (is_mount || is_stood_in(&fd)) && (names.is_empty() || begun) || options.in_place && !names.is_empty() {
                return Self::in_place(fd, target, options);
            }
            if !names.is_empty() {
                return Err(RestoreError::NotEmpty { path: target });
            }
            return Self::staging(parent, &target, name.as_encoded_bytes(), root, options, true);
        }
        std::fs::create_dir_all(parent).map_err(|error| Self::io(parent, &error))?;
        Self::staging(parent, &target, name.as_encoded_bytes(), root, options, false)
    }

    fn io(path: &Path, error: &std::io::Error) -> RestoreError {
        RestoreError::Write { path: path.to_owned(), source: Errno::from_io_error(error).unwrap_or(Errno::IO) }
    }

    fn staging(
        parent: &Path,
        target: &Path,
        name: &[u8],
        root: &ChunkId,
        options: &RestoreOptions,
        replaces_empty: bool,
    ) -> Result<Self, RestoreError> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(root.as_bytes());
        for path in &options.paths {
            hasher.update(b"\0").update(path.as_os_str().as_encoded_bytes());
        }
        let tag = hasher.finalize().to_hex();
        let mut staging = b".".to_vec();
        staging.extend_from_slice(name.get(..name.len().min(180)).unwrap_or_default());
        staging.extend_from_slice(b".lifeboat-partial-");
        staging.extend_from_slice(tag.as_bytes().get(..16).unwrap_or_default());
        let staging = crate::files::walk::path_from(staging);
        let path = parent.join(&staging);
        let fail = |source| RestoreError::Write { path: path.clone(), source };
        let parent_fd = rustix::fs::open(parent, DIRECTORY, Mode::empty()).map_err(fail)?;
        let resumed = match rustix::fs::mkdirat(&parent_fd, &staging, Mode::RWXU) {
            Ok(()) => false,
            Err(Errno::EXIST) => true,
            Err(error) => return Err(fail(error)),
        };
        let fd = rustix::fs::openat(&parent_fd, &staging, DIRECTORY, Mode::empty()).map_err(fail)?;
        let seen = Seen::from(&rustix::fs::fstat(&fd).map_err(fail)?);
        if seen.uid != rustix::process::geteuid().as_raw() && resumed && !rustix::process::geteuid().is_root() {
            return Err(RestoreError::ForeignStaging { path });
        }
        claim(&fd, &path)?;
        // Nothing of the place should be inherited: no set-group-id, no default ACL.
        let own = own();
        let plain = Metadata { mode: 0o700, uid: own.uid, gid: own.gid, ..seen.metadata(Vec::new()) };
        metadata::apply(fd.as_fd(), &plain, true, None);
        let kind = Kind::Staging { parent: parent_fd, staging, target: target.to_owned(), replaces_empty, resumed };
        Ok(Ground { fd, path, own, umask: umask(), kind })
    }

    fn in_place(fd: OwnedFd, path: PathBuf, options: &RestoreOptions) -> Result<Self, RestoreError> {
        let fail = |source| RestoreError::Write { path: path.join(MARKER), source };
        claim(&fd, &path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resumed = match rustix::fs::openat(&fd, MARKER, flags, Mode::RUSR | Mode::WUSR) {
            Ok(marker) => {
                let mut text = MARKER_TEXT;
                while !text.is_empty() {
                    let written = rustix::io::write(&marker, text).map_err(fail)?;
                    text = text.get(written..).unwrap_or_default();
                }
                rustix::fs::fsync(&marker).map_err(fail)?;
                false
            }
            Err(Errno::EXIST) => true,
            Err(error) => return Err(fail(error)),
        };
        rustix::fs::fsync(&fd).map_err(fail)?;
        tracing::debug!(path = %path.display(), delete_extra = options.delete_extra, "restoring in place");
        Ok(Ground { fd, path, own: own(), umask: umask(), kind: Kind::InPlace { resumed } })
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What new files here belong to; `None` if what is there may not be ours alone.
    pub(super) fn own(&self) -> Own {
        self.own
    }

    pub(super) fn umask(&self) -> Option<u32> {
        self.umask
    }

    pub(super) fn resumed(&self) -> bool {
        match self.kind {
            Kind::Staging { resumed, .. } | Kind::InPlace { resumed } => resumed,
        }
    }

    /// Whether files may be there already, so that each has to be compared.
    pub(super) fn compares(&self) -> bool {
        matches!(self.kind, Kind::InPlace { .. } | Kind::Staging { resumed: true, .. })
    }

    /// Whether what was restored here before can still be relied on.
    pub(super) fn holds_base(&self) -> bool {
        matches!(self.kind, Kind::InPlace { resumed: false })
    }

    /// Whether names that are not in the recovery point have to go: always from what an interrupted restore left.
    pub(super) fn removes_extra(&self, options: &RestoreOptions) -> bool {
        options.delete_extra && self.compares() || matches!(self.kind, Kind::Staging { resumed: true, .. })
    }

    /// Makes everything durable, then lets it be seen.
    pub(super) fn finish(&self, top: Option<&Metadata>, owners: bool, job: &Job<'_>) -> Result<(), RestoreError> {
        let fail = |source| RestoreError::Write { path: self.path.clone(), source };
        rustix::fs::syncfs(&self.fd).map_err(fail)?;
        if let Kind::InPlace { .. } = self.kind {
            rustix::fs::unlinkat(&self.fd, MARKER, AtFlags::empty()).map_err(fail)?;
        }
        match top {
            Some(top) => job.note(&self.path, metadata::apply(self.fd.as_fd(), top, owners, None)),
            // A top that only exists in the tree becomes an ordinary directory.
            None if matches!(self.kind, Kind::Staging { .. }) => {
                rustix::fs::fchmod(&self.fd, Mode::from_raw_mode(0o755)).map_err(fail)?;
            }
            None => {}
        }
        rustix::fs::fsync(&self.fd).map_err(fail)?;
        let Kind::Staging { parent, staging, target, replaces_empty, .. } = &self.kind else { return Ok(()) };
        let fail = |source| match source {
            Errno::EXIST | Errno::NOTEMPTY => RestoreError::NotEmpty { path: target.clone() },
            source => RestoreError::Write { path: target.clone(), source },
        };
        let name = Path::new(target.file_name().unwrap_or_default());
        let renamed = if *replaces_empty {
            rustix::fs::renameat(parent, staging, parent, name)
        } else {
            match rustix::fs::renameat_with(parent, staging, parent, name, RenameFlags::NOREPLACE) {
                // A file system without the flag. A plain rename still replaces nothing but an empty directory.
                Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::renameat(parent, staging, parent, name),
                other => other,
            }
        };
        renamed.map_err(fail)?;
        rustix::fs::fsync(parent).map_err(fail)
    }
}

/// Whether this is the directory that the process (and the shell that called it) works in.
fn is_stood_in(fd: &OwnedFd) -> bool {
    let here = rustix::fs::stat(".").map(|stat| (stat.st_dev, stat.st_ino));
    here.is_ok() && here == rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino))
}

fn own() -> Own {
    Own { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw(), mode: 0o600 }
}

/// Asked of the system; the call that tells it would also change it, for all threads.
fn umask() -> Option<u32> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix("Umask:"))?;
    u32::from_str_radix(value.trim(), 8).ok()
}

/// Only one restore at a time. The lock goes with the process.
fn claim(fd: &OwnedFd, path: &Path) -> Result<(), RestoreError> {
    match rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Err(RestoreError::Busy { path: path.to_owned() }),
        // A file system without locks: nothing better can be had.
        _ => Ok(()),
    }
}
