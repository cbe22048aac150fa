//! `lifeboat vault lock`: what recovery points need stays locked by the storage (Object Lock).
//!
//! Invariant: a lock is made longer and never shorter; what could not be locked is said, and is no success.

use std::path::PathBuf;

use jiff::SignedDuration;
use lifeboat_core::units::Size;
use lifeboat_vault::Pruner;
use lifeboat_vault::prune::{LOCKS_MAX, LockOptions, LockReport};
use lifeboat_vault::storage::LockMode;

use super::prune::{open, span};
use crate::commands::points::time;
use crate::door::{self, VaultArgs};
use crate::error::{CommandError, Exit};
use crate::interrupt;
use crate::report::counted;
use crate::ui::Ui;

/// Keep what recovery points need locked, in a bucket with Object Lock: nobody deletes it before its lock ends
///
/// Needs the owner's key, or a machine that is enrolled as a pruner. Locks are made as long as --for (or the plan's `lock`) says where
/// less than half of that is left, so run it at least so often; `vault prune` does it by itself where the plan says `lock`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vault: VaultArgs,
    /// The owner's key; not needed on a machine that is enrolled as a pruner
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
    /// How long a lock is, from now on: 30d [default: the plan's `lock`]
    #[arg(long = "for", value_name = "TIME")]
    length: Option<String>,
    /// Who may pass over it: nobody (compliance), or who has a right of its own for that (governance) [default: as the bucket does by itself]
    #[arg(long, value_name = "MODE", value_parser = ["governance", "compliance"])]
    mode: Option<String>,
    /// Lock no more objects than this in one run
    #[arg(long, value_name = "N", default_value_t = LOCKS_MAX)]
    max: u64,
    /// Show what is locked until when; lock nothing
    #[arg(long)]
    dry_run: bool,
}

/// As the plan wants it.
pub(super) fn wish(length: SignedDuration, dry_run: bool) -> LockOptions {
    LockOptions { length, dry_run, ..LockOptions::for_days(0) }
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<Exit, CommandError> {
    let named = args.vault.find(ui)?;
    let given = args.length.as_deref().map(|text| span("--for", text)).transpose()?;
    let Some(length) = given.or(named.lock) else {
        return Err(CommandError::usage("nothing says how long what points need is to be locked")
            .hint("give --for, for example --for 30d, or the vault `lock` in the plan"));
    };
    let mode: Option<LockMode> = args.mode.as_deref().and_then(|mode| mode.parse().ok());
    let options = LockOptions { mode, objects_max: args.max, ..wish(length, args.dry_run) };
    let cancel = interrupt::listen(ui)?;
    let pruner = open(&named, &args.key, ui)?;
    pruner.vault().stop_on(cancel.shared());
    let report = pass(&pruner, &options, ui)?;
    ui.document(&report)?;
    let mut findings = pruner.vault().findings();
    findings.extend(report.findings.iter().cloned());
    door::show(&findings, ui);
    Ok(if report.unlocked > 0 { Exit::Finding } else { door::ends(&findings) })
}

/// Looks, locks where it is due, and tells.
pub(super) fn pass(pruner: &Pruner, options: &LockOptions, ui: &Ui) -> Result<LockReport, CommandError> {
    let vault = pruner.vault();
    let memory = door::state(ui, None)?.vault_directory(&vault.id()).map_err(CommandError::of_vault)?;
    let options = LockOptions { memory: Some(memory), ..options.clone() };
    let report = {
        let _waiting = ui.waiting("looking at locks");
        pruner.lock(&options, &|_, _| {}).map_err(CommandError::of_wish)?
    };
    tell(&report, options.dry_run, ui);
    Ok(report)
}

fn tell(report: &LockReport, dry_run: bool, ui: &Ui) {
    let objects = counted(report.objects, "object");
    let size = Size(report.bytes).rounded();
    match report.until {
        Some(until) => {
            ui.line(format_args!("all that points need ({objects}, {size}) is locked until {} or longer", time(until)))
        }
        None => ui.line(format_args!(
            "of what points need ({objects}, {size}), {} not locked",
            counted(report.unlocked, "object")
        )),
    }
    if report.extended > 0 {
        ui.line(format_args!("  {} made longer", counted(report.extended, "lock")));
    }
    if report.softer > 0 {
        ui.line(format_args!(
            "  {} in the mode governance, which only who may pass over locks can change: give the bucket's default retention the mode \
             compliance for what is to come",
            counted(report.softer, "lock")
        ));
    }
    if report.left > 0 {
        let next = if dry_run { "without --dry-run they are" } else { "run it again (or with a larger --max)" };
        ui.line(format_args!("  {} due to be made longer: {next}", counted(report.left, "lock")));
    }
}
