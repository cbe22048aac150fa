//! What of an archive the restore of some paths needs, found without reading what cannot be read now.
//!
//! Invariant: a pack that the restore reads is named, or a listing that must be thawed first is, and then it is said that this may
//! not be all. A path that is not in the point is an error before anything is thawed for it.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::RestoreError;
use super::plan::Selection;
use crate::ChunkId;
use crate::codec::Hash;
use crate::error::{Doing, VaultError};
use crate::files::browse::Browser;
use crate::files::tree::{Node, TreeError};
use crate::files::tree_root;
use crate::open::{ArchivedPack, Unlocked, archived_pack};
use crate::prune::Ledger;
use crate::snapshot::PointInfo;
use crate::source::Source;
use crate::storage::Thaw;

/// What must be thawed before some paths of a point can be restored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArchivedNeeds {
    /// Archived packs, thawed already or not.
    pub packs: Vec<ArchivedPack>,
    /// Whether these are all: where a listing among them cannot be read yet, what lies below it is not known.
    pub complete: bool,
}

/// The archived packs that restoring these paths reads, as far as can be seen now.
pub fn archived_needs(
    unlocked: &Unlocked,
    point: &PointInfo,
    paths: &[PathBuf],
) -> Result<ArchivedNeeds, RestoreError> {
    let of_vault = |source| RestoreError::Vault { point: point.id.clone(), source };
    let ledger = unlocked.ledger().map_err(of_vault)?;
    if !ledger.has_slow() {
        return Ok(ArchivedNeeds { packs: Vec::new(), complete: true });
    }
    let source = unlocked.source(&point.dataset).map_err(of_vault)?;
    let root = tree_root(unlocked, point).map_err(of_vault)?;
    let mut walk = Walk {
        unlocked,
        ledger: &ledger,
        source: &source,
        readable: HashMap::new(),
        needed: BTreeSet::new(),
        complete: true,
    };
    walk.tree(&root, paths).map_err(|wrong| match wrong {
        Wrong::Vault(source) => of_vault(source),
        Wrong::Tree(source) => RestoreError::Tree(source),
    })?;
    let packs = walk.needed.iter().filter_map(|hash| archived_pack(&ledger, hash)).collect();
    Ok(ArchivedNeeds { packs, complete: walk.complete })
}

enum Wrong {
    Vault(VaultError),
    Tree(TreeError),
}

struct Walk<'a> {
    unlocked: &'a Unlocked,
    ledger: &'a Ledger,
    source: &'a Source,
    /// Of archived packs with listings: whether they can be read now.
    readable: HashMap<Hash, bool>,
    needed: BTreeSet<Hash>,
    complete: bool,
}

impl Walk<'_> {
    fn tree(&mut self, root: &ChunkId, paths: &[PathBuf]) -> Result<(), Wrong> {
        if !self.can_read([*root].into_iter())? {
            return Ok(());
        }
        let browser = Browser::open(self.source, root).map_err(Wrong::Tree)?;
        let mut waiting = vec![(PathBuf::new(), browser.root().top.clone(), Selection::new(paths))];
        while let Some((path, directory, selection)) = waiting.pop() {
            if !self.can_read(directory.chunk_ids())? {
                continue;
            }
            let mut absent = selection.names();
            for entry in browser.entries(&directory).map_err(Wrong::Tree)? {
                let entry = entry.map_err(Wrong::Tree)?;
                absent.remove(&entry.name[..]);
                let Some(selection) = selection.child(&entry.name) else { continue };
                let at = path.join(named(&entry));
                match entry.is_directory() {
                    true => waiting.push((at, entry, selection)),
                    false if selection.is_all() => self.needs(entry.chunk_ids()),
                    false => return Err(Wrong::Tree(not_there(&at))),
                }
            }
            if let Some(name) = absent.first() {
                let name = OsStr::from_bytes(name);
                return Err(Wrong::Tree(not_there(&path.join(name))));
            }
        }
        Ok(())
    }

    fn needs(&mut self, ids: impl Iterator<Item = ChunkId>) {
        let packs = ids.filter_map(|id| self.source.pack_of(&id));
        self.needed.extend(packs.filter(|hash| self.ledger.is_slow(hash)));
    }

    /// Notes that these chunks are read on the way; answers whether they can be now.
    fn can_read(&mut self, ids: impl Iterator<Item = ChunkId>) -> Result<bool, Wrong> {
        let packs: BTreeSet<Hash> = ids.filter_map(|id| self.source.pack_of(&id)).collect();
        let mut can = true;
        for hash in packs.into_iter().filter(|hash| self.ledger.is_slow(hash)) {
            can &= match self.readable.get(&hash) {
                Some(known) => *known,
                None => {
                    let key = crate::name::pack(&hash.0);
                    let thaw = self.unlocked.storage().thaw_of(&key);
                    let thaw = thaw.doing(|| format!("looking whether {key} can be read")).map_err(Wrong::Vault)?;
                    let can = matches!(thaw, Thaw::Readable);
                    self.readable.insert(hash, can);
                    can
                }
            };
            self.needed.insert(hash);
        }
        self.complete &= can;
        Ok(can)
    }
}

fn named(node: &Node) -> &Path {
    Path::new(OsStr::from_bytes(&node.name))
}

fn not_there(path: &Path) -> TreeError {
    TreeError::Absent { path: path.to_string_lossy().into_owned() }
}
