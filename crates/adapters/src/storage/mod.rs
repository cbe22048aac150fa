//! Storages that need a socket or a child process, by the scheme of their address.
//!
//! Invariant: what is said here to an address that nobody has is said before anything is written.

pub mod served;

/// Lets every address of these schemes be opened; called once, when the process starts.
pub fn register() {
    served::register();
}
