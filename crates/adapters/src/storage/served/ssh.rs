//! A server at the other end of the system's `ssh`, with its user's configuration, keys and known hosts.
//!
//! Invariant: no part of an address is taken for an option or for shell; what ssh says when it fails is shown.

use std::io::{self, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lifeboat_vault::SigningKey;
use lifeboat_vault::serve::{Connection, Dial};
use lifeboat_vault::storage::StorageError;

/// Names another ssh, with options: `LIFEBOAT_SSH="ssh -F /etc/lifeboat/ssh_config"`.
const PROGRAM: &str = "LIFEBOAT_SSH";
const WORDS_BYTES_MAX: usize = 4096;
/// Its last words may come a little after the end of its output.
const WORDS_WITHIN: Duration = Duration::from_millis(500);
/// After its input has ended, ssh (and the server behind it) may take so long to end.
const END_WITHIN: Duration = Duration::from_secs(8);

#[derive(Debug)]
pub(super) struct Ssh {
    /// `[USER@]HOST`, as ssh wants it.
    destination: String,
    port: Option<u16>,
    path: String,
    location: String,
    words: Arc<Words>,
}

/// What ssh said, and whether it has said everything.
#[derive(Debug, Default)]
struct Words {
    text: Mutex<Vec<u8>>,
    complete: AtomicBool,
}

impl Words {
    fn text(&self) -> MutexGuard<'_, Vec<u8>> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ssh {
    pub(super) fn new(url: &str) -> Result<Ssh, StorageError> {
        let bad = |why: &str| StorageError::BadAddress {
            address: url.to_owned(),
            why: format!("{why} (ssh://[USER@]HOST[:PORT]/PATH)"),
        };
        let rest = url.strip_prefix("ssh://").ok_or_else(|| bad("it does not begin with ssh://"))?;
        let (place, path) = rest.split_once('/').ok_or_else(|| bad("it names no path"))?;
        let (user, host) = match place.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, place),
        };
        let (host, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((inner, "")) => (inner, None),
            Some((inner, after)) => {
                (inner, Some(after.strip_prefix(':').ok_or_else(|| bad("its port cannot be read"))?))
            }
            None => match host.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (host, None),
            },
        };
        let port: Option<u16> = port.map(str::parse).transpose().map_err(|_| bad("its port is no number"))?;
        let is_plain = |text: &str| {
            let right = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b':' | b'%');
            !text.is_empty() && !text.starts_with('-') && text.bytes().all(right)
        };
        if !is_plain(host) {
            return Err(bad("its host is not a host's name"));
        }
        if user.is_some_and(|user| user.contains(':')) {
            return Err(bad("a password does not belong into an address; let ssh use a key"));
        }
        if user.is_some_and(|user| !is_plain(user)) {
            return Err(bad("its user is not a user's name"));
        }
        let destination = user.map_or_else(|| host.to_owned(), |user| format!("{user}@{host}"));
        Ok(Ssh { destination, port, path: format!("/{path}"), location: url.to_owned(), words: Arc::default() })
    }

    /// What runs at the other end, where its authorized_keys does not say otherwise.
    fn remote_command(&self) -> String {
        format!("lifeboat vault serve --stdio {}", quoted(&self.path))
    }

    fn command(&self) -> Command {
        let named = std::env::var(PROGRAM).unwrap_or_default();
        let mut words = named.split_whitespace();
        let mut command = Command::new(words.next().unwrap_or("ssh"));
        command.args(words).arg("-T");
        if let Some(port) = self.port {
            command.args(["-p", &port.to_string()]);
        }
        command.arg("--").arg(&self.destination).arg(self.remote_command());
        command
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// The child; whoever holds the last handle sees that it ends.
struct Running(Mutex<Option<Child>>);

impl Running {
    fn end(&self, within: Duration) {
        let child = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut child) = child else { return };
        let began = Instant::now();
        while began.elapsed() < within {
            match child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        // What has ended meanwhile cannot be killed, and need not be.
        let _ = child.kill();
        let _ = child.wait();
    }
}

struct Answers {
    output: ChildStdout,
    running: Arc<Running>,
}

impl Read for Answers {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.output.read(buffer)
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.running.end(END_WITHIN);
    }
}

impl Dial for Ssh {
    fn dial(&self) -> io::Result<Connection> {
        self.words.text().clear();
        self.words.complete.store(false, Ordering::SeqCst);
        let mut child = self.command().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let running = Arc::new(Running(Mutex::new(Some(child))));
        let (Some(input), Some(output), Some(errors)) = (input, output, errors) else {
            running.end(Duration::ZERO);
            return Err(io::Error::other("ssh was started without its pipes"));
        };
        let words = self.words.clone();
        std::thread::Builder::new().name("ssh-words".to_owned()).spawn(move || {
            keep_words(errors, &words);
            words.complete.store(true, Ordering::SeqCst);
        })?;
        let cutting = running.clone();
        Ok(Connection {
            reader: Box::new(Answers { output, running }),
            writer: Box::new(input),
            cut: Box::new(move || cutting.end(Duration::from_millis(500))),
        })
    }

    fn location(&self) -> String {
        self.location.clone()
    }

    fn key(&self) -> Option<SigningKey> {
        super::key()
    }

    fn last_words(&self) -> String {
        let began = Instant::now();
        while !self.words.complete.load(Ordering::SeqCst) && began.elapsed() < WORDS_WITHIN {
            std::thread::sleep(Duration::from_millis(2));
        }
        let words = self.words.text();
        let text = String::from_utf8_lossy(&words);
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let last = lines.iter().rev().take(6).rev().copied().collect::<Vec<_>>().join("; ");
        last.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
    }
}

/// Keeps the last of what ssh says.
fn keep_words(mut errors: impl Read, words: &Words) {
    let mut buffer = [0u8; 1024];
    while let Ok(count) = errors.read(&mut buffer) {
        if count == 0 {
            return;
        }
        let mut words = words.text();
        words.extend_from_slice(buffer.get(..count).unwrap_or_default());
        let excess = words.len().saturating_sub(WORDS_BYTES_MAX);
        words.drain(..excess);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_address_becomes_a_command_and_nothing_else() {
        let said = |url: &str| {
            let command = Ssh::new(url).unwrap().command();
            command.get_args().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(said("ssh://host/srv/vault"), "-T -- host lifeboat vault serve --stdio '/srv/vault'");
        assert_eq!(said("ssh://u@[::1]:2222/v"), "-T -p 2222 -- u@::1 lifeboat vault serve --stdio '/v'");
        assert!(said("ssh://h/a'; rm -rf ~").ends_with("--stdio '/a'\\''; rm -rf ~'"));
    }

    #[test]
    fn no_part_of_an_address_is_an_option() {
        for bad in [
            "ssh://-oProxyCommand=evil/x",
            "ssh://u@-h/x",
            "ssh://-u@h/x",
            "ssh://h",
            "ssh:///x",
            "ssh://h:ssh/x",
            "ssh://u:secret@h/x",
            "ssh://a b/x",
            "ssh://[::1]22/x",
        ] {
            assert!(Ssh::new(bad).is_err(), "{bad}");
        }
    }
}
