//! A running stream: one thread reads the database, and each vault has one for its log and one for full snapshots.
//!
//! Invariant: whatever the capture cannot show to be without a hole ends every chain, and new chains begin with a full
//! snapshot under a new lineage.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use lifeboat_engine::port::{
    Cancel, LogStream, NamedVault, PointRequest, PointTaken, PortError, StreamRequest, StreamStatus,
};
use lifeboat_vault::Position;

use super::board::{Base, Board, Chain, Item, State};
use super::capture::{Capture, CaptureError, Changes, Moment, Seen};
use super::ledger::{self, Ledger, LedgerError, Resumed};
use super::resume::{self, Mark, Record};
use crate::source::{in_full, way};

/// After a failure; doubles up to the longest.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_LONGEST: Duration = Duration::from_secs(5);
/// How often to look whether a database that was gone is there again.
const REOPEN: Duration = Duration::from_secs(1);
/// A clock that is put right by less than this only stands still for a moment.
const CLOCK_BACK_MAX: SignedDuration = SignedDuration::from_secs(2);
/// When stopping, a vault gets so long to take what waits.
const STOP_WITHIN: Duration = Duration::from_secs(10);

pub(super) struct Stream {
    board: Arc<Board>,
    names: Vec<String>,
    epoch: u64,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Stream {
    /// Opens the database, goes on where the vaults' chains and the log allow it, and starts the threads.
    pub(super) fn start(
        path: &std::path::Path,
        vaults: &[NamedVault],
        request: &StreamRequest,
    ) -> Result<Stream, CaptureError> {
        let resumed: Vec<Option<Resumed>> =
            vaults.iter().map(|vault| ledger::find_resumption(vault, request, path)).collect();
        let (capture, transactions, lineage) = open_at_best(path, &resumed)?;
        let board = Arc::new(Board::new(vaults.len()));
        board.update(|state| {
            for (lane, resumed) in state.lanes.iter_mut().zip(resumed) {
                // Behind where the capture stands, something would be missing; ahead of it, pieces overlap, which is harmless.
                lane.chain = resumed
                    .filter(|resumed| {
                        Some(&resumed.chain.lineage) == lineage.as_ref() && resumed.chain.shipped >= transactions
                    })
                    .map(|resumed| resumed.chain);
            }
        });
        let mut threads = Vec::new();
        let reading = Reading {
            board: board.clone(),
            path: path.to_owned(),
            request: request.clone(),
            capture: Some(capture),
            transactions,
            lineage: lineage.unwrap_or_else(new_lineage),
            used: vec![String::new(); vaults.len()],
        };
        threads.push(std::thread::spawn(move || reading.run()));
        for (index, vault) in vaults.iter().enumerate() {
            let shipping = Shipping {
                board: board.clone(),
                index,
                vault: vault.clone(),
                request: request.clone(),
                database: ledger::database_id(path),
            };
            threads.push(std::thread::spawn(move || shipping.run()));
            let storing = Storing {
                board: board.clone(),
                index,
                vault: vault.clone(),
                request: request.clone(),
                database: path.to_owned(),
            };
            threads.push(std::thread::spawn(move || storing.run()));
        }
        let names = vaults.iter().map(|vault| vault.name.clone()).collect();
        Ok(Stream { board, names, epoch: request.epoch, threads: Mutex::new(threads) })
    }

    fn end(&self) {
        self.board.cancel.cancel();
        self.board.update(|state| state.stop = true);
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the stream has ended before its time");
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.end();
    }
}

impl LogStream for Stream {
    fn status(&self) -> StreamStatus {
        let state = self.board.lock();
        let vaults = self.names.iter().zip(&state.lanes).map(|(name, lane)| {
            let mut status = state.lane_status(lane);
            status.position = lane.chain.as_ref().map(|chain| way::position_text(&chain.position(self.epoch)));
            (name.clone(), status)
        });
        StreamStatus {
            commits: None,
            read_to: state.read.map(|(_, from)| from),
            problem: state.problem.clone(),
            vaults: vaults.collect(),
        }
    }

