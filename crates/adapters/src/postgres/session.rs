//! A connection to a server: questions in SQL, one at a time, and their answers as text.
//!
//! Invariants: an answer is whole or an error; a session whose answer was not read to its end (it was dropped, or took too long) asks
//! nothing more; every wait ends.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{DataRowBody, Message};
use postgres_protocol::message::frontend;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout, timeout_at};

use super::auth::{self, Cover};
use super::door::Door;
pub(crate) use super::error::SessionError;
use super::error::{Said, words};
use super::tls::{self, Attempt};
use super::wire::{Frame, MESSAGE_BYTES_MAX, Wire};

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Queries,
    /// Physical: `replication=true`.
    Replication,
}

/// One row of an answer.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    values: Vec<Option<Range<usize>>>,
    buffer: Bytes,
}

impl Row {
    /// The text in a column; `None` for NULL, and where there is no such column.
    pub(crate) fn get(&self, column: usize) -> Option<&str> {
        self.bytes(column).and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    pub(super) fn bytes(&self, column: usize) -> Option<&[u8]> {
        self.buffer.get(self.values.get(column)?.clone()?)
    }

    pub(crate) fn columns(&self) -> usize {
        self.values.len()
    }

    fn read(body: &DataRowBody) -> io::Result<Row> {
        let values = body.ranges().collect()?;
        Ok(Row { values, buffer: body.buffer_bytes().clone() })
    }

    fn is_text(&self) -> bool {
        (0..self.values.len()).all(|column| self.bytes(column).is_none_or(|bytes| std::str::from_utf8(bytes).is_ok()))
    }
}

/// A connection on which nothing is under way.
#[derive(Debug)]
pub(crate) struct Session {
    pub(super) wire: Wire,
    parameters: BTreeMap<String, String>,
    notices: Vec<String>,
    version: u32,
    pid: Option<u32>,
    patience: Duration,
    /// Whether an answer is still to come, or the server has closed.
    pub(super) midway: bool,
}

/// How long an answer may take. Long for a question, short for a person who waits for a hung server.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);
/// All rows of an answer together.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// More notices than this are not kept, nor more parameters; a server has some twenty.
const NOTICES_MAX: usize = 100;
const PARAMETERS_MAX: usize = 100;
const PARAMETER_BYTES_MAX: usize = 4096;
const GREETING_MESSAGES_MAX: u32 = 1000;

impl Session {
    /// Connects and logs in. The name is what the server lists the session under; without one, the door's.
    pub(crate) async fn open(door: &Door, purpose: Purpose, application_name: &str) -> Result<Session, SessionError> {
        let at = match door.socket() {
            Some(path) => format!("PostgreSQL at {}", path.display()),
            None => format!("PostgreSQL at {}:{}", door.host(), door.port()),
        };
        let opening = Opening { door, purpose, application_name, at };
        let mut first: Option<SessionError> = None;
        for address in opening.addresses().await? {
            match opening.open_at(address).await {
                Ok(session) => return Ok(session),
                // Another address of the same server is worth a try only if this one did not answer.
                Err(error @ (SessionError::Unreachable { .. } | SessionError::Timeout { .. })) => {
                    first.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        let nowhere = || io::Error::new(io::ErrorKind::NotFound, "its name has no address");
        Err(first.unwrap_or_else(|| SessionError::Unreachable { at: opening.at.clone(), source: nowhere() }))
    }

    /// Over a connection that is there.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) async fn over(
        stream: Box<dyn super::wire::Stream>,
        door: &Door,
        purpose: Purpose,
    ) -> Result<Session, SessionError> {
        let at = "PostgreSQL at hand".to_owned();
        let opening = Opening { door, purpose, application_name: "", at: at.clone() };
        opening.greet(Wire::new(stream, at), Cover::Socket).await
    }

    /// How long an answer may take from now on.
    pub(crate) fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Asks, and waits for all of the answer: the rows of the last statement that has any.
    pub(crate) async fn query(&mut self, sql: &str) -> Result<Vec<Row>, SessionError> {
        let rows = self.query_raw(sql).await?;
        if rows.iter().all(Row::is_text) {
            return Ok(rows);
        }
        Err(self.wire.protocol("a value is no UTF-8, which was asked for; the database may be of encoding SQL_ASCII"))
    }

    /// Asks for exactly one row.
    pub(crate) async fn query_one(&mut self, sql: &str) -> Result<Row, SessionError> {
        let mut rows = self.query(sql).await?;
        match (rows.pop(), rows.len()) {
            (Some(row), 0) => Ok(row),
            (last, more) => {
                let count = more + usize::from(last.is_some());
                Err(self.wire.protocol(format!("it answers a question for one row with {count}")))
            }
        }
    }

    pub(super) async fn query_raw(&mut self, sql: &str) -> Result<Vec<Row>, SessionError> {
        self.ask(sql)?;
        let within = self.patience;
        let answer = timeout(within, self.answer()).await;
        answer.unwrap_or_else(|_| Err(self.wire.timeout("answer a question", within)))
    }

    /// Puts a question among what is to be sent.
    pub(super) fn ask(&mut self, sql: &str) -> Result<(), SessionError> {
        if self.midway {
            let ended = io::Error::new(io::ErrorKind::NotConnected, "an earlier answer was not read to its end");
            return Err(self.wire.lost(ended));
        }
        frontend::query(sql, &mut self.wire.output)
            .map_err(|_| self.wire.protocol("a question with a zero byte cannot be asked"))?;
        self.midway = true;
        Ok(())
    }

    async fn answer(&mut self) -> Result<Vec<Row>, SessionError> {
        self.wire.flush().await?;
        self.read_answer().await
    }

    /// Reads until the server is ready for the next question.
    pub(super) async fn read_answer(&mut self) -> Result<Vec<Row>, SessionError> {
        let mut rows: Vec<Row> = Vec::new();
        let mut bytes = 0;
        let mut refusal: Option<Said> = None;
        loop {
            let frame = match self.wire.receive().await {
                // Who refuses for good closes at once.
                Err(SessionError::Lost { .. }) if refusal.is_some() => {
                    return Err(self.refused(refusal.unwrap_or_default()));
                }
                frame => frame?,
            };
            let Frame::Message(message) = frame else {
                return Err(self.wire.protocol("it copies without being asked to"));
            };
            match message {
                Message::RowDescription(_) => {
                    rows.clear();
                    bytes = 0;
                }
                Message::DataRow(body) => {
                    bytes += body.buffer().len() + std::mem::size_of::<Row>();
                    if bytes > ANSWER_BYTES_MAX {
                        return Err(self.wire.protocol(format!("an answer is larger than {ANSWER_BYTES_MAX} bytes")));
                    }
                    rows.push(Row::read(&body).map_err(|error| self.wire.malformed(error))?);
                }
                Message::CommandComplete(_) | Message::EmptyQueryResponse => {}
                Message::ErrorResponse(body) => {
                    let said = Said::read(body.fields()).map_err(|error| self.wire.malformed(error))?;
                    refusal.get_or_insert(said);
                }
                Message::ReadyForQuery(_) => {
                    self.midway = false;
                    return match refusal {
                        Some(said) => Err(self.refused(said)),
                        None => Ok(rows),
                    };
                }
                Message::CopyInResponse(_) | Message::CopyOutResponse(_) => {
                    return Err(self.wire.protocol("COPY is not for questions"));
                }
                other => self.note(other)?,
            }
        }
    }

    pub(super) fn refused(&self, said: Said) -> SessionError {
        said.refused(&self.wire.at, String::new())
    }

    /// What may come at any time.
    pub(super) fn note(&mut self, message: Message) -> Result<(), SessionError> {
        match message {
            Message::ParameterStatus(body) => {
                let known = body.name().and_then(|name| Ok((name, body.value()?)));
                let (name, value) = known.map_err(|error| self.wire.malformed(error))?;
                let room = self.parameters.len() < PARAMETERS_MAX || self.parameters.contains_key(name);
                if room && name.len() + value.len() <= PARAMETER_BYTES_MAX {
                    self.parameters.insert(name.to_owned(), value.to_owned());
                }
            }
            Message::NoticeResponse(body) => {
                let said = Said::read(body.fields()).map_err(|error| self.wire.malformed(error))?;
                if self.notices.len() < NOTICES_MAX {
                    self.notices.push(format!("{}: {}", said.severity, said.text()));
                }
            }
            Message::NotificationResponse(_) => {}
            _ => return Err(self.wire.protocol("a message comes where it has no place")),
        }
        Ok(())
    }

    /// The server's process for this session, as it calls it.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// As a number that compares: 15.18 is 150018.
    pub(crate) fn server_version(&self) -> u32 {
        self.version
    }

    /// A setting that the server reports by itself.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// What the server remarked since this was last asked.
    pub(crate) fn notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notices)
    }

