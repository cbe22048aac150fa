//! Objects that are larger than their kind may be: of every kind that a vault has one is blown up in turn. Nobody takes it into memory, and
//! whoever reads it names it, its size and the limit.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use lifeboat_vault::storage::{FsStorage, MemoryStorage, Storage, StorageError};
use lifeboat_vault::{CheckOptions, Identity, Vault};

use super::frozen::{Expected, contents, examples, kind_of};
use crate::trust::copy_tree;

const MIB: u64 = 1 << 20;

/// What no reader opens: the text for people, and the tombstone of a point of which the prune's own records say that it went.
const UNREAD: [&str; 2] = ["README.txt/", "tombstone/"];

fn limit_of(kind: &str) -> u64 {
    match kind.trim_end_matches('/') {
        "log/gathered" | "roster" | "receipt" | "copy" | "copy/done" | "copy/begun" | "heal" | "witness" => 8 * MIB,
        "snap" => 32 * MIB,
        "pack" | "index" | "index/moved" | "refs" | "log" => 96 * MIB,
        prune if prune.starts_with("prune") => 96 * MIB,
        _ => MIB,
    }
}

/// The newest object of each kind that lies there.
fn one_of_each(vault: &Path) -> BTreeMap<String, String> {
    contents(vault).into_keys().map(|name| (kind_of(&name), name)).collect()
}

fn assert_too_large(storage: &dyn Storage, key: &str, limit: u64) {
    let error = storage.get(key).unwrap_err();
    let StorageError::TooLarge { key: named, size, limit: said } = &error else { panic!("{key}: {error:?}") };
    assert_eq!((named.as_str(), *size, *said), (key, limit + 1, limit));
    let said = format!("object {key} holds {} bytes, more than {limit}", limit + 1);
    assert!(error.to_string().starts_with(&said), "{error}");
}

#[test]
fn no_storage_reads_an_object_that_is_larger_than_its_kind_may_be() {
    let mut seen = 0;
    for vault in ["vault", "copy"] {
        let work = tempfile::tempdir().unwrap();
        copy_tree(&examples().join("v1").join(vault), work.path());
        let storage = FsStorage::open(work.path().to_str().unwrap()).unwrap();
        for (kind, key) in one_of_each(work.path()) {
            let limit = limit_of(&kind);
            File::options().write(true).open(work.path().join(&key)).unwrap().set_len(limit + 1).unwrap();
            assert_too_large(&storage, &key, limit);
            if limit <= 8 * MIB {
                let memory = MemoryStorage::new();
                memory.put(&key, &vec![0; limit as usize]).unwrap();
                assert_eq!(memory.get(&key).unwrap().len() as u64, limit);
                memory.put(&key, &vec![0; limit as usize + 1]).unwrap();
                assert_too_large(&memory, &key, limit);
            }
            seen += 1;
        }
    }
    assert!(seen > 30, "{seen}");
}

/// Everything that a reader does: what it was told, in words.
fn told(vault: &Path, example: &Path, expected: &Expected) -> String {
    let mut told = String::new();
    let mut note = |error: &dyn std::error::Error| {
        let causes = std::iter::successors(error.source(), |cause| cause.source());
        told += &causes.fold(format!("\n{error}"), |text, cause| format!("{text}: {cause}"));
    };
    let storage = Arc::new(FsStorage::open(vault.to_str().unwrap()).unwrap());
    let keys = Identity::load_all(&example.join("owner.key")).unwrap();
    let opened = Vault::open(storage, None, Some(&expected.owner)).and_then(|vault| vault.unlock(&keys));
    let unlocked = match opened {
        Ok(unlocked) => unlocked,
        Err(error) => {
            note(&error);
            return told;
        }
    };
    let mut findings = Vec::new();
    match unlocked.check(CheckOptions { read_data: true }) {
        Ok(report) => findings.extend(report.findings),
        Err(error) => note(&error),
    }
    for dataset in ["database", "ledger"] {
        match unlocked.log_trail(dataset, "frozen") {
            Ok(trail) => findings.extend(trail.findings),
            Err(error) => note(&error),
        }
    }
    match unlocked.points(None) {
        Ok(points) => findings.extend(points.findings),
        Err(error) => note(&error),
    }
    findings.iter().fold(told, |text, finding| format!("{text}\n{}: {}", finding.object, finding.message))
}

#[test]
fn who_meets_an_object_that_is_too_large_names_it_and_goes_no_further_than_that() {
    let example = examples().join("v1");
    let expected: Expected = serde_json::from_slice(&fs::read(example.join("expected.json")).unwrap()).unwrap();
    let mut silent = Vec::new();
    for vault in ["vault", "copy"] {
        let work = tempfile::tempdir().unwrap();
        copy_tree(&example.join(vault), work.path());
        for (kind, key) in one_of_each(work.path()).into_iter().filter(|(kind, _)| !UNREAD.contains(&kind.as_str())) {
            let path = work.path().join(&key);
            let right = fs::read(&path).unwrap();
            let limit = limit_of(&kind);
            File::options().write(true).open(&path).unwrap().set_len(limit + 1).unwrap();
            let told = told(work.path(), &example, &expected);
            if !told.contains(&format!("object {key} holds {} bytes, more than {limit}", limit + 1)) {
                let about: Vec<&str> = told.lines().filter(|line| line.contains(&key)).collect();
                silent.push(format!("{vault}: {key}: {about:?}"));
            }
            fs::write(&path, right).unwrap();
        }
    }
    assert!(silent.is_empty(), "{}", silent.join("\n"));
}
