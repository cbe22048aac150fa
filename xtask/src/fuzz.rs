//! `cargo xtask fuzz [--seconds N] [TARGET…]`: libFuzzer on every parser, each for so long.
//!
//! On stable: the coverage that libFuzzer steers by comes from LLVM's own pass, which this program, as rustc's wrapper, switches on for our
//! crates alone; so everything else is shared with ordinary builds. Invariant: a finding fails, and its input is kept.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use crate::{Outcome, cargo, root};

/// Set where this program is rustc's wrapper.
const WRAPS: &str = "LIFEBOAT_FUZZ_WRAPS";
/// Whose branches are watched.
const WATCHED: [&str; 5] = ["lifeboat_vault", "lifeboat_core", "lifeboat_engine", "lifeboat_adapters", "parsers"];
const COVERAGE: [&str; 7] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "--cfg=fuzzing",
];
const SECONDS: u64 = 60;

/// As rustc's wrapper: runs what was asked for, with coverage for ours. `None` where this is no such call.
pub(crate) fn wrap() -> Option<ExitCode> {
    std::env::var_os(WRAPS)?;
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let (rustc, rest) = arguments.split_first()?;
    let named = rest.windows(2).any(|pair| pair[0] == "--crate-name" && WATCHED.iter().any(|name| pair[1] == *name));
    let mut command = Command::new(rustc);
    command.args(rest);
    if named {
        command.args(COVERAGE);
    }
    let status = command.status().ok()?;
    Some(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

pub(crate) fn run(arguments: &[&str]) -> Outcome {
    let (mut seconds, mut wanted) = (SECONDS, Vec::new());
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match *word {
            "--seconds" => {
                let number = words.next().and_then(|number| number.parse().ok());
                seconds = number.ok_or("--seconds wants a number")?;
            }
            name => wanted.push(name.to_owned()),
        }
    }
    let program = build(cargo())?;
    let known = targets(&program)?;
    if let Some(unknown) = wanted.iter().find(|name| !known.contains(name)) {
        return Err(format!("there is no target {unknown}; there are: {}", known.join(", ")));
    }
    if wanted.is_empty() {
        wanted = known;
    }
    let corpus = root().join("target/fuzz/corpus");
    let seeded = Command::new(&program).env("LIFEBOAT_FUZZ_SEEDS", &corpus).status();
    if !seeded.map_err(|error| format!("cannot run {} ({error})", program.display()))?.success() {
        return Err("the seeds could not be written".to_owned());
    }
    let mut failed = Vec::new();
    for target in &wanted {
        if !fuzz(&program, target, &corpus.join(target), seconds)? {
            failed.push(target.as_str());
        }
    }
    if failed.is_empty() {
        println!("{} parsers fuzzed for {seconds} s each; nothing found", wanted.len());
        return Ok(ExitCode::SUCCESS);
    }
    println!("findings in {}; the inputs are in fuzz/artifacts", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

/// Builds the targets beside everything else, with the versions that the workspace uses.
pub(crate) fn build(mut cargo: Command) -> Result<PathBuf, String> {
    let (here, lock) = (root().join("fuzz"), root().join("Cargo.lock"));
    let own = here.join("Cargo.lock");
    if !own.exists() {
        std::fs::copy(&lock, &own).map_err(|error| format!("cannot copy {} ({error})", lock.display()))?;
    }
    let wrapper = std::env::current_exe().map_err(|error| format!("cannot find this program ({error})"))?;
    let target = root().join("target");
    let status = cargo
        .current_dir(&here)
        .args(["build", "--quiet", "--bin", "parsers"])
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTC_WRAPPER", wrapper)
        .env(WRAPS, "1")
        .status()
        .map_err(|error| format!("cannot run cargo build ({error})"))?;
    if !status.success() {
        return Err("the fuzz targets could not be built".to_owned());
    }
    Ok(target.join("debug/parsers"))
}

fn targets(program: &Path) -> Result<Vec<String>, String> {
    let listed = Command::new(program).env("LIFEBOAT_FUZZ", "list").stderr(Stdio::null()).output();
    let listed = listed.map_err(|error| format!("cannot run {} ({error})", program.display()))?;
    let names: Vec<String> = String::from_utf8_lossy(&listed.stdout).lines().map(str::to_owned).collect();
    if names.is_empty() { Err("the program names no targets".to_owned()) } else { Ok(names) }
}

/// One target; whether nothing was found.
fn fuzz(program: &Path, target: &str, corpus: &Path, seconds: u64) -> Result<bool, String> {
    let artifacts = root().join("fuzz/artifacts").join(target);
    for folder in [corpus, &artifacts] {
        std::fs::create_dir_all(folder).map_err(|error| format!("cannot make {} ({error})", folder.display()))?;
    }
    let output = Command::new(program)
        .env("LIFEBOAT_FUZZ", target)
        .arg(corpus)
        .args([format!("-max_total_time={seconds}"), format!("-artifact_prefix={}/", artifacts.display())])
        .args(["-timeout=20", "-rss_limit_mb=2048", "-max_len=65536", "-print_final_stats=1", "-verbosity=0"])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run {} ({error})", program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let figure =
        |name: &str| said.lines().find_map(|line| line.strip_prefix(name)).map_or("?", |rest| rest.trim()).to_owned();
    println!(
        "{target}: {} inputs, {} MB at most",
        figure("stat::number_of_executed_units:"),
        figure("stat::peak_rss_mb:")
    );
    if !output.status.success() {
        println!("{said}");
    }
    Ok(output.status.success())
}
