//! A stream of bytes as a tree of one file: what a database source hands over.

use std::io::Read;
use std::sync::atomic::AtomicBool;

use super::assemble::{Assembler, Folder};
use super::large::Segments;
use super::work::{Crew, SEGMENT_BYTES};
use super::{BackupError, TreeSummary, available_threads};
use crate::ChunkSink;
use crate::files::chunk::Cut;
use crate::files::metadata::Metadata;
use crate::files::tree::{Kind, Node, Span};
use crate::files::{Event, Progress};

/// Stores everything `content` yields as a file called `name` at the top of a tree of its own.
///
/// `cut` is `Cut::PAGES` for files that are rewritten in place, `Cut::Content` otherwise. Runs of zeros are stored as
/// any other bytes; the same bytes are stored once.
pub fn backup_bytes(
    sink: &dyn ChunkSink,
    name: &str,
    content: &mut dyn Read,
    cut: Cut,
    metadata: Option<Metadata>,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<TreeSummary, BackupError> {
    let assembler = Assembler::new(sink, None, progress);
    let crew = Crew::beside(&assembler, cancel, available_threads());
    let streamed = std::thread::scope(|scope| {
        (0..crew.workers()).for_each(|_| drop(scope.spawn(|| crew.run())));
        let streamed = store(&crew, name, content, cut);
        crew.close();
        streamed
    });
    let spans = match assembler.failure() {
        Some(error) => return Err(error),
        None => streamed?,
    };
    let size = spans.iter().map(Span::length).sum();
    let node = Node { name: name.as_bytes().to_vec(), kind: Kind::File { size, spans }, metadata, link: None };
    let folder = Folder::new(Vec::new(), None, std::path::PathBuf::new(), 1, None, 0);
    assembler.fill_file(&folder, 0, Some((node, None)));
    assembler.release(&folder);
    if let Some(error) = assembler.failure() {
        return Err(error);
    }
    assembler.finish(Vec::new())
}

/// Reads to the end, and has what was read stored by all threads meanwhile.
fn store(crew: &Crew<'_>, name: &str, content: &mut dyn Read, cut: Cut) -> Result<Vec<Span>, BackupError> {
    let assembler = crew.assembler;
    let mut segments = Segments::new(crew, (0, 0), Vec::with_capacity(SEGMENT_BYTES));
    let (mut buffer, mut position, mut ended) = (segments.room(), 0, false);
    while !ended {
        crew.check()?;
        let before = buffer.len();
        let room = (SEGMENT_BYTES - before) as u64;
        Read::take(&mut *content, room).read_to_end(&mut buffer).map_err(BackupError::Stream)?;
        let read = (buffer.len() - before) as u64;
        assembler.note_read(read);
        assembler.progress.report(&Event::Reading { path: std::path::Path::new(name) });
        ended = read < room;
        let pieces = assembler.chunker.cut(cut, &buffer, position, ended);
        position += pieces.last().map_or(0, |piece| piece.end) as u64;
        buffer = segments.store(buffer, pieces)?;
    }
    Ok(segments.finish()?.0)
}
