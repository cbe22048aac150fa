//! A machine to play on: directories of its own, the binary on its PATH as `lifeboat`, and a shell as users have it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub(crate) const LIFEBOAT: &str = env!("CARGO_BIN_EXE_lifeboat");
/// Nobody's, on every Debian.
const NOBODY: u32 = 65534;

/// How a command ended, and what it said.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
    root: String,
}

impl Ran {
    fn new(output: Output, root: &Path) -> Ran {
        Ran {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
            root: root.display().to_string(),
        }
    }

    #[track_caller]
    pub(crate) fn ends(self, code: i32) -> Ran {
        assert_eq!(self.code, code, "{}\n{}", self.out, self.err);
        self
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }

    /// One document a line.
    pub(crate) fn events(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Everything on the screen, with what differs from run to run made the same.
    pub(crate) fn screen(&self) -> String {
        steady(&format!("{}{}exit {}", self.out, self.err, self.code), &self.root)
    }
}

/// Replaces what differs from run to run by something as wide, where width matters.
pub(crate) fn steady(text: &str, root: &str) -> String {
    let text = text.replace(root, "");
    let mut steady = String::new();
    for line in text.split_inclusive('\n') {
        let mut rest = line;
        while let Some(character) = rest.chars().next() {
            let word = rest.find(|c: char| !c.is_ascii_alphanumeric() && !"-:.".contains(c)).unwrap_or(rest.len());
            let (token, after) = rest.split_at(word.max(character.len_utf8()));
            steady.push_str(&steady_token(token));
            rest = after;
        }
    }
    steady
}

fn steady_token(token: &str) -> String {
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let (word, end) = token.split_at(token.trim_end_matches([':', '.', '-']).len());
    let steady = match word {
        word if word.starts_with("age1") && word.len() == 62 => "age1…".to_owned(),
        word if word.len() == 32 && is_hex(word) => "0123456789abcdef0123456789abcdef".to_owned(),
        word if word.len() >= 20 && word.ends_with('Z') && word.as_bytes().get(10) == Some(&b'T') => {
            "2026-11-21T14:00:00Z".to_owned()
        }
        word if word.len() == 64 && is_hex(word) => "HASH".to_owned(),
        word => word.to_owned(),
    };
    steady + end
}

pub(crate) struct Machine {
    directory: tempfile::TempDir,
    unprivileged: bool,
}

impl Machine {
    pub(crate) fn new() -> Machine {
        Machine::as_user(false)
    }

    /// A machine whose user is nobody: no capability, no home but this one.
    pub(crate) fn unprivileged() -> Machine {
        Machine::as_user(true)
    }

    fn as_user(unprivileged: bool) -> Machine {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["bin", "home", "work"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        let binary = root.join("bin/lifeboat");
        if unprivileged {
            // The build directory may be out of nobody's reach.
            if fs::hard_link(LIFEBOAT, &binary).is_err() {
                fs::copy(LIFEBOAT, &binary).unwrap();
            }
            for name in ["", "home", "work"] {
                std::os::unix::fs::chown(root.join(name), Some(NOBODY), Some(NOBODY)).unwrap();
            }
        } else {
            std::os::unix::fs::symlink(LIFEBOAT, &binary).unwrap();
        }
        Machine { directory, unprivileged }
    }

    pub(crate) fn root(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// A path as an argument.
    pub(crate) fn at(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn prepare(&self, mut command: Command) -> Command {
        command
            .env_clear()
            .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.at("bin")))
            .env("HOME", self.at("home"))
            .env("LC_ALL", "C.UTF-8")
            .current_dir(self.path("work"))
            .stdin(Stdio::null());
        command
    }

    fn user(&self, program: impl AsRef<OsStr>) -> Command {
        if !self.unprivileged {
            return Command::new(program);
        }
        let mut command = Command::new("setpriv");
        let (uid, gid) = (format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"));
        command.args([&uid, &gid, "--clear-groups", "--bounding-set=-all", "--"]).arg(program);
        command
    }

    /// The binary with arguments, ready to be changed or spawned.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, words: &[S]) -> Command {
        let mut command = self.prepare(self.user(self.path("bin/lifeboat")));
        command.args(words);
        command
    }

    /// The binary, run to its end.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, words: &[S]) -> Ran {
        Ran::new(self.command(words).output().unwrap(), self.root())
    }

