//! `lifeboat vault prune`: what need not be kept goes, in two steps.
//!
//! Invariant: everything that will go is printed, with its reason, before anybody is asked; what is due of a prune that was begun is done
//! without asking again.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::SignedDuration;
use lifeboat_core::plan::model::Keep;
use lifeboat_core::units::{Size, Span};
use lifeboat_vault::prune::{
    ArchiveRules, LockReport, MoveRules, OpenPrune, PointVerdict, Proposed, SweepReport, Swept,
};
use lifeboat_vault::{Finding, KeepRules, PruneOptions, Pruner, Severity, Vault};
use serde::Serialize;

use super::lock;
use crate::commands::points::{dataset_named, point_named, time};
use crate::commands::restore::which::is_meant;
use crate::door::{self, Named, VaultArgs};
use crate::error::{CommandError, Exit, Explain, Kind};
use crate::interrupt;
use crate::plan_file;
use crate::report::{counted, table};
use crate::ui::Ui;

/// More of what is locked are counted only.
const LOCKED_SHOWN_MAX: usize = 5;

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
    /// Put what only points need that came in longer ago than this into another class of the storage; the newest points stay at hand
    #[arg(long, value_name = "TIME", requires = "archive_class")]
    archive_after: Option<String>,
    /// That class, by the storage's own word: DEEP_ARCHIVE [default: the plan's]
    #[arg(long, value_name = "CLASS", requires = "archive_thaw")]
    archive_class: Option<String>,
    /// How long it takes until what lies there can be read; 0s: at once [default: the plan's]
    #[arg(long, value_name = "TIME")]
    archive_thaw: Option<String>,
    /// Put no more than this there in one run
    #[arg(long, value_name = "SIZE", default_value = "256GiB")]
    archive_max: String,
    /// At most so much a second, for example 50MB
    #[arg(long, value_name = "SIZE")]
    archive_rate: Option<Size>,
    /// Prune this point (its id as `lifeboat points` shows it, or whole), whatever the rules say; may be given several times
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
    /// What the storage has locked, where the plan says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    locks: Option<&'a LockReport>,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let named = args.vault.find(ui)?;
    let mut options = options(&args, &named, ui)?;
    let cancel = interrupt::listen(ui)?;
    let pruner = open(&named, &args.key, ui)?;
    pruner.vault().stop_on(cancel.shared());
    if args.abandon {
        return abandon(&pruner, args.yes, ui);
    }
    call_by_name(&mut options, &args, pruner.vault())?;
    let mut findings = pruner.vault().findings();
    let mut report = Report::default();
    // Before anything that may be refused: locks must not run out while an incident is looked into.
    let locks = named.lock.map(|length| lock::pass(&pruner, &lock::wish(length, args.dry_run), ui)).transpose()?;
    let alarms = locks.iter().flat_map(|locks| &locks.findings).filter(|finding| finding.severity == Severity::Alarm);
    findings.extend(alarms.cloned());
    report.locks = locks.as_ref();
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
    if let Swept::Done(swept) = &begun {
        findings.extend(swept.findings.iter().cloned());
    }
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
                0 if proposed.frees_nothing() => "Put it there?".to_owned(),
                0 => "Delete what is not needed, once the rest was moved?".to_owned(),
                count => format!("Prune {}?", counted(count, "recovery point")),
            };
            ui.confirm(&question, args.yes)?;
            let _waiting = ui.waiting("pruning");
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
pub(super) fn open(named: &Named, keys: &[PathBuf], ui: &Ui) -> Result<Pruner, CommandError> {
    let opened = match keys {
        [] => named.open(ui)?.pruner(&door::state(ui, None)?),
        keys => named.unlock(keys, ui)?.pruner(),
    };
    opened.map_err(CommandError::of_vault)
}

