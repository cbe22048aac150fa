//! Dumps of a PostgreSQL server: what `pg_dump` and `pg_dumpall` write, for other versions and other providers.
//!
//! ```text
//!   globals.sql            roles and tablespaces            databases/NAME.dump    one database, as of one moment of its own
//!   README.txt             by which commands it is loaded
//! ```
//!
//! What the programs write goes into the vault as it comes; the disk sees nothing of it. It is not compressed by them, so that the vault finds
//! what it has. Invariant: all of it is in the recovery point, or there is none; what a role may not read is an error, but for passwords of
//! roles, and their lack is said.

use std::io::{self, Read};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_engine::port::{
    Cancel, NamedVault, PointRequest, PointTaken, PortError, Source, StreamRequest, Streaming,
};
use lifeboat_vault::files::{AuthorError, Event, Kind, Metadata, Node, Progress, TreeSummary, TreeWriter};
use lifeboat_vault::{ChunkSink, SessionOptions, SnapshotDraft, VaultError};

use super::{plain_name, port_error};
use crate::postgres::door::{Door, DoorError};
use crate::postgres::error::SessionError;
use crate::postgres::output::{OutputError, Running};
use crate::postgres::programs::{Programs, ProgramsError};
use crate::postgres::session::{Purpose, Session};

const CALLS_ITSELF: &str = "lifeboat-dump";

/// Which server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// That runs in a data directory of this host.
    Directory(PathBuf),
    /// That a service of libpq's leads to.
    Service(String),
}

/// A server to be dumped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresDump {
    pub server: Server,
    /// Empty: all that allow connections.
    pub databases: Vec<String>,
    /// How long a lock is waited for that somebody else holds.
    pub lock_wait: Duration,
}

