//! A cluster's recovery point, proven: its files against the server's manifest, all of its log, recovery to the target, and then what the
//! server and its own programs say of what came back.
//!
//! ```text
//!   files ─▶ log ─▶ recovery, paused at its target: databases, queries ─▶ promoted: indexes ─▶ stopped: checksums
//! ```
//!
//! Invariant: a check is passed only by the program that made it saying so; one that could not be run is reported as not done.

use std::cell::RefCell;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use lifeboat_core::runbook::Target;
use lifeboat_engine::port::{Cancel, RestoreRequest};
use lifeboat_engine::verify::{Check, Outcome, Verification, VerifyRequest, said_by_vault};
use lifeboat_vault::files::Progress;
use lifeboat_vault::{Position, Unlocked};

use super::super::facts::{self, Facts};
use super::super::files::{Signal, Tree, beside};
use super::super::inventory;
use super::super::spool::{SpoolError, Which};
use super::scan::{Reading, Scanned, read_stretch, scan};
use super::tool::{self, Ran};
use super::{Goal, NEEDED, RecoverError, Recovering, find};
use crate::postgres::door::Door;
use crate::postgres::error::SessionError;
use crate::postgres::lsn::Lsn;
use crate::postgres::programs::Programs;
use crate::postgres::server::{Server, ServerError};
use crate::postgres::session::{Purpose, Session, literal};
use crate::source::way::{self, ChainError, Way, position_text};
use crate::source::{in_full, said_by_files, said_by_tree};

/// A query of the user's may read all there is.
const QUERY_WITHIN: Duration = Duration::from_secs(6 * 3600);
/// Of a query, and of what a program said, so much is shown.
const SHOWN_CHARS_MAX: usize = 300;

/// What is looked at, and what was found so far.
pub(super) struct Looker<'a> {
    request: &'a VerifyRequest,
    /// Where queries run.
    database: String,
    cancel: &'a Cancel,
    programs: &'a Programs,
    facts: &'a Facts,
    checks: RefCell<Vec<Check>>,
    began: RefCell<Instant>,
}

