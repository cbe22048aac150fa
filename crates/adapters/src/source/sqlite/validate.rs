//! A database's recovery point, proven: brought back with its log, checked by SQLite itself, and asked the plan's questions.
//!
//! Invariant: a check is passed only where SQLite said so; what could not be asked is reported as not done.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lifeboat_core::runbook::Target;
use lifeboat_engine::port::{Cancel, RestoreRequest};
use lifeboat_engine::verify::{Check, Outcome, Verification, VerifyRequest, said_by_vault};
use lifeboat_vault::{PointInfo, Unlocked};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::copy::{RestoreError, open_to_read};
use super::restore::restore;
use crate::source::way::{self, ChainError};
use crate::source::{in_full, said_by_tree};

/// Whether a check is still wanted.
const LOOK_EVERY: Duration = Duration::from_millis(20);

pub(super) fn verify(vault: &Unlocked, request: &VerifyRequest, cancel: &Cancel) -> Result<Verification, RestoreError> {
    let began = Instant::now();
    let to = request.scratch.join("data");
    let (dataset, target) = (request.dataset.clone(), request.target.clone());
    let asked = RestoreRequest { dataset, to: to.clone(), target, in_place: false };
    let mut checks = Vec::new();
    let mut note = |since: Instant, check: &str, outcome: Outcome, what: String| {
        checks.push(Check { check: check.to_owned(), outcome, what, seconds: since.elapsed().as_secs_f64() });
    };
    let restored = match restore(vault, &asked, cancel) {
        Ok(restored) => restored,
        Err(error) => {
            let Some((check, outcome)) = said(&error) else { return Err(error) };
            let Some(point) = meant(vault, &asked)? else { return Err(error) };
            note(began, check, outcome, in_full(&error));
            let seconds = began.elapsed().as_secs_f64();
            return Ok(Verification { point, as_of: None, position: None, checks, notes: Vec::new(), seconds });
        }
    };
    note(began, "integrity", Outcome::Passed, restored.verified.clone().unwrap_or_default());
    for sql in &request.queries {
        let since = Instant::now();
        let (outcome, what) = query(&to, sql);
        note(since, "query", outcome, format!("{sql}: {what}"));
    }
    Ok(Verification {
        point: restored.point,
        as_of: Some(restored.as_of),
        position: restored.position,
        checks,
        notes: restored.notes,
        seconds: began.elapsed().as_secs_f64(),
    })
}

/// A database where its service left it: opened as the service would, which takes up its log, and checked by SQLite itself.
pub(super) fn look_through(path: &Path, cancel: &Cancel) -> Result<Vec<Check>, rusqlite::Error> {
    let began = Instant::now();
    let look = || -> Result<Vec<String>, rusqlite::Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let database = Connection::open_with_flags(path, flags)?;
        let (interrupt, over) = (database.get_interrupt_handle(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    if cancel.is_cancelled() {
                        interrupt.interrupt();
                    }
                    std::thread::sleep(LOOK_EVERY);
                }
            });
            let findings = database
                .prepare("pragma integrity_check(5)")
                .and_then(|mut statement| statement.query_map([], |row| row.get(0)).and_then(Iterator::collect));
            over.store(true, Ordering::Relaxed);
            findings
        })
    };
    let (outcome, what) = match look() {
        Ok(findings) if findings == ["ok"] => (Outcome::Passed, "SQLite's integrity check found nothing".to_owned()),
        Ok(findings) => (Outcome::Damaged, findings.join("; ")),
        Err(error) => match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => (Outcome::Damaged, error.to_string()),
            _ => return Err(error),
        },
    };
    let seconds = began.elapsed().as_secs_f64();
    Ok(vec![Check { check: "integrity".to_owned(), outcome, what, seconds }])
}

/// The point that a restore which failed had begun with.
fn meant(vault: &Unlocked, asked: &RestoreRequest) -> Result<Option<PointInfo>, RestoreError> {
    let points = vault.points(Some(&asked.dataset)).map_err(ChainError::from)?;
    let point = match &asked.target {
        Target::Point(id) => points.points.into_iter().find(|point| point.id == *id),
        target => points.newest(&asked.dataset, way::until(&asked.dataset, target)?).cloned(),
    };
    Ok(point)
}

/// One row with one value, which is not zero.
fn query(path: &Path, sql: &str) -> (Outcome, String) {
    let asked = || -> Result<Result<(), String>, RestoreError> {
        let database = open_to_read(path)?;
        let mut statement = database.prepare(sql).map_err(RestoreError::Check)?;
        let columns = statement.column_count();
        let mut rows = statement.query([]).map_err(RestoreError::Check)?;
        let answer = match rows.next().map_err(RestoreError::Check)? {
            None => return Ok(Err("answered no row".to_owned())),
            Some(_) if columns != 1 => return Ok(Err(format!("answered a row of {columns} values, and not of one"))),
            Some(row) => match row.get_ref(0).map_err(RestoreError::Check)? {
                ValueRef::Integer(number) if number != 0 => Ok(()),
                ValueRef::Integer(number) => Err(format!("answered {number}, and not true")),
                other => Err(format!("answered {}, and not true", other.data_type())),
            },
        };
        match rows.next().map_err(RestoreError::Check)? {
            Some(_) => Ok(Err("answered more than one row".to_owned())),
            None => Ok(answer),
        }
    };
    match asked() {
        Ok(Ok(())) => (Outcome::Passed, "true".to_owned()),
        Ok(Err(why)) => (Outcome::Failed, why),
        Err(error) => (Outcome::Failed, in_full(&error)),
    }
}

/// What an error proves; nothing where it is this host or the storage that failed.
fn said(error: &RestoreError) -> Option<(&'static str, Outcome)> {
    match error {
        RestoreError::Chain(ChainError::Damaged { .. } | ChainError::Hole { .. }) => Some(("log", Outcome::Failed)),
        RestoreError::Vault { source, .. } => Some("files").zip(said_by_vault(source)),
        RestoreError::Piece { source, .. } => said_by_vault(source).map(|_| ("log", Outcome::Failed)),
        RestoreError::Content { .. } | RestoreError::Apply { .. } => Some(("log", Outcome::Failed)),
        RestoreError::Tree { source, .. } => Some("files").zip(said_by_tree(source)),
        RestoreError::NotADatabase { .. } => Some(("files", Outcome::Damaged)),
        RestoreError::Unsound { .. } => Some(("integrity", Outcome::Damaged)),
        _ => None,
    }
}
