//! What of a recovery point must be thawed before it can be read.
//!
//! Invariant: how much lies where, and how long it takes, is said before anything is asked for or waited for; where nothing is asked
//! for, the command ends with 5 and says what to do.

use std::path::{Path, PathBuf};

use lifeboat_adapters::storage::thaw::{Frozen, ThawError, thaw};
use lifeboat_core::plan::Archive;
use lifeboat_core::units::Span;
use lifeboat_engine::port::Cancel;
use lifeboat_vault::files::archived_needs;
use lifeboat_vault::{PointInfo, Unlocked};

use crate::error::{CommandError, Explain, Kind};
use crate::ui::Ui;

/// What of a point cannot be read now.
fn frozen(vault: &Unlocked, point: &PointInfo) -> Result<Frozen, CommandError> {
    let packs = vault.archived_packs(point).map_err(CommandError::of_vault)?;
    Frozen::among(&**vault.storage(), &packs).map_err(CommandError::of_storage)
}

/// Waits until every pack can be read that the point needs, or, where paths of it are given, that these need. `done`: what is then done with it.
pub(crate) fn make_readable(
    vault: &Unlocked,
    point: &PointInfo,
    paths: &[PathBuf],
    archive: Option<&Archive>,
    done: &str,
    cancel: &Cancel,
    ui: &Ui,
) -> Result<(), CommandError> {
    let then = format!("before it can be {done}");
    if paths.is_empty() {
        let who = format!("recovery point {}", point.id);
        return wait_for(vault, point, &frozen(vault, point)?, (&who, &then), archive, cancel, ui);
    }
    let who = format!("what is wanted of recovery point {}", point.id);
    loop {
        let needs = archived_needs(vault, point, paths).map_err(CommandError::of_restore)?;
        let frozen = Frozen::among(&**vault.storage(), &needs.packs).map_err(CommandError::of_storage)?;
        if needs.complete {
            return wait_for(vault, point, &frozen, (&who, &then), archive, cancel, ui);
        }
        wait_for(vault, point, &frozen, (&who, "before it is known what else it needs"), archive, cancel, ui)?;
    }
}

/// Says what is to be waited for, and waits.
fn wait_for(
    vault: &Unlocked,
    point: &PointInfo,
    frozen: &Frozen,
    (who, before): (&str, &str),
    archive: Option<&Archive>,
    cancel: &Cancel,
    ui: &Ui,
) -> Result<(), CommandError> {
    if frozen.is_empty() {
        return Ok(());
    }
    let (what, takes) = (frozen.describe(), Span::seconds(frozen.thaw_seconds));
    ui.warn(format_args!("{who} needs {what}, which must be thawed {before}: that takes up to {takes}"));
    let command = archive.and_then(|archive| archive.command.as_deref());
    let shown = ui.progress("thawing");
    let thawed = thaw(vault.storage(), frozen, command, &|done, total| shown.set(done, total), cancel.flag());
    drop(shown);
    let Err(error) = thawed else { return Ok(()) };
    let kind = match &error {
        ThawError::Stopped => Kind::Interrupted,
        ThawError::NoCommand { .. } => Kind::Held,
        _ => Kind::Failed,
    };
    let hint = match &error {
        ThawError::NoCommand { .. } => listed_in(&write_list(&ui.state_directory()?, point, frozen)?),
        _ => "what was asked for is not asked for again: run this again".to_owned(),
    };
    Err(CommandError::from(error).kind(kind).hint(hint))
}

/// An error of one who looked into points without having them thawed: says how much of each must be, how long that takes, and how.
/// Any other stays as it is.
pub(crate) fn explained(
    error: CommandError,
    vault: &Unlocked,
    points: &[&PointInfo],
    archive: Option<&Archive>,
    ui: &Ui,
) -> CommandError {
    if error.kind != Kind::Held {
        return error;
    }
    let mut hints = Vec::new();
    for point in points {
        // What the storage said stays true where the vault says nothing.
        let Ok(frozen) = frozen(vault, point) else { continue };
        if frozen.is_empty() {
            continue;
        }
        let (what, takes) = (frozen.describe(), Span::seconds(frozen.thaw_seconds));
        let under_way = if frozen.unasked().is_empty() { "; it is under way" } else { "" };
        hints.push(format!("recovery point {} needs {what}: up to {takes} to thaw{under_way}", point.id));
        let command = archive.and_then(|archive| archive.command.as_ref());
        match command {
            _ if frozen.unasked().is_empty() => {}
            Some(_) => hints.push(format!(
                "`lifeboat restore --point {} --key FILE --to DIR` has it thawed by the plan's command, and waits",
                point.id
            )),
            None => {
                hints.push(frozen.how().to_owned());
                let list = ui.state_directory().and_then(|directory| write_list(&directory, point, &frozen));
                hints.extend(list.ok().map(|path| listed_in(&path)));
            }
        }
    }
    hints.into_iter().fold(error, CommandError::hint)
}

fn listed_in(path: &Path) -> String {
    format!("the objects' names stand in {}; once they are thawed, run this again", path.display())
}

/// The names of what must be thawed, for the storage's own tools.
pub(crate) fn write_list(directory: &Path, point: &PointInfo, frozen: &Frozen) -> Result<PathBuf, CommandError> {
    let path = directory.join(format!("to-thaw-{}.txt", point.id.replace('/', "-")));
    let text = frozen.unasked().join("\n") + "\n";
    std::fs::create_dir_all(directory)
        .and_then(|()| std::fs::write(&path, text))
        .saying(|| format!("{} cannot be written", path.display()))?;
    Ok(path)
}
