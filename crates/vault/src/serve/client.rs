//! The asking end: a `Storage` that lies behind a connection, which is made again when it breaks.
//!
//! Many threads ask at once over one connection; answers come in any order. Invariants: an operation is repeated only where that is the
//! same as doing it once; a create whose answer was lost is no stranger's; what a server says is bounded and has the form that was
//! asked for, or the connection ends.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Connection;
use super::watch::{GRACE, allowance};
use super::wire::{self, Greeting, Hello, Line, Reply, Request, Status, Verb, Welcome};
use crate::sign::SigningKey;
use crate::storage::{Listed, OBJECT_BYTES_MAX, Put, Storage, StorageError, bytes_max, check_key};

/// A broken connection is made again so many times for one operation, after a pause that doubles.
const ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const HELLO_WITHIN: Duration = Duration::from_secs(60);
const FAREWELL_WITHIN: Duration = Duration::from_secs(10);
const LISTED_MAX: usize = 20_000_000;
/// A listing's frames hold so much together at most; each counts for something, also an empty one.
const ANSWER_BYTES_MAX: u64 = 2 << 30;
const LINE_BYTES_MIN: u64 = 4 << 10;

/// Makes connections to one server.
pub trait Dial: Send + Sync + std::fmt::Debug {
    fn dial(&self) -> io::Result<Connection>;
    /// Where it is, for messages.
    fn location(&self) -> String;
    /// What proves who asks, where the server wants to know.
    fn key(&self) -> Option<SigningKey>;
    /// What the way there had to say when it failed (ssh's own words).
    fn last_words(&self) -> String;
}

/// A storage behind a server.
#[derive(Debug)]
pub struct Remote {
    dial: Box<dyn Dial>,
    link: Mutex<Option<Arc<Link>>>,
    next: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Answer = (Reply, Vec<u8>);

/// One living connection.
struct Link {
    writer: Mutex<Option<Box<dyn Write + Send>>>,
    waiting: Arc<Mutex<HashMap<u64, Sender<Answer>>>>,
    dead: Arc<AtomicBool>,
    cut: Box<dyn Fn() + Send + Sync>,
    ended: Mutex<Receiver<()>>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Link(…)")
    }
}

impl Drop for Link {
    /// Says farewell: the server signs its receipts and closes.
    fn drop(&mut self) {
        lock(&self.writer).take();
        if lock(&self.ended).recv_timeout(FAREWELL_WITHIN) == Err(RecvTimeoutError::Timeout) {
            (self.cut)();
        }
    }
}

impl Link {
    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    fn kill(&self) {
        self.dead.store(true, Ordering::SeqCst);
        (self.cut)();
    }
}

/// Reads answers and hands each to who waits for it; anything else ends the connection.
fn read_answers(reader: &mut dyn Read, waiting: &Mutex<HashMap<u64, Sender<Answer>>>) -> io::Result<()> {
    while let Some((header, body)) = wire::read_lengths(reader)? {
        let reply: Reply = wire::decode(&wire::read_exactly(reader, header)?)?;
        let body = wire::read_exactly(reader, body)?;
        let mut waiting = lock(waiting);
        let asked = match reply.status {
            Status::More => waiting.get(&reply.id).cloned(),
            _ => waiting.remove(&reply.id),
        };
        let Some(asked) = asked else { return Err(wire::bad("an answer to nothing that was asked")) };
        // Who asked may have given up.
        let _ = asked.send((reply, body));
    }
    Ok(())
}

impl Remote {
    /// Connects at once, so that a wrong address is known now.
    pub fn connect(dial: Box<dyn Dial>) -> Result<Remote, StorageError> {
        let remote = Remote { dial, link: Mutex::default(), next: AtomicU64::new(1) };
        *lock(&remote.link) = Some(remote.open_link()?);
        Ok(remote)
    }

