//! Ports for servers that must be told one before they start.
//!
//! Invariant: below what the kernel hands out by itself, so that between the choice and the start nobody is given it by chance; and no port
//! twice in a process.

use std::net::{TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};

const FIRST: u32 = 10_000;
const COUNT: u32 = 22_000;

/// A port of 127.0.0.1 on which nothing listens.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Test processes that run side by side begin far from each other.
    let begin = std::process::id().wrapping_mul(7919);
    let mut tried = (0..COUNT).map(|_| {
        let number = begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        u16::try_from(FIRST + number).unwrap()
    });
    let free =
        |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok() && UdpSocket::bind(("127.0.0.1", *port)).is_ok();
    tried.find(free).unwrap()
}
