//! `lifeboat cat`: one file of a recovery point, to stdout.
//!
//! Invariant: what is written was verified before it was written; what does not verify ends the output and is an error.

use std::io::Write;
use std::path::PathBuf;

use lifeboat_vault::PointInfo;
use lifeboat_vault::files::{FileReader, Kind};
use serde::Serialize;

use super::{Described, OpenArgs, Opened, described, node_at, of_tree, shown, within};
use crate::door;
use crate::error::{CommandError, Exit};
use crate::ui::Ui;

/// What is written at once.
const STRETCH_BYTES: usize = 1 << 20;

/// Write a file of a recovery point to stdout
///
/// Every byte is verified before it is written. With --json the file is described, and its content hashed, instead.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The point: its id, the end of it or its number; DATASET for its newest, DATASET@TIME for the newest by then
    #[arg(value_name = "POINT")]
    point: String,
    /// The file: its path in the point, or the one it had on its host
    #[arg(value_name = "PATH")]
    path: PathBuf,
    #[command(flatten)]
    open: OpenArgs,
    /// Begin so many bytes into the file
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    offset: u64,
    /// At most so many bytes
    #[arg(long, value_name = "BYTES")]
    length: Option<u64>,
}

#[derive(Serialize)]
struct Report {
    point: String,
    dataset: String,
    path: String,
    #[serde(flatten)]
    file: Described,
    /// Of what was asked for.
    read_bytes: u64,
    blake3: String,
    verified: bool,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let opened = args.open.open(ui)?;
    let point = opened.point(&args.point)?;
    write(&args, &opened, point, ui).map_err(|error| opened.to_thaw(error, &[point], ui))
}

fn write(args: &Args, opened: &Opened, point: &PointInfo, ui: &Ui) -> Result<Exit, CommandError> {
    let tree = opened.tree(point)?;
    let browser = tree.browser()?;
    let path = within(&args.path, &point.dataset);
    let node = node_at(&browser, path)?;
    let what = shown(path.as_os_str().as_encoded_bytes());
    match &node.kind {
        Kind::File { .. } => {}
        Kind::Symlink { target } => {
            return Err(CommandError::usage(format!("`{what}` is a symbolic link to `{}`", shown(target)))
                .hint("name the file that it leads to"));
        }
        Kind::Directory(_) => {
            return Err(CommandError::usage(format!("`{what}` is a directory"))
                .hint("`lifeboat mount` shows it, `lifeboat restore --path` brings it back"));
        }
        Kind::Fifo => return Err(CommandError::usage(format!("`{what}` is a FIFO and has no content"))),
    }
    let mut reader = FileReader::open(&tree.source, &node).map_err(of_tree)?;
    let end = args.length.map_or(reader.size(), |length| args.offset.saturating_add(length)).min(reader.size());
    let (mut position, mut hasher, mut buffer) = (args.offset, blake3::Hasher::new(), vec![0; STRETCH_BYTES]);
    while position < end && !ui.is_closed() {
        let now = (end - position).min(STRETCH_BYTES as u64) as usize;
        let place = buffer.get_mut(..now).unwrap_or_default();
        let read = reader.read_at(position, place).map_err(|error| {
            of_tree(error).hint(format!("what was written is right; it ends {position} bytes into `{what}`"))
        })?;
        let bytes = place.get(..read).unwrap_or_default();
        if ui.is_json() {
            hasher.update(bytes);
        } else {
            ui.raw(bytes);
        }
        position += read as u64;
    }
    // A closed pipe was told of by `raw`.
    let _ = std::io::stdout().lock().flush();
    ui.document(&Report {
        point: point.id.clone(),
        dataset: point.dataset.clone(),
        path: path.to_string_lossy().into_owned(),
        file: described(&node),
        read_bytes: position.saturating_sub(args.offset),
        blake3: hasher.finalize().to_hex().to_string(),
        verified: true,
    })?;
    door::show(&opened.findings, ui);
    Ok(door::ends_for(&opened.findings, Some(point)))
}
