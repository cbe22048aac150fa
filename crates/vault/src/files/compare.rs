//! What differs between two trees, in time that goes with the difference: directories that are alike are not opened.
//!
//! Invariant: "changed" is said of what is different, never of what was merely cut into other pieces: then contents are compared.

use std::ops::Range;

use super::browse::Browser;
use super::read::FileReader;
use super::tree::{Entries, Kind, Node, Span, TreeError};

/// Both sides of a comparison of contents, a stretch at a time.
const COMPARE_BYTES: usize = 256 << 10;

/// One path that is not alike on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// From the top, without a slash at either end.
    pub path: Vec<u8>,
    /// Absent for what was added.
    pub before: Option<Node>,
    /// Absent for what was removed.
    pub after: Option<Node>,
    /// The bytes (or the kind, or a link's target) differ.
    pub content: bool,
    /// Mode, owner, time of change or attributes differ.
    pub metadata: bool,
}

/// Whether a comparison goes on.
pub type GoOn = bool;

/// Compares two trees and tells every change, in the order of the names.
pub fn compare_trees(
    before: &Browser<'_>,
    after: &Browser<'_>,
    each: &mut dyn FnMut(Change) -> GoOn,
) -> Result<(), TreeError> {
    compare_nodes((before, before.root().top.clone()), (after, after.root().top.clone()), b"", each)
}

/// Compares two nodes, which may be parts of their trees; paths count from them.
pub fn compare_nodes(
    (before, left): (&Browser<'_>, Node),
    (after, right): (&Browser<'_>, Node),
    path: &[u8],
    each: &mut dyn FnMut(Change) -> GoOn,
) -> Result<(), TreeError> {
    let mut comparison = Comparison { before, after, each, stopped: false };
    comparison.pair(path.to_vec(), Some(left), Some(right))
}

struct Comparison<'a> {
    before: &'a Browser<'a>,
    after: &'a Browser<'a>,
    each: &'a mut dyn FnMut(Change) -> GoOn,
    stopped: bool,
}

/// One side's entries with a look ahead.
struct Side(Option<Entries>, Option<Node>);

impl Side {
    fn open(browser: &Browser<'_>, node: Option<&Node>) -> Result<Side, TreeError> {
        let entries = node.filter(|node| node.is_directory()).map(|node| browser.entries(node)).transpose()?;
        let mut side = Side(entries, None);
        side.advance()?;
        Ok(side)
    }

    fn advance(&mut self) -> Result<Option<Node>, TreeError> {
        let next = self.0.as_mut().and_then(Iterator::next).transpose()?;
        Ok(std::mem::replace(&mut self.1, next))
    }
}

impl Comparison<'_> {
    /// Tells what differs between two nodes of the same path, and below them.
    fn pair(&mut self, path: Vec<u8>, left: Option<Node>, right: Option<Node>) -> Result<(), TreeError> {
        // A hostile tree may be deep; its own paths bound it.
        let mut waiting = vec![(path, left, right)];
        while let Some((path, left, right)) = waiting.pop() {
            if self.stopped {
                return Ok(());
            }
            let below = left.as_ref().is_some_and(Node::is_directory) || right.as_ref().is_some_and(Node::is_directory);
            let alike = matches!((&left, &right), (Some(l), Some(r)) if l.kind == r.kind);
            let inner = (below && !alike).then(|| (left.clone(), right.clone()));
            self.tell(&path, left, right)?;
            if let Some((left, right)) = inner {
                let mut found = self.entries(&path, left.as_ref(), right.as_ref())?;
                found.reverse();
                waiting.append(&mut found);
            }
        }
        Ok(())
    }

    /// The entries of either side that are not alike, in the order of their names.
    #[allow(clippy::type_complexity)] // a path and what stands there on each side
    fn entries(
        &self,
        path: &[u8],
        left: Option<&Node>,
        right: Option<&Node>,
    ) -> Result<Vec<(Vec<u8>, Option<Node>, Option<Node>)>, TreeError> {
        let (mut left, mut right) = (Side::open(self.before, left)?, Side::open(self.after, right)?);
        let mut found = Vec::new();
        loop {
            let order = match (&left.1, &right.1) {
                (None, None) => return Ok(found),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(l), Some(r)) => l.name.cmp(&r.name),
            };
            let l = if order.is_le() { left.advance()? } else { None };
            let r = if order.is_ge() { right.advance()? } else { None };
            if l == r {
                continue;
            }
            let name = l.as_ref().or(r.as_ref()).map(|node| node.name.as_slice()).unwrap_or_default();
            found.push((joined(path, name), l, r));
        }
    }

    fn tell(&mut self, path: &[u8], before: Option<Node>, after: Option<Node>) -> Result<(), TreeError> {
        let (content, metadata) = match (&before, &after) {
            (Some(l), Some(r)) => (self.content_differs(l, r)?, l.metadata != r.metadata),
            _ => (true, true),
        };
        if content || metadata {
            self.stopped = !(self.each)(Change { path: path.to_vec(), before, after, content, metadata });
        }
        Ok(())
    }

    fn content_differs(&self, left: &Node, right: &Node) -> Result<bool, TreeError> {
        Ok(match (&left.kind, &right.kind) {
            (Kind::Directory(_), Kind::Directory(_)) => false, // its entries are told one by one
            (Kind::File { size, spans }, Kind::File { size: other_size, spans: other_spans }) => {
                size != other_size || (spans != other_spans && self.bytes_differ(left, right)?)
            }
            (left, right) => left != right,
        })
    }

    /// Only where the two have other pieces, bytes are compared.
    fn bytes_differ(&self, left: &Node, right: &Node) -> Result<bool, TreeError> {
        let (Kind::File { spans: one, .. }, Kind::File { spans: two, .. }) = (&left.kind, &right.kind) else {
            return Ok(true);
        };
        let mut left = FileReader::open(self.before.source(), left)?;
        let mut right = FileReader::open(self.after.source(), right)?;
        let mut buffers = (vec![0; COMPARE_BYTES], vec![0; COMPARE_BYTES]);
        for Range { mut start, end } in differing(one, two) {
            while start < end {
                let now = (end - start).min(COMPARE_BYTES as u64) as usize;
                let read = left.read_at(start, buffers.0.get_mut(..now).unwrap_or_default())?;
                let other = right.read_at(start, buffers.1.get_mut(..now).unwrap_or_default())?;
                if read != now || buffers.0.get(..read) != buffers.1.get(..other) {
                    return Ok(true);
                }
                start += now as u64;
            }
        }
        Ok(false)
    }
}

