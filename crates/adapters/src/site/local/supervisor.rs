//! The local site's supervisor: a process of its own that starts instances, adopts their orphans and reaps them.
//!
//! It outlives the controller. If it dies itself its instances go on; whoever comes next finds them by their marks.
//! Invariant: nothing is started in a write domain while its down marker is there, nor under an epoch older than one
//! that was already seen here. A secret's value goes into the environment of the instance that asked for it and nowhere else.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_core::plan::{Secret, Value};
use lifeboat_engine::port::PortError;
use rustix::fs::{FlockOperation, Mode};
use rustix::process::{WaitOptions, WaitStatus};

use super::instance::older_epoch;
use super::layout::{
    InstanceRecord, Layout, boot_id, make_directory, open_lock, read_record, replace_record, write_record,
};
use super::processes::{INSTANCE, ISOLATION, Process, SITE, SUPERVISOR, Snapshot, WRITE_DOMAIN};
use super::wire::{self, Answer, Order, StartOrder};

/// What of the supervisor's environment an instance gets: enough to run, none of the controller's credentials.
const HANDED_ON: [&str; 10] =
    ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR"];
/// A log that grows beyond this is cut; its last half stays beside it as `….old`.
const LOG_BYTES_MAX: u64 = 8 << 20;
const SECRET_BYTES_MAX: u64 = 64 * 1024;
const SECRET_WITHIN: Duration = Duration::from_secs(30);
const REAP_EVERY: Duration = Duration::from_millis(50);
const TIDY_EVERY: Duration = Duration::from_secs(1);

/// Supervises the site below `root` until the site's state is gone and nothing runs here any more.
/// Returns at once if the site already has a supervisor.
pub fn supervise(root: &Path) -> Result<(), PortError> {
    // Fails only if this process leads a group already; then it is detached as it is.
    let _ = rustix::process::setsid();
    let layout = Layout::of(root)?;
    layout.make()?;
    let lock = open_lock(&layout.supervisor_lock())?;
    if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(());
    }
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(|error| {
        PortError::new("this system does not let the supervisor adopt the orphans of its instances").because(error)
    })?;
    if let Some(own) = Process::read(std::process::id() as i32) {
        layout.note_supervisor(own.start_ticks)?;
    }
    // Nobody but the owner may give orders. The mask is put back: instances make files by their own lights.
    let mask = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = wire::listen(&layout);
    rustix::process::umask(mask);
    let listener = listener.map_err(|error| {
        PortError::new(format!("the supervisor of `{}` cannot open its socket", layout.root().display())).because(error)
    })?;

    let supervisor = Arc::new(Supervisor { layout, children: Mutex::new(BTreeMap::new()) });
    let listening = Arc::clone(&supervisor);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let supervisor = Arc::clone(&listening);
            std::thread::spawn(move || supervisor.serve(stream));
        }
    });
    supervisor.reap(&lock);
    Ok(())
}

#[derive(Debug)]
struct Supervisor {
    layout: Layout,
    /// Who was started for which instance and isolation. Held while something is started, so that the reaper takes
    /// nothing that a start still waits for.
    children: Mutex<BTreeMap<i32, (String, Option<String>)>>,
}

