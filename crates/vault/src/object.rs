//! What an object must be to lie under its key: who guards or copies objects asks this before it takes one in.
//!
//! Needs no private key. Invariant: what passes has the right hash in its name, or a right signature of its kind by somebody whom the
//! roster lets sign it there; what has neither (the text for people apart) is not taken for ours.

use crate::codec;
use crate::error::{Result, VaultError};
use crate::keys::{self, Pair};
use crate::name;
use crate::roster::{self, Roster};
use crate::sign::{PublicKey, Signed};
use crate::storage::{Listed, Put, Storage, StorageError, check_key};
use crate::{copy, freshness, heal, index, log, prune, receipt, refs, snapshot};

/// What a key says about its object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Readme,
    Roster(u64),
    /// A private half as an age file; whose, and its hash.
    KeyFile(PairOf, [u8; 32]),
    Statement(PairOf, u64),
    ChunkKey(String),
    Enrolment(String),
    Pack([u8; 32]),
    Index(String, String, u64),
    /// Where a pruner has moved what was needed of packs.
    Moved(String, String, index::MovedName),
    Refs(String, String, [u8; 32]),
    Snapshot(String, String, u64),
    Log {
        dataset: String,
        lineage: String,
        timeline: u64,
        number: u64,
    },
    /// A run of old log objects in one.
    GatheredLog {
        dataset: String,
        lineage: String,
        timeline: u64,
        span: log::Span,
    },
    Tombstone(String, String, u64),
    Verification(String, String, u64),
    Receipt(String, u64),
    /// A heal list: whose packs, of which data set.
    Heal(String, String),
    /// The record of a copy, and whether it says that it is done.
    Copy(u64, bool),
    /// What a host saw of another vault: which, and the host.
    Witness(String, String, u64),
    /// A record of a prune: generation and step.
    Prune(u64, prune::Step),
    Hold(u64),
    Freeze(u64),
    /// What a pruner asks the storage for the time with.
    Probe,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PairOf {
    Owner,
    Refs,
    Content(String),
}

impl PairOf {
    fn pair(&self) -> Pair<'_> {
        match self {
            PairOf::Owner => Pair::Owner,
            PairOf::Refs => Pair::Refs,
            PairOf::Content(dataset) => Pair::Content(dataset),
        }
    }
}

/// The hash in the name of a pack.
pub(crate) fn pack_hash(key: &str) -> Option<crate::codec::Hash> {
    match Place::of(key)? {
        Place::Pack(hash) => Some(crate::codec::Hash(hash)),
        _ => None,
    }
}

impl Place {
    /// `None` for a key that nothing of this version lies under.
    pub(crate) fn of(key: &str) -> Option<Place> {
        check_key(key).ok()?;
        let parts: Vec<&str> = key.split('/').collect();
        let hash = crate::crypt::unhex::<32>;
        let pair_object = |pair: PairOf, file: &str| match file.rsplit_once('.')? {
            (number, "cert") => Some(Place::Statement(pair, name::parse_number(number)?)),
            (digits, "age") => Some(Place::KeyFile(pair, hash(digits)?)),
            _ => None,
        };
        Some(match parts[..] {
            [name::README] => Place::Readme,
            ["roster", number] => Place::Roster(name::parse_number(number)?),
            ["keys", "owner", file] => pair_object(PairOf::Owner, file)?,
            ["keys", "refs", file] => pair_object(PairOf::Refs, file)?,
            ["keys", "content", dataset, file] => pair_object(PairOf::Content(name::decode(dataset)?), file)?,
            ["keys", "chunk", dataset, _] => Place::ChunkKey(name::decode(dataset)?),
            ["enroll", fingerprint] => Place::Enrolment(fingerprint.to_owned()),
            ["pack", _, digits] => {
                let named = hash(digits)?;
                (name::pack(&named) == key).then_some(Place::Pack(named))?
            }
            ["index", _, _, last] if last.starts_with("moved-") => {
                let (host, dataset, of) = index::parse_moved_key(key)?;
                Place::Moved(host, dataset, of)
            }
            ["index", host, dataset, number] => {
                Place::Index(name::decode(host)?, name::decode(dataset)?, name::parse_number(number)?)
            }
            ["refs", host, dataset, digits] => Place::Refs(name::decode(host)?, name::decode(dataset)?, hash(digits)?),
            ["snap", host, dataset, number] => {
                Place::Snapshot(name::decode(host)?, name::decode(dataset)?, name::parse_number(number)?)
            }
            ["log", dataset, lineage, timeline, "gathered", _] => {
                let (dataset, lineage) = (name::decode(dataset)?, name::decode(lineage)?);
                let timeline = name::parse_number(timeline)?;
                let span = log::Span::parse(key.strip_prefix(&log::chain(&dataset, &lineage, timeline))?)?;
                Place::GatheredLog { dataset, lineage, timeline, span }
            }
            ["log", dataset, lineage, timeline, thousands, rest] => {
                let (dataset, lineage) = (name::decode(dataset)?, name::decode(lineage)?);
                let timeline = name::parse_number(timeline)?;
                let number = log::number_in(&format!("{thousands}/{rest}"))?;
                let is_it = name::log_object(&dataset, &lineage, timeline, number) == key;
                is_it.then_some(Place::Log { dataset, lineage, timeline, number })?
            }
            ["tombstone", host, dataset, number] => {
                Place::Tombstone(name::decode(host)?, name::decode(dataset)?, name::parse_number(number)?)
            }
            ["verify", host, dataset, number, _] => {
                Place::Verification(name::decode(host)?, name::decode(dataset)?, name::parse_number(number)?)
            }
            ["heal", host, dataset, _] => Place::Heal(name::decode(host)?, name::decode(dataset)?),
            ["copy", part] => {
                let (number, done) = copy::parse_record(part)?;
                Place::Copy(number, done)
            }
            ["witness", vault, host, number] => {
                Place::Witness(name::decode(vault)?, name::decode(host)?, name::parse_number(number)?)
            }
            ["prune", ..] => {
                let (generation, step) = prune::parse_key(key)?;
                Place::Prune(generation, step)
            }
            ["hold", number] => Place::Hold(name::parse_number(number)?),
            ["freeze", number] => Place::Freeze(name::parse_number(number)?),
            ["probe", _] => Place::Probe,
            ["receipt", keeper, number] => Place::Receipt(keeper.to_owned(), name::parse_number(number)?),
            _ => return None,
        })
    }