impl Looker<'_> {
    /// Notes how a check ended; its time is that since the one before.
    fn note(&self, check: &str, outcome: Outcome, what: impl Into<String>) {
        let seconds = self.began.replace(Instant::now()).elapsed().as_secs_f64();
        self.checks.borrow_mut().push(Check { check: check.to_owned(), outcome, what: what.into(), seconds });
    }

    /// Where its program is, if it is there.
    fn program(&self, check: &str, name: &str) -> Option<std::path::PathBuf> {
        installed(self.programs, name).map_err(|(outcome, what)| self.note(check, outcome, what)).ok()
    }

    /// Before the files are made ready for recovery: they must be what the server sent.
    fn files(&self, data: &Path) -> Result<(), RecoverError> {
        let Some(program) = self.program("files", "pg_verifybackup") else { return Ok(()) };
        let mut command = Command::new(program);
        // The log is read by itself, all of it. What is ours was not the server's to name.
        command.args(["--no-parse-wal", "--quiet", &format!("--ignore={}", facts::NAME)]).arg(data);
        let ran = tool::run(&mut command, self.cancel)?;
        let complaints = ran.complaints();
        let is_ours = |line: &&str| {
            ["could not open", "could not read", "could not stat", "out of memory"]
                .iter()
                .any(|word| line.contains(word))
        };
        match ran.status.success() {
            true => self.note("files", Outcome::Passed, "all of them are those of the server's own manifest"),
            false if !complaints.is_empty() && complaints.lines().all(|line| is_ours(&line)) => {
                self.note("files", Outcome::NotDone, shown(&complaints));
            }
            false => self.note("files", Outcome::Damaged, shown(&complaints)),
        }
        Ok(())
    }

    /// At its target, nothing changes any more, and nothing can be changed.
    pub(super) async fn at_target(&self, server: &Server, reached: &str) -> Result<(), RecoverError> {
        self.note("recovery", Outcome::Passed, format!("the server replayed the log to {reached}"));
        self.databases(server).await;
        for query in &self.request.queries {
            let (outcome, what) = self.query(server, query).await;
            self.note("query", outcome, format!("{}: {what}", shown(query)));
        }
        Ok(())
    }

    /// Each is opened, and needs what this host has.
    async fn databases(&self, server: &Server) {
        let (mut failed, mut differ) = (Vec::new(), Vec::new());
        for was in &self.facts.databases {
            let looked = async {
                let mut session = open(server, &was.name).await?;
                let now = inventory::of(&mut session, &was.name).await?;
                let lacking = inventory::lacking(&mut session, &was.extensions).await?;
                session.close().await;
                Ok::<_, SessionError>((now.differences(was), lacking))
            };
            match looked.await {
                Ok((difference, lacking)) => {
                    differ.extend(difference);
                    let named =
                        |name: String| format!("database {}: the extension {name} is not installed here", was.name);
                    differ.extend(lacking.into_iter().map(named));
                }
                Err(error) => failed.push(format!("database {} cannot be opened: {error}", was.name)),
            }
        }
        let count = self.facts.databases.len();
        match (failed.is_empty(), differ.is_empty()) {
            (false, _) => self.note("databases", Outcome::Failed, failed.join("; ")),
            // That is this host's matter: of the point it says nothing.
            (true, false) => {
                self.note("databases", Outcome::NotDone, format!("this host is another: {}", differ.join("; ")))
            }
            (true, true) => {
                let what = format!("{count} opened, with the collations and extensions that they had");
                self.note("databases", Outcome::Passed, what);
            }
        }
    }

    async fn query(&self, server: &Server, sql: &str) -> (Outcome, String) {
        let asked = async {
            let mut session = open(server, &self.database).await?;
            session.set_patience(QUERY_WITHIN);
            let rows = session.query(sql).await?;
            session.close().await;
            Ok::<_, SessionError>(rows)
        };
        let within = &self.database;
        match asked.await {
            Ok(rows) => match rows.as_slice() {
                [row] if row.columns() == 1 && row.get(0) == Some("t") => {
                    (Outcome::Passed, format!("true, in {within}"))
                }
                [row] if row.columns() == 1 => (
                    Outcome::Failed,
                    format!("answered {}, and not true, in {within}", shown(row.get(0).unwrap_or("null"))),
                ),
                [row] => (
                    Outcome::Failed,
                    format!("answered a row of {} values, and not of one, in {within}", row.columns()),
                ),
                rows => (Outcome::Failed, format!("answered {} rows, and not one, in {within}", rows.len())),
            },
            Err(error) => {
                let outcome = if error.sqlstate().is_some() { Outcome::Failed } else { Outcome::NotDone };
                (outcome, in_full(&error))
            }
        }
    }

    /// As soon as it may be written to: the checks of its own need functions in each database.
    pub(super) async fn writable(&self, server: &Server) -> Result<(), RecoverError> {
        let (outcome, what) = indexes(self.programs, server, true, self.cancel).await?;
        self.note("indexes", outcome, what);
        Ok(())
    }

    /// Of a server that was stopped in good order.
    fn checksums(&self, data: &Path) -> Result<Option<String>, RecoverError> {
        if !self.facts.checksums {
            let text = "the cluster has no data checksums: a page that was damaged before the backup shows only where amcheck or a query meets it";
            return Ok(Some(text.to_owned()));
        }
        let (outcome, what) = page_checksums(self.programs, data, self.cancel)?;
        self.note("checksums", outcome, what);
        Ok(None)
    }
}

