//! Physical replication slots: what makes a server keep the log that we do not have yet.
//!
//! Invariant: a name that the server would refuse is refused before it is asked, and a slot of another kind is never touched.

use super::error::SessionError;
use super::lsn::Lsn;
use super::session::{Session, literal};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Who streams from it.
    pub(crate) active_pid: Option<u32>,
    /// From where on the log is kept; nothing is before it was first used or reserved.
    pub(crate) restart_lsn: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub(crate) wal_status: Option<String>,
    /// How many more bytes of log until it may be lost; `None` without a limit.
    pub(crate) safe_wal_size: Option<i64>,
    pub(crate) temporary: bool,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SlotError {
    #[error("`{0}` cannot name a slot: 1 to 63 of a to z, 0 to 9 and _")]
    Name(String),
    #[error("the slot `{0}` is a logical one: choose another name, or drop that one if nobody needs it")]
    Logical(String),
    #[error("the slot `{0}` has what cannot be understood in {1}")]
    Malformed(String, &'static str),
    #[error(transparent)]
    Session(#[from] SessionError),
}

impl SlotError {
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, SlotError::Session(error) if error.may_pass())
    }
}

fn check(name: &str) -> Result<(), SlotError> {
    let fits = (1..=63).contains(&name.len());
    if fits && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_')) {
        return Ok(());
    }
    Err(SlotError::Name(name.chars().take(80).collect()))
}

/// The physical slot of a name, if there is one.
pub(crate) async fn find(session: &mut Session, name: &str) -> Result<Option<Slot>, SlotError> {
    check(name)?;
    let sql = format!(
        "select slot_type, active_pid, restart_lsn, wal_status, safe_wal_size, temporary \
         from pg_catalog.pg_replication_slots where slot_name = {}",
        literal(name)
    );
    let rows = session.query(&sql).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    if row.get(0) != Some("physical") {
        return Err(SlotError::Logical(name.to_owned()));
    }
    let malformed = |column| SlotError::Malformed(name.to_owned(), column);
    Ok(Some(Slot {
        active_pid: parsed(row.get(1)).ok_or_else(|| malformed("active_pid"))?,
        restart_lsn: parsed(row.get(2)).ok_or_else(|| malformed("restart_lsn"))?,
        wal_status: row.get(3).map(str::to_owned),
        safe_wal_size: parsed(row.get(4)).ok_or_else(|| malformed("safe_wal_size"))?,
        temporary: row.get(5) == Some("t"),
    }))
}

/// `Some(None)` for NULL, `None` for what is none.
fn parsed<T: std::str::FromStr>(text: Option<&str>) -> Option<Option<T>> {
    text.map(|text| text.parse().ok()).map_or(Some(None), |value| value.map(Some))
}

/// Makes the slot unless it is there. With `reserve` the log is kept from now on, and not only from its first use; a slot that is there and
/// keeps none yet stays as it is.
pub(crate) async fn ensure(session: &mut Session, name: &str, reserve: bool) -> Result<Slot, SlotError> {
    const DUPLICATE_OBJECT: &str = "42710";
    if let Some(slot) = find(session, name).await? {
        return Ok(slot);
    }
    let sql = format!("select pg_catalog.pg_create_physical_replication_slot({}, {reserve})", literal(name));
    match session.query(&sql).await {
        Err(error) if error.sqlstate() != Some(DUPLICATE_OBJECT) => return Err(error.into()),
        // Made, by us or by who was quicker.
        _ => {}
    }
    find(session, name).await?.ok_or_else(|| SlotError::Malformed(name.to_owned(), "pg_replication_slots"))
}

/// Lets the slot go, if it is there. One from which somebody streams is refused by the server, and that may pass.
pub(crate) async fn drop(session: &mut Session, name: &str) -> Result<(), SlotError> {
    const UNDEFINED_OBJECT: &str = "42704";
    if find(session, name).await?.is_none() {
        return Ok(());
    }
    match session.query(&format!("select pg_catalog.pg_drop_replication_slot({})", literal(name))).await {
        Err(error) if error.sqlstate() != Some(UNDEFINED_OBJECT) => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_held_to_the_servers_rule() {
        for good in ["a", "lifeboat_paris_1", &"x".repeat(63)] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["", "A", "a-b", "a b", "é", "a'", &"x".repeat(64)] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
