//! Brings a cluster back to any moment that a vault knows: its files, then the log, replayed by its own server behind a private socket.
//!
//! Invariant: recovery has an explicit target, stops there and waits; only when the server says that it is at the target is it promoted. A
//! gap, damage or anything unread ends it with an error, and nothing stands under the cluster's name.

mod look;
mod place;
mod scan;
mod tool;
mod validate;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_core::runbook::Target;
use lifeboat_engine::port::{Cancel, RestoreRequest, Restored};
use lifeboat_vault::files::{Progress, TreeError};
use lifeboat_vault::{LogEntry, Position, Unlocked, VaultError};

use super::facts::{Facts, FactsError};
use super::files::{Signal, Tree, beside, owner_to_be};
use super::inventory::{self, Database};
use super::rest::last_record;
use super::spool::{Spool, SpoolError, Which};
use crate::postgres::error::SessionError;
use crate::postgres::lsn::Lsn;
use crate::postgres::programs::{Programs, ProgramsError};
use crate::postgres::server::{Awaited, Server, ServerError, Start, Stop, end_left_behind};
use crate::postgres::session::{Purpose, Session};
use crate::source::way::{self, ChainError, Way, position_text};

pub(super) use self::look::look_through;
pub(super) use self::tool::run;
use self::validate::Looker;
pub(super) use self::validate::verify;

#[derive(Debug, thiserror::Error)]
pub(super) enum RecoverError {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("recovery point {point} cannot be read from the vault; check the vault, or restore another point")]
    Vault {
        point: String,
        #[source]
        source: VaultError,
    },
    #[error("recovery point {point} is not a PostgreSQL cluster that lifeboat took; restore it as files")]
    NotACluster { point: String },
    #[error("the tree of recovery point {point} cannot be read")]
    Tree {
        point: String,
        #[source]
        source: TreeError,
    },
    #[error("the files of the cluster were not restored")]
    Files(#[source] lifeboat_vault::files::RestoreError),
    #[error(transparent)]
    Facts(#[from] FactsError),
    #[error(transparent)]
    Programs(#[from] ProgramsError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error("the recovering server cannot be asked")]
    Session(#[from] SessionError),
    #[error("{} exists already; restore in place to change it, or restore elsewhere", path.display())]
    Exists { path: PathBuf },
    #[error("a server may be running in {} (postmaster.pid); stop it first", path.display())]
    Running { path: PathBuf },
    #[error("cannot {what} {}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "the log ends before the files are a database: it reaches {reaches}, and {stop} is needed; restore an earlier point, or from another vault"
    )]
    TooShort { reaches: Lsn, stop: Lsn },
    #[error(
        "no record begins in the last segments of the log before {end} ({said}); restore to a time before, or from another vault"
    )]
    NoRecord { end: Lsn, said: String },
    #[error(
        "the log is damaged after {at}: what follows there is no record, and whole ones lie after {after}; restore to a time before it, or from another vault"
    )]
    Broken { at: Lsn, after: Lsn },
    #[error(
        "the source allows for more connections, workers or locks by now than this server was started with; it is started again"
    )]
    Outgrown,
    #[error("recovery stopped at {at}, before its target {target}")]
    Short { at: Lsn, target: Lsn },
    #[error("`{text}` is no place in a write-ahead log: one looks like 16/B374D848")]
    Place { text: String },
    #[error(
        "`{dataset}` has no log in this vault, only recovery points; restore one of them (--point), or as of a time (--at)"
    )]
    NoLog { dataset: String },
    #[error(
        "{place} lies in no log that this vault holds of `{dataset}`: it can be restored to any place from {ranges}"
    )]
    NoPlace { place: Lsn, dataset: String, ranges: String },
    #[error(
        "the record that reaches {place} is not whole in the log, which ends with {at}; restore to that place (--position {at})"
    )]
    NotWhole { place: Lsn, at: Lsn },
    #[error(
        "no restore point `{name}` is in the log that this vault holds of `{dataset}`, from {ranges}; see how it was named, or restore to a \
         position (--position) or a time (--at)"
    )]
    NoName { name: String, dataset: String, ranges: String },
    #[error("`{name}` names several restore points; restore to the position of one of them (--position): {places}")]
    Ambiguous { name: String, places: String },
    #[error("the log is damaged: {said}; restore to a time before it, or from another vault")]
    Unreadable { said: String },
    #[error("interrupted; run it again")]
    Cancelled,
}

