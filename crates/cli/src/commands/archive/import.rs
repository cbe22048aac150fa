//! `lifeboat import`: an archive that `lifeboat export` made, verified and brought back to a directory.
//!
//! Invariant: nothing is extracted before every part was found to be what it was.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use lifeboat_adapters::portable::{OpenPgpOpened, extract};
use lifeboat_vault::portable::{Joined, age_opened, decompressed, verify_parts};
use serde::Serialize;

use super::{of_portable, of_program};
use crate::commands::look::size;
use crate::door;
use crate::error::{CommandError, Exit, Explain};
use crate::interrupt;
use crate::report::counted;
use crate::ui::Ui;

/// Verify a portable archive and restore it to a directory
///
/// The archive's parts are first held against SHA256SUMS. One sealed with age needs --key; one sealed with OpenPGP is opened by `gpg` with your own keyring.
/// To take what was restored into a vault, back the directory up.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory that holds the archive
    #[arg(value_name = "ARCHIVE")]
    archive: PathBuf,
    /// A key that the archive is sealed to; may be given several times
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
    /// Where to: a new or empty directory
    #[arg(long, value_name = "DIR", required_unless_present = "verify")]
    to: Option<PathBuf>,
    /// Only verify: that the parts are what they were, and with --key that they open and decompress to their end
    #[arg(long, conflicts_with = "to")]
    verify: bool,
}

#[derive(Serialize)]
struct Report {
    archive: String,
    to: Option<String>,
    parts: usize,
    /// Of the tar stream.
    bytes: u64,
    seconds: f64,
    verified: bool,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let began = Instant::now();
    if let Some(to) = &args.to {
        check_empty(to)?;
    }
    let cancel = interrupt::listen(ui)?;
    let waiting = ui.waiting("verifying the parts");
    let parts = verify_parts(&args.archive, &mut |_| !cancel.is_cancelled()).map_err(of_portable)?;
    drop(waiting);
    let count = parts.len();
    let name = parts.first().map(|part| part.to_string_lossy().into_owned()).unwrap_or_default();
    let mut bytes = 0;
    let shown = ui.progress("extracting");
    let mut progress = |read: u64| {
        bytes += read;
        shown.set(bytes, 0);
        !cancel.is_cancelled()
    };
    let joined = Joined::new(parts);
    let whole = if name.contains(".tar.zst.gpg.") {
        let mut opened = OpenPgpOpened::begin(joined).map_err(of_program)?;
        let passed = pass(&mut opened, args.to.as_deref(), &mut progress);
        // What gpg says is nearer to the cause than what came of it.
        match (passed, opened.finish()) {
            (Ok(true), Err(error)) | (Err(_), Err(error)) => return Err(of_program(error)),
            (passed, _) => passed?,
        }
    } else if args.key.is_empty() && args.verify {
        true
    } else {
        let identities = door::load_keys(&args.key)?;
        let mut opened =
            age_opened(&identities, std::io::BufReader::with_capacity(1 << 20, joined)).map_err(of_portable)?;
        pass(&mut opened, args.to.as_deref(), &mut progress)?
    };
    drop(shown);
    if !whole {
        return Err(CommandError::interrupted("interrupted; remove what was extracted, and run it again"));
    }
    let at = args.archive.display();
    match &args.to {
        Some(to) => ui.line(format_args!(
            "{at}: {} verified, {} extracted to {}",
            counted(count as u64, "part"),
            size(bytes),
            to.display()
        )),
        None => ui.line(format_args!("{at}: {} verified", counted(count as u64, "part"))),
    }
    ui.document(&Report {
        archive: args.archive.to_string_lossy().into_owned(),
        to: args.to.map(|to| to.to_string_lossy().into_owned()),
        parts: count,
        bytes,
        seconds: began.elapsed().as_secs_f64(),
        verified: true,
    })?;
    Ok(Exit::Done)
}

fn check_empty(to: &Path) -> Result<(), CommandError> {
    std::fs::create_dir_all(to).saying(|| format!("{} could not be made", to.display()))?;
    let mut entries = std::fs::read_dir(to).saying(|| format!("{} could not be listed", to.display()))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => {
            Err(CommandError::refused(format!("{} is not empty", to.display()))
                .hint("name another directory with --to"))
        }
    }
}

/// Decompresses, and extracts or only reads to the end.
fn pass(from: &mut dyn Read, to: Option<&Path>, progress: &mut dyn FnMut(u64) -> bool) -> Result<bool, CommandError> {
    let broken = || "the archive does not decompress".to_owned();
    let mut tar = decompressed(from).saying(broken)?;
    if let Some(to) = to {
        return extract(&mut tar, to, progress).map_err(of_program);
    }
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = tar.read(&mut buffer).saying(broken)?;
        if read == 0 || !progress(read as u64) {
            return Ok(read == 0);
        }
    }
}
