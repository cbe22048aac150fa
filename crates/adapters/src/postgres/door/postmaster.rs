//! What a running server says of itself in its data directory, and what this process's user is called.
//!
//! Invariant: a `postmaster.pid` that a dead server left behind is no server.

use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, geteuid, test_kill_process};

use super::DoorError;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Running {
    pub(super) host: String,
    pub(super) port: u16,
}

pub(super) fn look(data_directory: &Path) -> Result<Running, DoorError> {
    let not_running = |why: &str| DoorError::NotRunning { path: data_directory.to_owned(), why: why.to_owned() };
    let path = data_directory.join("postmaster.pid");
    let text = match super::service::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(not_running(
                "it has no postmaster.pid; start the server, or see that this is its data directory",
            ));
        }
        Err(source) => return Err(DoorError::File { path, source }),
    };
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let line = |number: usize| lines.get(number - 1).copied().unwrap_or_default();
    let pid = process_of(&text).ok_or_else(|| not_running("its postmaster.pid names no process"))?;
    if is_gone(pid) {
        return Err(not_running("its postmaster.pid was left behind by a process that is gone"));
    }
    let port = line(4).parse::<u16>().ok().filter(|port| *port > 0);
    let port = port.ok_or_else(|| not_running("its postmaster.pid says no port yet; it may be starting"))?;
    let (socket, address) = (line(5), line(6));
    let host = if !socket.is_empty() {
        // A server's own directory is where a relative path begins.
        data_directory.join(PathBuf::from(socket)).display().to_string()
    } else if matches!(address, "*" | "0.0.0.0") {
        "127.0.0.1".to_owned()
    } else if address == "::" {
        "::1".to_owned()
    } else if !address.is_empty() {
        address.to_owned()
    } else {
        return Err(not_running("it listens nowhere; see `unix_socket_directories` and `listen_addresses`"));
    };
    Ok(Running { host, port })
}

/// Whether a server may be at work in a data directory: running, starting, or nobody can say.
pub(super) fn may_run(data_directory: &Path) -> bool {
    match super::service::read(&data_directory.join("postmaster.pid")) {
        Ok(text) => process_of(&text).is_none_or(|pid| !is_gone(pid)),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

fn process_of(text: &str) -> Option<Pid> {
    text.lines().next()?.trim().parse::<i32>().ok().map(i32::abs).and_then(Pid::from_raw)
}

/// Another user's process refuses the question, and is there.
fn is_gone(pid: Pid) -> bool {
    test_kill_process(pid) == Err(rustix::io::Errno::SRCH)
}

/// What the system calls the user of this process.
pub(super) fn user_name() -> Option<String> {
    name_of(geteuid().as_raw())
}

/// What the system calls the owner of a data directory: its superuser has that name, as a rule.
pub(super) fn owner_name(data_directory: &Path) -> Option<String> {
    name_of(std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(data_directory).ok()?))
}

/// The owner of a data directory, whom only root can become.
pub(super) fn owner_to_become(data_directory: &Path) -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt;
    let seen = std::fs::metadata(data_directory).ok()?;
    (geteuid().is_root() && seen.uid() != 0).then(|| (seen.uid(), seen.gid()))
}

fn name_of(id: u32) -> Option<String> {
    let id = id.to_string();
    let listed = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let of_line = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == id).then(|| name.to_owned())
    };
    // Users of a directory service stand in no file.
    listed.lines().find_map(of_line).or_else(|| {
        let output = std::process::Command::new("id")
            .args(["-un", &id])
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        String::from_utf8(output.stdout).ok().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty())
    })
}
