//! What went over the wire in one try: the status, the storage's own code for what is wrong, how long it wants us to wait.
//!
//! The library's errors hold addresses and bodies; ours are made from what is kept here, bounded and without either.
//! Invariant: nothing kept here comes from a request, so no credential and no signature does.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use jiff::Timestamp;
use lifeboat_vault::storage::Lock;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
    ReqwestConnector,
};
use object_store::{ClientOptions, HeaderValue, Result};

/// Error answers are a few hundred bytes; more of one is not read.
const ERROR_BYTES_MAX: usize = 64 << 10;
const TEXT_CHARS_MAX: usize = 200;

tokio::task_local! {
    static SEEN: Arc<Mutex<Answer>>;
    static CREATE_ONLY: ();
    static DIGEST: HeaderValue;
}

/// Sends the body's MD5 along, which need not be signed: some buckets with Object Lock take no object without it.
pub(super) async fn with_digest<T>(md5: Option<HeaderValue>, task: impl Future<Output = T>) -> T {
    match md5 {
        Some(md5) => DIGEST.scope(md5, task).await,
        None => task.await,
    }
}

/// Completes an upload only where nothing is: the library leaves the condition out, and it need not be signed.
pub(super) async fn create_only<T>(task: impl Future<Output = T>) -> T {
    CREATE_ONLY.scope((), task).await
}

/// The last answer of one try.
#[derive(Debug, Clone, Default)]
pub(super) struct Answer {
    pub(super) status: Option<u16>,
    /// The storage's own name for what is wrong, such as `SlowDown`.
    pub(super) code: Option<String>,
    pub(super) message: Option<String>,
    pub(super) retry_after: Option<Duration>,
    /// The storage's clock, and when we heard it.
    pub(super) date: Option<(Timestamp, Timestamp)>,
    /// No answer came.
    pub(super) broken: Option<(HttpErrorKind, String)>,
    /// It was not the storage that was asked, but who gives out credentials.
    pub(super) about_credentials: bool,
    /// The storage keeps versions: it named one.
    pub(super) versioned: bool,
    /// The object's class, where it is not the ordinary one.
    pub(super) class: Option<String>,
    /// How long the object is locked, as far as whoever asked may know.
    pub(super) lock: Option<Lock>,
    /// Somebody asked that it be made readable, and it is not yet.
    pub(super) is_thawing: bool,
}

impl Answer {
    pub(super) fn is_success(&self) -> bool {
        self.status.is_some_and(|status| (200..300).contains(&status))
    }
}

/// Runs one try, and gives what was seen on the wire besides.
pub(super) async fn watch<T>(task: impl Future<Output = T>) -> (T, Answer) {
    let seen = Arc::new(Mutex::new(Answer::default()));
    let result = SEEN.scope(seen.clone(), task).await;
    let answer = std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner));
    (result, answer)
}

/// Makes the library's HTTP clients, watched.
#[derive(Debug, Default)]
pub(super) struct Watching;

impl HttpConnector for Watching {
    fn connect(&self, options: &ClientOptions) -> Result<HttpClient> {
        Ok(HttpClient::new(Watched(ReqwestConnector::default().connect(options)?)))
    }
}

#[derive(Debug)]
struct Watched(HttpClient);

#[async_trait::async_trait]
impl HttpService for Watched {
    async fn call(&self, mut request: HttpRequest) -> std::result::Result<HttpResponse, HttpError> {
        let completes = request.method().as_str() == "POST"
            && request.uri().query().is_some_and(|query| query.starts_with("uploadId="));
        if completes && CREATE_ONLY.try_with(|()| ()).is_ok() {
            request.headers_mut().insert("if-none-match", HeaderValue::from_static("*"));
        }
        if let (true, Ok(md5)) = (request.method().as_str() == "PUT", DIGEST.try_with(HeaderValue::clone)) {
            request.headers_mut().insert("content-md5", md5);
        }
        let about_credentials = request.uri().host().is_some_and(gives_credentials);
        let is_batch = request.uri().query().is_some_and(|query| query.contains("comp=batch"));
        let answered = self.0.execute(request).await;
        let (mut answer, result) = match answered {
            Err(error) => {
                let broken = Some((error.kind(), innermost(&error)));
                (Answer { broken, ..Answer::default() }, Err(error))
            }
            Ok(response) if is_batch && response.status().is_success() => read_batch(response).await,
            Ok(response) => read(response).await,
        };
        answer.about_credentials = about_credentials;
        let _ = SEEN.try_with(|seen| *seen.lock().unwrap_or_else(PoisonError::into_inner) = answer);
        result
    }
}

fn gives_credentials(host: &str) -> bool {
    matches!(host, "169.254.169.254" | "169.254.170.2" | "169.254.170.23" | "metadata.google.internal" | "metadata")
        || host.starts_with("sts.")
        || matches!(host, "login.microsoftonline.com" | "oauth2.googleapis.com" | "accounts.google.com")
}

