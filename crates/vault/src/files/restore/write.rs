//! Writing files from chunks: each chunk is fetched once per batch, in the order of packs, and goes into every file that
//! has a piece of it.
//!
//! Into a fresh place files are simply made. Over existing files (in place, or after an interruption) each block is
//! compared and only what differs is written; a file that shares its inode with names outside is made anew, so that those
//! are not touched.
//!
//! Invariant: a file gets its metadata after its last piece, and only if it has exactly the length it should.

use std::ffi::OsStr;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::plan::{Batch, Piece, clear};
use super::{Job, RestoreError, add};
use crate::files::Event;
use crate::files::ahead::for_each_frame;
use crate::files::browse::part;
use crate::files::metadata::{self, Metadata, Own, Seen};
use crate::files::walk::open_directory;
use crate::{ChunkId, Scratch};

/// A batch of so many pieces a file is one of large files, where two who write meet in the same one.
const PIECES_OF_LARGE_FILES: usize = 64;
/// What is compared and written at once.
const BLOCK_BYTES: usize = 4096;
/// How much of an existing file is read at once for comparing.
const COMPARE_BYTES: usize = 256 << 10;

/// A file to write.
pub(super) struct FileWork {
    folder: Arc<PathBuf>,
    name: Vec<u8>,
    metadata: Option<Metadata>,
    size: u64,
    holes: Vec<(u64, u64)>,
    pieces: usize,
    left: AtomicUsize,
    /// How many names the file has where it comes from.
    names: u64,
    /// Whether the file has been made ready to be written to, and whether it is new.
    ready: Mutex<Option<bool>>,
    /// One writes at a time: the kernel lets no second one in either, and keeps it busy waiting.
    turn: Mutex<()>,
}

impl FileWork {
    pub(super) fn new(
        folder: Arc<PathBuf>,
        name: Vec<u8>,
        metadata: Option<Metadata>,
        size: u64,
        holes: Vec<(u64, u64)>,
        pieces: usize,
        names: u64,
    ) -> Self {
        let (left, ready, turn) = (AtomicUsize::new(pieces), Mutex::default(), Mutex::default());
        FileWork { folder, name, metadata, size, holes, pieces, left, names, ready, turn }
    }

    fn relative(&self) -> PathBuf {
        self.folder.join(OsStr::from_bytes(&self.name))
    }
}

/// What a worker holds: the directory and the file it was last in (neighbours mostly share them).
#[derive(Default)]
struct Hand {
    folder: Option<(Arc<PathBuf>, OwnedFd)>,
    /// Which file of the batch, and whether this restore made it.
    file: Option<(u32, OwnedFd, bool)>,
}

/// Pieces of one file that lie one after another, there and in what was unpacked.
struct Stretch {
    file: u32,
    position: u64,
    data: Range<usize>,
    pieces: usize,
}

impl Stretch {
    fn goes_on_with(&self, piece: &Piece, data: &Range<usize>) -> bool {
        self.file == piece.file
            && self.data.end == data.start
            && self.position + self.data.len() as u64 == piece.position
    }
}

/// All pieces of one chunk.
type Run = Range<usize>;

impl Batch {
    /// Writes everything, on several threads.
    pub(super) fn write(mut self, job: &Job<'_>, threads: usize) {
        let mut hand = Hand::default();
        for file in self.files.iter().filter(|file| file.pieces == 0) {
            if !proceed(job, self.write_empty(job, file, &mut hand)) {
                return;
            }
        }
        self.pieces.sort_unstable_by_key(|piece| (piece.id, piece.file, piece.position));
        let (runs, units) = self.runs(job);
        let runs_of = |unit: &Range<usize>| runs.get(unit.clone()).unwrap_or_default();
        let first = |unit: &Range<usize>| Some(self.pieces.get(runs_of(unit).first()?.start)?.id);
        // While one writes to a large file and another waits for its turn, a third unpacks.
        let threads = threads + usize::from(self.pieces.len() >= self.files.len() * PIECES_OF_LARGE_FILES);
        for_each_frame(job.source, threads, &units, first, |unit, scratch, hand| {
            proceed(job, self.write_unit(job, runs_of(unit), scratch, hand))
        });
    }

