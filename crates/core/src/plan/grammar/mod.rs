//! The plan language as a table: every key, its type, whether it must be there, and what it means.
//!
//! Invariant: the parser, the JSON Schema and the reference are all made from `tables`, so that they cannot disagree.

mod databases;
mod protection;
mod schema;
mod tables;
mod validate;

pub use schema::json_schema;
pub use tables::PLAN;
pub(super) use validate::{closest, list, validate};

use super::text;

/// What a value may be.
#[derive(Debug, Clone, Copy)]
pub enum Type {
    Text(text::Kind),
    /// One of these words, each with its meaning.
    Word(&'static [(&'static str, &'static str)]),
    Bool,
    /// A whole number, both bounds included.
    Count {
        min: i64,
        max: i64,
    },
    /// A number, not negative.
    Number,
    List {
        of: &'static Type,
        may_be_empty: bool,
    },
    /// One of it, or a list.
    OneOrMany(&'static Type),
    /// `{ env = … }`, `{ file = … }` or `{ command = [ … ] }`.
    Secret,
    /// Text with templates, or a secret.
    Value,
    Table(&'static Table),
    /// A table whose keys are names that the plan gives; `what` they name.
    Named {
        what: &'static str,
        /// Whether keys are names of the plan's own (or, as for environment variables, somebody else's).
        names: bool,
        of: &'static Type,
    },
}

#[derive(Debug)]
pub struct Table {
    /// How messages call it: "a site", "the canary".
    pub what: &'static str,
    pub doc: &'static str,
    pub keys: &'static [Key],
    pub choices: &'static [Choice],
}

#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    pub is: Type,
    pub required: bool,
    /// As the plan would write it.
    pub default: Option<&'static str>,
    pub doc: &'static str,
}

/// Keys of which some number may be there.
#[derive(Debug)]
pub struct Choice {
    pub of: &'static [&'static str],
    pub may_be_none: bool,
}

impl Table {
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }
}
