//! The load client: writes through the service's name, and remembers what was acknowledged.
//!
//! Invariant: a write is tried again under the same id and with the same content until it is acknowledged or the client
//! stops, so a lost answer is never counted twice; only what was answered goes into the ledger.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::door::{Door, Resolver};
use crate::ledger::{Acknowledged, Kind, LedgerError, LedgerFile};

/// An attempt that is not answered by then has failed.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(2);
/// Between a failed attempt and the next of the same writer.
const RETRY_AFTER: Duration = Duration::from_millis(100);
const UPLOAD_BYTES: usize = 4096;

/// What to write, how fast, how long, and where to remember it.
#[derive(Debug, Clone, clap::Args)]
pub struct LoadOptions {
    #[command(flatten)]
    pub door: Door,
    /// The file of acknowledged writes, appended to.
    #[arg(long, value_name = "PATH")]
    pub ledger: PathBuf,
    /// Writes a second, all writers together.
    #[arg(long, default_value_t = 20.0, value_name = "WRITES")]
    pub rate: f64,
    /// How many write at once.
    #[arg(long, default_value_t = 4)]
    pub writers: u32,
    /// Every so many writes one is an upload; 0 means none is.
    #[arg(long, default_value_t = 25, value_name = "WRITES")]
    pub upload_every: u64,
    /// Stops after so many acknowledged writes.
    #[arg(long, value_name = "WRITES")]
    pub count: Option<u64>,
    /// Stops after so many seconds.
    #[arg(long, value_name = "SECONDS")]
    pub seconds: Option<f64>,
}

/// What a load run came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadSummary {
    pub acknowledged: u64,
    pub failed_attempts: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("a rate of {rate} writes a second cannot be kept: give a number above 0, at most 10000")]
    Rate { rate: f64 },
    #[error("{writers} writers: give 1 to 256")]
    Writers { writers: u32 },
    #[error("the HTTP client could not be made")]
    Client { source: reqwest::Error },
    #[error("the client cannot remember what was acknowledged, and stopped")]
    Ledger { source: LedgerError },
    #[error("a writer stopped unexpectedly")]
    Writer { source: tokio::task::JoinError },
    #[error("cannot wait for signals")]
    Signals { source: std::io::Error },
}

/// Writes until SIGTERM, SIGINT or a limit.
pub async fn run_load(options: LoadOptions) -> Result<LoadSummary, LoadError> {
    if !(options.rate > 0.0 && options.rate <= 10_000.0) {
        return Err(LoadError::Rate { rate: options.rate });
    }
    if !(1..=256).contains(&options.writers) {
        return Err(LoadError::Writers { writers: options.writers });
    }
    let client = reqwest::Client::builder()
        .timeout(ATTEMPT_WITHIN)
        .connect_timeout(ATTEMPT_WITHIN)
        .build()
        .map_err(|source| LoadError::Client { source })?;
    let ledger = LedgerFile::open(&options.ledger).map_err(|source| LoadError::Ledger { source })?;
    let load = Arc::new(Load {
        client,
        resolver: Mutex::new(Resolver::new(options.door.clone())),
        book: Mutex::new(Book { ledger, outage_since: None }),
        prefix: format!("{:x}-{:x}", crate::now().as_millisecond(), std::process::id()),
        begun: AtomicU64::new(0),
        acknowledged: AtomicU64::new(0),
        failed_attempts: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        upload_every: options.upload_every,
        count: options.count.unwrap_or(u64::MAX),
    });
    let pause = Duration::from_secs_f64(f64::from(options.writers) / options.rate);
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..options.writers {
        let first = pause.mul_f64(f64::from(number) / f64::from(options.writers));
        writers.spawn(Arc::clone(&load).write_on(first, pause));
    }
    let time_limit = async {
        match options.seconds {
            Some(seconds) => tokio::time::sleep(Duration::from_secs_f64(seconds.clamp(0.0, 1e9))).await,
            None => std::future::pending().await,
        }
    };
    let (mut signalled, mut timed) = (std::pin::pin!(crate::stop_signal()), std::pin::pin!(time_limit));
    let (mut watching, mut timing) = (true, true);
    loop {
        tokio::select! {
            received = &mut signalled, if watching => {
                received.map_err(|source| LoadError::Signals { source })?;
                watching = false;
                load.stop.store(true, Ordering::SeqCst);
            }
            () = &mut timed, if timing => {
                timing = false;
                load.stop.store(true, Ordering::SeqCst);
            }
            ended = writers.join_next() => match ended {
                None => break,
                Some(Err(source)) => return Err(LoadError::Writer { source }),
                Some(Ok(Err(source))) => return Err(LoadError::Ledger { source }),
                Some(Ok(Ok(()))) => {}
            },
        }
    }
    Ok(LoadSummary {
        acknowledged: load.acknowledged.load(Ordering::SeqCst),
        failed_attempts: load.failed_attempts.load(Ordering::SeqCst),
    })
}

