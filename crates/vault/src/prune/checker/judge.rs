//! The judge: knows what every point needs, whatever the code under test says, and what is owed to whoever was answered with success.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use crate::Result;
use crate::index;
use crate::name;
use crate::open::{Unlocked, Vault};
use crate::port::ChunkId;
use crate::prune::Rule;
use crate::snapshot::{Badge, PointInfo};
use crate::storage::{FROZEN_CLASS, MemoryStorage, Storage};

use super::world::World;

/// What actors were answered with success.
#[derive(Debug, Clone, Default)]
pub(super) struct Owed {
    pub(super) points: Vec<PointInfo>,
    /// Points (`HOST/DATASET/NUMBER`) that were put on hold, and whoever did was not told that it may be too late.
    pub(super) held: Vec<String>,
}

/// What was read, by hashes and by names with hashes in them.
#[derive(Debug, Default)]
pub(super) struct ReadBefore {
    packs: HashMap<Vec<u8>, Packs>,
    needs: HashMap<String, Vec<ChunkId>>,
}

/// Packs, and the chunks in each.
type Packs = Vec<(String, Vec<ChunkId>)>;

/// Knows what every point needs, whatever the code under test says.
pub(super) struct Judge<'a> {
    storage: &'a MemoryStorage,
    unlocked: Unlocked,
    /// What indexes and points that were there from the beginning say is read once for all orders.
    read: &'a Mutex<ReadBefore>,
    log_end: u64,
}

