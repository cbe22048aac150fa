//! A drill's own surroundings at a local site: a directory for its volumes, records and logs, and a loopback address.
//!
//! Invariant: what runs in an isolation carries its name, so that removing it finds all of it, and looking afterwards
//! finds whatever remained.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lifeboat_core::run::Facts;
use lifeboat_engine::port::PortError;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::holders::Tree;
use super::layout::{list, make_directory, read_record, remove_record, write_record};
use super::processes::{Belongs, Door, Process, Snapshot, kill_until_none, listening_sockets};
use super::{Inner, facts};

const NAME_BYTES_MAX: usize = 100;

/// Where a drill's isolation lies and listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IsolationPlace {
    pub name: String,
    /// What takes the place of the site's volumes directory.
    pub volumes: PathBuf,
    pub address: Ipv4Addr,
}

#[derive(Debug, Serialize, Deserialize)]
struct IsolationRecord {
    name: String,
    address: Ipv4Addr,
}

impl Inner {
    /// The recorded address, or else the first of the name's own addresses at which nobody listens.
    pub(super) fn isolation_place(&self, name: &str) -> Result<IsolationPlace, PortError> {
        check_name(name)?;
        let place =
            |address| IsolationPlace { name: name.to_owned(), volumes: self.layout.volumes(Some(name)), address };
        if let Some(record) = read_record::<IsolationRecord>(&self.layout.isolation_record(name))? {
            return Ok(place(record.address));
        }
        let listening = listening_sockets()?;
        let taken = |address: &Ipv4Addr| listening.iter().any(|(socket, _)| socket.ip() == IpAddr::V4(*address));
        let mine = |address: &Ipv4Addr| self.config.address.parse() == Ok(*address);
        let free = (0..64).map(|nth| self.address_of(name, nth)).find(|address| !taken(address) && !mine(address));
        free.map(place).ok_or_else(|| {
            PortError::may_pass(format!(
                "all loopback addresses for isolation `{name}` are in use: choose another name"
            ))
        })
    }

