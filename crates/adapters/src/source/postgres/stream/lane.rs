//! One vault's receiver: a slot and a connection of its own, so that a vault that is away costs the others nothing.
//!
//! Invariant: the server is told that the log is safe only as far as this vault has it, so it keeps the rest.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_engine::port::{NamedVault, StreamRequest};

use super::super::chain::{Chain, ChainError, Lineage};
use super::super::left::{Left, LeftError, check_at_rest, timeline_of};
use super::super::piece::Piece;
use super::board::Board;
use crate::postgres::control::{Control, ControlError};
use crate::postgres::door::{Door, DoorError};
use crate::postgres::error::SessionError;
use crate::postgres::lsn::{Lsn, Segments};
use crate::postgres::programs::{Programs, ProgramsError};
use crate::postgres::replication::{WalMessage, WalStream};
use crate::postgres::session::{Purpose, Session};
use crate::postgres::slot::{self, SlotError};
use crate::source::in_full;

/// A piece is shipped when it has grown to this, however young it is.
const PIECE_BYTES: usize = 4 << 20;
/// After a failure; doubles up to the longest.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_LONGEST: Duration = Duration::from_secs(5);
/// Two segments of the usual length: less than that is soon written.
const SAFE_BYTES_MIN: i64 = 32 << 20;
/// What a server says when the log that is asked for is gone.
const UNDEFINED_FILE: &str = "58P01";

#[derive(Debug, thiserror::Error)]
pub(super) enum LaneError {
    #[error(transparent)]
    Door(#[from] DoorError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error(transparent)]
    Programs(#[from] ProgramsError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("the server has gone on to timeline {0}; a chain of its own begins")]
    Timeline(u32),
    #[error(transparent)]
    Left(#[from] LeftError),
    #[error("a server has written in {path} since it was looked at: what it has left is not known")]
    Moved { path: PathBuf },
    #[error(
        "commits wait for a vault that applies them (synchronous_commit = remote_apply), which no vault does: set it to on, or take this name out of synchronous_standby_names"
    )]
    RemoteApply,
}

pub(super) struct Shipping {
    pub(super) board: Arc<Board>,
    pub(super) index: usize,
    pub(super) vault: NamedVault,
    pub(super) request: StreamRequest,
    pub(super) door: Arc<dyn Fn() -> Result<Door, DoorError> + Send + Sync>,
    /// The data directory, if it is known.
    pub(super) data: Option<PathBuf>,
}

/// For whom the server lets commits wait, as it is set.
pub(in super::super) async fn awaited_names(session: &mut Session) -> Result<String, SessionError> {
    Ok(session.query_one("SHOW synchronous_standby_names").await?.get(0).unwrap_or_default().to_owned())
}

fn is_among(names: &str, name: &str) -> bool {
    names.split([',', '(', ')', ' ', '"']).any(|word| word == name || word == "*")
}

/// Whether the server lets commits wait for the standby of this name.
async fn is_awaited(session: &mut Session, name: &str) -> Result<bool, LaneError> {
    let names = awaited_names(session).await?;
    let awaited = is_among(&names, name);
    if awaited && session.query_one("SHOW synchronous_commit").await?.get(0) == Some("remote_apply") {
        return Err(LaneError::RemoteApply);
    }
    Ok(awaited)
}

/// How one connection ended.
enum Ended {
    Stopped,
    /// The chain cannot be gone on with: the next connection begins another.
    Broken,
}

/// The slot of a vault's stream: what a server may call one, and no other stream's.
pub(in super::super) fn slot_name(dataset: &str, vault: &str) -> String {
    let plain: String = format!("{dataset}_{vault}")
        .chars()
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '_' })
        .take(40)
        .collect();
    let hash = blake3::hash(format!("{dataset}\0{vault}").as_bytes()).to_hex();
    format!("lifeboat_{plain}_{}", hash.get(..8).unwrap_or_default())
}

