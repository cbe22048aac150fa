//! The storages of this crate against the suite.

use std::sync::Arc;

use lifeboat_vault::storage::{Faulty, FsStorage, MemoryStorage};

use crate::storage_suite::conforms;

#[test]
fn a_directory_conforms() {
    let root = tempfile::tempdir().unwrap();
    let mut count = 0;
    conforms(|| {
        count += 1;
        Arc::new(FsStorage::create(root.path().join(count.to_string())).unwrap())
    });
}

#[test]
fn memory_conforms() {
    conforms(|| Arc::new(MemoryStorage::new()));
}

#[test]
fn the_decorator_that_fails_as_told_conforms_as_long_as_it_is_not_told() {
    conforms(|| Faulty::new(Arc::new(MemoryStorage::new())));
}
