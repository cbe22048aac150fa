//! Which recovery points a restore means, in which vault.

use std::path::PathBuf;

use jiff::Timestamp;
use lifeboat_adapters::source::PostgresSource;
use lifeboat_core::plan::model::Archive;
use lifeboat_core::plan::{DataSet, Service, Source};
use lifeboat_core::runbook::Target;
use lifeboat_vault::{Badge, Finding, PointInfo, Points, Severity, Unlocked};

use super::Args;
use crate::commands::look::pruned;
use crate::commands::points::{dataset_named, no_points, time};
use crate::door::{self, Named, VaultArgs, is_address};
use crate::error::{CommandError, Explain, Kind};
use crate::plan_file::{self, Loaded};
use crate::ui::Ui;

/// One data set's part of a restore.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) vault: Unlocked,
    pub(crate) point: PointInfo,
    pub(super) to: PathBuf,
    pub(crate) how: How,
    pub(crate) findings: Vec<Finding>,
    /// How what is archived is thawed, by the plan.
    pub(crate) archive: Option<Archive>,
}

/// What a recovery point is of, and how its data set comes back.
#[derive(Debug, Clone)]
pub(crate) enum How {
    Files,
    /// A database: the point, and where there is one the log that goes on from it, up to a moment.
    Sqlite(Target),
    /// A cluster: its files, and the log up to a moment, replayed by its own server.
    Postgres(Target),
}

pub(super) fn find(args: &Args, ui: &Ui) -> Result<Vec<Task>, CommandError> {
    let at = args.at.as_deref().map(moment).transpose()?;
    if let Some(place) = args.position.as_deref().filter(|place| !PostgresSource::is_position(place)) {
        return Err(CommandError::usage(format!("`{place}` is no place in the log of a PostgreSQL server"))
            .hint("write it as the server does: `select pg_current_wal_lsn()` answers one, such as 16/B374D848"));
    }
    if args.vault.vault.as_deref().is_none_or(|vault| !is_address(vault))
        && let Some(loaded) = plan_file::load_if_any(ui)?
        && args.vault.vault.as_ref().is_none_or(|vault| loaded.plan.vaults.contains_key(vault))
    {
        return of_plan(args, &loaded, at, ui);
    }
    let named = args.vault.find(ui)?.against(&args.witness);
    let (vault, mut points) = open(&named, args, ui)?;
    // What was wrong is said even where nothing will be restored: it is not said again another time.
    let told = |_: &CommandError| door::show(&points.findings, ui);
    let dataset = match &args.what {
        Some(name) => dataset_named(&points.points, name)
            .map_err(|error| mean_path(&vault, args, &points.points, error))
            .inspect_err(told)?,
        None => only_dataset(args, &points.points).map_err(|error| gone(&vault, args, error)).inspect_err(told)?,
    };
    let of_it: Vec<&PointInfo> = points.points.iter().filter(|point| point.dataset == dataset).collect();
    let chosen = choose(args, &dataset, &of_it, at, true).map_err(|error| gone(&vault, args, error));
    let point = chosen.inspect_err(told)?.clone();
    let passed_by = passed_by(args, &of_it, &point, at);
    // Only streams of databases have positions.
    let is_streamed = of_it.iter().any(|point| point.position.is_some());
    let is_cluster = point.release.as_deref().is_some_and(|release| release.starts_with("PostgreSQL "));
    if is_streamed {
        reach(&vault, &point, &mut points.findings)?;
    }
    let how = match is_cluster {
        true if args.path.is_empty() => How::Postgres(target(args, &point, at)),
        _ if place(args).is_some() => {
            let kind = if is_streamed { "a SQLite database" } else { "files" };
            door::show(&points.findings, ui);
            return Err(no_places(&dataset, kind));
        }
        false if is_streamed => How::Sqlite(target(args, &point, at)),
        _ => How::Files,
    };
    points.findings.extend(passed_by);
    let found = task(vault, point, args.to.clone(), how, points.findings);
    Ok(vec![Task { archive: named.archive, ..found }])
}

/// The point that was asked for may have been pruned.
fn gone(vault: &Unlocked, args: &Args, error: CommandError) -> CommandError {
    args.point.as_deref().and_then(|id| pruned(vault, id)).unwrap_or(error)
}

/// Whoever names what is no data set may mean a point, or a path in one.
fn mean_path(vault: &Unlocked, args: &Args, points: &[PointInfo], error: CommandError) -> CommandError {
    let Some(name) = &args.what else { return error };
    if let Some(pruned) = pruned(vault, name) {
        return pruned;
    }
    match points.iter().find(|point| is_meant(point, name)) {
        Some(point) => error.hint(format!("a point is named with --point: --point {}", point.id)),
        None => error.hint(format!("for one path of a data set: --path {name}")),
    }
}

