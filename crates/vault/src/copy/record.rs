//! What is written down in a copy about its copying: begun, done, and the newest points that the source had then.
//!
//! Signed by whoever copied (no right is needed for it). Invariant: a copy that was begun and not finished is known as a half one; the
//! heads count as seen only if a member of the roster signed them.

use jiff::Timestamp;
use minicbor::{Decode, Encode};

use super::CopyReport;
use super::plan::Plan;
use crate::codec::{self, Hash, Moment};
use crate::error::{Doing, Result, VaultError};
use crate::host::State;
use crate::name;
use crate::open::Vault;
use crate::roster::Roster;
use crate::sign::Signed;
use crate::storage::{Put, Storage};

pub(crate) const KIND: &str = "vault.copy";
pub(super) const PREFIX: &str = "copy/";
const BEGUN: &str = "a-begun";
pub(super) const DONE: &str = "b-done";

#[derive(Debug, Encode, Decode)]
struct Body {
    #[n(0)]
    vault: String,
    #[n(1)]
    number: u64,
    #[n(2)]
    done: bool,
    #[n(3)]
    from: String,
    #[n(4)]
    at: Moment,
    /// To carry, or carried.
    #[n(5)]
    objects: u64,
    #[n(6)]
    bytes: u64,
    #[n(7)]
    heads: Vec<HeadSeen>,
}

#[derive(Debug, Clone, Encode, Decode)]
struct HeadSeen {
    #[n(0)]
    chain: String,
    #[n(1)]
    number: u64,
    #[n(2)]
    hash: Hash,
}

/// One copying into a storage.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct CopyRecord {
    /// Where it came from, as who copied called it.
    pub from: String,
    pub at: Timestamp,
    pub done: bool,
    pub objects: u64,
    pub bytes: u64,
    /// Whether a member of the roster signed it.
    pub signed_by_member: bool,
    /// The newest points at the source by then: chain, number, hash.
    pub heads: Vec<(String, u64, String)>,
}

fn key(number: u64, what: &str) -> String {
    format!("{PREFIX}{}-{what}", name::number(number))
}

/// The number and whether it is done, from the last part of a key.
pub(crate) fn parse(part: &str) -> Option<(u64, bool)> {
    let (number, what) = part.split_once('-')?;
    match what {
        BEGUN => Some((name::parse_number(number)?, false)),
        DONE => Some((name::parse_number(number)?, true)),
        _ => None,
    }
}

pub(crate) fn check(roster: &Roster, key: &str, number: u64, done: bool, signed: &Signed) -> Result<()> {
    let body: Body = codec::decode(key, &signed.payload)?;
    match body.vault == roster.vault && body.number == number && body.done == done {
        true => Ok(()),
        false => Err(VaultError::untrusted(key, "it belongs to another place")),
    }
}

fn bytes_of(
    source: &Vault,
    state: &State,
    plan: &Plan,
    number: u64,
    done: bool,
    counts: (u64, u64),
) -> Result<Vec<u8>> {
    let heads = plan.heads.iter();
    let body = Body {
        vault: source.id(),
        number,
        done,
        from: source.storage().location(),
        at: Timestamp::now().into(),
        objects: counts.0,
        bytes: counts.1,
        heads: heads
            .map(|(chain, number, hash)| HeadSeen { chain: chain.clone(), number: *number, hash: *hash })
            .collect(),
    };
    Signed::seal(KIND, &codec::encode(&body)?, state.signing_key())
}

/// Writes down that a copy is begun, before anything is carried; answers its number.
pub(super) fn begin(source: &Vault, to: &dyn Storage, state: &State, plan: &Plan) -> Result<u64> {
    let listed = to.list(PREFIX).doing(|| "listing records of copies".to_owned())?;
    let newest = listed.iter().filter_map(|o| parse(o.key.strip_prefix(PREFIX)?)).map(|(number, _)| number).max();
    let mut number = newest.unwrap_or(0) + 1;
    let objects = plan.phases.iter().flatten().map(|row| row.len() as u64).sum();
    loop {
        let key = key(number, BEGUN);
        let bytes = bytes_of(source, state, plan, number, false, (objects, plan.bytes))?;
        match to.put_if_absent(&key, &bytes).doing(|| format!("writing {key}"))? {
            Put::Created => return Ok(number),
            Put::Exists => number += 1,
        }
    }
}

pub(super) fn finish(
    source: &Vault,
    to: &dyn Storage,
    state: &State,
    plan: &Plan,
    number: u64,
    report: &CopyReport,
) -> Result<()> {
    let key = key(number, DONE);
    let bytes = bytes_of(source, state, plan, number, true, (report.objects_copied, report.bytes_copied))?;
    to.put_if_absent(&key, &bytes).doing(|| format!("writing {key}")).map(|_| ())
}

/// Every record that can be read.
pub(super) fn read(vault: &Vault) -> Result<Vec<CopyRecord>> {
    let roster = vault.roster();
    let mut records = Vec::new();
    for object in vault.storage().list(PREFIX).doing(|| "listing records of copies".to_owned())? {
        let bytes = vault.storage().get(&object.key).doing(|| format!("reading {}", object.key))?;
        let Ok(signed) = Signed::open(KIND, &object.key, &bytes) else { continue };
        let Ok(body) = codec::decode::<Body>(&object.key, &signed.payload) else { continue };
        if body.vault != roster.vault {
            continue;
        }
        let is_member = roster.member(&signed.signer).is_some_and(|member| member.revoked.is_none());
        records.push(CopyRecord {
            from: body.from,
            at: body.at.into(),
            done: body.done,
            objects: body.objects,
            bytes: body.bytes,
            signed_by_member: is_member,
            heads: body.heads.into_iter().map(|h| (h.chain, h.number, h.hash.to_string())).collect(),
        });
    }
    Ok(records)
}
