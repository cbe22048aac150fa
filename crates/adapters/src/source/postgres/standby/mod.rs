//! A cluster that follows a vault: `NAME.lifeboat-standby` beside the place it is for, a private server in recovery over it, and what is
//! known of both.
//!
//! ```text
//!   vault ─▶ way (which base, which chain) ─▶ feed ─▶ sender ─▶ the server's own receiver ─▶ replay
//!                      the writer's server ─▶ relay ─┘
//! ```
//!
//! Invariant: it is promoted only when its server has replayed every whole record of what the vault holds, and has the cluster's name only after
//! that, so that no application can take it for live. What it says of itself is what its server has replayed, never what was sent.

mod begin;

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_core::runbook::Target;
use lifeboat_engine::port::{Applied, Cancel, FollowRequest, PortError, Standby, StreamFrom};
use lifeboat_vault::{LogEntry, Position, Unlocked};
use serde::{Deserialize, Serialize};

use super::chain::Lineage;
use super::facts::Facts;
use super::feed::VaultFeed;
use super::files::{Signal, beside, owner_to_be, remove_if_there, write_for};
use super::former::Draft;
use super::recover::{NEEDED, REPLAY_WITHIN, RecoverError, STOP_WITHIN, differences};
use super::relay::Relay;
use super::rest::{Rest, rest_of_log};
use super::spool::Which;
use crate::postgres::lsn::{Lsn, history_name};
use crate::postgres::programs::Programs;
use crate::postgres::sender::{Feed, Sender};
use crate::postgres::server::{Awaited, Server, Start, Stop, end_left_behind, private_directory};
use crate::postgres::session::{Purpose, Session};
use crate::source::way::{self, ChainError, Onward, Way, position_text};
use crate::source::{STANDBY_SUFFIX, port_error};

/// The record of a standby. Lies beside the data directory, so that a copy of the volume is a standby, too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Record {
    dataset: String,
    /// False while a base backup is being laid down.
    whole: bool,
    /// Of the base backup.
    facts: Option<Facts>,
    point: Option<String>,
    /// Absent for a point outside any stream. Its counter: up to where the log was replayed.
    position: Option<Position>,
    epoch: u64,
    applied_to: Option<Timestamp>,
    is_final: bool,
    /// Its server was told to end its recovery.
    promoting: bool,
    /// What a former primary left and was dealt with.
    #[serde(default)]
    former: Option<String>,
    /// Where what is here came from, in words, if there was a choice.
    #[serde(default)]
    came: Option<String>,
}

pub(super) struct Follower {
    vault: Unlocked,
    dataset: String,
    to: PathBuf,
    work: PathBuf,
    record_path: PathBuf,
    record: Record,
    /// As it is on the disk.
    written: Option<Record>,
    runtime: tokio::runtime::Runtime,
    following: Option<Following>,
    /// The writer's server, where it is to be streamed from.
    from: Option<StreamFrom>,
    /// The last object of the chain, once all of it was read.
    tail: Option<LogEntry>,
    looked_through_at: Option<Instant>,
    looked_at_points_at: Option<Instant>,
    promoted: bool,
}

/// A server that follows. Dropped, it is stopped as in a crash, from which it goes on where it was.
struct Following {
    // In this order: the server goes before what it is fed with.
    session: Session,
    server: Server,
    feed: Arc<VaultFeed>,
    _sender: Sender,
    _socket: tempfile::TempDir,
    /// When the log is replayed to there, everything up to then is in the copy.
    moments: VecDeque<(Lsn, Timestamp)>,
    /// What the whole chain says of its end.
    is_final: bool,
    replayed: Lsn,
    moved_at: Instant,
    /// Between these no record ends.
    at_end: Option<(Lsn, Lsn)>,
}

/// How often the whole chain is looked through: only that sees what was deleted in the middle.
const LOOK_THROUGH_EVERY: Duration = Duration::from_secs(60);
/// How often to look whether another chain has begun.
const LOOK_AT_POINTS_EVERY: Duration = Duration::from_secs(1);
/// Who follows is asked how far it is at least that often.
const APPLY_AT_MOST: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// A log whose last record is not whole is not replayed to its end: after so long without movement it is looked whether that is so.
const STILL_FOR: Duration = Duration::from_millis(200);
/// The names of timelines that are known of in the vault and that this one does not come from stay free.
const TIMELINES_MAX: u32 = 1000;

fn is_due(last: Option<Instant>, every: Duration) -> bool {
    last.is_none_or(|last| last.elapsed() >= every)
}

