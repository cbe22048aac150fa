//! One of PostgreSQL's programs at work, whose output is read as it comes.
//!
//! Invariant: what it wrote counts only when it has ended with 0, and it is gone when this is dropped. Its way into the server stands in its
//! environment: nothing of it in its arguments.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use lifeboat_engine::port::Cancel;

use super::door::Door;
use super::programs::Programs;

/// As much as anybody may have.
const PIPE_BYTES: usize = 1 << 20;
/// Of what the child complains about, so many lines are told: of its beginning, where it says what is wrong, and of its end.
const LINES_TOLD: usize = 5;
/// A line may be a query over thousands of tables.
const LINE_CHARS_TOLD: usize = 400;

#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    #[error("cannot run {}", program.display())]
    Run {
        program: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{program} ended with {status}: {complaint}")]
    Ended { program: String, status: String, complaint: String },
    #[error("interrupted; nothing of it counts, and what was stored is found again")]
    Cancelled,
}

/// The child at work; killed when it is dropped before its end.
pub(crate) struct Running {
    name: String,
    child: Child,
    complaints: Option<JoinHandle<Complaints>>,
}

#[derive(Default)]
struct Complaints {
    first: Vec<String>,
    last: VecDeque<String>,
    is_cut: bool,
}

impl Complaints {
    fn add(&mut self, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        let mut told: String = line.trim_end().chars().take(LINE_CHARS_TOLD).collect();
        if told.len() < line.trim_end().len() {
            told.push('…');
        }
        if self.first.len() < LINES_TOLD {
            return self.first.push(told);
        }
        self.last.push_back(told);
        if self.last.len() > LINES_TOLD {
            self.last.pop_front();
            self.is_cut = true;
        }
    }

    fn told(self) -> String {
        let cut = self.is_cut.then(|| "…".to_owned());
        self.first.into_iter().chain(cut).chain(self.last).collect::<Vec<_>>().join("; ")
    }
}

impl Running {
    /// Starts a program that goes through a door.
    pub(crate) fn start<S: AsRef<OsStr>>(
        programs: &Programs,
        name: &str,
        arguments: impl IntoIterator<Item = S>,
        way: (&Door, &str),
    ) -> Result<Running, OutputError> {
        Running::start_with(programs, name, arguments, way, Stdio::null())
    }

    /// As `start`; this is its input.
    pub(crate) fn start_with<S: AsRef<OsStr>>(
        programs: &Programs,
        name: &str,
        arguments: impl IntoIterator<Item = S>,
        (door, calls_itself): (&Door, &str),
        input: Stdio,
    ) -> Result<Running, OutputError> {
        let program = programs.program(name);
        let mut command = Command::new(&program);
        command.args(arguments);
        for variable in Door::variables() {
            command.env_remove(variable);
        }
        command.envs(door.environment()).env("LC_ALL", "C").env("PGAPPNAME", calls_itself);
        if let Some((user, group)) = door.comes_as() {
            std::os::unix::process::CommandExt::uid(&mut command, user);
            std::os::unix::process::CommandExt::gid(&mut command, group);
            // It may not be let into the directory that we are in, nor into our home.
            command.current_dir("/").env("HOME", "/nonexistent");
        }
        command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| OutputError::Run { program, source })?;
        let complaints = child.stderr.take().map(|stderr| {
            std::thread::spawn(move || {
                let mut complaints = Complaints::default();
                // In whatever encoding the server speaks.
                for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                    complaints.add(&line);
                }
                complaints
            })
        });
        Ok(Running { name: name.to_owned(), child, complaints })
    }

    /// What it writes; once.
    pub(crate) fn stdout(&mut self) -> Option<impl Read + use<>> {
        self.child.stdout.take().map(|stdout| {
            // Room enough that neither waits for the other at every 64 KiB. Where there is none to be had, it works as well.
            let _ = rustix::pipe::fcntl_setpipe_size(&stdout, PIPE_BYTES);
            BufReader::with_capacity(PIPE_BYTES, stdout)
        })
    }

    /// Waits for its end, which must be a good one.
    pub(crate) fn end(mut self, cancel: &Cancel) -> Result<(), OutputError> {
        let waited = loop {
            match self.child.try_wait() {
                Ok(None) if cancel.is_cancelled() => return Err(OutputError::Cancelled),
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
                Ok(Some(status)) => break Ok(status),
                Err(error) => break Err(error),
            }
        };
        let complaints = self.complaints.take().and_then(|lines| lines.join().ok()).unwrap_or_default();
        match waited {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(OutputError::Ended {
                program: self.name.clone(),
                status: status.to_string(),
                complaint: complaints.told(),
            }),
            Err(source) => Err(OutputError::Run { program: self.name.as_str().into(), source }),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_from_its_beginning_and_its_end() {
        let mut complaints = Complaints::default();
        (1..=12).for_each(|line| complaints.add(format!("line {line}\r").as_bytes()));
        complaints.add(&[b'x'; 3000]);
        let told = complaints.told();
        let parts: Vec<&str> = told.split("; ").collect();
        assert_eq!(parts[..6], ["line 1", "line 2", "line 3", "line 4", "line 5", "…"]);
        assert_eq!(parts[6..10], ["line 9", "line 10", "line 11", "line 12"]);
        assert_eq!((parts.len(), parts[10].chars().count()), (11, LINE_CHARS_TOLD + 1));
    }
}
