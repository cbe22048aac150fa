//! Which full snapshot and which log objects lead to a wanted moment.
//!
//! Invariant: the pieces of a way follow its snapshot and one another without a hole; a hole is an error that names the
//! position, never the end of the way.

use jiff::Timestamp;
use lifeboat_core::runbook::Target;
use lifeboat_vault::{Badge, LogEntry, PointInfo, Position, Severity, Vault, VaultError};

#[derive(Debug, thiserror::Error)]
pub(super) enum ChainError {
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error("the vault holds no recovery point of `{dataset}`{until}; name another vault, or another time")]
    NoPoint { dataset: String, until: String },
    #[error("the vault holds no recovery point `{id}` of `{dataset}`; `lifeboat points` lists what there is")]
    NoSuchPoint { dataset: String, id: String },
    #[error(
        "`{dataset}` has no log of PostgreSQL's, which alone has {what}; name a time (--at) or a recovery point (--point)"
    )]
    NoPlaces { dataset: String, what: &'static str },
    #[error("`{text}` is not a time; write it as 2026-11-21T14:00:00Z")]
    Time {
        text: String,
        #[source]
        source: jiff::Error,
    },
    #[error(
        "the log of `{dataset}` has a hole: after {after} comes a piece that begins with {found}; restore from another vault, or to a time before {until}"
    )]
    Hole { dataset: String, after: String, found: u64, until: Timestamp },
    #[error("the log of `{dataset}` is not whole: {what}; restore from another vault, or to {until} or a time before")]
    Damaged {
        dataset: String,
        what: String,
        until: Timestamp,
        /// The last position before the damage.
        counter: u64,
    },
}

/// As people and reports see a position.
pub(super) fn position_text(position: &Position) -> String {
    format!("{}:{}:{}", position.lineage, position.timeline, position.counter)
}

/// The way to a moment: a snapshot, and the pieces to apply to it.
#[derive(Debug, Clone)]
pub(super) struct Way {
    pub(super) base: PointInfo,
    pub(super) pieces: Vec<LogEntry>,
    /// Everything committed up to then is in the result.
    pub(super) reaches: Timestamp,
    pub(super) is_final: bool,
    pub(super) tail: Option<LogEntry>,
    /// Lineages that this one has taken the place of, in this vault.
    pub(super) superseded: Vec<String>,
    /// What is wrong with the vault's recovery points, whether it matters here or not.
    pub(super) notes: Vec<String>,
}

/// Up to where a chain is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bound {
    End,
    Time(Timestamp),
    /// And on to the first piece beyond it, for who stops within a piece.
    BeyondTime(Timestamp),
    /// The same, of a place in the log.
    BeyondPlace(u64),
}

impl Bound {
    fn time(self) -> Option<Timestamp> {
        match self {
            Bound::Time(until) | Bound::BeyondTime(until) => Some(until),
            Bound::End | Bound::BeyondPlace(_) => None,
        }
    }
}

/// When the target is reached; none for the newest.
pub(super) fn until(dataset: &str, target: &Target) -> Result<Option<Timestamp>, ChainError> {
    let no_places = |what| Err(ChainError::NoPlaces { dataset: dataset.to_owned(), what });
    match target {
        Target::At(text) => text.parse().map(Some).map_err(|source| ChainError::Time { text: text.clone(), source }),
        Target::Newest | Target::Point(_) => Ok(None),
        Target::Position(_) => no_places("positions to restore to"),
        Target::Named(_) => no_places("named restore points"),
    }
}

/// Finds the way that comes nearest to the target.
pub(super) fn find(vault: &Vault, dataset: &str, target: &Target) -> Result<Way, ChainError> {
    search(vault, dataset, target, false)
}

/// As `find`; a moment's way goes on to the first piece beyond it, for who stops within a piece.
pub(super) fn find_beyond(vault: &Vault, dataset: &str, target: &Target) -> Result<Way, ChainError> {
    search(vault, dataset, target, true)
}