impl Follower {
    pub(super) fn open(vault: &Unlocked, request: &FollowRequest) -> Result<Follower, RecoverError> {
        let work = beside(&request.to, STANDBY_SUFFIX);
        let record_path = beside(&work, ".json");
        if let Some(directory) = request.to.parent() {
            fs::create_dir_all(directory).map_err(RecoverError::file("make", directory))?;
        }
        if fs::read_dir(&request.to).is_ok_and(|mut entries| entries.next().is_none()) {
            fs::remove_dir(&request.to).map_err(RecoverError::file("replace", &request.to))?;
        }
        if exists(&request.to)? && (request.adopt || !exists(&work)?) {
            if !request.adopt {
                return Err(RecoverError::Exists { path: request.to.clone() });
            }
            if crate::postgres::door::Door::may_run_in(&request.to) {
                return Err(RecoverError::Running { path: request.to.clone() });
            }
            // Its record goes first: what is adopted is whole only once a base backup was laid over it.
            remove_if_there(&record_path)?;
            if exists(&work)? {
                end(&work)?;
                fs::remove_dir_all(&work).map_err(RecoverError::file("remove", &work))?;
            }
            fs::rename(&request.to, &work).map_err(RecoverError::file("take its name from", &request.to))?;
        }
        end(&work)?;
        Draft::remove_old(&work)?;
        let empty = Record {
            dataset: request.dataset.clone(),
            whole: false,
            facts: None,
            point: None,
            position: None,
            epoch: 0,
            applied_to: None,
            is_final: false,
            promoting: false,
            former: None,
            came: None,
        };
        let record = if exists(&work)? { read_record(&record_path, &request.dataset).unwrap_or(empty) } else { empty };
        Ok(Follower {
            vault: vault.clone(),
            dataset: request.dataset.clone(),
            to: request.to.clone(),
            runtime: super::runtime().map_err(RecoverError::file("make threads for", &work))?,
            work,
            record_path,
            record,
            written: None,
            following: None,
            from: None,
            tail: None,
            looked_through_at: None,
            looked_at_points_at: None,
            promoted: false,
        })
    }

    fn apply_new(&mut self, cancel: &Cancel) -> Result<Applied, RecoverError> {
        if self.promoted {
            return Ok(self.applied());
        }
        if self.record.promoting {
            // A promotion was begun and not ended: its server may have written a timeline of its own, on which nothing of the vault follows.
            (self.record.whole, self.record.promoting) = (false, false);
            self.write_record()?;
        }
        let restarted = match self.take_in(cancel) {
            // What streams does not need the vault for now.
            Err(error) if error.may_pass() && self.is_streaming() => {
                tracing::debug!(
                    error = crate::source::in_full(&error),
                    "the vault cannot be followed; the standby streams"
                );
                false
            }
            other => other?,
        };
        let before = self.record.position.as_ref().map(|position| position.counter);
        self.watch_replay(cancel)?;
        self.write_record()?;
        let after = self.record.position.as_ref().map(|position| position.counter);
        let moved = after.unwrap_or(0).saturating_sub(before.unwrap_or(0));
        Ok(Applied { restarted, bytes_written: moved, pieces: u64::from(moved > 0), ..self.applied() })
    }

    fn is_streaming(&self) -> bool {
        let relay = self.following.as_ref().and_then(|following| following.feed.relay());
        relay.is_some_and(|relay| relay.is_streaming())
    }

    fn set_source(&mut self, from: Option<&StreamFrom>) {
        if self.from.as_ref() != from {
            self.from = from.cloned();
            if let Some(following) = &self.following {
                following.feed.set_relay(self.relay());
            }
        }
    }

    fn relay(&self) -> Option<Arc<Relay>> {
        self.from.as_ref().map(|from| Arc::new(Relay::new(&self.dataset, from)))
    }

