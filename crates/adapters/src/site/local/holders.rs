//! What belongs to a volume under whatever path it is reached: its files by device and inode, and the mounts that show it.
//!
//! A path says where a file lies for the one who looks, not for the one who writes: a bind mount gives it another name.
//! Invariant: a process that has a file of the volume open, or that has mounts of its own which show the volume, is
//! found by that, whatever names it uses.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lifeboat_engine::port::PortError;
use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};

use super::layout::follow_existing;

/// A file or directory, whatever it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FileId {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) inode: u64,
}

/// Everything of some directories, as it was when it was looked at.
#[derive(Debug, Default)]
pub(super) struct Tree {
    /// The directories, and every other place where this process sees them.
    paths: Vec<PathBuf>,
    files: BTreeSet<FileId>,
    grounds: Vec<Ground>,
    own_namespace: Option<PathBuf>,
    own_mounts: BTreeSet<Mount>,
}

/// Where a directory lies in its file system.
#[derive(Debug)]
struct Ground {
    device: String,
    within: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Mount {
    /// As `MAJOR:MINOR`.
    device: String,
    /// Which directory of the file system is shown.
    root: PathBuf,
    at: PathBuf,
}

impl Tree {
    /// Walks through the directories. One that does not exist has no files, but its path still counts.
    pub(super) fn look(directories: &[PathBuf]) -> Result<Tree, PortError> {
        let mounts = read_mounts("self").ok_or_else(|| {
            PortError::may_pass("cannot read `/proc/self/mountinfo`, without which nobody can tell who sees a volume")
        })?;
        let mut tree = Tree {
            paths: directories.to_vec(),
            own_namespace: fs::read_link("/proc/self/ns/mnt").ok(),
            ..Tree::default()
        };
        for directory in directories {
            let path = follow_existing(directory);
            // Of two mounts at one place the later one covers the earlier.
            let holding = mounts.iter().filter(|mount| path.starts_with(&mount.at));
            if let Some(mount) = holding.max_by_key(|mount| mount.at.components().count())
                && let Ok(inner) = path.strip_prefix(&mount.at)
            {
                tree.grounds.push(Ground { device: mount.device.clone(), within: mount.root.join(inner) });
            }
            tree.walk(path)?;
        }
        let shown: Vec<PathBuf> =
            mounts.iter().filter(|mount| tree.is_shown_by(mount)).map(|mount| mount.at.clone()).collect();
        tree.paths.extend(shown);
        tree.own_mounts = mounts.into_iter().collect();
        Ok(tree)
    }

