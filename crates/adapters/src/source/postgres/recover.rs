//! Brings a cluster back to any moment that a vault knows: its files, then the log, replayed by its own server behind a private socket.
//!
//! Invariant: recovery has an explicit target, stops there and waits; only when the server says that it is at the target is it promoted. A
//! gap, damage or anything unread ends it with an error, and nothing stands under the cluster's name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_core::runbook::Target;
use lifeboat_engine::port::{Cancel, RestoreRequest, Restored};
use lifeboat_vault::files::{Browser, FileReader, Progress, RestoreOptions, TreeError, restore_tree};
use lifeboat_vault::{ChunkId, LogEntry, PointInfo, Position, Unlocked, VaultError};

use super::facts::{self, Facts, FactsError};
use super::spool::{Spool, SpoolError, Which, read_piece};
use super::tablespaces;
use crate::postgres::error::SessionError;
use crate::postgres::lsn::{Lsn, LsnError, parse_history};
use crate::postgres::programs::{Programs, ProgramsError};
use crate::postgres::server::{Awaited, Server, ServerError, Start, Stop, end_left_behind};
use crate::postgres::session::{Purpose, Session};
use crate::source::way::{self, ChainError, Way, position_text};

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
    #[error("the history of the timeline that the vault holds cannot be read; restore from another vault")]
    History(#[from] LsnError),
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
        "no record begins in the last two segments of the log before {end}; restore to a time before, or from another vault"
    )]
    NoRecord { end: Lsn },
    #[error("recovery stopped at {at}, before its target {target}")]
    Short { at: Lsn, target: Lsn },
    #[error("interrupted; run it again")]
    Cancelled,
}

impl RecoverError {
    pub(super) fn may_pass(&self) -> bool {
        match self {
            RecoverError::Cancelled | RecoverError::Spool(SpoolError::Cancelled) => true,
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
}

/// What is called of PostgreSQL's own programs.
const NEEDED: &[&str] = &["postgres", "pg_controldata", "pg_waldump", "pg_archivecleanup"];
/// How long a log may take to be replayed is not for us to say; who waits can stop it.
const REPLAY_WITHIN: Duration = Duration::from_secs(30 * 24 * 3600);
const STOP_WITHIN: Duration = Duration::from_secs(600);

pub(super) fn restore(
    vault: &Unlocked,
    request: &RestoreRequest,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Restored, RecoverError> {
    let began = Instant::now();
    let way = find(vault, request)?;
    let tree = Tree::open(vault, &way.base)?;
    let facts = tree.facts()?;
    let which = Which { system: facts.system()?, timeline: facts.timeline, segments: facts.segments()? };
    let runtime = super::runtime().map_err(RecoverError::file("make threads for", &request.to))?;
    let programs = runtime.block_on(Programs::of_major(facts.major()?, NEEDED))?;
    let work = Work::begin(&request.to, request.in_place)?;
    tablespaces::gather(&work.path, &request.to)?;
    let options = RestoreOptions { in_place: work.is_begun, delete_extra: work.is_begun, ..RestoreOptions::default() };
    let restored = restore_tree(&tree.source, &tree.root, &work.path, &options, progress, cancel.flag());
    let restored = restored.map_err(RecoverError::Files)?;
    make_ready(&work.path)?;
    let mut notes = tablespaces::spread(&work.path, &request.to)?;
    let (way_found, work_path) = (&way, &work.path);
    let recovering = Recovering {
        vault,
        way: way_found,
        facts: &facts,
        which,
        programs: &programs,
        work: work_path,
        runtime,
        cancel,
    };
    let outcome = recovering.run(request)?;
    work.finish()?;
    let position =
        way.base.position.as_ref().map(|position| Position { counter: outcome.reached.0, ..position.clone() });
    notes.extend(way.notes);
    notes.extend(restored.notes.iter().map(|note| format!("{}: {}", note.path.display(), note.what)));
    notes.extend(outcome.notes);
    Ok(Restored {
        as_of: outcome.as_of,
        point: way.base,
        position: position.as_ref().map(position_text),
        files: restored.files,
        bytes: restored.bytes,
        bytes_written: restored.written_bytes,
        seconds: began.elapsed().as_secs_f64(),
        verified: Some(outcome.verified),
        notes,
    })
}

/// The way to the target. Of a point in a stream, the log is needed up to where its files are a database.
fn find(vault: &Unlocked, request: &RestoreRequest) -> Result<Way, RecoverError> {
    let mut way = way::find_beyond(vault, &request.dataset, &request.target)?;
    if let (Target::Point(_), Some(position)) = (&request.target, way.base.position.clone()) {
        way.pieces = way::onward(vault, &request.dataset, &position, way.base.taken_at)?.pieces;
    }
    Ok(way)
}

/// A point's tree of files.
struct Tree {
    source: lifeboat_vault::Source,
    root: ChunkId,
    point: String,
}

impl Tree {
    fn open(vault: &Unlocked, point: &PointInfo) -> Result<Tree, RecoverError> {
        let failed = |source| RecoverError::Vault { point: point.id.clone(), source };
        let root = vault.read_root(point).map_err(failed)?;
        let not = || RecoverError::NotACluster { point: point.id.clone() };
        let root = ChunkId(root.as_slice().try_into().map_err(|_| not())?);
        let source = vault.source(&point.dataset).map_err(failed)?;
        Ok(Tree { source, root, point: point.id.clone() })
    }

    fn facts(&self) -> Result<Facts, RecoverError> {
        let failed = |source| RecoverError::Tree { point: self.point.clone(), source };
        let not = || RecoverError::NotACluster { point: self.point.clone() };
        let browser = Browser::open(&self.source, &self.root).map_err(failed)?;
        let node = browser.find(Path::new(facts::NAME)).map_err(|_| not())?;
        let mut reader = FileReader::open(&self.source, &node).map_err(failed)?;
        if reader.size() > facts::BYTES_MAX {
            return Err(not());
        }
        let mut bytes = vec![0; reader.size() as usize];
        reader.read_at(0, &mut bytes).map_err(failed)?;
        Ok(Facts::decode(&bytes)?)
    }
}

/// The directory that is worked in: under another name until it is a database.
struct Work {
    path: PathBuf,
    to: PathBuf,
    /// Something is there: what is to be changed, or what a restore that failed has left.
    is_begun: bool,
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
        Ok(Work { is_begun: path.exists(), path, to: to.to_owned() })
    }

    fn finish(&self) -> Result<(), RecoverError> {
        fs::rename(&self.path, &self.to).map_err(RecoverError::file("give its name to", &self.to))?;
        crate::source::sync_directory_of(&self.to).map_err(RecoverError::file("make durable", &self.to))
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// What a server expects of a data directory, and what must not be left in one.
fn make_ready(data: &Path) -> Result<(), RecoverError> {
    let facts = data.join(facts::NAME);
    fs::remove_file(&facts).map_err(RecoverError::file("remove", &facts))?;
    for name in ["postmaster.pid", "postmaster.opts", "standby.signal"] {
        let path = data.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(RecoverError::file("remove", &path)(error));
            }
            _ => {}
        }
    }
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::Permissions::from_mode(0o700);
    fs::set_permissions(data, mode).map_err(RecoverError::file("set the mode of", data))?;
    let signal = data.join("recovery.signal");
    fs::write(&signal, "").map_err(RecoverError::file("write", &signal))?;
    give_away(&signal, data)
}

/// Gives it to whom the data directory belongs.
pub(super) fn give_away(path: &Path, data: &Path) -> Result<(), RecoverError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let (user, group) = owner_of(data)?;
    std::os::unix::fs::chown(path, Some(user), Some(group)).map_err(RecoverError::file("give away", path))
}

pub(super) fn give_link_away(path: &Path, data: &Path) -> Result<(), RecoverError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let (user, group) = owner_of(data)?;
    std::os::unix::fs::lchown(path, Some(user), Some(group)).map_err(RecoverError::file("give away", path))
}

