//! Storage in memory, for tests and simulations.
//!
//! Invariant: behaves as the port says, durability apart: it lasts as long as the process.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};

use super::{Listed, Lock, Locking, Put, Storage, StorageError, bytes_max, check_key};

#[derive(Debug, Default)]
pub struct MemoryStorage {
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
    /// When each was put, and the clock that says so, where it is not the system's.
    stored_at: Mutex<HashMap<String, Timestamp>>,
    clock: Mutex<Option<Timestamp>>,
    /// Where it has classes: the class of each object that is in one, and whether it must be thawed.
    classes: Option<Mutex<HashMap<String, (String, bool)>>>,
    /// Where it locks: the lock of each object, and what it does by itself.
    locks: Option<(Locking, Mutex<HashMap<String, Lock>>)>,
    name: String,
}

/// In this class an object must be thawed; in any other it is read at once.
pub const FROZEN_CLASS: &str = "FROZEN";

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
        self.held().clone()
    }

    /// A storage that holds what `snapshot` gave.
    pub fn from_snapshot(objects: BTreeMap<String, Vec<u8>>) -> MemoryStorage {
        let now = Timestamp::now();
        let stored_at = objects.keys().map(|key| (key.clone(), now)).collect();
        MemoryStorage { objects: Mutex::new(objects), stored_at: Mutex::new(stored_at), ..MemoryStorage::default() }
    }

    /// With classes: `FROZEN_CLASS`, in which objects must be thawed, and all others.
    #[must_use]
    pub fn with_classes(self) -> MemoryStorage {
        MemoryStorage { classes: Some(Mutex::default()), ..self }
    }

    /// One that locks: nothing that is locked is deleted, whoever asks.
    #[must_use]
    pub fn with_locks(self, locking: Locking) -> MemoryStorage {
        MemoryStorage { locks: Some((locking, Mutex::default())), ..self }
    }

    fn locks(&self) -> Result<MutexGuard<'_, HashMap<String, Lock>>, StorageError> {
        let (_, locks) = self.locks.as_ref().ok_or_else(|| StorageError::NoLocks { location: self.location() })?;
        Ok(locks.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn now(&self) -> Timestamp {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or_else(Timestamp::now)
    }

    /// Makes everything readable that must be thawed.
    pub fn thaw(&self) {
        let classes = self.classes.iter().flat_map(|classes| classes.lock());
        classes.for_each(|mut classes| classes.values_mut().for_each(|(_, frozen)| *frozen = false));
    }

    fn class(&self, key: &str) -> Option<(String, bool)> {
        let classes = self.classes.as_ref()?;
        classes.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn set_class(&self, key: &str, class: Option<&str>) {
        let Some(classes) = &self.classes else { return };
        let mut classes = classes.lock().unwrap_or_else(PoisonError::into_inner);
        match class {
            Some(class) => drop(classes.insert(key.to_owned(), (class.to_owned(), class == FROZEN_CLASS))),
            None => drop(classes.remove(key)),
        }
    }

    fn check_readable(&self, key: &str) -> Result<(), StorageError> {
        match self.class(key) {
            Some((_, true)) => Err(StorageError::Archived {
                key: key.to_owned(),
                location: self.location(),
                thaw: "thaw it".to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// From now on it is this moment here, until it is set again.
    pub fn set_clock(&self, now: Timestamp) {
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    fn note(&self, key: &str) {
        let now = self.now();
        if let Some((Locking { by_itself: Some((days, mode)) }, locks)) = &self.locks {
            let until = now.saturating_add(SignedDuration::from_hours(24 * i64::from(*days))).unwrap_or(Timestamp::MAX);
            let lock = Lock { until, mode: *mode };
            locks.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_owned(), lock);
        }
        let mut stored_at = self.stored_at.lock().unwrap_or_else(PoisonError::into_inner);
        stored_at.insert(key.to_owned(), now);
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<String, Vec<u8>>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Storage for MemoryStorage {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, StorageError> {
        check_key(key)?;
        let mut objects = self.held();
        if objects.contains_key(key) {
            return Ok(Put::Exists);
        }
        objects.insert(key.to_owned(), bytes.to_vec());
        self.note(key);
        Ok(Put::Created)
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), StorageError> {
        check_key(key)?;
        self.held().insert(key.to_owned(), bytes.to_vec());
        self.note(key);
        self.set_class(key, None);
        Ok(())
    }

    fn get(&self, key: &str) -> Result<Vec<u8>, StorageError> {
        check_key(key)?;
        self.check_readable(key)?;
        let objects = self.held();
        let object = objects.get(key).ok_or_else(|| StorageError::NotFound { key: key.to_owned() })?;
        let (size, limit) = (object.len() as u64, bytes_max(key));
        match size <= limit {
            true => Ok(object.clone()),
            false => Err(StorageError::TooLarge { key: key.to_owned(), size, limit }),
        }
    }

    fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Vec<u8>, StorageError> {
        check_key(key)?;
        self.check_readable(key)?;
        let objects = self.held();
        let object = objects.get(key).ok_or_else(|| StorageError::NotFound { key: key.to_owned() })?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(object.len());
        let end = start.saturating_add(usize::try_from(length).unwrap_or(usize::MAX)).min(object.len());
        Ok(object[start..end].to_vec())
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StorageError> {
        let objects = self.held();
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
        if let Some(lock) =
            self.locks().ok().and_then(|locks| locks.get(key).copied()).filter(|lock| lock.until > self.now())
        {
            let (key, location) = (key.to_owned(), self.location());
            return Err(StorageError::Locked { key, location, until: Some(lock.until) });
        }
        self.held().remove(key);
        self.set_class(key, None);
        Ok(())
    }

    fn locking(&self) -> Result<Option<Locking>, StorageError> {
        Ok(self.locks.as_ref().map(|(locking, _)| *locking))
    }

    fn lock_of(&self, key: &str) -> Result<Option<Lock>, StorageError> {
        Ok(self.locks()?.get(key).copied())
    }

    fn lock(&self, key: &str, lock: Lock) -> Result<(), StorageError> {
        if !self.held().contains_key(key) {
            return Err(StorageError::NotFound { key: key.to_owned() });
        }
        let mut locks = self.locks()?;
        let holds = |there: &Lock| there.until > lock.until || there.mode != lock.mode;
        if locks.get(key).is_some_and(|there| there.until > self.now() && holds(there)) {
            return Err(StorageError::Denied { location: self.location(), verb: "lock" });
        }
        locks.insert(key.to_owned(), lock);
        Ok(())
    }

    fn class_place(&self) -> Option<String> {
        self.classes.as_ref().map(|_| self.location())
    }

    fn put_in_class(&self, key: &str, bytes: Vec<u8>, class: &str) -> Result<(), StorageError> {
        if self.classes.is_none() {
            return Err(StorageError::NoClasses { location: self.location() });
        }
        self.put(key, &bytes)?;
        self.set_class(key, Some(class));
        Ok(())
    }

    fn class_of(&self, key: &str) -> Result<Option<String>, StorageError> {
        match self.classes {
            None => Err(StorageError::NoClasses { location: self.location() }),
            Some(_) => Ok(self.class(key).map(|(class, _)| class)),
        }
    }

    fn location(&self) -> String {
        format!("memory:{}", self.name)
    }
}
