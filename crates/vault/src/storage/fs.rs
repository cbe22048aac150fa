//! A directory as storage: write a temporary file, sync it, move it to its name, sync the directory.
//!
//! Invariants: an object is visible whole or not at all; the root itself is never created by a write, so that an unmounted
//! disk is an error and not a second, empty vault; nothing follows a symbolic link out of the root.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::{Fact, Listed, OBJECT_BYTES_MAX, Put, Storage, StorageError, bytes_max, check_key};

const TEMPORARY: &str = ".tmp";
/// Nothing takes longer to write one object.
const TEMPORARY_AGE_MAX: std::time::Duration = std::time::Duration::from_secs(24 * 3600);
const DEPTH_MAX: usize = 32;

#[derive(Debug)]
pub struct FsStorage {
    root: PathBuf,
    /// Device and inode at opening.
    identity: (u64, u64),
    counter: AtomicU64,
    /// Only to try something out in: gone when it is let go.
    fleeting: bool,
}

impl Drop for FsStorage {
    fn drop(&mut self) {
        if self.fleeting {
            // Best effort: it lies where temporary files lie.
            let _ = std::fs::remove_dir_all(&self.root);
        }
    }
}

impl FsStorage {
    /// Opens an existing directory.
    pub fn open(root: impl AsRef<Path>) -> Result<FsStorage, StorageError> {
        let given = root.as_ref();
        // One name for one place, however it is written: what is remembered of a vault goes by it.
        let root = given.canonicalize().or_else(|_| std::path::absolute(given));
        let root = root.unwrap_or_else(|_| given.to_path_buf());
        let mut storage = FsStorage { root, identity: (0, 0), counter: AtomicU64::new(0), fleeting: false };
        let directory = storage.open_root_unchecked()?;
        storage.identity = identity_of(&directory).map_err(|e| storage.explain("open", "", e))?;
        storage.sweep();
        Ok(storage)
    }

    /// Opens a directory, making it (and its parents) where it is absent.
    pub fn create(root: impl AsRef<Path>) -> Result<FsStorage, StorageError> {
        let path = root.as_ref();
        if path.exists() && !path.is_dir() {
            let why = "there is something else, which is no directory".to_owned();
            return Err(StorageError::BadAddress { address: path.display().to_string(), why });
        }
        std::fs::create_dir_all(path).map_err(|source| StorageError::Io {
            verb: "make the directory",
            key: path.display().to_string(),
            location: path.display().to_string(),
            source,
        })?;
        FsStorage::open(path)
    }

