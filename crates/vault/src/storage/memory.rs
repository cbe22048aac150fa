//! Storage in memory, for tests and simulations.
//!
//! Invariant: behaves as the port says, durability apart: it lasts as long as the process.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use super::{Listed, Put, Storage, StorageError, check_key};

#[derive(Debug, Default)]
pub struct MemoryStorage {
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
    /// When each was put, and the clock that says so, where it is not the system's.
    stored_at: Mutex<HashMap<String, Timestamp>>,
    clock: Mutex<Option<Timestamp>>,
    name: String,
}

static SHARED: LazyLock<Mutex<HashMap<String, Arc<MemoryStorage>>>> = LazyLock::new(Mutex::default);

impl MemoryStorage {
    pub fn new() -> MemoryStorage {
        MemoryStorage::default()
    }

    /// The same storage for the same name, within this process; a new one each time for the empty name.
    pub fn shared(name: &str) -> Arc<MemoryStorage> {
        let make = || Arc::new(MemoryStorage { name: name.to_owned(), ..MemoryStorage::default() });
        if name.is_empty() {
            return make();
        }
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.entry(name.to_owned()).or_insert_with(make).clone()
    }

    /// A copy of everything in it now.
    pub fn snapshot(&self) -> BTreeMap<String, Vec<u8>> {
        self.lock().clone()
    }

    /// A storage that holds what `snapshot` gave.
    pub fn from_snapshot(objects: BTreeMap<String, Vec<u8>>) -> MemoryStorage {
        let now = Timestamp::now();
        let stored_at = objects.keys().map(|key| (key.clone(), now)).collect();
        MemoryStorage { objects: Mutex::new(objects), stored_at: Mutex::new(stored_at), ..MemoryStorage::default() }
    }

    /// From now on it is this moment here, until it is set again.
    pub fn set_clock(&self, now: Timestamp) {
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    fn note(&self, key: &str) {
        let now = *self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stored_at = self.stored_at.lock().unwrap_or_else(PoisonError::into_inner);
        stored_at.insert(key.to_owned(), now.unwrap_or_else(Timestamp::now));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Vec<u8>>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Storage for MemoryStorage {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, StorageError> {
        check_key(key)?;
        let mut objects = self.lock();
        if objects.contains_key(key) {
            return Ok(Put::Exists);
        }
        objects.insert(key.to_owned(), bytes.to_vec());
        self.note(key);
        Ok(Put::Created)
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), StorageError> {
        check_key(key)?;
        self.lock().insert(key.to_owned(), bytes.to_vec());
        self.note(key);
        Ok(())
    }

    fn get(&self, key: &str) -> Result<Vec<u8>, StorageError> {
        check_key(key)?;
        self.lock().get(key).cloned().ok_or_else(|| StorageError::NotFound { key: key.to_owned() })
    }

    fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Vec<u8>, StorageError> {
        check_key(key)?;
        let objects = self.lock();
        let object = objects.get(key).ok_or_else(|| StorageError::NotFound { key: key.to_owned() })?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(object.len());
        let end = start.saturating_add(usize::try_from(length).unwrap_or(usize::MAX)).min(object.len());
        Ok(object[start..end].to_vec())
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StorageError> {
        let objects = self.lock();
        let within = objects.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        let stored_at = self.stored_at.lock().unwrap_or_else(PoisonError::into_inner);
        let listed = |(key, bytes): (&String, &Vec<u8>)| Listed {
            key: key.clone(),
            size: bytes.len() as u64,
            stored_at: stored_at.get(key).copied(),
        };
        Ok(within.map(listed).collect())
    }

    fn delete(&self, key: &str) -> Result<(), StorageError> {
        check_key(key)?;
        self.lock().remove(key);
        Ok(())
    }

    fn location(&self) -> String {
        format!("memory:{}", self.name)
    }
}
