//! Which processes of this machine belong to the site, what they hold open and where they listen: `/proc`, read once.
//!
//! Invariant: a process that could not be looked into is counted as such, never as harmless; a signal goes to the very
//! process that was seen, not to one that got its number later.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lifeboat_engine::port::PortError;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::holders::{FileId, ForeignMounts, Tree};
use super::layout::{InstanceRecord, Layout, boot_id};

/// The environment variables that mark a process, and all that it starts, as the site's.
pub(in crate::site) const SITE: &str = "LIFEBOAT_SITE";
pub(in crate::site) const WRITE_DOMAIN: &str = "LIFEBOAT_WRITE_DOMAIN";
pub(in crate::site) const INSTANCE: &str = "LIFEBOAT_INSTANCE";
pub(in crate::site) const ISOLATION: &str = "LIFEBOAT_ISOLATION";
/// The value of `INSTANCE` in the supervisor itself.
pub(super) const SUPERVISOR: &str = "supervisor";
/// The same in the host's own `lifeboat protect`, as far as the supervisor started it.
pub(super) const AGENT: &str = "agent";

/// The same in what watches over the writer's lease: it outlives the agent that started it.
pub(in crate::site) const WATCHDOG: &str = "watchdog";

/// An environment is bounded by the kernel (a quarter of the stack limit); more than this is not looked at.
const ENVIRONMENT_BYTES_MAX: u64 = 16 << 20;

/// To what a process of the site belongs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Belongs {
    pub(super) write_domain: Option<String>,
    /// None: it descends from the supervisor, but has shed its marks.
    pub(super) instance: Option<String>,
    pub(super) isolation: Option<String>,
}

impl Belongs {
    pub(super) fn is_supervisor(&self) -> bool {
        self.instance.as_deref() == Some(SUPERVISOR)
    }

    pub(super) fn is_agent(&self) -> bool {
        self.instance.as_deref() == Some(AGENT)
    }
}

/// The marks a process carries: those of a site (perhaps another one), none, or it cannot be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Marks {
    Site { mark: String, belongs: Belongs },
    None,
    Unreadable,
}

#[derive(Debug, Clone)]
pub(in crate::site) struct Process {
    pub(super) pid: i32,
    pub(super) parent: i32,
    pub(super) group: i32,
    pub(super) session: i32,
    pub(in crate::site) start_ticks: u64,
    pub(super) name: String,
    marks: Marks,
}

impl Process {
    pub(in crate::site) fn read(pid: i32) -> Option<Process> {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        let stat = String::from_utf8_lossy(&stat);
        let (open, close) = (stat.find('(')?, stat.rfind(')')?);
        let fields: Vec<&str> = stat.get(close + 1..)?.split_ascii_whitespace().collect();
        // A zombie holds nothing any more and cannot act.
        if matches!(*fields.first()?, "Z" | "X" | "x") {
            return None;
        }
        let number = |at: usize| fields.get(at).and_then(|text| text.parse::<i32>().ok());
        Some(Process {
            pid,
            parent: number(1)?,
            group: number(2)?,
            session: number(3)?,
            start_ticks: fields.get(19)?.parse().ok()?,
            name: stat.get(open + 1..close)?.to_owned(),
            marks: Marks::None,
        })
    }

    pub(super) fn is_alive(&self) -> bool {
        Process::read(self.pid).is_some_and(|now| now.start_ticks == self.start_ticks)
    }

    /// Sends a signal to this process and to no other. Gone is fine.
    pub(in crate::site) fn signal(&self, signal: Signal) -> io::Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if !self.is_alive() {
            return Ok(());
        }
        match pidfd_send_signal(&handle, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} ({})", self.pid, self.name)
    }
}

/// All processes of the machine, as they were when it was taken.
#[derive(Debug)]
pub(super) struct Snapshot {
    processes: BTreeMap<i32, Process>,
    belongs: BTreeMap<i32, Belongs>,
}

impl Snapshot {
    pub(super) fn take(layout: &Layout) -> Result<Snapshot, PortError> {
        // Without its state a site's processes are still known by their marks.
        let records = layout.instance_records().unwrap_or_default();
        let mut processes = BTreeMap::new();
        for pid in process_numbers()? {
            if let Some(mut process) = Process::read(pid) {
                process.marks = read_marks(pid);
                processes.insert(pid, process);
            }
        }
        let mut belongs = BTreeMap::new();
        let groups = groups_of(&records, &processes);
        for process in processes.values() {
            if let Some(found) = belongs_of(process, &processes, layout.mark(), &groups) {
                belongs.insert(process.pid, found);
            }
        }
        Ok(Snapshot { processes, belongs })
    }

    pub(super) fn count(&self) -> usize {
        self.processes.len()
    }

