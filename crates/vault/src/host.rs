//! A host's own secrets and memory, in its state directory: signing key, index key, chunk-id keys, newest heads seen.
//!
//! Invariants: files are 0600 and durable before what depends on them; nothing here opens data in a vault. What was seen
//! once is never forgotten for something older (`Heads`).

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::crypt::{hex, random, random_u64, unhex};
use crate::error::{Result, VaultError};
use crate::name::{self, encode};
use crate::seal::Identity;
use crate::sign::SigningKey;

const STATE_FILE_BYTES_MAX: u64 = 256 << 20;

/// The state directory of this machine (or of this site on it).
#[derive(Debug, Clone)]
pub struct State {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    /// Once it is kept in the directory, it never changes.
    name: OnceLock<String>,
    /// What this host goes by as long as it has no name.
    nameless: String,
    signing: SigningKey,
    index: Identity,
    heads: Mutex<BTreeMap<String, Heads>>,
}

/// What names a data set's chunks: the key of their ids and the seed of their boundaries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChunkKey {
    pub(crate) id_key: [u8; 32],
    pub(crate) seed: u64,
}

impl std::fmt::Debug for ChunkKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChunkKey({})", self.name())
    }
}

impl ChunkKey {
    pub(crate) fn generate() -> ChunkKey {
        ChunkKey { id_key: random(), seed: random_u64() }
    }

    pub(crate) fn id_of(&self, plain: &[u8]) -> crate::port::ChunkId {
        crate::port::ChunkId(*blake3::keyed_hash(&self.id_key, plain).as_bytes())
    }

    /// A public name for it, which gives nothing of it away.
    pub(crate) fn name(&self) -> String {
        hex(&blake3::derive_key("lifeboat 1 name of a chunk-id key", &self.id_key)[..16])
    }

    pub(crate) fn to_bytes(self) -> [u8; 40] {
        let mut bytes = [0; 40];
        bytes[..32].copy_from_slice(&self.id_key);
        bytes[32..].copy_from_slice(&self.seed.to_le_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<ChunkKey> {
        let (id_key, seed) = bytes.split_first_chunk::<32>()?;
        Some(ChunkKey { id_key: *id_key, seed: u64::from_le_bytes(seed.try_into().ok()?) })
    }
}

/// The newest number and hash seen of each chain of a vault.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Heads {
    #[serde(flatten)]
    chains: BTreeMap<String, (u64, String)>,
}

impl State {
    /// Opens (or makes) the state directory; `name` is what this host is called in vaults, the machine's name by default.
    pub fn open(directory: &Path, name: Option<&str>) -> Result<State> {
        make_private_directory(directory)?;
        // Two processes of one host may begin at the same moment; they must not become two hosts.
        let _held = lock_exclusively(&directory.join(".lock"))?;
        let name_path = directory.join("host.name");
        let kept = read_secret_file(&name_path)?.map(|text| text.trim().to_owned());
        let name = match (kept, name) {
            (Some(kept), Some(asked)) if kept != asked => {
                let why = format!("it belongs to host {kept:?}, not {asked:?}; use another --state directory");
                return Err(VaultError::invalid(format!("state directory {}", directory.display()), why));
            }
            (Some(kept), _) => OnceLock::from(kept),
            (None, Some(asked)) => {
                name::check(asked, "the host's name")?;
                write_secret_file(&name_path, asked.as_bytes())?;
                OnceLock::from(asked.to_owned())
            }
            // Who only reads has no name yet, and may be given one later.
            (None, None) => OnceLock::new(),
        };
        let signing = SigningKey::load_or_create(&directory.join("host.key"))?;
        let index_path = directory.join("index.key");
        let index = match read_secret_file(&index_path)? {
            Some(text) => text.parse()?,
            None => {
                let identity = Identity::generate();
                write_secret_file(&index_path, identity.expose().as_bytes())?;
                identity
            }
        };
        let inner = Inner {
            directory: directory.to_owned(),
            name,
            nameless: machine_name(),
            signing,
            index,
            heads: Mutex::default(),
        };
        Ok(State { inner: Arc::new(inner) })
    }

