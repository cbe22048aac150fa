//! Putting packs that only old points need into another class of storage, and saying so.
//!
//! ```text
//! packs that no young and no newest point needs ─▶ proposal ─ ─ two days ─ ─▶ looked at again ─▶ sweep (says what lies where) ─▶ put there
//! ```
//! The same bytes stay under the same name, so that no index changes. From the proposal on no backup builds on such a pack: it stores anew
//! what is in it, and its points can be restored at once. Invariants: nothing that the newest sound point of a row needs is put away; a
//! pack whose bytes are not what its name says is left where it is; the word that something lies there comes before it does.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

use crate::codec::Hash;
use crate::crypt::{hex, random};
use crate::error::{Doing, Result, VaultError};
use crate::finding::Finding;
use crate::name;
use crate::open::Vault;
use crate::prune::keep::Why;
use crate::prune::ledger::Ledger;
use crate::prune::live::{self, Needed, Survey};
use crate::prune::logs::side_by_side;
use crate::prune::propose::{Known, PointVerdict};
use crate::prune::record::Tier;
use crate::prune::{PruneOptions, Pruner};
use crate::refs;
use crate::snapshot::{Badge, Snapshot};
use crate::storage::StorageError;

/// So many packs between two looks at the freeze and at new points.
const PACKS_PER_LOOK: usize = 16;
/// A pause for the pace is cut into pieces, so that a stop is noticed.
const NAP: Duration = Duration::from_millis(50);

/// When packs are put into another class, and into which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveRules {
    /// The storage's own word for it: `DEEP_ARCHIVE`.
    pub class: String,
    /// How long it takes until what lies there can be read; zero: at once.
    pub thaw: SignedDuration,
    /// By data set: how old a point is before it may wait to be restored. What is not here stays at hand.
    pub after: BTreeMap<String, SignedDuration>,
    /// The same for every data set that has none of its own.
    pub after_all: Option<SignedDuration>,
    pub bytes_per_second: Option<u64>,
    /// No more than this is put away in one prune.
    pub bytes_max: u64,
}

/// Without being told, so much in one prune.
pub const ARCHIVE_BYTES_MAX: u64 = 256 << 30;

impl ArchiveRules {
    fn after(&self, dataset: &str) -> Option<SignedDuration> {
        self.after.get(dataset).copied().or(self.after_all)
    }

    /// Whether a point that came then is old enough.
    fn is_old(&self, dataset: &str, received: Timestamp, now: Timestamp) -> bool {
        self.after(dataset).is_some_and(|after| now.duration_since(received) >= after)
    }
}

/// What is to be put away.
#[derive(Debug, Clone, Default)]
pub(super) struct TierPlan {
    pub(super) tiers: Vec<Tier>,
    pub(super) packs: u64,
    pub(super) bytes: u64,
}

/// The points that must be at hand: young ones, and of each row the newest and the newest that is sound.
pub(super) fn hot<'a>(
    known: &'a [Known],
    verdicts: &'a [PointVerdict],
    rules: &ArchiveRules,
    now: Timestamp,
) -> impl Iterator<Item = &'a Snapshot> {
    let newest = |why: &Why| matches!(why, Why::Newest | Why::NewestSound | Why::NewestVerified);
    let rules = rules.clone();
    let stays = known.iter().zip(verdicts).filter(|(_, verdict)| !verdict.kept.is_empty());
    let must = stays.filter(move |(known, verdict)| {
        verdict.kept.iter().any(newest) || !rules.is_old(&known.info.dataset, known.received.0, now)
    });
    must.map(|(known, _)| &*known.snapshot)
}

