//! The workers: read files, cut them, store the pieces, hand in the nodes.
//!
//! Neighbouring small files are read into one buffer and cut together; a large file is read piece by piece, and workers
//! that have nothing else to do help to store what it was cut into.
//!
//! Invariant: memory is bounded by the number of workers: each holds one buffer, and only few jobs wait.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::assemble::{Assembler, Folder, Known, LinkGroup, Order};
use super::{BackupError, GROUP_BYTES, SMALL_BYTES_MAX, explain, is_set};
use crate::ChunkId;
use crate::files::Event;
use crate::files::cache::{Digest, Memory, Version, checksum};
use crate::files::metadata::{self, Seen};
use crate::files::tree::{Kind, Node, Span};
use crate::files::walk::{Base, Former, open_beneath, open_directory};

/// How much of a large file is read at once.
pub(super) const SEGMENT_BYTES: usize = 8 << 20;
const SEGMENTS_AHEAD_MAX: usize = 4;
/// What is compressed together.
const ROW_BYTES: usize = 4 << 20;
/// A file whose time of change is this close to the moment it was read may change again without a new time: clocks of
/// file systems tick every few milliseconds. It is read again by the next backup.
const RACY: Duration = Duration::from_millis(50);

/// A file to read.
pub(super) struct Task {
    pub(super) folder: Arc<Folder>,
    pub(super) index: usize,
    pub(super) name: Vec<u8>,
    pub(super) base: Arc<Base>,
    pub(super) relative: PathBuf,
    pub(super) seen: Seen,
    pub(super) link: Option<Arc<LinkGroup>>,
    pub(super) former: Option<Former>,
}

