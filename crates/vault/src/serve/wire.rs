//! What is said over a connection: frames of a small CBOR header and a raw body.
//!
//! ```text
//! u32 header length | u32 body length | header | body          (little endian)
//! ```
//! Invariant: lengths are held against their limits before anything is read, and memory is taken as bytes arrive, not as announced.

use std::io::{self, Read, Write};

use minicbor::{Decode, Encode};

use crate::sign::PublicKey;
use crate::storage::OBJECT_BYTES_MAX;

pub(super) const PROTOCOL: &str = "lifeboat serve";
pub(super) const VERSION: u32 = 1;
/// Under which a client signs the server's nonce and its own.
pub(super) const HELLO_KIND: &str = "vault.serve.hello";
pub(super) const HEADER_BYTES_MAX: u32 = 16 << 10;
/// So many objects stand in one frame of a listing.
pub(super) const LISTED_PER_FRAME: usize = 4096;

/// The server's first word.
#[derive(Debug, Encode, Decode)]
pub(super) struct Greeting {
    #[n(0)]
    pub(super) protocol: String,
    #[n(1)]
    pub(super) version: u32,
    #[cbor(n(2), with = "minicbor::bytes")]
    pub(super) nonce: [u8; 32],
}

#[derive(Debug, Encode, Decode)]
pub(super) struct Hello {
    #[n(0)]
    pub(super) version: u32,
    #[cbor(n(1), with = "minicbor::bytes")]
    pub(super) nonce: [u8; 32],
    /// Who asks; absent where this end has no key.
    #[n(2)]
    pub(super) key: Option<PublicKey>,
    #[cbor(n(3), with = "minicbor::bytes")]
    pub(super) signature: Option<Vec<u8>>,
}

pub(super) fn hello_payload(server: &[u8; 32], client: &[u8; 32]) -> Vec<u8> {
    [server.as_slice(), client.as_slice()].concat()
}

