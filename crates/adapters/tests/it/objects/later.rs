//! A prune that puts old packs away, in a test's minute: through a storage whose clock a test moves on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use jiff::{SignedDuration, Timestamp};
use lifeboat_vault::prune::{ARCHIVE_BYTES_MAX, ArchiveRules, Swept};
use lifeboat_vault::storage::{Storage, StorageError};
use lifeboat_vault::{Identity, PruneOptions, Pruner};

/// Points are old at once, and what waits two days waits until a test says so.
fn rules(class: &str, thaw: SignedDuration) -> PruneOptions {
    let archive = ArchiveRules {
        class: class.to_owned(),
        thaw,
        after: BTreeMap::new(),
        after_all: Some(SignedDuration::ZERO),
        bytes_per_second: None,
        bytes_max: ARCHIVE_BYTES_MAX,
    };
    PruneOptions { archive: Some(archive), min_age: SignedDuration::ZERO, ..PruneOptions::default() }
}

/// A storage whose clock runs ahead: three days pass between two looks.
#[derive(Debug)]
struct Later {
    inner: Arc<dyn Storage>,
    days: std::sync::atomic::AtomicI64,
}

impl Later {
    fn shift(&self) -> SignedDuration {
        SignedDuration::from_hours(24 * self.days.load(Ordering::SeqCst))
    }
}

impl Storage for Later {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<lifeboat_vault::storage::Put, StorageError> {
        self.inner.put_if_absent(key, bytes)
    }
    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), StorageError> {
        self.inner.put(key, bytes)
    }
    fn get(&self, key: &str) -> Result<Vec<u8>, StorageError> {
        self.inner.get(key)
    }
    fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Vec<u8>, StorageError> {
        self.inner.get_range(key, offset, length)
    }
    fn list(&self, prefix: &str) -> Result<Vec<lifeboat_vault::storage::Listed>, StorageError> {
        let mut listed = self.inner.list(prefix)?;
        // What was just put there to ask for the time came in just now.
        let just_now = prefix.starts_with("probe/");
        for object in listed.iter_mut().filter(|_| just_now) {
            object.stored_at = object.stored_at.map(|at| at + self.shift());
        }
        Ok(listed)
    }
    fn delete(&self, key: &str) -> Result<(), StorageError> {
        self.inner.delete(key)
    }
    fn location(&self) -> String {
        self.inner.location()
    }
    fn class_place(&self) -> Option<String> {
        self.inner.class_place()
    }
    fn put_in_class(&self, key: &str, bytes: Vec<u8>, class: &str) -> Result<(), StorageError> {
        self.inner.put_in_class(key, bytes, class)
    }
    fn class_of(&self, key: &str) -> Result<Option<String>, StorageError> {
        self.inner.class_of(key)
    }
    fn parallel_writes(&self) -> usize {
        self.inner.parallel_writes()
    }
}

/// Puts what only older points need into a class, which is so many packs.
pub(crate) fn put_away(
    (storage, packs): (&Arc<dyn Storage>, u64),
    key: &Identity,
    owner: &str,
    class: &str,
    thaw: SignedDuration,
) {
    let later = Arc::new(Later { inner: storage.clone(), days: 3.into() });
    let vault = lifeboat_vault::Vault::open(later.clone(), None, Some(owner)).unwrap();
    let pruner: Pruner = vault.unlock(std::slice::from_ref(key)).unwrap().pruner().unwrap();
    let on = |days: i64| {
        later.days.store(days, Ordering::SeqCst);
        PruneOptions { now: Some(Timestamp::now() + SignedDuration::from_hours(24 * days)), ..rules(class, thaw) }
    };
    let day_3 = on(3);
    let proposed = pruner.propose(&day_3).unwrap();
    assert_eq!(proposed.archived_packs, packs, "{proposed:?}");
    pruner.perform(&proposed, &day_3).unwrap();
    let Swept::Done(report) = pruner.go_on(&on(6)).unwrap() else { panic!("not swept") };
    assert_eq!((report.archived_packs, report.kept.len()), (packs, 0), "{report:?}");
}
