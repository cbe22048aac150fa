//! The engine, looked at from outside: real journals on disk, a real arbiter's storage, performers in memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod arbitrate;
mod execute;
mod journal;
mod kill;
mod locks;
mod overtaken;
mod planned;
mod world;
