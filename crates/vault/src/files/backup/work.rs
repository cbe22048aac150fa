//! The workers: take jobs, have what was cut stored, alone or together.
//!
//! Neighbouring small files are read into one buffer and cut together; a large file is read piece by piece, and workers
//! that have nothing else to do help to store what it was cut into.
//!
//! Invariant: memory is bounded by the number of workers: each holds a buffer, one of them a few where others help it, all of one
//! size and used again; and only few jobs wait.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use super::assemble::{Assembler, Folder, LinkGroup, Order};
use super::pages::{Done, Outcome, Stretch};
use super::{BackupError, is_set};
use crate::ChunkId;
use crate::files::metadata::Seen;
use crate::files::walk::{Former, Place};

/// How much of a large file is read at once.
pub(super) const SEGMENT_BYTES: usize = 8 << 20;
const SEGMENTS_AHEAD_MAX: usize = 4;
/// What is compressed together.
const ROW_BYTES: usize = 4 << 20;

/// A file to read.
pub(super) struct Task {
    pub(super) folder: Arc<Folder>,
    pub(super) index: usize,
    /// In the tree.
    pub(super) name: Vec<u8>,
    /// The directory it stands in.
    pub(super) place: Arc<Place>,
    /// Its name there, where that is another.
    pub(super) real: Option<Vec<u8>>,
    pub(super) seen: Seen,
    pub(super) link: Option<Arc<LinkGroup>>,
    pub(super) former: Option<Former>,
}

impl Task {
    pub(super) fn real_name(&self) -> &Path {
        Path::new(OsStr::from_bytes(self.real.as_ref().unwrap_or(&self.name)))
    }

    pub(super) fn full(&self) -> PathBuf {
        self.place.full().join(self.real_name())
    }

    pub(super) fn is_sparse(&self) -> bool {
        is_sparse(&self.seen)
    }
}

pub(super) fn is_sparse(seen: &Seen) -> bool {
    seen.blocks.saturating_mul(512) < seen.size
}

pub(super) enum Job {
    Group(Vec<Task>),
    Single(Task),
    /// Help with storing pieces.
    Help(Arc<Pieces>),
}

/// Pieces of one buffer that workers store together, row by row.
pub(super) struct Pieces {
    /// Present until all are stored.
    data: Mutex<Option<Arc<Vec<u8>>>>,
    pub(super) ranges: Vec<Range<usize>>,
    orders: Vec<Order>,
    /// Of a file that is rewritten in place.
    stretch: Option<Stretch>,
    /// Pieces that are handed over together: about as much as is compressed together.
    rows: Vec<Range<usize>>,
    next: AtomicUsize,
    stored: Mutex<Stored>,
    done: Condvar,
}

struct Stored {
    done: Vec<Option<Done>>,
    left: usize,
}

struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
    idle: usize,
}

