//! Where a server is and how to get in: a service of libpq's, or the server that runs in a data directory.
//!
//! The same answer as libpq would give, so that a way that `psql` goes is the way that is gone here; what cannot be done is refused by name
//! before anything is tried. Invariant: neither `Debug` nor `Display`, nor what child programs are started with, shows a password.

mod keys;
mod passfile;
mod postmaster;
mod service;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keys::{KEYS, Kind};
pub(super) use passfile::Looked;
pub(super) use service::read as read_small;

use super::session::Purpose;

/// What must not be shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(Vec<u8>);

impl Secret {
    pub(crate) fn new(bytes: Vec<u8>) -> Secret {
        Secret(bytes)
    }

    pub(crate) fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum DoorError {
    #[error("there is no service `{name}` in {}: write a section [{name}] there, or name another", listed(looked))]
    NoService { name: String, looked: Vec<PathBuf> },
    #[error("{path} cannot be read")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("line {line} of {path} {what}")]
    Line { path: PathBuf, line: usize, what: String },
    #[error("{place} is not {expected}")]
    Value { place: String, expected: &'static str },
    #[error("{place} asks for what lifeboat cannot do: {why}")]
    Unsupported { place: String, why: String },
    #[error("no server runs in {path}: {why}")]
    NotRunning { path: PathBuf, why: String },
    #[error("this process's user has no name in the system: say who to connect as (`user`, PGUSER)")]
    Nameless,
}

fn listed(paths: &[PathBuf]) -> String {
    let shown: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    if shown.is_empty() { "any file".to_owned() } else { shown.join(" or ") }
}

/// How much TLS is wanted, as libpq names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// Whose signature makes a server's certificate good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Root {
    /// Nobody said: the certificate is not looked at.
    Anyone,
    System,
    File(PathBuf),
}

/// Where a server is, and how to get in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Door {
    host: String,
    address: Option<String>,
    port: u16,
    user: String,
    database: String,
    password: Option<Secret>,
    password_from: &'static str,
    passfile: Option<PathBuf>,
    ssl_mode: SslMode,
    root: Root,
    /// Only logins that bind to the server's certificate.
    binding_required: bool,
    patience: Duration,
    application_name: Option<String>,
    options: Option<String>,
    service: Option<(String, PathBuf)>,
    /// Whom to be on this host on the way through a socket, if not who we are: user and group.
    comes_as: Option<(u32, u32)>,
}

/// Debian's; and what a password file calls `localhost`.
const SOCKET_DIRECTORY: &str = "/var/run/postgresql";
const SYSTEM_DIRECTORY: &str = "/etc/postgresql-common";
const PORT: u16 = 5432;
/// Who says nothing about it does not mean to wait for ever.
const PATIENCE: Duration = Duration::from_secs(20);

/// Reads the environment, and may be a test's own.
type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A setting's value, and what to call its place in an error.
struct Found {
    value: String,
    place: String,
    in_service: bool,
}

/// The settings of a service, then of the environment.
struct Settings<'a> {
    service: Vec<service::Setting>,
    file: Option<PathBuf>,
    env: Env<'a>,
}

impl Settings<'_> {
    fn get(&self, key: &str) -> Option<Found> {
        let in_service = self.service.iter().find(|(name, value, _)| *name == key && !value.is_empty());
        if let (Some((_, value, line)), Some(file)) = (in_service, &self.file) {
            let place = format!("`{key}` in line {line} of {}", file.display());
            return Some(Found { value: value.clone(), place, in_service: true });
        }
        let (_, variable, _) = KEYS.iter().find(|(name, _, _)| *name == key)?;
        let value = (self.env)(variable).filter(|value| !variable.is_empty() && !value.is_empty())?;
        Some(Found { value, place: (*variable).to_owned(), in_service: false })
    }

    fn text(&self, key: &str) -> Option<String> {
        self.get(key).map(|found| found.value)
    }

    /// Refuses what the environment asks for and cannot be done. (A service's lines were looked at when they were read.)
    fn check(&self) -> Result<(), DoorError> {
        for (key, _, kind) in KEYS {
            if let (Kind::Only(values, why), Some(found)) = (kind, self.get(key))
                && !values.contains(&found.value.as_str())
            {
                return Err(DoorError::Unsupported { place: found.place, why: (*why).to_owned() });
            }
        }
        Ok(())
    }

    fn parsed<T>(
        &self,
        key: &str,
        expected: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, DoorError> {
        let Some(found) = self.get(key) else { return Ok(None) };
        parse(found.value.trim()).map(Some).ok_or(DoorError::Value { place: found.place, expected })
    }
}

