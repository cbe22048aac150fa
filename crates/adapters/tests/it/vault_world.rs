//! A vault on the spot, for tests of sources.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lifeboat_engine::port::NamedVault;
use lifeboat_vault::storage::{self, Faulty, Storage};
use lifeboat_vault::{HostVault, Identity, InitOptions, State, Unlocked, Vault};

/// One vault in a directory, with a storage that can be broken.
pub(crate) struct VaultWorld {
    pub(crate) storage: Arc<Faulty>,
    pub(crate) host: HostVault,
    pub(crate) name: String,
    key: Identity,
}

impl VaultWorld {
    pub(crate) fn new(root: &Path, name: &str) -> VaultWorld {
        let storage = Faulty::new(storage::create(vault_directory(root, name).to_str().unwrap()).unwrap());
        let key = Identity::generate();
        let state = State::open(&state_directory(root), Some("host-1")).unwrap();
        let options = InitOptions {
            recipients: vec![key.recipient(), Identity::generate().recipient()],
            ..InitOptions::default()
        };
        let (host, _) = Vault::init(storage.clone(), &state, &options).unwrap();
        VaultWorld { storage, host, name: name.to_owned(), key }
    }

    pub(crate) fn named(&self) -> NamedVault {
        NamedVault { name: self.name.clone(), vault: self.host.clone() }
    }

    /// As another process opens it, which remembers nothing of what it has read.
    pub(crate) fn reopened(&self) -> NamedVault {
        let vault = HostVault::open(self.storage.clone(), self.host.state().clone(), None).unwrap();
        NamedVault { name: self.name.clone(), vault }
    }

    pub(crate) fn expose_key(&self) -> String {
        self.key.expose()
    }

    pub(crate) fn unlocked(&self) -> Unlocked {
        let storage: Arc<dyn Storage> = self.storage.clone();
        Vault::open(storage, None, None).unwrap().unlock(std::slice::from_ref(&self.key)).unwrap()
    }
}

pub(crate) fn vault_directory(root: &Path, name: &str) -> PathBuf {
    root.join(format!("vault-{name}"))
}

pub(crate) fn state_directory(root: &Path) -> PathBuf {
    root.join("state")
}

/// Polls until something is there.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
