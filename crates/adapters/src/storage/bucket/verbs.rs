//! What is done in a bucket, each thing tried until it is done, refused, or patience ends.
//!
//! Invariants: nothing is created on the condition that it is absent before this storage has shown that it refuses a second
//! creation; `Created` is answered by exactly one of many, also where an answer was lost: each creation carries a token
//! of its own, and who is told "it exists" looks whose token lies there. Where versions are kept it has to be shown with versions:
//! some storages honour the condition only without them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::TryStreamExt;
use jiff::Timestamp;
use lifeboat_vault::storage::{OBJECT_BYTES_MAX, Put, StorageError, bytes_max, check_key};
use md5::{Digest, Md5};
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, GetOptions, GetRange, GetResult, HeaderValue, ObjectStore, ObjectStoreExt, PutMode,
    PutOptions, PutPayload,
};
use tokio::runtime::Handle;
use tokio::sync::{OnceCell, Semaphore, watch};

use super::address::Address;
use super::failure::{Doing, Failure};
use super::listing;
use super::patience::{Patience, Tries};
use super::setup::{Asks, Client};
use super::wire::{self, Answer};

/// The object by which a storage shows that it refuses a second creation. No listing shows it.
pub(super) const PROOF: &str = ".lifeboat/create-if-absent";
pub(super) const PROOF_TEXT: &[u8] =
    b"lifeboat looks by this object whether the storage refuses to create what is there already.\n";
/// Where what is permitted is tried out. No listing shows it either.
pub(super) const REHEARSAL: &str = ".lifeboat/doctor";
/// The same within a directory: nothing takes what lies there for one of the directory's objects.
pub(super) const REHEARSAL_IN: &str = ".lifeboat-doctor";
/// Letters only: not every storage takes more in a name of metadata.
const TOKEN: &str = "lifeboatwriter";
/// Requests at once; more only queue up at the storage.
const REQUESTS_MAX: usize = 32;
/// So long is waited for an answer by who was asked to stop.
const HURRIED: std::time::Duration = std::time::Duration::from_secs(1);
/// How often a name may be taken and free again under us.
const CREATIONS_MAX: u32 = 5;

/// A bucket, or a place in one.
#[derive(Debug, Clone)]
pub struct BucketStorage {
    pub(super) shared: Arc<Shared>,
    runtime: Handle,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) prefix: String,
    pub(super) location: String,
    /// What all who reach this place call it.
    pub(super) place: String,
    patience: Patience,
    requests: Semaphore,
    reached: AtomicBool,
    proven: OnceCell<()>,
    /// The same since the storage was seen to keep versions.
    proven_with_versions: OnceCell<()>,
    pub(super) split_after: usize,
    pub(super) heard: Arc<Heard>,
    asks: Option<Asks>,
    /// Whether an upload in parts can be completed on the condition that nothing is there.
    pub(super) parts_proven: OnceCell<bool>,
    /// Whoever waits here wants to stop.
    hurried: Arc<watch::Sender<bool>>,
}

/// What the storage said about itself, in passing.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// Its clock, and ours when it said so.
    pub(super) clock: Mutex<Option<(Timestamp, Timestamp)>>,
    /// It named a version of something.
    pub(super) versions: AtomicBool,
    /// It takes no object without its MD5.
    wants_digest: AtomicBool,
}

impl BucketStorage {
    pub(super) fn new(
        Client { store, asks }: Client,
        address: &Address,
        patience: Patience,
        runtime: Handle,
    ) -> BucketStorage {
        let shared = Shared {
            store,
            prefix: address.prefix.clone(),
            location: address.to_string(),
            place: Address { profile: None, ..address.clone() }.to_string(),
            patience,
            requests: Semaphore::new(REQUESTS_MAX),
            reached: AtomicBool::new(false),
            proven: OnceCell::new(),
            proven_with_versions: OnceCell::new(),
            split_after: listing::SPLIT_AFTER,
            heard: Arc::default(),
            asks,
            parts_proven: OnceCell::new(),
            hurried: Arc::new(watch::Sender::new(false)),
        };
        BucketStorage { shared: Arc::new(shared), runtime }
    }

