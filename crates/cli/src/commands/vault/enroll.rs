//! `lifeboat vault enroll`: a new host asks, the owner approves.

use std::path::PathBuf;

use lifeboat_vault::{Request, Role};
use serde::Serialize;

use crate::door::{self, VaultArgs};
use crate::error::{CommandError, Exit};
use crate::report;
use crate::ui::Ui;

/// Let another host write (or prune, or give receipts): run it there to ask, then with a key (anywhere) to approve
///
/// Compare the fingerprint that the new host shows with the one that is approved: the storage in between is not trusted.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vault: VaultArgs,
    /// What this host is called in vaults [default: the machine's name]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["list", "approve"])]
    host: Option<String>,
    /// What it asks to do: write recovery points, leave tombstones, or give receipts as the keeper of a storage
    #[arg(long, value_enum, default_value_t = Asks::Host, conflicts_with_all = ["list", "approve"])]
    role: Asks,
    /// Show the requests that wait
    #[arg(long, conflicts_with = "approve")]
    list: bool,
    /// Approve the request with this fingerprint; needs --key
    #[arg(long, value_name = "FINGERPRINT", requires = "key")]
    approve: Option<String>,
    /// A key that opens the vault
    #[arg(long, value_name = "FILE", requires = "approve")]
    key: Vec<PathBuf>,
}

/// Roles that a machine can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Asks {
    Host,
    Pruner,
    Keeper,
    Observer,
}

impl Asks {
    fn role(self) -> Role {
        match self {
            Asks::Host => Role::Host,
            Asks::Pruner => Role::Pruner,
            Asks::Keeper => Role::Keeper,
            Asks::Observer => Role::Observer,
        }
    }

    /// What it may do from then on.
    fn does(role: Role) -> &'static str {
        match role {
            Role::Host => "write",
            Role::Pruner => "prune",
            Role::Keeper => "give receipts",
            _ => "take part",
        }
    }
}

#[derive(Serialize)]
struct Waiting<'a> {
    host: &'a str,
    fingerprint: &'a str,
    roles: &'a [Role],
}

#[derive(Serialize)]
struct Asked<'a> {
    host: &'a str,
    fingerprint: &'a str,
    enrolled: bool,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    match &args.approve {
        Some(fingerprint) => approve(&args, fingerprint, ui),
        None if args.list => list(&args, ui),
        None => ask(&args, ui),
    }
}

fn ask(args: &Args, ui: &Ui) -> Result<Exit, CommandError> {
    let named = args.vault.find(ui)?;
    let state = door::state(ui, args.host.as_deref())?;
    let vault = named.open(ui)?;
    let key = state.signing_key().public();
    let fingerprint = key.fingerprint();
    let host = state.host_name();
    let role = args.role.role();
    let does = Asks::does(role);
    if vault.roster().permits(&key, role) {
        ui.line(format_args!("host {host} may {does} already; its fingerprint is {fingerprint}"));
        ui.document(&Asked { host, fingerprint: &fingerprint, enrolled: true })?;
        return Ok(Exit::Done);
    }
    let request = vault.request_enrolment(&state, &[role]).map_err(CommandError::of_vault)?;
    ui.line(format_args!("host {} asks to {does}; its fingerprint is {}", request.name, request.fingerprint));
    ui.note(format_args!(
        "the owner approves with: lifeboat vault enroll --vault {} --key FILE --approve {}",
        named.name, request.fingerprint
    ));
    ui.document(&Asked { host: &request.name, fingerprint: &request.fingerprint, enrolled: false })?;
    let findings = vault.findings();
    door::show(&findings, ui);
    Ok(door::ends(&findings))
}

fn list(args: &Args, ui: &Ui) -> Result<Exit, CommandError> {
    let vault = args.vault.find(ui)?.open(ui)?;
    let requests = vault.enrolment_requests().map_err(CommandError::of_vault)?;
    let waiting: Vec<Waiting<'_>> = requests.iter().map(waiting).collect();
    ui.document(&waiting)?;
    if requests.is_empty() {
        ui.note("no request waits");
    } else {
        let rows: Vec<Vec<String>> =
            requests.iter().map(|request| vec![request.name.clone(), request.fingerprint.clone()]).collect();
        ui.line(report::table(&["HOST", "FINGERPRINT"], &rows).trim_end());
    }
    Ok(Exit::Done)
}

fn waiting(request: &Request) -> Waiting<'_> {
    Waiting { host: &request.name, fingerprint: &request.fingerprint, roles: &request.roles }
}

fn approve(args: &Args, fingerprint: &str, ui: &Ui) -> Result<Exit, CommandError> {
    let vault = args.vault.find(ui)?.unlock(&args.key, ui)?;
    let member = vault.approve(fingerprint).map_err(CommandError::of_vault)?;
    let does: Vec<&str> = member.roles.iter().map(|role| Asks::does(*role)).collect();
    ui.line(format_args!("host {} may {} from now on", member.name, does.join(" and ")));
    ui.document(&Asked { host: &member.name, fingerprint, enrolled: true })?;
    let findings = vault.findings();
    door::show(&findings, ui);
    Ok(door::ends(&findings))
}
