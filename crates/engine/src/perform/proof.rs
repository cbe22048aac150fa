//! Actions that send traffic and prove the service: generations, health and canaries, all through the service's own name.
//!
//! Invariant: what is reported was asked of the running service in this step; nothing is carried over from before.

use jiff::Timestamp;
use lifeboat_core::desired::TrafficAnswer;
use lifeboat_core::plan::{Health, HttpExchange};
use lifeboat_core::run::Facts;
use serde_json::json;

use super::{Failure, Performed, World};
use crate::arbitrate::{Arbiter, CanaryRecord};
use crate::canary;
use crate::port::{Context, ServiceDoor};

impl World {
    /// Publishes where a name points and waits until its authority answers with that.
    pub(super) async fn set_traffic(
        &self,
        board: &Arbiter,
        name: &str,
        authority: &str,
        ttl_seconds: u32,
        answers: &[TrafficAnswer],
        context: &Context,
    ) -> Result<Performed, Failure> {
        let published = board.publish_traffic(name, context.epoch, ttl_seconds, answers)?;
        let generation = published.generation;
        loop {
            match self.probe.traffic(name, authority).await {
                Ok(force) if force.epoch >= context.epoch && force.generation >= generation => break,
                Ok(force) => {
                    let seen = format!("{authority} still answers {name} with generation {}", force.generation);
                    self.look_again(context, &seen).await?;
                }
                Err(seen) => self.look_again(context, &format!("{authority}: {seen}")).await?,
            }
        }
        let addresses: Vec<&str> = answers.iter().map(|answer| answer.address.as_str()).collect();
        let facts = Facts::from([
            ("generation".to_owned(), json!(generation)),
            ("answers".to_owned(), json!(addresses)),
            ("authority".to_owned(), json!(authority)),
        ]);
        Ok(Performed::new("answering", facts))
    }

    /// Waits until a name's authority answers with a generation, whichever.
    pub(super) async fn ask_authority(
        &self,
        name: &str,
        authority: &str,
        context: &Context,
    ) -> Result<Performed, Failure> {
        loop {
            match self.probe.traffic(name, authority).await {
                Ok(force) => {
                    let generation = ("generation".to_owned(), json!(force.generation));
                    return Ok(Performed::new("answers", Facts::from([generation])));
                }
                Err(seen) => self.look_again(context, &format!("{authority}: {seen}")).await?,
            }
        }
    }

    pub(super) async fn await_service(
        &self,
        door: &ServiceDoor,
        health: &Health,
        context: &Context,
    ) -> Result<Performed, Failure> {
        loop {
            match self.probe.service(door, health).await {
                Ok(()) => break,
                Err(seen) => self.look_again(context, &format!("{}: {seen}", door.name)).await?,
            }
        }
        Ok(Performed::new("healthy", Facts::from([("healthy_at".to_owned(), json!(self.clock.now().to_string()))])))
    }

    /// Any recorded value may come back; its age is the loss as users see it.
    pub(super) async fn read_canary(
        &self,
        service: &str,
        door: &ServiceDoor,
        read: &HttpExchange,
        context: &Context,
    ) -> Result<Performed, Failure> {
        loop {
            let seen = match self.probe.exchange(door, read).await {
                Ok((200..=299, body)) => match canary::find(&self.arbiter, service, &body)? {
                    Some(record) => return Ok(self.canary_read(&record)),
                    None => {
                        format!("{} gave a canary that was never written: {:?}", door.name, canary::shortened(&body))
                    }
                },
                Ok((status, body)) => format!("{} answered {status}: {:?}", door.name, canary::shortened(&body)),
                Err(error) => error.to_string(),
            };
            self.look_again(context, &seen).await?;
        }
    }

    fn canary_read(&self, record: &CanaryRecord) -> Performed {
        let now = self.clock.now();
        let age = record.at.parse::<Timestamp>().map(|at| now.duration_since(at).as_secs_f64());
        let mut facts = Facts::from([
            ("number".to_owned(), json!(record.number)),
            ("written_at".to_owned(), json!(record.at)),
            ("read_at".to_owned(), json!(now.to_string())),
        ]);
        if let Ok(age) = age {
            facts.insert("age_seconds".to_owned(), json!(age));
        }
        Performed::new("read", facts)
    }
}
