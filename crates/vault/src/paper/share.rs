//! Shares of a key: any `threshold` of them make it again, fewer say nothing about it.
//!
//! Shamir's scheme over GF(256), byte by byte, by `vsss-rs`; share `n` is the polynomial's value at `n`. Invariant: what `combine` answers is the
//! key whose recipient the shares name, or an error that names the share at fault as far as that can be known.

use std::collections::BTreeMap;
use std::convert::Infallible;

use bech32::{Bech32m, Hrp};
use rand_core::{TryCryptoRng, TryRng};
use vsss_rs::Gf256;

use super::PaperError;
use crate::crypt::{hex, random};
use crate::error::VaultError;
use crate::seal::{Identity, Recipient};

const VERSION: u8 = 1;
const BYTES: usize = 48;
/// Of a share's word, after its head: 48 bytes and the checksum.
pub(super) const CHARACTERS: usize = (BYTES * 8).div_ceil(5) + 6;
const HEAD: &str = "lifeboat-share-";
/// More sheets than this nobody keeps apart.
const SHARES_MAX: usize = 32;
/// How many selections are tried to find a forged share.
const SELECTIONS_MAX: usize = 20_000;

/// One share of a key.
#[derive(Clone, PartialEq, Eq)]
pub struct Share {
    /// Which splitting it comes from: shares of two splittings of one key do not mix.
    pub set: [u8; 4],
    pub threshold: u8,
    pub shares: u8,
    /// From 1.
    pub index: u8,
    /// Which key it makes: the hash of its recipient, shortened.
    of: [u8; 8],
    pub(super) value: [u8; 32],
}

impl std::fmt::Debug for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Share({} of {}, set {})", self.index, self.shares, self.set_name())
    }
}

/// A share, and what its user calls it (a file's name).
#[derive(Debug, Clone)]
pub struct Named {
    pub name: String,
    pub share: Share,
}

impl Share {
    pub fn set_name(&self) -> String {
        hex(&self.set)
    }

    pub(super) fn word(&self) -> String {
        let mut bytes = vec![VERSION];
        bytes.extend(self.set);
        bytes.extend([self.threshold, self.shares, self.index]);
        bytes.extend(self.of);
        bytes.extend(self.value);
        // Neither the head nor the length is anybody's input.
        let encoded = Hrp::parse(HEAD).ok().and_then(|head| bech32::encode_upper::<Bech32m>(head, &bytes).ok());
        encoded.unwrap_or_default()
    }

    pub(super) fn parse(word: &str) -> Result<Share, PaperError> {
        let wrong = || PaperError::Mistyped { what: "share" };
        let checked = bech32::primitives::decode::CheckedHrpstring::new::<Bech32m>(word).map_err(|_| wrong())?;
        if !checked.hrp().as_str().eq_ignore_ascii_case(HEAD) {
            return Err(wrong());
        }
        let bytes: Vec<u8> = checked.byte_iter().collect();
        let (&version, rest) = bytes.split_first().ok_or_else(wrong)?;
        if version != VERSION {
            return Err(PaperError::Version { found: version });
        }
        let (set, rest) = rest.split_first_chunk::<4>().ok_or_else(wrong)?;
        let (&[threshold, shares, index], rest) = rest.split_first_chunk::<3>().ok_or_else(wrong)?;
        let (of, rest) = rest.split_first_chunk::<8>().ok_or_else(wrong)?;
        let value = <[u8; 32]>::try_from(rest).map_err(|_| wrong())?;
        check_numbers(shares.into(), threshold.into())?;
        if index == 0 || index > shares {
            return Err(wrong());
        }
        Ok(Share { set: *set, threshold, shares, index, of: *of, value })
    }
}

fn check_numbers(shares: usize, threshold: usize) -> Result<(), PaperError> {
    if threshold < 2 || threshold > shares || shares > SHARES_MAX {
        return Err(PaperError::Numbers { shares, threshold, max: SHARES_MAX });
    }
    Ok(())
}

fn mark_of(recipient: &Recipient) -> [u8; 8] {
    let hash = blake3::derive_key("lifeboat 1 which key a share belongs to", recipient.to_string().as_bytes());
    let mut mark = [0; 8];
    mark.copy_from_slice(&hash[..8]);
    mark
}

/// The system's randomness, as the library asks for it.
struct System;

impl TryRng for System {
    type Error = Infallible;
    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::from_le_bytes(random()))
    }
    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(u64::from_le_bytes(random()))
    }
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for piece in bytes.chunks_mut(32) {
            let fresh: [u8; 32] = random();
            piece.copy_from_slice(&fresh[..piece.len()]);
        }
        Ok(())
    }
}

impl TryCryptoRng for System {}

fn refused<E>(_: E) -> PaperError {
    PaperError::Library { source: Box::new(VaultError::crypto("sharing a secret")) }
}