fn home(env: Env<'_>) -> Option<PathBuf> {
    env("HOME").filter(|home| !home.is_empty()).map(PathBuf::from).or_else(std::env::home_dir)
}

impl Door {
    /// The way that `pg_service.conf` calls `name`.
    pub(crate) fn service(name: &str, env: Env<'_>) -> Result<Door, DoorError> {
        let system = env("PGSYSCONFDIR").unwrap_or_else(|| SYSTEM_DIRECTORY.to_owned());
        let places = service::Places {
            named: env("PGSERVICEFILE").map(PathBuf::from),
            of_user: home(env).map(|home| home.join(".pg_service.conf")),
            of_system: Path::new(&system).join("pg_service.conf"),
        };
        let (settings, file) = service::find(name, &places)?;
        let settings = Settings { service: settings, file: Some(file.clone()), env };
        let mut door = Door::from_settings(&settings)?;
        door.service = Some((name.to_owned(), file));
        Ok(door)
    }

    /// The way to the server that runs in a data directory on this machine.
    pub(crate) fn running_in(data_directory: &Path) -> Result<Door, DoorError> {
        Door::running_in_with(data_directory, &|name| std::env::var(name).ok())
    }

    /// Whether a server may be at work in a data directory, whether or not there is a way to it.
    /// Whose the directory is, by name: mostly the superuser's as well.
    pub(crate) fn owner_of(data_directory: &Path) -> Option<String> {
        postmaster::owner_name(data_directory)
    }

    pub(crate) fn may_run_in(data_directory: &Path) -> bool {
        postmaster::may_run(data_directory)
    }

    fn running_in_with(data_directory: &Path, env: Env<'_>) -> Result<Door, DoorError> {
        let running = postmaster::look(data_directory)?;
        // Where it is, the directory says; who to be there, the environment may.
        let about_place = ["PGHOST", "PGHOSTADDR", "PGPORT"];
        let rest = |name: &str| if about_place.contains(&name) { None } else { env(name) };
        let mut door = Door::from_settings(&Settings { service: Vec::new(), file: None, env: &rest })?;
        door.host = running.host;
        door.port = running.port;
        if rest("PGUSER").is_none_or(|name| name.is_empty()) {
            door.user = postmaster::owner_name(data_directory).unwrap_or(door.user);
            // Where `peer` decides, as on Debian, root is nobody and the owner is the superuser.
            door.comes_as = postmaster::owner_to_become(data_directory);
        }
        if rest("PGDATABASE").is_none_or(|name| name.is_empty()) {
            // Each cluster begins with it; none has one named after whoever looks at it.
            door.database = "postgres".to_owned();
        }
        Ok(door)
    }

    /// The way through a Unix socket, asking nobody's environment.
    pub(crate) fn through_socket(directory: &Path, port: u16, user: &str, database: &str) -> Door {
        Door {
            host: directory.display().to_string(),
            address: None,
            port,
            user: user.to_owned(),
            database: database.to_owned(),
            password: None,
            password_from: "",
            passfile: None,
            ssl_mode: SslMode::Disable,
            root: Root::Anyone,
            binding_required: false,
            patience: PATIENCE,
            application_name: None,
            options: None,
            service: None,
            comes_as: None,
        }
    }

    fn from_settings(settings: &Settings<'_>) -> Result<Door, DoorError> {
        settings.check()?;
        for key in ["host", "hostaddr", "port"] {
            if let Some(found) = settings.get(key).filter(|found| found.value.contains(',')) {
                let why = "lifeboat talks to one server; name one".to_owned();
                return Err(DoorError::Unsupported { place: found.place, why });
            }
        }
        let address = settings.parsed("hostaddr", "an IP address", |text| text.parse::<std::net::IpAddr>().ok())?;
        let address = address.map(|address| address.to_string());
        let host = settings.text("host").or_else(|| address.clone()).unwrap_or_else(|| SOCKET_DIRECTORY.to_owned());
        let port = settings.parsed("port", "a port: a number from 1 to 65535", |text| {
            text.parse::<u16>().ok().filter(|port| *port > 0)
        })?;
        let user = match settings.text("user") {
            Some(user) => user,
            None => postmaster::user_name().ok_or(DoorError::Nameless)?,
        };
        let seconds = settings.parsed("connect_timeout", "a number of seconds", |text| text.parse::<i32>().ok())?;
        let binding = settings.parsed("channel_binding", "one of disable, prefer, require", |text| {
            ["disable", "prefer", "require"].contains(&text).then(|| text == "require")
        })?;
        let (ssl_mode, root) = tls(settings)?;
        let password = settings.get("password");
        let from_service = password.as_ref().is_some_and(|found| found.in_service);
        Ok(Door {
            host,
            address,
            port: port.unwrap_or(PORT),
            database: settings.text("dbname").unwrap_or_else(|| user.clone()),
            user,
            password_from: if from_service { "the service file" } else { "PGPASSWORD" },
            password: password.map(|found| Secret::new(found.value.into_bytes())),
            passfile: settings
                .text("passfile")
                .map(PathBuf::from)
                .or_else(|| home(settings.env).map(|home| home.join(".pgpass"))),
            ssl_mode,
            root,
            binding_required: binding.unwrap_or(false),
            // libpq's rule: nothing or less means for ever, and one means two.
            patience: match seconds {
                Some(seconds @ 1..) => Duration::from_secs(seconds.max(2).unsigned_abs().into()),
                _ => PATIENCE,
            },
            application_name: settings.text("application_name"),
            options: settings.text("options"),
            service: None,
            comes_as: None,
        })
    }

