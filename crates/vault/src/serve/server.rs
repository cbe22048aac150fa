//! The serving end: one storage, many connections, each with its own rights.
//!
//! Invariants: what a rule refuses reaches no storage; an object is stored only after its bytes were checked; what one client can
//! take up (memory, time, space) is bounded.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::Connection;
use super::access::{Asker, Who};
use super::watch::{Deadline, GRACE, allowance};
use super::wire::{self, Greeting, Hello, Line, Reply, Request, Status, Verb, Welcome};
use crate::error::{Result, VaultError};
use crate::host::State;
use crate::object::{self, PairOf, Place};
use crate::open::Vault;
use crate::receipt::ReceiptBook;
use crate::roster::{Role, Roster};
use crate::storage::{Put, Storage, StorageError, check_key};

/// Requests of one connection that are worked at together.
const WORKERS: usize = 4;
/// Bodies of one connection that are held at a time.
const BYTES_HELD_MAX: u64 = 128 << 20;
const HELLO_WITHIN: Duration = Duration::from_secs(20);
/// A receipt is signed when so many objects wait for it, or the first of them has waited so long.
const RECEIPT_OBJECTS: usize = 512;
const RECEIPT_AFTER: Duration = Duration::from_secs(30);
const ROSTER_READ_AFTER: Duration = Duration::from_secs(10);
const REQUESTS_WAITING_MAX: usize = 64;
const REQUEST_BYTES_MAX: u64 = 64 << 10;

/// What a server is told.
#[derive(Default)]
pub struct ServeOptions {
    /// This server's own key, for receipts.
    pub keeper: Option<State>,
    /// The owner expected.
    pub owner: Option<String>,
    /// So many bytes may lie in the vault.
    pub quota: Option<u64>,
    /// So many bytes must stay free; needs `free`.
    pub free_min: u64,
    /// How many bytes are free where the storage lies.
    pub free: Option<Box<dyn Fn() -> Option<u64> + Send + Sync>>,
    /// A connection on which nothing was asked for so long is ended.
    pub idle: Option<Duration>,
    /// What a frame may take besides the time that its length needs [default: a minute].
    pub patience: Option<Duration>,
}

impl std::fmt::Debug for ServeOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServeOptions").field("quota", &self.quota).finish_non_exhaustive()
    }
}

/// How a connection ended.
#[derive(Debug, Clone, Default)]
pub struct Served {
    /// Who it was, once that was known.
    pub who: Option<String>,
    pub created: u64,
    pub refused: u64,
}

