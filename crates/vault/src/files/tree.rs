//! The format of a tree: what a recovery point of files says about names, kinds, metadata and where the bytes are.
//!
//! A tree is a *root object* (one chunk) holding the node of the top directory. A directory's *listing* is a version
//! followed by its nodes, sorted by name; it lies inside the directory's own node while it is small, and as chunks when
//! it is not. So a point that changes little stores little, and a part can be read without the rest.
//!
//! Invariant: what is decoded here may come from a hostile host. A decoded name is one path component, a listing is
//! strictly sorted, and no length is believed before it is checked.

use minicbor::data::Type;
use minicbor::{Decoder, Encoder};
use thiserror::Error;

use super::metadata::{Metadata, Xattrs};
use super::pages::ordinal;
use crate::ChunkId;

/// The first item of a root object.
const ROOT_MAGIC: &str = "lifeboat tree";
/// The version of root objects and listings.
const VERSION: u8 = 1;
/// Linux bounds names at 255 bytes.
const NAME_BYTES_MAX: usize = 255;
/// Linux bounds symbolic links at PATH_MAX.
const TARGET_BYTES_MAX: usize = 4096;
/// More than any file system allows on one file.
const XATTRS_MAX: usize = 4096;
/// A listing of more than a gigabyte is an attack, not a directory.
pub(crate) const LISTING_BYTES_MAX: u64 = 1 << 30;

/// Why a tree could not be read.
#[derive(Debug, Error)]
pub enum TreeError {
    /// The bytes are not what the format says.
    #[error(
        "a directory listing in the recovery point is damaged ({what}); check the vault, then restore another point"
    )]
    Damaged { what: &'static str },
    /// The listing is CBOR that breaks off or has other types than the format says.
    #[error("a directory listing in the recovery point cannot be decoded; check the vault, then restore another point")]
    Undecodable(#[source] minicbor::decode::Error),
    /// A later lifeboat wrote it.
    #[error(
        "the recovery point's tree has format version {found}, this lifeboat reads up to {VERSION}; use a newer lifeboat"
    )]
    Newer { found: u8 },
    /// A name that could lead out of the directory it stands in.
    #[error(
        "the recovery point holds the unsafe name {name:?}; it was not written by an honest host, restore nothing from it"
    )]
    UnsafeName { name: String },
    /// A chunk could not be had.
    #[error("a part of the tree cannot be read from the vault")]
    Chunk(#[source] crate::VaultError),
    /// The path asked for is not in the tree.
    #[error("{path:?} is not in the recovery point; paths count from what was backed up")]
    Absent { path: String },
    /// The path asked for goes through, or is, something else.
    #[error("{path:?} is not a {wanted} in the recovery point")]
    OtherKind { path: String, wanted: &'static str },
}

impl TreeError {
    /// Whether it lies where it must be thawed before it can be read.
    pub fn is_archived(&self) -> bool {
        matches!(self, TreeError::Chunk(error) if error.is_archived())
    }
}

impl From<minicbor::decode::Error> for TreeError {
    fn from(error: minicbor::decode::Error) -> Self {
        TreeError::Undecodable(error)
    }
}

fn damaged<T>(what: &'static str) -> Result<T, TreeError> {
    Err(TreeError::Damaged { what })
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// One path component, any bytes but `/` and NUL; empty only for the top directory.
    pub name: Vec<u8>,
    pub kind: Kind,
    /// Absent for a directory that only exists in the tree, to hold several roots or a stream.
    pub metadata: Option<Metadata>,
    /// Present when the file had more than one name.
    pub link: Option<Link>,
}

/// What stands behind a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Directory(Listing),
    File { size: u64, spans: Vec<Span> },
    Symlink { target: Vec<u8> },
    Fifo,
}

/// Where a directory's entries are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listing {
    Inline(Vec<u8>),
    Stored(Vec<Span>),
}

/// A piece of a file: a part of a chunk, or a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    Data { id: ChunkId, offset: u32, length: u32 },
    Hole { length: u64 },
}

impl Span {
    /// How many bytes of the file it stands for.
    pub fn length(&self) -> u64 {
        match self {
            Span::Data { length, .. } => u64::from(*length),
            Span::Hole { length } => *length,
        }
    }
}

/// Names of one file share the `group`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// From the first name's path, so that an unchanged tree is written alike.
    pub group: [u8; 16],
    /// How many names the file had, in the tree or outside it.
    pub names: u64,
}

