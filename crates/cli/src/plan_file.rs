//! Finds the plan, reads it with what it includes, and hands back a plan that is right, or says why it is not.
//!
//! Invariant: whoever gets a `Loaded` has a plan without an error in it.

use std::path::{Path, PathBuf};

use lifeboat_core::plan::{self, Parsed, Plan, SourceFile};

use crate::error::{CommandError, Explain, Kind};
use crate::report;
use crate::ui::Ui;

const NAME: &str = "lifeboat.toml";
/// No plan that a person writes comes near this.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// A plan as the commands use it.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) plan: Plan,
    pub(crate) path: PathBuf,
    /// BLAKE3 of the plan's text, includes and all; what run-books and evidence refer to.
    pub(crate) hash: String,
}

/// Reads the plan that the command line, the environment or the place says. A wrong plan ends in `Kind::Plan`, with its diagnostics shown.
pub(crate) fn load(ui: &Ui) -> Result<Loaded, CommandError> {
    let (path, mut parsed) = parse(ui)?;
    match parsed.plan.take() {
        Some(plan) => Ok(Loaded { plan, path, hash: parsed.hash }),
        None => {
            parsed.diagnostics.retain(|found| found.severity == lifeboat_core::diagnostic::Severity::Error);
            ui.write_stderr(format_args!("{}", report::diagnostics(&parsed, ui.colour_on_stderr())));
            Err(CommandError::new(Kind::Plan, format!("the plan {} is wrong", path.display()))
                .hint("`lifeboat check` shows everything about it, `lifeboat explain CODE` tells more"))
        }
    }
}

/// Like `load`, but a missing plan is no error unless one was named: for verbs that also work without a plan.
pub(crate) fn load_if_any(ui: &Ui) -> Result<Option<Loaded>, CommandError> {
    if ui.plan_argument().is_none() && find_upwards()?.is_none() {
        return Ok(None);
    }
    load(ui).map(Some)
}

/// Reads and parses, whatever the diagnostics.
pub(crate) fn parse(ui: &Ui) -> Result<(PathBuf, Parsed), CommandError> {
    let path = locate(ui)?;
    let text = read(&path).saying(|| format!("the plan {} cannot be read", path.display())).kind(Kind::Usage)?;
    let root = SourceFile { name: path.display().to_string(), text };
    let parsed = plan::load(root, &mut |name: &str| {
        read(Path::new(name)).map_err(|error| match error.causes.as_slice() {
            [] => error.message,
            causes => format!("{}: {}", error.message, causes.join(": ")),
        })
    });
    Ok((path, parsed))
}

fn locate(ui: &Ui) -> Result<PathBuf, CommandError> {
    if let Some(path) = ui.plan_argument() {
        return Ok(path.clone());
    }
    find_upwards()?.ok_or_else(|| {
        CommandError::usage(format!("there is no plan: no {NAME} here or in a directory above"))
            .hint("name one with --plan FILE or $LIFEBOAT_PLAN")
    })
}

fn find_upwards() -> Result<Option<PathBuf>, CommandError> {
    let here = std::env::current_dir().saying(|| "the current directory cannot be found".to_owned())?;
    // The shortest name that works from here reads best in messages.
    if here.join(NAME).is_file() {
        return Ok(Some(PathBuf::from(NAME)));
    }
    Ok(here.ancestors().skip(1).map(|directory| directory.join(NAME)).find(|path| path.is_file()))
}

fn read(path: &Path) -> Result<String, CommandError> {
    let size = std::fs::metadata(path)?.len();
    if size > FILE_BYTES_MAX {
        return Err(CommandError::failed(format!("it has {size} bytes, and a plan file may have {FILE_BYTES_MAX}")));
    }
    let bytes = std::fs::read(path)?;
    String::from_utf8(bytes).map_err(|_| CommandError::failed("it is not UTF-8 text"))
}
