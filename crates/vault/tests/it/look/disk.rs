//! A point held against a directory of the machine: every kind of file, and what became of it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use lifeboat_vault::files::{Browser, Change, DiskError, DiskOptions, Excludes, compare_with_disk, restore_tree};

use crate::files_world::{MemoryVault, backup, noise, touch, write};

fn command(program: &str, arguments: &[&str]) {
    assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program} {arguments:?}");
}

/// Files of every kind.
fn make(top: &Path) {
    write(top.join("etc/app.conf"), "one\n");
    write(top.join("etc/small"), noise(1, 900));
    write(top.join("large"), noise(2, 5 << 20));
    let sparse = fs::File::create(top.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(b"in the middle", 32 << 20).unwrap();
    symlink("etc/app.conf", top.join("link")).unwrap();
    fs::hard_link(top.join("large"), top.join("twin")).unwrap();
    command("mkfifo", &[top.join("fifo").to_str().unwrap()]);
    command("setfattr", &["-n", "user.colour", "-v", "red", top.join("etc/small").to_str().unwrap()]);
    fs::create_dir(top.join("empty")).unwrap();
}

fn compare(
    vault: &MemoryVault,
    root: &lifeboat_vault::ChunkId,
    top: &Path,
    options: &DiskOptions,
) -> (Vec<String>, Vec<String>) {
    let browser = Browser::open(vault, root).unwrap();
    let mut lines = Vec::new();
    let mut each = |change: Change| {
        let mark = match (&change.before, &change.after) {
            (None, _) => '+',
            (_, None) => '-',
            _ if change.content => 'M',
            _ => 'm',
        };
        lines.push(format!("{mark} {}", String::from_utf8_lossy(&change.path)));
        true
    };
    let skipped = compare_with_disk((&browser, &browser.root().top), top, options, &mut each).unwrap();
    (lines, skipped.into_iter().map(|skipped| skipped.reason).collect())
}

#[test]
fn every_kind_of_file_is_alike_after_a_backup_and_told_when_it_changed() {
    let directory = tempfile::tempdir().unwrap();
    let top = directory.path().join("top");
    fs::create_dir(&top).unwrap();
    make(&top);
    let vault = MemoryVault::default();
    let root = backup(&vault, &top).root;
    let all = DiskOptions { read_all: true, ..DiskOptions::default() };
    assert_eq!(compare(&vault, &root, &top, &DiskOptions::default()), (Vec::new(), Vec::new()));
    assert_eq!(compare(&vault, &root, &top, &all), (Vec::new(), Vec::new()));
    // So is what a restore makes of it.
    let back = directory.path().join("back");
    restore_tree(&vault, &root, &back, &Default::default(), &(), &AtomicBool::new(false)).unwrap();
    assert_eq!(compare(&vault, &root, &back, &all), (Vec::new(), Vec::new()));

    // What no point holds is named, and is no difference of its own.
    let socket = std::os::unix::net::UnixListener::bind(top.join("empty/socket")).unwrap();
    command("mknod", &[top.join("empty/null").to_str().unwrap(), "c", "1", "3"]);
    touch(&top.join("empty"), 5, 0);
    let (lines, skipped) = compare(&vault, &root, &top, &DiskOptions::default());
    assert_eq!(lines, ["m empty"]);
    assert_eq!(skipped, ["is a device: no recovery point holds one", "is a socket: no recovery point holds one"]);
    drop(socket);
    fs::remove_dir_all(top.join("empty")).unwrap();

    let changes: BTreeMap<&str, Box<dyn Fn()>> = BTreeMap::from([
        ("M etc/app.conf", Box::new(|| write(top.join("etc/app.conf"), "two\n")) as Box<dyn Fn()>),
        (
            "m etc/small",
            Box::new(|| command("setfattr", &["-x", "user.colour", top.join("etc/small").to_str().unwrap()])),
        ),
        (
            "M link",
            Box::new(|| {
                fs::remove_file(top.join("link")).unwrap();
                symlink("elsewhere", top.join("link")).unwrap();
            }),
        ),
        (
            "M sparse",
            Box::new(|| {
                let sparse = fs::File::options().write(true).open(top.join("sparse")).unwrap();
                sparse.write_all_at(b"x", 60 << 20).unwrap();
            }),
        ),
        ("- fifo", Box::new(|| fs::remove_file(top.join("fifo")).unwrap())),
        ("+ new", Box::new(|| write(top.join("new"), "new"))),
        ("+ etc/directory", Box::new(|| write(top.join("etc/directory/file"), "new"))),
    ]);
    for change in changes.values() {
        change();
    }
    let (lines, skipped) = compare(&vault, &root, &top, &DiskOptions::default());
    assert!(skipped.is_empty(), "{skipped:?}");
    for wanted in changes.keys().chain(&["- empty", "+ etc/directory/file"]) {
        assert!(lines.iter().any(|line| line == wanted), "{wanted} is missing: {lines:?}");
    }
    assert!(!lines.iter().any(|line| line.ends_with("large") || line.ends_with("twin")), "{lines:?}");
    // What a backup left out is no difference, and a directory stands for what is below it.
    let excludes = Excludes::new(["etc", "new", "/sparse"]).unwrap();
    let (lines, _) = compare(&vault, &root, &top, &DiskOptions { excludes, ..DiskOptions::default() });
    assert!(!lines.iter().any(|line| line.starts_with('+')), "{lines:?}");
}

#[test]
fn what_keeps_size_and_time_is_found_by_reading_and_what_only_looks_changed_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let top = directory.path();
    write(top.join("quiet"), noise(3, 1 << 20));
    write(top.join("touched"), noise(4, 1 << 20));
    touch(&top.join("quiet"), 1000, 0);
    touch(top, 7, 0);
    let vault = MemoryVault::default();
    let root = backup(&vault, top).root;
    let mut changed = noise(3, 1 << 20);
    changed[700_000] ^= 1;
    write(top.join("quiet"), changed);
    touch(&top.join("quiet"), 1000, 0);
    touch(&top.join("touched"), 2000, 0);
    touch(top, 7, 0);
    let (lines, _) = compare(&vault, &root, top, &DiskOptions::default());
    assert_eq!(lines, ["m touched"]);
    let all = DiskOptions { read_all: true, ..DiskOptions::default() };
    assert_eq!(compare(&vault, &root, top, &all).0, ["M quiet", "m touched"]);
    // A directory that is not there, and a hostile one: nothing is followed out of it.
    let browser = Browser::open(&vault, &root).unwrap();
    let missing = compare_with_disk((&browser, &browser.root().top), &top.join("no"), &all, &mut |_| true);
    assert!(matches!(missing, Err(DiskError::Directory { .. })));
    let elsewhere = tempfile::tempdir().unwrap();
    write(elsewhere.path().join("secret"), "s");
    symlink(elsewhere.path(), top.join("way-out")).unwrap();
    touch(top, 7, 0);
    assert_eq!(compare(&vault, &root, top, &DiskOptions::default()).0, ["m touched", "+ way-out"]);
}