/// Splits a key into `shares`, any `threshold` of which make it again.
pub fn split(identity: &Identity, shares: usize, threshold: usize) -> Result<Vec<Share>, PaperError> {
    check_numbers(shares, threshold)?;
    let secret = secret_of(identity)?;
    let (set, of) = (random(), mark_of(&identity.recipient()));
    let split = Gf256::split_bytes(threshold, shares, secret, System).map_err(refused)?;
    let made: Option<Vec<Share>> = split
        .into_iter()
        .map(|bytes| {
            let (&index, value) = bytes.split_first()?;
            let value = value.try_into().ok()?;
            Some(Share { set, threshold: threshold as u8, shares: shares as u8, index, of, value })
        })
        .collect();
    let made = made.filter(|made| made.iter().zip(1..).all(|(share, index)| share.index == index));
    let made = made.ok_or_else(|| refused(()))?;
    // What cannot be put together again must not be printed.
    let named = |share: &Share| Named { name: format!("share {}", share.index), share: share.clone() };
    for selection in [&made[..threshold], &made[made.len() - threshold..]] {
        combine(&selection.iter().map(named).collect::<Vec<_>>())?;
    }
    Ok(made)
}

/// Makes the key again.
pub fn combine(given: &[Named]) -> Result<Identity, PaperError> {
    let first = given.first().ok_or(PaperError::Nothing)?;
    let mut distinct: BTreeMap<u8, &Named> = BTreeMap::new();
    for named in given {
        let (share, other) = (&named.share, &first.share);
        if share.set != other.set {
            return Err(PaperError::OtherSet {
                name: named.name.clone(),
                set: share.set_name(),
                other: first.name.clone(),
                other_set: other.set_name(),
            });
        }
        if (share.threshold, share.shares, share.of) != (other.threshold, other.shares, other.of) {
            return Err(PaperError::Disagreement { name: named.name.clone(), other: first.name.clone() });
        }
        match distinct.get(&share.index) {
            Some(there) if there.share != *share => {
                return Err(PaperError::Contradiction {
                    name: named.name.clone(),
                    other: there.name.clone(),
                    index: share.index,
                    set: share.set_name(),
                });
            }
            _ => distinct.insert(share.index, named),
        };
    }
    let need = usize::from(first.share.threshold);
    if distinct.len() < need {
        let missing = (1..=first.share.shares).filter(|index| !distinct.contains_key(index));
        let missing: Vec<String> = missing.map(|index| index.to_string()).collect();
        return Err(PaperError::TooFew {
            have: distinct.len(),
            need,
            set: first.share.set_name(),
            missing: missing.join(", "),
        });
    }
    let distinct: Vec<&Named> = distinct.into_values().collect();
    let selection: Vec<usize> = (0..need).collect();
    let made = put_together(&distinct, &selection)?;
    match made {
        Some(identity) if distinct.len() == need => Ok(identity),
        made => without_forged(&distinct, need, made),
    }
}

/// With more shares than are needed, each is held against the others: a forged one is named even where it was not used.
fn without_forged(distinct: &[&Named], need: usize, made: Option<Identity>) -> Result<Identity, PaperError> {
    let mut good: Option<Vec<usize>> = made.as_ref().map(|_| (0..need).collect());
    let mut selection: Vec<usize> = (0..need).collect();
    for _ in 0..SELECTIONS_MAX {
        if good.is_some() || !next_selection(&mut selection, distinct.len()) {
            break;
        }
        if put_together(distinct, &selection)?.is_some() {
            good = Some(selection.clone());
        }
    }
    let Some(good) = good else { return Err(PaperError::Forged { odd: Vec::new() }) };
    let mut odd = Vec::new();
    for (place, named) in distinct.iter().enumerate() {
        let mut with = good.clone();
        if !with.contains(&place)
            && let Some(last) = with.last_mut()
        {
            *last = place;
            if put_together(distinct, &with)?.is_none() {
                odd.push(named.name.clone());
            }
        }
    }
    match made {
        Some(identity) if odd.is_empty() => Ok(identity),
        _ => Err(PaperError::Forged { odd }),
    }
}

/// The next selection of so many, in order; whether there is one.
fn next_selection(selection: &mut [usize], of: usize) -> bool {
    let count = selection.len();
    for place in (0..count).rev() {
        if selection[place] < of - (count - place) {
            selection[place] += 1;
            for after in place + 1..count {
                selection[after] = selection[after - 1] + 1;
            }
            return true;
        }
    }
    false
}

/// The key that these make, if it is the one they were made from.
fn put_together(distinct: &[&Named], selection: &[usize]) -> Result<Option<Identity>, PaperError> {
    let chosen: Vec<&Share> = selection.iter().filter_map(|place| Some(&distinct.get(*place)?.share)).collect();
    let Some(mark) = chosen.first().map(|share| share.of) else { return Ok(None) };
    let bytes = |share: &&Share| std::iter::once(share.index).chain(share.value).collect::<Vec<u8>>();
    let secret = Gf256::combine_bytes(chosen.iter().map(bytes).collect::<Vec<_>>()).map_err(refused)?;
    Ok(identity_of(&secret).filter(|identity| mark_of(&identity.recipient()) == mark))
}

/// The 32 bytes within an age identity.
fn secret_of(identity: &Identity) -> Result<[u8; 32], PaperError> {
    let word = identity.expose();
    let checked = bech32::primitives::decode::CheckedHrpstring::new::<bech32::Bech32>(&word).map_err(refused)?;
    checked.byte_iter().collect::<Vec<u8>>().try_into().map_err(refused)
}

pub(super) fn identity_of(secret: &[u8]) -> Option<Identity> {
    let head = Hrp::parse("age-secret-key-").ok()?;
    bech32::encode_upper::<bech32::Bech32>(head, secret).ok()?.parse().ok()
}