impl Supervisor {
    fn children(&self) -> MutexGuard<'_, BTreeMap<i32, (String, Option<String>)>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, mut stream: UnixStream) {
        let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
        let _ = stream.set_write_timeout(Some(Duration::from_secs(10)));
        let Ok(order) = wire::read_line::<Order>(&stream) else { return };
        let answer = match order {
            Order::Ping => Answer::Here { pid: std::process::id() },
            Order::Start(order) => self
                .start(&order)
                .unwrap_or_else(|error| Answer::Refused { error: with_cause(&error), may_pass: error.may_pass }),
        };
        // A controller that is gone by now asks again; the start is found done.
        let _ = wire::write_line(&mut stream, &answer);
    }

    fn start(&self, order: &StartOrder) -> Result<Answer, PortError> {
        let mut children = self.children();
        let _starts = self.layout.lock_starts(false, Duration::from_secs(10))?;
        permit(&self.layout, order)?;
        let isolation = order.isolation.as_deref();
        let log = self.layout.log(&order.id, isolation);
        if let Some(process) = Snapshot::take(&self.layout)?.of_instance(&order.id, isolation).first() {
            // The agent serves under every epoch.
            if order.write_domain.is_some()
                && let Some(epoch) = older_epoch(&self.layout, &order.id, isolation, order.epoch)?
            {
                return Err(PortError::may_pass(format!(
                    "`{}` still runs since epoch {epoch} ({process}): it has to end before it is started under epoch {}",
                    order.id, order.epoch
                )));
            }
            return Ok(Answer::Started { pid: process.pid, already: true, log });
        }
        let mut command = self.command(order)?;
        let (out, err) = open_log(&log)?;
        command.stdout(out).stderr(err);
        let child = command.spawn().map_err(|error| {
            let program = order.command.first().map_or("", String::as_str);
            PortError::new(format!("`{program}` cannot be started for `{}`", order.id)).because(error)
        })?;
        let pid = child.id() as i32;
        children.insert(pid, (order.id.clone(), order.isolation.clone()));
        self.record(order, pid)?;
        Ok(Answer::Started { pid, already: false, log })
    }

    fn command(&self, order: &StartOrder) -> Result<Command, PortError> {
        let Some((program, arguments)) = order.command.split_first() else {
            return Err(PortError::new(format!("`{}` has an empty command: nothing to start", order.id)));
        };
        if !order.directory.is_dir() {
            let directory = order.directory.display();
            return Err(PortError::new(format!("`{}` is to run in `{directory}`, which is no directory", order.id)));
        }
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&order.directory).stdin(Stdio::null()).process_group(0);
        if !order.whole_environment {
            command.env_clear();
            command.envs(HANDED_ON.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        }
        for (name, value) in &order.env {
            match value {
                Value::Text(text) => command.env(name, text),
                Value::Secret(secret) => command.env(name, self.reveal(name, secret)?),
            };
        }
        command.env(SITE, self.layout.mark()).env(INSTANCE, &order.id);
        for (name, value) in [(WRITE_DOMAIN, &order.write_domain), (ISOLATION, &order.isolation)] {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        Ok(command)
    }

    /// A secret's value. No error says more than where it was looked for.
    fn reveal(&self, name: &str, secret: &Secret) -> Result<String, PortError> {
        let value = match secret {
            Secret::Env(variable) => std::env::var(variable).map_err(|_| {
                PortError::new(format!(
                    "the secret for `{name}` is not there: the site's supervisor has no environment variable `{variable}`"
                ))
            })?,
            Secret::File(path) => {
                let path = self.layout.root().join(path);
                let mut text = String::new();
                let read = File::open(&path).and_then(|file| file.take(SECRET_BYTES_MAX).read_to_string(&mut text));
                read.map_err(|error| {
                    PortError::new(format!("the secret for `{name}` cannot be read from `{}`", path.display()))
                        .because(error)
                })?;
                text
            }
            Secret::Command(command) => secret_from(name, command)?,
        };
        Ok(value.strip_suffix('\n').map(str::to_owned).unwrap_or(value))
    }

    fn record(&self, order: &StartOrder, pid: i32) -> Result<(), PortError> {
        let record = InstanceRecord {
            id: order.id.clone(),
            write_domain: order.write_domain.clone(),
            isolation: order.isolation.clone(),
            epoch: order.epoch,
            idempotency_key: order.idempotency_key.clone(),
            pid,
            start_ticks: Process::read(pid).map_or(0, |process| process.start_ticks),
            session: rustix::process::getsid(None).map_or(0, |session| session.as_raw_nonzero().get()),
            boot: boot_id(),
            started_at: Timestamp::now().to_string(),
            ended: None,
        };
        write_record(&self.layout.instance_record(&order.id, order.isolation.as_deref()), &record)
    }

    /// Reaps what ends, keeps logs bounded; returns when the site's state is no longer this supervisor's and nothing is left to reap.
    fn reap(&self, lock: &File) {
        let mut tidied = Instant::now();
        loop {
            let alone = self.reap_ended();
            if tidied.elapsed() > TIDY_EVERY {
                tidied = Instant::now();
                if alone && !is_still(lock, &self.layout.supervisor_lock()) {
                    return;
                }
                self.cut_logs();
            }
            std::thread::sleep(REAP_EVERY);
        }
    }

    /// Answers whether no child is left.
    fn reap_ended(&self) -> bool {
        let mut children = self.children();
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    if let Some(whose) = children.remove(&pid.as_raw_nonzero().get()) {
                        self.note_end(&whose, status);
                    }
                }
                Ok(None) => return false,
                Err(_) => return true,
            }
        }
    }

    fn note_end(&self, (id, isolation): &(String, Option<String>), status: WaitStatus) {
        let path = self.layout.instance_record(id, isolation.as_deref());
        let Ok(Some(mut record)) = read_record::<InstanceRecord>(&path) else { return };
        record.ended = Some(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("exit {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "unknown".to_owned(),
        });
        let _ = replace_record(&path, &record);
    }

    fn cut_logs(&self) {
        let mut directories = vec![self.layout.log_directory(None)];
        for isolation in fs::read_dir(self.layout.state().join("isolated")).into_iter().flatten().flatten() {
            directories.push(isolation.path().join("logs"));
        }
        for entry in directories.iter().filter_map(|path| fs::read_dir(path).ok()).flatten().flatten() {
            let path = entry.path();
            let is_log = path.extension().is_some_and(|extension| extension == "log");
            if is_log && entry.metadata().is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX) {
                let _ = cut_log(&path);
            }
        }
    }
}

