//! The programs that portable archives are handed to: `gpg`, which seals to an OpenPGP key and opens with the user's own keyring (and so with
//! cards, too), and `tar`, which extracts.
//!
//! Invariant: no key of the user's is imported anywhere; what a program said on stderr is in the error.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread::JoinHandle;

use thiserror::Error;

/// What is handed over at once.
const STRETCH_BYTES: usize = 256 << 10;
/// What is kept of what a program says.
const SAID_BYTES_MAX: u64 = 4096;

/// Why a program did not do its work.
#[derive(Debug, Error)]
pub enum ProgramError {
    #[error("`{program}` cannot be run; install it (Debian: package {package})")]
    Missing {
        program: &'static str,
        package: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("`{program}` failed: {said}")]
    Failed { program: &'static str, said: String },
    #[error("what `{program}` gave could not be passed on")]
    Passing {
        program: &'static str,
        #[source]
        source: io::Error,
    },
}

/// Seals what is written to it to an OpenPGP key, on its way to `W`.
#[derive(Debug)]
pub struct OpenPgpSealed<W> {
    child: Child,
    /// Absent once all is written.
    input: Option<ChildStdin>,
    output: JoinHandle<io::Result<W>>,
    said: JoinHandle<String>,
    /// `gpg` keeps nothing of this export.
    home: tempfile::TempDir,
}

impl<W: Write + Send + 'static> OpenPgpSealed<W> {
    /// `keys`: files with the recipients' public keys.
    pub fn begin(keys: &[PathBuf], mut to: W) -> Result<Self, ProgramError> {
        let home = tempfile::Builder::new().prefix("lifeboat-gpg-").tempdir();
        let home = home.map_err(|source| ProgramError::Passing { program: "gpg", source })?;
        let mut command = Command::new("gpg");
        command.args(["--batch", "--quiet", "--no-options", "--no-default-keyring", "--trust-model", "always"]);
        // It is compressed already.
        command.args(["--compress-level", "0", "--homedir"]).arg(home.path());
        for key in keys {
            command.arg("--recipient-file").arg(key);
        }
        command.args(["--output", "-", "--encrypt"]);
        let mut child = start(command.stdin(Stdio::piped()).stdout(Stdio::piped()), "gpg", "gnupg")?;
        let input = child.stdin.take();
        let (mut output, said) = (child.stdout.take(), hear(&mut child));
        let output = std::thread::spawn(move || {
            if let Some(output) = &mut output {
                io::copy(output, &mut to)?;
            }
            Ok(to)
        });
        Ok(OpenPgpSealed { child, input, output, said, home })
    }

    /// Ends the message; what it was written to.
    pub fn finish(mut self) -> Result<W, ProgramError> {
        drop(self.input.take());
        let output = self.output.join();
        let ended = self.child.wait();
        let said = self.said.join().unwrap_or_default();
        let passing = |source| ProgramError::Passing { program: "gpg", source };
        let to = output.unwrap_or_else(|_| Err(io::Error::other("the thread ended"))).map_err(passing)?;
        drop(self.home);
        match ended.map_err(passing)?.success() {
            true => Ok(to),
            false => Err(ProgramError::Failed { program: "gpg", said }),
        }
    }
}

impl<W> Write for OpenPgpSealed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.input {
            Some(input) => input.write(bytes),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.input.as_mut().map_or(Ok(()), Write::flush)
    }
}

/// What `gpg` opens, with the keyring and agent of who runs this. `finish` tells whether all of it was right.
#[derive(Debug)]
pub struct OpenPgpOpened {
    child: Child,
    said: JoinHandle<String>,
    input: JoinHandle<io::Result<()>>,
}

impl OpenPgpOpened {
    pub fn begin(mut from: impl Read + Send + 'static) -> Result<Self, ProgramError> {
        let mut command = Command::new("gpg");
        command.args(["--quiet", "--output", "-", "--decrypt"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = start(&mut command, "gpg", "gnupg")?;
        let (mut input, said) = (child.stdin.take(), hear(&mut child));
        let input = std::thread::spawn(move || {
            let Some(input) = &mut input else { return Ok(()) };
            match io::copy(&mut from, input) {
                // It says itself why it reads no more.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                other => other.map(drop),
            }
        });
        Ok(OpenPgpOpened { child, said, input })
    }

    pub fn finish(mut self) -> Result<(), ProgramError> {
        drop(self.child.stdout.take());
        let ended = self.child.wait();
        let said = self.said.join().unwrap_or_default();
        let passing = |source| ProgramError::Passing { program: "gpg", source };
        self.input.join().unwrap_or(Ok(())).map_err(passing)?;
        match ended.map_err(passing)?.success() {
            true => Ok(()),
            false => Err(ProgramError::Failed { program: "gpg", said }),
        }
    }
}

impl Read for OpenPgpOpened {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.child.stdout.as_mut().map_or(Ok(0), |output| output.read(buffer))
    }
}

/// Extracts a tar stream into a directory, with everything that the user may set.
pub fn extract(from: &mut dyn Read, to: &Path, progress: &mut dyn FnMut(u64) -> bool) -> Result<bool, ProgramError> {
    let mut command = Command::new("tar");
    command.args([
        "--extract",
        "--preserve-permissions",
        "--numeric-owner",
        "--xattrs",
        "--xattrs-include=*",
        "--file=-",
    ]);
    command.arg("--directory").arg(to).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = start(&mut command, "tar", "tar")?;
    let said = hear(&mut child);
    let mut input = child.stdin.take();
    let (mut buffer, mut result, mut whole) = (vec![0; STRETCH_BYTES], Ok(()), true);
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) => {
                result = Err(error);
                break;
            }
        };
        let written = input.as_mut().map_or(Ok(()), |input| input.write_all(buffer.get(..read).unwrap_or_default()));
        // It says itself why it reads no more.
        if written.is_err() {
            break;
        }
        if !progress(read as u64) {
            whole = false;
            break;
        }
    }
    drop(input);
    let passing = |source| ProgramError::Passing { program: "tar", source };
    let ended = child.wait().map_err(passing)?;
    let said = said.join().unwrap_or_default();
    result.map_err(passing)?;
    match ended.success() || !whole {
        true => Ok(whole),
        false => Err(ProgramError::Failed { program: "tar", said }),
    }
}

fn start(command: &mut Command, program: &'static str, package: &'static str) -> Result<Child, ProgramError> {
    let started = command.env("LC_ALL", "C.UTF-8").stderr(Stdio::piped()).spawn();
    started.map_err(|source| ProgramError::Missing { program, package, source })
}

/// What the program says on stderr, as far as it is worth keeping.
fn hear(child: &mut Child) -> JoinHandle<String> {
    let errors = child.stderr.take();
    std::thread::spawn(move || {
        let Some(mut errors) = errors else { return String::new() };
        let mut said = Vec::new();
        // What it cannot say any more is not missed.
        let _ = errors.by_ref().take(SAID_BYTES_MAX).read_to_end(&mut said);
        let _ = io::copy(&mut errors, &mut io::sink());
        String::from_utf8_lossy(&said).trim().replace('\n', "; ")
    })
}
