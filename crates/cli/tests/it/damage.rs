//! Every stored object deleted, cut and flipped once: what the binary says is right, or loud and by the object's name.

use std::fs;
use std::path::{Path, PathBuf};

use crate::machine::{Machine, Ran, copy_tree, files_below, noise};

/// A vault with two points, a changed recipient, and everything that this machine has seen of it.
fn full_world() -> Machine {
    let machine = Machine::new();
    machine.make_vault();
    let vault = machine.at("backup");
    for version in 1..3 {
        machine.write("data/changing", noise(version, 300_000));
        machine.write("data/constant", noise(9, 200_000));
        machine.line(&format!("backup --vault {vault} {}", machine.at("data"))).ends(0);
    }
    let third = machine.line("key new -o third.key").ends(0).out.trim().to_owned();
    machine.line(&format!("vault recipients add {third} --vault {vault} --key owner.key")).ends(0);
    machine.line(&format!("vault check --vault {vault} --key owner.key --read-data")).ends(0);
    machine
}

fn damages(bytes: &[u8]) -> Vec<(&'static str, Option<Vec<u8>>)> {
    let mut flipped = bytes.to_vec();
    flipped[bytes.len() / 2] ^= 0x10;
    vec![("deleted", None), ("cut", Some(bytes[..bytes.len() / 2].to_vec())), ("flipped", Some(flipped))]
}

/// This machine again, with what it remembered before anything was damaged.
fn run_with_memory(machine: &Machine, memory: &Path, line: &str) -> Ran {
    let state = machine.path("state-now");
    let _ = fs::remove_dir_all(&state);
    copy_tree(memory, &state);
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut command = machine.command(&words);
    command.env("LIFEBOAT_STATE", &state);
    machine.ran(command)
}

#[test]
fn every_object_deleted_cut_or_flipped_once() {
    let machine = full_world();
    let memory = machine.path("home/.local/state/lifeboat");
    let vault = machine.path("backup");
    let (at, out) = (machine.at("backup"), machine.path("out"));
    let objects: Vec<PathBuf> = files_below(&vault).into_iter().filter(|path| !path.ends_with("README.txt")).collect();
    assert!(objects.len() > 15, "{objects:?}");
    for path in &objects {
        let bytes = fs::read(path).unwrap();
        let key = path.strip_prefix(&vault).unwrap().to_str().unwrap().to_owned();
        let is_temporary = key.starts_with(".tmp");
        assert!(!is_temporary, "{key} was left behind");
        for (what, damaged) in damages(&bytes) {
            match damaged {
                None => fs::remove_file(path).unwrap(),
                Some(damaged) => fs::write(path, damaged).unwrap(),
            }
            let check = format!("vault check --vault {at} --key owner.key --read-data");
            let checked = run_with_memory(&machine, &memory, &check);
            let said = format!("{}{}", checked.out, checked.err);
            // A verification that is gone is only a point that is unverified.
            if !(key.starts_with("verify/") && what == "deleted") {
                assert!(matches!(checked.code, 1 | 3), "{key} {what}: exit {}, {said}", checked.code);
                assert!(is_named(&key, what, &said), "{key} {what}: {said}");
            }

            let restore = format!("restore --vault {at} --key owner.key --to {}", out.display());
            let restored = run_with_memory(&machine, &memory, &restore);
            let exact = out.exists().then(|| is_exact(&machine, &out));
            match (restored.code, exact) {
                (0 | 3, Some(true)) => {}
                // An older point in place of the newest is no secret.
                (3, Some(false)) => assert!(restored.err.contains("alarm"), "{key} {what}: {restored:?}"),
                // What the check has marked as corrupt is not restored unasked.
                (1, None) if restored.err.contains("every recovery point") => {
                    assert!(restored.err.contains("known to be corrupt"), "{key} {what}: {restored:?}");
                }
                (1, None) => assert!(is_named(&key, what, &restored.err), "{key} {what}: {restored:?}"),
                _ => panic!("{key} {what}: {exact:?} {restored:?}"),
            }
            let _ = fs::remove_dir_all(&out);
            // A check marks what it found, and lists what is to be stored again.
            let said_by_it = |path: &&PathBuf| ["verify", "heal"].iter().any(|room| path.starts_with(vault.join(room)));
            for new in files_below(&vault).iter().filter(said_by_it) {
                if !objects.contains(new) {
                    fs::remove_file(new).unwrap();
                }
            }
            for left in fs::read_dir(machine.root()).unwrap().flatten() {
                // What a failed restore had begun goes on from there, or goes.
                if left.file_name().to_string_lossy().starts_with(".out.lifeboat-partial-") {
                    fs::remove_dir_all(left.path()).unwrap();
                }
            }
        }
        fs::write(path, &bytes).unwrap();
    }
    run_with_memory(&machine, &memory, &format!("vault check --vault {at} --key owner.key --read-data")).ends(0);
}

/// What is rolled back by one is named by its row: the objects that are left in it are right.
fn is_named(key: &str, what: &str, said: &str) -> bool {
    let row = key.rsplit_once('/').map_or(key, |(row, _)| row);
    let rolled_back = key.starts_with("roster/") && said.contains("rolled back");
    said.contains(key) || rolled_back || what == "deleted" && said.contains(row)
}

fn is_exact(machine: &Machine, out: &Path) -> bool {
    ["changing", "constant"]
        .iter()
        .all(|name| fs::read(out.join(name)).ok() == fs::read(machine.path("data").join(name)).ok())
}

#[test]
fn a_backup_that_passes_by_a_damaged_index_says_so() {
    let machine = full_world();
    let index = files_below(&machine.path("backup/index")).into_iter().min().unwrap();
    let mut bytes = fs::read(&index).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&index, bytes).unwrap();
    // What the host keeps of its indexes is lost: they are read again.
    for kept in files_below(&machine.path("home/.local/state/lifeboat/vaults")) {
        if kept.extension().is_some_and(|extension| extension == "known") {
            fs::remove_file(kept).unwrap();
        }
    }
    let ran = machine.line(&format!("backup --vault {} {}", machine.at("backup"), machine.at("data"))).ends(3);
    let key = index.strip_prefix(machine.path("backup")).unwrap().to_str().unwrap();
    assert!(ran.err.contains(key) && !ran.err.contains("WARN"), "{}", ran.err);
    let restore = format!("restore --vault {} --key owner.key --to out", machine.at("backup"));
    machine.line(&restore).ends(0);
    assert_eq!(fs::read(machine.path("work/out/changing")).unwrap(), fs::read(machine.path("data/changing")).unwrap());
}
