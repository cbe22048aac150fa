//! What a session knows before it begins: the chunks that the vault has, and what interrupted sessions left behind.
//!
//! What the indexes say is kept on the host: `DATASET.known` (which indexes were read, the packs) names the files of the table of
//! chunks (`table.rs`). It is only a shorter way to what the vault's indexes say: without it, or damaged, they are read again.
//!
//! Invariant: no uploaded pack is lost: the host keeps a list of what each session is uploading, and the next one adopts the
//! list of any session that is dead. A session is locked before it can be seen, so that none is adopted alive.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use minicbor::{Decode, Encode};

use crate::codec::{self, Hash};
use crate::error::{Doing, Result, VaultError};
use crate::host::{read_file, write_secret_file};
use crate::index::{self, Head, IndexBody, MovedName};
use crate::name;
use crate::open::HostVault;
use crate::pack::PackRecord;
use crate::seal::Recipient;
use crate::snapshot::IndexSeen;
use crate::storage::StorageError;

use super::table::{self, Table};

/// Which chunks a data set has, as far as this host knows. Kept between sessions.
#[derive(Debug, Clone, Default)]
pub(crate) struct KnownChunks {
    pub(super) head: Head,
    read: BTreeSet<u64>,
    /// Where `table` says in which pack a chunk is, it means the place in here.
    pub(super) packs: Vec<(Hash, u64)>,
    pub(super) table: Table,
    pub(super) others: Vec<IndexSeen>,
    inherited: bool,
    /// Keys of what a pruner moved, as far as it was read.
    moved: BTreeSet<String>,
    /// Not in the table yet.
    waiting: Vec<[u8; 28]>,
    /// Files of runs that were made since it was kept last.
    made: Vec<PathBuf>,
}

/// The form in which it is kept, after a BLAKE3 hash of it.
#[derive(Debug, Encode, Decode)]
struct Kept {
    #[n(0)]
    number: u64,
    #[n(1)]
    head: Option<Hash>,
    #[n(2)]
    read: Vec<u64>,
    #[n(3)]
    packs: Vec<(Hash, u64)>,
    #[n(4)]
    others: Vec<IndexSeen>,
    #[n(5)]
    inherited: bool,
    /// File names in the same directory.
    #[n(6)]
    runs: Vec<String>,
    #[cbor(n(7), default)]
    moved: Vec<String>,
}

/// Records that wait before they make a run: 28 MB.
const WAITING_MAX: usize = 1 << 20;
/// The same beside a session's own work: 2 MB.
const LEARNT_MAX: usize = 1 << 16;
/// Files of runs that nobody names are younger than this only while they are being written.
const DRAFT_AGE_MAX: Duration = Duration::from_secs(3600);

impl KnownChunks {
    fn add(&mut self, packs: &[PackRecord]) {
        for pack in packs {
            let place = self.packs.len() as u32;
            self.packs.push((pack.hash, pack.bytes));
            for frame in &pack.frames {
                self.waiting.extend(frame.chunks().map(|(id, _)| table::record(&id, place)));
            }
        }
    }
}

/// Whether a host may not look there: then what was moved is stored anew.
fn is_not_allowed(error: &VaultError) -> bool {
    matches!(error, VaultError::Storage { source: StorageError::Denied { .. } | StorageError::Refused { .. }, .. })
}

/// Chunks of other hosts that this one may build on: it was promoted, and read them with the content key.
#[derive(Debug, minicbor::Encode, minicbor::Decode)]
pub(crate) struct Inherited {
    #[n(0)]
    pub(crate) indexes: Vec<IndexSeen>,
    #[n(1)]
    pub(crate) packs: Vec<PackRecord>,
}

pub(crate) fn inherited_path(vault: &HostVault, dataset: &str) -> Result<PathBuf> {
    Ok(vault.state().vault_directory(&vault.id())?.join(format!("{}.inherited", name::encode(dataset))))
}

