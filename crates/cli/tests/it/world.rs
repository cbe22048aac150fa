//! A small world for whole runs: two sites on loopback addresses, a vault, an arbiter's directory, a name server, and a
//! service that serves its files. Everything in it is acted on through the binary, as a person would.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use lifeboat_adapters::clock::MachineClock;
use lifeboat_adapters::site::local::kill_site;
use lifeboat_core::run::RunView;
use lifeboat_engine::arbitrate::{Arbiter, CanaryRecord, Trustee};
use lifeboat_engine::journal::Journal;
use lifeboat_vault::{Role, State, storage};
use serde_json::Value;

pub(crate) const LIFEBOAT: &str = env!("CARGO_BIN_EXE_lifeboat");
pub(crate) const CANARY: &str = "lifeboat-canary-1-1795000000000";
/// The service's port; each world has addresses of its own.
pub(crate) const PORT: u16 = 8080;
const DNS_PORT: u16 = 5353;
const CLAIM_PORT: u16 = 5352;

/// What is special about a world's plan.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// A logbook with a database, followed by a warm standby, in place of pages that are restored.
    pub(crate) warm: bool,
    pub(crate) approval: bool,
    pub(crate) objective: &'static str,
    /// A drill key lies at south.
    pub(crate) drill_key: bool,
    /// Lines put into `[service.pages]`.
    pub(crate) service: &'static str,
    /// Lines put at the end.
    pub(crate) more: &'static str,
    /// Where the vault is, and what else is said of it, in place of a directory.
    pub(crate) vault: String,
    /// What every process here has in its environment.
    pub(crate) environment: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            warm: false,
            approval: false,
            objective: "1h",
            drill_key: false,
            service: "",
            more: "",
            vault: String::new(),
            environment: Vec::new(),
        }
    }
}

pub(crate) struct World {
    pub(crate) root: PathBuf,
    /// The addresses of north, south and the name server.
    pub(crate) addresses: [String; 3],
    dns: Option<Child>,
    warm: bool,
    environment: Vec<(String, String)>,
    /// Keeps the addresses until the end.
    _claim: UdpSocket,
    /// Removed at the end.
    _directory: tempfile::TempDir,
}

/// Three of the loopback's addresses that no other world on this machine has, and the claim that keeps them from those of other test
/// processes. Whatever a killed one left running keeps its own. Demos and drills choose below 127.192.0.0.
fn addresses() -> ([String; 3], UdpSocket) {
    const COUNT: u32 = 62 * 250;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Test processes that run side by side begin far from each other.
    let begin = std::process::id().wrapping_mul(7919) % COUNT;
    let tried = (0..COUNT).find_map(|_| {
        let number = (begin + NEXT.fetch_add(1, Ordering::SeqCst)) % COUNT;
        let addresses = [1, 2, 3].map(|last| format!("127.{}.{}.{last}", 192 + number / 250, number % 250));
        let [north, south, dns] = addresses.each_ref().map(String::as_str);
        let claim = UdpSocket::bind((north, CLAIM_PORT)).ok()?;
        let free = |at| TcpListener::bind(at).is_ok();
        let is_free = free((north, PORT)) && free((south, PORT)) && free((dns, DNS_PORT));
        (is_free && UdpSocket::bind((dns, DNS_PORT)).is_ok()).then_some((addresses, claim))
    });
    tried.expect("no loopback addresses are free: `ss -tulp` tells who listens on all of them")
}

