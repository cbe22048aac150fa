//! A tree as a tar stream.
//!
//! Invariant: names of one file become one file with links only where they are alike in everything; what is written of a file was verified, and a
//! file that cannot be read ends the archive with an error.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use super::PortableError;
use super::tar::{Entry, TarWriter};
use crate::files::{Browser, Event, FileReader, Kind, Metadata, Node, Progress, Span, joined};
use crate::{ChunkId, ChunkSource};

const STRETCH_BYTES: usize = 1 << 20;

/// What an archive holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Archived {
    pub files: u64,
    pub directories: u64,
    /// The lengths of all files, holes included.
    pub bytes: u64,
}

struct Archive<'a, W: Write> {
    tar: TarWriter<W>,
    reader: Option<FileReader<'a>>,
    source: &'a dyn ChunkSource,
    /// Of each group of names: the first, and what it is.
    firsts: HashMap<[u8; 16], (Vec<u8>, Node)>,
    done: Archived,
    progress: &'a dyn Progress,
    cancel: &'a AtomicBool,
}

/// Writes a recovery point's tree as tar.
pub fn write_tree<W: Write>(
    source: &dyn ChunkSource,
    root: &ChunkId,
    to: W,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<(W, Archived), PortableError> {
    let browser = Browser::open(source, root).map_err(PortableError::Tree)?;
    progress.report(&Event::Expected { files: browser.root().files, bytes: browser.root().bytes });
    let mut archive = Archive {
        tar: TarWriter::new(to),
        reader: None,
        source,
        firsts: HashMap::new(),
        done: Archived::default(),
        progress,
        cancel,
    };
    let mut waiting = vec![(Vec::new(), browser.root().top.clone())];
    while let Some((path, node)) = waiting.pop() {
        if cancel.load(Ordering::Relaxed) {
            return Err(PortableError::Cancelled);
        }
        archive.node(&path, &node)?;
        if node.is_directory() {
            let start = waiting.len();
            for entry in browser.entries(&node).map_err(PortableError::Tree)? {
                let entry = entry.map_err(PortableError::Tree)?;
                waiting.push((joined(&path, &entry.name), entry));
            }
            if let Some(new) = waiting.get_mut(start..) {
                new.reverse();
            }
        }
    }
    let out = archive.tar.finish().map_err(PortableError::Write)?;
    Ok((out, archive.done))
}

impl<W: Write> Archive<'_, W> {
    fn node(&mut self, path: &[u8], node: &Node) -> Result<(), PortableError> {
        let plain = Metadata { mode: if node.is_directory() { 0o755 } else { 0o644 }, ..Metadata::default() };
        let metadata = node.metadata.as_ref().unwrap_or(&plain);
        let directory = match path {
            b"" => b"./".to_vec(),
            path => [path, b"/"].concat(),
        };
        let entry = Entry {
            path,
            mode: metadata.mode,
            uid: metadata.uid,
            gid: metadata.gid,
            mtime: (metadata.mtime_seconds, metadata.mtime_nanos),
            xattrs: &metadata.xattrs,
            ..Entry::default()
        };
        match &node.kind {
            Kind::Directory(_) => {
                self.done.directories += 1;
                self.begin(&Entry { path: &directory, kind: b'5', ..entry })
            }
            Kind::Symlink { target } => self.begin(&Entry { kind: b'2', link: target, ..entry }),
            Kind::Fifo => self.begin(&Entry { kind: b'6', ..entry }),
            Kind::File { size, spans } => {
                self.done.files += 1;
                self.done.bytes += size;
                if let Some(first) = self.first_name(path, node) {
                    return self.begin(&Entry { kind: b'1', link: &first, xattrs: &[], ..entry });
                }
                self.file(entry, node, *size, spans)
            }
        }
    }

    fn begin(&mut self, entry: &Entry<'_>) -> Result<(), PortableError> {
        self.tar.begin(entry).map_err(PortableError::Write)
    }

    /// The first name of a file that has several, where this is a further one.
    fn first_name(&mut self, path: &[u8], node: &Node) -> Option<Vec<u8>> {
        let link = node.link?;
        let bare = Node { name: Vec::new(), ..node.clone() };
        match self.firsts.get(&link.group) {
            Some((first, same)) if *same == bare => Some(first.clone()),
            Some(_) => None,
            None => {
                self.firsts.insert(link.group, (path.to_vec(), bare));
                None
            }
        }
    }

    fn file(&mut self, entry: Entry<'_>, node: &Node, size: u64, spans: &[Span]) -> Result<(), PortableError> {
        let holes = spans.iter().any(|span| matches!(span, Span::Hole { .. }));
        // GNU's map stands beside a name in pax, which has to be text.
        if holes && std::str::from_utf8(entry.path).is_ok() {
            return self.sparse(entry, node, size, spans);
        }
        self.begin(&Entry { kind: b'0', size, ..entry })?;
        self.stretch(node, 0, size)
    }

    /// The map of a file's data, then the data.
    fn sparse(&mut self, entry: Entry<'_>, node: &Node, size: u64, spans: &[Span]) -> Result<(), PortableError> {
        let mut data: Vec<(u64, u64)> = Vec::new();
        let mut at = 0;
        for span in spans {
            if let Span::Data { .. } = span {
                match data.last_mut() {
                    Some((start, length)) if *start + *length == at => *length += span.length(),
                    _ => data.push((at, span.length())),
                }
            }
            at += span.length();
        }
        let whole: u64 = data.iter().map(|(_, length)| length).sum();
        if data.last().is_none_or(|(start, length)| start + length < size) {
            data.push((size, 0));
        }
        let mut map = format!("{}\n", data.len());
        for (start, length) in &data {
            map.push_str(&format!("{start}\n{length}\n"));
        }
        let mut map = map.into_bytes();
        map.resize(map.len().next_multiple_of(512), 0);
        self.begin(&Entry { kind: b'0', size: map.len() as u64 + whole, sparse: Some(size), ..entry })?;
        self.tar.content(&map).map_err(PortableError::Write)?;
        for (start, length) in data {
            self.stretch(node, start, length)?;
        }
        Ok(())
    }

    fn stretch(&mut self, node: &Node, start: u64, length: u64) -> Result<(), PortableError> {
        let mut reader = match self.reader.take() {
            Some(mut reader) => {
                reader.turn_to(node).map_err(PortableError::Tree)?;
                reader
            }
            None => FileReader::open(self.source, node).map_err(PortableError::Tree)?,
        };
        let mut buffer = vec![0; length.min(STRETCH_BYTES as u64) as usize];
        let mut position = start;
        while position < start + length {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(PortableError::Cancelled);
            }
            let now = (start + length - position).min(buffer.len() as u64) as usize;
            let place = buffer.get_mut(..now).unwrap_or_default();
            let read = reader.read_at(position, place).map_err(PortableError::Tree)?;
            if read < now {
                return Err(PortableError::Write(io::Error::other("a file is shorter than its pieces")));
            }
            self.tar.content(place).map_err(PortableError::Write)?;
            self.progress.report(&Event::Bytes(read as u64));
            position += read as u64;
        }
        self.reader = Some(reader);
        Ok(())
    }
}
