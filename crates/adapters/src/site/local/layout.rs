//! Where everything of a local site lies below its root, and the small durable records kept there: down markers,
//! the highest epoch seen, which instances were started.
//!
//! Invariant: a name from outside never leads out of the directory that it belongs to, and a record is either
//! wholly there or not at all.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use lifeboat_engine::port::PortError;
use rustix::fs::FlockOperation;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A record is a few lines; anything larger was not written by us.
const RECORD_BYTES_MAX: u64 = 64 * 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    root: PathBuf,
    mark: String,
}

/// Blocks every start in a write domain until the fence is lifted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DownMarker {
    pub(super) write_domain: String,
    pub(super) epoch: u64,
    pub(super) run: String,
    pub(super) at: String,
}

/// What the supervisor remembers of an instance: it should run, and this is the process that was started for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct InstanceRecord {
    pub(super) id: String,
    pub(super) write_domain: Option<String>,
    pub(super) isolation: Option<String>,
    pub(super) epoch: u64,
    pub(super) idempotency_key: String,
    pub(super) pid: i32,
    pub(super) start_ticks: u64,
    /// The supervisor's session, in which its instances' groups are; with the group it names leftovers of a dead supervisor.
    pub(super) session: i32,
    pub(super) boot: String,
    pub(super) started_at: String,
    /// How it ended, if the supervisor saw it end.
    pub(super) ended: Option<String>,
}

/// The first supervisor of a boot: nothing older belongs to the site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FirstSupervisor {
    pub(super) boot: String,
    pub(super) start_ticks: u64,
    /// Of this boot's supervisors: where what they started can be seen.
    #[serde(default)]
    pub(super) pid_namespaces: BTreeSet<String>,
}

impl Layout {
    /// The layout below `root`, which need not exist. Links in the part that exists are followed once, here.
    pub(super) fn of(root: &Path) -> Result<Layout, PortError> {
        let absolute = std::path::absolute(root).map_err(|error| {
            PortError::new(format!("the site's root `{}` is no usable path", root.display())).because(error)
        })?;
        let root = follow_existing(&absolute);
        let mark = blake3::hash(root.as_os_str().as_encoded_bytes()).to_hex()[..32].to_owned();
        Ok(Layout { root, mark })
    }

