//! A health command: healthy is exit code 0 within the time allowed.
//!
//! Invariant: nothing of it outlives the time allowed (it gets a process group of its own, which is killed), and of its
//! output only the start is kept.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, Command};

use super::http::excerpt;

const OUTPUT_BYTES_MAX: usize = 4096;
const REST_WAIT: Duration = Duration::from_millis(100);

/// Why a command did not say that all is well.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("the health command is empty")]
    Empty,
    #[error("the health command `{program}` cannot be started")]
    Start {
        program: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the health command `{program}` did not end within {seconds} s")]
    TooSlow { program: String, seconds: f64 },
    #[error("the health command `{program}` ended with {status}{excerpt}")]
    Unhealthy { program: String, status: std::process::ExitStatus, excerpt: String },
}

/// Runs the command with `environment` added to this process's own.
pub(super) async fn healthy(
    command: &[String],
    environment: &[(&str, String)],
    limit: Duration,
) -> Result<(), CommandError> {
    let (program, arguments) = command.split_first().ok_or(CommandError::Empty)?;
    let start = |source| CommandError::Start { program: program.clone(), source };
    let mut child = Command::new(program)
        .args(arguments)
        .envs(environment.iter().map(|(key, value)| (*key, value.as_str())))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
    let _whole_group = KillGroup(group);
    match tokio::time::timeout(limit, finish(&mut child)).await {
        Err(_) => Err(CommandError::TooSlow { program: program.clone(), seconds: limit.as_secs_f64() }),
        Ok(Err(source)) => Err(start(source)),
        Ok(Ok((status, _))) if status.success() => Ok(()),
        Ok(Ok((status, said))) => {
            Err(CommandError::Unhealthy { program: program.clone(), status, excerpt: excerpt(&said) })
        }
    }
}

/// Kills what the command left behind, when its time is up or when the asker goes away.
struct KillGroup(Option<rustix::process::Pid>);

impl Drop for KillGroup {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Mostly nothing is left of it by now.
            let _gone = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

/// Waits for the end, and drains what is said meanwhile so that the command never blocks on it.
async fn finish(child: &mut Child) -> Result<(std::process::ExitStatus, String), std::io::Error> {
    let stderr = child.stderr.take();
    let mut said = Vec::new();
    let status = {
        let drain = drain(stderr, &mut said);
        tokio::pin!(drain);
        tokio::select! {
            () = &mut drain => child.wait().await?,
            status = child.wait() => {
                // A process left in the background may hold the pipe open: what is there now is enough.
                let _rest = tokio::time::timeout(REST_WAIT, &mut drain).await;
                status?
            }
        }
    };
    Ok((status, String::from_utf8_lossy(&said).into_owned()))
}

async fn drain(stderr: Option<ChildStderr>, said: &mut Vec<u8>) {
    let Some(mut stderr) = stderr else { return };
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stderr.read(&mut buffer).await {
        let room = OUTPUT_BYTES_MAX.saturating_sub(said.len());
        said.extend_from_slice(buffer.get(..length.min(room)).unwrap_or_default());
    }
}
