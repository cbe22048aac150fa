//! What the pure half decides, looked at from outside.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod documents;
mod lint;
mod mutations;
mod plans;
mod rendered;
mod run;
mod transitions;
mod units;
