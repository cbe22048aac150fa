//! From new chunks to finished packs: who brings chunks compresses them, all fill one pack after another.
//!
//! Chunks that lie one after another in a thread's buffer become a frame without being copied; what is left over (a tail, a
//! listing, a lone change) waits in the thread's own frame buffer for its neighbours.
//!
//! Invariant: there are never more than `PACK_BUFFERS_MAX` pack buffers and, a thread, one press: a slow storage makes a backup slow
//! and not large.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

use super::{SessionOptions, lock};
use crate::error::{Result, VaultError};
use crate::pack::{FRAME_BYTES, FrameBuffer, PackBuilder, push_record};
use crate::port::ChunkId;

/// One is filled, the others are written; where only one is written at once, it is so soon enough that none has to wait beside it.
const PACK_BUFFERS_MAX: usize = 3;
/// A frame of chunks that came one by one, listings mostly: who needs one of them unpacks little, and what is known of a file hardly compresses better in larger ones.
const SINGLES_BYTES: usize = 256 << 10;
const FRAME_BUFFERS_MAX: usize = 16;
/// What a database's pages are multiples of.
const PAGE_BYTES: usize = 4096;

/// What one thread compresses with: contexts and buffers are dear to make and cheap to keep.
struct Press {
    compressor: zstd::bulk::Compressor<'static>,
    out: Vec<u8>,
}

impl std::fmt::Debug for Press {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Press")
    }
}

/// Where frames and packs are made.
#[derive(Debug)]
pub(super) struct Packing {
    vault: String,
    secret: [u8; 32],
    pub(super) sealed_secret: Vec<u8>,
    options: SessionOptions,
    frames: Mutex<Vec<(ThreadId, FrameBuffer)>>,
    /// Chunks that come one by one: listings, mostly. Whoever walks a tree reads them in a row, and nothing else.
    singles: Mutex<FrameBuffer>,
    presses: Mutex<Vec<Press>>,
    pack: Mutex<Option<PackBuilder>>,
    buffers_max: usize,
    buffers: Mutex<Buffers>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct Buffers {
    made: usize,
    free: Vec<Vec<u8>>,
}

impl Packing {
    /// `writers`: how many packs are written at once.
    pub(super) fn new(
        vault: String,
        secret: [u8; 32],
        sealed_secret: Vec<u8>,
        options: SessionOptions,
        writers: usize,
    ) -> Packing {
        Packing {
            buffers_max: (1 + writers).min(PACK_BUFFERS_MAX),
            vault,
            secret,
            sealed_secret,
            options,
            frames: Mutex::default(),
            singles: Mutex::default(),
            presses: Mutex::default(),
            pack: Mutex::default(),
            buffers: Mutex::default(),
            freed: Condvar::new(),
        }
    }

    /// Takes in new chunks that lie in a row in `data`. Returns the packs that are full thereby.
    pub(super) fn add_row(
        &self,
        data: &[u8],
        row: &[(ChunkId, Range<usize>)],
        failed: &AtomicBool,
    ) -> Result<Vec<PackBuilder>> {
        let mut full = Vec::new();
        let mut rest = row;
        while let (Some(first), Some(last)) = (rest.first(), rest.last()) {
            let start = first.1.start;
            // What fills a frame, or half of one, is compressed where it lies.
            let end = rest.iter().position(|(_, range)| range.end - start >= FRAME_BYTES);
            let count = end.map_or(rest.len(), |index| index + 1);
            if end.is_none() && last.1.end - start < FRAME_BYTES / 2 {
                full.extend(self.add_loose(data, rest, failed)?);
                break;
            }
            let (these, later) = rest.split_at_checked(count).unwrap_or((rest, &[]));
            rest = later;
            let stop = these.last().map_or(start, |(_, range)| range.end);
            let mut records = Vec::with_capacity(these.len() * 36);
            these.iter().for_each(|(id, range)| push_record(&mut records, id, range.len()));
            full.extend(self.seal(data.get(start..stop).unwrap_or_default(), records, failed)?);
        }
        Ok(full)
    }

    /// Takes in a chunk that comes alone.
    pub(super) fn add_single(&self, id: &ChunkId, plain: &[u8], failed: &AtomicBool) -> Result<Option<PackBuilder>> {
        let mut singles = lock(&self.singles);
        singles.add(id, plain);
        if singles.plain.len() < SINGLES_BYTES {
            return Ok(None);
        }
        let mut frame = std::mem::take(&mut *singles);
        drop(singles);
        let records = frame.take_chunks();
        self.seal(&frame.plain, records, failed)
    }

