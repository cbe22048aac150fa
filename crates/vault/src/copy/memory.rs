//! What this machine remembers of the copies that it made: a vault cannot know of its copies, who makes them can.
//!
//! Invariant: a copy that was not finished is remembered as one that is not whole.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::plan::Plan;
use super::{CopyOptions, CopyReport};
use crate::error::Result;
use crate::finding::Severity;
use crate::host::{State, read_json, write_json};
use crate::snapshot::PointInfo;

/// The last copying to one place.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct KnownCopy {
    pub to: String,
    /// The state that was copied is of this moment.
    pub at: Timestamp,
    /// Whether all of it went over.
    pub complete: bool,
    /// Objects that could not be copied, because they were damaged or missing.
    pub left_behind: u64,
    pub dataset: Option<String>,
    pub since: Option<Timestamp>,
    /// The newest point of each chain by then.
    pub heads: BTreeMap<String, u64>,
}

impl KnownCopy {
    /// How many of these points came after it was made.
    pub fn lacks<'a>(&self, points: impl Iterator<Item = &'a PointInfo>) -> u64 {
        let chain = |point: &PointInfo| point.key.rsplit_once('/').map(|(chain, _)| format!("{chain}/"));
        let is_newer = |point: &&PointInfo| {
            let head = chain(point).and_then(|chain| self.heads.get(&chain).copied());
            head.is_none_or(|head| head < point.sequence)
        };
        points.filter(is_newer).count() as u64
    }
}

const FILE: &str = "copies.json";

impl State {
    /// The copies of a vault that this machine made, by where they lie.
    pub fn copies(&self, vault: &str) -> Result<Vec<KnownCopy>> {
        let known: BTreeMap<String, KnownCopy> = read_json(&self.vault_directory(vault)?.join(FILE))?;
        Ok(known.into_values().collect())
    }

    pub(super) fn keep_copy(
        &self,
        to: &str,
        plan: &Plan,
        options: &CopyOptions,
        report: &CopyReport,
        complete: bool,
    ) -> Result<()> {
        let path = self.vault_directory(&report.vault)?.join(FILE);
        let mut known: BTreeMap<String, KnownCopy> = read_json(&path)?;
        let left_behind = report.findings.iter().filter(|finding| finding.severity == Severity::Alarm).count() as u64;
        let copy = KnownCopy {
            to: to.to_owned(),
            at: plan.listed_at,
            complete,
            left_behind,
            dataset: options.dataset.clone(),
            since: plan.since,
            heads: plan.heads.iter().map(|(chain, number, _)| (chain.clone(), *number)).collect(),
        };
        known.insert(to.to_owned(), copy);
        write_json(&path, &known)
    }
}
