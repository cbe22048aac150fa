//! `lifeboat vault recipients`: which keys open the vault.

use std::path::PathBuf;

use lifeboat_vault::{Recipient, Unlocked, Vault};
use serde::Serialize;

use crate::door::{self, VaultArgs};
use crate::error::{CommandError, Exit, Explain, Kind};
use crate::ui::Ui;

/// Show, add or remove the keys that open a vault
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Show which keys open the vault, and which open one data set of it
    List {
        #[command(flatten)]
        vault: VaultArgs,
    },
    /// Let another key open everything, what is stored already included
    Add {
        #[command(flatten)]
        change: Change,
    },
    /// Take a key out of those that open; what it could open before, its holder may have copied
    Remove {
        #[command(flatten)]
        change: Change,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, clap::Args)]
struct Change {
    /// The recipient (age1…), as `key inspect` shows it
    #[arg(value_name = "RECIPIENT")]
    recipient: String,
    #[command(flatten)]
    vault: VaultArgs,
    /// A key that opens the vault today
    #[arg(long, value_name = "FILE", required = true)]
    key: Vec<PathBuf>,
}

#[derive(Serialize)]
struct Listed {
    recipients: Vec<String>,
    holders: Vec<ListedHolder>,
}

#[derive(Serialize)]
struct ListedHolder {
    dataset: String,
    recipient: String,
    purpose: String,
    place: String,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    match args.verb {
        Verb::List { vault } => {
            let vault = vault.find(ui)?.open(ui)?;
            tell(&vault, ui)
        }
        Verb::Add { change } => {
            let (vault, recipient) = change.open(ui)?;
            vault.add_recipient(&recipient).map_err(CommandError::of_vault)?;
            tell(&vault, ui)
        }
        Verb::Remove { change, yes } => {
            let (vault, recipient) = change.open(ui)?;
            check_removal(&vault, &recipient)?;
            ui.confirm(&format!("{recipient} will no longer open the vault. Remove it?"), yes)?;
            vault.remove_recipient(&recipient).map_err(CommandError::of_vault)?;
            tell(&vault, ui)
        }
    }
}

impl Change {
    fn open(&self, ui: &Ui) -> Result<(Unlocked, Recipient), CommandError> {
        let recipient =
            self.recipient.parse().kind(Kind::Usage).hint("`lifeboat key inspect FILE` shows a key's recipient")?;
        let vault = self.vault.find(ui)?.unlock(&self.key, ui)?;
        Ok((vault, recipient))
    }
}

fn check_removal(vault: &Vault, recipient: &Recipient) -> Result<(), CommandError> {
    let roster = vault.roster();
    let text = recipient.to_string();
    if roster.recipients == [text.clone()] {
        return Err(CommandError::refused("the last key cannot be removed: nothing could ever be restored")
            .hint("add another first: lifeboat vault recipients add"));
    }
    if !roster.recipients.contains(&text) && !roster.holders.iter().any(|holder| holder.recipient == text) {
        return Err(CommandError::usage(format!("{text} does not open this vault"))
            .hint("`lifeboat vault recipients list` shows those that do"));
    }
    Ok(())
}

fn tell(vault: &Vault, ui: &Ui) -> Result<Exit, CommandError> {
    let roster = vault.roster();
    for recipient in &roster.recipients {
        ui.line(recipient);
    }
    for holder in &roster.holders {
        ui.line(format_args!("{}  {} only, {} at {}", holder.recipient, holder.dataset, holder.purpose, holder.place));
    }
    let holders = roster.holders.into_iter().map(|holder| ListedHolder {
        dataset: holder.dataset,
        recipient: holder.recipient,
        purpose: holder.purpose,
        place: holder.place,
    });
    ui.document(&Listed { recipients: roster.recipients, holders: holders.collect() })?;
    let findings = vault.findings();
    door::show(&findings, ui);
    Ok(door::ends(&findings))
}
