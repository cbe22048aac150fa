//! The project's own chores: `cargo xtask test`, `soak`, `pypi`, `bench`, `fuzz`, `freeze`, `pictures`, `docs`.
//!
//! Invariant: a chore that could not be done entirely fails. Nothing is skipped because something was not installed.

#![allow(clippy::print_stdout)] // A chore's output is for the person who started it.

mod bench;
mod docs;
mod freeze;
mod fuzz;
#[cfg(test)]
mod house;
mod npm;
mod packages;
mod pictures;
mod pypi;
mod soak;
mod terminal;
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask CHORE

  test       installs what the tests need, then checks formatting, lints, and runs every test
  soak       what random tests check, with other numbers each round: `soak [--minutes N] [--seed N]`
  bench      measures lifeboat beside its peers: `bench vault`, `bench sqlite`, `bench postgres`; writes docs/benchmarks.md; `bench catalog`: searches
  pypi       installs what the tests need of Python's registry, into target/pypi
  npm        installs what the tests need of npm's registry, into target/npm
  pictures   makes the README's pictures anew: runs the demo, then photographs its screen and its evidence page
  fuzz       runs libFuzzer on every parser: `fuzz [--seconds N] [TARGET…]`
  freeze     writes the example vault of today's format anew
  docs       makes the generated documents anew; `docs --check` only compares";

/// Why a chore could not be done: a sentence that says what to do next.
type Outcome = Result<ExitCode, String>;

fn main() -> ExitCode {
    if let Some(code) = fuzz::wrap() {
        return code;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["test"] => tests::run(),
        ["soak", rest @ ..] => soak::run(rest),
        ["bench", rest @ ..] => bench::run(rest),
        ["pypi"] => pypi::install().map(|()| ExitCode::SUCCESS),
        ["npm"] => npm::install().map(|()| ExitCode::SUCCESS),
        ["fuzz", rest @ ..] => fuzz::run(rest),
        ["freeze"] => freeze::run(),
        ["pictures"] => pictures::make(),
        ["docs"] => docs::make(),
        ["docs", "--check"] => docs::check(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("xtask: {error}");
        ExitCode::FAILURE
    })
}

/// The workspace's root, from where this crate was built.
fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(PathBuf::from).unwrap_or(here)
}

/// The cargo that runs this chore.
fn cargo() -> std::process::Command {
    let mut command = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The same, giving way to what runs beside it.
fn cargo_that_gives_way() -> std::process::Command {
    let mut command = std::process::Command::new("nice");
    command.args(["-n", "15"]).arg(cargo().get_program()).current_dir(root());
    command
}
