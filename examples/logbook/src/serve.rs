//! The HTTP side of the logbook.
//!
//! Invariant: 201 is answered only for what is durable, and 200 from `/healthz` only when a write could be done.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;

use crate::entries::{Added, Entries, EntriesError};
use crate::uploads::{Uploads, UploadsError};

/// Entries, uploads and canary values beyond this are refused.
const BODY_BYTES_MAX: usize = 1 << 20;
/// A client-chosen id is short printable ASCII.
const ID_MAX: usize = 128;
/// A page of `GET /entries`.
const PAGE_ENTRIES: u32 = 500;
/// Connections that are still open so long after SIGTERM are cut.
const DRAIN_SECONDS: u64 = 5;

/// Where the service keeps its data and listens.
#[derive(Debug, Clone, clap::Args)]
pub struct ServeOptions {
    /// The SQLite database, which is made if it is not there; or a server's: postgres://USER@HOST:PORT/DATABASE.
    #[arg(long, value_name = "PATH|URL")]
    pub database: String,
    /// The directory of uploads; it is made if it is not there.
    #[arg(long, value_name = "DIR")]
    pub uploads: PathBuf,
    /// Where to listen; port 0 takes any free one and prints it.
    #[arg(long, value_name = "IP:PORT")]
    pub listen: SocketAddr,
    /// Lets POST /corrupt destroy the data, as a bad release would.
    #[arg(long)]
    pub allow_corrupt: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("cannot open the logbook's {what}")]
    Open { what: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("serving stopped")]
    Serve { source: std::io::Error },
}

struct Logbook {
    entries: Mutex<Entries>,
    uploads: Uploads,
    allow_corrupt: bool,
}

/// Serves until SIGTERM or SIGINT, then lets requests that are under way finish.
pub async fn serve(options: ServeOptions) -> Result<(), ServeError> {
    let open = |what| move |source: Box<dyn std::error::Error + Send + Sync>| ServeError::Open { what, source };
    let opened = Entries::open(&options.database).map_err(|error| open("database")(error.into()))?;
    let uploads = Uploads::open(&options.uploads).map_err(|error| open("uploads")(error.into()))?;
    let logbook = Arc::new(Logbook { entries: Mutex::new(opened), uploads, allow_corrupt: options.allow_corrupt });
    let failed = |source| ServeError::Listen { address: options.listen, source };
    let listener = tokio::net::TcpListener::bind(options.listen).await.map_err(failed)?;
    eprintln!("logbook: listening on {}", listener.local_addr().map_err(failed)?);

    let (stop, stopped) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        if let Err(error) = crate::stop_signal().await {
            eprintln!("logbook: cannot wait for signals ({error}): stop it with SIGKILL");
            std::future::pending::<()>().await;
        }
        let _ = stop.send(true);
    });
    let wait = |mut stopped: tokio::sync::watch::Receiver<bool>| async move {
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    let serving = axum::serve(listener, router(logbook)).with_graceful_shutdown(wait(stopped.clone()));
    let drained = async {
        wait(stopped).await;
        tokio::time::sleep(Duration::from_secs(DRAIN_SECONDS)).await;
    };
    tokio::select! {
        ended = serving => ended.map_err(|source| ServeError::Serve { source }),
        () = drained => Ok(()),
    }
}

fn router(logbook: Arc<Logbook>) -> Router {
    Router::new()
        .route("/healthz", get(health))
        .route("/entries", post(add_entry).get(list_entries))
        .route("/entries/{id}", get(read_entry))
        .route("/uploads/{name}", put(write_upload).get(read_upload))
        .route("/canary", post(write_canary).get(read_canary))
        .route("/corrupt", post(corrupt))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(logbook)
}

/// A request that failed: its status and a sentence.
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

impl From<EntriesError> for Refusal {
    fn from(error: EntriesError) -> Refusal {
        Refusal(StatusCode::SERVICE_UNAVAILABLE, with_cause(&error))
    }
}

impl From<UploadsError> for Refusal {
    fn from(error: UploadsError) -> Refusal {
        let status = match error {
            UploadsError::BadName => StatusCode::BAD_REQUEST,
            UploadsError::Io { .. } => StatusCode::SERVICE_UNAVAILABLE,
        };
        Refusal(status, with_cause(&error))
    }
}

fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// Runs blocking work with the logbook away from the threads that serve.
async fn blocking<T: Send + 'static>(
    logbook: Arc<Logbook>,
    work: impl FnOnce(&Logbook) -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(move || work(&logbook)).await {
        Ok(result) => result,
        Err(error) => {
            Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, format!("the request was not carried out: {error}")))
        }
    }
}

