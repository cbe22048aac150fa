//! A file's bytes at any place: for ranges, comparisons, mounts and archives.
//!
//! Invariant: what is given was verified against its chunk's id; of chunks only few are kept.

use std::collections::VecDeque;
use std::io::{self, Read};

use super::browse::part;
use super::tree::{Kind, Node, Span, TreeError};
use crate::{ChunkId, ChunkSource};

/// Chunks are kept up to this length together, or one that is longer: where pages were rewritten, neighbours lie in several.
const KEPT_BYTES: usize = 16 << 20;

/// An open file of a tree.
pub struct FileReader<'a> {
    source: &'a dyn ChunkSource,
    spans: Vec<Span>,
    /// Where each span ends in the file.
    ends: Vec<u64>,
    /// The one used last comes first.
    kept: VecDeque<(ChunkId, Vec<u8>)>,
    position: u64,
}

impl std::fmt::Debug for FileReader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileReader").field("size", &self.size()).finish_non_exhaustive()
    }
}

impl<'a> FileReader<'a> {
    pub fn open(source: &'a dyn ChunkSource, file: &Node) -> Result<Self, TreeError> {
        let Kind::File { spans, .. } = &file.kind else {
            let path = String::from_utf8_lossy(&file.name).into_owned();
            return Err(TreeError::OtherKind { path, wanted: "file" });
        };
        let ends = ends_of(spans);
        Ok(FileReader { source, spans: spans.clone(), ends, kept: VecDeque::new(), position: 0 })
    }

    /// Goes on with another file of the same data set; what lies in the same chunk is not fetched again.
    pub fn turn_to(&mut self, file: &Node) -> Result<(), TreeError> {
        let other = FileReader::open(self.source, file)?;
        (self.spans, self.ends, self.position) = (other.spans, other.ends, 0);
        Ok(())
    }

    pub fn size(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Where `Read` goes on.
    pub fn seek_to(&mut self, position: u64) {
        self.position = position;
    }

    /// Fills the buffer from `position` on; less only at the file's end.
    pub fn read_at(&mut self, position: u64, buffer: &mut [u8]) -> Result<usize, TreeError> {
        let mut done = 0;
        let mut index = self.ends.partition_point(|end| *end <= position);
        while done < buffer.len() {
            let at = position.saturating_add(done as u64);
            let (Some(span), Some(end)) = (self.spans.get(index), self.ends.get(index)) else { break };
            let start = end - span.length();
            let now = (end.saturating_sub(at)).min((buffer.len() - done) as u64) as usize;
            let Some(place) = buffer.get_mut(done..done + now) else { break };
            match *span {
                Span::Hole { .. } => place.fill(0),
                Span::Data { id, offset, length } => {
                    let from = (at - start) as usize;
                    let chunk = self.chunk(id)?;
                    let data = part(chunk, offset, length)?;
                    place.copy_from_slice(data.get(from..from + now).unwrap_or_default());
                }
            }
            done += now;
            index += 1;
        }
        Ok(done)
    }

    fn chunk(&mut self, id: ChunkId) -> Result<&[u8], TreeError> {
        let found = self.kept.iter().position(|(kept, _)| *kept == id);
        if found != Some(0) {
            let chunk = match found.and_then(|place| self.kept.remove(place)) {
                Some((_, chunk)) => chunk,
                None => self.source.get(&id).map_err(TreeError::Chunk)?,
            };
            let mut room = KEPT_BYTES.saturating_sub(chunk.len());
            let mut stays = |(_, kept): &(ChunkId, Vec<u8>)| {
                let fits = kept.len() <= room;
                room = if fits { room - kept.len() } else { 0 };
                fits
            };
            self.kept.retain(&mut stays);
            self.kept.push_front((id, chunk));
        }
        Ok(self.kept.front().map(|(_, bytes)| bytes.as_slice()).unwrap_or_default())
    }
}

/// Where each span ends in its file.
pub fn ends_of(spans: &[Span]) -> Vec<u64> {
    let add = |sum: &mut u64, span: &Span| {
        *sum = sum.saturating_add(span.length());
        Some(*sum)
    };
    spans.iter().scan(0, add).collect()
}

impl Read for FileReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.read_at(self.position, buffer).map_err(io::Error::other)?;
        self.position += read as u64;
        Ok(read)
    }
}
