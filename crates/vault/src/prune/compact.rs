//! Moving what is needed out of packs that hold little of it, or that are small: into new packs, without a key to read it.
//!
//! ```text
//! old packs ─ whole? ─ frames that hold something needed ─▶ new packs ─ read back ─▶ moved-… (signed, sealed) ─▶ old packs condemned
//! ```
//! Frames go as they are sealed; with each goes what its key is made from, so nothing is opened here. Invariants: a pack is condemned
//! only after all that is needed of it was stored, read back and published; a pack whose bytes are not what its name says is left
//! where it is. Memory: one old pack and one new one. Killed anywhere, the next run finds what was moved and goes on from there.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;

use crate::codec::Hash;
use crate::crypt::random;
use crate::error::{Doing, Result, VaultError};
use crate::finding::{Finding, note};
use crate::index::{self, MovedBody};
use crate::keys::{self, Pair};
use crate::name;
use crate::pack::{Origin, PACK_BYTES, PackBuilder, PackRecord};
use crate::prune::Pruner;
use crate::prune::ledger::Ledger;
use crate::prune::live::{self, IndexUse, Needed, Survey};
use crate::prune::record::Condemned;
use crate::roster::Role;
use crate::seal::{Recipient, seal};
use crate::snapshot::SnapshotHead;

/// Packs that are published together at most.
const PACKS_PER_PART: usize = 64;
/// A pack that is smaller is moved beside others like it.
const SMALL_BYTES: u64 = PACK_BYTES as u64 / 4;

/// A pack that is to be moved alone must free so much.
const WORTH_BYTES: u64 = 256 << 10;

/// When packs are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MoveRules {
    /// Packs of which less than this part (in hundredths, by bytes) is needed; 0: never.
    pub below_percent: u8,
    /// Small packs of one host's data set are put together when there are so many.
    pub small_packs: usize,
    /// No more than this is read for it in one prune.
    pub bytes_max: u64,
}

impl Default for MoveRules {
    fn default() -> MoveRules {
        MoveRules { below_percent: 50, small_packs: 8, bytes_max: 32 << 30 }
    }
}

/// Whose packs.
type Home = (String, String);

/// What is to be moved.
#[derive(Clone, Default)]
pub(super) struct MovePlan {
    needed: Arc<Needed>,
    /// The packs of each home, and where their records stand.
    homes: BTreeMap<Home, BTreeSet<Hash>>,
    indexes: Vec<IndexUse>,
    there: HashMap<String, u64>,
    /// Packs that the storage lists; what is not among them is gone.
    listed: HashSet<String>,
    lease: Option<Timestamp>,
    pub(super) packs: u64,
    /// Bytes of these packs, and of what is needed in them.
    pub(super) bytes: u64,
    pub(super) live_bytes: u64,
}

impl std::fmt::Debug for MovePlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MovePlan").field("homes", &self.homes).finish_non_exhaustive()
    }
}

impl MovePlan {
    /// Chooses among old packs that hold something needed.
    pub(super) fn of(
        (rules, ledger): (&MoveRules, &Ledger),
        needed: Arc<Needed>,
        survey: &Survey,
        goes: &HashSet<String>,
        lease: Timestamp,
    ) -> MovePlan {
        let mut plan = MovePlan { needed, ..MovePlan::default() };
        if rules.below_percent == 0 && rules.small_packs == 0 {
            return plan;
        }
        let mut homes: HashMap<Hash, Home> = HashMap::new();
        for index in &survey.indexes {
            homes.extend(index.packs.iter().map(|hash| (*hash, index.home.clone())));
        }
        let is_sparse =
            |bytes: u64, live: u64| live.saturating_mul(100) < bytes.saturating_mul(u64::from(rules.below_percent));
        let mut sparse: Vec<(u64, Hash, &Home)> = Vec::new();
        let mut small: BTreeMap<&Home, Vec<Hash>> = BTreeMap::new();
        for (hash, home) in &homes {
            let key = name::pack(&hash.0);
            let Some(pack) = survey.packs.get(&key).filter(|pack| pack.live_bytes > 0 && !goes.contains(&key)) else {
                continue;
            };
            // What lies in another class is not worth being thawed for this.
            if pack.touched.is_none_or(|at| at >= lease) || ledger.laid(hash).is_some() {
                continue;
            }
            let frees = pack.bytes.saturating_sub(pack.live_bytes);
            if is_sparse(pack.bytes, pack.live_bytes) && frees >= WORTH_BYTES {
                sparse.push((frees, *hash, home));
            } else if pack.bytes < SMALL_BYTES {
                small.entry(home).or_default().push(*hash);
            }
        }
        // What frees most comes first.
        sparse.sort_by(|a, b| b.cmp(a));
        let many = |packs: &Vec<Hash>| rules.small_packs > 0 && packs.len() >= rules.small_packs;
        let small = small.into_iter().filter(|(_, packs)| many(packs)).flat_map(|(home, mut packs)| {
            packs.sort_unstable();
            packs.into_iter().map(move |hash| (hash, home))
        });
        for (hash, home) in sparse.into_iter().map(|(_, hash, home)| (hash, home)).chain(small) {
            let Some(pack) = survey.packs.get(&name::pack(&hash.0)) else { continue };
            if plan.bytes.saturating_add(pack.bytes) > rules.bytes_max {
                break;
            }
            plan.packs += 1;
            plan.bytes += pack.bytes;
            plan.live_bytes += pack.live_bytes;
            plan.there.insert(name::pack(&hash.0), pack.bytes);
            plan.homes.entry(home.clone()).or_default().insert(hash);
        }
        if plan.packs > 0 {
            plan.indexes.clone_from(&survey.indexes);
            plan.listed = survey.packs.keys().cloned().collect();
            plan.lease = Some(lease);
        }
        plan
    }

