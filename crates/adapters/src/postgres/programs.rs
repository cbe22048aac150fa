//! Where the programs of a PostgreSQL version are.
//!
//! A data directory is read and written by programs of its own major version only. Invariant: what is found here has said that it is of that
//! version.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use super::child;

/// The directory with the programs of one major version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Programs {
    major: u32,
    directory: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramsError {
    #[error("{path} is no data directory of PostgreSQL: its PG_VERSION cannot be read")]
    NoVersion {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} says version `{said}`: PostgreSQL 10 is the oldest that lifeboat knows")]
    Version { path: PathBuf, said: String },
    #[error(
        "{program} of PostgreSQL {major} is not installed (looked in {looked}): install the package {package}, or put its directory into PATH"
    )]
    Absent { program: String, major: u32, looked: String, package: String },
}

/// The first major version of one number.
const MAJOR_MIN: u32 = 10;
const MAJOR_MAX: u32 = 99;
/// What Debian's package of clients holds.
const OF_CLIENTS: &[&str] = &[
    "pg_amcheck",
    "pg_basebackup",
    "pg_combinebackup",
    "pg_dump",
    "pg_dumpall",
    "pg_isready",
    "pg_receivewal",
    "pg_restore",
    "pg_verifybackup",
    "psql",
];

impl Programs {
    /// Of the version that a data directory was made by; `needed` must be among them.
    pub(crate) async fn of_data_directory(path: &Path, needed: &[&str]) -> Result<Programs, ProgramsError> {
        Programs::of_major(data_version(path)?, needed).await
    }

    /// Of the version that a server says it has (150018).
    pub(crate) async fn of_server(version: u32, needed: &[&str]) -> Result<Programs, ProgramsError> {
        Programs::of_major(version / 10_000, needed).await
    }

    pub(crate) async fn of_major(major: u32, needed: &[&str]) -> Result<Programs, ProgramsError> {
        let places = places(major).await;
        Programs::in_places(major, needed, places).await
    }

    async fn in_places(major: u32, needed: &[&str], places: Vec<PathBuf>) -> Result<Programs, ProgramsError> {
        let mut lacking = needed.first().copied().unwrap_or("postgres");
        for directory in &places {
            match lacks(directory, major, needed).await {
                None => return Ok(Programs { major, directory: directory.clone() }),
                // Of several that lack something, the one that lacks least is the one to complete.
                Some(program) if Some(&program) != needed.first() => lacking = program,
                Some(_) => {}
            }
        }
        let shown: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
        let clients = needed.iter().all(|program| OF_CLIENTS.contains(program));
        Err(ProgramsError::Absent {
            program: lacking.to_owned(),
            major,
            looked: shown.join(", "),
            package: format!("{}-{major}", if clients { "postgresql-client" } else { "postgresql" }),
        })
    }

    #[cfg(test)]
    pub(crate) fn major(&self) -> u32 {
        self.major
    }

    #[cfg(test)]
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The path of a program.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// The directory of the newest version whose server is installed.
pub(crate) fn newest_installed() -> Option<PathBuf> {
    let of_debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut majors: Vec<u32> = of_debian.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    majors.sort_unstable();
    let of_debian = majors.into_iter().rev().map(|major| PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has_server = |directory: &PathBuf| ["initdb", "postgres"].iter().all(|name| directory.join(name).is_file());
    of_debian.chain(std::env::split_paths(&path)).find(has_server)
}

/// The major version of a data directory.
pub(crate) fn data_version(path: &Path) -> Result<u32, ProgramsError> {
    let unreadable = |source| ProgramsError::NoVersion { path: path.to_owned(), source };
    let text = super::door::read_small(&path.join("PG_VERSION")).map_err(unreadable)?;
    let said = text.trim();
    let major = said.parse().ok().filter(|major| (MAJOR_MIN..=MAJOR_MAX).contains(major));
    let shown = || said.chars().take(20).collect();
    major.ok_or_else(|| ProgramsError::Version { path: path.to_owned(), said: shown() })
}

/// Debian's own place, the one that `pg_config` names, and what PATH names.
async fn places(major: u32) -> Vec<PathBuf> {
    let mut places = vec![PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"))];
    if let Ok(answer) = child::answer(Path::new("pg_config"), &[OsStr::new("--bindir")]).await {
        places.push(PathBuf::from(answer.stdout.trim()));
    }
    places.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let mut seen = std::collections::HashSet::new();
    places.retain(|place| place.is_absolute() && seen.insert(place.clone()));
    places
}

/// The first of `needed` that is not there in this version.
async fn lacks<'a>(directory: &Path, major: u32, needed: &[&'a str]) -> Option<&'a str> {
    for program in needed {
        let path = directory.join(program);
        if !path.is_file() {
            return Some(program);
        }
        let said = child::answer(&path, &[OsStr::new("--version")]).await;
        let right = said.is_ok_and(|answer| answer.status.success() && version_said(&answer.stdout) == Some(major));
        if !right {
            return Some(program);
        }
    }
    None
}

/// `postgres (PostgreSQL) 15.18 (Debian …)` is of 15.
fn version_said(text: &str) -> Option<u32> {
    let (_, rest) = text.split_once("(PostgreSQL) ")?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_data_directorys_version_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let version = |text: &str| {
            std::fs::write(folder.path().join("PG_VERSION"), text).unwrap();
            data_version(folder.path())
        };
        assert_eq!(version("15\n").unwrap(), 15);
        for odd in ["9.6\n", "", "x", "-1", "150018", "5"] {
            assert!(matches!(version(odd), Err(ProgramsError::Version { .. })), "{odd}");
        }
        let error = data_version(&folder.path().join("nothing")).unwrap_err();
        assert!(error.to_string().contains("no data directory"), "{error}");
        assert_eq!(version_said("pg_dump (PostgreSQL) 17beta2\n"), Some(17));
        assert_eq!(version_said("pg_dump 17"), None);
    }

    #[tokio::test]
    async fn programs_are_believed_by_what_they_say_and_what_lacks_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str, version: &str, programs: &[&str]| {
            let directory = folder.path().join(name);
            std::fs::create_dir(&directory).unwrap();
            for program in programs {
                let path = directory.join(program);
                std::fs::write(&path, format!("#!/bin/sh\necho '{program} (PostgreSQL) {version}.1'\n")).unwrap();
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            }
            directory
        };
        let old = place("old", "14", &["postgres", "psql"]);
        let part = place("part", "15", &["postgres"]);
        let whole = place("whole", "15", &["postgres", "psql"]);
        let found =
            Programs::in_places(15, &["postgres", "psql"], vec![old.clone(), part.clone(), whole.clone()]).await;
        assert_eq!(found.unwrap().program("psql"), whole.join("psql"));
        let error = Programs::in_places(15, &["postgres", "psql"], vec![old.clone(), part]).await.unwrap_err();
        assert!(error.to_string().contains("psql of PostgreSQL 15 is not installed"), "{error}");
        assert!(error.to_string().contains("install the package postgresql-15"), "{error}");
        let error = Programs::in_places(16, &["psql"], vec![old]).await.unwrap_err();
        assert!(error.to_string().contains("install the package postgresql-client-16"), "{error}");
    }
}
