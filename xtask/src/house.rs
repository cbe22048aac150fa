//! The rules of the house, as ordinary tests.
//!
//! Invariant: an exception stands in a list here with its reason, and the list only shrinks.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::{cargo, root};

/// A source file longer than this has become two rooms. (The aim is half of it.)
const FILE_LINES_MAX: usize = 700;
/// A folder with more files than this wants subfolders.
const FOLDER_FILES_MAX: usize = 20;

/// Files of the repository, as git knows them (tracked, and new but not ignored).
fn files() -> Vec<PathBuf> {
    let output = Command::new("git")
        .current_dir(root())
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()
        .unwrap();
    assert!(output.status.success(), "git ls-files failed: the house is checked in a clone");
    let names = String::from_utf8(output.stdout).unwrap();
    let paths: Vec<PathBuf> = names
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(PathBuf::from)
        .filter(|path| root().join(path).is_file())
        .collect();
    assert!(paths.len() > 20, "git named only {} files", paths.len());
    paths
}

fn sources() -> Vec<(PathBuf, String)> {
    let rust = files().into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    rust.map(|path| (path.clone(), std::fs::read_to_string(root().join(path)).unwrap())).collect()
}

fn fail_if_any(rule: &str, findings: Vec<String>) {
    assert!(findings.is_empty(), "{rule}:\n  {}", findings.join("\n  "));
}

#[test]
fn every_file_opens_with_what_it_decides() {
    let silent = sources().into_iter().filter(|(_, text)| !text.starts_with("//! "));
    fail_if_any("a source file opens with `//!`", silent.map(|(path, _)| path.display().to_string()).collect());
}

#[test]
fn no_file_is_longer_than_a_room() {
    let long = sources().into_iter().filter(|(_, text)| text.lines().count() > FILE_LINES_MAX);
    let named = long.map(|(path, text)| format!("{}: {} lines", path.display(), text.lines().count()));
    fail_if_any("a source file has at most so many lines as FILE_LINES_MAX says", named.collect());
}

#[test]
fn no_folder_is_a_heap() {
    let mut folders: BTreeMap<PathBuf, usize> = BTreeMap::new();
    for (path, _) in sources() {
        *folders.entry(path.parent().unwrap().to_owned()).or_default() += 1;
    }
    let heaps = folders.into_iter().filter(|(_, count)| *count > FOLDER_FILES_MAX);
    fail_if_any(
        "a folder holds a dozen files or so",
        heaps.map(|(path, count)| format!("{}: {count}", path.display())).collect(),
    );
}

#[test]
fn no_module_is_named_after_nothing() {
    let empty = ["utils", "util", "common", "types", "helpers", "misc", "manager", "handler"];
    let named = sources().into_iter().filter(|(path, _)| {
        let words = path.components().map(|part| part.as_os_str().to_string_lossy().replace(".rs", ""));
        words.into_iter().any(|word| empty.contains(&word.as_str()))
    });
    fail_if_any("a module's name says what is in it", named.map(|(path, _)| path.display().to_string()).collect());
}

