//! A vault behind a real sshd, and behind a socket: what a host does there, what it cannot, and how a killed server is survived.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use crate::machine::{Machine, Ran, assert_alike, await_that, noise};
use crate::ports::free_port;

/// An sshd of the test's own: its keys, its port, its authorized_keys.
struct Sshd {
    daemon: Child,
    port: u16,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn keygen(machine: &Machine, name: &str) -> String {
    let path = machine.at(&format!("ssh/{name}"));
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &path]).status().unwrap();
    assert!(made.success());
    fs::read_to_string(format!("{path}.pub")).unwrap().trim().to_owned()
}

/// Starts sshd; each line is the name of a client's key and the command that it gets.
fn sshd(machine: &Machine, lines: &[(&str, &str)]) -> Sshd {
    fs::create_dir_all(machine.path("ssh")).unwrap();
    fs::create_dir_all("/run/sshd").unwrap();
    let host = keygen(machine, "host");
    let allowed: String = lines
        .iter()
        .map(|(name, command)| format!("command=\"{command}\",restrict {}\n", keygen(machine, name)))
        .collect();
    keygen(machine, "stranger");
    machine.write("ssh/authorized", allowed);
    let port = free_port();
    let (key, authorized) = (machine.at("ssh/host"), machine.at("ssh/authorized"));
    machine.write(
        "ssh/sshd_config",
        format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {key}\nAuthorizedKeysFile {authorized}\nStrictModes no\n\
             UsePAM no\nPidFile none\nPermitRootLogin yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        ),
    );
    let words: Vec<&str> = host.split_whitespace().take(2).collect();
    machine.write("ssh/known", format!("[127.0.0.1]:{port} {}\n", words.join(" ")));
    machine.write(
        "ssh/known-other",
        format!("[127.0.0.1]:{port} {}\n", keygen(machine, "other").rsplit_once(' ').unwrap().0),
    );
    let config = machine.at("ssh/sshd_config");
    let daemon =
        Command::new("/usr/sbin/sshd").args(["-D", "-e", "-f", &config]).stderr(Stdio::null()).spawn().unwrap();
    await_that("sshd listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    Sshd { daemon, port }
}

/// A command whose ssh uses this key and these known hosts, as its user's configuration says.
fn over(machine: &Machine, key: &str, known: &str, line: &str) -> Command {
    let config = format!("ssh/{key}-{known}.config");
    machine.write(
        &config,
        format!(
            "Host *\nUser root\nIdentityFile {}\nIdentitiesOnly yes\nUserKnownHostsFile {}\nStrictHostKeyChecking yes\nBatchMode yes\n",
            machine.at(&format!("ssh/{key}")),
            machine.at(&format!("ssh/{known}"))
        ),
    );
    let mut command = machine.command(&line.split_whitespace().collect::<Vec<_>>());
    command.env("LIFEBOAT_SSH", format!("ssh -F {}", machine.at(&config)));
    command
}

fn ssh(machine: &Machine, key: &str, line: &str) -> Ran {
    machine.ran(over(machine, key, "known", line))
}

fn serve(machine: &Machine, more: &str) -> String {
    let (lifeboat, vault, state) = (machine.at("bin/lifeboat"), machine.at("backup"), machine.at("keeper"));
    format!("{lifeboat} --state {state} vault serve --stdio {vault} --keep-free 1MB {more}")
}

#[test]
fn over_ssh_a_host_adds_and_cannot_take_away() {
    let machine = Machine::new();
    let owner = machine.make_vault();
    let commands = [serve(&machine, "--host alpha"), serve(&machine, "--host reader --allow read")];
    let sshd = sshd(&machine, &[("alpha", &commands[0]), ("reader", &commands[1])]);
    let url = format!("ssh://127.0.0.1:{}{}", sshd.port, machine.at("backup"));
    let common = format!("--vault {url} --owner {owner}");
    // The storage's machine becomes its keeper.
    let asked = machine
        .line(&format!(
            "--json --state {} vault enroll --vault {} --owner {owner} --role keeper --host storage",
            machine.at("keeper"),
            machine.at("backup")
        ))
        .ends(0)
        .json();
    let fingerprint = asked["fingerprint"].as_str().unwrap();
    let approved =
        format!("vault enroll --vault {} --key owner.key --approve {fingerprint} --role keeper", machine.at("backup"));
    assert!(machine.line(&approved).ends(0).out.contains("storage may give receipts from now on"));

    machine.write("data/photo", noise(1, 3_000_000));
    machine.write("data/deep/letter", "dear reader");
    let data = machine.at("data");
    let made = ssh(&machine, "alpha", &format!("--json backup {common} {data}")).ends(0).json();
    assert!(made["bytes_new"].as_u64().unwrap() >= 3_000_000);
    let again = ssh(&machine, "alpha", &format!("--json backup {common} {data}")).ends(0).json();
    assert_eq!(again["bytes_new"], 0);
    ssh(&machine, "alpha", &format!("points {common}")).ends(0);

    // The host's key restores nothing and cleans up nothing; a key that may read does the one, and not the other.
    let out = machine.at("out");
    let refused = ssh(&machine, "alpha", &format!("restore {common} --key owner.key --to {out}")).ends(1);
    assert!(refused.err.contains("alpha may not read it here"), "{}", refused.err);
    ssh(&machine, "reader", &format!("restore {common} --key owner.key --to {out}")).ends(0);
    assert_alike(&machine.path("data"), &machine.path("out"));
    let refused = ssh(
        &machine,
        "reader",
        &format!("vault recipients remove {common} --key owner.key --yes {}", recipient(&machine)),
    );
    assert!(refused.code == 1 && refused.err.contains("only the owner creates that"), "{}", refused.err);

    // Everything came with a receipt.
    let receipts = fs::read_dir(machine.path(&format!("backup/receipt/{fingerprint}"))).unwrap().count();
    assert_eq!(receipts, 2, "one for each connection that stored something");
    machine.line(&format!("vault check --vault {} --key owner.key --read-data", machine.at("backup"))).ends(0);
}