    /// What every process of this site carries in its environment. It depends on the root's path only, so it is
    /// still known when all below the root is gone.
    pub(super) fn mark(&self) -> &str {
        &self.mark
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn state(&self) -> PathBuf {
        self.root.join(".lifeboat")
    }

    /// The directory of the volumes: the site's own, or a drill's.
    pub(super) fn volumes(&self, isolation: Option<&str>) -> PathBuf {
        match isolation {
            None => self.root.join("volumes"),
            Some(name) => self.isolation(name).join("volumes"),
        }
    }

    pub(super) fn isolation(&self, name: &str) -> PathBuf {
        self.state().join("isolated").join(file_name_of(name))
    }

    pub(super) fn isolation_record(&self, name: &str) -> PathBuf {
        self.isolation(name).join("isolation.json")
    }

    pub(super) fn removed_isolation(&self, name: &str) -> PathBuf {
        self.state().join("removed-isolations").join(file_name_of(name))
    }

    /// A file whose presence makes the site unreachable for the controller: how a partition is rehearsed.
    pub(super) fn unreachable(&self) -> PathBuf {
        self.state().join("unreachable")
    }

    pub(super) fn down_marker(&self, write_domain: &str) -> PathBuf {
        self.state().join("down").join(file_name_of(write_domain))
    }

    pub(super) fn epoch(&self, write_domain: &str) -> PathBuf {
        self.state().join("epochs").join(file_name_of(write_domain))
    }

    pub(super) fn instance_record(&self, id: &str, isolation: Option<&str>) -> PathBuf {
        self.state_of(isolation).join("instances").join(format!("{}.json", file_name_of(id)))
    }

    pub(super) fn log(&self, id: &str, isolation: Option<&str>) -> PathBuf {
        self.state_of(isolation).join("logs").join(format!("{}.log", file_name_of(id)))
    }

    pub(super) fn log_directory(&self, isolation: Option<&str>) -> PathBuf {
        self.state_of(isolation).join("logs")
    }

    pub(super) fn supervisor_lock(&self) -> PathBuf {
        self.state().join("supervisor.lock")
    }

    /// Where `SetAside` and `PutBack` leave word of what they did under an idempotency key.
    pub(super) fn done(&self, verb: &str, idempotency_key: &str, volume: &Path) -> PathBuf {
        let mut hasher = blake3::Hasher::new();
        for part in [verb.as_bytes(), idempotency_key.as_bytes(), volume.as_os_str().as_encoded_bytes()] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        self.state().join("done").join(&hasher.finalize().to_hex()[..32])
    }

    pub(super) fn first_supervisor(&self) -> Result<Option<FirstSupervisor>, PortError> {
        read_record(&self.state().join("first-supervisor.json"))
    }

    pub(super) fn note_supervisor(&self, start_ticks: u64) -> Result<(), PortError> {
        let boot = boot_id();
        let before = self.first_supervisor().ok().flatten().filter(|first| first.boot == boot);
        let new = FirstSupervisor { boot, start_ticks, pid_namespaces: BTreeSet::new() };
        let mut first = before.clone().unwrap_or(new);
        first.pid_namespaces.insert(pid_namespace());
        if before.as_ref() == Some(&first) {
            return Ok(());
        }
        write_record(&self.state().join("first-supervisor.json"), &first)
    }

    fn state_of(&self, isolation: Option<&str>) -> PathBuf {
        isolation.map_or_else(|| self.state(), |name| self.isolation(name))
    }

    /// Makes the site's own directories; the state is for its owner's eyes only.
    pub(super) fn make(&self) -> Result<(), PortError> {
        make_directory(&self.root, 0o755)?;
        make_directory(&self.volumes(None), 0o755)?;
        for name in ["", "down", "epochs", "instances", "logs", "isolated", "removed-isolations", "done"] {
            make_directory(&self.state().join(name), 0o700)?;
        }
        Ok(())
    }

    /// Starts hold this shared, fences and removals exclusively: once a marker is written under it, no start that
    /// has not seen the marker is under way.
    pub(super) fn lock_starts(&self, exclusively: bool, within: Duration) -> Result<File, PortError> {
        let path = self.state().join("starts.lock");
        let file = open_lock(&path)?;
        let operation = match exclusively {
            true => FlockOperation::NonBlockingLockExclusive,
            false => FlockOperation::NonBlockingLockShared,
        };
        let until = Instant::now() + within;
        while let Err(error) = rustix::fs::flock(&file, operation) {
            if Instant::now() > until {
                let message = format!("`{}` stays locked: a start or a fence is under way there", path.display());
                return Err(PortError::may_pass(message).because(error));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(file)
    }

    pub(super) fn read_down_marker(&self, write_domain: &str) -> Result<Option<DownMarker>, PortError> {
        read_record(&self.down_marker(write_domain))
    }

    /// The highest epoch under which anything was done here in the write domain; 0 if nothing was.
    pub(super) fn highest_epoch(&self, write_domain: &str) -> Result<u64, PortError> {
        Ok(read_record(&self.epoch(write_domain))?.unwrap_or(0))
    }

    pub(super) fn raise_epoch(&self, write_domain: &str, epoch: u64) -> Result<(), PortError> {
        if epoch > self.highest_epoch(write_domain)? {
            write_record(&self.epoch(write_domain), &epoch)?;
        }
        Ok(())
    }

    /// Every instance that was started here, in drills too.
    pub(super) fn instance_records(&self) -> Result<Vec<InstanceRecord>, PortError> {
        let mut directories = vec![self.state().join("instances")];
        for entry in list(&self.state().join("isolated"))? {
            directories.push(entry.join("instances"));
        }
        let mut records = Vec::new();
        for directory in directories {
            for path in list(&directory)? {
                if path.extension().is_some_and(|extension| extension == "json")
                    && let Some(record) = read_record(&path)?
                {
                    records.push(record);
                }
            }
        }
        Ok(records)
    }
}

/// The path with all links in its existing part followed.
pub(super) fn follow_existing(path: &Path) -> PathBuf {
    let mut rest = Vec::new();
    let mut existing = path.to_path_buf();
    loop {
        if let Ok(followed) = existing.canonicalize() {
            return rest.iter().rev().fold(followed, |path, part| path.join(part));
        }
        match (existing.parent().map(Path::to_path_buf), existing.file_name()) {
            (Some(parent), Some(name)) => {
                rest.push(name.to_os_string());
                existing = parent;
            }
            _ => return path.to_path_buf(),
        }
    }
}

/// A name as a file name: everything but letters, digits, `-`, `_` and inner dots is written as `%XX`.
pub(super) fn file_name_of(name: &str) -> String {
    let mut text = String::new();
    for (at, byte) in name.bytes().enumerate() {
        let plain = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') || (byte == b'.' && at > 0);
        if plain {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    if text.is_empty() { "%".to_owned() } else { text }
}

/// The parts of a relative path, if it is one that stays where it is put.
pub(super) fn inner_path(path: &str) -> Option<PathBuf> {
    let mut inner = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => inner.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    (!inner.as_os_str().is_empty()).then_some(inner)
}

pub(in crate::site) fn make_directory(path: &Path, mode: u32) -> Result<(), PortError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|error| PortError::may_pass(format!("cannot make the directory `{}`", path.display())).because(error))
}

pub(super) fn open_lock(path: &Path) -> Result<File, PortError> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| PortError::may_pass(format!("cannot open the lock `{}`", path.display())).because(error))
}

/// What is in a directory; nothing if it does not exist.
pub(super) fn list(directory: &Path) -> Result<Vec<PathBuf>, PortError> {
    let failed = |error| PortError::may_pass(format!("cannot list `{}`", directory.display())).because(error);
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed)).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