impl RecoverError {
    pub(super) fn may_pass(&self) -> bool {
        match self {
            RecoverError::Cancelled | RecoverError::Outgrown | RecoverError::Spool(SpoolError::Cancelled) => true,
            RecoverError::Chain(ChainError::Vault(source))
            | RecoverError::Vault { source, .. }
            | RecoverError::Spool(SpoolError::Piece { source, .. }) => source.may_pass(),
            RecoverError::Chain(ChainError::NoPoint { .. }) => true,
            _ => false,
        }
    }

    pub(super) fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RecoverError + use<> {
        let path = path.to_owned();
        move |source| RecoverError::File { what, path, source }
    }
}

/// Where recovery stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    /// As soon as the files are a database.
    Consistent,
    /// With the record that begins there.
    Record(Lsn),
    /// With the last transaction committed by then.
    Moment(Timestamp),
    /// Before the first record that begins there or later: with the one that reaches the place.
    UpTo(Lsn),
}

/// What is called of PostgreSQL's own programs.
pub(super) const NEEDED: &[&str] = &["postgres", "pg_controldata", "pg_waldump", "pg_archivecleanup"];
/// How long a log may take to be replayed is not for us to say; who waits can stop it.
pub(super) const REPLAY_WITHIN: Duration = Duration::from_secs(30 * 24 * 3600);
pub(super) const STOP_WITHIN: Duration = Duration::from_secs(600);

pub(super) fn restore(
    vault: &Unlocked,
    request: &RestoreRequest,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Restored, RecoverError> {
    let began = Instant::now();
    let (way, place) = find(vault, request, cancel)?;
    let tree = Tree::open(vault, &way.base)?;
    let facts = tree.facts()?;
    let which = Which { system: facts.system()?, timeline: facts.timeline, segments: facts.segments()? };
    let runtime = super::runtime().map_err(RecoverError::file("make threads for", &request.to))?;
    let programs = runtime.block_on(Programs::of_major(facts.major()?, NEEDED))?;
    let work = Work::begin(&request.to, request.in_place)?;
    let laid = tree.lay(&work.path, &request.to, &facts, Signal::Recovery, progress, cancel)?;
    let (way_found, work_path) = (&way, &work.path);
    let recovering = Recovering {
        vault,
        place,
        way: way_found,
        facts: &facts,
        which,
        programs: &programs,
        work: work_path,
        runtime,
        cancel,
        looker: None,
    };
    let outcome = recovering.run(&request.dataset, &request.target)?;
    work.finish()?;
    let position =
        way.base.position.as_ref().map(|position| Position { counter: outcome.reached.0, ..position.clone() });
    let notes = laid.notes.into_iter().chain(way.notes).chain(outcome.notes).collect();
    Ok(Restored {
        as_of: outcome.as_of,
        point: way.base,
        position: position.as_ref().map(position_text),
        files: laid.files,
        bytes: laid.bytes,
        bytes_written: laid.bytes_written,
        seconds: began.elapsed().as_secs_f64(),
        verified: Some(outcome.verified),
        notes,
    })
}

/// The way to the target, and where it stops if a place was named. Of a point in a stream, the log is needed up to where its files are a
/// database.
fn find(vault: &Unlocked, request: &RestoreRequest, cancel: &Cancel) -> Result<(Way, Option<Goal>), RecoverError> {
    let search = place::Search { vault, dataset: &request.dataset, to: &request.to, cancel };
    let found = match &request.target {
        Target::Position(text) => {
            let place = text.parse().map_err(|_| RecoverError::Place { text: text.clone() })?;
            Some(search.position(place)?)
        }
        Target::Named(name) => Some(search.named(name)?),
        _ => None,
    };
    if let Some((way, goal)) = found {
        return Ok((way, Some(goal)));
    }
    let mut way = way::find_beyond(vault, &request.dataset, &request.target)?;
    if matches!(request.target, Target::Point(_)) && way.base.position.is_some() {
        // What is wrong with the log after that does not matter.
        let stop = Tree::open(vault, &way.base)?.facts()?.stop()?;
        way.pieces = way::from_base(vault, &request.dataset, way.base.clone(), Some(stop.0))?.pieces;
    }
    Ok((way, None))
}

/// The directory that is worked in: under another name until it is a database.
struct Work {
    path: PathBuf,
    to: PathBuf,
}

impl Work {
    fn begin(to: &Path, in_place: bool) -> Result<Work, RecoverError> {
        let path = beside(to, ".lifeboat-restore");
        if !end_left_behind(&path) {
            return Err(RecoverError::Running { path });
        }
        let is_empty = |path: &Path| fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
        match fs::symlink_metadata(to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(RecoverError::file("look at", to)(error)),
            Ok(_) if is_empty(to) => fs::remove_dir(to).map_err(RecoverError::file("replace", to))?,
            Ok(_) if !in_place => return Err(RecoverError::Exists { path: to.to_owned() }),
            Ok(_) => {
                let pid = to.join("postmaster.pid");
                match crate::postgres::door::Door::may_run_in(to) {
                    true => return Err(RecoverError::Running { path: to.to_owned() }),
                    false if pid.exists() => fs::remove_file(&pid).map_err(RecoverError::file("remove", &pid))?,
                    false => {}
                }
                fs::rename(to, &path).map_err(RecoverError::file("take its name from", to))?;
            }
        }
        Ok(Work { path, to: to.to_owned() })
    }

    fn finish(&self) -> Result<(), RecoverError> {
        fs::rename(&self.path, &self.to).map_err(RecoverError::file("give its name to", &self.to))?;
        crate::source::sync_directory_of(&self.to).map_err(RecoverError::file("make durable", &self.to))
    }
}

struct Outcome {
    reached: Lsn,
    as_of: Timestamp,
    verified: String,
    notes: Vec<String>,
}

struct Recovering<'a> {
    vault: &'a Unlocked,
    /// Where it stops, if a place in the log was named.
    place: Option<Goal>,
    way: &'a Way,
    facts: &'a Facts,
    which: Which,
    programs: &'a Programs,
    work: &'a Path,
    runtime: tokio::runtime::Runtime,
    cancel: &'a Cancel,
    /// Looks closely, where that is the purpose of it all.
    looker: Option<&'a Looker<'a>>,
}