#[derive(Debug, Encode, Decode)]
pub(super) struct Welcome {
    /// Why not; absent where this end is welcome.
    #[n(0)]
    pub(super) refused: Option<String>,
    /// As whom.
    #[n(1)]
    pub(super) who: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub(super) enum Verb {
    #[n(0)]
    PutIfAbsent,
    #[n(1)]
    Put,
    #[n(2)]
    Get,
    #[n(3)]
    GetRange,
    #[n(4)]
    List,
    #[n(5)]
    Delete,
}

#[derive(Debug, Clone, Encode, Decode)]
pub(super) struct Request {
    #[n(0)]
    pub(super) id: u64,
    #[n(1)]
    pub(super) verb: Verb,
    #[n(2)]
    pub(super) key: String,
    #[n(3)]
    pub(super) offset: u64,
    #[n(4)]
    pub(super) length: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub(super) enum Status {
    #[n(0)]
    Done,
    /// Something lies there already.
    #[n(1)]
    Exists,
    /// Exactly these bytes lie there already.
    #[n(2)]
    Same,
    /// Done so far: more frames of this answer follow.
    #[n(3)]
    More,
    #[n(4)]
    NotFound,
    #[n(5)]
    NoSpace,
    /// A rule of the server says no; the text says which.
    #[n(6)]
    Refused,
    #[n(7)]
    TooLarge,
    /// The storage behind the server is not there.
    #[n(8)]
    Gone,
    #[n(9)]
    Failed,
}

#[derive(Debug, Clone, Encode, Decode)]
pub(super) struct Reply {
    #[n(0)]
    pub(super) id: u64,
    #[n(1)]
    pub(super) status: Status,
    #[n(2)]
    pub(super) text: String,
}

/// One object of a listing: key, size, when it was stored (nanoseconds since 1970).
#[derive(Debug, Encode, Decode)]
pub(super) struct Line {
    #[n(0)]
    pub(super) key: String,
    #[n(1)]
    pub(super) size: u64,
    #[n(2)]
    pub(super) stored_at: Option<crate::codec::Moment>,
}

pub(super) fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

/// Writes one frame; the caller holds the writer alone.
pub(super) fn write<T: Encode<()>>(writer: &mut dyn Write, header: &T, body: &[u8]) -> io::Result<()> {
    let header = minicbor::to_vec(header).map_err(|_| bad("a header could not be encoded"))?;
    let lengths = (u32::try_from(header.len()), u32::try_from(body.len()));
    let (Ok(head), Ok(length)) = lengths else { return Err(bad("a frame is too long")) };
    if head > HEADER_BYTES_MAX || u64::from(length) > OBJECT_BYTES_MAX {
        return Err(bad("a frame is too long"));
    }
    let mut start = Vec::with_capacity(8 + header.len());
    start.extend_from_slice(&head.to_le_bytes());
    start.extend_from_slice(&length.to_le_bytes());
    start.extend_from_slice(&header);
    writer.write_all(&start)?;
    writer.write_all(body)?;
    writer.flush()
}

/// The lengths of the next frame; `None` where the other end has closed in an orderly way.
pub(super) fn read_lengths(reader: &mut dyn Read) -> io::Result<Option<(u32, u32)>> {
    let mut lengths = [0u8; 8];
    let mut filled = 0;
    while let Some(rest) = lengths.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    let [a, b, c, d, e, f, g, h] = lengths;
    let (header, body) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
    if header == 0 || header > HEADER_BYTES_MAX {
        return Err(bad("a frame's header has an impossible length"));
    }
    if u64::from(body) > OBJECT_BYTES_MAX {
        return Err(bad("a frame's body is longer than any object"));
    }
    Ok(Some((header, body)))
}

pub(super) fn read_exactly(reader: &mut dyn Read, length: u32) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity((length as usize).min(1 << 20));
    reader.take(u64::from(length)).read_to_end(&mut bytes)?;
    match bytes.len() == length as usize {
        true => Ok(bytes),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

pub(super) fn decode<T: for<'b> Decode<'b, ()>>(bytes: &[u8]) -> io::Result<T> {
    let mut decoder = minicbor::Decoder::new(bytes);
    let value = decoder.decode().map_err(|_| bad("a frame cannot be understood"))?;
    match decoder.position() == bytes.len() {
        true => Ok(value),
        false => Err(bad("something follows a frame's header")),
    }
}

/// For fuzzers: what either end may be sent.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz(mut data: &[u8]) {
    let reader: &mut dyn Read = &mut data;
    while let Ok(Some((header, body))) = read_lengths(reader) {
        let Ok(header) = read_exactly(reader, header) else { return };
        let _ = (decode::<Greeting>(&header), decode::<Hello>(&header), decode::<Welcome>(&header));
        let _ = (decode::<Request>(&header), decode::<Reply>(&header));
        let Ok(body) = read_exactly(reader, body) else { return };
        let _ = decode::<Vec<Line>>(&body);
    }
}

/// For fuzzers: a request that stores something, and some that ask for it.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_requests() -> (Vec<u8>, Vec<u8>) {
    let frame = |verb, key: &str, body: &[u8]| {
        let mut bytes = Vec::new();
        let request = Request { id: 1, verb, key: key.to_owned(), offset: 0, length: 9 };
        let _ = write(&mut bytes, &request, body);
        bytes
    };
    let asked = [
        (Verb::Get, "roster/0000000001"),
        (Verb::GetRange, "hold/0000000001"),
        (Verb::List, "roster/"),
        (Verb::Delete, "probe/0"),
    ];
    (frame(Verb::PutIfAbsent, "probe/0", b"bytes"), asked.map(|(verb, key)| frame(verb, key, &[])).concat())
}

/// One whole frame that has no body: the first words of both ends.
pub(super) fn read_word<T: for<'b> Decode<'b, ()>>(reader: &mut dyn Read) -> io::Result<T> {
    match read_lengths(reader)? {
        Some((header, 0)) => decode(&read_exactly(reader, header)?),
        Some(_) => Err(bad("a first word has no body")),
        None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ended before a server answered")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lengths_are_bounded_before_anything_is_read() {
        let frame = |header: u32, body: u32| [header.to_le_bytes(), body.to_le_bytes()].concat();
        assert!(read_lengths(&mut frame(0, 0).as_slice()).is_err());
        assert!(read_lengths(&mut frame(HEADER_BYTES_MAX + 1, 0).as_slice()).is_err());
        assert!(read_lengths(&mut frame(1, u32::MAX).as_slice()).is_err());
        assert!(read_lengths(&mut [1u8, 0].as_slice()).is_err(), "cut off");
        assert_eq!(read_lengths(&mut [].as_slice()).unwrap(), None);
        assert_eq!(read_lengths(&mut frame(5, 9).as_slice()).unwrap(), Some((5, 9)));
        let announced = read_exactly(&mut [1u8, 2].as_slice(), 96 << 20);
        assert_eq!(announced.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_understood_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<Request>(&bytes);
            let _ = decode::<Reply>(&bytes);
            let _ = decode::<Hello>(&bytes);
            let _ = decode::<Vec<Line>>(&bytes);
            let _ = read_word::<Greeting>(&mut bytes.as_slice());
        }

        #[test]
        fn a_frame_comes_back(id in any::<u64>(), key in "\\PC{0,40}", body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let request = Request { id, verb: Verb::GetRange, key: key.clone(), offset: 7, length: id };
            let mut bytes = Vec::new();
            write(&mut bytes, &request, &body).unwrap();
            let mut reader = bytes.as_slice();
            let (header, length) = read_lengths(&mut reader).unwrap().unwrap();
            let read: Request = decode(&read_exactly(&mut reader, header).unwrap()).unwrap();
            prop_assert_eq!((read.id, read.key, read.length), (id, key, id));
            prop_assert_eq!(read_exactly(&mut reader, length).unwrap(), body);
        }
    }
}
