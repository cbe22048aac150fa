//! What of a vault is wanted: of one data set, of a time; and what the target will lack by design.
//!
//! Of each chain the points from a moment on, and the one before: the state of that moment. Invariants: what is left out lies before
//! everything that is there, so that a chain has no hole; a pack is left out only where its data set is not wanted, or somebody with a key
//! has seen that no wanted point needs it.

use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::Timestamp;

use super::record::Floor;
use super::{CopyOptions, CopyReport};
use crate::codec::Hash;
use crate::copy::LeftOut;
use crate::error::{Result, VaultError};
use crate::finding::{Finding, note};
use crate::index;
use crate::name;
use crate::object::Place;
use crate::open::{Unlocked, Vault};
use crate::prune::live::{self, Needed};
use crate::snapshot::Snapshot;
use crate::storage::Listed;

#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// The first number of each chain of points that is carried, where it is not the first.
    pub(super) from: HashMap<String, u64>,
    /// Without these all.
    pub(super) packs: Option<HashSet<[u8; 32]>>,
    pub(super) refs: Option<HashSet<String>>,
    pub(super) lacks: LeftOut,
    pub(super) lacks_until_done: LeftOut,
    /// What an earlier copy into the target was limited to.
    pub(super) since_before: Option<Timestamp>,
}

/// What one end has of a chain of points.
#[derive(Debug, Clone, Copy)]
struct Span {
    first: u64,
    last: u64,
}

fn spans(listed: &[Listed]) -> BTreeMap<String, (String, String, Span)> {
    let mut spans = BTreeMap::new();
    for object in listed {
        let Some(Place::Snapshot(host, dataset, number)) = Place::of(&object.key) else { continue };
        let chain = name::snapshots_of(&host, &dataset);
        let (_, _, span) = spans.entry(chain).or_insert((host, dataset, Span { first: number, last: number }));
        *span = Span { first: span.first.min(number), last: span.last.max(number) };
    }
    spans
}

pub(super) fn wanted(
    source: &Vault,
    target: Option<&Vault>,
    options: &CopyOptions,
    listed: &[Listed],
    there: &[Listed],
    report: &mut CopyReport,
) -> Result<Wanted> {
    let at_source = source.left_out()?;
    let at_target = target.map(Vault::left_out).transpose()?.unwrap_or_default();
    let mut wanted = Wanted { since_before: at_target.since.or(at_source.since), ..Wanted::default() };
    wanted.packs = of_dataset(source, options, listed, &mut report.findings)?;
    wanted.lacks.floors.clone_from(&at_target.floors);
    wanted.lacks_until_done.floors.clone_from(&at_target.floors);
    let theirs = spans(there);
    let mut kept = Vec::new();
    for (chain, (host, dataset, _)) in spans(listed) {
        if options.dataset.as_ref().is_some_and(|only| *only != dataset) {
            continue;
        }
        let first = at_source.first_of(&chain);
        let points = points_of(source, (&host, &dataset), listed, &mut report.findings)?;
        let begins = options.since.map_or(first, |since| {
            let before = |point: &&Snapshot| Timestamp::from(point.head.taken_at) <= since;
            let base = points.iter().rev().find(before).or(points.first());
            base.map_or(first, |point| point.head.sequence)
        });
        let there = theirs.get(&chain).map(|(_, _, span)| *span);
        let from = there.map_or(begins, |there| begins.min(there.last + 1));
        let floor = match there {
            None => from,
            // It began there and goes on to the end of what it had.
            Some(there) if at_target.first_of(&chain) <= from => at_target.first_of(&chain).min(there.first),
            Some(_) => from,
        };
        let last = |below| points.iter().find(|p| p.head.sequence == below).and_then(|p| p.head.previous);
        let lack = |into: &mut LeftOut, below: u64| {
            into.floors.remove(&chain);
            if below > 1 {
                into.floors.insert(chain.clone(), Floor { chain: chain.clone(), below, last: last(below) });
            }
        };
        lack(&mut wanted.lacks, floor);
        lack(&mut wanted.lacks_until_done, floor.max(at_target.first_of(&chain)));
        if from > 1 {
            wanted.from.insert(chain.clone(), from);
        }
        report.points_left_out += points.iter().filter(|point| point.head.sequence < floor).count() as u64;
        kept.extend(points.into_iter().filter(|point| point.head.sequence >= floor));
    }
    let lacks_points = !wanted.lacks.is_empty();
    if let Some(opened) = options.opened.as_ref().filter(|_| lacks_points) {
        needed_only(opened, &kept, &mut wanted)?;
    }
    leave_packs(&mut wanted, (&at_source, &at_target), (listed, there), options, report);
    Ok(wanted)
}

