//! What a controller and a site's supervisor say to each other: one JSON line there, one back, over a socket in the
//! site's own directory.
//!
//! Invariant: a line is bounded, and an answer is waited for no longer than its order says.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lifeboat_core::plan::Value;
use serde::{Deserialize, Serialize};

use super::layout::Layout;

const LINE_BYTES_MAX: u64 = 1 << 20;
const SOCKET: &str = "supervisor.sock";

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
pub(super) enum Order {
    Ping,
    Start(StartOrder),
}

/// What is to be started. Secrets are references; the supervisor looks them up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct StartOrder {
    pub(super) id: String,
    /// None for what may run at a fenced site: the agent.
    pub(super) write_domain: Option<String>,
    pub(super) isolation: Option<String>,
    pub(super) epoch: u64,
    pub(super) idempotency_key: String,
    pub(super) command: Vec<String>,
    pub(super) env: BTreeMap<String, Value>,
    pub(super) directory: PathBuf,
    /// Whether the supervisor's own environment is handed on, or only what every process needs.
    pub(super) whole_environment: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub(super) enum Answer {
    Here { pid: u32 },
    Started { pid: i32, already: bool, log: PathBuf },
    Refused { error: String, may_pass: bool },
}

/// A socket's path may have 107 bytes only, a site's root may be longer: the socket is named through an open directory.
fn socket_in(directory: &File) -> PathBuf {
    Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(SOCKET)
}

pub(super) fn listen(layout: &Layout) -> io::Result<UnixListener> {
    let directory = File::open(layout.state())?;
    let path = socket_in(&directory);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(path)
}

pub(super) fn ask(layout: &Layout, order: &Order, within: Duration) -> io::Result<Answer> {
    let directory = File::open(layout.state())?;
    let mut stream = UnixStream::connect(socket_in(&directory))?;
    stream.set_read_timeout(Some(within))?;
    stream.set_write_timeout(Some(within))?;
    write_line(&mut stream, order)?;
    read_line(&stream)
}

pub(super) fn write_line<T: Serialize>(stream: &mut UnixStream, message: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    if line.len() as u64 >= LINE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the order is larger than 1 MiB"));
    }
    line.push(b'\n');
    stream.write_all(&line)
}

pub(super) fn read_line<T: for<'a> Deserialize<'a>>(stream: &UnixStream) -> io::Result<T> {
    let mut line = Vec::new();
    BufReader::new(stream).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the other side closed without a word"));
    }
    Ok(serde_json::from_slice(&line)?)
}
