//! Healing: what a check found damaged or missing comes back from a copy, or from the host that still has the data.
//!
//! ```text
//! check ─ bad objects ─┬─ from a copy: checked, put in the place of what is damaged
//!                      └─ onto the signed heal list ─ the host's next backup stores those chunks again ─ the bad pack is given up
//! ```
//! Invariants: what is right is never replaced, and nothing is put that is not right itself; a pack is given up only when every chunk
//! that any point needs of it lies elsewhere, in a pack that was read and is right; it is deleted by a prune, as anything is, which looks once
//! more.

mod list;
mod sample;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use crate::check::CheckReport;
use crate::codec::Hash;
use crate::error::{Doing, Result, VaultError};
use crate::finding::{Finding, note};
use crate::host::State;
use crate::index;
use crate::log;
use crate::name;
use crate::object::{self, Place, pack_hash};
use crate::open::{Unlocked, Vault};
use crate::refs;
use crate::snapshot::{Badge, PointInfo};
use crate::storage::Storage;

pub(crate) use self::list::{KIND, PackState, check as check_list, gives_up};
pub use self::sample::{Sample, SampleWish};

/// What healing from a copy did.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Healed {
    /// Objects that are right again.
    pub healed: Vec<String>,
    /// Objects of which the copy has nothing right, either.
    pub lost: Vec<String>,
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// The names of objects that were found missing, damaged, or in a place that is not theirs; a name that ends with `/` stands for
    /// everything below it that is missing.
    pub fn bad_objects(&self) -> BTreeSet<String> {
        let bad = |finding: &&Finding| {
            matches!(finding.code, "missing" | "damaged" | "unreadable" | "untrusted" | "rolled-back")
                && (finding.object.ends_with('/') || Place::of(&finding.object).is_some())
        };
        // Where a point's chunks are in no pack, what says that they were moved may be gone; nothing else names it.
        let moved = |finding: &Finding| match Place::of(&finding.object) {
            Some(Place::Snapshot(host, dataset, _)) if finding.code == "missing-chunks" => {
                Some(name::indexes_of(&host, &dataset))
            }
            _ => None,
        };
        let mut named: BTreeSet<String> = self.findings.iter().filter(bad).map(|f| f.object.clone()).collect();
        // A pack that is bad explains it as well.
        if !named.iter().any(|object| object.starts_with("pack/")) {
            named.extend(self.findings.iter().filter_map(moved));
        }
        named
    }

    fn bad_packs(&self) -> HashSet<Hash> {
        let packs = self.bad_objects();
        packs.iter().filter_map(|key| pack_hash(key)).collect()
    }
}

/// Of a log object that the copy does not have by itself: the runs there that hold it.
fn gathered_in(copy: &Arc<dyn Storage>, key: &str) -> Result<Vec<String>> {
    let Some(Place::Log { dataset, lineage, timeline, number }) = Place::of(key) else { return Ok(Vec::new()) };
    if copy.get_range(key, 0, 1).is_ok() {
        return Ok(Vec::new());
    }
    let chain = log::chain(&dataset, &lineage, timeline);
    let listed = copy.list(&chain).doing(|| format!("listing {chain} in the copy"))?;
    let holds = |key: &String| match Place::of(key) {
        Some(Place::GatheredLog { span, .. }) => (span.first..=span.last).contains(&number),
        _ => false,
    };
    Ok(listed.into_iter().map(|object| object.key).filter(holds).collect())
}

impl Vault {
    /// Brings bad objects back from a copy. Needs a storage that lets damaged objects be replaced, and no key.
    pub fn heal_from(&self, copy: &Arc<dyn Storage>, bad: &BTreeSet<String>, state: &State) -> Result<Healed> {
        let other = Vault::open(copy.clone(), None, Some(self.owner()))?;
        if other.id() != self.id() {
            let why = format!("it is vault {}, and not {}", other.id(), self.id());
            return Err(VaultError::invalid(format!("the copy {}", copy.location()), why));
        }
        let mut healed = Healed::default();
        for key in self.each_bad(copy, bad)? {
            self.check_stop()?;
            match note(self.heal_one(copy, &key), &mut healed.findings)? {
                Some(true) => healed.healed.push(key),
                _ => healed.lost.push(key),
            }
        }
        let packs: Vec<Hash> = healed.healed.iter().filter_map(|key| pack_hash(key)).collect();
        if self.may_list(state) {
            self.write_lists(state, PackState::Good, &packs.into_iter().collect())?;
        }
        Ok(healed)
    }

