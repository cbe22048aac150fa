//! Putting directories together from nodes that arrive in any order.
//!
//! A folder knows how many of its slots are still open. Who fills the last one stores the listing and fills the slot in
//! the folder above, and so on up to the top. So a directory is stored, and forgotten, as soon as it is complete.
//!
//! Invariant: what a folder becomes depends only on the nodes in its slots, not on the order in which they came.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{BackupError, LISTED_MAX, TreeSummary, report_skip, seal_root};
use crate::crypt::MarkKey;
use crate::files::Progress;
use crate::files::cache::{CacheWriter, Digest, Memory, Remembered};
use crate::files::chunk::Chunker;
use crate::files::metadata::Metadata;
use crate::files::pages::Maps;
use crate::files::tree::{Kind, Link, Listing, Node, Span, begin_listing};
use crate::files::walk::{Referenced, Skipped};
use crate::port::OwnIds;
use crate::{ChunkId, ChunkSink};

use std::os::unix::ffi::OsStrExt;

const DIGESTS: &str = "lifeboat 1 digests of small files";
/// A listing up to this size lies in its directory's node, so that small directories do not become small chunks.
const INLINE_BYTES_MAX: usize = 16 << 10;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A directory being put together.
pub(super) struct Folder {
    name: Vec<u8>,
    metadata: Option<Metadata>,
    full: PathBuf,
    slots: Mutex<Vec<Slot>>,
    open: AtomicUsize,
    above: Option<(Arc<Folder>, usize)>,
    /// Directories are counted as they are met.
    ordinal: u64,
}

/// Where in the tree a chunk belongs: the directory's ordinal, the entry's in it, the chunk's in that.
pub(super) type Order = (u64, u32, u32);

pub(super) enum Slot {
    /// Still open, or nothing came of it.
    Nothing,
    Node(Content),
}

/// A node in encoded form.
pub(super) struct Content {
    pub(super) name: Vec<u8>,
    pub(super) encoded: Vec<u8>,
    /// Of a file.
    pub(super) size: Option<u64>,
    /// Present if the file cache may remember it.
    pub(super) memory: Option<Memory>,
}

impl Folder {
    /// A folder with so many slots; it stays open until `release`d by its maker.
    pub(super) fn new(
        name: Vec<u8>,
        metadata: Option<Metadata>,
        full: PathBuf,
        slots: usize,
        above: Option<(Arc<Folder>, usize)>,
        ordinal: u64,
    ) -> Arc<Self> {
        let open = AtomicUsize::new(slots + 1);
        let slots = Mutex::new((0..slots).map(|_| Slot::Nothing).collect());
        Arc::new(Folder { name, metadata, full, slots, open, above, ordinal })
    }

    /// Where the first chunk of an entry belongs.
    pub(super) fn order(&self, index: usize) -> Order {
        (self.ordinal, index as u32, 0)
    }
}

/// A file that was read: its node, and what the file cache may remember of it.
pub(super) type Known = (Node, Option<Memory>);

/// The names of one file: the first is read, the others share what came of it.
pub(super) struct LinkGroup {
    link: Link,
    state: Mutex<Shared>,
}

enum Shared {
    Awaited(Vec<(Arc<Folder>, usize, Vec<u8>)>),
    Known(Option<Known>),
}

impl LinkGroup {
    pub(super) fn new(link: Link) -> Self {
        LinkGroup { link, state: Mutex::new(Shared::Awaited(Vec::new())) }
    }
}

#[derive(Default)]
struct Notes {
    skipped: Vec<Skipped>,
    changed: Vec<PathBuf>,
    skipped_count: u64,
    changed_count: u64,
}

#[derive(Default)]
struct Counts {
    files: AtomicU64,
    directories: AtomicU64,
    bytes: AtomicU64,
    bytes_read: AtomicU64,
    bytes_new: AtomicU64,
    excluded: AtomicU64,
}

/// Where nodes, chunks and notes come together.
pub(super) struct Assembler<'a> {
    sink: &'a dyn ChunkSink,
    pub(super) chunker: Chunker,
    /// What tells the contents of small files apart. Without it none is taken for what it was.
    digests: Option<MarkKey>,
    cache: Option<&'a CacheWriter>,
    /// What is known of files that are rewritten in place.
    pub(super) maps: Option<&'a Maps>,
    pub(super) progress: &'a dyn Progress,
    counts: Counts,
    notes: Mutex<Notes>,
    references: Mutex<OwnIds<Order>>,
    top: Mutex<Option<Node>>,
    failure: Mutex<Option<BackupError>>,
}

fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

impl<'a> Assembler<'a> {
    pub(super) fn new(
        sink: &'a dyn ChunkSink,
        cache: Option<&'a CacheWriter>,
        maps: Option<&'a Maps>,
        progress: &'a dyn Progress,
    ) -> Self {
        Assembler {
            sink,
            chunker: Chunker::new(sink.chunker_seed()),
            digests: MarkKey::new(&blake3::derive_key(DIGESTS, &sink.memory_key())).ok(),
            cache,
            maps,
            progress,
            counts: Counts::default(),
            notes: Mutex::default(),
            references: Mutex::default(),
            top: Mutex::new(None),
            failure: Mutex::new(None),
        }
    }

