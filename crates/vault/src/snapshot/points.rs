//! Recovery points as a list: every chain of snapshots, walked and checked, without keys.
//!
//! A host's clock may go back: within a host's chain its numbers decide what is newer, and times only between hosts.
//!
//! Invariant: a point whose object is missing, forged or unreadable is never shown as one, and always named in a finding.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use crate::codec::Hash;
use crate::copy::LeftOut;
use crate::error::{Doing, Result, VaultError};
use crate::finding::{Finding, Severity, note};
use crate::index::Head;
use crate::name;
use crate::open::Vault;
use crate::prune::{Ledger, Rule};
use crate::snapshot::suspicion::{self, Doubt, Shape};
use crate::snapshot::{Badge, PointInfo, Snapshot, accepts, badge_from, tombstone_key, verification_prefix};
use crate::storage::Listed;

/// So many numbers of one gap are walked over: pruned points leave long gaps full of tombstones.
const GAP_NUMBERS_MAX: u64 = 100_000;
/// So many of them are missed, of which no tombstone is listed: each is asked for, and named.
const GAP_MISSING_MAX: usize = 1000;

/// Recovery points, oldest first, and what is wrong with their chains.
#[derive(Debug, Clone, Default)]
pub struct Points {
    pub points: Vec<PointInfo>,
    pub findings: Vec<Finding>,
}

impl Points {
    /// The newest point of a data set whose state is not after `at`, of the highest epoch there is by then: a writer of a
    /// former one may have gone on, unaware. Corrupt ones do not count.
    pub fn newest(&self, dataset: &str, at: Option<jiff::Timestamp>) -> Option<&PointInfo> {
        let usable =
            |p: &&PointInfo| p.dataset == dataset && p.badge != Badge::Corrupt && at.is_none_or(|at| p.taken_at <= at);
        let epoch = self.points.iter().filter(usable).map(|p| p.epoch).max()?;
        self.points.iter().filter(usable).rfind(|p| p.epoch == epoch)
    }
}

impl Vault {
    /// Every recovery point (of one data set, or of all).
    pub fn points(&self, dataset: Option<&str>) -> Result<Points> {
        self.points_of(self.read_chains(dataset)?)
    }

    /// Those of one host's chain alone: nothing is read, and nothing remembered, of what others wrote.
    pub(crate) fn points_of_host(&self, host: &str, dataset: &str) -> Result<Points> {
        self.points_of(self.read_chains_where(&|of, set| of == host && set == dataset)?)
    }

    fn points_of(&self, (snapshots, mut findings): (Vec<Arc<Snapshot>>, Vec<Finding>)) -> Result<Points> {
        let (roster, ledger) = (self.roster(), self.ledger()?);
        let verified = self.storage().list("verify/").doing(|| "listing verifications".to_owned())?;
        let mut points = Vec::with_capacity(snapshots.len());
        for snapshot in &snapshots {
            let prefix = verification_prefix(&snapshot.key);
            let start = verified.partition_point(|o| o.key.as_str() < prefix.as_str());
            let of_it: Vec<&Listed> = verified[start..].iter().take_while(|o| o.key.starts_with(&prefix)).collect();
            let mut badge = Badge::Unverified;
            // What a stranger put there counts for nothing, whatever its time says.
            for object in of_it.into_iter().rev() {
                let read = self.storage().get(&object.key).doing(|| format!("reading {}", object.key));
                let opened = read.and_then(|bytes| badge_from(&roster, snapshot, &object.key, &bytes));
                let untrusted = matches!(opened, Err(VaultError::Untrusted { .. }));
                match note(opened, &mut findings)? {
                    Some(found) => {
                        badge = found;
                        break;
                    }
                    None if untrusted => {}
                    None => badge = Badge::Suspect,
                }
            }
            let mut info = snapshot.info(badge);
            info.archived = ledger.archived(&snapshot.key);
            let of_each_host = self.obeys(Rule::HeadsOfEachHost);
            if ledger.is_unchecked(snapshot, of_each_host) && self.obeys(Rule::UnseenIsSuspect) {
                findings.push(mark_unchecked(&mut info));
            }
            points.push(info);
        }
        self.mark_doubts(&mut points, &verified, &mut findings)?;
        findings.extend(self.unfinished_copy()?);
        findings.extend(self.partial_copy()?);
        findings.extend(put_in_order(&mut points));
        Ok(Points { points, findings })
    }