/// The host's own list of packs that are being uploaded and in no index yet, and the lock that says that its session lives.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) list: PathBuf,
    pub(super) lock: PathBuf,
    _held: File,
}

impl HostVault {
    /// What this host's indexes say, read as far as they were not read before; adopts what interrupted sessions left behind.
    pub(super) fn load_known(&self, dataset: &str, recipients: &[Recipient]) -> Result<KnownChunks> {
        let cached = self.indexes_cache().get(dataset).cloned();
        let kept = cached.or_else(|| self.read_kept(dataset)).filter(|known| !known.table.is_damaged());
        let known = match kept {
            Some(kept) => match self.bring_up_to_date(dataset, recipients, kept) {
                // What was kept is damaged.
                Err(VaultError::State { source, .. }) if source.kind() == std::io::ErrorKind::InvalidData => {
                    tracing::warn!(dataset, "the table of chunks is damaged; the indexes are read again");
                    self.bring_up_to_date(dataset, recipients, KnownChunks::default())?
                }
                other => other?,
            },
            None => self.bring_up_to_date(dataset, recipients, KnownChunks::default())?,
        };
        self.indexes_cache().insert(dataset.to_owned(), known.clone());
        Ok(known)
    }

    fn bring_up_to_date(&self, dataset: &str, recipients: &[Recipient], mut known: KnownChunks) -> Result<KnownChunks> {
        let before = known.read.len() + known.moved.len();
        let roster = self.roster();
        let chain = name::indexes_of(self.host_name(), dataset);
        let listed = self.storage().list(&chain).doing(|| format!("listing {chain}"))?;
        for object in &listed {
            let Some(number) = object.key.strip_prefix(chain.as_str()).and_then(name::parse_number) else {
                continue;
            };
            if !known.read.insert(number) {
                continue;
            }
            let read = index::read(&**self.storage(), &roster, self.host_name(), dataset, number);
            // One that was sealed to a former key of this host is a link of the chain all the same.
            let hash = read.as_ref().ok().map(|index| index.hash);
            match read.and_then(|index| index.open_body(std::slice::from_ref(self.state().index_key()))) {
                Ok(body) => {
                    known.add(&body.packs);
                    if known.waiting.len() > WAITING_MAX {
                        self.settle(dataset, &mut known)?;
                    }
                }
                Err(e @ VaultError::Storage { .. }) => return Err(e),
                // Written before this host was given new keys: what it names is stored again, as `rotate` says.
                Err(VaultError::WrongKey { .. }) => {}
                // A damaged index costs an upload.
                Err(e) => self.note_passed_by(&e),
            }
            if number > known.head.number {
                known.head = Head { number, hash };
            }
        }
        if let Some((seen, hash)) = self.remembered_head(&chain)?
            && seen > known.head.number
        {
            known.head = Head { number: seen, hash: crate::crypt::unhex(&hash).map(Hash) };
        }
        if !known.inherited
            && let Some(bytes) = read_file(&inherited_path(self, dataset)?)?
        {
            let inherited: Inherited = codec::decode("the inherited index", &bytes)?;
            known.add(&inherited.packs);
            known.others = inherited.indexes;
            known.inherited = true;
        }
        let moved = listed.iter().filter_map(|object| Some((&object.key, index::parse_moved_key(&object.key)?.2)));
        for (key, of) in moved {
            if known.moved.insert(key.clone()) {
                let read = self.read_moved_records(self.host_name(), dataset, of);
                self.add_moved(dataset, read, &mut known)?;
            }
        }
        for (host, of) in self.moved_of_others(dataset, &known.others)? {
            let key = of.key(&host, dataset);
            if !known.moved.contains(&key) {
                match self.read_moved_records(&host, dataset, of) {
                    // What was moved before this host took over was sealed to others, and is in what it took over.
                    Err(VaultError::WrongKey { .. }) => {}
                    Err(error) if is_not_allowed(&error) => continue,
                    read => self.add_moved(dataset, read, &mut known)?,
                }
                known.moved.insert(key);
            }
        }
        self.adopt_pending(dataset, recipients, &mut known)?;
        if !known.waiting.is_empty() || known.read.len() + known.moved.len() != before {
            self.settle(dataset, &mut known)?;
            self.keep(dataset, &mut known)?;
        }
        Ok(known)
    }