    /// Lets chunks wait for more of this thread.
    fn add_loose(
        &self,
        data: &[u8],
        row: &[(ChunkId, Range<usize>)],
        failed: &AtomicBool,
    ) -> Result<Option<PackBuilder>> {
        let mut frame = self.take_frame();
        for (id, range) in row {
            frame.add(id, data.get(range.clone()).unwrap_or_default());
        }
        let full = if frame.is_full() {
            let records = frame.take_chunks();
            let full = self.seal(&frame.plain, records, failed)?;
            frame.plain.clear();
            full
        } else {
            None
        };
        lock(&self.frames).push((std::thread::current().id(), frame));
        Ok(full)
    }

    /// The thread's own frame buffer, so that what one thread gives in a row is compressed together.
    fn take_frame(&self) -> FrameBuffer {
        let mine = std::thread::current().id();
        let mut frames = lock(&self.frames);
        let place = frames.iter().position(|(owner, _)| *owner == mine);
        let place = place.or_else(|| (frames.len() >= FRAME_BUFFERS_MAX).then_some(0));
        place.map_or_else(FrameBuffer::default, |place| frames.swap_remove(place).1)
    }

    fn take_press(&self) -> Result<Press> {
        if let Some(press) = lock(&self.presses).pop() {
            return Ok(press);
        }
        let broken = |_| VaultError::crypto("compressing");
        let mut compressor = zstd::bulk::Compressor::new(self.options.level).map_err(broken)?;
        for parameter in self.options.parameters() {
            compressor.set_parameter(*parameter).map_err(broken)?;
        }
        Ok(Press { compressor, out: Vec::new() })
    }

    /// Compresses one frame and seals it into the pack; returns the pack if it is full.
    fn seal(&self, plain: &[u8], records: Vec<u8>, failed: &AtomicBool) -> Result<Option<PackBuilder>> {
        let mut press = self.take_press()?;
        let broken = |_| VaultError::crypto("compressing");
        // Hardly anything else is just so long.
        let are_pages = plain.len().is_multiple_of(PAGE_BYTES);
        for parameter in self.options.closeness(are_pages) {
            press.compressor.set_parameter(*parameter).map_err(broken)?;
        }
        press.out.clear();
        press.out.reserve(zstd::zstd_safe::compress_bound(plain.len()));
        press.compressor.compress_to_buffer(plain, &mut press.out).map_err(broken)?;
        // What hardly shrinks is faster to restore as it is.
        let shrinks = press.out.len() + press.out.len() / 32 < plain.len();
        let (codec, body) = if shrinks { (1, press.out.as_slice()) } else { (0, plain) };
        let mut pack = lock(&self.pack);
        if pack.is_none() {
            let buffer = self.take_buffer(failed)?;
            *pack = Some(PackBuilder::with_buffer(&self.vault, &self.secret, &self.sealed_secret, buffer)?);
        }
        if let Some(builder) = pack.as_mut() {
            builder.add_chunks(plain.len(), records, codec, body)?;
        }
        let full = if pack.as_ref().is_some_and(PackBuilder::is_full) { pack.take() } else { None };
        drop(pack);
        lock(&self.presses).push(press);
        Ok(full)
    }

    /// Everything that waits, sealed; returns the packs that are to be written, the last one among them.
    pub(super) fn flush(&self, failed: &AtomicBool) -> Result<Vec<PackBuilder>> {
        let mut packs = Vec::new();
        let frames = std::mem::take(&mut *lock(&self.frames));
        let singles = std::mem::take(&mut *lock(&self.singles));
        let frames = frames.into_iter().map(|(_, frame)| frame).chain([singles]);
        for mut frame in frames.filter(|frame| !frame.is_empty()) {
            let records = frame.take_chunks();
            packs.extend(self.seal(&frame.plain, records, failed)?);
        }
        packs.extend(lock(&self.pack).take().filter(|builder| !builder.is_empty()));
        Ok(packs)
    }

    fn take_buffer(&self, failed: &AtomicBool) -> Result<Vec<u8>> {
        let mut buffers = lock(&self.buffers);
        loop {
            if let Some(buffer) = buffers.free.pop() {
                return Ok(buffer);
            }
            if buffers.made < self.buffers_max {
                buffers.made += 1;
                return Ok(Vec::new());
            }
            // Whoever writes gives a buffer back; if it failed, nobody waits for ever.
            if failed.load(Ordering::SeqCst) {
                return Err(VaultError::SessionFailed { why: "the storage failed".to_owned() });
            }
            let waited = self.freed.wait_timeout(buffers, Duration::from_millis(500));
            buffers = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(super) fn give_back(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        lock(&self.buffers).free.push(buffer);
        self.freed.notify_all();
    }
}
