//! The Debian packages that tests and pictures need, in one place.
//!
//! Invariant: after `install` each of them is installed, or the chore has failed and said which is missing.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

/// What tests call, each with the reason.
pub(crate) const FOR_TESTS: &[(&str, &str)] = &[
    ("acl", "setfacl and getfacl: restored ACLs are read by their own tool"),
    ("age", "opens the vault's key files without any of our code"),
    ("attr", "setfattr and getfattr: restored attributes are read by their own tool"),
    ("bind9-dnsutils", "dig: a real client of the DNS authority"),
    ("bsdutils", "script: a terminal to see progress on"),
    ("btrfs-progs", "btrfs: snapshots of subvolumes, on a loop device"),
    ("ceph-common", "users and quotas of the S3 server"),
    ("ceph-mon", "the monitor that the S3 server asks"),
    ("ceph-osd", "keeps the S3 server's objects, in memory"),
    ("curl", "a real client of the example service"),
    ("e2fsprogs", "mkfs.ext4: a small file system that really runs full"),
    ("faketime", "a clock that goes back"),
    ("librsvg2-bin", "rsvg-convert: draws the QR code of a printed key"),
    ("fuse3", "fusermount3: who is not root mounts with it"),
    ("gpg", "opens portable archives without any of our code"),
    ("gpg-agent", "holds the key for it"),
    ("mount", "mounts it"),
    ("openssh-client", "ssh: the way to a served vault"),
    ("openssh-server", "sshd: a real server in front of a served vault"),
    ("postgresql", "a real server, and its own tools as oracles; tests make clusters of their own"),
    ("procps", "ps: what processes are left, as the system sees it"),
    ("python3", "user's commands that speak JSON, for the command site"),
    ("python3-venv", "a place for what comes from PyPI"),
    ("radosgw", "an S3 server that no one here wrote"),
    ("sqlite3", "reads restored databases without any of our code"),
    ("unbound", "a real resolver in front of the DNS authority"),
    ("xfsprogs", "mkfs.xfs: files that share blocks, on a loop device"),
    ("zstd", "decompresses portable archives without any of our code"),
    ("util-linux", "setpriv: a user without privileges"),
    ("zbar-tools", "zbarimg: reads a printed key's QR code without any of our code"),
];

/// What `cargo xtask bench` calls.
pub(crate) const FOR_BENCHMARKS: &[(&str, &str)] = &[
    ("diffutils", "diff: every restore is compared with its source"),
    ("etcd-server", "Patroni keeps there who is primary"),
    ("haproxy", "the way to Patroni's primary"),
    ("libacl1-dev", "borgbackup is built against it, where PyPI has no wheel for this Python"),
    ("liblz4-dev", "so it is against it"),
    ("libssl-dev", "and it"),
    ("libxxhash-dev", "and it"),
    ("libzstd-dev", "and it"),
    ("libsodium-dev", "bupstash is built against it"),
    ("pgbackrest", "a peer"),
    ("pkg-config", "and finds it so"),
    ("postgresql", "the server whose cluster is backed up"),
    ("procps", "kill: sites are killed"),
    ("python3-venv", "borgbackup, Litestream and Patroni come from PyPI"),
    ("restic", "a peer"),
    ("sqlite3", "the writer whose database is streamed"),
    ("time", "GNU time: what a command took"),
    ("util-linux", "setpriv: servers run as a user without privileges"),
    ("zstd", "a floor"),
];

/// What `cargo xtask pictures` calls besides.
pub(crate) const FOR_PICTURES: &[(&str, &str)] = &[
    ("chromium", "photographs pages"),
    ("fonts-dejavu-core", "so that the pictures look the same everywhere"),
    ("util-linux", "script: gives the demo a terminal"),
];

/// Installs what is missing. Asks for nothing when all is there.
pub(crate) fn install(packages: &[(&str, &str)]) -> Result<(), String> {
    let missing = missing(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing {}", missing.join(" "));
    apt(&["update"])?;
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(&missing);
    apt(&arguments)?;
    let still = self::missing(packages)?;
    if still.is_empty() {
        return Ok(());
    }
    Err(format!("{} could not be installed; install it by hand and run this again", still.join(", ")))
}

/// Gives the FUSE device the mode that Debian's udev gives it: where no udev runs, it is root's alone, and who is not root mounts nothing.
pub(crate) fn open_fuse() -> Result<(), String> {
    let device = std::path::Path::new("/dev/fuse");
    let mode = || -> std::io::Result<u32> { Ok(std::fs::metadata(device)?.permissions().mode() & 0o777) };
    let given = mode().and_then(|mode| match mode {
        0o666 => Ok(()),
        _ => std::fs::set_permissions(device, std::fs::Permissions::from_mode(0o666)),
    });
    given.map_err(|error| format!("cannot give {} the mode 0666 that udev gives it ({error})", device.display()))
}

fn missing<'a>(packages: &[(&'a str, &str)]) -> Result<Vec<&'a str>, String> {
    let mut missing = Vec::new();
    for (package, _) in packages {
        let output =
            Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]).output().map_err(
                |error| format!("cannot ask dpkg-query which packages are installed ({error}): this needs Debian"),
            )?;
        if output.stdout != b"installed" {
            missing.push(*package);
        }
    }
    Ok(missing)
}

fn apt(arguments: &[&str]) -> Result<(), String> {
    let shown = arguments.join(" ");
    let status = Command::new("apt-get")
        .args(["-q", "-o", "DPkg::Lock::Timeout=300"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .status()
        .map_err(|error| format!("cannot run apt-get {shown} ({error})"))?;
    if status.success() {
        return Ok(());
    }
    Err(format!("apt-get {shown} failed ({status}): run it by hand as root, then run this again"))
}