impl Recovering<'_> {
    fn run(&self, dataset: &str, target: &Target) -> Result<Outcome, RecoverError> {
        let stop = self.facts.stop()?;
        let end = self.way.pieces.last().map(|entry| Lsn(entry.last));
        if !self.facts.is_whole && end.is_none_or(|end| end < stop) {
            return Err(RecoverError::TooShort { reaches: end.unwrap_or(self.facts.start()?), stop });
        }
        let goal = match self.place {
            Some(goal) => goal,
            None => self.goal((dataset, target), end)?,
        };
        match self.attempt(goal) {
            // Nothing was committed between the moment and the end of the log: so the end is the moment's state.
            Err(RecoverError::Server(error)) if matches!(goal, Goal::Moment(_)) && ended_before_target(&error) => {
                let end = end.unwrap_or(stop);
                self.attempt(Goal::Record(self.last_record(end)?))
            }
            // No record begins there or later: so the end of the log is the place.
            Err(RecoverError::Server(error)) if ended_before_target(&error) => {
                let (Goal::UpTo(place), Some(end)) = (goal, end) else { return Err(error.into()) };
                let outcome = self.attempt(Goal::Record(self.last_record(end)?))?;
                if outcome.reached < place {
                    return Err(RecoverError::NotWhole { place, at: outcome.reached });
                }
                Ok(outcome)
            }
            outcome => outcome,
        }
    }

    fn goal(&self, (dataset, target): (&str, &Target), end: Option<Lsn>) -> Result<Goal, RecoverError> {
        let until = way::until(dataset, target)?;
        Ok(match (until, end) {
            (_, None) => Goal::Consistent,
            _ if matches!(target, Target::Point(_)) => Goal::Consistent,
            (Some(until), Some(_)) if until < self.way.reaches => Goal::Moment(until),
            (_, Some(end)) => Goal::Record(self.last_record(end)?),
        })
    }

    fn attempt(&self, goal: Goal) -> Result<Outcome, RecoverError> {
        let spool = Spool::make(beside(self.work, ".wal"), owner_to_be(self.work)?)?;
        let settings = self.settings(goal, &spool);
        let begin = self.which.segments.start(self.which.segments.number_of(self.facts.start()?));
        // The log is fetched while the server starts and replays; whoever fails first ends the other.
        let fetching = Cancel::default();
        std::thread::scope(|scope| {
            let (vault, which, pieces) = (self.vault, &self.which, &self.way.pieces);
            let (spool, fetching) = (&spool, &fetching);
            let filling = scope.spawn(move || match pieces.is_empty() {
                true => spool.close_empty(),
                false => spool.fill(vault, which, (begin, pieces), fetching),
            });
            let outcome = self.replay(goal, settings);
            fetching.cancel();
            let filled = filling.join();
            match (outcome, filled) {
                (Ok(outcome), _) => Ok(outcome),
                // The server only knows that something was missing.
                (Err(_), Ok(Err(error))) if !matches!(error, SpoolError::Cancelled) => Err(error.into()),
                (Err(error), _) => Err(error),
            }
        })
    }

    fn settings(&self, goal: Goal, spool: &Spool) -> Vec<(String, String)> {
        let mut settings = vec![
            ("restore_command", spool.restore_command()),
            ("archive_cleanup_command", spool.cleanup_command(&self.programs.program("pg_archivecleanup"))),
            ("recovery_target_timeline", self.which.timeline.to_string()),
            ("recovery_target_action", "pause".to_owned()),
            ("hot_standby", "on".to_owned()),
            // A copy must never write into the archive of what it is a copy of.
            ("archive_mode", "off".to_owned()),
        ];
        let target = match goal {
            Goal::Consistent => ("recovery_target", "immediate".to_owned()),
            Goal::Record(at) => ("recovery_target_lsn", at.to_string()),
            Goal::Moment(at) => ("recovery_target_time", moment_text(at)),
            Goal::UpTo(place) => {
                settings.push(("recovery_target_inclusive", "off".to_owned()));
                ("recovery_target_lsn", place.to_string())
            }
        };
        settings.push(target);
        settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Does it, unless it is cancelled.
    fn wait<T>(&self, work: impl Future<Output = Result<T, RecoverError>>) -> Result<T, RecoverError> {
        self.runtime.block_on(async {
            let cancelled = async {
                while !self.cancel.is_cancelled() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            tokio::select! {
                done = work => done,
                () = cancelled => Err(RecoverError::Cancelled),
            }
        })
    }

    fn replay(&self, goal: Goal, settings: Vec<(String, String)>) -> Result<Outcome, RecoverError> {
        self.wait(async {
            let start = Start { user: self.facts.superuser.clone(), settings, within: REPLAY_WITHIN };
            let mut server = loop {
                let mut server = Server::start(self.programs, self.work, &start).await?;
                server.wait_for(Awaited::Paused, REPLAY_WITHIN).await?;
                // It also waits where the log says that the source was given more than this server was started with.
                if !server.is_outgrown(self.programs).await? {
                    break server;
                }
                server.stop(Stop::Fast, STOP_WITHIN).await?;
            };
            let mut session = Session::open(server.door(), Purpose::Queries, "lifeboat").await?;
            let row = session
                .query_one("select pg_last_wal_replay_lsn(), pg_last_xact_replay_timestamp() at time zone 'utc'")
                .await?;
            let reached: Lsn = row.get(0).and_then(|text| text.parse().ok()).unwrap_or(Lsn(0));
            let last_commit = row.get(1).map(|at| format!(" with the last transaction of {at} UTC")).unwrap_or_default();
            let committed = row.get(1).and_then(|at| at.parse::<jiff::civil::DateTime>().ok());
            let committed = committed.and_then(|at| at.to_zoned(jiff::tz::TimeZone::UTC).ok()).map(|at| at.timestamp());
            match goal {
                Goal::Record(target) if reached < target => return Err(RecoverError::Short { at: reached, target }),
                _ => {}
            }
            let notes = match self.looker {
                Some(looker) => looker.at_target(&server, &format!("{reached}{last_commit}")).await.map(|()| Vec::new())?,
                None => differences(&server, &self.facts.databases).await?,
            };
            // At its target, a server that is told to go on ends its recovery.
            session.query_one("select pg_wal_replay_resume()").await?;
            server.wait_for(Awaited::Writable, REPLAY_WITHIN).await?;
            let mut notes = notes;
            notes.extend(wait_for_nobody(&mut session, self.work).await?);
            session.close().await;
            if let Some(looker) = self.looker {
                looker.writable(&server).await?;
            }
            server.stop(Stop::Fast, STOP_WITHIN).await?;
            let as_of = match goal {
                Goal::Moment(at) => at,
                Goal::Consistent => self.way.base.taken_at,
                // Of what was committed after the last piece before the place, only the server knows.
                _ if self.place.is_some() => committed.map_or(self.way.reaches, |at| at.max(self.way.reaches)),
                Goal::Record(_) | Goal::UpTo(_) => self.way.reaches,
            };
            let count = self.facts.databases.len();
            let verified = format!(
                "every chunk matched its signed id; the server replayed the log to {reached}{last_commit}, and opened its {count} databases"
            );
            Ok(Outcome { reached, as_of, verified, notes })
        })
    }

    /// Where the last record before the log's end begins: the last that is whole.
    fn last_record(&self, end: Lsn) -> Result<Lsn, RecoverError> {
        let segments = self.which.segments;
        let last = segments.number_of(Lsn(end.0.saturating_sub(1)));
        let directory = Spool::make(beside(self.work, ".last"), None)?;
        let mut said = String::new();
        // A record may be longer than a segment: then it begins in one before.
        for first in (0..=last).rev().take(4) {
            let wanted: Vec<LogEntry> =
                self.way.pieces.iter().filter(|entry| entry.last > segments.start(first).0).cloned().collect();
            directory.fill(self.vault, &self.which, (segments.start(first), &wanted), self.cancel)?;
            let stretch = (segments.start(first), end);
            let (found, why) = last_record(self.programs, directory.path(), self.which.timeline, stretch)?;
            said = why;
            if let Some(found) = found {
                return Ok(found);
            }
        }
        Err(RecoverError::NoRecord { end, said })
    }
}

/// A copy's commits wait for none of the vaults that its source's waited for: who streams it sets that anew.
async fn wait_for_nobody(session: &mut Session, work: &Path) -> Result<Option<String>, RecoverError> {
    let path = work.join("postgresql.auto.conf");
    let is_set = fs::read_to_string(&path).is_ok_and(|text| {
        text.lines().any(|line| line.starts_with("synchronous_standby_names") && line.contains("lifeboat_"))
    });
    if !is_set {
        return Ok(None);
    }
    session.query("alter system reset synchronous_standby_names").await?;
    Ok(Some(
        "commits waited for vaults at the source; they do not here, until this copy is streamed to them".to_owned(),
    ))
}

/// Opens every database; what it finds other than it was is a note.
pub(super) async fn differences(server: &Server, databases: &[Database]) -> Result<Vec<String>, RecoverError> {
    let mut notes = Vec::new();
    for was in databases {
        let door = server.door().with_database(&was.name);
        let mut session = Session::open(&door, Purpose::Queries, "lifeboat").await?;
        let now = inventory::of(&mut session, &was.name).await?;
        let missing = inventory::lacking(&mut session, &was.extensions).await?;
        session.close().await;
        notes.extend(now.differences(was));
        notes.extend(missing.into_iter().map(|extension| {
            format!("database {}: the extension {extension} is not installed on this host", was.name)
        }));
    }
    Ok(notes)
}

/// As a server reads it on its command line, before it knows any zone by a name: not even `Z`.
fn moment_text(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S%.6f+00").to_string()
}

/// Whether the server said that its log was at an end before its target came.
fn ended_before_target(error: &ServerError) -> bool {
    error.to_string().contains("recovery ended before configured recovery target was reached")
}