    fn take_point(&self, vault: &str, cancel: &Cancel) -> Result<PointTaken, PortError> {
        let index = self.names.iter().position(|name| name == vault);
        let index =
            index.ok_or_else(|| PortError::new(format!("the stream does not go to a vault named `{vault}`")))?;
        let ticket = self.board.update(|state| {
            state.lane(index).map(|lane| {
                lane.bases_wanted += 1;
                lane.bases_wanted
            })
        });
        loop {
            let answer = self.board.wait(Duration::from_millis(100), |state| {
                let stopped = state.ended;
                let lane = state.lane(index)?;
                if Some(lane.bases_ended) >= ticket {
                    return lane.last_base.clone();
                }
                stopped.then(|| Err("the stream has ended".to_owned()))
            });
            match answer {
                Some(Ok(taken)) => return Ok(taken),
                Some(Err(why)) => return Err(PortError::may_pass(why)),
                None if cancel.is_cancelled() => {
                    return Err(PortError::may_pass("interrupted; the stream goes on taking the point"));
                }
                None => {}
            }
        }
    }

    fn freeze(&self, cancel: &Cancel) -> Result<(), PortError> {
        self.board.update(|state| state.freeze = true);
        loop {
            let done = self.board.wait(Duration::from_millis(100), |state| {
                (state.frozen_at.is_some() && state.lanes.iter().all(|lane| lane.is_frozen)).then_some(())
            });
            if done.is_some() {
                return Ok(());
            }
            if cancel.is_cancelled() {
                let state = self.board.lock();
                let missing: Vec<_> = self
                    .names
                    .iter()
                    .zip(&state.lanes)
                    .filter(|(_, lane)| !lane.is_frozen)
                    .map(|(name, _)| name.as_str())
                    .collect();
                return Err(PortError::may_pass(format!(
                    "the last changes have not reached {}{}",
                    missing.join(" and "),
                    state.problem.as_ref().map(|problem| format!(": {problem}")).unwrap_or_default()
                )));
            }
        }
    }

    fn stop(&self) {
        self.end();
    }
}

impl Chain {
    fn position(&self, epoch: u64) -> Position {
        Position { lineage: self.lineage.clone(), timeline: epoch, counter: self.shipped }
    }
}

/// Opens the capture at the earliest resumable place that the source's log still has.
fn open_at_best(
    path: &std::path::Path,
    resumed: &[Option<Resumed>],
) -> Result<(Capture, u64, Option<String>), CaptureError> {
    let mut candidates: Vec<&Resumed> = resumed.iter().flatten().collect();
    candidates.sort_by_key(|candidate| candidate.chain.shipped);
    for candidate in candidates {
        let (capture, is_there) = Capture::open(path, candidate.chain.place)?;
        if is_there {
            return Ok((capture, candidate.chain.shipped, Some(candidate.chain.lineage.clone())));
        }
    }
    let (capture, _) = Capture::open(path, None)?;
    Ok((capture, 0, None))
}

/// Random, so that no two captures ever take the same.
fn new_lineage() -> String {
    let random = rusqlite::Connection::open_in_memory()
        .and_then(|memory| memory.query_row("select lower(hex(randomblob(10)))", [], |row| row.get(0)));
    random.unwrap_or_else(|error| {
        tracing::warn!(%error, "no randomness from SQLite; the time and the process name the lineage");
        format!("{:x}{:x}", Timestamp::now().as_nanosecond(), std::process::id())
    })
}

/// The thread that reads the database.
struct Reading {
    board: Arc<Board>,
    path: PathBuf,
    request: StreamRequest,
    capture: Option<Capture>,
    transactions: u64,
    lineage: String,
    /// For each lane the lineage of its last chain: a chain that broke off takes another.
    used: Vec<String>,
}

impl Reading {
    fn run(mut self) {
        loop {
            let (stop, freeze) = {
                let state = self.board.lock();
                (state.stop, state.freeze && state.frozen_at.is_none())
            };
            let outcome = self.turn(freeze);
            let failed = outcome.is_err();
            self.board.update(|state| {
                state.problem = outcome.err().map(|error| in_full(&error));
                state.ended = stop;
            });
            if stop {
                return;
            }
            let pause = if failed { REOPEN } else { self.request.flush };
            self.board.wait(pause, |state| {
                let wanted = state.lanes.iter().any(|lane| lane.wants_base());
                (state.stop || (!failed && (wanted || (state.freeze && state.frozen_at.is_none())))).then_some(())
            });
        }
    }