    fn failed(&self, key: &str, source: io::Error) -> StorageError {
        StorageError::Connection {
            location: self.location(),
            doing: if key.is_empty() { "connecting".to_owned() } else { format!("asking for {key}") },
            words: self.dial.last_words(),
            source,
        }
    }

    fn open_link(&self) -> Result<Arc<Link>, StorageError> {
        let Connection { mut reader, mut writer, cut } = self.dial.dial().map_err(|e| self.failed("", e))?;
        let cut: Arc<dyn Fn() + Send + Sync> = Arc::from(cut);
        let met = Arc::new(AtomicBool::new(false));
        let (done, over) = channel::<()>();
        let hurry = {
            let (cut, met) = (cut.clone(), met.clone());
            move || {
                if over.recv_timeout(HELLO_WITHIN) == Err(RecvTimeoutError::Timeout) && !met.load(Ordering::SeqCst) {
                    cut();
                }
            }
        };
        let started = |spawned: io::Result<std::thread::JoinHandle<()>>| spawned.map_err(|e| self.failed("", e));
        started(std::thread::Builder::new().name("serve-hello".to_owned()).spawn(hurry))?;
        let welcome = self.meet(&mut *reader, &mut *writer);
        met.store(true, Ordering::SeqCst);
        drop(done);
        let welcome = welcome.map_err(|e| {
            // What ends with the connection (ssh) gets to say why.
            drop(writer_closed(&mut writer));
            cut();
            self.failed("", e)
        })?;
        if let Some(why) = welcome.refused {
            return Err(StorageError::Refused {
                location: self.location(),
                verb: "let in",
                key: "this host".into(),
                why,
            });
        }
        let waiting: Arc<Mutex<HashMap<u64, Sender<Answer>>>> = Arc::default();
        let dead = Arc::new(AtomicBool::new(false));
        let (ending, ended) = channel::<()>();
        let reading = {
            let (waiting, dead, cut) = (waiting.clone(), dead.clone(), cut.clone());
            move || {
                let read = read_answers(&mut *reader, &waiting);
                dead.store(true, Ordering::SeqCst);
                if let Err(error) = read {
                    tracing::debug!("a server's connection ended: {error}");
                    cut();
                }
                // Whoever still waits learns that nothing will come.
                lock(&waiting).clear();
                drop(reader);
                drop(ending);
            }
        };
        started(std::thread::Builder::new().name("serve-answers".to_owned()).spawn(reading))?;
        let cut = Box::new(move || cut());
        Ok(Arc::new(Link { writer: Mutex::new(Some(writer)), waiting, dead, cut, ended: Mutex::new(ended) }))
    }

    fn meet(&self, reader: &mut dyn Read, writer: &mut dyn Write) -> io::Result<Welcome> {
        let greeting: Greeting = wire::read_word(reader)?;
        if greeting.protocol != wire::PROTOCOL || greeting.version != wire::VERSION {
            return Err(wire::bad("what answers is no `lifeboat vault serve` of this version"));
        }
        let nonce = crate::crypt::random();
        let key = self.dial.key();
        let payload = wire::hello_payload(&greeting.nonce, &nonce);
        let signature = key.as_ref().map(|key| key.sign(wire::HELLO_KIND, &payload).to_vec());
        let hello = Hello { version: wire::VERSION, nonce, key: key.map(|key| key.public()), signature };
        wire::write(writer, &hello, &[])?;
        wire::read_word(reader)
    }

    /// The living link, or a new one.
    fn link(&self) -> Result<Arc<Link>, StorageError> {
        let mut link = lock(&self.link);
        if let Some(living) = link.as_ref().filter(|link| !link.is_dead()) {
            return Ok(living.clone());
        }
        link.take();
        Ok(link.insert(self.open_link()?).clone())
    }

