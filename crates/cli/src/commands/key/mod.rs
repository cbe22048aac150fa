//! `lifeboat key`: recovery identities, as files that plain `age` reads, too; on paper, and in shares.
//!
//! Invariant: a secret is written only into the file that was asked for (or, without one, to stdout); no key is ever overwritten.

mod page;
mod paper;
mod share;

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use lifeboat_vault::{Identity, SigningKey};
use serde::Serialize;

use crate::error::{CommandError, Exit, Explain};
use crate::ui::Ui;

/// Make and inspect the keys that open vaults
///
/// Keep two or more, in different places, none on a machine that is backed up: a vault sealed to them opens with any one,
/// and with nothing else.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Make a new key; prints its recipient (age1…), which may be shown to anyone
    New {
        /// Where the secret goes, readable by you alone; never overwritten. Without it: to stdout
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Make a person's signing key, for approvals and attestations; prints its public half, which belongs in the plan
    Person {
        /// Where the secret goes, readable by you alone; never overwritten
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Show a key's recipient, never its secret
    Inspect {
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    Paper(paper::Args),
    Split(share::SplitArgs),
    Combine(share::CombineArgs),
}

#[derive(Serialize)]
struct Made<'a> {
    recipient: String,
    file: &'a Path,
}

#[derive(Serialize)]
struct Inspected<'a> {
    file: &'a Path,
    recipients: Vec<String>,
    private: bool,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    match args.verb {
        Verb::New { output: Some(path) } => new_in_file(&path, ui),
        Verb::New { output: None } => new_on_stdout(ui),
        Verb::Person { output } => new_person(&output, ui),
        Verb::Inspect { file } => inspect(&file, ui),
        Verb::Paper(args) => paper::run(&args, ui),
        Verb::Split(args) => share::split(&args, ui),
        Verb::Combine(args) => share::combine(&args, ui),
    }
}

fn new_in_file(path: &Path, ui: &Ui) -> Result<Exit, CommandError> {
    let identity = Identity::generate();
    write_key(path, &identity)?;
    let recipient = identity.recipient().to_string();
    ui.line(&recipient);
    ui.document(&Made { recipient, file: path })?;
    Ok(Exit::Done)
}

fn new_person(path: &Path, ui: &Ui) -> Result<Exit, CommandError> {
    if path.exists() {
        return Err(CommandError::refused(format!("{} exists, and a key is never overwritten", path.display()))
            .hint("name another file"));
    }
    let key = SigningKey::load_or_create(path)
        .saying(|| format!("the signing key cannot be written to {}", path.display()))?
        .public()
        .to_string();
    ui.line(&key);
    ui.note(format_args!("in the plan: [person.NAME] with key = \"{key}\""));
    ui.document(&serde_json::json!({ "key": key, "file": path }))?;
    Ok(Exit::Done)
}

fn new_on_stdout(ui: &Ui) -> Result<Exit, CommandError> {
    if ui.is_json() {
        return Err(CommandError::usage("a key is not written as JSON").hint("name a file for it with -o FILE"));
    }
    let identity = Identity::generate();
    ui.note(identity.recipient());
    ui.raw(text_of(&identity).as_bytes());
    Ok(Exit::Done)
}

/// As `age-keygen` writes it.
fn text_of(identity: &Identity) -> String {
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
    format!("# created: {now}\n# public key: {}\n{}\n", identity.recipient(), identity.expose())
}

fn write_key(path: &Path, identity: &Identity) -> Result<(), CommandError> {
    write_secret(path, &text_of(identity), "key")
}

/// A new file of mode 0600 that holds a secret.
fn write_secret(path: &Path, text: &str, what: &str) -> Result<(), CommandError> {
    write_new(path, text).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => {
            CommandError::refused(format!("{} exists, and a {what} is never overwritten", path.display()))
                .hint("name another file; without its key a vault cannot be opened")
        }
        _ => CommandError::failed(format!("the {what} cannot be written to {}", path.display())).because(&error),
    })
}

fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    if written.is_err() {
        // Half a key looks like a key.
        let _ = std::fs::remove_file(path);
    }
    written
}

fn inspect(path: &Path, ui: &Ui) -> Result<Exit, CommandError> {
    let identities = Identity::load_all(path).hint("`lifeboat key new -o FILE` makes a key")?;
    let mode = std::fs::metadata(path)?.mode();
    let private = mode & 0o077 == 0;
    let recipients: Vec<String> = identities.iter().map(|identity| identity.recipient().to_string()).collect();
    for recipient in &recipients {
        ui.line(recipient);
    }
    ui.document(&Inspected { file: path, recipients, private })?;
    if !private {
        let (path, mode) = (path.display(), mode & 0o777);
        ui.warn(format_args!("others on this machine can read {path} (mode {mode:03o}): chmod 600 {path}"));
        return Ok(Exit::Finding);
    }
    Ok(Exit::Done)
}
