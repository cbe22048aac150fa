//! Which database the demo's service writes to: a file of SQLite's, or a PostgreSQL server of each site's own.
//!
//! Invariant: the server is started by the plan, as any component is; only its empty data directory is made before.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use lifeboat_adapters::source::PostgresSource;

use crate::error::{CommandError, Explain};

/// Where the servers listen, each at its site's address.
pub(super) const PORT: u16 = 5439;
/// PostgreSQL does not run as root; Debian's package makes this user.
const USER: &str = "postgres";

/// Whose the server's files are, and what its first role is called: whoever comes through the data directory comes as its owner.
fn owner() -> Result<String, CommandError> {
    if rustix::process::geteuid().is_root() {
        return Ok(USER.to_owned());
    }
    let output = Command::new("id").arg("-un").output().saying(|| "id cannot be run".to_owned())?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

pub(super) enum Database {
    Sqlite,
    Postgres {
        /// The directory of its programs.
        programs: PathBuf,
        owner: String,
    },
}

impl Database {
    pub(super) fn chosen(postgres: bool) -> Result<Database, CommandError> {
        if !postgres {
            return Ok(Database::Sqlite);
        }
        let programs = PostgresSource::installed().ok_or_else(|| {
            CommandError::usage("no PostgreSQL server is installed on this machine")
                .hint("install one (Debian: apt-get install postgresql), or leave --postgres away")
        })?;
        Ok(Database::Postgres { programs, owner: owner()? })
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Database::Sqlite => "SQLite",
            Database::Postgres { .. } => "PostgreSQL",
        }
    }

    /// Ports that must be free at each site's address.
    pub(super) fn ports(&self) -> Vec<u16> {
        match self {
            Database::Sqlite => Vec::new(),
            Database::Postgres { .. } => vec![PORT],
        }
    }

    /// What the service is told of its database, as a TOML string.
    pub(super) fn url(&self) -> String {
        match self {
            Database::Sqlite => "\"{{ dataset.entries.path }}\"".to_owned(),
            Database::Postgres { owner, .. } => {
                format!("\"postgres://{owner}@{{{{ component.db.address }}}}:{PORT}/postgres\"")
            }
        }
    }

    /// By which services of libpq's the servers of both sites are reached, as `pg_service.conf` says it; none for a file.
    pub(super) fn services(&self, sites: [(&str, Ipv4Addr); 2]) -> Option<String> {
        let Database::Postgres { owner, .. } = self else { return None };
        let section = |(site, address): (&str, Ipv4Addr)| {
            format!("[{}]\nhost={address}\nport={PORT}\nuser={owner}\ndbname=postgres\n", service_at(site))
        };
        Some(sites.map(section).join("\n"))
    }

    /// The data set's part of the plan, and for a server the component's whose it is; `standby`: where it is and whom it follows.
    pub(super) fn plan(&self, service: &str, standby: Option<[&str; 2]>) -> String {
        let protect = r#"protect = [{ to = "main", base = { every = "1h", keep = { last = 24 } }, log = "stream" }]"#;
        match self {
            Database::Sqlite => format!(
                r#"
[service.{service}.component.app.dataset.entries]
kind = "persistent"
sqlite = {{ path = "entries/logbook.db" }}
{protect}
"#
            ),
            Database::Postgres { programs, .. } => {
                let quoted = |text: &str| serde_json::to_string(text).unwrap_or_default();
                let mut command = as_its_user();
                command.push(programs.join("postgres").display().to_string());
                for setting in [
                    "listen_addresses={{ instance.address }}",
                    "port={{ instance.port }}",
                    // The path of a drill's volume is longer than a socket's may be.
                    "unix_socket_directories=",
                    // A server that is killed leaves nothing behind.
                    "dynamic_shared_memory_type=mmap",
                ] {
                    command.extend(["-c".to_owned(), setting.to_owned()]);
                }
                command.extend(["-D".to_owned(), "{{ dataset.entries.path }}".to_owned()]);
                let command: Vec<String> = command.iter().map(|word| quoted(word)).collect();
                let replica = standby.map_or_else(String::new, |[away, home]| {
                    let via = [home, away].map(|site| format!("{site} = {}", quoted(&service_at(site))));
                    format!("replica = {{ at = {}, via = {{ {} }} }}\n", quoted(away), via.join(", "))
                });
                let ready = quoted(&programs.join("pg_isready").display().to_string());
                format!(
                    r#"
[service.{service}.component.db]
role = "database"
launch = {{ command = [{command}], stop-signal = "int" }}
port = {PORT}
health = {{ command = [{ready}, "-q", "-h", "{{{{ instance.address }}}}", "-p", "{{{{ instance.port }}}}"], within = "20s", every = "200ms" }}

[service.{service}.component.db.dataset.entries]
kind = "persistent"
postgres = {{ path = "entries" }}
{protect}
{replica}"#,
                    command = command.join(", "),
                )
            }
        }
    }

    /// What the service starts after.
    pub(super) fn after(&self) -> &'static str {
        match self {
            Database::Sqlite => "",
            Database::Postgres { .. } => "after = [\"db\"]\n",
        }
    }

    /// Makes an empty database where the service begins: everyone who reaches it is let in.
    pub(super) fn make(&self, volumes: &Path) -> Result<(), CommandError> {
        let Database::Postgres { programs, owner } = self else { return Ok(()) };
        let place = volumes.join("entries");
        std::fs::create_dir_all(&place).saying(|| format!("{} cannot be made", place.display()))?;
        if rustix::process::geteuid().is_root() {
            run(
                Command::new("chown").arg(format!("{owner}:")).arg(&place),
                "the user of Debian's package postgresql is needed",
            )?;
        }
        let mut words = as_its_user();
        words.push(programs.join("initdb").display().to_string());
        let (program, arguments) = words.split_first().ok_or_else(|| CommandError::failed("no program to run"))?;
        let mut command = Command::new(program);
        command.args(arguments).args(["--username", owner, "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"]);
        command.args(["--data-checksums", "--no-sync", "-D"]).arg(&place).current_dir("/");
        run(&mut command, "PostgreSQL's initdb makes the demo's empty database")
    }

    /// Whether directories have to be passable for another user.
    pub(super) fn has_a_user_of_its_own(&self) -> bool {
        matches!(self, Database::Postgres { .. }) && rustix::process::geteuid().is_root()
    }
}

/// By which service of libpq's a site's server is reached.
fn service_at(site: &str) -> String {
    format!("entries-{site}")
}

/// What goes before a program of PostgreSQL's.
fn as_its_user() -> Vec<String> {
    let words: &[&str] = match rustix::process::geteuid().is_root() {
        true => &["setpriv", "--reuid", USER, "--regid", USER, "--clear-groups", "--"],
        false => &[],
    };
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn run(command: &mut Command, why: &str) -> Result<(), CommandError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().saying(|| format!("{program} cannot be run"))?;
    if output.status.success() {
        return Ok(());
    }
    let mut error = CommandError::failed(format!("{program} failed ({}): {why}", output.status));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    error.causes.extend(said.lines().rev().take(4).map(str::to_owned).collect::<Vec<_>>().into_iter().rev());
    Err(error)
}
