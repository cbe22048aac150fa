//! Symmetric cryptography: AES-256-GCM frames, keys by HKDF-SHA256, randomness.
//!
//! Invariant: a key made here seals each ordinal once; a frame opens only in the place (`aad`) it was sealed for.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};

use crate::error::{Result, VaultError};

pub(crate) const TAG_BYTES: usize = 16;

/// The operating system's randomness; a machine without it must not seal anything. (AWS-LC's own generator gathers jitter for 20 ms
/// in each process before it gives the first byte: as long as all the rest of a small backup.)
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    if getrandom::fill(&mut bytes).is_err() {
        std::process::abort();
    }
    bytes
}

pub(crate) fn random_u64() -> u64 {
    u64::from_le_bytes(random())
}

/// A key for the frames of one object. It is not printable and not kept.
pub(crate) struct FrameKey(LessSafeKey);

impl std::fmt::Debug for FrameKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FrameKey(…)")
    }
}

impl FrameKey {
    /// HKDF-SHA256(secret, salt, purpose).
    pub(crate) fn derive(secret: &[u8; 32], salt: &[u8], purpose: &str) -> Result<FrameKey> {
        let broken = |_| VaultError::crypto("deriving a key");
        let prk = Salt::new(HKDF_SHA256, salt).extract(secret);
        let mut key = [0u8; 32];
        prk.expand(&[purpose.as_bytes()], HKDF_SHA256).and_then(|okm| okm.fill(&mut key)).map_err(broken)?;
        Ok(FrameKey(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).map_err(broken)?)))
    }

    /// Appends the sealed form of `plain` (as long, plus a tag) to `out`.
    pub(crate) fn seal_onto(&self, ordinal: u64, aad: &[u8], plain: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let start = out.len();
        out.extend_from_slice(plain);
        let sealed = self.0.seal_in_place_separate_tag(nonce(ordinal), Aad::from(aad), &mut out[start..]);
        let tag = sealed.map_err(|_| VaultError::crypto("sealing"))?;
        out.extend_from_slice(tag.as_ref());
        Ok(())
    }

    /// Opens in place; `None` where the frame is not what was sealed there.
    pub(crate) fn open(&self, ordinal: u64, aad: &[u8], mut sealed: Vec<u8>) -> Option<Vec<u8>> {
        self.open_in(ordinal, aad, &mut sealed).then_some(sealed)
    }

    /// Opens in place; whether the frame was what was sealed there. If not, what is in the buffer is nothing.
    pub(crate) fn open_in(&self, ordinal: u64, aad: &[u8], sealed: &mut Vec<u8>) -> bool {
        let opened = self.0.open_in_place(nonce(ordinal), Aad::from(aad), sealed).map(|plain| plain.len());
        sealed.truncate(opened.unwrap_or(0));
        opened.is_ok()
    }
}

/// Makes marks of contents by which they are known again (AES-256-GMAC): 16 bytes, twice as fast as a hash. Without the key nobody can
/// choose contents that have one mark; so marks stay where the key is.
pub(crate) struct MarkKey(LessSafeKey);

impl std::fmt::Debug for MarkKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MarkKey(…)")
    }
}

impl MarkKey {
    pub(crate) fn new(key: &[u8; 32]) -> Result<MarkKey> {
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| VaultError::crypto("making a key"))?;
        Ok(MarkKey(LessSafeKey::new(key)))
    }

    /// The mark of what stands at a place.
    pub(crate) fn mark(&self, place: u64, bytes: &[u8]) -> Option<[u8; TAG_BYTES]> {
        let sealed = self.0.seal_in_place_separate_tag(nonce(place), Aad::from(bytes), &mut []);
        sealed.ok().and_then(|tag| tag.as_ref().try_into().ok())
    }
}

fn nonce(ordinal: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&ordinal.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// The hash that names objects.
pub(crate) fn hash(bytes: &[u8]) -> [u8; 32] {
    *blake3::hash(bytes).as_bytes()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

pub(crate) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != N * 2 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_opens_only_where_it_was_sealed() {
        let key = FrameKey::derive(&[7; 32], b"salt", "test").unwrap();
        let mut sealed = Vec::new();
        key.seal_onto(3, b"here", b"words", &mut sealed).unwrap();
        assert_eq!(key.open(3, b"here", sealed.clone()).unwrap(), b"words");
        assert!(key.open(4, b"here", sealed.clone()).is_none());
        assert!(key.open(3, b"there", sealed.clone()).is_none());
        let other = FrameKey::derive(&[7; 32], b"salt2", "test").unwrap();
        assert!(other.open(3, b"here", sealed).is_none());
    }
}
