//! The service with lifeboat: two sites of this machine, a vault, arbiter and name server outside both, all by the verbs that a user types.
//!
//! Invariant: the verbs are those of the binary that is measured, and each must end well; what its steps took is kept beside the peers.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::super::measure::Call;
use super::super::super::peers::lifeboat;
use super::super::super::{home, make_directory};
use super::super::cluster::{Cluster, as_its_user, programs};
use super::super::processes::Background;
use super::door::Door;
use super::{Arm, PORT, Side};

const NAME: &str = "shop.bench.";
const TTL: &str = "1s";
const AUTHORITY: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 61, 3, 1), 5353);
/// How the service is watched, through its name, until lifeboat does that by itself.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const FAILURES: u32 = 3;
const VOLUME: &str = "volumes/ledger";

pub(super) fn settings() -> String {
    format!(
        "two local sites, a vault in a directory, `log = \"stream\"`, `replica` with `via` and `mode = \"sync-preferred\"`; the name's time to live is {TTL}, \
         and the client asks the authority for each new connection. This version does not watch by itself: the benchmark looks at the service through its \
         name every {} s, and after {FAILURES} failures in a row calls `lifeboat failover`. The former primary's return is asked for by `lifeboat failback`",
        LOOK_EVERY.as_secs_f64()
    )
}

fn site(side: Side) -> &'static str {
    match side {
        Side::Home => "paris",
        Side::Away => "london",
    }
}

pub(super) struct Lifeboat {
    root: PathBuf,
    background: Background,
    /// A verb that brings the former primary back.
    returning: Option<(Call, Child, PathBuf)>,
}

impl Lifeboat {
    pub(super) fn set(root: &Path, original: &Cluster) -> Result<Lifeboat, String> {
        let background = Background::at(root)?;
        let arm = Lifeboat { root: root.to_owned(), background, returning: None };
        for below in ["keys", "outside/arbiter", "logs", "sites/paris/volumes", "sites/london/volumes"] {
            make_directory(&arm.root.join(below))?;
        }
        let recipients = ["keys/owner.key", "keys/paper.key"].map(|file| arm.key(file));
        let recipients: Vec<String> = recipients.into_iter().collect::<Result<_, _>>()?;
        let standby = [Side::Home, Side::Away].map(|side| Ok((side, arm.key(&arm.standby_key(side))?)));
        let standby: Vec<(Side, String)> = standby.into_iter().collect::<Result<_, String>>()?;
        arm.write_plan(&recipients, &standby, None)?;
        let made = arm.verb(&["vault", "init"])?;
        arm.write_plan(&recipients, &standby, made["owner"].as_str())?;
        for side in [Side::Home, Side::Away] {
            let state = arm.at(&format!("sites/{}/.lifeboat/host", site(side)));
            let asked = arm.verb(&["vault", "enroll", "--host", site(side), "--state", &state])?;
            let fingerprint = asked["fingerprint"].as_str().unwrap_or_default();
            arm.verb(&["vault", "enroll", "--approve", fingerprint, "--key", &arm.at("keys/owner.key")])?;
        }
        let section = |side: Side| {
            format!("[{}]\nhost={}\nport={PORT}\nuser=postgres\ndbname=postgres\n", site(side), arm.address(side))
        };
        arm.write("outside/pg_service.conf", &[Side::Home, Side::Away].map(section).join("\n"))?;
        let volume = arm.place(Side::Home).join(VOLUME);
        Call::new(&["cp", "-a", &original.data.to_string_lossy(), &volume.to_string_lossy()]).run()?;
        Ok(arm)
    }

    fn at(&self, below: &str) -> String {
        self.root.join(below).to_string_lossy().into_owned()
    }

    fn write(&self, below: &str, text: &str) -> Result<(), String> {
        fs::write(self.root.join(below), text).map_err(|error| format!("cannot write {below} ({error})"))
    }

    fn standby_key(&self, side: Side) -> String {
        format!("sites/{}/standby.key", site(side))
    }

    fn key(&self, file: &str) -> Result<String, String> {
        let made = self.verb(&["key", "new", "-o", &self.at(file)])?;
        Ok(made["recipient"].as_str().unwrap_or_default().to_owned())
    }