    /// Takes leave, so that the server's log does not speak of a lost connection.
    pub(crate) async fn close(mut self) {
        frontend::terminate(&mut self.wire.output);
        let leave = async {
            let _ = self.wire.flush().await;
            self.wire.shut_down().await;
        };
        let _ = timeout(CLOSE_PATIENCE, leave).await;
    }
}

/// Text as SQL writes it.
pub(crate) fn literal(text: &str) -> String {
    postgres_protocol::escape::escape_literal(text)
}

enum Address {
    Socket(std::path::PathBuf),
    Network(SocketAddr),
}

/// Goes through a socket as another user. On Linux each thread has a user of its own, so one is made for this and ends with it.
async fn connect_as(path: std::path::PathBuf, (user, group): (u32, u32)) -> io::Result<UnixStream> {
    use rustix::process::{Gid, Uid};
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let connect = || {
            rustix::thread::set_thread_res_gid(None, Gid::from_raw(group), None)?;
            rustix::thread::set_thread_res_uid(None, Uid::from_raw(user), None)?;
            let stream = std::os::unix::net::UnixStream::connect(path)?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        };
        let _ = tell.send(connect());
    });
    let stream: io::Result<_> = told.await.map_err(io::Error::other)?;
    UnixStream::from_std(stream?)
}

