//! `lifeboat diff`: what changed from one recovery point to another.
//!
//! Invariant: directories that are alike are not opened, so that it takes as long as there are changes.

use std::path::PathBuf;

use lifeboat_core::units::Size;
use lifeboat_vault::files::{Change, Node, compare_nodes};
use serde::Serialize;

use super::{Described, OpenArgs, described, kind_word, node_at, of_tree, shown, size, within};
use crate::commands::points::time;
use crate::door;
use crate::error::{CommandError, Exit, Kind};
use crate::interrupt;
use crate::report::counted;
use crate::ui::Ui;

/// Show what changed between two recovery points
///
/// Each line is a path: `+` added, `-` removed, `M` its content changed, `m` only its mode, owner, time or attributes did. A file counts as
/// changed when its bytes differ; they are compared where nothing else tells. With --json a line for each change and one for the sum.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The earlier point: its id, the end of it or its number; DATASET for its newest, DATASET@TIME for the newest by then
    #[arg(value_name = "BEFORE")]
    before: String,
    /// The later point
    #[arg(value_name = "AFTER")]
    after: String,
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
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let opened = args.open.open(ui)?;
    let (one, two) = (opened.point(&args.before)?, opened.point(&args.after)?);
    let (left, right) = (opened.tree(one)?, opened.tree(two)?);
    let (left, right) = (left.browser()?, right.browser()?);
    let path = args.path.as_deref().map(|path| within(path, &one.dataset)).unwrap_or(std::path::Path::new(""));
    let nodes = match (node_at(&left, path), node_at(&right, path)) {
        (Ok(l), Ok(r)) => Ok((l, r)),
        (Err(error), Ok(_)) | (Ok(_), Err(error)) | (Err(error), Err(_)) => Err(error),
    };
    let (l, r) = nodes?;
    let cancel = interrupt::listen(ui)?;
    let (mut sum, mut trouble) = (Sum::default(), None);
    let base = path.as_os_str().as_encoded_bytes();
    let mut each = |change: Change| {
        if change.content || !args.content {
            sum.add(&change);
            if !args.stat {
                trouble = tell(&change, ui).err();
            }
        }
        trouble.is_none() && !cancel.is_cancelled() && !ui.is_closed()
    };
    compare_nodes((&left, l), (&right, r), base, &mut each).map_err(of_tree)?;
    if let Some(error) = trouble {
        return Err(error);
    }
    if cancel.is_cancelled() {
        return Err(
            CommandError::interrupted("interrupted; what was shown is right, and not all").kind(Kind::Interrupted)
        );
    }
    sum.say((one, two), ui);
    ui.event(&Last { before: one.id.clone(), after: two.id.clone(), stat: sum })?;
    door::show(&opened.findings, ui);
    Ok(door::ends_for(&opened.findings, Some(two)))
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

    fn say(&self, (one, two): (&lifeboat_vault::PointInfo, &lifeboat_vault::PointInfo), ui: &Ui) {
        let rounded = |bytes| Size(bytes).rounded();
        ui.line(format_args!(
            "from point {} ({}) to point {} ({})",
            one.sequence,
            time(one.taken_at),
            two.sequence,
            time(two.taken_at)
        ));
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
