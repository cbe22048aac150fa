//! Object Lock: what the bucket does by itself, how long an object is locked, and making that longer.
//!
//! The library has no verbs for it: it signs addresses, and its own connections carry the requests. Invariants: no signed address is in
//! any message; a right to pass over locks is used for nothing but finding out whether it is there, on an object of the doctor's own.

use std::time::Duration;

use futures_util::StreamExt;
use jiff::Timestamp;
use lifeboat_vault::storage::{Lock, LockMode, Locking, StorageError};
use md5::{Digest, Md5};
use object_store::client::{HttpRequest, HttpRequestBody};
use object_store::signer::{HeaderName, HeaderValue, Method, SignedUrlOptions, Signer, Url};

use super::failure::Failure;
use super::setup::Asks;
use super::verbs::{Shared, base64};

const ANSWER_BYTES_MAX: usize = 64 << 10;
/// So long a signed address is good for.
const SIGNED_FOR: Duration = Duration::from_secs(300);
const BYPASS: HeaderName = HeaderName::from_static("x-amz-bypass-governance-retention");

/// What is asked for beside the six verbs.
pub(super) struct Question<'a> {
    pub(super) verb: &'static str,
    pub(super) method: Method,
    /// Empty: the bucket itself.
    pub(super) key: &'a str,
    pub(super) setting: &'static str,
    pub(super) body: Option<String>,
    pub(super) bypass: bool,
}

impl<'a> Question<'a> {
    pub(super) fn read(key: &'a str, setting: &'static str) -> Question<'a> {
        Question { verb: "look at", method: Method::GET, key, setting, body: None, bypass: false }
    }
}

/// Asks until it is answered, refused, or patience ends.
pub(super) async fn ask(shared: &Shared, asks: &Asks, question: &Question<'_>) -> Result<String, Failure> {
    let path = match question.key {
        // The bucket's settings are asked for at its root, whatever the prefix.
        "" => object_store::path::Path::default(),
        key => shared.path(key).map_err(Failure::Final)?,
    };
    let mut options = SignedUrlOptions::default().with_query([(question.setting, "")]);
    if question.bypass {
        options = options.with_signed_header(BYPASS, HeaderValue::from_static("true"));
    }
    let doing = shared.doing(question.verb, question.key);
    let send = || async {
        let url = asks.s3.signed_url_opts(question.method.clone(), &path, SIGNED_FOR, &options).await?;
        send(asks, question, &url).await
    };
    shared.persist(&doing, shared.patience().stall, send).await.map(|(text, _)| text)
}

