//! Desired state and reports: what controllers publish for hosts and name servers, and what hosts answer.
//!
//! Invariant: generations are numbered without gaps and created once; one never carries a lower epoch than the one before.

use lifeboat_core::desired::{AgentReport, DesiredWriter, TrafficAnswer, TrafficGeneration};
use serde::{Deserialize, Serialize};

use super::board::{Arbiter, ArbiterError, Put};

/// A canary that was written and acknowledged: any recorded value may be read after a recovery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryRecord {
    pub service: String,
    pub number: u64,
    pub value: String,
    /// RFC 3339, by the writer's clock: when the service acknowledged it.
    pub at: String,
}

/// How often publishing the next generation is tried when others publish, too.
const RACES_MAX: u32 = 8;

impl Arbiter {
    /// The generation in force.
    pub fn desired_writer(&self, write_domain: &str) -> Result<Option<DesiredWriter>, ArbiterError> {
        self.latest(&format!("desired/{write_domain}/"))
    }

    /// Publishes who writes, as the next generation; what is in force already is answered as it stands.
    pub fn publish_writer(
        &self,
        write_domain: &str,
        epoch: u64,
        primary: &str,
        frozen: bool,
    ) -> Result<DesiredWriter, ArbiterError> {
        self.publish_next(&format!("desired/{write_domain}/"), |latest: Option<&DesiredWriter>| {
            if let Some(latest) = latest {
                refuse_older("desired", write_domain, epoch, latest.epoch)?;
                if (latest.epoch, latest.primary.as_str(), latest.frozen) == (epoch, primary, frozen) {
                    return Ok(None);
                }
            }
            Ok(Some(DesiredWriter {
                write_domain: write_domain.into(),
                generation: latest.map_or(0, |latest| latest.generation) + 1,
                epoch,
                primary: primary.into(),
                frozen,
                at: self.clock().now().to_string(),
            }))
        })
    }

    /// Who was let write last, whatever has been frozen or reserved since. None: nobody ever.
    pub fn last_let_write(&self, write_domain: &str) -> Result<Option<DesiredWriter>, ArbiterError> {
        let prefix = format!("desired/{write_domain}/");
        for number in self.numbers(&prefix)?.iter().rev() {
            let key = format!("{prefix}{number}");
            let desired: DesiredWriter = self.read(&key)?.ok_or(ArbiterError::Vanished { key })?;
            if !desired.frozen {
                return Ok(Some(desired));
            }
        }
        Ok(None)
    }

    /// Whether another site has been let write since this epoch. One that was only reserved has not.
    pub fn was_superseded(&self, write_domain: &str, site: &str, since_epoch: u64) -> Result<bool, ArbiterError> {
        let prefix = format!("desired/{write_domain}/");
        for number in self.numbers(&prefix)?.iter().rev() {
            let key = format!("{prefix}{number}");
            let desired: DesiredWriter = self.read(&key)?.ok_or(ArbiterError::Vanished { key })?;
            if desired.epoch <= since_epoch {
                break;
            }
            if desired.primary != site && !desired.frozen {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub fn traffic(&self, name: &str) -> Result<Option<TrafficGeneration>, ArbiterError> {
        self.latest(&format!("traffic/{name}/"))
    }

    /// Publishes where a name points, as the next generation; what is in force already is answered as it stands.
    pub fn publish_traffic(
        &self,
        name: &str,
        epoch: u64,
        ttl_seconds: u32,
        answers: &[TrafficAnswer],
    ) -> Result<TrafficGeneration, ArbiterError> {
        self.publish_next(&format!("traffic/{name}/"), |latest: Option<&TrafficGeneration>| {
            if let Some(latest) = latest {
                refuse_older("traffic", name, epoch, latest.epoch)?;
                if (latest.epoch, latest.ttl_seconds, latest.answers.as_slice()) == (epoch, ttl_seconds, answers) {
                    return Ok(None);
                }
            }
            Ok(Some(TrafficGeneration {
                name: name.into(),
                generation: latest.map_or(0, |latest| latest.generation) + 1,
                epoch,
                ttl_seconds,
                answers: answers.to_vec(),
                at: self.clock().now().to_string(),
            }))
        })
    }

    pub fn report(&self, report: &AgentReport) -> Result<(), ArbiterError> {
        self.publish(&format!("agents/{}/{}", report.site, report.dataset), report)
    }

    pub fn agent_report(&self, site: &str, dataset: &str) -> Result<Option<AgentReport>, ArbiterError> {
        self.read(&format!("agents/{site}/{dataset}"))
    }

    pub fn record_canary(&self, canary: &CanaryRecord) -> Result<(), ArbiterError> {
        self.publish_once(&format!("canary/{}/{}", canary.service, canary.number), canary).map(|_| ())
    }

    pub fn canary(&self, service: &str, number: u64) -> Result<Option<CanaryRecord>, ArbiterError> {
        self.read(&format!("canary/{service}/{number}"))
    }

    /// The highest number on record; 0 when there is none.
    pub fn newest_canary(&self, service: &str) -> Result<u64, ArbiterError> {
        Ok(self.numbers(&format!("canary/{service}/"))?.last().copied().unwrap_or(0))
    }

    /// Takes all but the newest `keep` off the record.
    pub fn forget_canaries(&self, service: &str, keep: usize) -> Result<(), ArbiterError> {
        let prefix = format!("canary/{service}/");
        for number in self.numbers(&prefix)?.iter().rev().skip(keep) {
            self.remove(&format!("{prefix}{number}"))?;
        }
        Ok(())
    }

    /// The last `count` canaries, the newest first.
    pub fn canaries(&self, service: &str, count: usize) -> Result<Vec<CanaryRecord>, ArbiterError> {
        let prefix = format!("canary/{service}/");
        let numbers = self.numbers(&prefix)?;
        let records = numbers.iter().rev().take(count).map(|number| self.read(&format!("{prefix}{number}")));
        records.filter_map(Result::transpose).collect()
    }

    /// Makes and creates the next generation; who loses a race looks again at what is in force.
    fn publish_next<T>(
        &self,
        prefix: &str,
        make: impl Fn(Option<&T>) -> Result<Option<T>, ArbiterError>,
    ) -> Result<T, ArbiterError>
    where
        T: Serialize + serde::de::DeserializeOwned,
    {
        for _ in 0..RACES_MAX {
            // One look for both: what is decided from one object must not be written after a later one that nobody read.
            let (number, latest) =
                self.latest_numbered(prefix)?.map_or((1, None), |(last, body)| (last + 1, Some(body)));
            match (make(latest.as_ref())?, latest) {
                (None, Some(latest)) => return Ok(latest),
                (None, None) => break,
                (Some(next), _) => {
                    if let Put::Created = self.publish_once(&format!("{prefix}{number}"), &next)? {
                        return Ok(next);
                    }
                }
            }
        }
        Err(ArbiterError::Contended { prefix: prefix.into() })
    }
}

fn refuse_older(what: &'static str, name: &str, epoch: u64, in_force: u64) -> Result<(), ArbiterError> {
    if epoch < in_force {
        return Err(ArbiterError::OlderEpoch { what, name: name.into(), epoch, in_force });
    }
    Ok(())
}
