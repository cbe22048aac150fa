//! `lifeboat key split` and `combine`: a key in shares, any so many of which make it again.
//!
//! Invariant: all shares are written or none; a share is never overwritten.

use std::path::PathBuf;

use lifeboat_vault::paper::{self, Named, PaperError, Secret};
use serde::Serialize;

use super::page::Page;
use super::paper::{check_owner, only_identity, read_file, write_page};
use super::write_key;
use crate::error::{CommandError, Exit, Explain, Kind};
use crate::ui::Ui;

/// Split a key into shares to print, any so many of which make it again
///
/// Each share is a page of its own, as HTML and as text. Fewer shares than the threshold say nothing about the key.
#[derive(Debug, clap::Args)]
pub(crate) struct SplitArgs {
    /// The key's file
    #[arg(value_name = "KEY")]
    key: PathBuf,
    /// How many shares
    #[arg(long, value_name = "N")]
    shares: usize,
    /// How many of them make the key again
    #[arg(long, value_name = "M")]
    threshold: usize,
    /// A new directory for the pages, readable by you alone
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// The vault it opens, for the pages
    #[arg(long, value_name = "URL")]
    vault: Option<String>,
    /// The fingerprint of that vault's owner, for the pages
    #[arg(long, value_name = "FINGERPRINT")]
    owner: Option<String>,
}

/// Put shares together into the key they were made from
#[derive(Debug, clap::Args)]
pub(crate) struct CombineArgs {
    /// The shares: pages, or files that `key paper --read` wrote; more than are needed are held against each other
    #[arg(value_name = "SHARE", required = true)]
    shares: Vec<PathBuf>,
    /// Where the key goes, readable by you alone; never overwritten
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

#[derive(Serialize)]
struct Split {
    recipient: String,
    set: String,
    threshold: usize,
    files: Vec<PathBuf>,
}

pub(crate) fn split(args: &SplitArgs, ui: &Ui) -> Result<Exit, CommandError> {
    let identity = only_identity(&args.key)?;
    check_owner(args.owner.as_deref())?;
    let shares = paper::split(&identity, args.shares, args.threshold).map_err(|error| match error {
        PaperError::Numbers { .. } => CommandError::from(error).kind(Kind::Usage),
        error => error.into(),
    })?;
    make_directory(&args.output)?;
    let recipient = identity.recipient();
    let mut files = Vec::new();
    for share in &shares {
        let page = Page::of_share(share, &recipient, args.vault.as_deref(), args.owner.as_deref());
        for extension in ["html", "txt"] {
            let file = args.output.join(format!("share-{}-of-{}.{extension}", share.index, share.shares));
            if let Err(error) = write_page(&page, &file) {
                // Some shares without the others are of no use to anyone but a thief.
                let _ = std::fs::remove_dir_all(&args.output);
                return Err(error);
            }
            files.push(file);
        }
    }
    let set = shares.first().map(|share| share.set_name()).unwrap_or_default();
    ui.line(format_args!(
        "{} shares of set {set} are in {}; any {} make the key of {recipient}",
        shares.len(),
        args.output.display(),
        args.threshold
    ));
    ui.note("try it before you rely on it: lifeboat key combine SHARE… -o FILE");
    ui.warn("printers may remember what they printed: print the pages at one that is your own, give each away, and");
    ui.warn(format_args!("remove {}; the key file itself still opens everything", args.output.display()));
    ui.document(&Split { recipient: recipient.to_string(), set, threshold: args.threshold, files })?;
    Ok(Exit::Done)
}

fn make_directory(path: &std::path::Path) -> Result<(), CommandError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().mode(0o700).create(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            CommandError::refused(format!("{} exists; shares of two splittings must not mix", path.display()))
                .hint("name a new directory with -o")
        }
        _ => CommandError::failed(format!("the directory {} cannot be made", path.display())).because(&error),
    })
}

pub(crate) fn combine(args: &CombineArgs, ui: &Ui) -> Result<Exit, CommandError> {
    let mut given = Vec::new();
    for file in &args.shares {
        match read_file(file)? {
            Secret::Share(share) => given.push(Named { name: file.display().to_string(), share }),
            Secret::Key(_) => {
                return Err(CommandError::usage(format!("{} is a whole key, not a share", file.display()))
                    .hint("`lifeboat key paper --read` makes a key's file of it"));
            }
        }
    }
    let identity = paper::combine(&given).kind(Kind::Usage)?;
    write_key(&args.output, &identity)?;
    let recipient = identity.recipient().to_string();
    ui.line(&recipient);
    ui.note("remove the key's file and the shares' files when the restore is done");
    ui.document(&serde_json::json!({ "recipient": recipient, "file": args.output }))?;
    Ok(Exit::Done)
}