/// A storage and the rules under which it is served. Connections share it.
pub struct Server {
    storage: Arc<dyn Storage>,
    options: ServeOptions,
    vault: Mutex<Option<Vault>>,
    read: Mutex<Option<Instant>>,
    book: Mutex<Option<(ReceiptBook, Instant)>>,
    /// Bytes in the vault, where there is a quota.
    used: RwLock<Option<u64>>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("location", &self.storage.location()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is answered: how it went, words, bytes.
struct Answer(Status, String, Vec<u8>);

impl Answer {
    fn refused(why: impl Into<String>) -> Answer {
        Answer(Status::Refused, why.into(), Vec::new())
    }
}

impl From<StorageError> for Answer {
    fn from(error: StorageError) -> Answer {
        let status = match &error {
            StorageError::NotFound { .. } => Status::NotFound,
            StorageError::NoSpace { .. } => Status::NoSpace,
            StorageError::TooLarge { .. } => Status::TooLarge,
            StorageError::Gone { .. } | StorageError::Replaced { .. } => Status::Gone,
            _ => Status::Failed,
        };
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        Answer(status, format!("{error}{cause}"), Vec::new())
    }
}

impl Server {
    pub fn new(storage: Arc<dyn Storage>, options: ServeOptions) -> Server {
        Server {
            storage,
            options,
            vault: Mutex::default(),
            read: Mutex::default(),
            book: Mutex::default(),
            used: RwLock::default(),
        }
    }

    /// Whether this server's receipts count: its key stands on the roster as a keeper's. `None` where it has no key or no vault yet.
    pub fn is_keeper(&self) -> Option<bool> {
        let keeper = self.options.keeper.as_ref()?;
        Some(self.roster()?.permits(&keeper.signing_key().public(), Role::Keeper))
    }

    fn patience(&self) -> Duration {
        self.options.patience.unwrap_or(GRACE)
    }

    /// The newest roster; `None` where there is no vault (yet).
    fn roster(&self) -> Option<Roster> {
        let mut vault = lock(&self.vault);
        let mut read = lock(&self.read);
        match &*vault {
            Some(open) => {
                if read.is_none_or(|at| at.elapsed() > ROSTER_READ_AFTER) {
                    // What cannot be read now is read at the next request.
                    if open.refresh().is_ok() {
                        *read = Some(Instant::now());
                    }
                }
            }
            None => {
                *vault = Vault::open(self.storage.clone(), None, self.options.owner.as_deref()).ok();
                *read = Some(Instant::now());
            }
        }
        vault.as_ref().map(Vault::roster)
    }

    fn read_roster_again(&self) -> Option<Roster> {
        *lock(&self.read) = None;
        self.roster()
    }

    /// Serves one connection to its end. What was taken in has a receipt when this returns (where this server may give any).
    pub fn serve(&self, connection: Connection, who: &Who) -> io::Result<Served> {
        let Connection { mut reader, writer, cut } = connection;
        let reading = Deadline::none();
        let line = Outward {
            writer: Mutex::new(writer),
            writing: Deadline::none(),
            patience: self.patience(),
            served: Mutex::default(),
        };
        let done = AtomicBool::new(false);
        let ended = std::thread::scope(|scope| {
            scope.spawn(|| self.watch(&reading, &line.writing, &*cut, &done));
            let ended = self.talk(&mut *reader, &reading, &line, who);
            done.store(true, Ordering::SeqCst);
            ended
        });
        self.sign(true);
        let served = lock(&line.served).clone();
        match ended {
            Ok(()) => Ok(served),
            // Who goes away in the middle of a word has gone away.
            Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => Ok(served),
            Err(e) => Err(e),
        }
    }

    fn watch(&self, reading: &Deadline, writing: &Deadline, cut: &(dyn Fn() + Send + Sync), done: &AtomicBool) {
        let mut ticks = 0u32;
        while !done.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(50));
            ticks = ticks.wrapping_add(1);
            if ticks.is_multiple_of(20) {
                self.sign(false);
            }
            if reading.is_over() || writing.is_over() {
                // Cutting may end the process.
                self.sign(true);
                cut();
                return;
            }
        }
    }

    fn talk(&self, reader: &mut dyn Read, reading: &Deadline, line: &Outward, who: &Who) -> io::Result<()> {
        reading.set(HELLO_WITHIN.min(self.patience()));
        let asker = self.meet(reader, line, who)?;
        let Some(asker) = asker else { return Ok(()) };
        lock(&line.served).who = Some(asker.name.clone());
        let held = Held::default();
        let (sender, receiver) = sync_channel::<(Request, Vec<u8>)>(WORKERS);
        let receiver = Mutex::new(receiver);
        std::thread::scope(|scope| {
            for _ in 0..WORKERS {
                scope.spawn(|| self.work(&receiver, &held, &asker, line));
            }
            self.take_requests(reader, reading, &held, sender)
        })
    }

    fn take_requests(
        &self,
        reader: &mut dyn Read,
        reading: &Deadline,
        held: &Held,
        sender: SyncSender<(Request, Vec<u8>)>,
    ) -> io::Result<()> {
        loop {
            match self.options.idle {
                Some(idle) => reading.set(idle),
                None => reading.clear(),
            }
            let Some((header, body)) = wire::read_lengths(reader)? else { return Ok(()) };
            reading.clear();
            held.wait_for(u64::from(body));
            reading.set(allowance(self.patience(), u64::from(body)));
            let request: Request = wire::decode(&wire::read_exactly(reader, header)?)?;
            let bytes = wire::read_exactly(reader, body)?;
            reading.clear();
            if sender.send((request, bytes)).is_err() {
                return Ok(());
            }
        }
    }