fn owner_of(data: &Path) -> Result<(u32, u32), RecoverError> {
    use std::os::unix::fs::MetadataExt;
    let seen = fs::metadata(data).map_err(RecoverError::file("look at", data))?;
    Ok((seen.uid(), seen.gid()))
}

struct Outcome {
    reached: Lsn,
    as_of: Timestamp,
    verified: String,
    notes: Vec<String>,
}

struct Recovering<'a> {
    vault: &'a Unlocked,
    way: &'a Way,
    facts: &'a Facts,
    which: Which,
    programs: &'a Programs,
    work: &'a Path,
    runtime: tokio::runtime::Runtime,
    cancel: &'a Cancel,
}

impl Recovering<'_> {
    fn run(&self, request: &RestoreRequest) -> Result<Outcome, RecoverError> {
        let stop = self.facts.stop()?;
        let end = self.way.pieces.last().map(|entry| Lsn(entry.last));
        if !self.facts.is_whole && end.is_none_or(|end| end < stop) {
            return Err(RecoverError::TooShort { reaches: end.unwrap_or(self.facts.start()?), stop });
        }
        let until = way::until(&request.target)?;
        let goal = match (until, end) {
            (_, None) => Goal::Consistent,
            _ if matches!(request.target, Target::Point(_)) => Goal::Consistent,
            (Some(until), Some(_)) if until < self.way.reaches => Goal::Moment(until),
            (_, Some(end)) => Goal::Record(self.last_record(end)?),
        };
        match self.attempt(goal) {
            // Nothing was committed between the moment and the end of the log: so the end is the moment's state.
            Err(RecoverError::Server(error)) if matches!(goal, Goal::Moment(_)) && ended_before_target(&error) => {
                let end = end.unwrap_or(stop);
                self.attempt(Goal::Record(self.last_record(end)?))
            }
            outcome => outcome,
        }
    }

    fn attempt(&self, goal: Goal) -> Result<Outcome, RecoverError> {
        let owner = match rustix::process::geteuid().is_root() {
            true => Some(owner_of(self.work)?),
            false => None,
        };
        let spool = Spool::make(beside(self.work, ".wal"), owner)?;
        if let Some(first) = self.way.pieces.first().filter(|_| self.which.timeline > 1) {
            let piece = read_piece(self.vault, &self.which, first)?;
            if !piece.history.is_empty() {
                parse_history(&piece.history)?;
                spool.lay_history(self.which.timeline, &piece.history)?;
            }
        }
        let settings = self.settings(goal, &spool);
        // The log is fetched while the server starts and replays; whoever fails first ends the other.
        let fetching = Cancel::default();
        std::thread::scope(|scope| {
            let filling = scope.spawn(|| match self.way.pieces.is_empty() {
                true => spool.close_empty(),
                false => spool.fill(self.vault, &self.which, &self.way.pieces, &fetching),
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
        settings.push(match goal {
            Goal::Consistent => ("recovery_target", "immediate".to_owned()),
            Goal::Record(at) => ("recovery_target_lsn", at.to_string()),
            Goal::Moment(at) => ("recovery_target_time", moment_text(at)),
        });
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
            let mut server = Server::start(self.programs, self.work, &start).await?;
            server.wait_for(Awaited::Paused, REPLAY_WITHIN).await?;
            let mut session = Session::open(server.door(), Purpose::Queries, "lifeboat").await?;
            let row = session
                .query_one("select pg_last_wal_replay_lsn(), pg_last_xact_replay_timestamp() at time zone 'utc'")
                .await?;
            let reached: Lsn = row.get(0).and_then(|text| text.parse().ok()).unwrap_or(Lsn(0));
            let last_commit = row.get(1).map(|at| format!(" with the last transaction of {at} UTC")).unwrap_or_default();
            match goal {
                Goal::Record(target) if reached < target => return Err(RecoverError::Short { at: reached, target }),
                _ => {}
            }
            let notes = self.look_around(&server).await?;
            // At its target, a server that is told to go on ends its recovery.
            session.query_one("select pg_wal_replay_resume()").await?;
            server.wait_for(Awaited::Writable, REPLAY_WITHIN).await?;
            session.close().await;
            server.stop(Stop::Fast, STOP_WITHIN).await?;
            let as_of = match goal {
                Goal::Moment(at) => at,
                Goal::Consistent => self.way.base.taken_at,
                Goal::Record(_) => self.way.reaches,
            };
            let count = self.facts.databases.len();
            let verified = format!(
                "every chunk matched its signed id; the server replayed the log to {reached}{last_commit}, and opened its {count} databases"
            );
            Ok(Outcome { reached, as_of, verified, notes })
        })
    }

    /// Opens every database; what it finds other than it was at the source is a note.
    async fn look_around(&self, server: &Server) -> Result<Vec<String>, RecoverError> {
        let mut notes = Vec::new();
        for was in &self.facts.databases {
            let door = server.door().with_database(&was.name);
            let mut session = Session::open(&door, Purpose::Queries, "lifeboat").await?;
            let now = super::inventory::of(&mut session, &was.name).await?;
            let missing = super::inventory::lacking(&mut session, &was.extensions).await?;
            session.close().await;
            notes.extend(now.differences(was));
            notes.extend(missing.into_iter().map(|extension| {
                format!("database {}: the extension {extension} is not installed on this host", was.name)
            }));
        }
        Ok(notes)
    }

    /// Where the last record before the log's end begins: the last that is whole.
    fn last_record(&self, end: Lsn) -> Result<Lsn, RecoverError> {
        let segments = self.which.segments;
        let last = segments.number_of(Lsn(end.0.saturating_sub(1)));
        let directory = Spool::make(beside(self.work, ".last"), None)?;
        // A record may be longer than a segment: then it begins in one before.
        for first in (0..=last).rev().take(4) {
            let wanted: Vec<LogEntry> =
                self.way.pieces.iter().filter(|entry| entry.last > segments.start(first).0).cloned().collect();
            directory.fill(self.vault, &self.which, &wanted, self.cancel)?;
            let mut command = Command::new(self.programs.program("pg_waldump"));
            command.arg("--path").arg(directory.path()).args(["--timeline", &self.which.timeline.to_string()]);
            command.args(["--start", &segments.start(first).to_string(), "--end", &end.to_string()]).env("LC_ALL", "C");
            let output = command.output().map_err(RecoverError::file("run", &self.programs.program("pg_waldump")))?;
            // It ends with an error where the log does, and names what it found before on its output.
            let text = String::from_utf8_lossy(&output.stdout);
            let found = text.lines().rev().find_map(|line| line.split_once("lsn: ")?.1.split(',').next()?.parse().ok());
            if let Some(found) = found {
                return Ok(found);
            }
        }
        Err(RecoverError::NoRecord { end })
    }
}

/// As a server reads it on its command line, before it knows any zone by a name: not even `Z`.
fn moment_text(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S%.6f+00").to_string()
}

/// Whether the server said that its log was at an end before its target came.
fn ended_before_target(error: &ServerError) -> bool {
    error.to_string().contains("recovery ended before configured recovery target was reached")
}
