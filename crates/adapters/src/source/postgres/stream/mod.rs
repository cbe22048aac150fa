//! A running stream: a clock, and for each vault a receiver and a thread that takes base backups.
//!
//! Invariant: a base backup is a recovery point only when its chain in the same vault holds the log up to where the backup ended.

mod board;
pub(super) mod lane;
mod quorum;
pub(super) mod samples;

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lifeboat_engine::port::{
    Cancel, LogStream, NamedVault, PointRequest, PointTaken, PortError, StreamRequest, StreamStatus,
};
use lifeboat_vault::{Position, SnapshotDraft};

use self::board::Board;
use self::lane::Shipping;
use self::quorum::Quorum;
use self::samples::Sample;
use super::base::{self, Log, Wish};
use super::facts::Facts;
use super::{Clock, PointError, PostgresSource};
use crate::postgres::lsn::Lsn;
use crate::postgres::programs::Programs;
use crate::postgres::session::{Purpose, Session};
use crate::source::way::position_text;
use crate::source::{in_full, metadata_of};

const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_LONGEST: Duration = Duration::from_secs(60);

pub(super) struct Stream {
    board: Arc<Board>,
    source: PostgresSource,
    names: Vec<String>,
    epoch: u64,
    clock: Mutex<Option<Clock>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Stream {
    pub(super) fn start(source: &PostgresSource, vaults: &[NamedVault], request: &StreamRequest) -> Stream {
        let door = {
            let source = source.clone();
            Arc::new(move || source.door())
        };
        let clock = Clock::start(door.clone());
        let board = Arc::new(Board::new(vaults.len(), clock.samples.clone()));
        let mut threads = Vec::new();
        for (index, vault) in vaults.iter().enumerate() {
            let shipping = Shipping {
                board: board.clone(),
                index,
                vault: vault.clone(),
                request: request.clone(),
                door: door.clone(),
                data: Some(source.path.clone()).filter(|path| !path.as_os_str().is_empty()),
            };
            threads.push(std::thread::spawn(move || shipping.run()));
            let storing = Storing {
                board: board.clone(),
                index,
                vault: vault.clone(),
                request: request.clone(),
                source: source.clone(),
            };
            threads.push(std::thread::spawn(move || storing.run()));
        }
        let names: Vec<String> = vaults.iter().map(|vault| vault.name.clone()).collect();
        let quorum = Quorum {
            board: board.clone(),
            door,
            dataset: request.dataset.clone(),
            awaited: request.awaited.clone(),
            vaults: names.clone(),
            note: request.state.join("commits-wait-for"),
        };
        threads.push(std::thread::spawn(move || quorum.run()));
        Stream {
            board,
            source: source.clone(),
            names,
            epoch: request.epoch,
            clock: Mutex::new(Some(clock)),
            threads: Mutex::new(threads),
        }
    }

    fn end(&self) {
        self.board.cancel.cancel();
        self.board.update(|state| state.stop = true);
        drop(self.clock.lock().unwrap_or_else(PoisonError::into_inner).take());
        for thread in std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner)) {
            if thread.join().is_err() {
                tracing::error!("a thread of the stream has ended before its time");
            }
        }
    }

    /// How far the server's log is, now that nobody writes; none while the server is away.
    fn sample(&self) -> Option<Sample> {
        let runtime = super::runtime().ok()?;
        runtime.block_on(async {
            let mut session = Session::open(&self.source.door().ok()?, Purpose::Queries, "lifeboat").await.ok()?;
            let sample = Sample::take(&mut session).await.ok();
            session.close().await;
            sample
        })
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
        let newest = self.board.samples.newest();
        let vaults = self.names.iter().zip(&state.lanes).map(|(name, lane)| {
            let mut status = lane.status.clone();
            status.position = lane.chain.map(|(lineage, shipped)| {
                position_text(&Position { lineage: lineage.to_string(), timeline: self.epoch, counter: shipped.0 })
            });
            let shipped = lane.chain.map_or(Lsn(0), |(_, shipped)| shipped);
            status.waiting_bytes = newest.and_then(|newest| newest.flushed.checked_since(shipped)).unwrap_or(0);
            status.problem = lane.log_problem.clone().or_else(|| lane.base_problem.clone());
            (name.clone(), status)
        });
        let (commits, problem) = (state.commits.clone(), state.stands_still.clone());
        StreamStatus { read_to: newest.map(|sample| sample.at), problem, commits, vaults: vaults.collect() }
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
                let stopped = state.stop;
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
        // What was committed before is in the log by now.
        let sample = self.sample();
        self.board.update(|state| (state.freeze, state.frozen_at) = (true, sample));
        loop {
            let done = self.board.wait(Duration::from_millis(100), |state| {
                state.lanes.iter().all(|lane| lane.status.frozen).then_some(())
            });
            if done.is_some() {
                return Ok(());
            }
            if cancel.is_cancelled() {
                let state = self.board.lock();
                let missing = self.names.iter().zip(&state.lanes).filter(|(_, lane)| !lane.status.frozen);
                let missing: Vec<String> = missing
                    .map(|(name, lane)| match &lane.log_problem {
                        Some(problem) => format!("{name} ({problem})"),
                        None => name.clone(),
                    })
                    .collect();
                return Err(PortError::may_pass(format!(
                    "the last changes have not reached {}",
                    missing.join(" and ")
                )));
            }
        }
    }

    fn stop(&self) {
        self.end();
    }
}