    /// The first words: who is there. Answers `None` where nobody is who may be.
    fn meet(&self, reader: &mut dyn Read, line: &Outward, who: &Who) -> io::Result<Option<Asker>> {
        let nonce = crate::crypt::random();
        let greeting = Greeting { protocol: wire::PROTOCOL.to_owned(), version: wire::VERSION, nonce };
        line.write(&greeting, &[])?;
        let hello: Hello = wire::read_word(reader)?;
        let asker = match (hello.version == wire::VERSION, who) {
            (false, _) => Err(format!("this server speaks version {}", wire::VERSION)),
            (true, Who::Named(name, rights)) => Ok(Asker { name: name.clone(), rights: *rights }),
            (true, Who::OnRoster(granted)) => {
                let proven = hello.key.filter(|key| {
                    let signature = hello.signature.as_deref().and_then(|s| <&[u8; 64]>::try_from(s).ok());
                    let payload = wire::hello_payload(&nonce, &hello.nonce);
                    signature.is_some_and(|signature| key.verify(wire::HELLO_KIND, &payload, signature))
                });
                match (proven, self.read_roster_again()) {
                    (None, _) => Err("this server wants to know who asks, and no key was proven".to_owned()),
                    (_, None) => Err("there is no vault here yet".to_owned()),
                    (Some(key), Some(roster)) => Asker::member(&roster, &key, *granted)
                        .ok_or_else(|| format!("{} is not on the roster of this vault", key.fingerprint())),
                }
            }
        };
        let (refused, name) = match &asker {
            Ok(asker) => (None, asker.name.clone()),
            Err(why) => (Some(why.clone()), String::new()),
        };
        line.write(&Welcome { refused, who: name }, &[])?;
        Ok(asker.ok())
    }

    fn work(&self, receiver: &Mutex<Receiver<(Request, Vec<u8>)>>, held: &Held, asker: &Asker, line: &Outward) {
        loop {
            let next = lock(receiver).recv();
            let Ok((request, body)) = next else { return };
            let answered = match request.verb {
                Verb::List => self.list(asker, &request, line),
                _ => {
                    let Answer(status, text, bytes) = self.answer(asker, &request, &body);
                    line.count(request.verb, status);
                    line.write(&Reply { id: request.id, status, text: shortened(text) }, &bytes)
                }
            };
            held.release(body.len() as u64);
            // Nobody listens any more; the reader finds out, too.
            if answered.is_err() {
                line.writing.set(Duration::ZERO);
            }
        }
    }

    fn answer(&self, asker: &Asker, request: &Request, body: &[u8]) -> Answer {
        let key = request.key.as_str();
        if let Err(error) = check_key(key) {
            return Answer::refused(error.to_string());
        }
        let Some(place) = Place::of(key) else { return Answer::refused("nothing of a vault lies under that name") };
        match request.verb {
            Verb::Get | Verb::GetRange if !asker.may_read(&place) => {
                Answer::refused(format!("{} may not read it here", asker.name))
            }
            Verb::Get => self.storage.get(key).map_or_else(Answer::from, found),
            Verb::GetRange => {
                self.storage.get_range(key, request.offset, request.length).map_or_else(Answer::from, found)
            }
            Verb::PutIfAbsent => self.create(asker, key, &place, body).unwrap_or_else(|answer| answer),
            Verb::Put => self.repair(asker, key, &place, body).unwrap_or_else(|answer| answer),
            Verb::Delete => self.delete(asker, key, &place).unwrap_or_else(|answer| answer),
            Verb::List => Answer::refused("a listing is answered elsewhere"),
        }
    }