/// A chain's points, as far as they can be read; what cannot is found again when it is carried.
fn points_of(
    source: &Vault,
    (host, dataset): (&str, &str),
    listed: &[Listed],
    findings: &mut Vec<Finding>,
) -> Result<Vec<Snapshot>> {
    let chain = name::snapshots_of(host, dataset);
    let mut points = Vec::new();
    for object in listed.iter().filter(|object| object.key.starts_with(&chain)) {
        let Some(number) = object.key.strip_prefix(chain.as_str()).and_then(name::parse_number) else { continue };
        let mut found = Vec::new();
        let read = note(source.read_snapshot(host, dataset, number), &mut found)?;
        findings.extend(found.into_iter().filter(|f| f.code != "missing" && f.code != "damaged"));
        points.extend(read.map(|point| (*point).clone()));
    }
    Ok(points)
}

/// With a key: the packs and the refs objects that these points need, and no others.
fn needed_only(opened: &Unlocked, kept: &[Snapshot], wanted: &mut Wanted) -> Result<()> {
    let Some(refs_key) = &opened.refs else {
        return Err(VaultError::KeyNeeded { what: "what points need (the refs key)".to_owned() });
    };
    let needed = Needed::of(opened, refs_key, kept.iter())?;
    let (survey, _) = live::survey(opened, refs_key, &needed, &HashSet::new())?;
    let live = survey.packs.iter().filter(|(_, pack)| pack.live_bytes > 0);
    let live: HashSet<[u8; 32]> = live.filter_map(|(key, _)| pack_hash(key)).collect();
    wanted.packs = Some(match wanted.packs.take() {
        Some(of_dataset) => of_dataset.intersection(&live).copied().collect(),
        None => live,
    });
    wanted.refs = Some(needed.refs.iter().cloned().collect());
    Ok(())
}

fn pack_hash(key: &str) -> Option<[u8; 32]> {
    match Place::of(key)? {
        Place::Pack(hash) => Some(hash),
        _ => None,
    }
}

/// Packs that will not be in the target though its indexes name them.
fn leave_packs(
    wanted: &mut Wanted,
    (at_source, at_target): (&LeftOut, &LeftOut),
    (listed, there): (&[Listed], &[Listed]),
    options: &CopyOptions,
    report: &mut CopyReport,
) {
    let has: HashSet<[u8; 32]> = there.iter().filter_map(|object| pack_hash(&object.key)).collect();
    let lacks_points = !wanted.lacks.is_empty();
    let mut stays_behind = HashSet::new();
    if let Some(packs) = wanted.packs.as_ref().filter(|_| lacks_points) {
        let of_source = listed.iter().filter_map(|object| pack_hash(&object.key));
        stays_behind.extend(of_source.filter(|hash| !packs.contains(hash) && !has.contains(hash)).map(Hash));
    }
    report.packs_left_out = stays_behind.len() as u64;
    stays_behind.extend(at_source.packs.iter().filter(|hash| !has.contains(&hash.0)));
    if options.dataset.is_some() {
        // Those of other data sets are no business of this copy.
        let comes = |hash: &&Hash| wanted.packs.as_ref().is_some_and(|packs| packs.contains(&hash.0));
        stays_behind.extend(at_target.packs.iter().filter(|hash| !has.contains(&hash.0) && !comes(hash)));
    }
    wanted.lacks_until_done.packs = stays_behind.union(&at_target.packs).copied().collect();
    wanted.lacks.packs = stays_behind;
}

/// The packs that a data set's indexes name; `None` for all.
fn of_dataset(
    source: &Vault,
    options: &CopyOptions,
    listed: &[Listed],
    findings: &mut Vec<Finding>,
) -> Result<Option<HashSet<[u8; 32]>>> {
    let Some(dataset) = &options.dataset else { return Ok(None) };
    let roster = source.roster();
    let mut wanted = HashSet::new();
    let mut known = false;
    for object in listed {
        let storage = &**source.storage();
        let packs = match Place::of(&object.key) {
            Some(Place::Index(host, set, number)) if set == *dataset => {
                index::read(storage, &roster, &host, &set, number).map(|index| index.head.packs)
            }
            Some(Place::Moved(host, set, of)) if set == *dataset => {
                index::read_moved(storage, &roster, &host, &set, of).map(|moved| moved.head.packs)
            }
            _ => continue,
        };
        known = true;
        wanted.extend(note(packs, findings)?.unwrap_or_default().into_iter().map(|pack| pack.hash.0));
    }
    match known {
        true => Ok(Some(wanted)),
        false => Err(VaultError::invalid(format!("data set {dataset:?}"), "the vault has nothing of it")),
    }
}
