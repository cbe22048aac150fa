//! Whether what is to be verified can be, and by whom.
//!
//! Invariant: a verification that nobody can ever carry out is named before anybody relies on it.

use super::super::model::*;
use super::{Checker, Held};

/// A server cuts longer names off.
const DATABASE_BYTES_MAX: usize = 63;

pub(super) fn check(checker: &mut Checker<'_>) {
    for held in checker.datasets() {
        let Some(verify) = &held.dataset.verify else { continue };
        questions(checker, held, verify);
        verifier(checker, held);
    }
}

/// Only databases answer, and only a server has several.
fn questions(checker: &mut Checker<'_>, held: Held<'_>, verify: &Verify) {
    let name = &held.dataset.name;
    let answers =
        matches!(held.dataset.source, Source::Sqlite { .. } | Source::Postgres { .. } | Source::Mariadb { .. });
    if !answers && !verify.queries.is_empty() {
        let message = format!("`{name}` is no database: nothing in it answers queries");
        checker.error("P0327", &held.path_to(&["verify", "queries"]), message, "take `queries` out");
    }
    let Some(database) = &verify.database else { return };
    let path = held.path_to(&["verify", "database"]);
    if !matches!(held.dataset.source, Source::Postgres { .. } | Source::Mariadb { .. }) {
        let message = format!("`{name}` is not a server's: it has no databases to choose from");
        checker.error("P0328", &path, message, "take `database` out");
    } else if database.is_empty() || database.len() > DATABASE_BYTES_MAX || database.contains(char::is_control) {
        let message = format!("no database of `{name}` can have this name");
        let help = format!("write its name, of at most {DATABASE_BYTES_MAX} bytes: database = \"shop\"");
        checker.error("P0328", &path, message, help);
    } else if verify.queries.is_empty() {
        let message = format!("nothing is asked in the database `{database}`");
        checker.warning("P0328", &path, message, "add queries = [\"select …\"], or take `database` out");
    }
}

/// The `protect` of a site that has a key carries it out.
fn verifier(checker: &mut Checker<'_>, held: Held<'_>) {
    let name = &held.dataset.name;
    if held.dataset.protect.is_empty() {
        let message = format!("`{name}` is to be verified, and no recovery point of it is ever taken");
        checker.error("P0329", &held.path_to(&["verify"]), message, "add protect = [{ to = \"…\", every = \"…\" }]");
    } else if checker.plan.verifiers(held.dataset).next().is_none() {
        let message = format!("no site can ever verify `{name}`: none holds a key file that opens it");
        let help = format!(
            "add under [key]: verify = {{ recipient = \"age1…\", held-at = \"…\", datasets = [\"{name}\"], identity = {{ file = \"…\" }} }}"
        );
        checker.warning("P0330", &held.path_to(&["verify"]), message, help);
    }
}