    fn turn(&mut self, freeze: bool) -> Result<(), CaptureError> {
        let outcome = self.turn_of_capture(freeze);
        if let Err(error) = &outcome
            && !matches!(error, CaptureError::Hold(hold) if hold.is_busy())
        {
            self.lose_track(&in_full(error));
        }
        outcome
    }

    fn turn_of_capture(&mut self, freeze: bool) -> Result<(), CaptureError> {
        if self.capture.is_none() {
            self.capture = Some(Capture::open(&self.path, None)?.0);
        }
        let frozen = self.board.lock().frozen_at.is_some();
        if !frozen {
            self.catch_up()?;
            self.look(Capture::look)?;
            self.let_log_start_again()?;
        }
        self.serve_snapshots()?;
        if freeze && self.capture.is_some() {
            self.board.update(|state| state.frozen_at = state.read);
        }
        Ok(())
    }

    fn look(
        &mut self,
        how: impl FnOnce(&mut Capture) -> Result<(Moment, Seen), CaptureError>,
    ) -> Result<(), CaptureError> {
        let Some(capture) = &mut self.capture else { return Ok(()) };
        let (moment, seen) = how(capture)?;
        self.take_in(moment, seen);
        Ok(())
    }

    fn take_in(&mut self, moment: Moment, seen: Seen) {
        // Source time never goes back within a chain; a clock that is set back by more than a little begins others.
        let before = self.board.lock().read.map(|(_, before)| before);
        if before.is_some_and(|before| before.duration_since(moment.from) > CLOCK_BACK_MAX) {
            self.board.update(|state| {
                state.read = None;
                state.lanes.iter_mut().for_each(|lane| lane.durable_to = None);
            });
            return self.lose_track("the clock was set back");
        }
        let from = before.map_or(moment.from, |before| before.max(moment.from));
        match seen {
            Seen::Nothing => {}
            Seen::Changes(changes) => {
                for Changes { payload, transactions, end } in changes {
                    self.transactions += transactions;
                    let item = Item { payload: Arc::new(payload), last: self.transactions, end, from };
                    self.board.update(|state| state.lanes.iter_mut().for_each(|lane| lane.add(item.clone())));
                }
            }
            Seen::Broken(why) => return self.lose_track(&why),
        }
        let transactions = self.transactions;
        self.board.update(|state| state.read = Some((transactions, from)));
    }

    /// Something may be missing: every chain ends here, and new ones begin with full snapshots.
    fn lose_track(&mut self, why: &str) {
        tracing::warn!(path = %self.path.display(), why, "the stream starts again with a full snapshot");
        self.capture = None;
        self.lineage = new_lineage();
        self.board.update(|state| state.lanes.iter_mut().for_each(|lane| lane.break_off(why)));
    }

    fn catch_up(&mut self) -> Result<(), CaptureError> {
        let Some(capture) = &mut self.capture else { return Ok(()) };
        if capture.is_far_behind()?
            && let Some((moment, seen)) = capture.checkpoint_without_writers()?
        {
            self.take_in(moment, seen);
        }
        Ok(())
    }

    fn let_log_start_again(&mut self) -> Result<(), CaptureError> {
        let Some(capture) = &mut self.capture else { return Ok(()) };
        capture.give_up_slow_snapshots();
        if capture.presses() {
            let looked = capture.checkpoint_without_writers()?;
            if let Some((moment, seen)) = looked {
                self.take_in(moment, seen);
            }
        } else if capture.wants_checkpoint() {
            capture.checkpoint()?;
            self.look(Capture::look)?;
        }
        Ok(())
    }

