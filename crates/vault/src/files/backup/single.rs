//! A stream of bytes as a tree of one file: what a database source hands over.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use super::assemble::{Assembler, Folder};
use super::segments::Segments;
use super::work::{Crew, SEGMENT_BYTES};
use super::{BackupError, TreeSummary, available_threads};
use crate::ChunkSink;
use crate::files::chunk::Cut;
use crate::files::metadata::Metadata;
use crate::files::pages::Maps;
use crate::files::tree::{Kind, Node, Span};
use crate::files::walk::path_from;
use crate::files::{Event, Progress};

/// What is known of a stream before it is read.
#[derive(Debug, Clone)]
pub struct Stream<'a> {
    /// Of the file that it becomes.
    pub name: &'a str,
    /// `Cut::PAGES` for files that are rewritten in place, `Cut::Content` otherwise.
    pub cut: Cut,
    /// How long it is, about.
    pub bytes: u64,
    pub metadata: Option<Metadata>,
    /// A directory of this host for this vault and data set, in which is kept what is known of the pages of such files. Without it a
    /// changed page costs its block.
    pub pages: Option<&'a Path>,
}

/// Stores everything `content` yields as a file at the top of a tree of its own. Runs of zeros are stored as any other bytes; the same
/// bytes are stored once.
pub fn backup_bytes(
    sink: &dyn ChunkSink,
    stream: &Stream<'_>,
    content: &mut dyn Read,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<TreeSummary, BackupError> {
    let maps = stream.pages.map(|directory| Maps::new(directory, sink.memory_key()));
    let assembler = Assembler::new(sink, None, maps.as_ref(), progress);
    let spans = store(&assembler, stream.name.as_bytes(), (stream.cut, stream.bytes), content, cancel)?;
    let size = spans.iter().map(Span::length).sum();
    let (name, metadata) = (stream.name.as_bytes().to_vec(), stream.metadata.clone());
    let node = Node { name, kind: Kind::File { size, spans }, metadata, link: None };
    let folder = Folder::new(Vec::new(), None, PathBuf::new(), 1, None, 0);
    assembler.fill_file(&folder, 0, Some((node, None)));
    assembler.release(&folder);
    if let Some(error) = assembler.failure() {
        return Err(error);
    }
    let summary = assembler.finish(Vec::new())?;
    Ok(TreeSummary { cache_failure: maps.and_then(|maps| maps.failure()), ..summary })
}

/// Stores a stream; the pieces that a file made of it has, and how many bytes of it were new. `file` names it among those of `maps`.
pub(in crate::files) fn store_stream(
    sink: &dyn ChunkSink,
    maps: Option<&Maps>,
    file: &[u8],
    how: (Cut, u64),
    content: &mut dyn Read,
) -> Result<(Vec<Span>, u64), BackupError> {
    let assembler = Assembler::new(sink, None, maps, &());
    let spans = store(&assembler, file, how, content, &AtomicBool::new(false))?;
    Ok((spans, assembler.bytes_new()))
}

/// Reads to the end, and has what was read stored by all threads meanwhile.
fn store(
    assembler: &Assembler<'_>,
    file: &[u8],
    (cut, bytes): (Cut, u64),
    content: &mut dyn Read,
    cancel: &AtomicBool,
) -> Result<Vec<Span>, BackupError> {
    let crew = Crew::beside(assembler, cancel, available_threads());
    let streamed = std::thread::scope(|scope| {
        (0..crew.workers()).for_each(|_| drop(scope.spawn(|| crew.run())));
        let streamed = read_all(&crew, file, (cut, bytes), content);
        crew.close();
        streamed
    });
    assembler.failure().map_or(streamed, Err)
}

fn read_all(
    crew: &Crew<'_>,
    file: &[u8],
    (cut, bytes): (Cut, u64),
    content: &mut dyn Read,
) -> Result<Vec<Span>, BackupError> {
    let assembler = crew.assembler;
    let mut segments = Segments::new(crew, (0, 0));
    if cut == Cut::PAGES {
        segments.follow_pages(file, bytes);
    }
    let path = path_from(file.to_vec());
    let (mut buffer, mut position, mut ended) = (crew.take_buffer(), 0, false);
    while !ended {
        crew.check()?;
        let before = buffer.len();
        let room = (SEGMENT_BYTES - before) as u64;
        Read::take(&mut *content, room).read_to_end(&mut buffer).map_err(BackupError::Stream)?;
        let read = (buffer.len() - before) as u64;
        assembler.note_read(read);
        assembler.progress.report(&Event::Reading { directory: Path::new(""), name: &path });
        ended = read < room;
        let pieces = assembler.chunker.cut(cut, &buffer, position, ended);
        let length = pieces.last().map_or(0, |piece| piece.end) as u64;
        buffer = segments.store(buffer, position, pieces)?;
        position += length;
    }
    segments.finish()
}
