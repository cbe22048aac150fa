//! PostgreSQL clusters: base backups, the write-ahead log as a stream, and any moment of both brought back by the cluster's own server.
//!
//! ```text
//!   base   pg_basebackup ─▶ tree   its archive as a tree of files     facts, inventory   what a restore must know of it
//!   stream ─▶ lane   a vault each: slot, receiver          chain, piece   what is stored of the log
//!     samples  clock and log, to say what is durable up to when     quorum   lets commits wait for vaults
//!   files  a point's, laid down as a data directory         recover   then the log, to an explicit target     spool   on its way there
//!   former  what a primary that is one no more left behind  rewind  brings it back to where the timelines parted
//!   standby  a server that follows a vault                  feed   the log for it, as it comes               rest    where it ends
//! ```
//!
//! Invariant: a position is never called durable before the vault has it, and nothing recovered is called whole before its server stood at
//! its target.

mod base;
mod chain;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod doors;
mod facts;
mod feed;
mod files;
mod former;
mod inventory;
mod left;
mod piece;
mod recover;
mod relay;
mod rest;
mod rewind;
mod spool;
mod standby;
mod stream;
mod tablespaces;
mod tree;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lifeboat_engine::port::{
    Cancel, FollowRequest, NamedVault, PointRequest, PointTaken, PortError, RestoreRequest, Restored, Restorer, Source,
    Standby, StreamRequest, Streaming,
};
use lifeboat_engine::verify::{Check, Verification, VerifyRequest};
use lifeboat_vault::files::Progress;
use lifeboat_vault::{SnapshotDraft, Unlocked, VaultError};

use self::base::{BaseError, Log, Wish};
use self::facts::{FORMAT, Facts, FactsError};
use self::stream::lane::awaited_names;
use self::stream::samples::{Sample, Samples};
use crate::postgres::door::{Door, DoorError};
use crate::postgres::error::SessionError;
use crate::postgres::lsn::Lsn;
use crate::postgres::programs::{Programs, ProgramsError};
use crate::postgres::session::{Purpose, Session};
use crate::postgres::slot::SlotError;
use crate::source::{metadata_of, port_error};

/// One cluster: a server and its data directory.
#[derive(Debug, Clone)]
pub struct PostgresSource {
    /// The data directory; empty if only the service is known.
    path: PathBuf,
    service: Option<String>,
    /// A directory for what passes through.
    state: PathBuf,
}

