//! Where a client finds the service: by its name, asked of the authority for each new connection, or behind one address.
//!
//! Invariant: an address comes from an answer to the very question that was asked, and is not kept.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use super::super::client::Connection;

/// A server that says nothing for so long is given up, and another connection is tried: waiting longer would lengthen outages.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_millis(250);
const ANSWER_BYTES_MAX: usize = 512;
/// Type A, class IN.
const ADDRESS: [u8; 4] = [0, 1, 0, 1];

#[derive(Debug, Clone)]
pub(super) enum Door {
    Named { name: &'static str, authority: SocketAddr, port: u16 },
    At(SocketAddr),
}

impl Door {
    pub(super) fn open(&self) -> Result<Connection, String> {
        let address = match self {
            Door::Named { name, authority, port } => (resolve(name, *authority)?, *port).into(),
            Door::At(address) => *address,
        };
        Connection::open(address, ANSWER_WITHIN)
    }
}

/// The first address that the authority answers with.
pub(super) fn resolve(name: &str, authority: SocketAddr) -> Result<Ipv4Addr, String> {
    let failed = |error: std::io::Error| format!("{authority}: {error}");
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(failed)?;
    socket.set_read_timeout(Some(ANSWER_WITHIN)).map_err(failed)?;
    socket.connect(authority).map_err(failed)?;
    let question = question(name);
    socket.send(&question).map_err(failed)?;
    let mut answer = [0; ANSWER_BYTES_MAX];
    let length = socket.recv(&mut answer).map_err(failed)?;
    let address = answer.get(..length).and_then(|answer| address_in(answer, &question));
    address.ok_or_else(|| format!("{authority} knows no address of {name}"))
}

/// One question, with nothing else asked. Its socket is its own, so any number will do.
fn question(name: &str) -> Vec<u8> {
    let mut bytes = vec![0x4c, 0x42, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend(ADDRESS);
    bytes
}

fn address_in(answer: &[u8], question: &[u8]) -> Option<Ipv4Addr> {
    let (head, records) = answer.split_at_checked(question.len())?;
    // The same number and the same question; answered, without an error.
    let same = head.get(..2)? == question.get(..2)? && head.get(12..)? == question.get(12..)?;
    if !same || head.get(3)? & 0x0f != 0 {
        return None;
    }
    let mut rest = records;
    while let Some(after) = behind_name(rest) {
        let (fixed, data) = after.split_first_chunk::<10>()?;
        let [.., high, low] = *fixed;
        let (data, next) = data.split_at_checked(u16::from_be_bytes([high, low]).into())?;
        match <[u8; 4]>::try_from(data) {
            Ok(address) if fixed.starts_with(&ADDRESS) => return Some(address.into()),
            _ => rest = next,
        }
    }
    None
}

/// What follows a name: labels up to an empty one, or up to a pointer.
fn behind_name(mut bytes: &[u8]) -> Option<&[u8]> {
    loop {
        let (length, after) = bytes.split_first()?;
        match *length {
            0 => return Some(after),
            0xc0.. => return after.get(1..),
            length => bytes = after.get(usize::from(length)..)?,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_found_behind_other_records_and_only_in_an_answer_to_the_question() {
        let asked = question("shop.bench.");
        let mut answer = asked.clone();
        answer[2] = 0x84;
        answer[7] = 2;
        // A text record first, its name in full; then the address, its name a pointer.
        answer.extend(b"\x04shop\x05bench\0\0\x10\0\x01\0\0\0\x01\0\x02\x01x");
        answer.extend(b"\xc0\x0c\0\x01\0\x01\0\0\0\x01\0\x04\x7f\x3d\x01\x01");
        assert_eq!(address_in(&answer, &asked), Some(Ipv4Addr::new(127, 61, 1, 1)));
        assert_eq!(address_in(&answer, &question("shop.other.")), None);
        assert_eq!(address_in(&answer[..answer.len() - 1], &asked), None);
        assert_eq!(address_in(&asked, &asked), None);
        answer[3] = 3;
        assert_eq!(address_in(&answer, &asked), None);
    }
}