    /// What was moved out of packs of hosts from which this one took a data set over, as far as it may look.
    pub(crate) fn moved_of_others(&self, dataset: &str, others: &[IndexSeen]) -> Result<Vec<(String, MovedName)>> {
        let mut moved = Vec::new();
        for other in others.iter().filter(|other| other.host != self.host_name()) {
            let chain = name::indexes_of(&other.host, dataset);
            let listed = match self.storage().list(&chain).doing(|| format!("listing {chain}")) {
                Err(error) if is_not_allowed(&error) => continue,
                listed => listed?,
            };
            let names = listed.iter().filter_map(|object| Some(index::parse_moved_key(&object.key)?.2));
            moved.extend(names.map(|of| (other.host.clone(), of)));
        }
        Ok(moved)
    }

    pub(crate) fn read_moved_records(&self, host: &str, dataset: &str, of: MovedName) -> Result<Vec<PackRecord>> {
        let moved = index::read_moved(&**self.storage(), &self.roster(), host, dataset, of)?;
        Ok(moved.open_body(std::slice::from_ref(self.state().index_key()))?.packs)
    }

    /// Believes a pruner where chunks lie now, of those that this host's own indexes, or those that it took over, have named.
    fn add_moved(&self, dataset: &str, read: Result<Vec<PackRecord>>, known: &mut KnownChunks) -> Result<()> {
        let packs = match read {
            Ok(packs) => packs,
            Err(e @ VaultError::Storage { .. }) => return Err(e),
            // It costs an upload.
            Err(VaultError::WrongKey { .. }) => return Ok(()),
            Err(e) => {
                self.note_passed_by(&e);
                return Ok(());
            }
        };
        self.settle(dataset, known)?;
        for pack in &packs {
            let place = known.packs.len() as u32;
            known.packs.push((pack.hash, pack.bytes));
            let ids = pack.frames.iter().flat_map(|frame| frame.chunks()).map(|(id, _)| id);
            known.waiting.extend(ids.filter(|id| known.table.any(id, |_| true)).map(|id| table::record(&id, place)));
        }
        Ok(())
    }

    /// Takes in an index that this session has published, so that the next one need not read it.
    pub(super) fn learn(&self, dataset: &str, known: &mut KnownChunks, head: Head, packs: &[PackRecord]) -> Result<()> {
        known.add(packs);
        known.read.insert(head.number);
        if head.number > known.head.number {
            known.head = head;
        }
        if known.waiting.len() > LEARNT_MAX { self.settle(dataset, known) } else { Ok(()) }
    }

    /// Keeps what a session has learnt.
    pub(super) fn keep_learnt(&self, dataset: &str, mut known: KnownChunks) -> Result<()> {
        self.settle(dataset, &mut known)?;
        self.keep(dataset, &mut known)?;
        self.indexes_cache().insert(dataset.to_owned(), known);
        Ok(())
    }

    /// Moves what waits into the table.
    fn settle(&self, dataset: &str, known: &mut KnownChunks) -> Result<()> {
        let directory = self.pending_directory()?;
        let fresh_name =
            || directory.join(format!("{}.{:016x}.chunks", name::encode(dataset), crate::crypt::random_u64()));
        let before: HashSet<PathBuf> = known.table.paths().map(Path::to_owned).collect();
        let added = known.table.add(std::mem::take(&mut known.waiting), &directory, Some(&fresh_name));
        added.map_err(|source| VaultError::State {
            path: directory.display().to_string(),
            doing: "writing the table of chunks in it".to_owned(),
            source,
        })?;
        let now: HashSet<PathBuf> = known.table.paths().map(Path::to_owned).collect();
        known.made.extend(now.iter().filter(|run| !before.contains(*run)).cloned());
        // What was merged since it was made, nobody else has heard of.
        known.made.retain(|run| now.contains(run) || std::fs::remove_file(run).is_err());
        Ok(())
    }

