//! Real processes for the tests: each is killed when its handle goes.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Asks until the condition holds; fails after a minute, saying what was waited for.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited a minute for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub struct Process {
    child: Child,
}

impl Process {
    pub fn signal(&mut self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM; the exit code.
    pub fn terminate(mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        wait_for("a process to end after SIGTERM", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn logbook() -> Command {
    Command::new(env!("CARGO_BIN_EXE_logbook"))
}

/// A service with its data under `home`, on `listen`; its real address.
pub fn start_service(home: &Path, listen: &str, more: &[&str]) -> (Process, SocketAddr) {
    let mut child = logbook()
        .arg("serve")
        .arg("--database")
        .arg(home.join("logbook.db"))
        .arg("--uploads")
        .arg(home.join("uploads"))
        .args(["--listen", listen])
        .args(more)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let process = Process { child };
    let line = lines.next().expect("the service says where it listens").unwrap();
    let address = line.strip_prefix("logbook: listening on ").unwrap_or_else(|| panic!("{line}"));
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| eprintln!("{line}")));
    (process, address.parse().unwrap())
}

pub fn start_load(door: &[String], ledger: &Path, more: &[&str]) -> Process {
    let child = logbook().arg("load").args(door).arg("--ledger").arg(ledger).args(more).spawn().unwrap();
    Process { child }
}

/// unbound, answering for `logbook.test.` with one address and a time to live of a second.
pub fn start_name_server(home: &Path, port: u16, address: &str) -> Process {
    let config = home.join("unbound.conf");
    let text = format!(
        "server:\n interface: 127.0.0.1@{port}\n do-daemonize: no\n chroot: \"\"\n username: \"\"\n \
         use-syslog: no\n directory: \"{}\"\n pidfile: \"\"\n do-not-query-localhost: no\n \
         local-zone: \"test.\" static\n local-data: \"logbook.test. 1 IN A {address}\"\n\
         remote-control:\n control-enable: no\n",
        home.display()
    );
    std::fs::write(&config, text).unwrap();
    let child = Command::new("unbound").arg("-d").arg("-c").arg(&config).stderr(Stdio::null()).spawn();
    let mut process = Process { child: child.expect("unbound must be installed: `cargo xtask test` does it") };
    let question = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x07logbook\x04test\0\0\x01\0\x01";
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    wait_for("unbound to answer", || {
        assert_eq!(process.child.try_wait().unwrap(), None, "unbound ended; is port {port} taken?");
        socket.send_to(question, ("127.0.0.1", port)).unwrap();
        socket.recv(&mut [0; 512]).ok()
    });
    process
}

pub fn door(authority_port: u16, port: u16) -> Vec<String> {
    ["--name", "logbook.test.", "--authority", &format!("127.0.0.1:{authority_port}"), "--port", &port.to_string()]
        .map(str::to_owned)
        .to_vec()
}