#[derive(Debug, thiserror::Error)]
enum PointError {
    #[error(transparent)]
    Door(#[from] DoorError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error(transparent)]
    Programs(#[from] ProgramsError),
    #[error(transparent)]
    Base(#[from] BaseError),
    #[error(transparent)]
    Facts(#[from] FactsError),
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error("threads cannot be made")]
    Threads(#[source] io::Error),
    #[error("the stream has ended")]
    Ended,
    #[error("the log that the backup needs goes into another chain by now; it is taken again")]
    OtherChain,
    #[error("when the backup ended cannot be said: the server could not be asked while it ran")]
    NoMoment,
}

impl PointError {
    fn may_pass(&self) -> bool {
        match self {
            PointError::Session(error) => error.may_pass(),
            PointError::Slot(error) => error.may_pass(),
            PointError::Vault(error) => error.may_pass(),
            PointError::Base(_) | PointError::Threads(_) | PointError::NoMoment => true,
            PointError::Ended | PointError::OtherChain => true,
            PointError::Door(_) | PointError::Programs(_) | PointError::Facts(_) => false,
        }
    }
}

/// What the server says of itself before a base backup.
struct Cluster {
    door: Door,
    facts: Facts,
    has_tablespaces: bool,
    /// As in 150018.
    version: u32,
    /// What it remarked.
    notices: Vec<String>,
}

impl PostgresSource {
    /// The cluster in a data directory, or behind a service of libpq's, or both; `state` is a directory for what passes through.
    pub fn new(path: impl Into<PathBuf>, service: Option<String>, state: impl Into<PathBuf>) -> PostgresSource {
        PostgresSource { path: path.into(), service, state: state.into() }
    }

    /// Whether a directory is a cluster's.
    pub fn is_cluster(path: &Path) -> bool {
        path.join("PG_VERSION").is_file() && path.join("global/pg_control").is_file()
    }

    /// Whether a directory is a cluster's whose server may be running: its files are no recovery point then.
    pub fn is_running_in(path: &Path) -> bool {
        path.join("PG_VERSION").is_file() && Door::may_run_in(path)
    }

    /// Whether a text is a place in a server's log, as servers write one.
    pub fn is_position(text: &str) -> bool {
        text.parse::<Lsn>().is_ok()
    }

    /// The directory with the programs of the newest version whose server is installed on this machine.
    pub fn installed() -> Option<PathBuf> {
        crate::postgres::programs::newest_installed()
    }

    fn door(&self) -> Result<Door, DoorError> {
        match &self.service {
            Some(service) => Door::service(service, &|name| std::env::var(name).ok()),
            None => Door::running_in(&self.path),
        }
    }

    /// The database that its service names, where this host knows the service; else the one that every cluster has.
    fn database(&self) -> String {
        let service =
            self.service.as_ref().and_then(|service| Door::service(service, &|name| std::env::var(name).ok()).ok());
        service.map_or_else(|| "postgres".to_owned(), |door| door.database().to_owned())
    }

    /// Where this host remembers the pages of the cluster's relations, as this vault has them.
    fn pages(vault: &NamedVault, dataset: &str) -> Result<PathBuf, VaultError> {
        let directory = vault.vault.state().vault_directory(&vault.vault.id())?;
        let name = dataset.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
        Ok(directory.join(format!("postgres-{name}.pages")))
    }

    fn take(
        &self,
        vault: &NamedVault,
        request: &PointRequest,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<PointTaken, PointError> {
        let began = Instant::now();
        let runtime = runtime().map_err(PointError::Threads)?;
        let cluster = runtime.block_on(look(self.door()?))?;
        let programs = runtime.block_on(Programs::of_server(cluster.version, &["pg_basebackup"]))?;
        // As long as this session lives, the log that the backup needs is kept.
        let held = runtime.block_on(hold_log(&cluster.door))?;
        let door = cluster.door.clone();
        let clock = Clock::start(Arc::new(move || Ok(door.clone())));
        let session = vault.vault.begin(&request.dataset, base::options())?;
        let pages = PostgresSource::pages(vault, &request.dataset)?;
        let source = match self.path.as_os_str().is_empty() {
            true => PathBuf::from(format!("{}:{}", cluster.door.host(), cluster.door.port())),
            false => self.path.clone(),
        };
        let wish = Wish {
            door: &cluster.door,
            programs: &programs,
            log: Log::Within,
            has_tablespaces: cluster.has_tablespaces,
            spool: &self.state,
            pages: &pages,
            top: metadata_of(&self.path),
            source: &source,
        };
        let taken = base::take(&wish, &session, progress, cancel, |timeline, start, stop| Facts {
            timeline,
            start: start.to_string(),
            stop: stop.to_string(),
            is_whole: true,
            ..cluster.facts.clone()
        })?;
        runtime.block_on(held.close());
        let source_time = clock.end().moment_of(taken.facts.stop()?).ok_or(PointError::NoMoment)?;
        let point = session.commit(SnapshotDraft {
            root: taken.summary.root.as_bytes().to_vec(),
            references: taken.summary.references,
            position: None,
            source_time,
            files: taken.summary.files,
            bytes: taken.summary.bytes,
            notes: Vec::new(),
            schema: None,
            release: request.release.clone().or_else(|| Some(format!("PostgreSQL {}", taken.facts.server_version))),
            final_mark: request.final_mark,
            epoch: request.epoch,
        })?;
        Ok(PointTaken {
            vault: vault.name.clone(),
            bytes_new: point.bytes_new,
            bytes_stored: point.bytes_stored,
            point,
            files: taken.summary.files,
            bytes: taken.summary.bytes,
            seconds: began.elapsed().as_secs_f64(),
            skipped: Vec::new(),
            notes: cluster.notices,
        })
    }
}

/// Everything here is asked from one thread at a time.
fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Asks a server what a restore of it must know.
async fn look(door: Door) -> Result<Cluster, SessionError> {
    let mut replication = Session::open(&door, Purpose::Replication, "lifeboat-base").await?;
    let system = replication.identify_system().await?;
    let segment_bytes = replication.wal_segment_bytes().await?;
    let history = match system.timeline {
        1 => Vec::new(),
        timeline => replication.timeline_history(timeline).await?,
    };
    replication.close().await;
    let mut session = Session::open(&door, Purpose::Queries, "lifeboat-base").await?;
    let row = session
        // Not everyone may see every setting: what `pg_settings` does not show stays unknown.
        .query_one(
            "select current_setting('server_version'), current_setting('data_checksums'), \
             (select rolname from pg_catalog.pg_roles where oid = 10), \
             (select setting from pg_catalog.pg_settings where name = 'shared_preload_libraries'), \
             (select count(*) > 2 from pg_catalog.pg_tablespace)",
        )
        .await?;
    let text = |column: usize| row.get(column).unwrap_or_default().to_owned();
    let mut facts = Facts {
        format: FORMAT,
        server_version: text(0),
        system_id: system.system_id.to_string(),
        timeline: system.timeline,
        // Why each began is in words, in whatever encoding; nobody parses those.
        history: String::from_utf8_lossy(&history).into_owned(),
        segment_bytes,
        start: String::new(),
        stop: String::new(),
        is_whole: false,
        checksums: text(1) == "on",
        superuser: text(2),
        databases: Vec::new(),
        preload: text(3),
    };
    let has_tablespaces = row.get(4) == Some("t");
    let names = inventory::databases(&mut session).await?;
    let (version, notices) = (session.server_version(), session.notices());
    session.close().await;
    for name in names {
        // A role for replication may not be let into every database: then less is known of it.
        if let Ok(mut session) = Session::open(&door.with_database(&name), Purpose::Queries, "lifeboat-base").await {
            facts.databases.push(inventory::of(&mut session, &name).await?);
            session.close().await;
        }
    }
    Ok(Cluster { door, facts, has_tablespaces, version, notices })
}

/// A session with a slot that lasts as long as it: what the backup needs of the log is not recycled meanwhile.
async fn hold_log(door: &Door) -> Result<Session, SessionError> {
    let mut session = Session::open(door, Purpose::Queries, "lifeboat-base").await?;
    let name = format!("lifeboat_base_{}_{:x}", std::process::id(), rand::random::<u32>());
    session.query_one(&format!("select pg_catalog.pg_create_physical_replication_slot('{name}', true, true)")).await?;
    Ok(session)
}

/// Takes samples in a thread of its own, ten a second.
struct Clock {
    samples: Arc<Samples>,
    ended: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Looked up anew each time: after a restart the server may listen elsewhere.
type Way = Arc<dyn Fn() -> Result<Door, DoorError> + Send + Sync>;

/// A server that does not say so soon what time it is, is asked through another session.
const CLOCK_PATIENCE: Duration = Duration::from_secs(10);
const SAMPLE_EVERY: Duration = Duration::from_millis(100);

impl Clock {
    fn start(door: Way) -> Clock {
        let (samples, ended) = (Arc::new(Samples::default()), Arc::new(AtomicBool::new(false)));
        let (into, until) = (samples.clone(), ended.clone());
        let thread = std::thread::spawn(move || {
            let Ok(runtime) = runtime() else { return };
            runtime.block_on(async {
                while !until.load(Ordering::SeqCst) {
                    let followed = match door() {
                        Ok(door) => Clock::follow(&door, &into, &until).await.map_err(|error| error.to_string()),
                        Err(error) => Err(error.to_string()),
                    };
                    if let Err(error) = followed {
                        tracing::debug!(%error, "the server cannot be asked how far its log is");
                        tokio::time::sleep(SAMPLE_EVERY).await;
                    }
                }
            });
        });
        Clock { samples, ended, thread: Some(thread) }
    }

    async fn follow(door: &Door, samples: &Samples, until: &AtomicBool) -> Result<(), SessionError> {
        let mut session = Session::open(door, Purpose::Queries, "lifeboat-clock").await?;
        session.set_patience(CLOCK_PATIENCE);
        while !until.load(Ordering::SeqCst) {
            samples.add(Sample::take(&mut session).await?);
            samples.set_awaited(&awaited_names(&mut session).await?);
            tokio::time::sleep(SAMPLE_EVERY).await;
        }
        session.close().await;
        Ok(())
    }

    fn end(mut self) -> Arc<Samples> {
        self.stop();
        self.samples.clone()
    }

    /// Ends it without waiting for a server that does not answer.
    fn let_go(mut self) {
        self.ended.store(true, Ordering::SeqCst);
        drop(self.thread.take());
    }

    fn stop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Source for PostgresSource {
    fn take_point(
        &self,
        vault: &NamedVault,
        request: &PointRequest,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<PointTaken, PortError> {
        self.take(vault, request, progress, cancel).map_err(|error| {
            port_error(&format!("no recovery point was taken into vault `{}`", vault.name), error.may_pass(), error)
        })
    }

    fn stream(&self, vaults: &[NamedVault], request: &StreamRequest) -> Result<Streaming, PortError> {
        Ok(Streaming::Started(Box::new(stream::Stream::start(self, vaults, request))))
    }
}

impl Restorer for PostgresSource {
    fn restore(
        &self,
        vault: &Unlocked,
        request: &RestoreRequest,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Restored, PortError> {
        recover::restore(vault, request, progress, cancel)
            .map_err(|error| port_error(&format!("`{}` was not restored", request.dataset), error.may_pass(), error))
    }

    fn verify(
        &self,
        vault: &Unlocked,
        request: &VerifyRequest,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Verification, PortError> {
        let database = request.database.clone().unwrap_or_else(|| self.database());
        recover::verify(vault, request, &database, progress, cancel).map_err(|error| {
            port_error(&format!("`{}` could not be verified", request.dataset), error.may_pass(), error)
        })
    }

    fn look_through(&self, data: &Path, cancel: &Cancel) -> Result<Vec<Check>, PortError> {
        recover::look_through(data, cancel).map_err(|error| {
            port_error(&format!("{} could not be looked through", data.display()), error.may_pass(), error)
        })
    }

    fn follow(&self, vault: &Unlocked, request: &FollowRequest) -> Result<Box<dyn Standby>, PortError> {
        let follower = standby::Follower::open(vault, request);
        let failed = |error: recover::RecoverError| {
            port_error(&format!("`{}` cannot be followed", request.dataset), error.may_pass(), error)
        };
        Ok(Box::new(follower.map_err(failed)?))
    }

    fn has_standby(&self, to: &Path) -> bool {
        super::has_standby(to)
    }
}
