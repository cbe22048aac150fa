//! Receipts: when a storage took an object in, by the storage's own clock, signed by its keeper (`vault serve`).
//!
//! A host's clock may be wrong or forged, and a copy's listing says when the copy was made; a receipt travels with the objects and
//! says when they really came. Invariants: a receipt counts only if its keeper stands on the roster; of several receipts for the same
//! bytes the earliest counts; without any, the storage's listing is what is left, and is said to be.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use minicbor::{Decode, Encode};

use crate::codec::{self, Hash, Moment};
use crate::error::{Doing, Result, VaultError};
use crate::finding::{Finding, note};
use crate::host::State;
use crate::index::Head;
use crate::name;
use crate::open::Vault;
use crate::roster::{Role, Roster};
use crate::sign::Signed;
use crate::storage::{Listed, Put, Storage};

pub(crate) const KIND: &str = "vault.receipt";
/// So many objects stand in one receipt at most.
pub(crate) const OBJECTS_MAX: usize = 4096;
/// So many missing numbers of a chain are named.
const GAPS_NAMED_MAX: u64 = 16;

#[derive(Debug, Encode, Decode)]
struct Body {
    #[n(0)]
    vault: String,
    #[n(1)]
    number: u64,
    #[n(2)]
    previous: Option<Hash>,
    #[n(3)]
    at: Moment,
    #[n(4)]
    objects: Vec<Entry>,
}

#[derive(Debug, Clone, Encode, Decode)]
struct Entry {
    #[n(0)]
    key: String,
    #[n(1)]
    hash: Hash,
    #[n(2)]
    size: u64,
    #[n(3)]
    received_at: Moment,
}

/// Who says when an object came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimeSource {
    /// A keeper's signed receipt.
    Receipt,
    /// The storage's listing: not signed, and in a copy the time of the copy.
    Listing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Taken {
    hash: Hash,
    size: u64,
    at: Timestamp,
}

/// What all receipts of a vault say.
#[derive(Debug, Clone, Default)]
pub struct Receipts {
    taken: HashMap<String, Vec<Taken>>,
    findings: Vec<Finding>,
}

impl Receipts {
    /// When this object was taken in. `hash` (of its bytes, where known) keeps a receipt for other bytes from counting.
    pub fn received_at(&self, object: &Listed, hash: Option<&[u8; 32]>) -> Option<(Timestamp, TimeSource)> {
        let fits = |taken: &&Taken| taken.size == object.size && hash.is_none_or(|hash| taken.hash.0 == *hash);
        let receipts = self.taken.get(&object.key).into_iter().flatten();
        match receipts.filter(fits).map(|taken| taken.at).min() {
            Some(at) => Some((at, TimeSource::Receipt)),
            None => object.stored_at.map(|at| (at, TimeSource::Listing)),
        }
    }

    /// When a receipt says that these very bytes came under this key; the object itself may be gone.
    pub(crate) fn received_bytes(&self, key: &str, hash: &[u8; 32]) -> Option<Timestamp> {
        let receipts = self.taken.get(key).into_iter().flatten();
        receipts.filter(|taken| taken.hash.0 == *hash).map(|taken| taken.at).min()
    }

    /// Whether some receipt names this object.
    pub fn names(&self, key: &str) -> bool {
        self.taken.contains_key(key)
    }

    /// Receipts that are missing, damaged, or signed by who is no keeper.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    pub fn len(&self) -> usize {
        self.taken.len()
    }

    pub fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }
}

/// Where a keeper's receipts lie: `receipt/FINGERPRINT/`, numbered from 1.
pub(crate) fn chain(fingerprint: &str) -> String {
    format!("receipt/{fingerprint}/")
}

fn open(roster: &Roster, fingerprint: &str, number: u64, bytes: &[u8]) -> Result<(Body, Hash)> {
    let chain = chain(fingerprint);
    let key = format!("{chain}{}", name::number(number));
    let signed = Signed::open(KIND, &key, bytes)?;
    let body: Body = codec::decode(&key, &signed.payload)?;
    if signed.signer.fingerprint() != fingerprint || body.vault != roster.vault || body.number != number {
        return Err(VaultError::untrusted(&key, "it belongs to another place"));
    }
    roster.check_role(&key, &signed.signer, Role::Keeper, &chain, number)?;
    Ok((body, Hash(signed.hash)))
}

/// Whether these bytes are this keeper's receipt of that number.
pub(crate) fn check(roster: &Roster, fingerprint: &str, number: u64, bytes: &[u8]) -> Result<()> {
    open(roster, fingerprint, number, bytes).map(|_| ())
}

impl Vault {
    /// Reads every receipt. What is wrong with some is a finding; the others count.
    pub fn receipts(&self) -> Result<Receipts> {
        let listed = self.storage().list("receipt/").doing(|| "listing receipts".to_owned())?;
        let mut chains: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for object in &listed {
            if let [_, keeper, number] = object.key.split('/').collect::<Vec<_>>()[..]
                && let Some(number) = name::parse_number(number)
            {
                chains.entry(keeper.to_owned()).or_default().push(number);
            }
        }
        let mut receipts = Receipts::default();
        for (keeper, numbers) in chains {
            self.read_receipts(&keeper, &numbers, &mut receipts)?;
        }
        Ok(receipts)
    }

