//! A bucket behind the storage port: every verb waits, from any thread, for what the storage's own threads do.
//!
//! Invariant: a key is looked at before anything is asked of the storage.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use lifeboat_vault::storage::{Fact, Listed, Lock, Locking, Put, Storage, StorageError, Thaw, check_key};
use object_store::{GetRange, PutPayload};
use tokio::sync::OnceCell;

use super::verbs::{BucketStorage, REHEARSAL, REHEARSAL_IN};
use super::{facts, listing, locks};

/// Uploads at once that fill most lines.
const PARALLEL_WRITES: usize = 4;
/// Reads at once: so many frames hide a line on which each answer takes a twentieth of a second.
const PARALLEL_READS: usize = 8;

impl Storage for BucketStorage {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, StorageError> {
        check_key(key)?;
        let (shared, key, payload) = (self.shared.clone(), key.to_owned(), PutPayload::from(bytes.to_vec()));
        self.wait(async move { shared.create(&key, payload).await })
    }

    fn put_if_absent_from(&self, key: &str, bytes: &mut Vec<u8>) -> Result<Put, StorageError> {
        check_key(key)?;
        let held = Bytes::from(std::mem::take(bytes));
        let (shared, key, payload) = (self.shared.clone(), key.to_owned(), PutPayload::from(held.clone()));
        let put = self.wait(async move { shared.create(&key, payload).await });
        // What a connection that broke off still holds is let go of by itself.
        if held.is_unique() {
            *bytes = held.into();
        }
        put
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), StorageError> {
        check_key(key)?;
        let (shared, key, payload) = (self.shared.clone(), key.to_owned(), PutPayload::from(bytes.to_vec()));
        self.wait(async move { shared.replace(&key, payload).await })
    }

    fn get(&self, key: &str) -> Result<Vec<u8>, StorageError> {
        check_key(key)?;
        let (shared, key) = (self.shared.clone(), key.to_owned());
        self.wait(async move { shared.read(&key, None).await })
    }

    fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Vec<u8>, StorageError> {
        check_key(key)?;
        let (shared, key) = (self.shared.clone(), key.to_owned());
        self.wait(async move {
            if length == 0 {
                return shared.size_of(&key).await.map(|_| Vec::new());
            }
            let range = GetRange::Bounded(offset..offset.saturating_add(length));
            shared.read(&key, Some(range)).await
        })
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StorageError> {
        let (shared, prefix) = (self.shared.clone(), prefix.to_owned());
        self.wait(async move { listing::list(shared, prefix).await })
    }

    fn delete(&self, key: &str) -> Result<(), StorageError> {
        check_key(key)?;
        let (shared, key) = (self.shared.clone(), key.to_owned());
        self.wait(async move { shared.remove(&key).await.map(|_| ()) })
    }

    fn location(&self) -> String {
        self.shared.location.clone()
    }

    fn class_place(&self) -> Option<String> {
        Some(self.shared.place.clone())
    }

    fn put_in_class(&self, key: &str, bytes: Vec<u8>, class: &str) -> Result<(), StorageError> {
        check_key(key)?;
        let (shared, key, class) = (self.shared.clone(), key.to_owned(), class.to_owned());
        self.wait(async move { shared.replace_in_class(&key, PutPayload::from(bytes), &class).await })
    }

    fn class_of(&self, key: &str) -> Result<Option<String>, StorageError> {
        check_key(key)?;
        let (shared, key) = (self.shared.clone(), key.to_owned());
        self.wait(async move { Ok(shared.look_at(&key).await?.class) })
    }

    fn thaw_of(&self, key: &str) -> Result<Thaw, StorageError> {
        match self.get_range(key, 0, 1) {
            Ok(_) => Ok(Thaw::Readable),
            Err(StorageError::Archived { thaw, .. }) => {
                let (shared, key) = (self.shared.clone(), key.to_owned());
                let answer = self.wait(async move { shared.look_at(&key).await })?;
                Ok(if answer.is_thawing { Thaw::UnderWay } else { Thaw::Frozen { how: thaw } })
            }
            Err(error) => Err(error),
        }
    }

    fn locking(&self) -> Result<Option<Locking>, StorageError> {
        let shared = self.shared.clone();
        self.wait(async move { locks::locking(&shared).await })
    }

    fn lock_of(&self, key: &str) -> Result<Option<Lock>, StorageError> {
        check_key(key)?;
        let (shared, key) = (self.shared.clone(), key.to_owned());
        self.wait(async move { locks::lock_of(&shared, &key).await })
    }

    fn lock(&self, key: &str, lock: Lock) -> Result<(), StorageError> {
        check_key(key)?;
        let (shared, key) = (self.shared.clone(), key.to_owned());
        self.wait(async move { locks::lock(&shared, &key, lock).await })
    }

    fn may_bypass_locks(&self, key: &str, until: Timestamp) -> Result<bool, StorageError> {
        check_key(key)?;
        let (shared, key) = (self.shared.clone(), key.to_owned());
        self.wait(async move { locks::may_bypass(&shared, &key, until).await })
    }

    fn outside_name(&self, key: &str) -> String {
        match self.shared.prefix.is_empty() {
            true => key.to_owned(),
            false => format!("{}/{key}", self.shared.prefix),
        }
    }

    fn parallel_writes(&self) -> usize {
        PARALLEL_WRITES
    }

    fn parallel_reads(&self) -> usize {
        PARALLEL_READS
    }

    fn rehearsal(&self) -> Result<Option<Arc<dyn Storage>>, StorageError> {
        self.beside(REHEARSAL, OnceCell::new()).map(|place| Some(place as Arc<dyn Storage>))
    }

    fn rehearsal_in(&self, directory: &str) -> Result<Option<Arc<dyn Storage>>, StorageError> {
        check_key(directory)?;
        // What is tried there is whether it is permitted, and nothing rests on what is created: it needs no proof of its own.
        self.beside(&format!("{directory}/{REHEARSAL_IN}"), OnceCell::new_with(Some(())))
            .map(|place| Some(place as Arc<dyn Storage>))
    }

    fn facts(&self) -> Vec<Fact> {
        let shared = self.shared.clone();
        self.wait(async move { Ok(facts::facts(&shared).await) }).unwrap_or_default()
    }

    fn is_append_only_by_policy(&self) -> bool {
        true
    }
}
