//! A storage served to who must not be trusted with the directory itself: create-only, checked, with receipts.
//!
//! ```text
//! host: Remote (a Storage) ── frames over any pipe or socket ── Server ── rules ── FsStorage
//! ```
//! Both ends are pure: who has pipes, child processes and sockets hands over a `Connection`. Invariants: nothing that was stored is
//! changed or taken away for who may only create; an object is checked (hash or signature, place, size) before it is stored; the
//! client believes nothing but the form of what it is told: the vault above checks every object it reads.

mod access;
mod client;
mod server;
mod watch;
mod wire;

use std::io::{Read, Write};

pub use self::access::{Rights, Who, host_creates, host_never_creates, host_reads};
pub use self::client::{Dial, Remote};
pub use self::server::{ServeOptions, Served, Server};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::{server::fuzz_session, wire::fuzz as fuzz_frames, wire::fuzz_requests};

/// Two directions to somebody, and a way to end them from outside.
pub struct Connection {
    pub reader: Box<dyn Read + Send>,
    pub writer: Box<dyn Write + Send>,
    /// Makes reads and writes that hang come back with an error.
    pub cut: Box<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection(…)")
    }
}
