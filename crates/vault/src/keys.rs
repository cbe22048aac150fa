//! Key pairs of the vault: the owner's, the refs key's, and one content key pair for each data set.
//!
//! Each private half is a complete age file `…/HASH.age` that any one recipient opens with plain `age`; a signed statement
//! `…/NUMBER.cert` says which public half and which file count. Invariant: the public half never changes; the first statement
//! may be a host's (it made the pair and forgot the private half), every later one is the owner's.

use minicbor::{Decode, Encode};

use crate::codec::{self, Hash};
use crate::crypt::hash;
use crate::error::{Doing, Result, VaultError};
use crate::name;
use crate::roster::{Role, Roster};
use crate::seal::{Identity, Recipient, Unopened, seal, unseal};
use crate::sign::{Signed, SigningKey};
use crate::storage::{Put, Storage};

pub(crate) const KIND: &str = "vault.key";
pub(crate) const CHUNK_KIND: &str = "vault.chunk-key";

/// Where a key pair's objects lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pair<'a> {
    Owner,
    Refs,
    Content(&'a str),
}

impl Pair<'_> {
    pub(crate) fn prefix(self) -> String {
        match self {
            Pair::Owner => "keys/owner/".to_owned(),
            Pair::Refs => "keys/refs/".to_owned(),
            Pair::Content(dataset) => name::content_keys(dataset),
        }
    }

    pub(crate) fn describe(self) -> String {
        match self {
            Pair::Owner => "the owner's key".to_owned(),
            Pair::Refs => "the refs key".to_owned(),
            Pair::Content(dataset) => format!("the content key of {dataset}"),
        }
    }
}

/// Which public half counts, and which age file holds its private half.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Statement {
    #[n(0)]
    pub(crate) vault: String,
    #[n(1)]
    pub(crate) pair: String,
    #[n(2)]
    pub(crate) number: u64,
    /// `age1…`, or the owner's signing key in hex.
    #[n(3)]
    pub(crate) public: String,
    #[n(4)]
    pub(crate) recipients: Vec<String>,
    #[n(5)]
    pub(crate) file: Hash,
}

/// A statement that counts, and its own hash.
#[derive(Debug, Clone)]
pub(crate) struct Stated {
    pub(crate) statement: Statement,
    pub(crate) hash: Hash,
}

impl Stated {
    pub(crate) fn file_key(&self) -> String {
        format!("{}{}.age", self.statement.pair, self.statement.file)
    }

    pub(crate) fn recipient(&self) -> Result<Recipient> {
        self.statement.public.parse()
    }
}

/// Seals a private half, stores it, then states it. Answers `None` where that number was stated already.
pub(crate) fn state(
    storage: &dyn Storage,
    pair: Pair<'_>,
    number: u64,
    keys: (&Roster, &SigningKey),
    public: &str,
    private: &str,
    recipients: &[Recipient],
) -> Result<Option<Stated>> {
    let (roster, signer) = keys;
    let prefix = pair.prefix();
    let text = format!("# lifeboat: {} of vault {}\n{private}\n", pair.describe(), roster.vault);
    let file = seal(recipients, text.as_bytes())?;
    let file_hash = Hash(hash(&file));
    let recipients = recipients.iter().map(Recipient::to_string).collect();
    let statement = Statement {
        vault: roster.vault.clone(),
        pair: prefix.clone(),
        number,
        public: public.to_owned(),
        recipients,
        file: file_hash,
    };
    let file_key = format!("{prefix}{file_hash}.age");
    storage.put_if_absent(&file_key, &file).doing(|| format!("writing {file_key}"))?;
    let key = format!("{prefix}{}.cert", name::number(number));
    let bytes = Signed::seal(KIND, &codec::encode(&statement)?, signer)?;
    match storage.put_if_absent(&key, &bytes).doing(|| format!("writing {key}"))? {
        Put::Created => Ok(Some(Stated { statement, hash: Hash(hash(&bytes)) })),
        Put::Exists => Ok(None),
    }
}

/// The newest statement about a pair; `None` where there is none at all.
pub(crate) fn stated(storage: &dyn Storage, roster: &Roster, pair: Pair<'_>) -> Result<Option<Stated>> {
    let prefix = pair.prefix();
    let listed = storage.list(&prefix).doing(|| format!("looking for {}", pair.describe()))?;
    let mut newest: Option<Stated> = None;
    for (expected, object) in (1u64..).zip(listed.iter().filter(|o| o.key.ends_with(".cert"))) {
        let wanted = format!("{prefix}{}.cert", name::number(expected));
        if object.key != wanted {
            return Err(VaultError::Missing { object: wanted });
        }
        let bytes = storage.get(&object.key).doing(|| format!("reading {}", object.key))?;
        let next = open_statement(roster, pair, expected, &object.key, &bytes)?;
        if newest.as_ref().is_some_and(|before| before.statement.public != next.statement.public) {
            return Err(VaultError::untrusted(
                &object.key,
                "it names another public half than the statement before it",
            ));
        }
        newest = Some(next);
    }
    if newest.is_none() && !listed.is_empty() {
        // A first backup that died between a private half and its statement left nothing that anything was sealed to.
        if let Pair::Content(dataset) = pair
            && !is_in_use(storage, dataset)?
        {
            return Ok(None);
        }
        return Err(VaultError::Missing { object: format!("{prefix}{}.cert", name::number(1)) });
    }
    Ok(newest)
}

