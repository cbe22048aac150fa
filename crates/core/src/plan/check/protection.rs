//! Whether every data set is protected, where its copies lie, and what they could step on.
//!
//! Invariant: a data set about which nothing is found here can be restored after its primary site is gone.

use super::super::model::*;
use super::super::syntax;
use super::{Checker, Held, lies_in, places};

pub(super) fn check(checker: &mut Checker<'_>) {
    let stranded = primaries_without_a_vault_outside(checker);
    for held in checker.datasets() {
        let has_source = held.dataset.source != Source::Nothing;
        if !has_source && held.dataset.kind != DataKind::Transient {
            let message = format!("nothing says where the data of `{}` lies", held.dataset.name);
            checker.error(
                "P0316",
                &held.path(),
                message,
                "add `files`, `sqlite`, `postgres`, `postgres-dump`, `mariadb` or `command`",
            );
            continue;
        }
        schedules(checker, held);
        awaited(checker, held);
        streamed(checker, held);
        protected(checker, held);
        if !stranded.contains(&held.service.primary.as_str()) {
            outside(checker, held);
        }
        residency(checker, held);
        history(checker, held);
        archived(checker, held);
        path(checker, held);
        loaded_by_hand(checker, held);
    }
    overlaps(checker);
    classes(checker);
    locks(checker);
}

/// What the vault's own pruner takes.
const LOCK_DAYS_MIN: f64 = 2.0;
const LOCK_DAYS_MAX: f64 = 3650.0;

/// Only S3 locks objects one by one, and a lock that is too short runs out between two prunes.
fn locks(checker: &mut Checker<'_>) {
    for (name, vault) in &checker.plan.vaults {
        let Some(lock) = vault.lock else { continue };
        let path = ["vault", name, "lock"];
        if !vault.url.starts_with("s3:") {
            let message = format!("the vault `{name}` at {} cannot lock what points need", vault.url);
            checker.error(
                "P0324",
                &path,
                message,
                "take `lock` out, or keep this vault in a bucket of S3 with Object Lock",
            );
        } else if !(LOCK_DAYS_MIN..=LOCK_DAYS_MAX).contains(&(lock.as_seconds() / 86_400.0)) {
            let message = format!("`{lock}` is no time for which points can be kept locked");
            let help =
                format!("choose one between {LOCK_DAYS_MIN} days and {LOCK_DAYS_MAX}, for example lock = \"30d\"");
            checker.error("P0324", &path, message, help);
        }
    }
}

/// A class of storage is a bucket's.
fn classes(checker: &mut Checker<'_>) {
    for (name, vault) in &checker.plan.vaults {
        let Some(archive) = &vault.archive else { continue };
        let is_bucket = ["s3:", "gs:", "az:"].iter().any(|scheme| vault.url.starts_with(scheme));
        let fits = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-');
        let path = ["vault", name, "archive"];
        if !is_bucket {
            let message = format!("the vault `{name}` at {} has no storage classes", vault.url);
            checker.error("P0322", &path, message, "take `archive` out, or keep this vault in a bucket");
        } else if archive.class.is_empty() || !archive.class.chars().all(fits) {
            let message = format!("`{}` is no class of storage", archive.class);
            let help = "write it as the storage does: class = \"DEEP_ARCHIVE\"";
            checker.error("P0322", &["vault", name, "archive", "class"], message, help);
        }
    }
}

