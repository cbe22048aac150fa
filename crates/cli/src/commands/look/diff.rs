//! `lifeboat diff`: what changed from one recovery point to another, or from one to a directory of this machine.
//!
//! Invariant: directories that are alike in two points are not opened, so that it takes as long as there are changes; what could not be
//! looked at on the disk is said, and ends with 3.

use std::path::{Path, PathBuf};

use lifeboat_core::units::Size;
use lifeboat_engine::port::Cancel;
use lifeboat_vault::PointInfo;
use lifeboat_vault::files::{Change, DiskError, DiskOptions, Excludes, Node, compare_nodes, compare_with_disk};
use serde::Serialize;

use super::{Described, OpenArgs, Opened, described, kind_word, node_at, of_tree, shown, size, within};
use crate::commands::points::time;
use crate::door;
use crate::error::{CommandError, Exit, Explain, Kind};
use crate::interrupt;
use crate::report::counted;
use crate::ui::Ui;

/// Show what changed between two recovery points, or from one to a directory
///
/// Each line is a path: `+` added, `-` removed, `M` its content changed, `m` only its mode, owner, time or attributes did. A file counts as
/// changed when its bytes differ; they are compared where nothing else tells. With a directory, files of the same size and time count as
/// unchanged, as for a backup, unless --read-all. With --json a line for each change and one for the sum.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The earlier point: its id, the end of it or its number; DATASET for its newest, DATASET@TIME for the newest by then
    #[arg(value_name = "BEFORE")]
    before: String,
    /// The later point, or a directory of this machine
    #[arg(value_name = "AFTER")]
    after: Option<String>,
    /// Compare with this directory, also where its name is that of a data set
    #[arg(long = "dir", value_name = "DIR", conflicts_with = "after")]
    directory: Option<PathBuf>,
    #[command(flatten)]
    open: OpenArgs,
    /// Only this path and what is below it
    #[arg(long, value_name = "PATH")]
    path: Option<PathBuf>,
    /// Only the sum
    #[arg(long)]
    stat: bool,
    /// Only changes of content: nothing that differs in mode, owner, time or attributes alone
    #[arg(long)]
    content: bool,
    /// With a directory: read every file, also where size and time of change are alike
    #[arg(long)]
    read_all: bool,
    /// With a directory: what was left out of the backup is no difference; may be given several times
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
}

#[derive(Serialize)]
struct Line {
    path: String,
    change: &'static str,
    content: bool,
    metadata: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<Described>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<Described>,
}

/// How many changes of each kind there are.
#[derive(Debug, Default, Serialize)]
struct Sum {
    added: u64,
    removed: u64,
    changed: u64,
    metadata_only: u64,
    /// Of files, by how much each kind's bytes grew or shrank.
    bytes_added: u64,
    bytes_removed: u64,
    bytes_changed_before: u64,
    bytes_changed_after: u64,
}

#[derive(Serialize)]
struct Last {
    before: String,
    after: String,
    stat: Sum,
    /// What on the disk could not be compared, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    skipped: Vec<String>,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let opened = args.open.open(ui)?;
    let one = opened.point(&args.before)?;
    let cancel = interrupt::listen(ui)?;
    match after(&args, &opened, ui)? {
        After::Point(two) => {
            with_point(&args, &opened, (one, two), &cancel, ui).map_err(|error| opened.to_thaw(error, &[one, two], ui))
        }
        After::Directory(directory) => with_directory(&args, &opened, (one, &directory), &cancel, ui)
            .map_err(|error| opened.to_thaw(error, &[one], ui)),
    }
}

enum After<'a> {
    Point(&'a PointInfo),
    Directory(PathBuf),
}

/// What the second argument means: a point, where there is one of that name, or else a directory.
fn after<'a>(args: &Args, opened: &'a Opened, ui: &Ui) -> Result<After<'a>, CommandError> {
    let given = match (&args.directory, &args.after) {
        (Some(directory), _) => return is_directory(directory).map(After::Directory),
        (None, Some(given)) => given,
        (None, None) => return Err(CommandError::usage("compare it with what? name a later point, or --dir DIR")),
    };
    let is_place = Path::new(given).is_dir();
    match opened.point(given) {
        Ok(point) => {
            if is_place {
                ui.note(format_args!(
                    "`{given}` is taken for the newest point of that name; for the directory: --dir {given}"
                ));
            }
            if args.read_all || !args.exclude.is_empty() {
                return Err(CommandError::usage(
                    "--read-all and --exclude are for a comparison with a directory (--dir DIR)",
                ));
            }
            Ok(After::Point(point))
        }
        Err(_) if is_place => Ok(After::Directory(PathBuf::from(given))),
        Err(error) if given.starts_with(['/', '.']) => Err(error.hint("nor is it a directory of this machine")),
        Err(error) => Err(error),
    }
}

