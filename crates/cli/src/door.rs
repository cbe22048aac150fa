//! How verbs come to an open vault: which storage, this host's state, the owner expected, keys from files.
//!
//! Invariant: every verb that opens a vault shows what was found wrong with it, and never ends with 0 where its freshness or owner
//! is unproven.

use std::path::PathBuf;
use std::sync::Arc;

use lifeboat_vault::files::{BackupError, RestoreError, TreeError};
use lifeboat_vault::storage::{self, Storage, StorageError};
use lifeboat_vault::{Finding, HostVault, Identity, PointInfo, Severity, State, Unlocked, Vault, VaultError};

use crate::error::{CommandError, Exit, Kind};
use crate::plan_file;
use crate::ui::Ui;

/// Which vault.
#[derive(Debug, clap::Args)]
pub(crate) struct VaultArgs {
    /// The vault: a directory, s3://bucket/prefix (or gs:, az:), or a vault's name in the plan
    #[arg(long, value_name = "URL")]
    pub(crate) vault: Option<String>,
    /// The owner's fingerprint, as `vault init` printed it [default: the plan's, else the one seen here before]
    #[arg(long, value_name = "FINGERPRINT")]
    pub(crate) owner: Option<String>,
}

/// A vault that was named on the command line, or is the plan's only one.
#[derive(Debug, Clone)]
pub(crate) struct Named {
    /// As messages call it.
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) owner: Option<String>,
}

impl VaultArgs {
    /// The vault meant, from `--vault` or as the plan's only one.
    pub(crate) fn find(&self, ui: &Ui) -> Result<Named, CommandError> {
        let given = self.vault.as_deref();
        if let Some(url) = given.filter(|url| is_address(url)) {
            return Ok(self.at(url));
        }
        let plan = plan_file::load_if_any(ui)?.map(|loaded| loaded.plan);
        let Some(plan) = plan else {
            return match given {
                Some(url) => Ok(self.at(url)),
                None => Err(CommandError::usage("there is no vault: neither --vault nor a plan was given")
                    .hint("say which with --vault URL, for example --vault /backup")),
            };
        };
        let mut vaults = plan.vaults.iter();
        let (name, vault) = match (given, vaults.next(), vaults.next()) {
            (Some(name), ..) => match plan.vaults.get_key_value(name) {
                Some(found) => found,
                None => return Ok(self.at(name)),
            },
            (None, Some(only), None) => only,
            (None, None, _) => {
                return Err(CommandError::usage("the plan has no vault").hint("name one with --vault URL"));
            }
            (None, Some(_), Some(_)) => {
                let names: Vec<&str> = plan.vaults.keys().map(String::as_str).collect();
                return Err(CommandError::usage(format!("the plan has several vaults: {}", names.join(", ")))
                    .hint("say which with --vault NAME"));
            }
        };
        let owner = self.owner.clone().or(plan.keys.owner.clone());
        Ok(Named { name: name.clone(), url: vault.url.clone(), owner })
    }

    fn at(&self, url: &str) -> Named {
        Named { name: url.to_owned(), url: url.to_owned(), owner: self.owner.clone() }
    }
}

/// Whether this can only be meant as an address, and not as a name in a plan.
pub(crate) fn is_address(text: &str) -> bool {
    text.contains('/') || text.contains(':')
}

impl Named {
    pub(crate) fn storage(&self) -> Result<Arc<dyn Storage>, CommandError> {
        storage::open(&self.url).map_err(CommandError::of_storage)
    }

    /// For reading what is in the clear.
    pub(crate) fn open(&self, ui: &Ui) -> Result<Vault, CommandError> {
        let storage = self.storage()?;
        Vault::open(storage, Some(state(ui, None)?), self.owner.as_deref()).map_err(CommandError::of_vault)
    }

    /// For writing as this host.
    pub(crate) fn open_as_host(&self, ui: &Ui) -> Result<HostVault, CommandError> {
        let storage = self.storage()?;
        HostVault::open(storage, state(ui, None)?, self.owner.as_deref()).map_err(CommandError::of_vault)
    }

    pub(crate) fn unlock(&self, keys: &[PathBuf], ui: &Ui) -> Result<Unlocked, CommandError> {
        let identities = load_keys(keys)?;
        self.open(ui)?.unlock(&identities).map_err(CommandError::of_vault)
    }
}

/// This host's secrets and memory; made at first use.
pub(crate) fn state(ui: &Ui, host: Option<&str>) -> Result<State, CommandError> {
    State::open(&ui.state_directory()?, host).map_err(CommandError::of_vault)
}

