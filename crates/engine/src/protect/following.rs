//! A standby that follows whichever of its vaults leads furthest.
//!
//! Invariant: it never goes back, whatever vault it turns to, and it is promoted only after every vault that answers was
//! asked for more, or one has said that nothing follows.

use std::collections::BTreeMap;
use std::time::Duration;

use lifeboat_vault::Unlocked;

use super::data::HostData;
use crate::execute::with_cause;
use crate::port::{Applied, Cancel, DataAgent, DataStatus, FollowRequest, Order, Orders, PortError, Standby};

/// How often to look for what is new.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A vault that had nothing new for so long may have been left behind by the others.
const STILL_SECONDS: f64 = 3.0;

pub(super) struct Following<'a> {
    data: &'a HostData,
    adopt: bool,
    /// Opened once: what was read of a vault is remembered there.
    vaults: BTreeMap<String, Unlocked>,
    /// Which of the vaults is followed, by its place in the plan.
    current: usize,
    standby: Option<Box<dyn Standby>>,
    last: Option<Applied>,
    progress_at_seconds: f64,
    /// Which site writes, while that site is to be followed.
    writer: Option<String>,
}

impl<'a> Following<'a> {
    pub(super) fn new(data: &'a HostData, adopt: bool) -> Following<'a> {
        let progress_at_seconds = data.clock.monotonic_seconds();
        Following {
            data,
            adopt,
            vaults: BTreeMap::new(),
            current: 0,
            standby: None,
            last: None,
            progress_at_seconds,
            writer: None,
        }
    }

    pub(super) fn run(mut self, orders: &Orders, tell: &dyn Fn(DataStatus)) -> Result<(), PortError> {
        let cancel = orders.stopper();
        loop {
            match orders.now() {
                Order::Go => {
                    self.writer = orders.writer();
                    let mut status = status(&self.apply(&cancel)?);
                    status.problem = self.stray();
                    tell(status);
                }
                Order::Stop => return Ok(()),
                Order::Finish => {
                    tell(status(&self.promote(&cancel)?));
                    return Ok(());
                }
            }
            orders.wait(LOOK_EVERY);
        }
    }

    /// What has come into the place that the copy is for.
    fn stray(&self) -> Option<String> {
        let path = self.data.path.display();
        self.data.has_volume().then(|| {
            format!("something lies at {path}, where this standby's copy belongs once it is promoted; move it away")
        })
    }

    /// Applies what is new, from the next vault that works if this one does not, or has long had nothing.
    fn apply(&mut self, cancel: &Cancel) -> Result<Applied, PortError> {
        let now = self.data.clock.monotonic_seconds();
        if now - self.progress_at_seconds > STILL_SECONDS && self.data.protect.len() > 1 {
            self.turn();
            self.progress_at_seconds = now;
        }
        let mut failures = Vec::new();
        for _ in &self.data.protect {
            match self.apply_here(cancel) {
                Ok(applied) => return Ok(applied),
                Err(error) if cancel.is_cancelled() => return Err(error),
                Err(error) => {
                    failures.push(error);
                    self.standby = None;
                    self.turn();
                }
            }
        }
        Err(self.none_works(failures))
    }

    fn apply_here(&mut self, cancel: &Cancel) -> Result<Applied, PortError> {
        let from = self.writer.as_ref().and_then(|writer| self.data.via.get(writer));
        let standby = self.standby()?;
        standby.stream_from(from);
        let applied = standby.apply(cancel)?;
        let moved = |last: &Applied| (last.applied_to, last.epoch) != (applied.applied_to, applied.epoch);
        if self.last.as_ref().is_none_or(moved) {
            self.progress_at_seconds = self.data.clock.monotonic_seconds();
        }
        self.last = Some(applied.clone());
        Ok(applied)
    }

    /// Asks every vault for what is new, and promotes with one that works.
    fn promote(&mut self, cancel: &Cancel) -> Result<Applied, PortError> {
        // Who takes over hears no former writer any more.
        self.writer = None;
        let has_all = self.standby.is_some() && self.last.as_ref().is_some_and(|last| last.is_final);
        if !has_all {
            self.ask_all(cancel)?;
        }
        let promoted = self.standby()?.promote(cancel);
        if promoted.is_err() {
            // The next time begins with all vaults.
            (self.standby, self.last) = (None, None);
        }
        promoted
    }

    /// Applies what any vault has, and stays with one that works.
    fn ask_all(&mut self, cancel: &Cancel) -> Result<(), PortError> {
        let mut failures = Vec::new();
        let mut works = None;
        for _ in &self.data.protect {
            self.turn();
            match self.apply_here(cancel) {
                Ok(_) => works = Some(self.current),
                Err(error) => {
                    tracing::warn!("{}: promoted without it: {}", self.data.dataset, with_cause(&error));
                    self.standby = None;
                    failures.push(error);
                }
            }
        }
        let Some(works) = works else { return Err(self.none_works(failures)) };
        if works != self.current {
            (self.current, self.standby) = (works, None);
        }
        Ok(())
    }

    /// Turns to the next vault.
    fn turn(&mut self) {
        let next = (self.current + 1) % self.data.protect.len().max(1);
        if next != self.current {
            (self.current, self.standby) = (next, None);
        }
    }

    fn standby(&mut self) -> Result<&mut Box<dyn Standby>, PortError> {
        let standby = match self.standby.take() {
            Some(standby) => standby,
            None => self.open()?,
        };
        Ok(self.standby.insert(standby))
    }

    fn open(&mut self) -> Result<Box<dyn Standby>, PortError> {
        let data = self.data;
        let name = data.protect.get(self.current).map(|protect| protect.to.as_str()).unwrap_or_default();
        let place = data.vaults.get(name).ok_or_else(|| PortError::new(format!("the plan has no vault `{name}`")))?;
        let vault = match self.vaults.get(name) {
            Some(vault) => vault.clone(),
            None => {
                let vault = place.unlocked(&data.identities)?;
                self.vaults.insert(name.to_owned(), vault.clone());
                vault
            }
        };
        let request = FollowRequest { dataset: data.dataset.clone(), to: data.path.clone(), adopt: self.adopt };
        data.restorer.follow(&vault, &request)
    }

    fn none_works(&self, failures: Vec<PortError>) -> PortError {
        let said: Vec<String> = failures.iter().map(|error| with_cause(error)).collect();
        PortError::may_pass(format!("no vault of `{}` can be followed: {}", self.data.dataset, said.join("; ")))
    }
}

fn status(applied: &Applied) -> DataStatus {
    DataStatus {
        position: applied.position.clone().or_else(|| applied.point.clone()),
        applied: applied.applied_to,
        applied_epoch: applied.epoch,
        complete: applied.is_final,
        streams: applied.streams.clone(),
        came: applied.came.clone(),
        ..DataStatus::default()
    }
}