    pub(super) fn belongs(&self, pid: i32) -> Option<&Belongs> {
        self.belongs.get(&pid)
    }

    /// The site's processes that `wanted` picks, with what they belong to.
    pub(super) fn of_site(&self, wanted: impl Fn(&Belongs) -> bool) -> Vec<(&Process, &Belongs)> {
        let picked = self.belongs.iter().filter(|(_, belongs)| wanted(belongs));
        picked.filter_map(|(pid, belongs)| Some((self.processes.get(pid)?, belongs))).collect()
    }

    /// Everything that runs for one instance.
    pub(super) fn of_instance(&self, id: &str, isolation: Option<&str>) -> Vec<&Process> {
        let wanted =
            |belongs: &Belongs| belongs.instance.as_deref() == Some(id) && belongs.isolation.as_deref() == isolation;
        self.of_site(wanted).into_iter().map(|(process, _)| process).collect()
    }

    /// Processes that hide from us though they are this user's own and might have been orphaned by a dead supervisor.
    /// One whose parent we can see, and which is no adopter of orphans, is that parent's; one that is older than the
    /// site's first supervisor of this boot is none of the site's.
    pub(super) fn hidden_orphans(&self, layout: &Layout) -> Vec<&Process> {
        let own = rustix::process::getuid().as_raw();
        let since = match layout.first_supervisor() {
            Ok(Some(first)) if first.boot != boot_id() => return Vec::new(),
            Ok(Some(first)) => first.start_ticks,
            _ => 0,
        };
        let hidden = |process: &&Process| {
            process.marks == Marks::Unreadable
                && process.pid != 1
                && process.start_ticks >= since
                && user_of(process.pid) == Some(own)
                && self.processes.get(&process.parent).is_none_or(|parent| {
                    parent.pid == 1 || parent.name == "systemd" || parent.marks == Marks::Unreadable
                })
        };
        self.processes.values().filter(hidden).collect()
    }

    /// How many processes of other users could not be looked into.
    pub(super) fn hidden_count(&self) -> usize {
        self.processes.values().filter(|process| process.marks == Marks::Unreadable).count()
    }

    /// Who has something of the tree open, mapped or as its directory, or sees it by mounts of its own.
    pub(super) fn handles(&self, tree: &Tree) -> Vec<Handle> {
        if tree.is_empty() {
            return Vec::new();
        }
        let mut handles = Vec::new();
        let mut known = ForeignMounts::default();
        for process in self.processes.values() {
            let mut paths = BTreeSet::new();
            for link in ["cwd", "root", "exe"] {
                paths.extend(target_within(&PathBuf::from(format!("/proc/{}/{link}", process.pid)), tree));
            }
            for entry in fs::read_dir(format!("/proc/{}/fd", process.pid)).into_iter().flatten().flatten() {
                paths.extend(target_within(&entry.path(), tree));
            }
            paths.extend(mapped_within(process.pid, tree));
            let open = |path| Handle { process: process.clone(), path, by_mount: false };
            handles.extend(paths.into_iter().map(open));
            let seen = |path| Handle { process: process.clone(), path, by_mount: true };
            handles.extend(tree.foreign_mounts(process.pid, &mut known).into_iter().map(seen));
        }
        handles
    }

    /// Who listens at one of the addresses, on all addresses at its port included.
    pub(super) fn listeners(&self, at: &[Door]) -> Result<Vec<Listener>, PortError> {
        let sockets: Vec<(SocketAddr, u64)> =
            listening_sockets()?.into_iter().filter(|(socket, _)| at.iter().any(|door| door.is(socket))).collect();
        if sockets.is_empty() {
            return Ok(Vec::new());
        }
        let owners = self.socket_owners();
        let owner = |inode: &u64| owners.get(inode).and_then(|pid| self.processes.get(pid)).cloned();
        Ok(sockets.iter().map(|(address, inode)| Listener { address: *address, process: owner(inode) }).collect())
    }

    fn socket_owners(&self) -> BTreeMap<u64, i32> {
        let mut owners = BTreeMap::new();
        for pid in self.processes.keys() {
            for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
                let Ok(target) = fs::read_link(entry.path()) else { continue };
                let inode = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']'));
                if let Some(inode) = inode.and_then(|text| text.parse().ok()) {
                    owners.entry(inode).or_insert(*pid);
                }
            }
        }
        owners
    }
}

#[derive(Debug, Clone)]
pub(super) struct Handle {
    pub(super) process: Process,
    pub(super) path: PathBuf,
    /// It has nothing open there now, but a mount that only it and its like have.
    pub(super) by_mount: bool,
}