    /// Gives a machine that was broken into new keys, and where asked a new name: it must be enrolled again. What it has seen of
    /// vaults stays, so that a roll-back is noticed still; its chunk keys, unfinished sessions and caches go.
    pub fn rotate(directory: &Path, name: Option<&str>) -> Result<State> {
        if let Some(name) = name {
            name::check(name, "the host's name")?;
        }
        make_private_directory(directory)?;
        let held = lock_exclusively(&directory.join(".lock"))?;
        for vault in list_directory(&directory.join("vaults"))? {
            for path in list_directory(&vault)? {
                let kept = path.file_name().is_some_and(|n| n == "heads.json" || n == "heads.lock");
                if !kept && path.is_file() {
                    fs::remove_file(&path).map_err(|e| failed(&path, "removing it", e))?;
                }
            }
        }
        if let Some(name) = name {
            write_secret_file(&directory.join("host.name"), name.as_bytes())?;
        }
        write_secret_file(&directory.join("index.key"), Identity::generate().expose().as_bytes())?;
        // The signing key comes last: whoever is interrupted before it is still the old host, and begins again.
        let key = directory.join("host.key");
        match fs::remove_file(&key) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(&key, "removing it", e)),
            _ => {}
        }
        drop(held);
        State::open(directory, name)
    }

    pub fn directory(&self) -> &Path {
        &self.inner.directory
    }

    /// From now on this host goes by its name: it is about to stand on a roster.
    pub(crate) fn keep_name(&self) -> Result<()> {
        name::check(self.host_name(), "the host's name")?;
        let path = self.inner.directory.join("host.name");
        match read_secret_file(&path)? {
            Some(_) => self.learn_name(),
            None => write_secret_file(&path, self.host_name().as_bytes()),
        }
    }

    /// Learns the name that another process of this host was given since this one began: enrolment under a name of its
    /// own, while the agent runs already.
    pub(crate) fn learn_name(&self) -> Result<()> {
        if self.inner.name.get().is_none()
            && let Some(kept) = read_secret_file(&self.inner.directory.join("host.name"))?
        {
            let _ = self.inner.name.set(kept.trim().to_owned());
        }
        Ok(())
    }

    /// What this host is called in vaults.
    pub fn host_name(&self) -> &str {
        self.inner.name.get().unwrap_or(&self.inner.nameless)
    }

    /// The host's signing key; the same in every vault and in the arbiter.
    pub fn signing_key(&self) -> &SigningKey {
        &self.inner.signing
    }

    pub(crate) fn index_key(&self) -> &Identity {
        &self.inner.index
    }

    /// This vault's own corner of the state directory (made where absent): caches belong here.
    pub fn vault_directory(&self, vault: &str) -> Result<PathBuf> {
        let directory = self.inner.directory.join("vaults").join(encode(vault));
        make_private_directory(&directory)?;
        Ok(directory)
    }

    pub(crate) fn chunk_key(&self, vault: &str, dataset: &str) -> Result<Option<ChunkKey>> {
        let path = self.chunk_key_path(vault, dataset)?;
        let Some(text) = read_secret_file(&path)? else { return Ok(None) };
        let key = unhex::<40>(text.trim()).and_then(|bytes| ChunkKey::from_bytes(&bytes));
        key.map(Some).ok_or_else(|| VaultError::invalid(path.display().to_string(), "it does not hold a chunk-id key"))
    }

    pub(crate) fn keep_chunk_key(&self, vault: &str, dataset: &str, key: &ChunkKey) -> Result<()> {
        write_secret_file(&self.chunk_key_path(vault, dataset)?, hex(&key.to_bytes()).as_bytes())
    }

    fn chunk_key_path(&self, vault: &str, dataset: &str) -> Result<PathBuf> {
        Ok(self.vault_directory(vault)?.join(format!("{}.chunk-key", encode(dataset))))
    }

    /// The owner this machine trusts at a storage's address, once it has seen it.
    pub(crate) fn known_owner(&self, location: &str) -> Result<Option<String>> {
        Ok(self.known()?.remove(location))
    }

    pub(crate) fn keep_owner(&self, location: &str, owner: &str) -> Result<()> {
        if self.known()?.get(location).is_some_and(|kept| kept == owner) {
            return Ok(());
        }
        let _held = lock_exclusively(&self.inner.directory.join(".lock"))?;
        let mut known = self.known()?;
        known.insert(location.to_owned(), owner.to_owned());
        write_json(&self.inner.directory.join("known-vaults.json"), &known)
    }

    fn known(&self) -> Result<BTreeMap<String, String>> {
        read_json(&self.inner.directory.join("known-vaults.json"))
    }

    /// The newest head seen of a chain: its number and hash (in hex).
    pub(crate) fn head(&self, vault: &str, chain: &str) -> Result<Option<(u64, String)>> {
        self.with_heads(vault, |heads| (heads.chains.get(chain).cloned(), false))
    }

    /// Remembered chains that start with `prefix`, with their newest numbers.
    pub(crate) fn heads_within(&self, vault: &str, prefix: &str) -> Result<Vec<(String, u64)>> {
        self.with_heads(vault, |heads| {
            let within = heads.chains.range(prefix.to_owned()..).take_while(|(chain, _)| chain.starts_with(prefix));
            (within.map(|(chain, head)| (chain.clone(), head.0)).collect(), false)
        })
    }

    /// Remembers heads, where they are newer than what is remembered.
    pub(crate) fn keep_heads(&self, vault: &str, new: impl IntoIterator<Item = (String, u64, [u8; 32])>) -> Result<()> {
        self.with_heads(vault, |heads| {
            let mut changed = false;
            for (chain, number, hash) in new {
                if heads.chains.get(&chain).is_none_or(|(kept, _)| *kept < number) {
                    heads.chains.insert(chain, (number, hex(&hash)));
                    changed = true;
                }
            }
            ((), changed)
        })
    }

    fn with_heads<T>(&self, vault: &str, act: impl FnOnce(&mut Heads) -> (T, bool)) -> Result<T> {
        let path = self.vault_directory(vault)?.join("heads.json");
        let mut all = self.inner.heads.lock().unwrap_or_else(PoisonError::into_inner);
        let heads = match all.entry(vault.to_owned()) {
            std::collections::btree_map::Entry::Occupied(kept) => kept.into_mut(),
            std::collections::btree_map::Entry::Vacant(place) => place.insert(read_json(&path)?),
        };
        let (answer, changed) = act(heads);
        if changed {
            // Another process of this host may have gone further meanwhile: keep the newer of both.
            let _held = lock_exclusively(&path.with_extension("lock"))?;
            let kept: Heads = read_json(&path)?;
            for (chain, head) in kept.chains {
                if heads.chains.get(&chain).is_none_or(|mine| mine.0 < head.0) {
                    heads.chains.insert(chain, head);
                }
            }
            write_json(&path, heads)?;
        }
        Ok(answer)
    }
}

