//! Keys on paper: a recovery key, or a share of one, as text that survives being typed.
//!
//! Every line has a checksum of its own, so that a typing error is found where it was made; the whole has one, and the text
//! (age's own, or ours for a share) a third. Invariants: what reads back is what was written, or an error that says where it
//! differs; no message holds a character of a secret.

mod fault;
mod share;
#[cfg(test)]
mod tests;

use std::fmt::Write;

use crate::error::VaultError;
use crate::seal::Identity;

pub use self::fault::{Fault, Slip};
pub use self::share::{Named, Share, combine, split};

/// Characters a line, in groups of `GROUP`.
const LINE: usize = 16;
const GROUP: usize = 4;
const LINE_CHECK: usize = 4;
const WHOLE_CHECK: usize = 6;
/// Bech32's characters: no `1`, `b`, `i` or `o`.
pub(crate) const ALPHABET: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";
const BEGIN: &str = "-----BEGIN KEY ON PAPER-----";
const END: &str = "-----END KEY ON PAPER-----";
/// No page of ours is larger, its drawing included.
pub const PAGE_BYTES_MAX: usize = 4 << 20;

/// What a page holds.
#[derive(Debug, Clone)]
pub enum Secret {
    Key(Identity),
    Share(Share),
}

#[derive(Debug, thiserror::Error)]
pub enum PaperError {
    #[error("there is no key in this text; give the page, the numbered lines on it, or what its QR code says")]
    Nothing,
    #[error("this text is larger than any page of ours")]
    TooLarge,
    #[error("{}", fault::list(faults))]
    Faulty { faults: Vec<Fault> },
    #[error(
        "every line fits its own checksum, but not the checksum of the whole: lines of two pages were mixed; take all of one page"
    )]
    Mixed,
    #[error("the {what} was read without its checksums and is wrong somewhere; type the page's numbered lines instead")]
    Mistyped { what: &'static str },
    #[error("this page is of version {found}, which this lifeboat does not know; use a newer one")]
    Version { found: u8 },
    #[error(
        "a key is split into 2 to {max} shares, any 2 or more of which make it again; not into {shares} with {threshold}"
    )]
    Numbers { shares: usize, threshold: usize, max: usize },
    #[error("{name} belongs to set {set}, {other} to set {other_set}: take shares of one splitting only")]
    OtherSet { name: String, set: String, other: String, other_set: String },
    #[error(
        "{name} and {other} both say they are share {index} of set {set}, and differ: one of them is not what was printed"
    )]
    Contradiction { name: String, other: String, index: u8, set: String },
    #[error("{have} different {} of set {set} here, {need} are needed; any of shares {missing} will do", if *have == 1 { "share" } else { "shares" })]
    TooFew { have: usize, need: usize, set: String, missing: String },
    #[error("{name} says something else about its set than {other}: one of them is not what was printed")]
    Disagreement { name: String, other: String },
    #[error("these shares do not make the key they were made from: {}", fault::forged(odd))]
    Forged { odd: Vec<String> },
    #[error("the library that shares secrets refused")]
    Library {
        #[source]
        source: Box<VaultError>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Key,
    Share,
}

impl Kind {
    /// What stands before the characters that are typed.
    fn head(self) -> &'static str {
        match self {
            Kind::Key => "AGE-SECRET-KEY-1",
            Kind::Share => "LIFEBOAT-SHARE-1",
        }
    }

    fn characters(self) -> usize {
        match self {
            Kind::Key => 58,
            Kind::Share => share::CHARACTERS,
        }
    }

    fn lines(self) -> usize {
        self.characters().div_ceil(LINE)
    }

    fn describe(self) -> &'static str {
        match self {
            Kind::Key => "key",
            Kind::Share => "share",
        }
    }
}

impl Secret {
    fn kind(&self) -> Kind {
        match self {
            Secret::Key(_) => Kind::Key,
            Secret::Share(_) => Kind::Share,
        }
    }

    /// The whole as one word, as a QR code holds it: for a key this is the age identity itself.
    pub fn word(&self) -> String {
        match self {
            Secret::Key(identity) => identity.expose(),
            Secret::Share(share) => share.word(),
        }
    }

