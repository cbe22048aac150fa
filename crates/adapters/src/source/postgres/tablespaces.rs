//! Tablespaces of a restored cluster: in a directory beside it, `NAME.tablespaces`, whatever place they had on the source's host.
//!
//! Invariant: the source's own places are never written to; a restore elsewhere on the same host would destroy what it is a copy of.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::files::give_away;
use super::recover::RecoverError;

const LINKS: &str = "pg_tblspc";
/// Where the source's tablespaces lay, as its server noted for who restores by hand.
const MAP: &str = "tablespace_map";

pub(super) fn beside(cluster: &Path) -> PathBuf {
    let mut name = cluster.as_os_str().to_owned();
    name.push(".tablespaces");
    name.into()
}

/// Puts tablespaces that an earlier restore laid beside `to` into the tree again, so that only what differs is written.
pub(super) fn gather(data: &Path, to: &Path) -> Result<(), RecoverError> {
    let home = beside(to);
    for (oid, link) in entries(&data.join(LINKS))? {
        if fs::read_link(&link).is_ok_and(|target| target == home.join(&oid)) {
            fs::remove_file(&link).map_err(RecoverError::file("replace", &link))?;
            fs::rename(home.join(&oid), &link).map_err(RecoverError::file("move", &link))?;
        }
    }
    Ok(())
}

/// Lays the tree's tablespaces beside `to`, and links them. Answers what is to be known about it.
pub(super) fn spread(data: &Path, to: &Path) -> Result<Vec<String>, RecoverError> {
    let home = beside(to);
    let mut notes = Vec::new();
    for (oid, place) in entries(&data.join(LINKS))? {
        if !fs::symlink_metadata(&place).is_ok_and(|seen| seen.is_dir()) {
            continue;
        }
        let target = home.join(&oid);
        if !home.exists() {
            fs::create_dir_all(&home).map_err(RecoverError::file("make", &home))?;
            give_away(&home, data)?;
        }
        if fs::symlink_metadata(&target).is_ok() {
            // Of a cluster that was set aside: its files are kept, its links lead nowhere.
            let aside = aside(&target);
            fs::rename(&target, &aside).map_err(RecoverError::file("move aside", &target))?;
            notes.push(format!("the tablespace that lay in {} was moved to {}", target.display(), aside.display()));
        }
        fs::rename(&place, &target).map_err(RecoverError::file("move", &place))?;
        std::os::unix::fs::symlink(&target, &place).map_err(RecoverError::file("link", &place))?;
        give_away(&place, data)?;
        notes.push(format!("the tablespace {oid} lies in {}", target.display()));
    }
    let map = data.join(MAP);
    match fs::remove_file(&map) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(RecoverError::file("remove", &map)(error)),
        _ => Ok(notes),
    }
}

fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".aside-{}", jiff::Timestamp::now().as_microsecond()));
    name.into()
}

fn entries(directory: &Path) -> Result<Vec<(String, PathBuf)>, RecoverError> {
    let failed = |error: io::Error| RecoverError::file("read", directory)(error);
    let listed = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.map_err(failed)?,
    };
    let mut entries = Vec::new();
    for entry in listed {
        let entry = entry.map_err(failed)?;
        entries.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    entries.sort();
    Ok(entries)
}
