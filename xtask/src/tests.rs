//! `cargo xtask test`: everything that must hold before a change lands, and how many tests that were.
//!
//! Invariant: a test that was ignored, filtered out or never reported counts as failed. The last line is the tally.

use std::io::{BufRead, BufReader, Write};
use std::process::{ExitCode, Stdio};

use crate::{Outcome, cargo, docs, fuzz, packages, pypi};

/// What one test binary reported.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
}

/// How long each parser is fuzzed here: enough to run its seeds and some thousand others.
const FUZZ_SECONDS: &str = "3";

pub(crate) fn run() -> Outcome {
    packages::install(packages::FOR_TESTS)?;
    pypi::install()?;
    let mut complaints = Vec::new();
    let checks: [(&str, &[&str]); 2] = [
        ("the formatting is not rustfmt's: run `cargo fmt --all`", &["fmt", "--all", "--check"]),
        (
            "clippy has something to say",
            &["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"],
        ),
    ];
    for (complaint, arguments) in checks {
        announce(arguments);
        let status = cargo().args(arguments).status().map_err(|error| format!("cannot run cargo ({error})"))?;
        if !status.success() {
            complaints.push(complaint);
        }
    }
    let (tally, succeeded) = run_tests()?;
    if !succeeded && tally.failed == 0 {
        complaints.push("cargo test failed outside a test");
    }
    println!("== cargo xtask docs --check");
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

fn announce(arguments: &[&str]) {
    println!("== cargo {}", arguments.join(" "));
}

/// Streams what cargo prints, and counts as it goes.
fn run_tests() -> Result<(Tally, bool), String> {
    let arguments = ["test", "--workspace", "--no-fail-fast"];
    announce(&arguments);
    let mut child = cargo()
        .args(arguments)
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