    /// The numbered lines with their checksums, between the marks by which they are found on a page.
    pub fn lines(&self) -> String {
        let (kind, word) = (self.kind(), self.word().to_ascii_uppercase());
        let body = word.strip_prefix(kind.head()).unwrap_or(&word);
        let mut text = format!("{BEGIN}\n{}\n", kind.head());
        for (number, piece) in (1..).zip(pieces(body)) {
            let check = check(kind, number, &piece.to_ascii_lowercase(), LINE_CHECK);
            let _ = writeln!(text, "{number:>2}  {:<width$}  {check}", grouped(piece), width = LINE + LINE / GROUP - 1);
        }
        let _ = writeln!(text, "all {}\n{END}", check(kind, 0, &body.to_ascii_lowercase(), WHOLE_CHECK));
        text
    }

    fn from_word(kind: Kind, body: &str) -> Result<Secret, PaperError> {
        let word = format!("{}{}", kind.head(), body.to_ascii_uppercase());
        match kind {
            Kind::Key => word.parse().map(Secret::Key).map_err(|_| PaperError::Mistyped { what: kind.describe() }),
            Kind::Share => Share::parse(&word).map(Secret::Share),
        }
    }
}

fn pieces(body: &str) -> impl Iterator<Item = &str> {
    (0..body.len()).step_by(LINE).filter_map(move |at| body.get(at..body.len().min(at + LINE)))
}

fn grouped(piece: &str) -> String {
    let groups: Vec<&str> =
        (0..piece.len()).step_by(GROUP).filter_map(|at| piece.get(at..piece.len().min(at + GROUP))).collect();
    groups.join(" ")
}

/// The checksum of line `number` (0: of the whole), in upper case.
fn check(kind: Kind, number: usize, text: &str, characters: usize) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("lifeboat 1 checksum of a key on paper");
    hasher.update(kind.head().as_bytes());
    hasher.update(&(number as u64).to_le_bytes());
    hasher.update(text.as_bytes());
    let hash = hasher.finalize();
    let characters = hash.as_bytes().iter().take(characters);
    characters.map(|byte| ALPHABET[usize::from(byte & 31)].to_ascii_uppercase() as char).collect()
}

/// Reads what was printed: a whole page (text or HTML), its numbered lines as somebody typed them, or its QR code's word.
pub fn read(text: &str) -> Result<Secret, PaperError> {
    if text.len() > PAGE_BYTES_MAX {
        return Err(PaperError::TooLarge);
    }
    let block = marked(text);
    let lines: Vec<&str> = block
        .unwrap_or(text)
        .lines()
        .map(|line| line.trim().trim_start_matches("QR-Code:"))
        .filter(|line| !line.is_empty() && !line.starts_with('#') && !line.starts_with("-----"))
        .collect();
    for line in &lines {
        let word: String = line.chars().filter(|c| !c.is_whitespace()).collect::<String>().to_ascii_uppercase();
        for kind in [Kind::Key, Kind::Share] {
            if let Some(body) = word.strip_prefix(kind.head()).filter(|body| body.len() > LINE) {
                let whole = body.len() == kind.characters();
                return if whole {
                    Secret::from_word(kind, body)
                } else {
                    Err(PaperError::Mistyped { what: kind.describe() })
                };
            }
        }
    }
    let typed = Typed::of(&lines);
    if typed.lines.is_empty() {
        return Err(PaperError::Nothing);
    }
    typed.secret()
}

/// Whether one typed line is right by its own checksum, for asking again at once. `number` is the line that was asked for.
pub fn check_line(line: &str, number: usize, is_share: bool) -> Result<(), Fault> {
    let kind = if is_share { Kind::Share } else { Kind::Key };
    let typed = Line::of(line, number);
    if typed.number != number {
        return Err(Fault { line: number, slip: Slip::Numbered { found: typed.number } });
    }
    typed.piece(kind).map(|_| ())
}

/// How many numbered lines a page has.
pub fn line_count(is_share: bool) -> usize {
    if is_share { Kind::Share.lines() } else { Kind::Key.lines() }
}

fn marked(text: &str) -> Option<&str> {
    let (_, after) = text.split_once(BEGIN)?;
    Some(after.split_once(END).map_or(after, |(block, _)| block))
}

/// The numbered lines as somebody typed them.
struct Typed {
    kind: Option<Kind>,
    lines: Vec<Line>,
    whole: Option<String>,
}

