//! Going through the names on all cores: blocks go out in turn, candidates come back in the same order.
//!
//! Invariant: few blocks are under way at once, so that memory is bounded, and who has enough stops soon.

use std::collections::{HashSet, VecDeque};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use regex::bytes::Regex;

use super::Pattern;
use super::names::{Block, Unpacker};

const THREADS_MAX: usize = 8;
/// Blocks that a thread takes at once; the first ones go one by one, for what is found in them may do.
const BATCH: usize = 8;
/// Batches under way, for each thread.
const AHEAD: usize = 2;

/// A name that may be what is searched for: its number, its folder, itself.
pub(super) type Candidate = (i64, i64, Vec<u8>);

/// A block as it lies in the database, and the number of its first name.
pub(super) type Packed = (i64, Vec<u8>);

/// Why a scan ended early.
pub(super) enum Stopped<E> {
    Damaged,
    Failed(E),
}

/// What is looked for in a block.
pub(super) struct Wanted<'a> {
    pub(super) pattern: &'a Pattern,
    /// In these folders only.
    pub(super) within: Option<&'a HashSet<i64>>,
    /// Among these names only, in order.
    pub(super) among: Option<&'a [i64]>,
    /// The one of the pattern's needles that is rarest in the first block.
    pub(super) needle: OnceLock<Option<&'a Regex>>,
}

/// Gives every block to `wanted`, and its candidates to `take`, in order, until one of them says that it is enough.
pub(super) fn scan<E: Send>(
    next: &mut dyn FnMut() -> Result<Option<Packed>, E>,
    wanted: &Wanted<'_>,
    take: &mut dyn FnMut(Candidate) -> Result<bool, E>,
) -> Result<(), Stopped<E>> {
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get().min(THREADS_MAX));
    std::thread::scope(|scope| {
        let mut lanes: Vec<Lane> = (0..threads)
            .map(|_| {
                let (give, given) = sync_channel::<Vec<Packed>>(AHEAD);
                let (say, said) = sync_channel(AHEAD);
                scope.spawn(move || work(&given, &say, wanted));
                Lane { give, said }
            })
            .collect();
        let mut waiting = VecDeque::new();
        let (mut sent, mut ended) = (0, false);
        loop {
            while !ended && waiting.len() < threads * AHEAD {
                let size = if sent < threads { 1 } else { BATCH };
                let mut batch = Vec::with_capacity(size);
                while batch.len() < size
                    && let Some(packed) = next().map_err(Stopped::Failed)?
                {
                    batch.push(packed);
                }
                ended = batch.len() < size;
                let Some(lane) = lanes.get_mut(sent % threads).filter(|_| !batch.is_empty()) else { break };
                lane.give.send(batch).map_err(|_| Stopped::Damaged)?;
                waiting.push_back(sent % threads);
                sent += 1;
            }
            let Some(lane) = waiting.pop_front().and_then(|lane| lanes.get(lane)) else { return Ok(()) };
            let found = lane.said.recv().ok().flatten().ok_or(Stopped::Damaged)?;
            for candidate in found {
                if !take(candidate).map_err(Stopped::Failed)? {
                    return Ok(());
                }
            }
        }
    })
}

struct Lane {
    give: SyncSender<Vec<Packed>>,
    said: Receiver<Option<Vec<Candidate>>>,
}

/// One thread; ends when nobody gives or listens any more.
fn work(given: &Receiver<Vec<Packed>>, say: &SyncSender<Option<Vec<Candidate>>>, wanted: &Wanted<'_>) {
    let mut unpacker = Unpacker::default();
    while let Ok(batch) = given.recv() {
        let mut found = Some(Vec::new());
        for (first, packed) in &batch {
            match (unpacker.unpack(packed), &mut found) {
                (Some(block), Some(found)) => wanted.look_through(*first, &block, found),
                _ => found = None,
            }
        }
        if say.send(found).is_err() {
            return;
        }
    }
}

impl Wanted<'_> {
    fn may_lie_in(&self, folder: i64) -> bool {
        self.within.is_none_or(|within| within.contains(&folder))
    }

    /// The candidates of one block.
    fn look_through(&self, first: i64, block: &Block<'_>, found: &mut Vec<Candidate>) {
        let count = i64::try_from(block.count()).unwrap_or(i64::MAX);
        let among = self.among.map(|among| {
            let start = among.partition_point(|file| *file < first);
            let end = among.partition_point(|file| *file < first.saturating_add(count));
            among.get(start..end).unwrap_or_default()
        });
        if among.is_some_and(<[i64]>::is_empty) || !block.runs.iter().any(|run| self.may_lie_in(run.folder)) {
            return;
        }
        let mut runs = Runs::of(block);
        let mut keep = |index: u64, name: &[u8]| {
            let file = first.saturating_add(index as i64);
            // The empty name is the top itself.
            if name.is_empty() || among.is_some_and(|among| among.binary_search(&file).is_err()) {
                return;
            }
            let Some(folder) = runs.folder_of(index).filter(|folder| self.may_lie_in(*folder)) else { return };
            if self.pattern.may_be(name) {
                found.push((file, folder, name.to_vec()));
            }
        };
        match *self.needle.get_or_init(|| self.pattern.rarest_needle(block.names)) {
            None => (0..).zip(block.names()).for_each(|(index, name)| keep(index, name)),
            Some(needle) => {
                let (mut at, mut index, mut counted) = (0, 0u64, 0);
                while let Some(hit) = needle.find_at(block.names, at) {
                    let name = block.name_around(hit.start());
                    let between = block.names.get(counted..name.start).unwrap_or_default();
                    index += memchr::memchr_iter(0, between).count() as u64;
                    counted = name.start;
                    keep(index, block.names.get(name.clone()).unwrap_or_default());
                    at = name.end + 1;
                    if at > block.names.len() {
                        break;
                    }
                }
            }
        }
    }
}

/// The folders of names that are asked for in order.
struct Runs<'a> {
    runs: &'a [super::names::Run],
    at: usize,
    /// The index of the first name after the run at `at`.
    end: u64,
}

impl<'a> Runs<'a> {
    fn of(block: &'a Block<'_>) -> Runs<'a> {
        Runs { runs: &block.runs, at: 0, end: block.runs.first().map_or(0, |run| u64::from(run.count)) }
    }

    fn folder_of(&mut self, index: u64) -> Option<i64> {
        while index >= self.end {
            self.at += 1;
            self.end += u64::from(self.runs.get(self.at)?.count);
        }
        self.runs.get(self.at).map(|run| run.folder)
    }
}
