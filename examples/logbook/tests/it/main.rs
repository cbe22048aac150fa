//! The logbook with real processes: services, load clients and a name server (unbound) on free ports.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, unreachable_pub)]

mod load;
#[path = "../../../../crates/adapters/tests/it/ports.rs"]
mod ports;
mod process;
mod serve;
