//! Gathered log objects: a run of old ones in one container, word for word, `log/DATASET/LINEAGE/TIMELINE/gathered/FIRST-LAST`.
//!
//! A stream stores an object every second; millions of small ones make every listing and restore slow, and cost by the request. A
//! pruner puts runs of them into containers that it signs. The hosts' own signatures and the chain of hashes stay as they were, so
//! a reader checks each object as if it lay alone. Invariant: a container adds nothing to what its objects prove; and who is no pruner
//! can put none beside it, not even the host that could sign other objects for the same numbers.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use minicbor::{Decode, Encode};

use super::{Opened, Timeline, chain, number_in, open};
use crate::codec::{self, Hash};
use crate::error::{Doing, Result, VaultError};
use crate::open::Vault;
use crate::prune;
use crate::roster::Roster;
use crate::sign::{Signed, SigningKey};
use crate::storage::Listed;

pub(crate) const KIND: &str = "vault.log.gathered";
/// A container is closed when its objects have grown to this.
pub(crate) const CONTAINER_BYTES: u64 = 4 << 20;
/// The last object may go beyond that, and each costs a few bytes besides; a larger one is no container.
pub(crate) const GATHERED_BYTES_MAX: u64 = 2 * CONTAINER_BYTES;
/// So many objects in one at most.
pub(crate) const CONTAINER_OBJECTS_MAX: u64 = 4096;
/// Containers that were read are kept for their neighbours.
const CONTAINERS_KEPT: usize = 6;

#[derive(Debug, Encode, Decode)]
#[cbor(transparent)]
struct Verbatim(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>);

#[derive(Debug, Encode, Decode)]
struct Body {
    #[n(0)]
    vault: String,
    #[n(1)]
    dataset: String,
    #[n(2)]
    lineage: String,
    #[n(3)]
    timeline: u64,
    #[n(4)]
    first: u64,
    /// The prune that it was made for: its signer must have counted then.
    #[n(5)]
    generation: u64,
    #[n(6)]
    objects: Vec<Verbatim>,
}

/// Which numbers of a timeline a container holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    pub(crate) first: u64,
    pub(crate) last: u64,
}

impl Span {
    pub(crate) fn holds(&self, number: u64) -> bool {
        (self.first..=self.last).contains(&number)
    }

    /// Where it lies below its timeline's chain.
    pub(crate) fn key(&self, chain: &str) -> String {
        format!("{chain}gathered/{:012}-{:012}", self.first, self.last)
    }

    /// The span that `key` wrote like this, below a chain.
    pub(crate) fn parse(rest: &str) -> Option<Span> {
        let (first, last) = rest.strip_prefix("gathered/")?.split_once('-')?;
        let number = |text: &str| {
            let right = text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit());
            right.then(|| text.parse::<u64>().ok()).flatten()
        };
        let span = Span { first: number(first)?, last: number(last)? };
        (span.first <= span.last && span.last - span.first < CONTAINER_OBJECTS_MAX).then_some(span)
    }
}

/// What a listing shows of a timeline.
#[derive(Debug, Default, Clone)]
pub(super) struct Shelf {
    /// Every number that lies there, alone or gathered.
    pub(super) numbers: Vec<u64>,
    spans: BTreeSet<Span>,
}

impl Shelf {
    pub(super) fn of(listed: &[Listed], chain: &str) -> Shelf {
        let mut shelf = Shelf::default();
        for rest in listed.iter().filter_map(|object| object.key.strip_prefix(chain)) {
            shelf.add(rest);
        }
        shelf.settle();
        shelf
    }

    pub(super) fn add(&mut self, rest: &str) {
        if let Some(number) = number_in(rest) {
            self.numbers.push(number);
        } else if let Some(span) = Span::parse(rest) {
            self.spans.insert(span);
        }
    }

    pub(super) fn settle(&mut self) {
        self.numbers.extend(self.spans.iter().flat_map(|span| span.first..=span.last));
        self.numbers.sort_unstable();
        self.numbers.dedup();
    }
}

/// A container whose signature and place were right. What is in it is not checked.
#[derive(Debug)]
pub(crate) struct Container {
    first: u64,
    objects: Vec<Verbatim>,
}

impl Container {
    pub(crate) fn object(&self, number: u64) -> Option<&[u8]> {
        let place = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.objects.get(place).map(|object| object.0.as_slice())
    }

    fn read(roster: &Roster, of: &Timeline<'_>, span: Span, bytes: &[u8]) -> Result<Container> {
        let key = span.key(&chain(of.dataset, of.lineage, of.timeline));
        let signed = Signed::open(KIND, &key, bytes)?;
        let body: Body = codec::decode(&key, &signed.payload)?;
        prune::check_signer(roster, &key, &signed, body.generation)?;
        let here = (body.dataset.as_str(), body.lineage.as_str(), body.timeline, body.first);
        if body.vault != roster.vault || here != (of.dataset, of.lineage, of.timeline, span.first) {
            return Err(VaultError::untrusted(&key, "it belongs to another place"));
        }
        if body.objects.len() as u64 != span.last - span.first + 1 {
            return Err(VaultError::damaged(&key, "it does not hold what its name says"));
        }
        Ok(Container { first: body.first, objects: body.objects })
    }
}

