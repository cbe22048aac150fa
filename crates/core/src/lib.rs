//! What lifeboat decides, without touching anything.
//!
//! Invariant: this crate is pure. No files, sockets, clock or ambient randomness: text, times and seeds are passed
//! in, values come out. Everything here can therefore be tested without a machine to break.

pub mod desired;
pub mod diagnostic;
pub mod lease;
pub mod plan;
pub mod run;
pub mod runbook;
pub mod units;
