//! How a standby begins: with what a former primary left here, rewound, or with a base backup from the vault, over what is there.
//!
//! Invariant: what only a former primary has is written down before anything is made of its clone. The copy counts as whole when a base
//! backup was laid down over all of it, or when what was rewound has become a database.

use std::time::{Duration, Instant};

use lifeboat_engine::port::Cancel;
use lifeboat_vault::Position;

use super::super::facts::Facts;
use super::super::files::{Signal, Tree};
use super::super::former::Former;
use super::super::recover::{NEEDED, RecoverError};
use super::super::rewind::{Rewind, Unfit};
use super::{Follower, LOOK_EVERY, Record, end, exists, wait};
use crate::postgres::lsn::Lsn;
use crate::postgres::programs::Programs;
use crate::source::in_full;
use crate::source::way::{self, Onward, Way};

/// Until the vault has what the writer's server had a moment ago; it ships ten times a second.
const SHIPPED_WITHIN: Duration = Duration::from_secs(10);

/// What a former primary was good for.
enum Begun {
    /// There is none, or it was dealt with before.
    Nothing,
    /// Its clone is in place; if it parted from what is followed, then why it was not rewound.
    Cloned(Option<String>),
    /// In words, what was done.
    Rewound(String),
}

impl Follower {
    /// Begins anew: where a former primary's clone cannot be rewound, with a base backup, of which only what differs is written.
    pub(super) fn start_from(&mut self, way: &mut Way, cancel: &Cancel) -> Result<(), RecoverError> {
        self.following = None;
        self.tail = None;
        end(&self.work)?;
        self.record.whole = false;
        self.write_record()?;
        let tree = Tree::open(&self.vault, &way.base)?;
        let facts = tree.facts()?;
        // What this host lacks is said before anything is written.
        let programs = self.runtime.block_on(Programs::of_major(facts.major()?, NEEDED))?;
        let begun = self.begin_with_former(&programs, &facts, way, cancel)?;
        self.record.came = match begun {
            Begun::Rewound(told) => {
                tracing::info!(dataset = self.dataset, told, "a former primary is a standby now");
                Some(told)
            }
            Begun::Nothing | Begun::Cloned(_) => {
                let laid = tree.lay(&self.work, &self.to, &facts, Signal::Standby, &(), cancel)?;
                for note in laid.notes {
                    tracing::info!(dataset = self.dataset, note, "a base backup was laid down");
                }
                self.record = self.begun(&facts, way);
                match begun {
                    Begun::Cloned(Some(why)) => Some(format!("a base backup was laid over it: {why}")),
                    _ => None,
                }
            }
        };
        self.record.whole = true;
        self.write_record()
    }

    /// What is known of what begins with a base, or with what goes on like it; not whole yet.
    fn begun(&self, facts: &Facts, way: &Way) -> Record {
        Record {
            dataset: self.dataset.clone(),
            whole: false,
            facts: Some(facts.clone()),
            point: Some(way.base.id.clone()),
            position: way.base.position.clone(),
            epoch: way.base.epoch,
            applied_to: None,
            is_final: false,
            promoting: false,
            former: self.record.former.clone(),
            came: None,
        }
    }

    /// A former primary's directory, set aside here, is the most of what is needed, without having to be fetched.
    fn begin_with_former(
        &mut self,
        programs: &Programs,
        facts: &Facts,
        way: &mut Way,
        cancel: &Cancel,
    ) -> Result<Begun, RecoverError> {
        let Some(former) = self.runtime.block_on(Former::beside(&self.to, programs, facts))? else {
            return Ok(Begun::Nothing);
        };
        // Where it was not known yet that the timelines parted, its clone is there, and nothing of what only it has was told.
        let parted_at = former.parted_at(facts)?;
        let is_done = parted_at.is_none() || self.record.former.as_ref() == Some(&former.name());
        if exists(&self.work)? && is_done {
            return Ok(Begun::Nothing);
        }
        let Some(parted_at) = parted_at else {
            former.copy(&self.work, cancel)?.name(&self.work)?;
            return Ok(Begun::Cloned(None));
        };
        let rewind = self.prepare(&former, programs, facts, (parted_at, way), cancel)?;
        let clone = former.copy(&self.work, cancel)?;
        let tell = async { former.tell_lost(programs, clone.path(), facts, parted_at, rewind.is_ok()).await };
        self.say_lost(&former, wait(&self.runtime, cancel, None, tell))?;
        let rewound = match &rewind {
            Ok(rewind) => rewind.run(clone.path(), &self.runtime, cancel)?,
            Err(_) => Ok(Lsn(0)),
        };
        end(clone.path())?;
        clone.name(&self.work)?;
        self.record.former = Some(former.name());
        self.write_record()?;
        let outcome = match (rewind, rewound) {
            (Err(unfit), _) | (Ok(_), Err(unfit)) => Err(unfit),
            (Ok(rewind), Ok(needed)) => self.try_out(facts, way, needed, cancel)?.map(|()| rewind.told()),
        };
        Ok(match outcome {
            Ok(told) => Begun::Rewound(told),
            Err(unfit) => {
                let (aside, why) = (former.path().display(), in_full(&unfit));
                tracing::warn!(dataset = self.dataset, %aside, why, "what was set aside is not rewound");
                Begun::Cloned(Some(format!("{} was not rewound: {why}", former.name())))
            }
        })
    }

