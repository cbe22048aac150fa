//! Services, password files and data directories, right and wrong.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use super::*;

/// A home, a system directory, and an environment that knows nothing else.
struct World {
    folder: tempfile::TempDir,
    variables: Vec<(String, String)>,
}

impl World {
    fn new() -> World {
        World { folder: tempfile::tempdir().unwrap(), variables: Vec::new() }
    }

    fn with(mut self, name: &str, value: &str) -> World {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    fn env(&self, name: &str) -> Option<String> {
        let own = self.variables.iter().find(|(variable, _)| variable == name).map(|(_, value)| value.clone());
        let at = |name: &str| Some(self.folder.path().join(name).display().to_string());
        own.or_else(|| match name {
            "HOME" => at("home"),
            "PGSYSCONFDIR" => at("system"),
            _ => None,
        })
    }

    fn service(&self, name: &str) -> Result<Door, DoorError> {
        Door::service(name, &|variable| self.env(variable))
    }

    /// The service `shop` with these settings.
    fn shop(&self, settings: &str) -> Result<Door, DoorError> {
        self.file("home/.pg_service.conf", &format!("[shop]\n{settings}\n"));
        self.service("shop")
    }
}

const HOME: &str = "home/.pg_service.conf";
const SYSTEM: &str = "system/pg_service.conf";

#[test]
fn a_service_is_read_as_libpq_reads_it() {
    let world = World::new();
    let text = "junk before the first section\n[other]\nhost=wrong\njunk\n # a comment\n[shop]\n\n  host=db.example  \n#port=1\nport=6000\nport=7000\n\
                user=boat\ndbname=shop\nsslmode=require\napplication_name=hello = there\nkeepalives_idle=5\ngssencmode=prefer\n\
                connect_timeout=1\n[shop]\nhost=second\n[third]\nnonsense";
    world.file(HOME, text);
    let door = world.service("shop").unwrap();
    assert_eq!((door.host(), door.port(), door.user(), door.database()), ("db.example", 6000, "boat", "shop"));
    assert_eq!((door.ssl_mode(), door.root(), door.patience().as_secs()), (SslMode::Require, &Root::Anyone, 2));
    assert_eq!(door.application_name(), Some("hello = there"));
    assert_eq!(door.to_string(), "service shop: boat@db.example:6000/shop");
    assert_eq!((door.socket(), door.address()), (None, "db.example"));
    assert_eq!(door.with_database("other").database(), "other");
}

#[test]
fn what_a_service_does_not_say_the_environment_and_then_libpqs_habits_do() {
    let world =
        World::new().with("PGPORT", "6543").with("PGUSER", "boat").with("PGHOST", "wrong").with("PGPASSWORD", "");
    let door = world.shop("host=db.example").unwrap();
    assert_eq!((door.host(), door.port(), door.user(), door.database()), ("db.example", 6543, "boat", "boat"));
    let plain = World::new().shop("").unwrap();
    assert_eq!((plain.host(), plain.port(), plain.ssl_mode()), (SOCKET_DIRECTORY, 5432, SslMode::Prefer));
    assert_eq!(plain.socket().unwrap(), Path::new("/var/run/postgresql/.s.PGSQL.5432"));
    let user = String::from_utf8(std::process::Command::new("id").arg("-un").output().unwrap().stdout).unwrap();
    assert_eq!((plain.user(), plain.database()), (user.trim(), user.trim()));
    let numbered = World::new().shop("host=db.example\nhostaddr=127.0.0.1\nuser=x").unwrap();
    assert_eq!((numbered.host(), numbered.address()), ("db.example", "127.0.0.1"));
}

#[test]
fn files_are_looked_for_where_libpq_looks() {
    let world = World::new();
    world.file(HOME, "[mine]\nhost=mine\n[both]\nhost=mine\n");
    world.file(SYSTEM, "[ours]\nhost=ours\n[both]\nhost=ours\n");
    for (name, host) in [("mine", "mine"), ("ours", "ours"), ("both", "mine")] {
        assert_eq!(world.service(name).unwrap().host(), host);
    }
    let error = world.service("none").unwrap_err().to_string();
    assert!(error.contains("no service `none`") && error.contains(HOME) && error.contains(SYSTEM), "{error}");
    let named = world.file("named", "[mine]\nhost=named\n").display().to_string();
    let world = world.with("PGSERVICEFILE", &named);
    assert_eq!(world.service("mine").unwrap().host(), "named");
    assert_eq!(world.service("ours").unwrap().host(), "ours");
    std::fs::remove_file(&named).unwrap();
    assert!(matches!(world.service("ours"), Err(DoorError::File { .. })), "a file that is named must be there");
    assert!(matches!(World::new().service("x"), Err(DoorError::NoService { .. })));
}

#[test]
fn what_is_wrong_in_a_service_is_named_by_its_line_and_without_its_value() {
    let cases = [
        ("hoost=x", "line 2 of", "has the key `hoost`"),
        ("host = x", "line 2 of", "no space before the `=`"),
        ("host=x\nsecret word", "line 3 of", "is not `key=value`"),
        ("service=other", "line 2 of", "do not nest"),
        ("ldap://secret word", "line 2 of", "LDAP"),
        ("sslcert=secret word", "line 2 of", "sets `sslcert` to what lifeboat cannot do"),
        ("gssencmode=require", "line 2 of", "sets `gssencmode`"),
        ("target_session_attrs=primary", "line 2 of", "name it in `host`"),
        ("user=a\nrequire_auth=none", "line 3 of", "sslmode=verify-full"),
        ("ssl_min_protocol_version=TLSv1.3", "line 2 of", "TLS 1.2"),
        ("port=secret word", "`port` in line 2 of", "is not a port"),
        ("port=0", "`port` in line 2 of", "1 to 65535"),
        ("port=65536", "`port` in line 2 of", "1 to 65535"),
        ("port=1,2", "`port` in line 2 of", "one server"),
        ("host=a,b", "`host` in line 2 of", "one server"),
        ("hostaddr=db.example", "`hostaddr` in line 2 of", "an IP address"),
        ("connect_timeout=soon", "`connect_timeout` in line 2 of", "a number of seconds"),
        ("sslmode=yes", "`sslmode` in line 2 of", "one of disable, allow"),
        ("channel_binding=yes", "`channel_binding` in line 2 of", "one of disable"),
        ("sslmode=verify-full", "`sslmode=verify-full`", "set `sslrootcert`"),
        ("sslmode=require\nsslrootcert=system", "`sslrootcert` in line 3 of", "set `sslmode=verify-full`"),
    ];
    for (settings, place, what) in cases {
        let error = World::new().shop(&format!("{settings}\npassword=secret word")).unwrap_err();
        let said = format!("{error} {error:?}");
        assert!(said.contains(place) && said.contains(what) && !said.contains("secret word"), "{settings}: {said}");
    }
    let error = World::new().with("PGSSLCERT", "x").shop("host=x").unwrap_err().to_string();
    assert!(error.contains("PGSSLCERT asks for what lifeboat cannot do"), "{error}");
    let error = World::new().with("PGPORT", "x").shop("host=x").unwrap_err().to_string();
    assert!(error.contains("PGPORT is not a port"), "{error}");
    // Said with no value it is not said.
    World::new().with("PGSSLCERT", "").shop("sslcert=\nport=\nhost=x").unwrap();
}

#[test]
fn files_that_are_none_are_refused() {
    let world = World::new();
    world.file(HOME, &"# x\n".repeat(300_000));
    assert!(matches!(world.service("shop"), Err(DoorError::File { .. })));
    std::fs::write(world.folder.path().join(HOME), b"[shop]\nhost=\xff\n").unwrap();
    assert!(matches!(world.service("shop"), Err(DoorError::File { .. })));
    let endless = World::new().with("PGSERVICEFILE", "/dev/zero");
    assert!(matches!(endless.service("shop"), Err(DoorError::File { .. })));
}

#[test]
fn roots_are_looked_for_as_libpq_does() {
    let world = World::new();
    let full = world.shop("host=x\nsslrootcert=system").unwrap();
    assert_eq!((full.ssl_mode(), full.root()), (SslMode::VerifyFull, &Root::System));
    let named = world.shop("host=x\nsslmode=verify-ca\nsslrootcert=/a").unwrap();
    assert_eq!((named.ssl_mode(), named.root()), (SslMode::VerifyCa, &Root::File("/a".into())));
    let usual = world.file("home/.postgresql/root.crt", "");
    let found = world.shop("host=x\nsslmode=verify-full").unwrap();
    assert_eq!((found.ssl_mode(), found.root()), (SslMode::VerifyFull, &Root::File(usual)));
}

#[test]
fn a_password_is_shown_nowhere_and_handed_on_by_where_it_lies() {
    let has = |door: &Door, name: &str| {
        door.environment().into_iter().find(|(variable, _)| variable == name).map(|(_, value)| value)
    };
    let world = World::new();
    let written = world.shop("host=x\nuser=boat\npassword=secret word").unwrap();
    assert_eq!(has(&written, "PGSERVICE").as_deref(), Some("shop"));
    assert_eq!(has(&written, "PGSERVICEFILE"), Some(world.folder.path().join(HOME).display().to_string()));
    assert_eq!(has(&written, "PGPASSWORD"), None);
    assert!(!format!("{written} {written:?} {:?}", written.environment()).contains("secret word"));

    let listed = world.shop("host=x\nuser=boat").unwrap();
    assert_eq!(has(&listed, "PGPASSFILE"), Some(world.folder.path().join("home/.pgpass").display().to_string()));
    let world = world.with("PGPASSWORD", "secret word").with("PGPASSFILE", "/elsewhere");
    let given = world.shop("host=x\nuser=boat").unwrap();
    assert_eq!(has(&given, "PGPASSWORD").as_deref(), Some("secret word"));
    assert!(!format!("{given} {given:?}").contains("secret word"));
    assert!(Door::variables().any(|name| name == "PGPASSWORD") && Door::variables().all(|name| name.starts_with("PG")));
}

#[test]
fn a_running_server_is_found_by_its_data_directory() {
    let world = World::new().with("PGHOST", "wrong").with("PGPORT", "1").with("PGUSER", "boat");
    let folder = tempfile::tempdir().unwrap();
    let look = |lines: &[&str]| {
        std::fs::write(folder.path().join("postmaster.pid"), lines.join("\n")).unwrap();
        Door::running_in_with(folder.path(), &|name| world.env(name))
    };
    let own = std::process::id().to_string();
    let door = look(&[&own, "/data", "17", "6000", "/run/here", "*", "123", "ready   "]).unwrap();
    assert_eq!((door.host(), door.port(), door.user(), door.database()), ("/run/here", 6000, "boat", "postgres"));
    let door = look(&[&own, "/data", "17", "6000", "sockets", ""]).unwrap();
    assert_eq!(door.host(), folder.path().join("sockets").display().to_string());
    for (address, host) in [("*", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("10.0.0.1", "10.0.0.1")] {
        let door = look(&[&own, "/data", "17", "6000", "", address]).unwrap();
        assert_eq!((door.host(), door.socket()), (host, None));
    }
    let mut dead = std::process::Command::new("true").spawn().unwrap();
    let gone = dead.id().to_string();
    dead.wait().unwrap();
    for (lines, why) in [
        (&[gone.as_str(), "/data", "17", "6000", "/run"][..], "a process that is gone"),
        (&[&own, "/data", "17"], "no port yet"),
        (&[&own, "/data", "17", "x", "/run"], "no port yet"),
        (&[&own, "/data", "17", "6000", "", ""], "listens nowhere"),
        (&["", "", ""], "names no process"),
        (&["0", "/data", "17", "6000", "/run"], "names no process"),
    ] {
        let error = look(lines).unwrap_err().to_string();
        assert!(error.contains("no server runs in") && error.contains(why), "{error}");
    }
    std::fs::remove_file(folder.path().join("postmaster.pid")).unwrap();
    assert!(!Door::may_run_in(folder.path()));
    let error = Door::running_in(folder.path()).unwrap_err().to_string();
    assert!(error.contains("has no postmaster.pid; start the server"), "{error}");
}

#[test]
fn a_password_that_is_handed_on_in_memory_is_read_as_it_was() {
    use std::os::unix::fs::MetadataExt;
    let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let wanted = passfile::Wanted { host: "db", port: 1, databases: &["shop"], user: "boat" };
    for password in ["plain", r"a:b\c\:", "ä ö", "#"] {
        let file = passfile::in_memory(&Secret::new(password.as_bytes().to_vec()), owner).unwrap();
        let seen = file.metadata().unwrap();
        assert!(seen.is_file() && seen.mode() & 0o777 == 0o600 && seen.nlink() == 0);
        let line = std::fs::read(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file))).unwrap();
        let line = line.strip_suffix(b"\n").unwrap();
        assert_eq!(passfile::password(line, &wanted).unwrap(), password.as_bytes());
    }
    assert!(passfile::in_memory(&Secret::new(b"two\nlines".to_vec()), owner).is_err());
}
