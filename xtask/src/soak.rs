//! `cargo xtask soak [--minutes N] [--seed N]`: every property of the workspace with other random numbers than `cargo xtask test`, round
//! after round, for so long.
//!
//! Properties are found in the sources, so that none has to be listed. Invariant: a round is repeated by its seed, which is printed
//! before it; a property that was found and did not run counts as failed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::{Outcome, cargo, root};

/// What proptest draws its numbers from.
pub(crate) const SEED: &str = "PROPTEST_RNG_SEED";
const MINUTES: u64 = 60;
/// Random days of a vault in each round.
const MODEL_CASES: &str = "200";

/// The properties of one test binary.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Binary {
    package: String,
    target: &'static [&'static str],
}

pub(crate) fn run(arguments: &[&str]) -> Outcome {
    let (mut minutes, mut only) = (MINUTES, None);
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let number = words.next().and_then(|number| number.parse::<u64>().ok());
        match *word {
            "--minutes" => minutes = number.ok_or("--minutes wants a number")?,
            "--seed" => only = Some(number.ok_or("--seed wants a number")?),
            other => return Err(format!("soak does not know {other}; it takes --minutes N and --seed N")),
        }
    }
    let binaries = properties(&root().join("crates"))?;
    let end = Instant::now() + Duration::from_secs(minutes * 60);
    let (mut failed, mut rounds) = (Vec::new(), 0);
    loop {
        let seed = only.unwrap_or_else(random);
        rounds += 1;
        println!("== seed {seed}");
        for (binary, names) in &binaries {
            if let Err(said) = play(binary, names, seed)? {
                println!("{said}\n{} failed: repeat it with `cargo xtask soak --seed {seed}`", binary.package);
                failed.push(seed);
            }
        }
        if only.is_some() || Instant::now() >= end {
            break;
        }
    }
    let count: usize = binaries.values().map(Vec::len).sum();
    if failed.is_empty() {
        println!("{count} properties, {rounds} rounds; nothing found");
        return Ok(ExitCode::SUCCESS);
    }
    failed.dedup();
    println!("{count} properties, {rounds} rounds; failed with seeds {failed:?}");
    Ok(ExitCode::FAILURE)
}

/// One round of one binary; the inner error is what it printed.
fn play(binary: &Binary, names: &[String], seed: u64) -> Result<Result<(), String>, String> {
    let output = cargo()
        .args(["test", "--quiet", "--package", &binary.package])
        .args(binary.target)
        .arg("--")
        .args(names)
        .env(SEED, seed.to_string())
        .env("LIFEBOAT_MODEL_CASES", MODEL_CASES)
        // A failure is repeated by its seed; kept, it would fail all rounds that follow.
        .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1")
        .env("RUST_BACKTRACE", "0")
        .output()
        .map_err(|error| format!("cannot run cargo test ({error})"))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    let ran = said.lines().filter_map(|line| line.split(" passed; ").next()?.rsplit(' ').next()?.parse::<usize>().ok());
    let ran: usize = ran.sum();
    println!("   {}: {ran} of {}", binary.package, names.len());
    Ok(if output.status.success() && ran >= names.len() { Ok(()) } else { Err(said) })
}

fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

/// The names of all properties, by the binary that they are in.
fn properties(crates: &Path) -> Result<BTreeMap<Binary, Vec<String>>, String> {
    let mut found: BTreeMap<Binary, Vec<String>> = BTreeMap::new();
    let (mut folders, mut files) = (vec![crates.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        let complain = |error| format!("cannot read {} ({error})", folder.display());
        for entry in std::fs::read_dir(&folder).map_err(complain)? {
            let path: PathBuf = entry.map_err(complain)?.path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.extension().is_some_and(|extension| extension == "rs") => files.push(path),
                false => {}
            }
        }
    }
    files.sort();
    for path in files {
        let text =
            std::fs::read_to_string(&path).map_err(|error| format!("cannot read {} ({error})", path.display()))?;
        let names = names_in(&text);
        let Ok(place) = path.strip_prefix(crates) else { continue };
        let mut parts = place.iter().map(|part| part.to_string_lossy());
        if let (false, Some(name), Some(kind)) = (names.is_empty(), parts.next(), parts.next()) {
            let target: &[&str] = if kind == "src" { &["--lib"] } else { &["--test", "it"] };
            found.entry(Binary { package: format!("lifeboat-{name}"), target }).or_default().extend(names);
        }
    }
    Ok(found)
}

/// The tests inside of `proptest! { … }`, and those that call it as a function.
fn names_in(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let (mut last, mut block) = (None, None);
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        let word = line.trim_start();
        if word.starts_with("proptest! {") {
            block = Some(indent);
        } else if word.starts_with("proptest!(") {
            names.extend(last.clone());
        } else if block.is_some_and(|outer| word.starts_with('}') && indent <= outer) {
            block = None;
        } else if let Some((_, rest)) =
            word.split_once("fn ").filter(|(before, _)| before.is_empty() || *before == "async ")
            && let Some((name, _)) = rest.split_once('(')
        {
            last = Some(name.to_owned());
            names.extend(last.clone().filter(|_| block.is_some()));
        }
    }
    names
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{names_in, properties};

    #[test]
    fn properties_are_found_in_both_ways_of_writing_them() {
        let text = "fn plain() {}\nproptest! {\n    #[test]\n    fn first(a: u8) {\n        let x = 1;\n    }\n    #[test]\n    fn second(\n    ) {}\n}\n\
                    #[test]\nfn third() {\n    proptest!(config, |(a in b())| {});\n}\nfn other() {}\n";
        assert_eq!(names_in(text), ["first", "second", "third"]);
    }

    #[test]
    fn every_file_that_speaks_of_properties_has_some() {
        let crates = crate::root().join("crates");
        let found = properties(&crates).unwrap();
        let all: Vec<&String> = found.values().flatten().collect();
        for known in
            ["random_days_leave_what_the_model_says", "random_runs_survive_random_kills", "no_text_makes_it_stumble"]
        {
            assert!(all.iter().any(|name| *name == known), "{known} in {all:?}");
        }
        assert!(all.len() >= 25, "{all:?}");
    }
}