fn search(vault: &Vault, dataset: &str, target: &Target, beyond: bool) -> Result<Way, ChainError> {
    let points = vault.points(Some(dataset))?;
    let notes: Vec<String> = points.findings.iter().map(|finding| finding.message.clone()).collect();
    if let Target::Point(id) = target {
        let base = points.points.into_iter().find(|point| &point.id == id);
        let base = base.ok_or_else(|| ChainError::NoSuchPoint { dataset: dataset.to_owned(), id: id.clone() })?;
        return Ok(Way {
            reaches: base.taken_at,
            is_final: base.final_mark,
            base,
            pieces: Vec::new(),
            tail: None,
            superseded: Vec::new(),
            notes,
        });
    }
    let until = until(dataset, target)?;
    let bound = match until {
        None => Bound::End,
        Some(until) if beyond => Bound::BeyondTime(until),
        Some(until) => Bound::Time(until),
    };
    let mut best: Option<Way> = None;
    let mut notes = notes;
    let (mut in_stream, mut superseded) = (false, Vec::new());
    for base in candidates(points.points, until) {
        // A writer begins a chain only after its last one has ended, whatever clocks say of either.
        if let Some(position) = &base.position
            && std::mem::replace(&mut in_stream, true)
            && until.is_none()
        {
            superseded.push(position.lineage.clone());
            continue;
        }
        let way = match (follow(vault, dataset, base, bound), &best) {
            (Ok(way), _) => way,
            // The same writer has begun a newer chain since, with a full snapshot: nothing of this one is needed.
            (Err(ChainError::Damaged { what, .. }), Some(newer)) if newer.base.position.is_some() => {
                notes.push(what);
                continue;
            }
            (Err(error), _) => return Err(error),
        };
        if best.as_ref().is_none_or(|best| way.reaches > best.reaches) {
            best = Some(way);
        }
    }
    best.map(|way| Way { notes, superseded, ..way }).ok_or_else(|| ChainError::NoPoint {
        dataset: dataset.to_owned(),
        until: until.map(|until| format!(" as old as {until}")).unwrap_or_default(),
    })
}

/// The newest point of each lineage in the highest epoch, and the newest one outside any stream; the newest first.
fn candidates(mut points: Vec<PointInfo>, until: Option<Timestamp>) -> Vec<PointInfo> {
    points.retain(|point| point.badge != Badge::Corrupt && until.is_none_or(|until| point.taken_at <= until));
    let epoch = points.iter().map(|point| point.epoch).max().unwrap_or(0);
    let mut chosen: Vec<PointInfo> = Vec::new();
    // A writer of a former epoch may have gone on writing, unaware; what it wrote since does not count.
    for point in points.into_iter().rev().filter(|point| point.epoch == epoch) {
        let lineage = |point: &PointInfo| point.position.as_ref().map(|position| position.lineage.clone());
        if !chosen.iter().any(|other| lineage(other) == lineage(&point)) {
            chosen.push(point);
        }
    }
    chosen
}

/// The points of streams, chain by chain, the newest first; and what is wrong with any of the data set's.
pub(super) fn chains(vault: &Vault, dataset: &str) -> Result<(Vec<Vec<PointInfo>>, Vec<String>), ChainError> {
    let read = vault.points(Some(dataset))?;
    let mut points = read.points;
    points.retain(|point| point.badge != Badge::Corrupt && point.position.is_some());
    // What a writer of a former epoch went on to write, unaware, comes after what counts.
    points.sort_by_key(|point| point.epoch);
    let mut chains: Vec<Vec<PointInfo>> = Vec::new();
    let of = |point: &PointInfo| point.position.as_ref().map(|at| (at.lineage.clone(), at.timeline));
    for point in points.into_iter().rev() {
        match chains.iter_mut().find(|chain| chain.first().map(of) == Some(of(&point))) {
            Some(chain) => chain.push(point),
            None => chains.push(vec![point]),
        }
    }
    Ok((chains, read.findings.into_iter().map(|finding| finding.message).collect()))
}

/// The way from a base to the end of its chain, or to the first piece beyond a place. What is wrong beyond it does not matter.
pub(super) fn from_base(vault: &Vault, dataset: &str, base: PointInfo, place: Option<u64>) -> Result<Way, ChainError> {
    follow(vault, dataset, base, place.map_or(Bound::End, Bound::BeyondPlace))
}

