//! Pruning: what need not be kept goes, in two steps, without locks and without the content key.
//!
//! ```text
//! propose ─▶ proposal N (condemns) ─▶ tombstones ─ ─ at least two days ─ ─▶ looked at again ─▶ sweep N (says what goes) ─▶ deletes ─▶ done N
//! ```
//! Backups go on meanwhile, running, paused or dead. A sweep names how far it looked at every chain of points: whatever a point needs
//! that it saw is never in it. A backup that commits after a sweep holds its references against it and says so in its snapshot. What
//! neither saw is suspect, until the next generation has looked. Invariants: nothing is deleted that no proposal condemned, nor before
//! its time by the storage's own clock; while a kept point needs something that is not there, nothing is deleted at all.

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod checker;
mod compact;
mod fold;
mod hold;
mod keep;
mod ledger;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod lies;
pub(crate) mod live;
mod lock;
mod lock_record;
mod logs;
mod perform;
mod propose;
mod record;
mod tiers;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::crypt::{hex, random};
use crate::error::{Doing, Result, VaultError};
use crate::host::State;
use crate::keys::{self, Pair};
use crate::open::{Unlocked, Vault};
use crate::roster::Role;
use crate::seal::Identity;
use crate::sign::SigningKey;
use crate::storage::StorageError;

pub use self::compact::MoveRules;
pub(crate) use self::fold::newest as newest_fold;
pub(crate) use self::hold::{FREEZE_KIND, HOLD_KIND, check_freeze, check_hold};
pub use self::hold::{Freeze, Hand, Held, Hold, Placed};
pub use self::keep::{Candidate, DISPLACED_HOURS, KeepRules, Limits, Why, decide};
pub(crate) use self::ledger::Ledger;
pub(crate) use self::ledger::read_tombstone;
pub use self::ledger::{Archived, Pruned};
pub use self::lock::{LOCK_DAYS_MAX, LOCK_DAYS_MIN, LOCKS_MAX, LockOptions, LockReport};
pub use self::lock_record::{LockRecord, LockStanding};
pub use self::perform::{LockedObject, OpenPrune, SweepReport, Swept};
pub use self::propose::{PointVerdict, Proposed};
pub(crate) use self::record::{
    Condemned, LogCut, PREFIX as RECORDS, Step, TOMBSTONE_KIND, Tombstone, check_record, check_signer, parse_key,
};
pub use self::tiers::{ARCHIVE_BYTES_MAX, ArchiveRules};

/// How long what is condemned waits at least: as long as the lease of a backup that is at work.
pub const GRACE_HOURS_MIN: i64 = crate::index::LEASE_HOURS;
/// The records of so many finished prunes are put together.
pub const FOLD_AFTER: u64 = 14;
/// Nothing younger is pruned, unless it is told otherwise: a weekend passes before anybody looks.
pub const MIN_AGE_HOURS: i64 = 72;
/// A pruner's own clock and the storage's must agree so far.
const CLOCKS_APART_MINUTES_MAX: i64 = 60;

/// What a prune is to go by.
#[derive(Debug, Clone)]
pub struct PruneOptions {
    /// For every data set that has none of its own.
    pub rules: Option<KeepRules>,
    pub datasets: BTreeMap<String, KeepRules>,
    /// Points (`HOST/DATASET/SEQUENCE`) to prune whatever the rules say.
    pub points: BTreeSet<String>,
    pub min_age: SignedDuration,
    /// How long what is condemned waits; at least `GRACE_HOURS_MIN`.
    pub grace: SignedDuration,
    /// How far back logs reach, by data set; without one, to the data set's oldest point.
    pub log_windows: BTreeMap<String, SignedDuration>,
    /// The same for every data set that has none of its own.
    pub log_window: Option<SignedDuration>,
    /// When what is needed is moved out of packs that hold little of it.
    pub moves: MoveRules,
    /// Which packs are put into another class of storage.
    pub archive: Option<ArchiveRules>,
    /// The records of so many finished prunes are put together.
    pub fold_after: u64,
    /// Go by the times that hosts claim: for a vault that was copied without receipts.
    pub by_claimed_time: bool,
    /// The pruner's own clock, where it is not the system's.
    pub now: Option<Timestamp>,
}

/// Where the proposal of a generation lies.
pub(crate) fn proposal_key(generation: u64) -> String {
    record::key(generation, Step::Proposal)
}

impl Default for PruneOptions {
    fn default() -> PruneOptions {
        PruneOptions {
            rules: None,
            datasets: BTreeMap::new(),
            points: BTreeSet::new(),
            min_age: SignedDuration::from_hours(MIN_AGE_HOURS),
            grace: SignedDuration::from_hours(GRACE_HOURS_MIN),
            log_windows: BTreeMap::new(),
            log_window: None,
            moves: MoveRules::default(),
            archive: None,
            fold_after: FOLD_AFTER,
            by_claimed_time: false,
            now: None,
        }
    }
}

impl PruneOptions {
    fn now(&self) -> Timestamp {
        self.now.unwrap_or_else(Timestamp::now)
    }

    fn rules_of(&self, dataset: &str) -> Option<KeepRules> {
        self.datasets.get(dataset).copied().or(self.rules)
    }

    fn log_window_of(&self, dataset: &str) -> Option<SignedDuration> {
        self.log_windows.get(dataset).copied().or(self.log_window)
    }
}

#[derive(Clone)]
enum Signer {
    Member(State),
    Owner(Arc<SigningKey>),
}