/// What is to be archived needs a class to be put into.
fn archived(checker: &mut Checker<'_>, held: Held<'_>) {
    for (number, protect) in held.dataset.protect.iter().enumerate() {
        let Some(after) = protect.keep.archive_after else { continue };
        let Some(vault) = checker.plan.vaults.get(&protect.to) else { continue };
        let number = number.to_string();
        let path = held.path_to(&["protect"]);
        let path = [&path[..], &[number.as_str()]].concat();
        let Some(archive) = &vault.archive else {
            let message = format!(
                "points of `{}` are to be archived after {after}, and nothing says in which class of `{}`",
                held.dataset.name, protect.to
            );
            let help =
                format!("add archive = {{ class = \"DEEP_ARCHIVE\", thaw = \"12h\" }} to [vault.{}]", protect.to);
            checker.error("P0321", &path, message, help);
            continue;
        };
        let rto = held.service.objective_in("data-corrupted").rto;
        if archive.thaw > rto {
            let message = format!(
                "what only points of `{}` older than {after} need takes {} to thaw, and the RTO is {rto}: damage that is found later \
                 than that is not undone in time from `{}`",
                held.dataset.name, archive.thaw, protect.to
            );
            let help =
                "archive later than damage may go unnoticed, or choose a class that is read at once (thaw = \"0s\")";
            checker.note("P0323", &path, message, help);
        }
    }
}

fn primaries_without_a_vault_outside<'a>(checker: &mut Checker<'a>) -> Vec<&'a str> {
    let mut stranded: Vec<&str> = Vec::new();
    for service in checker.plan.services.values() {
        let site = service.primary.as_str();
        let outside = checker.plan.vaults.values().any(|vault| vault.site.as_deref() != Some(site));
        if outside || stranded.contains(&site) || service.datasets().all(|(_, dataset)| dataset.protect.is_empty()) {
            continue;
        }
        stranded.push(site);
        let help = "add a [vault.…] at another site or with none, and protect the data to it";
        checker.error(
            "P0302",
            &["site", site],
            format!("no vault lies outside of `{site}`: what destroys the site destroys every copy"),
            help,
        );
    }
    stranded
}

/// Protections without full points never become part of the model, so they are looked for in the text.
fn schedules(checker: &mut Checker<'_>, held: Held<'_>) {
    let Some(found) = checker.tree.find(&held.path_to(&["protect"])) else { return };
    let syntax::Value::List(items) = &found.node.value else { return };
    for (number, item) in items.iter().enumerate() {
        let syntax::Value::Table(table) = &item.value else { continue };
        let number = number.to_string();
        let path = held.path_to(&["protect"]);
        let path = [&path[..], &[number.as_str()]].concat();
        let scheduled = ["every", "cron", "base"].iter().any(|key| table.get(key).is_some());
        let logged = table.get("log").is_some();
        if !scheduled && logged {
            let message = format!(
                "the log of `{}` goes to a vault that has no full recovery point to apply it to",
                held.dataset.name
            );
            checker.error(
                "P0303",
                &path,
                message,
                "add base = { every = \"1d\" } here; a log needs its base in the same vault",
            );
        } else if !scheduled {
            let message = format!("nothing says when a recovery point of `{}` is due", held.dataset.name);
            checker.error("P0317", &path, message, "add every = \"…\" or cron = \"…\"");
        }
        if logged
            && !matches!(held.dataset.source, Source::Sqlite { .. } | Source::Postgres { .. } | Source::Mariadb { .. })
        {
            let message = format!("`{}` has no log that could be streamed", held.dataset.name);
            checker.error(
                "P0308",
                &[&path[..], &["log"]].concat(),
                message,
                "only databases have one; take `log` out and give the points a short `every`",
            );
        }
    }
}

