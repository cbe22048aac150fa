//! Looking into recovery points: which point is meant, how paths are shown, and the verbs `find`, `diff`, `cat` and `mount`.
//!
//! Invariant: a name from a vault never reaches a terminal with its control characters in force.

pub(crate) mod cat;
pub(crate) mod diff;
pub(crate) mod find;
pub(crate) mod mount;

use std::path::PathBuf;

use lifeboat_core::plan::Archive;
use lifeboat_core::units::Size;
use lifeboat_vault::files::{Browser, Kind, Node, TreeError, tree_root};
use lifeboat_vault::{Badge, Finding, PointInfo, Points, Source, Unlocked, Vault};
use serde::Serialize;

use crate::commands::points::{dataset_named, no_points, time};
use crate::commands::restore::which::{is_meant, moment};
use crate::door::VaultArgs;
use crate::error::{CommandError, Explain};
use crate::ui::Ui;

/// A vault and the keys that open it.
#[derive(Debug, clap::Args)]
pub(crate) struct OpenArgs {
    #[command(flatten)]
    pub(crate) vault: VaultArgs,
    /// A key that opens the vault; may be given several times
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Vec<PathBuf>,
}

/// A vault, open, and its points.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) vault: Unlocked,
    pub(crate) points: Vec<PointInfo>,
    pub(crate) findings: Vec<Finding>,
    /// How what is archived is thawed, by the plan.
    pub(crate) archive: Option<Archive>,
}

impl OpenArgs {
    pub(crate) fn open(&self, ui: &Ui) -> Result<Opened, CommandError> {
        let named = self.vault.find(ui)?;
        let vault = named.unlock(&self.key, ui)?;
        let Points { points, mut findings } = vault.points(None).map_err(CommandError::of_vault)?;
        for finding in vault.unlock_findings() {
            if !findings.contains(&finding) {
                findings.push(finding);
            }
        }
        Ok(Opened { vault, points, findings, archive: named.archive })
    }
}

impl Opened {
    /// The point that a word means: `POINT` (its id, the end of it, its number), `DATASET` (its newest) or `DATASET@TIME`.
    pub(crate) fn point(&self, word: &str) -> Result<&PointInfo, CommandError> {
        if self.points.is_empty() {
            return Err(pruned(&self.vault, word).unwrap_or_else(no_points));
        }
        let meant: Vec<&PointInfo> = self.points.iter().filter(|point| is_meant(point, word)).collect();
        match meant[..] {
            [only] => return Ok(only),
            [] => {}
            _ => {
                let ids: Vec<&str> = meant.iter().map(|point| point.id.as_str()).collect();
                return Err(CommandError::usage(format!("`{word}` may mean several points"))
                    .hint(format!("say which: {}", ids.join(", "))));
            }
        }
        let (name, at) = match word.rsplit_once('@') {
            Some((name, at)) if moment(at).is_ok() => (name, Some(moment(at)?)),
            _ => (word, None),
        };
        let dataset = dataset_named(&self.points, name).map_err(|error| {
            if let Some(error) = pruned(&self.vault, word) {
                return error;
            }
            let error = match word.parse::<u64>() {
                Ok(_) => CommandError::usage(format!("there is no recovery point `{word}`"))
                    .hint("`lifeboat points` lists what there is"),
                Err(_) => error,
            };
            error.hint("a point is named by its id, the end of it, its number, or as DATASET or DATASET@TIME")
        })?;
        let of_it = |point: &&PointInfo| point.dataset == dataset;
        let mut hosts: Vec<&str> = self.points.iter().filter(of_it).map(|point| point.host.as_str()).collect();
        hosts.sort_unstable();
        hosts.dedup();
        if hosts.len() > 1 {
            return Err(CommandError::usage(format!(
                "several hosts have taken points of `{dataset}`: {}",
                hosts.join(", ")
            ))
            .hint("name a point by its id; `lifeboat points` lists them"));
        }
        let usable = |point: &&PointInfo| point.badge != Badge::Corrupt && at.is_none_or(|at| point.taken_at <= at);
        self.points.iter().filter(of_it).rfind(usable).ok_or_else(|| {
            let when = at.map(|at| format!(" as old as {}", time(at))).unwrap_or_default();
            CommandError::failed(format!("there is no sound recovery point of `{dataset}`{when}"))
                .hint("`lifeboat points` lists what there is")
        })
    }

    /// What these points need first, where an error was about what is archived.
    pub(crate) fn to_thaw(&self, error: CommandError, points: &[&PointInfo], ui: &Ui) -> CommandError {
        crate::thaw::explained(error, &self.vault, points, self.archive.as_ref(), ui)
    }

    /// What is needed to look into a point.
    pub(crate) fn tree(&self, point: &PointInfo) -> Result<Tree, CommandError> {
        let root = tree_root(&self.vault, point).map_err(CommandError::of_vault)?;
        let source = self.vault.source(&point.dataset).map_err(CommandError::of_vault)?;
        Ok(Tree { source, root })
    }
}

