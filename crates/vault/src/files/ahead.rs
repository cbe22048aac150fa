//! Working through frames on all cores, while more of them are on their way from a storage that is far away.
//!
//! Invariant: no more work at once than there are threads for, however many frames are waited for; what was fetched is bounded by the
//! number of those who wait.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use crate::{ChunkId, ChunkSource, Scratch, Sealed};

/// However many reads at once a storage wants: each holds a frame in memory.
const READERS_MAX: usize = 8;

/// What one who works holds: what it reads with, and its own.
type Hand<T> = (Scratch, T);

/// As many as may work at once. Where the storage is far away more threads than these wait for it, each for one frame.
struct Hands<T> {
    free: Mutex<Vec<Hand<T>>>,
    given_back: Condvar,
}

impl<T: Default> Hands<T> {
    fn new(count: usize) -> Hands<T> {
        let free = (0..count).map(|_| Hand::default()).collect();
        Hands { free: Mutex::new(free), given_back: Condvar::new() }
    }

    fn take(&self) -> Hand<T> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match free.pop() {
                Some(hand) => return hand,
                None => free = self.given_back.wait(free).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn give_back(&self, hand: Hand<T>) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(hand);
        self.given_back.notify_one();
    }
}

/// Does all units, in order as far as they are begun, on up to `threads` threads; `first` says which chunk a unit begins with, all of
/// a unit lying in one frame. Who answers false ends its thread's part: the others are to find out by themselves.
pub fn for_each_frame<U: Sync, T: Default + Send>(
    source: &dyn ChunkSource,
    threads: usize,
    units: &[U],
    first: impl Fn(&U) -> Option<ChunkId> + Sync,
    work: impl Fn(&U, &mut Scratch, &mut T) -> bool + Sync,
) {
    let threads = threads.max(1);
    let readers = source.parallel_reads().min(READERS_MAX);
    let (hands, next) = (Hands::new(threads), AtomicUsize::new(0));
    let run = || {
        let mut hand = hands.take();
        let mut sealed = Sealed::default();
        while let Some(unit) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
            if readers > threads {
                // Whoever waits for the storage keeps nobody from working.
                hands.give_back(hand);
                if let Some(id) = first(unit) {
                    source.fetch(&id, &mut sealed);
                }
                hand = hands.take();
                std::mem::swap(&mut hand.0.sealed, &mut sealed);
            }
            if !work(unit, &mut hand.0, &mut hand.1) {
                break;
            }
        }
        hands.give_back(hand);
    };
    std::thread::scope(|scope| (0..readers.max(threads).min(units.len())).for_each(|_| drop(scope.spawn(run))));
}
