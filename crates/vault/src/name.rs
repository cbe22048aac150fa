//! Names of objects in the vault: which key holds what.
//!
//! Invariant: a user's name (host, data set) becomes one segment and comes back unchanged; numbers sort as text.

use crate::error::{Result, VaultError};

const NAME_BYTES_MAX: usize = 72;

/// Refuses names that would not fit into an object's key.
pub(crate) fn check(name: &str, what: &str) -> Result<()> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(VaultError::invalid(
            what,
            format!("it must be 1 to {NAME_BYTES_MAX} bytes long, it is {}", name.len()),
        ));
    }
    if name.chars().any(char::is_control) {
        return Err(VaultError::invalid(what, "it holds a control character"));
    }
    Ok(())
}

/// Percent-encodes everything but letters, digits, `_`, `-` and (not first) `.`.
pub(crate) fn encode(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for (place, byte) in name.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => text.push(char::from(byte)),
            b'.' if place > 0 => text.push('.'),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

/// The name that `encode` gave this; `None` for anything that `encode` never gives.
pub(crate) fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%' {
            let (pair, after) = rest.split_first_chunk::<2>()?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?);
            rest = after;
        } else {
            bytes.push(byte);
        }
    }
    let name = String::from_utf8(bytes).ok()?;
    (encode(&name) == text).then_some(name)
}

pub(crate) const ROSTER: &str = "roster/";
pub(crate) const README: &str = "README.txt";

pub(crate) fn number(n: u64) -> String {
    format!("{n:010}")
}

/// The number that `number` wrote like this; anything else in its place is nobody's.
pub(crate) fn parse_number(text: &str) -> Option<u64> {
    let right = text.len() == 10 && text.bytes().all(|b| b.is_ascii_digit());
    right.then(|| text.parse().ok()).flatten()
}

pub(crate) fn roster(version: u64) -> String {
    format!("{ROSTER}{}", number(version))
}

/// Content key pair of a data set: statements `…/NUMBER.cert`, private halves `…/HASH.age`.
pub(crate) fn content_keys(dataset: &str) -> String {
    format!("keys/content/{}/", encode(dataset))
}

pub(crate) fn chunk_keys(dataset: &str) -> String {
    format!("keys/chunk/{}/", encode(dataset))
}

pub(crate) fn snapshots_of(host: &str, dataset: &str) -> String {
    format!("snap/{}/{}/", encode(host), encode(dataset))
}

pub(crate) fn indexes_of(host: &str, dataset: &str) -> String {
    format!("index/{}/{}/", encode(host), encode(dataset))
}

pub(crate) fn refs_of(host: &str, dataset: &str) -> String {
    format!("refs/{}/{}/", encode(host), encode(dataset))
}

pub(crate) fn pack(hash: &[u8; 32]) -> String {
    let name = crate::crypt::hex(hash);
    format!("pack/{}/{name}", &name[..2])
}

pub(crate) fn lineage(dataset: &str, lineage: &str) -> String {
    format!("log/{}/{}/", encode(dataset), encode(lineage))
}

/// Log objects lie a thousand to a directory, so that following one lists little.
pub(crate) fn log_object(dataset: &str, lineage_name: &str, timeline: u64, n: u64) -> String {
    format!("{}{}/{:09}/{:03}", lineage(dataset, lineage_name), number(timeline), n / 1000, n % 1000)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn names_come_back(name in "\\PC{1,20}") {
            let text = encode(&name);
            prop_assert_eq!(decode(&text).unwrap(), name);
            prop_assert!(crate::storage::check_key(&text).is_ok());
        }
    }

    #[test]
    fn only_one_spelling_is_a_name() {
        assert_eq!(decode("a%2Fb").as_deref(), Some("a/b"));
        assert_eq!(decode("a%2fb"), None);
        assert_eq!(decode("a%"), None);
        assert_eq!(encode("..").as_str(), "%2E.");
    }
}
