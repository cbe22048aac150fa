//! Writing a tree without a disk to read it from: out of an archive, or made up for a measurement.
//!
//! Invariant: what is written is what a backup of the same files would have written, names in order and checked, so that whoever
//! reads it cannot tell the difference.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;
use std::path::Path;

use thiserror::Error;

use super::backup::store_stream;
use super::chunk::{Chunker, Cut};
use super::metadata::Metadata;
use super::pages::Maps;
use super::tree::{Kind, Listing, Node, Root, Span, TreeError, begin_listing, checked_name};
use super::{BackupError, TreeSummary};
use crate::{ChunkId, ChunkSink, VaultError};

/// As in a backup.
const INLINE_BYTES_MAX: usize = 16 << 10;
/// What is read of a stream before it is cut.
const WINDOW_BYTES: usize = 16 << 20;

/// Why a tree could not be written.
#[derive(Debug, Error)]
pub enum AuthorError {
    #[error("a part of the tree could not be stored")]
    Store(#[source] VaultError),
    #[error("the tree cannot be made of this")]
    Tree(#[source] TreeError),
    #[error("a file's content could not be read")]
    Read(#[source] std::io::Error),
    #[error("a file that is rewritten in place could not be stored")]
    InPlace(#[source] BackupError),
    #[error("{name:?} comes twice in its directory")]
    Twice { name: String },
}

#[derive(Default)]
struct Open {
    name: Vec<u8>,
    metadata: Option<Metadata>,
    /// Encoded nodes by name.
    nodes: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A tree being written, a directory inside a directory at a time.
pub struct TreeWriter<'a> {
    sink: &'a dyn ChunkSink,
    chunker: Chunker,
    maps: Option<Maps>,
    /// From the top to where names are added now.
    open: Vec<Open>,
    references: Vec<ChunkId>,
    referenced: HashSet<ChunkId>,
    files: u64,
    directories: u64,
    bytes: u64,
    bytes_new: u64,
}

impl std::fmt::Debug for TreeWriter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TreeWriter").field("files", &self.files).finish_non_exhaustive()
    }
}

impl<'a> TreeWriter<'a> {
    pub fn new(sink: &'a dyn ChunkSink, top: Option<Metadata>) -> Self {
        TreeWriter {
            sink,
            chunker: Chunker::new(sink.chunker_seed()),
            maps: None,
            open: vec![Open { metadata: top, ..Open::default() }],
            references: Vec::new(),
            referenced: HashSet::new(),
            files: 0,
            directories: 0,
            bytes: 0,
            bytes_new: 0,
        }
    }

    /// Remembers the pages of files that are rewritten in place in this directory of this host, for this vault and data set, so that the
    /// next tree stores of them what changed.
    pub fn with_pages(mut self, pages: &Path) -> Self {
        self.maps = Some(Maps::new(pages, self.sink.memory_key()));
        self
    }

    /// How many directories are open below the top.
    pub fn depth(&self) -> usize {
        self.open.len().saturating_sub(1)
    }

    /// Goes into a new directory.
    pub fn enter(&mut self, name: &[u8], metadata: Option<Metadata>) -> Result<(), AuthorError> {
        let name = checked_name(name, false).map_err(AuthorError::Tree)?;
        self.open.push(Open { name, metadata, nodes: BTreeMap::new() });
        Ok(())
    }

    /// The metadata of the directory that names are added to, where it became known later.
    pub fn set_metadata(&mut self, metadata: Metadata) {
        if let Some(open) = self.open.last_mut() {
            open.metadata = Some(metadata);
        }
    }

    /// Completes the directory and goes back to the one above it. The top stays open.
    pub fn leave(&mut self) -> Result<(), AuthorError> {
        if self.open.len() > 1
            && let Some(done) = self.open.pop()
        {
            let node = self.complete(done)?;
            self.insert(&node)?;
        }
        Ok(())
    }

    /// Adds anything but a directory.
    pub fn add(&mut self, node: &Node) -> Result<(), AuthorError> {
        checked_name(&node.name, false).map_err(AuthorError::Tree)?;
        if node.is_directory() {
            return Err(AuthorError::Tree(TreeError::Damaged { what: "a directory that was not entered" }));
        }
        if let Kind::File { size, .. } = &node.kind {
            self.files += 1;
            self.bytes += size;
        }
        for id in node.chunk_ids() {
            self.need(id);
        }
        self.insert(node)
    }

    fn insert(&mut self, node: &Node) -> Result<(), AuthorError> {
        let mut encoded = Vec::new();
        node.encode(&mut encoded);
        let before = self.open.last_mut().and_then(|open| open.nodes.insert(node.name.clone(), encoded));
        match before {
            None => Ok(()),
            Some(_) => Err(AuthorError::Twice { name: String::from_utf8_lossy(&node.name).into_owned() }),
        }
    }

    /// Stores a stream of bytes; the pieces that a file made of it has.
    pub fn content(&mut self, content: &mut dyn Read) -> Result<Vec<Span>, AuthorError> {
        let (mut buffer, mut spans, mut ended) = (Vec::new(), Vec::new(), false);
        while !ended {
            let room = WINDOW_BYTES.saturating_sub(buffer.len()) as u64;
            let read = Read::take(&mut *content, room).read_to_end(&mut buffer).map_err(AuthorError::Read)?;
            ended = (read as u64) < room;
            let pieces = self.chunker.cut(Cut::Content, &buffer, 0, ended);
            for piece in &pieces {
                let data = buffer.get(piece.clone()).unwrap_or_default();
                spans.push(Span::Data { id: self.put(data)?, offset: 0, length: data.len() as u32 });
            }
            buffer.drain(..pieces.last().map_or(0, |piece| piece.end));
        }
        Ok(spans)
    }

    /// Stores the content of a file that is rewritten in place and about so long, such as a database's table. `file` is what it is known
    /// by from one backup to the next.
    pub fn content_in_place(
        &mut self,
        file: &[u8],
        bytes: u64,
        content: &mut dyn Read,
    ) -> Result<Vec<Span>, AuthorError> {
        let stored = store_stream(self.sink, self.maps.as_ref(), file, (Cut::PAGES, bytes), content);
        let (spans, new) = stored.map_err(|error| match error {
            BackupError::Stream(error) => AuthorError::Read(error),
            BackupError::Store(error) => AuthorError::Store(error),
            other => AuthorError::InPlace(other),
        })?;
        self.bytes_new += new;
        Ok(spans)
    }

    fn put(&mut self, data: &[u8]) -> Result<ChunkId, AuthorError> {
        let stored = self.sink.put(data).map_err(AuthorError::Store)?;
        if stored.new {
            self.bytes_new += data.len() as u64;
        }
        self.need(stored.id);
        Ok(stored.id)
    }

    fn need(&mut self, id: ChunkId) {
        if self.referenced.insert(id) {
            self.references.push(id);
        }
    }

    fn complete(&mut self, open: Open) -> Result<Node, AuthorError> {
        self.directories += 1;
        let mut listing = begin_listing();
        open.nodes.values().for_each(|encoded| listing.extend_from_slice(encoded));
        let listing = if listing.len() <= INLINE_BYTES_MAX {
            Listing::Inline(listing)
        } else {
            let mut spans = Vec::new();
            for piece in self.chunker.cut_listing(&listing) {
                let data = listing.get(piece).unwrap_or_default();
                spans.push(Span::Data { id: self.put(data)?, offset: 0, length: data.len() as u32 });
            }
            Listing::Stored(spans)
        };
        Ok(Node { name: open.name, kind: Kind::Directory(listing), metadata: open.metadata, link: None })
    }

    /// Completes what is still open, and stores the root.
    pub fn finish(mut self, sources: Vec<Vec<u8>>) -> Result<TreeSummary, AuthorError> {
        while self.depth() > 0 {
            self.leave()?;
        }
        let top = self.open.pop().unwrap_or_default();
        let top = self.complete(top)?;
        let root = Root { top, files: self.files, bytes: self.bytes, sources };
        let root = self.put(&root.encode())?;
        if let Some(maps) = &self.maps {
            maps.sweep();
        }
        Ok(TreeSummary {
            root,
            references: self.references,
            files: self.files,
            directories: self.directories,
            bytes: self.bytes,
            bytes_read: self.bytes,
            bytes_new: self.bytes_new,
            excluded: 0,
            skipped: Vec::new(),
            skipped_count: 0,
            changed: Vec::new(),
            changed_count: 0,
            cache_failure: self.maps.and_then(|maps| maps.failure()),
        })
    }
}
