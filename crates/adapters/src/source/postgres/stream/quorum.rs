//! Whether commits wait for vaults: tells the server to let them, sees that it stays so, and says so when it is not so.
//!
//! ```text
//!   required    always; without the vaults no commit is acknowledged
//!   preferred   while enough vaults keep up; when too few did for `PATIENCE`, commits go on without them until they do again, and that is said
//! ```
//!
//! Invariant: "they wait" is said only of what the server itself showed just before: its setting, and that nobody else goes by a vault's name.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_core::desired::CommitsWait;
use lifeboat_core::plan::{Awaited, CommitMode};

use super::super::Way;
use super::super::relay::standby_name;
use super::board::Board;
use super::lane::slot_name;
use crate::postgres::error::SessionError;
use crate::postgres::lsn::Lsn;
use crate::postgres::session::{Purpose, Session, literal};
use crate::source::in_full;

const LOOK_EVERY: Duration = Duration::from_millis(100);
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// How long commits wait for vaults that do not keep up before they go on without them, where that is allowed.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a vault keeps up before commits wait for it again.
const CALM: Duration = Duration::from_secs(1);
/// A setting is in force soon after it was made, or something overrides it.
const IN_FORCE_WITHIN: Duration = Duration::from_secs(3);
/// Others may set what we set: not as often as we look.
const SET_EVERY: Duration = Duration::from_secs(1);
const INSUFFICIENT_PRIVILEGE: &str = "42501";

