//! A private server over a data directory: to see whether a restore is good, and to look into it.
//!
//! Nobody but this process (and root) reaches it, and it reaches nobody: it listens on a Unix socket in a directory of mode 0700, and what the
//! restored configuration says of archives, primaries, libraries and addresses is not believed. (`postgresql.auto.conf` in the data directory
//! is read by every server, so each such setting is given on the command line, which goes before it.) Invariant: when this is dropped, the
//! server is gone.

use std::fs::{File, Permissions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

use super::control::{Control, ControlError};
use super::door::Door;
use super::error::SessionError;
use super::programs::Programs;
use super::session::{Purpose, Session};

/// How a private server is started.
#[derive(Debug, Clone)]
pub(crate) struct Start {
    /// A role of the restored cluster; anyone may be anyone there.
    pub(crate) user: String,
    /// What is to be recovered and how, and whatever else is not to be as it is here; goes before everything else.
    pub(crate) settings: Vec<(String, String)>,
    /// Until it accepts connections: that is when it has recovered to where it is consistent.
    pub(crate) within: Duration,
}

impl Default for Start {
    fn default() -> Start {
        Start { user: "postgres".to_owned(), settings: Vec::new(), within: Duration::from_secs(600) }
    }
}

/// What can be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Awaited {
    /// It answers questions.
    Answers,
    /// Its recovery has reached its target and waits there.
    Paused,
    /// It is a primary.
    Writable,
    /// It has ended by itself.
    Ended,
}

