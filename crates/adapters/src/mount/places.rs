//! Which number stands for what: data sets, points, and the names in them that the kernel asked for.
//!
//! Numbers are made from where a name stands, so that the same name gets the same number again. Invariant: what the kernel forgets is
//! forgotten here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use lifeboat_core::units::Span;
use lifeboat_vault::files::{Kind, Node, TreeError, read_entries, read_root, tree_root};
use lifeboat_vault::{PointInfo, Source, Unlocked, VaultError};

use super::Shown;
use super::content::lock;

/// Directory entries that are kept taken apart.
const ENTRIES_KEPT: usize = 200_000;
pub(super) const ROOT: u64 = 1;
/// Numbers above this are made from names.
const MADE: u64 = 1 << 32;

/// What stands behind a number.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// A directory that is in no point: names and their numbers.
    Shelf(Arc<Vec<(Vec<u8>, u64)>>),
    Link(Vec<u8>),
    /// The top of a point.
    Point(usize),
    Node(Arc<Named>),
}

/// A name in a point.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) point: usize,
    pub(super) above: u64,
    pub(super) node: Node,
}

#[derive(Debug)]
struct DataSet {
    name: String,
    source: OnceLock<Arc<Source>>,
}

#[derive(Debug)]
struct Point {
    info: PointInfo,
    set: usize,
    top: OnceLock<Arc<Node>>,
}

type Listing = Arc<Vec<Arc<Node>>>;

#[derive(Debug, Default)]
struct Listings {
    kept: HashMap<u64, (Listing, u64)>,
    entries: usize,
    clock: u64,
}

#[derive(Debug)]
pub(super) struct Places {
    vault: Unlocked,
    sets: Vec<DataSet>,
    points: Vec<Point>,
    /// What is there from the beginning.
    fixed: Vec<Place>,
    /// What the kernel asked for, and how often.
    known: Mutex<HashMap<u64, (Arc<Named>, u64)>>,
    listings: Mutex<Listings>,
}

impl Places {
    pub(super) fn new(vault: &Unlocked, shown: &Shown) -> Places {
        let mut places = Places {
            vault: vault.clone(),
            sets: Vec::new(),
            points: Vec::new(),
            fixed: Vec::new(),
            known: Mutex::default(),
            listings: Mutex::default(),
        };
        match shown {
            Shown::Point(point) => {
                let number = places.point(point);
                places.fixed.push(Place::Point(number));
            }
            Shown::DataSet(points) => {
                places.fixed.push(Place::Shelf(Arc::default()));
                let shelf = places.shelf_of(points);
                places.put(ROOT, Place::Shelf(Arc::new(shelf)));
            }
            Shown::All(points) => {
                places.fixed.push(Place::Shelf(Arc::default()));
                let mut names: Vec<&str> = points.iter().map(|point| point.dataset.as_str()).collect();
                names.sort_unstable();
                names.dedup();
                let mut top: Vec<(Vec<u8>, u64)> = Vec::new();
                for name in names {
                    let of_it: Vec<PointInfo> = points.iter().filter(|point| point.dataset == name).cloned().collect();
                    let shelf = places.shelf_of(&of_it);
                    let number = places.add(Place::Shelf(Arc::new(shelf)));
                    let plain = name.trim_matches('/').replace('/', "-");
                    let plain = if plain.is_empty() { "root".to_owned() } else { plain };
                    top.push((unused(&top, &plain), number));
                }
                places.put(ROOT, Place::Shelf(Arc::new(top)));
            }
        }
        places
    }

    fn add(&mut self, place: Place) -> u64 {
        self.fixed.push(place);
        self.fixed.len() as u64
    }

    fn put(&mut self, number: u64, place: Place) {
        if let Some(old) = self.fixed.get_mut(number.saturating_sub(1) as usize) {
            *old = place;
        }
    }

    fn point(&mut self, point: &PointInfo) -> usize {
        let set = self.sets.iter().position(|set| set.name == point.dataset).unwrap_or_else(|| {
            self.sets.push(DataSet { name: point.dataset.clone(), source: OnceLock::new() });
            self.sets.len() - 1
        });
        self.points.push(Point { info: point.clone(), set, top: OnceLock::new() });
        self.points.len() - 1
    }

