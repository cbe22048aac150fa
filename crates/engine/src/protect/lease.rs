//! The lease of a writer, as its host holds it: renewed in the arbiter, and guarded by a watchdog that is not this process.
//!
//! Invariant: a lease is seen by nobody before a watchdog guards the writer; a deadline moves on only after a renewal, and
//! is counted from before that was asked for; without a watchdog that answers nothing is renewed. What has run out is
//! stopped, and proven to be, before it is held again.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lifeboat_core::lease;
use lifeboat_core::units::Span;
use tokio::sync::watch;

use super::role::{Duty, Orders};
use super::{Domain, blocking};
use crate::arbitrate::{Arbiter, ArbiterError, LeaseHeld};
use crate::execute::with_cause;
use crate::port::{Cancel, PortError};

/// What stops the writer at this host when its lease is not renewed in time, whatever becomes of who renews it; and lets it
/// go on when the lease is held again. All of it blocks.
pub trait Watchdog: Send + Sync {
    /// Seconds of a clock that goes on while the machine sleeps.
    fn now(&self) -> f64;
    /// The writer is stopped at `until` unless a later time is told first. `Ok`: it answered that it does so. `renewed`: the
    /// lease is held until then, so what guarded here before is not needed any more.
    fn guard(&self, epoch: u64, until: f64, renewed: bool) -> Result<(), PortError>;
    /// The epoch under which a writer was guarded here last, unless nothing is to be guarded any more.
    fn guarded(&self) -> Option<u64>;
    /// Stops the writer now and blocks its start. `Ok`: both are proven.
    fn stop(&self, epoch: u64, why: &str) -> Result<(), PortError>;
    /// When and why the writer was stopped, if it was not started again since.
    fn stopped(&self) -> Option<String>;
    /// Lets the writer start again, and starts what was stopped.
    fn resume(&self, epoch: u64) -> Result<(), PortError>;
    /// Nothing is to be guarded here any more.
    fn rest(&self) -> Result<(), PortError>;
}

/// How a write domain's lease is held at this host.
#[derive(Clone)]
pub struct DomainLease {
    /// None: the plan asks for none, and what was held under an earlier plan is given up.
    pub ttl: Option<Span>,
    /// Which host this is.
    pub holder: String,
    pub watchdog: Arc<dyn Watchdog>,
}

impl std::fmt::Debug for DomainLease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DomainLease").field("ttl", &self.ttl).field("holder", &self.holder).finish_non_exhaustive()
    }
}

/// What stands in this host's reports of a lease; empty where all is well.
pub(super) type LeaseProblem = Arc<Mutex<Option<String>>>;

pub(super) struct Holder {
    site: String,
    write_domain: String,
    lease: DomainLease,
    arbiter: Arc<Arbiter>,
    held: Option<LeaseHeld>,
    /// By the watchdog's clock.
    renewed_at: Option<f64>,
    guarded_until: Option<f64>,
    begun: bool,
    problem: LeaseProblem,
}

/// What is to be done after one look.
#[derive(Debug, PartialEq)]
pub(super) struct Next {
    pub(super) pause: Duration,
    /// The lease is held again under this epoch: what was stopped may start.
    pub(super) resume: Option<u64>,
}

impl Holder {
    pub(super) fn new(domain: &Domain, lease: DomainLease, problem: LeaseProblem) -> Holder {
        let (site, write_domain) = (&domain.site, &domain.first_day.write_domain);
        Holder::of(site, write_domain, Arc::clone(&domain.arbiter), lease, problem)
    }

    pub(super) fn of(
        site: &str,
        write_domain: &str,
        arbiter: Arc<Arbiter>,
        lease: DomainLease,
        problem: LeaseProblem,
    ) -> Holder {
        Holder {
            site: site.to_owned(),
            write_domain: write_domain.to_owned(),
            lease,
            arbiter,
            held: None,
            renewed_at: None,
            guarded_until: None,
            begun: false,
            problem,
        }
    }

