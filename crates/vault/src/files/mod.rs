//! Trees of files: from directories to recovery points and back.
//!
//! Invariant: what is restored is what was backed up, byte for byte and attribute for attribute, or the difference is
//! told; nothing in here panics on what a disk or a vault holds.

mod ahead;
mod author;
mod backup;
mod browse;
mod cache;
mod chunk;
mod compare;
mod disk;
mod exclude;
mod metadata;
mod pages;
mod read;
mod restore;
mod tree;
mod walk;

use std::path::Path;

use crate::{ChunkId, PointInfo, Result, Unlocked, VaultError};

pub use ahead::for_each_frame;
pub use author::{AuthorError, TreeWriter};
pub use backup::{BackupError, BackupOptions, Stream, TreeSummary, backup_bytes, backup_tree};
pub use browse::{Browser, CopyError, read_entries, read_root};
pub use chunk::Cut;
pub use compare::{Change, GoOn, compare_nodes, compare_trees, joined};
pub use disk::{DiskError, DiskOptions, compare_with_disk};
pub use exclude::{ExcludeError, Excludes};
pub use metadata::{Metadata, Xattrs};
pub use read::{FileReader, ends_of};
pub use restore::{ArchivedNeeds, Note, RestoreError, RestoreOptions, Restored, archived_needs, restore_tree};
pub use tree::{Entries, Kind, Link, Listing, Node, Root, Span, TreeError};
pub use walk::Skipped;

/// The root of the tree that a recovery point holds.
pub fn tree_root(unlocked: &Unlocked, point: &PointInfo) -> Result<ChunkId> {
    let root = unlocked.read_root(point)?;
    let id = <[u8; 32]>::try_from(root).map_err(|root| VaultError::Damaged {
        object: point.id.clone(),
        why: format!("its root has {} bytes and is no tree of files", root.len()),
    })?;
    Ok(ChunkId(id))
}

/// What happens while a backup or restore runs. Called from several threads, often: return quickly.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// What is to come in all, once it is known.
    Expected { files: u64, bytes: u64 },
    /// A file has been opened and is about to be read; again, if it was not what it had been when its directory was.
    Reading { directory: &'a Path, name: &'a Path },
    /// So many bytes more were read, or restored.
    Bytes(u64),
    /// So many files more are done.
    Files(u64),
    /// Something will not be in the recovery point.
    Skipped(&'a Skipped),
}

/// Who wants to know.
pub trait Progress: Sync {
    fn report(&self, event: &Event<'_>);
}

/// Nobody wants to know.
impl Progress for () {
    fn report(&self, _: &Event<'_>) {}
}
