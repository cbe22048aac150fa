//! Who said it: Ed25519 keys, and the envelope in which every signed object lies.
//!
//! Invariant: an opened envelope was signed, as this kind of object, by the key it names. Whether that key counts is the
//! caller's question, answered by the roster.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use minicbor::{Decode, Encode};

use crate::crypt::{hash, hex, random, unhex};
use crate::error::{Result, VaultError};
use crate::host::{read_secret_file, write_secret_file};

const MAGIC: &[u8; 5] = b"LBSG\x01";

/// A private signing key. Its seed is 32 bytes; files hold it in hex.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    seed: [u8; 32],
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey(of {})", self.public())
    }
}

impl SigningKey {
    pub fn generate() -> Result<SigningKey> {
        SigningKey::from_seed(random())
    }

    pub(crate) fn from_seed(seed: [u8; 32]) -> Result<SigningKey> {
        let pair =
            Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| VaultError::crypto("reading a signing key"))?;
        Ok(SigningKey { pair, seed })
    }

    pub(crate) fn seed(&self) -> &[u8; 32] {
        &self.seed
    }

    /// Reads the key at `path`, or makes one there (mode 0600, durable before it is used).
    pub fn load_or_create(path: &Path) -> Result<SigningKey> {
        if let Some(text) = read_secret_file(path)? {
            let seed = unhex(text.trim()).ok_or_else(|| {
                VaultError::invalid(path.display().to_string(), "it does not hold a signing key (64 hex digits)")
            })?;
            return SigningKey::from_seed(seed);
        }
        let key = SigningKey::generate()?;
        write_secret_file(path, hex(&key.seed).as_bytes())?;
        Ok(key)
    }

    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.pair.public_key().as_ref());
        PublicKey(bytes)
    }

    /// Signs `payload` as an object of `kind`; `Signed::seal` is what stores it.
    pub fn sign(&self, kind: &str, payload: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.pair.sign(&statement(kind, payload)).as_ref());
        signature
    }
}

/// A public signing key; written as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
pub struct PublicKey(#[cbor(n(0), with = "minicbor::bytes")] [u8; 32]);

impl PublicKey {
    pub fn from_bytes(bytes: [u8; 32]) -> PublicKey {
        PublicKey(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// 128 bits of the key's hash, as 32 hex digits: what people compare and plans hold.
    pub fn fingerprint(&self) -> String {
        hex(&hash(&self.0)[..16])
    }

    pub fn verify(&self, kind: &str, payload: &[u8], signature: &[u8; 64]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(&statement(kind, payload), signature).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = VaultError;
    fn from_str(text: &str) -> Result<PublicKey> {
        unhex(text.trim()).map(PublicKey).ok_or_else(|| VaultError::invalid("a public key", "it is not 64 hex digits"))
    }
}

impl serde::Serialize for PublicKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for PublicKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<PublicKey, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What is signed: the kind is part of it, so that no object passes for one of another kind.
fn statement(kind: &str, payload: &[u8]) -> Vec<u8> {
    let mut statement = Vec::with_capacity(64 + kind.len() + 32);
    statement.extend_from_slice(b"lifeboat signed object 1\0");
    statement.extend_from_slice(kind.as_bytes());
    statement.push(0);
    statement.extend_from_slice(&hash(payload));
    statement
}

/// The contents of an envelope whose signature was right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    pub payload: Vec<u8>,
    pub signer: PublicKey,
    /// BLAKE3 of the whole envelope: what successors in a chain name.
    pub hash: [u8; 32],
}

#[derive(Encode, Decode)]
struct Envelope<'a> {
    #[cbor(b(0), with = "minicbor::bytes")]
    payload: &'a [u8],
    #[n(1)]
    signer: PublicKey,
    #[cbor(b(2), with = "minicbor::bytes")]
    signature: &'a [u8],
}

impl Signed {
    /// The envelope to store. `kind` names what sort of object it is, e.g. `vault.snapshot` or `arbiter.epoch`.
    pub fn seal(kind: &str, payload: &[u8], key: &SigningKey) -> Result<Vec<u8>> {
        let signature = key.sign(kind, payload);
        let mut bytes = MAGIC.to_vec();
        let envelope = Envelope { payload, signer: key.public(), signature: &signature };
        minicbor::encode(&envelope, &mut bytes).map_err(|_| VaultError::crypto("encoding an envelope"))?;
        Ok(bytes)
    }

    /// Opens an envelope read from storage; `object` is its name, for the message.
    pub fn open(kind: &str, object: &str, bytes: &[u8]) -> Result<Signed> {
        let body = bytes.strip_prefix(MAGIC).ok_or_else(|| VaultError::damaged(object, "it is not a signed object"))?;
        let mut decoder = minicbor::Decoder::new(body);
        let envelope: Envelope<'_> =
            decoder.decode().map_err(|_| VaultError::damaged(object, "its envelope cannot be read"))?;
        if decoder.position() != body.len() {
            return Err(VaultError::damaged(object, "something was added to its end"));
        }
        let signature = <&[u8; 64]>::try_from(envelope.signature)
            .map_err(|_| VaultError::damaged(object, "its signature has the wrong length"))?;
        if !envelope.signer.verify(kind, envelope.payload, signature) {
            return Err(VaultError::damaged(object, format!("its signature as {kind} is wrong")));
        }
        Ok(Signed { payload: envelope.payload.to_vec(), signer: envelope.signer, hash: hash(bytes) })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_opens_only_whole_and_as_its_kind() {
        let key = SigningKey::generate().unwrap();
        let bytes = Signed::seal("a", b"payload", &key).unwrap();
        let opened = Signed::open("a", "x", &bytes).unwrap();
        assert_eq!((opened.payload.as_slice(), opened.signer), (b"payload".as_slice(), key.public()));
        assert!(Signed::open("b", "x", &bytes).is_err());
        for place in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[place] ^= 1;
            assert!(Signed::open("a", "x", &flipped).is_err(), "byte {place}");
            assert!(Signed::open("a", "x", &bytes[..place]).is_err(), "cut at {place}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert!(Signed::open("a", "x", &longer).is_err());
    }
}
