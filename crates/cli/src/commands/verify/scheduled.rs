//! The plan's verifications, started by the `protect` of a site that holds a key for them.
//!
//! A verification is a process of its own: however long it takes and whatever becomes of it, logs are shipped meanwhile. Invariant: whether
//! one is due is read from the vault, where its result stands; one that found nothing out is not tried again at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_core::plan::{DataSet, Name, Service};
use lifeboat_engine::port::{Cancel, PortError};
use lifeboat_engine::verify::RESTORED;
use lifeboat_vault::{Vault, VerifiedPoint};

use crate::children;
use crate::wiring::Wiring;

/// How often it is looked whether one is due, at most and at least: a tenth of the shortest period.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
const PATIENCE: Duration = Duration::from_millis(200);
/// How long after an attempt that found nothing out before there is another.
const AGAIN_AFTER: Duration = Duration::from_secs(6 * 3600);
/// How long one that is told to stop gets to clean up after itself.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// What the vault says of a data set's verifications, and the plan of the next.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    pub(crate) last: Option<VerifiedPoint>,
    /// Absent: there is nothing to verify yet.
    pub(crate) due_at: Option<Timestamp>,
    pub(crate) is_due: bool,
    /// It was due for so long that it should be over.
    pub(crate) is_overdue: bool,
}

/// Reads from a vault how the verification of a data set stands.
pub(crate) fn standing(vault: &Vault, dataset: &DataSet, now: Timestamp) -> lifeboat_vault::Result<Standing> {
    let last = vault.last_verification(&dataset.name, RESTORED)?;
    let oldest = vault.points(Some(&dataset.name))?.points.first().map(|point| point.stored_at);
    let every = dataset.verify.as_ref().map(|verify| &verify.every);
    let due_after = |at: Timestamp| every.and_then(|every| every.due_after(at));
    // What was never verified is so as soon as there is something; it is late when the first period is over.
    let due_at = match (&last, oldest) {
        (Some(last), _) => due_after(last.at),
        (None, oldest) => oldest,
    };
    let late_from = last.as_ref().map_or_else(|| oldest.and_then(due_after), |_| due_at);
    let grace = every.and_then(|every| every.longest_gap()).map(|period| period.0 / 10).unwrap_or_default();
    let has_passed = |at: Timestamp| at.checked_add(grace).is_ok_and(|at| at < now);
    Ok(Standing {
        is_due: every.is_some() && due_at.is_some_and(|due| due <= now),
        is_overdue: every.is_some() && late_from.is_some_and(has_passed),
        last,
        due_at,
    })
}

/// A verification that this site can carry out.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Mine {
    dataset: Name,
    vault: Name,
    key: String,
}

/// Looks after the schedule until told to stop.
pub(crate) async fn keep(wiring: Arc<Wiring>, site: Name, cancel: Cancel) {
    let (mine, look_every) = of_site(&wiring, &site);
    if mine.is_empty() {
        return;
    }
    let mut tried: BTreeMap<Mine, Instant> = BTreeMap::new();
    let mut look_at = Instant::now();
    while !cancel.is_cancelled() {
        if Instant::now() >= look_at {
            for one in &mine {
                let waits = tried.get(one).is_some_and(|at| at.elapsed() < AGAIN_AFTER);
                if waits || cancel.is_cancelled() {
                    continue;
                }
                let (world, asked) = (Arc::clone(&wiring), one.clone());
                let due = tokio::task::spawn_blocking(move || is_due(&world, &asked)).await.unwrap_or(false);
                if due && !verify(&wiring, one, &cancel).await {
                    tried.insert(one.clone(), Instant::now());
                }
            }
            look_at = Instant::now() + look_every;
        }
        tokio::time::sleep(PATIENCE).await;
    }
}

/// All that the plan wants verified and a key at this site opens; and how often to look.
fn of_site(wiring: &Wiring, site: &str) -> (Vec<Mine>, Duration) {
    let plan = wiring.plan();
    let (mut mine, mut look_every) = (Vec::new(), LOOK_EVERY.1);
    for (_, dataset) in plan.services.values().flat_map(Service::datasets) {
        let Some(verify) = &dataset.verify else { continue };
        let Some((_, key)) = plan.verifiers(dataset).find(|(held_at, _)| *held_at == site) else { continue };
        let period = verify.every.longest_gap().map_or(LOOK_EVERY.1, |period| period.0);
        look_every = look_every.min(period / 10).max(LOOK_EVERY.0);
        mine.extend(dataset.protect.iter().map(|protect| Mine {
            dataset: dataset.name.clone(),
            vault: protect.to.clone(),
            key: key.to_owned(),
        }));
    }
    (mine, look_every)
}

fn is_due(wiring: &Wiring, mine: &Mine) -> bool {
    let look = || -> Result<bool, PortError> {
        let unknown = || PortError::new(format!("the plan has no vault `{}`", mine.vault));
        let place = wiring.vaults.get(&mine.vault).ok_or_else(unknown)?;
        let mut all = wiring.plan().services.values().flat_map(Service::datasets);
        let Some((_, dataset)) = all.find(|(_, dataset)| dataset.name == mine.dataset) else { return Ok(false) };
        let standing = standing(&place.open()?, dataset, wiring.clock.now());
        let unread = |error| PortError::may_pass("its verifications cannot be read").because(error);
        Ok(standing.map_err(unread)?.is_due)
    };
    look().unwrap_or_else(|error| {
        tracing::warn!("whether `{}` is to be verified in `{}` is unknown: {error}", mine.dataset, mine.vault);
        false
    })
}

/// Whether it was found out how the point is.
async fn verify(wiring: &Wiring, mine: &Mine, cancel: &Cancel) -> bool {
    let Mine { dataset, vault, key } = mine;
    tracing::info!("the verification of `{dataset}` in `{vault}` is due and begins");
    let mut command = children::this_program(&wiring.loaded.path, wiring.state.directory());
    command.args(["verify", dataset, "--vault", vault, "--key", key]);
    match children::to_its_end(command, cancel, STOP_WITHIN).await {
        Ok(Some(0)) => {
            tracing::info!("`{dataset}` in `{vault}` was verified");
            true
        }
        Ok(Some(3)) => {
            tracing::warn!(
                "`{dataset}` in `{vault}` was verified, and not all is well: `lifeboat status` and `lifeboat points` tell more"
            );
            // Where the result could not be recorded, it is due again at once.
            !is_due(wiring, mine)
        }
        Ok(code) => {
            let code = code.map_or_else(|| "a signal".to_owned(), |code| format!("exit code {code}"));
            tracing::warn!("the verification of `{dataset}` in `{vault}` ended with {code}; nothing was recorded");
            false
        }
        Err(error) => {
            tracing::warn!("the verification of `{dataset}` in `{vault}` cannot be run: {error}");
            false
        }
    }
}
