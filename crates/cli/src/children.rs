//! Verbs that this program has done by a process of its own: whatever becomes of it, who started it goes on.
//!
//! Invariant: one that is told to stop gets time to clean up, and is gone when it is no longer waited for.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use lifeboat_engine::port::Cancel;

const PATIENCE: Duration = Duration::from_millis(200);

/// This very program, with the same plan and state; nobody reads what it says but errors.
pub(crate) fn this_program(plan: &Path, state: &Path) -> tokio::process::Command {
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("lifeboat"));
    let mut command = tokio::process::Command::new(program);
    command.arg("--plan").arg(plan).arg("--state").arg(state).arg("--quiet");
    command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs it to its end; told to stop, it is interrupted as by Ctrl-C, and after a while killed. Answers its exit code.
pub(crate) async fn to_its_end(
    mut command: tokio::process::Command,
    cancel: &Cancel,
    stop_within: Duration,
) -> std::io::Result<Option<i32>> {
    let mut child = command.spawn()?;
    let mut told: Option<Instant> = None;
    loop {
        match tokio::time::timeout(PATIENCE, child.wait()).await {
            Ok(ended) => return ended.map(|status| status.code()),
            Err(_) if cancel.is_cancelled() && told.is_none() => {
                told = Some(Instant::now());
                if let Some(pid) = child.id().and_then(|pid| rustix::process::Pid::from_raw(pid as i32)) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
                }
            }
            Err(_) if told.is_some_and(|at| at.elapsed() > stop_within) => {
                let _ = child.start_kill();
            }
            Err(_) => {}
        }
    }
}