    /// Runs it on the storage's own threads and waits here: from any thread, one of another runtime included.
    pub(super) fn wait<T: Send + 'static>(
        &self,
        task: impl Future<Output = Result<T, StorageError>> + Send + 'static,
    ) -> Result<T, StorageError> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let shared = self.shared.clone();
        self.runtime.spawn(async move {
            let done = tokio::select! {
                done = task => done,
                () = shared.in_a_hurry() => {
                    Err(shared.doing("reach", "").io(std::io::ErrorKind::Interrupted, "asked to stop, not waited for any longer"))
                }
            };
            let _ = sender.send(done);
        });
        receiver.recv().unwrap_or_else(|_| {
            let doing = self.shared.doing("reach", "");
            Err(doing.io(std::io::ErrorKind::Other, "the storage's own thread has ended"))
        })
    }

    /// A hidden place in the same bucket.
    pub(super) fn beside(&self, place: &str, proven: OnceCell<()>) -> Result<Arc<BucketStorage>, StorageError> {
        let shared = &self.shared;
        let beside = Shared {
            store: shared.store.clone(),
            prefix: shared.path(place)?.to_string(),
            location: format!("{}/{place}", shared.location),
            place: format!("{}/{place}", shared.place),
            patience: shared.patience,
            requests: Semaphore::new(REQUESTS_MAX),
            reached: AtomicBool::new(true),
            proven_with_versions: OnceCell::new_with(proven.get().copied()),
            proven,
            split_after: listing::SPLIT_AFTER,
            heard: shared.heard.clone(),
            asks: shared.asks.clone(),
            parts_proven: OnceCell::new_with(Some(false)),
            hurried: shared.hurried.clone(),
        };
        Ok(Arc::new(BucketStorage { shared: Arc::new(beside), runtime: self.runtime.clone() }))
    }

    /// From now on nothing waits longer than a second for an answer: whoever works here was asked to stop.
    pub fn hurry(&self) {
        self.shared.hurried.send_replace(true);
    }

    /// Finds out whether the storage refuses a second creation, and says so if it does not.
    pub fn prove(&self) -> Result<(), StorageError> {
        let shared = self.shared.clone();
        self.wait(async move { shared.prove().await })
    }
}

impl Shared {
    pub(super) fn doing(&self, verb: &'static str, key: &str) -> Doing {
        Doing { verb, key: key.to_owned(), location: self.location.clone() }
    }

    pub(super) fn patience(&self) -> Patience {
        self.patience
    }

    /// Ends a moment after whoever waits wants to stop: what a healthy line brings in that time still counts.
    async fn in_a_hurry(&self) {
        let mut hurried = self.hurried.subscribe();
        if hurried.wait_for(|hurried| *hurried).await.is_err() {
            return std::future::pending().await;
        }
        tokio::time::sleep(HURRIED).await;
    }

    /// The library's path of a key of ours, or of a hidden one.
    pub(super) fn path(&self, key: &str) -> Result<Path, StorageError> {
        let whole = match (self.prefix.is_empty(), key.is_empty()) {
            (true, _) => key.to_owned(),
            (false, true) => self.prefix.clone(),
            (false, false) => format!("{}/{key}", self.prefix),
        };
        Path::parse(&whole).map_err(|_| StorageError::BadKey {
            key: key.chars().take(80).collect(),
            why: "object storage does not take it",
        })
    }