fn machine_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "host".to_owned() } else { name }
}

fn failed(path: &Path, doing: &str, source: std::io::Error) -> VaultError {
    VaultError::State { path: path.display().to_string(), doing: doing.to_owned(), source }
}

/// Waits for the lock; it goes with the file. What it guards takes milliseconds.
fn lock_exclusively(path: &Path) -> Result<fs::File> {
    let options = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = options.map_err(|e| failed(path, "opening it", e))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|e| failed(path, "locking it", e.into()))?;
    Ok(file)
}

/// What lies in a directory; nothing where there is none.
fn list_directory(path: &Path) -> Result<Vec<PathBuf>> {
    match fs::read_dir(path) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<std::io::Result<_>>()
            .map_err(|e| failed(path, "listing it", e)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(failed(path, "listing it", e)),
    }
}

fn make_private_directory(path: &Path) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| failed(path, "making it", e))
}

/// Reads a small file of secrets; `None` where there is none.
pub(crate) fn read_secret_file(path: &Path) -> Result<Option<String>> {
    Ok(match read_file(path)? {
        None => None,
        Some(bytes) => Some(
            String::from_utf8(bytes).map_err(|_| VaultError::invalid(path.display().to_string(), "it is not text"))?,
        ),
    })
}

pub(crate) fn read_file(path: &Path) -> Result<Option<Vec<u8>>> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(path, "reading it", e)),
    };
    let mut bytes = Vec::new();
    file.take(STATE_FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(|e| failed(path, "reading it", e))?;
    Ok(Some(bytes))
}

/// Writes a file of mode 0600, whole or not at all, durable when it returns.
pub(crate) fn write_secret_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let base = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let temporary = parent.join(format!(".{base}.{:016x}", random_u64()));
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(parent)?.sync_all()
    };
    write().map_err(|e| {
        let _ = fs::remove_file(&temporary);
        failed(path, "writing it", e)
    })
}

pub(crate) fn read_json<T: serde::de::DeserializeOwned + Default>(path: &Path) -> Result<T> {
    let Some(text) = read_secret_file(path)? else { return Ok(T::default()) };
    serde_json::from_str(&text)
        .map_err(|e| VaultError::invalid(path.display().to_string(), format!("it cannot be read: {e}")))
}

pub(crate) fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_vec_pretty(value).map_err(|_| VaultError::crypto("encoding state"))?;
    write_secret_file(path, &text)
}
