//! `docs/protect.md`, run from its first command to its last; manual pages and completions of every command.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::machine::{Machine, Ran, await_that, files_below, noise};

/// A fenced block: what it says it is, and its lines.
struct Block {
    kind: String,
    text: String,
}

fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(kind) = line.strip_prefix("```") {
            let text: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push(Block { kind: kind.to_owned(), text: text.join("\n") });
        }
    }
    blocks
}

/// A reader of the page: what was printed so far, and what stands for something else in it.
struct Reader {
    machine: Machine,
    recipients: Vec<String>,
    owner: String,
    fingerprint: String,
    time: String,
    daemon: Option<std::process::Child>,
    commands: usize,
}

impl Reader {
    /// Puts in what stands for something else, and moves the page's places into this machine's directory.
    fn mean(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for place in ["/srv/", "/mnt/", "/etc/lifeboat/"] {
            text = text.replace(place, &format!("{}{place}", self.machine.root().display()));
        }
        text = text.replace("/root/.local", &self.machine.at("home/.local"));
        text = text.replace("/usr/local/bin/lifeboat", &self.machine.at("bin/lifeboat"));
        text = text.replace("owner = \"…\"", &format!("owner = \"{}\"", self.owner));
        let known = [("OWNER", &self.owner), ("FINGERPRINT", &self.fingerprint), ("TIME", &self.time)];
        for (word, meant) in known {
            if text.contains(word) && !text.starts_with('[') {
                assert!(!meant.is_empty(), "{word} is not known yet: {text}");
                text = text.replace(word, meant);
            }
        }
        // The newest recipients are the ones meant, in the order in which they were made.
        let wanted = text.matches("age1…").count();
        for recipient in &self.recipients[self.recipients.len().saturating_sub(wanted)..] {
            text = text.replacen("age1…", recipient, 1);
        }
        text
    }

    fn learn(&mut self, ran: &Ran) {
        for line in ran.out.lines() {
            if line.starts_with("age1") && !self.recipients.iter().any(|known| known == line) {
                self.recipients.push(line.to_owned());
            }
            if let Some(owner) = line.strip_prefix("owner ") {
                self.owner = owner.to_owned();
            }
            if let Some((_, fingerprint)) = line.split_once("its fingerprint is ") {
                self.fingerprint = fingerprint.to_owned();
            }
        }
    }

    fn run_shell(&mut self, block: &Block) {
        let elsewhere = block.kind.contains("another-machine");
        for line in block.text.lines() {
            let line = self.mean(line);
            let ran = if elsewhere {
                fs::create_dir_all(self.machine.path("another")).unwrap();
                let mut command = self.machine.command::<&str>(&[]);
                let words = line.strip_prefix("lifeboat ").unwrap().split_whitespace();
                command.args(words).env("HOME", self.machine.path("another"));
                self.machine.ran(command)
            } else {
                self.machine.shell(&line)
            };
            // There, nothing proves the freshness at first.
            let is_right = ran.code == 0 || elsewhere && ran.code == 3 && ran.err.contains("freshness unproven");
            assert!(is_right, "{line}\nexit {}\n{}{}", ran.code, ran.out, ran.err);
            self.learn(&ran);
            self.commands += 1;
        }
    }

    /// Runs a service's command, as systemd would.
    fn run_unit(&mut self, block: &Block) {
        let text = self.mean(&block.text);
        let Some(exec) = text.lines().find_map(|line| line.strip_prefix("ExecStart=")) else {
            assert!(text.contains("[Timer]") && text.contains("OnCalendar="), "{text}");
            return;
        };
        let mut words = exec.split_whitespace();
        let mut command = Command::new(words.next().unwrap());
        command.args(words).env_clear().current_dir("/");
        for (name, value) in
            text.lines().filter_map(|line| line.strip_prefix("Environment=")).filter_map(|pair| pair.split_once('='))
        {
            command.env(name, value);
        }
        self.commands += 1;
        if text.contains("Type=oneshot") {
            self.machine.ran(command).ends(0);
            return;
        }
        self.daemon = Some(command.stderr(Stdio::null()).spawn().unwrap());
    }

    /// Before the restore: the daemon has been at work, the documents have changed, the database has grown.
    fn live_on(&mut self) {
        let log = self.machine.path("mnt/vault/log");
        await_that("the stream's first log object", || !files_below(&log).is_empty());
        self.time = self.machine.shell("date -u +%Y-%m-%dT%H:%M:%S.%NZ").ends(0).out.trim().to_owned();
        self.machine.write("srv/notes/documents/letters/july.txt", "dear readers");
        self.machine.line("backup documents").ends(0);
        let before = files_below(&log).len();
        self.sql("insert into t values('second')");
        // Marks of idleness are log objects, too: some more of them, and the row's is among them.
        await_that("the log", || files_below(&log).len() > before + 2);
    }

