//! `lifeboat evidence`: the report of a run.

use std::path::{Path, PathBuf};

use lifeboat_engine::evidence::{Evidence, Losses, page, seal, verify};

use crate::error::{CommandError, Exit, Explain, Kind};
use crate::ui::Ui;
use crate::wiring::Wiring;

/// Write the report of a run: a page for people, or a signed document for programs
///
/// The evidence is a rendering of the run's journal, whose chain is checked first. A file that ends in .json gets the
/// signed document, every other one the page. --verify checks such a document, with nothing else at hand.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The run
    #[arg(required_unless_present = "verify")]
    run: Option<String>,
    /// Where to; a name ending in .json gets JSON, every other one HTML
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// What was counted afterwards by somebody who had kept a list of acknowledged writes (JSON: acknowledged, present,
    /// lost, wrong, first_lost_at, counted_at, counted_by)
    #[arg(long, value_name = "FILE", conflicts_with = "verify")]
    losses: Option<PathBuf>,
    /// Check a signed document instead
    #[arg(long, value_name = "FILE", conflicts_with_all = ["run", "output"])]
    verify: Option<PathBuf>,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    if let Some(path) = args.verify {
        let text = std::fs::read(&path).saying(|| format!("{} cannot be read", path.display()))?;
        let (document, signer) = verify(&text)?;
        ui.line(format_args!("{}: sound, signed by {} ({signer})", document.evidence.run, signer.fingerprint()));
        return Ok(Exit::Done);
    }
    let run = args.run.unwrap_or_default();
    let wiring = Wiring::open(ui)?;
    let journal = wiring.journal()?;
    let run = crate::commands::run::find(&journal, &run)?;
    let recorded = journal.read(&run)?;
    let losses = args.losses.as_deref().map(read_losses).transpose()?;
    let evidence = Evidence::of(&recorded.entries, &recorded.head.hash, losses.clone())?;
    let sealed = seal(&run, recorded.sealed, losses, wiring.state.signing_key())?;
    let as_json = ui.is_json() && args.output.is_none()
        || args.output.as_ref().is_some_and(|path| path.extension().is_some_and(|extension| extension == "json"));
    let bytes = if as_json {
        serde_json::to_vec_pretty(&sealed)?
    } else {
        page(&evidence, Some(&sealed.signature)).into_bytes()
    };
    match args.output {
        Some(path) => {
            std::fs::write(&path, bytes).saying(|| format!("{} cannot be written", path.display()))?;
            ui.line(path.display());
        }
        None => ui.raw(&bytes),
    }
    Ok(Exit::Done)
}

fn read_losses(path: &Path) -> Result<Losses, CommandError> {
    let text = std::fs::read(path).saying(|| format!("the count of losses {} cannot be read", path.display()))?;
    let losses: Losses = serde_json::from_slice(&text)
        .saying(|| format!("{} is no count of losses", path.display()))
        .kind(Kind::Usage)?;
    if losses.present + losses.lost + losses.wrong != losses.acknowledged {
        return Err(CommandError::usage(format!(
            "{}: present, lost and wrong do not add up to acknowledged",
            path.display()
        )));
    }
    Ok(losses)
}