impl Shipping {
    pub(super) fn run(self) {
        let Ok(runtime) = super::super::runtime() else { return };
        let (mut backoff, mut broken, mut freezes) = (BACKOFF_FIRST, false, false);
        loop {
            let before = Instant::now();
            match runtime.block_on(self.connect(broken)) {
                Ok(Ended::Stopped) => return,
                Ok(Ended::Broken) => broken = true,
                Err(error) => {
                    let ends = matches!(&error, LaneError::Chain(chain) if chain.ends_chain());
                    broken = ends;
                    let problem = in_full(&error);
                    tracing::warn!(vault = self.vault.name, problem, "cannot ship the log");
                    let over = self.board.update(|state| {
                        let (stop, freeze) = (state.stop, state.freeze);
                        if let Some(lane) = state.lane(self.index) {
                            lane.log_problem = Some(problem);
                            if ends {
                                (lane.chain, lane.status.durable_to) = (None, None);
                            }
                        }
                        (stop, freeze)
                    });
                    if over.0 {
                        return;
                    }
                    if over.1 && matches!(error, LaneError::Session(_) | LaneError::Slot(_) | LaneError::Door(_)) {
                        self.freeze_without_server(&runtime);
                    }
                }
            }
            backoff =
                if before.elapsed() > BACKOFF_LONGEST { BACKOFF_FIRST } else { (backoff * 2).min(BACKOFF_LONGEST) };
            // Where the end is waited for, it is looked for at once.
            let woken =
                self.board.wait(backoff, |state| (state.stop || state.freeze && !freezes).then_some(state.stop));
            match woken {
                Some(true) => return,
                Some(false) => freezes = true,
                None => {}
            }
        }
    }

    /// Connects and ships until something happens.
    async fn connect(&self, broken: bool) -> Result<Ended, LaneError> {
        let door = (self.door)()?;
        let slot_name = slot_name(&self.request.dataset, &self.vault.name);
        let mut session = Session::open(&door, Purpose::Queries, "lifeboat").await?;
        let mut slot = slot::ensure(&mut session, &slot_name, true).await?;
        let mut broken = broken;
        if slot.wal_status.as_deref() == Some("lost") {
            // What it kept is gone; a slot that lost it never keeps anything again.
            tracing::warn!(
                slot = slot_name,
                "the server has thrown log away that was not shipped: there is a hole, and a new chain begins"
            );
            slot::drop(&mut session, &slot_name).await?;
            slot = slot::ensure(&mut session, &slot_name, true).await?;
            broken = true;
        }
        match slot.safe_wal_size {
            // Slots stand for a promise that the server's disk has to keep.
            None => tracing::warn!(
                slot = slot_name,
                "max_slot_wal_keep_size is not set: while this vault is away the server keeps all of its log, until its disk is full"
            ),
            Some(left) if left < SAFE_BYTES_MIN => tracing::warn!(
                slot = slot_name,
                left,
                "the server is about to throw log away that this vault does not have: max_slot_wal_keep_size"
            ),
            Some(_) => {}
        }
        let kept_from = slot.restart_lsn;
        session.close().await;
        let mut replication = Session::open(&door, Purpose::Replication, &slot_name).await?;
        let pid = replication.pid();
        self.board.update(|state| state.lane(self.index).map(|lane| lane.pid = pid));
        let system = replication.identify_system().await?;
        let segments = Segments::new(replication.wal_segment_bytes().await?);
        let segments = segments.ok_or_else(|| self.protocol("its segments have no such length"))?;
        let awaited = is_awaited(&mut replication, &slot_name).await?;
        let history = match system.timeline {
            1 => Vec::new(),
            timeline => replication.timeline_history(timeline).await?,
        };
        let going_on = match broken {
            true => None,
            false => Chain::newest(&self.vault, &self.request, system.system_id, system.timeline)?,
        };
        let begins = Lineage {
            system: system.system_id,
            timeline: system.timeline,
            start: segments.start(segments.number_of(system.flushed)),
        };
        // What is shipped lies behind what the server is at, or it is another server's.
        let chain = match going_on.filter(|chain| chain.shipped <= system.flushed) {
            Some(chain)
                if kept_from.is_none_or(|kept| segments.number_of(kept) <= segments.number_of(chain.shipped)) =>
            {
                chain
            }
            _ => Chain::open(&self.vault, &self.request, begins)?,
        };
        if chain.is_final {
            // Nothing may follow: wait for who asks for another epoch.
            return Ok(Ended::Broken);
        }
        self.publish(&chain);
        let from = chain.shipped;
        let stream = replication.start_replication(Some(&slot_name), from, system.timeline).await?;
        let which = Which { system: system.system_id, timeline: system.timeline, segments, history };
        let now = Instant::now();
        let receiving = Receiving {
            shipping: self,
            which,
            chain,
            stream,
            name: slot_name,
            awaited,
            buffer: Vec::new(),
            sent_at: now,
            moved_at: now,
        };
        match receiving.run().await {
            Err(LaneError::Session(error)) if error.sqlstate() == Some(UNDEFINED_FILE) => {
                tracing::warn!(vault = self.vault.name, %error, "the server does not have the log from where the vault ends: a new chain begins");
                Ok(Ended::Broken)
            }
            ended => ended,
        }
    }