    /// The key that lies at this path; `None` for what is none of ours.
    pub(super) fn key<'a>(&self, path: &'a Path) -> Option<&'a str> {
        let whole = path.as_ref();
        let key = match self.prefix.is_empty() {
            true => whole,
            false => whole.strip_prefix(self.prefix.as_str())?.strip_prefix('/')?,
        };
        check_key(key).ok().map(|()| key)
    }

    pub(super) fn saw(&self, answer: &Answer) {
        if answer.status.is_none() || answer.about_credentials {
            return;
        }
        self.reached.store(true, Ordering::Relaxed);
        if answer.versioned {
            self.heard.versions.store(true, Ordering::Relaxed);
        }
        if answer.date.is_some() {
            *self.heard.clock.lock().unwrap_or_else(PoisonError::into_inner) = answer.date;
        }
    }

    /// Who can be asked what the library does not ask: how the bucket is set up.
    pub(super) fn asks(&self) -> Option<&Asks> {
        self.asks.as_ref()
    }

    /// Waits before the next try of what failed; gives the error back when it is final, or patience has ended.
    pub(super) async fn bear(&self, failure: Failure, tries: &mut Tries) -> Result<(), Failure> {
        let (error, asked, heard) = match failure {
            Failure::Passing { error, asked, reached } => (error, asked, reached),
            other => return Err(other),
        };
        let reached = heard || self.reached.load(Ordering::Relaxed);
        match tries.next(asked, reached) {
            Some(wait) => {
                tracing::debug!("{error}, trying again in {wait:?}");
                tokio::time::sleep(wait).await;
                Ok(())
            }
            None => Err(Failure::Final(counted(error, tries.count))),
        }
    }

    /// One try, within `limit`, watched.
    async fn once<T>(
        &self,
        doing: &Doing,
        limit: std::time::Duration,
        task: impl Future<Output = object_store::Result<T>>,
    ) -> Result<(T, Answer), Failure> {
        let permit = self.requests.acquire().await;
        let (result, answer) = wire::watch(tokio::time::timeout(limit, task)).await;
        drop(permit);
        self.saw(&answer);
        match result {
            Ok(Ok(value)) => Ok((value, answer)),
            Ok(Err(error)) => Err(doing.failure(&error, &answer)),
            Err(_) => Err(doing.timed_out(&answer)),
        }
    }

    /// Tries until it is done, refused, or patience ends.
    pub(super) async fn persist<T, F>(
        &self,
        doing: &Doing,
        limit: std::time::Duration,
        mut task: impl FnMut() -> F,
    ) -> Result<(T, Answer), Failure>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        let mut tries = Tries::new(self.patience);
        loop {
            match self.once(doing, limit, task()).await {
                Ok(done) => return Ok(done),
                Err(failure) => self.bear(failure, &mut tries).await?,
            }
        }
    }

    async fn prove(&self) -> Result<(), StorageError> {
        self.proven.get_or_try_init(|| self.find_out()).await?;
        if self.heard.versions.load(Ordering::Relaxed) {
            self.proven_with_versions.get_or_try_init(|| self.find_out()).await?;
        }
        Ok(())
    }

    async fn find_out(&self) -> Result<(), StorageError> {
        let mut versions = false;
        // One refusal is the proof; the first ever creation needs a second one to be refused.
        for _ in 0..2 {
            match self.try_create(PROOF, PROOF_TEXT.to_vec().into(), &token()).await {
                Err(Failure::Exists) => return Ok(()),
                Ok(answer) => versions |= answer.versioned,
                Err(failure) => return Err(self.settle(failure, "write", PROOF)),
            }
        }
        Err(self.unsuitable(versions))
    }

    fn unsuitable(&self, versions: bool) -> StorageError {
        let why = match versions {
            true => {
                "it keeps versions, and so puts a new version over an object although it was told to create it only where there is none \
                 (If-None-Match): two writers would both win; suspend the bucket's versions, or use a storage that honours this \
                 with versions, as Amazon does (see docs/object-storage.md)"
            }
            false => {
                "it replaces an object although it was told to create it only where there is none (If-None-Match), so two \
                 writers would both win; use a storage that honours this (see docs/object-storage.md)"
            }
        };
        StorageError::Unsuitable { location: self.location.clone(), why: why.to_owned() }
    }

    /// Versions may have been turned on since the proof, which then has to be made again before a creation is believed.
    async fn believe(&self, answer: &Answer) -> Result<(), Failure> {
        if !answer.versioned {
            return Ok(());
        }
        self.proven_with_versions.get_or_try_init(|| self.find_out()).await.copied().map_err(Failure::Final)
    }

    pub(super) async fn try_create(&self, key: &str, payload: PutPayload, token: &str) -> Result<Answer, Failure> {
        let options = || PutOptions { mode: PutMode::Create, attributes: signed_with(token), ..PutOptions::default() };
        self.send(key, payload, options).await
    }

    /// Puts an object, with its MD5 where the bucket takes none without.
    async fn send(&self, key: &str, payload: PutPayload, options: impl Fn() -> PutOptions) -> Result<Answer, Failure> {
        let path = self.path(key).map_err(Failure::Final)?;
        let doing = self.doing("write", key);
        let limit = self.patience.for_upload(payload.content_length());
        let digested = || {
            let md5 = self.digest_of(&payload);
            wire::with_digest(
                md5,
                self.persist(&doing, limit, || self.store.put_opts(&path, payload.clone(), options())),
            )
        };
        let mut done = digested().await;
        if matches!(done, Err(Failure::WantsDigest)) {
            self.heard.wants_digest.store(true, Ordering::Relaxed);
            done = digested().await;
        }
        done.map(|(_, answer)| answer)
    }

    pub(super) fn digest_of(&self, payload: &PutPayload) -> Option<HeaderValue> {
        if !self.heard.wants_digest.load(Ordering::Relaxed) {
            return None;
        }
        let mut md5 = Md5::new();
        payload.iter().for_each(|part| md5.update(part));
        HeaderValue::from_str(&base64(&md5.finalize())).ok()
    }

    pub(super) async fn create(&self, key: &str, payload: PutPayload) -> Result<Put, StorageError> {
        self.prove().await?;
        let token = token();
        for _ in 0..CREATIONS_MAX {
            let tried = match self.takes_parts(&payload).await {
                Some(s3) => self.create_in_parts(s3, key, &payload, &token).await,
                None => self.try_create(key, payload.clone(), &token).await,
            };
            let tried = match tried {
                Ok(answer) => self.believe(&answer).await,
                Err(failure) => Err(failure),
            };
            match tried {
                Ok(()) => return Ok(Put::Created),
                Err(Failure::Exists) => match self.token_of(key).await {
                    // An earlier try of ours, or one that something on the way repeated, was the one that made it.
                    Ok(there) if there.as_deref() == Some(token.as_str()) => return Ok(Put::Created),
                    Ok(_) => return Ok(Put::Exists),
                    // Whoever may write and not read is told the weaker of the two: it never claims what it has not made.
                    Err(StorageError::Denied { .. }) => return Ok(Put::Exists),
                    // Gone again: there is room now.
                    Err(error) if error.is_not_found() => continue,
                    Err(error) => return Err(error),
                },
                Err(failure) => return Err(self.settle(failure, "write", key)),
            }
        }
        let doing = self.doing("write", key);
        Err(doing.io(std::io::ErrorKind::Other, "it is refused as being there, and is not found there"))
    }

    /// The token of who created what lies there.
    async fn token_of(&self, key: &str) -> Result<Option<String>, StorageError> {
        let path = self.path(key)?;
        let head = || self.store.get_opts(&path, GetOptions { head: true, ..GetOptions::default() });
        let doing = self.doing("look at", key);
        let found = self.persist(&doing, self.patience.stall, head).await;
        let (found, _) = found.map_err(|failure| self.settle(failure, "look at", key))?;
        Ok(found.attributes.get(&Attribute::Metadata(TOKEN.into())).map(|token| token.to_string()))
    }

    pub(super) async fn replace(&self, key: &str, payload: PutPayload) -> Result<(), StorageError> {
        let done = self.send(key, payload, PutOptions::default).await;
        done.map(|_| ()).map_err(|failure| self.settle(failure, "write", key))
    }

    pub(super) async fn read(&self, key: &str, range: Option<GetRange>) -> Result<Vec<u8>, StorageError> {
        let path = self.path(key)?;
        let doing = self.doing("read", key);
        let mut tries = Tries::new(self.patience);
        loop {
            let options = GetOptions { range: range.clone(), ..GetOptions::default() };
            let (result, answer) = wire::watch(self.fetch(&path, options, &doing)).await;
            self.saw(&answer);
            let failure = match result {
                Ok(bytes) => return Ok(bytes),
                // Not every storage refuses a range beyond the end: some answer with another one.
                Err(Unread::Failed(_)) if answer.is_success() && self.is_beyond(key, range.as_ref()).await => {
                    return Ok(Vec::new());
                }
                Err(Unread::Failed(error)) => doing.failure(&error, &answer),
                Err(Unread::Stalled) => doing.timed_out(&answer),
                Err(Unread::Torn(came, announced)) => doing.torn(came, announced),
                Err(Unread::Unusable(error)) => Failure::Final(error),
            };
            match self.bear(failure, &mut tries).await {
                Ok(()) => {}
                Err(Failure::BeyondEnd) => return Ok(Vec::new()),
                Err(failure) => return Err(self.settle(failure, "read", key)),
            }
        }
    }

    async fn is_beyond(&self, key: &str, range: Option<&GetRange>) -> bool {
        match range {
            Some(GetRange::Bounded(range)) => self.size_of(key).await.is_ok_and(|size| range.start >= size),
            _ => false,
        }
    }

    /// Reads an object or a part of it: never more than was asked for or allowed, never less than was announced.
    async fn fetch(&self, path: &Path, options: GetOptions, doing: &Doing) -> Result<Vec<u8>, Unread> {
        let stall = self.patience.stall;
        let limit = if options.range.is_none() { bytes_max(&doing.key) } else { OBJECT_BYTES_MAX };
        let _permit = self.requests.acquire().await;
        let found: GetResult = tokio::time::timeout(stall, self.store.get_opts(path, options)).await??;
        let size = found.range.end.saturating_sub(found.range.start);
        if size > limit {
            let key = doing.key.clone();
            return Err(Unread::Unusable(StorageError::TooLarge { key, size, limit }));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        let mut stream = found.into_stream();
        while let Some(chunk) = tokio::time::timeout(stall, stream.try_next()).await?? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > size {
                break;
            }
        }
        if bytes.len() as u64 != size {
            return Err(Unread::Torn(bytes.len(), size));
        }
        Ok(bytes)
    }

    /// The same bytes in another class of storage.
    pub(super) async fn replace_in_class(
        &self,
        key: &str,
        payload: PutPayload,
        class: &str,
    ) -> Result<(), StorageError> {
        let path = self.path(key)?;
        let limit = self.patience.for_upload(payload.content_length());
        let attributes: Attributes = [(Attribute::StorageClass, class.to_owned())].into_iter().collect();
        let options = || PutOptions { attributes: attributes.clone(), ..PutOptions::default() };
        let put = || self.store.put_opts(&path, payload.clone(), options());
        let done = self.persist(&self.doing("write", key), limit, put).await;
        done.map(|_| ()).map_err(|failure| self.settle(failure, "write", key))
    }

    /// What the storage says about an object without giving it.
    pub(super) async fn look_at(&self, key: &str) -> Result<Answer, StorageError> {
        let path = self.path(key)?;
        let head = || self.store.get_opts(&path, GetOptions { head: true, ..GetOptions::default() });
        let found = self.persist(&self.doing("look at", key), self.patience.stall, head).await;
        found.map(|(_, answer)| answer).map_err(|failure| self.settle(failure, "look at", key))
    }

    pub(super) async fn size_of(&self, key: &str) -> Result<u64, StorageError> {
        let path = self.path(key)?;
        let found = self.persist(&self.doing("look at", key), self.patience.stall, || self.store.head(&path)).await;
        found.map(|(meta, _)| meta.size).map_err(|failure| self.settle(failure, "look at", key))
    }

    pub(super) async fn remove(&self, key: &str) -> Result<Answer, StorageError> {
        let path = self.path(key)?;
        let doing = self.doing("delete", key);
        match self.persist(&doing, self.patience.stall, || self.store.delete(&path)).await {
            Ok((_, answer)) => Ok(answer),
            Err(Failure::Final(StorageError::NotFound { .. })) => Ok(Answer::default()),
            Err(failure) => Err(self.settle(failure, "delete", key)),
        }
    }

    pub(super) fn settle(&self, failure: Failure, verb: &'static str, key: &str) -> StorageError {
        match failure {
            Failure::Final(error) | Failure::Passing { error, .. } => error,
            Failure::Exists => {
                self.doing(verb, key).io(std::io::ErrorKind::AlreadyExists, "something is there already")
            }
            Failure::BeyondEnd => self.doing(verb, key).io(std::io::ErrorKind::InvalidInput, "it is shorter than that"),
            Failure::WantsDigest => {
                self.doing(verb, key).io(std::io::ErrorKind::InvalidData, "the bucket wants an MD5 of it, and has it")
            }
        }
    }
}