struct Opening<'a> {
    door: &'a Door,
    purpose: Purpose,
    application_name: &'a str,
    at: String,
}

impl Opening<'_> {
    async fn addresses(&self) -> Result<Vec<Address>, SessionError> {
        if let Some(path) = self.door.socket() {
            return Ok(vec![Address::Socket(path)]);
        }
        let within = self.door.patience();
        let found = timeout(within, tokio::net::lookup_host((self.door.address(), self.door.port()))).await;
        let late = SessionError::Timeout { at: self.at.clone(), what: "have its name looked up", within };
        let found = found.map_err(|_| late)?.map_err(|source| self.unreachable(source))?;
        Ok(found.map(Address::Network).collect())
    }

    fn unreachable(&self, source: io::Error) -> SessionError {
        SessionError::Unreachable { at: self.at.clone(), source }
    }

    /// By each of the ways that the door allows, with libpq's reasons to try the next.
    async fn open_at(&self, address: Address) -> Result<Session, SessionError> {
        let deadline = Instant::now() + self.door.patience();
        let mut first: Option<SessionError> = None;
        for attempt in tls::attempts(self.door) {
            let opened = timeout_at(deadline, self.try_at(&address, *attempt)).await;
            let within = self.door.patience();
            let opened = opened
                .unwrap_or_else(|_| Err(SessionError::Timeout { at: self.at.clone(), what: "let us in", within }));
            match opened {
                Ok(session) => return Ok(session),
                // Which connections it takes, encrypted or not, is said in pg_hba.conf.
                Err(error) if matches!(error, SessionError::Tls { .. }) || error.sqlstate() == Some("28000") => {
                    first.get_or_insert(error);
                }
                Err(error) => return Err(first.unwrap_or(error)),
            }
        }
        Err(first.unwrap_or_else(|| self.unreachable(io::ErrorKind::NotFound.into())))
    }

    async fn try_at(&self, address: &Address, attempt: Attempt) -> Result<Session, SessionError> {
        let wire = |stream| Wire::new(stream, self.at.clone());
        let mut stream = match address {
            Address::Socket(path) => {
                let connected = match self.door.comes_as() {
                    None => UnixStream::connect(path).await,
                    Some(owner) => connect_as(path.clone(), owner).await,
                };
                let stream = connected.map_err(|source| self.unreachable(source))?;
                return self.greet(wire(Box::new(stream)), Cover::Socket).await;
            }
            Address::Network(address) => {
                let stream = TcpStream::connect(address).await.map_err(|source| self.unreachable(source))?;
                watch(&stream).map_err(|source| self.unreachable(source))?;
                stream
            }
        };
        if attempt == Attempt::Plain {
            return self.greet(wire(Box::new(stream)), Cover::None).await;
        }
        if !tls::is_offered(&mut stream, &self.at).await? {
            return match attempt {
                Attempt::TlsIfOffered => self.greet(wire(Box::new(stream)), Cover::None).await,
                _ => Err(tls::not_offered(&self.at)),
            };
        }
        let (stream, binding) = tls::handshake(stream, self.door, &self.at).await?;
        self.greet(wire(Box::new(stream)), Cover::Tls(binding)).await
    }

    /// From the first message to where questions can be asked.
    async fn greet(&self, mut wire: Wire, cover: Cover) -> Result<Session, SessionError> {
        let name =
            if self.application_name.is_empty() { self.door.application_name() } else { Some(self.application_name) };
        let mut parameters = vec![("user", self.door.user()), ("client_encoding", "UTF8"), ("DateStyle", "ISO")];
        match self.purpose {
            Purpose::Queries => parameters.push(("database", self.door.database())),
            Purpose::Replication => parameters.push(("replication", "true")),
        }
        parameters.extend(name.map(|name| ("application_name", name)));
        parameters.extend(self.door.options().map(|options| ("options", options)));
        frontend::startup_message(parameters, &mut wire.output)
            .map_err(|_| wire.protocol("a setting with a zero byte cannot be sent"))?;
        auth::log_in(&mut wire, self.door, self.purpose, cover).await?;
        let mut session = Session {
            wire,
            parameters: BTreeMap::new(),
            notices: Vec::new(),
            version: 0,
            pid: None,
            patience: ANSWER_PATIENCE,
            midway: false,
        };
        self.settle(&mut session).await?;
        session.wire.message_bytes_max = MESSAGE_BYTES_MAX;
        Ok(session)
    }

    /// What the server says of itself when it has let us in.
    async fn settle(&self, session: &mut Session) -> Result<(), SessionError> {
        let mut remarks = 0;
        loop {
            let Frame::Message(message) = session.wire.receive().await? else {
                return Err(session.wire.protocol("it copies without being asked to"));
            };
            match message {
                Message::BackendKeyData(key) => session.pid = u32::try_from(key.process_id()).ok(),
                Message::ReadyForQuery(_) => break,
                Message::ErrorResponse(body) => {
                    let said = Said::read(body.fields()).map_err(|error| session.wire.malformed(error))?;
                    let advice = auth::advice(&said, self.door, self.purpose);
                    return Err(said.refused(&session.wire.at, advice));
                }
                other => {
                    remarks += 1;
                    if remarks > GREETING_MESSAGES_MAX {
                        return Err(session.wire.protocol("its greeting does not end"));
                    }
                    session.note(other)?;
                }
            }
        }
        let version = session.parameter("server_version").and_then(version_number);
        let unknown = || {
            let said = session.parameter("server_version").map_or("none".to_owned(), |said| words(said.as_bytes()));
            session.wire.protocol(format!("it has a version that cannot be understood ({said})"))
        };
        session.version = version.ok_or_else(unknown)?;
        Ok(())
    }
}

