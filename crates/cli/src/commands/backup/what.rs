//! What is to be backed up, and to where: from paths, or from the plan.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lifeboat_adapters::source::{PostgresDump, PostgresSource, Server};
use lifeboat_core::plan::{DataSet, Name, Plan, Reach, Service, Source};
use lifeboat_vault::files::Excludes;

use super::Args;
use crate::door::{Named, is_address};
use crate::error::{CommandError, Explain, Kind};
use crate::plan_file;
use crate::ui::Ui;
use crate::wiring::Wiring;

/// One data set, and where its data lies on this host.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) dataset: String,
    pub(super) data: Data,
    /// The epoch in force where a plan's arbiter says one; 0 without.
    pub(super) epoch: u64,
}

#[derive(Debug)]
pub(super) enum Data {
    Files {
        roots: Vec<PathBuf>,
        excludes: Excludes,
        one_file_system: bool,
    },
    /// A database that may be written meanwhile; it is taken between two transactions.
    Sqlite {
        path: PathBuf,
    },
    /// A cluster whose server is running.
    Postgres {
        path: PathBuf,
        service: Option<String>,
    },
    Dump(PostgresDump),
}

impl Item {
    /// A vault within what goes into it would hold itself again and again.
    pub(super) fn check_apart(&self, vault: &Path) -> Result<(), CommandError> {
        let (roots, excludes) = match &self.data {
            Data::Files { roots, excludes, .. } => (roots.as_slice(), Some(excludes)),
            Data::Postgres { path, .. } => (std::slice::from_ref(path), None),
            Data::Sqlite { .. } | Data::Dump(_) => return Ok(()),
        };
        let Ok(vault) = vault.canonicalize() else { return Ok(()) };
        for root in roots {
            let Ok(within) = vault.strip_prefix(root) else { continue };
            let is_excluded = |path: &Path| excludes.is_some_and(|excludes| excludes.matches(path, true));
            if within.ancestors().any(|path| path != Path::new("") && is_excluded(path)) {
                continue;
            }
            let message =
                format!("the vault {} lies within {}, which is to go into it", vault.display(), root.display());
            let hint = match within.to_str().filter(|text| !text.is_empty()) {
                Some(_) if excludes.is_none() => {
                    "put the vault elsewhere: a server's backup has all that is there".to_owned()
                }
                Some(within) => {
                    format!("leave it out (--exclude '/{within}', or `exclude` in the plan), or put it elsewhere")
                }
                None => "name something else to back up".to_owned(),
            };
            return Err(CommandError::refused(message).hint(hint));
        }
        Ok(())
    }
}

/// Everything that is to be done, vault by vault.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) vaults: Vec<(Named, Vec<Item>)>,
    /// What the plan protects here and this version cannot, each with the reason.
    pub(super) unable: Vec<String>,
}

pub(super) fn find(args: Args, ui: &Ui) -> Result<Work, CommandError> {
    if args.dump.is_none()
        && args.vault.vault.as_deref().is_none_or(|vault| !is_address(vault))
        && let Some(loaded) = plan_file::load_if_any(ui)?
        && args.vault.vault.as_ref().is_none_or(|vault| loaded.plan.vaults.contains_key(vault))
    {
        let writers = in_force(&loaded.plan, ui)?;
        return of_plan(&args, &loaded.plan, &writers);
    }
    let vault = args.vault.find(ui)?;
    let items = match &args.dump {
        Some(server) => vec![of_server(server, &args)?],
        None => of_paths(args)?,
    };
    Ok(Work { vaults: vec![(vault, items)], unable: Vec::new() })
}

/// As a plan has it by itself.
const LOCK_WAIT: Duration = Duration::from_secs(60);