fn options(args: &Args, named: &Named, ui: &Ui) -> Result<PruneOptions, CommandError> {
    let given = args.keep.rules();
    let (mut datasets, mut log_windows) = (BTreeMap::new(), BTreeMap::new());
    let (mut rules, mut archive_after) = (None, BTreeMap::new());
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
                    if let Some(after) =
                        protect.keep.archive_after.and_then(|after| SignedDuration::try_from(after.0).ok())
                    {
                        archive_after.insert(dataset.name.clone(), after);
                    }
                    if let Some(window) = protect.keep.log.and_then(|window| SignedDuration::try_from(window.0).ok()) {
                        log_windows.insert(dataset.name.clone(), window);
                    }
                }
            }
        }
    } else if args.point.is_empty() && !args.abandon && args.archive_after.is_none() {
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
        archive: archive(args, named, archive_after)?,
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

/// From the plan's `archive` and `archive-after`, or from the options.
fn archive(
    args: &Args,
    named: &Named,
    mut after: BTreeMap<String, SignedDuration>,
) -> Result<Option<ArchiveRules>, CommandError> {
    let mut after_all = None;
    if let Some(text) = &args.archive_after {
        let given = span("--archive-after", text)?;
        match args.dataset.is_empty() {
            true => after_all = Some(given),
            false => after.extend(args.dataset.iter().map(|dataset| (dataset.clone(), given))),
        }
    }
    if after.is_empty() && after_all.is_none() {
        return Ok(None);
    }
    let (class, thaw) = match (&args.archive_class, &args.archive_thaw, &named.archive) {
        (Some(class), Some(thaw), _) => (class.clone(), span("--archive-thaw", thaw)?),
        (_, _, Some(archive)) => (archive.class.clone(), SignedDuration::try_from(archive.thaw.0).unwrap_or_default()),
        _ => {
            return Err(CommandError::usage("nothing says in which class old points are to be archived")
                .hint("give the vault `archive` in the plan, or --archive-class and --archive-thaw"));
        }
    };
    let bytes_max = args.archive_max.parse::<Size>().map_err(|_| {
        CommandError::usage(format!("--archive-max {}: this is not a size", args.archive_max)).hint("for example 1TiB")
    })?;
    let bytes_per_second = args.archive_rate.map(|rate| rate.0);
    Ok(Some(ArchiveRules { class, thaw, after, after_all, bytes_per_second, bytes_max: bytes_max.0 }))
}

/// Gives what was asked for the names that it has in the vault: a name that nothing goes by would keep everything for ever.
fn call_by_name(options: &mut PruneOptions, args: &Args, vault: &Vault) -> Result<(), CommandError> {
    if args.dataset.is_empty() && args.point.is_empty() {
        return Ok(());
    }
    let points = vault.points(None).map_err(CommandError::of_vault)?.points;
    let planned = args.keep.rules().is_none();
    for name in &args.dataset {
        if planned && options.datasets.contains_key(name) {
            continue;
        }
        let found = dataset_named(&points, name)?;
        let archived = options.archive.as_mut().and_then(|archive| {
            let after = archive.after.remove(name)?;
            archive.after.insert(found.clone(), after);
            Some(())
        });
        let kept = options.datasets.remove(name).map(|rules| options.datasets.insert(found.clone(), rules));
        if kept.is_none() && archived.is_none() {
            return Err(CommandError::usage(format!("no rule says what is to be kept of `{found}` in this vault"))
                .hint("give one with --keep-…, or `keep` in the plan"));
        }
    }
    let full = |id: &String| match points.iter().any(|point| is_meant(point, id)) {
        true => Ok(point_named(&points, id)?.id.clone()),
        false => Ok(id.clone()),
    };
    options.points = options.points.iter().map(full).collect::<Result<_, CommandError>>()?;
    Ok(())
}

fn rules_of(keep: Keep) -> KeepRules {
    let Keep { last, hourly, daily, weekly, monthly, yearly, .. } = keep;
    KeepRules { last, hourly, daily, weekly, monthly, yearly }
}

pub(super) fn span(option: &str, text: &str) -> Result<SignedDuration, CommandError> {
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
            "prune {} waits: {} pruned on {}, what they held ({}) is deleted{} by a run after {}",
            open.generation,
            counted(open.points, "point"),
            time(open.proposed_at),
            Size(open.bytes).rounded(),
            match open.archived_packs {
                0 => String::new(),
                _ => format!(", and {} archived,", Size(open.archived_bytes).rounded()),
            },
            time(open.due)
        )),
        Swept::Done(SweepReport {
            generation, objects, bytes, archived_packs, archived_bytes, kept, locked, ..
        }) => {
            ui.line(format_args!(
                "prune {generation}: {} deleted, {} freed",
                counted(*objects, "object"),
                Size(*bytes).rounded()
            ));
            if *archived_packs > 0 {
                ui.line(format_args!(
                    "  {} put where the plan's `archive` says: {}",
                    counted(*archived_packs, "pack"),
                    Size(*archived_bytes).rounded()
                ));
            }
            for object in locked.iter().take(LOCKED_SHOWN_MAX) {
                let until = object.until.map_or_else(|| "for now".to_owned(), |until| format!("until {}", time(until)));
                ui.line(format_args!("  {} is locked {until}: a later prune deletes it", object.key));
            }
            if let more @ 1.. = locked.len().saturating_sub(LOCKED_SHOWN_MAX) {
                ui.line(format_args!("  and {} more (--json names all)", counted(more as u64, "object")));
            }
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
    if points > 0 && count == 0 && !args.dry_run {
        ui.line("  --dry-run shows why each point stays");
    }
    if proposed.moved_packs > 0 {
        ui.line(format_args!(
            "  {} of which little is needed, or that are small: {} moved into others, which frees {}",
            counted(proposed.moved_packs, "pack"),
            Size(proposed.moved_bytes).rounded(),
            Size(proposed.moved_frees).rounded()
        ));
    }
    if let (packs @ 1.., Some(class)) = (proposed.archived_packs, &proposed.archive_class) {
        let thaw = match proposed.archive_thaw_seconds.unwrap_or(0) {
            0 => "read at once".to_owned(),
            seconds => format!("{} to thaw", Span::seconds(seconds)),
        };
        ui.line(format_args!(
            "  {} that only older points need: put into the class {class} ({thaw}), {}",
            counted(packs, "pack"),
            Size(proposed.archived_bytes).rounded()
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