    fn protocol(&self, what: &str) -> SessionError {
        SessionError::Protocol { at: "the server".to_owned(), what: what.to_owned() }
    }

    fn publish(&self, chain: &Chain) {
        self.board.update(|state| {
            let Some(lane) = state.lane(self.index) else { return };
            lane.chain = Some((chain.lineage, chain.shipped));
            lane.based |= chain.based;
            if !chain.based && !lane.based {
                lane.status.durable_to = None;
            } else {
                lane.status.durable_to = chain.as_of;
            }
            lane.status.frozen = chain.is_final;
            lane.log_problem = None;
        });
    }

    /// The writer was stopped or has died, its server with it: the vault has everything if it has the record of the shutdown, or all that lies
    /// in the server's own log.
    fn freeze_without_server(&self, runtime: &tokio::runtime::Runtime) {
        let Some(data) = &self.data else { return };
        let finish = || -> Result<(), LaneError> {
            let programs = runtime.block_on(Programs::of_data_directory(data, &["pg_controldata", "pg_waldump"]))?;
            let look = || runtime.block_on(Control::read(&programs, data));
            let control = look()?;
            let chain = Chain::newest(&self.vault, &self.request, control.system_id, timeline_of(&control))?;
            // Without a base backup nothing of it can be restored, whatever was shipped.
            let Some(mut chain) = chain.filter(|chain| chain.based) else { return Ok(()) };
            if !control.is_clean() || chain.shipped <= control.checkpoint {
                let left = Left::look(&programs, data, &control, chain.shipped)?;
                if !self.ship_left(&mut chain, &left, &control)? {
                    return Ok(());
                }
                check_at_rest(data)?;
                if look()? != control {
                    return Err(LaneError::Moved { path: data.clone() });
                }
            }
            chain.mark(Timestamp::now(), true)?;
            self.publish(&chain);
            Ok(())
        };
        if let Err(error) = finish() {
            self.board.update(|state| state.lane(self.index).map(|lane| lane.log_problem = Some(in_full(&error))));
        }
    }

    /// Gives the vault what a server that is gone had written and not sent. False: it was told to stop before.
    fn ship_left(&self, chain: &mut Chain, left: &Left, control: &Control) -> Result<bool, LaneError> {
        if let Some(bytes) = left.end().checked_since(chain.shipped).filter(|bytes| *bytes > 0) {
            tracing::info!(vault = self.vault.name, bytes, "ships what the server has left in its log");
        }
        loop {
            let wal = left.read(chain.shipped, PIECE_BYTES)?;
            if wal.is_empty() {
                return Ok(true);
            }
            if self.board.lock().stop {
                return Ok(false);
            }
            let piece = Piece {
                system: control.system_id,
                timeline: timeline_of(control),
                segments: control.segments,
                start: chain.shipped,
                history: Vec::new(),
                wal,
            };
            // Of when its last commit is, only the mark tells that follows.
            chain.append(&piece, None)?;
            self.publish(chain);
        }
    }
}

struct Which {
    system: u64,
    timeline: u32,
    segments: Segments,
    history: Vec<u8>,
}

/// A connection at work.
struct Receiving<'a> {
    shipping: &'a Shipping,
    which: Which,
    chain: Chain,
    stream: WalStream,
    /// What we are called at the server.
    name: String,
    /// Commits wait for our word.
    awaited: bool,
    /// What was received and is not in the vault; follows what the chain has.
    buffer: Vec<u8>,
    sent_at: Instant,
    moved_at: Instant,
}