/// A dump of the server that runs in a directory, or that a service leads to.
fn of_server(named: &OsStr, args: &Args) -> Result<Item, CommandError> {
    if !args.what.is_empty() || !args.exclude.is_empty() || args.one_file_system {
        return Err(CommandError::usage("--dump is for one server, and for nothing else")
            .hint("take the paths out, and back them up by themselves"));
    }
    let path = Path::new(named);
    // A service and a directory that is here may have one name.
    let (server, shown) = if named.as_encoded_bytes().contains(&b'/') {
        let real = path
            .canonicalize()
            .saying(|| format!("no server can be found by {}", path.display()))
            .kind(Kind::Usage)
            .hint("name the data directory of a server that runs, or a service of pg_service.conf")?;
        let shown = real.display().to_string();
        (Server::Directory(real), shown)
    } else {
        let service = named.to_str().ok_or_else(|| CommandError::usage("the service's name is not text"))?;
        (Server::Service(service.to_owned()), service.to_owned())
    };
    // Not the name of the directory's own points: those are its files.
    let dataset = match &args.name {
        Some(name) => name.clone(),
        None => name_of(Path::new(&format!("{shown}.dump")))?,
    };
    let data = Data::Dump(PostgresDump { server, databases: args.database.clone(), lock_wait: LOCK_WAIT });
    Ok(Item { dataset, data, epoch: 0 })
}

