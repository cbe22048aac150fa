//! Everything that is wrong with a well-formed plan.
use super::model::*;
use super::syntax;
use crate::diagnostic::Diagnostic;

/// How far one declared private key reaches.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct KeyReach {
    pub recipient: String,
    /// `any data set`, or for what the key is held.
    pub purpose: Option<KeyPurpose>,
    pub held_at: Option<Name>,
    pub datasets: Vec<Name>,
    /// The vaults in which it opens something.
    pub vaults: Vec<Name>,
}

/// Whether a fence can be proven without a person, for one service in one scenario.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FenceOutlook {
    pub service: Name,
    pub scenario: Name,
    pub site: Name,
    /// What would prove it; none means that a run holds for an attestation.
    pub proof: Option<&'static str>,
}

pub fn key_reach(_plan: &Plan) -> Vec<KeyReach> {
    Vec::new()
}
pub fn fence_outlook(_plan: &Plan) -> Vec<FenceOutlook> {
    Vec::new()
}

pub(super) fn check(_plan: &Plan, _tree: &syntax::Table) -> Vec<Diagnostic> {
    Vec::new()
}
