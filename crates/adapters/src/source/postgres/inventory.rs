//! What databases need from the machine that they come back on: how text sorts there, and which extensions are installed.
//!
//! Invariant: only what the server itself says is noted, and a difference is told with what to do about it.

use serde::{Deserialize, Serialize};

use crate::postgres::error::SessionError;
use crate::postgres::session::{Session, literal};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Database {
    pub(super) name: String,
    pub(super) collation: String,
    /// Of the library that sorts; another version may sort otherwise, and then indexes are wrong.
    pub(super) collation_version: Option<String>,
    pub(super) extensions: Vec<String>,
}

impl Database {
    /// What is other than it was, in sentences.
    pub(super) fn differences(&self, was: &Database) -> Option<String> {
        let text = |version: &Option<String>| version.clone().unwrap_or_else(|| "unknown".to_owned());
        (self.collation_version != was.collation_version).then(|| {
            format!(
                "database {}: the collation {} is of version {} here and was {}: rebuild indexes on text (`reindex database`)",
                was.name,
                was.collation,
                text(&self.collation_version),
                text(&was.collation_version)
            )
        })
    }
}

/// The databases that can be opened.
pub(super) async fn databases(session: &mut Session) -> Result<Vec<String>, SessionError> {
    let rows = session.query("select datname from pg_catalog.pg_database where datallowconn order by datname").await?;
    Ok(rows.iter().filter_map(|row| row.get(0).map(str::to_owned)).collect())
}

/// What the database that a session is in needs.
pub(super) async fn of(session: &mut Session, name: &str) -> Result<Database, SessionError> {
    // The library's version, of which some server versions keep no note.
    let row = session
        .query_one(
            "select d.datcollate, (select pg_catalog.pg_collation_actual_version(c.oid) from pg_catalog.pg_collation c \
             where c.collcollate = d.datcollate and c.collprovider = 'c' limit 1) \
             from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()",
        )
        .await?;
    let extensions = session.query("select extname from pg_catalog.pg_extension order by extname").await?;
    Ok(Database {
        name: name.to_owned(),
        collation: row.get(0).unwrap_or_default().to_owned(),
        collation_version: row.get(1).map(str::to_owned),
        extensions: extensions.iter().filter_map(|row| row.get(0).map(str::to_owned)).collect(),
    })
}

/// Which of these extensions this server's host does not have.
pub(super) async fn lacking(session: &mut Session, extensions: &[String]) -> Result<Vec<String>, SessionError> {
    let mut lacking = Vec::new();
    for extension in extensions {
        let sql = format!("select 1 from pg_catalog.pg_available_extensions where name = {}", literal(extension));
        if session.query(&sql).await?.is_empty() {
            lacking.push(extension.clone());
        }
    }
    Ok(lacking)
}