#[derive(Debug, thiserror::Error)]
enum DumpError {
    #[error(transparent)]
    Door(#[from] DoorError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Programs(#[from] ProgramsError),
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error(transparent)]
    Author(#[from] AuthorError),
    #[error("{what} was not dumped{advice}")]
    Output {
        what: String,
        advice: &'static str,
        #[source]
        source: OutputError,
    },
    #[error("the server has no database `{name}` that allows connections; it has: {has}")]
    NoDatabase { name: String, has: String },
    #[error("the server says a moment that cannot be understood ({said:?})")]
    Moment { said: String },
    #[error("threads cannot be made")]
    Threads(#[source] io::Error),
}

impl DumpError {
    fn may_pass(&self) -> bool {
        match self {
            DumpError::Session(error) => error.may_pass(),
            DumpError::Vault(error) => error.may_pass(),
            DumpError::Author(_) | DumpError::Output { .. } | DumpError::Threads(_) => true,
            DumpError::Door(_) | DumpError::Programs(_) => false,
            DumpError::NoDatabase { .. } | DumpError::Moment { .. } => false,
        }
    }

    /// What to do about it, where the server's words are known. (It may speak another language.)
    fn output(what: String, source: OutputError) -> DumpError {
        const KNOWN: [(&str, &str); 6] = [
            (
                "conflict with recovery",
                ": the standby took back what the dump still read. Let its replay wait longer (`max_standby_streaming_delay` there), \
                 or have the primary keep it (`hot_standby_feedback = on` there)",
            ),
            (
                "statement timeout",
                ": somebody else holds a lock (`pg_locks` says who). Run it again later, or wait longer (`lock-wait` in a plan)",
            ),
            (
                "row-level security",
                ": rows are hidden from this role. Let it see all of them (`alter role … bypassrls`)",
            ),
            (
                "permission denied",
                ": this role may not read all of it. Let it (`grant pg_read_all_data to …`; large objects only their owners or a \
                 superuser may read)",
            ),
            ("closed the connection", ": the server went away. See that it runs, then run it again"),
            ("terminating connection", ": the server went away. See that it runs, then run it again"),
        ];
        let said = source.to_string();
        let advice = KNOWN.iter().find(|(words, _)| said.contains(words)).map_or("", |(_, advice)| advice);
        DumpError::Output { what, advice, source }
    }
}

/// What the server says of itself before it is dumped.
struct Seen {
    version: u32,
    version_text: String,
    user: String,
    is_standby: bool,
    /// Everything committed by then is in each dump.
    as_of: Timestamp,
    may_read_passwords: bool,
    databases: Vec<String>,
}

impl PostgresDump {
    fn door(&self) -> Result<Door, DoorError> {
        match &self.server {
            Server::Service(service) => Door::service(service, &|name| std::env::var(name).ok()),
            Server::Directory(path) => Door::running_in(path),
        }
    }

    fn take(
        &self,
        vault: &NamedVault,
        request: &PointRequest,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<PointTaken, DumpError> {
        let began = Instant::now();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(DumpError::Threads)?;
        let door = self.door()?;
        let seen = runtime.block_on(look(&door, &self.databases))?;
        let programs = runtime.block_on(Programs::of_server(seen.version, &["pg_dump", "pg_dumpall"]))?;
        let session = vault.vault.begin(&request.dataset, SessionOptions::default())?;
        let writing = Writing { dump: self, door: &door, programs: &programs, seen: &seen, progress, cancel };
        let summary = writing.all(&session)?;
        let mut notes = Vec::new();
        if !seen.may_read_passwords {
            notes.push(format!(
                "the roles' passwords are not in it: `{}` may not read them (a superuser may, and who was granted pg_read_all_data); set them anew \
                 after loading",
                seen.user
            ));
        }
        let release = request.release.clone().or_else(|| Some(format!("dump of PostgreSQL {}", seen.version_text)));
        let point = session.commit(SnapshotDraft {
            notes: notes.clone(),
            release,
            final_mark: request.final_mark,
            epoch: request.epoch,
            ..summary.draft(seen.as_of)
        })?;
        Ok(PointTaken {
            vault: vault.name.clone(),
            bytes_new: point.bytes_new,
            bytes_stored: point.bytes_stored,
            point,
            files: summary.files,
            bytes: summary.bytes,
            seconds: began.elapsed().as_secs_f64(),
            skipped: Vec::new(),
            notes,
        })
    }
}

async fn look(door: &Door, wanted: &[String]) -> Result<Seen, DumpError> {
    // What was committed before it is asked is in what is dumped afterwards.
    let now = Timestamp::now();
    let mut session = Session::open(door, Purpose::Queries, CALLS_ITSELF).await?;
    let row = session
        .query_one(
            "select current_setting('server_version'), current_user::text, pg_catalog.pg_is_in_recovery(), \
             pg_catalog.has_table_privilege('pg_catalog.pg_authid', 'select')",
        )
        .await?;
    let is_standby = row.get(2) == Some("t");
    let as_of = if is_standby { replayed_to(&mut session).await? } else { now };
    let rows = session.query("select datname from pg_catalog.pg_database where datallowconn order by datname").await?;
    let mut databases: Vec<String> = rows.iter().filter_map(|row| row.get(0).map(str::to_owned)).collect();
    if let Some(name) = wanted.iter().find(|name| !databases.contains(name)) {
        return Err(DumpError::NoDatabase { name: name.clone(), has: databases.join(", ") });
    }
    databases.retain(|name| wanted.is_empty() || wanted.contains(name));
    let text = |column: usize| row.get(column).unwrap_or_default().to_owned();
    let seen = Seen {
        version: session.server_version(),
        version_text: text(0),
        user: text(1),
        is_standby,
        as_of: as_of.min(now),
        may_read_passwords: row.get(3) == Some("t"),
        databases,
    };
    session.close().await;
    Ok(seen)
}

/// Up to when a standby has what its primary committed: the last commit that it replayed, or the checkpoint that it began with. It may have
/// more.
async fn replayed_to(session: &mut Session) -> Result<Timestamp, DumpError> {
    let row = session
        .query_one(
            "select (extract(epoch from greatest(pg_catalog.pg_last_xact_replay_timestamp(), \
             (select checkpoint_time from pg_catalog.pg_control_checkpoint()))) * 1000000)::bigint",
        )
        .await?;
    let said = row.get(0).unwrap_or_default();
    let moment = said.parse().ok().and_then(|microseconds| Timestamp::from_microsecond(microseconds).ok());
    moment.ok_or_else(|| DumpError::Moment { said: said.to_owned() })
}

/// One dump on its way into a vault.
struct Writing<'a> {
    dump: &'a PostgresDump,
    door: &'a Door,
    programs: &'a Programs,
    seen: &'a Seen,
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
}

impl Writing<'_> {
    fn all(&self, sink: &dyn ChunkSink) -> Result<TreeSummary, DumpError> {
        let mut writer = TreeWriter::new(sink, Some(metadata(0o700)));
        let readme = readme(self.seen);
        let spans = writer.content(&mut readme.as_bytes())?;
        add(&mut writer, "README.txt", readme.len() as u64, spans)?;
        let mut arguments = vec!["--globals-only".to_owned(), "--database".to_owned(), conninfo(self.door.database())];
        if !self.seen.may_read_passwords {
            arguments.push("--no-role-passwords".to_owned());
        }
        let what = "what all databases share (roles, tablespaces)".to_owned();
        self.one(&mut writer, "globals.sql", ("pg_dumpall", arguments), what)?;
        writer.enter(b"databases", Some(metadata(0o700)))?;
        for database in &self.seen.databases {
            let arguments = vec![
                "--format=custom".to_owned(),
                "--compress=0".to_owned(),
                "--dbname".to_owned(),
                conninfo(database),
            ];
            let what = format!("the database `{database}`");
            self.one(&mut writer, &file_of(database), ("pg_dump", arguments), what)?;
        }
        writer.leave()?;
        let source = match &self.dump.server {
            Server::Directory(path) => path.clone(),
            Server::Service(_) => PathBuf::from(format!("{}:{}", self.door.host(), self.door.port())),
        };
        Ok(writer.finish(vec![std::os::unix::ffi::OsStringExt::into_vec(source.into_os_string())])?)
    }

    /// What one program writes, as a file.
    fn one(
        &self,
        writer: &mut TreeWriter<'_>,
        file: &str,
        (program, mut arguments): (&str, Vec<String>),
        what: String,
    ) -> Result<(), DumpError> {
        // What is a name today may be a word of the language in the version that it is loaded into.
        arguments.extend(["--no-password", "--quote-all-identifiers"].map(str::to_owned));
        arguments.push(format!("--lock-wait-timeout={}", self.dump.lock_wait.as_millis().max(1)));
        let failed = |source| DumpError::output(what.clone(), source);
        let door = (self.door, CALLS_ITSELF);
        let mut running = Running::start(self.programs, program, arguments, door).map_err(failed)?;
        let stdout: Option<Box<dyn Read>> = running.stdout().map(|stdout| Box::new(stdout) as Box<dyn Read>);
        let mut output = Output {
            inner: stdout.unwrap_or_else(|| Box::new(io::empty())),
            bytes: 0,
            progress: self.progress,
            cancel: self.cancel,
        };
        let stored = writer.content(&mut output);
        if self.cancel.is_cancelled() {
            return Err(failed(OutputError::Cancelled));
        }
        let spans = stored?;
        running.end(self.cancel).map_err(failed)?;
        self.progress.report(&Event::Files(1));
        add(writer, file, output.bytes, spans)
    }
}

fn add(
    writer: &mut TreeWriter<'_>,
    name: &str,
    size: u64,
    spans: Vec<lifeboat_vault::files::Span>,
) -> Result<(), DumpError> {
    let kind = Kind::File { size, spans };
    Ok(writer.add(&Node { name: name.as_bytes().to_vec(), kind, metadata: Some(metadata(0o600)), link: None })?)
}

/// Whoever dumps owns what is dumped.
fn metadata(mode: u32) -> Metadata {
    Metadata {
        mode,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mtime_seconds: Timestamp::now().as_second(),
        ..Metadata::default()
    }
}

fn file_of(database: &str) -> String {
    format!("{}.dump", plain_name(database))
}

/// A database, in the words of libpq: a name may look like a URL or like settings.
fn conninfo(database: &str) -> String {
    format!("dbname='{}'", database.replace('\\', r"\\").replace('\'', r"\'"))
}

/// Tells how much was read, and ends when it is to be.
struct Output<'a> {
    inner: Box<dyn Read>,
    bytes: u64,
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
}