    /// Every single object: what is named, and of what is named as a whole what the copy has and this vault has not.
    fn each_bad(&self, copy: &Arc<dyn Storage>, bad: &BTreeSet<String>) -> Result<BTreeSet<String>> {
        let mut all = BTreeSet::new();
        for key in bad {
            if !key.ends_with('/') {
                let gathered = gathered_in(copy, key)?;
                if gathered.is_empty() {
                    all.insert(key.clone());
                }
                all.extend(gathered);
                continue;
            }
            let here = self.storage().list(key).doing(|| format!("listing {key}"))?;
            let here: HashSet<String> = here.into_iter().map(|object| object.key).collect();
            let there = copy.list(key).doing(|| format!("listing {key} in the copy"))?;
            // Indexes that are missing are named one by one; those of what was moved are not.
            let is_meant = |of: &String| !key.starts_with("index/") || matches!(Place::of(of), Some(Place::Moved(..)));
            all.extend(there.into_iter().map(|object| object.key).filter(|key| !here.contains(key)).filter(is_meant));
        }
        Ok(all)
    }

    /// Whether the object is right now.
    fn heal_one(&self, copy: &Arc<dyn Storage>, key: &str) -> Result<bool> {
        let Some(place) = Place::of(key) else { return Ok(false) };
        let roster = self.roster();
        let bytes = match copy.get(key) {
            Err(error) if error.is_not_found() => return Ok(false),
            other => other.doing(|| format!("reading {key} in the copy"))?,
        };
        object::check(&roster, key, &place, &bytes)?;
        let storage = self.storage();
        match storage.get(key) {
            Ok(there) if object::check(&roster, key, &place, &there).is_ok() => return Ok(true),
            Err(error) if error.is_not_found() => {
                storage.put_if_absent(key, &bytes).doing(|| format!("writing {key}"))?;
            }
            _ => storage.put(key, &bytes).doing(|| format!("replacing {key}"))?,
        }
        let back = storage.get(key).doing(|| format!("reading {key} again"))?;
        object::check(&roster, key, &place, &back)?;
        Ok(true)
    }

    /// Puts the bad packs of a check on the hosts' heal lists: their next backups store again what they still have. Answers how many
    /// are new there; 0, too, where this machine stands on no roster.
    pub fn list_bad_packs(&self, report: &CheckReport, state: &State) -> Result<u64> {
        match self.may_list(state) {
            true => self.write_lists(state, PackState::Bad, &report.bad_packs()),
            false => Ok(0),
        }
    }

    fn may_list(&self, state: &State) -> bool {
        self.roster().member(&state.signing_key().public()).is_some_and(|member| member.revoked.is_none())
    }

    fn write_lists(&self, state: &State, to: PackState, packs: &HashSet<Hash>) -> Result<u64> {
        let mut written = 0;
        for ((host, dataset), mut packs) in self.writers_of(packs)? {
            let known = self.heal_list(&host, &dataset)?;
            // What nobody ever called bad needs no word that it is good.
            packs.retain(|hash| match known.get(hash) {
                Some(state) => *state != to,
                None => to == PackState::Bad,
            });
            if !packs.is_empty() {
                list::write(self, state.signing_key(), (&host, &dataset), to, &packs)?;
                written += packs.len() as u64;
            }
        }
        Ok(written)
    }