#[test]
fn nothing_is_left_undone_in_the_code() {
    // Assembled, so that this file does not find itself.
    let banned =
        [["to", "do!("].concat(), ["unimple", "mented!("].concat(), ["FIX", "ME"].concat(), ["X", "XX:"].concat()];
    let mut findings = Vec::new();
    for (path, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            if banned.iter().any(|word| line.contains(word.as_str())) || line.trim_start().starts_with("#[ignore") {
                findings.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    fail_if_any("no stub, no ignored test", findings);
}

#[test]
fn every_test_file_is_part_of_its_test_binary() {
    let mut findings = Vec::new();
    for (path, _) in sources() {
        let inside = path.components().any(|part| part.as_os_str() == "it");
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if !inside || matches!(name.as_str(), "main" | "mod") {
            continue;
        }
        let folder = root().join(path.parent().unwrap());
        let owners = ["main.rs", "mod.rs"].map(|file| folder.join(file));
        let beside = folder.with_extension("rs");
        let declared = owners.iter().chain([&beside]).filter_map(|file| std::fs::read_to_string(file).ok());
        if !declared.into_iter().any(|text| text.contains(&format!("mod {name};"))) {
            findings.push(path.display().to_string());
        }
    }
    fail_if_any("a file under tests/it is declared as a module, or its tests never run", findings);
}

#[test]
fn every_test_that_the_page_on_trust_names_exists() {
    let page = std::fs::read_to_string(root().join("docs/trust.md")).unwrap();
    let words = page.split('`').skip(1).step_by(2);
    let named: BTreeSet<&str> = words
        .filter(|word| word.matches('_').count() >= 3 && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
        .collect();
    assert!(named.len() > 20, "{named:?}");
    let texts = sources();
    let is_test = |name: &str| {
        texts.iter().any(|(_, text)| {
            text.split(&format!("fn {name}(")).next().is_some_and(|before| {
                before.len() < text.len() && before.lines().rev().take(3).any(|line| line.contains("#[test]"))
            })
        })
    };
    let absent = named.into_iter().filter(|name| !is_test(name));
    fail_if_any("docs/trust.md names tests that exist", absent.map(str::to_owned).collect());
}

fn metadata() -> Value {
    let rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())).arg("-vV").output().unwrap();
    let version = String::from_utf8(rustc.stdout).unwrap();
    // Only what is built here was downloaded.
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let arguments = ["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", host];
    let output = cargo().args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn crates_depend_in_one_direction() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("lifeboat-core", &[][..]),
        ("lifeboat-vault", &[]),
        ("lifeboat-logbook", &[]),
        ("lifeboat-engine", &["lifeboat-core", "lifeboat-vault"]),
        ("lifeboat-adapters", &["lifeboat-core", "lifeboat-vault", "lifeboat-engine"]),
        ("lifeboat", &["lifeboat-core", "lifeboat-vault", "lifeboat-engine", "lifeboat-adapters", "lifeboat-logbook"]),
        ("xtask", &[]),
    ]);
    let mut findings = Vec::new();
    let metadata = metadata();
    let members: BTreeSet<&str> =
        metadata["workspace_members"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
    let packages = metadata["packages"].as_array().unwrap().iter();
    for package in packages.filter(|package| members.contains(package["id"].as_str().unwrap())) {
        let name = package["name"].as_str().unwrap();
        let Some(may) = allowed.get(name) else {
            findings.push(format!("{name} is a new crate: say here what it may depend on"));
            continue;
        };
        for dependency in package["dependencies"].as_array().unwrap() {
            let target = dependency["name"].as_str().unwrap();
            // A test may look from outside; what is built may not.
            if dependency["kind"].is_null() && allowed.contains_key(target) && !may.contains(&target) {
                findings.push(format!("{name} depends on {target}"));
            }
        }
    }
    fail_if_any("crates depend in one direction (ARCHITECTURE.md)", findings);
}

#[test]
fn the_pure_crate_names_nothing_impure() {
    let impure = [
        "std::fs",
        "std::net::Tcp",
        "std::net::Udp",
        "std::process",
        "std::env",
        "std::thread",
        "SystemTime::now",
        "Instant::now",
        "Timestamp::now",
        "Zoned::now",
        "tokio::",
    ];
    let mut findings = Vec::new();
    for (path, text) in sources().into_iter().filter(|(path, _)| path.starts_with("crates/core/src")) {
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            findings.extend(
                impure
                    .iter()
                    .filter(|word| line.contains(**word))
                    .map(|word| format!("{}:{}: {word}", path.display(), number + 1)),
            );
        }
    }
    fail_if_any("core is pure: time, text and seeds are passed in", findings);
}

