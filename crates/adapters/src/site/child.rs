//! Runs a user's command to its end, with bounds on its time and its words.
//!
//! Invariant: whatever ends the wait (time, cancellation, the caller's own end), the command's whole process group is killed.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use lifeboat_engine::port::{Cancel, PortError};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

const TAIL_BYTES_MAX: usize = 4096;

#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) within: Duration,
    /// More output than this ends the command.
    pub(super) output_bytes_max: usize,
}

#[derive(Debug)]
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    /// The last of what it said on stderr.
    pub(super) stderr_tail: String,
}

/// Kills a group unless it is told that the group has ended by itself.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// `what` names the command in errors.
pub(super) async fn run(
    mut command: Command,
    what: &str,
    input: Vec<u8>,
    bounds: Bounds,
    cancel: &Cancel,
) -> Result<Ended, PortError> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| {
        PortError::new(format!("{what} cannot be run: see that it exists and may be executed")).because(error)
    })?;
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(id as i32)));
    let (Some(mut stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(PortError::new(format!("{what} has no input or output")));
    };
    let talk = async {
        let give = async move {
            // A command that does not read its input is free not to.
            let _ = stdin.write_all(&input).await;
        };
        let (_, stdout, stderr_tail) = tokio::join!(give, read_all(stdout, bounds.output_bytes_max), read_tail(stderr));
        (stdout, stderr_tail)
    };
    let ended = tokio::select! {
        ended = async { let (talked, status) = tokio::join!(talk, child.wait()); (talked, status) } => ended,
        () = tokio::time::sleep(bounds.within) => {
            let seconds = bounds.within.as_secs_f64();
            return Err(PortError::may_pass(format!("{what} took longer than {seconds} s and was killed")));
        }
        () = cancelled(cancel) => return Err(PortError::may_pass(format!("{what} was cancelled and killed"))),
    };
    let ((stdout, stderr_tail), status) = ended;
    group.0 = None;
    let status = status.map_err(|error| PortError::may_pass(format!("{what} cannot be waited for")).because(error))?;
    let stdout = stdout
        .ok_or_else(|| PortError::new(format!("{what} answered with more than {} bytes", bounds.output_bytes_max)))?;
    Ok(Ended { status, stdout, stderr_tail })
}

async fn cancelled(cancel: &Cancel) {
    while !cancel.is_cancelled() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// All of it, or nothing if it is more than `bytes_max` (the rest is read and dropped, so that the writer can end).
async fn read_all(mut from: impl AsyncRead + Unpin, bytes_max: usize) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    let mut buffer = vec![0; 8192];
    let mut too_much = false;
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        too_much |= all.len() + count > bytes_max;
        if !too_much {
            all.extend_from_slice(&buffer[..count]);
        }
    }
    (!too_much).then_some(all)
}

async fn read_tail(mut from: impl AsyncRead + Unpin) -> String {
    let mut tail = Vec::new();
    let mut buffer = vec![0; 8192];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        tail.extend_from_slice(&buffer[..count]);
        if tail.len() > TAIL_BYTES_MAX {
            tail.drain(..tail.len() - TAIL_BYTES_MAX);
        }
    }
    last_of(&tail)
}

/// The last few kilobytes of some output, as text.
pub(super) fn last_of(output: &[u8]) -> String {
    let from = output.len().saturating_sub(TAIL_BYTES_MAX);
    String::from_utf8_lossy(&output[from..]).trim().to_owned()
}
