//! `lifeboat demo`: protects a running service, destroys its site, recovers it elsewhere, proves what was lost and how
//! long it took, brings it home, and takes it back from corrupted data.
//!
//! Invariant: the demo judges nothing by itself. What is lost is counted by the load client's own list, how long it took
//! stands in the run's journal, and a part that fails ends the demo with its error.

mod acts;
mod database;
mod stage;
mod story;

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use crate::error::{CommandError, Exit, Explain, Kind};
use crate::interrupt;
use crate::ui::Ui;
use database::Database;
use stage::Stage;

/// Watch a disaster and a recovery on this machine; nothing to prepare
///
/// Two sites with a small service between them, a client that writes to it by its name and remembers what was
/// acknowledged, a vault outside both. Everything is made on the spot and removed at the end; the evidence stays.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How the service is recovered
    #[arg(long, value_enum, default_value_t = Strategy::WarmStandby)]
    strategy: Strategy,
    /// Keep the service's entries in PostgreSQL, which must be installed, and not in SQLite
    #[arg(long, conflicts_with = "remove")]
    postgres: bool,
    /// Leave everything running, to look around
    #[arg(long)]
    keep: bool,
    /// Where to play it; must not exist or be empty [default: a new directory for temporary files]
    #[arg(long, value_name = "DIR", conflicts_with = "remove")]
    directory: Option<PathBuf>,
    /// Remove a demo that was kept
    #[arg(long, value_name = "DIR", conflicts_with_all = ["keep", "strategy"])]
    remove: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Strategy {
    WarmStandby,
    BackupRestore,
}

impl Strategy {
    fn word(self) -> &'static str {
        match self {
            Strategy::WarmStandby => "warm-standby",
            Strategy::BackupRestore => "backup-restore",
        }
    }
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    if let Some(directory) = &args.remove {
        let directory = std::path::absolute(directory)?;
        stage::remove(&directory)?;
        ui.line(format_args!("removed; any evidence stays in {}", directory.join("evidence").display()));
        return Ok(Exit::Done);
    }
    let begun = Instant::now();
    let database = Database::chosen(args.postgres)?;
    let directory = directory(args.directory)?;
    let interrupt = interrupt::listen(ui)?;
    let mut stage = match Stage::set(directory.clone(), args.strategy, database, interrupt, ui) {
        Ok(stage) => stage,
        Err(error) => {
            stage::remove(&directory)?;
            return Err(error);
        }
    };
    let played = acts::play(&mut stage, args.strategy).map_err(|error| match stage.save_logs() {
        Ok(kept) if error.kind != Kind::Interrupted => {
            error.hint(format!("what every process said is in {}", kept.display()))
        }
        _ => error,
    });
    if args.keep {
        stage.leave();
    } else if let Err(error) = stage.clear() {
        ui.warn(format_args!("the demo could not be removed: {}", error.message));
    }
    let exit = played?.tell(begun.elapsed().as_secs_f64(), ui)?;
    if args.keep {
        tell_what_is_left(&directory, ui);
    }
    Ok(exit)
}

fn directory(asked: Option<PathBuf>) -> Result<PathBuf, CommandError> {
    let Some(directory) = asked else {
        let made = tempfile::Builder::new().prefix("lifeboat-demo-").tempdir();
        return Ok(made.saying(|| "no directory for temporary files can be made".into())?.keep());
    };
    let directory = std::path::absolute(directory)?;
    if directory.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(CommandError::refused(format!("{} is not empty", directory.display()))
            .hint("name another directory; `lifeboat demo --remove DIR` removes a demo that was kept"));
    }
    std::fs::create_dir_all(&directory).saying(|| format!("{} cannot be made", directory.display()))?;
    Ok(directory)
}

fn tell_what_is_left(directory: &Path, ui: &Ui) {
    let (plan, state) = (directory.join("lifeboat.toml"), directory.join("outside/controller"));
    let (plan, state, key) = (plan.display(), state.display(), directory.join("keys/owner.key"));
    ui.note(format_args!("\nThe demo is still running. To look around:"));
    ui.note(format_args!("  export LIFEBOAT_PLAN={plan} LIFEBOAT_STATE={state}"));
    for verb in ["status", "points", "run list", "failover logbook --planned --yes"] {
        ui.note(format_args!("  lifeboat {verb}"));
    }
    ui.note(format_args!("  lifeboat restore logbook --key {} --to /tmp/out", key.display()));
    ui.note(format_args!("To remove it: lifeboat demo --remove {}", directory.display()));
}