/// Commits can wait only for a log, only as one, and for no more copies than there are.
fn awaited(checker: &mut Checker<'_>, held: Held<'_>) {
    let name = &held.dataset.name;
    let path = held.path_to(&["protect"]);
    let mut first: Option<CommitMode> = None;
    for (number, protect) in held.dataset.protect.iter().enumerate().filter(|(_, protect)| !protect.mode.is_async()) {
        let number = number.to_string();
        let path = [&path[..], &[number.as_str(), "mode"]].concat();
        if !matches!(held.dataset.source, Source::Postgres { .. }) {
            let message = format!("commits to `{name}` cannot wait for a vault");
            checker.error("P0325", &path, message, "only PostgreSQL's can; take `mode` out");
        } else if !protect.log {
            let message = format!("commits to `{name}` cannot wait for `{}`, which gets no log", protect.to);
            checker.error("P0325", &path, message, "add log = \"stream\" here, or take `mode` out");
        } else if first.is_some_and(|first| first != protect.mode) {
            let message = format!("commits to `{name}` wait in two modes, and a commit waits only once");
            checker.error("P0326", &path, message, "give every vault that commits wait for the same `mode`");
        }
        first = first.or(Some(protect.mode));
    }
    let replica = held.dataset.replica.as_ref().filter(|replica| !replica.mode.is_async());
    if let Some(replica) = replica
        && matches!(held.dataset.source, Source::Postgres { .. })
    {
        let path = held.path_to(&["replica", "mode"]);
        if first.is_some_and(|first| first != replica.mode) {
            let message = format!("commits to `{name}` wait in two modes, and a commit waits only once");
            checker.error("P0326", &path, message, "give the replica the `mode` of the vaults that commits wait for");
        }
        let lacks = places(held.service).find(|site| !replica.via.contains_key(*site));
        if let Some(site) = lacks {
            let message = format!("commits to `{name}` cannot wait for a replica that nothing leads to `{site}` from");
            let help =
                format!("say by which service of pg_service.conf each site is reached: via = {{ {site} = \"…\", … }}");
            checker.error("P0333", &path, message, help);
        }
    }
    let count =
        held.dataset.protect.iter().filter(|protect| !protect.mode.is_async()).count() + usize::from(replica.is_some());
    if let Some(copies) = held.dataset.sync_copies.filter(|copies| *copies as usize > count) {
        let message = format!("commits to `{name}` are to be in {copies} places, and wait for {count}");
        let help = "give more vaults, or the replica, mode = \"sync-required\", or lower `sync-copies`";
        checker.error("P0326", &held.path_to(&["sync-copies"]), message, help);
    }
}

fn protected(checker: &mut Checker<'_>, held: Held<'_>) {
    let Held { dataset, .. } = held;
    let name = &dataset.name;
    let declared = checker.has(&held.path_to(&["protect", "0"]));
    match dataset.kind {
        DataKind::Persistent if !declared => {
            let message = match dataset.replica {
                Some(_) => {
                    format!("`{name}` has a replica but no protection: a replica repeats every deletion at once")
                }
                None => format!("`{name}` is not protected: with its site it is gone"),
            };
            checker.error("P0301", &held.path(), message, "add protect = [{ to = \"…\", every = \"…\" }]");
        }
        DataKind::Configuration | DataKind::Fixed if !declared => {
            let message =
                format!("`{name}` is not protected: it has to be made anew, by hand, in the middle of an outage");
            checker.warning("P0318", &held.path(), message, "add protect = [{ to = \"…\", every = \"1d\" }]");
        }
        DataKind::Transient if dataset.rebuild.is_none() => {
            let message = format!("nothing says how `{name}` is made anew");
            checker.warning(
                "P0304",
                &held.path(),
                message,
                "add rebuild = [\"command\"], or make it `persistent` and protect it",
            );
        }
        _ => {}
    }
    for (number, protect) in dataset.protect.iter().enumerate() {
        if dataset.protect[..number].iter().any(|earlier| earlier.to == protect.to) {
            let position = number.to_string();
            let path = held.path_to(&["protect"]);
            let message = format!("`{name}` is protected to `{}` twice", protect.to);
            checker.error("P0312", &[&path[..], &[position.as_str(), "to"]].concat(), message, "make one of them");
        }
    }
}

fn outside(checker: &mut Checker<'_>, held: Held<'_>) {
    let primary = held.service.primary.as_str();
    let vault_site = |protect: &Protect| checker.plan.vaults.get(&protect.to).and_then(|vault| vault.site.as_deref());
    let protect = &held.dataset.protect;
    if !protect.is_empty() && protect.iter().all(|protect| vault_site(protect) == Some(primary)) {
        let message = format!("every copy of `{}` lies in `{primary}`, where the data itself is", held.dataset.name);
        checker.error("P0313", &held.path_to(&["protect"]), message, "protect it to a vault outside of that site, too");
    }
}

