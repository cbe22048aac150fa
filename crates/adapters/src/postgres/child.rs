//! Runs one of PostgreSQL's own programs for a short answer.
//!
//! Invariant: its time and its words are bounded, and it is gone when this returns or is dropped.

use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: ExitStatus,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// These answer from one small file.
const WITHIN: Duration = Duration::from_secs(20);
const OUTPUT_BYTES_MAX: u64 = 64 << 10;

pub(super) async fn answer(program: &Path, arguments: &[&std::ffi::OsStr]) -> io::Result<Answer> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    // What it says is read by a program.
    command.env("LC_ALL", "C");
    for variable in super::door::Door::variables().chain(["PGDATA"]) {
        command.env_remove(variable);
    }
    let mut child = command.spawn()?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let talk = async {
        let (stdout, stderr) = tokio::try_join!(read(stdout), read(stderr))?;
        Ok(Answer { status: child.wait().await?, stdout, stderr })
    };
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("it took longer than {} s", WITHIN.as_secs()));
    tokio::time::timeout(WITHIN, talk).await.unwrap_or_else(|_| Err(late()))
}

async fn read(from: Option<impl AsyncRead + Unpin>) -> io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        from.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes).await?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