/// Whether these bytes are a container that may lie at this place, all its objects right and each after the one before.
pub(crate) fn check(
    roster: &Roster,
    dataset: &str,
    lineage: &str,
    timeline: u64,
    span: Span,
    bytes: &[u8],
) -> Result<()> {
    let of = Timeline { dataset, lineage, timeline };
    let container = Container::read(roster, &of, span, bytes)?;
    let mut before: Option<Opened> = None;
    for (number, object) in (span.first..).zip(&container.objects) {
        let opened = open(roster, dataset, lineage, timeline, number, &object.0)?;
        if let Some(before) = &before
            && (opened.previous != Some(before.hash) || opened.entry.last < before.entry.last)
        {
            return Err(VaultError::untrusted(&opened.entry.key, "it does not name the object before it"));
        }
        before = Some(opened);
    }
    Ok(())
}

/// The hashes of a container's objects, each checked as `check` does.
pub(crate) fn hashes_in(
    roster: &Roster,
    (dataset, lineage, timeline): (&str, &str, u64),
    span: Span,
    bytes: &[u8],
) -> Result<Vec<Hash>> {
    check(roster, dataset, lineage, timeline, span, bytes)?;
    let container = Container::read(roster, &Timeline { dataset, lineage, timeline }, span, bytes)?;
    Ok(container.objects.iter().map(|object| Hash(crate::crypt::hash(&object.0))).collect())
}

/// Seals a container of these objects, which are one after another from the span's first.
pub(crate) fn seal(
    (vault, dataset, lineage, timeline): (&str, &str, &str, u64),
    span: Span,
    generation: u64,
    objects: Vec<Vec<u8>>,
    signer: &SigningKey,
) -> Result<Vec<u8>> {
    let body = Body {
        vault: vault.to_owned(),
        dataset: dataset.to_owned(),
        lineage: lineage.to_owned(),
        timeline,
        first: span.first,
        generation,
        objects: objects.into_iter().map(Verbatim).collect(),
    };
    Signed::seal(KIND, &codec::encode(&body)?, signer)
}

type Slot = Arc<Mutex<Option<Arc<Container>>>>;

/// What this process has seen of containers.
#[derive(Debug, Default)]
pub(crate) struct Containers {
    /// By chain, as it was last listed.
    spans: HashMap<String, BTreeSet<Span>>,
    read: VecDeque<(String, Slot)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Containers {
    fn slot(&mut self, key: &str) -> Slot {
        if let Some((_, slot)) = self.read.iter().find(|(kept, _)| kept == key) {
            return slot.clone();
        }
        let slot = Slot::default();
        self.read.push_back((key.to_owned(), slot.clone()));
        if self.read.len() > CONTAINERS_KEPT {
            self.read.pop_front();
        }
        slot
    }

    /// Forgets what was read under another roster.
    pub(crate) fn clear(&mut self) {
        self.read.clear();
    }
}

impl Vault {
    pub(super) fn note_containers(&self, chain: &str, shelf: &Shelf) {
        self.containers().spans.insert(chain.to_owned(), shelf.spans.clone());
    }

    /// The container that holds a number, as far as the last listing shows.
    pub(super) fn span_of(&self, chain: &str, number: u64) -> Option<Span> {
        let containers = self.containers();
        let below = containers.spans.get(chain)?.range(..=Span { first: number, last: u64::MAX });
        // Spans of one timeline do not overlap, but for what two pruners made at once.
        below.rev().take(4).find(|span| span.holds(number)).copied()
    }

    /// Reads a container once, however many threads want it.
    pub(super) fn container(&self, of: &Timeline<'_>, span: Span) -> Result<Arc<Container>> {
        let key = span.key(&chain(of.dataset, of.lineage, of.timeline));
        let slot = self.containers().slot(&key);
        let mut kept = lock(&slot);
        if let Some(container) = &*kept {
            return Ok(container.clone());
        }
        let bytes = self.storage().get(&key).doing(|| format!("reading {key}"))?;
        let container = Arc::new(Container::read(&self.roster(), of, span, &bytes)?);
        *kept = Some(container.clone());
        Ok(container)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_one_spelling_and_a_bound() {
        let span = Span { first: 7, last: 4102 };
        let key = span.key("log/d/l/0000000001/");
        assert_eq!(Span::parse(key.strip_prefix("log/d/l/0000000001/").unwrap()), Some(span));
        for wrong in ["gathered/7-9", "gathered/000000000009-000000000007", "gathered/000000000000-000000004096"] {
            assert_eq!(Span::parse(wrong), None, "{wrong}");
        }
    }
}
