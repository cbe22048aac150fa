//! The binary `lifeboat`: reads the command line, runs one verb, reports how it ended.
//!
//! Invariant: every way out of a command goes through `finish`, so that exit codes and the shape of errors are the same everywhere.

mod children;
mod commands;
mod door;
mod error;
mod files_progress;
mod interrupt;
mod plan_file;
mod report;
mod run_ui;
mod thaw;
mod ui;
mod wiring;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::commands::Command;
use crate::ui::{Colour, Ui};

/// Disaster recovery you can prove.
///
/// A plan says what must survive, how much may be lost and for how long it may be away. lifeboat protects it, recovers
/// it elsewhere, and proves what was lost and how long it took.
///
/// Exit codes: 0 done; 1 an operation failed; 2 usage, or the plan is wrong; 3 done, but a finding stands; 4 refused by a
/// safety rule; 5 held, waiting for a person; 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "lifeboat", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options that every command takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Global {
    /// The plan; without it, `lifeboat.toml` here or in a directory above
    #[arg(long, global = true, value_name = "FILE", env = "LIFEBOAT_PLAN", help_heading = "Everywhere")]
    plan: Option<PathBuf>,
    /// Print JSON on stdout and nothing else
    #[arg(long, global = true, help_heading = "Everywhere")]
    json: bool,
    /// No progress, no notes; only results and errors
    #[arg(long, short, global = true, help_heading = "Everywhere")]
    quiet: bool,
    /// Colours in the output
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value_t = Colour::Auto, help_heading = "Everywhere")]
    color: Colour,
    /// Where this host keeps its own state [default: $XDG_STATE_HOME/lifeboat]
    #[arg(long, global = true, value_name = "DIR", env = "LIFEBOAT_STATE", help_heading = "Everywhere")]
    state: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(wrong) => return explain_usage(&wrong),
    };
    let ui = Ui::new(cli.global);
    start_log(&ui);
    lifeboat_adapters::storage::register();
    if let Ok(state) = ui.state_directory() {
        lifeboat_adapters::storage::served::keys_lie_in(&state);
    }
    let result = commands::run(cli.command, &ui);
    finish(result, &ui)
}

/// Help, a version, or what is wrong with the command line: as clap says it, and with --json as every other error as well.
fn explain_usage(wrong: &clap::Error) -> ExitCode {
    let is_json = std::env::args_os().take_while(|word| word != "--").any(|word| word == "--json");
    if is_json && wrong.use_stderr() {
        let said = wrong.render().to_string();
        let mut lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
        let message = lines.next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        let made =
            error::CommandError { hints: lines.map(str::to_owned).collect(), ..error::CommandError::usage(message) };
        let text = serde_json::to_string(&report::document(&made)).unwrap_or_default();
        let _ = writeln!(std::io::stdout(), "{text}");
    }
    let _ = wrong.print();
    ExitCode::from(u8::try_from(wrong.exit_code()).unwrap_or(2))
}

fn finish(result: Result<error::Exit, error::CommandError>, ui: &Ui) -> ExitCode {
    let code = match result {
        Ok(exit) => exit.code(),
        Err(error) => {
            let stopped = error.kind == error::Kind::Failed && interrupt::was_asked();
            let error = if stopped { error.kind(error::Kind::Interrupted) } else { error };
            report::error(&error, ui);
            error.kind.code()
        }
    };
    ExitCode::from(code)
}

/// What libraries log goes to stderr, warnings and worse, unless `LIFEBOAT_LOG` says otherwise. Whoever interrupts a read from a mount
/// leaves an answer that nobody waits for any more, which `fuser` calls an error.
fn start_log(ui: &Ui) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("LIFEBOAT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,fuser::reply=off"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    log.with_ansi(ui.colour_on_stderr()).init();
}