enum Unread {
    Failed(object_store::Error),
    Stalled,
    Torn(usize, u64),
    Unusable(StorageError),
}

impl From<object_store::Error> for Unread {
    fn from(error: object_store::Error) -> Unread {
        Unread::Failed(error)
    }
}

impl From<tokio::time::error::Elapsed> for Unread {
    fn from(_: tokio::time::error::Elapsed) -> Unread {
        Unread::Stalled
    }
}

/// The metadata by which an object says who created it.
pub(super) fn signed_with(token: &str) -> Attributes {
    let mut attributes = Attributes::new();
    attributes.insert(Attribute::Metadata(TOKEN.into()), token.to_owned().into());
    attributes
}

pub(super) fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let bits =
            three.iter().enumerate().fold(0u32, |bits, (place, byte)| bits | u32::from(*byte) << (16 - 8 * place));
        for place in 0..4 {
            let letter = LETTERS.get((bits >> (18 - 6 * place) & 63) as usize).copied().unwrap_or(b'=');
            text.push(char::from(if place > three.len() { b'=' } else { letter }));
        }
    }
    text
}

fn token() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Says how often it was tried.
fn counted(error: StorageError, count: u32) -> StorageError {
    match error {
        StorageError::Io { verb, key, location, source } if count > 1 => StorageError::Io {
            verb,
            key,
            location,
            source: std::io::Error::new(source.kind(), format!("{source} (tried {count} times)")),
        },
        other => other,
    }
}