/// Up to where a database is brought back.
fn target(args: &Args, point: &PointInfo, at: Option<Timestamp>) -> Target {
    if let Some(place) = place(args) {
        return place;
    }
    match at {
        _ if args.point.is_some() || args.host.is_some() => Target::Point(point.id.clone()),
        Some(at) => Target::At(at.to_string()),
        None => Target::Newest,
    }
}

/// The place in a server's log that was asked for.
fn place(args: &Args) -> Option<Target> {
    let named = || args.named.clone().map(Target::Named);
    args.position.clone().map(Target::Position).or_else(named)
}

fn no_places(dataset: &str, kind: &str) -> CommandError {
    CommandError::usage(format!(
        "`{dataset}` is {kind}: only the log of a PostgreSQL cluster has positions and named restore points"
    ))
    .hint("restore it to a time (--at), or from a recovery point (--point)")
}

fn how(args: &Args, dataset: &DataSet, point: &PointInfo, at: Option<Timestamp>) -> How {
    match &dataset.source {
        Source::Sqlite { .. } => How::Sqlite(target(args, point, at)),
        Source::Postgres { .. } if args.path.is_empty() => How::Postgres(target(args, point, at)),
        _ => How::Files,
    }
}

/// Up to when a data set can be brought back from its newest usable point: the point's own time, or its log's end.
fn reach(vault: &Unlocked, point: &PointInfo, findings: &mut Vec<Finding>) -> Result<Timestamp, CommandError> {
    let Some(position) = &point.position else { return Ok(point.taken_at) };
    let trail = vault.log_since(&point.dataset, position).map_err(CommandError::of_vault)?;
    findings.extend(trail.findings);
    let last = trail.entries.iter().map(|entry| entry.source_time).max();
    Ok(last.map_or(point.taken_at, |last| last.max(point.taken_at)))
}

fn open(named: &Named, args: &Args, ui: &Ui) -> Result<(Unlocked, Points), CommandError> {
    let vault = named.unlock(&args.key, ui)?;
    named.ask_others(&vault, ui)?;
    let points = vault.points(None).map_err(CommandError::of_vault)?;
    Ok((vault, points))
}

fn task(vault: Unlocked, point: PointInfo, to: PathBuf, how: How, mut findings: Vec<Finding>) -> Task {
    for finding in vault.unlock_findings() {
        if !findings.contains(&finding) {
            findings.push(finding);
        }
    }
    Task { vault, point, to, how, findings, archive: None }
}

/// Without a name: the data set of the point that is named, or the vault's only one.
fn only_dataset(args: &Args, points: &[PointInfo]) -> Result<String, CommandError> {
    let mut all: Vec<&str> = match &args.point {
        Some(id) => points.iter().filter(|point| is_meant(point, id)).map(|point| point.dataset.as_str()).collect(),
        None => points.iter().map(|point| point.dataset.as_str()).collect(),
    };
    all.sort_unstable();
    all.dedup();
    match all[..] {
        [only] => Ok(only.to_owned()),
        [] if points.is_empty() => Err(no_points()),
        [] => Err(no_such_point(args.point.as_deref().unwrap_or_default())),
        _ => Err(CommandError::usage("the vault has recovery points of several data sets")
            .hint(format!("say which: {}", all.join(", ")))),
    }
}

pub(crate) fn moment(text: &str) -> Result<Timestamp, CommandError> {
    text.parse()
        .saying(|| format!("`{text}` is not a moment"))
        .kind(Kind::Usage)
        .hint("write it in full, with its zone: 2026-11-21T14:00:00Z or 2026-11-21T15:00:00+01:00")
}

/// Whether a point goes by this name: its id, the end of it, or its bare number.
pub(crate) fn is_meant(point: &PointInfo, id: &str) -> bool {
    point.id == id || point.id.ends_with(&format!("/{id}")) || id.parse() == Ok(point.sequence)
}

fn no_such_point(id: &str) -> CommandError {
    CommandError::usage(format!("there is no recovery point `{id}`")).hint("`lifeboat points` lists what there is")
}