    fn create(&self, asker: &Asker, key: &str, place: &Place, body: &[u8]) -> Result<Answer, Answer> {
        let limit = if matches!(place, Place::Enrolment(_)) { REQUEST_BYTES_MAX } else { place.bytes_max() };
        if body.len() as u64 > limit {
            return Err(Answer(Status::TooLarge, format!("such an object holds at most {limit} bytes"), Vec::new()));
        }
        let signer = self.check(asker, key, place, body)?;
        asker.may_create(place, signer.as_deref()).map_err(Answer::refused)?;
        self.check_new(asker, place)?;
        self.check_space(body.len() as u64)?;
        match self.storage.put_if_absent(key, body)? {
            Put::Created => {
                self.took(key, place, body);
                Ok(Answer(Status::Done, String::new(), Vec::new()))
            }
            // Who asks again because the first answer was lost must learn that it was its own.
            Put::Exists => {
                let same = self.storage.get(key).is_ok_and(|there| there == body);
                Ok(Answer(if same { Status::Same } else { Status::Exists }, String::new(), Vec::new()))
            }
        }
    }

    /// Puts a right object in the place of a damaged one; whatever is right stays.
    fn repair(&self, asker: &Asker, key: &str, place: &Place, body: &[u8]) -> Result<Answer, Answer> {
        if !asker.may_repair() {
            return Err(Answer::refused("nothing is replaced through this server"));
        }
        self.check(asker, key, place, body)?;
        match self.storage.get(key) {
            Ok(there) if there == body => return Ok(Answer(Status::Done, String::new(), Vec::new())),
            Ok(there) if self.check(asker, key, place, &there).is_ok() => {
                return Err(Answer::refused("what lies there is right, and is not replaced"));
            }
            Ok(_) | Err(StorageError::NotFound { .. } | StorageError::TooLarge { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        self.check_space(body.len() as u64)?;
        self.storage.put(key, body)?;
        self.took(key, place, body);
        Ok(Answer(Status::Done, String::new(), Vec::new()))
    }

    fn delete(&self, asker: &Asker, key: &str, place: &Place) -> Result<Answer, Answer> {
        asker.may_delete(place).map_err(Answer::refused)?;
        if let (Place::Snapshot(host, dataset, number), Some(roster)) = (place, self.roster()) {
            let stone = crate::prune::read_tombstone(&*self.storage, &roster, host, dataset, *number);
            if !matches!(stone, Ok(Some(_))) {
                return Err(Answer::refused("no tombstone stands for it"));
            }
        }
        if let (Place::Tombstone(..) | Place::Prune(..), Some(roster)) = (place, self.roster()) {
            let fold = crate::prune::newest_fold(&*self.storage, &roster);
            if !fold.is_ok_and(|fold| fold.is_some_and(|fold| fold.covers(key))) {
                return Err(Answer::refused("signed history stays until a newer record says the same"));
            }
        }
        self.storage.delete(key)?;
        Ok(Answer(Status::Done, String::new(), Vec::new()))
    }

    /// Whether the object is right; answers its signer's name.
    fn check(&self, asker: &Asker, key: &str, place: &Place, body: &[u8]) -> Result<Option<String>, Answer> {
        let explain = |error: &VaultError| Answer::refused(error.to_string());
        let checked = |roster: &Roster| {
            object::check(roster, key, place, body).map(|signer| {
                signer.and_then(|key| roster.member(&key).filter(|m| m.revoked.is_none()).map(|m| m.name.clone()))
            })
        };
        let Some(roster) = self.roster() else {
            // Before the first roster only the owner (or a copy) brings anything.
            let may_begin = asker.rights.owner || asker.rights.copy;
            return match (may_begin, place) {
                (true, Place::Roster(number)) => {
                    Roster::first(key, *number, body, self.options.owner.as_deref()).map_err(|e| explain(&e))?;
                    Ok(None)
                }
                (
                    true,
                    Place::Readme | Place::KeyFile(..) | Place::Statement(..) | Place::ChunkKey(_) | Place::Copy(..),
                ) => Ok(None),
                _ => Err(Answer::refused("there is no vault here yet; its owner makes it")),
            };
        };
        // Somebody may have been added to the roster just now.
        checked(&roster)
            .or_else(|_| self.read_roster_again().map_or(Ok(None), |roster| checked(&roster)))
            .map_err(|e| explain(&e))
    }

    /// Rules that depend on what is there: a content key is made once, and requests do not pile up.
    fn check_new(&self, asker: &Asker, place: &Place) -> Result<(), Answer> {
        if asker.rights.owner || asker.rights.copy {
            return Ok(());
        }
        match place {
            Place::KeyFile(PairOf::Content(dataset), _) => {
                let prefix = crate::name::content_keys(dataset);
                let there = self.storage.list(&prefix)?;
                if there.iter().any(|object| object.key.ends_with(".cert")) || there.len() >= REQUESTS_WAITING_MAX {
                    return Err(Answer::refused("the data set has its content key; only the owner seals it anew"));
                }
            }
            Place::Enrolment(_) if self.storage.list("enroll/")?.len() >= REQUESTS_WAITING_MAX => {
                return Err(Answer::refused("too many requests wait; let the owner approve or remove some"));
            }
            _ => {}
        }
        Ok(())
    }

    fn check_space(&self, more: u64) -> Result<(), Answer> {
        let full = |why: String| Err(Answer(Status::NoSpace, why, Vec::new()));
        if let Some(free) = self.options.free.as_ref().and_then(|free| free())
            && free.saturating_sub(more) < self.options.free_min
        {
            return full(format!("only {free} bytes are free, and {} must stay free", self.options.free_min));
        }
        let Some(quota) = self.options.quota else { return Ok(()) };
        let mut used = self.used.write().unwrap_or_else(PoisonError::into_inner);
        let now = match *used {
            Some(now) => now,
            None => self.storage.list("")?.iter().map(|object| object.size).sum(),
        };
        if now.saturating_add(more) > quota {
            *used = Some(now);
            return full(format!("{now} bytes of a quota of {quota} are taken"));
        }
        *used = Some(now.saturating_add(more));
        Ok(())
    }

    /// Notes for a receipt what was just stored.
    fn took(&self, key: &str, place: &Place, body: &[u8]) {
        if matches!(place, Place::Receipt(..)) || self.is_keeper() != Some(true) {
            return;
        }
        let (Some(keeper), Some(roster)) = (&self.options.keeper, self.roster()) else { return };
        let hash = match place {
            Place::Pack(named) => *named,
            _ => crate::crypt::hash(body),
        };
        let mut book = lock(&self.book);
        let (book, since) = book.get_or_insert_with(|| {
            (ReceiptBook::new(self.storage.clone(), &roster.vault, keeper.clone()), Instant::now())
        });
        if book.waiting() == 0 {
            *since = Instant::now();
        }
        book.take(key, hash, body.len() as u64, Timestamp::now());
    }

    fn sign(&self, now: bool) {
        let mut book = lock(&self.book);
        let Some((book, since)) = book.as_mut() else { return };
        let is_due = now || book.waiting() >= RECEIPT_OBJECTS || since.elapsed() >= RECEIPT_AFTER;
        if book.waiting() > 0
            && is_due
            && let Err(error) = book.sign()
        {
            tracing::warn!("no receipt could be stored: {error}");
        }
    }

    fn list(&self, asker: &Asker, request: &Request, line: &Outward) -> io::Result<()> {
        let prefix = request.key.as_str();
        let reply = |status, text| Reply { id: request.id, status, text };
        let is_bad = !prefix.is_empty() && check_key(prefix.trim_end_matches('/')).is_err();
        if is_bad || prefix.ends_with("//") {
            return line.write(&reply(Status::Refused, "that is no prefix".to_owned()), &[]);
        }
        let listed = match self.storage.list(prefix) {
            Ok(listed) => listed,
            Err(error) => {
                let Answer(status, text, _) = Answer::from(error);
                return line.write(&reply(status, shortened(text)), &[]);
            }
        };
        let mut lines = Vec::new();
        for object in listed {
            if Place::of(&object.key).is_none_or(|place| !asker.may_see(&place)) {
                continue;
            }
            lines.push(Line { key: object.key, size: object.size, stored_at: object.stored_at.map(Into::into) });
            if lines.len() == wire::LISTED_PER_FRAME {
                line.write(&reply(Status::More, String::new()), &encoded(&lines)?)?;
                lines.clear();
            }
        }
        line.write(&reply(Status::Done, String::new()), &encoded(&lines)?)
    }
}

fn encoded(lines: &Vec<Line>) -> io::Result<Vec<u8>> {
    minicbor::to_vec(lines).map_err(|_| wire::bad("a listing could not be encoded"))
}

fn found(bytes: Vec<u8>) -> Answer {
    Answer(Status::Done, String::new(), bytes)
}

/// Words fit into a frame's header, whatever they quote.
fn shortened(text: String) -> String {
    match text.len() > 2000 {
        true => text.chars().take(500).collect(),
        false => text,
    }
}

/// The way back to one client, shared by the workers.
struct Outward {
    writer: Mutex<Box<dyn Write + Send>>,
    writing: Deadline,
    patience: Duration,
    served: Mutex<Served>,
}

impl Outward {
    fn write<T: minicbor::Encode<()>>(&self, header: &T, body: &[u8]) -> io::Result<()> {
        let mut writer = lock(&self.writer);
        self.writing.set(allowance(self.patience, body.len() as u64));
        let written = wire::write(&mut **writer, header, body);
        self.writing.clear();
        written
    }

    fn count(&self, verb: Verb, status: Status) {
        let mut served = lock(&self.served);
        match (verb, status) {
            (Verb::PutIfAbsent | Verb::Put, Status::Done) => served.created += 1,
            (_, Status::Refused) => served.refused += 1,
            _ => {}
        }
    }
}

/// Bytes of requests that are in memory.
#[derive(Debug, Default)]
struct Held {
    bytes: Mutex<u64>,
    less: Condvar,
}

impl Held {
    fn wait_for(&self, more: u64) {
        let mut bytes = lock(&self.bytes);
        while *bytes > 0 && *bytes + more > BYTES_HELD_MAX {
            bytes = self.less.wait(bytes).unwrap_or_else(PoisonError::into_inner);
        }
        *bytes += more;
    }

    fn release(&self, count: u64) {
        let mut bytes = lock(&self.bytes);
        *bytes = bytes.saturating_sub(count);
        self.less.notify_all();
    }
}

/// For fuzzers: what somebody asks, after the first words.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_session(storage: Arc<dyn Storage>, name: &str, rights: u8, mut requests: &[u8]) {
    let has = |bit: u8| rights & bit != 0;
    let rights = super::Rights { read: has(1), prune: has(2), copy: has(4), owner: has(8) };
    let server = Server::new(storage, ServeOptions::default());
    let asker = Asker { name: name.to_owned(), rights };
    let line = Outward {
        writer: Mutex::new(Box::new(io::sink())),
        writing: Deadline::none(),
        patience: GRACE,
        served: Mutex::default(),
    };
    let reader: &mut dyn Read = &mut requests;
    while let Ok(Some((header, body))) = wire::read_lengths(reader) {
        let Ok(header) = wire::read_exactly(reader, header) else { return };
        let (Ok(request), Ok(body)) = (wire::decode::<Request>(&header), wire::read_exactly(reader, body)) else {
            return;
        };
        match request.verb {
            Verb::List => drop(server.list(&asker, &request, &line)),
            _ => drop(server.answer(&asker, &request, &body)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod rules;
