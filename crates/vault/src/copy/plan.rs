//! What a copy has to carry, in which order; and whether the two vaults are one.
//!
//! Invariant: nothing is carried between vaults that went different ways: the newest link that both have of every chain is the same.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::since::{self, Wanted};
use super::{CopyOptions, CopyReport};
use crate::codec::Hash;
use crate::copy::LeftOut;
use crate::error::{Doing, Result, VaultError};
use crate::finding::{Finding, Severity, note};
use crate::name;
use crate::object::Place;
use crate::open::Vault;
use crate::snapshot::tombstone_key;
use crate::storage::{Listed, Storage};

/// One object to carry.
#[derive(Debug, Clone)]
pub(super) struct Load {
    pub(super) key: String,
    pub(super) place: Place,
    pub(super) size: u64,
}

/// Rows of one phase: the objects of a row in order, rows beside each other.
pub(super) type Phase = Vec<Vec<Load>>;

#[derive(Debug)]
pub(super) struct Plan {
    pub(super) phases: Vec<Phase>,
    pub(super) bytes: u64,
    /// The newest link of each chain at the source.
    pub(super) heads: Vec<(String, u64, Hash)>,
    /// What was committed later is not in it.
    pub(super) listed_at: Timestamp,
    pub(super) since: Option<Timestamp>,
    /// What the target lacks by design when all of it was carried, and until then.
    pub(super) lacks: LeftOut,
    pub(super) lacks_until_done: LeftOut,
}

/// When an object's turn is; `None` for what belongs to one place only.
fn phase(place: &Place) -> Option<usize> {
    Some(match place {
        Place::Roster(_) => 0,
        Place::Readme | Place::KeyFile(..) | Place::ChunkKey(_) => 1,
        Place::Statement(..) => 2,
        Place::Pack(_) => 3,
        Place::Index(..) | Place::Moved(..) => 4,
        Place::Refs(..) => 5,
        Place::Log { .. } | Place::GatheredLog { .. } => 6,
        Place::Tombstone(..) | Place::Prune(..) => 7,
        Place::Snapshot(..) => 8,
        // What must stay must stay where the copy becomes the vault, too.
        Place::Verification(..) | Place::Receipt(..) | Place::Witness(..) | Place::Hold(_) | Place::Freeze(_) => 9,
        Place::Heal(..) => 7,
        Place::Enrolment(_) | Place::Copy(..) | Place::Probe => return None,
    })
}
const PHASES: usize = 10;

type Chains = BTreeMap<String, BTreeMap<u64, String>>;