    pub(crate) fn user(&self) -> &str {
        &self.user
    }

    /// A name, an address, or the directory of a Unix socket.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn database(&self) -> &str {
        &self.database
    }

    /// The same way to another database of the server.
    pub(crate) fn with_database(&self, name: &str) -> Door {
        Door { database: name.to_owned(), ..self.clone() }
    }

    /// The Unix socket, if it is one. (`@` begins an abstract one, which is none of the file system's.)
    pub(super) fn socket(&self) -> Option<PathBuf> {
        let here = self.address.is_none() && self.host.starts_with('/');
        here.then(|| Path::new(&self.host).join(format!(".s.PGSQL.{}", self.port)))
    }

    /// What to look up, or connect to, for a server that is not behind a Unix socket.
    pub(super) fn address(&self) -> &str {
        self.address.as_deref().unwrap_or(&self.host)
    }

    /// Whom this host's root becomes to go through the socket: the server asks the system who comes.
    pub(crate) fn comes_as(&self) -> Option<(u32, u32)> {
        self.comes_as
    }

    pub(super) fn ssl_mode(&self) -> SslMode {
        self.ssl_mode
    }

    pub(super) fn root(&self) -> &Root {
        &self.root
    }

    pub(super) fn binding_required(&self) -> bool {
        self.binding_required
    }

    /// How long getting in may take, with each address of the host.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn with_password(self, password: &str) -> Door {
        Door { password: Some(Secret::new(password.as_bytes().to_vec())), ..self }
    }

    /// Less than a service file can say.
    #[cfg(test)]
    pub(super) fn with_patience(self, patience: Duration) -> Door {
        Door { patience, ..self }
    }

    pub(super) fn application_name(&self) -> Option<&str> {
        self.application_name.as_deref()
    }

    pub(super) fn options(&self) -> Option<&str> {
        self.options.as_deref()
    }

    /// The password, and where it comes from in words; read anew each time, for files change.
    pub(super) fn password(&self, purpose: Purpose) -> (Looked, String) {
        if let Some(password) = &self.password {
            return (Looked::Found(password.clone()), self.password_from.to_owned());
        }
        let Some(path) = &self.passfile else { return (Looked::Absent, "a password file".to_owned()) };
        let host = if self.host == SOCKET_DIRECTORY { "localhost" } else { &self.host };
        // libpq's own programs call the database of a replication so.
        let databases: &[&str] = match purpose {
            Purpose::Queries => &[&self.database],
            Purpose::Replication => &["replication", &self.database],
        };
        let wanted = passfile::Wanted { host, port: self.port, databases, user: &self.user };
        (passfile::find(path, &wanted), path.display().to_string())
    }

    /// What a child program must find in its environment to go the same way. First take away what is there of [`Door::variables`].
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let mut variables = Vec::new();
        let mut put = |name: &str, value: &str| variables.push((name.to_owned(), value.to_owned()));
        // What stands in the service file comes first for libpq, too: the child reads its password there.
        if let Some((name, file)) = &self.service {
            put("PGSERVICE", name);
            put("PGSERVICEFILE", &file.display().to_string());
        }
        put("PGHOST", &self.host);
        if let Some(address) = &self.address {
            put("PGHOSTADDR", address);
        }
        put("PGPORT", &self.port.to_string());
        put("PGUSER", &self.user);
        put("PGDATABASE", &self.database);
        put("PGSSLMODE", mode_name(self.ssl_mode));
        match &self.root {
            Root::Anyone => {}
            Root::System => put("PGSSLROOTCERT", "system"),
            Root::File(path) => put("PGSSLROOTCERT", &path.display().to_string()),
        }
        if self.binding_required {
            put("PGCHANNELBINDING", "require");
        }
        put("PGCONNECT_TIMEOUT", &self.patience.as_secs().to_string());
        if let Some(name) = &self.application_name {
            put("PGAPPNAME", name);
        }
        if let Some(options) = &self.options {
            put("PGOPTIONS", options);
        }
        match (&self.password, &self.passfile) {
            // It came from there, and there is no other way to hand it on.
            (Some(password), _) if self.password_from == "PGPASSWORD" => {
                put("PGPASSWORD", &String::from_utf8_lossy(password.expose()));
            }
            (None, Some(path)) => put("PGPASSFILE", &path.display().to_string()),
            _ => {}
        }
        variables
    }

    /// The same way for a child that is another user of this host's, and may read none of our files: what is public lies in a directory of
    /// its own, and the password in no file of any disk's; whoever is given a file with it must have it as the input.
    pub(crate) fn handed_to(&self, owner: (u32, u32), directory: &Path) -> io::Result<(Door, Option<std::fs::File>)> {
        let root = match &self.root {
            Root::File(path) => {
                let copy = directory.join("root.crt");
                std::fs::write(&copy, std::fs::read(path)?)?;
                std::os::unix::fs::chown(&copy, Some(owner.0), Some(owner.1))?;
                Root::File(copy)
            }
            root => root.clone(),
        };
        let input = match self.password(Purpose::Queries).0 {
            Looked::Found(password) => Some(passfile::in_memory(&password, owner)?),
            _ => None,
        };
        let passfile = input.is_some().then(|| "/dev/stdin".into());
        let door = Door { password: None, passfile, root, service: None, comes_as: Some(owner), ..self.clone() };
        Ok((door, input))
    }

    /// Every variable by which libpq would go another way.
    pub(crate) fn variables() -> impl Iterator<Item = &'static str> {
        let of_keys = KEYS.iter().map(|(_, variable, _)| *variable).filter(|variable| !variable.is_empty());
        of_keys.chain(["PGSERVICE", "PGSERVICEFILE", "PGSYSCONFDIR", "PGREALM", "PGREQUIRESSL", "PGLOCALEDIR"])
    }
}