    /// The pieces of each chunk, in the order in which the chunks lie in packs; and the runs that are unpacked together.
    fn runs(&self, job: &Job<'_>) -> (Vec<Run>, Vec<Range<usize>>) {
        let mut runs: Vec<(Option<(u32, u64)>, Run)> = Vec::new();
        let mut start = 0;
        for same in self.pieces.chunk_by(|a, b| a.id == b.id) {
            let place = same.first().and_then(|piece| job.source.place(&piece.id));
            runs.push((place, start..start + same.len()));
            start += same.len();
        }
        runs.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.start.cmp(&b.1.start)));
        let frame = |place: Option<(u32, u64)>| place.map(|(pack, offset)| (pack, offset >> 32));
        let (mut units, mut first) = (Vec::new(), 0);
        for unit in runs.chunk_by(|a, b| a.0.is_some() && frame(a.0) == frame(b.0)) {
            units.push(first..first + unit.len());
            first += unit.len();
        }
        (runs.into_iter().map(|(_, run)| run).collect(), units)
    }

    /// Unpacks what lies together once, and writes all that is needed of it.
    fn write_unit(
        &self,
        job: &Job<'_>,
        runs: &[Run],
        scratch: &mut Scratch,
        hand: &mut Hand,
    ) -> Result<(), RestoreError> {
        let pieces = |run: &Run| self.pieces.get(run.clone()).unwrap_or_default();
        let ids: Vec<ChunkId> = runs.iter().filter_map(|run| Some(pieces(run).first()?.id)).collect();
        let mut failure = None;
        let read = job.source.each(&ids, scratch, &mut |row, bytes| {
            failure = self.write_row(job, row, bytes, |index| runs.get(index).map(pieces), hand).err();
            failure.is_none()
        });
        if let Some(error) = failure {
            return Err(error);
        }
        read.map_err(|(index, source)| {
            let first = runs.get(index).and_then(|run| pieces(run).first());
            let file = first.and_then(|piece| self.files.get(piece.file as usize));
            RestoreError::Chunk { path: file.map(FileWork::relative).unwrap_or_default(), source }
        })
    }

    /// Writes what is needed of chunks that lie one after another. What goes into one file in a row is written at once.
    fn write_row<'p>(
        &self,
        job: &Job<'_>,
        row: &[(usize, Range<usize>)],
        bytes: &[u8],
        pieces_of: impl Fn(usize) -> Option<&'p [Piece]>,
        hand: &mut Hand,
    ) -> Result<(), RestoreError> {
        let mut waiting: Option<Stretch> = None;
        for (index, range) in row {
            let chunk = bytes.get(range.clone()).unwrap_or_default();
            for piece in pieces_of(*index).unwrap_or_default() {
                part(chunk, piece.offset, piece.length).map_err(RestoreError::Tree)?;
                let start = range.start + piece.offset as usize;
                let data = start..start + piece.length as usize;
                match &mut waiting {
                    Some(before) if before.goes_on_with(piece, &data) => {
                        before.data.end = data.end;
                        before.pieces += 1;
                    }
                    _ => {
                        let next = Stretch { file: piece.file, position: piece.position, data, pieces: 1 };
                        self.write_stretch(job, waiting.replace(next), bytes, hand)?;
                    }
                }
            }
        }
        self.write_stretch(job, waiting, bytes, hand)
    }

    fn write_stretch(
        &self,
        job: &Job<'_>,
        stretch: Option<Stretch>,
        bytes: &[u8],
        hand: &mut Hand,
    ) -> Result<(), RestoreError> {
        job.check()?;
        let Some(stretch) = stretch else { return Ok(()) };
        let Some(file) = self.files.get(stretch.file as usize) else { return Ok(()) };
        let data = bytes.get(stretch.data).unwrap_or_default();
        if hand.file.as_ref().is_none_or(|(kept, ..)| *kept != stretch.file) {
            hand.file = None;
            let (fd, new) = make_ready(job, file, &mut hand.folder)?;
            hand.file = Some((stretch.file, fd, new));
        }
        let Some((_, fd, new)) = &hand.file else { return Ok(()) };
        let fail = |source| job.write_error(&file.relative())(source);
        let turn = (file.pieces > 1).then(|| file.turn.lock().unwrap_or_else(PoisonError::into_inner));
        let written = if *new && !job.ground.compares() {
            write_all(fd, data, stretch.position).map(|()| data.len() as u64)
        } else {
            write_different(fd, data, stretch.position)
        };
        drop(turn);
        add(&job.written_bytes, written.map_err(fail)?);
        job.progress.report(&Event::Bytes(data.len() as u64));
        if file.left.fetch_sub(stretch.pieces, Ordering::AcqRel) == stretch.pieces {
            conclude(job, file, fd, *new)?;
            hand.file = None;
        }
        Ok(())
    }

    fn write_empty(&self, job: &Job<'_>, file: &FileWork, hand: &mut Hand) -> Result<(), RestoreError> {
        job.check()?;
        let (fd, new) = make_ready(job, file, &mut hand.folder)?;
        conclude(job, file, &fd, new)
    }
}