struct Load {
    client: reqwest::Client,
    resolver: Mutex<Resolver>,
    book: Mutex<Book>,
    /// Ids of this process begin with it.
    prefix: String,
    begun: AtomicU64,
    acknowledged: AtomicU64,
    failed_attempts: AtomicU64,
    stop: AtomicBool,
    upload_every: u64,
    count: u64,
}

struct Book {
    ledger: LedgerFile,
    outage_since: Option<Timestamp>,
}

struct Write {
    kind: Kind,
    id: String,
    content: String,
}

struct Answer {
    server: SocketAddr,
    sequence: i64,
}

#[derive(Deserialize)]
struct Accepted {
    #[serde(default)]
    sequence: i64,
}

impl Load {
    /// One writer: at each tick the next write, again and again until it is acknowledged.
    async fn write_on(self: Arc<Load>, first: Duration, pause: Duration) -> Result<(), LedgerError> {
        let mut ticks = tokio::time::interval_at((Instant::now() + first).into(), pause);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.is_over() {
                return Ok(());
            }
            let number = self.begun.fetch_add(1, Ordering::SeqCst);
            if number >= self.count {
                return Ok(());
            }
            let write = self.compose(number);
            while !self.attempt(&write).await? {
                if self.is_over() {
                    return Ok(());
                }
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn compose(&self, number: u64) -> Write {
        let id = format!("{}-{number}", self.prefix);
        if self.upload_every > 0 && number % self.upload_every == self.upload_every - 1 {
            let mut content = format!("upload {id}\n");
            while content.len() < UPLOAD_BYTES {
                content.push_str(&crate::content_hash(content.as_bytes()));
            }
            return Write { kind: Kind::Upload, id, content };
        }
        Write { kind: Kind::Entry, content: format!("entry {id}: position noted, all well"), id }
    }

    /// One attempt; whether it was acknowledged.
    async fn attempt(&self, write: &Write) -> Result<bool, LedgerError> {
        let sent_at = crate::now();
        match self.send(write).await {
            Ok(answer) => {
                let acknowledged_at = crate::now();
                let mut book = self.book.lock().await;
                if let Some(since) = book.outage_since
                    && sent_at >= since
                {
                    book.ledger.end_outage(acknowledged_at)?;
                    book.outage_since = None;
                }
                book.ledger.acknowledge(Acknowledged {
                    kind: write.kind,
                    id: write.id.clone(),
                    content_hash: crate::content_hash(write.content.as_bytes()),
                    sent_at,
                    acknowledged_at,
                    sequence: answer.sequence,
                    server: answer.server,
                })?;
                self.acknowledged.fetch_add(1, Ordering::SeqCst);
                Ok(true)
            }
            Err(error) => {
                self.failed_attempts.fetch_add(1, Ordering::SeqCst);
                let mut book = self.book.lock().await;
                if book.outage_since.is_none() {
                    book.outage_since = Some(sent_at);
                    book.ledger.begin_outage(sent_at, error)?;
                }
                Ok(false)
            }
        }
    }

    async fn send(&self, write: &Write) -> Result<Answer, String> {
        let server = self.resolver.lock().await.address().await.map_err(|error| error.to_string())?;
        let request = match write.kind {
            Kind::Entry => self.client.post(format!("http://{server}/entries")).header("x-entry-id", &write.id),
            Kind::Upload => self.client.put(format!("http://{server}/uploads/{}", write.id)),
        };
        let response = request.body(write.content.clone()).send().await.map_err(|error| with_causes(&error))?;
        let status = response.status();
        let body = response.bytes().await.map_err(|error| with_causes(&error))?;
        if !status.is_success() {
            return Err(format!("{server} answered {status}: {}", String::from_utf8_lossy(&body)));
        }
        let accepted: Accepted = serde_json::from_slice(&body)
            .map_err(|error| format!("{server} answered {status} with what is no logbook's answer: {error}"))?;
        Ok(Answer { server, sequence: accepted.sequence })
    }
}

fn with_causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