    /// Stores a chunk and counts it.
    pub(super) fn put(&self, data: &[u8], order: Order) -> Result<ChunkId, BackupError> {
        let stored = self.sink.put(data).map_err(BackupError::Store)?;
        if stored.new {
            add(&self.counts.bytes_new, data.len() as u64);
        }
        self.need([(stored.id, order)]);
        Ok(stored.id)
    }

    /// The same for pieces of one buffer.
    pub(super) fn put_all(
        &self,
        data: &[u8],
        pieces: &[Range<usize>],
        orders: &[Order],
    ) -> Result<Vec<ChunkId>, BackupError> {
        let stored = self.sink.put_all(data, pieces).map_err(BackupError::Store)?;
        let new = stored.iter().zip(pieces).filter(|(stored, _)| stored.new).map(|(_, piece)| piece.len() as u64);
        add(&self.counts.bytes_new, new.sum());
        self.need(stored.iter().zip(orders).map(|(stored, order)| (stored.id, *order)));
        Ok(stored.into_iter().map(|stored| stored.id).collect())
    }

    /// What a small file's content is known again by.
    pub(super) fn digest(&self, content: &[u8]) -> Option<Digest> {
        self.digests.as_ref()?.mark(0, content)
    }

    /// Whether the vault holds a chunk.
    pub(super) fn contains(&self, id: &ChunkId) -> bool {
        self.sink.contains(id)
    }

    /// Notes chunks as needed, where they are met first.
    pub(super) fn need(&self, chunks: impl IntoIterator<Item = (ChunkId, Order)>) {
        let mut references = lock(&self.references);
        for (id, order) in chunks {
            let first = references.entry(id).or_insert(order);
            *first = (*first).min(order);
        }
    }

    /// Notes chunks that are in the vault already as needed.
    pub(super) fn keep(&self, spans: &[Span], order: Order) {
        self.need(spans.iter().zip(0..).filter_map(|(span, ordinal)| match span {
            Span::Data { id, .. } => Some((*id, (order.0, order.1, ordinal))),
            Span::Hole { .. } => None,
        }));
    }

    pub(super) fn note_scan(&self, references: Vec<Referenced>, skipped: Vec<Skipped>, excluded: u64, ordinal: u64) {
        if !references.is_empty() {
            self.need(references.into_iter().map(|found| (found.id, (ordinal, found.entry, found.ordinal))));
        }
        add(&self.counts.excluded, excluded);
        for Skipped { path, reason } in skipped {
            self.skip(path, reason);
        }
    }

    pub(super) fn bytes_new(&self) -> u64 {
        self.counts.bytes_new.load(Ordering::Relaxed)
    }

    pub(super) fn note_read(&self, bytes: u64) {
        add(&self.counts.bytes_read, bytes);
        self.progress.report(&crate::files::Event::Bytes(bytes));
    }

    pub(super) fn skip(&self, path: PathBuf, reason: String) {
        let skipped = Skipped { path, reason };
        report_skip(self.progress, &skipped);
        let mut notes = lock(&self.notes);
        notes.skipped_count += 1;
        if notes.skipped.len() < LISTED_MAX {
            notes.skipped.push(skipped);
        }
    }

    pub(super) fn note_changed(&self, path: PathBuf) {
        let mut notes = lock(&self.notes);
        notes.changed_count += 1;
        if notes.changed.len() < LISTED_MAX {
            notes.changed.push(path);
        }
    }

    /// Keeps the first failure.
    pub(super) fn fail(&self, error: BackupError) {
        lock(&self.failure).get_or_insert(error);
    }

    pub(super) fn failure(&self) -> Option<BackupError> {
        lock(&self.failure).take()
    }

    /// Fills a slot; the folder may thereby be complete.
    pub(super) fn fill(&self, folder: &Arc<Folder>, index: usize, slot: Slot) {
        if let Slot::Node(content) = &slot
            && let Some(size) = content.size
        {
            add(&self.counts.files, 1);
            add(&self.counts.bytes, size);
            self.progress.report(&crate::files::Event::Files(1));
        }
        if let Some(place) = lock(&folder.slots).get_mut(index) {
            *place = slot;
        }
        self.release(folder);
    }