    /// The kind under which the object is signed; `None` where its name (or nothing) vouches for it.
    pub(crate) fn kind(&self) -> Option<&'static str> {
        Some(match self {
            Place::Readme | Place::KeyFile(..) | Place::Pack(_) | Place::Probe => return None,
            Place::Roster(_) => roster::KIND,
            Place::Statement(..) => keys::KIND,
            Place::ChunkKey(_) => keys::CHUNK_KIND,
            Place::Enrolment(_) => roster::ENROLMENT_KIND,
            Place::Index(..) => index::KIND,
            Place::Moved(..) => index::MOVED_KIND,
            Place::Refs(..) => refs::KIND,
            Place::Snapshot(..) => snapshot::KIND,
            Place::Log { .. } => log::KIND,
            Place::GatheredLog { .. } => log::GATHERED_KIND,
            Place::Tombstone(..) => prune::TOMBSTONE_KIND,
            Place::Verification(..) => snapshot::VERIFICATION_KIND,
            Place::Receipt(..) => receipt::KIND,
            Place::Copy(..) => copy::RECORD_KIND,
            Place::Witness(..) => freshness::KIND,
            Place::Prune(_, step) => step.kind(),
            Place::Hold(_) => prune::HOLD_KIND,
            Place::Freeze(_) => prune::FREEZE_KIND,
            Place::Heal(..) => heal::KIND,
        })
    }

    /// The data set that it is part of; `None` for what belongs to the whole vault (and for packs, which do not say).
    pub(crate) fn dataset(&self) -> Option<&str> {
        match self {
            Place::KeyFile(PairOf::Content(dataset), _)
            | Place::Statement(PairOf::Content(dataset), _)
            | Place::ChunkKey(dataset)
            | Place::Index(_, dataset, _)
            | Place::Moved(_, dataset, _)
            | Place::Refs(_, dataset, _)
            | Place::Snapshot(_, dataset, _)
            | Place::Log { dataset, .. }
            | Place::GatheredLog { dataset, .. }
            | Place::Tombstone(_, dataset, _)
            | Place::Heal(_, dataset)
            | Place::Verification(_, dataset, _) => Some(dataset),
            _ => None,
        }
    }

    /// The chain that it is a link of: same number in the same chain, same object.
    pub(crate) fn link(&self) -> Option<(String, u64)> {
        match self {
            Place::Roster(number) => Some((name::ROSTER.to_owned(), *number)),
            Place::Statement(pair, number) => Some((pair.pair().prefix(), *number)),
            Place::Index(host, dataset, number) => Some((name::indexes_of(host, dataset), *number)),
            Place::Snapshot(host, dataset, number) => Some((name::snapshots_of(host, dataset), *number)),
            Place::Log { dataset, lineage, timeline, number } => {
                Some((log::chain(dataset, lineage, *timeline), *number))
            }
            Place::Receipt(keeper, number) => Some((receipt::chain(keeper), *number)),
            _ => None,
        }
    }

    /// What one such object may hold at most.
    pub(crate) fn bytes_max(&self) -> u64 {
        match self {
            Place::Pack(_)
            | Place::Index(..)
            | Place::Moved(..)
            | Place::Refs(..)
            | Place::Log { .. }
            | Place::Prune(..) => crate::storage::OBJECT_BYTES_MAX,
            Place::Snapshot(..) => 32 << 20,
            Place::GatheredLog { .. } => log::GATHERED_BYTES_MAX,
            // A record of a copy lists the packs that it lacks, a heal list those that are bad, a witness every chain that it saw.
            Place::Roster(_) | Place::Receipt(..) | Place::Copy(..) | Place::Heal(..) | Place::Witness(..) => 8 << 20,
            _ => 1 << 20,
        }
    }
}