fn proceed(job: &Job<'_>, done: Result<(), RestoreError>) -> bool {
    match done {
        Ok(()) => true,
        Err(RestoreError::Cancelled { .. }) => false,
        Err(error) => {
            job.fail(error);
            false
        }
    }
}

/// Opens the file for writing; the first to come makes it. Also says whether this restore made it.
fn make_ready(
    job: &Job<'_>,
    file: &FileWork,
    folder: &mut Option<(Arc<PathBuf>, OwnedFd)>,
) -> Result<(OwnedFd, bool), RestoreError> {
    if folder.as_ref().is_none_or(|(last, _)| !Arc::ptr_eq(last, &file.folder)) {
        let dir = open_directory(job.ground.fd().as_fd(), &file.folder).map_err(job.write_error(&file.folder))?;
        *folder = Some((Arc::clone(&file.folder), dir));
    }
    let Some((_, dir)) = folder else { return Err(job.write_error(&file.folder)(Errno::BADF)) };
    let mut ready = file.ready.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(new) = *ready {
        let fd = open_existing(dir, &file.name).map_err(job.write_error(&file.relative()))?;
        return Ok((fd, new));
    }
    let (fd, new) = if job.ground.compares() { reuse(job, dir, file)? } else { (create(job, dir, file)?, true) };
    let length = if new { 0 } else { rustix::fs::fstat(&fd).map(|stat| Seen::from(&stat).size).unwrap_or(0) };
    // A single piece that begins the file sets the length by being written.
    if length != file.size && !(new && file.pieces == 1 && file.holes.is_empty()) {
        rustix::fs::ftruncate(&fd, file.size).map_err(job.write_error(&file.relative()))?;
    }
    *ready = Some(new);
    Ok((fd, new))
}

fn open_existing(dir: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

fn create(job: &Job<'_>, dir: &OwnedFd, file: &FileWork) -> Result<OwnedFd, RestoreError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, &file.name[..], flags, Mode::from_raw_mode(first_mode(job, file))).map_err(|error| {
        match error {
            Errno::EXIST => RestoreError::Disturbed { path: job.ground.path().join(file.relative()) },
            other => job.write_error(&file.relative())(other),
        }
    })
}

/// The mode a file is made with. In a place of our own, which nobody else sees, the one it shall have, if it is opened only once.
fn first_mode(job: &Job<'_>, file: &FileWork) -> u32 {
    match (&file.metadata, job.ground.umask()) {
        (Some(metadata), Some(umask)) if file.pieces <= 1 && !job.ground.compares() => metadata.mode & 0o777 & !umask,
        _ => 0o600,
    }
}

/// Opens the file that is there if it may be changed, or makes a new one in its place.
fn reuse(job: &Job<'_>, dir: &OwnedFd, file: &FileWork) -> Result<(OwnedFd, bool), RestoreError> {
    let relative = file.relative();
    let fail = || job.write_error(&relative);
    let seen = match rustix::fs::statat(dir, &file.name[..], AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Seen::from(&stat),
        Err(Errno::NOENT) => return Ok((create(job, dir, file)?, true)),
        Err(error) => return Err(fail()(error)),
    };
    if seen.file_type() == FileType::RegularFile && (seen.links == 1 || seen.links == file.names) {
        let opened = match open_existing(dir, &file.name) {
            Err(Errno::ACCESS) => {
                let mode = Mode::from_raw_mode(seen.mode & 0o7777 | 0o600);
                let name = &file.name[..];
                rustix::fs::chmodat(dir, name, mode, AtFlags::empty()).and_then(|()| open_existing(dir, name))
            }
            other => other,
        };
        match opened {
            Ok(fd) => {
                let same = rustix::fs::fstat(&fd).map(|stat| Seen::from(&stat)).map_err(fail())?;
                if (same.dev, same.ino) == (seen.dev, seen.ino) {
                    return Ok((fd, false));
                }
                return Err(RestoreError::Disturbed { path: job.ground.path().join(file.relative()) });
            }
            Err(Errno::TXTBSY | Errno::ACCESS | Errno::PERM) => {} // a running program, or not ours: make it anew
            Err(error) => return Err(fail()(error)),
        }
    }
    clear(job, dir, &file.name, &relative)?;
    Ok((create(job, dir, file)?, true))
}

