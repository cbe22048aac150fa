//! A reader that nobody of ours wrote from our code: a Python script made from the pages of the format alone opens every frozen vault with a
//! private key, and restores all of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::frozen::{Expected, contents, examples};

fn read(vault: &Path, key: &Path, owner: &str, to: &Path) -> Output {
    let python = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("pypi/bin/python3");
    assert!(python.exists(), "{} is missing: `cargo xtask test` installs it, or `cargo xtask pypi`", python.display());
    let reader = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reader/reader.py");
    Command::new(python).arg("-B").arg(reader).arg(vault).arg(key).arg(owner).arg(to).output().unwrap()
}

fn expected(example: &Path) -> Expected {
    serde_json::from_slice(&fs::read(example.join("expected.json")).unwrap()).unwrap()
}

/// Payloads of a log, in order.
fn log(logs: &Path, dataset: &str) -> Vec<String> {
    let files: BTreeMap<PathBuf, String> = contents(&logs.join(dataset))
        .into_keys()
        .map(|name| {
            let path = logs.join(dataset).join(name);
            let text = fs::read_to_string(&path).unwrap();
            (path, text)
        })
        .collect();
    files.into_values().collect()
}

#[test]
fn a_reader_written_from_the_format_s_pages_restores_every_frozen_vault() {
    for entry in fs::read_dir(examples()).unwrap() {
        let example = entry.unwrap().path();
        let expected = expected(&example);
        for (vault, key) in [("vault", "owner.key"), ("vault", "paper.key"), ("copy", "paper.key")] {
            let out = tempfile::tempdir().unwrap();
            let ran = read(&example.join(vault), &example.join(key), &expected.owner, out.path());
            assert!(ran.status.success(), "{vault}, {key}: {}", String::from_utf8_lossy(&ran.stderr));
            let mut points = expected.points.clone();
            points.extend(expected.waiting.clone().into_iter().filter(|_| vault == "copy"));
            let restored = out.path().join("points");
            for (id, tree) in &points {
                assert_eq!(contents(&restored.join(id)), *tree, "{vault}, {id}");
            }
            let count = contents_of_depth(&restored, 3);
            assert_eq!(count, points.len(), "{vault} shows other points");
            let logs = out.path().join("logs");
            assert_eq!(log(&logs, "database"), expected.log);
            assert!(log(&logs, "ledger").ends_with(&expected.ledger), "{vault}");
        }
    }
}

/// How many directories lie so deep.
fn contents_of_depth(at: &Path, depth: usize) -> usize {
    match depth {
        0 => 1,
        _ => fs::read_dir(at).unwrap().map(|entry| contents_of_depth(&entry.unwrap().path(), depth - 1)).sum(),
    }
}

#[test]
fn that_reader_refuses_another_owner_a_stranger_s_key_and_one_changed_byte() {
    let example = examples().join("v1");
    let expected = expected(&example);
    let work = tempfile::tempdir().unwrap();
    let refused = |vault: &Path, key: &Path, owner: &str, why: &str| {
        let ran = read(vault, key, owner, &work.path().join("out"));
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(!ran.status.success() && said.contains(why), "{why}: {said}");
    };
    let (vault, key) = (example.join("vault"), example.join("owner.key"));
    refused(&vault, &key, &"0".repeat(32), "the owner that is expected");
    let stranger = work.path().join("stranger.key");
    fs::write(&stranger, lifeboat_vault::Identity::generate().expose()).unwrap();
    refused(&vault, &stranger, &expected.owner, "a key that opens it");
    let changed = work.path().join("vault");
    super::copy_tree(&vault, &changed);
    let pack = contents(&changed.join("pack")).into_keys().next().unwrap();
    let mut bytes = fs::read(changed.join("pack").join(&pack)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(changed.join("pack").join(&pack), bytes).unwrap();
    refused(&changed, &key, &expected.owner, "is named by what it holds");
}
