//! Places in a write-ahead log: LSNs, the segment files they lie in, and the switches between timelines.
//!
//! Invariant: nothing here overflows or panics, whatever numbers a server or a file gives.

use std::fmt;
use std::str::FromStr;

/// A place in the write-ahead log, in bytes from the beginning of its history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Lsn(pub(crate) u64);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LsnError {
    #[error("`{0}` is no place in a write-ahead log: one looks like 16/B374D848")]
    Lsn(String),
    #[error("a timeline's history is longer than {HISTORY_BYTES_MAX} bytes")]
    HistoryLength,
    #[error("line {line} of a timeline's history is malformed: it says a timeline, the LSN where it ended, and why")]
    HistoryLine { line: usize },
    #[error("line {line} of a timeline's history goes back: timelines and places only grow")]
    HistoryOrder { line: usize },
}

impl Lsn {
    /// `None` beyond the last place there can be.
    pub(crate) fn checked_add(self, bytes: u64) -> Option<Lsn> {
        self.0.checked_add(bytes).map(Lsn)
    }

    /// Bytes from `earlier` to here; `None` if that is later.
    pub(crate) fn checked_since(self, earlier: Lsn) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl FromStr for Lsn {
    type Err = LsnError;

    fn from_str(text: &str) -> Result<Lsn, LsnError> {
        let half = |text: &str| {
            let fits = (1..=8).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            fits.then(|| u64::from_str_radix(text, 16).ok()).flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Lsn(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| LsnError::Lsn(text.chars().take(40).collect()))
    }
}

/// How the log is cut into files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segments {
    /// `wal_segment_size`: a power of two from 1 MiB to 1 GiB.
    pub(crate) bytes: u64,
}

const SEGMENT_BYTES_MIN: u64 = 1 << 20;
const SEGMENT_BYTES_MAX: u64 = 1 << 30;

impl Segments {
    /// `None` for a size that no server has.
    pub(crate) fn new(bytes: u64) -> Option<Segments> {
        let possible = bytes.is_power_of_two() && (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&bytes);
        possible.then_some(Segments { bytes })
    }

    /// Who made one by hand may have made a wrong one; it is no reason to divide by zero.
    fn bytes(self) -> u64 {
        self.bytes.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX)
    }

    /// Files to each number before the slash.
    fn per_id(self) -> u64 {
        (1 << 32) / self.bytes()
    }

    /// The number of the segment that the byte at `lsn` lies in.
    pub(crate) fn number_of(self, lsn: Lsn) -> u64 {
        lsn.0 / self.bytes()
    }

    /// Where a segment begins; the last place there can be for a number that there cannot be.
    pub(crate) fn start(self, number: u64) -> Lsn {
        Lsn(number.saturating_mul(self.bytes()))
    }

    /// Its file's name: 24 hexadecimal digits.
    pub(crate) fn name(self, timeline: u32, number: u64) -> String {
        format!("{timeline:08X}{:08X}{:08X}", number / self.per_id(), number % self.per_id())
    }

    /// Timeline and number of a whole segment's file; `None` for any other name.
    pub(crate) fn parse(self, name: &str) -> Option<(u32, u64)> {
        let digits = name.len() == 24 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'));
        let part = |range| u64::from_str_radix(name.get(range)?, 16).ok();
        let (timeline, id, rest) = digits.then(|| Some((part(0..8)?, part(8..16)?, part(16..24)?))).flatten()?;
        let timeline = u32::try_from(timeline).ok().filter(|timeline| *timeline > 0)?;
        (rest < self.per_id()).then_some((timeline, id * self.per_id() + rest))
    }
}

/// One line of a timeline's history: `timeline` ended at `at`, where the next one begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Switch {
    pub(crate) timeline: u32,
    pub(crate) at: Lsn,
}

/// A promotion is a line of a hundred bytes; nobody promotes ten thousand times.
const HISTORY_BYTES_MAX: usize = 1 << 20;

/// Reads a `.history` file, oldest timeline first. An empty one is the first timeline's.
pub(crate) fn parse_history(bytes: &[u8]) -> Result<Vec<Switch>, LsnError> {
    if bytes.len() > HISTORY_BYTES_MAX {
        return Err(LsnError::HistoryLength);
    }
    let mut switches: Vec<Switch> = Vec::new();
    for (line, text) in bytes.split(|byte| *byte == b'\n').enumerate().map(|(index, text)| (index + 1, text)) {
        // The reason is in words, in whatever encoding the server had.
        let text = String::from_utf8_lossy(text);
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let mut fields = text.split_ascii_whitespace();
        let timeline = fields.next().and_then(|field| field.parse::<u32>().ok()).filter(|timeline| *timeline > 0);
        let at = fields.next().and_then(|field| field.parse::<Lsn>().ok());
        let (Some(timeline), Some(at)) = (timeline, at) else { return Err(LsnError::HistoryLine { line }) };
        if switches.last().is_some_and(|last| timeline <= last.timeline || at < last.at) {
            return Err(LsnError::HistoryOrder { line });
        }
        switches.push(Switch { timeline, at });
    }
    Ok(switches)
}