fn write_all(fd: &OwnedFd, mut data: &[u8], mut position: u64) -> Result<(), Errno> {
    while !data.is_empty() {
        match rustix::io::pwrite(fd, data, position) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(written) => {
                data = data.get(written..).unwrap_or_default();
                position += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes the blocks that are not there already; how many bytes that took.
fn write_different(fd: &OwnedFd, data: &[u8], position: u64) -> Result<u64, Errno> {
    let mut present = vec![0; data.len().min(COMPARE_BYTES)];
    let mut written = 0;
    for (index, stretch) in data.chunks(COMPARE_BYTES).enumerate() {
        let start = position + (index * COMPARE_BYTES) as u64;
        let length = read_at(fd, present.get_mut(..stretch.len()).unwrap_or_default(), start)?;
        let present = present.get(..length).unwrap_or_default();
        // Differing blocks in a row are written at once.
        let mut run: Option<Range<usize>> = None;
        for at in (0..stretch.len()).step_by(BLOCK_BYTES) {
            let end = (at + BLOCK_BYTES).min(stretch.len());
            if stretch.get(at..end) == present.get(at..end) {
                written += write_run(fd, stretch, run.take(), start)?;
            } else {
                run = Some(run.map_or(at, |run| run.start)..end);
            }
        }
        written += write_run(fd, stretch, run, start)?;
    }
    Ok(written)
}

fn write_run(fd: &OwnedFd, data: &[u8], run: Option<Range<usize>>, start: u64) -> Result<u64, Errno> {
    let Some(run) = run else { return Ok(0) };
    let position = start + run.start as u64;
    let length = run.len() as u64;
    write_all(fd, data.get(run).unwrap_or_default(), position)?;
    Ok(length)
}

fn read_at(fd: &OwnedFd, buffer: &mut [u8], position: u64) -> Result<usize, Errno> {
    let mut done = 0;
    while done < buffer.len() {
        match rustix::io::pread(fd, buffer.get_mut(done..).unwrap_or_default(), position + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Makes a hole where an existing file has data; how many bytes of data that were.
fn punch(fd: &OwnedFd, position: u64, length: u64) -> Result<u64, Errno> {
    let end = position + length;
    let start = match rustix::fs::seek(fd, SeekFrom::Data(position)) {
        Ok(start) if start < end => start,
        Ok(_) | Err(Errno::NXIO) => return Ok(0),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => position,
        Err(error) => return Err(error),
    };
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(fd, mode, start, end - start) {
        Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
            // No holes here: zeros then.
            let zeros = vec![0; COMPARE_BYTES];
            let mut at = start;
            while at < end {
                let now = (end - at).min(COMPARE_BYTES as u64);
                write_different(fd, zeros.get(..now as usize).unwrap_or_default(), at)?;
                at += now;
            }
        }
        other => other?,
    }
    Ok(end - start)
}

/// Holes, length and metadata, once all pieces are in.
fn conclude(job: &Job<'_>, file: &FileWork, fd: &OwnedFd, new: bool) -> Result<(), RestoreError> {
    let relative = file.relative();
    if !new {
        for (position, length) in &file.holes {
            punch(fd, *position, *length).map_err(job.write_error(&relative))?;
        }
    }
    // What one write just made in a place of our own has the length of that write.
    if !(new && file.pieces == 1 && file.holes.is_empty() && !job.ground.compares()) {
        let length = rustix::fs::fstat(fd).map(|stat| Seen::from(&stat).size).map_err(job.write_error(&relative))?;
        if length != file.size {
            return Err(RestoreError::Disturbed { path: job.ground.path().join(relative) });
        }
    }
    if let Some(metadata) = &file.metadata {
        // In an existing directory a new file may inherit an ACL or a group.
        let own = (new && !job.ground.compares()).then(|| Own { mode: first_mode(job, file), ..job.ground.own() });
        job.note(&relative, metadata::apply(fd.as_fd(), metadata, job.options.owners, own));
    } else {
        rustix::fs::fchmod(fd, Mode::from_raw_mode(0o644)).map_err(job.write_error(Path::new(&relative)))?;
    }
    add(&job.files, 1);
    add(&job.bytes, file.size);
    job.progress.report(&Event::Files(1));
    Ok(())
}