impl std::fmt::Display for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (process, path) = (&self.process, self.path.display());
        match self.by_mount {
            false => write!(f, "{process} holds `{path}` open"),
            true => write!(f, "{process} sees a volume at `{path}`, by a mount of its own"),
        }
    }
}

/// A TCP address that an instance listens at; without an address, its port at any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Door {
    pub(super) address: Option<IpAddr>,
    /// None: every port.
    pub(super) port: Option<u16>,
}

impl Door {
    fn is(&self, socket: &SocketAddr) -> bool {
        let at = socket.ip().to_canonical();
        match (self.address, self.port) {
            (Some(address), Some(port)) => port == socket.port() && (at == address || at.is_unspecified()),
            (Some(address), None) => at == address,
            (None, Some(port)) => port == socket.port(),
            (None, None) => false,
        }
    }
}

impl std::fmt::Display for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.address {
            Some(address) => write!(f, "{address}")?,
            None => f.write_str("any address")?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ", port {port}"))
    }
}

#[derive(Debug, Clone)]
pub(super) struct Listener {
    pub(super) address: SocketAddr,
    /// None: a process that we may not look into.
    pub(super) process: Option<Process>,
}

impl std::fmt::Display for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.process {
            Some(process) => write!(f, "{process} listens at {}", self.address),
            None => write!(f, "another user's process listens at {}", self.address),
        }
    }
}