    /// Removes temporary files that crashed writers left more than a day ago. What cannot be removed only takes space.
    fn sweep(&self) {
        let Ok(entries) = std::fs::read_dir(self.root.join(TEMPORARY)) else { return };
        for entry in entries.flatten() {
            let modified = entry.metadata().and_then(|m| m.modified()).ok();
            if modified.and_then(|m| m.elapsed().ok()).is_some_and(|age| age > TEMPORARY_AGE_MAX) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    fn open_root_unchecked(&self) -> Result<OwnedFd, StorageError> {
        rustix::fs::open(&self.root, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(|e| {
            match e {
                Errno::NOENT | Errno::NOTDIR => StorageError::Gone { location: self.location() },
                e => self.explain("open", "", e),
            }
        })
    }

    fn open_root(&self) -> Result<OwnedFd, StorageError> {
        let directory = self.open_root_unchecked()?;
        let identity = identity_of(&directory).map_err(|e| self.explain("open", "", e))?;
        if identity != self.identity {
            return Err(StorageError::Replaced { location: self.location() });
        }
        Ok(directory)
    }

    /// Opens the directory at `segments` below the root, making what is absent if `make`.
    fn open_directory(&self, key: &str, segments: &[&str], make: bool) -> Result<OwnedFd, StorageError> {
        let mut directory = self.open_root()?;
        for segment in segments {
            directory = match open_at(&directory, segment, OFlags::DIRECTORY) {
                Err(Errno::NOENT) if make => {
                    match rustix::fs::mkdirat(&directory, *segment, Mode::from_raw_mode(0o777)) {
                        Ok(()) => rustix::fs::fsync(&directory).map_err(|e| self.explain("write", key, e))?,
                        Err(Errno::EXIST) => {}
                        Err(e) => return Err(self.explain("write", key, e)),
                    }
                    open_at(&directory, segment, OFlags::DIRECTORY).map_err(|e| self.explain("write", key, e))?
                }
                Err(e) => return Err(self.explain("open", key, e)),
                Ok(next) => next,
            };
        }
        Ok(directory)
    }

    fn open_object(&self, key: &str) -> Result<File, StorageError> {
        check_key(key)?;
        let (parents, name) = split(key);
        let directory = self.open_directory(key, &parents, false)?;
        let file = open_at(&directory, name, OFlags::empty()).map_err(|e| self.explain("read", key, e))?;
        Ok(File::from(file))
    }

    fn write(&self, key: &str, bytes: &[u8], flags: RenameFlags) -> Result<Put, StorageError> {
        check_key(key)?;
        let (parents, name) = split(key);
        let directory = self.open_directory(key, &parents, true)?;
        if flags.contains(RenameFlags::NOREPLACE)
            && rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
        {
            return Ok(Put::Exists);
        }
        let scratch = self.open_directory(key, &[TEMPORARY], true)?;
        let count = self.counter.fetch_add(1, Ordering::Relaxed);
        let temporary = format!("{}-{count}-{:016x}", std::process::id(), crate::crypt::random_u64());
        let written = self.write_temporary(&scratch, &temporary, key, bytes).and_then(|()| {
            match move_into(&scratch, &temporary, &directory, name, flags) {
                Ok(()) => Ok(Put::Created),
                Err(Errno::EXIST) => Ok(Put::Exists),
                Err(e) => Err(self.explain("write", key, e)),
            }
        });
        if !matches!(written, Ok(Put::Created)) {
            // Best effort: what stays behind is a temporary file, never an object.
            let _ = rustix::fs::unlinkat(&scratch, &temporary, AtFlags::empty());
        }
        let put = written?;
        rustix::fs::fsync(&directory).map_err(|e| self.explain("sync", key, e))?;
        Ok(put)
    }

    fn write_temporary(&self, scratch: &OwnedFd, name: &str, key: &str, bytes: &[u8]) -> Result<(), StorageError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(scratch, name, flags, Mode::from_raw_mode(0o644))
            .map_err(|e| self.explain("write", key, e))?;
        let mut file = File::from(fd);
        file.write_all(bytes).and_then(|()| file.sync_data()).map_err(|e| self.explain_io("write", key, e))
    }

    fn walk(
        &self,
        directory: &OwnedFd,
        path: &str,
        prefix: &str,
        depth: usize,
        found: &mut Vec<Listed>,
    ) -> Result<(), StorageError> {
        if depth > DEPTH_MAX {
            return Ok(());
        }
        let entries = rustix::fs::Dir::read_from(directory).map_err(|e| self.explain("list", path, e))?;
        for entry in entries {
            let entry = entry.map_err(|e| self.explain("list", path, e))?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name.starts_with('.') {
                continue;
            }
            let key = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
            if !key.starts_with(prefix) && !prefix.starts_with(&format!("{key}/")) {
                continue;
            }
            let stat = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(self.explain("list", &key, e)),
            };
            match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
                rustix::fs::FileType::Directory => match open_at(directory, name, OFlags::DIRECTORY) {
                    Ok(below) => self.walk(&below, &key, prefix, depth + 1, found)?,
                    Err(Errno::NOENT) => continue,
                    Err(e) => return Err(self.explain("list", &key, e)),
                },
                rustix::fs::FileType::RegularFile if key.starts_with(prefix) => {
                    let stored_at = Timestamp::new(stat.st_mtime, i32::try_from(stat.st_mtime_nsec).unwrap_or(0)).ok();
                    found.push(Listed { key, size: u64::try_from(stat.st_size).unwrap_or(0), stored_at });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn explain(&self, verb: &'static str, key: &str, errno: Errno) -> StorageError {
        self.explain_io(verb, key, errno.into())
    }

    fn explain_io(&self, verb: &'static str, key: &str, source: std::io::Error) -> StorageError {
        let location = self.location();
        match source.kind() {
            std::io::ErrorKind::NotFound if !key.is_empty() => StorageError::NotFound { key: key.to_owned() },
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => StorageError::NoSpace { location },
            std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                StorageError::Denied { location, verb }
            }
            _ => StorageError::Io { verb, key: key.to_owned(), location, source },
        }
    }
}

fn split(key: &str) -> (Vec<&str>, &str) {
    let mut segments: Vec<&str> = key.split('/').collect();
    let name = segments.pop().unwrap_or_default();
    (segments, name)
}

fn open_at(directory: impl AsFd, name: &str, extra: OFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | extra;
    rustix::fs::openat(directory, name, flags, Mode::empty())
}

/// Moves without replacing where asked; file systems that know no RENAME_NOREPLACE get a hard link instead.
fn move_into(from: &OwnedFd, temporary: &str, to: &OwnedFd, name: &str, flags: RenameFlags) -> Result<(), Errno> {
    match rustix::fs::renameat_with(from, temporary, to, name, flags) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) if flags.contains(RenameFlags::NOREPLACE) => {
            rustix::fs::linkat(from, temporary, to, name, AtFlags::empty())?;
            rustix::fs::unlinkat(from, temporary, AtFlags::empty())
        }
        other => other,
    }
}

#[allow(clippy::unnecessary_cast)] // st_dev's width differs between platforms
fn identity_of(directory: &OwnedFd) -> Result<(u64, u64), Errno> {
    let stat = rustix::fs::fstat(directory)?;
    Ok((stat.st_dev as u64, stat.st_ino as u64))
}

impl Storage for FsStorage {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, StorageError> {
        self.write(key, bytes, RenameFlags::NOREPLACE)
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), StorageError> {
        self.write(key, bytes, RenameFlags::empty()).map(|_| ())
    }

