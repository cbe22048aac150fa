//! The plan's drills, started by the `protect` of the site where they take place.
//!
//! A drill is a process of its own: whatever becomes of it, protection goes on. Invariant: none is started that would need a key which the
//! plan does not place at this site, none beside a run that has not ended, and one that failed not again at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::SignedDuration;
use lifeboat_core::plan::{KeyPurpose, Name, Reach, Secret, Service};
use lifeboat_engine::port::Cancel;

use crate::children;
use crate::commands::status;
use crate::wiring::Wiring;

/// How often it is looked whether one is due.
const LOOK_EVERY: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_millis(200);
/// How long after an attempt, whatever came of it, before there is another.
const AGAIN_AFTER: SignedDuration = SignedDuration::from_hours(6);
/// How long a drill that is told to stop gets to leave everything as a `run resume` needs it.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// A drill that is due at this site.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Due {
    drill: Name,
    service: Name,
    scenario: Name,
}

/// Looks after the schedule until told to stop.
pub(crate) async fn keep(wiring: Arc<Wiring>, site: Name, cancel: Cancel) {
    if !has_one(&wiring, &site) {
        return;
    }
    let mut tried: BTreeMap<Name, Instant> = BTreeMap::new();
    let mut look_at = Instant::now();
    while !cancel.is_cancelled() {
        if Instant::now() >= look_at {
            let (world, here) = (Arc::clone(&wiring), site.clone());
            let due = tokio::task::spawn_blocking(move || due_at(&world, &here)).await.unwrap_or_default();
            let again = |drill: &Name| tried.get(drill).is_none_or(|at| at.elapsed() >= AGAIN_AFTER.unsigned_abs());
            let next = due.into_iter().find(|due| again(&due.drill));
            if let Some(due) = next {
                tried.insert(due.drill.clone(), Instant::now());
                rehearse(&wiring, &due, &site, &cancel).await;
            }
            look_at = Instant::now() + LOOK_EVERY;
        }
        tokio::time::sleep(PATIENCE).await;
    }
}

/// Whether any drill of the plan may ever be started from here.
fn has_one(wiring: &Wiring, site: &str) -> bool {
    let services = wiring.plan().drills.values().filter_map(|drill| wiring.plan().services.get(&drill.service));
    wiring.plan().sites.get(site).is_some_and(|site| matches!(site.reach, Reach::Local { .. }))
        && services.into_iter().any(|service| has_key(wiring, service, site))
}

/// Whether drill keys that lie here open all that the service would restore.
fn has_key(wiring: &Wiring, service: &Service, site: &str) -> bool {
    let opens = |dataset: &Name| {
        wiring.plan().keys.holders.iter().any(|holder| {
            holder.purpose == KeyPurpose::Drill
                && holder.held_at == site
                && holder.datasets.contains(dataset)
                && matches!(&holder.identity, Some(Secret::File(path)) if std::fs::metadata(path).is_ok())
        })
    };
    let mut protected = service.datasets().filter(|(_, dataset)| dataset.is_recovered()).peekable();
    protected.peek().is_some() && protected.all(|(_, dataset)| opens(&dataset.name))
}

fn due_at(wiring: &Wiring, site: &str) -> Vec<Due> {
    let mut due = Vec::new();
    for service in wiring.plan().services.values().filter(|service| has_key(wiring, service, site)) {
        let places = || std::iter::once(&service.primary).chain(&service.recovery);
        // The same choice as `lifeboat drill` makes.
        let is_here = wiring
            .writer(service)
            .is_ok_and(|(writer, _)| places().find(|place| **place != writer).is_some_and(|place| place == site));
        if !is_here {
            continue;
        }
        match status::due_drills(wiring, service, AGAIN_AFTER) {
            Ok(drills) => due.extend(drills.into_iter().map(|(drill, scenario)| Due {
                drill,
                scenario,
                service: service.name.clone(),
            })),
            Err(error) => tracing::warn!("whether a drill of {} is due is unknown: {}", service.name, error.message),
        }
    }
    due
}

async fn rehearse(wiring: &Wiring, due: &Due, site: &str, cancel: &Cancel) {
    tracing::info!("the drill `{}` of {} is due and begins", due.drill, due.service);
    let mut command = children::this_program(&wiring.loaded.path, wiring.state.directory());
    command.args(["drill", &due.service, "--scenario", &due.scenario, "--to", site, "--yes"]);
    command.args(["--by", &format!("the schedule of `{}`", due.drill)]);
    // A person may have to go on with what it left: it is not killed with this process.
    command.kill_on_drop(false);
    match children::to_its_end(command, cancel, STOP_WITHIN).await {
        Ok(Some(0)) => tracing::info!("the drill `{}` has succeeded", due.drill),
        Ok(code) => tracing::warn!(
            "the drill `{}` ended with {}: `lifeboat status` and `lifeboat run list` tell more",
            due.drill,
            code.map_or_else(|| "a signal".to_owned(), |code| format!("exit code {code}"))
        ),
        Err(error) => tracing::warn!("the drill `{}` cannot be run: {error}", due.drill),
    }
}
