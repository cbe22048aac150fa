//! `cargo xtask test`: everything that must hold before a change lands, and how many tests that were.
//!
//! Invariant: a test that was ignored, filtered out or never reported counts as failed. The last line is the tally.

use std::io::{BufRead, BufReader, Write};
use std::process::{ExitCode, Output, Stdio};

use crate::{Outcome, cargo, cargo_that_gives_way, docs, fuzz, npm, packages, pypi, soak};

/// What one test binary reported.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
}

/// How long each parser is fuzzed here: enough to run its seeds and some thousand others.
const FUZZ_SECONDS: &str = "3";

/// Random tests draw the same numbers here each time, so that a change is judged by what it changes. (`soak` draws others.)
const SEED: &str = "20261122";

/// Test threads for each processor: most tests wait for processes half of their time.
const THREADS_PER_PROCESSOR: usize = 2;
const THREADS: &str = "RUST_TEST_THREADS";

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from) * THREADS_PER_PROCESSOR
}

pub(crate) fn run() -> Outcome {
    packages::install(packages::FOR_TESTS)?;
    packages::open_fuse()?;
    pypi::install()?;
    npm::install()?;
    let mut complaints = Vec::new();
    let formatting = ["fmt", "--all", "--check"];
    announce(&formatting);
    if !run_cargo(&formatting)? {
        complaints.push("the formatting is not rustfmt's: run `cargo fmt --all`");
    }
    let building = ["test", "--workspace", "--no-run"];
    announce(&building);
    if !run_cargo(&building)? {
        return Err("the tests could not be built".to_owned());
    }
    // Tests leave processors idle; what is compiled for the other checks uses them.
    let (clippy, tests) = std::thread::scope(|scope| {
        let beside = scope.spawn(|| {
            let clippy = lint();
            // What is wrong with it is said when it is wanted.
            drop(fuzz::build(cargo_that_gives_way()));
            clippy
        });
        let tests = run_tests();
        (beside.join(), tests)
    });
    let clippy = clippy.map_err(|_| "clippy was not waited for")??;
    let (tally, succeeded) = tests?;
    println!("== cargo {}", CLIPPY.join(" "));
    if !clippy.status.success() {
        println!("{}{}", String::from_utf8_lossy(&clippy.stdout), String::from_utf8_lossy(&clippy.stderr));
        complaints.push("clippy has something to say");
    }
    if !succeeded && tally.failed == 0 {
        complaints.push("cargo test failed outside a test");
    }
    println!("== cargo xtask docs --check"); // of the program that was tested: by itself it would be built with other features
    if !docs::is_current()? {
        complaints.push("a generated document is out of date");
    }
    println!("== cargo xtask fuzz --seconds {FUZZ_SECONDS}");
    if fuzz::run(&["--seconds", FUZZ_SECONDS])? != ExitCode::SUCCESS {
        complaints.push("a fuzzer found something");
    }
    if tally.passed == 0 {
        complaints.push("no test ran");
    }
    for complaint in &complaints {
        println!("failed: {complaint}");
    }
    let failed = tally.failed + complaints.len() as u64;
    println!("{} passed, {failed} failed", tally.passed);
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

const CLIPPY: [&str; 7] = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"];

fn lint() -> Result<Output, String> {
    cargo_that_gives_way().args(CLIPPY).output().map_err(|error| format!("cannot run cargo clippy ({error})"))
}

fn run_cargo(arguments: &[&str]) -> Result<bool, String> {
    let status = cargo().args(arguments).status().map_err(|error| format!("cannot run cargo ({error})"))?;
    Ok(status.success())
}

fn announce(arguments: &[&str]) {
    println!("== cargo {}", arguments.join(" "));
}

/// Streams what cargo prints, and counts as it goes.
fn run_tests() -> Result<(Tally, bool), String> {
    let arguments = ["test", "--workspace", "--no-fail-fast"];
    announce(&arguments);
    let mut child = cargo()
        .args(arguments)
        .env(soak::SEED, std::env::var_os(soak::SEED).unwrap_or_else(|| SEED.into()))
        .env(THREADS, std::env::var_os(THREADS).unwrap_or_else(|| threads().to_string().into()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot run cargo test ({error})"))?;
    let mut tally = Tally::default();
    if let Some(stdout) = child.stdout.take() {
        let mut out = std::io::stdout().lock();
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.map_err(|error| format!("cannot read what cargo test prints ({error})"))?;
            let _ = out.write_all(&line).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
            if let Some(one) = read_result(&String::from_utf8_lossy(&line)) {
                tally.passed += one.passed;
                tally.failed += one.failed;
            }
        }
    }
    let status = child.wait().map_err(|error| format!("cannot wait for cargo test ({error})"))?;
    Ok((tally, status.success()))
}

/// Reads libtest's closing line. An ignored or filtered test did not pass, so it failed.
fn read_result(line: &str) -> Option<Tally> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let mut tally = Tally::default();
    for part in counts.split("; ") {
        let Some((count, what)) = part.split_once(' ') else { continue };
        let Ok(count) = count.parse::<u64>() else { continue };
        match what {
            "passed" => tally.passed += count,
            "failed" | "ignored" | "filtered out" => tally.failed += count,
            _ => {}
        }
    }
    Some(tally)
}

#[cfg(test)]
mod libtest {
    use super::{Tally, read_result};

    #[test]
    fn a_closing_line_is_counted_and_an_ignored_test_is_no_pass() {
        let line = "test result: FAILED. 7 passed; 2 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.10s";
        assert_eq!(read_result(line), Some(Tally { passed: 7, failed: 6 }));
        assert_eq!(read_result("test result: ok"), None);
        assert_eq!(read_result("test it::works ... ok"), None);
    }
}
