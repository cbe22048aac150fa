//! Storages that need a socket or a child process, by the scheme of their address.
//!
//! Invariant: what is said here to an address that nobody has is said before anything is written.

pub mod bucket;
pub mod served;
pub mod thaw;

pub use self::bucket::{BucketStorage, Environment, Patience, hurry, open_with, policy};

/// Lets every address of these schemes be opened; called once, when the process starts.
pub fn register() {
    bucket::register();
    served::register();
}
