//! Who may do what through a server. Rules only: given a name, rights, an object's place and who signed it.
//!
//! Invariants: whoever only writes can neither read what others wrote nor open anything, and creates nothing under another's name;
//! nobody replaces an object that is right; a point is deleted only where a tombstone stands for it.

use crate::name;
use crate::object::{PairOf, Place};
use crate::roster::{Role, Roster};
use crate::sign::PublicKey;

/// What may be done besides writing as a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rights {
    /// Read everything (all of it sealed): for who restores or checks.
    pub read: bool,
    /// Read everything, leave tombstones, delete what is no longer needed.
    pub prune: bool,
    /// Read everything and bring any object that is signed or named rightly: for `vault copy` and `vault heal`.
    pub copy: bool,
    /// All of that, a new vault, and key files.
    pub owner: bool,
}

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// The operator of the server says so: `--host NAME` in a line of authorized_keys, or for a socket.
    Named(String, Rights),
    /// Whoever proves a key that stands on the roster, with the rights of its roles and these.
    OnRoster(Rights),
}

/// Who asks, once that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asker {
    pub(super) name: String,
    pub(super) rights: Rights,
}

impl Asker {
    /// A member that has proven its key.
    pub(super) fn member(roster: &Roster, key: &PublicKey, granted: Rights) -> Option<Asker> {
        let member = roster.member(key).filter(|m| m.revoked.is_none())?;
        let rights = Rights { prune: granted.prune || member.roles.contains(&Role::Pruner), ..granted };
        Some(Asker { name: member.name.clone(), rights })
    }

    fn reads_all(&self) -> bool {
        let Rights { read, prune, copy, owner } = self.rights;
        read || prune || copy || owner
    }

    fn is(&self, host: &str) -> bool {
        self.name == host
    }

    pub(super) fn may_read(&self, place: &Place) -> bool {
        self.reads_all()
            || match place {
                Place::Readme
                | Place::Roster(_)
                | Place::Statement(..)
                | Place::Enrolment(_)
                | Place::Receipt(..)
                | Place::Copy(..)
                | Place::Witness(..) => true,
                // Whoever writes a log next goes on from its end; its payloads are sealed.
                Place::Log { .. } | Place::GatheredLog { .. } => true,
                // Every writer must know what was pruned, and that pruning is stopped.
                Place::Prune(..) | Place::Hold(_) | Place::Freeze(_) => true,
                // Sealed to the host that it is about, and to those that took its data set over.
                Place::Moved(..) => true,
                Place::Index(host, ..)
                | Place::Refs(host, ..)
                | Place::Snapshot(host, ..)
                | Place::Tombstone(host, ..)
                | Place::Verification(host, ..)
                | Place::Heal(host, _) => self.is(host),
                Place::Pack(_) | Place::KeyFile(..) | Place::ChunkKey(_) | Place::Probe => false,
            }
    }

    /// Whether a listing shows it: that a pack is there is no secret to who wrote it.
    pub(super) fn may_see(&self, place: &Place) -> bool {
        self.may_read(place) || matches!(place, Place::Pack(_) | Place::KeyFile(..) | Place::ChunkKey(_))
    }

    /// Whether an object that is right in itself, signed by this member, may be created; else why not.
    pub(super) fn may_create(&self, place: &Place, signer: Option<&str>) -> Result<(), &'static str> {
        let Rights { prune, copy, owner, .. } = self.rights;
        if owner || copy {
            return Ok(());
        }
        let own = match place {
            Place::Pack(_) | Place::Enrolment(_) => true,
            Place::Index(host, ..) | Place::Refs(host, ..) | Place::Snapshot(host, ..) | Place::Witness(_, host, _) => {
                self.is(host) && signer.is_some_and(|name| self.is(name))
            }
            Place::Log { .. }
            | Place::ChunkKey(_)
            | Place::Verification(..)
            | Place::Heal(..)
            | Place::Hold(_)
            | Place::Freeze(_) => signer.is_some_and(|name| self.is(name)),
            // The server looks whether the pair is new.
            Place::Statement(PairOf::Content(_), 1) => signer.is_some_and(|name| self.is(name)),
            Place::KeyFile(PairOf::Content(_), _) => true,
            Place::Tombstone(..) | Place::Prune(..) | Place::GatheredLog { .. } | Place::Moved(..) | Place::Probe => {
                prune
            }
            Place::Receipt(..) => return Err("receipts are the server's own"),
            Place::Copy(..) => return Err("it has no right to copy"),
            Place::Readme | Place::Roster(_) | Place::Statement(..) | Place::KeyFile(..) => {
                return Err("only the owner creates that");
            }
        };
        match own {
            true => Ok(()),
            false => Err("it is not this host's to create"),
        }
    }

    /// Whether a damaged object may be replaced by a right one.
    pub(super) fn may_repair(&self) -> bool {
        self.rights.copy || self.rights.owner
    }

    pub(super) fn may_delete(&self, place: &Place) -> Result<(), &'static str> {
        let Rights { prune, owner, .. } = self.rights;
        let sweepable = matches!(
            place,
            Place::Pack(_)
                | Place::Index(..)
                | Place::Moved(..)
                | Place::Refs(..)
                | Place::Snapshot(..)
                | Place::Log { .. }
                | Place::GatheredLog { .. }
                | Place::Verification(..)
                | Place::Witness(..)
                | Place::Probe
                // The server looks whether a fold says the same.
                | Place::Tombstone(..)
                | Place::Prune(..)
        );
        let keys = matches!(place, Place::KeyFile(..) | Place::Enrolment(_));
        match (owner && (keys || sweepable)) || (prune && sweepable) {
            true => Ok(()),
            false => {
                Err("nothing is deleted through this server but by a pruner or the owner, and never signed history")
            }
        }
    }
}

