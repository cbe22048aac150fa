//! The lease as a fence: what a writer's host has promised to the arbiter, and what its silence proves.
//!
//! Invariant: it is looked at only after the next epoch was claimed, from which on no renewal is given to the former
//! writer (`arbitrate::lease`). A lease that was never seen, or was withdrawn, proves nothing; an interrupted wait begins anew.

use std::sync::Arc;
use std::time::Duration;

use lifeboat_core::run::{Facts, Need};
use lifeboat_core::runbook::LeaseFence;
use serde_json::json;

use super::sites::LOOK_EVERY;
use super::{Failure, Performed, World};
use crate::arbitrate::{Lease, LeaseObserver, LeaseView};
use crate::port::Context;

/// How often the arbiter is read; a renewal that is seen late only makes the wait longer.
const READ_EVERY: Duration = Duration::from_millis(500);

/// What a site could not prove of itself.
pub(super) struct Unproven {
    /// What a person would have to confirm, in the site's own words.
    pub(super) statement: Option<String>,
    pub(super) why: String,
}

impl Unproven {
    pub(super) fn needs(self, site: &str, domain: &str, also: &str) -> Failure {
        let statement = self.statement.unwrap_or_else(|| {
            format!("I have seen at site `{site}` itself that nothing of `{domain}` runs there, and that it will not start again by itself")
        });
        Failure::Needs(Need::Attestation { statement, why: format!("{}{also}", self.why) })
    }
}

impl World {
    async fn lease(&self, site: &str, domain: &str, epoch: u64) -> Result<Option<Lease>, Failure> {
        let (arbiter, site, domain) = (Arc::clone(&self.arbiter), site.to_owned(), domain.to_owned());
        self.ask(move || Ok(arbiter.read_lease(&site, &domain, epoch)?)).await
    }

    /// Waits until the lease of the superseded epoch has run out since its last renewal was first seen here.
    pub(super) async fn fence_by_lease(
        &self,
        site: &str,
        domain: &str,
        lease: &LeaseFence,
        asked: Unproven,
        context: &Context,
    ) -> Result<Performed, Failure> {
        let (ttl, skew) = (lease.ttl.as_seconds(), lease.skew.as_seconds());
        let mut observer = LeaseObserver::new(skew).at_least(ttl);
        let begun = self.clock.monotonic_seconds();
        loop {
            let read = match self.lease(site, domain, lease.epoch).await {
                Ok(read) => read,
                // Since the claim nothing is renewed, seen or not: what was seen goes on running out.
                Err(Failure::Failed { error, may_pass: true }) => {
                    self.look_again(context, &format!("the lease of `{domain}` at {site}: {error}")).await?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let waited = self.clock.monotonic_seconds() - begun;
            match observer.observe(read, self.clock.monotonic_seconds()) {
                LeaseView::NeverSeen => {
                    let withdrawn = observer.seen().is_some_and(|lease| lease.withdrawn);
                    let also = match withdrawn {
                        true => format!("; its lease under epoch {} was withdrawn", lease.epoch),
                        false => format!("; and its host never held a lease under epoch {}", lease.epoch),
                    };
                    return Err(asked.needs(site, domain, &also));
                }
                LeaseView::RunOut { .. } => {
                    return Ok(proven(site, domain, lease, &asked.why, observer.seen(), waited));
                }
                // The claim stops renewals: who goes on renews against the rules, and may write as well.
                LeaseView::MayBeLive { .. } if waited > (ttl + skew) * 1.5 + 5.0 && keeps_on(&observer, ttl) => {
                    return Err(asked.needs(site, domain, "; and its lease is renewed in spite of the claim"));
                }
                LeaseView::MayBeLive { seconds } => {
                    let seen = format!(
                        "{site} cannot prove it ({}); waiting {seconds:.0} s more for its lease of `{domain}` to run out",
                        asked.why
                    );
                    self.look_again(context, &seen).await?;
                    tokio::time::sleep(READ_EVERY.saturating_sub(LOOK_EVERY)).await;
                }
            }
        }
    }

    /// Waits until a renewal is seen that was not there before: what lies there may be of a host that is gone.
    pub(super) async fn await_lease(
        &self,
        site: &str,
        domain: &str,
        epoch: u64,
        context: &Context,
    ) -> Result<Performed, Failure> {
        let first = self.lease(site, domain, epoch).await?;
        loop {
            let now = self.lease(site, domain, epoch).await?;
            if let Some(lease) = now.as_ref().filter(|lease| !lease.withdrawn && now != first) {
                let facts = Facts::from([
                    ("holder".to_owned(), json!(lease.holder)),
                    ("epoch".to_owned(), json!(epoch)),
                    ("ttl_seconds".to_owned(), json!(lease.ttl_seconds)),
                ]);
                return Ok(Performed::new("held", facts));
            }
            let seen = format!(
                "{site}: its host does not renew the lease of `{domain}` under epoch {epoch}; see that lifeboat protect runs there with this plan"
            );
            self.look_again(context, &seen).await?;
        }
    }
}

/// Whether the holder says of itself that it would have run out by now.
fn keeps_on(observer: &LeaseObserver, ttl: f64) -> bool {
    observer.seen().is_some_and(|lease| lease.ttl_seconds <= ttl)
}

fn proven(site: &str, domain: &str, fence: &LeaseFence, why: &str, seen: Option<&Lease>, waited: f64) -> Performed {
    let ttl = seen.map_or(0.0, |lease| lease.ttl_seconds).max(fence.ttl.as_seconds());
    let proof = format!(
        "the lease of `{domain}` at site `{site}` under epoch {} has run out: for {waited:.1} s after epoch {} was superseded it was          not renewed (its time is {ttl} s, and {} for clocks), and the watchdog beside the writer stops it before that;          the site itself could not be asked: {why}",
        fence.epoch, fence.epoch, fence.skew
    );
    let facts = Facts::from([
        ("proof".to_owned(), json!(proof)),
        ("proven_by".to_owned(), json!("lease")),
        ("lease_epoch".to_owned(), json!(fence.epoch)),
        ("lease_holder".to_owned(), json!(seen.map(|lease| &lease.holder))),
        ("lease_beat".to_owned(), json!(seen.map(|lease| lease.beat))),
        ("lease_ttl_seconds".to_owned(), json!(ttl)),
        ("skew_seconds".to_owned(), json!(fence.skew.as_seconds())),
        ("waited_seconds".to_owned(), json!(waited)),
    ]);
    // Not `proven`: the site itself has not answered, and what asks more of it is not worth a try.
    Performed::new("run-out", facts)
}
