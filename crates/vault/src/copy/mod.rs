//! Copies of a vault, made without any key: to another storage, to a medium that is carried away, and back.
//!
//! ```text
//! list both ─ held against each other (forked? foreign?) ─ roster ─ keys ─ packs ─ indexes ─ refs ─ logs ─ tombstones ─ points
//! ```
//! Invariants: every object is checked (hash or signature) on the way, and a damaged one is left behind, by name; nothing in the
//! target is replaced; a point appears there after everything that it may need, so that a copy that was cut off is an older vault and
//! not a broken one; what was pruned does not come back.

mod carry;
mod plan;
mod record;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::error::{Doing, Result, VaultError};
use crate::finding::{Finding, Severity};
use crate::host::State;
use crate::name;
use crate::open::Vault;
use crate::storage::Storage;

pub use self::record::CopyRecord;
pub(crate) use self::record::{KIND as RECORD_KIND, check as check_record, parse as parse_record};

/// What a copy is told.
#[derive(Debug, Clone)]
pub struct CopyOptions {
    /// The owner's fingerprint expected at both ends.
    pub owner: Option<String>,
    /// Only this data set; everything without it.
    pub dataset: Option<String>,
    /// So many objects are on their way at a time.
    pub parallel: usize,
    pub bytes_per_second: Option<u64>,
    /// This machine's memory of heads, and the key that signs the record of the copy.
    pub state: State,
}

/// What was copied, and what was found.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct CopyReport {
    pub vault: String,
    pub findings: Vec<Finding>,
    pub objects_copied: u64,
    pub bytes_copied: u64,
    /// Objects that the target had already.
    pub objects_there: u64,
    /// Recovery points that are new in the target.
    pub points_copied: u64,
    /// Whether the target now has everything that the source had when it was listed, as far as it was right.
    pub complete: bool,
}

/// Called with bytes done and bytes to do.
pub type CopyProgress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// Copies what the target lacks. May be stopped or killed at any moment and run again.
pub fn copy(
    from: &Arc<dyn Storage>,
    to: &Arc<dyn Storage>,
    options: &CopyOptions,
    progress: CopyProgress<'_>,
    cancel: &AtomicBool,
) -> Result<CopyReport> {
    let source = Vault::open(from.clone(), Some(options.state.clone()), options.owner.as_deref())?;
    let target = open_target(&source, to, options)?;
    let mut report = CopyReport { vault: source.id(), findings: source.findings(), ..CopyReport::default() };
    report.findings.retain(|finding| finding.code != "one-recipient");
    // The points first: what they need is in the listings that follow.
    let plan = plan::make(&source, to, target.as_ref(), options, &mut report)?;
    let number = record::begin(&source, &**to, &options.state, &plan)?;
    let whole = carry::carry(&source, &**to, &plan, options, progress, cancel, &mut report)?;
    if whole && options.dataset.is_none() {
        record::finish(&source, &**to, &options.state, &plan, number, &report)?;
    }
    report.complete = whole;
    Ok(report)
}

/// The vault at the target, where there is one; it must be this one.
fn open_target(source: &Vault, to: &Arc<dyn Storage>, options: &CopyOptions) -> Result<Option<Vault>> {
    let rosters = to.list(name::ROSTER).doing(|| "listing the target".to_owned())?;
    if rosters.is_empty() {
        let listed = to.list("").doing(|| "listing the target".to_owned())?;
        let foreign = listed.iter().find(|o| !o.key.starts_with(record::PREFIX) && o.key != name::README);
        return match foreign {
            None => Ok(None),
            Some(object) => Err(VaultError::invalid(
                format!("the target {}", to.location()),
                format!("it is neither empty nor a vault: it holds {}; choose another place", object.key),
            )),
        };
    }
    let target = Vault::open(to.clone(), Some(options.state.clone()), Some(source.owner()))?;
    if target.id() != source.id() {
        let why = format!("it is vault {}, the source is vault {}; choose another place", target.id(), source.id());
        return Err(VaultError::invalid(format!("the target {}", to.location()), why));
    }
    Ok(Some(target))
}

impl Vault {
    /// What was copied into this vault's storage, oldest first; empty where it is no copy.
    pub fn copy_records(&self) -> Result<Vec<CopyRecord>> {
        record::read(self)
    }

    /// A copy into this storage that was begun and not finished: the newest points may not be there yet.
    pub(crate) fn unfinished_copy(&self) -> Result<Option<Finding>> {
        let listed = self.storage().list(record::PREFIX).doing(|| "listing records of copies".to_owned())?;
        let Some(newest) = listed.iter().map(|o| o.key.as_str()).max() else { return Ok(None) };
        if newest.ends_with(record::DONE) {
            return Ok(None);
        }
        let message = "this is a half copy: what copied into it was cut off, and the newest recovery points may not be there yet; run \
                       `lifeboat vault copy` again";
        Ok(Some(Finding::new(Severity::Warning, "half-copy", newest, message)))
    }
}
