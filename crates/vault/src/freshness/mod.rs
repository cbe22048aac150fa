//! Proof that a vault was not rolled back as a whole: by what a copy of it holds, or what its hosts recorded in another vault.
//!
//! A storage that shows yesterday's state shows nothing that is wrong in itself. Whoever has seen the vault before remembers its newest
//! heads; who comes for the first time asks a witness. Invariant: a head counts only if somebody whom a roster names signed it, and of what
//! nobody proves it is said that it is unproven.

mod record;

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::codec::Hash;
use crate::error::{Doing, Result, VaultError};
use crate::finding::note;
use crate::object::{self, Place};
use crate::open::Vault;
use crate::roster::Roster;
use crate::snapshot::Snapshot;
use crate::{log, name};

pub(crate) use self::record::{KIND, check as check_record};

/// Somebody who knows how far a vault had come.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Witness {
    /// The copy, or the other vault, as who asked called it.
    pub by: String,
    /// The vault is not older than it was at this moment; absent where the witness knows nothing of it.
    pub at: Option<Timestamp>,
    /// How many chains it speaks for.
    pub chains: u64,
}

#[derive(Debug, Clone)]
struct Head {
    number: u64,
    hash: String,
    by: String,
    at: Timestamp,
}

/// What a witness says: how far each chain had come, and when.
type Told = (Vec<(String, Head)>, Option<Timestamp>);

/// What witnesses have proven of a vault, while it is open.
#[derive(Debug, Default)]
pub(crate) struct Witnessed {
    heads: BTreeMap<String, Head>,
    witnesses: Vec<Witness>,
}

impl Witnessed {
    pub(crate) fn head(&self, chain: &str) -> Option<(u64, String)> {
        self.heads.get(chain).map(|head| (head.number, head.hash.clone()))
    }

    pub(crate) fn heads_within(&self, prefix: &str) -> Vec<(String, u64)> {
        let within = self.heads.range(prefix.to_owned()..).take_while(|(chain, _)| chain.starts_with(prefix));
        within.map(|(chain, head)| (chain.clone(), head.number)).collect()
    }

    /// Who says that a chain had come so far.
    pub(crate) fn said(&self, chain: &str, number: u64) -> Option<String> {
        let head = self.heads.get(chain).filter(|head| head.number == number)?;
        Some(format!("that {} proves to have been there at {}", head.by, head.at))
    }

    fn add(&mut self, chain: String, head: Head) {
        if self.heads.get(&chain).is_none_or(|kept| kept.number < head.number) {
            self.heads.insert(chain, head);
        }
    }
}

/// Chains whose ends say how far a vault has come.
fn counts(chain: &str) -> bool {
    chain.starts_with("snap/") || chain.starts_with("log/") || chain == name::ROSTER
}

/// The chain that something lies in, and how far it reaches there: gathered log objects as far as the last of them.
fn end_of(place: &Place) -> Option<(String, u64)> {
    match place {
        Place::GatheredLog { dataset, lineage, timeline, span } => {
            Some((log::chain(dataset, lineage, *timeline), span.last))
        }
        other => other.link(),
    }
}

/// The hash of what is last in an object, if all of it is right.
fn hash_at_end(roster: &Roster, key: &str, place: &Place, bytes: &[u8]) -> Result<Hash> {
    if let Place::GatheredLog { dataset, lineage, timeline, span } = place {
        let hashes = log::hashes_in(roster, (dataset, lineage, *timeline), *span, bytes)?;
        return hashes.last().copied().ok_or_else(|| VaultError::damaged(key, "it holds nothing"));
    }
    object::check(roster, key, place, bytes)?;
    Ok(Hash(crate::crypt::hash(bytes)))
}

impl Vault {
    /// Asks a copy of this vault, or another vault that its hosts write to as well, how far this one had come. What is older here is
    /// found rolled back by whatever reads it from now on.
    pub fn hold_against(&self, name: &str, other: &Vault) -> Result<Witness> {
        let (heads, at) = match other.id() == self.id() {
            true => self.heads_of_copy(name, other)?,
            false => self.heads_recorded_in(name, other)?,
        };
        let witness = Witness { by: name.to_owned(), at, chains: heads.len() as u64 };
        {
            let mut witnessed = self.witnessed();
            for (chain, head) in heads {
                witnessed.add(chain, head);
            }
            witnessed.witnesses.retain(|known| known.by != witness.by);
            witnessed.witnesses.push(witness.clone());
        }
        self.check_roster_against_memory()?;
        Ok(witness)
    }

    /// Who was asked, and what they proved.
    pub fn witnesses(&self) -> Vec<Witness> {
        self.witnessed().witnesses.clone()
    }

    /// The ends of a copy's own chains, signed as they are; and when it was made.
    fn heads_of_copy(&self, name: &str, copy: &Vault) -> Result<Told> {
        let roster = copy.roster();
        let records = copy.copy_records()?;
        let recorded = records.iter().filter(|record| record.done && record.signed_by_member).map(|record| record.at);
        let mut at = recorded.max();
        let mut ends: BTreeMap<String, (u64, String)> = BTreeMap::new();
        for prefix in ["snap/", "log/", name::ROSTER] {
            for listed in copy.storage().list(prefix).doing(|| format!("listing {prefix} in {name}"))? {
                if let Some((chain, number)) = Place::of(&listed.key).and_then(|place| end_of(&place)) {
                    let end = ends.entry(chain).or_default();
                    if number >= end.0 {
                        *end = (number, listed.key);
                    }
                }
            }
        }
        let mut heads = Vec::new();
        for (chain, (number, key)) in ends {
            let Some(place) = Place::of(&key) else { continue };
            let read = copy.storage().get(&key).doing(|| format!("reading {key} in {name}"));
            let read = read.and_then(|bytes| hash_at_end(&roster, &key, &place, &bytes).map(|hash| (bytes, hash)));
            // What is damaged there proves nothing.
            let Some((bytes, hash)) = note(read, &mut Vec::new())? else { continue };
            if let Place::Snapshot(host, dataset, number) = &place
                && let Ok(snapshot) = Snapshot::open(&roster, host, dataset, *number, &bytes)
            {
                at = at.max(Some(snapshot.head.stored_at.into()));
            }
            heads.push((chain, (number, hash.to_string())));
        }
        let stamp = at.unwrap_or(Timestamp::UNIX_EPOCH);
        let head = |(number, hash)| Head { number, hash, by: name.to_owned(), at: stamp };
        Ok((heads.into_iter().map(|(chain, end)| (chain, head(end))).collect(), at))
    }
}
