//! Chunks that are being read, kept for the next read and fetched ahead of it.
//!
//! Invariant: no more is kept than the budget and what is being read at the moment; a chunk is fetched once for all who wait for it.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lifeboat_vault::files::{Span, TreeError};
use lifeboat_vault::{ChunkId, ChunkSource, Source};

/// What is kept of chunks.
const BYTES_KEPT: usize = 64 << 20;
/// How far a sequential read is run ahead of.
const AHEAD_BYTES: u64 = 8 << 20;
const AHEAD_THREADS: usize = 2;
const AHEAD_QUEUE: usize = 64;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Bytes = Arc<Vec<u8>>;
type Slot = Arc<Mutex<Option<Bytes>>>;
type Key = (usize, ChunkId);

#[derive(Default)]
struct Kept {
    slots: HashMap<Key, (Slot, u64)>,
    bytes: usize,
    clock: u64,
}

/// The chunks of all data sets.
pub(super) struct Content {
    kept: Arc<Mutex<Kept>>,
    ahead: SyncSender<(Arc<Source>, Key)>,
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Content").finish_non_exhaustive()
    }
}

impl Content {
    pub(super) fn new() -> Content {
        let kept = Arc::new(Mutex::new(Kept::default()));
        let (ahead, queue) = sync_channel(AHEAD_QUEUE);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..AHEAD_THREADS {
            let (queue, kept) = (queue.clone(), kept.clone());
            std::thread::spawn(move || run_ahead(&queue, &kept));
        }
        Content { kept, ahead }
    }

    /// Reads a file's bytes from `offset` on; shorter only at its end. `sequential` readers are run ahead of.
    pub(super) fn read(
        &self,
        (source, set): (&Arc<Source>, usize),
        (spans, ends): (&[Span], &[u64]),
        (offset, length): (u64, usize),
        sequential: bool,
    ) -> Result<Vec<u8>, TreeError> {
        let size = ends.last().copied().unwrap_or(0);
        let length = (length as u64).min(size.saturating_sub(offset)) as usize;
        let mut bytes = Vec::with_capacity(length);
        let mut index = ends.partition_point(|end| *end <= offset);
        while bytes.len() < length {
            let at = offset + bytes.len() as u64;
            let (Some(span), Some(end)) = (spans.get(index), ends.get(index)) else { break };
            let now = (end - at).min((length - bytes.len()) as u64) as usize;
            match *span {
                Span::Hole { .. } => bytes.resize(bytes.len() + now, 0),
                Span::Data { id, offset: start, length: whole } => {
                    let chunk = fetch(&self.kept, source, (set, id))?;
                    let from = start as usize + (at - (end - u64::from(whole))) as usize;
                    let part = chunk.get(from..from + now);
                    let beyond = TreeError::Damaged { what: "a piece that reaches beyond its chunk" };
                    bytes.extend_from_slice(part.ok_or(beyond)?);
                }
            }
            index += 1;
        }
        if sequential {
            self.go_ahead(source, set, spans, ends, index);
        }
        Ok(bytes)
    }

    fn go_ahead(&self, source: &Arc<Source>, set: usize, spans: &[Span], ends: &[u64], from: usize) {
        let start = from.checked_sub(1).and_then(|index| ends.get(index)).copied().unwrap_or(0);
        for (span, end) in spans.iter().zip(ends).skip(from) {
            if end - span.length() >= start + AHEAD_BYTES {
                return;
            }
            let Span::Data { id, .. } = *span else { continue };
            let key = (set, id);
            // A full queue has enough to do.
            if !lock(&self.kept).slots.contains_key(&key) && self.ahead.try_send((source.clone(), key)).is_err() {
                return;
            }
        }
    }
}

fn run_ahead(queue: &Mutex<Receiver<(Arc<Source>, Key)>>, kept: &Mutex<Kept>) {
    loop {
        let Ok((source, key)) = lock(queue).recv() else { return };
        // What fails here fails again, and is told, when it is read.
        let _ = fetch(kept, &source, key);
    }
}

fn fetch(kept: &Mutex<Kept>, source: &Source, key: Key) -> Result<Bytes, TreeError> {
    let slot = {
        let mut kept = lock(kept);
        kept.clock += 1;
        let clock = kept.clock;
        let place = kept.slots.entry(key).or_default();
        place.1 = clock;
        place.0.clone()
    };
    // One thread fetches, the others that want it wait for it.
    let mut place = lock(&slot);
    if let Some(bytes) = &*place {
        return Ok(bytes.clone());
    }
    match source.get(&key.1) {
        Ok(bytes) => {
            let bytes = Arc::new(bytes);
            *place = Some(bytes.clone());
            drop(place);
            make_room(&mut lock(kept), bytes.len());
            Ok(bytes)
        }
        Err(error) => {
            lock(kept).slots.remove(&key);
            Err(TreeError::Chunk(error))
        }
    }
}

/// Counts what came in, and forgets what was not asked for longest.
fn make_room(kept: &mut Kept, came: usize) {
    kept.bytes += came;
    while kept.bytes > BYTES_KEPT {
        let oldest = kept.slots.iter().filter(|(_, (slot, _))| slot.try_lock().is_ok_and(|slot| slot.is_some()));
        let Some(key) = oldest.min_by_key(|(_, (_, clock))| *clock).map(|(key, _)| *key) else { return };
        if let Some((slot, _)) = kept.slots.remove(&key) {
            kept.bytes = kept.bytes.saturating_sub(lock(&slot).as_ref().map_or(0, |bytes| bytes.len()));
        }
    }
}