/// What a host creates, as patterns for a storage's own policy (`*` is anything): as `may_create`, as far as names tell it. Without a
/// name, every host's.
pub fn host_creates(host: Option<&str>) -> Vec<String> {
    // An index and a log object begin with a nought; where a pruner moved and gathered something does not.
    let own = [of_host("refs", host), of_host("snap", host), format!("{}/0*", of_host("index", host))];
    let witness = format!("witness/*/{}/*", host.map_or_else(|| "*".to_owned(), name::encode));
    let shared = ["pack/*", "log/*/*/*/0*", "keys/chunk/*", "keys/content/*/0000000001.cert", "keys/content/*/*.age"];
    let words = ["enroll/*", "verify/*", "heal/*", "hold/*", "freeze/*"];
    own.into_iter().chain([witness]).chain(shared.into_iter().chain(words).map(str::to_owned)).collect()
}

/// What lies among what a host creates, and is a pruner's to create.
/// As deep as the names are: not every storage finds the next of several `*`.
pub fn host_never_creates() -> [&'static str; 2] {
    ["index/*/*/moved-*", "log/*/*/*/gathered/*"]
}

/// What a host reads, as such patterns: as `may_read`.
pub fn host_reads(host: Option<&str>) -> Vec<String> {
    // Statements are numbered in ten digits, and sealed keys named by a hash. Ceph takes the first dot for the last one, and a data set's name
    // may hold one: so no pattern has a dot after a `*` that stands for a name.
    let statements = ["keys/owner/00000*", "keys/refs/00000*", "keys/content/*/00000*"];
    let shared = ["README.txt", "roster/*", "enroll/*", "receipt/*", "copy/*", "witness/*", "log/*"];
    let stops = ["prune/*", "hold/*", "freeze/*"];
    let own = ["index", "refs", "snap", "tombstone", "verify", "heal"].map(|kind| of_host(kind, host));
    shared.into_iter().chain(statements).chain(stops).map(str::to_owned).chain(own).collect()
}

