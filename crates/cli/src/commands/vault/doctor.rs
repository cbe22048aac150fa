//! `lifeboat vault doctor`: what these credentials may do at the storage, and must not, by trying.

use lifeboat_adapters::storage::policy;
use lifeboat_vault::State;
use lifeboat_vault::doctor::{Examination, Wanted, examine};
use lifeboat_vault::storage::{Fact, Verdict};
use serde::Serialize;

use super::prune::span;
use crate::door::VaultArgs;
use crate::error::{CommandError, Exit};
use crate::report;
use crate::ui::Ui;

/// Try out what the storage lets these credentials do, and what it must not, and print the policy to put on a bucket
///
/// Tries on an object of its own, in a hidden place beside the vault; what may not be deleted stays there and is named. Ends
/// with exit code 3 if something is not as it should be.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vault: VaultArgs,
    /// Whose credentials these are
    #[arg(long, value_name = "ROLE", value_enum, default_value_t = Party::Host)]
    role: Party,
    /// The host that the policy is for, by its name on the roster [default: this machine's, else any host]
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// How long a pruner may lock what points need, for its policy [default: the plan's `lock`]
    #[arg(long, value_name = "TIME")]
    lock: Option<String>,
    /// Print the policy and try nothing
    #[arg(long)]
    policy: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Party {
    /// Writes backups: may create, and never replace or delete
    Host,
    /// Deletes what nothing needs any more
    Pruner,
    /// Restores, checks or watches
    Reader,
}

#[derive(Serialize)]
struct Report<'a> {
    location: String,
    role: String,
    well: bool,
    facts: &'a [Fact],
    left_behind: &'a Option<String>,
    policy: Option<String>,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let named = args.vault.find(ui)?;
    let wanted = match args.role {
        Party::Host => Wanted::Host,
        Party::Pruner => Wanted::Pruner,
        Party::Reader => Wanted::Reader,
    };
    let state = ui.state_directory()?;
    // Only looked at: this makes nobody a host.
    let known = state.join("host.name").exists().then(|| State::open(&state, None).ok()).flatten();
    let host = args.host.or_else(|| known.map(|state| state.host_name().to_owned()));
    let lock = args.lock.as_deref().map(|text| span("--lock", text)).transpose()?.or(named.lock);
    let lock_days = lock.map(|lock| u32::try_from(lock.as_hours() / 24).unwrap_or(0));
    let policy = policy(&named.url, wanted, host.as_deref(), lock_days);
    if args.policy {
        let Some(policy) = policy else {
            return Err(CommandError::usage(format!("{} is no bucket: it takes no policy", named.url))
                .hint("keep hosts from a directory itself with `lifeboat vault serve`"));
        };
        ui.line(&policy);
        ui.document(&serde_json::json!({ "policy": policy }))?;
        return Ok(Exit::Done);
    }
    let storage = named.storage()?;
    let waiting = ui.waiting("trying out");
    let mut examined = examine(&*storage, wanted, host.as_deref());
    if named.archive.is_some() && storage.class_place().is_none() {
        let says = format!("the plan archives in {}, which has no storage classes", named.name);
        examined.facts.push(Fact::finding("archive", says, "take `archive` out, or keep this vault in a bucket"));
    }
    if lock.is_some()
        && wanted == Wanted::Pruner
        && !examined.facts.iter().any(|fact| fact.code == "lock" && fact.verdict == Verdict::Good)
    {
        let says = format!(
            "what points need in {} is to be kept locked, which is not possible with these credentials here",
            named.name
        );
        let next = "a bucket with Object Lock, and the statement Lock of the policy below; or no `lock`";
        examined.facts.push(Fact::finding("lock-wanted", says, next));
    }
    drop(waiting);
    let well = examined.is_well();
    ui.document(&Report {
        location: storage.location(),
        role: format!("{:?}", args.role).to_lowercase(),
        well,
        facts: &examined.facts,
        left_behind: &examined.left_behind,
        policy: policy.clone(),
    })?;
    show(&examined, ui);
    if let Some(policy) = policy.filter(|_| !ui.is_json()) {
        ui.line("");
        ui.line("The policy for this role (how to put it there: docs/object-storage.md):");
        ui.line(policy);
    }
    Ok(if well { Exit::Done } else { Exit::Finding })
}

fn show(examined: &Examination, ui: &Ui) {
    let rows: Vec<Vec<String>> = examined
        .facts
        .iter()
        .map(|fact| {
            let verdict = match fact.verdict {
                Verdict::Good => "good",
                Verdict::Note => "note",
                Verdict::Finding => "FINDING",
                Verdict::Unknown => "unknown",
            };
            let next = if fact.next.is_empty() { String::new() } else { format!("; {}", fact.next) };
            vec![verdict.to_owned(), fact.code.to_owned(), format!("{}{next}", fact.says)]
        })
        .collect();
    ui.line(report::table(&["", "WHAT", "FOUND"], &rows).trim_end());
    if let Some(left) = &examined.left_behind {
        ui.note(format_args!("{left} stays: it may not be deleted, which is as it should be for a host"));
    }
    let findings = examined.facts.iter().filter(|fact| fact.verdict == Verdict::Finding).count() as u64;
    ui.line(match findings {
        0 => "as it should be".to_owned(),
        count => report::counted(count, "finding"),
    });
}
