//! How verbs come to an open vault: which storage, this host's state, the owner expected, keys from files.
//!
//! Invariant: every verb that opens a vault shows what was found wrong with it, and never ends with 0 where its freshness or owner
//! is unproven.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::SignedDuration;
use lifeboat_core::plan::model::Archive;
use lifeboat_vault::files::{BackupError, RestoreError, TreeError};
use lifeboat_vault::storage::{self, Storage, StorageError};
use lifeboat_vault::{Finding, HostVault, Identity, PointInfo, Severity, State, Unlocked, Vault, VaultError, Witness};

use crate::error::{CommandError, Exit, Kind};
use crate::plan_file;
use crate::ui::Ui;

/// Which vault.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct VaultArgs {
    /// The vault: a directory, s3://bucket/prefix (or gs:, az:), or a vault's name in the plan
    #[arg(long, value_name = "URL")]
    pub(crate) vault: Option<String>,
    /// The owner's fingerprint, as `vault init` printed it [default: the plan's, else the one seen here before]
    #[arg(long, value_name = "FINGERPRINT")]
    pub(crate) owner: Option<String>,
}

/// Who is asked how far a vault had come.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct WitnessArgs {
    /// Hold it against a copy of it, or another vault that its hosts write to: shows whether it was rolled back as a whole; may be
    /// given several times
    #[arg(long, value_name = "URL")]
    against: Vec<String>,
}

/// A vault that was named on the command line, or is the plan's only one.
#[derive(Debug, Clone)]
pub(crate) struct Named {
    /// As messages call it.
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) owner: Option<String>,
    /// Who is asked how far it had come.
    against: Vec<String>,
    /// The plan's other vaults: name and address.
    others: Vec<(String, String)>,
    /// Where the plan puts what only old points need.
    pub(crate) archive: Option<Archive>,
    /// How long the plan has what points need locked.
    pub(crate) lock: Option<SignedDuration>,
}

impl VaultArgs {
    /// One that is named otherwise than with `--vault`.
    pub(crate) fn of(url: &str, owner: &Option<String>) -> VaultArgs {
        VaultArgs { vault: Some(url.to_owned()), owner: owner.clone() }
    }

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
        let others = plan.vaults.iter().filter(|(other, _)| *other != name);
        let others = others.map(|(name, vault)| (name.clone(), vault.url.clone())).collect();
        let archive = vault.archive.clone();
        let lock = vault.lock.and_then(|lock| SignedDuration::try_from(lock.0).ok());
        Ok(Named { name: name.clone(), url: vault.url.clone(), owner, against: Vec::new(), others, archive, lock })
    }

    fn at(&self, url: &str) -> Named {
        Named::new(url, url, self.owner.clone())
    }
}

/// Refuses to write below a vault that lies in a directory: what is there is the vault's alone.
pub(crate) fn check_outside(to: &Path, vault: &str) -> Result<(), CommandError> {
    let (Ok(vault), Ok(to)) = (Path::new(vault).canonicalize(), std::path::absolute(to)) else { return Ok(()) };
    // As much of it as is there already, whatever links lead to it.
    let Some((there, above)) = to.ancestors().find_map(|above| Some((above.canonicalize().ok()?, above))) else {
        return Ok(());
    };
    let real: PathBuf = there.iter().chain(to.strip_prefix(above).unwrap_or(Path::new("")).iter()).collect();
    let what = match real.strip_prefix(&vault) {
        Err(_) => return Ok(()),
        Ok(within) if within.as_os_str().is_empty() => format!("{} is the vault itself", real.display()),
        Ok(_) => format!("{} lies within the vault {}", real.display(), vault.display()),
    };
    Err(CommandError::refused(what).hint("name a place outside of it"))
}

/// Whether this can only be meant as an address, and not as a name in a plan.
pub(crate) fn is_address(text: &str) -> bool {
    text.contains('/') || text.contains(':')
}

impl Named {
    pub(crate) fn new(name: &str, url: &str, owner: Option<String>) -> Named {
        let (against, others) = (Vec::new(), Vec::new());
        Named { name: name.to_owned(), url: url.to_owned(), owner, against, others, archive: None, lock: None }
    }

    pub(crate) fn against(self, witness: &WitnessArgs) -> Named {
        Named { against: witness.against.clone(), ..self }
    }

    pub(crate) fn storage(&self) -> Result<Arc<dyn Storage>, CommandError> {
        storage::open(&self.url).map_err(CommandError::of_storage)
    }

    /// For reading what is in the clear.
    pub(crate) fn open(&self, ui: &Ui) -> Result<Vault, CommandError> {
        let (storage, state) = (self.storage()?, state(ui, None)?);
        let vault = Vault::open(storage, Some(state.clone()), self.owner.as_deref()).map_err(CommandError::of_vault)?;
        for url in &self.against {
            let other = storage::open(url).map_err(CommandError::of_storage)?;
            let witness = hold_against(&vault, (url, other), &state).map_err(CommandError::of_vault)?;
            if witness.at.is_none() {
                ui.warn(format_args!(
                    "{url} knows nothing of this vault: it proves nothing; name a copy of it, or a vault that its hosts write to as well"
                ));
            }
        }
        Ok(vault)
    }

    /// Asks the plan's other vaults, too, how far this one had come; one that is away is no obstacle.
    pub(crate) fn ask_others(&self, vault: &Vault, ui: &Ui) -> Result<(), CommandError> {
        let state = state(ui, None)?;
        for (name, url) in &self.others {
            if let Ok(other) = storage::open(url)
                && let Err(error) = hold_against(vault, (name, other), &state)
            {
                ui.note(format_args!("the vault `{name}` cannot be asked how fresh this one is: {error}"));
            }
        }
        Ok(())
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

/// Asks another place how far a vault had come.
pub(crate) fn hold_against(
    vault: &Vault,
    (name, other): (&str, Arc<dyn Storage>),
    state: &State,
) -> Result<Witness, VaultError> {
    // Where it is a copy, it has the same owner; where it is not, it has one of its own, known here or met for the first time.
    let same = Vault::open(other.clone(), Some(state.clone()), Some(vault.owner()));
    let other = match same {
        Err(VaultError::ForeignVault { .. }) => Vault::open(other, Some(state.clone()), None)?,
        other => other?,
    };
    vault.hold_against(name, &other)
}

/// Whether anything proves that a vault is not an old state of itself, in a line.
pub(crate) fn freshness(vault: &Vault, findings: &[Finding]) -> String {
    let proofs: Vec<String> = vault
        .witnesses()
        .iter()
        .filter_map(|witness| Some(format!("{} at {}", witness.by, crate::commands::points::time(witness.at?))))
        .collect();
    let unproven = findings.iter().any(|finding| finding.code == "freshness-unproven");
    if findings.iter().any(|finding| finding.code == "rolled-back") {
        return "freshness: disproven, the vault was rolled back".to_owned();
    }
    match (proofs.is_empty(), unproven) {
        (false, false) => format!("freshness: proven by {}", proofs.join(" and by ")),
        (false, true) => format!("freshness: proven in part by {}", proofs.join(" and by ")),
        (true, false) => "freshness: not older than what this machine saw last".to_owned(),
        (true, true) => {
            "freshness: unproven; ask a copy, or another vault of the same hosts, with --against URL".to_owned()
        }
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
            VaultError::Stopped => Kind::Interrupted,
            archived if archived.is_archived() => Kind::Held,
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
            RestoreError::Tree(error) if error.is_archived() => Kind::Held,
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
