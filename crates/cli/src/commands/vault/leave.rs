//! `lifeboat vault members`, `revoke` and `rotate`: who is on the roster, who leaves it, and how a machine that was broken into comes back.
//!
//! Invariant: a revocation says what still counts; new keys are made where they live and never travel.

use std::path::PathBuf;

use jiff::Timestamp;
use lifeboat_engine::arbitrate::role_names;
use lifeboat_vault::{ChainFrom, Member, Role, State};
use serde::Serialize;

use crate::door::{self, VaultArgs};
use crate::error::{CommandError, Exit};
use crate::report;
use crate::ui::Ui;

/// Show who is on the roster, as what, and who was revoked
#[derive(Debug, clap::Args)]
pub(crate) struct MembersArgs {
    #[command(flatten)]
    vault: VaultArgs,
}

/// Take a machine or person off the roster: nothing it signs counts any more, what it wrote so far does
///
/// Where it was broken into, say since when with --from: what came since then, by receipts or else by the storage's own clock, does
/// not count either. Its points are not removed.
#[derive(Debug, clap::Args)]
pub(crate) struct RevokeArgs {
    /// Its name on the roster
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    vault: VaultArgs,
    /// Since when it is not to be believed, e.g. 2026-11-21T14:00:00Z [default: from now on]
    #[arg(long, value_name = "TIME")]
    from: Option<Timestamp>,
    /// A key that opens the vault
    #[arg(long, value_name = "FILE", required = true)]
    key: Vec<PathBuf>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// Give this machine new keys, after it was broken into and cleaned: for signing, for its indexes, and for naming chunks
///
/// It must be enrolled again. What it has seen of vaults is kept, so that a roll-back is still noticed; the next backup uploads
/// everything once, because the old indexes do not open with the new keys.
#[derive(Debug, clap::Args)]
pub(crate) struct RotateArgs {
    /// A new name in vaults [default: the one it has]
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    roles: &'a [Role],
    fingerprint: String,
    revoked: bool,
}

#[derive(Serialize)]
struct Revoked<'a> {
    name: &'a str,
    counts_below: Vec<Below>,
}

#[derive(Serialize)]
struct Below {
    chain: String,
    number: u64,
}

pub(crate) fn members(args: &MembersArgs, ui: &Ui) -> Result<Exit, CommandError> {
    let vault = args.vault.find(ui)?.open(ui)?;
    let roster = vault.roster();
    let shown: Vec<Shown<'_>> = roster.members.iter().map(show).collect();
    ui.document(&shown)?;
    let row = |shown: &Shown<'_>| {
        let state = if shown.revoked { "revoked" } else { "" };
        vec![shown.name.to_owned(), role_names(shown.roles, ", "), shown.fingerprint.clone(), state.to_owned()]
    };
    let rows: Vec<Vec<String>> = shown.iter().map(row).collect();
    ui.line(report::table(&["NAME", "ROLES", "FINGERPRINT", ""], &rows).trim_end());
    let findings = vault.findings();
    door::show(&findings, ui);
    Ok(door::ends(&findings))
}

fn show(member: &Member) -> Shown<'_> {
    Shown {
        name: &member.name,
        roles: &member.roles,
        fingerprint: member.key.fingerprint(),
        revoked: member.revoked.is_some(),
    }
}

pub(crate) fn revoke(args: &RevokeArgs, ui: &Ui) -> Result<Exit, CommandError> {
    let named = args.vault.find(ui)?;
    let vault = named.unlock(&args.key, ui)?;
    let roster = vault.roster();
    let names: Vec<&str> =
        roster.members.iter().filter(|member| member.revoked.is_none()).map(|member| member.name.as_str()).collect();
    if !names.contains(&args.name.as_str()) {
        let hint = if names.is_empty() { "nobody is".to_owned() } else { format!("on it are: {}", names.join(", ")) };
        return Err(CommandError::usage(format!("`{}` is not on the roster, or revoked already", args.name)).hint(hint));
    }
    let what = match args.from {
        Some(from) => format!("{} is taken off the roster; nothing counts that came from it since {from}.", args.name),
        None => format!("{} is taken off the roster; what it wrote so far counts.", args.name),
    };
    ui.confirm(&what, args.yes)?;
    let from = vault.revoke_since(&args.name, args.from).map_err(CommandError::of_vault)?;
    ui.line(format_args!("{} is revoked", args.name));
    for end in &from {
        ui.note(format_args!("  {} counts below number {}", end.chain.trim_end_matches('/'), end.number));
    }
    ui.note(
        "take its credentials for the storage away, too; `lifeboat vault rotate` on the cleaned machine makes new keys",
    );
    let below = |end: &ChainFrom| Below { chain: end.chain.clone(), number: end.number };
    ui.document(&Revoked { name: &args.name, counts_below: from.iter().map(below).collect() })?;
    let findings = vault.findings();
    door::show(&findings, ui);
    Ok(door::ends(&findings))
}

pub(crate) fn rotate(args: &RotateArgs, ui: &Ui) -> Result<Exit, CommandError> {
    let directory = ui.state_directory()?;
    if !directory.join("host.key").exists() && !directory.join("index.key").exists() {
        return Err(CommandError::usage(format!("there are no keys of a host in {}", directory.display()))
            .hint("say where they are with --state DIR; a new machine gets its keys by `lifeboat vault enroll`"));
    }
    ui.confirm(
        "This machine gets new keys: until it is enrolled again it cannot write, and then it uploads everything once.",
        args.yes,
    )?;
    let state = State::rotate(&directory, args.host.as_deref()).map_err(CommandError::of_vault)?;
    let (host, fingerprint) = (state.host_name(), state.signing_key().public().fingerprint());
    ui.line(format_args!("host {host} has new keys; its fingerprint is {fingerprint}"));
    ui.note("revoke the old ones (`lifeboat vault revoke`), then run `lifeboat vault enroll` here; restart its agents");
    ui.document(&serde_json::json!({ "host": host, "fingerprint": fingerprint }))?;
    Ok(Exit::Done)
}
