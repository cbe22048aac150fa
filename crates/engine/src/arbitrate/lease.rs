//! Leases: how a writer shows that it is still there, and how others know that it cannot write any more.
//!
//! Invariant: no wall clock is compared between machines. The holder counts its TTL from *before* it asked for a
//! renewal; an observer counts TTL plus skew from when it *first saw* that renewal; so whatever the clocks and delays,
//! the holder stops first. An observer looks only after the next epoch was claimed, and the holder reads the epoch after
//! it began to ask: a renewal that comes to light later still was asked for before the claim, and runs out with the rest.

use lifeboat_core::lease;
use serde::{Deserialize, Serialize};

use super::board::{Arbiter, ArbiterError};
use super::epoch::Claim;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lease {
    pub site: String,
    pub write_domain: String,
    pub epoch: u64,
    /// Which host of the site.
    pub holder: String,
    /// Counts renewals.
    pub beat: u64,
    pub ttl_seconds: f64,
    /// The writer goes on without a lease: that none is renewed proves nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub withdrawn: bool,
}

fn key(site: &str, write_domain: &str, epoch: u64) -> String {
    format!("leases/{site}/{write_domain}/{epoch}")
}

impl Arbiter {
    pub fn read_lease(&self, site: &str, write_domain: &str, epoch: u64) -> Result<Option<Lease>, ArbiterError> {
        self.read(&key(site, write_domain, epoch))
    }

    /// Says of a lease that was held here that none is any more, though the writer goes on.
    pub fn withdraw_lease(&self, site: &str, write_domain: &str, epoch: u64) -> Result<(), ArbiterError> {
        match self.read_lease(site, write_domain, epoch)? {
            Some(lease) if !lease.withdrawn => {
                let lease = Lease { beat: lease.beat + 1, withdrawn: true, ..lease };
                self.publish(&key(site, write_domain, epoch), &lease)
            }
            _ => Ok(()),
        }
    }
}

/// The holder's side.
#[derive(Debug, Clone)]
pub struct LeaseHeld {
    lease: Lease,
    renewed_at: Option<f64>,
    /// Another host of the site that held it before.
    other: LeaseObserver,
}

impl LeaseHeld {
    /// Not held before the first renewal.
    pub fn new(site: &str, write_domain: &str, epoch: u64, holder: &str, ttl_seconds: f64) -> LeaseHeld {
        let lease = Lease {
            site: site.into(),
            write_domain: write_domain.into(),
            epoch,
            holder: holder.into(),
            beat: 0,
            ttl_seconds,
            withdrawn: false,
        };
        let skew = std::time::Duration::try_from_secs_f64(ttl_seconds).map_or(lease::TTL_MAX.0, |ttl| ttl / 10);
        LeaseHeld { lease, renewed_at: None, other: LeaseObserver::new(skew.as_secs_f64().max(1.0)) }
    }

    pub fn epoch(&self) -> u64 {
        self.lease.epoch
    }

    /// Renews. Refused when the epoch is not the one in force any more, unless the run that claimed the next one still
    /// lets this writer go on; and while another host of the site may hold it.
    pub fn renew(&mut self, arbiter: &Arbiter) -> Result<(), ArbiterError> {
        let asked_at = arbiter.clock().monotonic_seconds();
        let Lease { site, write_domain, epoch, holder, .. } = &self.lease.clone();
        if let Err(error) = self.check_epoch(arbiter) {
            if matches!(error, ArbiterError::EpochMoved { .. }) {
                self.renewed_at = None;
            }
            return Err(error);
        }
        let seen = arbiter.read_lease(site, write_domain, *epoch)?;
        if let Some(other) = seen.as_ref().filter(|seen| seen.holder != *holder && !seen.withdrawn) {
            let view = self.other.observe(Some(other.clone()), arbiter.clock().monotonic_seconds());
            if !matches!(view, LeaseView::RunOut { .. }) {
                self.renewed_at = None;
                return Err(ArbiterError::LeaseTaken {
                    write_domain: write_domain.clone(),
                    epoch: *epoch,
                    holder: other.holder.clone(),
                });
            }
        }
        self.lease.beat = self.lease.beat.max(seen.map_or(0, |seen| seen.beat)) + 1;
        arbiter.publish(&key(site, write_domain, *epoch), &self.lease)?;
        self.renewed_at = Some(asked_at);
        Ok(())
    }

    /// Whether a renewal would be refused for its epoch now.
    pub(crate) fn check_epoch(&self, arbiter: &Arbiter) -> Result<(), ArbiterError> {
        let Lease { write_domain, epoch, .. } = &self.lease;
        match self.superseded_by(arbiter)? {
            None => Ok(()),
            Some(in_force) => {
                Err(ArbiterError::EpochMoved { write_domain: write_domain.clone(), wanted: *epoch, in_force })
            }
        }
    }

    /// The epoch under which somebody else may write, or is about to.
    fn superseded_by(&self, arbiter: &Arbiter) -> Result<Option<u64>, ArbiterError> {
        let Lease { site, write_domain, epoch, .. } = &self.lease;
        match arbiter.current_epoch(write_domain)? {
            Some(Claim { epoch: claimed, .. }) if claimed == *epoch => {}
            Some(Claim { epoch: claimed, planned: true, .. }) if claimed > *epoch => {}
            other => return Ok(Some(other.map_or(0, |claim| claim.epoch))),
        }
        let desired = arbiter.desired_writer(write_domain)?;
        let moved = desired.filter(|desired| desired.primary != *site || desired.epoch != *epoch);
        Ok(moved.map(|desired| desired.epoch))
    }

    /// Whether the holder may still write, by its own monotonic clock.
    pub fn is_valid(&self, monotonic_seconds: f64) -> bool {
        self.renewed_at.is_some_and(|at| monotonic_seconds - at < self.lease.ttl_seconds)
    }
}

/// What an observer can say of a lease.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LeaseView {
    /// No renewal was ever seen, or it was withdrawn: nothing can be counted from.
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
    ttl_seconds_min: f64,
    seen: Option<(Lease, f64)>,
}

impl LeaseObserver {
    pub fn new(skew_seconds: f64) -> LeaseObserver {
        LeaseObserver { skew_seconds, ttl_seconds_min: 0.0, seen: None }
    }

    /// Waits for so long at least, whatever the holder says of its TTL.
    pub fn at_least(self, ttl_seconds: f64) -> LeaseObserver {
        LeaseObserver { ttl_seconds_min: ttl_seconds.max(0.0), ..self }
    }

    /// The renewal that was seen last.
    pub fn seen(&self) -> Option<&Lease> {
        self.seen.as_ref().map(|(lease, _)| lease)
    }

    /// `monotonic_seconds` must have been read *after* the lease was.
    pub fn observe(&mut self, lease: Option<Lease>, monotonic_seconds: f64) -> LeaseView {
        if let Some(lease) = lease {
            let known = self.seen.as_ref().is_some_and(|(seen, _)| *seen == lease);
            if !known {
                self.seen = Some((lease, monotonic_seconds));
            }
        }
        let Some((lease, since)) = self.seen.as_ref().filter(|(lease, _)| !lease.withdrawn) else {
            return LeaseView::NeverSeen;
        };
        let most = lease::TTL_MAX.as_seconds();
        let ttl = if lease.ttl_seconds.is_finite() { lease.ttl_seconds.clamp(0.0, most) } else { most };
        let left = since + ttl.max(self.ttl_seconds_min) + self.skew_seconds - monotonic_seconds;
        if left > 0.0 { LeaseView::MayBeLive { seconds: left } } else { LeaseView::RunOut { seconds_ago: -left } }
    }
}
