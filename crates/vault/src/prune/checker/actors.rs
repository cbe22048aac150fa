//! Who acts, and how it went.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::error::{Doing, Result, VaultError};
use crate::open::{HostVault, Vault};
use crate::prune::{FOLD_AFTER, Hand, Held, Rule, Swept};
use crate::{CheckOptions, State};

use super::judge::Owed;
use super::stage::Stepped;
use super::world::{World, append, archiving, back_up, rules};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Actor {
    /// A backup of these chunks, and then perhaps of those; by a host, of a data set.
    Backup(&'static str, &'static str, &'static [&'static [u8]]),
    /// Proposes and performs on the third day, and sweeps three days later.
    Prune,
    /// The same on the first and the fourth day: what the backups store is too young to go, their points are not.
    PruneSoon,
    /// As `Prune`, and puts small packs together from two on.
    Compact,
    /// As `Prune`, but keeps every point and puts away what only points of more than a day ago need.
    Archive,
    /// Proposes and performs on the third day; puts records together from the first on.
    Propose,
    /// Goes on with what another began, on the sixth day.
    GoOn,
    /// Takes back what another proposed.
    Abandon,
    /// Holds alpha's first point.
    Hold,
    /// Freezes the vault, as a host.
    Freeze,
    /// Gives up packs that are bad and were replaced.
    GiveUp,
    /// Appends to the log.
    Append,
}

/// The place, on the stage and in the world, of one actor.
pub(super) struct Part<'a> {
    pub(super) world: &'a World,
    pub(super) stepped: Stepped,
    pub(super) state: &'a Path,
    pub(super) owed: &'a Mutex<Owed>,
    pub(super) rule: Option<Rule>,
}

impl Part<'_> {
    fn host(&self, name: &str) -> Result<HostVault> {
        let state = State::open(&self.state.join(name), None)?;
        let storage = std::sync::Arc::new(self.stepped.clone());
        let vault = HostVault::open(storage, state, Some(&self.world.fingerprint))?;
        vault.take_away(self.rule);
        Ok(vault)
    }

    fn owe(&self, change: impl FnOnce(&mut Owed)) -> Result<()> {
        let promise = || change(&mut self.owed.lock().unwrap_or_else(PoisonError::into_inner));
        self.stepped.promise(promise).doing(|| "promising".to_owned())
    }

    pub(super) fn play(&self, actor: Actor) -> Result<()> {
        match actor {
            Actor::Backup(host, dataset, rounds) => {
                for chunks in rounds {
                    let point = back_up(&self.host(host)?, dataset, chunks)?;
                    self.owe(|owed| owed.points.push(point))?;
                }
                Ok(())
            }
            Actor::Append => {
                let alpha = self.host("alpha")?;
                append(&alpha, 2)?;
                append(&alpha, 1)
            }
            Actor::Freeze => {
                let alpha = self.host("alpha")?;
                alpha.freeze(Hand::Member(alpha.state()), "an incident")
            }
            Actor::Hold => {
                let alpha = self.host("alpha")?;
                let point = "alpha/app/0000000001";
                alpha.take_away(self.rule);
                let placed = alpha.hold(Hand::Member(alpha.state()), &Held::Point(point.to_owned()), None, "a case")?;
                match placed.going.is_empty() && placed.gone.is_empty() {
                    true => self.owe(|owed| owed.held.push(point.to_owned())),
                    false => Ok(()),
                }
            }
            _ => self.prune(actor),
        }
    }

    fn prune(&self, actor: Actor) -> Result<()> {
        let vault = Vault::open(std::sync::Arc::new(self.stepped.clone()), None, Some(&self.world.fingerprint))?;
        vault.take_away(self.rule);
        let unlocked = vault.unlock(std::slice::from_ref(&self.world.owner))?;
        if actor == Actor::GiveUp {
            let report = unlocked.check(CheckOptions { read_data: true })?;
            return unlocked.give_up(&unlocked.bad_packs(&report)?);
        }
        let pruner = unlocked.pruner()?;
        let small_packs = if actor == Actor::Compact { 2 } else { 0 };
        let fold_after = if actor == Actor::Propose { 1 } else { FOLD_AFTER };
        let at = |day: i64| {
            let now = self.stepped.sleep_until(self.world.day(day)).doing(|| "sleeping".to_owned())?;
            let rules = rules(now, small_packs, fold_after);
            Ok::<_, VaultError>(if actor == Actor::Archive { archiving(rules) } else { rules })
        };
        if actor == Actor::Abandon {
            return pruner.abandon().map(|_| ());
        }
        let first = if actor == Actor::PruneSoon { 1 } else { 3 };
        if actor != Actor::GoOn {
            let options = at(first)?;
            let proposed = pruner.propose(&options)?;
            if proposed.is_empty() {
                return Ok(());
            }
            pruner.perform(&proposed, &options)?;
        }
        if actor == Actor::Propose {
            return Ok(());
        }
        match pruner.go_on(&at(first + 3)?)? {
            Swept::Nothing | Swept::Done(_) | Swept::Waits(_) => Ok(()),
        }
    }
}

/// What an actor may be told, that is no fault of anybody's: it is to begin again, or another one was first.
pub(super) fn may_be_told(actor: Actor, error: &VaultError) -> bool {
    match (actor, error) {
        (Actor::Backup(..), VaultError::SessionFailed { why }) => why.starts_with("a prune that began after it took"),
        (Actor::Backup(..) | Actor::Append | Actor::Hold | Actor::Freeze, _) => false,
        (Actor::Abandon, VaultError::Invalid { .. }) => true,
        (Actor::GiveUp, _) => false,
        // Another pruner is at work; the clock went on while it thought; it is frozen; something looks lost, which the next looks at again.
        (_, VaultError::Conflict { .. } | VaultError::Refused { .. } | VaultError::Missing { .. }) => true,
        _ => false,
    }
}
