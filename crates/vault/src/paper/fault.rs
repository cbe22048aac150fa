//! Where a typed line differs from what was printed.
//!
//! Invariant: a fault says where to look and never what stands there.

use std::fmt;

use super::{ALPHABET, GROUP, LINE_CHECK};

/// What is wrong with one line. Line 0 is the last one, the checksum of the whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub line: usize,
    pub slip: Slip,
}

/// Characters are counted from 1, without spaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slip {
    Missing,
    Twice,
    NoSuchLine {
        lines: usize,
    },
    Numbered {
        found: usize,
    },
    /// One character is wrong.
    Wrong {
        character: usize,
    },
    /// Two neighbours changed places.
    Swapped {
        character: usize,
    },
    /// One was left out here.
    LeftOut {
        character: usize,
    },
    /// One is too many.
    TooMany {
        character: usize,
    },
    /// The checksum itself was mistyped.
    InChecksum {
        character: Option<usize>,
    },
    Length {
        found: usize,
        wanted: usize,
    },
    /// More than one thing is wrong.
    Several,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str("the last line (all …)")?,
            line => write!(f, "line {line}")?,
        }
        let group = |character: &usize| (character - 1) / GROUP + 1;
        match &self.slip {
            Slip::Missing => f.write_str(" is missing"),
            Slip::Twice => f.write_str(" is there twice, and differs"),
            Slip::NoSuchLine { lines } => write!(f, ": the page has {lines} numbered lines only"),
            Slip::Numbered { found } => write!(f, " was asked for, and this is numbered {found}"),
            Slip::Wrong { character } => write!(f, ": character {character} (in group {}) is wrong", group(character)),
            Slip::Swapped { character } => {
                write!(f, ": characters {character} and {} (in group {}) are swapped", character + 1, group(character))
            }
            Slip::LeftOut { character } => {
                write!(f, ": a character was left out at {character} (in group {})", group(character))
            }
            Slip::TooMany { character } => {
                write!(f, ": character {character} (in group {}) is one too many", group(character))
            }
            Slip::InChecksum { character: Some(character) } => {
                write!(f, ": character {character} of its checksum is wrong")
            }
            Slip::InChecksum { character: None } => f.write_str(": the checksum itself is mistyped"),
            Slip::Length { found, wanted } => write!(f, " has {found} characters, {wanted} belong there"),
            Slip::Several => f.write_str(" is wrong in more than one place: type it anew"),
        }
    }
}

pub(super) fn list(faults: &[Fault]) -> String {
    let texts: Vec<String> = faults.iter().map(Fault::to_string).collect();
    format!("it was not typed as it was printed: {}", texts.join("; "))
}

pub(super) fn forged(odd: &[String]) -> String {
    match odd {
        [] => "one of them is not what was printed; with one share more it can be said which".to_owned(),
        odd => format!(
            "{} {} not what was printed; leave it out",
            odd.join(", "),
            if odd.len() == 1 { "is" } else { "are" }
        ),
    }
}

/// The line's `wanted` characters, where what follows them is their checksum; or the one slip that explains it.
pub(super) fn examine(
    line: usize,
    typed: &[char],
    wanted: usize,
    check: &dyn Fn(&str) -> String,
) -> Result<String, Fault> {
    let fits = |body: &[char], sum: &[char]| {
        let body: String = body.iter().collect();
        check(&body).chars().eq(sum.iter().copied())
    };
    let fault = |slip| Err(Fault { line, slip });
    let whole = wanted + LINE_CHECK;
    // Nobody's line: nothing is tried on it.
    if typed.len() + 1 < whole || typed.len() > whole + 1 {
        return fault(Slip::Length { found: typed.len(), wanted: whole });
    }
    let one = |place: usize, slip: fn(usize) -> Slip| fault(slip(place + 1));
    if typed.len() == whole {
        let (body, sum) = typed.split_at(wanted);
        if fits(body, sum) {
            return Ok(body.iter().collect());
        }
        if let Some(place) = single_difference(&check(&body.iter().collect::<String>()), sum) {
            return fault(Slip::InChecksum { character: Some(place + 1) });
        }
        if let Some(place) = substituted(body).find(|(_, candidate)| fits(candidate, sum)).map(|(place, _)| place) {
            return one(place, |character| Slip::Wrong { character });
        }
        for place in 0..body.len().saturating_sub(1) {
            let mut candidate = body.to_vec();
            candidate.swap(place, place + 1);
            if fits(&candidate, sum) {
                return one(place, |character| Slip::Swapped { character });
            }
        }
        return fault(Slip::Several);
    }
    let short = typed.len() < whole;
    let (body, sum) = typed.split_at(typed.len() - LINE_CHECK);
    for place in 0..body.len() + usize::from(short) {
        let mut candidate = body.to_vec();
        if !short {
            candidate.remove(place);
            if fits(&candidate, sum) {
                return one(place, |character| Slip::TooMany { character });
            }
            continue;
        }
        candidate.insert(place, ' ');
        for letter in ALPHABET {
            candidate[place] = *letter as char;
            if fits(&candidate, sum) {
                return one(place, |character| Slip::LeftOut { character });
            }
        }
    }
    fault(Slip::Length { found: typed.len(), wanted: whole })
}

fn substituted(body: &[char]) -> impl Iterator<Item = (usize, Vec<char>)> + '_ {
    (0..body.len()).flat_map(move |place| {
        ALPHABET.iter().map(move |letter| {
            let mut candidate = body.to_vec();
            if let Some(at) = candidate.get_mut(place) {
                *at = *letter as char;
            }
            (place, candidate)
        })
    })
}

fn single_difference(wanted: &str, given: &[char]) -> Option<usize> {
    let mut places = wanted.chars().zip(given).enumerate().filter(|(_, (wanted, given))| wanted != *given);
    match (places.next(), places.next()) {
        (Some((place, _)), None) => Some(place),
        _ => None,
    }
}

pub(super) fn differ_once(given: &str, wanted: &str) -> bool {
    single_difference(wanted, &given.chars().collect::<Vec<_>>()).is_some()
}