impl Node {
    /// The ids of every chunk that the node names itself (not what a stored listing names in turn).
    pub fn chunk_ids(&self) -> impl Iterator<Item = ChunkId> + '_ {
        let spans: &[Span] = match &self.kind {
            Kind::File { spans, .. } | Kind::Directory(Listing::Stored(spans)) => spans,
            _ => &[],
        };
        spans.iter().filter_map(|span| match span {
            Span::Data { id, .. } => Some(*id),
            Span::Hole { .. } => None,
        })
    }

    /// The chunks of a file, each with its place among them.
    pub(crate) fn placed_chunk_ids(&self) -> impl Iterator<Item = (ChunkId, u32)> + '_ {
        let spans: &[Span] = match &self.kind {
            Kind::File { spans, .. } => spans,
            _ => &[],
        };
        let mut position = 0u64;
        spans.iter().filter_map(move |span| {
            let start = position;
            position = position.saturating_add(span.length());
            match span {
                Span::Data { id, offset, .. } => Some((*id, ordinal(start, *offset))),
                Span::Hole { .. } => None,
            }
        })
    }

    /// The bytes of a file; zero for everything else.
    pub fn size(&self) -> u64 {
        match self.kind {
            Kind::File { size, .. } => size,
            _ => 0,
        }
    }

    pub fn is_directory(&self) -> bool {
        matches!(self.kind, Kind::Directory(_))
    }

    /// The node as it stands in a listing.
    pub(crate) fn encoded(&self) -> Vec<u8> {
        const BESIDES: usize = 64;
        const SPAN_BYTES: usize = 48;
        let content = match &self.kind {
            Kind::File { spans, .. } | Kind::Directory(Listing::Stored(spans)) => spans.len() * SPAN_BYTES,
            Kind::Directory(Listing::Inline(bytes)) => bytes.len(),
            Kind::Symlink { target } => target.len(),
            Kind::Fifo => 0,
        };
        let mut out = Vec::with_capacity(BESIDES + self.name.len() + content);
        self.encode(&mut out);
        out
    }

    /// Appends the node to a listing.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        // Writing into a Vec cannot fail.
        let _ = self.try_encode(&mut Encoder::new(out));
    }

    fn try_encode(
        &self,
        e: &mut Encoder<&mut Vec<u8>>,
    ) -> Result<(), minicbor::encode::Error<std::convert::Infallible>> {
        let xattrs = self.metadata.as_ref().map_or(0, |metadata| metadata.xattrs.len());
        let content = match &self.kind {
            Kind::File { .. } => 2,
            Kind::Directory(_) | Kind::Symlink { .. } => 1,
            Kind::Fifo => 0,
        };
        let fields =
            2 + u64::from(self.metadata.is_some()) + content + u64::from(xattrs > 0) + u64::from(self.link.is_some());
        e.map(fields)?;
        e.u8(0)?.bytes(&self.name)?;
        e.u8(1)?.u8(match self.kind {
            Kind::Directory(_) => 0,
            Kind::File { .. } => 1,
            Kind::Symlink { .. } => 2,
            Kind::Fifo => 3,
        })?;
        if let Some(metadata) = &self.metadata {
            e.u8(2)?.array(5)?.u32(metadata.mode)?.u32(metadata.uid)?.u32(metadata.gid)?;
            e.i64(metadata.mtime_seconds)?.u32(metadata.mtime_nanos)?;
        }
        match &self.kind {
            Kind::File { size, spans } => {
                e.u8(3)?.u64(*size)?;
                encode_spans(e, spans)?;
            }
            Kind::Directory(Listing::Inline(bytes)) => {
                e.u8(5)?.bytes(bytes)?;
            }
            Kind::Directory(Listing::Stored(spans)) => encode_spans(e, spans)?,
            Kind::Symlink { target } => {
                e.u8(6)?.bytes(target)?;
            }
            Kind::Fifo => {}
        }
        if let Some(metadata) = self.metadata.as_ref().filter(|_| xattrs > 0) {
            e.u8(7)?.array(metadata.xattrs.len() as u64 * 2)?;
            for (name, value) in &metadata.xattrs {
                e.bytes(name)?.bytes(value)?;
            }
        }
        if let Some(link) = &self.link {
            e.u8(8)?.array(2)?.bytes(&link.group)?.u64(link.names)?;
        }
        Ok(())
    }

    /// Decodes one node; `top` allows the empty name of the top directory.
    pub(crate) fn decode(d: &mut Decoder<'_>, top: bool) -> Result<Node, TreeError> {
        let Some(fields) = d.map()? else { return damaged("a node of open length") };
        let mut name = None;
        let mut kind = None;
        let mut metadata: Option<Metadata> = None;
        let (mut size, mut spans, mut inline, mut target) = (None, None, None, None);
        let (mut xattrs, mut link) = (Vec::new(), None);
        for _ in 0..fields {
            match d.u64()? {
                0 => name = Some(checked_name(d.bytes()?, top)?),
                1 => kind = Some(d.u8()?),
                2 => metadata = Some(decode_metadata(d)?),
                3 => size = Some(d.u64()?),
                4 => spans = Some(decode_pieces(d)?),
                5 => inline = Some(d.bytes()?.to_vec()),
                6 => target = Some(checked_target(d.bytes()?)?),
                7 => xattrs = decode_xattrs(d)?,
                8 => link = Some(decode_link(d)?),
                _ => d.skip()?,
            }
        }
        let Some(name) = name else { return damaged("a node without a name") };
        let kind = match (kind, size, spans, inline, target) {
            (Some(0), None, None, Some(bytes), None) => Kind::Directory(Listing::Inline(bytes)),
            (Some(0), None, Some(spans), None, None) => Kind::Directory(Listing::Stored(spans)),
            (Some(1), Some(size), Some(spans), None, None) if total(&spans) == Some(size) => Kind::File { size, spans },
            (Some(1), ..) => return damaged("a file whose pieces do not make up its length"),
            (Some(2), None, None, None, Some(target)) => Kind::Symlink { target },
            (Some(3), None, None, None, None) => Kind::Fifo,
            _ => return damaged("a node of unknown kind"),
        };
        if let Some(metadata) = &mut metadata {
            metadata.xattrs = xattrs;
        }
        Ok(Node { name, kind, metadata, link })
    }
}

