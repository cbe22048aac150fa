//! `lifeboat dns`: the DNS authority, a process of its own that outlives every controller.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lifeboat_adapters::traffic::authority::{AuthorityConfig, serve};
use lifeboat_core::plan::{Dns, Plan};
use lifeboat_engine::arbitrate::{Trusted, Trustee};
use lifeboat_engine::traffic::{ArbiterTraffic, TrustedKeys};
use lifeboat_vault::Role;
use lifeboat_vault::sign::PublicKey;
use lifeboat_vault::storage::{self, StorageError};
use serde::Serialize;

use crate::door;
use crate::error::{CommandError, Exit, Explain, Kind};
use crate::plan_file;
use crate::ui::Ui;
use crate::wiring;

/// How long a roster is believed without being read again.
const ROSTER_FOR: Duration = Duration::from_secs(5);
/// Users wait for a move's end; a bucket is asked less often, for each look is paid for.
const POLL_DIRECTORY_EVERY: Duration = Duration::from_millis(100);

/// Answer for the services' names in DNS, as the newest signed traffic generation says
///
/// Runs until it is told to stop (SIGTERM or Ctrl-C). It polls the arbiter and keeps what it has seen in its state
/// directory, so that it goes on answering when the arbiter, the plan and the controller are gone. Names, addresses and
/// the arbiter come from the plan unless they are given here.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to listen, UDP and TCP; port 0 takes any [default: what the plan's traffic says]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Vec<SocketAddr>,
    /// A name to answer for, fully qualified [default: the plan's, for this authority]
    #[arg(long, value_name = "NAME")]
    name: Vec<String>,
    /// A zone that holds several of the names; a name in none is a zone of its own
    #[arg(long, value_name = "NAME")]
    zone: Vec<String>,
    /// The arbiter's storage [default: the plan's]
    #[arg(long, value_name = "URL")]
    arbiter: Option<String>,
    /// A public key (64 hex digits) whose signed traffic generations are believed [default: those on the rosters of the
    /// plan's vaults]
    #[arg(long, value_name = "KEY")]
    trust: Vec<PublicKey>,
    /// Where the durable zone lies [default: `dns` in this host's state directory]
    #[arg(long, value_name = "DIR")]
    zone_state: Option<PathBuf>,
}

#[derive(Serialize)]
struct Ready<'a> {
    event: &'static str,
    listen: &'a [SocketAddr],
    names: &'a [String],
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let plan = plan_file::load_if_any(ui)?.map(|loaded| loaded.plan);
    let config = configure(args, plan.as_ref(), ui)?;
    let names = config.names.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let ready = |listen: &[SocketAddr]| say_ready(ui, listen, &names);
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        };
        serve(config, ready, stop).await.map_err(CommandError::from)
    });
    // A poll may hang in a storage that is away; it must not keep the process.
    runtime.shutdown_background();
    result.map(|()| Exit::Done)
}

fn say_ready(ui: &Ui, listen: &[SocketAddr], names: &[String]) {
    let at: Vec<String> = listen.iter().map(SocketAddr::to_string).collect();
    ui.line(format_args!("answering for {} at {}", names.join(" "), at.join(" ")));
    if let Err(error) = ui.event(&Ready { event: "ready", listen, names }) {
        ui.warn(error.message);
    }
}

fn configure(args: Args, plan: Option<&Plan>, ui: &Ui) -> Result<AuthorityConfig, CommandError> {
    let planned = plan.map(authorities).unwrap_or_default();
    let mut listen = args.listen;
    if listen.is_empty() {
        for (_, address) in &planned {
            let address: SocketAddr = address
                .parse()
                .saying(|| format!("the plan's authority `{address}` is not an address to listen on"))
                .kind(Kind::Usage)
                .hint("say where with --listen ADDRESS:PORT")?;
            if !listen.contains(&address) {
                listen.push(address);
            }
        }
    }
    let mut names = args.name;
    if names.is_empty() {
        names = planned.into_iter().map(|(name, _)| name).collect();
    }
    if names.is_empty() || listen.is_empty() {
        return Err(CommandError::usage("there is nothing to answer for, or nowhere to listen")
            .hint("give --name and --listen, or a plan whose traffic has `dns = { authority = \"ADDRESS:PORT\" }`"));
    }
    let url = args
        .arbiter
        .or_else(|| plan.and_then(|plan| plan.arbiter.as_ref()).map(|arbiter| arbiter.url.clone()))
        .ok_or_else(|| {
        CommandError::usage("there is no arbiter").hint("give --arbiter URL, or a plan with [arbiter]")
    })?;
    match storage::open(&url) {
        Err(error @ (StorageError::UnknownScheme { .. } | StorageError::BadAddress { .. })) => {
            return Err(CommandError::from(error).kind(Kind::Usage));
        }
        Err(error) => ui.warn(format_args!("the arbiter {url} is away ({error}); answering from the durable zone")),
        Ok(_) => {}
    }
    let trusted = believed(args.trust, plan, ui)?;
    let is_directory = url.starts_with("file://") || !url.contains("://");
    let source = ArbiterTraffic::at(url, trusted);
    let state = match args.zone_state {
        Some(state) => state,
        None => ui.state_directory()?.join("dns"),
    };
    let mut config = AuthorityConfig::new(listen, state, Arc::new(source), names);
    config.zones = args.zone;
    if is_directory {
        config.poll_every = POLL_DIRECTORY_EVERY;
    }
    Ok(config)
}

/// Whose generations are believed: the keys given, or else who is on the rosters of the plan's vaults now.
fn believed(given: Vec<PublicKey>, plan: Option<&Plan>, ui: &Ui) -> Result<TrustedKeys, CommandError> {
    if !given.is_empty() {
        let controller = |key| (key, Trustee::new("--trust", &[Role::Controller]));
        let given: Trusted = given.into_iter().map(controller).collect();
        return Ok(Arc::new(move || Ok(given.clone())));
    }
    let Some(plan) = plan.filter(|plan| !plan.vaults.is_empty()) else {
        return Err(CommandError::usage("nobody is believed: neither --trust nor a plan with a vault was given")
            .hint("give --trust KEY, or a plan with a [vault] whose roster says who may send traffic"));
    };
    let state = door::state(ui, None)?;
    let places = wiring::vault_places(plan, &state);
    let known: Mutex<Option<(Instant, Trusted)>> = Mutex::default();
    Ok(Arc::new(move || {
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, trusted)) = known.as_ref()
            && at.elapsed() < ROSTER_FOR
        {
            return Ok(trusted.clone());
        }
        let trusted = wiring::trusted(&places, &state, &|text| tracing::warn!("{text}"));
        let trusted = trusted.map_err(|error| error.message)?;
        *known = Some((Instant::now(), trusted.clone()));
        Ok(trusted)
    }))
}

/// Every name that uses the built-in authority, and where that listens.
fn authorities(plan: &Plan) -> Vec<(String, String)> {
    let traffic = plan.services.values().filter_map(|service| service.traffic.as_ref());
    traffic
        .filter_map(|traffic| match &traffic.dns {
            Dns::Authority(address) => Some((traffic.name.clone(), address.clone())),
            Dns::Rfc2136 { .. } => None,
        })
        .collect()
}
