//! CBOR for everything binary: one way in, one way out.
//!
//! Invariant: what is decoded was consumed to its last byte, and came from memory that was bounded before.

use jiff::Timestamp;
use minicbor::{Decode, Encode};

use crate::error::{Result, VaultError};

pub(crate) fn encode<T: Encode<()>>(value: &T) -> Result<Vec<u8>> {
    minicbor::to_vec(value).map_err(|_| VaultError::crypto("encoding an object"))
}

pub(crate) fn decode<'b, T: Decode<'b, ()>>(object: &str, bytes: &'b [u8]) -> Result<T> {
    let mut decoder = minicbor::Decoder::new(bytes);
    let value = decoder.decode().map_err(|_| VaultError::damaged(object, "its contents cannot be read"))?;
    if decoder.position() != bytes.len() {
        return Err(VaultError::damaged(object, "something follows its contents"));
    }
    Ok(value)
}

/// A BLAKE3 hash of an object.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
pub(crate) struct Hash(#[cbor(n(0), with = "minicbor::bytes")] pub(crate) [u8; 32]);

impl std::fmt::Display for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&crate::crypt::hex(&self.0))
    }
}

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hash({self})")
    }
}

/// A moment, as nanoseconds since 1970 (good until 2262).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
pub(crate) struct Moment(#[n(0)] i64);

impl From<Timestamp> for Moment {
    fn from(at: Timestamp) -> Moment {
        let nanoseconds = at.as_nanosecond();
        Moment(i64::try_from(nanoseconds).unwrap_or(if nanoseconds < 0 { i64::MIN } else { i64::MAX }))
    }
}

impl From<Moment> for Timestamp {
    fn from(at: Moment) -> Timestamp {
        Timestamp::from_nanosecond(i128::from(at.0)).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}