fn total(spans: &[Span]) -> Option<u64> {
    spans.iter().try_fold(0u64, |sum, span| sum.checked_add(span.length())).filter(|sum| *sum <= i64::MAX as u64)
}

fn encode_spans(
    e: &mut Encoder<&mut Vec<u8>>,
    spans: &[Span],
) -> Result<(), minicbor::encode::Error<std::convert::Infallible>> {
    e.u8(4)?;
    encode_pieces(e, spans)
}

/// The pieces alone, as they stand in a node.
pub(crate) fn encode_pieces(
    e: &mut Encoder<&mut Vec<u8>>,
    spans: &[Span],
) -> Result<(), minicbor::encode::Error<std::convert::Infallible>> {
    e.array(spans.len() as u64)?;
    for span in spans {
        match span {
            Span::Data { id, offset, length } => e.array(3)?.bytes(id.as_bytes())?.u32(*offset)?.u32(*length)?,
            Span::Hole { length } => e.u64(*length)?,
        };
    }
    Ok(())
}

pub(crate) fn decode_pieces(d: &mut Decoder<'_>) -> Result<Vec<Span>, TreeError> {
    let Some(count) = d.array()? else { return damaged("pieces of open length") };
    // Nothing is reserved by the count alone: each piece has to be there.
    let mut spans = Vec::new();
    for _ in 0..count {
        if d.datatype()? == Type::Array {
            if d.array()? != Some(3) {
                return damaged("a piece of unknown shape");
            }
            let Ok(id) = <[u8; 32]>::try_from(d.bytes()?) else { return damaged("a chunk id of wrong length") };
            let (offset, length) = (d.u32()?, d.u32()?);
            if offset.checked_add(length).is_none() || length == 0 {
                return damaged("a piece outside any chunk");
            }
            spans.push(Span::Data { id: ChunkId(id), offset, length });
        } else {
            spans.push(Span::Hole { length: d.u64()? });
        }
    }
    Ok(spans)
}

fn decode_metadata(d: &mut Decoder<'_>) -> Result<Metadata, TreeError> {
    if d.array()? != Some(5) {
        return damaged("metadata of unknown shape");
    }
    let (mode, uid, gid) = (d.u32()?, d.u32()?, d.u32()?);
    let (mtime_seconds, mtime_nanos) = (d.i64()?, d.u32()?);
    if mode & !0o7777 != 0 || mtime_nanos >= 1_000_000_000 {
        return damaged("metadata out of range");
    }
    Ok(Metadata { mode, uid, gid, mtime_seconds, mtime_nanos, xattrs: Vec::new() })
}

