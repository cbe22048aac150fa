//! Which source and which restorer a data set of the plan has.
//!
//! Invariant: a kind that this version does not know is refused by name, before anything is read or written.

use std::path::Path;
use std::sync::Arc;

use lifeboat_core::plan;
use lifeboat_engine::port::{PortError, Restorer, Source};

use super::{FilesSource, PostgresDump, PostgresSource, Server, SqliteSource};

/// The source of a data set that lies at `path` here; `state` is a directory for its caches.
pub fn source_for(source: &plan::Source, path: &Path, state: &Path) -> Result<Arc<dyn Source>, PortError> {
    match source {
        plan::Source::Files { exclude, .. } => Ok(Arc::new(files(path, exclude, Some(state))?)),
        plan::Source::Sqlite { .. } => Ok(Arc::new(SqliteSource::new(path, state))),
        plan::Source::Postgres { service, .. } => Ok(Arc::new(PostgresSource::new(path, service.clone(), state))),
        plan::Source::PostgresDump { service, databases, lock_wait, .. } => {
            let server = match service {
                Some(service) => Server::Service(service.clone()),
                None => Server::Directory(path.to_owned()),
            };
            Ok(Arc::new(PostgresDump { server, databases: databases.clone(), lock_wait: lock_wait.0 }))
        }
        other => Err(unknown(other)),
    }
}

/// What brings data of this kind back; it is told where to with each request.
pub fn restorer_for(source: &plan::Source) -> Result<Arc<dyn Restorer>, PortError> {
    match source {
        plan::Source::Files { exclude, .. } => Ok(Arc::new(files(Path::new(""), exclude, None)?)),
        // Its files are what there is to bring back.
        plan::Source::PostgresDump { .. } => Ok(Arc::new(files(Path::new(""), &[], None)?)),
        plan::Source::Sqlite { .. } => Ok(Arc::new(SqliteSource::new("", ""))),
        plan::Source::Postgres { service, .. } => Ok(Arc::new(PostgresSource::new("", service.clone(), ""))),
        other => Err(unknown(other)),
    }
}

fn files(path: &Path, exclude: &[String], state: Option<&Path>) -> Result<FilesSource, PortError> {
    FilesSource::new(path, exclude, state.map(Path::to_owned)).map_err(|error| {
        PortError::new("a pattern in `exclude` cannot be read; `lifeboat check` says where").because(error)
    })
}

fn unknown(source: &plan::Source) -> PortError {
    let kind = match source {
        plan::Source::Mariadb { .. } => "mariadb",
        plan::Source::Command { .. } => "command",
        _ => "a source of this kind",
    };
    PortError::new(format!("this version protects files, sqlite, postgres and its dumps; {kind} comes later"))
}