#[derive(Debug, thiserror::Error)]
enum QuorumError {
    #[error(transparent)]
    Door(#[from] crate::postgres::door::DoorError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("{path} cannot be written")]
    Note {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The thread that looks after it.
pub(super) struct Quorum {
    pub(super) board: Arc<Board>,
    pub(super) door: Way,
    pub(super) dataset: String,
    pub(super) awaited: Option<Awaited>,
    /// Of the stream's vaults, in the board's order.
    pub(super) vaults: Vec<String>,
    /// Holds the setting that was made here, for as long as it may be there.
    pub(super) note: PathBuf,
}

/// What the server shows.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    setting: String,
    commit: String,
    in_recovery: bool,
    flushed: Lsn,
    receivers: Vec<Receiver>,
    /// Roles and databases whose commits wait for nobody.
    exempt: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Receiver {
    name: String,
    pid: u32,
    is_streaming: bool,
    flushed: Lsn,
}

impl Seen {
    async fn look(session: &mut Session, names: &[String]) -> Result<Seen, SessionError> {
        let strange = || SessionError::Protocol {
            at: "the server".to_owned(),
            what: "it does not say for whom commits wait".to_owned(),
        };
        let row = session
            .query_one(
                "select current_setting('synchronous_standby_names'), current_setting('synchronous_commit'), pg_is_in_recovery(), \
                 case when pg_is_in_recovery() then '0/0' else pg_current_wal_flush_lsn() end, \
                 (select count(*) from pg_catalog.pg_db_role_setting, unnest(setconfig) as one \
                  where one in ('synchronous_commit=off', 'synchronous_commit=local'))",
            )
            .await?;
        let text = |column: usize| row.get(column).unwrap_or_default().to_owned();
        let flushed = text(3).parse().map_err(|_| strange())?;
        let list: Vec<String> = names.iter().map(|name| literal(name)).collect();
        let rows = session
            .query(&format!(
                "select application_name, pid, coalesce(state, ''), coalesce(flush_lsn, '0/0') \
                 from pg_catalog.pg_stat_replication where application_name in ({})",
                list.join(", ")
            ))
            .await?;
        let receiver = |row: &crate::postgres::session::Row| {
            Some(Receiver {
                name: row.get(0)?.to_owned(),
                pid: row.get(1)?.parse().ok()?,
                is_streaming: row.get(2)? == "streaming",
                flushed: row.get(3)?.parse().ok()?,
            })
        };
        Ok(Seen {
            setting: text(0),
            commit: text(1),
            in_recovery: text(2) == "t",
            flushed,
            receivers: rows.iter().map(receiver).collect::<Option<_>>().ok_or_else(strange)?,
            exempt: text(4).parse().map_err(|_| strange())?,
        })
    }
}

/// Which vaults keep up, look by look.
#[derive(Debug, Default)]
struct KeepingUp {
    /// How far the log was at the last look.
    flushed: Option<Lsn>,
    since: BTreeMap<String, Standing>,
}

#[derive(Debug, Clone, Copy)]
struct Standing {
    keeps_up: bool,
    since: Instant,
}

impl KeepingUp {
    /// A vault keeps up that has what the server had at the look before.
    fn see(&mut self, names: &[String], seen: &Seen, now: Instant) {
        for name in names {
            let keeps_up = seen.receivers.iter().any(|receiver| {
                receiver.name == *name
                    && receiver.is_streaming
                    && self.flushed.is_some_and(|flushed| receiver.flushed >= flushed)
            });
            let standing = self.since.entry(name.clone()).or_insert(Standing { keeps_up: false, since: now });
            if standing.keeps_up != keeps_up {
                *standing = Standing { keeps_up, since: now };
            }
        }
        self.flushed = Some(seen.flushed);
    }

    /// How many have kept up for at least so long, or have not failed to for longer than `patience`.
    fn count(&self, calm: Duration, patience: Duration, now: Instant) -> usize {
        let counts = |standing: &&Standing| {
            let lasted = now.duration_since(standing.since);
            if standing.keeps_up { lasted >= calm } else { lasted < patience }
        };
        self.since.values().filter(counts).count()
    }

    fn now(&self) -> usize {
        self.since.values().filter(|standing| standing.keeps_up).count()
    }
}

impl Quorum {
    pub(super) fn run(self) {
        if self.awaited.is_none() && !self.note.exists() {
            return;
        }
        let Ok(runtime) = super::super::runtime() else { return };
        loop {
            match runtime.block_on(self.serve()) {
                Ok(()) => return,
                Err(error) => {
                    let why = format!("the server cannot be asked: {}", in_full(&error));
                    tracing::warn!(dataset = self.dataset, why, "whether commits wait is unknown");
                    self.tell(false, why);
                }
            }
            if self.waits_for_stop(AGAIN_AFTER) {
                return;
            }
        }
    }

    fn waits_for_stop(&self, time: Duration) -> bool {
        self.board.wait(time, |state| state.stop.then_some(())).is_some()
    }

    async fn serve(&self) -> Result<(), QuorumError> {
        let mut session = Session::open(&(self.door)()?, Purpose::Queries, "lifeboat-commits").await?;
        session.set_patience(super::super::CLOCK_PATIENCE);
        let Some(awaited) = &self.awaited else {
            self.take_back(&mut session).await?;
            session.close().await;
            return Ok(());
        };
        let vaults = awaited.vaults.iter().map(|vault| slot_name(&self.dataset, vault));
        let standbys = awaited.sites.iter().map(|site| standby_name(&self.dataset, site));
        let names: Vec<String> = vaults.chain(standbys).collect();
        let asked_for = format!("ANY {} ({})", awaited.copies, names.join(", "));
        let copies = awaited.copies as usize;
        let mut keeping_up = KeepingUp::default();
        let mut waiting = awaited.mode == CommitMode::SyncRequired;
        let mut set_at: Option<Instant> = None;
        let mut strangers = Strangers::new();
        let mut refused = None;
        // What was seen in force last: where it is not any more though it is wanted still, others changed it.
        let mut in_force = String::new();
        loop {
            let seen = Seen::look(&mut session, &names).await?;
            let now = Instant::now();
            keeping_up.see(&names, &seen, now);
            if awaited.mode == CommitMode::SyncPreferred {
                // What keeps up again has to do so for a while; what does not has a while to come back.
                let (calm, patience) = if waiting { (Duration::ZERO, PATIENCE) } else { (CALM, Duration::ZERO) };
                let enough = keeping_up.count(calm, patience, now) >= copies;
                if enough != waiting {
                    let (dataset, others) = (&self.dataset, keeping_up.now());
                    tracing::warn!(
                        dataset,
                        keep_up = others,
                        needed = copies,
                        waiting = enough,
                        "commits wait, or not"
                    );
                }
                waiting = enough;
            }
            let wanted = if waiting { asked_for.as_str() } else { "" };
            let applies = seen.commit == "remote_apply" && !awaited.vaults.is_empty();
            let differs = seen.setting != wanted && !seen.in_recovery && !(applies && waiting);
            if differs && set_at.is_none_or(|at| at.elapsed() >= SET_EVERY) {
                if in_force == wanted && set_at.is_some() {
                    tracing::warn!(
                        dataset = self.dataset,
                        found = seen.setting,
                        wanted,
                        "the setting for whom commits wait was changed; it is set again"
                    );
                }
                refused = self.set(&mut session, wanted).await?;
                set_at = Some(now);
            }
            if seen.setting == wanted {
                wanted.clone_into(&mut in_force);
            }
            let late = differs && set_at.is_some_and(|at| at.elapsed() >= IN_FORCE_WITHIN);
            strangers = self.strangers(&seen, std::mem::take(&mut strangers));
            let standbys = awaited.sites.iter().map(|site| format!("the standby at {site}"));
            let of: Vec<String> = awaited.vaults.iter().cloned().chain(standbys).collect();
            let of = of.join(", ");
            let why_not = if let Some(refused) = refused.as_ref().filter(|_| differs) {
                Some(String::clone(refused))
            } else if seen.in_recovery {
                Some("the server is a standby".to_owned())
            } else if applies {
                Some("synchronous_commit = remote_apply, and no vault applies: set it to on".to_owned())
            } else if !waiting {
                Some(format!(
                    "too few keep up ({} of {of}; {copies} needed); they will wait again when enough do",
                    keeping_up.now()
                ))
            } else if matches!(seen.commit.as_str(), "off" | "local") {
                Some(format!("synchronous_commit = {}: commits wait for nobody; set it to on", seen.commit))
            } else if late {
                Some(format!(
                    "synchronous_standby_names is `{}`, and setting it has no effect: take it from the command line or the included file that sets it",
                    seen.setting
                ))
            } else if seen.setting != wanted {
                Some(format!("synchronous_standby_names is `{}`; it is being set", seen.setting))
            } else {
                strangers.iter().find(|(_, looks)| *looks > 1).map(|((name, pid), _)| {
                    format!("process {pid} of the server streams under the name of a vault ({name}): end it, or give that receiver another application_name")
                })
            };
            let mut what = why_not.clone().unwrap_or_else(|| format!("for {copies} of {of}"));
            if why_not.is_none() && seen.exempt > 0 {
                what.push_str(&format!(
                    "; not those of {} roles or databases with synchronous_commit off or local",
                    seen.exempt
                ));
            }
            let stands_still = why_not.is_none() && keeping_up.count(Duration::ZERO, PATIENCE, now) < copies;
            self.board.update(|state| {
                state.stands_still =
                    stands_still.then(|| format!("commits wait and do not go on: fewer than {copies} of {of} keep up"));
            });
            self.tell(why_not.is_none(), what);
            if self.waits_for_stop(LOOK_EVERY) {
                session.close().await;
                return Ok(());
            }
        }
    }

    /// Who receives under a vault's name without being its receiver, and at how many looks in a row.
    fn strangers(&self, seen: &Seen, before: Strangers) -> Strangers {
        let ours: Vec<(String, Option<u32>)> = {
            let state = self.board.lock();
            let pids = state.lanes.iter().map(|lane| lane.pid);
            self.vaults.iter().map(|vault| slot_name(&self.dataset, vault)).zip(pids).collect()
        };
        // Who streams for a standby is not known here.
        let is_lane = |receiver: &&Receiver| ours.iter().any(|(name, _)| *name == receiver.name);
        let is_ours =
            |receiver: &&Receiver| ours.iter().any(|(name, pid)| *name == receiver.name && *pid == Some(receiver.pid));
        let strangers = seen.receivers.iter().filter(|receiver| is_lane(receiver) && !is_ours(receiver));
        strangers
            .map(|stranger| {
                let key = (stranger.name.clone(), stranger.pid);
                let looks = before.iter().find(|(known, _)| *known == key).map_or(0, |(_, looks)| *looks);
                (key, looks + 1)
            })
            .collect()
    }

    /// Sets it; why that is not allowed, if it is not.
    async fn set(&self, session: &mut Session, wanted: &str) -> Result<Option<String>, QuorumError> {
        let noted = |source| QuorumError::Note { path: self.note.clone(), source };
        if !wanted.is_empty() {
            if let Some(directory) = self.note.parent() {
                std::fs::create_dir_all(directory).map_err(noted)?;
            }
            std::fs::write(&self.note, wanted).map_err(noted)?;
        }
        let sql = match wanted {
            "" => "alter system reset synchronous_standby_names".to_owned(),
            names => format!("alter system set synchronous_standby_names = {}", literal(names)),
        };
        for sql in [sql.as_str(), "select pg_catalog.pg_reload_conf()"] {
            match session.query(sql).await {
                Ok(_) => {}
                Err(error) if error.sqlstate() == Some(INSUFFICIENT_PRIVILEGE) => {
                    return Ok(Some(
                        "this role may not set synchronous_standby_names: `grant alter system on parameter synchronous_standby_names to ROLE; \
                         grant execute on function pg_reload_conf() to ROLE`, from version 15 on"
                            .to_owned(),
                    ));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// Nothing is to wait any more: what was set here for that goes, if it is still there.
    async fn take_back(&self, session: &mut Session) -> Result<(), QuorumError> {
        let noted = |source| QuorumError::Note { path: self.note.clone(), source };
        let ours = std::fs::read_to_string(&self.note).map_err(noted)?;
        let row = session.query_one("select current_setting('synchronous_standby_names')").await?;
        if row.get(0) == Some(ours.as_str()) {
            if let Some(refused) = self.set(session, "").await? {
                self.tell(true, format!("they still wait ({ours}): {refused}"));
                return Ok(());
            }
            tracing::info!(dataset = self.dataset, was = ours, "commits wait for no vault any more");
        }
        std::fs::remove_file(&self.note).map_err(noted)
    }

    fn tell(&self, wait: bool, what: String) {
        self.board.update(|state| {
            let same = state.commits.as_ref().filter(|known| known.wait == wait);
            let since = same.map_or_else(|| Timestamp::now().to_string(), |known| known.since.clone());
            state.commits = Some(CommitsWait { wait, since, what });
        });
    }
}

/// A name and a process, and at how many looks in a row it was there.
type Strangers = Vec<((String, u32), u32)>;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::postgres::door::Door;
    use crate::postgres::tests::cluster::Cluster;

    fn receiver(flushed: u64) -> Receiver {
        Receiver { name: "one".to_owned(), pid: 1, is_streaming: true, flushed: Lsn(flushed) }
    }

    #[test]
    fn a_vault_keeps_up_that_has_what_was_there_a_look_before() {
        let names = ["one".to_owned()];
        let seen = |server: u64, receivers: &[Receiver]| Seen {
            setting: String::new(),
            commit: "on".to_owned(),
            in_recovery: false,
            flushed: Lsn(server),
            receivers: receivers.to_vec(),
            exempt: 0,
        };
        let (mut keeping_up, start) = (KeepingUp::default(), Instant::now());
        let at = |milliseconds: u64| start + Duration::from_millis(milliseconds);
        let mut see = |now: u64, server: u64, receivers: &[Receiver]| {
            keeping_up.see(&names, &seen(server, receivers), at(now));
            // How many can be waited for anew; how many need not be given up.
            (keeping_up.count(CALM, Duration::ZERO, at(now)), keeping_up.count(Duration::ZERO, PATIENCE, at(now)))
        };
        assert_eq!(see(0, 100, &[receiver(100)]), (0, 1));
        assert_eq!(see(100, 200, &[receiver(150)]), (0, 1));
        assert_eq!(see(1100, 300, &[receiver(200)]), (1, 1));
        // Nothing comes any more, and nothing is written: it still keeps up; then a commit waits.
        assert_eq!(see(1200, 300, &[receiver(300)]), (1, 1));
        assert_eq!(see(1300, 400, &[receiver(300)]), (1, 1));
        assert_eq!(see(1400, 400, &[receiver(300)]), (0, 1));
        assert_eq!(see(6300, 400, &[receiver(300)]), (0, 1));
        assert_eq!(see(6400, 400, &[receiver(300)]), (0, 0));
        assert_eq!(see(6500, 400, &[receiver(400)]), (0, 1));
        assert_eq!(see(6600, 400, &[]), (0, 1));
        assert_eq!(see(20_000, 400, &[]), (0, 0));
    }

    #[test]
    fn a_role_that_may_not_set_it_is_told_what_it_lacks_and_one_that_may_sets_it() {
        let cluster = Cluster::started();
        cluster.psql("create role keeper login replication");
        let door = Door::through_socket(cluster.socket_directory(), cluster.port(), "keeper", "postgres");
        let state = tempfile::tempdir().unwrap();
        let board = Arc::new(Board::new(1, Arc::default()));
        let quorum = Quorum {
            board: board.clone(),
            door: Arc::new(move || Ok(door.clone())),
            dataset: "ledger".to_owned(),
            awaited: Some(Awaited {
                vaults: vec!["main".to_owned()],
                sites: Vec::new(),
                copies: 1,
                mode: CommitMode::SyncRequired,
            }),
            vaults: vec!["main".to_owned()],
            note: state.path().join("stream/commits-wait-for"),
        };
        let thread = std::thread::spawn(move || quorum.run());
        let told = |wait: bool, says: &str| {
            let look = |state: &mut super::super::board::State| {
                state.commits.clone().filter(|commits| commits.wait == wait && commits.what.contains(says))
            };
            board.wait(Duration::from_secs(60), look).unwrap()
        };
        told(false, "grant alter system on parameter");
        cluster.psql("grant alter system on parameter synchronous_standby_names to keeper");
        cluster.psql("grant execute on function pg_reload_conf() to keeper");
        told(true, "for 1 of main");
        let setting = cluster.psql("select current_setting('synchronous_standby_names')");
        assert!(setting.starts_with("ANY 1 (lifeboat_ledger_main_"), "{setting}");
        // Nobody receives: who commits waits, and it is said that they do.
        let why = board.wait(Duration::from_secs(60), |state| state.stands_still.clone()).unwrap();
        assert!(why.contains("fewer than 1 of main"), "{why}");
        board.update(|state| state.stop = true);
        thread.join().unwrap();
    }
}