/// 15.18 is 150018, 9.6.24 is 90624, and a beta counts as what it becomes.
fn version_number(text: &str) -> Option<u32> {
    let digits = |text: &str| -> Option<u32> {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        text[..end].parse().ok().filter(|number| *number < 10_000)
    };
    let mut parts = text.split('.');
    let major = digits(parts.next()?)?;
    let mut next = || parts.next().and_then(digits).unwrap_or(0);
    if major >= 10 {
        return Some(major * 10_000 + next());
    }
    Some(major * 10_000 + next().min(99) * 100 + next().min(99))
}

/// Whoever vanishes without a word is noticed, even while nothing is to be sent.
fn watch(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(10))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(5))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    sockopt::set_tcp_user_timeout(stream, 30_000)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        let known = [
            ("15.18 (Debian 15.18-0+deb12u1)", 150_018),
            ("17beta1", 170_000),
            ("18rc2", 180_000),
            ("16.0", 160_000),
            ("9.6.24", 90_624),
        ];
        for (text, number) in known {
            assert_eq!(version_number(text), Some(number), "{text}");
        }
        for junk in ["", "x", ".5", "99999999999", "-1"] {
            assert_eq!(version_number(junk), None, "{junk}");
        }
    }

    #[test]
    fn text_is_quoted_for_sql() {
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"a\b"), r" E'a\\b'");
    }
}
