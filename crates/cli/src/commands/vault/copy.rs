//! `lifeboat vault copy`: a vault at another place, or on a medium that is carried away; no key is needed.

use lifeboat_core::units::Size;
use lifeboat_vault::copy::{CopyOptions, CopyReport, copy};
use lifeboat_vault::storage;
use lifeboat_vault::{Severity, VaultError};
use serde::Serialize;

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
    #[arg(long, value_name = "URL")]
    from: String,
    /// Where to: an empty place, or an earlier copy of the same vault
    #[arg(long, value_name = "URL")]
    to: String,
    /// Only this data set
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,
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
    let end = |url: &str| VaultArgs { vault: Some(url.to_owned()), owner: args.owner.clone() }.find(ui);
    let (from, to) = (end(&args.from)?, end(&args.to)?);
    let source = from.storage()?;
    let target = storage::create(&to.url).map_err(CommandError::of_storage)?;
    if source.location() == target.location() {
        return Err(CommandError::usage("--from and --to are the same place"));
    }
    let options = CopyOptions {
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
    let made = CommandError::of_vault(error);
    match (refused, broken) {
        (true, _) => made.kind(Kind::Refused),
        (_, true) => made.hint("what was copied so far stays; run the same command to go on"),
        _ => made,
    }
}
