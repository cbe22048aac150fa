//! The only home of sockets, child processes and SDKs: each adapter implements a port of the engine.
//!
//! Invariant: what comes from a socket or a child process is bounded in size and time before it is looked at.

pub mod clock;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod mount;
pub mod portable;
mod postgres;
pub mod probe;
pub mod site;
pub mod source;
pub mod storage;
pub mod traffic;
pub mod volume;
