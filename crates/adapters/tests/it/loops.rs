//! File systems on loop devices, for tests: made, mounted, gone when dropped.
//!
//! Needs root. Invariant: when the test process is killed, a watchdog that holds on to its stdin unmounts them; the device goes with that.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::pg_cluster::run;

/// Less than 300 MiB `mkfs.xfs` refuses. The file is sparse.
const BYTES: u64 = 512 << 20;

#[derive(Debug)]
pub(crate) struct Loop {
    directory: PathBuf,
    watchdog: Child,
}

impl Loop {
    pub(crate) fn made(kind: &str) -> Loop {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = PathBuf::from(format!("/dev/shm/lifeboat-loop-{}-{number}", std::process::id()));
        std::fs::create_dir_all(directory.join("mnt")).unwrap();
        let image = directory.join("image");
        std::fs::File::create(&image).unwrap().set_len(BYTES).unwrap();
        let script = "trap '' INT HUP TERM; cat > /dev/null; umount -l \"$0/mnt\"; rm -rf --one-file-system \"$0\"";
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(&directory).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let watchdog = std::os::unix::process::CommandExt::process_group(&mut command, 0).spawn().unwrap();
        let made = Loop { directory, watchdog };
        run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image));
        run(Command::new("mount").args(["-t", kind, "-o", "loop"]).arg(&image).arg(made.path()));
        // The servers' user works there.
        std::fs::set_permissions(made.path(), std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
        made
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.join("mnt")
    }

    /// A new directory there; on btrfs a subvolume.
    pub(crate) fn volume(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        let is_btrfs =
            Command::new("btrfs").args(["subvolume", "create"]).arg(&path).output().unwrap().status.success();
        if !is_btrfs {
            std::fs::create_dir(&path).unwrap();
        }
        path
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        let _ = self.watchdog.wait();
    }
}

/// How many blocks of the file system are free.
pub(crate) fn free_bytes(path: &Path) -> u64 {
    let file = std::fs::File::open(path).unwrap();
    rustix::fs::syncfs(&file).unwrap();
    let seen = rustix::fs::statvfs(path).unwrap();
    seen.f_bfree * seen.f_frsize
}
