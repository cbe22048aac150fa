//! What the demo plays on: a directory, loopback addresses, keys, a vault, a plan, and the processes in the background.
//!
//! Invariant: everything is made by the same verbs that a user would type, and everything that was made is under one
//! directory or in the list of background processes, so that it can all be removed.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use lifeboat_adapters::site::local::kill_site;
use lifeboat_engine::port::Cancel;
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Strategy;
use super::database::Database;
use crate::error::{CommandError, Explain};
use crate::ui::Ui;

pub(super) const SERVICE: &str = "logbook";
pub(super) const NAME: &str = "logbook.demo.";
pub(super) const HOME: &str = "paris";
pub(super) const AWAY: &str = "london";
const SERVICE_PORT: u16 = 8080;
const SERVICES: &str = "outside/pg_service.conf";
/// Several times what any verb here takes on a slow machine.
const VERB_WITHIN: Duration = Duration::from_secs(60);

/// What stays on disk about the demo, so that `demo --remove` finds everything again.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// Process groups in the background, with what they are.
    background: Vec<(i32, String)>,
}

pub(super) struct Stage<'a> {
    pub(super) directory: PathBuf,
    pub(super) authority: SocketAddr,
    pub(super) interrupt: Cancel,
    pub(super) ui: &'a Ui,
    pub(super) database: Database,
    program: PathBuf,
    addresses: [Ipv4Addr; 3],
    background: Vec<(String, Child)>,
}

/// Recipients of the keys that the plan names.
struct Holders {
    recipients: Vec<String>,
    /// At home and away.
    standby: Vec<String>,
    drill: String,
}

/// How a verb ended that was run as a process of its own.
pub(super) struct Ran {
    pub(super) document: Value,
}

