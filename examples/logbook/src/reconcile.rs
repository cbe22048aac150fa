//! Counts what is still there of what was acknowledged, asked through the service's own name.
//!
//! Invariant: a write counts as present only if the service gave its content back and the content is the same. What
//! could not be asked is an error, never a zero.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::door::{Door, DoorError, Resolver};
use crate::entries::Entry;
use crate::ledger::{Kind, Ledger, LedgerError, read_ledger};

const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// A question that fails is asked again so often before it is an error: a name may move meanwhile.
const ATTEMPTS: u32 = 5;
const RETRY_AFTER: Duration = Duration::from_millis(300);

#[derive(Debug, Clone, clap::Args)]
pub struct ReconcileOptions {
    #[command(flatten)]
    pub door: Door,
    /// The load client's file of acknowledged writes.
    #[arg(long, value_name = "PATH")]
    pub ledger: PathBuf,
    /// Judges only what was acknowledged up to this moment (RFC 3339).
    #[arg(long, value_name = "TIME")]
    pub until: Option<Timestamp>,
}

/// One acknowledged write that is not there, or is there with other content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    pub kind: Kind,
    pub id: String,
    pub acknowledged_at: Timestamp,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reconciled {
    /// Entries and uploads together.
    pub acknowledged: u64,
    /// Of these, still there with the right content.
    pub present: u64,
    /// Of `acknowledged`, how many are uploads.
    pub uploads_acknowledged: u64,
    /// Oldest first.
    pub missing: Vec<Judged>,
    /// Oldest first.
    pub wrong_content: Vec<Judged>,
}

impl Reconciled {
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.wrong_content.is_empty() && self.present == self.acknowledged
    }

    /// When the first write that is lost or wrong was acknowledged.
    pub fn first_lost_at(&self) -> Option<Timestamp> {
        self.missing.iter().chain(&self.wrong_content).map(|judged| judged.acknowledged_at).min()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    #[error("the ledger cannot be judged")]
    Ledger { source: LedgerError },
    #[error("the service cannot be found, so nothing can be said of its data")]
    Find { source: DoorError },
    #[error("the service did not answer {path}, so nothing can be said of its data")]
    Ask { path: String, source: reqwest::Error },
    #[error("the service answered {status} to {path}, so nothing can be said of its data")]
    Status { path: String, status: u16 },
    #[error("what the service answered to {path} is no page of entries, so nothing can be said of its data")]
    NoPage { path: String, source: serde_json::Error },
    #[error("the HTTP client could not be made")]
    Client { source: reqwest::Error },
}

/// Looks for every acknowledged write of the ledger at the service.
pub async fn reconcile(options: &ReconcileOptions) -> Result<Reconciled, ReconcileError> {
    let ledger = read_ledger(&options.ledger).map_err(|source| ReconcileError::Ledger { source })?;
    let mut service = Service::new(options.door.clone())?;
    let entries = service.all_entries().await?;
    judge(&ledger, options.until, &entries, &mut service).await
}

async fn judge(
    ledger: &Ledger,
    until: Option<Timestamp>,
    entries: &HashMap<String, String>,
    service: &mut Service,
) -> Result<Reconciled, ReconcileError> {
    let mut result = Reconciled::default();
    for write in &ledger.acknowledged {
        if until.is_some_and(|until| write.acknowledged_at > until) {
            continue;
        }
        result.acknowledged += 1;
        let found = match write.kind {
            Kind::Entry => entries.get(&write.id).cloned(),
            Kind::Upload => {
                result.uploads_acknowledged += 1;
                service.upload_hash(&write.id).await?
            }
        };
        let judged = || Judged { kind: write.kind, id: write.id.clone(), acknowledged_at: write.acknowledged_at };
        match found {
            None => result.missing.push(judged()),
            Some(hash) if hash != write.content_hash => result.wrong_content.push(judged()),
            Some(_) => result.present += 1,
        }
    }
    result.missing.sort_by_key(|judged| judged.acknowledged_at);
    result.wrong_content.sort_by_key(|judged| judged.acknowledged_at);
    Ok(result)
}

struct Service {
    client: reqwest::Client,
    resolver: Resolver,
}

#[derive(Deserialize)]
struct Page {
    entries: Vec<Entry>,
}

impl Service {
    fn new(door: Door) -> Result<Service, ReconcileError> {
        let client = reqwest::Client::builder()
            .timeout(ANSWER_WITHIN)
            .build()
            .map_err(|source| ReconcileError::Client { source })?;
        Ok(Service { client, resolver: Resolver::new(door) })
    }

    /// Id to content hash.
    async fn all_entries(&mut self) -> Result<HashMap<String, String>, ReconcileError> {
        let mut all = HashMap::new();
        let mut after = 0;
        loop {
            let path = format!("/entries?after={after}");
            let response = self.get(&path).await?;
            if !response.status().is_success() {
                return Err(ReconcileError::Status { path, status: response.status().as_u16() });
            }
            let body = response.bytes().await.map_err(|source| ReconcileError::Ask { path: path.clone(), source })?;
            let page: Page = serde_json::from_slice(&body).map_err(|source| ReconcileError::NoPage { path, source })?;
            let Some(last) = page.entries.last() else {
                return Ok(all);
            };
            after = last.sequence;
            all.extend(page.entries.into_iter().map(|entry| (entry.id, crate::content_hash(entry.text.as_bytes()))));
        }
    }

    async fn upload_hash(&mut self, name: &str) -> Result<Option<String>, ReconcileError> {
        let path = format!("/uploads/{name}");
        let response = self.get(&path).await?;
        match response.status().as_u16() {
            404 => Ok(None),
            200 => {
                let bytes = response.bytes().await.map_err(|source| ReconcileError::Ask { path, source })?;
                Ok(Some(crate::content_hash(&bytes)))
            }
            status => Err(ReconcileError::Status { path, status }),
        }
    }

    async fn get(&mut self, path: &str) -> Result<reqwest::Response, ReconcileError> {
        let mut attempt = 1;
        loop {
            let asked = self.ask(path).await;
            let passing = match &asked {
                Ok(response) => response.status().is_server_error(),
                Err(_) => true,
            };
            if !passing || attempt == ATTEMPTS {
                return asked;
            }
            attempt += 1;
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }

    async fn ask(&mut self, path: &str) -> Result<reqwest::Response, ReconcileError> {
        let server: SocketAddr = self.resolver.address().await.map_err(|source| ReconcileError::Find { source })?;
        let sent = self.client.get(format!("http://{server}{path}")).send().await;
        sent.map_err(|source| ReconcileError::Ask { path: path.to_owned(), source })
    }
}
