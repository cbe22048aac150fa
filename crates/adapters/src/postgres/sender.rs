//! A primary's side of streaming replication: gives a recovering server, through a private socket, a log that comes from elsewhere.
//!
//! A server in recovery takes whole files from `restore_command`, but single bytes from a primary. So it is told that this is its primary.
//! Invariant: nobody but the owner of the socket's directory reaches it; what the server is given follows without a gap what it asked for.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use jiff::Timestamp;

use super::lsn::{Lsn, history_name};

/// What is given to a recovering server.
pub(crate) trait Feed: Send + Sync {
    fn system(&self) -> u64;
    fn timeline(&self) -> u32;
    /// Of that timeline; empty for the first.
    fn history(&self) -> &[u8];
    /// As a server of its version writes it, such as `15.18`.
    fn server_version(&self) -> &str;
    /// Up to where there is something now.
    fn end(&self) -> Lsn;
    /// Hands over the log from `at` on, in order, as it comes, until `take` answers `false`; an empty stretch now and then while
    /// nothing comes. `Err` says, in words for the server's log, why what is asked for cannot be had.
    fn pour(&self, at: Lsn, take: &mut dyn FnMut(Lsn, &[u8]) -> bool) -> Result<(), String>;
    /// What the recovering server says of how far it is.
    fn heard(&self, _progress: Progress) {}
    /// Lets go of who waits in `pour`.
    fn close(&self);
}

/// How far a receiver is, as it says itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) written: Lsn,
    /// So far its log is durable.
    pub(crate) flushed: Lsn,
    pub(crate) applied: Lsn,
}

impl Progress {
    /// Of a standby's status message; none of another.
    fn read(message: &[u8]) -> Option<Progress> {
        let (b'r', rest) = message.split_first()? else { return None };
        let place = |number: usize| Some(Lsn(u64::from_be_bytes(*rest.get(number * 8..)?.first_chunk()?)));
        Some(Progress { written: place(0)?, flushed: place(1)?, applied: place(2)? })
    }
}

/// The port in the socket's name; there is no other in its directory.
const PORT: u16 = 5432;
/// A startup packet or a command of a receiver is short.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// As much as a primary sends at once.
const SEND_BYTES: usize = 128 << 10;
/// Requests that come before a startup packet.
const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;
const MAJOR_PROTOCOL: u32 = 3;
/// PostgreSQL counts time from here, in microseconds.
const EPOCH_2000_SECONDS: i64 = 946_684_800;
const OID_TEXT: u32 = 25;
const OID_INT4: u32 = 23;
const OID_BYTEA: u32 = 17;

