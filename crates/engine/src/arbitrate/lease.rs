//! Leases: how a writer shows that it is still there, and how others know that it cannot write any more.
//!
//! Invariant: no wall clock is compared between machines. The holder counts its TTL from *before* it asked for a
//! renewal; an observer counts TTL plus skew from when it *first saw* that renewal; so whatever the clocks and delays,
//! the holder stops first.

use serde::{Deserialize, Serialize};

use super::board::{Arbiter, ArbiterError};

/// The longest TTL that is believed, so that a damaged or hostile one cannot block a recovery for ever.
const TTL_SECONDS_MAX: f64 = 3600.0;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lease {
    pub write_domain: String,
    pub epoch: u64,
    pub holder: String,
    /// Counts renewals.
    pub beat: u64,
    pub ttl_seconds: f64,
}

impl Arbiter {
    pub fn read_lease(&self, write_domain: &str, epoch: u64) -> Result<Option<Lease>, ArbiterError> {
        self.read(&format!("leases/{write_domain}/{epoch}"))
    }
}

/// The holder's side.
#[derive(Debug, Clone)]
pub struct LeaseHeld {
    lease: Lease,
    renewed_at: Option<f64>,
}

impl LeaseHeld {
    /// Not held before the first renewal.
    pub fn new(write_domain: &str, epoch: u64, holder: &str, ttl_seconds: f64) -> LeaseHeld {
        let lease = Lease { write_domain: write_domain.into(), epoch, holder: holder.into(), beat: 0, ttl_seconds };
        LeaseHeld { lease, renewed_at: None }
    }

    /// Renews. Refused when the epoch is not the one in force any more, or when another holder renews the same one.
    pub fn renew(&mut self, arbiter: &Arbiter) -> Result<(), ArbiterError> {
        let asked_at = arbiter.clock().monotonic_seconds();
        let Lease { write_domain, epoch, holder, .. } = &self.lease.clone();
        let in_force = arbiter.current_epoch(write_domain)?.map_or(0, |claim| claim.epoch);
        if in_force != *epoch {
            self.renewed_at = None;
            return Err(ArbiterError::EpochMoved { write_domain: write_domain.clone(), wanted: *epoch, in_force });
        }
        let seen = arbiter.read_lease(write_domain, *epoch)?;
        if let Some(other) = seen.as_ref().filter(|seen| seen.holder != *holder) {
            self.renewed_at = None;
            return Err(ArbiterError::LeaseTaken {
                write_domain: write_domain.clone(),
                epoch: *epoch,
                holder: other.holder.clone(),
            });
        }
        self.lease.beat = self.lease.beat.max(seen.map_or(0, |seen| seen.beat)) + 1;
        arbiter.publish(&format!("leases/{write_domain}/{epoch}"), &self.lease)?;
        self.renewed_at = Some(asked_at);
        Ok(())
    }

    /// Whether the holder may still write, by its own monotonic clock.
    pub fn is_valid(&self, monotonic_seconds: f64) -> bool {
        self.renewed_at.is_some_and(|at| monotonic_seconds - at < self.lease.ttl_seconds)
    }
}

/// What an observer can say of a lease.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LeaseView {
    /// No renewal was ever seen, so nothing can be counted from.
    NeverSeen,
    /// The holder may still write for at most so long.
    MayBeLive { seconds: f64 },
    /// TTL and skew have passed since the last renewal was first seen.
    RunOut { seconds_ago: f64 },
}

/// The observer's side: feed it what is read, as often as one likes.
#[derive(Debug, Clone)]
pub struct LeaseObserver {
    skew_seconds: f64,
    seen: Option<(Lease, f64)>,
}

impl LeaseObserver {
    pub fn new(skew_seconds: f64) -> LeaseObserver {
        LeaseObserver { skew_seconds, seen: None }
    }

    /// `monotonic_seconds` must have been read *after* the lease was.
    pub fn observe(&mut self, lease: Option<Lease>, monotonic_seconds: f64) -> LeaseView {
        if let Some(lease) = lease {
            let known = self.seen.as_ref().is_some_and(|(seen, _)| *seen == lease);
            if !known {
                self.seen = Some((lease, monotonic_seconds));
            }
        }
        let Some((lease, since)) = &self.seen else { return LeaseView::NeverSeen };
        let ttl =
            if lease.ttl_seconds.is_finite() { lease.ttl_seconds.clamp(0.0, TTL_SECONDS_MAX) } else { TTL_SECONDS_MAX };
        let left = since + ttl + self.skew_seconds - monotonic_seconds;
        if left > 0.0 { LeaseView::MayBeLive { seconds: left } } else { LeaseView::RunOut { seconds_ago: -left } }
    }
}