    /// Whether it takes a pack (by its key) apart.
    pub(super) fn takes(&self, key: &str) -> bool {
        self.there.contains_key(key)
    }

    /// Indexes that have nothing more to say once these packs, too, are gone.
    pub(super) fn idle_indexes(&self, goes: &HashSet<String>) -> Vec<Condemned> {
        let is_old = |index: &&IndexUse| index.stored_at.is_some_and(|at| self.lease.is_some_and(|lease| at < lease));
        let old: HashSet<&String> = self.indexes.iter().filter(is_old).map(|index| &index.key).collect();
        let is_gone = |hash: &Hash| {
            let key = name::pack(&hash.0);
            goes.contains(&key) || !self.listed.contains(&key)
        };
        let idle = live::idle_among(&self.indexes, &is_gone);
        idle.into_iter().filter(|index| old.contains(&index.key)).collect()
    }
}

/// What was moved.
#[derive(Debug, Default)]
pub(super) struct MovedOut {
    pub(super) packs: Vec<(Hash, u64)>,
    /// Keys of the indexes that say where everything lies now.
    pub(super) indexes: Vec<String>,
    pub(super) findings: Vec<Finding>,
}

impl MovedOut {
    fn add(&mut self, plan: &MovePlan, published: Option<(String, Vec<Hash>)>) {
        let Some((key, from)) = published else { return };
        self.indexes.push(key);
        self.packs.extend(from.iter().map(|hash| (*hash, plan.bytes_of(hash))));
    }
}

/// New packs of one home on their way.
struct Moving<'a> {
    pruner: &'a Pruner,
    home: &'a Home,
    generation: u64,
    recipients: Vec<Recipient>,
    secret: [u8; 32],
    sealed_secret: Vec<u8>,
    builder: Option<PackBuilder>,
    written: Vec<PackRecord>,
    /// Old packs whose frames are all in `written` or the builder.
    from: Vec<Hash>,
}

impl Pruner {
    /// Moves what is planned. What it answers has been published.
    pub(super) fn move_packs(&self, plan: &MovePlan, generation: u64) -> Result<MovedOut> {
        let mut out = MovedOut::default();
        for (home, packs) in &plan.homes {
            let mut moving = self.begin_moving(home, generation)?;
            let mut done: HashSet<Hash> = HashSet::new();
            for index in plan.indexes.iter().filter(|index| index.home == *home) {
                if !index.packs.iter().any(|hash| packs.contains(hash) && !done.contains(hash)) {
                    continue;
                }
                let (host, dataset) = &index.home;
                let read = live::read_index(&self.vault, &self.refs, (host, dataset), index.number, index.moved)?;
                for record in read.packs {
                    if !packs.contains(&record.hash) || !done.insert(record.hash) {
                        continue;
                    }
                    self.check_thawed()?;
                    let moved = moving.take(&record, &read.secret, &plan.needed);
                    if note(moved, &mut out.findings)?.is_some() && moving.is_full() {
                        out.add(plan, moving.publish()?);
                    }
                }
            }
            out.add(plan, moving.publish()?);
        }
        Ok(out)
    }

    /// The host itself, and those that took its data set over: their points say that they rest on its indexes.
    fn heirs_of(&self, host: &str, dataset: &str) -> Result<BTreeSet<String>> {
        let (snapshots, _) = self.vault.read_chains(Some(dataset))?;
        let rests_on_it = |head: &SnapshotHead| head.indexes.iter().any(|seen| seen.host == host);
        let heirs = snapshots.iter().filter(|snapshot| rests_on_it(&snapshot.head));
        Ok(heirs.map(|snapshot| snapshot.head.host.clone()).chain([host.to_owned()]).collect())
    }