    /// Until cancelled. The watchdog stays: who comes next takes over from it in time, or it stops the writer.
    pub(super) async fn keep(mut self, orders: watch::Receiver<Option<Orders>>, cancel: Cancel) {
        let mut resuming: Option<tokio::task::JoinHandle<Result<(), PortError>>> = None;
        while !cancel.is_cancelled() {
            let now = orders.borrow().clone();
            let (holder, next) = blocking(move || {
                let next = self.look(now.as_ref());
                (self, next)
            })
            .await;
            self = holder;
            if let Some(done) = resuming.take_if(|resuming| resuming.is_finished())
                && let Ok(Err(error)) = done.await
            {
                self.tell(&format!("the writer may start again, and does not: {}", with_cause(&error)));
            }
            if let Some(epoch) = next.resume
                && resuming.is_none()
            {
                let watchdog = Arc::clone(&self.lease.watchdog);
                resuming = Some(tokio::task::spawn_blocking(move || watchdog.resume(epoch)));
            }
            tokio::time::sleep(next.pause).await;
        }
    }

    /// One look at what is asked of this host, and all that follows from it.
    pub(super) fn look(&mut self, orders: Option<&Orders>) -> Next {
        let Some(ttl) = self.lease.ttl else { return self.give_up(orders) };
        let pause = (ttl.0 / 12).min(Duration::from_secs(1));
        let resume = match self.look_within(ttl, orders) {
            Ok(resume) => resume,
            Err(problem) => {
                self.tell(&match self.lease.watchdog.stopped() {
                    Some(stopped) => format!("{stopped}; {problem}"),
                    None => problem,
                });
                None
            }
        };
        Next { pause, resume }
    }

    fn look_within(&mut self, ttl: Span, orders: Option<&Orders>) -> Result<Option<u64>, String> {
        if !self.begun {
            // Whoever guarded for an agent that is gone acts by itself; if that is gone, too, somebody must.
            if let Some(epoch) = self.lease.watchdog.guarded() {
                self.guard_anew(epoch, ttl)?;
            }
            self.begun = true;
        }
        match orders {
            None => Ok(None),
            Some(orders) if orders.writer == self.site => self.hold(ttl, orders),
            Some(_) => self.let_go().map(|()| None),
        }
    }

    fn guard_anew(&mut self, epoch: u64, ttl: Span) -> Result<(), String> {
        let until = self.lease.watchdog.now() + lease::stop_after(ttl).as_seconds();
        self.guarded_until = Some(until);
        self.lease.watchdog.guard(epoch, until, false).map_err(no_watchdog)
    }

    fn hold(&mut self, ttl: Span, orders: &Orders) -> Result<Option<u64>, String> {
        let epoch = orders.epoch;
        if let Some(until) = self.guarded_until.filter(|until| self.lease.watchdog.now() >= *until) {
            return self.run_out(ttl, epoch, until).map(|()| None);
        }
        let held = self.held.take().filter(|held| held.epoch() == epoch);
        let mut held = held.unwrap_or_else(|| {
            self.renewed_at = None;
            LeaseHeld::new(&self.site, &self.write_domain, epoch, &self.lease.holder, ttl.as_seconds())
        });
        let renewed = self.hold_by(&mut held, ttl, epoch);
        self.held = Some(held);
        renewed?;
        let may_start = matches!(orders.duty, Duty::Write { .. }) && self.lease.watchdog.stopped().is_some();
        Ok(may_start.then_some(epoch))
    }

    fn hold_by(&mut self, held: &mut LeaseHeld, ttl: Span, epoch: u64) -> Result<(), String> {
        match self.guarded_until {
            // It answers, or another one is put in its place; before that nothing is renewed.
            Some(until) => self.lease.watchdog.guard(epoch, until, false).map_err(no_watchdog)?,
            // Nothing begins, or begins again, while the arbiter is away or would refuse.
            None => {
                held.check_epoch(&self.arbiter).map_err(|error| not_renewed(&error))?;
                self.guard_anew(epoch, ttl)?;
            }
        }
        let now = self.lease.watchdog.now();
        if self.renewed_at.is_none_or(|at| now - at >= lease::renew_every(ttl).as_seconds()) {
            self.renew(held, ttl, epoch, now)?;
        }
        Ok(())
    }