fn decode_xattrs(d: &mut Decoder<'_>) -> Result<Xattrs, TreeError> {
    let count = d.array()?.unwrap_or(u64::MAX);
    if count % 2 != 0 || count / 2 > XATTRS_MAX as u64 {
        return damaged("attributes of unknown shape");
    }
    let mut xattrs = Vec::new();
    for _ in 0..count / 2 {
        let name = d.bytes()?;
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(&0) {
            return damaged("an attribute with an impossible name");
        }
        xattrs.push((name.to_vec(), d.bytes()?.to_vec()));
    }
    Ok(xattrs)
}

fn decode_link(d: &mut Decoder<'_>) -> Result<Link, TreeError> {
    if d.array()? != Some(2) {
        return damaged("a link of unknown shape");
    }
    let Ok(group) = <[u8; 16]>::try_from(d.bytes()?) else { return damaged("a link group of wrong length") };
    Ok(Link { group, names: d.u64()? })
}

pub(crate) fn checked_name(name: &[u8], top: bool) -> Result<Vec<u8>, TreeError> {
    let safe = !name.is_empty()
        && name != b"."
        && name != b".."
        && name.len() <= NAME_BYTES_MAX
        && !name.iter().any(|byte| *byte == b'/' || *byte == 0);
    if safe || (top && name.is_empty()) {
        Ok(name.to_vec())
    } else {
        let shown = name.get(..name.len().min(80)).unwrap_or_default();
        Err(TreeError::UnsafeName { name: String::from_utf8_lossy(shown).into_owned() })
    }
}

fn checked_target(target: &[u8]) -> Result<Vec<u8>, TreeError> {
    if target.is_empty() || target.len() > TARGET_BYTES_MAX || target.contains(&0) {
        return damaged("a symbolic link to an impossible target");
    }
    Ok(target.to_vec())
}

/// Begins a listing; nodes sorted by name follow.
pub(crate) fn begin_listing() -> Vec<u8> {
    vec![VERSION]
}

/// Walks a listing's nodes, checking each and their order.
#[derive(Debug)]
pub struct Entries {
    bytes: Vec<u8>,
    at: usize,
    last: Option<Vec<u8>>,
}

impl Entries {
    pub(crate) fn new(bytes: Vec<u8>) -> Result<Self, TreeError> {
        match bytes.first() {
            Some(&VERSION) => Ok(Entries { bytes, at: 1, last: None }),
            Some(&found) => Err(TreeError::Newer { found }),
            None => damaged("an empty listing"),
        }
    }

    fn decode_next(&mut self) -> Result<Node, TreeError> {
        let mut d = Decoder::new(self.bytes.get(self.at..).unwrap_or_default());
        let node = Node::decode(&mut d, false)?;
        self.at += d.position();
        if self.last.as_ref().is_some_and(|last| *last >= node.name) {
            return damaged("names twice or out of order");
        }
        self.last = Some(node.name.clone());
        Ok(node)
    }
}

impl Iterator for Entries {
    type Item = Result<Node, TreeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let node = self.decode_next();
        if node.is_err() {
            self.at = usize::MAX; // nothing after a damaged node can be trusted
        }
        Some(node)
    }
}

/// The root object: the top directory and what is good to know before reading on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    pub top: Node,
    /// Files in the tree (names of files, so a file with two names counts twice).
    pub files: u64,
    /// Their lengths, added up.
    pub bytes: u64,
    /// The paths that were backed up, as they were on the host.
    pub sources: Vec<Vec<u8>>,
}

impl Root {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut e = Encoder::new(&mut out);
        // Writing into a Vec cannot fail.
        let _ = (|| {
            e.array(6)?.str(ROOT_MAGIC)?.u8(VERSION)?.u64(self.files)?.u64(self.bytes)?;
            e.array(self.sources.len() as u64)?;
            for source in &self.sources {
                e.bytes(source)?;
            }
            self.top.try_encode(&mut e)
        })();
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, TreeError> {
        let mut d = Decoder::new(bytes);
        if d.array()?.is_none_or(|items| items < 6) || d.str()? != ROOT_MAGIC {
            return damaged("it is not the root of a tree");
        }
        let found = d.u8()?;
        if found != VERSION {
            return Err(TreeError::Newer { found });
        }
        let (files, bytes) = (d.u64()?, d.u64()?);
        let Some(count) = d.array()? else { return damaged("sources of open length") };
        let mut sources = Vec::new();
        for _ in 0..count {
            sources.push(d.bytes()?.to_vec());
        }
        let top = Node::decode(&mut d, true)?;
        if !top.is_directory() || !top.name.is_empty() {
            return damaged("its top is not a directory");
        }
        Ok(Root { top, files, bytes, sources })
    }
}