fn of_paths(args: Args) -> Result<Vec<Item>, CommandError> {
    if args.what.is_empty() {
        return Err(
            CommandError::usage("there is nothing to back up").hint("name one or more paths, or a server with --dump")
        );
    }
    let excludes = Excludes::new(&args.exclude).map_err(CommandError::from).kind(Kind::Usage)?;
    let one_file_system = args.one_file_system;
    let item = |dataset: String, roots: Vec<PathBuf>| match roots.as_slice() {
        [only] if is_sqlite(only) => Item { dataset, data: Data::Sqlite { path: only.clone() }, epoch: 0 },
        // Of a stopped one, its files are the whole of it.
        [only] if PostgresSource::is_running_in(only) => {
            Item { dataset, data: Data::Postgres { path: only.clone(), service: None }, epoch: 0 }
        }
        _ => Item { dataset, data: Data::Files { roots, excludes: excludes.clone(), one_file_system }, epoch: 0 },
    };
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

/// Whether a file is a SQLite database, by what its first bytes say. (Nothing in this process has it open yet.)
fn is_sqlite(path: &Path) -> bool {
    let mut head = [0; 16];
    let read = path.is_file().then(|| File::open(path).and_then(|mut file| file.read_exact(&mut head)));
    matches!(read, Some(Ok(()))) && head == *b"SQLite format 3\0"
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

/// Who writes each service, and under which epoch, where an arbiter says so. What a site takes that is not the writer would
/// pass for the newest state.
fn in_force(plan: &Plan, ui: &Ui) -> Result<BTreeMap<String, (Name, u64)>, CommandError> {
    if plan.arbiter.is_none() {
        return Ok(BTreeMap::new());
    }
    let hint = "who writes stands in the arbiter; a recovery point that is taken without asking it could be of a site that \
                was given up. To take one all the same, give --vault URL and the paths";
    let wiring = Wiring::open(ui).hint(hint)?;
    let asked = plan.services.values().map(|service| Ok((service.name.clone(), wiring.writer(service)?)));
    asked.collect::<Result<_, CommandError>>().hint(hint)
}

fn of_plan(args: &Args, plan: &Plan, writers: &BTreeMap<String, (Name, u64)>) -> Result<Work, CommandError> {
    if args.name.is_some() || !args.exclude.is_empty() || args.one_file_system {
        return Err(CommandError::usage("--as, --exclude and --one-file-system are for paths")
            .hint("the plan says what its data sets hold; for paths add --vault URL"));
    }
    if let Some(site) = args.site.as_ref().filter(|site| !plan.sites.contains_key(site.as_str())) {
        let known: Vec<&str> = plan.sites.keys().map(String::as_str).collect();
        return Err(
            CommandError::usage(format!("the plan has no site `{site}`")).hint(format!("it has: {}", known.join(", ")))
        );
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
    let mut work = Work::default();
    for service in plan.services.values() {
        let in_force = writers.get(&service.name);
        let site = args.site.as_ref().unwrap_or(&service.primary);
        for (_, dataset) in service.datasets() {
            let named = wanted.contains(&service.name) || wanted.contains(&dataset.name);
            if !(wanted.is_empty() || named) {
                continue;
            }
            if dataset.protect.is_empty() || !is_at(service, site) {
                continue;
            }
            if let Some(writer) = in_force.map(|(writer, _)| writer).filter(|writer| *writer != site) {
                let (dataset, named) = (&dataset.name, &service.name);
                return Err(CommandError::refused(format!(
                    "`{dataset}` is written at {writer} now, not at {site}: a recovery point from here would pass for its newest state"
                ))
                .hint(format!("take it there (`lifeboat backup --site {writer}`); `lifeboat status {named}` shows who writes")));
            }
            let lies_in = match &dataset.source {
                // A service leads to a server that is none of the site's.
                Source::PostgresDump { path, .. } => Some(path.as_deref().unwrap_or("/")),
                source => source.path(),
            };
            let path = match lies_in {
                Some(path) => path_of(plan, dataset, path, site)?,
                None if named => return Err(CommandError::failed(unable(dataset))),
                None => {
                    work.unable.push(unable(dataset));
                    continue;
                }
            };
            for protect in &dataset.protect {
                if args.vault.vault.as_ref().is_some_and(|vault| *vault != protect.to) {
                    continue;
                }
                let data = match &dataset.source {
                    Source::Files { exclude, .. } => Data::Files {
                        roots: vec![path.clone()],
                        excludes: Excludes::new(exclude).map_err(CommandError::from).kind(Kind::Plan)?,
                        one_file_system: false,
                    },
                    Source::Postgres { service, .. } => Data::Postgres { path: path.clone(), service: service.clone() },
                    Source::PostgresDump { service, databases, lock_wait, .. } => Data::Dump(PostgresDump {
                        server: match service {
                            Some(service) => Server::Service(service.clone()),
                            None => Server::Directory(path.clone()),
                        },
                        databases: databases.clone(),
                        lock_wait: lock_wait.0,
                    }),
                    _ => Data::Sqlite { path: path.clone() },
                };
                add(
                    &mut work,
                    plan,
                    &protect.to,
                    args,
                    Item { dataset: dataset.name.clone(), data, epoch: in_force.map_or(0, |(_, epoch)| *epoch) },
                )?;
            }
        }
    }
    if work.vaults.is_empty() && work.unable.is_empty() {
        return Err(CommandError::usage("nothing of that is protected here")
            .hint("`lifeboat check` tells what the plan protects, --site NAME says where this host is"));
    }
    Ok(work)
}

fn add(work: &mut Work, plan: &Plan, vault: &str, args: &Args, item: Item) -> Result<(), CommandError> {
    if let Some((_, items)) = work.vaults.iter_mut().find(|(named, _)| named.name == vault) {
        items.push(item);
        return Ok(());
    }
    let Some(found) = plan.vaults.get(vault) else {
        return Err(CommandError::new(Kind::Plan, format!("the plan has no vault `{vault}`")));
    };
    let owner = args.vault.owner.clone().or(plan.keys.owner.clone());
    work.vaults.push((Named::new(vault, &found.url, owner), vec![item]));
    Ok(())
}

fn unable(dataset: &DataSet) -> String {
    format!(
        "`{}` is of a kind that this version cannot back up: it takes files, sqlite, postgres and its dumps",
        dataset.name
    )
}

/// Whether a service's data can be at a site.
fn is_at(service: &Service, site: &str) -> bool {
    site == service.primary || service.recovery.iter().any(|name| name == site)
}

/// Where a data set lies on this host.
fn path_of(plan: &Plan, dataset: &DataSet, path: &str, site: &str) -> Result<PathBuf, CommandError> {
    let Some(found) = plan.sites.get(site) else {
        return Err(CommandError::new(Kind::Plan, format!("the plan has no site `{site}`")));
    };
    match (&found.reach, Path::new(path).is_absolute()) {
        (_, true) => Ok(PathBuf::from(path)),
        (Reach::Local { root, .. }, false) => Ok(Path::new(root).join("volumes").join(path)),
        (_, false) => Err(CommandError::new(
            Kind::Plan,
            format!("`{}` has a relative path, which only local sites may have", dataset.name),
        )),
    }
}

fn all_names(plan: &Plan) -> Vec<&str> {
    let services = plan.services.values();
    services
        .flat_map(|service| {
            std::iter::once(service.name.as_str()).chain(service.datasets().map(|(_, dataset)| dataset.name.as_str()))
        })
        .collect()
}
