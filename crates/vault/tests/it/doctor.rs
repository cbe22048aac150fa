//! The doctor at a directory.

use lifeboat_vault::doctor::{Wanted, examine};
use lifeboat_vault::storage::{Fact, FsStorage, MemoryStorage, Verdict};

fn verdict(facts: &[Fact], code: &str) -> Verdict {
    facts.iter().find(|fact| fact.code == code).unwrap_or_else(|| panic!("{code}: {facts:#?}")).verdict
}

#[test]
fn a_directory_is_for_a_pruner_and_no_place_to_let_hosts_into() {
    let root = tempfile::tempdir().unwrap();
    let storage = FsStorage::open(root.path()).unwrap();
    let pruner = examine(&storage, Wanted::Pruner, None);
    for code in ["list", "one-winner", "replace", "delete", "permissions"] {
        assert_eq!(verdict(&pruner.facts, code), Verdict::Good, "{code}");
    }
    let host = examine(&storage, Wanted::Host, Some("alpha"));
    for code in ["replace", "delete"] {
        assert_eq!(verdict(&host.facts, code), Verdict::Finding, "{code}");
    }
    assert_eq!(host.left_behind, None);
    let left: Vec<_> = std::fs::read_dir(root.path().join(".tmp")).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_directory_that_everybody_may_write_to_is_a_finding() {
    use std::os::unix::fs::PermissionsExt;
    let root = tempfile::tempdir().unwrap();
    std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let facts = examine(&FsStorage::open(root.path()).unwrap(), Wanted::Pruner, None).facts;
    assert_eq!(verdict(&facts, "permissions"), Verdict::Finding);
}

#[test]
fn what_lies_in_memory_is_said_to() {
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    let facts = examine(&FsStorage::open(root.path()).unwrap(), Wanted::Pruner, None).facts;
    assert_eq!(verdict(&facts, "mount"), Verdict::Finding);
}

#[test]
fn what_cannot_be_tried_out_is_unknown_and_not_good() {
    let facts = examine(&MemoryStorage::new(), Wanted::Host, None).facts;
    assert_eq!(verdict(&facts, "rehearsal"), Verdict::Unknown);
}
