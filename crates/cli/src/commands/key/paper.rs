//! `lifeboat key paper`: a key as a page to print, and the page back as a key.
//!
//! Invariant: a secret comes from a file or from what is typed, never from an argument; what is read is written only into the file asked for.

use std::io::{self, BufRead, IsTerminal, Read};
use std::path::{Path, PathBuf};

use lifeboat_vault::Identity;
use lifeboat_vault::paper::{self, PAGE_BYTES_MAX, Secret};
use serde::Serialize;

use super::page::Page;
use super::{write_key, write_secret};
use crate::door;
use crate::error::{CommandError, Exit, Explain, Kind};
use crate::ui::Ui;

/// Print a key as a page with a QR code and numbered lines, or read such a page back (--read)
///
/// Every line has its own checksum: reading back says which line, and mostly which character, was mistyped.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The key's file; with --read the page, or a file with what was typed or scanned [default with --read: asks for the lines]
    #[arg(value_name = "FILE", required_unless_present = "read")]
    file: Option<PathBuf>,
    /// Read a page back: a key becomes a key's file, a share a share's
    #[arg(long, requires = "output")]
    read: bool,
    /// Where it goes, readable by you alone; never overwritten. A page is plain text where the name ends with .txt, else HTML; without it: text to stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The vault it opens, for the page
    #[arg(long, value_name = "URL", conflicts_with = "read")]
    vault: Option<String>,
    /// The fingerprint of that vault's owner, for the page: it proves that a vault is the right one
    #[arg(long, value_name = "FINGERPRINT", conflicts_with = "read")]
    owner: Option<String>,
}

#[derive(Serialize)]
struct Printed<'a> {
    recipient: String,
    file: &'a Path,
}

#[derive(Serialize)]
struct ReadBack<'a> {
    file: &'a Path,
    recipient: Option<String>,
    share: Option<ShareRead>,
}

#[derive(Serialize)]
pub(super) struct ShareRead {
    pub(super) set: String,
    pub(super) index: u8,
    pub(super) shares: u8,
    pub(super) threshold: u8,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<Exit, CommandError> {
    match (&args.file, &args.output) {
        (file, Some(output)) if args.read => read(file.as_deref(), output, ui),
        (Some(file), output) => print(file, output.as_deref(), args, ui),
        (None, _) => Err(CommandError::usage("there is no key to print").hint("name the key's file")),
    }
}

fn print(file: &Path, output: Option<&Path>, args: &Args, ui: &Ui) -> Result<Exit, CommandError> {
    let identity = only_identity(file)?;
    check_owner(args.owner.as_deref())?;
    let page = Page::of_key(&identity, args.vault.as_deref(), args.owner.as_deref());
    let Some(output) = output else {
        if ui.is_json() {
            return Err(
                CommandError::usage("a key is not written as JSON").hint("name a file for the page with -o FILE")
            );
        }
        ui.raw(page.text()?.as_bytes());
        return Ok(Exit::Done);
    };
    write_page(&page, output)?;
    let recipient = identity.recipient().to_string();
    ui.line(format_args!("{} holds the key of {recipient}", output.display()));
    ui.warn("whoever sees the page has the key, and printers may remember what they printed: print it at one that is");
    ui.warn(format_args!("your own, try it (`lifeboat key paper --read -o FILE`), then remove {}", output.display()));
    ui.document(&Printed { recipient, file: output })?;
    Ok(Exit::Done)
}

pub(super) fn write_page(page: &Page, output: &Path) -> Result<(), CommandError> {
    let text = match output.extension() {
        Some(extension) if extension == "txt" => page.text()?,
        _ => page.html()?,
    };
    write_secret(output, &text, "page with a key")
}

/// The one key of a file.
pub(super) fn only_identity(file: &Path) -> Result<Identity, CommandError> {
    let mut identities = door::load_keys(&[file.to_owned()])?;
    match (identities.pop(), identities.len()) {
        (Some(only), 0) => Ok(only),
        (_, others) => {
            Err(CommandError::usage(format!("{} holds {} keys, and a page holds one", file.display(), others + 1))
                .hint("put each key into a file of its own"))
        }
    }
}

/// An owner that nobody could have is a typing error, and would stand on the page for years.
pub(super) fn check_owner(owner: Option<&str>) -> Result<(), CommandError> {
    match owner {
        Some(owner) if owner.len() != 32 || !owner.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            Err(CommandError::usage(format!("{owner:?} is not an owner's fingerprint: it is not 32 hex digits"))
                .hint("`lifeboat vault stat` prints it"))
        }
        _ => Ok(()),
    }
}