impl Receiving<'_> {
    async fn run(mut self) -> Result<Ended, LaneError> {
        let mut tick = tokio::time::interval(self.shipping.request.flush);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // Before it has our word of how far we are, nobody counts us.
        self.report().await?;
        loop {
            tokio::select! {
                biased;
                message = self.stream.next() => match message? {
                    WalMessage::Data { bytes, .. } => {
                        self.buffer.extend_from_slice(&bytes);
                        if self.buffer.len() >= PIECE_BYTES {
                            self.ship().await?;
                        }
                    }
                    WalMessage::KeepAlive { reply, .. } if reply => self.report().await?,
                    WalMessage::KeepAlive { .. } => {}
                    WalMessage::EndOfTimeline => {
                        self.ship().await?;
                        let next = self.stream.end().await?.1;
                        return Err(LaneError::Timeline(next.map_or(0, |(timeline, _)| timeline)));
                    }
                },
                // All that is there has been read: those who wait are many, and their commits went into one piece.
                () = std::future::ready(()), if self.awaited && !self.buffer.is_empty() => self.ship().await?,
                _ = tick.tick() => {
                    if let Some(names) = self.shipping.board.samples.awaited() {
                        self.awaited = is_among(&names, &self.name);
                    }
                    self.ship().await?;
                    if self.finish_or_mark()? {
                        return Ok(Ended::Stopped);
                    }
                }
            }
        }
    }

    async fn report(&mut self) -> Result<(), LaneError> {
        let at = self.chain.shipped;
        // Nothing is applied here: who waits for that waits for a standby.
        Ok(self.stream.report(at, at, Lsn(0), false).await?)
    }

    /// Gives the vault what has come, and tells the server.
    async fn ship(&mut self) -> Result<(), LaneError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        while !self.buffer.is_empty() {
            let rest = self.buffer.split_off(self.buffer.len().min(PIECE_BYTES));
            let wal = std::mem::replace(&mut self.buffer, rest);
            let history = if self.chain.is_empty() { self.which.history.clone() } else { Vec::new() };
            let Which { system, timeline, segments, .. } = self.which;
            let piece = Piece { system, timeline, segments, start: self.chain.shipped, history, wal };
            let moment = self.shipping.board.samples.moment_of(piece.end());
            self.chain.append(&piece, moment)?;
        }
        (self.sent_at, self.moved_at) = (Instant::now(), Instant::now());
        self.tell();
        self.report().await
    }

    fn tell(&mut self) {
        let chain = &mut self.chain;
        self.shipping.board.update(|state| {
            let Some(lane) = state.lane(self.shipping.index) else { return };
            // A base backup may have been stored meanwhile.
            chain.based |= lane.based && lane.chain.is_some_and(|(lineage, _)| lineage == chain.lineage);
            lane.chain = Some((chain.lineage, chain.shipped));
            if chain.based {
                lane.status.durable_to = chain.as_of;
            }
            lane.status.frozen = chain.is_final;
            // Base backups under way ask for moments behind what is shipped: only what is behind them all goes.
            if let Some(least) = state.lanes.iter().map(|lane| lane.chain.map_or(Lsn(0), |(_, shipped)| shipped)).min()
            {
                let kept = state.lanes.iter().filter_map(|lane| lane.base_from).min().unwrap_or(least);
                self.shipping.board.samples.forget_before(least.min(kept));
            }
        });
    }

    /// Says that nothing happened, if it did not, or that nothing will. True: it is at an end.
    fn finish_or_mark(&mut self) -> Result<bool, LaneError> {
        let (stop, frozen_at) = {
            let state = self.shipping.board.lock();
            (state.stop, state.frozen_at)
        };
        self.tell();
        if stop {
            return Ok(true);
        }
        // A mark says that everything up to it can be restored, which without a base backup it cannot.
        if !self.chain.based {
            return Ok(false);
        }
        if let Some(frozen_at) = frozen_at {
            if self.chain.shipped < frozen_at.flushed {
                return Ok(false);
            }
            self.chain.mark(frozen_at.at, true)?;
            self.tell();
            return Ok(true);
        }
        let pause = self.shipping.request.pause_between_marks(self.moved_at.elapsed());
        let newest = self.shipping.board.samples.newest().filter(|sample| sample.flushed <= self.chain.shipped);
        if let Some(newest) = newest.filter(|_| self.sent_at.elapsed() >= pause) {
            self.chain.mark(newest.at, false)?;
            self.sent_at = Instant::now();
            self.tell();
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_have_names_that_a_server_takes_and_no_two_streams_share() {
        let names = [("orders", "main"), ("orders_main", ""), ("Órders/1", "far-away"), (&"x".repeat(90), "main")]
            .map(|(dataset, vault)| slot_name(dataset, vault));
        for name in &names {
            let plain = name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
            assert!(plain && name.len() <= 63, "{name}");
        }
        assert_eq!(names.iter().collect::<std::collections::HashSet<_>>().len(), 4);
        assert!(names[0].starts_with("lifeboat_orders_main_"), "{}", names[0]);
    }
}
