//! What is needed, and what there is of it: every chunk that kept points reference, held against every pack that is there.
//!
//! The refs key opens all of it; contents stay closed. Indexes are read one at a time, so memory is 16 bytes a chunk that is needed
//! and a little a pack. Invariant: a chunk counts as there only if an index places it in a pack that the storage lists, whole.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use jiff::Timestamp;

use crate::codec::Hash;
use crate::error::{Doing, Result, VaultError};
use crate::finding::{Finding, note};
use crate::index::{self, MovedName};
use crate::name;
use crate::open::Vault;
use crate::pack::PackRecord;
use crate::port::ChunkId;
use crate::prune::record::Condemned;
use crate::refs;
use crate::seal::Identity;
use crate::snapshot::Snapshot;
use crate::storage::Listed;

/// Chunks that something references, by the first half of their ids; an id taken for another only keeps more.
#[derive(Debug, Default)]
pub(crate) struct Needed {
    ids: Vec<u128>,
    sorted: usize,
    /// By place: whether something needs it that must be restored at once.
    hot: Vec<bool>,
    /// Keys of the refs objects that they were read from.
    pub(crate) refs: BTreeSet<String>,
}

fn short(id: &ChunkId) -> u128 {
    id.0.first_chunk::<16>().map_or(0, |half| u128::from_be_bytes(*half))
}

impl Needed {
    fn add(&mut self, id: &ChunkId) {
        self.ids.push(short(id));
        if self.ids.len() > 2 * self.sorted + (1 << 16) {
            self.sort();
        }
    }

    fn sort(&mut self) {
        self.ids.sort_unstable();
        self.ids.dedup();
        self.sorted = self.ids.len();
    }

    /// Says which of these must be at hand.
    pub(crate) fn mark_hot(&mut self, hot: &Needed) {
        self.hot = self.ids.iter().map(|id| hot.ids.binary_search(id).is_ok()).collect();
    }

    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(crate) fn contains(&self, id: &ChunkId) -> bool {
        self.place(id).is_some()
    }

    pub(crate) fn place(&self, id: &ChunkId) -> Option<usize> {
        self.ids.binary_search(&short(id)).ok()
    }

    /// What these snapshots reference.
    pub(crate) fn of<'a>(
        vault: &Vault,
        refs_key: &Identity,
        snapshots: impl Iterator<Item = &'a Snapshot>,
    ) -> Result<Needed> {
        let mut sets: BTreeMap<(String, String), BTreeSet<Hash>> = BTreeMap::new();
        for snapshot in snapshots {
            let set = sets.entry((snapshot.head.host.clone(), snapshot.head.dataset.clone())).or_default();
            set.insert(snapshot.head.refs);
        }
        let mut needed = Needed::default();
        for ((host, dataset), points) in sets {
            vault.check_stop()?;
            let roster = vault.roster();
            let place = (host.as_str(), dataset.as_str());
            let keys = std::slice::from_ref(refs_key);
            let read = refs::read_all(&**vault.storage(), &roster, place, &points, keys, &mut |id| needed.add(&id))?;
            needed.refs.extend(read);
        }
        needed.sort();
        Ok(needed)
    }
}

/// What is known of a pack.
#[derive(Debug, Clone)]
pub(crate) struct PackUse {
    pub(crate) bytes: u64,
    /// Bytes of frames that hold a needed chunk.
    pub(crate) live_bytes: u64,
    /// Whether it holds something that must be at hand.
    pub(crate) is_hot: bool,
    /// The youngest sign of life of it and of its session, by the storage's clock.
    pub(crate) touched: Option<Timestamp>,
}

#[derive(Debug, Clone)]
pub(crate) struct IndexUse {
    pub(crate) key: String,
    pub(crate) chain: String,
    pub(crate) number: u64,
    pub(crate) hash: Hash,
    pub(crate) bytes: u64,
    pub(crate) stored_at: Option<Timestamp>,
    pub(crate) packs: Vec<Hash>,
    /// Whose chunks.
    pub(crate) home: (String, String),
    /// A pruner's, and no link of a chain.
    pub(crate) moved: Option<MovedName>,
}

/// What an index says, a host's or a pruner's.
pub(crate) struct Read {
    hash: Hash,
    /// What the packs of a host were sealed with; frames that were moved bring their own.
    pub(crate) secret: Vec<u8>,
    pub(crate) packs: Vec<PackRecord>,
}

/// A place of an index, if it is one of either kind.
fn index_place(key: &str) -> Option<(String, String, u64, Option<MovedName>)> {
    if let Some((host, dataset, of)) = index::parse_moved_key(key) {
        return Some((host, dataset, 0, Some(of)));
    }
    match key.split('/').collect::<Vec<_>>()[..] {
        [_, host, dataset, number] => {
            Some((name::decode(host)?, name::decode(dataset)?, name::parse_number(number)?, None))
        }
        _ => None,
    }
}