    /// Looks for what stands in the way of rewinding.
    fn prepare<'a>(
        &self,
        former: &'a Former,
        programs: &Programs,
        facts: &'a Facts,
        (parted_at, way): (Lsn, &Way),
        cancel: &Cancel,
    ) -> Result<Result<Rewind<'a>, Unfit>, RecoverError> {
        if way.base.position.is_none() {
            return Ok(Err(Unfit::NoStream));
        }
        let service = self.from.as_ref().map(|from| from.service.as_str());
        let asked = async { Ok(Rewind::prepare(former, facts, parted_at, service).await) };
        let rewind = match wait(&self.runtime, cancel, None, asked)? {
            Ok(rewind) => rewind,
            Err(unfit) => return Ok(Err(unfit)),
        };
        match former.reaches(programs, facts, parted_at, cancel) {
            Ok(true) => Ok(Ok(rewind)),
            Ok(false) => Ok(Err(Unfit::Ends(parted_at))),
            Err(error) => Unfit::unless_cancelled(error).map(Err),
        }
    }

    /// Starts a server over what was rewound, which must become a database with what the vault has: no writer that is lost meanwhile may
    /// leave a standby that never can.
    fn try_out(
        &mut self,
        facts: &Facts,
        way: &mut Way,
        needed: Lsn,
        cancel: &Cancel,
    ) -> Result<Result<(), Unfit>, RecoverError> {
        if !self.extend(way, needed, cancel)? {
            return Ok(Err(Unfit::VaultBehind(needed)));
        }
        self.record = self.begun(facts, way);
        let onward = Onward { pieces: way.pieces.clone(), ..Onward::default() };
        match self.start_server(&onward, cancel) {
            Ok(()) => Ok(Ok(())),
            Err(RecoverError::Cancelled) => Err(RecoverError::Cancelled),
            Err(error) => {
                end(&self.work)?;
                Ok(Err(Unfit::NoDatabase(Box::new(error))))
            }
        }
    }

    /// Waits, not for long, until the vault has the log up to a place.
    fn extend(&self, way: &mut Way, needed: Lsn, cancel: &Cancel) -> Result<bool, RecoverError> {
        let until = Instant::now() + SHIPPED_WITHIN;
        loop {
            let Some(position) = &way.base.position else { return Ok(false) };
            let end = way.pieces.last().map_or(position.counter, |last| last.last);
            if end >= needed.0 {
                return Ok(true);
            }
            let Some(tail) = way.tail.clone().filter(|_| Instant::now() < until) else { return Ok(false) };
            let given = Position { counter: end.max(tail.last), ..position.clone() };
            let Onward { pieces, reaches, is_final, tail } = way::appended(&self.vault, &self.dataset, &given, &tail)?;
            way.pieces.extend(pieces);
            way.reaches = reaches.map_or(way.reaches, |reaches| reaches.max(way.reaches));
            (way.is_final, way.tail) = (way.is_final || is_final, tail);
            if cancel.is_cancelled() {
                return Err(RecoverError::Cancelled);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Tells what only the directory set aside has.
    fn say_lost(
        &self,
        former: &Former,
        lost: Result<Option<super::super::former::Lost>, RecoverError>,
    ) -> Result<(), RecoverError> {
        let aside = former.path().display();
        match lost {
            Ok(None) => {
                tracing::info!(dataset = self.dataset, %aside, "what was set aside holds no commit that is not in the vault")
            }
            Ok(Some(lost)) => tracing::warn!(
                dataset = self.dataset,
                %aside,
                file = %lost.file.display(),
                commits = lost.commits,
                rows = lost.rows,
                deletes = lost.deletes,
                "what was set aside holds commits that are nowhere else: their rows are written down"
            ),
            Err(RecoverError::Cancelled) => return Err(RecoverError::Cancelled),
            // It stays where it is: nothing of it is lost by going on.
            Err(error) => tracing::warn!(
                dataset = self.dataset,
                %aside,
                error = in_full(&error),
                "what only the directory set aside has could not be written down; it is kept"
            ),
        }
        Ok(())
    }
}
