//! Reads what was committed, in order and without a hole, and hands out consistent snapshots at any place in that
//! order.
//!
//! Invariant: between two `Seen::Changes` (and between a snapshot and the first) nothing that was committed is
//! missing; where that cannot be shown the answer is `Seen::Broken` and only a new snapshot helps.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use jiff::Timestamp;

use super::content::{self, ContentError, Head, PIECE_BYTES_MAX};
use super::hold::{Hold, HoldError, READER_PATIENCE, Reader, locks_are_alive};
use super::wal::{Header, Place, Stretch, WalError, read_image};

/// From this many frames on, the log is copied into the database file (SQLite's own default).
const CHECKPOINT_FRAMES: u32 = 1000;
/// From this many bytes on, writers are kept out for the moment it takes.
const CHECKPOINT_BYTES_PRESSING: u64 = 64 << 20;
/// Short: a writer that makes a checkpoint of its own may be waiting for this very process's next look.
const WRITER_PATIENCE: Duration = Duration::from_millis(60);
const WRITER_PATIENCE_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub(super) enum CaptureError {
    #[error(transparent)]
    Hold(#[from] HoldError),
    #[error(transparent)]
    Wal(#[from] WalError),
    #[error("cannot pack what changed")]
    Content(#[from] ContentError),
}

/// Where a capture stands, so that the next process can go on from there.
pub(super) type Resume = Place;

/// What one look at the database found.
#[derive(Debug)]
pub(super) enum Seen {
    /// Nothing was committed since the last look.
    Nothing,
    /// In order; more than one if they would be too much for one piece.
    Changes(Vec<Changes>),
    /// Something may be missing since the last look; says why.
    Broken(String),
}

#[derive(Debug)]
pub(super) struct Changes {
    /// A piece, packed.
    pub(super) payload: Vec<u8>,
    pub(super) transactions: u64,
    pub(super) end: Place,
}

/// So long may the log become for the sake of a snapshot that is being stored, or as long as the database.
const SLOW_SNAPSHOT_BYTES_MIN: u64 = 1 << 30;
const LOST_LOCKS: &str = "the locks on the database were lost: something else in this process has opened and closed it";
/// How often to look at a log's header that is being written, a millisecond apart.
const LOG_ATTEMPTS: u32 = 200;

/// The two moments around a look at the log: everything committed before `from` is included, nothing after `to` is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) from: Timestamp,
    pub(super) to: Timestamp,
}

#[derive(Debug)]
pub(super) struct Capture {
    hold: Hold,
    /// Everything up to here has been read; absent while the database has never had a log.
    place: Option<Place>,
    /// For each page in the present log, the last frame up to `place`.
    overlay: HashMap<u32, u32>,
    /// Where all of the log was in the database file: nothing is gained by another checkpoint there.
    emptied_at: Option<Place>,
    /// From this many bytes on, writers are kept out for a moment.
    pressing_bytes: u64,
    /// The database's size at `place`, if the log says it.
    database_pages: Option<u32>,
    /// Whether this system shows locks, so that losing them can be seen.
    shows_locks: bool,
    /// A number that changes with commits.
    commits_seen: i64,
    /// The read transactions of the snapshots that are being stored.
    snapshots: Vec<Weak<Mutex<Option<Reader>>>>,
}

impl Capture {
    /// Opens the database and stands at its present end, or at `resume` if the log shows that nothing is missing
    /// since then.
    pub(super) fn open(path: &Path, resume: Option<Resume>) -> Result<(Capture, bool), CaptureError> {
        let hold = Hold::open(path)?;
        let shows_locks = locks_are_alive(hold.path());
        let mut capture = Capture {
            hold,
            place: None,
            overlay: HashMap::new(),
            database_pages: None,
            emptied_at: None,
            pressing_bytes: CHECKPOINT_BYTES_PRESSING,
            shows_locks,
            commits_seen: 0,
            snapshots: Vec::new(),
        };
        if let Some(place) = resume
            && capture.resume(place)?
        {
            return Ok((capture, true));
        }
        capture.stand_at_end()?;
        Ok((capture, false))
    }

    fn resume(&mut self, place: Place) -> Result<bool, CaptureError> {
        let Log::Frames { wal, header, frames } = log_of(&mut self.hold)? else { return Ok(false) };
        if frames < place.frame || !place.is_in(&header, &wal)? {
            return Ok(false);
        }
        let stretch = header.scan(&wal, &header.start(), place.frame)?;
        if stretch.end != place {
            return Ok(false);
        }
        self.move_to(&stretch, true);
        Ok(true)
    }

    fn stand_at_end(&mut self) -> Result<(), CaptureError> {
        if let Log::Frames { wal, header, frames } = log_of(&mut self.hold)? {
            let stretch = header.scan(&wal, &header.start(), frames)?;
            self.move_to(&stretch, true);
        }
        Ok(())
    }

    fn move_to(&mut self, stretch: &Stretch, from_start: bool) {
        if from_start {
            self.overlay.clear();
            self.database_pages = None;
        }
        self.overlay.extend(&stretch.frames);
        if stretch.database_pages != 0 {
            self.database_pages = Some(stretch.database_pages);
        }
        self.place = Some(stretch.end);
    }

    /// Reads everything that was committed since the last look.
    pub(super) fn look(&mut self) -> Result<(Moment, Seen), CaptureError> {
        self.hold.check_identity()?;
        let from = Timestamp::now();
        let (before, shows_locks) = (self.place, self.shows_locks);
        let mut moved = None;
        let commits = self.hold.commits_seen()?;
        let committed = std::mem::replace(&mut self.commits_seen, commits) != commits;
        let (to, seen) = self.hold.renew(|hold| {
            let mut attempts = LOG_ATTEMPTS;
            let (to, (seen, restarted, follows)) = loop {
                let log = log_of(hold)?;
                let to = Timestamp::now();
                // Nothing but the locks keeps a log, the first one included, from starting again unread.
                let Log::Frames { wal, header, frames } = log else {
                    // Somebody has cut it to nothing: it starts again with the next transaction.
                    break (to, (Seen::Nothing, false, true));
                };
                let restarted = before.is_none_or(|place| header.salts != place.salts);
                let follows = before.is_none_or(|place| header.follows(place.salts) || !restarted);
                let seen = read_on(&wal, &header, frames, before, to, &mut moved)?;
                // A log of which all is in the database file may start again while it is looked at. What was read of it is
                // read, so this is no hole: look at the new one.
                let overtaken = matches!(seen, Seen::Broken(_)) && Header::read(&wal).ok().flatten() != Some(header);
                attempts = attempts.saturating_sub(1);
                if !overtaken || attempts == 0 {
                    break (to, (seen, restarted, follows));
                }
                moved = None;
            };
            let unseen = committed && matches!(seen, Seen::Nothing);
            if (restarted || unseen) && (shows_locks || !follows) && !locks_are_alive(hold.path()) {
                moved = None;
                return Ok((to, Seen::Broken(LOST_LOCKS.to_owned())));
            }
            Ok::<_, CaptureError>((to, seen))
        })?;
        if let Some((stretch, from_start)) = moved {
            self.move_to(&stretch, from_start);
        }
        Ok((Moment { from, to }, seen))
    }

    pub(super) fn place(&self) -> Option<Place> {
        self.place
    }

    /// Whether the log is long enough to be copied into the database file.
    pub(super) fn wants_checkpoint(&self) -> bool {
        self.place.is_some_and(|place| place.frame >= CHECKPOINT_FRAMES) && self.place != self.emptied_at
    }

    /// Copies the log into the database file, so that it can start again. What is committed meanwhile is left for the
    /// next look, which must follow at once: it is its new read transaction that lets the log start again.
    pub(super) fn checkpoint(&mut self) -> Result<(), CaptureError> {
        let state = self.hold.checkpoint()?;
        let whole = self.place.filter(|place| (state.frames, state.backfilled) == (place.frame, place.frame));
        self.emptied_at = whole.or(self.emptied_at);
        Ok(())
    }

    /// Whether the log has become so long that writers should be kept out for a moment.
    pub(super) fn presses(&self) -> bool {
        self.log_bytes() > self.pressing_bytes && self.place != self.emptied_at
    }

    /// Whether writers have got so far ahead that reading after them, while they go on, might never catch up.
    pub(super) fn is_far_behind(&self) -> Result<bool, CaptureError> {
        let Some(place) = self.place else { return Ok(false) };
        let frames = self.hold.log_state()?.frames;
        let unread = frames.checked_sub(place.frame).unwrap_or(frames);
        Ok(u64::from(unread) * u64::from(place.page_size) > self.pressing_bytes)
    }

    fn log_bytes(&self) -> u64 {
        self.place.map_or(0, |place| u64::from(place.frame) * u64::from(place.page_size))
    }

    /// Gives up the snapshots that are being stored if the log cannot start again because of them and has become longer
    /// than a vault's slowness may make it.
    pub(super) fn give_up_slow_snapshots(&mut self) {
        let log_bytes = self.log_bytes();
        let database_bytes = self.hold.file().metadata().map_or(0, |metadata| metadata.len());
        if log_bytes < SLOW_SNAPSHOT_BYTES_MIN.max(database_bytes) {
            return;
        }
        for reader in self.snapshots.drain(..).filter_map(|reader| reader.upgrade()) {
            reader.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }

    /// Reads to the end and copies all of the log into the database file while no writer can add to it. Answers what
    /// was read first; `None` if a writer would not let go.
    pub(super) fn checkpoint_without_writers(&mut self) -> Result<Option<(Moment, Seen)>, CaptureError> {
        // The longer the log, the longer the wait: each failure lets the writers get further ahead.
        let times = u32::try_from(self.log_bytes() / self.pressing_bytes).unwrap_or(u32::MAX).max(1);
        if !self.hold.begin_without_writers(WRITER_PATIENCE.saturating_mul(times).min(WRITER_PATIENCE_MAX))? {
            return Ok(None);
        }
        let looked = self.look().and_then(|first| {
            self.checkpoint()?;
            // Nothing can have been added: this look only begins a read transaction that lets go of the log.
            self.look()?;
            Ok(first)
        });
        self.hold.end_without_writers();
        looked.map(Some)
    }

    /// A consistent copy of the whole database as of the last look. The log cannot start again in the way of it while it lives.
    pub(super) fn snapshot(&mut self) -> Result<(Moment, Seen, Snapshot), CaptureError> {
        let reader = Reader::open(self.hold.path(), self.hold.file(), READER_PATIENCE)?;
        reader.begin()?;
        let (moment, seen) = self.look()?;
        let file = self.hold.file().clone();
        let length = file.metadata().map_err(WalError::Read)?.len();
        let page_size = match self.place {
            Some(place) => place.page_size,
            None => page_size_in(&file)?,
        };
        let bytes = match self.database_pages {
            Some(pages) => u64::from(pages) * u64::from(page_size),
            None => length,
        };
        let wal = self.hold.wal()?;
        let overlay = self.overlay.clone();
        let reader = Arc::new(Mutex::new(Some(reader)));
        self.snapshots.retain(|reader| reader.strong_count() > 0);
        self.snapshots.push(Arc::downgrade(&reader));
        let locked = self.shows_locks.then(|| self.hold.path().to_owned());
        let place = self.place;
        let snapshot =
            Snapshot { reader, file, wal, place, overlay, page_size, bytes, locked, at: 0, block: Vec::new() };
        Ok((moment, seen, snapshot))
    }
}

fn page_size_in(file: &File) -> Result<u32, CaptureError> {
    let mut bytes = [0; 2];
    match file.read_exact_at(&mut bytes, 16) {
        Ok(()) if bytes == [0, 1] => Ok(65_536),
        Ok(()) => Ok(u32::from(u16::from_be_bytes(bytes)).max(512)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(4096),
        Err(error) => Err(WalError::Read(error).into()),
    }
}

/// The log as it is published at one moment.
enum Log {
    Empty,
    Frames { wal: Arc<File>, header: Header, frames: u32 },
}

fn log_of(hold: &mut Hold) -> Result<Log, CaptureError> {
    for attempt in 0..LOG_ATTEMPTS {
        let Some(wal) = hold.wal()? else { return Ok(Log::Empty) };
        let before = Header::read(&wal);
        let frames = hold.log_state()?.frames;
        match (before, Header::read(&wal)) {
            (Ok(None), Ok(None)) if frames == 0 => return Ok(Log::Empty),
            (Ok(Some(header)), Ok(Some(after))) if header == after => return Ok(Log::Frames { wal, header, frames }),
            (Err(error @ WalError::Read(_)), _) => return Err(error.into()),
            (Err(error), _) if attempt + 1 == LOG_ATTEMPTS => return Err(error.into()),
            // A writer is just writing the header.
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    Err(WalError::Header("it changes all the time").into())
}

/// Reads from `before` to the end of the log. `moved` says where that leads, and whether from the log's beginning.
fn read_on(
    wal: &File,
    header: &Header,
    frames: u32,
    before: Option<Place>,
    seen_at: Timestamp,
    moved: &mut Option<(Stretch, bool)>,
) -> Result<Seen, CaptureError> {
    let (start, restarted) = match before {
        Some(place) if place.salts == header.salts => (place, false),
        Some(place) if place.page_size != header.page_size => {
            return Ok(Seen::Broken("the page size has changed".to_owned()));
        }
        _ => (header.start(), true),
    };
    if frames == 0 {
        // The log is about to start again, or has not started: nothing new either way.
        return Ok(Seen::Nothing);
    }
    if frames < start.frame {
        return Ok(Seen::Broken("the write-ahead log is shorter than it was".to_owned()));
    }
    if !restarted && !start.is_in(header, wal)? {
        return Ok(Seen::Broken("a part of the write-ahead log that was read has changed".to_owned()));
    }
    if frames == start.frame {
        return Ok(Seen::Nothing);
    }
    let mut all = Stretch { frames: BTreeMap::new(), database_pages: 0, transactions: 0, end: start };
    let mut changes = Vec::new();
    let page_bytes = u64::from(header.page_size);
    let pages_max = PIECE_BYTES_MAX / (page_bytes + 4);
    while all.end.frame < frames {
        let mut stretch = match header.scan_some(wal, &all.end, frames, pages_max as usize) {
            Ok(stretch) => stretch,
            Err(error @ (WalError::Frame { .. } | WalError::Header(_))) => return Ok(Seen::Broken(error.to_string())),
            Err(error) => return Err(error.into()),
        };
        if stretch.frames.len() as u64 > pages_max {
            let megabytes = (stretch.frames.len() as u64 * page_bytes) >> 20;
            return Ok(Seen::Broken(format!(
                "{megabytes} MiB changed in one transaction, which a new snapshot serves better"
            )));
        }
        changes.push(pack(wal, header, &stretch, seen_at)?);
        all.frames.append(&mut stretch.frames);
        all.transactions += stretch.transactions;
        (all.database_pages, all.end) = (stretch.database_pages, stretch.end);
    }
    *moved = Some((all, restarted));
    Ok(Seen::Changes(changes))
}

/// Packs the last image of each page in a stretch.
fn pack(wal: &File, header: &Header, stretch: &Stretch, seen_at: Timestamp) -> Result<Changes, CaptureError> {
    let head = Head {
        database_pages: stretch.database_pages,
        end: stretch.end,
        seen_at,
        page_count: stretch.frames.len() as u32,
    };
    let payload = content::encode(&head, stretch.frames.keys().copied(), |page, image| {
        let frame = stretch.frames.get(&page).copied().unwrap_or(0);
        match read_image(wal, header.salts, page, frame, image)? {
            true => Ok(()),
            false => Err(CaptureError::Wal(WalError::Frame { frame, what: "it changed while it was held" })),
        }
    })?;
    Ok(Changes { payload, transactions: stretch.transactions, end: stretch.end })
}

/// Reads a consistent database file, from beginning to end, while it is being written.
///
/// Why it is consistent: its read transaction began no later than its place, so no checkpoint puts anything newer than
/// the place into the database file, and pages in the log come from the log. If the log starts again meanwhile, its
/// transaction had begun with all of the log in the database file, and then the file has the page.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// Absent once it was given up.
    reader: Arc<Mutex<Option<Reader>>>,
    file: Arc<File>,
    wal: Option<Arc<File>>,
    place: Option<Place>,
    overlay: HashMap<u32, u32>,
    page_size: u32,
    bytes: u64,
    /// The database, if losing the locks on it can be seen.
    locked: Option<PathBuf>,
    at: u64,
    /// What has been read and not been handed out, from its end.
    block: Vec<u8>,
}

const SNAPSHOT_BLOCK_BYTES: u64 = 1 << 20;

impl Snapshot {
    pub(super) fn size_bytes(&self) -> u64 {
        self.bytes
    }

    fn read_block(&self, offset: u64, block: &mut Vec<u8>) -> io::Result<()> {
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        if reader.is_none() {
            return Err(io::Error::other(
                "the vault took too long, and the snapshot was given up so that the log could start again",
            ));
        }
        let length = SNAPSHOT_BLOCK_BYTES.min(self.bytes - offset) as usize;
        block.clear();
        block.resize(length, 0);
        let mut filled = 0;
        while filled < length {
            match self.file.read_at(block.get_mut(filled..).unwrap_or_default(), offset + filled as u64) {
                // Pages beyond the file's end that are not in the log either were never written: they are free.
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let (Some(wal), Some(place)) = (&self.wal, &self.place) else { return Ok(()) };
        let page_size = self.page_size as usize;
        let first = (offset / u64::from(self.page_size)) as u32 + 1;
        let mut image = vec![0; page_size];
        for (page, slot) in (first..).zip(block.chunks_exact_mut(page_size)) {
            let Some(frame) = self.overlay.get(&page) else { continue };
            if read_image(wal, place.salts, page, *frame, &mut image).map_err(io::Error::other)? {
                slot.copy_from_slice(&image);
            }
        }
        Ok(())
    }
}

impl Read for Snapshot {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let within = (self.at % SNAPSHOT_BLOCK_BYTES) as usize;
        if self.at >= self.bytes {
            // Without them a checkpoint may have put newer pages under those that were being read.
            if self.locked.as_ref().is_some_and(|path| !locks_are_alive(path)) {
                return Err(io::Error::other(LOST_LOCKS));
            }
            return Ok(0);
        }
        if within == 0 {
            let mut block = std::mem::take(&mut self.block);
            let read = self.read_block(self.at, &mut block);
            self.block = block;
            read?;
        }
        let ready = self.block.get(within..).unwrap_or_default();
        let count = ready.len().min(out.len());
        out.get_mut(..count).unwrap_or_default().copy_from_slice(ready.get(..count).unwrap_or_default());
        self.at += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