/// Who may prune: it has the refs key, and signs as a pruner on the roster or as the owner. It reads no contents.
#[derive(Clone)]
pub struct Pruner {
    vault: Vault,
    refs: Identity,
    signer: Signer,
}

impl std::fmt::Debug for Pruner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pruner").field("vault", &self.vault).finish_non_exhaustive()
    }
}

impl Vault {
    /// Opens what a pruner needs, as a machine that the roster names as one.
    pub fn pruner(&self, state: &State) -> Result<Pruner> {
        self.refresh()?;
        let roster = self.roster();
        let key = state.signing_key().public();
        if !roster.permits(&key, Role::Pruner) {
            let why = format!(
                "{} ({}) is no pruner on the roster; enrol it as one, or give the owner's key",
                state.host_name(),
                key.fingerprint()
            );
            return Err(VaultError::Refused { what: "pruning".to_owned(), why });
        }
        let stated = keys::stated(&**self.storage(), &roster, Pair::Refs)?
            .ok_or_else(|| VaultError::Missing { object: Pair::Refs.prefix() })?;
        self.check_stated(Pair::Refs, &stated)?;
        let text = keys::open_private(&**self.storage(), Pair::Refs, &stated, std::slice::from_ref(state.index_key()))?;
        let refs: Identity = text.parse()?;
        if refs.recipient().to_string() != roster.refs {
            return Err(VaultError::untrusted(stated.file_key(), "it holds another key than the roster names"));
        }
        Ok(Pruner { vault: self.clone(), refs, signer: Signer::Member(state.clone()) })
    }
}

impl Unlocked {
    /// Opens what a pruner needs, with the owner's key.
    pub fn pruner(&self) -> Result<Pruner> {
        let owner =
            self.owner_key.clone().ok_or_else(|| VaultError::KeyNeeded { what: "the owner's key".to_owned() })?;
        let refs = self.refs.clone().ok_or_else(|| VaultError::KeyNeeded { what: "the refs key".to_owned() })?;
        Ok(Pruner { vault: Vault::clone(self), refs, signer: Signer::Owner(owner) })
    }
}

impl Pruner {
    pub fn vault(&self) -> &Vault {
        &self.vault
    }

    fn is_owner(&self) -> bool {
        matches!(self.signer, Signer::Owner(_))
    }

    fn key(&self) -> &SigningKey {
        match &self.signer {
            Signer::Member(state) => state.signing_key(),
            Signer::Owner(key) => key,
        }
    }

    /// Neither frozen nor told to stop.
    fn check_thawed(&self) -> Result<()> {
        self.vault.check_stop()?;
        let (freeze, findings) = self.vault.frozen()?;
        match freeze {
            // One that cannot be read may say that the vault is frozen.
            None => self::propose::refuse_alarms(&findings),
            Some(freeze) => Err(VaultError::Refused {
                what: "pruning".to_owned(),
                why: format!(
                    "the vault was frozen by {} ({}); the owner lets it go on with `lifeboat vault freeze --release`",
                    freeze.who, freeze.why
                ),
            }),
        }
    }

    /// The storage's own moment: of an object that is put there, looked at, and taken away again. Whoever may not delete learns it here.
    fn storage_now(&self, own: Timestamp) -> Result<Timestamp> {
        let storage = self.vault.storage();
        let key = format!("probe/{}", hex(&random::<16>()));
        storage.put_if_absent(&key, b"a pruner asks for the time").doing(|| format!("writing {key}"))?;
        let listed = storage.list(&key).doing(|| format!("looking for {key}"))?;
        match storage.delete(&key) {
            // A later prune takes it.
            Err(StorageError::Locked { .. }) => {}
            done => done.doing(|| format!("removing {key}, as a pruner must be able to"))?,
        }
        let Some(now) = listed.first().and_then(|object| object.stored_at) else {
            return Err(VaultError::Refused {
                what: "pruning".to_owned(),
                why: format!(
                    "{} does not say when it took an object in, and nothing else is believed",
                    storage.location()
                ),
            });
        };
        if own.duration_since(now).abs() > SignedDuration::from_mins(CLOCKS_APART_MINUTES_MAX) {
            return Err(VaultError::Refused {
                what: "pruning".to_owned(),
                why: format!("this machine's clock says {own}, the storage's {now}; set right the one that is wrong"),
            });
        }
        Ok(now)
    }
}

/// A rule that tests take away, to see that it is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// A sweep looks again at what is needed.
    SweepLooksAgain,
    /// A writer looks for sweeps before it commits.
    WriterLooks,
    /// What neither saw is suspect.
    UnseenIsSuspect,
    /// A sweep looks for points that came since, before each handful of deletions.
    LooksWhileDeleting,
    /// A number that a pruned point bore is not used again.
    NumbersAreNotReused,
    /// A log is cut no further than the oldest point in it needs.
    CutsStopAtPoints,
    /// How far a sweep looked is known of each host's chain apart.
    HeadsOfEachHost,
    /// A sweep looks at what every host's points need.
    SweepLooksAtEveryHost,
    /// What was put on hold while a sweep was decided on stays, too.
    HoldsAreLookedForAgain,
    /// Whoever holds a point looks for sweeps afterwards.
    HoldsTellOfSweeps,
}

impl Vault {
    /// Whether a rule is in force: always, but in tests.
    pub(crate) fn obeys(&self, rule: Rule) -> bool {
        self.taken_away() != Some(rule)
    }
}
