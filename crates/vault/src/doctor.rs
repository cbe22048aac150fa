//! Whether a storage lets these credentials do what their holder needs, and nothing more: tried out, not read from settings.
//!
//! Everything is tried in a hidden place beside the objects, on an object of its own. Invariant: no object of a vault is
//! touched, and what could not be removed again is named.

use std::sync::{Arc, Barrier};

use crate::crypt;
use crate::storage::{Fact, Put, Storage, StorageError, Verdict};

/// Who holds the credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Writes backups: creates, and never replaces or deletes.
    Host,
    /// Deletes what nothing needs any more.
    Pruner,
    /// Restores and checks.
    Reader,
}

/// What was found, the storage's own facts included.
#[derive(Debug)]
pub struct Examination {
    pub facts: Vec<Fact>,
    /// The object that stays because it may not be deleted.
    pub left_behind: Option<String>,
}

impl Examination {
    pub fn is_well(&self) -> bool {
        self.facts.iter().all(|fact| fact.verdict != Verdict::Finding)
    }
}

const RACERS: usize = 8;
/// Of each kind so many bytes of one object are read.
const READ_BYTES_MAX: u64 = 1 << 20;
const SERVE: &str = "keep hosts from the directory itself: let them write through `lifeboat vault serve`";

/// Tries out what `wanted` needs and must not have. `host` is the name under which this machine writes.
pub fn examine(storage: &dyn Storage, wanted: Wanted, host: Option<&str>) -> Examination {
    let mut examined = Examination { facts: Vec::new(), left_behind: None };
    if !read_own(storage, host, &mut examined.facts) {
        return examined;
    }
    match storage.rehearsal() {
        Ok(Some(place)) => rehearse(&place, wanted, storage.is_append_only_by_policy(), &mut examined),
        Ok(None) => examined.facts.push(Fact::unknown(
            "rehearsal",
            "what may be written and deleted cannot be tried out through this kind of storage; run this where the storage lies",
        )),
        Err(error) if wanted == Wanted::Reader && is_denied(&error) => {
            examined.facts.push(Fact::good("create", "may not create objects"));
        }
        Err(error) => examined.facts.push(failed("rehearsal", "a place to try things out cannot be had", &error)),
    }
    // Afterwards: what the storage knows of its clock and versions it has heard by now.
    examined.facts.extend(storage.facts());
    examined
}

fn failed(code: &'static str, what: &str, error: &StorageError) -> Fact {
    Fact::finding(code, format!("{what}: {}", with_cause(error)), "")
}

fn is_denied(error: &StorageError) -> bool {
    use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    match error {
        StorageError::Denied { .. } => true,
        StorageError::Io { source, .. } => matches!(source.kind(), PermissionDenied | ReadOnlyFilesystem),
        _ => false,
    }
}

