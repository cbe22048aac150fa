//! `lifeboat vault copy`: a vault at another place, or on a medium that is carried away; no key is needed.

use std::path::PathBuf;

use lifeboat_core::units::Size;
use lifeboat_vault::copy::{CopyOptions, CopyReport, copy};
use lifeboat_vault::storage;
use lifeboat_vault::{Severity, VaultError};
use serde::Serialize;

use crate::commands::restore::which::moment;
use crate::door::{self, VaultArgs};
use crate::error::{CommandError, Exit, Kind};
use crate::interrupt;
use crate::report;
use crate::ui::Ui;

/// Copy a vault to another place, to a medium that is carried away, or back; needs no key
///
/// Only what the target lacks is carried, each object checked on the way. It may be stopped, killed or unplugged at any moment, and
/// run again: until then the copy is an older vault, and says that it is a half one. Nothing in the target is replaced, and what was
/// pruned does not come back.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The vault to copy: a directory, a URL, or a vault's name in the plan
    #[arg(long, visible_alias = "vault", value_name = "URL")]
    from: String,
    /// Where to: an empty place, or an earlier copy of the same vault
    #[arg(long, value_name = "URL")]
    to: String,
    /// Only this data set
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,
    /// Only recovery points from this moment on, and of each row the one before, so that every moment since can be restored:
    /// 2026-11-01T00:00:00Z. The copy says of itself what it lacks: give the owner's key, or copy as a person, a controller or a
    /// pruner on the roster
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// A key that opens the vault: with --since, packs that none of those points needs stay behind, too; may be given several times
    #[arg(long, value_name = "FILE", requires = "since")]
    key: Vec<PathBuf>,
    /// At most so much a second, for example 50MB
    #[arg(long, value_name = "SIZE")]
    rate: Option<Size>,
    /// So many objects at a time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=64))]
    parallel: u64,
    /// The owner's fingerprint, as `vault init` printed it [default: the plan's, else the one seen here before]
    #[arg(long, value_name = "FINGERPRINT")]
    owner: Option<String>,
}

#[derive(Serialize)]
struct Copied<'a> {
    from: &'a str,
    to: &'a str,
    seconds: f64,
    #[serde(flatten)]
    report: &'a CopyReport,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let end = |url: &str| VaultArgs::of(url, &args.owner).find(ui);
    let (from, to) = (end(&args.from)?, end(&args.to)?);
    let source = from.storage()?;
    if storage::open(&to.url).is_ok_and(|target| target.location() == source.location()) {
        return Err(CommandError::usage("--from and --to are the same place").hint("name another place with --to"));
    }
    door::check_outside(to.url.as_ref(), &source.location())?;
    let target = storage::create(&to.url).map_err(CommandError::of_storage)?;
    let since = args.since.as_deref().map(moment).transpose()?;
    let opened = if args.key.is_empty() { None } else { Some(from.unlock(&args.key, ui)?) };
    if since.is_some() && opened.is_none() {
        ui.note("what points need is sealed: without --key all packs go along, only older points and what was recorded of them stay behind");
    }
    let options = CopyOptions {
        since,
        opened,
        owner: from.owner.clone().or(to.owner.clone()),
        dataset: args.dataset.clone(),
        parallel: usize::try_from(args.parallel).unwrap_or(4),
        bytes_per_second: args.rate.map(|rate| rate.0),
        state: door::state(ui, None)?,
    };
    let cancel = interrupt::listen(ui)?;
    let shown = ui.progress("copying");
    let began = std::time::Instant::now();
    let copied = copy(&source, &target, &options, &|done, total| shown.set(done, total), cancel.flag());
    drop(shown);
    let report = copied.map_err(explain)?;
    let copied = Copied { from: &from.name, to: &to.name, seconds: began.elapsed().as_secs_f64(), report: &report };
    ui.document(&copied)?;
    door::show(&report.findings, ui);
    ui.line(format_args!(
        "{} and {} copied ({}), {} there already",
        report::counted(report.points_copied, "recovery point"),
        report::counted(report.objects_copied, "object"),
        Size(report.bytes_copied).rounded(),
        report.objects_there,
    ));
    if report.points_left_out + report.packs_left_out > 0 {
        ui.line(format_args!(
            "{} and {} stay behind, as --since says",
            report::counted(report.points_left_out, "older recovery point"),
            report::counted(report.packs_left_out, "pack"),
        ));
    }
    if !report.complete {
        return Err(CommandError::interrupted("stopped: the copy is a half one; run the same command to go on"));
    }
    match report.findings.iter().any(|finding| finding.severity == Severity::Alarm) {
        true => Ok(Exit::Finding),
        false => Ok(door::ends(&report.findings)),
    }
}

fn explain(error: VaultError) -> CommandError {
    let refused = matches!(error, VaultError::Diverged { .. } | VaultError::ForeignVault { .. });
    let broken = matches!(error, VaultError::Storage { .. });
    let made = CommandError::of_wish(error);
    match (refused, broken) {
        (true, _) => made.kind(Kind::Refused),
        (_, true) => made.hint("what was copied so far stays; run the same command to go on"),
        _ => made,
    }
}
