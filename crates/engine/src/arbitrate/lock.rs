//! The run lock: one run on a service at a time, and one executor on a run.
//!
//! Invariant: a lock changes hands only to the next number, created once, so of two that want it one gets it. A run
//! that has not ended is never bypassed by another run: it is resumed (or cancelled) by who has its whole mirrored
//! journal, after its executor let go, is proven dead on this machine, or has shown no sign for TTL plus skew on the
//! observer's own monotonic clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::board::{Arbiter, ArbiterError, Put};
use crate::journal::Head;

/// How long a lock is good without a sign of life, and how far two monotonic clocks may drift apart meanwhile.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LockTimes {
    pub ttl_seconds: f64,
    pub skew_seconds: f64,
}

impl Default for LockTimes {
    fn default() -> LockTimes {
        LockTimes { ttl_seconds: 15.0, skew_seconds: 3.0 }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockClaim {
    pub service: String,
    pub number: u64,
    pub run: String,
    /// The state directory (`Journal::host`) the executor works from.
    pub host: String,
    /// RFC 3339, for people.
    pub at: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LockBeat {
    pub number: u64,
    pub beat: u64,
    pub state: LockState,
    pub ttl_seconds: f64,
    /// RFC 3339, for people.
    pub at: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LockState {
    Held,
    /// The executor let go; the run has not ended.
    Paused,
    Finished,
}

/// Who wants a lock. The caller holds this machine's own lock on the service (`Journal::lock_service`), so whatever
/// else claims to run from the same `host` is dead.
#[derive(Debug, Clone, Copy)]
pub struct Acquire<'a> {
    pub service: &'a str,
    pub run: &'a str,
    pub host: &'a str,
    /// The run's journal as known here; none for a new run.
    pub journal: Option<&'a Head>,
    pub times: LockTimes,
}

/// What one try gave.
#[derive(Debug)]
pub enum Attempt {
    Taken(HeldLock),
    /// Nobody can tell yet whether the holder lives: try again, with the same watch, for at most so long.
    Watch {
        seconds: f64,
    },
}

/// What has been seen of another's lock while trying.
#[derive(Debug, Default)]
pub struct LockWatch {
    seen: Option<(u64, u64, f64)>,
}

/// The lock, in this executor's hands.
#[derive(Debug)]
pub struct HeldLock {
    pub service: String,
    pub number: u64,
    pub run: String,
    times: LockTimes,
    beat: AtomicU64,
    renewed_at: Mutex<f64>,
}

impl Arbiter {
    /// The lock's last claim and what its holder last said.
    pub fn run_lock(&self, service: &str) -> Result<Option<(LockClaim, Option<LockBeat>)>, ArbiterError> {
        let Some(claim) = self.latest::<LockClaim>(&format!("locks/{service}/"))? else { return Ok(None) };
        let beat = self.read(&format!("lock-beats/{service}/{}", claim.number))?;
        Ok(Some((claim, beat)))
    }

    /// Tries once to take the run lock.
    pub fn acquire(&self, want: &Acquire<'_>, watch: &mut LockWatch) -> Result<Attempt, ArbiterError> {
        let latest = self.run_lock(want.service)?;
        let number = latest.as_ref().map_or(0, |(claim, _)| claim.number);
        if let Some((claim, beat)) = &latest
            && let Some(seconds) = self.must_wait(want, claim, beat.as_ref(), watch)?
        {
            return Ok(Attempt::Watch { seconds });
        }
        if let Some(head) = want.journal {
            self.require_journal(want.run, head)?;
        }
        self.take(want, number + 1).map(Attempt::Taken)
    }

    /// Nothing when the lock may be taken now, seconds when that cannot be told yet, or a refusal.
    fn must_wait(
        &self,
        want: &Acquire<'_>,
        claim: &LockClaim,
        beat: Option<&LockBeat>,
        watch: &mut LockWatch,
    ) -> Result<Option<f64>, ArbiterError> {
        let state = beat.map_or(LockState::Held, |beat| beat.state);
        if state == LockState::Finished {
            return Ok(None);
        }
        let unfinished = || ArbiterError::Unfinished { service: want.service.into(), run: claim.run.clone() };
        let acted = claim.run == want.run || self.is_mirrored(&claim.run)?;
        let dead_or_paused = state == LockState::Paused || claim.host == want.host;
        match (claim.run == want.run, dead_or_paused) {
            (true, true) => return Ok(None),
            (false, true) if acted => return Err(unfinished()),
            (false, true) => return Ok(None),
            _ => {}
        }
        let busy = || ArbiterError::Busy {
            service: want.service.into(),
            run: claim.run.clone(),
            since: beat.map_or(claim.at.clone(), |beat| beat.at.clone()),
        };
        if claim.run != want.run && acted {
            return Err(busy());
        }
        let now = self.clock().monotonic_seconds();
        let sign = (claim.number, beat.map_or(0, |beat| beat.beat));
        let since = match watch.seen {
            Some((number, beat, since)) if (number, beat) == sign => since,
            Some(_) => return Err(busy()),
            None => {
                watch.seen = Some((sign.0, sign.1, now));
                now
            }
        };
        let ttl = beat.map_or(want.times.ttl_seconds, |beat| beat.ttl_seconds.clamp(0.0, 3600.0));
        let left = since + ttl + want.times.skew_seconds - now;
        Ok(Some(left).filter(|left| *left > 0.0))
    }

    fn take(&self, want: &Acquire<'_>, number: u64) -> Result<HeldLock, ArbiterError> {
        let asked_at = self.clock().monotonic_seconds();
        let claim = LockClaim {
            service: want.service.into(),
            number,
            run: want.run.into(),
            host: want.host.into(),
            at: self.clock().now().to_string(),
        };
        if let Put::Existed = self.publish_once(&format!("locks/{}/{number}", want.service), &claim)? {
            let winner: Option<LockClaim> = self.read(&format!("locks/{}/{number}", want.service))?;
            return Err(ArbiterError::Busy {
                service: want.service.into(),
                run: winner.as_ref().map_or("another".into(), |winner| winner.run.clone()),
                since: winner.map_or_else(String::new, |winner| winner.at),
            });
        }
        let lock = HeldLock {
            service: want.service.into(),
            number,
            run: want.run.into(),
            times: want.times,
            beat: AtomicU64::new(0),
            renewed_at: Mutex::new(asked_at),
        };
        self.renew_lock(&lock)?;
        Ok(lock)
    }

    /// Says that the executor lives. Fails when somebody else has taken the lock.
    pub fn renew_lock(&self, lock: &HeldLock) -> Result<(), ArbiterError> {
        let asked_at = self.clock().monotonic_seconds();
        self.say(lock, LockState::Held)?;
        *lock.renewed_at.lock().unwrap_or_else(PoisonError::into_inner) = asked_at;
        Ok(())
    }

    /// Lets go of the lock: `Paused` keeps the service for the run, `Finished` frees it.
    pub fn release_lock(&self, lock: &HeldLock, state: LockState) -> Result<(), ArbiterError> {
        self.say(lock, state)
    }

    /// Fails unless this executor still has the lock, by the arbiter's storage and by its own clock.
    pub fn check_lock(&self, lock: &HeldLock) -> Result<(), ArbiterError> {
        self.require_latest(lock)?;
        let renewed_at = *lock.renewed_at.lock().unwrap_or_else(PoisonError::into_inner);
        if self.clock().monotonic_seconds() - renewed_at >= lock.times.ttl_seconds {
            self.renew_lock(lock)?;
        }
        Ok(())
    }

    fn say(&self, lock: &HeldLock, state: LockState) -> Result<(), ArbiterError> {
        self.require_latest(lock)?;
        let beat = LockBeat {
            number: lock.number,
            beat: lock.beat.fetch_add(1, Ordering::SeqCst) + 1,
            state,
            ttl_seconds: lock.times.ttl_seconds,
            at: self.clock().now().to_string(),
        };
        self.publish(&format!("lock-beats/{}/{}", lock.service, lock.number), &beat)
    }

    fn require_latest(&self, lock: &HeldLock) -> Result<(), ArbiterError> {
        let latest = self.numbers(&format!("locks/{}/", lock.service))?.last().copied();
        if latest == Some(lock.number) {
            return Ok(());
        }
        Err(ArbiterError::LockLost { service: lock.service.clone(), run: lock.run.clone() })
    }
}

impl HeldLock {
    /// How often to renew: a third of the TTL, so that two renewals may fail.
    pub fn renew_every_seconds(&self) -> f64 {
        self.times.ttl_seconds / 3.0
    }
}
