//! Which recovery points a restore means, in which vault.

use std::path::PathBuf;

use jiff::Timestamp;
use lifeboat_core::plan::Service;
use lifeboat_vault::{Badge, Finding, PointInfo, Points, Unlocked};

use super::Args;
use crate::commands::points::{dataset_named, no_points, time};
use crate::door::{Named, VaultArgs, is_address};
use crate::error::{CommandError, Explain, Kind};
use crate::plan_file::{self, Loaded};
use crate::ui::Ui;

/// One data set's part of a restore.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) vault: Unlocked,
    pub(super) point: PointInfo,
    pub(super) to: PathBuf,
    pub(super) findings: Vec<Finding>,
}

pub(super) fn find(args: &Args, ui: &Ui) -> Result<Vec<Task>, CommandError> {
    let at = args.at.as_deref().map(moment).transpose()?;
    if args.vault.vault.as_deref().is_none_or(|vault| !is_address(vault))
        && let Some(loaded) = plan_file::load_if_any(ui)?
        && args.vault.vault.as_ref().is_none_or(|vault| loaded.plan.vaults.contains_key(vault))
    {
        return of_plan(args, &loaded, at, ui);
    }
    let named = args.vault.find(ui)?;
    let (vault, points) = open(&named, args, ui)?;
    let dataset = match &args.what {
        Some(name) => dataset_named(&points.points, name)?,
        None => only_dataset(args, &points.points)?,
    };
    let of_it: Vec<&PointInfo> = points.points.iter().filter(|point| point.dataset == dataset).collect();
    let point = choose(args, &dataset, &of_it, at, true)?.clone();
    Ok(vec![task(vault, point, args.to.clone(), points.findings)])
}

fn open(named: &Named, args: &Args, ui: &Ui) -> Result<(Unlocked, Points), CommandError> {
    let vault = named.unlock(&args.key, ui)?;
    let points = vault.points(None).map_err(CommandError::of_vault)?;
    Ok((vault, points))
}

