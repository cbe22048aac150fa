//! Fetches newer generations from the arbiter, forever, and puts the newest sound one of each name in force.
//!
//! Invariant: remembered durably first, answered with second; a poll that fails changes nothing.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lifeboat_core::desired::TrafficGeneration;
use lifeboat_engine::traffic::TrafficSource;

use super::Counters;
use super::durable::DurableZone;
use super::zone::{NotAccepted, Zones};

const REPORTED_MAX: usize = 4096;

#[derive(Clone)]
pub(super) struct Poller {
    pub(super) source: Arc<dyn TrafficSource>,
    pub(super) zones: Arc<Zones>,
    pub(super) durable: Arc<DurableZone>,
    pub(super) counters: Arc<Counters>,
    /// What was reported as not believed, so that it is said once. Held during a look: two never overlap.
    pub(super) reported: Arc<Mutex<BTreeSet<String>>>,
}

impl Poller {
    pub(super) async fn run(self, every: Duration) {
        let mut tick = tokio::time::interval(every);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut away = false;
        loop {
            tick.tick().await;
            match self.poll().await {
                Ok(()) if away => {
                    away = false;
                    tracing::info!("the arbiter's traffic generations can be read again");
                }
                Ok(()) => {}
                Err(why) if away => tracing::debug!(why, "still answering from the durable zone"),
                Err(why) => {
                    away = true;
                    tracing::warn!(why, "answering from the durable zone until this works again");
                }
            }
        }
    }

    /// One look at every name, in a thread of its own since storage blocks.
    pub(super) async fn poll(&self) -> Result<(), String> {
        let poller = self.clone();
        let looked = tokio::task::spawn_blocking(move || poller.look()).await;
        let result = looked.unwrap_or_else(|error| Err(error.to_string()));
        if result.is_err() {
            self.counters.polls_failed.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    fn look(&self) -> Result<(), String> {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.len() > REPORTED_MAX {
            reported.clear();
        }
        let mut first_failure = Ok(());
        for (name, known) in self.zones.generations() {
            let above = known.map_or(0, |(_, generation)| generation);
            match self.source.newer(&name, above) {
                Err(error) => first_failure = first_failure.and(Err(with_causes(&error))),
                Ok(newer) => {
                    for (object, why) in newer.rejected {
                        self.reject(&mut reported, &object, &why);
                    }
                    for generation in newer.generations {
                        match self.switch(&mut reported, &name, &generation) {
                            Ok(true) => break,
                            Ok(false) => {}
                            Err(why) => first_failure = first_failure.and(Err(why)),
                        }
                    }
                }
            }
        }
        first_failure
    }

    /// Whether the generation is in force now.
    fn switch(&self, reported: &mut BTreeSet<String>, name: &str, new: &TrafficGeneration) -> Result<bool, String> {
        let (epoch, generation) = (new.epoch, new.generation);
        let mismatch = (new.name != name).then(|| NotAccepted::OtherName(new.name.clone()));
        if let Some(why) = mismatch.or_else(|| self.zones.may_accept(new).err()) {
            self.reject(reported, &format!("generation {generation} (epoch {epoch}) of {name}"), &why.to_string());
            return Ok(false);
        }
        self.durable.remember(new).map_err(|error| {
            let why = with_causes(&error);
            tracing::error!(name, epoch, generation, why, "NOT in force: it cannot be remembered durably");
            why
        })?;
        if let Err(why) = self.zones.accept(new) {
            self.reject(reported, name, &why.to_string());
            return Ok(false);
        }
        self.counters.switches.fetch_add(1, Ordering::Relaxed);
        tracing::info!(name, epoch, generation, "in force");
        Ok(true)
    }

    fn reject(&self, reported: &mut BTreeSet<String>, object: &str, why: &str) {
        if !reported.insert(format!("{object}: {why}")) {
            return;
        }
        self.counters.rejected.fetch_add(1, Ordering::Relaxed);
        tracing::error!(object, why, "a traffic generation was NOT believed");
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
