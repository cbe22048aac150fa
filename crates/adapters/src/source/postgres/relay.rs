//! A standby's stream from the writer's own server: what comes from there goes on to the standby's server, and how far that is goes back.
//!
//! ```text
//!   the writer's server ─▶ Relay::run ─▶ sender ─▶ the standby's server
//!                       ◀─ progress   ◀─
//! ```
//!
//! Invariants: only the log of the chain that is followed passes, beginning where the standby asks; the writer's server is told only what
//! the standby's server said of itself. No slot is held there: what the writer's server has thrown away lies in the vault.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_core::desired::Streams;
use lifeboat_engine::port::StreamFrom;
use tokio::sync::Notify;

use super::spool::Which;
use super::stream::lane::slot_name;
use super::{Clock, PostgresSource, Way};
use crate::postgres::door::DoorError;
use crate::postgres::error::SessionError;
use crate::postgres::lsn::Lsn;
use crate::postgres::replication::WalMessage;
use crate::postgres::sender::Progress;
use crate::postgres::session::{Purpose, Session};
use crate::source::in_full;

/// After a failure; doubles up to the longest.
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
const BACKOFF_LONGEST: Duration = Duration::from_secs(5);
/// How often the standby's server hears that its primary is there, and it is looked whether the vault is further.
const TICK: Duration = Duration::from_millis(500);
/// A server from which nothing comes for so long, while the vault has more, is left for the vault.
const SILENT_FOR: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub(super) enum RelayError {
    #[error(transparent)]
    Door(#[from] DoorError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("another system answers there: {found} instead of {wanted}")]
    OtherSystem { found: u64, wanted: u64 },
    #[error("the server there is on timeline {found}, and timeline {wanted} is followed")]
    OtherTimeline { found: u32, wanted: u32 },
    #[error("the server there has come to {at} only, and the standby is at {wanted}")]
    Behind { at: Lsn, wanted: Lsn },
    #[error("the server there sends nothing, and the vault has more")]
    Silent,
    #[error("the server there has ended its timeline")]
    TimelineEnded,
    #[error("threads cannot be made")]
    Threads(#[source] std::io::Error),
}

/// How a stretch of streaming ended, if it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The standby's server wants no more.
    Declined,
    /// It is not to be streamed from there any more.
    Over,
}

/// The writer's server as one standby reaches it. Dropped, it is let go of.
pub(super) struct Relay {
    from: StreamFrom,
    way: Way,
    /// What the standby is called at the writer's server.
    name: String,
    /// Reads what time it is there, and how far its log is, while it streams: of no other server that the way may have led to.
    clock: Mutex<Option<Clock>>,
    state: Mutex<State>,
    wake: Notify,
    closing: Notify,
}

#[derive(Default)]
struct State {
    over: bool,
    progress: Option<Progress>,
    streams: bool,
    /// Where the last that came from there ends.
    end: Lsn,
    problem: Option<String>,
    retry: Option<(Instant, Duration)>,
}

impl Relay {
    pub(super) fn new(dataset: &str, from: &StreamFrom) -> Relay {
        let source = PostgresSource::new("", Some(from.service.clone()), "");
        let way: Way = Arc::new(move || source.door());
        Relay {
            from: from.clone(),
            name: standby_name(dataset, &from.follower),
            clock: Mutex::default(),
            way,
            state: Mutex::default(),
            wake: Notify::new(),
            closing: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No byte passes, and nothing is acknowledged, from here on.
    pub(super) fn end(&self) {
        self.lock().over = true;
        self.wake.notify_one();
        self.closing.notify_one();
        self.stop_clock();
    }

    fn stop_clock(&self) {
        if let Some(clock) = self.clock.lock().unwrap_or_else(PoisonError::into_inner).take() {
            clock.let_go();
        }
    }

    async fn closed(&self) {
        while !self.lock().over {
            self.closing.notified().await;
        }
    }

    /// Takes in what the standby's server says of itself.
    pub(super) fn heard(&self, progress: Progress) {
        self.lock().progress = Some(progress);
        self.wake.notify_one();
    }

    /// Where the last that came from there ends.
    pub(super) fn received(&self) -> Lsn {
        self.lock().end
    }

    /// Everything committed at the writer's server up to then lies before a position; none where it does not stream.
    pub(super) fn moment_of(&self, position: Lsn) -> Option<Timestamp> {
        if !self.lock().streams {
            return None;
        }
        let clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        let samples = &clock.as_ref()?.samples;
        let moment = samples.moment_of(position);
        samples.forget_before(position);
        moment
    }

    pub(super) fn status(&self, applied: Lsn) -> Streams {
        let (streams, problem) = {
            let state = self.lock();
            (state.streams, state.problem.clone())
        };
        let clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = clock.as_ref().filter(|_| streams).and_then(|clock| clock.samples.newest());
        let behind_bytes = newest.map(|newest| newest.flushed.0.saturating_sub(applied.0));
        let problem = problem.or_else(|| (!streams).then(|| "it connects".to_owned()));
        Streams { behind_bytes, problem: problem.filter(|_| !streams) }
    }

    pub(super) fn is_streaming(&self) -> bool {
        self.lock().streams
    }

    /// Whether it is time to try.
    pub(super) fn is_due(&self) -> bool {
        let state = self.lock();
        !state.over && state.retry.is_none_or(|(at, _)| Instant::now() >= at)
    }

    /// Streams from `at` on, which then says how far it came; `vault_end` says how far the vault is.
    pub(super) fn run(
        &self,
        which: &Which,
        at: &mut Lsn,
        vault_end: &dyn Fn() -> Lsn,
        take: &mut dyn FnMut(Lsn, &[u8]) -> bool,
    ) -> Option<Ended> {
        let began = Instant::now();
        let ran = match super::runtime() {
            Err(error) => Err(RelayError::Threads(error)),
            Ok(runtime) => {
                let ran = runtime.block_on(async {
                    tokio::select! {
                        biased;
                        // Whoever takes over waits for no server that hangs.
                        () = self.closed() => Ok(Ended::Over),
                        ran = self.stream(which, at, vault_end, take) => ran,
                    }
                });
                runtime.shutdown_background();
                ran
            }
        };
        self.stop_clock();
        let mut state = self.lock();
        state.streams = false;
        match ran {
            Ok(ended) => Some(ended),
            Err(error) => {
                let problem = in_full(&error);
                if state.problem.as_ref() != Some(&problem) {
                    tracing::warn!(service = self.from.service, problem, "the standby follows the vault alone");
                }
                let last = state.retry.map_or(BACKOFF_FIRST, |(_, last)| last);
                let lasted = began.elapsed() > BACKOFF_LONGEST;
                let pause = if lasted { BACKOFF_FIRST } else { last };
                state.problem = Some(problem);
                state.retry = Some((Instant::now() + pause, (pause * 2).min(BACKOFF_LONGEST)));
                None
            }
        }
    }

    async fn stream(
        &self,
        which: &Which,
        at: &mut Lsn,
        vault_end: &dyn Fn() -> Lsn,
        take: &mut dyn FnMut(Lsn, &[u8]) -> bool,
    ) -> Result<Ended, RelayError> {
        let door = (self.way)()?;
        let mut session = Session::open(&door, Purpose::Replication, &self.name).await?;
        let system = session.identify_system().await?;
        if system.system_id != which.system {
            return Err(RelayError::OtherSystem { found: system.system_id, wanted: which.system });
        }
        if system.timeline != which.timeline {
            return Err(RelayError::OtherTimeline { found: system.timeline, wanted: which.timeline });
        }
        if system.flushed < *at {
            return Err(RelayError::Behind { at: system.flushed, wanted: *at });
        }
        let mut stream = session.start_replication(None, *at, which.timeline).await?;
        {
            let mut state = self.lock();
            if state.over {
                return Ok(Ended::Over);
            }
            (state.streams, state.problem, state.retry) = (true, None, None);
            let clock = Clock::start(Arc::new(move || Ok(door.clone())));
            *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = Some(clock);
        }
        tracing::info!(service = self.from.service, at = %at, "the standby streams from the writer's server");
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut heard_at = Instant::now();
        let mut reported = None;
        loop {
            let (over, progress) = {
                let state = self.lock();
                (state.over, state.progress)
            };
            if over {
                return Ok(Ended::Over);
            }
            if let Some(progress) = progress.filter(|progress| reported != Some(*progress)) {
                stream.report(progress.written, progress.flushed, progress.applied, false).await?;
                reported = Some(progress);
            }
            tokio::select! {
                biased;
                () = self.wake.notified() => {}
                message = stream.next() => {
                    heard_at = Instant::now();
                    match message? {
                        WalMessage::Data { start, bytes, .. } => {
                            let end = Lsn(start.0.saturating_add(bytes.len() as u64));
                            if !take(start, &bytes) {
                                return Ok(Ended::Declined);
                            }
                            *at = end;
                            self.lock().end = end;
                        }
                        WalMessage::KeepAlive { reply, .. } => {
                            if reply {
                                reported = None;
                            }
                        }
                        WalMessage::EndOfTimeline => return Err(RelayError::TimelineEnded),
                    }
                }
                _ = tick.tick() => {
                    if !take(*at, &[]) {
                        return Ok(Ended::Declined);
                    }
                    if heard_at.elapsed() >= SILENT_FOR && vault_end() > *at {
                        return Err(RelayError::Silent);
                    }
                }
            }
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.end();
    }
}

/// What a site's standby is called at a server that it streams from: commits can be told to wait for that name.
pub(super) fn standby_name(dataset: &str, site: &str) -> String {
    slot_name(dataset, &format!("at\0{site}"))
}