    fn serve_snapshots(&mut self) -> Result<(), CaptureError> {
        for index in 0..self.used.len() {
            let wanted = self.board.lock().lanes.get(index).is_some_and(|lane| lane.wants_base());
            let Some(capture) = self.capture.as_mut().filter(|_| wanted) else { continue };
            let (moment, seen, snapshot) = capture.snapshot()?;
            let (place, bytes) = (capture.place(), snapshot.size_bytes());
            self.take_in(moment, seen);
            if self.capture.is_none() {
                return Ok(());
            }
            let Some(used) = self.used.get_mut(index) else { continue };
            let lineage = if *used == self.lineage { new_lineage() } else { self.lineage.clone() };
            let (epoch, transactions) = (self.request.epoch, self.transactions);
            *used = self
                .board
                .update(|state| {
                    let lane = state.lane(index)?;
                    let chain = lane.chain.get_or_insert(Chain { lineage, shipped: transactions, place, based: false });
                    let position = Position { lineage: chain.lineage.clone(), timeline: epoch, counter: transactions };
                    let lineage = chain.lineage.clone();
                    lane.base = Some(Base {
                        content: Box::new(snapshot),
                        bytes,
                        position: Some(position),
                        from: moment.from,
                        to: moment.to,
                    });
                    Some(lineage)
                })
                .unwrap_or_default();
        }
        Ok(())
    }
}

/// What a log thread does next.
enum Work {
    Open(Chain),
    Append(Item),
    Mark { transactions: u64, at: Timestamp, is_final: bool },
    Quit,
}

/// The thread that ships one vault's log.
struct Shipping {
    board: Arc<Board>,
    index: usize,
    vault: NamedVault,
    request: StreamRequest,
    database: String,
}

impl Shipping {
    fn run(self) {
        let record_path = resume::record_path(&self.request.state, &self.request.dataset, &self.vault.name);
        let mut ledger: Option<Ledger> = None;
        let mut backoff = BACKOFF_FIRST;
        let (mut sent_at, mut changed_at) = (Instant::now(), Instant::now());
        let mut stopping_since = None;
        loop {
            let open = ledger.as_ref().map(|ledger| ledger.lineage().to_owned());
            let pause = self.request.pause_between_marks(changed_at.elapsed());
            let mark_due = sent_at.elapsed() >= pause;
            let patience = pause.saturating_sub(sent_at.elapsed()).max(Duration::from_millis(20));
            let Some(work) = self.board.wait(patience, |state| self.next(state, open.as_deref(), mark_due)) else {
                continue;
            };
            let done = match work {
                Work::Quit => return,
                Work::Open(chain) => Ledger::open(&self.vault, &self.request, &chain).map(|opened| {
                    if let Some(place) = chain.place {
                        let here = Mark { transactions: chain.shipped, place };
                        self.remember(&record_path, &chain.lineage, here, here);
                    }
                    ledger = Some(opened);
                }),
                Work::Append(item) => match &mut ledger {
                    Some(ledger) => self.append(ledger, &item, &record_path).inspect(|()| {
                        sent_at = Instant::now();
                        changed_at = sent_at;
                    }),
                    None => Ok(()),
                },
                Work::Mark { transactions, at, is_final } => match &mut ledger {
                    Some(ledger) => ledger.mark(transactions, at, is_final).map(|()| {
                        sent_at = Instant::now();
                        self.marked(at, is_final);
                    }),
                    None => Ok(()),
                },
            };
            match done {
                Ok(()) => {
                    backoff = BACKOFF_FIRST;
                    self.board.update(|state| state.lane(self.index).map(|lane| lane.log_problem = None));
                }
                Err(error) => {
                    // What the vault really has is found out by opening its chain again.
                    ledger = None;
                    let problem = in_full(&error);
                    tracing::warn!(vault = self.vault.name, problem, "cannot ship the log");
                    let stopping = self.board.update(|state| {
                        if let Some(lane) = state.lane(self.index) {
                            match error.ends_chain() {
                                true => {
                                    lane.break_off(&problem);
                                    lane.durable_to = None;
                                }
                                false => lane.log_problem = Some(problem),
                            }
                        }
                        // Whoever froze the stream has waited for this vault as long as they wanted to.
                        (state.stop, state.stop && state.frozen_at.is_some())
                    });
                    let (stopping, at_once) = stopping;
                    if at_once {
                        return;
                    }
                    if stopping && stopping_since.get_or_insert_with(Instant::now).elapsed() > STOP_WITHIN {
                        return;
                    }
                    self.board.wait(backoff, |_| None::<()>);
                    backoff = (backoff * 2).min(if stopping { BACKOFF_FIRST } else { BACKOFF_LONGEST });
                }
            }
        }
    }

