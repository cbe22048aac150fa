//! A PostgreSQL cluster of a benchmark: made, copied, started, stopped, asked.
//!
//! Invariant: its server runs as the package's user where we are root, as PostgreSQL wants it; it is stopped when this is dropped.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::super::measure::Call;
use super::super::{make_directory, remove};

/// Its only listener is a socket in its own place, so any number will do.
pub(super) const PORT: &str = "54329";
const USER: &str = "postgres";
const READY_WITHIN: Duration = Duration::from_secs(600);
/// Until a server that begins has its `postmaster.pid`.
const BEGUN_WITHIN: Duration = Duration::from_secs(20);
/// As a server of 3 GB would be set, and no waiting for a disk that is not measured.
const SETTINGS: &str = "shared_buffers = '512MB'\nmax_wal_size = '8GB'\nfsync = off\nlisten_addresses = ''\n\
                        dynamic_shared_memory_type = 'mmap'\nlogging_collector = off\n";

/// The directory of the newest version's programs.
pub(super) fn programs() -> Result<PathBuf, String> {
    let listed =
        std::fs::read_dir("/usr/lib/postgresql").map_err(|error| format!("no PostgreSQL is there ({error})"))?;
    let mut majors: Vec<u32> = listed.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    majors.sort_unstable();
    let newest = majors.last().ok_or("no PostgreSQL is installed")?;
    Ok(PathBuf::from(format!("/usr/lib/postgresql/{newest}/bin")))
}

fn is_root() -> Result<bool, String> {
    Ok(Call::new(&["id", "-u"]).run()?.trim() == "0")
}

/// Words that run a program as who may run a server.
pub(super) fn as_its_user(words: &[&str]) -> Result<Call, String> {
    let mut all = match is_root()? {
        true => vec!["setpriv", "--reuid", USER, "--regid", USER, "--clear-groups", "--"],
        false => Vec::new(),
    };
    all.extend(words);
    Ok(Call::new(&all).inside(Path::new("/")))
}

/// A directory that the server's user may write into.
pub(super) fn directory_for_it(path: &Path) -> Result<(), String> {
    make_directory(path)?;
    if is_root()? {
        Call::new(&["chown", &format!("{USER}:"), &path.to_string_lossy()]).run()?;
    }
    Ok(())
}

pub(super) struct Cluster {
    pub(super) data: PathBuf,
    /// Where its socket and its log are.
    place: PathBuf,
    is_running: bool,
}

impl Cluster {
    /// An empty one, with a new password for nobody: whoever reaches its socket is let in.
    pub(super) fn make(place: &Path) -> Result<Cluster, String> {
        directory_for_it(place)?;
        let data = place.join("data");
        let text = data.to_string_lossy().into_owned();
        let initdb = programs()?.join("initdb").to_string_lossy().into_owned();
        as_its_user(&[&initdb, "-D", &text, "--data-checksums", "--no-sync", "--auth=trust", "--username=postgres"])?
            .run()?;
        let cluster = Cluster { data, place: place.to_owned(), is_running: false };
        cluster.set(SETTINGS)?;
        Ok(cluster)
    }

    /// One that lies there, not running.
    pub(super) fn at(data: &Path, place: &Path) -> Cluster {
        Cluster { data: data.to_owned(), place: place.to_owned(), is_running: false }
    }

    /// The same in another place.
    pub(super) fn copy(&self, place: &Path) -> Result<Cluster, String> {
        directory_for_it(place)?;
        let copy = Cluster::at(&place.join("data"), place);
        Call::new(&["cp", "-a", &self.data.to_string_lossy(), &copy.data.to_string_lossy()]).run()?;
        Ok(copy)
    }

    /// Further settings.
    pub(super) fn set(&self, lines: &str) -> Result<(), String> {
        use std::io::Write;
        let path = self.data.join("postgresql.conf");
        let file = std::fs::OpenOptions::new().append(true).open(&path);
        file.and_then(|mut file| writeln!(file, "{lines}"))
            .map_err(|error| format!("cannot write {} ({error})", path.display()))
    }

    /// Starts it, and waits until it takes writes.
    pub(super) fn start(&mut self) -> Result<(), String> {
        let place = self.place.to_string_lossy().into_owned();
        let (data, log) =
            (self.data.to_string_lossy().into_owned(), self.place.join("log").to_string_lossy().into_owned());
        let ctl = programs()?.join("pg_ctl").to_string_lossy().into_owned();
        let options = format!("-c port={PORT} -c unix_socket_directories={place}");
        as_its_user(&[&ctl, "-D", &data, "-l", &log, "-o", &options, "-W", "start"])?.run()?;
        self.is_running = true;
        let (began, mut was_there) = (Instant::now(), false);
        while self.ask("select not pg_is_in_recovery()").ok().as_deref() != Some("t") {
            let is_there = self.data.join("postmaster.pid").exists();
            was_there |= is_there;
            let ended = !is_there && (was_there || began.elapsed() > BEGUN_WITHIN);
            if ended || began.elapsed() > READY_WITHIN {
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(5).collect();
                return Err(format!("the server over {data} does not take writes: {}", last.join(" / ")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    pub(super) fn stop(&mut self) -> Result<(), String> {
        if std::mem::take(&mut self.is_running) {
            let ctl = programs()?.join("pg_ctl").to_string_lossy().into_owned();
            as_its_user(&[&ctl, "-D", &self.data.to_string_lossy(), "-m", "fast", "-w", "-t", "600", "stop"])?.run()?;
        }
        Ok(())
    }

    /// A client program of PostgreSQL's, with the way to this server.
    pub(super) fn client(&self, name: &str, words: &[&str]) -> Result<Call, String> {
        let program = programs()?.join(name).to_string_lossy().into_owned();
        let all: Vec<&str> = std::iter::once(program.as_str()).chain(words.iter().copied()).collect();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let environment = [
            pair("PGHOST", &self.place.to_string_lossy()),
            pair("PGPORT", PORT),
            pair("PGUSER", "postgres"),
            pair("PGDATABASE", "postgres"),
        ];
        Ok(Call::new(&all).with(&environment))
    }

    /// What it answers, values with `|` between.
    pub(super) fn ask(&self, sql: &str) -> Result<String, String> {
        Ok(self.client("psql", &["-XAtqc", sql])?.run()?.trim().to_owned())
    }

    pub(super) fn remove(mut self) -> Result<(), String> {
        self.stop()?;
        remove(&self.data)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.is_running {
            let pid = std::fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
            if let Some(pid) = pid.lines().next() {
                let _ = Command::new("kill").args(["-QUIT", pid]).stderr(Stdio::null()).status();
            }
        }
    }
}
