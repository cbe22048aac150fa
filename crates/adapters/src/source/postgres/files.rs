//! A recovery point's files, laid down as a data directory whose server is about to recover.
//!
//! Invariant: what is laid down starts as a recovery and as nothing else: a signal file stands in it before its server can be started.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use lifeboat_engine::port::Cancel;
use lifeboat_vault::files::{Browser, FileReader, Progress, RestoreOptions, restore_tree};
use lifeboat_vault::{ChunkId, PointInfo, Unlocked};

use super::facts::{self, Facts};
use super::recover::RecoverError;
use super::tablespaces;
use crate::postgres::lsn::history_name;

/// A point's tree of files.
pub(super) struct Tree {
    source: lifeboat_vault::Source,
    root: ChunkId,
    point: String,
}

/// How the server that finds them is to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// To recover to a target.
    Recovery,
    /// To follow, until it is promoted.
    Standby,
}

impl Signal {
    const NAMES: [(Signal, &str); 2] = [(Signal::Recovery, "recovery.signal"), (Signal::Standby, "standby.signal")];

    /// Where it stands, as long as the server has not been promoted.
    pub(super) fn in_directory(self, data: &Path) -> PathBuf {
        let name = Signal::NAMES.iter().find(|(signal, _)| *signal == self).map_or("", |(_, name)| name);
        data.join(name)
    }
}

/// Looks at what was laid down.
pub(super) type Look<'a> = &'a mut dyn FnMut(&Path) -> Result<(), RecoverError>;

/// What was done.
pub(super) struct Laid {
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) bytes_written: u64,
    pub(super) notes: Vec<String>,
}

impl Tree {
    pub(super) fn open(vault: &Unlocked, point: &PointInfo) -> Result<Tree, RecoverError> {
        let failed = |source| RecoverError::Vault { point: point.id.clone(), source };
        let root = vault.read_root(point).map_err(failed)?;
        let not = || RecoverError::NotACluster { point: point.id.clone() };
        let root = ChunkId(root.as_slice().try_into().map_err(|_| not())?);
        let source = vault.source(&point.dataset).map_err(failed)?;
        Ok(Tree { source, root, point: point.id.clone() })
    }

    pub(super) fn facts(&self) -> Result<Facts, RecoverError> {
        let failed = |source| RecoverError::Tree { point: self.point.clone(), source };
        let not = || RecoverError::NotACluster { point: self.point.clone() };
        let browser = Browser::open(&self.source, &self.root).map_err(failed)?;
        let node = browser.find(Path::new(facts::NAME)).map_err(|_| not())?;
        let mut reader = FileReader::open(&self.source, &node).map_err(failed)?;
        if reader.size() > facts::BYTES_MAX {
            return Err(not());
        }
        let mut bytes = vec![0; reader.size() as usize];
        reader.read_at(0, &mut bytes).map_err(failed)?;
        Ok(Facts::decode(&bytes)?)
    }

    /// Lays them down in `data`, which becomes the data directory `to` one day; over what lies there only what differs is written.
    pub(super) fn lay(
        &self,
        data: &Path,
        to: &Path,
        facts: &Facts,
        signal: Signal,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Laid, RecoverError> {
        self.lay_looking(data, to, facts, (signal, &mut |_| Ok(())), progress, cancel)
    }

    /// As `lay`; what is laid down is looked at when it is still as the source's server sent it, with nothing in it made ready.
    pub(super) fn lay_looking(
        &self,
        data: &Path,
        to: &Path,
        facts: &Facts,
        (signal, look): (Signal, Look<'_>),
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Laid, RecoverError> {
        let in_place = data.exists();
        tablespaces::gather(data, to)?;
        let options = RestoreOptions { in_place, delete_extra: in_place, ..RestoreOptions::default() };
        let restored = restore_tree(&self.source, &self.root, data, &options, progress, cancel.flag());
        let restored = restored.map_err(RecoverError::Files)?;
        look(data)?;
        make_ready(data, facts, signal)?;
        let mut notes = tablespaces::spread(data, to)?;
        notes.extend(restored.notes.iter().map(|note| format!("{}: {}", note.path.display(), note.what)));
        Ok(Laid { files: restored.files, bytes: restored.bytes, bytes_written: restored.written_bytes, notes })
    }
}

pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// What a server expects of a data directory, and what must not be left in one.
fn make_ready(data: &Path, facts: &Facts, signal: Signal) -> Result<(), RecoverError> {
    let name = data.join(facts::NAME);
    fs::remove_file(&name).map_err(RecoverError::file("remove", &name))?;
    let mode = fs::Permissions::from_mode(0o700);
    fs::set_permissions(data, mode).map_err(RecoverError::file("set the mode of", data))?;
    signal_to(data, facts, signal)
}

/// Says to the server that finds it how to begin, and takes away what another one left.
pub(super) fn signal_to(data: &Path, facts: &Facts, signal: Signal) -> Result<(), RecoverError> {
    let signals = Signal::NAMES.map(|(_, name)| name);
    for name in ["postmaster.pid", "postmaster.opts"].into_iter().chain(signals) {
        remove_if_there(&data.join(name))?;
    }
    // A server that is told its timeline by number wants to see where that came from.
    if facts.timeline > 1 {
        write_for(data, &data.join("pg_wal").join(history_name(facts.timeline)), facts.history.as_bytes())?;
    }
    write_for(data, &signal.in_directory(data), b"")
}

/// A small file, of whom the data directory belongs to.
pub(super) fn write_for(data: &Path, path: &Path, bytes: &[u8]) -> Result<(), RecoverError> {
    fs::write(path, bytes).map_err(RecoverError::file("write", path))?;
    give_away(path, data)
}

pub(super) fn remove_if_there(path: &Path) -> Result<(), RecoverError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(RecoverError::file("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Gives it to whom the data directory belongs.
pub(super) fn give_away(path: &Path, data: &Path) -> Result<(), RecoverError> {
    match owner_to_be(data)? {
        Some((user, group)) => {
            std::os::unix::fs::lchown(path, Some(user), Some(group)).map_err(RecoverError::file("give away", path))
        }
        None => Ok(()),
    }
}

/// Whom a server's files must belong to, where that is not ourselves.
pub(super) fn owner_to_be(data: &Path) -> Result<Option<(u32, u32)>, RecoverError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let seen = fs::metadata(data).map_err(RecoverError::file("look at", data))?;
    Ok(Some((seen.uid(), seen.gid())))
}