impl Logbook {
    fn entries(&self) -> std::sync::MutexGuard<'_, Entries> {
        // A panic while the lock was held rolled its transaction back: the connection is as good as before.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn health(State(logbook): State<Arc<Logbook>>) -> Result<Response, Refusal> {
    blocking(logbook, |logbook| {
        logbook.entries().check_writable()?;
        logbook.uploads.check()?;
        Ok(())
    })
    .await?;
    Ok(Json(json!({ "status": "writable" })).into_response())
}

async fn add_entry(State(logbook): State<Arc<Logbook>>, headers: HeaderMap, body: String) -> Result<Response, Refusal> {
    let id = headers.get("x-entry-id").and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    if id.is_empty() || id.len() > ID_MAX || !id.chars().all(|c| c.is_ascii_graphic() && c != '/') {
        let text = format!("the header X-Entry-Id must hold 1 to {ID_MAX} printable ASCII characters without a slash");
        return Err(Refusal(StatusCode::BAD_REQUEST, text));
    }
    let named = id.clone();
    let added = blocking(logbook, move |logbook| Ok(logbook.entries().add(&named, &body)?)).await?;
    match added {
        Added::New { sequence } => {
            Ok((StatusCode::CREATED, Json(json!({ "id": id, "sequence": sequence }))).into_response())
        }
        Added::Again { sequence } => Ok(Json(json!({ "id": id, "sequence": sequence })).into_response()),
        Added::Conflict => Err(Refusal(StatusCode::CONFLICT, format!("the id {id} is taken by another text"))),
    }
}

async fn read_entry(State(logbook): State<Arc<Logbook>>, Path(id): Path<String>) -> Result<Response, Refusal> {
    let found = blocking(logbook, move |logbook| Ok(logbook.entries().get(&id)?)).await?;
    match found {
        Some(entry) => Ok(Json(entry).into_response()),
        None => Err(Refusal(StatusCode::NOT_FOUND, "no such entry".to_owned())),
    }
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    after: i64,
}

async fn list_entries(State(logbook): State<Arc<Logbook>>, Query(page): Query<Page>) -> Result<Response, Refusal> {
    let entries = blocking(logbook, move |logbook| Ok(logbook.entries().after(page.after, PAGE_ENTRIES)?)).await?;
    Ok(Json(json!({ "entries": entries })).into_response())
}

async fn write_upload(
    State(logbook): State<Arc<Logbook>>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Response, Refusal> {
    let bytes = body.len();
    let named = name.clone();
    blocking(logbook, move |logbook| Ok(logbook.uploads.put(&named, &body)?)).await?;
    Ok((StatusCode::CREATED, Json(json!({ "name": name, "bytes": bytes }))).into_response())
}

async fn read_upload(State(logbook): State<Arc<Logbook>>, Path(name): Path<String>) -> Result<Response, Refusal> {
    let found = blocking(logbook, move |logbook| Ok(logbook.uploads.get(&name)?)).await?;
    found.map(IntoResponse::into_response).ok_or_else(|| Refusal(StatusCode::NOT_FOUND, "no such upload".to_owned()))
}

async fn write_canary(State(logbook): State<Arc<Logbook>>, body: String) -> Result<StatusCode, Refusal> {
    if body.is_empty() || body.len() > ID_MAX {
        return Err(Refusal(StatusCode::BAD_REQUEST, format!("a canary value has 1 to {ID_MAX} characters")));
    }
    blocking(logbook, move |logbook| Ok(logbook.entries().write_canary(&body)?)).await?;
    Ok(StatusCode::CREATED)
}

async fn read_canary(State(logbook): State<Arc<Logbook>>) -> Result<String, Refusal> {
    let value = blocking(logbook, |logbook| Ok(logbook.entries().newest_canary()?)).await?;
    value.ok_or_else(|| Refusal(StatusCode::NOT_FOUND, "no canary was written yet".to_owned()))
}

async fn corrupt(State(logbook): State<Arc<Logbook>>) -> Result<Response, Refusal> {
    if !logbook.allow_corrupt {
        let text = "this service was started without --allow-corrupt, so nothing was touched";
        return Err(Refusal(StatusCode::FORBIDDEN, text.to_owned()));
    }
    let done = blocking(logbook, |logbook| Ok(logbook.entries().corrupt()?)).await?;
    Ok(Json(done).into_response())
}