    fn read_receipts(&self, keeper: &str, numbers: &[u64], receipts: &mut Receipts) -> Result<()> {
        let chain = chain(keeper);
        let roster = self.roster();
        let mut expected = 1;
        let mut before: Option<Hash> = None;
        for &number in numbers {
            for gap in expected..number.min(expected + GAPS_NAMED_MAX) {
                let key = format!("{chain}{}", name::number(gap));
                receipts.findings.push(Finding::missing(key, "receipts are numbered without gaps"));
            }
            let joins = number == expected;
            expected = number + 1;
            let key = format!("{chain}{}", name::number(number));
            let read = self.storage().get(&key).doing(|| format!("reading {key}"));
            let opened = read.and_then(|bytes| open(&roster, keeper, number, &bytes));
            let Some((body, hash)) = note(opened, &mut receipts.findings)? else {
                before = None;
                continue;
            };
            if joins && (before.is_some() || number == 1) && body.previous != before {
                let error = VaultError::untrusted(key, "it does not name the receipt before it");
                receipts.findings.push(Finding::from(&error));
            }
            before = Some(hash);
            for entry in body.objects {
                let taken = Taken { hash: entry.hash, size: entry.size, at: entry.received_at.into() };
                receipts.taken.entry(entry.key).or_default().push(taken);
            }
        }
        let last = numbers.last().copied().unwrap_or(0);
        match self.remembered_head(&chain)? {
            Some((seen, _)) if seen > last => {
                let error = VaultError::RolledBack {
                    object: chain,
                    found: format!("number {last}"),
                    seen: format!("number {seen}"),
                };
                receipts.findings.push(Finding::from(&error));
                Ok(())
            }
            _ => before.map_or(Ok(()), |hash| self.remember_head(&chain, last, hash.0)),
        }
    }
}

/// Where a keeper notes what it took in, until a receipt says so.
#[derive(Debug)]
pub struct ReceiptBook {
    storage: Arc<dyn Storage>,
    vault: String,
    keeper: State,
    head: Option<Head>,
    waiting: Vec<Entry>,
}

impl ReceiptBook {
    pub fn new(storage: Arc<dyn Storage>, vault: &str, keeper: State) -> ReceiptBook {
        ReceiptBook { storage, vault: vault.to_owned(), keeper, head: None, waiting: Vec::new() }
    }

    /// Notes an object that has just become durable.
    pub fn take(&mut self, key: &str, hash: [u8; 32], size: u64, at: Timestamp) {
        self.waiting.push(Entry { key: key.to_owned(), hash: Hash(hash), size, received_at: at.into() });
    }

    /// So many objects wait for a receipt.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Stores a receipt for everything noted so far; what could not be said stays noted.
    pub fn sign(&mut self) -> Result<()> {
        while !self.waiting.is_empty() {
            let some = self.waiting.len().min(OBJECTS_MAX);
            self.sign_some(some)?;
            self.waiting.drain(..some);
        }
        Ok(())
    }

    fn sign_some(&mut self, count: usize) -> Result<()> {
        let signer = self.keeper.signing_key();
        let chain = chain(&signer.public().fingerprint());
        let mut head = match self.head {
            Some(head) => head,
            None => self.find_head(&chain)?,
        };
        loop {
            let number = head.number + 1;
            let body = Body {
                vault: self.vault.clone(),
                number,
                previous: head.hash,
                at: Timestamp::now().into(),
                objects: self.waiting.iter().take(count).cloned().collect(),
            };
            let key = format!("{chain}{}", name::number(number));
            let bytes = Signed::seal(KIND, &codec::encode(&body)?, signer)?;
            head = match self.storage.put_if_absent(&key, &bytes).doing(|| format!("writing {key}"))? {
                Put::Created => {
                    self.head = Some(Head { number, hash: Some(Hash(crate::crypt::hash(&bytes))) });
                    return Ok(());
                }
                // Another process of this keeper took that number.
                Put::Exists => self.head_at(&chain, number)?,
            };
        }
    }

    fn find_head(&self, chain: &str) -> Result<Head> {
        let listed = self.storage.list(chain).doing(|| format!("listing {chain}"))?;
        match listed.iter().filter_map(|o| name::parse_number(o.key.strip_prefix(chain)?)).max() {
            Some(number) => self.head_at(chain, number),
            None => Ok(Head::default()),
        }
    }

    fn head_at(&self, chain: &str, number: u64) -> Result<Head> {
        let key = format!("{chain}{}", name::number(number));
        let bytes = self.storage.get(&key).doing(|| format!("reading {key}"))?;
        Ok(Head { number, hash: Some(Hash(crate::crypt::hash(&bytes))) })
    }
}
