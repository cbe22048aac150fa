//! `lifeboat find`: which recovery points hold a path, from a catalogue that is kept on this machine.
//!
//! Invariant: an answer that may lack something says what.

use std::time::{Duration, Instant};

use lifeboat_vault::VaultError;
use lifeboat_vault::catalog::{
    Answer, Catalog, CatalogError, Filling, Found, Pattern, Query, Refreshed, Seen, SeenKind, When,
};
use serde::Serialize;

use super::{OpenArgs, moment_given, shown, size, size_given};
use crate::commands::points::{dataset_named, time};
use crate::door;
use crate::error::{CommandError, Exit, Kind};
use crate::interrupt;
use crate::report::{counted, table};
use crate::ui::Ui;

/// Find paths in all recovery points
///
/// PATTERN is a part of a name (`report`), or a name with wildcards (`*.conf`); with a slash it is compared with the end of the path
/// (`etc/*.conf`, `projects/**/notes.txt`), or with all of it if it begins with one. A slash at the end finds directories only.
///
/// Answers from a catalogue of names, sizes and times that is kept in this host's state directory, readable for its owner only.
/// With --key it is first brought up to date with the vault; without, it is searched as it is.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to find
    #[arg(value_name = "PATTERN")]
    pattern: String,
    #[command(flatten)]
    open: OpenArgs,
    /// In this data set only: its name, or the end of it
    #[arg(long, value_name = "DATASET")]
    dataset: Option<String>,
    /// In points taken by this host only
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// The whole name, or path from a name's beginning on; wildcards mean themselves
    #[arg(long, short = 'x')]
    exact: bool,
    /// Upper and lower case are alike
    #[arg(long, short)]
    ignore_case: bool,
    /// Only what is in the newest point
    #[arg(long, group = "when")]
    newest: bool,
    /// Only what was in the newest point not after this moment: 2026-11-21T14:00:00Z
    #[arg(long, value_name = "TIME", group = "when")]
    at: Option<String>,
    /// Only what is not in the newest point any more
    #[arg(long, group = "when")]
    deleted: bool,
    /// Only this kind
    #[arg(long, value_name = "KIND", value_enum)]
    kind: Option<KindArg>,
    /// Only files of at least this size: 10MB
    #[arg(long, value_name = "SIZE")]
    larger: Option<String>,
    /// Only files of at most this size
    #[arg(long, value_name = "SIZE")]
    smaller: Option<String>,
    /// Only what was last changed at this moment or later
    #[arg(long, value_name = "TIME")]
    changed_after: Option<String>,
    /// Only what was last changed at this moment or earlier
    #[arg(long, value_name = "TIME")]
    changed_before: Option<String>,
    /// At most so many paths; 0 for all
    #[arg(long, value_name = "COUNT", default_value_t = 1000)]
    limit: usize,
    /// Read the points for this search alone, and keep nothing on this machine
    #[arg(long, conflicts_with = "rebuild")]
    no_catalog: bool,
    /// Make the catalogue anew
    #[arg(long)]
    rebuild: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum KindArg {
    File,
    Directory,
    Symlink,
    Fifo,
}

#[derive(Serialize)]
struct Report<'a> {
    pattern: &'a str,
    found: Vec<FoundReport<'a>>,
    /// There are more than --limit.
    more: bool,
    /// The newest point that was searched, of each data set and host.
    reaches: Vec<Reach>,
    findings: &'a [lifeboat_vault::Finding],
}

#[derive(Serialize)]
struct FoundReport<'a> {
    dataset: &'a str,
    host: &'a str,
    path: String,
    /// Where the path is no text, its bytes in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    versions: &'a [Seen],
}