/// Listens until it is dropped.
pub(crate) struct Sender {
    directory: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    feed: Arc<dyn Feed>,
    over: AtomicBool,
    /// So that who waits for one can be woken.
    open: Mutex<Vec<UnixStream>>,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Sender {
    /// Listens in a directory that only the server's user may enter.
    pub(crate) fn start(directory: &Path, owner: Option<(u32, u32)>, feed: Arc<dyn Feed>) -> io::Result<Sender> {
        let socket = directory.join(format!(".s.PGSQL.{PORT}"));
        let listener = UnixListener::bind(&socket)?;
        if let Some((user, group)) = owner {
            std::os::unix::fs::chown(&socket, Some(user), Some(group))?;
        }
        let shared = Arc::new(Shared { feed, over: AtomicBool::new(false), open: Mutex::default() });
        let serving = Arc::clone(&shared);
        let thread = std::thread::spawn(move || serving.listen(&listener));
        Ok(Sender { directory: directory.to_owned(), shared, thread: Some(thread) })
    }

    /// For `primary_conninfo`. What a receiver calls itself there is not looked at.
    pub(crate) fn conninfo(&self) -> String {
        let directory = self.directory.display().to_string().replace('\\', r"\\").replace('\'', r"\'");
        format!("host='{directory}' port={PORT} user=lifeboat application_name=lifeboat_standby")
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        self.shared.feed.close();
        for stream in self.shared.streams().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Wakes who waits for the next connection.
        let _ = UnixStream::connect(self.directory.join(format!(".s.PGSQL.{PORT}")));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn streams(&self) -> std::sync::MutexGuard<'_, Vec<UnixStream>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    fn listen(&self, listener: &UnixListener) {
        std::thread::scope(|scope| {
            for stream in listener.incoming() {
                if self.is_over() {
                    return;
                }
                let Ok(stream) = stream else { return };
                let Ok(known) = stream.try_clone() else { continue };
                {
                    // A receiver has one connection at a time: what was before is gone.
                    let mut open = self.streams();
                    if self.is_over() {
                        return;
                    }
                    for former in std::mem::replace(&mut *open, vec![known]) {
                        let _ = former.shutdown(Shutdown::Both);
                    }
                }
                scope.spawn(move || {
                    if let Err(error) = self.serve(&stream) {
                        tracing::debug!(%error, "a recovering server is not fed any more");
                    }
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        });
    }

    fn serve(&self, stream: &UnixStream) -> io::Result<()> {
        if !greet(stream, self.feed.server_version())? {
            return Ok(());
        }
        loop {
            let Some((kind, body)) = read_message(stream)? else { return Ok(()) };
            match kind {
                b'Q' => {
                    let text = String::from_utf8_lossy(body.strip_suffix(&[0]).unwrap_or(&body)).into_owned();
                    let words: Vec<&str> = text.trim_end_matches(';').split_ascii_whitespace().collect();
                    match words.as_slice() {
                        ["IDENTIFY_SYSTEM"] => self.identify(stream)?,
                        ["TIMELINE_HISTORY", timeline] => self.history(stream, timeline)?,
                        ["START_REPLICATION", how @ ..] => return self.replicate(stream, how),
                        _ => refuse(stream, "42601", "this is no server, but what gives one its log")?,
                    }
                }
                b'X' => return Ok(()),
                _ => return Err(malformed("a message that no receiver sends")),
            }
        }
    }

    fn identify(&self, stream: &UnixStream) -> io::Result<()> {
        let columns = [("systemid", OID_TEXT), ("timeline", OID_INT4), ("xlogpos", OID_TEXT), ("dbname", OID_TEXT)];
        let (system, timeline) = (self.feed.system().to_string(), self.feed.timeline().to_string());
        let at = self.feed.end().to_string();
        let row = [Some(system.as_bytes()), Some(timeline.as_bytes()), Some(at.as_bytes()), None];
        answer(stream, "IDENTIFY_SYSTEM", &columns, &row)
    }

    fn history(&self, stream: &UnixStream, timeline: &str) -> io::Result<()> {
        if timeline.parse() != Ok(self.feed.timeline()) {
            return refuse(stream, "58P01", &format!("there is no history of timeline {timeline} here"));
        }
        let name = history_name(self.feed.timeline());
        let columns = [("filename", OID_TEXT), ("content", OID_BYTEA)];
        answer(stream, "TIMELINE_HISTORY", &columns, &[Some(name.as_bytes()), Some(self.feed.history())])
    }

    fn replicate(&self, stream: &UnixStream, how: &[&str]) -> io::Result<()> {
        // `[SLOT name] [PHYSICAL] LSN [TIMELINE n]`
        let place = how.iter().position(|word| word.contains('/'));
        let timeline = how.iter().position(|word| word.eq_ignore_ascii_case("TIMELINE"));
        let from = place.and_then(|place| how.get(place)?.parse::<Lsn>().ok());
        let timeline = timeline.map(|place| how.get(place + 1).and_then(|word| word.parse::<u32>().ok()));
        let Some(from) = from else { return refuse(stream, "42601", "no place in the log was named") };
        if timeline.is_some_and(|timeline| timeline != Some(self.feed.timeline())) {
            return refuse(stream, "58P01", &format!("only timeline {} is here", self.feed.timeline()));
        }
        let mut begun = message(b'W', &[0, 0, 0]);
        begun.extend(self.keep_alive());
        write_all(stream, &begun)?;
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Its end, whatever it was, is the end of the connection.
                let _ = self.hear(stream);
                over.store(true, Ordering::SeqCst);
                let _ = stream.shutdown(Shutdown::Both);
            });
            let mut failed = None;
            let poured = self.feed.pour(from, &mut |start, bytes| {
                let sent = match bytes.is_empty() {
                    true => write_all(stream, &self.keep_alive()),
                    false => self.send(stream, start, bytes),
                };
                let goes_on = sent.is_ok() && !over.load(Ordering::SeqCst) && !self.is_over();
                failed = sent.err();
                goes_on
            });
            let told = match poured {
                Err(why) => write_all(stream, &error_message("58P01", &why)),
                Ok(()) => Ok(()),
            };
            let _ = stream.shutdown(Shutdown::Both);
            failed.map_or(told, Err)
        })
    }

    fn send(&self, stream: &UnixStream, start: Lsn, bytes: &[u8]) -> io::Result<()> {
        let mut at = start.0;
        for part in bytes.chunks(SEND_BYTES) {
            let end = at.saturating_add(part.len() as u64);
            let mut body = Vec::with_capacity(25 + part.len());
            body.push(b'w');
            for number in [at, end.max(self.feed.end().0), now_since_2000()] {
                body.extend_from_slice(&number.to_be_bytes());
            }
            body.extend_from_slice(part);
            write_all(stream, &message(b'd', &body))?;
            at = end;
        }
        Ok(())
    }