    /// Asks once; an error means that nobody knows what happened.
    fn ask_once(&self, link: &Link, request: &Request, body: &[u8]) -> io::Result<Vec<Answer>> {
        let (sender, receiver) = channel();
        lock(&link.waiting).insert(request.id, sender);
        let asked = match lock(&link.writer).as_mut() {
            Some(writer) => wire::write(&mut **writer, request, body),
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        if let Err(error) = asked {
            lock(&link.waiting).remove(&request.id);
            link.kill();
            return Err(error);
        }
        if link.is_dead() {
            lock(&link.waiting).remove(&request.id);
        }
        let mut answers: Vec<Answer> = Vec::new();
        let mut taken = 0u64;
        let expected = body.len() as u64 + request.length.min(OBJECT_BYTES_MAX);
        loop {
            match receiver.recv_timeout(allowance(GRACE, expected)) {
                Ok(answer) => {
                    taken += answer.1.len() as u64 + LINE_BYTES_MIN;
                    if taken > ANSWER_BYTES_MAX {
                        link.kill();
                        return Err(wire::bad("an answer without an end"));
                    }
                    let is_last = answer.0.status != Status::More;
                    answers.push(answer);
                    if is_last {
                        return Ok(answers);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    lock(&link.waiting).remove(&request.id);
                    link.kill();
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(RecvTimeoutError::Disconnected) => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
    }

    /// Asks until there is an answer; says whether it had to be asked more than once.
    fn ask(
        &self,
        verb: Verb,
        key: &str,
        (offset, length): (u64, u64),
        body: &[u8],
    ) -> Result<(Vec<Answer>, bool), StorageError> {
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        loop {
            let id = self.next.fetch_add(1, Ordering::Relaxed);
            let request = Request { id, verb, key: key.to_owned(), offset, length };
            let asked = self
                .link()
                .and_then(|link| self.ask_once(&link, &request, body).map_err(|source| self.failed(key, source)));
            match asked {
                Ok(answers) => return Ok((answers, attempt > 1)),
                Err(error @ StorageError::Refused { .. }) => return Err(error),
                Err(error) if attempt == ATTEMPTS => return Err(error),
                Err(error) => tracing::debug!("attempt {attempt} failed: {error}"),
            }
            std::thread::sleep(pause);
            pause *= 2;
            attempt += 1;
        }
    }

    /// The one answer to what has one.
    fn answer(
        &self,
        verb: Verb,
        key: &str,
        range: (u64, u64),
        body: &[u8],
    ) -> Result<(Status, Vec<u8>, bool), StorageError> {
        check_key(key)?;
        let (mut answers, again) = self.ask(verb, key, range, body)?;
        match (answers.pop(), answers.is_empty()) {
            (Some((reply, bytes)), true) => {
                self.explain(verb, key, &reply)?;
                Ok((reply.status, bytes, again))
            }
            _ => Err(self.failed(key, wire::bad("several answers to one question"))),
        }
    }

    /// What went wrong at the other end, as this end's own error.
    fn explain(&self, verb: Verb, key: &str, reply: &Reply) -> Result<(), StorageError> {
        let key = key.to_owned();
        let location = self.location();
        let verb = match verb {
            Verb::PutIfAbsent => "create",
            Verb::Put => "replace",
            Verb::Get | Verb::GetRange => "read",
            Verb::List => "list",
            Verb::Delete => "delete",
        };
        match reply.status {
            Status::Done | Status::Exists | Status::Same | Status::More => Ok(()),
            Status::NotFound => Err(StorageError::NotFound { key }),
            Status::NoSpace => {
                Err(StorageError::NoSpace { location: format!("{location} ({})", printable(&reply.text)) })
            }
            Status::Gone => Err(StorageError::Gone { location }),
            Status::TooLarge if verb == "read" => {
                let limit = bytes_max(&key);
                Err(StorageError::TooLarge { key, size: limit.saturating_add(1), limit })
            }
            Status::Refused | Status::TooLarge => {
                Err(StorageError::Refused { location, verb, key, why: printable(&reply.text) })
            }
            Status::Failed => {
                let source = io::Error::other(printable(&reply.text));
                Err(StorageError::Io { verb, key, location, source })
            }
        }
    }

    fn untrue(&self, key: &str, why: &str) -> StorageError {
        if let Some(link) = lock(&self.link).take() {
            link.kill();
        }
        self.failed(key, wire::bad(why))
    }
}

/// Dropping a writer closes it; a sink takes its place.
fn writer_closed(writer: &mut Box<dyn Write + Send>) -> Box<dyn Write + Send> {
    std::mem::replace(writer, Box::new(io::sink()))
}

/// A server's words are a stranger's: one line, nothing that moves a terminal's cursor.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(600).collect()
}

impl Storage for Remote {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, StorageError> {
        if bytes.len() as u64 > OBJECT_BYTES_MAX {
            return Err(StorageError::TooLarge { key: key.into(), size: bytes.len() as u64, limit: OBJECT_BYTES_MAX });
        }
        match self.answer(Verb::PutIfAbsent, key, (0, 0), bytes)? {
            (Status::Done, ..) | (Status::Same, _, true) => Ok(Put::Created),
            (Status::Exists | Status::Same, ..) => Ok(Put::Exists),
            _ => Err(self.untrue(key, "an answer that fits no create")),
        }
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), StorageError> {
        self.answer(Verb::Put, key, (0, 0), bytes).map(|_| ())
    }

    fn get(&self, key: &str) -> Result<Vec<u8>, StorageError> {
        let limit = bytes_max(key);
        let too_large = |size| Err(StorageError::TooLarge { key: key.to_owned(), size, limit });
        match self.answer(Verb::Get, key, (0, OBJECT_BYTES_MAX), &[]) {
            Ok((_, bytes, _)) if bytes.len() as u64 <= limit => Ok(bytes),
            Ok((_, bytes, _)) => too_large(bytes.len() as u64),
            // The server did not even read it; its listing says how large it is.
            Err(StorageError::TooLarge { size, .. }) => {
                let listed = self.list(key)?.into_iter().find(|object| object.key == key);
                too_large(listed.map_or(size, |object| object.size.max(size)))
            }
            Err(error) => Err(error),
        }
    }

    fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Vec<u8>, StorageError> {
        if length > OBJECT_BYTES_MAX {
            return Err(StorageError::TooLarge { key: key.to_owned(), size: length, limit: OBJECT_BYTES_MAX });
        }
        let bytes = self.answer(Verb::GetRange, key, (offset, length), &[])?.1;
        match bytes.len() as u64 <= length {
            true => Ok(bytes),
            false => Err(self.untrue(key, "more bytes than were asked for")),
        }
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StorageError> {
        let (answers, _) = self.ask(Verb::List, prefix, (0, 0), &[])?;
        let mut listed: Vec<Listed> = Vec::new();
        for (reply, body) in &answers {
            self.explain(Verb::List, prefix, reply)?;
            let lines: Vec<Line> = wire::decode(body).map_err(|e| self.failed(prefix, e))?;
            for line in lines {
                let follows = listed.last().is_none_or(|before| before.key < line.key);
                if !follows || !line.key.starts_with(prefix) || check_key(&line.key).is_err() {
                    return Err(self.untrue(prefix, "a listing that is none"));
                }
                if listed.len() >= LISTED_MAX {
                    return Err(self.untrue(prefix, "a listing without an end"));
                }
                listed.push(Listed { key: line.key, size: line.size, stored_at: line.stored_at.map(Into::into) });
            }
        }
        Ok(listed)
    }

    fn delete(&self, key: &str) -> Result<(), StorageError> {
        self.answer(Verb::Delete, key, (0, 0), &[]).map(|_| ())
    }

    fn location(&self) -> String {
        self.dial.location()
    }

    /// While one pack is written at the other end, the next is on its way.
    fn parallel_writes(&self) -> usize {
        2
    }
}
