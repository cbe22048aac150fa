//! What the tests of files share: a vault in memory, and an oracle that describes a tree with other means than the code
//! under test.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lifeboat_vault::files::{
    BackupError, BackupOptions, Event, Progress, RestoreError, RestoreOptions, Restored, TreeSummary, backup_tree,
    restore_tree,
};
use lifeboat_vault::{ChunkId, ChunkSink, ChunkSource, Result, Stored, VaultError};

/// Chunks in a map.
#[derive(Default)]
pub(crate) struct MemoryVault {
    pub(crate) chunks: Mutex<HashMap<ChunkId, (u64, Vec<u8>)>>,
    pub(crate) gets: AtomicU64,
    pub(crate) puts_until_full: Option<AtomicU64>,
    pub(crate) checkpoints: AtomicU64,
}

impl MemoryVault {
    pub(crate) fn len(&self) -> usize {
        self.chunks.lock().unwrap().len()
    }

    pub(crate) fn forget(&self, id: &ChunkId) {
        self.chunks.lock().unwrap().remove(id);
    }

    pub(crate) fn replace(&self, id: ChunkId, bytes: Vec<u8>) {
        self.chunks.lock().unwrap().insert(id, (0, bytes));
    }

    pub(crate) fn ids(&self) -> Vec<ChunkId> {
        let mut ids: Vec<_> = self.chunks.lock().unwrap().keys().copied().collect();
        ids.sort();
        ids
    }
}

impl ChunkSink for MemoryVault {
    fn put(&self, plain: &[u8]) -> Result<Stored> {
        assert!(!plain.is_empty() && plain.len() <= lifeboat_vault::CHUNK_BYTES_MAX);
        if let Some(left) = &self.puts_until_full
            && left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err()
        {
            return Err(VaultError::SessionFailed { why: "the disk is full".to_owned() });
        }
        let id = ChunkId(*blake3::keyed_hash(&[7; 32], plain).as_bytes());
        let mut chunks = self.chunks.lock().unwrap();
        let (place, new) = (chunks.len() as u64, !chunks.contains_key(&id));
        chunks.entry(id).or_insert_with(|| (place, plain.to_vec()));
        Ok(Stored { id, new })
    }

    fn contains(&self, id: &ChunkId) -> bool {
        self.chunks.lock().unwrap().contains_key(id)
    }

    fn chunker_seed(&self) -> u64 {
        0x1234_5678_9abc_def0
    }