fn is_directory(path: &Path) -> Result<PathBuf, CommandError> {
    match path.is_dir() {
        true => Ok(path.to_owned()),
        false if path.exists() => Err(CommandError::usage(format!("{} is no directory", path.display()))
            .hint("name the directory that it lies in, and the file with --path")),
        false => Err(CommandError::usage(format!("there is no directory {}", path.display()))),
    }
}

/// What was found so far, and whether to go on.
struct Telling<'a> {
    args: &'a Args,
    cancel: &'a Cancel,
    ui: &'a Ui,
    sum: Sum,
    trouble: Option<CommandError>,
}

impl Telling<'_> {
    fn take(&mut self, change: &Change) -> bool {
        if change.content || !self.args.content {
            self.sum.add(change);
            if !self.args.stat {
                self.trouble = tell(change, self.ui).err();
            }
        }
        self.trouble.is_none() && !self.cancel.is_cancelled() && !self.ui.is_closed()
    }

    fn end(self) -> Result<Sum, CommandError> {
        match self.trouble {
            Some(error) => Err(error),
            None if self.cancel.is_cancelled() => {
                let text = "interrupted; what was shown is right, and not all";
                Err(CommandError::interrupted(text).kind(Kind::Interrupted))
            }
            None => Ok(self.sum),
        }
    }
}

fn with_point(
    args: &Args,
    opened: &Opened,
    (one, two): (&PointInfo, &PointInfo),
    cancel: &Cancel,
    ui: &Ui,
) -> Result<Exit, CommandError> {
    let (left, right) = (opened.tree(one)?, opened.tree(two)?);
    let (left, right) = (left.browser()?, right.browser()?);
    let path = args.path.as_deref().map(|path| within(path, &one.dataset)).unwrap_or(Path::new(""));
    let (l, r) = (node_at(&left, path)?, node_at(&right, path)?);
    let mut telling = Telling { args, cancel, ui, sum: Sum::default(), trouble: None };
    let base = path.as_os_str().as_encoded_bytes();
    compare_nodes((&left, l), (&right, r), base, &mut |change| telling.take(&change)).map_err(of_tree)?;
    let sum = telling.end()?;
    let from = format!("from point {} ({})", one.sequence, time(one.taken_at));
    sum.say(&format!("{from} to point {} ({})", two.sequence, time(two.taken_at)), ui);
    ui.event(&Last { before: one.id.clone(), after: two.id.clone(), stat: sum, skipped: Vec::new() })?;
    door::show(&opened.findings, ui);
    Ok(door::ends_for(&opened.findings, Some(two)))
}

fn with_directory(
    args: &Args,
    opened: &Opened,
    (one, directory): (&PointInfo, &Path),
    cancel: &Cancel,
    ui: &Ui,
) -> Result<Exit, CommandError> {
    let tree = opened.tree(one)?;
    let browser = tree.browser()?;
    let path = args.path.as_deref().map(|path| within(path, &one.dataset)).unwrap_or(Path::new(""));
    let top = node_at(&browser, path)?;
    if !top.is_directory() {
        return Err(CommandError::usage(format!(
            "`{}` is a file in the recovery point: name its directory",
            path.display()
        ))
        .hint("one file is compared with: lifeboat cat POINT PATH | cmp - FILE"));
    }
    let excludes = Excludes::new(&args.exclude).kind(Kind::Usage)?;
    let options = DiskOptions { read_all: args.read_all, excludes };
    let mut telling = Telling { args, cancel, ui, sum: Sum::default(), trouble: None };
    let place = directory.join(path);
    let place = if args.path.is_some() && place.is_dir() { place } else { directory.to_owned() };
    let skipped = compare_with_disk((&browser, &top), &place, &options, &mut |change| telling.take(&change)).map_err(
        |error| match error {
            DiskError::Tree(error) => of_tree(error),
            other => CommandError::from(other),
        },
    )?;
    let sum = telling.end()?;
    let from = format!("from point {} ({})", one.sequence, time(one.taken_at));
    sum.say(&format!("{from} to {}", place.display()), ui);
    let after = place.display().to_string();
    let unread: Vec<String> = skipped
        .iter()
        .map(|skipped| format!("{} {}", shown(skipped.path.as_os_str().as_encoded_bytes()), skipped.reason))
        .collect();
    ui.event(&Last { before: one.id.clone(), after, stat: sum, skipped: unread.clone() })?;
    for line in &unread {
        ui.warn(format_args!("not compared: {line}"));
    }
    door::show(&opened.findings, ui);
    let incomplete = skipped.iter().any(|skipped| !skipped.reason.starts_with("is a "));
    Ok(if incomplete { Exit::Finding } else { door::ends_for(&opened.findings, Some(one)) })
}

