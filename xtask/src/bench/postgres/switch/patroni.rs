//! The same with Patroni: etcd, two nodes, and HAProxy in front, each at loopback addresses of its own.
//!
//! Invariant: everything is set as fast as Patroni allows (it refuses a `ttl` below 20), and the clusters as the other arm's.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use super::super::super::measure::Call;
use super::super::super::peers::python_tool;
use super::super::super::{home, make_directory};
use super::super::cluster::{Cluster, as_its_user, directory_for_it, programs};
use super::super::processes::Background;
use super::door::{ANSWER_WITHIN, Door};
use super::{Arm, PORT, Side};

const PACKAGE: &str = "patroni[etcd3,psycopg3]==4.1.5";
/// Debian's own: the server's user, as whom Patroni runs, may not read one that lies in somebody's home.
const PYTHON: &str = "/usr/bin/python3";
const SCOPE: &str = "bench";
const REST: u16 = 8008;
const ETCD: (Ipv4Addr, u16, u16) = (Ipv4Addr::new(127, 62, 3, 1), 2379, 2380);
const PROXY: Ipv4Addr = Ipv4Addr::new(127, 62, 4, 1);
const TTL: u32 = 20;
const LOOP_WAIT: u32 = 1;
const RETRY_TIMEOUT: u32 = 3;
const CHECK: &str = "inter 1s fall 1 rise 1";
const READY_WITHIN: Duration = Duration::from_secs(120);

pub(super) fn settings() -> String {
    format!(
        "`ttl: {TTL}`, `loop_wait: {LOOP_WAIT}`, `retry_timeout: {RETRY_TIMEOUT}` (the fastest it allows), `synchronous_mode`, `use_pg_rewind`; one etcd; \
         HAProxy asks its REST interface with `{CHECK}`, `on-marked-down shutdown-sessions`, and the client connects to HAProxy. The former primary's \
         return is asked for by starting its Patroni"
    )
}

fn programs_of_patroni() -> PathBuf {
    home().join("peers/patroni/bin")
}

/// Installs it, and says the versions of all three.
pub(super) fn version() -> Result<String, String> {
    let place = home().join("peers/patroni");
    if !place.exists() {
        make_directory(&home().join("peers"))?;
        python_tool(PYTHON, &place, PACKAGE)?;
    }
    let patroni = as_its_user(&[&programs_of_patroni().join("patroni").to_string_lossy(), "--version"])?.run()?;
    let first = |words: &[&str]| Call::new(words).run().map(|text| text.lines().next().unwrap_or_default().to_owned());
    let (etcd, proxy) = (first(&["etcd", "--version"])?, first(&["haproxy", "-v"])?);
    let proxy = proxy.split(" - ").next().unwrap_or_default();
    let proxy = proxy.rsplit_once(' ').map_or(proxy, |(before, date)| if date.contains('/') { before } else { proxy });
    Ok(format!("{}, {etcd}, {proxy}", patroni.trim()))
}

fn node(side: Side) -> &'static str {
    match side {
        Side::Home => "a",
        Side::Away => "b",
    }
}

pub(super) struct Patroni {
    root: PathBuf,
    background: Background,
}

impl Patroni {
    pub(super) fn set(root: &Path, original: &Cluster) -> Result<Patroni, String> {
        let arm = Patroni { root: root.to_owned(), background: Background::at(root)? };
        make_directory(&arm.root)?;
        for side in [Side::Home, Side::Away] {
            directory_for_it(&arm.place(side))?;
            arm.write(&arm.config(side), &arm.node_config(side)?)?;
        }
        // It adopts a cluster that is there, by starting it as a standby; which it was never said to be fit for.
        let mut adopted = original.copy(&arm.place(Side::Home))?;
        adopted.start()?;
        adopted.stop()?;
        arm.write(&arm.root.join("haproxy.cfg"), &arm.proxy_config())?;
        Ok(arm)
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), String> {
        std::fs::write(path, text).map_err(|error| format!("cannot write {} ({error})", path.display()))
    }

    fn config(&self, side: Side) -> PathBuf {
        self.place(side).join("patroni.yml")
    }

    /// As JSON, which is YAML.
    fn node_config(&self, side: Side) -> Result<String, String> {
        let (own, address) = (self.place(side), self.address(side));
        let rest = format!("{address}:{REST}");
        let listen = format!("{address}:{PORT}");
        let role = json!({ "username": "postgres" });
        let config = json!({
            "scope": SCOPE,
            "name": node(side),
            "restapi": { "listen": rest, "connect_address": rest },
            "etcd3": { "hosts": format!("{}:{}", ETCD.0, ETCD.1) },
            "bootstrap": { "dcs": {
                "ttl": TTL, "loop_wait": LOOP_WAIT, "retry_timeout": RETRY_TIMEOUT, "synchronous_mode": true,
                "postgresql": { "use_pg_rewind": true, "use_slots": true },
            } },
            "postgresql": {
                "listen": listen, "connect_address": listen, "data_dir": own.join("data"), "bin_dir": programs()?, "pgpass": own.join("pgpass"),
                "authentication": { "superuser": role, "replication": role, "rewind": role },
                "parameters": { "unix_socket_directories": own },
            },
        });
        Ok(format!("{config:#}"))
    }

