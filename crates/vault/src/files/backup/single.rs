//! A stream of bytes as a tree of one file: what a database source hands over.

use std::io::Read;
use std::sync::atomic::AtomicBool;

use super::assemble::{Assembler, Folder, Order};
use super::work::SEGMENT_BYTES;
use super::{BackupError, TreeSummary, is_set};
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
    let mut buffer = Vec::with_capacity(SEGMENT_BYTES);
    let (mut spans, mut position, mut ended) = (Vec::new(), 0, false);
    while !ended {
        if is_set(cancel) {
            return Err(BackupError::Cancelled);
        }
        let before = buffer.len();
        let room = (SEGMENT_BYTES - before) as u64;
        Read::take(&mut *content, room).read_to_end(&mut buffer).map_err(BackupError::Stream)?;
        let read = (buffer.len() - before) as u64;
        assembler.note_read(read);
        progress.report(&Event::Reading { path: std::path::Path::new(name) });
        ended = read < room;
        let pieces = assembler.chunker.cut(cut, &buffer, position, ended);
        let orders: Vec<Order> = (spans.len()..).take(pieces.len()).map(|piece| (0, 0, piece as u32)).collect();
        let ids = assembler.put_all(&buffer, &pieces, &orders)?;
        spans.extend(pieces.iter().zip(ids).map(|(piece, id)| Span::Data {
            id,
            offset: 0,
            length: piece.len() as u32,
        }));
        let end = pieces.last().map_or(0, |piece| piece.end);
        buffer.drain(..end);
        position += end as u64;
    }
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