    fn call(&self, words: &[&str]) -> Call {
        let (program, plan, state) =
            (lifeboat().to_string_lossy().into_owned(), self.at("lifeboat.toml"), self.at("outside/controller"));
        let mut all = vec![program.as_str(), "--plan", &plan, "--json"];
        if !words.contains(&"--state") {
            all.extend(["--state", &state]);
        }
        all.extend(words);
        let pair = |name: &str, value: String| (name.to_owned(), value);
        // The cluster's first role is called so, whoever owns its files.
        let user = pair("PGUSER", "postgres".to_owned());
        Call::new(&all).with(&[pair("PGSERVICEFILE", self.at("outside/pg_service.conf")), user])
    }

    /// Its last document. A finding (an objective that was missed) is no failure.
    fn verb(&self, words: &[&str]) -> Result<Value, String> {
        last_document(&self.call(words).ends_with(&[0, 3])?)
    }

    /// A run: what its steps took is kept, for who wonders about a figure.
    fn run(&self, words: &[&str]) -> Result<(), String> {
        let key = self.at("keys/owner.key");
        let document = self.verb(&[words, &["--yes", "--key", &key]].concat())?;
        self.keep_steps(words, &document)
    }

    fn keep_steps(&self, words: &[&str], document: &Value) -> Result<(), String> {
        let kept = home().join("switch");
        make_directory(&kept)?;
        let run = document["run"].as_str().unwrap_or_default();
        let plan = [self.at("lifeboat.toml"), self.at("outside/controller")];
        let shown =
            Call::new(&[&lifeboat().to_string_lossy(), "--plan", &plan[0], "--state", &plan[1], "run", "show", run]);
        let path = kept.join(format!("{run}-{}.txt", words.join("-")));
        fs::write(&path, shown.ends_with(&[0, 3])?)
            .map_err(|error| format!("cannot write {} ({error})", path.display()))
    }

    fn write_plan(&self, recipients: &[String], standby: &[(Side, String)], owner: Option<&str>) -> Result<(), String> {
        let holders = standby.iter().map(|(side, recipient)| {
            let (held_at, file) = (json!(site(*side)), json!(self.at(&self.standby_key(*side))));
            let recipient = json!(recipient);
            format!("{{ recipient = {recipient}, held-at = {held_at}, datasets = [\"ledger\"], identity = {{ file = {file} }} }}")
        });
        let owner = owner.map(|owner| format!("owner = {}\n", json!(owner))).unwrap_or_default();
        let recipients = json!(recipients);
        let standby = holders.collect::<Vec<_>>().join(", ");
        let (arbiter, vault) = (json!(self.at("outside/arbiter")), json!(self.at("outside/vault")));
        let (first, second) = (json!(self.place(Side::Home)), json!(self.place(Side::Away)));
        let [home, away] = [Side::Home, Side::Away].map(|side| self.address(side));
        let launch = json!(launch()?);
        let authority = SocketAddr::from(AUTHORITY);
        let text = format!(
            r#"[plan]
name = "bench"

[arbiter]
url = {arbiter}
organization = "outside"

[site.paris]
reach = "local"
root = {first}
address = "{home}"
organization = "first"

[site.london]
reach = "local"
root = {second}
address = "{away}"
organization = "second"

[vault.main]
url = {vault}
organization = "outside"

[key]
recipients = {recipients}
{owner}standby = [{standby}]

[service.shop]
strategy = "warm-standby"
primary = "paris"
recovery = ["london"]
rpo = "10s"
rto = "30s"

[service.shop.component.db]
role = "database"
launch = {{ command = {launch}, stop-signal = "int" }}
port = {PORT}
health = {{ tcp = true, within = "20s", every = "100ms" }}

[service.shop.component.db.dataset.ledger]
kind = "persistent"
postgres = {{ path = "ledger" }}
protect = [{{ to = "main", base = {{ every = "1d", keep = {{ last = 7 }} }}, log = "stream" }}]
replica = {{ at = "london", via = {{ paris = "paris", london = "london" }}, mode = "sync-preferred" }}

[service.shop.traffic]
name = "{NAME}"
dns = {{ authority = "{authority}" }}
everyday = {{ paris = 100 }}
ttl = "{TTL}"
"#
        );
        self.write("lifeboat.toml", &text)
    }
}

