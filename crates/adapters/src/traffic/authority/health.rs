//! Decides which answers are healthy, by asking each one's health URL again and again.
//!
//! Invariant: an answer counts as healthy until its URL has failed `FAILURES_UNTIL_REMOVED` times in a row, so that a
//! fresh generation is answered as it says; one good answer brings it back.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::task::JoinSet;

use super::zone::Zones;
use crate::probe::http::HttpClient;

/// One lost packet removes nothing; two failures in a row do.
const FAILURES_UNTIL_REMOVED: u32 = 2;

#[derive(Debug, Default)]
pub(super) struct HealthBoard(RwLock<BTreeMap<String, u32>>);

impl HealthBoard {
    /// Whether an answer with this health URL may be given; one without a URL always may.
    pub(super) fn allows(&self, url: Option<&str>) -> bool {
        let failures = self.0.read().unwrap_or_else(PoisonError::into_inner);
        url.is_none_or(|url| failures.get(url).is_none_or(|count| *count < FAILURES_UNTIL_REMOVED))
    }

    /// Notes one look; logs when it changes what is answered.
    pub(super) fn note(&self, url: &str, result: Result<(), String>) {
        let mut failures = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(url.to_owned()).or_insert(0);
        match result {
            Ok(()) => {
                if *count >= FAILURES_UNTIL_REMOVED {
                    tracing::info!(url, "healthy again: given as an answer");
                }
                *count = 0;
            }
            Err(why) => {
                *count = count.saturating_add(1);
                if *count == FAILURES_UNTIL_REMOVED {
                    tracing::warn!(url, why, "unhealthy: left out of the answers");
                }
            }
        }
    }

    /// Forgets URLs that no generation in force names any more.
    fn keep_only(&self, urls: &[String]) {
        let mut failures = self.0.write().unwrap_or_else(PoisonError::into_inner);
        failures.retain(|url, _| urls.binary_search(url).is_ok());
    }
}

/// Looks at every answer's health, forever.
pub(super) async fn watch(zones: Arc<Zones>, every: Duration, timeout: Duration) {
    let client = HttpClient::new(None, timeout);
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let urls = zones.health_urls();
        zones.health.keep_only(&urls);
        let mut looks = JoinSet::new();
        for url in urls {
            let client = client.clone();
            looks.spawn(async move {
                let result = client.healthy(&url).await.map_err(|error| error.to_string());
                (url, result)
            });
        }
        while let Some(look) = looks.join_next().await {
            if let Ok((url, result)) = look {
                zones.health.note(&url, result);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_removes_nothing_and_one_success_brings_back() {
        let board = HealthBoard::default();
        let bad = || Err("answered 503".to_owned());
        assert!(board.allows(Some("u")));
        board.note("u", bad());
        assert!(board.allows(Some("u")));
        board.note("u", bad());
        assert!(!board.allows(Some("u")));
        assert!(board.allows(Some("other")) && board.allows(None));
        board.note("u", Ok(()));
        assert!(board.allows(Some("u")));
    }
}