    fn get(&self, key: &str) -> Result<Vec<u8>, StorageError> {
        let file = self.open_object(key)?;
        let size = file.metadata().map_err(|e| self.explain_io("read", key, e))?.len();
        let limit = bytes_max(key);
        if size > limit {
            return Err(StorageError::TooLarge { key: key.to_owned(), size, limit });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        file.take(limit).read_to_end(&mut bytes).map_err(|e| self.explain_io("read", key, e))?;
        Ok(bytes)
    }

    fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Vec<u8>, StorageError> {
        let mut bytes = Vec::new();
        self.get_range_into(key, offset, length, &mut bytes)?;
        Ok(bytes)
    }

    fn get_range_into(&self, key: &str, offset: u64, length: u64, into: &mut Vec<u8>) -> Result<(), StorageError> {
        let mut file = self.open_object(key)?;
        if length > OBJECT_BYTES_MAX {
            return Err(StorageError::TooLarge { key: key.to_owned(), size: length, limit: OBJECT_BYTES_MAX });
        }
        into.clear();
        into.reserve(usize::try_from(length).unwrap_or(0));
        file.seek(SeekFrom::Start(offset)).map_err(|e| self.explain_io("read", key, e))?;
        file.take(length).read_to_end(into).map_err(|e| self.explain_io("read", key, e))?;
        Ok(())
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StorageError> {
        // The deepest directory that the prefix names in full is where the walk starts.
        let start = prefix.rsplit_once('/').map(|(start, _)| start).unwrap_or_default();
        let segments: Vec<&str> = if start.is_empty() { Vec::new() } else { start.split('/').collect() };
        if !start.is_empty() {
            check_key(start)?;
        }
        let directory = match self.open_directory(start, &segments, false) {
            Ok(directory) => directory,
            Err(StorageError::NotFound { .. }) => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut found = Vec::new();
        self.walk(&directory, start, prefix, 0, &mut found)?;
        found.sort();
        Ok(found)
    }

    fn delete(&self, key: &str) -> Result<(), StorageError> {
        check_key(key)?;
        let (parents, name) = split(key);
        let directory = match self.open_directory(key, &parents, false) {
            Err(StorageError::NotFound { .. }) => return Ok(()),
            other => other?,
        };
        match rustix::fs::unlinkat(&directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(self.explain("delete", key, e)),
        }
        rustix::fs::fsync(&directory).map_err(|e| self.explain("sync", key, e))
    }

    fn location(&self) -> String {
        self.root.display().to_string()
    }

    fn rehearsal(&self) -> Result<Option<Arc<dyn Storage>>, StorageError> {
        let place = self.root.join(TEMPORARY).join(format!("doctor-{:016x}", crate::crypt::random_u64()));
        let mut beside = FsStorage::create(place)?;
        beside.fleeting = true;
        Ok(Some(Arc::new(beside)))
    }

    fn facts(&self) -> Vec<Fact> {
        super::fs_facts::facts(&self.root)
    }
}