#[derive(Serialize)]
struct Reach {
    dataset: String,
    host: String,
    taken_at: jiff::Timestamp,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let mut query = query(&args)?;
    let (catalog, mut findings) = match args.open.key.is_empty() && !args.no_catalog && !args.rebuild {
        true => as_it_is(&args, &mut query, ui)?,
        false => up_to_date(&args, &mut query, ui)?,
    };
    let answer = catalog.search(&query).map_err(of_catalog)?;
    let reaches = catalog.reaches().map_err(of_catalog)?;
    findings.sort_by_key(|finding| finding.severity);
    let report = Report {
        pattern: args.pattern.as_str(),
        found: answer.found.iter().map(report_of).collect(),
        more: answer.more,
        reaches: reaches.into_iter().map(|(dataset, host, taken_at)| Reach { dataset, host, taken_at }).collect(),
        findings: &findings,
    };
    ui.document(&report)?;
    say(&answer, args.limit, ui);
    door::show(&findings, ui);
    Ok(door::ends(&findings))
}

fn query(args: &Args) -> Result<Query, CommandError> {
    let pattern = Pattern::new(&args.pattern, args.ignore_case, args.exact);
    Ok(Query {
        pattern: pattern.map_err(|error| CommandError::from(error).kind(Kind::Usage))?,
        dataset: None,
        host: args.host.clone(),
        when: match (args.newest, moment_given(&args.at)?, args.deleted) {
            (true, ..) => When::Newest,
            (_, Some(at), _) => When::At(at),
            (.., true) => When::Deleted,
            _ => When::Any,
        },
        kind: args.kind.map(|kind| match kind {
            KindArg::File => SeenKind::File,
            KindArg::Directory => SeenKind::Directory,
            KindArg::Symlink => SeenKind::Symlink,
            KindArg::Fifo => SeenKind::Fifo,
        }),
        bytes_min: size_given(&args.larger)?,
        bytes_max: size_given(&args.smaller)?,
        changed_after: moment_given(&args.changed_after)?,
        changed_before: moment_given(&args.changed_before)?,
        limit: args.limit,
    })
}

type Ready = (Catalog, Vec<lifeboat_vault::Finding>);

/// Without a key: what is on this machine already.
fn as_it_is(args: &Args, query: &mut Query, ui: &Ui) -> Result<Ready, CommandError> {
    let vault = args.open.vault.find(ui)?.open(ui)?;
    let state = ui.state_directory()?;
    if !Catalog::exists(&state, &vault.id()) {
        return Err(CommandError::usage("this machine has no catalogue of the vault yet, and making it needs a key")
            .hint("give it with --key FILE: one of those that `vault init` was given as --recipient"));
    }
    let catalog = Catalog::open(&state, &vault.id()).map_err(of_catalog)?;
    let points = vault.points(None).map_err(CommandError::of_vault)?;
    query.dataset = args.dataset.as_ref().map(|name| dataset_named(&points.points, name)).transpose()?;
    let reaches = catalog.reaches().map_err(of_catalog)?;
    let newest_known = |dataset: &str, host: &str| {
        reaches.iter().find(|reach| reach.0 == dataset && reach.1 == host).map(|reach| reach.2)
    };
    let newer = points
        .points
        .iter()
        .filter(|point| newest_known(&point.dataset, &point.host).is_none_or(|known| known < point.taken_at));
    let count = newer.count() as u64;
    if count > 0 {
        ui.warn(format_args!(
            "{} newer than the catalogue; --key brings it up to date",
            match count {
                1 => "1 recovery point is".to_owned(),
                _ => format!("{count} recovery points are"),
            }
        ));
    }
    Ok((catalog, points.findings))
}

