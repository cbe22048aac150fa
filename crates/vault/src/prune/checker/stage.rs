//! The stage: a storage that lets one operation through at a time, and a conductor who decides whose.
//!
//! Invariant: nothing that another actor can notice, or that notices another, happens outside of a step; whoever writes where no step
//! is made is refused.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use crate::storage::{Listed, MemoryStorage, Put, Storage, StorageError};

type Answer<T> = std::result::Result<T, StorageError>;

/// What an operation does to its key, or to all keys that begin with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    List,
    Put,
    Delete,
    /// Into a class in which it must be thawed.
    Archive,
    /// The storage's clock goes on.
    Clock,
    /// Something was answered with success; from now on it is owed.
    Promise,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Operation {
    pub(super) verb: Verb,
    pub(super) key: String,
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {}", self.verb, self.key)
    }
}

impl Operation {
    pub(super) fn reads(&self) -> bool {
        matches!(self.verb, Verb::Get | Verb::List)
    }

    pub(super) fn kind(&self) -> &str {
        self.key.split('/').next().unwrap_or_default()
    }

    /// After it something may be lost that was not before, in the judge's eyes.
    pub(super) fn may_harm(&self) -> bool {
        match self.verb {
            Verb::Promise | Verb::Archive => true,
            Verb::Delete => self.kind() != "probe",
            Verb::Put => matches!(self.kind(), "snap" | "prune" | "hold" | "freeze" | "heal"),
            _ => false,
        }
    }

    /// After it something may be right that was lost before it, in the judge's eyes.
    fn may_mend(&self) -> bool {
        self.verb == Verb::Put && matches!(self.kind(), "tombstone" | "prune" | "index" | "heal")
    }

    /// Whether the order of the two matters: to one of them, to what is there afterwards, or to the judge, who sees what lies between.
    pub(super) fn conflicts(&self, other: &Operation) -> bool {
        let touches = |list: &Operation, write: &Operation| match list.verb {
            Verb::List => write.key.starts_with(&list.key),
            _ => write.key == list.key,
        };
        if self.reads() || other.reads() {
            let (read, write) = if self.reads() { (self, other) } else { (other, self) };
            return matches!(write.verb, Verb::Put | Verb::Delete | Verb::Archive) && touches(read, write);
        }
        let shows_clock = |one: &Operation| matches!(one.verb, Verb::Clock | Verb::Put);
        (self.verb == Verb::Clock || other.verb == Verb::Clock) && shows_clock(self) && shows_clock(other)
            || self.key == other.key
            || (self.may_harm() && other.may_mend())
            || (self.may_mend() && other.may_harm())
    }
}

#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Operations that wait, by actor.
    pub(super) pending: Vec<Vec<Operation>>,
    pub(super) granted: Option<usize>,
    pub(super) done: Vec<bool>,
    pub(super) dead: Vec<bool>,
}

#[derive(Debug)]
pub(super) struct Conductor {
    turns: Mutex<Turns>,
    changed: Condvar,
}