fn follow(vault: &Vault, dataset: &str, base: PointInfo, bound: Bound) -> Result<Way, ChainError> {
    let mut way = Way {
        reaches: base.taken_at,
        is_final: base.final_mark,
        pieces: Vec::new(),
        tail: None,
        superseded: Vec::new(),
        notes: Vec::new(),
        base,
    };
    if let Some(position) = way.base.position.clone() {
        let onward = walk(vault, dataset, &position, way.base.taken_at, bound)?;
        way.reaches = onward.reaches.map_or(way.reaches, |reaches| reaches.max(way.reaches));
        way.is_final |= onward.is_final;
        (way.pieces, way.tail) = (onward.pieces, onward.tail);
    }
    Ok(way)
}

/// What a chain holds after a position.
#[derive(Debug, Clone, Default)]
pub(super) struct Onward {
    pub(super) pieces: Vec<LogEntry>,
    pub(super) reaches: Option<Timestamp>,
    pub(super) is_final: bool,
    /// The last object that was read.
    pub(super) tail: Option<LogEntry>,
}

impl Onward {
    /// Adds an object of the chain that leads on from `end`.
    fn add(&mut self, dataset: &str, end: &mut Position, entry: LogEntry) -> Result<(), ChainError> {
        let joins = joins(dataset, end, &entry)?;
        self.is_final |= entry.final_mark;
        self.reaches = self.reaches.max(Some(entry.source_time));
        self.tail = Some(entry.clone());
        if joins {
            end.counter = entry.last;
            self.pieces.push(entry);
        }
        Ok(())
    }
}

/// What was appended to a chain whose last object is known, and whose end is applied. Cheap, and sees no hole further on.
pub(super) fn appended(
    vault: &Vault,
    dataset: &str,
    position: &Position,
    tail: &LogEntry,
) -> Result<Onward, ChainError> {
    let mut end = position.clone();
    let mut onward = Onward { tail: Some(tail.clone()), ..Onward::default() };
    let mut last = tail.clone();
    while let Some(entry) = vault.log_next(&last)? {
        last = entry.clone();
        onward.add(dataset, &mut end, entry)?;
    }
    Ok(onward)
}

/// Whether a chain is the one that counts, as far as recovery points tell.
pub(super) fn is_newest(vault: &Vault, dataset: &str, position: &Position) -> Result<bool, ChainError> {
    let newest = candidates(vault.points(Some(dataset))?.points, None).into_iter().next();
    let newest = newest.and_then(|point| point.position);
    Ok(newest.is_some_and(|newest| (newest.lineage, newest.timeline) == (position.lineage.clone(), position.timeline)))
}

/// What follows a position, which everything up to `as_of` is in.
pub(super) fn onward(
    vault: &Vault,
    dataset: &str,
    position: &Position,
    as_of: Timestamp,
) -> Result<Onward, ChainError> {
    walk(vault, dataset, position, as_of, Bound::End)
}

/// Damage after the wanted moment does not matter.
fn walk(
    vault: &Vault,
    dataset: &str,
    position: &Position,
    as_of: Timestamp,
    bound: Bound,
) -> Result<Onward, ChainError> {
    let trail = vault.log_since(dataset, position)?;
    let mut end = position.clone();
    let mut onward = Onward::default();
    let mut whole_to = 0;
    for entry in trail.entries.into_iter().filter(|entry| entry.timeline == position.timeline) {
        match bound {
            Bound::Time(until) | Bound::BeyondTime(until) if entry.source_time > until => {
                // Nothing was committed between the last piece and this mark.
                if entry.mark && entry.last == end.counter {
                    onward.reaches = Some(until);
                } else if matches!(bound, Bound::BeyondTime(_)) {
                    onward.add(dataset, &mut end, entry)?;
                }
                return Ok(onward);
            }
            Bound::BeyondPlace(place) if entry.last > place => {
                // What was committed after the place is not reached.
                let reaches = onward.reaches;
                onward.add(dataset, &mut end, entry)?;
                onward.reaches = reaches;
                return Ok(onward);
            }
            _ => {}
        }
        whole_to = entry.last;
        if entry.last < end.counter {
            onward.tail = Some(entry);
            continue;
        }
        onward.add(dataset, &mut end, entry)?;
    }
    let alarm = trail.findings.into_iter().find(|finding| finding.severity == Severity::Alarm);
    let reached = onward.reaches.unwrap_or(as_of).max(as_of);
    let matters = match bound {
        Bound::BeyondPlace(place) => end.counter < place,
        _ => bound.time().is_none_or(|until| reached < until),
    };
    match alarm.filter(|_| matters) {
        Some(finding) => Err(ChainError::Damaged {
            dataset: dataset.to_owned(),
            what: finding.message,
            until: reached,
            counter: whole_to,
        }),
        None => Ok(onward),
    }
}

