//! `lifeboat vault prune`: what need not be kept goes, in two steps.
//!
//! Invariant: everything that will go is printed, with its reason, before anybody is asked; what is due of a prune that was begun is done
//! without asking again.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::SignedDuration;
use lifeboat_core::plan::model::Keep;
use lifeboat_core::units::{Size, Span};
use lifeboat_vault::prune::{MoveRules, OpenPrune, PointVerdict, Proposed, SweepReport, Swept};
use lifeboat_vault::{Finding, KeepRules, PruneOptions, Pruner, Severity};
use serde::Serialize;

use crate::commands::points::time;
use crate::door::{self, Named, VaultArgs};
use crate::error::{CommandError, Exit, Explain, Kind};
use crate::plan_file;
use crate::report::{counted, table};
use crate::ui::Ui;

/// Prune recovery points that no rule wants, and free what only they needed
///
/// Needs the owner's key, or a machine that is enrolled as a pruner. The rules are the plan's `keep`, or the options here. Two steps: the
/// points are pruned at once; what they held is deleted by a later run, at least 48 hours after, when everything was looked at again.
/// Run it every day: it does whatever is due, and says what waits. Backups may run all the while.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vault: VaultArgs,
    /// The owner's key; not needed on a machine that is enrolled as a pruner
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
    /// Show what would be pruned, and why; change nothing
    #[arg(long, conflicts_with = "abandon")]
    dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Only points of this data set; may be given several times
    #[arg(long, value_name = "NAME")]
    dataset: Vec<String>,
    #[command(flatten)]
    keep: KeepArgs,
    /// Let logs reach back so far at least; without it, to the oldest point that is kept
    #[arg(long, value_name = "TIME")]
    keep_log: Option<String>,
    /// Move what is needed out of packs of which less than this part is needed, and out of many small ones; 0: never
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    move_below: u8,
    /// Read no more than this for it in one run
    #[arg(long, value_name = "SIZE", default_value = "32GiB")]
    move_max: String,
    /// Prune this point (HOST/DATASET/NUMBER, as `points --json` shows it), whatever the rules say; may be given several times
    #[arg(long, value_name = "ID")]
    point: Vec<String>,
    /// Prune nothing that came into the vault less than this ago
    #[arg(long, value_name = "TIME", default_value = "3d")]
    min_age: String,
    /// Delete nothing less than this after it was pruned
    #[arg(long, value_name = "TIME", default_value = "2d")]
    grace: String,
    /// Go by the times that hosts claim: for a vault that was copied without receipts
    #[arg(long)]
    by_claimed_time: bool,
    /// Give up the prune that was begun, as long as nothing was deleted: its points are there again
    #[arg(long)]
    abandon: bool,
}

#[derive(Debug, clap::Args)]
struct KeepArgs {
    /// Keep the newest so many points, and one of each of the last so many days that have any
    #[arg(long, value_name = "N")]
    keep_last: Option<u32>,
    /// Keep one an hour, for so many hours
    #[arg(long, value_name = "N")]
    keep_hourly: Option<u32>,
    /// Keep one a day, for so many days
    #[arg(long, value_name = "N")]
    keep_daily: Option<u32>,
    /// Keep one a week, for so many weeks
    #[arg(long, value_name = "N")]
    keep_weekly: Option<u32>,
    /// Keep one a month, for so many months
    #[arg(long, value_name = "N")]
    keep_monthly: Option<u32>,
    /// Keep one a year, for so many years
    #[arg(long, value_name = "N")]
    keep_yearly: Option<u32>,
}

impl KeepArgs {
    fn rules(&self) -> Option<KeepRules> {
        let rules = KeepRules {
            last: self.keep_last.unwrap_or(0),
            hourly: self.keep_hourly.unwrap_or(0),
            daily: self.keep_daily.unwrap_or(0),
            weekly: self.keep_weekly.unwrap_or(0),
            monthly: self.keep_monthly.unwrap_or(0),
            yearly: self.keep_yearly.unwrap_or(0),
        };
        (!rules.keeps_all()).then_some(rules)
    }
}