    fn kept_path(&self, dataset: &str) -> Result<PathBuf> {
        Ok(self.pending_directory()?.join(format!("{}.known", name::encode(dataset))))
    }

    /// What was kept, if all of it is there and sound.
    fn read_kept(&self, dataset: &str) -> Option<KnownChunks> {
        let path = self.kept_path(dataset).ok()?;
        let bytes = read_file(&path).ok()??;
        let (sum, kept) = bytes.split_first_chunk::<32>()?;
        if *sum != crate::crypt::hash(kept) {
            return None;
        }
        let kept: Kept = codec::decode("what is kept of the indexes", kept).ok()?;
        let directory = path.parent()?;
        let runs: Vec<PathBuf> = kept.runs.iter().map(|run| directory.join(run)).collect();
        Some(KnownChunks {
            head: Head { number: kept.number, hash: kept.head },
            read: kept.read.into_iter().collect(),
            packs: kept.packs,
            table: Table::open(&runs)?,
            others: kept.others,
            inherited: kept.inherited,
            moved: kept.moved.into_iter().collect(),
            waiting: Vec::new(),
            made: Vec::new(),
        })
    }

    fn keep(&self, dataset: &str, known: &mut KnownChunks) -> Result<()> {
        let path = self.kept_path(dataset)?;
        let names = known.table.paths().filter_map(|run| Some(run.file_name()?.to_string_lossy().into_owned()));
        let kept = Kept {
            number: known.head.number,
            head: known.head.hash,
            read: known.read.iter().copied().collect(),
            packs: known.packs.clone(),
            others: known.others.clone(),
            inherited: known.inherited,
            runs: names.collect(),
            moved: known.moved.iter().cloned().collect(),
        };
        let bytes = codec::encode(&kept)?;
        write_secret_file(&path, &[&crate::crypt::hash(&bytes)[..], &bytes].concat())?;
        known.made.clear();
        // Runs that were merged into others; what another session may just be writing is left.
        let prefix = format!("{}.", name::encode(dataset));
        for entry in path.parent().into_iter().filter_map(|parent| std::fs::read_dir(parent).ok()).flatten().flatten() {
            let file = entry.file_name().to_string_lossy().into_owned();
            let is_run = file.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix(".chunks"));
            let age = entry.metadata().and_then(|found| found.modified()).ok().and_then(|at| at.elapsed().ok());
            if is_run.is_some_and(|rest| rest.len() == 16)
                && !kept.runs.contains(&file)
                && age.is_some_and(|age| age > DRAFT_AGE_MAX)
            {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(())
    }

    /// Forgets what is kept of a data set's indexes: they are read again.
    pub(crate) fn forget_known(&self, dataset: &str) -> Result<()> {
        self.indexes_cache().remove(dataset);
        match std::fs::remove_file(self.kept_path(dataset)?) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(VaultError::State {
                path: self.kept_path(dataset)?.display().to_string(),
                doing: "removing it".to_owned(),
                source,
            }),
            _ => Ok(()),
        }
    }

    fn pending_directory(&self) -> Result<PathBuf> {
        self.state().vault_directory(&self.id())
    }

