//! Who may sign what in the arbiter's storage.
//!
//! Invariant: a host decides nothing. It reports, and on the very first day, when nobody was ever named, it may publish what the
//! plan says; every later claim and generation, every lock and journal is a controller's. It reports for its own site.

use std::collections::{BTreeMap, BTreeSet};

use lifeboat_vault::{PublicKey, Role};
use serde::{Deserialize, Serialize};

/// Somebody on the roster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trustee {
    pub name: String,
    pub roles: Vec<Role>,
}

impl Trustee {
    pub fn new(name: impl Into<String>, roles: &[Role]) -> Trustee {
        Trustee { name: name.into(), roles: roles.to_vec() }
    }

    pub(crate) fn may_sign(&self, key: &str) -> bool {
        self.roles.iter().any(|role| signers(key).contains(role))
    }
}

/// Who is believed: public keys, under which name they are on the roster, and as what.
pub type Trusted = BTreeMap<PublicKey, Trustee>;

/// Sites, and the names on the roster of the hosts that belong there.
pub type SiteHosts = BTreeMap<String, BTreeSet<String>>;

/// The roles whose word counts at this place.
pub(crate) fn signers(key: &str) -> &'static [Role] {
    let mut parts = key.split('/');
    let (kind, number) = (parts.next().unwrap_or_default(), parts.next_back().unwrap_or_default());
    match kind {
        "epochs" | "desired" | "traffic" if number == "1" => &[Role::Controller, Role::Host],
        "agents" => &[Role::Host],
        "leases" | "arbiter" => &[Role::Controller, Role::Host],
        "canary" => &[Role::Controller, Role::Host, Role::Observer],
        _ => &[Role::Controller],
    }
}

/// Roles in a sentence.
pub fn role_names(roles: &[Role], joint: &str) -> String {
    if roles.is_empty() {
        return "nothing".to_owned();
    }
    roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(joint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_begins_the_first_day_and_decides_nothing_after_it() {
        let host = Trustee::new("paris", &[Role::Host]);
        for own in [
            "epochs/shop/1",
            "desired/shop/1",
            "traffic/shop.example./1",
            "agents/paris/db",
            "leases/paris/shop/4",
            "canary/s/7",
        ] {
            assert!(host.may_sign(own), "{own}");
        }
        for other in [
            "epochs/shop/2",
            "desired/shop/12",
            "traffic/x./21",
            "locks/shop/1",
            "lock-beats/shop/1",
            "journal/run/1",
            "new/1",
        ] {
            assert!(!host.may_sign(other), "{other}");
            assert!(Trustee::new("us", &[Role::Controller]).may_sign(other), "{other}");
        }
        for role in [Role::Person, Role::Observer, Role::Pruner, Role::Keeper] {
            assert!(!Trustee::new("x", &[role]).may_sign("desired/shop/1"), "{role:?}");
            assert!(!Trustee::new("x", &[role]).may_sign("agents/paris/db"), "{role:?}");
        }
    }
}