impl<'a> Judge<'a> {
    pub(super) fn new(
        world: &World,
        storage: &'a Arc<MemoryStorage>,
        rule: Option<Rule>,
        read: &'a Mutex<ReadBefore>,
    ) -> Judge<'a> {
        let vault = Vault::open(storage.clone(), None, Some(&world.fingerprint)).unwrap();
        vault.take_away(rule);
        let unlocked = vault.unlock(std::slice::from_ref(&world.owner)).unwrap();
        Judge { storage, unlocked, read, log_end: 0 }
    }

    /// What is wrong: a point that is shown as sound, or that was promised, and cannot be restored.
    pub(super) fn complain(&mut self, owed: &Owed) -> Option<String> {
        let promised = &owed.points;
        let points = self.unlocked.points(None).unwrap().points;
        let there = self.chunks_there(false);
        for point in &points {
            let is_promised = promised.iter().any(|p| p.key == point.key && p.hash == point.hash);
            if point.badge == Badge::Suspect && !is_promised {
                continue;
            }
            let needs = self.needs_of(point);
            if let Some(lost) = needs.iter().find(|id| !there.contains(id)) {
                let promise = if is_promised { "promised" } else { "shown as sound" };
                return Some(format!("{} is {promise} and has lost chunk {lost}", point.id));
            }
            if let Err(error) = self.refs_of(point) {
                return Some(format!("{} has lost its refs: {error}", point.id));
            }
        }
        let is_gone = |held: &&String| self.storage.get(&format!("snap/{held}")).is_err();
        if let Some(held) = owed.held.iter().find(is_gone) {
            return Some(format!("{held} is held and gone"));
        }
        if let Some(wrong) = self.complain_of_archive(&points) {
            return Some(wrong);
        }
        if let Some(wrong) = self.complain_of_log(&points) {
            return Some(wrong);
        }
        // What was promised may be pruned by a later prune, but not vanish without a tombstone of its own.
        promised.iter().find_map(|promise| {
            let shown = points.iter().any(|point| point.key == promise.key && point.hash == promise.hash);
            let stone = self.unlocked.ledger().ok()?;
            let stone = self.unlocked.tombstone(&stone, &promise.host, &promise.dataset, promise.sequence).ok()?;
            let pruned = stone.is_some_and(|stone| stone.hash.to_string() == promise.hash);
            (!shown && !pruned).then(|| format!("{} was promised and is gone", promise.id))
        })
    }

    /// The newest sound point is at hand. One that neither knew of the newest sweep nor was seen by it is not sound.
    fn complain_of_archive(&self, points: &[PointInfo]) -> Option<String> {
        let newest = points.iter().rfind(|point| point.badge != Badge::Suspect)?;
        let at_hand = self.chunks_there(true);
        let waits = self.needs_of(newest).into_iter().find(|id| !at_hand.contains(id))?;
        Some(format!("{} is the newest, and has to wait for chunk {waits}", newest.id))
    }

    /// The log is whole from where it begins, that is no later than the first point in it, to the end that was seen.
    fn complain_of_log(&mut self, points: &[PointInfo]) -> Option<String> {
        if self.storage.list("log/").unwrap().is_empty() {
            return None;
        }
        // As somebody who has read nothing yet.
        let fresh = Vault::open(self.unlocked.storage().clone(), None, Some(self.unlocked.owner())).unwrap();
        let trail = fresh.log_trail("app", "l").unwrap();
        if let Some(finding) = trail.findings.first() {
            return Some(format!("the log is broken: {}", finding.message));
        }
        let (first, last) = (trail.entries.first()?.first, trail.entries.last()?.last);
        if last < self.log_end {
            return Some(format!("the log ended at {}, and now at {last}", self.log_end));
        }
        self.log_end = last;
        let counters = points.iter().filter_map(|point| point.position.as_ref()).map(|position| position.counter);
        counters
            .min()
            .filter(|counter| first > counter + 1)
            .map(|counter| format!("the log begins at {first}, after {counter}"))
    }

    fn needs_of(&self, point: &PointInfo) -> Vec<ChunkId> {
        let unlocked = &self.unlocked;
        let read = || unlocked.read_root(point).unwrap().chunks(32).map(|id| ChunkId(id.try_into().unwrap())).collect();
        self.read.lock().unwrap().needs.entry(point.hash.clone()).or_insert_with(read).clone()
    }

    fn refs_of(&self, point: &PointInfo) -> Result<()> {
        let snapshot = self.unlocked.read_snapshot(&point.host, &point.dataset, point.sequence)?;
        let roster = self.unlocked.roster();
        crate::refs::check(self.storage, &roster, &point.host, &point.dataset, &snapshot.head.refs, &mut HashSet::new())
    }

    /// Chunks in packs that are what their names say; at hand, or wherever.
    fn chunks_there(&self, at_hand: bool) -> HashSet<ChunkId> {
        let frozen = |key: &String| self.storage.class_of(key).unwrap().as_deref() == Some(FROZEN_CLASS);
        let is_right = |key: &String| match frozen(key) {
            true => !at_hand,
            false => name::pack(&crate::crypt::hash(&self.storage.get(key).unwrap())) == *key,
        };
        let listed = self.storage.list("pack/").unwrap().into_iter().map(|o| o.key);
        let keys: HashSet<String> = listed.filter(is_right).collect();
        let mut there = HashSet::new();
        let mut before = self.read.lock().unwrap();
        for object in self.storage.list("index/").unwrap() {
            let bytes = self.storage.get(&object.key).unwrap();
            let packs = before.packs.entry(bytes).or_insert_with(|| self.packs_of(&object.key));
            let here = packs.iter().filter(|(key, _)| keys.contains(key));
            there.extend(here.flat_map(|(_, ids)| ids.iter().copied()));
        }
        there
    }

    fn packs_of(&self, key: &str) -> Packs {
        let roster = self.unlocked.roster();
        let keys = std::slice::from_ref(self.unlocked.refs.as_ref().unwrap());
        let packs = match index::parse_moved_key(key) {
            Some((host, dataset, of)) => {
                let moved = index::read_moved(self.storage, &roster, &host, &dataset, of);
                moved.and_then(|moved| moved.open_body(keys)).unwrap().packs
            }
            None => {
                let parts: Vec<&str> = key.split('/').collect();
                let number = name::parse_number(parts[3]).unwrap();
                let index = index::read(self.storage, &roster, parts[1], parts[2], number);
                index.and_then(|index| index.open_body(keys)).unwrap().packs
            }
        };
        let packs = packs.iter().map(|pack| {
            let ids = pack.frames.iter().flat_map(|frame| frame.chunks()).map(|(id, _)| id).collect();
            (name::pack(&pack.hash.0), ids)
        });
        packs.collect()
    }
}
