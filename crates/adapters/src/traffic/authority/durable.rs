//! The authority's own memory: the newest generation of each name, on its own disk.
//!
//! Invariant: a generation is here, durably, before it is answered with; so a restart never goes back, and the arbiter
//! may be away for as long as it likes. One process at a time has the directory (a lock says so).

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lifeboat_core::desired::TrafficGeneration;
use serde::{Deserialize, Serialize};

const FORMAT: u32 = 1;
/// Far more than the largest generation that is accepted.
const FILE_BYTES_MAX: u64 = 1 << 20;
const LOCK_WITHIN: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("the state directory {path} cannot be used; it must be writable by the user that runs `lifeboat dns`")]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("another `lifeboat dns` uses the state directory {path}; stop it, or give this one a --state of its own")]
    InUse { path: PathBuf },
    #[error("the zone file {path} cannot be {verb}")]
    File {
        path: PathBuf,
        verb: &'static str,
        #[source]
        source: io::Error,
    },
}

/// One name's file. The checksum is over the generation as JSON: it finds damage, not forgery.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    format: u32,
    generation: TrafficGeneration,
    checksum: String,
}

#[derive(Debug)]
pub(super) struct DurableZone {
    directory: PathBuf,
    /// Held for as long as this lives.
    _lock: File,
}

impl DurableZone {
    /// Opens (or makes) the directory and takes its lock.
    pub(super) fn open(state: &Path) -> Result<DurableZone, StateError> {
        let directory = state.join("zone");
        let wrong = |source| StateError::Directory { path: state.to_owned(), source };
        fs::create_dir_all(&directory).map_err(wrong)?;
        let lock = File::options().create(true).truncate(false).write(true).open(state.join("lock")).map_err(wrong)?;
        // A child that was forked and has not executed yet shares this process's locks: a moment later they are free.
        let until = Instant::now() + LOCK_WITHIN;
        while let Err(error) = rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(wrong(error.into()));
            }
            if Instant::now() > until {
                return Err(StateError::InUse { path: state.to_owned() });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(DurableZone { directory, _lock: lock })
    }

    /// What is remembered of a name. A damaged file is moved aside and reported; the name then waits for the arbiter.
    pub(super) fn recall(&self, name: &str) -> Result<Option<TrafficGeneration>, StateError> {
        let path = self.path(name);
        let mut text = Vec::new();
        match File::open(&path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut text)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StateError::File { path, verb: "read", source }),
        }
        match serde_json::from_slice::<Remembered>(&text) {
            Ok(it) if it.format == FORMAT && it.checksum == checksum(&it.generation) => Ok(Some(it.generation)),
            _ => {
                let aside = path.with_extension("damaged");
                tracing::error!(
                    file = %path.display(),
                    aside = %aside.display(),
                    name,
                    "the zone file is damaged: moved aside; the name is not answered until the arbiter gives a generation"
                );
                fs::rename(&path, &aside).map_err(|source| StateError::File { path, verb: "moved aside", source })?;
                Ok(None)
            }
        }
    }

    /// Remembers a generation; durable when this returns.
    pub(super) fn remember(&self, generation: &TrafficGeneration) -> Result<(), StateError> {
        let path = self.path(&generation.name);
        let wrong = |source| StateError::File { path: path.clone(), verb: "written", source };
        let it = Remembered { format: FORMAT, generation: generation.clone(), checksum: checksum(generation) };
        let text = serde_json::to_vec_pretty(&it).map_err(|error| wrong(io::Error::other(error)))?;
        let fresh = path.with_extension("new");
        let mut file = File::create(&fresh).map_err(wrong)?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(wrong)?;
        fs::rename(&fresh, &path).map_err(wrong)?;
        File::open(&self.directory).and_then(|directory| directory.sync_all()).map_err(wrong)
    }

    /// `name` has been checked: letters, digits, `-`, `_` and dots, at least one of them no dot.
    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{}.json", name.trim_matches('.').to_ascii_lowercase()))
    }
}

fn checksum(generation: &TrafficGeneration) -> String {
    let text = serde_json::to_vec(generation).unwrap_or_default();
    blake3::hash(&text).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn generation(number: u64) -> TrafficGeneration {
        TrafficGeneration {
            name: "shop.example.com.".to_owned(),
            generation: number,
            epoch: 2,
            ttl_seconds: 5,
            answers: Vec::new(),
            at: "2026-01-01T00:00:00Z".to_owned(),
        }
    }

    #[test]
    fn remembers_across_opens_and_keeps_a_second_process_out() {
        let state = tempfile::tempdir().unwrap();
        let zone = DurableZone::open(state.path()).unwrap();
        assert_eq!(zone.recall("shop.example.com.").unwrap(), None);
        zone.remember(&generation(4)).unwrap();
        assert!(matches!(DurableZone::open(state.path()), Err(StateError::InUse { .. })));
        drop(zone);
        let zone = DurableZone::open(state.path()).unwrap();
        assert_eq!(zone.recall("shop.example.com.").unwrap(), Some(generation(4)));
    }

    #[test]
    fn a_damaged_file_is_moved_aside_and_never_believed() {
        let state = tempfile::tempdir().unwrap();
        let zone = DurableZone::open(state.path()).unwrap();
        zone.remember(&generation(4)).unwrap();
        let path = state.path().join("zone/shop.example.com.json");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"generation\": 4", "\"generation\": 5")).unwrap();
        assert_eq!(zone.recall("shop.example.com.").unwrap(), None);
        assert!(path.with_extension("damaged").exists() && !path.exists());
    }
}
