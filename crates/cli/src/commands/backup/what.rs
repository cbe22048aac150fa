//! What is to be backed up, and to where: from paths, or from the plan.

use std::path::{Path, PathBuf};

use lifeboat_core::plan::{DataSet, Plan, Reach, Service, Source};
use lifeboat_vault::files::Excludes;

use super::Args;
use crate::door::{Named, is_address};
use crate::error::{CommandError, Explain, Kind};
use crate::plan_file;
use crate::ui::Ui;

/// One data set, and where its data lies on this host.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) dataset: String,
    pub(super) roots: Vec<PathBuf>,
    pub(super) excludes: Excludes,
    pub(super) one_file_system: bool,
}

pub(super) type Work = Vec<(Named, Vec<Item>)>;

pub(super) fn find(args: Args, ui: &Ui) -> Result<Work, CommandError> {
    if args.vault.vault.as_deref().is_none_or(|vault| !is_address(vault))
        && let Some(loaded) = plan_file::load_if_any(ui)?
        && args.vault.vault.as_ref().is_none_or(|vault| loaded.plan.vaults.contains_key(vault))
    {
        return of_plan(&args, &loaded.plan);
    }
    let vault = args.vault.find(ui)?;
    Ok(vec![(vault, of_paths(args)?)])
}

fn of_paths(args: Args) -> Result<Vec<Item>, CommandError> {
    if args.what.is_empty() {
        return Err(CommandError::usage("there is nothing to back up").hint("name one or more paths"));
    }
    let excludes = Excludes::new(&args.exclude).map_err(CommandError::from).kind(Kind::Usage)?;
    let one_file_system = args.one_file_system;
    let item = |dataset: String, roots| Item { dataset, roots, excludes: excludes.clone(), one_file_system };
    let mut paths = Vec::new();
    for path in &args.what {
        let real = path
            .canonicalize()
            .saying(|| format!("{} cannot be backed up", path.display()))
            .kind(Kind::Usage)
            .hint("check that it exists and may be read")?;
        if !paths.contains(&real) {
            paths.push(real);
        }
    }
    match args.name {
        Some(name) => Ok(vec![item(name, paths)]),
        None => paths.into_iter().map(|path| Ok(item(name_of(&path)?, vec![path]))).collect(),
    }
}

/// A path's data set is called like the path.
fn name_of(path: &Path) -> Result<String, CommandError> {
    const BYTES_MAX: usize = 72;
    let name = path.to_str().filter(|name| name.len() <= BYTES_MAX && !name.chars().any(char::is_control));
    name.map(str::to_owned).ok_or_else(|| {
        let why =
            format!("{} is too long (more than {BYTES_MAX} bytes), or not text, for a data set's name", path.display());
        CommandError::usage(why).hint("give the data set a name with --as NAME")
    })
}

fn of_plan(args: &Args, plan: &Plan) -> Result<Work, CommandError> {
    if args.name.is_some() || !args.exclude.is_empty() || args.one_file_system {
        return Err(CommandError::usage("--as, --exclude and --one-file-system are for paths")
            .hint("the plan says what its data sets hold; for paths add --vault URL"));
    }
    let wanted: Vec<String> = args.what.iter().map(|name| name.to_string_lossy().into_owned()).collect();
    for name in &wanted {
        let known = plan
            .services
            .values()
            .any(|service| service.name == *name || service.datasets().any(|(_, dataset)| dataset.name == *name));
        if !known {
            return Err(CommandError::usage(format!("the plan has no data set or service `{name}`"))
                .hint(format!("it has: {}", all_names(plan).join(", ")))
                .hint("to back up a path, add --vault URL"));
        }
    }
    let mut work: Work = Vec::new();
    for service in plan.services.values() {
        let site = args.site.as_ref().unwrap_or(&service.primary);
        for (_, dataset) in service.datasets() {
            let named = wanted.contains(&service.name) || wanted.contains(&dataset.name);
            if !(wanted.is_empty() || named) {
                continue;
            }
            let Some((path, exclude)) = path_of(plan, service, dataset, site, named)? else { continue };
            for protect in &dataset.protect {
                if args.vault.vault.as_ref().is_some_and(|vault| *vault != protect.to) {
                    continue;
                }
                let item = Item {
                    dataset: dataset.name.clone(),
                    roots: vec![path.clone()],
                    excludes: Excludes::new(&exclude).map_err(CommandError::from).kind(Kind::Plan)?,
                    one_file_system: false,
                };
                add(&mut work, plan, &protect.to, args, item)?;
            }
        }
    }
    if work.is_empty() {
        return Err(CommandError::usage("nothing of that is protected here")
            .hint("`lifeboat check` tells what the plan protects, --site NAME says where this host is"));
    }
    Ok(work)
}

fn add(work: &mut Work, plan: &Plan, vault: &str, args: &Args, item: Item) -> Result<(), CommandError> {
    if let Some((_, items)) = work.iter_mut().find(|(named, _)| named.name == vault) {
        items.push(item);
        return Ok(());
    }
    let Some(found) = plan.vaults.get(vault) else {
        return Err(CommandError::new(Kind::Plan, format!("the plan has no vault `{vault}`")));
    };
    let owner = args.vault.owner.clone().or(plan.keys.owner.clone());
    work.push((Named { name: vault.to_owned(), url: found.url.clone(), owner }, vec![item]));
    Ok(())
}

/// Where a data set lies on this host; nothing if it has no data of its own, or lies in a kind of source that was not asked for.
fn path_of(
    plan: &Plan,
    service: &Service,
    dataset: &DataSet,
    site: &str,
    named: bool,
) -> Result<Option<(PathBuf, Vec<String>)>, CommandError> {
    let (path, exclude) = match &dataset.source {
        Source::Files { path, exclude } => (path, exclude.clone()),
        Source::Nothing => return Ok(None),
        _ if !named => return Ok(None),
        _ => {
            return Err(CommandError::failed(format!(
                "`{}` is of a kind that this version cannot back up",
                dataset.name
            )));
        }
    };
    let Some(found) = plan.sites.get(site) else {
        return Err(CommandError::usage(format!("the plan has no site `{site}`")));
    };
    if site != service.primary && !service.recovery.iter().any(|name| name == site) {
        return Ok(None);
    }
    let path = match (&found.reach, Path::new(path).is_absolute()) {
        (_, true) => PathBuf::from(path),
        (Reach::Local { root, .. }, false) => Path::new(root).join("volumes").join(path),
        (_, false) => {
            return Err(CommandError::new(
                Kind::Plan,
                format!("`{}` has a relative path, which only local sites may have", dataset.name),
            ));
        }
    };
    Ok(Some((path, exclude)))
}

fn all_names(plan: &Plan) -> Vec<&str> {
    let services = plan.services.values();
    services
        .flat_map(|service| {
            std::iter::once(service.name.as_str()).chain(service.datasets().map(|(_, dataset)| dataset.name.as_str()))
        })
        .collect()
}
