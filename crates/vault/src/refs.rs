//! Refs: which chunks a recovery point needs, for who prunes without reading. Deduplicated in pages.
//!
//! A refs object holds the pages that are new with it and the row of all pages (by object and ordinal); it is sealed to the refs
//! key and to the writing host's index key. Invariant: every object that a row names is named in the clear head, too.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use minicbor::{Decode, Encode};

use crate::codec::{self, Hash};
use crate::error::{Doing, Result, VaultError};
use crate::name;
use crate::port::ChunkId;
use crate::roster::{Role, Roster};
use crate::seal::{Identity, Recipient, Unopened, seal_frame, unseal_frame};
use crate::sign::{Signed, SigningKey};
use crate::storage::Storage;

pub(crate) const KIND: &str = "vault.refs";
const BODY_BYTES_MAX: usize = 256 << 20;
/// Pages end after an id whose first byte is this: 256 ids on average, wherever the list starts.
const PAGE_END: u8 = 0xa5;
const PAGE_IDS_MAX: usize = 2048;

#[derive(Debug, Encode, Decode)]
pub(crate) struct RefsHead {
    #[n(0)]
    vault: String,
    #[n(1)]
    host: String,
    #[n(2)]
    dataset: String,
    /// Older refs objects whose pages this one uses.
    #[n(3)]
    needs: Vec<Hash>,
    #[cbor(n(4), with = "minicbor::bytes")]
    sealed: Vec<u8>,
}

#[derive(Debug, Encode, Decode)]
struct RefsBody {
    #[n(0)]
    pages: Vec<Page>,
    #[n(1)]
    row: Vec<PagePlace>,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
struct Page(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
struct PagePlace {
    /// Absent: in this object.
    #[n(0)]
    object: Option<Hash>,
    #[n(1)]
    page: u32,
    /// Hash of the page.
    #[n(2)]
    id: Hash,
}

fn split(ids: &[ChunkId]) -> Vec<Page> {
    let mut seen = HashSet::with_capacity(ids.len());
    let mut pages = Vec::new();
    let mut page = Vec::new();
    for id in ids.iter().filter(|id| seen.insert(**id)) {
        page.extend_from_slice(&id.0);
        if id.0[0] == PAGE_END || page.len() >= PAGE_IDS_MAX * 32 {
            pages.push(Page(std::mem::take(&mut page)));
        }
    }
    if !page.is_empty() {
        pages.push(Page(page));
    }
    pages
}

/// What a writing host needs to know of the refs object before.
#[derive(Debug)]
pub(crate) struct Known {
    object: Hash,
    row: Vec<PagePlace>,
}

/// Who writes refs, and for whom.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    pub(crate) storage: &'a dyn Storage,
    pub(crate) vault: &'a str,
    pub(crate) host: &'a str,
    pub(crate) dataset: &'a str,
    pub(crate) signer: &'a SigningKey,
    pub(crate) recipients: &'a [Recipient],
}

impl Writer<'_> {
    /// Stores the references of a point; the same references as before cost nothing.
    pub(crate) fn publish(&self, ids: &[ChunkId], before: Option<&Known>) -> Result<Hash> {
        let known: BTreeMap<[u8; 32], PagePlace> = before
            .into_iter()
            .flat_map(|k| {
                k.row.iter().map(|p| (p.id.0, PagePlace { object: Some(p.object.unwrap_or(k.object)), ..*p }))
            })
            .collect();
        let (mut pages, mut row) = (Vec::new(), Vec::new());
        for page in split(ids) {
            let id = Hash(crate::crypt::hash(&page.0));
            row.push(known.get(&id.0).copied().unwrap_or_else(|| {
                pages.push(page);
                PagePlace { object: None, page: (pages.len() - 1) as u32, id }
            }));
        }
        if let Some(before) = before
            && pages.is_empty()
            && row.iter().map(|p| p.id).eq(before.row.iter().map(|p| p.id))
        {
            return Ok(before.object);
        }
        let needs: BTreeSet<Hash> = row.iter().filter_map(|p| p.object).collect();
        let place = name::refs_of(self.host, self.dataset);
        let sealed = seal_frame(self.recipients, &place, &codec::encode(&RefsBody { pages, row })?)?;
        let head = RefsHead {
            vault: self.vault.to_owned(),
            host: self.host.to_owned(),
            dataset: self.dataset.to_owned(),
            needs: needs.into_iter().collect(),
            sealed,
        };
        let bytes = Signed::seal(KIND, &codec::encode(&head)?, self.signer)?;
        let hash = Hash(crate::crypt::hash(&bytes));
        let key = format!("{place}{hash}");
        self.storage.put_if_absent(&key, &bytes).doing(|| format!("writing {key}"))?;
        Ok(hash)
    }
}

