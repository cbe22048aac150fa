//! Runs one of PostgreSQL's own programs for as long as it takes, until it ends or is not wanted any more.
//!
//! Invariant: its words are bounded, and it is gone when this returns.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use lifeboat_engine::port::Cancel;

use super::RecoverError;

const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Of what a program says, its beginning is kept.
const WORDS_BYTES_MAX: u64 = 64 << 10;

/// How it ended.
pub(in super::super) struct Ran {
    pub(in super::super) status: ExitStatus,
    pub(in super::super) output: String,
    pub(in super::super) errors: String,
}

/// Killed when it is dropped before its end.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

pub(in super::super) fn run(command: &mut Command, cancel: &Cancel) -> Result<Ran, RecoverError> {
    let program = std::path::PathBuf::from(command.get_program());
    command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).current_dir("/");
    let mut running = Running(command.spawn().map_err(RecoverError::file("run", &program))?);
    let (output, errors) = (words(running.0.stdout.take()), words(running.0.stderr.take()));
    let status = loop {
        match running.0.try_wait().map_err(RecoverError::file("wait for", &program))? {
            Some(status) => break status,
            None if cancel.is_cancelled() => return Err(RecoverError::Cancelled),
            None => std::thread::sleep(LOOK_EVERY),
        }
    };
    let said = |words: JoinHandle<String>| words.join().unwrap_or_default();
    Ok(Ran { status, output: said(output), errors: said(errors) })
}

fn words(from: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut from) = from {
            let _ = from.by_ref().take(WORDS_BYTES_MAX).read_to_end(&mut bytes);
            // It must not wait for us.
            let _ = std::io::copy(&mut from, &mut std::io::sink());
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