/// Checks an object's bytes against its key and the roster; answers who signed it, where somebody did.
pub(crate) fn check(roster: &Roster, key: &str, place: &Place, bytes: &[u8]) -> Result<Option<PublicKey>> {
    let Some(kind) = place.kind() else {
        let named = match place {
            Place::Pack(named) | Place::KeyFile(_, named) => *named,
            _ => return Ok(None),
        };
        return match crate::crypt::hash(bytes) == named {
            true => Ok(None),
            false => Err(VaultError::damaged(key, "its bytes are not what its name says")),
        };
    };
    let signed = Signed::open(kind, key, bytes)?;
    let one = One { key, bytes };
    match place {
        Place::Roster(number) => roster.check_version(key, *number, bytes)?,
        Place::Statement(pair, number) => {
            keys::open_statement(roster, pair.pair(), *number, key, bytes)?;
        }
        Place::ChunkKey(dataset) => {
            keys::open_chunk_key(roster, dataset, key, bytes, None)?;
        }
        Place::Enrolment(fingerprint) => {
            // A second request of the same machine has a number after it.
            if Some(roster::requested(roster, key, &signed)?.as_str()) != fingerprint.split('-').next() {
                return Err(VaultError::untrusted(key, "it does not ask for the key that signed it"));
            }
        }
        Place::Index(host, dataset, number) => {
            index::read(&one, roster, host, dataset, *number)?;
        }
        Place::Moved(host, dataset, of) => {
            index::check_moved(roster, host, dataset, *of, bytes)?;
        }
        Place::Refs(host, dataset, named) => {
            refs::read_head(&one, roster, host, dataset, &codec::Hash(*named))?;
        }
        Place::Snapshot(host, dataset, number) => {
            snapshot::Snapshot::open(roster, host, dataset, *number, bytes)?;
        }
        Place::Log { dataset, lineage, timeline, number } => {
            log::check(roster, dataset, lineage, *timeline, *number, bytes)?;
        }
        Place::GatheredLog { dataset, lineage, timeline, span } => {
            log::check_gathered(roster, dataset, lineage, *timeline, *span, bytes)?;
        }
        Place::Tombstone(host, dataset, number) => {
            prune::read_tombstone(&one, roster, host, dataset, *number)?;
        }
        Place::Verification(host, dataset, number) => {
            let snapshot = format!("{}{}", name::snapshots_of(host, dataset), name::number(*number));
            snapshot::check_verification(roster, &snapshot, key, &signed)?;
        }
        Place::Receipt(keeper, number) => receipt::check(roster, keeper, *number, bytes)?,
        Place::Heal(host, dataset) => heal::check_list(roster, key, host, dataset, &signed)?,
        Place::Copy(number, done) => copy::check_record(roster, key, *number, *done, &signed)?,
        Place::Witness(..) => freshness::check_record(roster, key, &signed)?,
        Place::Prune(generation, step) => prune::check_record(roster, *generation, *step, bytes)?,
        Place::Hold(number) => prune::check_hold(roster, *number, key, bytes)?,
        Place::Freeze(number) => prune::check_freeze(roster, *number, key, bytes)?,
        Place::Readme | Place::KeyFile(..) | Place::Pack(_) | Place::Probe => {}
    }
    Ok(Some(signed.signer))
}

/// One object in hand, for readers that ask a storage.
#[derive(Debug)]
struct One<'a> {
    key: &'a str,
    bytes: &'a [u8],
}

impl Storage for One<'_> {
    fn put_if_absent(&self, _: &str, _: &[u8]) -> std::result::Result<Put, StorageError> {
        Err(StorageError::Denied { location: self.location(), verb: "write" })
    }

    fn put(&self, _: &str, _: &[u8]) -> std::result::Result<(), StorageError> {
        Err(StorageError::Denied { location: self.location(), verb: "write" })
    }

    fn get(&self, key: &str) -> std::result::Result<Vec<u8>, StorageError> {
        match key == self.key {
            true => Ok(self.bytes.to_vec()),
            false => Err(StorageError::NotFound { key: key.to_owned() }),
        }
    }

    fn get_range(&self, key: &str, offset: u64, length: u64) -> std::result::Result<Vec<u8>, StorageError> {
        let bytes = self.get(key)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let end = start.saturating_add(usize::try_from(length).unwrap_or(usize::MAX)).min(bytes.len());
        Ok(bytes.get(start..end).unwrap_or_default().to_vec())
    }

    fn list(&self, _: &str) -> std::result::Result<Vec<Listed>, StorageError> {
        Ok(vec![Listed { key: self.key.to_owned(), size: self.bytes.len() as u64, stored_at: None }])
    }

    fn delete(&self, _: &str) -> std::result::Result<(), StorageError> {
        Err(StorageError::Denied { location: self.location(), verb: "delete" })
    }

    fn location(&self) -> String {
        "an object in hand".to_owned()
    }
}