/// The library has Azure delete in batches, of one here: what became of it stands within an answer that says that all went well.
async fn read_batch(response: HttpResponse) -> (Answer, std::result::Result<HttpResponse, HttpError>) {
    let (mut answer, response) = match read(response).await {
        (answer, Ok(response)) => (answer, response),
        failed => return failed,
    };
    let (parts, body) = response.into_parts();
    let text = first_of(body).await;
    (answer.status, answer.code) = within(&text, answer.status);
    (answer, Ok(HttpResponse::from_parts(parts, HttpResponseBody::from(text))))
}

/// Status and code of the first answer within an answer.
fn within(text: &str, outer: Option<u16>) -> (Option<u16>, Option<String>) {
    let header = |line: &str| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("x-ms-error-code").then(|| plain(value.trim()))
    };
    let status = text.lines().find_map(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
    (status.or(outer), text.lines().find_map(header))
}

async fn first_of(body: HttpResponseBody) -> String {
    let mut text = Vec::new();
    let mut chunks = body.bytes_stream();
    while let Some(Ok(chunk)) = chunks.next().await {
        text.extend_from_slice(&chunk);
        if text.len() >= ERROR_BYTES_MAX {
            text.truncate(ERROR_BYTES_MAX);
            break;
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

async fn read(response: HttpResponse) -> (Answer, std::result::Result<HttpResponse, HttpError>) {
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let versioned = header("x-amz-version-id").is_some_and(|version| version != "null")
        || header("x-amz-delete-marker").is_some()
        || header("x-ms-version-id").is_some();
    let date = header("date").and_then(|text| jiff::fmt::rfc2822::parse(text).ok());
    let mut answer = Answer {
        status: Some(response.status().as_u16()),
        retry_after: header("retry-after").and_then(|text| text.parse().ok()).map(Duration::from_secs),
        code: header("x-ms-error-code").map(plain),
        date: date.map(|date| (date.timestamp(), Timestamp::now())),
        versioned,
        class: ["x-amz-storage-class", "x-goog-storage-class", "x-ms-access-tier"]
            .into_iter()
            .find_map(header)
            .map(plain),
        lock: header("x-amz-object-lock-retain-until-date")
            .zip(header("x-amz-object-lock-mode"))
            .and_then(|(until, mode)| Some(Lock { until: until.parse().ok()?, mode: mode.parse().ok()? })),
        is_thawing: header("x-amz-restore").is_some_and(|text| text.contains("ongoing-request=\"true\""))
            || header("x-ms-archive-status").is_some_and(|text| text.starts_with("rehydrate-pending")),
        ..Answer::default()
    };
    if response.status().is_success() {
        return (answer, Ok(response));
    }
    let (parts, body) = response.into_parts();
    let shown = first_of(body).await;
    answer.code = answer.code.or_else(|| element(&shown, "Code"));
    answer.message = element(&shown, "Message");
    let body = HttpResponseBody::from(shown);
    (answer, Ok(HttpResponse::from_parts(parts, body)))
}

/// The text of the first `<NAME>…</NAME>`.
fn element(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inner, _) = rest.split_once(&format!("</{name}>"))?;
    (!inner.is_empty()).then(|| plain(inner))
}

/// A stranger's text, fit to be shown.
fn plain(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(TEXT_CHARS_MAX).collect()
}

/// What lies at the bottom of a transport's error: the only part that names no address.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    plain(&cause.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_a_deletion_is_read_within_a_batch() {
        let text = "--batch_1\r\nContent-Type: application/http\r\nContent-ID: 0\r\n\r\nHTTP/1.1 409 This operation is not permitted\r\n\
                    x-ms-error-code: BlobImmutableDueToPolicy\r\n\r\n--batch_1--";
        assert_eq!(within(text, Some(202)), (Some(409), Some("BlobImmutableDueToPolicy".to_owned())));
        assert_eq!(within("--batch_1\r\nHTTP/1.1 202 Accepted\r\n", Some(202)), (Some(202), None));
        assert_eq!(within("HTTP/1.1 4", Some(202)), (Some(202), None));
    }

    #[test]
    fn a_stranger_s_error_is_read_bounded_and_plain() {
        let text = format!("<Error><Code>Slow\u{1b}Down</Code><Message>{}</Message></Error>", "x".repeat(1000));
        assert_eq!(element(&text, "Code").as_deref(), Some("SlowDown"));
        assert_eq!(element(&text, "Message").map(|message| message.len()), Some(TEXT_CHARS_MAX));
        assert_eq!(element("<Code>open", "Code"), None);
        assert_eq!(element("", "Code"), None);
    }
}
