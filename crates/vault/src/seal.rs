//! Sealing to public keys with age, so that plain `age` can always open what matters.
//!
//! Invariant: private halves never appear in `Debug`, messages or errors.

use std::fmt;
use std::io::{Read, Write};
use std::path::Path;
use std::str::FromStr;

use age::secrecy::ExposeSecret;

use crate::crypt::{FrameKey, random};
use crate::error::{Result, VaultError};
use crate::host::read_secret_file;

/// Larger sealed values go through `seal_frame`.
const SEALED_BYTES_MAX: usize = 256 << 20;

/// A private half: an age X25519 identity (`AGE-SECRET-KEY-1…`).
#[derive(Clone)]
pub struct Identity(age::x25519::Identity);

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity(of {})", self.recipient())
    }
}

impl Identity {
    pub fn generate() -> Identity {
        Identity(age::x25519::Identity::generate())
    }

    pub fn recipient(&self) -> Recipient {
        Recipient(self.0.to_public())
    }

    /// The secret as text; only for writing it where it belongs.
    pub fn expose(&self) -> String {
        self.0.to_string().expose_secret().to_owned()
    }

    /// Reads an identity file as `age-keygen` and `lifeboat key new` write it: comments, and one or more secrets.
    pub fn parse_all(text: &str) -> Result<Vec<Identity>> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let identities: Result<Vec<Identity>> = lines.map(str::parse).collect();
        match identities {
            Ok(found) if found.is_empty() => {
                Err(VaultError::invalid("the identity file", "it holds no line that starts with AGE-SECRET-KEY-1"))
            }
            other => other,
        }
    }

    pub fn load_all(path: &Path) -> Result<Vec<Identity>> {
        let text = read_secret_file(path)?
            .ok_or_else(|| VaultError::invalid(path.display().to_string(), "there is no such identity file"))?;
        Identity::parse_all(&text).map_err(|_| {
            VaultError::invalid(path.display().to_string(), "it is not an age identity file (AGE-SECRET-KEY-1…)")
        })
    }
}

impl FromStr for Identity {
    type Err = VaultError;
    fn from_str(text: &str) -> Result<Identity> {
        text.trim()
            .parse()
            .map(Identity)
            .map_err(|_| VaultError::invalid("an age identity", "it is not AGE-SECRET-KEY-1… or was mistyped"))
    }
}

/// A public half: an age X25519 recipient (`age1…`).
#[derive(Clone, PartialEq, Eq)]
pub struct Recipient(age::x25519::Recipient);

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recipient({self})")
    }
}

impl FromStr for Recipient {
    type Err = VaultError;
    fn from_str(text: &str) -> Result<Recipient> {
        text.trim().parse().map(Recipient).map_err(|e: &str| {
            VaultError::invalid(format!("recipient {:?}", text.chars().take(80).collect::<String>()), e)
        })
    }
}

impl Recipient {
    pub(crate) fn as_age(&self) -> &dyn age::Recipient {
        &self.0
    }
}

impl Identity {
    pub(crate) fn as_age(&self) -> &dyn age::Identity {
        &self.0
    }
}

/// A complete age file that any one of `recipients` opens.
pub fn seal(recipients: &[Recipient], plain: &[u8]) -> Result<Vec<u8>> {
    let broken = || VaultError::crypto("sealing with age");
    let all = recipients.iter().map(|r| &r.0 as &dyn age::Recipient);
    let encryptor = age::Encryptor::with_recipients(all)
        .map_err(|_| VaultError::invalid("the list of recipients", "it is empty; give at least one age1… recipient"))?;
    let mut sealed = Vec::with_capacity(plain.len() + 512);
    let mut writer = encryptor.wrap_output(&mut sealed).map_err(|_| broken())?;
    writer.write_all(plain).map_err(|_| broken())?;
    writer.finish().map_err(|_| broken())?;
    Ok(sealed)
}

/// Why an age file did not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unopened {
    /// It is sealed to other keys.
    WrongKey,
    Damaged,
}

/// Opens an age file with any one of the identities.
pub fn unseal<'a>(identities: impl IntoIterator<Item = &'a Identity>, sealed: &[u8]) -> Result<Vec<u8>, Unopened> {
    let decryptor = age::Decryptor::new_buffered(sealed).map_err(|_| Unopened::Damaged)?;
    let identities = identities.into_iter().map(|i| &i.0 as &dyn age::Identity);
    let mut reader = decryptor.decrypt(identities).map_err(|e| match e {
        age::DecryptError::NoMatchingKeys => Unopened::WrongKey,
        _ => Unopened::Damaged,
    })?;
    let mut plain = Vec::new();
    reader.by_ref().take(SEALED_BYTES_MAX as u64).read_to_end(&mut plain).map_err(|_| Unopened::Damaged)?;
    Ok(plain)
}