/// How a server is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Sessions are ended, everything is written down.
    Fast,
    /// At once, as in a crash.
    Immediate,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ServerError {
    #[error("a private server over {path} cannot be prepared: {what}")]
    Prepare {
        path: PathBuf,
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{path} belongs to root, as whom PostgreSQL does not run: give it to `postgres` (chown -R)")]
    OfRoot { path: PathBuf },
    #[error("the server over {path} ended by itself ({status}); it said last:\n{log}")]
    Ended { path: PathBuf, status: ExitStatus, log: String },
    #[error("the server over {path} did not reach what was waited for ({awaited:?}) within {} s; it said last:\n{log}", within.as_secs_f64())]
    Late { path: PathBuf, awaited: Awaited, within: Duration, log: String },
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// A server of our own.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    data_directory: PathBuf,
    /// What the source was set to when it was started.
    of_control: Vec<(&'static str, String)>,
    door: Door,
    /// Socket, configuration and log. Goes when the server has gone.
    private: TempDir,
}

const PORT: u16 = 5432;
/// Nothing on a system in use depends on how soon a restore's state is noticed.
const LOOK_EVERY: Duration = Duration::from_millis(20);
const LOG_BYTES_SHOWN: u64 = 4096;
/// An immediate stop is a matter of its children's ends; after that it is killed.
const DROP_PATIENCE: Duration = Duration::from_secs(5);
/// A path longer than this makes no Unix socket.
const SOCKET_DIRECTORY_BYTES_MAX: usize = 80;

/// What a restored configuration is not believed about.
const OVERRIDDEN: &[(&str, &str)] = &[
    ("listen_addresses", ""),
    ("unix_socket_group", ""),
    ("unix_socket_permissions", "0700"),
    ("ssl", "off"),
    // To whom it sends, from whom it takes.
    ("archive_mode", "off"),
    ("restore_command", ""),
    ("archive_cleanup_command", ""),
    ("recovery_end_command", ""),
    ("primary_conninfo", ""),
    ("primary_slot_name", ""),
    ("synchronous_standby_names", ""),
    ("recovery_target", ""),
    ("recovery_target_lsn", ""),
    ("recovery_target_name", ""),
    ("recovery_target_time", ""),
    ("recovery_target_xid", ""),
    ("recovery_target_action", "pause"),
    ("recovery_target_inclusive", "on"),
    ("recovery_target_timeline", "latest"),
    ("recovery_min_apply_delay", "0"),
    // Code that may not be here, or wants to do work of its own.
    ("shared_preload_libraries", ""),
    ("session_preload_libraries", ""),
    ("local_preload_libraries", ""),
    // Its words belong to us, in a language that is read here.
    ("logging_collector", "off"),
    ("log_destination", "stderr"),
    ("lc_messages", "C"),
    // The old machine's memory.
    ("shared_buffers", "128MB"),
    ("huge_pages", "off"),
    // What a killed one shares lies in its directory, where the next start takes it away.
    ("dynamic_shared_memory_type", "mmap"),
    ("hot_standby", "on"),
    ("restart_after_crash", "off"),
];

impl Server {
    /// Starts it, and waits until it answers.
    pub(crate) async fn start(
        programs: &Programs,
        data_directory: &Path,
        start: &Start,
    ) -> Result<Server, ServerError> {
        let mut control = Control::read(programs, data_directory).await?;
        loop {
            let mut server = Server::spawn(programs, data_directory, start, &control)?;
            let Err(error) = server.wait_for(Awaited::Answers, start.within).await else { return Ok(server) };
            // The log says what the source was set to later on; a server that was started with less ends there, and has noted it.
            let now = Control::read(programs, data_directory).await?;
            if !matches!(error, ServerError::Ended { .. }) || now.settings == control.settings {
                return Err(error);
            }
            control = now;
        }
    }

    /// Whether the source was, where the log has come to, set to more than this server was started with. Then it waits for ever.
    pub(crate) async fn is_outgrown(&self, programs: &Programs) -> Result<bool, ServerError> {
        Ok(Control::read(programs, &self.data_directory).await?.settings != self.of_control)
    }

    /// An error if it has ended.
    pub(crate) fn check(&mut self) -> Result<(), ServerError> {
        match self.ended()? {
            Some(status) => Err(ServerError::Ended { path: self.data_directory.clone(), status, log: self.log() }),
            None => Ok(()),
        }
    }

    fn spawn(programs: &Programs, data: &Path, start: &Start, control: &Control) -> Result<Server, ServerError> {
        let failed = |what| move |source| ServerError::Prepare { path: data.to_owned(), what, source };
        let owner = std::fs::metadata(data).map_err(failed("it cannot be looked at"))?;
        if owner.uid() == 0 {
            return Err(ServerError::OfRoot { path: data.to_owned() });
        }
        let private = private_directory(&owner).map_err(failed("no private directory can be made"))?;
        let log = File::create(private.path().join("log")).map_err(failed("no log can be made"))?;
        let mut command = Command::new(programs.program("postgres"));
        command.arg("-D").arg(data).current_dir(data);
        let mut set = |name: &str, value: &str| {
            command.arg("-c").arg(format!("{name}={value}"));
        };
        for (setting, file) in [("config_file", "server.conf"), ("hba_file", "hba.conf"), ("ident_file", "ident.conf")]
        {
            set(setting, &private.path().join(file).display().to_string());
        }
        set("unix_socket_directories", &private.path().display().to_string());
        set("port", &PORT.to_string());
        let of_control = control.settings.iter().map(|(name, value)| (*name, value.as_str()));
        for (name, value) in OVERRIDDEN.iter().copied().chain(of_control) {
            // Of recovery's targets only one may ever be set.
            if !start.settings.iter().any(|(given, _)| given == name) {
                set(name, value);
            }
        }
        for (name, value) in &start.settings {
            set(name, value);
        }
        let output = log.try_clone().map_err(failed("no log can be made"))?;
        command.stdin(Stdio::null()).stdout(output).stderr(log).process_group(0);
        for variable in Door::variables().chain(["PGDATA"]) {
            command.env_remove(variable);
        }
        if geteuid().is_root() {
            command.uid(owner.uid()).gid(owner.gid());
        }
        let child = command.spawn().map_err(failed(
            "`postgres` cannot be run there; its owner must be able to enter each directory above it",
        ))?;
        let door = Door::through_socket(private.path(), PORT, &start.user, "postgres");
        let of_control = control.settings.clone();
        Ok(Server { child, data_directory: data.to_owned(), of_control, door, private })
    }

    /// The way in.
    pub(crate) fn door(&self) -> &Door {
        &self.door
    }

    /// Waits until it is as wanted, or has ended.
    pub(crate) async fn wait_for(&mut self, awaited: Awaited, within: Duration) -> Result<(), ServerError> {
        let deadline = Instant::now() + within;
        let mut session = None;
        loop {
            if let Some(status) = self.ended()? {
                return match awaited {
                    Awaited::Ended => Ok(()),
                    _ => Err(ServerError::Ended { path: self.data_directory.clone(), status, log: self.log() }),
                };
            }
            if awaited != Awaited::Ended && self.is(awaited, &mut session).await? {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let (path, log) = (self.data_directory.clone(), self.log());
                return Err(ServerError::Late { path, awaited, within, log });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>, ServerError> {
        let path = &self.data_directory;
        self.child.try_wait().map_err(|source| ServerError::Prepare {
            path: path.clone(),
            what: "its process cannot be waited for",
            source,
        })
    }

    async fn is(&self, awaited: Awaited, session: &mut Option<Session>) -> Result<bool, ServerError> {
        let open = match session {
            Some(open) => open,
            None => match Session::open(&self.door, Purpose::Queries, "lifeboat").await {
                Ok(opened) => session.insert(opened),
                // It is starting, or just ending: that is seen at its process.
                Err(error) if error.may_pass() => return Ok(false),
                Err(error) => return Err(error.into()),
            },
        };
        let sql = match awaited {
            Awaited::Answers | Awaited::Ended => return Ok(true),
            Awaited::Writable => "select not pg_catalog.pg_is_in_recovery()",
            // Whether it was asked to pause is all that older ones tell; the target's end asks for it when it is reached.
            Awaited::Paused if open.server_version() < 140_000 => {
                "select case when pg_catalog.pg_is_in_recovery() then pg_catalog.pg_is_wal_replay_paused() end"
            }
            Awaited::Paused => {
                "select case when pg_catalog.pg_is_in_recovery() \
                 then pg_catalog.pg_get_wal_replay_pause_state() = 'paused' end"
            }
        };
        match open.query_one(sql).await {
            Ok(row) => Ok(row.get(0) == Some("t")),
            Err(error) if error.may_pass() || error.sqlstate() == Some("55000") => {
                *session = None;
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The last lines of its log.
    pub(crate) fn log(&self) -> String {
        let tail = || -> io::Result<String> {
            let mut file = File::open(self.private.path().join("log"))?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES_SHOWN)))?;
            let mut bytes = Vec::new();
            file.take(LOG_BYTES_SHOWN).read_to_end(&mut bytes)?;
            let text = String::from_utf8_lossy(&bytes).into_owned();
            // The first line of a part is no whole one.
            let from = if length > LOG_BYTES_SHOWN { text.find('\n').map_or(0, |end| end + 1) } else { 0 };
            Ok(text[from..].trim_end().to_owned())
        };
        tail().unwrap_or_else(|error| format!("(its log cannot be read: {error})"))
    }

    /// Stops it, and waits for its end.
    pub(crate) async fn stop(mut self, how: Stop, within: Duration) -> Result<(), ServerError> {
        self.signal(how);
        self.wait_for(Awaited::Ended, within).await
    }

    fn signal(&self, how: Stop) {
        let signal = if how == Stop::Fast { Signal::INT } else { Signal::QUIT };
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // Who has ended already needs no signal; a child that was not waited for keeps its number.
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // Killed itself, it would leave children behind that live until they notice.
        self.signal(Stop::Immediate);
        let deadline = Instant::now() + DROP_PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(LOOK_EVERY / 4);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ends the private server of a process that was killed, in a directory that is nobody else's. False: something is still at work there.
pub(crate) fn end_left_behind(data: &Path) -> bool {
    let pid = || {
        let lock = std::fs::read_to_string(data.join("postmaster.pid")).ok()?;
        lock.lines().next()?.trim().parse::<i32>().ok().and_then(Pid::from_raw)
    };
    // A number that is another process's by now is not sent anything: a server works in its data directory.
    let is_at_work = |pid: &Pid| {
        let place = std::fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero()));
        place.is_ok_and(|place| data.canonicalize().is_ok_and(|data| data == place))
    };
    let Some(pid) = pid().filter(is_at_work) else { return true };
    let deadline = Instant::now() + DROP_PATIENCE;
    for signal in [Signal::CONT, Signal::QUIT] {
        let _ = kill_process(pid, signal);
    }
    while is_at_work(&pid) && Instant::now() < deadline {
        std::thread::sleep(LOOK_EVERY / 4);
    }
    !is_at_work(&pid)
}

/// A directory that only the server's user may enter, with a short name.
pub(crate) fn private_directory(owner: &std::fs::Metadata) -> io::Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("lifeboat-postgres-").permissions(Permissions::from_mode(0o700));
    let usual = std::env::temp_dir();
    let short = usual.as_os_str().len() <= SOCKET_DIRECTORY_BYTES_MAX - 32;
    let directory = if short { builder.tempdir_in(usual)? } else { builder.tempdir_in("/tmp")? };
    std::fs::write(directory.path().join("server.conf"), "# What this server is set to stands on its command line.\n")?;
    std::fs::write(directory.path().join("hba.conf"), "local all all trust\nlocal replication all trust\n")?;
    std::fs::write(directory.path().join("ident.conf"), "")?;
    if geteuid().is_root() {
        for name in ["", "server.conf", "hba.conf", "ident.conf"] {
            std::os::unix::fs::chown(directory.path().join(name), Some(owner.uid()), Some(owner.gid()))?;
        }
    }
    Ok(directory)
}