fn tell(change: &Change, ui: &Ui) -> Result<(), CommandError> {
    let (mark, word) = match (&change.before, &change.after) {
        (None, _) => ('+', "added"),
        (_, None) => ('-', "removed"),
        _ if change.content => ('M', "changed"),
        _ => ('m', "changed"),
    };
    ui.event(&Line {
        path: String::from_utf8_lossy(&change.path).into_owned(),
        change: word,
        content: change.content,
        metadata: change.metadata,
        before: change.before.as_ref().map(described),
        after: change.after.as_ref().map(described),
    })?;
    let end = if change.after.as_ref().or(change.before.as_ref()).is_some_and(Node::is_directory) { "/" } else { "" };
    let path = if change.path.is_empty() { ".".to_owned() } else { shown(&change.path) };
    ui.line(format_args!("{mark} {path}{end}{}", details(change)));
    Ok(())
}

/// What exactly differs, in brackets.
fn details(change: &Change) -> String {
    let (Some(before), Some(after)) = (&change.before, &change.after) else {
        let node = change.before.as_ref().or(change.after.as_ref());
        let file = node.filter(|node| kind_word(node) == "file");
        return file.map(|file| format!("  ({})", size(file.size()))).unwrap_or_default();
    };
    let mut parts = Vec::new();
    if kind_word(before) != kind_word(after) {
        parts.push(format!("{} → {}", kind_word(before), kind_word(after)));
    } else if change.content && before.size() != after.size() {
        parts.push(format!("{} → {}", size(before.size()), size(after.size())));
    } else if change.content && kind_word(before) == "file" {
        parts.push(format!("{}, other bytes", size(after.size())));
    }
    if let (Some(l), Some(r)) = (&before.metadata, &after.metadata) {
        if l.mode != r.mode {
            parts.push(format!("mode {:04o} → {:04o}", l.mode, r.mode));
        }
        if (l.uid, l.gid) != (r.uid, r.gid) {
            parts.push(format!("owner {}:{} → {}:{}", l.uid, l.gid, r.uid, r.gid));
        }
        if l.xattrs != r.xattrs {
            parts.push("attributes".to_owned());
        }
        if parts.is_empty() && (l.mtime_seconds, l.mtime_nanos) != (r.mtime_seconds, r.mtime_nanos) {
            parts.push("time of change".to_owned());
        }
    }
    if parts.is_empty() { String::new() } else { format!("  ({})", parts.join(", ")) }
}

impl Sum {
    fn add(&mut self, change: &Change) {
        let bytes = |node: &Option<Node>| node.as_ref().map_or(0, Node::size);
        match (&change.before, &change.after) {
            (None, after) => {
                self.added += 1;
                self.bytes_added += bytes(after);
            }
            (before, None) => {
                self.removed += 1;
                self.bytes_removed += bytes(before);
            }
            (before, after) if change.content => {
                self.changed += 1;
                self.bytes_changed_before += bytes(before);
                self.bytes_changed_after += bytes(after);
            }
            _ => self.metadata_only += 1,
        }
    }

    fn say(&self, what: &str, ui: &Ui) {
        let rounded = |bytes| Size(bytes).rounded();
        ui.line(what);
        ui.line(format_args!(
            "  {} added ({}), {} removed ({}), {} changed ({} → {}), {} otherwise",
            counted(self.added, "path"),
            rounded(self.bytes_added),
            self.removed,
            rounded(self.bytes_removed),
            self.changed,
            rounded(self.bytes_changed_before),
            rounded(self.bytes_changed_after),
            self.metadata_only
        ));
    }
}
