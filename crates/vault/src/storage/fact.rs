//! What is known about a storage, and whether its keeper has to do something about it.
//!
//! Invariant: what could not be found out is `Unknown`, and never passes for good.

use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Good,
    /// Worth knowing, and nothing to be done about it.
    Note,
    Finding,
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fact {
    /// Names what was looked at, for machines.
    pub code: &'static str,
    pub verdict: Verdict,
    pub says: String,
    /// What to do; empty where there is nothing to do.
    pub next: String,
}

impl Fact {
    pub fn good(code: &'static str, says: impl Into<String>) -> Fact {
        Fact { code, verdict: Verdict::Good, says: says.into(), next: String::new() }
    }

    pub fn finding(code: &'static str, says: impl Into<String>, next: impl Into<String>) -> Fact {
        Fact { code, verdict: Verdict::Finding, says: says.into(), next: next.into() }
    }

    pub fn note(code: &'static str, says: impl Into<String>) -> Fact {
        Fact { code, verdict: Verdict::Note, says: says.into(), next: String::new() }
    }

    pub fn unknown(code: &'static str, says: impl Into<String>) -> Fact {
        Fact { code, verdict: Verdict::Unknown, says: says.into(), next: String::new() }
    }
}
