//! Whether the keys at hand open what a run will have to restore, found out before anything is done.
//!
//! Invariant: a run that must restore is not begun, or gone on with, without a vault and a key that open every data set of it.

use lifeboat_core::run::{RunState, RunView};
use lifeboat_core::runbook::{Action, Runbook, Target, VolumeSpec};
use lifeboat_engine::port::PortError;
use lifeboat_vault::{Badge, Identity, Unlocked};

use crate::error::{CommandError, Explain, Kind};
use crate::wiring::Wiring;

/// What a run restores, and as of when.
pub(crate) type Restored<'a> = (&'a VolumeSpec, &'a Target);

/// What a run restores whatever it finds: in steps outside any branch.
pub(crate) fn restores(runbook: &Runbook) -> Vec<Restored<'_>> {
    let certain = runbook.steps.iter().filter(|step| step.when.is_empty());
    certain.filter_map(|step| restored(&step.action)).collect()
}

/// What a begun run still has to restore.
pub(crate) fn restores_left(view: &RunView) -> Vec<Restored<'_>> {
    let ended = matches!(
        view.state,
        RunState::Completed | RunState::CompletedWithExceptions | RunState::Failed | RunState::Cancelled
    );
    // A run that takes back what it did restores nothing any more.
    if ended || view.why.is_some() {
        return Vec::new();
    }
    let status = |id: &str| view.step(id).map_or("waiting", |step| step.status.as_str());
    let is_open = |id: &str| !matches!(status(id), "done" | "failed" | "skipped" | "not-taken");
    let taken = |condition: &lifeboat_core::runbook::Condition| {
        let outcome = view.step(&condition.step).and_then(|step| step.outcome.as_ref());
        outcome.is_some_and(|outcome| condition.outcomes.contains(outcome))
    };
    let steps = view.runbook.steps.iter();
    let due = steps.filter(|step| is_open(&step.id) && step.when.iter().all(taken));
    due.filter_map(|step| restored(&step.action)).collect()
}

fn restored(action: &Action) -> Option<Restored<'_>> {
    match action {
        Action::Restore { volume, target, .. } => Some((volume, target)),
        _ => None,
    }
}

/// Refuses unless each data set can be opened in one of its vaults, and one holds something as old as the moment asked for.
pub(crate) fn require(
    wiring: &Wiring,
    volumes: Vec<Restored<'_>>,
    identities: &[Identity],
) -> Result<(), CommandError> {
    if !volumes.is_empty() && identities.is_empty() {
        return Err(CommandError::usage("this run restores from a vault, and no key was given to open it")
            .hint("give --key FILE with an identity of one of the plan's recipients; it stays in memory"));
    }
    for (volume, target) in volumes {
        let mut opened_vaults = Vec::new();
        let mut failures: Vec<PortError> = Vec::new();
        for place in volume.vaults.iter().filter_map(|name| wiring.vaults.get(name)) {
            match place.unlocked(identities) {
                Ok(vault) if vault.datasets().contains(&volume.dataset) => opened_vaults.push(vault),
                Ok(_) => {
                    let what = format!("no key given here opens `{}` in the vault `{}`", volume.dataset, place.name);
                    failures.push(PortError::new(what));
                }
                Err(error) => failures.push(error),
            }
        }
        if opened_vaults.is_empty() {
            let message = format!("`{}` could not be restored from any vault; nothing was begun", volume.dataset);
            let error = failures.iter().fold(CommandError::failed(message), |error, failure| error.because(failure));
            return Err(error.hint("see that the vault is there, and that --key is an identity of one of its recipients (`lifeboat key inspect FILE`)"));
        }
        if let Target::At(moment) = target {
            reaches_back(&opened_vaults, &volume.dataset, moment)?;
        }
    }
    Ok(())
}

/// Refuses a moment before everything that the vaults hold: the service would be stopped for nothing.
fn reaches_back(vaults: &[Unlocked], dataset: &str, moment: &str) -> Result<(), CommandError> {
    let at: jiff::Timestamp = moment.parse().saying(|| format!("`{moment}` is not a moment")).kind(Kind::Usage)?;
    let mut oldest: Option<jiff::Timestamp> = None;
    for vault in vaults {
        for point in vault.points(Some(dataset))?.points {
            if point.badge != Badge::Corrupt {
                oldest = Some(oldest.map_or(point.taken_at, |oldest| oldest.min(point.taken_at)));
            }
        }
    }
    match oldest {
        Some(oldest) if oldest > at => {
            let message = format!("no recovery point of `{dataset}` is as old as {moment}; nothing was begun");
            let oldest = oldest.strftime("%Y-%m-%dT%H:%M:%SZ");
            Err(CommandError::usage(message)
                .hint(format!("the oldest is of {oldest}; `lifeboat points {dataset}` lists what there is")))
        }
        // Nothing at all is left to the restore itself to tell, with all that is wrong.
        _ => Ok(()),
    }
}
