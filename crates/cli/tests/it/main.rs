//! The binary, run as its users run it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod killed;
mod plan;
mod runs;
mod status;
mod ways;
mod world;
