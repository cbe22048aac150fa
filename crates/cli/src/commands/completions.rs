//! `lifeboat completions SHELL`: the completion script for a shell.

use clap::CommandFactory;

use crate::error::{CommandError, Exit};
use crate::ui::Ui;

/// Print the completion script for a shell
///
/// For bash: `lifeboat completions bash > ~/.local/share/bash-completion/completions/lifeboat`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    shell: clap_complete::Shell,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::Cli::command(), "lifeboat", &mut script);
    ui.raw(&script);
    Ok(Exit::Done)
}