/// Rows and indexes of every database; `thorough`: also that indexes and tables agree, row by row.
pub(super) async fn indexes(
    programs: &Programs,
    server: &Server,
    thorough: bool,
    cancel: &Cancel,
) -> Result<(Outcome, String), RecoverError> {
    let program = match installed(programs, "pg_amcheck") {
        Ok(program) => program,
        Err(not_done) => return Ok(not_done),
    };
    let mut session = open(server, "postgres").await?;
    let sql = format!("select 1 from pg_catalog.pg_available_extensions where name = {}", literal("amcheck"));
    let is_there = !session.query(&sql).await?.is_empty();
    session.close().await;
    if !is_there {
        let what = "the extension amcheck is not installed on this host (postgresql-contrib)";
        return Ok((Outcome::NotDone, what.to_owned()));
    }
    let mut command = Command::new(program);
    command.args(["--all", "--no-password"]);
    // Where nothing may be written, a database without the extension is passed over.
    command.args(if thorough { &["--heapallindexed", "--install-missing"][..] } else { &[] });
    for variable in Door::variables() {
        command.env_remove(variable);
    }
    command.envs(server.door().environment());
    let ran = tool::run(&mut command, cancel)?;
    let found: Vec<&str> = ran.output.lines().filter(|line| !line.starts_with(char::is_whitespace)).collect();
    Ok(match ran.status.code() {
        Some(0) if thorough => {
            let what = "every row of every table, and that every index holds all of them (pg_amcheck)";
            (Outcome::Passed, what.to_owned())
        }
        _ if !thorough && ran.errors.contains("is not installed") => {
            let what = "the cluster has no data checksums, and not every database has the extension amcheck: a damaged page shows only where a query meets it";
            (Outcome::NotDone, what.to_owned())
        }
        Some(0) => (Outcome::Passed, "every row of every table, and every index by itself (pg_amcheck)".to_owned()),
        Some(2) => {
            let first: Vec<&str> = ran.output.lines().take(2).map(str::trim).collect();
            (Outcome::Failed, format!("pg_amcheck found {}: {}", counted(found.len()), shown(&first.join(" "))))
        }
        _ => (Outcome::NotDone, format!("pg_amcheck ended with {}: {}", ran.status, shown(&ran.complaints()))),
    })
}

/// Every page of a cluster whose server was stopped in good order.
pub(super) fn page_checksums(
    programs: &Programs,
    data: &Path,
    cancel: &Cancel,
) -> Result<(Outcome, String), RecoverError> {
    let program = match installed(programs, "pg_checksums") {
        Ok(program) => program,
        Err(not_done) => return Ok(not_done),
    };
    let mut command = Command::new(program);
    command.arg("--check").arg("--pgdata").arg(data);
    let ran = tool::run(&mut command, cancel)?;
    let number = |what: &str| {
        let line = ran.output.lines().find_map(|line| line.strip_prefix(what))?;
        line.trim().parse::<u64>().ok()
    };
    Ok(match (ran.status.success(), number("Bad checksums:"), number("Blocks scanned:")) {
        (true, Some(0), Some(blocks)) => (Outcome::Passed, format!("of {blocks} pages, all right (pg_checksums)")),
        (_, Some(bad), _) if bad > 0 => {
            let bad = counted(usize::try_from(bad).unwrap_or(usize::MAX));
            (Outcome::Damaged, format!("{bad} of pages: {}", shown(&ran.complaints())))
        }
        _ => (Outcome::NotDone, format!("pg_checksums ended with {}: {}", ran.status, shown(&ran.complaints()))),
    })
}

/// Where a program is; or that its check was not done.
fn installed(programs: &Programs, name: &str) -> Result<std::path::PathBuf, (Outcome, String)> {
    let path = programs.program(name);
    match path.is_file() {
        true => Ok(path),
        false => Err((Outcome::NotDone, format!("{name} is not installed beside {}", shown_directory(&path)))),
    }
}

impl Ran {
    /// What it said is wrong, without its own name before each line.
    fn complaints(&self) -> String {
        let lines = self.errors.lines().map(|line| line.split_once("error: ").map_or(line, |(_, rest)| rest).trim());
        lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
    }
}

fn counted(count: usize) -> String {
    if count == 1 { "1 fault".to_owned() } else { format!("{count} faults") }
}

