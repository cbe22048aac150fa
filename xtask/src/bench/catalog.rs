//! `cargo xtask bench catalog`: how long it takes to find, compare and read among ten million paths.
//!
//! The vault is generated (no disk holds the files) and everything lies in memory. Invariant: what is timed is the released command, from its start to its
//! end, keys and all; every command's output is looked at before its time counts.

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
    ("`find '**/*-777/*.jpg*'` (a path with wildcards)", "find **/*-777/*.jpg*", ".jpg"),
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
    build(&["build", "--release", "-p", "lifeboat"])?;
    // What makes the vault is not measured: it is built as the tests are.
    build(&["build", "-p", "lifeboat-vault", "--example", "many_paths"])?;
    let (release, debug) = (crate::root().join("target/release"), crate::root().join("target/debug"));
    std::fs::create_dir_all(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let made = Command::new(debug.join("examples/many_paths")).arg(directory).arg(PATHS).status();
    if !made.as_ref().is_ok_and(std::process::ExitStatus::success) {
        return Err(format!("the vault of many paths could not be made: {made:?}"));
    }
    let bench = Bench { binary: release.join("lifeboat"), directory };
    println!("| with {PATHS} paths in each of 3 points | seconds |\n|---|---|");
    let (first, _) = bench.once("find no-such-name", "nothing found")?;
    row("the first `find --key`: makes the catalogue of all points", first);
    for (what, line, word) in SEARCHES {
        row(what, bench.median(line, word, false)?);
    }
    row(
        "`find --key report-summary-1234` (looks for new points first)",
        bench.median("find report-summary-1234", "report", true)?,
    );
    row("`diff 1 2` (1,000 changed files)", bench.median("diff --stat 1 2", "from point 1", true)?);
    let path = bench.some_path()?;
    row("`cat` of one file", bench.median(&format!("cat 2 {path}"), "", true)?);
    row("`restore --path` of one file", bench.median_restore(&path)?);
    let catalog = size_of(&directory.join("state/catalog"))?;
    println!(
        "\ncatalogue: {} MB; index and listings in the vault: {} MB",
        catalog >> 20,
        size_of(&directory.join("vault"))? >> 20
    );
    Ok(())
}

fn build(arguments: &[&str]) -> Result<(), String> {
    let status = cargo().args(arguments).status().map_err(|error| format!("cargo could not be run: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("cargo {} failed", arguments.join(" "))) }
}

fn row(what: &str, time: Duration) {
    println!("| {what} | {:.2} |", time.as_secs_f64());
}

fn size_of(directory: &Path) -> Result<u64, String> {
    let output = Command::new("du").args(["-sb"]).arg(directory).output().map_err(|error| format!("du: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().next().and_then(|bytes| bytes.parse().ok()).ok_or(format!("du said {text:?}"))
}

struct Bench<'a> {
    binary: PathBuf,
    directory: &'a Path,
}

impl Bench<'_> {
    fn command(&self, line: &str, key: bool) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(line.split_whitespace()).arg("--vault").arg(self.directory.join("vault"));
        command.arg("--state").arg(self.directory.join("state"));
        if key {
            command.arg("--key").arg(self.directory.join("owner.key"));
        }
        command
    }

    fn timed(mut command: Command, word: &str) -> Result<(Duration, Output), String> {
        let began = Instant::now();
        let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
        let took = began.elapsed();
        let said = [&output.stdout[..], &output.stderr[..]].concat();
        if !output.status.success() || !String::from_utf8_lossy(&said).contains(word) {
            let said = String::from_utf8_lossy(&said);
            return Err(format!(
                "{command:?} ended with {} and said: {}",
                output.status,
                said.chars().take(500).collect::<String>()
            ));
        }
        Ok((took, output))
    }

    fn once(&self, line: &str, word: &str) -> Result<(Duration, Output), String> {
        Self::timed(self.command(line, true), word)
    }

    fn median(&self, line: &str, word: &str, key: bool) -> Result<Duration, String> {
        let times: Result<Vec<Duration>, String> =
            (0..TIMES).map(|_| Self::timed(self.command(line, key), word).map(|(took, _)| took)).collect();
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

    fn median_restore(&self, path: &str) -> Result<Duration, String> {
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

fn middle(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
