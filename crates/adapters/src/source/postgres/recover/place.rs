//! Places in a log that were asked for, by their number or by the name of a restore point: from which base they are reached.
//!
//! Invariant: a place that no chain of the vault holds is an error that says what can be had; none is ever replaced by another.

use std::path::Path;

use lifeboat_engine::port::Cancel;
use lifeboat_vault::{PointInfo, Unlocked};

use super::super::facts::Facts;
use super::super::files::{Tree, beside};
use super::super::spool::Which;
use super::scan::{Reading, scan};
use super::{Goal, NEEDED, RecoverError};
use crate::postgres::lsn::Lsn;
use crate::postgres::programs::Programs;
use crate::source::way::{self, ChainError, Way};

/// A chain: its bases, the newest first, and what is known of each that was looked at.
struct Chain(Vec<PointInfo>);

/// Where places are looked for.
pub(super) struct Search<'a> {
    pub(super) vault: &'a Unlocked,
    pub(super) dataset: &'a str,
    /// Beside this, log is laid down that is looked through.
    pub(super) to: &'a Path,
    pub(super) cancel: &'a Cancel,
}

impl Search<'_> {
    /// The way to everything up to and including the record that reaches a place.
    pub(super) fn position(&self, place: Lsn) -> Result<(Way, Goal), RecoverError> {
        let (chains, notes) = self.chains()?;
        for (number, chain) in chains.iter().enumerate() {
            let Some(base) = self.base_before(chain, place)? else { continue };
            let mut way = way::from_base(self.vault, self.dataset, base, Some(place.0))?;
            if way.pieces.last().is_none_or(|last| last.last < place.0) {
                break;
            }
            way.notes.extend(notes);
            way.notes.extend(left_since(number));
            return Ok((way, Goal::UpTo(place)));
        }
        let ranges = self.ranges(&chains);
        Err(RecoverError::NoPlace { place, dataset: self.dataset.to_owned(), ranges })
    }

    /// The way to the restore point of a name.
    pub(super) fn named(&self, name: &str) -> Result<(Way, Goal), RecoverError> {
        let (chains, notes) = self.chains()?;
        for (number, chain) in chains.iter().enumerate() {
            let Some(oldest) = chain.0.last() else { continue };
            let facts = self.facts(oldest)?;
            let (whole, damage) = self.whole_part(oldest)?;
            let which = Which { system: facts.system()?, timeline: facts.timeline, segments: facts.segments()? };
            let runtime = super::super::runtime().map_err(RecoverError::file("make threads for", self.to))?;
            let programs = runtime.block_on(Programs::of_major(facts.major()?, NEEDED))?;
            let directory = beside(self.to, ".lifeboat-scan");
            if let Some(above) = directory.parent() {
                std::fs::create_dir_all(above).map_err(RecoverError::file("make", above))?;
            }
            let reading = Reading { vault: self.vault, which, programs: &programs, directory, cancel: self.cancel };
            let mut marks = scan(&reading, facts.start()?, &whole.pieces)?.marks;
            let stop = facts.stop()?;
            marks.retain(|mark| mark.name == name && mark.at >= stop);
            match (marks.as_slice(), damage) {
                ([], Some(damage)) => return Err(damage.into()),
                ([], None) => {}
                ([mark], _) => {
                    let base = self.base_before(chain, mark.at)?.unwrap_or_else(|| oldest.clone());
                    let mut way = way::from_base(self.vault, self.dataset, base, Some(mark.end.0))?;
                    way.notes.extend(notes);
                    way.notes.extend(left_since(number));
                    return Ok((way, Goal::Record(mark.at)));
                }
                (several, _) => {
                    let places = several.iter().map(|mark| mark.end.to_string()).collect::<Vec<_>>().join(", ");
                    return Err(RecoverError::Ambiguous { name: name.to_owned(), places });
                }
            }
        }
        let (dataset, ranges) = (self.dataset.to_owned(), self.ranges(&chains));
        Err(RecoverError::NoName { name: name.to_owned(), dataset, ranges })
    }

    fn chains(&self) -> Result<(Vec<Chain>, Vec<String>), RecoverError> {
        let (chains, notes) = way::chains(self.vault, self.dataset)?;
        if chains.is_empty() {
            return Err(RecoverError::NoLog { dataset: self.dataset.to_owned() });
        }
        Ok((chains.into_iter().map(Chain).collect(), notes))
    }

    fn facts(&self, point: &PointInfo) -> Result<Facts, RecoverError> {
        Tree::open(self.vault, point)?.facts()
    }

    /// The newest base of a chain whose files are a database by then.
    fn base_before(&self, chain: &Chain, place: Lsn) -> Result<Option<PointInfo>, RecoverError> {
        let begins = |point: &&PointInfo| point.position.as_ref().is_some_and(|position| position.counter <= place.0);
        for point in chain.0.iter().filter(begins) {
            if self.facts(point)?.stop()? <= place {
                return Ok(Some(point.clone()));
            }
        }
        Ok(None)
    }

    /// A chain's log from a base on, to its end or to where it is damaged.
    fn whole_part(&self, base: &PointInfo) -> Result<(Way, Option<ChainError>), RecoverError> {
        match way::from_base(self.vault, self.dataset, base.clone(), None) {
            Ok(way) => Ok((way, None)),
            Err(damage @ ChainError::Damaged { counter, .. }) => {
                let before = Some(counter.saturating_sub(1));
                Ok((way::from_base(self.vault, self.dataset, base.clone(), before)?, Some(damage)))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What can be had, in words: from where to where each chain leads.
    fn ranges(&self, chains: &[Chain]) -> String {
        let range = |chain: &Chain| -> Result<String, RecoverError> {
            let Some(oldest) = chain.0.last() else { return Ok(String::new()) };
            let begin = self.facts(oldest)?.stop()?;
            let (way, damage) = self.whole_part(oldest)?;
            let end = way.pieces.last().map_or(begin, |last| Lsn(last.last));
            let damaged = if damage.is_some() { " (what follows is damaged)" } else { "" };
            Ok(format!("{begin} to {end}{damaged}"))
        };
        let told = chains.iter().rev().map(|chain| range(chain).unwrap_or_else(|error| format!("({error})")));
        told.collect::<Vec<_>>().join(", and from ")
    }
}

/// A chain that another one has taken the place of.
fn left_since(number: usize) -> Option<String> {
    (number > 0).then(|| {
        "the place lies in a chain of the log that a newer one has taken the place of: what was written there after the newer one's \
         beginning never counted"
            .to_owned()
    })
}