    pub(super) fn open_pending(&self, dataset: &str) -> Result<Pending> {
        let base = format!("{}.{:016x}", name::encode(dataset), crate::crypt::random_u64());
        let directory = self.pending_directory()?;
        let lock = directory.join(format!("{base}.lock"));
        // Locked before it bears its name: another session that begins now must not take it for a dead one's.
        let draft = directory.join(format!("{base}.new"));
        let failed = |doing: &str, source| VaultError::State {
            path: draft.display().to_string(),
            doing: doing.to_owned(),
            source,
        };
        let options = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft);
        let held = options.map_err(|e| failed("making it", e))?;
        rustix::fs::flock(&held, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| failed("locking it", e.into()))?;
        std::fs::rename(&draft, &lock).map_err(|e| failed("giving it its name", e))?;
        Ok(Pending { list: directory.join(format!("{base}.pending")), lock, _held: held })
    }

    /// Publishes an index of packs that interrupted sessions uploaded, and forgets those sessions.
    fn adopt_pending(&self, dataset: &str, recipients: &[Recipient], known: &mut KnownChunks) -> Result<()> {
        let directory = self.pending_directory()?;
        let prefix = format!("{}.", name::encode(dataset));
        let failed = |source| VaultError::State {
            path: directory.display().to_string(),
            doing: "listing it".to_owned(),
            source,
        };
        for entry in std::fs::read_dir(&directory).map_err(failed)? {
            let file_name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            let Some(base) =
                file_name.strip_suffix(".lock").filter(|b| b.strip_prefix(&prefix).is_some_and(|r| r.len() == 16))
            else {
                continue;
            };
            let (lock_path, list) = (directory.join(&file_name), directory.join(format!("{base}.pending")));
            let Ok(held) = File::open(&lock_path) else { continue };
            if rustix::fs::flock(&held, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
                continue; // that session lives
            }
            if let Some(bytes) = read_file(&list)? {
                match codec::decode::<IndexBody>("the list of pending packs", &bytes) {
                    Ok(body) => self.adopt(dataset, recipients, known, body)?,
                    Err(e) => tracing::warn!("{e}"),
                }
            }
            let _ = std::fs::remove_file(&list);
            let _ = std::fs::remove_file(&lock_path);
        }
        Ok(())
    }

    fn adopt(
        &self,
        dataset: &str,
        recipients: &[Recipient],
        known: &mut KnownChunks,
        mut body: IndexBody,
    ) -> Result<()> {
        let indexed: HashSet<Hash> = known.packs.iter().map(|(hash, _)| *hash).collect();
        let ledger = self.ledger()?;
        let mut there = Vec::new();
        for pack in body.packs.into_iter().filter(|pack| !ledger.is_doomed(&pack.hash)) {
            let key = name::pack(&pack.hash.0);
            let listed = self.storage().list(&key).doing(|| format!("looking for {key}"))?;
            if !indexed.contains(&pack.hash) && listed.iter().any(|o| o.key == key && o.size == pack.bytes) {
                there.push(pack);
            }
        }
        if there.is_empty() {
            return Ok(());
        }
        body.packs = there;
        known.head = self.publish_index(dataset, recipients, known.head, &body, false)?;
        known.read.insert(known.head.number);
        known.add(&body.packs);
        Ok(())
    }

    /// Publishes an index at the next free number.
    pub(super) fn publish_index(
        &self,
        dataset: &str,
        recipients: &[Recipient],
        mut head: Head,
        body: &IndexBody,
        finished: bool,
    ) -> Result<Head> {
        let roster = self.roster();
        let place = (&roster, self.host_name(), dataset);
        let chain = name::indexes_of(self.host_name(), dataset);
        loop {
            match index::publish(
                &**self.storage(),
                place,
                self.state().signing_key(),
                recipients,
                head,
                body,
                finished,
            )? {
                Some(next) => {
                    if let Some(hash) = next.hash {
                        self.remember_head(&chain, next.number, hash.0)?;
                    }
                    return Ok(next);
                }
                None => {
                    // Another session of this host took it.
                    let taken = index::read(&**self.storage(), &roster, self.host_name(), dataset, head.number + 1);
                    head = Head { number: head.number + 1, hash: taken.ok().map(|i| i.hash) };
                }
            }
        }
    }
}