    fn sql(&self, statement: &str) {
        let database = self.machine.at("srv/notes/notes.db");
        self.machine.shell(&format!("sqlite3 {database} \"{statement}\"")).ends(0);
    }

    fn restored(&self, name: &str) -> String {
        fs::read_to_string(self.machine.path("srv/restored").join(name)).unwrap()
    }

    fn rows(&self, name: &str) -> String {
        let database = self.machine.path("srv/restored").join(name);
        self.machine.shell(&format!("sqlite3 {} 'select group_concat(x) from t'", database.display())).ends(0).out
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = kill_process(Pid::from_child(&daemon), Signal::TERM);
            let _ = daemon.wait();
        }
    }
}

#[test]
fn the_page_on_protecting_is_followed_from_beginning_to_end() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/protect.md");
    let page = fs::read_to_string(page).unwrap();
    let mut reader = Reader {
        machine: Machine::new(),
        recipients: Vec::new(),
        owner: String::new(),
        fingerprint: String::new(),
        time: String::new(),
        daemon: None,
        commands: 0,
    };
    fs::create_dir_all(reader.machine.path("mnt")).unwrap();
    reader.machine.write("srv/notes/documents/letters/july.txt", "dear reader");
    reader.machine.write("srv/notes/documents/photo.raw", noise(1, 300_000));
    reader.sql("pragma journal_mode=wal; create table t(x); insert into t values('first')");
    for block in blocks(&page) {
        match block.kind.as_str() {
            "toml" => {
                let plan = reader.mean(&block.text);
                for place in ["work/lifeboat.toml", "etc/lifeboat/lifeboat.toml"] {
                    reader.machine.write(place, &plan);
                }
            }
            "ini" => reader.run_unit(&block),
            "sh" => reader.run_shell(&block),
            "sh another-machine" => {
                if reader.time.is_empty() {
                    reader.live_on();
                }
                reader.run_shell(&block);
            }
            kind => panic!("a block of kind {kind:?}: {}", block.text),
        }
    }
    assert!(reader.commands >= 24, "{} commands were found on the page", reader.commands);
    assert_eq!(reader.restored("documents/letters/july.txt"), "dear readers");
    assert_eq!(reader.restored("then/letters/july.txt"), "dear reader");
    assert_eq!(reader.restored("first/letters/july.txt"), "dear reader");
    assert_eq!(reader.restored("part/letters/july.txt"), "dear readers");
    assert!(!reader.machine.path("srv/restored/part/photo.raw").exists());
    assert_eq!(reader.rows("database/notes.db"), "first,second\n");
    assert_eq!(reader.rows("database-by-path/notes.db"), "first\n");
    let roster = reader.machine.line("--json vault stat").ends(0).json();
    assert_eq!(roster["recipients"], 3);
}

/// The names of all commands, as `--help` lists them, below `words`.
fn commands(machine: &Machine, words: &[&str]) -> Vec<String> {
    let help = machine.run(&[words, &["--help"]].concat()).ends(0).out;
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.trim().is_empty());
    let named = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = named.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    let mut all = Vec::new();
    for name in names {
        let words = [words, &[name]].concat();
        all.push(words.join("-"));
        all.extend(commands(machine, &words));
    }
    all
}

#[test]
fn every_command_has_a_manual_page_and_is_completed() {
    let machine = Machine::new();
    let man = machine.at("man");
    let written = machine.line(&format!("--json man -o {man}")).ends(0).json();
    let names = commands(&machine, &[]);
    assert!(names.len() > 25, "{names:?}");
    for name in &names {
        let page = fs::read_to_string(machine.path(&format!("man/lifeboat-{name}.1")));
        let page = page.unwrap_or_else(|error| panic!("lifeboat-{name}.1: {error}"));
        assert!(page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"), "{name}: {page}");
    }
    assert_eq!(written["pages"].as_u64().unwrap() as usize, names.len() + 1);
    for shell in ["bash", "zsh", "fish"] {
        let script = machine.line(&format!("completions {shell}")).ends(0).out;
        for name in names.iter().filter(|name| !name.contains('-')) {
            assert!(script.contains(name.as_str()), "{shell}: {name}");
        }
    }
    // bash itself takes it, and completes with it.
    let completes = format!(
        "lifeboat completions bash > {man}/completion; source {man}/completion; \
         COMP_WORDS=(lifeboat vault rec); COMP_CWORD=2; _lifeboat lifeboat rec vault; echo ${{COMPREPLY[@]}}"
    );
    assert_eq!(machine.shell(&completes).ends(0).out, "recipients\n");
}