    fn bytes_stored(&self) -> u64 {
        self.chunks.lock().unwrap().values().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    fn checkpoint(&self) -> Result<()> {
        self.checkpoints.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl ChunkSource for MemoryVault {
    fn get(&self, id: &ChunkId) -> Result<Vec<u8>> {
        self.gets.fetch_add(1, Ordering::Relaxed);
        let chunks = self.chunks.lock().unwrap();
        chunks.get(id).map(|(_, bytes)| bytes.clone()).ok_or(VaultError::Missing { object: format!("chunk {id}") })
    }

    fn place(&self, id: &ChunkId) -> Option<(u32, u64)> {
        self.chunks.lock().unwrap().get(id).map(|(place, _)| ((place / 16) as u32, place % 16))
    }
}

/// Calls a function when something happens.
pub(crate) struct On<F: Fn(&Event<'_>) + Sync>(pub(crate) F);

impl<F: Fn(&Event<'_>) + Sync> Progress for On<F> {
    fn report(&self, event: &Event<'_>) {
        (self.0)(event)
    }
}

pub(crate) fn try_backup(
    vault: &MemoryVault,
    roots: &[&Path],
    options: &BackupOptions,
) -> Result<TreeSummary, BackupError> {
    let roots: Vec<PathBuf> = roots.iter().map(|path| path.to_path_buf()).collect();
    backup_tree(vault, &roots, options, &(), &AtomicBool::new(false))
}

pub(crate) fn backup(vault: &MemoryVault, root: &Path) -> TreeSummary {
    try_backup(vault, &[root], &BackupOptions::default()).unwrap()
}

pub(crate) fn with_cache(path: &Path) -> BackupOptions {
    BackupOptions { cache: Some(path.to_owned()), ..BackupOptions::default() }
}

pub(crate) fn try_restore(
    vault: &MemoryVault,
    root: &ChunkId,
    to: &Path,
    options: &RestoreOptions,
) -> Result<Restored, RestoreError> {
    restore_tree(vault, root, to, options, &(), &AtomicBool::new(false))
}

pub(crate) fn restore(vault: &MemoryVault, root: &ChunkId, to: &Path) -> Restored {
    let restored = try_restore(vault, root, to, &RestoreOptions::default()).unwrap();
    assert!(restored.notes.is_empty(), "{:?}", restored.notes);
    restored
}

pub(crate) fn in_place() -> RestoreOptions {
    RestoreOptions { in_place: true, delete_extra: true, ..RestoreOptions::default() }
}

/// Everything about one name that a restore has to bring back.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(crate) struct Described {
    kind: String,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    content: Vec<u8>,
    xattrs: BTreeMap<OsString, Vec<u8>>,
    /// The first path with the same inode.
    same_as: Option<PathBuf>,
}

/// Describes a tree with `std` and the xattr crate.
pub(crate) fn describe(top: &Path) -> BTreeMap<PathBuf, Described> {
    let mut found = BTreeMap::new();
    let mut inodes = HashMap::new();
    describe_into(top, Path::new(""), &mut inodes, &mut found);
    found
}

fn describe_into(
    top: &Path,
    relative: &Path,
    inodes: &mut HashMap<u64, PathBuf>,
    found: &mut BTreeMap<PathBuf, Described>,
) {
    let path = top.join(relative);
    let path = if relative.as_os_str().is_empty() { top.to_owned() } else { path };
    let meta = fs::symlink_metadata(&path).unwrap();
    let kind = meta.file_type();
    let (name, content) = if kind.is_dir() {
        ("directory", Vec::new())
    } else if kind.is_symlink() {
        ("symlink", fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec())
    } else if kind.is_file() {
        ("file", fs::read(&path).unwrap())
    } else if kind.is_fifo() {
        ("fifo", Vec::new())
    } else {
        ("other", Vec::new())
    };
    let xattrs = xattr::list(&path).unwrap().map(|key| (key.clone(), xattr::get(&path, &key).unwrap().unwrap()));
    let same_as = (meta.nlink() > 1 && kind.is_file())
        .then(|| inodes.entry(meta.ino()).or_insert_with(|| relative.to_owned()).clone());
    let described = Described {
        kind: name.to_owned(),
        mode: meta.mode() & 0o7777,
        owner: (meta.uid(), meta.gid()),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        content,
        xattrs: if kind.is_symlink() { BTreeMap::new() } else { xattrs.collect() },
        same_as,
    };
    found.insert(relative.to_owned(), described);
    if kind.is_dir() {
        let mut names: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            describe_into(top, &relative.join(name), inodes, found);
        }
    }
}

/// Fails with the first difference.
pub(crate) fn assert_same(left: &Path, right: &Path) {
    let (left, right) = (describe(left), describe(right));
    assert_eq!(left.keys().collect::<Vec<_>>(), right.keys().collect::<Vec<_>>());
    for (path, described) in &left {
        let other = &right[path];
        let brief = |d: &Described| Described { content: d.content.iter().take(64).copied().collect(), ..d.clone() };
        assert_eq!(brief(described), brief(other), "{}", path.display());
        assert!(described.content == other.content, "the content of {} differs", path.display());
    }
}

/// Bytes that do not compress and differ by seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

pub(crate) fn write(path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
    fs::create_dir_all(path.as_ref().parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// Sets the time of last change.
pub(crate) fn touch(path: &Path, seconds: i64, nanos: i64) {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT};
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanos },
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Waits until every file's time of change is so old that the cache may remember it.
pub(crate) fn let_clock_tick(top: &Path) {
    let newest = |path: &Path| {
        let meta = fs::symlink_metadata(path).unwrap();
        std::time::Duration::new(meta.ctime() as u64, meta.ctime_nsec() as u32)
    };
    let newest = describe(top).keys().map(|path| newest(&top.join(path))).max().unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while std::time::UNIX_EPOCH.elapsed().unwrap() < newest + std::time::Duration::from_millis(100) {
        assert!(std::time::Instant::now() < deadline, "the clock does not move");
        std::thread::yield_now();
    }
}