impl TierPlan {
    /// Chooses among packs that stay, oldest first. `goes`: packs that go, or are moved.
    pub(super) fn of(
        (rules, place): (&ArchiveRules, &str),
        survey: &Survey,
        ledger: &Ledger,
        goes: &dyn Fn(&str) -> bool,
        lease: Timestamp,
    ) -> TierPlan {
        let mut cold: Vec<(Timestamp, Hash, u64)> = Vec::new();
        let named: BTreeSet<Hash> = survey.indexes.iter().flat_map(|index| index.packs.iter().copied()).collect();
        for hash in named {
            let key = name::pack(&hash.0);
            let Some(pack) = survey.packs.get(&key).filter(|pack| pack.live_bytes > 0 && !pack.is_hot) else {
                continue;
            };
            let Some(touched) = pack.touched.filter(|at| *at < lease) else { continue };
            if !goes(&key) && ledger.laid(&hash).is_none() {
                cold.push((touched, hash, pack.bytes));
            }
        }
        cold.sort_unstable();
        let mut plan = TierPlan::default();
        let mut packs = Vec::new();
        for (_, hash, bytes) in cold {
            if plan.bytes.saturating_add(bytes) > rules.bytes_max {
                break;
            }
            plan.packs += 1;
            plan.bytes += bytes;
            packs.push((hash, bytes));
        }
        if !packs.is_empty() {
            packs.sort_unstable();
            let thaw_seconds = u64::try_from(rules.thaw.as_secs()).unwrap_or(0);
            let (place, class) = (place.to_owned(), rules.class.clone());
            plan.tiers.push(Tier { place, class, thaw_seconds, packs, points: Vec::new() });
        }
        plan
    }
}

/// Of one row of points.
#[derive(Default)]
struct Newest {
    any: Option<usize>,
    sound: Option<usize>,
}

/// What was put away.
#[derive(Debug, Default)]
pub(super) struct PutAway {
    pub(super) packs: u64,
    pub(super) bytes: u64,
    /// Keys of what was left where it is.
    pub(super) kept: Vec<String>,
    pub(super) findings: Vec<Finding>,
}

impl Pruner {
    /// Where this storage's classes are; fails by name where it has none.
    pub(super) fn class_place(&self) -> Result<String> {
        let storage = self.vault.storage();
        storage.class_place().ok_or_else(|| VaultError::Refused {
            what: "archiving".to_owned(),
            why: StorageError::NoClasses { location: storage.location() }.to_string(),
        })
    }

    /// Has the storage show that it knows the class, by an object of a few bytes.
    pub(super) fn try_class(&self, class: &str) -> Result<()> {
        let storage = self.vault.storage();
        let key = format!("probe/{}", hex(&random::<16>()));
        let doing = || format!("trying whether the storage knows the class {class}");
        storage.put_in_class(&key, b"a pruner asks for a class of storage".to_vec(), class).doing(doing)?;
        let found = storage.class_of(&key).doing(doing)?;
        storage.delete(&key).doing(|| format!("removing {key}"))?;
        check_class(class, found.as_deref(), &storage.location())
    }

    /// The points of now that must be at hand, when everything is looked at again.
    pub(super) fn hot_again(
        &self,
        known: &[Known],
        seen: &dyn Fn(&str) -> u64,
        options: &PruneOptions,
        now: Timestamp,
    ) -> Result<Needed> {
        let mut rows: BTreeMap<(&str, &str), Newest> = BTreeMap::new();
        for (place, known) in known.iter().enumerate() {
            let host = if known.info.epoch == 0 { known.info.host.as_str() } else { "" };
            let newest = rows.entry((known.info.dataset.as_str(), host)).or_default();
            newest.any = Some(place);
            let is_sound =
                matches!(known.info.badge, Badge::Verified | Badge::Unverified) && known.info.doubts.is_empty();
            newest.sound = if is_sound { Some(place) } else { newest.sound };
        }
        let newest: HashSet<usize> = rows.values().flat_map(|newest| [newest.any, newest.sound]).flatten().collect();
        let must = known.iter().enumerate().filter(|(place, known)| {
            let head = &known.snapshot.head;
            let is_new = head.sequence > seen(&name::snapshots_of(&head.host, &head.dataset));
            let is_young =
                options.archive.as_ref().is_some_and(|rules| !rules.is_old(&known.info.dataset, known.received.0, now));
            newest.contains(place) || is_new || is_young
        });
        Needed::of(&self.vault, &self.refs, must.map(|(_, known)| &*known.snapshot))
    }

