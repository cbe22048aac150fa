//! What lifeboat says to a PostgreSQL server, and what it knows of one's files: the protocol's client, and the way to its programs.
//!
//! ```text
//! door (where, who, how)  ──▶  session (queries)  ──▶  replication (a stream of WAL)
//!                              wire · auth · tls
//! programs (which version's)  ──▶  output (of one at work)
//!                             ──▶  control (what a data directory is)  ──▶  server (a private one over it)  ◀──  sender (its primary, as it thinks)
//! ```
//!
//! Invariant: what a server says is hostile until it is parsed. Every message has a bound that is checked before memory is taken for it, every
//! wait has an end, and no secret is in an error's text.

mod auth;
mod child;
pub(crate) mod control;
pub(crate) mod door;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod doors;
pub(crate) mod error;
pub(crate) mod lsn;
pub(crate) mod output;
pub(crate) mod programs;
pub(crate) mod replication;
pub(crate) mod sender;
pub(crate) mod server;
pub(crate) mod session;
pub(crate) mod slot;
mod tls;
mod wire;

#[cfg(test)]
pub(crate) mod tests;