impl Read for Output<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("interrupted"));
        }
        let read = self.inner.read(buffer)?;
        self.bytes += read as u64;
        self.progress.report(&Event::Bytes(read as u64));
        Ok(read)
    }
}

/// These are in every cluster: nothing can be made by their names.
const EVERYWHERE: [&str; 2] = ["postgres", "template1"];

/// How it is loaded, for whoever has nothing but these files.
fn readme(seen: &Seen) -> String {
    let place = if seen.is_standby { "a standby" } else { "a primary" };
    let passwords = match seen.may_read_passwords {
        true => "",
        false => ", without the roles' passwords: set them anew",
    };
    let mut text = format!(
        "A dump of PostgreSQL {}, of {place}. Everything committed by {} is in it; each database is as of one moment of its own.\n\n\
         globals.sql: roles and tablespaces{passwords}\n",
        seen.version_text, seen.as_of
    );
    for database in &seen.databases {
        text.push_str(&format!("databases/{}: the database {database:?}\n", file_of(database)));
    }
    text.push_str(
        "\nIt is loaded into a server of that version or a newer one, by psql and pg_restore of the server's own version. Roles that are \
         there already are complained about, and left as they are.\n\n    psql -X -f globals.sql postgres\n",
    );
    for database in &seen.databases {
        let file = file_of(database);
        text.push_str(&match EVERYWHERE.contains(&database.as_str()) {
            true => format!("    pg_restore --dbname={database} databases/{file}\n"),
            false => format!("    pg_restore --create --dbname=postgres databases/{file}\n"),
        });
    }
    text.push_str(
        "\nWhere roles, rights or tablespaces are given by somebody else, as with most providers, leave globals.sql out and add\n--no-owner --no-privileges --no-tablespaces. `--jobs=4` loads faster.\n",
    );
    text
}

