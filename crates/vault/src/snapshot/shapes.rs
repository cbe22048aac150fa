//! What a host remembers of the shapes of its own points, so that a backup need not read every point of its chain to judge the newest.
//!
//! Invariant: it only spares reading. A point that looks suspect by what is kept is judged once more by what the vault says; what is
//! damaged or missing of it is read again.

use std::collections::BTreeMap;
use std::path::PathBuf;

use minicbor::{Decode, Encode};

use super::PointInfo;
use super::suspicion::{Shape, judge};
use crate::codec;
use crate::error::{Doing, Result};
use crate::finding::note;
use crate::host::{read_file, write_secret_file};
use crate::name;
use crate::open::HostVault;
use crate::snapshot::Badge;

#[derive(Debug, Default, Encode, Decode)]
struct Kept {
    #[n(0)]
    points: Vec<KeptPoint>,
}

#[derive(Debug, Encode, Decode)]
struct KeptPoint {
    #[n(0)]
    sequence: u64,
    #[n(1)]
    files: u64,
    #[n(2)]
    bytes: u64,
    #[n(3)]
    bytes_new: u64,
    #[n(4)]
    bytes_stored: u64,
    #[n(5)]
    accepted: bool,
}

impl HostVault {
    /// What is held against a point that this host has just taken, as `points` would say it: one listing, unless something is.
    pub fn doubts_about(&self, point: &PointInfo) -> Result<Vec<String>> {
        let kept = self.read_shapes(&point.dataset);
        let mut shapes = BTreeMap::new();
        let chain = name::snapshots_of(&point.host, &point.dataset);
        for object in self.storage().list(&chain).doing(|| format!("listing {chain}"))? {
            let Some(sequence) = object.key.strip_prefix(chain.as_str()).and_then(name::parse_number) else { continue };
            let shape = match kept.get(&sequence) {
                Some(shape) => Some(*shape),
                None if sequence == point.sequence => Some(Shape::of(point, false)),
                None => note(self.read_snapshot(&point.host, &point.dataset, sequence), &mut Vec::new())?
                    .map(|snapshot| Shape::of(&snapshot.info(Badge::Unverified), false)),
            };
            shapes.extend(shape.map(|shape| (sequence, shape)));
        }
        shapes.entry(point.sequence).or_insert_with(|| Shape::of(point, false));
        let doubtful = |shapes: &BTreeMap<u64, Shape>| {
            let judged = judge(&shapes.values().copied().collect::<Vec<_>>());
            shapes
                .keys()
                .copied()
                .zip(judged)
                .filter(|(_, doubts)| !doubts.is_empty())
                .map(|(sequence, _)| sequence)
                .collect::<Vec<_>>()
        };
        let mut doubts = Vec::new();
        if doubtful(&shapes).contains(&point.sequence) {
            let said = self.points_of_host(&point.host, &point.dataset)?.points;
            // What somebody has accepted stays accepted.
            for sequence in doubtful(&shapes) {
                if said.iter().any(|said| said.sequence == sequence && said.doubts.is_empty())
                    && let Some(shape) = shapes.get_mut(&sequence)
                {
                    shape.accepted = true;
                }
            }
            doubts = said.into_iter().find(|said| said.id == point.id).map(|said| said.doubts).unwrap_or_default();
        }
        self.keep_shapes(&point.dataset, &shapes)?;
        Ok(doubts)
    }

    fn shapes_path(&self, dataset: &str) -> Result<PathBuf> {
        Ok(self.state().vault_directory(&self.id())?.join(format!("{}.shapes", name::encode(dataset))))
    }

    fn read_shapes(&self, dataset: &str) -> BTreeMap<u64, Shape> {
        let read = || {
            let bytes = read_file(&self.shapes_path(dataset).ok()?).ok()??;
            let (sum, kept) = bytes.split_first_chunk::<32>()?;
            if *sum != crate::crypt::hash(kept) {
                return None;
            }
            codec::decode::<Kept>("what is kept of the points", kept).ok()
        };
        let shape = |kept: KeptPoint| {
            let KeptPoint { sequence, files, bytes, bytes_new, bytes_stored, accepted } = kept;
            (sequence, Shape { files, bytes, bytes_new, bytes_stored, accepted })
        };
        read().unwrap_or_default().points.into_iter().map(shape).collect()
    }

    fn keep_shapes(&self, dataset: &str, shapes: &BTreeMap<u64, Shape>) -> Result<()> {
        let kept = |(sequence, shape): (&u64, &Shape)| {
            let Shape { files, bytes, bytes_new, bytes_stored, accepted } = *shape;
            KeptPoint { sequence: *sequence, files, bytes, bytes_new, bytes_stored, accepted }
        };
        let bytes = codec::encode(&Kept { points: shapes.iter().map(kept).collect() })?;
        let sum = crate::crypt::hash(&bytes);
        write_secret_file(&self.shapes_path(dataset)?, &[&sum[..], &bytes].concat())
    }
}