    /// Gives the server what the vault has that it was not given. True: it began anew, with another base backup.
    fn take_in(&mut self, cancel: &Cancel) -> Result<bool, RecoverError> {
        if let Some(onward) = self.appended()? {
            self.give(&onward);
            return Ok(false);
        }
        let began = Instant::now();
        let mut way = match way::find(&self.vault, &self.dataset, &Target::Newest) {
            // What is damaged in the vault is whole here.
            Err(ChainError::Damaged { counter, what, .. }) if self.is_past(counter) => {
                tracing::warn!(dataset = self.dataset, what, "the vault's log is damaged where the standby has it");
                self.looked_through_at = Some(began);
                if let Some(onward) = self.appended()? {
                    self.give(&onward);
                }
                return Ok(false);
            }
            other => other?,
        };
        let (onward, restarted) = match self.go_on(&way)? {
            Some(onward) => (onward, false),
            None if !self.is_better(&way) => return Ok(false),
            None => {
                self.start_from(&mut way, cancel)?;
                let Way { pieces, reaches, is_final, tail, .. } = way;
                (Onward { pieces, reaches: Some(reaches), is_final, tail }, true)
            }
        };
        if self.following.is_none() {
            self.start_server(&onward, cancel)?;
        }
        self.give(&onward);
        (self.looked_through_at, self.looked_at_points_at) = (Some(began), Some(began));
        Ok(restarted)
    }

    /// Adds to what the server is fed with.
    fn give(&mut self, onward: &Onward) {
        self.tail = onward.tail.clone().or_else(|| self.tail.take());
        let Some(following) = &mut self.following else { return };
        following.feed.add(&onward.pieces);
        let known = following.moments.back().map_or(Lsn(0), |(at, _)| *at);
        let moments = onward.pieces.iter().map(|entry| (Lsn(entry.last), entry.source_time));
        following.moments.extend(moments.filter(|(at, _)| *at > known));
        // A mark says of a later moment that nothing has come since.
        let end = following.feed.end();
        if let Some(reaches) = onward.reaches {
            following.moments.push_back((end, reaches));
        }
        following.is_final = onward.is_final || following.is_final && onward.pieces.is_empty();
    }

    /// Whether everything up to a position, and more, is in the copy, and the chain's end is known to this process.
    fn is_past(&self, counter: u64) -> bool {
        let Some(position) = self.record.position.as_ref().filter(|_| self.record.whole) else { return false };
        let of_chain = |tail: &LogEntry| (&tail.lineage, tail.timeline) == (&position.lineage, position.timeline);
        self.tail.as_ref().is_some_and(of_chain) && self.following.is_some() && counter < position.counter
    }

    /// What was appended to the chain that is followed. None: it is not known to be the one that counts, or time for a thorough look.
    fn appended(&mut self) -> Result<Option<Onward>, RecoverError> {
        let (Some(position), Some(tail), Some(following)) = (&self.record.position, &self.tail, &self.following) else {
            return Ok(None);
        };
        let is_current = (&tail.lineage, tail.timeline) == (&position.lineage, position.timeline);
        if !is_current || is_due(self.looked_through_at, LOOK_THROUGH_EVERY) {
            return Ok(None);
        }
        if is_due(self.looked_at_points_at, LOOK_AT_POINTS_EVERY) {
            if !way::is_newest(&self.vault, &self.dataset, position)? {
                return Ok(None);
            }
            self.looked_at_points_at = Some(Instant::now());
        }
        // Not what was replayed, but what was given is what the next piece follows.
        let given = following.feed.vault_end().max(Lsn(tail.last));
        let given = Position { counter: given.0, ..position.clone() };
        Ok(Some(way::appended(&self.vault, &self.dataset, &given, tail)?))
    }

    /// What is to be given to what is here, if the newest chain is the one that is followed already.
    fn go_on(&self, way: &Way) -> Result<Option<Onward>, RecoverError> {
        if !self.record.whole {
            return Ok(None);
        }
        let (Some(here), Some(there)) = (&self.record.position, &way.base.position) else {
            let same = self.record.point.as_ref() == Some(&way.base.id);
            return Ok(same.then(|| Onward { reaches: Some(way.reaches), ..Onward::default() }));
        };
        if (&here.lineage, here.timeline) != (&there.lineage, there.timeline) {
            return Ok(None);
        }
        let Some(facts) = &self.record.facts else { return Ok(None) };
        let segments = facts.segments()?;
        // A server asks for the whole segment in which its own log ends. One that streams may be ahead of the vault.
        let begun = segments.start(segments.number_of(Lsn(here.counter))).0;
        let given = self.following.as_ref().map(|following| following.feed.vault_end().0);
        let counter = given.filter(|given| *given > 0).unwrap_or(begun);
        let from = Position { counter, ..here.clone() };
        let as_of = self.record.applied_to.unwrap_or(way.base.taken_at);
        match way::onward(&self.vault, &self.dataset, &from, as_of) {
            // Pieces were lost or dropped, but a newer base backup stands after them.
            Err(ChainError::Hole { .. }) if there.counter > here.counter => Ok(None),
            other => Ok(Some(other?)),
        }
    }

