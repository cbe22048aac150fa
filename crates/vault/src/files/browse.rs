//! Looking into a tree without reading all of it: a directory at a time, a file at a time.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use super::read::FileReader;
use super::tree::{Entries, Kind, LISTING_BYTES_MAX, Listing, Node, Root, Span, TreeError};
use crate::{ChunkId, ChunkSource};

/// How much of a file is copied at once.
const COPY_BYTES: u64 = 1 << 20;

/// An open tree. Reads only what it is asked for.
pub struct Browser<'a> {
    source: &'a dyn ChunkSource,
    root: Root,
}

impl std::fmt::Debug for Browser<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Browser").field("files", &self.root.files).finish_non_exhaustive()
    }
}

impl<'a> Browser<'a> {
    /// Opens the tree that a recovery point names as its root.
    pub fn open(source: &'a dyn ChunkSource, root: &ChunkId) -> Result<Self, TreeError> {
        Ok(Browser { source, root: read_root(source, root)? })
    }

    /// Where its chunks come from.
    pub fn source(&self) -> &'a dyn ChunkSource {
        self.source
    }

    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The entries of a directory, sorted by name.
    pub fn entries(&self, directory: &Node) -> Result<Entries, TreeError> {
        read_entries(self.source, directory)
    }

    /// The node at a path below the top; the empty path is the top itself.
    pub fn find(&self, path: &Path) -> Result<Node, TreeError> {
        let mut node = self.root.top.clone();
        for part in path.components() {
            let name = match part {
                Component::Normal(name) => name.as_bytes(),
                Component::CurDir | Component::RootDir => continue,
                _ => return Err(absent(path)),
            };
            if !node.is_directory() {
                return Err(absent(path));
            }
            let mut entries = self.entries(&node)?;
            node = loop {
                match entries.next() {
                    Some(Ok(entry)) if entry.name == name => break entry,
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(error),
                    None => return Err(absent(path)),
                }
            };
        }
        Ok(node)
    }

    /// Writes a file's content, holes as zeros; how many bytes.
    pub fn copy(&self, file: &Node, to: &mut dyn Write) -> Result<u64, CopyError> {
        let mut reader = FileReader::open(self.source, file).map_err(CopyError::Tree)?;
        let mut buffer = vec![0; COPY_BYTES.min(reader.size()) as usize];
        let mut position = 0;
        loop {
            let read = reader.read_at(position, &mut buffer).map_err(CopyError::Tree)?;
            if read == 0 {
                return Ok(position);
            }
            to.write_all(buffer.get(..read).unwrap_or_default()).map_err(CopyError::Write)?;
            position += read as u64;
        }
    }
}

/// The root object of a tree.
pub fn read_root(source: &dyn ChunkSource, root: &ChunkId) -> Result<Root, TreeError> {
    Root::decode(&source.get(root).map_err(TreeError::Chunk)?)
}

/// The entries of a directory, sorted by name.
pub fn read_entries(source: &dyn ChunkSource, directory: &Node) -> Result<Entries, TreeError> {
    let Kind::Directory(listing) = &directory.kind else {
        return Err(other_kind(&directory.name, "directory"));
    };
    match listing {
        Listing::Inline(bytes) => Entries::new(bytes.clone()),
        Listing::Stored(spans) => {
            let length: u64 = spans.iter().map(Span::length).fold(0, u64::saturating_add);
            if length > LISTING_BYTES_MAX {
                return Err(TreeError::Damaged { what: "a directory of more than a gigabyte of names" });
            }
            let mut bytes = Vec::new();
            for span in spans {
                match span {
                    Span::Data { id, offset, length } => {
                        let chunk = source.get(id).map_err(TreeError::Chunk)?;
                        bytes.extend_from_slice(part(&chunk, *offset, *length)?);
                    }
                    Span::Hole { .. } => return Err(TreeError::Damaged { what: "a directory with a hole" }),
                }
            }
            Entries::new(bytes)
        }
    }
}

/// Why a file could not be copied out of a tree.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error(transparent)]
    Tree(TreeError),
    #[error("the file's content could not be written to where it was to go")]
    Write(#[source] io::Error),
}

/// The part of a chunk that a span means.
pub(crate) fn part(chunk: &[u8], offset: u32, length: u32) -> Result<&[u8], TreeError> {
    let start = offset as usize;
    chunk
        .get(start..start.saturating_add(length as usize))
        .ok_or(TreeError::Damaged { what: "a piece that reaches beyond its chunk" })
}

fn absent(path: &Path) -> TreeError {
    TreeError::Absent { path: path.to_string_lossy().into_owned() }
}

fn other_kind(name: &[u8], wanted: &'static str) -> TreeError {
    TreeError::OtherKind { path: String::from_utf8_lossy(name).into_owned(), wanted }
}