/// Whether the order may be carried out at all.
fn permit(layout: &Layout, order: &StartOrder) -> Result<(), PortError> {
    if let Some(isolation) = &order.isolation {
        if !layout.isolation_record(isolation).exists() {
            return Err(PortError::new(format!(
                "there is no isolation `{isolation}` here: it was never made, or removed"
            )));
        }
        return Ok(());
    }
    let Some(write_domain) = &order.write_domain else { return Ok(()) };
    if let Some(marker) = layout.read_down_marker(write_domain)? {
        return Err(PortError::new(format!(
            "`{}` may not start: `{write_domain}` is fenced here since {} under epoch {} (run {}); lift that fence first",
            order.id, marker.at, marker.epoch, marker.run
        )));
    }
    let highest = layout.highest_epoch(write_domain)?;
    if order.epoch > 0 && order.epoch < highest {
        return Err(PortError::new(format!(
            "`{}` may not start under epoch {}: epoch {highest} of `{write_domain}` was already seen here, so this run is over",
            order.id, order.epoch
        )));
    }
    layout.raise_epoch(write_domain, order.epoch)
}

fn secret_from(name: &str, command: &[String]) -> Result<String, PortError> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(PortError::new(format!("the secret for `{name}` is to come from an empty command")));
    };
    let failed = |why: &str| PortError::new(format!("the secret for `{name}` cannot be had: `{program}` {why}"));
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| failed("cannot be run").because(error))?;
    let Some(output) = child.stdout.take() else { return Err(failed("has no output")) };
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        output.take(SECRET_BYTES_MAX).read_to_string(&mut text).map(|_| text)
    });
    let until = Instant::now() + SECRET_WITHIN;
    let status = loop {
        match child.try_wait().map_err(|error| failed("cannot be waited for").because(error))? {
            Some(status) => break status,
            None if Instant::now() > until => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed("took longer than 30 s"));
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    if !status.success() {
        return Err(failed(&format!("failed ({status})")));
    }
    match reader.join() {
        Ok(Ok(text)) => Ok(text),
        _ => Err(failed("did not answer with text")),
    }
}

fn open_log(path: &Path) -> Result<(File, File), PortError> {
    if let Some(directory) = path.parent() {
        make_directory(directory, 0o700)?;
    }
    let open = || {
        // Appending, so that cutting the file moves the writer to its new end.
        let out = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let err = out.try_clone()?;
        Ok((out, err))
    };
    open()
        .map_err(|error: io::Error| PortError::new(format!("cannot open the log `{}`", path.display())).because(error))
}

fn cut_log(path: &Path) -> io::Result<()> {
    let mut log = OpenOptions::new().read(true).write(true).open(path)?;
    log.seek(SeekFrom::End(-(LOG_BYTES_MAX as i64) / 2))?;
    let mut kept = Vec::new();
    (&log).take(LOG_BYTES_MAX).read_to_end(&mut kept)?;
    let old =
        OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path.with_extension("old"))?;
    (&old).write_all(&kept)?;
    log.set_len(0)
}

/// Whether the open file is still the one at the path.
fn is_still(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(there)) => open.ino() == there.ino() && open.dev() == there.dev(),
        _ => false,
    }
}

fn with_cause(error: &PortError) -> String {
    error.source.as_ref().map_or_else(|| error.message.clone(), |cause| format!("{}: {cause}", error.message))
}

/// The marks under which the supervisor itself is started.
pub(super) fn mark_supervisor(command: &mut Command, layout: &Layout) {
    command.env(SITE, layout.mark()).env(INSTANCE, SUPERVISOR).env_remove(WRITE_DOMAIN).env_remove(ISOLATION);
}