pub(crate) fn read_index(
    vault: &Vault,
    refs_key: &Identity,
    (host, dataset): (&str, &str),
    number: u64,
    moved: Option<MovedName>,
) -> Result<Read> {
    let (storage, roster, keys) = (&**vault.storage(), vault.roster(), std::slice::from_ref(refs_key));
    match moved {
        Some(of) => {
            let moved = index::read_moved(storage, &roster, host, dataset, of)?;
            let body = moved.open_body(keys)?;
            Ok(Read { hash: moved.hash, secret: body.secret, packs: body.packs })
        }
        None => {
            let index = index::read(storage, &roster, host, dataset, number)?;
            let body = index.open_body(keys)?;
            Ok(Read { hash: index.hash, secret: body.secret, packs: body.packs })
        }
    }
}

/// Everything there is, held against what is needed.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// Packs that the storage lists.
    pub(crate) packs: BTreeMap<String, PackUse>,
    pub(crate) indexes: Vec<IndexUse>,
    /// Needed chunks (by their places) that no pack holds that may be built on.
    missing: Vec<bool>,
    pub(crate) findings: Vec<Finding>,
}

impl Survey {
    pub(crate) fn is_whole(&self) -> bool {
        !self.missing.contains(&true)
    }

    pub(crate) fn is_missing(&self, needed: &Needed, id: &ChunkId) -> bool {
        needed.place(id).and_then(|place| self.missing.get(place)).is_some_and(|missing| *missing)
    }
}

/// Looks at every index and pack. Packs in `doomed` hold nothing that may be built on, except, once everything else was looked at, what
/// is nowhere else: then they are in the answer.
pub(crate) fn survey(
    vault: &Vault,
    refs_key: &Identity,
    needed: &Needed,
    doomed: &HashSet<String>,
) -> Result<(Survey, HashSet<String>)> {
    let mut survey = Survey { missing: vec![true; needed.ids.len()], ..Survey::default() };
    let indexes = list(vault, "index/")?;
    // After the indexes: a pack is stored before the index that names it.
    for object in list(vault, "pack/")? {
        let hash = object.key.rsplit('/').next().and_then(crate::crypt::unhex).map(Hash);
        if hash.is_some_and(|hash| name::pack(&hash.0) == object.key) {
            let pack = PackUse { bytes: object.size, live_bytes: 0, is_hot: false, touched: object.stored_at };
            survey.packs.insert(object.key, pack);
        }
    }
    let mut sessions: HashMap<[u8; 32], (Option<Timestamp>, Vec<String>)> = HashMap::new();
    for object in &indexes {
        vault.check_stop()?;
        let Some((host, dataset, number, moved)) = index_place(&object.key) else { continue };
        let read = read_index(vault, refs_key, (&host, &dataset), number, moved);
        let Some(body) = note(read, &mut survey.findings)? else { continue };
        let session = sessions.entry(crate::crypt::hash(&body.secret)).or_default();
        session.0 = session.0.max(object.stored_at);
        for record in &body.packs {
            let key = name::pack(&record.hash.0);
            let Some(pack) = survey.packs.get_mut(&key).filter(|pack| pack.bytes == record.bytes) else { continue };
            let is_doomed = doomed.contains(&key);
            let mut live = 0;
            for frame in &record.frames {
                let mut is_live = false;
                for place in frame.chunks().filter_map(|(id, _)| needed.place(&id)) {
                    is_live = true;
                    pack.is_hot |= needed.hot.get(place).copied().unwrap_or(false);
                    survey.missing[place] &= is_doomed;
                }
                live += if is_live { u64::from(frame.bytes) } else { 0 };
            }
            pack.live_bytes = live;
            session.1.push(key);
        }
        survey.indexes.push(IndexUse {
            key: object.key.clone(),
            chain: name::indexes_of(&host, &dataset),
            number,
            hash: body.hash,
            bytes: object.size,
            stored_at: object.stored_at,
            packs: body.packs.iter().map(|p| p.hash).collect(),
            home: (host, dataset),
            moved,
        });
    }
    for (touched, packs) in sessions.into_values() {
        for key in packs {
            if let Some(pack) = survey.packs.get_mut(&key) {
                pack.touched = pack.touched.max(touched);
            }
        }
    }
    let rescued = rescue(vault, refs_key, needed, doomed, &mut survey)?;
    Ok((survey, rescued))
}