pub(super) fn make(
    source: &Vault,
    to: &Arc<dyn Storage>,
    target: Option<&Vault>,
    options: &CopyOptions,
    report: &mut CopyReport,
) -> Result<Plan> {
    let from = source.storage();
    let listed_at = Timestamp::now();
    let snapshots = from.list("snap/").doing(|| "listing the source".to_owned())?;
    let mut listed = from.list("").doing(|| "listing the source".to_owned())?;
    // Points that were committed since rest on what this listing may lack.
    let seen: HashSet<&str> = snapshots.iter().map(|o| o.key.as_str()).collect();
    listed.retain(|object| !object.key.starts_with("snap/") || seen.contains(object.key.as_str()));
    let there = to.list("").doing(|| "listing the target".to_owned())?;
    let here = chains(&listed);
    let beyond = chains(&there);
    let mut heads = heads(source, &here, &mut report.findings)?;
    if let Some(dataset) = &options.dataset {
        name::check(dataset, "the data set's name")?;
        let of_it = format!("/{}/", name::encode(dataset));
        heads.retain(|(chain, ..)| chain.ends_with(&of_it));
    }
    if target.is_some() {
        compare(source, to, &here, &beyond, report)?;
    }
    let wanted = since::wanted(source, target, options, &listed, &there, report)?;
    let (mut phases_bytes, mut rows) = (0, vec![BTreeMap::<String, Vec<Load>>::new(); PHASES]);
    let sizes: HashMap<&str, u64> = there.iter().map(|o| (o.key.as_str(), o.size)).collect();
    let ledger = source.ledger()?;
    let open_points = ledger.undecided().map(|open| open.proposal.points.as_slice()).unwrap_or_default();
    let open_stones: HashSet<String> =
        open_points.iter().map(|p| p.snapshot.replacen("snap/", "tombstone/", 1)).collect();
    let is_stone = |key: &&str| {
        let stands_again = || ledger.stands_again(&key.replacen("tombstone/", "snap/", 1));
        key.starts_with("tombstone/") && !open_stones.contains(*key) && !stands_again()
    };
    let tombstones: HashSet<&str> = listed.iter().chain(&there).map(|o| o.key.as_str()).filter(is_stone).collect();
    let own = own_words(source, to, &listed, &there, report)?;
    let given_up = source.given_up(&mut report.findings)?;
    for object in &listed {
        let Some(place) = Place::of(&object.key) else {
            let message = format!("{} is no object of this version's vaults, and is not copied", object.key);
            report.findings.push(Finding::new(Severity::Warning, "unknown", &object.key, message));
            continue;
        };
        let Some(phase) = phase(&place) else { continue };
        // A prune that may be taken back is the source's own business, and its points are points.
        let stays_here = match &place {
            Place::Hold(_) | Place::Freeze(_) => own.contains(&object.key),
            Place::Prune(generation, _) => !ledger.is_decided(*generation),
            Place::Tombstone(..) => open_stones.contains(&object.key),
            _ => false,
        };
        if stays_here {
            continue;
        }
        // What is damaged here need not be there; what was given up is missed nowhere.
        let is_bad = match &place {
            Place::Heal(host, dataset) => !crate::heal::gives_up(source, &object.key, host, dataset),
            Place::Pack(hash) => given_up.contains(&Hash(*hash)),
            _ => false,
        };
        if is_bad || is_left_out(&place, options, &wanted, &tombstones) {
            continue;
        }
        match sizes.get(object.key.as_str()) {
            Some(size) => {
                report.objects_there += 1;
                if *size != object.size {
                    report.findings.push(differs(object, *size));
                }
            }
            None => {
                phases_bytes += object.size;
                // Links of a chain go one after the other; everything else for itself.
                let row = match &place {
                    Place::Prune(..) => "prune/".to_owned(),
                    Place::Hold(_) => "hold/".to_owned(),
                    Place::Freeze(_) => "freeze/".to_owned(),
                    _ => place.link().map_or_else(|| object.key.clone(), |(chain, _)| chain),
                };
                let load = Load { key: object.key.clone(), place, size: object.size };
                if let Some(rows) = rows.get_mut(phase) {
                    rows.entry(row).or_default().push(load);
                }
            }
        }
    }
    let phases = rows.into_iter().map(|rows| rows.into_values().map(in_order).collect()).flat_map(side_by_side);
    Ok(Plan {
        phases: phases.collect(),
        bytes: phases_bytes,
        heads,
        listed_at,
        since: options.since.or(wanted.since_before),
        lacks: wanted.lacks,
        lacks_until_done: wanted.lacks_until_done,
    })
}

/// So many log objects of a chain are on their way at once, in any order.
pub(crate) const LOGS_AT_ONCE: usize = 256;

/// A log of a year has millions of objects, most often in one chain: a stretch of it goes side by side, the next when that is there. A copy
/// that is cut off lacks some of the last stretch at most.
fn side_by_side(phase: Phase) -> Vec<Phase> {
    let is_log = |row: &Vec<Load>| row.first().is_some_and(|load| matches!(load.place, Place::Log { .. }));
    let (mut logs, others): (Phase, Phase) = phase.into_iter().partition(is_log);
    let longest = logs.iter().map(Vec::len).max().unwrap_or(0);
    let mut phases = vec![others];
    for _ in 0..longest.div_ceil(LOGS_AT_ONCE) {
        let stretches = logs.iter_mut().flat_map(|row| row.drain(..row.len().min(LOGS_AT_ONCE)));
        phases.push(stretches.map(|load| vec![load]).collect());
    }
    phases
}