/// Says that a point is gone because it was pruned, where that is so.
pub(crate) fn pruned(vault: &Vault, word: &str) -> Option<CommandError> {
    let gone = vault.pruned_points().ok()?;
    let number = |id: &str| id.rsplit('/').next().and_then(|number| number.parse::<u64>().ok());
    let is_meant = |id: &str| id == word || id.ends_with(&format!("/{word}")) || word.parse().ok() == number(id);
    let point = gone.iter().find(|point| is_meant(&point.id))?;
    let text = format!("recovery point {} is no more: it was pruned at {}", point.id, time(point.at));
    Some(CommandError::usage(text).hint("`lifeboat points` lists what there is"))
}

/// A point's tree and where its chunks come from.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) source: Source,
    pub(crate) root: lifeboat_vault::ChunkId,
}

impl Tree {
    pub(crate) fn browser(&self) -> Result<Browser<'_>, CommandError> {
        Browser::open(&self.source, &self.root)
            .map_err(|error| of_tree(error).hint("`lifeboat vault check` tells more; another point may be sound"))
    }
}

/// A tree's error under the exit code that it deserves.
pub(crate) fn of_tree(error: TreeError) -> CommandError {
    match error {
        TreeError::Chunk(error) => CommandError::of_vault(error),
        other => CommandError::from(other),
    }
}

/// A path below what was backed up; the path that it had on its host works as well.
pub(crate) fn within<'a>(path: &'a std::path::Path, dataset: &str) -> &'a std::path::Path {
    path.strip_prefix(dataset).unwrap_or(path)
}

/// The node at a path, or an error that names what is near.
pub(crate) fn node_at(browser: &Browser<'_>, path: &std::path::Path) -> Result<Node, CommandError> {
    let error = match browser.find(path) {
        Ok(node) => return Ok(node),
        Err(error @ (TreeError::Absent { .. } | TreeError::OtherKind { .. })) => error,
        Err(other) => return Err(of_tree(other)),
    };
    let mut made = CommandError::from(error).kind(crate::error::Kind::Usage);
    let near = nearest(browser, path);
    if !near.is_empty() {
        made = made.hint(format!("there is: {}", near.join(", ")));
    }
    Err(made.hint("`lifeboat find` searches all points for a name"))
}

/// Names like the first that is not there, in the directory where it would be.
fn nearest(browser: &Browser<'_>, path: &std::path::Path) -> Vec<String> {
    use std::os::unix::ffi::OsStrExt;
    let parts: Vec<&std::ffi::OsStr> = path.iter().collect();
    for depth in (0..parts.len()).rev() {
        let above: PathBuf = parts.iter().take(depth).collect();
        let Ok(directory) = browser.find(&above) else { continue };
        let Ok(entries) = browser.entries(&directory) else { return Vec::new() };
        let wanted =
            parts.get(depth).map(|part| String::from_utf8_lossy(part.as_bytes()).into_owned()).unwrap_or_default();
        let mut near: Vec<(f64, String)> = entries
            .flatten()
            .take(100_000)
            .map(|entry| {
                let name = String::from_utf8_lossy(&entry.name).into_owned();
                let folded = strsim::jaro_winkler(&name.to_lowercase(), &wanted.to_lowercase());
                (folded, shown(above.join(&name).as_os_str().as_bytes()))
            })
            .filter(|(likeness, _)| *likeness > 0.8)
            .collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0));
        return near.into_iter().take(3).map(|(_, path)| format!("`{path}`")).collect();
    }
    Vec::new()
}

/// A path as it may stand on a terminal: control characters and bytes that are no text are escaped.
pub(crate) fn shown(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                c if c.is_control() => text.extend(c.escape_default()),
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// What a node is, for programs.
#[derive(Debug, Serialize)]
pub(crate) struct Described {
    kind: &'static str,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    changed_at: Option<jiff::Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
}

pub(crate) fn described(node: &Node) -> Described {
    let metadata = node.metadata.as_ref();
    Described {
        kind: kind_word(node),
        bytes: node.size(),
        mode: metadata.map(|m| format!("{:04o}", m.mode)),
        uid: metadata.map(|m| m.uid),
        gid: metadata.map(|m| m.gid),
        changed_at: metadata.and_then(|m| jiff::Timestamp::new(m.mtime_seconds, m.mtime_nanos as i32).ok()),
        target: match &node.kind {
            Kind::Symlink { target } => Some(String::from_utf8_lossy(target).into_owned()),
            _ => None,
        },
    }
}

pub(crate) fn kind_word(node: &Node) -> &'static str {
    match node.kind {
        Kind::Directory(_) => "directory",
        Kind::File { .. } => "file",
        Kind::Symlink { .. } => "symlink",
        Kind::Fifo => "fifo",
    }
}

pub(crate) fn size(bytes: u64) -> String {
    Size(bytes).rounded()
}

/// A moment given on the command line.
pub(crate) fn moment_given(text: &Option<String>) -> Result<Option<jiff::Timestamp>, CommandError> {
    text.as_deref().map(moment).transpose()
}

/// A size given on the command line.
pub(crate) fn size_given(text: &Option<String>) -> Result<Option<u64>, CommandError> {
    let parse = |text: &String| {
        text.parse::<Size>()
            .map(|size| size.0)
            .kind(crate::error::Kind::Usage)
            .hint("write it with its unit: 10 MB, 4 GiB, 0 B")
    };
    text.as_ref().map(parse).transpose()
}
