//! Protects, watches, recovers and proves, through ports.
//!
//! Invariant: nothing here opens a socket, starts a process or reads a clock by itself; all of it goes through `port`
//! (and the vault's storage), so that the whole engine also runs against simulated parts.

pub mod arbitrate;
pub mod canary;
pub mod evidence;
pub mod execute;
pub mod journal;
pub mod perform;
pub mod port;
pub mod protect;
pub mod recovery;
pub mod traffic;
pub mod vaults;
pub mod verify;
