//! Real PostgreSQL clusters for tests: made, started, stopped, killed; gone when dropped.
//!
//! PostgreSQL does not run as root: its programs run as `postgres` then, over data in memory. Needs a `ports` beside it (`tests/it/ports.rs`).
//! Invariant: a cluster's processes and files are gone when it is dropped, after a panic, too; and when the test process is killed, a watchdog
//! that holds on to its stdin does it.

use std::collections::HashMap;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use super::ports::free_port;

/// The newest that is installed.
pub(crate) static MAJOR: LazyLock<u32> = LazyLock::new(|| {
    let installed = std::fs::read_dir("/usr/lib/postgresql").expect("the package postgresql is installed");
    installed.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok()).max().unwrap()
});
/// Until a server that was told to do something has done it. Far more than that takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A directory in memory that belongs to who runs PostgreSQL, and the process that removes it.
#[derive(Debug)]
pub(crate) struct Place {
    path: PathBuf,
    watchdog: Child,
}

impl Place {
    pub(crate) fn new() -> Place {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!("/dev/shm/lifeboat-pg-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        if let Some((user, group)) = postgres_user() {
            std::os::unix::fs::chown(&path, Some(user), Some(group)).unwrap();
        }
        // The number of a server that is gone may be another process's by now.
        let script = "trap '' INT HUP; cat > /dev/null; pid=$(head -n 1 \"$0/data/postmaster.pid\"); \
                      of_it() { [ \"$(readlink \"/proc/$pid/cwd\")\" = \"$0/data\" ]; }; \
                      if of_it; then kill -CONT \"$pid\"; kill -QUIT \"$pid\"; while of_it; do sleep 0.05; done; fi; \
                      for try in 1 2 3 4 5 6 7 8 9; do rm -rf \"$0\" && break; sleep 0.1; done";
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(&path).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let watchdog = command.process_group(0).spawn().unwrap();
        Place { path, watchdog }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        let _ = self.watchdog.wait();
    }
}

/// Whom to run PostgreSQL's programs as, if not as ourselves.
fn postgres_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let line =
        users.lines().find_map(|line| line.strip_prefix("postgres:")).expect("the package postgresql makes a user");
    let ids: Vec<u32> = line.split(':').filter_map(|field| field.parse().ok()).collect();
    Some((ids[0], ids[1]))
}

pub(crate) fn path_of(program: &str) -> PathBuf {
    PathBuf::from(format!("/usr/lib/postgresql/{}/bin/{program}", *MAJOR))
}

/// One of PostgreSQL's programs, as who may run it, with nothing of this process's settings.
pub(crate) fn program(name: &str) -> Command {
    let mut command = Command::new(path_of(name));
    for (variable, _) in std::env::vars().filter(|(variable, _)| variable.starts_with("PG")) {
        command.env_remove(variable);
    }
    command.env("LC_ALL", "C.UTF-8").env("HOME", "/nonexistent").current_dir("/").stdin(Stdio::null());
    if let Some((user, group)) = postgres_user() {
        command.uid(user).gid(group);
    }
    command
}

/// Runs it to its end, which must be a good one.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A cluster, running or not.
#[derive(Debug)]
pub(crate) struct Cluster {
    place: Place,
    port: u16,
    server: Option<Child>,
}

impl Cluster {
    /// A new one, not started: through a Unix socket and 127.0.0.1, everyone is let in. Those made alike share a system id.
    pub(crate) fn new() -> Cluster {
        Cluster::made_with(&["--data-checksums"])
    }

    /// With options of `initdb`.
    pub(crate) fn made_with(options: &[&str]) -> Cluster {
        static MADE: LazyLock<Mutex<HashMap<String, Place>>> = LazyLock::new(Mutex::default);
        let mut made = MADE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let template = made.entry(options.join(" ")).or_insert_with(|| {
            let place = Place::new();
            let usual = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-sync", "-D"];
            run(program("initdb").args(options).args(usual).arg(place.path().join("data")));
            place
        });
        let cluster = Cluster::empty();
        run(as_postgres("cp").arg("-a").arg(template.path().join("data")).arg(cluster.place.path()));
        drop(made);
        cluster.configure();
        cluster
    }

    fn empty() -> Cluster {
        Cluster { place: Place::new(), port: free_port(), server: None }
    }

    /// A streaming standby of this one, not started.
    pub(crate) fn standby(&self) -> Cluster {
        let standby = Cluster::empty();
        let mut copy = self.client("pg_basebackup");
        run(copy.args(["--checkpoint=fast", "--no-sync", "--write-recovery-conf", "-D"]).arg(standby.data()));
        standby.configure();
        standby
    }