fn residency(checker: &mut Checker<'_>, held: Held<'_>) {
    let Some(residency) = held.dataset.residency.as_deref() else { return };
    let name = &held.dataset.name;
    let stay = |place: &str| format!("`{name}` may not leave {residency}, and {place}");
    for (number, protect) in held.dataset.protect.iter().enumerate() {
        let number = number.to_string();
        let path = held.path_to(&["protect"]);
        let path = [&path[..], &[number.as_str(), "to"]].concat();
        let site = checker.plan.vaults.get(&protect.to).and_then(|vault| vault.site.as_deref());
        match site.and_then(|site| checker.site(site)).map(|site| site.jurisdiction.as_deref()) {
            Some(Some(jurisdiction)) if jurisdiction != residency => {
                checker.error(
                    "P0305",
                    &path,
                    stay(&format!("the vault `{}` is in {jurisdiction}", protect.to)),
                    "protect it to a vault in the same jurisdiction",
                );
            }
            Some(Some(_)) => {}
            Some(None) | None => {
                let message = stay(&format!("nothing says where the vault `{}` is", protect.to));
                checker.warning("P0307", &path, message, "give the vault a `site`, and the site a `jurisdiction`");
            }
        }
    }
    if let Some(replica) = &held.dataset.replica
        && let Some(jurisdiction) = checker.site(&replica.at).and_then(|site| site.jurisdiction.as_deref())
        && jurisdiction != residency
    {
        let message = stay(&format!("its replica at `{}` is in {jurisdiction}", replica.at));
        checker.error(
            "P0306",
            &held.path_to(&["replica", "at"]),
            message,
            "have the replica at a site in the same jurisdiction",
        );
    }
    for place in places(held.service) {
        if let Some(jurisdiction) = checker.site(place).and_then(|site| site.jurisdiction.as_deref())
            && jurisdiction != residency
        {
            let message =
                stay(&format!("`{}` runs or recovers at `{place}`, which is in {jurisdiction}", held.service.name));
            checker.error(
                "P0314",
                &held.path_to(&["residency"]),
                message,
                "recover it at a site in the same jurisdiction",
            );
        }
    }
}

/// What was deleted or spoiled an hour ago is only found in a point that is older than that.
fn history(checker: &mut Checker<'_>, held: Held<'_>) {
    for (number, protect) in held.dataset.protect.iter().enumerate() {
        let Keep { last, hourly, daily, weekly, monthly, yearly, .. } = protect.keep;
        if last + hourly + daily + weekly + monthly + yearly == 1 && !protect.log {
            let number = number.to_string();
            let path = held.path_to(&["protect"]);
            let message = format!(
                "one recovery point of `{}` is kept: the next one takes its place, whatever is in it",
                held.dataset.name
            );
            checker.warning(
                "P0315",
                &[&path[..], &[number.as_str()]].concat(),
                message,
                "keep more, so that corruption is noticed before the last good point is gone",
            );
        }
    }
}

/// The path on a host or in a site's volumes, and the key that it stands under.
fn data_path(dataset: &DataSet) -> Option<(&str, &'static str)> {
    let key = match &dataset.source {
        Source::Files { .. } => "files",
        Source::Sqlite { .. } => "sqlite",
        Source::Postgres { .. } => "postgres",
        _ => return None,
    };
    Some((dataset.source.path()?, key))
}

/// Where the server runs that a dump is taken of, if the plan knows it by that.
fn dumped_path(dataset: &DataSet) -> Option<(&str, &'static str)> {
    match &dataset.source {
        Source::PostgresDump { path, .. } => Some((path.as_deref()?, "postgres-dump")),
        _ => None,
    }
}