impl Source for PostgresDump {
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

    fn stream(&self, _vaults: &[NamedVault], _request: &StreamRequest) -> Result<Streaming, PortError> {
        Ok(Streaming::PointsOnly { why: "a dump has no log to stream".to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_of_a_database_is_one_database_and_one_file() {
        assert_eq!(conninfo("shop"), "dbname='shop'");
        assert_eq!(conninfo(r"it's a \ = b"), r"dbname='it\'s a \\ = b'");
        assert_eq!(file_of("shop_2-b"), "shop_2-b.dump");
        assert_eq!(file_of("../a b.dump"), "%2e%2e%2fa%20b%2edump.dump");
        assert!(file_of(&"é".repeat(31)).len() < 255);
    }

    #[test]
    fn what_a_server_is_known_to_say_comes_with_what_to_do() {
        let said = |complaint: &str| {
            let source = OutputError::Ended {
                program: "pg_dump".to_owned(),
                status: "exit status: 1".to_owned(),
                complaint: complaint.to_owned(),
            };
            DumpError::output("the database `shop`".to_owned(), source).to_string()
        };
        let conflict = said("pg_dump: detail: ERROR:  canceling statement due to conflict with recovery");
        assert!(conflict.contains("max_standby_streaming_delay") && conflict.contains("hot_standby_feedback"));
        assert!(said("ERROR:  canceling statement due to statement timeout").contains("`lock-wait`"));
        assert!(said("ERROR:  permission denied for table t").contains("pg_read_all_data"));
        assert_eq!(said("something else"), "the database `shop` was not dumped");
    }
}