    fn walk(&mut self, top: PathBuf) -> Result<(), PortError> {
        let failed = |path: &Path, error: io::Error| {
            PortError::may_pass(format!("cannot look through `{}`", path.display())).because(error)
        };
        let mut waiting = vec![top];
        while let Some(path) = waiting.pop() {
            let Some((id, kind)) = identify(&path, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| failed(&path, error))?
            else {
                continue;
            };
            if kind == FileType::Symlink || !self.files.insert(id) || kind != FileType::Directory {
                continue;
            }
            match fs::read_dir(&path) {
                Ok(entries) => {
                    for entry in entries {
                        waiting.push(entry.map_err(|error| failed(&path, error))?.path());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(&path, error)),
            }
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// Whether a path, as the kernel shows it, is at or below one of the directories.
    pub(super) fn has_path(&self, path: &Path) -> bool {
        is_below(path, &self.paths)
    }

    pub(super) fn has_file(&self, id: &FileId) -> bool {
        self.files.contains(id)
    }

    /// Whether what a link of `/proc` leads to is one of the files. Asks no file server: one that is away would not answer.
    pub(super) fn has_target_of(&self, link: &Path) -> bool {
        identify(link, AtFlags::empty()).ok().flatten().is_some_and(|(id, _)| self.has_file(&id))
    }

    /// Where processes see the volume by mounts that are not this process's own. A copy of ours, as every sandboxed
    /// service has, is no news: through it a file is seen under its own name.
    pub(super) fn foreign_mounts(&self, pid: i32, known: &mut ForeignMounts) -> Vec<PathBuf> {
        let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/mnt")) else { return Vec::new() };
        if self.own_namespace.as_ref() == Some(&namespace) {
            return Vec::new();
        }
        let root = fs::read_link(format!("/proc/{pid}/root")).unwrap_or_default();
        let found = known.0.entry((namespace, root)).or_insert_with(|| {
            let mounts = read_mounts(&pid.to_string()).unwrap_or_default().into_iter();
            mounts
                .filter(|mount| self.is_shown_by(mount) && !self.own_mounts.contains(mount))
                .map(|mount| mount.at)
                .collect()
        });
        found.clone()
    }

    fn is_shown_by(&self, mount: &Mount) -> bool {
        self.grounds.iter().any(|ground| mount.device == ground.device && mount.root.starts_with(&ground.within))
    }
}

/// By mount namespace and root: many processes share theirs.
#[derive(Debug, Default)]
pub(super) struct ForeignMounts(BTreeMap<(PathBuf, PathBuf), Vec<PathBuf>>);

/// None: there is nothing.
fn identify(path: &Path, flags: AtFlags) -> io::Result<Option<(FileId, FileType)>> {
    let flags = flags | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    match statx(CWD, path, flags, StatxFlags::INO | StatxFlags::TYPE) {
        Ok(found) => {
            let id = FileId { major: found.stx_dev_major, minor: found.stx_dev_minor, inode: found.stx_ino };
            Ok(Some((id, FileType::from_raw_mode(found.stx_mode.into()))))
        }
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn read_mounts(process: &str) -> Option<Vec<Mount>> {
    let text = fs::read(format!("/proc/{process}/mountinfo")).ok()?;
    Some(text.split(|byte| *byte == b'\n').filter_map(parse_mount).collect())
}

fn parse_mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ').skip(2);
    let device = String::from_utf8_lossy(fields.next()?).into_owned();
    Some(Mount { device, root: unescape(fields.next()?), at: unescape(fields.next()?) })
}

/// Blanks and the like are written as `\040`.
fn unescape(field: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| *byte == b'\\').and_then(|code| std::str::from_utf8(code).ok());
        if let Some(code) = code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            path.push(code);
            rest = after.get(3..).unwrap_or_default();
        } else {
            path.push(*byte);
            rest = after;
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(path))
}

fn is_below(path: &Path, below: &[PathBuf]) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let shown = path.as_os_str().as_bytes();
    let shown = shown.strip_suffix(b" (deleted)").unwrap_or(shown);
    let path = Path::new(std::ffi::OsStr::from_bytes(shown));
    below.iter().any(|base| path.starts_with(base))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn deleted_files_still_count() {
        let below = [PathBuf::from("/a/b")];
        assert!(is_below(Path::new("/a/b/c (deleted)"), &below));
        assert!(is_below(Path::new("/a/b"), &below));
        assert!(!is_below(Path::new("/a/bc"), &below));
    }

    #[test]
    fn mounts_are_read_with_blanks_in_their_names() {
        let line = br"36 35 98:0 /mnt\0401 /mnt2 rw,noatime master:1 - ext3 /dev/root rw";
        let mount = Mount { device: "98:0".into(), root: "/mnt 1".into(), at: "/mnt2".into() };
        assert_eq!(parse_mount(line), Some(mount));
        assert_eq!(parse_mount(b""), None);
    }

    #[test]
    fn a_file_is_known_by_any_of_its_names() {
        let place = tempfile::tempdir().unwrap();
        let inner = place.path().join("volume/inner");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("file"), "x").unwrap();
        fs::hard_link(inner.join("file"), place.path().join("other-name")).unwrap();
        fs::write(place.path().join("stranger"), "x").unwrap();
        let tree = Tree::look(&[place.path().join("volume"), place.path().join("not-there")]).unwrap();
        assert!(tree.has_target_of(&place.path().join("other-name")));
        assert!(!tree.has_target_of(&place.path().join("stranger")));
        assert!(tree.has_path(&place.path().join("not-there/x")));
    }
}