fn up_to_date(args: &Args, query: &mut Query, ui: &Ui) -> Result<Ready, CommandError> {
    let opened = args.open.open(ui)?;
    let points = lifeboat_vault::Points { points: opened.points, findings: opened.findings };
    query.dataset = args.dataset.as_ref().map(|name| dataset_named(&points.points, name)).transpose()?;
    let state = ui.state_directory()?;
    if args.rebuild {
        Catalog::remove(&state, &opened.vault.id()).map_err(of_catalog)?;
    }
    let mut catalog = match args.no_catalog {
        true => Catalog::passing(),
        false => Catalog::open(&state, &opened.vault.id()),
    }
    .map_err(of_catalog)?;
    let cancel = interrupt::listen(ui)?;
    let waiting = ui.waiting("reading recovery points into the catalogue");
    let mut said = Instant::now();
    let mut progress = |filling: &Filling<'_>| {
        if said.elapsed() > Duration::from_secs(5) {
            said = Instant::now();
            let number = filling.points_done + 1;
            ui.note(format_args!(
                "reading {} into the catalogue: point {number} of {}, {} so far",
                filling.dataset,
                filling.points,
                counted(filling.paths, "path")
            ));
        }
    };
    let refreshed = catalog.refresh(&opened.vault, &points, &mut progress, cancel.flag()).map_err(of_catalog)?;
    drop(waiting);
    let Refreshed { findings: new, closed, .. } = refreshed;
    for dataset in closed.iter().filter(|closed| query.dataset.as_ref().is_none_or(|wanted| wanted == *closed)) {
        ui.warn(format_args!("no given key opens `{dataset}`: what is new in it is not searched"));
    }
    let mut findings = points.findings;
    findings.extend(new);
    Ok((catalog, findings))
}

fn report_of(found: &Found) -> FoundReport<'_> {
    let path_hex = std::str::from_utf8(&found.path)
        .is_err()
        .then(|| found.path.iter().map(|byte| format!("{byte:02x}")).collect());
    FoundReport {
        dataset: &found.dataset,
        host: &found.host,
        path: String::from_utf8_lossy(&found.path).into_owned(),
        path_hex,
        versions: &found.versions,
    }
}

fn say(answer: &Answer, limit: usize, ui: &Ui) {
    if answer.found.is_empty() {
        ui.note("nothing found");
        return;
    }
    let mut at = 0;
    while let Some(first) = answer.found.get(at) {
        let same = |found: &&Found| found.dataset == first.dataset;
        let group: Vec<&Found> = answer.found.iter().skip(at).take_while(same).collect();
        at += group.len();
        let many_hosts = group.iter().any(|found| found.host != first.host);
        ui.line(format_args!("{} ({})", first.dataset, if many_hosts { "several hosts" } else { &first.host }));
        let rows: Vec<Vec<String>> =
            group.iter().flat_map(|found| found.versions.iter().map(|seen| row(found, seen, many_hosts))).collect();
        ui.line(table(&["SIZE", "CHANGED AT", "POINTS", "FIRST TAKEN AT", "LAST TAKEN AT", "PATH"], &rows).trim_end());
    }
    if answer.more {
        ui.note(format_args!("there are more than {limit}; narrow it, or say --limit 0"));
    }
}

fn row(found: &Found, seen: &Seen, host: bool) -> Vec<String> {
    let number = |id: &str| id.rsplit('/').next().unwrap_or_default().trim_start_matches('0').to_owned();
    let (first, last) = (number(&seen.first_point), number(&seen.last_point));
    let mut points = if first == last { first } else { format!("{first}-{last}") };
    if host {
        points = format!("{}/{points}", found.host);
    }
    let end = if seen.kind == SeenKind::Directory { "/" } else { "" };
    vec![
        if seen.kind == SeenKind::File { size(seen.bytes) } else { "-".to_owned() },
        time(seen.changed_at),
        points,
        time(seen.first_taken_at),
        if seen.newest { "newest".to_owned() } else { time(seen.last_taken_at) },
        shown(&found.path) + end,
    ]
}

fn of_catalog(error: CatalogError) -> CommandError {
    match error {
        CatalogError::Cancelled => CommandError::from(CatalogError::Cancelled).kind(Kind::Interrupted),
        CatalogError::Vault(error @ VaultError::Storage { .. }) => CommandError::of_vault(error),
        other => CommandError::from(other),
    }
}
