//! Storages that answer late: how much is asked of them at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_vault::files::{BackupOptions, RestoreOptions, backup_tree, restore_tree, tree_root};
use lifeboat_vault::storage::{Listed, MemoryStorage, Put, Storage, StorageError};
use lifeboat_vault::{PointInfo, SessionOptions};

use crate::files_world::*;
use crate::world::{World, unlock};

/// A storage far away: reads of large frames answer only when so many were under way at once, or after a long time.
#[derive(Debug)]
struct Far {
    inner: Arc<MemoryStorage>,
    parallel_reads: usize,
    gather: usize,
    /// How many of them are under way, and how many were at most.
    reads: Mutex<(usize, usize)>,
    gathered: Condvar,
    /// So many of them fail.
    broken: AtomicUsize,
}

impl Far {
    fn new(inner: Arc<MemoryStorage>, parallel_reads: usize, gather: usize, broken: usize) -> Arc<Far> {
        Arc::new(Far {
            inner,
            parallel_reads,
            gather,
            reads: Mutex::default(),
            gathered: Condvar::new(),
            broken: AtomicUsize::new(broken),
        })
    }

    fn most(&self) -> usize {
        self.reads.lock().unwrap().1
    }
}

impl Storage for Far {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, StorageError> {
        self.inner.put_if_absent(key, bytes)
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), StorageError> {
        self.inner.put(key, bytes)
    }

    fn get(&self, key: &str) -> Result<Vec<u8>, StorageError> {
        self.inner.get(key)
    }

    fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Vec<u8>, StorageError> {
        // Frames of listings are small, and read one after another.
        if !key.starts_with("pack/") || length < 1 << 20 {
            return self.inner.get_range(key, offset, length);
        }
        let mut reads = self.reads.lock().unwrap();
        reads.0 += 1;
        reads.1 = reads.1.max(reads.0);
        self.gathered.notify_all();
        let waited = self.gathered.wait_timeout_while(reads, Duration::from_secs(60), |reads| reads.1 < self.gather);
        waited.unwrap().0.0 -= 1;
        let fails = self.broken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        match fails {
            true => Err(StorageError::Gone { location: self.location() }),
            false => self.inner.get_range(key, offset, length),
        }
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StorageError> {
        self.inner.list(prefix)
    }

    fn delete(&self, key: &str) -> Result<(), StorageError> {
        self.inner.delete(key)
    }

    fn location(&self) -> String {
        "far away".to_owned()
    }

    fn parallel_reads(&self) -> usize {
        self.parallel_reads
    }
}

/// A point of 40 MB that does not compress: ten frames.
fn ten_frames(world: &World, from: &std::path::Path) -> PointInfo {
    write(from.join("large"), noise(1, 36 << 20));
    for index in 0..40 {
        write(from.join(format!("small/{index}")), noise(index + 2, 100_000));
    }
    let session = world.vault.begin("docs", SessionOptions::fast()).unwrap();
    let cancel = AtomicBool::new(false);
    let summary = backup_tree(&session, &[from.to_owned()], &BackupOptions::default(), &(), &cancel).unwrap();
    session.commit(summary.draft(Timestamp::now())).unwrap()
}

fn restore(world: &World, far: &Arc<Far>, point: &PointInfo, to: &std::path::Path) {
    let unlocked = unlock(far.clone(), &world.fingerprint, &world.owner).unwrap();
    let source = unlocked.source("docs").unwrap();
    let root = tree_root(&unlocked, point).unwrap();
    let options = RestoreOptions { threads: 2, ..RestoreOptions::default() };
    restore_tree(&source, &root, to, &options, &(), &AtomicBool::new(false)).unwrap();
}

#[test]
fn a_restore_from_afar_waits_for_many_frames_at_once_and_unpacks_few() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    let point = ten_frames(&world, &from);
    // Reads that fail ahead of their turn are done again in their turn.
    let far = Far::new(world.storage.clone(), 6, 6, 2);
    restore(&world, &far, &point, &dir.path().join("far"));
    assert_same(&from, &dir.path().join("far"));
    assert_eq!(far.most(), 6);
    assert_eq!(far.broken.load(Ordering::SeqCst), 0);

    let near = Far::new(world.storage.clone(), 1, 0, 0);
    restore(&world, &near, &point, &dir.path().join("near"));
    assert_same(&from, &dir.path().join("near"));
    assert!(near.most() <= 2, "{}", near.most());
}
