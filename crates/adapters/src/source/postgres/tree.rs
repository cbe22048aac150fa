//! A data directory out of the tar archives that `pg_basebackup` writes, stored as a tree of files.
//!
//! Invariant: every entry of the archives is in the tree, under its own path, or there is no tree. The archives come in the server's
//! order, with directories that are gone back to; the tree is written when all of it is known.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use lifeboat_vault::ChunkSink;
use lifeboat_vault::files::{AuthorError, Event, Kind, Metadata, Node, Progress, TreeSummary, TreeWriter};

/// Shorter files are stored whole: what is remembered of their pages would cost more than it saves.
const IN_PLACE_BYTES_MIN: u64 = 128 << 10;
/// A manifest says about 150 bytes of each file.
pub(super) const MANIFEST_BYTES_MAX: u64 = 1 << 30;
pub(super) const MANIFEST: &str = "backup_manifest";

#[derive(Debug, thiserror::Error)]
pub(super) enum TreeError {
    #[error("what the base backup sends is not an archive that can be read")]
    Archive(#[source] std::io::Error),
    #[error("the base backup holds {path:?}, which is {what}; a data directory has no such thing")]
    Strange { path: String, what: &'static str },
    #[error(transparent)]
    Author(#[from] AuthorError),
    #[error("interrupted; nothing of it counts, and what was stored is found again")]
    Cancelled,
}

type Components = Vec<Vec<u8>>;

enum Entry {
    Directory,
    Other(Kind),
}

/// A tree in the making.
pub(super) struct Gathering<'a> {
    writer: TreeWriter<'a>,
    entries: BTreeMap<Components, (Entry, Metadata)>,
    manifest: Vec<u8>,
}

impl<'a> Gathering<'a> {
    /// `pages` is where this host remembers the pages of the cluster's relations.
    pub(super) fn new(sink: &'a dyn ChunkSink, top: Option<Metadata>, pages: &Path) -> Gathering<'a> {
        let writer = TreeWriter::new(sink, top).with_pages(pages);
        Gathering { writer, entries: BTreeMap::new(), manifest: Vec::new() }
    }

    /// Stores what one archive holds, below `prefix`.
    pub(super) fn take_in(
        &mut self,
        archive: &mut dyn Read,
        prefix: &[&[u8]],
        progress: &dyn Progress,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<(), TreeError> {
        let mut archive = tar::Archive::new(archive);
        for entry in archive.entries().map_err(TreeError::Archive)? {
            if is_cancelled() {
                return Err(TreeError::Cancelled);
            }
            let mut entry = entry.map_err(TreeError::Archive)?;
            let path = entry.path_bytes().into_owned();
            let mut place: Components = prefix.iter().map(|part| part.to_vec()).collect();
            place.extend(
                path.split(|byte| *byte == b'/').filter(|part| !matches!(part, [] | [b'.'])).map(<[u8]>::to_vec),
            );
            let metadata = metadata_of(entry.header()).map_err(TreeError::Archive)?;
            if !prefix.is_empty() {
                // The directory that an archive belongs into stands in none.
                let above = prefix.iter().map(|part| part.to_vec()).collect();
                let like = Metadata { mode: 0o700, ..metadata.clone() };
                self.entries.entry(above).or_insert((Entry::Directory, like));
            }
            let shown = || String::from_utf8_lossy(&path).into_owned();
            let stored = match entry.header().entry_type() {
                _ if place.is_empty() => {
                    self.writer.set_metadata(metadata);
                    continue;
                }
                tar::EntryType::Directory => Entry::Directory,
                tar::EntryType::Symlink => {
                    let target = entry.link_name_bytes().map(|target| target.into_owned()).unwrap_or_default();
                    Entry::Other(Kind::Symlink { target })
                }
                tar::EntryType::Regular => {
                    let size = entry.size();
                    let counted = &mut Counted { inner: &mut entry, progress };
                    let spans = match &place[..] {
                        [name] if name == MANIFEST.as_bytes() && size <= MANIFEST_BYTES_MAX => {
                            counted.read_to_end(&mut self.manifest).map_err(TreeError::Archive)?;
                            self.writer.content(&mut self.manifest.as_slice())?
                        }
                        _ if size >= IN_PLACE_BYTES_MIN && is_relation(&place) => {
                            self.writer.content_in_place(&place.join(&b'/'), size, counted)?
                        }
                        _ => self.writer.content(counted)?,
                    };
                    if spans.iter().map(|span| span.length()).sum::<u64>() != size {
                        let cut = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                        return Err(TreeError::Archive(cut));
                    }
                    progress.report(&Event::Files(1));
                    Entry::Other(Kind::File { size, spans })
                }
                _ => {
                    return Err(TreeError::Strange {
                        path: shown(),
                        what: "neither a file nor a directory nor a link",
                    });
                }
            };
            if place.iter().any(|part| part == b"..") {
                return Err(TreeError::Strange { path: shown(), what: "outside of it" });
            }
            self.entries.insert(place, (stored, metadata));
        }
        Ok(())
    }

    /// Adds a file at the top, with the owner of what else stands there.
    pub(super) fn add_file(&mut self, name: &str, content: &[u8]) -> Result<(), TreeError> {
        let like = self.entries.values().find(|(entry, _)| matches!(entry, Entry::Other(Kind::File { .. })));
        let metadata = like.map(|(_, metadata)| Metadata { mode: 0o600, ..metadata.clone() }).unwrap_or_default();
        let spans = self.writer.content(&mut &*content)?;
        let kind = Kind::File { size: content.len() as u64, spans };
        self.entries.insert(vec![name.as_bytes().to_vec()], (Entry::Other(kind), metadata));
        Ok(())
    }

    /// The manifest that came along; empty if none did.
    pub(super) fn manifest(&self) -> &[u8] {
        &self.manifest
    }

    /// Writes the tree.
    pub(super) fn finish(self, source: &Path) -> Result<TreeSummary, TreeError> {
        let mut writer = self.writer;
        let mut inside: Components = Vec::new();
        for (mut place, (entry, metadata)) in self.entries {
            let Some(name) = place.pop() else { continue };
            let shared = inside.iter().zip(&place).take_while(|(one, other)| one == other).count();
            for _ in shared..inside.len() {
                writer.leave()?;
            }
            inside.truncate(shared);
            for part in place.iter().skip(shared) {
                writer.enter(part, None)?;
                inside.push(part.clone());
            }
            match entry {
                Entry::Directory => {
                    writer.enter(&name, Some(metadata))?;
                    inside.push(name);
                }
                Entry::Other(kind) => writer.add(&Node { name, kind, metadata: Some(metadata), link: None })?,
            }
        }
        let source = std::os::unix::ffi::OsStrExt::as_bytes(source.as_os_str()).to_vec();
        Ok(writer.finish(vec![source])?)
    }
}

/// Whether a file is rewritten in place, page by page: a relation's, known by a name of digits in a database's directory.
fn is_relation(place: &[Vec<u8>]) -> bool {
    let (Some(name), Some(top)) = (place.last(), place.first()) else { return false };
    let within = matches!(top.as_slice(), b"base" | b"global" | b"pg_tblspc") && place.len() > 1;
    within && name.first().is_some_and(u8::is_ascii_digit)
}

fn metadata_of(header: &tar::Header) -> std::io::Result<Metadata> {
    let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    Ok(Metadata {
        mode: header.mode()? & 0o7777,
        uid: number(header.uid()?),
        gid: number(header.gid()?),
        mtime_seconds: i64::try_from(header.mtime()?).unwrap_or(i64::MAX),
        mtime_nanos: 0,
        xattrs: Vec::new(),
    })
}

/// Tells how much was read.
struct Counted<'a> {
    inner: &'a mut dyn Read,
    progress: &'a dyn Progress,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.progress.report(&Event::Bytes(read as u64));
        Ok(read)
    }
}
