//! Vaults behind `lifeboat vault serve`: `ssh://[USER@]HOST[:PORT]/PATH` through the system's ssh, `unix:///SOCKET` on this machine.
//!
//! Invariant: this end proves who it is with the host's own key, where it is asked; what else opens a door (ssh's keys) is ssh's.

mod listen;
mod ssh;
mod unix;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use lifeboat_vault::SigningKey;
use lifeboat_vault::serve::Remote;
use lifeboat_vault::storage::{self, Storage, StorageError};

pub use self::listen::{Listener, serve_stdio};

static KEYS: OnceLock<PathBuf> = OnceLock::new();

/// Where this host's own key lies. Said once, before an address is opened; without it this end has no name.
pub fn keys_lie_in(state: &Path) {
    // Who says it a second time says the same: there is one state directory a process.
    let _ = KEYS.set(state.to_owned());
}

/// This host's key, if it was made already: asking for a vault makes none.
fn key() -> Option<SigningKey> {
    let path = KEYS.get()?.join("host.key");
    if !path.exists() {
        return None;
    }
    SigningKey::load_or_create(&path).ok()
}

pub(super) fn register() {
    storage::register("ssh", open_ssh);
    storage::register("unix", open_unix);
}

fn open_ssh(url: &str, _make: bool) -> Result<Arc<dyn Storage>, StorageError> {
    Ok(Arc::new(Remote::connect(Box::new(ssh::Ssh::new(url)?))?))
}

fn open_unix(url: &str, _make: bool) -> Result<Arc<dyn Storage>, StorageError> {
    Ok(Arc::new(Remote::connect(Box::new(unix::Unix::new(url)?))?))
}
