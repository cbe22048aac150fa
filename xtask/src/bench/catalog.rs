//! `cargo xtask bench catalog`: how long it takes to find, compare and read among ten million paths.
//!
//! The vault is generated (no disk holds the files) and everything lies in memory. Invariant: what is timed is the command as it is handed out, from its start to its
//! end, keys and all; every command's output is looked at before its time counts.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::{Outcome, cargo};

const PATHS: &str = "10000000";
const TIMES: usize = 7;

/// What is timed: its name, the arguments, and a word that its output must have.
type Timed = (&'static str, &'static str, &'static str);

const SEARCHES: &[Timed] = &[
    ("`find report-summary-1234` (a part of a name)", "find report-summary-1234", "report-summary-1234"),
    ("`find --ignore-case REPORT-SUMMARY-1234`", "find --ignore-case REPORT-SUMMARY-1234", "report-summary-1234"),
    ("`find '*-77777.conf*'` (a name with wildcards)", "find *-77777?.conf*", "PATH"),
    ("`find 'report-*-1234*'` (a beginning and a middle)", "find report-*-1234*", "report-"),
    ("`find '**/*-777/*.jpg*'` (a path with wildcards)", "find **/*-777/*.jpg*", ".jpg"),
    ("`find '*-777/*'` (everything in directories)", "find *-777/*", "-777/"),
    ("`find '/data/*-41/**'` (everything below one, the first thousand)", "find /data/*-41/**", "there are more"),
    ("`find 'a/*'` (a directory that is nowhere)", "find a/*", "nothing found"),
    ("`find --limit 1000 .pdf` (the first thousand of a million)", "find .pdf", "there are more"),
    ("`find no-such-name`", "find no-such-name", "nothing found"),
    ("`find --deleted .pdf` (every version of a million paths is looked at)", "find --deleted .pdf", "nothing found"),
];

pub(crate) fn run() -> Outcome {
    let directory = PathBuf::from("/dev/shm").join(format!("lifeboat-bench-catalog-{}", std::process::id()));
    let outcome = measure(&directory);
    let removed = std::fs::remove_dir_all(&directory);
    outcome?;
    removed.map_err(|error| format!("{} could not be removed: {error}", directory.display()))?;
    Ok(std::process::ExitCode::SUCCESS)
}

fn measure(directory: &Path) -> Result<(), String> {
    build(&["build", "--profile=dist", "-p", "lifeboat"])?;
    // What makes the vault is not measured, but thirty million names are written in minutes only if it is optimised.
    build(&["build", "--release", "-p", "lifeboat-vault", "--example", "many_paths"])?;
    let release = crate::root().join("target/release");
    std::fs::create_dir_all(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let made = Command::new(release.join("examples/many_paths")).arg(directory).arg(PATHS).status();
    if !made.as_ref().is_ok_and(std::process::ExitStatus::success) {
        return Err(format!("the vault of many paths could not be made: {made:?}"));
    }
    let bench = Bench { binary: super::peers::lifeboat(), directory, memory_kib: Cell::new(0) };
    println!("| with {PATHS} paths in each of 4 points | seconds | of processor |\n|---|---|---|");
    let (first, _) = bench.once("find no-such-name", "nothing found")?;
    row("the first `find --key`: makes the catalogue of all points", first);
    let memory_first = bench.memory_kib.take();
    for (what, line, word) in SEARCHES {
        row(what, bench.median(line, word, false)?);
    }
    row(
        "`find --key report-summary-1234` (looks for new points first)",
        bench.median("find report-summary-1234", "report", true)?,
    );
    row("`diff 3 4` (10 changed files)", bench.median("diff --stat 3 4", " 10 otherwise", true)?);
    row(
        "`diff 1 2` (1,000 changed files, all over the tree)",
        bench.median("diff --stat 1 2", " 1000 otherwise", true)?,
    );
    let path = bench.some_path()?;
    row("`cat` of one file", bench.median(&format!("cat 2 {path}"), "", true)?);
    row("`restore --path` of one file", bench.median_restore(&path)?);
    let catalog = size_of(&directory.join("state/catalog"))?;
    println!(
        "\ncatalogue: {} MB; the vault, listings and all: {} MB; memory: {} MB to make the catalogue, at most {} MB for anything else",
        catalog >> 20,
        size_of(&directory.join("vault"))? >> 20,
        memory_first >> 10,
        bench.memory_kib.get() >> 10
    );
    Ok(())
}

fn build(arguments: &[&str]) -> Result<(), String> {
    let status = cargo().args(arguments).status().map_err(|error| format!("cargo could not be run: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("cargo {} failed", arguments.join(" "))) }
}

fn row(what: &str, took: Took) {
    println!("| {what} | {:.2} | {:.2} |", took.time.as_secs_f64(), took.processor_seconds);
}

/// What a command took: by the clock, and of all processors together (which other work on the machine does not lengthen).
#[derive(Debug, Clone, Copy, Default)]
struct Took {
    time: Duration,
    processor_seconds: f64,
}

fn size_of(directory: &Path) -> Result<u64, String> {
    let output = Command::new("du").args(["-sb"]).arg(directory).output().map_err(|error| format!("du: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().next().and_then(|bytes| bytes.parse().ok()).ok_or(format!("du said {text:?}"))
}

struct Bench<'a> {
    binary: PathBuf,
    directory: &'a Path,
    /// The most that any command took since it was looked at.
    memory_kib: Cell<u64>,
}

impl Bench<'_> {
    fn command(&self, line: &str, key: bool) -> Command {
        let mut command = Command::new("/usr/bin/time");
        command.args(["-f", "%M %U %S", "-o"]).arg(self.directory.join("memory")).arg(&self.binary);
        command.args(line.split_whitespace()).arg("--vault").arg(self.directory.join("vault"));
        command.arg("--state").arg(self.directory.join("state"));
        if key {
            command.arg("--key").arg(self.directory.join("owner.key"));
        }
        command
    }

    fn timed(&self, mut command: Command, word: &str) -> Result<(Took, Output), String> {
        let began = Instant::now();
        let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
        let time = began.elapsed();
        let said = [&output.stdout[..], &output.stderr[..]].concat();
        if !output.status.success() || !String::from_utf8_lossy(&said).contains(word) {
            let said = String::from_utf8_lossy(&said);
            return Err(format!(
                "{command:?} ended with {} and said: {}",
                output.status,
                said.chars().take(500).collect::<String>()
            ));
        }
        let said =
            std::fs::read_to_string(self.directory.join("memory")).map_err(|error| format!("memory: {error}"))?;
        let figures: Vec<f64> = said.split_whitespace().filter_map(|figure| figure.parse().ok()).collect();
        let [memory_kib, user, system] = figures[..] else { return Err(format!("GNU time said {said:?}")) };
        self.memory_kib.set(self.memory_kib.get().max(memory_kib as u64));
        Ok((Took { time, processor_seconds: user + system }, output))
    }

    fn once(&self, line: &str, word: &str) -> Result<(Took, Output), String> {
        self.timed(self.command(line, true), word)
    }

    fn median(&self, line: &str, word: &str, key: bool) -> Result<Took, String> {
        let times: Result<Vec<Took>, String> =
            (0..TIMES).map(|_| self.timed(self.command(line, key), word).map(|(took, _)| took)).collect();
        Ok(middle(times?))
    }

    /// A file's path, from a search.
    fn some_path(&self) -> Result<String, String> {
        let (_, output) = self.once("--json find --limit 1 --kind file report", "path")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let start = text.find("\"path\": \"").map(|at| at + 9).ok_or(format!("no path in {text}"))?;
        let rest = text.get(start..).unwrap_or_default();
        Ok(rest.split('"').next().unwrap_or_default().to_owned())
    }

    fn median_restore(&self, path: &str) -> Result<Took, String> {
        let mut times = Vec::new();
        for _ in 0..TIMES {
            let to = self.directory.join("out");
            let line = format!("restore --path {path} --to {}", to.display());
            times.push(self.once(&line, "1 file")?.0);
            if !to.join(path).is_file() {
                return Err(format!("{path} was not restored"));
            }
            std::fs::remove_dir_all(&to).map_err(|error| format!("{}: {error}", to.display()))?;
        }
        Ok(middle(times))
    }
}

fn middle(mut times: Vec<Took>) -> Took {
    times.sort_by_key(|took| took.time);
    times.get(times.len() / 2).copied().unwrap_or_default()
}