fn read(file: Option<&Path>, output: &Path, ui: &Ui) -> Result<Exit, CommandError> {
    let secret = match file {
        Some(file) => read_file(file)?,
        None if io::stdin().is_terminal() && io::stderr().is_terminal() => ask(ui)?,
        None => {
            let mut text = String::new();
            io::stdin().lock().take(PAGE_BYTES_MAX as u64 + 1).read_to_string(&mut text)?;
            paper::read(&text).kind(Kind::Usage)?
        }
    };
    match secret {
        Secret::Key(identity) => {
            write_key(output, &identity)?;
            let recipient = identity.recipient().to_string();
            ui.line(&recipient);
            ui.note("compare it with the recipient on the page");
            ui.document(&ReadBack { file: output, recipient: Some(recipient), share: None })?;
        }
        Secret::Share(share) => {
            write_secret(output, &Secret::Share(share.clone()).lines(), "share")?;
            let (set, index, shares, threshold) = (share.set_name(), share.index, share.shares, share.threshold);
            ui.line(format_args!("share {index} of {shares}, set {set}; {threshold} make the key"));
            ui.note("put them together with: lifeboat key combine FILE… -o FILE");
            let share = Some(ShareRead { set, index, shares, threshold });
            ui.document(&ReadBack { file: output, recipient: None, share })?;
        }
    }
    Ok(Exit::Done)
}

/// What a file holds: a page, typed lines, or what a QR code says.
pub(super) fn read_file(file: &Path) -> Result<Secret, CommandError> {
    let mut text = Vec::new();
    let opened = std::fs::File::open(file).and_then(|f| f.take(PAGE_BYTES_MAX as u64 + 1).read_to_end(&mut text));
    opened.saying(|| format!("{} cannot be read", file.display())).kind(Kind::Usage)?;
    let text = String::from_utf8(text).map_err(|_| {
        CommandError::usage(format!("{} is not text", file.display()))
            .hint("a scanned picture is read by a QR reader first; give the text that it prints")
    })?;
    paper::read(&text).saying(|| format!("{} cannot be taken as a key on paper", file.display())).kind(Kind::Usage)
}

/// Asks line by line, again where a line does not fit its checksum.
fn ask(ui: &Ui) -> Result<Secret, CommandError> {
    let mut input = io::stdin().lock();
    let mut next = |question: &str| -> Result<String, CommandError> {
        ui.write_stderr(format_args!("{question} "));
        let mut line = String::new();
        match input.read_line(&mut line)? {
            0 => Err(CommandError::interrupted("there are lines left to type; nothing was written")),
            _ => Ok(line.trim().to_owned()),
        }
    };
    let first = next("first line (AGE-SECRET-KEY-1 or LIFEBOAT-SHARE-1), or all that the QR code says:")?;
    if first.len() > 40 {
        return paper::read(&first).kind(Kind::Usage);
    }
    let is_share = first.to_ascii_uppercase().starts_with("LIFEBOAT");
    let mut text = format!("{}\n", if is_share { "LIFEBOAT-SHARE-1" } else { "AGE-SECRET-KEY-1" });
    for number in 1..=paper::line_count(is_share) {
        loop {
            let line = next(&format!("line {number}:"))?;
            match paper::check_line(&line, number, is_share) {
                Ok(()) => {
                    text.push_str(&format!("{number} {}\n", without_number(&line)));
                    break;
                }
                Err(fault) => ui.warn(fault),
            }
        }
    }
    let last = next("all:")?;
    let last = last.get(..3).filter(|word| word.eq_ignore_ascii_case("all")).map_or(last.as_str(), |_| &last[3..]);
    text.push_str(&format!("all {last}\n"));
    paper::read(&text).kind(Kind::Usage)
}

fn without_number(line: &str) -> &str {
    match line.split_once(char::is_whitespace) {
        Some((word, rest)) if word.len() <= 3 && word.starts_with(|c: char| c.is_ascii_digit()) => rest,
        _ => line,
    }
}