fn of_host(kind: &str, host: Option<&str>) -> String {
    host.map_or_else(|| format!("{kind}/*/*"), |host| format!("{kind}/{}/*", name::encode(host)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn fits(pattern: &str, key: &str) -> bool {
        match pattern.split_once('*') {
            None => pattern == key,
            Some((before, after)) => key
                .strip_prefix(before)
                .is_some_and(|rest| (0..=rest.len()).any(|at| rest.get(at..).is_some_and(|rest| fits(after, rest)))),
        }
    }

    /// As Ceph's: what a `*` stands for ends where the letter after it comes for the first time.
    fn fits_on_ceph(pattern: &str, key: &str) -> bool {
        match pattern.split_once('*') {
            None => pattern == key,
            Some((before, "")) => key.starts_with(before),
            Some((before, after)) => {
                let rest = key.strip_prefix(before).unwrap_or_default();
                let next = after.chars().next().and_then(|letter| rest.find(letter));
                next.and_then(|at| rest.get(at..)).is_some_and(|rest| fits_on_ceph(after, rest))
            }
        }
    }

    #[test]
    fn the_patterns_for_a_policy_say_what_the_rules_say() {
        let digits = "ab".repeat(32);
        let files = ["keys/owner", "keys/refs", "keys/content/d", "keys/content/a.b"];
        let keys: Vec<String> = [
            "README.txt",
            "roster/0000000002",
            "keys/owner/0000000002.cert",
            "keys/refs/0000000002.cert",
            "keys/content/d/0000000001.cert",
            "keys/content/d/0000000002.cert",
            "keys/content/a.b.c/0000000001.cert",
            "keys/content/a.b.c/0000000002.cert",
            "index/alpha/a.b/0000000001",
            "index/alpha/a.b/moved-0000000001-0000000001",
            "log/a.b/l.m/0000000001/000000000/000",
            "log/a.b/l.m/0000000001/gathered/000000000000-000000000001",
            "keys/chunk/d/00",
            "enroll/aa",
            "index/alpha/d/0000000001",
            "index/beta/d/0000000001",
            "index/alpha/d/moved-0000000001-0000000001",
            "snap/alpha/d/0000000001",
            "snap/alphabet/d/0000000001",
            "log/d/l/0000000001/000000000/000",
            "log/d/l/0000000001/gathered/000000000000-000000000001",
            "tombstone/alpha/d/0000000001",
            "tombstone/beta/d/0000000001",
            "prune/0000000001/proposal",
            "hold/0000000001",
            "freeze/0000000001",
            "verify/alpha/d/0000000001/0-x",
            "heal/alpha/d/0-x",
            "receipt/00/0000000001",
            "copy/0000000001-b-done",
            "witness/v/alpha/0000000001",
            "witness/v/beta/0000000001",
            "probe/0",
        ]
        .map(str::to_owned)
        .into_iter()
        .chain(files.map(|directory| format!("{directory}/{digits}.age")))
        .chain([format!("pack/ab/{digits}"), format!("refs/alpha/d/{digits}"), format!("refs/beta/d/{digits}")])
        .collect();
        let host = asker(Rights::default());
        let (creates, reads) = (host_creates(Some("alpha")), host_reads(Some("alpha")));
        for fits in [fits, fits_on_ceph] {
            let matches = |patterns: &[String], key: &str| patterns.iter().any(|pattern| fits(pattern, key));
            for key in &keys {
                let never = host_never_creates().iter().any(|pattern| fits(pattern, key));
                let may_create = host.may_create(&place(key), Some("alpha")).is_ok();
                assert_eq!(matches(&creates, key) && !never, may_create, "create {key}");
                assert_eq!(matches(&reads, key), host.may_read(&place(key)), "read {key}");
            }
        }
    }

    fn asker(rights: Rights) -> Asker {
        Asker { name: "alpha".to_owned(), rights }
    }

    fn place(key: &str) -> Place {
        Place::of(key).unwrap()
    }

    #[test]
    fn a_host_creates_what_it_signed_itself_and_nothing_that_is_others_to_say() {
        let host = asker(Rights::default());
        let own = [
            "index/alpha/d/0000000001",
            "snap/alpha/d/0000000001",
            "log/d/l/0000000001/000000000/000",
            "keys/chunk/d/00",
            "verify/beta/d/0000000001/0-x",
            "heal/beta/d/0-x",
            "hold/0000000001",
            "freeze/0000000001",
            "keys/content/d/0000000001.cert",
        ];
        for key in own {
            assert_eq!(host.may_create(&place(key), Some("alpha")), Ok(()), "{key}");
            for signer in [Some("beta"), None] {
                assert!(host.may_create(&place(key), signer).is_err(), "{key}, signed by {signer:?}");
            }
        }
        let others = [
            "index/beta/d/0000000001",
            "snap/beta/d/0000000001",
            "tombstone/alpha/d/0000000001",
            "prune/0000000001/proposal",
            "log/d/l/0000000001/gathered/000000000000-000000000001",
            "probe/0",
            "receipt/00/0000000001",
            "copy/0000000001-b-done",
            "README.txt",
            "roster/0000000002",
            "keys/owner/0000000001.cert",
            "keys/refs/0000000001.cert",
            "keys/content/d/0000000002.cert",
        ];
        for key in others {
            assert!(host.may_create(&place(key), Some("alpha")).is_err(), "{key}");
            assert_eq!(asker(Rights { copy: true, ..Rights::default() }).may_create(&place(key), Some("beta")), Ok(()));
            assert!(host.may_delete(&place(key)).is_err(), "{key}");
        }
        assert!(!host.may_repair() && !asker(Rights { read: true, prune: true, ..Rights::default() }).may_repair());
    }
}
