//! A timeline from its beginning to its end, object by object: for who must see all of it and may keep little.
//!
//! Invariant: what is checked is what `log_trail` checks of it; no more than what is read ahead is in memory, however long the log is.

use std::collections::VecDeque;

use super::{Extent, LogEntry, Timeline, chain, from_floor, joined};
use crate::error::{Result, VaultError};
use crate::finding::{Finding, note};
use crate::name;
use crate::open::Vault;

impl Vault {
    /// Every timeline of a lineage that was ever seen here.
    pub(crate) fn known_timelines(&self, dataset: &str, lineage: &str) -> Result<Vec<u64>> {
        Ok(self.remembered_timelines(dataset, lineage)?.into_keys().collect())
    }

    /// Gives each object of a timeline to `each`, in order; answers what is wrong, after which nothing is given any more.
    pub(crate) fn walk_log(
        &self,
        (dataset, lineage, timeline): (&str, &str, u64),
        each: &mut dyn FnMut(&LogEntry),
    ) -> Result<Option<Finding>> {
        self.refresh()?;
        let of = Timeline { dataset, lineage, timeline };
        let chain = chain(dataset, lineage, timeline);
        let seen = self.remembered_head(&chain)?;
        let mut numbers = self.list_timeline(&of)?.numbers;
        let floor = self.floor(&of)?;
        numbers = from_floor(numbers, floor.as_ref());
        let extent = Extent { numbers: &numbers, floor, seen: seen.as_ref() };
        let begin = extent.floor.as_ref().map_or(0, |floor| floor.below);
        let end = numbers.last().map_or(0, |last| last.saturating_add(1));
        let (mut before, mut ahead): (Option<LogEntry>, _) = (None, VecDeque::new());
        let mut was_seen = None;
        for number in begin..end {
            if ahead.is_empty() {
                self.check_stop()?;
                ahead = self.read_ahead(&of, number, end);
            }
            let read = ahead.pop_front().unwrap_or_else(|| self.read_without_payload(&of, number));
            let entry = match read.and_then(|link| joined(link, number, before.as_ref(), extent.floor.as_ref())) {
                Ok(entry) => entry,
                Err(error) => return wrong(error),
            };
            if extent.seen.is_some_and(|(seen, _)| *seen == number) {
                was_seen = Some(entry.hash.clone());
            }
            each(&entry);
            before = Some(entry);
        }
        if let Some((seen, hash)) = extent.seen.filter(|(seen, _)| *seen >= begin) {
            let object = name::log_object(dataset, lineage, timeline, *seen);
            match was_seen {
                Some(found) if found == *hash => {}
                Some(_) => {
                    return wrong(VaultError::untrusted(object, "it was replaced since it was first seen here"));
                }
                None => {
                    let found = before.map_or("nothing".to_owned(), |last| format!("number {}", last.number));
                    return wrong(VaultError::RolledBack { object: chain, found, seen: format!("number {seen}") });
                }
            }
        }
        if let Some(last) = &before
            && let Some(hash) = crate::crypt::unhex(&last.hash)
        {
            self.remember_head(&chain, last.number, hash)?;
        }
        Ok(None)
    }
}

/// What is wrong with an object is a finding; a storage that fails is an error.
fn wrong(error: VaultError) -> Result<Option<Finding>> {
    let mut findings = Vec::new();
    note::<()>(Err(error), &mut findings)?;
    Ok(findings.pop())
}