    fn is_better(&self, way: &Way) -> bool {
        let (record, base) = (&self.record, &way.base);
        // Clocks may be set back, so what a vault says of the order of its chains comes before times.
        let is_superseded = record.position.as_ref().is_some_and(|position| way.superseded.contains(&position.lineage));
        let is_same_epoch_on = is_superseded || Some(way.reaches) > record.applied_to;
        !record.whole || base.epoch > record.epoch || base.epoch == record.epoch && is_same_epoch_on
    }

    /// Starts a server over it, and waits until it is a database.
    fn start_server(&mut self, onward: &Onward, cancel: &Cancel) -> Result<(), RecoverError> {
        let facts = self.record.facts.clone().ok_or_else(|| RecoverError::NotACluster {
            point: self.record.point.clone().unwrap_or_else(|| "of the standby".to_owned()),
        })?;
        let which = Which { system: facts.system()?, timeline: facts.timeline, segments: facts.segments()? };
        let programs = self.runtime.block_on(Programs::of_major(facts.major()?, NEEDED))?;
        let feed = Arc::new(VaultFeed::new(&self.vault, which, &facts.history, &facts.server_version));
        feed.add(&onward.pieces);
        feed.set_relay(self.relay());
        let owner = fs::metadata(&self.work).map_err(RecoverError::file("look at", &self.work))?;
        let failed = RecoverError::file("make a private directory for", &self.work);
        let socket = private_directory(&owner).map_err(failed)?;
        let sender = Sender::start(socket.path(), owner_to_be(&self.work)?, feed.clone());
        let sender = sender.map_err(RecoverError::file("listen in", socket.path()))?;
        let settings = [
            ("primary_conninfo", sender.conninfo()),
            ("recovery_target_timeline", facts.timeline.to_string()),
            // It has been told what it needs to know: whatever fails is tried again at once.
            ("wal_retrieve_retry_interval", "100ms".to_owned()),
            ("wal_receiver_status_interval", "1s".to_owned()),
            ("hot_standby", "on".to_owned()),
            // Nobody's questions hold up what is replayed.
            ("max_standby_streaming_delay", "0".to_owned()),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value)).into();
        let start = Start { user: facts.superuser.clone(), settings, within: REPLAY_WITHIN };
        let (work, watched) = (self.work.clone(), feed.clone());
        let started = wait(&self.runtime, cancel, Some(&watched), async {
            let server = Server::start(&programs, &work, &start).await?;
            let session = Session::open(server.door(), Purpose::Queries, "lifeboat").await?;
            Ok((server, session))
        });
        let (server, session) = started?;
        self.following = Some(Following {
            session,
            server,
            feed,
            _sender: sender,
            _socket: socket,
            moments: VecDeque::new(),
            is_final: false,
            replayed: Lsn(0),
            moved_at: Instant::now(),
            at_end: None,
        });
        Ok(())
    }

    /// Waits, not for long, until what was given is replayed, and notes how far it is. True: all of it is.
    fn watch_replay(&mut self, cancel: &Cancel) -> Result<bool, RecoverError> {
        let until = Instant::now() + APPLY_AT_MOST;
        loop {
            let looked = self.look(cancel);
            if looked.is_err() {
                // Whatever it was, the next time begins with a new server.
                self.following = None;
            }
            let all = looked?;
            if all || cancel.is_cancelled() || Instant::now() >= until {
                return Ok(all);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn look(&mut self, cancel: &Cancel) -> Result<bool, RecoverError> {
        let Some(following) = &mut self.following else { return Ok(false) };
        if let Some(failure) = following.feed.take_failure() {
            return Err(failure.into());
        }
        following.server.check()?;
        let sql = "select pg_catalog.pg_last_wal_replay_lsn(), pg_catalog.pg_last_wal_receive_lsn(), \
                   pg_catalog.pg_is_wal_replay_paused()";
        let row = wait(&self.runtime, cancel, None, async { Ok(following.session.query_one(sql).await?) })?;
        if row.get(2) == Some("t") {
            // Nobody asked it to: the source allows for more by now than this server was started with.
            return Err(RecoverError::Outgrown);
        }
        let place = |column: usize| row.get(column).and_then(|text| text.parse::<Lsn>().ok()).unwrap_or(Lsn(0));
        let (replayed, received) = (place(0), place(1));
        if replayed > following.replayed {
            (following.replayed, following.moved_at) = (replayed, Instant::now());
            following.feed.forget_before(Lsn(replayed.0.saturating_sub(2 * segment_bytes(&self.record))));
        }
        let end = following.feed.end();
        let mut all = replayed >= end;
        if !all && received >= end {
            let known = following.at_end == Some((replayed, end));
            if let (false, Some(facts)) = (known || following.moved_at.elapsed() < STILL_FOR, &self.record.facts) {
                let log = self.work.join("pg_wal");
                let programs = self.runtime.block_on(Programs::of_major(facts.major()?, NEEDED))?;
                let rest = rest_of_log(&programs, &log, facts.timeline, facts.segments()?, (replayed, end))?;
                following.at_end = (rest == Rest::NoRecord).then_some((replayed, end));
                following.moved_at = Instant::now();
            }
            all = following.at_end == Some((replayed, end));
        }
        let reached = if all { end.max(replayed) } else { replayed };
        if let Some(position) = &mut self.record.position {
            position.counter = position.counter.max(replayed.0);
        }
        while let Some((_, moment)) = following.moments.front().filter(|(at, _)| *at <= reached) {
            self.record.applied_to = self.record.applied_to.max(Some(*moment));
            following.moments.pop_front();
        }
        if let Some(relay) = following.feed.relay() {
            self.record.applied_to = self.record.applied_to.max(relay.moment_of(reached));
        }
        self.record.is_final = all && following.is_final;
        Ok(all)
    }

    fn promote_now(&mut self, cancel: &Cancel) -> Result<Applied, RecoverError> {
        if self.promoted {
            return Ok(self.applied());
        }
        if self.record.promoting && !Signal::Standby.in_directory(&self.work).exists() {
            // Its server was promoted when this was interrupted: all of it was in before.
            self.put_in_place()?;
            return Ok(self.applied());
        }
        // From here on nothing that a former writer still does is heard, or acknowledged.
        self.set_source(None);
        self.looked_through_at = None;
        let applied = self.apply_new(cancel)?;
        while !self.watch_replay(cancel)? {
            if cancel.is_cancelled() {
                return Err(RecoverError::Cancelled);
            }
        }
        self.write_record()?;
        let later = self.later_timelines()?;
        let work = self.work.clone();
        let following = self.following.as_mut().ok_or(RecoverError::Cancelled)?;
        if let Some(facts) = &self.record.facts {
            let look = async { differences(&following.server, &facts.databases).await };
            for note in wait(&self.runtime, cancel, None, look)? {
                tracing::warn!(dataset = self.dataset, note, "the promoted database differs");
            }
        }
        for path in later.iter().filter(|path| !path.exists()) {
            write_for(&work, path, b"")?;
        }
        self.record.promoting = true;
        self.write_record()?;
        let Some(mut following) = self.following.take() else { return Err(RecoverError::Cancelled) };
        // From here on it goes only forward: an interrupted promotion is ended the next time.
        let promoted = self.runtime.block_on(async {
            following.session.query_one("select pg_catalog.pg_promote(false)").await?;
            following.server.wait_for(Awaited::Writable, REPLAY_WITHIN).await?;
            following.session.close().await;
            following.server.stop(Stop::Fast, STOP_WITHIN).await?;
            Ok::<_, RecoverError>(())
        });
        promoted?;
        self.put_in_place()?;
        let Applied { pieces, bytes_written, restarted, .. } = applied;
        Ok(Applied { pieces, bytes_written, restarted, ..self.applied() })
    }

    fn put_in_place(&mut self) -> Result<(), RecoverError> {
        end(&self.work)?;
        // Its number is taken: what kept others free is of no use to who reads histories, also where a promotion was interrupted.
        remove_empty_histories(&self.work.join("pg_wal"))?;
        if exists(&self.to)? {
            let stamp = Timestamp::now().as_second();
            let aside = beside(&self.to, &format!(".before-promotion-{stamp}"));
            fs::rename(&self.to, &aside).map_err(RecoverError::file("move aside", &self.to))?;
            tracing::warn!(path = %self.to.display(), aside = %aside.display(), "something lay in the place of the promoted database; it was moved aside");
        }
        fs::rename(&self.work, &self.to).map_err(RecoverError::file("give its name to", &self.to))?;
        crate::source::sync_directory_of(&self.to).map_err(RecoverError::file("make durable", &self.to))?;
        remove_if_there(&self.record_path)?;
        self.promoted = true;
        Ok(())
    }

    /// History files of timelines that others of this system have taken already: a server that sees them takes the next number.
    fn later_timelines(&self) -> Result<Vec<PathBuf>, RecoverError> {
        let Some(facts) = &self.record.facts else { return Ok(Vec::new()) };
        let system = facts.system()?;
        let failed = |source| RecoverError::Chain(ChainError::Vault(source));
        let lineages = self.vault.log_lineages(&self.dataset).map_err(failed)?;
        let of_system = lineages.iter().filter_map(|text| Lineage::parse(text)).filter(|known| known.system == system);
        let newest = of_system.map(|known| known.timeline).max().unwrap_or(0);
        let last = newest.min(facts.timeline.saturating_add(TIMELINES_MAX));
        let path = |timeline| self.work.join("pg_wal").join(history_name(timeline));
        Ok((facts.timeline.saturating_add(1)..=last).map(path).collect())
    }

    fn applied(&self) -> Applied {
        let record = &self.record;
        Applied {
            applied_to: record.applied_to.filter(|_| record.whole),
            position: record.position.as_ref().map(position_text),
            epoch: record.whole.then_some(record.epoch),
            point: record.point.clone(),
            is_final: record.is_final,
            came: record.came.clone(),
            streams: self
                .following
                .as_ref()
                .and_then(|following| Some(following.feed.relay()?.status(following.replayed))),
            ..Applied::default()
        }
    }

    fn write_record(&mut self) -> Result<(), RecoverError> {
        if self.written.as_ref() == Some(&self.record) {
            return Ok(());
        }
        let draft = beside(&self.record_path, ".draft");
        let write = || {
            let text = serde_json::to_vec(&self.record).map_err(io::Error::other)?;
            fs::write(&draft, text)?;
            File::open(&draft)?.sync_all()?;
            fs::rename(&draft, &self.record_path)
        };
        write().map_err(RecoverError::file("write", &self.record_path))?;
        self.written = Some(self.record.clone());
        Ok(())
    }
}

/// Does it, unless it is cancelled, or the log that it waits for cannot be had.
fn wait<T>(
    runtime: &tokio::runtime::Runtime,
    cancel: &Cancel,
    feed: Option<&VaultFeed>,
    work: impl Future<Output = Result<T, RecoverError>>,
) -> Result<T, RecoverError> {
    runtime.block_on(async {
        let stopped = async {
            loop {
                if cancel.is_cancelled() {
                    return RecoverError::Cancelled;
                }
                if let Some(failure) = feed.and_then(VaultFeed::take_failure) {
                    return failure.into();
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            done = work => done,
            error = stopped => Err(error),
        }
    })
}

/// A history that says nothing only kept a number free.
fn remove_empty_histories(log: &Path) -> Result<(), RecoverError> {
    for entry in fs::read_dir(log).map_err(RecoverError::file("read", log))? {
        let path = entry.map_err(RecoverError::file("read", log))?.path();
        let is_history = path.extension().is_some_and(|extension| extension == "history");
        if is_history && fs::metadata(&path).is_ok_and(|seen| seen.len() == 0) {
            remove_if_there(&path)?;
        }
    }
    Ok(())
}

impl Standby for Follower {
    fn stream_from(&mut self, from: Option<&StreamFrom>) {
        self.set_source(from);
    }

    fn apply(&mut self, cancel: &Cancel) -> Result<Applied, PortError> {
        match self.apply_new(cancel) {
            // The writer has not stored its first point yet.
            Err(RecoverError::Chain(ChainError::NoPoint { .. })) => Ok(self.applied()),
            other => other.map_err(|error| port_error("the standby cannot go on", error.may_pass(), error)),
        }
    }

    fn promote(&mut self, cancel: &Cancel) -> Result<Applied, PortError> {
        self.promote_now(cancel).map_err(|error| port_error("the standby cannot be promoted", error.may_pass(), error))
    }
}

/// Ends the server of a process that was killed.
fn end(work: &Path) -> Result<(), RecoverError> {
    match end_left_behind(work) {
        true => Ok(()),
        false => Err(RecoverError::Running { path: work.to_owned() }),
    }
}

fn segment_bytes(record: &Record) -> u64 {
    record.facts.as_ref().map_or(0, |facts| facts.segment_bytes)
}

fn exists(path: &Path) -> Result<bool, RecoverError> {
    path.try_exists().map_err(RecoverError::file("look at", path))
}

fn read_record(path: &Path, dataset: &str) -> Option<Record> {
    let record: Record = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (record.dataset == dataset).then_some(record)
}
