//! When a data set was last verified, as the vault itself says: the newest verification of any of its points that counts.
//!
//! Invariant: what is signed by nobody on the roster, and what lies under another name than its own moment, counts for nothing.

use jiff::Timestamp;

use super::{Badge, VERIFICATION_KIND, Verification, check_verification};
use crate::codec;
use crate::error::{Doing, Result, VaultError};
use crate::name;
use crate::open::Vault;
use crate::sign::Signed;

/// A verification that stands in the vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedPoint {
    /// As `points` shows it.
    pub point: String,
    pub badge: Badge,
    /// What was looked at.
    pub depth: String,
    pub at: Timestamp,
}

impl Vault {
    /// The newest verification of a data set's points of which what was looked at begins so. One that was pruned with its point is gone.
    pub fn last_verification(&self, dataset: &str, depth: &str) -> Result<Option<VerifiedPoint>> {
        let roster = self.roster();
        let listed = self.storage().list("verify/").doing(|| "listing verifications".to_owned())?;
        let wanted = name::encode(dataset);
        let mut of_it: Vec<(&str, &str)> = listed
            .iter()
            .filter_map(|object| {
                let (place, moment) = object.key.strip_prefix("verify/")?.rsplit_once('/')?;
                (place.split('/').nth(1) == Some(wanted.as_str())).then_some((moment, place))
            })
            .collect();
        // The moment stands first in its name, with as many digits as any.
        of_it.sort_unstable();
        for (moment, place) in of_it.into_iter().rev() {
            let key = format!("verify/{place}/{moment}");
            let bytes = match self.storage().get(&key) {
                Err(error) if error.is_not_found() => continue,
                read => read.doing(|| format!("reading {key}"))?,
            };
            let opened = Signed::open(VERIFICATION_KIND, &key, &bytes).and_then(|signed| {
                check_verification(&roster, &format!("snap/{place}"), &key, &signed)?;
                codec::decode::<Verification>(&key, &signed.payload)
            });
            let value = match opened {
                Ok(value) => value,
                Err(VaultError::Untrusted { .. } | VaultError::Damaged { .. }) => continue,
                Err(error) => return Err(error),
            };
            let at = Timestamp::from(value.at);
            let is_in_its_place = moment.starts_with(&format!("{:020}-", at.as_nanosecond()));
            if is_in_its_place && value.depth.starts_with(depth) {
                let badge = Badge::from_number(value.badge);
                return Ok(Some(VerifiedPoint { point: place.to_owned(), badge, depth: value.depth, at }));
            }
        }
        Ok(None)
    }
}