#[test]
fn every_dependency_has_an_allowed_licence() {
    let deny: toml::Table = std::fs::read_to_string(root().join("deny.toml")).unwrap().parse().unwrap();
    let allowed: BTreeSet<&str> =
        deny["licenses"]["allow"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let mut findings = Vec::new();
    for package in metadata()["packages"].as_array().unwrap() {
        let licence = package["license"].as_str().unwrap_or("none given");
        if !is_allowed(licence, &allowed) {
            findings.push(format!("{} {}: {licence}", package["name"], package["version"]));
        }
    }
    fail_if_any("every licence stands in deny.toml", findings);
}

/// Whether an SPDX expression can be met with the allowed licences. Binds as SPDX says: AND before OR, old `/` is OR.
fn is_allowed(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut place = 0;
    any_of(&words, &mut place, allowed) && place == words.len()
}

fn any_of(words: &[&str], place: &mut usize, allowed: &BTreeSet<&str>) -> bool {
    let mut met = all_of(words, place, allowed);
    while words.get(*place) == Some(&"OR") {
        *place += 1;
        met |= all_of(words, place, allowed);
    }
    met
}

fn all_of(words: &[&str], place: &mut usize, allowed: &BTreeSet<&str>) -> bool {
    let mut met = one(words, place, allowed);
    while words.get(*place) == Some(&"AND") {
        *place += 1;
        met &= one(words, place, allowed);
    }
    met
}

fn one(words: &[&str], place: &mut usize, allowed: &BTreeSet<&str>) -> bool {
    let word = words.get(*place).copied().unwrap_or_default();
    *place += 1;
    if word == "(" {
        let met = any_of(words, place, allowed);
        *place += 1;
        return met;
    }
    let mut name = word.to_owned();
    if words.get(*place) == Some(&"WITH") {
        name = format!("{word} WITH {}", words.get(*place + 1).copied().unwrap_or_default());
        *place += 2;
    }
    allowed.contains(name.as_str())
}

#[test]
fn licence_expressions_are_read_as_spdx_means_them() {
    let allowed = BTreeSet::from(["MIT", "ISC", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"]);
    for good in
        ["MIT", "GPL-3.0 OR MIT", "MIT/Unlicense", "ISC AND (MIT OR OpenSSL)", "Apache-2.0 WITH LLVM-exception AND MIT"]
    {
        assert!(is_allowed(good, &allowed), "{good}");
    }
    for bad in ["GPL-3.0", "ISC AND OpenSSL", "MIT AND (GPL-3.0 OR OpenSSL)", "none given", ""] {
        assert!(!is_allowed(bad, &allowed), "{bad}");
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut findings = Vec::new();
    for path in files().into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "md")) {
        let text = std::fs::read_to_string(root().join(&path)).unwrap();
        let folder = root().join(path.parent().unwrap_or(Path::new("")));
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") && !folder.join(target).exists() {
                findings.push(format!("{}: {link}", path.display()));
            }
        }
    }
    fail_if_any("a link leads to a file that exists", findings);
}

#[test]
fn every_document_is_named_in_the_index() {
    let index = std::fs::read_to_string(root().join("docs/README.md")).unwrap();
    let decisions = std::fs::read_to_string(root().join("docs/decisions/README.md")).unwrap();
    let mut findings = Vec::new();
    for path in files().into_iter().filter(|path| path.starts_with("docs")) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let index = if path.starts_with("docs/decisions") { &decisions } else { &index };
        // Rounds are no documents, but what one is made of: it has to lead to them.
        if path.starts_with("docs/benchmarks") && name.ends_with(".json") {
            let page = std::fs::read_to_string(root().join("docs/benchmarks.md")).unwrap();
            let what = name.rsplit_once('-').map_or("", |(what, _)| what);
            if !page.contains("(benchmarks)")
                || !["tree", "database", "small", "sqlite", "postgres", "switch", "stream"].contains(&what)
            {
                findings.push(path.display().to_string());
            }
            continue;
        }
        if name != "README.md" && !path.starts_with("docs/pictures") && !index.contains(&format!("({name})")) {
            findings.push(path.display().to_string());
        }
    }
    fail_if_any("a document is named in docs/README.md, a decision in docs/decisions/README.md", findings);
}

#[test]
fn ci_runs_the_readme_s_test_command_and_nothing_else() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    assert!(readme.contains("\ncargo xtask test\n"), "README.md names the test command on a line of its own");
    let ci = std::fs::read_to_string(root().join(".ci/run")).unwrap();
    let lines: Vec<&str> = ci.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
    assert_eq!(lines, [r#"cd "$(dirname "$0")/.." && exec cargo xtask test"#]);
}
