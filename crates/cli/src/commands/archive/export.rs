//! `lifeboat export`: a recovery point as an archive that `age` or `gpg`, `zstd`, `tar` and `cat` restore.
//!
//! Invariant: the vault's own format and this program are not needed to read it.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use lifeboat_adapters::portable::OpenPgpSealed;
use lifeboat_core::units::Size;
use lifeboat_vault::portable::{Archived, Part, Parts, age_sealed, compressed, write_tree};
use lifeboat_vault::{PointInfo, Recipient};
use serde::Serialize;

use super::{of_portable, of_program};
use crate::commands::look::{OpenArgs, Tree, size};
use crate::commands::points::time;
use crate::door;
use crate::error::{CommandError, Exit, Explain, Kind};
use crate::files_progress::OnScreen;
use crate::interrupt;
use crate::report::counted;
use crate::thaw;
use crate::ui::Ui;

/// Write a recovery point as a portable archive, for whoever has no lifeboat
///
/// A tar archive, compressed with zstd, sealed with age or OpenPGP, in parts of a size, with SHA256SUMS and a README that says by which commands it
/// is restored. What lies in an archive of the storage is thawed first, as for a restore. An export that was interrupted begins anew when it is run again. A streamed database is exported as its point holds it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The point: its id, the end of it or its number; DATASET for its newest, DATASET@TIME for the newest by then
    #[arg(value_name = "POINT")]
    point: String,
    #[command(flatten)]
    open: OpenArgs,
    /// Where to: a new or empty directory
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// How it is sealed
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Age)]
    format: Format,
    /// No part is larger
    #[arg(long, value_name = "SIZE", default_value = "4GB")]
    split: String,
    /// Whom it is sealed to; may be given several times: `age1…` [default: the vault's recipients], or for OpenPGP a file with a public key
    #[arg(long, value_name = "RECIPIENT")]
    recipient: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Age,
    Openpgp,
}

#[derive(Serialize)]
struct Report {
    point: String,
    dataset: String,
    directory: String,
    format: &'static str,
    files: u64,
    bytes: u64,
    bytes_stored: u64,
    parts: Vec<String>,
    seconds: f64,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let began = Instant::now();
    let bytes_max: Size = args.split.parse().kind(Kind::Usage).hint("for example --split 4GB or --split 650MiB")?;
    if bytes_max.0 < 1 << 20 {
        return Err(CommandError::usage(format!("parts of {} are too small", args.split)).hint("1 MiB is the least"));
    }
    let opened = args.open.open(ui)?;
    let point = opened.point(&args.point)?;
    let recipients = recipients(&args, &opened.vault.roster().recipients)?;
    let cancel = interrupt::listen(ui)?;
    thaw::make_readable(&opened.vault, point, &[], opened.archive.as_ref(), "exported", &cancel, ui)?;
    let tree = opened.tree(point)?;
    let stem = format!("{}-{}.tar.zst.{}", stem(&point.dataset), point.sequence, ending(args.format));
    let parts = Parts::begin(&args.output, &stem, bytes_max.0).map_err(of_portable)?;
    let progress = OnScreen::new(ui, "exporting");
    let work = Work { tree: &tree, progress: &progress, cancel: cancel.flag() };
    let (parts, archived) = match &recipients {
        Recipients::Age(recipients) => {
            let sealed = age_sealed(recipients, parts).map_err(of_portable)?;
            let (sealed, archived) = work.archive(sealed)?;
            (sealed.finish().saying(|| "the archive could not be completed".to_owned())?, archived)
        }
        Recipients::OpenPgp(keys) => {
            let sealed = OpenPgpSealed::begin(keys, parts).map_err(of_program)?;
            let (sealed, archived) = work.archive(sealed)?;
            (sealed.finish().map_err(of_program)?, archived)
        }
    };
    let parts = parts.finish(|parts| readme(point, args.format, &stem, parts, &archived)).map_err(of_portable)?;
    drop(progress);
    let stored = parts.iter().map(|part| part.bytes).sum();
    ui.line(format_args!(
        "{} as of {}, exported to {}\n  {}, {}, in {} ({}); README.txt says how it is restored",
        point.dataset,
        time(point.taken_at),
        args.output.display(),
        counted(archived.files, "file"),
        size(archived.bytes),
        counted(parts.len() as u64, "part"),
        size(stored),
    ));
    ui.document(&Report {
        point: point.id.clone(),
        dataset: point.dataset.clone(),
        directory: args.output.to_string_lossy().into_owned(),
        format: ending(args.format),
        files: archived.files,
        bytes: archived.bytes,
        bytes_stored: stored,
        parts: parts.into_iter().map(|part| part.name).collect(),
        seconds: began.elapsed().as_secs_f64(),
    })?;
    door::show(&opened.findings, ui);
    Ok(door::ends_for(&opened.findings, Some(point)))
}