    /// A data directory that came from elsewhere, with a port and a place of its own, started.
    #[allow(dead_code)] // The tests of sources restore some.
    pub(crate) fn adopted(data: &Path) -> Cluster {
        let mut adopted = Cluster::empty();
        run(as_postgres("mv").arg(data).arg(adopted.data()));
        adopted.configure();
        adopted.start();
        adopted
    }

    fn configure(&self) {
        self.set("port", &self.port.to_string());
        self.set("listen_addresses", "127.0.0.1");
        self.set("unix_socket_directories", &self.socket_directory().display().to_string());
        // Small, for there are many side by side.
        self.set("shared_buffers", "16MB");
        self.set("max_connections", "20");
        self.set("wal_level", "replica");
        // In its own directory, which goes with it, even if it was killed.
        self.set("dynamic_shared_memory_type", "mmap");
    }

    /// A setting, from the next start (or reload) on.
    pub(crate) fn set(&self, name: &str, value: &str) {
        let mut file = std::fs::OpenOptions::new().append(true).open(self.data().join("postgresql.conf")).unwrap();
        writeln!(file, "{name} = '{}'", value.replace('\'', "''")).unwrap();
    }

    /// The whole of `pg_hba.conf`.
    pub(crate) fn let_in(&self, rules: &str) {
        std::fs::write(self.data().join("pg_hba.conf"), rules).unwrap();
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.place.path().join("data")
    }

    /// Room for more files, removed with it.
    pub(crate) fn place(&self) -> &Path {
        self.place.path()
    }

    pub(crate) fn socket_directory(&self) -> &Path {
        self.place.path()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Starts it, and waits until it lets somebody in.
    pub(crate) fn start(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        let mut command = program("postgres");
        command.arg("-D").arg(self.data()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        self.server = Some(command.spawn().unwrap());
        self.wait_until("it is ready", |cluster| {
            let ended = cluster.server.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "the server ended ({ended:?}):\n{}", cluster.log());
            // A server that was killed leaves its own behind.
            let pid_file = std::fs::read_to_string(cluster.data().join("postmaster.pid")).unwrap_or_default();
            let lines: Vec<&str> = pid_file.lines().map(str::trim).collect();
            let its_own = lines.first().is_some_and(|pid| *pid == cluster.server.as_ref().unwrap().id().to_string());
            its_own && lines.get(7).is_some_and(|state| *state == "ready")
        });
    }

    pub(crate) fn started() -> Cluster {
        let mut cluster = Cluster::new();
        cluster.start();
        cluster
    }

    /// In good order.
    pub(crate) fn stop(&mut self) {
        self.end_by(rustix::process::Signal::INT);
    }

    /// As the power's failure would: not even the server learns of it. Returns when its children have noticed: before, no new one starts.
    pub(crate) fn kill(&mut self) {
        self.end_by(rustix::process::Signal::KILL);
        let data = self.data();
        self.wait_until("the server's children are gone", |_| {
            let processes = std::fs::read_dir("/proc").unwrap().flatten();
            !processes
                .into_iter()
                .any(|entry| std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == data))
        });
    }

    fn end_by(&mut self, signal: rustix::process::Signal) {
        if let Some(mut server) = self.server.take() {
            self.signal_child(&server, signal);
            server.wait().unwrap();
        }
    }

    fn signal_child(&self, child: &Child, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let _ = rustix::process::kill_process(pid, signal);
    }

    /// Sends the postmaster a signal, and leaves it at that.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        self.signal_child(self.server.as_ref().unwrap(), signal);
    }

    fn log_path(&self) -> PathBuf {
        self.place.path().join("log")
    }

    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// A client program with the way to this cluster in its environment.
    pub(crate) fn client(&self, name: &str) -> Command {
        let mut command = program(name);
        command.env("PGHOST", self.socket_directory()).env("PGPORT", self.port.to_string());
        command.env("PGUSER", "postgres").env("PGDATABASE", "postgres");
        command
    }

    /// What `psql` answers: values with `|` between, rows with newlines.
    pub(crate) fn psql(&self, sql: &str) -> String {
        run(self.client("psql").args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql]))
    }

    /// Looks until it is so.
    pub(crate) fn wait_until(&mut self, what: &str, mut is_so: impl FnMut(&mut Cluster) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "waited in vain until {what}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A program of the system, as who owns the clusters.
pub(crate) fn as_postgres(name: &str) -> Command {
    let mut command = Command::new(name);
    command.current_dir("/").stdin(Stdio::null());
    if let Some((user, group)) = postgres_user() {
        command.uid(user).gid(group);
    }
    command
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Its children go at once with it so; killed itself it would leave them to find out. One that a test has stopped goes on for it.
        if self.server.is_some() {
            self.signal(rustix::process::Signal::CONT);
        }
        self.end_by(rustix::process::Signal::QUIT);
    }
}