    /// What lies where from now on, and which points cannot be restored without: packs that are proposed, as far as they may still go,
    /// and those that went before.
    pub(super) fn tiers_again(
        &self,
        proposed: &[Tier],
        survivors: &[&Snapshot],
        needed: &Needed,
        survey: &Survey,
        goes: &HashSet<String>,
    ) -> Result<Vec<Tier>> {
        let ledger = self.vault.ledger()?;
        let mut tiers: Vec<Tier> = Vec::new();
        let stays = |hash: &Hash| {
            let key = name::pack(&hash.0);
            (!goes.contains(&key)).then(|| survey.packs.get(&key)).flatten()
        };
        let may_go =
            |(hash, bytes): &&(Hash, u64)| stays(hash).is_some_and(|pack| !pack.is_hot && pack.bytes == *bytes);
        for tier in proposed {
            let packs: Vec<(Hash, u64)> = tier.packs.iter().filter(may_go).copied().collect();
            tiers.push(Tier { packs, points: Vec::new(), ..tier.clone() });
        }
        for laid in ledger.tiers_here() {
            if !tiers.iter().any(|tier| tier.place == laid.place && tier.class == laid.class) {
                let (place, class, thaw_seconds) = (laid.place.clone(), laid.class.clone(), laid.thaw_seconds);
                tiers.push(Tier { place, class, thaw_seconds, packs: Vec::new(), points: Vec::new() });
            }
        }
        // Everything that lies in a class by then, and in which.
        let mut packs: Vec<(usize, u64)> = Vec::new();
        let mut cold: HashMap<Hash, u32> = HashMap::new();
        for (class, tier) in tiers.iter().enumerate() {
            let before = ledger.tiers_here().filter(|laid| laid.place == tier.place && laid.class == tier.class);
            let before = before.flat_map(|laid| laid.packs.iter().map(|(hash, bytes)| (*hash, *bytes)));
            for (hash, bytes) in before.chain(tier.packs.iter().copied()).filter(|(hash, _)| stays(hash).is_some()) {
                cold.insert(hash, packs.len() as u32);
                packs.push((class, bytes));
            }
        }
        if cold.is_empty() {
            return Ok(Vec::new());
        }
        let lies_only_in = live::only_in(&self.vault, &self.refs, needed, survey, &cold)?;
        for (snapshot, of_it) in self.packs_of_points(survivors, needed, &lies_only_in)? {
            let mut sums: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
            for (class, bytes) in of_it.iter().filter_map(|pack| packs.get(*pack as usize)) {
                let sum = sums.entry(*class).or_default();
                *sum = (sum.0 + 1, sum.1 + bytes);
            }
            for (class, (count, bytes)) in sums {
                if let Some(tier) = tiers.get_mut(class) {
                    tier.points.push((snapshot.to_owned(), count, bytes));
                }
            }
        }
        Ok(tiers)
    }