/// Holds and freezes that stay where they are, because the target has others under their numbers: a release of one there would end
/// another here.
fn own_words(
    source: &Vault,
    to: &Arc<dyn Storage>,
    listed: &[Listed],
    there: &[Listed],
    report: &mut CopyReport,
) -> Result<HashSet<String>> {
    let mut own = HashSet::new();
    let known: HashSet<&str> = there.iter().map(|object| object.key.as_str()).collect();
    for prefix in ["hold/", "freeze/"] {
        let ours = || listed.iter().map(|object| &object.key).filter(|key| key.starts_with(prefix));
        let mut differs = None;
        for key in ours().filter(|key| known.contains(key.as_str())) {
            let here = source.storage().get(key).doing(|| format!("reading {key}"))?;
            if here != to.get(key).doing(|| format!("reading {key} in the target"))? {
                differs = Some(key.clone());
            }
        }
        if let Some(key) = differs {
            own.extend(ours().cloned());
            let message = format!(
                "the target has another {key} than the source: what is held or frozen at the source is not carried; say it there, too"
            );
            report.findings.push(Finding::new(Severity::Warning, "own-words", key, message));
        }
    }
    Ok(own)
}

fn in_order(mut row: Vec<Load>) -> Vec<Load> {
    row.sort_by_key(|load| match load.place {
        Place::Prune(generation, step) => (Some(generation), Some(step)),
        Place::Hold(number) | Place::Freeze(number) => (Some(number), None),
        _ => (load.place.link().map(|(_, number)| number), None),
    });
    row
}

fn is_left_out(place: &Place, options: &CopyOptions, wanted: &Wanted, tombstones: &HashSet<&str>) -> bool {
    let other = options.dataset.as_deref().zip(place.dataset()).is_some_and(|(wanted, dataset)| wanted != dataset);
    let is_early = |host: &str, dataset: &str, number: u64| {
        wanted.from.get(&name::snapshots_of(host, dataset)).is_some_and(|from| number < *from)
    };
    let unwanted = match place {
        Place::Pack(hash) => wanted.packs.as_ref().is_some_and(|packs| !packs.contains(hash)),
        Place::Refs(host, dataset, hash) => {
            let key = || format!("{}{}", name::refs_of(host, dataset), Hash(*hash));
            wanted.refs.as_ref().is_some_and(|refs| !refs.contains(&key()))
        }
        Place::Snapshot(host, dataset, number) | Place::Verification(host, dataset, number) => {
            is_early(host, dataset, *number)
        }
        _ => false,
    };
    let pruned = match place {
        Place::Snapshot(host, dataset, number) => tombstones.contains(tombstone_key(host, dataset, *number).as_str()),
        _ => false,
    };
    other || unwanted || pruned
}

fn differs(object: &Listed, size: u64) -> Finding {
    let message = format!(
        "{} holds {size} bytes in the target and {} in the source: one of the two is damaged; run `lifeboat vault check` on both, and \
         heal that one from the other",
        object.key, object.size
    );
    Finding::new(Severity::Alarm, "differs", &object.key, message)
}

fn chains(listed: &[Listed]) -> Chains {
    let mut chains = Chains::new();
    for object in listed {
        if let Some((chain, number)) = Place::of(&object.key).and_then(|place| place.link()) {
            chains.entry(chain).or_default().insert(number, object.key.clone());
        }
    }
    chains
}

