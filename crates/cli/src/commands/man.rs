//! `lifeboat man -o DIR`: a manual page for every command, made from the same texts as `--help`.

use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap_mangen::Man;

use crate::error::{CommandError, Exit, Explain};
use crate::report::counted;
use crate::ui::Ui;

/// Write manual pages, one for each command
///
/// To read them at once: `lifeboat man -o ~/.local/share/man/man1`, then `man lifeboat-backup`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory for them, made where it is absent
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    std::fs::create_dir_all(&args.output)
        .saying(|| format!("the directory {} cannot be made", args.output.display()))?;
    let mut root = crate::Cli::command().disable_help_subcommand(true);
    root.build();
    let count = write(&root, &args.output)?;
    ui.line(format_args!("{} in {}", counted(count, "manual page"), args.output.display()));
    ui.document(&serde_json::json!({ "pages": count, "directory": args.output }))?;
    Ok(Exit::Done)
}

/// Writes the page of a command and those below it; answers how many.
fn write(command: &clap::Command, directory: &Path) -> Result<u64, CommandError> {
    let page = Man::new(command.clone());
    let mut text = Vec::new();
    page.render(&mut text)?;
    let path = directory.join(page.get_filename());
    std::fs::write(&path, text).saying(|| format!("{} cannot be written", path.display()))?;
    let mut count = 1;
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        count += write(below, directory)?;
    }
    Ok(count)
}
