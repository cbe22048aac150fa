//! Quantities as people write them in a plan: `"15m"`, `"5 GB"`, `"4000 EUR/h"`.
//!
//! Invariant: what `Display` prints, `FromStr` reads back as the same value.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a quantity could not be read. The text names the value and what would have been right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct UnitError {
    pub message: String,
}

/// A length of time, written with its unit: `"500ms"`, `"30s"`, `"15m"`, `"2h"`, `"1d"`, `"1w"`, and sums such as `"1h 30m"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub Duration);

impl Span {
    pub const fn seconds(seconds: u64) -> Span {
        Span(Duration::from_secs(seconds))
    }

    pub fn as_seconds(self) -> f64 {
        self.0.as_secs_f64()
    }
}

const UNITS: [(&str, u64); 6] =
    [("w", 604_800_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_millis() as u64;
        if rest == 0 {
            return f.write_str("0s");
        }
        let mut first = true;
        for (unit, milliseconds) in UNITS {
            let count = rest / milliseconds;
            if count > 0 {
                if !first {
                    f.write_str(" ")?;
                }
                write!(f, "{count}{unit}")?;
                rest %= milliseconds;
                first = false;
            }
        }
        Ok(())
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Span, UnitError> {
        let wrong = || UnitError {
            message: format!(
                "`{text}` is not a duration: write a number and a unit, such as \"30s\", \"15m\", \"2h\" or \"1d\""
            ),
        };
        let mut total: u64 = 0;
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
            let count: u64 = rest[..digits].parse().map_err(|_| wrong())?;
            rest = rest[digits..].trim_start();
            let end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
            let (_, milliseconds) = UNITS.iter().find(|(unit, _)| *unit == &rest[..end]).ok_or_else(wrong)?;
            total = count.checked_mul(*milliseconds).and_then(|value| total.checked_add(value)).ok_or_else(wrong)?;
            rest = rest[end..].trim_start();
        }
        Ok(Span(Duration::from_millis(total)))
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A number of bytes, written with its unit: `"5 GB"`, `"512 MiB"`, `"0 B"`. Decimal and binary units both work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

const SIZE_UNITS: [(&str, u64); 11] = [
    ("PB", 1_000_000_000_000_000),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("PiB", 1 << 50),
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

impl Size {
    /// The value with three figures, for people: `1.24 GB`. Does not read back exactly, unlike `Display`.
    pub fn rounded(self) -> String {
        let (unit, factor) = SIZE_UNITS[..5].iter().find(|(_, factor)| self.0 >= *factor).copied().unwrap_or(("B", 1));
        let value = self.0 as f64 / factor as f64;
        match (factor, value) {
            (1, _) => format!("{} B", self.0),
            (_, value) if value < 10.0 => format!("{value:.2} {unit}"),
            (_, value) if value < 100.0 => format!("{value:.1} {unit}"),
            (_, value) => format!("{value:.0} {unit}"),
        }
    }
}

impl fmt::Display for Size {
    /// In the largest unit that shows the value exactly.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = SIZE_UNITS.iter().find(|(_, factor)| self.0 > 0 && self.0.is_multiple_of(*factor));
        let (unit, factor) = exact.copied().unwrap_or(("B", 1));
        write!(f, "{} {unit}", self.0 / factor)
    }
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Size, UnitError> {
        let wrong = || UnitError {
            message: format!(
                "`{text}` is not a size: write a number and a unit, such as \"5 GB\", \"512 MiB\" or \"80 kB\""
            ),
        };
        let (number, unit) = split_number(text).ok_or_else(wrong)?;
        let (_, factor) =
            SIZE_UNITS.iter().find(|(known, _)| known.eq_ignore_ascii_case(unit)).copied().ok_or_else(wrong)?;
        decimal_times(number, factor).map(Size).ok_or_else(wrong)
    }
}

/// Bytes a second: `"100 MB/s"`; also in bits, `"1 Gbit/s"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate {
    pub bytes_per_second: u64,
}

const BIT_UNITS: [(&str, u64); 4] = [("Gbit", 1_000_000_000), ("Mbit", 1_000_000), ("kbit", 1_000), ("bit", 1)];

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", Size(self.bytes_per_second))
    }
}

impl FromStr for Rate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Rate, UnitError> {
        let wrong = || UnitError {
            message: format!("`{text}` is not a rate: write an amount a second, such as \"100 MB/s\" or \"1 Gbit/s\""),
        };
        let amount = text.trim().strip_suffix("/s").ok_or_else(wrong)?;
        let (number, unit) = split_number(amount).ok_or_else(wrong)?;
        let bits = BIT_UNITS.iter().find(|(known, _)| known.eq_ignore_ascii_case(unit));
        let bytes_per_second = match bits {
            Some((_, factor)) => decimal_times(number, *factor).ok_or_else(wrong)? / 8,
            None => amount.parse::<Size>().map_err(|_| wrong())?.0,
        };
        Ok(Rate { bytes_per_second })
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Rate, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Money in a three-letter currency, for a unit of something: `"4000 EUR/h"`, `"0.021 EUR/GB/month"`.
#[derive(Debug, Clone, PartialEq)]
pub struct Price {
    pub amount: f64,
    pub currency: String,
    /// What it is for, as written: `h`, `GB/month`; empty for an amount as such.
    pub per: String,
}

impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.amount, self.currency)?;
        if self.per.is_empty() { Ok(()) } else { write!(f, "/{}", self.per) }
    }
}

impl FromStr for Price {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Price, UnitError> {
        let wrong = || UnitError {
            message: format!(
                "`{text}` is not an amount of money: write a number, a currency and what it is for, such as \"4000 EUR/h\""
            ),
        };
        let (amount, per) = text.trim().split_once('/').unwrap_or((text.trim(), ""));
        let (number, currency) = split_number(amount).ok_or_else(wrong)?;
        let amount: f64 = number.parse().map_err(|_| wrong())?;
        let per = per.trim();
        let well_formed = currency.len() == 3
            && currency.bytes().all(|byte| byte.is_ascii_uppercase())
            && per.split('/').all(|unit| unit.bytes().all(|byte| byte.is_ascii_alphabetic()))
            && (per.is_empty() || per.split('/').all(|unit| !unit.is_empty()))
            && text.contains('/') != per.is_empty();
        if !well_formed || !amount.is_finite() {
            return Err(wrong());
        }
        Ok(Price { amount, currency: currency.to_owned(), per: per.to_owned() })
    }
}

/// `"5.5 GB"` as `("5.5", "GB")`.
fn split_number(text: &str) -> Option<(&str, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = (text.get(..end)?, text.get(end..)?.trim());
    let digits = number.bytes().filter(u8::is_ascii_digit).count();
    let points = number.len() - digits;
    (digits > 0 && points <= 1 && !number.ends_with('.') && !number.starts_with('.') && !unit.is_empty())
        .then_some((number, unit))
}

/// A decimal number times a factor, exactly; none when it does not fit or is no whole number.
fn decimal_times(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let places = u32::try_from(fraction.len()).ok().filter(|places| *places <= 15)?;
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let scale = 10_u128.pow(places);
    let scaled = digits.checked_mul(u128::from(factor))?;
    (scaled.is_multiple_of(scale)).then(|| u64::try_from(scaled / scale).ok()).flatten()
}