    fn renew(&mut self, held: &mut LeaseHeld, ttl: Span, epoch: u64, asked_at: f64) -> Result<(), String> {
        match held.renew(&self.arbiter) {
            Ok(()) => {}
            Err(error @ ArbiterError::EpochMoved { .. }) => {
                self.renewed_at = None;
                self.stop(epoch, &format!("its lease is not renewed any more: {error}"))?;
                return Err(not_renewed(&error));
            }
            Err(error) => return Err(not_renewed(&error)),
        }
        if self.guarded_until.is_some_and(|until| self.lease.watchdog.now() >= until) {
            return Err("the arbiter answered too late: the writer is being stopped".into());
        }
        let until = asked_at + lease::stop_after(ttl).as_seconds();
        self.lease.watchdog.guard(epoch, until, true).map_err(no_watchdog)?;
        (self.guarded_until, self.renewed_at) = (Some(until), Some(asked_at));
        let stopped = self.lease.watchdog.stopped();
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = stopped;
        Ok(())
    }

    /// The watchdog stops the writer now. That it has is looked at here, too, and done if it has not.
    fn run_out(&mut self, ttl: Span, epoch: u64, until: f64) -> Result<(), String> {
        if self.lease.watchdog.now() < until + ttl.as_seconds() / 12.0 {
            return Ok(());
        }
        self.renewed_at = None;
        self.stop(epoch, &format!("its lease could not be renewed for {}", lease::stop_after(ttl)))
    }

    fn stop(&mut self, epoch: u64, why: &str) -> Result<(), String> {
        let stopped = self.lease.watchdog.stop(epoch, why);
        stopped.map_err(|error| format!("the writer cannot be proven to have stopped: {}", with_cause(&error)))?;
        self.guarded_until = None;
        Ok(())
    }

    /// Another site writes: nothing may be left here that does.
    fn let_go(&mut self) -> Result<(), String> {
        self.held = None;
        let Some(epoch) = self.lease.watchdog.guarded() else { return Ok(()) };
        self.stop(epoch, "another site writes")?;
        self.lease.watchdog.rest().map_err(|error| with_cause(&error))?;
        self.renewed_at = None;
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    /// The plan asks for no lease any more. The arbiter is told before the watchdog goes: who waits for a lease that
    /// nobody guards would believe it to have run out.
    fn give_up(&mut self, orders: Option<&Orders>) -> Next {
        let next = Next { pause: Duration::from_secs(1), resume: None };
        let (Some(orders), Some(epoch)) = (orders, self.lease.watchdog.guarded()) else { return next };
        let ended = if orders.writer == self.site {
            let withdrawn = self.arbiter.withdraw_lease(&self.site, &self.write_domain, epoch);
            withdrawn
                .and_then(|()| self.arbiter.withdraw_lease(&self.site, &self.write_domain, orders.epoch))
                .map_err(|error| with_cause(&error))
                .and_then(|()| self.lease.watchdog.rest().map_err(|error| with_cause(&error)))
        } else {
            self.let_go()
        };
        if let Err(error) = ended {
            self.tell(&format!("a lease of an earlier plan cannot be given up: {error}"));
        }
        next
    }

    fn tell(&self, problem: &str) {
        let mut known = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_deref() != Some(problem) {
            tracing::warn!("{} at {}: {problem}", self.write_domain, self.site);
            *known = Some(problem.to_owned());
        }
    }
}

fn no_watchdog(error: PortError) -> String {
    format!("the lease is not renewed, for no watchdog guards the writer: {}", with_cause(&error))
}

fn not_renewed(error: &ArbiterError) -> String {
    format!("the lease is not renewed: {}", error.with_cause())
}
