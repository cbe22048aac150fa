//! A storage that fails as told: for the bad days that tests rehearse. It decorates any other storage.
//!
//! Invariant: what it was not told to break behaves exactly as the storage beneath.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Listed, Lock, Locking, Put, Storage, StorageError};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    PutIfAbsent,
    Put,
    Get,
    GetRange,
    List,
    Delete,
}

impl Operation {
    /// Whether it changes what is stored.
    pub fn writes(self) -> bool {
        matches!(self, Operation::PutIfAbsent | Operation::Put | Operation::Delete)
    }
}

#[derive(Debug, Default)]
struct Script {
    seen: Vec<(Operation, String)>,
    /// After so many more operations nothing works any more.
    crash_after: Option<usize>,
    /// Whether the operation at which it crashes still takes effect (its answer is lost).
    crash_with_effect: bool,
    full: bool,
    read_only: bool,
    gone: bool,
    /// Fails an operation on keys with this prefix, so many times.
    failures: Vec<(Operation, String, usize)>,
}

#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn Storage>,
    script: Mutex<Script>,
}

enum Turn {
    Go,
    /// Do it, but answer with the error.
    GoAndFail(StorageError),
}

impl Faulty {
    pub fn new(inner: Arc<dyn Storage>) -> Arc<Faulty> {
        Arc::new(Faulty { inner, script: Mutex::default() })
    }

    /// Lets `operations` more through, then fails everything. `with_effect`: the first that fails still takes effect.
    pub fn crash_after(&self, operations: usize, with_effect: bool) {
        let mut script = self.script();
        script.crash_after = Some(operations);
        script.crash_with_effect = with_effect;
    }

    /// Fails the next `times` operations of this kind on keys that start with `prefix`.
    pub fn fail(&self, operation: Operation, prefix: &str, times: usize) {
        self.script().failures.push((operation, prefix.to_owned(), times));
    }

    pub fn set_full(&self, full: bool) {
        self.script().full = full;
    }

    pub fn set_read_only(&self, read_only: bool) {
        self.script().read_only = read_only;
    }

    pub fn set_gone(&self, gone: bool) {
        self.script().gone = gone;
    }

    /// Everything works again.
    pub fn repair(&self) {
        let mut script = self.script();
        *script = Script { seen: std::mem::take(&mut script.seen), ..Script::default() };
    }

    /// Every operation asked for so far.
    pub fn seen(&self) -> Vec<(Operation, String)> {
        self.script().seen.clone()
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self, operation: Operation, key: &str) -> Result<Turn, StorageError> {
        let mut script = self.script();
        script.seen.push((operation, key.to_owned()));
        let location = self.inner.location();
        let broken = || StorageError::Io {
            verb: "reach",
            key: key.to_owned(),
            location: location.clone(),
            source: std::io::Error::other("failed as the test said"),
        };
        if script.gone {
            return Err(StorageError::Gone { location });
        }
        match script.crash_after {
            Some(0) if script.crash_with_effect => {
                script.crash_with_effect = false;
                return Ok(Turn::GoAndFail(broken()));
            }
            Some(0) => return Err(broken()),
            Some(left) => script.crash_after = Some(left - 1),
            None => {}
        }
        if operation.writes() && script.read_only {
            return Err(StorageError::Denied { location, verb: "write" });
        }
        if operation.writes() && operation != Operation::Delete && script.full {
            return Err(StorageError::NoSpace { location });
        }
        let due = script
            .failures
            .iter_mut()
            .find(|(o, prefix, left)| *o == operation && key.starts_with(prefix.as_str()) && *left > 0);
        if let Some((_, _, left)) = due {
            *left -= 1;
            return Err(broken());
        }
        Ok(Turn::Go)
    }

    fn carry_out<T>(
        &self,
        operation: Operation,
        key: &str,
        act: impl FnOnce(&dyn Storage) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        match self.turn(operation, key)? {
            Turn::Go => act(&*self.inner),
            Turn::GoAndFail(error) => {
                act(&*self.inner)?;
                Err(error)
            }
        }
    }
}

impl Storage for Faulty {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, StorageError> {
        self.carry_out(Operation::PutIfAbsent, key, |inner| inner.put_if_absent(key, bytes))
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), StorageError> {
        self.carry_out(Operation::Put, key, |inner| inner.put(key, bytes))
    }

    fn get(&self, key: &str) -> Result<Vec<u8>, StorageError> {
        self.carry_out(Operation::Get, key, |inner| inner.get(key))
    }

    fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Vec<u8>, StorageError> {
        self.carry_out(Operation::GetRange, key, |inner| inner.get_range(key, offset, length))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StorageError> {
        self.carry_out(Operation::List, prefix, |inner| inner.list(prefix))
    }

    fn delete(&self, key: &str) -> Result<(), StorageError> {
        self.carry_out(Operation::Delete, key, |inner| inner.delete(key))
    }

    fn location(&self) -> String {
        self.inner.location()
    }

    fn locking(&self) -> Result<Option<Locking>, StorageError> {
        self.inner.locking()
    }

    fn lock_of(&self, key: &str) -> Result<Option<Lock>, StorageError> {
        self.inner.lock_of(key)
    }

    fn lock(&self, key: &str, lock: Lock) -> Result<(), StorageError> {
        self.carry_out(Operation::Put, key, |inner| inner.lock(key, lock))
    }

    fn class_place(&self) -> Option<String> {
        self.inner.class_place()
    }

    fn put_in_class(&self, key: &str, bytes: Vec<u8>, class: &str) -> Result<(), StorageError> {
        self.carry_out(Operation::Put, key, |inner| inner.put_in_class(key, bytes, class))
    }

    fn class_of(&self, key: &str) -> Result<Option<String>, StorageError> {
        self.inner.class_of(key)
    }

    fn parallel_writes(&self) -> usize {
        self.inner.parallel_writes()
    }

    fn parallel_reads(&self) -> usize {
        self.inner.parallel_reads()
    }
}