fn shown(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn shown_directory(path: &Path) -> String {
    path.parent().unwrap_or(path).join("postgres").display().to_string()
}

async fn open(server: &Server, database: &str) -> Result<Session, SessionError> {
    Session::open(&server.door().with_database(database), Purpose::Queries, "lifeboat-verify").await
}

/// Brings a point back and looks at everything. An error: it could not be done, which says nothing of the point.
pub(in super::super) fn verify(
    vault: &Unlocked,
    request: &VerifyRequest,
    database: &str,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Verification, RecoverError> {
    let began = Instant::now();
    let data = request.scratch.join("data");
    let asked = RestoreRequest {
        dataset: request.dataset.clone(),
        to: data.clone(),
        target: request.target.clone(),
        in_place: false,
    };
    let (way, place, hole) = way_or_hole(vault, &asked, cancel)?;
    let mut found = Verification {
        point: way.base.clone(),
        as_of: None,
        position: None,
        checks: Vec::new(),
        notes: way.notes.clone(),
        seconds: 0.0,
    };
    let note = |checks: &mut Vec<Check>, error: RecoverError| {
        let Some((check, outcome)) = said(&error) else { return Err(error) };
        let what = shown(&in_full(&error));
        checks.push(Check { check: check.to_owned(), outcome, what, seconds: began.elapsed().as_secs_f64() });
        Ok(())
    };
    let opened = Tree::open(vault, &way.base).and_then(|tree| Ok((tree.facts()?, tree)));
    match opened {
        Err(error) => note(&mut found.checks, error)?,
        Ok((facts, tree)) => {
            let proven =
                Proving { vault, request, database, data: &data, way: &way, place, facts: &facts, tree: &tree, cancel };
            let (checks, ended) = proven.run(hole, progress, &mut found);
            found.checks = checks;
            if let Err(error) = ended {
                note(&mut found.checks, error)?;
            }
        }
    }
    found.seconds = began.elapsed().as_secs_f64();
    Ok(found)
}

/// The way to the target; where its log has a hole or is damaged, what can be had of the base that it begins with.
fn way_or_hole(
    vault: &Unlocked,
    asked: &RestoreRequest,
    cancel: &Cancel,
) -> Result<(Way, Option<Goal>, Option<ChainError>), RecoverError> {
    let damage = match find(vault, asked, cancel) {
        Ok((way, place)) => return Ok((way, place, None)),
        Err(RecoverError::Chain(damage @ (ChainError::Damaged { .. } | ChainError::Hole { .. }))) => damage,
        Err(error) => return Err(error),
    };
    let until = way::until(&asked.dataset, &asked.target).unwrap_or(None);
    let (chains, notes) = way::chains(vault, &asked.dataset)?;
    let is_meant = |point: &lifeboat_vault::PointInfo| match &asked.target {
        Target::Point(id) => point.id == *id,
        _ => until.is_none_or(|until| point.taken_at <= until),
    };
    let Some(base) = chains.into_iter().flatten().find(is_meant) else { return Err(damage.into()) };
    let whole = match &damage {
        ChainError::Damaged { counter, .. } => Some(counter.saturating_sub(1)),
        _ => base.position.as_ref().map(|position| position.counter),
    };
    let way = way::from_base(vault, &asked.dataset, base, whole)?;
    Ok((Way { notes, ..way }, Some(Goal::Consistent), Some(damage)))
}

struct Proving<'a> {
    vault: &'a Unlocked,
    request: &'a VerifyRequest,
    database: &'a str,
    data: &'a Path,
    way: &'a Way,
    place: Option<Goal>,
    facts: &'a Facts,
    tree: &'a Tree,
    cancel: &'a Cancel,
}

impl Proving<'_> {
    /// What was found, also where it ended before its end.
    fn run(
        &self,
        hole: Option<ChainError>,
        progress: &dyn Progress,
        found: &mut Verification,
    ) -> (Vec<Check>, Result<(), RecoverError>) {
        let made = || -> Result<(tokio::runtime::Runtime, Programs), RecoverError> {
            let runtime = super::super::runtime().map_err(RecoverError::file("make threads for", self.data))?;
            let programs = runtime.block_on(Programs::of_major(self.facts.major()?, NEEDED))?;
            Ok((runtime, programs))
        };
        let (runtime, programs) = match made() {
            Ok(made) => made,
            Err(error) => return (Vec::new(), Err(error)),
        };
        let looker = Looker {
            request: self.request,
            database: self.database.to_owned(),
            cancel: self.cancel,
            programs: &programs,
            facts: self.facts,
            checks: RefCell::default(),
            began: RefCell::new(Instant::now()),
        };
        let ended = self.prove(&looker, runtime, hole, progress, found);
        (looker.checks.into_inner(), ended)
    }

    fn prove(
        &self,
        looker: &Looker<'_>,
        runtime: tokio::runtime::Runtime,
        hole: Option<ChainError>,
        progress: &dyn Progress,
        found: &mut Verification,
    ) -> Result<(), RecoverError> {
        let facts = self.facts;
        let which = Which { system: facts.system()?, timeline: facts.timeline, segments: facts.segments()? };
        let mut look = |data: &Path| looker.files(data);
        let laid =
            self.tree.lay_looking(self.data, self.data, facts, (Signal::Recovery, &mut look), progress, self.cancel)?;
        found.notes.extend(laid.notes);
        let damaged_at = self.log(looker, which, hole)?;
        let place = if damaged_at { Some(Goal::Consistent) } else { self.place };
        let recovering = Recovering {
            vault: self.vault,
            place,
            way: self.way,
            facts,
            which,
            programs: looker.programs,
            work: self.data,
            runtime,
            cancel: self.cancel,
            looker: Some(looker),
        };
        let outcome = recovering.run(&self.request.dataset, &self.request.target)?;
        found.as_of = Some(outcome.as_of);
        let position = self.way.base.position.as_ref();
        found.position =
            position.map(|position| position_text(&Position { counter: outcome.reached.0, ..position.clone() }));
        found.notes.extend(looker.checksums(self.data)?);
        Ok(())
    }

    /// All of it, record by record. Answers whether it is damaged.
    fn log(&self, looker: &Looker<'_>, which: Which, hole: Option<ChainError>) -> Result<bool, RecoverError> {
        let (start, stop) = (self.facts.start()?, self.facts.stop()?);
        let directory = beside(self.data, ".scan");
        let reading = Reading { vault: self.vault, which, programs: looker.programs, directory, cancel: self.cancel };
        let scanned = match self.facts.is_whole {
            true => {
                let mut scanned = Scanned::default();
                scanned.bytes = stop.checked_since(start).unwrap_or(0);
                read_stretch(&reading, &self.data.join("pg_wal"), (start, stop), &mut scanned).map(|()| scanned)
            }
            false => scan(&reading, start, &self.way.pieces),
        };
        let (damage, reaches) = match (scanned, hole) {
            (Ok(scanned), None) => {
                let what = format!(
                    "{} records from {start} on, {} bytes, all whole (pg_waldump)",
                    scanned.records, scanned.bytes
                );
                looker.note("log", Outcome::Passed, what);
                return Ok(false);
            }
            (Ok(_), Some(hole)) => {
                let reaches = self.way.pieces.last().map(|last| Lsn(last.last));
                (RecoverError::from(hole), reaches)
            }
            (Err(error), _) => (error, None),
        };
        let Some((_, outcome)) = said(&damage) else { return Err(damage) };
        // Without the log up to where they are a database, the files are none. What comes after concerns only later moments.
        let is_needed = self.facts.is_whole || reaches.is_some_and(|reaches| reaches < stop);
        let outcome = if is_needed { Outcome::Damaged } else { outcome };
        looker.note("log", outcome, shown(&in_full(&damage)));
        Ok(true)
    }
}