impl Task {
    pub(super) fn full(&self) -> PathBuf {
        self.base.full(&self.relative)
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
    ranges: Vec<Range<usize>>,
    orders: Vec<Order>,
    /// Pieces that are handed over together: about as much as is compressed together.
    rows: Vec<Range<usize>>,
    next: AtomicUsize,
    stored: Mutex<Stored>,
    done: Condvar,
}

struct Stored {
    ids: Vec<Option<ChunkId>>,
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

/// A file that was opened for reading.
pub(super) struct Opened {
    pub(super) fd: OwnedFd,
    pub(super) seen: Seen,
    at: SystemTime,
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
        let mut buffer = Vec::new();
        while let Some(job) = self.next() {
            let done = self.check().and_then(|()| match job {
                Job::Group(tasks) => self.read_group(tasks, &mut buffer),
                Job::Single(task) => self.read_single(&task, &mut buffer),
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

    /// Opens a file and looks again at what it is; tells why it cannot be read.
    pub(super) fn open(&self, task: &Task, directory: &mut Option<(PathBuf, OwnedFd)>) -> Option<Opened> {
        match self.try_open(task, directory) {
            Ok(opened) if opened.seen.file_type() == FileType::RegularFile => {
                self.assembler.progress.report(&Event::Reading { path: &task.full() });
                Some(opened)
            }
            Ok(_) => self.refuse(task, explain(Errno::NOTDIR)),
            Err(error) => self.refuse(task, explain(error)),
        }
    }

    fn refuse(&self, task: &Task, reason: String) -> Option<Opened> {
        self.assembler.skip(task.full(), reason);
        None
    }

    fn try_open(&self, task: &Task, directory: &mut Option<(PathBuf, OwnedFd)>) -> Result<Opened, Errno> {
        let parent = task.relative.parent().unwrap_or(Path::new(""));
        // Neighbours mostly lie in one directory. (Bases differ only with several roots; their paths then do, too.)
        let full_parent = task.base.full(parent);
        if directory.as_ref().is_none_or(|(path, _)| *path != full_parent) {
            *directory = Some((full_parent, open_directory(task.base.fd.as_fd(), parent)?));
        }
        let Some((_, fd)) = directory else { return Err(Errno::BADF) };
        let name = Path::new(task.relative.file_name().unwrap_or_default());
        // A FIFO that took the file's place must not make us wait. Reading should not change the time of access.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let noatime = flags | OFlags::NOATIME | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let at = SystemTime::now();
        let fd = match rustix::fs::openat(&*fd, name, noatime, rustix::fs::Mode::empty()) {
            Err(Errno::PERM) => open_beneath(fd.as_fd(), name, flags)?,
            other => other?,
        };
        let seen = Seen::from(&rustix::fs::fstat(&fd)?);
        Ok(Opened { fd, seen, at })
    }

    fn read_group(&self, tasks: Vec<Task>, buffer: &mut Vec<u8>) -> Result<(), BackupError> {
        buffer.clear();
        buffer.reserve(GROUP_BYTES as usize + SMALL_BYTES_MAX as usize);
        let mut directory = None;
        let mut read = Vec::with_capacity(tasks.len());
        let mut grown = Vec::new();
        for task in tasks {
            self.check()?;
            let start = buffer.len();
            let Some(opened) = self.open(&task, &mut directory) else {
                read.push((task, None, start..start));
                continue;
            };
            if opened.seen.size >= SMALL_BYTES_MAX {
                grown.push(task);
                continue;
            }
            match fill(&opened.fd, buffer, opened.seen.size as usize, 0) {
                Ok(()) => {
                    let length = (buffer.len() - start) as u64;
                    self.assembler.note_read(length);
                    let digest = checksum(buffer.get(start..).unwrap_or_default());
                    let spans = match &task.former {
                        // As it was: it stays where it is stored.
                        Some(former) if former.digest == digest => {
                            buffer.truncate(start);
                            self.assembler.keep(&former.spans, task.folder.order(task.index));
                            former.spans.clone()
                        }
                        _ => Vec::new(),
                    };
                    let file = self.conclude(&task, &opened, length, spans, Some(digest));
                    read.push((task, Some(file), start..buffer.len()));
                }
                Err(error) => {
                    buffer.truncate(start);
                    self.assembler.skip(task.full(), explain(error));
                    read.push((task, None, start..start));
                }
            }
        }
        let pieces = self.cut_group(&read);
        let orders = orders(&pieces, &read);
        let ids = self.store(buffer, pieces.clone(), orders)?;
        let mut first = 0;
        for (task, mut file, range) in read {
            while pieces.get(first).is_some_and(|piece| piece.end <= range.start) {
                first += 1;
            }
            if let Some((Node { kind: Kind::File { spans, .. }, .. }, _)) = &mut file
                && !range.is_empty()
            {
                *spans = overlap(&range, pieces.get(first..).unwrap_or_default(), ids.get(first..).unwrap_or_default());
            }
            self.hand_in(&task, file);
        }
        grown.into_iter().try_for_each(|task| self.read_single(&task, buffer))
    }

    /// The node of what was read, and what to remember of it if it did not change meanwhile.
    pub(super) fn conclude(
        &self,
        task: &Task,
        opened: &Opened,
        size: u64,
        spans: Vec<Span>,
        digest: Option<Digest>,
    ) -> Known {
        let xattrs = metadata::read_xattrs(opened.fd.as_fd()).unwrap_or_else(|error| {
            self.assembler.skip(task.full(), format!("its extended attributes cannot be read: {error}"));
            Vec::new()
        });
        let after = rustix::fs::fstat(&opened.fd).map(|stat| Seen::from(&stat));
        let steady = size == opened.seen.size && after.is_ok_and(|after| after.same_version(&opened.seen));
        if !steady {
            self.assembler.note_changed(task.full());
        }
        let metadata = Some(opened.seen.metadata(xattrs));
        let node = Node { name: task.name.clone(), kind: Kind::File { size, spans }, metadata, link: None };
        let racy = is_racy(&opened.seen, opened.at);
        (node, steady.then(|| Memory { version: Version::from(&opened.seen), racy, digest }))
    }

    pub(super) fn hand_in(&self, task: &Task, file: Option<Known>) {
        match &task.link {
            Some(group) => self.assembler.fill_linked(group, &task.folder, task.index, file),
            None => self.assembler.fill_file(&task.folder, task.index, file),
        }
    }

    /// The pieces of a buffer of files: each ends where a file does.
    fn cut_group(&self, read: &[(Task, Option<Known>, Range<usize>)]) -> Vec<Range<usize>> {
        let stored = || read.iter().filter(|(.., range)| !range.is_empty());
        let files = stored().map(|(_, file, range)| {
            let digest = file.as_ref().and_then(|(_, memory)| memory.as_ref()?.digest);
            (range.len(), digest.unwrap_or_default())
        });
        let mut ranges = stored().map(|(.., range)| range);
        let mut piece = |count: usize| {
            let mut files = ranges.by_ref().take(count);
            let first = files.next()?;
            Some(first.start..files.last().map_or(first.end, |last| last.end))
        };
        self.assembler.chunker.cut_files(files).into_iter().filter_map(&mut piece).collect()
    }

    /// Stores the pieces of a buffer, with the help of idle workers.
    fn store(
        &self,
        buffer: &mut Vec<u8>,
        ranges: Vec<Range<usize>>,
        orders: Vec<Order>,
    ) -> Result<Vec<ChunkId>, BackupError> {
        let helpers = lock(&self.queue).idle;
        if helpers == 0 || ranges.len() < 2 {
            return self.assembler.put_all(buffer, &ranges, &orders);
        }
        let pieces = self.offer(std::mem::take(buffer), ranges, orders, helpers);
        let (data, ids) = self.complete(&pieces)?;
        *buffer = data;
        Ok(ids)
    }

    /// Lets up to `helpers` workers store the pieces of a buffer, from now on.
    pub(super) fn offer(
        &self,
        data: Vec<u8>,
        ranges: Vec<Range<usize>>,
        orders: Vec<Order>,
        helpers: usize,
    ) -> Arc<Pieces> {
        let rows = rows(&ranges);
        let helpers = helpers.min(rows.len());
        let stored = Mutex::new(Stored { ids: vec![None; ranges.len()], left: rows.len() });
        let data = Mutex::new(Some(Arc::new(data)));
        let next = AtomicUsize::new(0);
        let pieces = Arc::new(Pieces { data, ranges, orders, rows, next, stored, done: Condvar::new() });
        let mut queue = lock(&self.queue);
        (0..helpers).for_each(|_| queue.jobs.push_front(Job::Help(Arc::clone(&pieces))));
        drop(queue);
        self.filled.notify_all();
        pieces
    }

    /// Stores what nobody has begun of an offer, waits for the rest, and takes the buffer back.
    pub(super) fn complete(&self, pieces: &Pieces) -> Result<(Vec<u8>, Vec<ChunkId>), BackupError> {
        self.store_some(pieces);
        let ids = {
            let mut stored = lock(&pieces.stored);
            while stored.left > 0 {
                stored = wait(&pieces.done, stored);
            }
            stored.ids.iter().copied().collect::<Option<Vec<_>>>()
        };
        // Whoever helped has let go of it before it said so.
        let data = lock(&pieces.data).take().and_then(Arc::into_inner).unwrap_or_default();
        Ok((data, ids.ok_or(BackupError::Cancelled)?)) // the failure itself is with the assembler
    }

    /// Stores rows until none is left to begin.
    fn store_some(&self, pieces: &Pieces) {
        while let Some(row) = pieces.rows.get(pieces.next.fetch_add(1, Ordering::Relaxed)) {
            let ranges = pieces.ranges.get(row.clone()).unwrap_or_default();
            let orders = pieces.orders.get(row.clone()).unwrap_or_default();
            let data = lock(&pieces.data).clone().unwrap_or_default();
            let ids = self.assembler.put_all(&data, ranges, orders);
            let ids = ids.map_err(|error| self.give_up(error)).unwrap_or_default();
            drop(data);
            let mut stored = lock(&pieces.stored);
            if let Some(places) = stored.ids.get_mut(row.clone()) {
                places.iter_mut().zip(ids).for_each(|(place, id)| *place = Some(id));
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

/// Whether a change right after the reading could leave the times as they are.
fn is_racy(seen: &Seen, read_at: SystemTime) -> bool {
    let changed = UNIX_EPOCH + Duration::new(seen.ctime.0.max(0) as u64, seen.ctime.1);
    changed + RACY > read_at
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

/// For each piece of a buffer the place of the first file in it.
fn orders(pieces: &[Range<usize>], read: &[(Task, Option<Known>, Range<usize>)]) -> Vec<Order> {
    let mut files = read.iter().filter(|(.., range)| !range.is_empty()).peekable();
    pieces
        .iter()
        .zip(0..)
        .map(|(piece, ordinal)| {
            while files.peek().is_some_and(|(.., range)| range.end <= piece.start) {
                files.next();
            }
            let (directory, entry, _) =
                files.peek().map(|(task, ..)| task.folder.order(task.index)).unwrap_or_default();
            (directory, entry, ordinal)
        })
        .collect()
}

/// The parts of pieces that make up a range of the buffer they were cut from.
fn overlap(range: &Range<usize>, pieces: &[Range<usize>], ids: &[ChunkId]) -> Vec<Span> {
    pieces
        .iter()
        .zip(ids)
        .take_while(|(piece, _)| piece.start < range.end)
        .filter_map(|(piece, id)| {
            let (start, end) = (piece.start.max(range.start), piece.end.min(range.end));
            let length = end.checked_sub(start).filter(|length| *length > 0)? as u32;
            Some(Span::Data { id: *id, offset: (start - piece.start) as u32, length })
        })
        .collect()
}