    /// 127.64.0.0/10 is left to isolations.
    fn address_of(&self, name: &str, nth: u8) -> Ipv4Addr {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.layout.mark().as_bytes()).update(name.as_bytes()).update(&[0, nth]);
        let [a, b, c, ..] = *hasher.finalize().as_bytes();
        Ipv4Addr::new(127, 64 | (a & 63), b, 1 + c % 254)
    }

    pub(super) fn isolate(&self, name: &str) -> Result<Facts, PortError> {
        self.layout.make()?;
        let place = self.isolation_place(name)?;
        make_directory(&place.volumes, 0o755)?;
        // A database's own user goes through, as it does to the site's real volumes; the state's names are still its owner's to read.
        for passed in [self.layout.state(), self.layout.state().join("isolated"), self.layout.isolation(name)] {
            let passable = || {
                let mode = fs::metadata(&passed)?.permissions().mode();
                fs::set_permissions(&passed, fs::Permissions::from_mode(mode | 0o011))
            };
            passable().map_err(|error| {
                PortError::may_pass(format!("`{}` cannot be made passable", passed.display())).because(error)
            })?;
        }
        let record = IsolationRecord { name: name.to_owned(), address: place.address };
        write_record(&self.layout.isolation_record(name), &record)?;
        Ok(facts([("address", json!(place.address.to_string())), ("volumes", json!(place.volumes))]))
    }

    /// Kills what runs in it and deletes its directory. Nothing can start there from its first moment on.
    pub(super) fn remove_isolation(&self, name: &str) -> Result<Facts, PortError> {
        check_name(name)?;
        let record_path = self.layout.isolation_record(name);
        if self.layout.state().exists() {
            let _starts = self.layout.lock_starts(true, self.config.fence_within)?;
            // A damaged record must not keep the isolation alive.
            if let Ok(Some(record)) = read_record::<IsolationRecord>(&record_path) {
                write_record(&self.layout.removed_isolation(name), &record)?;
            }
            remove_record(&record_path)?;
        }
        let pick = |snapshot: &Snapshot| -> Vec<Process> {
            let within = |belongs: &Belongs| belongs.isolation.as_deref() == Some(name);
            snapshot.of_site(within).into_iter().map(|(process, _)| process.clone()).collect()
        };
        let (killed, left) = kill_until_none(&self.layout, self.config.fence_within, pick)?;
        if let Some(process) = left.first() {
            return Err(PortError::may_pass(format!("{process} in isolation `{name}` cannot be killed")));
        }
        let directory = self.layout.isolation(name);
        // The supervisor may still note the end of what was just killed: that makes a file anew, and is held open for a moment.
        let until = Instant::now() + self.config.fence_within;
        loop {
            match fs::remove_dir_all(&directory) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if Instant::now() > until || !self.is_held_by_supervisor(&directory)? {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) if Instant::now() > until => {
                    let message = format!("`{}` of isolation `{name}` cannot be deleted", directory.display());
                    return Err(PortError::may_pass(message).because(error));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        Ok(facts([("killed", json!(killed.iter().map(ToString::to_string).collect::<Vec<_>>()))]))
    }

    fn is_held_by_supervisor(&self, directory: &Path) -> Result<bool, PortError> {
        let snapshot = Snapshot::take(&self.layout)?;
        let handles = snapshot.handles(&Tree::look(&[directory.to_owned()])?);
        Ok(handles.iter().any(|held| snapshot.belongs(held.process.pid).is_some_and(Belongs::is_supervisor)))
    }

    pub(super) fn what_is_left(&self, name: &str) -> Result<Vec<String>, PortError> {
        check_name(name)?;
        let snapshot = Snapshot::take(&self.layout)?;
        let within = |belongs: &Belongs| belongs.isolation.as_deref() == Some(name);
        let mut left: Vec<String> =
            snapshot.of_site(within).iter().map(|(process, _)| format!("{process} still runs")).collect();
        let directory = self.layout.isolation(name);
        if fs::symlink_metadata(&directory).is_ok() {
            left.push(format!("`{}` still exists", directory.display()));
        }
        left.extend(snapshot.handles(&Tree::look(&[directory])?).iter().map(ToString::to_string));
        let record = match read_record::<IsolationRecord>(&self.layout.isolation_record(name))? {
            Some(record) => Some(record),
            None => read_record(&self.layout.removed_isolation(name))?,
        };
        if let Some(record) = record {
            let door = Door { address: Some(IpAddr::V4(record.address)), port: None };
            left.extend(snapshot.listeners(&[door])?.iter().map(ToString::to_string));
        }
        Ok(left)
    }

    /// Fails if a verb is to act in an isolation that does not exist.
    pub(super) fn permit_isolation(&self, isolation: Option<&str>) -> Result<(), PortError> {
        let Some(name) = isolation else { return Ok(()) };
        check_name(name)?;
        if self.layout.isolation_record(name).exists() {
            return Ok(());
        }
        Err(PortError::new(format!("there is no isolation `{name}` at site `{}`: make it first", self.config.name)))
    }

    /// The isolation whose address this is, if it is one's.
    pub(super) fn isolation_at(&self, address: Option<&str>) -> Result<Option<String>, PortError> {
        let Some(Ok(address)) = address.map(str::parse::<Ipv4Addr>) else { return Ok(None) };
        for directory in list(&self.layout.state().join("isolated"))? {
            if let Some(record) = read_record::<IsolationRecord>(&directory.join("isolation.json"))?
                && record.address == address
            {
                return Ok(Some(record.name));
            }
        }
        Ok(None)
    }
}

fn check_name(name: &str) -> Result<(), PortError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(plain) && !name.starts_with('.') {
        return Ok(());
    }
    Err(PortError::new(format!("`{name}` is no name for an isolation: use letters, digits, `-`, `_` and `.`")))
}
