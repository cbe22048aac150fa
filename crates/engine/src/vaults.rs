//! The plan's vaults, as this machine reaches them.
//!
//! Invariant: a vault is only believed if it has the owner that the plan names, where the plan names one.

use lifeboat_vault::storage;
use lifeboat_vault::{HostVault, Identity, State, Unlocked, Vault};

use crate::port::PortError;

/// Where a vault is, and who this machine is to it.
#[derive(Debug, Clone)]
pub struct VaultPlace {
    pub name: String,
    pub url: String,
    pub state: State,
    /// The owner's fingerprint.
    pub owner: Option<String>,
}

impl VaultPlace {
    /// Reads what is in the clear.
    pub fn open(&self) -> Result<Vault, PortError> {
        let storage = storage::open(&self.url).map_err(|error| self.away(error))?;
        Vault::open(storage, Some(self.state.clone()), self.owner.as_deref()).map_err(|error| self.failed(error))
    }

    /// Writes with public keys only.
    pub fn as_host(&self) -> Result<HostVault, PortError> {
        let storage = storage::open(&self.url).map_err(|error| self.away(error))?;
        HostVault::open(storage, self.state.clone(), self.owner.as_deref()).map_err(|error| self.failed(error))
    }

    /// Reads what the identities open.
    pub fn unlocked(&self, identities: &[Identity]) -> Result<Unlocked, PortError> {
        self.open()?.unlock(identities).map_err(|error| self.failed(error))
    }

    fn away(&self, error: storage::StorageError) -> PortError {
        PortError::may_pass(format!("the vault `{}` at {} cannot be reached", self.name, self.url)).because(error)
    }

    fn failed(&self, error: lifeboat_vault::VaultError) -> PortError {
        let text = format!("the vault `{}` at {} cannot be opened", self.name, self.url);
        let failure = if error.may_pass() { PortError::may_pass(text) } else { PortError::new(text) };
        failure.because(error)
    }
}
