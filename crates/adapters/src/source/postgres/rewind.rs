//! A former primary, brought back by `pg_rewind` to where the timelines parted, and from there to what the writer's server is now: what it
//! takes, whether it can be done, and whether what came of it will be a database.
//!
//! Invariants: it is done to a clone. Whatever stands in its way is a reason to lay a base backup over the clone instead, which compares all
//! that is there, and never a failure. What was rewound counts only when all of the log that it needs is in its own directory or in the vault.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use lifeboat_engine::port::Cancel;

use super::PostgresSource;
use super::facts::Facts;
use super::files::{Signal, owner_to_be, remove_if_there, signal_to, write_for};
use super::former::Former;
use super::recover::RecoverError;
use crate::postgres::control::{Control, State};
use crate::postgres::door::{Door, DoorError};
use crate::postgres::error::SessionError;
use crate::postgres::lsn::{Lsn, parse_history};
use crate::postgres::output::{OutputError, Running};
use crate::postgres::programs::{Programs, ProgramsError};
use crate::postgres::server::private_directory;
use crate::postgres::session::{Purpose, Row, Session, literal};

/// Why what was set aside is not rewound.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfit {
    #[error("the plan names no way to the writer's own server (`via`)")]
    NoWay,
    #[error("the recovery point is of no stream, so nothing would follow what was rewound")]
    NoStream,
    #[error("it was written with neither data checksums nor `wal_log_hints`: not every change to it is in its log")]
    Unlogged,
    #[error("its log ends before {0}, where the timelines parted")]
    Ends(Lsn),
    #[error(transparent)]
    Programs(#[from] ProgramsError),
    #[error(transparent)]
    Door(#[from] DoorError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("at the end of the way is {0}")]
    Other(String),
    #[error("the writer's server has tablespaces, which would be written to where they lie there")]
    Tablespaces,
    #[error("the writer's server has `full_page_writes` off")]
    HalfPages,
    #[error(
        "the writer's server has made no checkpoint on its timeline yet, and `{role}` may not ask for one ({why}); grant pg_checkpoint to {role}"
    )]
    NoCheckpoint { role: String, why: String },
    #[error("`{role}` may not read the writer's files there; grant execute on function {} to {role}", functions.join(", "))]
    Rights { role: String, functions: Vec<String> },
    #[error("what pg_rewind needs to know cannot be handed to it")]
    Handing(#[source] io::Error),
    #[error(transparent)]
    Program(#[from] OutputError),
    #[error("what pg_rewind made of it is no beginning of a recovery: {0}")]
    NoBeginning(&'static str),
    #[error("the log of {name} is neither in what was set aside nor at the writer's server any more")]
    Gap { name: String },
    #[error("the vault does not have the log up to {0} yet, without which what was rewound is no database")]
    VaultBehind(Lsn),
    #[error("what was rewound did not become a database")]
    NoDatabase(#[source] Box<RecoverError>),
    #[error("it could not be looked at")]
    Recover(#[source] Box<RecoverError>),
}

impl Unfit {
    /// A cancel stays one.
    pub(super) fn unless_cancelled(error: RecoverError) -> Result<Unfit, RecoverError> {
        match error {
            RecoverError::Cancelled => Err(RecoverError::Cancelled),
            error => Ok(Unfit::Recover(Box::new(error))),
        }
    }
}

/// What pg_rewind calls at the source's server.
const FUNCTIONS: [&str; 4] = [
    "pg_catalog.pg_ls_dir(text, boolean, boolean)",
    "pg_catalog.pg_stat_file(text, boolean)",
    "pg_catalog.pg_read_binary_file(text)",
    "pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)",
];
const CALLS_ITSELF: &str = "lifeboat-rewind";
/// While it is read from, the writer's server is asked so often whether it still answers, and must within so long.
const ASK_EVERY: Duration = Duration::from_secs(2);
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// A writer's server that is gone or cut off is noticed in half a minute, also by libpq.
const CONNECTION: &str = "keepalives_idle=10 keepalives_interval=5 keepalives_count=3 tcp_user_timeout=30000";

/// What is needed to rewind, once nothing is known that stands in the way.
pub(super) struct Rewind<'a> {
    former: &'a Former,
    facts: &'a Facts,
    parted_at: Lsn,
    programs: Programs,
    door: Door,
}

impl<'a> Rewind<'a> {
    /// Looks for everything that may stand in the way, before anything is copied.
    pub(super) async fn prepare(
        former: &'a Former,
        facts: &'a Facts,
        parted_at: Lsn,
        service: Option<&str>,
    ) -> Result<Rewind<'a>, Unfit> {
        let service = service.ok_or(Unfit::NoWay)?;
        if !former.control().logs_every_page() {
            return Err(Unfit::Unlogged);
        }
        let major = facts.major().map_err(|error| Unfit::Recover(Box::new(error.into())))?;
        let programs = Programs::of_major(major, &["pg_rewind"]).await?;
        let door = PostgresSource::new("", Some(service.to_owned()), "").door()?;
        let mut session = Session::open(&door, Purpose::Queries, CALLS_ITSELF).await?;
        let asked = Asked { facts, role: door.user() }.all(&mut session).await;
        session.close().await;
        asked?;
        Ok(Rewind { former, facts, parted_at, programs, door })
    }

    /// Rewinds a clone whose server was stopped in good order. Answers up to where the log must be replayed before it is a database.
    pub(super) fn run(
        &self,
        clone: &Path,
        runtime: &tokio::runtime::Runtime,
        cancel: &Cancel,
    ) -> Result<Result<Lsn, Unfit>, RecoverError> {
        let links = clone.join("pg_tblspc");
        // A tablespace that the writer's server was given a moment ago would be written to where it lies there.
        set_mode(&links, 0o500)?;
        let ran = self.run_program(clone, cancel);
        set_mode(&links, 0o700)?;
        match ran {
            Err(Unfit::Program(OutputError::Cancelled)) => return Err(RecoverError::Cancelled),
            Err(unfit) => return Ok(Err(unfit)),
            Ok(()) => {}
        }
        // What the last of its files need may not be written there yet.
        if let Err(error) = runtime.block_on(flush(&self.door)) {
            tracing::debug!(%error, "the writer's server was not told to write its log");
        }
        match runtime.block_on(Control::read(&self.programs, clone)) {
            Ok(control) => self.settle(clone, &control),
            Err(_) => Ok(Err(Unfit::NoBeginning("its control file cannot be read"))),
        }
    }

    fn run_program(&self, clone: &Path, cancel: &Cancel) -> Result<(), Unfit> {
        let owner = fs::metadata(clone).map_err(Unfit::Handing)?;
        let private = private_directory(&owner).map_err(Unfit::Handing)?;
        let (door, input) = match owner_to_be(clone) {
            Ok(Some(owner)) => self.door.handed_to(owner, private.path()).map_err(Unfit::Handing)?,
            Ok(None) => (self.door.clone(), None),
            Err(error) => return Err(Unfit::Recover(Box::new(error))),
        };
        let mut target = std::ffi::OsString::from("--target-pgdata=");
        target.push(clone);
        let mut arguments = vec![target, format!("--source-server={CONNECTION}").into()];
        // Its server makes all of it durable when it begins, and only then does it count.
        arguments.push("--no-sync".into());
        if self.facts.major().is_ok_and(|major| major >= 13) {
            // It was stopped in good order by a server that believes nothing of what its configuration says.
            arguments.push("--no-ensure-shutdown".into());
        }
        let input = input.map_or_else(Stdio::null, Stdio::from);
        let way = (&door, CALLS_ITSELF);
        let running = Running::start_with(&self.programs, "pg_rewind", arguments, way, input)?;
        // pg_rewind waits for ever for a server that hangs.
        let (ended, stop) = (Cancel::default(), Cancel::default());
        std::thread::scope(|scope| {
            let watching = scope.spawn(|| self.watch(cancel, &ended, &stop));
            let ran = running.end(&stop);
            ended.cancel();
            match (ran, watching.join()) {
                (Err(OutputError::Cancelled), Ok(Some(why))) => Err(why),
                (ran, _) => Ok(ran?),
            }
        })
    }

    /// Stops who rewinds when that is not wanted any more, or the writer's server does not answer questions either; then it says so.
    fn watch(&self, cancel: &Cancel, ended: &Cancel, stop: &Cancel) -> Option<Unfit> {
        let runtime = super::runtime().ok();
        let mut asked_at = Instant::now();
        while !ended.is_cancelled() {
            if cancel.is_cancelled() {
                stop.cancel();
                return None;
            }
            if let Some(runtime) = runtime.as_ref().filter(|_| asked_at.elapsed() >= ASK_EVERY) {
                if let Err(error) = runtime.block_on(flush(&self.door)) {
                    stop.cancel();
                    return Some(error.into());
                }
                asked_at = Instant::now();
            }
            std::thread::sleep(LOOK_EVERY);
        }
        None
    }

    fn settle(&self, clone: &Path, control: &Control) -> Result<Result<Lsn, Unfit>, RecoverError> {
        let wrong = if control.system_id != self.facts.system()? {
            Some("it is of another system")
        } else if control.state != State::InArchiveRecovery || control.min_recovery_timeline != self.facts.timeline {
            Some("its control file does not say that it must be recovered on the writer's timeline")
        } else {
            None
        };
        let label = fs::read_to_string(clone.join("backup_label")).unwrap_or_default();
        let begin = label.strip_prefix("START WAL LOCATION: ").and_then(|rest| rest.split(' ').next()?.parse().ok());
        let begin: Lsn = match (wrong, begin) {
            (None, Some(begin)) => begin,
            (wrong, _) => return Ok(Err(Unfit::NoBeginning(wrong.unwrap_or("it has no backup_label")))),
        };
        if let Err(gap) = self.fill_log(clone, begin)? {
            return Ok(Err(gap));
        }
        for name in ["backup_label.old", "tablespace_map.old"] {
            remove_if_there(&clone.join(name))?;
        }
        // What the writer's server has archived is its own affair.
        let states = clone.join("pg_wal/archive_status");
        for entry in fs::read_dir(&states).map_err(RecoverError::file("read", &states))? {
            remove_if_there(&entry.map_err(RecoverError::file("read", &states))?.path())?;
        }
        signal_to(clone, self.facts, Signal::Standby)?;
        Ok(Ok(control.min_recovery_end))
    }

    /// Sees to it that each segment is there from `begin` up to where the vault's log begins.
    fn fill_log(&self, clone: &Path, begin: Lsn) -> Result<Result<(), Unfit>, RecoverError> {
        let segments = self.facts.segments()?;
        let history = parse_history(self.facts.history.as_bytes()).unwrap_or_default();
        for number in segments.number_of(begin)..segments.number_of(self.facts.start()?) {
            // As a server looks for it: on the last timeline that had begun by then, where there are several.
            let left = history.iter().rposition(|switch| segments.number_of(switch.at) <= number);
            let next = left.map_or(0, |left| left + 1);
            let timeline = history.get(next).map_or(self.facts.timeline, |switch| switch.timeline);
            let name = segments.name(timeline, number);
            let (path, before) = (clone.join("pg_wal").join(&name), self.former.path().join("pg_wal").join(&name));
            let is_whole = |path: &Path| fs::metadata(path).is_ok_and(|seen| seen.len() == segments.bytes);
            if is_whole(&path) {
                continue;
            }
            // Older versions of pg_rewind remove what is not at the writer's server any more.
            if !is_whole(&before) {
                return Ok(Err(Unfit::Gap { name }));
            }
            let bytes = fs::read(&before).map_err(RecoverError::file("read", &before))?;
            write_for(clone, &path, &bytes)?;
        }
        Ok(Ok(()))
    }

    /// In words, where it came from.
    pub(super) fn told(&self) -> String {
        format!("{} was rewound to {}, where the timelines parted", self.former.name(), self.parted_at)
    }
}

/// What the writer's server is asked before anything is done.
struct Asked<'a> {
    facts: &'a Facts,
    role: &'a str,
}

impl Asked<'_> {
    async fn all(&self, session: &mut Session) -> Result<(), Unfit> {
        let row = self.look(session).await?;
        let (system, timeline) = (row.get(0).unwrap_or("no system"), number(&row, 1));
        if system != self.facts.system_id {
            return Err(Unfit::Other(format!("another system: {system} instead of {}", self.facts.system_id)));
        }
        if row.get(2) != Some("f") {
            return Err(Unfit::Other("a server that follows another".to_owned()));
        }
        if row.get(3) != Some("on") {
            return Err(Unfit::HalfPages);
        }
        if row.get(4) != Some("f") {
            return Err(Unfit::Tablespaces);
        }
        let lacking = |(place, _): &(usize, &&str)| row.get(5 + place) != Some("t");
        let functions: Vec<String> =
            FUNCTIONS.iter().enumerate().filter(lacking).map(|(_, name)| (*name).to_owned()).collect();
        if !functions.is_empty() {
            return Err(Unfit::Rights { role: self.role.to_owned(), functions });
        }
        let timeline = match timeline {
            Some(timeline) if timeline < self.facts.timeline => self.after_checkpoint(session).await?,
            timeline => timeline,
        };
        match timeline {
            Some(timeline) if timeline == self.facts.timeline => Ok(()),
            other => Err(Unfit::Other(format!(
                "timeline {}, and timeline {} is followed",
                other.unwrap_or(0),
                self.facts.timeline
            ))),
        }
    }

    /// The timeline of its control file, which alone pg_rewind reads, once a checkpoint has brought it there.
    async fn after_checkpoint(&self, session: &mut Session) -> Result<Option<u32>, Unfit> {
        if let Err(error) = session.query("checkpoint").await {
            return Err(match error.sqlstate() {
                Some("42501") => Unfit::NoCheckpoint { role: self.role.to_owned(), why: error.to_string() },
                _ => error.into(),
            });
        }
        Ok(number(&self.look(session).await?, 1))
    }

    async fn look(&self, session: &mut Session) -> Result<Row, SessionError> {
        let rights =
            FUNCTIONS.map(|name| format!(", pg_catalog.has_function_privilege({}, 'execute')", literal(name))).concat();
        let sql = format!(
            "select (select system_identifier from pg_catalog.pg_control_system()), \
             (select timeline_id from pg_catalog.pg_control_checkpoint()), pg_catalog.pg_is_in_recovery(), \
             pg_catalog.current_setting('full_page_writes'), (select count(*) > 2 from pg_catalog.pg_tablespace){rights}"
        );
        session.query_one(&sql).await
    }
}

fn number(row: &Row, column: usize) -> Option<u32> {
    row.get(column)?.parse().ok()
}

/// Has the server write its log as far as it is, by a record that everyone may have it write.
async fn flush(door: &Door) -> Result<(), SessionError> {
    let mut session = Session::open(door, Purpose::Queries, CALLS_ITSELF).await?;
    session.set_patience(ANSWERS_WITHIN);
    // It waits for nobody else.
    session.query("set synchronous_commit = local").await?;
    session.query("select pg_catalog.pg_logical_emit_message(true, 'lifeboat', '')").await?;
    session.close().await;
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> Result<(), RecoverError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(RecoverError::file("set the mode of", path))
}