/// The name of a timeline's history file.
pub(crate) fn history_name(timeline: u32) -> String {
    format!("{timeline:08X}.history")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn places_read_as_they_are_written() {
        for (text, value) in [("0/0", 0), ("16/B374D848", 0x16_B374_D848), ("FFFFFFFF/FFFFFFFF", u64::MAX)] {
            assert_eq!(text.parse::<Lsn>().unwrap(), Lsn(value));
            assert_eq!(Lsn(value).to_string(), text);
        }
        assert_eq!("0/1a".parse::<Lsn>().unwrap(), Lsn(0x1a));
        for bad in ["", "/", "1", "1/", "/1", "1/2/3", "1/123456789", "-1/2", "+1/2", " 1/2", "1/g", "1/é"] {
            assert_eq!(bad.parse::<Lsn>(), Err(LsnError::Lsn(bad.to_owned())));
        }
        assert_eq!(Lsn(3).checked_since(Lsn(4)), None);
        assert_eq!(Lsn(u64::MAX).checked_add(1), None);
    }

    #[test]
    fn segments_are_named_as_the_server_names_them() {
        let usual = Segments::new(16 << 20).unwrap();
        assert_eq!(usual.name(1, usual.number_of("0/1000000".parse().unwrap())), "000000010000000000000001");
        assert_eq!(usual.name(11, usual.number_of("16/B374D848".parse().unwrap())), "0000000B00000016000000B3");
        assert_eq!(usual.start(usual.number_of("16/B374D848".parse().unwrap())).to_string(), "16/B3000000");
        let large = Segments::new(1 << 30).unwrap();
        assert_eq!(large.name(2, large.number_of("1/C0000000".parse().unwrap())), "000000020000000100000003");
        assert_eq!(large.parse("000000020000000100000004"), None, "a gigabyte's fifth of four");
        for bad in [
            "",
            "00000001000000000000000",
            "0000000100000000000000011",
            "00000000000000000000000G",
            "0000000b0000000000000001",
            "000000000000000000000001",
            "000000010000000000000100",
            "000000010000000000000001.partial",
            "00000001000000000000000é",
        ] {
            assert_eq!(usual.parse(bad), None, "{bad}");
        }
        assert!([0, 1, 1 << 19, 3 << 20, 1 << 31, u64::MAX].iter().all(|bytes| Segments::new(*bytes).is_none()));
    }

    #[test]
    fn a_history_is_read_and_a_malformed_one_is_named_by_its_line() {
        let good = b"# a comment\n\n1\t0/5000000\tno recovery target specified\n  2\t0/5000000\tbefore 2000-01-01 \xff\n10 A/0\n";
        let switch = |timeline, at: &str| Switch { timeline, at: at.parse().unwrap() };
        assert_eq!(parse_history(good).unwrap(), [switch(1, "0/5000000"), switch(2, "0/5000000"), switch(10, "A/0")]);
        assert_eq!(parse_history(b"").unwrap(), []);
        for bad in ["x", "1", "1\t", "0 0/1", "4294967296 0/1", "1 0/", "-1 0/1", "1 5"] {
            let text = format!("# one\n{bad}\n");
            assert_eq!(parse_history(text.as_bytes()), Err(LsnError::HistoryLine { line: 2 }), "{bad}");
        }
        assert_eq!(parse_history(b"2 0/1\n2 0/2"), Err(LsnError::HistoryOrder { line: 2 }));
        assert_eq!(parse_history(b"1 0/2\n2 0/1"), Err(LsnError::HistoryOrder { line: 2 }));
        assert_eq!(parse_history(&vec![b'\n'; HISTORY_BYTES_MAX + 1]), Err(LsnError::HistoryLength));
        assert_eq!(history_name(11), "0000000B.history");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn what_is_written_is_read_back(place in any::<u64>(), timeline in 1u32.., power in 20u32..=30) {
            let segments = Segments::new(1 << power).unwrap();
            let number = segments.number_of(Lsn(place));
            prop_assert_eq!(segments.parse(&segments.name(timeline, number)), Some((timeline, number)));
            prop_assert!(segments.start(number) <= Lsn(place));
            prop_assert_eq!(Lsn(place).to_string().parse::<Lsn>(), Ok(Lsn(place)));
        }

        #[test]
        fn no_text_upsets_a_parser(junk in prop::collection::vec(any::<u8>(), 0..200), bytes in any::<u64>(), number in any::<u64>()) {
            let _ = parse_history(&junk);
            let text = String::from_utf8_lossy(&junk);
            let odd = Segments { bytes };
            let _ = (text.parse::<Lsn>(), odd.parse(&text), odd.start(number), odd.number_of(Lsn(number)), odd.name(1, number));
        }
    }
}