    /// A data set's points by time, and `latest`.
    fn shelf_of(&mut self, points: &[PointInfo]) -> Vec<(Vec<u8>, u64)> {
        let mut shelf: Vec<(Vec<u8>, u64)> = Vec::new();
        for point in points {
            let name = unused(&shelf, &point.taken_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
            let number = self.point(point);
            let number = self.add(Place::Point(number));
            shelf.push((name, number));
        }
        if let Some((newest, _)) = shelf.last() {
            let number = self.add(Place::Link(newest.clone()));
            shelf.push((b"latest".to_vec(), number));
        }
        shelf
    }

    pub(super) fn place(&self, number: u64) -> Option<Place> {
        match number < MADE {
            true => self.fixed.get(number.checked_sub(1)? as usize).cloned(),
            false => lock(&self.known).get(&number).map(|(named, _)| Place::Node(named.clone())),
        }
    }

    /// Where the chunks of a point come from.
    pub(super) fn source(&self, point: usize) -> Result<(Arc<Source>, usize), VaultError> {
        let gone = || VaultError::Missing { object: format!("point {point}") };
        let set = self.points.get(point).ok_or_else(gone)?.set;
        let dataset = self.sets.get(set).ok_or_else(gone)?;
        if let Some(source) = dataset.source.get() {
            return Ok((source.clone(), set));
        }
        let opened = Arc::new(self.vault.source(&dataset.name)?);
        Ok((dataset.source.get_or_init(|| opened).clone(), set))
    }

    /// The top directory of a point.
    pub(super) fn top(&self, point: usize) -> Result<Arc<Node>, TreeError> {
        let Some(known) = self.points.get(point) else { return Err(TreeError::Damaged { what: "no such point" }) };
        if let Some(top) = known.top.get() {
            return Ok(top.clone());
        }
        let root = tree_root(&self.vault, &known.info).map_err(TreeError::Chunk)?;
        let (source, _) = self.source(point).map_err(TreeError::Chunk)?;
        let top = Arc::new(read_root(&*source, &root)?.top);
        Ok(known.top.get_or_init(|| top).clone())
    }

    /// What a directory of a point holds, by name.
    pub(super) fn listing(&self, number: u64, point: usize, directory: &Node) -> Result<Listing, TreeError> {
        {
            let mut listings = lock(&self.listings);
            listings.clock += 1;
            let clock = listings.clock;
            if let Some((listing, used)) = listings.kept.get_mut(&number) {
                *used = clock;
                return Ok(listing.clone());
            }
        }
        let (source, _) = self.source(point).map_err(TreeError::Chunk)?;
        let entries: Result<Vec<Arc<Node>>, TreeError> =
            read_entries(&*source, directory)?.map(|entry| entry.map(Arc::new)).collect();
        let listing = Arc::new(entries?);
        let mut listings = lock(&self.listings);
        let clock = listings.clock;
        listings.entries += listing.len();
        if let Some((before, _)) = listings.kept.insert(number, (listing.clone(), clock)) {
            listings.entries -= before.len();
        }
        while listings.entries > ENTRIES_KEPT && listings.kept.len() > 1 {
            let Some(oldest) = listings.kept.iter().min_by_key(|(_, (_, used))| *used).map(|(number, _)| *number)
            else {
                break;
            };
            if let Some((gone, _)) = listings.kept.remove(&oldest) {
                listings.entries -= gone.len();
            }
        }
        Ok(listing)
    }

    /// The number of a name. Names of one file share theirs.
    pub(super) fn number(&self, point: usize, above: u64, node: &Node) -> u64 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(point as u64).to_le_bytes());
        match &node.link {
            // Only what is alike in all is one file: the group is what a host said.
            Some(link) => {
                hasher.update(b"link").update(&link.group).update(&node.size().to_le_bytes());
                for id in node.chunk_ids() {
                    hasher.update(id.as_bytes());
                }
            }
            None => {
                hasher.update(b"name").update(&above.to_le_bytes()).update(&node.name);
            }
        }
        let bytes = hasher.finalize().as_bytes().first_chunk::<8>().copied().unwrap_or_default();
        u64::from_le_bytes(bytes) | MADE
    }

    /// Notes that the kernel knows a name now.
    pub(super) fn remember(&self, point: usize, above: u64, node: &Node) -> u64 {
        let number = self.number(point, above, node);
        let mut known = lock(&self.known);
        let place = known.entry(number).or_insert_with(|| (Arc::new(Named { point, above, node: node.clone() }), 0));
        place.1 += 1;
        number
    }

    pub(super) fn forget(&self, number: u64, times: u64) {
        let mut known = lock(&self.known);
        if let Some(place) = known.get_mut(&number) {
            place.1 = place.1.saturating_sub(times);
            if place.1 == 0 {
                known.remove(&number);
            }
        }
    }

    /// For the log: where a number stands.
    pub(super) fn path(&self, number: u64) -> String {
        let (mut at, mut names) = (number, Vec::new());
        for _ in 0..4096 {
            match self.place(at) {
                Some(Place::Node(named)) => {
                    names.push(String::from_utf8_lossy(&named.node.name).escape_debug().to_string());
                    at = named.above;
                }
                Some(Place::Point(point)) => {
                    let id = self.points.get(point).map(|point| point.info.id.clone()).unwrap_or_default();
                    names.push(format!("{id}:"));
                    break;
                }
                _ => break,
            }
        }
        names.reverse();
        names.join("/")
    }

    /// What of the point that a number stands in must be thawed, and how, for the log.
    pub(super) fn to_thaw(&self, number: u64) -> String {
        let point = match self.place(number) {
            Some(Place::Node(named)) => named.point,
            Some(Place::Point(point)) => point,
            _ => return String::new(),
        };
        let Some(info) = self.points.get(point).map(|point| &point.info) else { return String::new() };
        let archived = info.archived.as_ref().map(|archived| {
            let (packs, class, thaw) = (archived.packs, &archived.class, Span::seconds(archived.thaw_seconds));
            format!(" ({packs} packs of this point lie in the class {class}: up to {thaw} to thaw)")
        });
        let restore =
            format!("; `lifeboat restore --point {} --key FILE --to DIR` has them thawed as the plan says", info.id);
        archived.unwrap_or_default() + &restore
    }

    /// When a point was taken.
    pub(super) fn taken_at(&self, point: usize) -> jiff::Timestamp {
        self.points.get(point).map(|point| point.info.taken_at).unwrap_or_default()
    }
}

/// A name that no other has.
fn unused(names: &[(Vec<u8>, u64)], wanted: &str) -> Vec<u8> {
    let taken = |name: &str| names.iter().any(|(known, _)| known == name.as_bytes());
    let mut name = wanted.to_owned();
    for number in 2.. {
        if !taken(&name) {
            break;
        }
        name = format!("{wanted}.{number}");
    }
    name.into_bytes()
}

/// Bytes that are no holes, in the blocks that `stat` counts.
pub(super) fn blocks(node: &Node) -> u64 {
    let Kind::File { spans, .. } = &node.kind else { return 0 };
    let data = spans.iter().filter(|span| matches!(span, lifeboat_vault::files::Span::Data { .. }));
    data.map(|span| span.length()).fold(0, u64::saturating_add).div_ceil(512)
}
