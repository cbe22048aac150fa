//! What a writing host does about prunes: it looks for sweeps that came while it was at work, and builds on nothing they took.
//!
//! Invariant: a snapshot names the newest sweep whose deletions its writer has checked all references against.

use std::collections::HashSet;

use crate::codec::{self, Hash};
use crate::error::{Doing, Result, VaultError};
use crate::host::read_file;
use crate::index::{self, MovedName};
use crate::name;
use crate::open::HostVault;
use crate::pack::PackRecord;
use crate::port::ChunkId;
use crate::prune::{Ledger, Rule};
use crate::refs;
use crate::session::{Inherited, inherited_path};
use crate::snapshot::tombstone_key;

impl HostVault {
    /// The prune generation that a snapshot of these references may name. `begun`: what was known when the backup began. Fails where a
    /// sweep since then took something that the snapshot would rest on.
    pub(crate) fn check_against_prunes(
        &self,
        dataset: &str,
        references: &[ChunkId],
        refs: &Hash,
        begun: &Ledger,
    ) -> Result<u64> {
        let ledger = self.ledger()?;
        if ledger.swept_generation != begun.swept_generation && self.obeys(Rule::WriterLooks) {
            self.recheck(dataset, references, refs, &ledger)?;
        }
        Ok(ledger.swept_generation)
    }

    /// Looks anew for everything that a point would rest on.
    fn recheck(&self, dataset: &str, references: &[ChunkId], refs: &Hash, ledger: &Ledger) -> Result<()> {
        let roster = self.roster();
        let storage = self.storage();
        let lost = |what: String| VaultError::SessionFailed {
            why: format!("a prune that began after it took or archived {what}, which it was to build on"),
        };
        let mut needed = HashSet::new();
        refs::check(&**storage, &roster, self.host_name(), dataset, refs, &mut needed)
            .map_err(|error| lost(error.to_string()))?;
        let place = name::refs_of(self.host_name(), dataset);
        if let Some(swept) = needed.iter().find(|hash| ledger.is_swept(&format!("{place}{hash}"))) {
            return Err(lost(format!("{place}{swept}")));
        }
        let listed = storage.list("pack/").doing(|| "listing packs".to_owned())?;
        let there: HashSet<String> = listed.into_iter().map(|o| o.key).filter(|key| !ledger.is_swept(key)).collect();
        let mut missing: HashSet<ChunkId> = references.iter().copied().collect();
        let mut tick_off = |packs: &[PackRecord]| {
            for pack in packs.iter().filter(|pack| there.contains(&name::pack(&pack.hash.0))) {
                if ledger.is_slow(&pack.hash) {
                    continue;
                }
                for (id, _) in pack.frames.iter().flat_map(|frame| frame.chunks()) {
                    missing.remove(&id);
                }
            }
        };
        let chain = name::indexes_of(self.host_name(), dataset);
        for object in storage.list(&chain).doing(|| format!("listing {chain}"))? {
            let keys = std::slice::from_ref(self.state().index_key());
            let last = object.key.strip_prefix(chain.as_str()).unwrap_or_default();
            let read = match (name::parse_number(last), MovedName::parse(last)) {
                (Some(number), _) => index::read(&**storage, &roster, self.host_name(), dataset, number)
                    .and_then(|index| Ok(index.open_body(keys)?.packs)),
                // What it was to build on may have been moved meanwhile.
                (None, Some(of)) => index::read_moved(&**storage, &roster, self.host_name(), dataset, of)
                    .and_then(|moved| Ok(moved.open_body(keys)?.packs)),
                (None, None) => continue,
            };
            match read {
                Ok(packs) => tick_off(&packs),
                Err(e @ VaultError::Storage { .. }) => return Err(e),
                Err(VaultError::WrongKey { .. }) => {}
                Err(e) => self.note_passed_by(&e),
            }
        }
        if let Some(bytes) = read_file(&inherited_path(self, dataset)?)? {
            let inherited = codec::decode::<Inherited>("the inherited index", &bytes)?;
            tick_off(&inherited.packs);
            for (host, of) in self.moved_of_others(dataset, &inherited.indexes)? {
                match self.read_moved_records(&host, dataset, of) {
                    Ok(packs) => tick_off(&packs),
                    // It is not for this host: what is in it counts as gone.
                    Err(e) => tracing::debug!(object = of.key(&host, dataset), "{e}"),
                }
            }
        }
        match missing.len() {
            0 => Ok(()),
            count => Err(lost(format!("{count} chunks"))),
        }
    }

    /// Whether a pruned point bore this number.
    pub(crate) fn was_pruned(&self, dataset: &str, sequence: u64) -> Result<bool> {
        if !self.obeys(Rule::NumbersAreNotReused) {
            return Ok(false);
        }
        let key = tombstone_key(self.host_name(), dataset, sequence);
        match self.storage().get_range(&key, 0, 1) {
            // Where it was folded, the records say so.
            Err(e) if e.is_not_found() => {
                Ok(self.ledger()?.pruned.contains_key(&key.replacen("tombstone/", "snap/", 1)))
            }
            other => {
                other.doing(|| format!("looking for {key}"))?;
                Ok(self.tombstone(&*self.ledger()?, self.host_name(), dataset, sequence)?.is_some())
            }
        }
    }
}