/// The workers and their queue.
pub(super) struct Crew<'a> {
    pub(super) assembler: &'a Assembler<'a>,
    cancel: &'a AtomicBool,
    stop: AtomicBool,
    queue: Mutex<Queue>,
    filled: Condvar,
    emptied: Condvar,
    /// Buffers that nobody has in use. An allocator that gets such large ones back, and is asked for others, keeps more than it gives.
    spare: Mutex<Vec<Vec<u8>>>,
    jobs_max: usize,
    /// Those who work until the queue is closed and empty.
    workers: usize,
    /// Workers beside the one that asks.
    helpers: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait<'m, T>(condition: &Condvar, guard: MutexGuard<'m, T>) -> MutexGuard<'m, T> {
    condition.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Crew<'a> {
    pub(super) fn new(assembler: &'a Assembler<'a>, cancel: &'a AtomicBool, threads: usize) -> Self {
        Crew {
            assembler,
            cancel,
            stop: AtomicBool::new(false),
            queue: Mutex::new(Queue { jobs: VecDeque::new(), closed: false, idle: 0 }),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            spare: Mutex::default(),
            jobs_max: threads * 2,
            workers: threads,
            helpers: threads - 1,
        }
    }

    /// Workers beside a thread that only asks them for help.
    pub(super) fn beside(assembler: &'a Assembler<'a>, cancel: &'a AtomicBool, threads: usize) -> Self {
        Crew { workers: threads - 1, ..Crew::new(assembler, cancel, threads) }
    }

    pub(super) fn workers(&self) -> usize {
        self.workers
    }

    /// Whether to go on.
    pub(super) fn check(&self) -> Result<(), BackupError> {
        if is_set(self.cancel) || is_set(&self.stop) { Err(BackupError::Cancelled) } else { Ok(()) }
    }

    /// An empty buffer with room for a segment, or a group of small files.
    pub(super) fn take_buffer(&self) -> Vec<u8> {
        let spare = lock(&self.spare).pop();
        spare.unwrap_or_else(|| Vec::with_capacity(SEGMENT_BYTES))
    }

    pub(super) fn give_back(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        lock(&self.spare).push(buffer);
    }

    /// Hands a job to the workers, waiting for room.
    pub(super) fn send(&self, job: Job) -> Result<(), BackupError> {
        let mut queue = lock(&self.queue);
        while queue.jobs.len() >= self.jobs_max {
            queue = wait(&self.emptied, queue);
        }
        queue.jobs.push_back(job);
        drop(queue);
        self.filled.notify_one();
        self.check()
    }

    pub(super) fn close(&self) {
        lock(&self.queue).closed = true;
        self.filled.notify_all();
    }

    /// What came of the walk and all jobs. A job's failure also ends the walk, and is what there is to tell.
    pub(super) fn outcome(&self, walked: Result<(), BackupError>) -> Result<(), BackupError> {
        match self.assembler.failure() {
            Some(error) => Err(error),
            None => walked.and_then(|()| self.check()),
        }
    }

    /// Works until the queue is closed and empty.
    pub(super) fn run(&self) {
        while let Some(job) = self.next() {
            let done = self.check().and_then(|()| match job {
                Job::Group(tasks) => self.read_group(tasks),
                Job::Single(task) => self.read_single(task),
                Job::Help(pieces) => {
                    self.store_some(&pieces);
                    Ok(())
                }
            });
            match done {
                Ok(()) | Err(BackupError::Cancelled) => {}
                Err(error) => self.give_up(error),
            }
        }
    }

    fn give_up(&self, error: BackupError) {
        self.assembler.fail(error);
        self.stop.store(true, Ordering::Relaxed);
    }

    fn next(&self) -> Option<Job> {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                self.emptied.notify_one();
                return Some(job);
            }
            // As long as somebody works there may be something to help with.
            if queue.closed && queue.idle + 1 == self.workers {
                queue.idle += 1;
                self.filled.notify_all();
                return None;
            }
            queue.idle += 1;
            queue = wait(&self.filled, queue);
            queue.idle -= 1;
        }
    }

    /// Stores the pieces of a buffer, with the help of idle workers.
    pub(super) fn store(
        &self,
        buffer: &mut Vec<u8>,
        ranges: Vec<Range<usize>>,
        orders: Vec<Order>,
    ) -> Result<Vec<ChunkId>, BackupError> {
        let helpers = lock(&self.queue).idle;
        if helpers == 0 || ranges.len() < 2 {
            return self.assembler.put_all(buffer, &ranges, &orders);
        }
        let pieces = self.offer(std::mem::take(buffer), ranges, orders, helpers, None);
        let done;
        (*buffer, done) = self.complete(&pieces)?;
        let ids = done.into_iter().map(|done| match done.outcome {
            Outcome::Whole(id) => Ok(id),
            Outcome::Parts(_) => Err(BackupError::Incomplete),
        });
        ids.collect()
    }

    /// Lets up to `helpers` workers store the pieces of a buffer, from now on.
    pub(super) fn offer(
        &self,
        data: Vec<u8>,
        ranges: Vec<Range<usize>>,
        orders: Vec<Order>,
        helpers: usize,
        stretch: Option<Stretch>,
    ) -> Arc<Pieces> {
        let rows = rows(&ranges);
        let helpers = helpers.min(rows.len());
        let stored = Mutex::new(Stored { done: ranges.iter().map(|_| None).collect(), left: rows.len() });
        let data = Mutex::new(Some(Arc::new(data)));
        let next = AtomicUsize::new(0);
        let pieces = Arc::new(Pieces { data, ranges, orders, stretch, rows, next, stored, done: Condvar::new() });
        let mut queue = lock(&self.queue);
        (0..helpers).for_each(|_| queue.jobs.push_front(Job::Help(Arc::clone(&pieces))));
        drop(queue);
        self.filled.notify_all();
        pieces
    }

    /// Stores what nobody has begun of an offer, waits for the rest, and takes the buffer back.
    pub(super) fn complete(&self, pieces: &Pieces) -> Result<(Vec<u8>, Vec<Done>), BackupError> {
        self.store_some(pieces);
        let done = {
            let mut stored = lock(&pieces.stored);
            while stored.left > 0 {
                stored = wait(&pieces.done, stored);
            }
            std::mem::take(&mut stored.done).into_iter().collect::<Option<Vec<_>>>()
        };
        // Whoever helped has let go of it before it said so.
        let data = lock(&pieces.data).take().and_then(Arc::into_inner).unwrap_or_default();
        Ok((data, done.ok_or(BackupError::Cancelled)?)) // the failure itself is with the assembler
    }

    /// Stores rows until none is left to begin.
    fn store_some(&self, pieces: &Pieces) {
        while let Some(row) = pieces.rows.get(pieces.next.fetch_add(1, Ordering::Relaxed)) {
            let ranges = pieces.ranges.get(row.clone()).unwrap_or_default();
            let orders = pieces.orders.get(row.clone()).unwrap_or_default();
            let data = lock(&pieces.data).clone().unwrap_or_default();
            let done: Result<Vec<Done>, BackupError> = match &pieces.stretch {
                Some(stretch) => stretch.store(self.assembler, &data, ranges, orders),
                None => {
                    self.assembler.put_all(&data, ranges, orders).map(|ids| ids.into_iter().map(Done::from).collect())
                }
            };
            let done = done.map_err(|error| self.give_up(error)).unwrap_or_default();
            drop(data);
            let mut stored = lock(&pieces.stored);
            if let Some(places) = stored.done.get_mut(row.clone()) {
                places.iter_mut().zip(done).for_each(|(place, done)| *place = Some(done));
            }
            stored.left -= 1;
            if stored.left == 0 {
                pieces.done.notify_all();
            }
        }
    }

    /// How many segments of a large file may be under way beside the one that is read: nobody helps while there is other work.
    pub(super) fn segments_ahead(&self) -> usize {
        let queue = lock(&self.queue);
        let other = queue.jobs.iter().any(|job| !matches!(job, Job::Help(_)));
        if other { 0 } else { self.helpers.min(SEGMENTS_AHEAD_MAX) }
    }
}

/// Pieces in rows of about `ROW_BYTES`.
fn rows(ranges: &[Range<usize>]) -> Vec<Range<usize>> {
    let (mut rows, mut first) = (Vec::new(), 0);
    for (index, range) in ranges.iter().enumerate() {
        let start = ranges.get(first).map_or(range.start, |first| first.start);
        if range.end - start >= ROW_BYTES || index + 1 == ranges.len() {
            rows.push(first..index + 1);
            first = index + 1;
        }
    }
    rows
}

/// Appends up to `length` bytes from `offset` on; fewer only at the file's end.
pub(super) fn fill(fd: &OwnedFd, buffer: &mut Vec<u8>, length: usize, offset: u64) -> Result<(), Errno> {
    let start = buffer.len();
    buffer.reserve(length);
    while buffer.len() - start < length {
        let at = offset + (buffer.len() - start) as u64;
        match rustix::io::pread(fd, rustix::buffer::spare_capacity(buffer), at) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    // There may have been room, and file, for more than was asked for.
    buffer.truncate(start + length);
    Ok(())
}