/// The point meant among those of one data set. `one_host`: do not guess between hosts that share a name for their data.
fn choose<'a>(
    args: &Args,
    dataset: &str,
    points: &[&'a PointInfo],
    at: Option<Timestamp>,
    one_host: bool,
) -> Result<&'a PointInfo, CommandError> {
    let points: Vec<&PointInfo> =
        points.iter().copied().filter(|point| args.host.as_ref().is_none_or(|host| point.host == *host)).collect();
    if points.is_empty() {
        let of = args.host.as_ref().map(|host| format!(" taken by host `{host}`")).unwrap_or_default();
        return Err(CommandError::failed(format!("the vault holds no recovery point of `{dataset}`{of}"))
            .hint("`lifeboat points` lists what there is"));
    }
    if let Some(id) = &args.point {
        let meant: Vec<&PointInfo> = points.into_iter().filter(|point| is_meant(point, id)).collect();
        return match meant[..] {
            [only] => Ok(only),
            [] => Err(no_such_point(id)),
            _ => {
                let ids: Vec<&str> = meant.iter().map(|point| point.id.as_str()).collect();
                Err(CommandError::usage(format!("`{id}` may mean several points"))
                    .hint(format!("say which: {}", ids.join(", "))))
            }
        };
    }
    let mut hosts: Vec<&str> = points.iter().map(|point| point.host.as_str()).collect();
    hosts.sort_unstable();
    hosts.dedup();
    if one_host && hosts.len() > 1 {
        return Err(CommandError::usage(format!("several hosts have taken points of `{dataset}`"))
            .hint(format!("say whose with --host: {}", hosts.join(", "))));
    }
    let in_time = |point: &&PointInfo| point.badge != Badge::Corrupt && at.is_none_or(|at| point.taken_at <= at);
    // A writer of a former epoch may have gone on, unaware: what it wrote since does not count. Which epoch was the
    // newest is asked as of the moment: a later failover takes nothing of what was before it away.
    let epoch = points.iter().copied().filter(in_time).map(|point| point.epoch).max().unwrap_or(0);
    let counts = |point: &&PointInfo| one_host || point.epoch == epoch || point.epoch == 0;
    let mut meant = points.iter().copied().filter(in_time).filter(counts);
    // They are in order, oldest first.
    meant.next_back().ok_or_else(|| {
        let oldest = points.iter().map(|point| point.taken_at).min().map(time).unwrap_or_default();
        match at {
            Some(at) => CommandError::failed(format!("no recovery point of `{dataset}` is as old as {}", time(at)))
                .hint(format!("the oldest is of {oldest}")),
            None => CommandError::failed(format!("every recovery point of `{dataset}` is known to be corrupt"))
                .hint("restore one by --point all the same, or from another vault"),
        }
    })
}

/// Newer points than the chosen one that are known to be corrupt: an older state in place of the newest is no secret.
fn passed_by(args: &Args, points: &[&PointInfo], chosen: &PointInfo, at: Option<Timestamp>) -> Option<Finding> {
    let newer = points.iter().rev().take_while(|point| point.id != chosen.id);
    let newest = newer
        .filter(|point| point.badge == Badge::Corrupt && point.epoch >= chosen.epoch)
        .filter(|point| args.host.as_ref().is_none_or(|host| point.host == *host))
        .find(|point| args.point.is_none() && at.is_none_or(|at| point.taken_at <= at))?;
    let message = format!(
        "recovery point {} is known to be corrupt; {}, of {}, is restored in its place (`vault heal` may bring the newer back)",
        newest.id,
        chosen.id,
        time(chosen.taken_at)
    );
    Some(Finding { severity: Severity::Alarm, code: "corrupt", object: newest.id.clone(), message })
}

fn of_plan(args: &Args, loaded: &Loaded, at: Option<Timestamp>, ui: &Ui) -> Result<Vec<Task>, CommandError> {
    let plan = &loaded.plan;
    let Some(name) = &args.what else {
        return Err(CommandError::usage("what is to be restored?")
            .hint("name a data set or a service of the plan; or give a vault's address with --vault URL"));
    };
    if let Some(service) = plan.services.get(name) {
        return service_at_one_moment(args, service, at, ui);
    }
    let dataset = plan.services.values().flat_map(Service::datasets).find(|(_, dataset)| dataset.name == *name);
    let Some((_, dataset)) = dataset else {
        return Err(CommandError::usage(format!("the plan has no data set or service `{name}`"))
            .hint("for what is not in the plan, give the vault's address with --vault URL"));
    };
    if place(args).is_some() && !matches!(dataset.source, Source::Postgres { .. }) {
        let kind =
            if matches!(dataset.source, Source::Sqlite { .. }) { "a SQLite database" } else { "no PostgreSQL cluster" };
        return Err(no_places(&dataset.name, kind));
    }
    let found = best_vault(args, dataset, at, ui)?;
    let how = how(args, dataset, &found.point, at);
    let made = task(found.vault, found.point, args.to.clone(), how, found.findings);
    Ok(vec![Task { archive: found.archive, ..made }])
}