/// Where two files of one length have other pieces.
fn differing(left: &[Span], right: &[Span]) -> Vec<Range<u64>> {
    let mut found: Vec<Range<u64>> = Vec::new();
    let (mut left, mut right, mut at) = (Pieces::new(left), Pieces::new(right), 0);
    while let (Some(one), Some(two)) = (left.next, right.next) {
        let length = one.length().min(two.length());
        let alike = match (one, two) {
            (Span::Hole { .. }, Span::Hole { .. }) => true,
            (Span::Data { id, offset, .. }, Span::Data { id: other, offset: at, .. }) => (id, offset) == (other, at),
            _ => false,
        };
        match found.last_mut().filter(|last| last.end == at) {
            _ if alike => {}
            Some(last) => last.end += length,
            None => found.push(at..at + length),
        }
        at += length;
        left.advance(length);
        right.advance(length);
    }
    found
}

/// A file's pieces, gone through in steps of any length.
struct Pieces<'a> {
    rest: std::slice::Iter<'a, Span>,
    next: Option<Span>,
}

impl<'a> Pieces<'a> {
    fn new(spans: &'a [Span]) -> Pieces<'a> {
        let mut pieces = Pieces { rest: spans.iter(), next: None };
        pieces.refill();
        pieces
    }

    fn refill(&mut self) {
        self.next = self.rest.by_ref().find(|span| span.length() > 0).copied();
    }

    /// Goes on by no more than what is left of the next piece.
    fn advance(&mut self, by: u64) {
        match &mut self.next {
            Some(Span::Data { offset, length, .. }) if u64::from(*length) > by => {
                (*offset, *length) = (offset.saturating_add(by as u32), *length - by as u32);
            }
            Some(Span::Hole { length }) if *length > by => *length -= by,
            _ => self.refill(),
        }
    }
}

/// A path and a name below it.
pub fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut whole = Vec::with_capacity(path.len() + name.len() + 1);
    whole.extend_from_slice(path);
    if !path.is_empty() && !name.is_empty() {
        whole.push(b'/');
    }
    whole.extend_from_slice(name);
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ChunkId;

    #[test]
    fn only_where_pieces_differ_bytes_are_compared() {
        let data = |chunk: u8, offset, length| Span::Data { id: ChunkId([chunk; 32]), offset, length };
        let hole = |length| Span::Hole { length };
        let before = [data(1, 0, 100), data(2, 0, 100), hole(50), hole(50)];
        assert_eq!(differing(&before, &before), []);
        // Cut otherwise, and the same.
        let cut = [data(1, 0, 30), data(1, 30, 70), data(2, 0, 100), hole(100)];
        assert_eq!(differing(&before, &cut), []);
        let after = [
            data(1, 0, 30),
            data(3, 0, 10),
            data(1, 40, 60),
            data(1, 0, 20),
            data(2, 20, 80),
            hole(20),
            data(4, 0, 80),
        ];
        assert_eq!(differing(&before, &after), [30..40, 100..120, 220..300]);
    }
}
