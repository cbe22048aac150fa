//! A cluster where its server left it: recovered by a private server as its own would, asked, stopped in good order, and its pages checked.
//!
//! Invariant: it writes what a start of its own server would write, and nothing else; whoever wants what was there before keeps it before.

use std::path::Path;
use std::time::{Duration, Instant};

use lifeboat_engine::port::Cancel;
use lifeboat_engine::verify::{Check, Outcome};

use super::validate::{indexes, page_checksums, said};
use super::{NEEDED, REPLAY_WITHIN, RecoverError, STOP_WITHIN};
use crate::postgres::control::Control;
use crate::postgres::door::Door;
use crate::postgres::programs::Programs;
use crate::postgres::server::{Server, ServerError, Start, Stop};
use crate::postgres::session::{Purpose, Session};
use crate::source::in_full;

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// An error: it could not be done, which says nothing of the cluster.
pub(in super::super) fn look_through(data: &Path, cancel: &Cancel) -> Result<Vec<Check>, RecoverError> {
    if Door::may_run_in(data) {
        return Err(RecoverError::Running { path: data.to_owned() });
    }
    let runtime = super::super::runtime().map_err(RecoverError::file("make threads for", data))?;
    let programs = runtime.block_on(Programs::of_data_directory(data, NEEDED))?;
    let mut looking = Looking { data, programs: &programs, cancel, checks: Vec::new(), began: Instant::now() };
    let looked = runtime.block_on(async {
        tokio::select! {
            looked = looking.run() => looked,
            () = cancelled(cancel) => Err(RecoverError::Cancelled),
        }
    });
    match looked {
        Ok(()) => {}
        Err(error) => match said(&error) {
            Some((check, outcome)) => looking.note(check, outcome, in_full(&error)),
            None => return Err(error),
        },
    }
    Ok(looking.checks)
}

async fn cancelled(cancel: &Cancel) {
    while !cancel.is_cancelled() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

struct Looking<'a> {
    data: &'a Path,
    programs: &'a Programs,
    cancel: &'a Cancel,
    checks: Vec<Check>,
    began: Instant,
}

impl Looking<'_> {
    fn note(&mut self, check: &str, outcome: Outcome, what: impl Into<String>) {
        let seconds = std::mem::replace(&mut self.began, Instant::now()).elapsed().as_secs_f64();
        self.checks.push(Check { check: check.to_owned(), outcome, what: what.into(), seconds });
    }

    async fn run(&mut self) -> Result<(), RecoverError> {
        let control = Control::read(self.programs, self.data).await.map_err(ServerError::from)?;
        let settings = [("autovacuum", "off"), ("default_transaction_read_only", "on")];
        let start = Start {
            user: Door::owner_of(self.data).unwrap_or_else(|| "postgres".to_owned()),
            settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            within: REPLAY_WITHIN,
        };
        let server = Server::start(self.programs, self.data, &start).await?;
        let how = if control.is_clean() { "was stopped in good order" } else { "was not, and recovered from its log" };
        self.note("recovery", Outcome::Passed, format!("its server {how}"));
        self.databases(&server).await?;
        if !control.checksums {
            // Nothing else would tell a damaged page from a sound one.
            let (outcome, what) = indexes(self.programs, &server, false, self.cancel).await?;
            self.note("indexes", outcome, what);
        }
        server.stop(Stop::Fast, STOP_WITHIN).await?;
        if control.checksums {
            let (outcome, what) = page_checksums(self.programs, self.data, self.cancel)?;
            self.note("checksums", outcome, what);
        }
        Ok(())
    }

    /// Each is opened: what a session needs of its catalogue is read.
    async fn databases(&mut self, server: &Server) -> Result<(), RecoverError> {
        let mut session = Session::open(server.door(), Purpose::Queries, "lifeboat").await?;
        let listed = session.query("select datname from pg_catalog.pg_database where datallowconn").await?;
        session.close().await;
        let names: Vec<String> = listed.iter().filter_map(|row| row.get(0).map(str::to_owned)).collect();
        let mut failed = Vec::new();
        for name in &names {
            let door = server.door().with_database(name);
            let opened = async {
                let mut session = Session::open(&door, Purpose::Queries, "lifeboat").await?;
                session.query_one("select count(*) from pg_catalog.pg_class").await?;
                session.close().await;
                Ok::<_, crate::postgres::error::SessionError>(())
            };
            if let Err(error) = opened.await {
                failed.push(format!("database {name} cannot be opened: {error}"));
            }
        }
        match failed.is_empty() {
            true => self.note("databases", Outcome::Passed, format!("{} opened", names.len())),
            false => self.note("databases", Outcome::Failed, failed.join("; ")),
        }
        Ok(())
    }
}