#[derive(Serialize, Default)]
struct Report<'a> {
    /// What a prune that was begun before has come to.
    begun_before: Option<&'a Swept>,
    abandoned: Option<u64>,
    proposed: Option<&'a Proposed>,
    performed: Option<&'a OpenPrune>,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let named = args.vault.find(ui)?;
    let options = options(&args, &named, ui)?;
    let pruner = open(&named, &args.key, ui)?;
    if args.abandon {
        return abandon(&pruner, args.yes, ui);
    }
    let mut findings = pruner.vault().findings();
    let mut report = Report::default();
    let begun = match args.dry_run {
        true => match pruner.open_prune(&options).map_err(CommandError::of_wish)? {
            Some(open) => Swept::Waits(open),
            None => Swept::Nothing,
        },
        false => {
            let _waiting = ui.waiting("pruning");
            pruner.go_on(&options).map_err(CommandError::of_wish)?
        }
    };
    report.begun_before = Some(&begun);
    tell_begun(&begun, ui);
    if matches!(begun, Swept::Waits(_)) {
        ui.document(&report)?;
        return Ok(end(&findings, ui));
    }
    let proposed = {
        let _waiting = ui.waiting("looking at what is needed");
        pruner.propose(&options).map_err(CommandError::of_wish)?
    };
    findings.extend(proposed.findings.iter().cloned());
    report.proposed = Some(&proposed);
    tell_proposed(&proposed, &args, ui);
    let performed = match proposed.is_empty() || args.dry_run {
        true => None,
        false => {
            let question = match proposed.pruned().count() as u64 {
                0 => "Delete what is not needed, once the rest was moved?".to_owned(),
                count => format!("Prune {}?", counted(count, "recovery point")),
            };
            ui.confirm(&question, args.yes)?;
            Some(pruner.perform(&proposed, &options).map_err(CommandError::of_vault)?)
        }
    };
    if let Some(open) = &performed {
        findings.extend(open.findings.iter().cloned());
        let begun = if open.points > 0 { "pruned; what they held" } else { "begun; what is not needed" };
        ui.line(format_args!(
            "{begun} is deleted by a run after {}. Until then `vault prune --abandon` takes it back",
            time(open.due)
        ));
    }
    report.performed = performed.as_ref();
    ui.document(&report)?;
    Ok(end(&findings, ui))
}

fn end(findings: &[Finding], ui: &Ui) -> Exit {
    door::show(findings, ui);
    let stands = findings.iter().any(|finding| finding.severity != Severity::Note);
    if stands { Exit::Finding } else { Exit::Done }
}

/// With a key as the owner, without one as a pruner on the roster.
fn open(named: &Named, keys: &[PathBuf], ui: &Ui) -> Result<Pruner, CommandError> {
    let opened = match keys {
        [] => named.open(ui)?.pruner(&door::state(ui, None)?),
        keys => named.unlock(keys, ui)?.pruner(),
    };
    opened.map_err(CommandError::of_vault)
}

fn options(args: &Args, named: &Named, ui: &Ui) -> Result<PruneOptions, CommandError> {
    let given = args.keep.rules();
    let (mut datasets, mut log_windows) = (BTreeMap::new(), BTreeMap::new());
    let mut rules = None;
    if let Some(given) = given {
        match args.dataset.is_empty() {
            true => rules = Some(given),
            false => datasets.extend(args.dataset.iter().map(|dataset| (dataset.clone(), given))),
        }
    } else if let Some(loaded) = plan_file::load_if_any(ui)? {
        for service in loaded.plan.services.values() {
            for (_, dataset) in service.datasets() {
                let wanted = args.dataset.is_empty() || args.dataset.contains(&dataset.name);
                let into = dataset.protect.iter().find(|protect| protect.to == named.name);
                if let Some(protect) = into.filter(|_| wanted) {
                    datasets.insert(dataset.name.clone(), rules_of(protect.keep));
                    if let Some(window) = protect.keep.log.and_then(|window| SignedDuration::try_from(window.0).ok()) {
                        log_windows.insert(dataset.name.clone(), window);
                    }
                }
            }
        }
    } else if args.point.is_empty() && !args.abandon {
        return Err(CommandError::usage(
            "nothing says what is to be kept: there is no plan, and no --keep-… was given",
        )
        .hint("for example --keep-daily 7 --keep-weekly 4 --keep-monthly 12; see docs/retention.md"));
    }
    let log_window = args.keep_log.as_deref().map(|text| span("--keep-log", text)).transpose()?;
    if log_window.is_some() {
        log_windows.clear();
    }
    let bytes_max = args.move_max.parse::<Size>().map_err(|_| {
        CommandError::usage(format!("--move-max {}: this is not a size", args.move_max)).hint("for example 10GiB")
    })?;
    let moves = match args.move_below {
        0 => MoveRules { below_percent: 0, small_packs: 0, bytes_max: 0 },
        below_percent => MoveRules { below_percent, bytes_max: bytes_max.0, ..MoveRules::default() },
    };
    Ok(PruneOptions {
        moves,
        rules,
        datasets,
        log_windows,
        log_window,
        points: args.point.iter().cloned().collect(),
        min_age: span("--min-age", &args.min_age)?,
        grace: span("--grace", &args.grace)?,
        by_claimed_time: args.by_claimed_time,
        ..PruneOptions::default()
    })
}