/// The thread that takes one vault's base backups.
struct Storing {
    board: Arc<Board>,
    index: usize,
    vault: NamedVault,
    request: StreamRequest,
    source: PostgresSource,
}

impl Storing {
    fn run(self) {
        let mut backoff = BACKOFF_FIRST;
        loop {
            let job = self.board.wait(Duration::from_secs(1), |state| {
                let stop = state.stop || state.freeze;
                let lane = state.lane(self.index)?;
                if stop {
                    return Some(None);
                }
                lane.chain?;
                let wanted = lane.bases_wanted > lane.bases_ended || !lane.based;
                wanted.then_some(Some(lane.bases_wanted))
            });
            let ticket = match job {
                None => continue,
                Some(None) => return,
                Some(Some(ticket)) => ticket,
            };
            self.board.update(|state| {
                if let Some(lane) = state.lane(self.index) {
                    lane.base_from = lane.chain.map(|(_, shipped)| shipped);
                }
            });
            let stored = self.store();
            let failed = stored.is_err();
            self.board.update(|state| {
                let Some(lane) = state.lane(self.index) else { return };
                (lane.bases_ended, lane.base_from) = (ticket, None);
                match stored {
                    Ok(taken) => {
                        lane.base_problem = None;
                        lane.status.point = Some(taken.point.id.clone());
                        let of = taken.point.position.as_ref().map(|position| position.lineage.clone());
                        lane.based |= lane.chain.map(|(lineage, _)| lineage.to_string()) == of;
                        lane.last_base = Some(Ok(taken));
                    }
                    Err(error) => {
                        let problem = in_full(&error);
                        tracing::warn!(vault = self.vault.name, problem, "cannot take a base backup");
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
        }
    }

    fn store(&self) -> Result<PointTaken, PointError> {
        let began = Instant::now();
        let runtime = super::runtime().map_err(PointError::Threads)?;
        let cluster = runtime.block_on(super::look(self.source.door()?))?;
        let programs = runtime.block_on(Programs::of_server(cluster.version, &["pg_basebackup"]))?;
        let session = self.vault.vault.begin(&self.request.dataset, base::options())?;
        let pages = PostgresSource::pages(&self.vault, &self.request.dataset)?;
        let wish = Wish {
            door: &cluster.door,
            programs: &programs,
            log: Log::Shipped,
            has_tablespaces: cluster.has_tablespaces,
            spool: &self.source.state,
            pages: &pages,
            top: metadata_of(&self.source.path),
            source: &self.source.path,
        };
        let taken = base::take(&wish, &session, &(), &self.board.cancel, |timeline, start, stop| Facts {
            timeline,
            start: start.to_string(),
            stop: stop.to_string(),
            is_whole: false,
            ..cluster.facts.clone()
        })?;
        let facts = &taken.facts;
        let (start, stop) = (facts.start()?, facts.stop()?);
        let lineage = self.await_log(facts.system()?, facts.timeline, (start, stop))?;
        let source_time = self.board.samples.moment_of(stop).ok_or(PointError::NoMoment)?;
        let segments = facts.segments()?;
        // The server reads whole segments: what lies before the start in its own is needed as well.
        let position =
            Position { lineage, timeline: self.request.epoch, counter: segments.start(segments.number_of(start)).0 };
        let request = PointRequest {
            dataset: self.request.dataset.clone(),
            epoch: self.request.epoch,
            ..PointRequest::default()
        };
        let point = session.commit(SnapshotDraft {
            root: taken.summary.root.as_bytes().to_vec(),
            references: taken.summary.references,
            position: Some(position),
            source_time,
            files: taken.summary.files,
            bytes: taken.summary.bytes,
            notes: Vec::new(),
            schema: None,
            release: Some(format!("PostgreSQL {}", facts.server_version)),
            final_mark: false,
            epoch: request.epoch,
        })?;
        Ok(PointTaken {
            vault: self.vault.name.clone(),
            bytes_new: point.bytes_new,
            bytes_stored: point.bytes_stored,
            point,
            files: taken.summary.files,
            bytes: taken.summary.bytes,
            seconds: began.elapsed().as_secs_f64(),
            skipped: Vec::new(),
            notes: cluster.notices,
        })
    }

    /// Waits until the vault's chain holds the log that the backup needs; which chain that is.
    fn await_log(&self, system: u64, timeline: u32, (start, stop): (Lsn, Lsn)) -> Result<String, PointError> {
        loop {
            let answer = self.board.wait(Duration::from_secs(1), |state| {
                if state.stop {
                    return Some(Err(PointError::Ended));
                }
                let (lineage, shipped) = state.lane(self.index)?.chain?;
                if (lineage.system, lineage.timeline) != (system, timeline) || lineage.start > start {
                    return Some(Err(PointError::OtherChain));
                }
                (shipped >= stop).then(|| Ok(lineage.to_string()))
            });
            if let Some(answer) = answer {
                return answer;
            }
        }
    }
}