    fn next(&self, state: &mut State, open: Option<&str>, mark_due: bool) -> Option<Work> {
        let (ended, frozen_at, read) = (state.ended, state.frozen_at, state.read);
        let lane = state.lane(self.index)?;
        let Some(chain) = &lane.chain else { return ended.then_some(Work::Quit) };
        if open != Some(chain.lineage.as_str()) {
            return Some(if ended && lane.waiting.is_empty() { Work::Quit } else { Work::Open(chain.clone()) });
        }
        if let Some(item) = lane.waiting.front() {
            return Some(Work::Append(item.clone()));
        }
        if ended {
            return Some(Work::Quit);
        }
        // A mark says that everything up to it can be restored, which without a full snapshot it cannot.
        let (transactions, from) = read.filter(|(transactions, _)| chain.based && *transactions == chain.shipped)?;
        match frozen_at {
            Some((_, at)) if !lane.is_frozen => Some(Work::Mark { transactions, at, is_final: true }),
            None if mark_due => Some(Work::Mark { transactions, at: from, is_final: false }),
            _ => None,
        }
    }

    fn append(&self, ledger: &mut Ledger, item: &Item, record_path: &std::path::Path) -> Result<(), LedgerError> {
        let chain = self.board.lock().lanes.get(self.index).and_then(|lane| lane.chain.clone());
        let Some(chain) = chain.filter(|chain| chain.lineage == ledger.lineage()) else { return Ok(()) };
        // An append whose answer was lost may have happened.
        let shipped = chain.shipped.max(ledger.shipped());
        if item.last > shipped {
            let after = Mark { transactions: item.last, place: item.end };
            let before = chain.place.map_or(after, |place| Mark { transactions: chain.shipped, place });
            self.remember(record_path, &chain.lineage, before, after);
            ledger.append(shipped + 1, item.last, item.from, &item.payload)?;
        }
        self.board.update(|state| {
            let Some(lane) = state.lane(self.index) else { return };
            let Some(chain) = lane.chain.as_mut().filter(|chain| chain.lineage == ledger.lineage()) else { return };
            if lane.waiting.front().is_none_or(|front| front.last != item.last) {
                return;
            }
            (chain.shipped, chain.place) = (chain.shipped.max(item.last), Some(item.end));
            if chain.based {
                lane.durable_to = lane.durable_to.max(Some(item.from));
            }
            lane.waiting.pop_front();
            lane.waiting_bytes = lane.waiting_bytes.saturating_sub(item.payload.len() as u64);
        });
        Ok(())
    }

    fn marked(&self, at: Timestamp, is_final: bool) {
        self.board.update(|state| {
            if let Some(lane) = state.lane(self.index) {
                lane.durable_to = lane.durable_to.max(Some(at));
                lane.is_frozen |= is_final;
            }
        });
    }