fn rules_of(keep: Keep) -> KeepRules {
    let Keep { last, hourly, daily, weekly, monthly, yearly, log: _ } = keep;
    KeepRules { last, hourly, daily, weekly, monthly, yearly }
}

fn span(option: &str, text: &str) -> Result<SignedDuration, CommandError> {
    let wrong = || CommandError::usage(format!("{option} {text}: this is not a length of time"));
    let span: Span = text.parse().map_err(|_| wrong().hint("for example 12h, 3d or 2w"))?;
    SignedDuration::try_from(span.0).map_err(|_| wrong())
}

fn abandon(pruner: &Pruner, yes: bool, ui: &Ui) -> Result<Exit, CommandError> {
    ui.confirm("The points that the last prune took are to be there again?", yes)?;
    let generation =
        pruner.abandon().kind(Kind::Refused).hint("`lifeboat vault prune --dry-run` shows how far it is")?;
    ui.line(format_args!("prune {generation} is given up; its points are there again"));
    ui.document(&Report { abandoned: Some(generation), ..Report::default() })?;
    Ok(Exit::Done)
}

fn tell_begun(begun: &Swept, ui: &Ui) {
    match begun {
        Swept::Nothing => {}
        Swept::Waits(open) if open.sweeping => {
            ui.line(format_args!(
                "prune {} is being deleted; run it again without --dry-run to finish",
                open.generation
            ));
        }
        Swept::Waits(open) => ui.line(format_args!(
            "prune {} waits: {} pruned on {}, what they held ({}) is deleted by a run after {}",
            open.generation,
            counted(open.points, "point"),
            time(open.proposed_at),
            Size(open.bytes).rounded(),
            time(open.due)
        )),
        Swept::Done(SweepReport { generation, objects, bytes, kept }) => {
            ui.line(format_args!(
                "prune {generation}: {} deleted, {} freed",
                counted(*objects, "object"),
                Size(*bytes).rounded()
            ));
            if !kept.is_empty() {
                ui.line(format_args!(
                    "  {} left alone: a point that came meanwhile needs them, or they were put on hold",
                    counted(kept.len() as u64, "object")
                ));
            }
        }
    }
}

fn tell_proposed(proposed: &Proposed, args: &Args, ui: &Ui) {
    let (count, points) = (proposed.pruned().count(), proposed.points.len());
    if points > 0 && (count > 0 || args.dry_run) {
        let rows: Vec<Vec<String>> = proposed.points.iter().map(row).collect();
        ui.line(table(&["POINT", "TAKEN AT", "CAME IN", "BECOMES", "WHY"], &rows).trim_end());
    }
    ui.line(format_args!(
        "{} of {} to be pruned; {} freed in {} once swept",
        count,
        counted(points as u64, "recovery point"),
        Size(proposed.bytes).rounded(),
        counted(proposed.packs, "pack")
    ));
    if proposed.moved_packs > 0 {
        ui.line(format_args!(
            "  {} of which little is needed, or that are small: {} moved into others, which frees {}",
            counted(proposed.moved_packs, "pack"),
            Size(proposed.moved_bytes).rounded(),
            Size(proposed.moved_frees).rounded()
        ));
    }
    if proposed.log_objects > 0 {
        ui.line(format_args!(
            "  {} of logs, which no point that stays needs: {}",
            counted(proposed.log_objects, "object"),
            Size(proposed.log_bytes).rounded()
        ));
    }
    if proposed.log_gathered > 0 {
        ui.line(format_args!(
            "  {} of logs put together into {}",
            counted(proposed.log_gathered, "object"),
            counted(proposed.log_containers, "object")
        ));
    }
    if proposed.spared_bytes > 0 {
        ui.line(format_args!(
            "  {} is not needed either, and spared for now: a backup that is at work may be about to need it",
            Size(proposed.spared_bytes).rounded()
        ));
    }
    if proposed.waste_bytes > 0 {
        ui.line(format_args!(
            "  {} lies beside what is needed, in packs that stay",
            Size(proposed.waste_bytes).rounded()
        ));
    }
}

fn row(point: &PointVerdict) -> Vec<String> {
    let why = match &point.pruned {
        Some(why) => why.clone(),
        None => point.kept.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    vec![
        point.id.clone(),
        time(point.taken_at),
        time(point.received_at),
        if point.pruned.is_some() { "pruned" } else { "kept" }.to_owned(),
        why,
    ]
}