fn recipient(machine: &Machine) -> String {
    machine.line("key inspect paper.key").out.split_whitespace().find(|w| w.starts_with("age1")).unwrap().to_owned()
}

#[test]
fn what_ssh_has_against_it_is_shown() {
    let machine = Machine::new();
    machine.make_vault();
    let command = serve(&machine, "--host alpha");
    let sshd = sshd(&machine, &[("alpha", &command), ("chatty", "echo welcome to this server")]);
    let url = format!("ssh://127.0.0.1:{}{}", sshd.port, machine.at("backup"));
    let points = format!("points --vault {url}");
    let stranger = ssh(&machine, "stranger", &points).ends(1);
    assert!(stranger.err.contains("Permission denied (publickey)"), "{}", stranger.err);
    let other = machine.ran(over(&machine, "alpha", "known-other", &points)).ends(1);
    assert!(other.err.contains("Host key verification failed"), "{}", other.err);
    let chatty = ssh(&machine, "chatty", &points).ends(1);
    assert!(chatty.err.contains("impossible length"), "{}", chatty.err);
    let nobody = ssh(&machine, "alpha", "points --vault ssh://127.0.0.1:1/x").ends(1);
    assert!(nobody.err.contains("Connection refused"), "{}", nobody.err);
    let wrong = ssh(&machine, "alpha", "points --vault ssh://-oProxyCommand=x/y").ends(2);
    assert!(wrong.err.contains("not a host's name"), "{}", wrong.err);
}

#[test]
fn a_server_that_is_killed_in_mid_upload_costs_nothing() {
    let machine = Machine::new();
    let owner = machine.make_vault();
    // Every connection leaves its server's number.
    let wrapper = machine.path("bin/wrapper");
    machine.write(
        "bin/wrapper",
        format!("#!/bin/sh\necho $$ >> {}\nexec {}\n", machine.at("pids"), serve(&machine, "--host alpha")),
    );
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    let sshd = sshd(&machine, &[("alpha", &wrapper.display().to_string())]);
    let url = format!("ssh://127.0.0.1:{}{}", sshd.port, machine.at("backup"));
    machine.write("data/large", noise(7, 40 << 20));
    let line = format!("--json backup --vault {url} --owner {owner} {}", machine.at("data"));
    let mut command = over(&machine, "alpha", "known", &line);
    let backup = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pids = || fs::read_to_string(machine.path("pids")).unwrap_or_default();
    for kills in 1..=2 {
        await_that("an upload is under way", || {
            let uploading = fs::read_dir(machine.path("backup/.tmp")).is_ok_and(|entries| entries.count() > 0);
            uploading && pids().lines().count() >= kills
        });
        let pid = pids().lines().last().unwrap().to_owned();
        assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
        await_that("another server", || pids().lines().count() > kills);
    }
    let made = machine.finish(backup).ends(0).json();
    assert_eq!(made["files"], 1);
    let vault = machine.at("backup");
    machine.line(&format!("vault check --vault {vault} --key owner.key --read-data")).ends(0);
    machine.line(&format!("restore --vault {vault} --key owner.key --to {}", machine.at("out"))).ends(0);
    assert_alike(&machine.path("data"), &machine.path("out"));
}

#[test]
fn behind_a_socket_the_roster_says_who_may_come_in() {
    let machine = Machine::new();
    let owner = machine.make_vault();
    let socket = machine.at("vault.sock");
    let serve = [
        "vault",
        "serve",
        &machine.at("backup"),
        "--socket",
        &socket,
        "--keep-free",
        "1MB",
        "--state",
        &machine.at("keeper"),
    ];
    let mut server = machine.spawn(&serve);
    await_that("the server", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    machine.write("data/file", noise(3, 200_000));
    let (url, data) = (format!("unix://{socket}"), machine.at("data"));
    machine.line(&format!("backup --vault {url} --owner {owner} {data}")).ends(0);
    let stranger = machine.elsewhere("stranger", &format!("points --vault {url} --owner {owner}")).ends(1);
    assert!(stranger.err.contains("no key was proven"), "{}", stranger.err);
    // A server that lives keeps its socket; one that is gone leaves it to the next.
    machine.run(&serve).ends(1);
    server.kill().unwrap();
    server.wait().unwrap();
    let server = machine.spawn(&serve);
    await_that("the next server", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    machine.line(&format!("points --vault {url} --owner {owner}")).ends(0);
    assert!(Command::new("kill").arg(server.id().to_string()).status().unwrap().success());
    machine.finish(server).ends(130);
    assert!(!machine.path("vault.sock").exists());
}