fn path(checker: &mut Checker<'_>, held: Held<'_>) {
    let Some((path, key)) = data_path(held.dataset).or_else(|| dumped_path(held.dataset)) else { return };
    let place = held.path_to(&[key, "path"]);
    let local = |site: &&str| checker.site(site).is_some_and(|site| matches!(site.reach, Reach::Local { .. }));
    let local_sites = places(held.service).filter(local).count();
    let elsewhere = places(held.service).find(|site| !local(site));
    if path.starts_with('/') {
        if local_sites > 1 {
            let message = format!("`{path}` is the same place at every site of this machine");
            checker.error("P0311", &place, message, "write a relative path: it lies in each site's own volumes");
        }
    } else if let Some(site) = elsewhere {
        let message = format!("`{path}` is relative, and `{site}` has no volumes of its own");
        checker.error(
            "P0310",
            &place,
            message,
            "write the whole path; relative ones need sites with reach = \"local\"",
        );
    } else if path.split('/').any(|part| part == "..") {
        checker.error("P0319", &place, format!("`{path}` leads out of the site's volumes"), "take the `..` out");
    } else if key == "sqlite" && lies_at_the_top(path) {
        let file = path.trim_start_matches("./");
        let message = format!("the database `{path}` has no directory of its own");
        checker.error("P0320", &place, message, format!("write \"{}/{file}\"", stem(file)));
    }
}

/// A dump is no directory that a server starts over.
fn loaded_by_hand(checker: &mut Checker<'_>, held: Held<'_>) {
    if held.dataset.source.is_dump() && held.dataset.kind == DataKind::Persistent && !held.has_cluster_beside() {
        let message = format!("`{}` is a dump, and nothing else of that server is protected", held.dataset.name);
        let help = "no recovery brings it back by itself: add a data set with `postgres`, or have the loading of the dump \
                    as part of your run-book";
        checker.warning("P0331", &held.path_to(&["postgres-dump"]), message, help);
    }
}

/// Only of PostgreSQL is there a log that a standby can take from the server itself.
fn streamed(checker: &mut Checker<'_>, held: Held<'_>) {
    let is_streamed = held.dataset.replica.as_ref().is_some_and(|replica| !replica.via.is_empty());
    if is_streamed && !matches!(held.dataset.source, Source::Postgres { .. }) {
        let message = format!("`{}` has no server of PostgreSQL's that a standby could stream from", held.dataset.name);
        checker.error(
            "P0332",
            &held.path_to(&["replica", "via"]),
            message,
            "take `via` out: its standbys follow the vaults",
        );
    }
}

/// A database is set aside and restored as the directory that holds it, with its log.
fn lies_at_the_top(path: &str) -> bool {
    path.split('/').filter(|part| !part.is_empty() && *part != ".").count() == 1
}

fn stem(file: &str) -> &str {
    match file.rsplit_once('.') {
        Some((stem, _)) if !stem.is_empty() => stem,
        _ => "database",
    }
}

fn overlaps(checker: &mut Checker<'_>) {
    let mut seen: Vec<(Held<'_>, &str, &'static str)> = Vec::new();
    for held in checker.datasets() {
        let Some((path, key)) = data_path(held.dataset) else { continue };
        let shares_a_site = |other: &Service| places(other).any(|site| places(held.service).any(|own| own == site));
        let clash = seen.iter().find(|(other, other_path, _)| {
            shares_a_site(other.service) && (lies_in(path, other_path) || lies_in(other_path, path))
        });
        if let Some((other, other_path, other_key)) = clash.copied() {
            let message =
                format!("`{}` ({path}) and `{}` ({other_path}) overlap", held.dataset.name, other.dataset.name);
            checker.error(
                "P0309",
                &held.path_to(&[key, "path"]),
                message,
                "give each data set a place of its own: restoring one would overwrite the other",
            );
            checker.related(&other.path_to(&[other_key, "path"]), "the other one");
        }
        seen.push((held, path, key));
    }
}
