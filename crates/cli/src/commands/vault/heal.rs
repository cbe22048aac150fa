//! `lifeboat vault heal`: what is damaged comes back from a copy, or from the hosts that still have the data.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use lifeboat_vault::storage::Storage;
use lifeboat_vault::{BadPacks, Badge, CheckOptions, CheckReport, Finding, Healed, Unlocked, Vault};
use serde::Serialize;

use crate::door::{self, VaultArgs};
use crate::error::{CommandError, Exit};
use crate::interrupt;
use crate::report;
use crate::ui::Ui;

/// What a healing makes visible may be damaged, too: it is looked at again so many times.
const ROUNDS_MAX: u32 = 8;

/// Bring back what is damaged or missing: from a copy, or through the hosts that still have the data
///
/// The whole vault is read first. With --from, what is bad is taken from a copy, checked, and put in its place; nothing that is right is
/// replaced. What no copy has goes onto the hosts' heal lists: their next backups store it again, as far as they still have it. Then, with
/// an owner's key, packs whose contents now lie elsewhere are given up, and the next `vault prune` removes them. Ends with 3 while anything is still bad.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vault: VaultArgs,
    /// A copy of the same vault
    #[arg(long, value_name = "URL")]
    from: Option<String>,
    /// A key that opens the vault: says which points rest on what is bad, and gives up packs that nothing needs any more; may be
    /// given several times
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
    /// Do not ask before packs that were replaced are given up
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Default, Serialize)]
struct Outcome {
    sound: bool,
    healed: Vec<String>,
    /// Objects that are still missing or damaged.
    bad: Vec<String>,
    /// Packs that are new on the hosts' heal lists.
    listed: u64,
    /// Packs whose contents lie elsewhere, and that the next prune removes.
    given_up: Vec<String>,
    /// Recovery points that cannot be restored whole.
    corrupt_points: Vec<String>,
    findings: Vec<Finding>,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let named = args.vault.find(ui)?;
    let state = door::state(ui, None)?;
    let copy: Option<Arc<dyn Storage>> = match &args.from {
        None => None,
        Some(url) => Some(VaultArgs::of(url, &args.vault.owner).find(ui)?.storage()?),
    };
    let cancel = interrupt::listen(ui)?;
    // With keys every chunk is looked at, and who they are for is known.
    let unlocked = match args.key.is_empty() {
        true => None,
        false => Some(named.unlock(&args.key, ui)?),
    };
    let vault = match &unlocked {
        Some(unlocked) => Vault::clone(unlocked),
        None => named.open(ui)?,
    };
    vault.stop_on(cancel.shared());
    let mut result = Outcome::default();
    if let Some(copy) = &copy {
        // A wrong place is refused before the vault is read.
        vault.heal_from(copy, &BTreeSet::new(), &state).map_err(CommandError::of_vault)?;
    }
    let mut found = look(&vault, unlocked.as_ref(), ui)?;
    if let Some(copy) = &copy {
        for _ in 0..ROUNDS_MAX {
            let bad = found.bad_objects();
            if bad.is_empty() {
                break;
            }
            let Healed { healed, findings, .. } =
                vault.heal_from(copy, &bad, &state).map_err(CommandError::of_vault)?;
            result.findings.extend(findings);
            if healed.is_empty() {
                break;
            }
            result.healed.extend(healed);
            found = look(&vault, unlocked.as_ref(), ui)?;
        }
    }
    let mut left = BadPacks::default();
    if let Some(unlocked) = &unlocked {
        left = unlocked.bad_packs(&found).map_err(CommandError::of_vault)?;
        if !left.replaced.is_empty() && unlocked.is_owner() {
            give_up(unlocked, &left, &args, ui)?;
            result.given_up = left.replaced.clone();
            found = look(&vault, Some(unlocked), ui)?;
        }
    }
    result.listed = vault.list_bad_packs(&found, &state).map_err(CommandError::of_vault)?;
    result.corrupt_points = left.points.iter().map(|point| point.id.clone()).collect();
    result.sound = found.is_sound();
    result.bad = found.bad_objects().into_iter().collect();
    result.findings.extend(found.findings);
    say(&result, args.from.as_deref(), ui)
}

fn look(vault: &Vault, unlocked: Option<&Unlocked>, ui: &Ui) -> Result<CheckReport, CommandError> {
    let _waiting = ui.waiting("reading the vault");
    let options = CheckOptions { read_data: true };
    let report = match unlocked {
        Some(unlocked) => unlocked.check(options),
        None => vault.check(options),
    };
    report.map_err(CommandError::of_vault)
}

fn give_up(unlocked: &Unlocked, packs: &BadPacks, args: &Args, ui: &Ui) -> Result<(), CommandError> {
    for pack in &packs.replaced {
        ui.note(format_args!("{pack}: all that points need of it lies in other packs"));
    }
    let what = report::counted(packs.replaced.len() as u64, "bad pack");
    ui.confirm(
        &format!("{what} will be given up: nothing needs them any more, and the next prune removes them. Go on?"),
        args.yes,
    )?;
    unlocked.give_up(packs).map_err(CommandError::of_vault)
}

fn say(result: &Outcome, from: Option<&str>, ui: &Ui) -> Result<Exit, CommandError> {
    ui.document(result)?;
    door::show(&result.findings, ui);
    for key in &result.healed {
        ui.line(format_args!("healed  {key}"));
    }
    for key in &result.given_up {
        ui.line(format_args!("given up  {key}"));
    }
    for id in &result.corrupt_points {
        ui.line(format_args!("corrupt  {id}"));
    }
    match (result.sound, result.healed.len() + result.given_up.len()) {
        (true, 0) => ui.line("nothing to heal"),
        (true, _) => {
            ui.line("the vault is sound again");
            if !result.given_up.is_empty() {
                ui.note("what was given up is removed by the next `lifeboat vault prune`");
            }
        }
        (false, _) => ui.line(format_args!("still bad: {}", report::counted(result.bad.len() as u64, "object"))),
    }
    if !result.sound && result.bad.iter().any(|key| key.starts_with("pack/")) {
        ui.note("bad packs are on the hosts' heal lists: back up on those hosts, then run this again with --key");
    }
    if !result.sound && from.is_none() {
        ui.note("a copy heals everything that it has: give it with --from URL");
    }
    Ok(if result.sound { door::ends(&result.findings) } else { Exit::Finding })
}

/// After a check with keys: points that rest on what is bad are marked as corrupt, and the hosts that wrote it are told. Answers how
/// many points, and how many packs.
pub(super) fn mark_bad(
    named: &door::Named,
    unlocked: Option<&Unlocked>,
    report: &CheckReport,
    ui: &Ui,
) -> Result<(u64, u64), CommandError> {
    // Who is not on the roster can only say it.
    let Ok(host) = named.open_as_host(ui) else { return Ok((0, 0)) };
    let listed = host.list_bad_packs(report, host.state()).map_err(CommandError::of_vault)?;
    let mut marked = 0;
    if let Some(unlocked) = unlocked {
        let known = unlocked.points(None).map_err(CommandError::of_vault)?.points;
        for point in unlocked.bad_packs(report).map_err(CommandError::of_vault)?.points {
            let is_known = known.iter().any(|known| known.id == point.id && known.badge == Badge::Corrupt);
            if !is_known {
                host.record_verification(&point, Badge::Corrupt, "a pack that it needs is bad")
                    .map_err(CommandError::of_vault)?;
                marked += 1;
            }
        }
    }
    Ok((marked, listed))
}
