//! What a data directory's control file says: whose cluster it is, how it was left, and up to where it must be recovered.
//!
//! Read by `pg_controldata` of the same version, for the file's form changes with each. Invariant: a control file that does not match its own
//! checksum is an error.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use super::child;
use super::lsn::{Lsn, Segments};
use super::programs::Programs;

/// How a cluster was left, or what it does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    StartingUp,
    ShutDown,
    ShutDownInRecovery,
    ShuttingDown,
    InCrashRecovery,
    InArchiveRecovery,
    InProduction,
}

const STATES: [(&str, State); 7] = [
    ("starting up", State::StartingUp),
    ("shut down", State::ShutDown),
    ("shut down in recovery", State::ShutDownInRecovery),
    ("shutting down", State::ShuttingDown),
    ("in crash recovery", State::InCrashRecovery),
    ("in archive recovery", State::InArchiveRecovery),
    ("in production", State::InProduction),
];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Control {
    pub(crate) state: State,
    pub(crate) system_id: u64,
    pub(crate) checkpoint: Lsn,
    /// Where recovery begins.
    pub(crate) redo: Lsn,
    /// Of the checkpoint.
    pub(crate) timeline: u32,
    /// Before it the cluster is not consistent; zero if that is no question.
    pub(crate) min_recovery_end: Lsn,
    pub(crate) min_recovery_timeline: u32,
    pub(crate) segments: Segments,
    /// Of the log.
    pub(crate) log_page_bytes: u64,
    pub(crate) checksums: bool,
    /// What a server that recovers it must at least be set to, as settings.
    pub(crate) settings: Vec<(&'static str, String)>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error("pg_controldata cannot be run on {path}")]
    Run {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the control file of {path} cannot be read: {said}")]
    Refused { path: PathBuf, said: String },
    #[error(
        "the control file of {path} is damaged: its checksum does not match. Restore it, or take another copy of the data directory"
    )]
    Damaged { path: PathBuf },
    #[error("pg_controldata says no understandable `{field}` of {path}")]
    Field { path: PathBuf, field: &'static str },
}

/// A server may be built with any power of two among them.
const LOG_PAGE_BYTES: std::ops::RangeInclusive<u64> = 1 << 10..=64 << 10;

/// As `pg_controldata` calls them, and as they are set.
const SETTINGS: [(&str, &str); 7] = [
    ("wal_level setting", "wal_level"),
    ("wal_log_hints setting", "wal_log_hints"),
    ("max_connections setting", "max_connections"),
    ("max_worker_processes setting", "max_worker_processes"),
    ("max_wal_senders setting", "max_wal_senders"),
    ("max_prepared_xacts setting", "max_prepared_transactions"),
    ("max_locks_per_xact setting", "max_locks_per_transaction"),
];

impl Control {
    pub(crate) async fn read(programs: &Programs, data_directory: &Path) -> Result<Control, ControlError> {
        let path = || data_directory.to_owned();
        let arguments = ["-D".as_ref(), data_directory.as_os_str()];
        let answer = child::answer(&programs.program("pg_controldata"), &arguments).await;
        let answer = answer.map_err(|source| ControlError::Run { path: path(), source })?;
        if !answer.status.success() {
            let said = super::error::words(answer.stderr.as_bytes());
            return Err(ControlError::Refused { path: path(), said });
        }
        // It warns, and shows what it found nevertheless.
        if answer.stdout.contains("WARNING") || answer.stderr.contains("WARNING") || answer.stderr.contains("warning") {
            return Err(ControlError::Damaged { path: path() });
        }
        parse(&answer.stdout).map_err(|field| ControlError::Field { path: path(), field })
    }

    /// Whether the server that left it had written everything down.
    pub(crate) fn is_clean(&self) -> bool {
        matches!(self.state, State::ShutDown | State::ShutDownInRecovery)
    }

    /// Whether every page that was changed stands in the log, even if only a hint on it was.
    pub(crate) fn logs_every_page(&self) -> bool {
        self.checksums || self.settings.iter().any(|(name, value)| (*name, value.as_str()) == ("wal_log_hints", "on"))
    }
}

/// `Err` with the field that is missing or odd.
pub(super) fn parse(text: &str) -> Result<Control, &'static str> {
    let fields: HashMap<&str, &str> =
        text.lines().filter_map(|line| line.split_once(':')).map(|(key, value)| (key.trim(), value.trim())).collect();
    fn number<T: std::str::FromStr>(fields: &HashMap<&str, &str>, key: &'static str) -> Result<T, &'static str> {
        fields.get(key).and_then(|value| value.parse().ok()).ok_or(key)
    }
    let state = "Database cluster state";
    let segment = "Bytes per WAL segment";
    let known_page = |bytes: u64| {
        (bytes.is_power_of_two() && LOG_PAGE_BYTES.contains(&bytes)).then_some(bytes).ok_or("WAL block size")
    };
    let known = |said: &&str| STATES.iter().find(|(name, _)| name == said).map(|(_, state)| *state);
    let mut settings = Vec::new();
    for (key, setting) in SETTINGS {
        let value =
            fields.get(key).filter(|value| value.bytes().all(|byte| byte.is_ascii_alphanumeric())).ok_or(key)?;
        settings.push((setting, (*value).to_owned()));
    }
    Ok(Control {
        state: fields.get(state).and_then(known).ok_or(state)?,
        system_id: number(&fields, "Database system identifier")?,
        checkpoint: number(&fields, "Latest checkpoint location")?,
        redo: number(&fields, "Latest checkpoint's REDO location")?,
        timeline: number(&fields, "Latest checkpoint's TimeLineID")?,
        min_recovery_end: number(&fields, "Minimum recovery ending location")?,
        min_recovery_timeline: number(&fields, "Min recovery ending loc's timeline")?,
        segments: Segments::new(number(&fields, segment)?).ok_or(segment)?,
        log_page_bytes: number(&fields, "WAL block size").and_then(known_page)?,
        checksums: number::<u32>(&fields, "Data page checksum version")? != 0,
        settings,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SAID: &str = "\
pg_control version number:            1300
Database system identifier:           7567890123456789012
Database cluster state:               in archive recovery
pg_control last modified:             Sun Nov 22 10:00:00 2026
Latest checkpoint location:           0/3000060
Latest checkpoint's REDO location:    0/3000028
Latest checkpoint's TimeLineID:       3
Minimum recovery ending location:     0/3000100
Min recovery ending loc's timeline:   3
wal_level setting:                    replica
wal_log_hints setting:                off
max_connections setting:              100
max_worker_processes setting:         8
max_wal_senders setting:              10
max_prepared_xacts setting:           0
max_locks_per_xact setting:           64
WAL block size:                       8192
Bytes per WAL segment:                16777216
Data page checksum version:           1
";

    #[test]
    fn what_lacks_or_is_odd_is_named() {
        let control = parse(SAID).unwrap();
        assert_eq!((control.state, control.timeline, control.checksums), (State::InArchiveRecovery, 3, true));
        assert_eq!((control.redo, control.min_recovery_end), (Lsn(0x300_0028), Lsn(0x300_0100)));
        assert!(control.settings.contains(&("max_prepared_transactions", "0".to_owned())));
        for line in SAID.lines().filter(|line| !line.starts_with("pg_control")) {
            let (key, value) = line.split_once(':').unwrap();
            assert_eq!(parse(&SAID.replace(line, "")).unwrap_err(), key);
            assert_eq!(parse(&SAID.replace(line, &line.replace(value.trim(), "§"))).unwrap_err(), key);
        }
    }
}
