//! What a file system says about a file beside its bytes: mode, owners, times, extended attributes (POSIX ACLs among
//! them, as the raw attributes they are).
//!
//! Invariant: nothing here follows a symbolic link.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{AtFlags, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

/// Extended attributes: names and values, sorted by name.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// The metadata of one node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metadata {
    /// Permission bits with set-user-id, set-group-id and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime_seconds: i64,
    pub mtime_nanos: u32,
    /// Sorted by name.
    pub xattrs: Xattrs,
}

/// A point in a file system's time.
pub(crate) type FileTime = (i64, u32);

/// What `stat` said, as far as it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) links: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) blocks: u64,
    pub(crate) mtime: FileTime,
    pub(crate) ctime: FileTime,
}

impl From<&Stat> for Seen {
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion)] // the widths differ between architectures
    fn from(stat: &Stat) -> Self {
        Seen {
            dev: stat.st_dev as u64,
            ino: stat.st_ino as u64,
            links: stat.st_nlink as u64,
            mode: stat.st_mode as u32,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: stat.st_size.max(0) as u64,
            blocks: stat.st_blocks.max(0) as u64,
            mtime: (stat.st_mtime as i64, stat.st_mtime_nsec as u32),
            ctime: (stat.st_ctime as i64, stat.st_ctime_nsec as u32),
        }
    }
}

impl Seen {
    pub(crate) fn file_type(&self) -> rustix::fs::FileType {
        rustix::fs::FileType::from_raw_mode(self.mode)
    }

    /// Whether the file that was seen is the one that is there, with the same content as far as times tell.
    pub(crate) fn same_version(&self, other: &Seen) -> bool {
        (self.dev, self.ino, self.size, self.mtime, self.ctime)
            == (other.dev, other.ino, other.size, other.mtime, other.ctime)
    }

    pub(crate) fn metadata(&self, xattrs: Xattrs) -> Metadata {
        Metadata {
            mode: self.mode & 0o7777,
            uid: self.uid,
            gid: self.gid,
            mtime_seconds: self.mtime.0,
            mtime_nanos: self.mtime.1,
            xattrs,
        }
    }
}

/// Reads the attributes of an open file or directory.
pub(crate) fn read_xattrs(fd: BorrowedFd<'_>) -> Result<Xattrs, Errno> {
    let names = list(|buffer| rustix::fs::flistxattr(fd, buffer))?;
    collect(&names, |name, buffer| rustix::fs::fgetxattr(fd, name, buffer))
}

/// Reads the attributes of what cannot be opened (a symbolic link, a FIFO).
pub(crate) fn read_xattrs_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Xattrs, Errno> {
    let path = proc_path(dir, name);
    let names = list(|buffer| rustix::fs::llistxattr(&path[..], buffer))?;
    collect(&names, |name, buffer| rustix::fs::lgetxattr(&path[..], name, buffer))
}

/// A path that names an entry of an open directory, for the calls that have no `…at` form.
fn proc_path(dir: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

fn list(mut call: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut small = [0u8; 512];
    match call(&mut small) {
        Ok(length) => Ok(small.get(..length).unwrap_or_default().to_vec()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(Vec::new()),
        Err(Errno::RANGE) => {
            let mut large = vec![0; 64 << 10]; // the kernel's own bound
            let length = call(&mut large)?;
            large.truncate(length);
            Ok(large)
        }
        Err(error) => Err(error),
    }
}

fn collect(names: &[u8], mut get: impl FnMut(&[u8], &mut [u8]) -> Result<usize, Errno>) -> Result<Xattrs, Errno> {
    let mut xattrs = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 1024];
        let length = match get(name, &mut value) {
            Err(Errno::RANGE) => {
                value = vec![0; 64 << 10];
                get(name, &mut value)
            }
            other => other,
        };
        match length {
            Ok(length) => {
                value.truncate(length);
                xattrs.push((name.to_vec(), value));
            }
            Err(Errno::NODATA) => {} // went away since it was listed
            Err(error) => return Err(error),
        }
    }
    xattrs.sort();
    Ok(xattrs)
}

/// Whether an attribute is changed by, or changes, the mode and so has to be set after it.
fn is_acl(name: &[u8]) -> bool {
    name.starts_with(b"system.posix_acl_")
}

fn times(metadata: &Metadata) -> Timestamps {
    let time = Timespec { tv_sec: metadata.mtime_seconds, tv_nsec: i64::from(metadata.mtime_nanos) };
    Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT }, last_modification: time }
}

