//! `cargo xtask bench`: lifeboat beside its peers, on this machine, in one run.
//!
//! ```text
//!   peers    installs them and says how each is called     measure  runs a command: seconds, CPU, memory
//!   data     what is backed up, made from this machine     vault    first, again, changed, restored: every tool in turn
//!   figures  medians, and ratios pair by pair              sqlite   a stream beside Litestream
//!   rounds   each kept when it is finished                 page     docs/benchmarks.md, from what is kept
//!   plan     one data set, streamed by lifeboat
//!   catalog  alone: searches among ten million paths, for docs/look.md
//!   postgres  a running cluster, beside pgBackRest; moved between two sites, beside Patroni; its log, beside pg_receivewal
//! ```
//!
//! Invariant: no figure comes from a restore that was not compared with what was backed up, and a ratio only compares what ran in the
//! same round. A goal that was missed is said, and nothing is claimed of fewer rounds than a claim needs.
//! `--runs` says how many rounds there are to be in the end: those that are kept already are not run again.

mod catalog;
mod data;
mod figures;
mod measure;
mod page;
mod peers;
mod plan;
mod postgres;
mod rounds;
mod sqlite;
mod vault;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::{Outcome, packages, root};

/// As many rounds as a claim needs.
const RUNS: usize = 7;

/// What the command line asks for.
#[derive(Debug)]
struct Asked {
    runs: usize,
    data: Vec<String>,
    tools: Vec<String>,
}

pub(crate) fn run(arguments: &[&str]) -> Outcome {
    let Some((what, options)) = arguments.split_first() else { return Err(usage()) };
    if *what == "catalog" {
        return catalog::run();
    }
    let asked = parse(options)?;
    packages::install(packages::FOR_BENCHMARKS)?;
    match *what {
        "vault" => vault::run(&asked)?,
        "sqlite" => sqlite::run(&asked)?,
        "postgres" => postgres::run(&asked)?,
        "page" => {}
        _ => return Err(usage()),
    }
    page::write()?;
    Ok(ExitCode::SUCCESS)
}

fn usage() -> String {
    format!(
        "usage: cargo xtask bench vault|sqlite|postgres|catalog|page [--runs {RUNS}] [--data tree,database,small|backup,switch,stream] [--tools lifeboat,restic,…]"
    )
}

fn parse(options: &[&str]) -> Result<Asked, String> {
    let mut asked = Asked { runs: RUNS, data: Vec::new(), tools: Vec::new() };
    for pair in options.chunks(2) {
        let [name, value] = pair else { return Err(usage()) };
        let list = || value.split(',').map(str::to_owned).collect();
        match *name {
            "--runs" => asked.runs = value.parse().ok().filter(|runs| *runs > 0).ok_or_else(usage)?,
            "--data" => asked.data = list(),
            "--tools" => asked.tools = list(),
            _ => return Err(usage()),
        }
    }
    Ok(asked)
}

impl Asked {
    fn wants(list: &[String], name: &str) -> bool {
        list.is_empty() || list.iter().any(|wanted| wanted == name)
    }
}

/// Peers, their caches and results; survives from run to run.
fn home() -> PathBuf {
    std::env::var_os("LIFEBOAT_BENCH_HOME").map_or_else(|| root().join("target/bench"), PathBuf::from)
}

/// Data, repositories and restores: in memory, so that the tools are compared and not a disk.
fn place() -> PathBuf {
    std::env::var_os("LIFEBOAT_BENCH_PLACE").map_or_else(|| PathBuf::from("/dev/shm/lifeboat-bench"), PathBuf::from)
}

fn make_directory(path: &Path) -> Result<(), String> {
    std::fs::create_dir_all(path).map_err(|error| format!("cannot make {} ({error})", path.display()))
}

fn remove(path: &Path) -> Result<(), String> {
    let removed = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        _ => std::fs::remove_file(path),
    };
    removed.map_err(|error| format!("cannot remove {} ({error})", path.display()))
}
