//! `lifeboat vault init`.

use lifeboat_core::plan::{KeyHolder, KeyPurpose};
use lifeboat_vault::storage::{self, Storage};
use lifeboat_vault::{Finding, Holder, InitOptions, Recipient, Role, Vault};
use serde::Serialize;

use super::enroll::{AskedRole, roles};
use crate::door::{self, VaultArgs};
use crate::error::{CommandError, Exit, Explain, Kind};
use crate::plan_file;
use crate::ui::Ui;

/// Make a vault in an empty place, sealed to recipients; this host may write to it from then on
///
/// Prints the owner's fingerprint. Keep it (in the plan: `key.owner`): it proves that a vault is this one.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vault: VaultArgs,
    /// Who can open it: an age recipient (age1…), as `key new` printed it; give two or more [default: the plan's]
    #[arg(long, value_name = "RECIPIENT")]
    recipient: Vec<String>,
    /// What this host is called in vaults [default: the machine's name]
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// What this host is: `host` alone where another machine decides about failovers [default: host and controller]
    #[arg(long, value_name = "ROLE")]
    role: Vec<AskedRole>,
}

#[derive(Serialize)]
struct Report<'a> {
    vault: &'a str,
    location: String,
    owner: &'a str,
    host: &'a str,
    recipients: Vec<String>,
    findings: &'a [Finding],
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let named = args.vault.find(ui)?;
    let roles = if args.role.is_empty() { vec![Role::Host, Role::Controller] } else { roles(&args.role) };
    let mut options = InitOptions { roles, ..InitOptions::default() };
    if !options.roles.contains(&Role::Host) {
        return Err(CommandError::usage("who makes a vault is a host of it").hint("give --role host, too"));
    }
    let mut texts = args.recipient;
    if texts.is_empty()
        && let Some(loaded) = plan_file::load_if_any(ui)?
    {
        texts = loaded.plan.keys.recipients.clone();
        options.holders = loaded.plan.keys.holders.iter().flat_map(holders).collect();
    }
    if texts.is_empty() {
        return Err(CommandError::usage("a vault needs recipients: keys that open it").hint(
            "`lifeboat key new -o FILE` makes a key and prints its recipient; give two or more with --recipient",
        ));
    }
    for text in &texts {
        if text.trim_start().to_ascii_uppercase().starts_with("AGE-SECRET-KEY") {
            return Err(CommandError::usage("a secret key was given where its recipient (age1…) belongs")
                .hint("it may stand in your shell's history now: make another key; `lifeboat key inspect FILE` shows a recipient"));
        }
        let recipient: Recipient =
            text.parse().kind(Kind::Usage).hint("`lifeboat key inspect FILE` shows a key's recipient")?;
        if !options.recipients.contains(&recipient) {
            options.recipients.push(recipient);
        }
    }
    let state = door::state(ui, args.host.as_deref())?;
    let storage = storage::create(&named.url).map_err(CommandError::of_storage)?;
    let location = storage.location();
    check_empty(&*storage)?;
    let (host, made) = Vault::init(storage, &state, &options).map_err(CommandError::of_vault)?;

    ui.line(format_args!("vault {} made at {location}", made.vault));
    ui.line(format_args!("owner {}", made.owner));
    ui.line(format_args!("host {} may write to it; {} open it", host.host_name(), keys(options.recipients.len())));
    ui.note("keep the owner's fingerprint with your keys: given with --owner it proves, on any");
    ui.note("machine, that a vault is this one");
    ui.document(&Report {
        vault: &made.vault,
        location,
        owner: &made.owner,
        host: host.host_name(),
        recipients: options.recipients.iter().map(Recipient::to_string).collect(),
        findings: &made.findings,
    })?;
    door::show(&made.findings, ui);
    Ok(if made.findings.is_empty() { Exit::Done } else { Exit::Finding })
}

/// A vault wants a place of its own. What a making that was cut short left there is no obstacle.
fn check_empty(storage: &dyn Storage) -> Result<(), CommandError> {
    const OURS: [&str; 6] = ["keys", "roster", "enroll", "README.txt", ".tmp", "lost+found"];
    const DATA: [&str; 6] = ["pack", "snap", "index", "refs", "log", "verify"];
    let location = storage.location();
    let names: Vec<String> = match std::fs::read_dir(&location) {
        Ok(entries) => entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect(),
        Err(_) => {
            let listed = storage.list("").map_err(CommandError::of_storage)?;
            listed.iter().filter_map(|one| one.key.split('/').next()).map(str::to_owned).collect()
        }
    };
    match names.into_iter().filter(|name| !OURS.contains(&name.as_str()) && !DATA.contains(&name.as_str())).min() {
        None => Ok(()),
        Some(other) => Err(CommandError::refused(format!("{location} is not empty: it has `{other}`"))
            .hint("a vault wants a place of its own: name a new directory, or another prefix in the bucket")),
    }
}

fn keys(count: usize) -> String {
    if count == 1 { "1 key can".to_owned() } else { format!("any one of {count} keys can") }
}

fn holders(holder: &KeyHolder) -> impl Iterator<Item = Holder> + '_ {
    let purpose = match holder.purpose {
        KeyPurpose::Standby => "standby",
        KeyPurpose::Drill => "drill",
        KeyPurpose::Verify => "verify",
    };
    holder.datasets.iter().map(move |dataset| Holder {
        dataset: dataset.clone(),
        recipient: holder.recipient.clone(),
        purpose: purpose.to_owned(),
        place: holder.held_at.clone(),
    })
}