/// For each needed chunk (by its place) the pack among `cold` that it lies in, if it lies in no other that is there.
pub(crate) fn only_in(
    vault: &Vault,
    refs_key: &Identity,
    needed: &Needed,
    survey: &Survey,
    cold: &HashMap<Hash, u32>,
) -> Result<Vec<Option<u32>>> {
    let mut found: Vec<Option<u32>> = vec![None; needed.len()];
    let mut elsewhere = vec![false; needed.len()];
    for seen in &survey.indexes {
        vault.check_stop()?;
        let (host, dataset) = &seen.home;
        for record in read_index(vault, refs_key, (host, dataset), seen.number, seen.moved)?.packs {
            if survey.packs.get(&name::pack(&record.hash.0)).is_none_or(|pack| pack.bytes != record.bytes) {
                continue;
            }
            let pack = cold.get(&record.hash).copied();
            for place in record.frames.iter().flat_map(|f| f.chunks()).filter_map(|(id, _)| needed.place(&id)) {
                match pack {
                    Some(pack) => found[place] = Some(pack),
                    None => elsewhere[place] = true,
                }
            }
        }
    }
    for (found, elsewhere) in found.iter_mut().zip(elsewhere) {
        if elsewhere {
            *found = None;
        }
    }
    Ok(found)
}

/// Doomed packs that hold what is nowhere else.
fn rescue(
    vault: &Vault,
    refs_key: &Identity,
    needed: &Needed,
    doomed: &HashSet<String>,
    survey: &mut Survey,
) -> Result<HashSet<String>> {
    let mut rescued = HashSet::new();
    if doomed.is_empty() || survey.is_whole() {
        return Ok(rescued);
    }
    for seen in &survey.indexes {
        let is_there = |hash: &&Hash| survey.packs.contains_key(&name::pack(&hash.0));
        let concerned = |hash: &&Hash| is_there(hash) && doomed.contains(&name::pack(&hash.0));
        if !seen.packs.iter().any(|hash| concerned(&hash)) {
            continue;
        }
        let (host, dataset) = &seen.home;
        for record in read_index(vault, refs_key, (host, dataset), seen.number, seen.moved)?.packs {
            let key = name::pack(&record.hash.0);
            if !doomed.contains(&key) || survey.packs.get(&key).is_none_or(|pack| pack.bytes != record.bytes) {
                continue;
            }
            for place in record.frames.iter().flat_map(|f| f.chunks()).filter_map(|(id, _)| needed.place(&id)) {
                if survey.missing[place] {
                    survey.missing[place] = false;
                    rescued.insert(key.clone());
                }
            }
        }
    }
    Ok(rescued)
}

/// Names the points that need something which is not there.
pub(crate) fn points_at_loss<'a>(
    vault: &Vault,
    refs_key: &Identity,
    needed: &Needed,
    survey: &Survey,
    snapshots: impl Iterator<Item = &'a Snapshot>,
) -> Result<Vec<String>> {
    let mut lost = Vec::new();
    for snapshot in snapshots {
        let head = &snapshot.head;
        let keys = std::slice::from_ref(refs_key);
        let ids = refs::read(&**vault.storage(), &vault.roster(), &head.host, &head.dataset, &head.refs, keys)?;
        let count = ids.iter().filter(|id| survey.is_missing(needed, id)).count();
        if count > 0 {
            lost.push(format!("{} ({count} chunks)", snapshot.key.trim_start_matches("snap/")));
        }
    }
    Ok(lost)
}

pub(crate) fn list(vault: &Vault, prefix: &str) -> Result<Vec<Listed>> {
    vault.storage().list(prefix).doing(|| format!("listing {prefix}"))
}

/// An index may go when every pack it names is gone or goes, and it is not the newest of its chain.
pub(crate) fn idle_indexes(survey: &Survey, goes: &HashSet<String>) -> Vec<Condemned> {
    let is_gone = |hash: &Hash| {
        let key = name::pack(&hash.0);
        goes.contains(&key) || !survey.packs.contains_key(&key)
    };
    idle_among(&survey.indexes, &is_gone)
}

/// The same; a pruner's are in no chain.
pub(crate) fn idle_among(indexes: &[IndexUse], is_gone: &dyn Fn(&Hash) -> bool) -> Vec<Condemned> {
    let mut newest: HashMap<&str, u64> = HashMap::new();
    for index in indexes {
        let kept = newest.entry(&index.chain).or_default();
        *kept = index.number.max(*kept);
    }
    let idle = |index: &&IndexUse| {
        let is_newest = newest.get(index.chain.as_str()).is_none_or(|newest| index.number >= *newest);
        (index.moved.is_some() || !is_newest) && index.packs.iter().all(is_gone)
    };
    let condemned = |index: &IndexUse| Condemned { key: index.key.clone(), bytes: index.bytes, hash: Some(index.hash) };
    indexes.iter().filter(idle).map(condemned).collect()
}

/// The refusal that names every point which could not be restored.
pub(crate) fn at_loss(points: &[String]) -> VaultError {
    VaultError::Refused {
        what: "pruning".to_owned(),
        why: format!(
            "these points need what is not in the vault: {}; nothing was deleted. Run `lifeboat vault check`, heal the vault from a \
             copy, or prune them by name (--point)",
            points.join(", ")
        ),
    }
}
