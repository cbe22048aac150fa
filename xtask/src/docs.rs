//! `cargo xtask docs`: the documents that are made from the program itself, so that they cannot say anything else.
//!
//! Invariant: what stands in the repository is what the program prints; `docs --check` fails on any difference.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::{Outcome, cargo, root};

/// Deeper nests of subcommands than this are a loop.
const DEPTH_MAX: usize = 4;

pub(crate) fn make() -> Outcome {
    // The plan language's own documents are held against it by its tests, which also write them.
    let status =
        cargo().args(["test", "--quiet", "--package", "lifeboat-core", "current"]).env("UPDATE_PLANS", "1").status();
    if !status.map_err(|error| format!("cannot run cargo test ({error})"))?.success() {
        return Err("the documents of the plan language could not be made".to_owned());
    }
    build()?;
    for (path, text) in documents()? {
        std::fs::write(&path, text).map_err(|error| format!("cannot write {} ({error})", path.display()))?;
        println!("wrote {}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn check() -> Outcome {
    build()?;
    Ok(if is_current()? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether the documents made from the program, as it was last built, say what it says.
pub(crate) fn is_current() -> Result<bool, String> {
    let mut same = true;
    for (path, text) in documents()? {
        if std::fs::read_to_string(&path).unwrap_or_default() != text {
            println!("{} is not what the program says: run `cargo xtask docs`", path.display());
            same = false;
        }
    }
    Ok(same)
}

fn build() -> Result<(), String> {
    let built = cargo().args(["build", "--quiet", "--package", "lifeboat"]).status();
    match built.map_err(|error| format!("cannot run cargo build ({error})"))?.success() {
        true => Ok(()),
        false => Err("the binary could not be built".to_owned()),
    }
}

fn documents() -> Result<Vec<(PathBuf, String)>, String> {
    let mut commands = String::from(
        "# Commands\n\nMade by `cargo xtask docs` from `lifeboat --help`. Exit codes: 0 done, 1 an operation failed, \
         2 usage or the plan is wrong, 3 done but a finding stands, 4 refused by a safety rule, 5 held and waiting \
         for a person, 130 interrupted.\n",
    );
    describe(&mut commands, &mut Vec::new())?;
    Ok(vec![(root().join("docs/commands.md"), commands)])
}

/// Appends the help of one command, and of each of its subcommands.
fn describe(text: &mut String, words: &mut Vec<String>) -> Result<(), String> {
    if words.len() > DEPTH_MAX {
        return Err(format!("`lifeboat {}` nests too deep", words.join(" ")));
    }
    let help = ask(words)?;
    let name = std::iter::once("lifeboat").chain(words.iter().map(String::as_str)).collect::<Vec<_>>().join(" ");
    let _ = write!(text, "\n## {name}\n\n```text\n{}\n```\n", help.trim_end());
    for subcommand in subcommands(&help) {
        words.push(subcommand);
        describe(text, words)?;
        words.pop();
    }
    Ok(())
}

fn ask(words: &[String]) -> Result<String, String> {
    let output = std::process::Command::new(root().join("target/debug/lifeboat"))
        .args(words)
        .arg("--help")
        .env("COLUMNS", "100")
        .env("NO_COLOR", "1")
        .output()
        .map_err(|error| format!("cannot run the binary ({error})"))?;
    if !output.status.success() {
        return Err(format!("`lifeboat {} --help` failed ({})", words.join(" "), output.status));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n"))
}

/// The names under `Commands:` in a help text.
fn subcommands(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.trim().is_empty());
    let named = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = named.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

#[cfg(test)]
mod help {
    #[test]
    fn subcommands_are_read_from_a_help_text() {
        let text = "Usage: x\n\nCommands:\n  demo   tells a story\n           at length\n  vault  the repository\n  help   this\n\nOptions:\n  -h  help\n";
        assert_eq!(super::subcommands(text), ["demo", "vault"]);
    }
}