/// What an error proves, by the check that it came up in; nothing where it is this host or the storage that failed.
pub(super) fn said(error: &RecoverError) -> Option<(&'static str, Outcome)> {
    let files = |outcome: Option<Outcome>| outcome.map(|outcome| ("files", outcome));
    match error {
        RecoverError::Vault { source, .. } => files(said_by_vault(source)),
        RecoverError::Tree { source, .. } => files(said_by_tree(source)),
        RecoverError::Files(source) => files(said_by_files(source)),
        RecoverError::Facts(_) => Some(("files", Outcome::Damaged)),
        RecoverError::Chain(ChainError::Damaged { .. } | ChainError::Hole { .. }) => Some(("log", Outcome::Failed)),
        RecoverError::Spool(SpoolError::Piece { source, .. }) => {
            said_by_vault(source).map(|_| ("log", Outcome::Failed))
        }
        RecoverError::Spool(SpoolError::Content { .. } | SpoolError::Foreign { .. }) => Some(("log", Outcome::Failed)),
        RecoverError::TooShort { .. } => Some(("log", Outcome::Damaged)),
        RecoverError::Broken { .. } | RecoverError::Unreadable { .. } | RecoverError::NoRecord { .. } => {
            Some(("log", Outcome::Failed))
        }
        RecoverError::Short { .. } => Some(("recovery", Outcome::Failed)),
        RecoverError::Server(ServerError::Ended { log, .. }) if !is_ours(log) => Some(("recovery", Outcome::Failed)),
        RecoverError::Session(error) if error.sqlstate().is_some() => Some(("recovery", Outcome::Failed)),
        _ => None,
    }
}

/// A server that ends for want of room or of a library says nothing of its data.
fn is_ours(log: &str) -> bool {
    let ours = [
        "No space left on device",
        "could not load library",
        "could not access file",
        "out of memory",
        "Cannot allocate",
    ];
    ours.iter().any(|word| log.contains(word))
}