fn task(vault: Unlocked, point: PointInfo, to: PathBuf, mut findings: Vec<Finding>) -> Task {
    for finding in vault.unlock_findings() {
        if !findings.contains(&finding) {
            findings.push(finding);
        }
    }
    Task { vault, point, to, findings }
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

fn moment(text: &str) -> Result<Timestamp, CommandError> {
    text.parse()
        .saying(|| format!("`{text}` is not a moment"))
        .kind(Kind::Usage)
        .hint("write it in full, with its zone: 2026-11-21T14:00:00Z or 2026-11-21T15:00:00+01:00")
}

/// Whether a point goes by this name: its id, the end of it, or its bare number.
fn is_meant(point: &PointInfo, id: &str) -> bool {
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
    let usable = points.iter().filter(|point| point.badge != Badge::Corrupt);
    let meant = usable.filter(|point| at.is_none_or(|at| point.taken_at <= at));
    meant.max_by_key(|point| (point.taken_at, point.epoch, point.sequence)).copied().ok_or_else(|| {
        let oldest = points.iter().map(|point| point.taken_at).min().map(time).unwrap_or_default();
        match at {
            Some(at) => CommandError::failed(format!("no recovery point of `{dataset}` is as old as {}", time(at)))
                .hint(format!("the oldest is of {oldest}")),
            None => CommandError::failed(format!("every recovery point of `{dataset}` is known to be corrupt"))
                .hint("restore one by --point all the same, or from another vault"),
        }
    })
}

fn of_plan(args: &Args, loaded: &Loaded, at: Option<Timestamp>, ui: &Ui) -> Result<Vec<Task>, CommandError> {
    let plan = &loaded.plan;
    let Some(name) = &args.what else {
        return Err(CommandError::usage("what is to be restored?")
            .hint("name a data set or a service of the plan; or give a vault's address with --vault URL"));
    };
    if let Some(service) = plan.services.get(name) {
        return service_at_one_moment(args, loaded, service, at, ui);
    }
    let known = plan.services.values().flat_map(Service::datasets).any(|(_, dataset)| dataset.name == *name);
    if !known {
        return Err(CommandError::usage(format!("the plan has no data set or service `{name}`"))
            .hint("for what is not in the plan, give the vault's address with --vault URL"));
    }
    let (vault, points) = best_vault(args, loaded, name, ui)?;
    let of_it: Vec<&PointInfo> = points.points.iter().filter(|point| point.dataset == *name).collect();
    let point = choose(args, name, &of_it, at, false)?.clone();
    Ok(vec![task(vault, point, args.to.clone(), points.findings)])
}

/// All data sets of a service, as they were at the last moment that every one of them reaches.
fn service_at_one_moment(
    args: &Args,
    loaded: &Loaded,
    service: &Service,
    at: Option<Timestamp>,
    ui: &Ui,
) -> Result<Vec<Task>, CommandError> {
    if args.point.is_some() || !args.path.is_empty() {
        return Err(
            CommandError::usage("--point and --path are for one data set").hint("a service is restored --at a time")
        );
    }
    let mut found = Vec::new();
    for (_, dataset) in service.datasets().filter(|(_, dataset)| !dataset.protect.is_empty()) {
        let (vault, points) = best_vault(args, loaded, &dataset.name, ui)?;
        found.push((dataset.name.clone(), vault, points));
    }
    let mut latest = at;
    for (dataset, _, points) in &found {
        let of_it: Vec<&PointInfo> = points.points.iter().filter(|point| point.dataset == *dataset).collect();
        let reach = choose(args, dataset, &of_it, at, false)?.taken_at;
        latest = Some(latest.map_or(reach, |latest| latest.min(reach)));
    }
    let mut tasks = Vec::new();
    for (dataset, vault, points) in found {
        let of_it: Vec<&PointInfo> = points.points.iter().filter(|point| point.dataset == dataset).collect();
        let point = choose(args, &dataset, &of_it, latest, false)?.clone();
        tasks.push(task(vault, point, args.to.join(&dataset), points.findings));
    }
    match latest {
        Some(moment) if !tasks.is_empty() => {
            ui.note(format_args!("{} as of {}", service.name, time(moment)));
            Ok(tasks)
        }
        _ => Err(CommandError::usage(format!("service `{}` has no protected data", service.name))),
    }
}

/// Of the vaults that the plan sends a data set to, the one with the newest point that the key opens.
fn best_vault(args: &Args, loaded: &Loaded, dataset: &str, ui: &Ui) -> Result<(Unlocked, Points), CommandError> {
    let services = loaded.plan.services.values().flat_map(Service::datasets);
    let set = services.map(|(_, set)| set).find(|set| set.name == dataset);
    let vaults = set.map(|set| set.protect.iter().map(|protect| protect.to.as_str()).collect()).unwrap_or_default();
    let vaults: Vec<&str> = match &args.vault.vault {
        Some(given) => vec![given.as_str()],
        None => vaults,
    };
    let mut best: Option<(Unlocked, Points)> = None;
    let mut trouble = None;
    for name in vaults {
        let chosen = VaultArgs { vault: Some(name.to_owned()), owner: args.vault.owner.clone() };
        match chosen.find(ui).and_then(|named| open(&named, args, ui)) {
            Ok((vault, points)) => {
                let newest = |points: &Points| points.newest(dataset, None).map(|point| point.taken_at);
                if best.as_ref().is_none_or(|(_, kept)| newest(kept) < newest(&points)) {
                    best = Some((vault, points));
                }
            }
            Err(error) if error.kind == Kind::Failed => {
                ui.warn(format_args!("vault `{name}`: {}", error.message));
                trouble = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    best.ok_or_else(|| {
        trouble.unwrap_or_else(|| CommandError::usage(format!("the plan sends `{dataset}` to no vault")))
    })
}