    /// Whose indexes name these packs.
    fn writers_of(&self, packs: &HashSet<Hash>) -> Result<BTreeMap<(String, String), BTreeSet<Hash>>> {
        let mut writers: BTreeMap<(String, String), BTreeSet<Hash>> = BTreeMap::new();
        if packs.is_empty() {
            return Ok(writers);
        }
        let roster = self.roster();
        for object in self.storage().list("index/").doing(|| "listing indexes".to_owned())? {
            let (host, dataset, read) = match Place::of(&object.key) {
                Some(Place::Index(host, dataset, number)) => {
                    let read = index::read(&**self.storage(), &roster, &host, &dataset, number);
                    (host, dataset, read.map(|index| index.head.packs))
                }
                Some(Place::Moved(host, dataset, of)) => {
                    let read = index::read_moved(&**self.storage(), &roster, &host, &dataset, of);
                    (host, dataset, read.map(|moved| moved.head.packs))
                }
                _ => continue,
            };
            let Some(named) = note(read, &mut Vec::new())? else { continue };
            let named: Vec<Hash> = named.iter().map(|p| p.hash).filter(|h| packs.contains(h)).collect();
            if !named.is_empty() {
                writers.entry((host, dataset)).or_default().extend(named);
            }
        }
        Ok(writers)
    }
}

/// Packs that a check found bad, and what is left to do about each.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct BadPacks {
    /// Nothing needs them any more: every chunk that a point needs lies in another pack.
    pub replaced: Vec<String>,
    /// Points need chunks that lie nowhere else.
    pub needed: Vec<String>,
    /// Those points.
    pub points: Vec<PointInfo>,
}

impl Unlocked {
    /// Which of a check's bad packs are still needed, and by which points. Looks at the data sets that the keys open; a pack of
    /// another one counts as needed.
    pub fn bad_packs(&self, report: &CheckReport) -> Result<BadPacks> {
        self.rest_on(&report.bad_packs())
    }

    /// The points of which a check could not read everything, because it must be thawed.
    pub fn unread_points(&self, report: &CheckReport) -> Result<Vec<PointInfo>> {
        Ok(self.rest_on(&report.archived.iter().filter_map(|key| pack_hash(key)).collect())?.points)
    }

    fn rest_on(&self, bad: &HashSet<Hash>) -> Result<BadPacks> {
        let mut result = BadPacks::default();
        if bad.is_empty() {
            return Ok(result);
        }
        let identities: Vec<_> = self.refs.iter().cloned().collect();
        let (mut needed, mut seen) = (HashSet::new(), HashSet::new());
        for dataset in self.datasets() {
            let source = self.source(&dataset)?;
            seen.extend(source.packs.iter().map(|pack| pack.record.hash).filter(|hash| bad.contains(hash)));
            for snapshot in self.read_chains(Some(&dataset))?.0 {
                let head = &snapshot.head;
                let ids = refs::read(&**self.storage(), &self.roster(), &head.host, &dataset, &head.refs, &identities)?;
                let lost: HashSet<Hash> = ids
                    .iter()
                    .filter(|id| !source.lies_in(id, |hash| !bad.contains(hash)))
                    .filter_map(|id| source.pack_of(id))
                    .collect();
                if !lost.is_empty() {
                    result.points.push(snapshot.info(Badge::Corrupt));
                    needed.extend(lost);
                }
            }
        }
        for hash in bad {
            let is_free = seen.contains(hash) && !needed.contains(hash);
            let names = if is_free { &mut result.replaced } else { &mut result.needed };
            names.push(name::pack(&hash.0));
        }
        result.replaced.sort();
        result.needed.sort();
        Ok(result)
    }

    /// Says, with the owner's key, that these packs are given up: nobody misses them, and the next prune removes what is left of them.
    pub fn give_up(&self, packs: &BadPacks) -> Result<()> {
        let hashes: HashSet<Hash> = packs.replaced.iter().filter_map(|key| pack_hash(key)).collect();
        let owner = self.owner_key()?;
        for ((host, dataset), packs) in self.writers_of(&hashes)? {
            list::write(self, owner, (&host, &dataset), PackState::GivenUp, &packs)?;
        }
        Ok(())
    }
}
