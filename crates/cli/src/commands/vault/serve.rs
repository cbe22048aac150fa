//! `lifeboat vault serve`: an append-only front for a directory, for hosts that must not be trusted with the directory itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lifeboat_adapters::storage::served::{Listener, serve_stdio};
use lifeboat_core::units::Size;
use lifeboat_vault::serve::{Rights, ServeOptions, Served, Server, Who};
use lifeboat_vault::storage;
use serde::Serialize;

use crate::door;
use crate::error::{CommandError, Exit, Kind};
use crate::interrupt;
use crate::ui::Ui;

/// Serve a vault's directory to hosts that may only add to it
///
/// Hosts create what is theirs, checked before it is stored; they change and delete nothing, and read only what they need to go on.
/// Over SSH: put `command="lifeboat vault serve --stdio DIR --host NAME",restrict` before the host's key in authorized_keys, and
/// give the host the address ssh://USER@SERVER/DIR. On one machine: `--socket PATH`, and the address unix://PATH.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The vault's directory
    #[arg(value_name = "DIR")]
    directory: String,
    /// Serve who is at the other end of stdin and stdout
    #[arg(long, conflicts_with = "socket", required_unless_present = "socket")]
    stdio: bool,
    /// Serve who connects to this Unix socket
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Who connects is this host, whatever it says; without it, who connects proves its key, which must stand on the roster
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// What may be done besides writing as a host: `read` everything, `prune`, `copy` (bring anything that is rightly signed),
    /// `owner` (make the vault, change key files)
    #[arg(long, value_name = "RIGHT", value_enum, value_delimiter = ',')]
    allow: Vec<Right>,
    /// The owner's fingerprint, as `vault init` printed it
    #[arg(long, value_name = "FINGERPRINT")]
    owner: Option<String>,
    /// The vault may take up so much, for example 2TB
    #[arg(long, value_name = "SIZE")]
    quota: Option<Size>,
    /// So much stays free on its file system
    #[arg(long, value_name = "SIZE", default_value = "1GB")]
    keep_free: Size,
    /// So many connections are served at a time
    #[arg(long, value_name = "N", default_value_t = 64, requires = "socket")]
    connections: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Right {
    Read,
    Prune,
    Copy,
    Owner,
}

#[derive(Serialize)]
struct Ended<'a> {
    host: Option<&'a str>,
    created: u64,
    refused: u64,
    problem: Option<String>,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let rights = Rights {
        read: args.allow.contains(&Right::Read),
        prune: args.allow.contains(&Right::Prune),
        copy: args.allow.contains(&Right::Copy),
        owner: args.allow.contains(&Right::Owner),
    };
    let who = match &args.host {
        Some(name) => Who::Named(name.clone(), rights),
        None => Who::OnRoster(rights),
    };
    let server = Arc::new(server(&args, ui)?);
    match &args.socket {
        None => {
            let served = serve_stdio(&server, &who);
            served.map_err(|error| {
                CommandError::failed("the connection ended in the middle of a word").because(&error)
            })?;
            Ok(Exit::Done)
        }
        Some(path) => listen(&args, path, &server, &who, ui),
    }
}

fn server(args: &Args, ui: &Ui) -> Result<Server, CommandError> {
    let storage = storage::open(&args.directory).map_err(CommandError::of_storage)?;
    let keeper = door::state(ui, None)
        .inspect_err(|error| ui.warn(format_args!("this server gives no receipts: {}", error.message)));
    let directory = PathBuf::from(args.directory.trim_start_matches("file://"));
    let free = move || {
        let space = rustix::fs::statvfs(&directory).ok()?;
        Some(space.f_bavail.saturating_mul(space.f_frsize))
    };
    let options = ServeOptions {
        keeper: keeper.ok(),
        owner: args.owner.clone(),
        quota: args.quota.map(|quota| quota.0),
        free_min: args.keep_free.0,
        free: Some(Box::new(free)),
        ..ServeOptions::default()
    };
    Ok(Server::new(storage, options))
}

fn listen(args: &Args, path: &Path, server: &Arc<Server>, who: &Who, ui: &Ui) -> Result<Exit, CommandError> {
    let stop = interrupt::listen(ui)?;
    // A key decides who gets in, or else the socket's own permissions do.
    let mode = if matches!(who, Who::OnRoster(_)) { 0o666 } else { 0o600 };
    let listener = Listener::bind(path, mode).map_err(|error| {
        CommandError::failed(format!("the socket {} cannot be taken", path.display()))
            .because(&error)
            .hint("another server may live there; or its directory is missing; or name another path")
            .kind(if error.kind() == std::io::ErrorKind::AlreadyExists { Kind::Usage } else { Kind::Failed })
    })?;
    ui.note(format_args!("serving {} at unix://{}", args.directory, path.display()));
    if server.is_keeper() == Some(false) {
        ui.note("no receipts are given: this machine is no keeper on the roster (lifeboat vault enroll --role keeper)");
    }
    let json = ui.is_json();
    let say = move |ended: std::io::Result<Served>| {
        let (served, problem) = match ended {
            Ok(served) => (served, None),
            Err(error) => (Served::default(), Some(error.to_string())),
        };
        let ended = Ended { host: served.who.as_deref(), created: served.created, refused: served.refused, problem };
        if json && let Ok(text) = serde_json::to_string(&ended) {
            use std::io::Write;
            // Nobody may read it any more.
            let _ = writeln!(std::io::stdout().lock(), "{text}");
        } else if ended.refused > 0 || ended.problem.is_some() {
            let who = ended.host.unwrap_or("somebody");
            let problem = ended.problem.unwrap_or_default();
            tracing::warn!("{who}: {} refused {problem}", ended.refused);
        }
    };
    listener
        .run(server, who, args.connections, stop.flag(), say)
        .map_err(|error| CommandError::failed("no more connections can be taken").because(&error))?;
    Err(CommandError::interrupted("stopped"))
}
