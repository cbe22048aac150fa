//! One bounded HTTP exchange: who resolves the name, how long it may take, how much of the body is read.
//!
//! Invariant: no redirect is followed, no proxy is used, and no connection is kept, so that each exchange sees what a
//! new client would see.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, Method, Url};

use super::dns;

/// More of a body is never kept; a canary or a health page is far smaller.
const BODY_BYTES_MAX: usize = 1 << 20;
/// How much of an unexpected body an error shows.
const EXCERPT_CHARS_MAX: usize = 120;
const CONNECT_WAIT: Duration = Duration::from_secs(2);

/// Why there was no exchange, or not a healthy one.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("`{0}` is not a URL")]
    Url(String),
    #[error("`{0}` is not a request: write it as METHOD /path, such as GET /canary")]
    Request(String),
    #[error("no HTTP client can be made here: {0}")]
    Client(String),
    #[error("{url}: {seen}")]
    Exchange { url: String, seen: String },
    #[error("{url} answered with more than {BODY_BYTES_MAX} bytes")]
    TooLong { url: String },
    #[error("{url} answered {status}{excerpt}")]
    Unhealthy { url: String, status: reqwest::StatusCode, excerpt: String },
}

impl HttpError {
    /// Whether trying again later may help.
    pub fn may_pass(&self) -> bool {
        !matches!(self, HttpError::Url(_) | HttpError::Request(_) | HttpError::Client(_))
    }
}

/// Status and body of an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpAnswer {
    pub status: u16,
    pub body: String,
}

/// Speaks HTTP to names as one authority (or this machine's resolver) resolves them.
#[derive(Debug, Clone)]
pub struct HttpClient(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    authority: Option<String>,
    timeout: Duration,
    /// Without trust in any certificate: enough for `http:`, and it works on a machine that has none.
    plain: OnceLock<Client>,
    /// With the machine's certificates; made when a URL first needs it.
    tls: OnceLock<Client>,
}

impl HttpClient {
    pub fn new(authority: Option<String>, timeout: Duration) -> HttpClient {
        HttpClient(Arc::new(Inner { authority, timeout, plain: OnceLock::new(), tls: OnceLock::new() }))
    }

    /// Whether a GET is answered with 2xx; the error says what was seen instead.
    pub async fn healthy(&self, url: &str) -> Result<(), HttpError> {
        let (status, body) = self.send(Method::GET, url, None).await?;
        if status.is_success() {
            return Ok(());
        }
        Err(HttpError::Unhealthy { url: url.to_owned(), status, excerpt: excerpt(&body) })
    }

    pub async fn exchange(&self, method: &str, url: &str, body: Option<String>) -> Result<HttpAnswer, HttpError> {
        let method = Method::from_bytes(method.as_bytes()).map_err(|_| HttpError::Request(method.to_owned()))?;
        let (status, body) = self.send(method, url, body).await?;
        Ok(HttpAnswer { status: status.as_u16(), body })
    }

    async fn send(
        &self,
        method: Method,
        url: &str,
        body: Option<String>,
    ) -> Result<(reqwest::StatusCode, String), HttpError> {
        let parsed = Url::parse(url).map_err(|_| HttpError::Url(url.to_owned()))?;
        if !matches!(parsed.scheme(), "http" | "https") || !parsed.has_host() {
            return Err(HttpError::Url(url.to_owned()));
        }
        let seen = |seen: String| HttpError::Exchange { url: url.to_owned(), seen };
        let whole = async {
            let mut request = self.client(parsed.scheme() == "https")?.request(method, parsed);
            if let Some(body) = body {
                request = request.body(body);
            }
            let mut response = request.send().await.map_err(|error| seen(root_cause(&error)))?;
            let mut bytes = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(|error| seen(root_cause(&error)))? {
                if bytes.len() + chunk.len() > BODY_BYTES_MAX {
                    return Err(HttpError::TooLong { url: url.to_owned() });
                }
                bytes.extend_from_slice(&chunk);
            }
            Ok((response.status(), String::from_utf8_lossy(&bytes).into_owned()))
        };
        let limit = self.0.timeout;
        tokio::time::timeout(limit, whole)
            .await
            .unwrap_or_else(|_| Err(seen(format!("no answer within {} s", limit.as_secs_f64()))))
    }

    fn client(&self, tls: bool) -> Result<&Client, HttpError> {
        let slot = if tls { &self.0.tls } else { &self.0.plain };
        if let Some(client) = slot.get() {
            return Ok(client);
        }
        let mut builder = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .pool_max_idle_per_host(0)
            .connect_timeout(CONNECT_WAIT);
        if let Some(authority) = &self.0.authority {
            builder = builder.dns_resolver(Arc::new(AtAuthority(authority.clone())));
        }
        if !tls {
            builder = builder.tls_certs_only([]);
        }
        let client = builder.build().map_err(|error| HttpError::Client(root_cause(&error)))?;
        Ok(slot.get_or_init(|| client))
    }
}

/// Resolves every name at one authority.
#[derive(Debug)]
struct AtAuthority(String);

impl Resolve for AtAuthority {
    fn resolve(&self, name: Name) -> Resolving {
        let (authority, name) = (self.0.clone(), name.as_str().to_owned());
        Box::pin(async move {
            let found = dns::resolve_at(&authority, &name).await?;
            Ok(Box::new(found.into_iter().map(|address| SocketAddr::new(address, 0))) as Addrs)
        })
    }
}

/// The innermost cause: what the network itself said.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
        // A name server that is away must not look like a service that is.
        if let Some(error @ dns::DnsError::Unreachable { source, .. }) = innermost.downcast_ref() {
            return format!("{error}: {source}");
        }
    }
    innermost.to_string()
}

/// The start of a body, on one line, as an addition to a sentence.
pub(super) fn excerpt(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(EXCERPT_CHARS_MAX).collect();
    let clean = clean.trim();
    if clean.is_empty() { String::new() } else { format!(": \"{clean}\"") }
}
