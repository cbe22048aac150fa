//! Making a vault in an empty place.
//!
//! Invariant: the roster comes last: before it there is no vault, and what a making that was cut short left is nobody's.

use std::sync::Arc;

use crate::codec::Moment;
use crate::crypt::{hex, random};
use crate::error::{Doing, Result, VaultError};
use crate::finding::Finding;
use crate::host::State;
use crate::keys::{self, Pair};
use crate::name;
use crate::open::{HostVault, Vault};
use crate::roster::{self, Holder, Member, Role, Roster};
use crate::seal::{Identity, Recipient};
use crate::sign::SigningKey;
use crate::storage::Storage;

const README: &str = "This is a lifeboat vault: recovery points, sealed to the owner's keys.

Restore:  lifeboat restore --vault THIS-PLACE --key YOUR.key --to DIR

Without lifeboat: docs/vault-format.md describes every object. The files keys/**/*.age are age files; any recipient's
identity opens them:  age -d -i YOUR.key keys/content/DATASET/HASH.age
Do not change or delete anything here by hand.
";

/// What `Vault::init` is told.
#[derive(Debug, Clone, Default)]
pub struct InitOptions {
    /// age recipients, any one of which opens everything; two or more are wise.
    pub recipients: Vec<Recipient>,
    /// Keys that open one data set only.
    pub holders: Vec<Holder>,
    /// Data sets whose content keys are made now; others are made by the host that first writes them.
    pub datasets: Vec<String>,
    /// Roles of this machine on the roster; `Host` alone if empty.
    pub roles: Vec<Role>,
    /// Others to put on the first roster.
    pub members: Vec<Member>,
}

/// What `Vault::init` made.
#[derive(Debug, Clone)]
pub struct Initialised {
    /// The owner's fingerprint: `key.owner` in the plan.
    pub owner: String,
    pub vault: String,
    pub findings: Vec<Finding>,
}

impl Vault {
    /// Makes a vault in an empty storage, with this host on its roster.
    pub fn init(storage: Arc<dyn Storage>, state: &State, options: &InitOptions) -> Result<(HostVault, Initialised)> {
        match roster::load(&*storage, None) {
            Err(VaultError::NoVault { .. }) => {}
            Ok(loaded) => {
                let owner = loaded.roster.owner.fingerprint();
                return Err(VaultError::VaultExists { location: storage.location(), owner });
            }
            Err(e) => return Err(e),
        }
        if options.recipients.is_empty() {
            return Err(VaultError::invalid(
                "the list of recipients",
                "it is empty: give at least one, better two (`lifeboat key new` makes one)",
            ));
        }
        state.keep_name()?;
        clear_unfinished(&*storage)?;
        let owner = SigningKey::generate()?;
        let refs = Identity::generate();
        let roles = if options.roles.is_empty() { vec![Role::Host] } else { options.roles.clone() };
        let mut members = vec![member_of(state, roles)];
        members.extend(options.members.iter().cloned());
        let roster = Roster {
            vault: hex(&random::<16>()),
            version: 1,
            previous: None,
            owner: owner.public(),
            refs: refs.recipient().to_string(),
            recipients: options.recipients.iter().map(Recipient::to_string).collect(),
            holders: options.holders.clone(),
            members,
            at: Moment::from(jiff::Timestamp::now()),
        };
        roster.check_valid()?;
        let by = (&roster, &owner);
        keys::state(
            &*storage,
            Pair::Owner,
            1,
            by,
            &owner.public().to_string(),
            &hex(owner.seed()),
            &options.recipients,
        )?;
        let openers = roster.recipients_of_refs()?;
        keys::state(&*storage, Pair::Refs, 1, by, &roster.refs, &refs.expose(), &openers)?;
        for dataset in &options.datasets {
            name::check(dataset, "the data set's name")?;
            let content = Identity::generate();
            let recipients = roster.recipients_of(dataset)?;
            keys::state(
                &*storage,
                Pair::Content(dataset),
                1,
                by,
                &content.recipient().to_string(),
                &content.expose(),
                &recipients,
            )?;
        }
        storage.put_if_absent(name::README, README.as_bytes()).doing(|| "writing README.txt".to_owned())?;
        // The roster comes last: before it there is no vault.
        roster.publish(&*storage, &owner)?;
        let fingerprint = owner.public().fingerprint();
        let vault = HostVault::open(storage, state.clone(), Some(&fingerprint))?;
        let findings = vault.findings();
        let vault_id = roster.vault.clone();
        Ok((vault, Initialised { owner: fingerprint, vault: vault_id, findings }))
    }
}

/// This machine, as it goes on a roster.
pub(crate) fn member_of(state: &State, roles: Vec<Role>) -> Member {
    Member {
        name: state.host_name().to_owned(),
        roles,
        key: state.signing_key().public(),
        index: Some(state.index_key().recipient().to_string()),
        revoked: None,
    }
}

/// Removes the keys of a vault whose making was interrupted: without a roster nothing was ever sealed to them. Where there is
/// data all the same, the roster is what is missing, and nothing is touched.
fn clear_unfinished(storage: &dyn Storage) -> Result<()> {
    for prefix in ["snap/", "index/", "pack/", "refs/", "log/"] {
        if !storage.list(prefix).doing(|| format!("listing {prefix}"))?.is_empty() {
            return Err(VaultError::Missing { object: name::roster(1) });
        }
    }
    for object in storage.list("keys/").doing(|| "listing keys".to_owned())? {
        storage.delete(&object.key).doing(|| format!("removing {}", object.key))?;
    }
    Ok(())
}
