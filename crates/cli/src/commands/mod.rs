//! One file per verb. A verb has its arguments (`Args`, whose doc comments are its help) and `run`.
//!
//! Invariant: a verb prints through `Ui` only, and ends in an `Exit` or a `CommandError`.

mod archive;
mod backup;
mod canary;
mod check;
mod completions;
mod demo;
mod dns;
mod evidence;
mod explain;
mod key;
mod logbook;
mod look;
mod man;
pub(crate) mod points;
mod protect;
mod recover;
mod restore;
mod run;
mod schema;
mod status;
mod supervise;
mod up;
mod vault;
mod verify;
mod watchdog;

use crate::error::{CommandError, Exit};
use crate::ui::Ui;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Demo(demo::Args),
    Check(check::Args),
    Explain(explain::Args),
    Schema(schema::Args),
    Key(key::Args),
    Vault(vault::Args),
    Backup(backup::Args),
    Points(points::Args),
    Restore(restore::Args),
    Verify(verify::Args),
    Find(look::find::Args),
    Diff(look::diff::Args),
    Cat(look::cat::Args),
    Mount(look::mount::Args),
    Export(archive::export::Args),
    Import(archive::import::Args),
    Protect(protect::Args),
    Dns(dns::Args),
    Canary(canary::Args),
    Up(up::Args),
    Runbook(recover::runbook::Args),
    Failover(recover::failover::Args),
    Failback(recover::failback::Args),
    Drill(recover::drill::Args),
    Status(status::Args),
    Run(run::Args),
    Evidence(evidence::Args),
    Supervise(supervise::Args),
    Watchdog(watchdog::Args),
    Logbook(logbook::Args),
    Completions(completions::Args),
    Man(man::Args),
}

pub(crate) fn run(command: Command, ui: &Ui) -> Result<Exit, CommandError> {
    match command {
        Command::Demo(args) => demo::run(args, ui),
        Command::Check(args) => check::run(args, ui),
        Command::Explain(args) => explain::run(args, ui),
        Command::Schema(args) => schema::run(args, ui),
        Command::Key(args) => key::run(args, ui),
        Command::Vault(args) => vault::run(args, ui),
        Command::Backup(args) => backup::run(args, ui),
        Command::Points(args) => points::run(args, ui),
        Command::Restore(args) => restore::run(args, ui),
        Command::Verify(args) => verify::run(args, ui),
        Command::Find(args) => look::find::run(args, ui),
        Command::Diff(args) => look::diff::run(args, ui),
        Command::Cat(args) => look::cat::run(args, ui),
        Command::Mount(args) => look::mount::run(args, ui),
        Command::Export(args) => archive::export::run(args, ui),
        Command::Import(args) => archive::import::run(args, ui),
        Command::Protect(args) => protect::run(args, ui),
        Command::Dns(args) => dns::run(args, ui),
        Command::Canary(args) => canary::run(args, ui),
        Command::Up(args) => up::run(args, ui),
        Command::Runbook(args) => recover::runbook::run(args, ui),
        Command::Failover(args) => recover::failover::run(args, ui),
        Command::Failback(args) => recover::failback::run(args, ui),
        Command::Drill(args) => recover::drill::run(args, ui),
        Command::Status(args) => status::run(args, ui),
        Command::Run(args) => run::run(args, ui),
        Command::Evidence(args) => evidence::run(args, ui),
        Command::Logbook(args) => logbook::run(args, ui),
        Command::Supervise(args) => supervise::run(args, ui),
        Command::Watchdog(args) => watchdog::run(args, ui),
        Command::Completions(args) => completions::run(args, ui),
        Command::Man(args) => man::run(args, ui),
    }
}

/// Runs the async part of a verb to its end, on a runtime of its own.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, CommandError>>) -> Result<T, CommandError> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(future)
}
