//! The logbook as a program of its own: `logbook serve`, `logbook load`, `logbook reconcile`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lifeboat_logbook::{LoadOptions, ReconcileOptions, ServeOptions, reconcile, run_load, serve};

/// An example service over SQLite and a directory of uploads, with a load client that remembers what was acknowledged.
#[derive(Parser)]
#[command(name = "logbook", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the service until SIGTERM.
    Serve(ServeOptions),
    /// Writes entries and uploads through the service's name until SIGTERM or a limit.
    Load(LoadOptions),
    /// Looks for every acknowledged write. Exits with 3 when one is missing or wrong.
    Reconcile(ReconcileOptions),
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse().command).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("logbook: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprintln!("  because: {cause}");
                source = cause.source();
            }
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<ExitCode, Box<dyn std::error::Error>> {
    match command {
        Command::Serve(options) => serve(options).await?,
        Command::Load(options) => print(&run_load(options).await?)?,
        Command::Reconcile(options) => {
            let result = reconcile(&options).await?;
            print(&result)?;
            if !result.is_complete() {
                return Ok(ExitCode::from(3));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[allow(clippy::print_stdout)] // A program's result belongs on stdout.
fn print(value: &impl serde::Serialize) -> Result<(), serde_json::Error> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}