struct Line {
    number: usize,
    /// In lower case, without spaces, with what is often mistaken put right; the checksum included.
    text: Vec<char>,
}

impl Line {
    fn of(line: &str, expected: usize) -> Line {
        let mut words = line.split_whitespace().peekable();
        let number = words.peek().and_then(|word| {
            let digits = word.trim_end_matches(['.', ':', ')']);
            (digits.len() <= 2).then(|| digits.parse::<usize>().ok()).flatten()
        });
        if number.is_some() {
            words.next();
        }
        let text = words.flat_map(|word| word.chars().map(unmistaken).collect::<Vec<_>>()).collect();
        Line { number: number.unwrap_or(expected), text }
    }

    /// The line without its checksum, where that fits.
    fn piece(&self, kind: Kind) -> Result<String, Fault> {
        let wanted = if self.number == kind.lines() { kind.characters() - LINE * (kind.lines() - 1) } else { LINE };
        fault::examine(self.number, &self.text, wanted, &|text| {
            check(kind, self.number, text, LINE_CHECK).to_ascii_lowercase()
        })
    }
}

/// What is not among the characters of a key can only be one that looks like it.
fn unmistaken(character: char) -> char {
    match character.to_ascii_lowercase() {
        'o' => '0',
        '1' | 'i' | '|' => 'l',
        other => other,
    }
}

impl Typed {
    fn of(lines: &[&str]) -> Typed {
        let mut typed = Typed { kind: None, lines: Vec::new(), whole: None };
        for line in lines {
            let upper = line.to_ascii_uppercase();
            if upper.starts_with("AGE") && upper.contains('-') {
                typed.kind = Some(Kind::Key);
            } else if upper.starts_with("LIFEBOAT") {
                typed.kind = Some(Kind::Share);
            } else if let Some(rest) = upper.strip_prefix("ALL").filter(|rest| rest.starts_with([' ', ':', '\t'])) {
                let characters = rest.trim_start_matches(':').chars().filter(|c| !c.is_whitespace());
                typed.whole = Some(characters.map(unmistaken).collect());
            } else {
                typed.lines.push(Line::of(line, typed.lines.len() + 1));
            }
        }
        typed
    }

    /// The kind that was typed, or else the one that more lines fit.
    fn kind(&self) -> Kind {
        let fitting = |kind| self.lines.iter().filter(|line| line.piece(kind).is_ok()).count();
        self.kind.unwrap_or(if fitting(Kind::Share) > fitting(Kind::Key) { Kind::Share } else { Kind::Key })
    }

    fn secret(&self) -> Result<Secret, PaperError> {
        let kind = self.kind();
        let mut pieces: Vec<Option<String>> = vec![None; kind.lines()];
        let mut faults = Vec::new();
        for line in &self.lines {
            let number = line.number;
            let Some(place) = number.checked_sub(1).and_then(|at| pieces.get_mut(at)) else {
                faults.push(Fault { line: number, slip: Slip::NoSuchLine { lines: kind.lines() } });
                continue;
            };
            match line.piece(kind) {
                Ok(piece) if place.as_ref().is_some_and(|there| *there != piece) => {
                    faults.push(Fault { line: number, slip: Slip::Twice });
                }
                Ok(piece) => *place = Some(piece),
                Err(fault) => faults.push(fault),
            }
        }
        for (number, piece) in (1..).zip(&pieces) {
            if piece.is_none() && !faults.iter().any(|fault| fault.line == number) {
                faults.push(Fault { line: number, slip: Slip::Missing });
            }
        }
        if !faults.is_empty() {
            faults.sort_by_key(|fault| fault.line);
            return Err(PaperError::Faulty { faults });
        }
        let body: String = pieces.into_iter().flatten().collect();
        let wanted = check(kind, 0, &body, WHOLE_CHECK).to_ascii_lowercase();
        match &self.whole {
            None => Err(PaperError::Faulty { faults: vec![Fault { line: 0, slip: Slip::Missing }] }),
            Some(given) if *given == wanted => Secret::from_word(kind, &body),
            Some(given) if fault::differ_once(given, &wanted) || given.len() != wanted.len() => {
                Err(PaperError::Faulty { faults: vec![Fault { line: 0, slip: Slip::InChecksum { character: None } }] })
            }
            Some(_) => Err(PaperError::Mixed),
        }
    }
}