    /// Marks points that look as if something had gone through the data before. `points`: chain by chain, oldest first.
    fn mark_doubts(&self, points: &mut [PointInfo], verified: &[Listed], findings: &mut Vec<Finding>) -> Result<()> {
        for chain in points.chunk_by_mut(|a, b| (&a.host, &a.dataset) == (&b.host, &b.dataset)) {
            let mut shapes: Vec<Shape> = chain.iter().map(|point| Shape::of(point, false)).collect();
            let mut judged = suspicion::judge(&shapes);
            // What somebody accepted changes what is held against the points after it.
            let mut asked = BTreeSet::new();
            while let Some(place) = (0..chain.len()).find(|place| !judged[*place].is_empty() && asked.insert(*place)) {
                if self.is_accepted(&chain[place], verified)? {
                    shapes[place].accepted = true;
                    judged = suspicion::judge(&shapes);
                }
            }
            let mut origin = String::new();
            for (point, doubts) in chain.iter_mut().zip(judged) {
                for doubt in doubts {
                    let why = match doubt {
                        Doubt::Own(why) => {
                            origin.clone_from(&point.id);
                            findings.push(suspect(point, &why));
                            why
                        }
                        Doubt::Follows => format!("it follows {origin}, which is suspect"),
                    };
                    point.doubts.push(why);
                }
                if !point.doubts.is_empty() && point.badge != Badge::Corrupt {
                    point.badge = Badge::Suspect;
                }
            }
        }
        Ok(())
    }