    /// For each point the packs that it cannot do without. Pages that many points share are looked at once.
    fn packs_of_points<'a>(
        &self,
        points: &[&'a Snapshot],
        needed: &Needed,
        lies_only_in: &[Option<u32>],
    ) -> Result<BTreeMap<&'a str, BTreeSet<u32>>> {
        let mut sets: BTreeMap<(&str, &str), BTreeSet<Hash>> = BTreeMap::new();
        for point in points {
            sets.entry((&point.head.host, &point.head.dataset)).or_default().insert(point.head.refs);
        }
        let mut packs: BTreeMap<(&str, &str, Hash), BTreeSet<u32>> = BTreeMap::new();
        for ((host, dataset), wanted) in sets {
            self.vault.check_stop()?;
            let (storage, roster) = (&**self.vault.storage(), self.vault.roster());
            let mut numbers: HashMap<Hash, u32> = HashMap::new();
            let mut rows: HashMap<Hash, Vec<u32>> = HashMap::new();
            let mut pages: HashMap<Hash, BTreeSet<u32>> = HashMap::new();
            let mut row = |point: &Hash, page: &Hash| {
                let next = numbers.len() as u32;
                rows.entry(*point).or_default().push(*numbers.entry(*page).or_insert(next));
            };
            let mut take = |page: &Hash, id| {
                if let Some(pack) = needed.place(&id).and_then(|place| *lies_only_in.get(place)?) {
                    pages.entry(*page).or_default().insert(pack);
                }
            };
            let keys = std::slice::from_ref(&self.refs);
            refs::read_pages(storage, &roster, (host, dataset), &wanted, keys, &mut row, &mut take)?;
            let by_number: HashMap<u32, BTreeSet<u32>> =
                pages.into_iter().filter_map(|(page, packs)| Some((*numbers.get(&page)?, packs))).collect();
            for (point, row) in rows {
                let of_it = row.iter().filter_map(|page| by_number.get(page)).flatten().copied().collect();
                packs.insert((host, dataset, point), of_it);
            }
        }
        let of_point = |point: &&'a Snapshot| {
            let head = &point.head;
            let of_it = packs.get(&(head.host.as_str(), head.dataset.as_str(), head.refs))?;
            (!of_it.is_empty()).then(|| (point.key.as_str(), of_it.clone()))
        };
        Ok(points.iter().filter_map(of_point).collect())
    }

    /// Puts the packs of a sweep where it says, several at a time. `needed`: asks which of them a point needs that came since.
    pub(super) fn put_away(
        &self,
        tiers: &[Tier],
        options: &PruneOptions,
        needed: &dyn Fn() -> Result<HashSet<String>>,
    ) -> Result<PutAway> {
        let mut done = PutAway::default();
        let pace = Pace::new(options.archive.as_ref().and_then(|rules| rules.bytes_per_second));
        let storage = self.vault.storage();
        for tier in tiers.iter().filter(|tier| storage.class_place().as_ref() == Some(&tier.place)) {
            for some in tier.packs.chunks(PACKS_PER_LOOK) {
                self.check_thawed()?;
                let needed = needed()?;
                let (late, some): (Vec<_>, Vec<_>) =
                    some.iter().map(|(hash, _)| name::pack(&hash.0)).partition(|key| needed.contains(key));
                done.kept.extend(late);
                let put = side_by_side(storage.parallel_writes(), &some, |key| self.put_one(key, &tier.class, &pace));
                for (key, put) in some.iter().zip(put?) {
                    match put {
                        Put::There => {}
                        Put::Away(bytes) => {
                            done.packs += 1;
                            done.bytes += bytes;
                        }
                        Put::Left(finding) => {
                            done.kept.push(key.clone());
                            done.findings.extend(finding);
                        }
                    }
                }
            }
        }
        Ok(done)
    }

    fn put_one(&self, key: &str, class: &str, pace: &Pace) -> Result<Put> {
        self.vault.check_stop()?;
        let storage = self.vault.storage();
        let bytes = match storage.class_of(key) {
            // An earlier run has done it.
            Ok(Some(found)) if found == class => return Ok(Put::There),
            Ok(_) => storage.get(key),
            Err(error) => Err(error),
        };
        let bytes = match bytes {
            Err(StorageError::Archived { .. }) => return Ok(Put::There),
            Err(error) if error.is_not_found() => return Ok(Put::Left(None)),
            other => other.doing(|| format!("reading {key}"))?,
        };
        if name::pack(&crate::crypt::hash(&bytes)) != key {
            let error = VaultError::damaged(key, "its bytes are not what its name says");
            return Ok(Put::Left(Some(Finding::from(&error))));
        }
        let size = bytes.len() as u64;
        pace.take(size, &self.vault)?;
        storage.put_in_class(key, bytes, class).doing(|| format!("writing {key} into the class {class}"))?;
        let found = storage.class_of(key).doing(|| format!("looking at {key}"))?;
        check_class(class, found.as_deref(), &storage.location())?;
        Ok(Put::Away(size))
    }
}

enum Put {
    Away(u64),
    There,
    /// It is damaged or gone.
    Left(Option<Finding>),
}

fn check_class(wanted: &str, found: Option<&str>, location: &str) -> Result<()> {
    if found == Some(wanted) {
        return Ok(());
    }
    Err(VaultError::Refused {
        what: "archiving".to_owned(),
        why: format!(
            "{location} took an object for the class {wanted} and put it into {}; correct the class, or take `archive` off this vault",
            found.unwrap_or("its ordinary one")
        ),
    })
}

/// So many bytes a second, over all threads.
struct Pace {
    bytes_per_second: Option<u64>,
    /// When the next byte may go.
    free_at: Mutex<Instant>,
}

impl Pace {
    fn new(bytes_per_second: Option<u64>) -> Pace {
        Pace { bytes_per_second: bytes_per_second.filter(|rate| *rate > 0), free_at: Mutex::new(Instant::now()) }
    }

    fn take(&self, bytes: u64, vault: &Vault) -> Result<()> {
        let Some(rate) = self.bytes_per_second else { return Ok(()) };
        let starts = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let starts = (*free_at).max(Instant::now());
            *free_at = starts + Duration::from_secs_f64(bytes as f64 / rate as f64);
            starts
        };
        while let Some(left) = starts.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            vault.check_stop()?;
            std::thread::sleep(left.min(NAP));
        }
        Ok(())
    }
}