pub(crate) fn read_head(
    storage: &dyn Storage,
    roster: &Roster,
    host: &str,
    dataset: &str,
    hash: &Hash,
) -> Result<(String, RefsHead)> {
    let key = format!("{}{hash}", name::refs_of(host, dataset));
    let bytes = storage.get(&key).doing(|| format!("reading {key}"))?;
    if crate::crypt::hash(&bytes) != hash.0 {
        return Err(VaultError::damaged(key, "it is not what its name says"));
    }
    let signed = Signed::open(KIND, &key, &bytes)?;
    let head: RefsHead = codec::decode(&key, &signed.payload)?;
    if !roster.member(&signed.signer).is_some_and(|m| m.name == host && m.roles.contains(&Role::Host)) {
        return Err(VaultError::untrusted(key, "it is signed by who is not that host on the roster"));
    }
    if head.vault != roster.vault || head.host != host || head.dataset != dataset {
        return Err(VaultError::untrusted(key, "it belongs to another place"));
    }
    Ok((key, head))
}

fn open_body(key: &str, place: &str, head: &RefsHead, identities: &[Identity]) -> Result<RefsBody> {
    let plain = unseal_frame(identities, place, &head.sealed, BODY_BYTES_MAX).map_err(|e| match e {
        Unopened::WrongKey => VaultError::WrongKey {
            object: key.to_owned(),
            given: identities.len(),
            recipients: "the refs key, the writing host's index key".to_owned(),
        },
        Unopened::Damaged => VaultError::damaged(key, "its pages do not open"),
    })?;
    codec::decode(key, &plain)
}

/// For fuzzers: what lies behind the seal of a refs object.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_body(plain: &[u8]) {
    if let Ok(body) = codec::decode::<RefsBody>("refs", plain) {
        let _ = body.pages.iter().flat_map(|page| page.0.chunks_exact(32)).count();
    }
}

/// Checks, without a key, that a refs object and all it needs are there and unchanged.
pub(crate) fn check(
    storage: &dyn Storage,
    roster: &Roster,
    host: &str,
    dataset: &str,
    hash: &Hash,
    done: &mut HashSet<Hash>,
) -> Result<()> {
    if !done.insert(*hash) {
        return Ok(());
    }
    let (_, head) = read_head(storage, roster, host, dataset, hash)?;
    for needed in head.needs.iter().filter(|n| !done.contains(*n)) {
        read_head(storage, roster, host, dataset, needed)?;
    }
    done.extend(head.needs);
    Ok(())
}

/// The row of a point's pages, for the host that goes on from it.
pub(crate) fn known(
    storage: &dyn Storage,
    roster: &Roster,
    host: &str,
    dataset: &str,
    hash: &Hash,
    identity: &Identity,
) -> Result<Known> {
    let (key, head) = read_head(storage, roster, host, dataset, hash)?;
    let body = open_body(&key, &name::refs_of(host, dataset), &head, std::slice::from_ref(identity))?;
    Ok(Known { object: *hash, row: body.row })
}

/// Every chunk that a point references.
pub(crate) fn read(
    storage: &dyn Storage,
    roster: &Roster,
    host: &str,
    dataset: &str,
    hash: &Hash,
    identities: &[Identity],
) -> Result<Vec<ChunkId>> {
    let place = name::refs_of(host, dataset);
    let (key, head) = read_head(storage, roster, host, dataset, hash)?;
    let body = open_body(&key, &place, &head, identities)?;
    let mut objects: BTreeMap<Hash, Vec<Page>> = BTreeMap::new();
    for needed in &head.needs {
        let (key, head) = read_head(storage, roster, host, dataset, needed)?;
        objects.insert(*needed, open_body(&key, &place, &head, identities)?.pages);
    }
    let (mut ids, mut named) = (Vec::new(), HashSet::new());
    for at in &body.row {
        // A writer names no chunk twice, so no page either; a row that does would only take memory.
        if !named.insert(at.id.0) {
            return Err(VaultError::damaged(&key, "it names a page twice"));
        }
        let pages = match &at.object {
            None => Some(&body.pages),
            Some(object) => objects.get(object),
        };
        let page =
            pages.and_then(|pages| pages.get(at.page as usize)).filter(|page| crate::crypt::hash(&page.0) == at.id.0);
        let page = page.ok_or_else(|| VaultError::damaged(&key, "a page it names is not where it says"))?;
        ids.extend(page.0.chunks_exact(32).filter_map(|id| id.try_into().ok()).map(ChunkId));
    }
    Ok(ids)
}