    fn is_accepted(&self, point: &PointInfo, verified: &[Listed]) -> Result<bool> {
        let prefix = verification_prefix(&point.key);
        let start = verified.partition_point(|o| o.key.as_str() < prefix.as_str());
        for object in verified[start..].iter().take_while(|o| o.key.starts_with(&prefix)) {
            let bytes = self.storage().get(&object.key).doing(|| format!("reading {}", object.key))?;
            if accepts(&self.roster(), &point.key, &point.hash, &object.key, &bytes).unwrap_or(false) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The point before this one in its host's chain, if it is there.
    pub fn point_before(&self, point: &PointInfo) -> Result<Option<PointInfo>> {
        match point.sequence {
            0 | 1 => Ok(None),
            sequence => {
                let before = self.read_snapshot(&point.host, &point.dataset, sequence - 1);
                Ok(note(before, &mut Vec::new())?.map(|snapshot| snapshot.info(Badge::Unverified)))
            }
        }
    }

    /// Reads one snapshot, from memory where it was read before.
    pub(crate) fn read_snapshot(&self, host: &str, dataset: &str, sequence: u64) -> Result<Arc<Snapshot>> {
        let key = format!("{}{}", name::snapshots_of(host, dataset), name::number(sequence));
        if let Some(kept) = self.snapshots_cache().get(&key) {
            return Ok(kept.clone());
        }
        let bytes = self.storage().get(&key).doing(|| format!("reading {key}"))?;
        let snapshot = Arc::new(Snapshot::open(&self.roster(), host, dataset, sequence, &bytes)?);
        self.snapshots_cache().insert(key, snapshot.clone());
        Ok(snapshot)
    }

    pub(crate) fn read_chains(&self, dataset: Option<&str>) -> Result<(Vec<Arc<Snapshot>>, Vec<Finding>)> {
        self.read_chains_where(&|_, set| dataset.is_none_or(|wanted| wanted == set))
    }

    fn read_chains_where(&self, wanted: &dyn Fn(&str, &str) -> bool) -> Result<(Vec<Arc<Snapshot>>, Vec<Finding>)> {
        self.refresh()?;
        let mut findings = self.findings();
        // Before the snapshots: what is missing among them must be known to be pruned.
        let ledger = self.ledger()?;
        findings.extend(ledger.findings.iter().cloned());
        let stones = self.storage().list("tombstone/").doing(|| "listing tombstones".to_owned())?;
        let keys = stones.into_iter().map(|o| o.key).collect();
        let burials = Burials { ledger: &ledger, keys, left_out: self.left_out()? };
        let listed = self.storage().list("snap/").doing(|| "listing recovery points".to_owned())?;
        let mut chains: BTreeMap<(String, String), BTreeSet<u64>> = BTreeMap::new();
        for object in &listed {
            let parts: Vec<&str> = object.key.split('/').collect();
            let place = match parts[..] {
                [_, host, dataset, number] => {
                    name::decode(host).zip(name::decode(dataset)).zip(name::parse_number(number))
                }
                _ => None,
            };
            match place {
                Some((chain, number)) if number > 0 => {
                    chains.entry(chain).or_default().insert(number);
                }
                _ => {
                    let message = format!("{} is no snapshot; remove it", object.key);
                    findings.push(Finding::new(Severity::Warning, "unknown", &object.key, message));
                }
            }
        }
        // A chain that was seen here before and is gone as a whole is missed, too.
        for (chain, _) in self.remembered_heads("snap/")? {
            if let [_, host, dataset, ""] = chain.split('/').collect::<Vec<_>>()[..]
                && let Some(place) = name::decode(host).zip(name::decode(dataset))
            {
                chains.entry(place).or_default();
            }
        }
        let mut snapshots = Vec::new();
        for ((host, set), numbers) in chains {
            if wanted(&host, &set) {
                self.read_chain((&host, &set), &numbers, &burials, &mut snapshots, &mut findings)?;
            }
        }
        Ok((snapshots, findings))
    }

    fn read_chain(
        &self,
        (host, dataset): (&str, &str),
        numbers: &BTreeSet<u64>,
        burials: &Burials<'_>,
        snapshots: &mut Vec<Arc<Snapshot>>,
        findings: &mut Vec<Finding>,
    ) -> Result<()> {
        let chain = name::snapshots_of(host, dataset);
        let seen = self.remembered_head(&chain)?;
        let newest = numbers.last().copied().unwrap_or(0);
        let mut last = None;
        let remembered = seen.as_ref().map(|s| s.0);
        let first = burials.left_out.first_of(&chain);
        let mut before = burials.left_out.before_first(&chain);
        let mut walked = first - 1;
        let is_buried = |number: u64| {
            burials.keys.contains(&tombstone_key(host, dataset, number))
                || burials.ledger.pruned.contains_key(&format!("{chain}{}", name::number(number)))
        };
        for number in walk(numbers, remembered, first, is_buried) {
            if number != walked + 1 {
                before = None;
            }
            walked = number;
            // A listing that ran beside a commit may lack one of the newest.
            let is_there = numbers.contains(&number) || (number + 1 >= newest && self.is_there(&chain, number)?);
            let pruned = match is_there && is_buried(number) {
                true => note(self.tombstone(burials.ledger, host, dataset, number), findings)?.flatten(),
                false => None,
            };
            if let Some(tombstone) = pruned.as_ref().filter(|stone| stone.generation > burials.ledger.newest) {
                self.check_proposed(tombstone.generation, findings)?;
            }
            let hash = match (is_there, pruned) {
                // It is to be swept; or a writer that was paused for long put another one where a pruned one had stood.
                (true, Some(tombstone)) => Some(tombstone.hash),
                (true, None) => self.read_link(host, dataset, number, before, snapshots, findings)?,
                (false, _) => {
                    let newest_seen = remembered == Some(number) && number > newest;
                    self.read_gap((host, dataset, number), burials, newest_seen, findings)?
                }
            };
            if let (Some((seen, kept)), Some(found)) = (&seen, hash)
                && *seen == number
                && *kept != found.to_string()
            {
                let key = format!("{chain}{}", name::number(number));
                snapshots.retain(|s| s.key != key);
                findings
                    .push(Finding::from(&VaultError::untrusted(key, "it was replaced since it was first seen here")));
            }
            if let Some(hash) = hash {
                last = Some((number, hash));
            }
            before = hash.map(Some);
        }
        match (seen, last) {
            (None, Some((number, hash))) => {
                findings.push(Finding::freshness_unproven(&chain));
                self.remember_head(&chain, number, hash.0)
            }
            (Some((seen, _)), Some((number, hash))) if number > seen => self.remember_head(&chain, number, hash.0),
            _ => Ok(()),
        }
    }

    /// Whether the prune that left a tombstone is on record: it is written first, and cannot be taken back without.
    fn check_proposed(&self, generation: u64, findings: &mut Vec<Finding>) -> Result<()> {
        if self.ledger()?.newest >= generation {
            return Ok(());
        }
        let key = crate::prune::proposal_key(generation);
        let message = format!(
            "{key} is missing: recovery points were pruned by it, and that cannot be taken back any more; the next prune proposes anew"
        );
        let finding = Finding::new(Severity::Warning, "missing", key, message);
        if !findings.contains(&finding) {
            findings.push(finding);
        }
        Ok(())
    }

    fn is_there(&self, chain: &str, number: u64) -> Result<bool> {
        let key = format!("{chain}{}", name::number(number));
        match self.storage().get_range(&key, 0, 1) {
            Err(error) if error.is_not_found() => Ok(false),
            other => other.doing(|| format!("looking for {key}")).map(|_| true),
        }
    }

    /// One snapshot of a chain. `before`: the hash it must name as its predecessor's, where that is known.
    fn read_link(
        &self,
        host: &str,
        dataset: &str,
        number: u64,
        before: Option<Option<Hash>>,
        snapshots: &mut Vec<Arc<Snapshot>>,
        findings: &mut Vec<Finding>,
    ) -> Result<Option<Hash>> {
        let Some(snapshot) = note(self.read_snapshot(host, dataset, number), findings)? else { return Ok(None) };
        match before {
            Some(expected) if snapshot.head.previous != expected => {
                let error = VaultError::untrusted(&snapshot.key, "it does not name the point before it");
                findings.push(Finding::from(&error));
            }
            _ => {}
        }
        if snapshot.head.roster > self.loaded().roster.version {
            let object = name::roster(snapshot.head.roster);
            let finding = Finding::missing(&object, &format!("{} was written under it", snapshot.key));
            if !findings.contains(&finding) {
                findings.push(finding);
            }
        }
        snapshots.push(snapshot.clone());
        Ok(Some(snapshot.hash))
    }

    /// A number without a snapshot: pruned, with a tombstone, or an alarm by name.
    fn read_gap(
        &self,
        (host, dataset, number): (&str, &str, u64),
        burials: &Burials<'_>,
        newest_seen: bool,
        findings: &mut Vec<Finding>,
    ) -> Result<Option<Hash>> {
        let chain = name::snapshots_of(host, dataset);
        let key = format!("{chain}{}", name::number(number));
        match note(self.tombstone(burials.ledger, host, dataset, number), findings)? {
            Some(Some(tombstone)) => Ok(Some(tombstone.hash)),
            Some(None) if newest_seen => {
                let seen = self.witnessed().said(&chain, number).unwrap_or("seen here".to_owned());
                let message = format!(
                    "{key}, the newest recovery point {seen}, is gone: the vault was rolled back; bring it back from a copy"
                );
                findings.push(Finding::new(Severity::Alarm, "rolled-back", key, message));
                Ok(None)
            }
            _ => {
                let tombstone = tombstone_key(host, dataset, number);
                findings.push(Finding::missing(key, &format!("and no tombstone {tombstone} says that it was pruned")));
                Ok(None)
            }
        }
    }

    /// Where a host's chain of points ends: the newest of what lies there and what was seen here.
    pub(crate) fn chain_head(&self, host: &str, dataset: &str) -> Result<Head> {
        let chain = name::snapshots_of(host, dataset);
        let listed = self.storage().list(&chain).doing(|| format!("listing {chain}"))?;
        let newest =
            listed.iter().filter_map(|o| name::parse_number(o.key.strip_prefix(chain.as_str())?)).max().unwrap_or(0);
        if let Some((seen, hash)) = self.remembered_head(&chain)?
            && seen >= newest
        {
            return Ok(Head { number: seen, hash: crate::crypt::unhex(&hash).map(Hash) });
        }
        if newest == 0 {
            return Ok(Head::default());
        }
        let key = format!("{chain}{}", name::number(newest));
        let bytes = self.storage().get(&key).doing(|| format!("reading {key}"))?;
        Ok(Head { number: newest, hash: Some(Hash(crate::crypt::hash(&bytes))) })
    }
}

/// What is known to be pruned, while chains are read.
struct Burials<'a> {
    ledger: &'a Ledger,
    keys: HashSet<String>,
    /// What a copy lacks by design.
    left_out: LeftOut,
}

fn suspect(point: &PointInfo, why: &str) -> Finding {
    let message = format!(
        "{} is suspect: {why}. Look at it before older points go; if it is right, say so: lifeboat vault accept {} --why …",
        point.id, point.id
    );
    Finding::new(Severity::Warning, "suspect", &point.key, message)
}

fn mark_unchecked(point: &mut PointInfo) -> Finding {
    let why = "it was committed by a backup that did not know of a prune, and nobody has looked since whether all it needs is there";
    if point.badge != Badge::Corrupt {
        point.badge = Badge::Suspect;
    }
    point.doubts.push(why.to_owned());
    let message = format!("{} is suspect: {why}; the next `lifeboat vault prune` looks", point.id);
    Finding::new(Severity::Warning, "unchecked", &point.key, message)
}

/// Oldest first. Where a host's clock went back, what it took later is newer all the same, and a note says so.
fn put_in_order(points: &mut [PointInfo]) -> Vec<Finding> {
    let mut notes = Vec::new();
    points.sort_by(|a, b| (&a.host, &a.dataset, a.sequence).cmp(&(&b.host, &b.dataset, b.sequence)));
    let mut places = BTreeMap::new();
    let mut latest: Option<(&str, &str, jiff::Timestamp)> = None;
    let mut before: Option<&PointInfo> = None;
    for point in points.iter() {
        let same_chain = |p: &&PointInfo| (&p.host, &p.dataset) == (&point.host, &point.dataset);
        if let Some(before) = before.filter(same_chain)
            && let Some(seconds) = point.clock_back_seconds(before)
        {
            let message = format!(
                "{} was taken after {} and bears a time {seconds:.0} s before it: the clock of {} had gone back",
                point.id, before.id, point.host
            );
            notes.push(Finding::new(Severity::Note, "clock-went-back", &point.key, message));
        }
        let place = match latest {
            Some((host, dataset, time)) if (host, dataset) == (&point.host, &point.dataset) => time.max(point.taken_at),
            _ => point.taken_at,
        };
        latest = Some((&point.host, &point.dataset, place));
        places.insert(point.id.clone(), place);
        before = Some(point);
    }
    // Stable: within a chain the numbers' order stays.
    points.sort_by_key(|point| places.get(&point.id).copied());
    notes
}

/// Every number to look at, from the first that is to be there: those that are there, the one remembered, what is buried in every gap and the
/// first that is missing there. A listing that claims huge numbers does not make anybody look for all below them.
fn walk(
    numbers: &BTreeSet<u64>,
    remembered: Option<u64>,
    first: u64,
    is_buried: impl Fn(u64) -> bool,
) -> BTreeSet<u64> {
    let remembered = remembered.filter(|number| *number >= first);
    let mut all: BTreeSet<u64> = numbers.iter().copied().chain(remembered).collect();
    let mut expected = first;
    for number in all.clone() {
        let mut missing = 0;
        all.extend((expected..number.min(expected.saturating_add(GAP_NUMBERS_MAX))).filter(|number| {
            let buried = is_buried(*number);
            missing += usize::from(!buried);
            buried || missing <= GAP_MISSING_MAX
        }));
        expected = first.max(number.saturating_add(1));
    }
    all
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::open::{HostVault, InitOptions};
    use crate::prune::Tombstone;
    use crate::seal::Identity;
    use crate::session::SessionOptions;
    use crate::sign::SigningKey;
    use crate::snapshot::SnapshotDraft;
    use crate::storage::MemoryStorage;
    use crate::{Member, Role, State};

    fn three_points(pruner: &SigningKey) -> (HostVault, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let state = State::open(directory.path(), Some("alpha")).unwrap();
        let pruner = Member {
            name: "pruner".into(),
            roles: vec![Role::Pruner],
            key: pruner.public(),
            index: None,
            revoked: None,
        };
        let options = InitOptions {
            recipients: vec![Identity::generate().recipient(), Identity::generate().recipient()],
            members: vec![pruner],
            ..InitOptions::default()
        };
        let (vault, _) = Vault::init(Arc::new(MemoryStorage::new()), &state, &options).unwrap();
        for _ in 0..3 {
            vault.begin("app", SessionOptions::default()).unwrap().commit(SnapshotDraft::default()).unwrap();
        }
        (vault, directory)
    }

    fn tombstone(vault: &str, key: &str, hash: Hash, signer: &SigningKey) -> Result<Vec<u8>> {
        let at = jiff::Timestamp::now().into();
        Tombstone { vault: vault.to_owned(), snapshot: key.to_owned(), hash, at, generation: 1 }.seal(signer)
    }

    #[test]
    fn a_gap_with_a_tombstone_is_pruned_and_without_one_an_alarm() {
        let pruner = SigningKey::generate().unwrap();
        let (vault, _directory) = three_points(&pruner);
        let point = vault.points(None).unwrap().points.remove(1);
        vault.storage().delete(&point.key).unwrap();
        let alarmed = vault.points(None).unwrap();
        assert!(
            alarmed.findings.iter().any(|f| f.code == "missing" && f.object == point.key),
            "{:?}",
            alarmed.findings
        );

        let hash = Hash(crate::crypt::unhex(&point.hash).unwrap());
        let place = tombstone_key("alpha", "app", 2);
        let forged = tombstone(&vault.id(), &point.key, hash, vault.state().signing_key()).unwrap();
        vault.storage().put(&place, &forged).unwrap();
        assert!(vault.points(None).unwrap().findings.iter().any(|f| f.code == "untrusted" && f.object == place));

        let honest = tombstone(&vault.id(), &point.key, hash, &pruner).unwrap();
        vault.storage().put(&place, &honest).unwrap();
        let points = vault.points(None).unwrap();
        assert_eq!((points.points.len(), points.findings), (2, Vec::new()));
        // The chain goes through it: a tombstone for another snapshot does not join the neighbours.
        let other = tombstone(&vault.id(), &point.key, Hash([1; 32]), &pruner).unwrap();
        vault.storage().put(&place, &other).unwrap();
        vault.tombstones_cache().clear();
        assert!(vault.points(None).unwrap().findings.iter().any(|f| f.code == "untrusted"));
    }

    #[test]
    fn numbers_decide_within_a_host_and_times_between_hosts() {
        let (vault, _directory) = three_points(&SigningKey::generate().unwrap());
        let template = vault.points(None).unwrap().points.remove(0);
        let point = |host: &str, sequence, second| {
            let time = jiff::Timestamp::from_second(second).unwrap();
            let id = format!("{host}/app/{sequence:010}");
            PointInfo { host: host.into(), sequence, id, taken_at: time, stored_at: time, ..template.clone() }
        };
        // The clock of alpha goes back by 90 s after its second point.
        let mut points = vec![
            point("alpha", 4, 40),
            point("beta", 1, 60),
            point("alpha", 1, 50),
            point("alpha", 3, 10),
            point("alpha", 2, 100),
            point("beta", 2, 120),
        ];
        let notes = put_in_order(&mut points);
        let order: Vec<(&str, u64)> = points.iter().map(|p| (p.host.as_str(), p.sequence)).collect();
        assert_eq!(order, [("alpha", 1), ("beta", 1), ("alpha", 2), ("alpha", 3), ("alpha", 4), ("beta", 2)]);
        assert_eq!(notes.len(), 1, "{notes:?}");
        insta::assert_snapshot!(
            notes[0].message,
            @"alpha/app/0000000003 was taken after alpha/app/0000000002 and bears a time 90 s before it: the clock of alpha had gone back"
        );
        let points = Points { points, findings: Vec::new() };
        assert_eq!(points.newest("app", None).unwrap().host, "beta");
        let at = jiff::Timestamp::from_second(110).unwrap();
        assert_eq!(points.newest("app", Some(at)).map(|p| p.sequence), Some(4));
    }
}