impl World {
    pub(crate) fn new(options: &Options) -> World {
        let world = World::empty(options.warm, &options.environment);
        for directory in ["arbiter", "north/volumes/docs", "south"] {
            std::fs::create_dir_all(world.root.join(directory)).unwrap();
        }
        let mut recipients = Vec::new();
        for key in ["owner", "paper", "stranger"] {
            recipients.push(world.ok(&["key", "new", "-o", &world.path(&format!("{key}.key"))]).trim().to_owned());
        }
        let mut persons = BTreeMap::new();
        for person in ["anna", "ben", "eve"] {
            let public = world.ok(&["key", "person", "-o", &world.path(&format!("{person}.key"))]);
            persons.insert(person, public.trim().to_owned());
        }
        world.write_plan(&recipients, &persons, options);
        let made: Value =
            serde_json::from_str(&world.ok(&["vault", "init", "--host", "controller", "--json"])).unwrap();
        let owner = format!("[key]\nowner = {}\n", made["owner"]);
        let plan = std::fs::read_to_string(world.plan()).unwrap().replace("[key]\n", &owner);
        std::fs::write(world.plan(), plan).unwrap();
        for site in ["north", "south"] {
            let state = world.path(&format!("{site}/.lifeboat/host"));
            let asked = world.ok(&["vault", "enroll", "--host", site, "--state", &state, "--json"]);
            let asked: Value = serde_json::from_str(&asked).unwrap();
            let fingerprint = asked["fingerprint"].as_str().unwrap();
            world.ok(&["vault", "enroll", "--approve", fingerprint, "--key", &world.path("owner.key")]);
        }
        std::fs::write(world.root.join("north/volumes/docs/page"), "the first page\n").unwrap();
        if options.warm {
            return world;
        }
        std::fs::write(world.root.join("north/volumes/docs/canary"), CANARY).unwrap();
        let at = jiff::Timestamp::now().to_string();
        let canary = CanaryRecord { service: "pages".into(), number: 1, value: CANARY.into(), at };
        world.arbiter().record_canary(&canary).unwrap();
        world
    }

    fn empty(warm: bool, environment: &[(String, String)]) -> World {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        let (addresses, claim) = addresses();
        World {
            root,
            addresses,
            dns: None,
            warm,
            environment: environment.to_vec(),
            _claim: claim,
            _directory: directory,
        }
    }

    /// The same world once more, elsewhere: nothing may run in the first.
    pub(crate) fn copy(&self) -> World {
        let world = World::empty(self.warm, &self.environment);
        let copied = Command::new("cp").arg("-a").arg(format!("{}/.", self.root.display())).arg(&world.root).status();
        assert!(copied.unwrap().success());
        let mut plan = std::fs::read_to_string(self.plan()).unwrap();
        plan = plan.replace(&self.path(""), &world.path(""));
        for (from, to) in self.addresses.iter().zip(&world.addresses) {
            plan = plan.replace(from, to);
        }
        std::fs::write(world.plan(), plan).unwrap();
        world
    }

    fn write_plan(&self, recipients: &[String], persons: &BTreeMap<&str, String>, options: &Options) {
        let root = self.root.display();
        let [north, south, dns] = &self.addresses;
        let mut plan = "[plan]\nname = \"pages\"\naccepted-by = \"the test\"\n\n".to_owned();
        for (person, key) in persons {
            plan += &format!("[person.{person}]\napproves = {}\nkey = \"{key}\"\n\n", *person != "eve");
        }
        let vault = match options.vault.as_str() {
            "" => format!("url = \"file://{root}/vault\""),
            given => given.to_owned(),
        };
        let service = if self.warm { logbook() } else { pages() };
        let mut holders = if self.warm { self.holders() } else { String::new() };
        if options.drill_key {
            let file = self.path("south/drill.key");
            let recipient = self.ok(&["key", "new", "-o", &file]);
            holders += &format!(
                "drill = {{ recipient = \"{}\", held-at = \"south\", datasets = [\"docs\"], identity = {{ file = \"{file}\" }} }}\n",
                recipient.trim()
            );
        }
        plan += &format!(
            r#"[arbiter]
url = "file://{root}/arbiter"

[site.north]
reach = "local"
root = "{root}/north"
address = "{north}"
[site.south]
reach = "local"
root = "{root}/south"
address = "{south}"

[vault.main]
{vault}

[key]
recipients = ["{}", "{}"]
{holders}
[service.pages]
strategy = "{}"
primary = "north"
recovery = ["south"]
rpo = "{}"
rto = "1h"
approval = {}
{}

{service}
[service.pages.traffic]
name = "pages.example."
dns = {{ authority = "{dns}:{DNS_PORT}" }}
everyday = {{ north = 100 }}
ttl = "1s"

[service.pages.canary]
write = {{ http = "POST /canary", body = "{{{{ canary.value }}}}" }}
read = {{ http = "GET /canary", expect = "{{{{ canary.value }}}}" }}
every = "1s"
{}
"#,
            recipients[0],
            recipients[1],
            if self.warm { "warm-standby" } else { "backup-restore" },
            options.objective,
            options.approval,
            options.service,
            options.more
        );
        std::fs::write(self.plan(), plan).unwrap();
    }

