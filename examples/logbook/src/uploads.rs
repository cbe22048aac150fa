//! The uploads: one file each in a directory.
//!
//! Invariant: an upload is either there whole, under its name and durable, or not there at all.

use std::fs::{File, rename};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Longer names are refused.
const NAME_MAX: usize = 128;

#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadsError {
    #[error(
        "an upload's name has 1 to {NAME_MAX} letters, digits, dots, dashes or underscores, and does not begin with a dot"
    )]
    BadName,
    #[error("cannot {verb} {path}")]
    Io { verb: &'static str, path: PathBuf, source: std::io::Error },
}

#[derive(Debug)]
pub(crate) struct Uploads {
    directory: PathBuf,
    /// Tells apart the unfinished files of this process.
    counter: AtomicU64,
}

impl Uploads {
    pub(crate) fn open(directory: &Path) -> Result<Uploads, UploadsError> {
        std::fs::create_dir_all(directory).map_err(io("create", directory))?;
        Ok(Uploads { directory: directory.to_owned(), counter: AtomicU64::new(0) })
    }

    pub(crate) fn put(&self, name: &str, bytes: &[u8]) -> Result<(), UploadsError> {
        let path = self.path(name)?;
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        let unfinished = self.directory.join(format!(".{}-{number}.part", std::process::id()));
        let written = write_durably(&unfinished, bytes).and_then(|()| {
            rename(&unfinished, &path).map_err(io("rename a finished upload to", &path))?;
            let directory = File::open(&self.directory).map_err(io("open", &self.directory))?;
            directory.sync_all().map_err(io("flush", &self.directory))
        });
        if written.is_err() {
            let _ = std::fs::remove_file(&unfinished);
        }
        written
    }

    pub(crate) fn get(&self, name: &str) -> Result<Option<Vec<u8>>, UploadsError> {
        let path = self.path(name)?;
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io("read", &path)(error)),
        }
    }

    pub(crate) fn check(&self) -> Result<(), UploadsError> {
        let metadata = std::fs::metadata(&self.directory).map_err(io("look at", &self.directory))?;
        if metadata.is_dir() {
            return Ok(());
        }
        Err(io("use as a directory", &self.directory)(std::io::ErrorKind::NotADirectory.into()))
    }

    fn path(&self, name: &str) -> Result<PathBuf, UploadsError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if name.is_empty() || name.len() > NAME_MAX || name.starts_with('.') || !name.chars().all(plain) {
            return Err(UploadsError::BadName);
        }
        Ok(self.directory.join(name))
    }
}

fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), UploadsError> {
    let mut file = File::create(path).map_err(io("create", path))?;
    file.write_all(bytes).map_err(io("write", path))?;
    file.sync_all().map_err(io("flush", path))
}

fn io(verb: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> UploadsError + use<> {
    let path = path.to_owned();
    move |source| UploadsError::Io { verb, path, source }
}