/// Every chunk that any of these points of one host and data set references, each object read once; answers the keys of the
/// objects that they stand on.
pub(crate) fn read_all(
    storage: &dyn Storage,
    roster: &Roster,
    place: (&str, &str),
    points: &BTreeSet<Hash>,
    identities: &[Identity],
    take: &mut dyn FnMut(ChunkId),
) -> Result<BTreeSet<String>> {
    read_pages(storage, roster, place, points, identities, &mut |_, _| {}, &mut |_, id| take(id))
}

/// As `read_all`; says which pages each point consists of, and then of each page, once, which chunks.
pub(crate) fn read_pages(
    storage: &dyn Storage,
    roster: &Roster,
    (host, dataset): (&str, &str),
    points: &BTreeSet<Hash>,
    identities: &[Identity],
    row: &mut dyn FnMut(&Hash, &Hash),
    take: &mut dyn FnMut(&Hash, ChunkId),
) -> Result<BTreeSet<String>> {
    let place = name::refs_of(host, dataset);
    let mut wanted: BTreeMap<Hash, BTreeSet<(u32, Hash)>> = BTreeMap::new();
    let mut keys = BTreeSet::new();
    for hash in points {
        let (key, head) = read_head(storage, roster, host, dataset, hash)?;
        let body = open_body(&key, &place, &head, identities)?;
        for at in &body.row {
            let object = at.object.unwrap_or(*hash);
            if object != *hash && !head.needs.contains(&object) {
                return Err(VaultError::damaged(&key, "it uses an object that it does not name"));
            }
            row(hash, &at.id);
            wanted.entry(object).or_default().insert((at.page, at.id));
        }
        keys.extend(head.needs.iter().map(|needed| format!("{place}{needed}")));
        keys.insert(key);
    }
    for (object, pages) in wanted {
        let (key, head) = read_head(storage, roster, host, dataset, &object)?;
        let body = open_body(&key, &place, &head, identities)?;
        for (number, id) in pages {
            let page = body.pages.get(number as usize).filter(|page| crate::crypt::hash(&page.0) == id.0);
            let page =
                page.ok_or_else(|| VaultError::damaged(&key, "a page that is needed is not where it should be"))?;
            page.0
                .chunks_exact(32)
                .filter_map(|chunk| chunk.try_into().ok())
                .for_each(|chunk| take(&id, ChunkId(chunk)));
        }
    }
    Ok(keys)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn one_changed_chunk_costs_one_page() {
        let ids: Vec<ChunkId> = (0..20_000u32).map(|n| ChunkId(crate::crypt::hash(&n.to_le_bytes()))).collect();
        let before = split(&ids);
        assert!(before.len() > 40);
        let mut changed = ids.clone();
        changed[9_999] = ChunkId([9; 32]);
        let after = split(&changed);
        assert!(after.iter().filter(|p| !before.contains(p)).count() <= 2);
        assert_eq!(split(&[ids[0], ids[1], ids[0]]).iter().map(|p| p.0.len()).sum::<usize>(), 64);
    }

    #[test]
    fn a_row_that_names_a_page_twice_takes_no_memory() {
        use crate::open::{InitOptions, Vault};
        let directory = tempfile::tempdir().unwrap();
        let state = crate::State::open(directory.path(), Some("alpha")).unwrap();
        let refs = Identity::generate();
        let options = InitOptions {
            recipients: vec![refs.recipient(), Identity::generate().recipient()],
            ..InitOptions::default()
        };
        let storage = std::sync::Arc::new(crate::storage::MemoryStorage::new());
        let (vault, _) = Vault::init(storage.clone(), &state, &options).unwrap();
        let (recipients, place, roster) = ([refs.recipient()], name::refs_of("alpha", "app"), vault.roster());
        let read_with_row = |times: usize| {
            let ids: Vec<ChunkId> = (0..2u8).map(|n| ChunkId([n; 32])).collect();
            let pages = split(&ids);
            let at = PagePlace { object: None, page: 0, id: Hash(crate::crypt::hash(&pages[0].0)) };
            let body = codec::encode(&RefsBody { pages, row: vec![at; times] }).unwrap();
            let head = RefsHead {
                vault: roster.vault.clone(),
                host: "alpha".to_owned(),
                dataset: "app".to_owned(),
                needs: Vec::new(),
                sealed: seal_frame(&recipients, &place, &body).unwrap(),
            };
            let bytes = Signed::seal(KIND, &codec::encode(&head).unwrap(), state.signing_key()).unwrap();
            let hash = Hash(crate::crypt::hash(&bytes));
            storage.put_if_absent(&format!("{place}{hash}"), &bytes).unwrap();
            read(&*storage, &roster, "alpha", "app", &hash, std::slice::from_ref(&refs))
        };
        assert_eq!(read_with_row(1).unwrap().len(), 2);
        let error = read_with_row(1000).map(|ids| ids.len()).unwrap_err();
        assert!(error.to_string().contains("names a page twice"), "{error}");
    }
}