    fn remember(&self, path: &std::path::Path, lineage: &str, before: Mark, after: Mark) {
        let record = Record {
            database: self.database.clone(),
            lineage: lineage.to_owned(),
            epoch: self.request.epoch,
            before,
            after,
        };
        if let Err(error) = resume::write(path, &record) {
            tracing::warn!(path = %path.display(), %error, "cannot remember where the stream is; a restart will take a full snapshot");
        }
    }
}

/// The thread that stores one vault's full snapshots.
struct Storing {
    board: Arc<Board>,
    index: usize,
    vault: NamedVault,
    request: StreamRequest,
    database: PathBuf,
}

impl Storing {
    fn run(self) {
        let mut backoff = BACKOFF_FIRST;
        loop {
            let job = self.board.wait(Duration::from_secs(1), |state| {
                let (stop, frozen) = (state.stop, state.frozen_at.is_some());
                let lane = state.lane(self.index)?;
                if stop {
                    return Some(None);
                }
                let base = lane.base.take()?;
                lane.base_under_way = true;
                Some(Some((base, lane.bases_wanted, frozen)))
            });
            let (base, ticket, frozen) = match job {
                None => continue,
                Some(None) => return,
                Some(Some(job)) => job,
            };
            let lineage = base.position.as_ref().map(|position| position.lineage.clone());
            let from = base.from;
            let request = PointRequest {
                dataset: self.request.dataset.clone(),
                epoch: self.request.epoch,
                final_mark: frozen,
                release: None,
            };
            let stored = ledger::store_base(&self.vault, &request, &self.database, base, &(), &self.board.cancel);
            let failed = stored.is_err();
            self.board.update(|state| {
                let Some(lane) = state.lane(self.index) else { return };
                lane.bases_ended = ticket;
                match stored {
                    Ok(taken) => {
                        lane.base_problem = None;
                        lane.point = Some(taken.point.id.to_string());
                        if let Some(chain) =
                            lane.chain.as_mut().filter(|chain| Some(&chain.lineage) == lineage.as_ref())
                        {
                            chain.based = true;
                            lane.durable_to = lane.durable_to.max(Some(from));
                        }
                        lane.last_base = Some(Ok(taken));
                    }
                    Err(error) => {
                        let problem = in_full(&error);
                        tracing::warn!(vault = self.vault.name, problem, "cannot store a full snapshot");
                        lane.base_problem = Some(problem.clone());
                        lane.last_base = Some(Err(problem));
                    }
                }
            });
            if failed {
                self.board.wait(backoff, |state| state.stop.then_some(()));
                backoff = (backoff * 2).min(BACKOFF_LONGEST);
            } else {
                backoff = BACKOFF_FIRST;
            }
            self.board.update(|state| state.lane(self.index).map(|lane| lane.base_under_way = false));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_clock_that_is_set_back_begins_new_chains_and_makes_durability_unknown() {
        let chain = Chain { lineage: "l".into(), shipped: 3, place: None, based: true };
        let board = Arc::new(Board::new(1));
        board.update(|state| state.lane(0).unwrap().chain = Some(chain.clone()));
        let mut reading = Reading {
            board: board.clone(),
            path: "orders.db".into(),
            request: StreamRequest::new("orders", 1, "state"),
            capture: None,
            transactions: 3,
            lineage: "l".into(),
            used: vec!["l".into()],
        };
        let mut at = |text: &str| {
            let from: Timestamp = text.parse().unwrap();
            reading.take_in(Moment { from, to: from }, Seen::Nothing);
            let state = board.lock();
            let lane = &state.lanes[0];
            (state.read.map(|(_, from)| from.to_string()), lane.chain.clone(), state.lane_status(lane).durable_to)
        };
        let noon = Some("2026-11-21T12:00:00Z".to_owned());
        assert_eq!(at("2026-11-21T12:00:00Z").0, noon);
        // Put right a little: time stands still.
        let (read, kept, durable) = at("2026-11-21T11:59:59Z");
        assert_eq!((read, kept, durable.map(|at| at.to_string())), (noon.clone(), Some(chain), noon));
        assert_eq!(at("2026-11-21T11:00:00Z"), (None, None, None));
        assert_eq!(at("2026-11-21T11:00:01Z").0.as_deref(), Some("2026-11-21T11:00:01Z"));
        assert_ne!(reading.lineage, "l");
    }
}
