//! The agent on a host: it writes where its site is the writer, follows where it is not, and reports what it does.
//!
//! Invariant: it acts on what is published in the arbiter's storage and on nothing else; nobody calls it. While the
//! arbiter cannot be read it goes on with what it was told last.
//!
//! ```text
//!   desired/DOMAIN/N ──▶ Domain (polls) ──▶ one Task a data set ──▶ DataAgent (threads)
//!                                                └──▶ agents/SITE/DATASET
//! ```

pub mod data;
mod following;
mod lease;
#[cfg(test)]
mod lease_tests;
pub mod role;
mod task;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lifeboat_core::desired::{DesiredWriter, TrafficAnswer};
use tokio::sync::watch;

use crate::arbitrate::{Arbiter, ArbiterError, Claim};
use crate::port::{Cancel, Clock, DataAgent};
pub use lease::{DomainLease, Watchdog};
use lease::{Holder, LeaseProblem};
use role::{Orders, decide};
use task::Task;

/// One write domain, as the host of one site serves it.
pub struct Domain {
    pub site: String,
    pub first_day: FirstDay,
    pub data: Vec<Arc<dyn DataAgent>>,
    pub arbiter: Arc<Arbiter>,
    pub clock: Arc<dyn Clock>,
    /// A directory of this host's for what it did.
    pub state: PathBuf,
    pub poll: Duration,
    /// None where nothing here could hold one.
    pub lease: Option<DomainLease>,
}

impl std::fmt::Debug for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Domain")
            .field("site", &self.site)
            .field("write_domain", &self.first_day.write_domain)
            .finish_non_exhaustive()
    }
}

/// What holds when nobody has ever been named: the plan's primary writes, and the service's name points to it.
#[derive(Debug, Clone)]
pub struct FirstDay {
    pub write_domain: String,
    pub writer: String,
    pub traffic: Option<FirstTraffic>,
}

#[derive(Debug, Clone)]
pub struct FirstTraffic {
    pub name: String,
    pub ttl_seconds: u32,
    pub answers: Vec<TrafficAnswer>,
}

impl FirstDay {
    /// The first that may write does so under this one.
    pub const EPOCH: u64 = 1;

    /// Publishes it all; what is published already stays. Blocks.
    pub fn begin(&self, arbiter: &Arbiter, clock: &dyn Clock, run: &str) -> Result<DesiredWriter, ArbiterError> {
        let claim = Claim {
            write_domain: self.write_domain.clone(),
            epoch: Self::EPOCH,
            primary: self.writer.clone(),
            run: run.to_owned(),
            at: clock.now().to_string(),
            planned: false,
        };
        if arbiter.current_epoch(&claim.write_domain)?.is_none() {
            arbiter.claim_epoch(&claim)?;
        }
        if let Some(traffic) = &self.traffic
            && arbiter.traffic(&traffic.name)?.is_none()
        {
            arbiter.publish_traffic(&traffic.name, 1, traffic.ttl_seconds, &traffic.answers)?;
        }
        match arbiter.desired_writer(&claim.write_domain)? {
            Some(desired) => Ok(desired),
            None => arbiter.publish_writer(&claim.write_domain, Self::EPOCH, &claim.primary, false),
        }
    }
}

impl Domain {
    /// Serves the domain until cancelled; then stops what it began.
    pub async fn serve(self, cancel: Cancel) {
        let (orders, watched) = watch::channel::<Option<Orders>>(None);
        let problem = LeaseProblem::default();
        let holder = self.lease.clone().map(|lease| {
            let holder = Holder::new(&self, lease, Arc::clone(&problem));
            tokio::spawn(holder.keep(watched.clone(), cancel.clone()))
        });
        let tasks: Vec<_> = self
            .data
            .iter()
            .map(|data| {
                let task = Task::new(&self, Arc::clone(data), Arc::clone(&problem));
                tokio::spawn(task.serve(watched.clone(), cancel.clone()))
            })
            .collect();
        drop(watched);
        let mut told = String::new();
        while !cancel.is_cancelled() {
            match self.look().await {
                Ok(found) => {
                    told.clear();
                    orders.send_if_modified(|known| {
                        // Generations only go up; an older one is a storage that went back.
                        let newer = known
                            .as_ref()
                            .is_none_or(|known| (found.epoch, found.generation) > (known.epoch, known.generation));
                        if newer {
                            *known = Some(found);
                        }
                        newer
                    });
                }
                Err(error) => {
                    let error = crate::execute::with_cause(&error);
                    if error != told {
                        tracing::warn!("{}: going on as told last: {error}", self.first_day.write_domain);
                        told = error;
                    }
                }
            }
            tokio::time::sleep(self.poll).await;
        }
        for task in tasks.into_iter().chain(holder) {
            if let Err(error) = task.await {
                tracing::error!("{}: a task died: {error}", self.first_day.write_domain);
            }
        }
    }

    /// What is published; the first time ever, the plan's primary publishes itself.
    async fn look(&self) -> Result<Orders, ArbiterError> {
        let arbiter = Arc::clone(&self.arbiter);
        let domain = self.first_day.write_domain.clone();
        let desired = blocking(move || arbiter.desired_writer(&domain)).await?;
        let desired = match desired {
            Some(desired) => desired,
            None => self.begin().await?,
        };
        Ok(decide(&self.site, &desired))
    }

    async fn begin(&self) -> Result<DesiredWriter, ArbiterError> {
        if self.site != self.first_day.writer {
            return Ok(DesiredWriter {
                write_domain: self.first_day.write_domain.clone(),
                generation: 0,
                epoch: 0,
                primary: self.first_day.writer.clone(),
                frozen: true,
                at: self.clock.now().to_string(),
            });
        }
        let (first_day, arbiter, clock) = (self.first_day.clone(), Arc::clone(&self.arbiter), Arc::clone(&self.clock));
        blocking(move || first_day.begin(&arbiter, &*clock, "protect")).await
    }
}

/// Runs what blocks on a thread of its own; a thread that dies takes its caller with it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(died) => std::panic::resume_unwind(died.into_panic()),
    }
}