    /// Reads what the receiver says of itself, until it says no more.
    fn hear(&self, stream: &UnixStream) -> io::Result<()> {
        while let Some((b'd', message)) = read_message(stream)? {
            if let Some(progress) = Progress::read(&message) {
                self.feed.heard(progress);
            }
        }
        Ok(())
    }

    fn keep_alive(&self) -> Vec<u8> {
        let mut body = vec![b'k'];
        body.extend_from_slice(&self.feed.end().0.to_be_bytes());
        body.extend_from_slice(&now_since_2000().to_be_bytes());
        body.push(0);
        message(b'd', &body)
    }
}

fn write_all(mut stream: &UnixStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)
}

fn read_exact(mut stream: &UnixStream, bytes: &mut [u8]) -> io::Result<()> {
    stream.read_exact(bytes)
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn now_since_2000() -> u64 {
    let micros = Timestamp::now().as_microsecond() - EPOCH_2000_SECONDS * 1_000_000;
    u64::try_from(micros).unwrap_or(0)
}

/// Lets everyone in who can reach the socket. False: they wanted something else.
fn greet(stream: &UnixStream, server_version: &str) -> io::Result<bool> {
    loop {
        let length = read_u32(stream)? as usize;
        if !(8..=MESSAGE_BYTES_MAX).contains(&length) {
            return Err(malformed("a startup packet of a strange length"));
        }
        let code = read_u32(stream)?;
        let mut rest = vec![0; length - 8];
        read_exact(stream, &mut rest)?;
        match code {
            SSL_REQUEST | GSS_REQUEST => write_all(stream, b"N")?,
            code if code >> 16 == MAJOR_PROTOCOL => break,
            _ => return Ok(false),
        }
    }
    let mut out = message(b'R', &0u32.to_be_bytes());
    for (name, value) in [
        ("server_version", server_version),
        ("server_encoding", "UTF8"),
        ("client_encoding", "UTF8"),
        ("integer_datetimes", "on"),
        ("standard_conforming_strings", "on"),
    ] {
        out.extend(message(b'S', format!("{name}\0{value}\0").as_bytes()));
    }
    out.extend(message(b'K', &[0; 8]));
    out.extend(message(b'Z', b"I"));
    write_all(stream, &out)?;
    Ok(true)
}

fn read_u32(stream: &UnixStream) -> io::Result<u32> {
    let mut bytes = [0; 4];
    read_exact(stream, &mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

/// `None` at the end.
fn read_message(mut stream: &UnixStream) -> io::Result<Option<(u8, Vec<u8>)>> {
    let mut kind = [0];
    if stream.read(&mut kind)? == 0 {
        return Ok(None);
    }
    let length = read_u32(stream)? as usize;
    if !(4..=MESSAGE_BYTES_MAX).contains(&length) {
        return Err(malformed("a message of a strange length"));
    }
    let mut body = vec![0; length - 4];
    read_exact(stream, &mut body)?;
    Ok(Some((kind[0], body)))
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + 5);
    out.push(kind);
    out.extend_from_slice(&length_of(body.len() + 4));
    out.extend_from_slice(body);
    out
}

fn length_of(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes()
}

/// One row, and that the next command may come.
fn answer(stream: &UnixStream, tag: &str, columns: &[(&str, u32)], row: &[Option<&[u8]>]) -> io::Result<()> {
    let count = u16::try_from(columns.len()).unwrap_or(0).to_be_bytes();
    let mut described = count.to_vec();
    for (name, kind) in columns {
        described.extend_from_slice(name.as_bytes());
        // No table's column, of any length, as text.
        described.extend_from_slice(&[0; 7]);
        described.extend_from_slice(&kind.to_be_bytes());
        described.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);
    }
    let mut values = count.to_vec();
    for value in row {
        match value {
            Some(value) => {
                values.extend_from_slice(&length_of(value.len()));
                values.extend_from_slice(value);
            }
            None => values.extend_from_slice(&[0xff; 4]),
        }
    }
    let mut out = message(b'T', &described);
    out.extend(message(b'D', &values));
    out.extend(message(b'C', format!("{tag}\0").as_bytes()));
    out.extend(message(b'Z', b"I"));
    write_all(stream, &out)
}

fn error_message(sqlstate: &str, why: &str) -> Vec<u8> {
    message(b'E', format!("SERROR\0VERROR\0C{sqlstate}\0M{}\0\0", why.replace('\0', " ")).as_bytes())
}

fn refuse(stream: &UnixStream, sqlstate: &str, why: &str) -> io::Result<()> {
    let mut out = error_message(sqlstate, why);
    out.extend(message(b'Z', b"I"));
    write_all(stream, &out)
}