/// Whether anything lies in the vault that can only be there after the data set's content key was stated.
pub(crate) fn is_in_use(storage: &dyn Storage, dataset: &str) -> Result<bool> {
    let encoded = name::encode(dataset);
    for prefix in [name::chunk_keys(dataset), format!("log/{encoded}/")] {
        if !storage.list(&prefix).doing(|| format!("listing {prefix}"))?.is_empty() {
            return Ok(true);
        }
    }
    for prefix in ["snap/", "index/"] {
        let listed = storage.list(prefix).doing(|| format!("listing {prefix}"))?;
        if listed.iter().any(|object| object.key.split('/').nth(2) == Some(encoded.as_str())) {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(crate) fn open_statement(roster: &Roster, pair: Pair<'_>, number: u64, key: &str, bytes: &[u8]) -> Result<Stated> {
    let signed = Signed::open(KIND, key, bytes)?;
    let statement: Statement = codec::decode(key, &signed.payload)?;
    // A host that was revoked since may have made the pair long before; its name is still on the roster.
    let host = roster.member(&signed.signer).is_some_and(|m| m.roles.contains(&Role::Host));
    let may = signed.signer == roster.owner || (number == 1 && host && matches!(pair, Pair::Content(_)));
    if !may {
        return Err(VaultError::untrusted(
            key,
            format!("it is signed by {}, who may not state keys", signed.signer.fingerprint()),
        ));
    }
    if statement.vault != roster.vault || statement.pair != pair.prefix() || statement.number != number {
        return Err(VaultError::untrusted(key, "it belongs to another place"));
    }
    Ok(Stated { statement, hash: Hash(signed.hash) })
}

/// The private half as text, where one of the identities opens it.
pub(crate) fn open_private(
    storage: &dyn Storage,
    pair: Pair<'_>,
    stated: &Stated,
    identities: &[Identity],
) -> Result<String> {
    let key = stated.file_key();
    let bytes = storage.get(&key).doing(|| format!("reading {key}"))?;
    if hash(&bytes) != stated.statement.file.0 {
        return Err(VaultError::damaged(key, "it is not the file that its statement names"));
    }
    let plain = unseal(identities, &bytes).map_err(|e| match e {
        Unopened::WrongKey => VaultError::WrongKey {
            object: pair.describe(),
            given: identities.len(),
            recipients: stated.statement.recipients.join(", "),
        },
        Unopened::Damaged => VaultError::damaged(&key, "it does not open"),
    })?;
    let text = String::from_utf8(plain).map_err(|_| VaultError::damaged(&key, "it does not hold a key"))?;
    let line = text.lines().find(|line| !line.starts_with('#') && !line.trim().is_empty());
    line.map(|line| line.trim().to_owned()).ok_or_else(|| VaultError::damaged(&key, "it does not hold a key"))
}

/// Data sets that have a content key, by name.
pub(crate) fn datasets(storage: &dyn Storage) -> Result<Vec<String>> {
    let listed = storage.list("keys/content/").doing(|| "listing data sets".to_owned())?;
    let mut names: Vec<String> = listed.iter().filter_map(|o| name::decode(o.key.split('/').nth(2)?)).collect();
    names.dedup();
    Ok(names)
}

/// A chunk-id key in the vault, for hosts that are promoted and for readers that verify.
#[derive(Debug, Encode, Decode)]
struct SealedChunkKey {
    #[n(0)]
    vault: String,
    #[n(1)]
    dataset: String,
    #[cbor(n(2), with = "minicbor::bytes")]
    sealed: Vec<u8>,
}

pub(crate) fn publish_chunk_key(
    storage: &dyn Storage,
    vault: &str,
    dataset: &str,
    content: &Recipient,
    signer: &SigningKey,
    chunk_key: &crate::host::ChunkKey,
) -> Result<()> {
    let key = format!("{}{}", name::chunk_keys(dataset), chunk_key.name());
    let sealed = seal(std::slice::from_ref(content), &chunk_key.to_bytes())?;
    let payload = codec::encode(&SealedChunkKey { vault: vault.to_owned(), dataset: dataset.to_owned(), sealed })?;
    let bytes = Signed::seal(CHUNK_KIND, &payload, signer)?;
    storage.put_if_absent(&key, &bytes).doing(|| format!("writing {key}"))?;
    Ok(())
}

/// Checks what can be checked of a chunk-id key's object, and opens it where the content identity is given.
pub(crate) fn open_chunk_key(
    roster: &Roster,
    dataset: &str,
    key: &str,
    bytes: &[u8],
    content: Option<&Identity>,
) -> Result<Option<crate::host::ChunkKey>> {
    let signed = Signed::open(CHUNK_KIND, key, bytes)?;
    let sealed: SealedChunkKey = codec::decode(key, &signed.payload)?;
    if roster.member(&signed.signer).is_none() && signed.signer != roster.owner {
        return Err(VaultError::untrusted(key, "it is signed by who is not on the roster"));
    }
    if sealed.vault != roster.vault || sealed.dataset != dataset {
        return Err(VaultError::untrusted(key, "it belongs to another place"));
    }
    let Some(content) = content else { return Ok(None) };
    let plain = unseal([content], &sealed.sealed)
        .map_err(|_| VaultError::damaged(key, "it does not open with the content key"))?;
    let chunk_key = crate::host::ChunkKey::from_bytes(&plain)
        .ok_or_else(|| VaultError::damaged(key, "it does not hold a chunk-id key"))?;
    if !key.ends_with(&chunk_key.name()) {
        return Err(VaultError::untrusted(key, "it holds a key of another name"));
    }
    Ok(Some(chunk_key))
}