impl<'a> Stage<'a> {
    /// Makes the directory, finds free addresses, makes keys, vault and plan, and enrols each host.
    pub(super) fn set(
        directory: PathBuf,
        strategy: Strategy,
        database: Database,
        interrupt: Cancel,
        ui: &'a Ui,
    ) -> Result<Stage<'a>, CommandError> {
        let program = std::env::current_exe().saying(|| "this program does not know its own path".into())?;
        let (addresses, authority) = free_addresses(&database.ports())?;
        let stage = Stage { directory, authority, interrupt, ui, database, program, addresses, background: Vec::new() };
        if stage.database.has_a_user_of_its_own() {
            fs::set_permissions(&stage.directory, fs::Permissions::from_mode(0o711))?;
        }
        for below in ["keys", "outside/arbiter", "logs", "evidence", "sites/paris/.lifeboat", "sites/london/.lifeboat"]
        {
            fs::create_dir_all(stage.path(below))?;
        }
        let recipients = ["keys/owner.key", "keys/paper.key"].map(|file| stage.key(file));
        let standby = [HOME, AWAY].map(|site| stage.key(&standby_key(site)));
        let drill = stage.key(DRILL_KEY)?;
        let holders = Holders { recipients: collect(recipients)?, standby: collect(standby)?, drill };
        stage.write_plan(strategy, &holders, None)?;
        let made = stage.run(&["vault", "init"])?.document;
        let owner = made["owner"].as_str().unwrap_or_default().to_owned();
        stage.write_plan(strategy, &holders, Some(&owner))?;
        for (host, state) in
            [(HOME, agent_state(HOME)), (AWAY, agent_state(AWAY)), ("client", "outside/client".to_owned())]
        {
            stage.enrol(host, &state)?;
        }
        let [home, away, _] = addresses;
        if let Some(services) = stage.database.services([(HOME, home), (AWAY, away)]) {
            let path = stage.path(SERVICES);
            fs::write(&path, services).saying(|| format!("{} cannot be written", path.display()))?;
        }
        stage.run(&["check"])?;
        stage.database.make(&stage.site_root(HOME).join("volumes"))?;
        Ok(stage)
    }

    pub(super) fn path(&self, below: &str) -> PathBuf {
        self.directory.join(below)
    }

    pub(super) fn site_root(&self, site: &str) -> PathBuf {
        self.path(&format!("sites/{site}"))
    }

    pub(super) fn plan(&self) -> PathBuf {
        self.path("lifeboat.toml")
    }

    pub(super) fn service_port(&self) -> u16 {
        SERVICE_PORT
    }

    pub(super) fn text(&self, below: &str) -> String {
        self.path(below).display().to_string()
    }

    /// Makes a key; answers its recipient.
    fn key(&self, file: &str) -> Result<String, CommandError> {
        let made = self.run(&["key", "new", "-o", &self.text(file)])?;
        Ok(made.document["recipient"].as_str().unwrap_or_default().to_owned())
    }

    /// A host asks to write to the vault, and the owner approves what it showed.
    fn enrol(&self, host: &str, state: &str) -> Result<(), CommandError> {
        let asked = self.run(&["vault", "enroll", "--host", host, "--state", &self.text(state)])?;
        let fingerprint = asked.document["fingerprint"].as_str().unwrap_or_default().to_owned();
        self.run(&["vault", "enroll", "--approve", &fingerprint, "--key", &self.text("keys/owner.key")])?;
        Ok(())
    }

    fn write_plan(&self, strategy: Strategy, holders: &Holders, owner: Option<&str>) -> Result<(), CommandError> {
        // A JSON string is a TOML string.
        let quoted = |text: &str| serde_json::to_string(text).unwrap_or_default();
        let path = |below: &str| quoted(&self.text(below));
        let owner = owner.map(|owner| format!("owner = {}\n", quoted(owner))).unwrap_or_default();
        let recipients: Vec<String> = holders.recipients.iter().map(|recipient| quoted(recipient)).collect();
        let holder = |recipient: &str, site: &str, file: &str| {
            format!(
                "{{ recipient = {}, held-at = {}, datasets = [\"entries\", \"uploads\"], identity = {{ file = {} }} }}",
                quoted(recipient),
                quoted(site),
                path(file)
            )
        };
        let mut keys = format!("drill = {}\n", holder(&holders.drill, AWAY, DRILL_KEY));
        if strategy == Strategy::WarmStandby {
            let of_sites = [HOME, AWAY].iter().zip(&holders.standby);
            let standby =
                of_sites.map(|(site, recipient)| format!("  {},\n", holder(recipient, site, &standby_key(site))));
            keys.push_str(&format!("standby = [\n{}]\n", standby.collect::<String>()));
        }
        let (program, [home, away, _]) = (quoted(&self.program.display().to_string()), self.addresses);
        let text = format!(
            r#"# The demo's plan: two sites on this machine, each with an address of its own, and what lies outside both.
[plan]
name = "lifeboat-demo"

[arbiter]
url = {arbiter}
organization = "outside"

[site.{HOME}]
reach = "local"
root = {home_root}
address = "{home}"
organization = "first"

[site.{AWAY}]
reach = "local"
root = {away_root}
address = "{away}"
organization = "second"

[vault.main]
url = {vault}
organization = "outside"

[key]
recipients = [{recipients}]
{owner}{keys}
[service.{SERVICE}]
strategy = "{strategy}"
primary = "{HOME}"
recovery = ["{AWAY}"]
rpo = "5s"
rto = "30s"

[service.{SERVICE}.component.app]
{after}launch = {{ command = [{program}, "logbook", "serve", "--database", {database}, "--uploads", "{{{{ dataset.uploads.path }}}}", "--listen", "{{{{ instance.address }}}}:{{{{ instance.port }}}}", "--allow-corrupt"] }}
port = {SERVICE_PORT}
health = {{ http = "/healthz", within = "20s", every = "1s" }}
{entries}
[service.{SERVICE}.component.app.dataset.uploads]
kind = "persistent"
files = {{ path = "uploads", exclude = [".*.part"] }}
protect = [{{ to = "main", every = "2s", keep = {{ last = 100 }} }}]

[service.{SERVICE}.traffic]
name = "{NAME}"
dns = {{ authority = "{authority}" }}
everyday = {{ {HOME} = 100 }}
ttl = "1s"

[service.{SERVICE}.canary]
write = {{ http = "POST /canary", body = "{{{{ canary.value }}}}" }}
read = {{ http = "GET /canary", expect = "{{{{ canary.value }}}}" }}
every = "1s"

[drill.monthly]
service = "{SERVICE}"
scenario = "site-lost"
every = "30d"
"#,
            arbiter = path("outside/arbiter"),
            vault = path("outside/vault"),
            home_root = path("sites/paris"),
            away_root = path("sites/london"),
            recipients = recipients.join(", "),
            strategy = strategy.word(),
            authority = self.authority,
            database = self.database.url(),
            after = self.database.after(),
            entries = self.database.plan(SERVICE, (strategy == Strategy::WarmStandby).then_some([AWAY, HOME])),
        );
        fs::write(self.plan(), text).saying(|| format!("the demo's plan {} cannot be written", self.plan().display()))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--plan").arg(self.plan()).arg("--json");
        // Where a standby learns how the other site's server is reached.
        command.env("PGSERVICEFILE", self.path(SERVICES));
        if !arguments.contains(&"--state") {
            command.arg("--state").arg(self.path("outside/controller"));
        }
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs a verb that must end well.
    pub(super) fn run(&self, arguments: &[&str]) -> Result<Ran, CommandError> {
        self.run_shown(arguments, false)
    }

    /// Runs a verb; with `shown`, what it says on the way is shown as it says it. Ends other than 0 and 3 are errors.
    pub(super) fn run_shown(&self, arguments: &[&str], shown: bool) -> Result<Ran, CommandError> {
        if self.interrupt.is_cancelled() {
            return Err(interrupted());
        }
        let verb = arguments.iter().take(2).copied().collect::<Vec<_>>().join(" ");
        let mut child = self
            .command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .saying(|| format!("lifeboat {verb} cannot be started"))?;
        let (mut stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let reading = std::thread::spawn(move || {
            let mut text = Vec::new();
            let read = stdout.as_mut().map(|stdout| stdout.read_to_end(&mut text)).transpose();
            read.map(|_| text)
        });
        let (ended, watched) = std::sync::mpsc::channel::<()>();
        let pid = Pid::from_raw(child.id() as i32);
        let watchdog = std::thread::spawn(move || {
            let late = watched.recv_timeout(VERB_WITHIN) == Err(RecvTimeoutError::Timeout);
            if late && let Some(pid) = pid {
                let _ = rustix::process::kill_process(pid, Signal::TERM);
            }
            late
        });
        let mut said = Vec::new();
        for line in stderr.into_iter().flat_map(|stderr| BufReader::new(stderr).lines()) {
            let line = line?;
            if shown && is_told(&line) {
                self.ui.note(format_args!("    {line}"));
            }
            said.push(line);
        }
        let text = reading.join().map_err(|_| CommandError::failed(format!("lifeboat {verb} could not be read")))??;
        let status = child.wait()?;
        let code = status.code().unwrap_or(-1);
        drop(ended);
        if watchdog.join().unwrap_or(false) {
            let mut error =
                CommandError::failed(format!("lifeboat {verb} took longer than {} s", VERB_WITHIN.as_secs()));
            error.causes.extend(said.iter().rev().take(4).rev().cloned());
            return Err(error);
        }
        if code == 130 {
            return Err(interrupted());
        }
        let document = if text.is_empty() { Value::Null } else { last_document(&text)? };
        if code != 0 && code != 3 {
            let _ = fs::write(self.path("logs/failed.log"), said.join("\n"));
            let mut error = CommandError::failed(format!("lifeboat {verb} failed ({status})"));
            error.causes.extend(said.iter().rev().take(8).rev().cloned());
            return Err(error);
        }
        Ok(Ran { document })
    }

    /// Starts a process of this program in the background, in a group of its own.
    pub(super) fn start(&mut self, name: &str, arguments: &[&str]) -> Result<(), CommandError> {
        let log = fs::File::create(self.path(&format!("logs/{name}.log")))?;
        let child = self
            .command(arguments)
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .saying(|| format!("{name} cannot be started"))?;
        self.background.push((name.to_owned(), child));
        self.note_background()
    }

    /// Asks a background process to end, and waits until it has.
    pub(super) fn stop(&mut self, name: &str) -> Result<(), CommandError> {
        if let Some(index) = self.background.iter().position(|(known, _)| known == name) {
            let (_, mut child) = self.background.remove(index);
            end(&mut child);
        }
        self.note_background()
    }

    /// Which background process is no longer there, if one is not.
    pub(super) fn missing(&mut self) -> Option<String> {
        let logs = self.path("logs");
        let gone = self.background.iter_mut().filter_map(|(name, child)| match child.try_wait() {
            Ok(None) => None,
            _ => Some(name),
        });
        gone.last().map(|name| format!("{name} ended by itself; see {}", logs.join(format!("{name}.log")).display()))
    }

    fn note_background(&self) -> Result<(), CommandError> {
        let background = self.background.iter().map(|(name, child)| (child.id() as i32, name.clone())).collect();
        fs::write(self.path("demo.json"), serde_json::to_vec(&Record { background })?)?;
        Ok(())
    }

    /// Waits until `seen` answers; its answer until then says what is missing.
    pub(super) fn wait_until<T>(
        &mut self,
        what: &str,
        within: Duration,
        mut seen: impl FnMut(&mut Stage<'a>) -> Result<Result<T, String>, CommandError>,
    ) -> Result<T, CommandError> {
        let begun = Instant::now();
        loop {
            let missing = match seen(self)? {
                Ok(found) => return Ok(found),
                Err(missing) => missing,
            };
            if self.interrupt.is_cancelled() {
                return Err(interrupted());
            }
            if let Some(gone) = self.missing() {
                return Err(CommandError::failed(gone));
            }
            if begun.elapsed() > within {
                return Err(CommandError::failed(format!("waited {} s for {what}: {missing}", within.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The head of an act.
    pub(super) fn act(&self, name: &str, sentence: &str) {
        let (bold, off) = if self.ui.colour_on_stderr() { ("\x1b[1;36m", "\x1b[0m") } else { ("", "") };
        self.ui.note(format_args!("\n{bold}{name}{off}  {sentence}"));
    }

    /// A line of an act.
    pub(super) fn say(&self, sentence: &str) {
        self.ui.note(format_args!("    {sentence}"));
    }

    /// Runs a verb and shows its steps.
    pub(super) fn verb(&self, arguments: &[&str]) -> Result<Ran, CommandError> {
        self.run_shown(arguments, true)
    }

    /// Lets everything run on: the load is the demo's own and ends.
    pub(super) fn leave(&mut self) {
        for name in ["load", "canary"] {
            if let Err(error) = self.stop(name) {
                self.ui.warn(error.message);
            }
        }
    }

    /// Kills all that runs and removes all but the evidence.
    pub(super) fn clear(&mut self) -> Result<(), CommandError> {
        for (_, mut child) in std::mem::take(&mut self.background) {
            end(&mut child);
        }
        remove(&self.directory)
    }

    /// Puts what every process said where removal leaves it, for a demo that went wrong.
    pub(super) fn save_logs(&self) -> Result<PathBuf, CommandError> {
        let kept = self.path("evidence/logs");
        fs::create_dir_all(&kept)?;
        for (from, prefix) in [
            (self.path("logs"), ""),
            (self.site_root(HOME).join(".lifeboat/logs"), "paris-"),
            (self.site_root(AWAY).join(".lifeboat/logs"), "london-"),
        ] {
            for entry in from.read_dir().into_iter().flatten().flatten() {
                fs::copy(entry.path(), kept.join(format!("{prefix}{}", entry.file_name().to_string_lossy())))?;
            }
        }
        Ok(kept)
    }
}

/// Lines of a verb's that belong on the demo's screen: how each step ended, not the run-book that was shown before.
fn is_told(line: &str) -> bool {
    let timed = line.as_bytes().get(2) == Some(&b':') && line.as_bytes().get(5) == Some(&b':');
    timed && !line.contains("  … ") || line.starts_with("warning") || line.starts_with("alarm")
}

/// A verb prints one document; one that prints events before it prints each on a line.
fn last_document(text: &[u8]) -> Result<Value, CommandError> {
    let mut last = Value::Null;
    for document in serde_json::Deserializer::from_slice(text).into_iter::<Value>() {
        last = document?;
    }
    Ok(last)
}

pub(super) fn interrupted() -> CommandError {
    CommandError::interrupted("the demo was interrupted; everything it made is removed")
}

fn collect<const N: usize>(made: [Result<String, CommandError>; N]) -> Result<Vec<String>, CommandError> {
    made.into_iter().collect()
}

const DRILL_KEY: &str = "sites/london/.lifeboat/drill.key";

fn standby_key(site: &str) -> String {
    format!("sites/{site}/.lifeboat/standby.key")
}

/// Where the agent at a local site keeps its state, below the demo's directory.
fn agent_state(site: &str) -> String {
    format!("sites/{site}/.lifeboat/host")
}

/// SIGTERM, then SIGKILL to the whole group.
fn end(child: &mut Child) {
    let Some(group) = Pid::from_raw(child.id() as i32) else { return };
    let _ = rustix::process::kill_process_group(group, Signal::TERM);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = rustix::process::kill_process_group(group, Signal::KILL);
    let _ = child.wait();
}

/// Removes a demo that was kept: its processes, its sites, its directory; the evidence stays.
pub(super) fn remove(directory: &Path) -> Result<(), CommandError> {
    let record = directory.join("demo.json");
    if let Ok(text) = fs::read(&record) {
        let record: Record = serde_json::from_slice(&text).saying(|| format!("{} is damaged", record.display()))?;
        for (pid, name) in record.background {
            // A number may have been given to another process since: only one that was started with this plan is ours.
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let ours = directory.join("lifeboat.toml");
            let mut words = command.split(|byte| *byte == 0);
            if words.any(|word| word == ours.as_os_str().as_encoded_bytes())
                && let Some(group) = Pid::from_raw(pid)
            {
                rustix::process::kill_process_group(group, Signal::KILL)
                    .saying(|| format!("{name} (process {pid}) cannot be stopped"))?;
            }
        }
    } else if !directory.join("sites").is_dir() {
        return Err(CommandError::usage(format!("{} is no demo's directory", directory.display())));
    }
    for site in [HOME, AWAY] {
        let root = directory.join("sites").join(site);
        if root.exists() {
            kill_site(&root, true)?;
        }
    }
    for below in ["sites", "outside", "keys", "logs"] {
        let path = directory.join(below);
        if path.exists() {
            fs::remove_dir_all(&path).saying(|| format!("{} cannot be removed", path.display()))?;
        }
    }
    for below in ["lifeboat.toml", "demo.json"] {
        let _ = fs::remove_file(directory.join(below));
    }
    // Gone if nothing was proven yet.
    let _ = fs::remove_dir(directory.join("evidence"));
    let _ = fs::remove_dir(directory);
    Ok(())
}

/// Three loopback addresses with the service's port free, the third one's for the name server.
fn free_addresses(ports: &[u16]) -> Result<([Ipv4Addr; 3], SocketAddr), CommandError> {
    let seed = std::process::id() ^ Instant::now().elapsed().subsec_nanos();
    for attempt in 0..200_u32 {
        let mixed = seed.wrapping_add(attempt).wrapping_mul(2_654_435_761);
        let [high, low, ..] = mixed.to_be_bytes();
        // 127.0.x.x and 127.53.x.x are where resolvers and the like sit.
        let second = 64 + high % 128;
        let [home, away, outside] = [1, 2, 3].map(|last| Ipv4Addr::new(127, second, low, last));
        let wanted = ports.iter().copied().chain([SERVICE_PORT]);
        let free = |address: Ipv4Addr| wanted.clone().all(|port: u16| TcpListener::bind((address, port)).is_ok());
        if !free(home) || !free(away) {
            continue;
        }
        let (Ok(tcp), Ok(udp)) = (TcpListener::bind((outside, 5353)), UdpSocket::bind((outside, 5353))) else {
            continue;
        };
        let authority = tcp.local_addr()?;
        drop((tcp, udp));
        return Ok(([home, away, outside], authority));
    }
    Err(CommandError::failed(format!("no two loopback addresses with port {SERVICE_PORT} free were found"))
        .hint("the demo needs 127.64.0.0 to 127.191.255.255, which Linux has by itself"))
}