enum Recipients {
    Age(Vec<Recipient>),
    OpenPgp(Vec<PathBuf>),
}

fn recipients(args: &Args, of_vault: &[String]) -> Result<Recipients, CommandError> {
    match args.format {
        Format::Age => {
            let given = if args.recipient.is_empty() { of_vault } else { &args.recipient };
            let parsed: Result<Vec<Recipient>, _> = given.iter().map(|text| text.parse()).collect();
            parsed.map(Recipients::Age).kind(Kind::Usage).hint("`lifeboat key new` and `age-keygen` print recipients")
        }
        Format::Openpgp if args.recipient.is_empty() => {
            Err(CommandError::usage("an OpenPGP archive needs the key that it is sealed to")
                .hint("write it with `gpg --export KEY > key.pgp`, and give it with --recipient key.pgp"))
        }
        Format::Openpgp => {
            let keys: Vec<PathBuf> = args.recipient.iter().map(PathBuf::from).collect();
            if let Some(missing) = keys.iter().find(|key| !key.is_file()) {
                return Err(CommandError::usage(format!("there is no key file {}", missing.display()))
                    .hint("--recipient wants a file as `gpg --export KEY > key.pgp` writes it"));
            }
            Ok(Recipients::OpenPgp(keys))
        }
    }
}

struct Work<'a> {
    tree: &'a Tree,
    progress: &'a OnScreen,
    cancel: &'a std::sync::atomic::AtomicBool,
}

impl Work<'_> {
    fn archive<W: Write>(&self, to: W) -> Result<(W, Archived), CommandError> {
        let failed = || "the archive could not be written".to_owned();
        let zstd = compressed(to).saying(failed)?;
        let written = write_tree(&self.tree.source, &self.tree.root, zstd, self.progress, self.cancel);
        let (zstd, archived) = written.map_err(of_portable)?;
        Ok((zstd.finish().saying(failed)?, archived))
    }
}

fn ending(format: Format) -> &'static str {
    match format {
        Format::Age => "age",
        Format::Openpgp => "gpg",
    }
}

/// A file's name made of a data set's: its last part, as far as every file system takes it.
fn stem(dataset: &str) -> String {
    let last = dataset.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let plain: String =
        last.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).take(60).collect();
    if plain.trim_matches('-').is_empty() { "data".to_owned() } else { plain }
}

fn readme(point: &PointInfo, format: Format, stem: &str, parts: &[Part], archived: &Archived) -> String {
    let (open, needs) = match format {
        Format::Age => {
            ("age -d -i KEY", "age (https://age-encryption.org), and KEY, the file of a key that it is sealed to")
        }
        Format::Openpgp => ("gpg --decrypt", "gpg (https://gnupg.org), with a private key that it is sealed to"),
    };
    format!(
        "This is {dataset} of host {host} as of {taken} (recovery point {id}):\n\
         {files}, {bytes} bytes, in {count}.\n\
         \n\
         It is restored without lifeboat, in this directory, by these commands:\n\
         \n\
         \x20   sha256sum --check SHA256SUMS\n\
         \x20   mkdir /where/it/goes\n\
         \x20   cat {stem}.* | {open} | zstd -d | tar -xpf - --numeric-owner --xattrs --xattrs-include='*' -C /where/it/goes\n\
         \n\
         They need {needs}; zstd; and GNU tar. As root, owners are restored, too.\n\
         With lifeboat: lifeboat import DIRECTORY --to /where/it/goes\n",
        dataset = point.dataset,
        host = point.host,
        taken = time(point.taken_at),
        id = point.id,
        files = counted(archived.files, "file"),
        bytes = archived.bytes,
        count = counted(parts.len() as u64, "part"),
    )
}
