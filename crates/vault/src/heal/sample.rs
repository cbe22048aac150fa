//! A part of all packs, so that a little is read each night and everything within so many nights.
//!
//! Invariant: a pack is in exactly one of a whole's parts, whatever else is in the vault; parts take turns.

use std::fmt;
use std::str::FromStr;

use crate::error::{Result, VaultError};
use crate::open::Vault;

/// More parts than this are not worth their listing.
const PARTS_MAX: u32 = 10_000;

/// Part `part` (from 0) of `of`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Sample {
    pub part: u32,
    pub of: u32,
}

impl Sample {
    pub(crate) fn includes(&self, hash: &[u8; 32]) -> bool {
        let [a, b, c, d, e, f, g, h, ..] = *hash;
        u64::from_le_bytes([a, b, c, d, e, f, g, h]) % u64::from(self.of.max(1)) == u64::from(self.part)
    }
}

impl Sample {
    /// As `includes`, for a pack's name; what is none is in every part.
    pub(crate) fn includes_key(&self, key: &str) -> bool {
        let digits = key.rsplit('/').next().unwrap_or_default();
        crate::crypt::unhex(digits).is_none_or(|hash| self.includes(&hash))
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "part {} of {}", self.part + 1, self.of)
    }
}

/// How much to read, as people say it: `5%`, or `3/20` for that part and no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SampleWish {
    /// The next part of so many.
    Next(u32),
    This(Sample),
}

impl FromStr for SampleWish {
    type Err = VaultError;
    fn from_str(text: &str) -> Result<SampleWish> {
        let wrong = || VaultError::invalid(format!("the sample {text:?}"), "write a share as 5%, or a part as 3/20");
        if let Some(share) = text.strip_suffix('%') {
            let share: f64 = share.trim().parse().map_err(|_| wrong())?;
            if !(share > 0.0 && share <= 100.0) {
                return Err(wrong());
            }
            // Rounded so that at least the share is read.
            let of = (100.0 / share).floor().clamp(1.0, f64::from(PARTS_MAX));
            return Ok(SampleWish::Next(of as u32));
        }
        let (part, of) = text.split_once('/').ok_or_else(wrong)?;
        let (part, of): (u32, u32) = (part.parse().map_err(|_| wrong())?, of.parse().map_err(|_| wrong())?);
        match (1..=of).contains(&part) && of <= PARTS_MAX {
            true => Ok(SampleWish::This(Sample { part: part - 1, of })),
            false => Err(wrong()),
        }
    }
}

impl Vault {
    /// Whose turn it is, by this machine's memory. `sample_read` ends the turn.
    pub fn sample(&self, wish: SampleWish) -> Result<Sample> {
        let of = match wish {
            SampleWish::This(sample) => return Ok(sample),
            SampleWish::Next(of) => of,
        };
        let last = self.remembered_head(&turn(of))?.map_or(0, |(number, _)| number);
        Ok(Sample { part: u32::try_from(last % u64::from(of)).unwrap_or(0), of })
    }

    /// The next turn is the next part's.
    pub fn sample_read(&self, sample: Sample) -> Result<()> {
        let chain = turn(sample.of);
        let last = self.remembered_head(&chain)?.map_or(0, |(number, _)| number);
        match last % u64::from(sample.of) == u64::from(sample.part) {
            true => self.remember_head(&chain, last + 1, [0; 32]),
            false => Ok(()),
        }
    }
}

/// Under which this machine remembers how many parts were read.
fn turn(of: u32) -> String {
    format!("sample/{of}/")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_pack_is_in_exactly_one_part() {
        for number in 0..500u32 {
            let hash = crate::crypt::hash(&number.to_le_bytes());
            let parts = (0..20).filter(|part| Sample { part: *part, of: 20 }.includes(&hash)).count();
            assert_eq!(parts, 1);
        }
    }

    #[test]
    fn a_share_or_a_part_and_nothing_else() {
        let wish = |text: &str| text.parse::<SampleWish>();
        assert_eq!(wish("5%").unwrap(), SampleWish::Next(20));
        assert_eq!(wish("30%").unwrap(), SampleWish::Next(3));
        assert_eq!(wish("100%").unwrap(), SampleWish::Next(1));
        assert_eq!(wish("20/20").unwrap(), SampleWish::This(Sample { part: 19, of: 20 }));
        for bad in ["0%", "101%", "NaN%", "-1%", "0/5", "6/5", "5", "a/b", "1/99999"] {
            assert!(wish(bad).is_err(), "{bad}");
        }
    }
}
