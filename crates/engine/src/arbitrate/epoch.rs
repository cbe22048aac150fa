//! Epochs: numbered claims of a write domain.
//!
//! Invariant: epoch N can only be claimed when N-1 is the one in force, and only once; the same run may claim it again
//! and finds its own claim.

use serde::{Deserialize, Serialize};

use super::board::{Arbiter, ArbiterError, Put};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    pub write_domain: String,
    pub epoch: u64,
    /// The site that is to write.
    pub primary: String,
    /// The run that claimed it, or what else did (`protect`, for the first).
    pub run: String,
    /// RFC 3339, for people.
    pub at: String,
    /// The run that claimed it stops the writer itself: until then that goes on, and renews its lease.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub planned: bool,
}

impl Arbiter {
    /// Claims an epoch, or says who has it. Claiming again what the same run has claimed is fine.
    pub fn claim_epoch(&self, claim: &Claim) -> Result<Claim, ArbiterError> {
        let domain = &claim.write_domain;
        let prefix = format!("epochs/{domain}/");
        let in_force = self.numbers(&prefix)?.last().copied().unwrap_or(0);
        if claim.epoch != in_force + 1 && claim.epoch != in_force {
            return Err(ArbiterError::EpochMoved { write_domain: domain.clone(), wanted: claim.epoch, in_force });
        }
        if let Put::Created = self.publish_once(&format!("{prefix}{}", claim.epoch), claim)? {
            return Ok(claim.clone());
        }
        let theirs = self
            .epoch(domain, claim.epoch)?
            .ok_or_else(|| ArbiterError::Vanished { key: format!("{prefix}{}", claim.epoch) })?;
        if theirs.run == claim.run && theirs.primary == claim.primary {
            return Ok(theirs);
        }
        Err(ArbiterError::EpochTaken { by: Box::new(theirs) })
    }

    pub fn epoch(&self, write_domain: &str, epoch: u64) -> Result<Option<Claim>, ArbiterError> {
        let claim: Option<Claim> = self.read(&format!("epochs/{write_domain}/{epoch}"))?;
        match claim {
            Some(claim) if claim.epoch != epoch || claim.write_domain != write_domain => Err(ArbiterError::Malformed {
                key: format!("epochs/{write_domain}/{epoch}"),
                reason: format!("it claims epoch {} of {}", claim.epoch, claim.write_domain),
            }),
            other => Ok(other),
        }
    }

    /// The epoch in force: the highest claimed, or none yet.
    pub fn current_epoch(&self, write_domain: &str) -> Result<Option<Claim>, ArbiterError> {
        match self.numbers(&format!("epochs/{write_domain}/"))?.last() {
            Some(epoch) => self.epoch(write_domain, *epoch),
            None => Ok(None),
        }
    }
}
