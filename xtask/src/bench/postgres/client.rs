//! The smallest client of a PostgreSQL server: one question at a time, each answered in time or given up with its connection.
//!
//! Written for this, because what is measured are outages: a client that waits for a server that is gone would be measured instead.
//! Invariant: what was answered was answered by the server, whole, and no answer is waited for longer than was said.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::net::TcpStream;
use std::time::Duration;

const PROTOCOL: u32 = 3 << 16;
/// Larger than any answer here.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

pub(super) struct Connection {
    stream: TcpStream,
}

impl Connection {
    /// As the superuser, to whom servers here open without a password.
    pub(super) fn open(address: SocketAddr, within: Duration) -> Result<Connection, String> {
        let failed = |error: std::io::Error| format!("{address}: {error}");
        let stream = TcpStream::connect_timeout(&address, within).map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        stream.set_read_timeout(Some(within)).map_err(failed)?;
        stream.set_write_timeout(Some(within)).map_err(failed)?;
        let mut connection = Connection { stream };
        let settings = b"user\0postgres\0database\0postgres\0application_name\0bench\0\0";
        let length = (8 + settings.len()) as u32;
        let opening = [&length.to_be_bytes()[..], &PROTOCOL.to_be_bytes(), settings].concat();
        connection.stream.write_all(&opening).map_err(failed)?;
        connection.answer()?;
        Ok(connection)
    }

    /// The values of the answer's last row.
    pub(super) fn ask(&mut self, sql: &str) -> Result<Vec<String>, String> {
        let length = (4 + sql.len() + 1) as u32;
        let question = [b"Q", &length.to_be_bytes()[..], sql.as_bytes(), b"\0"].concat();
        self.stream.write_all(&question).map_err(|error| error.to_string())?;
        self.answer()
    }

    /// Reads until the server is ready for the next question.
    fn answer(&mut self) -> Result<Vec<String>, String> {
        let (mut row, mut complaint) = (Vec::new(), None);
        loop {
            let read = self.message();
            let (kind, body) = read.map_err(|error| complaint.clone().unwrap_or_else(|| error.to_string()))?;
            match kind {
                b'Z' => return complaint.map_or(Ok(row), Err),
                b'D' => row = values(&body).ok_or("a row that ends too early")?,
                b'E' => complaint = Some(message_of(&body)),
                b'R' if body != [0; 4] => return Err("the server asks for a password".to_owned()),
                _ => {}
            }
        }
    }

    fn message(&mut self) -> std::io::Result<(u8, Vec<u8>)> {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head)?;
        let [kind, length @ ..] = head;
        let length = (u32::from_be_bytes(length) as usize).saturating_sub(4);
        if length > MESSAGE_BYTES_MAX {
            return Err(std::io::Error::other("a message that is too long"));
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok((kind, body))
    }
}

/// What stands in a row; nothing is an empty text.
fn values(body: &[u8]) -> Option<Vec<String>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut values = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
        let (value, after) = after.split_at_checked(length)?;
        values.push(String::from_utf8_lossy(value).into_owned());
        rest = after;
    }
    Some(values)
}

/// An error's message, of all its fields.
fn message_of(body: &[u8]) -> String {
    let mut fields = body.split(|byte| *byte == 0);
    let message = fields.find_map(|field| field.strip_prefix(b"M"));
    String::from_utf8_lossy(message.unwrap_or(b"an error without words")).into_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_errors_are_read_and_no_half_of_them() {
        let row = [&2_u16.to_be_bytes()[..], &1_u32.to_be_bytes(), b"7", &(-1_i32).to_be_bytes()].concat();
        assert_eq!(values(&row).unwrap(), ["7", ""]);
        assert_eq!(values(&row[..6]), None);
        assert_eq!(message_of(b"SFATAL\0C57P01\0Mgoing down\0\0"), "going down");
    }
}