impl Conductor {
    pub(super) fn of(actors: usize) -> Conductor {
        let turns = Turns {
            pending: vec![Vec::new(); actors],
            granted: None,
            done: vec![false; actors],
            dead: vec![false; actors],
        };
        Conductor { turns: Mutex::new(turns), changed: Condvar::new() }
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, turns: MutexGuard<'a, Turns>) -> MutexGuard<'a, Turns> {
        self.changed.wait(turns).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until everybody is at an operation or at the end.
    pub(super) fn when_still(&self) -> MutexGuard<'_, Turns> {
        let mut turns = self.turns();
        let is_still = |turns: &Turns| {
            let waits = |actor: usize| turns.done[actor] || !turns.pending[actor].is_empty();
            turns.granted.is_none() && (0..turns.done.len()).all(waits)
        };
        while !is_still(&turns) {
            turns = self.wait(turns);
        }
        turns
    }

    pub(super) fn grant(&self, mut turns: MutexGuard<'_, Turns>, actor: usize) {
        turns.granted = Some(actor);
        self.changed.notify_all();
    }

    pub(super) fn end(&self, actor: usize) {
        self.turns().done[actor] = true;
        self.changed.notify_all();
    }

    /// Stops until it is this actor's turn, and does it. Nobody else goes on before it is done.
    fn ask<T>(&self, actor: usize, operation: Operation, act: impl FnOnce() -> T) -> Answer<T> {
        let mut turns = self.turns();
        turns.pending[actor].push(operation);
        self.changed.notify_all();
        while turns.granted != Some(actor) {
            turns = self.wait(turns);
        }
        turns.pending[actor].remove(0);
        let answer = alive(&turns, actor).map(|()| act());
        turns.granted = None;
        drop(turns);
        // This actor goes on, so nothing is still yet: whoever waits is woken by its next step, or its end.
        answer
    }
}

fn alive(turns: &Turns, actor: usize) -> Answer<()> {
    match turns.dead[actor] {
        false => Ok(()),
        true => Err(StorageError::Gone { location: "killed".to_owned() }),
    }
}

/// What actors write. Everything else stays as it was while they act.
const SHARED: [&str; 12] =
    ["prune", "tombstone", "snap", "pack", "index", "refs", "log", "hold", "freeze", "heal", "verify", "probe"];

/// The storage as one actor has it.
#[derive(Debug, Clone)]
pub(super) struct Stepped {
    pub(super) actor: usize,
    pub(super) conductor: Arc<Conductor>,
    pub(super) inner: Arc<MemoryStorage>,
    pub(super) clock: Arc<Mutex<Timestamp>>,
}

impl Stepped {
    fn step<T>(&self, verb: Verb, key: &str, act: impl FnOnce() -> Answer<T>) -> Answer<T> {
        let operation = Operation { verb, key: key.to_owned() };
        if !SHARED.contains(&operation.kind()) {
            assert!(operation.reads(), "no step is made for this: {operation}");
            alive(&self.conductor.turns(), self.actor)?;
            return act();
        }
        self.conductor.ask(self.actor, operation, act)?
    }

    /// Sleeps until this moment, unless it is later already. Answers what time it is then.
    pub(super) fn sleep_until(&self, moment: Timestamp) -> Answer<Timestamp> {
        let clock = Operation { verb: Verb::Clock, key: String::new() };
        self.conductor.ask(self.actor, clock, || {
            let mut now = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
            *now = moment.max(*now);
            self.inner.set_clock(*now);
            *now
        })
    }

    /// Says what was answered with success.
    pub(super) fn promise(&self, promise: impl FnOnce()) -> Answer<()> {
        let operation = Operation { verb: Verb::Promise, key: format!("promise/{}", self.actor) };
        self.conductor.ask(self.actor, operation, promise)
    }
}

impl Storage for Stepped {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Answer<Put> {
        self.step(Verb::Put, key, || self.inner.put_if_absent(key, bytes))
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Answer<()> {
        self.step(Verb::Put, key, || self.inner.put(key, bytes))
    }

    fn get(&self, key: &str) -> Answer<Vec<u8>> {
        self.step(Verb::Get, key, || self.inner.get(key))
    }

    fn get_range(&self, key: &str, offset: u64, length: u64) -> Answer<Vec<u8>> {
        self.step(Verb::Get, key, || self.inner.get_range(key, offset, length))
    }

    fn list(&self, prefix: &str) -> Answer<Vec<Listed>> {
        self.step(Verb::List, prefix, || self.inner.list(prefix))
    }

    fn delete(&self, key: &str) -> Answer<()> {
        self.step(Verb::Delete, key, || self.inner.delete(key))
    }

    fn location(&self) -> String {
        "memory:".to_owned()
    }

    fn class_place(&self) -> Option<String> {
        self.inner.class_place()
    }

    fn put_in_class(&self, key: &str, bytes: Vec<u8>, class: &str) -> Answer<()> {
        self.step(Verb::Archive, key, || self.inner.put_in_class(key, bytes, class))
    }

    fn class_of(&self, key: &str) -> Answer<Option<String>> {
        self.step(Verb::Get, key, || self.inner.class_of(key))
    }
}