fn broken(text: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> object_store::Error {
    // What it says is not shown: what was seen on the wire is.
    object_store::Error::Generic { store: "S3", source: text.into() }
}

async fn send(asks: &Asks, question: &Question<'_>, url: &Url) -> object_store::Result<String> {
    let body = question.body.clone().unwrap_or_default();
    let mut request = HttpRequest::new(HttpRequestBody::from(body.clone()));
    *request.method_mut() = question.method.clone();
    *request.uri_mut() = url.as_str().parse().map_err(|_| broken("no address"))?;
    if question.body.is_some() {
        let md5 = base64(&Md5::digest(body.as_bytes()));
        let headers = request.headers_mut();
        headers.insert("content-md5", HeaderValue::from_str(&md5).map_err(|_| broken("no header"))?);
        headers.insert("content-type", HeaderValue::from_static("application/xml"));
    }
    if question.bypass {
        request.headers_mut().insert(BYPASS, HeaderValue::from_static("true"));
    }
    let response = asks.http.execute(request).await.map_err(broken)?;
    let is_success = response.status().is_success();
    let mut text = Vec::new();
    let mut chunks = response.into_body().bytes_stream();
    while let Some(chunk) = chunks.next().await {
        text.extend_from_slice(&chunk.map_err(broken)?);
        if text.len() > ANSWER_BYTES_MAX {
            return Err(broken("too long an answer"));
        }
    }
    match is_success {
        true => String::from_utf8(text).map_err(|_| broken("no text")),
        false => Err(broken("refused")),
    }
}

/// Whether the bucket locks, and what by itself.
pub(super) async fn locking(shared: &Shared) -> Result<Option<Locking>, StorageError> {
    let Some(asks) = shared.asks() else { return Ok(None) };
    match ask(shared, asks, &Question::read("", "object-lock")).await {
        Ok(text) => Ok(read_locking(&text)),
        // That it has no such setting is told in many ways.
        Err(Failure::Final(StorageError::NotFound { .. } | StorageError::Unsuitable { .. })) => Ok(None),
        Err(Failure::Final(StorageError::NoBucket { location })) => match has_bucket(shared, asks).await {
            true => Ok(None),
            false => Err(StorageError::NoBucket { location }),
        },
        Err(failure) => Err(shared.settle(failure, "look at", "object-lock")),
    }
}

/// A setting that is not there and a bucket that is not there are both "not found" to who asks the bucket.
async fn has_bucket(shared: &Shared, asks: &Asks) -> bool {
    ask(shared, asks, &Question::read("", "versioning")).await.is_ok()
}

pub(super) fn read_locking(text: &str) -> Option<Locking> {
    if element(text, "ObjectLockEnabled")? != "Enabled" {
        return None;
    }
    let days = element(text, "Days").and_then(|days| days.parse::<u32>().ok());
    let years = || element(text, "Years").and_then(|years| years.parse::<u32>().ok()?.checked_mul(365));
    let mode = element(text, "Mode").and_then(|mode| mode.parse().ok());
    Some(Locking { by_itself: days.or_else(years).zip(mode) })
}

/// It stands in the answer's head for who may know it, and costs one small request.
pub(super) async fn lock_of(shared: &Shared, key: &str) -> Result<Option<Lock>, StorageError> {
    asks(shared)?;
    match shared.look_at(key).await {
        Ok(answer) => Ok(answer.lock),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) async fn lock(shared: &Shared, key: &str, lock: Lock) -> Result<(), StorageError> {
    let done = retain(shared, key, lock, false).await;
    done.map_err(|failure| shared.settle(failure, "lock", key))
}

/// Tries to shorten a lock by passing over it.
pub(super) async fn may_bypass(shared: &Shared, key: &str, until: Timestamp) -> Result<bool, StorageError> {
    match retain(shared, key, Lock { until, mode: LockMode::Governance }, true).await {
        Ok(()) => Ok(true),
        Err(Failure::Final(StorageError::Denied { .. } | StorageError::Locked { .. })) => Ok(false),
        Err(failure) => Err(shared.settle(failure, "lock", key)),
    }
}

async fn retain(shared: &Shared, key: &str, Lock { until, mode }: Lock, bypass: bool) -> Result<(), Failure> {
    let asks = asks(shared).map_err(Failure::Final)?;
    let mode = mode.to_string().to_ascii_uppercase();
    // Whole seconds: not every storage takes more.
    let until = Timestamp::from_second(until.as_second()).unwrap_or(until);
    let body = format!(
        "<Retention xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Mode>{mode}</Mode>\
         <RetainUntilDate>{until}</RetainUntilDate></Retention>"
    );
    let question = Question { verb: "lock", method: Method::PUT, key, setting: "retention", body: Some(body), bypass };
    ask(shared, asks, &question).await.map(|_| ())
}

fn asks(shared: &Shared) -> Result<&Asks, StorageError> {
    shared.asks().ok_or_else(|| StorageError::NoLocks { location: shared.location.clone() })
}

/// The text of the first element of this name, with or without attributes, where it is a plain word, number or time.
pub(super) fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let value = rest.split_once('<')?.0.trim();
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | ':' | '.' | '+');
    (!value.is_empty() && value.len() <= 40 && value.chars().all(is_plain)).then_some(value)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_a_bucket_says_of_locks_is_read_and_nonsense_is_none() {
        let of = |inner: &str| {
            read_locking(&format!("<?xml?><ObjectLockConfiguration xmlns=\"x\">{inner}</ObjectLockConfiguration>"))
        };
        let rule = |mode: &str, period: &str| {
            of(&format!(
                "<ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention><Mode>{mode}</Mode>{period}</DefaultRetention></Rule>"
            ))
        };
        let by_itself = |locking: Option<Locking>| locking.unwrap().by_itself;
        assert_eq!(by_itself(rule("GOVERNANCE", "<Days>30</Days>")), Some((30, LockMode::Governance)));
        assert_eq!(by_itself(rule("COMPLIANCE", "<Years>2</Years>")), Some((730, LockMode::Compliance)));
        assert_eq!(by_itself(rule("WHATEVER", "<Years>2</Years>")), None);
        assert_eq!(by_itself(rule("GOVERNANCE", "<Years>99999999999</Years>")), None);
        assert_eq!(of(""), None);
        assert_eq!(of("<ObjectLockEnabled>Disabled</ObjectLockEnabled>"), None);
    }
}