/// Whether a piece leads on from `end`; `false` for a mark, or for what is in the state already.
pub(super) fn joins(dataset: &str, end: &Position, entry: &LogEntry) -> Result<bool, ChainError> {
    if entry.last <= end.counter {
        return Ok(false);
    }
    let hole = entry.mark || entry.first > end.counter + 1;
    if hole {
        let after = position_text(end);
        return Err(ChainError::Hole {
            dataset: dataset.to_owned(),
            after,
            found: entry.first,
            until: entry.source_time,
        });
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn entry(first: u64, last: u64, mark: bool) -> LogEntry {
        LogEntry {
            dataset: "d".into(),
            lineage: "l".into(),
            timeline: 1,
            number: 0,
            first,
            last,
            source_time: "2026-11-21T14:00:00Z".parse().unwrap(),
            stored_at: Timestamp::UNIX_EPOCH,
            mark,
            final_mark: false,
            host: "h".into(),
            key: "k".into(),
            bytes: 0,
            hash: String::new(),
        }
    }

    #[test]
    fn a_hole_is_loud_and_an_overlap_is_not() {
        let end = Position { lineage: "l".into(), timeline: 1, counter: 5 };
        let joins = |first, last, mark| super::joins("d", &end, &entry(first, last, mark));
        assert!(joins(6, 9, false).unwrap());
        assert!(joins(4, 7, false).unwrap());
        assert!(!joins(3, 5, false).unwrap());
        assert!(!joins(5, 5, true).unwrap());
        insta::assert_snapshot!(joins(7, 9, false).unwrap_err(), @"the log of `d` has a hole: after l:1:5 comes a piece that begins with 7; restore from another vault, or to a time before 2026-11-21T14:00:00Z");
        assert!(joins(8, 8, true).is_err(), "a mark after what was never seen");
    }

    #[test]
    fn what_a_former_writer_wrote_since_does_not_count() {
        let point = |id: &str, epoch, taken_at: &str, lineage: Option<&str>| PointInfo {
            id: id.into(),
            dataset: "d".into(),
            host: "h".into(),
            sequence: 0,
            taken_at: taken_at.parse().unwrap(),
            stored_at: Timestamp::UNIX_EPOCH,
            position: lineage.map(|lineage| Position { lineage: lineage.into(), timeline: epoch, counter: 0 }),
            files: 1,
            bytes: 1,
            bytes_new: 1,
            bytes_stored: 1,
            badge: Badge::Unverified,
            doubts: Vec::new(),
            epoch,
            schema: None,
            release: None,
            final_mark: false,
            archived: None,
            key: String::new(),
            hash: String::new(),
        };
        let points = vec![
            point("old", 1, "2026-11-21T14:00:00Z", Some("a")),
            point("stale", 1, "2026-11-21T14:09:00Z", Some("a")),
            point("first", 2, "2026-11-21T14:05:00Z", Some("b")),
            point("second", 2, "2026-11-21T14:06:00Z", Some("b")),
            point("broken", 2, "2026-11-21T14:07:00Z", Some("c")),
            point("by-hand", 0, "2026-11-21T14:08:00Z", None),
        ];
        let ids = |until: Option<&str>| -> Vec<String> {
            candidates(points.clone(), until.map(|until| until.parse().unwrap()))
                .into_iter()
                .map(|point| point.id)
                .collect()
        };
        assert_eq!(ids(None), ["broken", "second"]);
        assert_eq!(ids(Some("2026-11-21T14:05:30Z")), ["first"]);
        assert_eq!(ids(Some("2026-11-21T14:01:00Z")), ["old"]);
        assert!(ids(Some("2026-11-21T13:00:00Z")).is_empty());
    }
}