pub(in crate::site) fn read_record<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, PortError> {
    let failed = |error| PortError::may_pass(format!("cannot read the record `{}`", path.display())).because(error);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = String::new();
    file.take(RECORD_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    serde_json::from_str(&text).map(Some).map_err(|error| {
        let message = format!("the record `{}` is damaged: look what it was about, then remove it", path.display());
        PortError::new(message).because(error)
    })
}

/// Replaces a record: after this returns it is on disk.
pub(in crate::site) fn write_record<T: Serialize>(path: &Path, record: &T) -> Result<(), PortError> {
    make_directory(path.parent().unwrap_or(Path::new("/")), 0o700)?;
    replace_record(path, record)
}

/// The same in a directory that must exist: what was removed is not brought back by a late word about it.
pub(super) fn replace_record<T: Serialize>(path: &Path, record: &T) -> Result<(), PortError> {
    let failed =
        |error: io::Error| PortError::may_pass(format!("cannot write the record `{}`", path.display())).because(error);
    let text = serde_json::to_vec(record).map_err(|error| failed(error.into()))?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let unfinished = directory.join(format!(".{name}.{}.{:?}", std::process::id(), std::thread::current().id()));
    let write = || {
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&unfinished)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)?;
        sync_directory(directory)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&unfinished);
        failed(error)
    })
}

/// Removes a file durably; it is no error if it was not there.
pub(in crate::site) fn remove_record(path: &Path) -> Result<(), PortError> {
    let remove = || match fs::remove_file(path) {
        Ok(()) => path.parent().map_or(Ok(()), sync_directory),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    remove().map_err(|error| PortError::may_pass(format!("cannot remove `{}`", path.display())).because(error))
}

pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Identifies this boot of the machine: process numbers from another one mean nothing.
pub(in crate::site) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// The namespace of this process's number, as the kernel names it.
pub(super) fn pid_namespace() -> String {
    fs::read_link("/proc/self/ns/pid").map(|link| link.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_their_directory() {
        assert_eq!(file_name_of("shop"), "shop");
        assert_eq!(file_name_of("shop.app.1"), "shop.app.1");
        assert_eq!(file_name_of("../x"), "%2E.%2Fx");
        assert_eq!(file_name_of(""), "%");
        assert_ne!(file_name_of("a/b"), file_name_of("a%2Fb"));
    }

    #[test]
    fn only_inner_paths_are_taken() {
        assert_eq!(inner_path("a/./b"), Some(PathBuf::from("a/b")));
        for wrong in ["", ".", "/etc", "../x", "a/../../x", "a/.."] {
            assert_eq!(inner_path(wrong), None, "{wrong}");
        }
    }
}