/// A larger value: a fresh secret sealed with age, and the value (compressed where that helps) as one AES-GCM frame.
///
/// Layout: u32 length of the age file (little endian), the age file, one byte (1 = zstd), the frame.
pub(crate) fn seal_frame(recipients: &[Recipient], place: &str, plain: &[u8]) -> Result<Vec<u8>> {
    let secret: [u8; 32] = random();
    let wrapped = seal(recipients, &secret)?;
    let compressed = zstd::bulk::compress(plain, 3).map_err(|_| VaultError::crypto("compressing"))?;
    let (flag, body) = if compressed.len() < plain.len() { (1u8, compressed.as_slice()) } else { (0, plain) };
    let length = u32::try_from(wrapped.len()).map_err(|_| VaultError::crypto("sealing with age"))?;
    let mut sealed = Vec::with_capacity(wrapped.len() + body.len() + 32);
    sealed.extend_from_slice(&length.to_le_bytes());
    sealed.extend_from_slice(&wrapped);
    sealed.push(flag);
    let key = FrameKey::derive(&secret, b"", "lifeboat sealed value 1")?;
    key.seal_onto(u64::from(flag), place.as_bytes(), body, &mut sealed)?;
    Ok(sealed)
}

pub(crate) fn unseal_frame<'a>(
    identities: impl IntoIterator<Item = &'a Identity>,
    place: &str,
    sealed: &[u8],
    plain_bytes_max: usize,
) -> Result<Vec<u8>, Unopened> {
    let (length, rest) = sealed.split_first_chunk::<4>().ok_or(Unopened::Damaged)?;
    let length = u32::from_le_bytes(*length) as usize;
    let (wrapped, rest) = rest.split_at_checked(length).ok_or(Unopened::Damaged)?;
    let (&flag, frame) = rest.split_first().ok_or(Unopened::Damaged)?;
    let secret: [u8; 32] = unseal(identities, wrapped)?.try_into().map_err(|_| Unopened::Damaged)?;
    let key = FrameKey::derive(&secret, b"", "lifeboat sealed value 1").map_err(|_| Unopened::Damaged)?;
    let body = key.open(u64::from(flag), place.as_bytes(), frame.to_vec()).ok_or(Unopened::Damaged)?;
    match flag {
        0 => Ok(body),
        _ => decompress(&body, plain_bytes_max).ok_or(Unopened::Damaged),
    }
}

/// Decompresses what says it is at most `plain_bytes_max` long; takes memory for no more than that.
pub(crate) fn decompress(body: &[u8], plain_bytes_max: usize) -> Option<Vec<u8>> {
    let claimed = zstd::bulk::Decompressor::upper_bound(body).unwrap_or(plain_bytes_max);
    if claimed > plain_bytes_max {
        return None;
    }
    zstd::bulk::decompress(body, claimed).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn any_one_recipient_opens_and_no_other() {
        let (a, b, c) = (Identity::generate(), Identity::generate(), Identity::generate());
        let sealed = seal(&[a.recipient(), b.recipient()], b"secret").unwrap();
        assert_eq!(unseal([&a], &sealed).unwrap(), b"secret");
        assert_eq!(unseal([&c, &b], &sealed).unwrap(), b"secret");
        assert_eq!(unseal([&c], &sealed), Err(Unopened::WrongKey));
        assert_eq!(unseal([&a], &sealed[..sealed.len() - 1]), Err(Unopened::Damaged));
        assert!(seal(&[], b"x").is_err());
    }

    #[test]
    fn a_frame_is_bound_to_its_place_and_bounded() {
        let a = Identity::generate();
        let plain = vec![7u8; 100_000];
        let sealed = seal_frame(&[a.recipient()], "here", &plain).unwrap();
        assert!(sealed.len() < 1000);
        assert_eq!(unseal_frame([&a], "here", &sealed, 100_000).unwrap(), plain);
        assert_eq!(unseal_frame([&a], "there", &sealed, 100_000), Err(Unopened::Damaged));
        assert_eq!(unseal_frame([&a], "here", &sealed, 99_999), Err(Unopened::Damaged));
    }

    #[test]
    fn identity_files_read_as_age_writes_them() {
        let a = Identity::generate();
        let text = format!("# created: today\n# public key: {}\n{}\n", a.recipient(), a.expose());
        assert_eq!(Identity::parse_all(&text).unwrap()[0].recipient(), a.recipient());
        assert!(Identity::parse_all("# nothing\n").is_err());
        assert!(!format!("{a:?}").contains("SECRET"));
    }
}