/// The newest point of every chain of points at the source, held against what this machine saw there before.
fn heads(source: &Vault, here: &Chains, findings: &mut Vec<Finding>) -> Result<Vec<(String, u64, Hash)>> {
    let mut heads = Vec::new();
    for (chain, links) in here.iter().filter(|(chain, _)| chain.starts_with("snap/")) {
        let Some((number, key)) = links.last_key_value() else { continue };
        let read = source.storage().get(key).doing(|| format!("reading {key}"));
        if let Some(bytes) = note(read, findings)? {
            heads.push((chain.clone(), *number, Hash(crate::crypt::hash(&bytes))));
        }
    }
    for (chain, seen) in source.remembered_heads("snap/")? {
        let found = here.get(&chain).and_then(|links| links.last_key_value()).map_or(0, |(number, _)| *number);
        if found < seen && !is_pruned(source, &format!("{chain}{}", name::number(seen)))? {
            let (found, seen) = (format!("number {found}"), format!("number {seen}"));
            findings.push(Finding::from(&VaultError::RolledBack { object: chain, found, seen }));
        }
    }
    for (chain, number, hash) in &heads {
        source.remember_head(chain, *number, hash.0)?;
    }
    Ok(heads)
}

/// Whether both went the same way, as far as both went.
fn compare(
    source: &Vault,
    to: &Arc<dyn Storage>,
    here: &Chains,
    beyond: &Chains,
    report: &mut CopyReport,
) -> Result<()> {
    let lacks = source.left_out()?;
    for (chain, theirs) in beyond {
        let Some(ours) = here.get(chain) else {
            if chain.starts_with("snap/") {
                behind(source, chain, 0, theirs, report);
            }
            continue;
        };
        let common = theirs.keys().rev().find(|number| ours.contains_key(number));
        if let Some(key) = common.and_then(|number| ours.get(number)) {
            let (left, right) = (source.storage().get(key), to.get(key));
            // What cannot be read is found damaged elsewhere, by name.
            if let (Ok(left), Ok(right)) = (left, right)
                && left != right
                && both_right(source, key, &left, &right)
            {
                let (from, to) = (source.storage().location(), to.location());
                return Err(VaultError::Diverged { object: key.clone(), from, to });
            }
        }
        let newest = ours.last_key_value().map_or(0, |(number, _)| *number);
        if chain.starts_with("snap/") {
            behind(source, chain, newest, theirs, report);
            for (number, key) in theirs.range(lacks.first_of(chain)..newest.max(lacks.first_of(chain))) {
                if !ours.contains_key(number) && !is_pruned(source, key)? {
                    let why = "the target still has it, and no tombstone says that it was pruned";
                    report.findings.push(Finding::missing(key, why));
                }
            }
        }
    }
    Ok(())
}

/// Two objects that are both rightly signed for one place: the vaults went different ways. Otherwise one of them is damaged.
fn both_right(source: &Vault, key: &str, left: &[u8], right: &[u8]) -> bool {
    let roster = source.roster();
    let right_one =
        |bytes| Place::of(key).is_some_and(|place| crate::object::check(&roster, key, &place, bytes).is_ok());
    right_one(left) && right_one(right)
}

fn is_pruned(source: &Vault, key: &str) -> Result<bool> {
    let Some(Place::Snapshot(host, dataset, number)) = Place::of(key) else { return Ok(false) };
    let stone = source.tombstone(&*source.ledger()?, &host, &dataset, number);
    Ok(note(stone, &mut Vec::new())?.flatten().is_some())
}

fn behind(source: &Vault, chain: &str, newest: u64, theirs: &BTreeMap<u64, String>, report: &mut CopyReport) {
    let Some((number, _)) = theirs.last_key_value().filter(|(number, _)| **number > newest) else { return };
    let message = format!(
        "the target is ahead of the source in {chain}: it has number {number}, {} ends at {newest}; if the source is the vault that hosts \
         write to, it was rolled back, and is healed by copying the other way",
        source.storage().location()
    );
    report.findings.push(Finding::new(Severity::Warning, "source-behind", chain, message));
}
