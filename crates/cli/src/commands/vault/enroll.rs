//! `lifeboat vault enroll`: a machine or person asks for roles, the owner approves exactly those.

use std::path::PathBuf;

use lifeboat_engine::arbitrate::role_names;
use lifeboat_vault::{Request, Role, VaultError};
use serde::Serialize;

use crate::door::{self, VaultArgs};
use crate::error::{CommandError, Exit};
use crate::report;
use crate::ui::Ui;

/// Put another machine or person on the roster: run it there to ask, then with a key (anywhere) to approve
///
/// Compare the fingerprint that the new one shows, and its roles, with what is approved: the storage in between is not
/// trusted.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vault: VaultArgs,
    /// What this host is called in vaults [default: the machine's name]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["list", "approve"])]
    host: Option<String>,
    /// What it is to be, once or several times; with --approve what it asks to be, exactly [default: host]
    #[arg(long, value_name = "ROLE", conflicts_with = "list")]
    role: Vec<AskedRole>,
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

/// A role as it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum AskedRole {
    /// Writes recovery points and logs, and reports to the arbiter
    Host,
    /// Decides in the arbiter who writes: runs failovers, drills and failbacks
    Controller,
    /// Signs for a person
    Person,
    /// Watches
    Observer,
    /// Takes recovery points out of retention
    Pruner,
    /// Keeps a storage (`vault serve`) and signs receipts
    Keeper,
}

impl From<AskedRole> for Role {
    fn from(asked: AskedRole) -> Role {
        match asked {
            AskedRole::Host => Role::Host,
            AskedRole::Controller => Role::Controller,
            AskedRole::Person => Role::Person,
            AskedRole::Observer => Role::Observer,
            AskedRole::Pruner => Role::Pruner,
            AskedRole::Keeper => Role::Keeper,
        }
    }
}

pub(super) fn roles(asked: &[AskedRole]) -> Vec<Role> {
    let mut roles: Vec<Role> = Vec::new();
    for role in asked.iter().copied().map(Role::from) {
        if !roles.contains(&role) {
            roles.push(role);
        }
    }
    roles
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
    roles: &'a [Role],
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
    let mut wanted = if args.role.is_empty() { vec![Role::Host] } else { roles(&args.role) };
    let roster = vault.roster();
    if let Some(member) = roster.member(&key) {
        if member.revoked.is_some() {
            return Err(CommandError::of_vault(VaultError::Revoked { host: member.name.clone() })
                .hint("`lifeboat vault rotate` gives this machine new keys"));
        }
        if wanted.iter().all(|role| member.roles.contains(role)) {
            let does = does(&wanted);
            ui.line(format_args!("host {host} may {does} already; its fingerprint is {fingerprint}"));
            ui.document(&Asked { host, fingerprint: &fingerprint, roles: &member.roles, enrolled: true })?;
            return Ok(Exit::Done);
        }
    }
    // What it is already, it stays.
    if let Some(member) = roster.member(&key) {
        let others: Vec<Role> = member.roles.iter().copied().filter(|role| !wanted.contains(role)).collect();
        wanted.extend(others);
    }
    let request = vault.request_enrolment(&state, &wanted).map_err(CommandError::of_vault)?;
    let does = does(&request.roles);
    ui.line(format_args!("host {} asks to {does}; its fingerprint is {}", request.name, request.fingerprint));
    ui.note(format_args!(
        "the owner approves with: lifeboat vault enroll --vault {} --key FILE --approve {}{}",
        named.name,
        request.fingerprint,
        as_options(&request.roles)
    ));
    ui.document(&Asked {
        host: &request.name,
        fingerprint: &request.fingerprint,
        roles: &request.roles,
        enrolled: false,
    })?;
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
        let row = |request: &Request| vec![request.name.clone(), as_named(&request.roles), request.fingerprint.clone()];
        let rows: Vec<Vec<String>> = requests.iter().map(row).collect();
        ui.line(report::table(&["HOST", "ASKS TO BE", "FINGERPRINT"], &rows).trim_end());
    }
    Ok(Exit::Done)
}

fn waiting(request: &Request) -> Waiting<'_> {
    Waiting { host: &request.name, fingerprint: &request.fingerprint, roles: &request.roles }
}

fn approve(args: &Args, fingerprint: &str, ui: &Ui) -> Result<Exit, CommandError> {
    let vault = args.vault.find(ui)?.unlock(&args.key, ui)?;
    let wanted = if args.role.is_empty() { vec![Role::Host] } else { roles(&args.role) };
    let member = vault.approve_as(fingerprint, &wanted).map_err(CommandError::of_wish)?;
    ui.line(format_args!("host {} may {} from now on", member.name, does(&member.roles)));
    ui.document(&Asked { host: &member.name, fingerprint, roles: &member.roles, enrolled: true })?;
    let findings = vault.findings();
    door::show(&findings, ui);
    Ok(door::ends(&findings))
}

/// What somebody with these roles may do.
fn does(roles: &[Role]) -> String {
    let does = |role: &Role| match role {
        Role::Host => "write",
        Role::Controller => "decide who writes",
        Role::Person => "sign",
        Role::Observer => "take part",
        Role::Pruner => "prune",
        Role::Keeper => "give receipts",
    };
    roles.iter().map(does).collect::<Vec<_>>().join(" and ")
}

/// As `--approve` wants them; none where it asks to be a host only.
fn as_options(roles: &[Role]) -> String {
    if roles == [Role::Host] {
        return String::new();
    }
    roles.iter().map(|role| format!(" --role {}", role_names(&[*role], ""))).collect()
}

fn as_named(roles: &[Role]) -> String {
    role_names(roles, " and ")
}
