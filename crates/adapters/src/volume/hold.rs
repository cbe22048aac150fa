//! Who is held around a snapshot, and for how long.
//!
//! Invariant: after `lock` was tried, `unlock` is called: when the snapshot failed, when `lock` itself failed half-way, and when a thread
//! panics.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lifeboat_engine::port::{Hold, PortError};

use crate::postgres::door::Door;
use crate::postgres::session::{Purpose, Session};

/// Calls `unlock` once, at the latest when it is dropped.
struct Held<'a> {
    hold: &'a mut dyn Hold,
    is_over: bool,
}

impl Held<'_> {
    fn end(&mut self) -> Result<(), PortError> {
        match std::mem::replace(&mut self.is_over, true) {
            true => Ok(()),
            false => self.hold.unlock(),
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(%error, "what was held for a snapshot could not be let go");
        }
    }
}

/// Does something while writers are held. Answers for how long they were, from before `lock` was asked to after `unlock` had answered.
pub(super) fn around<T>(
    hold: &mut dyn Hold,
    work: impl FnOnce() -> Result<T, PortError>,
) -> Result<(T, Option<Duration>), PortError> {
    if !hold.is_needed() {
        return Ok((work()?, None));
    }
    let began = Instant::now();
    let mut held = Held { hold, is_over: false };
    let done = held.hold.lock().and_then(|()| work());
    let unlocked = held.end();
    let took = began.elapsed();
    match (done, unlocked) {
        (Ok(done), Ok(())) => Ok((done, Some(took))),
        (Err(error), Ok(())) => Err(error),
        // Whoever is held still is the worse trouble.
        (_, Err(error)) => {
            Err(PortError::new("what was held for the snapshot could not be let go: do it by hand, now").because(error))
        }
    }
}

/// A PostgreSQL server needs not be held; with a checkpoint just before, what starts over the snapshot recovers quickly.
#[derive(Debug)]
pub struct PostgresHold {
    data_directory: PathBuf,
}

impl PostgresHold {
    pub fn new(data_directory: impl Into<PathBuf>) -> PostgresHold {
        PostgresHold { data_directory: data_directory.into() }
    }
}

impl Hold for PostgresHold {
    fn is_needed(&self) -> bool {
        Door::may_run_in(&self.data_directory)
    }

    fn lock(&mut self) -> Result<(), PortError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            PortError::may_pass("the server cannot be asked for a checkpoint").because(error)
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| failed(error.into()))?;
        let door = Door::running_in(&self.data_directory).map_err(|error| failed(error.into()))?;
        let asked = runtime.block_on(async {
            let mut session = Session::open(&door, Purpose::Queries, "lifeboat-snapshot").await?;
            session.set_patience(CHECKPOINT_WITHIN);
            session.query("checkpoint").await?;
            session.close().await;
            Ok::<_, crate::postgres::error::SessionError>(())
        });
        asked.map_err(|error| failed(error.into()))
    }

    fn unlock(&mut self) -> Result<(), PortError> {
        Ok(())
    }
}

/// All that is in memory is written at once.
const CHECKPOINT_WITHIN: Duration = Duration::from_secs(600);

/// Commands of the user's, for data that this program does not know.
#[derive(Debug)]
pub struct CommandHold {
    pub lock: Vec<String>,
    pub unlock: Vec<String>,
    /// For either of them; then it is killed, and counts as failed.
    pub within: Duration,
}

impl CommandHold {
    fn run(&self, words: &[String]) -> Result<(), PortError> {
        let Some((program, arguments)) = words.split_first() else { return Ok(()) };
        let failed = |why: String| PortError::may_pass(format!("`{}` {why}", words.join(" ")));
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| failed("cannot be run".to_owned()).because(error))?;
        let deadline = Instant::now() + self.within;
        loop {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(failed(format!("ended with {status}"))),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                Ok(None) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(failed(format!("took longer than {:?}, and was killed", self.within)));
                }
                Err(error) => return Err(failed("cannot be waited for".to_owned()).because(error)),
            }
        }
    }
}

impl Hold for CommandHold {
    fn lock(&mut self) -> Result<(), PortError> {
        self.run(&self.lock)
    }

    fn unlock(&mut self) -> Result<(), PortError> {
        self.run(&self.unlock)
    }
}