    fn begin_moving<'a>(&'a self, home: &'a Home, generation: u64) -> Result<Moving<'a>> {
        let (host, dataset) = home;
        let roster = self.vault.roster();
        let pair = Pair::Content(dataset);
        let stated = keys::stated(&**self.vault.storage(), &roster, pair)?
            .ok_or_else(|| VaultError::Missing { object: pair.prefix() })?;
        self.vault.check_stated(pair, &stated)?;
        let content = stated.recipient()?;
        let secret: [u8; 32] = random();
        let sealed_secret = seal(std::slice::from_ref(&content), &secret)?;
        // A host whose index key is not known stores anew what it cannot look up.
        let heirs = self.heirs_of(host, dataset)?;
        let members = roster.members.iter().filter(|m| heirs.contains(&m.name) && m.roles.contains(&Role::Host));
        let indexes = members.filter_map(|member| member.index.as_ref()?.parse().ok());
        let recipients = [roster.refs.parse()?, content].into_iter().chain(indexes).collect();
        Ok(Moving {
            pruner: self,
            home,
            generation,
            recipients,
            secret,
            sealed_secret,
            builder: None,
            written: Vec::new(),
            from: Vec::new(),
        })
    }
}

impl MovePlan {
    fn bytes_of(&self, hash: &Hash) -> u64 {
        self.there.get(&name::pack(&hash.0)).copied().unwrap_or(0)
    }
}

impl Moving<'_> {
    /// Takes the frames that hold something needed, if the pack is whole.
    fn take(&mut self, record: &PackRecord, secret: &[u8], needed: &Needed) -> Result<()> {
        let key = name::pack(&record.hash.0);
        let bytes = self.pruner.vault.storage().get(&key).doing(|| format!("reading {key}"))?;
        if crate::crypt::hash(&bytes) != record.hash.0 {
            return Err(VaultError::damaged(&key, "its bytes are not what its name says"));
        }
        let own = Origin { secret: secret.to_vec(), salt: record.salt };
        // Looked at as a whole first: a pack is moved, or it is not.
        let mut frames = Vec::new();
        for (place, frame) in record.frames.iter().enumerate() {
            if !frame.chunks().any(|(id, _)| needed.contains(&id)) {
                continue;
            }
            let (origin, ordinal) = record.origin_of(place, &own)?;
            let start = usize::try_from(frame.offset).unwrap_or(usize::MAX);
            let sealed = start.checked_add(frame.bytes as usize).and_then(|end| bytes.get(start..end));
            let sealed = sealed.ok_or_else(|| VaultError::damaged(&key, "a frame lies outside of it"))?;
            frames.push((origin, ordinal, frame, sealed));
        }
        for (origin, ordinal, frame, sealed) in frames {
            if self.builder.as_ref().is_some_and(PackBuilder::is_full) {
                self.close()?;
            }
            let builder = match &mut self.builder {
                Some(builder) => builder,
                None => {
                    let vault = self.pruner.vault.id();
                    self.builder.insert(PackBuilder::for_moved(&vault, &self.secret, &self.sealed_secret)?)
                }
            };
            builder.add_moved(origin, ordinal, frame, sealed)?;
        }
        self.from.push(record.hash);
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.written.len() >= PACKS_PER_PART
    }

    /// Stores the pack, and reads it back.
    fn close(&mut self) -> Result<()> {
        let Some(builder) = self.builder.take().filter(|builder| !builder.is_empty()) else { return Ok(()) };
        let (bytes, record) = builder.finish()?;
        let key = name::pack(&record.hash.0);
        let storage = self.pruner.vault.storage();
        storage.put_if_absent(&key, &bytes).doing(|| format!("writing {key}"))?;
        drop(bytes);
        let back = storage.get(&key).doing(|| format!("reading {key} again"))?;
        if crate::crypt::hash(&back) != record.hash.0 {
            return Err(VaultError::damaged(key, "it does not hold what was just written into it"));
        }
        self.written.push(record);
        Ok(())
    }

    /// Says where everything lies that was taken so far. Answers where it says so, and the packs that it came from.
    fn publish(&mut self) -> Result<Option<(String, Vec<Hash>)>> {
        self.close()?;
        if self.written.is_empty() {
            return Ok(None);
        }
        let vault = &self.pruner.vault;
        let body = MovedBody { secret: self.sealed_secret.clone(), packs: std::mem::take(&mut self.written) };
        let from = std::mem::take(&mut self.from);
        let (host, dataset) = self.home;
        let roster = vault.roster();
        let place = (&roster, host.as_str(), dataset.as_str());
        let key = index::publish_moved(
            &**vault.storage(),
            place,
            self.generation,
            self.pruner.key(),
            &self.recipients,
            &body,
            &from,
        )?;
        Ok(Some((key, from)))
    }
}