fn with_cause(error: &StorageError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// Lists and reads what every party reads. Whether the storage can be used at all.
fn read_own(storage: &dyn Storage, host: Option<&str>, facts: &mut Vec<Fact>) -> bool {
    let own =
        |kind: &str| host.map_or_else(|| format!("{kind}/"), |host| format!("{kind}/{}/", crate::name::encode(host)));
    let mut objects = 0;
    for prefix in ["roster/".to_owned(), own("index"), own("snap"), "log/".to_owned()] {
        let listed = match storage.list(&prefix) {
            Ok(listed) => listed,
            Err(error) => {
                facts.push(failed("list", &format!("{prefix} cannot be listed"), &error));
                return false;
            }
        };
        objects += listed.len();
        if let Some(newest) = listed.last()
            && let Err(error) = storage.get_range(&newest.key, 0, READ_BYTES_MAX)
        {
            facts.push(failed("read", &format!("{} cannot be read", newest.key), &error));
        }
    }
    if facts.is_empty() {
        facts.push(Fact::good(
            "list",
            format!(
                "lists and reads rosters, indexes, points and logs ({objects} {})",
                if objects == 1 { "object" } else { "objects" }
            ),
        ));
    }
    true
}

fn rehearse(place: &Arc<dyn Storage>, wanted: Wanted, by_policy: bool, examined: &mut Examination) {
    let key = format!("{:016x}", crypt::random_u64());
    let facts = &mut examined.facts;
    match race(place, &key) {
        Err(StorageError::Denied { .. }) if wanted == Wanted::Reader => {
            facts.push(Fact::good("create", "may not create objects"));
            return;
        }
        Err(error) => {
            facts.push(failed("create", "no object can be created", &error));
            return;
        }
        Ok(1) => {
            facts.push(Fact::good(
                "one-winner",
                format!("of {RACERS} that created one object at once, exactly one did"),
            ));
        }
        Ok(won) => facts.push(Fact::finding(
            "one-winner",
            format!("of {RACERS} that created one object at once, {won} were told that they did"),
            "use another storage: two writers would both believe that they are the one",
        )),
    }
    if wanted == Wanted::Reader {
        facts.push(Fact::finding("create", "may create objects", "a reader needs no right to write: take it away"));
    }
    replace(place, &key, wanted, by_policy, facts);
    examined.left_behind = delete(place, &key, wanted, by_policy, facts);
}

/// How many of many were told that they created it.
fn race(place: &Arc<dyn Storage>, key: &str) -> Result<usize, StorageError> {
    let together = Barrier::new(RACERS);
    let answers: Vec<Result<Put, StorageError>> = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..RACERS)
            .map(|_| {
                let (place, together) = (place.clone(), &together);
                scope.spawn(move || {
                    together.wait();
                    place.put_if_absent(key, b"lifeboat vault doctor tries what it may do; this may be deleted\n")
                })
            })
            .collect();
        racers.into_iter().filter_map(|racer| racer.join().ok()).collect()
    });
    let mut won = 0;
    for answer in answers {
        won += usize::from(answer? == Put::Created);
    }
    Ok(won)
}

fn replace(place: &Arc<dyn Storage>, key: &str, wanted: Wanted, by_policy: bool, facts: &mut Vec<Fact>) {
    match place.put(key, b"lifeboat vault doctor could replace this\n") {
        Err(StorageError::Denied { .. }) => {
            facts.push(Fact::good("replace", "may not replace an object that is there"))
        }
        Err(error) => facts.push(failed("replace", "whether objects can be replaced could not be found out", &error)),
        Ok(()) if wanted == Wanted::Host || wanted == Wanted::Reader => facts.push(Fact::finding(
            "replace",
            "may replace objects that are there: who breaks in here can destroy every backup",
            if by_policy { "put the policy below on the bucket, or turn on versions with Object Lock" } else { SERVE },
        )),
        Ok(()) => facts.push(Fact::good("replace", "may replace objects, as a pruner may")),
    }
}

/// The object that stays, if it does.
fn delete(
    place: &Arc<dyn Storage>,
    key: &str,
    wanted: Wanted,
    by_policy: bool,
    facts: &mut Vec<Fact>,
) -> Option<String> {
    let named = || Some(format!("{}/{key}", place.location()));
    match (place.delete(key), wanted) {
        (Err(StorageError::Denied { .. }), Wanted::Host | Wanted::Reader) => {
            facts.push(Fact::good("delete", "may not delete objects"));
            named()
        }
        (Err(StorageError::Denied { .. }), Wanted::Pruner) => {
            facts.push(Fact::finding(
                "delete",
                "may not delete objects, which a pruner must",
                "put the pruner's policy below on the bucket",
            ));
            named()
        }
        (Err(error), _) => {
            facts.push(failed("delete", "whether objects can be deleted could not be found out", &error));
            named()
        }
        (Ok(()), Wanted::Pruner) => {
            facts.push(Fact::good("delete", "may delete objects, as a pruner must"));
            None
        }
        (Ok(()), _) => {
            facts.push(Fact::finding(
                "delete",
                "may delete objects: who breaks in here can destroy every backup",
                if by_policy { "put the policy below on the bucket; let another machine prune" } else { SERVE },
            ));
            None
        }
    }
}