/// How the server is started, its programs and user as this machine has them.
fn launch() -> Result<Vec<String>, String> {
    let server = programs()?.join("postgres").to_string_lossy().into_owned();
    let words = [
        &server,
        "-D",
        "{{ dataset.ledger.path }}",
        "-c",
        "listen_addresses={{ instance.address }}",
        "-c",
        "port={{ instance.port }}",
        "-c",
        "unix_socket_directories=",
    ];
    Ok(as_its_user(&words)?.words)
}

/// A verb prints one document; one that prints events before it prints each on a line.
fn last_document(text: &str) -> Result<Value, String> {
    let documents = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let last = documents.last().unwrap_or(Ok(Value::Null));
    last.map_err(|error| format!("lifeboat printed what is no JSON ({error})"))
}

impl Arm for Lifeboat {
    fn start(&mut self) -> Result<(), String> {
        let call = self.call(&["dns", "--state", &self.at("outside/name-server")]);
        self.background.start(&call, &self.root.join("logs/dns"))?;
        self.run(&["up", "shop"])
    }

    fn door(&self) -> Door {
        Door::Named { name: NAME, authority: AUTHORITY.into(), port: PORT }
    }

    fn address(&self, side: Side) -> Ipv4Addr {
        match side {
            Side::Home => Ipv4Addr::new(127, 61, 1, 1),
            Side::Away => Ipv4Addr::new(127, 61, 2, 1),
        }
    }

    fn place(&self, side: Side) -> PathBuf {
        self.root.join("sites").join(site(side))
    }

    fn standby(&self, _: Side) -> String {
        // What goes to the vault holds a slot, a standby none.
        "application_name like 'lifeboat%' and pid not in (select active_pid from pg_replication_slots where active)"
            .to_owned()
    }

    fn hand_over(&mut self, to: Side) -> Result<(), String> {
        match to {
            Side::Away => self.run(&["failover", "shop", "--planned"]),
            Side::Home => self.run(&["failback", "shop"]),
        }
    }

    /// The watch looked last at any time before: its next look comes within one interval, and not right now.
    fn after_loss(&mut self) -> Result<Option<Instant>, String> {
        std::thread::sleep(LOOK_EVERY.mul_f64(super::any_fraction()));
        let mut failures = 0;
        loop {
            let looked_at = Instant::now();
            let seen = self.door().open().and_then(|mut connection| connection.ask("select 1"));
            failures = if seen.is_ok() { 0 } else { failures + 1 };
            if failures == FAILURES {
                break;
            }
            std::thread::sleep(LOOK_EVERY.saturating_sub(looked_at.elapsed()));
        }
        let detected_at = Instant::now();
        self.run(&["failover", "shop"])?;
        Ok(Some(detected_at))
    }

    fn ask_back(&mut self) -> Result<(), String> {
        let key = self.at("keys/owner.key");
        let call = self.call(&["failback", "shop", "--yes", "--key", &key]);
        let log = self.root.join("logs/failback");
        let child = call.start(&log)?;
        self.returning = Some((call, child, log));
        Ok(())
    }

    /// The way back ends with the service at home.
    fn settle(&mut self) -> Result<Side, String> {
        let (call, mut child, log) = self.returning.take().ok_or("nobody asked for a return")?;
        let status = child.wait().map_err(|error| format!("cannot wait for lifeboat ({error})"))?;
        let said = fs::read_to_string(&log).unwrap_or_default();
        if !matches!(status.code(), Some(0 | 3)) {
            let last: Vec<&str> = said.lines().rev().take(8).collect();
            return Err(format!("{} ended with {status}: {}", call.words.join(" "), last.join(" / ")));
        }
        // Everything that it printed names its run.
        let run = said.split("\"run\"").nth(1).and_then(|rest| rest.split('"').nth(1)).unwrap_or_default();
        self.keep_steps(&["return"], &json!({ "run": run }))?;
        Ok(Side::Home)
    }
}
