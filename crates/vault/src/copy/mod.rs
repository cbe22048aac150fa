//! Copies of a vault, made without any key: to another storage, to a medium that is carried away, and back.
//!
//! ```text
//! list both ─ held against each other (forked? foreign?) ─ roster ─ keys ─ packs ─ indexes ─ refs ─ logs ─ tombstones ─ points
//! ```
//! Invariants: every object is checked (hash or signature) on the way, and a damaged one is left behind, by name; nothing in the
//! target is replaced; a point appears there after everything that it may need, so that a copy that was cut off is an older vault and
//! not a broken one; what was pruned does not come back.

mod carry;
mod memory;
mod plan;
mod record;
mod since;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use jiff::Timestamp;

use crate::error::{Doing, Result, VaultError};
use crate::finding::{Finding, Severity};
use crate::host::State;
use crate::name;
use crate::open::{Unlocked, Vault};
use crate::sign::SigningKey;
use crate::storage::Storage;

pub use self::memory::KnownCopy;
pub(crate) use self::plan::LOGS_AT_ONCE;
pub use self::record::CopyRecord;
pub(crate) use self::record::{KIND as RECORD_KIND, LeftOut, check as check_record, parse as parse_record};

/// What a copy is told.
#[derive(Debug, Clone)]
pub struct CopyOptions {
    /// The owner's fingerprint expected at both ends.
    pub owner: Option<String>,
    /// Only this data set; everything without it.
    pub dataset: Option<String>,
    /// Of each chain of points only those from this moment on, and the one before, so that every moment since can be restored.
    pub since: Option<Timestamp>,
    /// The vault that is copied, opened: then packs that none of those points needs stay behind, and the owner's key signs the record.
    pub opened: Option<Unlocked>,
    /// So many objects are on their way at a time.
    pub parallel: usize,
    pub bytes_per_second: Option<u64>,
    /// This machine's memory of heads, and the key that signs the record of the copy.
    pub state: State,
}

impl CopyOptions {
    /// All of it, four objects at a time.
    pub fn new(state: State) -> CopyOptions {
        CopyOptions {
            owner: None,
            dataset: None,
            since: None,
            opened: None,
            parallel: 4,
            bytes_per_second: None,
            state,
        }
    }

    /// Who signs the record: the owner where its key is at hand.
    fn signer(&self) -> &SigningKey {
        let owner = self.opened.as_ref().and_then(|opened| opened.owner_key.as_deref());
        owner.unwrap_or_else(|| self.state.signing_key())
    }
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
    /// Recovery points and packs of the source that stay behind, because they are older than was asked for.
    pub points_left_out: u64,
    pub packs_left_out: u64,
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
    check_may_leave_out(&source, options, &plan)?;
    let entry = record::Entry { source: &source, to: &**to, signer: options.signer(), plan: &plan, options };
    let number = entry.begin()?;
    let remember = |report: &CopyReport, whole| options.state.keep_copy(&to.location(), &plan, options, report, whole);
    remember(&report, false)?;
    let whole = carry::carry(&source, &**to, &plan, options, progress, cancel, &mut report)?;
    if whole {
        entry.finish(number, &report)?;
        remember(&report, true)?;
    }
    report.complete = whole;
    Ok(report)
}

/// Whoever reads a copy that lacks points must be able to tell intent from loss.
fn check_may_leave_out(source: &Vault, options: &CopyOptions, plan: &plan::Plan) -> Result<()> {
    let is_whole = plan.lacks.is_empty() && plan.lacks_until_done.is_empty();
    if is_whole || record::may_leave_out(&source.roster(), &options.signer().public()) {
        return Ok(());
    }
    Err(VaultError::Refused {
        what: "leaving out older recovery points".to_owned(),
        why: "the record that says they are no loss must be signed by the owner, or by a person, a controller or a pruner on the roster; \
              give the owner's key (--key)"
            .to_owned(),
    })
}

/// The vault at the target, where there is one; it must be this one.
fn open_target(source: &Vault, to: &Arc<dyn Storage>, options: &CopyOptions) -> Result<Option<Vault>> {
    let rosters = to.list(name::ROSTER).doing(|| "listing the target".to_owned())?;
    if rosters.is_empty() {
        let listed = to.list("").doing(|| "listing the target".to_owned())?;
        let foreign = listed.iter().find(|o| !o.key.starts_with(record::PREFIX) && o.key != name::README);
        return match foreign {
            None => Ok(None),
            Some(object) => Err(VaultError::Refused {
                what: format!("copying to {}", to.location()),
                why: format!("it is neither empty nor a vault: it holds {}; choose another place", object.key),
            }),
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