pub(crate) fn load_keys(files: &[PathBuf]) -> Result<Vec<Identity>, CommandError> {
    if files.is_empty() {
        return Err(CommandError::usage("this needs a key that opens the vault")
            .hint("give it with --key FILE: one of those that `vault init` was given as --recipient"));
    }
    let mut identities = Vec::new();
    for file in files {
        if !file.exists() {
            return Err(CommandError::usage(format!("there is no key file {}", file.display()))
                .hint("--key wants the file that `lifeboat key new -o FILE` (or age-keygen) wrote"));
        }
        if file.is_dir() {
            return Err(CommandError::usage(format!("{} is a directory, not a key file", file.display()))
                .hint("--key wants the file that `lifeboat key new -o FILE` (or age-keygen) wrote"));
        }
        identities.extend(Identity::load_all(file).map_err(|error| {
            CommandError::from(error)
                .kind(Kind::Usage)
                .hint("--key wants the file that `lifeboat key new -o FILE` (or age-keygen) wrote")
        })?);
    }
    Ok(identities)
}

/// Shows findings, the worst first.
pub(crate) fn show(findings: &[Finding], ui: &Ui) {
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| finding.severity);
    for finding in sorted {
        match finding.severity {
            Severity::Note => ui.note(format_args!("note: {}", finding.message)),
            Severity::Alarm => ui.alarm(&finding.message),
            Severity::Warning => ui.warn(&finding.message),
        }
    }
}

/// How a verb ends that did its work: findings that cast doubt on the work itself stand.
pub(crate) fn ends(findings: &[Finding]) -> Exit {
    let doubtful = |finding: &Finding| {
        finding.severity == Severity::Alarm
            || matches!(finding.code, "freshness-unproven" | "owner-unproven" | "suspect" | "unchecked")
    };
    if findings.iter().any(doubtful) { Exit::Finding } else { Exit::Done }
}

/// As `ends`, where only the data set of this point was asked for: what is unproven about others is said, and is no matter here.
pub(crate) fn ends_for(findings: &[Finding], point: Option<&PointInfo>) -> Exit {
    let Some(dataset) = point.and_then(|point| point.key.split('/').nth(2)) else { return ends(findings) };
    let concerns = |finding: &&Finding| {
        finding.code != "freshness-unproven" || finding.object.split('/').any(|part| part == dataset)
    };
    let concerning: Vec<Finding> = findings.iter().filter(concerns).cloned().collect();
    ends(&concerning)
}

impl CommandError {
    /// A vault's error under the exit code that it deserves.
    pub(crate) fn of_vault(error: VaultError) -> CommandError {
        let kind = match &error {
            VaultError::VaultExists { .. } | VaultError::ForeignVault { .. } | VaultError::Refused { .. } => {
                Kind::Refused
            }
            VaultError::Storage {
                source: StorageError::UnknownScheme { .. } | StorageError::BadAddress { .. },
                ..
            } => Kind::Usage,
            _ => Kind::Failed,
        };
        CommandError::from(error).kind(kind)
    }

    /// The same, where what is not valid can only be what was asked for.
    pub(crate) fn of_wish(error: VaultError) -> CommandError {
        let is_wish = matches!(error, VaultError::Invalid { .. });
        let made = CommandError::of_vault(error);
        if is_wish { made.kind(Kind::Usage) } else { made }
    }

    pub(crate) fn of_storage(error: StorageError) -> CommandError {
        let kind = match &error {
            StorageError::UnknownScheme { .. } | StorageError::BadAddress { .. } => Kind::Usage,
            _ => Kind::Failed,
        };
        CommandError::from(error).kind(kind)
    }

    pub(crate) fn of_backup(error: BackupError) -> CommandError {
        let kind = match &error {
            BackupError::Cancelled => Kind::Interrupted,
            BackupError::NoRoots => Kind::Usage,
            _ => Kind::Failed,
        };
        CommandError::from(error).kind(kind)
    }

    pub(crate) fn of_restore(error: RestoreError) -> CommandError {
        let kind = match &error {
            RestoreError::NotEmpty { .. } | RestoreError::InTheWay { .. } | RestoreError::ForeignStaging { .. } => {
                Kind::Refused
            }
            RestoreError::NotDirectory { .. } => Kind::Usage,
            RestoreError::Cancelled { .. } => Kind::Interrupted,
            _ => Kind::Failed,
        };
        if let RestoreError::Tree(missing @ TreeError::Absent { .. }) = error {
            return CommandError::from(missing).kind(Kind::Usage);
        }
        let not_empty = matches!(&error, RestoreError::NotEmpty { .. });
        let made = CommandError::from(error).kind(kind);
        if not_empty { made.hint("name another directory with --to, or add --in-place") } else { made }
    }
}
