//! The binary, run as its users run it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bad_days;
mod copies;
mod damage;
mod demo;
mod documents;
mod first_minutes;
mod joining;
mod killed;
mod look;
mod machine;
mod newcomer;
mod paper;
mod plan;
mod runs;
mod screens;
mod served;
mod status;
mod ways;
mod with_plan;
mod world;
mod wrong_input;
