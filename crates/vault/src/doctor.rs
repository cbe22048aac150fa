//! Whether a storage lets these credentials do what their holder needs, and nothing more: tried out, not read from settings.
//!
//! Everything is tried in a hidden place beside the objects, on an object of its own. Invariant: no object of a vault is
//! touched, and what could not be removed again is named.

use std::sync::{Arc, Barrier};

use jiff::{SignedDuration, Timestamp};

use crate::crypt;
use crate::storage::{Fact, Lock, LockMode, Put, Storage, StorageError, Verdict};

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
/// The object on which locks are tried out is locked so long, and as long again.
const LOCK_MINUTES: i64 = 60;
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
    if wanted == Wanted::Host && storage.is_append_only_by_policy() {
        create_elsewhere(storage, host, &mut examined.facts);
        read_sealed(storage, &mut examined.facts);
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

/// Tries to create where only the owner, pruners and other hosts do, under names that are nobody's.
fn create_elsewhere(storage: &dyn Storage, host: Option<&str>, facts: &mut Vec<Fact>) {
    let mut places =
        ["roster", "keys/owner", "keys/refs", "tombstone", "prune", "receipt", "copy"].map(str::to_owned).to_vec();
    places.extend(host.map(|host| format!("snap/{}-another", crate::name::encode(host))));
    let key = format!("{:016x}", crypt::random_u64());
    let (mut may, mut stays) = (Vec::new(), Vec::new());
    for directory in &places {
        let place = match storage.rehearsal_in(directory) {
            Ok(Some(place)) => place,
            Ok(None) => return,
            Err(error) => return facts.push(failed("elsewhere", "a place to try things out cannot be had", &error)),
        };
        match place
            .put_if_absent(&key, b"lifeboat vault doctor tries what it must not be able to do; this may be deleted\n")
        {
            Err(StorageError::Denied { .. }) => continue,
            Err(error) => {
                let what = format!("whether objects can be created below {directory}/ could not be found out");
                return facts.push(failed("elsewhere", &what, &error));
            }
            Ok(_) => may.push(format!("{directory}/")),
        }
        if place.delete(&key).is_err() {
            stays.push(format!("{}/{key}", place.location()));
        }
    }
    if may.is_empty() {
        return facts
            .push(Fact::good("elsewhere", "may not create rosters, owners' keys, records of prunes, others' points"));
    }
    let stays = if stays.is_empty() { String::new() } else { format!(" ({} stays)", stays.join(", ")) };
    facts.push(Fact::finding(
        "elsewhere",
        format!(
            "may create below {}, which no host needs: who breaks in here can stop every host{stays}",
            may.join(", ")
        ),
        "put the policy below on the bucket",
    ));
}

/// Tries to read what a host has no use for. All of it is sealed: it matters once a key is stolen.
fn read_sealed(storage: &dyn Storage, facts: &mut Vec<Fact>) {
    let mut may = Vec::new();
    for (directory, ending, what) in [("keys/refs/", ".age", "sealed private keys"), ("pack/00/", "", "packs")] {
        let Ok(listed) = storage.list(directory) else { continue };
        let Some(one) = listed.iter().find(|object| object.key.ends_with(ending)) else { continue };
        if storage.get_range(&one.key, 0, 1).is_ok() {
            may.push(what);
        }
    }
    facts.push(match may.is_empty() {
        true => Fact::good("sealed", "may not read packs and sealed private keys, as far as there are any"),
        false => Fact::note(
            "sealed",
            format!(
                "may read {}, which a host has no use for: who breaks in here can keep them until a key is stolen",
                may.join(" and ")
            ),
        ),
    });
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
    lock(place, &key, wanted, facts);
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
            if by_policy {
                "put the policy below on the bucket; where the storage does not know its statement NeverReplace, keep a copy that this \
                 machine cannot reach (docs/object-storage.md)"
            } else {
                SERVE
            },
        )),
        Ok(()) => facts.push(Fact::good("replace", "may replace objects, as a pruner may")),
    }
}

/// Where objects can be locked: whether these credentials may make a lock longer, and shorter.
fn lock(place: &Arc<dyn Storage>, key: &str, wanted: Wanted, facts: &mut Vec<Fact>) {
    let Ok(Some(_)) = place.locking() else { return };
    let end =
        |minutes: i64| Timestamp::now().saturating_add(SignedDuration::from_mins(minutes)).unwrap_or(Timestamp::MAX);
    let lock = Lock { until: end(2 * LOCK_MINUTES), mode: LockMode::Governance };
    let done = match (place.lock(key, lock), wanted) {
        (Err(StorageError::Denied { .. } | StorageError::Locked { .. }), Wanted::Pruner) => {
            let says =
                "may not make locks longer: `lifeboat vault lock` needs the statement Lock of the pruner's policy";
            return facts.push(Fact::note("lock", says));
        }
        (Err(StorageError::Denied { .. } | StorageError::Locked { .. }), _) => {
            return facts.push(Fact::good("lock", "may not lock objects"));
        }
        (Err(error), _) => {
            return facts.push(failed("lock", "whether objects can be locked could not be found out", &error));
        }
        (Ok(()), Wanted::Pruner) => Fact::good("lock", "may make locks longer, as `lifeboat vault lock` must"),
        (Ok(()), _) => Fact::finding(
            "lock",
            "may lock objects: who breaks in here can have you pay for junk for as long as locks can be",
            "take s3:PutObjectRetention away; let the pruner lock",
        ),
    };
    facts.push(done);
    facts.push(match place.may_bypass_locks(key, end(LOCK_MINUTES)) {
        Ok(false) => Fact::good("bypass", "may not pass over locks"),
        Ok(true) => Fact::finding(
            "bypass",
            "may pass over locks (governance), so locks do not hold against who has these credentials",
            "take s3:BypassGovernanceRetention away, or lock in the mode compliance",
        ),
        Err(error) => failed("bypass", "whether locks can be passed over could not be found out", &error),
    });
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
        (Err(StorageError::Denied { .. } | StorageError::Locked { .. }), Wanted::Host | Wanted::Reader) => {
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
        (Err(StorageError::Locked { .. }), Wanted::Pruner) => {
            facts.push(Fact::good("delete", "the storage lets nobody delete before an object's lock ends"));
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