/// All data sets of a service, as they were at the last moment that every one of them reaches.
fn service_at_one_moment(
    args: &Args,
    service: &Service,
    at: Option<Timestamp>,
    ui: &Ui,
) -> Result<Vec<Task>, CommandError> {
    if args.point.is_some() || !args.path.is_empty() || place(args).is_some() {
        return Err(CommandError::usage("--point, --position, --named and --path are for one data set")
            .hint("a service is restored --at a time"));
    }
    let mut found = Vec::new();
    for (_, dataset) in service.datasets().filter(|(_, dataset)| dataset.is_recovered()) {
        found.push((dataset, best_vault(args, dataset, at, ui)?));
    }
    let reaches = found.iter().map(|(_, found)| found.reach);
    let Some(latest) = reaches.chain(at).min() else {
        return Err(CommandError::usage(format!("service `{}` has no protected data", service.name)));
    };
    let mut tasks = Vec::new();
    for (dataset, found) in found {
        let of_it: Vec<&PointInfo> = found.points.iter().collect();
        let (point, how) = match choose(args, &dataset.name, &of_it, Some(latest), false) {
            Ok(point) => (point.clone(), how(args, dataset, point, Some(latest))),
            Err(_) => oldest(dataset, found.point, &of_it, latest, ui),
        };
        let made = task(found.vault, point, args.to.join(&dataset.name), how, found.findings);
        tasks.push(Task { archive: found.archive, ..made });
    }
    ui.note(format_args!("{} as of {}", service.name, time(latest)));
    Ok(tasks)
}

/// Data sets are first taken one after the other: where one has nothing as old as the moment, the next that it has.
fn oldest(dataset: &DataSet, newest: PointInfo, points: &[&PointInfo], moment: Timestamp, ui: &Ui) -> (PointInfo, How) {
    let usable = points.iter().filter(|point| point.badge != Badge::Corrupt && point.epoch == newest.epoch);
    let point = usable.min_by_key(|point| point.taken_at).map_or(newest, |point| (*point).clone());
    let later = point.taken_at.duration_since(moment).as_secs_f64();
    ui.warn(format_args!(
        "`{}` has no point as old as the others' newest: its oldest, {later:.1} s later, is taken",
        dataset.name
    ));
    let how = match &dataset.source {
        Source::Sqlite { .. } => How::Sqlite(Target::Point(point.id.clone())),
        Source::Postgres { .. } => How::Postgres(Target::Point(point.id.clone())),
        _ => How::Files,
    };
    (point, how)
}

/// A vault that has a data set, and what it has of it.
struct Found {
    vault: Unlocked,
    points: Vec<PointInfo>,
    /// The newest point that is meant.
    point: PointInfo,
    reach: Timestamp,
    findings: Vec<Finding>,
    archive: Option<Archive>,
}

impl Found {
    /// What reaches further is better; of the same, what is at hand.
    fn is_better_than(&self, other: &Found) -> bool {
        let waits = |found: &Found| found.point.archived.as_ref().map_or(0, |archived| archived.thaw_seconds);
        (self.reach, std::cmp::Reverse(waits(self))) > (other.reach, std::cmp::Reverse(waits(other)))
    }
}

/// Of the vaults that the plan sends a data set to, the one that reaches furthest, among those that the key opens.
fn best_vault(args: &Args, dataset: &DataSet, at: Option<Timestamp>, ui: &Ui) -> Result<Found, CommandError> {
    let vaults: Vec<&str> = match &args.vault.vault {
        Some(given) => vec![given.as_str()],
        None => dataset.protect.iter().map(|protect| protect.to.as_str()).collect(),
    };
    let mut best: Option<Found> = None;
    let mut trouble: Option<CommandError> = None;
    for name in &vaults {
        match look(args, name, dataset, at, ui) {
            Ok(found) if best.as_ref().is_none_or(|best| found.is_better_than(best)) => best = Some(found),
            Ok(_) => {}
            Err(error) if error.kind == Kind::Failed && vaults.len() > 1 => {
                ui.warn(format_args!("vault `{name}`: {}", error.message));
                trouble = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    best.ok_or_else(|| {
        trouble.unwrap_or_else(|| CommandError::usage(format!("the plan sends `{}` to no vault", dataset.name)))
    })
}

fn look(args: &Args, name: &str, dataset: &DataSet, at: Option<Timestamp>, ui: &Ui) -> Result<Found, CommandError> {
    let named = VaultArgs::of(name, &args.vault.owner).find(ui)?.against(&args.witness);
    let (vault, Points { mut points, mut findings }) = open(&named, args, ui)?;
    points.retain(|point| point.dataset == dataset.name);
    let of_it: Vec<&PointInfo> = points.iter().collect();
    let point = choose(args, &dataset.name, &of_it, at, false).inspect_err(|_| door::show(&findings, ui))?.clone();
    findings.extend(passed_by(args, &of_it, &point, at));
    let reach = reach(&vault, &point, &mut findings)?;
    Ok(Found { vault, points, point, reach, findings, archive: named.archive })
}