    /// The standbys' own keys, made where they are held.
    fn holders(&self) -> String {
        let holder = |site: &str| {
            let file = self.path(&format!("{site}/standby.key"));
            let recipient = self.ok(&["key", "new", "-o", &file]);
            format!(
                r#"{{ recipient = "{}", held-at = "{site}", datasets = ["docs", "entries"], identity = {{ file = "{file}" }} }}"#,
                recipient.trim()
            )
        };
        format!("standby = [{}, {}]\n", holder("north"), holder("south"))
    }

    pub(crate) fn plan(&self) -> PathBuf {
        self.root.join("lifeboat.toml")
    }

    pub(crate) fn path(&self, below: &str) -> String {
        self.root.join(below).display().to_string()
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(LIFEBOAT);
        command
            .args(words)
            .env("LIFEBOAT_PLAN", self.plan())
            .env("LIFEBOAT_STATE", self.state())
            .env("NO_COLOR", "1")
            .env("USER", "operator")
            .env_remove("SUDO_USER")
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn lifeboat(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// Stdout of a command that must end with 0.
    pub(crate) fn ok(&self, words: &[&str]) -> String {
        let output = self.lifeboat(words);
        assert_eq!(output.status.code(), Some(0), "{words:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// Stderr of a command that must end with `code`.
    pub(crate) fn ends(&self, code: i32, words: &[&str]) -> String {
        let output = self.lifeboat(words);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}{said}", text(&output.stdout));
        said
    }

    /// Takes a recovery point of what the service has at north.
    pub(crate) fn backup(&self) {
        self.ok(&["backup", "docs", "--state", &self.path("north/.lifeboat/host")]);
    }

    pub(crate) fn start_dns(&mut self) {
        assert!(self.dns.is_none());
        let words = ["dns", "--zone-state", &self.path("dns")];
        let said = self.root.join("dns.stderr");
        let stderr = std::fs::File::create(&said).unwrap();
        let mut child = self.command(&words).stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        if !line.contains("answering for") {
            let _ = child.kill();
            let ended = child.wait().unwrap();
            panic!(
                "the name server at {} ended with {ended}: {line}{}",
                self.addresses[2],
                text(&std::fs::read(said).unwrap())
            );
        }
        self.dns = Some(child);
    }

    /// Has the service run at north, with its agent, as on any day.
    pub(crate) fn up(&mut self) {
        if self.dns.is_none() {
            self.start_dns();
        }
        self.ok(&["up", "pages", "--yes"]);
        assert!(self.get("north", self.page()).is_some());
    }

    /// Ends all that runs in this world, as a power cut does.
    pub(crate) fn power_off(&mut self) {
        for site in ["north", "south"] {
            kill_site(&self.root.join(site), false).unwrap();
        }
        if let Some(mut dns) = self.dns.take() {
            dns.kill().unwrap();
            dns.wait().unwrap();
        }
    }

    /// Everything at north is gone but its volumes.
    pub(crate) fn kill_north(&self) {
        kill_site(&self.root.join("north"), false).unwrap();
    }

    pub(crate) fn journal(&self) -> Journal {
        Journal::open(&self.state(), Arc::new(MachineClock::default())).unwrap()
    }

    pub(crate) fn arbiter(&self) -> Arbiter {
        let state = State::open(&self.state(), None).unwrap();
        let mut trusted = BTreeMap::new();
        let hosts =
            ["state", "north/.lifeboat/host", "south/.lifeboat/host", "second"].map(|host| self.root.join(host));
        for directory in hosts.into_iter().filter(|directory| directory.exists()) {
            let state = State::open(&directory, None).unwrap();
            let roles = if state.host_name() == "north" || state.host_name() == "south" {
                vec![Role::Host]
            } else {
                vec![Role::Host, Role::Controller]
            };
            trusted.insert(state.signing_key().public(), Trustee::new(state.host_name(), &roles));
        }
        let storage = storage::open(&self.path("arbiter")).unwrap();
        Arbiter::new(storage, Arc::new(state), trusted, Arc::new(MachineClock::default()))
    }

    /// The newest run here.
    pub(crate) fn run(&self) -> RunView {
        let journal = self.journal();
        let run = journal.names().unwrap().into_iter().next().expect("there is no run");
        journal.read(&run).unwrap().view().unwrap()
    }

    pub(crate) fn runs(&self) -> usize {
        self.journal().names().unwrap().len()
    }

    /// What the service at a site answers, if it does.
    pub(crate) fn get(&self, site: &str, path: &str) -> Option<String> {
        self.ask(site, &format!("GET {path} HTTP/1.0\r\n\r\n"))
    }

    pub(crate) fn post(&self, site: &str, path: &str, id: &str, body: &str) {
        let length = body.len();
        let request = format!("POST {path} HTTP/1.0\r\nX-Entry-Id: {id}\r\nContent-Length: {length}\r\n\r\n{body}");
        self.ask(site, &request).unwrap_or_else(|| panic!("{site} did not take {body}"));
    }

    fn ask(&self, site: &str, request: &str) -> Option<String> {
        let address = &self.addresses[usize::from(site == "south")];
        let mut stream = TcpStream::connect((address.as_str(), PORT)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?;
        matches!(status, "200" | "201").then(|| body.to_owned())
    }

    /// Where the one page is.
    pub(crate) fn page(&self) -> &'static str {
        if self.warm { "/uploads/page" } else { "/page" }
    }

    /// Whether the service serves what was backed up, at south and nowhere else.
    pub(crate) fn assert_recovered(&self) {
        assert_eq!(self.get("south", self.page()).as_deref(), Some("the first page\n"));
        assert_eq!(self.get("north", self.page()), None);
        let desired = self.arbiter().desired_writer("pages").unwrap().unwrap();
        assert_eq!((desired.primary.as_str(), desired.frozen), ("south", false));
    }

    /// Makes a site answer to nothing, as if the line to it were cut.
    pub(crate) fn cut_off(&self, site: &str, cut: bool) {
        let marker = self.root.join(site).join(".lifeboat/unreachable");
        if cut { std::fs::write(marker, "").unwrap() } else { std::fs::remove_file(marker).unwrap() }
    }

    /// What was moved aside at a site, and what lies in a volume's place.
    pub(crate) fn volumes(&self, site: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.root.join(site).join("volumes")) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

/// A service that serves the files of its one data set.
fn pages() -> String {
    format!(
        r#"[service.pages.component.web]
launch = {{ command = ["/usr/bin/python3", "-m", "http.server", "{{{{ instance.port }}}}", "--bind", "{{{{ instance.address }}}}", "--directory", "{{{{ dataset.docs.path }}}}"] }}
port = {PORT}
health = {{ http = "/page", within = "60s", every = "1s" }}
[service.pages.component.web.dataset.docs]
kind = "persistent"
files = {{ path = "docs" }}
protect = [{{ to = "main", every = "1s" }}]
"#
    )
}

/// The example service, whose uploads are the same data set.
fn logbook() -> String {
    format!(
        r#"[service.pages.component.web]
launch = {{ command = ["{LIFEBOAT}", "logbook", "serve", "--database", "{{{{ dataset.entries.path }}}}", "--uploads", "{{{{ dataset.docs.path }}}}", "--listen", "{{{{ instance.address }}}}:{{{{ instance.port }}}}"] }}
port = {PORT}
health = {{ http = "/healthz", within = "60s", every = "1s" }}
[service.pages.component.web.dataset.entries]
kind = "persistent"
sqlite = {{ path = "entries/logbook.db" }}
protect = [{{ to = "main", base = {{ every = "1h" }}, log = "stream" }}]
[service.pages.component.web.dataset.docs]
kind = "persistent"
files = {{ path = "docs" }}
protect = [{{ to = "main", every = "1s" }}]
"#
    )
}

impl Drop for World {
    fn drop(&mut self) {
        for site in ["north", "south"] {
            if let Err(error) = kill_site(&self.root.join(site), false)
                && !std::thread::panicking()
            {
                panic!("{site} could not be ended: {error}");
            }
        }
        if let Some(mut dns) = self.dns.take() {
            dns.kill().unwrap();
            dns.wait().unwrap();
        }
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Looks again and again, for a minute at most.
pub(crate) fn wait_until(what: &str, mut come: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !come() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