    /// Counts one open slot less, and completes what has none left.
    pub(super) fn release(&self, folder: &Arc<Folder>) {
        let mut folder = Arc::clone(folder);
        while folder.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            let node = match self.complete(&folder) {
                Ok(node) => node,
                Err(error) => return self.fail(error),
            };
            let Some((above, index)) = &folder.above else {
                *lock(&self.top) = Some(node);
                return;
            };
            let encoded = node.encoded();
            if let Some(place) = lock(&above.slots).get_mut(*index) {
                *place = Slot::Node(Content { name: Vec::new(), encoded, size: None, memory: None });
            }
            folder = Arc::clone(above);
        }
    }

    fn complete(&self, folder: &Folder) -> Result<Node, BackupError> {
        let slots = std::mem::take(&mut *lock(&folder.slots));
        let contents = || {
            slots.iter().filter_map(|slot| match slot {
                Slot::Node(content) => Some(content),
                Slot::Nothing => None,
            })
        };
        if let Some(cache) = self.cache {
            let files: Vec<_> = contents()
                .filter_map(|content| {
                    let memory = content.memory?;
                    Some(Remembered { name: &content.name, memory, node: &content.encoded })
                })
                .collect();
            if !files.is_empty() {
                // A cache that cannot be written is found out, and told, when it is finished.
                let _ = cache.add(folder.full.as_os_str().as_bytes(), &files);
            }
        }
        let mut listing = begin_listing();
        listing.reserve(contents().map(|content| content.encoded.len()).sum());
        contents().for_each(|content| listing.extend_from_slice(&content.encoded));
        let listing = if listing.len() <= INLINE_BYTES_MAX {
            Listing::Inline(listing)
        } else {
            Listing::Stored(self.store_listing(&listing, folder.ordinal)?)
        };
        add(&self.counts.directories, 1);
        let (name, metadata) = (folder.name.clone(), folder.metadata.clone());
        Ok(Node { name, kind: Kind::Directory(listing), metadata, link: None })
    }

    fn store_listing(&self, listing: &[u8], directory: u64) -> Result<Vec<Span>, BackupError> {
        let pieces = self.chunker.cut_listing(listing);
        pieces
            .into_iter()
            .zip(0..)
            .map(|(piece, ordinal)| {
                let data = listing.get(piece).unwrap_or_default();
                Ok(Span::Data {
                    id: self.put(data, (directory, u32::MAX, ordinal))?,
                    offset: 0,
                    length: data.len() as u32,
                })
            })
            .collect()
    }

    /// Fills the slot of a file that was read (or could not be).
    pub(super) fn fill_file(&self, folder: &Arc<Folder>, index: usize, file: Option<Known>) {
        let slot = file.map_or(Slot::Nothing, |(node, memory)| Slot::Node(content(node, memory)));
        self.fill(folder, index, slot);
    }

    /// The same for the first name of several; the others get theirs, too.
    pub(super) fn fill_linked(&self, group: &LinkGroup, folder: &Arc<Folder>, index: usize, file: Option<Known>) {
        let file = file.map(|(node, memory)| (Node { link: Some(group.link), ..node }, memory));
        let before = std::mem::replace(&mut *lock(&group.state), Shared::Known(file.clone()));
        self.fill_file(folder, index, file.clone());
        if let Shared::Awaited(waiting) = before {
            for (folder, index, name) in waiting {
                self.fill_alias(&folder, index, name, &file);
            }
        }
    }

    /// Gives a further name what the first got, or will get.
    pub(super) fn share(&self, group: &LinkGroup, folder: &Arc<Folder>, index: usize, name: Vec<u8>) {
        let file = match &mut *lock(&group.state) {
            Shared::Awaited(waiting) => {
                waiting.push((Arc::clone(folder), index, name));
                return;
            }
            Shared::Known(file) => file.clone(),
        };
        self.fill_alias(folder, index, name, &file);
    }

    fn fill_alias(&self, folder: &Arc<Folder>, index: usize, name: Vec<u8>, file: &Option<Known>) {
        if file.is_none() {
            let path = crate::files::walk::path_from(name.clone());
            self.skip(folder.full.join(path), "another name of this file could not be read".to_owned());
        }
        let file = file.clone().map(|(node, memory)| (Node { name, ..node }, memory));
        self.fill_file(folder, index, file);
    }

    fn ordered_references(&self) -> Vec<ChunkId> {
        let mut references: Vec<_> = std::mem::take(&mut *lock(&self.references)).into_iter().collect();
        references.sort_unstable_by_key(|(id, order)| (*order, *id));
        references.into_iter().map(|(id, _)| id).collect()
    }

    /// Stores the root object once everything is in.
    pub(super) fn finish(&self, sources: Vec<Vec<u8>>) -> Result<TreeSummary, BackupError> {
        let Some(top) = lock(&self.top).take() else { return Err(BackupError::Incomplete) };
        let mut notes = std::mem::take(&mut *lock(&self.notes));
        notes.skipped.sort_by(|a, b| a.path.cmp(&b.path));
        notes.changed.sort();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counts = &self.counts;
        let summary = TreeSummary {
            root: ChunkId([0; 32]),
            references: self.ordered_references(),
            files: count(&counts.files),
            directories: count(&counts.directories),
            bytes: count(&counts.bytes),
            bytes_read: count(&counts.bytes_read),
            bytes_new: count(&counts.bytes_new),
            excluded: count(&counts.excluded),
            skipped: notes.skipped,
            skipped_count: notes.skipped_count,
            changed: notes.changed,
            changed_count: notes.changed_count,
            cache_failure: None,
        };
        seal_root(self.sink, top, sources, summary)
    }
}

fn content(node: Node, memory: Option<Memory>) -> Content {
    Content { encoded: node.encoded(), size: Some(node.size()), name: node.name, memory }
}