    /// The binary, run to its end with a line as people type it (no quotes).
    pub(crate) fn line(&self, line: &str) -> Ran {
        self.run(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// As the same user on another machine: nothing but what is named is shared.
    pub(crate) fn elsewhere(&self, home: &str, line: &str) -> Ran {
        fs::create_dir_all(self.path(home)).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut command = self.command(&words);
        Ran::new(command.env("HOME", self.path(home)).output().unwrap(), self.root())
    }

    pub(crate) fn ran(&self, mut command: Command) -> Ran {
        Ran::new(command.output().unwrap(), self.root())
    }

    /// A script, line by line as a shell reads it; any failure fails.
    pub(crate) fn shell(&self, script: &str) -> Ran {
        let mut command = self.prepare(self.user("bash"));
        command.args(["-euo", "pipefail", "-c", script]);
        Ran::new(command.output().unwrap(), self.root())
    }

    pub(crate) fn spawn<S: AsRef<OsStr>>(&self, words: &[S]) -> Child {
        self.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    pub(crate) fn finish(&self, child: Child) -> Ran {
        Ran::new(child.wait_with_output().unwrap(), self.root())
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        if self.unprivileged {
            let top = self.path(name.split('/').next().unwrap());
            assert!(Command::new("chown").args(["-hR", "65534:65534"]).arg(top).status().unwrap().success());
        }
    }

    /// Two keys, a vault that both open, this host on its roster as `alpha`. Answers the owner's fingerprint.
    pub(crate) fn make_vault(&self) -> String {
        let key = |name: &str| self.line(&format!("key new -o {name}")).ends(0).out.trim().to_owned();
        let (owner, paper) = (key("owner.key"), key("paper.key"));
        let vault = self.at("backup");
        let made = self
            .line(&format!("--json vault init --vault {vault} --host alpha --recipient {owner} --recipient {paper}"))
            .ends(0);
        made.json()["owner"].as_str().unwrap().to_owned()
    }
}

/// Bytes that do not compress, the same for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for piece in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let random = state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
        piece.copy_from_slice(&random[..piece.len()]);
    }
    bytes
}

/// Whether two trees are alike: names, kinds, contents, modes and times of files.
#[track_caller]
pub(crate) fn assert_alike(left: &Path, right: &Path) {
    let output = Command::new("diff").args(["-r", "--no-dereference"]).args([left, right]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(listing(left), listing(right));
}

fn listing(top: &Path) -> String {
    let command = "find . -printf '%P %y %m %U:%G %T@ %l\\n' | LC_ALL=C sort";
    let output = Command::new("bash").args(["-c", command]).current_dir(top).output().unwrap();
    assert!(output.status.success());
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn await_that(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn files_below(top: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(top) else { return found };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

pub(crate) fn copy_tree(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg("--").args([from, to]).status().unwrap();
    assert!(status.success());
}

/// A file system of its own size, gone with this value.
pub(crate) struct Mount(PathBuf);

impl Mount {
    pub(crate) fn tmpfs(at: &Path, megabytes: u32) -> Mount {
        fs::create_dir_all(at).unwrap();
        mount(&["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"], at);
        Mount(at.to_owned())
    }

    /// Another view of a directory that nobody can write through, root included.
    pub(crate) fn read_only(of: &Path, at: &Path) -> Mount {
        fs::create_dir_all(at).unwrap();
        mount(&["--bind", &of.display().to_string()], at);
        mount(&["-o", "remount,bind,ro"], at);
        Mount(at.to_owned())
    }

    pub(crate) fn resize(&self, megabytes: u32) {
        mount(&["-o", &format!("remount,size={megabytes}m")], &self.0);
    }
}

fn mount(words: &[&str], at: &Path) {
    let output = Command::new("mount").args(words).arg(at).output().unwrap();
    assert!(output.status.success(), "mount: {}", String::from_utf8_lossy(&output.stderr));
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Starts a command whose key is a pipe, asks it to stop while it waits for the key, and gives it the key when it has said that it will.
pub(crate) fn stopped_while_it_reads_its_key(machine: &Machine, line: &str) -> Ran {
    use std::io::{BufRead, BufReader, Read, Write};
    machine.shell("mkfifo key.pipe").ends(0);
    let words: Vec<&str> = line.split_whitespace().chain(["--key", "key.pipe"]).collect();
    let mut child = machine.command(&words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Opens when the other end does.
    let mut pipe = std::fs::OpenOptions::new().write(true).open(machine.path("work/key.pipe")).unwrap();
    let asked = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(asked.success());
    let (mut said, mut err) = (BufReader::new(child.stderr.take().unwrap()), String::new());
    said.read_line(&mut err).unwrap();
    assert!(err.contains("stopping"), "{err}");
    pipe.write_all(&std::fs::read(machine.path("work/owner.key")).unwrap()).unwrap();
    drop(pipe);
    said.read_to_string(&mut err).unwrap();
    let output = child.wait_with_output().unwrap();
    std::fs::remove_file(machine.path("work/key.pipe")).unwrap();
    Ran { err, ..Ran::new(output, machine.root()) }
}