    fn proxy_config(&self) -> String {
        let server = |side: Side| {
            format!("  server {} {}:{PORT} maxconn 100 check port {REST}\n", node(side), self.address(side))
        };
        format!(
            "global\n  maxconn 100\ndefaults\n  mode tcp\n  retries 2\n  timeout client 30m\n  timeout connect 4s\n  timeout server 30m\n  \
             timeout check 5s\nlisten primary\n  bind {PROXY}:{PORT}\n  option httpchk OPTIONS /primary\n  http-check expect status 200\n  \
             default-server {CHECK} on-marked-down shutdown-sessions\n{}{}",
            server(Side::Home),
            server(Side::Away)
        )
    }

    fn start_node(&mut self, side: Side) -> Result<(), String> {
        let program = programs_of_patroni().join("patroni").to_string_lossy().into_owned();
        let call = as_its_user(&[&program, &self.config(side).to_string_lossy()])?;
        self.background.start(&call, &self.root.join(format!("{}.log", node(side))))
    }

    fn start_etcd(&mut self) -> Result<(), String> {
        let (address, clients, peers) = ETCD;
        let (clients, peers) = (format!("http://{address}:{clients}"), format!("http://{address}:{peers}"));
        let (data, cluster) = (self.root.join("etcd").to_string_lossy().into_owned(), format!("default={peers}"));
        let call = Call::new(&[
            "etcd",
            "--data-dir",
            &data,
            "--listen-client-urls",
            &clients,
            "--advertise-client-urls",
            &clients,
            "--listen-peer-urls",
            &peers,
            "--initial-advertise-peer-urls",
            &peers,
            "--initial-cluster",
            &cluster,
        ]);
        self.background.start(&call, &self.root.join("etcd.log"))
    }

    /// Waits until a node says yes to a question of its REST interface's.
    fn await_yes(&self, side: Side, question: &str) -> Result<(), String> {
        let until = Instant::now() + READY_WITHIN;
        let address = SocketAddr::from((self.address(side), REST));
        while !says_yes(address, question).unwrap_or(false) {
            if Instant::now() > until {
                let log = std::fs::read_to_string(self.root.join(format!("{}.log", node(side)))).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(5).collect();
                return Err(format!("node {} is not {question}: {}", node(side), last.join(" / ")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

fn says_yes(address: SocketAddr, question: &str) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_WITHIN)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {question} HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(4096).read_to_string(&mut answer)?;
    Ok(answer.split(' ').nth(1) == Some("200"))
}

impl Arm for Patroni {
    fn start(&mut self) -> Result<(), String> {
        self.start_etcd()?;
        self.start_node(Side::Home)?;
        self.await_yes(Side::Home, "/primary")?;
        self.start_node(Side::Away)?;
        let config = self.root.join("haproxy.cfg").to_string_lossy().into_owned();
        let call = Call::new(&["haproxy", "-db", "-f", &config]);
        self.background.start(&call, &self.root.join("haproxy.log"))
    }

    fn door(&self) -> Door {
        Door::At((PROXY, PORT).into())
    }

    fn address(&self, side: Side) -> Ipv4Addr {
        match side {
            Side::Home => Ipv4Addr::new(127, 62, 1, 1),
            Side::Away => Ipv4Addr::new(127, 62, 2, 1),
        }
    }

    fn place(&self, side: Side) -> PathBuf {
        self.root.join("nodes").join(node(side))
    }

    fn standby(&self, side: Side) -> String {
        format!("application_name = '{}'", node(side))
    }

    fn hand_over(&mut self, to: Side) -> Result<(), String> {
        // Only a standby that it knows to be synchronous may take over.
        self.await_yes(to, "/sync")?;
        let program = programs_of_patroni().join("patronictl").to_string_lossy().into_owned();
        let config = self.config(to).to_string_lossy().into_owned();
        let words = ["switchover", SCOPE, "--leader", node(to.other()), "--candidate", node(to), "--force"];
        as_its_user(&[&[program.as_str(), "-c", &config], &words[..]].concat())?.run().map(drop)
    }

    /// It watches by itself.
    fn after_loss(&mut self) -> Result<Option<Instant>, String> {
        Ok(None)
    }

    fn ask_back(&mut self) -> Result<(), String> {
        self.start_node(Side::Home)
    }

    fn settle(&mut self) -> Result<Side, String> {
        Ok(Side::Away)
    }
}
