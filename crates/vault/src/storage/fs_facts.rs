//! What a directory is for a vault: which file system, how much room, who else may touch it.
//!
//! Invariant: nothing is changed by looking.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Fact;

/// Below both of these a vault soon stands still.
const FREE_PART_MIN: f64 = 0.05;
const FREE_BYTES_MIN: u64 = 1 << 30;
/// Kinds of file systems (statfs) that are gone when the machine is switched off.
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

pub(super) fn facts(root: &Path) -> Vec<Fact> {
    [room(root), mount(root), permissions(root), umask()].into_iter().collect()
}

fn room(root: &Path) -> Fact {
    let Ok(found) = rustix::fs::statvfs(root) else {
        return Fact::unknown("space", "how much room is left cannot be found out");
    };
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let part = found.f_bavail as f64 / (found.f_blocks.max(1)) as f64;
    let says = format!("{:.1} GB free, {:.0} % of the file system", free as f64 / 1e9, part * 100.0);
    if free < FREE_BYTES_MIN || part < FREE_PART_MIN {
        return Fact::finding("space", says, "make room, or prune: a backup that finds none fails");
    }
    Fact::good("space", says)
}

fn mount(root: &Path) -> Fact {
    if rustix::fs::statfs(root).is_ok_and(|found| IN_MEMORY.contains(&u64::try_from(found.f_type).unwrap_or(0))) {
        let next = "keep the vault on a disk";
        return Fact::finding("mount", "lies in memory: it is gone when this machine is switched off", next);
    }
    let device = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.dev());
    match (device(root), device(Path::new("/"))) {
        (Ok(here), Ok(top)) if here == top => Fact::finding(
            "mount",
            "lies on the same file system as /: it is lost with this machine's disk, and if a disk should be mounted here, it is not",
            "mount the disk, or keep another copy elsewhere",
        ),
        (Ok(_), Ok(_)) => Fact::good("mount", "lies on a file system of its own, apart from /"),
        _ => Fact::unknown("mount", "which file system it lies on cannot be found out"),
    }
}

fn permissions(root: &Path) -> Fact {
    match std::fs::metadata(root) {
        Ok(found) if found.mode() & 0o002 != 0 => {
            Fact::finding("permissions", "everybody on this machine may write to it", "take that away: chmod o-w")
        }
        Ok(found) => Fact::good(
            "permissions",
            format!("only its owner and group write to it (mode {:o})", found.mode() & 0o7777),
        ),
        Err(error) => Fact::unknown("permissions", format!("its permissions cannot be read: {error}")),
    }
}

/// The kernel says it without changing it.
fn umask() -> Fact {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| Some(line.strip_prefix("Umask:")?.trim().to_owned()));
    match mask.and_then(|mask| u32::from_str_radix(&mask, 8).ok()) {
        Some(mask) if mask & 0o002 == 0 => Fact::finding(
            "umask",
            format!("directories that are made here can be written to by everybody (umask {mask:03o})"),
            "set the umask to 022 or 027 where lifeboat is started",
        ),
        Some(mask) => Fact::good("umask", format!("what is made here, others cannot change (umask {mask:03o})")),
        None => Fact::unknown("umask", "the umask cannot be found out"),
    }
}