/// What a file that we just made has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Own {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
}

/// Brings an open file or directory to `metadata`, changing only what differs. What the system refuses comes back as
/// sentences; the rest is done. With `own` it was just made by us and has nothing yet.
pub(crate) fn apply(fd: BorrowedFd<'_>, metadata: &Metadata, owners: bool, own: Option<Own>) -> Vec<String> {
    let mut refused = Vec::new();
    let mut note = |what: &str, error: Errno| refused.push(format!("{what} could not be set: {error}"));
    let (uid, gid, mode, present) = match own.map_or_else(|| rustix::fs::fstat(fd).map(Err), |own| Ok(Ok(own))) {
        Ok(Ok(own)) => (own.uid, own.gid, own.mode, Vec::new()),
        Ok(Err(stat)) => (stat.st_uid, stat.st_gid, stat.st_mode, read_xattrs(fd).unwrap_or_default()),
        Err(error) => {
            note("metadata", error);
            return refused;
        }
    };
    let change_owner = owners && (uid, gid) != (metadata.uid, metadata.gid);
    if change_owner
        && let Err(error) = rustix::fs::fchown(fd, Some(Uid::from_raw(metadata.uid)), Some(Gid::from_raw(metadata.gid)))
    {
        note("the owner", error);
    }
    for (name, _) in &present {
        if !metadata.xattrs.iter().any(|(wanted, _)| wanted == name)
            && name != b"security.selinux" // the system labels by itself
            && let Err(error) = rustix::fs::fremovexattr(fd, &name[..])
        {
            note(&format!("the absence of attribute {}", String::from_utf8_lossy(name)), error);
        }
    }
    // Attributes before the mode, which may forbid setting them; ACLs after it, because it would change them. Owners
    // before both: giving a file away drops set-user-id and capabilities.
    let wanted = |acl: bool| metadata.xattrs.iter().filter(move |(name, _)| is_acl(name) == acl);
    for (name, value) in wanted(false).filter(|xattr| change_owner || !present.contains(xattr)) {
        if let Err(error) = rustix::fs::fsetxattr(fd, &name[..], value, XattrFlags::empty()) {
            note(&format!("attribute {}", String::from_utf8_lossy(name)), error);
        }
    }
    if (change_owner || !present.is_empty() || mode & 0o7777 != metadata.mode)
        && let Err(error) = rustix::fs::fchmod(fd, Mode::from_raw_mode(metadata.mode))
    {
        note("the mode", error);
    }
    for (name, value) in wanted(true) {
        if let Err(error) = rustix::fs::fsetxattr(fd, &name[..], value, XattrFlags::empty()) {
            note(&format!("attribute {}", String::from_utf8_lossy(name)), error);
        }
    }
    if let Err(error) = rustix::fs::futimens(fd, &times(metadata)) {
        note("the time of change", error);
    }
    refused
}

/// The same for what cannot be opened: a symbolic link, a FIFO.
pub(crate) fn apply_at(
    dir: BorrowedFd<'_>,
    name: &[u8],
    metadata: &Metadata,
    owners: bool,
    symlink: bool,
) -> Vec<String> {
    let mut refused = Vec::new();
    let mut note = |what: &str, error: Errno| refused.push(format!("{what} could not be set: {error}"));
    if owners
        && let Err(error) = rustix::fs::chownat(
            dir,
            name,
            Some(Uid::from_raw(metadata.uid)),
            Some(Gid::from_raw(metadata.gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )
    {
        note("the owner", error);
    }
    let path = proc_path(dir.as_fd(), name);
    for (key, value) in &metadata.xattrs {
        if let Err(error) = rustix::fs::lsetxattr(&path[..], &key[..], value, XattrFlags::empty()) {
            note(&format!("attribute {}", String::from_utf8_lossy(key)), error);
        }
    }
    // A symbolic link has no mode of its own. A FIFO was just made by us in a directory of ours.
    if !symlink && let Err(error) = rustix::fs::chmodat(dir, name, Mode::from_raw_mode(metadata.mode), AtFlags::empty())
    {
        note("the mode", error);
    }
    if let Err(error) = rustix::fs::utimensat(dir, name, &times(metadata), AtFlags::SYMLINK_NOFOLLOW) {
        note("the time of change", error);
    }
    refused
}