/// The way, without a secret.
impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((name, _)) = &self.service {
            write!(f, "service {name}: ")?;
        }
        write!(f, "{}@{}:{}/{}", self.user, self.host, self.port, self.database)
    }
}

/// A service file and a password file with this content.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn read_hostile(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(Some(service)) = service::section("shop", &text, Path::new("hostile")) {
        let _ = Door::from_settings(&Settings { service, file: Some("hostile".into()), env: &|_| None });
    }
    let wanted = passfile::Wanted { host: "db.example", port: 5432, databases: &["shop"], user: "boat" };
    for line in data.split(|byte| *byte == b'\n') {
        let _ = passfile::password(line, &wanted);
    }
}

const MODES: [(&str, SslMode); 6] = [
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];

fn mode_name(mode: SslMode) -> &'static str {
    MODES.iter().find(|(_, known)| *known == mode).map_or("prefer", |(name, _)| name)
}

/// libpq's rules: a root certificate is looked at whenever there is one; without one only `verify-…` is refused.
fn tls(settings: &Settings<'_>) -> Result<(SslMode, Root), DoorError> {
    let expected = "one of disable, allow, prefer, require, verify-ca, verify-full";
    let mode = settings
        .parsed("sslmode", expected, |text| MODES.iter().find(|(name, _)| *name == text).map(|(_, mode)| *mode))?;
    let named = settings.get("sslrootcert");
    if let Some(found) = named.as_ref().filter(|found| found.value == "system") {
        if mode.is_some_and(|mode| mode != SslMode::VerifyFull) {
            let why = "with the system's certificates anyone's would do; set `sslmode=verify-full`".to_owned();
            return Err(DoorError::Unsupported { place: found.place.clone(), why });
        }
        return Ok((SslMode::VerifyFull, Root::System));
    }
    let mode = mode.unwrap_or(SslMode::Prefer);
    if let Some(found) = named {
        return Ok((mode, Root::File(found.value.into())));
    }
    let usual = home(settings.env).map(|home| home.join(".postgresql/root.crt"));
    match usual.filter(|path| path.exists()) {
        Some(path) => Ok((mode, Root::File(path))),
        None if mode >= SslMode::VerifyCa => Err(DoorError::Unsupported {
            place: format!("`sslmode={}`", mode_name(mode)),
            why: "no root certificate is named: set `sslrootcert` to a file, or to `system`".to_owned(),
        }),
        None => Ok((mode, Root::Anyone)),
    }
}