/// Kills what `pick` finds, again and again, until it finds nothing twice running or the time is over.
/// Answers what was killed, and what would not go.
pub(super) fn kill_until_none(
    layout: &Layout,
    within: Duration,
    pick: impl Fn(&Snapshot) -> Vec<Process>,
) -> Result<(Vec<Process>, Vec<Process>), PortError> {
    let until = Instant::now() + within;
    let mut killed: Vec<Process> = Vec::new();
    let mut clean = 0;
    loop {
        // A scan is no single moment: what forks during one is caught by the next.
        let left = pick(&Snapshot::take(layout)?);
        clean = if left.is_empty() { clean + 1 } else { 0 };
        if clean == 2 || Instant::now() > until {
            return Ok((killed, left));
        }
        for process in left {
            let refused = process.signal(Signal::KILL).is_err();
            if !refused && !killed.iter().any(|seen| seen.pid == process.pid) {
                killed.push(process);
            }
        }
        if clean == 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn process_numbers() -> Result<Vec<i32>, PortError> {
    let entries = fs::read_dir("/proc").map_err(|error| {
        PortError::new("cannot read /proc, without which nobody can tell what runs: mount it").because(error)
    })?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

fn read_marks(pid: i32) -> Marks {
    let mut environment = Vec::new();
    let read = File::open(format!("/proc/{pid}/environ"))
        .and_then(|file| file.take(ENVIRONMENT_BYTES_MAX).read_to_end(&mut environment));
    match read {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Marks::Unreadable,
        Err(_) => return Marks::None,
        Ok(_) => {}
    }
    let value = |name: &str| {
        environment.split(|byte| *byte == 0).find_map(|entry| {
            let value = entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(String::from_utf8_lossy(value).into_owned())
        })
    };
    match value(SITE) {
        None => Marks::None,
        Some(mark) => Marks::Site {
            mark,
            belongs: Belongs {
                write_domain: value(WRITE_DOMAIN),
                instance: value(INSTANCE),
                isolation: value(ISOLATION),
            },
        },
    }
}

/// Group and session of each instance that was started in this boot, unless its leader's number belongs to another by now.
fn groups_of<'a>(
    records: &'a [InstanceRecord],
    processes: &BTreeMap<i32, Process>,
) -> BTreeMap<(i32, i32), &'a InstanceRecord> {
    let boot = boot_id();
    let same = |record: &&InstanceRecord| {
        record.boot == boot && processes.get(&record.pid).is_none_or(|leader| leader.start_ticks == record.start_ticks)
    };
    records.iter().filter(same).map(|record| ((record.session, record.pid), record)).collect()
}

/// The nearest marks among a process and its ancestors; failing that, the recorded group that it is in.
fn belongs_of(
    process: &Process,
    processes: &BTreeMap<i32, Process>,
    mark: &str,
    groups: &BTreeMap<(i32, i32), &InstanceRecord>,
) -> Option<Belongs> {
    let mut at = process;
    // Bounded: a chain of parents cannot be longer than the table, even when numbers were reused while it was read.
    for _ in 0..processes.len() {
        if let Marks::Site { mark: other, belongs } = &at.marks {
            let inherited = at.pid != process.pid && belongs.is_supervisor();
            let found = if inherited { Belongs::default() } else { belongs.clone() };
            return (other == mark).then_some(found);
        }
        if let Some(record) = groups.get(&(at.session, at.group)) {
            return Some(Belongs {
                write_domain: record.write_domain.clone(),
                instance: Some(record.id.clone()),
                isolation: record.isolation.clone(),
            });
        }
        at = processes.get(&at.parent)?;
    }
    None
}

fn user_of(pid: i32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn target_within(link: &Path, tree: &Tree) -> Option<PathBuf> {
    let path = fs::read_link(link).ok()?;
    // What is no file (`socket:[1]`) lies nowhere.
    let within = path.is_absolute() && (tree.has_path(&path) || tree.has_target_of(link));
    within.then_some(path)
}

fn mapped_within(pid: i32, tree: &Tree) -> Vec<PathBuf> {
    let Ok(file) = File::open(format!("/proc/{pid}/maps")) else { return Vec::new() };
    let mut found = Vec::new();
    for line in BufReader::new(file).split(b'\n').map_while(Result::ok) {
        // The path begins with the first slash: no field before it holds one.
        if let Some(at) = line.iter().position(|byte| *byte == b'/') {
            let path = PathBuf::from(std::ffi::OsStr::from_bytes(&line[at..]));
            if tree.has_path(&path) || mapped_file(&line[..at]).is_some_and(|id| tree.has_file(&id)) {
                found.push(path);
            }
        }
    }
    found
}

/// Of a line of `/proc/PID/maps` without its path.
fn mapped_file(fields: &[u8]) -> Option<FileId> {
    let mut fields = std::str::from_utf8(fields).ok()?.split_ascii_whitespace().skip(3);
    let (major, minor) = fields.next()?.split_once(':')?;
    Some(FileId {
        major: u32::from_str_radix(major, 16).ok()?,
        minor: u32::from_str_radix(minor, 16).ok()?,
        inode: fields.next()?.parse().ok()?,
    })
}

/// Every listening TCP socket of this machine, with its inode.
pub(super) fn listening_sockets() -> Result<Vec<(SocketAddr, u64)>, PortError> {
    let mut sockets = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = match fs::read_to_string(table) {
            Ok(text) => text,
            // A kernel without IPv6 has no second table.
            Err(error) if error.kind() == io::ErrorKind::NotFound && table.ends_with('6') => continue,
            Err(error) => return Err(PortError::may_pass(format!("cannot read `{table}`")).because(error)),
        };
        sockets.extend(text.lines().skip(1).filter_map(parse_listener));
    }
    Ok(sockets)
}

fn parse_listener(line: &str) -> Option<(SocketAddr, u64)> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    if *fields.get(3)? != "0A" {
        return None;
    }
    let (address, port) = fields.get(1)?.split_once(':')?;
    let words: Vec<u32> = (0..address.len() / 8)
        .map(|at| address.get(at * 8..at * 8 + 8).and_then(|word| u32::from_str_radix(word, 16).ok()))
        .collect::<Option<_>>()?;
    let address = match *words.as_slice() {
        [word] => IpAddr::V4(Ipv4Addr::from(word.to_ne_bytes())),
        [a, b, c, d] => {
            let mut bytes = [0; 16];
            for (at, word) in [a, b, c, d].into_iter().enumerate() {
                bytes[at * 4..at * 4 + 4].copy_from_slice(&word.to_ne_bytes());
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some((SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?), fields.get(9)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_kernels_table_is_read() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0  0 4242 1";
        assert_eq!(parse_listener(line), Some(("127.0.0.1:8080".parse().unwrap(), 4242)));
        let established = line.replace(" 0A ", " 01 ");
        assert_eq!(parse_listener(&established), None);
        let six = "0: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 7 1";
        assert_eq!(parse_listener(six), Some(("[::1]:22".parse().unwrap(), 7)));
    }

    #[test]
    fn a_listener_on_all_addresses_listens_at_each() {
        let door = Door { address: Some("127.0.0.9".parse().unwrap()), port: Some(80) };
        assert!(door.is(&"127.0.0.9:80".parse().unwrap()));
        assert!(door.is(&"0.0.0.0:80".parse().unwrap()));
        assert!(door.is(&"[::]:80".parse().unwrap()));
        assert!(door.is(&"[::ffff:127.0.0.9]:80".parse().unwrap()));
        assert!(!door.is(&"127.0.0.8:80".parse().unwrap()));
        assert!(!door.is(&"0.0.0.0:81".parse().unwrap()));
    }

    #[test]
    fn a_mapping_names_its_file() {
        let line = b"7f00-7f01 r-xp 00002000 fd:01 4242 ";
        assert_eq!(mapped_file(line), Some(FileId { major: 0xfd, minor: 1, inode: 4242 }));
        assert_eq!(mapped_file(b"7f00-7f01 r-xp"), None);
    }
}
